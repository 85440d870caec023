"""What the pages say is what the code does."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

import ddpd
import docs

ROOT = Path(__file__).resolve().parent.parent
KEY = ddpd.show_key(bytes(range(32)))


@pytest.mark.parametrize("page", docs.PAGES)
def test_tables_are_as_the_code(page: str) -> None:
    text = (ROOT / page).read_text()
    assert docs.written(page, text) == text, "run: make docs"


def test_the_pages_have_the_tables() -> None:
    tables = {page: {m[2] for m in docs.MARKED.finditer((ROOT / page).read_text())} for page in docs.PAGES}
    assert tables["PROTOCOL.md"] >= {"kinds", "tlvs", "statuses", "reasons", "limits"}
    assert tables["README.md"] >= {"settings", "commands", "states", "limits"}


@pytest.mark.parametrize("table", docs.TABLES)
def test_a_stale_table_is_noticed(table: str) -> None:
    page = f"before\n<!-- table: {table} -->\nout of date\n<!-- end -->\nafter\n"
    new = docs.written("README.md", page)
    assert "out of date" not in new and new.startswith("before\n") and new.endswith("<!-- end -->\nafter\n")
    assert new.count("\n| ") > 3 and docs.written("README.md", new) == new


def test_every_row_is_there() -> None:
    assert all(f"| {row.number} | {row.name} |" in docs.tlvs("") for row in ddpd.Answer.table)
    assert all(f"`{key}`" in docs.settings("") for keys in ddpd.SETTINGS.values() for key in keys)
    assert docs.limits("README.md").count("\n") > docs.limits("PROTOCOL.md").count("\n") > 10
    assert "| MAX_DATAGRAM | 1232 |" in docs.limits("PROTOCOL.md")


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


def config_blocks() -> list[str]:
    blocks = re.findall(r"(?ms)^```[a-z]*\n(.*?)^```", (ROOT / "README.md").read_text())
    indented = re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", (ROOT / "README.md").read_text())
    blocks += [re.sub(r"(?m)^    ", "", block).strip("\n") for block in indented]
    return [block for block in blocks if re.match(r"\s*(;.*\n)*\[(ddpd|pool|grantee|grantor|ndp)\b", block)]


def test_the_readme_has_config_examples() -> None:
    assert len(config_blocks()) >= 2


@pytest.mark.parametrize("block", config_blocks(), ids=[b.split("\n")[0][:30] for b in config_blocks()])
def test_each_config_example_of_the_readme_parses(block: str) -> None:
    ddpd.read_config(filled(block), "README.md")
