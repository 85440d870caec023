#!/usr/bin/env python3
"""Every test, in several processes at once: those in namespaces mostly wait, the others compute.

    tests/lanes.py [ARGUMENT...]      what pytest takes

What the last lane says comes at once, what the others say when all are done.  Ends with 0 if all do.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import IO

NETNS = "tests/netns"
APART = [f"{NETNS}/test_netns_{name}.py" for name in ("wireguard", "door", "demos", "ndp", "vps")]
ROUTER = [f"{NETNS}/test_netns_router.py"]
LAST = [f"{NETNS}/test_netns_scan.py"]     # wants a machine that has grown quiet
COMPUTING = [f"--ignore={NETNS}", "-m"]
LANES = (                                  # each of them one after the other
    [[NETNS, *(f"--ignore={path}" for path in APART + ROUTER + LAST)]],
    [APART],
    [ROUTER],
    [[*COMPUTING, "slow"]],
    [[*COMPUTING, "not slow"], LAST],
)


def run(lane: list[list[str]], argv: list[str], said: IO[bytes] | None) -> bool:
    """Who computes must not keep those waiting who look at the time."""
    codes = []
    for part in lane:
        command = ["nice", "-n", "5" if "-m" in part else "0", sys.executable, "-m", "pytest", *argv, *part]
        codes.append(subprocess.run(command, stdout=said, stderr=said, check=False).returncode)
    return not any(codes)


def main(argv: list[str]) -> int:
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in LANES[1:]]
        lanes = [threads.submit(run, lane, argv, said) for lane, said in zip(LANES, [*files, None], strict=True)]
        done = [lane.result() for lane in lanes]
        for said in files:
            said.seek(0)
            shutil.copyfileobj(said, sys.stdout.buffer)
            sys.stdout.flush()
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
