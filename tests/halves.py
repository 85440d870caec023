#!/usr/bin/env python3
"""Every test, in two processes at once: one half waits for networks, the other one computes.

    tests/halves.py [ARGUMENT...]      what pytest takes

What the tests in namespaces say comes when both are done.  Ends with 0 if both halves do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

NETNS = "tests/netns"


def main(argv: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest", *argv]
    with tempfile.TemporaryFile() as said:
        networks = subprocess.Popen([*pytest, NETNS], stdout=said, stderr=said)
        try:                               # who computes must not keep those waiting who look at the time
            computed = subprocess.run([*pytest, f"--ignore={NETNS}"], preexec_fn=lambda: os.nice(5), check=False)
            networks.wait()
        except BaseException:
            networks.terminate()
            raise
        finally:
            networks.wait()
            said.seek(0)
            shutil.copyfileobj(said, sys.stdout.buffer)
            sys.stdout.flush()
    return computed.returncode or networks.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
