"""Good files become values; bad files become one line that says where and what."""

from __future__ import annotations

import datetime

import pytest

import ddpd

K1, K2, K3 = (ddpd.show_key(bytes([n]) * 32) for n in (1, 2, 3))
POOL = "[pool home]\nprefix = 2001:db8:42::/48\ngive = /56-/64\n"
GRANTEE = f"[grantee alice]\nkey = {K1}\npools = home\n"
GRANTOR = f"[grantor exit1]\nkey = {K2}\naddress = 192.0.2.1\nask = ::/56\n"


def read(text: str) -> ddpd.Config:
    return ddpd.read_config(text, "f")


def test_the_example_of_the_design() -> None:
    config = read(f"""
[ddpd]
key     = /k                           ; as `wg genkey` writes it
listen  = [::]:3373, 192.0.2.1
leases  = /l
control = /c

[pool home]                            ; what this node may give
prefix   = 2001:db8:42::/48
give     = /56-/58 /64                 # lengths
reserve  = 2001:db8:42::/56
lifetime = 12h
dns      = 2001:db8:42::53, 192.0.2.53

[grantee alice]
key   = {K1}
pools = home
limit = 2
pin   = 2001:db8:42:1200::/56
route = via fe80::1 dev wg0

[grantor exit1]
key     = {K2}
address = exit1.example.net:3374 [2001:db8::1] 2001:db8::2
ask     = ::/56 on br-lan br-guest=7   ; comment
          3: 0.0.0.0/32 on wg0
default = dev wg0
keepalive = 25s
""")
    pool, = config.pools
    alice, = config.agreements.values()
    exit1, = config.contacts
    assert (config.key, config.leases, config.control) == ("/k", "/l", "/c")
    assert config.listen == (ddpd.HostPort("::", 3373), ddpd.HostPort("192.0.2.1", 3373))
    assert pool.give == (56, 57, 58, 64) and pool.valid_s == 43200 and pool.preferred_s == 21600
    assert (pool.renew_s, pool.rebind_s) == (10800, 17280)
    assert [p.host for p in pool.options["dns"]] == ["2001:db8:42::53", "192.0.2.53"]
    assert (alice.pools, alice.limit, alice.route) == (("home",), 2, ddpd.Reach("fe80::1", "wg0"))
    assert exit1.addresses == (ddpd.HostPort("exit1.example.net", 3374), ddpd.HostPort("2001:db8::1", 3373),
                               ddpd.HostPort("2001:db8::2", 3373))
    assert exit1.lines == (
        ddpd.Line(None, ddpd.parse_prefix("::/56"), (ddpd.Lan("br-lan", None), ddpd.Lan("br-guest", 7))),
        ddpd.Line(3, ddpd.parse_prefix("0.0.0.0/32"), (ddpd.Lan("wg0", None),)))
    assert exit1.default == ddpd.Default(ddpd.Reach("", "wg0"), redistribute=False)
    assert exit1.keepalive_s == 25 and exit1.install


def test_an_empty_file_is_a_node_that_does_nothing() -> None:
    config = read("")
    assert (config.listen, config.pools, config.contacts) == ((), (), ())
    assert config.key == "/etc/ddpd/key" and config.leases == "/var/lib/ddpd/leases.json"


def test_for_ever() -> None:
    pool, = read(POOL + "lifetime = forever\n").pools
    assert pool.valid_s == pool.preferred_s == pool.renew_s == float("inf")


# (what is added to a good section, the message).  Every key of every section has a row.
BAD: list[tuple[str, str, str]] = [
    ("ddpd", "key =", "[ddpd] key: missing"),
    ("ddpd", "listen = [::1", "f:2: [ddpd] listen: '[::1' is not an address (such as [2001:db8::1]:3373)"),
    ("ddpd", "listen = :99999", "f:2: [ddpd] listen: '' is neither an address nor a host name"),
    ("ddpd", "listen = a:70000", "f:2: [ddpd] listen: '70000' is not a whole number from 1 to 65535"),
    ("ddpd", "listen = 3373", "f:2: [ddpd] listen: '3373' is not an IP address"),
    ("ddpd", f"key = {K1}", "f:2: [ddpd] key: want the name of a file: without quotes, and not a key itself"),
    ("ddpd", "key = \"/k\"", "f:2: [ddpd] key: want the name of a file: without quotes, and not a key itself"),
    ("ddpd", "leases =", "[ddpd] leases: missing"),
    ("ddpd", "control =", "[ddpd] control: missing"),
    ("ddpd", "mark = 256", "f:2: [ddpd] mark: '256' is not a whole number from 1 to 255"),
    ("ddpd", "load = no", "f:2: [ddpd] load: 'no' is not a whole number from 1 to 1000000"),
    ("ddpd", "hold = 30x",
     "f:2: [ddpd] hold: '30x' is not a duration (such as 90s, 30m, 12h, 7d, forever)"),
    ("ddpd", "pins = '/p'", "f:2: [ddpd] pins: want the name of a file"),
    ("ddpd", "pins = /none.csv", "/none.csv: no files here"),
    ("ddpd", "grantees = \"/d\"", "f:2: [ddpd] grantees: want the name of a file"),
    ("ddpd", "grantees = /none", "/none: no files here"),
    ("ddpd", "handlers = 'h.py'", "f:2: [ddpd] handlers: want the name of a file"),
    ("ddpd", "status = 's'", "f:2: [ddpd] status: want the name of a file"),
    ("ddpd", "accounting = 'a'", "f:2: [ddpd] accounting: want the name of a file"),
    ("ddpd", "rate = 5", "f:2: [ddpd] rate: '' is not a duration"),
    ("ddpd", "rate = x/30s", "f:2: [ddpd] rate: 'x' is not a whole number from 1 to 1000000"),
    ("pool", "prefix = interface", "f:2: [pool home] prefix: 'interface' is not a source (such as `ula`"),
    ("pool", "prefix = ula 2", "f:2: [pool home] prefix: 'ula 2' is not a source"),
    ("pool", "prefix = grantor exit1 x", "f:2: [pool home] prefix: 'x' is not a whole number from 0 to 255"),
    ("pool", "prefix = grantor exit1", "f:2: [pool home] prefix: no [grantor exit1]"),
    ("pool", "share = 3/2", "f:4: [pool home] share: '3/2' is not a share (such as 1/2, of at most 16)"),
    ("pool", "share = 1", "f:4: [pool home] share: '1' is not a share"),
    ("pool", "share = 1/2\nlifetime = 20d", "f:4: [pool home] share: wants a `hold` of at least twice `lifetime`"),
    ("pool", "give = /48\nshare = 1/2", "f:4: [pool home] share: 2001:db8:42::/48 has only 1 /48 for 2 shares"),
    ("grantee", "total = 2001:db8::1/52", "f:7: [grantee alice] total: 2001:db8::1/52 has host bits set"),
    ("grantee", "lifetime = 6h-1h", "f:7: [grantee alice] lifetime: '6h-1h' is empty (such as 1h-6h"),
    ("grantee", "until = 2027-02-29", "f:7: [grantee alice] until: '2027-02-29' is not a date (such as 2027-03-31"),
    ("grantee", "until = 2027-02-28T24:00", "f:7: [grantee alice] until: '2027-02-28T24:00' is not a date"),
    ("grantee", "rate = 0/30s", "f:7: [grantee alice] rate: '0' is not a whole number from 1 to 1000000"),
    ("pool", "prefix = 2001:db8:42::1/48",
     "f:2: [pool home] prefix: 2001:db8:42::1/48 has host bits set (the prefix is 2001:db8:42::/48)"),
    ("pool", "prefix = 2000::/3", "f:2: [pool home] prefix: 2000::/3 is too large (/16 at most)"),
    ("pool", "prefix = 10.0.0/8", "f:2: [pool home] prefix: '10.0.0' is not an IP address"),
    ("pool", "prefix = ::/200", "f:2: [pool home] prefix: /200 is not a valid IPv6 prefix length (0 to 128)"),
    ("pool", "give = /47", "f:3: [pool home] give: /47 does not fit 2001:db8:42::/48 (/48 to /128)"),
    ("pool", "give = 56-x", "f:3: [pool home] give: '56-x' is not a length (such as /56, or /56-/64)"),
    ("pool", "give = /64-/56", "f:3: [pool home] give: "),
    ("pool", "reserve = 2001:db8:43::/56",
     "f:4: [pool home] reserve: 2001:db8:43::/56 is not in 2001:db8:42::/48"),
    ("pool", "lifetime = 0s", "f:4: [pool home] lifetime: '0s' is not a duration"),
    ("pool", "preferred = 13h", "f:4: [pool home] preferred: longer than `lifetime`"),
    ("pool", "renew = 7h", "f:4: [pool home] renew: longer than `preferred`"),
    ("pool", "rebind = 1s", "f:4: [pool home] rebind: not between `renew` and `lifetime`"),
    ("pool", "dns = ns1", "f:4: [pool home] dns: 'ns1' is not an IP address"),
    ("pool", "dns = 2001:db8::/32",
     "f:4: [pool home] dns: '2001:db8::/32' is not an address (no length here)"),
    ("pool", "search = a_b", "f:4: [pool home] search: 'a_b' is not a host or domain name"),
    ("pool", "ntp = x", "f:4: [pool home] ntp: 'x' is not an IP address"),
    ("pool", "mtu = 1279", "f:4: [pool home] mtu: '1279' is not a whole number from 1280 to 9000"),
    ("grantee", "key = abc", "f:5: [grantee alice] key: not a key (44 characters of base64"),
    ("grantee", "pools = hom", "f:6: [grantee alice] pools: no pool named 'hom' (have: home)"),
    ("grantee", "limit = 0", "f:7: [grantee alice] limit: '0' is not a whole number from 1 to 256"),
    ("grantee", "lengths = /129", "f:7: [grantee alice] lengths: '/129' is not a length"),
    ("grantee", "pin = 2001:db8:42::1/56", "f:7: [grantee alice] pin: 2001:db8:42::1/56 has host bits set"),
    ("grantee", "route = wg0", "f:7: [grantee alice] route: 'wg0' is not a route (expected `auto`, `dev IF`"),
    ("grantee", "route = dev eth0/1", "f:7: [grantee alice] route: 'eth0/1' is not an interface name"),
    ("grantor", f"key = {K1[:-2]}", "f:2: [grantor exit1] key: not a key"),
    ("grantor", "address = a_b", "f:3: [grantor exit1] address: 'a_b' is neither an address nor a host name"),
    ("grantor", "address = 192.0.2.256", "f:3: [grantor exit1] address: '192.0.2.256' is not an IP address"),
    ("grantor", "ask = ::/56 on br-lan=1 br-guest=1",
     "f:4: [grantor exit1] ask: '::/56 on br-lan=1 br-guest=1' names an interface or a number twice"),
    ("grantor", "ask = ::/56 br-lan", "f:4: [grantor exit1] ask: '::/56 br-lan' is not an ask"),
    ("grantor", "ask = ::/8", "f:4: [grantor exit1] ask: ::/8 is too large to ask for"),
    ("grantor", "ask = 3: ::/56\n  3: ::/64", "f:4: [grantor exit1] ask: a slot is named twice"),
    ("grantor", "ask = ::/56 on this-interface-name-is-too-long", "f:4: [grantor exit1] ask: 'this-inter"),
    ("grantor", "ask = " + "\n  ".join(["::/56"] * 17), "f:4: [grantor exit1] ask: more than 16 lines"),
    ("grantor", "default = eth0", "f:5: [grantor exit1] default: 'eth0' is not a route"),
    ("grantor", "default = redistribute", "f:5: [grantor exit1] default: 'redistribute' is not a route (expected"),
    ("grantor", "address = gateway%", "f:3: [grantor exit1] address: '' is not an interface name"),
    ("grantor", "rank = 0", "f:5: [grantor exit1] rank: '0' is not a rank (`nearest`, or a whole number"),
    ("grantor", "hook_style = odhcp", "f:5: [grantor exit1] hook_style: 'odhcp' is none of: ddpd"),
    ("ddpd", "radvd = 'r'", "f:2: [ddpd] radvd: want the name of a file: without quotes"),
    ("ddpd", "dhcp = 'd'", "f:2: [ddpd] dhcp: want the name of a file: without quotes"),
    ("ddpd", "resolv = '/r'", "f:2: [ddpd] resolv: want the name of a file: without quotes"),
    ("ddpd", "dnsmasq = \"/s\"", "f:2: [ddpd] dnsmasq: want the name of a file: without quotes"),
    ("grantor", "install = maybe", "f:5: [grantor exit1] install: 'maybe' is neither yes nor no"),
    ("grantor", "release = later", "f:5: [grantor exit1] release: 'later' is neither yes nor no"),
    ("grantor", "accept = all", "f:5: [grantor exit1] accept: 'all' is not an IP address"),
    ("grantor", "hostname = a b", "f:5: [grantor exit1] hostname: 'a b' is not a host or domain name"),
    ("grantor", "keepalive = often", "f:5: [grantor exit1] keepalive: 'often' is not a duration"),
    ("ndp", "proxy =", "f:2: [ndp eth0] proxy: missing: `leased`, `static P`"),
    ("ndp", "proxy = leasd", "f:2: [ndp eth0] proxy: 'leasd' is not a rule (such as `leased`, `static PREFIX`"),
    ("ndp", "proxy = static 2001:db8::1/64", "f:2: [ndp eth0] proxy: 2001:db8::1/64 has host bits set"),
    ("ndp", "proxy = iface 2001:db8::/64", "f:2: [ndp eth0] proxy: 'iface 2001:db8::/64' is not a rule"),
    ("ndp", "proxy = iface 2001:db8::/64 a/b", "f:2: [ndp eth0] proxy: 'a/b' is not an interface name"),
    ("ndp", "proxy = auto ::/129", "f:2: [ndp eth0] proxy: /129 is not a valid"),
    ("ndp", "proxy = iface 2001:db8::/64 eth0", "f:2: [ndp eth0] proxy: asks on eth0 itself"),
    ("ndp", "proxy = static 10.0.0.0/8", "f:2: [ndp eth0] proxy: 10.0.0.0/8 is not IPv6"),
    ("ndp", "proxy = auto ::/0, never ::/0", "f:2: [ndp eth0] proxy: a prefix has two rules"),
    ("ndp", "method = ndppd", "f:3: [ndp eth0] method: 'ndppd' is none of: own, kernel"),
    ("ndp", "router = on", "f:3: [ndp eth0] router: 'on' is neither yes nor no"),
    ("ndp", "source = fe80::1", "f:3: [ndp eth0] source: 'fe80::1' is none of: link-local, interface, target"),
    ("ndp", "autowire = yes", "f:3: [ndp eth0] autowire: wants a rule `iface`"),
    ("ndp", "ttl = 0", "f:3: [ndp eth0] ttl: '0' is not a duration"),
    ("ndp", "ttl = forever", "f:3: [ndp eth0] ttl: an hour at most"),
    ("ndp", "allow = 2001:db8::1/64", "f:3: [ndp eth0] allow: 2001:db8::1/64 has host bits set"),
    ("ndp", "deny = all", "f:3: [ndp eth0] deny: 'all' is not an IP address"),
    ("grantee", "was = OLD", "f:7: [grantee alice] was: not a key (44 characters of base64"),
    ("wireguard", "pools = hom", "f:5: [wireguard wg0] pools: no pool named 'hom' (have: home)"),
    ("wireguard", "limit = 0", "f:6: [wireguard wg0] limit: '0' is not a whole number from 1 to 256"),
    ("wireguard", "lengths = /129", "f:6: [wireguard wg0] lengths: '/129' is not a length"),
    ("wireguard", "total = all", "f:6: [wireguard wg0] total: 'all' is not an IP address"),
    ("wireguard", "lifetime = 6h-1h", "f:6: [wireguard wg0] lifetime: '6h-1h' is empty"),
    ("wireguard", "rate = 0/1s", "f:6: [wireguard wg0] rate: '0' is not a whole number"),
    ("wireguard", "add_peers = true", "f:6: [wireguard wg0] add_peers: 'true' is neither yes nor no"),
    ("wireguard", "listen = [::]:51820", "f:6: [wireguard wg0] listen: '[::]:51820' is not a whole number from 1"),
    ("wireguard", "address = 10.9.0.1/24", "f:6: [wireguard wg0] address: wants `listen`: it is for an interface"),
    ("wireguard", "address = 10.9.0/24", "f:6: [wireguard wg0] address: '10.9.0' is not an IP address"),
    ("wireguard", "endpoint = a_b:51820", "f:6: [wireguard wg0] endpoint: 'a_b' is neither an address nor a host"),
    ("wireguard", "endpoint = gateway", "f:6: [wireguard wg0] endpoint: 'gateway' is not an endpoint (such as vpn."),
    ("wireguard", "endpoint = :70000", "f:6: [wireguard wg0] endpoint: '70000' is not a whole number"),
    ("wireguard", "allowed = everything", "f:6: [wireguard wg0] allowed: 'everything' is not an IP address"),
    ("wireguard", "allowed = " + "fd00::/64 " * 25, "f:6: [wireguard wg0] allowed: more than 24 have no room"),
    ("wireguard", "keepalive = 24h", "f:6: [wireguard wg0] keepalive: 65535s at most"),
    ("wireguard", "dynamic = 970", "f:6: [wireguard wg0] dynamic: '970' is neither yes nor no"),
    ("tunnel", "grantor = exit2", "f:6: [tunnel wg0] grantor: no [grantor exit2] (have: exit1)"),
    ("tunnel", "routes = ::1/64", "f:7: [tunnel wg0] routes: ::1/64 has host bits set"),
    ("tunnel", "mtu = 576", "f:7: [tunnel wg0] mtu: '576' is not a whole number from 1280 to 9000"),
    ("grantor", "suffix = 10.0.0.1", "f:5: [grantor exit1] suffix: '10.0.0.1' is not a suffix (such as ::1)"),
]


def spoilt(kind: str, row: str) -> str:
    """A good file in which one key has this value instead."""
    good = {"ddpd": "[ddpd]\n", "pool": POOL, "grantee": POOL + GRANTEE, "grantor": GRANTOR,
            "ndp": "[ndp eth0]\nproxy = leased\n",
            "wireguard": f"{POOL}[wireguard wg0]\npools = home\n",
            "tunnel": f"{GRANTOR}[tunnel wg0]\ngrantor = exit1\n"}[kind]
    key = row.split(" = ")[0].split(" =")[0]
    at = good.rfind(f"\n[{kind}") + 1
    head, section = good[:at], good[at:]
    lines = [row if line.startswith(f"{key} = ") else line for line in section.split("\n")[:-1]]
    return head + "\n".join(lines if row in lines else [*lines, row]) + "\n"


@pytest.mark.parametrize(("kind", "row", "message"), BAD, ids=[f"{k} {r[:25]}" for k, r, _ in BAD])
def test_bad_values(kind: str, row: str, message: str) -> None:
    with pytest.raises(ddpd.ConfigError) as caught:
        read(spoilt(kind, row))
    said = str(caught.value)
    assert message in said and "\n" not in said and said.startswith(("f:", "/none"))


def test_every_key_has_a_bad_value_above() -> None:
    rows = {(kind, row.split(" =")[0]) for kind, row, _ in BAD}
    any_text = {("grantor", "hook")}
    assert rows | any_text >= {(kind, key) for kind, keys in ddpd.SETTINGS.items() for key in keys}


@pytest.mark.parametrize(("text", "message"), [
    (POOL.replace("give", "gibe"), "f:3: [pool home] gibe: no such key (did you mean 'give'?)"),
    (POOL + "lifetme = 1h\n", "f:4: [pool home] lifetme: no such key (did you mean 'lifetime'?)"),
    ("[pools home]\n", "f:1: [pools home]: no such section (did you mean 'pool'?)"),
    ("[grantees x]\n", "f:1: [grantees x]: no such section (did you mean 'grantee'?)"),
    ("[ddpd x]\n", "f:1: [ddpd x]: takes no name"), ("[pool]\n", "f:1: [pool]: needs a name: [pool NAME]"),
    (f"[pool {'x' * 41}]\n", "at most 40 printable"), ("[pool hö]\n", "at most 40 printable"),
    ("[pool a\x7fb]\n", "at most 40 printable"),
    ("[pool my home]\n", "f:1: [pool my home]: a name is one word of at most 40 printable ASCII letters"),
    (POOL + "  lifetime = 1h\n",
     "f:4: [pool home] lifetime: is indented, so it goes on with `give` (begin it in the first column)"),
    ("[pool home\n", "no closing bracket"), ("key = 1\n", "f:1: 'key = 1' stands before any section"),
    ("[ddpd]\nhello\n", "f:2: [ddpd]: 'hello' is not `key = value`"),
    ("[ddpd]\nmark = 1\nmark = 2\n", "f:3: [ddpd] mark: given twice (first in line 2)"),
    (POOL + POOL, "f:4: [pool home]: given twice"), ("[ddpd]\n[ddpd]\n", "f:2: [ddpd]: given twice"),
    (POOL.replace("give = /56-/64", ""), "f:1: [pool home] give: missing: prefix lengths"),
    (POOL + "[grantee x]\npools = home\n", "f:4: [grantee x] key: missing: its public key"),
    (POOL + GRANTEE + GRANTEE.replace("alice", "bob"), "f:8: [grantee bob] key: the same as [grantee alice]"),
    (GRANTOR + GRANTOR.replace("exit1", "exit2"), "f:6: [grantor exit2] key: the same as [grantor exit1]"),
    (POOL + POOL.replace("home", "h2").replace("/48", "/50"),
     "f:5: [pool h2] prefix: 2001:db8:42::/50 overlaps 2001:db8:42::/48 of [pool home]"),
    (POOL.replace("/48", "/50") + POOL.replace("home", "h2"),
     "f:5: [pool h2] prefix: 2001:db8:42::/48 overlaps 2001:db8:42::/50 of [pool home]"),
    (POOL + GRANTEE + "pin = 2001:db8:42::/56\n" + GRANTEE.replace("alice", "bob").replace(K1, K3)
     + "pin = 2001:db8:42:1::/64\n",
     "f:11: [grantee bob] pin: 2001:db8:42:1::/64 overlaps 2001:db8:42::/56 of [grantee alice]"),
    (POOL + GRANTEE + "pin = 10.0.0.1 10.0.0.1\n", "pin: 10.0.0.1/32 overlaps 10.0.0.1/32"),
])
def test_bad_shapes(text: str, message: str) -> None:
    with pytest.raises(ddpd.ConfigError) as caught:
        read(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "seconds"), [
    ("1", 1), ("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600), ("forever", float("inf"))])
def test_durations(text: str, seconds: float) -> None:
    assert ddpd.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1.5h", "0", "0h", "1y", "\uff15s", "4294967295", "999999d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        ddpd.duration(text)


@pytest.mark.parametrize(("text", "seconds"), [
    ("1970-01-01", 0), ("2000-03-01", 951868800), ("2024-02-29", 1709164800), ("2026-11-21T02:30", 1795228200),
    ("2100-03-01Z", 4107542400), ("9999-12-31T23:59", 253402300740)])
def test_dates(text: str, seconds: int) -> None:
    assert ddpd.parse_date(text) == seconds


@pytest.mark.parametrize("year", range(1970, 2410, 7))
def test_dates_are_as_the_library_has_them(year: int) -> None:
    when = datetime.datetime(year, year % 12 + 1, year % 28 + 1, tzinfo=datetime.UTC)
    assert ddpd.parse_date(f"{when:%Y-%m-%dT%H:%M}") == when.timestamp()


@pytest.mark.parametrize("text", ["", "2027", "2027-13-01", "2027-1-0", "1969-12-31", "2100-02-29", "2027-01-01T1",
                                  "27-01-01", "2027-01-01T00:60", "\uff12027-01-01", "2027-01-01T-1:00"])
def test_what_is_no_date(text: str) -> None:
    with pytest.raises(ValueError, match="is not a date"):
        ddpd.parse_date(text)


@pytest.mark.parametrize(("value", "is_in"), [
    ("1.2.3.4", True), ("10.0.0.1", True), ("223.255.255.255", True), ("2001:db8::1", True), ("fd00::1", True),
    ("0.1.2.3", False), ("127.0.0.1", False), ("169.254.1.1", False), ("224.0.0.1", False),
    ("240.0.0.1", False), ("255.255.255.255", False), ("fe80::1", False), ("ff02::1", False), ("::1", False)])
def test_what_is_accepted_by_default(value: str, is_in: bool) -> None:
    node = ddpd.Node(read(GRANTOR), bytes(32), "b", bytes)
    grantee, prefix = node.grantees["exit1"], ddpd.parse_prefix(value)
    grant = ddpd.Grant(0, prefix, True, 1, 2, bytes(20))
    wanted = ddpd.Prefix(prefix.version, 0, prefix.length)
    assert (grantee.mistrust(grant, wanted, lambda _: "") == "") == is_in
