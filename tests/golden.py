"""Writes tests/vectors/protocol.json: what PROTOCOL.md means, in bytes, without a line of ddpd.py.

    tests/golden.py             say whether the file is as this script makes it, exit 1 if it is not
    tests/golden.py --write     write it

The handshake's intermediate values are computed here, step by step; datagrams are those of peer.py, which has
Noise from `noiseprotocol`.  Both have to agree.  Nothing in it is random.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import peer  # noqa: E402 - only now can it be found
from peer import Grant, GranteePeer, GrantorPeer, Refusal, Session, Want, tlv, u64  # noqa: E402

FILE = ROOT / "tests" / "vectors" / "protocol.json"
Json = dict[str, Any]

GRANTEE, GRANTOR, E, F, STRANGER = (bytes(range(first, first + 32)) for first in (0, 0x20, 0x40, 0x60, 0xA0))
GRANTEE_KEY, GRANTOR_KEY = peer.public_of(GRANTEE), peer.public_of(GRANTOR)
RUN, NONCE, SECRET = bytes(range(0xA1, 0xA9)), bytes([0xC0] * 12), bytes([0x80] * 32)
SIX, FOUR = ipaddress.ip_address("2001:db8:1::2"), ipaddress.ip_address("198.51.100.2")
PORT = 40000
WALL = 1_700_000_000                     # when the first ask is made
COUNTER = 0x0102030405060708
OLD, NEW, HOST = (ipaddress.ip_network(text) for text in
                  ("2001:db8:42:1200::/56", "2001:db8:77:3400::/56", "192.0.2.7/32"))
OPTIONS = {peer.DNS: [bytes.fromhex("20010db8004200000000000000000053" "00000000000000000000ffffc0000235")],
           peer.SEARCH: [b"lan", b"example.net"],
           peer.NTP: [bytes.fromhex("20010db8004200000000000000000123")], peer.MTU: [bytes.fromhex("0578")]}
WIREGUARD = {peer.WG_KEY: [bytes(range(32))], peer.WG_ENDPOINT: [b"vpn.example.net:51820"],
             peer.WG_ALLOWED: [bytes([6, 0]) + bytes(16), bytes([4, 8, 10, 0, 0, 0])],
             peer.WG_KEEPALIVE: [bytes([0, 25])]}


# ---- the handshake, step by step ----

def dh(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def hashed(data: bytes) -> bytes:
    return hashlib.blake2s(data).digest()


def hkdf(ck: bytes, data: bytes) -> tuple[bytes, bytes]:
    temp = hmac.digest(ck, data, "blake2s")
    one = hmac.digest(temp, b"\1", "blake2s")
    return one, hmac.digest(temp, one + b"\2", "blake2s")


def seal(key: bytes, counter: int, ad: bytes, data: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(bytes(4) + counter.to_bytes(8, "little"), data, ad)


def handshake(header: bytes, ask: bytes, answer: bytes) -> tuple[list[Json], bytes, bytes, bytes]:
    """Every h, ck, k and DH result; the two messages of the handshake; the key of asks."""
    rows: list[Json] = []
    h = ck = hashed(b"Noise_IK_25519_ChaChaPoly_BLAKE2s")
    k = b""

    def row(after: str, **values: bytes) -> None:
        rows.append({"after": after, **{name: value.hex() for name, value in values.items()}})

    def mix_hash(after: str, data: bytes, **values: bytes) -> None:
        nonlocal h
        h = hashed(h + data)
        row(after, **values, h=h)

    def mix_key(after: str, shared: bytes) -> None:
        nonlocal ck, k
        ck, k = hkdf(ck, shared)
        row(after, dh=shared, ck=ck, k=k)

    def sealed(after: str, data: bytes) -> bytes:
        hidden = seal(k, 0, h, data)
        mix_hash(after, hidden, sealed=hidden)
        return hidden

    row("name", h=h, ck=ck)
    mix_hash("prologue", b"ddpd" + header)
    mix_hash("S", GRANTOR_KEY)
    mix_hash("e", peer.public_of(E))
    mix_key("es", dh(E, GRANTOR_KEY))
    first = peer.public_of(E) + sealed("s", GRANTEE_KEY)
    mix_key("ss", dh(GRANTEE, GRANTOR_KEY))
    first += sealed("ask", ask)
    mix_hash("answer's e", peer.public_of(F))
    mix_key("ee", dh(F, peer.public_of(E)))
    mix_key("se", dh(F, GRANTEE_KEY))
    second = peer.public_of(F) + sealed("answer", answer)
    asks, answers = hkdf(ck, b"")
    row("split", session=h[:8], asks=asks, answers=answers)
    return rows, first, second, asks


# ---- two that talk ----

class Talk:
    """alice asks the hub; each datagram is a step.  An ask without a reply is one that is dropped."""

    def __init__(self, name: str, started: int, load: int = 200, **more: Any) -> None:
        self.alice, self.hub = GranteePeer(GRANTEE, GRANTOR_KEY, RUN), GrantorPeer(GRANTOR)
        self.steps: list[Json] = []
        self.json = {"name": name, "grantor started": started, "load": load, **more, "steps": self.steps}
        self.asked = 0
        self.needed = 0                   # bytes, by the last answer; 0: none has come
        self.at, self.source = 0.0, SIX

    def step(self, what: str, ask: bytes, reply: bytes, by_itself: bool = True) -> None:
        """by_itself: a grantee that keeps to the protocol asks just so."""
        self.steps.append({"what": what, "at": self.at, "from": str(self.source), "port": PORT,
                           "grantee": by_itself, "ask": ask.hex(), "reply": reply.hex()})

    def message(self, wants: Iterable[Want] = (), releases: Iterable[int] = (), **ways: Any) -> bytes:
        stamp = ways.pop("stamp", max(int((WALL + self.at) * 1_000_000), self.alice.stamp + 1))
        return self.alice.message(wants, releases, source=self.source, stamp=stamp, **ways)

    def size(self, message: bytes, frame: int) -> int:
        """Section 5."""
        room = max(len(message) + frame, self.needed or peer.FIRST_LEN)
        return min(peer.MAX_LEN, -(-room // peer.STEP_LEN) * peer.STEP_LEN)

    def first(self, message: bytes, **ways: Any) -> bytes:
        self.asked += 1
        ways.setdefault("length", self.size(message, peer.ASK_FRAME))
        return self.alice.frame(message, ask_id=(0x01020303 + self.asked).to_bytes(4, "big"), ephemeral=E, **ways)

    def sealed(self, message: bytes, session: Session | None = None, **ways: Any) -> bytes:
        session = peer.got(session or self.alice.session, "no session")
        return session.seal(peer.padded(message, self.size(message, peer.SEALED_FRAME) - peer.SEALED_FRAME), **ways)

    def answer(self, datagram: bytes, status: int = peer.OK, **ways: Any) -> bytes:
        """What the hub says; what does not fit is left out in the order of section 5, and `need` says so."""
        ask = self.hub.read_ask(datagram, ephemeral=F)
        whole = self.hub.message(ask, status, **ways)
        frame = peer.SEALED_FRAME if ask.session else peer.ANSWER_FRAME
        self.needed = len(whole) + peer.SEALED_FRAME
        if len(whole) + frame > ask.length:
            self.needed = len(whole) + frame
            ways |= {"options": None, "extra": tlv(peer.NEED, self.needed.to_bytes(2, "big"))}
            grants = list(ways["grants"])
            for left_out in sorted(grants, key=lambda grant: (grant.flags, -grants.index(grant))):
                whole = self.hub.message(ask, status, **ways)
                if len(whole) + frame > ask.length:
                    ways["grants"] = [grant for grant in ways["grants"] if grant != left_out]
        return self.hub.answer(ask, payload=peer.padded(whole, ask.length - frame))

    def say(self, what: str, ask: bytes, status: int = peer.OK, *, by_itself: bool = True, **ways: Any) -> None:
        reply = self.answer(ask, status, **ways)
        self.alice.read_answer(reply)
        self.step(what, ask, reply, by_itself)


def ticket(slot: int, prefix: peer.Network, at: float) -> bytes:
    hour = int((WALL + at) // 3600).to_bytes(4, "big")
    shape = bytes([slot, prefix.version, prefix.prefixlen])
    return hour + peer.mac(hashed(b"ddpd ticket" + GRANTOR), hour + GRANTEE_KEY + shape + prefix.network_address.packed)


def grant(slot: int, prefix: peer.Network, at: float, preferred: int = 21600, valid: int = 43200,
          flags: int = 1) -> Grant:
    return Grant(slot, prefix, preferred, valid, ticket(slot, prefix, at), flags)


def held(slot: int, prefix: peer.Network, at: float) -> Want:
    return Want(slot, str(prefix), True, ticket(slot, prefix, at))


ANY = (Want(0, "::/56"), Want(1, "0.0.0.0/0"))
TIMES = (10800, 17280)


def bound(talk: Talk) -> None:
    talk.say("first ask: any /56, and IPv4 of any length", talk.first(talk.message(ANY)),
             grants=[grant(0, OLD, 0), grant(1, HOST, 0)], times=TIMES, options=OPTIONS)


def life() -> Talk:
    """Bound, renewed, renumbered, released."""
    talk = Talk("a life", WALL - 1000)
    bound(talk)
    talk.at = 10800.0
    talk.say("renewal at T1", talk.sealed(talk.message([held(0, OLD, 0), held(1, HOST, 0)])),
             grants=[grant(0, OLD, talk.at), grant(1, HOST, talk.at)], times=TIMES, options=OPTIONS)
    talk.at = 10900.0
    nudge = talk.hub.nudge(talk.hub.newest(GRANTEE_KEY))
    talk.steps.append({"what": "nudge: the pool of IPv6 has moved", "at": talk.at, "nudge": nudge.hex()})
    talk.alice.read_nudge(nudge)
    wants = [held(0, OLD, 10800), held(1, HOST, 10800)]
    grants = [grant(0, NEW, talk.at), grant(1, HOST, talk.at), grant(0, OLD, talk.at, 0, 7200, 0)]
    talk.say("renumbered; not all of it fits", talk.sealed(talk.message(wants)),
             grants=grants, times=TIMES, options=OPTIONS)
    wants = [held(0, NEW, talk.at), held(1, HOST, talk.at)]
    talk.say("the same with room: a deprecated grant", talk.sealed(talk.message(wants)),
             grants=grants, times=TIMES, options=OPTIONS)
    talk.at = 11000.0
    talk.say("all is released", talk.sealed(talk.message(releases=[0, 1])))
    return talk


def restarted() -> Talk:
    """The grantor began after the ask was made: STALE, and the ask again, sealed; then replays."""
    talk = Talk("a stamp from before the grantor's start", WALL + 5)
    first = talk.first(talk.message(ANY))
    talk.say("first ask", first, peer.STALE)
    both: Json = {"grants": [grant(0, OLD, 0), grant(1, HOST, 0)], "times": TIMES, "options": OPTIONS}
    talk.say("the same, sealed; not all of it fits", talk.sealed(talk.message(ANY)), **both)
    talk.say("the same with room", talk.sealed(talk.message([held(0, OLD, 0), ANY[1]])), **both)
    talk.at = 0.5
    talk.step("the first ask, replayed within a second: a cookie", first, cookie_for(talk, first), by_itself=False)
    talk.at = 2.0
    talk.step("the first ask, replayed after a second: STALE", first,
              talk.answer(first, peer.STALE), by_itself=False)
    return talk


def secret_of(at: float) -> bytes:
    """The cookies' secret: how it is made is the grantor's own affair."""
    return hashed(SECRET + int(at // 120).to_bytes(8, "big"))


def cookie_for(talk: Talk, ask: bytes) -> bytes:
    mapped = bytes(10) + b"\xff\xff" + talk.source.packed if talk.source.version == 4 else talk.source.packed
    cookie = peer.mac(secret_of(talk.at), mapped + PORT.to_bytes(2, "big"))
    return talk.hub.cookie(ask, cookie, nonce=NONCE)


def loaded(source: peer.Address) -> Talk:
    """Under load: a cookie, and the ask with it."""
    talk = Talk(f"under load, IPv{source.version}", WALL - 1000, load=0, secret=secret_of(0).hex())
    talk.source = source
    first = talk.first(talk.message(ANY))
    reply = cookie_for(talk, first)
    talk.step("first ask: a cookie", first, reply)
    again = talk.first(talk.message(ANY), cookie=talk.alice.read_cookie(reply))
    talk.say("again with mac2", again, grants=[grant(0, OLD, 0), grant(1, HOST, 0)], times=TIMES, options=OPTIONS)
    return talk


def contradictions() -> Talk:
    talk = Talk("unsupported, invalid", WALL - 1000)
    ways: Json = {"by_itself": False}
    talk.say("unknown types: the first below 128 is named", talk.first(
        talk.message(ANY, extra=tlv(200, b"?") + tlv(100, b"") + tlv(99, b"?"))), peer.UNSUPPORTED,
        extra=tlv(peer.UNKNOWN, bytes([100])), **ways)
    talk.say("a type of the ANSWER is as unknown", talk.first(
        talk.message(ANY, extra=tlv(peer.NEED, bytes([2, 0])))), peer.UNSUPPORTED,
        extra=tlv(peer.UNKNOWN, bytes([peer.NEED])), **ways)
    talk.say("unknown goes before invalid", talk.first(
        talk.message([Want(0, "::/56"), Want(0, "::/56")], extra=tlv(100, b""))), peer.UNSUPPORTED,
        extra=tlv(peer.UNKNOWN, bytes([100])), **ways)
    for what, wants, releases, why in (
            ("a slot is wanted twice", [Want(0, "::/56"), Want(0, "::/64")], [], b"a slot is named twice"),
            ("a slot is wanted and released", [Want(0, "::/56")], [0], b"a slot is named twice"),
            ("seventeen slots", [Want(slot, "::/56") for slot in range(17)], [], b"more than 16 slots")):
        talk.say(what, talk.first(talk.message(wants, releases)), peer.INVALID,
                 extra=tlv(peer.WHY, why), **ways)
    talk.say("types from 128 are skipped", talk.sealed(talk.message(ANY, extra=tlv(200, b"?"))),
             grants=[grant(0, OLD, 0), grant(1, HOST, 0)], times=TIMES, options=OPTIONS, **ways)
    return talk


def held_back() -> Talk:
    """A sealed ask comes when a session made later has been used."""
    talk = Talk("held back", WALL - 1000)
    bound(talk)
    old = peer.got(talk.alice.session, "no session")
    late = talk.sealed(talk.message(releases=[0, 1]))
    talk.at = 0.5
    first = bytes.fromhex(talk.steps[0]["ask"])
    talk.step("the first ask, replayed: STALE", first, talk.answer(first, peer.STALE), by_itself=False)
    talk.at, talk.needed = 1.0, 0
    talk.say("another first ask", talk.first(talk.message([held(0, OLD, 0), held(1, HOST, 0)])),
             grants=[grant(0, OLD, 0), grant(1, HOST, 0)], times=TIMES, options=OPTIONS, by_itself=False)
    talk.step("a release in the session before: dropped", late, b"", by_itself=False)
    peer.check(old is not talk.alice.session, "the same session")
    talk.say("sealed in the new session", talk.sealed(talk.message([held(0, OLD, 0), held(1, HOST, 0)])),
             grants=[grant(0, OLD, 0), grant(1, HOST, 0)], times=TIMES, options=OPTIONS, by_itself=False)
    return talk


# ---- what must be dropped ----

def flipped(datagram: bytes, at: int) -> bytes:
    at %= len(datagram)
    return datagram[:at] + bytes([datagram[at] ^ 1]) + datagram[at + 1:]


NAME_HASH = hashed(b"Noise_IK_25519_ChaChaPoly_BLAKE2s")
LOW_ORDER = {"0": bytes(32), "1": b"\1" + bytes(31), "p - 1": b"\xec" + b"\xff" * 30 + b"\x7f", "of order 8":
             bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")}


def low_order_ask(point: bytes, header: bytes, message: bytes) -> bytes:
    """All of it is right, for whoever takes the result of 32 zero bytes."""
    h = NAME_HASH
    for data in (b"ddpd" + header, GRANTOR_KEY, point):
        h = hashed(h + data)
    ck, k = hkdf(NAME_HASH, bytes(32))
    static = seal(k, 0, h, GRANTEE_KEY)
    ck, k = hkdf(ck, dh(GRANTEE, GRANTOR_KEY))
    body = header + point + static + seal(k, 0, hashed(h + static), message)
    return body + peer.mac(hashed(b"ddpd mac1" + GRANTOR_KEY), body) + bytes(16)


def low_order_answer(point: bytes, ask: bytes, message: bytes) -> bytes:
    h = NAME_HASH
    for data in (b"ddpd" + ask[:8], GRANTOR_KEY, ask[8:40], ask[40:88], ask[88:-32], point):
        h = hashed(h + data)
    ck, k = NAME_HASH, b""
    for shared in (dh(GRANTOR, ask[8:40]), dh(GRANTOR, GRANTEE_KEY), bytes(32), bytes(32)):
        ck, k = hkdf(ck, shared)
    return bytes([peer.FIRST_ANSWER, peer.VERSION, 0, 0]) + ask[4:8] + point + seal(k, 0, h, message)


def sealed_last(session: Session, message: bytes) -> bytes:
    """With the counter that is never used; `noiseprotocol` refuses it."""
    header = bytes([peer.SEALED, peer.VERSION, 0, 0]) + session.id + u64(LAST)
    return header + seal(session.sending.k, LAST, header, message)


LAST = 2**64 - 1
LEAST = bytes([peer.ASK]) + tlv(peer.STAMP, u64((WALL + 60) * 1_000_000)) + tlv(peer.RUN, RUN)
BAD_ASKS = {
    "empty message": b"", "message of kind 0": b"\0", "unknown message": b"\4" + LEAST[1:], "NUDGE": b"\3",
    "ANSWER": b"\2" + tlv(1, bytes(8)) + tlv(16, b"\0") + tlv(17, b"\1"),
    "no stamp": b"\1" + tlv(2, RUN), "no run": LEAST[:11], "stamp twice": LEAST + tlv(1, bytes(8)),
    "run twice": LEAST + tlv(2, RUN), "stamp of 7 bytes": b"\1" + tlv(1, bytes(7)) + tlv(2, RUN),
    "run of 9 bytes": LEAST[:11] + tlv(2, bytes(9)), "source of 5 bytes": LEAST + tlv(3, bytes(5)),
    "source twice": LEAST + 2 * tlv(3, bytes(4)), "host name, empty": LEAST + tlv(4, b""),
    "host name with _": LEAST + tlv(4, b"a_b"), "host name with two dots": LEAST + tlv(4, b"a..b"),
    "host name that ends in a dot": LEAST + tlv(4, b"a."),
    "host name, a label of 64": LEAST + tlv(4, b"a" * 64),
    "host name of 254": LEAST + tlv(4, b".".join([b"a" * 50] * 4 + [b"a" * 50])),
    "want of 2 bytes": LEAST + tlv(5, b"\0\6"), "want, family 5": LEAST + tlv(5, b"\0\5\70"),
    "want, length 129": LEAST + tlv(5, b"\0\6\x81"), "want, IPv4 length 33": LEAST + tlv(5, b"\0\4\x21"),
    "want, address cut": LEAST + tlv(5, b"\0\6\70" + OLD.network_address.packed[:15]),
    "want, address too long": LEAST + tlv(5, b"\0\4\x20" + OLD.network_address.packed),
    "want, host bits": LEAST + tlv(5, b"\0\6\x37" + OLD.network_address.packed[:6] + b"\1" + bytes(9)),
    "want, ticket cut": LEAST + tlv(5, b"\0\6\70" + OLD.network_address.packed + bytes(19)),
    "want, ticket too long": LEAST + tlv(5, b"\0\6\70" + OLD.network_address.packed + bytes(21)),
    "release of 2 bytes": LEAST + tlv(6, b"\0\1"), "release, empty": LEAST + tlv(6, b""),
    "a type and no length": LEAST + b"\5", "a value beyond the end": LEAST + b"\5\4\0\6\70",
    "padding not zero": LEAST + b"\0\0\1", "malformed, and an unknown type": LEAST + tlv(100, b"") + tlv(6, b""),
}
ANSWERED = {"status": tlv(16, b"\0"), "version": tlv(17, b"\1")}
GRANT = grant(0, NEW, 0).encode()
BAD_ANSWERS = {
    "unknown type below 128": tlv(100, b""), "a type of the ASK": tlv(5, b"\0\6\70"), "status twice": tlv(16, b"\0"),
    "grant, flags 2": tlv(18, GRANT[:3] + b"\2" + GRANT[4:]), "grant, cut": tlv(18, GRANT[:-1]),
    "grant, preferred above valid": tlv(18, GRANT[:4] + GRANT[8:12] + GRANT[4:8] + GRANT[12:]),
    "grant, host bits": tlv(18, GRANT[:-1] + b"\1"),
    "grant, IPv4 of 16 bytes": tlv(18, GRANT[:1] + b"\4\x20" + GRANT[3:]),
    "refusal of 5 bytes": tlv(19, bytes(5)), "refusal, not printable": tlv(19, bytes(6) + b"\x7f"),
    "refusal, text of 201": tlv(19, bytes(6) + b"a" * 201), "times of 7 bytes": tlv(20, bytes(7)),
    "times twice": 2 * tlv(20, bytes(8)), "need of 1 byte": tlv(22, b"\1"), "why, not ASCII": tlv(24, b"\xc3\xa4"),
    "dns of 4 bytes": tlv(32, bytes(4)), "search with a space": tlv(33, b"a b"), "mtu of 4 bytes": tlv(35, bytes(4)),
    "wg_key of 31 bytes": tlv(40, bytes(31)), "wg_allowed, host bits": tlv(42, b"\4\x08\x0a\0\0\1"),
    "wg_allowed, empty": tlv(42, b""), "wg_keepalive twice": 2 * tlv(43, bytes(2)),
}


def dropped_by_grantor(talk: Talk) -> Iterator[tuple[str, bytes]]:
    """After `bound`."""
    alice = talk.alice
    session = peer.got(alice.session, "no session")
    good = talk.message(ANY, stamp=(WALL + 60) * 1_000_000)
    yield from (("empty", b""), ("one byte", b"\1"), ("three bytes", b"\1\1\0"))
    yield from ((f"kind {kind}", bytes([kind]) + talk.first(good)[1:]) for kind in (0, 5, 240, 255))
    yield from ((f"{name}, cut", bytes([kind, 1]) + bytes(size - 3))
                for name, kind, size in (("first ask", 1, 136), ("answer", 2, 56), ("cookie", 3, 52),
                                         ("sealed", 4, 36)))
    yield "first ask of 1,233 bytes", talk.first(good, length=1233)
    yield "first ask of version 0", talk.first(good, version=0)
    yield "first ask of version 2", talk.first(good, version=2)
    yield "byte 2 is not zero", talk.first(good, reserved=b"\1\0")
    yield "byte 3 is not zero", talk.first(good, reserved=b"\0\1")
    yield "mac1 wrong", flipped(talk.first(good), -17)
    yield "mac1 of zeros", talk.first(good, mac1=bytes(16))
    yield "id changed, mac1 right", talk.first(good, mangle=lambda d: flipped(d, 7))
    yield "e changed, mac1 right", talk.first(good, mangle=lambda d: flipped(d, 8))
    yield "s changed, mac1 right", talk.first(good, mangle=lambda d: flipped(d, 40))
    yield "message changed, mac1 right", talk.first(good, mangle=lambda d: flipped(d, 88))
    yield "tag changed, mac1 right", talk.first(good, mangle=lambda d: flipped(d, -1))
    yield from ((f"e is the point {name}", low_order_ask(point, bytes([1, 1, 0, 0, 9, 9, 9, 9]), good))
                for name, point in LOW_ORDER.items())
    yield "a stranger", GranteePeer(STRANGER, GRANTOR_KEY).frame(good, ask_id=bytes(4), ephemeral=E)
    yield "for another grantor", GranteePeer(GRANTEE, peer.public_of(STRANGER)).frame(
        good, ask_id=bytes(4), ephemeral=E)
    yield from ((f"first ask: {name}", talk.first(message, length=0)) for name, message in BAD_ASKS.items())
    right = talk.sealed(good, counter=1000)
    yield "sealed: unknown session", flipped(right, 4)
    yield "sealed: version 2", session.seal(good, counter=1000, version=2)
    yield "sealed: reserved byte", session.seal(good, counter=1000, reserved=b"\0\1")
    yield "sealed: counter changed", flipped(right, 19)
    yield "sealed: message changed", flipped(right, 20)
    yield "sealed: tag changed", flipped(right, -1)
    yield "sealed: the last counter", sealed_last(session, good)
    yield "sealed: what the grantor has sent", talk.hub.sessions[session.id].seal(good, counter=1000)
    for number, (name, message) in enumerate(BAD_ASKS.items()):
        yield f"sealed: {name}", session.seal(message, counter=number)
    yield "sealed: counter taken", session.seal(good, counter=len(BAD_ASKS) - 1)
    yield "sealed: counter passed", session.seal(good, counter=1)


def dropped_by_grantee(talk: Talk, under_way: bytes) -> Iterator[tuple[str, bytes]]:
    """After `bound`, while this first ask of it waits for an answer."""
    ours = talk.hub.newest(GRANTEE_KEY)
    stamp = peer.got(peer.number(peer.read_tlvs(peer.Begun(
        b"", b"", talk.alice.begun[under_way[4:8]].message).message), peer.STAMP, 8), "no stamp")
    head = bytes([peer.ANSWER]) + tlv(peer.STAMP, u64(stamp))
    good = head + b"".join(ANSWERED.values())
    answer = GrantorPeer(GRANTOR).answer(GrantorPeer(GRANTOR).read_ask(under_way, ephemeral=F), payload=good)
    cookie = talk.hub.cookie(under_way, bytes(16), nonce=NONCE)
    yield "first ask", under_way
    yield "answer to no ask", answer[:4] + bytes(4) + answer[8:]
    yield "answer: version 2", answer[:1] + b"\2" + answer[2:]
    yield "answer: reserved byte", flipped(answer, 3)
    yield "answer: e changed", flipped(answer, 8)
    yield from ((f"answer: e is the point {name}", low_order_answer(point, under_way, good))
                for name, point in LOW_ORDER.items())
    yield "answer: message changed", flipped(answer, 40)
    yield "answer: tag changed", flipped(answer, -1)
    yield "answer, cut", answer[:-1]
    yield "cookie for no ask", cookie[:4] + bytes(4) + cookie[8:]
    yield "cookie: nonce changed", flipped(cookie, 8)
    yield "cookie: tag changed", flipped(cookie, -1)
    yield "cookie for another mac1", talk.hub.cookie(flipped(under_way, -17), bytes(16), nonce=NONCE)
    right = ours.seal(good, counter=1000)
    yield "sealed: unknown session", flipped(right, 11)
    yield "sealed: tag changed", flipped(right, -1)
    yield "sealed: what the grantee has sent", peer.got(talk.alice.session, "none").seal(good, counter=1000)
    yield "sealed: the last counter", sealed_last(ours, good)
    bad = {name: good + tlvs for name, tlvs in BAD_ANSWERS.items()} | {
        f"no {name}": head + b"".join(value for other, value in ANSWERED.items() if other != name) for name in ANSWERED}
    bad |= {"no stamp": b"\2" + b"".join(ANSWERED.values()), "ASK": LEAST, "unknown message": b"\4" + good[1:],
            "empty message": b"", "STALE": head + tlv(16, b"\1") + ANSWERED["version"],
            "stamp of no ask": b"\2" + tlv(1, u64(stamp + 7)) + b"".join(ANSWERED.values()),
            "stamp of the answer applied": b"\2" + tlv(1, u64(WALL * 1_000_000)) + b"".join(ANSWERED.values()),
            "padding not zero": good + b"\0\1"}
    yield from ((f"sealed: {name}", ours.seal(message, counter=10 + n))
                for n, (name, message) in enumerate(bad.items()))
    yield "sealed: counter taken", ours.seal(good, counter=9 + len(bad))
    yield "sealed: counter passed", ours.seal(good, counter=11)


def dropped() -> Json:
    """Both have been `bound`; a minute later the grantee has made one more first ask."""
    talk = Talk("before what is dropped", WALL - 1000)
    bound(talk)
    talk.at = 60.0
    under_way = talk.first(talk.message([held(0, OLD, 0), held(1, HOST, 0)]))
    session = peer.got(talk.alice.session, "no session")
    answer = GrantorPeer(GRANTOR).answer(GrantorPeer(GRANTOR).read_ask(under_way, ephemeral=F), payload=bytes([
        peer.ANSWER]) + tlv(1, u64((WALL + 60) * 1_000_000)) + b"".join(ANSWERED.values()))
    dropped = {"grantor": list(dropped_by_grantor(talk)), "grantee": list(dropped_by_grantee(talk, under_way))}
    taken = {"grantor": [("sealed ask", session.seal(LEAST, counter=1001)), ("first ask", talk.first(LEAST, length=0))],
             "grantee": [("nudge", talk.hub.sessions[session.id].seal(bytes([peer.NUDGE]), counter=1001)),
                         ("cookie", talk.hub.cookie(under_way, bytes(16), nonce=NONCE)), ("answer", answer)]}

    def rows(found: Json) -> Json:
        return {role: [{"why": why, "datagram": datagram.hex()} for why, datagram in pairs]
                for role, pairs in found.items()}

    return {"before": talk.json, "at": talk.at, "under way": under_way.hex(), **rows(dropped), "taken": rows(taken)}


# ---- messages alone ----

def messages() -> Iterator[Json]:
    alice, hub = GranteePeer(GRANTEE, GRANTOR_KEY, RUN), GrantorPeer(GRANTOR)

    def shown(name: str, message: bytes, **fields: Any) -> Json:
        return {"name": name, "message": message.hex(), "fields": fields}

    stamp, run = 1_700_000_000_000_000, RUN.hex()
    yield shown("least ASK", alice.message(stamp=1), stamp=1, run=run)
    yield shown("ASK with everything", alice.message(
        [Want(0, "::/56"), Want(1, str(OLD), True), Want(2, str(HOST), True, bytes(range(20))), Want(3, "::/0"),
         Want(255, "0.0.0.0/0")], [9, 254], stamp=stamp, source=SIX, hostname="r1.lan"),
        stamp=stamp, run=run, source=str(SIX), hostname="r1.lan",
        wants=[[0, "::/56", ""], [1, str(OLD), ""], [2, str(HOST), bytes(range(20)).hex()], [3, "::/0", ""],
               [255, "0.0.0.0/0", ""]], releases=[9, 254])
    yield shown("ASK from IPv4, highest stamp", alice.message(stamp=2**64 - 1, source=FOUR),
                stamp=2**64 - 1, run=run, source=str(FOUR))
    ask = peer.read_ask(alice.message(stamp=2), 512, GRANTEE_KEY)
    six, old, four = grant(0, NEW, 0), grant(0, OLD, 0, 0, 7200, 0), grant(1, HOST, 0, peer.FOR_EVER, peer.FOR_EVER)
    rest: Json = {"version": 1, "stamp": 2}
    yield shown("ANSWER with everything", hub.message(
        ask, grants=[six, four, old], refusals=[Refusal(3, peer.FULL, 60, "no /56 is free"), Refusal(4, 200, 0)],
        times=(10800, peer.FOR_EVER), extra=b"".join([
            tlv(peer.NEED, bytes([2, 128])), tlv(peer.UNKNOWN, b"\7"), tlv(peer.WHY, b"so"),
            *(tlv(n, value) for n, values in (OPTIONS | WIREGUARD).items() for value in values)])),
        **rest, status=0, times=[10800, peer.FOR_EVER], need=640, unsupported=7, why="so",
        grants=[[0, str(NEW), True, 21600, 43200, six.ticket.hex()],
                [1, str(HOST), True, peer.FOR_EVER, peer.FOR_EVER, four.ticket.hex()],
                [0, str(OLD), False, 0, 7200, old.ticket.hex()]],
        refusals=[[3, 3, 60, "no /56 is free"], [4, 200, 0, ""]],
        dns=["2001:db8:42::53", "192.0.2.53"], search=["lan", "example.net"], ntp=["2001:db8:42::123"], mtu=1400,
        wg_key=bytes(range(32)).hex(), wg_endpoint="vpn.example.net:51820", wg_allowed=["::/0", "10.0.0.0/8"],
        wg_keepalive=25)
    many = [ipaddress.ip_address(f"2001:db8::{n:x}") for n in range(1, 18)]
    packed = b"".join(address.packed for address in many)
    yield shown("a list that goes on", hub.message(ask, options={peer.DNS: [packed[:240], packed[240:]]}),
                **rest, status=0, dns=[str(address) for address in many])
    for status, name in enumerate(("OK", "STALE", "INVALID", "UNSUPPORTED")):
        yield shown(f"ANSWER, {name}", hub.message(ask, status), **rest, status=status)
    yield shown("NUDGE", bytes([peer.NUDGE]))


def sealed_alone() -> list[Json]:
    """One datagram a direction with a counter whose bytes all differ."""
    talk = Talk("", WALL)
    bound(talk)
    ours = peer.got(talk.alice.session, "no session")
    rows: Sequence[tuple[str, Session, bytes]] = (
        ("grantee", ours, LEAST), ("grantor", talk.hub.sessions[ours.id], bytes([peer.NUDGE])))
    return [{"from": role, "counter": f"{COUNTER:016x}", "nonce": (bytes(4) + COUNTER.to_bytes(8, "little")).hex(),
             "message": peer.padded(message, 92).hex(),
             "datagram": session.seal(peer.padded(message, 92), counter=COUNTER).hex()}
            for role, session, message in rows]


def made() -> Json:
    talk = life()
    first, reply = (bytes.fromhex(talk.steps[0][name]) for name in ("ask", "reply"))
    message = peer.padded(talk.alice.begun[first[4:8]].message, 0)
    asked = GrantorPeer(GRANTOR).read_ask(first, ephemeral=F)
    answer = peer.padded(GrantorPeer(GRANTOR).message(
        asked, grants=[grant(0, OLD, 0), grant(1, HOST, 0)], times=TIMES, options=OPTIONS), 512 - peer.ANSWER_FRAME)
    rows, one, two, asks = handshake(first[:8], message, answer)
    alone = sealed_alone()
    header = bytes.fromhex(alone[0]["datagram"])[:20]
    peer.check(one == first[8:-32] and two == reply[8:], "noiseprotocol says something else")
    peer.check(seal(asks, COUNTER, header, bytes.fromhex(alone[0]["message"])).hex() == alone[0]["datagram"][40:],
               "noiseprotocol seals otherwise")
    keys = {"grantee private": GRANTEE, "grantee public": GRANTEE_KEY, "grantor private": GRANTOR,
            "grantor public": GRANTOR_KEY, "grantee e private": E, "grantee e public": peer.public_of(E),
            "grantor e private": F, "grantor e public": peer.public_of(F), "run": RUN,
            "mac1 key": hashed(b"ddpd mac1" + GRANTOR_KEY), "cookie key": hashed(b"ddpd cookie" + GRANTOR_KEY),
            "ticket key": hashed(b"ddpd ticket" + GRANTOR)}
    talks = [talk, restarted(), loaded(SIX), loaded(FOUR), contradictions(), held_back()]
    about = ("Test vectors of PROTOCOL.md, version 1, made by tests/golden.py.  Bytes are in hex.  Each talk is of a "
             "new grantee and a new grantor that know each other; both ephemeral keys are the same each time, ids "
             "count, `at` is seconds after the wall clock 1700000000.  `grantee: true`: a grantee that keeps to the "
             "protocol asks just so.  An empty reply: the ask is dropped.")
    return {"about": about,
            "keys": {name: value.hex() for name, value in keys.items()},
            "handshake": {"ask": message.hex(), "answer": answer.hex(), "steps": rows},
            "sealed": alone, "messages": list(messages()), "talks": [talk.json for talk in talks],
            "dropped": dropped()}


def text() -> str:
    return json.dumps(made(), indent=1) + "\n"


def main(argv: list[str]) -> int:
    if "--write" in argv:
        FILE.write_text(text())
        return 0
    same = FILE.exists() and FILE.read_text() == text()
    print("as tests/golden.py makes it" if same else f"{FILE.name} is not as tests/golden.py makes it (--write)")
    return not same


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
