"""The proxy's limits: what a section may say, what the kernel lets through, and whatever else may come."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import ddpd
import frames
from ddpd import LeaseState
from frames import DESTINATION, HOP_BY_HOP, PROXY, ROUTER, duplicate_probe, packed, solicitation
from test_grantor import KEYS
from test_neighbours import FREE, HEARD, PAD, POOL, S, T, fate, inside, node_of, proxy_of, put

# ---- configuration

GRANTEE = f"[grantee a]\nkey = {ddpd.show_key(KEYS['alice'])}\npools = home\n"
GRANTOR = f"[grantor g]\nkey = {ddpd.show_key(KEYS['bob'])}\naddress = 192.0.2.1\nask = ::/56\n"


@pytest.mark.parametrize(("text", "needs"), [
    ("", []), (POOL, []), (POOL + GRANTEE + "route = none\n", []),
    (POOL + GRANTEE, ["CAP_NET_ADMIN (line 5: [grantee a] route)"]),
    (POOL + GRANTEE + "route = dev br0\n", ["CAP_NET_ADMIN (line 8: [grantee a] route)"]),
    (GRANTOR, ["CAP_NET_ADMIN (line 1: [grantor g] install)"]), (GRANTOR + "install = no\n", []),
    ("[ddpd]\nlisten = 192.0.2.1:1023\n", ["CAP_NET_BIND_SERVICE (line 2: [ddpd] listen)"]),
    ("[ddpd]\nlisten = 192.0.2.1:1024\n", []),
    ("[ddpd]\ngrantees = /d\n" + POOL, ["CAP_NET_ADMIN (the files in /d)"]),
    ("[ndp e]\nproxy = leased\n", ["CAP_NET_RAW (line 2: [ndp e] proxy)"]),
    ("[ndp e]\nproxy = leased\nmethod = kernel\n", [
        "CAP_NET_ADMIN (line 3: [ndp e] method)", "CAP_NET_RAW (line 2: [ndp e] proxy)"]),
    ("[ndp e]\nproxy = iface ::/64 f\nmethod = own\nautowire = yes\n", [
        "CAP_NET_ADMIN (line 4: [ndp e] autowire)", "CAP_NET_RAW (line 2: [ndp e] proxy)"]),
    ("[ddpd]\nlisten = [::]:80\n[ndp e]\nproxy = leased\n" + POOL + GRANTEE, [
        "CAP_NET_ADMIN (line 9: [grantee a] route)", "CAP_NET_BIND_SERVICE (line 2: [ddpd] listen)",
        "CAP_NET_RAW (line 4: [ndp e] proxy)"]),
])
def test_check_names_the_capabilities(text: str, needs: list[str], tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = tmp_path / "ddpd.conf", tmp_path / "d"
    folder.mkdir()
    keyed = text if "[ddpd]\n" in text else text + "[ddpd]\n"     # behind: the lines stay what they are
    path.write_text(keyed.replace("/d\n", f"{folder}\n"))
    config = ddpd.load_config(str(path))
    said = ", ".join(needs).replace("/d)", f"{folder})")
    assert ", ".join(f"{need.capability} ({need.where})" for need in config.needs) == said
    assert ddpd.main(["check", "-c", str(path)]) == 0
    assert f"{path}: capabilities: {said or 'none'}\n" in capsys.readouterr().out


# ---- the kernel's filter

def filtered(program: list[ddpd.Instruction], frame: bytes, kind: int = 2) -> int:
    """How many bytes a program of classic BPF lets through; a load from beyond the frame ends it, as in the kernel."""
    a = x = at = 0
    while True:
        (code, yes, no, k), at = program[at], at + 1
        load = {0x20: (k, 4), 0x30: (k, 1), 0x40: (x + k, 4), 0x50: (x + k, 1)}.get(code)
        if code == 0x06:
            return k
        if code in (0x15, 0x25):
            at += yes if (a == k if code == 0x15 else a > k) else no
        elif load and load[0] == 0xFFFFF004:
            a = kind
        elif load:
            if sum(load) > len(frame):
                return 0
            a = int.from_bytes(frame[load[0] : sum(load)], "big")
        elif code in (0x01, 0x07):
            x = k if code == 0x01 else a
        else:
            a = (a & k if code == 0x54 else a + k if code == 0x04 else a << k) & 0xFFFFFFFF
            assert code in (0x54, 0x04, 0x64)


def is_sound(program: list[ddpd.Instruction]) -> bool:
    """As the kernel checks it: every jump is forward and inside, the end is reached, the whole is not too long."""
    inside_ = all(max(yes, no) < 256 and at + 1 + max(yes, no) < len(program)
                  for at, (code, yes, no, _) in enumerate(program) if code != 0x06)
    return inside_ and program[-1][0] == 0x06 and len(program) <= 4096


@pytest.mark.parametrize("headers", [(), ((HOP_BY_HOP, PAD),), ((DESTINATION, bytes(14)),)])
def test_what_is_heard_comes_through_the_filter(headers: tuple[tuple[int, bytes], ...]) -> None:
    for frame in S, duplicate_probe(T), solicitation(T, destination="fe80::b"):
        program = ddpd.neighbour_program(135, [ddpd.parse_prefix("2001:db8:42:100::/56")])
        assert filtered(program, bytes(frame._replace(headers=headers))) >= 128


@pytest.mark.parametrize("many", [128, 450, 1000])
def test_a_filter_of_many_rules_is_one_that_the_kernel_takes(many: int) -> None:
    assert is_sound(ddpd.neighbour_program(136, [ddpd.Prefix(6, n, 128) for n in range(many)]))


@pytest.mark.parametrize("many", [0, 1, ddpd.FILTERED, ddpd.FILTERED + 1, 5 * ddpd.FILTERED])
@pytest.mark.parametrize("outside", [False, True])
def test_the_filter_keeps_back_nothing_that_is_answered(many: int, outside: bool) -> None:
    """However many leases there are, in pools or not, alive or not."""
    node, rand = node_of("proxy = leased\n  static 2001:db8:1::/64\n  never 2001:db8:2::/64"), random.Random(many)
    leases = [put(node, f"2001:db8:42:{n:x}::/64", rand.choice(list(LeaseState))) for n in range(many)]
    leases += [put(node, "2001:db8:99::/64")] if outside else []
    proxy = node.proxies["eth0"]
    program = ddpd.neighbour_program(135, proxy.plausible(ddpd.FILTERED))
    targets = ["2001:db8:1::7", *(lease.prefix.host + "7" for lease in leases)]
    answered = [target for target in targets if isinstance(fate(proxy, solicitation(target)), bytes)]
    assert len(answered) == 1 + sum(lease.living for lease in leases)
    assert all(filtered(program, bytes(solicitation(target))) for target in answered) and is_sound(program)
    assert (outside and many > ddpd.FILTERED) or not filtered(program, bytes(solicitation("2001:db8:2::7")))


# ---- whatever comes

REPAIRED = [bytes(frame) for frame, _ in HEARD.values()] + [inside(), inside(T)]


@given(st.sampled_from(REPAIRED), st.binary(min_size=60, max_size=60))
def test_a_repaired_checksum_is_right(frame: bytes, junk: bytes) -> None:
    """What mutants are made with; and the verdict of ddpd is that of frames.py."""
    whole = frames.repaired(bytes(a ^ (b if n in range(62, 78) else 0) for n, (a, b) in
                                  enumerate(zip(bytes(S), junk.ljust(len(bytes(S)), b"\0"), strict=True))))
    assert frames.read(whole).kind == 135 if whole[62] != 0xFF else True
    assert fate(proxy_of("proxy = leased"), whole) != "checksum"
    assert fate(proxy_of("proxy = leased"), frames.repaired(frame)) != "checksum"


def test_only_what_is_leased_is_answered() -> None:
    """20,000 targets, many of them just outside; each answer is a valid advertisement."""
    rand, frame = random.Random(7), bytes(duplicate_probe(T))
    given_ = ["2001:db8:42:100::/56", "2001:db8:42:300::/64", "2001:db8:42:400::7/128"]
    proxy, rows, answered = proxy_of("proxy = leased", *given_), [ddpd.parse_prefix(row) for row in given_], 0
    for n in range(20_000):
        row = rows[n % 3]
        target = rand.getrandbits(128) if n % 5 == 0 else row.first | rand.getrandbits(128) & row.size - 1
        target ^= (1 << rand.randrange(128)) * (n % 2)
        whole = target.to_bytes(16, "big")
        asked = frames.repaired(frame[:51] + whole[13:] + frame[54:62] + whole)
        found = fate(proxy, asked)
        if any(target >> 128 - row.length == row.first >> 128 - row.length for row in rows):
            said = frames.read(found) if isinstance(found, bytes) else None
            assert said is not None and packed(said.target) == whole and said.options == ((2, PROXY),)
            assert (said.source, said.destination, said.word) == ("fe80::b", "ff02::1", ROUTER)
            answered += 1
        else:
            assert found in ("nobody's", "multicast target", "link-local target")
    assert 6_000 < answered < 14_000


FATES = {"short", "another kind", "hop limit", "code", "multicast target", "length", "checksum", "options", "source",
         "destination", "extension header", "link-local target", "ours", "solicited by a group",
         "own address", "nobody's", "excluded", "not asked", "denied", "too many"}
BYTES = bytes((0, 1, 2, 3, 4, 8, 16, 24, 32, 40, 58, 60, 0x7F, 0x80, 134, 135, 136, 0xFE, 0xFF))


def mutants(seed: int, many: int) -> Iterator[bytes]:
    rand = random.Random(seed)
    rnd, choice, bits = rand.random, rand.choice, rand.getrandbits
    whole = [bytearray(frame) for frame in REPAIRED if len(frame) > 70]
    for n in range(many):
        frame = whole[n % len(whole)][:]
        for _ in range(1 + n % 3):
            frame[int(rnd() * len(frame))] = choice(BYTES) if n % 2 else bits(8)
        if n % 16 == 0:
            frame = frame[: int(rnd() * len(frame))]
        elif n % 16 == 1:
            frame += rand.randbytes(int(rnd() * 64))
        yield frames.repaired(bytes(frame)) if n % 4 else bytes(frame)


def resident() -> int:
    """KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_nothing_that_comes_breaks_it(seed: int) -> None:
    """200,000 frames in all; most with the right checksum."""
    proxy, many, seen, answers, rss = proxy_of(
        f"proxy = leased\n  iface 2001:db8:1::/64 br0\n  never {FREE}\nautowire = yes\ndeny = 2001:db8:3::/64",
        "2001:db8:42:100::/56"), 100_000, set[str](), 0, 0
    for n, frame in enumerate(mutants(seed, many)):
        now = n * 1e-3
        try:
            found = proxy.hear(frame, now)
            if isinstance(found, bytes):
                said, answers = frames.read(found), answers + 1
                assert said.target.startswith(("2001:db8:42:1", "2001:db8:1:"))
        except ddpd.Drop as why:
            seen.add(str(why))
            if why.args == ("another kind",):
                try:
                    proxy.answered_inside(frame, "br0", now)
                except ddpd.Drop as again:
                    seen.add(str(again))
        if n == many // 5:
            rss = resident()
    assert seen <= FATES and len(seen) > len(FATES) - 3 and answers > many / 10
    assert resident() - rss < 8192
    assert len(proxy.answers) <= ddpd.MAX_ANSWERS and len(proxy.waiting) <= ddpd.MAX_PROBES
    assert max(len(proxy.known), len(proxy.wired)) <= ddpd.MAX_INSIDE


@pytest.mark.parametrize("source", ["link-local", "interface", "target"])
def test_who_has_asked_before_gets_the_same_answers(source: str) -> None:
    """The short way, for what is like something that was answered, says what the long way says; and is taken."""
    rules = f"proxy = leased\n  static 2001:db8:42:300::/64\n  never 2001:db8:42:300::/80\nsource = {source}"
    node, rand, short = node_of(rules), random.Random(source), 0
    put(node, "2001:db8:42::/64")
    put(node, "2001:db8:42:1::/64", reach=ddpd.Reach("fe80::9", "eth0"))
    known = node.proxies["eth0"]
    askers = [bytes(frame) for frame, _ in HEARD.values()]
    for n, frame in enumerate(mutants(9, 20_000)):
        if n % 2:                                                 # another target, which may be ours
            place = rand.choice(("2001:db8:42::", "2001:db8:42:300::", "2001:db8:42:1::", "ff02::"))
            target = packed(place)[:8] + rand.randbytes(8)
            whole = rand.choice(askers)
            frame = frames.repaired(whole[:51] + target[13:] + whole[54:62] + target + whole[78:])
        known.answers.clear()
        short += bool(known.alike.get(ddpd.common_part(frame)))
        found = fate(known, frame)
        known_alike, known.alike = known.alike, {}
        assert found == fate(known, frame)
        known.alike = known_alike
    assert (short > 1_500) == (source != "target") and len(known.alike) <= ddpd.MAX_ALIKE
