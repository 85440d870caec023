"""Twins: two grantors with one key, each with its share of the pool, on different links.

    left:down ----------- crowd:left          200 grantees live in `crowd`
    2001:db8:1::1         2001:db8:1::2
                          crowd:right ----------- right:down
                          2001:db8:2::2           2001:db8:2::1

The grantors are daemons; each grantee is a whole Node of this process with a socket in `crowd`.
Who is granted by whom is random, and so is the order in which a grantee tries the addresses.
What everybody holds is compared after every single event.  (`DDPD_SEED` makes other worlds.)
"""

from __future__ import annotations

import json
import os
import random
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest

import ddpd
from daemon import Daemon
from lab import Lab, eventually, needs, public_of, secret_of

pytestmark = needs("ip link add dev eth0 type veth")

SEED = int(os.environ.get("DDPD_SEED", "221"))
CROWD = 200
NEW = 20                                   # who come while one twin is dead
LATE = 60                                  # who come when it is back: more than it has left
LEASE_S = 16                               # preferred for 12 s; T1 is 4 s, T2 6 s
SHARES = {"left": "1/2", "right": "2/2"}
PLACE = {"left": "2001:db8:1::1", "right": "2001:db8:2::1"}
SOURCE = {"2001:db8:1::1": "2001:db8:1::2", "2001:db8:2::1": "2001:db8:2::2"}
HALF = {"left": ip_network("2001:db8:42::/49"), "right": ip_network("2001:db8:42:8000::/49")}
BLOCKS = 128                               # /56s in each half
NAMES = [f"n{n}" for n in range(CROWD + NEW + LATE)]

GRANTOR = """
[ddpd]
load     = 10000
[pool six]
prefix   = 2001:db8:42::/48
give     = /56
share    = {}
lifetime = {}
preferred = 12s
renew    = 4s
rebind   = 6s
"""
AGREED = "[grantee {}]\nkey   = {}\npools = six\n"
GRANTEE = """
[grantor hub]
key     = {}
address = {}
ask     = ::/56
"""


class Twice(AssertionError):  # noqa: N818 - a verdict
    """A prefix is held by two."""


class Grantee:
    """A node, and the little of a shell that it needs."""

    def __init__(self, crowd: Crowd, name: str, places: list[str]) -> None:
        self.crowd, self.name = crowd, name
        config = ddpd.read_config(GRANTEE.format(public_of("hub"), " ".join(places)), name)
        self.node = ddpd.Node(config, secret_of(name), "this boot", crowd.dice.randbytes)
        self.sock = crowd.lab["crowd"].socket(socket.AF_INET6)
        self.sock.setblocking(False)
        self.grantee = self.node.grantees["hub"]
        self.first = ""                    # what it was granted first
        self.holds: set[str] = set()

    def perform(self, effects: list[ddpd.Effect]) -> None:
        """Addresses first, as they are all known at once; saving and installing is not its work."""
        found = [found for effect in effects if isinstance(effect, ddpd.Lookup)
                 for found in self.look_up(effect)]
        for effect in [*effects, *found]:
            if isinstance(effect, ddpd.Call):
                self.call()
        self.crowd.compare(self)

    def look_up(self, effect: ddpd.Lookup) -> list[ddpd.Effect]:
        paths = (ddpd.Path(effect.host, 0),)
        return self.node.resolved(effect.grantor, effect.host, paths, ddpd.clock_now())

    def call(self) -> None:
        place = self.grantee.place()
        if place is not None:
            datagram = self.node.compose("hub", SOURCE[place.host], ddpd.clock_now())
            self.send(datagram, place)

    def send(self, datagram: bytes, place: ddpd.Path) -> None:
        try:
            self.sock.sendto(datagram, (place.host, place.port))
        except OSError:
            pass                           # nobody listens there: as good as lost

    def hear(self) -> None:
        while True:
            try:
                datagram, (host, port, *_) = self.sock.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError:
                continue                   # what was sent has met nobody
            try:
                self.perform(self.node.received(datagram, ddpd.Path(host, port), ddpd.clock_now(), "hub"))
            except ddpd.Drop as why:
                self.crowd.drops[str(why)] += 1

    def wake(self) -> None:
        now = ddpd.clock_now()
        if self.node.deadline <= now.boot:
            self.perform(self.node.on_timer(now))

    def living(self) -> set[str]:
        now = ddpd.clock_now()
        return {str(held.prefix) for held in self.grantee.held if held.valid_until > now.boot}

    def prefers(self) -> str:
        now = ddpd.clock_now()
        return next((str(held.prefix) for held in self.grantee.held
                     if held.current and held.prefers_until > now.boot), "")

    def asks(self) -> str:
        """Which twin it asks now."""
        place = self.grantee.place()
        return next(name for name, host in PLACE.items() if place and host == place.host)


class Crowd:
    """All grantees, and what they hold."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab, self.dice = lab, random.Random(seed)
        self.members: list[Grantee] = []
        self.holders: dict[str, Grantee] = {}
        self.drops: Counter[str] = Counter()
        self.selector = selectors.DefaultSelector()
        self.compared = 0
        self.faithful: list[Grantee] = []  # who must have their first prefix at every moment

    def join(self, name: str, *places: str) -> Grantee:
        """Somebody new; without places, both in any order."""
        known = [PLACE[place] for place in places or self.dice.sample(sorted(PLACE), 2)]
        member = Grantee(self, name, known)
        self.members.append(member)
        self.selector.register(member.sock, selectors.EVENT_READ, member)
        member.perform(member.node.start(ddpd.clock_now()))
        return member

    def compare(self, member: Grantee) -> None:
        """After whatever happened to it: nobody else holds what it holds."""
        self.compared += 1
        living = member.living()
        for prefix in member.holds - living:
            if self.holders.get(prefix) is member:
                del self.holders[prefix]
        for prefix in living - member.holds:
            other = self.holders.get(prefix)
            if other is not None and prefix in other.living():
                raise Twice(f"{prefix} is held by {other.name} and by {member.name}")
            self.holders[prefix] = member
        member.holds = living
        member.first = member.first or member.prefers()

    def live(self, truth: Callable[[], bool], within_s: float, what: str) -> float:
        """Go on until this is true; how long it took."""
        began = time.monotonic()
        while not truth():
            assert time.monotonic() - began < within_s, f"not within {within_s} s: {what}; {self.drops}"
            self.step(0.02)
        return time.monotonic() - began

    def live_for(self, for_s: float) -> None:
        until = time.monotonic() + for_s
        self.live(lambda: time.monotonic() >= until, for_s + 5, "time passes")

    def step(self, wait_s: float) -> None:
        for key, _ in self.selector.select(wait_s):
            key.data.hear()
        for member in self.members:
            member.wake()
        for member in self.faithful:
            assert member.prefers() == member.first, f"{member.name} has lost {member.first}"


def share_of(prefix: str) -> str:
    (name,) = [name for name, half in HALF.items()
               if ip_network(prefix).subnet_of(half)]         # type: ignore[arg-type]
    return name


def table(twin: Daemon) -> dict[str, str]:
    """Every living lease of a grantor: prefix, grantee."""
    rows = [(row["prefix"], row["grantee"]) for row in twin.status()["granted"] if row["valid"]]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def way(prefix: str, name: str) -> str:
    return f"{prefix} via {SOURCE[PLACE[name]]} dev down proto 221 metric 22100 pref medium"


def exactly(lab: Lab, name: str, twin: Daemon, members: list[Grantee]) -> None:
    """Table and routes of this twin are the leases of these, and nothing else."""
    assert table(twin) == {member.first: member.name for member in members}
    routes = sorted(way(member.first, name) for member in members)
    eventually(lambda: sorted(lab[name].routes()) == routes, 3, f"the routes of {name}")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("left*", "right*", "crowd*") as lab:
        for n, name in enumerate(PLACE, 1):
            lab.cable(f"{name}:down 2001:db8:{n}::1/64", f"crowd:{name} 2001:db8:{n}::2/64")
        yield lab


def twin(lab: Lab, name: str) -> Daemon:
    config = GRANTOR.format(SHARES[name], f"{LEASE_S}s")
    config += "".join(AGREED.format(grantee, public_of(grantee)) for grantee in NAMES)
    daemon = lab[name].ddpd(config)
    daemon.write_key(secret_of("hub"))
    return daemon.start()


def said(what: str, took_s: float, **numbers: object) -> None:
    shown = "  ".join(f"{key} {value}" for key, value in numbers.items())
    print(f"  {what}: {took_s:.2f} s  {shown}")


# ==== the story =======================================================================


def test_a_twin_that_dies_for_good_costs_nobody_a_prefix(lab: Lab) -> None:
    """And what it had granted is never given to another, by nobody, not even by itself."""
    twins = {name: twin(lab, name) for name in PLACE}
    crowd = Crowd(lab, SEED)
    print(f"seed {SEED}")
    old = all_are_granted(crowd)
    for name, daemon in twins.items():
        exactly(lab, name, daemon, [member for member in old if share_of(member.first) == name])

    twins["left"].kill()
    killed_at = ddpd.clock_now().boot
    new = the_other_takes_over(crowd, old)
    exactly(lab, "right", twins["right"], old + new)
    crowd.live_for(killed_at + LEASE_S + 1 - ddpd.clock_now().boot)      # the end of all it promised

    twins["left"].start()
    twins["left"].kill()                                    # two crashes: all of that is over
    twins["left"].start()
    late = the_old_owner_is_back(crowd, old + new)
    holders = table(twins["right"])
    assert all(holders.get(prefix, name) == name for prefix, name in table(twins["left"]).items())

    crowd.faithful = old + new + late
    twins["right"].kill()
    killed_at = ddpd.clock_now().boot
    took = crowd.live(lambda: all(renewed_since(member, killed_at) for member in crowd.faithful),
                      LEASE_S, "all are renewed at the old owner")
    said("then the other died, and all are renewed at the old owner", took)
    exactly(lab, "left", twins["left"], crowd.faithful)
    print(f"  {crowd.compared} comparisons; drops: {json.dumps(crowd.drops)}")


def all_are_granted(crowd: Crowd) -> list[Grantee]:
    """Each by the twin that it asked first, out of its share."""
    old = [crowd.join(name) for name in NAMES[:CROWD]]
    took = crowd.live(lambda: all(member.prefers() for member in old), 8, "all are granted")
    shares = Counter(share_of(member.first) for member in old)
    said(f"{CROWD} granted", took, **shares)
    assert min(shares.values()) > CROWD / 4 and max(shares.values()) < BLOCKS
    assert [member.name for member in old if share_of(member.first) != member.asks()] == []
    return old


def the_other_takes_over(crowd: Crowd, old: list[Grantee]) -> list[Grantee]:
    """Each lease goes on at the other, as it is; who is new is given of the living one's share."""
    crowd.faithful = old
    killed_at = ddpd.clock_now().boot
    new = [crowd.join(name) for name in NAMES[CROWD:CROWD + NEW]]
    orphans = [member for member in old if member.asks() == "left"]
    took = crowd.live(lambda: all(renewed_since(member, killed_at) for member in old),
                      LEASE_S, "all are renewed")
    said(f"{len(orphans)} orphans renewed at the other", took)
    assert {member.asks() for member in old} == {"right"}
    took += crowd.live(lambda: all(member.prefers() for member in new), LEASE_S, "and the new granted")
    said(f"{NEW} new ones granted meanwhile", took)
    assert {share_of(member.first) for member in new} == {"right"}
    crowd.faithful = old + new
    return new


def the_old_owner_is_back(crowd: Crowd, others: list[Grantee]) -> list[Grantee]:
    """It gives what was never given, and then nothing more: not what was renewed elsewhere."""
    free = BLOCKS - sum(share_of(member.first) == "left" for member in others)
    late = [crowd.join(name, "left") for name in NAMES[CROWD + NEW:]]
    took = crowd.live(lambda: all(member.grantee.answers for member in late), 8, "the late are answered")
    crowd.live_for(2)
    got = [member for member in late if member.first]
    said(f"{LATE} late ones asked the old owner", took, granted=len(got), free=free)
    assert {share_of(member.first) for member in got} == {"left"}
    assert not {member.first for member in got} & {member.first for member in others}
    assert len(got) == free < LATE
    refused = [refusal.reason for member in late for refusal in member.grantee.refused.values()]
    assert Counter(map(ddpd.reason_name, refused)) == {"FULL": LATE - free}
    return got


def renewed_since(member: Grantee, at: float) -> bool:
    """The answer to an ask of since then has been applied."""
    return any(held.current and held.valid_until > at + LEASE_S for held in member.grantee.held)
