"""`check` looks at the machine too: what is configured, and cannot be of use on these interfaces."""

import re
from collections.abc import Iterator

import pytest

from lab import Lab

CONFIG = """
[pool home]
prefix = 2001:db8:42::/48
give   = /56-/64
[grantor exit]
key     = @exit
address = 2001:db8:1::1
ask     = ::/56 on lan0 port0
[ndp eth0.10]
method = kernel
proxy  = leased
         static fe80::/10
"""


@pytest.fixture(scope="module")
def said() -> Iterator[str]:
    with Lab("home") as lab:
        home = lab["home"]
        home.bridge("lan0")
        for dev, far in (("port0", "port1"), ("eth0.10", "far")):
            home.ip(f"link add dev {dev} type veth peer name {far}")
            home.ip(f"link set dev {dev} up")
        home.ip("link set dev port0 master lan0")
        home.ip("link set dev lan0 mtu 1200")
        home.address("eth0.10", "2001:db8:42:77::1/64")
        home.sysctl({"net/ipv6/conf/all/forwarding": 1})
        yield home.ddpd(CONFIG).command("check").stdout


@pytest.mark.parametrize("line", [
    r"warning: .*port0 is a port of a bridge",
    r"warning: .*lan0 has an MTU of 1200, and IPv6 needs 1280",
    r"warning: \[ndp eth0\.10\] static fe80::/10: for link-local addresses nobody answers",
    r"warning: net\.ipv6\.conf\.eth0/10\.proxy_ndp = 0",
    r"note: \[pool home\] does not give 2001:db8:42:77::/64: that is the network of eth0\.10",
])
def test_what_check_says_of_the_machine(said: str, line: str) -> None:
    assert re.search(line, said), said
