"""ddpd's neighbour discovery proxy beside ndppd, npd6 and the kernel: the same solicitations, in the same minutes.

    make bench                       after the others
    tests/bench/neighbours.py [RUNS] only this; what is not installed is left out

        asker up0 ---- px0 proxy px1 ---- in0 inside      three namespaces; proxy on the first core, asker on the last

Solicitations are written beforehand and sent from a ring that the kernel reads by itself, BATCH with one system call,
never more than WINDOW unanswered (a closed loop); the kernel counts the advertisements too, by a filter, so nothing is
done here for any of them.  `again` are 1,000 targets in turn (or as many as the kernel has), `new` 100,000 of which
each is asked for once.  `waits` is the share of the time in which the generator had nothing to do but to wait for the
proxy: near 100 % the figure is the proxy's.  `mirror` is no proxy: the other end sends each frame back, on the
generator's own core, which is the worst for it; what it can do at least.  The kernel's CPU is nobody's.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import ddpd  # noqa: E402 - found by the line above
from bench.beside import FIRST_CORE, cores, main  # noqa: E402
from bench.run import rss_kb  # noqa: E402
from lab import IP, Host, Lab, eventually  # noqa: E402

PREFIX = ddpd.parse_prefix("2001:db8:77:1::/64")
AGAIN, NEW = 1_000, 100_000
WINDOW, BATCH = 256, 64
PATIENCE_S = 0.2
PHASE_S = 2.0
RATE, PINGS = 200, 400                    # for latencies: a second, and in all
SLOT, SLOTS = 128, 4096                   # bytes of a frame in the ring with its header, and how many
PACKET_STATISTICS, PACKET_VERSION, PACKET_TX_RING, PACKET_IGNORE_OUTGOING, TPACKET_V2, SEND_IT = 6, 10, 13, 23, 1, 1
ASKER_IP = "fe80::a5"


@cache
def targets() -> list[bytes]:
    """The first 32 bits of the host part count, so that leases hold them; the others are spread."""
    return [ddpd.Prefix(6, PREFIX.first + (n << 32) + (n + 1) * 0x9E3779B1 % 2**32, 128).packed for n in range(NEW)]


class Asker:
    """Solicitations out, advertisements counted."""

    def __init__(self, host: Host, kind: int = ddpd.ADVERTISEMENT) -> None:
        self.out, self.count, self.back = (host.socket(socket.AF_PACKET, socket.SOCK_RAW) for _ in range(3))
        for sock, room in (self.count, 1), (self.back, 1 << 20):
            ddpd.attach_filter(sock, ddpd.neighbour_program(kind, [PREFIX]))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            sock.setsockopt(ddpd.SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(PATIENCE_S * 1e6)))
        self.count.bind(("up0", ddpd.ETH_P_IPV6))
        self.out.setsockopt(ddpd.SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        self.out.setsockopt(ddpd.SOL_PACKET, PACKET_TX_RING, struct.pack("4I", SLOT * SLOTS, 1, SLOT, SLOTS))
        self.ring = memoryview(mmap.mmap(self.out.fileno(), SLOT * SLOTS))
        self.slot = 0                                             # where the kernel looks next
        self.out.bind(("up0", 0))
        self.mac = self.out.getsockname()[4]
        place = ddpd.Place("up0", 0, self.mac, (socket.inet_pton(socket.AF_INET6, ASKER_IP),), frozenset())
        self.frames = [ddpd.solicit(place, target) for target in targets()]

    def answered(self) -> int:
        """Since this was asked last."""
        found: int = struct.unpack("II", self.count.getsockopt(ddpd.SOL_PACKET, PACKET_STATISTICS, 8))[0]
        return found

    def flood(self, frames: list[bytes], most_s: float = PHASE_S) -> tuple[int, int, float, float]:
        """Sent, answered, seconds, and seconds with nothing to do; frames go round until most_s is over, or once."""
        once = len(frames) == NEW
        image = b"".join((struct.pack("II24x", SEND_IT, len(frame)) + frame).ljust(SLOT, b"\0")      # as in the ring
                         for frame in frames[:len(frames) // BATCH * BATCH])
        ring, send, counted, clock = self.ring, self.out.send, self.answered, time.perf_counter
        size, at, sent, answered, open_, waited = BATCH * SLOT, 0, 0, 0, 0, 0.0
        counted()
        start = last = clock()
        while clock() < start + most_s and not (once and sent * SLOT == len(image)):
            if open_ <= WINDOW - BATCH:
                ring[self.slot:self.slot + size] = image[at:at + size]
                send(b"")
                open_, sent = open_ + BATCH, sent + BATCH
                at, self.slot = (at + size) % len(image), (self.slot + size) % len(ring)
            idle = clock()
            while not (found := counted()) and open_ > WINDOW - BATCH and clock() < last + PATIENCE_S:
                pass
            now = clock()
            answered, waited = answered + found, waited + (now - idle) * (open_ > WINDOW - BATCH)
            if found or now > last + PATIENCE_S:
                last, open_ = now, open_ - found if found else 0       # found nothing: lost
        while open_ > 0 and clock() < last + PATIENCE_S:
            if found := counted():
                last, open_, answered = clock(), open_ - found, answered + found
        return sent, answered, last - start, waited

    def latencies(self, frames: list[bytes]) -> Iterator[float]:
        """Seconds until the answer, PATIENCE_S if there is none."""
        self.back.bind(("up0", ddpd.ETH_P_IPV6))
        first = time.perf_counter()
        for n in range(PINGS):
            time.sleep(max(0.0, first + n / RATE - time.perf_counter()))
            start, frame = time.perf_counter(), frames[n % len(frames)]
            self.back.send(frame)
            with suppress(BlockingIOError):
                while self.back.recv(2048)[62:78] != frame[62:78]:
                    pass
            yield min(time.perf_counter() - start, PATIENCE_S)
        self.back.close()


@dataclass(frozen=True)
class Proxy:
    name: str
    start: Callable[[Host], None]
    program: str = "ip"
    reaches: int = NEW                    # for so many targets it can answer


def by_static(host: Host) -> None:
    host.ddpd(f"[ndp px0]\nproxy = static {PREFIX}\n", wrap=tuple(FIRST_CORE.split())).start()


def by_leases(held: int, length: int) -> Callable[[Host], None]:
    """Leases side by side from the first address on: they hold all targets."""
    def records() -> Iterator[ddpd.Record]:
        yield {"kind": "run", "clean": True, "boot": "", "at": 0.0, "epoch": 0}
        for n in range(held):
            prefix = ddpd.Prefix(6, PREFIX.first + (n << 128 - length), length)
            key = (n + 10**9).to_bytes(32, "little")
            lease = ddpd.Lease(key, 0, prefix, ddpd.LeaseState.ACTIVE, 43200.0, 43200.0, epoch=0)
            yield lease.record(ddpd.Now(0.0, 0.0))

    def start(host: Host) -> None:
        daemon = host.ddpd(f"[pool all]\nprefix = {PREFIX}\ngive = /{length}\n[ndp px0]\nproxy = leased\n",
                           wrap=tuple(FIRST_CORE.split()))
        (daemon.dir / "leases.json").write_bytes(b"".join(ddpd.LeaseFile().whole(records())))
        daemon.start()
    return start


def by_ndppd(host: Host) -> None:
    (host.folder / "ndppd.conf").write_text(
        f"route-ttl 30000\nproxy px0 {{\nrouter yes\ntimeout 500\nttl 30000\nrule {PREFIX} {{\nstatic\n}}\n}}\n")
    host.start(f"{FIRST_CORE} ndppd -c {host.folder}/ndppd.conf -p {host.folder}/ndppd.pid")


def by_npd6(host: Host) -> None:
    (host.folder / "npd6.conf").write_text(
        "prefix=2001:0db8:0077:0001:\ninterface = px0\nralogging = off\nlisttype = none\nlistlogging = off\n"
        "collectTargets = 0\nlinkOption = false\nignoreLocal = true\nrouterNA = true\nmaxHops = 255\n"
        "pollErrorLimit = 20\n")
    host.start(f"{FIRST_CORE} npd6 -f -c {host.folder}/npd6.conf -l /dev/null")


def by_kernel(held: int) -> Callable[[Host], None]:
    def start(host: Host) -> None:
        host.sysctl({"net/ipv6/conf/px0/proxy_ndp": 1, "net/ipv6/neigh/px0/proxy_delay": 0})
        host.ask("ip -6 -batch -", "".join(f"neigh add proxy {socket.inet_ntop(socket.AF_INET6, target)} dev px0\n"
                                          for target in targets()[:held]))
    return start


def by_mirror(host: Host) -> None:
    host.nft('table netdev mirror { chain in { type filter hook ingress device "px0" priority 0; fwd to "px0"; }\n}')


PROXIES = [
    Proxy("ddpd, static", by_static),
    *(Proxy(f"ddpd, {held:,} leases", by_leases(held, length)) for held, length in ((1, 64), (1_000, 89), (NEW, 96))),
    Proxy("ndppd, static", by_ndppd, "ndppd"), Proxy("npd6", by_npd6, "npd6"),
    *(Proxy(f"kernel, {held:,}", by_kernel(held), reaches=held) for held in (1_000, 10_000)),
    Proxy("mirror", by_mirror, "nft")]


@dataclass
class Found:
    per_s: dict[str, list[float]] = field(default_factory=lambda: {"again": [], "new": []})
    cpu_ms: dict[str, list[float]] = field(default_factory=lambda: {"again": [], "new": []})      # of 10,000 answers
    waits: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    rss_kb: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


def one_run(proxy: Proxy, found: Found) -> None:
    with Lab("asker", "proxy*", "inside") as lab:
        lab.cable(f"asker:up0 {ASKER_IP}/64", "proxy:px0 2001:db8:77:ff::1/64")
        lab.cable("proxy:px1", "inside:in0")
        host, mirror = lab["proxy"], proxy.name == "mirror"
        proxy.start(host)
        asker = Asker(lab["asker"], ddpd.SOLICITATION if mirror else ddpd.ADVERTISEMENT)
        again, new = asker.frames[:min(proxy.reaches, AGAIN)], asker.frames[:proxy.reaches]
        eventually(lambda: asker.flood(again[:BATCH], 0.001)[1], 20, f"{proxy.name} answers")
        pids = [int(word) for word in subprocess.run([IP, "netns", "pids", host.netns], check=True, text=True,
                                                     capture_output=True).stdout.split()]
        asker.flood(again, 0.1)
        for phase, frames in ("again", again), ("new", new):
            before = sum(cores(pid)[0] for pid in pids)
            sent, answered, took, waited = asker.flood(frames)
            found.per_s[phase].append(answered / took)
            found.cpu_ms[phase].append((sum(cores(pid)[0] for pid in pids) - before) / max(answered, 1) * 1e7)
            found.waits.append(waited / took)
            found.lost.append(1 - answered / sent)
        found.rss_kb.append(sum(map(rss_kb, pids)))
        found.latencies += [] if mirror else asker.latencies(again)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def table(found: dict[str, Found]) -> None:
    median, peers = statistics.median, [name for name in ("ndppd, static", "npd6") if name in found]
    print(f"\n{'a second, ms, MB':21}{'again':>9}{'new':>9}" + "".join(f"{'x ' + peer[:5]:>15}" for peer in peers)
          + f"{'p50':>8}{'p99':>8}{'CPU/10k':>9}{'new':>7}{'RSS':>7}{'lost':>7}{'waits':>7}")
    for name, row in found.items():
        print(f"  {name:19}" + "".join(f"{median(rates):9,.0f}" for rates in row.per_s.values())
              + "".join(f"{median(rates) / median(found[peer].per_s[phase]):{8 if phase == 'again' else 7}.2f}"
                        for peer in peers for phase, rates in row.per_s.items())
              + "".join(f"{1000 * sorted(row.latencies)[len(row.latencies) * percent // 100]:8.3f}"
                        if row.latencies else f"{'-':>8}" for percent in (50, 99))
              + (f"{median(row.cpu_ms['again']):9.1f}{median(row.cpu_ms['new']):7.1f}{median(row.rss_kb) / 1024:7.1f}"
                 if any(row.rss_kb) else f"{'-':>9}{'-':>7}{'-':>7}") + f"{max(row.lost):7.1%}{min(row.waits):7.0%}")


def bench(runs: int = 3) -> None:
    found = {proxy.name: Found() for proxy in PROXIES if shutil.which(proxy.program)}
    for _ in range(runs):                 # in turn: what disturbs one disturbs all
        for proxy in PROXIES:
            with redirect_stdout(StringIO()):
                if proxy.name in found:
                    one_run(proxy, found[proxy.name])
    table(found)


if __name__ == "__main__":
    sys.exit(main(bench, sys.argv[1:]))
