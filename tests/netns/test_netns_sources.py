"""From which of its addresses a node asks: never from one that cannot be answered, or that it was leased.

                                                            +--- host
    exit:down -------------------------- home:wan    br-lan +
    2001:db8:1::1                        2001:db8:1::2      2001:db8:99::1
    2001:db8:ee::1 on lo, so there is no answer to a link-local address

What asks, and from where, is written down by the kernel at the moment of sending (`notes_asks`): what is asked from ::1
never reaches a wire.
"""

import time
from collections.abc import Iterator
from functools import partial

import pytest

from daemon import Daemon
from lab import Host, Lab, Recorder, eventually, needs, public_of, wg_name

pytestmark = needs("ip link add dev eth0 type veth && command -v nft")

EXIT = """
[pool six]
prefix    = 2001:db8:42::/48
give      = /56
{}
[grantee home]
key   = @home
pools = six
route = none
"""
HOME = """
[grantor exit]
key     = @exit
address = 2001:db8:ee::1
ask     = ::/56 on br-lan
"""
SHORT = "lifetime  = 1h\npreferred = 12s\nrenew     = 2s\n"
PROBES = 4                                 # seconds for which an address is tentative here
WAN = "2001:db8:1::2"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit*", "home*", "host") as lab:
        lab.cable("exit:down 2001:db8:1::1/64", "home:wan")
        lab.cable("home:lan", "host:eth0")
        lab["home"].bridge("br-lan", "lan")
        lab["exit"].address("lo", "2001:db8:ee::1/128")
        yield lab


def tentative(host: Host, dev: str) -> bool:
    return "tentative" in host.look(f"-6 addr show dev {dev}")


def own(host: Host, dev: str) -> set[str]:
    """All IPv6 addresses of an interface."""
    return {line.split()[3].split("/")[0] for line in host.look(f"-6 -o addr show dev {dev}").splitlines()}


def sources(host: Host) -> set[str]:
    return {address for address, _ in host.asked_from()}


def last_source(wire: Recorder) -> str:
    """From where the last ask that was sent came."""
    asks = [each.source for each in wire.ddpd() if each.dport == 3373]
    return asks[-1] if asks else ""


def is_bound(home: Daemon) -> bool:
    return [row["state"] for row in home.status()["held"]] == ["bound"]


def preferred_s(home: Daemon) -> int:
    return max((row["preferred"] for row in home.status()["held"]), default=0)


def numbered(host: Host, fresh: bool) -> None:
    """The uplink gets its address, which is tentative for seconds; `fresh`: so is all that it has."""
    host.sysctl({"net/ipv6/conf/wan/accept_dad": 1, "net/ipv6/conf/wan/dad_transmits": PROBES})
    if fresh:
        host.ip("link set dev wan down")
        host.ip("link set dev wan up")
    host.address("wan", f"{WAN}/64")
    host.ip("-6 route add default via 2001:db8:1::1 dev wan")


def ready(home: Daemon, host: Host) -> None:
    """It was started before its address was ready, which is so from now on."""
    assert tentative(host, "wan"), "too late to show anything"
    home.eventually(lambda: not tentative(host, "wan"), PROBES + 4)


# ==== an address that is not ready yet ====================================================


@pytest.mark.parametrize("fresh", [True, False], ids=["a link that came up", "a link that was up"])
def test_an_address_that_is_tentative_at_the_start_is_waited_for(lab: Lab, fresh: bool) -> None:
    """Nothing is asked from ::1, nor from the link-local address of another interface; then it is bound at once."""
    lab["exit"].ddpd(EXIT.format("")).start()
    host = lab["home"]
    host.notes_asks()
    numbered(host, fresh)
    home = host.ddpd(HOME).start()
    ready(home, host)
    home.eventually(partial(is_bound, home), 3)
    assert sources(host) <= own(host, "wan")
    assert WAN in sources(host)


@pytest.mark.parametrize("fresh", [True, False], ids=["a link that came up", "a link that was up"])
def test_a_restart_before_the_address_is_ready(lab: Lab, fresh: bool) -> None:
    """The same with a lease: `ifup`, which takes the address away and puts it back, and starts the program."""
    lab["exit"].ddpd(EXIT.format(SHORT)).start()
    host = lab["home"]
    host.address("wan", f"{WAN}/64")
    host.ip("-6 route add default via 2001:db8:1::1 dev wan")
    home = host.ddpd(HOME).start()
    home.eventually(partial(is_bound, home))
    home.stop()
    host.ip("addr flush dev wan scope global")
    host.look("-6 route del default")                       # on a link that goes down it goes by itself
    host.notes_asks()
    numbered(host, fresh)
    home.start()
    ready(home, host)
    home.eventually(lambda: preferred_s(home) >= 8, 3)
    assert sources(host) <= own(host, "wan")


@pytest.mark.parametrize("fresh", [True, False], ids=["a link that came up", "a link that was up"])
def test_another_interfaces_address_is_used_no_longer_than_needed(lab: Lab, fresh: bool) -> None:
    """A global one of the LAN's, which nobody answers here, will do until the uplink's own is ready."""
    lab["exit"].ddpd(EXIT.format("")).start()
    host = lab["home"]
    host.address("br-lan", "2001:db8:99::1/64")
    host.notes_asks()
    numbered(host, fresh)
    wire = host.record("wan")
    home = host.ddpd(HOME).start()
    ready(home, host)
    home.eventually(partial(is_bound, home), 3)
    assert sources(host) <= own(host, "wan") | {"2001:db8:99::1"}
    assert last_source(wire) == WAN


def test_bound_by_the_lans_address_it_asks_by_the_uplinks_when_that_is_ready(lab: Lab) -> None:
    """Here the LAN's is answered: the next ask is from the uplink's all the same."""
    lab["exit"].ddpd(EXIT.format("")).start()
    lab["exit"].ip("route add 2001:db8:99::/64 via fe80::2 dev down")
    host = lab["home"]
    host.address("wan", "fe80::2/64")
    host.address("br-lan", "2001:db8:99::1/64")
    host.notes_asks()
    wire = host.record("wan")
    numbered(host, fresh=False)
    home = host.ddpd(HOME).start()
    ready(home, host)
    home.eventually(partial(is_bound, home), 3)
    assert home.command("renew").returncode == 0
    home.eventually(lambda: last_source(wire) == WAN, 3)
    home.eventually(partial(is_bound, home), 3)
    assert sources(host) <= own(host, "wan") | {"2001:db8:99::1"}


# ==== an address that goes ============================================================


def two_addresses(lab: Lab) -> tuple[Daemon, Recorder, str, str]:
    """Bound, for hours, with two good addresses on the uplink: the one that is asked from, and the other."""
    lab["exit"].ddpd(EXIT.format("")).start()
    host = lab["home"]
    host.address("wan", f"{WAN}/64", "2001:db8:1::3/64")
    host.ip("-6 route add default via 2001:db8:1::1 dev wan")
    wire = host.record("wan")
    home = host.ddpd(HOME).start()
    home.eventually(partial(is_bound, home))
    used = last_source(wire)
    [other] = {WAN, "2001:db8:1::3"} - {used}
    return home, wire, used, other


def test_a_deprecated_address_is_not_asked_from_any_more(lab: Lab) -> None:
    home, wire, used, other = two_addresses(lab)
    lab["home"].ip(f"addr change {used}/64 dev wan preferred_lft 0")
    assert home.command("renew").returncode == 0
    home.eventually(lambda: last_source(wire) == other, 3)
    home.eventually(partial(is_bound, home), 3)


def test_an_address_that_went_is_replaced_at_once(lab: Lab) -> None:
    """Not when half of the preferred lifetime is over, which is in three hours: the grantor is to know where we are."""
    home, wire, used, other = two_addresses(lab)
    lab["home"].ip(f"addr del {used}/64 dev wan")
    home.eventually(lambda: last_source(wire) == other, 3)
    home.eventually(partial(is_bound, home), 3)


def test_an_address_that_is_replaced_by_a_tentative_one(lab: Lab) -> None:
    """The provider renumbers the uplink: asked from the new address when that is ready, and never from a wrong one."""
    lab["exit"].ddpd(EXIT.format("")).start()
    host = lab["home"]
    host.address("wan", f"{WAN}/64")
    host.ip("-6 route add default via 2001:db8:1::1 dev wan")
    wire = host.record("wan")
    home = host.ddpd(HOME).start()
    home.eventually(partial(is_bound, home))
    leased = own(host, "br-lan")
    host.notes_asks()
    host.sysctl({"net/ipv6/conf/wan/accept_dad": 1, "net/ipv6/conf/wan/dad_transmits": PROBES})
    host.address("wan", "2001:db8:1::3/64")
    host.ip(f"addr del {WAN}/64 dev wan")
    ready(home, host)
    home.eventually(lambda: last_source(wire) == "2001:db8:1::3", 3)
    home.eventually(partial(is_bound, home), 3)
    assert not sources(host) & leased
    assert sources(host) <= own(host, "wan")


# ==== a link with nothing but a link-local address =====================================
#
#    hub:eth0 ------------- isp:hub    isp:ppp7 ------ leaf:ppp0  fe80::2     br-lan
#    2001:db8:5::1          ::2        isp:ppp8 ------ leaf:ppp1  fe80::2     2001:db8:aaaa::1/64, of the provider
#
# The provider lets in what comes from 2001:db8:aaaa::/48 and drops all else.

FAR = "2001:db8:f::1"
PROVIDERS = "2001:db8:aaaa::1"
HUB_WG, LEAF_WG = wg_name("hub"), wg_name("leaf")
HUB = """
[pool six]
prefix    = 2001:db8:42::/48
give      = /56 /128
lifetime  = 1h
preferred = 12s
renew     = 2s
[grantee leaf]
key   = @leaf
pools = six
limit = 2
"""
LEAF = """
[grantor hub]
key     = @hub
address = 2001:db8:5::1
ask     = ::/56 on br-lan
"""
TUNNEL_HUB = HUB.replace("12s", "20m").replace("2s", "10m") + f"""
[wireguard {HUB_WG}]
pools     = six
add_peers = yes
address   = fd00:9::1/64
"""
TUNNEL_LEAF = LEAF + f"""          ::/128 on {LEAF_WG}
[tunnel {LEAF_WG}]
grantor = hub
routes  = fd00:9::/64
"""
FILTER = """table ip6 bcp38 {
    chain in {
        type filter hook prerouting priority 0;
        iifname { "ppp7", "ppp8" } ip6 saddr != { 2001:db8:aaaa::/48, fe80::/10 } drop
    }
}"""


@pytest.fixture
def line() -> Iterator[Lab]:
    with Lab("hub*", "isp*", "leaf*", "host") as lab:
        lab.cable("hub:eth0 2001:db8:5::1/64", "isp:hub 2001:db8:5::2/64")
        for theirs, ours in (("ppp7", "ppp0"), ("ppp8", "ppp1")):
            lab.cable(f"isp:{theirs} fe80::1/64", f"leaf:{ours} fe80::2/64")
        lab.cable("leaf:lan", "host:eth0")
        lab["leaf"].bridge("br-lan", "lan")
        lab["leaf"].address("br-lan", f"{PROVIDERS}/64")
        lab["hub"].ip("route add default via 2001:db8:5::2")
        lab["hub"].address("lo", f"{FAR}/128")
        leads_by(lab, "ppp7", "ppp0")
        lab["isp"].nft(FILTER)
        yield lab


def leads_by(lab: Lab, theirs: str, ours: str) -> None:
    """The line that is in use."""
    lab["isp"].ip(f"-6 route replace 2001:db8:aaaa::/48 via fe80::2 dev {theirs}")
    lab["leaf"].ip(f"-6 route replace default via fe80::1 dev {ours}")


@pytest.mark.parametrize("end", ["stopped", "killed", "stopped, and its lease file lost"])
def test_restarted_with_a_lease_it_asks_from_the_providers_address(line: Lab, end: str) -> None:
    """The leased address stands on the same LAN, and the kernel might as well take that."""
    line["hub"].ddpd(HUB + "route = none\n").start()
    leaf = line["leaf"].ddpd(LEAF).start()
    leaf.eventually(lambda: is_bound(leaf) and len(line["leaf"].addresses("br-lan")) == 2)
    (leaf.kill if end == "killed" else leaf.stop)()
    if "lost" in end:
        (leaf.dir / "leases.json").unlink()
    line["leaf"].notes_asks()
    leaf.start()
    leaf.eventually(partial(is_bound, leaf))
    until = time.monotonic() + 10                           # preferred for 12 s, so at the end not without a renewal
    while time.monotonic() < until:
        assert preferred_s(leaf) >= 5
        time.sleep(0.2)
    assert sources(line["leaf"]) == {PROVIDERS}


tunnels = needs("ip tuntap add dev tun0 mode tun && command -v wireguard-go wg")


def tunnelled(lab: Lab) -> tuple[Daemon, Daemon, str]:
    """Both ends, and an address of the LAN from which the other side is reached."""
    hub = lab["hub"].ddpd(TUNNEL_HUB).start()
    leaf = lab["leaf"].ddpd(TUNNEL_LEAF).start()
    leaf.eventually(lambda: len(lab["leaf"].addresses("br-lan")) == 2 and bool(lab["leaf"].addresses(LEAF_WG)), 10)
    [leased] = [address.split("/")[0] for address in lab["leaf"].addresses("br-lan") if PROVIDERS not in address]
    eventually(lambda: lab["leaf"].reaches(FAR, leased), 10)
    return hub, leaf, leased


def outer(wire: Recorder) -> list[str]:
    """From where the tunnel's packets come."""
    return [each.source for each in wire.datagrams(51820) if each.dport == 51820]


@tunnels
def test_a_tunnel_comes_back_after_the_hubs_reboot(line: Lab) -> None:
    """Its packets come from the provider's address, whatever else there is now; leased sources are dropped."""
    hub, _, leased = tunnelled(line)
    wire = line["leaf"].record("ppp0")
    hub.kill()
    line["hub"].ip(f"link del dev {HUB_WG}")
    line["leaf"].look(f"link set dev {LEAF_WG} down")       # its socket is new then, and knows no source
    line["leaf"].look(f"link set dev {LEAF_WG} up")
    hub.start()
    eventually(lambda: line["hub"].allowed(HUB_WG).get(public_of("leaf")), 30, "the peer is back")
    try:
        eventually(lambda: line["leaf"].reaches(FAR, leased), 30, "the tunnel is back")
    finally:
        print(f"[=] packets of the tunnel came from {set(outer(wire))}")
    assert outer(wire)[-1] == PROVIDERS


@tunnels
def test_a_tunnel_follows_the_default_route(line: Lab) -> None:
    """Another gateway, on another link, and the first one lets nothing through any more."""
    _, _, leased = tunnelled(line)
    line["isp"].nft('table ip6 dead { chain in { type filter hook prerouting priority 0; iifname "ppp7" drop; }; }')
    leads_by(line, "ppp8", "ppp1")
    wire = line["leaf"].record("ppp1")
    eventually(lambda: line["leaf"].reaches(FAR, leased), 30, "by the other line")
    assert set(outer(wire)) == {PROVIDERS}
