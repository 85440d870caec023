"""The door of wg-dynamic: text in, text out; from the same grantor, under the same agreements as every other ask."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, strategies as st

import ddpd
from ddpd import parse_prefix
from test_wireguard import POOLS, WG, A, B, World

PATH = ddpd.Path("fe80::7", 970, 3, bytes(16) + (3).to_bytes(4, "little"))


def said(world: World, text: str | bytes, key: bytes = A) -> dict[str, str]:
    """What a message is answered: keys and values.  The message and the answer end with an empty line."""
    peer = world.node.grantor.peer_of(key)
    assert peer is not None
    message = text.encode() if isinstance(text, str) else text
    reply, _ = ddpd.through_door(world.node, peer, message, PATH, world.now)
    world.perform()
    lines = reply.decode().split("\n")
    assert lines[0] == "request_ip=1" and lines[-2:] == ["", ""] and "" not in lines[:-2]
    rows = [line.split("=", 1) for line in lines[1:-2]]
    found: dict[str, str] = {}
    for key_, value in rows:
        found[key_] = f"{found[key_]} {value}" if key_ in found else value
    return found


def living(world: World) -> list[str]:
    return sorted(map(str, world.living()))


def test_any_of_both_families() -> None:
    world = World(peers=[A])
    answer = said(world, "request_ip=1\nip=0.0.0.0\nip=::")
    four, six = answer.pop("ip").split()
    assert answer == {"leasestart": str(int(world.now.wall)), "leasetime": "3600", "errno": "0"}
    assert four.startswith("10.9.0.") and four.endswith("/32") and six.endswith("/128")
    assert living(world) == [four, six] == sorted(str(prefix) for prefix in world.table[A])


def test_again_is_the_same_and_longer() -> None:
    world = World(peers=[A])
    first = said(world, "request_ip=1\nip=0.0.0.0\nip=::")
    world.later(1800)
    named = "".join(f"\nip={address}" for address in first["ip"].split())
    assert said(world, "request_ip=1" + named)["ip"] == first["ip"]
    assert said(world, "request_ip=1" + named.replace("/32", "").replace("/128", ""))["ip"] == first["ip"]
    world.later(1900)
    assert len(living(world)) == 2


def test_a_family_left_out_is_released() -> None:
    world = World(peers=[A])
    four, six = said(world, "request_ip=1\nip=0.0.0.0\nip=::")["ip"].split()
    assert said(world, f"request_ip=1\nip={six}")["ip"] == six
    assert living(world) == [six]
    assert said(world, "request_ip=1\nip=0.0.0.0")["ip"] == four, "what it had before"
    assert living(world) == [four]


def test_a_named_address_that_is_anothers() -> None:
    world = World(peers=[A, B])
    other = said(world, "request_ip=1\nip=0.0.0.0", B)["ip"]
    own = said(world, "request_ip=1\nip=0.0.0.0\nip=::")["ip"]
    for named in (other, "10.9.0.200", "192.0.2.1"):
        answer = said(world, f"request_ip=1\nip={named}")
        assert answer == {"errno": "3", "errmsg": f"{named.split('/')[0]} is not yours"}
    assert living(world) == sorted([*own.split(), other]), "nothing has changed"


@pytest.mark.parametrize("ask", ["request_ip=1", "request_ip=1\nipv4=\nipv6=::", "request_ip=1\nipv6=10.9.0.0/32"])
def test_the_older_draft(ask: str) -> None:
    world = World(peers=[A])
    answer = said(world, ask)
    if ask.endswith("/32"):
        assert answer["errno"] == "1"
    elif "ipv4=" in ask:
        assert answer.keys() == {"ipv6", "leasestart", "leasetime", "errno"} and len(living(world)) == 1
    else:                                                         # of which draft the asker is cannot be told
        assert answer["ip"] == f"{answer['ipv4']} {answer['ipv6']}" and len(living(world)) == 2


def test_the_older_draft_takes_a_name_for_a_wish() -> None:
    world = World(peers=[A, B])
    other = said(world, "request_ip=1\nipv4=0.0.0.0/32\nipv6=", B)["ipv4"]
    answer = said(world, f"request_ip=1\nipv4={other}")
    assert answer["errno"] == "0" and answer["ipv4"] != other and "ipv6" in answer and "ip" not in answer
    assert said(world, "request_ip=1\nipv6=")["ipv4"] == answer["ipv4"]
    assert living(world) == sorted([other, answer["ipv4"]])
    assert said(world, "request_ip=1\nipv4=\nipv6=") == {"errno": "0"} and living(world) == [other]


WRONG = [
    ("request_ip=2", "2"), ("request_ip=", "2"), ("request_name=1", "2"), ("request_ip=1 ", "2"), ("ip=::", "2"),
    ("", "1"), ("request_ip", "1"), ("\nrequest_ip=1", "1"), ("request_ip=1\nip", "1"), ("request_ip=1\n=::", "1"),
    ("request_ip=1\nip=", "1"), ("request_ip=1\nip=10.9.0.0/24", "1"), ("request_ip=1\nip=2001:db8::/64", "1"),
    ("request_ip=1\nip=10.9.0.7/33", "1"), ("request_ip=1\nip=10.9.0", "1"), ("request_ip=1\nip=wg0", "1"),
    ("request_ip=1\nip=0.0.0.0\nip=10.9.0.7", "1"), ("request_ip=1\nip=::\nip=::", "1"),
    ("request_ip=1\nip=::\nipv4=0.0.0.0", "1"), ("request_ip=1\nipv4=::", "1"), ("request_ip=1\nip=:: ", "1"),
    ("request_ip=1\nip=\0", "1"), ("request_ip=1\nip=\u0661", "1"), ("request_ip=1\r", "2"),
]


@pytest.mark.parametrize(("text", "number"), WRONG, ids=[repr(text)[:30] for text, _ in WRONG])
def test_what_is_wrong(text: str, number: str) -> None:
    world = World(peers=[A])
    answer = said(world, text)
    assert answer["errno"] == number and answer["errmsg"] and not living(world)


def test_unknown_keys_are_skipped() -> None:
    world = World(peers=[A])
    answer = said(world, "request_ip=1\nhostname=a=b\nip=::\nleasetime=7")
    assert answer["errno"] == "0" and answer["leasetime"] == "3600"


def test_an_agreement_says_what_is_refused() -> None:
    world = World(POOLS + WG + "lengths = /56\n", [A])
    assert said(world, "request_ip=1\nip=::") == {
        "errno": "3", "errmsg": "/128 is not given (given: /56)"} and not living(world)
    world = World(POOLS.replace("give     = /32", "give     = /31") + WG, [A])
    assert re.fullmatch(r"[0-9a-f:]+/128", said(world, "request_ip=1\nip=0.0.0.0\nip=::")["ip"]), "one of two"


def test_beside_other_asks_the_slots_are_the_same_ones() -> None:
    """Whoever asks for the key by the other door has the same lease; what it has besides stays."""
    world = World(peers=[A])
    wide, six = world.get(A, "::/56", "::/128")
    assert said(world, "request_ip=1\nip=::")["ip"] == str(six)
    assert living(world) == sorted(map(str, (wide, six)))
    four = said(world, f"request_ip=1\nip=0.0.0.0\nip={six}")["ip"].split()[0]
    assert world.get(A, "::/56", "::/128", "0.0.0.0/32") == [wide, six, parse_prefix(four)]
    assert said(world, "request_ip=1\nip=0.0.0.0")["ip"] == four and living(world) == sorted([four, str(wide)])


def test_no_slot_is_left() -> None:
    """All 256 are in use; the daemon goes on."""
    world = World(POOLS + WG.replace("limit = 3", "limit = 256"), [A])
    for first in range(0, 256, 16):
        world.stamp += 1
        ask = ddpd.Ask(stamp=world.stamp, run=A[:8], wants=tuple(
            ddpd.Want(slot, parse_prefix("::/64")) for slot in range(first, first + 16)))
        peer = world.node.grantor.peer_of(A)
        assert peer is not None
        world.node.grantor.handle_ask(peer, ask, PATH, world.now)
    assert said(world, "request_ip=1\nip=0.0.0.0") == {"errno": "3", "errmsg": "no slot is left"}


def test_for_ever_is_told_as_ten_years() -> None:
    """In 32 bits, and times 8."""
    world = World(POOLS.replace("1h", "forever") + WG, [A])
    answer = said(world, "request_ip=1\nip=::")
    assert int(answer["leasetime"]) * 8 < 2**32 and int(answer["leasestart"]) + int(answer["leasetime"]) < 2**32


def test_the_looking_glass_has_seen_it() -> None:
    world = World(peers=[A])
    answer = said(world, "request_ip=1\nip=::")
    shown = ddpd.show_of(world.node, ddpd.show_key(A), world.now)
    assert shown["answer"]["grants"][0]["prefix"] == answer["ip"] and world.node.counters["heard_dynamic"] == 1


LINES = st.sampled_from([b"request_ip=1", b"ip=::", b"ip=0.0.0.0", b"ipv4=", b"ipv6=::", b"\0", b"="])


@given(st.lists(st.one_of(LINES, st.binary(max_size=20)), max_size=8).map(b"\n".join))
def test_whatever_is_said_gets_an_answer_in_form(message: bytes) -> None:
    answer = said(World(peers=[A]), message)
    assert answer["errno"] in "0123" and (answer["errno"] == "0") == ("errmsg" not in answer)


def test_octets_of_dice() -> None:
    """Mutations of a good message: nothing but answers, and no lease for anybody else."""
    dice, world = random.Random(970), World(peers=[A])
    good = b"request_ip=1\nip=0.0.0.0\nip=2001:db8:42::7/128\nipv4=10.9.0.7"
    for _ in range(4_000):
        message = bytearray(good[: dice.randrange(len(good) + 1)])
        for _ in range(dice.randrange(4)):
            if message:
                message[dice.randrange(len(message))] = dice.randrange(256)
        assert said(world, bytes(message).replace(b"\n\n", b"\n"))["errno"] in "0123"
    assert set(world.living().values()) <= {A} and len(world.living()) <= 2


class Sock:
    """A connection that is only counted."""

    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_who_has_to_go_when_there_is_no_room() -> None:
    """However many addresses a peer comes from, it drives out only its own; if all are few, who was silent longest."""
    door = ddpd.Door.__new__(ddpd.Door)
    door.callers = []
    socks = {}
    for n, whose in enumerate([B] + [A] * 100 + [bytes([n]) * 32 for n in range(70)]):
        door.make_room(whose)
        socks[n] = Sock()
        door.callers.append(ddpd.Caller(socks[n], PATH, whose, 10.0))  # type: ignore[arg-type]
        if n == 100:
            assert not socks[0].is_closed and sum(caller.whose == A for caller in door.callers) == ddpd.DOOR_EACH
    assert len(door.callers) == ddpd.DOOR_CALLERS and socks[0].is_closed
