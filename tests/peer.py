"""A second ddpd, at datagram level, written from PROTOCOL.md and sharing no code with ddpd.py.

    alice = GranteePeer(private, grantor_public)            hub = GrantorPeer(private)
    wire.say(alice.ask([Want(1, "::/56")]))                 ask = hub.read_ask(datagram)
    answer = alice.read_answer(wire.hear())                 wire.say(hub.answer(ask, grants=[...]))

Both roles do what they are told: nothing is sent by itself and no policy is kept.  Every field can
be made wrong, which is what the tests of attacks need: `payload` replaces the message, `mangle`
changes the datagram before its macs are computed, and version, reserved bytes, ids, counters,
stamps and macs are arguments.  What arrives and is not as PROTOCOL.md says raises Wrong.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import select
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from noise.connection import Keypair, NoiseConnection

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Tlvs = list[tuple[int, bytes]]
T = TypeVar("T")

NOISE = b"Noise_IK_25519_ChaChaPoly_BLAKE2s"
VERSION = 1
FIRST_ASK, FIRST_ANSWER, COOKIE, SEALED = 1, 2, 3, 4         # the first byte of a datagram
ASK, ANSWER, NUDGE = 1, 2, 3                                 # the first byte of a message
OK, STALE, INVALID, UNSUPPORTED = range(4)                   # ANSWER, status
(NO_POOL, LENGTH, FULL, LIMIT, RATE, RECOVERING, CLONE, DISK, REVOKED, ENDED, SITE) = range(1, 12)

STAMP, RUN, FROM, HOSTNAME, WANT, RELEASE = range(1, 7)      # TLVs of an ASK
STATUS, SPOKEN, GRANT, REFUSAL, TIMES = range(16, 21)        # TLVs of an ANSWER
NEED, UNKNOWN, WHY = 22, 23, 24
DNS, SEARCH, NTP, MTU = 32, 33, 34, 35
WG_KEY, WG_ENDPOINT, WG_ALLOWED, WG_KEEPALIVE = 40, 41, 42, 43
CRITICAL = 128                                               # types below have to be known, others may be skipped

ASK_FRAME = 8 + 32 + 48 + 16 + 16 + 16       # what a first ask adds to its message
ANSWER_FRAME = 8 + 32 + 16
SEALED_FRAME = 20 + 16
SHORTEST = {FIRST_ASK: ASK_FRAME, FIRST_ANSWER: ANSWER_FRAME, COOKIE: 52, SEALED: SEALED_FRAME}
FIRST_LEN, STEP_LEN, MAX_LEN = 512, 128, 1232
FOR_EVER = 0xFFFFFFFF
MAX_SLOTS = 16
LAST_COUNTER = 2**64 - 1                     # is never used


class Wrong(Exception):  # noqa: N818 - a verdict on what arrived
    """This datagram is not what the protocol says it has to be."""


def check(truth: object, why: str) -> None:
    if not truth:
        raise Wrong(why)


def got(value: T | None, why: str) -> T:
    if value is None:
        raise Wrong(why)
    return value


# ---- messages and their TLVs ----

@dataclass(frozen=True)
class Want:
    """Slot and what is wanted in it: '::/56' is any /56; a prefix and its ticket are kept ones."""

    slot: int
    prefix: str
    held: bool = False
    ticket: bytes = b""

    def encode(self) -> bytes:
        net = ipaddress.ip_network(self.prefix)
        named = net.network_address.packed if self.held or self.ticket else b""
        return bytes([self.slot, net.version, net.prefixlen]) + named + self.ticket


@dataclass(frozen=True)
class Grant:
    slot: int
    prefix: Network
    preferred: int
    valid: int
    ticket: bytes = bytes(20)
    flags: int = 1

    def encode(self) -> bytes:
        net = self.prefix
        return (struct.pack("!BBBBII", self.slot, net.version, net.prefixlen, self.flags,
                            self.preferred, self.valid) + self.ticket + net.network_address.packed)

    @classmethod
    def decode(cls, value: bytes) -> Grant:
        check(len(value) in (36, 48), "grant: length")
        slot, family, prefixlen, flags, preferred, valid = struct.unpack("!BBBBII", value[:12])
        check(flags <= 1, "grant: flags")
        check(preferred <= valid, "grant: preferred above valid")
        prefix = network(family, prefixlen, value[32:])
        return cls(slot, prefix, preferred, valid, value[12:32], flags)


@dataclass(frozen=True)
class Refusal:
    slot: int
    reason: int
    again: int = 60
    text: str = ""

    def encode(self) -> bytes:
        return struct.pack("!BBI", self.slot, self.reason, self.again) + self.text.encode()

    @classmethod
    def decode(cls, value: bytes) -> Refusal:
        check(len(value) >= 6, "refusal: length")
        slot, reason, again = struct.unpack("!BBI", value[:6])
        return cls(slot, reason, again, text(value[6:]))


@dataclass(frozen=True)
class Ask:
    """What a grantor read: the message, and what it needs in order to answer."""

    stamp: int
    run: bytes
    wants: list[Want]
    releases: list[int]
    source: Address | None
    hostname: str | None
    tlvs: Tlvs
    grantee: bytes
    length: int
    id: bytes = b""                       # of a first ask
    connection: NoiseConnection | None = None
    session: Session | None = None        # of a sealed one

    @property
    def verdict(self) -> tuple[int, bytes]:
        """Status, and what the ANSWER says of it: unknown types first, then how many slots, then slots named twice."""
        unknown = [given for given, _ in self.tlvs if given < CRITICAL and not STAMP <= given <= RELEASE]
        slots = [want.slot for want in self.wants] + self.releases
        if unknown:
            return UNSUPPORTED, tlv(UNKNOWN, bytes(unknown[:1]))
        if len(slots) > MAX_SLOTS:
            return INVALID, tlv(WHY, b"more than 16 slots")
        if len(set(slots)) < len(slots):
            return INVALID, tlv(WHY, b"a slot is named twice")
        return OK, b""


@dataclass(frozen=True)
class Answer:
    status: int
    stamp: int
    version: int
    grants: list[Grant]
    refusals: list[Refusal]
    times: tuple[int, int] | None
    need: int | None
    unsupported: int | None
    why: str | None
    options: dict[int, list[bytes]]
    length: int
    session: Session

    def preferred(self, slot: int) -> Grant:
        """The one grant of a slot that is not deprecated."""
        found = [grant for grant in self.grants if grant.slot == slot and grant.flags & 1]
        check(len(found) == 1, f"slot {slot}: {len(found)} preferred grants")
        return found[0]


def network(family: int, prefixlen: int, packed: bytes) -> Network:
    check((family, len(packed)) in ((4, 4), (6, 16)), "family and address disagree")
    try:
        return ipaddress.ip_network((packed, prefixlen))
    except ValueError as error:
        raise Wrong(str(error)) from None


def text(value: bytes) -> str:
    check(len(value) <= 200 and all(32 <= byte < 127 for byte in value), "text: too long, or not printable")
    return value.decode("ascii")


LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def name(value: bytes) -> str:
    check(len(value) <= 253, "name: too long")
    check(all(1 <= len(label) <= 63 and LETTERS.issuperset(label) for label in value.split(b".")), "name: label")
    return value.decode("ascii")


def sized(*sizes: int) -> Callable[[bytes], object]:
    return lambda value: check(len(value) in sizes, "length")


# Options: is it given once, and what its value has to be.
OPTIONS: dict[int, tuple[bool, Callable[[bytes], object]]] = {
    DNS: (False, lambda value: check(len(value) % 16 == 0, "addresses: length")), SEARCH: (False, name),
    NTP: (False, lambda value: check(len(value) % 16 == 0, "addresses: length")), MTU: (True, sized(2)),
    WG_KEY: (True, sized(32)), WG_ENDPOINT: (True, text), WG_KEEPALIVE: (True, sized(2)),
    WG_ALLOWED: (False, lambda value: network(*divmod(int.from_bytes(value[:2], "big"), 256), value[2:])),
}


def looked_at(datagram: bytes) -> int:
    """Its kind, if it is one and has a size that this kind may have."""
    check(len(datagram) <= MAX_LEN, "too long")
    check(datagram[:1] and datagram[0] in SHORTEST, "unknown kind")
    check(datagram[1:4] == bytes([VERSION, 0, 0]), "another version, or a reserved byte")
    check(len(datagram) >= SHORTEST[datagram[0]], "too short")
    return datagram[0]


def tlv(number: int, value: bytes) -> bytes:
    return bytes([number, len(value)]) + value


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def padded(message: bytes, size: int) -> bytes:
    """Zeros to the end: type 0 ends the message, and all after it is zero."""
    return message + bytes(max(0, size - len(message)))


def read_tlvs(message: bytes) -> Tlvs:
    found, at = [], 1
    while at < len(message) and message[at]:
        check(at + 1 < len(message), "TLV without a length")
        end = at + 2 + message[at + 1]
        check(end <= len(message), "TLV beyond the end")
        found.append((message[at], message[at + 2:end]))
        at = end
    check(not any(message[at:]), "padding is not zero")
    return found


def single(tlvs: Tlvs, number: int, *sizes: int) -> bytes | None:
    values = [value for given, value in tlvs if given == number]
    check(len(values) < 2, f"TLV {number} twice")
    check(not values or not sizes or len(values[0]) in sizes, f"TLV {number}: length")
    return values[0] if values else None


def number(tlvs: Tlvs, type_: int, size: int) -> int | None:
    value = single(tlvs, type_, size)
    return None if value is None else int.from_bytes(value, "big")


# ---- keys, macs, the handshake ----

def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def derived(label: bytes, key: bytes) -> bytes:
    return hashlib.blake2s(label + key).digest()


def mac(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2s(data, key=key, digest_size=16).digest()


def connect(prologue: bytes, static: bytes, ephemeral: bytes,
            grantor: bytes | None) -> NoiseConnection:
    """A Noise connection about to begin: the initiator's if the grantor's key is given."""
    noise = NoiseConnection.from_name(NOISE)
    noise.set_prologue(prologue)
    noise.set_keypair_from_private_bytes(Keypair.STATIC, static)
    noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    if grantor is None:
        noise.set_as_responder()
    else:
        noise.set_as_initiator()
        noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, grantor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                 # a chosen ephemeral key: that is the point
        noise.start_handshake()
    return noise


def read_noise(noise: NoiseConnection, sealed: bytes) -> bytes:
    try:
        return bytes(noise.read_message(sealed))
    except (InvalidTag, ValueError) as error:
        raise Wrong(f"does not authenticate: {error!r}") from None


class Session:
    """What a finished handshake leaves: an id, a key each way, a counter each way."""

    def __init__(self, noise: NoiseConnection, grantee: bytes) -> None:
        self.id: bytes = noise.get_handshake_hash()[:8]
        self.grantee = grantee
        self.sending = noise.noise_protocol.cipher_state_encrypt
        self.receiving = noise.noise_protocol.cipher_state_decrypt
        self.next = 0                     # counter of the next datagram that we send
        self.last = -1                    # highest counter that we took

    def seal(self, message: bytes, *, counter: int | None = None, session: bytes | None = None,
             version: int = VERSION, reserved: bytes = b"\0\0") -> bytes:
        if counter is None:
            counter, self.next = self.next, self.next + 1
        head = bytes([SEALED, version]) + reserved + (session or self.id) + u64(counter)
        self.sending.set_nonce(counter)
        return head + bytes(self.sending.encrypt_with_ad(head, message))

    def open(self, datagram: bytes) -> bytes:
        check(datagram[:4] == bytes([SEALED, VERSION, 0, 0]), "not a sealed datagram")
        check(datagram[4:12] == self.id, "another session")
        counter = int.from_bytes(datagram[12:20], "big")
        check(self.last < counter < LAST_COUNTER, "counter used before, or never to be used")
        self.receiving.set_nonce(counter)
        try:
            message = bytes(self.receiving.decrypt_with_ad(datagram[:20], datagram[20:]))
        except InvalidTag:
            raise Wrong("does not authenticate") from None
        self.last = counter
        return message


# ---- the grantee ----

@dataclass(frozen=True)
class Begun:
    """A first ask that may still be answered: enough to run its handshake again, on a copy."""

    prologue: bytes
    ephemeral: bytes
    message: bytes
    mac1: bytes = b""


@dataclass
class GranteePeer:
    private: bytes
    grantor: bytes
    run: bytes = field(default_factory=lambda: os.urandom(8))
    session: Session | None = None
    stamp: int = 0
    begun: dict[bytes, Begun] = field(default_factory=dict)
    sessions: dict[bytes, Session] = field(default_factory=dict)

    @property
    def public(self) -> bytes:
        return public_of(self.private)

    def message(self, wants: Iterable[Want] = (), releases: Iterable[int] = (), *,
                stamp: int | None = None, source: Address | None = None,
                hostname: str | None = None, extra: bytes = b"") -> bytes:
        """An ASK; `extra` is TLVs as they are."""
        self.stamp = max(int(time.time() * 1e6), self.stamp + 1) if stamp is None else stamp
        return b"".join([
            bytes([ASK]), tlv(STAMP, u64(self.stamp)), tlv(RUN, self.run),
            tlv(FROM, source.packed) if source else b"",
            tlv(HOSTNAME, hostname.encode()) if hostname is not None else b"",
            *(tlv(WANT, want.encode()) for want in wants),
            *(tlv(RELEASE, bytes([slot])) for slot in releases), extra])

    def ask(self, wants: Iterable[Want] = (), releases: Iterable[int] = (), *,
            payload: bytes | None = None, **ways: Any) -> bytes:
        """A first ask; `ways` are those of message() and of frame()."""
        framing = {key: ways.pop(key) for key in list(ways) if key in FRAMING}
        if payload is None:
            payload = self.message(wants, releases, **ways)
        return self.frame(payload, **framing)

    def frame(self, message: bytes, *, length: int = FIRST_LEN, cookie: bytes | None = None,
              version: int = VERSION, reserved: bytes = b"\0\0", ask_id: bytes | None = None,
              ephemeral: bytes | None = None, mac1: bytes | None = None, mac2: bytes | None = None,
              mangle: Callable[[bytes], bytes] = bytes) -> bytes:
        head = bytes([FIRST_ASK, version]) + reserved + (ask_id or os.urandom(4))
        begun = Begun(b"ddpd" + head, ephemeral or os.urandom(32),
                      padded(message, length - ASK_FRAME))
        datagram = mangle(head + self.begin(begun)[1])
        if mac1 is None:
            mac1 = mac(derived(b"ddpd mac1", self.grantor), datagram)
        if mac2 is None:
            mac2 = mac(cookie, datagram + mac1) if cookie else bytes(16)
        self.begun[head[4:8]] = replace(begun, mac1=mac1)
        return datagram + mac1 + mac2

    def begin(self, begun: Begun) -> tuple[NoiseConnection, bytes]:
        noise = connect(begun.prologue, self.private, begun.ephemeral, self.grantor)
        return noise, bytes(noise.write_message(begun.message))

    def sealed(self, wants: Iterable[Want] = (), releases: Iterable[int] = (), *,
               session: Session | None = None, length: int = 256, counter: int | None = None,
               payload: bytes | None = None, **ways: Any) -> bytes:
        """A sealed ask, in the newest session or the one given; `payload` replaces the message."""
        session = got(session or self.session, "no session yet")
        if payload is None:
            payload = padded(self.message(wants, releases, **ways), length - SEALED_FRAME)
        return session.seal(payload, counter=counter)

    def read_answer(self, datagram: bytes) -> Answer:
        """The answer to a first ask, or a sealed one; a handshake's answer opens a session."""
        kind = looked_at(datagram)
        if kind == SEALED:
            session = got(self.sessions.get(datagram[4:12]), "no such session")
            return read_answer(session.open(datagram), len(datagram), session)
        check(kind == FIRST_ANSWER, "not an answer")
        begun = got(self.begun.get(datagram[4:8]), "no such ask")
        noise, _ = self.begin(begun)
        message = read_noise(noise, datagram[8:])
        session = Session(noise, self.public)
        answer = read_answer(message, len(datagram), session)
        check(answer.stamp == number(read_tlvs(begun.message), STAMP, 8), "another ask's stamp")
        self.session = self.sessions[session.id] = session
        return answer

    def read_cookie(self, datagram: bytes) -> bytes:
        check(looked_at(datagram) == COOKIE, "not a cookie")
        begun = got(self.begun.get(datagram[4:8]), "no such ask")
        key = ChaCha20Poly1305(derived(b"ddpd cookie", self.grantor))
        try:
            return key.decrypt(datagram[8:20], datagram[20:], begun.mac1)
        except InvalidTag:
            raise Wrong("cookie does not authenticate") from None

    def read(self, datagram: bytes) -> Answer | bytes | None:
        """Whatever a grantor may send: an answer, a cookie, or a nudge (None)."""
        kind = looked_at(datagram)
        if kind == COOKIE:
            return self.read_cookie(datagram)
        if kind != SEALED:
            return self.read_answer(datagram)
        session = got(self.sessions.get(datagram[4:12]), "no such session")
        message = session.open(datagram)
        if message[:1] != bytes([NUDGE]):
            return read_answer(message, len(datagram), session)
        read_tlvs(message)                                        # one with TLVs is as one without
        return None

    def read_nudge(self, datagram: bytes) -> None:
        check(self.read(datagram) is None, "not a nudge")


FRAMING = {"length", "cookie", "version", "reserved", "ask_id", "ephemeral", "mac1", "mac2",
           "mangle"}


def read_answer(message: bytes, length: int, session: Session) -> Answer:
    check(message and message[0] == ANSWER, "not an ANSWER")
    tlvs = read_tlvs(message)
    known = {STAMP, *range(STATUS, TIMES + 1), NEED, UNKNOWN, WHY}
    options: dict[int, list[bytes]] = {}
    for given, value in tlvs:
        if given in OPTIONS:
            once, right = OPTIONS[given]
            right(value)
            check(not once or given not in options, f"TLV {given} twice")
        check(given in known or given in OPTIONS or given >= CRITICAL, f"unknown TLV {given}")
        if given not in known:
            options.setdefault(given, []).append(value)
    times = single(tlvs, TIMES, 8)
    why = single(tlvs, WHY)
    return Answer(
        status=got(number(tlvs, STATUS, 1), "no status"),
        stamp=got(number(tlvs, STAMP, 8), "no stamp"),
        version=got(number(tlvs, SPOKEN, 1), "no version"),
        grants=[Grant.decode(value) for given, value in tlvs if given == GRANT],
        refusals=[Refusal.decode(value) for given, value in tlvs if given == REFUSAL],
        times=None if times is None else struct.unpack("!II", times),
        need=number(tlvs, NEED, 2), unsupported=number(tlvs, UNKNOWN, 1),
        why=None if why is None else text(why),
        options=options, length=length, session=session)


# ---- the grantor ----

@dataclass
class GrantorPeer:
    private: bytes
    sessions: dict[bytes, Session] = field(default_factory=dict)

    @property
    def public(self) -> bytes:
        return public_of(self.private)

    def read_ask(self, datagram: bytes, *, ephemeral: bytes | None = None) -> Ask:
        """A first ask or a sealed one; `ephemeral` is for the answer."""
        kind = looked_at(datagram)
        if kind == SEALED:
            session = got(self.sessions.get(datagram[4:12]), "no such session")
            return read_ask(session.open(datagram), len(datagram), session.grantee, session=session)
        check(kind == FIRST_ASK, "not an ask")
        check(mac(derived(b"ddpd mac1", self.public), datagram[:-32]) == datagram[-32:-16], "mac1")
        noise = connect(b"ddpd" + datagram[:8], self.private, ephemeral or os.urandom(32), None)
        message = read_noise(noise, datagram[8:-32])
        grantee: bytes = noise.noise_protocol.handshake_state.rs.public_bytes
        return read_ask(message, len(datagram), grantee, ask_id=datagram[4:8], connection=noise)

    def message(self, ask: Ask, status: int = OK, *, grants: Iterable[Grant] = (),
                refusals: Iterable[Refusal] = (), times: tuple[int, int] | None = None,
                options: Mapping[int, Sequence[bytes]] | None = None, stamp: int | None = None,
                version: int = VERSION, extra: bytes = b"") -> bytes:
        """An ANSWER; `options` are values by TLV type, `extra` is TLVs as they are."""
        return b"".join([
            bytes([ANSWER]), tlv(STAMP, u64(ask.stamp if stamp is None else stamp)),
            tlv(STATUS, bytes([status])), tlv(SPOKEN, bytes([version])),
            *(tlv(GRANT, grant.encode()) for grant in grants),
            *(tlv(REFUSAL, refusal.encode()) for refusal in refusals),
            tlv(TIMES, struct.pack("!II", *times)) if times else b"",
            *(tlv(given, value) for given, values in (options or {}).items() for value in values),
            extra])

    def answer(self, ask: Ask, status: int = OK, *, length: int | None = None,
               payload: bytes | None = None, **ways: Any) -> bytes:
        """As long as the ask; the answer to a first ask opens a session."""
        length = ask.length if length is None else length
        message = self.message(ask, status, **ways) if payload is None else payload
        if ask.session:
            return ask.session.seal(padded(message, length - SEALED_FRAME))
        assert ask.connection is not None
        sealed = bytes(ask.connection.write_message(padded(message, length - ANSWER_FRAME)))
        session = Session(ask.connection, ask.grantee)
        self.sessions[session.id] = session
        return bytes([FIRST_ANSWER, VERSION, 0, 0]) + ask.id + sealed

    def nudge(self, session: Session, **ways: Any) -> bytes:
        return session.seal(padded(bytes([NUDGE]), STEP_LEN - SEALED_FRAME), **ways)

    def cookie(self, first_ask: bytes, cookie: bytes, *, nonce: bytes | None = None) -> bytes:
        """The datagram that carries `cookie`, for whoever sent `first_ask`."""
        nonce = nonce or os.urandom(12)
        key = ChaCha20Poly1305(derived(b"ddpd cookie", self.public))
        return (bytes([COOKIE, VERSION, 0, 0]) + first_ask[4:8] + nonce
                + key.encrypt(nonce, cookie, first_ask[-32:-16]))

    def newest(self, grantee: bytes) -> Session:
        return [session for session in self.sessions.values() if session.grantee == grantee][-1]


def read_ask(message: bytes, length: int, grantee: bytes, *, ask_id: bytes = b"",
             connection: NoiseConnection | None = None, session: Session | None = None) -> Ask:
    check(message and message[0] == ASK, "not an ASK")
    tlvs = read_tlvs(message)
    source, hostname = single(tlvs, FROM, 4, 16), single(tlvs, HOSTNAME)
    releases = [value for given, value in tlvs if given == RELEASE]
    check(all(len(value) == 1 for value in releases), "release: length")
    return Ask(
        stamp=got(number(tlvs, STAMP, 8), "no stamp"), run=got(single(tlvs, RUN, 8), "no run"),
        wants=[read_want(value) for given, value in tlvs if given == WANT],
        releases=[value[0] for value in releases],
        source=None if source is None else ipaddress.ip_address(source),
        hostname=None if hostname is None else name(hostname), tlvs=tlvs, grantee=grantee,
        length=length, id=ask_id, connection=connection, session=session)


def read_want(value: bytes) -> Want:
    check(len(value) >= 3 and value[1] in (4, 6), "want: family")
    slot, family, prefixlen = value[:3]
    size = 4 if family == 4 else 16
    check(len(value) in (3, 3 + size, 3 + size + 20), "want: length")
    address = value[3:3 + size] or bytes(size)
    return Want(slot, str(network(family, prefixlen, address)), any(address), value[3 + size:])


# ---- UDP ----

class Wire:
    """One UDP socket: say a datagram, hear one, or hear that nothing comes."""

    def __init__(self, host: str = "::1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind((host, port))
        self.host = host
        self.port: int = self.sock.getsockname()[1]
        self.other: tuple[str, int] = (host, 0)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *why: object) -> None:
        self.sock.close()

    def to(self, port: int) -> Wire:
        self.other = (self.host, port)
        return self

    def say(self, datagram: bytes) -> None:
        self.sock.sendto(datagram, self.other)

    def hear(self, within_s: float = 5.0) -> bytes:
        """The next datagram; what is said afterwards goes to who sent it."""
        self.sock.settimeout(within_s)
        try:
            datagram, source = self.sock.recvfrom(65536)
        except TimeoutError:
            raise AssertionError(f"nothing came within {within_s} s") from None
        self.other = source[:2]
        return datagram

    def newest(self) -> bytes:
        """The last of those that wait, or the next one."""
        datagram = self.hear()
        while select.select([self.sock], [], [], 0)[0]:
            datagram = self.hear()
        return datagram

    def silent(self, for_s: float = 0.3) -> bool:
        self.sock.settimeout(for_s)
        try:
            return not self.sock.recvfrom(65536)
        except TimeoutError:
            return True
