"""What fails for a moment, or in one place: files that are locked, mounted or read-only, broken hooks, ports.

    exit:down ------------------ home:up   home:br-lan
    192.0.2.1                    192.0.2.2
    2001:db8:1::1                2001:db8:1::2
    grantor                      grantee
"""

import json
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon import Daemon
from lab import Lab, needs

pytestmark = needs("ip link add dev eth0 type veth")

EXIT = """
[ddpd]
{}
[pool six]
prefix    = 2001:db8:42::/48
give      = /56
dns       = 2001:db8:42::53
{}
[grantee home]
key   = @home
pools = six
{}
"""
HOME = """
[ddpd]
{}
[grantor exit]
key     = @exit
address = 2001:db8:1::1
ask     = ::/56 on br-lan
{}
"""
SHORT = "lifetime  = 1h\npreferred = 10m\nrenew     = 2s"
LOCKED_S = 3


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit*", "home*") as lab:
        lab.cable("exit:down 192.0.2.1/24 2001:db8:1::1/64", "home:up 192.0.2.2/24 2001:db8:1::2/64")
        lab["home"].bridge("br-lan")
        yield lab


def held(home: Daemon) -> list[str]:
    return sorted(row["prefix"] for row in home.status()["held"] if row["prefix"] and row["state"] == "bound")


def renewed_s_ago(home: Daemon) -> int:
    """Of a lease of an hour."""
    return 3600 - max((int(row["valid"]) for row in home.status()["held"]), default=0)


def lines(daemon: Daemon, pattern: str) -> list[str]:
    return [line for line in daemon.log().splitlines() if re.search(pattern, line)]


# ==== pins in SQLite =====================================================================


@contextmanager
def written(file: Path, name: str, prefix: str) -> Iterator[None]:
    """The provisioning job has begun to write a pin: nobody else reads until it is done."""
    base = sqlite3.connect(file, isolation_level=None)
    base.execute("CREATE TABLE IF NOT EXISTS assignments (id TEXT, address TEXT, prefix TEXT)")
    base.execute("BEGIN EXCLUSIVE")
    base.execute("INSERT INTO assignments VALUES (?, '', ?)", (name, prefix))
    try:
        yield
    finally:
        base.execute("COMMIT")
        base.close()


def is_pinned(exit_: Daemon, name: str, prefix: str) -> bool:
    return prefix in exit_.command("explain", name, "::/56").stdout


def test_pins_that_are_locked_at_the_start(lab: Lab) -> None:
    """For three seconds, which is no reason to end, nor to leave out what is written."""
    file = lab.folder / "pins.db"
    exit_ = lab["exit"].ddpd(EXIT.format(f"pins = {file}", "", ""))
    with written(file, "home", "2001:db8:42:1200::/56"):
        exit_.launch()
        until = time.monotonic() + LOCKED_S
        while time.monotonic() < until:
            assert exit_.running(), exit_.log()
            time.sleep(0.1)
    exit_.eventually(lambda: is_pinned(exit_, "home", "2001:db8:42:1200::/56"), 8)
    home = lab["home"].ddpd(HOME.format("", "")).start()
    home.eventually(lambda: held(home) == ["2001:db8:42:1200::/56"])


def test_pins_that_are_locked_at_a_reload(lab: Lab) -> None:
    """Asks are answered meanwhile; what was written is known soon after, though nobody has said so again."""
    file = lab.folder / "pins.db"
    with written(file, "somebody", "2001:db8:42:1100::/56"):
        pass
    exit_ = lab["exit"].ddpd(EXIT.format(f"pins = {file}", SHORT, "limit = 2")).start()
    home = lab["home"].ddpd(HOME.format("", "")).start()
    home.eventually(lambda: bool(held(home)))
    with written(file, "home", "2001:db8:42:1200::/56"):
        exit_.signal(signal.SIGHUP)
        until = time.monotonic() + LOCKED_S
        while time.monotonic() < until:
            assert renewed_s_ago(home) <= 4
            time.sleep(0.1)
    exit_.eventually(lambda: is_pinned(exit_, "home", "2001:db8:42:1200::/56"), 8)


# ==== files that are mounted one by one ==================================================


def on_themselves(files: list[Path]) -> tuple[str, ...]:
    """As a container has them: each is a mount, so that nothing can be renamed over it."""
    mounts = " && ".join(f"mount --bind {file} {file}" for file in files)
    return ("unshare", "--mount", "sh", "-c", f'mount --make-rprivate / && {mounts} && exec "$@"', "sh")


def test_files_that_cannot_be_renamed_over_are_written_in_place(lab: Lab) -> None:
    """The lease file, the status file, and what is handed on: ddpd's, or empty, as they are made to be mounted on."""
    folder = lab.folder / "mounted"
    folder.mkdir()
    files = {name: folder / name for name in ("leases", "status", "resolv", "dnsmasq", "radvd", "dhcp")}
    keys = "".join(f"{name} = {file}\n" for name, file in files.items())
    exit_ = lab["exit"].ddpd(EXIT.format("", SHORT, "")).start()
    home = lab["home"].ddpd(HOME.format(keys, "")).start()
    home.eventually(lambda: bool(held(home)))
    home.eventually(lambda: all(file.exists() for file in files.values()), 8)
    home.stop()
    leases = json.loads(files["leases"].read_text())
    files["leases"].write_text(json.dumps(leases, indent=4))     # to be written anew as a whole
    files["status"].touch()                                      # it goes when ddpd is stopped
    files["resolv"].write_text("")
    numbers = {name: file.stat().st_ino for name, file in files.items()}
    home.prefix = [*lab["home"].inside(), *on_themselves(list(files.values()))]
    home.start()
    home.eventually(lambda: bool(held(home)))
    exit_.write(exit_.config.read_text().replace("2001:db8:42::", "2001:db8:43::"))
    assert exit_.command("reload").returncode == 0
    home.eventually(lambda: any(prefix.startswith("2001:db8:43:") for prefix in held(home)))
    for name in ("resolv", "dnsmasq", "radvd"):
        home.eventually(lambda name=name: "2001:db8:43:" in files[name].read_text(), 3)     # type: ignore[misc]
    home.eventually(lambda: "2001:db8:43:" in files["status"].read_text(), 8)
    assert json.loads(files["status"].read_text())
    home.kill()                                                  # a crash: what counts is on the disk
    assert "2001:db8:43:" in files["leases"].read_text() and json.loads(files["leases"].read_text())
    home.start()
    assert any(row["prefix"].startswith("2001:db8:43:") for row in home.status()["held"])
    home.stop()
    assert json.loads(files["leases"].read_text())
    assert files["status"].read_text() == ""                     # nobody is to take that for the truth
    assert {name: file.stat().st_ino for name, file in files.items()} == numbers
    assert lines(home, "cannot write") == []


def test_a_grantors_lease_file_that_cannot_be_renamed_over(lab: Lab) -> None:
    """It grants, grows, is killed and started, and is found to be whole."""
    file = lab.folder / "given"
    exit_ = lab["exit"].ddpd(EXIT.format(f"leases = {file}", "", "limit = 16\nrate = 1000/1s")).start()
    exit_.stop()
    file.write_text(json.dumps(json.loads(file.read_text()), indent=4))
    exit_.prefix = [*lab["exit"].inside(), *on_themselves([file])]
    exit_.start()
    home = lab["home"].ddpd(HOME.format("", "\n".join(["          ::/56"] * 15)).replace("on br-lan\n ", "\n ")).start()
    home.eventually(lambda: len(held(home)) == 16)
    for end in Daemon.kill, Daemon.stop:
        end(exit_)
        assert json.loads(file.read_text())
        exit_.start()
        assert sorted(row["prefix"] for row in exit_.status()["granted"]) == held(home)
    assert lines(exit_, "cannot write|damaged") == []


# ==== a state folder that is read-only ====================================================


def test_a_grantee_without_memory_goes_on(lab: Lab) -> None:
    """Firmware whose flash could not be mounted: it says so once, has its prefix, uses it and renews it."""
    state = lab.folder / "state"
    state.mkdir()
    mounts = f"mount --make-rprivate / && mount --bind {state} {state} && mount -o remount,ro,bind {state}"
    lab["exit"].ddpd(EXIT.format("", SHORT, "")).start()
    home = lab["home"].ddpd(HOME.format(f"leases = {state}/leases.json", ""),
                            wrap=("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")).start()
    home.eventually(lambda: bool(held(home)), 8)
    [prefix] = held(home)
    home.eventually(lambda: len(lab["home"].addresses("br-lan")) == 1, 3)
    assert any(line.startswith(f"unreachable {prefix} ") for line in lab["home"].routes())
    until = time.monotonic() + 7
    while time.monotonic() < until:
        assert held(home) == [prefix] and renewed_s_ago(home) <= 4
        time.sleep(0.2)
    assert len(lines(home, "(?i)read-only")) == 1, home.log()
    home.kill()
    home.start()                                                 # what is there is known again
    home.eventually(lambda: held(home) == [prefix] and len(lab["home"].addresses("br-lan")) == 1, 8)
    home.stop()


# ==== hooks ===========================================================================


HOOKS: dict[str, tuple[bytes, int, str]] = {
    "CRLF":           (b"#!/bin/sh\r\nexit 0\r\n", 0o755, r"(?i)CR ?LF|carriage return|line ends"),
    "no interpreter": (b"echo said\n", 0o755, r"#!"),
    "exits with 3":   (b"#!/bin/sh\nexit 3\n", 0o755, r"(exit|code|status)\D{1,12}\b3\b"),
    "not executable": (b"#!/bin/sh\nexit 0\n", 0o644, r"(?i)executable|chmod|permission"),
    "no such interpreter": (b"#!/nowhere/sh\nexit 0\n", 0o755, r"/nowhere/sh"),
}


@pytest.mark.parametrize("what", HOOKS)
def test_what_is_wrong_with_a_hook_is_said(lab: Lab, what: str) -> None:
    """Not "no such file", where there is one; and without -v."""
    text, mode, says = HOOKS[what]
    hook = lab.folder / "the-hook"
    hook.write_bytes(text)
    hook.chmod(mode)
    lab["exit"].ddpd(EXIT.format("", "", "")).start()
    home = lab["home"].ddpd(HOME.format("", f"hook = {hook}")).start()
    home.eventually(lambda: bool(held(home)))
    home.eventually(lambda: bool(lines(home, r"hook.*the-hook")))
    assert [line for line in lines(home, r"hook.*the-hook") if re.search(says, line)], home.log()
    assert not lines(home, "No such file")


# ==== a key that has granted ==============================================================


def test_who_only_asks_recovers_nothing(lab: Lab) -> None:
    """The key was a grantor's once (`key.granted` beside it), and here is no lease file: nobody is kept waiting."""
    lab["exit"].ddpd(EXIT.format("", "", "")).start()
    home = lab["home"].ddpd(HOME.format("", ""))
    (home.dir / "key.granted").touch()
    home.start()
    home.eventually(lambda: bool(held(home)))
    said = home.log() + home.command("status").stdout + home.command("check").stdout
    assert "recovering" not in said.lower()
    assert (home.dir / "key.granted").exists()                   # it may be one again


# ==== where asks are heard ==================================================================


def is_open(lab: Lab, port: int, host: str = "2001:db8:1::1") -> bool:
    """Somebody listens there: at least nothing is refused."""
    return not refuses(lab, port, host)


def refuses(lab: Lab, port: int, host: str) -> bool:
    with lab["home"].socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.settimeout(0.3)
        try:
            sock.connect((host, port))
            sock.send(b"x")
            sock.recv(1)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return False


def listens(exit_: Daemon, places: str) -> int:
    """Configured to listen there, and told so; how the reload ended."""
    exit_.write(re.sub(r"(?m)^listen = .*$", f"listen = {places}", exit_.config.read_text()))
    return exit_.command("reload").returncode


def granted_at(lab: Lab, place: str) -> bool:
    asker = lab["home"].ddpd(HOME.format("", "").replace("2001:db8:1::1", place), "home")
    return asker.command("ask", "--json", "--wait", "2").returncode == 0


def test_another_port_after_a_reload(lab: Lab) -> None:
    """Heard at the new one, closed at the old one, nothing that was granted is lost."""
    exit_ = lab["exit"].ddpd(EXIT.format("listen = [::]:3373", "", "")).start()
    assert granted_at(lab, "[2001:db8:1::1]:3373")
    before = exit_.status()["granted"][0]["prefix"]
    assert listens(exit_, "[::]:4444") == 0
    assert granted_at(lab, "[2001:db8:1::1]:4444") and granted_at(lab, "192.0.2.1:4444")
    assert is_open(lab, 4444) and not is_open(lab, 3373)
    assert exit_.status()["granted"][0]["prefix"] == before
    assert listens(exit_, "[2001:db8:1::1]:4444 192.0.2.1:3373") == 0        # one of them narrower, one anew
    assert granted_at(lab, "[2001:db8:1::1]:4444") and granted_at(lab, "192.0.2.1:3373")
    assert not is_open(lab, 4444, "192.0.2.1") and not is_open(lab, 3373)
    assert not lines(exit_, "takes effect after a restart")


@pytest.mark.parametrize("place", ["[2001:db8:dead::1]:3373", "[::]:5555"], ids=["no address of ours", "in use"])
def test_a_reload_that_cannot_listen_is_refused(lab: Lab, place: str) -> None:
    """One line; and where it listened it still does."""
    other = lab["exit"].socket(socket.AF_INET6)
    other.bind(("::", 5555))
    exit_ = lab["exit"].ddpd(EXIT.format("listen = [::]:3373", "", "")).start()
    assert listens(exit_, f"[::]:4444 {place}") != 0
    [line] = lines(exit_, "reload")
    host, _, port = place.rpartition(":")
    assert "reload refused" in line and "listen" in line and host.strip("[]") in line and port in line
    assert granted_at(lab, "[2001:db8:1::1]:3373")
    assert not is_open(lab, 4444)
    assert listens(exit_, "[::]:4444") == 0
    assert granted_at(lab, "[2001:db8:1::1]:4444")


# ==== memory ==========================================================================


def by_slot(home: Daemon) -> dict[int, str]:
    return {row["slot"]: row["prefix"] for row in home.status()["held"] if row["state"] == "bound"}


@pytest.mark.parametrize("between", ["nothing", "restart", "kill"])
def test_five_slots_that_are_released_get_the_same_again(lab: Lab, between: str) -> None:
    """`limit` leases are held back for who had them, however many that are."""
    exit_ = lab["exit"].ddpd(EXIT.format("", "", "limit = 5\nrate = 100/1s")).start()
    home = lab["home"].ddpd(HOME.format("", "          ::/56\n" * 4).replace(" on br-lan", "")).start()
    home.eventually(lambda: len(by_slot(home)) == 5)
    had = by_slot(home)
    assert home.command("release").returncode == 0
    exit_.eventually(lambda: exit_.status()["granted"] == [])
    end: dict[str, Callable[[], object]] = {"nothing": lambda: None, "restart": exit_.stop, "kill": exit_.kill}
    end[between]()
    if between != "nothing":
        exit_.start()
    assert home.command("renew").returncode == 0
    home.eventually(lambda: len(by_slot(home)) == 5)
    assert by_slot(home) == had


def test_no_number_of_crashes_ends_a_lease(lab: Lab) -> None:
    """Restarted, killed, started, killed, started: what was given for twelve hours a minute ago is still given."""
    exit_ = lab["exit"].ddpd(EXIT.format("", "", "")).start()
    home = lab["home"].ddpd(HOME.format("", "")).start()
    home.eventually(lambda: bool(held(home)))
    prefixes = held(home)
    home.kill()                                                  # it must not help
    ends: tuple[Callable[[Daemon], int], ...] = (Daemon.stop, Daemon.kill, Daemon.kill, Daemon.stop, Daemon.kill,
                                                 Daemon.kill, Daemon.kill)
    for n, end in enumerate(ends):
        end(exit_)
        exit_.start()
        rows = exit_.status()["granted"]
        assert [row["prefix"] for row in rows] == prefixes, (n, end.__name__)
        assert rows[0]["valid"] > 43200 - 120
    assert not lines(exit_, "^ended")
    assert any(line.startswith(f"{prefixes[0]} ") for line in lab["exit"].routes())
