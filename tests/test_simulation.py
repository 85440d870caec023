"""A whole network in one process: virtual clock, lossy links, restarts, no sleeping.

    hub0 [hub1]          grantors, each with its pool
      |     |
    leaf0 ... leaf3      grantees that ask each of them

The nodes are whole, the datagrams are real and so is the cryptography.  Only the shell is a fake:
a disk of bytes that may fail, a kernel of things, a mail of datagrams that are lost, late, doubled
or damaged.  What has to hold is checked after every step.  A failure is a seed, replayed for ever.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

import ddpd

SEEDS = int(os.environ.get("DDPD_SEEDS") or os.environ.get("SEEDS") or 500)
YEAR_S = 365 * 86400.0
EPOCH = 1_700_000_000.0                      # the true wall clock when a world begins
STORMY_S, CALM_S = 2400.0, 3000.0            # weather, then time to converge
LEASE_S = 600.0
TICK_S = 1e-6                                # beyond a deadline, whatever the clocks round
ROUNDING_S = 2.0                             # the lease file has whole seconds
MAX_A_SECOND = 250                           # things that may happen to one node in one second
ETH0 = bytes(16) + (1).to_bytes(4, "little")  # struct in6_pktinfo: interface 1
LAN = ddpd.parse_interface("2001:db8:e::fffe/64")


class Disk:
    """One lease file, as bytes.  What is not flushed may be lost; a write may fail half-way."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.data: bytes | None = None
        self.file = ddpd.LeaseFile()
        self.unflushed: list[tuple[int, bytes]] = []
        self.ours = self.full = False
        self.retry_at = float("inf")

    def read(self) -> tuple[list[ddpd.Record], list[ddpd.Damage]] | None:
        """As the shell's Store does: a file of our shape is written on."""
        if self.data is None:
            return None
        lines = self.data.decode("utf-8", "replace").split("\n")
        found, damage = ddpd.parse_lease_file(lines)
        self.file = ddpd.LeaseFile(max((r["serial"] for _, r in found.values()), default=0))
        self.ours = not damage and self.file.adopt(lines, found)
        return [record for _, record in found.values()], damage

    def rewrite(self, records: Iterable[ddpd.Record]) -> bool:
        if self.full:
            return False
        file = ddpd.LeaseFile(self.file.serial)
        self.data = b"".join(file.whole(records))
        self.file, self.ours, self.unflushed, self.retry_at = file, True, [], float("inf")
        return True

    def write(self, writes: Iterable[tuple[int, bytes]]) -> None:
        for offset, data in writes:
            old = (self.data or b"").ljust(offset)
            self.data = old[:offset] + data + old[offset + len(data):]

    def save(self, changes: dict[ddpd.Key, ddpd.Record | None]) -> bool:
        """False if it could not be written."""
        if not self.ours:
            return not changes
        first, after = self.file.batch(changes)
        if self.full:
            self.tear(first)
            self.ours = False
            return False
        self.write(self.unflushed + first)
        self.unflushed = after                # until the next flush; a power failure may lose it
        return True

    def crash(self) -> None:
        if self.dice.random() < 0.5:
            self.write(self.unflushed)
        self.unflushed, self.ours = [], False

    def tear(self, writes: list[tuple[int, bytes]]) -> None:
        for offset, data in writes[:1]:
            if offset < len(self.data or b""):
                self.write([(offset, data[:self.dice.randrange(len(data))])])


class Host:
    """One machine: a node, its disk, its kernel, its two clocks."""

    def __init__(self, world: World, name: str, address: str, config: str) -> None:
        self.world, self.name, self.address, self.config = world, name, address, config
        self.secret = world.dice.randbytes(32)
        self.disk = Disk(world.dice)
        self.kernel: dict[ddpd.Key, ddpd.Thing] = {}
        self.marked = False
        self.boots, self.booted_at, self.wall = 0, -world.dice.uniform(1, 1e5), EPOCH
        self.busy: Counter[int] = Counter()
        self.touched, self.jumped, self.due = True, False, -float("inf")
        self.node: ddpd.Node

    @property
    def now(self) -> ddpd.Now:
        return ddpd.Now(self.world.t - self.booted_at, self.world.t + self.wall)

    def world_time(self, boot: float) -> float:
        return boot + self.booted_at

    # -- start and end

    def start(self) -> None:
        self.node = ddpd.Node(ddpd.read_config(self.config, self.name), self.secret,
                              str(self.boots), self.world.dice.randbytes)
        self.node.links = self.node.grantor.links = ddpd.Links({1: "eth0"}, ((1, LAN),))
        self.restore()
        node, made = self.node, self.node.made
        self.kernel = {key: thing for key, thing in self.kernel.items()
                       if isinstance(thing, ddpd.Route) or key in made}
        node.wanted.changed |= self.kernel.keys() | node.wanted.things.keys()
        self.perform(node.start(self.now))

    def restore(self) -> None:
        read = self.disk.read()
        if read is not None:
            records, damage = read
            damage += self.node.restore(records, self.now)
            self.node.recover(damage if self.marked else [], False, self.now)
        elif self.marked:
            self.node.recover([], True, self.now)
        changes: dict[ddpd.Key, ddpd.Record | None] = dict.fromkeys(self.node.outdated)
        if not self.disk.save(changes | {("run",): self.node.run_record(False, self.now)}):
            self.rewrite(clean=False)

    def rewrite(self, clean: bool) -> None:
        written = self.disk.rewrite(self.node.records(clean, self.now))
        self.node.grantor.disk_full = not written
        if not written:
            self.disk.retry_at = self.now.boot + ddpd.RETRY_DISK_S

    def restart(self, clean: bool, reboot: bool) -> None:
        """The program, or the whole machine, ends and starts."""
        if clean:
            self.rewrite(clean=True)           # if the disk is full, this was a crash
        self.disk.crash()
        if reboot:
            self.boots, self.booted_at = self.boots + 1, self.world.t - 20.0
            self.kernel = {}
        self.start()
        if reboot and self.jumped:
            for held in (held for g in self.node.grantees.values() for held in g.held):
                self.world.provisional[self.name, held.prefix] = self.world_time(held.valid_until)

    def worn(self) -> bool:
        """A lease that lived through two crashes, as the file has it, is over by rule: not what is tested here."""
        found, _ = ddpd.parse_lease_file((self.disk.data or b"").decode("utf-8", "replace").split("\n"))
        epoch = found[("run",)][1]["epoch"] if ("run",) in found else 0
        living = [lease.id for peer in self.node.grantor.peers.values() for lease in peer.living()]
        return any(key in found and found[key][1]["epoch"] != epoch for key in living)

    # -- effects, in the shell's order

    def perform(self, effects: list[ddpd.Effect]) -> None:
        self.touched = True
        lost = self.save()
        if self.node.wanted.changed:
            self.install()
        for effect in effects:
            if isinstance(effect, ddpd.Send) and not lost:
                self.world.post(self, effect.datagram, effect.path)
            elif isinstance(effect, ddpd.Call):
                self.call(effect.grantor)
            elif isinstance(effect, ddpd.Lookup):
                self.look_up(effect)

    def save(self) -> bool:
        """True: something was promised that could not be written."""
        grantor, records = self.node.grantor, self.node.wanted.records
        self.node.wanted.records = {}
        if not records:
            return False
        if self.put(records):
            self.marked |= any(key[0] == "granted" for key in records)
            grantor.unwritten.clear()
            return False
        lost = bool(grantor.unwritten)
        grantor.unsaved()
        self.node.wanted.records = {}
        return lost

    def put(self, changes: dict[ddpd.Key, ddpd.Record | None]) -> bool:
        written = self.disk.save(changes)
        if not written:
            self.disk.retry_at = min(self.disk.retry_at, self.now.boot + ddpd.RETRY_DISK_S)
        return written

    def install(self) -> None:
        wanted, made = self.node.wanted, self.node.made
        gone, new = ddpd.plan(self.kernel, wanted.things, wanted.changed)
        wanted.changed.clear()
        for thing in gone:
            del self.kernel[thing.id]
            ours = made.pop(thing.id, None)
            if ours is not None:
                self.put({ddpd.key_of(ours.record()): None})
        for thing in new:
            if not isinstance(thing, ddpd.Route):
                made[thing.id] = thing
                record = thing.record()
                self.put({ddpd.key_of(record): record})
            self.kernel[thing.id] = thing

    def call(self, grantor: str) -> None:
        place = self.node.grantees[grantor].place()
        if place is not None:
            datagram = self.node.compose(grantor, self.address, self.now)
            self.world.post(self, datagram, place)

    def look_up(self, effect: ddpd.Lookup) -> None:
        paths = (ddpd.Path(effect.host, 0),)
        self.perform(self.node.resolved(effect.grantor, effect.host, paths, self.now))

    # -- events

    def hear(self, datagram: bytes, path: ddpd.Path, grantor: str) -> None:
        self.touched = True
        self.busy[int(self.world.t)] += 1
        try:
            self.perform(self.node.received(datagram, path, self.now, grantor))
        except ddpd.Drop:
            pass

    def wake(self) -> None:
        if not self.touched and self.world.t < self.due:
            return
        self.touched = True
        if self.disk.retry_at <= self.now.boot:
            self.rewrite(clean=False)
        if self.node.deadline <= self.now.boot:
            self.busy[int(self.world.t)] += 1
            self.perform(self.node.on_timer(self.now))
            assert self.node.deadline > self.now.boot, f"{self.name}: the deadline does not move"
        self.due = self.world_time(min(self.node.deadline, self.disk.retry_at))


@dataclass(frozen=True)
class Belief:
    """A lease that a grantee believes in, in the world's time."""

    leaf: Host
    hub: Host
    held: ddpd.Held

    def __str__(self) -> str:
        left = self.held.valid_until - self.leaf.now.boot
        return f"{self.leaf.name} slot {self.held.slot} {self.held.prefix} for {left:.1f} s"

    @property
    def until(self) -> float:
        return self.leaf.world_time(self.held.valid_until)


class World:
    """Everything about one seed; also what its size is, where nobody says."""

    lifetime = LEASE_S

    def __init__(self, seed: int, hubs: int = 0, leaves: int = 0) -> None:
        dice = self.dice = random.Random(seed)
        self.t, self.sent, self.loss, self.ends = 0.0, 0, 0.3, 0.0
        self.mail: list[tuple[float, int, Host, bytes, ddpd.Path, str]] = []
        self.provisional: dict[tuple[str, ddpd.Prefix], float] = {}
        self.apart: set[tuple[Host, ddpd.Prefix]] = set()      # beliefs that have been compared with each other
        self.scarce = dice.random() < 0.2    # fewer prefixes than who wants one
        self.length = dice.choice([60, 62, 64])
        self.hubs = [Host(self, f"hub{n}", f"2001:db8:f::{n + 1}", "")
                     for n in range(hubs or (1 if dice.random() < 0.6 else 2))]
        self.leaves = [Host(self, f"leaf{n}", f"2001:db8:e::{n + 1}", "")
                       for n in range(leaves or dice.randint(2, 4))]
        self.hosts = [*self.hubs, *self.leaves]
        self.pool = dict.fromkeys(self.hubs, 0)
        self.slots = dict.fromkeys(self.leaves, 1)
        for host in self.hosts:
            self.configure(host)
            host.start()

    # -- configuration

    def pool_prefix(self, hub: Host) -> str:
        bits = self.length - (1 if self.scarce else 4)
        block = 0x4000 + 0x100 * self.hubs.index(hub) + self.pool[hub]
        return f"2001:db8:{block:x}::/{bits}"

    def key(self, host: Host) -> str:
        return ddpd.show_key(ddpd.keypair(host.secret).public)

    def configure(self, host: Host) -> None:
        host.config = self.hub_text(host) if host in self.hubs else self.leaf_text(host)

    def hub_text(self, hub: Host) -> str:
        leaves = "".join(f"[grantee {leaf.name}]\nkey = {self.key(leaf)}\npools = p\nlimit = 3\n"
                         for leaf in self.leaves)
        return (f"[pool p]\nprefix = {self.pool_prefix(hub)}\ngive = /{self.length}-/64\n"
                f"lifetime = {int(self.lifetime)}\ndns = 2001:db8::53\n{leaves}")

    def leaf_text(self, leaf: Host) -> str:
        lines = "\n  ".join([f"::/{self.length} on br0", "::/64"][:self.slots[leaf]])
        return "".join(f"[grantor {hub.name}]\nkey = {self.key(hub)}\naddress = {hub.address}\n"
                       f"ask = {lines}\ndefault = dev eth0\n" for hub in self.hubs)

    # -- mail

    def post(self, sender: Host, datagram: bytes, path: ddpd.Path) -> None:
        if self.dice.random() < self.loss:
            return
        for _ in range(2 if self.loss and self.dice.random() < 0.1 else 1):
            late = 4.0 if self.loss and self.dice.random() < 0.05 else 0.1
            self.sent += 1
            to = next(host for host in self.hosts if host.address == path.host)
            asked = sender.name if to in self.leaves else ""
            back = ddpd.Path(sender.address, 5000, 0, b"" if asked else ETH0)
            arrival = self.t + self.dice.expovariate(1 / late)
            heapq.heappush(self.mail, (arrival, self.sent, to, self.spoilt(datagram), back, asked))

    def spoilt(self, datagram: bytes) -> bytes:
        if not self.loss or self.dice.random() > 0.03:
            return datagram
        at = self.dice.randrange(len(datagram))
        return datagram[:at] + bytes([datagram[at] ^ 1 << self.dice.randrange(8)]) + datagram[at + 1:]

    # -- weather

    def crash(self, host: Host) -> None:
        host.disk.full &= not host.worn()
        host.restart(clean=host.worn(), reboot=self.dice.random() < 0.3)

    def lose(self, host: Host) -> None:
        host.disk.data, host.disk.unflushed = None, []
        host.restart(clean=False, reboot=False)

    def jump(self, host: Host) -> None:
        host.jumped, host.wall = True, self.dice.choice([EPOCH, -self.t, EPOCH + 10 * YEAR_S, EPOCH - 10 * YEAR_S])

    def renumber(self, hub: Host) -> None:
        self.pool[hub] = (self.pool[hub] + 1) % 2
        self.configure(hub)
        hub.perform(hub.node.reconfigure(ddpd.read_config(hub.config, hub.name), hub.now))

    def resize(self, leaf: Host) -> None:
        self.slots[leaf] = 3 - self.slots[leaf]
        self.configure(leaf)
        leaf.perform(leaf.node.reconfigure(ddpd.read_config(leaf.config, leaf.name), leaf.now))

    def give_back(self, leaf: Host) -> None:
        leaf.perform(leaf.node.operate(ddpd.Event.RELEASE, "", leaf.now))

    def want_again(self, leaf: Host) -> None:
        leaf.perform(leaf.node.operate(ddpd.Event.NUDGED, "", leaf.now))

    def restart(self, host: Host) -> None:
        host.disk.full &= not host.worn()
        host.restart(clean=True, reboot=self.dice.random() < 0.5)

    def fill(self, host: Host) -> None:
        host.disk.full = not host.disk.full

    def weather(self) -> None:
        """Something happens to somebody."""
        for host in self.hosts:
            host.touched = True
        hub, leaf = self.dice.choice(self.hubs), self.dice.choice(self.leaves)
        storms = [(self.restart, hub), (self.restart, leaf), (self.crash, hub), (self.crash, leaf),
                  (self.lose, hub), (self.lose, leaf), (self.jump, hub), (self.jump, leaf), (self.fill, hub),
                  (self.fill, leaf), (self.give_back, leaf), (self.resize, leaf), (self.want_again, leaf),
                  *[(self.renumber, hub)] * 2]
        storm, host = self.dice.choice(storms)
        if host in self.hosts:
            storm(host)

    # -- running

    def step(self, until: float) -> None:
        self.t = max(self.t, min(until, *(host.due for host in self.hosts), *(m[0] for m in self.mail[:1])) + TICK_S)
        while self.mail and self.mail[0][0] <= self.t:
            _, _, to, datagram, path, grantor = heapq.heappop(self.mail)
            self.deliver(to, datagram, path, grantor)
        for host in self.hosts:
            host.wake()
        self.check()
        for host in self.hosts:
            host.touched = False

    def deliver(self, to: Host, datagram: bytes, path: ddpd.Path, grantor: str) -> None:
        to.hear(datagram, path, grantor)

    def run(self, until: float) -> None:
        while self.t < until:
            self.step(until)

    def clear_up(self) -> None:
        """The weather ends: whoever gave back wants again, disks work, nothing is lost."""
        self.loss = 0.0
        for host in self.hosts:
            host.disk.full = False
        for leaf in self.leaves:
            self.want_again(leaf)

    # -- what has to hold, always

    def beliefs(self) -> Iterator[Belief]:
        """But for what is provisional, where the wall clock lies."""
        for leaf in self.leaves:
            for hub in self.hubs:
                grantee = leaf.node.grantees[hub.name]
                for held in grantee.held:
                    belief = Belief(leaf, hub, held)
                    unsure = belief.until <= self.provisional.get((leaf.name, held.prefix), -1.0) + ROUNDING_S
                    if not unsure:
                        yield belief

    def check(self) -> None:
        """Of who did nothing only what depends on the time."""
        touched = [host for host in self.hosts if host.touched]
        for hub in self.hubs:
            if hub.touched:
                check_promises(hub)
        beliefs = list(self.beliefs())
        check_apart([belief for belief in beliefs if (belief.leaf, belief.held.prefix) not in self.apart], beliefs)
        self.apart = {(belief.leaf, belief.held.prefix) for belief in beliefs}
        for belief in beliefs:
            if belief.leaf.touched or belief.hub.touched:
                check_remembered(belief, self.t)
        for host in touched:
            check_kernel(host)
            assert host.busy[int(self.t)] < MAX_A_SECOND, f"{host.name} spins"
        for leaf in self.leaves:
            for grantee in leaf.node.grantees.values():
                check_grantee(leaf, grantee)


def check_promises(hub: Host) -> None:
    living = [lease.prefix for peer in hub.node.grantor.peers.values() for lease in peer.living()]
    for a, b in itertools.pairwise(sorted(living)):      # what lies within another comes right after
        assert not a.overlaps(b), f"{hub.name} promised {a} and {b}"
    for prefix in living:
        inside = any(pool.prefix.holds(prefix) for pool in hub.node.config.pools)
        assert not (inside and hub.node.grantor.stock.is_free(prefix)), f"{prefix} is leased, and free"


def check_apart(news: list[Belief], beliefs: list[Belief]) -> None:
    for a, b in itertools.product(news, beliefs):
        if a.leaf is not b.leaf:
            assert not a.held.prefix.overlaps(b.held.prefix), f"{a}, and {b}"


def check_remembered(belief: Belief, t: float) -> None:
    """What a grantee holds, the grantor has in its table for at least as long; or it recovers."""
    grantor = belief.hub.node.grantor
    if grantor.recovering_until > belief.hub.now.boot or belief.until - t < ROUNDING_S:
        return
    peer = grantor.peers.get(belief.leaf.node.s.public)
    until = [belief.hub.world_time(lease.valid_until) for lease in (peer.living() if peer else [])
             if lease.prefix == belief.held.prefix]
    assert until and until[0] >= belief.until - ROUNDING_S, f"t={t:.1f}: {belief.hub.name} forgot {belief}"


def check_kernel(host: Host) -> None:
    node = host.node
    assert host.kernel == node.wanted.things, f"{host.name}: the kernel differs from what is wanted"
    things = [thing for grantee in node.grantees.values() for thing in grantee.things()]
    things += [ddpd.Route(lease.prefix, ddpd.MAIN, lease.reach)
               for peer in node.grantor.peers.values() for lease in peer.living() if lease.reach]
    assert set(host.kernel.values()) == set(things), f"{host.name}: the kernel differs from belief"


def check_grantee(leaf: Host, grantee: ddpd.Grantee) -> None:
    for held in grantee.held:
        assert held.valid_until > leaf.now.boot, f"{leaf.name} holds {held.prefix}, which is over"
    current = [held.slot for held in grantee.held if held.current]
    assert len(current) == len(set(current)), f"{leaf.name} has two preferred leases in a slot"


def satisfied(leaf: Host) -> bool:
    """Every line of every grantor has its lease."""
    return all(grantee.state is ddpd.State.BOUND
               and {held.slot for held in grantee.held if held.current} == set(grantee.slots.values())
               for grantee in leaf.node.grantees.values())


def stories(world: World) -> str:
    return "\n".join(f"{leaf.name} {name} {g.state} {g.held} {g.refused} {g.slots}"
                     for leaf in world.leaves for name, g in leaf.node.grantees.items())


@pytest.mark.parametrize("seed", range(SEEDS))
def test_weather(seed: int) -> None:
    world = World(seed)
    for moment in sorted(world.dice.uniform(0, STORMY_S) for _ in range(world.dice.randint(2, 12))):
        world.run(moment)
        world.weather()
        world.check()
    world.run(STORMY_S)
    world.clear_up()
    world.run(STORMY_S + CALM_S)
    if not all(map(satisfied, world.leaves)):                     # perhaps one is just renewing
        world.run(STORMY_S + CALM_S + 5)
    happy = [leaf for leaf in world.leaves if satisfied(leaf)]
    assert world.scarce or len(happy) == len(world.leaves), stories(world)
