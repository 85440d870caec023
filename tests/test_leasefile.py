"""What the lease file looks like at any moment, and what is left of it after an accident."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from typing import Any

import pytest

import ddpd

NOW = ddpd.Now(1000.0, 1_700_000_000.0)
ALICE, BOB = (ddpd.keypair(bytes([n]) * 32).public for n in (1, 2))
TEXT = (f"[pool home]\nprefix = 2001:db8:42::/48\ngive = /56-/64\nlifetime = 1h\n"
        f"[grantee alice]\nkey = {ddpd.show_key(ALICE)}\npools = home\n"
        f"[grantee bob]\nkey = {ddpd.show_key(BOB)}\npools = home\n"
        f"[grantor exit1]\nkey = {ddpd.show_key(BOB)}\naddress = 2001:db8::1\nask = ::/56\n")


def granted(n: int, key: bytes = ALICE, **more: Any) -> ddpd.Record:
    lease = ddpd.Lease(key, n % 256, ddpd.parse_prefix(f"2001:db8:42:{n % 65536:x}::/64"),
                       ddpd.LeaseState.ACTIVE, 3600.0, NOW.boot + 3600)
    return {**lease.record(NOW), "epoch": 0, **more}


def node(boot: str = "b") -> ddpd.Node:
    return ddpd.Node(ddpd.read_config(TEXT, "t"), bytes(32), boot, random.Random(1).randbytes)


class Bytes:
    """A lease file in memory, and every state that its bytes go through."""

    def __init__(self, *records: ddpd.Record) -> None:
        self.file = ddpd.LeaseFile()
        self.data = b"".join(self.file.whole(records))
        self.states = [self.data]

    def write(self, writes: list[tuple[int, bytes]]) -> int:
        for offset, data in writes:
            self.data = self.data[:offset] + data + self.data[offset + len(data):]
            self.states.append(self.data)
        return sum(len(data) for _, data in writes)

    def change(self, *records: ddpd.Record, gone: tuple[ddpd.Record, ...] = ()) -> int:
        changes: dict[ddpd.Key, ddpd.Record | None] = {ddpd.key_of(record): record for record in records}
        changes |= {ddpd.key_of(record): None for record in gone}
        first, after = self.file.batch(changes)
        return self.write(first) + self.write(after)


def parse(data: bytes) -> tuple[list[ddpd.Record], list[ddpd.Damage]]:
    found, damage = ddpd.parse_lease_file(data.decode("utf-8", "replace").split("\n"))
    return [record for _, record in found.values()], damage


def prefixes(data: bytes) -> set[str]:
    return {record["prefix"] for record in parse(data)[0] if record["kind"] == "granted"}


# ---- the layout

def test_every_line_has_the_same_width_and_all_is_json_at_all_times() -> None:
    dice, there = random.Random(1), dict[int, ddpd.Record]()
    file = Bytes()
    for _ in range(300):
        some = [dice.randrange(90) for _ in range(dice.randrange(1, 5))]
        gone = tuple(there.pop(n) for n in set(some) & there.keys() if dice.random() < 0.4)
        new = {n: granted(n, left=dice.randrange(3600)) for n in some if granted(n) not in gone}
        new = {n: record for n, record in new.items() if ddpd.key_of(record) not in map(ddpd.key_of, gone)}
        there |= new
        file.change(*new.values(), gone=gone)
        latest = {ddpd.key_of(record): record for record in parse(file.data)[0]}
        for record in there.values():
            stored = latest[ddpd.key_of(record)]
            assert {name: stored[name] for name in record} == record
    for state in file.states:
        *lines, last, end = state.split(b"\n")
        assert (last, end) == (b"]", b"") and {len(line) for line in lines} == {ddpd.LINE - 1}
        assert isinstance(json.loads(state), list)


def test_no_write_touches_the_only_copy() -> None:
    """Between the flush and the next batch both lines are there; the later serial wins."""
    file = Bytes(granted(1))
    line = file.file.at[ddpd.key_of(granted(1))]
    first, after = file.file.batch({ddpd.key_of(granted(1)): granted(1, left=7)})
    assert all(not offset <= line * ddpd.LINE < offset + len(data) for offset, data in first)
    assert after == []
    file.write(first)
    assert [r["left"] for r in parse(file.data)[0]] == [7]


def test_what_is_over_is_blanked_with_the_same_flush() -> None:
    """Alice's line must not outlive the moment when bob gets her prefix."""
    file = Bytes(granted(1), granted(2))
    first, _ = file.file.batch({ddpd.key_of(granted(1)): None, ddpd.key_of(granted(3)): granted(3)})
    file.write(first)
    assert prefixes(file.data) == {granted(n)["prefix"] for n in (2, 3)}


def test_no_older_copy_outlives_what_is_over() -> None:
    """A renewal leaves an old line until the next batch; if that one is a release, both lines go at once."""
    file = Bytes(granted(1))
    file.change(granted(1, left=7))
    first, _ = file.file.batch({ddpd.key_of(granted(1)): None})
    file.write(first)
    assert prefixes(file.data) == set()


def test_the_later_serial_wins_wherever_it_stands() -> None:
    rows = [{**granted(1, left=left), "serial": serial} for left, serial in [(1, 5), (2, 9), (3, 7)]]
    assert [r["left"] for r in parse(json.dumps(rows).encode())[0]] == [2]


@pytest.mark.parametrize("leases", [1, 1000, 30_000])
def test_one_more_costs_the_same_however_many_there_are(leases: int) -> None:
    file = ddpd.LeaseFile()
    for _ in file.whole(map(granted, range(leases))):
        pass
    file.batch({ddpd.key_of(granted(40_000)): granted(40_000)})           # grows, once
    for n in range(40_001, 40_020):
        first, after = file.batch({ddpd.key_of(granted(n)): granted(n)})
        assert sum(len(data) for _, data in first + after) == ddpd.LINE
    first, after = file.batch({ddpd.key_of(granted(0)): granted(0, left=1)})
    first, after = file.batch({ddpd.key_of(granted(0)): granted(0, left=2)})
    assert sum(len(data) for _, data in first + after) == 2 * ddpd.LINE


def test_lines_are_used_again() -> None:
    file = Bytes()
    for n in range(2000):
        file.change(granted(n % 5, left=n))
    assert len(file.data) < 100 * ddpd.LINE


def test_no_record_is_wider_than_a_line() -> None:
    """The worst of every field of every kind."""
    widest = ddpd.parse_prefix("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128")
    lease = ddpd.Lease(b"\xff" * 32, 255, widest, ddpd.LeaseState.DEPRECATED, 4294967294.0, 1e12,
                       reach=ddpd.Reach("fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "abcdefghijklmno"),
                       epoch=10**5)
    held = ddpd.Held(255, widest, b"\xff" * 20, 1e10 + 0.1, 1e10 + 0.1)
    boot = "01234567-89ab-cdef-0123-456789abcdef"
    records = [lease.record(NOW), held.record(b"\xff" * 32, boot, ddpd.Now(1e9, 1e12)),
               ddpd.Address("abcdefghijklmno", widest).record(),
               ddpd.Rule(6, widest, 25599).record(),
               {"kind": "recovering", "left": ddpd.FOREVER}, node(boot).run_record(False, ddpd.Now(1e9 + .1, 1e12))]
    file = ddpd.LeaseFile(10**10)
    assert {len(line) for line in list(file.whole(records))[:-1]} == {ddpd.LINE}


@pytest.mark.parametrize("name", ["x" * 64, "x" * 300, "ü" * 60])
def test_a_name_too_long_for_a_line_is_no_name(name: str) -> None:
    """A section's name goes into the lease file: the configuration is the place to refuse it."""
    text = TEXT.replace("exit1", name)
    try:
        config = ddpd.read_config(text, "t")
    except ddpd.ConfigError:
        return
    made = ddpd.Node(config, bytes(32), "b", random.Random(1).randbytes)
    made.start(NOW)
    list(ddpd.LeaseFile().whole(made.records(False, NOW)))


# ---- accidents

def test_every_line_damaged_in_turn_loses_only_that_line() -> None:
    records = [granted(n) for n in range(6)]
    whole = Bytes(*records).data.split(b"\n")
    for n in range(1, 7):
        for junk in (b"\0" * (ddpd.LINE - 1), b"x" + whole[n][1:], whole[n][:50].ljust(ddpd.LINE - 1), b"x"):
            found, damage = parse(b"\n".join([*whole[:n], junk, *whole[n + 1:]]))
            assert {r["prefix"] for r in found if r["kind"] == "granted"} == \
                {r["prefix"] for r in records} - {records[n - 1]["prefix"]}
            assert [line.line for line in damage] == [n + 1]


def test_cut_at_every_byte() -> None:
    records = [granted(n) for n in range(3)]
    data = Bytes(*records).data
    for size in range(len(data) - 2):
        found, damage = parse(data[:size])
        whole_lines = max(0, size // ddpd.LINE - 1)
        assert len([r for r in found if r["kind"] == "granted"]) >= whole_lines
        assert damage


STRANGE: list[Any] = [None, True, -1, 1.5, 10**400, "", "x", [], {}, float("inf"), "ü" * 500]
MADE_RECORDS = [
    granted(1), {"kind": "slot", "grantor": "exit1", "line": "6/56#0", "slot": 3},
    {"kind": "made", "what": "address 2001:db8::1/64 br0"}, {"kind": "recovering", "left": 10},
    {"kind": "run", "clean": True, "boot": "b", "at": 900.0, "epoch": 2},
    ddpd.Held(0, ddpd.parse_prefix("2001:db8:9::/56"), bytes(20), 5e3, 6e3).record(BOB, "b", NOW)]


@pytest.mark.parametrize("record", MADE_RECORDS, ids=[r["kind"] for r in MADE_RECORDS])
@pytest.mark.parametrize("strange", STRANGE, ids=[f"{type(s).__name__}{n}" for n, s in enumerate(STRANGE)])
def test_a_value_changed_by_hand_costs_a_line_and_no_crash(record: ddpd.Record, strange: Any) -> None:
    """As Daemon.restore does it: parse, highest serial, restore, recover."""
    for name in [*record, "serial"]:
        rows = [{**granted(7), "serial": 1}, {**record, "serial": 2, name: strange}]
        found, damage = parse(json.dumps(rows).encode())
        assert isinstance(max((r["serial"] for r in found), default=0) + 1, int | float)
        fresh = node()
        damage += fresh.restore(found, NOW)
        fresh.recover(damage, False, NOW)
        assert "2001:db8:42:7::/64" in [str(p) for p in fresh.grantor.former] + [
            str(lease.prefix) for peer in fresh.grantor.peers.values() for lease in peer.leases]


@pytest.mark.skipif(not shutil.which("jq"), reason="no jq")
@pytest.mark.parametrize("program", [".", "[.[] | select(.slot != 1)]", "map(.)"])
def test_reformatted_by_jq(program: str) -> None:
    data = Bytes(*map(granted, range(3))).data
    said = subprocess.run(["jq", program], input=data, capture_output=True, check=True).stdout
    found, damage = parse(said)
    assert damage == [] and len([r for r in found if r["kind"] == "granted"]) in (2, 3)
    lines = said.decode().split("\n")
    assert not ddpd.LeaseFile().adopt(lines, ddpd.parse_lease_file(lines)[0])


def test_a_newer_version_is_left_alone() -> None:
    data = Bytes(granted(1)).data.replace(b'"version": 1', b'"version": 2')
    with pytest.raises(ddpd.NewerFile):
        parse(data)


def test_the_prefix_in_a_damaged_line_is_nobody_elses() -> None:
    line = json.dumps(granted(0x12))
    for cut in range(len(line)):
        prefix = ddpd.salvaged(ddpd.Damage(3, line[:cut]))
        assert prefix in (None, ddpd.parse_prefix("2001:db8:42:12::/64"))
    fresh = node()
    fresh.recover([ddpd.Damage(3, line[:-9])], False, NOW)
    assert not fresh.grantor.stock.is_free(ddpd.parse_prefix("2001:db8:42:12::/64"))
    assert fresh.grantor.recovering_until < NOW.boot


def test_a_damaged_copy_of_a_good_line_does_not_end_the_lease() -> None:
    """A torn write of a line whose older copy is whole: what nobody holds must not free what alice has."""
    fresh = node()
    fresh.restore([granted(0x12, serial=1)], NOW)
    fresh.recover([ddpd.Damage(3, json.dumps(granted(0x12))[:-9])], False, NOW)
    prefix = ddpd.parse_prefix("2001:db8:42:12::/64")
    lease = next(lease for lease in fresh.grantor.peers[ALICE].leases if lease.prefix == prefix)
    lease.valid_until = NOW.boot + 10**9                          # alice goes on renewing
    for later in (3601, 40 * 86400):
        fresh.on_timer(ddpd.Now(NOW.boot + later, NOW.wall))
        assert not fresh.grantor.stock.is_free(prefix)


def test_of_two_lines_for_one_prefix_the_later_counts() -> None:
    """A crash between writing bob's line and blanking that of alice, who had the prefix before."""
    old, new = granted(0x12, ALICE, state="former", serial=3), granted(0x12, BOB, serial=4)
    for rows in ([old, new], [new, old]):
        fresh = node()
        fresh.restore(rows, NOW)
        prefix = ddpd.parse_prefix("2001:db8:42:12::/64")
        assert [lease.key for peer in fresh.grantor.peers.values() for lease in peer.leases
                if lease.prefix == prefix] == [BOB]
        assert prefix not in fresh.grantor.former
        assert fresh.outdated == [ddpd.key_of(old)]


@pytest.mark.parametrize(("older", "newer"), [(56, 64), (64, 56)])
def test_of_two_leases_that_overlap_the_newer_is_true(older: int, newer: int) -> None:
    """The file is written in any order: what is outdated is named, so that it can be blanked."""
    rows = [granted(0x1200, key, prefix=f"2001:db8:42:1200::/{length}", serial=serial)
            for key, length, serial in [(ALICE, older, 3), (BOB, newer, 4)]]
    for there in (rows, rows[::-1]):
        fresh = node()
        assert fresh.restore(there, NOW) == [] and fresh.outdated == [ddpd.key_of(rows[0])]
        assert [lease.key for peer in fresh.grantor.peers.values() for lease in peer.leases] == [BOB]


# ---- time

def restored(record: ddpd.Record, run: ddpd.Record, now: ddpd.Now = NOW, boot: str = "b") -> list[float]:
    fresh = node(boot)
    assert fresh.restore([run, record], now) == []
    return [lease.valid_until - now.boot for lease in fresh.grantor.peers[ALICE].living()]


def run(clean: bool, at: float = NOW.boot, epoch: int = 4, boot: str = "b") -> ddpd.Record:
    return {"kind": "run", "clean": clean, "boot": boot, "at": at, "epoch": epoch}


def test_a_clean_restart_is_exact() -> None:
    left = granted(1, left=500, epoch=4)
    assert restored(left, run(True)) == [500]
    assert restored(left, run(True, at=NOW.boot - 100)) == [400]
    assert restored(left, run(True, at=5.0, boot="another")) == [500]


def test_a_crash_leaves_the_full_lifetime() -> None:
    assert restored(granted(1, left=500, epoch=4), run(False)) == [3600]
    assert restored(granted(1, left=500, epoch=4), run(False, at=NOW.boot - 100)) == [3600], "renewed a moment ago?"


def test_after_two_crashes_what_is_known_to_have_passed_counts_and_no_more() -> None:
    """It was not renewed in the run that crashed last, so all of that has passed; of another boot that is unknown."""
    old = granted(1, left=500, epoch=3)
    assert restored(old, run(False, at=NOW.boot - 100)) == [3500]
    assert restored(old, run(False, at=NOW.boot - 100, boot="another")) == [3600]
    fresh, later = node(), NOW._replace(boot=NOW.boot + 3700)
    fresh.restore([run(False, at=NOW.boot), old], later)
    fresh.on_timer(later)
    assert fresh.grantor.peers[ALICE].living() == []


def test_a_crash_loop_ends_no_lease() -> None:
    records: list[ddpd.Record] = [run(False), granted(1, left=3600, epoch=4)]
    for n in range(50):
        now = NOW._replace(boot=NOW.boot + 60 * n)
        made = node()
        made.restore(records, now)
        made.on_timer(now)
        assert [lease.prefix for lease in made.grantor.peers[ALICE].living()], n
        records = list(made.records(False, now))


def test_a_deprecated_lease_only_counts_down() -> None:
    assert restored(granted(1, left=500, epoch=4, state="deprecated"), run(False)) == [500]


def test_crashes_are_counted_in_the_file() -> None:
    made = node()
    made.restore([run(False, epoch=4), granted(1, left=9, epoch=4)], NOW)
    assert made.run_record(False, NOW)["epoch"] == 5
    again = node()
    again.restore(list(made.records(False, NOW)), NOW)
    assert again.grantor.epoch == 6


def test_for_ever_is_for_ever() -> None:
    assert restored(granted(1, left=ddpd.FOREVER, valid=ddpd.FOREVER, epoch=4), run(False)) == [float("inf")]
    assert restored(granted(1, left=ddpd.FOREVER, valid=ddpd.FOREVER, epoch=4), run(True)) == [float("inf")]


def test_all_records_come_back_as_they_were() -> None:
    made = node()
    made.restore([*MADE_RECORDS[:-1], granted(5, BOB, state="former"), MADE_RECORDS[-1]], NOW)
    records = list(made.records(True, NOW))
    again = node()
    assert again.restore(parse(Bytes(*records).data)[0], NOW) == []
    assert list(again.records(True, NOW)) == records


# ---- what a grantee held

@pytest.mark.parametrize("recorded", [True, False])
def test_a_line_keeps_its_slot_over_the_first_crash(recorded: bool) -> None:
    """Slots are written when they are given; without a record, what is held is still its line's."""
    fresh = node()
    fresh.start(NOW)
    records = [record for record in fresh.wanted.records.values() if record]
    assert [record["kind"] for record in records] == ["slot"]
    again = node()
    again.restore([HELD.record(BOB, "b", NOW), *(records if recorded else [])], NOW)
    assert again.grantees["exit1"].slots == {"6/56#0": HELD.slot}


HELD = ddpd.Held(0, ddpd.parse_prefix("2001:db8:9:100::/56"), bytes(20), NOW.boot + 600, NOW.boot + 1200)


def held(boot: str, now: ddpd.Now) -> list[ddpd.Held]:
    fresh = node(boot)
    fresh.restore([HELD.record(BOB, "b", NOW)], now)
    return fresh.grantees["exit1"].held


def test_held_over_a_restart_is_exact() -> None:
    got, = held("b", ddpd.Now(NOW.boot + 100, 0.0))            # whatever the wall clock says
    assert (got.prefers_until, got.valid_until) == (HELD.prefers_until, HELD.valid_until)
    assert held("b", ddpd.Now(NOW.boot + 1201, NOW.wall)) == []


def test_held_over_a_reboot_is_provisional() -> None:
    got, = held("c", ddpd.Now(30.0, NOW.wall + 100))
    assert got.valid_until == 30 + ddpd.PROVISIONAL_S
    got, = held("c", ddpd.Now(30.0, NOW.wall + 1100))
    assert got.valid_until == 130
    assert held("c", ddpd.Now(30.0, NOW.wall + 1201)) == []
    got, = held("c", ddpd.Now(30.0, 12.0))                     # 1970
    assert got.valid_until == 30 + ddpd.PROVISIONAL_S
