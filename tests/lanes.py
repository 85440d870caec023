#!/usr/bin/env python3
"""Every test, in several processes at once: those in namespaces mostly wait, the others compute.

    tests/lanes.py [ARGUMENT...]      what pytest takes

What the last lane says comes at once, what the others say when all are done; then how long each took.  Ends with 0 if
all do.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO

NETNS = "tests/netns"
LAST = f"{NETNS}/test_netns_scan.py"       # wants a machine that has grown quiet
COMPUTING = [f"--ignore={NETNS}", "-m"]
WAITING = 4                                # lanes of what waits
# Seconds that the longest take where much else runs, the others OTHERS: no lane should be much longer than another.
SECONDS = {"router": 540, "wireguard": 440, "returns": 325, "ndp": 160, "life": 130, "vps": 110, "sources": 105,
           "kernel": 95, "door": 80}
OTHERS = 45

Part = list[str]                           # what one pytest is told


def weight(path: str) -> int:
    return SECONDS.get(path.removeprefix(f"{NETNS}/test_netns_").removesuffix(".py"), OTHERS)


def shared(paths: Iterable[str], lanes: int) -> list[Part]:
    """The longest first, each to who has least to do."""
    found: list[Part] = [[] for _ in range(lanes)]
    for path in sorted(paths, key=weight, reverse=True):
        min(found, key=lambda part: sum(map(weight, part))).append(path)
    return found


def all_lanes() -> list[list[Part]]:
    """Of each, parts one after the other."""
    root = Path(__file__).resolve().parent.parent
    waiting = {str(path.relative_to(root)) for path in (root / NETNS).glob("test_*.py")} - {LAST}
    return [*([part] for part in shared(sorted(waiting), WAITING)), [[*COMPUTING, "slow"]],
            [[*COMPUTING, "not slow"]]]


def run(lane: list[Part], argv: Part, said: IO[bytes] | None) -> tuple[bool, float]:
    """Who computes must not keep those waiting who look at the time."""
    codes, began = [], time.monotonic()
    for part in lane:
        command = ["nice", "-n", "5" if "-m" in part else "0", sys.executable, "-m", "pytest", *argv, *part]
        codes.append(subprocess.run(command, stdout=said, stderr=said, check=False).returncode)
    return not any(codes), time.monotonic() - began


def main(argv: list[str]) -> int:
    lanes = all_lanes()
    with ExitStack() as stack, ThreadPoolExecutor(len(lanes)) as threads:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in lanes[1:]]
        running = [threads.submit(run, lane, argv, said) for lane, said in zip(lanes, [*files, None], strict=True)]
        done = [(lane.result(), parts) for lane, parts in zip(running, lanes, strict=True)]
        last = [[LAST]]
        done.append((run(last, argv, None), last))
        for said in files:
            said.seek(0)
            shutil.copyfileobj(said, sys.stdout.buffer)
            sys.stdout.flush()
    for (_, took_s), parts in done:
        print(f"{took_s:6.0f} s  {'; '.join(' '.join(part) for part in parts)}".replace(f"{NETNS}/test_netns_", ""))
    return 0 if all(is_good for (is_good, _), _ in done) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
