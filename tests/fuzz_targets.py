"""What reads bytes or words of somebody else's: for each, what may come of it, and inputs to begin with.

A target raises what must not happen: an exception that is not promised, or an AssertionError, where something that
follows is wrong.  An input of several steps has SEPARATOR between them; where a step's first byte says what is done
with the rest, it is told there.
"""

from __future__ import annotations

import json
import random
import re
import socket
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, pairwise
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import ddpd
import frames
from ddpd import Drop, Now

SEPARATOR = b"\n%%\n"
STEPS = 24                               # of one input
HUB, BOOT, WALL = bytes(range(32)), 1000.0, 1_700_000_000.0
NAMES = ("alice", "bob", "carol", "exit")
SECRETS = {name: bytes([n]) * 32 for n, name in enumerate(NAMES, 1)}
KEYS = {name: ddpd.keypair(secret).public for name, secret in SECRETS.items()}
SHOWN = {name: ddpd.show_key(key) for name, key in KEYS.items()}
INFO = bytes(16) + (2).to_bytes(4, "little")
NEAR = ddpd.Path("2001:db8:e::2", 5000, 0, INFO)
PATHS = (NEAR, ddpd.Path("::ffff:192.0.2.7", 5001, 0, bytes(10) + b"\xff\xff\xc0\0\2\1" + INFO[16:]),
         ddpd.Path("fe80::7", 5002, 2, INFO), ddpd.Path("2001:db8:99::1", 5003, 0, b""),
         ddpd.Path("10.9.0.7", 970, 3, bytes(16) + (3).to_bytes(4, "little")))
LATER = (0.0, 0.5, 1.0, 3.0, 10.0, 60.0, 601.0, 1800.0, 3601.0, 7200.0, 90_000.0, 3_000_000.0)
LINKS = ddpd.Links(
    {1: "lo", 2: "eth0", 3: "wg0", 4: "br0"},
    tuple((at, ddpd.parse_interface(text)) for at, text in (
        (1, "::1/128"), (1, "127.0.0.1/8"), (2, "2001:db8:e::1/64"), (2, "fe80::b/64"), (2, "192.0.2.1/24"),
        (3, "10.9.0.1/24"), (4, "fe80::c/64"))),
    {1: 0x49, 2: 0x1043, 3: 0x10D1, 4: 0x1003}, macs={2: frames.PROXY, 4: bytes.fromhex("020000000c03")})
GRANTS = f"""[ddpd]
load = 3
[pool six]
prefix = 2001:db8:42::/48
give = /56-/64 /128
reserve = 2001:db8:42::/56
lifetime = 1h
dns = 2001:db8:42::53 192.0.2.53
search = example.net lan
mtu = 1400
[pool four]
prefix = 10.9.0.0/26
give = /30-/32
lifetime = 2h
[grantee alice]
key = {SHOWN["alice"]}
pools = six four
limit = 3
rate = 20/30s
[grantee bob]
key = {SHOWN["bob"]}
pools = six
pin = 2001:db8:43::/56
lengths = /56 /128
total = ::/54
[wireguard wg0]
pools = four six
limit = 2
endpoint = vpn.example.net:51820
"""
ASKS = f"""[grantor exit]
key = {SHOWN["exit"]}
address = 2001:db8:e::9 exit.example.net
ask = ::/56 on br0 br1=7
      0.0.0.0/32 on wg1
      7: ::/0
default = auto
rank = 1
[grantor other]
key = {SHOWN["carol"]}
address = 192.0.2.9
ask = 0.0.0.0/30 on br2
default = via 192.0.2.9
rank = nearest
hook_style = odhcp6c
[tunnel wg1]
grantor = exit
routes = 10.0.0.0/8
[pool below]
prefix = grantor exit
give = /64
lifetime = 1h
[grantee alice]
key = {SHOWN["alice"]}
pools = below
limit = 4
[ndp eth0]
proxy = leased
"""


@dataclass(frozen=True)
class Target:
    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: list[bytes]
    room: int = 14_000                   # bytes of its corpus, as written


TARGETS: dict[str, Target] = {}


def target(seeds: Callable[[], list[bytes]], words: Iterable[str | bytes] = (), room: int = 14_000,
           ) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        name = run.__name__.removeprefix("hear_")
        TARGETS[name] = Target(name, run, seeds, [word.encode() if isinstance(word, str) else word for word in words],
                               room)
        return run
    return register


@contextmanager
def quiet() -> Iterator[None]:
    """What is said of it is not looked at."""
    before, ddpd.log.write = ddpd.log.write, lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        ddpd.log.write = before  # type: ignore[method-assign]


def joined(*steps: bytes) -> bytes:
    return SEPARATOR.join(steps)


def steps_of(data: bytes) -> list[bytes]:
    return data.split(SEPARATOR)[:STEPS]


# ---- nodes, and what has to hold of them

@cache
def config_of(text: str) -> ddpd.Config:
    return ddpd.read_config(text, "f")


def node_of(text: str, now: Now, secret: bytes = HUB) -> ddpd.Node:
    config = config_of(text)
    node = ddpd.Node(replace(config, agreements=dict(config.agreements)), secret, "boot", random.Random(1).randbytes)
    node.linked(LINKS, now)
    return node


def whole_file(node: ddpd.Node, now: Now, clean: bool = True) -> list[str]:
    return b"".join(ddpd.LeaseFile().whole(node.records(clean, now))).decode().split("\n")


def told(node: ddpd.Node, now: Now) -> None:
    """What it says of itself is JSON and text; what hooks, programs and files are told is of letters only."""
    said = ddpd.status_of(node, now, 10)
    json.dumps(said, allow_nan=False)
    ddpd.status_text(said, colours=True)
    ddpd.metrics_text(said)
    ddpd.status_file_text(node, now)
    for name in [*node.grantees, *(peer.agreement.name for peer in node.grantor.peers.values()), *node.proxies,
                 *node.grantor.guards.sights]:
        with suppress(ValueError):                                # of a name that is no longer known
            shown = ddpd.show_of(node, name, now)
            json.dumps(shown, allow_nan=False)
            list(ddpd.nested_text(shown))
    for grantee in node.grantees.values():
        for event, calls in zip(("bound", "lost"), ddpd.HOOK_CALLS.values(), strict=True):
            for words, environment in calls(grantee, event, None, now):
                assert not any("\0" in text for text in (*words, *environment.values())), "NUL for a hook"
                endpoint = environment.get("DDPD_WG_ENDPOINT", "")
                assert PLAIN.issuperset(endpoint), f"what a shell would read: {endpoint}"
    for kind, make in ddpd.HANDED_TEXTS.items():
        text = make(node.grantees.values(), [("br0", ddpd.parse_prefix("2001:db8:1:2::/64"))], now)
        assert all(letter.isprintable() or letter == "\n" for letter in text), f"{kind}: {text!r}"
        readable_by_radvd(text if kind == "radvd" else "")


PLAIN = ddpd.DEVICE_LETTERS | frozenset("[]:%")


def readable_by_radvd(text: str) -> None:
    """It takes what looks like a number for one, and then nothing of the file."""
    for names in re.findall("DNSSL ([^{]*)", text):
        assert not any(name.replace(".", "").isdigit() for name in names.split()), f"a name that is a number: {names}"
    for preferred, valid in re.findall(r"AdvPreferredLifetime (\d+); AdvValidLifetime (\d+)", text):
        assert int(preferred) <= int(valid), f"preferred for longer than valid: {preferred} of {valid} s"


def sound(node: ddpd.Node, now: Now, tells: bool = True) -> None:
    """What it writes down is read again, and says the same; no two leases overlap; see `told`."""
    if tells:
        told(node, now)
    living = sorted(lease.prefix for peer in node.grantor.peers.values() for lease in peer.living())
    assert not any(one.overlaps(other) for one, other in pairwise(living)), "leases overlap"
    for thing in node.wanted.things.values():
        words_ = [thing.add_line(221, now), *thing.delete_lines(221)]
        assert all(line.isprintable() and line.isascii() for line in words_), f"{words_}"
        for valid, preferred in re.findall(r"valid_lft (\d+) preferred_lft (\w+)", words_[0]):
            assert preferred.isdigit() and int(preferred) <= int(valid), f"preferred for longer than valid: {words_[0]}"
    lines = whole_file(node, now)
    found, damage = ddpd.parse_lease_file(lines)
    assert not damage, f"what was written is damaged: {damage[0].text[:300]}"
    again = ddpd.Node(node.config, node.secret, "boot", random.Random(2).randbytes)
    damage = again.restore([record for _, record in found.values()], now)
    assert not damage, f"what was written is not read: {damage[0].text[:300]}"
    there = sorted(lease.prefix for peer in again.grantor.peers.values() for lease in peer.living())
    assert there == living, f"{there} and not {living}"


def pass_time(node: ddpd.Node, now: Now) -> None:
    """Until nothing is due any more; that has to come."""
    for _ in range(60):
        if node.deadline > now.boot:
            return
        node.on_timer(now)
    raise AssertionError(f"its deadline {node.deadline} stays before {now.boot}")


# ---- messages

ASK = ddpd.Ask(stamp=1, run=b"run-----", source=ddpd.parse_host("2001:db8:e::2"), hostname="r1.lan", wants=(
    ddpd.Want(0, ddpd.parse_prefix("::/56")), ddpd.Want(1, ddpd.parse_prefix("2001:db8:42:1200::/56")),
    ddpd.Want(2, ddpd.parse_prefix("10.9.0.7/32"), bytes(20))), releases=(9, 255))
P56, P128 = ddpd.parse_prefix("2001:db8:77:1200::/56"), ddpd.parse_prefix("2001:db8:77::1")
ANSWER = ddpd.Answer(
    stamp=1, status=0, version=1,
    grants=(ddpd.Grant(0, P56, True, 1800, 3600, bytes(20)),
            ddpd.Grant(1, ddpd.parse_prefix("10.77.0.7/32"), True, 60, 60, bytes(20)),
            ddpd.Grant(7, P128, True, 0, ddpd.FOREVER, bytes(20)), ddpd.Grant(0, P56, False, 0, 60, bytes(20))),
    refusals=(ddpd.Refusal(3, 3, 60, "no /56 is free"),), times=(900, ddpd.FOREVER), need=640, unsupported=7, why="so",
    dns=(ddpd.parse_host("2001:db8::53"), ddpd.parse_host("192.0.2.53")), search=("lan", "example.net"),
    ntp=(ddpd.parse_host("2001:db8::123"),), mtu=1400, wg_key=bytes(range(32)), wg_endpoint="192.0.2.33:51820",
    wg_allowed=(ddpd.parse_prefix("::/0"), ddpd.parse_prefix("10.0.0.0/8")), wg_keepalive=25)


def plain_answers() -> list[ddpd.Answer]:
    least = ddpd.Answer(stamp=1, status=0, version=1)
    named, scoped = "vpn.example.net:51820", "[fe80::1%eth0]:51820"
    return [ANSWER, replace(ANSWER, need=None, wg_endpoint=named), replace(ANSWER, need=None),
            replace(ANSWER, need=None, wg_endpoint=scoped), least, replace(least, status=1),
            replace(least, status=2, why="a slot is named twice"), replace(least, status=3, unsupported=9),
            replace(least, refusals=tuple(ddpd.Refusal(slot, n, n, "x" * n) for slot, n in ((0, 1), (1, 9), (7, 6)))),
            replace(least, grants=ANSWER.grants[:1]), replace(least, grants=ANSWER.grants[:1], times=(1, 2))]


def message_seeds() -> list[bytes]:
    return [ddpd.encode(message) for message in (ASK, ddpd.Nudge(), *plain_answers())] + [ddpd.encode(ASK) + bytes(40)]


TLVS = [bytes((number, size)) for number, size in (
    (1, 8), (2, 8), (3, 4), (3, 16), (5, 3), (5, 19), (5, 39), (6, 1), (16, 1), (17, 1), (18, 48), (18, 36), (19, 6),
    (20, 8),
    (22, 2), (23, 1), (32, 16), (33, 3), (35, 2), (40, 32), (42, 18), (42, 6), (43, 2))]


@target(message_seeds, TLVS)
def hear_message(data: bytes) -> None:
    try:
        message = ddpd.decode(data)
    except Drop:
        return
    again = ddpd.decode(ddpd.encode(message))
    assert type(again) is type(message)
    with suppress(Drop):                                          # the padding that is put to it may end a cut TLV
        json.dumps(ddpd.message_shown(data.rstrip(b"\0")), allow_nan=False)


# ---- a grantor's end of sessions

class Grantee:
    """Somebody who asks the node: a handshake, and what is said in it, as it is."""

    def __init__(self, node: ddpd.Node, name: str) -> None:
        self.node = node
        self.rand = random.Random(name).randbytes
        self.end = ddpd.Initiator(ddpd.keypair(SECRETS[name]), node.s.public, self.rand)

    def said(self, plain: bytes, sealed: bool, path: ddpd.Path, now: Now) -> list[ddpd.Effect]:
        room = max(0, ddpd.MAX_DATAGRAM - ddpd.ASK_OVERHEAD)
        if sealed and self.end.session is not None:
            datagram = self.end.session.seal(self.end.sized(plain[:room], ddpd.SHORTEST["sealed"]))
        else:
            datagram = self.end.first(plain[:room], "here there", now)
        effects = self.node.received(datagram, path, now)
        for effect in effects:
            if isinstance(effect, ddpd.Send) and effect.path == path:
                self.hear(effect.datagram, len(datagram), now)
        return effects

    def hear(self, datagram: bytes, most: int, now: Now) -> None:
        kind = ddpd.kind_of(datagram)
        if kind == "cookie":
            self.end.take_cookie(datagram, now)
            return
        assert len(datagram) <= most, "the answer is longer than the ask"
        plain = self.end.open_answer(datagram, now) if kind == "answer" else self.end.open_sealed(datagram, now)
        assert isinstance(ddpd.decode(plain), ddpd.Answer)


def stamped(plain: bytes, stamp: int) -> bytes:
    """With this stamp, if there is one in it."""
    at = 1
    while at + 2 <= len(plain) and plain[at]:
        if plain[at : at + 2] == b"\1\10" and at + 10 <= len(plain):
            return plain[: at + 2] + stamp.to_bytes(8, "big") + plain[at + 10 :]
        at += 2 + plain[at + 1]
    return plain


def ask_seeds() -> list[bytes]:
    plain, least = ddpd.encode(ASK), ddpd.encode(ddpd.Ask(stamp=1, run=b"run-----"))
    one = ddpd.encode(ddpd.Ask(stamp=1, run=b"run-----", source=ASK.source, wants=ASK.wants[:1]))
    four = ddpd.encode(ddpd.Ask(stamp=1, run=b"run-----", wants=(ddpd.Want(1, ddpd.parse_prefix("0.0.0.0/32")),)))
    gone = ddpd.encode(ddpd.Ask(stamp=1, run=b"run2----", releases=(0, 1, 2)))
    many = ddpd.encode(ddpd.Ask(stamp=1, run=b"run-----", wants=tuple(
        ddpd.Want(n, ddpd.parse_prefix("::/64")) for n in range(16))))
    return [joined(b"\0\x11" + plain, b"\0\x10" + plain, b"\x18\x10" + plain),
            joined(b"\0\x11" + one, b"\0\x10" + gone),
            joined(b"\0\x31" + plain, b"\1\x30" + one, b"\x28\x31" + plain), b"\2\x11" + four,
            joined(b"\0\x11" + many, b"\x19\x11" + least, b"\x30\x11" + ddpd.encode(ddpd.Nudge())),
            joined(b"\0\1" + one, b"\0\1" + one, b"\0\x11" + one, b"\0\x51" + gone)]


@target(ask_seeds, TLVS)
def hear_ask(data: bytes) -> None:
    """A step: path (3 bits) and time; 0x01 a handshake, 0x10 the next stamp, 0x20 bob, 0x40 revoke, 0x80 disk full."""
    boot = BOOT
    node = node_of(GRANTS, Now(boot, WALL))
    node.start(Now(boot, WALL))
    node.handle_peers("wg0", ddpd.WgState(KEYS["exit"], 51820, {KEYS["carol"]: (ddpd.parse_prefix("10.9.0.40/30"),)}),
                   Now(boot, WALL))
    peers = {name: Grantee(node, name) for name in ("alice", "bob", "carol")}
    for n, step in enumerate(steps_of(data), 1):
        if len(step) < 2:
            continue
        boot += LATER[step[0] >> 3 & 15] if step[0] >> 3 & 15 < len(LATER) else 0.0
        now = Now(boot, WALL + boot - BOOT)
        pass_time(node, now)
        who = "carol" if step[1] & 0x60 == 0x60 else "bob" if step[1] & 0x20 else "alice"
        if step[1] & 0x60 == 0x40 and (peer := node.grantor.peers.get(KEYS[who])):
            (node.revoke if n % 2 else node.forgive)(peer, None, now)
        plain = stamped(step[2:], int(now.wall * 1e6) + n) if step[1] & 0x10 else step[2:]
        try:
            peers[who].said(plain, not step[1] & 1, PATHS[(step[0] & 7) % len(PATHS)], now)
        except Drop:
            continue
        if step[1] & 0x80:
            node.grantor.unsaved()
            node.grantor.disk_full = n % 2 == 0
        else:
            node.grantor.unwritten.clear()
    sound(node, Now(boot, WALL + boot - BOOT))
    late = Now(boot + 1e8, WALL + 1e8)
    pass_time(node, late)
    sound(node, late)


# ---- a grantee's end of sessions

class Grantor:
    """Somebody who is asked, and says whatever he is told to say."""

    def __init__(self, name: str, secret: bytes) -> None:
        self.name = name
        self.end = ddpd.Responder(ddpd.keypair(secret), 10**6, random.Random(name).randbytes)
        self.session: ddpd.Session | None = None
        self.stamp = 0

    def answered(self, node: ddpd.Node, plain: bytes, how: int, now: Now) -> list[ddpd.Effect]:
        """how: 1: as it comes, without being asked first; 2: with the stamp that it has."""
        if how & 1 or self.session is None:
            asked = node.compose(self.name, "2001:db8:e::1", now)
            self.hear(asked, now)
        plain = (plain if how & 2 else stamped(plain, self.stamp))[: ddpd.MAX_DATAGRAM - ddpd.ASK_OVERHEAD]
        if self.pending is not None:
            datagram, self.pending = self.pending(plain), None
        else:
            assert self.session is not None
            datagram = self.session.seal(plain)
        return node.received(datagram, PATHS[0], now, self.name)

    pending: Callable[[bytes], bytes] | None = None

    def hear(self, datagram: bytes, now: Now) -> None:
        if ddpd.kind_of(datagram) == "ask":
            peer = ddpd.Peer(b"", ddpd.NOBODY)
            _, handshake, plain = self.end.open_ask(datagram, lambda _: peer)

            def answer(said: bytes) -> bytes:
                reply = self.end.answer(datagram, handshake, said)
                self.session = ddpd.Session(handshake, now.boot, peer).turned()
                return reply
            self.pending = answer
        else:
            assert self.session is not None
            plain = self.session.open(datagram)
        message = ddpd.decode(plain)
        assert isinstance(message, ddpd.Ask) and len(datagram) <= ddpd.MAX_DATAGRAM
        assert len(message.wants) + len(message.releases) <= ddpd.MAX_SLOTS
        self.stamp = message.stamp


def answer_seeds() -> list[bytes]:
    said = [ddpd.encode(answer) for answer in plain_answers()]
    nudge = ddpd.encode(ddpd.Nudge()) + bytes(91)
    return [joined(b"\0\1" + said[2], b"\x38\1" + said[2], b"\x10\0" + nudge, b"\x60\1" + said[6]),
            joined(b"\0\1" + said[1], b"\x88\1" + said[9], b"\x18\1" + said[8]), *(b"\0\1" + plain for plain in said),
            joined(b"\0\5" + said[10], b"\0\1" + said[2], b"\x38\1" + said[3]),
            joined(b"\0\x11" + said[2], b"\0\x21" + said[2], b"\x08\1" + said[2]),
            joined(b"\0\1" + said[2], b"\x40\5" + said[2], b"\x48\1" + said[4], b"\x50\1" + said[5])]


@target(answer_seeds, TLVS)
def hear_answer(data: bytes) -> None:
    """A step: time; 1 asked anew, 2 the stamp as it is, 4 the other grantor, 0x10 release before, 0x20 renew."""
    boot = BOOT
    node = node_of(ASKS, Now(boot, WALL))
    node.start(Now(boot, WALL))
    gateways = (ddpd.Gateway(0, 2, ddpd.Reach("fe80::1", "eth0"), 6),
                ddpd.Gateway(0, 2, ddpd.Reach("192.0.2.254", "eth0"), 4))
    for name, host, address in (("exit", "2001:db8:e::9", "2001:db8:e::9"), ("other", "192.0.2.9", "::ffff:192.0.2.9")):
        node.resolved(name, host, (ddpd.Path(address, 0),), Now(boot, WALL))
    grantors = {"exit": Grantor("exit", SECRETS["exit"]), "other": Grantor("other", SECRETS["carol"])}
    for step in steps_of(data):
        if len(step) < 2:
            continue
        boot += LATER[step[0] >> 3 & 15] if step[0] >> 3 & 15 < len(LATER) else 0.0
        now = Now(boot, WALL + boot - BOOT)
        way = ddpd.Way(ddpd.Reach("fe80::1", "eth0"), "2001:db8:e::1", True)
        node.routed(dict.fromkeys(node.aims(), way), gateways, bool(step[0] & 1), now)
        pass_time(node, now)
        name = "other" if step[1] & 4 else "exit"
        for bit, event in ((0x10, ddpd.Event.RELEASE), (0x20, ddpd.Event.RENEW)):
            if step[1] & bit:
                node.operate(event, name, now)
        with suppress(Drop):
            effects = grantors[name].answered(node, step[2:], step[1], now)
            for effect in effects:
                if isinstance(effect, ddpd.Lookup):
                    node.resolved(effect.grantor, effect.host, PATHS[2:3], now)
    now = Now(boot, WALL + boot - BOOT)
    sound(node, now)
    pass_time(node, now)
    late = Now(boot + 1e8, WALL + 1e8)
    pass_time(node, late)
    sound(node, late)


# ---- datagrams

def talk() -> tuple[ddpd.Node, ddpd.Node, list[bytes]]:
    """Two nodes that have said something to each other, always the same."""
    now = Now(BOOT, WALL)
    hub = node_of(GRANTS.replace("load = 3", "load = 2"), now)
    text = ASKS.replace(SHOWN["alice"], SHOWN["bob"]).replace(SHOWN["exit"], ddpd.show_key(hub.s.public))
    spoke = node_of(text, now, SECRETS["alice"])
    for node in (hub, spoke):
        node.start(now)
    spoke.resolved("exit", "2001:db8:e::9", (ddpd.Path("2001:db8:e::9", 0),), now)
    said = []
    for _ in range(5):
        asked = spoke.compose("exit", "2001:db8:e::2", now)
        said.append(asked)
        for effect in hub.received(asked, NEAR, now):
            if isinstance(effect, ddpd.Send):
                said.append(effect.datagram)
                if len(said) < 9:
                    with suppress(Drop):
                        spoke.received(effect.datagram, NEAR, now, "exit")
        now = Now(now.boot + 0.1, now.wall + 0.1)
        if len(said) == 6:
            spoke.initiators["exit"].session = None
    said.append(spoke.compose("exit", "2001:db8:e::2", now))
    return hub, spoke, said


def datagram_seeds() -> list[bytes]:
    said = talk()[2]
    all_of_it = joined(*(b"\0" + datagram for datagram in said))
    return [all_of_it, *(bytes((n,)) + datagram for datagram in said for n in range(2))]


@target(datagram_seeds, [*ddpd.NAMES, bytes(16)], room=18_000)
def hear_datagram(data: bytes) -> None:
    """A step: 1: to who asks; time."""
    hub, spoke, _ = talk()
    boot = BOOT + 1
    for step in steps_of(data):
        boot += LATER[(step[0] if step else 0) >> 4 & 7]
        now = Now(boot, WALL + boot - BOOT)
        for node, name in ((hub, ""), (spoke, "exit")):
            if step and step[0] & 1 == bool(name):
                with suppress(Drop):
                    node.received(step[1:], NEAR, now, name)
    now = Now(boot + 1, WALL + boot + 1 - BOOT)
    for node in (hub, spoke):
        pass_time(node, now)
    with suppress(Drop):                                          # a cookie may be wanted: nothing else has to hold
        for effect in hub.received(spoke.compose("exit", "2001:db8:e::2", now), NEAR, now):
            if isinstance(effect, ddpd.Send):
                spoke.received(effect.datagram, NEAR, now, "exit")
    sound(hub, now)
    sound(spoke, now)


# ---- neighbours

NDP = """[pool home]
prefix = 2001:db8:42::/48
give = /56-/128
lifetime = 1h
[ndp eth0]
proxy = leased
  static 2001:db8:5::/64
  auto 2001:db8:6::/64
  iface 2001:db8:1::/64 br0
  never 2001:db8:42:200::/56
autowire = yes
deny = 2001:db8:3::/64
source = interface
"""
TARGET = "2001:db8:42:100::7"


def frame_seeds() -> list[bytes]:
    inside = "2001:db8:1::7"
    heard = [frames.solicitation(TARGET), frames.duplicate_probe(TARGET),
             frames.solicitation("2001:db8:5::1", "2001:db8:e::a"),
             frames.solicitation("2001:db8:6::1"), frames.solicitation(inside),
             frames.solicitation(TARGET, destination="fe80::b"),
             frames.solicitation(TARGET)._replace(headers=((0, b"\1\4\0\0\0\0"),)),
             frames.solicitation(TARGET)._replace(headers=((60, bytes(14)),)),
             frames.solicitation(TARGET)._replace(
                 options=frames.option(1, frames.ASKER) + frames.option(14, b"nonce6"))]
    answer = b"\1" + bytes(frames.advertisement(inside, inside, "fe80::c"))
    return [b"\0" + bytes(frame) for frame in heard] + [
        joined(b"\0" + bytes(heard[0]), b"\0" + bytes(frames.solicitation("2001:db8:42:100::8")),
               b"\0" + bytes(heard[2])),
        joined(b"\0" + bytes(heard[4]), answer, b"\x10" + bytes(heard[4]), b"\x80" + bytes(heard[4]), answer)]


def fate(proxy: ddpd.Proxy, frame: bytes, now: float) -> object:
    try:
        return proxy.hear(frame, now)
    except Drop as why:
        return str(why)


@target(frame_seeds, [b"\x86\xdd", b"\x3a\xff", frames.PROXY, bytes(16)])
def hear_frame(data: bytes) -> None:
    """A step: 1: from inside; 2: the checksum as it is; time."""
    def fresh() -> ddpd.Proxy:
        node = node_of(NDP, Now(BOOT, WALL))
        for text in ("2001:db8:42:100::/56", "2001:db8:42:300::7"):
            node.grantor.stock.add(ddpd.Lease(b"", 0, ddpd.parse_prefix(text), ddpd.LeaseState.ACTIVE, 3600.0, inf))
        node.place_proxies()
        return node.proxies["eth0"]
    proxy, at = fresh(), BOOT
    for step in steps_of(data):
        how = step[0] if step else 0
        at += LATER[how >> 4 & 7]
        frame = step[1:] if how & 2 else frames.repaired(step[1:])
        proxy.on_timer(at)
        ddpd.frame_shown(frame)
        if how & 1:
            with suppress(Drop):
                said, _ = proxy.answered_inside(frame, "br0", at)
                for one in said:
                    frames.read(one)
            continue
        found = fate(proxy, frame, at)
        if isinstance(found, bytes):
            frames.read(found)
        proxy.count("answered" if isinstance(found, bytes) else str(found)[:20], frame, at)
        if isinstance(found, ddpd.Seek):
            with suppress(Drop):
                frames.read(proxy.led(frame, found.heard, 4, at))
        alone = fate(fresh(), frame, at)                          # who knows nothing of frames before says the same
        if isinstance(found, bytes) and not isinstance(alone, ddpd.Probe):
            assert found == alone, f"{found!r} {alone!r}"
        assert found is None or isinstance(found, bytes) or type(found) is type(alone), f"{found!r} {alone!r}"
    ddpd.proxy_shown(proxy, {}, Now(at, WALL))


# ---- the kernel

def netlink(kind: int, body: bytes) -> bytes:
    return (ddpd.NLMSG.pack(ddpd.NLMSG.size + len(body), kind, 0, 1, 0) + body).ljust(
        ddpd.NLMSG.size + len(body) + 3 & ~3, b"\0")


def netlink_seeds() -> list[bytes]:
    def u32(n: int) -> bytes:
        return n.to_bytes(4, "little")
    put, p6, gw6 = ddpd.attribute, ddpd.parse_prefix("2001:db8:42::/56").packed, ddpd.parse_host("fe80::1").packed
    link = bytes(2) + b"\1\0" + u32(2) + u32(0x1043) + bytes(4)
    name = put(3, b"eth0\0") + put(1, frames.PROXY) + put(52 | 0x8000, put(53, b"wan\0"))
    address = bytes((10, 64, 0x80, 0)) + u32(2)
    marked = put(6, u32(22100)) + put(15, u32(254)) + put(4, u32(2))
    hops = struct.pack("=HBBI", 28, 0, 0, 2) + put(5, gw6) + struct.pack("=HBBI", 16, 0, 0, 3) + put(5, b"\xc0\0\2\1")
    return [netlink(16, link + name), netlink(20, address + put(1, gw6) + put(6, bytes(16))),
            netlink(20, bytes((2, 24, 0x80, 0)) + u32(3) + put(1, b"\x0a\0\0\2") + put(2, b"\x0a\0\0\1")),
            netlink(24, bytes((10, 56, 0, 0, 254, 221, 0, 1)) + bytes(4) + put(1, p6) + marked + put(5, gw6)
                    + put(8, put(2, u32(1400))) + put(7, gw6)),
            netlink(24, bytes((10, 0, 56, 0, 254, 221, 0, 1)) + bytes(4) + put(2, p6) + marked),
            netlink(24, bytes((10, 0, 0, 0, 254, 3, 0, 1)) + bytes(4) + put(9, hops) + put(6, u32(7))),
            netlink(24, bytes((2, 0, 0, 0, 254, 3, 0, 1)) + bytes(4) + put(18, b"\x0a\0" + gw6) + put(4, u32(2))),
            netlink(24, bytes((2, 24, 0, 0, 254, 3, 0, 1)) + bytes(4) + put(1, b"\xc0\0\2\0") + put(4, u32(2))),
            netlink(25, bytes((2, 24, 0, 0, 254, 221, 0, 7)) + bytes(4) + put(1, b"\xc0\0\2\0") + marked),
            netlink(28, bytes((10, 0, 0, 0)) + u32(2) + bytes((0x80, 0, 8, 0)) + put(1, gw6)),
            netlink(32, bytes((10, 0, 56, 0, 254, 0, 0, 1)) + bytes(4) + put(2, p6) + put(6, u32(22101))
                    + put(15, u32(720))),
            netlink(33, bytes((2, 0, 24, 0, 254, 0, 0, 1)) + bytes(4) + put(2, b"\x0a\0\0\0") + put(6, u32(22101))),
            netlink(32, bytes((2, 0, 0, 0, 254, 0, 0, 1)) + bytes(4) + put(6, u32(22100)))]


# Of each type, so many bytes stand before its attributes.
HEADERS = {16: 16, 17: 16, 20: 8, 21: 8, 24: 12, 25: 12, 28: 12, 29: 12, 32: 12, 33: 12}
SIZES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}


def as_kernel(kind: int, body: bytes) -> bool:
    """Is it what a kernel may say: whole headers, addresses of their family's size, no field that is cut?

    What it promises is not looked at twice; all else is.
    """
    if len(body) < HEADERS.get(kind, 0):
        return False
    at, size = HEADERS.get(kind, 0), SIZES.get(body[0], 16) if body else 16
    group = kind & ~1
    found = dict(ddpd.each_attribute(body, at)) if group in (16, 20, 24, 28, 32) else {}
    if group == 24:
        hops = list(ddpd.next_hops(dict(found))) if found else []
        via = all(len(hop.get(5, bytes(size))) == size and len(hop.get(18, bytes(18))) in (6, 18)
                  for hop in (found, *hops))
        bits = 8 * size
        masked = all(len(found.get(n, bytes(size))) == size and length <= bits
                     and not int.from_bytes(found.get(n, bytes(size)), "big") & (1 << bits - length) - 1
                     for n, length in ((1, body[1]), (2, body[2])))
        is_whole = (2 in found or not body[2]) and len(found.get(7, bytes(size))) == size
        return body[0] in SIZES and via and masked and is_whole
    if group == 32:
        return body[0] in SIZES and len(found.get(2, bytes(size))) == size and body[2] <= 8 * size
    if group == 28:
        return len(found.get(1, bytes(16))) == 16
    if group == 20:
        return body[1] <= 8 * size and all(len(found.get(n, bytes(size))) == size for n in (1, 2))
    return True


@target(netlink_seeds, [struct.pack("=HH", size, kind) for size,
                        kind in ((8, 4), (20, 5), (20, 1), (8, 15), (8, 6), (20, 2))])
def hear_netlink(data: bytes) -> None:
    replies = [(kind, body) for kind, body in ddpd.netlink_messages(data) if as_kernel(kind, body)]
    links = ddpd.links_of(replies, ("wan",))
    names = {**LINKS.names, **links.names}
    ddpd.gateways_of(replies, 221, names)
    for kind, body in replies:
        ddpd.gone_of(kind, body, 221, names)
        if kind & ~1 == ddpd.RTM["route"]:
            ddpd.route_of(body, 221, names)
            ddpd.route_of_others(body, 221, names)
            ddpd.way_of(body, replace(LINKS, names=names))
        elif kind & ~1 == ddpd.RTM["rule"]:
            ddpd.rule_of(body, 221)
        elif kind & ~1 == ddpd.RTM["neighbour"]:
            ddpd.neighbour_of(body, names)
    now = Now(BOOT, WALL)
    for text in (GRANTS, ASKS, NDP):
        node = node_of(text, now)
        node.start(now)
        node.linked(links, now)
        node.routed(dict.fromkeys(node.aims(), ddpd.Way(ddpd.Reach("", "eth0"), "::", True)),
                    ddpd.gateways_of(replies, 221, names), has_changed=True, now=now)
        ddpd.left_behind([], links, ())
        sound(node, now)


# ---- WireGuard

def wg_seeds() -> list[bytes]:
    none = f"{SHOWN['exit']}\n51820".encode()
    rows = f"{SHOWN['carol']}\t10.9.0.40/30 2001:db8:42:500::/64\n{SHOWN['alice']}\t(none)\n".encode()
    return [joined(none, rows), joined(b"(none)\n0", b""),
            joined(none, rows, none, rows[:50], none, rows.replace(b"40", b"0"))]


@target(wg_seeds, [*SHOWN.values(), "(none)", "\t", "10.9.0.0/24", "::/0", "0.0.0.0/0", "10.9.0.1/32"])
def hear_wg(data: bytes) -> None:
    """Two steps a look: key and port, a line each; allowed IPs."""
    boot, steps = BOOT, steps_of(data)
    node, tables, said = node_of(GRANTS, Now(boot, WALL)), ddpd.WgTables(), dict[str, str]()
    node.start(Now(boot, WALL))
    peers = {name: Grantee(node, name) for name in ("alice", "carol")}
    before, ddpd.wg = ddpd.wg, lambda *words, **_: said[words[2]]
    try:
        for n in range(0, len(steps), 2):
            key, _, port = steps[n].decode("utf-8", "replace").partition("\n")
            allowed = steps[n + 1].decode("utf-8", "replace") if n + 1 < len(steps) else ""
            said |= {"public-key": key, "listen-port": port, "allowed-ips": allowed}
            with suppress(ValueError):
                ddpd.allowed_of(allowed)
            boot += 4.0
            now = Now(boot, WALL + boot - BOOT)
            node.handle_peers("wg0", tables.look("wg0", is_there=True), now)
            for name, peer in peers.items():
                plain = stamped(ddpd.encode(replace(ASK, wants=ASK.wants[:2])), int(now.wall * 1e6))
                with suppress(Drop):
                    peer.said(plain, n > 0, PATHS[4 if name == "carol" else 0], now)
            tables.change("wg0", [])
            pass_time(node, now)
            sound(node, now, tells=n + 2 >= len(steps))
    finally:
        ddpd.wg = before


# ---- wg-dynamic

def door_seeds() -> list[bytes]:
    return [b"request_ip=1\nip=10.9.0.7/32\nip=::", b"request_ip=1\nipv4=\nipv6=2001:db8:42::7/128",
            joined(b"request_ip=1", b"request_ip=1\nip=10.9.0.1\nip=::", b"request_ip=1\nipv4=0.0.0.0"),
            joined(b"request_ip=1\nip=0.0.0.0\n\n", b"request_ip=1\nerrno=0\n\nrequest_ip=1\n\n", b"request_ip=2\n\n")]


@target(door_seeds, ["request_ip=1", "ip=", "ipv4=", "ipv6=", "0.0.0.0", "::", "/32", "/128", "\n\n", "10.9.0.2"])
def hear_door(data: bytes) -> None:
    now = Now(BOOT, WALL)
    node = node_of(GRANTS, now)
    node.start(now)
    foreign: dict[bytes, tuple[ddpd.Prefix, ...]] = {KEYS["carol"]: (ddpd.parse_prefix("10.9.0.40/30"),)}
    node.handle_peers("wg0", ddpd.WgState(KEYS["exit"], 51820, foreign), now)
    peer = node.grantor.peer_of(KEYS["carol"])
    assert peer is not None
    heard = SimpleNamespace(sock=None, heard=b"", unsent=b"", ends=False, until=0.0)
    door: Any = SimpleNamespace(callers=[heard])
    for n, step in enumerate(steps_of(data)):
        now = Now(BOOT + 10 * n, WALL + 10 * n)
        heard.sock = SimpleNamespace(recv=lambda _, step=step: step)
        message = ddpd.Door.hear(door, cast(Any, heard)) if b"\n\n" in step else step
        if message is None:
            continue
        reply, _ = ddpd.through_door(node, peer, message, PATHS[4], now)
        lines = reply.decode("ascii").split("\n")
        assert lines[0] == "request_ip=1" and lines[-2:] == ["", ""] and all("=" in line for line in lines[:-2]), reply
        assert any(line.startswith("errno=") for line in lines), reply
        pass_time(node, now)
        sound(node, now, tells=False)


# ---- orders

def control_seeds() -> list[bytes]:
    orders: list[dict[str, Any]] = [
        {"do": "status", "rows": 3}, {"do": "leases"}, {"do": "leases", "what": "2001:db8:42::/48"},
        {"do": "leases", "what": "alice"},
        {"do": "show", "what": "alice"}, {"do": "show", "what": "exit"}, {"do": "show", "what": SHOWN["alice"][:8]},
        {"do": "explain", "what": "alice", "ask": "0: ::/56"}, {"do": "revoke", "what": "alice", "slot": 0},
        {"do": "revoke", "what": "alice", "undo": True}, {"do": "reload", "force": True},
        {"do": "ask", "grantor": "exit", "wait": 3}, {"do": "renew"}, {"do": "release", "grantor": "exit"}]
    written = [json.dumps(one).encode() + b"\n" for one in orders]
    return [*written, joined(*written)]


class Silence:
    """A daemon without a world."""

    def __init__(self, node: ddpd.Node) -> None:
        self.node, self.reloaders, self.ORDERS = node, list[Any](), ddpd.Daemon.ORDERS

    def perform(self, _events: object) -> set[ddpd.Key]:
        return set()

    def reload(self, forced: bool) -> None:
        assert isinstance(forced, bool)

    def obey(self, control: ddpd.Control, order: Any, now: Now) -> Any:
        return ddpd.Daemon.handle_order(cast(Any, self), control, order, now)


@target(control_seeds, ["\"do\"", "\"what\"", "\"rows\"", "\"slot\"", "\"wait\"", "\"undo\"", "\"ask\"", "\"grantor\"",
                        "[", "{"])
def hear_control(data: bytes) -> None:
    boot = BOOT
    node = node_of(GRANTS.replace("[ddpd]\nload = 3\n", "") + ASKS.replace("[grantee alice]", "[grantee anna]").replace(
        SHOWN["alice"], ddpd.show_key(bytes(range(1, 33)))), Now(boot, WALL))
    node.start(Now(boot, WALL))
    daemon: Any = Silence(node)
    with suppress(Drop):
        Grantee(node, "alice").said(stamped(ddpd.encode(ASK), int(WALL * 1e6) + 5), False, NEAR, Now(boot, WALL))
    for step in steps_of(data):
        boot += 61.0
        now, said = Now(boot, WALL + boot - BOOT), bytearray()
        sock: Any = SimpleNamespace(recv=lambda _, step=step: step, send=lambda what, said=said: said.extend(what)
                                    or len(what))
        control = ddpd.Control(sock, now.boot + 10)
        control.hear(daemon, now)
        if control.asked:
            grantee = node.grantees[control.asked]
            grantee.answers += 1
            control.check_answer(node, now)
        for _ in range(100):
            if control.is_saying:
                control.send(now)
        assert control.waits or (not control.is_saying and control.until < inf)
        for line in bytes(said).splitlines():
            json.loads(line, parse_constant=ddpd.no_number)
        pass_time(node, now)
    sound(node, Now(boot, WALL + boot - BOOT))


# ---- what was written down

FILE = f"""[pool home]
prefix = 2001:db8:42::/48
give = /56-/64
lifetime = 1h
[pool tiny]
prefix = 10.9.0.0/30
give = /32
[grantee alice]
key = {SHOWN["alice"]}
pools = home tiny
[grantee bob]
key = {SHOWN["bob"]}
pools = home
was = {SHOWN["carol"]}
[grantor exit]
key = {SHOWN["exit"]}
address = 192.0.2.9
ask = ::/56 on br0
[tunnel wg1]
grantor = exit
"""


def lease_file_seeds() -> list[bytes]:
    now = Now(BOOT, WALL)
    node = node_of(FILE, now)
    for n, (name, state) in enumerate(zip(("alice", "bob", "carol", "alice"), ddpd.LeaseState, strict=True)):
        peer = node.grantor.peers.setdefault(KEYS[name], ddpd.Peer(KEYS[name], ddpd.NOBODY))
        peer.leases.append(ddpd.Lease(KEYS[name], n, ddpd.parse_prefix(f"2001:db8:42:{n + 1}00::/56"), state, 3600.0,
                                      now.boot + 1800, reach=ddpd.Reach("fe80::7", "eth0"), epoch=0,
                                      since=int(WALL) - 9))
    grantee = node.grantees["exit"]
    grantee.held.append(ddpd.Held(0, P56, bytes(20), now.boot + 50, inf))
    grantee.slots = {"6/56#0": 0}
    for thing in (ddpd.Interface("wg1", KEYS["exit"], "192.0.2.33:51820", own=KEYS["bob"]),
                  ddpd.WgPeer("wg0", KEYS["alice"]), ddpd.AllowedIp("wg0", KEYS["alice"], P56),
                  ddpd.Address("br0", ddpd.parse_interface("2001:db8:77:1200::1/64"), link=4),
                  ddpd.Neighbour("eth0", P128), ddpd.Rule(6, P56, 720), ddpd.Rule(4, None, 254)):
        node.made[thing.id] = thing
    node.grantor.recovering_until = now.boot + 60
    lines = whole_file(node, now, clean=False)
    short = "\n".join(" ".join(line.split()) for line in lines)
    kinds = [joined(b"0", "\n".join([lines[0].strip(), *(line.strip() for line in lines[1:-2] if f'"{kind}"' in line),
                                     "]", ""]).encode())
             for kind in (*ddpd.KEYED, "interface", "allowed", "address", "rule6")]
    return [joined(b"0", short.encode()), joined(b"1", "\n".join(line[:330] for line in lines).encode()), *kinds,
            joined(b"4", "\n".join(line.rstrip() for line in lines).encode()),
            joined(b"2", b"[]\n"), joined(b"3", short.encode()[:900])]


LEASE_WORDS = [f'"{word}": ' for word in (
    "kind", "key", "slot", "prefix", "state", "valid", "left", "via", "dev", "since", "epoch", "serial", "boot",
    "ticket", "ends",
    "prefers", "wall", "current", "grantor", "line", "what", "peer", "endpoint", "own", "link", "clean", "at",
    "version")] + [
    f'"{word}"' for word in (*ddpd.KEYED, "file", "active", "former", "revoked", "deprecated", "boot", "interface wg1")]


def with_width(lines: list[str]) -> list[str]:
    """Each record as wide as a line is in our files, where it fits."""
    return [line if line in ("]", "") else line.ljust(ddpd.LINE - 1)[: ddpd.LINE - 1] for line in lines]


def kept_by_changes(lines: list[str], found: dict[ddpd.Key, tuple[int, ddpd.Record]], run: ddpd.Record) -> None:
    """Changes in a file that is gone on with harm no other record."""
    file = ddpd.LeaseFile(max((record["serial"] for _, record in found.values()), default=0))
    if not file.adopt(lines, found):
        return
    data, wanted = bytearray("\n".join(lines).encode()), {key: record for key, (_, record) in found.items()}
    for over in [None, None, *islice(found, 2)]:
        changes: dict[ddpd.Key, ddpd.Record | None] = {("run",): run} if over is None else {over: None}
        for writes in file.batch(changes):
            for at, what in writes:
                data[at : at + len(what)] = what
        after, damage = ddpd.parse_lease_file(data.decode("utf-8", "replace").split("\n"))
        assert not damage, f"damaged by a change: {damage[0].text[:200]}"
        wanted = {key: record for key, record in wanted.items() if key not in changes}
        got = {key: record for key, (_, record) in after.items() if key not in changes}
        assert got == wanted, f"not as it was after a change: {got} and not {wanted}"
        assert all((key in after) == (record is not None) for key, record in changes.items()), "the change is not there"
        wanted |= {key: after[key][1] for key in changes if key in after}


@target(lease_file_seeds, LEASE_WORDS, room=16_000)
def hear_leases(data: bytes) -> None:
    """Before the lines a step of one letter: bit 0 of its code: another boot; bit 1: a lost file is recovered from;
    bit 2: each line is as wide as in our files."""
    how, _, text = data.partition(SEPARATOR)
    flags, now = how[-1] if how else 0, Now(BOOT, WALL)
    lines = text.decode("utf-8", "replace").split("\n")
    if flags & 4:
        lines = with_width(lines)
    try:
        found, damage = ddpd.parse_lease_file(lines)
    except ddpd.NewerFile:
        return
    json.dumps([record for _, record in found.values()])
    node = ddpd.Node(config_of(FILE), HUB, "other" if flags & 1 else "boot", random.Random(1).randbytes)
    node.linked(LINKS, now)
    ddpd.take_up(node, (found, list(damage)), bool(flags & 2), now)
    if not damage:
        kept_by_changes(lines, found, node.run_record(False, now))
    whole_file(node, now)
    node.adopt(node.made.values())
    node.start(now)
    pass_time(node, now)
    with suppress(Drop):
        Grantee(node, "alice").said(stamped(ddpd.encode(ASK), int(WALL * 1e6) + 5), False, NEAR, now)
    sound(node, now)
    for boot in (BOOT + 1900, BOOT + 8000, BOOT + 1e7):
        pass_time(node, Now(boot, WALL + boot - BOOT))
        sound(node, Now(boot, WALL + boot - BOOT), tells=boot > BOOT + 1e6)


# ---- the configuration, and the files that it names

def example() -> bytes:
    return (Path(__file__).parent.parent / "ddpd.conf.example").read_bytes()


class Given(ddpd.Files):
    """Files of grantees and of pins that are not on a disk."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def grantees(self, folder: str) -> Iterator[ddpd.GranteeFile]:
        for n, text in enumerate(self.texts):
            yield f"{folder}/{n}", f"g{n}", lambda text=text: text  # type: ignore[misc]

    def pins(self, file: str) -> Iterator[ddpd.PinRow | str]:
        for n, text in enumerate(self.texts):
            parts = [*text.split(","), "", "", ""]
            yield ddpd.PinRow(file, n, *(part.strip() for part in parts[:3]))


def used(config: ddpd.Config) -> None:
    """A node under it starts, is asked, answers, and says how it is."""
    now = Now(BOOT, WALL)
    node = ddpd.Node(config, HUB, "boot", random.Random(1).randbytes)
    ddpd.devices_of(config)
    for agreement in config.agreements.values():
        assert ddpd.wait_for(agreement.rate, now.boot, now) <= 0, "a bucket that is full, and has nothing"
    node.linked(LINKS, now)
    node.start(now)
    for dev in list(node.grantor.guards.sights)[:2]:
        node.handle_peers(dev, ddpd.WgState(KEYS["exit"], 51820, {KEYS["carol"]: ()}), now)
    for n, key in enumerate(list(node.grantor.agreements)[:4]):
        peer = node.grantor.peer_of(key)
        assert peer is not None
        for ask in (ASK, replace(ASK, stamp=2, wants=ASK.wants[1:], releases=(0,)), replace(ASK, stamp=3, releases=())):
            answer, _ = node.grantor.handle_ask(peer, ask, PATHS[n], now)
            wire = ddpd.encode(answer)
            assert ddpd.encode(ddpd.decode(wire)) == wire
            ddpd.fitted(answer, wire, 400, 36)
            peer.stamp = ask.stamp
            for step_s in (1.0, 1e4):
                now = Now(now.boot + step_s, now.wall + step_s)
                pass_time(node, now)
    for name, grantee in list(node.grantees.items())[:2]:
        for host in sorted(grantee.hosts()):
            node.resolved(name, host, (NEAR._replace(port=0),), now)
        if grantee.place() is not None:
            ddpd.decode(ddpd.encode(grantee.ask(1, bytes(8), ddpd.NOWHERE)))
            node.compose(name, "2001:db8:e::1", now)
    sound(node, now)
    node.reconfigure(config_of(FILE), now)
    pass_time(node, now)
    sound(node, now)


def config_seeds() -> list[bytes]:
    folder = "[ddpd]\ngrantees = /d\npins = /p\n[pool home]\nprefix = 2001:db8:42::/48\ngive = /56\n"
    twins = ("[pool a]\nprefix = ula\ngive = /64\nshare = 1/2\n"
             f"[grantee a]\nkey = {SHOWN['bob']}\npools = a\nlifetime = 1m-2m\n")
    return [GRANTS.encode(), ASKS.encode(), NDP.encode(), FILE.encode(), twins.encode(),
            joined(folder.encode(), f"key = {SHOWN['alice']}\npools = home\n".encode(),
                   b"g0, 2001:db8:42:100::1, 2001:db8:42:200::/56"),
            *(b"[" + section for section in example().split(b"\n[")[1:])]


CONFIG_WORDS = [*(f"\n{key} = " for keys in ddpd.SETTINGS.values() for key in keys),
                *(f"\n[{kind} x]\n" for kind in ddpd.SETTINGS),
                *(setting.default or "1" for keys in ddpd.SETTINGS.values() for setting in keys.values())]


@target(config_seeds, CONFIG_WORDS, room=24_000)
def hear_config(data: bytes) -> None:
    """After the first step the texts of the files in its folder, which are rows of its pins too."""
    try:
        text, *rest = [step.decode("utf-8-sig") for step in steps_of(data)]
    except UnicodeDecodeError:
        return                                                    # read_text says so
    try:
        config = ddpd.read_config(text, "f", Given(rest))
    except ddpd.ConfigError as why:
        assert "\n" not in str(why), "more than one line"
        return
    assert len(config.agreements) >= sum(line.startswith("[grantee ")
                                         for line in text.split("\n")), "two grantees are one"
    used(config)
    with suppress(ddpd.ConfigError):
        ddpd.read_config(text, "f", Given(rest[1:]), config)


def values_seeds() -> list[bytes]:
    rows = [(kind, key, setting.default or "") for kind, keys in ddpd.SETTINGS.items() for key, setting in keys.items()]
    more = ["10.0.0.1/24", "[::1]:80", "gateway%eth0", "fe80::1%eth0", "3: ::/56 on a b=7", "2027-03-31T12:00Z",
            "1h-6h", "7/30s",
            "auto redistribute", "via fe80::1 dev eth0", "iface ::/64 br0", "grantor exit 2", "1/2", SHOWN["alice"],
            "/56-/64 /48"]
    return [joined(bytes((n,)), text.encode()) for n, (_, _, text) in enumerate(rows)] + [
        joined(bytes((n % len(rows),)), text.encode()) for n, text in enumerate(more * 9)]


PARSERS: list[Callable[[str], object]] = [
    setting.parse for keys in ddpd.SETTINGS.values() for setting in keys.values()] + [
    ddpd.parse_host, ddpd.parse_prefix, ddpd.parse_interface, ddpd.host_port, ddpd.parse_endpoint, ddpd.parse_reach,
    ddpd.parse_date, ddpd.parse_rate, ddpd.parse_line, ddpd.peer_key, ddpd.duration, ddpd.parse_bounds]


@target(values_seeds, ["::", "/", ":", "%", "[", "]", "=", "-", "forever", "gateway", "on", "via", "dev", "d", "w", ",",
                       "none", "auto"])
def hear_values(data: bytes) -> None:
    """A byte that says which parser it is, and the value: only ValueError may come of it."""
    which, _, text = data.partition(SEPARATOR)
    said = text.decode("utf-8", "surrogateescape")
    with suppress(ValueError):
        PARSERS[(which[0] if which else 0) % len(PARSERS)](said)
    for parse in (ddpd.parse_host, ddpd.is_numeric, ddpd.is_gateway, ddpd.is_name, ddpd.is_device, ddpd.named_in):
        with suppress(ValueError):
            parse(said)
    with suppress(ValueError):
        str(ddpd.Path(said, 1))


def pins_of(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pins"
        path.write_bytes(data)
        draft = ddpd.Draft(None)
        try:
            draft.read_pins(ddpd.FilesOnDisk().pins(str(path)))
        except ddpd.ConfigError:
            return
        pins = draft.pins()
        assert not any(one.overlaps(other) for one, other in pairwise(pins.ordered)), "overlap"
        assert pins.ordered == sorted(pins.ordered)


def csv_seeds() -> list[bytes]:
    return [b"id,address,prefix\nalice,192.0.2.7,2001:db8:1::/56\nbob,,2001:db8:2::/56\n\"c\",2001:db8::1,\n",
            b"\xef\xbb\xbfprefix;id\n", b"address, Prefix ,x,ID\r\n,2001:db8::/48,,a\r\n,\"2001:db8:0:1::/64\",,b\n",
            f"id,address,prefix\n{SHOWN['alice']},10.1.2.3,10.1.0.0/16".encode()]


@target(csv_seeds, ["id", "address", "prefix", ",", "\"", "\r\n", "\r", "2001:db8::/32", "10.0.0.0/8"])
def hear_csv(data: bytes) -> None:
    if not data.startswith(ddpd.SQLITE):
        pins_of(data)


@cache
def database(kinds: str, size: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(f"{folder}/db")) as db:
        db.execute(f"PRAGMA page_size = {size}")
        db.execute(f"CREATE TABLE assignments (id {kinds}, address {kinds}, prefix {kinds})")
        db.executemany("INSERT INTO assignments VALUES (?, ?, ?)", [
            ("alice", "192.0.2.7", "2001:db8:1::/56"), ("bob", None, b"2001:db8:2::/56"), (7, 1.5, 2**62)])
        db.commit()
        return (Path(folder) / "db").read_bytes()


def packed_pages(data: bytes) -> bytes:
    """Without the zeros of which a database mostly consists: (how many, what follows) again and again."""
    out = bytearray()
    at = 0
    while at < len(data):
        zeros = at
        while zeros < len(data) and not data[zeros] and zeros - at < 65535:
            zeros += 1
        end = zeros
        while end < len(data) and data[end : end + 4] != bytes(4) and end - zeros < 255:
            end += 1
        out += struct.pack(">HB", zeros - at, end - zeros) + data[zeros:end]
        at = end
    return bytes(out)


def unpacked_pages(data: bytes) -> bytes:
    out, at = bytearray(), 0
    while at + 3 <= len(data) and len(out) < 16384:
        zeros, size = struct.unpack_from(">HB", data, at)
        out += bytes(zeros) + data[at + 3 : at + 3 + size]
        at += 3 + size
    return bytes(out)


def sqlite_seeds() -> list[bytes]:
    return [packed_pages(database(kinds, 512)) for kinds in ("", "TEXT", "INTEGER")]


@target(sqlite_seeds, ["assignments", "CREATE TABLE", "id", "address", "prefix", "alice"])
def hear_sqlite(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddpd, "SQLITE_S", 0.2)                     # an endless view is no finding
        pins_of(ddpd.SQLITE + unpacked_pages(data)[len(ddpd.SQLITE) :])


# ---- a site's own

def site_seeds() -> list[bytes]:
    said = ["null", '"2001:db8:50::/56"', '"2001:db8:42:100::/56"', '"::/0"', '{"refuse": "no", "again": 5}',
            '"2000::/3"', "7",
            '{"dns": "192.0.2.1 2001:db8::1", "search": ["a", "b.c"], "mtu": 1400, "ntp": []}', '{"mtu": ""}',
            '{"refuse": null, "again": NaN}', '"10.9.0.1"']
    return [joined(bytes((n * 7 % 12 + 1, 1 + n % 9)), said[n].encode(), said[(n + 4) % len(said)].encode())
            for n in range(len(said))] + [joined(b"\3\7", *(text.encode() for text in said))]


@target(site_seeds, ["refuse", "again", "dns", "search", "ntp", "mtu", "2001:db8:42::/48", "10.9.0.0/26",
                     "2001:db8:43::/56", "1e400"])
def hear_site(data: bytes) -> None:
    """First which handlers there are, by their bits; then what they return, one after the other."""
    which, *said = steps_of(data)
    values = []
    for text in said:
        with suppress(ValueError, RecursionError):
            values.append(json.loads(text))
    turn = iter(values * 20)
    now = Now(BOOT, WALL)
    node = node_of(GRANTS, now)
    node.start(now)

    def handler(name: str) -> ddpd.SiteHandler:
        def run(_asked: ddpd.Asked, _so_far: Any) -> Any:
            value = next(turn, None)
            if isinstance(value, dict) and "refuse" in value:
                value = ddpd.Refuse(value["refuse"], value.get("again", 60))
            try:
                return ddpd.READS_SITE[name](value)
            except ddpd.SiteFailure:
                raise
            except Exception as why:  # noqa: BLE001 - so does `guarded`
                raise ddpd.SiteFailure(type(why).__name__) from None
        return run
    bits = int.from_bytes(which[:2], "big")
    node.grantor.site = {name: handler(name) for n, name in enumerate(sorted(ddpd.HOOK_NAMES)) if bits >> n & 1}
    peers = {name: Grantee(node, name) for name in ("alice", "bob")}
    for n in range(4):
        now = Now(BOOT + 70 * n, WALL + 70 * n)
        for name, peer in peers.items():
            with suppress(Drop):
                peer.said(stamped(ddpd.encode(ASK), int(now.wall * 1e6) + 5 + n), n > 0, NEAR, now)
            with suppress(ValueError):
                json.dumps(ddpd.explained(node, name, "::/56", now), allow_nan=False)
        pass_time(node, now)
        sound(node, now, tells=n == 3)


# ---- names

def resolver_seeds() -> list[bytes]:
    six, four = b"\0" + ddpd.parse_host("2001:db8:e::9").packed + bytes(2), b"\1\xc0\0\2\x09" + bytes(14)
    local = b"\0" + ddpd.parse_host("fe80::9").packed + b"\0\2"
    return [joined(b"\0exit.example.net", six + four), joined(b"\1exit.example.net", local),
            joined(b"\2vpn.example.net", four, b"\0x", b""),
            joined(b"\4gateway", b""), joined(b"\0fe80::1%eth0", local * 3)]


@target(resolver_seeds, ["exit.example.net", "gateway", "%eth0", "192.0.2.9", "2001:db8:e::9", b"\0" + bytes(18)])
def hear_resolver(data: bytes) -> None:
    """Two steps: 1 byte, and the name that was looked up; its addresses, 19 bytes each: family, address, scope."""
    boot, steps = BOOT, steps_of(data)
    node = node_of(ASKS, Now(boot, WALL))
    node.start(Now(boot, WALL))
    for n in range(0, len(steps), 2):
        host, rows = steps[n][1:].decode("utf-8", "replace"), steps[n + 1] if n + 1 < len(steps) else b""
        told: list[Any] = []
        for at in range(0, len(rows) - 18, 19):
            if rows[at] & 1:
                told.append((socket.AF_INET, 2, 17, "", (socket.inet_ntop(socket.AF_INET, rows[at + 1 : at + 5]), 0)))
            else:
                place = socket.inet_ntop(socket.AF_INET6, rows[at + 1 : at + 17])
                scope = int.from_bytes(rows[at + 17 : at + 19], "big")
                told.append((socket.AF_INET6, 2, 17, "", (place + (f"%{scope}" if scope else ""), 0, 0, scope)))
        world: Any = socket
        before, world.getaddrinfo = world.getaddrinfo, lambda *_, told=told, **__: told
        try:
            found = tuple(ddpd.look_up(host))
        finally:
            world.getaddrinfo = before
        boot += LATER[(steps[n][0] if steps[n] else 0) % 8]
        now = Now(boot, WALL + boot - BOOT)
        for name in ("exit", "other", "nobody"):
            node.resolved(name, host if n else "exit.example.net", found, now)
        for name in node.grantees:
            if node.grantees[name].place() is not None:
                node.compose(name, "2001:db8:e::1", now)
        ways = {aim: ddpd.Way(ddpd.Reach("", "eth0"), "::ffff:192.0.2.1", True) for aim in node.aims()}
        node.routed(ways, (), bool(steps[n][:1] > b"\1"), now)
        pass_time(node, now)
        sound(node, now)


# ---- what was handed on

def radvd_seeds() -> list[bytes]:
    now = Now(BOOT, WALL)
    node = node_of(ASKS, now)
    node.start(now)
    grantee = node.grantees["exit"]
    grantee.held.append(ddpd.Held(0, P56, bytes(20), now.boot + 50, inf, lans=grantee.lans()[0]))
    text = ddpd.radvd_text([grantee], [("br0", ddpd.parse_prefix("2001:db8:1:2::/64"))], now)
    by_hand = b"interface br0 {\nprefix 2001:db8::/64 { };\nprefix 2001:db8:0:1::/64 {\n"
    return [(ddpd.OUR_FILE + text).encode(), by_hand]


@target(radvd_seeds, ["interface ", "prefix ", "AdvOnLink", "::/64", "{", "};", "\n", "\r", "\x0b", "\x85", " "])
def hear_radvd(data: bytes) -> None:
    text, now = data.decode("utf-8", "replace"), Now(BOOT, WALL)
    node = node_of(ASKS, now)
    daemon: Any = SimpleNamespace(node=node, lost={})
    for _ in range(2):                                            # what it makes of that, it reads again
        ddpd.Daemon.lose(daemon, ddpd.announced_in(text), now)
        text = ddpd.OUR_FILE + ddpd.radvd_text(node.grantees.values(), daemon.lost, now)
        assert all(ddpd.is_device(dev) and subnet.shape == (6, 64) for dev, subnet in daemon.lost), f"{daemon.lost}"
        subnets = set(ddpd.announced_in(text))
        assert all(line.isprintable() for line in text.split("\n")), repr(text)
        assert not subnets, f"what is lost lives: {subnets}"
