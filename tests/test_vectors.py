"""ddpd.py says what tests/vectors/protocol.json says, byte by byte.

The handshake's intermediate values there are for who writes another one: here the datagrams that come of them are
compared.
"""

from __future__ import annotations

import json
import os
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

# ---- messages

def shown(value: Any) -> Any:
    if isinstance(value, ddpd.Prefix):
        return value.host if value.is_address else str(value)
    if isinstance(value, ddpd.Want | ddpd.Grant | ddpd.Refusal):
        return [str(part) if isinstance(part, ddpd.Prefix) else shown(part) for part in value]
    if isinstance(value, tuple):
        return [shown(part) for part in value]
    return value.hex() if isinstance(value, bytes) else value


@pytest.mark.parametrize("row", VECTORS["messages"], ids=[row["name"] for row in VECTORS["messages"]])
def test_a_message_and_its_fields(row: Json) -> None:
    blob = bytes.fromhex(row["message"])
    message = ddpd.decode(blob)
    for padding in (0, 1, 300):
        assert ddpd.decode(blob + bytes(padding)) == message
    fields = {field.name: shown(value) for field in message.table
              if (value := getattr(message, field.name)) not in ddpd.NOTHING}
    assert fields == row["fields"]
    assert message.unknown == 0
    assert ddpd.encode(message) == blob


# ---- talks

@pytest.mark.parametrize("talk", VECTORS["talks"], ids=[talk["name"] for talk in VECTORS["talks"]])
def test_a_talk(talk: Json) -> None:
    both = Both(talk)
    both.play(talk)
    if talk["name"] == "a life":
        assert both.held == {} and not both.leaf.grantees["h"].releases


# ---- what is dropped

@pytest.mark.parametrize("role", ["grantor", "grantee"])
def test_what_must_be_dropped(role: str) -> None:
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
