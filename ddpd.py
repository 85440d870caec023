#!/usr/bin/env python3
"""ddpd: the Dumb Distributed Prefix Daemon.  Ask for an IP prefix over UDP; give one.

How a datagram becomes a route.  Read left to right; nothing flows back.

    datagram - open - decode - Grantor | Grantee - [Effect] - perform
    timer ---------------------'                   Save . Install . Send    ~ WATERLINE ~

Everything above the WATERLINE is pure: bytes, values and `now` come in, values go
out.  No clock, socket, file, subprocess or log is reached from there; random bytes
come from a function given at construction.

Words: a *grantor* gives, a *grantee* asks and holds.  A *peer* is a public key.  A
*pool* is what may be given, the *agreement* what one grantee may have of it.  A
*lease* is a prefix of one grantee's until it expires; an address is a lease of full
length.  A *slot* numbers the leases of one grantee.  To *install* is to make a lease
real in the kernel, to *drop* is to not answer, to *nudge* is to say: ask again now.
"""

from __future__ import annotations

import _thread
import binascii
import errno
import fcntl
import gc
import heapq
import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from _blake2 import blake2s  # `hashlib` would load libcrypto, 3 MB, for the same function
from _operator import _compare_digest as equal  # hmac.compare_digest, without what `hmac` imports
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from enum import Enum, IntEnum
from itertools import pairwise
from math import inf
from operator import itemgetter
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from sys import byteorder
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar, dataclass_transform

from nacl._sodium import ffi, lib  # what nacl.bindings wraps: its checks cost more than a small datagram's cipher

VERSION: Final = "0.1.0"
T = TypeVar("T")
Rand = Callable[[int], bytes]          # n -> n random bytes
Record = dict[str, Any]                # one line of the lease file
Key = tuple[Any, ...]                  # what a line, or an object in the kernel, is known by


class Now(NamedTuple):
    """One instant on both clocks.  Leases live by `boot`; `wall` is only ever a hint."""

    boot: float      # CLOCK_BOOTTIME, seconds
    wall: float      # CLOCK_REALTIME, seconds; jumps


# ==== CONSTANTS ====================================================== pure ====

PORT:     Final = 3373
PROTOCOL: Final = 1                    # version on the wire
FOREVER:  Final = 0xFFFFFFFF           # a lifetime without end
MARK:     Final = 221                  # our routes' protocol; metric and tables are 100 times that

# Every limit, in one table: the README prints it.
MAX_DATAGRAM:   Final = 1232           # bytes of any datagram, in or out
FIRST_ASK:      Final = 512            # bytes of the first ask, padded
ASK_STEP:       Final = 128            # later asks are a multiple of this many bytes
MAX_TEXT:       Final = 200            # printable ASCII letters of a text
MAX_SLOTS:      Final = 16             # slots in one ask, `ask` lines towards one grantor
MAX_PENDING:    Final = 4              # unanswered handshakes kept by a grantee; pending sessions a peer
MAX_SESSIONS:   Final = 250_000        # sessions of a grantor in all
SESSION_S:      Final = 23 * 3600      # seconds until a session is forgotten
COOKIE_S:       Final = 120            # seconds that a cookie's secret, and a cookie, is used
LATE_S:         Final = 120            # seconds after which an answer is too late
SOURCE_ASKS:    Final = 20             # handshakes a second from one IPv4 address or IPv6 /64, under load
STALE_GAP_S:    Final = 1.0            # seconds between two STALE answers to one peer
NEW_A_MINUTE:   Final = 10             # new leases a minute for one grantee
MAX_FORMER:     Final = 4              # ended leases held back for one grantee
MAX_DEPRECATED: Final = 4              # deprecated leases kept for one grantee
NUDGES:         Final = 8              # nudges without an answer, 1 s doubling
NUDGE_GAP_S:    Final = 0.5            # seconds between two nudges that a grantee obeys
NUDGES_A_S:     Final = 200            # nudges a second in all
BATCH:          Final = 64             # datagrams taken from one socket before answers are sent
PROVISIONAL_S:  Final = 600            # seconds that an unconfirmed lease of another boot is used
LINGER_S:       Final = 7200           # seconds that a lost prefix stays valid (RFC 9096)
CHILD_S:        Final = 5              # seconds that a command may run
HOOK_S:         Final = 30             # seconds that a hook may run
MAX_CONTROLS:   Final = 16             # control connections at once
CONTROL_S:      Final = 10             # seconds for a control connection to ask and to read
MAX_CONTROL:    Final = 65_536         # bytes of a control message towards the daemon
MAX_SHOWN:      Final = 10_000         # leases in one `status`
RETRY_INSTALL_S: Final = 30            # seconds between two tries to install what the kernel refused
RETRY_DISK_S:   Final = 10             # seconds between two tries to write what could not be written
LINE:           Final = 384            # bytes of a line in the lease file
SPARE_LINES:    Final = 64             # blank lines by which the lease file grows


class Retry(NamedTuple):
    """How patiently to repeat an unanswered ask."""

    first_s: float
    longest_s: float


# ==== PREFIXES ======================================================= pure ====

WIDTH: Final = {4: 32, 6: 128}
FAMILY: Final = {4: AF_INET, 6: AF_INET6}


class Prefix(NamedTuple):
    """An IP prefix.  An address is one of full length."""

    version: int     # 4 or 6
    first: int       # the first address, host bits zero (but for an interface's own address)
    length: int

    def __str__(self) -> str:
        return f"{self.host}/{self.length}"

    @property
    def host(self) -> str:
        """The first address, without the length."""
        return inet_ntop(FAMILY[self.version], self.packed)

    @property
    def packed(self) -> bytes:
        return self.first.to_bytes(WIDTH[self.version] // 8, "big")

    @property
    def size(self) -> int:
        return 1 << (WIDTH[self.version] - self.length)

    @property
    def shape(self) -> tuple[int, int]:
        return self.version, self.length

    @property
    def is_address(self) -> bool:
        return self.length == WIDTH[self.version]

    def holds(self, other: Prefix) -> bool:
        return (self.version == other.version and self.length <= other.length
                and (self.first ^ other.first) < self.size)

    def overlaps(self, other: Prefix) -> bool:
        return self.holds(other) or other.holds(self)

    def network(self, length: int) -> Prefix:
        """The prefix of that length around this one."""
        return Prefix(self.version, self.first & -(1 << (WIDTH[self.version] - length)), length)


def prefix_of(packed: bytes, length: int) -> Prefix:
    """From 4 or 16 bytes; ValueError if the length or the host bits are wrong."""
    prefix = Prefix(4 if len(packed) == 4 else 6, int.from_bytes(packed, "big"), length)
    if not 0 <= length <= WIDTH[prefix.version] or prefix.first & (prefix.size - 1):
        raise ValueError("not a prefix: host bits set, or too long")
    return prefix


def parse_interface(text: str) -> Prefix:
    """`10.0.0.1/24`, host bits and all; ValueError."""
    host, _, length = text.partition("/")
    version = 6 if ":" in host else 4
    try:
        packed = inet_pton(FAMILY[version], host)
    except OSError:
        raise ValueError(f"'{host}' is not an IP address") from None
    bits = length if length else str(WIDTH[version])
    if not (bits.isascii() and bits.isdigit()) or int(bits) > WIDTH[version]:
        raise ValueError(f"/{length} is no length of IPv{version} (0 to {WIDTH[version]})")
    return Prefix(version, int.from_bytes(packed, "big"), int(bits))


def parse_prefix(text: str) -> Prefix:
    """`2001:db8::/32` or `10.0.0.1`; ValueError."""
    prefix = parse_interface(text)
    if prefix.first & (prefix.size - 1):
        raise ValueError(f"{text} has host bits set (the prefix is {prefix.network(prefix.length)})")
    return prefix


def parse_host(host: str) -> Prefix:
    """A socket's host text to an address, IPv4 unmapped, scope left out; ValueError."""
    address = parse_prefix(host.partition("%")[0])
    if address.version == 6 and address.first >> 32 == 0xFFFF:
        return Prefix(4, address.first & 0xFFFFFFFF, 32)
    return address


def mapped(address: Prefix) -> bytes:
    """16 bytes, IPv4 as ::ffff:a.b.c.d."""
    return address.packed.rjust(6, b"\xff").rjust(16, b"\0") if address.version == 4 else address.packed


# ==== WIRE =========================================================== pure ====
#
#    +--------+--------+--------+-- - - --+
#    | kind   | type   | length | value   |  ... more TLVs; type 0 ends, zeros follow
#    +--------+--------+--------+-- - - --+
#
# Each message class is the wire format, the Python type and the row of PROTOCOL.md
# at once.  To add a field, add a line.


class Drop(Exception):  # noqa: N818 - a verdict, not an error
    """This datagram gets no answer.  The text says why; it comes from a fixed set."""


class Want(NamedTuple):
    """One slot of an ask.  `::/N` and `0.0.0.0/N` are any of that length."""

    slot: int
    prefix: Prefix
    ticket: bytes = b""


class Grant(NamedTuple):
    """One prefix of one slot, as promised.  Lifetimes count from when the ask was sent."""

    slot: int
    prefix: Prefix
    current: bool          # the preferred one of its slot; the others count down
    preferred_s: int
    valid_s: int
    ticket: bytes


class Refusal(NamedTuple):
    slot: int
    reason: int
    again_s: int
    text: str


class Status(IntEnum):
    """Of a whole answer."""

    OK = 0              # look at the slots
    STALE = 1           # the ask changed nothing; repeat it sealed in this answer's session
    INVALID = 2         # the ask contradicts itself
    UNSUPPORTED = 3     # the ask has a TLV type below 128 that the grantor does not know


class Reason(IntEnum):
    """Why a slot got nothing."""

    NO_POOL = 1         # no pool of this family is agreed
    LENGTH = 2          # this length is not given
    FULL = 3            # nothing of this length is free
    LIMIT = 4           # the agreement's number of leases is reached
    RATE = 5            # too many new leases in a minute
    RECOVERING = 6      # the grantor lost its lease file and waits until old leases have expired
    CLONE = 7           # another machine uses the same key
    DISK = 8            # the grantor cannot write its lease file
    REVOKED = 9         # the operator took this lease back
    ENDED = 10          # the agreement is over


LOST: Final = {Reason.NO_POOL, Reason.LENGTH, Reason.REVOKED, Reason.ENDED}    # will not mend itself
TICKET_LEN: Final = 20


@dataclass(frozen=True)
class Codec(Generic[T]):
    """One kind of value: to bytes and, checking everything, back."""

    name: str
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    most: int = 255                      # bytes in one TLV; a list is continued in another of its type


def unsigned(size: int) -> Codec[int]:
    def decode_unsigned(value: bytes) -> int:
        if len(value) != size:
            raise Drop("number of wrong size")
        return int.from_bytes(value, "big")
    return Codec(f"u{8 * size}", lambda n: n.to_bytes(size, "big"), decode_unsigned)


def raw(size: int) -> Codec[bytes]:
    def decode_raw(value: bytes) -> bytes:
        if len(value) != size:
            raise Drop("bytes of wrong size")
        return value
    return Codec(f"{size} bytes", bytes, decode_raw)


def decode_prefix(family: int, length: int, packed: bytes) -> Prefix:
    if family not in WIDTH or len(packed) != WIDTH[family] // 8:
        raise Drop("family and address disagree")
    try:
        return prefix_of(packed, length)
    except ValueError:
        raise Drop("not a prefix") from None


def decode_address(value: bytes) -> Prefix:
    return decode_prefix(4 if len(value) == 4 else 6, 8 * len(value), value)


def decode_addresses(value: bytes) -> tuple[Prefix, ...]:
    if len(value) % 16:
        raise Drop("addresses of wrong size")
    return tuple(parse_host(inet_ntop(AF_INET6, value[n : n + 16])) for n in range(0, len(value), 16))


NAME_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def is_name(text: str) -> bool:
    """A host or domain name: letters, digits and `-`, 1 to 63 a label, 253 in all."""
    return len(text) <= 253 and all(0 < len(label) <= 63 and NAME_LETTERS.issuperset(label)
                                    for label in text.split("."))


def decode_name(value: bytes) -> str:
    text = value.decode("latin-1")
    if not is_name(text):
        raise Drop("not a name")
    return text


def decode_text(value: bytes) -> str:
    if len(value) > MAX_TEXT or not all(32 <= letter < 127 for letter in value):
        raise Drop("text not printable or too long")
    return value.decode("ascii")


def encode_want(want: Want) -> bytes:
    head = bytes((want.slot, want.prefix.version, want.prefix.length))
    return head + want.prefix.packed + want.ticket if want.prefix.first else head


def decode_want(value: bytes) -> Want:
    if len(value) < 3 or value[1] not in WIDTH or value[2] > WIDTH[value[1]]:
        raise Drop("want malformed")
    slot, family, length = value[:3]
    if len(value) == 3:
        return Want(slot, Prefix(family, 0, length))
    end = 3 + WIDTH[family] // 8
    if len(value) - end not in (0, TICKET_LEN):
        raise Drop("want malformed")
    return Want(slot, decode_prefix(family, length, value[3:end]), value[end:])


GRANT_HEAD: Final = struct.Struct(f">BBBBII{TICKET_LEN}s")


def encode_grant(grant: Grant) -> bytes:
    prefix = grant.prefix
    return GRANT_HEAD.pack(grant.slot, prefix.version, prefix.length, grant.current,
                           grant.preferred_s, grant.valid_s, grant.ticket) + prefix.packed


def decode_grant(value: bytes) -> Grant:
    if len(value) < GRANT_HEAD.size:
        raise Drop("grant malformed")
    slot, family, length, flags, preferred, valid, ticket = GRANT_HEAD.unpack_from(value)
    if flags > 1 or preferred > valid:
        raise Drop("grant malformed")
    prefix = decode_prefix(family, length, value[GRANT_HEAD.size :])
    return Grant(slot, prefix, bool(flags), preferred, valid, ticket)


def decode_refusal(value: bytes) -> Refusal:
    if len(value) < 6:
        raise Drop("refusal malformed")
    return Refusal(value[0], value[1], int.from_bytes(value[2:6], "big"), decode_text(value[6:]))


def decode_times(value: bytes) -> tuple[int, int]:
    if len(value) != 8:
        raise Drop("times malformed")
    return int.from_bytes(value[:4], "big"), int.from_bytes(value[4:], "big")


def decode_routed(value: bytes) -> Prefix:
    if len(value) < 2:
        raise Drop("prefix malformed")
    return decode_prefix(value[0], value[1], value[2:])


U8, U16, U64 = unsigned(1), unsigned(2), unsigned(8)
ADDRESS:   Final = Codec[Prefix]("address", lambda p: p.packed, decode_address)
ADDRESSES: Final = Codec[tuple[Prefix, ...]]("addresses", lambda ps: b"".join(map(mapped, ps)), decode_addresses, 240)
NAME:      Final = Codec[str]("name", str.encode, decode_name)
TEXT:      Final = Codec[str]("text", str.encode, decode_text)
WANT:      Final = Codec[Want]("want", encode_want, decode_want)
GRANT:     Final = Codec[Grant]("grant", encode_grant, decode_grant)
REFUSAL:   Final = Codec[Refusal](
    "refusal", lambda r: bytes((r.slot, r.reason)) + r.again_s.to_bytes(4, "big") + r.text.encode(), decode_refusal)
TIMES:     Final = Codec[tuple[int, int]]("times", lambda t: struct.pack(">II", *t), decode_times)
ROUTED:    Final = Codec[Prefix](
    "prefix", lambda p: bytes((p.version, p.length)) + p.packed, decode_routed)


class Field(NamedTuple):
    """A row of a message's table: how one attribute is written."""

    name: str
    number: int
    codec: Codec[Any]
    many: bool


def tlv(number: int, codec: Codec[Any], default: Any = ..., many: bool = False) -> Any:
    """Declare a message field: its TLV type and how its value is written."""
    metadata = {"tlv": number, "codec": codec, "many": many}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


MESSAGES: dict[int, type[Message]] = {}


@dataclass_transform(frozen_default=True, field_specifiers=(tlv,))
class Message:
    """Base of everything that can be inside a sealed datagram."""

    kind: ClassVar[int]
    table: ClassVar[tuple[Field, ...]]
    by_number: ClassVar[dict[int, Field]]
    required: ClassVar[frozenset[str]]
    unknown: int = 0                     # the first TLV type below 128 that is not known here

    def __init_subclass__(cls, kind: int) -> None:
        cls.kind = kind
        MESSAGES[kind] = dataclass(cls)                           # frozen for mypy only: frozen costs time
        rows = [f for f in fields(cls) if "tlv" in f.metadata]  # type: ignore[arg-type]
        cls.table = tuple(Field(f.name, f.metadata["tlv"], f.metadata["codec"], f.metadata["many"])
                          for f in rows)
        cls.by_number = {row.number: row for row in cls.table}
        cls.required = frozenset(f.name for f in rows if f.default is f.default_factory)


class Ask(Message, kind=1):
    """Grantee to grantor: this is what I want, hold, and no longer need."""

    stamp:    int                = tlv(1, U64)
    run:      bytes              = tlv(2, raw(8))
    source:   Prefix | None      = tlv(3, ADDRESS, default=None)
    hostname: str | None         = tlv(4, NAME, default=None)
    wants:    tuple[Want, ...]   = tlv(5, WANT, default=(), many=True)
    releases: tuple[int, ...]    = tlv(6, U8, default=(), many=True)
    unknown:  int                = 0


class Answer(Message, kind=2):
    """Grantor to grantee: these are yours, those you cannot have."""

    stamp:        int                    = tlv(1, U64)
    status:       int                    = tlv(16, U8)
    version:      int                    = tlv(17, U8)
    grants:       tuple[Grant, ...]      = tlv(18, GRANT, default=(), many=True)
    refusals:     tuple[Refusal, ...]    = tlv(19, REFUSAL, default=(), many=True)
    times:        tuple[int, int] | None = tlv(20, TIMES, default=None)
    need:         int | None             = tlv(22, U16, default=None)
    unsupported:  int | None             = tlv(23, U8, default=None)
    why:          str | None             = tlv(24, TEXT, default=None)
    dns:          tuple[Prefix, ...]     = tlv(32, ADDRESSES, default=())
    search:       tuple[str, ...]        = tlv(33, NAME, default=(), many=True)
    ntp:          tuple[Prefix, ...]     = tlv(34, ADDRESSES, default=())
    mtu:          int | None             = tlv(35, U16, default=None)
    wg_key:       bytes | None           = tlv(40, raw(32), default=None)
    wg_endpoint:  str | None             = tlv(41, TEXT, default=None)
    wg_allowed:   tuple[Prefix, ...]     = tlv(42, ROUTED, default=(), many=True)
    wg_keepalive: int | None             = tlv(43, U16, default=None)
    unknown:      int                    = 0


class Nudge(Message, kind=3):
    """Grantor to grantee: ask again at once, no more than that."""

    unknown: int = 0


OPTIONS: Final = ("dns", "search", "ntp", "mtu", "wg_key", "wg_endpoint", "wg_allowed", "wg_keepalive")
EMPTY: Final[tuple[()]] = ()                                      # CPython has only one
NOTHING: Final = (None, EMPTY)


def encode(message: Message) -> bytes:
    out = bytearray((message.kind,))
    values = message.__dict__
    for name, number, codec, many in message.table:
        value = values[name]
        if value is None or value is EMPTY:
            continue
        for item in value if many else (value,):
            written = codec.encode(item)
            if len(written) <= codec.most:
                out += bytes((number, len(written)))
                out += written
                continue
            for at in range(0, len(written), codec.most):
                part = written[at : at + codec.most]
                out += bytes((number, len(part))) + part
    return bytes(out)


def tlvs(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """A cursor that cannot run off the end: (type, value) up to type 0."""
    end = len(data)
    while at < end:
        number = data[at]
        if number == 0:
            if data.count(0, at) != end - at:
                raise Drop("padding not zero")
            return
        if at + 2 > end or at + 2 + data[at + 1] > end:
            raise Drop("truncated")
        value = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + len(value)
        yield number, value


def gathered(values: Mapping[str, Any], row: Field, found: Any) -> Any:
    """A value, together with what has been given of its type before."""
    if row.many:
        return (*values.get(row.name, ()), found)
    if row.name not in values:
        return found
    if row.codec is not ADDRESSES:
        raise Drop("type given twice")
    return values[row.name] + found


def decode(data: bytes) -> Message:
    cls = MESSAGES.get(data[0] if data else 0)
    if cls is None:
        raise Drop("unknown message kind")
    values: dict[str, Any] = {}
    for number, value in tlvs(data, 1):
        row = cls.by_number.get(number)
        if row is not None:
            values[row.name] = gathered(values, row, row.codec.decode(value))
        elif number < 128:
            values.setdefault("unknown", number)
    if not cls.required <= values.keys():
        raise Drop("type missing")
    return cls(**values)


# ==== CRYPTO ========================================================= pure ====
#
# Noise_IK_25519_ChaChaPoly_BLAKE2s, straight line, one line per token.  Names are
# the specification's: ck chaining key, h transcript hash, s/e our static/ephemeral,
# rs/re theirs.
#
#     <- s                        the grantee already knows the grantor's key
#     -> e, es, s, ss, payload
#     <- e, ee, se, payload

NOISE_NAME: Final = b"Noise_IK_25519_ChaChaPoly_BLAKE2s"
KEY_LEN: Final = 32
TAG_LEN: Final = 16
MAC_LEN: Final = 16
IPAD: Final = bytes(n ^ 0x36 for n in range(256))
OPAD: Final = bytes(n ^ 0x5C for n in range(256))
ZEROS: Final = bytes(32)
lib.sodium_init()                        # finds out what this processor can do
RESULT: Final = ffi.new("unsigned char[]", 2 * MAX_DATAGRAM)       # where libsodium puts its results


class KeyPair(NamedTuple):
    secret: bytes
    public: bytes


def keypair(secret: bytes) -> KeyPair:
    lib.crypto_scalarmult_base(RESULT, secret)
    return KeyPair(secret, ffi.buffer(RESULT, KEY_LEN)[:])


def dh(secret: bytes, public: bytes) -> bytes:
    """The only curve operation with a point from the network.  An all-zero result is a low-order point's."""
    if len(public) != KEY_LEN or lib.crypto_scalarmult(RESULT, secret, public) != 0:
        raise Drop("low-order point")
    shared: bytes = ffi.buffer(RESULT, KEY_LEN)[:]
    if shared == ZEROS:
        raise Drop("low-order point")
    return shared


def digest(data: bytes) -> bytes:
    return blake2s(data).digest()


def mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, key=key, digest_size=MAC_LEN).digest()


def hkdf(ck: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Noise's HKDF with two outputs.  HMAC is written out: `hmac` costs three times as much."""
    padded = ck + ZEROS
    inner = blake2s(padded.translate(IPAD) + material).digest()
    padded = blake2s(padded.translate(OPAD) + inner).digest() + ZEROS
    ipad, opad = padded.translate(IPAD), padded.translate(OPAD)
    first = blake2s(opad + blake2s(ipad + b"\x01").digest()).digest()
    return first, blake2s(opad + blake2s(ipad + first + b"\x02").digest()).digest()


def nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")


def aead_encrypt(plain: bytes, aad: bytes, salt: bytes, key: bytes) -> bytes:
    if len(plain) > MAX_DATAGRAM:
        raise ValueError("longer than any datagram")
    lib.crypto_aead_chacha20poly1305_ietf_encrypt(
        RESULT, ffi.NULL, plain, len(plain), aad, len(aad), ffi.NULL, salt, key)
    sealed: bytes = ffi.buffer(RESULT, len(plain) + TAG_LEN)[:]
    return sealed


def aead_decrypt(sealed: bytes, aad: bytes, salt: bytes, key: bytes) -> bytes:
    if not TAG_LEN <= len(sealed) <= MAX_DATAGRAM or lib.crypto_aead_chacha20poly1305_ietf_decrypt(
            RESULT, ffi.NULL, ffi.NULL, sealed, len(sealed), aad, len(aad), salt, key) != 0:
        raise Drop("does not authenticate")
    plain: bytes = ffi.buffer(RESULT, len(sealed) - TAG_LEN)[:]
    return plain


def seal(key: bytes, counter: int, plain: bytes, aad: bytes = b"") -> bytes:
    return aead_encrypt(plain, aad, nonce(counter), key)


def open_sealed(key: bytes, counter: int, sealed: bytes, aad: bytes = b"") -> bytes:
    return aead_decrypt(sealed, aad, nonce(counter), key)


NAME_HASH: Final = digest(NOISE_NAME)


class Handshake:
    """One side of one Noise_IK handshake: specification section 7.5, IK only.

    Reading changes it before the tag is checked: read an answer on a copy.
    """

    def __init__(self, s: KeyPair, responder_static: bytes, prologue: bytes) -> None:
        self.s, self.rs = s, responder_static
        self.e = self.s
        self.re = b""
        self.h = self.ck = NAME_HASH
        self.k, self.n = b"", 0
        self.mix_hash(prologue)
        self.mix_hash(responder_static)                           # <- s

    def mix_hash(self, data: bytes) -> None:
        self.h = digest(self.h + data)

    def mix_key(self, shared: bytes) -> None:
        self.ck, self.k = hkdf(self.ck, shared)
        self.n = 0

    def encrypt_and_hash(self, plain: bytes) -> bytes:
        sealed = seal(self.k, self.n, plain, self.h)
        self.n += 1
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plain = open_sealed(self.k, self.n, sealed, self.h)
        self.n += 1
        self.mix_hash(sealed)
        return plain

    def write_first(self, e: KeyPair, payload: bytes) -> bytes:
        self.e = e
        self.mix_hash(e.public)                                   # e
        self.mix_key(dh(e.secret, self.rs))                       # es
        hidden_static = self.encrypt_and_hash(self.s.public)      # s
        self.mix_key(dh(self.s.secret, self.rs))                  # ss
        return e.public + hidden_static + self.encrypt_and_hash(payload)

    def read_static(self, data: bytes) -> bytes:
        """The first half of the first message: who asks?  One curve operation."""
        self.re = data[:KEY_LEN]
        self.mix_hash(self.re)                                    # e
        self.mix_key(dh(self.s.secret, self.re))                  # es
        self.rs = self.decrypt_and_hash(data[KEY_LEN : 2 * KEY_LEN + TAG_LEN])   # s
        return self.rs

    def read_payload(self, data: bytes, ss: bytes) -> bytes:
        """The second half.  `ss` is the same for every handshake with this peer."""
        self.mix_key(ss)                                          # ss
        return self.decrypt_and_hash(data[2 * KEY_LEN + TAG_LEN :])

    def write_second(self, e: KeyPair, payload: bytes) -> bytes:
        self.mix_hash(e.public)                                   # e
        self.mix_key(dh(e.secret, self.re))                       # ee
        self.mix_key(dh(e.secret, self.rs))                       # se
        return e.public + self.encrypt_and_hash(payload)

    def read_second(self, data: bytes) -> bytes:
        self.re = data[:KEY_LEN]
        self.mix_hash(self.re)                                    # e
        self.mix_key(dh(self.e.secret, self.re))                  # ee
        self.mix_key(dh(self.s.secret, self.re))                  # se
        return self.decrypt_and_hash(data[KEY_LEN:])

    def split(self) -> tuple[bytes, bytes]:
        """The two transport keys: initiator's sending key, responder's sending key."""
        return hkdf(self.ck, b"")


# ==== DATAGRAMS ====================================================== pure ====
#
#    ask     kind=1 | version | 0 0 | id (4) | e (32) | s sealed (48) | payload sealed (n+16) | mac1 | mac2
#    answer  kind=2 | version | 0 0 | id (4) | e (32) | payload sealed (n+16)
#    cookie  kind=3 | version | 0 0 | id (4) | nonce (12) | cookie sealed (16+16)
#    sealed  kind=4 | version | 0 0 | session (8) | counter (8) | payload sealed (n+16)

KINDS: Final = {name: bytes((number, PROTOCOL, 0, 0))
                for number, name in enumerate(("ask", "answer", "cookie", "sealed"), 1)}
NAMES: Final = {head: name for name, head in KINDS.items()}
ID_LEN: Final = 8                        # kind, version, reserved and id
SEALED_LEN: Final = 20                   # the header of a sealed datagram
ASK_OVERHEAD: Final = ID_LEN + 2 * KEY_LEN + 2 * TAG_LEN + 2 * MAC_LEN
SHORTEST: Final = {"ask": ASK_OVERHEAD, "answer": ID_LEN + KEY_LEN + TAG_LEN,
                   "cookie": ID_LEN + 12 + 16 + TAG_LEN, "sealed": SEALED_LEN + TAG_LEN}
NO_MAC: Final = bytes(MAC_LEN)


def kind_of(datagram: bytes) -> str:
    """The name of a datagram's kind; Drop if nothing more can be done with it."""
    name = NAMES.get(datagram[:4])
    if name is None:
        if len(datagram) >= 4 and 1 <= datagram[0] <= len(KINDS):
            raise Drop("other version" if datagram[1] != PROTOCOL else "reserved bytes set")
        raise Drop("unknown kind")
    if not SHORTEST[name] <= len(datagram) <= MAX_DATAGRAM:
        raise Drop("wrong size")
    return name


def mac1_key(grantor: bytes) -> bytes:
    return digest(b"ddpd mac1" + grantor)


def cookie_key(grantor: bytes) -> bytes:
    return digest(b"ddpd cookie" + grantor)


class Session:
    """What a handshake leaves behind: a key and a counter for each direction."""

    __slots__ = ("born", "ends", "got", "id", "opening", "peer", "sealing", "sent")

    def __init__(self, handshake: Handshake, born: float, peer: Any = None) -> None:
        """As the initiator has it; `turned` is the responder's."""
        self.id = handshake.h[:8]
        self.sealing, self.opening = handshake.split()
        self.sent, self.got = 0, -1
        self.born, self.peer, self.ends = born, peer, ""

    def turned(self) -> Session:
        self.sealing, self.opening = self.opening, self.sealing
        return self

    def seal(self, plain: bytes) -> bytes:
        header = KINDS["sealed"] + self.id + self.sent.to_bytes(8, "big")
        self.sent += 1
        return header + seal(self.sealing, self.sent - 1, plain, header)

    def open(self, datagram: bytes) -> bytes:
        counter = int.from_bytes(datagram[12:20], "big")
        if counter <= self.got or counter == 2**64 - 1:           # the last is Noise's, for rekeying
            raise Drop("replayed")
        plain = open_sealed(self.opening, counter, datagram[SEALED_LEN:], datagram[:SEALED_LEN])
        self.got = counter                                        # only now: the tag has verified
        return plain

    def over(self, now: Now) -> bool:
        return now.boot - self.born > SESSION_S


def padded(plain: bytes, size: int) -> bytes:
    return plain + bytes(size - len(plain)) if size > len(plain) else plain


# ==== SETTINGS ======================================================= pure ====
#
# What can be configured: the types, how each value is written, and the list of all
# keys.  The parser, the example file and the README's table are made from it.


class ConfigError(Exception):
    """The operator is wrong: `file:line: [section] key: what`, in one line."""


class HostPort(NamedTuple):
    host: str
    port: int


class Reach(NamedTuple):
    """How a prefix is routed: `via` may be empty, `dev` too, not both."""

    via: str
    dev: str

    def serves(self, version: int) -> bool:
        return not self.via or version == (6 if ":" in self.via else 4)


class Lan(NamedTuple):
    """An interface that gets a subnet; number None: the lowest free one."""

    dev: str
    number: int | None


class Line(NamedTuple):
    """One `ask` line.  slot None: numbered by ddpd."""

    slot: int | None
    prefix: Prefix
    lans: tuple[Lan, ...]


@dataclass(frozen=True)
class Pool:
    name: str
    prefix: Prefix
    give: tuple[int, ...]
    reserve: tuple[Prefix, ...]
    valid_s: float
    preferred_s: float
    renew_s: float
    rebind_s: float
    options: dict[str, Any]


@dataclass(frozen=True)
class Agreement:
    name: str
    key: bytes
    pools: tuple[Pool, ...]
    limit: int
    lengths: tuple[int, ...]             # empty: all that the pools give
    pins: tuple[Prefix, ...]
    route: str | Reach                   # "auto", "none" or a Reach


@dataclass(frozen=True)
class Contact:
    """A [grantor] section: somebody this node asks."""

    name: str
    key: bytes
    addresses: tuple[HostPort, ...]
    lines: tuple[Line, ...]
    default: Reach | None
    install: bool
    hook: str
    accept: tuple[Prefix, ...]
    hostname: str
    keepalive_s: float
    suffix: int


@dataclass(frozen=True)
class Config:
    file: str
    key: str
    listen: tuple[HostPort, ...]
    leases: str
    control: str
    mark: int
    load: int
    hold_s: float
    pools: tuple[Pool, ...]
    agreements: dict[bytes, Agreement]
    contacts: tuple[Contact, ...]


def words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def address(text: str) -> Prefix:
    if "/" in text:
        raise ValueError(f"'{text}' is not an address (no length here)")
    return parse_host(text)


def device(text: str) -> str:
    if not 0 < len(text) <= 15 or not NAME_LETTERS.union("._@:").issuperset(text) or text in (".", ".."):
        raise ValueError(f"'{text}' is not an interface name (such as eth0, at most 15 letters)")
    return text


def public_key(text: str) -> bytes:
    try:
        key = binascii.a2b_base64(text.encode(), strict_mode=True)
    except ValueError:
        key = b""
    if len(key) != KEY_LEN:
        raise ValueError("not a key (44 characters of base64, as `ddpd.py pubkey` prints it)")
    return key


def peer_key(text: str) -> bytes:
    """A key towards which a handshake can be written."""
    key = public_key(text)
    try:
        dh(bytes(31) + b"\x40", key)
    except Drop:
        raise ValueError("not a key (a point of low order)") from None
    return key


def show_key(key: bytes) -> str:
    return binascii.b2a_base64(key, newline=False).decode()


UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def duration(text: str) -> float:
    if text == "forever":
        return inf
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    if not (number.isascii() and number.isdigit()) or not 0 < int(number) * UNITS[unit] < FOREVER:
        raise ValueError(f"'{text}' is not a duration (such as 90s, 30m, 12h, 7d, forever)")
    return float(int(number) * UNITS[unit])


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse_whole(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
            raise ValueError(f"'{text}' is not a whole number from {low} to {high}")
        return int(text)
    return parse_whole


def yes_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"'{text}' is neither yes nor no")
    return text == "yes"


def parse_lengths(text: str) -> tuple[int, ...]:
    """`/56-/64 /48` to sorted lengths."""
    found: set[int] = set()
    for word in words(text):
        low, dash, high = word.partition("-")
        ends = [end.removeprefix("/") for end in (low, high if dash else low)]
        if not all(end.isascii() and end.isdigit() and int(end) <= 128 for end in ends):
            raise ValueError(f"'{word}' is not a length (such as /56, or /56-/64)")
        if int(ends[0]) > int(ends[1]):
            raise ValueError(f"'{word}' is empty (such as /56-/64: the shorter length first)")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(found))


def host_port(text: str) -> HostPort:
    """`name:port`, `[v6]:port`, `v4`, `v6`; the port may be left out."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or port[:1] not in (":", ""):
            raise ValueError(f"'{text}' is not an address (such as [2001:db8::1]:{PORT})")
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if ":" in host or host.replace(".", "").isdigit():
        address(host.partition("%")[0])
    elif not is_name(host):
        raise ValueError(f"'{host}' is neither an address nor a host name")
    return HostPort(host, whole(1, 65535)(port.removeprefix(":")) if port.removeprefix(":") else PORT)


def parse_listen(text: str) -> HostPort:
    place = host_port(text)
    try:
        parse_prefix(place.host)
    except ValueError:
        raise ValueError(f"'{text}' is not an address of this machine (such as [::]:{PORT})") from None
    return place


def parse_reach(text: str) -> Reach:
    """`dev IF`, `via ADDRESS`, `via ADDRESS dev IF`."""
    parts = text.split()
    found = dict(zip(parts[::2], parts[1::2], strict=False))
    if len(parts) % 2 or not found or not found.keys() <= {"via", "dev"} or len(found) * 2 != len(parts):
        raise ValueError(f"'{text}' is no route (want `dev IF`, or `via ADDRESS`, or `via ADDRESS dev IF`)")
    via = address(found["via"]).host if "via" in found else ""
    return Reach(via, device(found["dev"]) if "dev" in found else "")


def parse_route(text: str) -> str | Reach:
    return text if text in ("auto", "none") else parse_reach(text)


def parse_lan(text: str) -> Lan:
    dev, equals, number = text.partition("=")
    return Lan(device(dev), whole(0, 2**16 - 1)(number) if equals else None)


def parse_line(text: str) -> Line:
    """`[SLOT:] PREFIX [on IF[=NUMBER] …]`."""
    parts = words(text)
    slot = whole(0, 255)(parts.pop(0)[:-1]) if parts and parts[0][:-1].isdigit() and parts[0][-1] == ":" else None
    if not parts or (len(parts) > 1 and parts[1] != "on") or len(parts) == 2:
        raise ValueError(f"'{text}' is no ask (such as `::/56 on br-lan br-guest=7`)")
    prefix = parse_prefix(parts[0])
    if prefix.length < {4: 8, 6: 16}[prefix.version]:
        raise ValueError(f"{prefix} is too large to ask for")
    lans = tuple(parse_lan(part) for part in parts[2:])
    for numbers in ([lan.number for lan in lans if lan.number is not None], [lan.dev for lan in lans]):
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"'{text}' names an interface or a number twice")
    return Line(slot, prefix, lans)


def parse_asks(text: str) -> tuple[Line, ...]:
    lines = tuple(parse_line(line) for line in text.split("\n") if line.strip())
    fixed = [line.slot for line in lines if line.slot is not None]
    if len(set(fixed)) < len(fixed):
        raise ValueError("a slot is named twice")
    if len(lines) > MAX_SLOTS:
        raise ValueError(f"more than {MAX_SLOTS} lines")
    return lines


def parse_suffix(text: str) -> int:
    if parse_prefix(text).version != 6 or not 0 < parse_prefix(text).first < 2**64:
        raise ValueError(f"'{text}' is no suffix (such as ::1)")
    return parse_prefix(text).first


def many(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    return lambda text: tuple(parse(word) for word in words(text))


def optional(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    return lambda text: parse(text) if text else None


def name_word(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"'{text}' is not a host or domain name")
    return text


def path_name(text: str) -> str:
    if not text:
        raise ValueError("missing")
    if "\"" in text or "'" in text or (len(text) == 44 and text.endswith("=")):
        raise ValueError("want the name of a file: without quotes, and not a key itself")
    return text


class Setting(NamedTuple):
    """One key of the configuration.  default None: it has to be there."""

    parse: Callable[[str], Any]
    default: str | None
    meaning: str


# No prefix of these can be anybody's to give: RFC 6890, multicast, reserved.
NEVER: Final = tuple(map(parse_prefix, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")))

SETTINGS: Final[dict[str, dict[str, Setting]]] = {
    "ddpd": {
        "key":      Setting(path_name, "/etc/ddpd/key", "private key, as `wg genkey` writes it; made if missing"),
        "listen":   Setting(many(parse_listen), "", "where asks are heard; default [::]:3373 if there is a pool"),
        "leases":   Setting(path_name, "/var/lib/ddpd/leases.json", "the lease file"),
        "control":  Setting(path_name, "/run/ddpd.sock", "the control socket"),
        "mark":     Setting(whole(1, 255), str(MARK), "protocol number of our routes; metric and tables: 100 times it"),
        "load":     Setting(whole(1, 10**6), "200", "handshakes a second beyond which asks need a cookie"),
        "hold":     Setting(duration, "30d", "how long an ended lease is held back for its former grantee"),
    },
    "pool": {
        "prefix":    Setting(parse_prefix, None, "what may be given"),
        "give":      Setting(parse_lengths, None, "lengths"),
        "reserve":   Setting(many(parse_prefix), "", "holes: never given"),
        "lifetime":  Setting(duration, "12h", "valid lifetime of a lease"),
        "preferred": Setting(optional(duration), "", "preferred lifetime; default half of `lifetime`"),
        "renew":     Setting(optional(duration), "", "T1, when a grantee renews; default half of `preferred`"),
        "rebind":    Setting(optional(duration), "", "T2, when it tries every address; default 0.8 of `preferred`"),
        "dns":       Setting(many(address), "", "name servers told to grantees"),
        "search":    Setting(many(name_word), "", "search domains told to grantees"),
        "ntp":       Setting(many(address), "", "time servers told to grantees"),
        "mtu":       Setting(optional(whole(1280, 9000)), "", "MTU told to grantees"),
    },
    "grantee": {
        "key":     Setting(public_key, None, "its public key"),
        "pools":   Setting(words, None, "pools it is given from, in this order"),
        "limit":   Setting(whole(1, 256), "1", "leases a family"),
        "lengths": Setting(parse_lengths, "", "lengths it may have; default all that the pools give"),
        "pin":     Setting(many(parse_prefix), "", "prefixes that are its own, whatever the pools say"),
        "route":   Setting(parse_route, "auto", "how its leases are reached: auto, dev IF, via ADDRESS [dev IF], none"),
    },
    "grantor": {
        "key":       Setting(peer_key, None, "its public key"),
        "address":   Setting(many(host_port), None, "where it listens; several are tried in turn"),
        "ask":       Setting(parse_asks, None, "one slot a line: PREFIX [on IF[=NUMBER] …]; `3: …` fixes the slot"),
        "default":   Setting(optional(parse_reach), "", "default route for traffic from what it gives"),
        "install":   Setting(yes_no, "yes", "no: leave the kernel alone, only call the hook"),
        "hook":      Setting(str, "", "program to run at every change"),
        "accept":    Setting(many(parse_prefix), "2000::/3 fc00::/7 0.0.0.0/0", "grants outside of these are refused"),
        "hostname":  Setting(optional(name_word), "", "told to the grantor"),
        "keepalive": Setting(optional(duration), "", "ask at least this often: 25s behind a NAT"),
        "suffix":    Setting(parse_suffix, "::1", "this node's address in each subnet"),
    },
}


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word with the most letter pairs in common: what was probably meant."""
    def likeness(other: str) -> float:
        pairs = [{text[n : n + 2] for n in range(-1, len(text))} for text in (word, other)]
        return len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])
    return max(known, key=likeness)


# ==== CONFIG ========================================================= pure ====
#
# An INI file becomes typed values here, at the door.

class Section:
    """One section as written: values with their line numbers."""

    def __init__(self, file: str, head: str, line: int) -> None:
        self.file, self.head, self.line = file, head, line
        self.kind, _, self.name = head.partition(" ")
        self.name = self.name.strip()
        self.values: dict[str, str] = {}
        self.lines: dict[str, int] = {}

    def error(self, key: str, what: object) -> ConfigError:
        where = f"[{self.head}] {key}" if key else f"[{self.head}]"
        return ConfigError(f"{self.file}:{self.lines.get(key, self.line)}: {where}: {' '.join(str(what).split())}")

    def add(self, key: str, value: str, line: int) -> None:
        known = SETTINGS[self.kind]
        before, self.lines[key] = self.lines.get(key), line
        if before is not None:
            raise self.error(key, f"given twice (first in line {before})")
        if key not in known:
            raise self.error(key, f"no such key (did you mean '{nearest(key, known)}'?)")
        self.values[key] = value

    def go_on(self, key: str, text: str, line: int) -> None:
        """An indented line."""
        word = text.partition("=")[0].strip()
        if "=" in text and word in SETTINGS[self.kind]:
            self.lines[word] = line
            raise self.error(word, f"is indented, so it goes on with `{key}` (begin it in the first column)")
        self.values[key] += "\n" + text

    def parsed(self) -> dict[str, Any]:
        """Every key of this kind of section, as its type."""
        found = {}
        for key, setting in SETTINGS[self.kind].items():
            text = self.values.get(key, setting.default)
            if text is None or (setting.default is None and not text.strip()):
                raise self.error(key, f"missing: {setting.meaning}")
            try:
                found[key] = setting.parse(text)
            except ValueError as why:
                raise self.error(key, why) from None
        return found

    def check(self, key: str, wrong: bool, what: str) -> None:
        if wrong:
            raise self.error(key, what)


def without_comment(line: str) -> str:
    for mark in ";#":
        at = -1
        while (at := line.find(mark, at + 1)) >= 0:
            if at == 0 or line[at - 1].isspace():
                line = line[:at]
                break
    return line.rstrip()


def section_of(file: str, number: int, line: str) -> Section:
    head = " ".join(line.strip("[]").split())
    section = Section(file, head, number)
    section.check("", line[-1] != "]", "no closing bracket")
    if section.kind not in SETTINGS:
        raise section.error("", f"no such section (did you mean '{nearest(section.kind, SETTINGS)}'?)")
    section.check("", (section.kind == "ddpd") == bool(section.name),
                  "takes no name" if section.name else f"needs a name: [{section.kind} NAME]")
    section.check("", len(section.name) > 40 or not section.name.isascii() or not section.name.isprintable()
                  or " " in section.name, "a name is one word of at most 40 printable ASCII letters")
    return section


def read_sections(text: str, file: str) -> list[Section]:
    """The file's shape: sections, keys, continued lines."""
    sections: list[Section] = []
    key = ""
    for number, written in enumerate(text.split("\n"), 1):
        line = without_comment(written)
        if not line:
            continue
        if line[0] == "[":
            sections.append(section_of(file, number, line))
            key = ""
        elif not sections:
            raise ConfigError(f"{file}:{number}: '{line}' stands before any section (such as [ddpd])")
        elif line[0].isspace() and key:
            sections[-1].go_on(key, line.strip(), number)
        else:
            key, equals, value = (part.strip() for part in line.partition("="))
            if not equals:
                raise ConfigError(f"{file}:{number}: [{sections[-1].head}]: '{line.strip()}' is not `key = value`")
            sections[-1].add(key, value.strip(), number)
    return sections


def read_pool(section: Section) -> Pool:
    got = section.parsed()
    prefix, give = got["prefix"], got["give"]
    low = {4: 8, 6: 16}[prefix.version]
    section.check("prefix", prefix.length < low, f"{prefix} is too large (/{low} at most)")
    for length in give:
        section.check("give", not prefix.length <= length <= WIDTH[prefix.version],
                      f"/{length} does not fit {prefix} (/{prefix.length} to /{WIDTH[prefix.version]})")
    for hole in got["reserve"]:
        section.check("reserve", not prefix.holds(hole), f"{hole} is not in {prefix}")
    valid = got["lifetime"]
    preferred = got["preferred"] or valid / 2
    section.check("preferred", preferred > valid, "longer than `lifetime`")
    renew = got["renew"] or max(1.0, preferred / 2)
    rebind = got["rebind"] or max(renew, preferred * 0.8)
    section.check("renew", renew > preferred, "longer than `preferred`")
    section.check("rebind", not renew <= rebind <= valid, "not between `renew` and `lifetime`")
    options = {key: got[key] for key in OPTIONS if got.get(key) not in NOTHING}
    return Pool(section.name, prefix, give, got["reserve"], valid, preferred, renew, rebind, options)


def read_agreement(section: Section, pools: Mapping[str, Pool]) -> Agreement:
    got = section.parsed()
    for name in got["pools"]:
        section.check("pools", name not in pools, f"no pool named '{name}' (have: {', '.join(pools) or 'none'})")
    return Agreement(section.name, got["key"], tuple(pools[name] for name in got["pools"]), got["limit"],
                     got["lengths"], got["pin"], got["route"])


def read_contact(section: Section) -> Contact:
    got = section.parsed()
    return Contact(section.name, got["key"], got["address"], got["ask"], got["default"], got["install"],
                   got["hook"], got["accept"], got["hostname"] or "", got["keepalive"] or 0.0, got["suffix"])


def check_apart(sections: list[Section], found: Iterable[tuple[Section, str, Prefix]]) -> None:
    """No two of these prefixes may overlap: sorted, a prefix can only overlap its neighbour."""
    ordered = sorted(found, key=lambda row: row[2])
    for (first, _, one), (second, key, other) in pairwise(ordered):
        if one.overlaps(other):
            later, where = (second, other) if sections.index(second) > sections.index(first) else (first, one)
            raise later.error(key, f"{where} overlaps {one if where is other else other} "
                                   f"of [{first.head if later is second else second.head}]")


def check_unique(sections: list[Section]) -> None:
    seen: dict[str, Section] = {}
    for section in sections:
        section.check("", section.head in seen, f"given twice (first in line {seen.get(section.head, section).line})")
        seen[section.head] = section
        keyed = f"{section.kind} {section.values.get('key')}"
        if section.kind in ("grantee", "grantor") and section.values.get("key"):
            section.check("key", keyed in seen, f"the same as [{seen[keyed].head if keyed in seen else ''}]")
            seen[keyed] = section


def read_config(text: str, file: str) -> Config:
    """Text to values; ConfigError names the first thing that is wrong."""
    sections = read_sections(text, file)
    check_unique(sections)
    of = {kind: [s for s in sections if s.kind == kind] for kind in SETTINGS}
    main = (of["ddpd"] or [Section(file, "ddpd", 1)])[0].parsed()
    pools = {section.name: read_pool(section) for section in of["pool"]}
    agreements = [read_agreement(section, pools) for section in of["grantee"]]
    check_apart(sections, [(s, "prefix", pools[s.name].prefix) for s in of["pool"]])
    check_apart(sections, [(s, "pin", pin) for s, a in zip(of["grantee"], agreements, strict=True) for pin in a.pins])
    listen = main["listen"] or ((HostPort("::", PORT),) if pools else ())
    return Config(file, main["key"], listen, main["leases"], main["control"], main["mark"], main["load"],
                  main["hold"], tuple(pools.values()), {a.key: a for a in agreements},
                  tuple(read_contact(section) for section in of["grantor"]))


# ==== POOLS ========================================================== pure ====
#
# What of a pool is taken: a binary trie with its paths compressed.  A leaf is a
# taken prefix; every other block is the fork above two of them.  How many blocks of
# a length are touched below a fork is counted when somebody wants to know, and
# forgotten along the path of each change: a draw is exact, uniform, and costs the
# depth of the trie, however full the pool.


NO_MEMO: Final[dict[tuple[int, int], int]] = {}


class Block:
    __slots__ = ("bit", "first", "high", "length", "low", "memo", "size")

    def __init__(self, prefix: Prefix, low: Block | None = None, high: Block | None = None) -> None:
        self.first, self.length, self.low, self.high = prefix.first, prefix.length, low, high
        self.size = prefix.size
        self.bit = self.size >> 1                                 # in an address: which side of the fork
        self.memo: dict[tuple[int, int], int] = NO_MEMO


class Space:
    """The taken and the free of one pool."""

    def __init__(self, pool: Prefix) -> None:
        self.pool = pool
        self.width = WIDTH[pool.version]
        self.root: Block | None = None

    def built(self, ordered: list[Prefix], low: int, high: int) -> Block | None:
        """The trie of these prefixes, which do not overlap, at once."""
        if high - low < 2:
            return Block(ordered[low]) if high > low else None
        length = self.width - (ordered[low].first ^ ordered[high - 1].first).bit_length()
        fork = Block(ordered[low].network(length))
        middle = bisect_left(ordered, fork.first | fork.bit, low, high, key=itemgetter(1))
        fork.low, fork.high = self.built(ordered, low, middle), self.built(ordered, middle, high)
        return fork

    def path(self, prefix: Prefix) -> tuple[list[Block], Block | None]:
        """The forks that cover the prefix from the root, and what hangs below the last."""
        above: list[Block] = []
        at, first, length = self.root, prefix.first, prefix.length
        while at is not None and at.high is not None and at.length < length and (at.first ^ first) < at.size:
            above.append(at)
            at = at.high if first & at.bit else at.low
        return above, at

    def hang(self, above: list[Block], first: int, block: Block | None) -> None:
        """Put `block` where the path towards `first` ends."""
        if not above:
            self.root = block
        elif first & above[-1].bit:
            above[-1].high = block
        else:
            above[-1].low = block
        for fork in above:
            if fork.memo:
                fork.memo = NO_MEMO

    def common(self, at: Block, prefix: Prefix) -> int:
        return self.width - (at.first ^ prefix.first).bit_length()

    def is_free(self, prefix: Prefix) -> bool:
        at = self.path(prefix)[1]
        return at is None or self.common(at, prefix) < min(at.length, prefix.length)

    def take(self, prefix: Prefix) -> bool:
        """False, and nothing changes, if any of it is taken already."""
        above, at = self.path(prefix)
        leaf = Block(prefix)
        if at is None:
            self.hang(above, prefix.first, leaf)
            return True
        length = self.common(at, prefix)
        if length >= min(at.length, prefix.length):
            return False
        pair = (at, leaf) if prefix.first > at.first else (leaf, at)
        self.hang(above, prefix.first, Block(prefix.network(length), *pair))
        return True

    def free(self, prefix: Prefix) -> None:
        """Give back exactly what was taken; anything else is left as it is."""
        above, at = self.path(prefix)
        if at is None or at.high is not None or (at.first, at.length) != (prefix.first, prefix.length):
            return
        if not above:
            self.root = None
            return
        fork = above.pop()
        self.hang(above, prefix.first, fork.low if fork.high is at else fork.high)

    def touched(self, at: Block | None, length: int) -> int:
        """How many blocks of `length` below `at` are not wholly free."""
        if at is None or at.length >= length:
            return at is not None
        if at.high is None:
            return 1 << (length - at.length)
        count = at.memo.get((0, length))
        if count is None:
            count = self.touched(at.low, length) + self.touched(at.high, length)
            at.memo = {**at.memo, (0, length): count}
        return count

    def spare(self, at: Block | None, shortest: int, length: int) -> int:
        """How many blocks of `length` are free inside blocks of `shortest` that are broken already."""
        if at is None or (at.high is None and at.length < shortest):
            return 0
        if at.length >= shortest:
            return (1 << (length - shortest)) - self.touched(at, length)
        count = at.memo.get((shortest, length))
        if count is None:
            count = self.spare(at.low, shortest, length) + self.spare(at.high, shortest, length)
            at.memo = {**at.memo, (shortest, length): count}
        return count

    def select(self, first: int, at: Block | None, length: int, k: int) -> Prefix:
        """The k-th free block of `length` in the region that starts at `first` and in which `at` is taken."""
        shift = self.width - length
        while at is not None:
            before = (at.first - first) >> shift
            if k < before:
                break
            k -= before
            first = at.first & -(1 << shift)
            if at.length >= length:
                k += 1                                            # step over the one touched block
                break
            inside = (1 << (length - at.length)) - self.touched(at, length)
            if k >= inside:
                k, first = k - inside, first + at.size
                break
            low = (at.bit >> shift) - self.touched(at.low, length)
            at, k, first = (at.low, k, first) if k < low else (at.high, k - low, first + at.bit)
        return Prefix(self.pool.version, first + (k << shift), length)

    def select_spare(self, shortest: int, length: int, k: int) -> Prefix:
        """The k-th of those that `spare` counts."""
        at = self.root
        while at is not None and at.length < shortest:
            low = self.spare(at.low, shortest, length)
            at, k = (at.low, k) if k < low else (at.high, k - low)
        first = at.first & -(1 << (self.width - shortest)) if at is not None else 0
        return self.select(first, at, length, k)

    def free_blocks(self, length: int) -> int:
        return (1 << (length - self.pool.length)) - self.touched(self.root, length)

    def draw(self, length: int, shortest: int, rand: Rand) -> Prefix | None:
        """A free prefix, each with the same chance; a whole block of `shortest` is broken only if it must be."""
        def below(count: int) -> int:
            return int.from_bytes(rand(24), "big") % count        # bias below 2**-64
        spare = self.spare(self.root, shortest, length) if length > shortest else 0
        if spare:
            return self.select_spare(shortest, length, below(spare))
        block = self.guess(shortest, below) or self.count(shortest, below)
        if block is None:
            return None
        inside = below(1 << (length - shortest)) << (self.width - length) if length > shortest else 0
        return Prefix(block.version, block.first + inside, length)

    def guess(self, length: int, below: Callable[[int], int]) -> Prefix | None:
        """Any block, if it happens to be free: as uniform as counting, and cheap until the pool is nearly full."""
        for _ in range(4):
            first = self.pool.first + (below(1 << (length - self.pool.length)) << (self.width - length))
            block = Prefix(self.pool.version, first, length)
            if self.is_free(block):
                return block
        return None

    def count(self, length: int, below: Callable[[int], int]) -> Prefix | None:
        blocks = self.free_blocks(length)
        return self.select(self.pool.first, self.root, length, below(blocks)) if blocks else None

    def free_fraction(self) -> float:
        return 1.0 - self.touched(self.root, self.width) / self.pool.size


def never_leased(pool: Prefix) -> list[Prefix]:
    """Network, broadcast and subnet-router anycast address: no address lease (RFC 4291 2.6.1)."""
    if pool.size <= 2:                                            # RFC 3021, RFC 6164
        return []
    ends = (pool.first,) if pool.version == 6 else (pool.first, pool.first + pool.size - 1)
    return [Prefix(pool.version, end, WIDTH[pool.version]) for end in ends]


def is_leasable(prefix: Prefix, pool: Prefix) -> bool:
    """Every prefix is, but for the addresses that mean a whole network."""
    anycast = prefix.length == 128 and prefix.first & (2**64 - 1) == 0
    return not prefix.is_address or not (anycast or prefix in never_leased(pool))


# ==== LEASE FILE ===================================================== pure ====
#
# A JSON array, one record a line, each line padded to the same width.  A change goes
# into a blank line; the line that it replaces is blanked with the next batch, one that
# is over at once.  So no write touches the only copy, a change costs one line however
# many there are, and `jq` can read the file at any moment.
#
#     [{"kind": "file", "version": 1}
#     ,{"kind": "run", "clean": false, "boot": "…", "at": 1234.5, "epoch": 3, "serial": 17}
#     ,{"kind": "granted", "key": "…", "slot": 0, "prefix": "2001:db8:42:1200::/56", …}
#                                                        (blank: to be used)
#     ]                                                  (the end)
#
# `epoch` counts the crashes: a lease that was last written two crashes ago, and so
# not renewed since, is over.

FILE_VERSION: Final = 1
KEYED: Final = {                         # what a record of each kind is known by
    "granted":    ("key", "slot", "prefix"),
    "held":       ("key", "slot", "prefix"),
    "slot":       ("grantor", "line"),
    "made":       ("what",),
    "recovering": (),
    "run":        (),
}
Write = tuple[int, bytes]                # offset, bytes


def key_of(record: Record) -> Key:
    kind = record["kind"]
    return (kind, *(record[name] for name in KEYED[kind]))


def line_of(text: str) -> bytes:
    line = text.encode()
    if len(line) >= LINE:
        raise ValueError(f"record too long: {text}")
    return line.ljust(LINE - 1) + b"\n"


BLANK: Final = b" " * (LINE - 1) + b"\n"


class LeaseFile:
    """Where each record stands; a change to the bytes that have to be written."""

    def __init__(self, serial: int = 0) -> None:
        self.at: dict[Key, int] = {}     # record -> line
        self.blanks: list[int] = []
        self.stale: list[int] = []       # lines replaced, to be blanked with the next batch
        self.lines = 1
        self.serial = serial

    def adopt(self, lines: list[str], found: Mapping[Key, tuple[int, Record]]) -> bool:
        """Go on with the file as it is; False if it does not have our shape, and has to be written anew."""
        if lines[-2:] != ["]", ""] or any(len(line) != LINE - 1 for line in lines[:-2]):
            return False
        self.lines = len(lines) - 2
        self.at = {key: line - 1 for key, (line, _) in found.items()}
        used = {0, *self.at.values()}
        self.blanks = [n for n in range(self.lines - 1, 0, -1) if n not in used and lines[n].isspace()]
        self.stale = [n for n in range(1, self.lines) if n not in used and not lines[n].isspace()]
        return True

    def whole(self, records: Iterable[Record]) -> Iterator[bytes]:
        """The whole file anew."""
        self.at, self.blanks, self.stale, self.lines = {}, [], [], 1
        yield line_of("[" + json.dumps({"kind": "file", "version": FILE_VERSION}))
        for record in records:
            self.at[key_of(record)] = self.lines
            self.lines += 1
            yield self.written(record)
        yield b"]\n"

    def written(self, record: Record) -> bytes:
        self.serial += 1
        return line_of("," + json.dumps({**record, "serial": self.serial}))

    def batch(self, changes: Mapping[Key, Record | None]) -> tuple[list[Write], list[Write]]:
        """What to write and flush first, and what (old lines) may be written after."""
        writes: list[Write] = []
        late, self.stale = self.stale, []
        old = list(late)
        short = sum(record is not None for record in changes.values()) - len(self.blanks)
        if short > 0:
            grown = -(-short // SPARE_LINES) * SPARE_LINES
            writes.append((self.lines * LINE, BLANK * grown + b"]\n"))
            self.blanks += range(self.lines + grown - 1, self.lines - 1, -1)
            self.lines += grown
        for key, record in changes.items():
            line = self.at.pop(key, None)
            if record is not None:
                self.at[key] = self.blanks.pop()
                writes.append((self.at[key] * LINE, self.written(record)))
                self.stale += [] if line is None else [line]
            elif line is not None:
                writes.append((line * LINE, BLANK))
                old.append(line)
        self.blanks += old
        blanking = [(line * LINE, BLANK) for line in late]
        if None in changes.values():                              # no older copy may outlive what is over
            return writes + blanking, []
        return writes, blanking


class Damage(NamedTuple):
    """A line that could not be read."""

    line: int
    text: str


def no_number(text: str) -> None:
    """NaN and Infinity are not JSON."""
    raise ValueError(text)


def records_in(lines: list[str]) -> Iterator[tuple[int, Any]]:
    """(line from 1, record or Damage).  A file that is no JSON as a whole is read line by line."""
    try:
        records = json.loads("\n".join(lines), parse_constant=no_number)
        written = [n for n, line in enumerate(lines, 1) if line and not line.isspace() and line != "]"]
        if len(written) != len(records):                          # somebody has put it into another shape
            written = list(range(1, len(records) + 1))
        yield from zip(written, records, strict=True)
        return
    except (ValueError, TypeError, RecursionError):
        pass
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("[").strip(",").strip()
        if text and text != "]":
            try:
                yield number, json.loads(text, parse_constant=no_number)
            except (ValueError, RecursionError):
                yield number, Damage(number, text)
    if not any(line.rstrip().endswith("]") for line in lines[-2:]):
        yield len(lines), Damage(len(lines), "")


def parse_lease_file(lines: list[str]) -> tuple[dict[Key, tuple[int, Record]], list[Damage]]:
    """The latest record of each key and its line, and what could not be read."""
    latest: dict[Key, tuple[int, Record]] = {}
    damage = []
    for number, record in records_in(lines):
        if isinstance(record, Damage):
            damage.append(record)
            continue
        try:
            if record["kind"] == "file":
                if record["version"] != FILE_VERSION:
                    raise NewerFile(record["version"])
                continue
            key, serial = key_of(record), record["serial"]
            if not isinstance(serial, int) or not 0 <= serial < 2**53:
                raise TypeError("serial")
            if key not in latest or serial >= latest[key][1]["serial"]:
                latest[key] = number, record
        except (LookupError, TypeError):
            damage.append(Damage(number, json.dumps(record)))
    return latest, damage


class NewerFile(Exception):  # noqa: N818 - the operator's decision
    """The lease file was written by another version: it is left alone."""


def salvaged(damage: Damage) -> Prefix | None:
    """The prefix in a damaged line, if it can be read."""
    _, found, rest = damage.text.partition('"prefix": "')
    try:
        return parse_prefix(rest.partition('"')[0]) if found and '"' in rest else None
    except ValueError:
        return None


# ==== PLANS ========================================================== pure ====
#
# What should be in the kernel, as values, and the words of `ip` that make or unmake
# it.  Routes carry our protocol number and metric; addresses and rules carry nothing,
# so they are written to the lease file before they are made.

MAIN: Final = 254                        # the main routing table


class Route(NamedTuple):
    """Neither via nor dev: unreachable."""

    prefix: Prefix
    table: int
    reach: Reach = Reach("", "")


class Address(NamedTuple):
    dev: str
    address: Prefix                      # host bits and all
    prefers_until: float = 0.0
    valid_until: float = 0.0


class Rule(NamedTuple):
    """Without a source: main, but not its default route."""

    version: int
    source: Prefix | None
    table: int


Thing = Route | Address | Rule           # what can be installed


def thing_key(thing: Thing) -> Key:
    """What it replaces; the order of the keys is the order of installing."""
    if isinstance(thing, Route):
        return ("1 route", thing.table, thing.prefix)
    if isinstance(thing, Address):
        return ("2 address", thing.dev, thing.address)
    return ("3 rule", thing.version, str(thing.source or ""), thing.table)


def version_of(thing: Thing) -> int:
    if isinstance(thing, Rule):
        return thing.version
    return thing.prefix.version if isinstance(thing, Route) else thing.address.version


def lifetime(until: float, now: Now) -> str:
    return "forever" if until == inf else str(max(0, int(until - now.boot)))


def thing_words(thing: Thing, mark: int) -> str:
    """Its words of `ip`, without verb and lifetimes."""
    if isinstance(thing, Address):
        return f"{thing.address} dev {thing.dev}"
    if isinstance(thing, Rule):
        if thing.source is None:
            return f"pref {mark * 100} lookup main suppress_prefixlength 0"
        return f"pref {mark * 100 + 1} from {thing.source} lookup {thing.table}"
    via, dev = thing.reach
    kind = "" if via or dev else "unreachable "
    where = (f" via {via}" if via else "") + (f" dev {dev}" if dev else "")
    return f"{kind}{thing.prefix}{where} table {thing.table} proto {mark} metric {mark * 100}"


def add_line(thing: Thing, mark: int, now: Now) -> str:
    words_ = thing_words(thing, mark)
    if isinstance(thing, Route):
        return f"route replace {words_}"
    if isinstance(thing, Rule):
        return f"rule add {words_}"
    return (f"addr replace {words_} valid_lft {lifetime(max(thing.valid_until, now.boot + 1), now)} "
            f"preferred_lft {lifetime(thing.prefers_until, now)}")


def delete_lines(thing: Thing, mark: int) -> list[str]:
    """The kernel takes the route to the subnet away only with an address that has no lifetime."""
    noun = {Route: "route", Address: "addr", Rule: "rule"}[type(thing)]
    lines = [f"{noun} del {thing_words(thing, mark)}"]
    if isinstance(thing, Address) and thing.address.version == 6:
        lines.insert(0, f"addr change {thing_words(thing, mark)} valid_lft forever preferred_lft forever")
    return lines


class Wanted:
    """The whole desired state, and what of it has changed since it was last looked at."""

    def __init__(self) -> None:
        self.things: dict[Key, Thing] = {}
        self.changed: set[Key] = set()

    def put(self, thing: Thing) -> None:
        key = thing_key(thing)
        if self.things.get(key) != thing:
            self.things[key] = thing
            self.changed.add(key)

    def take(self, key: Key) -> None:
        if self.things.pop(key, None) is not None:
            self.changed.add(key)


def plan(installed: Mapping[Key, Thing], wanted: Mapping[Key, Thing], keys: Iterable[Key],
         ) -> tuple[list[Thing], list[Thing]]:
    """What to remove, then what to add, to make `installed` equal `wanted` at these keys."""
    ordered = sorted(keys)
    gone = [installed[key] for key in ordered if key in installed and key not in wanted]
    new = [wanted[key] for key in ordered if key in wanted and wanted[key] != installed.get(key)]
    return gone[::-1], new


# -- what the kernel says, by netlink ------------------------------------------------

NLMSG: Final = struct.Struct("=IHHII")           # length, type, flags, sequence, port
RTM: Final = {"link": 16, "address": 20, "route": 24, "rule": 32}
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
IFA_ADDRESS, IFA_LOCAL, IFLA_IFNAME = 1, 2, 3
FRA_SRC, FRA_PRIORITY, FRA_TABLE = 2, 6, 15


def netlink_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each message in one read."""
    at = 0
    while at + NLMSG.size <= len(data):
        length, kind, _, _, _ = NLMSG.unpack_from(data, at)
        yield kind, data[at + NLMSG.size : at + length]
        at += max(NLMSG.size, length + 3 & ~3)


def attributes(body: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while at + 4 <= len(body):
        length, number = struct.unpack_from("=HH", body, at)
        found[number & 0x3FFF] = body[at + 4 : at + length]
        at += max(4, length + 3 & ~3)
    return found


def number_in(found: Mapping[int, bytes], number: int, default: int = 0) -> int:
    return int.from_bytes(found[number], byteorder) if number in found else default


@dataclass(frozen=True)
class Links:
    """Interfaces and their addresses at one moment."""

    names: dict[int, str] = field(default_factory=dict)
    addresses: tuple[tuple[int, Prefix], ...] = ()                # (interface index, address/length)
    flags: dict[int, int] = field(default_factory=dict)           # down and up again loses routes

    def neighbour(self, host: Prefix, index: int) -> bool:
        """Is this address directly connected on that interface, and not our own?"""
        return (any(at == index and own.length < WIDTH[own.version] and own.network(own.length).holds(host)
                    for at, own in self.addresses) and not self.is_own(host))

    def is_own(self, host: Prefix) -> bool:
        return any((own.version, own.first) == host[:2] for _, own in self.addresses)


def links_of(replies: Iterable[tuple[int, bytes]]) -> Links:
    names, flags, addresses = {}, {}, []
    for kind, body in replies:
        if kind == RTM["link"]:
            flags[int.from_bytes(body[4:8], byteorder)] = int.from_bytes(body[8:12], byteorder)
            name = attributes(body, 16).get(IFLA_IFNAME, b"")[:-1].decode("latin-1")
            names[int.from_bytes(body[4:8], byteorder)] = name
        elif kind == RTM["address"] and body[0] in FAMILY.values():
            found = attributes(body, 8)
            packed = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b"")
            if len(packed) in (4, 16):
                own = Prefix(4 if len(packed) == 4 else 6, int.from_bytes(packed, "big"), body[1])
                addresses.append((int.from_bytes(body[4:8], byteorder), own))
    return Links(names, tuple(addresses), flags)


def route_of(body: bytes, mark: int, names: Mapping[int, str]) -> Route | None:
    """A route that carries our mark, from RTM_NEWROUTE."""
    if body[0] not in FAMILY.values() or body[5] != mark:
        return None
    found = attributes(body, 12)
    if number_in(found, RTA_PRIORITY) != mark * 100:
        return None
    version = 4 if body[0] == AF_INET else 6
    prefix = prefix_of(found.get(RTA_DST, bytes(WIDTH[version] // 8)), body[1])
    gateway = found.get(RTA_GATEWAY, b"")
    via = inet_ntop(FAMILY[4 if len(gateway) == 4 else 6], gateway) if gateway else ""
    dev = names.get(number_in(found, RTA_OIF), "") if body[7] == 1 else ""    # RTN_UNICAST; reject routes say lo
    return Route(prefix, number_in(found, RTA_TABLE, body[4]), Reach(via, dev))


def rule_of(body: bytes, mark: int) -> Rule | None:
    """A rule of our preferences, from RTM_NEWRULE."""
    found = attributes(body, 12)
    step = number_in(found, FRA_PRIORITY) - mark * 100
    if body[0] not in FAMILY.values() or not 0 <= step <= 1:
        return None
    version = 4 if body[0] == AF_INET else 6
    if step == 0:
        return Rule(version, None, MAIN)
    source = prefix_of(found.get(FRA_SRC, bytes(WIDTH[version] // 8)), body[2])
    return Rule(version, source, number_in(found, FRA_TABLE, body[4]))


# ==== EFFECTS ======================================================== pure ====
#
# What the roles want done.  A list is performed in order and abandoned at the first
# failure, so "Save, Install, Send" means: promise nothing that could be forgotten.


class Path(NamedTuple):
    """Where a datagram came from, and the local address and interface that it came to."""

    host: str            # as the socket says it: IPv4 is mapped
    port: int
    scope: int = 0
    info: bytes = b""    # struct in6_pktinfo
    door: int = 0        # which listening socket

    def __str__(self) -> str:
        address = parse_host(self.host)
        return f"{address.host}:{self.port}" if address.version == 4 else f"[{address.host}]:{self.port}"

    @property
    def interface(self) -> int:
        """Its index."""
        return int.from_bytes(self.info[16:20], byteorder)


class Save(NamedTuple):
    key: Key
    record: Record | None                # None: forget it
    promise: bool = False                # a new lease: what cannot be written is not granted


class Install(NamedTuple):
    """Make the kernel equal to Node.wanted."""


class Send(NamedTuple):
    datagram: bytes
    path: Path


class Call(NamedTuple):
    """Ask this grantor now: the shell finds the source address, Node.compose writes the ask."""

    grantor: str


class Lookup(NamedTuple):
    grantor: str
    host: str


class Hook(NamedTuple):
    grantor: str
    event: str


class Note(NamedTuple):
    """A line for the log."""

    text: str


Effect = Save | Install | Send | Call | Lookup | Hook | Note


# ==== LEASES ========================================================= pure ====
#
# What a grantor has given, and to whom.
#
#     active ──renewed──> active ──lifetime over, or released──> former ──hold over──> gone
#        └──pool changed, or another length asked──> deprecated ──lifetime over──> former | gone


def seconds(duration_s: float) -> int:
    """On the wire and in files: whole seconds, never negative."""
    return FOREVER if duration_s == inf else max(0, min(FOREVER - 1, int(duration_s + 0.001)))


def span(whole_s: int) -> float:
    return inf if whole_s == FOREVER else float(whole_s)


def thing_reach(reach: Reach) -> str:
    return " ".join(f"{word} {value}" for word, value in zip(("via", "dev"), reach, strict=True) if value)


def lengths_shown(lengths: Iterable[int]) -> str:
    """`/48 /56-/64`"""
    runs: list[list[int]] = []
    for length in sorted(lengths):
        if runs and runs[-1][-1] == length - 1:
            runs[-1].append(length)
        else:
            runs.append([length])
    return " ".join(f"/{run[0]}" if len(run) == 1 else f"/{run[0]}-/{run[-1]}" for run in runs)


def short(key: bytes) -> str:
    return show_key(key)[:8]


class LeaseState(Enum):
    ACTIVE = "active"
    DEPRECATED = "deprecated"            # counts down, routed until its end
    FORMER = "former"                    # over; held back for who had it


@dataclass(slots=True, eq=False)
class Lease:
    key: bytes                           # empty: a damaged line's, of nobody known
    slot: int
    prefix: Prefix
    state: LeaseState
    valid_s: float                       # as last promised
    valid_until: float                   # CLOCK_BOOTTIME; of a former lease: when it is forgotten
    heard: float = 0.0                   # last renewed
    promised: bool = True                # once at least, and not over since
    due: float = inf                     # when the timer will look at it
    reach: Reach | None = None
    why: str = ""                        # ... there is no reach
    epoch: int = -1                      # of its last renewal
    serial: int = 0                      # as it was read from the lease file

    def record(self, now: Now) -> Record:
        via, dev = self.reach or ("", "")
        return {"kind": "granted", "key": show_key(self.key), "slot": self.slot, "prefix": str(self.prefix),
                "state": self.state.value, "valid": seconds(self.valid_s), "left": seconds(self.valid_until - now.boot),
                "via": via, "dev": dev, "epoch": self.epoch}

    @property
    def id(self) -> Key:
        return ("granted", show_key(self.key), self.slot, str(self.prefix))

    @property
    def living(self) -> bool:
        return self.state is not LeaseState.FORMER


STATES: Final = {state.value: state for state in LeaseState}


def lease_of(record: Record) -> Lease:
    """`valid_until` is the time left as written.  KeyError, TypeError or ValueError if the record is no lease."""
    key = public_key(record["key"]) if record["key"] else b""
    slot, valid_s, left_s, epoch = (int(record[name]) for name in ("slot", "valid", "left", "epoch"))
    if not 0 <= slot <= 255 or not 0 <= epoch < 2**32:
        raise ValueError(f"no slot {slot}")
    lease = Lease(key, slot, parse_prefix(record["prefix"]), STATES[record["state"]], span(valid_s), span(left_s),
                  epoch=epoch, serial=record.get("serial", 0))
    if record["via"] or record["dev"]:
        lease.reach = parse_reach(thing_reach(Reach(record["via"], record["dev"])))
    return lease


@dataclass(slots=True, eq=False)
class Peer:
    """What a grantor knows of one grantee."""

    key: bytes
    agreement: Agreement
    leases: list[Lease] = field(default_factory=list)
    stamp: int = -1                      # the largest seen
    run: bytes = b""                     # of the machine that holds the leases
    rival: bytes = b""                   # of another machine with the same key
    before: bytes = b""                  # the run that `run` replaced
    run_heard: float = -inf
    stale_at: float = -inf
    news: tuple[float, ...] = ()         # when the latest new leases began
    ss: bytes = b""                      # dh(our static, theirs): the same in every handshake
    live: Session | None = None
    pending: tuple[Session, ...] = ()
    path: Path | None = None             # of the last ask that took effect ...
    session: Session | None = None       # ... and its session, live or pending: nudges go there
    seen: tuple[Any, ...] = ()           # what `reach` was last decided from
    hostname: str = ""
    nudged: int = 0                      # nudges sent without an ask since

    def living(self) -> list[Lease]:
        return [lease for lease in self.leases if lease.living]


NOBODY: Final = Agreement("(no longer configured)", b"", (), 1, (), (), "none")


class Case(NamedTuple):
    """One slot of one ask, as the chain's handlers see it."""

    peer: Peer
    want: Want
    ask: Ask
    now: Now

    def is_asked_for(self, prefix: Prefix) -> bool:
        """Does any slot of the ask want just this family and length?"""
        return any(want.prefix.shape == prefix.shape for want in self.ask.wants)


# ==== GRANTOR ======================================================== pure ====
#
# An ask becomes an answer.  What one slot gets is decided by a chain of handlers,
# each with one reason to exist: the first that has a lease or a refusal ends it.


def contested(pins: Mapping[Prefix, bytes], leases: Mapping[Prefix, Lease]) -> dict[Prefix, Lease]:
    """The leases that overlap somebody else's pin: they make room at their next renewal."""
    if not pins:
        return {}
    pinned, leased = {pin.length for pin in pins}, {prefix.length for prefix in leases}
    found = {}
    for prefix, lease in leases.items():
        around = (prefix.network(length) for length in pinned if length <= prefix.length)
        if any(pins.get(pin, lease.key) != lease.key for pin in around):
            found[prefix] = lease
    for pin, key in pins.items():
        for length in leased:
            outer = leases.get(pin.network(length)) if length < pin.length else None
            if outer is not None and outer.key != key:
                found[outer.prefix] = outer
    return found


class Grantor:
    """Answers asks, and remembers what it promised."""

    def __init__(self, secret: bytes, config: Config, wanted: Wanted, rand: Rand) -> None:
        self.ticket_key = digest(b"ddpd ticket" + secret)
        self.wanted, self.rand = wanted, rand
        self.links = Links()
        self.peers: dict[bytes, Peer] = {}
        self.former: dict[Prefix, Lease] = {}                     # oldest first
        self.timers: list[tuple[float, int, Lease]] = []
        self.timer_count = self.dead_timers = 0
        self.recovering_until = -inf
        self.disk_full = False
        self.epoch = 0
        self.out: list[Effect] = []
        self.configure(config)

    def configure(self, config: Config) -> None:
        self.config, self.agreements = config, config.agreements
        self.hold_s = config.hold_s
        for peer in self.peers.values():
            before, peer.agreement = peer.agreement, self.agreements.get(peer.key, peer.agreement)
            peer.seen = ()
            if before.route != peer.agreement.route != "auto":
                self.reroute(peer)
        self.rebuild()

    def reroute(self, peer: Peer) -> None:
        """The operator has changed the way to this peer."""
        for lease in peer.living():
            lease.reach, lease.why = self.configured(peer.agreement.route, lease.prefix.version)
            self.route(lease)

    # -- what is taken of the pools -------------------------------------------------

    def rebuild(self) -> None:
        """From all leases, pins and holes.  What is inside of another waits until that is free."""
        pools = self.config.pools
        self.fixed = {hole for pool in pools for hole in pool.reserve}
        for pool in pools:                                        # only of addresses: else they would break a block
            self.fixed.update(never_leased(pool.prefix) if pool.give == (WIDTH[pool.prefix.version],) else ())
        pins = {pin: agreement.key for agreement in self.agreements.values() for pin in agreement.pins}
        self.fixed |= pins.keys()
        leases = {lease.prefix: lease for peer in self.peers.values() for lease in peer.leases}
        self.contested = contested(pins, leases)
        taken = self.fixed | leases.keys()
        self.spaces = [Space(pool.prefix) for pool in pools]
        self.waiting: set[Prefix] = set()                         # fixed, but covered for now
        for space in self.spaces:
            inside = sorted(prefix if prefix.length >= space.pool.length else space.pool
                            for prefix in taken if space.pool.overlaps(prefix))
            apart: list[Prefix] = []
            for prefix in inside:                                 # in order: what covers others comes before them
                if not apart or not apart[-1].holds(prefix):
                    apart.append(prefix)
            self.waiting |= self.fixed.intersection(inside).difference(apart)
            space.root = space.built(apart, 0, len(apart))

    def take(self, prefix: Prefix) -> bool:
        taken = [space.take(prefix if space.pool.holds(prefix) else space.pool)
                 for space in self.spaces if space.pool.overlaps(prefix)]
        return all(taken)

    def free(self, prefix: Prefix) -> None:
        if prefix in self.fixed:
            return
        if any(prefix.holds(space.pool) for space in self.spaces):
            self.rebuild()                                        # it had covered a pool that has shrunk since
        for space in self.spaces:
            if space.pool.holds(prefix):
                space.free(prefix)
        for hidden in [hidden for hidden in self.waiting if hidden.overlaps(prefix)]:
            if self.take(hidden):
                self.waiting.discard(hidden)

    def is_free(self, prefix: Prefix) -> bool:
        return all(space.is_free(prefix) for space in self.spaces if space.pool.overlaps(prefix))

    def agreed_pool(self, agreement: Agreement, prefix: Prefix) -> Pool | None:
        """The pool of the agreement that gives this prefix as things stand."""
        if agreement.lengths and prefix.length not in agreement.lengths:
            return None
        return next((pool for pool in agreement.pools if pool.prefix.holds(prefix) and prefix.length in pool.give
                     and not any(hole.overlaps(prefix) for hole in pool.reserve)), None)

    def agreed(self, agreement: Agreement, prefix: Prefix) -> bool:
        if prefix in agreement.pins:
            return True
        return prefix not in self.contested and self.agreed_pool(agreement, prefix) is not None

    def stays(self, peer: Peer, lease: Lease) -> bool:
        """Still agreed; and there is no pin of its shape that should be there instead."""
        held = {other.prefix for other in peer.leases if other.living}
        pins = peer.agreement.pins
        better = not self.disk_full and lease.prefix not in pins and any(
            pin.shape == lease.prefix.shape and pin not in held and not self.of_another(peer, pin) for pin in pins)
        return not better and self.agreed(peer.agreement, lease.prefix)

    def of_another(self, peer: Peer, pin: Prefix) -> bool:
        """Is this pin, or a part of it, still leased to somebody else?"""
        return any(lease.living and lease.key != peer.key and lease.prefix.overlaps(pin)
                   for lease in self.contested.values())

    def terms(self, peer: Peer, lease: Lease) -> Pool | None:
        """Whose lifetimes and options a lease has; a pin outside of all pools has the first pool's."""
        pools = peer.agreement.pools
        return next((pool for pool in pools if pool.prefix.holds(lease.prefix)), pools[0] if pools else None)

    # -- the chain -----------------------------------------------------------------

    def kept(self, case: Case) -> Lease | Refusal | None:
        """What the slot has, if it is what it wants and still agreed."""
        want, pins = case.want.prefix, case.peer.agreement.pins
        for lease in case.peer.leases:
            prefix = lease.prefix
            fits = prefix.shape == want.shape or (
                prefix in pins and prefix.version == want.version and not case.is_asked_for(prefix))
            if (lease.state is LeaseState.ACTIVE and lease.slot == case.want.slot and fits
                    and self.stays(case.peer, lease)):
                return lease
        return None

    def admitted(self, case: Case) -> Lease | Refusal | None:
        """Is there any pool, and any room in the agreement, for something new?"""
        agreement, want = case.peer.agreement, case.want.prefix
        pools = [pool for pool in agreement.pools if pool.prefix.version == want.version]
        pins = [pin for pin in agreement.pins if pin.version == want.version]
        if not pools and not pins:
            return self.refusal(case, Reason.NO_POOL, 3600, f"no pool of IPv{want.version}")
        if self.disk_full:
            return self.refusal(case, Reason.DISK, RETRY_DISK_S, "cannot write the lease file")
        if self.others(case) >= agreement.limit and self.victim(case) is None:
            return self.refusal(case, Reason.LIMIT, 3600, f"`limit` is {agreement.limit} of IPv{want.version}")
        return None

    def pinned(self, case: Case) -> Lease | Refusal | None:
        """A pin of the length; or of any length, unless another slot asks for just that."""
        want = case.want.prefix
        used = {lease.prefix for lease in case.peer.leases if lease.living}
        pins = [pin for pin in case.peer.agreement.pins if pin.version == want.version and pin not in used]
        fitting = [pin for pin in pins if pin.shape == want.shape]
        fitting += [pin for pin in pins if not case.is_asked_for(pin)]
        for pin in fitting[:1]:
            if self.of_another(case.peer, pin):
                return self.refusal(case, Reason.FULL, 600, "the pinned prefix is still leased to another")
            return self.begin(case, pin)
        return None

    def right_length(self, case: Case) -> Lease | Refusal | None:
        agreement, want = case.peer.agreement, case.want.prefix
        given = {length for pool in agreement.pools if pool.prefix.version == want.version
                 for length in pool.give if not agreement.lengths or length in agreement.lengths}
        if want.length in given:
            return None
        return self.refusal(case, Reason.LENGTH, 3600, f"/{want.length} is not given (given: {lengths_shown(given)})")

    def remembered(self, case: Case) -> Lease | Refusal | None:
        """What the slot had before it was released, expired or deprecated."""
        for lease in case.peer.leases:
            if (lease.state is not LeaseState.ACTIVE and lease.slot == case.want.slot
                    and lease.prefix.shape == case.want.prefix.shape
                    and self.agreed(case.peer.agreement, lease.prefix)):
                return self.begin(case, lease.prefix)
        return None

    def claimed(self, case: Case) -> Lease | Refusal | None:
        """A prefix under our own ticket: confirmed, though the lease file may know nothing of it."""
        prefix, ticket = case.want.prefix, case.want.ticket
        pool = self.agreed_pool(case.peer.agreement, prefix)
        if not prefix.first or pool is None or not is_leasable(prefix, pool.prefix) \
                or not equal(self.ticket(case.peer.key, case.want.slot, prefix, ticket[:4]), ticket):
            return None
        hours = int(case.now.wall // 3600) - int.from_bytes(ticket[:4], "big")
        age_s = 3600 * max(0, hours - 1)                          # at least: the hour may have just begun
        if age_s > pool.valid_s and self.recovering_until > case.now.boot:
            return None                                           # a wish, not a claim
        keeper = self.former.get(prefix)
        if self.is_free(prefix) or (keeper is not None and keeper.key in (b"", case.peer.key)):
            return self.begin(case, prefix)
        return None

    def recovered(self, case: Case) -> Lease | Refusal | None:
        left = self.recovering_until - case.now.boot
        if left <= 0:
            return None
        return self.refusal(case, Reason.RECOVERING, min(left + 1, 600), f"recovering for another {seconds(left)} s")

    def rated(self, case: Case) -> Lease | Refusal | None:
        news = case.peer.news
        wait_s = 60 - (case.now.boot - news[0]) if len(news) == NEW_A_MINUTE else 0.0
        if wait_s <= 0:
            return None
        return self.refusal(case, Reason.RATE, wait_s, f"{NEW_A_MINUTE} new leases a minute")

    def drawn(self, case: Case) -> Lease | Refusal | None:
        """A random free prefix; one held back for somebody else only if nothing else is left."""
        agreement, want = case.peer.agreement, case.want.prefix
        pools = [pool for pool in agreement.pools if pool.prefix.version == want.version and want.length in pool.give]
        for pool in pools:
            prefix = self.draw(pool, want.length)
            if prefix is not None:
                return self.begin(case, prefix)
        for pool in pools:
            prefix = self.reclaim(pool, want.length)
            if prefix is not None:
                return self.begin(case, prefix)
        soon = min((lease.valid_until for _, _, lease in self.timers[:1]), default=inf) - case.now.boot
        return self.refusal(case, Reason.FULL, max(60, min(soon, 3600)), f"no /{want.length} is free")

    def draw(self, pool: Pool, length: int) -> Prefix | None:
        space = self.spaces[self.config.pools.index(pool)]
        for _ in range(8):
            prefix = space.draw(length, pool.give[0], self.rand)
            if prefix is None or is_leasable(prefix, pool.prefix):
                return prefix
        return None

    def reclaim(self, pool: Pool, length: int) -> Prefix | None:
        """Take held-back prefixes out, oldest first, until one is free; put the others back."""
        out: list[Lease] = []
        found = None
        for lease in list(self.former.values()):
            if pool.prefix.holds(lease.prefix):
                out.append(lease)
                self.free(lease.prefix)
                found = self.draw(pool, length)
                if found is not None:
                    break
        for lease in out:
            if found is not None and lease.prefix.overlaps(found):
                self.forget(lease)
            else:
                self.take(lease.prefix)
        return found

    CHAIN: ClassVar[tuple[Callable[[Grantor, Case], Lease | Refusal | None], ...]] = (
        kept, admitted, rated, pinned, right_length, remembered, claimed, recovered, drawn)

    def decide(self, case: Case) -> Lease | Refusal:
        for handler in self.CHAIN:
            outcome = handler(self, case)
            if outcome is not None:
                return outcome
        raise AssertionError("the last handler always decides")

    def refusal(self, case: Case, reason: Reason, again_s: float, text: str) -> Refusal:
        self.out.append(Note(f"refused grantee={case.peer.agreement.name} slot={case.want.slot} "
                             f"want=/{case.want.prefix.length} reason={reason.name} why=\"{text}\""))
        return Refusal(case.want.slot, reason, max(1, seconds(again_s)), text[:MAX_TEXT])

    # -- the agreement's number ------------------------------------------------------

    def others(self, case: Case) -> int:
        return sum(lease.state is LeaseState.ACTIVE and lease.slot != case.want.slot
                   and lease.prefix.version == case.want.prefix.version for lease in case.peer.leases)

    def victim(self, case: Case) -> Lease | None:
        """At the limit, the unnamed slot that was unrenewed for longest goes first."""
        named = {want.slot for want in case.ask.wants}
        unnamed = [lease for lease in case.peer.leases
                   if lease.state is LeaseState.ACTIVE and lease.slot not in named
                   and lease.prefix.version == case.want.prefix.version]
        return min(unnamed, key=lambda lease: lease.heard, default=None)

    # -- a lease's life --------------------------------------------------------------

    def begin(self, case: Case, prefix: Prefix) -> Lease:
        """A new lease, or an old one come back; `renew` gives it its lifetime."""
        peer, slot, now = case.peer, case.want.slot, case.now
        if self.others(case) >= peer.agreement.limit:
            victim = self.victim(case)
            if victim is not None:
                self.end(victim, now)
        keeper = self.former.get(prefix)
        if keeper is not None:
            self.forget(keeper)
        same = [lease for lease in peer.leases if lease.prefix == prefix]
        promised = any(lease.living for lease in same)
        for lease in same:
            self.forget(lease)
        self.supersede(case)
        self.take(prefix)
        peer.news = (*peer.news, now.boot)[-NEW_A_MINUTE:]
        lease = Lease(peer.key, slot, prefix, LeaseState.ACTIVE, 0.0, now.boot, promised=promised)
        peer.leases.append(lease)
        self.tell("granted", lease)
        return lease

    def tell(self, event: str, lease: Lease) -> None:
        name = self.peers[lease.key].agreement.name
        self.out.append(Note(f"{event} grantee={name} slot={lease.slot} prefix={lease.prefix}"))

    def supersede(self, case: Case) -> None:
        """What the slot had until now counts down, and is told until its end."""
        for lease in case.peer.leases:
            if lease.state is LeaseState.ACTIVE and lease.slot == case.want.slot:
                self.deprecate(lease, case.now)
        old = [lease for lease in case.peer.leases if lease.state is LeaseState.DEPRECATED]
        for lease in sorted(old, key=lambda lease: lease.valid_until)[: max(0, len(old) - MAX_DEPRECATED)]:
            self.end(lease, case.now)

    def deprecate(self, lease: Lease, now: Now) -> None:
        lease.state = LeaseState.DEPRECATED
        if lease.valid_until == inf:
            lease.valid_until = now.boot + LINGER_S
            self.watch(lease)
        self.save(lease, now)
        self.tell("deprecated", lease)

    def renew(self, peer: Peer, lease: Lease, reach: tuple[Reach | None, str], now: Now) -> None:
        """The full lifetime again.  Written only if more than the time left has changed."""
        pool = self.terms(peer, lease)
        valid_s = pool.valid_s if pool else lease.valid_s
        if (lease.valid_s, lease.reach, lease.epoch) != (valid_s, reach[0], self.epoch):
            lease.valid_s, lease.reach, lease.epoch = valid_s, reach[0], self.epoch
            lease.valid_until = now.boot + valid_s
            self.save(lease, now)
            self.route(lease)
        lease.valid_until, lease.heard, lease.why, lease.promised = now.boot + valid_s, now.boot, reach[1], True
        self.watch(lease)

    def end(self, lease: Lease, now: Now) -> None:
        """Over, but held back for who had it, unless it had been replaced."""
        replaced = lease.state is LeaseState.DEPRECATED
        lease.state, lease.valid_until = LeaseState.FORMER, now.boot + self.hold_s
        self.route(lease)
        self.tell("ended", lease)
        peer = self.peers[lease.key]
        if replaced or not self.agreed(peer.agreement, lease.prefix):
            self.forget(lease)
            return
        self.former[lease.prefix] = lease
        self.save(lease, now)
        self.watch(lease)
        former = [other for other in peer.leases if not other.living]
        if len(former) > MAX_FORMER:
            self.forget(min(former, key=lambda other: other.valid_until))

    def forget(self, lease: Lease) -> None:
        self.former.pop(lease.prefix, None)
        self.peers[lease.key].leases.remove(lease)
        self.dead_timers += lease.due != inf
        lease.state, lease.due = LeaseState.FORMER, inf
        if self.dead_timers > 1000 and self.dead_timers > len(self.timers) / 2:
            self.timers = [row for row in self.timers if row[0] == row[2].due]
            heapq.heapify(self.timers)
            self.dead_timers = 0
        self.route(lease)
        self.free(lease.prefix)
        self.out.append(Save(lease.id, None))

    def watch(self, lease: Lease) -> None:
        """At most one timer a lease is live: a later end is noticed when the timer fires."""
        if lease.valid_until < lease.due and lease.valid_until != inf:
            lease.due = lease.valid_until
            self.timer_count += 1
            heapq.heappush(self.timers, (lease.due, self.timer_count, lease))

    def save(self, lease: Lease, now: Now) -> None:
        record = lease.record(now)
        self.out.append(Save(key_of(record), record, promise=not lease.promised))

    def route(self, lease: Lease) -> None:
        if lease.living and lease.reach is not None:
            self.wanted.put(Route(lease.prefix, MAIN, lease.reach))
        else:
            self.wanted.take(thing_key(Route(lease.prefix, MAIN)))

    def reach(self, peer: Peer, version: int, ask: Ask, path: Path) -> tuple[Reach | None, str]:
        """How what this peer is granted is reached, or None and why."""
        route = peer.agreement.route
        return self.neighbourly(version, ask, path) if route == "auto" else self.configured(route, version)

    @staticmethod
    def configured(route: str | Reach, version: int) -> tuple[Reach | None, str]:
        """A route that the operator has written down."""
        if not isinstance(route, Reach):
            return None, f"route = {route}"
        return (route, "") if route.serves(version) else (None, f"{route.via} is no gateway for IPv{version}")

    def neighbourly(self, version: int, ask: Ask, path: Path) -> tuple[Reach | None, str]:
        """The asker itself, if it is directly connected, speaks the lease's family, and nobody relayed its ask."""
        host = parse_host(path.host)
        if host.version != version:
            return None, f"asked over IPv{host.version}"
        if ask.source != host:
            return None, "asked through something that changes addresses"
        if not self.links.neighbour(host, path.interface):
            return None, "not a neighbour: a routing protocol's work"
        return Reach(host.host, self.links.names.get(path.interface, "")), ""

    # -- asks ------------------------------------------------------------------------

    def heard(self, peer: Peer, ask: Ask, path: Path, now: Now) -> tuple[Answer, list[Effect]]:
        """The answer to a fresh ask, and what has to be done before it is sent."""
        self.out = []
        slots = [want.slot for want in ask.wants] + list(ask.releases)
        if ask.unknown:
            answer = self.plain(ask, Status.UNSUPPORTED, unsupported=ask.unknown)
        elif len(slots) > MAX_SLOTS:
            answer = self.plain(ask, Status.INVALID, why=f"more than {MAX_SLOTS} slots")
        elif len(set(slots)) < len(slots):
            answer = self.plain(ask, Status.INVALID, why="a slot is named twice")
        elif self.is_clone(peer, ask, now):
            refusals = (Refusal(want.slot, Reason.CLONE, 600, "another machine uses this key") for want in ask.wants)
            answer = self.plain(ask, Status.OK, refusals=tuple(refusals))
        else:
            answer = self.granted(peer, ask, path, now)
        if self.wanted.changed:
            self.out.append(Install())
        return answer, self.out

    @staticmethod
    def plain(ask: Ask, status: Status, **rest: Any) -> Answer:
        return Answer(stamp=ask.stamp, status=status, version=PROTOCOL, **rest)

    def is_clone(self, peer: Peer, ask: Ask, now: Now) -> bool:
        """Runs A, B, A are two machines; the newcomer is refused while the other renews."""
        if ask.run == peer.run:
            peer.run_heard = now.boot
            return False
        longest = max((lease.valid_s for lease in peer.living()), default=0.0)
        if ask.run == peer.rival and now.boot - peer.run_heard < longest:
            return True
        if ask.run == peer.before and ask.stamp > peer.stamp:
            self.out.append(Note(f"clone grantee={peer.agreement.name} key={short(peer.key)} (two machines)"))
            peer.rival = peer.run
        peer.before, peer.run, peer.run_heard = peer.run, ask.run, now.boot
        return False

    def granted(self, peer: Peer, ask: Ask, path: Path, now: Now) -> Answer:
        for lease in [lease for lease in peer.leases if lease.living and lease.slot in ask.releases]:
            self.end(lease, now)
        outcomes = [self.decide(Case(peer, want, ask, now)) for want in ask.wants]
        leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
        refusals = tuple(outcome for outcome in outcomes if isinstance(outcome, Refusal))
        for lease in peer.leases:
            if lease.state is LeaseState.ACTIVE and lease not in leases \
                    and not self.agreed(peer.agreement, lease.prefix):
                self.deprecate(lease, now)
        self.renew_all(peer, leases, ask, path, now)
        leases += [lease for lease in peer.leases if lease.state is LeaseState.DEPRECATED]
        return self.answer(peer, ask, leases, refusals, now)

    def renew_all(self, peer: Peer, leases: Iterable[Lease], ask: Ask, path: Path, now: Now) -> None:
        seen = (path.host, path.info, ask.source, self.links)
        same = peer.seen == seen
        for lease in leases:
            known = (lease.reach, lease.why) if same and lease.heard else \
                self.reach(peer, lease.prefix.version, ask, path)
            self.renew(peer, lease, known, now)
        for lease in peer.leases if not same else ():
            if lease.state is LeaseState.DEPRECATED:              # routed to where the grantee is now, until its end
                lease.reach, lease.why = self.reach(peer, lease.prefix.version, ask, path)
                self.route(lease)
                self.save(lease, now)
        peer.seen = seen
        peer.hostname = ask.hostname or ""

    def answer(self, peer: Peer, ask: Ask, leases: list[Lease], refusals: tuple[Refusal, ...], now: Now) -> Answer:
        grants, options = [], {}
        times = (inf, inf)
        hour = int(max(0.0, now.wall) // 3600).to_bytes(4, "big")
        for lease in leases:
            pool = self.terms(peer, lease)
            left_s = lease.valid_until - now.boot
            current = lease.state is LeaseState.ACTIVE
            if pool is not None and current:
                times = (min(times[0], pool.renew_s), min(times[1], pool.rebind_s))
                options.update(pool.options)
            preferred_s = min(pool.preferred_s, left_s) if pool and current else 0.0
            grants.append(Grant(lease.slot, lease.prefix, current, seconds(preferred_s), seconds(left_s),
                                self.ticket(peer.key, lease.slot, lease.prefix, hour)))
        return self.plain(ask, Status.OK, grants=tuple(grants), refusals=refusals,
                          times=(seconds(times[0]), seconds(times[1])) if grants else None, **options)

    def ticket(self, key: bytes, slot: int, prefix: Prefix, hour: bytes) -> bytes:
        """Proof that we gave this prefix to this grantee for this slot, in that hour."""
        shape = bytes((slot, prefix.version, prefix.length))
        return hour + mac(self.ticket_key, hour + key + shape + prefix.packed)

    def peer_of(self, key: bytes) -> Peer | None:
        """None: a stranger."""
        peer = self.peers.get(key)
        agreement = self.agreements.get(key)
        if agreement is None:
            return None
        if peer is None:
            peer = self.peers[key] = Peer(key, agreement)
        return peer

    # -- time, and what went wrong ---------------------------------------------------

    @property
    def deadline(self) -> float:
        recovered = self.recovering_until if self.recovering_until > 0 else inf
        return min(self.timers[0][0], recovered) if self.timers else recovered

    def woke(self, now: Now) -> list[Effect]:
        self.out = []
        if 0 < self.recovering_until <= now.boot:
            self.recovering_until = -inf
            self.out += [Save(("recovering",), None), Note("recovered")]
        while self.timers and self.timers[0][0] <= now.boot:
            due, _, lease = heapq.heappop(self.timers)
            if due != lease.due:
                continue                                          # forgotten, or watched anew
            lease.due = inf
            if lease.valid_until > now.boot:
                self.watch(lease)
            elif lease.living:
                self.end(lease, now)
            else:
                self.forget(lease)
        if self.wanted.changed:
            self.out.append(Install())
        return self.out

    def unsaved(self, keys: Iterable[Key]) -> None:
        """These new leases could not be written: they were not promised, and are not held."""
        self.disk_full = True
        self.out = []
        lost = set(keys)
        for peer in list(self.peers.values()) if lost else ():
            for lease in [lease for lease in peer.leases if lease.living and lease.id in lost]:
                self.forget(lease)

    def reconfigured(self, config: Config) -> list[Peer]:
        """Who holds what is no longer agreed, and should be nudged."""
        self.configure(config)
        return [peer for peer in self.peers.values() if peer.key in self.agreements
                and any(lease.state is LeaseState.ACTIVE and not self.stays(peer, lease) for lease in peer.leases)]

    def restore(self, leases: list[Lease], now: Now) -> list[Key]:
        """From the lease file, where `valid_until` is the time left.  Of two that overlap the newer one is true."""
        kept: list[Lease] = []
        over: list[Key] = []
        for lease in sorted(leases, key=lambda lease: lease.prefix):
            if kept and kept[-1].prefix.holds(lease.prefix):
                older, newer = sorted((kept.pop(), lease), key=lambda lease: lease.serial)
                over.append(older.id)
                lease = newer
            kept.append(lease)
        for lease in sorted(kept, key=lambda lease: lease.valid_until):
            lease.valid_until += now.boot
            peer = self.peers.get(lease.key)
            if peer is None:
                peer = self.peers[lease.key] = Peer(lease.key, self.agreements.get(lease.key, NOBODY))
            peer.leases.append(lease)
            self.watch(lease)
            if not lease.living:
                self.former[lease.prefix] = lease
            elif lease.reach is not None:
                self.route(lease)
        self.rebuild()
        return over


# ==== HOLDINGS ======================================================= pure ====
#
# What a grantee holds, and how its slots and subnets are numbered.


def clock(instant: float) -> float:
    """inf is not JSON."""
    return -1.0 if instant == inf else round(instant, 1)


@dataclass(slots=True)
class Held:
    """A lease of ours."""

    slot: int
    prefix: Prefix
    ticket: bytes
    prefers_until: float
    valid_until: float
    current: bool = True                 # False: deprecated, counts down
    saved_until: float = -inf            # as the lease file has it
    lans: tuple[Lan, ...] = ()           # the interfaces that get a subnet of it

    def record(self, grantor: bytes, boot: str, now: Now) -> Record:
        return {"kind": "held", "boot": boot, "key": show_key(grantor), "slot": self.slot, "prefix": str(self.prefix),
                "ticket": show_key(self.ticket), "ends": clock(self.valid_until), "prefers": clock(self.prefers_until),
                "wall": int(min(now.wall + self.valid_until - now.boot, FOREVER)), "current": self.current}

    def id(self, grantor: bytes) -> Key:
        return ("held", show_key(grantor), self.slot, str(self.prefix))


def held_of(record: Record, boot: str, now: Now) -> Held | None:
    """None if it is over.  Of another boot: by the wall clock, and provisional."""
    ends, prefers = (inf if record[name] == -1 else float(record[name]) for name in ("ends", "prefers"))
    if record["boot"] != boot:
        left = float(record["wall"]) - now.wall
        ends = now.boot + min(left, PROVISIONAL_S)
        prefers = ends if record["current"] else now.boot
    if ends <= now.boot:
        return None
    ticket = binascii.a2b_base64(record["ticket"])
    if len(ticket) != TICKET_LEN:
        raise ValueError("no ticket")
    return Held(whole(0, 255)(str(record["slot"])), parse_prefix(record["prefix"]), ticket, prefers, ends,
                bool(record["current"]))


def slot_name(lines: tuple[Line, ...], n: int) -> str:
    shape = [(line.prefix.version, line.prefix.length) for line in lines]
    return f"{shape[n][0]}/{shape[n][1]}#{shape[:n].count(shape[n])}"


def number_slots(contact: Contact, known: Mapping[str, int], busy: set[int]) -> dict[str, int]:
    """Each line's slot, under `family/length#n`: fixed, or what is on file, or the lowest that is not busy."""
    names = [slot_name(contact.lines, n) for n in range(len(contact.lines))]
    slots = {name: line.slot for name, line in zip(names, contact.lines, strict=True) if line.slot is not None}
    for name in names:
        if name not in slots and name in known and known[name] not in slots.values():
            slots[name] = known[name]
    for name in names:
        if name not in slots:
            slots[name] = next(n for n in range(256) if n not in busy.union(slots.values(), known.values()))
    return slots


def lan_numbers(lans: tuple[Lan, ...]) -> Iterator[tuple[str, int]]:
    taken = {lan.number for lan in lans if lan.number is not None}
    for lan in lans:
        number = lan.number if lan.number is not None else next(n for n in range(2**16) if n not in taken)
        taken.add(number)
        yield lan.dev, number


def lan_address(prefix: Prefix, number: int, suffix: int) -> Prefix | None:
    """This node's address in the numbered subnet of a lease; None if it has no such subnet."""
    if prefix.is_address:
        return prefix
    length = 64 if prefix.version == 6 and prefix.length <= 64 else prefix.length
    subnet = Prefix(prefix.version, prefix.first + number * (1 << (WIDTH[prefix.version] - length)), length)
    if not prefix.holds(subnet) or suffix >= subnet.size:
        return None
    return subnet._replace(first=subnet.first + suffix)


# ==== GRANTEE ======================================================== pure ====
#
# One state machine for each grantor.  What is not in TABLE does not happen.
#
#              answered             T1                    T2
#     SEEKING ─────────> BOUND ───────────> RENEWING ───────────> REBINDING
#        ^                 ^                    │ answered             │
#        │                 └────────────────────┴──────────────────────┤
#        └─────────────────────── every lease over ────────────────────┘


class State(Enum):
    SEEKING = "seeking"                  # holds nothing from this grantor, asks for it
    BOUND = "bound"                      # holds what it asked for, calm until T1
    RENEWING = "renewing"                # T1 is over: asks where it was answered last
    REBINDING = "rebinding"              # T2 is over: asks every address of the grantor in turn
    RELEASED = "released"                # the operator gave it back; quiet until `renew`


class Event(Enum):
    DUE = "the deadline has passed"
    ANSWERED = "an answer has been applied"
    NUDGED = "asked to ask again, by the grantor or the operator"
    RELEASE = "the operator gives everything back"


ASK: Final = Retry(1.0, 120.0)           # in every state
REFUSED: Final = Retry(60.0, 3600.0)     # a refusal without a time
SILENT_S: Final = 16.0                   # when the next patience is this long, a person is told
LOOKUP_S: Final = (10.0, 60.0)           # between two look-ups of a name: without an address yet, and with one


def reason_name(reason: int) -> str:
    """0: not the grantor's refusal but our own."""
    return Reason(reason).name if reason in Reason._value2member_map_ else f"REASON_{reason}" if reason else "UNTRUSTED"


def status_name(status: int) -> str:
    return Status(status).name if status in Status._value2member_map_ else f"STATUS_{status}"


class Grantee:
    """Asks one grantor, and holds what it gives.  All of its behaviour is TABLE."""

    def __init__(self, contact: Contact, boot: str, rand: Rand) -> None:
        self.boot, self.rand = boot, rand
        self.state = State.SEEKING
        self.held: list[Held] = []
        self.releases: set[int] = set()
        self.slots: dict[str, int] = {}
        self.nudged_at = -inf                                     # by the grantor, and obeyed
        self.again: dict[int, float] = {}                         # refused slots: when to ask again
        self.refused: dict[int, Refusal] = {}
        self.options: dict[str, Any] = {}
        self.t1_at = self.t2_at = inf
        self.timer = -inf                                         # when to act next
        self.patience_s = ASK.first_s
        self.refused_s = REFUSED.first_s
        self.found: dict[str, tuple[Path, ...]] = {}              # addresses of a host name
        self.looked_up: dict[str, float] = {}
        self.turn = 0                                             # which address is asked
        self.complaints: dict[int, str] = {}                      # grants not taken, by slot
        self.answers = 0                                          # applied so far
        self.status = ""                                          # of the last
        self.contact = contact
        self.table = MAIN                                         # ... of its default routes


    def number(self, known: Mapping[str, int]) -> list[Effect]:
        """Settle the slots: a line that is gone is released, a new one numbered and written down."""
        known = {**self.slots_held(known), **known}
        busy = {held.slot for held in self.held if held.slot not in known.values()} | self.releases
        self.slots = number_slots(self.contact, known, busy)
        used, lingering = set(self.slots.values()), {held.slot for held in self.held}
        gone = {name: slot for name, slot in known.items() if name not in self.slots}
        self.releases |= set(gone.values()) - used - lingering    # what lingers is released when it is over
        if self.state is not State.RELEASED:
            self.releases -= used
        self.refused = {slot: refusal for slot, refusal in self.refused.items() if slot in used}
        lans = self.lans()
        for held in self.held:
            held.lans = lans.get(held.slot, held.lans)
        name = self.contact.name
        return [*(Save(("slot", name, line), None) for line in gone),
                *(Save(("slot", name, line), {"kind": "slot", "grantor": name, "line": line, "slot": slot})
                  for line, slot in self.slots.items())]

    def slots_held(self, known: Mapping[str, int]) -> dict[str, int]:
        """What a lost record of a slot must have said: a lease of that family and length is held in it."""
        left = {n: line.prefix.shape for n, line in enumerate(self.contact.lines)
                if slot_name(self.contact.lines, n) not in known}
        found = {}
        for held in self.held:
            fitting = next((n for n, shape in left.items() if shape == held.prefix.shape), None)
            if held.current and held.slot not in known.values() and fitting is not None:
                found[slot_name(self.contact.lines, fitting)] = held.slot
                del left[fitting]
        return found

    def lans(self) -> dict[int, tuple[Lan, ...]]:
        return {self.slots[slot_name(self.contact.lines, n)]: line.lans for n, line in enumerate(self.contact.lines)}

    # -- where to ask ----------------------------------------------------------------

    def places(self) -> list[Path]:
        """Every address of the grantor, in the order in which they are tried."""
        return [Path(path.host, port, path.scope) for host, port in self.contact.addresses
                for path in self.found.get(host, ())]

    def place(self) -> Path | None:
        places = self.places()
        return places[self.turn % len(places)] if places else None

    def lookups(self, now: Now) -> list[Effect]:
        """Names to look up: unknown, or unanswered for a while."""
        names = {host for host, _ in self.contact.addresses
                 if now.boot - self.looked_up.get(host, -inf) >= LOOKUP_S[bool(self.found.get(host))]}
        self.looked_up.update(dict.fromkeys(names, now.boot))
        return [Lookup(self.contact.name, name) for name in sorted(names)]

    def resolved(self, host: str, paths: tuple[Path, ...], now: Now) -> list[Effect]:
        known = self.place()
        if paths:
            self.found[host] = paths
        if known is None and self.place() is not None and self.state is not State.RELEASED:
            self.timer, self.patience_s = now.boot, ASK.first_s
        return self.woke(now)

    # -- events ----------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        return min(self.timer, *(held.valid_until for held in self.held), inf)

    def woke(self, now: Now) -> list[Effect]:
        effects = self.expire(now)
        return effects + self.step(Event.DUE, now) if now.boot >= self.timer else effects

    def step(self, event: Event, now: Now) -> list[Effect]:
        action = self.TABLE.get((self.state, event))
        return action(self, now) if action else []

    def ask(self, stamp: int, run: bytes, source: Prefix) -> Ask:
        """What is wanted, and what is held with its ticket."""
        current = {held.slot: held for held in self.held if held.current}
        wants = []
        for n, line in enumerate(self.contact.lines):
            slot = self.slots[slot_name(self.contact.lines, n)]
            have = current.get(slot)
            fits = have is not None and have.prefix.shape == line.prefix.shape
            wants.append(Want(slot, have.prefix, have.ticket) if have and fits else Want(slot, line.prefix))
        released = tuple(sorted(self.releases))[:MAX_SLOTS]
        wants = [] if self.state is State.RELEASED else wants[: MAX_SLOTS - len(released)]
        return Ask(stamp=stamp, run=run, source=source, hostname=self.contact.hostname or None,
                   wants=tuple(wants), releases=released)

    def answered(self, ask: Ask, answer: Answer, sent_at: float, now: Now, taken: Callable[[Prefix], str],
                 ) -> list[Effect]:
        """Apply a fresh answer.  `taken` says what else a prefix would overlap."""
        if answer.status != Status.OK:                            # nothing of it was done
            refusals = tuple(Refusal(want.slot, 0, 0, answer.why or status_name(answer.status)) for want in ask.wants)
            answer = replace(answer, grants=(), refusals=refusals)
        self.answers, self.status = self.answers + 1, status_name(answer.status)
        self.releases -= set(ask.releases) if answer.status == Status.OK else set()
        self.complaints = {}
        self.again = {want.slot: now.boot + REFUSED.first_s for want in ask.wants}
        before = {(held.slot, held.prefix): held.current for held in self.held}
        wanted = {want.slot: want.prefix for want in ask.wants}
        for grant in answer.grants:
            self.take(grant, wanted, sent_at, now, taken)
        effects = self.refuse(answer.refusals, now)
        self.drop_released(now)
        if answer.grants and answer.need is None:
            self.options = {key: value for key in OPTIONS if (value := getattr(answer, key)) not in NOTHING}
            if answer.mtu is not None:
                self.options["mtu"] = min(9000, max(1280, answer.mtu))
        self.set_times(answer, sent_at, now)
        after = {(held.slot, held.prefix): held.current for held in self.held}
        effects += self.settle(now, "bound" if after != before else "renewed")
        return effects + self.step(Event.ANSWERED, now)

    def take(self, grant: Grant, wanted: Mapping[int, Prefix], sent_at: float, now: Now,
             taken: Callable[[Prefix], str]) -> None:
        """One grant, if it can be trusted."""
        have = next((held for held in self.held if (held.slot, held.prefix) == (grant.slot, grant.prefix)), None)
        valid_until = sent_at + span(grant.valid_s)
        if not grant.current:
            if have is not None:
                self.deprecate(have, now)
                have.valid_until = min(have.valid_until, valid_until)
            return
        known = grant.slot in self.slots.values()
        why = self.mistrust(grant, wanted.get(grant.slot) if known else None, taken if have is None else lambda _: "")
        if why:
            self.complaints[grant.slot] = f"{grant.prefix}: {why}"
            return
        for held in self.held:
            if held.slot == grant.slot and held.current and held is not have:
                self.deprecate(held, now)
        old = [held for held in self.held if held.slot == grant.slot and not held.current]
        for held in sorted(old, key=lambda held: held.valid_until)[: max(0, len(old) - MAX_DEPRECATED)]:
            held.valid_until = now.boot
        if have is None:
            have = Held(grant.slot, grant.prefix, grant.ticket, 0.0, 0.0, lans=self.lans()[grant.slot])
            self.held.append(have)
        have.ticket, have.current = grant.ticket, True
        have.prefers_until, have.valid_until = sent_at + span(grant.preferred_s), valid_until
        self.again.pop(grant.slot, None)
        self.refused.pop(grant.slot, None)

    def mistrust(self, grant: Grant, want: Prefix | None, taken: Callable[[Prefix], str]) -> str:
        """Why this grant is not taken; empty if it is."""
        prefix = grant.prefix
        if want is None or prefix.shape != want.shape:
            return f"asked for /{want.length} of IPv{want.version}" if want else "not asked for"
        if not grant.valid_s:
            return "no lifetime"
        if not any(accepted.holds(prefix) for accepted in self.contact.accept) \
                or any(never.overlaps(prefix) for never in NEVER):
            return "outside of `accept`, or nobody's to give"
        if any(held.prefix.overlaps(prefix) and (held.slot, held.prefix) != (grant.slot, prefix) for held in self.held):
            return "overlaps another lease"
        return taken(prefix)

    def refuse(self, refusals: Iterable[Refusal], now: Now) -> list[Effect]:
        effects: list[Effect] = []
        refused = [*refusals, *(Refusal(slot, 0, 0, why) for slot, why in self.complaints.items())]
        for refusal in refused:
            wait_s = refusal.again_s or self.refused_s
            self.again[refusal.slot] = now.boot + wait_s
            if self.refused.get(refusal.slot) != refusal:
                reason = reason_name(refusal.reason)
                effects.append(Note(f"refused grantor={self.contact.name} slot={refusal.slot} reason={reason} "
                                    f"why=\"{refusal.text}\""))
            self.refused[refusal.slot] = refusal
            for held in self.held:
                if held.slot == refusal.slot and held.current and refusal.reason in LOST:
                    self.deprecate(held, now)
        self.refused_s = min(self.refused_s * 2, REFUSED.longest_s) if refused else REFUSED.first_s
        return effects

    def deprecate(self, held: Held, now: Now) -> None:
        """Lost or replaced: no longer preferred, valid for two hours at most (RFC 9096)."""
        held.current = False
        held.prefers_until = min(held.prefers_until, now.boot)
        held.valid_until = min(held.valid_until, now.boot + LINGER_S)

    def drop_released(self, now: Now) -> None:
        """Given back by the operator: gone at once.  (What a removed line had is deprecated.)"""
        for held in self.held if self.state is State.RELEASED else ():
            held.valid_until = min(held.valid_until, now.boot)

    def set_times(self, answer: Answer, sent_at: float, now: Now) -> None:
        slots = {held.slot for held in self.held if held.current}
        granted = [grant for grant in answer.grants if grant.current and grant.slot in slots]
        shortest = min((span(grant.preferred_s) for grant in granted), default=inf)
        t1, t2 = answer.times or (0, 0)
        self.t1_at = sent_at + max(1.0, span(t1) or shortest * 0.5)
        self.t2_at = max(self.t1_at, sent_at + max(1.0, span(t2) or shortest * 0.8))
        if self.contact.keepalive_s:
            self.t1_at = min(self.t1_at, now.boot + self.contact.keepalive_s)

    def expire(self, now: Now) -> list[Effect]:
        over = [held for held in self.held if held.valid_until <= now.boot]
        if not over:
            return []
        self.held = [held for held in self.held if held not in over]
        if not any(held.current for held in self.held) and self.state in (State.BOUND, State.RENEWING, State.REBINDING):
            self.enter(State.SEEKING, max(now.boot, min(self.again.values(), default=now.boot)))
        effects: list[Effect] = [Save(held.id(self.contact.key), None) for held in over]
        notes = [Note(f"lost grantor={self.contact.name} slot={held.slot} prefix={held.prefix}") for held in over]
        removed = {held.slot for held in over} - set(self.slots.values()) - {held.slot for held in self.held}
        if removed:
            self.releases |= removed
            self.timer = now.boot
        return [*effects, *notes, Install(), Hook(self.contact.name, "lost")]

    def settle(self, now: Now, event: str) -> list[Effect]:
        """After a change: what has to be written, installed and told."""
        effects = self.expire(now)
        for held in self.held:
            left_s = held.valid_until - now.boot                  # a quarter, 10 min at least; half of a short one
            worth_s = max(left_s / 4, min(600.0, left_s / 2))
            if held.saved_until == -inf or abs(held.valid_until - held.saved_until) >= worth_s or event == "bound":
                held.saved_until = held.valid_until
                effects.append(Save(held.id(self.contact.key), held.record(self.contact.key, self.boot, now)))
        if event == "bound":
            effects += [Note(f"{'bound' if held.current else 'deprecated'} grantor={self.contact.name} "
                             f"slot={held.slot} prefix={held.prefix} valid={seconds(held.valid_until - now.boot)}")
                        for held in self.held]
        return [*effects, Install(), Hook(self.contact.name, event)]

    # -- actions: one verb each, named in TABLE ------------------------------------------

    def ask_again(self, now: Now) -> list[Effect]:
        """Ask, and once more after twice as long: ±10 % so that many do not ask in step."""
        if self.state is State.RENEWING and now.boot >= self.t2_at:
            self.enter(State.REBINDING, now.boot)
        effects = self.lookups(now) if self.state is not State.RENEWING or not self.places() else []
        jitter = 0.9 + 0.2 * self.rand(1)[0] / 255
        self.timer = now.boot + self.patience_s * jitter
        if self.state is State.RENEWING:
            self.timer = min(self.timer, max(self.t2_at, now.boot + 1.0))
        self.patience_s = min(self.patience_s * 2, ASK.longest_s)
        if self.patience_s == SILENT_S:
            place = self.place() or "(no address found yet)"
            effects.append(Note(f"silent grantor={self.contact.name} at={place} state={self.state.value}"))
        return [*effects, Call(self.contact.name)] if self.place() is not None else effects

    def ask_elsewhere(self, now: Now) -> list[Effect]:
        if self.patience_s > ASK.first_s:           # the one before was not answered
            self.turn += 1
        return self.ask_again(now)

    def start_renewing(self, now: Now) -> list[Effect]:
        self.enter(State.RENEWING, now.boot)
        return self.ask_again(now)

    def seek(self, now: Now) -> list[Effect]:
        self.enter(State.SEEKING, now.boot)
        return self.ask_again(now)

    def calm(self, _: Now) -> list[Effect]:
        """Answered: until T1 if there is a lease, until a refused slot may be asked for again in any case."""
        again = min(self.again.values(), default=inf)
        if any(held.current for held in self.held):
            self.enter(State.BOUND, min(self.t1_at, again))
        else:
            self.enter(State.SEEKING, again)
        return []

    def give_back(self, now: Now) -> list[Effect]:
        self.enter(State.RELEASED, now.boot)
        self.releases |= set(self.slots.values())
        self.drop_released(now)
        return [*self.settle(now, "released"), *self.ask_again(now)]

    def give_back_again(self, now: Now) -> list[Effect]:
        return self.ask_elsewhere(now) if self.releases else self.rest(now)

    def rest(self, _: Now) -> list[Effect]:
        self.timer = self.timer if self.releases else inf
        return []

    def wake(self, now: Now) -> list[Effect]:
        self.releases -= set(self.slots.values())
        return self.seek(now)

    TABLE: ClassVar[Mapping[tuple[State, Event], Callable[[Grantee, Now], list[Effect]]]]

    def enter(self, state: State, timer: float) -> None:
        """The only place that changes the state."""
        self.state, self.timer, self.patience_s = state, timer, ASK.first_s

    # -- what it wants of the kernel -----------------------------------------------------

    def things(self) -> Iterator[Thing]:
        if not self.contact.install:
            return
        for held in self.held:
            if not held.prefix.is_address:
                yield Route(held.prefix, MAIN)
            yield from self.lan_things(held)
            if self.contact.default is not None and self.contact.default.serves(held.prefix.version):
                yield Rule(held.prefix.version, None, MAIN)
                yield Rule(held.prefix.version, held.prefix, self.table)
                yield Route(Prefix(held.prefix.version, 0, 0), self.table, self.contact.default)

    def lan_things(self, held: Held) -> Iterator[Thing]:
        for dev, number in lan_numbers(held.lans):
            address = lan_address(held.prefix, number, self.contact.suffix)
            if address is not None:
                yield Address(dev, address, held.prefers_until, held.valid_until)


Grantee.TABLE = {
    (State.SEEKING,   Event.DUE):      Grantee.ask_elsewhere,
    (State.SEEKING,   Event.ANSWERED): Grantee.calm,
    (State.SEEKING,   Event.NUDGED):   Grantee.seek,
    (State.SEEKING,   Event.RELEASE):  Grantee.give_back,
    (State.BOUND,     Event.DUE):      Grantee.start_renewing,
    (State.BOUND,     Event.ANSWERED): Grantee.calm,
    (State.BOUND,     Event.NUDGED):   Grantee.start_renewing,
    (State.BOUND,     Event.RELEASE):  Grantee.give_back,
    (State.RENEWING,  Event.DUE):      Grantee.ask_again,
    (State.RENEWING,  Event.ANSWERED): Grantee.calm,
    (State.RENEWING,  Event.NUDGED):   Grantee.start_renewing,
    (State.RENEWING,  Event.RELEASE):  Grantee.give_back,
    (State.REBINDING, Event.DUE):      Grantee.ask_elsewhere,
    (State.REBINDING, Event.ANSWERED): Grantee.calm,
    (State.REBINDING, Event.NUDGED):   Grantee.start_renewing,
    (State.REBINDING, Event.RELEASE):  Grantee.give_back,
    (State.RELEASED,  Event.DUE):      Grantee.give_back_again,
    (State.RELEASED,  Event.ANSWERED): Grantee.rest,
    (State.RELEASED,  Event.NUDGED):   Grantee.wake,
}


# ==== SESSIONS ======================================================= pure ====
#
# The two ends of the native door.  What they know of a datagram: who sent it, that
# it is whole, and whether it is new.  What it means is for the roles.


class Stranger(Drop):
    """A valid handshake by a key that nobody admitted."""

    def __init__(self, key: bytes) -> None:
        super().__init__("stranger")
        self.key = key


class Responder:
    """The grantor's end."""

    def __init__(self, s: KeyPair, load: int, rand: Rand) -> None:
        self.s, self.load, self.rand = s, load, rand
        self.mac1_key, self.cookie_key = mac1_key(s.public), cookie_key(s.public)
        self.secret = rand(KEY_LEN)
        self.sessions: dict[bytes, Session] = {}
        self.second, self.heard = -1, 0
        self.sources: Counter[bytes] = Counter()
        self.loaded_at = -inf

    def under_load(self, now: Now) -> bool:
        return now.boot - self.loaded_at < 2.0

    def admit(self, datagram: bytes, path: Path, now: Now) -> bytes | None:
        """Nothing if this ask may cost curve operations; a cookie to send if not; or Drop."""
        if not equal(mac(self.mac1_key, datagram[: -2 * MAC_LEN]), datagram[-2 * MAC_LEN : -MAC_LEN]):
            raise Drop("mac1 wrong")
        if self.second != int(now.boot):
            self.second, self.heard = int(now.boot), 0
            self.sources.clear()
        self.heard += 1
        if self.heard <= self.load:
            return None
        self.loaded_at = now.boot
        return self.cookie_for(datagram, path, now)

    def cookie_for(self, datagram: bytes, path: Path, now: Now) -> bytes | None:
        """Nothing if the ask brings the cookie of its source; else that cookie, sealed for who knows our key."""
        source = mapped(parse_host(path.host))
        place = source + path.port.to_bytes(2, "big")
        epoch = int(now.boot // COOKIE_S)
        cookies = [mac(digest(self.secret + n.to_bytes(8, "big")), place) for n in (epoch, epoch - 1)
                   if n >= 0]
        if any(equal(mac(cookie, datagram[:-MAC_LEN]), datagram[-MAC_LEN:]) for cookie in cookies):
            block = source if source[:12] == bytes(10) + b"\xff\xff" else source[:8]
            self.sources[block] += 1
            if self.sources[block] > SOURCE_ASKS:
                raise Drop("too many from one source")
            return None
        salt = self.rand(12)
        sealed = aead_encrypt(cookies[0], datagram[-2 * MAC_LEN : -MAC_LEN], salt, self.cookie_key)
        return KINDS["cookie"] + datagram[4:ID_LEN] + salt + sealed

    def open_ask(self, datagram: bytes, peer_of: Callable[[bytes], Peer | None]) -> tuple[Peer, Handshake, bytes]:
        """Who asks, and what.  A stranger costs one curve operation."""
        handshake = Handshake(self.s, self.s.public, b"ddpd" + datagram[:ID_LEN])
        body = datagram[ID_LEN : -2 * MAC_LEN]
        key = handshake.read_static(body)
        peer = peer_of(key)
        if peer is None:
            raise Stranger(key)
        peer.ss = peer.ss or dh(self.s.secret, key)
        return peer, handshake, handshake.read_payload(body, peer.ss)

    def answer(self, datagram: bytes, handshake: Handshake, plain: bytes) -> bytes:
        return KINDS["answer"] + datagram[4:ID_LEN] + handshake.write_second(keypair(self.rand(KEY_LEN)), plain)

    def keep(self, session: Session, stale: bool) -> None:
        """A new session waits for something sealed.  One that a replay may have made must not push out a true one."""
        peer: Peer = session.peer
        self.sessions[session.id] = session
        peer.pending = (session, *peer.pending) if stale else (*peer.pending, session)
        if len(peer.pending) > MAX_PENDING:
            self.sessions.pop(peer.pending[stale].id, None)
            peer.pending = peer.pending[:stale] + peer.pending[stale + 1 :]
        if len(self.sessions) > MAX_SESSIONS:
            del self.sessions[next(iter(self.sessions))]

    def open_sealed(self, datagram: bytes, now: Now) -> tuple[Session, bytes]:
        session = self.sessions.get(datagram[4:12])
        if session is None:
            raise Drop("unknown session")
        if session.over(now):
            del self.sessions[session.id]
            raise Drop("session over")
        plain = session.open(datagram)
        peer: Peer = session.peer
        if session is not peer.live:
            if peer.live is not None:
                self.sessions.pop(peer.live.id, None)
            peer.live = session
            peer.pending = tuple(other for other in peer.pending if other is not session)
        return session, plain


@dataclass(slots=True)
class Attempt:
    """A handshake ask that waits for its answer."""

    id: bytes
    handshake: Handshake
    mac1: bytes
    number: int
    cookied: bool = False


class Initiator:
    """The grantee's end, towards one grantor."""

    def __init__(self, s: KeyPair, grantor: bytes, rand: Rand) -> None:
        self.s, self.grantor, self.rand = s, grantor, rand
        self.mac1_key, self.cookie_key = mac1_key(grantor), cookie_key(grantor)
        self.session: Session | None = None
        self.attempts: deque[Attempt] = deque(maxlen=MAX_PENDING)
        self.asked: dict[int, tuple[float, Ask]] = {}             # stamp -> (sent, what)
        self.stamp = self.applied = -1
        self.tried = self.newest = 0                              # handshakes written; the one that made the session
        self.unanswered = 0                                       # sealed asks in a row
        self.size = FIRST_ASK
        self.cookie, self.cookie_at = b"", -inf
        self.ends = ""                                            # our address and theirs, of the last handshake

    def next_stamp(self, now: Now) -> int:
        self.stamp = max(int(max(0.0, now.wall) * 1e6), self.stamp + 1)
        return self.stamp

    def compose(self, ask: Ask, ends: str, now: Now) -> bytes:
        """The ask as a datagram: sealed if there is a session that works between these ends, else a handshake."""
        self.asked[ask.stamp] = (now.boot, ask)
        while len(self.asked) > 2 * MAX_PENDING:
            del self.asked[next(iter(self.asked))]
        session = self.session
        if session is None or self.unanswered >= 2 or session.over(now) or session.ends != ends:
            self.session = None
            return self.first(encode(ask), ends, now)
        self.unanswered += 1
        return session.seal(self.sized(encode(ask), SEALED_LEN + TAG_LEN))

    def sized(self, plain: bytes, overhead: int) -> bytes:
        steps = -(-(len(plain) + overhead) // ASK_STEP) * ASK_STEP
        return padded(plain, min(MAX_DATAGRAM, max(self.size, steps)) - overhead)

    def first(self, plain: bytes, ends: str, now: Now) -> bytes:
        header = KINDS["ask"] + self.rand(4)
        handshake = Handshake(self.s, self.grantor, b"ddpd" + header)
        body = header + handshake.write_first(keypair(self.rand(KEY_LEN)), self.sized(plain, ASK_OVERHEAD))
        mac1 = mac(self.mac1_key, body)
        cookie = self.cookie if now.boot - self.cookie_at < COOKIE_S else b""
        self.tried += 1
        self.attempts.append(Attempt(header[4:], handshake, mac1, self.tried))
        self.ends = ends
        return body + mac1 + (mac(cookie, body + mac1) if cookie else NO_MAC)

    def attempt(self, datagram: bytes) -> Attempt:
        for attempt in self.attempts:
            if attempt.id == datagram[4:ID_LEN]:
                return attempt
        raise Drop("answer to no ask")

    def open_answer(self, datagram: bytes, now: Now) -> bytes:
        """On a copy: a junk answer that comes first must not spoil the true one."""
        attempt = self.attempt(datagram)
        handshake = copy(attempt.handshake)
        plain = handshake.read_second(datagram[ID_LEN:])
        self.attempts.remove(attempt)
        if attempt.number > self.newest:                          # answers may overtake each other
            self.session, self.newest = Session(handshake, now.boot), attempt.number
            self.session.ends, self.unanswered = self.ends, 0
        return plain

    def open_sealed(self, datagram: bytes) -> bytes:
        if self.session is None or self.session.id != datagram[4:12]:
            raise Drop("unknown session")
        return self.session.open(datagram)

    def take_cookie(self, datagram: bytes, now: Now) -> bool:
        """True: worth asking again at once, as no cookie was there before."""
        attempt = self.attempt(datagram)
        if attempt.cookied:
            raise Drop("second cookie")
        salt, sealed = datagram[ID_LEN : ID_LEN + 12], datagram[ID_LEN + 12 :]
        cookie = aead_decrypt(sealed, attempt.mac1, salt, self.cookie_key)
        attempt.cookied = True
        first = now.boot - self.cookie_at >= COOKIE_S
        self.cookie, self.cookie_at = cookie, now.boot
        return first

    def settle(self, answer: Answer, now: Now) -> tuple[float, Ask]:
        """When, and what, was asked that this answers; Drop if it is old."""
        sent_at, ask = self.asked.get(answer.stamp, (-inf, None))
        if ask is None:
            raise Drop("answer to no ask")
        if answer.stamp <= self.applied:
            raise Drop("answer not newer")
        if now.boot - sent_at > LATE_S:
            raise Drop("answer too late")
        self.applied, self.unanswered = answer.stamp, 0
        needed = max(answer.need or 0, len(encode(answer)) + SEALED_LEN + TAG_LEN)
        self.size = min(MAX_DATAGRAM, -(-needed // ASK_STEP) * ASK_STEP)
        return sent_at, ask


def without_least(answer: Answer) -> Answer:
    """Deprecated grants go first, then the last refusal, then the last grant, then the times."""
    for n in range(len(answer.grants) - 1, -1, -1):
        if not answer.grants[n].current:
            return replace(answer, grants=answer.grants[:n] + answer.grants[n + 1 :])
    if answer.refusals:
        return replace(answer, refusals=answer.refusals[:-1])
    if answer.grants:
        return replace(answer, grants=answer.grants[:-1])
    return replace(answer, times=None, why=None)


def fitted(answer: Answer, room: int, overhead: int) -> bytes:
    """The answer, padded to `room`; what does not fit is left out, options first, and `need` says so."""
    plain = encode(answer)
    if len(plain) <= room:
        return padded(plain, room)
    need = len(plain) + overhead
    answer = replace(answer, need=need, **{name: Answer.__dataclass_fields__[name].default for name in OPTIONS})
    for _ in range(len(answer.grants) + len(answer.refusals) + 2):
        plain = encode(answer)
        if len(plain) <= room:
            return padded(plain, room)
        answer = without_least(answer)
    raise Drop("ask too short for any answer")


# ==== NODE =========================================================== pure ====
#
# Both roles, their sessions and their leases behind four verbs: `received` a
# datagram, `woke` at the deadline, `compose` an ask, `resolved` a name.


def expect(cls: type[T], message: Message) -> T:
    if not isinstance(message, cls):
        raise Drop("message of the other role")
    return message


def made_record(thing: Thing) -> Record:
    """Of an address or a rule: routes carry their mark in the kernel."""
    if isinstance(thing, Address):
        return {"kind": "made", "what": f"address {thing.address} {thing.dev}"}
    return {"kind": "made", "what": f"rule{version_of(thing)} {getattr(thing, 'source', None) or 'all'} {thing.table}"}


def made_of(record: Record) -> Thing:
    noun, prefix, where = str(record["what"]).split()
    if noun == "address":
        return Address(device(where), parse_interface(prefix))
    return Rule({"rule4": 4, "rule6": 6}[noun], None if prefix == "all" else parse_prefix(prefix), int(where))


class LastRun(NamedTuple):
    """How the program ended last time."""

    clean: bool
    boot: str
    at: float
    epoch: int


def aged(lease: Lease, run: LastRun, elapsed_s: float) -> Lease:
    """After a crash a lease has its full lifetime left; after two without a renewal, none."""
    if run.clean:
        lease.valid_until -= elapsed_s
    elif lease.living:
        lease.valid_until = lease.valid_s if lease.epoch == run.epoch else 0.0
    return lease


READ_RECORD: Final[dict[str, Callable[[Record, str, Now], Any]]] = {
    "granted":    lambda record, _boot, _now: lease_of(record),
    "held":       lambda record, boot, now: (public_key(record["key"]), held_of(record, boot, now)),
    "slot":       lambda record, _boot, _now: (str(record["grantor"]), str(record["line"]), int(record["slot"])),
    "made":       lambda record, _boot, _now: made_of(record),
    "recovering": lambda record, _boot, _now: span(int(record["left"])),
    "run":        lambda record, _boot, _now: LastRun(bool(record["clean"]), str(record["boot"]), float(record["at"]),
                                                      int(record["epoch"])),
}


class Node:
    def __init__(self, config: Config, secret: bytes, boot: str, rand: Rand) -> None:
        self.config, self.boot, self.rand = config, boot, rand
        self.s = keypair(secret)
        self.run = rand(8)
        self.wanted = Wanted()
        self.held_keys: set[Key] = set()                          # what of `wanted` the grantees want
        self.made: dict[Key, Thing] = {}                          # what carries no mark in the kernel
        self.links = Links()
        self.responder = Responder(self.s, config.load, rand)
        self.grantor = Grantor(secret, config, self.wanted, rand)
        self.grantees: dict[str, Grantee] = {}
        self.initiators: dict[str, Initiator] = {}
        self.counters: Counter[str] = Counter()
        self.nudges: list[tuple[float, bytes]] = []
        self.numbered: list[Effect] = []                          # slots to be written down at the start
        self.outdated: list[Key] = []                             # in the lease file, and no longer true
        self.add_grantees(config)

    def add_grantees(self, config: Config) -> None:
        for index, contact in enumerate(config.contacts):
            if contact.name not in self.grantees:
                self.grantees[contact.name] = Grantee(contact, self.boot, self.rand)
                self.initiators[contact.name] = Initiator(self.s, contact.key, self.rand)
            grantee = self.grantees[contact.name]
            grantee.contact, grantee.table = contact, config.mark * 100 + 1 + index

    # -- datagrams -------------------------------------------------------------------

    def received(self, datagram: bytes, path: Path, now: Now, grantor: str = "") -> list[Effect]:
        """What a datagram makes us do.  `grantor`: it came to the socket on which that one is asked."""
        kind = kind_of(datagram)
        self.counters[f"heard_{kind}"] += 1
        hear = self.HEARD.get((kind, bool(grantor)))
        if grantor and grantor not in self.grantees:
            raise Drop("no longer asked")
        if hear is None:
            raise Drop("kind for the other role")
        return hear(self, datagram, grantor or path, now)

    def heard_ask(self, datagram: bytes, path: Path, now: Now) -> list[Effect]:
        cookie = self.responder.admit(datagram, path, now)
        if cookie is not None:
            self.counters["sent_cookie"] += 1
            return [Send(cookie, path)]
        peer, handshake, plain = self.responder.open_ask(datagram, self.grantor.peer_of)
        ask = expect(Ask, decode(plain))
        effects: list[Effect] = []
        if not self.is_fresh(peer, ask):
            if now.boot - peer.stale_at < STALE_GAP_S:
                raise Drop("stale")
            peer.stale_at = now.boot
            answer = self.grantor.plain(ask, Status.STALE)
            self.counters["sent_stale"] += 1
        else:
            answer, effects = self.grantor.heard(peer, ask, path, now)
            self.counters["sent_answer"] += 1
        overhead = SHORTEST["answer"]
        plain = fitted(answer, len(datagram) - overhead, overhead)
        stale = answer.status == Status.STALE
        reply = self.responder.answer(datagram, handshake, plain)
        session = Session(handshake, now.boot, peer).turned()
        self.responder.keep(session, stale)
        if not stale:
            peer.stamp, peer.path, peer.session, peer.nudged = ask.stamp, path, session, 0
        return [*effects, Send(reply, path)]

    def is_fresh(self, peer: Peer, ask: Ask) -> bool:
        if peer.stamp >= 0:
            return ask.stamp > peer.stamp
        return not peer.living() and not any(want.ticket for want in ask.wants)

    def heard_sealed(self, datagram: bytes, path: Path, now: Now) -> list[Effect]:
        session, plain = self.responder.open_sealed(datagram, now)
        peer: Peer = session.peer
        if peer.key not in self.grantor.agreements:
            raise Stranger(peer.key)
        ask = expect(Ask, decode(plain))
        answer, effects = self.grantor.heard(peer, ask, path, now)
        peer.stamp, peer.path, peer.session, peer.nudged = max(peer.stamp, ask.stamp), path, session, 0
        self.counters["sent_sealed"] += 1
        overhead = SHORTEST["sealed"]
        effects.append(Send(session.seal(fitted(answer, len(datagram) - overhead, overhead)), path))
        return effects

    def heard_answer(self, datagram: bytes, name: str, now: Now) -> list[Effect]:
        plain = self.initiators[name].open_answer(datagram, now)
        answer = expect(Answer, decode(plain))
        if answer.status == Status.STALE:
            self.initiators[name].settle(answer, now)
            return [Call(name)]                                   # sealed now, in the session just made
        return self.apply(name, answer, now)

    def heard_reply(self, datagram: bytes, name: str, now: Now) -> list[Effect]:
        message = decode(self.initiators[name].open_sealed(datagram))
        if isinstance(message, Nudge):
            if now.boot - self.grantees[name].nudged_at < NUDGE_GAP_S or self.grantees[name].state is State.RELEASED:
                raise Drop("nudged too often, or after a release")
            self.grantees[name].nudged_at = now.boot
            self.initiators[name].unanswered = 0
            effects = self.grantees[name].step(Event.NUDGED, now)
            return [Note(f"nudged grantor={name}"), *effects]
        answer = expect(Answer, message)
        if answer.status == Status.STALE:
            raise Drop("stale answer to a sealed ask")
        return self.apply(name, answer, now)

    def heard_cookie(self, datagram: bytes, name: str, now: Now) -> list[Effect]:
        return [Call(name)] if self.initiators[name].take_cookie(datagram, now) else []

    HEARD: ClassVar[Mapping[tuple[str, bool], Callable[[Node, bytes, Any, Now], list[Effect]]]] = {
        ("ask",    False): heard_ask,
        ("sealed", False): heard_sealed,
        ("answer", True):  heard_answer,
        ("sealed", True):  heard_reply,
        ("cookie", True):  heard_cookie,
    }

    def apply(self, name: str, answer: Answer, now: Now) -> list[Effect]:
        if answer.unknown:
            raise Drop("answer with an unknown type")
        room = self.initiators[name].size
        sent_at, ask = self.initiators[name].settle(answer, now)
        grantee = self.grantees[name]
        effects = grantee.answered(ask, answer, sent_at, now, lambda prefix: self.taken(name, prefix))
        self.want_grantees()
        more = answer.need is not None and self.initiators[name].size > room
        return [*effects, Call(name)] if more else effects        # what did not fit is worth a longer ask

    def taken(self, name: str, prefix: Prefix) -> str:
        """Who else has this prefix: a link of this node that ddpd did not make, or another grantor's lease."""
        ours = {(thing.dev, thing.address) for thing in self.made.values() if isinstance(thing, Address)}
        for index, own in self.links.addresses:
            if own.network(own.length).overlaps(prefix) and (self.links.names.get(index, ""), own) not in ours:
                return f"overlaps {own.network(own.length)} on {self.links.names.get(index, index)}"
        for other, grantee in self.grantees.items():
            if other != name and any(held.prefix.overlaps(prefix) for held in grantee.held):
                return f"overlaps a lease from {other}"
        return ""

    def want_grantees(self) -> None:
        things = {thing_key(thing): thing for grantee in self.grantees.values() for thing in grantee.things()}
        for key in self.held_keys - things.keys():
            self.wanted.take(key)
        for thing in things.values():
            self.wanted.put(thing)
        self.held_keys = set(things)

    def compose(self, name: str, source: str, now: Now) -> bytes:
        """The ask to send to this grantor's present place, now, from this address."""
        initiator = self.initiators[name]
        ask = self.grantees[name].ask(initiator.next_stamp(now), self.run, parse_host(source))
        self.counters["sent_ask"] += 1
        return initiator.compose(ask, f"{source} {self.grantees[name].place()}", now)

    def resolved(self, name: str, host: str, paths: tuple[Path, ...], now: Now) -> list[Effect]:
        grantee = self.grantees.get(name)
        effects = grantee.resolved(host, paths, now) if grantee else []
        self.want_grantees()
        return effects

    # -- time ------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        return min(self.grantor.deadline, self.nudges[0][0] if self.nudges else inf,
                   *(grantee.deadline for grantee in self.grantees.values()), inf)

    def woke(self, now: Now) -> list[Effect]:
        effects = self.grantor.woke(now) if self.grantor.deadline <= now.boot else []
        effects += self.nudge(now)
        for grantee in self.grantees.values():
            if grantee.deadline <= now.boot:
                effects += grantee.woke(now)
                self.want_grantees()
        return effects

    def nudge(self, now: Now) -> list[Effect]:
        """Once, then after 1 s, 2 s, ... until the peer asks; so many a second in all."""
        effects: list[Effect] = []
        while self.nudges and self.nudges[0][0] <= now.boot and len(effects) < NUDGES_A_S // 10:
            _, key = heapq.heappop(self.nudges)
            peer = self.grantor.peers.get(key)
            if peer is None or not peer.nudged or peer.session is None or peer.path is None:
                continue
            effects.append(Send(peer.session.seal(padded(encode(Nudge()), ASK_STEP - SHORTEST["sealed"])), peer.path))
            self.counters["sent_nudge"] += 1
            if peer.nudged < NUDGES:
                heapq.heappush(self.nudges, (now.boot + 2.0 ** (peer.nudged - 1), key))
            peer.nudged = (peer.nudged + 1) % (NUDGES + 1)
        if effects and self.nudges and self.nudges[0][0] <= now.boot:
            later = now.boot + 0.1
            self.nudges = [(max(at, later), key) for at, key in self.nudges]
        return effects

    # -- the operator ----------------------------------------------------------------

    def operate(self, event: Event, name: str, now: Now) -> list[Effect]:
        """`renew` and `release`, of one grantor or (no name) of all."""
        effects = []
        for grantee in [g for n, g in self.grantees.items() if name in ("", n)]:
            effects += grantee.step(event, now)
        self.want_grantees()
        return effects

    def reconfigure(self, config: Config, now: Now) -> list[Effect]:
        """A new configuration, without losing a lease or a session."""
        known = {name: dict(grantee.slots) for name, grantee in self.grantees.items()}
        kept = {contact.name: contact.key for contact in config.contacts}
        effects: list[Effect] = []
        for name in [name for name, g in self.grantees.items() if kept.get(name) != g.contact.key]:
            effects += [Save(held.id(self.grantees[name].contact.key), None) for held in self.grantees[name].held]
            del self.grantees[name], self.initiators[name]
        self.config, self.responder.load = config, config.load
        for peer in self.grantor.reconfigured(config):
            peer.nudged = 1
            heapq.heappush(self.nudges, (now.boot, peer.key))
        self.add_grantees(config)
        for name, grantee in self.grantees.items():
            effects += grantee.number(known.get(name, {}))
            for held in grantee.held:
                if held.current and held.slot not in grantee.slots.values():
                    grantee.deprecate(held, now)
                    effects.append(Save(held.id(grantee.contact.key), held.record(grantee.contact.key, self.boot, now)))
            if grantee.state is not State.RELEASED:
                effects += grantee.step(Event.NUDGED, now)
        self.want_grantees()
        return [*effects, Install()]

    # -- the lease file ----------------------------------------------------------------

    def restore(self, records: Iterable[Record], now: Now) -> list[Damage]:
        """Take up what is on file; what is no record of its kind comes back as damage."""
        found: dict[str, list[Any]] = {kind: [] for kind in KEYED}
        damage = []
        for record in records:
            try:
                found[record["kind"]].append(READ_RECORD[record["kind"]](record, self.boot, now))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as why:
                damage.append(Damage(0, f"{json.dumps(record)} ({type(why).__name__}: {why})"))
        run = found["run"][-1] if found["run"] else \
            LastRun(False, self.boot, now.boot, max((lease.epoch for lease in found["granted"]), default=0))
        self.grantor.epoch = run.epoch if run.clean else run.epoch + 1
        elapsed_s = max(0.0, now.boot - run.at) if run.boot == self.boot else 0.0
        self.outdated = self.grantor.restore([aged(lease, run, elapsed_s) for lease in found["granted"]], now)
        self.made = {thing_key(thing): thing for thing in found["made"]}
        if found["recovering"]:
            self.grantor.recovering_until = now.boot + found["recovering"][-1]
        for grantee in self.grantees.values():
            key = grantee.contact.key
            grantee.held = [held for at, held in found["held"] if at == key and held is not None]
            known = {line: slot for at, line, slot in found["slot"] if at == grantee.contact.name}
            self.numbered += grantee.number(known)
        self.want_grantees()
        return damage

    def recover(self, damage: Iterable[Damage], lost: bool, now: Now) -> None:
        """What may be held by somebody, though the file does not say by whom, must not be given away."""
        longest_s = max((pool.valid_s for pool in self.config.pools), default=0.0)
        for line in damage:
            prefix = salvaged(line)
            lost = lost or prefix is None
            if prefix is not None and self.grantor.is_free(prefix):
                self.grantor.restore([Lease(b"", 0, prefix, LeaseState.FORMER, longest_s, longest_s)], now)
        if lost and self.config.pools:
            self.grantor.recovering_until = now.boot + longest_s

    def run_record(self, clean: bool, now: Now) -> Record:
        """clean: all leases are written with their time left."""
        return {"kind": "run", "clean": clean, "boot": self.boot, "at": round(now.boot, 1), "epoch": self.grantor.epoch}

    def records(self, clean: bool, now: Now) -> Iterator[Record]:
        """Everything that is worth a line in the lease file."""
        yield self.run_record(clean, now)
        for peer in self.grantor.peers.values():
            for lease in peer.leases:
                yield lease.record(now)
        for name, grantee in self.grantees.items():
            for held in grantee.held:
                yield held.record(grantee.contact.key, self.boot, now)
            for line, slot in grantee.slots.items():
                yield {"kind": "slot", "grantor": name, "line": line, "slot": slot}
        for thing in self.made.values():
            yield made_record(thing)
        left = self.grantor.recovering_until - now.boot
        if left > 0:
            yield {"kind": "recovering", "left": seconds(left)}

    def start(self, now: Now) -> list[Effect]:
        for grantee in self.grantees.values():
            if not grantee.slots:
                self.numbered += grantee.number({})
            if any(held.current for held in grantee.held):
                grantee.enter(State.RENEWING, now.boot)
        self.want_grantees()
        return [*self.numbered, Install(), *(Hook(name, "started") for name, g in self.grantees.items() if g.held)]


# ==== STATUS ========================================================= pure ====
#
# What is told to people, scripts and hooks.


def refused_rows(grantee: Grantee) -> list[dict[str, Any]]:
    return [{"slot": refusal.slot, "reason": reason_name(refusal.reason), "text": refusal.text}
            for refusal in grantee.refused.values()]


def granted_row(node: Node, peer: Peer, lease: Lease, now: Now) -> dict[str, Any]:
    pool = node.grantor.terms(peer, lease)
    left_s = lease.valid_until - now.boot
    preferred_s = left_s - (pool.valid_s - pool.preferred_s) if pool and left_s < inf else left_s
    return {"grantee": peer.agreement.name, "key": show_key(peer.key), "slot": lease.slot, "prefix": str(lease.prefix),
            "preferred": seconds(preferred_s if lease.state is LeaseState.ACTIVE else 0), "valid": seconds(left_s),
            "from": str(peer.path) if peer.path else "", "hostname": peer.hostname,
            "reach": thing_reach(lease.reach) if lease.reach else f"none ({lease.why})", "clone": bool(peer.rival)}


def held_row(grantee: Grantee, held: Held, now: Now) -> dict[str, Any]:
    return {"grantor": grantee.contact.name, "key": show_key(grantee.contact.key), "state": grantee.state.value,
            "slot": held.slot, "prefix": str(held.prefix), "preferred": seconds(held.prefers_until - now.boot),
            "valid": seconds(held.valid_until - now.boot)}


def grantor_row(grantee: Grantee) -> dict[str, Any]:
    return {"name": grantee.contact.name, "state": grantee.state.value, "refused": refused_rows(grantee)}


def status_of(node: Node, now: Now) -> dict[str, Any]:
    """The object that `status --json` prints."""
    grantor = node.grantor
    leases = [(peer, lease) for peer in grantor.peers.values() for lease in peer.living()]
    counts = [sum(pool.prefix.holds(lease.prefix) for _, lease in leases) for pool in node.config.pools]
    left_s = max(0.0, grantor.recovering_until - now.boot)
    return {
        "version": VERSION,
        "public_key": show_key(node.s.public),
        "pools": [{"name": pool.name, "prefix": str(pool.prefix), "leases": count,
                   "free_fraction": round(space.free_fraction(), 6)}
                  for pool, count, space in zip(node.config.pools, counts, grantor.spaces, strict=True)],
        "granted": [granted_row(node, peer, lease, now) for peer, lease in leases[:MAX_SHOWN]],
        "held": [held_row(grantee, held, now) for grantee in node.grantees.values()
                 for held in sorted(grantee.held, key=lambda held: (held.slot, not held.current))],
        "grantors": [grantor_row(grantee) for grantee in node.grantees.values()],
        "recovering": seconds(left_s),
        "disk_full": grantor.disk_full,
        "under_load": node.responder.under_load(now),
        "counters": dict(sorted(node.counters.items())),
    }


def options_shown(options: Mapping[str, Any]) -> dict[str, Any]:
    def shown(value: Any) -> Any:
        if isinstance(value, Prefix):
            return value.host if value.is_address else str(value)
        if isinstance(value, tuple):
            return [shown(item) for item in value]
        return show_key(value) if isinstance(value, bytes) else value
    return {name: shown(value) for name, value in options.items()}


def asked_of(grantee: Grantee, now: Now) -> dict[str, Any]:
    """The object that `ask --json` prints."""
    grants = [{"slot": held.slot, "prefix": str(held.prefix), "preferred": seconds(held.prefers_until - now.boot),
               "valid": seconds(held.valid_until - now.boot)} for held in grantee.held if held.current]
    refused = refused_rows(grantee)
    return {"grantor": grantee.contact.name, "status": grantee.status, "grants": grants,
            "refused": refused, "options": options_shown(grantee.options)}


def environment_of(grantee: Grantee, event: str, now: Now) -> dict[str, str]:
    """What a hook, and `ask --env`, knows: DDPD_PREFIXES="prefix,preferred,valid ..." and so on."""
    lists: dict[str, list[str]] = {"PREFIXES": [], "ADDRESSES": []}
    for held in grantee.held:
        row = f"{held.prefix},{seconds(held.prefers_until - now.boot)},{seconds(held.valid_until - now.boot)}"
        lists["ADDRESSES" if held.prefix.is_address else "PREFIXES"].append(row)
    found = {"EVENT": event, "GRANTOR": grantee.contact.name, "STATE": grantee.state.value}
    found |= {name: " ".join(rows) for name, rows in lists.items()}
    for name, value in options_shown(grantee.options).items():
        found[name.upper()] = " ".join(value) if isinstance(value, list) else str(value)
    found["REFUSED"] = " ".join(f"{row['slot']},{row['reason']}" for row in refused_rows(grantee))
    return {f"DDPD_{name}": value for name, value in found.items()}


def lasting(whole_s: int) -> str:
    """Seconds as a person says them: the two largest units."""
    if whole_s == FOREVER:
        return "forever"
    parts = []
    for unit in "dhms":
        count, whole_s = divmod(whole_s, UNITS[unit])
        parts.append(f"{count}{unit}")
    first = next((n for n, part in enumerate(parts) if part[0] != "0"), 3)
    return "".join(part for part in parts[first : first + 2] if part[0] != "0") or "0s"


def lifetimes(row: Mapping[str, Any]) -> list[str]:
    return [lasting(row["preferred"]) if row["preferred"] else "deprecated", lasting(row["valid"])]


def table(title: str, rows: list[list[str]]) -> list[str]:
    """Aligned columns, each row led by the title; nothing if there is only a head."""
    if title and len(rows) < 2:
        return []
    wide = [max(len(row[n]) for row in rows if n < len(row)) for n in range(max(map(len, rows), default=0))]
    return [f"{title:8} " + "  ".join(cell.ljust(wide[n]) for n, cell in enumerate(row)).rstrip() for row in rows]


def status_text(shown: Mapping[str, Any]) -> str:
    """`status` for a person: one line a pool, a lease, a counter."""
    lines = [f"ddpd {shown['version']}  key {shown['public_key']}"]
    flags = [name for name in ("disk_full", "under_load") if shown[name]]
    flags += [f"recovering for {shown['recovering']} s"] if shown["recovering"] else []
    lines += [f"attention: {', '.join(flags)}"] if flags else []
    lines += table("pool", [["", "prefix", "leased", "free"]] + [
        [p["name"], p["prefix"], str(p["leases"]), f"{100 * p['free_fraction']:.1f} %"] for p in shown["pools"]])
    lines += table("granted", [["to", "slot", "prefix", "preferred", "valid", "reach", "asked from", "host name"]] + [
        [g["grantee"], str(g["slot"]), g["prefix"], *lifetimes(g), g["reach"], g["from"], g["hostname"]]
        for g in shown["granted"]])
    lines += table("held", [["from", "slot", "prefix", "preferred", "valid", "state"]] + [
        [h["grantor"], str(h["slot"]), h["prefix"], *lifetimes(h), h["state"]] for h in shown["held"]])
    lines += table("grantor", [["", "state", "refused"]] + [
        [g["name"], g["state"], "; ".join(f"slot {r['slot']}: {r['reason']} ({r['text']})" for r in g["refused"])]
        for g in shown["grantors"]])
    lines += table("counter", [["", "count"]] + [[name, str(count)] for name, count in shown["counters"].items()])
    return "\n".join(lines)


# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~ WATERLINE ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# Below here the world is real and may fail.  Above here it is neither.


# ==== SHELL =========================================================== I/O ====


class Log:
    """One event, one line, `key=value`, to standard error.  What the network causes is limited."""

    def __init__(self) -> None:
        self.verbose = False
        self.recent: dict[str, tuple[float, int]] = {}            # kind -> (second, lines in it)

    def info(self, text: str, *values: object) -> None:
        try:
            os.write(2, ((text % values if values else text) + "\n").encode("utf-8", "backslashreplace"))
        except OSError:
            pass

    def debug(self, text: str, *values: object) -> None:
        if self.verbose:
            self.info(text, *values)

    def limited(self, kind: str, text: str, *values: object) -> None:
        """At most five lines a second of one kind (kinds are few: they come from our own texts)."""
        second, lines = self.recent.get(kind, (0.0, 0))
        now = float(int(time.monotonic()))
        lines = lines + 1 if second == now else 1
        self.recent[kind] = (now, lines)
        if lines <= 5:
            self.info(text, *values)


log = Log()


def clock_now() -> Now:
    return Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


class Fatal(Exception):  # noqa: N818 - the end, with a reason for a person
    """The daemon, or the command, cannot go on."""


def read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def load_config(path: str) -> Config:
    try:
        return read_config(read_file(path).decode("utf-8-sig"), path)
    except OSError as why:
        raise ConfigError(f"{path}: {why.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None


def make_folder(path: str) -> None:
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        os.makedirs(folder, 0o700)


def make_secret(path: str) -> bytes:
    secret = os.urandom(KEY_LEN)
    try:
        make_folder(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(show_key(secret) + "\n")
            file.flush()
            os.fsync(fd)
    except OSError as why:
        raise Fatal(f"cannot make {path}: {why.strerror}") from None
    log.info("made key=%s", path)
    return secret


def load_secret(config: Config, make: bool) -> bytes:
    """The private key; made, readable by us alone, if it is missing and may be made."""
    def wrong(what: str) -> ConfigError:
        return ConfigError(f"{config.file}: [ddpd] key: {config.key} {what}")
    try:
        secret = public_key(read_file(config.key).decode("latin-1").strip())
    except FileNotFoundError:
        if not make:
            raise wrong("is missing (`ddpd.py genkey` makes one)") from None
        secret = make_secret(config.key)
    except OSError as why:
        raise wrong(f"cannot be read: {why.strerror}") from None
    except ValueError:
        raise wrong("holds no key (`ddpd.py genkey` makes one)") from None
    if os.stat(config.key).st_mode & 0o077:
        log.info("warning: %s is readable by others (chmod 600)", config.key)
    return secret


def write_all(fd: int, data: bytes, offset: int) -> None:
    if os.pwrite(fd, data, offset) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync_folder(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Store:
    """The lease file on a disk that may be full."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = LeaseFile()
        self.fd = -1                     # -1: what is on disk is not ours to change; `rewrite` first
        self.lock = -1
        self.retry_at = inf

    def acquire(self) -> None:
        """One daemon a lease file; Fatal if it has one."""
        make_folder(self.path)
        self.lock = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Fatal(f"{self.path} is in use: another ddpd runs") from None

    def read(self) -> tuple[dict[Key, tuple[int, Record]], list[Damage]] | None:
        """None: there is no file.  If it has our shape, it is written on; otherwise `rewrite` comes first."""
        try:
            lines = read_file(self.path).decode("utf-8", "replace").split("\n")
            found, damage = parse_lease_file(lines)
        except FileNotFoundError:
            return None
        except OSError as why:
            raise Fatal(f"cannot read {self.path}: {why.strerror}") from None
        except NewerFile as version:
            raise Fatal(f"{self.path} is of version {version}, this ddpd reads {FILE_VERSION}") from None
        self.file.serial = max((record["serial"] for _, record in found.values()), default=0)
        if not damage and self.lock >= 0 and self.file.adopt(lines, found):
            self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        return found, damage

    def rewrite(self, records: Iterable[Record]) -> None:
        """The whole file, beside the old one, then in its place; OSError leaves the old one."""
        temporary = self.path + ".new"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        file = LeaseFile(self.file.serial)
        try:
            with open(fd, "wb", closefd=False) as out:
                out.writelines(file.whole(records))
            os.fsync(fd)
            os.rename(temporary, self.path)
        except OSError:
            os.close(fd)
            os.unlink(temporary)
            raise
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.file, self.retry_at = fd, file, inf
        sync_folder(self.path)

    def save(self, changes: Mapping[Key, Record | None], now: Now) -> bool:
        """Write and flush; False if that cannot be done now."""
        if not changes:
            return True
        if self.fd < 0:
            return False
        first, after = self.file.batch(changes)
        try:
            for offset, data in first:
                write_all(self.fd, data, offset)
            os.fdatasync(self.fd)
            for offset, data in after:
                write_all(self.fd, data, offset)
        except OSError as why:
            log.info("cannot write %s: %s", self.path, why.strerror)
            os.close(self.fd)
            self.fd, self.retry_at = -1, now.boot + RETRY_DISK_S
            return False
        return True


# ==== KERNEL ========================================================== I/O ====

RTMGRP: Final = 0x1 | 0x10 | 0x100       # links, IPv4 and IPv6 addresses
NLM_F_DUMP: Final = 0x301                # with NLM_F_REQUEST
NLMSG_DONE: Final = 3
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12    # since Linux 4.20; the socket module has no names for them


def failed_lines(said: str) -> Iterator[tuple[int, str]]:
    """(line from 0, why) of what `ip -batch -force` says: reasons, then `Command failed -:N`."""
    why = ""
    for line in said.splitlines():
        if line.startswith("Command failed -:"):
            yield int(line.rpartition(":")[2]) - 1, why
        else:
            why = line


def run_command(command: list[str], stdin: str) -> str:
    """Its complaints; empty if it succeeded; OSError if it could not be run, or hangs."""
    log.debug("run command=\"%s\"%s", " ".join(command), "".join(f"\n    {line}" for line in stdin.splitlines()))
    try:
        done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False, timeout=CHILD_S)
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"{command[0]}: {os.strerror(errno.ETIMEDOUT)}") from None
    return "" if done.returncode == 0 else done.stderr.strip() or "failed"


def place_of(dev: str, address: Prefix) -> Key:
    """What the kernel takes for one address: IPv6 ones do not differ by length alone."""
    return dev, address.first, address.version, address.length if address.version == 4 else 0


class Kernel:
    """`ip` to change, netlink to look."""

    def __init__(self, mark: int) -> None:
        self.mark = mark
        self.installed: dict[Key, Thing] = {}
        self.pending: set[Key] = set()                            # could not be made yet
        self.busybox = False
        self.links = Links()
        self.monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self.monitor.bind((0, RTMGRP))
        self.monitor.setblocking(False)

    def dump(self, what: str) -> list[tuple[int, bytes]]:
        """Everything of one kind; the reply types are 0 above the table's."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
            sock.settimeout(CHILD_S)
            body = bytes(16)
            if what == "route":                                   # only ours: a full table takes seconds to read
                sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
                body = bytes((0, 0, 0, 0, 0, self.mark, 0, 0)) + bytes(4)
            sock.send(NLMSG.pack(NLMSG.size + len(body), RTM[what] + 2, NLM_F_DUMP, 1, 0) + body)
            replies: list[tuple[int, bytes]] = []
            while True:
                for kind, body in netlink_messages(sock.recv(65536)):
                    if kind <= NLMSG_DONE:
                        return replies
                    replies.append((kind, body))

    def look(self) -> Links:
        self.links = links_of(self.dump("link") + self.dump("address"))
        return self.links

    def look_at_all(self, made: Mapping[Key, Thing]) -> None:
        """`installed` becomes what is there and ours: by its mark, or by our record."""
        found: list[Thing | None] = [route_of(body, self.mark, self.links.names) for _, body in self.dump("route")]
        rules = {rule_of(body, self.mark) for _, body in self.dump("rule")}
        found += [thing for thing in made.values() if isinstance(thing, Rule) and thing in rules]
        before = self.installed
        self.installed = {thing_key(thing): thing for thing in found if thing is not None}
        there = self.addresses()
        for key, thing in made.items():
            if isinstance(thing, Address) and place_of(thing.dev, thing.address) in there:
                self.installed[key] = before.get(key, thing)      # with the lifetimes that we gave it

    def addresses(self) -> set[Key]:
        return {place_of(self.links.names.get(index, ""), own) for index, own in self.links.addresses}

    def changed(self) -> bool:
        """Has anything happened to links or addresses since the last look?"""
        for n in range(BATCH):
            try:
                self.monitor.recv(65536)
            except BlockingIOError:
                return n > 0
            except OSError:
                break                                             # overrun: look anyway
        return True

    def run(self, lines: list[tuple[int, str]]) -> dict[int, str]:
        """Each (IP version, words of `ip`); which failed, and why."""
        failed: dict[int, str] = {}
        for version in WIDTH:
            mine = [n for n, row in enumerate(lines) if row[0] == version]
            try:
                if mine and not self.run_batch(lines, mine, failed):
                    said = {n: run_command(["ip", f"-{version}", *lines[n][1].split()], "") for n in mine}
                    failed |= {n: why for n, why in said.items() if why}
            except OSError as why:
                failed |= dict.fromkeys(mine, str(why))
        return failed

    def run_batch(self, lines: list[tuple[int, str]], mine: list[int], failed: dict[int, str]) -> bool:
        """All at once.  False if they have to be run one by one: BusyBox has no -batch, a parse error ends one."""
        if self.busybox:
            return False
        said = run_command(["ip", f"-{lines[mine[0]][0]}", "-force", "-batch", "-"],
                           "".join(lines[n][1] + "\n" for n in mine))
        found = {mine[n]: why for n, why in failed_lines(said)}
        failed |= found
        return bool(found) or not said


def is_busybox() -> bool:
    try:
        done = subprocess.run(["ip", "-V"], capture_output=True, text=True, check=False, timeout=CHILD_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "iproute2" not in done.stdout + done.stderr


# ==== NETWORK ========================================================= I/O ====


def udp_socket() -> socket.socket:
    """IPv6 that also speaks IPv4, by mapped addresses."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock


def look_up(host: str, flags: int = 0) -> list[Path]:
    """Addresses of a name, as an IPv6 socket wants them.  Bytes: slim Python has no idna codec."""
    found = []
    for family, _, _, _, place in socket.getaddrinfo(host.encode(), 0, type=socket.SOCK_DGRAM, flags=flags):
        if family == socket.AF_INET6:
            found.append(Path(str(place[0]).partition("%")[0], 0, int(place[3])))  # type: ignore[misc]
        elif family == socket.AF_INET:
            found.append(Path(f"::ffff:{place[0]}", 0))
    return found


def listening(place: HostPort) -> socket.socket:
    sock = udp_socket()
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    try:
        found = look_up(place.host)
        sock.bind((found[0].host, place.port, 0, found[0].scope))
    except (OSError, IndexError) as why:
        raise Fatal(f"cannot listen on {place.host} port {place.port}: {why}") from None
    return sock


class Resolver:
    """Names in, addresses out, through a pipe.  A thread a name: one dead name server delays no other name."""

    def __init__(self) -> None:
        self.readable, self.writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.busy: set[tuple[str, str]] = set()
        self.done: deque[tuple[str, str, tuple[Path, ...]]] = deque()

    def look_up(self, grantor: str, host: str) -> None:
        try:
            self.done.append((grantor, host, tuple(look_up(host, socket.AI_NUMERICHOST))))
            os.write(self.writable, b".")
        except OSError:
            if (grantor, host) not in self.busy:
                self.busy.add((grantor, host))
                _thread.start_new_thread(self.wait_for, (grantor, host))

    def wait_for(self, grantor: str, host: str) -> None:
        """In the helper thread."""
        try:
            found = tuple(look_up(host))
        except (OSError, UnicodeError):
            found = ()
        self.done.append((grantor, host, found))
        os.write(self.writable, b".")

    def results(self) -> Iterator[tuple[str, str, tuple[Path, ...]]]:
        os.read(self.readable, 4096)
        while self.done:
            result = self.done.popleft()
            self.busy.discard(result[:2])
            yield result


@dataclass
class Dialled:
    """The socket on which one grantor is asked."""

    sock: socket.socket
    place: Path
    source: str


class Network:
    def __init__(self, listen: Iterable[HostPort]) -> None:
        self.listening = [listening(place) for place in listen]
        self.dialled: dict[str, Dialled] = {}
        self.resolver = Resolver()

    def drain(self, sock: socket.socket, door: int) -> Iterator[tuple[bytes, Path]]:
        """What is there to be read, a bounded batch of it."""
        for _ in range(BATCH):
            try:
                datagram, ancillary, _, place = sock.recvmsg(2048, 64)
            except BlockingIOError:
                return
            except OSError:
                continue                                          # an ICMP error, told at the next read
            yield datagram, Path(place[0], place[1], place[3], ancillary[0][2] if ancillary else b"", door)

    def send(self, datagram: bytes, path: Path) -> None:
        """By the socket, address and interface on which the ask came."""
        ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, path.info)] if path.info else []
        self.listening[path.door].sendmsg([datagram], ancillary, 0, (path.host, path.port, 0, path.scope))

    def dial(self, name: str, place: Path) -> Dialled:
        """The same socket as long as neither end's address changes.  OSError if there is no way there."""
        probe = udp_socket()
        try:
            probe.connect((place.host, place.port, 0, place.scope))
        except OSError:
            probe.close()
            raise
        source = probe.getsockname()[0]
        known = self.dialled.get(name)
        if known is not None and (known.place, known.source) == (place, source):
            probe.close()
            return known
        if known is not None:
            known.sock.close()
        self.dialled[name] = Dialled(probe, place, source)
        return self.dialled[name]


    def close(self) -> None:
        for sock in (*self.listening, *(dialled.sock for dialled in self.dialled.values())):
            sock.close()


class Talker:
    """A node and its sockets: what the daemon and a single `ask` have in common."""

    def __init__(self, node: Node, listen: Iterable[HostPort]) -> None:
        self.node, self.network = node, Network(listen)

    def hear(self, sock: socket.socket, door: int, name: str, now: Now) -> list[list[Effect]]:
        events = []
        for datagram, path in self.network.drain(sock, door):
            try:
                events.append(self.node.received(datagram, path, now, name))
            except Stranger as why:
                self.node.counters["drop stranger"] += 1
                log.limited("stranger", "stranger source=%s to_admit=\"[grantee NAME] key = %s\"",
                            path, show_key(why.key))
            except Drop as why:
                self.node.counters[f"drop {why}"] += 1
                log.debug("drop source=%s why=\"%s\"", path, why)
        return events

    def hear_all(self, readable: list[Any], now: Now) -> list[list[Effect]]:
        """Every socket that has something, one after the other."""
        doors = [(sock, door, "") for door, sock in enumerate(self.network.listening)]
        doors += [(dialled.sock, 0, name) for name, dialled in self.network.dialled.items()]
        events = [effects for row in doors if row[0] in readable for effects in self.hear(*row, now)]
        if self.network.resolver.readable in readable:
            events += [self.node.resolved(*result, now) for result in self.network.resolver.results()]
        if self.node.deadline <= now.boot:
            events.append(self.node.woke(now))
        return events

    def sockets(self) -> list[Any]:
        return [*self.network.listening, self.network.resolver.readable,
                *(dialled.sock for dialled in self.network.dialled.values())]

    def call(self, effect: Call, now: Now) -> None:
        grantee = self.node.grantees.get(effect.grantor)
        place = grantee.place() if grantee else None
        if place is None:
            return
        try:
            dialled = self.network.dial(effect.grantor, place)
            dialled.sock.send(self.node.compose(effect.grantor, dialled.source, now))
            log.debug("asked grantor=%s at=%s from=%s", effect.grantor, place, dialled.source)
        except OSError as why:
            log.limited("call", "cannot ask grantor=%s at=%s why=\"%s\"", effect.grantor, place, why.strerror)

    def look_up(self, effect: Lookup, _: Now) -> None:
        self.network.resolver.look_up(effect.grantor, effect.host)


# ==== HOOKS =========================================================== I/O ====


class Hooks:
    """One at a time; of events that wait, the latest of each grantor wins."""

    def __init__(self) -> None:
        self.waiting: dict[str, str] = {}
        self.running: subprocess.Popen[bytes] | None = None
        self.kill_at = inf

    def start(self, daemon: Daemon, now: Now) -> None:
        while self.running is None and self.waiting:
            name = next(iter(self.waiting))
            event = self.waiting.pop(name)
            grantee = daemon.node.grantees.get(name)
            if grantee is None or not grantee.contact.hook:
                continue
            try:
                self.running = subprocess.Popen([grantee.contact.hook, event], stdin=subprocess.DEVNULL,
                                                env={**os.environ, **environment_of(grantee, event, now)})
                self.kill_at = now.boot + HOOK_S
            except OSError as why:
                log.info("hook failed hook=%s why=\"%s\"", grantee.contact.hook, why.strerror)

    def check(self, now: Now) -> None:
        if self.running is None:
            return
        if now.boot >= self.kill_at:
            log.info("hook killed after=%d", HOOK_S)
            self.running.kill()
            self.running.wait()
        code = self.running.poll()
        if code is not None:
            log.debug("hook ended code=%d", code)
            self.running, self.kill_at = None, inf


# ==== CONTROL ========================================================= I/O ====


@dataclass
class Control:
    """One connection to the control socket: an order, an answer, the end."""

    sock: socket.socket
    until: float
    heard: bytes = b""
    unsent: bytes = b""
    asked: str = ""                      # a grantor's name, while its answer is waited for
    answers: int = 0

    def hear(self, daemon: Daemon, now: Now) -> None:
        data = self.sock.recv(MAX_CONTROL)
        self.heard += data
        if not data or len(self.heard) > MAX_CONTROL:
            self.until = -inf
        elif self.heard.endswith(b"\n") and not self.unsent and not self.asked:
            try:
                order = json.loads(self.heard)
                self.until = now.boot + min(3600.0, max(1.0, float(order.get("wait", CONTROL_S))))
                said = daemon.obey(self, str(order.get("do")), str(order.get("grantor", "")), now)
            except (ValueError, TypeError, AttributeError, RecursionError):
                said = {"error": "not understood"}
            self.say(said)

    def say(self, said: dict[str, Any] | None) -> None:
        self.heard, self.unsent = b"", b"" if said is None else json.dumps(said).encode() + b"\n"

    def send(self, now: Now) -> None:
        """As much as the reader takes; who stops reading is cut off."""
        sent = self.sock.send(self.unsent)
        self.unsent = self.unsent[sent:]
        self.until = now.boot + CONTROL_S if self.unsent else -inf

    def settle(self, node: Node, now: Now) -> None:
        """Has the grantor answered since `ask` came?"""
        grantee = node.grantees.get(self.asked)
        if grantee is None or grantee.answers > self.answers:
            self.asked = ""
            self.say(asked_of(grantee, now) | {"env": environment_of(grantee, "asked", now)} if grantee else {})


class Controls:
    """The control socket, and a bounded number of connections to it."""

    def __init__(self, path: str) -> None:
        make_folder(path)
        self.path = path
        self.open: list[Control] = []
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            if os.path.lexists(path):
                if not stat.S_ISSOCK(os.lstat(path).st_mode):
                    raise OSError(0, "there is something else")
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
                    if probe.connect_ex(path) != errno.ECONNREFUSED:
                        raise OSError(0, "another ddpd answers there")
                os.unlink(path)
            self.sock.bind(path)
        except OSError as why:
            raise Fatal(f"cannot listen on {path}: {why.strerror or why}") from None
        finally:
            os.umask(mask)
        self.sock.listen(MAX_CONTROLS)

    def serve(self, daemon: Daemon, readable: list[Any], now: Now) -> None:
        for control in list(self.open):
            try:
                self.attend(control, daemon, readable, now)
            except BlockingIOError:
                pass
            except OSError:
                control.until = -inf
            if control.until <= now.boot:
                self.open.remove(control)
                control.sock.close()
        if self.sock in readable:
            self.accept(now)

    def attend(self, control: Control, daemon: Daemon, readable: list[Any], now: Now) -> None:
        if control.sock in readable:
            control.hear(daemon, now)
        if control.asked:
            control.settle(daemon.node, now)
        if control.unsent:
            control.send(now)

    def accept(self, now: Now) -> None:
        """Where there is no room, who has been silent for longest goes."""
        try:
            sock, _ = self.sock.accept()
        except OSError:
            return
        sock.setblocking(False)
        if len(self.open) >= MAX_CONTROLS:
            oldest = min(self.open, key=lambda control: (bool(control.asked or control.unsent), control.until))
            self.open.remove(oldest)
            oldest.sock.close()
        self.open.append(Control(sock, now.boot + CONTROL_S))

    def sockets(self) -> list[Any]:
        return [self.sock, *(control.sock for control in self.open)]

    def close(self) -> None:
        self.sock.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass


# ==== DAEMON ========================================================== I/O ====


class Daemon(Talker):
    """Waits for the world, lets the node think, does what it says."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.store = Store(config.leases)
        self.store.acquire()
        super().__init__(Node(config, load_secret(config, make=True), boot_id(), os.urandom), config.listen)
        self.marked = False
        self.kernel = Kernel(config.mark)
        self.hooks = Hooks()
        self.controls = Controls(config.control)
        self.signals: list[int] = []
        self.stopping = False
        self.retry_install = inf

    # -- start and end -------------------------------------------------------------------

    def start(self) -> None:
        self.wake = self.catch_signals()
        gc.disable()                                              # 100,000 leases are no garbage: do not look
        now = clock_now()
        self.restore(now)
        gc.freeze()
        gc.enable()
        self.kernel.busybox = is_busybox()
        self.see_links()
        self.kernel.look_at_all(self.node.made)
        self.node.wanted.changed |= self.kernel.installed.keys() | self.node.wanted.things.keys()
        self.perform([self.node.start(now)])
        log.info("started version=%s key=%s listen=%s", VERSION, show_key(self.node.s.public),
                 ",".join(f"[{p.host}]:{p.port}" for p in self.config.listen) or "none")

    def restore(self, now: Now) -> None:
        """Take up what is on file; what is lost or damaged makes a grantor careful."""
        read = self.store.read()
        self.marked = os.path.exists(self.config.key + ".granted")
        if read is not None:
            found, damage = read
            damage += self.node.restore([record for _, record in found.values()], now)
            for line in damage:
                log.info("damaged file=%s line=%d text=%s", self.store.path, line.line, line.text[:200] or "cut short")
            self.node.recover(damage if self.marked else [], False, now)
        elif self.marked:
            log.info("recovering file=%s why=lost (remove %s.granted to end it)", self.store.path, self.config.key)
            self.node.recover([], True, now)
        if not self.marked:
            self.node.grantor.recovering_until = -inf
        changes: dict[Key, Record | None] = dict.fromkeys(self.node.outdated)
        if not self.store.save(changes | {("run",): self.node.run_record(False, now)}, now):
            self.rewrite(clean=False)

    def rewrite(self, clean: bool) -> None:
        now = clock_now()
        try:
            self.store.rewrite(self.node.records(clean, now))
            if self.node.grantor.disk_full:
                log.info("lease file can be written again file=%s", self.store.path)
            self.node.grantor.disk_full = False
        except OSError as why:
            log.limited("disk", "cannot write %s: %s", self.store.path, why.strerror)
            self.node.grantor.disk_full = True
            self.store.retry_at = now.boot + RETRY_DISK_S

    def leave(self) -> None:
        """A restart is no outage: nothing is released, nothing removed."""
        self.rewrite(clean=True)
        self.controls.close()
        log.info("stopped")

    # -- effects -------------------------------------------------------------------------

    def perform(self, events: list[list[Effect]]) -> None:
        """Save all with one flush, install, then send: nothing is promised that could be forgotten."""
        now = clock_now()
        lost = self.save([effect for effects in events for effect in effects if isinstance(effect, Save)], now)
        if any(isinstance(effect, Install) for effects in events for effect in effects):
            self.install(now)
        for effects in events:
            for effect in effects:
                if not (lost and isinstance(effect, Send)):       # who asked in this batch asks again
                    act = self.ACTIONS.get(type(effect))
                    if act is not None:
                        act(self, effect, now)

    def save(self, saves: list[Save], now: Now) -> set[Key]:
        """The new leases that could not be written."""
        if not saves:
            return set()
        if self.store.save({save.key: save.record for save in saves}, now):
            if not self.marked and any(save.key[0] == "granted" for save in saves):
                self.mark_granted()
            return set()
        lost = {save.key for save in saves if save.promise}
        self.node.grantor.unsaved(lost)
        return lost

    def mark_granted(self) -> None:
        """Beside the key: from now on a missing lease file is a lost one."""
        try:
            with open(self.config.key + ".granted", "a"):
                self.marked = True
        except OSError as why:
            log.limited("marker", "cannot write %s.granted: %s", self.config.key, why.strerror)

    def install(self, now: Now) -> None:
        """Make the kernel equal to what is wanted, as far as it has changed."""
        node, kernel = self.node, self.kernel
        keys = node.wanted.changed | kernel.pending
        node.wanted.changed.clear()
        gone, new = plan(kernel.installed, node.wanted.things, keys)
        new = [thing for thing in new if self.may_make(thing)]
        kernel.pending = {key for key in keys if key in node.wanted.things
                          and kernel.installed.get(key) != node.wanted.things[key]}
        if not gone and not new:
            return
        records = {thing_key(thing): thing for thing in new if not isinstance(thing, Route)}
        self.record_made(records.keys() - node.made.keys(), records, now)
        kernel.run([(version_of(thing), line) for thing in gone for line in delete_lines(thing, kernel.mark)])
        lines = [(version_of(thing), add_line(thing, kernel.mark, now)) for thing in new]
        failed = kernel.run(lines)
        for thing in gone:
            kernel.installed.pop(thing_key(thing), None)
        self.note_made(new, failed, lines)
        if gone or failed:
            self.see_links()
        there = kernel.addresses()
        over = [thing for thing in gone if not isinstance(thing, Address) or place_of(*thing[:2]) not in there]
        over += [thing for n, thing in enumerate(new) if n in failed and thing_key(thing) not in kernel.installed]
        self.strike_out([thing_key(thing) for thing in over], now)

    def note_made(self, new: list[Thing], failed: Mapping[int, str], lines: list[tuple[int, str]]) -> None:
        for n, thing in enumerate(new):
            key = thing_key(thing)
            if n in failed:
                log.limited("install", "cannot install command=\"ip -%d %s\" why=\"%s\"", *lines[n], failed[n])
            else:
                self.kernel.installed[key] = thing
                self.kernel.pending.discard(key)
        self.retry_install = clock_now().boot + RETRY_INSTALL_S if failed else inf

    def may_make(self, thing: Thing) -> bool:
        """Not on an interface that is not there; not over a foreign address."""
        dev = thing.dev if isinstance(thing, Address) else thing.reach.dev if isinstance(thing, Route) else ""
        if dev and dev not in self.kernel.links.names.values():
            if thing_key(thing) not in self.kernel.pending:
                log.info("waiting for interface=%s", dev)
            return False
        if not isinstance(thing, Address) or thing_key(thing) in self.node.made:
            return True
        return place_of(thing.dev, thing.address) not in self.kernel.addresses()

    def record_made(self, keys: Iterable[Key], things: Mapping[Key, Thing], now: Now) -> None:
        """Before it is made: what carries no mark in the kernel."""
        changes: dict[Key, Record | None] = {}
        for key in keys:
            self.node.made[key] = things[key]
            record = made_record(things[key])
            changes[key_of(record)] = record
        self.store.save(changes, now)

    def strike_out(self, keys: Iterable[Key], now: Now) -> None:
        """After it is unmade."""
        things = [self.node.made.pop(key) for key in keys if key in self.node.made]
        self.store.save({key_of(made_record(thing)): None for thing in things}, now)

    def see_links(self) -> None:
        try:
            self.node.links = self.node.grantor.links = self.kernel.look()
        except OSError as why:
            log.limited("links", "cannot see links why=\"%s\"", why)

    def send(self, effect: Send, _: Now) -> None:
        try:
            self.network.send(effect.datagram, effect.path)
        except OSError as why:
            self.node.counters["send failed"] += 1
            log.limited("send", "cannot send to=%s why=\"%s\"", effect.path, why.strerror)

    def hook(self, effect: Hook, now: Now) -> None:
        self.hooks.waiting[effect.grantor] = effect.event
        self.hooks.start(self, now)

    def note(self, effect: Note, _: Now) -> None:
        kind = effect.text.partition(" ")[0]
        if kind in ("refused", "clone", "nudged"):                # a peer can cause as many as it likes
            log.limited(kind, "%s", effect.text)
        else:
            log.info("%s", effect.text)

    ACTIONS: ClassVar[Mapping[type[Any], Callable[[Daemon, Any, Now], None]]] = {
        Send: send, Call: Talker.call, Lookup: Talker.look_up, Hook: hook, Note: note,
    }

    # -- the loop ------------------------------------------------------------------------

    def serve(self) -> None:
        while not self.stopping:
            readable = self.wait()
            now = clock_now()
            events = self.hear_all(readable, now)
            self.perform(events + self.other_events(readable, now))
            self.controls.serve(self, readable, now)
            self.tend(now)
        self.leave()

    def wait(self) -> list[Any]:
        now = clock_now()
        until = min(self.node.deadline, self.store.retry_at, self.hooks.kill_at, self.retry_install,
                    *(control.until for control in self.controls.open), inf)
        sockets = [*self.sockets(), self.kernel.monitor, self.wake, *self.controls.sockets()]
        writing = [control.sock for control in self.controls.open if control.unsent]
        timeout = None if until == inf else max(0.0, min(until - now.boot, 1e6))
        return select.select(sockets, writing, [], timeout)[0]

    def other_events(self, readable: list[Any], now: Now) -> list[list[Effect]]:
        events: list[list[Effect]] = []
        if self.kernel.monitor in readable and self.kernel.changed():
            events.append(self.links_changed())
        if self.wake in readable:
            os.read(self.wake, 4096)
            while self.signals:
                events.append(self.signalled(self.signals.pop(0), now))
        return events

    def links_changed(self) -> list[Effect]:
        """Look again; what is ours and gone is made again.  Our own changes wake us too: they change nothing."""
        before = self.kernel.links
        self.see_links()
        if self.kernel.links == before:
            return []
        try:
            self.kernel.look_at_all(self.node.made)
        except OSError as why:                                    # the next event, or retry, finds it
            log.limited("links", "cannot see routes why=\"%s\"", why)
            self.retry_install = clock_now().boot + RETRY_INSTALL_S
        self.node.wanted.changed |= self.node.wanted.things.keys()
        return [Install()]

    def tend(self, now: Now) -> None:
        """What is due beside the node's own deadline."""
        self.hooks.check(now)
        self.hooks.start(self, now)
        if now.boot >= self.store.retry_at:
            self.rewrite(clean=False)
        if now.boot >= self.retry_install:
            self.retry_install = inf
            self.install(now)

    # -- signals -------------------------------------------------------------------------

    def catch_signals(self) -> int:
        readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, lambda n, _: self.signals.append(n))
        return readable

    def signalled(self, number: int, now: Now) -> list[Effect]:
        if number in (signal.SIGTERM, signal.SIGINT):
            self.stopping = True
        elif number == signal.SIGHUP:
            return self.reload(now)[1]
        elif number == signal.SIGUSR1:
            return self.node.operate(Event.NUDGED, "", now)
        return []

    def reload(self, now: Now) -> tuple[str, list[Effect]]:
        """What is wrong with the new configuration, or nothing and what it makes us do."""
        try:
            config = load_config(self.config.file)
        except ConfigError as why:
            log.info("reload refused why=\"%s\"", why)
            return str(why), []
        fixed = {key: getattr(self.config, key) for key in ("key", "listen", "leases", "control", "mark")}
        changed = [key for key, value in fixed.items() if getattr(config, key) != value]
        if changed:
            log.info("reload: %s changed: takes effect after a restart", ", ".join(changed))
        config = replace(config, **fixed)
        self.config = config
        if not os.path.exists(config.key + ".granted") and self.node.grantor.recovering_until > now.boot:
            self.node.grantor.recovering_until = now.boot         # the operator has removed it to say so
        log.info("reloaded file=%s", config.file)
        effects = self.node.reconfigure(config, now)
        for name in self.network.dialled.keys() - self.node.grantees.keys():
            self.network.dialled.pop(name).sock.close()
        return "", effects

    # -- orders from the control socket ----------------------------------------------------

    def obey(self, control: Control, order: str, name: str, now: Now) -> dict[str, Any] | None:
        """None: the answer comes later."""
        if order == "status":
            return status_of(self.node, now)
        if order == "reload":
            why, effects = self.reload(now)
            self.perform([effects])
            return {"error": why} if why else {}
        if order not in ("renew", "release", "ask"):
            return {"error": f"no such order: {order}"}
        names = [name] if name else list(self.node.grantees)[: 1 if order == "ask" else None]
        if not names or not self.node.grantees.keys() >= set(names):
            have = ", ".join(self.node.grantees)
            return {"error": f"no grantor named '{name}' (have: {have})" if have else "this node asks no grantor"}
        if order == "ask":
            control.asked, control.answers = names[0], self.node.grantees[names[0]].answers
        for each in names:
            self.perform([self.node.operate(Event.RELEASE if order == "release" else Event.NUDGED, each, now)])
        return None if order == "ask" else {}


# ==== COMMANDS ======================================================== I/O ====


@dataclass
class Options:
    """The command line."""

    file: str = "/etc/ddpd.conf"
    words: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    wait_s: float = 10.0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def order(config: Config, do: str, grantor: str = "", wait_s: float = CONTROL_S) -> dict[str, Any] | None:
    """Tell the running daemon; None if there is none, Fatal if it refuses or does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(config.control)
        except OSError as why:
            if isinstance(why, PermissionError):
                raise Fatal(f"{config.control}: {why.strerror}") from None
            return None
        sock.settimeout(wait_s + 1)
        heard = b""
        try:
            sock.sendall(json.dumps({"do": do, "grantor": grantor, "wait": wait_s}).encode() + b"\n")
            while data := sock.recv(1 << 20):
                heard += data
        except OSError:
            pass
    said: dict[str, Any] = json.loads(heard) if heard.endswith(b"\n") else {"silent": True}
    if "error" in said:
        raise Fatal(said["error"])
    return said


def told(config: Config, do: str, grantor: str = "") -> dict[str, Any]:
    said = order(config, do, grantor)
    if said is None or "silent" in said:
        raise Fatal(f"no daemon answers at {config.control}")
    return said


def run(options: Options) -> int:
    config = load_config(options.file)
    log.verbose = "-v" in options.flags
    daemon = Daemon(config)
    daemon.start()
    daemon.serve()
    return 0


def warnings(config: Config) -> Iterator[str]:
    """What is allowed, but probably not meant."""
    if config.pools:
        yield "note: after a change, reload; a restart forgets sessions, so grantees cannot be nudged"
    for agreement in config.agreements.values():
        if not agreement.pools and not agreement.pins:
            yield f"warning: [grantee {agreement.name}]: nothing can be given"
    for contact in config.contacts:
        for line in contact.lines:
            for dev, number in lan_numbers(line.lans):
                if lan_address(line.prefix, number, contact.suffix) is None:
                    yield f"warning: [grantor {contact.name}] ask: {line.prefix} has no subnet {number} for {dev}"


def check(options: Options) -> int:
    config = load_config(options.file)
    if os.path.exists(config.key):
        load_secret(config, make=False)
    counts = {"pools": config.pools, "grantees": config.agreements, "grantors": config.contacts}
    say(f"{config.file}: ok ({', '.join(f'{len(found)} {name}' for name, found in counts.items())})")
    for warning in warnings(config):
        say(f"{config.file}: {warning}")
    return 0


def genkey(_: Options) -> int:
    say(show_key(os.urandom(KEY_LEN)))
    return 0


def pubkey(_: Options) -> int:
    try:
        say(show_key(keypair(public_key(sys.stdin.read().strip())).public))
    except ValueError as why:
        raise Fatal("standard input holds no private key (`ddpd.py genkey` makes one)") from why
    return 0


def introduce(options: Options) -> int:
    """The section that the other side has to paste."""
    config = load_config(options.file)
    public = show_key(keypair(load_secret(config, make=True)).public)
    host = socket.gethostname()
    if config.listen:
        own = [place for place in config.listen if place.host not in ("::", "0.0.0.0")]  # noqa: S104 - any address
        place = own[0] if own else HostPort(host, config.listen[0].port)
        pool = max(config.pools, key=lambda pool: pool.prefix.version, default=None)
        wanted = ("::/" if pool.prefix.version == 6 else "0.0.0.0/") + str(pool.give[0]) if pool else "::/64"
        say(f"; for those who ask this node\n[grantor {host}]\nkey     = {public}\n"
            f"address = {f'[{place.host}]' if ':' in place.host else place.host}:{place.port}\nask     = {wanted}\n")
    if config.contacts or not config.listen:
        say(f"; for those whom this node asks\n[grantee {host}]\nkey   = {public}\npools = POOL")
    return 0


def chosen(options: Options, config: Config) -> Contact:
    named = options.words[0] if options.words else config.contacts[0].name if config.contacts else ""
    for contact in config.contacts:
        if contact.name == named:
            return contact
    raise Fatal(f"no grantor named '{named}' (have: {', '.join(c.name for c in config.contacts) or 'none'})")


def ask_once(config: Config, contact: Contact, event: Event, wait_s: float) -> dict[str, Any]:
    """A whole exchange without a daemon."""
    alone = replace(config, pools=(), agreements={}, contacts=(replace(contact, install=False, hook=""),))
    node = Node(alone, load_secret(config, make=False), boot_id(), os.urandom)
    now = clock_now()
    read = Store(config.leases).read() if os.access(config.leases, os.R_OK) else None
    node.restore([record for _, record in read[0].values()] if read else [], now)
    node.start(now)
    grantee, talker = node.grantees[contact.name], Talker(node, ())
    effects = grantee.step(event, now)
    until = now.boot + wait_s
    while not grantee.answers and now.boot < until:
        for effect in effects:
            if isinstance(effect, Call):
                talker.call(effect, now)
            elif isinstance(effect, Lookup):
                talker.look_up(effect, now)
        timeout = max(0.0, min(until, node.deadline) - now.boot)
        readable = select.select(talker.sockets(), [], [], timeout)[0]
        now = clock_now()
        effects = [effect for effects in talker.hear_all(readable, now) for effect in effects]
    talker.network.close()
    return asked_of(grantee, now) | {"env": environment_of(grantee, "asked", now)} if grantee.answers else {}


def show_asked(said: Mapping[str, Any], environment: Mapping[str, str], flags: set[str]) -> None:
    if "--json" in flags:
        say(json.dumps(said))
    elif "--env" in flags:
        for name, value in environment.items():
            quoted = value.replace("'", "'\\''")                   # a grantor's words must not reach a shell
            say(f"{name}='{quoted}'")
    else:
        for grant in said["grants"]:
            say(f"slot {grant['slot']}: {grant['prefix']} preferred {lasting(grant['preferred'])} "
                f"valid {lasting(grant['valid'])}")
        for refused in said["refused"]:
            say(f"slot {refused['slot']}: refused: {refused['reason']} {refused['text']}")


def ask(options: Options) -> int:
    """Through the daemon if one runs, else by ourselves; nothing is installed."""
    config = load_config(options.file)
    contact = chosen(options, config)
    said = order(config, "ask", contact.name, options.wait_s)
    if said is None:
        said = ask_once(config, contact, Event.NUDGED, options.wait_s)
    if "grants" not in said:
        said = {"grantor": contact.name, "status": "SILENT", "grants": [], "refused": [], "options": {}}
        sys.stderr.write(f"ddpd: {contact.name} does not answer\n")
    show_asked({name: value for name, value in said.items() if name != "env"}, said.get("env", {}), options.flags)
    if said["status"] == "SILENT":
        return 3
    return 1 if said["refused"] else 0


def status(options: Options) -> int:
    shown = told(load_config(options.file), "status")
    say(json.dumps(shown) if "--json" in options.flags else status_text(shown))
    return 0


def renew(options: Options) -> int:
    told(load_config(options.file), "renew", "".join(options.words[:1]))
    return 0


def release(options: Options) -> int:
    config = load_config(options.file)
    if order(config, "release", "".join(options.words[:1])) is not None:
        return 0
    contact = chosen(options, config)
    if not ask_once(config, contact, Event.RELEASE, options.wait_s):
        sys.stderr.write(f"ddpd: {contact.name} does not answer\n")
        return 3
    store = Store(config.leases)
    store.acquire()
    read = store.read()
    held = [key for key in read[0] if key[:2] == ("held", show_key(contact.key))] if read else []
    store.save(dict.fromkeys(held), clock_now())                  # so that the next start does not install it
    return 0


def reload(options: Options) -> int:
    told(load_config(options.file), "reload")
    return 0


def clean(options: Options) -> int:
    """Remove all that ddpd made in the kernel, and the record of it."""
    config = load_config(options.file)
    store = Store(config.leases)
    store.acquire()
    now = clock_now()
    read = store.read()
    things = [made_of(record) for _, record in read[0].values() if record["kind"] == "made"] if read else []
    made = {thing_key(thing): thing for thing in things}
    kernel = Kernel(config.mark)
    kernel.busybox = is_busybox()
    kernel.look()
    kernel.look_at_all(made)
    gone, _ = plan(kernel.installed, {}, kernel.installed)
    lines = [(version_of(thing), line) for thing in gone for line in delete_lines(thing, config.mark)]
    failed = kernel.run(lines)
    if failed:
        raise Fatal(f"cannot remove: {'; '.join(f'{lines[n][1]} ({why})' for n, why in failed.items())}")
    store.save({key_of(made_record(thing)): None for thing in things}, now)
    if read and ("run",) in read[0]:
        store.save({("run",): read[0]["run",][1]}, now)           # a second batch blanks the lines of the first
    say(f"removed {len(gone)}")
    return 0


def decode_ask(options: Options, datagram: bytes) -> None:
    """Only if there is a key that it could be for."""
    try:
        s = keypair(load_secret(load_config(options.file), make=False))
    except ConfigError:
        return
    ours = mac(mac1_key(s.public), datagram[: -2 * MAC_LEN]) == datagram[-2 * MAC_LEN : -MAC_LEN]
    say(f"for us    {'yes' if ours else 'no'}")
    if ours:
        try:
            handshake = Handshake(s, s.public, b"ddpd" + datagram[:ID_LEN])
            body = datagram[ID_LEN : -2 * MAC_LEN]
            peer = handshake.read_static(body)
            say(f"peer      {show_key(peer)}")
            message = decode(handshake.read_payload(body, dh(s.secret, peer)))
        except Drop as why:
            say(f"drop      {why}")
            return
        for row in message.table:
            say(f"{row.name:9} {getattr(message, row.name)}")


PARTS: Final[dict[str, tuple[tuple[str, int | None, int | None], ...]]] = {
    "ask":    (("id", 4, 8), ("e", 8, 40), ("s sealed", 40, 88), ("payload", 88, -32), ("mac1", -32, -16),
               ("mac2", -16, None)),
    "answer": (("id", 4, 8), ("e", 8, 40), ("payload", 40, None)),
    "cookie": (("id", 4, 8), ("nonce", 8, 20), ("cookie", 20, None)),
    "sealed": (("session", 4, 12), ("counter", 12, 20), ("payload", 20, None)),
}


def decode_command(options: Options) -> int:
    """A datagram's parts, as far as they can be read; with our key, a first ask to us wholly."""
    try:
        datagram = bytes.fromhex("".join(options.words) or sys.stdin.read())
        kind = kind_of(datagram)
    except ValueError:
        raise Fatal("want the datagram as hexadecimal digits") from None
    except Drop as why:
        raise Fatal(f"not a datagram of ddpd: {why}") from None
    say(f"kind      {kind}\nversion   {datagram[1]}\nlength    {len(datagram)}")
    for name, start, end in PARTS[kind]:
        say(f"{name:9} {datagram[start:end].hex()}")
    if kind == "ask":
        decode_ask(options, datagram)
    return 0


def show_commands(_: Options) -> int:
    say(f"ddpd {VERSION}: asks for IP prefixes over UDP, and gives them\nusage: ddpd.py [-c FILE] COMMAND")
    for line in table("", [[name, command.usage, command.meaning] for name, command in COMMANDS.items()]):
        say(line)
    return 0


def show_version(_: Options) -> int:
    say(VERSION)
    return 0


class Command(NamedTuple):
    run: Callable[[Options], int]
    usage: str
    meaning: str


COMMANDS: Final = {
    "run":       Command(run, "[-v]", "in the foreground, log to standard error (also without a command)"),
    "check":     Command(check, "", "read the configuration, say what is wrong and where"),
    "genkey":    Command(genkey, "", "print a new private key"),
    "pubkey":    Command(pubkey, "< KEY", "print the public key of a private key"),
    "introduce": Command(introduce, "", "print the section that the other side has to paste"),
    "ask":       Command(ask, "[GRANTOR] [--json|--env] [--wait SECONDS]", "ask once, print what was granted"),
    "status":    Command(status, "[--json]", "pools, leases, counters of the running daemon"),
    "renew":     Command(renew, "[GRANTOR]", "ask again now"),
    "release":   Command(release, "[GRANTOR] [--wait SECONDS]", "give leases back, be quiet until `renew`"),
    "reload":    Command(reload, "", "read the configuration again, without losing a lease"),
    "clean":     Command(clean, "", "without a daemon: remove all that ddpd made in the kernel"),
    "decode":    Command(decode_command, "HEX", "a datagram's parts, as far as they can be read"),
    "help":      Command(show_commands, "", "this list (also --help)"),
    "version":   Command(show_version, "", "the version (also --version)"),
}
FLAGS: Final = {"-h": "help", "--help": "help", "--version": "version"}


def parse_options(argv: list[str]) -> Options:
    options = Options()
    left = list(argv)
    while left:
        word = left.pop(0)
        if word in ("-c", "--wait"):
            if not left:
                raise Fatal(f"{word} needs a value")
            value = left.pop(0)
            if word == "-c":
                options.file = value
            else:
                options.wait_s = float(whole(1, 3600)(value))
        elif word in ("--json", "--env", "-v", "-h", "--help", "--version"):
            options.flags.add(word)
        elif word.startswith("-"):
            raise Fatal(f"no such option: {word} (--help lists them)")
        else:
            options.words.append(word)
    return options


def command_of(options: Options) -> Command:
    wanted = next((name for flag, name in FLAGS.items() if flag in options.flags), "run")
    name = options.words.pop(0) if options.words and wanted == "run" else wanted
    if name not in COMMANDS:
        raise Fatal(f"no such command: {name} (did you mean '{nearest(name, COMMANDS)}'? --help lists them)")
    command = COMMANDS[name]
    if len(options.words) > command.usage.count("[G") and name != "decode":
        raise Fatal(f"{name} takes no '{options.words[-1]}' (usage: ddpd.py [-c FILE] {name} {command.usage})")
    return command


def main(argv: list[str]) -> int:
    try:
        options = parse_options(argv)
        return command_of(options).run(options)
    except (ConfigError, Fatal, ValueError) as why:
        sys.stderr.write(f"ddpd: {why}\n")
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)              # the reader has had enough
        return 0
    except OSError as why:
        sys.stderr.write(f"ddpd: {why.filename or ''}: {why.strerror}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
