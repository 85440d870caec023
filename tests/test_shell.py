"""Below the waterline: a disk that is full, one daemon a lease file, keys, the log."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ddpd

NOW = ddpd.Now(1000.0, 1_700_000_000.0)


def record(n: int, **more: Any) -> ddpd.Record:
    return {"kind": "slot", "grantor": "h", "line": f"6/56#{n}", "slot": n, **more}


def lease(n: int) -> ddpd.Record:
    made = ddpd.Lease(bytes(32), n, ddpd.parse_prefix(f"2001:db8:{n:x}::/64"), ddpd.LeaseState.ACTIVE, 60.0, 2e3)
    return made.record(NOW)


def changes(*records: ddpd.Record) -> dict[ddpd.Key, ddpd.Record | None]:
    return {ddpd.key_of(record): record for record in records}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ddpd.Store]:
    made = ddpd.Store(str(tmp_path / "state" / "leases.json"))
    made.acquire()
    made.rewrite([record(1), lease(1)])
    yield made
    if made.fd >= 0:
        os.close(made.fd)
    os.close(made.lock)


def on_disk(store: ddpd.Store) -> list[ddpd.Record]:
    rows = [row for row in json.loads(Path(store.path).read_text()) if row["kind"] != "file"]
    return [{name: value for name, value in row.items() if name != "serial"} for row in rows]


def full(*_: Any, **__: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


# ---- the store

def test_what_is_saved_is_there_after_a_restart(store: ddpd.Store) -> None:
    assert store.save(changes(record(2), lease(1)), NOW)
    again = ddpd.Store(store.path)
    read = again.read()
    assert read is not None and {key[:2] for key in read[0]} >= {("slot", "h")} and read[1] == []
    assert record(2) in on_disk(store)


def test_the_file_and_its_lock_are_ours_alone(store: ddpd.Store) -> None:
    for path in (store.path, store.path + ".lock"):
        assert os.stat(path).st_mode & 0o077 == 0
    assert os.stat(os.path.dirname(store.path)).st_mode & 0o077 == 0


def test_one_daemon_a_lease_file(store: ddpd.Store) -> None:
    with pytest.raises(ddpd.Fatal, match="in use"):
        ddpd.Store(store.path).acquire()


def test_the_lock_goes_with_the_process(store: ddpd.Store) -> None:
    os.close(store.lock)
    other = ddpd.Store(store.path)
    other.acquire()
    store.lock = other.lock


@pytest.mark.parametrize("broken", ["pwrite", "fdatasync"])
def test_a_failed_save_is_told_and_needs_a_rewrite(store: ddpd.Store, broken: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, broken, full)
    assert not store.save(changes(lease(1), lease(2)), NOW)
    assert store.retry_at == NOW.boot + ddpd.RETRY_DISK_S
    monkeypatch.undo()
    assert not store.save(changes(lease(3)), NOW) and store.save({}, NOW)
    store.rewrite([lease(1), lease(2)])
    assert store.save(changes(lease(3)), NOW)
    assert [row["slot"] for row in on_disk(store)] == [1, 2, 3]


def test_a_short_write_is_a_full_disk(store: ddpd.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 10)
    assert not store.save(changes(lease(2)), NOW)


@pytest.mark.parametrize("broken", ["open", "fsync", "rename"])
def test_a_failed_rewrite_leaves_the_old_file(store: ddpd.Store, broken: str,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path(store.path).read_bytes()
    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="space"):
        store.rewrite([record(n) for n in range(50)])
    monkeypatch.undo()
    assert Path(store.path).read_bytes() == before
    assert not os.path.exists(store.path + ".new")
    assert store.save(changes(lease(2)), NOW)
    assert lease(2) in on_disk(store)


def test_a_rewrite_that_cannot_be_written_half_way(store: ddpd.Store) -> None:
    before = Path(store.path).read_bytes()

    def records() -> Iterator[ddpd.Record]:
        yield record(1)
        full()
    with pytest.raises(OSError, match="space"):
        store.rewrite(records())
    assert Path(store.path).read_bytes() == before and not os.path.exists(store.path + ".new")


def test_a_missing_file_is_none_and_a_newer_one_fatal(tmp_path: Path) -> None:
    store = ddpd.Store(str(tmp_path / "l.json"))
    assert store.read() is None
    (tmp_path / "l.json").write_text('[{"kind": "file", "version": 99}\n]\n')
    with pytest.raises(ddpd.Fatal, match="version 99"):
        store.read()
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("d", "pipe"):
        with pytest.raises(ddpd.Fatal, match="not a file"):
            ddpd.Store(str(tmp_path / name)).read()


def test_a_line_that_says_another_version_is_only_damaged(tmp_path: Path) -> None:
    """Valid JSON by which every start would end."""
    store = ddpd.Store(str(tmp_path / "l.json"))
    store.rewrite([record(1)])
    path = tmp_path / "l.json"
    path.write_text(path.read_text().replace("\n]", '\n,{"kind": "file", "version": 99}\n]'))
    found = store.read()
    assert found is not None and next(each for _, each in found[0].values())["slot"] == record(1)["slot"]

# ---- keys, files, log

def config(tmp_path: Path) -> ddpd.Config:
    return ddpd.read_config(f"[ddpd]\nkey = {tmp_path}/sub/key\n", "t")


def test_a_missing_key_is_made_for_us_alone(tmp_path: Path) -> None:
    made = ddpd.load_secret(config(tmp_path), make=True)
    path = tmp_path / "sub" / "key"
    assert ddpd.public_key(path.read_text().strip()) == made and os.stat(path).st_mode & 0o777 == 0o600
    assert ddpd.load_secret(config(tmp_path), make=False) == made


def test_a_key_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ddpd.ConfigError, match="missing"):
        ddpd.load_secret(config(tmp_path), make=False)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "key").write_text("secret\n")
    with pytest.raises(ddpd.ConfigError, match="holds no key") as caught:
        ddpd.load_secret(config(tmp_path), make=True)
    assert "secret" not in str(caught.value)


def test_a_readable_key_is_warned_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ddpd.load_secret(config(tmp_path), make=True)
    os.chmod(tmp_path / "sub" / "key", 0o644)
    ddpd.load_secret(config(tmp_path), make=True)
    assert "readable by others" in capfd.readouterr().err


@pytest.mark.parametrize(("make", "message"), [
    (lambda _: None, "No such file"), (lambda p: p.write_bytes(b"\xff"), "not UTF-8"),
    (lambda p: p.mkdir(), "Is a directory")])
def test_a_config_that_cannot_be_read(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "c")
    with pytest.raises(ddpd.ConfigError, match=message):
        ddpd.load_config(str(tmp_path / "c"))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"\xef\xbb\xbf[ddpd]\r\nmark = 7\r\n")
    assert ddpd.load_config(str(tmp_path / "c")).mark == 7


def test_the_log_is_limited_by_kind(capfd: pytest.CaptureFixture[str],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    log = ddpd.Log()
    now = NOW
    monkeypatch.setattr(ddpd, "clock_now", lambda: now)
    for n in range(500):
        log.limited("drop", "drop n=%d", n)
    log.limited("other", "other 100%")
    burst, each_s = ddpd.LOG_LINES
    assert capfd.readouterr().err.splitlines() == [*(f"drop n={n}" for n in range(burst)), "other 100%"]
    for n in range(100):
        now = NOW._replace(boot=NOW.boot + n * each_s / 10)
        log.limited("drop", "drop n=%d", n)
    assert len(capfd.readouterr().err.splitlines()) in (9, 10)


def test_a_log_that_nobody_reads_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is a pipe, and whoever should read it hangs."""
    readable, writable = os.pipe()
    monkeypatch.setattr(os, "write", lambda _, data, write=os.write: write(writable, data))
    log = ddpd.Log()
    monkeypatch.setattr(select, "poll", lambda make=select.poll: Redirected(make(), writable))
    for n in range(10_000):
        log.info("line n=%d %s", n, "x" * 100)
    assert log.unread > 5000
    os.read(readable, 1 << 20)
    log.info("at last")
    said = os.read(readable, 1 << 20).decode().splitlines()
    assert said[-1] == "at last" and said[-2].startswith("lost lines=")
    log.info("y" * 10_000)
    assert len(os.read(readable, 1 << 20)) <= ddpd.MAX_LINE
    os.close(readable)
    os.close(writable)


class Redirected:
    """A poller to which standard error is another descriptor."""

    def __init__(self, poller: Any, fd: int) -> None:
        self.poller, self.fd = poller, fd

    def register(self, _: int, events: int) -> None:
        self.poller.register(self.fd, events)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        return list(self.poller.poll(timeout))

A = ddpd.parse_interface("2001:db8:1::1/64")


# ---- ip

def test_a_batch_that_dies_is_run_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that `ip` cannot parse ends a batch in silence about the rest."""
    def run(command: list[str], stdin: str) -> str:
        ran.append(command[1:])
        assert bool(stdin) == ("-batch" in command)
        return "Error: junk" if "-batch" in command or "junk" in command else ""
    ran: list[list[str]] = []
    kernel = ddpd.Kernel(221)
    monkeypatch.setattr(ddpd, "run_command", run)
    six, four = ddpd.Address("br0", A), ddpd.Address("br0", ddpd.parse_interface("192.0.2.1/24"))
    assert kernel.run([(six, "a b"), (four, "c"), (six, "junk")]) == [(six, "junk", "Error: junk")]
    assert ran == [["-4", "-force", "-batch", "-"], ["-4", "c"], ["-6", "-force", "-batch", "-"],
                   ["-6", "a", "b"], ["-6", "junk"]]
    kernel.close()


def test_an_ip_that_cannot_be_run_has_made_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpd, "run_command", full)
    kernel = ddpd.Kernel(221)
    six, four = ddpd.Address("br0", A), ddpd.Address("br0", ddpd.parse_interface("192.0.2.1/24"))
    assert [failure.line for failure in kernel.run([(six, "a"), (four, "b")])] == ["a", "b"]
    kernel.close()


# ---- what the system does not have

def test_a_kernel_without_ipv6_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                           capfd: pytest.CaptureFixture[str]) -> None:
    def without(family: int = -1, *rest: Any, make: Any = socket.socket, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        made: socket.socket = make(family, *rest, **more)
        return made
    config = tmp_path / "conf"
    config.write_text(f"[ddpd]\nkey = {tmp_path}/key\nleases = {tmp_path}/l\ncontrol = {tmp_path}/s\n")
    monkeypatch.setattr(socket, "socket", without)
    assert ddpd.main(["-c", str(config)]) == 2
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if "made key" not in line] == [said[-1]] and "this kernel has no IPv6" in said[-1]


# ---- levels

@pytest.mark.parametrize(("environment", "out", "err"), [
    ({}, [], ["calm", "odd", "bad"]),
    ({"DDPD_LOG": "split"}, ["calm"], ["odd", "bad"]),
    ({"JOURNAL_STREAM": "ours"}, [], ["<6>calm", "<4>odd", "<3>bad"]),
    ({"JOURNAL_STREAM": "8:12345"}, [], ["calm", "odd", "bad"]),
])
def test_each_line_has_a_level(environment: dict[str, str], out: list[str], err: list[str],
                               monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """As the journal reads it, and procd, which knows the two streams only."""
    for name in ("DDPD_LOG", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, ddpd.Log.stream_of(2) if value == "ours" else value)
    log = ddpd.Log()
    log.info("calm")
    log.debug("nothing")
    log.warning("odd")
    log.error("bad")
    said = capfd.readouterr()
    assert (said.out.splitlines(), said.err.splitlines()) == (out, err)
