"""Wall clocks that are wrong, and that jump in the middle of a lease: nothing comes of it.

    exit0:down ------ home0:up   home0:br-lan
    exit1:down ------ home1:up   home1:br-lan     and so on: pairs, each with its own clocks
    2001:db8:a::1     2001:db8:a::2

No clock of this machine is touched.  A daemon runs under FAKE, which adds to time.time() what a
file says at each call; for another boot, it is told another boot_id and a younger machine.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from lab import DDPD_PORT, Host, Lab, Recorder, eventually, needs

pytestmark = needs("ip link add dev eth0 type veth")

FAKE = '''
import builtins, io, os, runpy, sys, time
folder = sys.argv[1]
sys.argv = sys.argv[3:]                       # after the interpreter's name: the program
real_time, real_clock, real_open = time.time, time.clock_gettime, open
with real_open(folder + "/boot") as file:
    boot_id, younger = file.read().split()
def shifted():
    with real_open(folder + "/shift") as file:
        return real_time() + float(file.read())
def clock(which):
    return real_clock(which) - (float(younger) if which == time.CLOCK_BOOTTIME else 0)
def opened(name, *args, **ways):
    if name == "/proc/sys/kernel/random/boot_id":
        return io.StringIO(boot_id + chr(10))
    return real_open(name, *args, **ways)
time.time, time.clock_gettime, builtins.open = shifted, clock, opened
runpy.run_path(sys.argv[0], run_name="__main__")
'''

EXIT = """
[ddpd]
[pool six]
prefix   = 2001:db8:42::/48
give     = /56
lifetime = {lifetime}
[grantee home]
key   = @{home}
pools = six
"""

HOME = """
[grantor exit]
key     = @{exit}
address = [2001:db8:a::1]
ask     = ::/56 on br-lan
"""

PAIRS = 6
TEN_YEARS = 10 * 365.25 * 86400
STEPS: dict[str, Callable[[], float]] = {
    "1970":      lambda: 100 - time.time(),
    "+10 years": lambda: TEN_YEARS,
    "-10 years": lambda: -TEN_YEARS,
}


def launch(*daemons: Daemon) -> None:
    """Start them all, then wait for all."""
    for daemon in daemons:
        daemon.launch()
    for daemon in daemons:
        daemon.eventually(lambda daemon=daemon: shown(daemon), 20)       # type: ignore[misc]


def shown(daemon: Daemon, do: str = "status") -> dict[str, Any]:
    """What the daemon says; nothing while it starts."""
    return daemon.told(do) or {}


def held(daemon: Daemon) -> list[str]:
    return [row["prefix"] for row in shown(daemon)["held"] if row["prefix"]]


class Clock:
    """The wall clock, and the boot, of one daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fake.py").write_text(FAKE)
        self.shift(0)
        self.boot("a" * 8, 0)

    def shift(self, seconds: float) -> None:
        """The wall clock is as wrong as this, from now on."""
        print(f"[+] {self.folder.name}: wall clock {seconds:+.0f} s")
        self.put("shift", repr(seconds))

    def boot(self, boot_id: str, younger: float) -> None:
        self.put("boot", f"{boot_id} {younger}")

    def reboot(self) -> None:
        """Another boot, half a minute ago; it counts when the daemon starts."""
        self.boot("b" * 8, time.clock_gettime(time.CLOCK_BOOTTIME) - 30)

    def put(self, name: str, text: str) -> None:
        new = self.folder / f"{name}.new"
        new.write_text(text)
        os.replace(new, self.folder / name)

    def wrap(self) -> tuple[str, ...]:
        return (sys.executable, str(self.folder / "fake.py"), str(self.folder))


@dataclass
class Pair:
    """A grantor and a grantee, their clocks, and the wire between."""

    exit_host: Host
    home_host: Host
    exit_clock: Clock
    home_clock: Clock
    wire: Recorder
    prefix: str = ""
    expected: float = 0.0                     # when a lease should be over
    gone: float = 0.0                         # when it was

    def prepare(self, lifetime: str) -> None:
        names = {"exit": self.exit_host.name, "home": self.home_host.name}
        self.exit = self.exit_host.ddpd(EXIT.format(lifetime=lifetime, **names),
                                        wrap=self.exit_clock.wrap())
        self.home = self.home_host.ddpd(HOME.format(**names), wrap=self.home_clock.wrap())

    def bound(self) -> None:
        self.home.eventually(self.home_valid)
        [self.prefix] = held(self.home)
        eventually(self.valid_lft, what="the address is there")
        eventually(self.routed, what="the route is there")

    def confirmed(self, at_least: int) -> None:
        """The same prefix, with so much time again, on both sides and in the kernel."""
        def is_so() -> bool:
            shown(self.home, "renew")
            return self.home_valid() >= at_least and self.exit_valid() >= at_least and self.valid_lft() >= at_least

        self.home.eventually(is_so, 10)
        assert held(self.home) == [self.prefix]

    def home_valid(self) -> int:
        """Seconds that the grantee says are left."""
        return int(max([row["valid"] for row in shown(self.home).get("held", [])
                        if row["prefix"]], default=0))

    def exit_valid(self) -> int:
        return int(max([row["valid"] for row in shown(self.exit).get("granted", [])], default=0))

    def valid_lft(self) -> int:
        """Seconds that the kernel gives the address on the LAN; 0 without one."""
        address = str(next(ipaddress.ip_network(self.prefix).hosts()))
        shown = self.home_host.look("-6 addr show dev br-lan")
        found = re.findall(rf"inet6 {re.escape(address)}/64 [^\n]*\n *valid_lft (\d+)sec", shown)
        return int(found[0]) if found else 0

    def routed(self) -> bool:
        """Does the grantor's kernel send the prefix to the grantee?"""
        return any(line.startswith(f"{self.prefix} via") for line in self.exit_host.routes())

    def installed(self) -> bool:
        return any(line.startswith(f"unreachable {self.prefix}")
                   for line in self.home_host.routes())

    def forget(self) -> None:
        """Whatever the test left, quicker than `clean`."""
        for daemon, host in ((self.exit, self.exit_host), (self.home, self.home_host)):
            daemon.kill()
            host.ip("-6 route flush table all proto 221")
        self.home_host.ip("-6 addr flush dev br-lan scope global")


def begin(pairs: list[Pair], lifetime: str) -> None:
    for pair in pairs:
        pair.prepare(lifetime)
    launch(*(pair.exit for pair in pairs))
    launch(*(pair.home for pair in pairs))
    for pair in pairs:
        pair.bound()


def cpu_s(daemon: Daemon) -> float:
    assert daemon.process is not None
    stat = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    names = [name for n in range(PAIRS) for name in (f"exit{n}*", f"home{n}*")]
    with Lab(*names) as lab:
        for n in range(PAIRS):
            lab.cable(f"exit{n}:down 2001:db8:a::1/64", f"home{n}:up 2001:db8:a::2/64")
            lab[f"home{n}"].bridge("br-lan")
        yield lab


@pytest.fixture
def pairs(world: Lab, tmp_path: Path) -> Iterator[list[Pair]]:
    made = [Pair(world[f"exit{n}"], world[f"home{n}"], Clock(tmp_path / f"exit{n}"),
                 Clock(tmp_path / f"home{n}"), world[f"exit{n}"].record("down"))
            for n in range(PAIRS)]
    yield made
    for pair in made:
        if hasattr(pair, "exit"):
            pair.forget()
    world.leave()


# ==== steps in the middle of a lease ==================================================

LIFETIME_S = 8                                # preferred 4 s, T1 2 s
PHASE_S = 3.0


def test_a_clock_that_jumps_changes_nothing(pairs: list[Pair]) -> None:
    """The grantor's, the grantee's, or both: machines that boot in 1970 and are then put right."""
    used = pairs[:3]
    moving = [[used[0].exit_clock], [used[1].home_clock],
              [used[2].exit_clock, used[2].home_clock]]
    for clock in chain(*moving):
        clock.shift(STEPS["1970"]())
    begin(used, f"{LIFETIME_S}s")
    cpu = [(cpu_s(pair.exit), cpu_s(pair.home)) for pair in used]
    for shift in (0.0, TEN_YEARS, -TEN_YEARS, STEPS["1970"](), 3600.0):
        for pair, clocks in zip(used, moving, strict=True):
            pair.wire.forget()
            for clock in clocks:
                clock.shift(shift)
        watch(used, PHASE_S)
        for pair in used:
            asks = [d.data for d in pair.wire.ddpd() if d.dport == DDPD_PORT]
            assert 1 <= len(asks) <= 5, "renewals go on, and nothing spins"
    for pair, before in zip(used, cpu, strict=True):
        assert held(pair.home) == [pair.prefix]
        assert [row["prefix"] for row in shown(pair.exit)["granted"]] == [pair.prefix]
        assert cpu_s(pair.exit) - before[0] < 2
        assert cpu_s(pair.home) - before[1] < 4                   # it runs `ip` at each renewal
        assert "Traceback" not in pair.exit.log() + pair.home.log()


def watch(pairs: list[Pair], seconds: float) -> None:
    """The address never goes, and never has more or less time than it should."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for pair in pairs:
            assert LIFETIME_S / 2 - 1 <= pair.valid_lft() <= LIFETIME_S
            assert pair.installed()
        time.sleep(0.2)


def test_a_lease_ends_when_it_should_whatever_the_clock_says(pairs: list[Pair]) -> None:
    """One side dies, the other's clock jumps; what the other holds lives on to its very end."""
    begin(pairs, f"{LIFETIME_S}s")
    lonely_exits, lonely_homes = pairs[:3], pairs[3:]
    for pair, step in zip(lonely_exits, STEPS.values(), strict=True):
        pair.home.kill()
        pair.expected = time.monotonic() + pair.exit_valid() + 0.5
        pair.exit_clock.shift(step())
    for pair, step in zip(lonely_homes, STEPS.values(), strict=True):
        pair.exit.kill()
        pair.expected = time.monotonic() + pair.home_valid() + 0.5
        pair.home_clock.shift(step())
    there = {pair.home_host.name: pair.routed for pair in lonely_exits}
    there |= {pair.home_host.name: pair.installed for pair in lonely_homes}
    end = time.monotonic() + LIFETIME_S + 4
    while time.monotonic() < end and not all(pair.gone for pair in pairs):
        for pair in pairs:
            if not pair.gone and not there[pair.home_host.name]():
                pair.gone = time.monotonic()
        time.sleep(0.1)
    for pair in pairs:
        assert pair.gone, "it never ended"
        assert abs(pair.gone - pair.expected) <= 2
    assert [pair.exit_valid() for pair in lonely_exits] == [0, 0, 0]
    assert [pair.home_valid() + pair.valid_lft() for pair in lonely_homes] == [0, 0, 0]


# ==== steps while a daemon is away ====================================================


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "killed"])
def test_a_grantee_that_restarts_has_its_lease_at_once(pairs: list[Pair], crash: bool) -> None:
    """The same boot, another wall clock, nobody to ask: the lease is there, to the second."""
    used = pairs[:3]
    begin(used, "60s")
    for pair in used:
        (pair.exit.kill if crash else pair.exit.stop)()
    ends = [time.monotonic() + pair.home_valid() for pair in used]
    for pair, step in zip(used, STEPS.values(), strict=True):
        (pair.home.kill if crash else pair.home.stop)()
        pair.home_clock.shift(step())
        pair.home_host.ip("addr flush dev br-lan scope global")
    launch(*(pair.home for pair in used))
    for pair, end in zip(used, ends, strict=True):
        eventually(pair.valid_lft)
        assert abs(pair.home_valid() - (end - time.monotonic())) <= 2
        assert abs(pair.valid_lft() - (end - time.monotonic())) <= 2
        assert pair.installed()
        pair.exit_clock.shift(STEPS["1970"]())                    # the grantor: knows no stamp now
    launch(*(pair.exit for pair in used))
    for pair in used:
        pair.confirmed(57)


def test_after_another_boot_a_lease_is_provisional(pairs: list[Pair]) -> None:
    """By the wall clock, which may be 1970's: ten minutes at most, and not what is over by it."""
    used = pairs[:4]
    begin(used, "1h")
    for pair in used:
        pair.exit.stop()
        pair.home.stop()
    for pair, shift in zip(used, (0.0, STEPS["1970"](), -TEN_YEARS, TEN_YEARS), strict=True):
        pair.home_host.ip("addr flush dev br-lan scope global")
        pair.home_host.ip(f"route del unreachable {pair.prefix} proto 221 metric 22100")
        pair.home_clock.shift(shift)
        pair.home_clock.reboot()
    launch(*(pair.home for pair in used))
    for pair in used[:3]:
        eventually(pair.valid_lft)
        assert 580 <= pair.home_valid() <= 600
        assert 570 <= pair.valid_lft() <= 600
        assert pair.installed()
    assert used[3].home_valid() == used[3].valid_lft() == 0
    assert not used[3].installed()
    launch(*(pair.exit for pair in used))
    for pair in used:
        pair.confirmed(3500)                                      # the whole hour


def test_a_grantor_that_restarts_keeps_the_time_that_is_left(pairs: list[Pair]) -> None:
    """Stopped: what was left, by the clock that counts.  Killed: the whole lifetime."""
    begin(pairs, "60s")
    for pair in pairs:
        pair.home.kill()
    time.sleep(4)
    stopped, killed = pairs[:3], pairs[3:]
    ends = [time.monotonic() + pair.exit_valid() for pair in stopped]
    for pair, step in zip(stopped, STEPS.values(), strict=True):
        pair.exit.stop()
        pair.exit_clock.shift(step())
    for pair, step in zip(killed, STEPS.values(), strict=True):
        pair.exit.kill()
        pair.exit_clock.shift(step())
    launch(*(pair.exit for pair in pairs))
    for pair, end in zip(stopped, ends, strict=True):
        assert pair.routed()
        assert abs(pair.exit_valid() - (end - time.monotonic())) <= 2
    for pair in killed:
        assert pair.routed()
        assert 54 <= pair.exit_valid() <= 60
    launch(*(pair.home for pair in pairs))                        # and come back to their prefix
    for pair in pairs:
        pair.confirmed(45)


def test_a_ticket_of_the_future_counts_as_one_of_now(pairs: list[Pair]) -> None:
    """The lease file is lost and the clock is behind: what is held is confirmed all the same."""
    used = pairs[:2]
    begin(used, "60s")
    for pair, step in zip(used, ("1970", "-10 years"), strict=True):
        pair.exit.stop()
        (pair.exit.dir / "leases.json").unlink()
        pair.exit_clock.shift(STEPS[step]())
    launch(*(pair.exit for pair in used))
    for pair in used:
        assert shown(pair.exit)["recovering"] > 0
        pair.confirmed(57)
