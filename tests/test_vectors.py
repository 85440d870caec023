"""ddpd.py says what tests/vectors/protocol.json says, byte by byte; and a wrong byte would be noticed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import ddpd

Json = dict[str, Any]
VECTORS: Json = json.loads((Path(__file__).parent / "vectors" / "protocol.json").read_text())
KEYS = {name: bytes.fromhex(value) for name, value in VECTORS["keys"].items()}
HUB_AT, LEAF_AT = ddpd.Path("2001:db8::1", 3373), ddpd.Path("2001:db8:1::2", 40000)
WALL = 1_700_000_000.0
SIX_OLD, SIX_NEW, HOST = "2001:db8:42:1200::/56", "2001:db8:77:3400::/56", "192.0.2.7/32"
OPTIONS = ("dns = 2001:db8:42::53 192.0.2.53\nsearch = lan example.net\nntp = 2001:db8:42::123\nmtu = 1400\n"
           "lifetime = 12h\n")


def moment(at: float) -> ddpd.Now:
    return ddpd.Now(at, WALL + at)


class Script:
    """What is random elsewhere."""

    def __init__(self, e: bytes) -> None:
        self.e, self.ids = e, 0x01020303

    def __call__(self, size: int) -> bytes:
        if size == 4:
            self.ids += 1
            return self.ids.to_bytes(4, "big")
        return {32: self.e, 12: bytes([0xC0] * 12), 8: KEYS["run"]}.get(size, bytes(size))


def grantor_config(six: str) -> ddpd.Config:
    pools = "".join(f"[pool {name}]\nprefix = {prefix}\ngive = /{prefix.partition('/')[2]}\n{OPTIONS}"
                    for name, prefix in (("six", six), ("four", HOST)))
    key = ddpd.show_key(KEYS["grantee public"])
    return ddpd.read_config(f"{pools}[grantee a]\nkey = {key}\npools = six four\n", "t")


class Both:
    """A grantor and a grantee to which nothing has happened."""

    def __init__(self, talk: Json) -> None:
        self.hub = ddpd.Node(grantor_config(SIX_OLD), KEYS["grantor private"], "boot", os.urandom)
        self.hub.responder.load = talk["load"]
        self.hub.responder.rand, self.hub.responder.secret = Script(KEYS["grantor e private"]), bytes([0x80] * 32)
        self.hub.start(ddpd.Now(0.0, float(talk["grantor started"])))
        text = (f"[grantor h]\nkey = {ddpd.show_key(KEYS['grantor public'])}\naddress = 2001:db8::1\n"
                f"ask = 0: ::/56\n      1: 0.0.0.0/0\ninstall = no\n")
        self.leaf = ddpd.Node(ddpd.read_config(text, "t"), KEYS["grantee private"], "boot", os.urandom)
        self.leaf.run, self.leaf.initiators["h"].rand = KEYS["run"], Script(KEYS["grantee e private"])
        self.leaf.start(moment(0))
        self.leaf.resolved("h", "2001:db8::1", (HUB_AT,), moment(0))

    @property
    def held(self) -> dict[tuple[int, str], bool]:
        return {(held.slot, str(held.prefix)): held.current for held in self.leaf.grantees["h"].held}

    def asked(self, step: Json) -> bytes:
        """What the grantee asks now."""
        if step["what"] == "all is released":
            self.leaf.operate(ddpd.Event.RELEASE, "h", moment(step["at"]))
        source = step["from"]
        return self.leaf.compose("h", source if ":" in source else f"::ffff:{source}", moment(step["at"]))

    def replied(self, datagram: bytes, step: Json) -> bytes:
        """What the grantor answers; nothing: it drops it."""
        source = step["from"]
        path = ddpd.Path(source if ":" in source else f"::ffff:{source}", step["port"])
        try:
            effects = self.hub.received(datagram, path, moment(step["at"]))
        except ddpd.Drop:
            return b""
        [reply] = [effect.datagram for effect in effects if isinstance(effect, ddpd.Send)]
        return reply

    def nudge(self, step: Json) -> None:
        """The pool of IPv6 moves; the grantor says so, and the grantee wants to ask."""
        effects = self.hub.reconfigure(grantor_config(SIX_NEW), moment(step["at"]))
        [nudge] = [effect.datagram for effect in effects if isinstance(effect, ddpd.Send)]
        assert nudge.hex() == step["nudge"]
        assert ddpd.Call("h") in self.leaf.received(nudge, HUB_AT, moment(step["at"]), "h")

    def play(self, talk: Json) -> None:
        for number, step in enumerate(talk["steps"]):
            if "nudge" in step:
                self.nudge(step)
                continue
            ask, reply = bytes.fromhex(step["ask"]), bytes.fromhex(step["reply"])
            if step["grantee"]:
                assert self.asked(step).hex() == step["ask"], step["what"]
            assert self.replied(ask, step).hex() == step["reply"], step["what"]
            if step["grantee"]:
                effects = self.leaf.received(reply, HUB_AT, moment(step["at"]), "h")
                after = talk["steps"][number + 1] if number + 1 < len(talk["steps"]) else {}
                at_once = after.get("grantee") is True and after["at"] == step["at"]
                assert (ddpd.Call("h") in effects) == at_once, step["what"]


# ---- the handshake

class Recorded(ddpd.Handshake):
    """A handshake that keeps each of its intermediate values."""

    def __init__(self, *args: Any) -> None:
        self.seen: list[tuple[str, str]] = [("h", ddpd.NAME_HASH.hex()), ("ck", ddpd.NAME_HASH.hex())]
        super().__init__(*args)

    def mix_hash(self, data: bytes) -> None:
        super().mix_hash(data)
        self.seen.append(("h", self.h.hex()))

    def mix_key(self, shared: bytes) -> None:
        super().mix_key(shared)
        self.seen += [("dh", shared.hex()), ("ck", self.ck.hex()), ("k", self.k.hex())]


def check_handshake() -> None:
    rows = VECTORS["handshake"]["steps"]
    expected = [(name, value) for row in rows[:-1] for name, value in row.items() if name not in ("after", "sealed")]
    ask, answer = (bytes.fromhex(VECTORS["handshake"][name]) for name in ("ask", "answer"))
    datagrams = [bytes.fromhex(VECTORS["talks"][0]["steps"][0][name]) for name in ("ask", "reply")]
    ours, theirs, e, f = (ddpd.keypair(KEYS[f"{name} private"])
                          for name in ("grantee", "grantor", "grantee e", "grantor e"))
    for pair, name in ((ours, "grantee"), (theirs, "grantor"), (e, "grantee e"), (f, "grantor e")):
        assert pair.public == KEYS[f"{name} public"]
    prologue = b"ddpd" + datagrams[0][:8]
    one, other = Recorded(ours, theirs.public, prologue), Recorded(theirs, theirs.public, prologue)
    assert datagrams[0][:8] + one.write_first(e, ask) == datagrams[0][:-32]
    assert other.read_static(datagrams[0][8:-32]) == ours.public
    assert other.read_payload(datagrams[0][8:-32], ddpd.dh(theirs.secret, ours.public)) == ask
    assert ddpd.KINDS["answer"] + datagrams[0][4:8] + other.write_second(f, answer) == datagrams[1]
    assert one.read_second(datagrams[1][8:]) == answer
    assert one.seen == other.seen == expected
    split = tuple(bytes.fromhex(rows[-1][name]) for name in ("asks", "answers"))
    assert one.split() == other.split() == split
    assert ddpd.Session(one, 0.0).id.hex() == rows[-1]["session"]
    assert (ddpd.mac1_key(theirs.public), ddpd.cookie_key(theirs.public)) == (KEYS["mac1 key"], KEYS["cookie key"])


def test_every_intermediate_value_of_the_handshake() -> None:
    check_handshake()


def finished() -> ddpd.Handshake:
    datagram = bytes.fromhex(VECTORS["talks"][0]["steps"][0]["ask"])
    theirs = ddpd.keypair(KEYS["grantor private"])
    handshake = ddpd.Handshake(theirs, theirs.public, b"ddpd" + datagram[:8])
    key = handshake.read_static(datagram[8:-32])
    handshake.read_payload(datagram[8:-32], ddpd.dh(theirs.secret, key))
    handshake.write_second(ddpd.keypair(KEYS["grantor e private"]), bytes.fromhex(VECTORS["handshake"]["answer"]))
    return handshake


def check_sealed(row: Json) -> None:
    sender, receiver = ddpd.Session(finished(), 0.0), ddpd.Session(finished(), 0.0).turned()
    if row["from"] == "grantor":
        sender, receiver = receiver, sender
    sender.sent = int(row["counter"], 16)
    assert ddpd.nonce(sender.sent).hex() == row["nonce"]
    assert sender.seal(bytes.fromhex(row["message"])).hex() == row["datagram"]
    assert receiver.open(bytes.fromhex(row["datagram"])).hex() == row["message"]
    assert receiver.got == int(row["counter"], 16)


@pytest.mark.parametrize("row", VECTORS["sealed"], ids=[row["from"] for row in VECTORS["sealed"]])
def test_a_counter_whose_bytes_differ(row: Json) -> None:
    check_sealed(row)


# ---- messages

def shown(value: Any) -> Any:
    if isinstance(value, ddpd.Prefix):
        return value.host if value.is_address else str(value)
    if isinstance(value, ddpd.Want | ddpd.Grant | ddpd.Refusal):
        return [str(part) if isinstance(part, ddpd.Prefix) else shown(part) for part in value]
    if isinstance(value, tuple):
        return [shown(part) for part in value]
    return value.hex() if isinstance(value, bytes) else value


def check_message(row: Json) -> None:
    blob = bytes.fromhex(row["message"])
    message = ddpd.decode(blob)
    for padding in (0, 1, 300):
        assert ddpd.decode(blob + bytes(padding)) == message
    fields = {field.name: shown(value) for field in message.table
              if (value := getattr(message, field.name)) not in ddpd.NOTHING}
    assert fields == row["fields"]
    assert message.unknown == 0
    assert ddpd.encode(message) == blob


@pytest.mark.parametrize("row", VECTORS["messages"], ids=[row["name"] for row in VECTORS["messages"]])
def test_a_message_and_its_fields(row: Json) -> None:
    check_message(row)


# ---- talks

def check_talk(number: int) -> None:
    talk = VECTORS["talks"][number]
    both = Both(talk)
    both.play(talk)
    if talk["name"] == "a life":
        assert both.held == {} and not both.leaf.grantees["h"].releases


@pytest.mark.parametrize("number", range(len(VECTORS["talks"])), ids=[talk["name"] for talk in VECTORS["talks"]])
def test_a_talk(number: int) -> None:
    check_talk(number)


# ---- what is dropped

def check_dropped(role: str) -> None:
    before, at = VECTORS["dropped"]["before"], VECTORS["dropped"]["at"]
    both = Both(before)
    both.play(before)
    if role == "grantee":                                         # it makes one more first ask, and keeps its session
        initiator = both.leaf.initiators["h"]
        session, initiator.session = initiator.session, None
        assert both.asked({**before["steps"][0], "at": at}).hex() == VECTORS["dropped"]["under way"]
        initiator.session = session
    node, path, name = (both.hub, LEAF_AT, "") if role == "grantor" else (both.leaf, HUB_AT, "h")
    held = dict(both.held), len(both.hub.responder.sessions), len(both.hub.grantor.peers)
    for row in VECTORS["dropped"][role]:
        try:
            node.received(bytes.fromhex(row["datagram"]), path, moment(at), name)
        except ddpd.Drop:
            continue
        raise AssertionError(f"not dropped: {row['why']}")
    assert held == (both.held, len(both.hub.responder.sessions), len(both.hub.grantor.peers))
    for row in VECTORS["dropped"]["taken"][role]:
        assert node.received(bytes.fromhex(row["datagram"]), path, moment(at), name), row["why"]


@pytest.mark.parametrize("role", ["grantor", "grantee"])
def test_what_must_be_dropped(role: str) -> None:
    check_dropped(role)


# ---- the other implementation, and the file

POLICY = {"a stranger", "sealed: STALE", "sealed: stamp of no ask", "sealed: stamp of the answer applied"}


@pytest.mark.parametrize("role", ["grantor", "grantee"])
def test_peer_drops_the_same(role: str) -> None:
    """But what it has no policy for."""
    pytest.importorskip("noise.connection", reason="pip install noiseprotocol")
    import golden
    import peer
    talk = golden.Talk("", 0)
    golden.bound(talk)
    talk.at = VECTORS["dropped"]["at"]
    assert talk.first(talk.message([golden.held(0, golden.OLD, 0), golden.held(1, golden.HOST, 0)])).hex() == \
        VECTORS["dropped"]["under way"]
    read = talk.hub.read_ask if role == "grantor" else talk.alice.read
    for row in VECTORS["dropped"][role]:
        if row["why"] not in POLICY:
            with pytest.raises(peer.Wrong):
                read(bytes.fromhex(row["datagram"]))
                raise AssertionError(f"not dropped: {row['why']}")
    for row in VECTORS["dropped"]["taken"][role]:
        read(bytes.fromhex(row["datagram"]))


@pytest.mark.parametrize("row", [step for talk in VECTORS["talks"] for step in talk["steps"]
                                 if talk["name"].startswith("unsupported")], ids=lambda step: step["what"])
def test_peer_judges_the_same(row: Json) -> None:
    pytest.importorskip("noise.connection", reason="pip install noiseprotocol")
    import golden
    import peer
    if row["ask"].startswith("01"):
        ask = peer.GrantorPeer(KEYS["grantor private"]).read_ask(bytes.fromhex(row["ask"]), ephemeral=golden.F)
        status, extra = ask.verdict
        assert peer.GrantorPeer(KEYS["grantor private"]).answer(ask, status, extra=extra).hex() == row["reply"]


def test_the_file_is_what_its_script_makes() -> None:
    pytest.importorskip("noise.connection", reason="pip install noiseprotocol")
    import golden
    assert golden.FILE.read_text() == golden.text(), "run: tests/golden.py --write"


# ---- that it would be noticed


def fails(check: Callable[[], None]) -> bool:
    try:
        check()
    except (AssertionError, ddpd.Drop, ValueError, IndexError):
        return True
    return False


def each(check: Callable[[Any], None], rows: Iterable[Any]) -> Callable[[], None]:
    def check_all() -> None:
        for row in rows:
            check(row)
    return check_all


CHECKS: dict[str, Callable[[], None]] = {
    "handshake": check_handshake,
    "sealed": each(check_sealed, VECTORS["sealed"]),
    "messages": each(check_message, VECTORS["messages"]),
    "talks": each(check_talk, range(len(VECTORS["talks"]))),
    "dropped by grantor": each(check_dropped, ["grantor"]),
    "dropped by grantee": each(check_dropped, ["grantee"]),
}
WRONG: dict[str, tuple[str, object, set[str]]] = {
    "the nonce's byte order": ("nonce", lambda counter: bytes(4) + counter.to_bytes(8, "big"), {"sealed", "talks"}),
    "a mac of 32 bytes, cut": ("mac", lambda key, data: hashlib.blake2s(data, key=key).digest()[:16], {"talks"}),
    "HKDF's outputs swapped": ("hkdf", lambda ck, data, real=ddpd.hkdf: real(ck, data)[::-1], {"handshake", "talks"}),
    "HMAC padded otherwise": ("ZEROS", bytes(31) + b"\1", {"handshake"}),
    "mac1 not compared": ("equal", lambda *_: True, {"dropped by grantor"}),
    "padding not looked at": ("tlvs", lambda data, at, real=ddpd.tlvs: real(data.rstrip(b"\0\1"), at),
                              {"dropped by grantor", "dropped by grantee"}),
    "a prefix of another shape": ("decode_prefix", lambda family, length, _: ddpd.Prefix(family, 0, length),
                                  {"messages", "dropped by grantor"}),
    "deprecated for longer": ("LINGER_S", 7201, {"talks"}),
    "longer than any datagram": ("MAX_DATAGRAM", 1280, {"dropped by grantor"}),
    "steps of 64": ("ASK_STEP", 64, {"talks"}),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong, noticed_by = WRONG[fault]
    monkeypatch.setattr(ddpd, name, wrong)
    assert {check for check in CHECKS if fails(CHECKS[check])} >= noticed_by
