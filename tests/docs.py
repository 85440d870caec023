"""Writes the tables of README.md and PROTOCOL.md from ddpd.py: what the code says, the page says.

    tests/docs.py             say which files differ from the code, exit 1 if one does
    tests/docs.py --write     write them

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; the rest of a page is left alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ddpd  # noqa: E402 - only now can it be found

PAGES = ("README.md", "PROTOCOL.md")
MARKED = re.compile(r"(<!-- table: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Row = Iterable[object]

# The limits that a peer can notice.  PROTOCOL.md has these, README.md has all.
ON_THE_WIRE = {
    "MAX_DATAGRAM", "FIRST_ASK", "ASK_STEP", "MAX_TEXT", "MAX_SLOTS", "MAX_PENDING", "SESSION_S", "COOKIE_S",
    "LATE_S", "MAX_AGAIN_S", "GIVE_BACK_S", "SAME_PORT_ASKS", "SOURCE_ASKS", "STALE_GAP_S", "REACH_GAP_S",
    "NUDGES", "NUDGE_GAP_S", "NUDGES_A_S", "LINGER_S",
}


def cell(value: object) -> str:
    return str(value).replace("|", "\\|")


def rendered(head: Row, rows: Iterable[Row]) -> str:
    columns = [cell(name) for name in head]
    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def comments(enum: type[ddpd.Status] | type[ddpd.Reason]) -> dict[str, str]:
    """What stands behind `NAME = number  # ` in the class."""
    source = (ROOT / "ddpd.py").read_text()
    body = source.split(f"class {enum.__name__}(IntEnum)")[1].split("\nclass ")[0]
    return dict(re.findall(r"(?m)^    ([A-Z_]+) = \d+ +# (.*)$", body))


def first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def kinds(_: str) -> str:
    rows = []
    for number, message in sorted(ddpd.MESSAGES.items()):
        sender, _, means = first_line(message).partition(" to ")
        rows.append((number, message.__name__, sender.lower(), means.partition(": ")[2].rstrip(".")))
    return rendered(("kind", "message", "from", "means"), rows)


def tlvs(_: str) -> str:
    found: dict[int, tuple[str, str, list[str]]] = {}
    for message in ddpd.MESSAGES.values():
        for row in message.table:
            repeated = ", repeated" if row.many or row.codec is ddpd.ADDRESSES else ""
            where = found.setdefault(row.number, (row.name, row.codec.name, []))[2]
            where.append(message.__name__ + repeated)
    return rendered(("type", "name", "in", "value"),
                    ((n, name, ", ".join(where), codec) for n, (name, codec, where) in sorted(found.items())))


def statuses(_: str) -> str:
    return rendered(("status", "name", "means"),
                    ((int(s), s.name, comments(ddpd.Status)[s.name]) for s in ddpd.Status))


def reasons(_: str) -> str:
    return rendered(("reason", "name", "means"),
                    ((int(r), r.name, comments(ddpd.Reason)[r.name]) for r in ddpd.Reason))


def limits(page: str) -> str:
    """From the aligned block of constants: name, value and the comment behind it."""
    source = (ROOT / "ddpd.py").read_text()
    block = source.split("# Every limit, in one table")[1].split("\nclass ")[0].split("\n# ====")[0]
    rows = [(name, getattr(ddpd, name), of)
            for name, of in re.findall(r"(?m)^([A-Z_]+): +Final = [^#]*# (.*)$", block)]
    return rendered(("limit", "value", "of"), (
        (name, f"{value:g}" if isinstance(value, float) else value, of)
        for name, value, of in rows if page != "PROTOCOL.md" or name in ON_THE_WIRE))


def shown_default(setting: ddpd.Setting) -> str:
    if setting.default is None:
        return "required"
    return f"`{setting.default}`" if 0 < len(setting.default) < 60 else "see the example" if setting.default else ""


def settings(_: str) -> str:
    return rendered(("section", "key", "default", "meaning"),
                    ((f"`[{section}{'' if section == 'ddpd' else ' NAME'}]`", f"`{key}`",
                      shown_default(setting), setting.meaning)
                     for section, keys in ddpd.SETTINGS.items() for key, setting in keys.items()))


def commands(_: str) -> str:
    return rendered(("command", "does"), ((f"`{' '.join(filter(None, (name, command.usage)))}`", command.meaning)
                                          for name, command in ddpd.COMMANDS.items()))


def states(_: str) -> str:
    return rendered(("state", "event", "what is done"),
                    ((state.value, event.value, action.__name__.replace("_", " "))
                     for (state, event), action in ddpd.Grantee.TABLE.items()))


TABLES: dict[str, Callable[[str], str]] = {
    "kinds": kinds, "tlvs": tlvs, "statuses": statuses, "reasons": reasons, "limits": limits,
    "settings": settings, "commands": commands, "states": states,
}


def written(page: str, text: str) -> str:
    """The page as it should be."""
    def table(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise SystemExit(f"{page}: no table named {match[2]} (there are: {', '.join(TABLES)})")
        return match[1] + TABLES[match[2]](page) + match[3]
    return MARKED.sub(table, text)


def main(argv: list[str]) -> int:
    different = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text()
        new = written(page, text)
        if new != text:
            different.append(page)
            if "--write" in argv:
                path.write_text(new)
    verb = "written" if "--write" in argv else "not as the code (make docs)"
    print("\n".join(f"{page}: {verb}" for page in different) or "all tables are as the code")
    return 1 if different and "--write" not in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
