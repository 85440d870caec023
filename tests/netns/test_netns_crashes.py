"""Killed at any moment, again and again: no prefix twice, none forgotten, no address lost.

                 +--- one:up   br-lan
                 +--- two:up   br-lan
    exit:br -----+--- three:up br-lan
    192.0.2.1    +--- four:up  br-lan
"""

import json
import os
import random
import time
from collections.abc import Iterator
from ipaddress import ip_network
from itertools import combinations
from typing import Any

import pytest

from daemon import Daemon
from lab import Host, Lab, eventually, needs, public_of

pytestmark = needs("ip link add dev eth0 type veth")

NAMES = ("one", "two", "three", "four")
KILLS = 80
CHECK_EVERY = 40
SEED = int(os.environ.get("DDPD_SEED", "221"))

EXIT = """
[ddpd]
[pool six]
prefix   = 2001:db8:42:40::/58
give     = /60
lifetime = 30s
renew = 3s
[pool four]
prefix   = 10.64.0.0/22
give     = /24
lifetime = 30s
renew = 3s
""" + "\n".join(f"[grantee {name}]\nkey = @{name}\npools = six four" for name in NAMES)

GRANTEE = """
[grantor exit]
key     = @exit
address = 192.0.2.1
ask     = ::/60 on br-lan
          0.0.0.0/24 on br-lan
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """As many prefixes as grantees: a wrong choice must collide."""
    with Lab("exit*", *(f"{name}*" for name in NAMES)) as lab:
        for n, name in enumerate(NAMES, 2):
            lab.cable(f"exit:{name}", f"{name}:up 192.0.2.{n}/24")
            lab[name].bridge("br-lan")
        lab["exit"].bridge("br", *NAMES)
        lab["exit"].address("br", "192.0.2.1/24")
        yield lab


def crash(daemon: Daemon) -> None:
    assert daemon.process is not None and daemon.running(), f"{daemon.name} ended by itself"
    daemon.process.kill()
    daemon.process.wait()


def ours(host: Host) -> set[str]:
    """The prefixes that this grantee has made real."""
    return {line.split()[1] for line in host.routes() if line.startswith("unreachable")}


def overlapping(held: dict[str, set[str]]) -> list[tuple[str, str]]:
    return [(one, other) for one, other in combinations(held, 2)
            for a in held[one] for b in held[other]
            if ip_network(a).version == ip_network(b).version
            and ip_network(a).overlaps(ip_network(b))]


def promised(daemons: dict[str, Daemon]) -> bool:
    """All run, and what each grantee holds, preferred, the grantor's table has under its name."""
    shown = {name: status(daemon) for name, daemon in daemons.items()}
    table = {(row["grantee"], row["prefix"]) for row in shown["exit"].get("granted", [])}
    held = {(name, row["prefix"]) for name in NAMES for row in shown[name].get("held", [])
            if row["prefix"] and row["preferred"]}
    return len(held) == 2 * len(NAMES) and held <= table


def status(daemon: Daemon) -> dict[str, Any]:
    """Empty while it is not there yet."""
    return daemon.told("status") or {}


def forgotten(exit_: Daemon, held: dict[str, set[str]]) -> list[str]:
    """What a grantee has and the grantor's disk has not, under its key, at this moment."""
    lines = (exit_.dir / "leases.json").read_text().splitlines()
    return [f"{name}: {prefix}" for name, prefixes in held.items() for prefix in prefixes
            if not any(prefix in line and public_of(name) in line for line in lines)]


def look(lab: Lab, first: dict[str, set[str]]) -> None:
    """The same prefixes as ever, their addresses too."""
    for name, prefixes in first.items():
        assert ours(lab[name]) == prefixes, name
        shown = lab[name].look("-o addr show dev br-lan scope global").splitlines()
        assert len(shown) == 2, name


def test_killed_again_and_again(lab: Lab) -> None:
    """Every kill strikes one of the five at random; it comes back within a third of a second."""
    dice = random.Random(SEED)
    daemons = {name: lab[name].ddpd(EXIT if name == "exit" else GRANTEE)
               for name in ("exit", *NAMES)}
    for daemon in daemons.values():
        daemon.launch()
    eventually(lambda: promised(daemons), 15, "all are bound", every_s=0.5)
    first = {name: ours(lab[name]) for name in NAMES}
    assert overlapping(first) == []
    for kill in range(1, KILLS + 1):
        victim = daemons[dice.choice(list(daemons))]
        time.sleep(dice.random() * 0.3)
        crash(victim)
        time.sleep(dice.random() ** 3 * 0.3)
        victim.launch()
        print(f"[{kill}] {victim.name}")
        look(lab, first)
        assert forgotten(daemons["exit"], first) == []
        if kill % CHECK_EVERY == 0:
            eventually(lambda: promised(daemons), 10, "all is promised", every_s=0.5)
    assert json.loads((daemons["exit"].dir / "leases.json").read_text())      # still JSON
