"""The rented host: its provider routes nothing to it, but puts a whole /64 on the link.  What it leases of that, by a
tunnel to a home, works there: exactly that, for exactly as long, whatever else asks, dies or is taken away.

      far ------------- provider ---+--- vps ============= home ------- host
                          lan, a    |   grantor,   tun    grantee      in the /80
    2001:db8:f::1         bridge    |   [ndp eth0]        /80, /128
                                    +--- tenant           2001:db8:77:1::/64 is all on this link
"""

import itertools
import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address, IPv6Network

import pytest

from daemon import Daemon
from frames import (
    ADVERTISEMENT,
    ASKER,
    EVERYBODY,
    ROUTER,
    SOLICITED,
    TARGET_MAC,
    Read,
    duplicate_probe,
    neighbours,
    solicitation,
)
from lab import Host, Lab, Recorder, eventually, needs, with_keys
from tunnel import tunnel

pytestmark = needs("ip link add dev eth0 type veth && ip tuntap add dev tun0 mode tun && command -v ndisc6")

FAR, ON_LINK = "2001:db8:f::1", "2001:db8:77:1::/64"
VPS = """
[pool rented]
prefix   = 2001:db8:77:1::/64
reserve  = 2001:db8:77:1::/80
give     = /80 /128
lifetime = {lifetime}
[grantee home]
key   = @home
pools = rented
limit = 2
"""
NDP = """
[ndp eth0]
proxy = leased
"""
HOME = """
[grantor vps]
key     = @vps
address = fd77::1
ask     = ::/80 on br-lan
          ::/128 on lo
default = dev tun0
"""
HERE, NOBODY = "fe80::77:a", "::"                                    # HERE: the test's own, of nobody


# ==== the world =======================================================================


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("far", "provider*", "vps*", "tenant", "home*", "host") as lab:
        lab.cable(f"far:eth0 {FAR}/64", "provider:up 2001:db8:f::2/64")
        lab.cable("provider:p1", "vps:eth0 2001:db8:77:1::2/64")
        lab.cable("provider:p2", "tenant:eth0 2001:db8:77:1::3/64")
        lab.cable("home:lan", "host:eth0")
        lab["provider"].bridge("lan", "p1", "p2")
        lab["provider"].address("lan", "2001:db8:77:1::1/64")
        lab["home"].bridge("br-lan", "lan")
        tunnel(lab, "vps:tun0 fd77::1/64", "home:tun0 fd77::2/64")
        lab["far"].ip("route add default via 2001:db8:f::2")
        lab["vps"].ip("route add default via 2001:db8:77:1::1")
        lab["tenant"].ip("route add default via 2001:db8:77:1::1")
        yield lab


@dataclass
class Story:
    """Both daemons, and the wire between the provider and the rented host."""

    lab: Lab
    vps: Daemon
    home: Daemon
    wire: Recorder
    wide: str = ""
    single: str = ""
    inside: str = ""

    def begin(self) -> None:
        """From now on there are leases, and a host on the LAN has an address of the /80."""
        self.home.start()
        self.home.eventually(lambda: len(self.held()) == 2)
        self.wide, single = self.held()
        net = IPv6Network(self.wide)
        self.single, self.inside = single.split("/")[0], str(net[2])
        self.lab["host"].ip("addr flush dev eth0 scope global")
        self.lab["host"].address("eth0", f"{self.inside}/80")
        self.lab["host"].ip(f"route replace default via {net[1]}")

    def held(self) -> list[str]:
        return [row["prefix"] for row in sorted(self.home.status()["held"], key=lambda row: int(row["slot"]))]

    def ask(self, target: str, source: str = HERE) -> None:
        self.wire.sock.send(bytes(duplicate_probe(target) if source == NOBODY else solicitation(target, source)))

    def advertised(self) -> list[Read]:
        return [seen for seen in neighbours(self.wire.frames()) if seen.kind == ADVERTISEMENT]

    def answer(self, target: str, source: str = HERE, within_s: float = 1.0) -> Read | None:
        """What the first solicitation gets; None: nothing."""
        self.wire.forget()
        self.ask(target, source)
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            select.select([self.wire.sock], [], [], max(0.0, end - time.monotonic()))
            for seen in self.advertised():
                if seen.target == target:
                    return seen
        return None

    def both_answered(self) -> bool:
        return self.answer(self.inside) is not None and self.answer(self.single) is not None

    def last_answer(self, until: float) -> float:
        """Ask for both 20 times a second: the moment of the last that was answered."""
        last = 0.0
        while time.monotonic() < until:
            for target in (self.inside, self.single):
                asked = time.monotonic()
                last = asked if self.answer(target, within_s=0.025) else last
                time.sleep(max(0.0, asked + 0.025 - time.monotonic()))
        return last

    def link(self) -> tuple[object, ...]:
        """What says whether an interface hears more than is meant for it."""
        shown = self.lab["vps"].look("-d -o link show dev eth0")
        words = shown.split()
        return words[2], *(words[words.index(key) + 1] for key in ("promiscuity", "allmulti"))

    def reached(self) -> bool:
        far = self.lab["far"]
        return far.reaches(self.inside) and far.reaches(self.single)


@pytest.fixture
def world(lab: Lab) -> Iterator[Story]:
    """The rented host's ddpd runs, home's does not yet; afterwards neither, and nothing is left of them."""
    vps, home = lab["vps"].ddpd(VPS.format(lifetime="12h") + NDP), lab["home"].ddpd(HOME)
    yield Story(lab, vps, home, lab["provider"].record("p1"))
    lab.leave("home", "vps")
    for daemon in (home, vps):             # the dead too
        daemon.command("clean")
    lab["provider"].ip("neigh flush dev lan")


@pytest.fixture
def story(world: Story) -> Story:
    world.vps.start()
    world.begin()
    return world


def told(daemon: Daemon, command: str) -> float:
    """Obeyed: when."""
    done = daemon.command(*command.split())
    assert done.returncode == 0, done.stderr
    return time.monotonic()


# ==== it works ========================================================================


def test_what_is_leased_is_reached_at_home(world: Story) -> None:
    """From far and from the neighbour on the link; the first packet gets through; before that nothing does."""
    world.vps.start()
    world.begin()
    assert IPv6Network(world.wide).subnet_of(IPv6Network(ON_LINK))
    far, tenant = world.lab["far"], world.lab["tenant"]
    for address in (world.inside, world.single):
        assert far.reaches(address)
        assert tenant.reaches(address)
        assert world.lab["host"].reaches(FAR, world.inside)
        assert world.lab["home"].reaches(FAR, world.single)
    assert not far.reaches(str(IPv6Network(world.wide)[3])), "nobody has that: the host unreachable is no port"


def test_an_answer_is_as_a_proxy_s_has_to_be(story: Story) -> None:
    """RFC 4861 7.2.8: solicited, not to override; from the link-local address, with the link-layer address."""
    mac = mac_of(story)
    for target in (story.inside, story.single):
        seen = story.answer(target)
        assert seen is not None
        assert (seen.to, seen.mac, seen.options) == (ASKER, mac, ((TARGET_MAC, mac),))
        assert (seen.destination, seen.target, seen.word) == (HERE, target, ROUTER | SOLICITED)
        assert IPv6Address(seen.source).is_link_local


def test_another_implementation_is_answered(world: Story) -> None:
    """ndisc6, which hears of an answer only if it comes from the address that it asked for."""
    world.vps.write(with_keys(VPS.format(lifetime="12h") + NDP + "source = target\n"))
    world.vps.start()
    world.begin()
    tenant, mac = world.lab["tenant"], mac_of(world)
    for target in (world.inside, world.single):
        assert tenant.ask(f"ndisc6 -q -1 {target} eth0").stdout.strip().lower() == mac.hex(":")
    for target in neighbours_of(world)[:2]:
        assert not tenant.ask(f"ndisc6 -q -1 -r 1 -w 300 {target} eth0").stdout


def mac_of(story: Story, name: str = "vps", dev: str = "eth0") -> bytes:
    shown = story.lab[name].look(f"-o link show dev {dev}").split("link/ether ")[1].split()[0]
    return bytes.fromhex(shown.replace(":", ""))


# ==== and nothing else does ===========================================================


def neighbours_of(story: Story) -> list[str]:
    """The addresses beside what is leased."""
    net, single = IPv6Network(story.wide), IPv6Address(story.single)
    beside = net[0] - 1, net[-1] + 1, single - 1, single + 1, IPv6Address(int(single) ^ 1 << 48)
    return [str(address) for address in beside if address not in net]


def test_of_ten_thousand_others_none_is_answered(story: Story) -> None:
    """And each of the hundred that are leased, between them, is."""
    seed = random.randrange(1 << 32)
    print(f"[=] seed {seed}")
    rand, net, link = random.Random(seed), IPv6Network(story.wide), IPv6Network(ON_LINK)
    strange = [str(link[rand.getrandbits(64)]) for _ in range(10_000)]
    strange = [target for target in strange if IPv6Address(target) not in net] + neighbours_of(story)
    assert len(strange) > 9_900
    leased = [str(net[rand.getrandbits(48)]) for _ in range(99)]
    story.wire.forget()
    for n, target in enumerate(strange):
        story.ask(target)
        if n % 100 == 0:
            story.ask(leased[n // 100 % 99])
            eventually(partial(advertises, story, leased[n // 100 % 99]), what="it is answered", every_s=0.001)
    story.ask(story.single)                                           # what comes first is answered first
    eventually(partial(advertises, story, story.single))
    advertised = {seen.target for seen in story.advertised() if not seen.target.startswith("fe80:")}   # a kernel's own
    assert advertised == {*leased, story.single}


def advertises(story: Story, target: str) -> bool:
    return target in {seen.target for seen in story.advertised()[-3:]}


def test_a_probe_for_duplicates_is_answered_for_all_to_hear(story: Story) -> None:
    for target in (story.inside, story.single):
        seen = story.answer(target, NOBODY)
        assert seen is not None
        assert (seen.destination, seen.word, seen.to) == ("ff02::1", ROUTER, EVERYBODY)
    assert not [target for target in neighbours_of(story) if story.answer(target, NOBODY, within_s=0.2)]


def test_no_kernel_on_the_link_takes_what_is_leased(story: Story) -> None:
    """Duplicate address detection, as the kernel does it, fails for these, and for these only."""
    tenant = story.lab["tenant"]
    tenant.sysctl({"net/ipv6/conf/eth0/accept_dad": 1, "net/ipv6/conf/eth0/dad_transmits": 3})
    leased, free = [story.inside, story.single], neighbours_of(story)[:2]
    tenant.address("eth0", *(f"{address}/64" for address in leased + free))
    try:
        eventually(lambda: "tentative" not in tenant.look("-6 addr show dev eth0 -dadfailed"), 12)
        shown = tenant.look("-6 -o addr show dev eth0").splitlines()
        assert {line.split()[3].split("/")[0] for line in shown if "dadfailed" in line} == set(leased)
        assert all(story.lab["provider"].reaches(address) for address in free)
        assert story.reached()
    finally:
        tenant.sysctl({"net/ipv6/conf/eth0/accept_dad": 0})
        for address in leased + free:
            tenant.ip(f"addr del {address}/64 dev eth0")


# ==== for as long as it is leased =====================================================

ENDS: dict[str, tuple[Callable[[Story], float], Callable[[Story], float]]] = {
    "given back": (lambda story: told(story.home, "release"), lambda story: told(story.home, "renew")),
    "revoked": (lambda story: told(story.vps, "revoke home"),
                lambda story: max(told(story.vps, "revoke home --undo"), told(story.home, "renew"))),
}


@pytest.mark.parametrize("event", ENDS)
def test_it_is_silent_within_a_second_when_it_is(story: Story, event: str) -> None:
    """And when the same is leased again, the first who asks is answered."""
    ends, begins = ENDS[event]
    before = sorted([story.wide, story.single + "/128"])
    assert story.both_answered()
    moment = ends(story)
    last = story.last_answer(moment + 2)
    print(f"[=] the last answer: {last - moment if last else 0:+.2f} s")
    assert last < moment + 1
    assert not story.reached()
    begins(story)
    story.home.eventually(lambda: sorted(story.held()) == before, 10)
    assert story.both_answered()
    eventually(story.reached)              # the kernel may be between two of its own solicitations


def test_it_is_answered_until_the_lease_is_over_and_no_longer(world: Story) -> None:
    """Home is dead: the lifetime runs out."""
    life_s = 12
    world.vps.write(with_keys(VPS.format(lifetime=f"{life_s}s") + NDP))
    world.vps.start()
    world.begin()
    began = time.monotonic()
    told(world.home, "renew")
    world.home.kill()
    killed = time.monotonic()
    [least, _] = sorted(row["valid"] for row in world.vps.status()["granted"])
    assert least >= life_s - 6, "it was renewed just now"
    last = world.last_answer(killed + life_s + 2)
    print(f"[=] the last answer: {last - began - life_s:.2f} s after the earliest end, {last - killed - life_s:+.2f} s "
          "after the latest")
    assert began + life_s - 1 < last < killed + life_s + 1
    assert not world.reached()


def test_a_crash_leaves_nothing_and_a_restart_answers_again(world: Story) -> None:
    """All groups are heard for as long as it runs; after `kill -9` the interface is as it was, at once."""
    before = world.link()
    world.vps.start()
    world.begin()
    running = world.link()
    assert (before[1:], running) == (("0", "0"), (before[0], "0", "1"))
    for _ in range(2):
        world.vps.kill()
        assert world.link() == before
        assert not world.answer(world.inside, within_s=0.3)
        world.vps.start()
        assert world.both_answered()
        assert world.link() == running
        told(world.home, "renew")          # what two crashes saw and nobody renewed is over
        world.vps.eventually(lambda: all(row["from"] for row in world.vps.status()["granted"]), 10)
    world.lab["provider"].ip("neigh flush dev lan")
    assert world.reached()


def test_a_reload_without_the_section_is_silence(world: Story) -> None:
    before = world.link()
    world.vps.start()
    world.begin()
    running = world.link()
    for _ in range(2):
        world.vps.write(with_keys(VPS.format(lifetime="12h")))
        moment = told(world.vps, "reload")
        assert world.last_answer(moment + 1.5) < moment + 1
        assert world.link() == before
        world.vps.write(with_keys(VPS.format(lifetime="12h") + NDP))
        told(world.vps, "reload")
        assert world.both_answered()
        assert world.link() == running


# ==== for ten minutes =================================================================
#
# What a router believes for 30 s it believes here for half a second: 20 s are twenty minutes of its cache.  The
# other kernel is forgetful: what its cache would collect is deleted, which is the same to whoever is asked next.
# (Not by gc_thresh: that is the whole machine's, and cannot be set in a namespace.)

SPAN_S, PACE_S, PORT = 20.0, 0.02, 7777
CACHES: dict[str, tuple[str, dict[str, int]]] = {
    "provider": ("lan", {"base_reachable_time_ms": 500, "delay_first_probe_time": 0, "retrans_time_ms": 500}),
    "tenant": ("eth0", {}),
}


@pytest.mark.slow
def test_ten_minutes_of_traffic_lose_nothing(story: Story) -> None:
    """Two kernels look, each in its way, again and again, and each time that they look they are answered."""
    lab, tenant, leased = story.lab, story.lab["tenant"], (story.inside, story.single)
    macs = {}
    for name, (dev, values) in CACHES.items():
        lab[name].sysctl({f"net/ipv6/neigh/{dev}/{key}": value for key, value in values.items()})
        macs[name] = mac_of(story, name, dev)
    froms = [lab["far"].socket(socket.AF_INET6), tenant.socket(socket.AF_INET6)]
    tos = [(bound(lab["host"], story.inside), story.inside), (bound(lab["home"], story.single), story.single)]
    story.wire.forget()
    assert not lost(froms, tos, lambda: [tenant.ask(f"ip neigh del {address} dev eth0") for address in leased])
    seen = [seen for seen in neighbours(story.wire.frames()) if seen.target in leased]
    for name, probes, solicitations in ("provider", 20, 0), ("tenant", 0, 10):
        for target in leased:
            asked = [each for each in seen if each.target == target and each.mac == macs[name]]
            answers = [each for each in seen if each.target == target and each.to == macs[name]]
            unicast = [each for each in asked if each.destination == target]
            print(f"[=] {name} looked for {target} {len(asked)} times, {len(unicast)} of them unicast")
            assert len(unicast) >= probes and len(asked) - len(unicast) >= solicitations
            assert len(answers) == len(asked), "each is answered, so none is asked twice"
            assert {(each.word, each.mac) for each in answers} == {(ROUTER | SOLICITED, mac_of(story))}


def bound(host: Host, address: str) -> socket.socket:
    sock = host.socket(socket.AF_INET6)
    sock.bind((address, PORT))
    sock.setblocking(False)
    return sock


def lost(froms: list[socket.socket], tos: list[tuple[socket.socket, str]], sometimes: Callable[[], object]) -> set[str]:
    """Datagrams at an even pace, from each to each; those that did not come."""
    missing, began = set[str](), time.monotonic()
    for n in range(int(SPAN_S / PACE_S)):
        for f, (to, address) in itertools.product(range(len(froms)), tos):
            froms[f].sendto(f"{f} {address} {n}".encode(), (address, PORT))
            missing.add(f"{f} {address} {n}")
            missing -= received(to)
        if n % 75 == 74:
            sometimes()
        time.sleep(max(0.0, began + n * PACE_S - time.monotonic()))
    end = time.monotonic() + 3
    while missing and time.monotonic() < end:
        for to, _ in tos:
            missing -= received(to)
    return missing


def received(sock: socket.socket) -> set[str]:
    found = set[str]()
    try:
        while True:
            found.add(sock.recv(100).decode())
    except BlockingIOError:
        return found
