"""The LuCI pages, really run: in a browser, on stand-ins for LuCI that are ours (tests/luci).

One start of the browser plays every scene of tests/luci/scenes.js; the tests look at what each has found.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import ddpd
from daemon import Daemon, free_port
from luci import browser, packer, pot, samples

IN_BROWSER = pytest.mark.slow            # which, with two daemons before it, is started once: some ten seconds

Told = dict[str, Any]
PAGE = browser.OPENWRT.parent / "docs/home-router.md"
NETIFD = browser.OPENWRT / "ddpd/root/lib/netifd"
KEY = samples.KEY
V6, V4 = "2001:db8::/48", "192.0.2.0/24"

# Of each key: what its field takes, and what it does not.  ddpd's own parser is asked too, and has to agree.
PATHS = (["/etc/ddpd/key", "/a"], ["'/a'", KEY])
PREFIXES = ([V6, V4, "::/0", "0.0.0.0/28", "2001:db8::1", "192.0.2.1", "::ffff:1.2.3.4/128", "1:2:3:4:5:6:7:8",
             "2001:DB8::/32", "::/52"],
            ["2001:db8::1/48", "192.0.2.1/24", "2001:db8::/129", "192.0.2.0/33", "2001:db8:::/48", "1::2::3",
             "300.0.0.0/8", "01.2.3.4",
             "/48", "::/x", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7", "12345::", "g::", "1.2.3", "::1.2.3", "x",
             "1:2:3:4:5:6:7::8"])
SIXES = (["2001:db8::/48", "::1", "::/0"], [V4, "10.0.0.1", "x", "2001:db8::1/48"])
ADDRESSES = (["2001:db8::53", "192.0.2.53", "::"], ["2001:db8::/64", "x", "192.0.2.256", "1.2.3.4.5", ":"])
TIMES = (["90s", "30m", "12h", "30d", "2w", "3600", "forever"],
         ["0s", "0", "x", "1y", "-1h", "1.5h", "4294967295", "h", "1 h", "Forever"])
NUMBERS = {(low, high): ([str(low), str(high)], [str(low - 1), str(high + 1), "x", "1.5", "-1"])
           for low, high in ((1, 255), (1, 256), (1, 1_000_000), (1280, 9000))}
YESNO = (["yes", "no"], ["maybe"])
KEYS = ([KEY, samples.key_of(9)], ["short", KEY[:-1], KEY + "=", KEY.replace("B", "*", 1), "A" * 44])
NAMES = (["lan", "example.net", "a-b.c", "1"], ["a_b", "a..b", ".", "x" * 64, "é"])
LENGTHS = (["/56", "56", "/56-/64", "56-64", "/128", "/0"], ["/129", "/64-/56", "x", "/", "/5-", "/56/64"])
RATES = (["5/30s", "100/1s", "1/1d", "5 / 30s"], ["5", "0/1s", "5/0s", "/1s", "5/", "x/1s", "5/30s/2"])
TERMS = {
    "pools": (["home", "Other.pool"], []), "limit": NUMBERS[1, 256], "lengths": LENGTHS, "total": PREFIXES,
    "rate": RATES,
    "lifetime": (["6h", "1h-6h", "forever", "1h-forever", "1h - 6h"], ["6h-1h", "x", "1h-2h-3h", "-", "forever-1h"]),
}
HOSTS = ["exit1.example.net", "exit1:3373", "192.0.2.1", "192.0.2.1:1", "2001:db8::1", "[2001:db8::1]",
         "[2001:db8::1]:65535", "gateway", "gateway%br-lan", "gateway:4000", "fe80::1%eth0", "host:"]
NO_HOSTS = ["exit1:0", "exit1:65536", "exit1:x", "a_b", "[2001:db8::1", "[2001:db8::1]3373", "2001:db8::g",
            "192.0.2.300", "name%eth0", ":"]
ASKS = (["::/56", "0.0.0.0/32", "3: ::/60", "3:  ::/60", "::/56 on br-lan", "::/56 on br-lan br-guest=7",
         "255: 0.0.0.0/8", "2001:db8::/56", "::/128 on wg0", "::/64 on a.b@c=65535", "0: ::/64 on br-lan, br-guest"],
        ["::/57x", "::/129", "256: ::/60", "x: ::/60", "::/56 on", "::/56 br-lan", "::/56 on a a", "::/56 on a=1 b=1",
         "::/56 on a=x",
         "::/8", "0.0.0.0/7", "2001:db8::1/56", "::/56 on a=65536", "::/56 on name-of-more-than-15", "on br-lan",
         "::/56 on a=1=2"])
NO_NETIFD = {                             # right in ddpd.conf, but not for netifd: and why
    **dict.fromkeys(["::/56 on br-lan", "::/56 on @lan br-guest=7", "3: ::/60 on @lan", "::/64 on @lan"], "ip6assign"),
    **dict.fromkeys(["0.0.0.0/28 on @guest @lan", "::/80 on a, b"], "Only one interface"),
    **dict.fromkeys(["0.0.0.0/28 on @guest=7", "::/80 on br-guest=0"], "no number"),
}
REACHES = ["dev wg0", "via 192.0.2.7", "via fe80::1 dev br-lan", "dev br-lan via fe80::1"]
NO_REACHES = ["wg0", "via", "dev", "via x", "via 192.0.2.0/24", "dev a b", "via 1.2.3.4 via 1.2.3.4",
              "dev name-of-more-than-15", "via 1.2.3.4 on x", "dev a via"]
VALUES: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "ddpd": {
        **dict.fromkeys(("key", "leases", "control", "pins", "grantees", "handlers", "accounting", "resolv",
                         "dnsmasq", "radvd", "dhcp", "status"), PATHS),
        "listen": (["[::]:3373", "0.0.0.0:3373", "192.0.2.1", "2001:db8::1", "[::1]"],
                   ["example.net", "x:1", "[::]:0", "[::]:70000", "gateway"]),
        "mark": NUMBERS[1, 255], "load": NUMBERS[1, 1_000_000], "hold": TIMES, "rate": RATES,
    },
    "pool": {
        "prefix": ([V6, V4, "ula", "interface eth0", "grantor exit1", "grantor exit1 2", "grantor exit1 255"],
                   ["2001:db8::1/48", "x", "ula x", "interface", "interface a b", "grantor", "grantor a 256",
                    "grantor a b", "grantor a 1 2", "interface name-of-more-than-15"]),
        "give": LENGTHS, "reserve": PREFIXES,
        "share": (["1/1", "1/2", "16/16"], ["0/1", "2/1", "1/17", "x", "1", "1/2/3", "/2"]),
        **dict.fromkeys(("lifetime", "preferred", "renew", "rebind"), TIMES), "dns": ADDRESSES, "ntp": ADDRESSES,
        "search": NAMES, "mtu": NUMBERS[1280, 9000],
    },
    "grantee": {
        "key": KEYS, "was": KEYS, **TERMS, "pin": PREFIXES, "route": (["auto", "none", *REACHES], NO_REACHES),
        "until": (["2027-03-31", "2027-03-31T12:00", "2028-02-29", "2027-03-31T12:00Z", "1970-01-01"],
                  ["2027-02-29", "2027-13-01", "2027-00-01", "x", "2027-03-31T24:00", "2027-03-31T12:60",
                   "1969-12-31", "2027-04-31"]),
    },
    "grantor": {
        "key": KEYS, "address": (HOSTS, NO_HOSTS), "ask": ASKS, "accept": PREFIXES, "install": YESNO, "release": YESNO,
        "default": (["auto", "none", "auto redistribute", "dev wg0 redistribute", *REACHES],
                    ["redistribute", "auto x", *NO_REACHES]),
        "rank": (["1", "255", "nearest"], ["0", "256", "x"]), "hook": (["/etc/ddpd/hook"], []), "hostname": NAMES,
        "keepalive": TIMES, "hook_style": (["ddpd", "odhcp6c"], ["ahcpd"]),
        "suffix": (["::1", "::ffff:1", "0:0:0:0::9"], ["::", "2001:db8::1", "1.2.3.4", "x"]),
    },
    "ndp": {
        "proxy": (["leased", "static 2001:db8::5", "auto 2001:db8::/64", "iface 2001:db8::/64 br-lan",
                   "never 2001:db8::/80"],
                  ["x", "static", "static x", "static 192.0.2.1", "iface 2001:db8::/64", "auto 2001:db8::/64 br-lan",
                   "leased x", "static 2001:db8::1/64"]),
        "method": (["own", "kernel"], ["x"]), "source": (["link-local", "interface", "target"], ["x"]),
        "router": YESNO, "autowire": YESNO, "ttl": TIMES, "allow": SIXES, "deny": SIXES,
    },
    "wireguard": {
        **TERMS, "add_peers": YESNO, "dynamic": YESNO, "listen": (["1", "51820", "65535", "none"], ["0", "65536", "x"]),
        "address": (["10.9.0.1/24", "fd00:9::1/64", "10.0.0.1"], ["x", "10.9.0.1/33", "fd00::1/x"]),
        "endpoint": (["vpn.example.net:51820", "vpn.example.net", ":51820", "192.0.2.1", "[2001:db8::1]:1", ":"],
                     ["a b", ":0", ":x", "gateway", "a:70000", "gateway:1"]),
        "allowed": PREFIXES, "keepalive": TIMES,
    },
    "tunnel": {"grantor": (["exit1"], []), "routes": PREFIXES, "mtu": NUMBERS[1280, 9000]},
}
# What only the fields know: `@NAME` is for the init script; pools and grantors are there or not; paths are whole.
OURS: list[tuple[str, str, str, bool]] = [
    *(("grantor", "ask", ask, True) for ask in ("::/56 on @lan", "::/56 on @a_network_of_a_long_name=7 br-lan")),
    ("grantor", "ask", "::/56 on @", True), ("grantor", "ask", "::/56 on @a-b!", False),
    ("grantor", "default", "via fe80::1 dev @wan", True),
    ("pool", "prefix", "interface @a_network_of_a_long_name", True), ("ndp", "proxy", "iface 2001:db8::/64 @lan", True),
    ("ndp", "device", "@wan", True), ("ndp", "device", "eth0", True), ("tunnel", "device", "a b", False),
    ("wireguard", "device", "x" * 16, False),
    ("grantee", "pools", "nobody", False), ("wireguard", "pools", "nobody", False),
    ("tunnel", "grantor", "nobody", False),
    ("ddpd", "config", "/etc/ddpd/by-hand.conf", True), ("ddpd", "config", "by-hand.conf", False),
    ("ddpd", "key", "/a b", False),
    ("pool", "name", "home.net", True), ("pool", "name", "x" * 41, False), ("grantee", "name", "x" * 300, True),
    ("grantee", "name", "x" * 301, False),
    ("grantor", "name", "a b", False), ("pool", "search", "a b", False), ("grantor", "address", "a b", False),
    ("pool", "reserve", "::/", False),
    ("grantor", "hook", "/etc/hook;x", False), ("grantor", "name", "a#b", False), ("grantor", "name", "é", False),
]
INTERFACE = {
    "grantor": (HOSTS, NO_HOSTS), "key": KEYS, "accept": PREFIXES,
    "ask": ([*(ask for ask in ASKS[0] if " on " not in ask), "0.0.0.0/28 on @guest", "3: 0.0.0.0/29 on br-guest",
             "::/65 on @guest", "::/128 on wg0"],
            [*ASKS[1], *NO_NETIFD]),
    "gateway": (["fe80::1", "2001:db8::53"], ["192.0.2.53", "fe80::1%eth0", *ADDRESSES[1]]),
    "mtu": NUMBERS[1280, 9000], "metric": (["0", "1024"], ["-1", "x"]), "hostname": NAMES, "keepalive": TIMES,
    "keyfile": PATHS,
}


def flat(table: dict[str, tuple[list[str], list[str]]]) -> list[tuple[str, str, bool]]:
    return [(key, value, good) for key, both in table.items()
            for good, values in zip((True, False), both, strict=True) for value in values]


TABLE = [(kind, *row) for kind, table in VALUES.items() for row in flat(table)]
INTERFACE_TABLE = flat(INTERFACE)


# ---- the one start of the browser

def status_file(daemon: Daemon) -> dict[str, Any]:
    """What the daemon has written for us, or nothing yet."""
    try:
        found: dict[str, Any] = json.loads((daemon.dir / "status.json").read_text())
    except FileNotFoundError:
        return {"held": [], "granted": [], "grantors": [{"refused": []}]}
    return found


def really(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The status of a grantor and of a grantee, which has asked for a /56 and for something that there is not."""
    port = free_port()
    keys = [ddpd.keypair(bytes([number]) * 32) for number in (11, 12)]
    hub = Daemon(f"[ddpd]\nlisten = [::1]:{port}\nstatus = {tmp_path / 'hub/status.json'}\n"
                 "[pool home]\nprefix = 2001:db8:42::/48\ngive = /56-/64\nlifetime = 1h\n"
                 f"[grantee alice]\nkey = {ddpd.show_key(keys[1].public)}\npools = home\nroute = none\nlimit = 2\n",
                 tmp_path, "hub")
    alice = Daemon(f"[ddpd]\nstatus = {tmp_path / 'alice/status.json'}\n"
                   f"[grantor exit1]\nkey = {ddpd.show_key(keys[0].public)}\naddress = [::1]:{port}\nask = ::/56\n"
                   "      0.0.0.0/32\ninstall = no\nhostname = alice-router\n", tmp_path, "alice")
    hub.write_key(bytes([11]) * 32)
    alice.write_key(bytes([12]) * 32)
    with hub, alice:
        hub.eventually(lambda: status_file(hub)["granted"], 20)
        alice.eventually(lambda: status_file(alice)["held"] and status_file(alice)["grantors"][0]["refused"], 20)
        return status_file(hub), status_file(alice)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    if browser.chromium() is None:
        why = "needs chromium (Debian package chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    grantor, grantee = really(tmp_path_factory.mktemp("daemons"))
    many = [samples.granted(n, prefix=f"2001:db8:{n:x}::/48",
                            reach="via fe80::1 dev br-lan " + "x" * 40) for n in range(1000)]
    data = {"uci": samples.UCI, "status": samples.STATUS, "key": KEY, "real_grantor": grantor,
            "real_grantee": grantee, "many": many, "acl": browser.granted(),
            "values": [*(row[:3] for row in TABLE), *(row[:3] for row in OURS)],
            "interface_values": [row[:2] for row in INTERFACE_TABLE]}
    found = browser.results(tmp_path_factory.mktemp("browser"), data)
    return {**found, "data": data}


@IN_BROWSER
def test_every_scene_was_played(told: Told) -> None:
    assert told["failed"] == {} and told["errors"] == []


# ---- the protocol

@IN_BROWSER
def test_the_protocol_runs_on_a_device_of_another_network(told: Told) -> None:
    found = told["protocol"]
    assert (found["apk"], found["opkg"]) == ("ddpd", "ddpd")
    assert "ddpd" in found["i18n"] and len(found["i18n"]) <= 15    # the arrow of the select is beside it
    assert (found["floating"], found["virtual"]) == (False, False)
    assert found["ifname"] == "eth1" and found["devices"] == ["eth1"] and found["contains"] and found["down"] is None


def sent_codes() -> set[str]:
    """The errors that the protocol's scripts tell netifd."""
    scripts = [NETIFD / "ddpd.script", NETIFD / "proto/ddpd.sh"]
    sends = r'(?:(?:proto_notify_error|ddpd_rest) "\$(?:INTERFACE|interface)"|\btell|DDPD_ERROR=)[ ]?([A-Z_]+)\b'
    each = [set(re.findall(sends, script.read_text())) for script in scripts]
    assert all(each), f"nothing like: {sends}"
    return set.union(*each)


@IN_BROWSER
def test_its_error_codes_are_those_that_are_sent(told: Told) -> None:
    errors = told["protocol"]["errors"]
    assert set(errors) == sent_codes()
    assert all(re.fullmatch(r".{20,}\.", text) for text in errors.values())
    assert len(set(errors.values())) == len(errors)


def test_the_page_has_every_error_code() -> None:
    _, _, chapter = PAGE.read_text().partition("\n### Errors\n")
    cells = re.findall(r"(?m)^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \|", chapter.partition("\n### ")[0])
    codes = [code.strip("`") for cell in cells for code in cell.split(", ")]
    assert sorted(codes) == sorted(sent_codes())


@IN_BROWSER
def test_its_form_has_every_option_and_keeps_what_was_configured(told: Told) -> None:
    found = told["protocol"]
    wanted = set(samples.UCI["network"]["wan6d"]) - {".name", ".type", "proto", "device"}
    options = dict(found["options"])
    assert set(options) == wanted | {"gateway", "_ours"} and len(found["options"]) == len(options) == found["rows"]
    general = {name for name, tab in options.items() if tab == "general"}
    assert general == {"grantor", "key", "_ours", "ask", "gateway"}
    assert set(options.values()) == {"general", "advanced"}
    assert dict(found["flags"]) == {"defaultroute": "1", "peerdns": "1", "norelease": "0"}
    assert not {"dns", "defaultroute", "metric"} & set(found["own_options"])     # LuCI has these for every protocol
    assert found["after"] == found["before"] == samples.UCI["network"]["wan6d"]
    assert "/etc/ddpd/other.pub" in found["own"] and KEY not in found["own"]
    assert "that default route" not in found["own"]               # which stands in another tab


@IN_BROWSER
def test_a_fresh_interface_asks_for_a_56_and_shows_our_key(told: Told) -> None:
    assert KEY in told["protocolKey"]["text"] and told["protocolKey"]["buttons"] == 1
    after = told["protocolKey"]["after"]
    assert after["ask"] == ["::/56"] and after["grantor"] == ["a.example"]
    assert not {"defaultroute", "peerdns", "norelease"} & set(after)
    fresh = told["protocolFresh"]
    assert "appears here after the first start" in fresh["text"] and fresh["ask"] == ["0.0.0.0/28 on @guest"]
    assert "grantor: must not be empty" in fresh["why"]


@IN_BROWSER
@pytest.mark.parametrize("option", INTERFACE)
def test_the_fields_of_an_interface_take_what_is_right(told: Told, option: str) -> None:
    verdicts = zip(INTERFACE_TABLE, told["protocolValidators"], strict=True)
    wrong = [f"{value!r}: {verdict}" for (name, value, good), verdict in verdicts
             if name == option and (verdict is True) != good]
    assert wrong == []


@IN_BROWSER
def test_what_netifd_does_not_do_is_refused_and_why(told: Told) -> None:
    verdicts = zip(INTERFACE_TABLE, told["protocolValidators"], strict=True)
    said = {value: verdict for (name, value, _), verdict in verdicts if name == "ask"}
    assert [value for value, why in NO_NETIFD.items() if why not in str(said[value])] == []
    for ask in NO_NETIFD:
        ddpd.SETTINGS["grantor"]["ask"].parse(ask.replace("@", ""))


# ---- the configuration

@IN_BROWSER
def test_there_is_a_field_for_every_key(told: Told) -> None:
    options = dict(told["config"]["options"])
    more = {"ddpd": {"enabled", "config"}, **{kind: {"disabled", "name"} for kind in ("pool", "grantee", "grantor")},
            **{kind: {"disabled", "device"} for kind in ("ndp", "wireguard", "tunnel")}}
    for kind, keys in ddpd.SETTINGS.items():
        assert set(options[kind]) == set(keys) | more[kind], f"view/ddpd/config.js: {kind}"
        assert len(options[kind]) == len(set(options[kind]))
    assert set(options) == set(ddpd.SETTINGS)
    assert all(set(outside) <= {"disabled"} for _, outside in told["config"]["tabs"])
    assert [row for row in told["config"]["titles"] if not row[1]] == []


def test_every_key_has_a_sample_that_ddpd_takes() -> None:
    for kind, keys in ddpd.SETTINGS.items():
        assert set(samples.FULL[kind]) == set(keys)
        assert set(VALUES[kind]) == set(keys)
        for key, setting in keys.items():
            value = samples.FULL[kind][key]
            text = ("\n" if key in ("ask", "proxy") else " ").join([value] if isinstance(value, str) else value)
            setting.parse(re.sub(r"@(\w+)", r"\1", text))


@IN_BROWSER
def test_a_whole_configuration_goes_through_the_form_and_stays_as_it_was(told: Told) -> None:
    assert told["config"]["before"] == samples.UCI["ddpd"]
    assert told["config"]["after"] == samples.UCI["ddpd"]


@IN_BROWSER
def test_a_whole_configuration_can_be_written_in_the_form(told: Told) -> None:
    """`disabled` stands in the table, not in the form of a section."""
    assert told["configFilled"] == {name: {key: value for key, value in section.items() if key != "disabled"}
                                    for name, section in samples.UCI["ddpd"].items()}


@IN_BROWSER
def test_names_that_can_be_chosen(told: Told) -> None:
    found = told["config"]
    assert found["pools"] == ["home", "Other.pool"] and found["grantors"] == ["exit1"]
    assert found["devices"] == ["@lan", "@wan", "@wan6d"]


@IN_BROWSER
def test_what_was_added_is_offered_at_once(told: Told) -> None:
    """Without a page that is loaded anew; and what was removed is offered no more."""
    found = told["configAdded"]
    assert found["before"] == {"pools": ["home", "Other.pool"], "grantors": ["exit1"]}
    assert found["after"] == {"pools": ["Other.pool", "fresh"], "grantors": ["exit1", "exit9"]}
    assert found["written"] == {"pools": ["fresh"], "grantor": "exit9"}


@IN_BROWSER
def test_a_table_says_what_is_meant_where_nothing_is_written(told: Told) -> None:
    """“none” is not a lifetime."""
    assert told["configAdded"]["rows"]["fresh"][2:5] == ["none", "none", "12h"]
    assert told["configAdded"]["rows"]["eth7"][2] == "eth7"        # its interface: the name of the section


@IN_BROWSER
def test_sections_of_which_there_is_none_are_folded(told: Told) -> None:
    folded = told["configWithout"]["folded"]
    assert len(folded) == 6 and all(head.endswith("none yet") and not is_open for head, is_open in folded)
    assert told["config"]["folded"] == 0


@IN_BROWSER
def test_the_page_says_what_to_paste(told: Told) -> None:
    intro = told["introduce"]
    assert "/etc/ddpd/other.pub" in told["config"]["intro"] and KEY not in told["config"]["intro"]
    assert intro.count(KEY) == 5
    assert all(word in intro for word in ("config grantee 'router'", "[grantor router]", "proto 'ddpd'"))
    assert "after the first start" in told["configWithout"]["intro"]
    assert told["configWithout"]["main"] == {".name": "main", ".type": "ddpd"}
    assert samples.key_of(4) not in told["config"]["table"]       # a table shows the first letters


@IN_BROWSER
def test_other_ways_of_writing_are_understood_and_what_is_wrong_is_not_saved(told: Told) -> None:
    found = told["configStrange"]
    assert found["ask"] == ["::/56 on br-lan"] and found["address"] == ["a", "b"]
    assert (found["install"], found["release"]) == ("no", "yes")
    assert set(found["refusals"]) == {"ask::/200", "keyshort", "key"}
    assert found["after"]["key"] == KEY and found["after"]["ask"] == "::/56 on br-lan"


@IN_BROWSER
@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, table in VALUES.items() for key in table])
def test_a_field_and_ddpd_are_of_one_mind(told: Told, kind: str, key: str) -> None:
    names = {"pools", "grantor"} if kind != "grantor" else set()
    wrong = []
    for (of, name, value, good), verdict in zip(TABLE, told["validators"], strict=False):
        if (of, name) != (kind, key):
            continue
        try:
            ddpd.SETTINGS[kind][key].parse(value)
            taken = True
        except ValueError:
            taken = False
        if (verdict is True) != good or (taken != good and key not in names):
            wrong.append(f"{value!r}: field {verdict}, ddpd {taken}, wanted {good}")
    assert wrong == []


@IN_BROWSER
def test_fields_know_what_only_they_know(told: Told) -> None:
    verdicts = told["validators"][len(TABLE):]
    assert len(verdicts) == len(OURS)
    assert [row for row, verdict in zip(OURS, verdicts, strict=True) if (verdict is True) != row[3]] == []


@IN_BROWSER
def test_what_is_wrong_is_said_in_a_sentence(told: Told) -> None:
    said = {verdict for verdict in [*told["validators"], *told["protocolValidators"]] if verdict is not True}
    assert {text for text in said if not re.fullmatch(r"[A-Z0-9].{15,}[.”]", text)} == {"no choice", "datatype"}


# ---- the status

@IN_BROWSER
def test_what_a_real_grantor_and_a_real_grantee_say(told: Told) -> None:
    grantor, grantee = told["real"]
    row = told["data"]["real_grantor"]["granted"][0]
    assert grantor["pools"][1][:3] == ["home", "2001:db8:42::/48", "1"]
    assert grantor["granted"][1][:3] == ["alice", "0", row["prefix"]] and "alice-router" in grantor["granted"][1]
    assert re.fullmatch("59m (30|2.|1.)s", grantor["granted"][1][4])           # of 1h, half a minute ago
    assert "key" not in row and "key" not in told["data"]["real_grantee"]["held"][0]
    assert len(grantor["counters"]) > 1 and "1" in [count for _, count in grantor["counters"]]
    assert told["data"]["real_grantor"]["public_key"] in grantor["text"] and "This router" in grantor["text"]
    assert grantee["held"][1][:3] == ["exit1", "0", row["prefix"]] and "Interface wan6d" in grantee["text"]
    assert grantee["grantors"][1][0] == "exit1"
    assert "Refused" in grantee["text"]


@IN_BROWSER
def test_every_kind_of_row_is_shown(told: Told) -> None:
    found = told["status"]
    assert found["every"] == [5]
    assert [row[0] for row in found["pools"][1:]] == ["home", "tight", "full", "moving"]
    assert [row[:5] for row in found["held"][1:]] == [
        ["exit1", "0", "2001:db8:99:1200::/56", "30m 3s", "1h"],
        ["exit1", "1", "198.51.100.7/32", "deprecated", "11m 40s"],
        ["exit2", "0", "2001:db8:88::/56", "waits", "11m 40s"]]
    assert [row[3:5] for row in found["granted"][1:]] == [
        ["5h 33m", "11h 56m"], ["for ever", "for ever"], ["deprecated", "11h 56m"], ["5h 33m", "11h 56m"]]
    assert [row[0] for row in found["granted"][3:]] == ["grantee3 (removed)", "grantee4 (used by two machines)"]
    assert found["granted"][3][6] == "none (no route to it)" and found["granted"][1][5:10] == [
        "1d 1h", "via fe80::1 dev br-lan", "[2001:db8:1::1]:3373", "host1", "drawn"]
    assert "and 2 more" in found["text"] and "Granted (6)" in found["text"]
    assert found["refused"][1] == ["exit1", "2", "no-prefix", "the pools are full"]
    assert found["grantors"][1:] == [["exit1", "bound", "[2001:db8::1]:3373", "eth1", "12.5 ms",
                                      "IPv6 via fe80::1 dev eth1"],
                                     ["exit2", "asking", "", "", "", ""]]
    assert found["ndp"][1] == ["eth1", "listens", "leased, static 2001:db8::5/128", "120", "100", "3", "17 not ours"]
    assert found["wireguard"][1] == ["wg0", "there", "51820", "3", "1", "5", "2"]
    assert found["counters"][1:] == [["heard ask", "812"], ["sent answer", "800"], ["drop unknown key", "12"]]
    assert found["closed"]


@IN_BROWSER
def test_bars_change_their_colour(told: Told) -> None:
    titles, colours = zip(*told["status"]["bars"], strict=True)
    assert titles == ("10.0 %", "83.0 %", "98.0 %")               # the pool that is nowhere has none
    assert len(set(colours)) == 3


@IN_BROWSER
def test_what_wants_attention_is_said(told: Told) -> None:
    said = " ".join(told["status"]["notices"])
    assert len(told["status"]["notices"]) == 5
    assert all(word in said for word in ("disk full", "Very many ask", "2m", "2 bad rows", "two machines"))
    assert len(told["status"]["later"]["notices"]) == 4           # it has recovered


@IN_BROWSER
def test_lifetimes_count_down_between_two_writes(told: Told) -> None:
    later, end = told["status"]["later"], told["status"]["end"]
    assert [row[3:5] for row in later["held"][1:]] == [
        ["19m 58s", "50m"], ["deprecated", "1m 35s"], ["waits", "1m 35s"]]
    assert later["granted"][2][3:5] == ["for ever", "for ever"] and later["open"]
    assert [row[3:5] for row in end[1:]] == [["deprecated", "ended"], ["deprecated", "ended"], ["waits", "ended"]]


@IN_BROWSER
def test_a_file_that_nobody_writes_anew_is_a_sign_that_nobody_runs(told: Told) -> None:
    """Sixty seconds old, and a lease ended: not what is for ever, was ended before, or is only deprecated."""
    assert [len(notices) for notices in told["stale"]] == [1, 1, 0, 0, 0, 1, 0, 0, 0]
    assert told["stale"][0] == ["ddpd may not be running: it wrote this 1m 1s ago, and something here has ended since."]
    assert sum("may not be running" in text for text in told["status"]["endNotices"]) == 1
    assert not [text for text in told["status"]["later"]["notices"] if "may not be running" in text]


@IN_BROWSER
def test_what_netifd_says_of_interfaces_that_are_not_up(told: Told) -> None:
    found, bad = told["interfaces"], '<img src=x onerror="window.OWNED = true">%s'
    down, texts = "This interface is not up:", told["protocol"]["errors"]
    notices = {name.partition("version")[0]: said for name, said in found["notices"].items()}
    assert set(notices) == {"This router", *(f"Interface {name}" for name in ("asks", "half", "down", "works", "odd"))}
    assert notices["Interface down"][:-1] == [f"{down} {texts['NO_GRANTOR']} exit1, exit2",      # which it said thrice
                                              f"{down} {texts['UNKNOWN_KEY']}", f"{down} NO_DEVICE"]
    assert notices["Interface asks"] == [f"{down} {texts['REFUSED']} {bad}"]
    assert notices["Interface half"][0] == f"{down} {bad} {bad}" and len(notices["Interface half"]) == 2
    assert len(notices["Interface works"]) == len(notices["Interface odd"]) == 1      # no status: and no more
    assert not found["owned"] and found["images"] == 0
    assert found["failed"] == ["This router", *(name for name in found["notices"] if re.search("asks|half", name))]
    assert found["odd"] == []


@IN_BROWSER
def test_what_netifd_has_made_of_it(told: Told) -> None:
    """The grantor by its own name, and the routes, subnets, addresses and name servers, which netifd knows."""
    found = told["netifd"]
    assert found["held"][1][:3] == ["exit1.example.net", "0", "2001:db8:99:1200::/56"]
    assert found["grantors"][1][0] == "exit1.example.net" == found["refused"][1][0]
    assert found["grantors"][1][5] == ("IPv6 via fe80::1 dev eth1 from 2001:db8:99:1200::/56, "
                                       "IPv6 dev eth1 from 2001:db8:99:aaaa::1/128")
    assert found["subnets"][1:] == [["eth1", "2001:db8:99:aaaa::1/128"], ["br-guest", "198.51.100.1/28"],
                                    ["@lan", "2001:db8:99:1200::/64"], ["@guest", "2001:db8:99:1201::/64"]]
    assert "Name servers2001:db8::53, 192.0.2.53" in found["text"] and "Search domainsexample.net" in found["text"]
    assert found["down"] == {"held": "[2001:db8::1]:3373", "subnets": None, "servers": False}
    assert found["nameless"] == "?" and found["margin"] != ""


@IN_BROWSER
def test_an_interface_has_the_key_that_its_own_status_tells(told: Told) -> None:
    keys = {name.partition("version")[0]: shown for name, *shown in told["interfaces"]["keys"]}
    assert keys.pop("This router") == [KEY] and keys.pop("Interface asks") == [KEY.replace("B", "C", 1)]
    assert len(keys) == 4 and not any(keys.values())


@IN_BROWSER
def test_the_stand_ins_refuse_what_the_acl_does_not_grant(told: Told) -> None:
    """A page that asked all the same would stand among the errors, of which there are none."""
    found, networks = told["refusals"], len(samples.UCI["network"])
    for page in ("view.ddpd.status", "view.ddpd.config"):
        assert found[page] == ["PermissionError", None, 0, networks, "PermissionError"]
    assert found["protocol.ddpd"] == ["loaded", "dhcp", networks, networks, "a board"]
    assert found["errors"] == 2 * 4


@IN_BROWSER
def test_nothing_from_the_network_is_html(told: Told) -> None:
    found = told["hostile"]
    assert not found["owned"] and found["images"] == 0
    assert found["hostname"].startswith("<img src=x onerror") and found["times"] > 40
    assert told["hostileConfig"] == {"owned": False, "images": 0}


@IN_BROWSER
def test_whatever_is_in_the_file_the_page_stands(told: Told) -> None:
    found = told["broken"]
    for name in ("empty", "half", "list", "nothing", "word"):
        assert "cannot be read just now" in found[name] and KEY in found[name], name
    assert "version" in found["bare"] and "version" in found["odd"]
    assert found["kept"] == found["back"] == told["status"]["pools"]
    assert "does not run" in found["gone"] and found["goneTables"] == 0
    assert len(found["clockless"]) == 4


@IN_BROWSER
def test_where_nothing_runs_the_page_says_so_and_where_to_go(told: Told) -> None:
    found = told["missing"]
    assert "ddpd does not run" in found["none"] and KEY in found["none"]
    assert found["link"].endswith("/admin/services/ddpd") and found["saves"] == 0
    only, = found["only"]
    assert "Interface wan6d" in only and "This interface is down" in only and KEY not in only


@IN_BROWSER
def test_a_thousand_leases(told: Told) -> None:
    found = told["many"]
    assert found["bytes"] > 262144                                # more than rpcd reads: it comes by HTTP
    assert found["first"] == 251 and found["all"] == 1001 and "Granted (1200)" in found["text"]
    assert [row[8] for row in found["filtered"]] == ["Host name", "host777"]
    assert found["still"] == 2 and found["kept"] == "HOST777" and found["same"]


@IN_BROWSER
def test_the_key_is_copied(told: Told) -> None:
    found = told["copy"]
    assert found["commands"] == [["copy", KEY]] and found["left"] == 0
    assert (found["plain"], found["after"]) == ("Copied", "Copy")
    assert found["byHand"] == ["Press Ctrl+C", KEY]
    assert found["written"] == [KEY] and found["secure"] == "Copied"


# ---- what surrounds the pages

def acls() -> dict[str, Any]:
    files = [browser.ACL, browser.PROTO / "root/usr/share/rpcd/acl.d/luci-proto-ddpd.json"]
    return {name: acl for file in files for name, acl in json.loads(file.read_text()).items()}


def test_who_may_see_what() -> None:
    app, proto = acls()["luci-app-ddpd"], acls()["luci-proto-ddpd"]
    public = {"/etc/ddpd/key.pub": ["read"]}
    assert app["read"] == {"cgi-io": ["download"],
                           "file": {**public, "/var/run/ddpd": ["list"], "/var/run/ddpd/*.json": ["read"]},
                           "ubus": {"system": ["info"], "network.interface": ["dump"]}, "uci": ["ddpd"]}
    assert app["write"] == {"uci": ["ddpd"]}
    for group in ("read", "write"):                               # WireGuard's and PPPoE's secrets are there
        assert "network" not in app[group]["uci"], group
    assert app["description"] == ("Show and configure what ddpd grants and asks for (who may write this can run "
                                  "programs as root: hooks, handlers)")
    assert proto["read"] == {"file": public} and "write" not in proto


@pytest.mark.parametrize("path", ["/etc/ddpd/key", "/etc/ddpd/other", "/etc/ddpd/key.old", "/etc/ddpd",
                                  "/var/run/ddpd/key"])
def test_nobody_reads_the_private_key(path: str) -> None:
    """rpcd matches as fnmatch(3) without flags does: `*` takes a `/` too, and so it does here."""
    groups = [acl[group] for acl in acls().values() for group in ("read", "write") if group in acl]
    patterns = [pattern for group in groups for pattern in group.get("file", {})]
    assert len(patterns) == 4
    assert [pattern for pattern in patterns if fnmatch.fnmatchcase(path, pattern)] == []


def test_the_pages_read_only_what_they_may() -> None:
    allowed = [pattern for acl in acls().values() for pattern in acl["read"]["file"]]
    for name, file in browser.MODULES.items():
        calls = re.findall(r"\bfs\.(\w+)\(([^)]*)\)", file.read_text())
        assert {call for call, _ in calls} <= {"list", "read", "read_direct", "trimmed"}, name
        assert {path.strip("'") for _, path in calls} <= {*allowed, "FOLDER", "path"}, name


def test_the_menu_leads_to_pages_that_are_there() -> None:
    menu = json.loads((browser.APP / "root/usr/share/luci/menu.d/luci-app-ddpd.json").read_text())
    assert set(menu) == {"admin/status/ddpd", "admin/services/ddpd"}
    for place in menu.values():
        assert place["title"] == "Prefixes (ddpd)" and place["action"]["type"] == "view"
        assert (browser.APP / browser.STATIC / "view" / f"{place['action']['path']}.js").is_file()
        assert set(place["depends"]["acl"]) <= set(acls())


@pytest.mark.parametrize(("folder", "depends"), [(browser.APP, "+luci-base +luci-proto-ddpd"),
                                                   (browser.PROTO, "+ddpd")])
def test_the_makefiles_are_of_the_luci_feed(folder: Path, depends: str) -> None:
    lines = (folder / "Makefile").read_text().splitlines()
    assert lines[0] == "include $(TOPDIR)/rules.mk" and lines[-1] == "# call BuildPackage - OpenWrt buildroot signature"
    assert {f"LUCI_DEPENDS:={depends}", "LUCI_PKGARCH:=all", "PKG_LICENSE:=MIT",
            "include $(TOPDIR)/feeds/luci/luci.mk"} <= set(lines)


def test_the_template_for_translators_is_up_to_date() -> None:
    assert pot.POT.read_text() == pot.template(), "run: python tests/luci/pot.py --write"
    assert len(pot.texts()) > 300


@IN_BROWSER
def test_the_template_has_every_text_that_was_shown(told: Told) -> None:
    of_the_stand_ins = {"Yes", "No", "Edit"}
    assert set(told["texts"]) - of_the_stand_ins <= set(pot.texts())


def test_every_text_of_a_page_can_be_found_in_its_source() -> None:
    for name, file in browser.MODULES.items():
        calls = len(re.findall(r"(?<![\w.$])_\(", file.read_text()))
        assert calls == len(pot.marked(file.read_text())), f"{name}: _() of something that is no plain text"


def test_our_words() -> None:
    """A name server is one of DNS; all else is a grantor, a grantee, a peer."""
    others = re.compile(r"\b(client|server|user|request|entry|entries|manager)s?\b", re.IGNORECASE)
    dns = re.compile(r"(name|time) servers|servers-file|own servers too|servers of dnsmasq", re.IGNORECASE)
    assert [text for text in pot.texts() if others.search(dns.sub("", text))] == []


def test_what_a_module_requires_comes_with_its_package() -> None:
    for name, file in browser.MODULES.items():
        package = next(folder for folder in (browser.APP, browser.PROTO) if folder in file.parents)
        needs = re.findall(r"(?m)^'require ([\w.]+)", file.read_text())
        assert "ddpd" in needs or name == "ddpd"
        for folder in {browser.MODULES[other].relative_to(browser.OPENWRT).parts[0] for other in needs
                       if other in browser.MODULES} - {package.name}:
            assert f"+{folder}" in (package / "Makefile").read_text(), f"{name} needs {folder}"


def test_what_the_modules_share_is_defined_once() -> None:
    functions = [name for file in browser.MODULES.values()
                 for name in re.findall(r"(?m)^function (\w+)\(", file.read_text())]
    assert [name for name in functions if functions.count(name) > 1] == []


@pytest.mark.parametrize(("source", "is_missed"), [
    ("return /^[^'\"]+$/.test(text)", True), ("return (/^[^'\"]+$/).test(text)", False),
    ("x.every(one => /a/.test(one))", True), ("x.every(one => (/a/).test(one))", False),
    ("case /a/:", True), ("x = /[/'\"]/", False), ("f(a, /'/)", False), ("a / b / c", False),
    ("(a) / 2 + x[1] / 2", False), ("'/' + \"/\" + `/'/`", False), ("// it's\nx = 1 / 2", False),
    ("/* it's */ x = /'/", False), ("a ||\n\t\t/'/.test(a)", False), ("typeof /a/", True),
])
def test_the_packer_of_luci_is_known_here(source: str, is_missed: bool) -> None:
    assert bool(packer.missed(source)) == is_missed


def test_the_packer_of_luci_sees_every_regular_expression() -> None:
    seen = 0
    for file in browser.OPENWRT.glob("luci-*/htdocs/**/*.js"):
        assert packer.missed(file.read_text()) == [], file.name
        seen += len(list(packer.expressions(file.read_text())))
    assert seen > 30


def test_modules_are_in_luci_s_form() -> None:
    for name, file in browser.MODULES.items():
        lines = file.read_text().splitlines()
        assert lines[0] == "'use strict';" and lines[1].startswith("'require "), name
        assert not [line for line in lines if line.startswith(" ") and not line.startswith(" *")], f"{name}: tabs"
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|https?://|\beval\b", file.read_text()), name
        assert "console." not in file.read_text()
