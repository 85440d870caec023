"""Pins, grantees and agreements as an operator writes them; leases as an operator bills them.

Rows that are wrong cost nobody else anything, each is named once, and what is pinned is its
owner's alone: in the files, in the pools beside leases that are drawn, and across reloads.
"""

from __future__ import annotations

import builtins
import errno
import itertools
import json
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

import ddpd
from test_grantor import HOME, KEYS, WALL, Hub, grantee, want

HEAD = "id,address,prefix"
GOOD = ["alice,,2001:db8:42:100::/56", "bob,,2001:db8:42:200::/56"]
P = ddpd.parse_prefix


class Site:
    """A folder: ddpd.conf, files of pins, a folder of grantees."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, list[str]()
        self.who: Iterable[str] = KEYS
        self.pools, self.more, self.sections = HOME, "limit = 4", ""
        self.grantees = ""

    def write(self, name: str, *lines: str | bytes, end: bytes = b"\n") -> str:
        """A file, of these lines."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(end.join(line if isinstance(line, bytes) else line.encode() for line in lines) + end)
        return str(path)

    def csv(self, *rows: str | bytes, name: str = "pins.csv") -> str:
        """A file of pins, named in the configuration from now on."""
        path = self.write(name, HEAD, *rows)
        self.files += [path] if path not in self.files else []
        return path

    def sqlite(self, *rows: tuple[object, ...], name: str = "pins.sqlite",
               table: str = "assignments(id, address, prefix)") -> str:
        path = str(self.folder / name)
        self.files.append(path)
        with closing(sqlite3.connect(path)) as db, db:           # the second `db` ends the transaction only
            db.execute(f"CREATE TABLE {table}")
            db.executemany(f"INSERT INTO {table.partition('(')[0]} VALUES ({','.join('?' * len(rows[0]))})", rows)
        return path

    def file(self, name: str, *lines: str | bytes) -> str:
        """One of the folder of grantees."""
        self.grantees = str(self.folder / "grantees.d")
        return self.write(f"grantees.d/{name}", *lines)

    def text(self) -> str:
        main = f"[ddpd]\npins = {' '.join(self.files)}\ngrantees = {self.grantees}\n"
        return main + self.pools + "".join(grantee(name, self.more) for name in self.who) + self.sections

    def load(self, before: ddpd.Config | None = None) -> ddpd.Config:
        path = self.write("ddpd.conf", self.text())
        return ddpd.load_config(path, before)

    def hub(self) -> Hub:
        return self.feed(Hub(self.pools, self.who, self.more))

    def feed(self, hub: Hub) -> Hub:
        """As a reload does."""
        hub.effects = hub.node.reconfigure(self.load(hub.node.config), hub.now)
        return hub


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def named(config: ddpd.Config) -> list[str]:
    """What was skipped, without the folder."""
    return [line.replace(os.path.dirname(config.file) + "/", "") for line in config.skipped]


def owned(config: ddpd.Config) -> dict[str, str]:
    """Pin -> whose."""
    names = {key: agreement.name for key, agreement in config.agreements.items()}
    rows = zip(config.pins.ordered, config.pins.owners, strict=True)
    return {str(pin): names.get(owner, "") for pin, owner in rows}


KEPT = {"2001:db8:42:100::/56": "alice", "2001:db8:42:200::/56": "bob"}


# ---- rows that are bad

@pytest.mark.parametrize(("row", "why"), [
    (",,2001:db8:42:300::/56",              "no id"),
    ("  ,,2001:db8:42:300::/56",            "no id"),
    ("alice,,",                             "neither address nor prefix"),
    ("alice,2001:db8:42::g,",               "'2001:db8:42::g' is not an IP address"),
    ("alice,10.0.0.256,",                   "'10.0.0.256' is not an IP address"),
    ("alice,10.0.0.1/32,",                  "'10.0.0.1/32' is not an address (no length here)"),
    ("alice,,2001:db8:42:300::",            "'2001:db8:42:300::' is no prefix (no length)"),
    ("alice,,2001:db8:42:301::/56",         "2001:db8:42:301::/56 has host bits set "
                                            "(the prefix is 2001:db8:42:300::/56)"),
    ("alice,,2001:db8:42:300::/129",        "/129 is not a valid IPv6 prefix length (0 to 128)"),
    ("alice,,2001:db8:42:300::/x",          "/x is not a valid IPv6 prefix length (0 to 128)"),
    ("alice,,10.0.0.0/33",                  "/33 is not a valid IPv4 prefix length (0 to 32)"),
    ("alice,,2000::/15",                    "2000::/15 is too large, or nobody's to give"),
    ("alice,,::/0",                         "::/0 is too large, or nobody's to give"),
    ("alice,,0.0.0.0/0",                    "0.0.0.0/0 is too large, or nobody's to give"),
    ("alice,127.0.0.1,",                    "127.0.0.1/32 is too large, or nobody's to give"),
    ("alice,,224.0.0.0/24",                 "224.0.0.0/24 is too large, or nobody's to give"),
    ("alice,::,",                           "::/128 is too large, or nobody's to give"),
    ("alice,::1,",                          "::1/128 is too large, or nobody's to give"),
    ("alice,,fe80::/64",                    "fe80::/64 is too large, or nobody's to give"),
    ("alice,,ff00::/16",                    "ff00::/16 is too large, or nobody's to give"),
    ("alice,127.0.0.1,2001:db8:42:300::/56", "127.0.0.1/32 is too large, or nobody's to give"),
    ("alice,2001:db8:42:300::1,2001:db8:42:301::/56",
                                            "2001:db8:42:301::/56 has host bits set "
                                            "(the prefix is 2001:db8:42:300::/56)"),
    (b"alice,,2001:db8:42:3\xff0::/56",     "not UTF-8"),
    ("alice,,\"2001:db8:42:300::/56",       "unexpected end of data"),
    ("\"alice,,2001:db8:42:300::/56",       "unexpected end of data"),
    ("alice,\"\"x,2001:db8:42:300::/56",    "',' expected after '\"'"),
    ("alice,",                              "only 2 columns"),
    ("alice",                               "only 1 columns"),
    ("alice,,2001:db8:42:100::/56",         "2001:db8:42:100::/56 overlaps 2001:db8:42:100::/56 of pins.csv:2"),
    ("bob,,2001:db8:42:180::/57",           "2001:db8:42:180::/57 overlaps 2001:db8:42:100::/56 of pins.csv:2"),
    ("alice,,2001:db8:42::/52",             "2001:db8:42::/52 overlaps 2001:db8:42:100::/56 of pins.csv:2"),
    ("alice,2001:db8:42:100::7,",           "2001:db8:42:100::7/128 overlaps 2001:db8:42:100::/56 of pins.csv:2"),
    ("bob,,2001:db8:42:f80::/57",           "2001:db8:42:f80::/57 overlaps 2001:db8:42:f00::/56 of ddpd.conf:{pin}"),
])
def test_a_bad_row_is_named_and_the_rows_around_it_are_kept(site: Site, row: str | bytes, why: str) -> None:
    site.who = ["alice", "bob"]
    site.sections = grantee("carol", "pin = 2001:db8:42:f00::/56")
    site.csv(GOOD[0], row, GOOD[1])
    line = site.text().split("\n").index("[grantee carol]") + 1
    config = site.load()
    assert named(config) == [f"pins.csv:3: skipped: {why.format(pin=line)}"]
    assert owned(config) == KEPT | {"2001:db8:42:f00::/56": "carol"}


def test_a_nul_is_a_letter_that_no_address_has(site: Site) -> None:
    site.csv(GOOD[0], b"alice,,2001:db8:42:\0::/56", b"al\0ice,,2001:db8:42:300::/56", GOOD[1])
    config = site.load()
    line, = named(config)
    assert line.startswith("pins.csv:3: skipped: ") and "\0" not in line
    assert owned(config) == KEPT | {"2001:db8:42:300::/56": ""}, "an id that nobody has"


def test_what_is_logged_of_a_row_is_one_line(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever fills the file in does not write the log."""
    site.csv(b"alice,,\"2001:db8::\r\x1b[2Jreloaded\"", GOOD[0])
    daemon = ddpd.Daemon.__new__(ddpd.Daemon)
    daemon.config = site.load()
    daemon.tell_skipped()
    assert not {"\r", "\x1b"} & set(capfd.readouterr().err)
    assert "2001:db8:42:100::/56" in owned(daemon.config)


def test_an_id_that_is_not_known_is_kept_for_nobody(site: Site) -> None:
    """The customer may come tomorrow; until then nobody else gets it."""
    site.pools = HOME.replace("::/48", "::/55")
    site.who, site.more = ["alice", "bob"], "limit = 1"
    site.csv("zoe,,2001:db8:42::/56", f"{ddpd.show_key(KEYS['carol'])},2001:db8:9::1,")
    hub = site.hub()
    assert named(hub.node.config) == []
    assert owned(hub.node.config) == {"2001:db8:42::/56": "", "2001:db8:9::1/128": ""}
    assert hub.get("alice", want(0, "::/56")) == [P("2001:db8:42:100::/56")]
    assert hub.refused("bob", want(0, "::/56")) == [ddpd.Reason.FULL]
    site.sections = grantee("carol").replace("[grantee carol]", "[grantee zoe]")
    assert site.feed(hub).get("carol", want(0, "::/56")) == [P("2001:db8:42::/56")]


def test_very_many_bad_rows_are_not_all_named(site: Site) -> None:
    site.csv(*["alice,,x"] * (ddpd.MAX_NAMED + 500), *GOOD)
    config = site.load()
    assert len(config.skipped) == ddpd.MAX_NAMED + 1 and "more" in config.skipped[-1]
    assert owned(config) == KEPT


# ---- the shape of a file

@pytest.mark.parametrize("data", [
    b"\xef\xbb\xbfid,address,prefix\n" + "\n".join(GOOD).encode() + b"\n",
    b"id,address,prefix\r\n" + "\r\n".join(GOOD).encode() + b"\r\n",
    b"\xef\xbb\xbfid,address,prefix\r\n\r\n" + "\r\n\r\n".join(GOOD).encode(),
    b"PREFIX,Id,ADDRESS\n2001:db8:42:100::/56,alice,\n2001:db8:42:200::/56,bob,\n",
    b"id,note,address,prefix,note\nalice,a,,2001:db8:42:100::/56,,,\nbob,\"a, \"\"b\"\"\",,2001:db8:42:200::/56\n",
    b" id , address , prefix \n alice , , 2001:db8:42:100::/56 \n bob , , 2001:db8:42:200::/56 \n",
    b"id,address,prefix\n\n" + "\n".join(GOOD).encode(),
    b'"id","address","prefix"\n"alice","","2001:db8:42:100::/56"\n"bob","","2001:db8:42:200::/56"\n',
], ids=["mark", "crlf", "both", "order", "others", "blanks", "no end", "quotes"])
def test_the_same_rows_in_another_dress(site: Site, data: bytes) -> None:
    site.files = [str(site.folder / "pins.csv")]
    Path(site.files[0]).write_bytes(data)
    config = site.load()
    assert (named(config), owned(config)) == ([], KEPT)


def test_the_line_is_told_where_lines_end_in_crlf_too(site: Site) -> None:
    site.files = [site.write("pins.csv", HEAD, GOOD[0], "", "bob,,x", end=b"\r\n")]
    assert named(site.load()) == ["pins.csv:4: skipped: 'x' is no prefix (no length)"]


@pytest.mark.parametrize(("data", "why"), [
    (b"",                                  "no column 'id' (have: nothing)"),
    (b"\xef\xbb\xbf",                      "no column 'id' (have: nothing)"),
    (b"\n",                                "no column 'id' (have: nothing)"),
    (b"id,prefix\nalice,::/56\n",          "no column 'address' (have: id, prefix)"),
    (b"id,address\nalice,\n",              "no column 'prefix' (have: id, address)"),
    (b"alice,,2001:db8:42:100::/56\n",     "no column 'id' (have: alice, , 2001:db8:42:100::/56)"),
    (b"id;address;prefix\n",               "no column 'id' (have: id;address;prefix)"),
])
def test_a_file_without_its_columns_is_no_file_of_pins(site: Site, data: bytes, why: str) -> None:
    site.files = [str(site.folder / "pins.csv")]
    Path(site.files[0]).write_bytes(data)
    with pytest.raises(ddpd.ConfigError) as caught:
        site.load()
    assert str(caught.value) == f"{site.files[0]}:1: {why}"


def test_a_header_alone_is_a_file_of_no_pins(site: Site) -> None:
    site.csv()
    config = site.load()
    assert (owned(config), named(config)) == ({}, [])


def test_a_file_that_is_not_there(site: Site) -> None:
    site.files = [str(site.folder / "none.csv")]
    with pytest.raises(ddpd.ConfigError, match=r"none\.csv: No such file"):
        site.load()


# ---- of two that overlap, the one that stands later goes

def test_another_file_comes_later(site: Site) -> None:
    site.csv("alice,,2001:db8:42:100::/56", name="a.csv")
    site.csv("bob,,2001:db8:42:1c0::/58", "bob,,2001:db8:42:200::/56", name="b.csv")
    config = site.load()
    assert named(config) == ["b.csv:2: skipped: 2001:db8:42:1c0::/58 overlaps 2001:db8:42:100::/56 of a.csv:2"]
    assert owned(config) == KEPT


def obvious(rows: list[ddpd.Prefix]) -> list[ddpd.Prefix]:
    """In the order of the lines: a row that overlaps one that was kept is a bad row."""
    kept: list[ddpd.Prefix] = []
    for row in rows:
        if not any(row.overlaps(other) for other in kept):
            kept.append(row)
    return sorted(kept)


class Rows(ddpd.Files):
    """A file of pins that is none."""

    def __init__(self, pins: list[ddpd.Prefix]) -> None:
        self.rows = pins

    def pins(self, file: str) -> Iterator[ddpd.PinRow | str]:
        for line, pin in enumerate(self.rows, 1):
            yield ddpd.PinRow(file, line, "nobody", "", str(pin))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(56, 60)), max_size=12))
def test_rows_overlap_as_the_obvious_loop_says(rows: list[tuple[int, int]]) -> None:
    """One that is skipped costs none that it overlaps."""
    base = P("2001:db8:42::/56").first
    pins = [ddpd.Prefix(6, base + (n << 68), 60).network(length) for n, length in rows]
    config = ddpd.read_config("[ddpd]\npins = f\n", "t", Rows(pins))
    assert config.pins.ordered == obvious(pins)
    assert len(config.skipped) == len(pins) - len(obvious(pins))


def test_pins_of_the_configuration_come_first_and_in_their_order(site: Site) -> None:
    site.who, site.more = ["alice"], "limit = 4\npin = 2001:db8:42:900::/56 2001:db8:42:300::/56"
    site.csv("alice,,2001:db8:42:100::/56", "alice,,2001:db8:42:300::/56")
    hub = site.hub()
    assert len(named(hub.node.config)) == 1
    got = hub.get("alice", *[want(slot, "::/56") for slot in range(3)])
    assert [str(prefix) for prefix in got] == [f"2001:db8:42:{n}00::/56" for n in (9, 3, 1)]


# ---- whose a row is

IDS = ["duid:00010001abcdef", "remote-id-str:9:access-7/1.42", "interface-id:0a0b0c", "interface-id-str:eth0/3",
       "remote-id:9:00ff", "customer-4711", "x" * 250]


@pytest.mark.parametrize("name", IDS)
def test_ids_of_dhcpkit_are_names_of_grantees(site: Site, name: str) -> None:
    site.who = ["bob"]
    site.sections = grantee("alice", "limit = 2").replace("[grantee alice]", f"[grantee {name}]")
    site.csv(f"{name},2001:db8:42::1,2001:db8:42:100::/56", GOOD[1])
    hub = site.hub()
    assert owned(hub.node.config) == {"2001:db8:42::1/128": name, "2001:db8:42:100::/56": name,
                                      "2001:db8:42:200::/56": "bob"}
    assert set(hub.get("alice", want(0, "::/56"), want(1, "::/128"))) == {
        P("2001:db8:42:100::/56"), P("2001:db8:42::1")}


def test_an_id_may_be_a_public_key(site: Site) -> None:
    site.csv(*(row.replace(name, ddpd.show_key(KEYS[name])) for row, name in zip(GOOD, KEYS, strict=False)))
    assert owned(site.load()) == KEPT


def test_a_name_is_exact(site: Site) -> None:
    site.csv("Alice,,2001:db8:42:100::/56", f"{ddpd.show_key(KEYS['bob'])[:8]},,2001:db8:42:200::/56")
    assert set(owned(site.load()).values()) == {""}


# ---- SQLite

ROWS = [("alice", None, "2001:db8:42:100::/56"), ("bob", "10.0.0.1", ""), ("bob", "", " 2001:db8:42:200::/56 "),
        (4711, None, "2001:db8:42:300::/56"), ("alice", None, None), (None, None, "2001:db8:42:400::/56"),
        ("alice", None, "2001:db8:42:180::/57"), ("alice", "10.0.0.1/32", None)]


def test_sqlite_says_the_same_as_csv(site: Site) -> None:
    site.csv(*(",".join("" if part is None else str(part) for part in row) for row in ROWS))
    told = site.load()
    site.files = []
    site.sqlite(*ROWS)
    config = site.load()
    assert owned(config) == owned(told) and len(owned(config)) == 4
    assert [line.partition(": ")[2] for line in named(config)] == [
        line.partition(": ")[2].replace("csv:2", "sqlite:1") for line in named(told)]
    assert [line.partition(": ")[0] for line in named(config)] == [f"pins.sqlite:{n}" for n in (5, 6, 8, 7)]


@pytest.mark.parametrize("table", ["assignments(prefix, id, address, note)",
                                   "assignments(prefix, id PRIMARY KEY, address, note) WITHOUT ROWID"])
def test_a_table_with_other_columns(site: Site, table: str) -> None:
    path = str(site.folder / "pins.sqlite")
    site.files = [path]
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE TABLE {table}")
        db.execute("INSERT INTO assignments VALUES ('2001:db8:42:100::/56', 'alice', NULL, 'x')")
    assert owned(site.load()) == {"2001:db8:42:100::/56": "alice"}


@pytest.mark.parametrize("columns", ["n, n, n", "count(*), '', ''"])
def test_a_view_without_an_end_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    path = str(site.folder / "pins.sqlite")
    site.files = [path]
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE VIEW assignments(id, address, prefix) AS WITH RECURSIVE endless(n) AS "
                   f"(SELECT 1 UNION ALL SELECT n + 1 FROM endless) SELECT {columns} FROM endless")
    monkeypatch.setattr(ddpd, "SQLITE_S", 0.1)
    with pytest.raises(ddpd.ConfigError, match=r"pins.sqlite: its rows have no end within 0.1 s"):
        site.load()


@pytest.mark.parametrize("name", ["a b.sqlite", "a%20b.sqlite", "a?mode=rw.sqlite", "a#b.sqlite", "pins.csv"])
def test_sqlite_is_told_by_its_first_bytes_whatever_its_name(site: Site, name: str) -> None:
    site.sqlite(("alice", None, "2001:db8:42:100::/56"), name=name)
    path = site.files.pop()
    rows = [row for row in ddpd.FilesOnDisk().pins(path) if isinstance(row, ddpd.PinRow)]
    assert [(row.line, row.id, row.address, row.prefix) for row in rows] == [(1, "alice", "", "2001:db8:42:100::/56")]
    assert os.listdir(site.folder) == [name], "and nothing else was made"


def test_a_row_that_is_no_text_is_a_bad_row(site: Site) -> None:
    path = site.sqlite(("alice", None, "2001:db8:42:100::/56"), ("bob", None, "2001:db8:42:200::/56"))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO assignments VALUES (CAST(x'ff' AS TEXT), NULL, '2001:db8:42:300::/56')")
        db.execute("INSERT INTO assignments VALUES ('alice', NULL, x'00ff')")
    config = site.load()
    assert KEPT.items() <= owned(config).items()
    assert any(line.startswith("pins.sqlite:4: skipped: ") for line in named(config))


@pytest.mark.parametrize(("spoil", "why"), [
    (lambda data: data[:100] + b"\xff" * 400 + data[500:], "malformed|disk image|not a database"),
    (lambda data: data[:16] + b"not a database" * 100,     "malformed|disk image|not a database"),
    (lambda data: data[:1000],                             "malformed|disk image|no such table|not a database|I/O"),
    (lambda data: data.replace(b"assignments", b"assIgnmentz"), "no such table|malformed"),
    (lambda data: data.replace(b"address", b"addrezz"),    "no such column"),
])
def test_a_broken_sqlite_file_is_named(site: Site, spoil: Callable[[bytes], bytes], why: str) -> None:
    path = site.sqlite(*ROWS[:3])
    Path(path).write_bytes(spoil(Path(path).read_bytes()))
    with pytest.raises(ddpd.ConfigError, match=why) as caught:
        site.load()
    assert str(caught.value).startswith(f"{path}: ")


def test_a_database_that_another_has_locked_is_waited_for_but_not_for_ever(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpd, "BUSY_S", 0.1)
    path = site.sqlite(*ROWS[:3])
    with closing(sqlite3.connect(path)) as db:
        db.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        with pytest.raises(ddpd.ConfigError, match="locked"):
            site.load()
    assert time.monotonic() - begun < 4


def test_without_sqlite_the_package_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path = site.sqlite(*ROWS[:3])
    true_import = builtins.__import__

    def slim(name: str, *rest: Any) -> Any:
        if name == "sqlite3":
            raise ModuleNotFoundError("No module named 'sqlite3'")
        return true_import(name, *rest)
    monkeypatch.setattr(builtins, "__import__", slim)
    with pytest.raises(ddpd.ConfigError) as caught:
        site.load()
    assert str(caught.value) == f"{path}: SQLite needs a package that is missing: python3-sqlite3"


# ---- a folder of grantees

def lines_of(name: str, more: str = "") -> list[str]:
    """Of a section, without its head."""
    return grantee(name, more).strip().split("\n")[1:]


def test_one_small_file_each_with_and_without_a_head(site: Site) -> None:
    site.who = ["carol"]
    site.file("alice.conf", *lines_of("alice", "limit = 7"))
    site.file("whatever", "; bob's", "", "[grantee bob]", *lines_of("bob", "pin = 2001:db8:42:200::/56"))
    config = site.load()
    assert named(config) == []
    assert {a.name: a.limit for a in config.agreements.values()} == {"carol": 4, "alice": 7, "bob": 1}
    assert owned(config) == {"2001:db8:42:200::/56": "bob"}


def test_hidden_files_backups_and_folders_are_none(site: Site) -> None:
    site.who = []
    site.file("alice.conf", *lines_of("alice"))
    site.file(".bob.conf.swp", b"\xff\0")
    site.file("bob.conf~", *lines_of("bob"))
    (site.folder / "grantees.d" / "old").mkdir()
    config = site.load()
    assert (named(config), [a.name for a in config.agreements.values()]) == ([], ["alice"])


BAD_FILES = {                              # lines, where in the file, why
    "no key":       (["pools = home"],                 "1: [grantee b] key", "missing: its public key"),
    "no such pool": (["key = {key}", "pools = hom"],   "2: [grantee b] pools", "no pool named 'hom' (have: home)"),
    "no such key":  (["key = {key}", "pool = home"],   "2: [grantee b] pool", "no such key (did you mean 'pools'?)"),
    "twice":        (["key = {key}", "key = {key}"],   "2: [grantee b] key", "given twice (first in line 1)"),
    "another kind": (["[pool x]", "prefix = ula"],     "1: [pool x]", "only a [grantee] stands here"),
    "words":        (["hello"],                        "1: [grantee b]", "'hello' is not `key = value`"),
    "empty":        ([""],                             "1: [grantee b] key", "missing: its public key"),
    "bad pin":      (["key = {key}", "pools = home", "pin = x"], "3: [grantee b] pin", "'x' is not an IP address"),
    "same name":    (["[grantee alice]", "key = {key}", "pools = home"],
                     "1: [grantee alice]", "a grantee of this name stands elsewhere too"),
    "same key":     (["key = {alice}", "pools = home"],
                     "1: [grantee b] key", "the same as that of alice"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_and_costs_nobody_else_anything(site: Site, kind: str) -> None:
    lines, where, why = BAD_FILES[kind]
    keys = {"key": ddpd.show_key(KEYS["bob"]), "alice": ddpd.show_key(KEYS["alice"])}
    site.who = []
    site.file("a.conf", "[grantee alice]", *lines_of("alice"))
    site.file("b.conf", *(line.format(**keys) for line in lines))
    site.file("c.conf", *lines_of("carol"))
    config = site.load()
    assert named(config) == [f"grantees.d/b.conf:{where}: {why}"]
    assert [a.name for a in config.agreements.values()] == ["alice", "c"]


def test_a_file_that_is_no_text_is_named_for_what_it_is(site: Site) -> None:
    site.who = []
    site.file("a.conf", *lines_of("alice"))
    site.file("b.conf", b"\xff\xfe")
    config = site.load()
    assert named(config) == ["grantees.d/b.conf: not UTF-8"]
    assert [a.name for a in config.agreements.values()] == ["a"]


def test_a_folder_that_is_not_there(site: Site) -> None:
    site.grantees = str(site.folder / "none")
    with pytest.raises(ddpd.ConfigError, match="none: No such file"):
        site.load()


def test_a_pin_given_twice_is_the_first_ones(site: Site) -> None:
    site.who = []
    for name in ("alice", "bob"):
        site.file(f"{name}.conf", *lines_of(name, "pin = 2001:db8:42:100::/56"))
    site.csv("bob,,2001:db8:42:100::/56")
    config = site.load()
    assert owned(config) == {"2001:db8:42:100::/56": "alice"}
    assert [line.partition(":")[0] for line in named(config)] == ["grantees.d/bob.conf", "pins.csv"]
    assert {a.name: a.pins for a in config.agreements.values()} == {
        "alice": (P("2001:db8:42:100::/56"),), "bob": ()}


@pytest.mark.parametrize("head", [[], ["[grantee bob]"]], ids=["its name", "a head"])
def test_a_file_that_goes_bad_leaves_its_agreement_as_it_was(site: Site, head: list[str]) -> None:
    """With its pins, those of its own lines and those of the files of pins."""
    site.who = ["alice"]
    file = "bob" if not head else "customer-2"
    site.file(f"{file}.conf", *head, *lines_of("bob", "limit = 3\npin = 2001:db8:42:700::/56"))
    site.csv("bob,,2001:db8:42:200::/56")
    hub = site.hub()
    before = hub.node.config.agreements[KEYS["bob"]]
    got = hub.get("bob", want(0, "::/56"), want(1, "::/56"), want(2, "::/60"))
    site.file(f"{file}.conf", *head, *lines_of("bob"), "limit = many")
    site.feed(hub)
    assert len(named(hub.node.config)) == 1, named(hub.node.config)
    after = hub.node.config.agreements.get(KEYS["bob"])
    assert after == before and hub.get("bob", want(0, "::/56"), want(1, "::/56"), want(2, "::/60")) == got
    site.feed(hub)
    assert hub.node.config.agreements.get(KEYS["bob"]) == before, "and at the next reload too"


def test_a_file_that_is_removed_takes_its_agreement_with_it(site: Site) -> None:
    site.who = ["alice"]
    path = site.file("bob.conf", *lines_of("bob"))
    hub = site.hub()
    assert hub.get("bob", want(0))
    os.unlink(path)
    site.feed(hub)
    assert hub.grantor.peer_of(KEYS["bob"]) is None


# ---- pins and drawn leases in one pool

SMALL = "[pool home]\nprefix = 2001:db8:42::/56\ngive = /60-/64\nlifetime = 1h\nreserve = 2001:db8:42:f0::/60\n"
HOLE = P("2001:db8:42:f0::/60")


def some_pins(dice: random.Random) -> list[tuple[str, ddpd.Prefix]]:
    """None overlaps another, or the hole."""
    found: list[tuple[str, ddpd.Prefix]] = []
    for _ in range(dice.randrange(8)):
        pin = ddpd.Prefix(6, P("2001:db8:42::/56").first + (dice.randrange(256) << 64), 64).network(
            dice.choice([60, 61, 62, 63, 64, 64]))
        if not any(pin.overlaps(other) for other in [HOLE, *(row[1] for row in found)]):
            found.append((dice.choice([*KEYS, "nobody"]), pin))
    return found


class Crowd:
    """Asks and reloads at random, and what must hold after each."""

    def __init__(self, site: Site, seed: int) -> None:
        self.dice, self.site = random.Random(seed), site
        site.pools, site.more = SMALL, "limit = 3\nrate = 1000/1s"
        self.pins: list[tuple[str, ddpd.Prefix]] = []
        site.csv()
        self.hub = site.hub()

    def reload(self) -> None:
        self.pins = some_pins(self.dice)
        self.site.csv(*(f"{name},,{pin}" for name, pin in self.pins))
        self.site.feed(self.hub)
        assert not self.hub.node.config.skipped

    def ask(self) -> None:
        name = self.dice.choice(list(KEYS))
        wants = [want(slot, f"::/{self.dice.randint(60, 64)}") for slot in range(4) if self.dice.random() < 0.5]
        free = [slot for slot in range(4) if slot not in [each.slot for each in wants]]
        before = set(self.hub.living())
        answer = self.hub.ask(name, *wants, releases=tuple(s for s in free if self.dice.random() < 0.2))
        for grant in answer.grants:
            if grant.current and grant.prefix not in before:
                self.judge(name, grant.prefix)

    def judge(self, name: str, new: ddpd.Prefix) -> None:
        """A new lease: a pin of its own, or outside of all pins and holes."""
        assert not new.overlaps(HOLE), f"{name} got {new}, in a hole"
        for owner, pin in self.pins:
            assert not pin.overlaps(new) or (owner == name and pin.holds(new)), f"{name} got {new}: {pin} is {owner}'s"

    def check(self) -> None:
        for one, other in itertools.pairwise(sorted(self.hub.living())):
            assert not one.overlaps(other), f"{one} and {other} live both"


@pytest.mark.parametrize("seed", range(12))
def test_pins_that_come_and_go_never_collide_with_leases(site: Site, seed: int) -> None:
    crowd = Crowd(site, seed)
    for _ in range(250):
        act = crowd.dice.random()
        if act < 0.1:
            crowd.reload()
        elif act < 0.15:
            crowd.hub.later(crowd.dice.choice([60, 1800, 4000]))
        else:
            crowd.ask()
        crowd.check()


def test_a_pin_that_goes_leaves_the_lease_to_who_has_it(site: Site) -> None:
    site.csv(*GOOD)
    hub = site.hub()
    assert hub.get("alice", want(0, "::/56")) == [P("2001:db8:42:100::/56")]
    site.csv(GOOD[1])
    assert site.feed(hub).get("alice", want(0, "::/56")) == [P("2001:db8:42:100::/56")]


def test_a_pin_that_changes_hands_is_the_others_when_the_lease_is_over(site: Site) -> None:
    site.csv(GOOD[0])
    hub = site.hub()
    hub.get("alice", want(0, "::/56"))
    site.csv(GOOD[0].replace("alice", "bob"))
    site.feed(hub)
    assert hub.refused("bob", want(0, "::/56")) == [ddpd.Reason.FULL]
    assert hub.get("alice", want(0, "::/56")) != [P("2001:db8:42:100::/56")]
    hub.later(3601)
    assert hub.get("bob", want(0, "::/56")) == [P("2001:db8:42:100::/56")]


# ---- agreements

FOUR = "[pool four]\nprefix = 10.0.0.0/16\ngive = /28-/32\nlifetime = 1h\n"


def test_total_is_the_sum_of_a_family() -> None:
    hub = Hub(HOME + FOUR + grantee("alice", "limit = 9\ntotal = ::/59 0.0.0.0/30", "home four"), [])
    assert len(hub.get("alice", want(0, "::/60"), want(1, "::/61"))) == 2
    refusal, = hub.ask("alice", want(2, "::/60")).refusals
    assert (refusal.reason, refusal.text) == (ddpd.Reason.LIMIT, "more than `total`")
    assert len(hub.get("alice", want(0, "::/60"), want(1, "::/61"), want(2, "::/61"))) == 3, "just full"
    hub.later(30)
    assert hub.refused("alice", want(3, "::/64")) == [ddpd.Reason.LIMIT]
    assert len(hub.get("alice", want(4, "0.0.0.0/31"), want(5, "0.0.0.0/32"), want(6, "0.0.0.0/32"))) == 3
    hub.later(30)
    assert hub.refused("alice", want(7, "0.0.0.0/32")) == [ddpd.Reason.LIMIT]
    hub.ask("alice", releases=(0,))
    assert len(hub.get("alice", want(3, "::/60"))) == 1, "what is released counts no longer"


def test_total_counts_what_the_slot_has_only_once() -> None:
    hub = Hub(HOME + grantee("alice", "total = ::/60"), [])
    first = hub.get("alice", want(0, "::/60"))
    assert hub.get("alice", want(0, "::/60")) == first
    assert len(hub.get("alice", want(0, "::/61"))) == 1, "another in its place"


@pytest.mark.parametrize(("bounds", "valid_s"), [
    ("30m", 1800), ("2h", 3600), ("2h-4h", 7200), ("10m-30m", 1800), ("forever", 3600), ("90s-90s", 90)])
def test_bounds_of_the_lifetime(bounds: str, valid_s: int) -> None:
    hub = Hub(HOME, ["alice"], f"lifetime = {bounds}")
    grant, = hub.ask("alice", want(0)).grants
    assert grant.valid_s == valid_s and grant.preferred_s <= valid_s
    hub.later(valid_s - 1)
    assert hub.living()
    hub.later(2)
    assert not hub.living()


def test_until() -> None:
    """The lease ends with the agreement, whatever is asked; then nothing is given."""
    hub = Hub(HOME, ["alice"], "until = 2023-11-14T23:13")      # just under an hour after WALL
    end_s = ddpd.parse_date("2023-11-14T23:13") - WALL
    assert 3500 < end_s < 3600
    prefix, = hub.get("alice", want(0))
    for _ in range(4):
        hub.later(800)
        answer = hub.ask("alice", want(0))
        grant, = answer.grants
        assert grant.prefix == prefix and grant.valid_s == int(end_s - (hub.wall - WALL))
        assert answer.times is not None
        assert 0 < answer.times[0] <= answer.times[1] <= grant.valid_s and grant.preferred_s <= grant.valid_s
    hub.later(end_s - 3200 + 1)
    assert hub.living() == []
    refusal, = hub.ask("alice", want(0)).refusals
    assert (refusal.reason, refusal.text) == (ddpd.Reason.ENDED, "the agreement is over")


def test_until_that_is_put_off_by_a_reload() -> None:
    hub = Hub(HOME, ["alice"], "until = 2023-11-14T23:13")
    first = hub.get("alice", want(0))
    hub.later(3000)
    hub.configure(HOME, ["alice"], "until = 2024-01-01")
    assert hub.ask("alice", want(0)).grants[0].valid_s == 3600
    hub.later(3000)
    assert hub.get("alice", want(0)) == first


def test_an_agreement_that_is_over_ends_what_is_asked_for_early() -> None:
    """The date is brought forward: the next ask is refused, and the lease goes by itself."""
    hub = Hub(HOME, ["alice"])
    hub.get("alice", want(0))
    hub.configure(HOME, ["alice"], "until = 2020-01-01")
    assert hub.refused("alice", want(0)) == [ddpd.Reason.ENDED]
    hub.later(3601)
    assert hub.living() == []


def test_a_rate_of_ones_own() -> None:
    hub = Hub(HOME + grantee("alice", "limit = 9\nrate = 1/10m") + grantee("bob", "limit = 9"), [])
    assert hub.refused("alice", want(0), want(1)) == [ddpd.Reason.RATE]
    assert len(hub.get("bob", want(0), want(1), want(2))) == 3
    refusal, = hub.ask("alice", want(0), want(1)).refusals
    assert refusal.again_s == 601
    hub.later(refusal.again_s)
    assert len(hub.get("alice", want(0), want(1))) == 2


def test_a_refused_ask_takes_no_token() -> None:
    hub = Hub(HOME, ["alice"], "limit = 1\nrate = 2/1h")
    hub.get("alice", want(0))
    for _ in range(5):
        assert hub.refused("alice", want(0), want(1)) == [ddpd.Reason.LIMIT]
    hub.ask("alice", releases=(0,))
    assert len(hub.get("alice", want(1))) == 1


# ---- shares


@pytest.mark.parametrize(("own", "inside"), [(1, "2001:db8:42::/49"), (2, "2001:db8:42:8000::/49")])
def test_each_draws_from_its_own_share(own: int, inside: str) -> None:
    hub = Hub(HOME + f"share = {own}/2\n", more="limit = 9\nrate = 99/1s")
    got = [prefix for name in KEYS for prefix in hub.get(name, *[want(slot) for slot in range(8)])]
    assert len(got) == 24 and all(P(inside).holds(prefix) for prefix in got)


def test_a_pin_of_the_other_share_is_a_pin(site: Site) -> None:
    site.pools = HOME + "share = 2/2\n"
    site.csv(*GOOD)
    assert site.hub().get("alice", want(0, "::/56")) == [P("2001:db8:42:100::/56")]


# ---- pools that move

def test_a_pool_that_moves_keeps_the_subnet_bits() -> None:
    hub = Hub(HOME, more="limit = 9")
    wants = [want(0, "::/56"), want(1, "::/60"), want(2, "::/64")]
    old = {name: hub.get(name, *wants) for name in KEYS}
    hub.later(60)                                              # their buckets are full again
    hub.configure(HOME.replace(":42:", ":77:"))
    for name in KEYS:
        answer = hub.ask(name, *wants)
        new = [grant.prefix for grant in answer.grants if grant.current]
        assert [str(prefix) for prefix in new] == [str(p).replace(":42:", ":77:") for p in old[name]]
        assert {grant.prefix for grant in answer.grants if not grant.current} == set(old[name])
        assert all(grant.preferred_s == 0 for grant in answer.grants if not grant.current)


def test_bits_that_are_taken_there_are_drawn() -> None:
    """By a pin, or a hole: then another, never two of one."""
    hub = Hub(HOME, more="limit = 9")
    first, second = hub.get("alice", want(0, "::/56"), want(1, "::/56"))
    there = [str(prefix).replace(":42:", ":77:") for prefix in (first, second)]
    text = HOME.replace(":42:", ":77:") + f"reserve = {there[0]}\n"
    hub.configure(text + grantee("carol", f"pin = {there[1]}"), ["alice", "bob"])
    got = hub.get("alice", want(0, "::/56"), want(1, "::/56"))
    assert len(set(got)) == 2 and not {str(prefix) for prefix in got} & set(there)
    assert hub.get("carol", want(0, "::/56")) == [P(there[1])]


def test_a_pool_that_becomes_smaller_keeps_what_fits() -> None:
    hub = Hub(HOME, ["alice"])
    old, = hub.get("alice", want(0))
    hub.configure(HOME.replace("2001:db8:42::/48", "2001:db8:77::/56"), ["alice"])
    new, = hub.get("alice", want(0))
    assert new.first & 0xFF << 64 == old.first & 0xFF << 64 and P("2001:db8:77::/56").holds(new)


# ---- revoked

def test_a_revoked_lease_is_nobodys_and_is_told_over() -> None:
    hub = Hub("[pool home]\nprefix = 2001:db8:42::/63\ngive = /64\nlifetime = 1h\n", more="limit = 1")
    prefix, = hub.get("alice", want(0))
    hub.node.revoke(hub.peer("alice"), 0, hub.now)
    assert hub.living() == []
    answer = hub.ask("alice", want(0, str(prefix)))
    assert [refusal.reason for refusal in answer.refusals] == [ddpd.Reason.REVOKED]
    assert [(g.prefix, g.current, g.valid_s) for g in answer.grants] == [(prefix, False, 0)]
    assert hub.get("bob", want(0)) and hub.refused("carol", want(0)) == [ddpd.Reason.FULL]
    hub.later(ddpd.REVOKED_S)
    assert hub.refused("alice", want(0)) == [ddpd.Reason.FULL], "not for who had it either"


def test_after_a_revoke_another_may_be_had() -> None:
    hub = Hub(HOME)
    prefix, = hub.get("alice", want(0))
    hub.node.revoke(hub.peer("alice"), None, hub.now)
    refusal, = hub.ask("alice", want(0, str(prefix))).refusals
    hub.later(refusal.again_s)
    other, = hub.get("alice", want(0))
    assert other != prefix
    hub.restart()
    assert hub.get("alice", want(0)) == [other] and not hub.grantor.stock.is_free(prefix)
    hub.later(30 * 86400 + 1)
    assert hub.grantor.stock.is_free(prefix)


def test_a_ticket_of_what_is_revoked_is_refused() -> None:
    hub = Hub(HOME)
    grant, = hub.ask("alice", want(0)).grants
    hub.node.revoke(hub.peer("alice"), None, hub.now)
    for slot in (0, 1):
        assert hub.get("alice", want(slot, str(grant.prefix), grant.ticket)) == []


# ---- accounting

class Billed(Hub):
    """A hub whose accounting lines are kept."""

    def __init__(self, text: str = HOME, **ways: Any) -> None:
        super().__init__("[ddpd]\naccounting = /var/log/ddpd.jsonl\n" + text, **ways)
        self.rows: list[ddpd.Record] = []

    def bill(self, effects: Iterable[ddpd.Effect]) -> None:
        self.rows += [effect.row for effect in effects if isinstance(effect, ddpd.Account)]

    def ask(self, *words: Any, **more: Any) -> ddpd.Answer:
        answer = super().ask(*words, **more)
        self.bill(self.effects)
        return answer

    def later(self, s: float) -> None:
        super().later(s)
        self.bill(self.effects)

    def configure(self, text: str, *words: Any, **more: Any) -> list[ddpd.Effect]:
        effects = super().configure("[ddpd]\naccounting = /var/log/ddpd.jsonl\n" + text, *words, **more)
        self.bill(effects)
        return effects

    def events(self) -> list[tuple[str, str, str]]:
        return [(row["event"], row["grantee"], row["prefix"]) for row in self.rows]

    def check(self) -> None:
        """Whatever happened: a lease is begun once, and once at most it ends."""
        running: set[tuple[str, str]] = set()
        for row in self.rows:
            lease = row["key"], row["prefix"]
            assert (lease in running) == (row["event"] != "begun"), f"{row} in {self.rows}"
            running ^= {lease}
        living = {(ddpd.show_key(peer.key), str(lease.prefix)) for peer in self.grantor.peers.values()
                  for lease in peer.living()}
        assert running == living


def test_a_line_says_who_what_and_when_and_nothing_secret() -> None:
    hub = Billed()
    prefix, = hub.get("alice", want(3))
    hub.later(10)
    hub.ask("alice", releases=(3,))
    common = {"grantee": "alice", "key": ddpd.show_key(KEYS["alice"]), "slot": 3, "prefix": str(prefix),
              "begun": int(WALL)}
    assert hub.rows == [common | {"time": int(WALL), "event": "begun"},
                        common | {"time": int(WALL) + 10, "event": "ended"}]


def test_a_revoke_is_the_end() -> None:
    hub = Billed()
    prefix, = hub.get("alice", want(0))
    hub.bill(hub.node.revoke(hub.peer("alice"), None, hub.now))
    hub.ask("alice", want(0, str(prefix)))
    hub.later(31 * 86400)
    assert hub.events() == [("begun", "alice", str(prefix)), ("revoked", "alice", str(prefix))]


def test_what_ran_out_while_nobody_ran_is_ended_at_the_start() -> None:
    hub = Billed()
    hub.get("alice", want(0))
    file = ddpd.LeaseFile()
    data = b"".join(file.whole(hub.node.records(True, hub.now)))
    hub.boot, hub.wall = hub.boot + 7200, hub.wall + 7200
    hub.reborn()
    found, _ = ddpd.parse_lease_file(data.decode().split("\n"))
    hub.node.restore([record for _, record in found.values()], hub.now)
    hub.later(0)
    assert [row["event"] for row in hub.rows] == ["begun", "ended"]


def test_who_is_no_longer_configured_is_still_named() -> None:
    hub = Billed()
    hub.get("alice", want(0))
    hub.configure(HOME, ["bob"])
    hub.later(3601)
    assert [row["grantee"] for row in hub.rows] == ["alice", "alice"]


def act(hub: Billed, dice: random.Random) -> None:
    name = dice.choice(list(KEYS))
    wants = [want(slot, f"::/{dice.choice([60, 62, 64])}") for slot in range(3) if dice.random() < 0.5]
    slots = [each.slot for each in wants]
    chance = dice.random()
    if chance < 0.06:
        hub.restart(dice.random() < 0.5)
    elif chance < 0.12:
        hub.configure(HOME.replace(":42:", dice.choice([":42:", ":77:"])))
    elif chance < 0.18:
        hub.bill(hub.node.revoke(hub.peer(name), dice.choice([None, 0, 1]), hub.now))
    elif chance < 0.22:
        hub.bill(hub.node.forgive(hub.peer(name), None, hub.now))
    elif chance < 0.4:
        hub.later(dice.choice([10, 1800, 3601, 10_000]))
    else:
        hub.ask(name, *wants, releases=tuple(s for s in range(3) if s not in slots and dice.random() < 0.2))


@pytest.mark.parametrize("seed", range(8))
def test_exactly_once_whatever_happens(seed: int) -> None:
    dice, hub = random.Random(seed), Billed(more="limit = 4\nrate = 99/1s")
    for _ in range(150):
        act(hub, dice)
        hub.check()


# ---- the file of the accounting log

class Book:
    """A daemon that only keeps accounts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.daemon = ddpd.Daemon.__new__(ddpd.Daemon)
        text = f"[ddpd]\naccounting = {path}\n"
        self.daemon.config = ddpd.read_config(text, "t")
        self.daemon.node = ddpd.Node(self.daemon.config, bytes(32), "b", random.Random(1).randbytes)
        self.daemon.unwritten = []

    def note(self, n: int) -> None:
        self.daemon.converge([[ddpd.Account(("granted", str(n)), {"n": n})]])

    def rows(self) -> list[int]:
        return [json.loads(line)["n"] for line in self.path.read_text().splitlines() if line.endswith("}")]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "account.jsonl")


def test_the_log_is_appended_to_and_ours_alone(book: Book) -> None:
    book.path.write_text('{"n": 0}\n')
    for n in (1, 2):
        book.note(n)
    assert book.rows() == [0, 1, 2]
    book.path.unlink()
    book.note(3)
    assert book.rows() == [3] and book.path.stat().st_mode & 0o077 == 0


def test_a_torn_last_line_stays_alone(book: Book) -> None:
    book.path.write_text('{"n": 0}\n{"n": 1, "gran')
    book.note(2)
    book.note(3)
    assert book.path.read_text() == '{"n": 0}\n{"n": 1, "gran\n{"n": 2}\n{"n": 3}\n'


class Full:
    """A file on a full disk: nothing of what is written, or only a part."""

    def __init__(self, file: Any, part: int | None) -> None:
        self.file, self.part = file, part

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *why: object) -> None:
        self.file.close()

    def seek(self, *where: int) -> int:
        at: int = self.file.seek(*where)
        return at

    def write(self, data: bytes) -> int:
        if self.part is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        written: int = self.file.write(data[:self.part])
        return written


@pytest.mark.parametrize("part", [None, 0, 3])
def test_a_full_disk_keeps_the_lines_and_writes_them_later(book: Book, part: int | None,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    true_open = open
    book.note(0)
    monkeypatch.setattr(builtins, "open", lambda *words, **more: Full(true_open(*words, **more), part))
    book.note(1)
    book.note(2)
    monkeypatch.undo()
    assert book.rows() == [0]
    book.note(3)
    assert book.rows() == [0, 1, 2, 3]


def test_lines_that_wait_are_bounded_and_what_is_lost_is_counted(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpd, "MAX_UNWRITTEN", 3)
    book.path.mkdir()
    for n in range(5):
        book.note(n)
    assert len(book.daemon.unwritten) == 3 and book.daemon.node.counters["accounting lost"] == 2
    book.path.rmdir()
    book.note(9)
    assert Counter(book.rows()) == Counter([0, 1, 2])


def test_what_could_not_be_promised_is_not_billed(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpd.Daemon, "save", lambda *_: {("granted", "1")})
    book.daemon.converge([[ddpd.Account(("granted", str(n)), {"n": n})] for n in (1, 2)])
    assert book.rows() == [2]


# ---- files that never end

@pytest.mark.parametrize(("what", "place"), [
    (what, place) for what in ("pipe", "endless", "large") for place in ("pins.csv", "grantees.d/bob.conf", "site.py")
    if (what, place) != ("large", "pins.csv")])                   # pins may be many
def test_what_is_no_file_of_bearable_length_is_refused_and_never_waited_for(
        site: Site, what: str, place: str) -> None:
    path = site.folder / place
    path.parent.mkdir(exist_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "endless":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 32)
    site.who = ["alice"]
    if place == "pins.csv":
        site.files = [str(path)]
        with pytest.raises(ddpd.ConfigError, match=r"pins\.csv: no file"):
            site.load()
    elif place == "site.py":
        with pytest.raises(ddpd.ConfigError, match="not a file of at most"):
            ddpd.load_handlers(str(path))
    else:
        site.grantees = str(path.parent)
        assert named(site.load()) == [f"{place}: not a file of at most {ddpd.MAX_OWN} bytes"]


def test_a_line_without_end_is_a_bad_row(site: Site) -> None:
    site.csv(GOOD[0], "x" * 3 * ddpd.MAX_OWN, GOOD[1])
    config = site.load()
    assert owned(config) == KEPT and 1 <= len(named(config)) <= 4


@pytest.mark.parametrize("name", [f"bob.conf{end}" for end in ddpd.LEFTOVERS])
def test_what_editors_and_packagers_leave_is_no_grantee(site: Site, name: str) -> None:
    site.who = []
    site.file("alice.conf", *lines_of("alice"))
    site.file(name, *lines_of("bob"))
    assert [agreement.name for agreement in site.load().agreements.values()] == ["alice"]
