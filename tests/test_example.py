"""The worked example of PROTOCOL.md is true: for peer.py, and for ddpd.py."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest

pytest.importorskip("noise.connection", reason="pip install noiseprotocol")

import ddpd
import peer
from peer import GranteePeer, GrantorPeer

ROOT = Path(__file__).resolve().parent.parent
LEASE = ipaddress.ip_network("2001:db8:42:1200::/56")


def example() -> dict[str, bytes]:
    text = (ROOT / "PROTOCOL.md").read_text().split("## 13 A worked example")[1]
    rows = re.findall(r"(?m)^    ([a-z0-9.]+) +([0-9a-f]+(?:\n {21}[0-9a-f]+)*)$", text)
    return {name: bytes.fromhex(value) for name, value in rows}


def test_the_worked_example_is_what_the_peers_say() -> None:
    x = example()
    alice = GranteePeer(x["grantee.private"], x["grantor.public"])
    hub = GrantorPeer(x["grantor.private"])
    assert alice.frame(x["ask.message"], ask_id=x["ask.prologue"][-4:],
                       ephemeral=x["grantee.e"]) == x["ask.datagram"]
    ask = hub.read_ask(x["ask.datagram"], ephemeral=x["grantor.e"])
    assert hub.answer(ask, payload=x["answer.message"]) == x["answer.datagram"]
    answer = alice.read_answer(x["answer.datagram"])
    assert answer.preferred(0).prefix == LEASE
    assert answer.preferred(0).ticket == x["ticket"]
    assert answer.session.id == x["session"]
    assert alice.read_cookie(x["cookie.datagram"]) == x["cookie"]
    padded = peer.padded(x["renewal.message"], 256 - peer.SEALED_FRAME)
    assert alice.sealed(payload=padded) == x["renewal.datagram"]
    alice.read_nudge(x["nudge.datagram"])


def test_the_worked_example_is_what_the_program_says() -> None:
    x = example()
    theirs, ours = ddpd.keypair(x["grantor.private"]), ddpd.keypair(x["grantee.private"])
    handshake = ddpd.Handshake(theirs, theirs.public, x["ask.prologue"])
    noise = x["ask.datagram"][8:-32]
    assert handshake.read_static(noise) == ours.public
    message = handshake.read_payload(noise, ddpd.dh(theirs.secret, ours.public))
    assert ddpd.decode(message) == ddpd.decode(x["ask.message"])
    padded = peer.padded(x["answer.message"], 512 - peer.ANSWER_FRAME)
    assert handshake.write_second(ddpd.keypair(x["grantor.e"]), padded) == x["answer.datagram"][8:]
    assert handshake.split() == (x["key.asks"], x["key.answers"])
    session = ddpd.Session(handshake, 0.0).turned()
    assert ddpd.decode(session.open(x["renewal.datagram"])) == ddpd.decode(x["renewal.message"])
    assert session.seal(peer.padded(ddpd.encode(ddpd.Nudge()), 92)) == x["nudge.datagram"]
