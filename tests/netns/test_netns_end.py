"""What a supervisor and a web page see: given back at the end, a file with the status, and who is silent."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import Daemon
from lab import Lab, eventually

GRANTOR = """
[ddpd]
status = {folder}/hub.json
[pool home]
prefix = 2001:db8:42::/48
give   = /56
[grantee leaf]
key   = @leaf
pools = home
"""
GRANTEE = """
[ddpd]
status = {folder}/run/leaf.json
[grantor hub]
key     = @hub
address = {address}
ask     = ::/56
install = no
release = {release}
hook    = {folder}/hook
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("hub", "leaf") as lab:
        lab.cable("hub:eth0 fd00::1/64", "leaf:eth0 fd00::2/64")
        yield lab


def grantee(lab: Lab, tmp_path: Path, release: str = "yes", address: str = "fd00::1") -> Daemon:
    hook = tmp_path / "hook"
    (tmp_path / "told").touch()
    hook.write_text(f'#!/bin/sh\necho "$1|$DDPD_SERVER|$DDPD_ANSWERS|$DDPD_GATEWAY" >> {tmp_path}/told\n')
    hook.chmod(0o755)
    return lab["leaf"].ddpd(GRANTEE.format(folder=tmp_path, release=release, address=address))


@pytest.mark.parametrize(("release", "left"), [("yes", 0), ("no", 1)])
def test_what_is_given_back_at_the_end(lab: Lab, tmp_path: Path, release: str, left: int) -> None:
    with lab["hub"].ddpd(GRANTOR.format(folder=tmp_path)) as hub, grantee(lab, tmp_path, release) as leaf:
        eventually(lambda: leaf.status()["held"])
        before, wire = leaf.status()["held"], lab["leaf"].record("eth0")
        assert leaf.process is not None
        leaf.process.send_signal(signal.SIGTERM)
        if release == "yes":
            eventually(lambda: len(wire.ddpd()) == 2, every_s=0.01)
        answered = time.monotonic()
        assert leaf.process.wait(5) == 0
        assert time.monotonic() - answered < 1.2, "there was nothing to wait for"
        assert len(hub.status()["granted"]) == left
        leaf.start()
        eventually(lambda: [row["prefix"] for row in leaf.status()["held"]] == [row["prefix"] for row in before])


def test_a_dead_grantor_does_not_keep_it_from_ending(lab: Lab, tmp_path: Path) -> None:
    with lab["hub"].ddpd(GRANTOR.format(folder=tmp_path)) as hub, grantee(lab, tmp_path) as leaf:
        eventually(lambda: leaf.status()["held"])
        hub.kill()
        wire, began = lab["leaf"].record("eth0"), time.monotonic()
        assert leaf.stop() == 0 and time.monotonic() - began < 4.5           # netifd waits for 5 s
        assert len(wire.ddpd()) >= 2                                         # it was said more than once


def test_told_twice_it_ends_at_once(lab: Lab, tmp_path: Path) -> None:
    with lab["hub"].ddpd(GRANTOR.format(folder=tmp_path)) as hub, grantee(lab, tmp_path) as leaf:
        eventually(lambda: leaf.status()["held"])
        hub.kill()
        assert leaf.process is not None
        leaf.process.send_signal(signal.SIGTERM)
        eventually(lambda: "lost grantor=hub" in leaf.log())
        began = time.monotonic()
        assert leaf.stop() == 0 and time.monotonic() - began < 1


def test_the_status_file(lab: Lab, tmp_path: Path) -> None:
    files = [tmp_path / "hub.json", tmp_path / "run/leaf.json"]
    with lab["hub"].ddpd(GRANTOR.format(folder=tmp_path)) as hub, grantee(lab, tmp_path) as leaf:
        eventually(lambda: json.loads(files[1].read_text())["held"], 8)
        eventually(lambda: json.loads(files[0].read_text())["granted"], 8)
        for daemon, file in zip((hub, leaf), files, strict=True):
            said, shown = daemon.status(), json.loads(file.read_text())
            assert shown.keys() == {*said, "uptime"} and shown["public_key"] == said["public_key"]
            assert [row["prefix"] for row in shown["granted"]] == [row["prefix"] for row in said["granted"]]
            assert shown["public_key"] in file.read_text() and file.read_text().count("key\"") == 1
            assert abs(shown["uptime"] - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60
            assert file.stat().st_mode & 0o777 == 0o644
        leaf.stop()
        assert not files[1].exists()
    assert not list(tmp_path.glob("**/*.json.[0-9]*"))


def test_nothing_happens_and_nothing_is_written(lab: Lab, tmp_path: Path) -> None:
    with lab["hub"].ddpd(GRANTOR.format(folder=tmp_path)):
        eventually(lambda: (tmp_path / "hub.json").exists())
        written, until = set(), time.monotonic() + 11
        while time.monotonic() < until:
            written.add((tmp_path / "hub.json").stat().st_mtime_ns)
            time.sleep(0.2)
        assert len(written) <= 2                                             # at the start, and what that has stirred


@pytest.mark.parametrize("text", ["mine\n", "{}"])
def test_a_file_of_somebody_else_stays(lab: Lab, tmp_path: Path, text: str) -> None:
    (tmp_path / "hub.json").write_text(text)
    hub = lab["hub"].ddpd(GRANTOR.format(folder=tmp_path)).start()
    eventually(lambda: "there is a file that ddpd has not made" in hub.log())
    assert hub.stop() == 0 and (tmp_path / "hub.json").read_text() == text


def test_a_lease_that_was_granted_a_moment_ago_is_given_back(lab: Lab, tmp_path: Path) -> None:
    """It ends when its ask is on the wire, and before the answer has come."""
    with lab["hub"].ddpd(GRANTOR.format(folder=tmp_path)) as hub:
        wire, leaf = lab["hub"].record("eth0"), grantee(lab, tmp_path)
        hub.signal(signal.SIGSTOP)
        process = leaf.launch()
        eventually(lambda: wire.ddpd(), 10)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        hub.signal(signal.SIGCONT)
        assert process.wait(5) == 0
        eventually(lambda: hub.status()["granted"] == [])


def test_a_status_file_that_cannot_be_written_is_said_once(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "hub.json").mkdir()
    with lab["hub"].ddpd(GRANTOR.format(folder=tmp_path)) as hub, grantee(lab, tmp_path) as leaf:
        eventually(lambda: leaf.status()["held"])
        eventually(lambda: "cannot write" in hub.log(), 8)
        assert hub.log().count("cannot write") == 1 and hub.running()


@pytest.mark.parametrize("address", ["fd00::1", "nobody.invalid"])
def test_who_is_silent_is_told_to_the_hook(lab: Lab, tmp_path: Path, address: str) -> None:
    with grantee(lab, tmp_path, address=address):
        eventually(lambda: "silent|" in (tmp_path / "told").read_text(), 12)
        where = address if address == "fd00::1" else ""
        assert f"silent|{where}|0|{where}\n" in (tmp_path / "told").read_text()
