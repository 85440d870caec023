"""Strangers, liars, floods and broken files: nothing changes, and the daemon goes on serving.

    strangers ----+
    alice --------+--- UDP, loopback ---  ddpd.py that grants
    a flood ------+

    ddpd.py that asks  --- UDP, loopback ---  grantors that lie, each in its own way
    ddpd.py that asks  --- a relay that injects ---  ddpd.py that grants

No root, nothing in the kernel.  Whatever is sent is counted, so nothing passes for harmless that
was only lost on its way.
"""

from __future__ import annotations

import base64
import ipaddress
import itertools
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("noise.connection", reason="pip install noiseprotocol")

import peer
from daemon import Daemon, free_port
from lab import eventually
from peer import Grant, GranteePeer, GrantorPeer, Refusal, Want, Wire

pytestmark = pytest.mark.slow             # a daemon is started for each

STORM = 10_000                            # datagrams of each kind of junk
WARM = 300
GROWTH_KB = 1024                          # what a storm may add to the resident memory
BURST = 64                                # datagrams before the daemon's buffer is looked at
ANY_56 = Want(0, "::/56")
HEAD = {kind: bytes([kind, peer.VERSION, 0, 0])
        for kind in (peer.FIRST_ASK, peer.FIRST_ANSWER, peer.COOKIE, peer.SEALED)}
LOW_ORDER = [bytes.fromhex(point) for point in (
    "00" * 32, "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f", "ed" + "ff" * 30 + "7f", "ee" + "ff" * 30 + "7f")]


def text_of(key: bytes) -> str:
    return base64.b64encode(key).decode()


def resident_kb(daemon: Daemon) -> int:
    assert daemon.process is not None
    rollup = Path(f"/proc/{daemon.process.pid}/smaps_rollup").read_text()
    return int(re.findall(r"(?m)^Rss: +(\d+) kB", rollup)[0])


def cpu_s(daemon: Daemon) -> float:
    """Seconds of processor that it has used."""
    assert daemon.process is not None
    stat = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def unread(port: int) -> int:
    """Bytes in the buffer of whoever is bound to this UDP port."""
    return sum(int(line.split()[4].partition(":")[2], 16)
               for line in Path("/proc/net/udp6").read_text().splitlines()[1:]
               if int(line.split()[1].partition(":")[2], 16) == port)


def everything(sock: socket.socket) -> list[bytes]:
    """All that has come, without waiting."""
    sock.setblocking(False)
    came = []
    while True:
        try:
            came.append(sock.recv(65536))
        except BlockingIOError:
            return came


def control(daemon: Daemon) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(daemon.dir / "ddpd.sock"))                   # without a timeout: may queue
    sock.settimeout(5)
    return sock


def status_of(daemon: Daemon) -> dict[str, Any]:
    """As `status --json`, without starting a program for it."""
    with control(daemon) as sock:
        sock.sendall(b'{"do": "status"}\n')
        said = b""
        while not said.endswith(b"\n"):
            more = sock.recv(1 << 20)
            assert more, "cut off without an answer"
            said += more
    found: dict[str, Any] = json.loads(said)
    return found


def quickly(daemon: Daemon) -> None:
    """A good `status` is answered soon."""
    began = time.monotonic()
    assert status_of(daemon)["version"]
    assert time.monotonic() - began < 4


# ==== strangers =======================================================================


class Hub:
    """A daemon that grants, and alice who is bound."""

    def __init__(self, tmp_path: Path, settings: str = "load = 1000000", pool: str = "",
                 grantees: str = "") -> None:
        self.port = free_port()
        private = os.urandom(32)
        self.public = peer.public_of(private)
        self.alice = GranteePeer(os.urandom(32), self.public)
        self.daemon = Daemon(
            f"[ddpd]\nlisten = [::1]:{self.port}\n{settings}\n"
            f"[pool home]\nprefix = 2001:db8:42::/48\ngive = /56-/64\n{pool or 'lifetime = 1h'}\n"
            f"[grantee alice]\nkey = {text_of(self.alice.public)}\npools = home\nlimit = 4\n"
            f"route = none\n{grantees}", tmp_path, "hub")
        self.daemon.write_key(private)
        self.wire = Wire().to(self.port)

    def __enter__(self) -> Hub:
        self.daemon.__enter__()
        self.wire.say(self.alice.ask([ANY_56]))
        self.grant = self.alice.read_answer(self.wire.hear()).preferred(0)
        return self

    def __exit__(self, *why: object) -> None:
        self.wire.__exit__()
        self.daemon.__exit__(*why)  # type: ignore[arg-type] # passed on as it came

    def serves(self) -> None:
        """A good ask, sealed in the session that alice has had all the time, is answered."""
        everything(self.wire.sock)
        self.wire.say(self.alice.sealed([ANY_56]))
        answer = self.alice.read_answer(self.wire.hear())
        assert answer.preferred(0).prefix == self.grant.prefix

    def drained(self) -> None:
        end = time.monotonic() + 20
        while unread(self.port):
            assert time.monotonic() < end, "the daemon does not read"
            time.sleep(0.001)

    def storm(self, datagrams: Iterable[bytes], stranger: Wire | None = None) -> list[bytes]:
        """Send all of them, so that none is lost in the daemon's buffer; what came back."""
        with stranger or Wire() as wire:
            wire.to(self.port)
            came = []
            for n, datagram in enumerate(datagrams):
                wire.say(datagram)
                if n % BURST == 0:
                    self.drained()
                    came += everything(wire.sock)
            self.drained()
            time.sleep(0.05)
            return came + everything(wire.sock)

    def facts(self) -> dict[str, Any]:
        """What junk must not change: all of the status but counters and time, and the file."""
        shown = status_of(self.daemon)
        for name in ("counters", "sessions"):
            shown.pop(name)
        for row in shown["granted"]:
            row.pop("preferred")
            row.pop("age")
        return {**shown, "file": (self.daemon.dir / "leases.json").read_bytes()}

    def counted(self) -> dict[str, int]:
        return dict(status_of(self.daemon)["counters"])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("strangers")) as hub:
        hub.serves()
        yield hub


def with_macs(hub: Hub, body: bytes) -> bytes:
    """Whoever knows the public key can make a good mac1."""
    return body + peer.mac(peer.derived(b"ddpd mac1", hub.public), body) + bytes(16)


def flipped(datagram: bytes, dice: random.Random, start: int, end: int) -> bytes:
    at = dice.randrange(start, end)
    return datagram[:at] + bytes([datagram[at] ^ 1 << dice.randrange(8)]) + datagram[at + 1 :]


def cuts(datagram: bytes) -> list[bytes]:
    return [datagram[:length] for length in range(len(datagram))]


def random_bytes(_: Hub, dice: random.Random) -> Iterator[bytes]:
    while True:
        yield dice.randbytes(dice.randrange(1, 1400))
        yield HEAD[dice.randrange(1, 5)] + dice.randbytes(dice.randrange(1228))


def cut_asks(hub: Hub, _: random.Random) -> Iterator[bytes]:
    return itertools.cycle(cuts(hub.alice.ask([ANY_56])))


def cut_asks_with_good_macs(hub: Hub, _: random.Random) -> Iterator[bytes]:
    return itertools.cycle([with_macs(hub, cut) for cut in cuts(hub.alice.ask([ANY_56])[:-32])])


def flipped_asks(hub: Hub, dice: random.Random) -> Iterator[bytes]:
    """Not in mac2: without load nobody looks at it."""
    true = hub.alice.ask([ANY_56])
    return iter(lambda: flipped(true, dice, 0, len(true) - 16), b"")


def flipped_asks_with_good_macs(hub: Hub, dice: random.Random) -> Iterator[bytes]:
    true = hub.alice.ask([ANY_56])[:-32]
    return iter(lambda: with_macs(hub, flipped(true, dice, 4, len(true))), b"")


def flipped_sealed(hub: Hub, dice: random.Random) -> Iterator[bytes]:
    true = hub.alice.sealed([ANY_56])
    return iter(lambda: flipped(true, dice, 0, len(true)), b"")


def cut_sealed(hub: Hub, _: random.Random) -> Iterator[bytes]:
    return itertools.cycle(cuts(hub.alice.sealed([ANY_56])))


def unknown_keys(hub: Hub, _: random.Random) -> Iterator[bytes]:
    strangers = [GranteePeer(os.urandom(32), hub.public) for _ in range(100)]
    return itertools.cycle([stranger.ask([ANY_56]) for stranger in strangers])


def replayed_sealed(hub: Hub, _: random.Random) -> Iterator[bytes]:
    true = [hub.alice.sealed([ANY_56]) for _ in range(2)]
    for datagram in true:
        hub.wire.say(datagram)
        hub.alice.read_answer(hub.wire.hear())
    return itertools.cycle(true)


def far_counters(hub: Hub, dice: random.Random) -> Iterator[bytes]:
    """Junk whose counter would shut every later one out, were it believed before its tag."""
    session = peer.got(hub.alice.session, "bound")
    while True:
        for counter in (2**64 - 1, 2**64 - 2, 2**63, session.next + 1):
            yield HEAD[peer.SEALED] + session.id + peer.u64(counter) + dice.randbytes(220)


def other_versions(hub: Hub, _: random.Random) -> Iterator[bytes]:
    """Good in all else."""
    asks = [hub.alice.ask([ANY_56], version=version) for version in (0, 2, 3, 127, 255)]
    session = peer.got(hub.alice.session, "bound")
    return itertools.cycle([*asks, session.seal(bytes(220), version=2, counter=2**62)])


def reserved_bytes(hub: Hub, _: random.Random) -> Iterator[bytes]:
    values = [b"\0\1", b"\1\0", b"\x80\0", b"\xff\xff"]
    session = peer.got(hub.alice.session, "bound")
    return itertools.cycle([hub.alice.ask([ANY_56], reserved=value) for value in values]
                           + [session.seal(bytes(220), reserved=b"\0\1", counter=2**62)])


def other_kinds(hub: Hub, dice: random.Random) -> Iterator[bytes]:
    """Answers and cookies, which a grantor is never sent; and kinds that there are not."""
    session = peer.got(hub.alice.session, "bound")
    while True:
        yield HEAD[peer.FIRST_ANSWER] + dice.randbytes(504)
        yield HEAD[peer.COOKIE] + dice.randbytes(48)
        yield bytes([dice.randrange(5, 256), peer.VERSION, 0, 0]) + session.id + dice.randbytes(200)


def low_order(hub: Hub, _: random.Random) -> Iterator[bytes]:
    """Points whose product with any key is zero: everybody could compute what follows."""
    asks = [hub.alice.ask([ANY_56], mangle=lambda d, e=e: d[:8] + e + d[40:]) for e in LOW_ORDER]
    return itertools.cycle(asks)


JUNK = (random_bytes, cut_asks, cut_asks_with_good_macs, flipped_asks, flipped_asks_with_good_macs,
        flipped_sealed, cut_sealed, unknown_keys, replayed_sealed, far_counters, other_versions,
        reserved_bytes, other_kinds, low_order)


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: str(junk.__name__))
def test_ten_thousand_of_a_kind_change_nothing(
        hub: Hub, junk: Callable[[Hub, random.Random], Iterator[bytes]]) -> None:
    dice = random.Random(221)
    datagrams = junk(hub, dice)
    assert hub.storm(itertools.islice(datagrams, WARM)) == []
    sent = list(itertools.islice(datagrams, STORM))
    facts, counted, resident = hub.facts(), hub.counted(), resident_kb(hub.daemon)
    assert hub.storm(sent) == []
    grown, after, facts_after = resident_kb(hub.daemon) - resident, hub.counted(), hub.facts()
    valid = [[row.pop("valid") for row in found["granted"]] for found in (facts, facts_after)]
    assert facts_after == facts
    assert valid[1] <= valid[0]                                   # nothing was renewed
    assert dropped(after) - dropped(counted) == len(sent)         # all were heard, all dropped
    assert sum(after.values()) - sum(counted.values()) <= 2 * len(sent)
    assert grown <= GROWTH_KB
    hub.serves()


def dropped(counters: dict[str, int]) -> int:
    return sum(count for name, count in counters.items() if name.startswith("drop"))


def test_a_replayed_ask_gets_one_stale_a_second_and_the_session_goes_on(hub: Hub) -> None:
    true = hub.alice.ask([ANY_56])
    hub.wire.say(true)
    hub.alice.read_answer(hub.wire.hear())
    hub.serves()
    hub.storm(itertools.repeat(true, WARM))
    facts, counted, resident = hub.facts(), hub.counted(), resident_kb(hub.daemon)
    time.sleep(1.0)                                               # so that one is due
    began = time.monotonic()
    came = hub.storm(itertools.repeat(true, STORM))
    took = time.monotonic() - began
    grown, after, facts_after = resident_kb(hub.daemon) - resident, hub.counted(), hub.facts()
    assert all(len(datagram) <= len(true) for datagram in came)
    answers = [datagram for datagram in came if datagram[0] == peer.FIRST_ANSWER]
    assert 1 <= len(answers) <= took + 1 and {datagram[0] for datagram in came} <= {peer.FIRST_ANSWER, peer.COOKIE}
    statuses = {hub.alice.read_answer(datagram).status for datagram in answers[-1:]}
    assert statuses == {peer.STALE}
    assert dropped(after) - dropped(counted) + len(came) == STORM
    for found in (facts, facts_after):
        for row in found["granted"]:
            row.pop("valid")
    assert facts_after == facts
    assert grown <= GROWTH_KB


def test_while_an_ask_is_replayed_the_session_in_use_goes_on(hub: Hub) -> None:
    """A replay makes pending sessions only."""
    true = hub.alice.ask([ANY_56])
    hub.wire.say(true)
    hub.alice.read_answer(hub.wire.hear())
    hub.serves()
    session = hub.alice.session
    with Wire().to(hub.port) as stranger:
        for _ in range(6):                                        # more than may be pending
            time.sleep(1.01)                                      # one STALE a second
            stranger.say(true)
            assert stranger.hear()[0] == peer.FIRST_ANSWER
            hub.alice.session = session
            hub.serves()


# ==== no answer is longer than its ask ================================================


def test_no_answer_is_longer_than_its_ask(tmp_path: Path) -> None:
    options = ("lifetime = 1h\ndns = " + " ".join(f"2001:db8:42::{n:x}" for n in range(1, 16))
               + "\nsearch = " + " ".join(f"{'x' * 60}{n}.example" for n in range(6)))
    with Hub(tmp_path, pool=options) as hub:
        wants = [Want(slot, "::/64") for slot in range(4)]
        shortest = len(hub.alice.ask(wants, length=0))
        for length in (0, *range(shortest, 1232, 61), 1232):
            for write, wanted in itertools.product((hub.alice.ask, hub.alice.sealed), (wants, ())):
                ask = write(wanted, length=length)
                hub.wire.say(ask)
                answer = hub.wire.hear()
                assert len(answer) <= len(ask)
                hub.alice.read_answer(answer)
        assert hub.wire.silent(0.1)


# ==== a flood with good macs ==========================================================


class Flood(threading.Thread):
    """Asks with a good mac1 and nothing else, which costs the sender next to nothing."""

    def __init__(self, public: bytes, port: int, a_second: int) -> None:
        super().__init__(daemon=True)
        key, dice = peer.derived(b"ddpd mac1", public), random.Random(221)
        bodies = [HEAD[peer.FIRST_ASK] + dice.randbytes(476) for _ in range(2000)]
        self.asks = [body + peer.mac(key, body) + bytes(16) for body in bodies]
        self.gap, self.over = 20 / a_second, threading.Event()
        self.wire = Wire().to(port)
        self.sent, self.came = 0, list[bytes]()

    def run(self) -> None:
        for n in itertools.count():
            for ask in self.asks[n * 20 % 2000 : n * 20 % 2000 + 20]:
                self.wire.sock.setblocking(True)
                self.wire.say(ask)
            self.sent += 20
            self.came += everything(self.wire.sock)
            if self.over.wait(self.gap):
                return

    def __enter__(self) -> Flood:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
        self.wire.sock.close()


def grantee(tmp_path: Path, name: str, hub: bytes, port: int, more: str = "") -> Daemon:
    """A daemon that asks one grantor for a /56 and installs nothing."""
    return Daemon(f"[grantor hub]\nkey = {text_of(hub)}\naddress = [::1]:{port}\n"
                  f"ask = 0: ::/56\ninstall = no\n{more}", tmp_path, name)


def held(daemon: Daemon) -> list[str]:
    return [row["prefix"] for row in status_of(daemon)["held"] if row.get("prefix")]


def test_a_flood_is_answered_with_cookies_and_known_grantees_are_served(tmp_path: Path) -> None:
    keys = {name: os.urandom(32) for name in ("old", "new")}
    sections = "".join(f"[grantee {name}]\nkey = {text_of(peer.public_of(key))}\npools = home\n"
                       for name, key in keys.items())
    with Hub(tmp_path, "load = 100", "lifetime = 8s\nrenew = 1s", sections) as hub:
        old, new = (grantee(tmp_path, name, hub.public, hub.port) for name in keys)
        for daemon, key in zip((old, new), keys.values(), strict=True):
            daemon.write_key(key)
        with old:
            old.eventually(lambda: held(old))
            had, before = held(old), hub.counted()
            with Flood(hub.public, hub.port, 1500) as flood, new:
                new.eventually(lambda: held(new))
                assert status_of(hub.daemon)["under_load"] is True
                end = time.monotonic() + 9
                while time.monotonic() < end:
                    assert held(old) == had                       # with 8 s to live: renewed
                    time.sleep(0.3)
                hub.serves()
            after = hub.counted()
            assert flood.sent > 3000
            assert len(flood.came) > flood.sent / 3
            assert {datagram[0] for datagram in flood.came} == {peer.COOKIE}
            assert {len(datagram) for datagram in flood.came} == {52}
            assert after["sent_cookie"] - before.get("sent_cookie", 0) >= len(flood.came)
            assert after["sent_sealed"] > before.get("sent_sealed", 0)
            hub.daemon.eventually(lambda: status_of(hub.daemon)["under_load"] is False)


# ==== a grantee that is known ==========================================================

SPEED_S = 4.0
BACKLOG = 100_000                         # bytes in the daemon's buffer: it is never idle, and none is lost
SOON_S = 0.1


class Hurry(threading.Thread):
    """Alice, who asks for something else each time, as fast as the daemon can hear it."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(daemon=True)
        self.hub, self.sent, self.over = hub, 0, threading.Event()

    def asks(self) -> Iterator[bytes]:
        for n in itertools.count():
            wants = [Want(n % 7, f"::/{56 + n % 9}")] if n % 3 else [ANY_56]
            yield self.hub.alice.sealed(wants if n % 2 else [], [] if n % 2 else [0, 1])

    def run(self) -> None:
        for datagram in self.asks():
            if self.over.is_set():
                return
            self.hub.wire.say(datagram)
            self.sent += 1
            while self.sent % 16 == 0 and unread(self.hub.port) > BACKLOG and not self.over.wait(0.001):
                pass

    def __enter__(self) -> Hurry:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def bytes_written(daemon: Daemon) -> int:
    """Bytes that it has handed to write() in all: files, its log, the control socket."""
    assert daemon.process is not None
    return int(re.findall(r"wchar: (\d+)", Path(f"/proc/{daemon.process.pid}/io").read_text())[0])


def test_a_known_grantee_at_full_speed_costs_little_and_delays_nobody(tmp_path: Path) -> None:
    """The limits are counted exactly in test_malice.py; here is the daemon as it runs."""
    private, took = os.urandom(32), list[float]()
    section = f"[grantee bob]\nkey = {text_of(peer.public_of(private))}\npools = home\nroute = none\n"
    with Hub(tmp_path, grantees=section) as hub, Wire().to(hub.port) as wire:
        bob = GranteePeer(private, hub.public)
        wire.say(bob.ask([ANY_56]))
        prefix = bob.read_answer(wire.hear()).preferred(0).prefix
        before, lines, resident = bytes_written(hub.daemon), hub.daemon.log().count("\n"), resident_kb(hub.daemon)
        with Hurry(hub) as hurry:
            end = time.monotonic() + SPEED_S
            while time.monotonic() < end:
                began = time.monotonic()
                wire.say(bob.sealed([ANY_56]))
                assert bob.read_answer(wire.hear()).preferred(0).prefix == prefix
                took.append(time.monotonic() - began)
                time.sleep(0.01)
        print(f"{hurry.sent} asks, others answered in {sorted(took)[len(took) // 2] * 1000:.1f} ms, "
              f"{bytes_written(hub.daemon) - before} bytes, {hub.daemon.log().count(chr(10)) - lines} lines")
        assert hurry.sent > 1000 and sorted(took)[len(took) // 2] < SOON_S
        changes = 64 + 5 + SPEED_S                                # GRANTEE_CHANGES, `rate`, and what comes meanwhile
        assert hub.daemon.log().count("\n") - lines <= 3 * changes + 25
        assert bytes_written(hub.daemon) - before <= 4 * changes * 2 * 384 + 200 * 3 * changes
        assert resident_kb(hub.daemon) - resident <= GROWTH_KB


# ==== grantors that lie ===============================================================

LIE_S = 6.0                               # how long the liars are watched
ASKS_A_S = 3.0                            # what no answer may drive a grantee beyond
BURST_ASKS = 10                           # ... and in the worst of these seconds

Lie = Callable[["Liar", bytes], list[bytes]]


class Liar:
    """A grantor that answers as `lie` says, and counts how often it is asked."""

    def __init__(self, lie: Lie, nudges: bool = False) -> None:
        self.lie, self.nudges = lie, nudges
        self.hub = GrantorPeer(os.urandom(32))
        self.wire = Wire()
        self.asked: list[float] = []
        self.failed: list[str] = []
        self.answers = 0
        self.later: list[tuple[float, bytes]] = []
        self.source: tuple[str, int] = ("", 0)

    def tick(self) -> None:
        """Hear what has come, answer it, nudge."""
        self.wire.sock.setblocking(False)
        for _ in range(50):
            try:
                datagram, self.source = self.wire.sock.recvfrom(65536)
            except BlockingIOError:
                break
            self.asked.append(time.monotonic())
            try:
                said = self.lie(self, datagram)
            except Exception as error:  # noqa: BLE001 - shown by the test
                self.failed.append(repr(error))
                continue
            self.answers += 1
            self.say(said)
        while self.later and self.later[0][0] <= time.monotonic():
            self.say([self.later.pop(0)[1]])
        if self.nudges and self.hub.sessions:
            session = list(self.hub.sessions.values())[-1]
            self.say(self.hub.nudge(session) for _ in range(5))

    def say(self, datagrams: Iterable[bytes]) -> None:
        for datagram in datagrams:
            self.wire.sock.sendto(datagram, self.source)


NET = ipaddress.ip_network("2001:db8:42:1200::/56")
GOOD = Grant(0, NET, 1800, 3600, bytes(range(20)))


def saying(status: int = peer.OK, **ways: Any) -> Lie:
    return lambda liar, datagram: [liar.hub.answer(liar.hub.read_ask(datagram), status, **ways)]


def cookies(liar: Liar, datagram: bytes) -> list[bytes]:
    if datagram[0] != peer.FIRST_ASK:
        return []
    return [liar.hub.cookie(datagram, os.urandom(16)) for _ in range(3)]


def stale_thrice(liar: Liar, datagram: bytes) -> list[bytes]:
    ask = liar.hub.read_ask(datagram)
    return [liar.hub.answer(ask, peer.STALE)] * 3


def late(liar: Liar, datagram: bytes) -> list[bytes]:
    """Every answer is older than the T1 that it tells."""
    answer = liar.hub.answer(liar.hub.read_ask(datagram), grants=[GOOD], times=(1, 1))
    liar.later.append((time.monotonic() + 2.5, answer))
    return []


def growing_need(liar: Liar, datagram: bytes) -> list[bytes]:
    ask = liar.hub.read_ask(datagram)
    need = peer.tlv(peer.NEED, (ask.length + 1).to_bytes(2, "big"))
    return [liar.hub.answer(ask, grants=[GOOD], times=(1800, 2880), extra=need)]


def needs_65535(liar: Liar, datagram: bytes) -> list[bytes]:
    ask = liar.hub.read_ask(datagram)
    return [liar.hub.answer(ask, extra=peer.tlv(peer.NEED, b"\xff\xff"))]


def always_another(liar: Liar, datagram: bytes) -> list[bytes]:
    """Twenty new prefixes in each answer, all for one slot."""
    ask = liar.hub.read_ask(datagram)
    first = int(NET.network_address) + (liar.answers * 20 << 72)
    grants = [Grant(0, ipaddress.IPv6Network((first + (n << 72), 56)), 1800, 3600)
              for n in range(20)]
    return [liar.hub.answer(ask, grants=grants, times=(1, 1), length=1232)]


def three_hundred(liar: Liar, datagram: bytes) -> list[bytes]:
    ask = liar.hub.read_ask(datagram)
    return [liar.hub.answer(ask, grants=[GOOD] * 300, times=(1800, 2880))]


def named(number: int, value: bytes) -> Lie:
    """A good grant beside a value that is none."""
    return saying(grants=[GOOD], times=(1800, 2880), extra=peer.tlv(number, value))


REFUSED_AT_ONCE = [Refusal(0, peer.FULL, 0, "ask again at once")]
LIES: dict[str, Lie] = {
    "stale":             saying(peer.STALE),
    "stale, thrice":     stale_thrice,
    "cookies":           cookies,
    "invalid":           saying(peer.INVALID),
    "unsupported":       saying(peer.UNSUPPORTED, extra=peer.tlv(peer.UNKNOWN, b"\5")),
    "status 200":        saying(200),
    "again = 0":         saying(refusals=REFUSED_AT_ONCE, times=(0, 0)),
    "refused 16 times":  saying(refusals=REFUSED_AT_ONCE * 16),
    "reason 200":        saying(refusals=[Refusal(0, 200, 0, "")]),
    "nothing at all":    saying(times=(0, 0)),
    "T1 = T2 = 0":       saying(grants=[GOOD], times=(0, 0)),
    "T1 > T2":           saying(grants=[GOOD], times=(2, 1)),
    "lifetimes of 0":    saying(grants=[Grant(0, NET, 0, 0)], times=(0, 0)),
    "lifetimes of 1":    saying(grants=[Grant(0, NET, 1, 1)], times=(0, 0)),
    "preferred of 0":    saying(grants=[Grant(0, NET, 0, 3600)], times=(0, 0)),
    "deprecated only":   saying(grants=[Grant(0, NET, 0, 3600, flags=0)], times=(0, 0)),
    "late":              late,
    "a growing need":    growing_need,
    "a need of 65535":   needs_65535,
    "always another":    always_another,
    "300 grants":        three_hundred,
    "preferred > valid": saying(grants=[Grant(0, NET, 3601, 3600)]),
    "flags of 255":      saying(grants=[Grant(0, NET, 1, 3600, flags=255)]),
    "name with newline": named(peer.SEARCH, b"evil\n[ddpd]"),
    "name with escape":  named(peer.SEARCH, b"\x1b[2Jevil"),
    "name with NUL":     named(peer.SEARCH, b"evil\0.example"),
    "name with space":   named(peer.SEARCH, b"$(reboot) evil"),
    "text with newline": named(peer.WHY, b"first\nsecond"),
    "unknown type":      named(99, b"?"),
    "nudges":            saying(grants=[GOOD], times=(1800, 2880)),
}
NOTHING_HELD = {
    "stale", "stale, thrice", "cookies", "invalid", "unsupported", "status 200", "again = 0",
    "refused 16 times", "reason 200", "nothing at all", "lifetimes of 0", "deprecated only",
    "a need of 65535", "300 grants", "preferred > valid", "flags of 255", "name with newline",
    "name with escape", "name with NUL", "name with space", "text with newline", "unknown type",
}


@dataclass
class Watched:
    """What a daemon did while all of them lied to it, each under its own key."""

    liars: dict[str, Liar]
    status: dict[str, Any] = field(default_factory=dict)
    log: str = ""
    cpu_s: float = 0.0


def lie_for(liars: Iterable[Liar], seconds: float, until: Callable[[], bool] = bool) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        for liar in liars:
            liar.tick()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    liars = {name: Liar(lie, nudges=name == "nudges") for name, lie in LIES.items()}
    sections = "".join(
        f"[grantor liar-{n}]\nkey = {text_of(liar.hub.public)}\naddress = [::1]:{liar.wire.port}\n"
        f"ask = 0: ::/56\ninstall = no\naccept = 2001:db8:42::/48\n"
        for n, liar in enumerate(liars.values()))
    found = Watched(liars)
    with Daemon(sections, tmp_path_factory.mktemp("liars"), "alice") as daemon:
        before = cpu_s(daemon)
        lie_for(liars.values(), LIE_S)
        found.cpu_s = cpu_s(daemon) - before
        helper = threading.Thread(target=lambda: found.status.update(status_of(daemon)))
        helper.start()
        lie_for(liars.values(), 10, lambda: not helper.is_alive())
        found.log = daemon.log()
        assert daemon.running(), found.log
    for liar in liars.values():
        liar.wire.sock.close()
    yield found


def rows_of(watched: Watched, name: str) -> list[dict[str, Any]]:
    section = f"liar-{list(LIES).index(name)}"
    return [row for row in watched.status["held"] if row["grantor"] == section and row["prefix"]]


@pytest.mark.parametrize("name", LIES)
def test_a_lie_makes_no_grantee_spin(watched: Watched, name: str) -> None:
    liar = watched.liars[name]
    assert not liar.failed
    assert 1 <= len(liar.asked) <= ASKS_A_S * LIE_S
    within = [sum(at <= other < at + 1 for other in liar.asked) for at in liar.asked]
    assert max(within) <= BURST_ASKS                              # ... in any second


@pytest.mark.parametrize("name", sorted(NOTHING_HELD))
def test_nothing_is_held_of_a_lie(watched: Watched, name: str) -> None:
    assert rows_of(watched, name) == []


def test_the_liars_cost_little_and_show_no_traceback(watched: Watched) -> None:
    assert "Traceback" not in watched.log
    assert watched.cpu_s < LIE_S / 2
    assert all(32 <= ord(letter) < 127 or letter == "\n" for letter in watched.log)


def test_leases_that_are_replaced_all_the_time_do_not_pile_up(watched: Watched) -> None:
    assert len(watched.liars["always another"].asked) >= 3
    rows = rows_of(watched, "always another")
    assert 1 <= len(rows) <= 20


# -- the same for hours, in the time of a simulation --


PEER_OF_OURS = ("::1", 3373)


def simulate(lie: Lie, hours: float) -> list[float]:
    """When a grantee asks in so many hours, its grantor answering like this."""
    import ddpd
    liar = Liar(lie)
    liar.wire.sock.close()
    text = (f"[grantor hub]\nkey = {text_of(liar.hub.public)}\naddress = [::1]:3373\n"
            f"ask = 0: ::/56\ninstall = no\naccept = 2001:db8:42::/48\n")
    node = ddpd.Node(ddpd.read_config(text, "simulated"), os.urandom(32), "boot", os.urandom)
    asked: list[float] = []
    now = ddpd.Now(1000.0, 1.7e9)
    todo = [*node.start(now), *node.on_timer(now)]
    while now.boot < 1000 + 3600 * hours and len(asked) < 100_000:
        while todo:
            todo += simulated(ddpd, node, todo.pop(0), now, liar, asked)
        assert node.deadline < now.boot + 2 * 3600, "it sleeps for ever"
        step = max(node.deadline, now.boot + 0.001) - now.boot
        now = ddpd.Now(now.boot + step, now.wall + step)
        todo = list(node.on_timer(now))
    return asked


def simulated(ddpd: Any, node: Any, effect: Any, now: Any, liar: Liar, asked: list[float],
              ) -> list[Any]:
    if isinstance(effect, ddpd.Lookup):
        place = ddpd.Path("::1", 0)
        return list(node.resolved(effect.grantor, effect.host, (place,), now))
    if not isinstance(effect, ddpd.Call):
        return []
    asked.append(now.boot)
    more: list[Any] = []
    for datagram in liar.lie(liar, node.compose("hub", "::1", now)):
        try:
            more += node.received(datagram, ddpd.Path(*PEER_OF_OURS), now, "hub")
        except ddpd.Drop:
            pass
    return more


FOR_HOURS = ("stale", "cookies", "invalid", "again = 0", "nothing at all", "lifetimes of 0",
            "preferred of 0", "deprecated only", "300 grants", "preferred > valid",
            "name with newline", "a need of 65535")
NEVER = (peer.FOR_EVER, peer.FOR_EVER)


@pytest.mark.parametrize("name", FOR_HOURS)
def test_a_liar_is_asked_for_ever_but_not_often(name: str) -> None:
    asked = simulate(LIES[name], 2)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert 5 < len(asked) <= 2 * 3600 + BURST_ASKS
    assert max(gaps) <= 3700


@pytest.mark.parametrize("times", [NEVER, (3600, 3600), (0, peer.FOR_EVER)])
def test_renewal_times_beyond_the_lease_do_not_put_a_grantee_to_sleep(
        times: tuple[int, int]) -> None:
    """T1 and T2 may be anything: when a lease is over it is asked for again."""
    asked = simulate(saying(grants=[Grant(0, NET, 30, 60)], times=times), 0.5)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert len(asked) > 5
    assert max(gaps) <= 130


# ==== grants that are not to be trusted ===============================================

SLOTS = ("::/56", "::/16", "::/64", "::/128", "0.0.0.0/8", "0.0.0.0/16", "0.0.0.0/24", "0.0.0.0/32")
UNTRUSTED: dict[str, tuple[int, str]] = {
    "wrong length":     (0, "2001:db8:42::/48"),
    "longer":           (0, "2001:db8:42::/64"),
    "wrong family":     (0, "10.1.2.0/24"),
    "::/16":            (1, "::/16"),
    "ff00::/16":        (1, "ff00::/16"),
    "fe80::/16":        (1, "fe80::/16"),
    "NAT64":            (2, "64:ff9b::/64"),
    "link-local":       (2, "fe80::/64"),
    "multicast":        (2, "ff02::/64"),
    "site-local":       (2, "fec0::/64"),
    "::1":              (3, "::1/128"),
    "mapped":           (3, "::ffff:10.0.0.1/128"),
    "unspecified":      (3, "::/128"),
    "all nodes":        (3, "ff02::1/128"),
    "127.0.0.0/8":      (4, "127.0.0.0/8"),
    "0.0.0.0/8":        (4, "0.0.0.0/8"),
    "224.0.0.0/8":      (4, "224.0.0.0/8"),
    "240.0.0.0/8":      (4, "240.0.0.0/8"),
    "169.254.0.0/16":   (5, "169.254.0.0/16"),
    "127.0.0.0/24":     (6, "127.0.0.0/24"),
    "169.254.7.0/24":   (6, "169.254.7.0/24"),
    "224.0.0.0/24":     (6, "224.0.0.0/24"),
    "0.0.0.0":          (7, "0.0.0.0/32"),
    "127.0.0.1":        (7, "127.0.0.1/32"),
    "broadcast":        (7, "255.255.255.255/32"),
    "all systems":      (7, "224.0.0.1/32"),
}
TRUSTED = {0: "2001:db8:42:1200::/56", 2: "fd12:3456:789a:1::/64", 4: "10.0.0.0/8",
           5: "169.253.0.0/16", 6: "172.31.255.0/24", 7: "100.64.0.1/32"}


@pytest.fixture(scope="module")
def mistrustful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Liar]]:
    liar = Liar(saying())
    lines = "\n      ".join(f"{slot}: {what}" for slot, what in enumerate(SLOTS))
    config = (f"[grantor hub]\nkey = {text_of(liar.hub.public)}\n"
              f"address = [::1]:{liar.wire.port}\nask = {lines}\ninstall = no\n")
    with Daemon(config, tmp_path_factory.mktemp("trust"), "alice") as alice:
        yield alice, liar
    liar.wire.sock.close()


def told(alice: Daemon, liar: Liar, *grants: Grant) -> dict[str, Any]:
    """Give these when asked; the daemon's status afterwards."""
    answers = liar.answers
    liar.lie = saying(grants=grants, times=(1800, 2880), length=1232)
    alice.signal(signal.SIGUSR1)
    lie_for([liar], 10, lambda: liar.answers > answers)
    assert liar.answers > answers
    assert not liar.failed
    return status_of(alice)


@pytest.mark.parametrize("name", UNTRUSTED)
def test_what_cannot_be_trusted_is_not_held_but_shown(
        mistrustful: tuple[Daemon, Liar], name: str) -> None:
    alice, liar = mistrustful
    slot, prefix = UNTRUSTED[name]
    status = told(alice, liar, Grant(slot, ipaddress.ip_network(prefix), 1800, 3600))
    assert prefix not in [row["prefix"] for row in status["held"]]
    assert prefix in json.dumps(status["grantors"])


def test_good_grants_beside_are_held(mistrustful: tuple[Daemon, Liar]) -> None:
    """The one who is not believed is believed where he says something possible."""
    alice, liar = mistrustful
    good = [Grant(slot, ipaddress.ip_network(prefix), 1800, 3600)
            for slot, prefix in TRUSTED.items() if slot != 4]
    bad = Grant(3, ipaddress.ip_network("ff02::1/128"), 1800, 3600)
    status = told(alice, liar, bad, *good)
    assert {row["slot"]: row["prefix"] for row in status["held"]} == {
        slot: prefix for slot, prefix in TRUSTED.items() if slot != 4}
    overlapping = Grant(4, ipaddress.ip_network("100.0.0.0/8"), 1800, 3600)    # slot 7 lies in it
    status = told(alice, liar, overlapping, *good)
    assert "100.0.0.0/8" not in [row["prefix"] for row in status["held"]]
    assert "100.0.0.0/8" in json.dumps(status["grantors"])
    assert re.search(rf"refused .*{re.escape(next(iter(UNTRUSTED.values()))[1])}", alice.log())


def test_what_a_grantor_says_is_no_shell_command(tmp_path: Path) -> None:
    """`eval "$(ddpd.py ask --env)"` is what the option is for."""
    loot = tmp_path / "loot"
    evil = f"x'; touch {loot}; echo '".encode()
    liar = Liar(saying(grants=[GOOD], times=(1800, 2880), options={
        peer.WG_ENDPOINT: [evil], peer.WG_KEY: [bytes(32)]}))
    daemon = grantee(tmp_path, "alice", liar.hub.public, liar.wire.port)
    daemon.write_key(os.urandom(32))
    asking = subprocess.Popen(daemon.argv("ask", "--env"), stdout=subprocess.PIPE, text=True)
    lie_for([liar], 15, lambda: asking.poll() is not None)
    said = asking.communicate(timeout=5)[0]
    liar.wire.sock.close()
    assert not liar.failed
    assert "DDPD_PREFIXES=" in said
    done = subprocess.run(["sh", "-c", f"eval {shlex.quote(said)}\n"
                           "printf %s \"$DDPD_PREFIXES|$DDPD_WG_ENDPOINT\""],
                          text=True, capture_output=True, check=False)
    assert not loot.exists()
    prefixes, _, endpoint = done.stdout.partition("|")
    assert prefixes.startswith(f"{NET},")
    assert endpoint in (evil.decode(), "")


# ==== somebody on the path ============================================================


class Meddler(threading.Thread):
    """Between a grantee and a grantor; whatever passes is preceded by forgeries of it."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.front, self.back = Wire(), Wire().to(port)
        self.over = threading.Event()
        self.forged = self.passed = 0
        self.dice = random.Random(221)

    def forgeries(self, datagram: bytes) -> list[bytes]:
        flips = [flipped(datagram, self.dice, 8, len(datagram)) for _ in range(3)]
        low = [datagram[:8] + e + datagram[40:] for e in LOW_ORDER]
        found = [*flips, *cuts(datagram)[::37], datagram[:8] + self.dice.randbytes(504)]
        if datagram[0] == peer.FIRST_ANSWER:
            found += [*low, HEAD[peer.COOKIE] + datagram[4:8] + self.dice.randbytes(44)]
        if datagram[0] == peer.SEALED:
            found += [datagram[:12] + peer.u64(counter) + datagram[20:]
                      for counter in (2**64 - 1, 2**64 - 2, 2**32)]
        return found

    def run(self) -> None:
        for wire in (self.front, self.back):
            wire.sock.settimeout(0.02)
        while not self.over.is_set():
            for one, other in ((self.front, self.back), (self.back, self.front)):
                try:
                    datagram, source = one.sock.recvfrom(65536)
                except TimeoutError:
                    continue
                one.other = source[:2]
                for forgery in self.forgeries(datagram):
                    other.say(forgery)
                    self.forged += 1
                other.say(datagram)
                other.say(datagram)                               # and once more: a replay
                self.passed += 1

    def __enter__(self) -> Meddler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
        self.front.sock.close()
        self.back.sock.close()


def test_forgeries_that_come_first_spoil_nothing(tmp_path: Path) -> None:
    key = os.urandom(32)
    section = f"[grantee bob]\nkey = {text_of(peer.public_of(key))}\npools = home\nroute = none\n"
    with Hub(tmp_path, pool="lifetime = 8s", grantees=section) as hub, Meddler(hub.port) as meddler:
        bob = grantee(tmp_path, "bob", hub.public, meddler.front.port)
        bob.write_key(key)
        with bob:
            bob.eventually(lambda: held(bob))
            had, asked = held(bob), status_of(bob)["counters"]["sent_ask"]
            began = time.monotonic()
            eventually(lambda: status_of(bob)["counters"]["sent_ask"] - asked >= 3, 15)
            assert time.monotonic() - began > 3                   # T1 is 2 s; nothing was lost
            counters = status_of(bob)["counters"]
            assert held(bob) == had
            assert meddler.forged > 50
            assert dropped(counters) > 20
            states = {row["state"] for row in status_of(bob)["held"]}
            assert states <= {"bound", "renewing"}


@pytest.mark.parametrize("point", LOW_ORDER[::2], ids=["zero", "order 8", "p - 1", "p + 1"])
def test_a_grantor_key_of_low_order_is_refused_or_harmless(tmp_path: Path, point: bytes) -> None:
    """No curve result may be all zeros, and no key of the configuration may end the daemon."""
    config = f"[grantor zero]\nkey = {text_of(point)}\naddress = [::1]:9\nask = ::/56\n"
    daemon = Daemon(config, tmp_path, "alice")
    if daemon.command("check").returncode == 2:
        refuses(daemon, 2)
        return
    with daemon:
        time.sleep(1.5)
        assert daemon.running()
        assert "Traceback" not in daemon.log()


# ==== the control socket ==============================================================


ORDERS = {
    "random":       random.Random(221).randbytes(3000) + b"\n",
    "empty":        b"\n",
    "no object":    b"[1, 2]\n",
    "a number":     b"1\n",
    "no such":      b'{"do": "reboot"}\n',
    "no order":     b'{"grantor": null}\n',
    "odd types":    b'{"do": ["status"], "grantor": {"a": 1}}\n',
    "surrogate":    b'{"do": "\\ud800", "grantor": "\\udfff"}\n',
    "no such name": b'{"do": "renew", "grantor": "nobody"}\n',
    "deep":         b"[" * 60_000 + b"\n",
    "deep object":  b'{"a":' * 10_000 + b"\n",
    "long number":  b"1" * 60_000 + b"\n",
    "two orders":   b'{"do": "status"}\n{"do": "status"}\n',
    "huge":         b"x" * 300_000 + b"\n",
    "huge, no end": b"x" * 300_000,
    "NaN":          b'{"do": NaN}\n',
    "NULs":         bytes(1000) + b"\n",
}


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("control")) as hub:
        yield hub


@pytest.fixture
def controlled(steered: Hub) -> Hub:
    """Each test has a daemon that runs, whatever the one before did to it."""
    if not steered.daemon.running():
        steered.daemon.process = None
        steered.daemon.logfile.unlink()
        steered.daemon.start()
    return steered


@pytest.mark.parametrize("name", ORDERS)
def test_junk_on_the_control_socket_ends_nothing(controlled: Hub, name: str) -> None:
    daemon = controlled.daemon
    with control(daemon) as sock:
        try:
            sock.sendall(ORDERS[name])
            sock.settimeout(0.3)
            sock.recv(65536)
        except (TimeoutError, ConnectionError):
            pass
        quickly(daemon)
        assert daemon.running(), daemon.log()
    assert "Traceback" not in daemon.log()


def test_the_control_socket_is_ours_alone(controlled: Hub) -> None:
    assert (controlled.daemon.dir / "ddpd.sock").stat().st_mode & 0o777 == 0o600


def test_who_leaves_at_once_ends_nothing(controlled: Hub) -> None:
    for order in (b"", b'{"do": "status"}', b'{"do": "status"}\n'):
        for _ in range(20):
            sock = control(controlled.daemon)
            sock.sendall(order)
            sock.close()
    quickly(controlled.daemon)


def test_a_hundred_idle_connections_keep_nobody_out(controlled: Hub) -> None:
    idle = [control(controlled.daemon) for _ in range(100)]
    try:
        quickly(controlled.daemon)
        done = controlled.daemon.command("status")
        assert done.returncode == 0
        assert "2001:db8:42::/48" in done.stdout
        everything(controlled.wire.sock)
        controlled.wire.say(controlled.alice.ask([ANY_56]))
        controlled.alice.read_answer(controlled.wire.hear())
    finally:
        for sock in idle:
            sock.close()
    quickly(controlled.daemon)


def test_who_reads_nothing_is_cut_off_and_delays_nobody(tmp_path: Path) -> None:
    pools = "".join(f"[pool {'p' * 35}{n}]\nprefix = fd00:{n:x}::/32\ngive = /56\n"
                    for n in range(1, 4000))
    with Hub(tmp_path, grantees=pools) as hub:
        began, size = time.monotonic(), 0
        with control(hub.daemon) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(b'{"do": "status"}\n' * 2)
            used = cpu_s(hub.daemon)
            time.sleep(0.5)
            for _ in range(3):
                quickly(hub.daemon)
                hub.serves()
            while time.monotonic() - began < 13:
                time.sleep(0.2)
            assert cpu_s(hub.daemon) - used < 2                   # waiting costs nothing
            slow.settimeout(2)
            try:
                while more := slow.recv(1 << 16):
                    size += len(more)
            except ConnectionError:
                pass                                              # cut off, either way
        assert 0 < size < 400_000                                 # what the kernel had for it
        quickly(hub.daemon)


def test_the_command_says_when_a_daemon_does_not_answer(tmp_path: Path) -> None:
    """A socket that is shut in one's face is no status, and no traceback."""
    daemon = Daemon("[pool p]\nprefix = 2001:db8::/48\ngive = /56\n", tmp_path, "alice")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(str(daemon.dir / "ddpd.sock"))
        deaf.listen(8)

        def shut() -> None:
            for _ in range(4):
                deaf.accept()[0].close()
        thread = threading.Thread(target=shut, daemon=True)
        thread.start()
        for command in (("status",), ("status", "--json"), ("renew",), ("reload",)):
            done = daemon.command(*command)
            assert done.returncode not in (0, 3), command
            one_line(done.stderr)
        thread.join(5)


# ==== files ===========================================================================


def one_line(said: str) -> None:
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    assert "None" not in said


def refuses(daemon: Daemon, *codes: int) -> str:
    """It does not start: one clear line, and the exit code."""
    done = subprocess.run(daemon.argv(), env=daemon.env, text=True, capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=15, check=False, errors="replace")
    one_line(done.stderr)
    assert done.returncode in codes
    return done.stderr


def idle(tmp_path: Path, settings: str = "", name: str = "node") -> Daemon:
    """A daemon that grants to nobody and asks nobody."""
    return Daemon(f"[ddpd]\nlisten = [::1]:{free_port()}\n{settings}\n"
                  "[pool home]\nprefix = 2001:db8:42::/48\ngive = /56\n", tmp_path, name)


def no_override() -> list[str]:
    """Root may read what nobody may, unless it cannot."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("no setpriv (util-linux): root may read everything")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]


def test_an_unreadable_config_is_one_line(tmp_path: Path) -> None:
    daemon = idle(tmp_path)
    daemon.prefix = no_override()
    daemon.config.chmod(0)
    assert "ermission denied" in refuses(daemon, 2)
    done = daemon.command("check")
    assert done.returncode == 2
    one_line(done.stderr)


CONFIGS = {
    "binary":        bytes(range(256)) * 40,
    "NULs":          bytes(5000),
    "not UTF-8":     b"[ddpd]\nkey = \xff\xfe\n",
    "one bracket":   b"[",
    "two brackets":  b"[]\n",
    "bracket first": b"]\n",
    "only equals":   b"[ddpd]\n=\n",
    "no value":      b"[pool p]\nprefix\n",
    "NUL in path":   b"[ddpd]\nkey = /tmp/a\0b\n",
    "NUL in lease":  b"[ddpd]\nleases = /tmp/a\0b\n",
    "long line":     b"[ddpd]\nkey = " + b"x" * 1_000_000 + b"\n",
    "long number":   b"[ddpd]\nload = " + b"1" * 5000 + b"\n",
    "long port":     b"[ddpd]\nlisten = [::1]:" + b"1" * 5000 + b"\n",
    "odd digits":    "[ddpd]\nload = ²\n".encode(),
    "odd slot":      "[grantor g]\nkey = x\naddress = ::1\nask = ²: ::/56\n".encode(),
    "empty ask":     b"[grantor g]\nkey = " + base64.b64encode(bytes(31) + b"\1")
                     + b"\naddress = ::1\nask = ,\n",
    "bare slot":     b"[grantor g]\nkey = " + base64.b64encode(bytes(31) + b"\1")
                     + b"\naddress = ::1\nask = 3:\n",
    "long give":     b"[pool p]\nprefix = 2001:db8::/48\ngive = /" + b"5" * 5000 + b"\n",
    "key of junk":   b"[grantee a]\nkey = \xc3\xa4\npools = p\n",
    "carriage":      b"[ddpd]\r\nload = no\r\n",
    "byte order":    b"\xef\xbb\xbf[ddpd]\nload = no\n",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_none_is_one_line(tmp_path: Path, name: str) -> None:
    daemon = idle(tmp_path)
    daemon.config.write_bytes(CONFIGS[name])
    done = subprocess.run(daemon.argv(), capture_output=True, timeout=15, check=False)
    one_line(done.stderr.decode(errors="replace"))
    assert done.returncode == 2


def test_a_config_that_is_a_folder_or_missing_is_one_line(tmp_path: Path) -> None:
    daemon = idle(tmp_path)
    daemon.config.unlink()
    refuses(daemon, 2)
    daemon.config.mkdir()
    refuses(daemon, 2)


def test_a_key_that_is_none_is_one_line(tmp_path: Path) -> None:
    daemon = idle(tmp_path)
    key = daemon.dir / "key"
    for junk in (b"", b"\n", b"x", bytes(32), b"=" * 44, text_of(bytes(31)).encode(),
                 bytes(range(256)) * 100):
        key.write_bytes(junk)
        key.chmod(0o600)
        refuses(daemon, 2)
        assert key.read_bytes() == junk                           # never made anew over another
    key.unlink()
    key.mkdir()
    refuses(daemon, 2)
    key.rmdir()
    key.symlink_to(key)
    refuses(daemon, 2)
    key.unlink()
    daemon.write_key(os.urandom(32))
    key.chmod(0)
    daemon.prefix = no_override()
    refuses(daemon, 2)


def test_a_key_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuses(idle(tmp_path, f"key = {tmp_path}/file/key"), 2)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    daemon = idle(tmp_path, f"key = {locked}/key", "other")
    daemon.prefix = no_override()
    refuses(daemon, 2)


def test_a_key_that_others_can_read_is_said(tmp_path: Path) -> None:
    daemon = idle(tmp_path)
    daemon.write_key(os.urandom(32))
    (daemon.dir / "key").chmod(0o644)
    with daemon:
        assert "readable by others" in daemon.log()
    (daemon.dir / "key").unlink()
    with daemon:                                                  # missing: made, for us alone
        assert (daemon.dir / "key").stat().st_mode & 0o777 == 0o600


def test_a_lease_file_that_cannot_be_read_is_one_line_and_left_alone(tmp_path: Path) -> None:
    daemon = idle(tmp_path)
    daemon.write_key(os.urandom(32))
    leases = daemon.dir / "leases.json"
    leases.mkdir()
    refuses(daemon, 1, 2)
    leases.rmdir()
    leases.symlink_to(leases)
    refuses(daemon, 1, 2)
    leases.unlink()
    leases.write_text("[]\n")
    leases.chmod(0)
    daemon.prefix = no_override()
    refuses(daemon, 1, 2)
    assert leases.stat().st_size == 3


def test_a_lease_file_in_a_place_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    daemon = idle(tmp_path, f"leases = {tmp_path}/file/leases.json")
    daemon.write_key(os.urandom(32))
    refuses(daemon, 1, 2)


ODD: tuple[Any, ...] = (
    None, True, -1, 1.5, 10**400, 10**30, float("nan"), float("inf"), float("-inf"), "", "x", "\0",
    "9" * 5000, [], {}, [1], {"a": 1}, 2**64, 256, "::/0", "-1")
OTHER = Grant(0, ipaddress.ip_network("2001:db8:77:100::/56"), 1800, 3600, bytes(range(20)))


@pytest.fixture
def written(tmp_path: Path) -> Iterator[tuple[Daemon, Path, list[dict[str, Any]]]]:
    """A daemon that has stopped, and the records of its lease file: granted, held, and so on."""
    liar = Liar(saying(grants=[OTHER], times=(1800, 2880)))
    with Hub(tmp_path, grantees=(
            f"[grantor liar]\nkey = {text_of(liar.hub.public)}\ninstall = no\nask = ::/56\n"
            f"address = [::1]:{liar.wire.port}\n")) as hub:
        lie_for([liar], 10, lambda: bool(held(hub.daemon)))
        liar.wire.sock.close()
        assert hub.daemon.stop() == 0
        leases = hub.daemon.dir / "leases.json"
        records = json.loads(leases.read_text())
        assert {"granted", "held"} <= {record.get("kind") for record in records}
        yield hub.daemon, leases, records


def test_a_lease_file_of_a_newer_version_is_left_alone(
        written: tuple[Daemon, Path, list[dict[str, Any]]]) -> None:
    daemon, leases, records = written
    [name] = {"ddpd", "version"} & records[0].keys()
    newer = "[" + "\n,".join(map(json.dumps, [{**records[0], name: 99}, *records[1:]])) + "\n]\n"
    leases.write_text(newer)
    refuses(daemon, 1, 2)
    assert leases.read_text() == newer


def test_no_value_in_the_lease_file_ends_the_daemon(
        written: tuple[Daemon, Path, list[dict[str, Any]]]) -> None:
    """Each field of each line with each odd value, each in a line of its own."""
    daemon, leases, (head, *records) = written
    numbers = itertools.count(1)
    rows = [{**apart(record, next(numbers)), name: odd}
            for record in records for name in record for odd in ODD]
    rows += [{key: value for key, value in apart(record, next(numbers)).items() if key != name}
             for record in records for name in record]
    leases.write_text("[" + "\n,".join(map(json.dumps, [head, *rows, *ODD])) + "\n]\n")
    starts(daemon)


def apart(record: dict[str, Any], number: int) -> dict[str, Any]:
    """The same of another prefix: of two lines for one thing only the newer counts."""
    return {**record, "prefix": f"2001:db8:{number:x}::/56"} if "prefix" in record else record


@pytest.mark.parametrize("odd", [None, "x", [], 10**400, -1, float("nan"), float("inf")])
def test_no_value_that_stands_alone_in_the_lease_file_ends_the_daemon(
        written: tuple[Daemon, Path, list[dict[str, Any]]], odd: object) -> None:
    """The lines that are there once: each of their fields is this."""
    daemon, leases, (head, *records) = written
    rows = [{name: value if name in ("kind", "serial") else odd for name, value in record.items()}
            for record in records if "prefix" not in record]
    leases.write_text("[" + "\n,".join(map(json.dumps, [head, *rows])) + "\n]\n")
    starts(daemon)


def starts(daemon: Daemon) -> None:
    with daemon:
        assert status_of(daemon)["version"]
        assert "Traceback" not in daemon.log()
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()
        written = (daemon.dir / "leases.json").read_text()
        assert not re.search("Infinity|NaN", written)             # which is no JSON
        json.loads(written)


WHOLE_FILES = {
    "empty":        b"",
    "binary":       bytes(range(256)) * 100,
    "NULs":         bytes(10_000),
    "deep":         b"[" * 100_000,
    "deep object":  b'{"a":' * 100_000,
    "a number":     b"1",
    "null":         b"null",
    "header only":  b'[{"ddpd": 1}]',
    "odd header":   b'[{"ddpd": 1, "clean": [], "boot": {}, "at": "x"}]',
    "NaN header":   b'[{"ddpd": 1, "clean": true, "boot": "BOOT", "at": NaN}]',
    "far header":   b'[{"ddpd": 1, "clean": true, "boot": "BOOT", "at": 1e300}]',
    "two headers":  b'[{"ddpd": 1},{"ddpd": 1, "at": null}]',
    "cut short":    b'[{"ddpd": 1, "clean": false}\n,{"kind": "gran',
    "one line":     b"x" * 1_000_000,
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_lease_file_full_of_junk_ends_nothing(tmp_path: Path, name: str) -> None:
    daemon = idle(tmp_path)
    daemon.write_key(os.urandom(32))
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    (daemon.dir / "leases.json").write_bytes(WHOLE_FILES[name].replace(b"BOOT", boot))
    starts(daemon)


def test_a_lease_file_behind_a_symlink_is_kept_and_nothing_else_is_written(tmp_path: Path) -> None:
    with Hub(tmp_path) as hub:
        assert hub.daemon.stop() == 0
        leases, real = hub.daemon.dir / "leases.json", tmp_path / "elsewhere.json"
        leases.rename(real)
        leases.symlink_to(real)
        hub.daemon.start()
        assert [row["prefix"] for row in status_of(hub.daemon)["granted"]] == [str(hub.grant.prefix)]
        hub.daemon.stop()
        hub.daemon.start()
        assert [row["prefix"] for row in status_of(hub.daemon)["granted"]] == [str(hub.grant.prefix)]
        hub.daemon.stop()
        victim = tmp_path / "victim"
        victim.write_text("precious\n")
        leases.unlink()
        leases.symlink_to(victim)
        hub.daemon.start()
        hub.daemon.stop()
        assert victim.read_text() == "precious\n"


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    """Standard error on a full disk."""
    with Hub(tmp_path) as hub:
        hub.daemon.stop()
        with open("/dev/full", "ab") as full:
            hub.daemon.process = subprocess.Popen(hub.daemon.argv(), stdin=subprocess.DEVNULL,
                                                  stdout=full, stderr=full)
        end = time.monotonic() + 10
        while hub.daemon.command("status").returncode and time.monotonic() < end:
            assert hub.daemon.running(), "it ended because it could not write its log"
            time.sleep(0.05)
        stranger = GranteePeer(os.urandom(32), hub.public)
        assert hub.storm([stranger.ask([ANY_56])]) == []
        hub.wire.say(hub.alice.ask([ANY_56]))
        hub.alice.read_answer(hub.wire.hear())
        hub.serves()
        assert hub.daemon.stop() == 0


# ==== what there is no more of ========================================================


def test_without_a_descriptor_grantees_are_served_and_a_command_waits(tmp_path: Path) -> None:
    with Hub(tmp_path) as hub:
        assert hub.daemon.process is not None
        pid = hub.daemon.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        none_left = max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (none_left, before[1]))
        gaps = none_left - len(list(Path(f"/proc/{pid}/fd").iterdir()))
        callers = [control(hub.daemon) for _ in range(gaps + 3)]
        time.sleep(0.3)
        used = cpu_s(hub.daemon)
        for _ in range(4):
            time.sleep(0.5)
            hub.serves()
        assert cpu_s(hub.daemon) - used < 0.7                     # ... and it does not spin
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for caller in callers[-3:]:
            caller.sendall(b'{"do": "status"}\n')
            assert caller.recv(100).startswith(b"{")
        for caller in callers:
            caller.close()
        quickly(hub.daemon)


def test_a_log_that_nobody_reads_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Standard error is a pipe that is full already."""
    with Hub(tmp_path) as hub:
        hub.daemon.stop()
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        with suppress(BlockingIOError):
            while os.write(writable, b"x" * 1000):
                pass
        os.set_blocking(writable, True)
        hub.daemon.process = subprocess.Popen(hub.daemon.argv(), stdin=subprocess.DEVNULL, stderr=writable)
        hub.daemon.eventually(lambda: hub.daemon.command("status").returncode == 0, 15)
        stranger = GranteePeer(os.urandom(32), hub.public)
        assert hub.storm(stranger.ask([ANY_56]) for _ in range(100)) == []
        hub.wire.say(hub.alice.ask([ANY_56]))
        hub.alice.read_answer(hub.wire.hear())
        hub.serves()
        assert hub.daemon.stop() == 0
        os.close(readable)
        os.close(writable)


def test_a_lease_file_that_is_a_pipe_is_one_line(tmp_path: Path) -> None:
    """To read it would take for ever."""
    daemon = idle(tmp_path)
    daemon.write_key(os.urandom(32))
    os.mkfifo(daemon.dir / "leases.json")
    assert "not a file" in refuses(daemon, 1, 2)


def test_a_grantor_that_may_not_write_says_so_grants_nothing_and_recovers(tmp_path: Path) -> None:
    """What it cannot remember it does not promise."""
    state = tmp_path / "state"
    state.mkdir(mode=0o500)
    private, port = os.urandom(32), free_port()
    alice = GranteePeer(os.urandom(32), peer.public_of(private))
    daemon = Daemon(f"[ddpd]\nlisten = [::1]:{port}\nleases = {state}/leases.json\n"
                    "[pool home]\nprefix = 2001:db8:42::/48\ngive = /56\nlifetime = 1h\n"
                    f"[grantee alice]\nkey = {text_of(alice.public)}\npools = home\nroute = none\n", tmp_path)
    daemon.write_key(private)
    daemon.prefix = no_override()
    with daemon, Wire().to(port) as wire:
        assert "cannot write" in daemon.log()
        wire.say(alice.ask([ANY_56]))
        [refusal] = alice.read_answer(wire.hear()).refusals
        assert refusal.reason == peer.DISK and not list(state.iterdir())
        state.chmod(0o700)
        daemon.eventually(lambda: (state / "leases.json").exists(), 20)
        wire.say(alice.sealed([ANY_56]))
        assert alice.read_answer(wire.hear()).preferred(0).valid > 0


# ==== two at once, killed, reloaded ===================================================


def test_two_daemons_do_not_share_a_lease_file(tmp_path: Path) -> None:
    with Hub(tmp_path) as hub:
        again = Daemon(hub.daemon.config.read_text().replace(
            f"[::1]:{hub.port}", f"[::1]:{free_port()}"), tmp_path, "again")
        assert "another ddpd" in refuses(again, 1, 2)
        quickly(hub.daemon)                                       # and its socket is still there
        hub.serves()


def test_two_daemons_do_not_share_a_control_socket(tmp_path: Path) -> None:
    """The second says so; the first goes on being reached."""
    with Hub(tmp_path) as hub:
        again = idle(tmp_path, f"control = {hub.daemon.dir}/ddpd.sock", "again")
        again.write_key(os.urandom(32))
        refuses(again, 1, 2)
        quickly(hub.daemon)
        assert text_of(hub.public) in hub.daemon.command("status").stdout


def test_a_control_path_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious\n")
    daemon = idle(tmp_path, f"control = {precious}")
    daemon.write_key(os.urandom(32))
    refuses(daemon, 1, 2)
    assert precious.read_text() == "precious\n"
    (tmp_path / "folder").mkdir()
    daemon = idle(tmp_path, f"control = {tmp_path}/folder", "other")
    daemon.write_key(os.urandom(32))
    refuses(daemon, 1, 2)
    daemon = idle(tmp_path, f"control = {tmp_path}/{'x' * 150}", "third")
    daemon.write_key(os.urandom(32))
    refuses(daemon, 1, 2)


def test_a_killed_daemon_starts_again_beside_its_old_socket(tmp_path: Path) -> None:
    with Hub(tmp_path) as hub:
        hub.daemon.kill()
        assert (hub.daemon.dir / "ddpd.sock").exists()
        done = hub.daemon.command("status")
        assert done.returncode == 2
        one_line(done.stderr)
        hub.daemon.start()
        assert [row["prefix"] for row in status_of(hub.daemon)["granted"]] == [str(hub.grant.prefix)]
        hub.wire.say(hub.alice.ask([ANY_56]))
        assert hub.alice.read_answer(hub.wire.hear()).status == peer.STALE
        hub.serves()


def refused_at_hangup(daemon: Daemon) -> None:
    before = daemon.log().count("reload refused")
    daemon.signal(signal.SIGHUP)
    daemon.eventually(lambda: daemon.log().count("reload refused") > before)


def test_a_broken_config_is_refused_at_reload_and_the_old_one_kept(tmp_path: Path) -> None:
    with Hub(tmp_path) as hub:
        good = hub.daemon.config.read_text()
        facts = hub.facts()
        for broken in ("[pool", "[ddpd]\nload = many\n", good.replace("/48", "/4"), "[ddpd]\n\0\n"):
            hub.daemon.config.write_text(broken)
            refused_at_hangup(hub.daemon)
            done = hub.daemon.command("reload")
            assert done.returncode == 2
            one_line(done.stderr)
            hub.daemon.config.write_text(good)
            assert hub.facts()["pools"] == facts["pools"]
            hub.serves()
        hub.daemon.config.write_bytes(b"\xff\xfe")
        refused_at_hangup(hub.daemon)
        hub.daemon.config.unlink()
        refused_at_hangup(hub.daemon)
        hub.daemon.config.write_text(good)
        hub.serves()
        assert "Traceback" not in hub.daemon.log()


def test_places_that_changed_at_a_reload_are_not_mistaken_at_the_end(tmp_path: Path) -> None:
    """The old socket is removed, not the one that was never made."""
    with Hub(tmp_path) as hub:
        text = hub.daemon.config.read_text()
        moved = text.replace("ddpd.sock", "new.sock").replace("leases.json", "new.json")
        hub.daemon.config.write_text(moved.replace("dir/key", "dir/newkey"))
        hub.daemon.signal(signal.SIGHUP)
        hub.daemon.eventually(lambda: "reloaded" in hub.daemon.log())
        hub.serves()
        assert hub.daemon.stop() == 0
        assert "Traceback" not in hub.daemon.log()
        assert not (hub.daemon.dir / "ddpd.sock").exists()
        records = json.loads((hub.daemon.dir / "leases.json").read_text())
        assert any(record.get("clean") is True for record in records)


def test_a_socket_that_somebody_removed_does_not_spoil_the_end(tmp_path: Path) -> None:
    with idle(tmp_path) as daemon:
        (daemon.dir / "ddpd.sock").unlink()
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()
        starts(daemon)
