"""Bytes in, messages out, and nothing but Drop for anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

import ddpd

RUN = bytes(range(0xA1, 0xA9))
TICKET = bytes(range(20))
P56 = ddpd.parse_prefix("2001:db8:42:1200::/56")
V4 = ddpd.parse_prefix("192.0.2.7/32")

ASK = ddpd.Ask(
    stamp=1700000000000000, run=RUN, source=ddpd.parse_host("2001:db8:1::2"), hostname="r1.lan",
    wants=(ddpd.Want(0, ddpd.parse_prefix("::/56")), ddpd.Want(1, P56), ddpd.Want(2, V4, TICKET)),
    releases=(9, 255))
ANSWER = ddpd.Answer(
    stamp=2, status=ddpd.Status.OK, version=1,
    grants=(ddpd.Grant(0, P56, True, 1800, 3600, TICKET), ddpd.Grant(1, V4, False, 0, 60, TICKET)),
    refusals=(ddpd.Refusal(3, ddpd.Reason.FULL, 60, "no /56 is free"),),
    times=(900, ddpd.FOREVER), need=640, unsupported=7, why="so",
    dns=(ddpd.parse_host("2001:db8::53"), ddpd.parse_host("192.0.2.53")), search=("lan", "example.net"),
    ntp=(ddpd.parse_host("2001:db8::123"),), mtu=1400, wg_key=bytes(32),
    wg_endpoint="vpn.example.net:51820",
    wg_allowed=(ddpd.parse_prefix("::/0"), ddpd.parse_prefix("10.0.0.0/8")), wg_keepalive=25)


@pytest.mark.parametrize(("row", "number"), [
    ("NO_POOL", 1), ("LENGTH", 2), ("FULL", 3), ("LIMIT", 4), ("RATE", 5), ("RECOVERING", 6),
    ("CLONE", 7), ("DISK", 8), ("REVOKED", 9), ("ENDED", 10)])
def test_reasons_keep_their_numbers(row: str, number: int) -> None:
    assert ddpd.Reason[row] == number


def test_statuses_keep_their_numbers() -> None:
    assert [status.name for status in ddpd.Status] == ["OK", "STALE", "INVALID", "UNSUPPORTED"]
    assert [int(status) for status in ddpd.Status] == [0, 1, 2, 3]


# ---- what is not whole, or not allowed

@pytest.mark.parametrize("message", [ASK, ANSWER], ids=["ask", "answer"])
def test_every_truncation_is_dropped_or_shorter(message: ddpd.Message) -> None:
    """Between two TLVs a message may end, if nothing required is missing; nowhere else."""
    whole = ddpd.encode(message)
    ends, at = {1}, 1
    while at < len(whole):
        at += 2 + whole[at + 1]
        ends.add(at)
    for size in range(len(whole)):
        try:
            shorter = ddpd.decode(whole[:size])
        except ddpd.Drop:
            continue
        assert size in ends and shorter != message


def tlv(number: int, value: bytes) -> bytes:
    return bytes([number, len(value)]) + value


LEAST_ASK = b"\x01" + tlv(1, bytes(8)) + tlv(2, bytes(8))
LEAST_ANSWER = b"\x02" + tlv(1, bytes(8)) + tlv(16, b"\0") + tlv(17, b"\1")
GRANT_TAIL = bytes(28)

MALFORMED = [
    ("no kind", b""), ("kind 0", b"\0"), ("unknown kind", b"\x04"), ("kind 255", b"\xff"),
    ("no stamp", b"\x01" + tlv(2, bytes(8))), ("no run", b"\x01" + tlv(1, bytes(8))),
    ("no status", b"\x02" + tlv(1, bytes(8)) + tlv(17, b"\1")),
    ("no version", b"\x02" + tlv(1, bytes(8)) + tlv(16, b"\0")),
    ("stamp of 7", b"\x01" + tlv(1, bytes(7)) + tlv(2, bytes(8))),
    ("run of 9", b"\x01" + tlv(1, bytes(8)) + tlv(2, bytes(9))),
    ("stamp twice", LEAST_ASK + tlv(1, bytes(8))),
    ("run twice", LEAST_ASK + tlv(2, bytes(8))),
    ("hostname twice", LEAST_ASK + tlv(4, b"a") + tlv(4, b"a")),
    ("source twice", LEAST_ASK + tlv(3, bytes(4)) + tlv(3, bytes(4))),
    ("source of 5", LEAST_ASK + tlv(3, bytes(5))),
    ("want of 2", LEAST_ASK + tlv(5, b"\0\6")),
    ("want of family 5", LEAST_ASK + tlv(5, b"\0\5\x38")),
    ("want of /129", LEAST_ASK + tlv(5, b"\0\6\x81")),
    ("want of /33 in IPv4", LEAST_ASK + tlv(5, b"\0\4\x21")),
    ("want with host bits", LEAST_ASK + tlv(5, b"\0\6\x38" + bytes(15) + b"\1")),
    ("want with half a ticket", LEAST_ASK + tlv(5, b"\0\6\x38" + P56.packed + bytes(19))),
    ("want with more than a ticket", LEAST_ASK + tlv(5, b"\0\6\x38" + P56.packed + bytes(21))),
    ("want with the other family's address", LEAST_ASK + tlv(5, b"\0\6\x20" + bytes(4))),
    ("release of 2", LEAST_ASK + tlv(6, bytes(2))), ("release of 0", LEAST_ASK + tlv(6, b"")),
    ("grant with flag 2", LEAST_ANSWER + tlv(18, b"\0\6\x38\2" + GRANT_TAIL + P56.packed)),
    ("grant preferred longer than valid",
     LEAST_ANSWER + tlv(18, b"\0\6\x38\1" + b"\0\0\0\2\0\0\0\1" + bytes(20) + P56.packed)),
    ("grant without address", LEAST_ANSWER + tlv(18, b"\0\6\x38\1" + GRANT_TAIL)),
    ("grant too short", LEAST_ANSWER + tlv(18, b"\0\6\x38\1" + bytes(27))),
    ("grant too long", LEAST_ANSWER + tlv(18, b"\0\6\x38\1" + GRANT_TAIL + P56.packed + b"\0")),
    ("grant with host bits", LEAST_ANSWER + tlv(18, b"\0\4\x08\1" + GRANT_TAIL + b"\x0a\0\0\1")),
    ("refusal of 5", LEAST_ANSWER + tlv(19, bytes(5))),
    ("refusal with a newline", LEAST_ANSWER + tlv(19, bytes(6) + b"a\nb")),
    ("refusal of 201 letters", LEAST_ANSWER + tlv(19, bytes(6) + b"a" * 201)),
    ("times of 7", LEAST_ANSWER + tlv(20, bytes(7))),
    ("need of 1", LEAST_ANSWER + tlv(22, b"\1")),
    ("why with a control character", LEAST_ANSWER + tlv(24, b"\x7f")),
    ("why in UTF-8", LEAST_ANSWER + tlv(24, "ü".encode())),
    ("dns of 15", LEAST_ANSWER + tlv(32, bytes(15))),
    ("mtu of 3", LEAST_ANSWER + tlv(35, bytes(3))),
    ("wg key of 31", LEAST_ANSWER + tlv(40, bytes(31))),
    ("allowed of 1", LEAST_ANSWER + tlv(42, b"\6")),
    ("allowed of family 7", LEAST_ANSWER + tlv(42, b"\7\0" + bytes(16))),
    ("padding not zero", LEAST_ASK + b"\0\0\0\1"),
    ("type 0, then a TLV", LEAST_ASK + b"\0" + tlv(4, b"a")),
    ("a type without length", LEAST_ASK + b"\4"),
    ("a value cut short", LEAST_ASK + b"\4\2a"),
]


@pytest.mark.parametrize("blob", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_malformed(blob: bytes) -> None:
    with pytest.raises(ddpd.Drop):
        ddpd.decode(blob)


def test_the_rows_above_differ_from_good_ones_by_one_thing() -> None:
    """A guard must be able to bark: without the fault, these are messages."""
    assert ddpd.decode(LEAST_ASK) == ddpd.Ask(stamp=0, run=bytes(8))
    assert isinstance(ddpd.decode(LEAST_ANSWER), ddpd.Answer)
    for value in (b"\0\6\x38\1" + GRANT_TAIL + P56.packed, b"\0\4\x20\0" + GRANT_TAIL + V4.packed):
        assert ddpd.decode(LEAST_ANSWER + tlv(18, value)).grants                # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["a", "A-1", "a" * 63, ".".join(["a" * 63] * 3) + "." + "b" * 61, "-"])
def test_names(name: str) -> None:
    assert ddpd.decode(LEAST_ASK + tlv(4, name.encode())).hostname == name      # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [
    "", ".", "a.", ".a", "a..b", "a" * 64, ".".join(["a" * 63] * 3) + "." + "b" * 62, "a_b", "a b",
    "a;b", "$(x)", "a'b", "ü", "a\n", "a\0", "a/b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ddpd.Drop):
        ddpd.decode(LEAST_ASK + tlv(4, name.encode()[:255]))


def test_a_text_of_200_letters() -> None:
    answer = ddpd.decode(LEAST_ANSWER + tlv(24, b"~ " * 100))
    assert isinstance(answer, ddpd.Answer) and answer.why == "~ " * 100


# ---- what is not known here

def test_unknown_types_from_128_are_skipped() -> None:
    for number in range(128, 256):
        assert ddpd.decode(LEAST_ASK + tlv(number, b"abc")) == ddpd.decode(LEAST_ASK)


def test_the_first_unknown_type_below_128_is_told() -> None:
    assert ddpd.decode(LEAST_ASK + tlv(99, b"x") + tlv(98, b"")).unknown == 99
    assert ddpd.decode(LEAST_ASK).unknown == 0


def test_a_type_of_the_other_message_is_unknown() -> None:
    assert ddpd.decode(LEAST_ASK + tlv(16, b"\0")).unknown == 16
    assert ddpd.decode(LEAST_ANSWER + tlv(2, bytes(8))).unknown == 2


def test_padding_ends_a_message() -> None:
    assert ddpd.decode(LEAST_ASK + bytes(300)) == ddpd.decode(LEAST_ASK)


def test_a_list_too_long_for_one_value_goes_on_in_another() -> None:
    dns = tuple(ddpd.parse_host(f"2001:db8::{n:x}") for n in range(1, 40))
    answer = ddpd.Answer(stamp=1, status=0, version=1, dns=dns)
    assert ddpd.decode(ddpd.encode(answer)) == answer
    two = ddpd.decode(LEAST_ANSWER + tlv(32, dns[0].packed) + tlv(32, dns[1].packed))
    assert isinstance(two, ddpd.Answer) and two.dns == dns[:2]


# ---- random weather


@given(st.binary(max_size=1232))
def test_any_bytes(blob: bytes) -> None:
    try:
        ddpd.decode(blob)
    except ddpd.Drop:
        pass


U8, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 32, 64))
LABEL = st.text("abcXYZ019-", min_size=1, max_size=63)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join).filter(lambda name: len(name) <= 253)
TEXT = st.text([chr(n) for n in range(32, 127)], max_size=200)
TICKETS = st.binary(min_size=20, max_size=20)


@st.composite
def prefixes(draw: Any, lowest: int = 0) -> ddpd.Prefix:
    version = draw(st.sampled_from([4, 6]))
    width = ddpd.WIDTH[version]
    length = draw(st.integers(lowest, width))
    return ddpd.Prefix(version, draw(st.integers(lowest, 2**length - 1)) << (width - length), length)


@st.composite
def grants(draw: Any) -> ddpd.Grant:
    preferred, valid = sorted([draw(U32), draw(U32)])
    return ddpd.Grant(draw(U8), draw(prefixes()), draw(st.booleans()), preferred, valid, draw(TICKETS))


ADDRESSES = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda n: ddpd.Prefix(4, n, 32)),
    st.integers(2**96, 2**128 - 1).map(lambda n: ddpd.Prefix(6, n, 128)))
WANTS = st.one_of(
    st.builds(ddpd.Want, U8, prefixes().map(lambda p: p._replace(first=0)),
              st.just(b"")),
    st.builds(ddpd.Want, U8, prefixes(lowest=1), st.one_of(st.just(b""), TICKETS)))


def tuples(of: st.SearchStrategy[Any], longest: int = 5) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=longest).map(tuple)


@given(st.builds(ddpd.Ask, stamp=U64, run=st.binary(min_size=8, max_size=8),
                 source=st.none() | ADDRESSES, hostname=st.none() | NAME, wants=tuples(WANTS),
                 releases=tuples(U8), unknown=st.just(0)))
def test_asks_come_back_as_they_were(ask: ddpd.Ask) -> None:
    assert ddpd.decode(ddpd.encode(ask)) == ask


@given(st.builds(ddpd.Answer, stamp=U64, status=U8, version=U8, grants=tuples(grants()),
                 refusals=tuples(st.builds(ddpd.Refusal, U8, U8, U32, TEXT)),
                 times=st.none() | st.tuples(U32, U32), need=st.none() | st.integers(0, 65535),
                 unsupported=st.none() | U8, why=st.none() | TEXT, dns=tuples(ADDRESSES, 15),
                 search=tuples(NAME), ntp=tuples(ADDRESSES), mtu=st.none() | st.integers(0, 65535),
                 wg_key=st.none() | st.binary(min_size=32, max_size=32), wg_endpoint=st.none() | TEXT,
                 wg_allowed=tuples(prefixes()), wg_keepalive=st.none() | st.integers(0, 65535),
                 unknown=st.just(0)))
def test_answers_come_back_as_they_were(answer: ddpd.Answer) -> None:
    assert ddpd.decode(ddpd.encode(answer)) == answer


# ---- prefixes

@pytest.mark.parametrize("text", ["::/0", "2001:db8::/32", "10.0.0.0/8", "192.0.2.1/32", "::1/128"])
def test_prefixes_come_back_as_they_were(text: str) -> None:
    assert str(ddpd.parse_prefix(text)) == text


@pytest.mark.parametrize("text", [
    "", "/", "::/129", "10.0.0.0/33", "10.0.0.1/24", "2001:db8::1/64", "10.0.0/8", "::/-1", "::/+1",
    "::/ 1", "::/1/2", "abc", "1.2.3.4.5", "::g", "::/½", "fe80::1%eth0", "::/6\uff14"])
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        ddpd.parse_prefix(text)


def test_mapped_hosts_are_ipv4() -> None:
    assert ddpd.parse_host("::ffff:192.0.2.1") == ddpd.parse_prefix("192.0.2.1")
    assert ddpd.parse_host("fe80::1%eth0") == ddpd.parse_prefix("fe80::1")
    assert ddpd.mapped(ddpd.parse_prefix("192.0.2.1")).hex() == "00000000000000000000ffffc0000201"
    assert ddpd.mapped(ddpd.parse_prefix("2001:db8::1")).hex() == "20010db8000000000000000000000001"
