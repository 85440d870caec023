"""Our Noise_IK against published vectors, against another's, and against whoever flips bits."""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("noise.connection", reason="pip install noiseprotocol")
from noise.connection import Keypair, NoiseConnection

import ddpd

VECTORS = json.loads((Path(__file__).parent / "vectors" / "noise_ik.json").read_text())["vectors"]
NOW = ddpd.Now(1000.0, 1_700_000_000.0)


def keypair() -> ddpd.KeyPair:
    return ddpd.keypair(os.urandom(32))


def read_first(handshake: ddpd.Handshake, message: bytes) -> bytes:
    key = handshake.read_static(message)
    return handshake.read_payload(message, ddpd.dh(handshake.s.secret, key))


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
    assert read_first(b, rows[0][1]) == rows[0][0]
    assert b.rs == i.public
    assert b.write_second(er, rows[1][0]) == rows[1][1]
    assert a.read_second(rows[1][1]) == rows[1][0]
    assert a.h == b.h == x.get("handshake_hash", a.h)
    assert a.split() == b.split()
    for n, (plain, sealed) in enumerate(rows[2:]):
        assert ddpd.seal(a.split()[n % 2], n // 2, plain) == sealed
        assert ddpd.open_sealed(a.split()[n % 2], n // 2, sealed) == plain


# ---- another implementation

def stranger(role: str, s: bytes, prologue: bytes, rs: bytes = b"") -> Any:
    noise = NoiseConnection.from_name(ddpd.NOISE_NAME)
    getattr(noise, f"set_as_{role}")()
    noise.set_prologue(prologue)
    noise.set_keypair_from_private_bytes(Keypair.STATIC, s)
    if rs:
        noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, rs)
    noise.start_handshake()
    return noise


def test_we_begin_and_another_answers() -> None:
    ours, theirs = keypair(), keypair()
    peer = stranger("responder", theirs.secret, b"pro")
    us = ddpd.Handshake(ours, theirs.public, b"pro")
    assert peer.read_message(us.write_first(keypair(), b"ask")) == b"ask"
    assert us.read_second(bytes(peer.write_message(b"grant"))) == b"grant"
    to_peer, from_peer = us.split()
    assert peer.decrypt(ddpd.seal(to_peer, 0, b"up")) == b"up"
    assert ddpd.open_sealed(from_peer, 0, bytes(peer.encrypt(b"down"))) == b"down"


def test_another_begins_and_we_answer() -> None:
    ours, theirs = keypair(), keypair()
    peer = stranger("initiator", theirs.secret, b"pro", ours.public)
    us = ddpd.Handshake(ours, ours.public, b"pro")
    assert read_first(us, bytes(peer.write_message(b"ask"))) == b"ask"
    assert us.rs == theirs.public
    assert peer.read_message(us.write_second(keypair(), b"grant")) == b"grant"
    from_peer, to_peer = us.split()
    assert ddpd.open_sealed(from_peer, 0, bytes(peer.encrypt(b"up"))) == b"up"
    assert peer.decrypt(ddpd.seal(to_peer, 0, b"down")) == b"down"


def test_hkdf_is_that_of_hmac() -> None:
    import hashlib
    import hmac
    dice = random.Random(3)
    for _ in range(50):
        ck, material = dice.randbytes(32), dice.randbytes(dice.choice([0, 32]))
        temporary = hmac.new(ck, material, hashlib.blake2s).digest()
        first = hmac.new(temporary, b"\1", hashlib.blake2s).digest()
        second = hmac.new(temporary, first + b"\2", hashlib.blake2s).digest()
        assert ddpd.hkdf(ck, material) == (first, second)


# ---- what does not authenticate

def test_a_flipped_bit_anywhere_in_the_first_message() -> None:
    i, r = keypair(), keypair()
    first = ddpd.Handshake(i, r.public, b"").write_first(keypair(), b"ask")
    for bit in range(8 * len(first)):
        if bit == 8 * ddpd.KEY_LEN - 1:                   # X25519 ignores it, the transcript does not
            continue
        with pytest.raises(ddpd.Drop):
            read_first(ddpd.Handshake(r, r.public, b""), flipped(first, bit))


def test_the_bit_that_the_curve_ignores_is_in_the_transcript() -> None:
    i, r = keypair(), keypair()
    first = ddpd.Handshake(i, r.public, b"").write_first(keypair(), b"ask")
    with pytest.raises(ddpd.Drop):
        read_first(ddpd.Handshake(r, r.public, b""), flipped(first, 8 * ddpd.KEY_LEN - 1))


def test_a_flipped_bit_anywhere_in_the_second_message() -> None:
    i, r = keypair(), keypair()
    a, b = ddpd.Handshake(i, r.public, b""), ddpd.Handshake(r, r.public, b"")
    read_first(b, a.write_first(keypair(), b"ask"))
    second = b.write_second(keypair(), b"grant")
    for bit in range(8 * len(second)):
        with pytest.raises(ddpd.Drop):
            copy.copy(a).read_second(flipped(second, bit))
    assert a.read_second(second) == b"grant"


@pytest.mark.parametrize("wrong", ["prologue", "grantor"])
def test_both_have_to_mean_the_same(wrong: str) -> None:
    i, r, other = keypair(), keypair(), keypair()
    first = ddpd.Handshake(i, other.public if wrong == "grantor" else r.public, b"a").write_first(
        keypair(), b"ask")
    with pytest.raises(ddpd.Drop):
        read_first(ddpd.Handshake(r, r.public, b"b" if wrong == "prologue" else b"a"), first)


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


@pytest.mark.parametrize("point", POINTS, ids=[p.hex()[:6] + p.hex()[-4:] for p in POINTS])
def test_low_order_points(point: bytes) -> None:
    r = keypair()
    with pytest.raises(ddpd.Drop, match="low-order"):
        ddpd.dh(r.secret, point)
    with pytest.raises(ddpd.Drop, match="low-order"):      # as the ephemeral key of an ask
        ddpd.Handshake(r, r.public, b"").read_static(point + bytes(80))
    a = ddpd.Handshake(keypair(), r.public, b"")
    a.write_first(keypair(), b"ask")
    with pytest.raises(ddpd.Drop, match="low-order"):      # and of an answer
        a.read_second(point + bytes(40))


# ---- sessions

def sessions() -> tuple[ddpd.Session, ddpd.Session]:
    i, r = keypair(), keypair()
    a, b = ddpd.Handshake(i, r.public, b""), ddpd.Handshake(r, r.public, b"")
    read_first(b, a.write_first(keypair(), b"ask"))
    a.read_second(b.write_second(keypair(), b"grant"))
    return ddpd.Session(a, 0.0), ddpd.Session(b, 0.0).turned()


def snapshot(thing: Any) -> Any:
    """Every field, so that a change is seen wherever it is."""
    if hasattr(thing, "__slots__"):
        return {name: snapshot(getattr(thing, name)) for name in thing.__slots__ if hasattr(thing, name)}
    if hasattr(thing, "__dict__"):
        return {name: snapshot(value) for name, value in vars(thing).items()}
    return [snapshot(item) for item in thing] if isinstance(thing, list | tuple) else repr(thing)


def test_both_directions() -> None:
    ours, theirs = sessions()
    assert ours.id == theirs.id and len(ours.id) == 8
    for n in range(3):
        assert theirs.open(ours.seal(b"up %d" % n)) == b"up %d" % n
        assert ours.open(theirs.seal(b"down %d" % n)) == b"down %d" % n


def test_no_counter_is_used_twice() -> None:
    ours, _ = sessions()
    assert len({ours.seal(b"x")[12:20] for _ in range(50)}) == 50


def test_what_comes_twice_or_late_is_dropped() -> None:
    ours, theirs = sessions()
    sealed = [ours.seal(b"%d" % n) for n in range(4)]
    assert theirs.open(sealed[1]) == b"1"
    for old in (sealed[1], sealed[0]):
        with pytest.raises(ddpd.Drop, match="replayed"):
            theirs.open(old)
    assert theirs.open(sealed[3]) == b"3"                  # a gap is no crime
    with pytest.raises(ddpd.Drop, match="replayed"):
        theirs.open(sealed[2])


def test_the_last_counter_is_never_taken() -> None:
    ours, theirs = sessions()
    ours.sent = 2**64 - 1
    with pytest.raises(ddpd.Drop):
        theirs.open(ours.seal(b"rekey"))
    ours.sent = 2**64 - 2
    assert theirs.open(ours.seal(b"the last")) == b"the last"


def test_a_failed_tag_changes_nothing_in_a_session() -> None:
    ours, theirs = sessions()
    ours.sent = 7
    sealed = ours.seal(b"up")
    before = snapshot(theirs)
    for bit in range(8 * len(sealed)):
        with pytest.raises(ddpd.Drop):
            theirs.open(flipped(sealed, bit))
        assert snapshot(theirs) == before
    assert theirs.open(sealed) == b"up"


def test_a_direction_has_its_own_key() -> None:
    ours, _ = sessions()
    with pytest.raises(ddpd.Drop):
        ours.open(ours.seal(b"mirrored"))


def test_a_session_ends() -> None:
    ours, _ = sessions()
    assert not ours.over(ddpd.Now(ddpd.SESSION_S, 0))
    assert ours.over(ddpd.Now(ddpd.SESSION_S + 1, 0))


# ---- the ends of the native door

HUB_TEXT = "[pool p]\nprefix = 2001:db8:42::/48\ngive = /56\n[grantee a]\nkey = {}\npools = p\n"
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


def test_a_damaged_ask_changes_nothing() -> None:
    pair = Pair()
    ask = pair.ask()
    for bit in random.Random(6).sample(range(8 * (len(ask) - 16)), 300):
        with pytest.raises(ddpd.Drop):
            pair.answer(flipped(ask, bit))
    assert pair.hub.grantor.peers == {} or not any(p.leases for p in pair.hub.grantor.peers.values())
    assert pair.hub.responder.sessions == {}
    pair.answer(ask)


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
    pair.hear(pair.answer(ask))


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
        ddpd.kind_of(blob)


def test_any_bytes_at_the_door() -> None:
    pair, dice = Pair(), random.Random(9)
    good = [pair.ask(), pair.answer(pair.ask())]
    for _ in range(5000):
        blob = bytearray(dice.choice(good)[:dice.randrange(600)])
        for _ in range(dice.randrange(4)):
            if blob:
                blob[dice.randrange(len(blob))] = dice.randrange(6)
        for name in ("", "h"):
            try:
                (pair.leaf if name else pair.hub).received(bytes(blob), LEAF_AT, NOW, name)
            except ddpd.Drop:
                pass
