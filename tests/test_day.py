"""A day of a provider with two exits: ten homes, one process, a virtual clock.

    hub0     hub1        exits: grantors, each with its pool; off for minutes, one or both
      |       |
    ==+=======+==        that loses, delays, doubles and damages
      |       |
    leaf0 .. leaf9       homes: grantees, each of which asks both

The world of test_simulation.py, larger and longer: 24 hours of weather (loss, reordering, restarts, crashes,
lost and full disks, wrong clocks, renumbering, exits that are switched off), everything that has to hold
checked after every step; then calm, in which every home gets its lease of each exit.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import pytest

import ddpd
from test_simulation import Host, World, satisfied, stories

EXITS, HOMES = 2, 10
HOUR_S = 3600.0
DAY_S, CALM_S = 24 * HOUR_S, 2 * HOUR_S
STORMS, OUTAGES = 240, 12                    # a day


class Day(World):
    """What breaks is mended within the hour: who has no lease has none to be wrong about."""

    lifetime = HOUR_S

    def __init__(self, seed: int) -> None:
        self.serial = itertools.count()
        self.plans: list[tuple[float, int, Callable[[Host], None], Host]] = []
        super().__init__(seed, EXITS, HOMES)

    def pool_prefix(self, hub: Host) -> str:
        """Room for all: 512 prefixes, in two halves between which a renumbering moves."""
        block = 0x4000 + 0x1000 * self.hubs.index(hub) + 0x800 * self.pool[hub]
        return f"2001:db8:{block:x}::/{self.length - 9}"

    # -- what will happen

    def later(self, delay: float, what: Callable[[Host], None], host: Host) -> None:
        heapq.heappush(self.plans, (self.t + delay, next(self.serial), what, host))

    def storm(self, _: Host) -> None:
        self.loss = self.dice.choice([0.02, 0.1, 0.3])
        self.weather()

    def give_back(self, leaf: Host) -> None:
        super().give_back(leaf)
        self.later(self.dice.uniform(60, HOUR_S), self.want_again, leaf)

    def fill(self, host: Host) -> None:
        """A disk that is full, for half an hour at most."""
        if not host.disk.full:
            host.disk.full = True
            self.later(self.dice.uniform(10, HOUR_S / 2), self.empty, host)

    def empty(self, host: Host) -> None:
        host.disk.full = False

    # -- exits that are off

    def off(self, hub: Host) -> None:
        """Cleanly, or by the plug.  What is under way to it is lost."""
        if hub not in self.hosts:
            return
        hub.disk.full &= not hub.worn()
        if hub.worn() or self.dice.random() < 0.5:
            hub.rewrite(clean=True)
        hub.disk.crash()
        self.hosts.remove(hub)
        self.mail = [letter for letter in self.mail if letter[2] is not hub]
        heapq.heapify(self.mail)
        self.later(self.dice.uniform(60, 900), self.on, hub)

    def on(self, hub: Host) -> None:
        self.hosts.insert(0, hub)
        hub.restart(clean=False, reboot=self.dice.random() < 0.5)

    def post(self, sender: Host, datagram: bytes, path: ddpd.Path) -> None:
        if any(host.address == path.host for host in self.hosts):
            super().post(sender, datagram, path)

    # -- the day

    def pass_by(self) -> None:
        for _ in range(STORMS):
            self.later(self.dice.uniform(0, DAY_S), self.storm, self.hubs[0])
        for _ in range(OUTAGES):
            self.later(self.dice.uniform(0, DAY_S), self.off, self.dice.choice(self.hubs))
        while self.plans:
            moment, _, happens, host = heapq.heappop(self.plans)
            self.run(moment)
            happens(host)
            self.check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_a_day(seed: int) -> None:
    world = Day(seed)
    world.pass_by()
    world.clear_up()
    world.run(world.t + CALM_S)
    assert [leaf.name for leaf in world.leaves if not satisfied(leaf)] == [], stories(world)
