#!/usr/bin/env python3
"""What ddpd costs a home router: its package, a start with and without byte code, a grantee's memory.

The .ipk unpacked, BusyBox, a Python without what python3-light lacks, PyNaCl 1.5.0.  As root.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parents[1] / "openwrt")]

from build import main as build  # noqa: E402
from lab import Lab, eventually, public_of  # noqa: E402
from onrouter import Netifd, Router, Slim, install_pynacl  # noqa: E402

HUB = "[pool home]\nprefix = 2001:db8:42::/48\ngive = /56\n[grantee home]\nkey = @home\npools = home\n"
TIMES = 15


def started(router: Router) -> float:
    """Seconds until `ddpd --version` is there, less what the way into the root folder takes."""
    def took(*command: str) -> float:
        began = time.perf_counter()
        router.run(*command)
        return time.perf_counter() - began
    return statistics.median(took("/usr/sbin/ddpd", "--version") - took("/bin/true") for _ in range(TIMES))


def resident(pid: int) -> str:
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return f"{int(rows['VmRSS'].split()[0]) / 1024:.1f} MB, {int(rows['VmHWM'].split()[0]) / 1024:.1f} MB at most"


def grantee(router: Router, config: dict[str, object]) -> str:
    """Its memory, when it holds something."""
    netifd = Netifd(router, "wan6d", config, "eth0")
    netifd.setup()
    assert netifd.task is not None
    eventually(lambda: netifd.hear() and netifd.updates(), 20)
    found = resident(netifd.task.pid)
    netifd.teardown()
    return found


def measure(folder: Path, lab: Lab) -> None:
    lab.cable("hub:eth0 fd00::1/64", "home:eth0 fd00::2/64")
    build(["ipk", str(folder)])
    library = folder / "library"
    install_pynacl(sys.executable, library)
    router = Router(folder, lab["home"], sorted(folder.glob("*.ipk")), Slim(sys.executable, library))
    config: dict[str, object] = {"proto": "ddpd", "grantor": ["fd00::1"], "key": public_of("hub"), "ask": ["::/56"]}
    lab["hub"].ddpd(HUB).start()
    router.write_key("home")
    home = router.root / "usr/lib/ddpd"
    for way, mode in (("from source", 0o644), ("from byte code", 0o755)):
        (home / "compile").chmod(mode)                            # what cannot be run makes no byte code
        router.sh("ddpd --version")
        sizes = [f"{code.stat().st_size:,} bytes" for code in home.glob("*.code")]
        print(f"{way}: in flash there is byte code of {sizes[0] if sizes else 'none'}")
        print(f"{way}: a start takes {started(router):.2f} s")
        print(f"{way}: a grantee is {grantee(router, config)}")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, Lab("hub", "home") as lab:
        measure(Path(folder), lab)
    return 0


if __name__ == "__main__":
    sys.exit(main())
