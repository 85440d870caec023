"""The life of a grantee: whatever happens to links, addresses, routes, names, NATs and processes, the kernel has
what the leases say, within two seconds and to the line; what the operator made beside it is as it was.  The picture and
the events are in life.py.
"""

import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from daemon import Daemon
from lab import Lab, Program, eventually, needs, secret_of, with_keys
from life import EVENTS, EXIT, Life

pytestmark = needs("ip link add dev eth0 type veth && command -v busybox && command -v dnsmasq && command -v strace")

WORLDS = {"over IPv4 and a NAT": ("iproute2", 4), "over IPv6, with BusyBox": ("busybox", 6)}


@pytest.fixture(scope="module", params=WORLDS)
def life(request: pytest.FixtureRequest) -> Iterator[Life]:
    with Lab("home*", "mid*", "exit*", "host") as lab:
        yield Life(lab, *WORLDS[request.param])


@pytest.mark.parametrize("event", EVENTS)
def test_the_kernel_is_what_the_leases_say_after(life: Life, event: str) -> None:
    prefixes = life.held()
    EVENTS[event](life)
    print(f"[=] {event}: {life.wait():.2f} s")
    life.home.eventually(life.is_bound, 8)
    assert life.held() == prefixes                         # the same leases, none twice, none left behind
    assert life.as_expected()


# ==== the way =========================================================================
#
#    one:down 192.0.2.1    ---+
#             2001:db8:1::1   +--- up home br-lan       two routers, either may be the default; each is a grantor
#    two:down 192.0.2.11   ---+
#             2001:db8:1::11

GRANTOR = """
[pool six]
prefix = 2001:db8:{0}::/48
give   = /56
dns    = 2001:db8:{0}::53
[grantee home]
key   = @home
pools = six
"""
HOME = """
[grantor whoever]
key     = @both
address = {}
default = auto
ask     = ::/56 on br-lan
"""


@pytest.fixture
def routers() -> Iterator[Lab]:
    with Lab("one*", "two*", "switch", "home*") as lab:
        lab.cable("one:down 192.0.2.1/24 2001:db8:1::1/64", "switch:one")
        lab.cable("two:down 192.0.2.11/24 2001:db8:1::11/64", "switch:two")
        lab.cable("home:up 192.0.2.2/24 2001:db8:1::2/64", "switch:home")
        lab["switch"].bridge("br", "one", "two", "home")
        lab["home"].bridge("br-lan")
        for name, net in (("one", "a"), ("two", "b")):
            lab[name].ddpd("[ddpd]\n" + GRANTOR.format(net), name).write_key(secret_of("both"))
            lab[name].daemons[0].start()
        yield lab


def default_line(lab: Lab, prefix: str) -> list[str]:
    """Where what comes from this prefix leaves."""
    [rule] = [line for line in lab["home"].look("-6 rule show").splitlines() if f"from {prefix} " in line]
    shown = lab["home"].look(f"-6 route show table {rule.split()[-1]}")
    return [" ".join(line.split()[:5]) for line in shown.splitlines()]


def leaves_by(lab: Lab, prefix: str, router: str) -> bool:
    return default_line(lab, prefix) == [f"default via {router} dev up"]


def is_asked(home: Daemon, place: str) -> bool:
    return place in home.status()["grantors"][0]["at"]


def preferred(home: Daemon, start: str) -> list[str]:
    return [row["prefix"] for row in home.status()["held"] if row["prefix"].startswith(start) and row["preferred"]]


@pytest.mark.parametrize(("routes", "places"), [
    (("-4 route replace default via 192.0.2.1", "-4 route replace default via 192.0.2.11"),
     ("192.0.2.1:", "192.0.2.11:")),
    (("-6 route replace default via 2001:db8:1::1", "-6 route replace default via 2001:db8:1::11"),
     ("[2001:db8:1::1]", "[2001:db8:1::11]"))])
def test_the_default_router_is_asked_whoever_it_is(routers: Lab, routes: tuple[str, str],
                                                   places: tuple[str, str]) -> None:
    """`address = gateway`: none at first, then one, then another; the way out of what it gave is by it."""
    home = routers["home"].ddpd(HOME.format("gateway")).start()
    [row] = home.status()["grantors"]
    assert row["state"] == "seeking" and row["at"] == ""
    for route, place, net in zip(routes, places, "ab", strict=True):
        routers["home"].ip(route)
        home.eventually(partial(is_asked, home, place), 6)
        home.eventually(partial(preferred, home, f"2001:db8:{net}:"), 6)
        [prefix] = preferred(home, "2001:db8:")
        if route.startswith("-6"):
            home.eventually(partial(leaves_by, routers, prefix, place.strip("[]")))


def test_a_boot_before_the_network_asks_as_soon_as_there_is_a_way(routers: Lab) -> None:
    """No cable, no address, no route for so long that it asks but seldom; then it is bound at once."""
    host = routers["home"]
    host.ip("link set dev up down")
    home = host.ddpd(HOME.format("198.51.100.9")).start()
    home.eventually(lambda: "silent grantor=whoever" in home.log(), 20)     # so the next try is 16 s away
    host.ip("link set dev up up")
    host.ip("addr replace 192.0.2.2/24 dev up")
    routers["one"].address("lo", "198.51.100.9/32")
    host.ip("route add default via 192.0.2.1")
    home.eventually(lambda: [row["state"] for row in home.status()["grantors"]] == ["bound"], 6)


def test_an_address_that_is_removed_twice_in_a_moment_comes_back(routers: Lab) -> None:
    """The second time before the first is heard of: the links look as they did."""
    host = routers["home"]
    home = host.ddpd(HOME.format("192.0.2.1")).start()
    home.eventually(lambda: host.addresses("br-lan"))
    [address] = host.addresses("br-lan")
    host.ask(f"sh -c 'for n in $(seq 100); do ip addr del {address} dev br-lan; done'")
    home.eventually(lambda: host.addresses("br-lan") == [address], 6)


def test_a_link_that_goes_down_and_up_in_a_moment_has_its_subnets_route_again(routers: Lab) -> None:
    """Before the first renewal, and however quickly: an address that is made while the link is down gets no route."""
    host = routers["home"]
    home = host.ddpd(HOME.format("192.0.2.1")).start()
    home.eventually(lambda: host.addresses("br-lan"))
    [address] = host.addresses("br-lan")
    subnet = address.replace("::1/64", "::/64")
    for _ in range(10):
        host.ask("sh -c 'ip link set br-lan down; ip link set br-lan up'")
        home.eventually(lambda: f"{subnet} dev br-lan proto kernel" in host.look("-6 route show"), 6)
        assert host.addresses("br-lan") == [address]


@pytest.mark.parametrize("reach", ["via 2001:db8:1::1", "dev up"])
def test_a_default_route_that_is_removed_comes_back_however_it_was_said(routers: Lab, reach: str) -> None:
    """The kernel says more of a route than the configuration: a device, where that named only a gateway."""
    host = routers["home"]
    home = host.ddpd(HOME.format("192.0.2.1").replace("auto", reach)).start()
    home.eventually(lambda: "default" in host.look("-6 route show table 720"))
    host.ip("-6 route del default table 720")
    home.eventually(lambda: "default" in host.look("-6 route show table 720"), 6)
    time.sleep(0.5)
    assert "cannot install" not in home.log()


def test_a_reload_begins_to_watch_the_ways(routers: Lab) -> None:
    """No grantor at first, then one whose way is followed; then none, and nothing of it is left."""
    host = routers["home"]
    before = host.kernel()
    host.ip("-6 route add 2001:db8:7::/64 via 2001:db8:1::1")
    routers["one"].address("lo", "2001:db8:7::7/128")
    resolv = routers.folder / "resolv.conf"
    home = host.ddpd(f"[ddpd]\nresolv = {resolv}\n").start()
    empty = home.config.read_text()
    home.write(empty + with_keys(HOME.format("2001:db8:7::7").replace(" on br-lan", "")))
    assert home.command("reload").returncode == 0
    home.eventually(lambda: "via 2001:db8:1::1 " in host.look("-6 route show table 720"))
    host.ip("-6 route replace 2001:db8:7::/64 via 2001:db8:1::11")
    home.eventually(lambda: "via 2001:db8:1::11 " in host.look("-6 route show table 720"), 6)
    assert resolv.read_text().endswith("nameserver 2001:db8:a::53\n")
    home.write(empty)
    assert home.command("reload").returncode == 0
    assert "nameserver" not in resolv.read_text()
    host.ip("-6 route del 2001:db8:7::/64")
    home.eventually(lambda: host.kernel() == before, 6)


def test_who_removes_our_routes_for_ever_does_not_keep_us_busy(routers: Lab) -> None:
    """Another program deletes the covering route all the time: it comes back at once at first, then once a second."""
    host = routers["home"]
    home = host.ddpd(HOME.format("192.0.2.1")).start()
    home.eventually(lambda: host.routes())
    fight = host.start("sh -c 'while :; do ip -6 route flush proto 221; sleep 0.01; done'")
    seen = host.start("ip monitor route")
    time.sleep(6)
    fight.end()
    came_back = [line for line in seen.log().splitlines() if line.startswith("unreachable")]
    assert 10 <= len(came_back) <= 22
    home.eventually(lambda: host.routes(), 6)


# ==== nothing to do ===================================================================


class Idle(NamedTuple):
    home: Daemon
    switches: int
    trace: Program
    since: float


def switches(home: Daemon) -> int:
    """How often it has given up the processor by itself: each wake-up ends with that."""
    assert home.process
    status = Path(f"/proc/{home.process.pid}/status").read_text()
    return int(re.findall(r"(?m)^voluntary_ctxt_switches:\s*(\d+)", status)[0])


def test_routes_of_others_do_not_wake_who_asks_nobody(routers: Lab) -> None:
    """A grantor beside a routing daemon: the kernel sorts out what does not concern it."""
    host = routers["one"]
    daemon, = host.daemons
    before = switches(daemon)
    for verb in "add", "del":
        for n in range(10):
            host.ip(f"-6 route {verb} unreachable 2001:db8:7:{n}::/64 proto static")
    time.sleep(0.3)
    assert switches(daemon) == before
    host.ip("addr add 2001:db8:7::1/128 dev lo")           # this concerns it
    daemon.eventually(lambda: switches(daemon) > before)


@pytest.fixture(scope="module", autouse=True)
def idle() -> Iterator[Idle]:
    """A home with leases of both families, traced while the other tests of this file run."""
    with Lab("exit*", "home*") as lab:
        lab.cable("exit:down 192.0.2.1/24 2001:db8:1::1/64", "home:up 192.0.2.2/24 2001:db8:1::2/64")
        lab["home"].bridge("br-lan")
        lab["exit"].ddpd(EXIT.format(renew=1000, preferred=2000)).start()
        text = HOME.format("192.0.2.1").replace("@both", "@exit") + "    0.0.0.0/24 on br-lan\n"
        home = lab["home"].ddpd(text).start()
        home.eventually(lambda: len(home.status()["held"]) == 2)
        time.sleep(1)                                      # its own changes are heard of
        assert home.process
        trace = lab["home"].start(f"strace -f -qq -p {home.process.pid}")
        time.sleep(0.5)
        yield Idle(home, switches(home), trace, time.monotonic())


def test_a_minute_with_nothing_to_do_has_no_system_call(idle: Idle) -> None:
    time.sleep(max(0.0, idle.since + 60 - time.monotonic()))
    assert idle.home.running() and idle.trace.running()
    assert switches(idle.home) == idle.switches
    idle.home.signal(signal.SIGUSR1)                       # the tracer can bark
    eventually(lambda: "poll" in idle.trace.log() and "sendto" in idle.trace.log())
    before, _, _ = idle.trace.log().partition("SIGUSR1")
    calls = [line for line in before.splitlines() if "(" in line]
    assert len(calls) <= 1 and re.search("poll|restart_syscall", "".join(calls))  # the one in which it waited
