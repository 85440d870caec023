"""What is granted, over what, and what the kernels of both sides have then.

    neighbour                     home                host
    exit:down ------------------- home:up  home:lan --- eth0
    192.0.2.1                     192.0.2.2
    2001:db8:1::1                 2001:db8:1::2

    router, nat                                          (nat: plain masquerades IPv4)
    exit:down --- plain:up   plain:down --- home:up  home:lan --- eth0
    192.0.2.1     192.0.2.254  198.51.100.254  198.51.100.2
    2001:db8:1::1 ...:1::fe    ...:2::fe       2001:db8:2::2
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from daemon import Daemon
from lab import Host, Lab, changes, eventually, needs, with_keys

pytestmark = needs("ip link add dev eth0 type veth")

EXIT_ADDRESS = {4: "192.0.2.1", 6: "2001:db8:1::1"}
HOME_ADDRESS = {"neighbour": {4: "192.0.2.2",    6: "2001:db8:1::2"},
                "router":    {4: "198.51.100.2", 6: "2001:db8:2::2"},
                "nat":       {4: "192.0.2.254",  6: ""}}

LEASES = ("::/56 on br-lan", "::/128 on up", "0.0.0.0/24 on br-lan", "0.0.0.0/32 on up")
EXIT = """
[ddpd]
[pool prefixes6]
prefix = 2001:db8:42::/48
give   = /56
[pool addresses6]
prefix = 2001:db8:43::/64
give   = /128
[pool prefixes4]
prefix = 10.64.0.0/16
give   = /24
[pool addresses4]
prefix = 203.0.113.0/24
give   = /32
[grantee home]
key   = @home
pools = prefixes6 addresses6 prefixes4 addresses4
limit = 2
rate  = 100/1s
route = {}
"""
HOME = """
[grantor exit]
key     = @exit
address = {}
ask     = {}
"""


@contextmanager
def neighbour() -> Iterator[Lab]:
    with Lab("exit*", "home*", "host") as lab:
        lab.cable("exit:down 192.0.2.1/24 2001:db8:1::1/64",
                  "home:up   192.0.2.2/24 2001:db8:1::2/64")
        lab.cable("home:lan", "host:eth0")
        lab["home"].bridge("br-lan", "lan")
        yield lab


@contextmanager
def router() -> Iterator[Lab]:
    with Lab("exit*", "plain*", "home*", "host") as lab:
        lab.cable("exit:down  192.0.2.1/24        2001:db8:1::1/64",
                  "plain:up   192.0.2.254/24      2001:db8:1::fe/64")
        lab.cable("plain:down 198.51.100.254/24   2001:db8:2::fe/64",
                  "home:up    198.51.100.2/24     2001:db8:2::2/64")
        lab.cable("home:lan", "host:eth0")
        lab["home"].bridge("br-lan", "lan")
        lab["home"].ip("route add default via 198.51.100.254")
        lab["home"].ip("route add default via 2001:db8:2::fe")
        lab["exit"].ip("route add 2001:db8:2::/64 via 2001:db8:1::fe")
        lab["exit"].ip("route add 198.51.100.0/24 via 192.0.2.254")
        yield lab


@contextmanager
def nat() -> Iterator[Lab]:
    with router() as lab:
        lab["exit"].ip("route del 198.51.100.0/24 via 192.0.2.254")
        lab["plain"].masquerades("up")
        yield lab


WORLDS = {"neighbour": neighbour, "router": router, "nat": nat}

@pytest.fixture(scope="module")
def worlds() -> Iterator[dict[str, Lab]]:
    """One world of each kind for all tests: daemons come and go in it."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(make()) for name, make in WORLDS.items()}


@pytest.fixture
def labs(worlds: dict[str, Lab]) -> Iterator[dict[str, Lab]]:
    yield worlds
    for lab in worlds.values():
        lab.leave("home")


def grantor(lab: Lab, route: str = "auto") -> Daemon:
    """The grantor of this world; it goes on running while its config is the same."""
    config = with_keys(EXIT.format(route))
    for daemon in lab["exit"].daemons:
        if daemon.running() and config.split("[pool", 1)[1] in daemon.config.read_text():
            return daemon
    lab.leave("exit")
    return lab["exit"].ddpd(config).start()


def grantee(lab: Lab, over: int, *asks: str) -> Daemon:
    """A grantee that is bound."""
    before = lab["home"].kernel()
    home = lab["home"].ddpd(HOME.format(EXIT_ADDRESS[over], "\n  ".join(asks))).start()
    home.eventually(lambda: lab["home"].kernel() != before)
    return home


def held(home: Daemon) -> list[dict[str, Any]]:
    return [row for row in home.status()["held"] if row["prefix"]]


def end(home: Daemon) -> None:
    """Give back, stop, remove."""
    for command in ("release", "clean"):
        done = home.command(command)
        assert done.returncode == 0, done.stderr
        home.stop()


def expected(ask: str, prefix: str) -> list[str]:
    """What a lease adds to the kernel of the grantee, exactly as `ip` shows it."""
    net, dev = ip_network(prefix), ask.split()[-1]
    timed = "valid_lft N preferred_lft N"
    if prefix.endswith("/128"):
        address = net.network_address
        return [f"address: {dev} inet6 {address}/128 scope global dynamic {timed}",
                f"route6: {address} dev {dev} proto kernel metric 256 expires N pref medium",
                f"route6: local {address} dev {dev} table local proto kernel metric 0 pref medium"]
    if prefix.endswith("/32"):
        address = net.network_address
        return [f"address: {dev} inet {address}/32 scope global dynamic {dev} {timed}",
                f"route4: local {address} dev {dev} table local proto kernel scope host "
                f"src {address}"]
    if net.version == 6:
        lan = ip_network(f"{net.network_address}/64")
        own = lan.network_address + 1
        return [f"address: {dev} inet6 {own}/64 scope global dynamic {timed}",
                f"route6: unreachable {net} dev lo proto 221 metric 22100 pref medium",
                f"route6: {lan} dev {dev} proto kernel metric 256 expires N pref medium",
                f"route6: local {own} dev {dev} table local proto kernel metric 0 pref medium",
                f"route6: anycast {lan.network_address} dev {dev} table local proto kernel "
                "metric 0 pref medium"]
    own = net.network_address + 1
    return [f"address: {dev} inet {own}/24 scope global dynamic {dev} {timed}",
            f"route4: unreachable {net} proto 221 metric 22100",
            f"route4: {net} dev {dev} proto kernel scope link src {own}",
            f"route4: local {own} dev {dev} table local proto kernel scope host src {own}",
            f"route4: broadcast {net.broadcast_address} dev {dev} table local proto kernel "
            f"scope link src {own}"]


def lifetimes(host: Host, dev: str, address: str) -> tuple[int, int]:
    """Valid and preferred seconds of an address, as the kernel has them now."""
    (line,) = [line for line in host.look(f"-o addr show dev {dev}").splitlines()
               if f" {address}" in line]
    words = line.split()
    return (int(words[words.index("valid_lft") + 1].removesuffix("sec")),
            int(words[words.index("preferred_lft") + 1].removesuffix("sec")))


@pytest.mark.parametrize(("path", "over"), [
    ("neighbour", 4), ("neighbour", 6), ("router", 4), ("router", 6), ("nat", 4)])
def test_every_combination(labs: dict[str, Lab], path: str, over: int) -> None:
    """Any family over any family and path: what the leases say, the kernels have, and no more."""
    home, exit_ = labs[path]["home"], labs[path]["exit"]
    grantor_ = grantor(labs[path])
    before = home.kernel(), exit_.kernel()
    daemon = grantee(labs[path], over, *LEASES)
    leases = {LEASES[row["slot"]]: row for row in held(daemon)}
    assert list(leases) == list(LEASES)
    wanted = sorted(line for ask, lease in leases.items() for line in expected(ask, lease["prefix"]))
    eventually(lambda: len(set(home.kernel()) - set(before[0])) == len(wanted), 3)
    assert sorted(set(home.kernel()) - set(before[0])) == wanted
    assert set(before[0]) <= set(home.kernel())
    rows = {row["prefix"]: row for row in grantor_.status()["granted"]}
    for ask, lease in leases.items():
        valid, preferred = lifetimes(home, ask.split()[-1], own_address(lease["prefix"]))
        assert 43170 <= valid <= 43200 and abs(valid - lease["valid"]) <= 2        # 12 h by default
        assert 21570 <= preferred <= 21600 and abs(preferred - lease["preferred"]) <= 2
        granted = rows[lease["prefix"]]
        assert granted["grantee"] == "home"
        assert heard_from(granted["from"]) == HOME_ADDRESS[path][over]
    ways = [way_to(prefix, HOME_ADDRESS[path][over]) for prefix in rows
            if path == "neighbour" and ip_network(prefix).version == over]
    assert sorted(exit_.routes()) == sorted(ways)
    end(daemon)
    assert changes(before[0], home.kernel()) == []
    eventually(lambda: changes(before[1], exit_.kernel()) == [])


def own_address(prefix: str) -> str:
    """This node's own in a lease: the first, or the lease itself."""
    net = ip_network(prefix)
    return str(net.network_address + (net.prefixlen < net.max_prefixlen))


def heard_from(shown: str) -> str:
    """The address of `[2001:db8::1]:3373`, `192.0.2.1:3373`, `[::ffff:192.0.2.1]:3373`."""
    address = ip_address(shown.rpartition(":")[0].strip("[]"))
    return str(getattr(address, "ipv4_mapped", None) or address)


def way_to(prefix: str, via: str) -> str:
    net = ip_network(prefix)
    shown = net.network_address if net.prefixlen == net.max_prefixlen else net
    pref = " pref medium" if net.version == 6 else ""
    return f"{shown} via {via} dev down proto 221 metric 22100{pref}"


def test_all_four_at_once_in_one_exchange(labs: dict[str, Lab]) -> None:
    """Four slots, one ask: prefixes and addresses of both families; subnets where the line says."""
    lab = labs["neighbour"]
    home = lab["home"]
    home.ip("link add dev br-guest type bridge")
    before = home.kernel()
    lab.leave("exit")                           # ten new leases a minute, and this is one of many
    grantor(lab)
    wire = home.record("up")
    daemon = grantee(lab, 4, "::/56 on br-lan br-guest=7", *LEASES[1:])
    rows = held(daemon)
    *asks, answer = (d.data[0] for d in wire.ddpd())
    assert {*asks} == {1} and answer == 2
    prefixes = {ip_network(row["prefix"]) for row in rows}
    assert sorted(p.prefixlen for p in prefixes) == [24, 32, 56, 128]
    (six,) = [p for p in prefixes if p.prefixlen == 56]
    guest = ip_network((int(six.network_address) + (7 << 64), 64))
    assert home.addresses("br-guest") == [f"{guest.network_address + 1}/64"]
    end(daemon)
    assert changes(before, home.kernel()) == []
    home.ip("link del dev br-guest")


@pytest.mark.parametrize(("route", "shown"), [
    ("dev down",               "{} dev down proto 221 scope link metric 22100"),
    ("via 192.0.2.7 dev down", "{} via 192.0.2.7 dev down proto 221 metric 22100"),
    ("via 192.0.2.7",          "{} via 192.0.2.7 dev down proto 221 metric 22100"),
    ("none",                   ""),
])
def test_route_as_the_grantees_section_says(labs: dict[str, Lab], route: str, shown: str) -> None:
    lab = labs["neighbour"]
    grantor(lab, route)
    daemon = grantee(lab, 4, "0.0.0.0/24 on br-lan")
    (lease,) = held(daemon)
    assert lab["exit"].routes() == ([shown.format(lease["prefix"])] if shown else [])
    end(daemon)
    eventually(lambda: lab["exit"].routes() == [])


def test_a_fixed_route_works_through_a_nat_too(labs: dict[str, Lab]) -> None:
    lab = labs["nat"]
    grantor(lab, "via 2001:db8:1::fe")
    daemon = grantee(lab, 4, "::/56 on br-lan")
    (lease,) = held(daemon)
    assert lab["exit"].routes() == [way_to(lease["prefix"], "2001:db8:1::fe")]


def test_an_ipv4_lease_leaves_its_lan_reachable(labs: dict[str, Lab]) -> None:
    """The unreachable route for the whole /24 must lose to the LAN that it is used on."""
    lab = labs["neighbour"]
    home, host = lab["home"], lab["host"]
    grantor(lab)
    daemon = grantee(lab, 4, "0.0.0.0/24 on br-lan")
    (lease,) = held(daemon)
    net = ip_network(lease["prefix"])
    ours, theirs = str(net.network_address + 1), str(net.network_address + 50)
    host.address("eth0", f"{theirs}/24")
    host.ip(f"route add default via {ours}")
    eventually(lambda: host.reaches(ours))
    assert home.reaches(theirs)
    assert host.reaches("192.0.2.1")            # there and back, by the grantor's route
    assert daemon.command("renew").returncode == 0
    assert home.reaches(theirs)
    host.ip(f"addr del {theirs}/24 dev eth0")
