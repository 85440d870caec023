"""Our LuCI pages in a headless Chromium, on the stand-ins of luci.js.

    python tests/luci/browser.py FOLDER      # pictures of every page, to be looked at
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OPENWRT = HERE.parent.parent / "openwrt"
STATIC = "htdocs/luci-static/resources"
APP, PROTO = OPENWRT / "luci-app-ddpd", OPENWRT / "luci-proto-ddpd"
MODULES = {
    "ddpd": PROTO / STATIC / "ddpd.js",
    "protocol.ddpd": PROTO / STATIC / "protocol/ddpd.js",
    "view.ddpd.status": APP / STATIC / "view/ddpd/status.js",
    "view.ddpd.config": APP / STATIC / "view/ddpd/config.js",
}
ACL = APP / "root/usr/share/rpcd/acl.d/luci-app-ddpd.json"
SLOWEST_S = 180


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def granted() -> dict[str, Any]:
    """What rpcd lets the pages of the app call and read: more than that the stand-ins refuse them."""
    acl: dict[str, Any] = json.loads(ACL.read_text())["luci-app-ddpd"]["read"]
    return {"ubus": acl["ubus"], "uci": acl["uci"]}


def page(data: Mapping[str, Any], call: str) -> str:
    """All in one file: nothing is fetched, so there is nobody to serve it."""
    def literal(thing: object) -> str:
        return json.dumps(thing).replace("</", "<\\/")
    sources = {name: file.read_text() for name, file in MODULES.items()}
    scripts = "\n".join(f"<script>\n{(HERE / name).read_text()}\n</script>" for name in ("luci.js", "scenes.js"))
    return (f"<!DOCTYPE html><html><head><meta charset='utf-8'><style>{(HERE / 'luci.css').read_text()}</style></head>"
            f"<body><div id='view'></div>{scripts}<script>window.SOURCES = {literal(sources)};\n"
            f"window.DATA = {literal(data)};\n{call}</script></body></html>")


def run(folder: Path, html: str, *how: str) -> str:
    program, file = chromium(), folder / "page.html"
    assert program is not None
    file.write_text(html)
    done = subprocess.run([program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                           "--hide-scrollbars",
                           "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}", *how, file.as_uri()],
                          capture_output=True, timeout=SLOWEST_S, check=True)
    return done.stdout.decode()


def results(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """What the scenes have found, by their names."""
    shown = run(folder, page(data, "tell(SCENES);"), "--virtual-time-budget=60000", "--dump-dom")
    found = re.search(r'<pre id="told">([A-Za-z0-9+/=]*)</pre>', shown)
    assert found, f"the page did not come to its end:\n{shown[-2000:]}"
    told: dict[str, Any] = json.loads(base64.b64decode(found[1]))
    return told


def picture(folder: Path, data: Mapping[str, Any], call: str, name: str, size: str = "1200,1400") -> None:
    run(folder, page(data, call), "--virtual-time-budget=5000", f"--window-size={size}",
        f"--screenshot={folder / name}")


def main(folder: Path) -> None:
    from luci import samples
    folder.mkdir(parents=True, exist_ok=True)
    data = {"uci": samples.UCI, "status": samples.STATUS, "key": samples.KEY, "acl": granted()}
    for name in ("status", "missing", "config", "modal", "neighbours", "protocol", "advanced"):
        picture(folder, data, f"PICTURES.{name}();", f"{name}.png", "1200,2600" if name == "config" else "1200,1500")
    picture(folder, data, "PICTURES.status();", "narrow.png", "420,1500")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main(Path(sys.argv[1]))
