"""Markdown, as far as the reference uses it, to what man(1) reads: groff's and mandoc's man(7).

A table becomes a list: its first column what is explained, `default` behind that, the last column but those after the
explanation named.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

TITLES = {5: "File Formats Manual", 8: "System Manager's Manual"}
INLINE = re.compile(r"`(?P<code>[^`]*)`|\*\*(?P<bold>.+?)\*\*|\*(?P<italic>[^*\s][^*]*)\*"
                    r"|\[(?P<text>(?:`[^`]*`|[^\]`])+)\]\((?P<target>[^)\s]*)\)")
GLYPHS = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti", "\u2026": "..."}


def literal(text: str) -> str:
    """Each character as it is, to be copied into a shell."""
    return "".join(GLYPHS.get(letter, letter if letter.isascii() else f"\\[u{ord(letter):04X}]") for letter in text)


def prose(text: str) -> str:
    """A hyphen is a hyphen here."""
    return literal(text).replace("\\-", "-")


def inline(text: str) -> str:
    out, at = "", 0
    for match in INLINE.finditer(text):
        out += prose(text[at : match.start()])
        at = match.end()
        if match["code"] is not None:
            out += f"\\fB{literal(match['code'])}\\fR"
        elif match["bold"] is not None:
            out += f"\\fB{inline(match['bold'])}\\fR"
        elif match["italic"] is not None:
            out += f"\\fI{prose(match['italic'])}\\fR"
        else:
            page = match["target"].partition("#")[0]
            out += inline(match["text"]) + (f" (\\fI{literal(page)}\\fR)" if page else "")
    return out + prose(text[at:])


def line(text: str) -> str:
    """No control line, whatever it begins with."""
    return f"\\&{text}" if text[:1] in (".", "'") else text


def filled(text: str) -> list[str]:
    """Text that man(1) fills anyway, in lines that a person can read."""
    return [line(each) for each in textwrap.wrap(text, 79, break_long_words=False, break_on_hyphens=False)]


def cells(row: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def table(rows: list[str]) -> Iterator[str]:
    head, _, *body = [cells(row) for row in rows]
    for row in body:
        said = dict(zip(head[1:], row[1:], strict=True))
        default = said.pop("default", "")
        tag = inline(row[0])
        if default:
            tag += " (required)" if default == "required" else f" (default {inline(default)})"
        first, *more = said
        text = said[first] + "".join(f" ({name}: {said[name]})" for name in more if said[name])
        yield from (".TP", line(tag), *filled(inline(text)))


def blocks(text: str) -> Iterator[list[str]]:
    """The lines of a heading, a listing, a table, an item or a paragraph."""
    block: list[str] = []
    fenced = False
    for row in re.sub(r"<!-- .*? -->", "", text).splitlines():
        if row.startswith("```") or fenced:
            if row.startswith("```") and not fenced and block:
                yield block
                block = []
            block.append(row)
            if row.startswith("```") and fenced:
                yield block
                block = []
            fenced = fenced != row.startswith("```")
        elif not row.strip() or row.startswith(("#", "* ")) or (block and (row[0] == "|") != (block[0][0] == "|")):
            if block:
                yield block
            block = [row] if row.strip() else []
            if row.startswith("#"):
                yield block
                block = []
        else:
            block.append(row)
    if block:
        yield block


def body(text: str) -> Iterator[str]:
    fresh = False                                                 # after a heading a paragraph needs no .PP
    for block in blocks(text):
        first = block[0]
        mark, _, rest = first.partition(" ")
        if set(mark) == {"#"}:
            name = prose(rest.replace("`", ""))
            yield f".SH {name.upper()}" if mark == "##" else f".SS {name}"
        elif first.startswith("```"):
            yield from (".PP", ".EX", *(line(literal(row)) for row in block[1:-1]), ".EE")
        elif first.startswith("|"):
            yield from table(block)
        elif mark == "*":
            yield from (".IP \\(bu 2", *filled(inline(" ".join([rest, *map(str.strip, block[1:])]))))
        else:
            if not fresh:
                yield ".PP"
            yield from filled(inline(" ".join(map(str.strip, block))))
        fresh = set(mark) == {"#"}


def roff(name: str, section: int, source: str, text: str) -> str:
    head = f'.TH {name.upper()} {section} "" "{source}" "{TITLES[section]}"'
    return "\n".join([".\\\" Made by `make docs`: what is changed here is lost.", head, *body(text)]) + "\n"
