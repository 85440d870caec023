"""How fast ddpd is, on this machine, beside what it cannot beat.

    make bench                 everything, some minutes
    tests/bench/run.py grants  only that

The daemon is a process of its own on one core, the load comes from this one on another: asks are
written beforehand, sent with a window, and only counted; a sample of the answers is read afterwards.
Each figure is the median of several runs.  No test depends on any of them.
"""

from __future__ import annotations

import json
import os
import py_compile
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from nacl import bindings  # noqa: E402

import ddpd  # noqa: E402 - found by the line above
from daemon import Daemon  # noqa: E402
from lab import Lab, busybox_path, eventually  # noqa: E402

PORT = 33730
EXIT_OF_LAN = """
[pool six]
prefix = 2001:db8:42::/48
give   = /56
[pool four]
prefix = 10.64.0.0/16
give   = /24
[grantee home]
key   = @home
pools = six four
"""
HOME_WITH_LAN = """
[grantor exit]
key     = @exit
address = 192.0.2.1
default = auto
ask     = ::/56 on br-lan
          0.0.0.0/24 on br-lan
"""
GRANTOR = ddpd.keypair(bytes(range(32)))
WINDOW = 160
POOL = ddpd.parse_prefix("2001:db8::/32")


class Asker:
    """One grantee, as far as the grantor can see."""

    def __init__(self, number: int) -> None:
        self.s = ddpd.keypair((number << 8).to_bytes(32, "little"))
        self.ends, self.stamp = ddpd.Initiator(self.s, GRANTOR.public, os.urandom), 0

    def ask(self) -> bytes:
        now = ddpd.clock_now()
        want = ddpd.Want(0, ddpd.parse_prefix("::/56"))
        self.stamp = max(self.stamp + 1, int(now.wall * 1e6))
        message = ddpd.Ask(stamp=self.stamp, run=self.s.public[:8], source=ddpd.parse_prefix("::1"), wants=(want,))
        return self.ends.compose(message, "::1", now)

    def hear(self, datagram: bytes) -> ddpd.Message:
        now = ddpd.clock_now()
        sealed = datagram[0] == 4
        answer = ddpd.decode(self.ends.open_sealed(datagram, now) if sealed else self.ends.open_answer(datagram, now))
        assert isinstance(answer, ddpd.Answer)
        assert answer.status == ddpd.Status.OK and len(answer.grants) == 1, answer
        self.ends.unanswered = 0
        return answer


class Grantor:
    """The daemon under test, pinned to the first core."""

    def __init__(self, askers: list[Asker], held: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ddpd-bench-"))
        (self.folder / "key").write_text(ddpd.show_key(GRANTOR.secret) + "\n")
        (self.folder / "key").chmod(0o600)
        sections = "".join(f"[grantee g{n}]\nkey = {ddpd.show_key(asker.s.public)}\npools = home\nroute = none\n"
                           for n, asker in enumerate(askers))
        (self.folder / "conf").write_text(
            f"[ddpd]\nkey = {self.folder}/key\nlisten = [::1]:{PORT}\nleases = {self.folder}/leases.json\n"
            f"control = {self.folder}/sock\nload = 1000000\n[pool home]\nprefix = {POOL}\ngive = /56\n{sections}")
        if held:
            self.fill(held)
        start = time.monotonic()
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(["taskset", "-c", "0", sys.executable, str(ROOT / "ddpd.py"), "-c",
                                             str(self.folder / "conf")], stderr=log)
        while self.status() is None:
            if self.process.poll() is not None or time.monotonic() - start > 30:
                raise SystemExit((self.folder / "log").read_text())
            time.sleep(0.002)
        self.started_s = time.monotonic() - start

    def fill(self, held: int) -> None:
        """A lease file with so many leases of other grantees, spread evenly."""
        def leases() -> Iterator[ddpd.Record]:
            yield {"kind": "run", "clean": True, "boot": "", "at": 0.0, "epoch": 0}
            for n in range(held):
                prefix = ddpd.Prefix(6, POOL.first + (n * (2**24 // held) << 72), 56)
                key = (n + 10**9).to_bytes(32, "little")
                lease = ddpd.Lease(key, 0, prefix, ddpd.LeaseState.ACTIVE, 43200.0, 43200.0, epoch=0)
                yield lease.record(ddpd.Now(0.0, 0.0))
        with (self.folder / "leases.json").open("wb") as file:
            file.writelines(ddpd.LeaseFile().whole(leases()))

    def status(self) -> dict[str, object] | None:
        """A short order: the answer to one that does not exist."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self.folder / "sock"))
            sock.sendall(b'{"do": "nothing"}\n')
            return dict(json.loads(sock.recv(4096)))
        except OSError:
            return None
        finally:
            sock.close()

    def cpu_s(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9

    def rss_kb(self) -> int:
        return rss_kb(self.process.pid)

    def written(self) -> int:
        rows = dict(row.split(": ") for row in Path(f"/proc/{self.process.pid}/io").read_text().splitlines())
        return int(rows["wchar"])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.folder)


def rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise LookupError("no Rss")


def blast(datagrams: list[bytes]) -> tuple[float, list[bytes]]:
    """Send all, never more than WINDOW unanswered; seconds and answers, in order of arrival."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.connect(("::1", PORT))
    sock.setblocking(False)
    answers: list[bytes] = []
    sent, start = 0, time.perf_counter()
    while len(answers) < len(datagrams):
        while sent < len(datagrams) and sent - len(answers) < WINDOW:
            sock.send(datagrams[sent])
            sent += 1
        if not select.select([sock], [], [], 2.0)[0]:
            raise SystemExit(f"lost: {sent} sent, {len(answers)} answered")
        try:
            while True:
                answers.append(sock.recv(2048))
        except BlockingIOError:
            pass
    elapsed = time.perf_counter() - start
    sock.close()
    return elapsed, answers


def per_second(function: Callable[[], object], count: int) -> float:
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            function()
        rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates)


def curve_operations() -> float:
    """Seconds of a responder's curve operations: the base point once, then es, ss, ee, se."""
    other = ddpd.keypair(os.urandom(32)).public
    base = 1 / per_second(lambda: bindings.crypto_scalarmult_base(GRANTOR.secret), 2000)
    return base + 4 / per_second(lambda: bindings.crypto_scalarmult(GRANTOR.secret, other), 2000)


def report(name: str, **figures: object) -> None:
    print(f"{name:34} " + "  ".join(f"{key}={value:,.3g}" if isinstance(value, float) and value < 100 else
                                    f"{key}={value:,.0f}" if isinstance(value, float) else f"{key}={value}"
                                    for key, value in figures.items()), flush=True)


def grants(count: int = 3000) -> None:
    """First contacts, each a handshake, a new lease, a line flushed to disk."""
    rates: dict[int, list[float]] = {}
    for _ in range(3):
        for held in (100, 10_000, 100_000):
            askers = [Asker(n + 1) for n in range(count)]
            grantor = Grantor(askers, held)
            datagrams = [asker.ask() for asker in askers]
            cpu, written = grantor.cpu_s(), grantor.written()
            elapsed, _ = blast(datagrams)
            curve_s = curve_operations()
            rates.setdefault(held, []).append(count / elapsed)
            report(f"first grants, {held} leases held", per_s=count / elapsed, of_curve_limit=count / elapsed * curve_s,
                   cpu_us=(grantor.cpu_s() - cpu) / count * 1e6, curve_us=curve_s * 1e6,
                   bytes_written_each=(grantor.written() - written) / count)
            grantor.stop()
    medians = {held: statistics.median(found) for held, found in rates.items()}
    report("flatness", **{f"at_{held}": rate / medians[100] for held, rate in medians.items()})


def again(count: int = 2000) -> None:
    """Handshakes of known grantees, then sealed renewals."""
    askers = [Asker(n + 1) for n in range(count)]
    grantor = Grantor(askers)
    _, answers = blast([asker.ask() for asker in askers])
    for _ in range(3):
        time.sleep(1.1)
        datagrams = [asker.ask() for asker in askers]
        elapsed, answers[:] = blast(datagrams)
        report("handshakes again (ss remembered)", per_s=count / elapsed,
               of_curve_limit=count / elapsed * curve_operations())
    by_id = {asker.ends.attempts[-1].id: asker for asker in askers}
    for answer in answers:
        by_id[answer[4:8]].hear(answer)
    for _ in range(3):
        rounds = [asker.ask() for _ in range(2) for asker in askers]
        cpu = grantor.cpu_s()
        elapsed, answers = blast(rounds)
        cpu = grantor.cpu_s() - cpu
        by_session = {asker.ends.session.id: asker for asker in askers if asker.ends.session}
        for answer in answers:
            by_session[answer[4:12]].hear(answer)
        report("sealed renewals", per_s=len(rounds) / elapsed, cpu_us=cpu / len(rounds) * 1e6)
    grantor.stop()


def restart() -> None:
    for held in (1000, 100_000):
        grantor = Grantor([Asker(1)], held)
        report(f"start with {held} leases", seconds=grantor.started_s, rss_mb=grantor.rss_kb() / 1024)
        grantor.stop()


MODULES = ("import binascii, bisect, collections, copy, dataclasses, enum, errno, fcntl, gc, heapq, json, os, select, "
           "signal, socket, struct, subprocess, sys, time, typing")


def installed(folder: Path) -> str:
    """As `make install` does it: a module with its byte code, and a launcher."""
    shutil.copy(ROOT / "ddpd.py", folder)
    py_compile.compile(str(folder / "ddpd.py"), doraise=True)
    return f"import sys; sys.path.insert(0, {str(folder)!r}); import ddpd; sys.exit(ddpd.main(sys.argv[1:]))"


def idle() -> None:
    """Memory, start-up and wake-ups of a grantee that has nothing to do."""
    askers = [Asker(1)]
    grantor = Grantor(askers)
    conf = grantor.folder / "grantee.conf"
    (grantor.folder / "alice").write_text(ddpd.show_key(askers[0].s.secret))
    (grantor.folder / "alice").chmod(0o600)
    conf.write_text(f"[ddpd]\nkey = {grantor.folder}/alice\nleases = {grantor.folder}/held.json\n"
                    f"control = {grantor.folder}/held.sock\n[grantor g]\nkey = {ddpd.show_key(GRANTOR.public)}\n"
                    f"address = [::1]:{PORT}\nask = ::/56\ninstall = no\n")
    start = time.monotonic()
    with (grantor.folder / "held.log").open("w") as log:
        grantee = subprocess.Popen([sys.executable, "-c", installed(grantor.folder), "-c", str(conf)], stderr=log)
    while "bound" not in (grantor.folder / "held.log").read_text():
        time.sleep(0.002)
    bound_s = time.monotonic() - start
    time.sleep(1.5)
    before = switches(grantee.pid)
    time.sleep(10)
    woke = switches(grantee.pid) - before
    bare = {code: bare_rss_kb(code) for code in ("import nacl.bindings", f"{MODULES}; import nacl.bindings")}
    report("idle grantee", rss_kb=rss_kb(grantee.pid), start_to_bound_s=bound_s, wakeups_in_10_s=woke)
    for code, kb in bare.items():
        report("bare interpreter", rss_kb=kb, with_=code[:40])
    grantee.terminate()
    grantee.wait(5)
    grantor.stop()


def renewals(count: int = 200) -> None:
    """CPU of one renewal of a grantee with two leases on a LAN and its own gateways: ddpd, and `ip` below it."""
    for tool in "iproute2", "busybox":
        with redirect_stdout(StringIO()), Lab("exit*", "home*") as lab:
            lab.cable("exit:down 192.0.2.1/24 2001:db8:1::1/64", "home:up 192.0.2.2/24 2001:db8:1::2/64")
            lab["home"].bridge("br-lan")
            grantor = lab["exit"].ddpd(EXIT_OF_LAN).start()
            home = lab["home"].ddpd(HOME_WITH_LAN, path=busybox_path(lab.folder) if tool == "busybox" else "").start()
            eventually(partial(is_bound, home))
            assert home.process is not None
            before, asked = cpu_s(home.process.pid), grantor.status()["counters"].get("heard_sealed", 0)
            for _ in range(count):
                home.process.send_signal(signal.SIGUSR1)
                time.sleep(0.03)
            own, below = (after - was for after, was in zip(cpu_s(home.process.pid), before, strict=True))
            done = grantor.status()["counters"]["heard_sealed"] - asked
        report("renewal", tool=tool, renewals=done, own_ms=1000 * own / done, ip_ms=1000 * below / done)


def is_bound(home: Daemon) -> bool:
    return len(home.status()["held"]) == 2


def cpu_s(pid: int) -> tuple[float, float]:
    """Of a process, and of its children that have ended."""
    ticks = [int(word) for word in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]
    return sum(ticks[:2]) / os.sysconf("SC_CLK_TCK"), sum(ticks[2:]) / os.sysconf("SC_CLK_TCK")


def switches(pid: int) -> int:
    rows = dict(row.split(":\t") for row in Path(f"/proc/{pid}/status").read_text().splitlines() if "ctxt" in row)
    return sum(map(int, rows.values()))


def bare_rss_kb(code: str) -> int:
    process = subprocess.Popen([sys.executable, "-c", f"{code}; print(1, flush=True); import time; time.sleep(9)"],
                               stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    found = rss_kb(process.pid)
    process.kill()
    process.wait()
    process.stdout.close()
    return found


PHASES: dict[str, Callable[[], None]] = {"grants": grants, "again": again, "restart": restart, "idle": idle,
                                         "renewals": renewals}

if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for phase in sys.argv[1:] or PHASES:
        PHASES[phase]()
