"""ddpd beside Kea and ISC dhcpd: the same work, over the same cable, in the same minutes.

    make bench                            after tests/bench/run.py
    tests/bench/beside.py [LEASES [RUNS]] only this; Kea and dhcpd are left out where they are not installed

        asker ---- veth ---- giver        two namespaces; asker on the last core, giver on the first

Asks are written beforehand; WINDOW of them are unanswered at any time (a closed loop); what was granted
is looked at afterwards.  DHCPv6 needs four datagrams for a first lease (two with rapid commit), ddpd
two.  ddpd flushes its lease file before it answers; the others do not (Kea leaves that to its disk cache,
dhcpd flushes DHCPv6 leases about once an hour), so it is measured both ways.  ddpd encrypts and knows
whom it talks to; the others neither.

`giver` and `generator` are the shares of the time in which each had its core, `others` that in which one
of them wanted it and somebody else had it.  `limit` says what the figure is a property of: `giver`, it had no
time left; `GENERATOR`, this file had none, and the giver could do more; `OTHERS`, the machine was not quiet;
`waits`, none of them: disk, wake-ups.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import count
from json import dumps
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import ddpd  # noqa: E402 - found by the line above
from bench import run  # noqa: E402
from lab import Host, Lab, LabError, eventually, own_world  # noqa: E402

WINDOW = 32
PATIENCE_S = 2
GIVER = "fd00:1::1"
BUSY = 0.9                                # of its core: no time left
NOISY = 0.1                               # of the time: others take part in the figure
FIRST_CORE = "taskset -c 0"
NO_FLUSH = ("import os, runpy, sys; os.fdatasync = lambda fd: None; sys.argv = sys.argv[2:]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')")
CLIENT_PORT, SERVER_PORT = 546, 547
SOLICIT, ADVERTISE, REQUEST, RENEW, REPLY = 1, 2, 3, 5, 7
OPTION_CLIENTID, OPTION_ELAPSED, OPTION_RAPID, OPTION_IA_PD, OPTION_IAPREFIX = 1, 8, 14, 25, 26


@dataclass
class Line:
    """Where datagrams go out and come in.  A connected socket cannot hear what multicast brings."""

    out: socket.socket
    back: socket.socket

    def __post_init__(self) -> None:
        # One system call a datagram: a blocking recv that gives up by itself.
        self.back.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", PATIENCE_S, 0))

    def load(self, firsts: list[bytes], follow: Callable[[bytes], bytes | None]) -> list[bytes]:
        """Carry out all exchanges, never more than WINDOW at a time; the last answer of each."""
        send, recv = self.out.send, self.back.recv
        waiting, last = iter(firsts), list[bytes]()
        for _, datagram in zip(range(WINDOW), waiting, strict=False):
            send(datagram)
        try:
            while len(last) < len(firsts):
                answer = recv(2048)
                following = follow(answer)
                if following is None:
                    last.append(answer)
                    following = next(waiting, None)
                if following is not None:
                    send(following)
        except BlockingIOError:
            raise LabError(f"lost: {len(firsts)} begun, {len(last)} finished") from None
        return last


class Ddpd:
    """ddpd, each ask and answer sealed; its grantees are those of run.py."""

    program = "ddpd.py"

    def __init__(self, name: str, wrap: tuple[str, ...] = ()) -> None:
        self.name = name
        self.wrap = (*FIRST_CORE.split(), *wrap)

    def start(self, giver: Host, asker: Host, leases: int) -> int:
        self.askers = [run.Asker(n + 1) for n in range(leases)]
        sections = "".join(f"[grantee g{n}]\nkey = {ddpd.show_key(one.s.public)}\npools = home\nroute = none\n"
                           for n, one in enumerate(self.askers))
        daemon = giver.ddpd(f"[ddpd]\nlisten = [{GIVER}]:{run.PORT}\nload = 1000000\n"
                            f"[pool home]\nprefix = {run.POOL}\ngive = /56\n{sections}", wrap=self.wrap)
        daemon.write_key(run.GRANTOR.secret)
        daemon.start()
        sock = asker.socket(socket.AF_INET6)
        sock.connect((GIVER, run.PORT))
        self.line = Line(sock, sock)
        assert daemon.process
        return daemon.process.pid

    def firsts(self) -> list[bytes]:
        return [asker.ask() for asker in self.askers]

    def follow(self, answer: bytes) -> None:
        """An answer is the end of it."""

    def renewals(self, answers: list[bytes]) -> list[bytes]:
        by_id = {asker.ends.attempts[-1].id: asker for asker in self.askers}
        for answer in answers:
            by_id[answer[4:8]].hear(answer)
        return [asker.ask() for _ in range(2) for asker in self.askers]

    def prove(self, answers: list[bytes]) -> set[str]:
        by_session = {asker.ends.session.id: asker for asker in self.askers if asker.ends.session}
        heard = [by_session[answer[4:12]].hear(answer) for answer in answers]
        return {str(grant.prefix) for answer in heard if isinstance(answer, ddpd.Answer) for grant in answer.grants}


class Dhcp:
    """A DHCPv6 program: SOLICIT, ADVERTISE, REQUEST, REPLY; later RENEW, REPLY."""

    def __init__(self, name: str, program: str, configure: Callable[[Path], str], rapid: bool = False) -> None:
        self.name, self.program, self.configure = name, program, configure
        self.more = option(OPTION_RAPID) if rapid else b""

    def start(self, giver: Host, asker: Host, leases: int) -> int:
        self.leases, self.transactions = leases, count(1)
        program = giver.start(self.configure(giver.folder))
        with asker.entered():
            where = "ff02::1:2", SERVER_PORT, 0, socket.if_nametoindex("eth0")
        out, back = (asker.socket(socket.AF_INET6) for _ in range(2))
        for sock in out, back:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("::", CLIENT_PORT))
        out.connect(where)
        self.line = Line(out, back)
        eventually(lambda: not program.running() or self.answers(), 20, f"{self.program} answers")
        if not program.running():
            raise LabError(f"{self.program} ended by itself\n{program.log()}")
        return program.process.pid

    def answers(self) -> bool:
        """A SOLICIT of nobody in particular; no answer to it is left when this returns True."""
        self.line.out.send(self.solicit(2**32 - 1))
        time.sleep(0.1)
        found = 0
        try:
            while True:
                found += len(self.line.back.recv(2048, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return found > 0

    def head(self, kind: int) -> bytes:
        return (kind << 24 | next(self.transactions)).to_bytes(4)

    def solicit(self, number: int) -> bytes:
        duid = struct.pack("!HHHI", 3, 1, 0x020C, number)
        return (self.head(SOLICIT) + option(OPTION_CLIENTID, duid) + option(OPTION_IA_PD, struct.pack("!3I", 1, 0, 0))
                + ELAPSED + (self.more if number < self.leases else b""))

    def firsts(self) -> list[bytes]:
        return [self.solicit(n) for n in range(self.leases)]

    def follow(self, answer: bytes) -> bytes | None:
        """The options of an ADVERTISE are those that a REQUEST brings back."""
        return self.head(REQUEST) + answer[4:] + ELAPSED if answer[0] == ADVERTISE else None

    def renewals(self, answers: list[bytes]) -> list[bytes]:
        if len(self.prove(answers)) != self.leases:
            raise LabError(f"{self.program} gave a prefix twice")
        return [] if self.more else [self.head(RENEW) + answer[4:] + ELAPSED for _ in range(2) for answer in answers]

    def prove(self, answers: list[bytes]) -> set[str]:
        return {leased(answer) for answer in answers}


Giver = Ddpd | Dhcp


def option(code: int, value: bytes = b"") -> bytes:
    return struct.pack("!HH", code, len(value)) + value


ELAPSED = option(OPTION_ELAPSED, bytes(2))


def options(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        code, length = struct.unpack_from("!HH", data)
        found[code], data = data[4:4 + length], data[4 + length:]
    return found


def leased(reply: bytes) -> str:
    """The prefix that a REPLY grants."""
    inside = options(options(reply[4:])[OPTION_IA_PD][12:])
    if reply[0] != REPLY or OPTION_IAPREFIX not in inside:
        raise LabError(f"nothing granted: {reply.hex()}")
    _, valid, length, address = struct.unpack_from("!IIB16s", inside[OPTION_IAPREFIX])
    if not valid:
        raise LabError(f"granted for no time: {reply.hex()}")
    return f"{socket.inet_ntop(socket.AF_INET6, address)}/{length}"


def kea(folder: Path) -> str:
    (folder / "kea.json").write_text(dumps({"Dhcp6": {
        "data-directory": str(folder), "interfaces-config": {"interfaces": ["eth0"]},
        "lease-database": {"type": "memfile", "name": str(folder / "leases.csv"), "lfc-interval": 0},
        "preferred-lifetime": 21600, "valid-lifetime": 43200,
        "subnet6": [{"id": 1, "subnet": "fd00:1::/64", "interface": "eth0", "rapid-commit": True, "pd-pools": [
            {"prefix": run.POOL.host, "prefix-len": run.POOL.length, "delegated-len": 56}]}],
        "loggers": [{"name": "kea-dhcp6", "severity": "WARN", "output_options": [{"output": "stderr"}]}]}}))
    places = " ".join(f"KEA_{what}_DIR={folder}" for what in ("PIDFILE", "LOCKFILE", "CONTROL_SOCKET"))
    return f"env {places} {FIRST_CORE} kea-dhcp6 -c {folder}/kea.json"


def dhcpd(folder: Path) -> str:
    (folder / "dhcpd.conf").write_text(
        "authoritative; default-lease-time 43200; preferred-lifetime 21600; option dhcp6.rapid-commit;\n"
        "subnet6 fd00:1::/64 { prefix6 2001:db8:: 2001:db8:ffff:ff00:: /56; }\n")
    (folder / "leases").touch()
    return f"{FIRST_CORE} dhcpd -6 -f -q --no-pid -cf {folder}/dhcpd.conf -lf {folder}/leases eth0"


@dataclass(frozen=True)
class Figure:
    """One run of exchanges: how many a second, CPU of the giver each, and what both sides' cores did."""

    per_s: float
    cpu_us: float
    giver: float
    generator: float
    others: float

    @property
    def limit(self) -> str:
        if self.others > NOISY:
            return "OTHERS"
        return "giver" if self.giver >= BUSY else "GENERATOR" if self.generator >= BUSY else "waits"


def cores(pid: int) -> tuple[float, float]:
    """Seconds that a process had a core, and that it wanted one in vain; all threads."""
    rows = [(task / "schedstat").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
    ran, waited = (sum(int(row[n]) for row in rows) / 1e9 for n in (0, 1))
    return ran, waited


def measure(pid: int, giver: Giver, firsts: list[bytes]) -> tuple[Figure, list[bytes]]:
    before = time.perf_counter(), *cores(pid), *cores(os.getpid())
    answers = giver.line.load(firsts, giver.follow)
    after = time.perf_counter(), *cores(pid), *cores(os.getpid())
    took, ran, waited, own, own_waited = (now - then for now, then in zip(after, before, strict=True))
    return Figure(len(firsts) / took, ran / len(firsts) * 1e6, ran / took, own / took,
                  (waited + own_waited) / took), answers


def one_run(giver: Giver, leases: int) -> dict[str, Figure]:
    """A fresh start: so many first grants, then each renewed twice."""
    with Lab("giver", "asker") as lab:
        lab.cable(f"giver:eth0 {GIVER}/64", "asker:eth0 fd00:1::2/64")
        pid = giver.start(lab["giver"], lab["asker"], leases)
        found = {}
        found["first grants"], answers = measure(pid, giver, giver.firsts())
        again = giver.renewals(answers)
        if again:
            found["renewals"], answers = measure(pid, giver, again)
        if len(giver.prove(answers)) != leases:
            raise LabError(f"{giver.name}: {leases} leases, but {len(giver.prove(answers))} prefixes")
        return found


def quietly(giver: Giver, leases: int) -> dict[str, Figure]:
    """One run; the transcript of the laboratory is of interest if it fails."""
    transcript = StringIO()
    try:
        with redirect_stdout(transcript):
            return one_run(giver, leases)
    except (AssertionError, OSError):
        print(transcript.getvalue()[-4000:], file=sys.stderr)
        raise


def median(figures: list[Figure]) -> Figure:
    return sorted(figures, key=lambda figure: figure.per_s)[len(figures) // 2]


def table(found: dict[str, dict[str, Figure]]) -> None:
    for phase in "first grants", "renewals":
        rows = {name: figures[phase] for name, figures in found.items() if phase in figures}
        beside = [name for name in ("Kea", "ISC dhcpd") if name in rows]
        print(f"\n{phase:22}{'a second':>9}" + "".join(f"{'x ' + name:>13}" for name in beside)
              + f"{'CPU us each':>13}{'giver':>8}{'generator':>11}{'others':>8}  limit")
        for name, row in rows.items():
            print(f"  {name:20}{row.per_s:9,.0f}" + "".join(f"{row.per_s / rows[one].per_s:13.2f}" for one in beside)
                  + f"{row.cpu_us:13.1f}{row.giver:8.0%}{row.generator:11.0%}{row.others:8.0%}"
                  f"  {row.limit}")


def givers() -> list[Giver]:
    every: list[Giver] = [
        Ddpd("ddpd"), Ddpd("ddpd, no flush", (sys.executable, "-c", NO_FLUSH)),
        Dhcp("Kea", "kea-dhcp6", kea), Dhcp("Kea, rapid commit", "kea-dhcp6", kea, rapid=True),
        Dhcp("ISC dhcpd", "dhcpd", dhcpd), Dhcp("ISC dhcpd, rapid", "dhcpd", dhcpd, rapid=True)]
    for program in ("kea-dhcp6", "dhcpd"):
        if not shutil.which(program):
            print(f"{program} is not installed: left out")
    return [giver for giver in every if isinstance(giver, Ddpd) or shutil.which(giver.program)]


def bench(leases: int = 10_000, runs: int = 3) -> None:
    load = os.getloadavg()[0]
    print(f"{leases:,} leases, {WINDOW} asks in flight, median of {runs}; load of the machine before: {load:.2f}"
          + (" (NOT QUIET: do not trust this)" if load >= 1 else ""))
    found: dict[str, dict[str, list[Figure]]] = {}
    chosen = givers()
    for _ in range(runs):                 # in turn: what disturbs one disturbs all
        for giver in chosen:
            for phase, figure in quietly(giver, leases).items():
                found.setdefault(giver.name, {}).setdefault(phase, []).append(figure)
    table({name: {phase: median(figures) for phase, figures in phases.items()} for name, phases in found.items()})


def stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(bench: Callable[..., None], argv: list[str]) -> int:
    """In namespaces, on the last core; argv: numbers, for bench."""
    why = own_world([sys.executable, *sys.argv])
    if why:
        print(f"bench: no network namespaces here: {why}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, stop)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        bench(*(int(word) for word in argv))
    except KeyboardInterrupt:
        print("bench: interrupted; nothing is left behind", file=sys.stderr)
        return 130
    except AssertionError as error:     # LabError is one, and so is what daemon.py says
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(bench, sys.argv[1:]))
