"""The template for translators: what stands in `_('...')` in our LuCI modules, and in their menu and ACL.

    python tests/luci/pot.py --write
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OPENWRT = Path(__file__).resolve().parent.parent.parent / "openwrt"
POT = OPENWRT / "luci-app-ddpd/po/templates/ddpd.pot"
CALL = re.compile(r"""(?<![\w.$])_\(\s*(?:'((?:[^'\\\n]|\\.)*)'|"((?:[^"\\\n]|\\.)*)")""")
HEAD = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8"\n'


def marked(source: str) -> list[str]:
    """The texts of one module, as its program sees them."""
    return [re.sub(r"\\(.)", r"\1", one if one is not None else other)
            for one, other in (match.group(1, 2) for match in CALL.finditer(source))]


def told(thing: Any) -> Iterator[str]:
    """The titles and descriptions of a menu or an ACL."""
    for name, value in thing.items():
        if name in ("title", "description") and isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from told(value)


def texts() -> dict[str, list[str]]:
    """Each text, in order, and the files that have it."""
    found: dict[str, list[str]] = {}
    files = [*OPENWRT.glob("luci-*/htdocs/**/*.js"), *OPENWRT.glob("luci-*/root/**/*.json")]
    for file in sorted(files):
        text = file.read_text()
        for one in marked(text) if file.suffix == ".js" else told(json.loads(text)):
            where = found.setdefault(one, [])
            name = file.relative_to(OPENWRT).as_posix()
            where += [name] if name not in where else []
    return found


def template() -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return HEAD + "".join(f"\n{''.join(f'#: {name}' + chr(10) for name in where)}msgid {quoted(text)}\nmsgstr \"\"\n"
                          for text, where in texts().items())


if __name__ == "__main__":
    if "--write" in sys.argv:
        POT.write_text(template())
    else:
        sys.stdout.write(template())
