"""The lease file: lost, damaged, cut short, edited by hand; and a disk that is full.

                 +--- one:up      (each asks for a /60; the pool has just enough for all)
    exit:br -----+--- two:up
    192.0.2.1    +--- three:up
                 +--- new:up
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon import Daemon
from lab import Lab, eventually, needs

pytestmark = needs("ip link add dev eth0 type veth")

OLD = ("one", "two", "three")
ALL = (*OLD, "new")

EXIT = """
[ddpd]
{}
[pool six]
prefix   = 2001:db8:42:40::/58
give     = /60
lifetime = 20s
""" + "\n".join(f"[grantee {name}]\nkey = @{name}\npools = six" for name in ALL)

GRANTEE = """
[grantor exit]
key     = @exit
address = 192.0.2.1
ask     = ::/60 on br-lan
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit*", *(f"{name}*" for name in ALL)) as lab:
        for n, name in enumerate(ALL, 2):
            lab.cable(f"exit:{name}", f"{name}:up 192.0.2.{n}/24")
            lab[name].bridge("br-lan")
        lab["exit"].bridge("br", *ALL)
        lab["exit"].address("br", "192.0.2.1/24")
        yield lab


def bound(grantee: Daemon) -> list[str]:
    return [row["prefix"] for row in grantee.status()["held"] if row["prefix"]]


def granted(exit_: Daemon) -> dict[str, str]:
    return {row["grantee"]: row["prefix"] for row in exit_.status()["granted"]}


def three(lab: Lab, lifetime: str = "20s") -> tuple[Daemon, dict[str, Daemon], dict[str, str]]:
    """A grantor with three grantees that are bound, and what each has."""
    exit_ = lab["exit"].ddpd(EXIT.format("").replace("20s", lifetime)).start()
    grantees = {name: lab[name].ddpd(GRANTEE).start() for name in OLD}
    for grantee in grantees.values():
        grantee.eventually(lambda g=grantee: bound(g))      # type: ignore[misc]  # a loop's lambda
    had = granted(exit_)
    assert sorted(had) == sorted(OLD)
    return exit_, grantees, had


def newcomer(lab: Lab) -> dict[str, str]:
    """What somebody new is told: {} when a prefix was granted, else reason and text."""
    done = lab["new"].ddpd(GRANTEE).command("ask", "--json")
    answer = json.loads(done.stdout)
    assert bool(answer["refused"]) == (done.returncode == 1)
    return dict(answer["refused"][0]) if answer["refused"] else {}


# ==== lost ============================================================================


def test_everybody_gets_the_same_again_after_the_lease_file_is_lost(lab: Lab) -> None:
    """Tickets bring all back; a newcomer waits until nobody can hold what the table has not."""
    exit_, grantees, had = three(lab, "12s")
    exit_.stop()
    (exit_.dir / "leases.json").unlink()
    exit_.start()
    assert newcomer(lab)["reason"].upper() == "RECOVERING"
    eventually(lambda: granted(exit_) == had, 10, "all came back with their tickets", every_s=0.3)
    for name, grantee in grantees.items():
        assert bound(grantee) == [had[name]]
    assert newcomer(lab)["reason"].upper() == "RECOVERING"
    eventually(lambda: newcomer(lab) == {}, 30, "recovery ends with a lifetime", every_s=1.0)
    now = granted(exit_)
    assert now.pop("new") not in had.values()
    assert now == had


# ==== damaged =========================================================================


def lines_with(text: str, prefix: str) -> list[int]:
    return [n for n, line in enumerate(text.split("\n")) if prefix.split("/")[0] in line]


def flip(text: str, n: int) -> str:
    """A line in which a few bytes have gone bad."""
    lines = text.split("\n")
    lines[n] = lines[n].replace('"', "\x00", 3)
    return "\n".join(lines)


def cut(text: str, n: int) -> str:
    """The file ends in the middle of this line; later lines are gone with it."""
    lines = text.split("\n")
    return "\n".join([*lines[:n], lines[n][: len(lines[n].rstrip()) // 2]])


def scribble(text: str, n: int) -> str:
    """Somebody edited it by hand and made a mistake."""
    lines = text.split("\n")
    lines[n] = "I moved this one, Bob"
    return "\n".join(lines)


@pytest.mark.parametrize("damage", [flip, cut, scribble])
def test_only_the_damaged_line_is_lost_and_it_is_named(
        lab: Lab, damage: Callable[[str, int], str]) -> None:
    exit_, grantees, had = three(lab)
    for grantee in grantees.values():
        grantee.kill()                           # they must not help
    exit_.stop()
    file = exit_.dir / "leases.json"
    text = file.read_text()
    assert json.loads(text)                      # JSON as it stands
    last = max(had, key=lambda name: lines_with(text, had[name])[-1])
    (at,) = lines_with(text, had[last])
    file.write_text(damage(text, at))
    logged = len(exit_.log())
    exit_.start()
    assert granted(exit_) == {name: prefix for name, prefix in had.items() if name != last}
    warning = exit_.log()[logged:]
    assert re.search(rf"leases\.json.*\b(line )?{at + 1}\b", warning), warning
    grantees[last].start()
    eventually(lambda: granted(exit_) == had, 15, "its ticket brings it back")


def test_a_line_edited_by_hand_is_believed(lab: Lab) -> None:
    """jq's output, one line or many: it is JSON, it is read."""
    exit_, grantees, had = three(lab)
    for grantee in grantees.values():
        grantee.kill()
    exit_.stop()
    file = exit_.dir / "leases.json"
    for indent in (None, 4):
        file.write_text(json.dumps(json.loads(file.read_text()), indent=indent) + "\n")
        exit_.start()
        assert granted(exit_) == had
        exit_.stop()


# ==== in time ==========================================================================


@needs("command -v strace")
def test_what_is_answered_is_on_the_disk_by_then(lab: Lab) -> None:
    """Whenever it is killed, nobody holds what the grantor does not know of."""
    exit_ = lab["exit"].ddpd(EXIT.format("")).start()
    assert exit_.process is not None
    process = Path(f"/proc/{exit_.process.pid}/status")
    trace = lab["exit"].start(f"strace -f -qq -s 9999 -e trace=pwrite64,fdatasync,sendmsg -p {exit_.process.pid}")
    eventually(lambda: "TracerPid:\t0\n" not in process.read_text())
    home = lab["one"].ddpd(GRANTEE).start()
    home.eventually(lambda: bound(home))
    [prefix] = bound(home)
    eventually(lambda: "sendmsg(" in trace.log())
    calls = trace.log().split("sendmsg(")[0].splitlines()         # all before the first answer
    written = [n for n, line in enumerate(calls) if "pwrite64(" in line and prefix in line]
    flushed = [n for n, line in enumerate(calls) if "fdatasync(" in line]
    assert written and flushed and written[0] < flushed[-1], calls


# ==== full ============================================================================


CROWD = [f"crowd{n}" for n in range(12)]
FULL_EXIT = """
[ddpd]
leases = {folder}/state/leases.json
[pool six]
prefix   = 2001:db8:4200::/40
give     = /60
lifetime = 60s
[grantee one]
key = @one
pools = six
""" + "\n".join(f"[grantee {name}]\nkey = @{name}\npools = six\nlimit = 16\nrate = 100/1s" for name in CROWD)
CROWD_ASK = "[grantor exit]\nkey = @exit\naddress = 192.0.2.1\nask = " + "\n  ".join(["::/60"] * 8)


def fill(folder: Path) -> Path:
    """Write until the disk has no byte left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return filler


def test_a_full_disk_refuses_new_leases_keeps_old_ones_and_recovers(lab: Lab) -> None:
    state = lab.folder / "exit" / "state"
    small = ("unshare", "--mount", "sh", "-c", f"mkdir -p {state} && mount --make-rprivate / && "
             f"mount -t tmpfs -o size=256k none {state} && exec \"$@\"", "sh")
    exit_ = lab["exit"].ddpd(FULL_EXIT.format(folder=lab.folder / "exit"), wrap=small).start()
    assert exit_.process is not None
    one = lab["one"].ddpd(GRANTEE).start()
    one.eventually(lambda: bound(one))
    held = bound(one)
    filler = fill(Path(f"/proc/{exit_.process.pid}/root{state}"))
    refused: list[str] = []
    for name in CROWD:                           # blank lines kept in reserve are used up first
        done = lab["new"].ddpd(CROWD_ASK, name).command("ask", "--json")
        refused = [row["reason"].upper() for row in json.loads(done.stdout)["refused"]]
        if refused:
            break
    assert set(refused) == {"DISK"}
    counts = len(exit_.status()["granted"])
    assert one.command("renew").returncode == 0
    one.eventually(lambda: one.status()["held"][0]["valid"] >= 55, 8)
    assert bound(one) == held
    assert len(exit_.status()["granted"]) == counts
    filler.unlink()
    again = lab["new"].ddpd(CROWD_ASK, CROWD[-1])

    def served() -> bool:
        return again.command("ask", "--json").returncode == 0

    eventually(served, 20, "space is back, and used without a restart", every_s=0.5)
    assert bound(one) == held
