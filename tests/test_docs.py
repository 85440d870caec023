"""What the pages say is what the code does."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import ddpd
import docs
from roff import roff

ROOT = Path(__file__).resolve().parent.parent
SOURCE = (ROOT / "ddpd.py").read_text()


PAGES = (*(path.name for path in sorted(ROOT.glob("*.md"))), "tests/README.md",
         *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))


@pytest.mark.parametrize("page", [*docs.PAGES, *docs.MANUALS])
def test_what_is_made_is_as_the_code(page: str) -> None:
    assert (ROOT / page).read_text() == docs.due()[page], "run: make docs"


def test_the_pages_have_the_tables() -> None:
    tables = {page: {m[2] for m in docs.MARKED.finditer((ROOT / page).read_text())} for page in PAGES}
    assert tables["PROTOCOL.md"] >= {"kinds", "tlvs", "statuses", "reasons", "limits"}
    assert tables["docs/reference.md"] >= {"commands", "metrics", "limits", *ddpd.SETTINGS}
    assert tables["docs/how-it-works.md"] == {"states"}
    assert all(page in docs.PAGES for page, found in tables.items() if found), "or it would grow stale"


@pytest.mark.parametrize("table", docs.TABLES)
def test_a_stale_table_is_noticed(table: str) -> None:
    page = f"before\n<!-- table: {table} -->\nout of date\n<!-- end -->\nafter\n"
    new = docs.written("README.md", page)
    assert "out of date" not in new and new.startswith("before\n") and new.endswith("<!-- end -->\nafter\n")
    assert new.count("\n| ") > 3 and docs.written("README.md", new) == new


def test_every_row_is_there() -> None:
    assert all(f"| {row.number} | {row.name} |" in docs.tlvs("") for row in ddpd.Answer.table)
    assert all(f"`{key}`" in docs.settings(section) for section, keys in ddpd.SETTINGS.items() for key in keys)
    assert docs.limits("docs/reference.md").count("\n") > docs.limits("PROTOCOL.md").count("\n") > 10
    assert "| MAX_DATAGRAM | 1232 |" in docs.limits("PROTOCOL.md")


def test_the_capabilities_are_those_of_the_code() -> None:
    table = docs.chapter((ROOT / "docs/reference.md").read_text(), "Privileges")
    assert set(re.findall(r"(?m)^\| `(CAP_\w+)`", table)) == set(re.findall(r'"(CAP_\w+)"', SOURCE))


# ---- links


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub and others name them."""
    heads = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text))
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads)
    return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in plain}


def dead_links(page: str, text: str) -> list[str]:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?ms)^```.*?^```", "", text)):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            there = (ROOT / page).parent / name if name else ROOT / page
            if not there.is_file() or (anchor and anchor not in anchors(text if not name else there.read_text())):
                dead.append(target)
    return dead


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_dead(page: str) -> None:
    assert dead_links(page, (ROOT / page).read_text()) == []


def test_a_dead_link_is_noticed() -> None:
    text = ("# Some `[words]`, here\n[a](docs/site.md#twins) [b](docs/sites.md) [c](docs/site.md#twin) "
            "[d](#some-words-here) [e](#x)")
    assert dead_links("README.md", text) == ["docs/sites.md", "docs/site.md#twin", "#x"]


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 250
    assert [page for page in PAGES if page.startswith("docs/") and f"]({page})" not in text] == []


@pytest.mark.parametrize("place", ["ddpd.conf.example", "Makefile", "openwrt", "tests"])
def test_pages_that_are_named_exist(place: str) -> None:
    """In comments, and in what users read elsewhere."""
    files = [path for path in (ROOT / place, *(ROOT / place).rglob("*")) if path.is_file()]
    named = {name for path in files if path.suffix not in (".pyc", ".json") and path != Path(__file__)
             for name in re.findall(r"\bdocs/[\w.-]+\.(?:md|[58])\b", path.read_text(errors="replace"))}
    assert [name for name in named if not (ROOT / name).is_file()] == []


# ---- man pages


@pytest.mark.parametrize("page", docs.MANUALS)
def test_a_manual_has_all_that_it_is_about(page: str) -> None:
    text = docs.manual(page)
    wanted = [*ddpd.COMMANDS, *ddpd.FLAGS.values()] if page.endswith(".8") else [
        key for keys in ddpd.SETTINGS.values() for key in keys]
    tags = re.findall(r"(?m)^\.TP\n\\fB(\w+)", text)
    assert set(wanted) <= set(tags)
    if page.endswith(".5"):
        assert re.findall(r"(?m)^\.SS \[(\w+)", text) == list(ddpd.SETTINGS)
    assert {".SH NAME", ".SH FILES", ".SH SEE ALSO"} <= set(text.splitlines())


CONTROL = {".TH", ".SH", ".SS", ".PP", ".TP", ".IP", ".EX", ".EE"}


@pytest.mark.parametrize("page", docs.MANUALS)
def test_a_manual_is_roff(page: str) -> None:
    text = docs.manual(page)
    assert {line.split()[0] for line in text.splitlines() if line[:1] in (".", "'")} <= CONTROL | {'.\\"'}
    assert text.isascii() and set(re.findall(r"\\(\(?.)", text)) <= {*"fe-&[", *["(a", "(g", "(h", "(t", "(b"], '"'}
    for command in (["mandoc", "-Tlint"], ["groff", "-man", "-ww", "-z"]):
        if shutil.which(command[0]):
            said = subprocess.run([*command, ROOT / page], capture_output=True, text=True, check=False)
            assert [line for line in (said.stdout + said.stderr).splitlines() if "missing date" not in line] == []


def test_what_is_written_in_a_manual() -> None:
    text = ("## A head\nSome *text*, `-c`, **and [a page](site.md#x)**.\n\n* one\n  more\n* `.two`\n\n"
            "| key | default | meaning | as |\n| --- | --- | --- | --- |\n| `a` | `1` | what\\|so \u2026 | `b` |\n"
            "| `c` | required | why | |\n\n```\n.x 'y' \\\n\n```\nEnd.\n")
    assert roff("x", 5, "x 1", text).splitlines()[2:] == [
        ".SH A HEAD", r"Some \fItext\fR, \fB\-c\fR, \fBand a page (\fIsite.md\fR)\fR.",
        r".IP \(bu 2", "one more", r".IP \(bu 2", r"\fB.two\fR",
        ".TP", r"\fBa\fR (default \fB1\fR)", r"what|so ... (as: \fBb\fR)", ".TP", r"\fBc\fR (required)", "why",
        ".PP", ".EX", r"\&.x \(aqy\(aq \e", "", ".EE", ".PP", "End."]


# ---- the example

def example() -> configparser.ConfigParser:
    """As another reader of INI sees it, with the keys that stand commented out."""
    text = (ROOT / "ddpd.conf.example").read_text()
    plain = re.sub(r"(?m)^[;#] ?(?=\[|[a-z_]+ *=)", "", text)
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",), strict=False)
    parser.read_string(plain)
    return parser


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in ddpd.SETTINGS.items() for key in keys])
def test_the_example_shows_every_key_with_its_default(kind: str, key: str) -> None:
    parser = example()
    sections = [parser[name] for name in parser.sections() if name.split()[0] == kind]
    shown = [" ".join(section[key].split()) for section in sections if key in section]
    assert shown, f"[{kind}] {key} is not in ddpd.conf.example"
    default = ddpd.SETTINGS[kind][key].default
    if default:
        assert " ".join(default.split()) in shown


def test_the_example_parses() -> None:
    text = (ROOT / "ddpd.conf.example").read_text()
    ddpd.read_config(text, "ddpd.conf.example")
    ddpd.read_config(filled(text), "ddpd.conf.example")


def filled(text: str) -> str:
    """Each `<...>` that stands for a key becomes a key, none twice."""
    numbers = iter(range(1, 200))
    return re.sub(r"<[^>\n]*>", lambda _: ddpd.show_key(bytes([next(numbers)]) * 32), text)


BLOCKS = [block for block in docs.listings()
          if re.match(r"\s*(;.*\n)*\[(ddpd|pool|grantee|grantor|ndp|wireguard|tunnel)\b", block)]


def test_the_pages_have_config_examples() -> None:
    assert len(BLOCKS) >= 10 and any("grantor exit1" in block for block in docs.listings("README.md"))


@pytest.mark.parametrize("block", BLOCKS, ids=[b.split("\n")[0][:30] for b in BLOCKS])
def test_each_config_example_of_the_pages_parses(block: str) -> None:
    """A part of a file: what it refers to may stand elsewhere."""
    text = filled(block)
    for kind, name in re.findall(r"(?m)^(pools|grantor) += (\w+)", text):
        section = {"pools": f"[pool {name}]", "grantor": f"[grantor {name}]"}[kind]
        text += "" if section in text else f"\n{section}\n" + (
            "prefix = 2001:db8::/32\ngive = /56 /80 /128\n" if kind == "pools" else
            f"key = {ddpd.show_key(bytes([200]) * 32)}\naddress = ::1\nask = ::/56\n")
    ddpd.read_config(text, "page")
