"""What `make demo` and `make demo-vps` tell comes true, to the last packet."""

import subprocess
import sys
from pathlib import Path

import pytest

from lab import needs

TESTS = Path(__file__).resolve().parents[1]

pytestmark = needs("ip link add dev eth0 type veth && ip tuntap add dev tun0 mode tun && command -v wireguard-go wg")


@pytest.mark.parametrize(("story", "told"), [
    ("demo.py", ["back: "]),
    ("demo_vps.py", ["Now there is a tunnel, by WireGuard.", "nobody answers", "(on host): it came back"]),
])
def test_a_story_ends_well(story: str, told: list[str]) -> None:
    argv = [sys.executable, str(TESTS / story)]
    done = subprocess.run(argv, text=True, capture_output=True, timeout=120, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0 and all(words in done.stdout for words in told)
    assert done.stdout.rstrip().splitlines()[-1].strip().startswith("wire |"), "the last packet"
