"""Neighbour discovery as frames (RFC 4861), composed and read without ddpd.

    Ethernet 14 | VLAN tag 4, or none | IPv6 40 | extension headers | type code checksum word target 24 | options

Every field can be made wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv6Address
from socket import AF_INET6, inet_pton
from typing import NamedTuple

SOLICITATION, ADVERTISEMENT = 135, 136
ROUTER, SOLICITED, OVERRIDE = 0x80000000, 0x40000000, 0x20000000
HOP_BY_HOP, FRAGMENT, ICMPV6, DESTINATION = 0, 44, 58, 60
SOURCE_MAC, TARGET_MAC = 1, 2
ASKER, PROXY = bytes.fromhex("020000000a01"), bytes.fromhex("020000000b02")      # MACs, where no other is said
EVERYBODY = bytes.fromhex("333300000001")
FRAGMENTED = (FRAGMENT, bytes(6))                                # an atomic one


def packed(address: str) -> bytes:
    return inet_pton(AF_INET6, address)


def group_of(target: str) -> str:
    """Its solicited-node multicast address."""
    return str(IPv6Address(packed("ff02::1:ff00:0")[:13] + packed(target)[13:]))


def group_mac(group: str) -> bytes:
    return b"\x33\x33" + packed(group)[12:]


def option(kind: int, value: bytes) -> bytes:
    """Padded with zeros to a multiple of eight."""
    size = -(-(2 + len(value)) // 8)
    return struct.pack("BB", kind, size) + value.ljust(8 * size - 2, b"\0")


def checksum(source: bytes, destination: bytes, header: int, message: bytes) -> int:
    """RFC 1071, word by word; the field itself has to be zero."""
    data = source + destination + struct.pack(">IxxxB", len(message), header) + message + bytes(len(message) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


class Frame(NamedTuple):
    """A whole frame; what is not said is as it has to be."""

    target: str
    source: str
    destination: str
    options: bytes = b""
    kind: int = SOLICITATION
    code: int = 0
    word: int = 0                        # flags of an advertisement, else reserved
    hops: int = 255
    off: int = 0                         # added to the checksum
    longer: int = 0                      # added to the payload length
    to: bytes = b""                      # MAC; default: that of the group, or PROXY
    mac: bytes = ASKER
    vlan: int | None = None
    ethertype: int = 0x86DD
    version: int = 6
    flow: int = 0                        # traffic class and flow label
    headers: tuple[tuple[int, bytes], ...] = ()                   # extension headers: kind, what follows its 2 bytes
    tail: bytes = b""                    # behind the packet
    cut: int | None = None               # only so many bytes

    @property
    def message(self) -> bytes:
        return struct.pack(">BBHI", self.kind, self.code, 0, self.word) + packed(self.target) + self.options

    def __bytes__(self) -> bytes:
        source, destination, message = packed(self.source), packed(self.destination), self.message
        total = (checksum(source, destination, ICMPV6, message) + self.off) & 0xFFFF
        message = message[:2] + struct.pack(">H", total) + message[4:]
        payload, first = message, ICMPV6
        for kind, value in reversed(self.headers):
            # How long a header is stands in its second byte, in eights beyond the first; a fragment's has none.
            room = -(-(2 + len(value)) // 8)
            payload = struct.pack("BB", first, room - 1) + value.ljust(8 * room - 2, b"\0") + payload
            first = kind
        to = self.to or (group_mac(self.destination) if destination[0] == 0xFF else PROXY)
        tag = b"" if self.vlan is None else struct.pack(">HH", 0x8100, self.vlan)
        head = struct.pack(">IHBB", self.version << 28 | self.flow, (len(payload) + self.longer) & 0xFFFF,
                           first, self.hops)
        ethernet = to + self.mac + tag + struct.pack(">H", self.ethertype)
        return (ethernet + head + source + destination + payload + self.tail)[: self.cut]



def solicitation(target: str, source: str = "fe80::a", destination: str = "", link: bytes | None = ASKER) -> Frame:
    """To the group of the target, if nothing else is said; link: the source's link-layer address."""
    options = b"" if link is None else option(SOURCE_MAC, link)
    return Frame(target, source, destination or group_of(target), options)


def duplicate_probe(target: str) -> Frame:
    """RFC 4862 5.4.2: from nobody, and so without an option."""
    return solicitation(target, "::", link=None)


def advertisement(target: str, source: str, destination: str, flags: int = SOLICITED,
                  link: bytes | None = PROXY) -> Frame:
    options = b"" if link is None else option(TARGET_MAC, link)
    return Frame(target, source, destination, options, kind=ADVERTISEMENT, word=flags, mac=PROXY,
                 to=b"" if destination.startswith("ff") else ASKER)


def repaired(frame: bytes) -> bytes:
    """With the right checksum, behind up to two headers of options; what is too short stays as it is."""
    header, at = frame[20] if len(frame) > 54 else 0, 54
    for _ in range(2):
        if header in (HOP_BY_HOP, DESTINATION) and len(frame) > at + 1:
            header, at = frame[at], at + 8 + 8 * frame[at + 1]
    end = 54 + int.from_bytes(frame[18:20], "big")
    if not at + 24 <= end <= len(frame):
        return frame
    message = frame[at : at + 2] + bytes(2) + frame[at + 4 : end]
    total = checksum(frame[22:38], frame[38:54], ICMPV6, message)
    return frame[: at + 2] + struct.pack(">H", total) + frame[at + 4 :]


class Read(NamedTuple):
    """What a valid frame says."""

    to: bytes
    mac: bytes
    source: str
    destination: str
    kind: int
    word: int
    target: str
    options: tuple[tuple[int, bytes], ...]


def read(frame: bytes) -> Read:
    """By the rules of RFC 4861 7.1 that hold for both kinds; AssertionError says which is broken."""
    assert frame[12:14] == b"\x86\xdd" and frame[14] >> 4 == 6, "not IPv6"
    length, header, hops = struct.unpack_from(">HBB", frame, 18)
    source, destination, message = frame[22:38], frame[38:54], frame[54 : 54 + length]
    assert header == ICMPV6 and hops == 255 and len(frame) == 54 + length >= 78, "header"
    kind, code, word = struct.unpack_from(">BBxxI", message)
    assert kind in (SOLICITATION, ADVERTISEMENT) and code == 0, "kind"
    assert checksum(source, destination, ICMPV6, message) == 0, "checksum"
    assert message[8] != 0xFF and source[0] != 0xFF, "multicast"
    assert kind == ADVERTISEMENT or not (word or (source == bytes(16) and len(message) > 24)), "from nobody"
    assert kind == SOLICITATION or not (destination[0] == 0xFF and word & SOLICITED), "solicited by nobody"
    options, at = list[tuple[int, bytes]](), 24
    while at < length:
        size = 8 * message[at + 1]
        assert size and at + size <= length, "options"
        options.append((message[at], message[at + 2 : at + size]))
        at += size
    return Read(frame[:6], frame[6:12], str(IPv6Address(source)), str(IPv6Address(destination)), kind, word,
                str(IPv6Address(message[8:24])), tuple(options))


def neighbours(frames: Iterable[bytes]) -> list[Read]:
    """The solicitations and advertisements among what a wire has carried."""
    return [read(frame) for frame in frames
            if frame[12:14] == b"\x86\xdd" and frame[20] == ICMPV6 and frame[54] in (SOLICITATION, ADVERTISEMENT)]
