"""What LuCI's build does to a script: its packer (jsmin) reads no JavaScript, it knows a regular expression only by the
sign that stands before it.  Where it misses one, a quote in it begins a text, and a `//` in it a remark."""

from __future__ import annotations

import re
from collections.abc import Iterator

BEFORE = frozenset("(,=:[!&|?{};")               # what every version of it takes for the sign before an expression
WORDS = frozenset(["return", "typeof", "case", "in", "of", "delete", "void", "throw", "new", "else", "do", "yield"])
TOKEN = re.compile(r"""
    (?P<blank> \s+ | //[^\n]* | /\*.*?\*/ )
  | (?P<text> '(?:\\.|[^'\\\n])*' | "(?:\\.|[^"\\\n])*" | `(?:\\.|[^`\\])*` )
  | (?P<word> [\w$]+ )
  | (?P<sign> . )""", re.VERBOSE | re.DOTALL)
EXPRESSION = re.compile(r"/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/[a-z]*")


def expressions(source: str) -> Iterator[tuple[int, str, str]]:
    """Each regular expression, as JavaScript has it: its line, what stands before it, and itself."""
    at, before = 0, ""
    while at < len(source):
        token = TOKEN.match(source, at)
        assert token is not None
        if token["sign"] == "/" and (before in WORDS or not (before[-1:].isalnum() or before[-1:] in "_$)]}'\"`")):
            found = EXPRESSION.match(source, at)
            assert found is not None, source[at : at + 40]
            yield source.count("\n", 0, at) + 1, before, found[0]
            token = found
        if token.re is EXPRESSION or not token["blank"]:
            before = token[0]
        at = token.end()


def missed(source: str) -> list[str]:
    """Those that the packer does not see."""
    return [f"line {line}: {before} {found}" for line, before, found in expressions(source)
            if before[-1:] not in BEFORE]
