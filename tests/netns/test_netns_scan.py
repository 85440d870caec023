"""A scan of a /64 costs a neighbour proxy neither memory nor those that are asked for meanwhile.

    asker up0 ---- px0 proxy px1 ---- in0 inside

Each target is asked for once, RATE a second, while addresses of a lease are asked for PINGS times a second.
DDPD_SCAN=1000000 scans so many targets; by itself the scan is as long as it takes to show what grows.

How long an answer takes is judged here, and only here.  A machine that has no time for ddpd makes it slow:
the best of ATTEMPTS counts, each at half the rate of the one before, and no more are made than it takes.
Memory is judged over all of them.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import pytest

import ddpd
from daemon import Daemon
from lab import Host, Lab, Program, eventually, needs

pytestmark = [needs("ip link add dev px0 type veth"), pytest.mark.slow]

SCANNED, RATE, BURST = int(os.environ.get("DDPD_SCAN", "200000")), 25_000, 25
PINGS, PATIENCE_S = 100, 0.5
GROWN_KB, MEDIAN_S, LOST = 1024, 0.001, 0.01
ASKER_IP = "fe80::a5"
LEASED = "2001:db8:42:1::"
ATTEMPTS = 3
LEASES = 100                              # more than the kernel's filter knows one by one: it lets the pool through
UNLEASED, OTHER = "2001:db8:42:ffff::", "2001:db8:77:1::"


class Kind(NamedTuple):
    rule: str
    scanned: str = OTHER
    inside: bool = False                  # everything there answers
    fate: str = "answered"                # of the most


KINDS = {
    "what nobody has leased": Kind("", UNLEASED, fate="nobody's"),
    "what is leased": Kind("", "2001:db8:42:2::"),
    "static": Kind(f"static {OTHER}/64"),
    "auto": Kind(f"auto {OTHER}/64"),
    "iface, all silent": Kind(f"iface {OTHER}/64 px1", fate="too many"),
    "iface, all answering": Kind(f"iface {OTHER}/64 px1", inside=True, fate="too many"),
}


# ==== programs of their own: this file, started again ==================================


def packet_socket(dev: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((dev, 0))
    return sock


def written(mac: bytes, targets: Iterator[bytes]) -> list[bytes]:
    place = ddpd.Place("", 0, mac, (socket.inet_pton(socket.AF_INET6, ASKER_IP),), frozenset())
    return [ddpd.solicit(place, target) for target in targets]


def scan(prefix: str, count: int, rate: int) -> None:
    """Spread over the /64, none twice."""
    sock, first = packet_socket("up0"), ddpd.parse_prefix(f"{prefix}/64").first
    mac = sock.getsockname()[4]
    frames = written(mac, (ddpd.Prefix(6, first + (n + 1) * 0x9E3779B97F4A7C15 % 2**64, 128).packed
                           for n in range(count)))
    print("begins", flush=True)
    start = time.monotonic()
    for n in range(0, count, BURST):
        time.sleep(max(0.0, start + n / rate - time.monotonic()))
        for frame in frames[n:n + BURST]:
            sock.send(frame)
    print(f"ends {time.monotonic() - start:.2f}", flush=True)


def answer_all() -> None:
    """All that is asked for on in0 is here."""
    sock = packet_socket("in0")
    mac = sock.getsockname()[4]
    ddpd.attach_filter(sock, ddpd.neighbour_program(ddpd.SOLICITATION, [ddpd.parse_prefix(f"{OTHER}/64")]))
    sock.bind(("in0", ddpd.ETH_P_IPV6))
    sock.setsockopt(ddpd.SOL_PACKET, ddpd.PACKET_ADD_MEMBERSHIP,
                    struct.pack("=iHH8x", socket.if_nametoindex("in0"), ddpd.PACKET_MR_ALLMULTI, 0))
    print("begins", flush=True)
    while True:
        heard = ddpd.read_solicitation(sock.recv(2048))
        sock.send(ddpd.sealed_frame(heard.mac + mac, heard.target, heard.source, b"\x88\0",
                                    b"\x60\0\0\0" + heard.target + b"\2\1" + mac))


def program(host: Host, command: str) -> Program:
    """One of the above, begun."""
    folder = Path(ddpd.__file__).parent
    started = host.start(f"env PYTHONPATH={folder}:{folder}/tests {sys.executable} {__file__} {command}")
    eventually(lambda: "begins" in started.log(), 60, f"{command} begins")
    return started


# ==== the test ========================================================================


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("asker", "proxy*", "inside") as lab:
        lab.cable(f"asker:up0 {ASKER_IP}/64", "proxy:px0 2001:db8:77:ff::1/64")
        lab.cable("proxy:px1", "inside:in0")
        lab["proxy"].ip(f"route add {OTHER}/64 dev px1")
        yield lab


def with_leases(host: Host, rule: str) -> Daemon:
    daemon = host.ddpd("[pool home]\nprefix = 2001:db8:42::/48\ngive = /64\n"
                       f"[ndp px0]\nproxy = leased\n        {rule}\n")
    leases = [ddpd.Lease(bytes([n] * 32), 0, ddpd.parse_prefix(f"2001:db8:42:{n:x}::/64"), ddpd.LeaseState.ACTIVE,
                         43200.0, 43200.0, epoch=0) for n in range(1, LEASES + 1)]
    records = [{"kind": "run", "clean": True, "boot": "", "at": 0.0, "epoch": 0},
               *(lease.record(ddpd.Now(0.0, 0.0)) for lease in leases)]
    (daemon.dir / "leases.json").write_bytes(b"".join(ddpd.LeaseFile().whole(records)))
    return daemon.start()


def rss_kb(pid: int) -> int:
    [row] = [row for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if row.startswith("Rss:")]
    return int(row.split()[1])


def cpu_s(pid: int) -> tuple[float, float]:
    """Seconds that it had a core, and that it wanted one in vain."""
    ran, waited, _ = map(int, Path(f"/proc/{pid}/schedstat").read_text().split())
    return ran / 1e9, waited / 1e9


class Pinger:
    """Asks for leased addresses in turn, and sees how long each answer takes."""

    def __init__(self, host: Host) -> None:
        self.sock = host.socket(socket.AF_PACKET, socket.SOCK_RAW)
        ddpd.attach_filter(self.sock, ddpd.neighbour_program(ddpd.ADVERTISEMENT, [ddpd.parse_prefix(f"{LEASED}/64")]))
        self.sock.bind(("up0", ddpd.ETH_P_IPV6))
        self.sock.settimeout(PATIENCE_S)
        self.frames = cycle(written(self.sock.getsockname()[4], (
            ddpd.parse_prefix(f"{LEASED}{n:x}/128").packed for n in range(1, PINGS))))

    def ping(self) -> float:
        """Seconds; inf: lost."""
        frame, start = next(self.frames), time.perf_counter()
        self.sock.send(frame)
        try:
            while ddpd.read_advertisement(self.sock.recv(2048)).target != frame[62:78]:
                pass                      # of an earlier one, late
        except TimeoutError:
            return float("inf")
        return time.perf_counter() - start


class Scanned(NamedTuple):
    """What a scan did to those that asked meanwhile, and to ddpd."""

    took: list[float]
    highest_kb: int

    @property
    def lost(self) -> float:
        return self.took.count(float("inf")) / len(self.took)

    @property
    def was_no_burden(self) -> bool:
        return statistics.median(self.took) < MEDIAN_S and self.lost < LOST


def one_scan(lab: Lab, pid: int, pinger: Pinger, prefix: str, slower: int) -> Scanned:
    took, highest_kb, before_s, before_wait_s = list[float](), 0, *cpu_s(pid)
    scanner = program(lab["asker"], f"scan {prefix} {SCANNED >> slower} {RATE >> slower}")
    start = time.monotonic()
    while scanner.running():
        took.append(pinger.ping())
        highest_kb = max(highest_kb, rss_kb(pid) if len(took) % PINGS == 0 else 0)
        time.sleep(max(0.0, start + len(took) / PINGS - time.monotonic()))
    assert "ends" in scanner.log()
    found = Scanned(sorted(took), max(highest_kb, rss_kb(pid)))
    ran_s, waited_s = (after - before for after, before in zip(cpu_s(pid), (before_s, before_wait_s), strict=True))
    half, most = (found.took[len(took) * percent // 100] * 1e6 for percent in (50, 99))
    print(f"[=] {SCANNED >> slower} targets in {scanner.log().split()[-1]} s; ddpd had a core for {ran_s:.2f} s and "
          f"wanted one in vain for {waited_s:.2f} s; of {len(took)} answers half came in {half:.0f} us, "
          f"99 % in {most:.0f} us, {found.lost:.2%} not")
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_scan_costs_no_memory_and_nobody_has_to_wait(lab: Lab, name: str) -> None:
    kind = KINDS[name]
    daemon, pinger = with_leases(lab["proxy"], kind.rule), Pinger(lab["asker"])
    assert daemon.process
    pid = daemon.process.pid
    if kind.inside:
        program(lab["inside"], "answer")
    eventually(lambda: pinger.ping() < PATIENCE_S)
    first_kb, scans = rss_kb(pid), list[Scanned]()
    while len(scans) < ATTEMPTS and not (scans and scans[-1].was_no_burden):
        scans.append(one_scan(lab, pid, pinger, kind.scanned, len(scans)))
    grown_kb = max(scanned.highest_kb for scanned in scans) - first_kb
    [row] = daemon.status()["ndp"]
    fates = {"answered": row["answered"], **row["ignored"]}
    print(f"[=] {name}: +{grown_kb} kB on {first_kb}; heard {row['heard']}: {fates}")
    assert fates[kind.fate] > SCANNED / 2                  # it was a scan, and what the name says
    assert grown_kb <= GROWN_KB
    assert scans[-1].was_no_burden


if __name__ == "__main__":
    if sys.argv[1] == "scan":
        scan(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        answer_all()
