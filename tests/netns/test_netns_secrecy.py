"""What whoever records everything on the way learns: two datagrams, and nothing in them.

    exit:down ---[ recorded ]--- home:up  home:lan --- host:eth0
    192.0.2.1                    192.0.2.2
"""

import base64
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from daemon import Daemon
from lab import Lab, eventually, needs, public_of, secret_of

pytestmark = needs("ip link add dev eth0 type veth")

EXIT = """
[ddpd]
[pool six]
prefix   = 2001:db8:4200::/40
give     = /56
dns      = 2001:db8:4200::53
search   = lighthouse.example
[pool four]
prefix   = 10.64.0.0/16
give     = /24
[grantee home]
key   = @home
pools = six four
"""

HOME = """
[grantor exit]
key      = @exit
address  = 192.0.2.1
hostname = rumpelstiltskin
ask      = ::/56 on br-lan
           0.0.0.0/24 on br-lan
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit*", "home*", "host") as lab:
        lab.cable("exit:down 192.0.2.1/24", "home:up 192.0.2.2/24")
        lab.cable("home:lan", "host:eth0")
        lab["home"].bridge("br-lan", "lan")
        yield lab


def secrets(prefixes: list[str]) -> dict[str, bytes]:
    """Everything that must not be seen, in every form that it might have."""
    found = {"host name": b"rumpelstiltskin", "search list": b"lighthouse"}
    for name in ("exit", "home"):
        public = public_of(name)
        found |= {f"{name}'s public key":  base64.b64decode(public),
                  f"{name}'s private key": secret_of(name),
                  f"{name}'s public key in base64":  public.encode(),
                  f"{name}'s private key in base64": base64.b64encode(secret_of(name))}
    for prefix in prefixes:
        net = ip_network(prefix)
        found |= {f"{prefix}, packed": net.network_address.packed[: net.prefixlen // 8],
                  f"{prefix}, as text": str(net.network_address).rstrip(":0.").encode()}
    return found


def seen(frames: list[bytes], prefixes: list[str]) -> list[str]:
    return [what for what, secret in secrets(prefixes).items()
            if any(secret in frame for frame in frames)]


def bound(home: Daemon) -> list[str]:
    return sorted(row["prefix"] for row in home.status()["held"] if row["prefix"])


def test_first_contact_is_two_datagrams_of_one_size(lab: Lab) -> None:
    wire = lab["exit"].record("down")
    lab["exit"].ddpd(EXIT).start()
    home = lab["home"].ddpd(HOME).start()
    home.eventually(lambda: len(bound(home)) == 2)
    *_, ask, answer = wire.ddpd()
    assert (ask.source, ask.target, ask.dport) == ("192.0.2.2", "192.0.2.1", 3373)
    assert (answer.source, answer.sport, answer.target, answer.dport) == (
        "192.0.2.1", 3373, "192.0.2.2", ask.sport)
    assert len(ask.data) == len(answer.data) == 512
    assert {d.data[0] for d in wire.ddpd()[:-1]} == {1} and answer.data[0] == 2


def test_nothing_is_readable_in_a_whole_life(lab: Lab) -> None:
    """First contact, renewal, restart, release, an ask without a daemon: all of it recorded."""
    wire = lab["exit"].record("down")
    lab["exit"].ddpd(EXIT.replace("give  ", "lifetime = 8s\ngive  ")).start()
    home = lab["home"].ddpd(HOME).start()
    home.eventually(lambda: len(bound(home)) == 2)
    prefixes = bound(home)
    home.eventually(lambda: any(d.data[0] == 4 for d in wire.ddpd()))      # renewed, sealed
    home.stop()
    home.start()
    assert home.command("renew").returncode == 0
    home.eventually(lambda: bound(home) == prefixes)
    asked = len(wire.ddpd())
    assert home.command("release").returncode == 0
    eventually(lambda: len(wire.ddpd()) > asked)
    home.stop()
    assert home.command("ask").returncode == 0
    assert len(wire.ddpd()) >= 10
    assert seen(wire.frames(), prefixes) == []


def test_the_search_can_bark(lab: Lab) -> None:
    """Secrets sent in clear on the same wire are found: the test above does look."""
    wire = lab["exit"].record("down")
    prefixes = ["2001:db8:42ab:cd00::/56", "10.64.7.0/24"]
    with lab["home"].socket(2) as sock:
        for secret in secrets(prefixes).values():
            sock.sendto(b"..." + secret + b"...", ("192.0.2.1", 9))
    eventually(lambda: seen(wire.frames(), prefixes) == list(secrets(prefixes)))
