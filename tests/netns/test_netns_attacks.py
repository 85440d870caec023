"""Attacks that need hosts and interfaces: what is refused is not in the kernel either.

    exit:down ------ home:up  home:br-lan        what the grantor may make of home's kernel
    192.0.2.1        192.0.2.2

    hub:mid --- mid:left  mid:right --- far:up   an ask that comes by way of somebody
    192.0.2.1   192.0.2.2 198.51.100.1  198.51.100.2
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("noise.connection", reason="pip install noiseprotocol")

import peer
from daemon import Daemon
from lab import DDPD_PORT, Host, Lab, eventually, needs, secret_of
from peer import Grant, GrantorPeer

pytestmark = needs("ip link add dev eth0 type veth")

GRANTOR = """
[ddpd]
[pool six]
prefix   = 2001:db8:42::/48
give     = /56
lifetime = 20s
[grantee {name}]
key   = @{name}
pools = six
"""

HOME = """
[grantor exit]
key     = @exit
address = 192.0.2.1
ask     = 0: ::/56 on br-lan
          1: 0.0.0.0/24 on br-lan
          2: ::/64 on br-lan
default = dev up
"""
LAN = "2001:db8:ffff:10::1/64 10.9.8.1/24"


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with home_and_exit() as lab:
        yield lab


@pytest.fixture
def lab(world: Lab) -> Iterator[Lab]:
    yield world
    world.leave()


@contextmanager
def home_and_exit() -> Iterator[Lab]:
    with Lab("exit*", "home*") as lab:
        lab.cable("exit:down 192.0.2.1/24", "home:up 192.0.2.2/24")
        lab["home"].bridge("br-lan")
        lab["home"].address("br-lan", *LAN.split())
        yield lab


# ==== a grantor that is not to be trusted =============================================


class Liar:
    """A grantor of this process, in the namespace of `host`."""

    def __init__(self, host: Host) -> None:
        self.hub = GrantorPeer(secret_of("exit"))
        self.sock = host.socket(socket.AF_INET)
        self.sock.bind(("192.0.2.1", DDPD_PORT))
        self.asked = 0

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def answer(self, seconds: float, *grants: Grant, options: dict[int, list[bytes]] | None = None,
               until: Callable[[], bool] = bool) -> None:
        """Answer whatever comes with these."""
        self.sock.settimeout(0.05)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            try:
                datagram, source = self.sock.recvfrom(2048)
            except TimeoutError:
                continue
            try:
                ask = self.hub.read_ask(datagram)
            except peer.Wrong:                                    # a session of an earlier liar
                continue
            self.asked += 1
            self.sock.sendto(self.hub.answer(ask, grants=grants, times=(600, 900), length=1232,
                                             options=options), source)


def grant(slot: int, prefix: str, valid: int = 3600) -> Grant:
    return Grant(slot, ipaddress.ip_network(prefix), valid // 2, valid)


BAD = {
    "home's LAN, around it":   [grant(0, "2001:db8:ffff::/56")],
    "home's LAN itself":       [grant(2, "2001:db8:ffff:10::/64")],
    "home's IPv4 LAN":         [grant(1, "10.9.8.0/24")],
    "the link to the grantor": [grant(1, "192.0.2.0/24")],
    "unasked slot":            [grant(9, "2001:db8:1::/56")],
    "wrong length":            [grant(0, "2001:db8:1::/48")],
    "wrong family":            [grant(0, "10.1.1.0/24")],
    "loopback":                [grant(1, "127.0.0.0/24")],
    "this network":            [grant(1, "0.0.0.0/24")],
    "link-local":              [grant(1, "169.254.1.0/24"), grant(2, "fe80::/64")],
    "multicast":               [grant(1, "224.0.0.0/24"), grant(2, "ff02::/64")],
    "lifetimes of 0":          [grant(0, "2001:db8:1::/56", 0)],
    "300 of them":             [grant(9, "2001:db8:1::/56")] * 23,
}


@pytest.fixture(scope="module")
def doubting() -> Iterator[tuple[Host, Daemon, Liar, list[str]]]:
    """A daemon that has been given nothing yet, its liar, and what its kernel had before."""
    with home_and_exit() as lab, Liar(lab["exit"]) as liar:
        before = lab["home"].kernel()
        daemon = lab["home"].ddpd(HOME).start()
        yield lab["home"], daemon, liar, before


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_believed_is_not_in_the_kernel(
        doubting: tuple[Host, Daemon, Liar, list[str]], name: str) -> None:
    home, daemon, liar, before = doubting
    asked = liar.asked
    daemon.signal(signal.SIGUSR1)
    liar.answer(8, *BAD[name], until=lambda: liar.asked > asked)
    liar.answer(0.5, *BAD[name])
    assert 1 <= liar.asked - asked <= 3
    assert home.kernel() == before
    status = daemon.status()
    assert [row for row in status["held"] if row["prefix"]] == []
    if name not in ("lifetimes of 0", "unasked slot", "300 of them"):           # these are passed over in silence
        shown = str(status["grantors"])
        assert all(str(grant.prefix) in shown for grant in BAD[name])
        assert all(str(grant.prefix) in daemon.log() for grant in BAD[name])


def test_of_two_overlapping_grants_one_is_taken(lab: Lab) -> None:
    home = lab["home"]
    with Liar(lab["exit"]) as liar:
        daemon = home.ddpd(HOME).start()
        liar.answer(8, grant(0, "2001:db8:1::/56"), grant(2, "2001:db8:1:1::/64"),
                    until=lambda: liar.asked > 0)
        daemon.eventually(lambda: home.routes())
        held = {row["prefix"] for row in daemon.status()["held"] if row["prefix"]}
        assert held == {"2001:db8:1::/56"}
        assert not [line for line in home.kernel() if "2001:db8:1:1:" in line]


def test_options_reach_no_file_and_no_command(lab: Lab, tmp_path: Path) -> None:
    """What the hook is told has no control characters, whatever was sent."""
    home, out = lab["home"], tmp_path / "told"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\nenv -0 | tr '\\0' '|' >> {out}\n")
    hook.chmod(0o755)
    evil = {peer.WG_ENDPOINT: [b"$(touch pwned);`touch pwned`'\"&|"],
            peer.SEARCH: [b"good.example"]}
    with Liar(lab["exit"]) as liar:
        daemon = home.ddpd(HOME + f"hook = {hook}\n").start()
        liar.answer(8, grant(0, "2001:db8:1::/56"), options=evil, until=lambda: liar.asked > 0)
        daemon.eventually(lambda: out.exists() and "2001:db8:1::/56" in out.read_text())
        told = out.read_text()
        assert "DDPD_SEARCH=good.example" in told
        assert not any(ord(letter) < 32 for letter in told.replace("\n", ""))
        assert not list(Path.cwd().glob("pwned"))


# ==== an interface that goes and comes ================================================


def bound(daemon: Daemon, slots: int) -> bool:
    return sum(bool(row["prefix"]) for row in daemon.status()["held"]) == slots


def cpu_s(daemon: Daemon) -> float:
    assert daemon.process is not None
    stat = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def test_an_interface_that_vanishes_under_a_bound_grantee(lab: Lab) -> None:
    """The LAN goes and returns; then the way to the grantor does; nothing spins meanwhile."""
    exit_, home = lab["exit"], lab["home"]
    exit_.ddpd(GRANTOR.format(name="home")).start()
    daemon = home.ddpd(HOME.replace("1: 0.0.0.0/24 on br-lan\n", "").replace(
        "2: ::/64 on br-lan\n", "").replace("default = dev up\n", "")).start()
    daemon.eventually(lambda: bound(daemon, 1))
    [prefix] = [row["prefix"] for row in daemon.status()["held"]]
    address = str(next(ipaddress.ip_network(prefix).hosts())) + "/64"
    eventually(lambda: address in home.addresses("br-lan"))
    used = cpu_s(daemon)
    for _ in range(3):
        home.ip("link del dev br-lan")
        daemon.eventually(lambda: daemon.command("status").returncode == 0)
        assert [row["prefix"] for row in daemon.status()["held"]] == [prefix]
        assert any(line.startswith(f"unreachable {prefix}") for line in home.routes())
        home.bridge("br-lan")
        eventually(lambda: address in home.addresses("br-lan"), 5, "the address is back")
    home.ip("link set dev br-lan down")
    home.ip("link set dev br-lan up")                             # the kernel drops IPv6 addresses
    eventually(lambda: address in home.addresses("br-lan"), 5, "the address is back once more")
    home.ip("link del dev up")                                    # both ends of the cable
    time.sleep(3)
    assert [row["prefix"] for row in daemon.status()["held"]] == [prefix]
    lab.cable("exit:down 192.0.2.1/24", "home:up 192.0.2.2/24")
    daemon.eventually(lambda: daemon.status()["held"][0]["valid"] >= 18, 15)
    assert cpu_s(daemon) - used < 3
    assert "Traceback" not in daemon.log()
    home.address("br-lan", *LAN.split())


def test_an_address_that_somebody_takes_away_again_and_again(lab: Lab) -> None:
    """It is put back, and the daemon does not fight for it with all of the processor."""
    exit_, home = lab["exit"], lab["home"]
    exit_.ddpd(GRANTOR.format(name="home")).start()
    daemon = home.ddpd(HOME).start()
    daemon.eventually(lambda: bound(daemon, 1))
    [prefix] = [row["prefix"] for row in daemon.status()["held"]]
    address = str(next(ipaddress.ip_network(prefix).hosts())) + "/64"
    used = cpu_s(daemon)
    for _ in range(10):
        eventually(lambda: address in home.addresses("br-lan"), 5, "the address is there")
        home.ip(f"addr del {address} dev br-lan")
    eventually(lambda: address in home.addresses("br-lan"), 5, "the address is there")
    assert cpu_s(daemon) - used < 2


# ==== an ask that somebody relays =====================================================


@pytest.fixture
def relayed() -> Iterator[Lab]:
    with Lab("hub*", "mid", "far*") as lab:                       # mid forwards nothing by itself
        lab.cable("hub:mid 192.0.2.1/24 2001:db8:a::1/64", "mid:left 192.0.2.2/24 2001:db8:a::2/64")
        lab.cable("mid:right 198.51.100.1/24 2001:db8:b::1/64",
                  "far:up 198.51.100.2/24 2001:db8:b::2/64")
        lab["far"].bridge("br-lan")
        yield lab


RELAY = """
import socket, sys
listen, target = sys.argv[1:3]
family = socket.AF_INET6 if ":" in listen else socket.AF_INET
front, back = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
front.bind((listen, 3373))
back.connect((target, 3373))
import select
asker = None
while True:
    for sock in select.select([front, back], [], [])[0]:
        if sock is front:
            data, asker = front.recvfrom(2048)
            back.send(data)
        elif asker:
            front.sendto(back.recv(2048), asker)
"""

FAR = """
[grantor hub]
key     = @hub
address = {}
ask     = ::/56 on br-lan
"""


@pytest.mark.parametrize(("listen", "target"), [("2001:db8:b::1", "2001:db8:a::1"),
                                                ("198.51.100.1", "192.0.2.1")])
def test_who_relays_an_ask_does_not_draw_the_traffic(
        relayed: Lab, tmp_path: Path, listen: str, target: str) -> None:
    """The grantor sees a neighbour, but `source` is sealed and says who asked."""
    script = tmp_path / "relay.py"
    script.write_text(RELAY)
    hub = relayed["hub"].ddpd(GRANTOR.format(name="far")).start()
    relayed["mid"].start(f"python3 {script} {listen} {target}")
    far = relayed["far"].ddpd(FAR.format(f"[{listen}]" if ":" in listen else listen)).start()
    far.eventually(lambda: bound(far, 1), 10)
    [row] = hub.status()["granted"]
    assert row["reach"].startswith("none")
    assert relayed["hub"].routes() == []
    assert not [line for line in relayed["hub"].kernel() if row["prefix"].split("/")[0] in line]


def test_who_asks_as_a_neighbour_is_routed_to(relayed: Lab) -> None:
    """The test above does look: without a relay there is a route."""
    hub = relayed["hub"].ddpd(GRANTOR.format(name="mid")).start()
    mid = relayed["mid"].ddpd(FAR.format("[2001:db8:a::1]").replace(" on br-lan", "")).start()
    mid.eventually(lambda: bound(mid, 1))
    [row] = hub.status()["granted"]
    assert any(f"{row['prefix']} via 2001:db8:a::2" in line for line in relayed["hub"].routes())


def test_a_recorded_ask_that_is_sent_from_elsewhere_moves_no_route(relayed: Lab) -> None:
    """Replayed by another neighbour: the route stays, and nudges go where they went."""
    hub_host, mid = relayed["hub"], relayed["mid"]
    wire = hub_host.record("mid")
    hub = hub_host.ddpd(GRANTOR.format(name="mid")).start()
    daemon = mid.ddpd(FAR.format("[2001:db8:a::1]").replace(" on br-lan", "")).start()
    daemon.eventually(lambda: bound(daemon, 1))
    before, asks = hub_host.routes(), [d.data for d in wire.ddpd() if d.dport == DDPD_PORT]
    [row] = hub.status()["granted"]
    mid.address("left", "2001:db8:a::66/64")
    with mid.socket(socket.AF_INET6) as thief:
        thief.bind(("2001:db8:a::66", 0))
        for ask in asks * 3:
            thief.sendto(ask, ("2001:db8:a::1", DDPD_PORT))
        hub.eventually(lambda: hub.status()["counters"]["heard_ask"] >= 4)
    assert hub_host.routes() == before
    assert hub.status()["granted"][0]["from"] == row["from"]


def test_the_lease_file_of_another_daemon_is_locked_in_any_namespace(relayed: Lab) -> None:
    hub = relayed["hub"].ddpd(GRANTOR.format(name="far")).start()
    done = subprocess.run([*relayed["far"].inside(), *hub.argv()[len(hub.prefix):]], text=True,
                          capture_output=True, timeout=15, check=False)
    assert done.returncode
    assert "another ddpd" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.running()
