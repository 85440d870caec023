"""What `make demo` and `make demo-vps` tell comes true, to the last packet."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab import needs

TESTS = Path(__file__).resolve().parents[1]

pytestmark = needs("ip link add dev eth0 type veth && ip tuntap add dev tun0 mode tun && command -v wireguard-go wg")


@pytest.mark.parametrize(("story", "told"), [
    ("demo.py", [r"reach[^*]*none \(asked over IPv4\)[^*]*\n\* babeld[^*]*via fe80::\S+ dev down proto babel",
                 r"host# ip address[^*]* valid_lft 43[12]\d\dsec preferred_lft 21[56]\d\dsec", "back: "]),
    ("demo_vps.py", [r"Now there is a tunnel, by WireGuard\.", "nobody answers", r"\(on host\): it came back"]),
])
def test_a_story_ends_well(story: str, told: list[str]) -> None:
    argv = [sys.executable, str(TESTS / story)]
    done = subprocess.run(argv, text=True, capture_output=True, timeout=120, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    for words in told:
        assert re.search(words, done.stdout), words
    assert done.stdout.rstrip().splitlines()[-1].strip().startswith("wire |"), "the last packet"
