#!/usr/bin/env python3
"""ddpd: the Dumb Distributed Prefix Daemon.  Ask for an IP prefix over UDP; give one.

A *grantor* gives prefixes, a *grantee* asks for them and holds them; one daemon can be both.  A *peer* is a
public key.  A *pool* is what may be given, the *agreement* what one grantee may have of it.  A *lease* is a prefix of
one grantee's until it expires; an address is a lease of full length.  A *slot* numbers the leases of one grantee.  To
*install* is to make a lease real in the kernel, to *drop* is to not answer, to *nudge* is to say: ask again now.

How a datagram becomes a route.  Read left to right; nothing flows back.

    socket - Node.received - open - decode - Grantor.handle_ask | Grantee.answered
    timer  - Node.on_timer ----------------------'        |
                                          Wanted: things, records; [Effect]
    ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~|~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~ WATERLINE
                                     Daemon.converge: save . install . send

Above the WATERLINE all is pure: bytes, values and `now` come in, values go out.  No clock, socket, file,
subprocess or log is reached from there; random bytes come from a function given at construction.  Below it
the world is real and may fail.

The sections, in reading order:

    CONSTANTS, PREFIXES      every limit in one table; addresses and prefixes
    WIRE, CRYPTO, DATAGRAMS  messages as tables; Noise; the four kinds of datagrams, and sessions
    VALUES, SETTINGS, CONFIG what can be configured, a field a key; text to a Config
    POOLS, LEASE FILE        what of a prefix is free; records, a line each
    PLANS, WIREGUARD         what should be in the kernel, a class a kind; netlink; cryptokey routing
    EFFECTS, LEASES, STOCK   what is done at once; what was given to whom; what of all pools is taken
    CASES, GRANTOR           one slot of an ask, decided by a chain; a lease's life
    HOLDINGS, GRANTEE        what is held; a state machine for each grantor, which is its TABLE
    SESSIONS                 both ends of the native door: who sent it, and is it new?
    NEIGHBOURS               solicitations answered in others' stead
    NODE                     both roles side by side, and what each is to know of the other
    DOOR, STATUS, HANDING ON wg-dynamic; what people, scripts, hooks and other programs are told
    ~ WATERLINE ~
    SHELL, TABLES, KERNEL    files, log, site handlers; `wg`; `ip` and netlink
    NETWORK, PACKETS, HOOKS  sockets; packet sockets; programs of the operator
    CONTROL, DOORS           connections to the control socket, and of wg-dynamic
    DAEMON                   saves, brings the kernel to what is wanted, sends; the loop
    COMMANDS                 what is typed

To follow one ask: `Daemon.serve`, `Node.heard_ask`, `Grantor.handle_ask`, `Daemon.converge`.  One expiry:
`Node.on_timer`, `Grantor.on_timer`, `Grantor.end`.  One configuration key: its field in SETTINGS, and who reads it.
One lease: `Grantor.begin`, `renew`, `end`, `forget`.
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
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from copy import copy
from dataclasses import dataclass, field, fields, replace
from enum import Enum, IntEnum
from functools import cache, cached_property, partial
from heapq import merge
from itertools import chain, groupby, islice, pairwise
from math import inf
from operator import itemgetter
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from sys import byteorder
from types import FrameType, MappingProxyType
from typing import IO, Any, ClassVar, Final, Generic, NamedTuple, TypeVar, dataclass_transform

try:
    from nacl._sodium import ffi, lib  # what nacl.bindings wraps: its checks cost more than a small datagram's cipher
except ImportError as missing:
    raise SystemExit(f"ddpd: PyNaCl is missing ({missing}): install python3-nacl (Debian), python3-pynacl (OpenWrt), "
                     "or `pip install pynacl`") from None

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
WG_PORT:  Final = 51820
FOUND_S:  Final = 15.0                   # seconds until what was found on a tunnel, and is not confirmed, goes
DOOR:     Final = 970                    # wg-dynamic's, of TCP
MARK:     Final = 221                  # our routes' protocol; their metric, our rules' preference: 100 times it

# Every limit, in one table: docs/reference.md prints it.
MAX_DATAGRAM:   Final = 1232           # bytes of any datagram, in or out
FIRST_ASK:      Final = 512            # bytes of the first ask, padded
ASK_STEP:       Final = 128            # later asks are a multiple of this many bytes
MAX_TEXT:       Final = 200            # printable ASCII letters of a text
MAX_SLOTS:      Final = 16             # slots in one ask, `ask` lines towards one grantor
MAX_PENDING:    Final = 4              # unanswered handshakes that a grantee keeps; pending sessions per peer
PROOF_S:        Final = 10.0           # seconds for an ask that was answered STALE to come sealed, if others wait
MAX_SESSIONS:   Final = 250_000        # sessions of a grantor
SESSION_S:      Final = 23 * 3600      # seconds until a session is forgotten
ERASE_S:        Final = 1800           # seconds between two looks for sessions whose keys have to be erased
COOKIE_S:       Final = 120            # seconds for which a cookie, and the secret behind it, is valid
MAX_LINE:       Final = 4096           # bytes of a log line: what a pipe takes at once
LATE_S:         Final = 120            # seconds after which an answer is too late
MAX_AGAIN_S:    Final = 86_400         # longest time, in seconds, until a refused slot is asked for again
GIVE_BACK_S:    Final = 2.0            # seconds until a grant that was not accepted is given back
SAME_PORT_ASKS: Final = 4              # unanswered asks in a row before another UDP port is used
NAMES_S:        Final = 60             # seconds between two lookups of a grantor's name while it answers
SOURCE_ASKS:    Final = 20             # handshakes a second from one IPv4 address or IPv6 /64, under load
STALE_GAP_S:    Final = 1.0            # seconds between two STALE answers to one peer at one source
REACH_GAP_S:    Final = 3.0            # shortest time, in seconds, between two changes of the route to a grantee
MAX_FORMER:     Final = 4              # ended leases held back per grantee, beside the last one of each slot
MAX_DEPRECATED: Final = 4              # deprecated leases kept per grantee
NUDGES:         Final = 8              # nudges sent without an answer, at intervals that double from 1 s
NUDGE_GAP_S:    Final = 0.5            # shortest time, in seconds, between two nudges that a grantee acts on
NUDGES_A_S:     Final = 200            # nudges sent per second
BATCH:          Final = 64             # datagrams read from one socket before answers are sent
SLOTS_AT_ONCE:  Final = 64             # slots of one grantee decided in one such batch
PROVISIONAL_S:  Final = 600            # seconds for which an unconfirmed lease from before a reboot is used
SHOW_S:         Final = 1.2            # seconds for which a prefix lost in a reboot is shown as preferred
SHOWN_S:        Final = 60             # seconds during which that is repeated, at intervals that double
DHCP_S:         Final = 300            # lifetime, in seconds, of a DHCPv4 lease on a LAN
MAX_LOST:       Final = 64             # lost subnets announced through radvd
LINGER_S:       Final = 7200           # seconds that a lost prefix stays valid (RFC 9096)
CHILD_S:        Final = 5              # seconds that a command may run
HOOK_S:         Final = 30             # seconds that a hook may run
STOP_S:         Final = 2              # seconds that hooks may run when ddpd exits
RELEASE_S:      Final = 1.5            # seconds to wait at exit for the answer to a release (netifd kills after 5)
RELEASE_UNKNOWN_S: Final = 0.3         # the same for a grantor that never answered, or cannot be asked
STATUS_S:       Final = 5              # seconds between two status files
RETRY_STATUS_S: Final = 60             # seconds until a status file that could not be written is tried again
MAX_CONTROLS:   Final = 16             # simultaneous control connections
CONTROL_S:      Final = 10             # seconds for a control connection to ask, and to read its answer
MAX_CONTROL:    Final = 65_536         # bytes of a control message to the daemon
MAX_SHOWN:      Final = 2_000          # leases in one `status` (`leases` shows all)
FILE_ROWS:      Final = 500            # leases in a status file
REVIEW_BATCH:   Final = 500            # leases that expire, or are reviewed, before asks are handled again
PIN_BATCH:      Final = 1000           # changed pins applied one by one; beyond that the pools are rebuilt
REVOKED_S:      Final = 60             # seconds after a revocation until the grantee may get something else
FADED_S:        Final = 60             # T1, in seconds, of leases whose pool is deprecated
SLOW_LINKS_S:   Final = 0.02           # seconds that reading the links may take before it is done less often
HANDLER_S:      Final = 1.0            # seconds that a site handler may take
SLOW_S:         Final = 0.05           # seconds after which a site handler is logged as slow
MAX_UNWRITTEN:  Final = 10_000         # lines kept for an accounting log that cannot be written
MAX_UNKNOWN:    Final = 10             # unknown ids of pins that `check` lists
MAX_OWN:        Final = 262_144        # bytes of a grantee's file, a handlers file, or a line of pins
PINS_KEPT:      Final = 0.7            # share of the pins that a reload must keep, unless forced
RETRY_INSTALL_S: Final = 30            # seconds until what the kernel refused is tried again
ROUTES_S:       Final = 0.2            # seconds over which changes of routes are collected
REPAIRS:        Final = 10             # repairs at once of what others removed; then one per second
MAX_ANSWERS:    Final = 1024           # advertisements cached for repeated solicitations
MAX_ALIKE:      Final = 64             # solicitors whose constant bytes are cached
MAX_INSIDE:     Final = 1024           # known neighbours inside, and routes to them, per interface
MAX_PROBES:     Final = 1250           # unanswered solicitations sent inside, per interface
PROBES_A_S:     Final = 1000           # solicitations sent inside per second; as many again for known neighbours
BURST_S:        Final = 0.25           # burst of those, in seconds' worth
PROBE_S:        Final = 1.0            # seconds for a neighbour inside to answer
PROBES:         Final = 3              # unanswered solicitations after which a route to a neighbour is removed
NEIGHBOURS_S:   Final = 10             # seconds between two checks of the kernel's proxy neighbours
MAX_ASKERS:     Final = 4              # solicitors answered once one neighbour inside is found
WIRED_S:        Final = 600            # seconds after which a neighbour with a route is probed again
FILTERED:       Final = 24             # leases matched one by one in the packet filter; beyond that, their pools
MAX_PROGRAM:    Final = 240            # instructions of that filter (old kernels have 20 KB for two of them)
WAY_S:          Final = 1.0            # seconds for which a route found by `auto` is used without asking again
MAX_CELLS:      Final = 4096           # routes up to which `auto` works out which addresses share a route
DRAIN:          Final = 256            # frames read from one interface before others are served
PEERS_S:        Final = 3.0            # seconds between two reads of WireGuard's peers; a peer missing so long is gone
PEERS_GAP_S:    Final = 1.0            # shortest time, in seconds, between two such reads when unknown keys ask
WG_S:           Final = 2.0            # seconds that `wg` may take
LOOKS_A_KEY:    Final = 10             # such reads per read of the interface's own key and port
MAX_ALLOWED:    Final = 24             # allowed IPs told to a grantee
PEERS_AT_ONCE:  Final = 500            # peers removed by one `wg` command
DOOR_CALLERS:   Final = 64             # simultaneous wg-dynamic connections per interface
DOOR_EACH:      Final = 8              # simultaneous wg-dynamic connections per peer
DOOR_S:         Final = 10.0           # seconds for a wg-dynamic message to arrive, and for its answer to be read
DOOR_LINE:      Final = 4096           # bytes of a line of wg-dynamic
DOOR_MESSAGE:   Final = 8192           # bytes of a message of wg-dynamic
BUSY_S:         Final = 60             # seconds to wait for a file of pins that is locked
RETRY_BUSY_S:   Final = 0.5            # seconds between two tries to read such a file
SQLITE_S:       Final = 30.0           # seconds that reading a file of pins with SQLite may take
RETRY_DISK_S:   Final = 10             # seconds until what could not be written is tried again
DUPLICATE_S:    Final = 3              # seconds until a duplicate address is tried again
LINE:           Final = 384            # bytes of a line in the lease file
SPARE_LINES:    Final = 64             # blank lines by which the lease file grows
RESERVED_LINES: Final = 32             # blank lines kept ahead of what will be promised


class Retry(NamedTuple):
    """How patiently to repeat an unanswered ask."""

    first_s: float
    longest_s: float


class Rate(NamedTuple):
    """A token bucket: N per interval, burst N."""

    burst: int
    each_s: float


# What a known peer may cause beyond its normal work: token buckets.
GRANTEE_CHANGES: Final = Rate(64, 6.0) # per grantee: leases released and taken back, and other routes to it
GRANTEE_LINES:  Final = Rate(20, 30.0) # per grantee: log lines about refusals and clones
GRANTOR_CHANGES: Final = Rate(20, 30.0) # per grantor: other prefixes and options
GRANTOR_SAVES:  Final = Rate(20, 60.0) # per grantor: lifetimes written to disk
GRANTOR_HOOKS:  Final = Rate(20, 5.0)  # per grantor: hooks that report a mere renewal
GRANTOR_NUDGES: Final = Rate(10, 5.0)  # per grantor: nudges acted on
GRANTOR_LINES:  Final = Rate(40, 15.0) # per grantor: log lines about refusals and rejected grants
LOG_LINES:      Final = Rate(20, 2.0)  # per kind of line, whoever causes it


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
        meant = f" (did you mean ::{text}?)" if length and not host else ""
        raise ValueError(f"'{host}' is not an IP address{meant}") from None
    bits = length if length else str(WIDTH[version])
    if not (bits.isascii() and bits.isdigit()) or int(bits) > WIDTH[version]:
        raise ValueError(f"/{length} is not a valid IPv{version} prefix length (0 to {WIDTH[version]})")
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
    RATE = 5            # too many new leases in a short time
    RECOVERING = 6      # the grantor lost its lease file and waits until old leases have expired
    CLONE = 7           # another machine uses the same key
    DISK = 8            # the grantor cannot write its lease file
    REVOKED = 9         # the operator took this lease back
    ENDED = 10          # the agreement is over
    SITE = 11           # a handler of the site says no, or failed


def reason_name(reason: int) -> str:
    """0: not the grantor's refusal but our own."""
    return Reason(reason).name if reason in Reason._value2member_map_ else f"REASON_{reason}" if reason else "UNTRUSTED"


def status_name(status: int) -> str:
    return Status(status).name if status in Status._value2member_map_ else f"STATUS_{status}"


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
DEVICE_LETTERS: Final = NAME_LETTERS | frozenset("._@:+~")


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


def decode(data: bytes) -> Message:
    cls = MESSAGES.get(data[0] if data else 0)
    if cls is None:
        raise Drop("unknown message kind")
    values: dict[str, Any] = {}
    for number, value in tlvs(data, 1):
        row = cls.by_number.get(number)
        if row is None:
            if number < 128:
                values.setdefault("unknown", number)
            continue
        found = row.codec.decode(value)
        if row.many:
            values[row.name] = (*values.get(row.name, ()), found)
        elif row.name not in values:
            values[row.name] = found
        elif row.codec is ADDRESSES:                              # a list that is continued
            values[row.name] += found
        else:
            raise Drop("type given twice")
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
    """The only curve operation with a point from the network.  An all-zero result is a low-order point's.

    In a buffer of its own: keys are checked in the thread that reads a configuration, too.
    """
    result = ffi.new("unsigned char[]", KEY_LEN)
    if len(public) != KEY_LEN or lib.crypto_scalarmult(result, secret, public) != 0:
        raise Drop("low-order point")
    shared: bytes = ffi.buffer(result)[:]
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
    """Noise's nonce: four zeros and the counter, little-endian."""
    return aead_encrypt(plain, aad, bytes(4) + counter.to_bytes(8, "little"), key)


def open_sealed(key: bytes, counter: int, sealed: bytes, aad: bytes = b"") -> bytes:
    return aead_decrypt(sealed, aad, bytes(4) + counter.to_bytes(8, "little"), key)


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

    __slots__ = ("born", "ends", "got", "id", "number", "opening", "peer", "sealing", "sent", "stale_stamp")

    def __init__(self, handshake: Handshake, born: float, peer: Any = None) -> None:
        """As the initiator has it; `turned` is the responder's."""
        self.id = handshake.h[:8]
        self.sealing, self.opening = handshake.split()
        self.sent, self.got = 0, -1
        self.born, self.peer, self.ends = born, peer, ""
        self.number = 0                                           # in the order in which a responder has made them
        self.stale_stamp = inf                                    # of the ask that was answered STALE, if it was

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
        return now.boot - self.born >= SESSION_S


def padded(plain: bytes, size: int) -> bytes:
    return plain + bytes(size - len(plain)) if size > len(plain) else plain


# ==== VALUES ========================================================== pure ====
#
# What can be written in a configuration, as types, and how each is written: text to a type, or a
# ValueError that says what is wrong.


class ConfigError(Exception):
    """The operator is wrong: `file:line: [section] key: what`, in one line."""


class HostPort(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Reach(NamedTuple):
    """How a prefix is routed: `via` may be empty, `dev` too, not both."""

    via: str
    dev: str

    def serves(self, version: int) -> bool:
        return not self.via or version == (6 if ":" in self.via else 4)


class Default(NamedTuple):
    """The default route for traffic from what a grantor gives.  No reach: the way on which that grantor is asked."""

    reach: Reach | None
    redistribute: bool                   # in the main table too, for a routing daemon


class Proxied(NamedTuple):
    """One rule of a [ndp] section, for solicitations of addresses in this prefix."""

    kind: str                            # PROXIED names them
    prefix: Prefix
    dev: str = ""                        # iface: where it is asked first

    def __str__(self) -> str:
        return " ".join(str(part) for part in self if part)


class Proxying(NamedTuple):
    """All that a [ndp] section answers for."""

    leased: bool
    rules: tuple[Proxied, ...]           # the longest prefix first


class Lan(NamedTuple):
    """An interface that gets a subnet; number None: the lowest free one."""

    dev: str
    number: int | None


class Line(NamedTuple):
    """One `ask` line.  slot None: numbered by ddpd."""

    slot: int | None
    prefix: Prefix
    lans: tuple[Lan, ...]


class Follow(NamedTuple):
    """Whose prefix a pool has, if it is not written down: `ula`, an interface's, or what a grantor gives."""

    kind: str
    name: str = ""
    slot: int | None = None

    def __str__(self) -> str:
        return " ".join(str(part) for part in self if part not in ("", None))


# -- words, names and numbers --------------------------------------------------------


def words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def many(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    return lambda text: tuple(parse(word) for word in words(text))


def or_else(empty: Any, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Of a key that may be left empty."""
    return lambda text: parse(text) if text else empty


def one_of(*known: str) -> Callable[[str], str]:
    def parse_word(text: str) -> str:
        if text not in known:
            raise ValueError(f"'{text}' is none of: {', '.join(known)}")
        return text
    return parse_word


YES_NO: Final = {"yes": True, "no": False, "1": True, "0": False}          # the last two as UCI writes them


def yes_no(text: str) -> bool:
    if text not in YES_NO:
        raise ValueError(f"'{text}' is neither yes nor no")
    return YES_NO[text]


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse_whole(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
            raise ValueError(f"'{text}' is not a whole number from {low} to {high}")
        return int(text)
    return parse_whole


def path_name(text: str) -> str:
    if not text:
        raise ValueError("missing")
    if "\0" in text:
        raise ValueError("there is a NUL byte in it")
    if "\"" in text or "'" in text or (len(text) == 44 and text.endswith("=")):
        raise ValueError("want the name of a file: without quotes, and not a key itself")
    return text


def name_word(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"'{text}' is not a host or domain name")
    return text


def is_device(text: str) -> bool:
    """A name that the kernel may give an interface, of those that can be a word for `ip` and in our files."""
    return 0 < len(text) <= 15 and text not in (".", "..") and DEVICE_LETTERS.issuperset(text)


def device(text: str) -> str:
    if not is_device(text):
        raise ValueError(f"'{text}' is not an interface name (such as eth0, at most 15 letters)")
    return text


# -- keys ----------------------------------------------------------------------------


def show_key(key: bytes) -> str:
    return binascii.b2a_base64(key, newline=False).decode()


def short(key: bytes) -> str:
    return show_key(key)[:8]


def public_key(text: str) -> bytes:
    try:
        key = binascii.a2b_base64(text.encode(), strict_mode=True)
    except ValueError:
        key = b""
    if len(key) != KEY_LEN or show_key(key) != text:              # the last letter may be written in four ways
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


# -- times ---------------------------------------------------------------------------


UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def duration(text: str) -> float:
    if text == "forever":
        return inf
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    if not (number.isascii() and number.isdigit()) or not 0 < int(number) * UNITS[unit] < FOREVER:
        raise ValueError(f"'{text}' is not a duration (such as 90s, 30m, 12h, 7d, forever)")
    return float(int(number) * UNITS[unit])


def parse_bounds(text: str) -> tuple[float, float]:
    """`6h` at most, or `1h-6h`."""
    low, dash, high = text.rpartition("-")
    bounds = (duration(low.strip()) if dash else 0.0, duration(high.strip()))
    if bounds[0] > bounds[1]:
        raise ValueError(f"'{text}' is empty (such as 1h-6h: the shorter time first)")
    return bounds


def parse_rate(text: str) -> Rate:
    count, _, over = text.partition("/")
    number, over_s = whole(1, 10**6)(count.strip()), duration(over.strip())
    if over_s == inf:
        raise ValueError(f"'{text}' is not a rate (such as 5/30s)")
    return Rate(number, over_s / number)


def parse_date(text: str) -> float:
    """`2027-03-31`, `2027-03-31T12:00`, UTC: seconds since 1970 in the Gregorian calendar.  `datetime` costs 1 MB."""
    date, _, hours = text.removesuffix("Z").partition("T")
    try:
        year, month, day = (int(part) for part in date.split("-"))
        hour, minute = (int(part) for part in (hours or "00:00").split(":"))
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        months = (31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
        if not (text.isascii() and 1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= months[month - 1]
                and 0 <= hour < 24 and 0 <= minute < 60):
            raise ValueError
    except ValueError:
        raise ValueError(f"'{text}' is not a date (such as 2027-03-31, or 2027-03-31T12:00, UTC)") from None
    before = year - 1
    leaps = before // 4 - before // 100 + before // 400 - 477     # 477 until 1969
    days = (year - 1970) * 365 + leaps + sum(months[: month - 1]) + day - 1
    return days * 86400.0 + hour * 3600 + minute * 60


# -- prefixes and addresses ----------------------------------------------------------


NOWHERE: Final = Prefix(6, 0, 128)
GLOBAL, LOCAL, LINKLOCAL = parse_prefix("2000::/3"), parse_prefix("fc00::/7"), parse_prefix("fe80::/10")
LINKLOCAL4, LOOPBACK, LOOPBACK4 = parse_prefix("169.254.0.0/16"), parse_prefix("::1"), parse_prefix("127.0.0.0/8")
PRIVATE: Final = (LOCAL, *map(parse_prefix, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
NEVER: Final = tuple(map(parse_prefix, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")))


def is_nobodys(prefix: Prefix) -> bool:
    """Not to be given to anybody: RFC 6890 (this host, loopback, link-local), multicast, reserved."""
    if prefix.version == 6:
        return not (GLOBAL.holds(prefix) or LOCAL.holds(prefix))
    return any(never.overlaps(prefix) for never in NEVER)


def address(text: str) -> Prefix:
    if "/" in text:
        raise ValueError(f"'{text}' is not an address (no length here)")
    return parse_host(text)


def parse_v6(text: str) -> Prefix:
    prefix = parse_prefix(text)
    if prefix.version != 6:
        raise ValueError(f"{prefix} is not IPv6")
    return prefix


def parse_suffix(text: str) -> int:
    prefix = parse_prefix(text)
    if prefix.version != 6 or not 0 < prefix.first < 2**64:
        raise ValueError(f"'{text}' is not a suffix (such as ::1)")
    return prefix.first


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


def lengths_shown(lengths: Iterable[int]) -> str:
    """`/48 /56-/64`"""
    runs: list[list[int]] = []
    for length in sorted(lengths):
        if runs and runs[-1][-1] == length - 1:
            runs[-1].append(length)
        else:
            runs.append([length])
    return " ".join(f"/{run[0]}" if len(run) == 1 else f"/{run[0]}-/{run[-1]}" for run in runs)


GATEWAY: Final = "gateway"


def is_gateway(host: str) -> bool:
    """Is this no name, but whatever the default router is (on this interface)?"""
    return host.partition("%")[0] == GATEWAY


def is_numeric(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def host_port(text: str, unsaid: int = PORT) -> HostPort:
    """`name:port`, `[v6]:port`, `v4`, `v6`, `gateway%IF`; the port may be left out, and is then `unsaid`."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or port[:1] not in (":", ""):
            raise ValueError(f"'{text}' is not an address (such as [2001:db8::1]:{PORT})")
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if "%" in host and (is_numeric(host) or is_gateway(host)):
        device(host.partition("%")[2])
    if is_numeric(host):
        address(host.partition("%")[0])
    elif not is_gateway(host) and not is_name(host):
        raise ValueError(f"'{host}' is neither an address nor a host name")
    return HostPort(host, whole(1, 65535)(port.removeprefix(":")) if port.removeprefix(":") else unsaid)


def parse_endpoint(text: str) -> HostPort:
    """Of WireGuard: `name:port`, without a port (0), or without a host."""
    if text in ("", ":"):
        return HostPort("", 0)
    if text[0] == ":":
        return HostPort("", whole(1, 65535)(text[1:]))
    place = host_port(text, unsaid=0)
    if is_gateway(place.host):
        raise ValueError(f"'{text}' is not an endpoint (such as vpn.example.net:51820)")
    return place


def parse_port(text: str) -> int | None:
    """None: not said.  0: none."""
    if not text:
        return None
    return 0 if text == "none" else whole(1, 65535)(text)


def parse_listen(text: str) -> HostPort:
    place = host_port(text)
    try:
        parse_prefix(place.host)
    except ValueError:
        raise ValueError(f"'{text}' is not an address of this machine (such as [::]:{PORT})") from None
    return place


# -- what is asked, given and routed -------------------------------------------------


def parse_reach(text: str) -> Reach:
    """`dev IF`, `via ADDRESS`, `via ADDRESS dev IF`."""
    parts = text.split()
    found = dict(zip(parts[::2], parts[1::2], strict=False))
    if len(parts) % 2 or not found or not found.keys() <= {"via", "dev"} or len(found) * 2 != len(parts):
        raise ValueError(f"'{text}' is not a route (expected `auto`, `dev IF`, `via ADDRESS`, `via ADDRESS dev IF` "
                         "or `none`)")
    via = address(found["via"]).host if "via" in found else ""
    return Reach(via, device(found["dev"]) if "dev" in found else "")


def parse_route(text: str) -> str | Reach:
    return text if text in ("auto", "none") else parse_reach(text)


def parse_default(text: str) -> Default:
    """`auto`, or a reach; then perhaps `redistribute`.  `none` reaches nobody."""
    way = text.removesuffix(" redistribute").strip()
    if way == "auto":
        return Default(None, way != text)
    return Default(Reach("", "") if way == "none" else parse_reach(way), way != text)


NEAREST: Final = 0                       # the rank that is measured


def parse_rank(text: str) -> int:
    """Lower is better; NEAREST: by the round trip."""
    if text == "nearest":
        return NEAREST
    try:
        return whole(1, 255)(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a rank (`nearest`, or a whole number from 1 to 255)") from None


def parse_line(text: str) -> Line:
    """`[SLOT:] PREFIX [on IF[=NUMBER] …]`."""
    parts = words(text)
    slot = whole(0, 255)(parts.pop(0)[:-1]) if parts and parts[0][:-1].isdigit() and parts[0][-1] == ":" else None
    if not parts or (len(parts) > 1 and parts[1] != "on") or len(parts) == 2:
        raise ValueError(f"'{text}' is not an ask (such as `::/56 on br-lan br-guest=7`)")
    prefix = parse_prefix(parts[0])
    if 0 < prefix.length < {4: 8, 6: 16}[prefix.version]:
        raise ValueError(f"{prefix} is too large to ask for")
    lans = []
    for part in parts[2:]:
        dev, equals, number = part.partition("=")
        lans.append(Lan(device(dev), whole(0, 2**16 - 1)(number) if equals else None))
    for numbers in ([lan.number for lan in lans if lan.number is not None], [lan.dev for lan in lans]):
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"'{text}' names an interface or a number twice")
    return Line(slot, prefix, tuple(lans))


def parse_asks(text: str) -> tuple[Line, ...]:
    lines = tuple(parse_line(line) for line in text.split("\n") if line.strip())
    fixed = [line.slot for line in lines if line.slot is not None]
    if len(set(fixed)) < len(fixed):
        raise ValueError("a slot is named twice")
    if len(lines) > MAX_SLOTS:
        raise ValueError(f"more than {MAX_SLOTS} lines")
    return lines


def parse_source(text: str) -> Prefix | Follow:
    """`2001:db8::/48`, `ula`, `interface IF`, `grantor NAME [SLOT]`."""
    kind, *rest = text.split() or [""]
    if kind == "ula" and not rest:
        return Follow(kind)
    if kind == "interface" and len(rest) == 1:
        return Follow(kind, device(rest[0]))
    if kind == "grantor" and len(rest) in (1, 2):
        return Follow(kind, rest[0], whole(0, 255)(rest[1]) if rest[1:] else None)
    if kind in ("ula", "interface", "grantor"):
        raise ValueError(f"'{text}' is not a source (such as `ula`, `interface eth0`, `grantor exit1 2`)")
    return parse_prefix(text)


def parse_share(text: str) -> tuple[int, int]:
    own, _, shares = text.partition("/")
    if not (own + shares).isdigit() or not (own + shares).isascii() or not 1 <= int(own or 0) <= int(shares or 0) <= 16:
        raise ValueError(f"'{text}' is not a share (such as 1/2, of at most 16)")
    return int(own), int(shares)


PROXIED: Final = ("static", "auto", "iface", "never")


def parse_proxy(text: str) -> Proxying:
    """One a line: `leased`, `static P`, `auto P`, `never P`, `iface P IF`."""
    rules, leases = [], False
    for line in [line.strip() for line in text.replace(",", "\n").split("\n") if line.strip()]:
        if line == "leased":
            leases = True
            continue
        kind, *rest = words(line)
        if kind not in PROXIED or len(rest) != 1 + (kind == "iface"):
            raise ValueError(f"'{line}' is not a rule (such as `leased`, `static PREFIX`, `auto PREFIX`, "
                             "`iface PREFIX IF`, `never PREFIX`; one a line)")
        rules.append(Proxied(kind, parse_v6(rest[0]), *map(device, rest[1:])))
    if len({rule.prefix for rule in rules}) < len(rules):
        raise ValueError("a prefix has two rules")
    return Proxying(leases, tuple(sorted(rules, key=lambda rule: -rule.prefix.length)))


# ==== SETTINGS ======================================================= pure ====
#
# The sections of a configuration.  A field with a setting is a key: how its text is read, its
# default, what it means.  The parser, the tables of docs/reference.md and the man pages follow from
# it; to add a key, add a field.


class Setting(NamedTuple):
    """One key of the configuration.  default None: it has to be there."""

    parse: Callable[[str], Any]
    default: str | None
    meaning: str
    field: str                           # of its section's class


def setting(parse: Callable[[str], Any], default: str | None, meaning: str, key: str = "") -> Any:
    """A field that is a key; named otherwise than that, if `key` says so."""
    return field(metadata={"setting": (key, parse, default, meaning)})


def settings_of(section: type[Any]) -> dict[str, Setting]:
    """By key; a section's own `key` stands first."""
    found = {}
    for row in fields(section):
        if "setting" in row.metadata:
            key, parse, default, meaning = row.metadata["setting"]
            found[key or row.name] = Setting(parse, default, meaning, row.name)
    return {key: found[key] for key in sorted(found, key=lambda key: key != "key")}


HOOK_STYLES: Final = ("ddpd", "odhcp6c")
HANDED: Final = ("resolv", "dnsmasq", "radvd", "dhcp")            # files for others


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A [pool] section, and where that pool is now."""

    name: str
    source: Prefix | Follow = setting(
        parse_source, None, "what may be given, or `ula`, `interface IF`, `grantor NAME [SLOT]`", "prefix")
    give: tuple[int, ...] = setting(parse_lengths, None, "prefix lengths that may be granted")
    reserve: tuple[Prefix, ...] = setting(
        many(parse_prefix), "", "ranges that are never granted; if the pool moves: offsets (::100/120)")
    share: tuple[int, int] = setting(parse_share, "1/1", "our part of the pool, if several grantors share one key")
    valid_s: float = setting(duration, "12h", "valid lifetime of a lease", "lifetime")
    preferred_s: float = setting(
        or_else(0.0, duration), "", "preferred lifetime; default half of `lifetime`", "preferred")
    renew_s: float = setting(
        or_else(0.0, duration), "", "T1, when a grantee renews; default half of `preferred`", "renew")
    rebind_s: float = setting(
        or_else(0.0, duration), "", "T2, when it tries every address; default 0.8 of `preferred`", "rebind")
    dns: tuple[Prefix, ...] = setting(many(address), "", "name servers told to grantees")
    search: tuple[str, ...] = setting(many(name_word), "", "search domains told to grantees")
    ntp: tuple[Prefix, ...] = setting(many(address), "", "time servers told to grantees")
    mtu: int | None = setting(or_else(None, whole(1280, 9000)), "", "MTU told to grantees")
    prefix: Prefix = NOWHERE             # NOWHERE: it follows something, and is not placed yet
    regions: tuple[Prefix, ...] = ()     # of the prefix, our share
    ends: float = inf                    # CLOCK_BOOTTIME: when what it follows ends ...
    prefers: float = inf                 # ... and when that is preferred no longer

    @property
    def follows(self) -> Follow | None:
        return self.source if isinstance(self.source, Follow) else None

    @property
    def has_twins(self) -> bool:
        return self.share != (1, 1)

    @cached_property
    def options(self) -> dict[str, Any]:
        return {name: value for name in OPTIONS if (value := getattr(self, name, None)) not in NOTHING}

    def is_own(self, prefix: Prefix) -> bool:
        """Is this of our share?"""
        return any(region.holds(prefix) for region in self.regions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What one grantee, or each peer of a WireGuard interface, may have."""

    name: str
    pools: tuple[str, ...] = setting(many(str), None, "pools to grant from, tried in this order")
    limit: int = setting(whole(1, 256), "1", "leases per address family")
    lengths: tuple[int, ...] = setting(
        parse_lengths, "", "lengths that may be granted; default all that the pools give")
    total: tuple[Prefix, ...] = setting(
        many(parse_prefix), "", "upper bound for all leases together, per address family: ::/52 0.0.0.0/28")
    bounds: tuple[float, float] = setting(
        parse_bounds, "forever", "[MIN-]MAX: bounds of the pools' lifetimes", "lifetime")
    rate: Rate = setting(parse_rate, "5/30s", "new leases, a token bucket: N per interval, burst N")


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement(Terms):
    """A [grantee] section."""

    key: bytes = setting(public_key, None, "its public key")
    until: float = setting(or_else(inf, parse_date), "", "date on which the agreement ends")       # wall clock
    pins: tuple[Prefix, ...] = setting(
        many(parse_prefix), "", "prefixes that are its own, whatever the pools say", "pin")
    route: str | Reach = setting(
        parse_route, "auto", "how its leases are reached: auto, dev IF, via ADDRESS [dev IF], none")
    was: tuple[bytes, ...] = setting(
        many(public_key), "", "its former keys: their leases are its own")


@dataclass(frozen=True, kw_only=True)
class WireguardSection(Terms):
    """A [wireguard] section: an interface whose peers may ask."""

    adds_peers: bool = setting(
        yes_no, "no", "a [grantee] becomes a peer for as long as it has a lease", "add_peers")
    listen: int | None = setting(
        parse_port, "", "UDP port; the interface is created with it and our key if it is missing; "
                        "default 51820, or the endpoint's, with add_peers; `none`: never")
    addresses: tuple[Prefix, ...] = setting(
        many(parse_interface), "", "addresses of the interface, if ddpd creates it", "address")
    endpoint: HostPort = setting(parse_endpoint, "", "told to grantees; default: where they asked, and its own port")
    allowed: tuple[Prefix, ...] = setting(
        many(parse_prefix), "0.0.0.0/0 ::/0", "told to grantees: what they send into the tunnel")
    keepalive_s: float = setting(
        or_else(0.0, duration), "25s", "told to grantees: how often to be heard through a NAT", "keepalive")
    dynamic: bool = setting(
        yes_no, "yes", "wg-dynamic is spoken too, at fe80:: on the interface, TCP port 970")
    secret: str                          # the file of our private key

    @property
    def dev(self) -> str:
        return self.name

    @property
    def port(self) -> int:
        """With which the interface is made, if there is none; 0: it is not made."""
        if self.listen is not None:
            return self.listen
        return (self.endpoint.port or WG_PORT) if self.adds_peers else 0

    def agreement_with(self, key: bytes) -> Agreement:
        """Of one of its peers."""
        return Agreement(name=f"{self.name}/{short(key)}", key=key, pools=self.pools, limit=self.limit,
                         lengths=self.lengths, total=self.total, bounds=self.bounds, rate=self.rate,
                         until=inf, pins=(), route="auto", was=())


@dataclass(frozen=True, kw_only=True)
class Tunnel:
    """A [tunnel] section: a WireGuard interface, made from what a grantor says."""

    name: str
    grantor: str = setting(str, None, "the [grantor] whose answers say how the interface is to be made")
    routes: tuple[Prefix, ...] = setting(
        many(parse_prefix), "", "prefixes that are routed into it, whatever their source")
    mtu: int = setting(or_else(0, whole(1280, 9000)), "", "its MTU; default that of the kernel, 1420")
    secret: str                          # the file of our private key

    @property
    def dev(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class Contact:
    """A [grantor] section: somebody this node asks."""

    name: str
    key: bytes = setting(peer_key, None, "its public key")
    addresses: tuple[HostPort, ...] = setting(
        many(host_port), None, "where it listens; several are tried in turn", "address")
    lines: tuple[Line, ...] = setting(
        parse_asks, None, "one slot a line: PREFIX [on IF[=NUMBER] …]; `3: …` fixes the slot", "ask")
    default: Default | None = setting(
        or_else(None, parse_default), "", "default route for traffic from its prefixes; with a [tunnel]: into that, "
                                          "unless `none`")
    rank: int | None = setting(
        or_else(None, parse_rank), "", "of the ranked grantors, only the best living one is preferred")
    install: bool = setting(yes_no, "yes", "no: do not touch the kernel, only run the hook")
    hook: str = setting(str, "", "program to run at every change")
    hook_style: str = setting(one_of(*HOOK_STYLES), "ddpd", "calling convention of the hook: ddpd or odhcp6c")
    accept: tuple[Prefix, ...] = setting(
        many(parse_prefix), "2000::/3 fc00::/7 0.0.0.0/0", "grants outside of these are refused")
    hostname: str = setting(or_else("", name_word), "", "told to the grantor")
    keepalive_s: float = setting(or_else(0.0, duration), "", "ask at least this often: 25s behind a NAT", "keepalive")
    suffix: int = setting(parse_suffix, "::1", "this node's address in each subnet")
    release: bool = setting(yes_no, "no", "release all leases when ddpd exits")
    tunnel: Tunnel | None = None

    @property
    def follows_way(self) -> bool:
        """`default = auto`."""
        return self.default is not None and self.default.reach is None


@dataclass(frozen=True, kw_only=True)
class Ndp:
    """A [ndp] section: neighbour solicitations heard on one interface."""

    name: str
    proxy: Proxying = setting(
        parse_proxy, None, "`leased`, `static P`, `auto P`, `iface P IF`, `never P`: one a line")
    method: str = setting(one_of("own", "kernel"), "own", "who answers for single addresses")
    router: bool = setting(yes_no, "yes", "say in answers that this is a router")
    source: str = setting(one_of("link-local", "interface", "target"), "link-local", "where answers come from")
    autowire: bool = setting(yes_no, "no", "make a route to what `iface` found inside")
    ttl_s: float = setting(duration, "3s", "how long what `iface` found inside is believed", "ttl")
    allow: tuple[Prefix, ...] = setting(many(parse_v6), "", "no answer for anything else")
    deny: tuple[Prefix, ...] = setting(many(parse_v6), "", "no answer for these")

    @property
    def dev(self) -> str:
        return self.name

    @property
    def leased(self) -> bool:
        return self.proxy.leased

    @property
    def rules(self) -> tuple[Proxied, ...]:
        return self.proxy.rules

    @property
    def by_kernel(self) -> bool:
        """Single addresses are the kernel's."""
        return self.method == "kernel"

    @property
    def inner(self) -> list[str]:
        """The interfaces on which neighbours are asked for."""
        return sorted({rule.dev for rule in self.rules if rule.dev})

    def refuses(self, target: Prefix) -> str:
        """Why there is no answer for this address, whatever the rules say; or nothing."""
        if any(prefix.holds(target) for prefix in self.deny):
            return "denied"
        return "not allowed" if self.allow and not any(prefix.holds(target) for prefix in self.allow) else ""

    def hands_over(self, target: Prefix, leased_on: str | None) -> bool:
        """Is the kernel to answer?  leased_on: the interface that the target is routed to, None: not leased."""
        if not self.by_kernel or target.shape != (6, 128) or self.refuses(target):
            return False
        kind = next((rule.kind for rule in self.rules if rule.prefix == target), "")
        if self.leased and leased_on is not None and kind != "never":
            return leased_on != self.dev
        return kind == "static"


class Need(NamedTuple):
    """A capability(7) without which the configuration cannot be carried out, and what says so."""

    capability: str
    where: str


@dataclass(frozen=True, kw_only=True)
class Config:
    """The [ddpd] section, and all others."""

    file: str
    key: str = setting(path_name, "/etc/ddpd/key", "private key, as `wg genkey` writes it; made if missing")
    listen: tuple[HostPort, ...] = setting(
        many(parse_listen), "", "where asks are heard; default [::]:3373 if there is a pool")
    leases: str = setting(path_name, "/var/lib/ddpd/leases.json", "the lease file")
    control: str = setting(path_name, "/run/ddpd.sock", "the control socket")
    status: str = setting(
        or_else("", path_name), "", "file with what `status --json` says, without the keys: for web pages")
    mark: int = setting(whole(1, 255), str(MARK), "protocol number of our routes; their metric is 100 times it")
    load: int = setting(whole(1, 10**6), "200", "handshakes a second beyond which asks need a cookie")
    hold_s: float = setting(duration, "30d", "how long an ended lease is held back for its former grantee", "hold")
    pin_files: tuple[str, ...] = setting(
        many(path_name), "", "CSV or SQLite files with pins: columns id, address, prefix", "pins")
    folder: str = setting(
        or_else("", path_name), "", "folder of files, each the lines of one [grantee] section", "grantees")
    handlers: str = setting(or_else("", path_name), "", "Python file with the site's own handlers")
    accounting: str = setting(or_else("", path_name), "", "log of leases begun and ended, a line of JSON each")
    rate: Rate | None = setting(or_else(None, parse_rate), "", "new leases of all grantees together, such as 100/1s")
    resolv: str = setting(or_else("", path_name), "", "file written in the form of resolv.conf")
    dnsmasq: str = setting(or_else("", path_name), "", "file written for dnsmasq, as its `servers-file`")
    radvd: str = setting(or_else("", path_name), "", "radvd.conf written for the LANs, with the remaining lifetimes")
    dhcp: str = setting(or_else("", path_name), "", "dnsmasq.conf written for DHCPv4 on the LANs")
    pools: tuple[Pool, ...]
    agreements: dict[bytes, Agreement]
    contacts: tuple[Contact, ...]
    ndp: tuple[Ndp, ...]
    guards: tuple[WireguardSection, ...]
    needs: tuple[Need, ...]              # one of each capability
    pins: Pins
    skipped: tuple[str, ...]             # bad rows of pin files and bad files of grantees, a line each
    unknown: tuple[str, ...]             # ids of pins that are nobody's, the first of them

    @property
    def handed(self) -> dict[str, str]:
        """kind -> the file that gets it."""
        return {kind: path for kind in HANDED if (path := getattr(self, kind))}


SETTINGS: Final = {kind: settings_of(section) for kind, section in {
    "ddpd": Config, "pool": Pool, "grantee": Agreement, "grantor": Contact, "ndp": Ndp, "wireguard": WireguardSection,
    "tunnel": Tunnel}.items()}


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word with the most letter pairs in common: what was probably meant."""
    def likeness(other: str) -> float:
        pairs = [{text[n : n + 2] for n in range(-1, len(text))} for text in (word, other)]
        return len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])
    return max(known, key=likeness)


# ==== POOLS ========================================================== pure ====
#
# What of a pool is taken: a binary trie with its paths compressed.  A leaf is a
# taken prefix; every other block is the fork above two of them.  How many blocks of
# a length are touched below a fork is counted when somebody wants to know, and
# forgotten along the path of each change: a draw is exact, uniform, and costs the
# depth of the trie, however full the pool.
#
# A trie of many prefixes begins as one fork over their sorted list; its sides are made
# when somebody looks at them.  So 100,000 pins cost their list, and no start waits.


NO_MEMO: Final[dict[tuple[int, int], int]] = {}
SIZES: Final = {version: (*(1 << (width - length) for length in range(width + 1)), 0)
                for version, width in WIDTH.items()}


def touched_in(rows: list[Prefix], width: int, length: int) -> int:
    """How many blocks of `length` these prefixes, which do not overlap, touch."""
    count, last, shift = 0, -1, width - length
    for _, first, own in rows:
        if own <= length:
            count += 1 << (length - own)
        elif first >> shift != last:
            count += 1
            last = first >> shift
    return count


class Block:
    """A taken prefix, or a fork.  `rows`: what is below a fork whose sides have not been made yet."""

    __slots__ = ("bit", "first", "high", "length", "low", "memo", "rows", "size")
    low: Block | None                    # of a leaf: None, both
    high: Block | None

    def __init__(self, prefix: Prefix, low: Block | None = None, high: Block | None = None) -> None:
        version, self.first, self.length = prefix
        self.low, self.high = low, high
        self.size = SIZES[version][self.length]
        self.bit = SIZES[version][self.length + 1]                # in an address: which side of the fork
        self.memo: dict[tuple[int, int], int] = NO_MEMO
        self.rows: list[Prefix] | None = None

    def __getattr__(self, name: str) -> Any:
        """Of a fork that nobody has looked into yet: makes its sides."""
        if name not in ("low", "high") or self.rows is None:
            raise AttributeError(name)
        middle = bisect_left(self.rows, self.first | self.bit, key=itemgetter(1))
        self.low, self.high = self.over(self.rows[:middle]), self.over(self.rows[middle:])
        self.rows = None
        return getattr(self, name)

    @classmethod
    def over(cls, rows: list[Prefix]) -> Block | None:
        """The trie of these sorted prefixes, of which none overlaps another."""
        if len(rows) < 2:
            return cls(rows[0]) if rows else None
        length = WIDTH[rows[0].version] - (rows[0].first ^ rows[-1].first).bit_length()
        fork = cls(rows[0].network(length))
        del fork.low, fork.high
        fork.rows = rows
        return fork


class Space:
    """The taken and the free of one pool, or (regions) of a share of it."""

    def __init__(self, pool: Prefix, regions: tuple[Prefix, ...] = (), rows: Iterable[Prefix] = ()) -> None:
        self.pool, self.regions = pool, regions or (pool,)
        self.width = WIDTH[pool.version]
        self.root = Block.over(list(rows))

    def path(self, prefix: Prefix) -> tuple[list[Block], Block | None]:
        """The forks that cover the prefix from the root, and what hangs below the last."""
        above: list[Block] = []
        at, first, length = self.root, prefix.first, prefix.length
        while at is not None and at.length < length and (at.first ^ first) < at.size and at.high is not None:
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
        if at is None or at.length != prefix.length or at.first != prefix.first or at.high is not None:
            return
        if not above:
            self.root = None
            return
        fork = above.pop()
        self.hang(above, prefix.first, fork.low if fork.high is at else fork.high)

    def touching(self, prefix: Prefix) -> Iterator[Prefix]:
        """What is taken inside of this prefix, or the one that holds all of it."""
        at = self.path(prefix)[1]
        if at is not None and self.common(at, prefix) >= min(at.length, prefix.length):
            yield from self.leaves(at)

    def within(self, prefix: Prefix) -> Block | None:
        """What is taken of this prefix: a block inside of it, or all of it."""
        at = self.path(prefix)[1]
        if at is None or self.common(at, prefix) < min(at.length, prefix.length):
            return None
        return at if at.length >= prefix.length else Block(prefix)

    def leaves(self, at: Block | None) -> Iterator[Prefix]:
        """In order."""
        if at is None:
            return
        if at.rows is not None:
            yield from at.rows
        elif at.high is None:
            yield Prefix(self.pool.version, at.first, at.length)
        else:
            yield from self.leaves(at.low)
            yield from self.leaves(at.high)

    def touched(self, at: Block | None, length: int) -> int:
        """How many blocks of `length` below `at` are not wholly free."""
        if at is None or at.length >= length:
            return at is not None
        count = at.memo.get((0, length))
        if count is None:
            if at.rows is not None:
                count = touched_in(at.rows, self.width, length)
            elif at.high is None:
                return 1 << (length - at.length)
            else:
                count = self.touched(at.low, length) + self.touched(at.high, length)
            at.memo = {**at.memo, (0, length): count}
        return count

    def spare(self, at: Block | None, shortest: int, length: int) -> int:
        """How many blocks of `length` are free inside blocks of `shortest` that are broken already."""
        return (self.touched(at, shortest) << (length - shortest)) - self.touched(at, length)

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

    def select_spare(self, at: Block | None, shortest: int, length: int, k: int) -> Prefix:
        """The k-th of those that `spare` counts below `at`."""
        while at is not None and at.length < shortest:
            low = self.spare(at.low, shortest, length)
            at, k = (at.low, k) if k < low else (at.high, k - low)
        first = at.first & -(1 << (self.width - shortest)) if at is not None else 0
        return self.select(first, at, length, k)

    def free_blocks(self, length: int) -> int:
        return sum((1 << (length - region.length)) - self.touched(self.within(region), length)
                   for region in self.regions if region.length <= length)

    def draw(self, length: int, shortest: int, rand: Rand) -> Prefix | None:
        """A free prefix, each with the same chance; a whole block of `shortest` is broken only if it must be."""
        def below(count: int) -> int:
            return int.from_bytes(rand(24), "big") % count        # bias below 2**-64
        broken = [self.within(region) for region in self.regions] if length > shortest else []
        spares = [self.spare(at, shortest, length) for at in broken]
        if any(spares):
            k = below(sum(spares))
            for at, count in zip(broken, spares, strict=True):
                if k < count:
                    return self.select_spare(at, shortest, length, k)
                k -= count
        block = self.guess(shortest, below) or self.count(shortest, below)
        if block is None:
            return None
        inside = below(1 << (length - shortest)) << (self.width - length) if length > shortest else 0
        return Prefix(block.version, block.first + inside, length)

    def guess(self, length: int, below: Callable[[int], int]) -> Prefix | None:
        """Any block, if it happens to be free: as uniform as counting, and cheap until the pool is nearly full."""
        shift = self.width - length
        blocks = sum(region.size for region in self.regions) >> shift
        for _ in range(4):
            offset = below(blocks) << shift
            for region in self.regions:
                if offset < region.size:
                    break
                offset -= region.size
            block = Prefix(self.pool.version, region.first + offset, length)
            if self.is_free(block):
                return block
        return None

    def count(self, length: int, below: Callable[[int], int]) -> Prefix | None:
        blocks = self.free_blocks(length)
        if not blocks:
            return None
        k = below(blocks)
        for region in self.regions:
            at = self.within(region)
            free = (1 << (length - region.length)) - self.touched(at, length)
            if k < free:
                return self.select(region.first, at, length, k)
            k -= free
        return None

    def free_fraction(self) -> float:
        taken = sum(self.touched(self.within(region), self.width) for region in self.regions)
        return 1.0 - taken / sum(region.size for region in self.regions)


def share_of(pool: Prefix, shortest: int, share: tuple[int, int]) -> tuple[Prefix, ...]:
    """The i-th of n runs of the pool's blocks, as the fewest prefixes; ValueError if there are too few blocks."""
    (own, shares), blocks = share, 1 << (shortest - pool.length)
    if blocks < shares:
        raise ValueError(f"{pool} has only {blocks} /{shortest} for {shares} shares")
    size = SIZES[pool.version][shortest]
    at, end = (pool.first + blocks * n // shares * size for n in (own - 1, own))
    found = []
    while at < end:
        length = next(length for length in range(pool.length, shortest + 1)
                      if not at & (SIZES[pool.version][length] - 1) and at + SIZES[pool.version][length] <= end)
        found.append(Prefix(pool.version, at, length))
        at += SIZES[pool.version][length]
    return tuple(found)


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


# ==== CONFIG ========================================================= pure ====
#
# An INI file becomes typed values here, at the door; with it come the folder of
# grantees and the files of pins.  At a reload all of it runs in a thread, while asks are
# answered: nothing here changes anything that the daemon uses.

MAX_NAMED: Final = 1000                  # bad rows that are named, each in a line


@cache
def defaults(kind: str) -> dict[str, Any]:
    """Made once: 10,000 grantees have them in common."""
    return {key: known.parse(known.default) for key, known in SETTINGS[kind].items() if known.default is not None}


class Section:
    """One section as written: each value with its line number."""

    __slots__ = ("file", "head", "kind", "line", "name", "values")

    def __init__(self, file: str, head: str, line: int) -> None:
        self.file, self.head, self.line = file, head, line
        self.kind, _, self.name = head.partition(" ")
        self.name = self.name.strip()
        self.values: dict[str, tuple[str, int]] = {}

    def error(self, key: str, what: object) -> ConfigError:
        where = f"[{self.head}] {key}" if key else f"[{self.head}]"
        return ConfigError(f"{self.file}:{self.line_of(key)}: {where}: {' '.join(str(what).split())}")

    def check(self, key: str, wrong: bool, what: str) -> None:
        if wrong:
            raise self.error(key, what)

    def line_of(self, key: str) -> int:
        return self.values[key][1] if key in self.values else self.line

    def text_of(self, key: str) -> str:
        return self.values[key][0] if key in self.values else ""

    def add(self, key: str, value: str, line: int) -> None:
        known = SETTINGS[self.kind]
        before = self.values.get(key)
        self.values[key] = value, line
        if before is not None:
            raise self.error(key, f"given twice (first in line {before[1]})")
        if key not in known:
            raise self.error(key, f"no such key (did you mean '{nearest(key, known)}'?)")

    def go_on(self, key: str, text: str, line: int) -> None:
        """An indented line."""
        word = text.partition("=")[0].strip()
        if "=" in text and word in SETTINGS[self.kind]:
            self.values[word] = "", line
            raise self.error(word, f"is indented, so it goes on with `{key}` (begin it in the first column)")
        self.values[key] = f"{self.values[key][0]}\n{text}", self.values[key][1]

    def parsed(self) -> dict[str, Any]:
        """Every key of this kind of section, by the name of its field, as its type."""
        found = {}
        for key, known in SETTINGS[self.kind].items():
            text = self.values[key][0] if key in self.values else known.default
            if text is None or (known.default is None and not text.strip()):
                raise self.error(key, f"missing: {known.meaning}")
            try:
                is_default = text == known.default
                found[known.field] = defaults(self.kind)[key] if is_default else known.parse(text)
            except ValueError as why:
                raise self.error(key, why) from None
        return found

    def device(self) -> str:
        """The interface after which it is named."""
        try:
            return device(self.name)
        except ValueError as why:
            raise self.error("", why) from None


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
    longest = 300 if section.kind == "grantee" else 40            # a DUID may be a name
    section.check("", len(section.name) > longest or not section.name.isascii() or not section.name.isprintable()
                  or " " in section.name, f"a name is one word of at most {longest} printable ASCII letters")
    return section


def read_sections(text: str, file: str, head: str = "") -> list[Section]:
    """The file's shape: sections, keys, continued lines.  `head`: of the section in which it begins."""
    sections: list[Section] = [Section(file, head, 1)] if head else []
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


# -- each kind of section ------------------------------------------------------------


def placed(pool: Pool, prefix: Prefix, own: Iterable[Prefix] = ()) -> Pool:
    """The pool at this prefix, without what is the node's own; ValueError if it does not fit there."""
    low, width = {4: 8, 6: 16}[prefix.version], WIDTH[prefix.version]
    if prefix.length < low:
        raise ValueError(f"prefix: {prefix} is too large (/{low} at most)")
    give, holes = pool.give, pool.reserve
    fitting = tuple(length for length in give if prefix.length <= length <= width)
    if pool.follows is not None:                                  # what does not fit is not given there
        give = fitting
        holes = tuple(Prefix(prefix.version, prefix.first | hole.first, hole.length) for hole in holes
                      if hole.version == prefix.version and hole.length >= prefix.length)
    if not give or give != fitting:
        bad = next((length for length in pool.give if length not in fitting), 0)
        raise ValueError(f"give: /{bad} does not fit {prefix} (/{prefix.length} to /{width})")
    for hole in holes:
        if not prefix.holds(hole):
            raise ValueError(f"reserve: {hole} is not in {prefix}")
    try:
        regions = share_of(prefix, give[0], pool.share)
    except ValueError as why:
        raise ValueError(f"share: {why}") from None
    return replace(pool, prefix=prefix, give=give, reserve=(*holes, *own), regions=regions)


def read_pool(section: Section, hold_s: float, grantors: Container[str]) -> Pool:
    pool = Pool(name=section.name, **section.parsed())
    preferred = pool.preferred_s or pool.valid_s / 2
    renew = pool.renew_s or max(1.0, preferred / 2)
    rebind = pool.rebind_s or max(renew, preferred * 0.8)
    section.check("preferred", preferred > pool.valid_s, "longer than `lifetime`")
    section.check("renew", renew > preferred, "longer than `preferred`")
    section.check("rebind", not renew <= rebind <= pool.valid_s, "not between `renew` and `lifetime`")
    section.check("share", pool.has_twins and pool.valid_s > hold_s / 2, "wants a `hold` of at least twice `lifetime`")
    pool = replace(pool, preferred_s=preferred, renew_s=renew, rebind_s=rebind)
    if isinstance(pool.source, Follow):
        section.check("prefix", pool.source.kind == "grantor" and pool.source.name not in grantors,
                      f"no [grantor {pool.source.name}]")
        return pool
    try:
        return placed(pool, pool.source)
    except ValueError as why:
        key, _, what = str(why).partition(": ")
        raise section.error(key, what) from None


def check_pools(section: Section, terms: Terms, pools: Mapping[str, Pool]) -> None:
    for name in terms.pools:
        section.check("pools", name not in pools, f"no pool named '{name}' (have: {', '.join(pools) or 'none'})")


def read_agreement(section: Section, pools: Mapping[str, Pool]) -> Agreement:
    agreement = Agreement(name=section.name, **section.parsed())
    check_pools(section, agreement, pools)
    section.check("was", agreement.key in agreement.was, "the key that it has now")
    return agreement


def read_guards(sections: list[Section], pools: Mapping[str, Pool], secret: str, tunnels: Container[str],
                ) -> tuple[WireguardSection, ...]:
    guards: list[WireguardSection] = []
    for section in sections:
        guard = WireguardSection(name=section.device(), secret=secret, **section.parsed())
        check_pools(section, guard, pools)
        section.check("keepalive", guard.keepalive_s > 0xFFFF, "65535s at most")
        section.check("endpoint", len(str(guard.endpoint)) > MAX_TEXT, f"more than {MAX_TEXT} letters are not read")
        section.check("allowed", len(guard.allowed) > MAX_ALLOWED, f"more than {MAX_ALLOWED} have no room in an answer")
        section.check("address", bool(guard.addresses) and not guard.port,
                      "wants `listen`: it is for an interface that is made")
        section.check("", guard.port > 0 and guard.dev in tunnels, f"[tunnel {guard.dev}] makes it (listen = none?)")
        for other in guards:
            section.check("add_peers", guard.adds_peers and other.adds_peers,
                          f"[wireguard {other.dev}] adds them already")
        guards.append(guard)
    return tuple(guards)


def read_contacts(sections: Iterable[Section], tunnels: Iterable[Section], secret: str) -> tuple[Contact, ...]:
    """Each grantor with its [tunnel]; by that leaves what it gives, unless its `default` says otherwise."""
    found = {section.name: Contact(name=section.name, **section.parsed()) for section in sections}
    for section in tunnels:
        tunnel = Tunnel(name=section.device(), secret=secret, **section.parsed())
        contact = found.get(tunnel.grantor)
        if contact is None:
            raise section.error("grantor", f"no [grantor {tunnel.grantor}] (have: {', '.join(found) or 'none'})")
        if contact.tunnel is not None:
            raise section.error("grantor", f"[tunnel {contact.tunnel.dev}] leads there already")
        default = contact.default or Default(Reach("", tunnel.dev), redistribute=False)
        found[contact.name] = replace(contact, tunnel=tunnel, default=default)
    return tuple(found.values())


def read_ndp(section: Section) -> Ndp:
    ndp = Ndp(name=section.device(), **section.parsed())
    section.check("proxy", ndp.dev in ndp.inner, f"asks on {ndp.dev} itself")
    section.check("autowire", ndp.autowire and not ndp.inner, "wants a rule `iface`")
    section.check("ttl", ndp.ttl_s > 3600, "an hour at most (without a unit: seconds)")
    return ndp


def needs_of(kind: str, got: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The capabilities that a section wants, and the key that says so."""
    if kind == "ddpd":
        return [("CAP_NET_BIND_SERVICE", "listen")] if any(place.port < 1024 for place in got["listen"]) else []
    if kind == "grantor":
        return [("CAP_NET_ADMIN", "install")] if got["install"] else []
    if kind == "grantee":
        return [("CAP_NET_ADMIN", "route")] if got["route"] != "none" else []
    if kind == "wireguard":
        return [("CAP_NET_ADMIN", ""), *([("CAP_NET_BIND_SERVICE", "dynamic")] if got["dynamic"] else [])]
    if kind == "ndp":
        changes = [key for key in ("method", "autowire") if got[key] in ("kernel", True)]
        return [("CAP_NET_RAW", "proxy"), *(("CAP_NET_ADMIN", key) for key in changes)]
    return [("CAP_NET_ADMIN", "")] if kind == "tunnel" else []


def all_needs(sections: Iterable[Section], folder: str) -> tuple[Need, ...]:
    """The capabilities that are needed, with the first place that needs each; a folder of grantees wants routes."""
    found: dict[str, str] = {}
    for section in sections:
        if section.kind == "grantee" and "CAP_NET_ADMIN" in found:
            continue                                              # 10,000 of them say the same
        for capability, key in needs_of(section.kind, section.parsed()):
            found.setdefault(capability, f"line {section.line_of(key)}: [{section.head}] {key}".rstrip())
    if folder:
        found.setdefault("CAP_NET_ADMIN", f"the files in {folder}")
    return tuple(Need(*row) for row in sorted(found.items()))


# -- what must not be twice ----------------------------------------------------------


def check_apart(sections: list[Section], found: Iterable[tuple[Section, str, Prefix]]) -> None:
    """No two of these prefixes may overlap: sorted, a prefix can only overlap its neighbour."""
    ordered = sorted(found, key=lambda row: row[2])
    for (first, _, one), (second, key, other) in pairwise(ordered):
        if not one.overlaps(other):
            continue
        if sections.index(second) > sections.index(first):
            raise second.error(key, f"{other} overlaps {one} of [{first.head}]")
        raise first.error(key, f"{one} overlaps {other} of [{second.head}]")


def check_unique(sections: list[Section]) -> None:
    seen: dict[str, Section] = {}
    for section in sections:
        if section.head in seen:
            raise section.error("", f"given twice (first in line {seen[section.head].line})")
        seen[section.head] = section
        keyed = f"{section.kind} {section.text_of('key')}"
        if section.kind in ("grantee", "grantor") and "key" in section.values:
            if keyed in seen:
                raise section.error("key", f"the same as [{seen[keyed].head}]")
            seen[keyed] = section
    # A key in `was` belongs to exactly one grantee, and is nobody's current key.
    grantees = [section for section in sections if section.kind == "grantee"]
    keys = {section.text_of("key"): section.head for section in grantees}
    for section in grantees:
        for old in words(section.text_of("was")):
            section.check("was", old in keys, f"the key of [{keys.get(old, '')}], too")
            keys[old] = section.head


# -- the files that it names ---------------------------------------------------------


class Pins:
    """The leases that the operator has fixed, in order; none overlaps another.  Made for 100,000 of them."""

    def __init__(self, ordered: list[Prefix], owners: list[bytes], before: Pins | None = None) -> None:
        self.ordered, self.owners = ordered, owners               # owner empty: of nobody configured here
        self.before = before                                      # those that they replace ...
        self.gone: list[Prefix] = []                              # ... and in what they differ
        self.come: list[Prefix] = []
        self.lost = 0                                             # that somebody had, and has no longer

    def compare(self) -> None:
        """Both are in order, so one walk along them does."""
        if self.before is None:
            return
        old, new, at = self.before, self, 0
        for pin, owner in zip(old.ordered, old.owners, strict=True):
            come = at
            while at < len(new.ordered) and new.ordered[at] < pin:
                at += 1
            self.come += new.ordered[come:at]
            if at < len(new.ordered) and new.ordered[at] == pin:
                self.lost += owner not in (b"", new.owners[at])
                at += 1
            else:
                self.gone.append(pin)
                self.lost += 1
        self.come += new.ordered[at:]

    def overlapping(self, prefix: Prefix) -> Iterator[tuple[Prefix, bytes]]:
        """Those that this prefix overlaps, and whose they are."""
        at = bisect_left(self.ordered, prefix)
        if at and self.ordered[at - 1].holds(prefix):
            yield self.ordered[at - 1], self.owners[at - 1]
        while at < len(self.ordered) and prefix.holds(self.ordered[at]):
            yield self.ordered[at], self.owners[at]
            at += 1

    def clear_for(self, key: bytes, prefix: Prefix) -> bool:
        """It overlaps no pin, or lies inside of one of its own."""
        return not self.ordered or all(owner == key and pin.holds(prefix) for pin, owner in self.overlapping(prefix))


class PinRow(NamedTuple):
    """One row of a file of pins, as text."""

    file: str
    line: int
    id: str
    address: str
    prefix: str


GranteeFile = tuple[str, str, Callable[[], str]]                  # file, name of the grantee, what reads it


class Files:
    """What a configuration names, and has to be read too.  Here: nothing."""

    def grantees(self, folder: str) -> Iterator[GranteeFile]:
        """Each file; ConfigError if the folder cannot be read."""
        raise ConfigError(f"{folder}: no files here")

    def pins(self, file: str) -> Iterator[PinRow | str]:
        """Each row, or what is wrong with it; ConfigError if it is no file of pins."""
        raise ConfigError(f"{file}: no files here")


def pin_columns(file: str, head: list[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in head]
    for name in ("id", "address", "prefix"):
        if name not in names:
            raise ConfigError(f"{file}:1: no column '{name}' (have: {', '.join(names) or 'nothing'})")
    return {name: names.index(name) for name in ("id", "address", "prefix")}


def pins_in(row: PinRow) -> list[Prefix]:
    """What a row fixes; ValueError if it is bad."""
    if not row.id:
        raise ValueError("no id")
    found = [address(row.address)] if row.address else []
    if row.prefix:
        if "/" not in row.prefix:
            raise ValueError(f"'{row.prefix}' is no prefix (no length)")
        found.append(parse_prefix(row.prefix))
    if not found:
        raise ValueError("neither address nor prefix")
    for pin in found:
        if pin.length < {4: 8, 6: 16}[pin.version] or is_nobodys(pin):
            raise ValueError(f"{pin} is too large, or nobody's to give")
    return found


def head_in(text: str) -> str:
    """The first line that says anything, if it begins a section."""
    begun = next((line for line in map(without_comment, text.split("\n")) if line), "")
    return begun if begun.startswith("[") else ""


def named_in(text: str) -> str:
    return " ".join(head_in(text).strip("[]").split()).removeprefix("grantee ")


PlacedPin = tuple[Prefix, int, bytes]    # pin, where it stands, whose


class Draft:
    """A configuration while it is read."""

    def __init__(self, before: Config | None) -> None:
        self.before = before
        self.old = {old.name: old for old in before.agreements.values()} if before else {}
        self.pools: dict[str, Pool] = {}
        self.agreements: dict[bytes, Agreement] = {}
        self.keys: dict[str, bytes] = {}                          # of grantees, by name
        self.skipped: list[str] = []
        self.unknown: list[str] = []                              # ids of pins that nobody has, the first of them
        self.places: list[PlacedPin] = []
        self.stale: list[tuple[int, Agreement]] = []              # of files that have gone bad, and where they stand
        self.files: list[str] = []                                # that have places

    def skip(self, what: str) -> None:
        if len(self.skipped) < MAX_NAMED:
            self.skipped.append(what)
        elif len(self.skipped) == MAX_NAMED:
            self.skipped.append("(and more that are not named)")

    def admit(self, agreement: Agreement) -> None:
        self.agreements[agreement.key] = agreement
        self.keys[agreement.name] = agreement.key

    def read_folder(self, files: Iterable[GranteeFile]) -> None:
        """A bad file costs nobody else anything: it is named, and what it said before goes on."""
        for file, name, read in files:
            text = ""
            try:
                text = read()
                self.read_grantee(file, name, text)
            except ConfigError as why:
                self.skip(str(why))
                old = self.old.get(named_in(text) or name)
                if old is not None and old.name not in self.keys and old.key not in self.agreements:
                    self.stale.append((self.order(file, 1), old))
                    self.admit(old)

    def read_grantee(self, file: str, name: str, text: str) -> None:
        head = "" if head_in(text) else section_of(file, 1, f"[grantee {name}]").head
        for section in read_sections(text, file, head):
            section.check("", section.kind != "grantee", "only a [grantee] stands here")
            agreement = read_agreement(section, self.pools)
            section.check("", agreement.name in self.keys, "a grantee of this name stands elsewhere too")
            twin = self.agreements.get(agreement.key)
            section.check("key", twin is not None, f"the same as that of {twin.name if twin else ''}")
            self.add_pins(agreement.pins, file, section.line, agreement.key)
            self.admit(agreement)

    def add_pins(self, pins: Iterable[Prefix], file: str, line: int, owner: bytes) -> None:
        order = self.order(file, line)
        self.places += [(pin, order + n, owner) for n, pin in enumerate(pins)]

    def order(self, file: str, line: int) -> int:
        """Where pins stand: file, line, and room for their number there."""
        if not self.files or self.files[-1] != file:
            self.files.append(file)
        return (len(self.files) - 1) << 48 | line << 16

    def place(self, order: int) -> str:
        return f"{self.files[order >> 48]}:{order >> 16 & 0xFFFFFFFF}"

    def read_pins(self, rows: Iterable[PinRow | str]) -> None:
        for row in rows:
            if isinstance(row, str):
                self.skip(row)
                continue
            try:
                self.add_pins(pins_in(row), row.file, row.line, self.owner(row.id))
            except ValueError as why:
                self.skip(f"{row.file}:{row.line}: skipped: {why}")

    def owner(self, text: str) -> bytes:
        """Whose a row is: a grantee's by name or key; empty if nobody's here, and then it is only kept from others."""
        key = self.keys.get(text, b"")
        if not key and text.endswith("="):
            try:
                key = public_key(text)
            except ValueError:
                pass
        if key in self.agreements:
            return key
        if len(self.unknown) < MAX_UNKNOWN and text not in self.unknown:
            self.unknown.append(text)
        return b""

    def pins(self) -> Pins:
        """All of them; of two that overlap, the one that stands later is left out."""
        if self.stale:
            known = {(pin, owner) for pin, _, owner in self.places}
            self.places += [(pin, order + n, old.key) for order, old in self.stale for n, pin in enumerate(old.pins)
                            if (pin, old.key) not in known]
        # Sorting holds the interpreter: in runs, so that nobody waits for 100,000.
        runs = [sorted(self.places[at : at + PIN_BATCH]) for at in range(0, len(self.places), PIN_BATCH)]
        self.places = []
        kept: list[PlacedPin] = []
        group: list[PlacedPin] = []                               # the first, and what lies inside of it
        for row in merge(*runs):
            if group and not group[0][0].holds(row[0]):
                kept += self.apart(group)
                group = []
            group.append(row)
        kept += self.apart(group)
        self.hand_out(kept)
        pins = Pins([row[0] for row in kept], [row[2] for row in kept], self.before.pins if self.before else None)
        pins.compare()
        return pins

    def apart(self, group: list[PlacedPin]) -> list[PlacedPin]:
        """In the order in which they stand: what overlaps none that is kept is kept."""
        if len(group) < 2:
            return group
        lengths = {row[0].length for row in group}
        taken: dict[Prefix, PlacedPin] = {}
        around: dict[Prefix, PlacedPin] = {}                      # what holds one that is taken
        for row in sorted(group, key=itemgetter(1)):
            holding = [row[0].network(length) for length in lengths if length <= row[0].length]
            good = around.get(row[0]) or next((taken[pin] for pin in holding if pin in taken), None)
            if good is None:
                taken[row[0]] = row
                around.update(dict.fromkeys(holding, row))
            else:
                self.skip(f"{self.place(row[1])}: skipped: {row[0]} overlaps {good[0]} of {self.place(good[1])}")
        return sorted(taken.values())

    def hand_out(self, kept: list[PlacedPin]) -> None:
        """Each agreement gets its pins, in the order in which they stand."""
        of: dict[bytes, list[tuple[int, Prefix]]] = {}
        for pin, order, owner in kept:
            if owner:
                of.setdefault(owner, []).append((order, pin))
        for key, agreement in self.agreements.items():
            pins = tuple(pin for _, pin in sorted(of.get(key, ()), key=itemgetter(0)))
            if pins != agreement.pins:
                self.agreements[key] = replace(agreement, pins=pins)


def read_config(text: str, file: str, files: Files | None = None, before: Config | None = None) -> Config:
    """Text to values; ConfigError names the first thing that is wrong.

    files: what reads the files that it names; None: it may name none.  before: the configuration that it replaces.
    """
    files = files or Files()
    sections = read_sections(text, file)
    check_unique(sections)
    of = {kind: [section for section in sections if section.kind == kind] for kind in SETTINGS}
    main = (of["ddpd"] or [Section(file, "ddpd", 1)])[0].parsed()
    contacts = read_contacts(of["grantor"], of["tunnel"], main["key"])
    draft = Draft(before)
    draft.pools = {section.name: read_pool(section, main["hold_s"], [contact.name for contact in contacts])
                   for section in of["pool"]}
    check_apart(sections, [(section, "prefix", draft.pools[section.name].prefix) for section in of["pool"]
                           if draft.pools[section.name].follows is None])
    pinned = []
    for section in of["grantee"]:
        agreement = read_agreement(section, draft.pools)
        draft.admit(agreement)
        pinned += [(section, "pin", pin) for pin in agreement.pins]
        draft.add_pins(agreement.pins, file, section.line, agreement.key)
    check_apart(sections, pinned)
    if main["folder"]:
        draft.read_folder(files.grantees(main["folder"]))
    for name in main["pin_files"]:
        draft.read_pins(files.pins(name))
    pins = draft.pins()
    if draft.pools and not main["listen"]:
        main["listen"] = (HostPort("::", PORT),)
    return Config(
        file=file, **main, pools=tuple(draft.pools.values()), agreements=draft.agreements, contacts=contacts,
        ndp=tuple(read_ndp(section) for section in of["ndp"]),
        guards=read_guards(of["wireguard"], draft.pools, main["key"], [section.name for section in of["tunnel"]]),
        needs=all_needs(sections, main["folder"]), pins=pins, skipped=tuple(draft.skipped),
        unknown=tuple(draft.unknown))


def devices_of(config: Config) -> frozenset[str]:
    """Every word of the configuration by which it may mean an interface."""
    found = {pool.follows.name for pool in config.pools if pool.follows is not None}
    for contact in config.contacts:
        found |= {lan.dev for line in contact.lines for lan in line.lans}
        found |= {host.rpartition("%")[2] for host, _ in contact.addresses}
        if contact.default is not None and contact.default.reach is not None:
            found.add(contact.default.reach.dev)
        if contact.tunnel is not None:
            found.add(contact.tunnel.dev)
    for agreement in config.agreements.values():
        if isinstance(agreement.route, Reach):
            found.add(agreement.route.dev)
    for ndp in config.ndp:
        found |= {ndp.dev, *ndp.inner}
    return frozenset(found | {guard.dev for guard in config.guards})


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
# `epoch` counts the crashes: a lease whose epoch is older was not renewed in the run that
# crashed last, so the time since that began has passed for it.

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
        for number, record in found.values():                     # one record a line, and this one in this
            line = lines[number - 1]
            if f'"serial": {record["serial"]}' not in line or line.count('"kind"') != 1:
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

    def grown(self, wanted: int) -> Write:
        """What to write for so many blank lines more, or some more than that."""
        return self.lines * LINE, BLANK * (-(-wanted // SPARE_LINES) * SPARE_LINES) + b"]\n"

    def add_blanks(self, wanted: int) -> None:
        """They are there."""
        more = -(-wanted // SPARE_LINES) * SPARE_LINES
        self.blanks[:0] = range(self.lines + more - 1, self.lines - 1, -1)
        self.lines += more

    def batch(self, changes: Mapping[Key, Record | None]) -> tuple[list[Write], list[Write]]:
        """What to write and flush first, and what (old lines) may be written after."""
        writes: list[Write] = []
        late, self.stale = self.stale, []
        old = list(late)
        short = sum(record is not None for record in changes.values()) - len(self.blanks)
        if short > 0:
            writes.append(self.grown(short))
            self.add_blanks(short)
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


OnFile = tuple[dict[Key, tuple[int, Record]], list[Damage]]     # records with their lines, and what is none


def parse_lease_file(lines: list[str]) -> OnFile:
    """The latest record of each key and its line, and what could not be read."""
    latest: dict[Key, tuple[int, Record]] = {}
    damage = []
    for number, record in records_in(lines):
        if isinstance(record, Damage):
            damage.append(record)
            continue
        try:
            if record["kind"] == "file":
                if number == 1 and record["version"] != FILE_VERSION:
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
TABLES: Final = 16                       # of one daemon, until they meet those of the next mark


def table_of(mark: int, n: int) -> int:
    """For the n-th grantor's default routes: 720 and up for 221.  BusyBox's `ip` knows none above 1023."""
    return 256 + (mark * TABLES + n) % 768


class Route(NamedTuple):
    """Neither via nor dev: unreachable.  With a source: only for traffic from there (IPv6).  It carries our mark."""

    prefix: Prefix
    table: int
    reach: Reach = Reach("", "")
    source: Prefix | None = None
    mtu: int = 0                         # 0: that of the interface
    leaves_by: str = ""                  # the address of ours that packets are sent from; empty: the kernel's choice

    @property
    def id(self) -> Key:
        return ("1 route", self.table, self.prefix, str(self.source or ""))

    @property
    def version(self) -> int:
        return self.prefix.version

    def words(self, mark: int) -> str:
        via, dev = self.reach
        words_ = str(self.prefix) if via or dev else f"unreachable {self.prefix}"
        words_ += f" from {self.source}" if self.source else ""
        if via:
            words_ += f" via inet6 {via}" if self.version == 4 and ":" in via else f" via {via}"
        words_ += f" dev {dev}" if dev else ""
        words_ += f" table {self.table} proto {mark} metric {mark * 100}"
        words_ += f" src {self.leaves_by}" if self.leaves_by else ""
        return words_ + (f" mtu {self.mtu}" if self.mtu else "")

    def add_line(self, mark: int, _: Now) -> str:
        return f"route replace {self.words(mark)}"

    def delete_lines(self, mark: int) -> list[str]:
        return [f"route del {self.words(mark)}"]


class Address(NamedTuple):
    dev: str
    address: Prefix                      # host bits and all
    prefers_until: float = 0.0
    valid_until: float = 0.0
    link: int = 0                        # the interface's index when it was made: another one may have its name now

    @property
    def id(self) -> Key:
        return ("2 address", self.dev, self.address)

    @property
    def version(self) -> int:
        return self.address.version

    def words(self, _: int) -> str:
        return f"{self.address} dev {self.dev}"

    def add_line(self, mark: int, now: Now) -> str:
        def left(until: float) -> str:
            return "forever" if until == inf else str(max(0, int(until - now.boot)))
        return (f"addr replace {self.words(mark)} valid_lft {left(max(self.valid_until, now.boot + 1))} "
                f"preferred_lft {left(self.prefers_until)}")

    def delete_lines(self, mark: int) -> list[str]:
        """The kernel takes the route to the subnet away only with an address that has no lifetime."""
        last = [f"addr del {self.words(mark)}"]
        if self.version == 4:
            return last
        return [f"addr change {self.words(mark)} valid_lft forever preferred_lft forever", *last]

    def record(self) -> Record:
        return {"kind": "made", "what": f"address {self.address} {self.dev}", "link": self.link}


class Rule(NamedTuple):
    """Without a source: main, but not its default route."""

    version: int
    source: Prefix | None
    table: int

    @property
    def id(self) -> Key:
        return ("3 rule", self.version, str(self.source or ""), self.table)

    def words(self, mark: int) -> str:
        if self.source is None:
            return f"pref {mark * 100} lookup main suppress_prefixlength 0"
        return f"pref {mark * 100 + 1} from {self.source} lookup {self.table}"

    def add_line(self, mark: int, _: Now) -> str:
        return f"rule add {self.words(mark)}"

    def delete_lines(self, mark: int) -> list[str]:
        return [f"rule del {self.words(mark)}"]

    def record(self) -> Record:
        return {"kind": "made", "what": f"rule{self.version} {self.source or 'all'} {self.table}"}


class Neighbour(NamedTuple):
    """An address for which the kernel answers solicitations on an interface."""

    dev: str
    address: Prefix

    @property
    def id(self) -> Key:
        return ("4 neighbour", self.dev, self.address)

    @property
    def version(self) -> int:
        return self.address.version

    def words(self, _: int) -> str:
        return f"proxy {self.address.host} dev {self.dev}"

    def add_line(self, mark: int, _: Now) -> str:
        return f"neigh add {self.words(mark)}"

    def delete_lines(self, mark: int) -> list[str]:
        return [f"neigh del {self.words(mark)}"]

    def record(self) -> Record:
        return {"kind": "made", "what": f"neighbour {self.address} {self.dev}"}


class Interface(NamedTuple):
    """A WireGuard interface that we make, and its one peer (a grantor's has none from us), with all that is set."""

    dev: str
    peer: bytes = b""
    endpoint: str = ""                   # empty: stays as it is
    allowed: tuple[Prefix, ...] = ()
    keepalive_s: int = 0
    mtu: int = 0                         # 0: the kernel's choice
    secret: str = ""                     # the file of our private key; empty: nothing is known but that it is ours
    port: int = 0                        # 0: any
    own: bytes = b""                     # our public key when it was made: by that it is told from others of its name

    @property
    def id(self) -> Key:
        return ("0 interface", self.dev)

    def add_line(self, _mark: int, _now: Now) -> str:
        what = f"peer {show_key(self.peer)}" if self.peer else f"listen-port {self.port}"
        return f"interface add {self.dev} {what}"

    def delete_lines(self, _: int) -> list[str]:
        return [f"interface del {self.dev}"]

    def record(self) -> Record:
        return {"kind": "made", "what": f"interface {self.dev}", "peer": show_key(self.peer) if self.peer else "",
                "endpoint": self.endpoint, "own": show_key(self.own) if self.own else ""}


class WgPeer(NamedTuple):
    """One that a WireGuard interface of somebody else's has from us."""

    dev: str
    key: bytes

    @property
    def id(self) -> Key:
        return ("5 peer", self.dev, self.key)

    def add_line(self, _mark: int, _now: Now) -> str:
        return f"peer add {self.dev} peer {show_key(self.key)}"

    def delete_lines(self, _: int) -> list[str]:
        return [f"peer del {self.dev} peer {show_key(self.key)}"]

    def record(self) -> Record:
        return {"kind": "made", "what": f"peer {self.dev} {show_key(self.key)}"}


class AllowedIp(NamedTuple):
    """What a peer may send from, and is sent: WireGuard's routing table.  Of an interface, one peer has it."""

    dev: str
    key: bytes
    prefix: Prefix

    @property
    def id(self) -> Key:
        return ("6 allowed", self.dev, self.prefix, self.key)

    def add_line(self, _mark: int, _now: Now) -> str:
        return f"allowed-ips add {self.dev} peer {show_key(self.key)} {self.prefix}"

    def delete_lines(self, _: int) -> list[str]:
        return [f"allowed-ips del {self.dev} peer {show_key(self.key)} {self.prefix}"]

    def record(self) -> Record:
        return {"kind": "made", "what": f"allowed {self.dev} {show_key(self.key)} {self.prefix}"}


# `id` is what a thing replaces; the order of the ids is the order of installing.  `add_line` and
# `delete_lines` are its words of `ip`; those of `wg` only a person reads them, in the log.  What has a
# record carries no mark in the kernel.
IpThing = Route | Address | Rule | Neighbour
WgThing = Interface | WgPeer | AllowedIp
Unmarked = Address | Rule | Neighbour | WgThing
Thing = Route | Unmarked


def made_of(record: Record) -> Unmarked:
    """From its record in the lease file; KeyError, TypeError or ValueError."""
    noun, *rest = str(record["what"]).split()
    if noun == "interface":
        peer, own = (public_key(record[name]) if record[name] else b"" for name in ("peer", "own"))
        endpoint = str(record["endpoint"])
        if endpoint:
            host_port(endpoint)
        return Interface(device(*rest), peer, endpoint, own=own)
    if noun == "peer":
        return WgPeer(device(rest[0]), public_key(rest[1]))
    if noun == "allowed":
        return AllowedIp(device(rest[0]), public_key(rest[1]), parse_prefix(rest[2]))
    prefix, where = rest
    if noun == "address":
        return Address(device(where), parse_interface(prefix), link=whole(0, 2**31)(str(record.get("link", 0))))
    if noun == "neighbour":
        return Neighbour(device(where), parse_interface(prefix))
    return Rule({"rule4": 4, "rule6": 6}[noun], None if prefix == "all" else parse_prefix(prefix),
                whole(0, 2**32 - 1)(where))


class Wanted:
    """What should be in the kernel and on disk, and what of it has changed since it was last looked at."""

    def __init__(self) -> None:
        self.things: dict[Key, Thing] = {}
        self.changed: set[Key] = set()
        self.records: dict[Key, Record | None] = {}               # to be written; None: to be forgotten

    def put(self, thing: Thing) -> None:
        key = thing.id
        if self.things.get(key) != thing:
            self.things[key] = thing
            self.changed.add(key)

    def take(self, key: Key) -> None:
        if self.things.pop(key, None) is not None:
            self.changed.add(key)

    def record(self, record: Record) -> None:
        self.records[key_of(record)] = record

    def forget_record(self, key: Key) -> None:
        self.records[key] = None


def plan(installed: Mapping[Key, Thing], wanted: Mapping[Key, Thing], keys: Iterable[Key],
         ) -> tuple[list[Thing], list[Thing]]:
    """What to remove, then what to add, to make `installed` equal `wanted` at these keys."""
    ordered = sorted(keys)
    gone = [installed[key] for key in ordered if key in installed and key not in wanted]
    new = [wanted[key] for key in ordered if key in wanted and wanted[key] != installed.get(key)]
    return gone[::-1], new


def left_behind(installed: Iterable[Thing], links: Links, rules: Iterable[Rule]) -> list[Unmarked]:
    """What carries no mark and is on no record, but has our mark around it: made by a ddpd whose lease file is lost.

    Addresses inside of a prefix for which there is an unreachable route of ours, and the rules that send its traffic to
    a table in which there is a route of ours.
    """
    routes = [thing for thing in installed if isinstance(thing, Route)]
    ours = [route.prefix for route in routes if route.table == MAIN and not any(route.reach)]
    tables = {route.table for route in routes if route.table != MAIN}
    found: list[Unmarked] = [Address(links.names.get(index, ""), own, link=index) for index, own in links.addresses
                          if (index, own) in links.timed       # what lasts is the operator's
                          and any(prefix.holds(own._replace(length=WIDTH[own.version])) for prefix in ours)]
    found += [rule for rule in rules if rule.table in tables and rule.source is not None]
    return found + [rule for rule in rules if rule.source is None and any(isinstance(thing, Rule) for thing in found)]


# -- what the kernel says, by netlink ------------------------------------------------

NLMSG: Final = struct.Struct("=IHHII")           # length, type, flags, sequence, port
RTM: Final = {"link": 16, "address": 20, "route": 24, "neighbour": 28, "rule": 32}
RTM_DELETED, RTM_GET = 1, 2                      # ... from those, that of what has gone, and of a question
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 2, 3, 4, 5, 6, 7
RTA_METRICS, RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 8, 9, 15, 18
RTAX_MTU, RTN_UNICAST, RTN_LOCAL, RTPROT_KERNEL, RTM_F_FIB_MATCH = 2, 1, 2, 2, 0x2000
IFA_ADDRESS, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME, IFLA_PROP_LIST, IFLA_ALT_IFNAME = 1, 2, 1, 3, 52, 53
IFA_F_DEPRECATED, IFA_F_DADFAILED, IFA_F_TENTATIVE, IFA_F_PERMANENT = 0x20, 0x08, 0x40, 0x80
NDA_DST, NTF_PROXY, ARPHRD_ETHER = 1, 0x08, 1
IFF_UP, IFF_POINTOPOINT, IFF_RUNNING, IFF_NOARP = 0x1, 0x10, 0x40, 0x80
FRA_SRC, FRA_PRIORITY, FRA_TABLE = 2, 6, 15


def netlink_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each message in one read."""
    at = 0
    while at + NLMSG.size <= len(data):
        length, kind, _, _, _ = NLMSG.unpack_from(data, at)
        yield kind, data[at + NLMSG.size : at + length]
        at += max(NLMSG.size, length + 3 & ~3)


def each_attribute(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + 4 <= len(body):
        length, number = struct.unpack_from("=HH", body, at)
        yield number & 0x3FFF, body[at + 4 : at + length]
        at += max(4, length + 3 & ~3)


def attributes(body: bytes, at: int) -> dict[int, bytes]:
    return dict(each_attribute(body, at))


def attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value.ljust(len(value) + 3 & ~3, b"\0")


def number_in(found: Mapping[int, bytes], number: int, default: int = 0) -> int:
    return int.from_bytes(found[number], byteorder) if number in found else default


@dataclass(frozen=True)
class Links:
    """Interfaces and their addresses at one moment."""

    names: dict[int, str] = field(default_factory=dict)
    addresses: tuple[tuple[int, Prefix], ...] = ()                # (interface index, address/length)
    flags: dict[int, int] = field(default_factory=dict)           # down and up again loses routes
    fading: frozenset[tuple[int, Prefix]] = frozenset()           # addresses that are deprecated
    macs: dict[int, bytes] = field(default_factory=dict)          # of what is like Ethernet
    tentative: frozenset[tuple[int, Prefix]] = frozenset()        # addresses that may be somebody else's (RFC 4862 5.4)
    duplicate: frozenset[tuple[int, Prefix]] = frozenset()        # ... and those that are
    far_ends: tuple[tuple[int, Prefix], ...] = ()                 # (interface index, what is connected point-to-point)
    timed: frozenset[tuple[int, Prefix]] = frozenset()            # addresses that have a lifetime

    @cached_property
    def connected(self) -> frozenset[tuple[int, Prefix]]:
        """(interface index, prefix) of every directly connected network; a single address of ours is none."""
        return frozenset({*((at, own.network(own.length)) for at, own in self.addresses if not own.is_address),
                          *self.far_ends})

    @cached_property
    def lengths(self) -> frozenset[int]:
        """Of the connected networks."""
        return frozenset(prefix.length for _, prefix in self.connected)

    @cached_property
    def own(self) -> frozenset[tuple[int, int]]:
        """(IP version, number) of every address of ours."""
        return frozenset((own.version, own.first) for _, own in self.addresses)

    def neighbour(self, host: Prefix, index: int) -> bool:
        """Is this address directly connected on that interface, and not our own?"""
        return not self.is_own(host) and any((index, host.network(length)) in self.connected
                                             for length in self.lengths if length <= WIDTH[host.version])

    def has(self, dev: str, flags: int) -> bool:
        """Is there this interface, with any of these flags?"""
        return any(name == dev and self.flags.get(index, IFF_UP) & flags for index, name in self.names.items())

    def index(self, dev: str) -> int:
        """0: there is none of this name."""
        return next((index for index, name in self.names.items() if name == dev), 0)

    def is_own(self, host: Prefix) -> bool:
        return host[:2] in self.own

    def prefix_on(self, dev: str, now_has: Prefix) -> Prefix | None:
        """The IPv6 prefix of an interface: preferred ones first, global before local, what it had before others."""
        found = [((index, own) in self.fading, not GLOBAL.holds(own), own.network(own.length) != now_has,
                  own.network(own.length)) for index, own in self.addresses
                 if self.names.get(index) == dev and (GLOBAL.holds(own) or LOCAL.holds(own)) and own.length < 128]
        return min(found)[-1] if found else None


def name_of_link(found: Mapping[int, bytes], called: Container[str]) -> str:
    """An interface goes by the name that the configuration calls it by: its own, or an alternative one."""
    name = found.get(IFLA_IFNAME, b"")[:-1].decode("latin-1")
    if name in called:
        return name
    others = (value[:-1].decode("latin-1") for number, value in each_attribute(found.get(IFLA_PROP_LIST, b""), 0)
              if number == IFLA_ALT_IFNAME)
    return next((other for other in others if other in called), name)


def address_of(body: bytes) -> tuple[Prefix, Prefix | None] | None:
    """An address of ours from RTM_NEWADDR, and the prefix at its far end, if it is point-to-point."""
    found = attributes(body, 8)
    local, shown = found.get(IFA_LOCAL, b""), found.get(IFA_ADDRESS, b"")
    packed = local or shown
    if len(packed) not in (4, 16):
        return None
    version, length = 4 if len(packed) == 4 else 6, body[1]
    own = Prefix(version, int.from_bytes(packed, "big"), length)
    if not local or not shown or local == shown:
        return own, None
    far_end = Prefix(version, int.from_bytes(shown, "big"), length).network(length)
    return own._replace(length=WIDTH[version]), far_end           # the length says how much lies at the far end


def links_of(replies: Iterable[tuple[int, bytes]], called: Container[str] = ()) -> Links:
    """called: the names by which the configuration calls interfaces."""
    names, flags, addresses, macs, far_ends = {}, {}, [], {}, []
    marked: dict[int, list[tuple[int, Prefix]]] = {
        flag: [] for flag in (IFA_F_DEPRECATED, IFA_F_TENTATIVE, IFA_F_DADFAILED, IFA_F_PERMANENT)}
    for kind, body in replies:
        if kind == RTM["link"]:
            index, found = int.from_bytes(body[4:8], byteorder), attributes(body, 16)
            flags[index] = int.from_bytes(body[8:12], byteorder)
            names[index] = name_of_link(found, called)
            if int.from_bytes(body[2:4], byteorder) == ARPHRD_ETHER:
                macs[index] = found.get(IFLA_ADDRESS, bytes(6))
        elif kind == RTM["address"] and body[0] in FAMILY.values() and (read := address_of(body)) is not None:
            index, (own, far_end) = int.from_bytes(body[4:8], byteorder), read
            addresses.append((index, own))
            if far_end is not None:
                far_ends.append((index, far_end))
            for flag, rows in marked.items():
                if body[2] & flag:
                    rows.append((index, own))
    tentative = frozenset(marked[IFA_F_TENTATIVE] + marked[IFA_F_DADFAILED])
    return Links(names, tuple(addresses), flags, frozenset(marked[IFA_F_DEPRECATED]), macs, tentative,
                 frozenset(marked[IFA_F_DADFAILED]), tuple(far_ends),
                 frozenset(addresses) - frozenset(marked[IFA_F_PERMANENT]))


def reach_in(found: Mapping[int, bytes], names: Mapping[int, str]) -> Reach:
    gateway = found.get(RTA_GATEWAY) or found.get(RTA_VIA, b"")[2:]        # IPv4 by an IPv6 router: behind its family
    via = inet_ntop(FAMILY[4 if len(gateway) == 4 else 6], gateway) if gateway else ""
    return Reach(via, names.get(number_in(found, RTA_OIF), ""))


def next_hops(found: dict[int, bytes]) -> Iterator[dict[int, bytes]]:
    """The attributes of a route, once for each of its next hops (struct rtnexthop); as they are if it has only one."""
    group, at = found.get(RTA_MULTIPATH, b""), 0
    if not group:
        yield found
    while at + 8 <= len(group):
        length = int.from_bytes(group[at : at + 2], byteorder)
        yield {**found, RTA_OIF: group[at + 4 : at + 8], **attributes(group[at : at + length], 8)}
        at += max(8, length + 3 & ~3)


def route_of(body: bytes, mark: int, names: Mapping[int, str]) -> Route | None:
    """A route that carries our mark, from RTM_NEWROUTE."""
    if body[0] not in FAMILY.values() or body[5] != mark:
        return None
    found = attributes(body, 12)
    if number_in(found, RTA_PRIORITY) != mark * 100:
        return None
    none = bytes(WIDTH[4 if body[0] == AF_INET else 6] // 8)
    prefix = prefix_of(found.get(RTA_DST, none), body[1])
    source = prefix_of(found[RTA_SRC], body[2]) if body[2] else None
    reach = reach_in(found, names) if body[7] == RTN_UNICAST else Reach("", "")        # reject routes say lo
    mtu = number_in(attributes(found.get(RTA_METRICS, b""), 0), RTAX_MTU)
    own = found.get(RTA_PREFSRC, b"")
    leaves_by = inet_ntop(FAMILY[4 if len(own) == 4 else 6], own) if own else ""
    return Route(prefix, number_in(found, RTA_TABLE, body[4]), reach, source, mtu, leaves_by)


def rule_of(body: bytes, mark: int) -> Rule | None:
    """A rule of our preferences, from RTM_NEWRULE."""
    found = attributes(body, 12)
    step = number_in(found, FRA_PRIORITY) - mark * 100
    if body[0] not in FAMILY.values() or not 0 <= step <= 1:
        return None
    version = 4 if body[0] == AF_INET else 6
    if step == 0:
        return Rule(version, None, MAIN)
    try:
        source = prefix_of(found.get(FRA_SRC, bytes(WIDTH[version] // 8)), body[2])
    except ValueError:                                            # host bits: none of ours
        return None
    return Rule(version, source, number_in(found, FRA_TABLE, body[4]))


def route_of_others(body: bytes, mark: int, names: Mapping[int, str]) -> Route | None:
    """A route that neither we nor the kernel itself has made, and that is no default route, from RTM_NEWROUTE."""
    if body[7] != RTN_UNICAST or body[5] in (mark, RTPROT_KERNEL) or not body[1]:
        return None
    found = attributes(body, 12)
    if RTA_DST not in found or RTA_OIF not in found:
        return None
    return Route(prefix_of(found[RTA_DST], body[1]), number_in(found, RTA_TABLE, body[4]), reach_in(found, names))


def neighbour_of(body: bytes, names: Mapping[int, str]) -> Neighbour:
    """One for which the kernel answers, from RTM_NEWNEIGH."""
    packed = attributes(body, 12).get(NDA_DST, bytes(16))
    return Neighbour(names.get(int.from_bytes(body[4:8], byteorder), ""), prefix_of(packed, len(packed) * 8))


def gone_of(kind: int, body: bytes, mark: int, names: Mapping[int, str]) -> Thing | None:
    """The route or rule of ours that a message says is gone."""
    if kind == RTM["route"] + RTM_DELETED:
        return route_of(body, mark, names)
    return rule_of(body, mark) if kind == RTM["rule"] + RTM_DELETED else None


class Way(NamedTuple):
    """How this node's packets get to a grantor."""

    reach: Reach                         # via empty: it is a neighbour
    source: str                          # from which of our addresses, IPv4 mapped; empty: from none
    is_up: bool                          # a cable in the port


class Gateway(NamedTuple):
    """A default route in the main table that ddpd did not make."""

    metric: int
    scope: int                           # index of its interface
    reach: Reach
    version: int


def gateways_of(replies: Iterable[tuple[int, bytes]], mark: int, names: Mapping[int, str]) -> tuple[Gateway, ...]:
    """Of the routes of the main table, the best first."""
    found = []
    for kind, body in replies:
        if kind != RTM["route"] or body[1:3] != b"\0\0" or body[5] == mark or body[7] != RTN_UNICAST:
            continue
        for parts in next_hops(attributes(body, 12)):
            if number_in(parts, RTA_TABLE, body[4]) == MAIN and RTA_OIF in parts:
                found.append(Gateway(number_in(parts, RTA_PRIORITY), number_in(parts, RTA_OIF), reach_in(parts, names),
                                     4 if body[0] == AF_INET else 6))
    return tuple(sorted(found))


def way_of(body: bytes, links: Links) -> Way | None:
    """What the kernel says of the way to a host; None if there is none."""
    found = attributes(body, 12)
    if body[7] not in (RTN_UNICAST, RTN_LOCAL) or RTA_OIF not in found:
        return None
    index = number_in(found, RTA_OIF)
    source = found.get(RTA_PREFSRC, bytes(16))
    return Way(reach_in(found, links.names), inet_ntop(AF_INET6, mapped(prefix_of(source, len(source) * 8))),
               bool(links.flags.get(index, 0) & IFF_RUNNING))


def default_on(way: Way, host: Prefix, version: int, gateways: Iterable[Gateway], links: Links) -> Reach | None:
    """The next hop for what a grantor gave, on the way on which it is asked; None if that is not known.

    Into a tunnel there is none.  For the family in which it is asked it is where the asks go.  For the other one
    it is the router that is the default on that interface.
    """
    dev = way.reach.dev
    if links.has(dev, IFF_POINTOPOINT | IFF_NOARP):
        return Reach("", dev)
    if version == host.version:
        return Reach(way.reach.via or host.host, dev)
    return next((gateway.reach for gateway in gateways
                 if (gateway.version, gateway.reach.dev) == (version, dev) and gateway.reach.via), None)


# ==== WIREGUARD ====================================================== pure ====
#
# An interface routes what is sent into it by its peers' allowed IPs (cryptokey routing):
# each belongs to one peer, the longest wins, and who says an entry anew for another
# peer takes it away from the first.  `wg` knows no "add": a peer's list is written as a
# whole.  So what others have put there is read first, and written back as it was.


class WgState(NamedTuple):
    """What `wg` shows of an interface."""

    key: bytes                           # its public key; empty: it has none
    port: int
    peers: dict[bytes, tuple[Prefix, ...]]                        # and their allowed IPs, in order


def allowed_of(text: str) -> dict[bytes, tuple[Prefix, ...]]:
    """From `wg show IF allowed-ips`; ValueError if it is something else."""
    found = {}
    for line in text.splitlines():
        key, _, allowed = line.partition("\t")
        found[public_key(key)] = tuple(parse_prefix(word) for word in allowed.split() if word != "(none)")
    return found


class Holders:
    """Prefixes, and who holds each; they may lie inside of one another."""

    def __init__(self, rows: Iterable[tuple[Prefix, bytes]]) -> None:
        self.owners = dict(rows)
        self.ordered = sorted(self.owners)
        self.shapes = sorted({prefix.shape for prefix in self.owners}, reverse=True)

    def around(self, prefix: Prefix) -> Iterator[Prefix]:
        """Those that hold this one, the longest first."""
        for version, length in self.shapes:
            if version == prefix.version and length <= prefix.length and prefix.network(length) in self.owners:
                yield prefix.network(length)

    def inside(self, prefix: Prefix) -> list[Prefix]:
        """Those that this one holds, but for itself."""
        after = Prefix(prefix.version, prefix.first + prefix.size, 0)
        found = self.ordered[bisect_left(self.ordered, prefix) : bisect_left(self.ordered, after)]
        return [other for other in found if other.length > prefix.length]

    def owner(self, address: Prefix) -> bytes | None:
        """Who has this address: the longest that holds it."""
        return next((self.owners[prefix] for prefix in self.around(address)), None)

    def is_anothers(self, key: bytes, prefix: Prefix) -> bool:
        """Does it overlap what somebody else holds?"""
        return bool(self.owners) and any(self.owners[other] != key
                                         for other in chain(self.around(prefix), self.inside(prefix)))


DOOR_ADDRESS: Final = parse_interface("fe80::/64")


def is_vast(prefix: Prefix) -> bool:
    """Larger than any lease: a default route, that leaves the rest to whoever is more precise."""
    return prefix.length < {4: 8, 6: 16}[prefix.version]


class Sight:
    """What is known of one [wireguard] interface."""

    def __init__(self, guard: WireguardSection) -> None:
        self.guard = guard
        self.state: WgState | None = None                         # None: it is not there ...
        self.peers: dict[bytes, tuple[Prefix, ...]] = {}          # ... and these were its peers
        self.agreements: dict[bytes, Agreement] = {}              # of its peers
        self.said: dict[str, Any] | None = None                   # what grantees were told of it
        self.missing: dict[bytes, float] = {}                     # peers that are not there, and since when

    def expect(self, key: bytes) -> None:
        """One of its peers."""
        if key not in self.agreements:
            self.agreements[key] = self.guard.agreement_with(key)

    def configure(self, guard: WireguardSection) -> None:
        """Under other terms."""
        known, self.guard, self.agreements = self.agreements, guard, {}
        for key in known:
            self.expect(key)

    def update(self, state: WgState | None, now: Now) -> list[bytes]:
        """The peers that have gone: for so long not there that they are not just written anew.

        While the interface is away, none.
        """
        self.state = state
        if state is None:
            return []
        self.peers = state.peers
        for key in self.agreements.keys() - state.peers.keys():
            del self.agreements[key]
            self.missing[key] = now.boot
        for key in state.peers:
            self.missing.pop(key, None)
            self.expect(key)
        gone = [key for key, since in self.missing.items() if now.boot - since >= PEERS_S - PEERS_GAP_S / 2]
        for key in gone:
            del self.missing[key]
        return gone


class Guards:
    """All [wireguard] interfaces: who their peers are, and what these hold that is not ours."""

    def __init__(self, guards: Iterable[WireguardSection]) -> None:
        self.sights: dict[str, Sight] = {}
        self.devs: dict[bytes, str] = {}                          # of each peer, its interface
        self.holders: dict[str, Holders] = {}                     # all allowed IPs, by interface
        self.foreign = Holders(())
        self.adding = ""                                          # the interface to which peers are added
        self.named: Mapping[bytes, Agreement] = {}                # the [grantee] sections
        self.known = set[str]()                                   # interfaces, those that are watched no more too
        self.is_stale = True                                      # what follows from them is to be found out again
        self.configure(guards)

    def configure(self, guards: Iterable[WireguardSection]) -> None:
        old, self.sights = self.sights, {}
        for guard in guards:
            sight = self.sights[guard.dev] = old.get(guard.dev) or Sight(guard)
            sight.configure(guard)
        self.adding = next((dev for dev, sight in self.sights.items() if sight.guard.adds_peers), "")
        self.known |= self.sights.keys()
        self.devs = {key: dev for key, dev in self.devs.items() if dev in self.sights}
        self.foreign = self.foreign if self.sights else Holders(())
        self.is_stale = True

    def refresh(self, made: Mapping[Key, Thing], own: Iterable[tuple[str, Prefix]]) -> None:
        """After something was seen.  own: interfaces, and their addresses."""
        self.is_stale, self.devs, rows = False, {}, list[tuple[Prefix, bytes]]()
        for dev, sight in self.sights.items():
            self.devs |= {key: dev for key in (*sight.peers, *sight.agreements) if key not in self.devs}
            all_rows = [(prefix, key) for key, allowed in sight.peers.items() for prefix in allowed]
            self.holders[dev] = Holders(all_rows)
            rows += [(prefix, key) for prefix, key in all_rows
                     if not is_vast(prefix) and AllowedIp(dev, key, prefix).id not in made]
        rows += [(address._replace(length=WIDTH[address.version]), b"") for dev, address in own if dev in self.sights]
        self.foreign = Holders(rows)

    def things(self, is_foreign: Callable[[str], bool]) -> Iterator[Thing]:
        """What is wanted of the interfaces themselves.  is_foreign: there is one, and it is not ours."""
        for dev, sight in self.sights.items():
            guard = sight.guard
            if guard.port and not is_foreign(dev):
                yield Interface(dev, secret=guard.secret, port=guard.port)
                yield from (Address(dev, address, inf, inf) for address in guard.addresses)
            if guard.dynamic:
                yield Address(dev, DOOR_ADDRESS, inf, inf)

    def holder(self, dev: str, host: Prefix) -> bytes | None:
        """Whose address this is, on that interface."""
        return self.holders[dev].owner(host) if dev in self.holders else None

    def dev_of(self, key: bytes) -> str:
        """The interface through which this grantee is reached; or nothing."""
        return self.devs.get(key) or (self.adding if self.adds(key) else "")

    def adds(self, key: bytes) -> bool:
        """Only whom the operator has named is made a peer: whoever else is none any more was removed by hand."""
        return key in self.named

    def agreements(self) -> dict[bytes, Agreement]:
        return {key: agreement for sight in reversed(self.sights.values())
                for key, agreement in sight.agreements.items()}

    def told(self, dev: str, asked_at: str | None = "") -> dict[str, Any]:
        """What a grantee needs for a tunnel to this interface.  asked_at: by which of our addresses, if that is known.

        None: it asked inside of the tunnel, so it knows the way.
        """
        sight = self.sights.get(dev)
        if sight is None or sight.state is None or not sight.state.key:
            return {}
        guard, state = sight.guard, sight.state
        endpoint = HostPort(guard.endpoint.host or asked_at or "", guard.endpoint.port or state.port)
        place = str(endpoint) if guard.endpoint.host or asked_at is not None else None
        found = {"wg_key": state.key, "wg_endpoint": place, "wg_allowed": guard.allowed,
                 "wg_keepalive": int(guard.keepalive_s) or None}
        return {name: value for name, value in found.items() if value not in NOTHING}


class PeerList(NamedTuple):
    """What is to be written: for each peer its whole list; and who is removed."""

    lists: dict[bytes, list[Prefix]]
    removed: list[bytes]
    failed: dict[int, str]               # which of the changes cannot be, and why


def peer_list(peers: Mapping[bytes, tuple[Prefix, ...]], changes: Iterable[tuple[int, WgPeer | AllowedIp, bool]],
              ) -> PeerList:
    """changes: (number, what, is it added?), allowed IPs that go before their peer.

    What is not named stays, in its order; nothing is taken from others, nor a peer that has anything of theirs.
    """
    now_have = {key: list(allowed) for key, allowed in peers.items()}
    holder = {prefix: key for key, allowed in peers.items() for prefix in allowed}
    touched, removed, failed = set[bytes](), list[bytes](), dict[int, str]()
    for number, thing, added in changes:
        if isinstance(thing, WgPeer):
            if added and thing.key not in now_have:
                now_have[thing.key] = []
                touched.add(thing.key)
            elif not added and thing.key in now_have and not now_have[thing.key]:
                removed.append(thing.key)                         # else somebody else needs it
        elif thing.key not in now_have:
            failed |= {number: "no such peer"} if added else {}
        elif added and holder.get(thing.prefix, thing.key) != thing.key:
            failed[number] = f"is an allowed IP of {short(holder[thing.prefix])}"
        elif (thing.prefix in now_have[thing.key]) != added:
            if added:
                now_have[thing.key].append(thing.prefix)
            else:
                now_have[thing.key].remove(thing.prefix)
            touched.add(thing.key)
    lists = {key: now_have[key] for key in now_have if key in touched and key not in removed}
    return PeerList(lists, removed, failed)


def addconf_text(lists: Mapping[bytes, list[Prefix]]) -> str:
    """For `wg addconf`: it replaces the allowed IPs of the peers that it names, and nothing else."""
    parts = []
    for key, allowed in lists.items():
        parts.append(f"[Peer]\nPublicKey = {show_key(key)}\n")
        parts += [f"AllowedIPs = {prefix}\n" for prefix in allowed]
    return "".join(parts)


# ==== EFFECTS ======================================================== pure ====
#
# What the roles want done at once.  What should be on disk and in the kernel is in Wanted: the
# shell brings both to that before it performs any of these, so nothing is promised that could be
# forgotten.


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
    def asked_at(self) -> str:
        """The local address; empty if it is not known."""
        return parse_host(inet_ntop(AF_INET6, self.info[:16])).host if any(self.info[:16]) else ""

    @property
    def interface(self) -> int:
        """Its index."""
        return int.from_bytes(self.info[16:20], byteorder)


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


class Account(NamedTuple):
    """A line of the accounting log."""

    lease: Key
    row: Record


ACCOUNTED: Final = {"granted": "begun", "ended": "ended", "revoked": "revoked"}
Effect = Send | Call | Lookup | Hook | Note | Account


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


def shown(value: Any) -> Any:
    """A value of a message, as JSON has it.  Of a ticket only whether there is one."""
    if isinstance(value, Want | Grant | Refusal):
        return {name: bool(part) if name == "ticket" else shown(part) for name, part in value._asdict().items()}
    if isinstance(value, tuple) and not isinstance(value, Prefix):
        return [shown(part) for part in value]
    if isinstance(value, Prefix):
        return str(value)
    return value.hex() if isinstance(value, bytes) else value


def options_shown(options: Mapping[str, Any]) -> dict[str, Any]:
    def shown(value: Any) -> Any:
        if isinstance(value, Prefix):
            return value.host if value.is_address else str(value)
        if isinstance(value, tuple):
            return [shown(item) for item in value]
        return show_key(value) if isinstance(value, bytes) else value
    return {name: shown(value) for name, value in options.items()}


def message_shown(plain: bytes) -> dict[str, Any]:
    message = decode(plain + bytes(256))                          # the zeros that were left out
    found = {row.name: shown(value) for row in message.table if (value := getattr(message, row.name)) not in NOTHING}
    return found | ({"wg_key": show_key(message.wg_key)} if isinstance(message, Answer) and message.wg_key else {})


class LeaseState(Enum):
    ACTIVE = "active"
    DEPRECATED = "deprecated"            # counts down, routed until its end
    FORMER = "former"                    # over; held back for who had it
    REVOKED = "revoked"                  # over; held back from everybody


LIVING: Final = (LeaseState.ACTIVE, LeaseState.DEPRECATED)


@dataclass(slots=True, eq=False)
class Lease:
    key: bytes                           # empty: a damaged line's, of nobody known
    slot: int
    prefix: Prefix
    state: LeaseState
    valid_s: float                       # as last promised
    valid_until: float                   # CLOCK_BOOTTIME; of what is over: when it is forgotten
    heard: float = 0.0                   # last renewed
    promised: bool = True                # once at least, and not over since
    due: float = inf                     # when the timer will look at it
    reach: Reach | None = None
    why: str = ""                        # ... there is no reach
    epoch: int = -1                      # of its last renewal
    serial: int = 0                      # as it was read from the lease file
    since: int = 0                       # wall clock: when it began
    by: str = ""                         # the handler that decided so, if that was in this run
    by_grantee: bool = False             # deprecated, as its slot wanted something else
    ticket: bytes = b""                  # of a twin, passed on

    def record(self, now: Now) -> Record:
        via, dev = self.reach or ("", "")
        return {"kind": "granted", "key": show_key(self.key), "slot": self.slot, "prefix": str(self.prefix),
                "state": self.state.value, "valid": seconds(self.valid_s),
                "left": seconds(self.valid_until - now.boot + 0.998),     # up: never less than was promised
                "via": via, "dev": dev, "since": self.since, "epoch": max(0, self.epoch)}

    @property
    def id(self) -> Key:
        return ("granted", show_key(self.key), self.slot, str(self.prefix))

    @property
    def living(self) -> bool:
        return self.state in LIVING

    @property
    def dev(self) -> str | None:
        """The interface that it is routed to, if that is known; None: it is not alive."""
        return (self.reach.dev if self.reach is not None else "") if self.living else None


STATES: Final = {state.value: state for state in LeaseState}
MAX_EPOCH: Final = 2**32 - 1


def lease_of(record: Record) -> Lease:
    """`valid_until` is the time left as written.  KeyError, TypeError or ValueError if the record is no lease."""
    key = public_key(record["key"]) if record["key"] else b""
    slot, valid_s, left_s, epoch = (int(record[name]) for name in ("slot", "valid", "left", "epoch"))
    since = int(record.get("since", 0))
    if not 0 <= slot <= 255 or not 0 <= epoch <= MAX_EPOCH or not 0 <= since < 2**40:
        raise ValueError("a number is out of bounds")
    lease = Lease(key, slot, parse_prefix(record["prefix"]), STATES[record["state"]], span(valid_s), span(left_s),
                  epoch=epoch, serial=record.get("serial", 0), since=since)
    if record["via"] or record["dev"]:
        lease.reach = parse_reach(thing_reach(Reach(record["via"], record["dev"])))
    return lease


class Glass(NamedTuple):
    """The looking glass: the last ask of a peer, what it was answered, and which handlers said so."""

    now: Now
    ask: bytes                           # as on the wire, without the padding
    answer: bytes
    by: tuple[tuple[int, str], ...]      # slot, handler


@dataclass(slots=True, eq=False)
class Peer:
    """What a grantor knows of one grantee."""

    key: bytes
    agreement: Agreement
    leases: list[Lease] = field(default_factory=list)
    stamp: int = -1                      # the largest seen ...
    last_stamp: int = -1                 # ... and that of the last ask that took effect
    run: bytes = b""                     # of the machine that holds the leases
    rival: bytes = b""                   # of another machine with the same key
    before: bytes = b""                  # the run that `run` replaced
    run_heard: float = -inf
    stale_stamp: int = -1                # the largest that was answered STALE
    reached_at: float = -inf             # when it was last decided anew how it is reached
    paces: dict[Rate, Pace] | None = None                        # of what it causes; most peers cause nothing
    full_at: float = -inf                # when its bucket is full of new leases again
    ss: bytes = b""                      # dh(our static, theirs): the same in every handshake
    live: Session | None = None
    pending: tuple[Session, ...] = ()
    path: Path | None = None             # of the last ask that took effect ...
    session: Session | None = None       # ... and its session, live or pending: nudges go there
    seen: tuple[Any, ...] = ()           # what `reach` was last decided from
    hostname: str = ""
    nudged: int = 0                      # nudges sent without an ask since ...
    nudge_at: float = -inf               # ... and when the next is due
    revoked_at: float = -inf             # when all that it had was taken back
    glass: Glass | None = None

    def pace(self, rate: Rate) -> Pace:
        """Its bucket of this kind."""
        self.paces = self.paces or {}
        return self.paces.setdefault(rate, Pace(rate))

    def living(self) -> list[Lease]:
        return [lease for lease in self.leases if lease.living]

    def active(self, slot: int) -> Lease | None:
        return next((lease for lease in self.leases if lease.slot == slot and lease.state is LeaseState.ACTIVE), None)


NOBODY: Final = Agreement(name="(no longer configured)", key=b"", pools=(), limit=1, lengths=(), pins=(), route="none",
                          total=(), bounds=(0.0, inf), until=inf, rate=Rate(1, 1.0), was=())


def full_s(agreement: Agreement, pool: Pool) -> float:
    """The lifetime of a lease of this pool, where nothing ends before."""
    low, high = agreement.bounds
    return min(max(pool.valid_s, low), high)


def preferred_of(pool: Pool, valid_s: float) -> float:
    """Of this lifetime: in the pool's proportions, where it is shorter than the pool's."""
    if valid_s > pool.valid_s - 1.0:
        return min(pool.preferred_s, valid_s)
    return pool.preferred_s * valid_s / pool.valid_s if pool.valid_s < inf else valid_s / 2


def wait_for(rate: Rate, full_at: float, now: Now) -> float:
    """Seconds until this bucket has a token; none or less: it has one."""
    return full_at - (rate.burst - 1) * rate.each_s - now.boot


class Pace:
    """A token bucket: what somebody else may cause, some at once, and then one every so many seconds."""

    __slots__ = ("full_at", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate, self.full_at = rate, -inf                      # full_at: when it is full again

    def has(self, now: Now) -> bool:
        return wait_for(self.rate, self.full_at, now) <= 0

    def take(self, now: Now) -> bool:
        """One token.  False: there is none."""
        if not self.has(now):
            return False
        self.full_at = max(self.full_at, now.boot) + self.rate.each_s
        return True


# ==== STOCK ========================================================== pure ====
#
# What of all pools is taken: by leases, and by what is fixed (holes and pins).  Where
# these overlap, the outermost is in the trie, a lease inside of it is `hidden`, and
# something fixed inside of it is `waiting` until it is free.


class Stock:
    def __init__(self) -> None:
        self.pools: tuple[Pool, ...] = ()
        self.pins = Pins([], [])
        self.holes: frozenset[Prefix] = frozenset()
        self.leased: dict[Prefix, Lease] = {}                     # all that are on file
        self.lengths: Counter[tuple[int, int]] = Counter()        # ... by family and length
        self.living: Counter[str] = Counter()                     # by pool
        self.changes = 0                                          # so many there have been
        self.rebuild()

    # -- what is fixed ---------------------------------------------------------------

    def configure(self, pools: tuple[Pool, ...], pins: Pins, foreign: Iterable[Prefix] = ()) -> None:
        """Pools that moved, other holes and pins; what others have.  What has not changed costs nothing."""
        holes = {hole for pool in pools for hole in pool.reserve}
        holes.update(taken for taken in foreign if any(pool.prefix.overlaps(taken) for pool in pools))
        for pool in pools:                                        # only of addresses: else they would break a block
            holes.update(never_leased(pool.prefix) if pool.give == (WIDTH[pool.prefix.version],) else ())
        before = [(pool.name, pool.prefix, pool.regions) for pool in self.pools]
        same = before == [(pool.name, pool.prefix, pool.regions) for pool in pools]
        known = pins is self.pins or pins.before is self.pins
        gone, come = ([], []) if pins is self.pins else (pins.gone, pins.come)
        gone, come = [*gone, *(self.holes - holes)], [*come, *(holes - self.holes)]
        self.pools, self.holes, self.pins = pools, frozenset(holes), pins
        pins.before, pins.gone, pins.come = None, [], []          # what was compared may be forgotten
        if not (known and same) or len(gone) + len(come) > PIN_BATCH or not self.adjust(gone, come):
            self.rebuild()

    def adjust(self, gone: Iterable[Prefix], come: Iterable[Prefix]) -> bool:
        """False: something overlaps, so the trie has to be built anew."""
        for prefix in gone:
            if prefix in self.waiting or prefix in self.hidden:
                return False
            if prefix not in self.leased:
                self.free(prefix)                                 # not if it is fixed otherwise
        return all(prefix in self.leased or self.take(prefix) for prefix in come)

    def is_fixed(self, prefix: Prefix) -> bool:
        return prefix in self.holes or any(pin == prefix for pin, _ in self.pins.overlapping(prefix))

    def rebuild(self, but: Prefix | None = None) -> None:
        """From all leases, pins and holes, but one."""
        self.changes += 1
        everything = sorted([*self.pins.ordered, *self.holes, *self.leased])       # the pins are in order already
        ordered = [prefix for prefix, _ in groupby(everything) if prefix != but]
        in_order = sorted(self.pools, key=lambda pool: pool.prefix)
        self.ordered, self.names = [pool.prefix for pool in in_order], [pool.name for pool in in_order]
        self.spaces: dict[str, Space] = {}
        self.waiting: set[Prefix] = set()
        self.hidden: dict[Prefix, list[Lease]] = {}
        rest: dict[int, list[Prefix]] = {4: [], 6: []}
        at = 0
        for pool in in_order:
            start = bisect_left(ordered, pool.prefix, at)
            end = bisect_left(ordered, Prefix(pool.prefix.version, pool.prefix.first + pool.prefix.size, -1), start)
            for prefix in ordered[at:start]:
                rest[prefix.version].append(prefix)
            around = [pool.prefix for prefix in rest[pool.prefix.version] if prefix.holds(pool.prefix)]
            self.spaces[pool.name] = Space(pool.prefix, pool.regions, self.apart(around[:1] + ordered[start:end]))
            at = end
        for prefix in ordered[at:]:
            rest[prefix.version].append(prefix)
        self.rest = {version: Space(Prefix(version, 0, 0), (), self.apart(rows)) for version, rows in rest.items()}
        self.living = Counter(self.pool_of(lease.prefix) for lease in self.leased.values() if lease.living)

    def apart(self, ordered: list[Prefix]) -> list[Prefix]:
        """The outermost of these; what is inside of one is noted."""
        kept: list[Prefix] = []
        version, end = 0, -1
        for prefix in ordered:                                    # in order: what covers others comes before them
            if prefix.version == version and prefix.first < end:
                if prefix in self.leased:
                    self.hidden.setdefault(kept[-1], []).append(self.leased[prefix])
                if self.is_fixed(prefix):
                    self.waiting.add(prefix)
                continue
            kept.append(prefix)
            version, end = prefix.version, prefix.first + SIZES[prefix.version][prefix.length]
        return kept

    # -- what is taken ---------------------------------------------------------------

    def around(self, prefix: Prefix) -> list[Space]:
        """Where a prefix counts: the pools that it overlaps; outside of all, the rest of the addresses."""
        at = bisect_left(self.ordered, prefix)                    # of two pools none holds the other
        if at and self.ordered[at - 1].holds(prefix):
            return [self.spaces[self.names[at - 1]]]
        end = bisect_left(self.ordered, Prefix(prefix.version, prefix.first + prefix.size, -1), at)
        found = [self.spaces[name] for name in self.names[at:end]]
        return found if found and found[0].pool == prefix else [*found, self.rest[prefix.version]]

    def take(self, prefix: Prefix) -> bool:
        taken = [space.take(prefix if space.pool.holds(prefix) else space.pool) for space in self.around(prefix)]
        return all(taken)

    def free(self, prefix: Prefix) -> None:
        if self.is_fixed(prefix):
            return
        if prefix in self.hidden or any(prefix.length < space.pool.length and prefix.holds(space.pool)
                                        for space in self.spaces.values()):
            self.rebuild(prefix)                                  # what was below it comes to light
            return
        for space in self.around(prefix):
            space.free(prefix)
        for fixed in [fixed for fixed in self.waiting if fixed.overlaps(prefix)]:
            if self.take(fixed):
                self.waiting.discard(fixed)

    def is_free(self, prefix: Prefix) -> bool:
        return all(space.is_free(prefix) for space in self.around(prefix))

    # -- leases ----------------------------------------------------------------------

    def pool_of(self, prefix: Prefix) -> str:
        """The name of the pool that it lies in, or nothing."""
        at = bisect_left(self.ordered, prefix)
        if at < len(self.ordered) and self.ordered[at] == prefix:
            return self.names[at]
        return self.names[at - 1] if at and self.ordered[at - 1].holds(prefix) else ""

    def add(self, lease: Lease) -> None:
        self.changes += 1
        self.leased[lease.prefix] = lease
        self.lengths[lease.prefix.shape] += 1
        self.living[self.pool_of(lease.prefix)] += lease.living
        if not self.take(lease.prefix) and (lease.prefix in self.waiting or not self.is_fixed(lease.prefix)):
            self.rebuild()                                        # inside of something else

    def remove(self, lease: Lease) -> None:
        if self.leased.get(lease.prefix) is not lease:
            return
        self.changes += 1
        del self.leased[lease.prefix]
        self.lengths[lease.prefix.shape] -= 1
        self.living[self.pool_of(lease.prefix)] -= lease.living
        for leases in self.hidden.values():
            if lease in leases:
                leases.remove(lease)
        self.free(lease.prefix)

    def turn(self, lease: Lease, state: LeaseState) -> None:
        """The only place that changes the state of a lease on file."""
        self.changes += 1
        self.living[self.pool_of(lease.prefix)] += (state in LIVING) - lease.living
        lease.state = state

    def covering(self, prefix: Prefix) -> Iterator[Lease]:
        """The leases that hold this prefix, or address."""
        for version, length in [shape for shape, count in self.lengths.items() if count]:
            if version == prefix.version and length <= prefix.length:
                lease = self.leased.get(prefix.network(length))
                if lease is not None:
                    yield lease

    def overlapping(self, prefix: Prefix) -> Iterator[Lease]:
        seen = set[Lease]()
        for lease in chain(self.covering(prefix), self.inside(prefix)):
            if lease not in seen:
                seen.add(lease)
                yield lease

    def inside(self, prefix: Prefix) -> Iterator[Lease]:
        """Those that lie inside of it, also where all of it is taken by something larger."""
        for space in self.around(prefix):
            for leaf in space.touching(prefix):
                if leaf in self.leased and prefix.holds(leaf):
                    yield self.leased[leaf]
                yield from (lease for lease in self.hidden.get(leaf, ()) if lease.prefix.overlaps(prefix))

    def in_order(self) -> Iterator[Lease]:
        """Sorted by prefix; only as much of it is looked at as is taken."""
        spaces = [*self.spaces.values(), *self.rest.values()]
        return (lease for _, lease in merge(*map(self.leases_in, spaces), key=itemgetter(0)))

    def leases_in(self, space: Space) -> Iterator[tuple[Prefix, Lease]]:
        for leaf in space.leaves(space.root):
            if leaf in self.leased and (space.pool.length == 0) == (not self.pool_of(leaf)):
                yield leaf, self.leased[leaf]
            yield from ((leaf, lease) for lease in self.hidden.get(leaf, ()))


# ==== CASES =========================================================== pure ====
#
# What one slot of an ask gets is decided by a chain of small handlers, each with one
# reason to exist: the first that names a prefix or a refusal ends it.  They leave everything
# as it was, so `explain` can run them too.  A site's own stand between them:
#
#     before_agreement  agreement  after_agreement  before_pins  pins  after_pins  ...
#                      (or instead_of_agreement)


class Case(NamedTuple):
    """One slot of one ask, with what the chain's handlers need to know of it."""

    peer: Peer
    want: Want
    ask: Ask
    now: Now
    pools: list[Pool]                    # agreed, of the family that it wants
    others: list[Lease]                  # what the other slots have of this family
    active: Lease | None                 # what the slot has ...
    has: Lease | None = None             # ... if it is what it wants and still agreed
    sourced: Prefix | None = None        # ... or what perhaps a handler of the site has given it

    @property
    def is_new(self) -> bool:
        return self.has is None and self.sourced is None

    def is_asked_for(self, prefix: Prefix) -> bool:
        """Does any slot of the ask want just this family and length?"""
        return any(want.prefix.shape == prefix.shape for want in self.ask.wants)

    def refuse(self, reason: Reason, again_s: float, text: str) -> Refusal:
        return Refusal(self.want.slot, reason, max(1, seconds(again_s)), text[:MAX_TEXT])


class Asked(NamedTuple):
    """What a site's handler is told of a case.  An interface: it only grows."""

    grantee: str                         # its name
    key: str                             # base64
    slot: int
    want: str                            # `::/56`, or the prefix that it names
    version: int                         # 4 or 6
    length: int
    has: str                             # what its slot has now, or nothing
    hostname: str


class Refuse(NamedTuple):
    """A site's handler says no."""

    text: str
    again_s: int = 60


Outcome = Prefix | Refusal | None
SiteHandler = Callable[[Asked, Any], Any]        # (asked, what was decided so far) -> its answer, not yet trusted


class SiteFailure(Exception):  # noqa: N818 - of a site's handler, not of ours
    """A site's handler raised, took too long or returned nonsense: this ask is refused, and the daemon goes on."""


class Verdict(NamedTuple):
    """What is decided for one slot, and by which handler."""

    by: str
    outcome: Prefix | Refusal


def printable(text: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:MAX_TEXT]


def asked_of_site(peer: Peer, want: Want, hostname: str | None) -> Asked:
    has = peer.active(want.slot)
    return Asked(peer.agreement.name, show_key(peer.key), want.slot, str(want.prefix), *want.prefix.shape,
                 str(has.prefix) if has else "", hostname or "")


def site_outcome(said: object) -> Prefix | Refuse | None:
    """What a site's handler returned, as plain values.  It may be anything, so this may raise anything."""
    if isinstance(said, Refuse):
        return Refuse(printable(str(said.text)), int(min(max(1.0, float(said.again_s)), FOREVER)))
    if said is not None and not isinstance(said, str | Prefix):
        raise SiteFailure(f"returned {type(said).__name__}, not a prefix, a Refuse or None")
    try:
        return None if said is None else parse_prefix(str(said))
    except ValueError as why:
        raise SiteFailure(str(why)) from None


def site_options(said: object) -> dict[str, Any]:
    """Options that it returned, written as in a [pool] section, as an answer has them."""
    if said is None:
        return {}
    found = {}
    for name, value in said.items() if isinstance(said, dict) else [("", said)]:
        if name not in OPTIONS or name not in SETTINGS["pool"]:
            raise SiteFailure(f"no option {name!r} (want a dict of dns, search, ntp, mtu)")
        try:
            text = " ".join(value) if isinstance(value, list | tuple) else str(value)
            found[name] = SETTINGS["pool"][name].parse(text)
        except (TypeError, ValueError) as why:
            raise SiteFailure(f"{name}: {why}") from None
    return {name: value for name, value in found.items() if value not in NOTHING}


def both_told(options: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Of two pools: their lists one after the other, each item once, and the smaller MTU."""
    found = {**more, **options}
    for name in options.keys() & more.keys():
        one, other = options[name], more[name]
        found[name] = tuple(dict.fromkeys((*one, *other))) if isinstance(one, tuple) else min(one, other)
    return found


# ==== GRANTOR ========================================================= pure ====
#
# An ask becomes an answer: `handle_ask`.  A lease is born in `begin`, renewed in `renew`, and ends in
# `end`; what is held back for its grantee after that is gone with `forget`.


def plain_answer(ask: Ask, status: Status, **rest: Any) -> Answer:
    return Answer(stamp=ask.stamp, status=status, version=PROTOCOL, **rest)


def answer_to_invalid(ask: Ask) -> Answer | None:
    """None: it can be answered slot by slot."""
    slots = [want.slot for want in ask.wants] + list(ask.releases)
    if ask.unknown:
        return plain_answer(ask, Status.UNSUPPORTED, unsupported=ask.unknown)
    if len(slots) > MAX_SLOTS:
        return plain_answer(ask, Status.INVALID, why=f"more than {MAX_SLOTS} slots")
    if len(set(slots)) < len(slots):
        return plain_answer(ask, Status.INVALID, why="a slot is named twice")
    return None


def times_of(pool: Pool, left_s: float, now: Now) -> tuple[float, float, float]:
    """T1, T2 and preferred lifetime of a lease that has this time left: in the pool's proportions."""
    preferred_s = max(0.0, min(preferred_of(pool, left_s), pool.prefers - now.boot))
    if left_s > pool.valid_s - 1.0 and pool.prefers == inf:
        return pool.renew_s, pool.rebind_s, preferred_s
    renew_s, rebind_s = (max(1.0, part * preferred_s or FADED_S) for part in (0.5, 0.8))
    return min(pool.renew_s, renew_s), min(pool.rebind_s, rebind_s), preferred_s


def configured_reach(route: str | Reach, version: int) -> tuple[Reach | None, str]:
    """A route that the operator has written down."""
    if not isinstance(route, Reach):
        return None, f"route = {route}"
    return (route, "") if route.serves(version) else (None, f"{route.via} is no gateway for IPv{version}")


class Grantor:
    """Answers asks, and remembers what it promised."""

    def __init__(self, secret: bytes, config: Config, wanted: Wanted, rand: Rand) -> None:
        self.ticket_key = digest(b"ddpd ticket" + secret)
        self.rand, self.wanted = rand, wanted
        self.config, self.agreements = config, config.agreements
        self.guards = Guards(config.guards)
        self.site: dict[str, SiteHandler] = {}
        self.links = Links()
        self.out: list[Effect] = []                               # what the call that runs makes us do
        self.by: tuple[tuple[int, str], ...] = ()                 # slots of the last ask, and what decided them
        # pools
        self.pools: dict[str, Pool] = {}                          # those that have a place now
        self.shared = False                                       # one of them with a twin
        self.unsettled: set[str] = set()                          # pools that may have a place soon
        self.stock = Stock()
        self.hopeless: set[tuple[str, int]] = set()               # pool, length: nothing to reclaim as things are
        self.own_networks = self.reserved = frozenset[Prefix]()   # of our links; and what of the pools that is
        # peers and leases
        self.peers: dict[bytes, Peer] = {}
        self.former: dict[Prefix, Lease] = {}                     # oldest first
        self.timers: list[tuple[float, int, Lease]] = []
        self.timer_count = self.dead_timers = 0
        self.full_at = -inf                                       # of the bucket of all grantees
        self.epoch = 0
        self.recovering_until = -inf
        self.disk_full = False
        self.unwritten: dict[Key, list[tuple[Lease, float]]] = {}               # new leases, and what each replaced
        self.restless: set[bytes] = set()                         # who is to be nudged ...
        self.delayed: dict[bytes, float] = {}                     # ... and who at this time
        self.reviewing: Iterator[object] = iter(())
        self.reviewed = True
        self.by_kernel: tuple[Ndp, ...] = ()                      # where the kernel answers for single addresses

    # -- an ask becomes an answer ------------------------------------------------------

    def handle_ask(self, peer: Peer, ask: Ask, path: Path, now: Now) -> tuple[Answer, list[Effect]]:
        """The answer to a fresh ask, and what has to be done before it is sent."""
        self.out, self.by = [], ()
        invalid = answer_to_invalid(ask)
        if invalid is not None:
            return invalid, self.out
        if self.is_clone(peer, ask, now):
            clones = [Refusal(want.slot, Reason.CLONE, 600, "another machine uses this key") for want in ask.wants]
            return plain_answer(ask, Status.OK, refusals=tuple(clones)), self.out
        for lease in peer.living():
            if lease.slot in ask.releases:
                self.end(lease, now)
        # Slot by slot: what one gets is taken before the next is decided.
        leases: list[Lease] = []
        refusals: list[Refusal] = []
        for want in ask.wants:
            case = self.case(peer, want, ask, now)
            verdict = self.decide(case)
            self.by += ((want.slot, verdict.by),)
            if isinstance(verdict.outcome, Refusal):
                refusals.append(verdict.outcome)
                if peer.pace(GRANTEE_LINES).take(now):
                    reason, text = reason_name(verdict.outcome.reason), verdict.outcome.text
                    self.out.append(Note(f"refused grantee={peer.agreement.name} slot={want.slot} "
                                         f"want=/{case.want.prefix.length} reason={reason} why=\"{text}\""))
                continue
            if case.active is None or case.active.prefix != verdict.outcome:
                lease = self.begin(case, verdict.outcome, verdict.by)
            else:
                lease = case.active
            lease.ticket = want.ticket if self.is_twins(lease.prefix) else b""
            leases.append(lease)
        for lease in peer.leases:
            if lease.state is LeaseState.ACTIVE and lease not in leases and not self.may_stay(peer, lease):
                self.deprecate(lease, now)
        self.renew_all(peer, leases, ask, path, now)
        leases += [lease for lease in peer.leases if lease.state is LeaseState.DEPRECATED]
        return self.answer(peer, ask, path, leases, refusals, now), self.out

    def is_clone(self, peer: Peer, ask: Ask, now: Now) -> bool:
        """Runs A, B, A are two machines; the newcomer is refused while the other renews."""
        if ask.run == peer.run:
            peer.run_heard = now.boot
            return False
        longest = max((lease.valid_s for lease in peer.living()), default=0.0)
        if ask.run == peer.rival and now.boot - peer.run_heard < longest:
            return True
        if ask.run == peer.before and ask.stamp > peer.stamp:
            if peer.pace(GRANTEE_LINES).take(now):
                self.out.append(Note(f"clone grantee={peer.agreement.name} key={short(peer.key)} (two machines)"))
            peer.rival = peer.run
        peer.before, peer.run, peer.run_heard = peer.run, ask.run, now.boot
        return False

    def may_stay(self, peer: Peer, lease: Lease) -> bool:
        """Of a slot that the ask does not name."""
        return self.agreed(peer.agreement, lease.prefix) or bool(self.unsettled.intersection(peer.agreement.pools)) \
            or (bool(self.site) and lease.by in ("", *self.site))

    def renew_all(self, peer: Peer, leases: Iterable[Lease], ask: Ask, path: Path, now: Now) -> None:
        """The full lifetime again, for all that the ask gets; and where it came from, if that has changed."""
        seen = (path.host, path.info, ask.source, self.links)
        same = peer.seen == seen
        is_soon = now.boot - peer.reached_at < REACH_GAP_S
        if not same and peer.seen and (is_soon or not peer.pace(GRANTEE_CHANGES).take(now)):
            same, seen = True, peer.seen                          # it is nudged, and then looked at again
            self.delayed[peer.key] = (peer.reached_at if is_soon else now.boot) + REACH_GAP_S
        elif not same:
            peer.reached_at = now.boot
        for lease in leases:
            is_known = same and lease.heard > 0
            reach = (lease.reach, lease.why) if is_known else self.reach(peer, lease.prefix.version, ask, path)
            self.renew(peer, lease, reach, now)
        if not same:
            for lease in peer.leases:
                if lease.state is LeaseState.DEPRECATED:          # routed to where the grantee is now, until its end
                    lease.reach, lease.why = self.reach(peer, lease.prefix.version, ask, path)
                    self.route(lease)
                    self.save(lease, now)
        peer.seen = seen
        peer.hostname = ask.hostname or ""

    def answer(self, peer: Peer, ask: Ask, path: Path, leases: list[Lease], refusals: Iterable[Refusal], now: Now,
               ) -> Answer:
        grants, t1, t2 = [], inf, inf
        options: dict[str, Any] = {}
        hour = int(max(0.0, now.wall) // 3600).to_bytes(4, "big")
        dev = ""
        for lease in leases:
            pool = self.terms(peer.agreement, lease.prefix)
            left_s = lease.valid_until - now.boot
            current = lease.state is LeaseState.ACTIVE
            preferred_s = 0.0
            if pool is not None and current:
                renew_s, rebind_s, preferred_s = times_of(pool, left_s, now)
                t1, t2 = min(t1, renew_s), min(t2, rebind_s)
                options = both_told(options, pool.options)
            # A twin's ticket is passed on; for what is a twin's, we never issue one that is good.
            ticket = lease.ticket or self.ticket(lease.key, lease.slot, lease.prefix,
                                                 bytes(4) if self.is_twins(lease.prefix) else hour)
            grants.append(Grant(lease.slot, lease.prefix, current, seconds(preferred_s), seconds(left_s), ticket))
            if not dev and lease.dev in self.guards.sights:
                dev = lease.dev
        # What the ask names and is over: with no time left, so that it goes at once.
        told = {lease.prefix for lease in leases}
        over = {lease.prefix for lease in peer.leases if not lease.living} - told
        grants += [Grant(want.slot, want.prefix, False, 0, 0, bytes(TICKET_LEN)) for want in ask.wants
                   if want.prefix in over]
        if self.site:
            options = self.site_options(peer, ask, options)
        if dev:
            is_inside = self.links.names.get(path.interface) == dev
            options |= self.guards.told(dev, None if is_inside else path.asked_at)
        return plain_answer(ask, Status.OK, grants=tuple(grants), refusals=tuple(refusals),
                            times=(seconds(t1), seconds(t2)) if grants else None, **options)

    def site_options(self, peer: Peer, ask: Ask, options: dict[str, Any]) -> dict[str, Any]:
        """What the site says of the options; what it says wrongly is left out, and logged."""
        asked = asked_of_site(peer, ask.wants[0] if ask.wants else Want(0, NOWHERE), ask.hostname)
        built, options = options, {}
        for name in ("before_options", "instead_of_options", "after_options"):
            if name == "after_options" and "instead_of_options" not in self.site:
                options = {**options, **built}
            try:
                options |= self.site[name](asked, options_shown(options)) if name in self.site else {}
            except SiteFailure as why:
                self.out.append(Note(f"handler failed handler={name} grantee={peer.agreement.name} why=\"{why}\""))
        return options

    def tell_site(self, peer: Peer, answer: dict[str, Any]) -> None:
        """The site's looking glass: whatever it says, the answer is decided."""
        try:
            self.site["looking_glass"](asked_of_site(peer, Want(0, NOWHERE), ""), answer)
        except SiteFailure:
            pass                                                  # is logged where it was caught

    # -- what is agreed ----------------------------------------------------------------

    def pools_of(self, agreement: Agreement, version: int = 0) -> list[Pool]:
        return [self.pools[name] for name in agreement.pools if name in self.pools
                and version in (0, self.pools[name].prefix.version)]

    def agreed_pool(self, agreement: Agreement, prefix: Prefix) -> Pool | None:
        """The pool of the agreement that gives this prefix as things stand."""
        if agreement.lengths and prefix.length not in agreement.lengths:
            return None
        for name in agreement.pools:
            pool = self.pools.get(name)
            if pool is not None and prefix.length in pool.give and pool.prefix.holds(prefix):
                return None if any(hole.overlaps(prefix) for hole in pool.reserve) else pool
        return None

    def agreed(self, agreement: Agreement, prefix: Prefix) -> bool:
        if self.guards.foreign.is_anothers(agreement.key, prefix):
            return False
        if prefix in agreement.pins:
            return True
        return self.agreed_pool(agreement, prefix) is not None and \
            self.stock.pins.clear_for(agreement.key, prefix)

    def stays(self, peer: Peer, lease: Lease) -> bool:
        """Still agreed; and there is no pin of its shape that should be there instead."""
        pins = peer.agreement.pins
        better = pins and not self.disk_full and lease.prefix not in pins and any(
            pin.shape == lease.prefix.shape and self.is_pinnable(peer.key, pin) for pin in pins)
        return not better and self.agreed(peer.agreement, lease.prefix)

    def is_taken(self, prefix: Prefix, but_by: bytes | None = None) -> bool:
        """Is any of it leased to, or revoked from, anybody (else)?"""
        return any(lease.state is not LeaseState.FORMER and lease.key != but_by
                   for lease in self.stock.overlapping(prefix))

    def is_pinnable(self, key: bytes, pin: Prefix) -> bool:
        return not self.is_taken(pin) and not self.guards.foreign.is_anothers(key, pin)

    def terms(self, agreement: Agreement, prefix: Prefix) -> Pool | None:
        """Whose lifetimes and options a lease has; one outside of all pools has the first pool's."""
        pools = self.pools_of(agreement)
        for pool in pools:
            if pool.prefix.holds(prefix):
                return pool
        return pools[0] if pools else None

    def valid_s(self, agreement: Agreement, pool: Pool, now: Now) -> float:
        """How long a lease of this pool is promised to this grantee from now on."""
        return max(0.0, min(full_s(agreement, pool), agreement.until - now.wall, pool.ends - now.boot))

    # -- tickets -----------------------------------------------------------------------

    def ticket(self, key: bytes, slot: int, prefix: Prefix, hour: bytes) -> bytes:
        """Proof that we gave this prefix to this grantee for this slot, in that hour."""
        shape = bytes((slot, prefix.version, prefix.length))
        return hour + mac(self.ticket_key, hour + key + shape + prefix.packed)

    def ticket_age_s(self, case: Case) -> float:
        """At least so old (its hour may have just begun); endless: it is not ours."""
        want = case.want
        if not want.prefix.first or not equal(
                self.ticket(case.peer.key, want.slot, want.prefix, want.ticket[:4]), want.ticket):
            return inf
        hours = int(case.now.wall // 3600) - int.from_bytes(want.ticket[:4], "big")
        return 3600.0 * max(0, hours - 1)

    def is_twins(self, prefix: Prefix) -> bool:
        """Is it of another share of one of our pools?"""
        return self.shared and any(pool.prefix.holds(prefix) and not pool.is_own(prefix)
                                   for pool in self.pools.values())

    def may_keep(self, case: Case, prefix: Prefix) -> bool:
        """A prefix of a twin's share: only under its ticket, for half of `hold`."""
        return not self.is_twins(prefix) or (
            prefix == case.want.prefix and self.ticket_age_s(case) <= self.config.hold_s / 2)

    # -- handlers: the agreement -------------------------------------------------------

    def ended(self, case: Case) -> Outcome:
        """Has the agreement ended?"""
        if case.now.wall < case.peer.agreement.until:
            return None
        return case.refuse(Reason.ENDED, 86400, "the agreement is over")

    def revoked(self, case: Case) -> Outcome:
        """Has the operator taken back what the slot names, or, just now, what it or the grantee had?"""
        left = case.peer.revoked_at + REVOKED_S - case.now.boot
        if left > 0:
            return case.refuse(Reason.REVOKED, max(5, left), "revoked by the operator")
        for lease in case.peer.leases:
            if lease.state is LeaseState.REVOKED:
                left = lease.heard + REVOKED_S - case.now.boot if lease.slot == case.want.slot else 0.0
                if left > 0 or lease.prefix == case.want.prefix:
                    return case.refuse(Reason.REVOKED, max(5, left), "revoked by the operator")
        return None

    def admitted(self, case: Case) -> Outcome:
        """If it is something new: is there no pool, no disk to write on, or no room in the agreement?"""
        agreement, version = case.peer.agreement, case.want.prefix.version
        if not case.is_new:
            return None
        if not (self.site or case.pools or version in [pin.version for pin in agreement.pins]):
            if self.unsettled.intersection(agreement.pools):
                return case.refuse(Reason.RECOVERING, 10, "waits for its own grantor")
            return case.refuse(Reason.NO_POOL, 3600, f"no pool of IPv{version}")
        if self.disk_full:
            return case.refuse(Reason.DISK, RETRY_DISK_S, "cannot write the lease file")
        if len(case.others) >= agreement.limit and self.victim(case) is None:
            return case.refuse(Reason.LIMIT, 3600, f"`limit` is {agreement.limit} of IPv{version}")
        return None

    def sized(self, case: Case) -> Outcome:
        """If it is something new: is it more than the agreement's total size?"""
        if not case.is_new:
            return None
        size = sum(lease.prefix.size for lease in case.others) + case.want.prefix.size
        for total in case.peer.agreement.total:
            if total.version == case.want.prefix.version and size > total.size:
                return case.refuse(Reason.LIMIT, 3600, "more than `total`")
        return None

    def rated(self, case: Case) -> Outcome:
        """If it is something new: are there too many in a short time?"""
        if not case.is_new:
            return None
        # What the slot had before is no new lease.
        if any(lease.state is LeaseState.FORMER and lease.slot == case.want.slot
               and lease.prefix.shape == case.want.prefix.shape for lease in case.peer.leases) \
                and case.peer.pace(GRANTEE_CHANGES).has(case.now):
            return None
        wait_s, whose = wait_for(case.peer.agreement.rate, case.peer.full_at, case.now), ""
        if self.config.rate is not None and (of_all_s := wait_for(self.config.rate, self.full_at, case.now)) > wait_s:
            wait_s, whose = of_all_s, " of all grantees"
        return case.refuse(Reason.RATE, wait_s + 1, f"too many new leases{whose}") if wait_s > 0 else None

    def victim(self, case: Case) -> Lease | None:
        """At the limit, the unnamed slot that was unrenewed for longest goes first."""
        named = {want.slot for want in case.ask.wants}
        return min((lease for lease in case.others if lease.slot not in named), key=lambda lease: lease.heard,
                   default=None)

    # -- handlers: pins ----------------------------------------------------------------

    def kept(self, case: Case) -> Outcome:
        """Has the slot what it wants, and is that still agreed?"""
        return case.has.prefix if case.has is not None else None

    def pinned(self, case: Case) -> Outcome:
        """Is there a pin of the length; or of any length, unless another slot asks for just that?"""
        want, agreement = case.want.prefix, case.peer.agreement
        if not agreement.pins:
            return None
        used = {lease.prefix for lease in case.peer.leases if lease.state is not LeaseState.FORMER}
        pins = [pin for pin in agreement.pins if pin.version == want.version and pin not in used]
        fitting = [pin for pin in pins if pin.shape == want.shape]
        fitting += [pin for pin in pins if not case.is_asked_for(pin)]
        for pin in fitting:
            if self.is_pinnable(case.peer.key, pin):
                return pin
        if any(self.is_taken(pin, but_by=case.peer.key) for pin in fitting):
            return case.refuse(Reason.FULL, 600, "the pinned prefix is still leased to another")
        if any(not self.is_taken(pin) for pin in fitting):
            return case.refuse(Reason.FULL, 600, "the pinned prefix overlaps an allowed IP of another peer")
        return None

    # -- handlers: pools ---------------------------------------------------------------

    def right_length(self, case: Case) -> Outcome:
        """Is the length one that the pools and the agreement do not give?"""
        agreement, want = case.peer.agreement, case.want.prefix
        given = {length for pool in case.pools for length in pool.give
                 if not agreement.lengths or length in agreement.lengths}
        if want.length in given:
            return None
        if not case.pools:
            return case.refuse(Reason.NO_POOL, 3600, f"no pool of IPv{want.version}, and no pin left")
        return case.refuse(Reason.LENGTH, 3600, f"/{want.length} is not given (given: {lengths_shown(given)})")

    def claimed(self, case: Case) -> Outcome:
        """Is it under our own ticket, or a twin's, though the lease file may know nothing of it?"""
        prefix = case.want.prefix
        if not prefix.first:
            return None
        pool = self.agreed_pool(case.peer.agreement, prefix)
        if pool is None or not is_leasable(prefix, pool.prefix):
            return None
        age_s = self.ticket_age_s(case)
        is_old = age_s > full_s(case.peer.agreement, pool)
        if age_s == inf or not self.may_keep(case, prefix) or \
                (is_old and self.recovering_until > case.now.boot and pool.is_own(prefix)):
            return None                                           # a wish, not a claim
        keeper = self.former.get(prefix)
        mine = keeper is not None and keeper.key in (b"", case.peer.key)
        return prefix if mine or self.stock.is_free(prefix) else None

    def remembered(self, case: Case) -> Outcome:
        """Had the slot something before, that was released, expired or deprecated?"""
        for lease in case.peer.leases:
            if (lease.state in (LeaseState.DEPRECATED, LeaseState.FORMER) and lease.slot == case.want.slot
                    and lease.prefix.shape == case.want.prefix.shape and self.may_keep(case, lease.prefix)
                    and self.agreed(case.peer.agreement, lease.prefix)
                    and not any(own.overlaps(lease.prefix) for own in self.reserved)):
                return lease.prefix
        return None

    def recovered(self, case: Case) -> Outcome:
        """Is it unknown what others hold?"""
        left = self.recovering_until - case.now.boot
        if left <= 0:
            return None
        return case.refuse(Reason.RECOVERING, min(left + 1, 600), f"recovering for another {seconds(left)} s")

    def moved(self, case: Case) -> Outcome:
        """Has its pool another prefix now, and are the same subnet bits free there?"""
        agreement, want = case.peer.agreement, case.want
        for old in reversed(case.peer.leases):
            if old.slot != want.slot or old.prefix.shape != want.prefix.shape or old.state is LeaseState.REVOKED \
                    or any(pool.prefix.holds(old.prefix) for pool in case.pools):
                continue
            for pool in case.pools:
                there = old.prefix._replace(first=pool.prefix.first | old.prefix.first & (pool.prefix.size - 1))
                if pool.is_own(there) and is_leasable(there, pool.prefix) and self.agreed(agreement, there) \
                        and self.stock.is_free(there):
                    return there
        return None

    def drawn(self, case: Case) -> Outcome:
        """Is any prefix free?  One held back for somebody else is, if nothing else is left."""
        agreement, length = case.peer.agreement, case.want.prefix.length
        if self.shared and sum(lease.state is LeaseState.FORMER for lease in case.peer.leases) >= \
                MAX_FORMER * agreement.limit:
            return case.refuse(Reason.LIMIT, 3600, "too many ended leases are held back for it")
        pools = [pool for pool in case.pools if length in pool.give]
        for pool in pools:
            prefix = self.draw(pool, length)
            if prefix is not None:
                return prefix
        for pool in pools:
            prefix = self.reclaim(pool, length, agreement)
            if prefix is not None:
                return prefix
        soon = self.next_end() - case.now.boot + 1
        return case.refuse(Reason.FULL, max(60, min(soon, 3600)), f"no /{length} is free")

    def draw(self, pool: Pool, length: int) -> Prefix | None:
        """At random.  What is free, but not to be leased, is passed over."""
        space, barred = self.stock.spaces[pool.name], list[Prefix]()
        prefix = space.draw(length, pool.give[0], self.rand)
        while prefix is not None and not is_leasable(prefix, pool.prefix):
            barred.append(prefix)
            space.take(prefix)
            prefix = space.draw(length, pool.give[0], self.rand)
        for address_ in barred:
            space.free(address_)
        return prefix

    def reclaim(self, pool: Pool, length: int, agreement: Agreement) -> Prefix | None:
        """What is held back and nothing else, the oldest first.  Of a share nothing: a twin may have renewed it."""
        space, seen, found = self.stock.spaces[pool.name], set[Prefix](), False
        if (pool.name, length) in self.hopeless or pool.has_twins:
            return None
        for held_back in self.former:
            if not pool.prefix.holds(held_back):
                continue
            block = held_back.network(min(length, held_back.length))
            if block in seen or not pool.prefix.holds(block):
                continue
            seen.add(block)
            if any(leaf not in self.former for leaf in space.leaves(space.within(block))):
                continue
            found = True
            step = SIZES[block.version][length]
            for first in range(block.first, block.first + block.size, step)[:4]:
                prefix = Prefix(block.version, first, length)     # the first may be no lease, or pinned
                if is_leasable(prefix, pool.prefix) and self.agreed(agreement, prefix):
                    return prefix
        if not found:
            self.hopeless.add((pool.name, length))
        return None

    # -- the chain ---------------------------------------------------------------------

    STAGES: ClassVar[Mapping[str, tuple[Callable[[Grantor, Case], Outcome], ...]]] = {
        "agreement": (ended, revoked, admitted, sized, rated),
        "pins":      (kept, pinned),
        "pools":     (right_length, claimed, remembered, recovered, moved, drawn),
    }

    def case(self, peer: Peer, want: Want, ask: Ask, now: Now) -> Case:
        """The facts of one slot, once."""
        agreement, version = peer.agreement, want.prefix.version
        pools = self.pools_of(agreement, version)
        active = peer.active(want.slot)
        others = [lease for lease in peer.leases if lease.state is LeaseState.ACTIVE
                  and lease.slot != want.slot and lease.prefix.version == version]
        if want.prefix.length == 0:
            want = want._replace(prefix=Prefix(version, 0, self.length_for(peer, active, version, pools)))
        case = Case(peer, want, ask, now, pools, others, active)
        if active is None:
            return case
        prefix = active.prefix
        fits = prefix.shape == want.prefix.shape or (
            prefix in agreement.pins and prefix.version == version and not case.is_asked_for(prefix))
        if fits and self.stays(peer, active):
            # A twin may have given it something else by now; and what is a twin's it keeps under its ticket only.
            if not self.shared:
                return case._replace(has=active)
            is_newer = want.prefix != prefix and self.is_twins(want.prefix) and self.may_keep(case, want.prefix)
            if self.may_keep(case, prefix) and not is_newer:
                return case._replace(has=active)
        if self.site and not self.agreed(agreement, prefix):
            return case._replace(sourced=prefix)
        return case

    def length_for(self, peer: Peer, active: Lease | None, version: int, pools: list[Pool]) -> int:
        """Who leaves the length to us keeps what the slot has; else a pin's, else the shortest that is given."""
        agreement = peer.agreement
        if active is not None and active.prefix.version == version:
            return active.prefix.length
        used = {other.prefix for other in peer.living()}
        for pin in agreement.pins:
            if pin.version == version and pin not in used:
                return pin.length
        return min((length for pool in pools for length in pool.give
                    if not agreement.lengths or length in agreement.lengths), default=0)

    def handlers(self) -> Iterator[tuple[str, str]]:
        """(name, what it asks), in their order, with the site's."""
        for stage, handlers in self.STAGES.items():
            instead = f"instead_of_{stage}"
            built = [(handler.__name__, (handler.__doc__ or "").strip()) for handler in handlers]
            middle = [(instead, "")] if instead in self.site else built
            names = [(f"before_{stage}", ""), *middle, (f"after_{stage}", "")]
            yield from ((name, meaning or "the site's own") for name, meaning in names if meaning or name in self.site)

    def decide(self, case: Case) -> Verdict:
        """What is taken for the site's, and changes after all, is decided again as something new."""
        verdict = self.run_chain(case)
        if isinstance(verdict.outcome, Refusal):
            return verdict
        if case.now.wall >= case.peer.agreement.until:            # whoever stands instead of the agreement
            return Verdict("ended", case.refuse(Reason.ENDED, 86400, "the agreement is over"))
        if case.sourced in (None, verdict.outcome):
            return verdict
        return self.run_chain(case._replace(sourced=None))

    def run_chain(self, case: Case) -> Verdict:
        for stage, handlers in self.STAGES.items():
            verdict = self.ask_site(f"before_{stage}", case, None) if self.site else None
            if verdict is None and f"instead_of_{stage}" in self.site:
                verdict = self.ask_site(f"instead_of_{stage}", case, None)
            elif verdict is None:
                for handler in handlers:
                    outcome = handler(self, case)
                    if outcome is not None:
                        verdict = Verdict(handler.__name__, outcome)
                        break
            if self.site:
                verdict = self.ask_site(f"after_{stage}", case, verdict) or verdict
            if verdict is not None:
                return verdict
        return Verdict("nobody", case.refuse(Reason.NO_POOL, 3600, "no handler has anything"))

    def ask_site(self, name: str, case: Case, verdict: Verdict | None) -> Verdict | None:
        """What a site's handler decides; what is no decision is refused."""
        handler = self.site.get(name)
        if handler is None:
            return None
        so_far: str | Refuse | None = None
        if verdict is not None:
            outcome = verdict.outcome
            so_far = Refuse(outcome.text, outcome.again_s) if isinstance(outcome, Refusal) else str(outcome)
        try:
            said = self.trusted(case, handler(asked_of_site(case.peer, case.want, case.ask.hostname), so_far))
        except SiteFailure as why:
            said = case.refuse(Reason.SITE, 60, printable(f"{name}: {why}"))
        return None if said is None else Verdict(name, said)

    def trusted(self, case: Case, said: Prefix | Refuse | None) -> Outcome:
        """What a site's handler decides, if the prefix is free for this slot."""
        if said is None:
            return None
        if isinstance(said, Refuse):
            return case.refuse(Reason.SITE, said.again_s, said.text)
        if said.version != case.want.prefix.version or is_nobodys(said):
            raise SiteFailure(f"{said} is of another family, or nobody's to give")
        if self.is_taken(said, but_by=case.peer.key) or not self.stock.pins.clear_for(case.peer.key, said) \
                or self.guards.foreign.is_anothers(case.peer.key, said):
            raise SiteFailure(f"{said} is leased to, pinned for, or an allowed IP of, another")
        if any(lease.prefix.overlaps(said) for lease in case.others):
            raise SiteFailure(f"{said} is leased to another slot")
        if any(lease.state is LeaseState.REVOKED and lease.prefix.overlaps(said) for lease in case.peer.leases):
            return case.refuse(Reason.REVOKED, REVOKED_S, "revoked by the operator")
        return said

    # -- a lease's life ----------------------------------------------------------------

    def begin(self, case: Case, prefix: Prefix, by: str) -> Lease:
        """A new lease, or an old one come back; `renew` gives it its lifetime."""
        peer, now = case.peer, case.now
        same = [lease for lease in peer.leases if lease.prefix == prefix]
        promised, since = False, int(max(0.0, now.wall))
        for lease in same:
            if lease.living:
                promised, since = True, lease.since
            if lease.state is not LeaseState.REVOKED:
                self.forget(lease)
        if not self.stock.is_free(prefix):
            for other in list(self.stock.overlapping(prefix)):
                if other.state is LeaseState.FORMER:
                    self.forget(other)
        replaced = self.make_way(case)
        for lease in peer.living():
            if lease.prefix.overlaps(prefix):
                self.end(lease, now)                              # no two that live overlap, whoever has them
        peer.full_at, self.full_at = max(peer.full_at, now.boot), max(self.full_at, now.boot)
        if not same or not peer.pace(GRANTEE_CHANGES).take(now):  # what it had before is no new lease
            self.charge(peer, 1)
        lease = Lease(peer.key, case.want.slot, prefix, LeaseState.ACTIVE, 0.0, now.boot, promised=promised,
                      since=since, by=by)
        if not promised:
            self.unwritten[lease.id] = replaced
        peer.leases.append(lease)
        self.stock.add(lease)
        self.note_event("granted", lease, now, accounted=not promised)
        return lease

    def make_way(self, case: Case) -> list[tuple[Lease, float]]:
        """The slot's lease so far counts down, and is told until its end; at the limit, another slot's lease ends.

        Of the deprecated leases that the grantee has made so itself, by wanting something else, it may have as many as
        it may have leases: else a small pool could be had by one.  Returns what is replaced, and its end until now.
        """
        peer, limit, replaced = case.peer, case.peer.agreement.limit, list[tuple[Lease, float]]()
        victim = self.victim(case) if len(case.others) >= limit else None
        if victim is not None:
            replaced.append((victim, victim.valid_until))
            self.end(victim, case.now)
        lease = peer.active(case.want.slot)
        if lease is not None:
            lease.by_grantee = self.agreed(peer.agreement, lease.prefix)
            replaced.append((lease, lease.valid_until))
            self.deprecate(lease, case.now)
        old = sorted((lease for lease in peer.leases if lease.state is LeaseState.DEPRECATED),
                     key=lambda lease: lease.valid_until)
        own = [lease for lease in old if lease.by_grantee and lease.prefix.version == case.want.prefix.version]
        surplus = own[: max(0, len(own) - limit)] or old[: max(0, len(old) - MAX_DEPRECATED)]
        for lease in surplus:
            self.end(lease, case.now)
        return replaced

    def charge(self, peer: Peer, tokens: int) -> None:
        """The buckets of new leases; less than nothing: it is given back."""
        peer.full_at += tokens * peer.agreement.rate.each_s
        if self.config.rate is not None:
            self.full_at += tokens * self.config.rate.each_s

    def note_event(self, event: str, lease: Lease, now: Now, accounted: bool = True) -> None:
        name = self.peers[lease.key].agreement.name
        self.out.append(Note(f"{event} grantee={name} slot={lease.slot} prefix={lease.prefix}"))
        if self.config.accounting and event in ACCOUNTED and accounted:
            self.out.append(Account(lease.id, {
                "time": int(now.wall), "event": ACCOUNTED[event], "grantee": name, "key": show_key(lease.key),
                "slot": lease.slot, "prefix": str(lease.prefix), "begun": lease.since}))

    def deprecate(self, lease: Lease, now: Now) -> None:
        self.stock.turn(lease, LeaseState.DEPRECATED)
        lease.valid_until = min(lease.valid_until, now.boot + LINGER_S)
        self.watch(lease)
        self.save(lease, now)
        self.note_event("deprecated", lease, now)

    def renew(self, peer: Peer, lease: Lease, reach: tuple[Reach | None, str], now: Now) -> None:
        """The full lifetime again.  Written only if more than the time left has changed."""
        pool = self.terms(peer.agreement, lease.prefix)
        if pool is not None:
            whole_s, valid_s = full_s(peer.agreement, pool), self.valid_s(peer.agreement, pool, now)
        else:
            whole_s = valid_s = lease.valid_s or LINGER_S
        is_changed = (lease.valid_s, lease.reach, lease.epoch) != (whole_s, reach[0], self.epoch)
        lease.valid_s, lease.epoch, (lease.reach, lease.why) = whole_s, self.epoch, reach
        lease.valid_until, lease.heard = now.boot + valid_s, now.boot
        if is_changed:
            self.save(lease, now)
            self.route(lease)
        lease.promised = True
        self.watch(lease)

    def end(self, lease: Lease, now: Now) -> None:
        """Over: held back for who had it, unless it had been replaced, or is no longer agreed."""
        is_replaced = lease.state is LeaseState.DEPRECATED and not self.shared
        self.hold_back(lease, now)
        if is_replaced or not self.agreed(self.peers[lease.key].agreement, lease.prefix):
            self.forget(lease)

    def hold_back(self, lease: Lease, now: Now) -> None:
        """Over, but for who had it."""
        self.stock.turn(lease, LeaseState.FORMER)
        self.hopeless.clear()
        lease.valid_until = now.boot + self.config.hold_s
        self.route(lease)
        self.note_event("ended", lease, now)
        self.former[lease.prefix] = lease
        self.save(lease, now)
        self.watch(lease)
        if self.shared:
            return
        # Of each slot the last is kept, so that all come back who are released and asked for again; of others a few.
        former = [other for other in self.peers[lease.key].leases if other.state is LeaseState.FORMER]
        if len(former) <= MAX_FORMER:
            return
        former.sort(key=lambda other: other.valid_until)
        last = {(other.slot, other.prefix.shape): other for other in former}
        older = [other for other in former if other not in last.values()]
        if len(older) > MAX_FORMER or len(former) > MAX_FORMER + MAX_SLOTS:
            self.forget((older or former)[0])

    def forget(self, lease: Lease) -> None:
        """Gone, also from the lease file."""
        self.former.pop(lease.prefix, None)
        self.hopeless.clear()
        self.peers[lease.key].leases.remove(lease)
        self.dead_timers += lease.due != inf
        self.stock.remove(lease)
        lease.state, lease.due = LeaseState.FORMER, inf
        if self.dead_timers > 1000 and self.dead_timers > len(self.timers) / 2:
            self.timers = [row for row in self.timers if row[0] == row[2].due]
            heapq.heapify(self.timers)
            self.dead_timers = 0
        self.route(lease)
        self.wanted.forget_record(lease.id)

    def save(self, lease: Lease, now: Now) -> None:
        self.wanted.record(lease.record(now))

    def unsaved(self) -> None:
        """New leases could not be written: they were not promised, and are not held.  What they replaced is."""
        self.disk_full = True
        self.out = []
        for key, replaced in self.unwritten.items():
            peer = self.peers.get(public_key(key[1]))
            lease = next((lease for lease in peer.living() if lease.id == key), None) if peer else None
            if peer is None or lease is None:
                continue
            self.forget(lease)
            self.charge(peer, -1)
            for old, valid_until in replaced:
                if old.id not in self.unwritten and old in peer.leases and self.stock.leased.get(old.prefix) is old:
                    self.former.pop(old.prefix, None)
                    self.stock.turn(old, LeaseState.ACTIVE)
                    old.valid_until = valid_until
                    self.watch(old)
                    self.route(old)
        self.unwritten.clear()

    # -- by the operator ---------------------------------------------------------------

    def revoke(self, peer: Peer, slot: int | None, now: Now) -> list[Effect]:
        """The operator takes leases back: not routed from now on, and nobody's for `hold`."""
        self.out = []
        peer.revoked_at = now.boot if slot is None else peer.revoked_at
        for lease in peer.living():
            if slot in (None, lease.slot):
                self.stock.turn(lease, LeaseState.REVOKED)
                lease.valid_until, lease.heard = now.boot + self.config.hold_s, now.boot
                self.route(lease)
                self.save(lease, now)
                self.watch(lease)
                self.note_event("revoked", lease, now)
                self.restless.add(peer.key)
        return self.out

    def forgive(self, peer: Peer, slot: int | None, now: Now) -> list[Effect]:
        """What was revoked is only held back again, for who had it."""
        self.out, peer.revoked_at = [], -inf
        for lease in peer.leases:
            if lease.state is LeaseState.REVOKED and slot in (None, lease.slot):
                self.stock.turn(lease, LeaseState.FORMER)
                self.former[lease.prefix] = lease
                self.save(lease, now)
                self.restless.add(peer.key)
        return self.out

    def end_with_prefix(self, prefix: Prefix, until: float, now: Now) -> None:
        """What was given of this prefix ends with it."""
        for lease in [lease for lease in self.stock.overlapping(prefix) if lease.living and prefix.holds(lease.prefix)]:
            lease.valid_until = min(lease.valid_until, until)
            if until <= now.boot:
                self.hold_back(lease, now)
                self.restless.add(lease.key)
            else:
                self.watch(lease)

    # -- time --------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        recovered = self.recovering_until if self.recovering_until > 0 else inf
        return min(self.timers[0][0], recovered) if self.timers else recovered

    def on_timer(self, now: Now) -> list[Effect]:
        self.out = []
        if 0 < self.recovering_until <= now.boot:
            self.recovering_until = -inf
            self.wanted.forget_record(("recovering",))
            self.out.append(Note("recovered"))
        for _ in range(REVIEW_BATCH):
            if not self.timers or self.timers[0][0] > now.boot:
                break
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
        return self.out

    def watch(self, lease: Lease) -> None:
        """At most one timer a lease is live: a later end is noticed when the timer fires."""
        if lease.valid_until < lease.due and lease.valid_until != inf:
            lease.due = lease.valid_until
            self.timer_count += 1
            heapq.heappush(self.timers, (lease.due, self.timer_count, lease))

    def next_end(self) -> float:
        """When the next lease is over: the first timer, once it is not early."""
        while self.timers and not self.timers[0][0] == self.timers[0][2].due == self.timers[0][2].valid_until:
            due, _, lease = heapq.heappop(self.timers)
            if due == lease.due:
                lease.due = inf
                self.watch(lease)
        return self.timers[0][0] if self.timers else inf

    # -- routes ------------------------------------------------------------------------

    def reach(self, peer: Peer, version: int, ask: Ask, path: Path) -> tuple[Reach | None, str]:
        """How what this peer is granted is reached, or None and why.

        If nothing else is said: the asker itself, if it is directly connected, speaks the lease's family, and nobody
        relayed its ask.
        """
        dev = self.guards.dev_of(peer.key)
        if peer.agreement.route != "auto":
            return configured_reach(peer.agreement.route, version)
        if dev:
            return Reach("", dev), ""
        host = parse_host(path.host)
        if host.version != version:
            return None, f"asked over IPv{host.version}"
        if ask.source != host:
            return None, "asked through something that changes addresses"
        if not self.links.neighbour(host, path.interface):
            return None, "not a neighbour: a routing protocol's work"
        dev = self.links.names.get(path.interface, "")
        return (Reach(host.host, dev), "") if is_device(dev) else (None, "its interface has a name that is no word")

    def route(self, lease: Lease) -> None:
        """Everything in the kernel that follows from a lease."""
        self.stock.changes += 1
        route = Route(lease.prefix, MAIN, lease.reach or Reach("", ""))
        if lease.living and lease.reach is not None:
            self.wanted.put(route)
        else:
            self.wanted.take(route.id)
        if self.guards.known:
            self.allow(lease)
        for ndp in self.by_kernel:
            neighbour = Neighbour(ndp.dev, lease.prefix)
            if ndp.hands_over(lease.prefix, lease.dev):
                self.wanted.put(neighbour)
            else:
                self.wanted.take(neighbour.id)

    def allow(self, lease: Lease) -> None:
        """What is routed to a WireGuard interface has to be an allowed IP of its grantee there."""
        on = lease.dev if lease.dev in self.guards.sights else None
        self.disallow(lease, but=on)
        if on:
            self.wanted.put(AllowedIp(on, lease.key, lease.prefix))
            if on == self.guards.adding and self.guards.adds(lease.key):
                self.wanted.put(WgPeer(on, lease.key))

    def disallow(self, lease: Lease, but: str | None = None) -> None:
        """Take it from its peer, and the peer too, if that has no other lease and is ours."""
        others = {other.dev for other in self.peers[lease.key].living() if other is not lease}
        for dev in self.guards.known - {but}:
            self.wanted.take(AllowedIp(dev, lease.key, lease.prefix).id)
            if dev not in others:
                self.wanted.take(WgPeer(dev, lease.key).id)

    def hand_over(self, ndps: Iterable[Ndp]) -> None:
        """The single addresses for which the kernel is to answer from now on."""
        for key in [key for key, thing in self.wanted.things.items() if isinstance(thing, Neighbour)]:
            self.wanted.take(key)
        self.by_kernel = tuple(ndp for ndp in ndps if ndp.by_kernel)
        for ndp in self.by_kernel:
            on = {rule.prefix: None for rule in ndp.rules} | {
                lease.prefix: lease.dev for lease in self.stock.leased.values()}
            for target in [target for target, dev in on.items() if ndp.hands_over(target, dev)]:
                self.wanted.put(Neighbour(ndp.dev, target))

    # -- the configuration -------------------------------------------------------------

    def configure(self, config: Config, pools: tuple[Pool, ...], unsettled: Iterable[str], now: Now) -> None:
        """`pools`: those that have a place.  The peers are looked at later, some at a time."""
        self.config = config
        self.update_agreements()
        self.unsettled = set(unsettled)
        self.pools = {pool.name: pool for pool in pools}
        self.shared = any(pool.has_twins for pool in pools)
        self.configure_stock()
        self.begin_review(now)

    def update_agreements(self) -> None:
        """With the grantees of the configuration, and all peers of WireGuard; not under keys that are no more."""
        self.guards.named = named = self.config.agreements
        old = {key for agreement in named.values() for key in agreement.was}
        peers = self.guards.agreements()
        self.agreements = {key: peers[key] for key in peers if key not in old} | named

    def configure_stock(self) -> None:
        self.hopeless.clear()
        self.reserved = self.reserved_links()
        foreign = [*self.guards.foreign.owners, *self.reserved]
        self.stock.configure(tuple(self.pools.values()), self.config.pins, foreign)

    def reserve_links(self, networks: frozenset[Prefix]) -> None:
        """These are this node's own: they are not given away.  What is leased of them already stays leased."""
        self.own_networks = networks
        if self.reserved_links() != self.reserved:
            self.configure_stock()

    def reserved_links(self) -> frozenset[Prefix]:
        """Of our own networks: those inside of a pool.  In one of single addresses that is only our own address."""
        return frozenset(network for network in self.own_networks for pool in self.pools.values()
                         if pool.prefix.length < network.length and pool.prefix.holds(network)
                         and (network.is_address or pool.give[0] < WIDTH[network.version]))

    def begin_review(self, now: Now) -> None:
        """Something else is free, or agreed, than before."""
        self.reviewing, self.reviewed = self.review(list(self.peers.values()), now), False

    def go_on(self) -> None:
        """With the review, for a while."""
        self.reviewed = sum(1 for _ in islice(self.reviewing, REVIEW_BATCH)) < REVIEW_BATCH

    def review(self, peers: list[Peer], now: Now) -> Iterator[object]:
        """Each known peer as things are now: who holds what is no longer agreed, or nothing, is to be nudged."""
        for peer in peers:
            self.refresh(peer)
            is_known = peer.key in self.agreements
            for lease in peer.living():
                if is_known:
                    last = now.boot + max(0.0, peer.agreement.until - now.wall)
                else:                                             # then a lease for ever ends too
                    last = now.boot + LINGER_S if lease.valid_until == inf else inf
                lease.valid_until = min(lease.valid_until, last)
                self.watch(lease)
            if not peer.leases and not is_known:
                del self.peers[peer.key]
                self.restless.discard(peer.key)
            active = [lease for lease in peer.leases if lease.state is LeaseState.ACTIVE]
            if is_known and (not active or not all(self.stays(peer, lease) for lease in active)):
                self.restless.add(peer.key)
            yield from active or (None,)                          # so much work it was

    def peer_of(self, key: bytes) -> Peer | None:
        """None: a stranger."""
        peer = self.peers.get(key)
        agreement = self.agreements.get(key)
        if agreement is None:
            return None
        if peer is None:
            peer = self.peers[key] = Peer(key, agreement)
        elif peer.agreement is not agreement:
            self.refresh(peer)
        return peer

    def refresh(self, peer: Peer) -> None:
        """Its agreement as it is now."""
        before, peer.agreement = peer.agreement, self.agreements.get(peer.key, peer.agreement)
        if before.route == peer.agreement.route:
            return
        peer.seen = ()                                            # decide anew how it is reached
        if peer.agreement.route != "auto":
            for lease in peer.living():
                lease.reach, lease.why = configured_reach(peer.agreement.route, lease.prefix.version)
                self.route(lease)

    def transfer_all(self, now: Now) -> list[Effect]:
        """What a grantee was leased under a key that it had before is its own."""
        self.out = []
        for agreement in self.config.agreements.values():
            for old in agreement.was:
                peer, heir = self.peers.get(old), self.peer_of(agreement.key)
                if peer is not None and heir is not None:
                    for lease in list(peer.leases):
                        self.transfer(lease, heir, now)
        return self.out

    def transfer(self, lease: Lease, heir: Peer, now: Now) -> None:
        if heir.active(lease.slot) is not None:                   # it has asked under its new key already
            return
        self.wanted.forget_record(lease.id)
        self.disallow(lease)
        self.peers[lease.key].leases.remove(lease)
        lease.key = heir.key
        heir.leases.append(lease)
        self.save(lease, now)
        self.route(lease)
        self.out.append(Note(f"inherited grantee={heir.agreement.name} prefix={lease.prefix}"))

    # -- peers of WireGuard ------------------------------------------------------------

    def handle_peers(self, dev: str, state: WgState | None, made: Mapping[Key, Thing], now: Now) -> list[Effect]:
        """What `wg` shows of an interface: its peers are grantees; who has gone has no leases."""
        self.out = []
        before, known, stale = self.guards.foreign.owners, self.guards.devs, self.guards.is_stale
        gone = self.guards.sights[dev].update(state, now)
        self.guards.refresh(made, ((self.links.names.get(index, ""), own) for index, own in self.links.addresses))
        self.update_agreements()
        for lease in [lease for key in gone if key in self.peers for lease in self.peers[key].living()]:
            if lease.dev == dev and not self.guards.dev_of(lease.key):
                self.end(lease, now)
        owners = self.guards.foreign.owners
        if owners != before:
            # What is sent to another peer from now on is of no use to who has it.
            for prefix, owner in owners.items():
                if before.get(prefix) == owner:
                    continue
                for lease in list(self.stock.overlapping(prefix)):
                    if lease.living and lease.key != owner and lease.prefix.holds(prefix):
                        self.end(lease, now)
                        self.restless.add(lease.key)
            self.configure_stock()
            self.begin_review(now)
        for key, peer in self.peers.items():
            if not stale and known.get(key) == self.guards.devs.get(key):
                continue
            peer.seen = ()                                        # reached anew at its next ask: it is told to
            ways = {lease.dev if lease.dev in self.guards.known else "" for lease in peer.living()}
            if peer.agreement.route == "auto" and ways - {self.guards.dev_of(key)}:
                self.restless.add(key)
        sight = self.guards.sights[dev]
        said, sight.said = sight.said, self.guards.told(dev)
        if said not in (None, sight.said):                        # who has a tunnel there has another one now
            self.restless |= {lease.key for lease in self.stock.leased.values() if lease.dev == dev}
        return self.out

    def expect_peers(self) -> None:
        """At the start: who has leases through an interface was its peer."""
        for lease in self.stock.leased.values():
            sight = self.guards.sights.get(lease.dev or "")
            if sight is not None:
                sight.expect(lease.key)
        self.update_agreements()

    def unwatch(self, before: Iterable[str], now: Now) -> list[Effect]:
        """Interfaces whose peers are not ours to serve any more."""
        self.out = []
        dismissed = set(before) - self.guards.sights.keys()
        for lease in [lease for lease in self.stock.leased.values() if lease.dev in dismissed]:
            if self.peers[lease.key].agreement.route == "auto":
                self.end(lease, now)
                self.restless.add(lease.key)
            else:
                self.route(lease)
        return self.out

    # -- the lease file ----------------------------------------------------------------

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
            self.stock.leased[lease.prefix] = lease
            self.stock.lengths[lease.prefix.shape] += 1
            self.watch(lease)
            if lease.state is LeaseState.FORMER:
                self.former[lease.prefix] = lease
            elif lease.living and lease.reach is not None:
                self.route(lease)
        self.stock.rebuild()
        self.begin_review(now)
        return over


# ==== HOLDINGS ======================================================= pure ====
#
# What a grantee holds, how its slots and subnets are numbered, and where it may ask.


def clock(instant: float) -> float:
    """inf is not JSON."""
    return -1.0 if instant == inf else round(max(0.0, instant), 1)


def instant_of(value: object) -> float:
    """What `clock` has written; ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value < 2**40:
        raise ValueError("not a time")
    return inf if value == -1 else float(value)


@dataclass(slots=True)
class Held:
    """A lease of ours."""

    slot: int
    prefix: Prefix
    ticket: bytes
    prefers_until: float
    valid_until: float
    current: bool = True                 # False: deprecated, counts down
    faded: bool = False                  # not renewed in time: preferred no longer
    found: bool = False                  # on a tunnel at the first start, and nobody has answered since
    provisional: bool = False            # of another boot, and not confirmed since
    shown_until: float = -inf            # deprecated, but shown as preferred for a moment (see `show_deprecated`) ...
    show_at: float = inf                 # ... and when again
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
    ends = instant_of(record["ends"])
    prefers = min(ends, instant_of(record["prefers"]))
    if record["boot"] != boot:
        left = instant_of(record["wall"]) - now.wall
        faded_s = 0.0 if inf in (ends, prefers) else ends - prefers
        ends = now.boot + min(left, PROVISIONAL_S)
        prefers = now.boot + min(left - faded_s, PROVISIONAL_S) if record["current"] else now.boot
    if ends <= now.boot:
        return None
    ticket = binascii.a2b_base64(record["ticket"])
    if len(ticket) != TICKET_LEN:
        raise ValueError("no ticket")
    return Held(whole(0, 255)(str(record["slot"])), parse_prefix(record["prefix"]), ticket, prefers, ends,
                bool(record["current"]), faded=prefers <= now.boot, provisional=record["boot"] != boot)


def sane(option: str, value: Any) -> Any:
    """What of an option is taken: no loopback, multicast or link-local addresses, no MTU that is none."""
    if option in ("dns", "ntp"):
        return tuple(address for address in value or () if not is_nobodys(address))
    return min(9000, max(1280, value)) if option == "mtu" and value is not None else value


def is_wanted(prefix: Prefix, want: Prefix) -> bool:
    """Is it of the family and length that is wanted?  `::/0` and `0.0.0.0/0` want any length."""
    return prefix.version == want.version and want.length in (0, prefix.length)


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


def is_link_local(host: Prefix) -> bool:
    return LINKLOCAL.holds(host) or LINKLOCAL4.holds(host)


def choose_source(way: Way, host: Prefix, links: Links, leased: Sequence[Prefix], old: str = "") -> str:
    """The address of ours to ask this host from, IPv4 mapped; empty if there is none.

    `way.source` is what the kernel offers, `old` what was used before.  Never chosen are loopback, tentative,
    deprecated and leased addresses (what is leased may not be routed yet, or no longer), nor the link-local
    address of another interface.  The kernel's offer is taken if it is none of these; an address that is
    in use stays as long as it is on the interface of that offer.  Else the nearest one of the right scope:
    on the way, on lo, elsewhere.  A tunnel that has nothing but a leased address knows us by that one.
    """
    if LOOPBACK.holds(host) or LOOPBACK4.holds(host) or links.is_own(host):
        return way.source                                         # on this machine
    index, is_local = links.index(way.reach.dev), is_link_local(host)
    usable: dict[str, tuple[int, Prefix]] = {}
    by_lease: list[Prefix] = []
    for at, own in links.addresses:
        single = own._replace(length=WIDTH[own.version])
        if own.version != host.version or LOOPBACK.holds(own) or LOOPBACK4.holds(own) or (at, own) in links.tentative \
                or (at != index and is_link_local(own)):
            continue
        if any(prefix.holds(single) for prefix in leased):
            by_lease += [single] if at == index else []
        elif (at, own) not in links.fading:
            usable[inet_ntop(AF_INET6, mapped(single))] = at, single

    def is_fitting(source: str) -> bool:
        return source in usable and is_link_local(usable[source][1]) == is_local

    has_own = any(at == index and is_fitting(source) for source, (at, _) in usable.items())
    if by_lease and not has_own and links.has(way.reach.dev, IFF_NOARP):
        return inet_ntop(AF_INET6, mapped(by_lease[0]))
    if is_fitting(way.source):
        stays = is_fitting(old) and usable[old][0] == usable[way.source][0]
        return old if stays else way.source

    def rank(source: str) -> tuple[Any, ...]:
        at, own = usable[source]
        nearness = 0 if at == index else 1 if links.names.get(at) == "lo" else 2
        common = (own.first ^ host.first).bit_length()
        return not is_fitting(source), nearness, GLOBAL.holds(own) != GLOBAL.holds(host), source != old, common

    return min(usable, key=rank, default="")


def places_of(host: str, gateways: Iterable[Gateway]) -> tuple[Path, ...]:
    """Where `gateway`, or `gateway%IF`, is: the default routers, each once."""
    dev = host.partition("%")[2]
    found = [Path("::ffff:" * (gateway.version == 4) + gateway.reach.via, 0,
                  gateway.scope if gateway.reach.via.startswith("fe80:") else 0)
             for gateway in gateways if gateway.reach.via and dev in ("", gateway.reach.dev)]
    return tuple(dict.fromkeys(found))


def scoped_places(host: str, links: Links) -> tuple[Path, ...]:
    """Where `fe80::1%IF` is, as its interface is now; nowhere if there is none."""
    address_, _, dev = host.partition("%")
    index = links.index(dev)
    return (Path(address_, 0, index),) if index else ()


def is_behind(told: str, answers_at: Prefix) -> bool:
    """Does a grantor that answers there tell an address that is nothing to us, as something has changed it?"""
    if not told or not is_numeric(told):
        return not told
    return any(private.holds(parse_host(told)) and not private.holds(answers_at) for private in PRIVATE)


def places_inside(allowed: Iterable[Prefix], index: int, links: Links) -> tuple[Path, ...]:
    """Where the grantor may be inside of a tunnel of this index: its own addresses, else the first of a subnet."""
    allowed = [prefix for prefix in allowed if not is_vast(prefix)] or list(allowed)
    singles = [prefix for prefix in allowed if prefix.is_address]
    subnets = [own.network(own.length) for at, own in links.addresses if at == index and not own.is_address
               and any(prefix.overlaps(own) for prefix in allowed)]
    subnets += [prefix for prefix in allowed if not prefix.is_address and not is_vast(prefix)]
    singles += [Prefix(subnet.version, subnet.first + (not LINKLOCAL.holds(subnet)), WIDTH[subnet.version])
                for subnet in subnets]
    return tuple(Path(inet_ntop(AF_INET6, mapped(host)), 0, index if LINKLOCAL.holds(host) else 0)
                 for host in dict.fromkeys(singles) if not links.is_own(host))


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
    NUDGED = "asked to ask again, by the grantor, a reload or a change of the network"
    RENEW = "the operator wants an answer, from whichever address of the grantor"
    RELEASE = "the operator gives everything back"


ASK: Final = Retry(1.0, 120.0)           # in every state
REFUSED: Final = Retry(60.0, 3600.0)     # a refusal without a time
REBIND_S: Final = 30.0                   # after a start, until other addresses are asked too
SILENT_S: Final = 8.0                    # when the next patience is this long, a person is told
SHORT_S: Final = 8.0                     # an exit with a short T1 that comes back is found again in this time, or T1
LOOKUP_S: Final = 5.0                    # between two look-ups of a name, while nobody answers


class Grantee:
    """Asks one grantor, and holds what it gives.  All of its behaviour is TABLE."""

    def __init__(self, contact: Contact, boot: str, wanted: Wanted, rand: Rand) -> None:
        self.boot, self.wanted, self.rand = boot, wanted, rand
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
        self.longest_s = ASK.longest_s                            # less, where leases are renewed more often
        self.refused_s = REFUSED.first_s
        self.found: dict[str, tuple[Path, ...]] = {}              # addresses of a host name
        self.looked_up: dict[str, float] = {}
        self.turn = 0                                             # which address is asked
        self.complaints: dict[int, tuple[Prefix, str]] = {}       # grants not taken, by slot, and why
        self.untaken_s: dict[int, float] = {}                     # of these, until the slot is asked for again
        self.unwanted: set[int] = set()                           # ... and released before, not held for us in vain
        self.resting: set[int] = set()                            # slots of which it is not time yet
        self.asks_all = False                                     # ... which does not count now
        self.former: deque[Prefix] = deque(maxlen=MAX_SLOTS)      # prefixes that it gave, and that are over
        self.began = -inf                                         # when the first lease of another boot was deprecated
        self.answers = 0                                          # applied so far
        self.status = ""                                          # of the last
        self.unsent = ""                                          # why the last ask could not be sent
        self.told: dict[str, Any] = {}                            # options, as the grantor says them
        self.changes, self.saves = Pace(GRANTOR_CHANGES), Pace(GRANTOR_SAVES)
        self.hooks, self.nudges, self.lines = Pace(GRANTOR_HOOKS), Pace(GRANTOR_NUDGES), Pace(GRANTOR_LINES)
        self.has_token: bool | None = None                        # may this answer change anything?
        self.contact = contact
        self.table = MAIN                                         # ... of its default routes
        self.heard_at: Path | None = None                         # where it answered last

    endpoint = HostPort("", 0)                                    # of the grantor's WireGuard, as told
    interface: Interface | None = None                            # the tunnel as it is to be ...
    troubles: tuple[str, ...] = ()                                # ... and what is wrong with it

    # What the node finds out.
    target: Path | None = None                                    # the aim when the way was looked at ...
    way: Way | None = None                                        # ... and how packets get there
    outer: Route | None = None                                    # to the other end of the tunnel, if that needs one
    reaches: Mapping[int, Reach] = MappingProxyType({})           # `default`, by IP version
    leads: frozenset[int] = frozenset()                           # IP versions in which its rank is the best ...
    waits: frozenset[int] = frozenset()                           # ... and in which another's is
    trip_s = inf                                                  # round trip, smoothed

    def number(self, known: Mapping[str, int]) -> None:
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
        for line in gone:
            self.wanted.forget_record(("slot", self.contact.name, line))
        for line, slot in self.slots.items():
            self.wanted.record({"kind": "slot", "grantor": self.contact.name, "line": line, "slot": slot})

    def save(self, held: Held, now: Now) -> None:
        self.wanted.record(held.record(self.contact.key, self.boot, now))

    def slots_held(self, known: Mapping[str, int]) -> dict[str, int]:
        """What a lost record of a slot must have said: a lease of that family and length is held in it."""
        left = {n: line.prefix for n, line in enumerate(self.contact.lines)
                if slot_name(self.contact.lines, n) not in known}
        found = {}
        for held in self.held:
            fitting = next((n for n, wanted in left.items() if is_wanted(held.prefix, wanted)), None)
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

    def aim(self) -> Path | None:
        """The place that matters: while others are tried, too, the one that answered last."""
        return self.heard_at if self.heard_at in self.places() else self.place()

    def hosts(self) -> set[str]:
        """Where the grantor is asked, and the other end of the tunnel, as written."""
        named_end = self.endpoint.host if self.contact.tunnel is not None and not is_numeric(self.endpoint.host) else ""
        return {*(host for host, _ in self.contact.addresses), named_end} - {""}

    def lookups(self, now: Now) -> list[Effect]:
        """Hosts to look up: unknown, or unanswered for a while."""
        names = {host for host in self.hosts() if now.boot - self.looked_up.get(host, -inf) >= LOOKUP_S}
        return self.look_up(names, now)

    def look_up(self, names: Iterable[str], now: Now) -> list[Effect]:
        self.looked_up.update(dict.fromkeys(names, now.boot))
        return [Lookup(self.contact.name, name) for name in sorted(names)]

    def changeable(self) -> set[str]:
        """The names whose addresses may change without any news of it."""
        return {host for host in self.hosts() if not is_numeric(host) and not is_gateway(host)}

    @property
    def names_at(self) -> float:
        """When to look them up again, though the grantor answers.  (While it does not, each ask does so.)"""
        if self.state is not State.BOUND:
            return inf
        return min((self.looked_up.get(host, -inf) for host in self.changeable()), default=inf) + NAMES_S

    def resolved(self, host: str, paths: tuple[Path, ...], now: Now) -> list[Effect]:
        known, better = self.place(), is_gateway(host) and paths[:1] != self.found.get(host, ())[:1]
        if paths:
            self.found[host] = paths
        self.update_interface()
        self.turn = 0 if better else self.turn                    # another default router
        moved = better or known not in self.places()
        if moved and self.place() is not None and self.state is not State.RELEASED:
            self.timer, self.patience_s = now.boot, ASK.first_s
        return self.on_timer(now)

    def network_changed(self, way: Way | None, now: Now) -> list[Effect]:
        """The network has changed: who was out of reach, or reached otherwise, is asked at once."""
        moved = way is not None and way.is_up and way.source and way != self.way and self.aim() == self.target
        if not self.found and now.boot - max(self.looked_up.values(), default=-inf) >= 1.0:
            self.looked_up.clear()                                # there may be a name server now
            moved = True
        return self.step(Event.NUDGED, now) if moved and self.state is not State.RELEASED else []

    # -- events ----------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        return min(self.timer, self.names_at, *(min(held.valid_until, held.show_at) for held in self.held),
                   *(held.prefers_until for held in self.held if held.current and not held.faded), inf)

    def on_timer(self, now: Now) -> list[Effect]:
        effects = self.expire(now) + self.fade(now)
        self.show_deprecated(now)
        if now.boot >= self.names_at:
            effects += self.look_up(self.changeable(), now)
        return effects + self.step(Event.DUE, now) if now.boot >= self.timer else effects

    def fade(self, now: Now) -> list[Effect]:
        """The grantor is silent: what is not renewed in time is still valid, but new connections use another."""
        fading = [held for held in self.held if held.current and not held.faded and held.prefers_until <= now.boot]
        for held in fading:
            held.faded = True
        if not fading or not self.changes.has(now):               # its grantor makes them fade again and again
            return []
        notes = [Note(f"faded grantor={self.contact.name} slot={held.slot} prefix={held.prefix}") for held in fading]
        return [*notes, Hook(self.contact.name, "faded")]

    def show_deprecated(self, now: Now) -> None:
        """After a boot, what is deprecated already is preferred on the LAN for a second, and again some times.

        A router advertisement daemon that follows addresses (dnsmasq) announces that a prefix is deprecated only if it
        has seen it preferred, and it may start after us: else hosts keep what they had before the boot for hours.
        """
        for held in [held for held in self.held if held.show_at <= now.boot]:
            held.shown_until = now.boot + SHOW_S
            held.show_at = now.boot + 2 * (now.boot - self.began) if now.boot - self.began < SHOWN_S else inf

    def prefers_until(self, held: Held) -> float:
        """As its addresses and the hook are told: while a better rank lives, this one is not preferred."""
        return 0.0 if held.prefix.version in self.waits else held.prefers_until

    def distance(self, version: int) -> tuple[int, float]:
        """The rank, and if that is to be measured, the round trip: somebody else has to be nearer by 30 %."""
        rank = self.contact.rank or NEAREST
        return rank, 0.0 if rank else self.trip_s * (0.7 if version in self.leads else 1.0)

    def is_preferred(self, version: int) -> bool:
        """Does anything that this grantor gave live?"""
        return any(held.current and not held.faded and held.prefix.version == version for held in self.held)

    def step(self, event: Event, now: Now) -> list[Effect]:
        self.asks_all = event in (Event.NUDGED, Event.RENEW)
        if self.asks_all:
            self.unwanted = set()
        action = self.TABLE.get((self.state, event))
        return action(self, now) if action else []

    def ask(self, stamp: int, run: bytes, source: Prefix) -> Ask:
        """What is wanted, and what is held with its ticket."""
        current = {held.slot: held for held in self.held if held.current}
        wants = []
        for n, line in enumerate(self.contact.lines):
            slot = self.slots[slot_name(self.contact.lines, n)]
            have = current.get(slot)
            fits = have is not None and is_wanted(have.prefix, line.prefix)
            wants.append(Want(slot, have.prefix, have.ticket) if have and fits else Want(slot, line.prefix))
        released = tuple(sorted(self.releases | self.unwanted))[:MAX_SLOTS]
        wants = [want for want in wants if want.slot not in released and want.slot not in self.resting]
        wants = [] if self.state is State.RELEASED else wants[: MAX_SLOTS - len(released)]
        return Ask(stamp=stamp, run=run, source=source, hostname=self.contact.hostname or None,
                   wants=tuple(wants), releases=released)

    def heard(self, trip_s: float) -> None:
        self.heard_at = self.place()
        self.trip_s = trip_s if self.trip_s == inf else self.trip_s + (trip_s - self.trip_s) / 8

    def told_stale(self, now: Now) -> list[Effect]:
        """Ask again at once, sealed: that is no replay; and again soon, if that is lost."""
        self.timer, self.patience_s = now.boot + ASK.first_s, 2 * ASK.first_s
        return [Call(self.contact.name)]

    def answered(self, ask: Ask, answer: Answer, sent_at: float, now: Now, taken: Callable[[Prefix], str],
                 ) -> list[Effect]:
        """Apply a fresh answer.  `taken` says what else a prefix would overlap."""
        if answer.status != Status.OK:                            # nothing of it was done
            refusals = tuple(Refusal(want.slot, 0, 0, answer.why or status_name(answer.status)) for want in ask.wants)
            answer = replace(answer, grants=(), refusals=refusals)
        self.answers, self.status, self.has_token = self.answers + 1, status_name(answer.status), None
        self.releases -= set(ask.releases) if answer.status == Status.OK else set()
        wanted = {want.slot: want.prefix for want in ask.wants}
        self.complaints = {slot: why for slot, why in self.complaints.items() if slot not in wanted}
        self.again = {slot: at for slot, at in self.again.items() if slot not in wanted and slot in self.slots.values()}
        self.again |= dict.fromkeys(wanted, now.boot + REFUSED.first_s)
        before = {(held.slot, held.prefix): held.current for held in self.held}
        faded = {(held.slot, held.prefix) for held in self.held if held.faded}
        for grant in answer.grants:
            self.apply_grant(grant, wanted, sent_at, now, taken)
        effects = self.refuse([refusal for refusal in answer.refusals if refusal.slot in wanted], wanted, now)
        if answer.status == Status.OK:
            self.doubt(now)
        self.drop_released(now)
        if answer.grants and answer.need is None:
            told = {key: value for key in OPTIONS if (value := sane(key, getattr(answer, key))) not in NOTHING}
            if told != self.told and self.may_change(now):
                self.told = told
            self.options = dict(self.told)
            effects += self.find_endpoint(now)
        self.set_times(answer, sent_at, now)
        is_new = before != {(held.slot, held.prefix): held.current for held in self.held}
        if not is_new and faded != {(held.slot, held.prefix) for held in self.held if held.faded}:
            is_new = self.may_change(now)
        renewed = "rebound" if self.state is State.REBINDING else "renewed"
        effects += self.write_and_tell(now, "bound" if is_new else renewed)
        effects += self.step(Event.ANSWERED, now)
        untaken = self.complaints.keys() & wanted.keys() - {held.slot for held in self.held if held.current}
        if answer.status != Status.OK and self.state is not State.RELEASED:
            return effects                                        # nothing was given back either
        self.unwanted = untaken if self.state is not State.RELEASED else set()
        if self.unwanted:
            self.timer = min(self.timer, now.boot + GIVE_BACK_S)
        return effects

    def may_change(self, now: Now) -> bool:
        """May this answer make us write, run and tell anything?  One that says something else each time may not."""
        if self.has_token is None:
            self.has_token = self.changes.take(now)
        return self.has_token

    def find_endpoint(self, now: Now) -> list[Effect]:
        """Where the other end of the tunnel is.  Without a tunnel nothing is looked up for it."""
        try:
            told = parse_endpoint(self.options.pop("wg_endpoint", ""))
        except ValueError:
            told = HostPort("", 0)
        if told.port and self.heard_at is not None:
            answers_at = parse_host(self.heard_at.host)
            host = answers_at.host if is_behind(told.host, answers_at) else told.host
            self.endpoint = HostPort(host, told.port)
            if is_numeric(host) and self.contact.tunnel is not None:
                at = Path(inet_ntop(AF_INET6, mapped(parse_host(host))), 0)
                self.found[host] = (self.heard_at if host == answers_at.host else at,)
        if self.endpoint.port:
            self.options["wg_endpoint"] = str(self.endpoint)
        needed = self.hosts() | {self.endpoint.host}
        self.found = {host: places for host, places in self.found.items() if host in needed}
        self.looked_up = {host: at_s for host, at_s in self.looked_up.items() if host in needed}
        self.update_interface()
        return [*(() if self.knows_endpoint else self.lookups(now)), *self.tell_tunnel()]

    @property
    def knows_endpoint(self) -> bool:
        """If there is one, it has an address."""
        return self.contact.tunnel is None or not self.endpoint.port or self.endpoint.host in self.found

    def tell_tunnel(self) -> list[Effect]:
        """Why there is no tunnel, or not all of it: once."""
        tunnel, before = self.contact.tunnel, self.troubles
        if tunnel is None:
            return []
        troubles = []
        if self.interface is None:
            why = f"no way to {self.endpoint}" if "wg_key" in self.options else "it says nothing of WireGuard"
            troubles.append(f"no tunnel interface={tunnel.dev} grantor={self.contact.name} why=\"{why}\"")
        for prefix in tunnel.routes:
            if self.is_around(prefix):
                troubles.append(f"left out route={prefix} interface={tunnel.dev} "
                                "why=\"the tunnel would lead into itself\"")
        self.troubles = tuple(troubles)
        return [Note(trouble) for trouble in self.troubles if trouble not in before]

    def is_around(self, prefix: Prefix) -> bool:
        """Around the other end of the tunnel, or where the grantor is asked outside of it."""
        return any(prefix.holds(end) for end in self.outer_ends())

    def update_interface(self) -> None:
        """The tunnel as it is to be made; what was known stays, while something is not."""
        tunnel, place, key = self.contact.tunnel, self.end_place(), self.options.get("wg_key")
        if tunnel is None or (self.interface is not None and self.interface.dev != tunnel.dev):
            self.interface = None
        if tunnel is not None and place is not None and key:
            scope = f"%{place.scope}" if place.scope else ""
            endpoint = HostPort(parse_host(place.host).host + scope, self.endpoint.port)
            self.interface = Interface(tunnel.dev, key, str(endpoint), self.options.get("wg_allowed", ()),
                                       self.options.get("wg_keepalive", 0), tunnel.mtu, tunnel.secret)

    def outer_end(self) -> Prefix | None:
        """The address of the tunnel's other end."""
        endpoint = self.interface.endpoint if self.interface is not None else ""
        return parse_host(host_port(endpoint).host) if endpoint else None

    def beside_outer_end(self) -> Path | None:
        """The address beside the tunnel's other end: it is reached alike, but by no route that we made for that end."""
        end = self.outer_end()
        if end is None or is_link_local(end):
            return None
        return Path(inet_ntop(AF_INET6, mapped(end._replace(first=end.first ^ 1))), 0)

    def outer_ends(self) -> Iterator[Prefix]:
        """What must not be routed into the tunnel: its other end, and where the grantor is asked outside of it."""
        dev = self.contact.tunnel.dev if self.contact.tunnel is not None else ""
        end = self.outer_end()
        if end is not None:
            yield end
        for host in [host for host, _ in self.contact.addresses if host != dev]:
            yield from (parse_host(path.host) for path in self.found.get(host, ()))
            yield from [parse_host(host)] if is_numeric(host) else ()

    def end_place(self) -> Path | None:
        """Of what is known of the other end: of the family in which the grantor answers, if it has that."""
        places = [place for place in self.found.get(self.endpoint.host, ()) if self.may_be_end(parse_host(place.host))]
        like = [place for place in places if self.heard_at is not None
                and parse_host(place.host).version == parse_host(self.heard_at.host).version]
        return next(iter(like or places), None)

    def may_be_end(self, host: Prefix) -> bool:
        """Not inside of what it gave, so behind the tunnel; and nobody's address only if it answers there."""
        is_its = self.heard_at is not None and parse_host(self.heard_at.host) == host
        return (is_its or not is_nobodys(host)) and not any(held.prefix.holds(host) for held in self.held)

    def apply_grant(self, grant: Grant, wanted: Mapping[int, Prefix], sent_at: float, now: Now,
             taken: Callable[[Prefix], str]) -> None:
        """One grant, if it can be trusted."""
        have = next((held for held in self.held if (held.slot, held.prefix) == (grant.slot, grant.prefix)), None)
        valid_until = sent_at + span(grant.valid_s)
        if not grant.current:
            if have is not None and (not have.current or self.may_change(now)):
                if have.provisional:                              # over, but hosts have to be told first
                    valid_until = max(valid_until, now.boot + SHOWN_S)
                self.deprecate(have, now)
                have.valid_until = min(have.valid_until, valid_until)
            return
        if grant.slot not in wanted or grant.slot not in self.slots.values():
            return                                                # nobody has asked for it
        why = self.mistrust(grant, wanted[grant.slot], taken if have is None else lambda _: "")
        if not why and (have is None or not have.current) and not self.may_change(now):
            why = "its grantor changes its mind too often"
        if why:
            self.complaints[grant.slot] = grant.prefix, why
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
        have.ticket, have.current, have.provisional = grant.ticket, True, False
        have.prefers_until, have.valid_until = sent_at + span(grant.preferred_s), valid_until
        have.faded = have.prefers_until <= now.boot
        self.again.pop(grant.slot, None)
        self.refused.pop(grant.slot, None)
        self.untaken_s.pop(grant.slot, None)

    def mistrust(self, grant: Grant, want: Prefix, taken: Callable[[Prefix], str]) -> str:
        """Why this grant is not taken; empty if it is."""
        prefix = grant.prefix
        if not is_wanted(prefix, want):
            return f"asked for /{want.length} of IPv{want.version}"
        if not grant.valid_s:
            return "no lifetime"
        if is_nobodys(prefix) or not any(accepted.holds(prefix) for accepted in self.contact.accept):
            return "outside of `accept`, or nobody's to give"
        if any(held.prefix.overlaps(prefix) and (held.slot, held.prefix) != (grant.slot, prefix) for held in self.held):
            return "overlaps another lease"
        return taken(prefix)

    def refuse(self, refusals: Iterable[Refusal], wanted: Container[int], now: Now) -> list[Effect]:
        effects: list[Effect] = []
        refused = list(refusals)
        for slot, (prefix, why) in self.complaints.items():
            if slot in wanted:
                self.untaken_s[slot] = min(2 * self.untaken_s.get(slot, REFUSED.first_s / 2), REFUSED.longest_s)
                refused.append(Refusal(slot, 0, int(self.untaken_s[slot]), f"{prefix}: {why}"))
        for refusal in refused:
            wait_s = min(refusal.again_s or self.refused_s, MAX_AGAIN_S)
            self.again[refusal.slot] = now.boot + wait_s
            if self.refused.get(refusal.slot) != refusal and self.lines.take(now):
                reason = reason_name(refusal.reason)
                effects.append(Note(f"refused grantor={self.contact.name} slot={refusal.slot} reason={reason} "
                                    f"why=\"{refusal.text}\""))
            self.refused[refusal.slot] = refusal
            for held in self.held:
                if held.slot == refusal.slot and held.current and refusal.reason in LOST and self.may_change(now):
                    self.deprecate(held, now)
        self.refused_s = min(self.refused_s * 2, REFUSED.longest_s) if refused else REFUSED.first_s
        return effects

    def reconsider(self, taken: Callable[[Prefix], str], now: Now) -> None:
        """What stood in the way of a grant may have gone: then its slot is asked for at once."""
        for slot, (prefix, why) in list(self.complaints.items()):
            if why.startswith(("overlaps ", "lies in ")) and not taken(prefix):
                del self.complaints[slot]
                self.again[slot] = self.timer = now.boot

    def deprecate(self, held: Held, now: Now) -> None:
        """Lost or replaced: no longer preferred, valid for two hours at most (RFC 9096)."""
        if held.provisional and not held.found and held.current:
            held.show_at, self.began = now.boot, max(self.began, now.boot - SHOW_S)
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
        if granted:
            shortest = min(span(grant.preferred_s) for grant in granted)
            t1, t2 = answer.times or (0, 0)
            renew_s = max(1.0, span(t1) or shortest * 0.5)
            self.longest_s = min(ASK.longest_s, max(SHORT_S, renew_s))
            self.t1_at = sent_at + renew_s
            self.t2_at = max(self.t1_at, sent_at + max(1.0, span(t2) if t2 >= t1 > 0 else shortest * 0.8))
        else:                                                     # it says nothing of when to renew what is held
            self.t1_at = max(self.t1_at, now.boot + REFUSED.first_s)
        if self.contact.keepalive_s:
            self.t1_at = min(self.t1_at, now.boot + self.contact.keepalive_s)

    def expire(self, now: Now) -> list[Effect]:
        over = [held for held in self.held if held.valid_until <= now.boot]
        if not over:
            return []
        self.held = [held for held in self.held if held not in over]
        self.former.extend(held.prefix for held in over if held.prefix not in self.former)
        if not any(held.current for held in self.held) and self.state in (State.BOUND, State.RENEWING, State.REBINDING):
            self.enter(State.SEEKING, max(now.boot, min(self.again.values(), default=now.boot)))
        for held in over:
            self.wanted.forget_record(held.id(self.contact.key))
        notes = [Note(f"lost grantor={self.contact.name} slot={held.slot} prefix={held.prefix}") for held in over]
        removed = {held.slot for held in over} - set(self.slots.values()) - {held.slot for held in self.held}
        if removed:
            self.releases |= removed
            self.timer = now.boot
        return [*notes, Hook(self.contact.name, "lost")]

    def to_lend(self, slot: int | None, give: Iterable[int]) -> Held | None:
        """The lease out of which a pool gives prefixes of these lengths: confirmed, and current."""
        fitting = [held for held in self.held if held.current and not held.provisional and slot in (None, held.slot)
                   and any(held.prefix.length < length <= WIDTH[held.prefix.version] for length in give)]
        return min(fitting, key=lambda held: (-held.prefix.version, held.slot), default=None)

    @property
    def unsettled(self) -> bool:
        """Nothing has been heard since the start."""
        return self.answers == 0 and self.state is not State.RELEASED

    def own_subnets(self, held: Held) -> list[Prefix]:
        """What this node itself uses of a lease."""
        found = [lan_address(held.prefix, number, self.contact.suffix) for _, number in lan_numbers(held.lans)]
        return [own.network(64 if own.version == 6 and held.prefix.length <= 64 else held.prefix.length)
                for own in found if own is not None]

    def assume(self, found: Iterable[Address]) -> list[Address]:
        """Addresses found where ours would be, and nothing is on file: they are held until somebody answers."""
        taken = []
        for n, line in enumerate(self.contact.lines):
            fitting = [thing for thing in found if is_wanted(thing.address, line.prefix) and thing not in taken
                       and [lan.dev for lan in line.lans] == [thing.dev]]
            if fitting:
                slot = self.slots[slot_name(self.contact.lines, n)]
                self.held.append(Held(slot, fitting[0].address, bytes(TICKET_LEN), inf, inf, provisional=True,
                                      found=True, lans=line.lans))
                taken.append(fitting[0])
        return taken

    def doubt(self, now: Now) -> None:
        """Somebody has answered.  What was found, and is not confirmed, goes soon, if it is like what came instead."""
        for held in [held for held in self.held if held.found]:
            held.found = False
            near = held.prefix.network({4: 16, 6: 48}[held.prefix.version])
            if held.provisional and any(near.holds(other.prefix) for other in self.held
                                        if other.slot == held.slot and other is not held):
                held.valid_until = now.boot + FOUND_S
            elif held.provisional:                                # somebody else's, and stays as it is
                self.held.remove(held)

    def write_and_tell(self, now: Now, event: str) -> list[Effect]:
        """After a change: what has to be written, installed and told."""
        effects = self.expire(now)
        for held in self.held:
            left_s = held.valid_until - now.boot                  # an eighth, 10 min at least; a fifth of a short one:
            worth_s = max(left_s / 8, min(600.0, left_s / 5))     # less than what a renewal at T1 brings
            drifted = abs(held.valid_until - held.saved_until) >= worth_s
            if held.saved_until == -inf or event == "bound" or (drifted and self.saves.take(now)):
                held.saved_until = held.valid_until
                self.save(held, now)
        if self.state is State.RELEASED and event == "renewed":
            return effects                                        # it has taken note
        if event == "bound":
            effects += [Note(f"{'bound' if held.current else 'deprecated'} grantor={self.contact.name} "
                             f"slot={held.slot} prefix={held.prefix} valid={seconds(held.valid_until - now.boot)}")
                        for held in self.held]
        if event in ("renewed", "rebound") and not self.hooks.take(now):
            return effects
        return [*effects, Hook(self.contact.name, event)]

    # -- actions: one verb each, named in TABLE ------------------------------------------

    def ask_again(self, now: Now) -> list[Effect]:
        """Ask, and once more after twice as long: ±10 % so that many do not ask in step."""
        rests = {slot for slot in self.complaints if self.again.get(slot, -inf) > now.boot}
        self.resting = set() if self.asks_all else rests
        is_first = self.patience_s == ASK.first_s                 # a lease is renewed where it was got, at first
        effects = self.lookups(now) if self.state is not State.RENEWING or not self.places() or not is_first else []
        jitter = 0.9 + 0.2 * self.rand(1)[0] / 255
        self.timer = now.boot + self.patience_s * jitter
        if self.state is State.RENEWING:
            self.timer = min(self.timer, max(self.t2_at, now.boot + 1.0))
        silent = self.patience_s * 2 == SILENT_S
        self.patience_s = min(self.patience_s * 2, self.longest_s)
        if silent:
            place = self.place() or "(no address found yet)"
            why = f" why=\"not asked: {self.unsent}\"" if self.unsent else ""
            effects += [Note(f"silent grantor={self.contact.name} at={place} state={self.state.value}{why}"),
                        Hook(self.contact.name, "silent")]
        return [*effects, Call(self.contact.name)] if self.place() is not None else effects

    def ask_elsewhere(self, now: Now) -> list[Effect]:
        if self.patience_s > ASK.first_s:           # the one before was not answered
            self.turn += 1
        return self.ask_again(now)

    def start_renewing(self, now: Now) -> list[Effect]:
        self.enter(State.RENEWING, now.boot)
        if self.t2_at == inf:                                     # not told since the start: not long with one address
            self.t2_at = now.boot + REBIND_S
        return self.ask_again(now)

    def renew_again(self, now: Now) -> list[Effect]:
        """Unanswered.  The next address is asked from T2 on; where T1 is short, after two asks."""
        is_renewed_often = self.longest_s < ASK.longest_s
        if now.boot < self.t2_at and not (is_renewed_often and self.patience_s >= 4 * ASK.first_s):
            return self.ask_again(now)
        self.enter(State.REBINDING, now.boot)
        self.turn += 1
        return self.ask_again(now)

    def start_rebinding(self, now: Now) -> list[Effect]:
        """From where the grantor answered last, through all its addresses."""
        self.enter(State.REBINDING, now.boot)
        return self.ask_again(now)

    def seek(self, now: Now) -> list[Effect]:
        self.enter(State.SEEKING, now.boot)
        return self.ask_again(now)

    def calm(self, now: Now) -> list[Effect]:
        """Answered: until T1 if there is a lease, until a refused slot may be asked for again in any case."""
        again = min(self.again.values(), default=inf)
        if any(held.current for held in self.held):
            self.enter(State.BOUND, min(self.t1_at, again))
        else:
            self.enter(State.SEEKING, again if self.again else now.boot + REFUSED.first_s)
        return []

    def give_back(self, now: Now) -> list[Effect]:
        self.enter(State.RELEASED, now.boot)
        self.releases |= set(self.slots.values())
        self.drop_released(now)
        return [*self.write_and_tell(now, "released"), *self.ask_again(now)]

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
        if self.interface is not None and self.contact.tunnel is not None and self.held:
            yield self.interface
            if self.outer is not None:
                yield self.outer
            yield from (Route(prefix, MAIN, Reach("", self.interface.dev)) for prefix in self.contact.tunnel.routes
                        if not self.is_around(prefix))
        for held in self.held:
            if not held.prefix.is_address:
                yield Route(held.prefix, MAIN)
            yield from (thing._replace(prefers_until=max(thing.prefers_until, held.shown_until))
                        for thing in self.lan_things(held))
            if held.prefix.version in self.reaches:
                yield from self.default_things(held.prefix, self.reaches[held.prefix.version])

    def default_things(self, prefix: Prefix, reach: Reach) -> Iterator[Thing]:
        """Traffic from this prefix leaves by its own gateway; where asked, routing daemons are told so."""
        version, mtu = prefix.version, self.options.get("mtu", 0)
        yield Rule(version, None, MAIN)
        yield Rule(version, prefix, self.table)
        yield Route(Prefix(version, 0, 0), self.table, reach, mtu=mtu)
        if self.contact.default is not None and self.contact.default.redistribute and version == 6:
            yield Route(Prefix(version, 0, 0), MAIN, reach, prefix, mtu)

    def lan_things(self, held: Held) -> Iterator[Address]:
        for dev, number in lan_numbers(held.lans):
            address = lan_address(held.prefix, number, self.contact.suffix)
            if address is not None:
                yield Address(dev, address, self.prefers_until(held), held.valid_until)


Grantee.TABLE = {
    (State.SEEKING,   Event.DUE):      Grantee.ask_elsewhere,
    (State.SEEKING,   Event.ANSWERED): Grantee.calm,
    (State.SEEKING,   Event.NUDGED):   Grantee.seek,
    (State.SEEKING,   Event.RENEW):    Grantee.seek,
    (State.SEEKING,   Event.RELEASE):  Grantee.give_back,
    (State.BOUND,     Event.DUE):      Grantee.start_renewing,
    (State.BOUND,     Event.ANSWERED): Grantee.calm,
    (State.BOUND,     Event.NUDGED):   Grantee.start_renewing,
    (State.BOUND,     Event.RENEW):    Grantee.start_rebinding,
    (State.BOUND,     Event.RELEASE):  Grantee.give_back,
    (State.RENEWING,  Event.DUE):      Grantee.renew_again,
    (State.RENEWING,  Event.ANSWERED): Grantee.calm,
    (State.RENEWING,  Event.NUDGED):   Grantee.start_renewing,
    (State.RENEWING,  Event.RENEW):    Grantee.start_rebinding,
    (State.RENEWING,  Event.RELEASE):  Grantee.give_back,
    (State.REBINDING, Event.DUE):      Grantee.ask_elsewhere,
    (State.REBINDING, Event.ANSWERED): Grantee.calm,
    (State.REBINDING, Event.NUDGED):   Grantee.start_renewing,
    (State.REBINDING, Event.RENEW):    Grantee.start_rebinding,
    (State.REBINDING, Event.RELEASE):  Grantee.give_back,
    (State.RELEASED,  Event.DUE):      Grantee.give_back_again,
    (State.RELEASED,  Event.ANSWERED): Grantee.rest,
    (State.RELEASED,  Event.NUDGED):   Grantee.wake,
    (State.RELEASED,  Event.RENEW):    Grantee.wake,
}


# ==== SESSIONS ======================================================= pure ====
#
# The two ends of the native door.  What they know of a datagram: who sent it, that
# it is whole, and whether it is new.  What it means is for the roles.


class Stranger(Drop):
    """A valid handshake by a key that nobody admitted."""

    def __init__(self, key: bytes, is_proved: bool) -> None:
        super().__init__("stranger")
        self.key, self.is_proved = key, is_proved


class Responder:
    """The grantor's end."""

    def __init__(self, s: KeyPair, load: int, rand: Rand) -> None:
        self.s, self.load, self.rand = s, load, rand
        self.mac1_key, self.cookie_key = mac1_key(s.public), cookie_key(s.public)
        self.secret = rand(KEY_LEN)
        self.sessions: dict[bytes, Session] = {}
        self.made = 0                                             # sessions so far
        self.second, self.heard = -1, 0                           # in this second: handshakes ...
        self.sources: Counter[bytes] = Counter()                  # ... by source, of those that brought a cookie ...
        self.brought: set[bytes] = set()                          # ... and what they brought
        self.told_stale: dict[tuple[bytes, bytes], float] = {}    # who was told STALE, at which source, and when
        self.loaded_at = -inf
        self.erase_at = inf                                       # when to look for sessions that are over

    def under_load(self, now: Now) -> bool:
        return now.boot - self.loaded_at < 2.0

    def admit(self, datagram: bytes, path: Path, now: Now) -> bytes | None:
        """Nothing if this ask may cost curve operations; a cookie to send if not; or Drop."""
        if not equal(mac(self.mac1_key, datagram[: -2 * MAC_LEN]), datagram[-2 * MAC_LEN : -MAC_LEN]):
            raise Drop("mac1 wrong")
        if self.second != int(now.boot):
            self.second, self.heard = int(now.boot), 0
            self.sources.clear()
            self.brought.clear()
            self.told_stale = {at: told for at, told in self.told_stale.items() if now.boot - told < STALE_GAP_S}
        self.heard += 1
        if self.heard <= self.load:
            return None
        self.loaded_at = now.boot
        return self.cookie_for(datagram, path, now)

    def cookie_for(self, datagram: bytes, path: Path, now: Now) -> bytes | None:
        """Nothing if the ask brings the cookie of its source; else that cookie, sealed for who knows our key."""
        place = mapped(parse_host(path.host)) + path.port.to_bytes(2, "big")
        epoch = int(now.boot // COOKIE_S)
        cookies = [mac(digest(self.secret + n.to_bytes(8, "big")), place) for n in (epoch, epoch - 1)
                   if n >= 0]
        if any(equal(mac(cookie, datagram[:-MAC_LEN]), datagram[-MAC_LEN:]) for cookie in cookies):
            if datagram[-MAC_LEN:] in self.brought:               # else who repeats it uses up what its sender has
                raise Drop("the same ask again")
            self.brought.add(datagram[-MAC_LEN:])
            block = self.block_of(path)
            self.sources[block] += 1
            if self.sources[block] > SOURCE_ASKS:
                raise Drop("too many from one source")
            return None
        salt = self.rand(12)
        sealed = aead_encrypt(cookies[0], datagram[-2 * MAC_LEN : -MAC_LEN], salt, self.cookie_key)
        return KINDS["cookie"] + datagram[4:ID_LEN] + salt + sealed

    @staticmethod
    def block_of(path: Path) -> bytes:
        """What one source is, for limits: an IPv4 address, or an IPv6 /64."""
        source = mapped(parse_host(path.host))
        return source if source[:12] == bytes(10) + b"\xff\xff" else source[:8]

    def cookie_for_stale(self, peer: Peer, ask: Ask, datagram: bytes, path: Path, now: Now) -> bytes | None:
        """Nothing if this peer may be told STALE now, else a cookie for whoever asks.

        Once a second for each source, so that a replayed ask costs us little; but a recorded ask must not keep the true
        grantee from its answer: one that is newer than all that were answered so is answered always, and one that shows
        where it comes from by its cookie, too.
        """
        at = peer.key, self.block_of(path)
        if ask.stamp <= peer.stale_stamp and now.boot - self.told_stale.get(at, -inf) < STALE_GAP_S:
            cookie = self.cookie_for(datagram, path, now)
            if cookie is not None:
                return cookie
        self.told_stale[at] = now.boot
        peer.stale_stamp = max(peer.stale_stamp, ask.stamp)
        return None

    def open_ask(self, datagram: bytes, peer_of: Callable[[bytes], Peer | None]) -> tuple[Peer, Handshake, bytes]:
        """Who asks, and what.  A stranger costs one curve operation."""
        handshake = Handshake(self.s, self.s.public, b"ddpd" + datagram[:ID_LEN])
        body = datagram[ID_LEN : -2 * MAC_LEN]
        key = handshake.read_static(body)
        peer = peer_of(key)
        if peer is None:
            raise Stranger(key, is_proved=False)
        peer.ss = peer.ss or dh(self.s.secret, key)
        return peer, handshake, handshake.read_payload(body, peer.ss)

    def is_proof(self, datagram: bytes) -> bool:
        """Does whoever asks have the key that the ask names?  Two more curve operations, for who is to be admitted."""
        body = datagram[ID_LEN : -2 * MAC_LEN]
        handshake = Handshake(self.s, self.s.public, b"ddpd" + datagram[:ID_LEN])
        try:
            handshake.read_payload(body, dh(self.s.secret, handshake.read_static(body)))
        except Drop:
            return False
        return True

    def answer(self, datagram: bytes, handshake: Handshake, plain: bytes) -> bytes:
        return KINDS["answer"] + datagram[4:ID_LEN] + handshake.write_second(keypair(self.rand(KEY_LEN)), plain)

    def add_session(self, session: Session) -> None:
        """A new session waits for something sealed; beyond the bound one goes.

        First of those that a replay may have made (STALE), but for the last: one that nobody has used for long, else
        that of the oldest ask, and of one that was replayed, the newest.  So neither a true session goes for them,
        nor that of a true ask for its replays.
        """
        peer: Peer = session.peer
        self.made += 1
        session.number = self.made
        self.sessions[session.id] = session
        self.erase_at = min(self.erase_at, session.born + ERASE_S)
        peer.pending = (*peer.pending, session)
        if len(peer.pending) > MAX_PENDING:
            stale = [each for each in peer.pending if each.stale_stamp < inf]
            unused = [each for each in stale if session.born - each.born > PROOF_S]
            gone = (unused or peer.pending)[0]
            if not unused and len(stale) > 1:
                gone = min(stale, key=lambda each: (each.stale_stamp, -each.number))
            self.sessions.pop(gone.id, None)
            peer.pending = tuple(each for each in peer.pending if each is not gone)
        if len(self.sessions) > MAX_SESSIONS:
            del self.sessions[next(iter(self.sessions))]

    def erase(self, now: Now) -> None:
        """The keys of sessions that are over: also of those in which nothing comes any more."""
        for session in [session for session in self.sessions.values() if session.over(now)]:
            peer: Peer = session.peer
            del self.sessions[session.id]
            peer.pending = tuple(other for other in peer.pending if other is not session)
            peer.live = None if peer.live is session else peer.live
            peer.session = None if peer.session is session else peer.session
        self.erase_at = now.boot + ERASE_S if self.sessions else inf

    def open_sealed(self, datagram: bytes, now: Now) -> tuple[Session, bytes]:
        session = self.sessions.get(datagram[4:12])
        if session is None:
            raise Drop("unknown session")
        if session.over(now):
            del self.sessions[session.id]
            raise Drop("session over")
        peer: Peer = session.peer
        if peer.session is not None and session.number < peer.session.number:
            raise Drop("session replaced")                        # what was held back on the way must not undo anything
        plain = session.open(datagram)
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
        self.applied = -1                                         # the stamp of the last answer
        self.tried = self.newest = 0                              # handshakes written; the one that made the session
        self.unanswered = 0                                       # sealed asks in a row
        self.size = FIRST_ASK
        self.cookie, self.cookie_at = b"", -inf
        self.ends = ""                                            # our address and theirs, of the last handshake

    @property
    def erase_at(self) -> float:
        """When the keys of its session are."""
        return self.session.born + SESSION_S if self.session is not None else inf

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

    def open_sealed(self, datagram: bytes, now: Now) -> bytes:
        if self.session is None or self.session.id != datagram[4:12]:
            raise Drop("unknown session")
        if self.session.over(now):
            raise Drop("session over")
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

    def match(self, answer: Answer, now: Now) -> tuple[float, Ask]:
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
    """Deprecated grants go first, then the last refusal, then the last grant (or what is over), then the times."""
    for n in range(len(answer.grants) - 1, -1, -1):
        if not answer.grants[n].current and answer.grants[n].valid_s:
            return replace(answer, grants=answer.grants[:n] + answer.grants[n + 1 :])
    if answer.refusals:
        return replace(answer, refusals=answer.refusals[:-1])
    if answer.grants:
        return replace(answer, grants=answer.grants[:-1])
    return replace(answer, times=None, why=None)


def fitted(answer: Answer, plain: bytes, room: int, overhead: int) -> bytes:
    """The answer (plain: encoded), padded to `room`; what does not fit is left out, and `need` says so."""
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


# ==== NEIGHBOURS ===================================================== pure ====
#
# Solicitations for addresses that are others', answered in their stead (RFC 4861 7.2.8):
#
#     Ethernet 14 | IPv6 40 | type code checksum flags target 24 | options, 8 each
#
# Frames in, frames out.  What the frame alone does not tell comes back as a question: which way
# a route leads (Seek), whether a neighbour inside answers (Probe).

SOLICITATION, ADVERTISEMENT = 135, 136   # ICMPv6 types
ICMPV6: Final = 58
SOURCE_MAC, TARGET_MAC = 1, 2            # options: link-layer addresses
ROUTER, SOLICITED = 0x80, 0x40           # flags of an advertisement; a proxy never says "override"
NO_ADDRESS: Final = bytes(16)
ALL_NODES: Final = inet_pton(AF_INET6, "ff02::1")
SOLICITED_NODE: Final = inet_pton(AF_INET6, "ff02::1:ff00:0")[:13]
FRAME: Final = struct.Struct(">6s6sHIHBB16s16sBBHI16s")           # up to the end of the target
SKIPPED: Final = (0, 60)                 # extension headers: options, hop by hop or for the destination
number = int.from_bytes                  # big-endian, as all that the network says


class Heard(NamedTuple):
    """A solicitation or an advertisement that is as it has to be (RFC 4861 7.1)."""

    mac: bytes                           # whose it is: by its option, or that of the frame
    source: bytes
    destination: bytes
    target: bytes
    is_solicited: bool                   # flag S of an advertisement

    @property
    def is_probe(self) -> bool:
        """For a duplicate of an address (RFC 4862 5.4)."""
        return self.source == NO_ADDRESS


def stripped(frame: bytes) -> bytes:
    """Without an extension header.  A fragment is not read (RFC 6980), nor an option that asks to be dropped."""
    end, option = 62 + 8 * frame[55] if len(frame) > 55 else 0, 56
    while option < end <= len(frame) and frame[option] <= 0x3F:
        option += 1 if frame[option] == 0 else 2 + frame[option + 1] if option + 1 < end else end
    left = number(frame[18:20]) - (end - 54)
    if frame[20] not in SKIPPED or option != end or frame[54] != ICMPV6 or left < 0:
        raise Drop("extension header")
    return frame[:18] + left.to_bytes(2, "big") + frame[54:55] + frame[21:54] + frame[end:]


def options_in(frame: bytes, at: int, end: int, meant: int) -> bytes:
    """What the option that is meant says, or nothing."""
    link = b""
    while at < end:
        size = 8 * frame[at + 1]
        if size == 0 or at + size > end:
            raise Drop("options")
        if frame[at] == meant:
            link = frame[at + 2 : at + size]
        at += size
    return link


def read_neighbour(frame: bytes, meant: int, option: int) -> Heard:
    """What every solicitation and advertisement has to fulfil; Drop says what it does not."""
    if len(frame) > 54 and frame[20] != ICMPV6:
        frame = stripped(frame)
    if len(frame) < FRAME.size:
        raise Drop("short")
    (_, mac, ethertype, head, length, _, hops, source, destination,
     kind, code, _, word, target) = FRAME.unpack_from(frame)
    if ethertype != 0x86DD or head >> 28 != 6 or kind != meant:
        raise Drop("another kind")
    if hops != 255 or code or target[0] == 0xFF:
        raise Drop("hop limit" if hops != 255 else "code" if code else "multicast target")
    end = 54 + length
    if length < 24 or length & 7 or end > len(frame):
        raise Drop("length")
    # Of one's complement: a number is congruent to the sum of its words.
    if (number(frame[22:end]) + length + ICMPV6) % 0xFFFF:
        raise Drop("checksum")
    link = options_in(frame, FRAME.size, end, option)
    mac = link if len(link) == 6 else mac
    if source[0] == 0xFF or mac[0] & 1 or (link and source == NO_ADDRESS):
        raise Drop("source")
    return Heard(mac, source, destination, target, bool(word >> 24 & SOLICITED))


def read_solicitation(frame: bytes) -> Heard:
    """RFC 4861 7.1.1; a probe goes to the group only."""
    heard = read_neighbour(frame, SOLICITATION, SOURCE_MAC)
    groups = {SOLICITED_NODE + heard.target[13:]} | ({ALL_NODES} if not heard.is_probe else set())
    if heard.destination not in groups and (heard.is_probe or heard.destination[0] == 0xFF):
        raise Drop("destination")
    return heard


def read_advertisement(frame: bytes) -> Heard:
    """RFC 4861 7.1.2; of a neighbour that was asked."""
    heard = read_neighbour(frame, ADVERTISEMENT, TARGET_MAC)
    if heard.destination[0] == 0xFF and heard.is_solicited:
        raise Drop("solicited by a group")
    return heard


class Place(NamedTuple):
    """An interface as it is now."""

    dev: str
    scope: int                           # its index
    mac: bytes
    addresses: tuple[bytes, ...]         # that packets may come from, link-local first
    own: frozenset[bytes]                # all of all interfaces


NO_PLACE: Final = Place("", 0, bytes(6), (), frozenset())


def place_on(dev: str, links: Links) -> Place | str:
    """Or why it is no place to listen."""
    index = links.index(dev)
    if index not in links.macs:
        return "not like Ethernet" if index else "there is none"
    if not links.flags.get(index, 0) & IFF_UP:
        return "down"
    own = frozenset(own.packed for _, own in links.addresses if own.version == 6)
    mine = [own.packed for at, own in links.addresses
            if at == index and own.version == 6 and (at, own) not in links.tentative]
    mine.sort(key=lambda packed: packed[0] != 0xFE)
    return Place(dev, index, links.macs[index], tuple(mine), own)


def sealed_frame(macs: bytes, source: bytes, destination: bytes, kind: bytes, rest: bytes) -> bytes:
    """With its checksum.  kind: type and code; rest: what follows the checksum."""
    length = 4 + len(rest)
    total = (length + ICMPV6 + number(source + destination + kind + rest)) % 0xFFFF
    return b"".join((macs, b"\x86\xdd\x60\0\0\0\0", bytes((length,)), b"\x3a\xff", source, destination, kind,
                     (0xFFFF - total).to_bytes(2, "big"), rest))


def solicit(place: Place, target: bytes) -> bytes:
    """The question for a neighbour inside.  place: has an address."""
    macs, rest = b"\x33\x33\xff" + target[13:] + place.mac, bytes(4) + target + b"\1\1" + place.mac
    return sealed_frame(macs, place.addresses[0], SOLICITED_NODE + target[13:], b"\x87\0", rest)


class Alike(NamedTuple):
    """What solicitations of one asker have in common but for the target: what was found out for one holds for all."""

    is_probe: bool
    end: int                             # of what is summed up
    total: int                           # ... from its source address on
    head: bytes                          # of the answer, up to its checksum
    base: int                            # the sum of it without the target
    flags: bytes
    tail: bytes                          # behind the target


def common_part(frame: bytes) -> bytes:
    """All but the target, its group and the checksum; the reserved word may be anything."""
    return frame[6:51] + frame[54:56] + frame[78:]


def alike_of(frame: bytes, heard: Heard, answer: bytes) -> Alike:
    """Of one that was answered."""
    base = (0xFFFF - number(answer[56:58]) - number(heard.target)) % 0xFFFF
    end = 54 + number(frame[18:20])
    return Alike(heard.is_probe, end, number(frame[22:end]) % 0xFFFF, answer[:56], base, answer[58:62], answer[78:])


class Seek(NamedTuple):
    """Where does a packet for this target go, that comes in here?"""

    heard: Heard


class Probe(NamedTuple):
    """Ask for this target inside."""

    dev: str
    target: bytes


class Wire(NamedTuple):
    """A route to a neighbour inside; dev empty: no longer."""

    target: bytes
    dev: str


@dataclass(slots=True)
class Waiting:
    """Who wants to know whether a neighbour inside answers."""

    dev: str
    until: float
    askers: list[Heard]


def wired_route(target: bytes, dev: str) -> Route:
    return Route(prefix_of(target, 128), MAIN, Reach("", dev))


@dataclass
class Wired:
    dev: str
    until: float                         # when it is looked after, or taken away ...
    asked: int = 0                       # ... as it was asked so often, and is silent


class Proxy:
    """What is answered on one interface."""

    def __init__(self, ndp: Ndp, stock: Stock) -> None:
        self.ndp, self.stock = ndp, stock
        self.place = NO_PLACE
        self.flags = ROUTER * ndp.router
        self.rules = [(-rule.prefix.size, rule.prefix.first, rule) for rule in ndp.rules]
        self.answers: dict[bytes, bytes] = {}                     # to frames that may come again
        self.alike: dict[bytes, Alike] = {}                       # and to such ones, for another target
        self.masks: list[tuple[int, int]] = []                    # and lengths, of leases, the longest first
        self.waiting: dict[bytes, Waiting] = {}
        self.known: dict[bytes, float] = {}                       # inside, and until when that is believed
        self.wired: dict[bytes, Wired] = {}
        self.counts: Counter[str] = Counter()
        self.last: dict[str, tuple[float, bytes]] = {}            # the last frame of each fate, and when
        self.full_at = {True: -inf, False: -inf}                  # when the bucket of probes is full; of known ones
        self.inside: Counter[str] = Counter()                     # advertisements from inside that were of no use
        self.stale_at = inf                                       # when a way that was found has to be looked for again

    def update(self, place: Place) -> None:
        """Leases, routes or the interface may have changed: nothing that was decided stands."""
        self.place = place
        self.alike.clear()
        self.forget_answers()
        self.masks = [(-1 << 128 - length, length) for version, length in sorted(self.stock.lengths, reverse=True)
                      if version == 6 and self.stock.lengths[version, length]]

    def forget_answers(self) -> None:
        self.answers.clear()
        self.stale_at = inf

    def count(self, fate: str, frame: bytes, now: float, times: int = 1) -> None:
        self.counts[fate] += times
        self.last[fate] = now, frame

    # -- what is asked, and whether it is ours to answer --------------------------------

    def hear(self, frame: bytes, now: float) -> bytes | Seek | Probe | None:
        """The advertisement to send back, or what has to be found out first."""
        alike = self.alike.get(common_part(frame))
        if alike is not None and (answer := self.answered_alike(frame, alike)):
            return answer
        heard = read_solicitation(frame)
        own = self.place.own
        if heard.source in own:
            raise Drop("ours")
        if heard.destination[0] != 0xFF and heard.destination != heard.target and heard.destination not in own:
            raise Drop("destination")
        rule = self.rule_of(heard.target, heard.is_probe)
        if rule is None:
            return self.answer(frame, heard)
        if rule.kind == "auto":
            return Seek(heard)
        if rule.kind == "iface":
            return self.look_inside(heard, rule.dev, now)
        raise Drop("excluded")

    def answered_alike(self, frame: bytes, alike: Alike) -> bytes | None:
        """The short way.  None: the long way tells what is wrong, or new."""
        target = frame[62:78]
        if target[13:] != frame[51:54] or target[0] == 0xFF or number(frame[22 : alike.end]) % 0xFFFF != alike.total:
            return None
        if self.rule_of(target, alike.is_probe) is not None:
            return None
        checksum = (0xFFFF - (alike.base + number(target)) % 0xFFFF).to_bytes(2, "big")
        return self.cache_answer(frame, b"".join((alike.head, checksum, alike.flags, target, alike.tail)))

    def cache_answer(self, frame: bytes, answer: bytes) -> bytes:
        """Ready for when that frame comes again."""
        if len(self.answers) >= MAX_ANSWERS:
            self.answers.clear()
        self.answers[frame] = answer
        return answer

    def answer(self, frame: bytes, heard: Heard) -> bytes:
        """Made from nothing."""
        answer = self.cache_answer(frame, self.advertise(heard))
        if frame[20] == ICMPV6 and heard.destination[:13] == SOLICITED_NODE and answer[22:38] != heard.target:
            if len(self.alike) >= MAX_ALIKE:
                self.alike.clear()
            self.alike[common_part(frame)] = alike_of(frame, heard, answer)
        return answer

    def led(self, frame: bytes, heard: Heard, index: int, now: float) -> bytes:
        """The answer to a Seek.  index: of the interface by which a packet would leave, 0 if by none."""
        if 0 in (index, self.place.scope):
            raise Drop("no route")
        if index == self.place.scope:
            raise Drop("route leads back")
        self.stale_at = min(self.stale_at, now + WAY_S)
        return self.answer(frame, heard)

    def rule_of(self, address: bytes, is_probe: bool) -> Proxied | None:
        """The rule that has to be asked; None: it is to be answered."""
        ndp, target = self.ndp, number(address)
        if address in self.place.own:
            raise Drop("own address")
        if address[0] == 0xFE and address[1] & 0xC0 == 0x80:
            raise Drop("link-local target")
        if (ndp.allow or ndp.deny) and (why := ndp.refuses(Prefix(6, target, 128))):
            raise Drop(why)
        rule, lease = self.rule_at(target), self.lease_of(target) if ndp.leased else None
        if lease is not None and (rule is None or rule.prefix.length < lease.prefix.length + (rule.kind != "never")):
            self.permit_lease(lease, is_probe)
            return None
        if rule is None:
            raise Drop("nobody's")
        if ndp.by_kernel and ndp.hands_over(rule.prefix, None):
            raise Drop("the kernel's")
        return None if rule.kind == "static" else rule

    def rule_at(self, target: int) -> Proxied | None:
        """The one of the longest prefix."""
        for mask, first, rule in self.rules:
            if target & mask == first:
                return rule
        return None

    def lease_of(self, target: int) -> Lease | None:
        leased_: Any = self.stock.leased                          # a Prefix is a tuple, and slower to make
        for mask, length in self.masks:
            lease: Lease | None = leased_.get((6, target & mask, length))
            if lease is not None and lease.living:
                return lease
        return None

    def permit_lease(self, lease: Lease, is_probe: bool) -> None:
        """Who has it on this very link answers for itself, and is not to be kept from its own address."""
        if lease.reach is not None and lease.reach.dev == self.ndp.dev and (is_probe or not lease.reach.via):
            raise Drop("on this link")
        if self.ndp.hands_over(lease.prefix, lease.dev):
            raise Drop("the kernel's")

    # -- the answer -------------------------------------------------------------------

    def source_for(self, heard: Heard) -> bytes:
        """An address of this interface.  To a global one the answer may come from such a one, too."""
        addresses = self.place.addresses
        if self.ndp.source == "target" or not addresses:
            return heard.target
        if self.ndp.source == "interface" and heard.source[0] != 0xFE and heard.source != NO_ADDRESS:
            return addresses[-1]
        return addresses[0]

    def advertise(self, heard: Heard) -> bytes:
        flags, to, destination = self.flags | SOLICITED, heard.mac, heard.source
        if destination == NO_ADDRESS:
            flags, to, destination = self.flags, b"\x33\x33\0\0\0\1", ALL_NODES
        rest = b"".join((bytes((flags, 0, 0, 0)), heard.target, b"\2\1", self.place.mac))
        return sealed_frame(to + self.place.mac, self.source_for(heard), destination, b"\x88\0", rest)

    # -- neighbours inside ------------------------------------------------------------

    def look_inside(self, heard: Heard, dev: str, now: float) -> bytes | Probe | None:
        """Answer at once for who has answered just now; else ask.  A scan does not keep us from who answered before."""
        if self.known.get(heard.target, -inf) > now:
            return self.advertise(heard)
        waiting = self.waiting.get(heard.target)
        if waiting is not None and waiting.until > now:
            if heard not in waiting.askers and len(waiting.askers) < MAX_ASKERS:
                waiting.askers.append(heard)
            return None
        is_known = heard.target in self.known
        if self.full_at[is_known] - now > BURST_S:
            raise Drop("too many")
        self.full_at[is_known] = max(self.full_at[is_known], now) + 1 / PROBES_A_S
        if len(self.waiting) >= MAX_PROBES:
            del self.waiting[next(iter(self.waiting))]
        self.waiting.pop(heard.target, None)                      # to stand behind all others
        self.waiting[heard.target] = Waiting(dev, now + PROBE_S, [heard])
        if heard.target in self.wired and not self.wired[heard.target].asked:
            self.wired[heard.target] = Wired(dev, now + PROBE_S, asked=1)
        return Probe(dev, heard.target)

    def answered_inside(self, frame: bytes, dev: str, now: float) -> tuple[list[bytes], Wire | None]:
        """What an advertisement from inside makes us say."""
        heard = read_advertisement(frame)
        waiting, wired = self.waiting.get(heard.target), self.wired.get(heard.target)
        if dev not in {asked.dev for asked in (waiting, wired) if asked}:
            raise Drop("not asked")
        self.waiting.pop(heard.target, None)
        if self.known.pop(heard.target, None) is None and len(self.known) >= MAX_INSIDE:
            del self.known[next(iter(self.known))]
        self.known[heard.target] = now + self.ndp.ttl_s
        wire = None
        if self.ndp.autowire and (wired or len(self.wired) < MAX_INSIDE) and not self.is_leased(heard.target):
            self.wired[heard.target] = Wired(dev, now + WIRED_S)
            wire = Wire(heard.target, dev)
        return [self.advertise(asker) for asker in (waiting.askers if waiting and self.place.scope else ())], wire

    @property
    def deadline(self) -> float:
        return min((wired.until for wired in self.wired.values()), default=inf)

    def on_timer(self, now: float) -> list[Probe | Wire]:
        """Who is wired is asked now and then, and forgotten if it is silent."""
        out: list[Probe | Wire] = []
        for target, wired in list(self.wired.items()):
            if wired.until <= now and wired.asked >= PROBES:
                del self.wired[target]
                self.known.pop(target, None)
                out.append(Wire(target, ""))
            elif wired.until <= now:
                self.wired[target] = Wired(wired.dev, now + PROBE_S, wired.asked + 1)
                out.append(Probe(wired.dev, target))
        return out

    def adopt(self, routes: Iterable[Route], now: float) -> list[Wire]:
        """What an earlier run has wired: asked at once."""
        devs = self.ndp.inner if self.ndp.autowire else []
        for route in routes:
            prefix, dev = route.prefix, route.reach.dev
            if dev in devs and prefix.shape == (6, 128) and route == wired_route(prefix.packed, dev) \
                    and not self.is_leased(prefix.packed):
                rule = self.rule_at(prefix.first)
                if rule is not None and rule.kind == "iface":
                    self.wired.setdefault(prefix.packed, Wired(dev, now))
        return [Wire(target, wired.dev) for target, wired in self.wired.items()]

    def is_leased(self, target: bytes) -> bool:
        return any(lease.living for lease in self.stock.covering(prefix_of(target, 128)))

    def let_go(self) -> list[Wire]:
        """What is leased since it was wired is the lease's."""
        lost = [target for target in self.wired if self.is_leased(target)]
        for target in lost:
            del self.wired[target]
        return [Wire(target, "") for target in lost]

    def plausible(self, most: int) -> list[Prefix] | None:
        """What is worth being heard, for the kernel's filter; None: anything."""
        stock, found = self.stock, [rule.prefix for rule in self.ndp.rules if rule.kind != "never"]
        if self.ndp.leased:
            few = list(islice(stock.leased.items(), 4 * most + 1))
            alive = [prefix for prefix, lease in few if lease.living and prefix.version == 6]
            if len(few) > 4 * most or len(alive) > most:
                if stock.living[""]:
                    return None                                   # there are some outside of all pools
                alive = [pool.prefix for pool in stock.pools if pool.prefix.version == 6]
            found += alive
        return sorted(set(found)) if len(found) <= 2 * most else None


# ==== NODE ============================================================ pure ====
#
# Both roles side by side, their sessions and their leases: what each is to know of the other, of the
# links and of the ways, and what they want of the kernel together.  `received` a datagram, `on_timer` at
# the deadline, `compose` an ask, `resolved` a name; after each, `follow_changes`.


def ula_of(secret: bytes, pool: str) -> Prefix:
    """A /48 of RFC 4193.  Drawn from our key, so it is kept as long as that is, and twins have the same."""
    drawn = digest(b"ddpd ula" + secret + pool.encode())[:5]
    return Prefix(6, 0xFD << 120 | int.from_bytes(drawn, "big") << 80, 48)


def no_route(_: Prefix) -> Route | None:
    """Where the kernel is not asked."""
    return None


Aim = tuple[str, str]                    # what is reached, and of which grantor


def expect(cls: type[T], message: Message) -> T:
    if not isinstance(message, cls):
        raise Drop("message of the other role")
    return message


class LastRun(NamedTuple):
    """How the program ended last time."""

    clean: bool
    boot: str
    at: float
    epoch: int
    wall: float = 0.0


def aged(lease: Lease, run: LastRun, elapsed_s: float) -> Lease:
    """With the time that it has left.  elapsed_s: since the last run ended or, if that crashed, began.

    After a crash that is its full lifetime, but for what is known to have passed: it was not renewed in the last run.
    A deprecated lease only counts down, from what is on file.
    """
    if run.clean:
        lease.valid_until -= elapsed_s
    elif lease.living:
        full = lease.valid_until if lease.state is LeaseState.DEPRECATED else lease.valid_s
        lease.valid_until = full if lease.epoch >= run.epoch else full - elapsed_s
    return lease


def run_of(record: Record) -> LastRun:
    """KeyError, TypeError or ValueError if the record is none."""
    run = LastRun(bool(record["clean"]), str(record["boot"]), float(record["at"]), int(record["epoch"]),
                  float(record.get("wall", 0)))
    if not (0 <= run.at < 2**40 and 0 <= run.epoch < MAX_EPOCH and 0 <= run.wall < 2**40):
        raise ValueError("a number is out of bounds")
    return run


READ_RECORD: Final[dict[str, Callable[[Record, str, Now], Any]]] = {
    "granted":    lambda record, _boot, _now: lease_of(record),
    "held":       lambda record, boot, now: (public_key(record["key"]), held_of(record, boot, now)),
    "slot":       lambda record, _boot, _now: (str(record["grantor"]), str(record["line"]),
                                               whole(0, 255)(str(record["slot"]))),
    "made":       lambda record, _boot, _now: made_of(record),
    "recovering": lambda record, _boot, _now: float(whole(0, FOREVER)(str(record["left"]))),
    "run":        lambda record, _boot, _now: run_of(record),
}


class Node:
    """All that ddpd decides: a grantor and grantees in one process."""

    def __init__(self, config: Config, secret: bytes, boot: str, rand: Rand) -> None:
        self.config, self.boot, self.rand = config, boot, rand
        self.s = keypair(secret)
        self.run, self.stamp = rand(8), -1                        # of this start of the program; of its last ask
        self.wanted = Wanted()
        self.held_keys, self.guard_keys = set[Key](), set[Key]()  # what of `wanted` the grantees want; the grantor
        self.made: dict[Key, Unmarked] = {}                       # what carries no mark in the kernel
        self.duplicates: dict[Key, float] = {}                    # our addresses that others have: when to try again
        self.route_around: Callable[[Prefix], Route | None] = no_route          # a route of others that holds a prefix
        self.left: list[Prefix] = []                              # of leases of which the lease file is lost
        self.forgetful = False                                    # nothing can be written down
        self.first_stamp = -1                                     # of our start: older asks may have been recorded
        self.links = Links()
        self.gateways: tuple[Gateway, ...] = ()
        self.responder = Responder(self.s, config.load, rand)
        self.grantor = Grantor(secret, config, self.wanted, rand)
        self.grantees: dict[str, Grantee] = {}
        self.initiators: dict[str, Initiator] = {}
        self.counters: Counter[str] = Counter()
        self.nudges: list[tuple[float, bytes]] = []
        self.next_nudge = -inf
        self.turn = -inf                                          # what is heard at this moment is heard in one go
        self.decided: Counter[bytes] = Counter()                  # slots in it, by grantee
        self.outdated: list[Key] = []                             # in the lease file, and no longer true
        self.secret = secret
        self.found, self.lent = dict[str, list[Address]](), set[Prefix]()     # see `assume`; to pools, from above
        self.proxies, self.deaf = dict[str, Proxy](), dict[str, str]()     # by interface; of those not heard, why
        self.add_grantees(config)
        self.place_pools(Now(0.0, 0.0), anew=True)
        self.add_proxies(config)

    def add_grantees(self, config: Config) -> None:
        for index, contact in enumerate(config.contacts):
            if contact.name not in self.grantees:
                self.grantees[contact.name] = Grantee(contact, self.boot, self.wanted, self.rand)
                self.initiators[contact.name] = Initiator(self.s, contact.key, self.rand)
            grantee = self.grantees[contact.name]
            if grantee.contact.default != contact.default:
                grantee.reaches = {}
            grantee.contact, grantee.table = contact, table_of(config.mark, index)
            grantee.update_interface()
            grantee.reaches = self.default_of(grantee)

    def add_proxies(self, config: Config) -> None:
        """What goes on unchanged keeps what it knows."""
        old = self.proxies
        self.proxies = {ndp.dev: old[ndp.dev] if ndp.dev in old and old[ndp.dev].ndp == ndp
                        else Proxy(ndp, self.grantor.stock) for ndp in config.ndp}
        self.place_proxies()
        self.grantor.hand_over(config.ndp)
        for dev, proxy in old.items():
            new = self.proxies.get(dev)
            routes = [wired_route(target, wired.dev) for target, wired in proxy.wired.items()]
            kept = {wire.target for wire in (new.adopt(routes, -inf) if new else ())}
            for target in proxy.wired.keys() - kept:
                self.wire(Wire(target, ""))

    def place_proxies(self) -> None:
        for dev, proxy in self.proxies.items():
            place = place_on(dev, self.links)
            proxy.update(place if isinstance(place, Place) else NO_PLACE)

    def wire(self, wire: Wire) -> None:
        """What is leased is not wired: its route is the lease's."""
        route = wired_route(wire.target, wire.dev)
        lease = self.grantor.stock.leased.get(route.prefix)
        if lease is not None and lease.living and lease.reach is not None:
            return
        if wire.dev:
            self.wanted.put(route)
        else:
            self.wanted.take(route.id)

    # -- pools that move -------------------------------------------------------------

    def place_of(self, pool: Pool) -> Pool | None:
        """Where a pool is now; None if nowhere.  ValueError if it does not fit there."""
        follows = pool.follows
        if follows is None:
            return pool
        if follows.kind == "ula":
            return placed(pool, ula_of(self.secret, pool.name))
        if follows.kind == "interface":
            known = self.grantor.pools.get(pool.name, pool).prefix
            prefix = self.links.prefix_on(follows.name, known)
            own = (Prefix(6, at.first, 128) for _, at in self.links.addresses if prefix and prefix.holds(at))
            return placed(pool, prefix, sorted(set(own))) if prefix else None
        grantee = self.grantees[follows.name]
        held = grantee.to_lend(follows.slot, pool.give)
        if held is None:
            return None
        self.lent.add(held.prefix)
        return replace(placed(pool, held.prefix, grantee.own_subnets(held)), ends=held.valid_until,
                       prefers=held.prefers_until)

    def place_pools(self, now: Now, anew: bool = False) -> list[Effect]:
        """Give each pool its place.  `anew`: the configuration has changed too."""
        pools: list[Pool] = []
        moved: list[Pool] = []
        effects: list[Effect] = []
        for pool in self.config.pools:
            try:
                place = self.place_of(pool)
            except ValueError as why:
                place = None
                effects.append(Note(f"pool={pool.name} follows=\"{pool.follows}\" has no place: {why}"))
            among = pools if pool.follows else moved       # what stays was compared when the file was read
            if place is not None and any(place.prefix.overlaps(other.prefix) for other in among):
                effects.append(Note(f"pool={pool.name} prefix={place.prefix} has no place: overlaps another pool"))
                place = None
            pools += [place] if place is not None else []
            moved += [place] if place is not None and pool.follows else []
        above = {pool.name: pool.follows.name for pool in self.config.pools
                 if pool.follows is not None and pool.follows.kind == "grantor"}
        unsettled = {name for name, grantor in above.items() if self.grantees[grantor].unsettled}
        unsettled -= {pool.name for pool in pools}
        before = self.grantor.pools
        effects += [Note(f"pool={pool.name} follows=\"{pool.follows}\" prefix={pool.prefix}") for pool in pools
                    if pool.follows and (pool.name not in before or before[pool.name].prefix != pool.prefix)]
        same = [replace(pool, ends=inf, prefers=inf) for pool in pools] == [
            replace(pool, ends=inf, prefers=inf) for pool in before.values()]
        if same and not anew and unsettled == self.grantor.unsettled:
            self.grantor.pools = {pool.name: pool for pool in pools}
            return self.bound_leases(now)
        self.grantor.configure(self.config, tuple(pools), unsettled, now)
        return [*effects, *self.bound_leases(now)]

    def bound_leases(self, now: Now) -> list[Effect]:
        """What was given of a prefix from above ends with it: at once, if that was revoked."""
        self.grantor.out = []
        held = {held.prefix: held for grantee in self.grantees.values() for held in grantee.held}
        for prefix in sorted(self.lent):
            if prefix not in held:
                self.grantor.end_with_prefix(prefix, now.boot, now)
                self.lent.discard(prefix)
            elif not held[prefix].current:
                self.grantor.end_with_prefix(prefix, held[prefix].valid_until, now)
        return self.grantor.out

    def follow_changes(self, now: Now) -> list[Effect]:
        """After leases of ours, or links, may have changed: who is preferred, what the kernel gets, where pools are."""
        effects = self.rank()
        self.want_grantees()
        return effects + (self.place_pools(now) if any(pool.follows for pool in self.config.pools) else [])

    def linked(self, links: Links, now: Now) -> list[Effect]:
        """The interfaces, or their addresses, are not what they were."""
        self.links = self.grantor.links = links
        self.place_proxies()
        self.grantor.reserve_links(self.own_networks())
        for name, grantee in self.grantees.items():
            grantee.reconsider(partial(self.taken, name), now)
        return self.follow_changes(now)

    def own_networks(self) -> frozenset[Prefix]:
        """What of the pools is this node's own: the networks of its links; of what holds a whole pool only its address.

        Addresses that ddpd itself has made from a lease are none of these: a pool that follows a grantor leaves them
        out where it is placed.
        """
        made = {(thing.dev, thing.address) for thing in self.made.values() if isinstance(thing, Address)}
        found = set[Prefix]()
        for index, own in self.links.addresses:
            if (self.links.names.get(index, ""), own) not in made:
                found.add(own._replace(length=WIDTH[own.version]))
                found.add(own.network(own.length))
        return frozenset(prefix for prefix in found if not is_nobodys(prefix))

    def aims(self) -> dict[Aim, Path | None]:
        """The hosts to which the ways matter: where each grantor is asked, and beside the other ends of tunnels."""
        asks: dict[Aim, Path | None] = {("grantor", name): grantee.aim() for name, grantee in self.grantees.items()}
        return asks | {("tunnel", name): grantee.beside_outer_end() for name, grantee in self.grantees.items()
                       if grantee.contact.tunnel is not None}

    def routed(self, ways: Mapping[Aim, Way | None], gateways: tuple[Gateway, ...], has_changed: bool, now: Now,
               ) -> list[Effect]:
        """How these are reached now.  has_changed: the network has changed, not only where we ask."""
        effects: list[Effect] = []
        self.gateways = gateways
        for name, grantee in self.grantees.items():
            target = grantee.aim()
            old = grantee.way if target == grantee.target else None
            way = self.with_source(ways.get(("grantor", name)), parse_host(target.host), old) if target else None
            grantee.outer = self.outer_route(grantee, ways.get(("tunnel", name)))
            if has_changed:
                for host in [host for host, _ in grantee.contact.addresses if is_gateway(host)]:
                    effects += grantee.resolved(host, places_of(host, gateways), now)
                for host in [host for host, _ in grantee.contact.addresses if "%" in host and is_numeric(host)]:
                    effects += grantee.resolved(host, scoped_places(host, self.links), now)
                effects += grantee.network_changed(way, now)
            if has_changed or target != grantee.target:           # else it has yet to hear of the change
                grantee.target, grantee.way = target, way
            grantee.reaches = self.default_of(grantee)
        self.want_grantees()
        return effects

    def leased_here(self) -> list[Prefix]:
        """All that the grantors have given to this node, or gave before the lease file was lost."""
        return [*(held.prefix for grantee in self.grantees.values() for held in grantee.held), *self.left]

    def with_source(self, way: Way | None, host: Prefix, old: Way | None) -> Way | None:
        """The way, with the address that we send from in place of what the kernel offers."""
        if way is None:
            return None
        before = old.source if old is not None else ""
        return way._replace(source=choose_source(way, host, self.links, self.leased_here(), before))

    def outer_route(self, grantee: Grantee, way: Way | None) -> Route | None:
        """A host route to the tunnel's other end, if the kernel would send the tunnel's packets from a wrong address.

        way: to the address beside that end.
        """
        end, tunnel = grantee.outer_end(), grantee.contact.tunnel
        if end is None or way is None or tunnel is None or way.reach.dev == tunnel.dev or \
                any(prefix.holds(end) for _, prefix in self.links.connected):
            return None
        chosen = self.with_source(way, end, None)
        if chosen is None or chosen.source in ("", way.source):
            return None
        return Route(end, MAIN, way.reach, leaves_by=parse_host(chosen.source).host)

    def source_for(self, name: str, place: Path, way: Way) -> str:
        """Of our addresses, that from which to ask this grantor there; empty if there is none."""
        grantee = self.grantees[name]
        old = grantee.way if grantee.target == place else None
        found = self.with_source(way, parse_host(place.host), old)
        return found.source if found is not None else ""

    def adopt_left(self, things: Mapping[Key, Unmarked], prefixes: Iterable[Prefix]) -> None:
        """The lease file is lost, not what it said of the kernel.  prefixes: of the leases that were installed."""
        self.made |= things
        self.left = list(prefixes)
        for thing in things.values():
            self.wanted.record(thing.record())

    def adopt(self, installed: Iterable[Thing]) -> None:
        """A restart is no outage: the default routes that are there stay until the way is known."""
        found = [thing for thing in installed if isinstance(thing, Route)]
        routes = [route for route in found if route.prefix.length == 0]
        for wire in [wire for proxy in self.proxies.values() for wire in proxy.adopt(found, -inf)]:
            self.wire(wire)
        tunnels = {thing.dev: thing for thing in installed if isinstance(thing, Interface)}
        for grantee in self.grantees.values():
            tunnel = grantee.contact.tunnel
            grantee.interface = tunnels.get(tunnel.dev) if tunnel is not None else None
            if grantee.contact.follows_way:
                mine = [route for route in routes if route.table == grantee.table]
                grantee.reaches = {route.prefix.version: route.reach for route in mine}

    def default_of(self, grantee: Grantee) -> Mapping[int, Reach]:
        """The next hop for what it gave, by IP version; what was known of a way stays while there is none."""
        default, way = grantee.contact.default, grantee.way
        if default is None:
            return {}
        if default.reach is not None:
            return {version: default.reach for version in WIDTH if any(default.reach) and default.reach.serves(version)}
        if way is None or grantee.target is None or way.reach.dev == "lo":           # what was known stays
            return grantee.reaches
        host = parse_host(grantee.target.host)
        found = {version: default_on(way, host, version, self.gateways, self.links) for version in WIDTH}
        known = {version: reach for version, reach in grantee.reaches.items() if reach.dev == way.reach.dev}
        return known | {version: reach for version, reach in found.items() if reach is not None}

    def taken(self, name: str, prefix: Prefix) -> str:
        """Who else has this prefix: a link of this node that ddpd did not make, or another grantor's lease.

        What is inside of the prefix and deprecated is left of an earlier lease of it: netifd, and others to whom a hook
        hands a prefix on, keep such an address for up to two hours (RFC 9096).  And the address that is granted is
        nobody else's.
        """
        ours = {(thing.dev, thing.address) for thing in self.made.values() if isinstance(thing, Address)}
        before = self.grantees[name].former
        for index, own in self.links.addresses:
            network, single = own.network(own.length), own._replace(length=WIDTH[own.version])
            if not network.overlaps(prefix) or (self.links.names.get(index, ""), own) in ours:
                continue
            is_fading = (index, own) in self.links.fading and (index, own) in self.links.timed
            is_left = single == prefix or (prefix.holds(single) and (is_fading or prefix in before))
            if not is_left:
                return f"overlaps {network} on {self.links.names.get(index, index)}"
        contact, way = self.grantees[name].contact, self.grantees[name].way
        route = self.route_around(prefix)
        if route is not None and (way is None or way.reach.dev != route.reach.dev) and \
                not any(route.prefix.holds(accepted) and accepted.holds(prefix) for accepted in contact.accept):
            return f"lies in {route.prefix}, which is routed by {route.reach.dev} (`accept` may name it)"
        for other, grantee in self.grantees.items():
            if any(prefix.holds(parse_host(place.host)) for place in grantee.places()):
                return f"holds the address at which {other} is asked"
            if other != name and any(held.prefix.overlaps(prefix) for held in grantee.held):
                return f"overlaps a lease from {other}"
        return ""

    def rank(self) -> list[Effect]:
        """Of the grantors with a rank only the best that lives is preferred, in each family; the others wait."""
        effects: list[Effect] = []
        ranked = [grantee for grantee in self.grantees.values() if grantee.contact.rank is not None or grantee.waits]
        for version in WIDTH:
            living = {grantee.contact.name: grantee.distance(version) for grantee in ranked
                      if grantee.contact.rank is not None and grantee.is_preferred(version) and grantee.trip_s < inf}
            leading = {name for name, distance in living.items() if distance == min(living.values())}
            for grantee in ranked:
                name, waited = grantee.contact.name, version in grantee.waits
                grantee.leads -= {version}
                grantee.waits -= {version}
                if name in leading:
                    grantee.leads |= {version}
                elif name in living:
                    grantee.waits |= {version}
                if waited != (version in grantee.waits):
                    what = "preferred" if waited else "waits"
                    effects += [Note(f"ranked grantor={name} IPv{version}={what}"), Hook(name, "ranked")]
        return effects

    def want_grantees(self) -> None:
        self.held_keys = self.want(self.held_keys, (t for grantee in self.grantees.values() for t in grantee.things()))

    def want_guards(self) -> None:
        """Decided at the start, and at a reload: what others make, take away and make again stays theirs."""
        self.guard_keys = self.want(self.guard_keys, self.grantor.guards.things(
            lambda dev: bool(self.links.index(dev)) and Interface(dev).id not in self.made))

    def want(self, before: set[Key], now_wanted: Iterable[Thing]) -> set[Key]:
        """These, and no longer what was before.  What is made of WireGuard from now on has our present key."""
        things = {thing.id: thing._replace(own=self.s.public) if isinstance(thing, Interface) and thing.secret
                  else thing for thing in now_wanted}
        for key in before - things.keys():
            self.wanted.take(key)
        for thing in things.values():
            self.wanted.put(thing)
        return set(things)

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
            cookie = self.responder.cookie_for_stale(peer, ask, datagram, path, now)
            if cookie is not None:
                self.counters["sent_cookie"] += 1
                return [Send(cookie, path)]
            answer = plain_answer(ask, Status.STALE)
            self.counters["sent_stale"] += 1
        else:
            answer, effects = self.grantor.handle_ask(peer, ask, path, now)
            self.counters["sent_answer"] += 1
        stale = answer.status == Status.STALE
        fitting = self.looked_at(peer, plain, answer, datagram, now)
        reply = self.responder.answer(datagram, handshake, fitting)
        session = Session(handshake, now.boot, peer).turned()
        if stale:
            session.stale_stamp = ask.stamp
        self.responder.add_session(session)
        if not stale:
            peer.stamp = peer.last_stamp = ask.stamp
            peer.path, peer.session, peer.nudged = path, session, 0
        return [*effects, Send(reply, path)]

    def is_fresh(self, peer: Peer, ask: Ask) -> bool:
        """Can this handshake be no replay?  Of one that was recorded before our start nothing comes."""
        if peer.stamp >= 0:
            return ask.stamp > peer.stamp
        return ask.stamp >= self.first_stamp and not peer.living() and not any(want.ticket for want in ask.wants)

    def heard_sealed(self, datagram: bytes, path: Path, now: Now) -> list[Effect]:
        session, plain = self.responder.open_sealed(datagram, now)
        peer = self.grantor.peer_of(session.peer.key)
        if peer is None:
            raise Stranger(session.peer.key, is_proved=True)
        if peer is not session.peer:                              # was removed, and is there again
            peer.live, peer.stamp, session.peer = session, session.peer.stamp, peer
        ask = expect(Ask, decode(plain))
        if ask.run == peer.run and ask.stamp <= peer.last_stamp:  # in a session that was made later, as it was delayed
            raise Drop("older than the last ask")
        self.take_turn(peer, ask, now)
        answer, effects = self.grantor.handle_ask(peer, ask, path, now)
        peer.stamp, peer.last_stamp = max(peer.stamp, ask.stamp), ask.stamp
        peer.path, peer.session, peer.nudged = path, session, 0
        self.counters["sent_sealed"] += 1
        fitting = self.looked_at(peer, plain, answer, datagram, now)
        effects.append(Send(session.seal(fitting), path))
        return effects

    def take_turn(self, peer: Peer, ask: Ask, now: Now) -> None:
        """Of what is heard in one go nobody's part is so large that others have to wait for it."""
        if now.boot != self.turn:
            self.turn, self.decided = now.boot, Counter()
        self.decided[peer.key] += max(1, len(ask.wants))
        if self.decided[peer.key] > SLOTS_AT_ONCE:
            raise Drop("too many at once")

    def looked_at(self, peer: Peer, asked: bytes, answer: Answer, datagram: bytes, now: Now) -> bytes:
        """The answer to what this datagram asked, as it is sent; the looking glass has seen it."""
        overhead = SHORTEST["answer" if datagram[0] == KINDS["ask"][0] else "sealed"]
        plain = self.look_at(peer, asked.rstrip(b"\0"), answer, now)
        return fitted(answer, plain, len(datagram) - overhead, overhead)

    def look_at(self, peer: Peer, asked: bytes, answer: Answer, now: Now) -> bytes:
        plain = encode(answer)
        if answer.status != Status.STALE:
            peer.glass = Glass(now, asked, plain, self.grantor.by)
            for refused in answer.refusals:
                self.counters[f"refused {reason_name(refused.reason)}"] += 1
            if "looking_glass" in self.grantor.site:
                self.grantor.tell_site(peer, message_shown(plain))
        return plain

    def heard_answer(self, datagram: bytes, name: str, now: Now) -> list[Effect]:
        plain = self.initiators[name].open_answer(datagram, now)
        answer = expect(Answer, decode(plain))
        if answer.status == Status.STALE and not answer.unknown:
            self.initiators[name].match(answer, now)
            return self.grantees[name].told_stale(now)
        return self.apply(name, answer, now)

    def heard_reply(self, datagram: bytes, name: str, now: Now) -> list[Effect]:
        message = decode(self.initiators[name].open_sealed(datagram, now))
        if isinstance(message, Nudge):
            grantee = self.grantees[name]
            if now.boot - grantee.nudged_at < NUDGE_GAP_S or grantee.state is State.RELEASED or \
                    not grantee.nudges.take(now):
                raise Drop("nudged too often, or after a release")
            grantee.nudged_at = now.boot
            self.initiators[name].unanswered = 0
            return [Note(f"nudged grantor={name}"), *grantee.step(Event.NUDGED, now)]
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
        sent_at, ask = self.initiators[name].match(answer, now)
        grantee = self.grantees[name]
        grantee.heard(now.boot - sent_at)
        effects = grantee.answered(ask, answer, sent_at, now, lambda prefix: self.taken(name, prefix))
        self.believe(name)
        effects += self.follow_changes(now)
        more = answer.need is not None and self.initiators[name].size > room
        return [*effects, Call(name)] if more else effects        # what did not fit is worth a longer ask

    def compose(self, name: str, source: str, now: Now) -> bytes:
        """The ask to send to this grantor's present place, now, from this address."""
        initiator = self.initiators[name]
        self.stamp = max(int(max(0.0, now.wall) * 1e6), self.stamp + 1)       # of one run, always larger
        ask = self.grantees[name].ask(self.stamp, self.run, parse_host(source))
        self.counters["sent_ask"] += 1
        return initiator.compose(ask, f"{source} {self.grantees[name].place()}", now)

    def resolved(self, name: str, host: str, paths: tuple[Path, ...], now: Now) -> list[Effect]:
        grantee = self.grantees.get(name)
        effects = grantee.resolved(host, paths, now) if grantee else []
        return effects + self.follow_changes(now)

    # -- time ------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        if not self.grantor.reviewed or self.grantor.restless or self.grantor.delayed:
            return -inf
        return min(self.grantor.deadline, max(self.next_nudge, self.nudges[0][0]) if self.nudges else inf,
                   self.responder.erase_at, *(initiator.erase_at for initiator in self.initiators.values()),
                   *(grantee.deadline for grantee in self.grantees.values()), inf)

    def on_timer(self, now: Now) -> list[Effect]:
        effects = self.grantor.on_timer(now) if self.grantor.deadline <= now.boot else []
        if self.responder.erase_at <= now.boot:
            self.responder.erase(now)
        for initiator in self.initiators.values():
            if initiator.erase_at <= now.boot:
                initiator.session = None
        due = [grantee for grantee in self.grantees.values() if grantee.deadline <= now.boot]
        for grantee in due:
            effects += grantee.on_timer(now)
        if due:
            effects += self.follow_changes(now)
        if not self.grantor.reviewed:
            self.grantor.go_on()
        return effects + self.nudge(now)

    def nudge(self, now: Now) -> list[Effect]:
        """Once, then after 1 s, 2 s, ... until the peer asks; so many a second in all."""
        effects: list[Effect] = []
        for key, at in {**self.grantor.delayed, **dict.fromkeys(self.grantor.restless, now.boot)}.items():
            peer = self.grantor.peers.get(key)
            if peer is not None:
                peer.nudged = 1
                self.nudge_at(peer, at)
        self.grantor.restless.clear()
        self.grantor.delayed.clear()
        while self.nudges and max(self.next_nudge, self.nudges[0][0]) <= now.boot and len(effects) < NUDGES_A_S // 10:
            at, key = heapq.heappop(self.nudges)
            peer = self.grantor.peers.get(key)
            if peer is None or at != peer.nudge_at or not peer.nudged or peer.path is None:
                continue
            if peer.session is None or peer.session.over(now):
                continue
            effects.append(Send(peer.session.seal(padded(encode(Nudge()), ASK_STEP - SHORTEST["sealed"])), peer.path))
            self.counters["sent_nudge"] += 1
            if peer.nudged < NUDGES:
                self.nudge_at(peer, now.boot + 2.0 ** (peer.nudged - 1))
            peer.nudged = (peer.nudged + 1) % (NUDGES + 1)
        if effects:
            self.next_nudge = now.boot + 0.1
        return effects

    def nudge_at(self, peer: Peer, at: float) -> None:
        """At this time, and not at another for which it was noted before."""
        if peer.nudge_at != at:
            peer.nudge_at = at
            heapq.heappush(self.nudges, (at, peer.key))

    def handle_peers(self, dev: str, state: WgState | None, now: Now) -> list[Effect]:
        """What `wg` shows of one of the interfaces whose peers are grantees."""
        return self.grantor.handle_peers(dev, state, self.made, now) + self.nudge(now)

    # -- the operator ----------------------------------------------------------------

    def operate(self, event: Event, name: str, now: Now) -> list[Effect]:
        """`renew` and `release`, of one grantor or (no name) of all."""
        effects = []
        for grantee in [g for n, g in self.grantees.items() if name in ("", n)]:
            effects += grantee.step(event, now)
        return effects + self.follow_changes(now)

    def revoke(self, peer: Peer, slot: int | None, now: Now) -> list[Effect]:
        return self.grantor.revoke(peer, slot, now) + self.nudge(now)

    def forgive(self, peer: Peer, slot: int | None, now: Now) -> list[Effect]:
        return self.grantor.forgive(peer, slot, now) + self.nudge(now)

    def dismissed(self, config: Config) -> list[Grantee]:
        """Whose grantors this configuration does not name, or names with another key."""
        kept = {contact.name: contact.key for contact in config.contacts}
        return [grantee for name, grantee in self.grantees.items() if kept.get(name) != grantee.contact.key]

    def reconfigure(self, config: Config, now: Now) -> list[Effect]:
        """A new configuration, without losing a lease or a session."""
        known = {name: dict(grantee.slots) for name, grantee in self.grantees.items()}
        effects: list[Effect] = []
        for grantee in self.dismissed(config):
            for held in grantee.held:
                self.wanted.forget_record(held.id(grantee.contact.key))
            del self.grantees[grantee.contact.name], self.initiators[grantee.contact.name]
        self.config, self.responder.load = config, config.load
        self.add_grantees(config)
        for name, grantee in self.grantees.items():
            grantee.number(known.get(name, {}))
            for held in grantee.held:
                if held.current and held.slot not in grantee.slots.values():
                    grantee.deprecate(held, now)
                    grantee.save(held, now)
            if grantee.state is not State.RELEASED:
                effects += grantee.step(Event.NUDGED, now)
        effects += self.rank()
        self.want_grantees()
        watched = list(self.grantor.guards.sights)
        self.grantor.guards.configure(config.guards)
        self.want_guards()
        effects += self.place_pools(now, anew=True)
        effects += self.grantor.unwatch(watched, now) + self.grantor.transfer_all(now)
        self.add_proxies(config)
        self.grantor.go_on()
        return effects + self.nudge(now)

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
        self.first_stamp = int(run.wall * 1e6)
        elapsed_s = max(0.0, now.boot - run.at) if run.boot == self.boot else 0.0
        self.outdated = self.grantor.restore([aged(lease, run, elapsed_s) for lease in found["granted"]], now)
        for thing in found["made"]:
            # Of another boot nothing is there any more.  But wg-quick, told to save what it finds (SaveConfig), has
            # saved what we had made on its interface, and made it again.
            if run.boot == self.boot or isinstance(thing, WgPeer | AllowedIp):
                self.made[thing.id] = thing
            else:
                self.outdated.append(key_of(thing.record()))
        if found["recovering"]:
            self.grantor.recovering_until = now.boot + found["recovering"][-1]
        for grantee in self.grantees.values():
            key = grantee.contact.key
            grantee.held = [held for at, held in found["held"] if at == key and held is not None]
            known = {line: slot for at, line, slot in found["slot"] if at == grantee.contact.name}
            grantee.number(known)
        self.want_grantees()
        return damage

    def recover(self, damage: Iterable[Damage], lost: bool, now: Now) -> None:
        """What may be held by somebody, though the file does not say by whom, must not be given away."""
        longest_s = max((self.config.hold_s if pool.has_twins else pool.valid_s for pool in self.config.pools),
                        default=0.0)                              # a twin may renew what we do not know of
        longest_s = max(longest_s, *(agreement.bounds[0] for agreement in self.config.agreements.values()), 0.0)
        prefixes = [salvaged(line) for line in damage]
        lost = lost or None in prefixes
        unknown = [prefix for prefix in dict.fromkeys(prefixes)
                   if prefix is not None and self.grantor.stock.is_free(prefix)]
        if unknown:
            self.grantor.restore([Lease(b"", 0, prefix, LeaseState.FORMER, longest_s, longest_s)
                                  for prefix in unknown], now)
        if lost and self.config.pools:
            self.grantor.recovering_until = now.boot + longest_s

    def run_record(self, clean: bool, now: Now) -> Record:
        """clean: all leases are written with their time left."""
        return {"kind": "run", "clean": clean, "boot": self.boot, "at": round(now.boot, 1),
                "epoch": self.grantor.epoch, "wall": int(now.wall)}

    def records(self, clean: bool, now: Now) -> Iterator[Record]:
        """Everything that is worth a line in the lease file."""
        yield self.run_record(clean, now)
        for peer in self.grantor.peers.values():
            for lease in peer.leases:
                yield lease.record(now)
        for name, grantee in self.grantees.items():
            for held in [held for held in grantee.held if not held.found]:
                yield held.record(grantee.contact.key, self.boot, now)
            for line, slot in grantee.slots.items():
                yield {"kind": "slot", "grantor": name, "line": line, "slot": slot}
        for thing in self.made.values():
            yield thing.record()
        left = self.grantor.recovering_until - now.boot
        if left > 0:
            yield {"kind": "recovering", "left": seconds(left)}

    def assume(self, grantor: str, dev: str) -> list[Effect]:
        """With no lease file: what is on the tunnel to a grantor may be what that gave (as wg-dynamic has it)."""
        grantee = self.grantees[grantor]
        grantee.number({})
        found = [Address(dev, own) for index, own in self.links.addresses
                 if self.links.names.get(index) == dev and own.is_address and not is_nobodys(own)]
        self.found[grantor] = grantee.assume(found)
        return [Note(f"found grantor={grantor} address={thing.address.host} on={dev}: asks whether it is leased")
                for thing in self.found[grantor]]

    def believe(self, grantor: str) -> None:
        """What was found is ours, if it is held still, now that somebody has answered."""
        held = {held.prefix for held in self.grantees[grantor].held}
        things = [thing for thing in self.found.get(grantor, ()) if thing.address in held]
        if any(held.found for held in self.grantees[grantor].held):
            return
        self.found.pop(grantor, None)
        for thing in things:
            self.made[thing.id] = thing
            self.wanted.record(thing.record())

    def start(self, now: Now) -> list[Effect]:
        self.first_stamp = max(self.first_stamp, int(now.wall * 1e6))
        for grantee in self.grantees.values():
            if not grantee.slots:
                grantee.number({})
            if any(held.current for held in grantee.held):
                grantee.enter(State.RENEWING, now.boot)
                grantee.t2_at = now.boot + REBIND_S
        self.grantor.expect_peers()
        self.want_guards()
        effects = self.grantor.transfer_all(now)
        self.rank()
        self.want_grantees()
        self.lent = {held.prefix for grantee in self.grantees.values() for held in grantee.held}
        effects += self.place_pools(now, anew=True)
        self.add_proxies(self.config)
        return [*effects, *(Hook(name, "started") for name in self.grantees)]


# ==== DOOR =========================================================== pure ====
#
# wg-dynamic, version 1: text over TCP, inside of a WireGuard tunnel, one address a family.
#
#     request_ip=1    |  request_ip=1            |  request_ip=1
#     ip=10.9.0.7/32  |  ip=10.9.0.7/32          |  errno=3
#     ip=::           |  ip=2001:db8:9::7/128    |  errmsg=10.9.0.8 is not yours
#                     |  leasestart=1795000000   |
#     is asked        |  leasetime=3600          |  ... if it had named 10.9.0.8
#                     |  errno=0                 |
#
# In the older draft the keys are `ipv4` and `ipv6`: an address that is not the asker's own
# is a wish, a family not named is wanted too, and one without a value is given back.


INVALID, UNSUPPORTED, UNAVAILABLE = 1, 2, 3                       # errno
COMMAND: Final = "request_ip"
LONGEST_LEASE_S: Final = 315_360_000     # who reads it multiplies by 8, in 32 bits


class DoorError(Exception):
    """What is wrong with a message of wg-dynamic, and its errno."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


class DoorAsk(NamedTuple):
    wanted: dict[int, Prefix | None]     # family -> the address that is named, None: any
    drafts: tuple[bool, bool]            # answered as the newer draft has it, as the older one has it

    @property
    def insists(self) -> bool:
        """A named address, or none."""
        return self.drafts == (True, False)


def door_pairs(message: bytes) -> list[tuple[str, str]]:
    """Keys and values; DoorError."""
    if not message.isascii() or b"\0" in message:
        raise DoorError(INVALID, "not text")
    lines = message.decode("ascii").split("\n")
    pairs = [(key, value) for key, equals, value in (line.partition("=") for line in lines) if equals and key]
    if len(pairs) < len(lines):
        raise DoorError(INVALID, "a line is not key=value")
    if pairs[0] != (COMMAND, "1"):
        raise DoorError(UNSUPPORTED, f"want {COMMAND}=1")
    return pairs[1:]


def door_address(text: str) -> Prefix:
    try:
        address_ = parse_prefix(text)
    except ValueError:
        raise DoorError(INVALID, "not an address") from None
    if not address_.is_address:
        raise DoorError(INVALID, "not one address (/32 or /128)")
    return address_


def door_ask(message: bytes) -> DoorAsk:
    """A message without the empty line at its end; DoorError."""
    wanted: dict[int, Prefix | None] = {}
    unwanted, is_new, is_old = set[int](), False, False
    for key, value in door_pairs(message):
        if key not in ("ip", "ipv4", "ipv6"):
            continue
        is_new, is_old = is_new or key == "ip", is_old or key != "ip"
        if key != "ip" and not value:
            unwanted.add(int(key[-1]))
            continue
        named = door_address(value)
        if key not in ("ip", f"ipv{named.version}") or named.version in wanted:
            raise DoorError(INVALID, f"a second address of IPv{named.version}, or one of another family")
        wanted[named.version] = named if named.first else None
    if is_new and is_old:
        raise DoorError(INVALID, "ip beside ipv4 or ipv6")
    if not is_new:
        wanted |= {version: None for version in WIDTH if version not in wanted and version not in unwanted}
    return DoorAsk(wanted, (not is_old, not is_new))


def door_text(pairs: Iterable[tuple[str, object]]) -> bytes:
    return "".join(f"{key}={value}\n" for key, value in ((COMMAND, 1), *pairs)).encode() + b"\n"


def door_refusal(number: int, text: str) -> bytes:
    return door_text((("errno", number), ("errmsg", printable(text))))


def own_addresses(peer: Peer) -> dict[int, Lease]:
    """What a grantee has of single addresses, one a family: the first that is preferred."""
    return {lease.prefix.version: lease for lease in reversed(peer.leases)
            if lease.state is LeaseState.ACTIVE and lease.prefix.is_address}


def door_wants(peer: Peer, asked: DoorAsk, stamp: int) -> Ask:
    """As any other ask: for the slots in which it has addresses, else for others that are unused."""
    own = own_addresses(peer)
    used = {lease.slot for lease in peer.leases if lease.living}
    spare = (slot for slot in range(256) if slot not in used)
    wants = []
    for version, named in sorted(asked.wanted.items()):
        has = own[version].prefix if version in own else None
        if named is not None and named != has and asked.insists:
            raise DoorError(UNAVAILABLE, f"{named.host} is not yours")
        slot = own[version].slot if version in own else next(spare, None)
        if slot is None:
            raise DoorError(UNAVAILABLE, "no slot is left")
        wants.append(Want(slot, has or Prefix(version, 0, WIDTH[version])))
    given_back = tuple(lease.slot for version, lease in own.items() if version not in asked.wanted)
    return Ask(stamp=stamp, run=peer.run or bytes(8), wants=tuple(wants), releases=given_back)


def door_answer(asked: DoorAsk, answer: Answer, now: Now) -> bytes:
    """In the form of the draft in which it was asked; in both, if that cannot be told."""
    grants = [grant for grant in answer.grants if grant.current and grant.prefix.is_address
              and grant.prefix.version in asked.wanted]
    if not grants and answer.refusals:
        return door_refusal(UNAVAILABLE, answer.refusals[0].text)
    rows: list[tuple[str, object]] = []
    for grant in grants:
        names = [name for name, is_so in zip(("ip", f"ipv{grant.prefix.version}"), asked.drafts, strict=True) if is_so]
        rows += [(name, grant.prefix) for name in names]
    if grants:
        lasts_s = min(LONGEST_LEASE_S, *(grant.valid_s for grant in grants))
        rows += [("leasestart", int(max(0.0, now.wall))), ("leasetime", lasts_s)]
    return door_text((*rows, ("errno", 0)))


def through_door(node: Node, peer: Peer, message: bytes, path: Path, now: Now) -> tuple[bytes, list[Effect]]:
    """What a message of wg-dynamic is answered, and what has to be done before."""
    node.counters["heard_dynamic"] += 1
    try:
        asked = door_ask(message)
        ask = door_wants(peer, asked, max(0, peer.stamp))
    except DoorError as why:
        return door_refusal(why.number, str(why)), []
    answer, effects = node.grantor.handle_ask(peer, ask, path, now)
    node.look_at(peer, encode(ask), answer, now)
    return door_answer(asked, answer, now), effects


# ==== STATUS ========================================================= pure ====
#
# What is told to people, scripts and hooks.


def refused_rows(grantee: Grantee) -> list[dict[str, Any]]:
    return [{"slot": refusal.slot, "reason": reason_name(refusal.reason), "text": refusal.text}
            for refusal in grantee.refused.values()]


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


def granted_row(node: Node, peer: Peer, lease: Lease, now: Now) -> dict[str, Any]:
    left_s, reach = lease.valid_until - now.boot, lease.reach if lease.living else None
    preferred_s = 0.0
    if lease.state is LeaseState.ACTIVE:
        pool = node.grantor.terms(peer.agreement, lease.prefix)
        valid_s = node.grantor.valid_s(peer.agreement, pool, now) if pool else inf
        spent_s = valid_s - preferred_of(pool, valid_s) if pool and left_s < inf else 0.0
        preferred_s = max(0.0, min(left_s - spent_s, pool.prefers - now.boot)) if pool else left_s
    return {"grantee": peer.agreement.name, "key": show_key(peer.key), "slot": lease.slot, "prefix": str(lease.prefix),
            "preferred": seconds(preferred_s), "valid": seconds(left_s), "from": str(peer.path) if peer.path else "",
            "hostname": peer.hostname, "reach": thing_reach(reach) if reach else f"none ({lease.why})",
            "clone": bool(peer.rival), "configured": peer.key in node.grantor.agreements, "state": lease.state.value,
            "age": max(0, int(now.wall) - lease.since) if lease.since else 0, "by": lease.by}


def held_row(grantee: Grantee, held: Held, now: Now) -> dict[str, Any]:
    return {"grantor": grantee.contact.name, "key": show_key(grantee.contact.key), "state": grantee.state.value,
            "slot": held.slot, "prefix": str(held.prefix), "preferred": seconds(grantee.prefers_until(held) - now.boot),
            "valid": seconds(held.valid_until - now.boot), "waits": held.prefix.version in grantee.waits}


def held_rows(grantee: Grantee, now: Now) -> list[dict[str, Any]]:
    ordered = sorted(grantee.held, key=lambda held: (held.slot, not held.current))
    return [held_row(grantee, held, now) for held in ordered]


def grantor_row(grantee: Grantee) -> dict[str, Any]:
    ways = [f"IPv{version} {thing_reach(reach)}" for version, reach in sorted(grantee.reaches.items())]
    return {"name": grantee.contact.name, "state": grantee.state.value, "at": str(grantee.aim() or ""),
            "addresses": [host for host, _ in grantee.contact.addresses],
            "interface": grantee.way.reach.dev if grantee.way else "", "default": ways,
            "tunnel": grantee.interface.dev if grantee.interface and grantee.held else "",
            "trip_ms": None if grantee.trip_s == inf else round(1000 * grantee.trip_s, 1),
            "refused": refused_rows(grantee)}


def pool_row(node: Node, pool: Pool) -> dict[str, Any]:
    place, stock = node.grantor.pools.get(pool.name), node.grantor.stock
    row = {"name": pool.name, "prefix": str(place.prefix) if place else "", "leases": stock.living[pool.name],
           "free_fraction": round(stock.spaces[pool.name].free_fraction(), 6) if place else 0.0}
    if pool.follows is not None:
        row["follows"] = str(pool.follows)
    return {**row, "share": f"{pool.share[0]}/{pool.share[1]}"} if pool.has_twins else row


OUTCOMES: Final = ("answered", "asked inside")                    # the other fates of what was heard are reasons


def proxy_row(proxy: Proxy, deaf: Mapping[str, str]) -> dict[str, Any]:
    ndp, counts = proxy.ndp, proxy.counts
    return {"interface": ndp.dev, "state": f"cannot listen: {deaf[ndp.dev]}" if ndp.dev in deaf else "listens",
            "method": "kernel" if ndp.by_kernel else "own",
            "proxied": ["leased"] * ndp.leased + [str(rule) for rule in ndp.rules], "heard": counts.total(),
            "answered": counts["answered"], "asked_inside": counts["asked inside"],
            "ignored": {fate: count for fate, count in sorted(counts.items()) if fate not in OUTCOMES},
            "inside": dict(sorted(proxy.inside.items())), "known_inside": len(proxy.known), "wired": len(proxy.wired),
            "deaf_inside": {dev: deaf[dev] for dev in ndp.inner if dev in deaf}}


def guard_row(node: Node, sight: Sight) -> dict[str, Any]:
    dev, state = sight.guard.dev, sight.state
    ours = Counter(type(thing) for thing in node.made.values() if isinstance(thing, WgThing) and thing.dev == dev)
    peers = state.peers if state is not None else {}
    return {"interface": dev, "state": "there" if state is not None else "not there",
            "public_key": show_key(state.key) if state is not None and state.key else "",
            "port": state.port if state is not None else 0, "peers": len(peers), "added_peers": ours[WgPeer],
            "allowed_ips": sum(map(len, peers.values())), "leased_ips": ours[AllowedIp], "made": bool(ours[Interface])}


def guard_shown(node: Node, sight: Sight) -> dict[str, Any]:
    """With its peers, and what of their allowed IPs is leased."""
    ours = {(thing.key, thing.prefix) for thing in node.made.values() if isinstance(thing, AllowedIp)}
    return {**guard_row(node, sight), "peer_rows": [
        {"key": show_key(key), "leased": [str(prefix) for prefix in allowed if (key, prefix) in ours],
         "by_hand": [str(prefix) for prefix in allowed if (key, prefix) not in ours]}
        for key, allowed in sight.peers.items()]}


def frame_shown(frame: bytes) -> dict[str, str]:
    """As far as it can be read."""
    if len(frame) < FRAME.size or frame[20] != ICMPV6:
        return {}
    return {"target": inet_ntop(AF_INET6, frame[62:78]), "from": inet_ntop(AF_INET6, frame[22:38]),
            "to": inet_ntop(AF_INET6, frame[38:54])}


def proxy_shown(proxy: Proxy, deaf: Mapping[str, str], now: Now) -> dict[str, Any]:
    """The looking glass of an interface: the last frame of each fate."""
    last = [{"fate": fate, "ago": int(now.boot - at), **frame_shown(frame), "frame": frame.hex()}
            for fate, (at, frame) in sorted(proxy.last.items(), key=lambda row: -row[1][0])]
    return {**proxy_row(proxy, deaf), "last": last}


NO_MEMORY: Final = "leases are not kept over a restart"


def attention_of(node: Node) -> list[str]:
    """What a person should look at, a sentence each."""
    found = []
    for key in node.duplicates:
        thing = node.wanted.things.get(key)
        if isinstance(thing, Address):
            found.append(f"{thing.address} on {thing.dev} is a duplicate: another host there has it")
    return found + ([NO_MEMORY] if node.forgetful else [])


def status_of(node: Node, now: Now, most: int) -> dict[str, Any]:
    """The object that `status --json` prints, with at most so many leases."""
    grantor = node.grantor
    shown = islice((lease for lease in grantor.stock.in_order() if lease.living), most)
    left_s = max(0.0, grantor.recovering_until - now.boot)
    return {
        "version": VERSION,
        "public_key": show_key(node.s.public),
        "pools": [pool_row(node, pool) for pool in node.config.pools],
        "granted": [granted_row(node, grantor.peers[lease.key], lease, now) for lease in shown],
        "granted_in_all": sum(grantor.stock.living.values()),
        "held": [row for grantee in node.grantees.values() for row in held_rows(grantee, now)],
        "grantors": [grantor_row(grantee) for grantee in node.grantees.values()],
        "ndp": [proxy_row(proxy, node.deaf) for proxy in node.proxies.values()],
        "wireguard": [guard_row(node, sight) for sight in grantor.guards.sights.values()],
        "grantees": len(node.config.agreements),
        "skipped": len(node.config.skipped),
        "sessions": len(node.responder.sessions),
        "attention": attention_of(node),
        "recovering": seconds(left_s),
        "disk_full": grantor.disk_full,
        "under_load": node.responder.under_load(now),
        "counters": dict(sorted(node.counters.items())),
    }


OUR_STATUS: Final = '{"uptime": '        # as each file begins


def status_file_text(node: Node, now: Now) -> str:
    """What `status --json` prints, and the time since boot to which it counts: without the peers' keys, for the web."""
    said = status_of(node, now, FILE_ROWS)
    rows = {name: [{key: value for key, value in row.items() if key != "key"} for row in said[name]]
            for name in ("granted", "held")}
    return f"{OUR_STATUS}{int(now.boot)}, {json.dumps({**said, **rows})[1:]}\n"


def lease_rows(node: Node, leases: Iterable[Lease], now: Now) -> Iterator[dict[str, Any]]:
    for lease in leases:
        peer = node.grantor.peers.get(lease.key)
        if peer is not None and lease in peer.leases:             # may have gone while others were told
            yield granted_row(node, peer, lease, now)


def peer_named(node: Node, what: str) -> Peer | None:
    """By the grantee's name, by its key, or by the first eight letters of that."""
    def is_meant(key: bytes, name: str) -> bool:
        return name == what or (len(what) >= 8 and show_key(key).startswith(what))
    grantor = node.grantor
    for key, agreement in grantor.agreements.items():
        if is_meant(key, agreement.name):
            return grantor.peers.get(key) or Peer(key, agreement)
    return next((peer for key, peer in grantor.peers.items() if is_meant(key, peer.agreement.name)), None)


def leases_by(node: Node, what: str) -> Iterable[Lease]:
    """Of a peer, around an address or prefix and inside of it, or all; ValueError if it is none of these."""
    stock = node.grantor.stock
    try:
        place = parse_prefix(what) if what else None
    except ValueError:
        peer = peer_named(node, what)
        if peer is None:
            raise
        return list(peer.leases)
    few = list(islice(stock.overlapping(place), PIN_BATCH)) if place else []
    if place and len(few) < PIN_BATCH:
        return few
    return (lease for lease in list(stock.leased.values()) if place is None or place.overlaps(lease.prefix))


def agreement_shown(agreement: Agreement) -> dict[str, Any]:
    return {"pools": list(agreement.pools), "limit": agreement.limit, "lengths": lengths_shown(agreement.lengths),
            "total": [str(total) for total in agreement.total], "pins": [str(pin) for pin in agreement.pins],
            "until": int(agreement.until) if agreement.until < inf else "",
            "lifetime": " to ".join(lasting(seconds(bound)) for bound in agreement.bounds),
            "rate": f"{agreement.rate.burst}, one more every {agreement.rate.each_s:g} s",
            "route": agreement.route if isinstance(agreement.route, str) else thing_reach(agreement.route)}


def show_of(node: Node, what: str, now: Now) -> dict[str, Any]:
    """The looking glass: what `show PEER --json` prints.  ValueError if there is no such peer."""
    if what in node.grantees:
        grantee = node.grantees[what]
        return {**grantor_row(grantee), "key": show_key(grantee.contact.key), "asked_at": str(grantee.place() or ""),
                "answers": grantee.answers, "status": grantee.status, "options": options_shown(grantee.options),
                "next_in": seconds(grantee.timer - now.boot), "held": held_rows(grantee, now)}
    peer = peer_named(node, what)
    if peer is None and what in node.proxies:
        return proxy_shown(node.proxies[what], node.deaf, now)
    if peer is None and what in node.grantor.guards.sights:
        return guard_shown(node, node.grantor.guards.sights[what])
    if peer is None:
        raise ValueError(f"no peer named '{what}'")
    glass = peer.glass
    last = {} if glass is None else {
        "ago": int(now.boot - glass.now.boot), "at": int(glass.now.wall), "ask": message_shown(glass.ask),
        "answer": message_shown(glass.answer), "by": [{"slot": slot, "handler": by} for slot, by in glass.by]}
    return {"grantee": peer.agreement.name, "key": show_key(peer.key), "agreement": agreement_shown(peer.agreement),
            "from": str(peer.path) if peer.path else "", "hostname": peer.hostname, "clone": bool(peer.rival),
            "session": peer.live is not None, **last, "leases": list(lease_rows(node, peer.leases, now))}


def explained(node: Node, what: str, text: str, now: Now) -> dict[str, Any]:
    """What an ask would be answered, and which handler says so.  ValueError if there is no such peer."""
    peer = peer_named(node, what)
    if peer is None:
        raise ValueError(f"no grantee named '{what}': a stranger gets no answer")
    line = parse_line(text)
    want = Want(line.slot or 0, line.prefix)
    case = node.grantor.case(peer, want, Ask(stamp=0, run=bytes(8), wants=(want,)), now)
    verdict = node.grantor.decide(case)
    steps = []
    for name, meaning in node.grantor.handlers():
        steps.append({"handler": name, "asks": meaning, "says": "goes on" if name != verdict.by else "decides"})
        if name == verdict.by:
            break
    outcome = verdict.outcome
    said: dict[str, Any] = {"grantee": peer.agreement.name, "slot": want.slot, "want": str(want.prefix), "steps": steps,
                            "handler": verdict.by}
    if isinstance(outcome, Refusal):
        return {**said, "refused": reason_name(outcome.reason), "text": outcome.text, "again": outcome.again_s}
    pool = node.grantor.terms(peer.agreement, outcome)
    return {**said, "prefix": str(outcome), "random": verdict.by == "drawn", "pool": pool.name if pool else "",
            "valid": seconds(node.grantor.valid_s(peer.agreement, pool, now)) if pool else 0}


def asked_of(grantee: Grantee, now: Now) -> dict[str, Any]:
    """The object that `ask --json` prints."""
    grants = [{"slot": held.slot, "prefix": str(held.prefix), "preferred": seconds(held.prefers_until - now.boot),
               "valid": seconds(held.valid_until - now.boot)} for held in grantee.held if held.current]
    refused = refused_rows(grantee)
    return {"grantor": grantee.contact.name, "status": grantee.status, "grants": grants,
            "refused": refused, "options": options_shown(grantee.options)}


def lifetimes(row: Mapping[str, Any]) -> list[str]:
    fallback = "waits" if row.get("waits") else "deprecated"
    return [lasting(row["preferred"]) if row["preferred"] else fallback, lasting(row["valid"])]


def table(title: str, rows: list[list[str]]) -> list[str]:
    """Aligned columns, each row led by the title; nothing if there is only a head."""
    if title and len(rows) < 2:
        return []
    wide = [max(len(row[n]) for row in rows if n < len(row)) for n in range(max(map(len, rows), default=0))]
    return [f"{title:8} " + "  ".join(cell.ljust(wide[n]) for n, cell in enumerate(row)).rstrip() for row in rows]


BAR: Final = 20                          # letters of a pool's bar
COLOURS: Final = ((0.95, "31"), (0.8, "33"), (0.0, "32"))         # from how full, in red, yellow, green


def bar(full: float, colours: bool) -> str:
    filled = min(BAR, max(int(full * BAR), int(full > 0)))
    drawn = "#" * filled + "." * (BAR - filled)
    colour = next(code for least, code in COLOURS if full >= least)
    return f"[\x1b[{colour}m{drawn}\x1b[0m]" if colours else f"[{drawn}]"


def leases_table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    head = ["to", "slot", "prefix", "age", "preferred", "valid", "reach", "asked from", "host name"]
    return table("granted", [head] + [
        [g["grantee"] + ("" if g["configured"] else " (removed)"), str(g["slot"]), g["prefix"],
         lasting(g["age"]) if g["age"] else "",
         *(lifetimes(g) if g["state"] in ("active", "deprecated") else [g["state"], lasting(g["valid"])]),
         g["reach"], g["from"], g["hostname"]] for g in rows])


def status_text(said: Mapping[str, Any], colours: bool) -> str:
    """`status` for a person: one line a pool, a lease, a counter."""
    lines = [f"ddpd {said['version']}  key {said['public_key']}"]
    flags = [name for name in ("disk_full", "under_load") if said[name]]
    flags += [f"recovering for {said['recovering']} s"] if said["recovering"] else []
    flags += [f"{said['skipped']} bad rows or files skipped (`check` names them)"] if said["skipped"] else []
    lines += [f"attention: {line}" for line in [", ".join(flags), *said["attention"]] if line]
    lines += table("pool", [["", "prefix", "leased", "full"]] + [
        [p["name"], p["prefix"] or f"(nowhere: {p['follows']})", str(p["leases"]),
         f"{bar(1 - p['free_fraction'], colours)} {100 * (1 - p['free_fraction']):.1f} %"] for p in said["pools"]])
    lines += leases_table(said["granted"])
    more = said["granted_in_all"] - len(said["granted"])
    lines += [f"granted  ... and {more} more (`leases` shows all)"] if more > 0 else []
    lines += table("held", [["from", "slot", "prefix", "preferred", "valid", "state"]] + [
        [h["grantor"], str(h["slot"]), h["prefix"], *lifetimes(h), h["state"]] for h in said["held"]])
    lines += table("grantor", [["", "state", "at", "on", "round trip", "default", "refused"]] + [
        [g["name"], g["state"], g["at"], g["interface"], "" if g["trip_ms"] is None else f"{g['trip_ms']} ms",
         ", ".join(g["default"]), "; ".join(f"slot {r['slot']}: {r['reason']} ({r['text']})" for r in g["refused"])]
        for g in said["grantors"]])
    lines += table("ndp", [["", "state", "proxied", "heard", "answered", "asked inside", "ignored"]] + [
        [p["interface"], p["state"], "; ".join(p["proxied"]),
         str(p["heard"]), str(p["answered"]), str(p["asked_inside"]),
         ", ".join(f"{count} {reason}" for reason, count in p["ignored"].items())] for p in said["ndp"]])
    lines += table("wireguard", [["", "state", "port", "peers", "added", "allowed ips", "leased"]] + [
        [w["interface"], w["state"], *(str(w[name]) for name in ("port", "peers", "added_peers", "allowed_ips",
                                                                 "leased_ips"))] for w in said["wireguard"]])
    lines += table("counter", [["", "count"]] + [[name, str(count)] for name, count in said["counters"].items()])
    return "\n".join(lines)


def nested_text(said: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """`show` for a person: what the JSON says, a line a value."""
    for name, value in said.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            yield from nested_text(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield f"{indent}{name}"
            for row in value:
                said_ = (f"{key}={part}" for key, part in row.items() if part not in ("", []) and part is not False)
                yield f"{indent}  " + "  ".join(said_)
        elif value not in ("", []) and value is not False:
            yield f"{indent}{name:10} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def explained_text(said: Mapping[str, Any]) -> str:
    lines = [f"{said['grantee']} asks {said['want']} in slot {said['slot']}"]
    answers = {"goes on": "no", "decides": "yes"}                 # to what a handler of ours asks
    lines += table("", [[step["handler"], step["asks"], answers[step["says"]] if step["asks"].endswith("?")
                         else step["says"]] for step in said["steps"]])
    if "refused" in said:
        again = lasting(said["again"])
        return "\n".join([*lines, f"answer: refused {said['refused']} ({said['text']}), again in {again}"])
    kind = "a random prefix such as " if said["random"] else ""
    return "\n".join([*lines, f"answer: {kind}{said['prefix']}, valid {lasting(said['valid'])}"])


METRICS: Final = (                       # name, type, help; `NAME REASON` counters become a label
    ("datagrams_heard_total", "counter", "Datagrams heard, by kind."),
    ("datagrams_sent_total",  "counter", "Datagrams sent, by kind."),
    ("drops_total",           "counter", "Datagrams dropped, by reason."),
    ("refusals_total",        "counter", "Slots refused, by reason."),
    ("failures_total",        "counter", "What else went wrong, by kind."),
    ("solicitations_total",   "counter", "Neighbour solicitations heard, by interface and fate."),
    ("proxy_listens",         "gauge",   "1: solicitations are heard on this interface."),
    ("proxy_known_inside",    "gauge",   "Neighbours inside that have answered."),
    ("proxy_unanswered_inside", "gauge", "Solicitations for which nobody inside has answered."),
    ("proxy_wired",           "gauge",   "Routes made to neighbours inside."),
    ("leases",                "gauge",   "Leases given, by pool."),
    ("pool_free_ratio",       "gauge",   "Part of a pool that is free."),
    ("held_leases",           "gauge",   "Leases held, by grantor."),
    ("grantees",              "gauge",   "Grantees configured."),
    ("sessions",              "gauge",   "Sessions kept."),
    ("recovering_seconds",    "gauge",   "Seconds until new leases are given again."),
    ("disk_full",             "gauge",   "1: the lease file cannot be written."),
    ("skipped_rows",          "gauge",   "Bad rows of pins and bad files of grantees."),
    ("info",                  "gauge",   "The version."),
)
COUNTED: Final = {"heard": ("datagrams_heard_total", "kind"), "sent": ("datagrams_sent_total", "kind"),
                  "drop": ("drops_total", "reason"), "refused": ("refusals_total", "reason")}


def labelled(name: str, value: str) -> str:
    value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{value}"'


def samples(said: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(metric, label, value)"""
    for name, count in said["counters"].items():
        head, _, rest = name.replace("_", " ", 1).partition(" ")
        metric, label = COUNTED.get(head, ("failures_total", "kind"))
        yield metric, labelled(label, rest if head in COUNTED else name), count
    for proxy in said["ndp"]:
        for fate, count in {"answered": proxy["answered"], **proxy["ignored"]}.items():
            yield "solicitations_total", f"{labelled('interface', proxy['interface'])},{labelled('fate', fate)}", count
        gauges = {"listens": proxy["state"] == "listens", "unanswered_inside": proxy["asked_inside"],
                  "known_inside": proxy["known_inside"], "wired": proxy["wired"]}
        for gauge, value in gauges.items():
            yield f"proxy_{gauge}", labelled("interface", proxy["interface"]), int(value)
    for pool in said["pools"]:
        yield "leases", labelled("pool", pool["name"]), pool["leases"]
        yield "pool_free_ratio", labelled("pool", pool["name"]), pool["free_fraction"]
    for name, count in Counter(held["grantor"] for held in said["held"]).items():
        yield "held_leases", labelled("grantor", name), count
    for metric, key in (("grantees", "grantees"), ("sessions", "sessions"), ("recovering_seconds", "recovering"),
                        ("disk_full", "disk_full"), ("skipped_rows", "skipped")):
        yield metric, "", int(said[key])
    yield "info", labelled("version", said["version"]), 1


def metrics_text(said: Mapping[str, Any]) -> str:
    """In Prometheus' text format."""
    found: dict[str, list[str]] = {}
    for metric, label, value in samples(said):
        found.setdefault(metric, []).append(f"ddpd_{metric}{'{' + label + '}' if label else ''} {value:.15g}")
    lines = []
    for metric, kind, meaning in METRICS:
        if metric in found:
            lines += [f"# HELP ddpd_{metric} {meaning}", f"# TYPE ddpd_{metric} {kind}", *found[metric]]
    return "\n".join(lines) + "\n"


# ==== HANDING ON ===================================================== pure ====
#
# What others on this host are told: hooks of two styles, and files for resolvers.


def lasts(prefix: Prefix, prefers_until: float, valid_until: float, now: Now) -> str:
    return f"{prefix},{seconds(prefers_until - now.boot)},{seconds(valid_until - now.boot)}"


def leased(grantee: Grantee, is_meant: Callable[[Prefix], bool], now: Now) -> str:
    return " ".join(lasts(held.prefix, grantee.prefers_until(held), held.valid_until, now)
                    for held in grantee.held if is_meant(held.prefix))


def asked_at(grantee: Grantee) -> str:
    place = grantee.aim()
    return parse_host(place.host).host if place else ""


def environment_of(grantee: Grantee, event: str, now: Now) -> dict[str, str]:
    """What a hook, and `ask --env`, knows: DDPD_PREFIXES="prefix,preferred,valid ..." and so on."""
    rows = {"PREFIXES": leased(grantee, lambda prefix: not prefix.is_address, now),
            "ADDRESSES": leased(grantee, lambda prefix: prefix.is_address, now),
            "SUBNETS": " ".join(f"{thing.dev},{lasts(thing.address, thing.prefers_until, thing.valid_until, now)}"
                                for held in grantee.held for thing in grantee.lan_things(held))}
    dev, via = (grantee.way.reach.dev, grantee.way.reach.via or asked_at(grantee)) if grantee.way else ("", "")
    found = {"EVENT": event, "GRANTOR": grantee.contact.name, "STATE": grantee.state.value, **rows,
             "INTERFACE": dev, "GATEWAY": via, "SERVER": asked_at(grantee), "ANSWERS": str(grantee.answers),
             "UNSENT": grantee.unsent}
    for name, value in options_shown(grantee.options).items():
        found[name.upper()] = " ".join(value) if isinstance(value, list) else str(value)
    found["REFUSED"] = " ".join(f"{row['slot']},{row['reason']}" for row in refused_rows(grantee))
    return {f"DDPD_{name}": value for name, value in found.items()}


def effective_grantors(grantees: Iterable[Grantee]) -> list[Grantee]:
    """Whose options count: those of exits that live; if none does, of those whose prefixes still last."""
    holding = [grantee for grantee in grantees if any(held.current for held in grantee.held)]
    living = [grantee for grantee in holding
              if any(grantee.is_preferred(version) and version not in grantee.waits for version in WIDTH)]
    return living or holding


def advised(grantees: Iterable[Grantee], name: str, versions: tuple[int, ...] = (4, 6)) -> list[str]:
    """An option that is a list, of all whose options count, each item once."""
    items = dict.fromkeys(item for grantee in effective_grantors(grantees) for item in grantee.options.get(name, ()))
    return [item if isinstance(item, str) else item.host for item in items
            if isinstance(item, str) or item.version in versions]


HookCall = tuple[list[str], dict[str, str]]                       # arguments, environment


def ddpd_calls(grantee: Grantee, event: str, _: HookCall | None, now: Now) -> list[HookCall]:
    return [([event], environment_of(grantee, event, now))]


def odhcp6c_state(grantee: Grantee, event: str, last: HookCall | None) -> str:
    """Empty if it knows that already."""
    has_none = last is None or last[0][1] in ("started", "unbound", "stopped")
    if event in ("started", "stopped"):
        return event
    if not any(held.prefix.version == 6 for held in grantee.held):
        return "" if last is not None and has_none else "unbound"
    return "rebound" if event == "rebound" else "bound" if has_none else "updated"


def odhcp6c_calls(grantee: Grantee, event: str, last: HookCall | None, now: Now) -> list[HookCall]:
    """INTERFACE STATE, and IPv6 only, as odhcp6c knows no more; nothing as long as there is no interface."""
    state = odhcp6c_state(grantee, event, last) if event != "silent" else ""
    dev = grantee.way.reach.dev if grantee.way else last[0][0] if last else ""
    ntp = " ".join(advised([grantee], "ntp", (6,)))
    environment = environment_of(grantee, event, now) | {
        "PREFIXES": leased(grantee, lambda prefix: prefix.version == 6 and not prefix.is_address, now),
        "ADDRESSES": leased(grantee, lambda prefix: prefix.version == 6 and prefix.is_address, now),
        "RDNSS": " ".join(advised([grantee], "dns", (6,))), "NTP_IP": ntp, "SNTP_IP": ntp,
        "DOMAINS": " ".join(advised([grantee], "search")), "RA_MTU": str(grantee.options.get("mtu", "")),
        "SERVER": asked_at(grantee)}
    states = ["started"] * (last is None and state != "started") + [state] * bool(state)
    return [([dev, each], environment) for each in states] if dev else []


HOOK_CALLS: Final = dict(zip(HOOK_STYLES, (ddpd_calls, odhcp6c_calls), strict=True))
LESSER: Final = ("renewed", "rebound", "ranked", "silent")   # events that do not hide one that waits


# -- files for others --------------------------------------------------------------

ETHERNET_MTU: Final = 1500
OUR_FILE: Final = "# made by ddpd; what is changed here is lost\n"
Subnet = tuple[str, Prefix]              # interface, /64


def smallest_mtu(grantees: Iterable[Grantee]) -> int:
    told = [grantee.options["mtu"] for grantee in effective_grantors(grantees) if "mtu" in grantee.options]
    return min(told, default=0)


def subnets_of(grantees: Iterable[Grantee], version: int) -> list[Address]:
    """On the LANs, by ddpd: what the hook does itself is its own affair."""
    return [thing for grantee in grantees if grantee.contact.install for held in grantee.held
            for thing in grantee.lan_things(held) if thing.address.version == version]


def resolv_text(grantees: Iterable[Grantee], _lost: Iterable[Subnet], _now: Now) -> str:
    """As resolv.conf(5) has it."""
    domains = " ".join(advised(grantees, "search"))
    return (f"search {domains}\n" if domains else "") + "".join(f"nameserver {at}\n" for at in advised(grantees, "dns"))


def dnsmasq_text(grantees: Iterable[Grantee], _lost: Iterable[Subnet], _now: Now) -> str:
    """As dnsmasq's servers-file has it: the domains of the preferred grantor are asked of its own name servers.

    Of any other they are not: it could name a domain of somebody else's.
    """
    counting = effective_grantors(grantees)
    preferred = [grantee for grantee in counting if grantee.leads] or (counting if len(counting) == 1 else [])
    own = [f"server=/{domain}/{address.host}\n" for grantee in preferred
           for domain in grantee.options.get("search", ()) if "." in domain
           for address in grantee.options.get("dns", ())]
    return "".join(dict.fromkeys([*own, *(f"server={at}\n" for at in advised(grantees, "dns"))]))


def announced(subnet: Prefix, preferred_s: int, valid_s: int) -> str:
    """Deprecated and lost ones are said again and again: radvd forgets what it counts down to nothing."""
    if not preferred_s:
        link = "" if valid_s else " AdvOnLink off;"               # hosts count down what is left (RFC 4862, 5.5.3 e)
        return f"prefix {subnet} {{{link} AdvPreferredLifetime 0; AdvValidLifetime {valid_s}; }};"
    return (f"prefix {subnet} {{ AdvPreferredLifetime {preferred_s}; AdvValidLifetime {valid_s}; "
            "DecrementLifetimes on; };")


def radvd_text(grantees: Iterable[Grantee], lost: Iterable[Subnet], now: Now) -> str:
    """As radvd.conf(5) has it: each /64 with what is left of its time."""
    lans: dict[str, list[str]] = {lan.dev: [] for grantee in grantees if grantee.contact.install
                                  for line in grantee.contact.lines for lan in line.lans
                                  if line.prefix.version == 6 and line.prefix.length <= 64}
    for dev, subnet in lost:
        lans.setdefault(dev, []).append(announced(subnet, 0, 0))
    routed = set()
    for dev, own, prefers_until, valid_until, _ in subnets_of(grantees, 6):
        if own.length == 64:
            routed.add(dev)
            left_s = (min(seconds(until - now.boot), FOREVER) for until in (prefers_until, valid_until))
            lans.setdefault(dev, []).append(announced(own.network(64), *left_s))
    mtu, dns = smallest_mtu(grantees), advised(grantees, "dns", (6,))
    # A word alone may be one of radvd's own, and digits alone are a number to it.
    domains = [domain for domain in advised(grantees, "search")
               if "." in domain and not domain.replace(".", "").isdigit()]
    more = [f"AdvLinkMTU {mtu};"] * (0 < mtu < ETHERNET_MTU)
    more += [f"RDNSS {' '.join(dns[at : at + 3])} {{ }};" for at in range(0, min(len(dns), 9), 3)]
    more += [f"DNSSL {' '.join(domains[:9])} {{ }};"] * bool(domains)
    begun = {dev: "AdvSendAdvert on;" + ("" if dev in routed else " AdvDefaultLifetime 0;") for dev in lans}
    return "".join("\n    ".join([f"interface {dev} {{ {begun[dev]}", *rows, *more]) + "\n};\n"
                   for dev, rows in lans.items())


def dhcp_text(grantees: Iterable[Grantee], _lost: Iterable[Subnet], now: Now) -> str:
    """As dnsmasq.conf has it: all of each IPv4 subnet that is preferred, but for our own address."""
    options = {"option:dns-server": advised(grantees, "dns", (4,)), "option:ntp-server": advised(grantees, "ntp", (4,)),
               "option:domain-search": advised(grantees, "search"),
               "option:mtu": [str(mtu) for mtu in (smallest_mtu(grantees),) if 0 < mtu < ETHERNET_MTU]}
    lines = [f"dhcp-option={name},{','.join(items)}\n" for name, items in options.items() if any(items)]
    for dev, own, prefers_until, _, _ in subnets_of(grantees, 4):
        first, last = own.first + 1, own.network(own.length).first + own.size - 2
        if prefers_until > now.boot and first <= last:
            ends = ",".join(Prefix(4, number, 32).host for number in (first, last, 0xFFFFFFFF & -own.size))
            lines.append(f"interface={dev}\ndhcp-range={ends},{DHCP_S}s\n")
    return "port=0\nbind-dynamic\ndhcp-authoritative\n" + "".join(lines)


HANDED_TEXTS: Final = dict(zip(HANDED, (resolv_text, dnsmasq_text, radvd_text, dhcp_text), strict=True))


def announced_in(text: str) -> Iterator[Subnet]:
    """The subnets that live in a radvd.conf of ours."""
    dev = ""
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        dev = rest.partition(" ")[0] if word == "interface" else dev
        if word == "prefix" and "AdvOnLink" not in rest and is_device(dev):
            try:
                prefix = parse_prefix(rest.partition(" ")[0])
            except ValueError:                                    # somebody has had a hand in it
                continue
            if prefix.shape == (6, 64):
                yield dev, prefix


# ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~ WATERLINE ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
# Below here the world is real and may fail.  Above here it is neither.


# ==== SHELL =========================================================== I/O ====


UNPRINTABLE: Final = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "?")


def clock_now() -> Now:
    return Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


class Level(IntEnum):
    """As syslog(3) numbers them."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


class Log:
    """One event, one line, `key=value`.  What the network causes is limited.

    Lines go to standard error; where the journal reads that, each begins with its level.  With DDPD_LOG=split, for
    procd, only warnings and errors do, and the rest goes to standard output: it takes the level from that.
    """

    def __init__(self) -> None:
        self.verbose = False
        self.unread = 0                                           # lines that were lost, as nobody has read
        self.kinds: dict[str, Pace] = {}
        self.is_split = os.environ.get("DDPD_LOG") == "split"
        self.is_journal = os.environ.get("JOURNAL_STREAM") == self.stream_of(2)

    @staticmethod
    def stream_of(fd: int) -> str:
        """As systemd names it."""
        try:
            found = os.fstat(fd)
        except OSError:
            return ""
        return f"{found.st_dev}:{found.st_ino}"

    def write(self, level: Level, text: str, values: tuple[object, ...]) -> None:
        """Lost, if nobody reads: a full pipe must not stop the daemon."""
        head, fd = f"<{level.value}>" if self.is_journal else "", 1 if self.is_split and level > Level.WARNING else 2
        line = (text % values if values else text).translate(UNPRINTABLE)        # whose words they may be
        data = f"{head}{line}\n".encode("utf-8", "backslashreplace")
        try:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            if not poller.poll(0):
                self.unread += 1
                return
            if self.unread:                                       # in one write: two might not have room
                data = f"lost lines={self.unread}: nobody has read them\n".encode() + data
                self.unread = 0
            os.write(fd, data if len(data) <= MAX_LINE else data[: MAX_LINE - 4] + b"...\n")
        except OSError:
            pass

    def error(self, text: str, *values: object) -> None:
        self.write(Level.ERROR, text, values)

    def warning(self, text: str, *values: object) -> None:
        self.write(Level.WARNING, text, values)

    def notice(self, text: str, *values: object) -> None:
        self.write(Level.NOTICE, text, values)

    def info(self, text: str, *values: object) -> None:
        self.write(Level.INFO, text, values)

    def debug(self, text: str, *values: object) -> None:
        if self.verbose:
            self.write(Level.DEBUG, text, values)

    def limited(self, kind: str, text: str, *values: object, level: Level = Level.WARNING) -> None:
        """So many lines of one kind (kinds are few: they come from our own texts)."""
        if self.may_say(kind):
            self.write(level, text, values)

    def may_say(self, kind: str) -> bool:
        return self.kinds.setdefault(kind, Pace(LOG_LINES)).take(clock_now())


log = Log()


def fileno(sock: Any) -> int:
    return sock if isinstance(sock, int) else int(sock.fileno())


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def sysctl(name: str) -> int | None:
    """Of net.ipv6; None if there is none."""
    try:
        return int(read_file(f"/proc/sys/net/ipv6/{name}"))
    except (OSError, ValueError):
        return None


TALKATIVE: Final = ("LOG_LEVEL", "WG_PROCESS_FOREGROUND")         # with these wireguard-go would stay in front of us


def run_child(command: list[str], stdin: str, limit_s: float, own_session: bool = False,
              ) -> subprocess.CompletedProcess[str]:
    """OSError, with a text in `strerror`, if it could not be run, or hangs."""
    log.debug("run command=\"%s\" input=\"%s\"", " ".join(command), "; ".join(stdin.splitlines()))
    try:
        return subprocess.run(command, input=stdin, text=True, errors="replace", capture_output=True, check=False,
                              timeout=limit_s, start_new_session=own_session,
                              env={name: os.environ[name] for name in os.environ if name not in TALKATIVE})
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"{command[0]}: {os.strerror(errno.ETIMEDOUT)}") from None
    except FileNotFoundError:
        raise OSError(errno.ENOENT, f"there is no program `{command[0]}`") from None


def run_command(command: list[str], stdin: str, own_session: bool = False) -> str:
    """Its complaints; empty if it succeeded; OSError."""
    done = run_child(command, stdin, CHILD_S, own_session)
    return "" if done.returncode == 0 else done.stderr.strip() or "failed"


def write_sysctl(name: str, value: int) -> None:
    """Of net.ipv6; as far as there is one."""
    try:
        with open(f"/proc/sys/net/ipv6/{name}", "w") as file:
            file.write(str(value))
    except OSError as why:
        log.debug("cannot write sysctl=%s why=\"%s\"", name, why.strerror)


def routes_by(devs: Container[str]) -> dict[str, list[list[str]]] | None:
    """IPv6 routes by interface: destination, length, source, length, next hop ...; None: that cannot be seen.

    All of the table is read for that, so it is read once for all interfaces.
    """
    found: dict[str, list[list[str]]] = {}
    try:
        with open("/proc/net/ipv6_route") as routes:
            for row in map(str.split, routes):
                if row[-1] in devs:
                    found.setdefault(row[-1], []).append(row)
    except OSError:
        return None
    return found


def router_warnings(ndp: Ndp, pools: Iterable[Pool], hops: Iterable[str]) -> Iterator[str]:
    """Routers whose address would be answered for, or given away."""
    for router in sorted({prefix_of(bytes.fromhex(hop), 128) for hop in hops if hop.strip("0")}):
        rule = next((rule for rule in ndp.rules if rule.prefix.holds(router)), None)
        if rule is not None and rule.kind in ("static", "iface"):
            yield f"[ndp {ndp.dev}] answers for the router {router} too (a line `never {router}` ends that)"
        for pool in pools if ndp.leased else ():
            if pool.prefix.holds(router) and not any(hole.holds(router) for hole in pool.reserve):
                yield f"[pool {pool.name}] may give away the router {router.host} (reserve = {router.host})"


def sysctl_word(dev: str) -> str:
    """An interface in the name of a sysctl, as sysctl(8) has it: `eth0.10` is `eth0/10`."""
    return dev.replace(".", "/")


def has_interface(dev: str) -> bool:
    """Under its name, or an alternative one."""
    try:
        return bool(socket.if_nametoindex(dev))
    except OSError:
        return False


def lan_warnings(config: Config) -> Iterator[str]:
    """What in this system keeps a LAN from being of use."""
    lans = {lan.dev: f"[grantor {contact.name}] ask: {lan.dev}" for contact in config.contacts
            for line in contact.lines for lan in line.lans}
    for dev, where in lans.items():
        if os.path.exists(f"/sys/class/net/{dev}/brport"):
            yield f"{where} is a port of a bridge: the hosts there are on the bridge, so name that"
        try:
            mtu = int(read_file(f"/sys/class/net/{dev}/mtu"))
        except (OSError, ValueError):
            continue
        if mtu < 1280:
            yield f"{where} has an MTU of {mtu}, and IPv6 needs 1280 (ip link set {dev} mtu 1280)"


def ndp_warnings(config: Config) -> Iterator[str]:
    """What in this system keeps what is proxied from being reached."""
    if config.ndp and sysctl("conf/all/forwarding") == 0:
        yield "net.ipv6.conf.all.forwarding = 0: nothing is passed on from here (sysctl -w ...=1)"
    by_dev = routes_by({ndp.dev for ndp in config.ndp}) if config.ndp else {}
    for ndp in config.ndp:
        yield from (f"there is no interface {dev} (yet)" for dev in (ndp.dev, *ndp.inner) if not has_interface(dev))
        yield from (f"[ndp {ndp.dev}] {rule}: for link-local addresses nobody answers in another's stead"
                    for rule in ndp.rules if rule.kind != "never" and LINKLOCAL.holds(rule.prefix))
        routes = by_dev.get(ndp.dev, []) if by_dev is not None else None
        yield from router_warnings(ndp, config.pools, (row[4] for row in routes or ()))
        if ndp.leased and not config.pools:
            yield f"[ndp {ndp.dev}] proxy = leased, but there is no [pool] to lease from"
        has_default = routes is None or any(row[:2] == ["0" * 32, "00"] for row in routes)
        if sysctl("conf/all/forwarding") and sysctl(f"conf/{ndp.dev}/accept_ra") == 1 and not has_default:
            yield (f"net.ipv6.conf.{sysctl_word(ndp.dev)}.accept_ra = 1: with forwarding on, no router advertisement "
                   "is heard there, and there is no default route (2, if it comes from them)")
        if os.path.exists(f"/sys/class/net/{ndp.dev}/brport"):
            yield f"{ndp.dev} is a port of a bridge, so nothing is heard there ([ndp] wants the bridge)"
        if ndp.by_kernel and sysctl(f"conf/{ndp.dev}/proxy_ndp") == sysctl("conf/all/proxy_ndp") == 0:
            yield (f"net.ipv6.conf.{sysctl_word(ndp.dev)}.proxy_ndp = 0: `method = kernel` needs 1, "
                   "else nobody answers")
        if ndp.by_kernel and sysctl(f"neigh/{ndp.dev}/proxy_delay"):
            yield f"net.ipv6.neigh.{sysctl_word(ndp.dev)}.proxy_delay is not 0: the kernel waits before it answers"


def is_anycast(dev: str) -> bool:
    """Is fe80:: of this interface first of all the address of any router there?  Then TCP is not heard at it."""
    rows = (routes_by({dev}) or {}).get(dev, ())
    flags = [int(row[8], 16) for row in rows if row[:2] == ["fe80".ljust(32, "0"), "80"]]
    return bool(flags) and bool(flags[0] & RTF_ANYCAST)


def make_unicast(dev: str) -> None:
    """So that fe80:: can be our address; the kernel does not take it for one beside its own."""
    if is_anycast(dev):
        try:
            run_command(["ip", "-6", "route", "del", "anycast", DOOR_ADDRESS.host, "dev", dev, "table", "local"], "")
        except OSError as why:
            log.debug("no unicast interface=%s why=\"%s\"", dev, why.strerror)


def tunnel_warnings(config: Config) -> Iterator[str]:
    """What in this system keeps tunnels from being of use."""
    ends = [contact for contact in config.contacts if contact.tunnel is not None]
    lans = [line for contact in ends for line in contact.lines if not line.prefix.is_address]
    if (config.guards or lans) and not config.ndp and sysctl("conf/all/forwarding") == 0:
        yield "net.ipv6.conf.all.forwarding = 0: nothing is passed on from here (sysctl -w ...=1)"
    if (config.guards or ends) and not any(os.access(os.path.join(path, "wg"), os.X_OK) for path in os.get_exec_path()):
        yield "there is no program `wg` (wireguard-tools)"
    for guard in config.guards:
        if guard.dynamic and is_anycast(guard.dev):
            yield (f"wg-dynamic is not heard on {guard.dev}: with forwarding, another fe80::/64 address there has made "
                   f"fe80:: one of any router's (`dynamic = no`, if nobody speaks that; else "
                   f"net.ipv6.conf.{sysctl_word(guard.dev)}.addr_gen_mode = 1 before it comes up)")


CAPABILITIES: Final = {"CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}


def lacking(config: Config) -> Iterator[str]:
    """The capabilities that the configuration needs, and this process does not have."""
    try:
        lines = read_file("/proc/self/status").splitlines()
        sets = {line[3:6]: int(line[7:], 16) for line in lines if line[:3] == b"Cap"}
    except (OSError, ValueError):
        return
    have = sets[b"Eff"]
    if os.geteuid():                                              # `ip` has only what is handed on to it
        have &= sets[b"Amb"] | ~(1 << CAPABILITIES["CAP_NET_ADMIN"])
    yield from (f"no {need.capability}, which {config.file} {need.where} needs" for need in config.needs
                if not have >> CAPABILITIES[need.capability] & 1)


def flaw_in_script(program: str) -> str:
    """Why the kernel will not run it, or nothing: its own words, "no such file" and "format error", mislead."""
    try:
        with open(program, "rb") as file:
            first = file.readline(200)
    except OSError:
        return ""
    if first.startswith(b"\x7fELF"):
        return ""
    if not first.startswith(b"#!"):
        return "it does not begin with `#!` and the program that reads it (such as #!/bin/sh)"
    if first.endswith(b"\r\n"):
        return "its lines end as in DOS, with CR LF (`sed -i 's/\\r$//' FILE` mends that)"
    reader = b"".join(first[2:].split()[:1])
    return "" if os.path.exists(reader) else f"its first line names {reader.decode('latin-1')}, which is not there"


class Fatal(Exception):  # noqa: N818 - the end, with a reason for a person
    """The daemon, or the command, cannot go on."""


class Silent(Fatal):
    """The daemon does not answer a command, or not to the end."""


class DefectError(Exception):
    """Something that should not have happened: with its traceback, so that it can be mended."""


class BusyFileError(ConfigError):
    """Somebody else is writing a file that has to be read: it is worth waiting for."""


def read_text(path: str) -> str:
    try:
        return read_file(path).decode("utf-8-sig")
    except OSError as why:
        raise ConfigError(f"{path}: {why.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None


RTF_ANYCAST: Final = 0x00100000
SQLITE: Final = b"SQLite format 3\0"


def read_own(path: str) -> str:
    """A file that is read while asks wait: nothing that has no end, or is very long."""
    try:
        found = os.stat(path)
    except OSError as why:
        raise ConfigError(f"{path}: {why.strerror}") from None
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_OWN:
        raise ConfigError(f"{path}: not a file of at most {MAX_OWN} bytes")
    return read_text(path)


LEFTOVERS: Final = ("~", ".bak", ".disabled", ".dpkg-dist", ".dpkg-new", ".dpkg-old", ".old", ".orig", ".swp", ".tmp")


class FilesOnDisk(Files):
    """The folder of grantees and the files of pins."""

    def grantees(self, folder: str) -> Iterator[GranteeFile]:
        try:
            names = sorted(os.listdir(folder))
        except OSError as why:
            raise ConfigError(f"{folder}: {why.strerror}") from None
        for name in names:
            file = os.path.join(folder, name)
            if name[0] != "." and not name.endswith(LEFTOVERS) and not os.path.isdir(file):
                yield file, name.removesuffix(".conf"), partial(read_own, file)

    def pins(self, file: str) -> Iterator[PinRow | str]:
        try:
            if not stat.S_ISREG(os.stat(file).st_mode):
                raise ConfigError(f"{file}: no file")
            with open(file, "rb") as lines:
                if lines.read(len(SQLITE)) == SQLITE:
                    yield from self.pins_of_sqlite(file)
                else:
                    lines.seek(0)
                    yield from self.pins_of_csv(file, lines)
        except OSError as why:
            raise ConfigError(f"{file}: {why.strerror}") from None

    @staticmethod
    def pins_of_csv(file: str, lines: IO[bytes]) -> Iterator[PinRow | str]:
        """Line by line: a quote that is not closed must not swallow the rest."""
        import csv
        columns: dict[str, int] = {}
        for number, line in enumerate(iter(lambda: lines.readline(MAX_OWN), b""), 1):
            try:
                row = next(csv.reader([line.decode("utf-8-sig" if number == 1 else "utf-8")], strict=True), [])
            except (UnicodeDecodeError, csv.Error) as why:
                yield f"{file}:{number}: skipped: {why if isinstance(why, csv.Error) else 'not UTF-8'}"
                continue
            if not columns:
                columns = pin_columns(file, row)
            elif row and len(row) <= max(columns.values()):
                yield f"{file}:{number}: skipped: only {len(row)} columns"
            elif row:
                yield PinRow(file, number, *(row[columns[name]].strip() for name in ("id", "address", "prefix")))
        if not columns:
            pin_columns(file, [])

    @staticmethod
    def pins_of_sqlite(file: str) -> Iterator[PinRow]:
        try:
            import sqlite3
        except ImportError:
            raise ConfigError(f"{file}: SQLite needs a package that is missing: python3-sqlite3") from None
        place = "".join(f"%{ord(letter):02x}" if letter in "%?#" else letter for letter in file)
        try:
            with closing(sqlite3.connect(f"file:{place}?mode=ro", timeout=0.0, uri=True)) as db:
                db.text_factory = lambda data: data.decode("utf-8", "replace")
                until = time.monotonic() + SQLITE_S               # a view may have no end
                db.set_progress_handler(lambda: time.monotonic() > until, 100_000)
                for n, row in enumerate(db.execute("SELECT id, address, prefix FROM assignments"), 1):
                    yield PinRow(file, n, *("" if part is None else str(part).strip() for part in row))
        except sqlite3.OperationalError as why:
            if "interrupted" in str(why):
                raise ConfigError(f"{file}: its rows have no end within {SQLITE_S:g} s") from None
            raise (BusyFileError if "locked" in str(why) else ConfigError)(f"{file}: {why}") from None
        except (sqlite3.Error, MemoryError, OverflowError, UnicodeError) as why:
            raise ConfigError(f"{file}: {str(why) or type(why).__name__}") from None


def load_config(path: str, before: Config | None = None) -> Config:
    """A file that is locked is waited for, as long as that may take a job that writes it."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            return read_config(read_text(path), path, FilesOnDisk(), before)
        except BusyFileError as why:
            if time.monotonic() >= until:
                raise
            log.limited("busy", "waiting: %s", why, level=Level.NOTICE)
            time.sleep(RETRY_BUSY_S)


def load_main(path: str) -> Config:
    """Only what a command needs to find the daemon, though the rest of the file may be wrong, or long."""
    lines = [without_comment(line) for line in read_text(path).split("\n")]
    begin = next((n + 1 for n, line in enumerate(lines) if "".join(line.split()) == "[ddpd]"), len(lines))
    end = next((n for n in range(begin, len(lines)) if lines[n].startswith("[")), len(lines))
    at = next((n for n in range(begin, end) if lines[n].partition("=")[0].strip() == "control"), end)
    after = next((n for n in range(at + 1, end) if lines[n].strip() and not lines[n][0].isspace()), end)
    return read_config("\n".join(["[ddpd]", *lines[at:after]]), path)


HOOK_NAMES: Final = {"looking_glass"} | {f"{when}_{stage}" for when in ("before", "instead_of", "after")
                                         for stage in (*Grantor.STAGES, "options")}


LIKE_HOOKS: Final = ("befor", "instead", "after", "looking")


# What becomes of what a handler returns.  A looking glass has nothing to say.
READS_SITE: Final[dict[str, Callable[[object], Any]]] = {
    name: site_options if name.endswith("_options") else site_outcome for name in HOOK_NAMES} | {
    "looking_glass": lambda _: None}


class TooLongError(BaseException):
    """Of a handler; no `except Exception` of its own is to catch it."""


def timed(call: Callable[[], T]) -> T:
    """It returns, or raises, within HANDLER_S, unless it catches BaseException or waits where no signal reaches it."""
    def cut(_number: int, _frame: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, cut)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, HANDLER_S, 0.05)
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)               # the alarm may come just now
    except TooLongError as why:
        raise TimeoutError(f"took longer than {HANDLER_S:g} s").with_traceback(why.__traceback__) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def line_in(file: str, why: BaseException) -> int:
    """The innermost line of this file that a traceback knows."""
    if isinstance(why, SyntaxError):
        return why.lineno or 0
    line, at = 0, why.__traceback__
    while at is not None:
        line = at.tb_lineno if at.tb_frame.f_code.co_filename == file else line
        at = at.tb_next
    return line


def described(why: BaseException) -> str:
    """One line, whatever it is that a site's code raised."""
    try:
        text = str(why).partition(" (")[0] if isinstance(why, SyntaxError) else str(why)
    except BaseException:  # noqa: BLE001 - even this
        text = ""
    return f"{type(why).__name__}: {text}" if text else type(why).__name__


def guarded(name: str, handler: SiteHandler) -> SiteHandler:
    """It may raise, hang, or return anything: its ask is refused, and the daemon goes on."""
    file = getattr(getattr(handler, "__code__", None), "co_filename", "")

    def run_guarded(asked: Asked, so_far: Any) -> Any:
        begun = time.monotonic()
        try:
            return timed(lambda: READS_SITE[name](handler(asked, so_far)))
        except SiteFailure:
            raise
        except BaseException as why:  # noqa: BLE001 - SystemExit too
            log.limited("handler", "handler failed handler=%s grantee=%s key=%s line=%d why=\"%s\"", name,
                        asked.grantee, asked.key[:8], line_in(file, why), described(why))
            raise SiteFailure(type(why).__name__) from None
        finally:
            if time.monotonic() - begun > SLOW_S:
                log.limited("slow", "handler slow handler=%s grantee=%s took_ms=%d: nobody else is answered meanwhile",
                            name, asked.grantee, 1000 * (time.monotonic() - begun))
    return run_guarded


def load_handlers(path: str) -> dict[str, SiteHandler]:
    """The functions of a site's file that have a place in the chain; ConfigError if something is wrong with it."""
    if not path:
        return {}
    source = read_own(path)
    found_at = os.stat(path)
    if found_at.st_mode & 0o022:
        raise ConfigError(f"{path}: others may write it (chmod go-w)")
    if found_at.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path}: it belongs to somebody else, and would be run as we are (chown)")
    found: dict[str, Any] = {"__name__": "handlers", "__file__": path, "Refuse": Refuse}
    try:
        code = compile(source, path, "exec")
        timed(lambda: exec(code, found))  # noqa: S102 - that is what the operator asks for
    except BaseException as why:  # noqa: BLE001 - whatever a site's file does
        raise ConfigError(f"{path}:{line_in(path, why)}: {described(why)}") from None
    handlers = {name: thing for name, thing in found.items() if name.startswith(LIKE_HOOKS)}
    for name, handler in handlers.items():
        if name not in HOOK_NAMES:
            raise ConfigError(f"{path}: {name} has no place in the chain (did you mean '{nearest(name, HOOK_NAMES)}'?)")
        if not callable(handler):
            raise ConfigError(f"{path}: {name} is no function")
    return {name: guarded(name, handler) for name, handler in handlers.items()}


def make_folder(path: str) -> None:
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        os.makedirs(folder, 0o700)


def must_write_in_place(path: str, why: OSError) -> bool:
    """Can the file not be replaced, as it is mounted by itself, or be made beside itself, though it can be written?"""
    return why.errno == errno.EBUSY or (why.errno in (errno.EROFS, errno.EACCES) and os.path.isfile(path)
                                        and os.access(path, os.W_OK))


def write_whole(path: str, text: str) -> None:
    """A file that is read meanwhile: there is always a whole one.  OSError, and then nothing is left behind.

    One that is a mount point (of a container) cannot be replaced, and is written in place.
    """
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "w") as file:
            file.write(text)
        os.rename(temporary, path)
    except OSError as why:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        if not must_write_in_place(path, why):
            raise
        with open(path, "w") as file:
            file.write(text)


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
        if not stat.S_ISREG(os.stat(config.key).st_mode):
            raise wrong("is not a file")
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
        log.warning("warning: %s is readable by others (chmod 600)", config.key)
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
        self.is_full = False             # there is no room for new leases
        self.why_not = ""                # nothing can be written there, not even a lock
        self.retry_at = inf

    def acquire(self) -> None:
        """One daemon a lease file; Fatal if it has one.  Where nothing can be made, `why_not` says why."""
        self.why_not = ""
        try:
            make_folder(self.path)
            self.lock = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as why:
            if why.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise Fatal(f"cannot make {self.path}.lock: {why.strerror}") from None
            if not must_write_in_place(self.path, why):
                self.why_not = f"cannot write {self.path}: {why.strerror}"
                return
            self.lock = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Fatal(f"{self.path} is in use: another ddpd runs") from None

    def read(self) -> OnFile | None:
        """None: there is no file.  If it has our shape, it is written on; otherwise `rewrite` comes first."""
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):      # to read a pipe would take for ever
                raise Fatal(f"{self.path} is not a file")
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
        """The whole file, beside the old one, then in its place; OSError leaves the old one.

        One that is a mount point (of a container) is written in place: a power failure may cut that short, and then
        the start finds what is left.
        """
        temporary = self.path + ".new"
        file = LeaseFile(self.file.serial)
        lines = list(file.whole(records))
        fd = -1
        try:
            fd = self.write_lines(temporary, lines)
            os.rename(temporary, self.path)
        except OSError as why:
            if fd >= 0:
                os.close(fd)
            with suppress(OSError):
                os.unlink(temporary)
            if not must_write_in_place(self.path, why):
                raise
            fd = self.write_lines(self.path, lines)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.file, self.retry_at, self.is_full = fd, file, inf, False
        sync_folder(self.path)

    @staticmethod
    def write_lines(path: str, lines: Iterable[bytes]) -> int:
        """A new file, or a file anew, flushed: its descriptor."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb", closefd=False) as out:
                out.writelines(lines)
            os.fsync(fd)
        except OSError:
            os.close(fd)
            raise
        return fd

    def reserve(self, wanted: int, now: Now) -> None:
        """Blank lines ahead of what will be promised: a full disk refuses a new lease before it is decided."""
        more = wanted + RESERVED_LINES - len(self.file.blanks)
        self.retry_at = inf
        if more <= 0:
            self.is_full = False
            return
        offset, data = self.file.grown(more)
        try:
            write_all(self.fd, data, offset)
            self.file.add_blanks(more)
            self.is_full = False
        except OSError as why:
            log.limited("disk", "cannot write %s: %s", self.path, why.strerror)
            self.is_full = len(self.file.blanks) < wanted + RESERVED_LINES // 2
            self.retry_at = now.boot + RETRY_DISK_S
            with suppress(OSError):                               # as it was
                write_all(self.fd, b"]\n", offset)
                os.ftruncate(self.fd, offset + 2)

    def save(self, changes: Mapping[Key, Record | None], now: Now) -> bool:
        """Write and flush; False if that cannot be done now."""
        if not changes:
            return True
        if self.fd < 0:
            return False
        self.reserve(len(changes), now)
        first, after = self.file.batch(changes)
        try:
            for offset, data in first:
                write_all(self.fd, data, offset)
            os.fdatasync(self.fd)
            for offset, data in after:
                write_all(self.fd, data, offset)
        except OSError as why:
            log.warning("cannot write %s: %s", self.path, why.strerror)
            os.close(self.fd)
            self.fd, self.retry_at = -1, now.boot + RETRY_DISK_S
            return False
        return True


# ==== TABLES ========================================================== I/O ====


def wg(*words_: str, stdin: str = "") -> str:
    """What `wg` says; OSError, also if it fails."""
    done = run_child(["wg", *words_], stdin, WG_S)
    if done.returncode:
        raise OSError(errno.EIO, " ".join(done.stderr.split()) or "wg failed")
    return done.stdout


class WgTables:
    """`wg` to look at the peers of interfaces, and to change them."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}                           # as it said it last
        self.states: dict[str, WgState] = {}                      # of interfaces that are there, as they were seen last
        self.owners: dict[str, dict[Prefix, bytes]] = {}          # ... and whose each allowed IP is
        self.whys: dict[str, str] = {}                            # of those that cannot be seen now
        self.hangs_until: dict[str, float] = {}                   # of those of which `wg` has not come back
        self.looks = Counter[str]()

    def look(self, dev: str, is_there: bool) -> WgState | None:
        """The same object as before, if `wg` says the same, or nothing.  None: there is no such interface."""
        try:
            if not is_there:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            if time.monotonic() < self.hangs_until.get(dev, 0.0):
                return self.states.get(dev)
            self.read(dev)
            if self.whys.pop(dev, None) is not None:
                log.info("sees peers interface=%s peers=%d", dev, len(self.states[dev].peers))
        except (OSError, ValueError) as wrong:
            why = getattr(wrong, "strerror", None) or str(wrong)
            if getattr(wrong, "errno", None) == errno.ETIMEDOUT:
                self.hangs_until[dev] = time.monotonic() + 10 * WG_S
            if self.whys.get(dev) != why:
                log.warning("cannot see peers interface=%s why=\"%s\"", dev, why)
            self.whys[dev] = why
            if not is_there:
                self.states.pop(dev, None)
        return self.states.get(dev)

    def read(self, dev: str) -> None:
        """Its key and port seldom, as they seldom change."""
        self.looks[dev] += 1
        text, known = wg("show", dev, "allowed-ips"), self.states.get(dev)
        if known is not None and known.key and text == self.texts.get(dev) and self.looks[dev] % LOOKS_A_KEY:
            return
        key, port = wg("show", dev, "public-key").strip(), wg("show", dev, "listen-port").strip()
        state = WgState(b"" if key == "(none)" else public_key(key), int(port), allowed_of(text))
        self.texts[dev] = text
        if state != known:
            self.store(dev, state)

    def store(self, dev: str, state: WgState) -> None:
        self.states[dev] = state
        self.owners[dev] = {prefix: key for key, allowed in state.peers.items() for prefix in allowed}

    def is_unseen(self, dev: str) -> bool:
        """There, but `wg` does not say what is on it: then it is what it was."""
        return dev in self.whys and self.whys[dev] != os.strerror(errno.ENODEV)

    def has(self, thing: WgPeer | AllowedIp) -> bool:
        """As it was seen last; of what cannot be seen one may only say what is on record."""
        state = self.states.get(thing.dev)
        if self.is_unseen(thing.dev):
            return True
        allowed = state.peers.get(thing.key) if state is not None else None
        return allowed is not None and (isinstance(thing, WgPeer) or thing.prefix in allowed)

    def is_anothers(self, thing: AllowedIp) -> bool:
        return self.owners.get(thing.dev, {}).get(thing.prefix, thing.key) != thing.key

    def change(self, dev: str, changes: list[tuple[int, WgPeer | AllowedIp, bool]]) -> dict[int, str]:
        """As `peer_list` has them; which failed, and why.  Where there is no interface, nothing is to be removed."""
        state = self.states.get(dev)
        if self.is_unseen(dev):
            return {number: self.whys[dev] for number, _, _ in changes}
        if state is None:
            return {number: "no such interface" for number, _, added in changes if added}
        lists, removed, failed = peer_list(state.peers, changes)
        self.texts[dev] = ""                                      # the next look is a new one
        try:
            if lists:
                wg("addconf", dev, "/dev/stdin", stdin=addconf_text(lists))
            for at in range(0, len(removed), PEERS_AT_ONCE):
                wg("set", dev, *(word for key in removed[at : at + PEERS_AT_ONCE]
                                 for word in ("peer", show_key(key), "remove")))
        except OSError as why:
            self.look(dev, is_there=True)
            return dict.fromkeys((number for number, _, _ in changes), str(why.strerror))
        peers = {key: tuple(lists.get(key, allowed)) for key, allowed in {**state.peers, **lists}.items()}
        self.store(dev, state._replace(peers={key: peers[key] for key in peers if key not in removed}))
        return failed


def make_tunnel(thing: Interface, is_there: bool) -> str:
    """By the kernel, or by a process that is one; what it complains of."""
    if is_there:
        return ""
    why = run_command(["ip", "link", "add", "dev", thing.dev, "type", "wireguard"], "")
    if not why:
        return ""
    try:                                                          # in a session of its own: it is to outlive us
        said = run_command(["wireguard-go", thing.dev], "", own_session=True)
        return said.rpartition("\n")[2]                           # before that it recommends the kernel's own
    except OSError as wrong:
        return f"{why} ({wrong.strerror})"


def set_tunnel(thing: Interface, before: Interface | None) -> str:
    """The private key by its file, as whoever lists processes sees what is said here."""
    port = ["listen-port", str(thing.port)] if thing.port else []
    peer = ["peer", show_key(thing.peer), "allowed-ips", ",".join(map(str, thing.allowed)),
            "persistent-keepalive", str(thing.keepalive_s)] if thing.peer else []
    known = before is not None and (before.peer, before.endpoint) == (thing.peer, thing.endpoint)
    peer += ["endpoint", thing.endpoint] if peer and not known else []
    old = ["peer", show_key(before.peer), "remove"] if before and before.peer not in (b"", thing.peer) else []
    try:
        wg("set", thing.dev, "private-key", thing.secret, *port, *old, *peer)
    except OSError as why:
        return str(why.strerror)
    write_sysctl(f"conf/{thing.dev}/addr_gen_mode", 1)            # no address of its own accord, whoever has made it
    mtu = ["mtu", str(thing.mtu)] if thing.mtu else []
    return run_command(["ip", "link", "set", "dev", thing.dev, *mtu, "up"], "")


# ==== KERNEL ========================================================== I/O ====

RTMGRP_ROUTE: Final = 0x40 | 0x400       # IPv4 and IPv6
RTMGRP: Final = 0x1 | 0x10 | 0x100 | RTMGRP_ROUTE | 0x80 | 1 << 18      # ... and links, addresses, rules
NLM_F_DUMP: Final = 0x301                # a request for all
NLM_F_ONE: Final = 0x5                   # ... for one thing, and then an acknowledgement
NLM_F_REPLACE: Final = 0x505             # ... to make one, or change it
NLMSG_DONE: Final = 3                    # up to this: an error, or an end
SO_ATTACH_FILTER: Final = 26             # the socket module has no name for it
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12    # since Linux 4.20; the socket module has no names for them


def failed_lines(said: str) -> Iterator[tuple[int, str]]:
    """(line from 0, why) of what `ip -batch -force` says: reasons, then `Command failed -:N`."""
    why = ""
    for line in said.splitlines():
        if line.startswith("Command failed -:"):
            yield int(line.rpartition(":")[2]) - 1, why
        else:
            why = line


# Classic BPF: so that what does not concern us does not even wake us.  A route's protocol is its 22nd byte; of the
# type, 16 bits in the machine's order, the low byte tells all.
LOAD, IS, TAKE = 0x30, 0x15, 0x06
TYPE_AT: Final = 4 if byteorder == "little" else 5
Instruction = tuple[int, int, int, int]  # what, how far to jump if so, and if not, value


def routes_of_others(mark: int) -> list[Instruction]:
    return [(LOAD, 0, 0, NLMSG.size + 5), (IS, 0, 1, mark), (TAKE, 0, 0, 0), (TAKE, 0, 0, 0xFFFF)]


def all_but_routes_of_others(mark: int) -> list[Instruction]:
    """... and new routes are not news: if they are ours, we know."""
    return [(LOAD, 0, 0, TYPE_AT), (IS, 3, 0, RTM["route"]), (IS, 0, 3, RTM["route"] + RTM_DELETED),
            (LOAD, 0, 0, NLMSG.size + 5), (IS, 1, 0, mark), (TAKE, 0, 0, 0), (TAKE, 0, 0, 0xFFFF)]


def attach_filter(sock: socket.socket, program: list[Instruction]) -> None:
    code = ffi.new("char[]", b"".join(struct.pack("=HBBI", *row) for row in program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                    struct.pack("HP", len(program), int(ffi.cast("uintptr_t", code))))


def netlink_socket(groups: int, program: list[Instruction]) -> socket.socket:
    """One that hears of changes.  Where the kernel takes no program, more is heard, and left alone."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                         socket.NETLINK_ROUTE)
    try:
        attach_filter(sock, program)
    except OSError as why:
        log.debug("no filter why=\"%s\"", why)
    sock.bind((0, groups))
    return sock


def exchange(kind: int, flags: int, body: bytes, strict: bool = False, most: float = inf) -> list[tuple[int, bytes]]:
    """What the kernel says to one request; OSError says why not.  strict: body is a filter."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(CHILD_S)
        if strict:
            sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        sock.send(NLMSG.pack(NLMSG.size + len(body), kind, flags, 1, 0) + body)
        replies: list[tuple[int, bytes]] = []
        while True:
            for said, body in netlink_messages(sock.recv(65536)):
                code = int.from_bytes(body[:4], byteorder, signed=True) if said <= NLMSG_DONE else 0
                if code < 0:                                  # the end of a dump may carry one, too
                    raise OSError(-code, os.strerror(-code))
                if said <= NLMSG_DONE:
                    return replies
                replies.append((said, body))
                if len(replies) > most:
                    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))


def route_to(host: Prefix, kind: int, index: int) -> bytes | None:
    """The route that a packet takes, from or to (kind) the interface of this index, if any; None: there is none."""
    body = bytes((FAMILY[host.version], host.length, *bytes(10))) + attribute(RTA_DST, host.packed)
    body += attribute(kind, index.to_bytes(4, byteorder)) if index else b""
    try:
        [(_, reply)] = exchange(RTM["route"] + RTM_GET, NLM_F_ONE, body)
    except (OSError, ValueError):
        return None
    return reply


def place_of(dev: str, address: Prefix) -> Key:
    """What the kernel takes for one address: IPv6 ones do not differ by length alone."""
    return dev, address.first, address.version, address.length if address.version == 4 else 0


ThingLine = tuple[Thing, str]            # what is made or unmade, and the words of `ip` that do it


class Failure(NamedTuple):
    """A command that failed."""

    thing: Thing
    line: str
    why: str

    def __str__(self) -> str:
        program = "wg" if isinstance(self.thing, WgThing) else f"ip -{self.thing.version}"
        return f"command=\"{program} {self.line}\" why=\"{self.why}\""


class Kernel:
    """`ip` to change, netlink to look."""

    def __init__(self, mark: int, called: frozenset[str] = frozenset()) -> None:
        self.mark = mark
        self.called = called                                      # the names of the interfaces that are configured
        self.duplicates: set[Key] = set()                         # places of addresses that were deleted as such
        self.installed: dict[Key, Thing] = {}
        self.taken: list[Key] = []                                # on record, and somebody else's now
        self.pending: set[Key] = set()                            # could not be made yet
        self.busybox = False
        self.tables = WgTables()
        self.links = self.seen = Links()                          # now; and when all else was looked at
        self.downed: set[int] = set()                             # interfaces that have been down since
        self.monitor = netlink_socket(RTMGRP, all_but_routes_of_others(mark))
        self.routes = self.routes_of_others()

    def dump(self, what: str) -> list[tuple[int, bytes]]:
        return exchange(RTM[what] + RTM_GET, NLM_F_DUMP, bytes(16))

    def dump_routes(self, table: int, protocol: int, kind: int) -> list[tuple[int, bytes]]:
        """Only those (0: of any): a full table takes seconds to read."""
        body = bytes((0, 0, 0, 0, table, protocol, 0, kind)) + bytes(4)
        return exchange(RTM["route"] + RTM_GET, NLM_F_DUMP, body, strict=True)

    def gateways(self) -> tuple[Gateway, ...]:
        """The default routes of the main table, which are not many; for their sake all of it is read."""
        return gateways_of(self.dump_routes(MAIN, 0, RTN_UNICAST), self.mark, self.links.names)

    def route_around(self, prefix: Prefix) -> Route | None:
        """The route of others, more precise than a default route, by which packets for this prefix would go."""
        body = bytes((FAMILY[prefix.version], WIDTH[prefix.version], *bytes(6)))
        body += RTM_F_FIB_MATCH.to_bytes(4, byteorder) + attribute(RTA_DST, prefix.packed)
        try:
            [(_, reply)] = exchange(RTM["route"] + RTM_GET, NLM_F_ONE, body)
            route = route_of_others(reply, self.mark, self.links.names)
        except (OSError, ValueError):
            return None
        return route if route is not None and route.prefix.holds(prefix) and route.prefix != prefix else None

    def way_to(self, place: Path) -> Way | None:
        """How packets get to this place; None if they do not."""
        reply = route_to(parse_host(place.host), RTA_OIF, place.scope)
        return way_of(reply, self.links) if reply is not None else None

    def look(self) -> Links:
        self.links = links_of(self.dump("link") + self.dump("address"), self.called)
        return self.links

    def look_at_all(self, made: Mapping[Key, Thing]) -> None:
        """`installed` becomes what is there and ours: by its mark, or by our record; `taken` what is so no more."""
        found: list[Thing | None] = [route_of(body, self.mark, self.links.names)
                                    for _, body in self.dump_routes(0, self.mark, 0)]
        rules = self.rules()
        found += [thing for thing in made.values() if isinstance(thing, Rule) and thing in rules]
        before = self.installed
        neighbours = self.neighbours(made.values())
        found += [thing for thing in made.values() if thing in neighbours]
        self.installed = {thing.id: thing for thing in found if thing is not None}
        self.read_peers(made.values())
        there = self.addresses()
        self.taken = [key for key, thing in made.items() if self.is_taken(thing)]
        for key, thing in made.items():
            is_there = place_of(thing.dev, thing.address) in there if isinstance(thing, Address) else self.has(thing)
            if is_there and key not in self.taken:
                self.installed[key] = before.get(key, thing)      # with the lifetimes, and all else, that we gave it

    def rules(self) -> set[Rule]:
        """Those of our preferences, whoever has made them."""
        return {rule for _, body in self.dump("rule") if (rule := rule_of(body, self.mark)) is not None}

    def left_behind(self) -> dict[Key, Unmarked]:
        """What an earlier ddpd has made, if nothing is on record."""
        return {thing.id: thing for thing in left_behind(self.installed.values(), self.links, self.rules())}

    def strays(self, made: Mapping[Key, Thing]) -> dict[Key, Address]:
        """Addresses that we have made on an interface which has another name now, as they are called there."""
        return {key: thing._replace(dev=self.links.names[thing.link]) for key, thing in made.items()
                if isinstance(thing, Address) and self.links.names.get(thing.link, thing.dev) != thing.dev
                and (thing.link, thing.address) in self.links.addresses}

    def found_duplicate(self, made: Mapping[Key, Thing]) -> set[Key]:
        """Those of our addresses that another host has: the kernel has deleted them, or keeps them unused."""
        places = self.duplicates | {place_of(self.links.names.get(index, ""), own)
                                    for index, own in self.links.duplicate}
        self.duplicates = set()
        return {key for key, thing in made.items()
                if isinstance(thing, Address) and place_of(thing.dev, thing.address) in places}

    def missing(self, made: Mapping[Key, Thing]) -> set[Key]:
        """Addresses that are not there, though nobody said so, or have no subnet's route, as the link was down."""
        there = self.addresses()
        back = {index for index in self.downed if self.links.flags.get(index, 0) & IFF_UP}
        up = {self.links.names[index] for index in back}
        self.downed -= back
        return self.lose({key for key, thing in made.items() if isinstance(thing, Address)
                          and (thing.dev in up or place_of(thing.dev, thing.address) not in there)})

    def neighbours(self, among: Iterable[Thing]) -> set[Neighbour]:
        """For which the kernel answers, whoever has said so; looked at only if one of these is such a one."""
        if not any(isinstance(thing, Neighbour) for thing in among):
            return set()
        body = bytes((AF_INET6, 0, 0, 0)) + bytes(6) + bytes((NTF_PROXY, 0))
        return {neighbour_of(reply, self.links.names)
                for _, reply in exchange(RTM["neighbour"] + RTM_GET, NLM_F_DUMP, body)}

    def missed(self, made: Mapping[Key, Thing]) -> set[Key]:
        """Whom of these neighbours somebody has removed."""
        there = self.neighbours(made.values())
        return self.lose({key for key, thing in made.items() if isinstance(thing, Neighbour) and thing not in there})

    def has(self, thing: Thing) -> bool:
        """As it was seen last; of what carries no mark in the kernel."""
        if isinstance(thing, Address):
            return place_of(thing.dev, thing.address) in self.addresses()
        if isinstance(thing, Interface):
            return bool(self.links.index(thing.dev))
        return isinstance(thing, WgPeer | AllowedIp) and self.tables.has(thing)

    def is_taken(self, thing: Thing) -> bool:
        """Is an interface on record somebody else's now?  Ours has the key that it was made with, or none yet."""
        if not isinstance(thing, Interface) or not self.links.index(thing.dev):
            return False
        try:
            return wg("show", thing.dev, "public-key").strip() not in ("(none)", show_key(thing.own))
        except OSError as why:
            return why.errno == errno.EIO                         # only `wg` itself may say that it is none at all

    def read_peers(self, among: Iterable[Thing]) -> None:
        """Of the interfaces that these are about."""
        for dev in sorted({thing.dev for thing in among if isinstance(thing, WgPeer | AllowedIp)}):
            self.look_at_peers(dev)

    def look_at_peers(self, dev: str) -> WgState | None:
        return self.tables.look(dev, bool(self.links.index(dev)))

    def missed_peers(self, made: Mapping[Key, Thing]) -> set[Key]:
        """What of them, as it was seen last, somebody has removed."""
        return self.lose({key for key, thing in made.items() if isinstance(thing, WgPeer | AllowedIp)
                          and not self.tables.has(thing)})

    def lose(self, keys: set[Key]) -> set[Key]:
        """Of what is gone: what was there."""
        gone = keys & self.installed.keys()
        for key in gone:
            del self.installed[key]
        return gone

    def addresses(self) -> set[Key]:
        return {place_of(self.links.names.get(index, ""), own) for index, own in self.links.addresses}

    def changes(self) -> tuple[bool, list[Thing]]:
        """Since the last time: has anything happened to links or addresses; which of our routes and rules went."""
        look, gone = False, list[Thing]()
        for _ in range(BATCH):
            try:
                for kind, body in netlink_messages(self.monitor.recv(65536)):
                    thing = gone_of(kind, body, self.mark, self.links.names)
                    gone += [thing] if thing is not None else []
                    look |= kind < RTM["route"]
                    if kind == RTM["address"] + RTM_DELETED and body[2] & IFA_F_DADFAILED and (own := address_of(body)):
                        name = self.links.names.get(int.from_bytes(body[4:8], byteorder), "")
                        self.duplicates.add(place_of(name, own[0]))
                    if kind == RTM["link"] and not int.from_bytes(body[8:12], byteorder) & IFF_UP:
                        self.downed.add(int.from_bytes(body[4:8], byteorder))          # a dump may miss it
            except BlockingIOError:
                return look, gone
            except OSError:                                       # overrun: look at everything
                self.seen = Links()
                self.downed |= self.links.names.keys()
                break
        return True, gone

    def close(self) -> None:
        self.monitor.close()
        self.routes.close()

    def routes_of_others(self) -> socket.socket:
        return netlink_socket(RTMGRP_ROUTE, routes_of_others(self.mark))

    def watch_routes(self) -> None:
        """Of others.  Anew each time: however many have changed, that costs the same."""
        old, self.routes = self.routes, self.routes_of_others()
        old.close()

    def remove(self, things: Iterable[Thing]) -> list[Failure]:
        return self.run([(thing, line) for thing in things for line in thing.delete_lines(self.mark)])

    def run(self, lines: list[ThingLine]) -> list[Failure]:
        """Which failed, and why."""
        failed: dict[int, str] = {}
        for version in WIDTH:
            mine = [n for n, (thing, _) in enumerate(lines) if isinstance(thing, IpThing) and thing.version == version]
            try:
                if mine and not self.run_batch(version, lines, mine, failed):
                    said = {n: self.run_one(version, *lines[n]) for n in mine}
                    failed |= {n: why for n, why in said.items() if why}
            except OSError as why:
                failed |= dict.fromkeys(mine, str(why))
        failed |= self.run_wg([(n, thing, line.split()[1] == "add") for n, (thing, line) in enumerate(lines)
                               if isinstance(thing, WgThing)])
        return [Failure(*lines[n], why) for n, why in sorted(failed.items())]

    def run_wg(self, changes: list[tuple[int, WgThing, bool]]) -> dict[int, str]:
        """(number, what, is it added?)"""
        failed = dict[int, str]()
        of: dict[str, list[tuple[int, WgPeer | AllowedIp, bool]]] = {}
        for number, thing, added in changes:
            if not isinstance(thing, Interface):
                of.setdefault(thing.dev, []).append((number, thing, added))
        for dev, mine in of.items():
            failed |= self.tables.change(dev, mine)
        said = {number: self.set_interface(thing, added) for number, thing, added in changes
                if isinstance(thing, Interface)}                  # what goes, goes after what is on it
        return failed | {number: why for number, why in said.items() if why}

    def set_interface(self, thing: Interface, added: bool) -> str:
        try:
            if not added:
                return run_command(["ip", "link", "del", "dev", thing.dev], "") if self.links.index(thing.dev) else ""
            before = self.installed.get(thing.id)
            self.tables.texts.pop(thing.dev, None)                # its key and port may be others
            return make_tunnel(thing, bool(self.links.index(thing.dev))) or \
                set_tunnel(thing, before if isinstance(before, Interface) else None)
        except OSError as why:
            return str(why)

    def run_one(self, version: int, thing: Thing, line: str) -> str:
        if self.busybox and isinstance(thing, Neighbour):
            return self.set_neighbour(thing, RTM_DELETED if line.startswith("neigh del") else 0)
        if self.busybox and isinstance(thing, Route) and thing.source is not None:
            return self.set_route(thing, thing.source, RTM_DELETED if line.startswith("route del") else 0)
        return run_command(["ip", f"-{version}", *line.split()], "")

    def set_neighbour(self, thing: Neighbour, deleted: int) -> str:
        """BusyBox's `ip` can only show them."""
        body = bytes((AF_INET6, 0, 0, 0)) + self.links.index(thing.dev).to_bytes(4, byteorder)
        body += bytes((0, 0, NTF_PROXY, 0)) + attribute(NDA_DST, thing.address.packed)
        return self.tell(RTM["neighbour"] + deleted, NLM_F_ONE if deleted else NLM_F_REPLACE, body)

    def tell(self, kind: int, flags: int, body: bytes) -> str:
        """What the kernel complains of."""
        try:
            exchange(kind, flags, body)
        except OSError as why:
            return str(why.strerror)
        return ""

    def set_route(self, route: Route, source: Prefix, deleted: int) -> str:
        """One with a source, which BusyBox's `ip` cannot say."""
        index = self.links.index(route.reach.dev)
        via = route.reach.via
        body = bytes((AF_INET6, 0, source.length, 0, route.table, self.mark, 0, RTN_UNICAST)) + bytes(4)
        body += attribute(RTA_SRC, source.packed) + attribute(RTA_OIF, index.to_bytes(4, byteorder))
        body += attribute(RTA_PRIORITY, (self.mark * 100).to_bytes(4, byteorder))
        body += attribute(RTA_GATEWAY, inet_pton(AF_INET6, via)) if via else b""
        body += attribute(RTA_METRICS, attribute(RTAX_MTU, route.mtu.to_bytes(4, byteorder))) if route.mtu else b""
        return self.tell(RTM["route"] + deleted, NLM_F_ONE if deleted else NLM_F_REPLACE, body)

    def run_batch(self, version: int, lines: list[ThingLine], mine: list[int], failed: dict[int, str]) -> bool:
        """All at once.  False if they have to be run one by one: BusyBox has no -batch, a parse error ends one."""
        if self.busybox:
            return False
        said = run_command(["ip", f"-{version}", "-force", "-batch", "-"],
                           "".join(lines[n][1] + "\n" for n in mine))
        found = {mine[n]: why for n, why in failed_lines(said)}
        failed |= found
        return bool(found) or not said


def is_busybox() -> bool:
    try:
        done = run_child(["ip", "-V"], "", CHILD_S)
    except OSError:
        return False
    return "iproute2" not in done.stdout + done.stderr


# ==== NETWORK ========================================================= I/O ====


def udp_socket() -> socket.socket:
    """IPv6 that also speaks IPv4, by mapped addresses."""
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as why:
        if why.errno != errno.EAFNOSUPPORT:
            raise
        raise Fatal("this kernel has no IPv6, and IPv4 is spoken through IPv6 sockets (boot without ipv6.disable=1; "
                    "net.ipv6.conf.all.disable_ipv6 = 1 does no harm)") from None
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock


def connected(place: Path, source: str, index: int) -> socket.socket:
    """A socket from this address of ours, on the interface of that index, if it is a link-local one, to that place."""
    sock = udp_socket()
    try:
        sock.bind((source, 0, 0, index if LINKLOCAL.holds(parse_host(source)) else 0))
        sock.connect((place.host, place.port, 0, place.scope))
    except OSError:
        sock.close()
        raise
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

    def told(self, grantor: str, host: str, found: tuple[Path, ...]) -> None:
        self.done.append((grantor, host, found))
        os.write(self.writable, b".")

    def look_up(self, grantor: str, host: str) -> None:
        try:
            self.told(grantor, host, tuple(look_up(host, socket.AI_NUMERICHOST)))
        except OSError:
            if (grantor, host) not in self.busy:
                self.busy.add((grantor, host))
                try:
                    _thread.start_new_thread(self.wait_for, (grantor, host))
                except RuntimeError as why:                       # the next look-up may have one
                    log.limited("resolver", "cannot look up %s: %s", host, why)
                    self.told(grantor, host, ())

    def wait_for(self, grantor: str, host: str) -> None:
        """In the helper thread."""
        try:
            found = tuple(look_up(host))
        except (OSError, UnicodeError):
            found = ()
        self.told(grantor, host, found)

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
    unanswered: int = 0                  # asks in a row


class Network:
    def __init__(self, listen: Sequence[HostPort]) -> None:
        udp_socket().close()                                      # Fatal, if that is not to be had here
        self.listening: dict[int, tuple[HostPort, socket.socket]] = {}          # by number, never given twice
        self.doors = 0
        self.dialled: dict[str, Dialled] = {}
        self.resolver = Resolver()
        self.listen(listen)

    def listen(self, wanted: Sequence[HostPort]) -> None:
        """At these places, and no others.  Fatal if that cannot be, and then all is as it was."""
        before = [place for place, _ in self.listening.values()]
        for door, (place, sock) in list(self.listening.items()):
            if place not in wanted:                               # closed first: the new one may overlap it
                del self.listening[door]
                sock.close()
        try:
            for place in wanted:
                if place not in before:
                    self.open_door(place)
        except Fatal:
            if before and before != list(wanted):
                self.listen(before)
            raise

    def open_door(self, place: HostPort) -> None:
        self.listening[self.doors] = place, listening(place)
        self.doors += 1

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
        if path.door not in self.listening:
            raise OSError(errno.ENOTCONN, "the socket on which it was asked is closed")
        _, sock = self.listening[path.door]
        sock.sendmsg([datagram], ancillary, 0, (path.host, path.port, 0, path.scope))

    def dial(self, name: str, place: Path, source: str, index: int) -> Dialled:
        """The socket from this address of ours (its interface has that index) to that place; OSError.

        It stays as long as neither end's address changes, and it is answered: a NAT on the way may go on sending what
        comes by the same ports to where a connection of before went.
        """
        known = self.dialled.get(name)
        if known is not None and (known.place, known.source) == (place, source) and known.unanswered < SAME_PORT_ASKS:
            return known
        if known is not None:
            del self.dialled[name]
            known.sock.close()
        self.dialled[name] = Dialled(connected(place, source, index), place, source)
        return self.dialled[name]

    def close(self) -> None:
        for sock in self.sockets():
            sock.close()

    def sockets(self) -> list[socket.socket]:
        return [*(sock for _, sock in self.listening.values()), *(dialled.sock for dialled in self.dialled.values())]


class Talker:
    """A node and its sockets: what the daemon and a single `ask` have in common."""

    def __init__(self, node: Node, listen: Sequence[HostPort]) -> None:
        self.node, self.network = node, Network(listen)
        self.kernel = Kernel(node.config.mark, devices_of(node.config))

    def close(self) -> None:
        self.network.close()
        self.kernel.close()

    def handle_datagram(self, datagram: bytes, path: Path, name: str, now: Now) -> list[list[Effect]]:
        try:
            effects = self.node.received(datagram, path, now, name)
            if name in self.network.dialled:
                self.network.dialled[name].unanswered = 0
            return [effects]
        except Stranger as why:
            events = self.refresh_peers(now)
            if why.key in self.node.grantor.agreements:
                return [*events, *self.handle_datagram(datagram, path, name, now)]
            self.node.counters["drop stranger"] += 1
            if log.may_say("stranger") and (why.is_proved or self.node.responder.is_proof(datagram)):
                log.notice("stranger source=%s to_admit=\"[grantee NAME] key = %s\"", path, show_key(why.key))
            return events
        except Drop as why:
            self.node.counters[f"drop {why}"] += 1
            log.debug("drop source=%s why=\"%s\"", path, why)
            return []

    def refresh_peers(self, _: Now) -> list[list[Effect]]:
        """A stranger may have become known just now."""
        return []

    def receive_all(self, readable: list[Any], now: Now) -> list[list[Effect]]:
        """Every socket that has something, one after the other."""
        doors = [(sock, door, "") for door, (_, sock) in self.network.listening.items()]
        doors += [(dialled.sock, 0, name) for name, dialled in self.network.dialled.items()]
        events: list[list[Effect]] = []
        for sock, door, name in doors:
            if sock in readable:
                for datagram, path in self.network.drain(sock, door):
                    events += self.handle_datagram(datagram, path, name, now)
        if self.network.resolver.readable in readable:
            events += [self.node.resolved(*result, now) for result in self.network.resolver.results()]
        if self.node.deadline <= now.boot:
            events.append(self.node.on_timer(now))
        return events

    def sockets(self) -> list[Any]:
        return [*self.network.sockets(), self.network.resolver.readable]

    def call(self, effect: Call, now: Now) -> None:
        grantee = self.node.grantees.get(effect.grantor)
        place = grantee.place() if grantee else None
        if place is None:
            return
        try:
            way = self.kernel.way_to(place)
            if way is None:
                raise OSError(errno.ENETUNREACH, "there is no route to it")
            source = self.node.source_for(effect.grantor, place, way)
            if not source:
                raise OSError(errno.EADDRNOTAVAIL, "there is no address to ask from")
            dialled = self.network.dial(effect.grantor, place, source, self.kernel.links.index(way.reach.dev))
            dialled.unanswered += 1
            dialled.sock.send(self.node.compose(effect.grantor, dialled.source, now))
            self.node.grantees[effect.grantor].unsent = ""
            log.debug("asked grantor=%s at=%s from=%s", effect.grantor, place, dialled.source)
        except OSError as why:
            self.node.grantees[effect.grantor].unsent = str(why.strerror)
            log.limited("call", "cannot ask grantor=%s at=%s why=\"%s\"", effect.grantor, place, why.strerror)

    def look_up(self, effect: Lookup, _: Now) -> None:
        """A name; `gateway` is none, and an interface's neither."""
        grantee = self.node.grantees.get(effect.grantor)
        index = self.kernel.links.index(effect.host)
        if index and grantee is not None and effect.host in [host for host, _ in grantee.contact.addresses]:
            state, tunnel = self.kernel.look_at_peers(effect.host), grantee.contact.tunnel
            allowed = state.peers.get(grantee.contact.key, ()) if state is not None else ()
            allowed += tunnel.routes if tunnel is not None and tunnel.dev == effect.host else ()
            self.network.resolver.told(effect.grantor, effect.host, places_inside(allowed, index, self.kernel.links))
        elif is_gateway(effect.host):
            try:
                found = places_of(effect.host, self.kernel.gateways())
            except OSError:
                found = ()
            self.network.resolver.told(effect.grantor, effect.host, found)
        elif "%" in effect.host and is_numeric(effect.host):
            self.network.resolver.told(effect.grantor, effect.host, scoped_places(effect.host, self.kernel.links))
        else:
            self.network.resolver.look_up(effect.grantor, effect.host)


# ==== PACKETS ========================================================= I/O ====
#
# One packet socket an interface.  A raw ICMPv6 socket never hears what is asked of others; an answer
# sent by one would make the kernel ask for whoever asked.  So frames come in and go out here.

ETH_P_IPV6: Final = 0x86DD
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_ALLMULTI = 263, 1, 2
LOAD_AT_X, LOAD_WORD_AT_X, SET_X, INTO_X, AND, ADD, SHIFT, MORE = 0x50, 0x40, 0x01, 0x07, 0x54, 0x04, 0x64, 0x25
PACKET_KIND: Final = 0xFFFFF004          # to us, to all, to a group; else to somebody else (as with a foreign VLAN)
PACKET_DEV: Final = 0xFFFFF008           # the interface that it is for
RTMGRP_ROUTE6: Final = 0x400 | 1 << 18   # and rules


def prefix_test(prefix: Prefix) -> list[Instruction]:
    """Taken, if the target is in this prefix; else what comes after is tried."""
    tests: list[list[Instruction]] = []
    for n in range(0, prefix.length, 32):
        bits = min(32, prefix.length - n)
        mask = -1 << 32 - bits & 0xFFFFFFFF
        value = prefix.first >> 96 - n & mask
        load = (LOAD_WORD_AT_X, 0, 0, 62 + n // 8)
        tests.append([load, (IS, 0, 0, value)] if bits == 32 else [load, (AND, 0, 0, mask), (IS, 0, 0, value)])
    left, program = sum(map(len, tests)), list[Instruction]()
    for test in tests:
        left -= len(test)
        program += [*test[:-1], (IS, 0, left + 1, test[-1][3])]
    return [*program, (TAKE, 0, 0, 0xFFFF)]


def neighbour_program(kind: int, prefixes: Iterable[Prefix] | None) -> list[Instruction]:
    """Only what is of this ICMPv6 type, sent to us or to a group, for a target in one of these, wakes us."""
    drop: Instruction = (TAKE, 0, 0, 0)
    head: list[Instruction] = [
        (0x20, 0, 0, PACKET_KIND), (MORE, 0, 1, 2), drop,
        (SET_X, 0, 0, 0), (LOAD, 0, 0, 20), (IS, 10, 0, ICMPV6), (IS, 2, 0, 0), (IS, 1, 0, 60), drop,
        (LOAD, 0, 0, 54), (IS, 1, 0, ICMPV6), drop,               # behind one extension header
        (LOAD, 0, 0, 55), (ADD, 0, 0, 1), (SHIFT, 0, 0, 3),
        (INTO_X, 0, 0, 0), (LOAD_AT_X, 0, 0, 54), (IS, 1, 0, kind), drop]
    rows = [row for prefix in prefixes or () for row in prefix_test(prefix)]
    if prefixes is None or len(rows) > MAX_PROGRAM:
        return [*head, (TAKE, 0, 0, 0xFFFF)]
    return [*head, *rows, drop]


class Port:
    """What is heard on one interface, and sent there."""

    def __init__(self, place: Place, program: list[Instruction]) -> None:
        self.place, self.program = place, program
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        try:
            self.filter()
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self.sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP,          # ends with the socket, whatever happens
                                 struct.pack("=iHH8x", place.scope, PACKET_MR_ALLMULTI, 0))
            self.sock.bind((place.dev, ETH_P_IPV6))               # from here on something is heard
        except OSError:
            self.sock.close()
            raise

    def filter(self) -> None:
        """What comes for a VLAN above is heard below, too: not here."""
        head: list[Instruction] = [(0x20, 0, 0, PACKET_DEV), (IS, 1, 0, self.place.scope), (TAKE, 0, 0, 0)]
        attach_filter(self.sock, [*head, *self.program])

    def set_filter(self, program: list[Instruction]) -> None:
        if program != self.program:
            self.program = program
            self.filter()


class Ways:
    """By which interface packets would leave.  What no route and no rule tells apart goes one way, and is asked once:

        routes  2001:db8:42::/48 ─┬─ 2001:db8:42:7::/64      cells  in the /64; in the /48, but not in the /64
                                  └─ (nothing)
    """

    def __init__(self) -> None:
        self.news: socket.socket | None = None                    # hears that routes have changed, once it is asked for
        self.cells: list[tuple[int, int, set[int]]] = []          # (mask, length, prefixes), the longest first
        self.found: dict[tuple[int, int, int], int] = {}          # by cell, and the interface a packet came from
        self.build_at = -inf                                      # when cells may be made again

    def of(self, target: bytes, came_from: int) -> int:
        """The index of an interface, 0 if there is no way."""
        if self.news is None:
            self.news = netlink_socket(RTMGRP_ROUTE6, [(TAKE, 0, 0, 0xFFFF)])
        if not self.cells and clock_now().boot >= self.build_at:
            self.build()
        if not self.cells:
            return self.look_up(target, came_from)
        key = came_from, *self.cell_of(number(target))
        if key not in self.found:
            self.found[key] = self.look_up(target, came_from)
        return self.found[key]

    def cell_of(self, target: int) -> tuple[int, int]:
        return next((length, target & mask) for mask, length, prefixes in self.cells if target & mask in prefixes)

    def build(self) -> None:
        """Of all prefixes in tables and rules; however often they change, it takes a twentieth of the time at most."""
        began, by_length = clock_now().boot, dict[int, set[int]]({0: {0}})
        try:
            for kind in "rule", "route":
                body = bytes((AF_INET6, *bytes(11)))
                for _, found in exchange(RTM[kind] + RTM_GET, NLM_F_DUMP, body, most=MAX_CELLS):
                    by_length.setdefault(found[1], set()).add(number(attributes(found, 12).get(RTA_DST, b"")))
            self.cells = [(-1 << 128 - length, length, by_length[length]) for length in sorted(by_length, reverse=True)]
        except (OSError, ValueError) as why:
            log.debug("asks for each way why=\"%s\"", why)
        self.build_at = clock_now().boot + 20 * (clock_now().boot - began)

    @staticmethod
    def look_up(target: bytes, came_from: int) -> int:
        found = route_to(prefix_of(target, 128), RTA_IIF, came_from)
        return number_in(attributes(found, 12), RTA_OIF) if found is not None and found[7] == RTN_UNICAST else 0

    def forget(self) -> None:
        """However many have changed: that costs the same."""
        if self.news is not None:
            self.news.close()
        self.news, self.cells, self.found = None, [], {}


class Ports:
    """The proxies of a node, and their interfaces as they come and go."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.outer: dict[str, Port] = {}
        self.inner: dict[str, Port] = {}
        self.seen = -1                                            # changes of leases
        self.retry_at = inf
        self.shifted = False                                      # there is more to be done than to answer
        self.wired = False                                        # ... namely to make or unmake routes
        self.ways = Ways()                                        # for `auto`

    # -- interfaces -------------------------------------------------------------------

    def update(self, now: Now) -> None:
        """Open what is there and wanted, close what is not."""
        self.retry_at, self.seen = inf, self.node.grantor.stock.changes
        proxies = self.node.proxies
        outer = {dev: neighbour_program(SOLICITATION, proxy.plausible(FILTERED)) for dev, proxy in proxies.items()}
        inner = {dev: neighbour_program(ADVERTISEMENT, [rule.prefix for proxy in proxies.values()
                                                        for rule in proxy.ndp.rules if rule.dev == dev])
                 for dev in {dev for proxy in proxies.values() for dev in proxy.ndp.inner}}
        self.node.deaf = {dev: why for dev, why in self.node.deaf.items() if dev in outer or dev in inner}
        for ports, wanted in (self.outer, outer), (self.inner, inner):
            for dev in ports.keys() - wanted.keys():
                self.shut(ports, dev)
            for dev, program in wanted.items():
                self.open_port(ports, dev, program, now)

    def open_port(self, ports: dict[str, Port], dev: str, program: list[Instruction], now: Now) -> None:
        found, port = place_on(dev, self.node.links), ports.get(dev)
        try:
            if isinstance(found, str):
                raise OSError(0, found)
            if port is not None and port.place[:3] == found[:3]:
                port.place = found
                port.set_filter(program)
                return
            self.shut(ports, dev)
            ports[dev] = Port(found, program)
            log.info("listens interface=%s", dev)
            self.node.deaf.pop(dev, None)
        except OSError as why:
            self.shut(ports, dev)
            if why.errno:
                self.retry_at = min(self.retry_at, now.boot + (RETRY_INSTALL_S if why.errno == errno.EPERM else 1.0))
            if self.node.deaf.get(dev) != str(why.strerror):
                log.warning("cannot listen interface=%s why=\"%s\"", dev, why.strerror)
                self.node.deaf[dev] = str(why.strerror)

    @staticmethod
    def shut(ports: dict[str, Port], dev: str) -> None:
        if dev in ports:
            ports.pop(dev).sock.close()

    def prepare(self, now: Now) -> None:
        """Before waiting: leases may have come and gone."""
        if self.node.grantor.stock.changes != self.seen and self.node.proxies:
            for proxy in self.node.proxies.values():
                proxy.update(proxy.place)
                for wire in proxy.let_go():
                    self.wire(wire)
            self.update(now)

    def acts(self) -> dict[int, Callable[[], None]]:
        """What is to be done when a socket, by its number, has something."""
        self.shifted = False
        news = self.ways.news
        found: dict[int, Callable[[], None]] = {news.fileno(): self.forget_ways} if news else {}
        found |= {port.sock.fileno(): partial(self.drain, port, self.node.proxies[dev])
                  for dev, port in self.outer.items()}
        return found | {port.sock.fileno(): partial(self.receive_inside, port) for port in self.inner.values()}

    def way_of(self, target: bytes, proxy: Proxy) -> int:
        self.shifted |= self.ways.news is None                    # there will be one more to listen to
        return self.ways.of(target, proxy.place.scope)

    def forget_ways(self) -> None:
        self.shifted = True
        self.ways.forget()
        for proxy in self.node.proxies.values():
            proxy.forget_answers()

    def deadline(self) -> float:
        due = min(self.retry_at, *(proxy.deadline for proxy in self.node.proxies.values()), inf)
        return -inf if self.wired else due

    # -- frames -----------------------------------------------------------------------

    def drain(self, port: Port, proxy: Proxy) -> None:
        """The shortest way: nothing is done here for each frame that can be done for all."""
        now, frame, asked, answered = clock_now().boot, b"", b"", 0
        if proxy.stale_at <= now:
            self.ways.found.clear()
            proxy.forget_answers()
        recv, send, ready = port.sock.recv, port.sock.send, proxy.answers.get
        try:
            for _ in range(DRAIN):
                frame = recv(2048)
                answer = ready(frame) or self.decided(proxy, frame, now)
                if answer:
                    send(answer)
                    asked, answered = frame, answered + 1
        except BlockingIOError:
            pass
        except OSError as why:
            self.fail(self.outer, port, why)
        if answered:
            proxy.count("answered", asked, now, answered)

    def fail(self, ports: dict[str, Port], port: Port, why: OSError) -> None:
        """It went down, or away, and is looked for again; or it only has no room."""
        if why.errno in (errno.ENOBUFS, errno.ENOMEM):
            self.node.counters["proxy not sent"] += 1
            return
        log.limited("port", "closed interface=%s why=\"%s\"", port.place.dev, why.strerror)
        self.shut(ports, port.place.dev)
        self.shifted = True
        self.retry_at = min(self.retry_at, clock_now().boot + 0.1)

    def decided(self, proxy: Proxy, frame: bytes, now: float) -> bytes | None:
        try:
            found = proxy.hear(frame, now)
            if isinstance(found, Seek):
                return proxy.led(frame, found.heard, self.way_of(found.heard.target, proxy), now)
            if isinstance(found, Probe):
                self.ask_inside(found)
                found = None
        except Drop as why:
            proxy.count(str(why), frame, now)
            return None
        if found is None:
            proxy.count("asked inside", frame, now)
        return found

    def ask_inside(self, probe: Probe) -> None:
        port = self.inner.get(probe.dev)
        self.shifted |= any(probe.target in proxy.wired for proxy in self.node.proxies.values())  # there is a deadline
        if port is None or not port.place.addresses:
            raise Drop("inside is down")
        try:
            port.sock.send(solicit(port.place, probe.target))
        except OSError as why:
            self.fail(self.inner, port, why)

    def receive_inside(self, port: Port) -> None:
        now = clock_now().boot
        try:
            for _ in range(DRAIN):
                frame = port.sock.recv(2048)
                for dev, proxy in self.node.proxies.items():
                    if port.place.dev in proxy.ndp.inner:
                        self.pass_on(dev, proxy, frame, port.place.dev, now)
        except BlockingIOError:
            pass
        except OSError as why:
            self.fail(self.inner, port, why)

    def pass_on(self, dev: str, proxy: Proxy, frame: bytes, inside: str, now: float) -> None:
        try:
            answers, wire = proxy.answered_inside(frame, inside, now)
        except Drop as why:
            proxy.inside[str(why)] += 1
            proxy.last[f"{why} (inside)"] = now, frame
            return
        if wire is not None:
            self.wire(wire)
        for answer in answers:
            try:
                self.outer[dev].sock.send(answer)
                proxy.counts.update({"answered": 1, "asked inside": -1})
            except (OSError, KeyError):
                proxy.counts.update({"not sent": 1, "asked inside": -1})

    def wire(self, wire: Wire) -> None:
        self.node.wire(wire)
        self.wired = self.wired or bool(self.node.wanted.changed)
        self.shifted |= self.wired

    def tend(self, now: Now) -> None:
        """What is due."""
        if now.boot >= self.retry_at:
            self.update(now)
        for proxy in self.node.proxies.values():
            for found in proxy.on_timer(now.boot) if proxy.deadline <= now.boot else ():
                if isinstance(found, Wire):
                    self.wire(found)
                else:
                    with suppress(Drop):
                        self.ask_inside(found)


# ==== HOOKS =========================================================== I/O ====


class Hooks:
    """One at a time; of events that wait, the latest of each grantor wins, with what is true when it starts."""

    def __init__(self) -> None:
        self.waiting: dict[str, str] = {}
        self.calls: deque[tuple[Contact, HookCall]] = deque()     # of one event
        self.told: dict[tuple[str, str], HookCall] = {}           # the last call for each grantor, in each style
        self.running: subprocess.Popen[bytes] | None = None
        self.command = ""                                         # that runs
        self.kill_at = inf

    def add(self, name: str, event: str) -> None:
        if event not in LESSER or name not in self.waiting:
            self.waiting[name] = event

    def start(self, node: Node, now: Now) -> None:
        while self.running is None and (self.calls or self.waiting):
            if not self.calls:
                name = next(iter(self.waiting))
                self.expand(node.grantees.get(name), self.waiting.pop(name), now)
            else:
                self.call(*self.calls.popleft(), now)

    def expand(self, grantee: Grantee | None, event: str, now: Now) -> None:
        if grantee is not None and grantee.contact.hook:
            last = self.told.get((grantee.contact.name, grantee.contact.hook_style))
            calls = HOOK_CALLS[grantee.contact.hook_style](grantee, event, last, now)
            self.calls += [(grantee.contact, call) for call in calls]

    def call(self, contact: Contact, call: HookCall, now: Now) -> None:
        """In a session of its own, so that what it has started can be killed too; what it says goes to the log."""
        self.told[contact.name, contact.hook_style] = call
        try:
            self.running = subprocess.Popen([contact.hook, *call[0]], stdin=subprocess.DEVNULL,
                                            stdout=1 if log.is_split else 2, stderr=2,
                                            start_new_session=True, env={**os.environ, **call[1]})
            self.command, self.kill_at = " ".join([contact.hook, *call[0]]), now.boot + HOOK_S
        except OSError as why:
            log.warning("hook failed hook=%s why=\"%s\"", contact.hook, flaw_in_script(contact.hook) or why.strerror)

    def check(self, now: Now) -> None:
        if self.running is None:
            return
        code = self.running.poll()
        if code is None and now.boot >= self.kill_at:
            log.warning("hook killed hook=\"%s\" after=%d", self.command, HOOK_S)
            os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()
        elif code:
            log.warning("hook failed hook=\"%s\" code=%d", self.command, code)
        elif code is None:
            return
        self.running, self.kill_at = None, inf

    def stop(self, node: Node) -> None:
        """The end is told too, but nobody waits for it for long."""
        until = time.monotonic() + STOP_S
        self.waiting = {name: "stopped" for name, grantee in node.grantees.items() if grantee.contact.hook}
        while time.monotonic() < until and (self.running or self.calls or self.waiting):
            now = clock_now()
            self.start(node, now)
            time.sleep(0.01)
            self.check(now)
        if self.running is not None:                              # the next daemon's hooks are not to run beside it
            os.killpg(self.running.pid, signal.SIGKILL)


def own_text(path: str) -> str:
    """What is there; OSError if it is there and no file."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(0, "there is something that is no file")
    return read_file(path).decode("utf-8", "replace") if os.path.exists(path) else ""


def write_own(path: str, text_after: Callable[[str], str]) -> None:
    """A file that is ours alone: always whole, written when it changes, and never over somebody else's."""
    try:
        have = own_text(path)
        if have and not have.startswith(OUR_FILE):
            raise OSError(0, "there is a file that ddpd has not made")
        text = text_after(have)
        if have != text:
            make_folder(path)
            write_whole(path, text)
    except OSError as why:
        log.limited("file", "cannot write %s: %s", path, why.strerror)


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
    waits: bool = False                  # for the end of a reload
    is_deaf: bool = False
    rows: Iterator[dict[str, Any]] | None = None                  # that are told after the first line, some at a time

    def hear(self, daemon: Daemon, now: Now) -> None:
        data = self.sock.recv(MAX_CONTROL)
        self.heard += data
        self.is_deaf = not data                                   # it has said all; perhaps it still listens
        if len(self.heard) > MAX_CONTROL or (self.is_deaf and not self.is_saying and not self.asked and not self.waits):
            self.until = -inf
        elif self.heard.endswith(b"\n") and not self.is_saying and not self.asked:
            try:
                order = json.loads(self.heard)
                self.until = now.boot + min(3600.0, max(1.0, float(order.get("wait", CONTROL_S))))
                said = daemon.handle_order(self, order, now)
            except (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError) as why:
                said = {"error": str(why) if type(why) is ValueError else "not understood"}
            self.say(said)

    def say(self, said: dict[str, Any] | None) -> None:
        self.heard, self.unsent = b"", b"" if said is None else json.dumps(said).encode() + b"\n"

    @property
    def is_saying(self) -> bool:
        return bool(self.unsent) or self.rows is not None

    def send(self, now: Now) -> None:
        """As much as the reader takes; who stops reading is cut off."""
        if self.rows is not None and len(self.unsent) < MAX_CONTROL:
            more = list(islice(self.rows, REVIEW_BATCH // 2))
            self.unsent += "".join(json.dumps(row) + "\n" for row in more).encode()
            self.rows = self.rows if more else None
        sent = self.sock.send(self.unsent)
        self.unsent = self.unsent[sent:]
        self.until = now.boot + CONTROL_S if self.is_saying else -inf

    def check_answer(self, node: Node, now: Now) -> None:
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
        self.rests_until = -inf                                   # nobody is let in: there is no descriptor left
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
                if control.sock in readable:
                    control.hear(daemon, now)
                if control.asked:
                    control.check_answer(daemon.node, now)
                if control.is_saying:
                    control.send(now)
            except BlockingIOError:
                pass
            except OSError:
                control.until = -inf
            if control.until <= now.boot:
                self.open.remove(control)
                control.sock.close()
        self.rests_until = self.rests_until if self.rests_until > now.boot else -inf
        if self.sock in readable:
            self.accept(now)

    def accept(self, now: Now) -> None:
        """Where there is no room, who has been silent for longest goes."""
        try:
            sock, _ = self.sock.accept()
        except OSError as why:
            self.rests_until = now.boot + 1.0 if why.errno in (errno.EMFILE, errno.ENFILE) else -inf
            return
        sock.setblocking(False)
        if len(self.open) >= MAX_CONTROLS:
            oldest = min(self.open, key=lambda control: (bool(control.asked or control.unsent), control.until))
            self.open.remove(oldest)
            oldest.sock.close()
        self.open.append(Control(sock, now.boot + CONTROL_S))

    def sockets(self) -> list[Any]:
        own = [self.sock] if self.rests_until == -inf else []
        return [*own, *(control.sock for control in self.open if not control.is_deaf)]

    def deadline(self) -> float:
        rests = self.rests_until if self.rests_until > -inf else inf
        return min(rests, *(control.until for control in self.open), inf)

    def close(self) -> None:
        self.sock.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass


# ==== DOORS =========================================================== I/O ====


@dataclass
class Caller:
    """One connection to the door of wg-dynamic."""

    sock: socket.socket
    path: Path
    whose: bytes                         # the key of its peer, as far as it is known
    until: float                         # a message, or its answer, has to be through by then
    heard: bytes = b""
    unsent: bytes = b""
    ends: bool = False                   # with what is unsent


class Door:
    """Where one interface is asked in the language of wg-dynamic."""

    def __init__(self, dev: str, index: int) -> None:
        self.dev, self.index = dev, index
        self.callers: list[Caller] = []                           # who was heard last stands last
        self.rests_until = -inf                                   # nobody is let in: there is no descriptor left
        self.sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, dev.encode())
            self.sock.bind(("::", DOOR))
            self.sock.listen(1024)
        except OSError:
            self.sock.close()
            raise

    def accept(self, holder: Callable[[str, Prefix], bytes | None], now: Now) -> None:
        for _ in range(BATCH):
            try:
                sock, place = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as why:
                self.rests_until = now.boot + 1.0 if why.errno in (errno.EMFILE, errno.ENFILE) else -inf
                return
            sock.setblocking(False)
            path = Path(place[0].partition("%")[0], place[1], self.index, bytes(16) + self.index.to_bytes(4, byteorder))
            whose = holder(self.dev, parse_host(path.host)) or b""
            self.make_room(whose)
            self.callers.append(Caller(sock, path, whose, now.boot + DOOR_S))

    def make_room(self, whose: bytes) -> None:
        """Who has been silent for longest goes: of this peer's, if they are many, else of all."""
        like = [caller for caller in self.callers if caller.whose == whose]
        if len(like) >= DOOR_EACH or len(self.callers) >= DOOR_CALLERS:
            self.end((like if len(like) >= DOOR_EACH else self.callers)[0])

    def end(self, caller: Caller) -> None:
        self.callers.remove(caller)
        caller.sock.close()

    def hear(self, caller: Caller) -> bytes | None:
        """A message, once it is whole; None: not yet, or it is answered at once, as it is none, or that is the end."""
        try:
            data = caller.sock.recv(DOOR_MESSAGE + 2)
        except OSError as why:
            caller.until = caller.until if isinstance(why, BlockingIOError) else -inf
            return None
        caller.heard += data
        caller.until = caller.until if data else -inf
        message, found, rest = caller.heard.partition(b"\n\n")
        too_long = len(message) > DOOR_MESSAGE or max(map(len, message.split(b"\n"))) > DOOR_LINE
        if too_long or b"\0" in message:
            caller.unsent, caller.ends = door_refusal(INVALID, "too long, or not text"), True
            return None
        if not found:
            return None
        caller.heard, caller.ends = b"", bool(rest)               # who does not wait for its answer gets only this one
        self.callers.remove(caller)
        self.callers.append(caller)
        return message

    @staticmethod
    def send(caller: Caller) -> bool:
        """False: that was all, or its end."""
        try:
            caller.unsent = caller.unsent[caller.sock.send(caller.unsent) :]
        except OSError as why:
            return isinstance(why, BlockingIOError)
        return bool(caller.unsent) or not caller.ends

    def close(self) -> None:
        for sock in (self.sock, *(caller.sock for caller in self.callers)):
            sock.close()


class Doors:
    """The doors of all interfaces that are there."""

    def __init__(self) -> None:
        self.open: dict[str, Door] = {}

    def update(self, guards: Iterable[WireguardSection], links: Links) -> None:
        wanted = {guard.dev: links.index(guard.dev) for guard in guards if guard.dynamic and links.index(guard.dev)}
        for dev, door in list(self.open.items()):
            if wanted.get(dev) != door.index:
                self.open.pop(dev).close()
        for dev in wanted.keys() - self.open.keys():
            try:
                self.open[dev] = Door(dev, wanted[dev])
            except OSError as why:
                log.limited("door", "cannot listen interface=%s port=%d why=\"%s\"", dev, DOOR, why.strerror)

    def callers(self) -> list[tuple[Door, Caller]]:
        return [(door, caller) for door in self.open.values() for caller in door.callers]

    def sockets(self) -> list[Any]:
        return [*(door.sock for door in self.open.values() if door.rests_until == -inf),
                *(caller.sock for _, caller in self.callers() if not caller.unsent)]

    def writing(self) -> list[Any]:
        return [caller.sock for _, caller in self.callers() if caller.unsent]

    def deadline(self) -> float:
        rests = (door.rests_until for door in self.open.values() if door.rests_until > -inf)
        return min(chain(rests, (caller.until for _, caller in self.callers())), default=inf)

    def serve(self, daemon: Daemon, readable: list[Any], now: Now) -> None:
        """What is said in one round is answered together, when what is promised is on disk and in the kernel."""
        said = [(door, caller, message) for door, caller in self.callers() if caller.sock in readable
                and not caller.unsent and (message := door.hear(caller))]
        if said:
            daemon.converge(daemon.refresh_peers(now))                      # whose address is it at this moment?
            self.answer(said, daemon, now)
        for door, caller in self.callers():
            if caller.until <= now.boot or (caller.unsent and not door.send(caller)):
                door.end(caller)
        for door in self.open.values():
            door.rests_until = door.rests_until if door.rests_until > now.boot else -inf
            if door.sock in readable:
                door.accept(daemon.node.grantor.guards.holder, now)

    @staticmethod
    def answer(said: list[tuple[Door, Caller, bytes]], daemon: Daemon, now: Now) -> None:
        """What is said by somebody who is no peer, or no grantee, is not answered."""
        answered: list[tuple[Caller, Peer, list[Effect]]] = []
        for door, caller, message in said:
            peer = daemon.caller(door.dev, caller.path)
            caller.until = now.boot + DOOR_S if peer is not None else -inf
            if peer is not None:
                caller.unsent, effects = through_door(daemon.node, peer, message, caller.path, now)
                answered.append((caller, peer, effects))
        lost = daemon.converge([effects for _, _, effects in answered])
        for caller, peer, _ in answered:
            if any(key[1] == show_key(peer.key) for key in lost):
                caller.unsent = door_refusal(UNAVAILABLE, "cannot write the lease file")


# ==== DAEMON ========================================================== I/O ====


def has_granted(config: Config) -> bool:
    """Beside the key stands that a missing lease file is a lost one.  (A node that gives nothing may have that key.)"""
    return bool(config.pools or config.pins.ordered) and os.path.exists(config.key + ".granted")


def take_up(node: Node, read: OnFile | None, marked: bool, now: Now) -> list[Damage]:
    """What is on file, into a new node; what is lost or damaged makes one careful that has granted anything."""
    damage: list[Damage] = []
    if read is not None:
        found, damage = read
        damage += node.restore([record for _, record in found.values()], now)
    if marked:
        node.recover(damage, read is None, now)
    else:
        node.grantor.recovering_until = -inf
    return damage


WORRYING: Final = ("clone", "faded", "handler", "left", "lost", "no", "refused", "silent")       # first words of notes


class Daemon(Talker):
    """Waits for the world, lets the node think, does what it says."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.store = Store(config.leases)
        self.store.acquire()
        super().__init__(Node(config, load_secret(config, make=True), boot_id(), os.urandom), config.listen)
        self.node.route_around = self.kernel.route_around
        self.retry_install = inf
        self.awaited: set[str] = set()                            # interfaces that are not there, as was said
        self.left: set[Key] = set()                               # made by a ddpd whose lease file is lost
        self.marked = self.is_new = False                         # something was granted; there was no lease file
        self.lost: dict[Subnet, float] = {}                       # announced before: until when that is said
        self.aims: dict[Aim, Path | None] = {}                    # to where the ways were looked at ...
        self.routes_at = inf                                      # ... and when to look again: others' routes changed
        self.routes_s, self.ways_seen = ROUTES_S, -inf            # from a change until then; when that was last
        self.links_at = -inf                                      # from when on changes of links are heard
        self.repaired_at, self.repairs = -inf, 0.0                # one is forgotten every second
        self.to_repair = set[Key]()                               # ... what waits for that
        self.neighbours_at = -inf                                 # when to see whether our proxy neighbours are there
        self.peers_at, self.peers_seen = -inf, -inf               # when to look at WireGuard's peers, and when that was
        self.hooks = Hooks()
        self.ports = Ports(self.node)
        self.controls = Controls(config.control)
        self.doors = Doors()
        self.signals: list[int] = []
        self.stopping = False
        self.leave_at = inf                                       # then, even if what is given back is not answered
        self.status_at = -inf if config.status else inf           # when to write the status file ...
        self.showed = False                                       # ... and whether there is one
        self.node.grantor.site = load_handlers(config.handlers)
        self.unwritten: list[str] = []                            # of the accounting log
        self.is_reading = self.read_again = self.forced = False   # a new configuration, in a thread
        self.read: list[Config | Exception] = []                  # ... its result
        self.reloaders: list[Control] = []                        # who wait for the end of a reload

    # -- start and end -------------------------------------------------------------------

    def start(self) -> None:
        self.wake, self.waker = self.catch_signals()
        gc.disable()                                              # 100,000 leases are no garbage: do not look
        now = clock_now()
        self.restore(now)
        gc.freeze()
        gc.enable()
        self.kernel.busybox = is_busybox()
        self.kernel.look()
        self.kernel.look_at_all(self.node.made)
        self.forget_made(self.kernel.taken, now)
        if self.is_new:
            self.adopt_left_behind()
        self.remove_strays(now)
        self.node.adopt(self.kernel.installed.values())
        seen = self.read_links()
        found = self.find_tunnels() if self.is_new and self.config.contacts else []
        self.ports.update(now)
        for line in (*lacking(self.config), *ndp_warnings(self.config), *tunnel_warnings(self.config),
                     *lan_warnings(self.config)):
            log.warning("warning: %s", line)
        self.node.wanted.changed |= (self.kernel.installed.keys() - self.left) | self.node.wanted.things.keys()
        self.converge([found, self.node.start(now), seen])
        self.converge([self.read_peers(now)])                       # of interfaces that may have been made just now
        self.tell_skipped()
        log.info("started version=%s key=%s listen=%s", VERSION, show_key(self.node.s.public),
                 ",".join(map(str, self.config.listen)) or "none")

    def adopt_left_behind(self) -> None:
        """There is no lease file, but what an earlier run has made for its leases: it stays until it is answered."""
        found = self.kernel.left_behind()
        if not found or not self.config.contacts:
            return
        log.notice("adopted things=%d: they lie inside of what ddpd has made, and the lease file is lost", len(found))
        routes = [thing for thing in self.kernel.installed.values() if isinstance(thing, Route)]
        ours = [route.prefix for route in routes if route.table == MAIN and not any(route.reach)]
        self.node.adopt_left(found, ours)
        self.converge([])
        self.kernel.look_at_all(self.node.made)
        self.left = {key for key, thing in self.kernel.installed.items() if not isinstance(thing, Route)
                     or thing.table != MAIN or not any(thing.reach)}

    def remove_left(self) -> None:
        """Every grantor has said what it gives: what was left and is not of that goes."""
        if self.left and not any(grantee.unsettled for grantee in self.node.grantees.values()):
            self.node.wanted.changed |= self.left
            self.node.left, self.left, self.retry_install = [], set(), -inf

    def restore(self, now: Now) -> None:
        """Take up what is on file; what is lost or damaged makes a grantor careful."""
        read = self.store.read()
        self.is_new = read is None
        self.marked = has_granted(self.config)
        if read is None and self.marked:
            log.warning("recovering file=%s why=lost (remove %s.granted to end it)", self.store.path, self.config.key)
        for line in take_up(self.node, read, self.marked, now):
            log.warning("damaged file=%s line=%d text=%s", self.store.path, line.line, line.text[:200] or "cut short")
        changes: dict[Key, Record | None] = dict.fromkeys(self.node.outdated)
        if self.store.why_not:
            log.warning("%s: %s", self.store.why_not, NO_MEMORY)
        if not self.store.save(changes | {("run",): self.node.run_record(False, now)}, now):
            self.rewrite(clean=False)

    def rewrite(self, clean: bool) -> None:
        now = clock_now()
        grantor = self.node.grantor
        try:
            if self.store.why_not:                                # perhaps it can be written by now
                try:
                    self.store.acquire()
                except Fatal as wrong:
                    self.store.why_not = str(wrong)
            if not self.store.why_not:
                self.store.rewrite(self.node.records(clean, now))
                if grantor.disk_full or self.node.forgetful:
                    log.notice("lease file can be written again file=%s", self.store.path)
        except OSError as why:
            log.limited("disk", "cannot write %s: %s", self.store.path, why.strerror)
            self.store.retry_at = now.boot + RETRY_DISK_S
        self.node.forgetful = bool(self.store.why_not)
        self.node.wanted.records = {} if self.store.fd >= 0 else self.node.wanted.records
        grantor.disk_full = self.node.forgetful or self.store.fd < 0 or self.store.is_full
        if self.node.forgetful:                                   # who only asks goes on without
            self.store.retry_at = now.boot + RETRY_DISK_S if self.config.pools else inf

    def retry_disk(self, now: Now) -> None:
        if self.store.fd < 0:
            self.rewrite(clean=False)
            return
        self.store.reserve(0, now)
        self.node.grantor.disk_full = self.store.is_full
        if not self.store.is_full:
            log.notice("lease file can be written again file=%s", self.store.path)

    def leave(self) -> None:
        """A restart is no outage: but for `release = yes` nothing is released, nothing removed."""
        self.rewrite(clean=True)
        if self.showed:
            try:
                os.unlink(self.config.status)
            except OSError:                                       # mounted: nobody is to take it for the truth
                with suppress(OSError):
                    os.truncate(self.config.status, 0)
        self.account()
        self.controls.close()
        self.hooks.stop(self.node)
        log.info("stopped")

    # -- effects -------------------------------------------------------------------------

    def converge(self, events: list[list[Effect]]) -> set[Key]:
        """Save all that has changed with one flush, install, then send: nothing is promised that could be forgotten.

        Returns the new leases that could not be written.
        """
        now = clock_now()
        lost = self.save(now)
        if self.node.wanted.changed:
            self.install(now)
        for effects in events:
            for effect in effects:
                if lost and isinstance(effect, Send):             # who asked in this batch asks again
                    continue
                if isinstance(effect, Account) and effect.lease in lost:
                    continue
                self.ACTIONS[type(effect)](self, effect, now)
        if self.unwritten:
            self.account()
        return lost

    def save(self, now: Now) -> set[Key]:
        """The new leases that could not be written."""
        grantor, records = self.node.grantor, self.node.wanted.records
        if not records:
            return set()
        self.node.wanted.records = {}
        if self.store.save(records, now):
            if not self.marked and any(key[0] == "granted" for key in records):
                self.mark_granted()
            grantor.unwritten.clear()
            grantor.disk_full = self.store.is_full
            return set()
        lost = set(grantor.unwritten)
        grantor.unsaved()
        self.node.wanted.records = {}                             # the file will be written anew
        return lost

    def add_account(self, effect: Account, _: Now) -> None:
        if len(self.unwritten) < MAX_UNWRITTEN:
            self.unwritten.append(json.dumps(effect.row) + "\n")
        else:
            self.node.counters["accounting lost"] += 1

    def account(self) -> None:
        """Append what has happened.  Opened each time, so that it can be rotated; what fails is tried again."""
        if not self.unwritten or not self.config.accounting:
            return
        try:
            fd = os.open(self.config.accounting, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with open(fd, "r+b", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                whole_ = end == 0 or os.pread(fd, 1, end - 1) == b"\n"
                data = ("" if whole_ else "\n").encode() + "".join(self.unwritten).encode()
                if file.write(data) != len(data):
                    os.ftruncate(fd, end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.unwritten = []
        except OSError as why:
            self.node.counters["accounting failed"] += 1
            log.limited("accounting", "cannot write %s: %s", self.config.accounting, why.strerror)

    def mark_granted(self) -> None:
        """Beside the key: from now on a missing lease file is a lost one."""
        try:
            with open(self.config.key + ".granted", "a"):
                self.marked = True
        except OSError as why:
            log.limited("marker", "cannot write %s.granted: %s", self.config.key, why.strerror)

    def read_links(self) -> list[Effect]:
        try:
            links = self.kernel.look()
            return self.node.linked(links, clock_now()) if links != self.node.links else []
        except OSError as why:
            log.limited("links", "cannot see links why=\"%s\"", why)
            return []

    def send(self, effect: Send, _: Now) -> None:
        try:
            self.network.send(effect.datagram, effect.path)
        except OSError as why:
            self.node.counters["send failed"] += 1
            log.limited("send", "cannot send to=%s why=\"%s\"", effect.path, why.strerror)

    def hook(self, effect: Hook, now: Now) -> None:
        self.hand_on(now)                                         # the hook may tell who reads it
        self.hooks.add(effect.grantor, effect.event)
        self.hooks.start(self.node, now)

    def hand_on(self, now: Now) -> None:
        """After a start, what was known of name servers stays until somebody answers."""
        grantees = self.node.grantees.values()
        if all(grantee.unsettled for grantee in grantees) and any(grantee.held for grantee in grantees):
            return
        for kind, path in self.config.handed.items():
            write_own(path, partial(self.handed_text, kind, now))

    def handed_text(self, kind: str, now: Now, have: str) -> str:
        if kind == "radvd":
            self.lose(announced_in(have), now)
        return OUR_FILE + HANDED_TEXTS[kind](self.node.grantees.values(), self.lost, now)

    def lose(self, announced: Iterable[Subnet], now: Now) -> None:
        """What was announced and is no more: hosts are told so for two hours."""
        there = {(thing.dev, thing.address.network(64)) for thing in subnets_of(self.node.grantees.values(), 6)}
        for subnet in announced:
            self.lost.setdefault(subnet, now.boot + LINGER_S)
        left = {subnet: until for subnet, until in self.lost.items() if subnet not in there and until > now.boot}
        self.lost = dict(list(left.items())[-MAX_LOST:])

    def note(self, effect: Note, _: Now) -> None:
        kind = effect.text.partition(" ")[0]
        level = Level.WARNING if kind in WORRYING or " has no place: " in effect.text else Level.INFO
        if kind in ("refused", "clone", "nudged"):                # a peer can cause as many as it likes
            log.limited(kind, "%s", effect.text, level=level)
        else:
            log.write(level, "%s", (effect.text,))

    ACTIONS: ClassVar[Mapping[type[Any], Callable[[Daemon, Any, Now], None]]] = {
        Send: send, Call: Talker.call, Lookup: Talker.look_up, Hook: hook, Note: note, Account: add_account,
    }

    # -- the kernel: brought to what is wanted, and written down where it takes no mark -------

    def install(self, now: Now) -> None:
        """Make the kernel equal to what is wanted, as far as it has changed."""
        node, kernel = self.node, self.kernel
        keys = node.wanted.changed | kernel.pending
        node.wanted.changed.clear()
        gone, new = plan(kernel.installed, node.wanted.things, keys)
        kernel.read_peers(gone)
        kept = self.unmake(gone) if gone else set[Key]()
        tunnels: list[Thing] = [thing for thing in new if isinstance(thing, Interface)]
        refused = self.make(tunnels, now)
        if tunnels:
            self.look_again()                                      # what goes onto them, and by them, comes after
        refused |= self.make([thing for thing in new if not isinstance(thing, Interface)], now)
        kernel.pending = {key for key in keys if key in node.wanted.things
                          and kernel.installed.get(key) != node.wanted.things[key]}
        if gone or refused:
            self.look_again()
        node.wanted.changed |= kept & kernel.installed.keys()
        self.forget_made([key for key, thing in node.made.items() if key not in kernel.installed
                         and (key not in node.wanted.things or key in refused) and not kernel.has(thing)], now)
        if gone or new:
            again = now.boot + RETRY_INSTALL_S if refused or node.wanted.changed else inf
            self.retry_install = min(again, *(at for at in node.duplicates.values() if at > now.boot), inf)

    def make(self, new: list[Thing], now: Now) -> set[Key]:
        """As far as it may be; what of that is not there."""
        self.kernel.read_peers(new)
        others = self.kernel.neighbours(new)
        ready = [thing for thing in new if self.may_make(thing, others)
                 and self.node.duplicates.get(thing.id, -inf) <= now.boot]
        recorded = self.recorded(ready, now)
        for thing in ready:
            if isinstance(thing, Address) and thing.address == DOOR_ADDRESS:
                make_unicast(thing.dev)
        self.kernel.remove(thing for thing in recorded if thing.id in self.node.duplicates and self.kernel.has(thing))
        failed = {}
        for failure in self.kernel.run([(thing, thing.add_line(self.kernel.mark, now)) for thing in recorded]):
            failed[failure.thing.id] = failure
            log.limited("install", "cannot install %s", failure)
        for thing in recorded:
            if thing.id not in failed:
                if isinstance(thing, Interface) and thing.id not in self.kernel.installed:
                    log.info("made interface=%s", thing.dev)
                self.kernel.installed[thing.id] = thing
        return {thing.id for thing in ready if self.kernel.installed.get(thing.id) != thing}

    def unmake(self, gone: list[Thing]) -> set[Key]:
        """Take it away; what the kernel has all the same stays ours, and is tried again."""
        failed = self.kernel.remove(gone)
        doubtful = {failure.thing.id for failure in failed}
        for key in {thing.id for thing in gone} - doubtful:
            self.kernel.installed.pop(key, None)
        if doubtful:
            self.look_again(all_of_it=True)
        left = doubtful & self.kernel.installed.keys()
        for failure in failed:
            if failure.thing.id in left:
                log.limited("install", "cannot remove %s", failure)
        return left

    def look_again(self, all_of_it: bool = False) -> None:
        try:
            self.kernel.look()
            if all_of_it:
                self.kernel.look_at_all(self.node.made)
        except OSError as why:
            log.limited("links", "cannot see links why=\"%s\"", why)

    def recorded(self, new: list[Thing], now: Now) -> list[Thing]:
        """What carries no mark in the kernel is written down before it is made; what cannot be is not made."""
        unmarked = {thing.id: self.on_link(thing) for thing in new if not isinstance(thing, Route)}
        known = self.node.made
        unwritten = [key for key, thing in unmarked.items()
                     if key not in known or known[key].record() != thing.record()]
        if self.record_made(unwritten, unmarked, now):
            return new
        return [thing for thing in new if isinstance(thing, Route) or thing.id in self.node.made]

    def on_link(self, thing: Unmarked) -> Unmarked:
        """With the index of its interface, so that it is known again under another name."""
        return thing._replace(link=self.kernel.links.index(thing.dev)) if isinstance(thing, Address) else thing

    def remove_strays(self, now: Now) -> None:
        """An interface was renamed: what we have made on it belongs to the name that is configured, so it goes."""
        strays = self.kernel.strays(self.node.made)
        if not strays:
            return
        self.kernel.remove(strays.values())
        for thing in strays.values():
            log.notice("removed address=%s interface=%s: it was made under another name", thing.address, thing.dev)
        self.forget_made(strays, now)
        self.kernel.lose(set(strays))
        self.node.wanted.changed |= strays.keys()

    def note_duplicates(self, now: Now) -> None:
        """Another host has an address of ours: that is said once, and the address tried again and again."""
        node, links = self.node, self.kernel.links
        for key in self.kernel.found_duplicate(node.made):
            thing = node.made[key]
            if key not in node.duplicates and isinstance(thing, Address):
                log.warning("duplicate address=%s interface=%s: another host has it; it is tried again every %d s",
                            thing.address, thing.dev, DUPLICATE_S)
            node.duplicates[key] = now.boot + DUPLICATE_S
            node.wanted.changed |= self.kernel.lose({key})
            self.retry_install = min(self.retry_install, node.duplicates[key])
        for key in list(node.duplicates):
            wanted = node.wanted.things.get(key)
            if not isinstance(wanted, Address):                   # no longer wanted
                del node.duplicates[key]
                continue
            place = links.index(wanted.dev), wanted.address
            if place in links.addresses and place not in links.tentative:
                log.notice("address=%s interface=%s is no duplicate any more", wanted.address, wanted.dev)
                del node.duplicates[key]

    def may_make(self, thing: Thing, others: set[Neighbour]) -> bool:
        """Not on an interface that is not there (or by one that is down); not over what is foreign."""
        if isinstance(thing, Interface):
            return self.may_make_interface(thing)
        dev = thing.reach.dev if isinstance(thing, Route) else getattr(thing, "dev", "")
        if dev and not self.may_use(dev, IFF_UP if isinstance(thing, Route) else ~0):
            return False
        if isinstance(thing, AllowedIp):
            return self.may_allow(thing)
        if isinstance(thing, Route | Rule) or thing.id in self.node.made:
            return True
        if isinstance(thing, Address):                            # what lasts is the operator's; else left of a lease
            links = self.kernel.links
            there = links.index(thing.dev), thing.address
            return not self.kernel.has(thing) or (there in links.timed
                                                  and (there in links.fading or thing.address.is_address))
        return thing not in others if isinstance(thing, Neighbour) else not self.kernel.has(thing)

    def may_use(self, dev: str, flags: int) -> bool:
        """It is there; and a tunnel is ours."""
        if not self.kernel.links.has(dev, flags):
            if dev not in self.awaited:
                log.warning("waiting for interface=%s", dev)
            self.awaited.add(dev)
            return False
        self.awaited.discard(dev)
        is_tunnel = any(contact.tunnel is not None and contact.tunnel.dev == dev for contact in self.config.contacts)
        return not is_tunnel or Interface(dev).id in self.kernel.installed

    def may_allow(self, thing: AllowedIp) -> bool:
        """Not as long as its peer is not there, nor what is there already, or somebody else's."""
        peer = WgPeer(thing.dev, thing.key)
        is_peer = self.kernel.has(peer) or peer.id in self.node.wanted.things
        return is_peer and not self.kernel.has(thing) and not self.kernel.tables.is_anothers(thing)

    def may_make_interface(self, thing: Interface) -> bool:
        """What is there of that name, and not ours, is left alone."""
        key = thing.id
        is_foreign = key not in self.node.made and self.kernel.has(thing)
        if is_foreign and thing.peer and key not in self.kernel.pending:
            log.warning("cannot make interface=%s why=\"there is one that ddpd has not made\"", thing.dev)
        return not is_foreign

    def record_made(self, keys: Iterable[Key], things: Mapping[Key, Unmarked], now: Now) -> bool:
        """False if it cannot be written."""
        records = [things[key].record() for key in keys]
        if records and not self.store.save({key_of(record): record for record in records}, now) \
                and not self.store.why_not:
            return False
        self.node.made |= {key: things[key] for key in keys}
        return True

    def forget_made(self, keys: Iterable[Key], now: Now) -> None:
        """After it is unmade."""
        things = [self.node.made.pop(key) for key in keys if key in self.node.made]
        if things:
            self.store.save({key_of(thing.record()): None for thing in things}, now)

    # -- the loop ------------------------------------------------------------------------

    def serve(self) -> None:
        while not self.is_done():
            readable = self.wait()
            now = clock_now()
            events = self.receive_all(readable, now) + self.other_events(readable, now)
            self.converge(events)
            if self.config.status and (readable or any(events)):
                self.status_at = min(self.status_at, now.boot + STATUS_S)
            self.controls.serve(self, readable, now)
            self.doors.serve(self, readable, now)
            self.tend(now)
        self.leave()

    def is_done(self) -> bool:
        """Told to end, and what was to be given back has been, or nobody has answered in time."""
        return self.stopping and (clock_now().boot >= self.leave_at or not any(self.releasing()))

    def releasing(self) -> Iterator[Grantee]:
        return (grantee for grantee in self.node.grantees.values() if grantee.contact.release and grantee.releases)

    def show_status(self, now: Now) -> None:
        """Never over a file that is none of ours."""
        self.status_at = inf
        try:
            if own_text(self.config.status)[: len(OUR_STATUS)] not in ("", OUR_STATUS):
                raise OSError(0, "there is a file that ddpd has not made")
            make_folder(self.config.status)
            write_whole(self.config.status, status_file_text(self.node, now))
            self.showed = True
        except OSError as why:
            self.status_at = now.boot + RETRY_STATUS_S
            log.limited("status", "cannot write %s: %s", self.config.status, why.strerror)

    def wait(self) -> list[Any]:
        now = clock_now()
        self.ports.prepare(now)
        until = min(self.node.deadline, self.ports.deadline(), self.neighbours_at, self.peers_at, self.store.retry_at,
                    self.leave_at, self.status_at,
                    self.hooks.kill_at, self.retry_install, self.routes_at,
                    self.links_at if self.links_at > now.boot else inf,
                    self.doors.deadline(), self.controls.deadline())
        sockets = [*self.sockets(), self.wake, *self.controls.sockets(), *self.doors.sockets()]
        sockets += [self.kernel.monitor] if self.links_at <= now.boot else []
        sockets += [self.kernel.routes] if self.config.contacts and self.routes_at == inf else []
        writing = [*(control.sock for control in self.controls.open if control.unsent), *self.doors.writing()]
        until = -inf if any(c.rows for c in self.controls.open if not c.unsent) else until
        return self.answer_until(until, sockets, writing)

    def answer_until(self, until: float, sockets: list[Any], writing: list[Any]) -> list[Any]:
        """Solicitations are answered here, again and again, until something else is to be done."""
        acts, others, poller = self.ports.acts(), {fileno(sock): sock for sock in (*sockets, *writing)}, select.poll()
        for number_, sock in others.items():
            poller.register(number_, select.POLLIN * (sock in sockets) | select.POLLOUT * (sock in writing))
        for number_ in acts:
            poller.register(number_, select.POLLIN)
        while True:
            timeout_s = min(until - clock_now().boot, 1e6)
            ready = dict(poller.poll(None if until == inf else max(0.0, timeout_s) * 1000))
            for act in [acts[number_] for number_ in ready if number_ in acts]:
                act()
            if not acts.keys() >= ready.keys() or self.ports.shifted or clock_now().boot >= until:
                return [sock for number_, sock in others.items() if ready.get(number_, 0) & ~select.POLLOUT]

    def other_events(self, readable: list[Any], now: Now) -> list[list[Effect]]:
        events: list[list[Effect]] = []
        if self.kernel.monitor in readable:
            events.append(self.kernel_changed(now))
            took_s = clock_now().boot - now.boot
            self.links_at = now.boot + 10 * took_s if took_s > SLOW_LINKS_S else -inf       # where there are very many
        if self.kernel.routes in readable and self.routes_at == inf:
            self.routes_at = now.boot + self.routes_s
        if now.boot >= self.peers_at:
            events.append(self.read_peers(now))
        aims = self.node.aims()
        if aims != self.aims or now.boot >= self.routes_at:
            events.append(self.find_ways(aims, now))
        if self.wake in readable:
            os.read(self.wake, 4096)
            while self.signals:
                events.append(self.signalled(self.signals.pop(0), now))
        return events

    def kernel_changed(self, now: Now) -> list[Effect]:
        """What is ours and gone is made again.  Our own changes wake us too: they change nothing."""
        look, gone = self.kernel.changes()
        lost = self.kernel.lose({thing.id for thing in gone})
        effects = self.read_links() if look else []
        if look:
            self.note_duplicates(now)
        if look and self.config.guards:
            self.kernel.tables.texts.clear()                       # its key may be another one
            self.peers_at = now.boot
        if look and self.node.proxies:
            self.ports.forget_ways()
            self.ports.update(now)
        if look and self.kernel.links != self.kernel.seen:
            self.kernel.seen = self.kernel.links
            soon = max(now.boot, self.ways_seen + self.routes_s) if self.routes_s > ROUTES_S else now.boot
            self.routes_at = min(self.routes_at, soon)            # the ways too
            try:
                self.kernel.look_at_all(self.node.made)
                self.forget_made(self.kernel.taken, now)
                self.remove_strays(now)
                wanted, installed = self.node.wanted.things, self.kernel.installed
                lost |= {key for key, thing in wanted.items() if installed.get(key) != thing}
            except OSError as why:                                # the next event, or retry, finds it
                log.limited("links", "cannot see routes why=\"%s\"", why)
                self.retry_install = now.boot + RETRY_INSTALL_S
        lost |= self.kernel.missing(self.node.made) if look else set()
        if lost <= self.kernel.pending:                           # what waits for a link may have it now
            self.node.wanted.changed |= lost
        else:
            self.repair(lost, now)
        return effects

    def check_neighbours(self, now: Now) -> None:
        """Poll proxy neighbours: the kernel sends no event when one is deleted."""
        self.neighbours_at = now.boot + NEIGHBOURS_S if any(ndp.by_kernel for ndp in self.config.ndp) else inf
        try:
            gone = self.kernel.missed(self.node.made)
            self.node.wanted.changed |= gone
            self.retry_install = now.boot if gone else self.retry_install
        except OSError as why:
            log.limited("links", "cannot see neighbours why=\"%s\"", why)

    def read_peers(self, now: Now) -> list[Effect]:
        """Who came, who has gone, and what of ours somebody has taken away.  WireGuard does not tell."""
        self.peers_at, self.peers_seen = now.boot + PEERS_S if self.config.guards else inf, now.boot
        effects: list[Effect] = []
        guards = self.node.grantor.guards
        for dev, sight in guards.sights.items():
            state = self.kernel.look_at_peers(dev)
            if state is not sight.state or sight.missing or guards.is_stale:
                effects += self.node.handle_peers(dev, state, now)
        self.peers_at = max(self.peers_at, now.boot + 10 * (clock_now().boot - now.boot))        # where `wg` hangs
        self.doors.update(self.config.guards, self.kernel.links)
        if effects:                                               # perhaps a peer has come that is waited for
            self.node.wanted.changed |= {key for key in self.kernel.pending if key[0] == "6 allowed"}
        lost = self.kernel.missed_peers(self.node.made)
        if lost:
            self.repair(lost, now)
        return effects

    def find_tunnels(self) -> list[Effect]:
        """Of the interfaces on which addresses are wanted: those on which their grantor is a peer."""
        try:
            tunnels = wg("show", "interfaces").split()
        except OSError:                                           # no `wg`, no tunnels
            return []
        devs = {(contact, lan.dev) for contact in self.config.contacts for line in contact.lines
                for lan in line.lans if line.prefix.is_address and contact.install and lan.dev in tunnels}
        return [effect for contact, dev in devs if (state := self.kernel.look_at_peers(dev)) is not None
                and contact.key in state.peers for effect in self.node.assume(contact.name, dev)]

    def refresh_peers(self, now: Now) -> list[list[Effect]]:
        """WireGuard may know a stranger already; who asks cannot make us look often."""
        if not self.config.guards or now.boot - self.peers_seen < PEERS_GAP_S:
            return []
        return [self.read_peers(now)]

    def caller(self, dev: str, path: Path) -> Peer | None:
        """Whose address that is: WireGuard lets nobody else send from it.  None: of no grantee."""
        key = self.node.grantor.guards.holder(dev, parse_host(path.host))
        return self.node.grantor.peer_of(key) if key is not None else None

    def repair(self, lost: set[Key], now: Now) -> None:
        """At once; where somebody takes it away again and again, once a second."""
        self.repairs = max(0.0, self.repairs - (now.boot - self.repaired_at))
        self.repaired_at = now.boot
        if self.repairs < REPAIRS:
            self.repairs += 1
            self.node.wanted.changed |= lost
        else:
            self.to_repair |= lost
            self.retry_install = min(self.retry_install, now.boot + 1.0)

    def find_ways(self, aims: dict[Aim, Path | None], now: Now) -> list[Effect]:
        """How the grantors are reached: looked at when links or routes have changed, or another place is asked."""
        has_changed = now.boot >= self.routes_at
        self.aims = aims
        try:
            if has_changed:
                self.routes_at = inf
                self.kernel.watch_routes()
            ways = {aim: self.kernel.way_to(place) for aim, place in aims.items() if place is not None}
            gateways = self.kernel.gateways() if self.wants_gateways else ()
            self.ways_seen = clock_now().boot
            self.routes_s = max(ROUTES_S, 20 * (self.ways_seen - now.boot))            # where the table is very long
            return self.node.routed(ways, gateways, has_changed, now)
        except OSError as why:
            log.limited("links", "cannot see ways why=\"%s\"", why)
            return []

    @property
    def wants_gateways(self) -> bool:
        """By `address = gateway` or `default = auto`."""
        return any(contact.follows_way or any(is_gateway(host) for host, _ in contact.addresses)
                   for contact in self.config.contacts)

    def tend(self, now: Now) -> None:
        """What is due beside the node's own deadline."""
        self.hooks.check(now)
        self.hooks.start(self.node, now)
        self.ports.tend(now)
        if now.boot >= self.neighbours_at:
            self.check_neighbours(now)
        if now.boot >= self.store.retry_at:
            self.retry_disk(now)
        self.remove_left()
        if now.boot >= self.retry_install or self.ports.wired:
            self.retry_install, self.ports.wired = inf, False
            self.node.wanted.changed |= self.to_repair
            self.to_repair = set()
            self.install(now)
        if now.boot >= self.status_at:
            self.show_status(now)
        if self.read:
            self.finish_reload(self.read.pop(), now)

    # -- signals -------------------------------------------------------------------------

    def catch_signals(self) -> tuple[int, int]:
        """The two ends of a pipe that wakes us."""
        readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, lambda n, _: self.signals.append(n))
        return readable, writable

    def signalled(self, number: int, now: Now) -> list[Effect]:
        if number in (signal.SIGTERM, signal.SIGINT):
            return self.told_to_end(now)
        if number == signal.SIGHUP and not self.stopping:
            self.reload()
        elif number == signal.SIGUSR1 and not self.stopping:
            return self.node.operate(Event.RENEW, "", now)
        return []

    def told_to_end(self, now: Now) -> list[Effect]:
        """At once, if told twice.  Who holds nothing may have been granted something just now.

        Where nobody has ever answered, or nothing can be sent, nothing is waited for, but an answer on its way.
        """
        giving = [grantee for grantee in self.node.grantees.values() if grantee.contact.release]
        is_known = any((grantee.answers or grantee.held) and not grantee.unsent for grantee in giving)
        self.leave_at = -inf if self.stopping else now.boot + (RELEASE_S if is_known else RELEASE_UNKNOWN_S)
        self.stopping = True
        return [effect for grantee in giving for effect in self.node.operate(Event.RELEASE, grantee.contact.name, now)]

    # -- reload: read in a thread, then taken over at once ---------------------------------

    def reload(self, forced: bool = False) -> None:
        self.forced |= forced
        if self.is_reading:
            self.read_again = True                                # the file has changed while it was read
            return
        self.is_reading = True
        try:
            _thread.start_new_thread(self.read_configuration, ())
        except RuntimeError as why:
            self.read.append(ConfigError(f"{self.config.file}: {why}"))

    def read_configuration(self) -> None:
        """In a thread; the daemon goes on with the result when it wakes."""
        try:
            self.read.append(load_config(self.config.file, self.config))
        except Exception as why:  # noqa: BLE001 - raised again in the daemon, if it is a defect
            self.read.append(why)
        os.write(self.waker, b".")

    def finish_reload(self, read: Config | Exception, now: Now) -> None:
        why, effects, self.is_reading = "", list[Effect](), False
        if isinstance(read, Config):
            why, effects = self.take_over(read, now)
        elif isinstance(read, ConfigError):
            why = str(read)
        else:
            raise read
        if why:
            log.error("reload refused why=\"%s\"", why)
        if self.read_again:
            self.read_again = False
            self.reload()
        else:
            self.forced = False
            for control in self.reloaders:
                control.say({"error": why} if why else {"skipped": self.config.skipped} if self.config.skipped else {})
            self.reloaders = []
        self.converge([effects])

    def take_over(self, config: Config, now: Now) -> tuple[str, list[Effect]]:
        """What is wrong with the new configuration, or nothing and what it makes us do."""
        dropped = config.pins.lost
        if dropped > (1 - PINS_KEPT) * len(self.config.pins.ordered) and not self.forced:
            return f"{dropped} of {len(self.config.pins.ordered)} pins would go (`reload --force` if that is meant)", []
        try:
            site = load_handlers(config.handlers)
        except ConfigError as why:
            return str(why), []
        try:
            self.network.listen(config.listen)
        except Fatal as why:
            return str(why), []
        if config.listen != self.config.listen:
            log.notice("listens at=%s", ",".join(map(str, config.listen)) or "none")
        self.kernel.called = devices_of(config)
        fixed = {key: getattr(self.config, key) for key in ("key", "leases", "control", "mark", "status")}
        changed = [key for key, value in fixed.items() if getattr(config, key) != value]
        if changed:
            log.warning("reload: %s changed: takes effect after a restart", ", ".join(changed))
        self.config = config = replace(config, **fixed)
        if not has_granted(config) and self.node.grantor.recovering_until > now.boot:
            self.node.grantor.recovering_until = now.boot         # the operator has removed it to say so
        log.info("reloaded file=%s", config.file)
        self.tell_skipped()
        self.node.grantor.site = site
        for grantee in self.node.dismissed(config):
            self.hooks.expand(grantee, "stopped", now)
        effects = self.node.reconfigure(config, now)
        self.neighbours_at = now.boot
        effects += self.read_peers(now)
        self.ports.update(now)
        for line in lacking(config):                              # `check` says what else may be in the way
            log.warning("warning: %s", line)
        self.routes_at = now.boot                                 # other ways matter now
        self.hand_on(now)
        for name in self.network.dialled.keys() - self.node.grantees.keys():
            self.network.dialled.pop(name).sock.close()
        return "", effects

    def tell_skipped(self) -> None:
        for line in self.config.skipped:
            log.warning("%s", line)

    # -- orders from the control socket ----------------------------------------------------

    def handle_order(self, control: Control, order: Mapping[str, Any], now: Now) -> dict[str, Any] | None:
        """None: the answer comes later.  ValueError: what is wrong with the order."""
        act = self.ORDERS.get(str(order.get("do")))
        if act is None:
            raise ValueError(f"no such order: {order.get('do')}")
        return act(self, control, order, now)

    def order_status(self, _: Control, order: Mapping[str, Any], now: Now) -> dict[str, Any]:
        return status_of(self.node, now, min(MAX_SHOWN, max(0, int(order.get("rows", MAX_SHOWN)))))

    def order_leases(self, control: Control, order: Mapping[str, Any], now: Now) -> dict[str, Any]:
        rows = lease_rows(self.node, leases_by(self.node, str(order.get("what", ""))), now)
        control.rows = chain(rows, [{}])                          # the end, so that one sees that this is all
        return {}

    def order_show(self, _: Control, order: Mapping[str, Any], now: Now) -> dict[str, Any]:
        return show_of(self.node, str(order["what"]), now)

    def order_explain(self, _: Control, order: Mapping[str, Any], now: Now) -> dict[str, Any]:
        return explained(self.node, str(order["what"]), str(order["ask"]), now)

    def order_revoke(self, _: Control, order: Mapping[str, Any], now: Now) -> dict[str, Any]:
        slot = None if order.get("slot") is None else whole(0, 255)(str(order["slot"]))
        peer = peer_named(self.node, str(order["what"]))
        found = [str(lease.prefix) for lease in (peer.leases if peer else ()) if slot in (None, lease.slot)
                 and (lease.state is LeaseState.REVOKED if order.get("undo") else lease.living)]
        if peer is None or not found:
            raise ValueError(f"'{order['what']}' has no such lease")
        self.converge([(self.node.forgive if order.get("undo") else self.node.revoke)(peer, slot, now)])
        return {"prefixes": found}

    def order_reload(self, control: Control, order: Mapping[str, Any], _: Now) -> None:
        self.reloaders.append(control)
        control.until, control.waits = inf, True
        self.reload(bool(order.get("force")))

    def order_grantee(self, control: Control, order: Mapping[str, Any], now: Now) -> dict[str, Any] | None:
        """`ask`, `renew` and `release`."""
        what, name = str(order["do"]), str(order.get("grantor", ""))
        names = [name] if name else list(self.node.grantees)[: 1 if what == "ask" else None]
        if not names or not self.node.grantees.keys() >= set(names):
            have = ", ".join(self.node.grantees)
            raise ValueError(f"no grantor named '{name}' (have: {have})" if have else "this node asks no grantor")
        if what == "ask":
            control.asked, control.answers = names[0], self.node.grantees[names[0]].answers
        for each in names:
            self.converge([self.node.operate(Event.RELEASE if what == "release" else Event.RENEW, each, now)])
        return None if what == "ask" else {}

    ORDERS: ClassVar[Mapping[str, Callable[[Daemon, Control, Mapping[str, Any], Now], dict[str, Any] | None]]] = {
        "status": order_status, "leases": order_leases, "show": order_show, "explain": order_explain,
        "revoke": order_revoke, "reload": order_reload,
        "ask": order_grantee, "renew": order_grantee, "release": order_grantee,
    }


# ==== COMMANDS ======================================================== I/O ====


@dataclass
class Options:
    """The command line."""

    file: str = "/etc/ddpd.conf"
    words: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    wait_s: float = 10.0


def argument(parse: Callable[[str], T], text: str) -> T:
    """A value of the command line; Fatal."""
    try:
        return parse(text)
    except ValueError as why:
        raise Fatal(str(why)) from None


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def order(config: Config, do: str, wait_s: float = CONTROL_S, **rest: Any) -> dict[str, Any] | None:
    """Tell the running daemon; None if there is none, Fatal if it refuses, Silent if it does not answer."""
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
            sock.sendall(json.dumps({"do": do, "wait": wait_s, **rest}).encode() + b"\n")
            heard = b"".join(iter(lambda: sock.recv(1 << 20), b""))
        except OSError:
            pass
    first, _, rows = heard.partition(b"\n")
    if not heard.endswith(b"\n") or (rows and not rows.endswith(b"{}\n")):
        raise Silent(f"no daemon answers at {config.control}{' to the end' if heard else ''}")
    said: dict[str, Any] = json.loads(first)
    if rows:
        said["rows"] = [json.loads(row) for row in rows.splitlines()[:-1]]
    if "error" in said:
        raise Fatal(said["error"])
    return said


def told(config: Config, do: str, wait_s: float = CONTROL_S, **rest: Any) -> dict[str, Any]:
    said = order(config, do, wait_s, **rest)
    if said is None:
        raise Silent(f"no daemon answers at {config.control}")
    return said


def run(options: Options) -> int:
    """What goes wrong once it serves, and is not handled where it happens, is a defect of ours."""
    config = load_config(options.file)
    log.verbose = "-v" in options.flags
    daemon = Daemon(config)
    daemon.start()
    try:
        daemon.serve()
    except OSError as why:
        raise DefectError from why
    return 0


def link_notes(config: Config) -> Iterator[str]:
    """Which of its own networks this node will not give away."""
    try:
        links = links_of(exchange(RTM["link"] + RTM_GET, NLM_F_DUMP, bytes(16))
                         + exchange(RTM["address"] + RTM_GET, NLM_F_DUMP, bytes(16)), devices_of(config))
    except OSError:
        return
    for index, own in links.addresses:
        network = own.network(own.length)
        yield from (f"[pool {pool.name}] does not give {network}: that is the network of {links.names.get(index)}"
                    for pool in config.pools if not own.is_address and pool.prefix.length < own.length
                    and pool.prefix.holds(network) and pool.give[0] < WIDTH[own.version])


def warnings(config: Config) -> Iterator[str]:
    """What is allowed, but probably not meant."""
    if config.pools:
        yield "note: after a change, reload; a restart forgets sessions, so grantees cannot be nudged"
    unknown = sum(not owner for owner in config.pins.owners)
    some = printable(", ".join(config.unknown))
    yield from [f"note: {unknown} pins are kept for ids that no grantee here has: {some}"] if unknown else []
    yield from (f"note: [pool {pool.name}]: its twins need the same key, and links or routes of their own"
                for pool in config.pools if pool.has_twins)
    yield from (f"warning: [pool {pool.name}] share: [ndp {ndp.dev}] does not answer for what a twin has leased"
                for pool in config.pools for ndp in config.ndp if pool.has_twins and ndp.leased)
    yield from (f"note: {line}" for line in link_notes(config))
    yield from (f"warning: {line}" for line in (*ndp_warnings(config), *tunnel_warnings(config),
                                                *lan_warnings(config)))
    asked = {contact.name: [line.prefix.length for line in contact.lines] for contact in config.contacts}
    yield from (f"warning: [pool {pool.name}] give: [grantor {pool.follows.name}] is asked for nothing that is larger"
                for pool in config.pools if pool.follows and pool.follows.kind == "grantor"
                and min(asked[pool.follows.name], default=0) >= max(pool.give))
    for contact in [contact for contact in config.contacts if contact.hook]:
        if not os.access(contact.hook, os.X_OK):
            yield f"warning: [grantor {contact.name}] hook: {contact.hook} is no program"
        elif flaw_in_script(contact.hook):
            yield f"warning: [grantor {contact.name}] hook: {contact.hook}: {flaw_in_script(contact.hook)}"
    yield from (f"warning: [grantor {contact.name}] ask: {line.prefix} has no subnet {number} for {dev}"
                for contact in config.contacts for line in contact.lines for dev, number in lan_numbers(line.lans)
                if lan_address(line.prefix, number, contact.suffix) is None)
    for agreement in config.agreements.values():
        if not agreement.pools and not agreement.pins:
            yield f"warning: [grantee {agreement.name}]: nothing can be given"


def check(options: Options) -> int:
    config = load_config(options.file)
    if os.path.exists(config.key):
        load_secret(config, make=False)
    load_handlers(config.handlers)
    counts = {"pools": config.pools, "grantees": config.agreements, "grantors": config.contacts,
              "pins": config.pins.ordered}
    for line in config.skipped:
        say(line)
    say(f"{config.file}: ok ({', '.join(f'{len(found)} {name}' for name, found in counts.items())})")
    needs = ", ".join(f"{need.capability} ({need.where})" for need in config.needs)
    say(f"{config.file}: capabilities: {needs or 'none'}")
    for warning in warnings(config):
        say(f"{config.file}: {warning}")
    return 2 if any(": skipped: " not in line for line in config.skipped) else 0


def genkey(_: Options) -> int:
    say(show_key(os.urandom(KEY_LEN)))
    return 0


def pubkey(_: Options) -> int:
    try:
        say(show_key(keypair(public_key(sys.stdin.read().strip())).public))
    except ValueError as why:
        raise Fatal("standard input holds no private key (`ddpd.py genkey` makes one)") from why
    return 0


def wg_peer_text(config: Config, public: str, guard: WireguardSection | None) -> str:
    """As wg-quick's files have it, and others that configure WireGuard."""
    lines = ["[Peer]", f"PublicKey = {public}"]
    if guard is None:
        return "\n".join([*lines, "# no [wireguard] is configured here, so no endpoint is known" if config.pools else
                          "# ddpd adds its allowed IPs, and takes them away"])
    own = [place.host for place in config.listen if place.host not in ("::", "0.0.0.0")]  # noqa: S104 - any address
    place = HostPort(guard.endpoint.host or (own or [socket.gethostname()])[0],
                     guard.endpoint.port or guard.port or WG_PORT)
    lines += [f"Endpoint = {place}", f"AllowedIPs = {', '.join(map(str, guard.allowed))}"]
    return "\n".join(lines + [f"PersistentKeepalive = {guard.keepalive_s:.0f}"] * bool(guard.keepalive_s))


def introduce(options: Options) -> int:
    """The section that the other side has to paste."""
    config = load_config(options.file)
    public = show_key(keypair(load_secret(config, make=True)).public)
    host = socket.gethostname()
    if "--wg" in options.flags:
        say("\n\n".join(wg_peer_text(config, public, guard) for guard in config.guards or (None,)))
        return 0
    if config.listen:
        own = [place for place in config.listen if place.host not in ("::", "0.0.0.0")]  # noqa: S104 - any address
        place = own[0] if own else HostPort(host, config.listen[0].port)
        pool = max(config.pools, key=lambda pool: pool.prefix.version, default=None)      # of IPv6, if there is one
        wanted = ("::/" if pool.prefix.version == 6 else "0.0.0.0/") + str(pool.give[0]) if pool else "::/64"
        say(f"; for those who ask this node\n[grantor {host}]\nkey     = {public}\n"
            f"address = {place}\nask     = {wanted}\n")
    if config.contacts or not config.listen:
        say(f"; for those whom this node asks\n[grantee {host}]\nkey   = {public}\npools = POOL")
    return 0


def chosen(options: Options, config: Config) -> Contact:
    named = options.words[0] if options.words else config.contacts[0].name if config.contacts else ""
    for contact in config.contacts:
        if contact.name == named:
            return contact
    raise Fatal(f"no grantor named '{named}' (have: {', '.join(c.name for c in config.contacts) or 'none'})")


def on_file(config: Config, now: Now) -> Node:
    """What a daemon that starts now knows."""
    node = Node(config, load_secret(config, make=False), boot_id(), os.urandom)
    read = Store(config.leases).read() if os.access(config.leases, os.R_OK) else None
    take_up(node, read, has_granted(config), now)
    return node


def ask_once(config: Config, contact: Contact, event: Event, wait_s: float) -> dict[str, Any]:
    """A whole exchange without a daemon."""
    alone = replace(config, pools=(), agreements={}, guards=(), contacts=(replace(contact, install=False, hook=""),))
    now = clock_now()
    node = on_file(alone, now)
    node.start(now)
    grantee, talker = node.grantees[contact.name], Talker(node, ())
    talker.kernel.look()                                          # for `gateway%IF`
    effects = grantee.step(event, now)
    until = now.boot + wait_s
    while not grantee.answers and now.boot < until:
        for effect in effects:
            if isinstance(effect, Call):
                node.links = talker.kernel.look()                 # an address may have become ready
                talker.call(effect, now)
            elif isinstance(effect, Lookup):
                talker.look_up(effect, now)
        timeout = max(0.0, min(until, node.deadline) - now.boot)
        readable = select.select(talker.sockets(), [], [], timeout)[0]
        now = clock_now()
        effects = [effect for effects in talker.receive_all(readable, now) for effect in effects]
    aim = grantee.aim()
    grantee.way = talker.kernel.way_to(aim) if aim is not None else None
    talker.close()
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


def release(options: Options) -> int:
    config = load_config(options.file)
    if order(config, "release", grantor="".join(options.words[:1])) is not None:
        return 0
    contact = chosen(options, config)
    if not ask_once(config, contact, Event.RELEASE, options.wait_s):
        sys.stderr.write(f"ddpd: {contact.name} does not answer\n")
        return 3
    store = Store(config.leases)
    store.acquire()
    read = store.read()
    held = [key for key in read[0] if key[:2] == ("held", show_key(contact.key))] if read else []
    if not store.save(dict.fromkeys(held), clock_now()):          # so that the next start does not install it
        raise Fatal(f"given back, but {config.leases} cannot be written: the next start holds it for a while")
    return 0


def ask(options: Options) -> int:
    """Through the daemon if one runs, else by ourselves; nothing is installed."""
    if "--release" in options.flags:
        return release(options)
    config = load_config(options.file)
    contact = chosen(options, config)
    try:
        said = order(config, "ask", options.wait_s, grantor=contact.name)
    except Silent:
        said = {}
    if said is None:
        said = ask_once(config, contact, Event.RENEW, options.wait_s)
    if "grants" not in said:
        said = {"grantor": contact.name, "status": "SILENT", "grants": [], "refused": [], "options": {}}
        sys.stderr.write(f"ddpd: {contact.name} does not answer\n")
    show_asked({name: value for name, value in said.items() if name != "env"}, said.get("env", {}), options.flags)
    if said["status"] == "SILENT":
        return 3
    return 1 if said["refused"] else 0


PERSON_ROWS: Final = 200                 # leases that `status` shows to a person


def status(options: Options) -> int:
    config = load_main(options.file)
    if "--json" in options.flags:
        say(json.dumps(told(config, "status")))
    else:
        say(status_text(told(config, "status", rows=PERSON_ROWS), sys.stdout.isatty()))
    return 0


def leases(options: Options) -> int:
    """Of all, one peer, or around an address or prefix and inside of it."""
    said = told(load_main(options.file), "leases", what="".join(options.words[:1]))
    rows = sorted(said.get("rows", ()), key=lambda row: parse_prefix(row["prefix"]))
    if "--json" in options.flags:
        say("[" + ",\n ".join(json.dumps(row) for row in rows) + "]")
    else:
        say("\n".join(leases_table(rows)) or "no lease")
    return 0


def named_peer(options: Options) -> str:
    if not options.words:
        raise Fatal("which peer? (a name, or the first letters of a key)")
    return options.words[0]


def show(options: Options) -> int:
    said = told(load_main(options.file), "show", what=named_peer(options))
    say(json.dumps(said) if "--json" in options.flags else "\n".join(nested_text(said)))
    return 0


def explain(options: Options) -> int:
    """By the daemon, or from the configuration and the lease file."""
    peer, asked_for = named_peer(options), " ".join(options.words[1:]) or "::/64"
    said = order(load_main(options.file), "explain", what=peer, ask=asked_for)
    if said is None:
        config, now = load_config(options.file), clock_now()
        node = on_file(config, now)
        node.grantor.site = load_handlers(config.handlers)
        said = argument(lambda text: explained(node, peer, text, now), asked_for)
    say(json.dumps(said) if "--json" in options.flags else explained_text(said))
    return 0


def revoke(options: Options) -> int:
    slot = argument(whole(0, 255), options.words[1]) if options.words[1:] else None
    said = told(load_main(options.file), "revoke", what=named_peer(options), slot=slot, undo="--undo" in options.flags)
    say("\n".join(said["prefixes"]))
    return 0


def metrics(options: Options) -> int:
    """To standard output, or to a file that is always whole."""
    text = metrics_text(told(load_main(options.file), "status", rows=0))
    if not options.words:
        sys.stdout.write(text)
        return 0
    try:
        write_whole(options.words[0], text)
    except OSError as why:
        raise Fatal(f"cannot write {options.words[0]}: {why.strerror}") from None
    return 0


def renew(options: Options) -> int:
    told(load_main(options.file), "renew", grantor="".join(options.words[:1]))
    return 0


def reload(options: Options) -> int:
    """1: taken over, but something of it was skipped."""
    skipped = told(load_main(options.file), "reload", 60.0, force="--force" in options.flags).get("skipped", ())
    sys.stderr.write("".join(f"{line}\n" for line in skipped))
    return 1 if skipped else 0


def clean(options: Options) -> int:
    """Remove all that ddpd made in the kernel, and the record of it."""
    config = load_config(options.file)
    store = Store(config.leases)
    store.acquire()
    now = clock_now()
    read = store.read()
    things: list[Unmarked] = []
    for _, record in read[0].values() if read else ():
        try:
            things += [made_of(record)] if record["kind"] == "made" else []
        except (AttributeError, LookupError, TypeError, ValueError) as why:
            log.warning("damaged file=%s text=%s (%s)", config.leases, json.dumps(record)[:200], why)
    made = {thing.id: thing for thing in things}
    kernel = Kernel(config.mark, devices_of(config))
    kernel.busybox = is_busybox()
    kernel.look()
    kernel.look_at_all(made)
    if read is None:
        made |= kernel.left_behind()
        kernel.look_at_all(made)
    kernel.installed |= kernel.strays(made)
    gone, _ = plan(kernel.installed, {}, kernel.installed)
    failed = kernel.remove(gone)
    if failed:                                                    # some may have gone with others
        kernel.look()
        kernel.look_at_all(made)
        failed = [failure for failure in failed if failure.thing.id in kernel.installed]
    if failed:
        raise Fatal(f"cannot remove: {'; '.join(f'{failure.line} ({failure.why})' for failure in failed)}")
    kept = store.save({key_of(thing.record()): None for thing in things}, now)
    if read and ("run",) in read[0]:
        kept &= store.save({("run",): read[0]["run",][1]}, now)   # a second batch blanks the lines of the first
    if things and not kept:
        raise Fatal(f"removed {len(gone)}, but {config.leases} cannot be written, and says that they are there")
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
    "check":     Command(check, "", "read the configuration; say what is wrong, and where"),
    "genkey":    Command(genkey, "", "print a new private key"),
    "pubkey":    Command(pubkey, "< KEY", "print the public key of a private key"),
    "introduce": Command(introduce, "[--wg]", "print the section that the other side has to paste (or a [Peer])"),
    "ask":       Command(ask, "[GRANTOR] [--json|--env|--release] [--wait SECONDS]",
                         "ask once, print what was granted, or give it back"),
    "status":    Command(status, "[--json]", "pools, leases, counters of the running daemon"),
    "show":      Command(show, "PEER|IF [--json]", "the looking glass: last ask and answer of one peer, and why"),
    "explain":   Command(explain, "PEER ASK [--json]", "what an ask would be answered, and which rule decides"),
    "leases":    Command(leases, "[PEER|ADDRESS|PREFIX] [--json]", "the leases granted, and to whom"),
    "revoke":    Command(revoke, "PEER [SLOT] [--undo]", "revoke a grantee's leases"),
    "metrics":   Command(metrics, "[FILE]", "counters and pools for Prometheus"),
    "renew":     Command(renew, "[GRANTOR]", "ask again now"),
    "release":   Command(release, "[GRANTOR] [--wait SECONDS]", "release leases, stay quiet until `renew`"),
    "reload":    Command(reload, "[--force]", "reread the configuration; leases stay"),
    "clean":     Command(clean, "", "without a daemon: remove all that ddpd made in the kernel"),
    "decode":    Command(decode_command, "HEX", "a datagram's parts, as far as they can be read"),
    "help":      Command(show_commands, "", "this list (also --help)"),
    "version":   Command(show_version, "", "the version (also --version)"),
}
FLAGS: Final = {"-h": "help", "--help": "help", "--version": "version"}
DEFECT: Final = 70                       # EX_SOFTWARE of sysexits.h


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
                options.wait_s = float(argument(whole(1, 3600), value))
        elif word in ("--json", "--env", "--release", "--force", "--undo", "--wg", "-v", "-h", "--help", "--version"):
            options.flags.add(word)
        elif word.startswith("-"):
            raise Fatal(f"no such option: {word} (--help lists them)")
        else:
            options.words.append(word)
    return options


def places_in(usage: str) -> list[str]:
    """The words of a usage that are no options: `PEER [SLOT] [--undo]`, but not `[--wait SECONDS]` or `< KEY`."""
    plain = usage.partition("<")[0].replace("[--wait SECONDS]", "")
    return [word for word in plain.split() if not word.startswith(("[-", "-"))]


def command_of(options: Options) -> Command:
    wanted = next((name for flag, name in FLAGS.items() if flag in options.flags), "run")
    name = options.words.pop(0) if options.words and wanted == "run" else wanted
    if name not in COMMANDS:
        raise Fatal(f"no such command: {name} (did you mean '{nearest(name, COMMANDS)}'? --help lists them)")
    command = COMMANDS[name]
    most = {"decode": inf, "explain": inf}.get(name, len(places_in(command.usage)))
    if len(options.words) > most:
        raise Fatal(f"{name} takes no '{options.words[-1]}' (usage: ddpd.py [-c FILE] {name} {command.usage})")
    return command


def main(argv: list[str]) -> int:
    """Exit codes: 0, what a command documents, 1 the system does not allow it, 2 the operator is wrong, 70 a defect."""
    try:
        options = parse_options(argv)
        return command_of(options).run(options)
    except (ConfigError, Fatal) as why:
        sys.stderr.write(f"ddpd: {why}\n")
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)              # the reader has had enough
        return 0
    except OSError as why:
        sys.stderr.write(f"ddpd: {f'{why.filename}: ' if why.filename else ''}{why.strerror or why}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001 - whatever it is, it is ours
        sys.excepthook(*sys.exc_info())
        return DEFECT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
