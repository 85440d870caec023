"""The rules a reviewer would otherwise have to remember.

A guard takes a source and returns its complaints.  So each can be shown a planted violation, and
must be heard: a guard that cannot bark is a comment.
"""

from __future__ import annotations

import ast
import functools
import itertools
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCE = ROOT / "ddpd.py"
TEXT = SOURCE.read_text()

Guard = Callable[[str], list[str]]


# ---- the waterline: above it, values in and values out

# Modules that only compute.  Whatever else is imported may be used below the waterline only.
PURE = {
    "__future__", "_blake2", "abc", "base64", "binascii", "bisect", "collections",
    "collections.abc", "copy", "csv", "dataclasses", "difflib", "enum", "errno", "functools",
    "hashlib", "heapq", "hmac", "io", "ipaddress", "itertools", "json", "math", "nacl.bindings",
    "nacl.exceptions", "operator", "re", "shlex", "string", "struct", "textwrap", "types",
    "typing", "zlib",
}
PURE_NAMES = {("sys", "byteorder"), ("_operator", "_compare_digest"), ("nacl._sodium", "ffi"), ("nacl._sodium", "lib"),
              *(("socket", name) for name in ("AF_INET", "AF_INET6", "inet_ntop", "inet_pton"))}

# Never named above the waterline, imported or not.
IMPURE = {
    "socket", "select", "subprocess", "os", "time", "random", "secrets", "sys", "signal", "fcntl",
    "threading", "log", "open", "print", "input", "eval", "exec", "__import__", "breakpoint",
}


def waterlines(text: str) -> list[int]:
    return [n for n, line in enumerate(text.splitlines(), 1)
            if re.fullmatch(r"# ~+ WATERLINE ~+", line)]


def waterline(text: str) -> int:
    assert len(waterlines(text)) == 1, f"waterlines at {waterlines(text)}: there is to be one"
    return waterlines(text)[0]


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str, str]]:
    """(module, name in it or nothing, name here) for each thing imported."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            yield alias.name, "", alias.asname or alias.name.split(".")[0]
        else:
            yield node.module or "", alias.name, alias.asname or alias.name


def imports(tree: ast.AST) -> list[tuple[int, str, str, str]]:
    return [(node.lineno, *one) for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom) for one in imported(node)]


def worldly(tree: ast.AST) -> set[str]:
    """The names by which this source reaches the world."""
    return IMPURE | {here for _, module, name, here in imports(tree)
                     if module not in PURE and (module, name) not in PURE_NAMES}


def bound(top: ast.AST) -> set[str]:
    """Every name that this statement gives a meaning of its own, in whatever scope."""
    return ({node.arg for node in ast.walk(top) if isinstance(node, ast.arg)}
            | {node.id for node in ast.walk(top)
               if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)})


def named(body: list[ast.stmt]) -> set[str]:
    """Functions, classes and constants that these statements define."""
    targets = [target for node in body
               for target in getattr(node, "targets", [getattr(node, "target", None)])]
    return {target.id if isinstance(target, ast.Name) else getattr(target, "name", "")
            for target in [*targets, *body]}


def random_of_nacl(name: str) -> bool:
    return name.startswith("randombytes") or name.endswith("_keypair")


def leak(node: ast.Name | ast.Attribute, forbidden: set[str], modules: set[str]) -> str:
    """What this one node should not name, or nothing."""
    if isinstance(node, ast.Name):
        return node.id if node.id in forbidden or random_of_nacl(node.id) else ""
    module = node.value.id if isinstance(node.value, ast.Name) else ""
    through = module in modules and node.attr in IMPURE         # as in `struct.sys`
    return node.attr if through or random_of_nacl(node.attr) else ""


def leaks(text: str) -> list[str]:
    """Every use above the waterline of what is impure, or is defined below it."""
    tree, line = ast.parse(text), waterline(text)
    above = [top for top in tree.body if top.lineno < line]
    below = named([top for top in tree.body if top.lineno > line]) - named(above)
    world = worldly(tree)
    modules = {here for _, _, name, here in imports(tree) if not name}
    return [f"line {node.lineno}: {what}"
            for top in above for forbidden in [world | (below - bound(top))]
            for node in ast.walk(top) if isinstance(node, ast.Name | ast.Attribute)
            if (what := leak(node, forbidden, modules))]


# ---- sections

class Section(NamedTuple):
    title: str
    tag: str
    first: int


def sections(text: str) -> list[Section]:
    """What stands under each `# ==== TITLE ==== tag ====` banner."""
    return [Section(m[1], m[2], n) for n, line in enumerate(text.splitlines(), 1)
            if (m := re.fullmatch(r"# ==== ([A-Z0-9][A-Z0-9, -]*?) =+ (pure|I/O) ====", line))]


def crooked_banners(text: str) -> list[str]:
    """Banners that lie about their side, or are malformed."""
    line, found = waterline(text), sections(text)
    liars = [f"{s.title}: {s.tag}" for s in found if s.tag != ("pure" if s.first < line else "I/O")]
    banners = [n for n, row in enumerate(text.splitlines(), 1) if re.match(r"# ?={4}", row)]
    malformed = [f"line {n}: not a banner" for n in banners if n not in {s.first for s in found}]
    empty = {"pure", "I/O"} - {section.tag for section in found}
    return liars + malformed + [f"nothing is {tag}" for tag in empty]


# ---- reading order

def uses(node: ast.AST) -> Iterator[ast.Name]:
    """Every name read below this node, but for annotations: those may look ahead."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield node
    for part, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children if part not in ("annotation", "returns") else []:
            if isinstance(child, ast.AST):
                yield from uses(child)


def early_uses(text: str) -> list[str]:
    """Functions named before they are defined, and classes named in an earlier section."""
    tree, starts = ast.parse(text), [1, *(section.first for section in sections(text))]
    known = {top.name: max(start for start in starts if start <= top.lineno)
             if isinstance(top, ast.ClassDef) else top.lineno
             for top in tree.body if isinstance(top, ast.ClassDef | ast.FunctionDef)}
    return [f"line {name.lineno}: {name.id}, known from line {known[name.id]}"
            for top in tree.body for own in [bound(top)] for name in uses(top)
            if known.get(name.id, 0) > name.lineno and name.id not in own]


# ---- names

WEASELS = {"misc", "util", "utils", "helper", "helpers", "manager", "managers"}
VAGUE_VERBS = {"process", "do"}           # as the first of several words
NOT_OURS = {"client", "clients", "server", "servers", "user", "users", "request", "requests",
            "entry", "entries"}           # the words of other programs for what we call otherwise
ALLOWED = {"dns_servers", "ntp_servers", "nameservers"}


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name that somebody chose: of variables, fields, arguments, functions and classes."""
    for node in ast.walk(tree):
        for part in ("id", "arg", "attr", "name", "asname"):
            name = getattr(node, part, None)
            if isinstance(name, str) and not (isinstance(node, ast.alias) and part == "name"):
                yield getattr(node, "lineno", 0), name


def words(name: str) -> list[str]:
    """snake_case, CamelCase and CAPITALS taken apart."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)]


def weaselly(said: list[str]) -> bool:
    return bool({*said} & (WEASELS | NOT_OURS)) or (len(said) > 1 and said[0] in VAGUE_VERBS)


def weasels(text: str) -> list[str]:
    return sorted({f"line {line}: {name}" for line, name in identifiers(ast.parse(text))
                   if name not in ALLOWED and weaselly(words(name))})


# ---- what a router has: Python without the parts that OpenWrt packages apart from python3-light

ABSENT = {
    "asyncio", "cgi", "cgitb", "ctypes", "curses", "dbm", "decimal", "distutils", "doctest",
    "email", "ensurepip", "lib2to3", "logging", "lzma", "multiprocessing", "pydoc", "readline",
    "sqlite3", "unittest", "urllib", "uuid", "venv", "xml", "xmlrpc",
    "_asyncio", "_ctypes", "_curses", "_curses_panel", "_dbm", "_decimal", "_elementtree", "_gdbm",
    "_hashlib", "_lzma", "_multiprocessing", "_posixshmem", "_sqlite3", "_ssl", "_uuid", "pyexpat",
    "unicodedata",
    "_codecs_cn", "_codecs_hk", "_codecs_iso2022", "_codecs_jp", "_codecs_kr", "_codecs_tw",
    "_multibytecodec",
}
# There, but they need something of the above, at least in the oldest Python that we support.
FAILING = {
    "concurrent.futures", "encodings.idna", "fractions", "http.client", "http.server",
    "importlib.metadata", "importlib.resources", "json.tool", "mimetypes", "pathlib",
    "plistlib", "smtplib", "ssl", "statistics", "stringprep", "zipfile",
}
LAZY = {"sqlite3"}        # in a function, for whoever installed the package that the error names


def parents(module: str) -> set[str]:
    """a.b.c: itself, a.b and a."""
    return set(itertools.accumulate(module.split("."), "{}.{}".format))


def missing_there(module: str, lazy: bool) -> bool:
    absent = parents(module) & (ABSENT | FAILING) - (LAZY if lazy else set())
    return bool(absent) or module.split(".")[0] not in {*sys.stdlib_module_names, "nacl"}


def missing_modules(text: str) -> list[str]:
    """Imports, lazy ones too, that fail on a router."""
    tree = ast.parse(text)
    lazy = {line for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
            for line, *_ in imports(node)}
    return [f"line {line}: {module} {name}" for line, module, name, _ in imports(tree)
            if missing_there(f"{module}.{name}".strip("."), line in lazy)]


def unreadable_there(text: str) -> list[str]:
    """Character names in a literal need a C module that is not there."""
    return [f"line {n}: a character by name" for n, row in enumerate(text.splitlines(), 1)
            if "\\N" + "{" in row]


# ---- what has its place at the top

ROOM = {
    "ddpd.py", "ddpd.conf.example", "README.md", "PROTOCOL.md", "CHANGES.md", "CONTRIBUTING.md",
    "LICENSE", "Makefile", "pyproject.toml", ".editorconfig", ".gitignore", ".ci", "etc",
    "docs", "openwrt", "tests",
}


def strangers(names: Iterable[str]) -> list[str]:
    """Files at the top that do not belong there."""
    return sorted({name.split("/")[0] for name in names} - ROOM)


@functools.cache
def files() -> list[str]:
    """All that git knows or would add; where there is no git, all that is there."""
    listed = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached",
                             "--others", "--exclude-standard"],
                            cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    hidden = re.compile(r"(^|/)(\.git|\.venv|\.\w+_cache|\.hypothesis|__pycache__)(/|$)")
    names = (str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file())
    return [name for name in names if not hidden.search(name)]


# ---- every guard: silent on ddpd.py and on the innocent, loud on each of these

INNOCENT = '''
"""A source that keeps every rule, and comes near to breaking some."""

from __future__ import annotations

import socket
import struct
import sys
from socket import AF_INET, inet_pton

import nacl.bindings

# ==== CONSTANTS ==== pure ====

SIZE = struct.calcsize("!I")


# ==== WIRE ==== pure ====

class Drop(Exception):
    """Its text, as in `print(why)`, says why: the process that asks is no client of ours."""

    def since(self, later: Later, main: int, dns_servers: str) -> bytes:
        import sqlite3
        return inet_pton(AF_INET, dns_servers) + self.open(main) + nacl.bindings.crypto_scalarmult()

    def open(self, at: int) -> bytes:
        return self.time[at:] + Drop().args[0] + Later.name


class Later:
    pass


# ~~~~~~~~ WATERLINE ~~~~~~~~

# ==== MAIN ==== I/O ====

def serve() -> None:
    print(socket.socket(), file=sys.stderr)


def main() -> None:
    serve()
'''


def above(code: str) -> Callable[[str], str]:
    """Plant this at the end of the pure part."""
    def plant(text: str) -> str:
        lines = text.splitlines(keepends=True)
        at = waterline(text) - 1
        return "".join([*lines[:at], code, "\n", *lines[at:]])
    return plant


def within(expression: str) -> Callable[[str], str]:
    """Plant a function above the waterline that evaluates this."""
    return above(f"def planted(now: float) -> object:\n    return {expression}\n")


PLANTS: list[tuple[Guard, Callable[[str], str]]] = [
    (leaks, within("time.time()")),
    (leaks, within("open('/etc/passwd').read()")),
    (leaks, within("print(now)")),
    (leaks, within("log.info('hello')")),
    (leaks, within("socket.socket()")),
    (leaks, within("os.urandom(8)")),
    (leaks, within("struct.sys.argv")),
    (leaks, within("nacl.bindings.randombytes(8)")),
    (leaks, within("crypto_box_keypair()")),
    (leaks, within("lambda: [select for _ in ()]")),
    (leaks, above("import time as clock\nHERE = clock.time()\n")),
    (leaks, above("def planted() -> None:\n    from os import getpid as number\n    number()\n")),
    (leaks, above("from tempfile import mkstemp\n\n\nclass Planted:\n    where = mkstemp\n")),
    (leaks, within("main()")),
    (leaks, within("[serve for _ in ()]")),
    (crooked_banners, above("# ==== PLANTED ==== I/O ====")),
    (crooked_banners, above("# ==== planted ==== pure ====")),
    (early_uses, above("def planted() -> int:\n    return later()\n\n\n"
                       "def later() -> int:\n    return 1\n")),
    (early_uses, above("def planted() -> object:\n    return Planted\n\n\n"
                       "# ==== PLANTED ==== pure ====\n\nclass Planted:\n    pass\n")),
    (weasels, within("process_ask()")),
    (weasels, within("now.client_address")),
    (weasels, above("def do_ask() -> None:\n    pass\n")),
    (weasels, above("def planted(user: int) -> None:\n    pass\n")),
    (weasels, above("class LeaseManager:\n    pass\n")),
    (weasels, above("MISC = 1\n")),
    (weasels, above("for entry in ():\n    pass\n")),
    (weasels, above("from struct import pack as request\n")),
    (missing_modules, above("import logging\n")),
    (missing_modules, above("from http import client\n")),
    (missing_modules, above("import importlib.metadata\n")),
    (missing_modules, above("import sqlite3\n")),
    (missing_modules, above("import requests\n")),
    (missing_modules, above("def planted() -> None:\n    from pathlib import Path\n")),
    (unreadable_there, above('BULLET = "\\N' + '{BULLET}"\n')),
]


@pytest.mark.parametrize("guard", dict.fromkeys(guard for guard, _ in PLANTS))
def test_the_house_is_in_order(guard: Guard) -> None:
    complaints = guard(TEXT)
    assert not complaints, "\n".join([guard.__name__, *complaints])


@pytest.mark.parametrize(("guard", "plant"), PLANTS)
def test_the_guards_can_bark(guard: Guard, plant: Callable[[str], str]) -> None:
    """Planted in an innocent source, so that what is wrong with the real one hides nothing."""
    assert guard(INNOCENT) == []
    assert guard(plant(INNOCENT)) != []


def test_every_file_is_at_home() -> None:
    assert strangers(files()) == []
    assert strangers(["PLAN.md", "tests/x.py"]) == ["PLAN.md"]
    assert "tests/test_architecture.py" in files()


# ---- the same, by running it

SLIM = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if {{name, name.split(".")[0]}} & ABSENT:
            raise ModuleNotFoundError("No module named %r (as on a router)" % name, name=name)
ABSENT, FAILING = {ABSENT!r}, {FAILING!r}
sys.meta_path.insert(0, Absent())
for name in [name for name in sys.modules if {{name, name.split(".")[0]}} & (ABSENT | FAILING)]:
    del sys.modules[name]
__file__, sys.argv = sys.argv[1], sys.argv[1:]
exec(compile(open(__file__).read(), __file__, "exec"))
"""


def run(python: str, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-B", *args], input=stdin, capture_output=True, text=True,
                          timeout=30, check=False)


PROBE = """
import sys
print(sys.version_info >= (3, 11), sys.prefix + sys.version.split()[0], sys.executable, sep="\\n")
import nacl.bindings
print("with PyNaCl")
"""


@functools.cache
def pythons() -> dict[str, bool]:
    """Every Python here that is new enough, and whether it has PyNaCl."""
    minors = ("", ".11", ".12", ".13", ".14", ".15")
    names = [sys.executable, "/usr/bin/python3", *(f"python3{minor}" for minor in minors)]
    told = [run(path, "-c", PROBE).stdout.splitlines() for path in map(shutil.which, names) if path]
    places = {place: (python, bool(nacl)) for fit, place, python, *nacl in filter(None, told)
              if fit == "True"}
    return dict(places.values())


def on_a_router(python: str, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run(python, "-c", SLIM, str(SOURCE), *args, stdin=stdin)


def test_it_compiles_in_every_python_here() -> None:
    assert any(pythons().values())
    compiling = "import sys; compile(sys.stdin.read(), 'ddpd.py', 'exec')"
    for python in pythons():
        done = run(python, "-W", "error", "-c", compiling, stdin=TEXT)
        assert (done.returncode, done.stderr) == (0, ""), python


@pytest.mark.parametrize(("args", "stdin", "codes"), [
    (["--help"], "", [0]),
    (["genkey"], "", [0]),
    (["pubkey"], "YAnz5TF+lXXJte14tji3zlMNftLL1l1cTWHWRPMpqQ0=\n", [0]),
    (["decode", "01010000"], "", [0, 1, 2]),
    (["check", "-c", str(ROOT / "ddpd.conf.example")], "", [0, 2]),
])
def test_it_runs_with_what_a_router_has(args: list[str], stdin: str, codes: list[int]) -> None:
    for python in [python for python, has_nacl in pythons().items() if has_nacl]:
        done = on_a_router(python, *args, stdin=stdin)
        assert done.returncode in codes, (python, done.stderr)
        assert "Traceback" not in done.stderr, (python, done.stderr)
        assert "as on a router" not in done.stderr + done.stdout, (python, done.stderr)


@pytest.mark.parametrize("module", ["logging", "urllib.parse", "_hashlib", "encodings.idna",
                                    "http.client", "concurrent.futures"])
def test_the_router_lacks_what_it_should(module: str, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import {module}\n")
    assert "ModuleNotFoundError" in run(sys.executable, "-c", SLIM, str(script)).stderr


def test_the_router_has_what_it_should(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import argparse, hashlib, json, ipaddress, socket, subprocess, tempfile\n"
                      "import nacl.bindings\n"
                      "socket.getaddrinfo(b'::1', 1)\nhashlib.blake2s(b'')\n")
    assert run(sys.executable, "-c", SLIM, str(script)).stderr == ""
