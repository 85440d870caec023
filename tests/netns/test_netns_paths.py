"""Ways: several addresses, several gateways, names that nobody answers, loss.

                  +-- up1 ---- down1 --+
    host --- home |                    | exit          many: two links, two addresses on each
                  +-- up2 ---- down2 --+

                       +-- up1 --- plain ---+
    host --- br-lan home                    far        gates: each prefix by its own gateway
                       +-- up2 --- exit ----+
"""

import json
import time
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from daemon import Daemon
from lab import Lab, changes, needs

pytestmark = needs("ip link add dev eth0 type veth")

EXIT = """
[ddpd]
[pool six]
prefix   = 2001:db8:42::/48
give     = /56
{}
[grantee home]
key   = @home
pools = six
"""

HOME = """
[grantor exit]
key     = @exit
address = {}
ask     = ::/56 on br-lan
{}
"""


def bound(home: Daemon, grantor: str = "exit") -> list[str]:
    return [row["prefix"] for row in home.status()["held"]
            if row["prefix"] and row["grantor"] == grantor]


# ==== several addresses ===============================================================


@pytest.fixture(scope="module")
def links() -> Iterator[Lab]:
    with Lab("exit*", "home*") as lab:
        lab.cable("exit:down1 192.0.2.1/24 192.0.2.11/24 2001:db8:1::1/64 2001:db8:1::11/64",
                  "home:up1   192.0.2.2/24 2001:db8:1::2/64")
        lab.cable("exit:down2 198.51.100.1/24 198.51.100.11/24 2001:db8:2::1/64 "
                  "2001:db8:2::11/64", "home:up2")
        lab["home"].bridge("br-lan")
        for net, via in (("198.51.100.0/24", "192.0.2.1"), ("2001:db8:2::/64", "2001:db8:1::1")):
            lab["home"].ip(f"route add {net} via {via}")       # the second link only answers
        yield lab


@pytest.fixture
def many(links: Lab) -> Iterator[Lab]:
    yield links
    for name in ("exit", "home"):
        links[name].sh("nft flush ruleset")
    links.leave()


@pytest.mark.parametrize("asked", [
    "192.0.2.1", "192.0.2.11", "198.51.100.1", "198.51.100.11",
    "2001:db8:1::1", "2001:db8:1::11", "2001:db8:2::1", "2001:db8:2::11"])
def test_a_grantor_answers_from_the_address_that_was_asked(many: Lab, asked: str) -> None:
    many["exit"].ddpd(EXIT.format("")).start()
    wires = [many["home"].record("up1"), many["home"].record("up2")]
    home = many["home"].ddpd(HOME.format(asked, ""))
    done = home.command("ask", "--json")
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["grants"]) == 1
    *_, ask, answer = wires[0].ddpd()
    assert (ask.target, ask.dport) == (answer.source, answer.sport) == (asked, 3373)
    assert wires[1].ddpd() == []               # and by the link on which it was asked


def test_several_addresses_of_a_grantor_are_tried_in_turn(many: Lab) -> None:
    """The first is deaf: it is asked first all the same, and the second after a second."""
    many["exit"].nft("""table ip deaf {
    chain in { type filter hook input priority 0; ip daddr 192.0.2.1 udp dport 3373 drop; }
}""")
    many["exit"].ddpd(EXIT.format("")).start()
    wire = many["home"].record("up1")
    daemon = many["home"].ddpd(HOME.format("192.0.2.1 192.0.2.11", "")).start()
    daemon.eventually(lambda: bound(daemon), 8)
    assert [d.target for d in wire.ddpd() if d.dport == 3373][:2] == ["192.0.2.1", "192.0.2.11"]


# ==== several gateways ================================================================


@pytest.fixture
def gates() -> Iterator[Lab]:
    with Lab("far", "plain*", "exit*", "home*", "host") as lab:
        lab.cable("far:eth1 2001:db8:f1::1/64", "plain:far 2001:db8:f1::fe/64")
        lab.cable("far:eth2 2001:db8:f2::1/64", "exit:far  2001:db8:f2::fe/64")
        lab.cable("plain:down 2001:db8:1::1/64", "home:up1 2001:db8:1::2/64")
        lab.cable("exit:down  2001:db8:2::1/64", "home:up2 2001:db8:2::2/64")
        lab.cable("home:lan 2001:db8:77::1/64", "host:eth0 2001:db8:77::50/64")
        lab["home"].bridge("br-lan")
        far = lab["far"]
        far.address("lo", "2001:db8:ffff::1/128")
        far.ip("route add 2001:db8:42::/48 via 2001:db8:f2::fe")
        for net in ("2001:db8:77::/64", "2001:db8:1::/64"):
            far.ip(f"route add {net} via 2001:db8:f1::fe")
        lab["plain"].ip("route add default via 2001:db8:f1::1")
        lab["plain"].ip("route add 2001:db8:77::/64 via 2001:db8:1::2")
        lab["exit"].ip("route add default via 2001:db8:f2::1")
        lab["home"].ip("route add default via 2001:db8:1::1")
        lab["host"].ip("route add default via 2001:db8:77::1")
        yield lab


def test_each_prefix_leaves_by_its_own_gateway(gates: Lab) -> None:
    home, host = gates["home"], gates["host"]
    before = home.kernel()
    gates["exit"].ddpd(EXIT.format("")).start()
    daemon = home.ddpd(HOME.format("2001:db8:2::1", "default = via 2001:db8:2::1 dev up2")).start()
    daemon.eventually(lambda: bound(daemon))
    (prefix,) = bound(daemon)
    made = sorted(set(home.settled()) - set(before))
    rules = [line for line in made if line.startswith("rule6")]
    table = rules[1].split()[-1]
    assert rules == ["rule6: 22100: from all lookup main suppress_prefixlength 0",
                     f"rule6: 22101: from {prefix} lookup {table}"]
    (way,) = [line for line in made if f"table {table}" in line]
    assert way.startswith(f"route6: default via 2001:db8:2::1 dev up2 table {table} proto 221")
    granted = str(ip_network(prefix).network_address + 0x50)
    host.address("eth0", f"{granted}/128")               # a host of the granted prefix
    home.ip(f"route add {granted} dev lan")
    one, two = home.record("up1"), home.record("up2")
    assert host.reaches("2001:db8:ffff::1", source=granted)
    assert ([d.source for d in one.datagrams(9)], [d.source for d in two.datagrams(9)]) == (
        [], [granted])
    assert host.reaches("2001:db8:ffff::1", source="2001:db8:77::50")
    assert home.reaches("2001:db8:ffff::1", source="2001:db8:1::2")
    assert [d.source for d in one.datagrams(9)] == ["2001:db8:77::50", "2001:db8:1::2"]
    assert host.reaches("2001:db8:77::1", source=granted)    # and the LAN stays the LAN
    home.ip(f"route del {granted} dev lan")
    daemon.stop()
    assert daemon.command("clean").returncode == 0
    assert changes(before, home.kernel()) == []


# ==== names that nobody answers =======================================================


def test_a_silent_name_server_delays_only_its_own_grantor(many: Lab) -> None:
    """The name server takes 30 s to fail; everything else goes on as if it were not there."""
    exit_, home = many["exit"], many["home"]
    exit_.address("lo", "192.0.2.53/32")
    exit_.nft("""table ip hole {
    chain in { type filter hook input priority 0; udp dport 53 drop; }
}""")
    wire = home.record("up1")
    resolv = many.folder / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.53\noptions timeout:15 attempts:2\n")
    hidden = ("unshare", "--mount", "sh", "-c",
              f"mount --make-rprivate / && mount --bind {resolv} /etc/resolv.conf && exec \"$@\"",
              "sh")
    exit_.ddpd(EXIT.format("lifetime = 12s\nrenew = 1s")).start()
    daemon = home.ddpd(HOME.format("192.0.2.1", "") + """
[grantor lost]
key     = @lost
address = exit.nowhere.example:3373
ask     = ::/56
""", wrap=hidden).start()
    started = time.monotonic()
    daemon.eventually(lambda: bound(daemon), 8)
    (prefix,) = bound(daemon)
    asks = len(wire.ddpd())
    while time.monotonic() < started + 14:               # longer than the lease lives
        begun = time.monotonic()
        rows = {row["grantor"]: row for row in daemon.status()["held"]}
        assert time.monotonic() - begun < 10
        assert rows["exit"]["prefix"] == prefix and rows["exit"]["valid"] > 2
        time.sleep(0.3)
    assert len(wire.ddpd()) >= asks + 6                  # renewed at least three times
    assert {d.target for d in wire.datagrams(53)} == {"192.0.2.53"}      # it did ask for the name
    assert wire.datagrams(53)


# ==== loss ============================================================================


def test_three_of_ten_lost_each_way(many: Lab) -> None:
    """The first ask is lost, then the first answer; a lease of 8 s is kept for 10 s."""
    exit_, home = many["exit"], many["home"]
    exit_.loses("0, 3, 6")
    home.loses("0, 3, 6")
    exit_.ddpd(EXIT.format("lifetime = 8s")).start()
    wire = home.record("up1")
    daemon = home.ddpd(HOME.format("192.0.2.1", "")).start()
    daemon.eventually(lambda: bound(daemon), 10)                     # asked at 0, 1 and 3 s
    assert [d.data[0] for d in wire.ddpd()][:5] == [1, 1, 2, 1, 2]       # two answers, one arrived
    (prefix,) = bound(daemon)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        assert bound(daemon) == [prefix]
        time.sleep(0.3)
