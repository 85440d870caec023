"""Somebody who keeps every datagram ever seen, and sends it again: late, twice, out of order, from anywhere.

    leaf0, leaf1 --- the attacker --- hub        the world of test_simulation.py

While the road is shut, he decides what arrives, and when.  While it is open, what is true arrives at once, and what he
sends comes on top of it.  Both sides restart, and grantees move, in either.  What has to hold, after every step:

  * what takes effect is newer than all of this grantee that took effect before; anything else changes nothing;
  * no lease ends but by its holder's newest word, its lifetime, or the operator;
  * who asks while the road is open is answered within 10 s;
  * a lease is routed to where its holder was when it said its newest word, or nowhere.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

import ddpd
from test_grantor import Pair
from test_simulation import EPOCH, ETH0, ROUNDING_S, YEAR_S, Host, World, stories

FEW = 25                                     # seeds among the fast tests; `make test` runs 500
SEEDS = int(os.environ.get("DDPD_SEEDS") or os.environ.get("SEEDS") or 500)
SPELLS = 4                                   # open or shut, in turn
OUT_S = 10.0                                 # until who asks, and has no session, has an answer
PATIENCE_S = 1.1 * 15                        # between two asks, at most: after two a session is given up
NEWEST = 12                                  # datagrams: what he likes best to send


class Word(NamedTuple):
    """What the attacker cannot know of an ask."""

    leaf: Host
    number: int                              # in the order in which they were said
    source: str


class Road(World):
    lifetime = 60.0                          # T1 is 15 s

    def __init__(self, seed: int) -> None:
        self.words: dict[bytes, Word] = {}                        # asks, as datagrams
        self.said: dict[bytes, int] = {}                          # what the grantor said, and in which order
        self.newest: dict[Host, int] = {}                         # word of each that took effect
        self.applied: dict[Host, int] = {}                        # answer of each that took effect
        self.ended: set[tuple[bytes, ddpd.Prefix]] = set()        # by a word, or by the operator
        self.living: dict[tuple[bytes, ddpd.Prefix], float] = {}
        self.due: dict[Host, float] = {}                          # who has asked while the road was open: until when
        self.is_open, self.skew = True, dict[str, float]()
        super().__init__(seed, 1, 2)
        self.scarce = False

    @property
    def hub(self) -> Host:
        return self.hubs[0]

    def configure(self, host: Host) -> None:
        """In some worlds clocks are wrong, each in its own way, for ever."""
        if host.name not in self.skew:
            self.skew[host.name] = self.dice.choice([0.0, 0.0, 0.0, 10 * YEAR_S, -10 * YEAR_S, -EPOCH - self.t])
            host.wall = EPOCH + self.skew[host.name]
        super().configure(host)

    def hub_text(self, hub: Host) -> str:
        return f"[ddpd]\nload = {self.dice.choice([5, 200])}\n{super().hub_text(hub)}"

    # -- mail

    def post(self, sender: Host, datagram: bytes, path: ddpd.Path) -> None:
        if sender is self.hub:
            self.said.setdefault(datagram, len(self.said))
        else:
            self.words[datagram] = Word(sender, len(self.words), sender.address)
            if self.is_open:
                out = OUT_S if ddpd.kind_of(datagram) == "ask" else OUT_S + 2 * PATIENCE_S
                self.due[sender] = min(self.due.get(sender, float("inf")), self.t + out)
        if self.is_open or self.dice.random() < 0.4:
            to = next((host for host in self.hosts if host.address == path.host), None)
            if to is not None:                                    # else it goes to the attacker, or to where he said
                self.send(datagram, to, sender.address, self.dice.uniform(0.001, 0.1))

    def send(self, datagram: bytes, to: Host, source: str, delay: float) -> None:
        self.sent += 1
        asked = "" if to is self.hub else self.hub.name
        back = ddpd.Path(source, 5000, 0, b"" if asked else ETH0)
        heapq.heappush(self.mail, (self.t + delay, self.sent, to, datagram, back, asked))

    # -- the attacker

    def send_again(self) -> None:
        """Anything to whom it may be for, from anywhere; most often what is new, often many times."""
        seen = [*self.said] if self.dice.random() < 0.33 else [*self.words]
        seen = seen[-NEWEST:] if self.dice.random() < 0.6 else seen
        many = self.dice.choice([1, 1, 1, 2, 12])
        same = many if self.dice.random() < 0.5 else 1
        for datagram in self.dice.choices(seen, k=many // same) * same if seen else []:
            to = self.hub if datagram in self.words else self.dice.choice(self.leaves)
            self.send(datagram, to, self.source_of(datagram), self.dice.uniform(0.11, 0.5) if self.is_open else 0.01)

    def source_of(self, datagram: bytes) -> str:
        """Where it came from, where the holder has been, a neighbour, far away."""
        true = self.words[datagram].source if datagram in self.words else self.hub.address
        others = [*(leaf.address for leaf in self.leaves), "2001:db8:e::bad", "2001:db8:bad::1", "::ffff:192.0.2.66"]
        return true if self.dice.random() < 0.5 else self.dice.choice(others)

    def attack(self, until: float) -> None:
        pace = self.dice.choice([0.3, 1.0, 3.0])                  # times a second
        while self.t < until:
            self.run(min(until, self.t + self.dice.expovariate(pace)))
            if self.words:
                self.send_again()

    # -- what happens besides

    def again(self, host: Host) -> None:
        if host is self.hub:
            self.due.clear()
        self.due.pop(host, None)
        (self.crash if self.dice.random() < 0.5 else self.restart)(host)

    def move(self, leaf: Host) -> None:
        """To another address of the same link; the system says so."""
        self.due.pop(leaf, None)
        number = self.leaves.index(leaf) + 1
        leaf.address = f"2001:db8:e::{self.dice.randint(1, 3)}{number}"
        leaf.perform(leaf.node.operate(ddpd.Event.NUDGED, "", leaf.now))

    def renumber(self, hub: Host) -> None:
        super().renumber(hub)
        self.remember()

    def happen(self) -> None:
        leaf = self.dice.choice(self.leaves)
        storms: list[tuple[Callable[[Host], None], Host]] = [
            (self.again, self.hub), (self.again, self.hub), (self.again, leaf), (self.move, leaf), (self.move, leaf),
            (self.give_back, leaf), (self.want_again, leaf), (self.resize, leaf), (self.renumber, self.hub)]
        storm, host = self.dice.choice(storms)
        for each in self.hosts:
            each.touched = True
        storm(host)
        self.check()

    # -- what has to hold

    def deliver(self, to: Host, datagram: bytes, path: ddpd.Path, grantor: str) -> None:
        if to is self.hub:
            self.deliver_ask(datagram, path)
        else:
            self.deliver_answer(to, datagram, path, grantor)

    def facts(self) -> dict[bytes, Any]:
        return {key: (peer.path, peer.stamp, {
            lease.prefix: (lease.state, lease.valid_until, lease.reach) for lease in peer.living()})
                for key, peer in self.hub.node.grantor.peers.items() if peer.living() or peer.stamp >= 0}

    def effects(self) -> int:
        return self.hub.node.counters["sent_answer"] + self.hub.node.counters["sent_sealed"]

    def deliver_ask(self, datagram: bytes, path: ddpd.Path) -> None:
        word, before, effects = self.words[datagram], self.facts(), self.effects()
        self.hub.hear(datagram, path, "")
        self.hub.busy.clear()                                     # it is he who is busy
        after, key = self.facts(), word.leaf.node.s.public
        if self.effects() == effects:
            assert before == after, f"t={self.t:.1f}: what had no effect changed something"
            return
        _, stamp, had = before.pop(key, (None, -1, {}))
        if self.is_wrong(word.leaf) and stamp < 0 and not had:
            self.newest.pop(word.leaf, None)
        newest = self.newest.get(word.leaf, -1)
        assert word.number > newest, f"t={self.t:.1f}: word {word.number} of {word.leaf.name} counts after {newest}"
        self.newest[word.leaf] = word.number
        has = after.pop(key)[2]
        assert before == after, "one grantee's word changed another's leases"
        self.ended |= {(key, prefix) for prefix in had}
        for prefix, (_, _, reach) in has.items():
            ways = {None, ddpd.Reach(word.source, "eth0"), had[prefix][2] if prefix in had else None}
            assert reach in ways, f"t={self.t:.1f}: {prefix} is routed to {reach}"

    def is_wrong(self, leaf: Host) -> bool:
        """Its clock, or the grantor's: a stamp does not say whether an ask was made since the grantor's start."""
        return bool(self.skew[leaf.name] or self.skew[self.hub.name])

    def deliver_answer(self, leaf: Host, datagram: bytes, path: ddpd.Path, grantor: str) -> None:
        grantee = leaf.node.grantees[grantor]
        before, answers = self.state_of(grantee), grantee.answers
        leaf.hear(datagram, path, grantor)
        leaf.busy.clear()
        if grantee.answers > answers:
            assert self.said[datagram] > self.applied.get(leaf, -1), f"an older answer took effect at {leaf.name}"
            self.applied[leaf] = self.said[datagram]
            self.due.pop(leaf, None)
        elif self.state_of(grantee) != before:                    # a nudge
            assert self.said[datagram] >= 0
            self.said[datagram] = -1                              # once

    @staticmethod
    def state_of(grantee: ddpd.Grantee) -> Any:
        held = [(held.slot, held.prefix, held.current, held.valid_until) for held in grantee.held]
        return grantee.answers, grantee.state, grantee.nudged_at, held

    def remember(self) -> None:
        self.living = {(key, lease.prefix): self.hub.world_time(lease.valid_until)
                       for key, peer in self.hub.node.grantor.peers.items() for lease in peer.living()}
        self.ended.clear()

    def check(self) -> None:
        super().check()
        now = {(key, lease.prefix) for key, peer in self.hub.node.grantor.peers.items() for lease in peer.living()}
        for lease in self.living.keys() - now - self.ended:
            assert self.living[lease] < self.t + ROUNDING_S, f"t={self.t:.1f}: {lease[1]} ended by itself"
        self.remember()
        for leaf, due in self.due.items():
            assert self.t < due, f"t={self.t:.1f}: {leaf.name} is kept out\n{stories(self)}"
        assert not self.hub.node.counters["refused clone"], "a replay is taken for another machine"


def lives_through(seed: int) -> None:
    world = Road(seed)
    for spell in range(SPELLS):
        world.is_open = spell % 2 == 0
        world.due.clear()
        end = world.t + world.dice.uniform(5, 30)
        while world.t < end:
            world.attack(min(end, world.t + world.dice.uniform(2, 15)))
            world.happen()


@pytest.mark.parametrize("seed", range(FEW))
def test_what_was_recorded_changes_nothing(seed: int) -> None:
    lives_through(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FEW, SEEDS))
def test_what_was_recorded_changes_nothing_in_more_worlds(seed: int) -> None:
    lives_through(seed)


@pytest.mark.parametrize(("a_second", "places"), [
    (20, 1), (20, 100), (100, 100)])
def test_one_recorded_ask_that_is_sent_all_the_time_keeps_nobody_out(a_second: int, places: int) -> None:
    """After a restart of the grantor, when whoever has a lease has to prove that it is no replay."""
    world = Road(1)
    world.run(20)
    world.again(world.hub)
    world.hub.node.responder.load = 200
    recorded, to = next(datagram for datagram in world.words if ddpd.kind_of(datagram) == "ask"), world.hub
    for n in range(30 * a_second):
        world.run(world.t + 1 / a_second)
        world.send(recorded, to, f"2001:db8:bad:{n % places:x}::1", 0.01)
        if n % (5 * a_second) == 0:
            world.want_again(world.words[recorded].leaf)
    world.run(world.t + 1)


def test_who_is_told_to_prove_itself_does_so_again_soon() -> None:
    """A STALE of a grantor that has restarted since: nobody knows the session any more in which the proof goes."""
    pair = Pair()
    pair.trip()
    pair.hub.restart()
    pair.leaf.initiators["h"].session = None
    for _ in range(8):                                            # nothing arrives
        pair.hub.boot = pair.leaf.deadline
        pair.leaf.on_timer(pair.now)
    assert pair.trip() == [ddpd.Call("h")]
    assert pair.leaf.deadline - pair.now.boot < OUT_S


def test_what_was_said_before_does_not_count_in_a_session_that_was_made_later() -> None:
    """Two first asks that overtook each other: the newest word goes in the session of the one that was heard first."""
    pair = Pair()
    pair.trip()
    pair.hub.restart()
    pair.leaf.initiators["h"].session = None
    early, late = pair.ask(), pair.ask()
    to_late = pair.hear(late)
    pair.hub.later(ddpd.STALE_GAP_S)
    pair.apply(pair.hear(early))
    pair.leaf.operate(ddpd.Event.RELEASE, "h", pair.now)
    release = pair.ask()                                          # held back
    pair.leaf.operate(ddpd.Event.RENEW, "h", pair.now)
    pair.apply(to_late)
    pair.trip()
    with suppress(ddpd.Drop):
        pair.hear(release)
    assert {str(prefix) for prefix in pair.hub.living()} == pair.held


def test_under_load_a_recorded_ask_with_its_cookie_keeps_nobody_out() -> None:
    """From the grantee's own address, more often than one source may ask; and the load is made by anybody."""
    def kind_of_answer(ask: bytes) -> str:
        with suppress(ddpd.Drop):
            return ddpd.kind_of(pair.hear(ask))
        return ""
    pair = Pair()
    pair.hub.node.responder.load = 0
    pair.apply(pair.hear(pair.ask()))                             # a cookie
    recorded = pair.ask()
    assert kind_of_answer(recorded) == "answer"
    answers = set()
    for second in range(1001, 1001 + int(OUT_S)):
        pair.hub.boot = float(second)
        for _ in range(2 * ddpd.SOURCE_ASKS):
            kind_of_answer(recorded)
        pair.leaf.initiators["h"].session = None
        answers.add(kind_of_answer(pair.ask()))
    assert "answer" in answers
