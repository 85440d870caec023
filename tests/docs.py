"""Writes the tables of the pages from ddpd.py, and the man pages from docs/reference.md: what the code says, they say.

    tests/docs.py             say which files differ from the code, exit 1 if one does
    tests/docs.py --write     write them

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; the rest of a page is left alone.  A man page is
made from whole chapters of the reference, and from what is here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ddpd  # noqa: E402 - only now can it be found
from roff import roff  # noqa: E402 - as the one before

PAGES = ("docs/reference.md", "docs/how-it-works.md", "PROTOCOL.md")
MARKED = re.compile(r"(<!-- table: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Row = Iterable[object]

# The limits that a peer can notice.  PROTOCOL.md has these, docs/reference.md has all.
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


def settings(section: str) -> str:
    return rendered(("key", "default", "meaning"),
                    ((f"`{key}`", shown_default(setting), setting.meaning)
                     for key, setting in ddpd.SETTINGS[section].items()))


def metrics(_: str) -> str:
    return rendered(("metric", "meaning", "kind"),
                    ((f"`ddpd_{name}`", meaning, kind) for name, kind, meaning in ddpd.METRICS))


def commands(_: str) -> str:
    return rendered(("command", "does"), ((f"`{' '.join(filter(None, (name, command.usage)))}`", command.meaning)
                                          for name, command in ddpd.COMMANDS.items()))


def states(_: str) -> str:
    return rendered(("state", "event", "what is done"),
                    ((state.value, event.value, action.__name__.replace("_", " "))
                     for (state, event), action in ddpd.Grantee.TABLE.items()))


TABLES: dict[str, Callable[[str], str]] = {
    "kinds": kinds, "tlvs": tlvs, "statuses": statuses, "reasons": reasons, "limits": limits,
    "commands": commands, "metrics": metrics, "states": states,
    **{section: lambda _, section=section: settings(section) for section in ddpd.SETTINGS},  # type: ignore[misc]
}


def written(page: str, text: str) -> str:
    """The page as it should be."""
    def table(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise SystemExit(f"{page}: no table named {match[2]} (there are: {', '.join(TABLES)})")
        return match[1] + TABLES[match[2]](page) + match[3]
    return MARKED.sub(table, text)


# ---- what the pages print, and tests use as it is printed


def listings(*pages: str) -> list[str]:
    """The blocks of these pages, as they stand there; of all that users read, if none is named."""
    found = []
    for path in map(ROOT.joinpath, pages) if pages else (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text()
        found += re.findall(r"(?ms)^```[a-z]*\n(.*?)^```", text)
        indented = re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", re.sub(r"(?ms)^```.*?^```", "", text))
        found += [re.sub(r"(?m)^    ", "", block).lstrip("\n") for block in indented]
    return found


def printed(start: str) -> str:
    """The one block that begins so."""
    found = [block for block in listings() if block.startswith(start)]
    assert len(found) == 1, f"{len(found)} blocks begin with {start!r}"
    return found[0]


# ---- man pages

DESCRIPTION = """\
A grantor gives IP prefixes, out of its pools, to grantees that ask for them over UDP.  Both sides authenticate each
other by public key, and everything is encrypted.  One program plays both roles, as its configuration says; see
*ddpd.conf*(5).  What ddpd is granted it installs: routes, LAN addresses with lifetimes, and a source-specific default
route.

Without a command, `ddpd` runs as a daemon, in the foreground.
"""
PLACE = "Pages whose names end in *.md* are in *share/doc/ddpd/docs*, below where ddpd is installed.\n"


def chapter(text: str, head: str) -> str:
    """From this heading to the next one of its rank or above."""
    found = re.search(rf"(?ms)^(##+) {re.escape(head)}\n.*?(?=^## |\Z)", text)
    if not found:
        raise SystemExit(f"docs/reference.md: no chapter named {head}")
    return found[0]


def file_list() -> str:
    """What is there unless the configuration says otherwise."""
    rows = [(f"`{setting.default}`", setting.meaning) for setting in ddpd.SETTINGS["ddpd"].values()
            if (setting.default or "").startswith("/")]
    return "## Files\n" + rendered(("file", "meaning"), [("`/etc/ddpd.conf`", "the configuration"), *rows])


def daemon_page(reference: str) -> str:
    heads = ("Commands", "Exit status", "Signals", "Log", "Hooks", "Metrics", "Privileges")
    return "\n".join((
        "## Name\nddpd - asks for IP prefixes over UDP, and grants them",
        "## Synopsis\n`ddpd` [`-c` *FILE*] [*COMMAND* [*ARGUMENT* …]]",
        f"## Description\n{DESCRIPTION}",
        *(chapter(reference, head) for head in heads), file_list(),
        "## See also\n*ddpd.conf*(5), *babeld*(8), *bird*(8), *dnsmasq*(8), *radvd*(8), *wg*(8)\n", PLACE))


def config_page(reference: str) -> str:
    examples = "".join(f"\n{lead}\n\n```\n{printed(start)}```\n" for lead, start in (
        ("A grantor:", "[pool home]\nprefix = 2001:db8:42::/48\ngive   = /56-/64\n"),
        ("A grantee:", "[grantor exit1]\nkey     = 5Pz6YYy4WuOEnLQDDjYOTKO+Y7z3XKmkfnmMmUrDL0U=\n"
                       "address = exit1.example.net\nask     = ::/56 on")))
    return "\n".join((
        "## Name\nddpd.conf - configuration of ddpd",
        chapter(reference, "Configuration file").replace("## Configuration file", "## Description", 1),
        chapter(reference, "Files for other programs"), f"## Examples\n{examples}", file_list(),
        "## See also\n*ddpd*(8), *wg*(8), *babeld*(8), *dnsmasq*(8), *radvd*(8)\n", PLACE))


MANUALS: dict[str, Callable[[str], str]] = {"docs/ddpd.8": daemon_page, "docs/ddpd.conf.5": config_page}


def manual(page: str) -> str:
    """The man page as it should be."""
    reference = written("docs/reference.md", (ROOT / "docs/reference.md").read_text())
    name, _, section = page.rpartition("/")[2].rpartition(".")
    return roff(name, int(section), f"ddpd {ddpd.VERSION}", MANUALS[page](reference))


def due() -> dict[str, str]:
    """Each file that is made from the code, as it should be."""
    return ({page: written(page, (ROOT / page).read_text()) for page in PAGES}
            | {page: manual(page) for page in MANUALS})


def main(argv: list[str]) -> int:
    different = []
    for page, new in due().items():
        path = ROOT / page
        if not path.exists() or path.read_text() != new:
            different.append(page)
            if "--write" in argv:
                path.write_text(new)
    verb = "written" if "--write" in argv else "not as the code (make docs)"
    print("\n".join(f"{page}: {verb}" for page in different) or "all pages are as the code")
    return 1 if different and "--write" not in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
