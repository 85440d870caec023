"""Hooks as they are run: one at a time, the latest wins, none for ever, and the end is told too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import ddpd
from lab import eventually
from test_exits import A, Home

Script = Callable[[str], Path]


class Hooked:
    """A home whose grantors have a hook; the hooks of a daemon, without the daemon."""

    def __init__(self, script: Path, more: str = "") -> None:
        self.home = Home(f"hook = {script}\n{more}", f"hook = {script}\n{more}")
        self.hooks = ddpd.Hooks()

    def tick(self) -> None:
        """What the daemon's loop does, whenever it wakes."""
        now = ddpd.clock_now()
        self.hooks.check(now)
        self.hooks.start(self.home.node, now)

    def rest(self, within_s: float = 5.0) -> None:
        end = time.monotonic() + within_s
        while self.hooks.running or self.hooks.waiting or self.hooks.calls:
            assert time.monotonic() < end
            self.tick()
            time.sleep(0.005)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    def write(body: str) -> Path:
        file = tmp_path / "hook"
        file.write_text(f"#!/bin/sh\nout={tmp_path}/out\n{body}\n")
        file.chmod(0o755)
        return file
    return write


def said(tmp_path: Path) -> list[str]:
    file = tmp_path / "out"
    return file.read_text().splitlines() if file.exists() else []


def test_one_at_a_time_and_the_latest_wins(script: Script, tmp_path: Path) -> None:
    hooked = Hooked(script('echo "begin $DDPD_GRANTOR $1 $DDPD_PREFIXES" >>$out; sleep 0.2; echo end >>$out'))
    for event in "started", "bound", "renewed":
        hooked.hooks.add("a", event)
    hooked.hooks.add("b", "lost")
    hooked.tick()
    hooked.home.answer("a", A)                             # while the first one runs
    for event in "bound", "faded", "renewed", "silent":    # a renewal, or silence, does not hide what waits
        hooked.hooks.add("a", event)
    hooked.rest()
    lines = said(tmp_path)
    assert lines[1::2] == ["end"] * 3                      # never two at once
    assert [line.split()[1:3] for line in lines[::2]] == [["a", "bound"], ["b", "lost"], ["a", "faded"]]
    assert str(A) in lines[4] and str(A) not in lines[0]   # with what was true when it began


def test_one_that_hangs_is_killed_with_all_that_it_has_started(
        script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ddpd, "HOOK_S", 1.0)
    hooked = Hooked(script("sleep 1000 & echo $! >>$out; trap '' TERM; wait"))
    hooked.hooks.add("a", "bound")
    hooked.hooks.add("b", "bound")
    hooked.rest()
    assert len(said(tmp_path)) == 2                        # the second had its turn
    for pid in map(int, said(tmp_path)):
        eventually(partial(has_ended, pid))
    assert capfd.readouterr().err.count("hook killed") == 2


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_what_it_says_is_in_the_log(script: Script, capfd: pytest.CaptureFixture[str]) -> None:
    hooked = Hooked(script("echo to standard output; echo to standard error >&2"))
    hooked.hooks.add("a", "bound")
    hooked.rest()
    out, log = capfd.readouterr()
    assert out == "" and "to standard output" in log and "to standard error" in log


@pytest.mark.parametrize("trouble", ["missing", "not executable", "a folder"])
def test_one_that_cannot_be_run_is_named(script: Script, tmp_path: Path, trouble: str,
                                         capfd: pytest.CaptureFixture[str]) -> None:
    file = script("exit 0")
    hooked = Hooked(tmp_path if trouble == "a folder" else file)
    if trouble == "missing":
        file.unlink()
    else:
        file.chmod(0o600)
    hooked.hooks.add("a", "bound")
    hooked.rest()
    assert "hook failed hook=" in capfd.readouterr().err


def test_the_end_is_told_but_not_waited_for_long(script: Script, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = Hooked(script("echo $DDPD_GRANTOR $1 >>$out"))
    hooked.hooks.add("a", "bound")
    hooked.hooks.stop(hooked.home.node)
    assert said(tmp_path) == ["a stopped", "b stopped"]
    monkeypatch.setattr(ddpd, "STOP_S", 0.5)
    slow = Hooked(script("sleep 9"))
    begun = time.monotonic()
    slow.hooks.stop(slow.home.node)
    assert time.monotonic() - begun < 5
    assert slow.hooks.running is not None
    os.killpg(slow.hooks.running.pid, 9)
    slow.hooks.running.wait()


def test_another_style_begins_anew(script: Script, tmp_path: Path) -> None:
    """A reload may change it: what was told in one style says nothing of the other."""
    hooked = Hooked(script("echo $* >>$out"), "hook_style = odhcp6c")
    hooked.home.a.way = ddpd.Way(ddpd.Reach("", "up"), "", is_up=True)
    hooked.home.answer("a", A)
    hooked.hooks.add("a", "bound")
    hooked.rest()
    for style in "ddpd", "odhcp6c":
        hooked.home.a.contact = replace(hooked.home.a.contact, hook_style=style)
        hooked.hooks.add("a", "bound")
        hooked.rest()
    assert said(tmp_path) == ["up started", "up bound", "bound", "up updated"]


def test_a_script_of_odhcp6cs_runs_unchanged(script: Script, tmp_path: Path) -> None:
    hooked = Hooked(script('[ -z "$2" ] && exit 1; echo "$1 $2 $PREFIXES|$RDNSS" >>$out'), "hook_style = odhcp6c")
    hooked.home.a.way = ddpd.Way(ddpd.Reach("", "up"), "", is_up=True)
    hooked.home.answer("a", A, dns=(ddpd.parse_host("2001:db8::53"),))
    for event in "started", "bound", "renewed", "stopped":
        hooked.hooks.add("a", event)
        hooked.rest()
    assert [line.split()[:2] for line in said(tmp_path)] == [["up", state] for state in
                                                            ("started", "bound", "updated", "stopped")]
    assert all(f"{A}," in line and line.endswith("|2001:db8::53") for line in said(tmp_path))
