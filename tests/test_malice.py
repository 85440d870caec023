"""A grantee that is known, and a grantor that is asked, do what they can: what that costs is in the table of limits.

    mallory ---> hub <--- bob          asks fifty times a second, for a minute
    leaf ------> mallory               answers at once whatever it is asked, and nudges, for ten minutes

What is written, run, logged, looked up, told to hooks and kept is counted in the pure core, as the shell would do it.
Of a grantor that cannot stop answering the real daemon is in test_attacks.py.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import ddpd
from test_grantor import ETH0, HOME, LAN, Hub, grantee, want

MINUTE_S, ASKS_A_S = 60, 50
LONG_S = 600                                 # of a grantor: what is once a second adds up
P = ddpd.parse_host


def tokens(rate: ddpd.Rate, seconds: float = MINUTE_S) -> float:
    """What a bucket that is full lets through in so long."""
    return rate.burst + seconds / rate.each_s


class Caused(Counter[str]):
    """What the effects of a node are to disk, kernel, log, resolver and hooks."""

    def __init__(self, node: ddpd.Node) -> None:
        super().__init__()
        self.node, self.kernel, self.file = node, dict[ddpd.Key, ddpd.Thing](), ddpd.LeaseFile()
        list(self.file.whole([]))

    def perform(self, effects: Iterable[ddpd.Effect]) -> None:
        for effect in effects:
            self[type(effect).__name__] += 1
        wanted = self.node.wanted
        if wanted.records:
            self["Save"] += len(wanted.records)
            self["bytes"] += sum(len(data) for writes in self.file.batch(wanted.records) for _, data in writes)
            wanted.records = {}
            self.node.grantor.unwritten.clear()
        if wanted.changed:
            gone, new = ddpd.plan(self.kernel, wanted.things, wanted.changed)
            wanted.changed.clear()
            self.kernel = dict(wanted.things)
            self["commands"] += len(gone) + len(new)


# ==== a grantee ==========================================================================


Asked = tuple[tuple[ddpd.Want, ...], dict[str, Any]]


def gives_back(n: int, _: random.Random) -> Asked:
    return ((want(0),), {}) if n % 2 else ((), {"releases": (0,)})


def wants_another_length(n: int, _: random.Random) -> Asked:
    return (want(0, f"::/{56 + n % 9}"),), {}


def wants_other_slots(n: int, _: random.Random) -> Asked:
    return tuple(want((n + k) % 256) for k in range(ddpd.MAX_SLOTS)), {}


def moves(n: int, _: random.Random) -> Asked:
    return (want(0),), {"source": P(f"2001:db8:e::{n % 50 + 2:x}")}


def is_two_machines(n: int, _: random.Random) -> Asked:
    return (want(0),), {"run": b"run%05d" % (n % 3)}


def wants_what_is_not_given(n: int, _: random.Random) -> Asked:
    return (want(n % 256, "::/48"), want((n + 1) % 256, "10.0.0.0/8")), {}


def says_nonsense(n: int, _: random.Random) -> Asked:
    return (want(0), want(0)), {"unknown": 5 * (n % 2)}


def does_all_of_it(_n: int, dice: random.Random) -> Asked:
    wants, more = dice.choice(TRICKS[:-1])(dice.randrange(1000), dice)
    return wants, more | dice.choice(TRICKS[:-1])(dice.randrange(1000), dice)[1]


TRICKS = [gives_back, wants_another_length, wants_other_slots, moves, is_two_machines, wants_what_is_not_given,
          says_nonsense, does_all_of_it]


def at_full_speed(trick: Callable[[int, random.Random], Asked]) -> tuple[Hub, Caused]:
    hub = Hub(HOME + grantee("alice", "limit = 4").replace("route = none\n", ""), who=["bob"])
    hub.grantor.links = LAN
    dice, caused = random.Random(221), Caused(hub.node)
    for n in range(MINUTE_S * ASKS_A_S):
        hub.boot += 1 / ASKS_A_S
        wants, more = trick(n, dice)
        hub.stamp += 1
        said: dict[str, Any] = {"source": P("2001:db8:e::2"), "run": b"run-----"} | more
        ask = ddpd.Ask(stamp=hub.stamp, wants=wants, **said)
        peer, path = hub.peer("alice"), ddpd.Path(said["source"].host, 5000, 0, ETH0)
        answer, effects = hub.grantor.handle_ask(peer, ask, path, hub.now)
        hub.node.look_at(peer, b"", answer, hub.now)
        peer.stamp = hub.stamp
        caused.perform(effects)
        if hub.node.deadline <= hub.boot:
            caused.perform(hub.node.on_timer(hub.now))
        if n % ASKS_A_S == 0:
            assert hub.get("bob", want(0)), "somebody else has to wait"
            caused.perform(hub.effects)
    return hub, caused


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: str(trick.__name__))
def test_a_known_grantee(trick: Callable[[int, random.Random], Asked]) -> None:
    hub, caused = at_full_speed(trick)
    peer, changes = hub.peer("alice"), tokens(ddpd.GRANTEE_CHANGES) + tokens(ddpd.Rate(5, 6.0))
    assert caused["Save"] <= 3.5 * changes, "what it had, what it has, what had to make room"
    assert caused["bytes"] <= 2 * ddpd.LINE * (caused["Save"] + ddpd.SPARE_LINES)
    assert caused["commands"] <= 2 * changes
    assert caused["Note"] <= 2.5 * changes + tokens(ddpd.GRANTEE_LINES)
    assert len(peer.living()) <= peer.agreement.limit * 2 + ddpd.MAX_DEPRECATED
    assert len(peer.leases) <= len(peer.living()) + ddpd.MAX_FORMER + ddpd.MAX_SLOTS
    assert len(hub.grantor.timers) <= 1000 + 2 * len(peer.leases)


# ==== a grantor ==========================================================================


Said = dict[str, Any]
P56 = ddpd.parse_prefix("2001:db8:42:1200::/56")


def granted(n: int = 0, preferred: int = 1800, valid: int = 3600, **more: Any) -> Said:
    prefix = P56._replace(first=P56.first + (n << 72))
    return {"grants": (ddpd.Grant(0, prefix, bool(preferred), preferred, valid, bytes(20)),), "times": (1, 1)} | more


def gives_another_prefix(n: int, _: random.Random) -> Said:
    return granted(n % 200)


def gives_two_in_turn(n: int, _: random.Random) -> Said:
    return granted(n % 2)


def says_other_lifetimes(n: int, _: random.Random) -> Said:
    return granted(valid=3600 + n % 2 * 100_000)


def says_other_options(n: int, _: random.Random) -> Said:
    return granted(dns=(P(f"2001:db8::{n + 1:x}"),), search=(f"n{n}.example",), mtu=1280 + n % 100)


def names_another_end(n: int, _: random.Random) -> Said:
    return granted(wg_key=bytes([n % 256]) * 32, wg_endpoint=f"n{n}.example:51820", wg_allowed=(P("2001:db8:7::1"),))


def prefers_for_a_moment(_n: int, _: random.Random) -> Said:
    return granted(preferred=1, times=(2, 3))


def gives_for_a_moment(_n: int, _: random.Random) -> Said:
    return granted(preferred=1, valid=1, times=(2, 3))


def deprecates_in_turn(n: int, _: random.Random) -> Said:
    return granted(preferred=n % 2 * 1800)


def revokes_in_turn(n: int, _: random.Random) -> Said:
    return granted() if n % 2 else {"refusals": (ddpd.Refusal(0, ddpd.Reason.REVOKED, 1, f"no {n}"),)}


def refuses_with_another_text(n: int, _: random.Random) -> Said:
    return {"refusals": (ddpd.Refusal(0, 1 + n % 5, 1, f"no {n}"),)}


def gives_what_nobody_believes(n: int, _: random.Random) -> Said:
    return {"grants": (ddpd.Grant(0, ddpd.Prefix(6, 0xFE80 << 112 | n << 72, 56), True, 60, 60, bytes(20)),)}


def says_that_it_is_stale(_n: int, _: random.Random) -> Said:
    return {"status": ddpd.Status.STALE}


def needs_more_and_more(n: int, _: random.Random) -> Said:
    return granted(need=512 + n)


def lies_as_it_likes(_n: int, dice: random.Random) -> Said:
    one, other = (dice.choice(LIES[:-1])(dice.randrange(100), dice) for _ in range(2))
    return one | other if dice.random() < 0.5 else one


LIES = [gives_another_prefix, gives_two_in_turn, says_other_lifetimes, says_other_options, names_another_end,
        prefers_for_a_moment, gives_for_a_moment, deprecates_in_turn, revokes_in_turn, refuses_with_another_text,
        gives_what_nobody_believes, says_that_it_is_stale, needs_more_and_more, lies_as_it_likes]


class Liar:
    """A grantor with a true key and true sessions, that says what it likes."""

    def __init__(self, lie: Callable[[int, random.Random], Said]) -> None:
        self.lie, self.dice, self.numbers = lie, random.Random(221), itertools.count()
        self.hub = Hub()
        self.hub.grantor.handle_ask = self.heard  # type: ignore[method-assign,assignment] # that is the lie
        text = (f"[grantor h]\nkey = {ddpd.show_key(self.hub.node.s.public)}\naddress = 2001:db8::1\n"
                "ask = ::/56 on br0\ndefault = dev eth0\n[tunnel wg0]\ngrantor = h\n")
        self.leaf = ddpd.Node(ddpd.read_config(text, "l"), bytes([1]) * 32, "boot", random.Random(3).randbytes)
        self.caused = Caused(self.leaf)

    def heard(self, _p: ddpd.Peer, ask: ddpd.Ask, *_: object) -> tuple[ddpd.Answer, list[Any]]:
        said: Said = {"status": ddpd.Status.OK} | self.lie(next(self.numbers), self.dice)
        return ddpd.Answer(stamp=ask.stamp, version=1, **said), []

    def perform(self, effects: list[ddpd.Effect]) -> None:
        todo = list(effects)
        while todo:
            effect = todo.pop(0)
            self.caused.perform([effect])
            assert self.caused["Call"] < 3 * LONG_S, "it spins"
            if isinstance(effect, ddpd.Lookup):
                todo += self.leaf.resolved("h", effect.host, (ddpd.Path("2001:db8::1", 0),), self.hub.now)
            elif isinstance(effect, ddpd.Call):
                todo += self.answered(self.leaf.compose("h", "2001:db8:e::2", self.hub.now))

    def answered(self, ask: bytes) -> list[ddpd.Effect]:
        said = self.hub.node.received(ask, ddpd.Path("2001:db8:e::2", 5000, 0, ETH0), self.hub.now)
        return [more for send in said if isinstance(send, ddpd.Send) for more in self.told(send.datagram)]

    def told(self, datagram: bytes) -> list[ddpd.Effect]:
        try:
            return self.leaf.received(datagram, ddpd.Path("2001:db8::1", 3373), self.hub.now, "h")
        except ddpd.Drop:
            return []

    def nudge(self) -> bytes:
        session = self.hub.peer("alice").session
        return session.seal(ddpd.padded(ddpd.encode(ddpd.Nudge()), 92)) if session else b""

    def lies(self) -> Caused:
        self.perform(self.leaf.start(self.hub.now))
        for _ in range(4 * LONG_S):
            self.hub.boot += 0.25
            if self.leaf.deadline <= self.hub.boot:
                self.perform(self.leaf.on_timer(self.hub.now))
            if nudge := self.nudge():
                self.perform(self.told(nudge))
        return self.caused


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: str(lie.__name__))
def test_a_grantor(lie: Callable[[int, random.Random], Said]) -> None:
    liar = Liar(lie)
    caused, leaf = liar.lies(), liar.leaf.grantees["h"]
    changes, asks = tokens(ddpd.GRANTOR_CHANGES, LONG_S), LONG_S + tokens(ddpd.GRANTOR_NUDGES, LONG_S)
    each = 1 + ddpd.MAX_DEPRECATED + 1                            # what a slot has, and what of it is over
    assert caused["Call"] <= asks, "T1 is a second at least"
    assert caused["Save"] <= each * changes + tokens(ddpd.GRANTOR_SAVES, LONG_S)
    assert caused["bytes"] <= 2 * ddpd.LINE * (caused["Save"] + ddpd.SPARE_LINES)
    assert caused["commands"] <= asks + 4 * each * changes, "addresses are told their lifetime whenever that is renewed"
    assert caused["Note"] <= each * changes + tokens(ddpd.GRANTOR_LINES, LONG_S) + tokens(ddpd.GRANTOR_NUDGES, LONG_S)
    assert caused["Hook"] <= 2 * changes + tokens(ddpd.GRANTOR_HOOKS, LONG_S)
    assert caused["Lookup"] <= 2 * (LONG_S / ddpd.LOOKUP_S) + changes
    assert len(leaf.held) < each and len(leaf.found) <= 2 and len(leaf.refused) <= 1
    assert len(liar.leaf.wanted.things) <= 4 * each
