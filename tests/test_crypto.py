"""Our Noise_IK against published vectors, and against whoever flips bits; that of others is in test_interop.py."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("noise.connection", reason="pip install noiseprotocol")

import ddpd
import peer

VECTORS = json.loads((Path(__file__).parent / "vectors" / "noise_ik.json").read_text())["vectors"]
NOW = ddpd.Now(1000.0, 1_700_000_000.0)


# ---- published vectors

@pytest.mark.parametrize("vector", VECTORS, ids=[v["source"].split(",")[0] for v in VECTORS])
def test_published_vectors(vector: dict[str, Any]) -> None:
    x = {name: bytes.fromhex(value) for name, value in vector.items()
         if isinstance(value, str) and name != "source"}
    rows = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]]
    i, r, ei, er = (ddpd.keypair(x[name]) for name in (
        "init_static", "resp_static", "init_ephemeral", "resp_ephemeral"))
    assert r.public == x["init_remote_static"]
    a, b = (ddpd.Handshake(s, r.public, x["prologue"]) for s in (i, r))
    assert a.write_first(ei, rows[0][0]) == rows[0][1]
    key = b.read_static(rows[0][1])
    assert b.read_payload(rows[0][1], ddpd.dh(r.secret, key)) == rows[0][0]
    assert b.rs == i.public
    assert b.write_second(er, rows[1][0]) == rows[1][1]
    assert a.read_second(rows[1][1]) == rows[1][0]
    assert a.h == b.h == x.get("handshake_hash", a.h)
    assert a.split() == b.split()
    for n, (plain, sealed) in enumerate(rows[2:]):
        assert ddpd.seal(a.split()[n % 2], n // 2, plain) == sealed
        assert ddpd.open_sealed(a.split()[n % 2], n // 2, sealed) == plain

# ---- whoever flips bits


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# Every number that is a point of small order, on Curve25519 or its twist.  X25519 ignores the top bit.
P = 2**255 - 19
ORDER_8 = (325606250916557431795983626356110631294008115727848805560023387167927233504,
           39382357235489614581723060781553021112529911719440698176882885853963445705823)
POINTS = [(n + top).to_bytes(32, "little") for n in (0, 1, *ORDER_8, P - 1, P, P + 1)
          for top in (0, 2**255)]


def snapshot(thing: Any) -> Any:
    """Every field, so that a change is seen wherever it is."""
    if hasattr(thing, "__slots__"):
        return {name: snapshot(getattr(thing, name)) for name in thing.__slots__ if hasattr(thing, name)}
    if hasattr(thing, "__dict__"):
        return {name: snapshot(value) for name, value in vars(thing).items()}
    return [snapshot(item) for item in thing] if isinstance(thing, list | tuple) else repr(thing)


# ---- the ends of the native door

HUB_TEXT = "[ddpd]\nload = 9999\n[pool p]\nprefix = 2001:db8:42::/48\ngive = /56\n[grantee a]\nkey = {}\npools = p\n"
LEAF_TEXT = "[grantor h]\nkey = {}\naddress = 2001:db8::1\nask = ::/56\n"
HUB_AT, LEAF_AT = ddpd.Path("2001:db8::1", 3373), ddpd.Path("2001:db8::2", 5000)


def node(text: str, secret: bytes, peer: bytes) -> ddpd.Node:
    config = ddpd.read_config(text.format(ddpd.show_key(ddpd.keypair(peer).public)), "t")
    made = ddpd.Node(config, secret, "boot", os.urandom)
    made.start(NOW)
    return made


class Pair:
    """A grantor and a grantee that know each other."""

    def __init__(self) -> None:
        hub, leaf = os.urandom(32), os.urandom(32)
        self.hub, self.leaf = node(HUB_TEXT, hub, leaf), node(LEAF_TEXT, leaf, hub)
        self.leaf.resolved("h", "2001:db8::1", (HUB_AT,), NOW)

    def ask(self) -> bytes:
        return self.leaf.compose("h", LEAF_AT.host, NOW)

    def answer(self, ask: bytes) -> bytes:
        return next(effect.datagram for effect in self.hub.received(ask, LEAF_AT, NOW)
                    if isinstance(effect, ddpd.Send))

    def hear(self, answer: bytes) -> list[ddpd.Effect]:
        return self.leaf.received(answer, HUB_AT, NOW, "h")

    @property
    def held(self) -> list[ddpd.Held]:
        return self.leaf.grantees["h"].held


def test_a_round_trip() -> None:
    pair = Pair()
    ask = pair.ask()
    answer = pair.answer(ask)
    assert len(answer) == len(ask) == ddpd.FIRST_ASK
    pair.hear(answer)
    assert len(pair.held) == 1
    renewal = pair.ask()
    assert renewal[:1] == b"\4" and len(pair.answer(renewal)) == len(renewal)


def test_an_older_or_late_answer_is_not_applied() -> None:
    pair = Pair()
    asks = [pair.ask(), pair.ask(), pair.ask()]
    answers = [pair.answer(ask) for ask in asks]
    pair.hear(answers[1])
    for old, why in ((answers[0], "not newer"), (answers[1], "no ask")):
        with pytest.raises(ddpd.Drop, match=why):
            pair.hear(old)
    with pytest.raises(ddpd.Drop, match="late"):
        pair.leaf.received(answers[2], HUB_AT, NOW._replace(boot=NOW.boot + ddpd.LATE_S + 1), "h")


def test_a_damaged_answer_changes_nothing_and_the_true_one_still_counts() -> None:
    pair = Pair()
    answer = pair.answer(pair.ask())
    before = snapshot(pair.leaf.initiators["h"])
    for bit in random.Random(5).sample(range(8 * len(answer)), 300):
        with pytest.raises(ddpd.Drop):
            pair.hear(flipped(answer, bit))
        assert snapshot(pair.leaf.initiators["h"]) == before
    assert pair.held == []
    pair.hear(answer)
    assert len(pair.held) == 1


def with_mac1(pair: Pair, ask: bytes) -> bytes:
    """Whoever knows the grantor's public key can make it right."""
    return ask[:-32] + peer.mac(peer.derived(b"ddpd mac1", pair.hub.s.public), ask[:-32]) + ask[-16:]


def test_a_damaged_ask_changes_nothing() -> None:
    pair = Pair()
    ask = pair.ask()
    assert with_mac1(pair, ask) == ask
    ignored = 8 * (8 + 32) - 1                             # by X25519; the transcript has it
    for bit in (ignored, *random.Random(6).sample(range(8 * (len(ask) - 32)), 300)):
        with pytest.raises(ddpd.Drop):
            pair.answer(with_mac1(pair, flipped(ask, bit)))
    for bit in random.Random(7).sample(range(8 * (len(ask) - 32), 8 * (len(ask) - 16)), 20):
        with pytest.raises(ddpd.Drop, match="mac1"):
            pair.answer(flipped(ask, bit))
    assert not any(there.leases for there in pair.hub.grantor.peers.values()) and pair.hub.responder.sessions == {}
    pair.answer(ask)


@pytest.mark.parametrize("point", POINTS, ids=[p.hex()[:6] + p.hex()[-4:] for p in POINTS])
def test_low_order_points(point: bytes) -> None:
    """As the ephemeral key of an ask, and of an answer."""
    pair = Pair()
    ask = pair.ask()
    answer = pair.answer(ask)
    with pytest.raises(ddpd.Drop, match="low-order"):
        pair.answer(with_mac1(pair, ask[:8] + point + ask[40:]))
    with pytest.raises(ddpd.Drop, match="low-order"):
        pair.hear(answer[:8] + point + answer[40:])


def test_a_damaged_sealed_ask_changes_nothing() -> None:
    pair = Pair()
    pair.hear(pair.answer(pair.ask()))
    ask = pair.ask()
    session = pair.hub.responder.sessions[ask[4:12]]
    before = snapshot(session.sealing), session.got, session.sent
    for bit in range(8 * len(ask)):
        with pytest.raises(ddpd.Drop):
            pair.answer(flipped(ask, bit))
    assert (snapshot(session.sealing), session.got, session.sent) == before
    later = pair.ask()
    pair.hear(pair.answer(later))                          # a gap is no crime
    for old in (later, ask):
        with pytest.raises(ddpd.Drop, match="replayed"):
            pair.answer(old)


def test_a_session_ends_and_its_last_counter_is_never_taken() -> None:
    pair = Pair()
    pair.hear(pair.answer(pair.ask()))
    for later, kind in ((ddpd.SESSION_S - 1, b"\4"), (ddpd.SESSION_S, b"\1")):
        assert pair.leaf.compose("h", LEAF_AT.host, NOW._replace(boot=NOW.boot + later))[:1] == kind
    pair.hear(pair.answer(pair.ask()))
    session = pair.leaf.initiators["h"].session
    assert session is not None
    session.sent = 2**64 - 2
    pair.answer(pair.ask())
    session.sent = 2**64 - 1
    with pytest.raises(ddpd.Drop):
        pair.answer(pair.ask())


@pytest.mark.parametrize("secret", ["hub", "leaf"])
def test_whoever_is_not_meant_hears_nothing(secret: str) -> None:
    pair, other = Pair(), Pair()
    ask = other.ask()
    if secret == "leaf":                                   # knows the grantor, is not known there
        other.leaf.initiators["h"] = ddpd.Initiator(other.leaf.s, pair.hub.s.public, os.urandom)
        ask = other.ask()
    with pytest.raises(ddpd.Drop, match="stranger" if secret == "leaf" else "mac1"):
        pair.hub.received(ask, LEAF_AT, NOW)


def test_a_wrong_mac1_costs_no_curve_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, calls, dh = Pair(), [], ddpd.dh
    ask = pair.ask()

    def counted(secret: bytes, public: bytes) -> bytes:
        calls.append(1)
        return dh(secret, public)
    monkeypatch.setattr("ddpd.dh", counted)
    with pytest.raises(ddpd.Drop, match="mac1"):
        pair.hub.received(flipped(ask, 8 * (len(ask) - 32)), LEAF_AT, NOW)
    assert calls == []
    pair.hub.grantor.agreements = {}                       # now alice is a stranger
    with pytest.raises(ddpd.Drop, match="stranger"):
        pair.hub.received(ask, LEAF_AT, NOW)
    assert calls == [1]


def test_a_session_of_the_other_role_is_unknown() -> None:
    """What the grantor sends cannot be turned back on it, nor an ask on the grantee."""
    pair = Pair()
    answer = pair.answer(pair.ask())
    with pytest.raises(ddpd.Drop, match="other role"):
        pair.hub.received(answer, LEAF_AT, NOW)
    pair.hear(answer)
    ask = pair.ask()
    with pytest.raises(ddpd.Drop):
        pair.hear(ask)
    reply = pair.answer(ask)
    with pytest.raises(ddpd.Drop):
        pair.hub.received(reply, LEAF_AT, NOW)


# ---- cookies

def loaded() -> Pair:
    pair = Pair()
    pair.hub.responder.load = 0
    return pair


def test_under_load_a_cookie_comes_first() -> None:
    pair = loaded()
    cookie = pair.answer(pair.ask())
    assert cookie[:1] == b"\3" and len(cookie) == 52
    assert pair.hear(cookie) == [ddpd.Call("h")]           # at once, the first time
    again = pair.ask()
    assert again[-16:] != bytes(16)
    pair.hear(pair.answer(again))
    assert len(pair.held) == 1


def test_at_most_one_cookie_is_taken_for_one_ask() -> None:
    pair = loaded()
    ask = pair.ask()
    pair.hear(pair.answer(ask))
    with pytest.raises(ddpd.Drop, match="second cookie"):
        pair.hear(pair.answer(ask))


def test_a_damaged_cookie_changes_nothing() -> None:
    pair = loaded()
    cookie = pair.answer(pair.ask())
    before = snapshot(pair.leaf.initiators["h"])
    for bit in range(8 * len(cookie)):
        with pytest.raises(ddpd.Drop):
            pair.hear(flipped(cookie, bit))
        assert snapshot(pair.leaf.initiators["h"]) == before
    pair.hear(cookie)


@pytest.mark.parametrize("path", [ddpd.Path("2001:db8::3", 5000), ddpd.Path("2001:db8::2", 5001)])
def test_a_cookie_is_of_one_address_and_port(path: ddpd.Path) -> None:
    pair = loaded()
    pair.hear(pair.answer(pair.ask()))
    sent = pair.hub.received(pair.ask(), path, NOW)
    assert isinstance(sent[0], ddpd.Send) and sent[0].datagram[:1] == b"\3"


def test_a_cookie_is_good_for_the_time_after_its_own_and_no_longer() -> None:
    pair = loaded()
    pair.hear(pair.answer(pair.ask()))
    ask = pair.ask()
    later = [ddpd.Now(NOW.boot + n * ddpd.COOKIE_S, NOW.wall) for n in (1, 2)]
    kinds = [next(e.datagram[0] for e in pair.hub.received(ask, LEAF_AT, now) if isinstance(e, ddpd.Send))
             for now in later]
    assert kinds == [2, 3]


def test_one_source_is_heard_so_often_a_second_under_load() -> None:
    pair = loaded()
    pair.hear(pair.answer(pair.ask()))
    asks = [pair.ask() for _ in range(ddpd.SOURCE_ASKS + 1)]
    for ask in asks[:-1]:
        assert pair.answer(ask)[:1] == b"\2"
    with pytest.raises(ddpd.Drop, match="one source"):
        pair.answer(asks[-1])


# ---- datagrams as a whole

@pytest.mark.parametrize(("blob", "why"), [
    (b"", "unknown kind"), (b"\0" * 60, "unknown kind"), (b"\5\1\0\0" + bytes(60), "unknown kind"),
    (b"\1\2\0\0" + bytes(300), "version"), (b"\4\0\0\0" + bytes(60), "version"),
    (b"\1\1\1\0" + bytes(300), "reserved"), (b"\4\1\0\1" + bytes(60), "reserved"),
    (b"\1\1\0\0" + bytes(131), "size"), (b"\2\1\0\0" + bytes(51), "size"), (b"\3\1\0\0" + bytes(47), "size"),
    (b"\4\1\0\0" + bytes(31), "size"), (b"\1\1\0\0" + bytes(1229), "size"), (b"\1", "unknown kind")])
def test_what_is_dropped_at_the_door(blob: bytes, why: str) -> None:
    with pytest.raises(ddpd.Drop, match=why):
        Pair().hub.received(blob, LEAF_AT, NOW)
