#!/usr/bin/env python3
"""pack.py SOURCE ZIP: a program as a router gets it, in a zip from which Python imports it.

Without comments, docstrings, indentation by four and the annotations of functions; each line stays the line that it
is, so that a traceback from a router leads to the place in the source.  The same source gives the same bytes.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path

Place = tuple[int, int]                  # line from 1, byte from 0
Cut = tuple[Place, Place, bytes]         # from, to, what stands there instead
OPENING, CLOSING = "([{", ")]}"


def starts(node: ast.expr) -> Place:
    return node.lineno, node.col_offset


def ends(node: ast.expr | ast.arg) -> Place:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset


def docstring_cuts(tree: ast.AST) -> Iterator[Cut]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            yield starts(first.value), ends(first.value), b"" if node.body[1:] else b"pass"


def annotation_cuts(tree: ast.AST) -> Iterator[Cut]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield (node.lineno, node.col_offset + len(node.arg.encode())), ends(node), b""


def token_cuts(text: str) -> Iterator[Cut]:
    """Comments, and what a function returns: from the arrow to the colon."""
    rows, arrow, depth = text.split("\n"), (0, 0), 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line, at = token.start[0], len(rows[token.start[0] - 1][:token.start[1]].encode())
        depth += (token.string in OPENING) - (token.string in CLOSING) if token.type == tokenize.OP else 0
        if token.type == tokenize.COMMENT and not arrow[0]:
            yield (line, at), (line, at + len(token.string.encode())), b""
        elif token.type == tokenize.OP and token.string == "->":
            arrow = line, at
        elif token.type == tokenize.OP and token.string == ":" and arrow[0] and not depth:
            yield arrow, (line, at + 1), b":"
            arrow = 0, 0


def cut(lines: list[bytes], cuts: list[Cut]) -> None:
    """From the end, so that the places before stay where they are."""
    for (line, at), (last, until), instead in sorted(cuts, reverse=True):
        rest = lines[last - 1][until:]
        lines[line - 1] = lines[line - 1][:at] + instead + (rest if line == last else b"")
        for between in range(line, last - 1):
            lines[between] = b""
        if last > line:
            lines[last - 1] = rest


def logical_lines(text: str) -> tuple[set[int], set[int]]:
    """Lines that begin a statement, and lines that begin inside of a string."""
    begun, inside, fresh = set(), set(), True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT):
            fresh = fresh or token.type == tokenize.NEWLINE
            continue
        if fresh:
            begun.add(token.start[0])
        fresh = False
        inside |= set(range(token.start[0] + 1, token.end[0] + 1))
    return begun, inside


def indented(line: bytes, begins: bool) -> bytes:
    bare = line.lstrip(b" ")
    return (b" " * ((len(line) - len(bare)) // 4) * begins + bare).rstrip()


def stripped(text: str) -> str:
    tree, lines = ast.parse(text), text.encode().split(b"\n")
    cut(lines, [*docstring_cuts(tree), *annotation_cuts(tree), *token_cuts(text)])
    begun, inside = logical_lines(text)
    short = [line if number in inside else indented(line, number in begun) for number, line in enumerate(lines, 1)]
    return b"\n".join(short).decode()


def pack(source: Path, target: Path) -> None:
    info = zipfile.ZipInfo("ddpd.py")                             # of 1980: as old as a zip can be
    info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(info, stripped(source.read_text()), compresslevel=9)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
