#!/usr/bin/env python3
"""An hour of what happens to a home, and one of what happens upstream of it, in ten minutes: `make soak`.

    tests/soak.py [SECONDS] [SEED] [PART]

The events of life.py, drawn at random and without a pause, on real kernels.  Those of a home over both IP versions and
with both `ip`s: after each all is compared with the leases, line by line; at the end nothing may have grown.  Those of
an upstream that renumbers, vanishes and returns with radvd and with dnsmasq on the LAN: all the time somebody looks
that nothing is asked from a leased address, nothing refused that was ours, and no host left with what was lost.
PART is `home` or `upstream`.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

from lab import Lab, own_world
from life import EVENTS, WEATHER, Life, Weather

WORLDS = (("iproute2", 4), ("busybox", 6))
ANNOUNCERS = ("radvd", "dnsmasq")
GROWN_KB = 6000                           # resident, above what it was at the start


def proc(life: Life) -> Path:
    assert life.home.process
    return Path(f"/proc/{life.home.process.pid}")


def resident(life: Life) -> int:
    return next(int(line.split()[1]) for line in (proc(life) / "status").read_text().splitlines()
                if line.startswith("VmRSS"))


def soak(tool: str, version: int, seconds: float, dice: random.Random) -> Counter[str]:
    done: Counter[str] = Counter()
    slowest = 0.0, ""
    with Lab("home*", "mid*", "exit*", "host") as lab:
        life = Life(lab, tool, version)
        first = resident(life)
        prefixes = life.held()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name = dice.choice(list(EVENTS))
            EVENTS[name](life)
            slowest = max(slowest, (life.wait(), name))
            assert life.held() == prefixes, (name, life.held())
            done[name] += 1
        descriptors = len(list((proc(life) / "fd").iterdir()))
        grown = resident(life) - first
        assert descriptors < 20, descriptors
        assert grown < GROWN_KB, grown
    sys.stderr.write(f"IPv{version}, {tool}: {sum(done.values())} events, slowest put right after {slowest[0]:.2f} s "
                     f"({slowest[1]}), {descriptors} descriptors, {grown:+} KB\n")
    return done


def upstream(announcer: str, seconds: float, dice: random.Random) -> Counter[str]:
    done: Counter[str] = Counter()
    slowest = 0.0, ""
    with Lab("home*", "mid*", "exit*", "host") as lab:
        weather = Weather(lab, announcer, dice)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name = dice.choice(list(WEATHER))
            print(f"[=] {name}")
            try:
                WEATHER[name](weather)
                slowest = max(slowest, (weather.settle(), name))
            finally:
                if weather.watch.wrong:
                    print(f"[!] {weather.watch.wrong}")
            assert not weather.watch.wrong, (name, weather.watch.wrong)
            assert weather.watch.is_alive(), name
            done[name] += 1
        weather.watch.ended.set()
        weather.watch.join()
        looks = weather.watch.looks
    sys.stderr.write(f"upstream, {announcer}: {sum(done.values())} events, slowest settled after {slowest[0]:.2f} s "
                     f"({slowest[1]}), looked {looks} times\n")
    return done


def main(argv: list[str]) -> int:
    why = own_world([sys.executable, *sys.argv])
    if why:
        sys.stderr.write(f"soak: no network namespaces here: {why}\n")
        return 2
    seconds = float(argv[0]) if argv else 600.0
    seed = int(argv[1]) if argv[1:] else random.randrange(10**6)
    sys.stderr.write(f"seed {seed}\n")
    dice = random.Random(seed)
    transcript = StringIO()
    try:
        with redirect_stdout(transcript):
            parts = [partial(soak, *world) for world in WORLDS if "upstream" not in argv]
            parts += [partial(upstream, announcer) for announcer in ANNOUNCERS if "home" not in argv]
            done = sum((part(seconds / len(parts), dice) for part in parts), Counter[str]())
    except BaseException:
        sys.stderr.write("\n".join(transcript.getvalue().splitlines()[-200:]) + "\n")
        raise
    for name, count in sorted(done.items()):
        sys.stderr.write(f"{count:6}  {name.replace('_', ' ')}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
