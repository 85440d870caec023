"""What a pool gives when it is full, nearly full or broken: the one right prefix, or why not and until when.

    squares     the oracle: a pool as a row of squares, each of them somebody's or nobody's
    full        exactly full, a pool of one, the last /49, 65,536 /64s: in the space, then through the grantor
    histories   random operations on seven pools, compared after each of them
    dice        chi-squared over 20,000 allocations
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import NormalDist

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import ddpd
from test_grantor import KEYS, Hub, Pair, want

P = ddpd.parse_prefix
ANY = {4: "0.0.0.0", 6: "::"}
WHOLE = P("2001:db8:42::/48")
LOW, HIGH = P("2001:db8:42::/49"), P("2001:db8:42:8000::/49")


# ---- squares

class Squares:
    """A pool as a row of squares, each somebody's or nobody's; what is given are those in the regions."""

    def __init__(self, pool: ddpd.Prefix, longest: int, regions: tuple[ddpd.Prefix, ...] = ()) -> None:
        self.pool, self.longest, self.regions = pool, longest, regions or (pool,)
        self.shift = ddpd.WIDTH[pool.version] - longest
        self.row: list[ddpd.Prefix | None] = [None] * (1 << (longest - pool.length))

    def part(self, prefix: ddpd.Prefix) -> slice:
        first = (prefix.first - self.pool.first) >> self.shift
        return slice(first, first + (1 << (self.longest - prefix.length)))

    def at(self, length: int, where: int) -> ddpd.Prefix:
        """The prefix of that length that has the square."""
        where %= len(self.row)
        return ddpd.Prefix(self.pool.version, self.pool.first + (where << self.shift), self.longest).network(length)

    def is_free(self, prefix: ddpd.Prefix) -> bool:
        return not any(self.row[self.part(prefix)])

    def paint(self, prefix: ddpd.Prefix, whose: ddpd.Prefix | None) -> None:
        self.row[self.part(prefix)] = [whose] * (1 << (self.longest - prefix.length))

    def take(self, prefix: ddpd.Prefix) -> bool:
        free = self.is_free(prefix)
        if free:
            self.paint(prefix, prefix)
        return free

    def free(self, prefix: ddpd.Prefix) -> None:
        if set(self.row[self.part(prefix)]) == {prefix}:
            self.paint(prefix, None)

    def blocks(self, length: int) -> list[ddpd.Prefix]:
        return [block for region in self.regions if region.length <= length for block in subnets(region, length)]

    def free_blocks(self, length: int) -> list[ddpd.Prefix]:
        return [block for block in self.blocks(length) if self.is_free(block)]

    def drawable(self, length: int, shortest: int) -> list[ddpd.Prefix]:
        """Among broken blocks of the shortest length if one has room, else anywhere; in order."""
        broken = [block for block in self.blocks(shortest) if not self.is_free(block)]
        spare = [part for block in broken for part in subnets(block, length) if self.is_free(part)]
        return spare if spare and length > shortest else self.free_blocks(length)

    def free_fraction(self) -> float:
        given = [square for region in self.regions for square in self.row[self.part(region)]]
        return given.count(None) / len(given)


def subnets(whole: ddpd.Prefix, length: int) -> Iterator[ddpd.Prefix]:
    step = 1 << (ddpd.WIDTH[whole.version] - length)
    for first in range(whole.first, whole.first + whole.size, step):
        yield ddpd.Prefix(whole.version, first, length)


def filled(pool: ddpd.Prefix, taken: Iterable[ddpd.Prefix], regions: tuple[ddpd.Prefix, ...] = ()) -> ddpd.Space:
    space = ddpd.Space(pool, regions)
    for prefix in taken:
        assert space.take(prefix)
    return space


# ---- full: the space

@pytest.mark.parametrize(("pool", "length"), [
    ("10.0.0.7/32", 32), ("10.0.0.6/31", 32), ("10.0.0.0/24", 32), ("10.0.0.0/16", 24),
    ("2001:db8::/64", 64), ("2001:db8::1/128", 128), ("2001:db8::/55", 63), ("2001:db8:42::/48", 56)])
def test_every_block_is_drawn_once_and_then_none(pool: str, length: int) -> None:
    whole, dice = P(pool), random.Random(1)
    space, drawn = ddpd.Space(whole), list[ddpd.Prefix]()
    while (prefix := space.draw(length, whole.length, dice.randbytes)) is not None:
        assert space.take(prefix)
        drawn.append(prefix)
    assert sorted(drawn) == list(subnets(whole, length))
    assert space.free_blocks(length) == 0 and space.free_fraction() == 0.0


@pytest.mark.parametrize(("pool", "shortest", "shares"), [
    ("10.0.0.0/26", 32, 1), ("10.0.0.0/26", 32, 2), ("10.0.0.0/26", 32, 63), ("2001:db8:42::/48", 56, 7),
    ("2001:db8:42::/48", 64, 3), ("2001:db8:42::/56", 56, 1), ("2001:db8::/32", 48, 5)])
def test_shares_are_apart_and_make_up_the_pool(pool: str, shortest: int, shares: int) -> None:
    """And each is drawn to its end, and not beyond."""
    whole, dice = P(pool), random.Random(9)
    parts = [ddpd.share_of(whole, shortest, (own, shares)) for own in range(1, shares + 1)]
    ordered = [region for part in parts for region in part]
    assert ordered == sorted(ordered) and not any(a.overlaps(b) for a, b in itertools.pairwise(ordered))
    sizes = [sum(region.size for region in part) >> ddpd.WIDTH[whole.version] - shortest for part in parts]
    assert sum(sizes) == 1 << (shortest - whole.length) and max(sizes) - min(sizes) <= 1
    if sum(sizes) <= 256:
        for part, size in zip(parts, sizes, strict=True):
            space, drawn = ddpd.Space(whole, part), set[ddpd.Prefix]()
            while (prefix := space.draw(shortest, shortest, dice.randbytes)) is not None:
                assert space.take(prefix) and any(region.holds(prefix) for region in part)
                drawn.add(prefix)
            assert len(drawn) == size and space.free_fraction() == 0.0


@pytest.mark.parametrize("length", range(49, 57))
def test_the_one_free_block_is_found_at_any_length(length: int) -> None:
    dice = random.Random(length)
    last = dice.choice(list(subnets(WHOLE, length)))
    space = filled(WHOLE, [prefix for prefix in subnets(WHOLE, 56) if not last.holds(prefix)])
    for wanted in range(48, 57):
        drawn = space.draw(wanted, min(wanted, 49), dice.randbytes)
        assert (drawn is not None) == (wanted >= length) and (drawn is None or last.holds(drawn))


# ---- full: the grantor

Odd = Callable[[int], ddpd.Record]


class Crowd(Hub):
    """A grantor with as many grantees as its pools have prefixes: `g0`, `g1` and so on, and the three by name."""

    def __init__(self, text: str, grantees: int = 0, more: str = "limit = 256") -> None:
        self.keys = {**KEYS, **{f"g{n}": n.to_bytes(4, "big") + bytes([5]) * 28 for n in range(grantees)}}
        shared = f"pools = home\nroute = none\n{more}\n"
        super().__init__(text + "".join(f"[grantee {name}]\nkey = {ddpd.show_key(key)}\n{shared}"
                                        for name, key in self.keys.items() if name not in KEYS), more=more)
        self.runs = defaultdict(lambda: b"run-----")

    def peer(self, name: str) -> ddpd.Peer:
        peer = self.grantor.peer_of(self.keys[name])
        assert peer is not None
        return peer

    def fill(self, prefixes: Iterable[ddpd.Prefix], slots: int = 256, odd: Odd = lambda _n: {}) -> None:
        """As a start does, from a lease file that says they are leased: the n-th as `odd` has it."""
        self.fresh(name="alice")
        sample = next(record for record in self.node.records(True, self.now) if record["kind"] == "granted")
        shown = [ddpd.show_key(self.keys[f"g{n}"]) for n in range(len(self.keys) - len(KEYS))]
        records = [{**sample, "key": shown[n // slots], "slot": n % slots, "prefix": str(prefix), **odd(n)}
                   for n, prefix in enumerate(prefixes)]
        self.reborn()
        assert self.node.restore(records, self.now) == []

    @property
    def pool(self) -> ddpd.Pool:
        return self.node.config.pools[0]

    @property
    def version(self) -> int:
        return self.pool.prefix.version

    @property
    def length(self) -> int:
        return self.pool.give[-1]

    def fresh(self, *wants: ddpd.Want, name: str = "bob") -> list[ddpd.Prefix]:
        return self.get(name, *wants or (want(0, f"{ANY[self.version]}/{self.length}"),))

    def refusal(self, text: str, name: str = "bob", slot: int = 0) -> ddpd.Refusal:
        """Refused because it is full, and told so."""
        answer = self.ask(name, want(slot, text))
        refusal, = answer.refusals
        assert not any(grant.slot == slot and grant.current for grant in answer.grants)
        assert refusal.slot == slot and refusal.reason == ddpd.Reason.FULL
        assert f"no /{P(text).length} is free" in refusal.text and 60 <= refusal.again_s <= 3600
        return refusal


def pool_text(prefix: str, give: str, lifetime: str = "1h", more: str = "") -> str:
    return f"[pool home]\nprefix = {prefix}\ngive = {give}\nlifetime = {lifetime}\n{more}\n"


FULL_POOLS = [("10.0.0.7/32", "/32"), ("10.0.0.0/31", "/32"), ("10.0.0.0/24", "/28-/30"), ("2001:db8:42::/64", "/64"),
              ("2001:db8:42::/56", "/56-/64"), ("2001:db8:42::/48", "/64")]


@pytest.mark.parametrize("how", ["released", "expired"])
@pytest.mark.parametrize(("prefix", "give"), FULL_POOLS)
def test_who_is_refused_gets_the_freed_one_at_its_next_ask(prefix: str, give: str, how: str) -> None:
    """A pool of one, and 65,536 /64s of which one comes free."""
    hub = Crowd(pool_text(prefix, give, "30d"), 256)
    every = list(subnets(P(prefix), hub.length))
    free = random.Random(4).randrange(len(every))
    hub.fill(every, odd=lambda n: {"valid": 5000, "left": 5000} if (n, how) == (free, "expired") else {})
    assert sorted(hub.living()) == every
    text = f"{ANY[hub.version]}/{hub.length}"
    assert hub.refusal(text).again_s == 3600, "nobody's lease is over for a month"
    if how == "released":
        hub.ask(f"g{free // 256}", releases=(free % 256,))
    else:
        hub.later(4000)
        again_s = hub.refusal(text).again_s
        assert again_s in (1000, 1001)
        hub.later(again_s)
    assert hub.fresh() == [every[free]]
    assert hub.refusal(text, "carol").again_s == 3600
    assert sorted(hub.living()) == every


def test_a_49_among_56s_through_the_grantor() -> None:
    """The 56s fill one half before they break the other; then no /49 is left, until that one is given back."""
    hub = Crowd(pool_text("2001:db8:42::/48", "/49-/56"), 26)
    got: list[ddpd.Prefix] = []
    for n in range(26):
        got += hub.fresh(*[want(slot, "::/56") for slot in range(5 if n < 25 else 3)], name=f"g{n}")
    assert len(set(got)) == 128 and len({prefix.network(49) for prefix in got}) == 1
    used, spare = got[0].network(49), next(half for half in (LOW, HIGH) if not half.holds(got[0]))
    hub.later(30)
    assert hub.fresh(want(0, "::/49")) == [spare]
    hub.refusal("::/56", "carol")
    hub.refusal("::/49", "carol")
    hub.ask("bob", releases=(0,))
    breaker, = hub.fresh(want(0, "::/56"), name="carol")
    assert spare.holds(breaker) and not used.holds(breaker)
    hub.refusal("::/49", "bob")
    hub.ask("carol", releases=(0,))
    assert hub.fresh(want(0, "::/49")) == [spare]


@pytest.mark.parametrize("own", [1, 2])
def test_a_share_is_full_though_the_other_is_free(own: int) -> None:
    """The other is a twin's to give."""
    hub = Crowd(pool_text("2001:db8:42::/56", "/60-/64", more=f"share = {own}/2"), 26)
    got: set[ddpd.Prefix] = set()
    for n in range(26):
        got.update(hub.fresh(*[want(slot) for slot in range(5 if n < 25 else 3)], name=f"g{n}"))
    mine, = hub.pool.regions
    assert sorted(got) == list(subnets(mine, 64)) and mine.length == 57
    for text in ("::/64", "::/60"):
        hub.refusal(text)


@pytest.mark.parametrize("give", ["/63-/64", "/64"])
def test_a_pool_of_one_goes_from_hand_to_hand(give: str) -> None:
    """Whoever holds it keeps it by renewing; the lease that is over is the next one's at the first ask."""
    whole = "2001:db8:42::/64" if give == "/64" else "2001:db8:42::/63"
    hub = Crowd(pool_text(whole, give))
    text = "::/" + give[-2:] if give == "/64" else "::/63"
    first, = hub.fresh(want(0, text), name="alice")
    for holder, waits in [("alice", "bob"), ("bob", "carol"), ("carol", "alice")]:
        hub.later(1000.25)
        assert hub.fresh(want(0, text), name=holder) == [first]
        hub.later(1799.5)
        again_s = hub.refusal(text, waits).again_s
        assert again_s == 1801, "what is left of an hour, and not a moment too early"
        hub.later(again_s)
        assert hub.fresh(want(0, text), name=waits) == [first]


def test_when_to_try_again_is_when_the_next_lease_is_over() -> None:
    """Not when the lease is over that would have been the next, had it not been renewed."""
    hub = Crowd(pool_text("2001:db8:42::/62", "/64"), 4)
    for n in range(4):
        hub.fresh(name=f"g{n}")
        hub.later(100)
    assert hub.refusal("::/64").again_s in (3200, 3201)
    hub.fresh(name="g0")
    assert hub.refusal("::/64").again_s in (3300, 3301)
    second, = hub.peer("g1").living()
    hub.later(3300)
    assert hub.fresh() == [second.prefix]
    assert hub.refusal("::/64", "carol").again_s in (100, 101)
    hub.ask("g2", releases=(0,))
    hub.fresh(name="alice")
    assert hub.refusal("::/64", "carol").again_s in (200, 201), "and what is forgotten has no end"


def test_a_grantee_that_was_refused_comes_back_by_itself() -> None:
    """In datagrams: it is told when, is back then, and installs what was freed meanwhile."""
    pair = Pair(pool_text("2001:db8:42::/64", "/64"))
    pair.hub.ask("bob", want(0))
    pair.hub.later(1000)
    pair.trip()
    assert pair.held == set()
    refusal, = pair.leaf.grantees["h"].refused.values()
    assert refusal.reason == ddpd.Reason.FULL and refusal.again_s in (2600, 2601)
    waited = 0
    while ddpd.Call("h") not in pair.leaf.on_timer(pair.now):
        waited += 1
        pair.hub.later(1)
    assert refusal.again_s <= waited <= refusal.again_s * 1.2
    pair.trip()
    assert pair.held == {"2001:db8:42::/64"}


# Each of these has one address that means a whole network where the next draw would look first.
@pytest.mark.parametrize(("prefix", "give", "taken", "left"), [
    ("10.0.0.0/29", "/30-/32", "10.0.0.1/32 10.0.0.2/31", {"10.0.0.4/32", "10.0.0.5/32", "10.0.0.6/32"}),
    ("10.0.0.0/29", "/30-/32", "10.0.0.4/31 10.0.0.6/32", {"10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"}),
    ("2001:db8::/125", "/126-/128", "2001:db8::1/128 2001:db8::2/127", {f"2001:db8::{n}/128" for n in range(4, 8)})])
@pytest.mark.parametrize("seed", range(10))
def test_the_network_address_does_not_stand_before_the_others(
        prefix: str, give: str, taken: str, left: set[str], seed: int) -> None:
    """It is the last that is free in its block: the next block is broken, and all of that is given."""
    hub = Crowd(pool_text(prefix, give, more=f"reserve = {taken}"))
    hub.grantor.rand = random.Random(seed).randbytes
    text = f"{ANY[hub.version]}/{hub.length}"
    assert {str(prefix) for prefix in hub.fresh(*[want(slot, text) for slot in range(len(left))])} == left
    hub.refusal(text, "carol")


def test_a_hopeless_ask_is_cheap_though_thousands_are_held_back() -> None:
    """Of 65,536 /64s a quarter is held back, and every /56 has living ones: four slots ask for one in vain."""
    hub = Crowd(pool_text("2001:db8:42::/48", "/56-/64"), 4096, "limit = 16")
    hub.fill(subnets(WHOLE, 64), 16, lambda n: {"state": "former"} if n % 4 == 0 else {})
    assert len(hub.grantor.former) == 16_384
    hub.refusal("::/56", "carol")
    first = next(iter(hub.grantor.former))
    begun = time.process_time()
    assert len(hub.refused("bob", *[want(slot, "::/56") for slot in range(4)])) == 4
    assert time.process_time() - begun < 0.2, "all others wait for it"
    assert hub.fresh(want(0)) == [first]


def truly_free(hub: Hub, pool: ddpd.Pool, length: int) -> list[ddpd.Prefix]:
    """What nobody has and nothing forbids; held back for somebody is not had."""
    taken = [*hub.living(), *pool.reserve]
    return [block for block in subnets(pool.prefix, length) if ddpd.is_leasable(block, pool.prefix)
            and not any(block.overlaps(other) for other in taken)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("prefix", "give", "reserve"), [
    ("10.0.0.0/28", "/30-/32", ""), ("10.0.0.0/27", "/28-/32", "10.0.0.8/30 10.0.0.17/32"),
    ("2001:db8:42::/60", "/61-/64", "2001:db8:42:3::/64"), ("2001:db8:42::/48", "/49-/53", "2001:db8:42:4000::/53"),
    ("2001:db8::/124", "/125-/128", ""), ("2001:db8::9/128", "/128", "")])
def test_full_is_said_when_it_is_full_and_only_then(prefix: str, give: str, reserve: str, seed: int) -> None:
    """Three grantees that change their minds, and a restart now and then."""
    dice, hub = random.Random(seed), Hub(pool_text(prefix, give, more=f"reserve = {reserve}"), more="limit = 6")
    pool, = hub.node.config.pools
    refused = 0
    for _ in range(150):
        name, slot, length = dice.choice(list(KEYS)), dice.randrange(6), dice.choice(pool.give)
        had = {lease.prefix for lease in hub.peer(name).leases if lease.slot == slot}
        free = truly_free(hub, pool, length)
        answer = hub.ask(name, want(slot, f"{ANY[pool.prefix.version]}/{length}"))
        got = [grant.prefix for grant in answer.grants if grant.current]
        assert all(prefix in free or prefix in had for prefix in got) and len(got) == 1 - len(answer.refusals)
        for refusal in answer.refusals:
            ends = [lease.valid_until for peer in hub.grantor.peers.values() for lease in peer.living()]
            assert refusal.reason == ddpd.Reason.FULL and free == []
            assert refusal.again_s <= max(60, min(3600, min(ends, default=math.inf) - hub.boot + 1))
            refused += 1
        if dice.random() < 0.3:
            hub.ask(name, releases=(dice.randrange(6),))
        hub.later(dice.choice([30, 60.5, 600]))
        if dice.random() < 0.02:
            hub.restart()
        assert all(not one.overlaps(other) for one, other in itertools.pairwise(sorted(hub.living())))
    assert refused > 5, "or nothing was tried"


# ---- histories

POOLS = [  # pool, longest length, whose share of the blocks of which length
    ("10.0.0.0/26",      32, (1, 1), 26),
    ("10.9.9.9/32",      32, (1, 1), 32),
    ("10.0.1.0/26",      32, (2, 3), 29),
    ("2001:db8:42::/48", 56, (1, 1), 48),
    ("2001:db8:1::/58",  64, (1, 1), 58),
    ("2001:db8:2::/56",  63, (3, 5), 60),
    ("2001:db8::/122",  128, (1, 1), 122)]
WHICH, LONGER, WHERE = st.integers(0, len(POOLS) - 1), st.integers(0, 8), st.integers(0, 255)


class Allocating(RuleBasedStateMachine):
    """Any order of taking, freeing and drawing, in pools and shares of pools that have holes from the start."""

    operations = 0

    @initialize(holes=st.lists(st.tuples(WHICH, LONGER, WHERE), max_size=20))
    def begin(self, holes: list[tuple[int, int, int]]) -> None:
        regions = [ddpd.share_of(P(pool), shortest, share) for pool, _, share, shortest in POOLS]
        self.oracles = [Squares(P(pool), longest, own)
                        for (pool, longest, _, _), own in zip(POOLS, regions, strict=True)]
        self.holes: list[set[ddpd.Prefix]] = [set() for _ in POOLS]
        self.taken: list[list[ddpd.Prefix]] = [[] for _ in POOLS]
        for which, longer, where in holes:
            prefix = self.prefix(which, longer, where)
            if self.oracles[which].take(prefix):
                self.holes[which].add(prefix)
        self.which = 0
        self.spaces = [ddpd.Space(oracle.pool, oracle.regions, sorted(rows))
                       for oracle, rows in zip(self.oracles, self.holes, strict=True)]

    def prefix(self, which: int, longer: int, where: int) -> ddpd.Prefix:
        """The pool that an operation is about is the one that is looked at after it."""
        Allocating.operations += 1
        self.which, oracle = which, self.oracles[which]
        return oracle.at(min(oracle.pool.length + longer, oracle.longest), where)

    def both_take(self, prefix: ddpd.Prefix) -> bool:
        free = self.spaces[self.which].is_free(prefix)
        taken = self.spaces[self.which].take(prefix)
        assert free == taken == self.oracles[self.which].take(prefix)
        return taken

    def both_free(self, prefix: ddpd.Prefix) -> None:
        self.spaces[self.which].free(prefix)
        self.oracles[self.which].free(prefix)

    @rule(which=WHICH, longer=LONGER, where=WHERE)
    def take(self, which: int, longer: int, where: int) -> None:
        prefix = self.prefix(which, longer, where)
        if self.both_take(prefix):
            self.taken[which].append(prefix)

    @rule(which=WHICH, place=WHERE)
    def free_what_was_taken(self, which: int, place: int) -> None:
        self.prefix(which, 0, 0)
        if self.taken[which]:
            self.both_free(self.taken[which].pop(place % len(self.taken[which])))

    @rule(which=WHICH, longer=LONGER, where=WHERE)
    def free_what_may_not_be_taken(self, which: int, longer: int, where: int) -> None:
        """Only exactly what was taken comes free; holes stay."""
        prefix = self.prefix(which, longer, where)
        if prefix not in self.holes[which]:
            self.both_free(prefix)
        if prefix in self.taken[which]:
            self.taken[which].remove(prefix)

    @rule(which=WHICH, longer=LONGER, shorter=LONGER, rand=st.integers(0, 2**32 - 1))
    def draw(self, which: int, longer: int, shorter: int, rand: int) -> None:
        least = POOLS[which][3]
        length = max(least, self.prefix(which, longer, 0).length)
        shortest = max(least, length - shorter)
        drawn = self.spaces[which].draw(length, shortest, random.Random(rand).randbytes)
        may = self.oracles[which].drawable(length, shortest)
        if drawn is None:
            assert not may
        else:
            assert drawn in may and self.both_take(drawn)
            self.taken[which].append(drawn)

    @invariant()
    def agree(self) -> None:
        space, oracle = self.spaces[self.which], self.oracles[self.which]
        for length in range(oracle.pool.length, oracle.longest + 1):
            assert space.free_blocks(length) == len(oracle.free_blocks(length))
        assert math.isclose(space.free_fraction(), oracle.free_fraction(), abs_tol=1e-9)
        assert set(oracle.row) - {None} == {*self.holes[self.which], *self.taken[self.which]}


def test_any_history_agrees_with_the_squares() -> None:
    Allocating.operations = 0
    run_state_machine_as_test(Allocating, settings=settings(max_examples=78, stateful_step_count=50))
    assert Allocating.operations >= 2000


def test_longer_histories_agree_with_the_squares() -> None:
    """By dice: what hypothesis knows how to shorten costs it more than all else."""
    dice, Allocating.operations = random.Random(100_000), 0
    place = partial(dice.randrange, len(POOLS))
    while Allocating.operations < 3_000:
        world = Allocating()
        world.begin([(place(), dice.randrange(9), dice.randrange(256)) for _ in range(dice.randrange(20))])
        for _ in range(200):
            which, longer, where = place(), dice.randrange(9), dice.randrange(256)
            steps: list[tuple[Callable[..., None], tuple[int, ...]]] = [
                (world.take, (which, longer, where)), (world.free_what_was_taken, (which, where)),
                (world.free_what_may_not_be_taken, (which, longer, where)),
                (world.draw, (which, longer, where % 9, dice.getrandbits(32)))]
            step, about = dice.choice(steps)
            step(*about)
            world.agree()


# ---- dice

Draw = Callable[[], ddpd.Prefix | None]
P_FALSE = 1e-4                                                # how often fair dice would be called loaded


def bound(degrees: int, p: float = P_FALSE) -> float:
    """The chi-squared that fair dice exceed with probability p (Wilson and Hilferty, 1931)."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + NormalDist().inv_cdf(1 - p) * math.sqrt(part)) ** 3


def chi_squared(seen: Counter[ddpd.Prefix | None], may: list[ddpd.Prefix]) -> float:
    assert seen.keys() <= set(may)
    expected = seen.total() / len(may)
    return math.fsum((seen[prefix] - expected) ** 2 / expected for prefix in may)


def is_uniform(draw: Draw, may: list[ddpd.Prefix], draws: int) -> bool:
    return chi_squared(Counter(draw() for _ in range(draws)), may) < bound(len(may) - 1)


class Broken:
    """A /56 that gives /60s to /64s: three holes, and leases of every length, some in the same block."""

    POOL, SHORTEST, LONGEST = P("2001:db8:42::/56"), 60, 64
    HOLES = ("2001:db8:42::/64", "2001:db8:42:13::/64", "2001:db8:42:80::/59")
    LEASES = ("2001:db8:42:20::/60", "2001:db8:42:30::/61", "2001:db8:42:44::/62", "2001:db8:42:48::/63",
              "2001:db8:42:5f::/64", "2001:db8:42:c0::/64", "2001:db8:42:c8::/64", "2001:db8:42:f0::/62")

    def __init__(self) -> None:
        taken = sorted(P(text) for text in self.HOLES + self.LEASES)
        self.space, self.oracle = ddpd.Space(self.POOL, (), taken), Squares(self.POOL, self.LONGEST)
        self.dice = random.Random(5)
        assert all(self.oracle.take(prefix) for prefix in taken)

    def may(self, length: int) -> list[ddpd.Prefix]:
        return self.oracle.drawable(length, self.SHORTEST)

    def draw(self, length: int) -> ddpd.Prefix | None:
        return self.space.draw(length, self.SHORTEST, self.dice.randbytes)


def test_allocations_are_uniform() -> None:
    """Of all lengths by turns, from a pool with holes and leases of mixed lengths; each is freed again."""
    pool, seen = Broken(), defaultdict[int, Counter[ddpd.Prefix | None]](Counter)
    for length in itertools.islice(itertools.cycle(range(60, 65)), 20_000):
        drawn = pool.draw(length)
        assert drawn is not None and pool.space.take(drawn)
        seen[length][drawn] += 1
        pool.space.free(drawn)
    chi2 = {length: chi_squared(seen[length], pool.may(length)) for length in seen}
    degrees = {length: len(pool.may(length)) - 1 for length in seen}
    assert all(chi2[length] < bound(degrees[length]) for length in seen), (chi2, degrees)
    assert sum(chi2.values()) < bound(sum(degrees.values()))
    assert sum(chi2.values()) > sum(degrees.values()) / 2, "nor smoother than dice are"


@pytest.mark.parametrize("share", [(1, 1), (2, 3), (3, 3)])
@pytest.mark.parametrize(("pool", "length", "shortest", "full"), [
    ("10.0.0.0/22", 32, 32, 0.96),         # nearly full: guessing misses, counting finds
    ("10.0.0.0/22", 32, 26, 0.96),         # the same among broken blocks
    ("2001:db8:42::/48", 56, 56, 0.0),     # empty: guessing hits
    ("2001:db8:42::/52", 60, 56, 0.0),     # empty: a block is broken
    ("2001:db8:42::/48", 56, 52, 0.6)])
def test_draws_are_uniform_however_full_the_pool(
        pool: str, length: int, shortest: int, full: float, share: tuple[int, int]) -> None:
    """Of a share too: what lies outside of it is never drawn, however free."""
    dice, whole = random.Random(6), P(pool)
    regions = ddpd.share_of(whole, shortest, share)
    every = list(subnets(whole, length))
    taken = dice.sample(every, int(len(every) * full))
    space, oracle = filled(whole, taken, regions), Squares(whole, length, regions)
    assert all(oracle.take(prefix) for prefix in taken)
    assert is_uniform(lambda: space.draw(length, shortest, dice.randbytes), oracle.drawable(length, shortest), 5_000)


def test_loaded_dice_are_noticed() -> None:
    """First fit, one time in a hundred."""
    pool = Broken()
    may = pool.may(64)
    assert not is_uniform(lambda: may[0] if pool.dice.random() < 0.01 else pool.draw(64), may, 20_000)


def test_a_living_pool_is_uniform_at_every_moment() -> None:
    """Where the drawn one stands each time among those that could be, in 16 bins.

    Each draw adds to every bin the chance that it had: dice that differ from draw to draw scatter no more than
    dice that are all alike, so the bound holds.
    """
    pool, dice, bins = Broken(), random.Random(8), 16
    seen, expected, taken = [0.0] * bins, [0.0] * bins, list[ddpd.Prefix]()
    for _ in range(5000):
        length = dice.randint(60, 64)
        may = pool.may(length)
        if len(taken) > dice.randrange(40) or not may:
            gone = taken.pop(dice.randrange(len(taken)))
            pool.space.free(gone)
            pool.oracle.free(gone)
            continue
        drawn = pool.draw(length)
        assert drawn is not None and pool.space.take(drawn) and pool.oracle.take(drawn)
        taken.append(drawn)
        seen[may.index(drawn) * bins // len(may)] += 1
        for n in range(len(may)):
            expected[n * bins // len(may)] += 1 / len(may)
    assert math.fsum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True)) < bound(bins - 1)


def test_what_the_grantor_gives_is_uniform() -> None:
    """Past holes, another's pin, another's lease and what is held back, 5,000 times."""
    holes = "reserve = 2001:db8:42::/64 2001:db8:42:80::/59"
    hub = Hub(pool_text("2001:db8:42::/56", "/60-/64", "30d", holes), ["bob", "carol"])
    pin = P("2001:db8:42:14::/62")
    hub.configure(hub.text + f"[grantee alice]\nkey = {ddpd.show_key(KEYS['alice'])}\npools = home\npin = {pin}\n", [])
    bobs = hub.get("bob", want(0, "::/61"), want(1, "::/64"))
    hub.ask("bob", releases=(1,))
    oracle = Squares(P("2001:db8:42::/56"), 64)
    assert all(oracle.take(prefix) for prefix in [*hub.node.config.pools[0].reserve, pin, *bobs])
    seen = Counter[ddpd.Prefix | None]()
    for _ in range(5_000):
        hub.boot += 61
        seen.update(hub.get("carol", want(0)))
        hub.grantor.forget(*hub.peer("carol").leases)
    may = oracle.drawable(64, 60)
    assert seen.total() == 5_000 and chi_squared(seen, may) < bound(len(may) - 1)
