"""What ddpd installs on the grantee is announced by a real routing daemon, with the lines of docs/mesh.md as printed.

                                                                        far, behind a tunnel of home's
                                                                        2001:db8:f::1
                                                                          |
                                                                        wg0
    exit:down 192.0.2.1 --- up:plain:down 192.0.2.5 --- 192.0.2.6 eth0:home:lan --- host:eth0
              2001:db8:1::1                2001:db8:2::1  2001:db8:2::2   br-lan   2001:db8:42:1200::2, 10.64.7.2
    grantor; and who is            the same daemon        grantee         2001:db8:42:1200::1, 10.64.7.1
    beyond: all by plain           as home, no ddpd

Nobody but home is told where 2001:db8:42:1200::/56 and 10.64.7.0/24 are.
"""

import re
import shutil
from collections.abc import Callable, Iterator

import pytest

from daemon import Daemon
from docs import printed
from lab import Host, Lab, Program, eventually, needs

pytestmark = needs("ip link add dev eth0 type veth && command -v babeld && command -v bird")

BABELD, BIRD = printed("redistribute proto 221 allow\n"), printed("protocol device { }\n")
SIX, FOUR = "2001:db8:42:1200::/56", "10.64.7.0/24"
TARGETS = "2001:db8:42:1200::1", "2001:db8:42:1200::2", "10.64.7.1", "10.64.7.2"
EXIT = f"""
[pool six]
prefix   = 2001:db8:42::/48
give     = /56
lifetime = 8s
[pool four]
prefix   = 10.64.0.0/16
give     = /24
lifetime = 8s
[grantee home]
key   = @home
pools = six four
pin   = {SIX} {FOUR}
"""
HOME = """
[grantor exit]
key     = @exit
address = 192.0.2.1
ask     = ::/56 on br-lan
          0.0.0.0/24 on br-lan
"""
DEFAULT = "default = dev wg0 redistribute\n"         # a default route by source in the main table, for routing daemons
DEEPER = "2001:db8:42:1205::1"                      # plain's own part of the prefix, in the tests of that route


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit*", "plain*", "home*", "host", "far") as lab:
        lab.cable("exit:down 192.0.2.1/30 2001:db8:1::1/64", "plain:up 192.0.2.2/30 2001:db8:1::2/64")
        lab.cable("plain:down 192.0.2.5/30 2001:db8:2::1/64", "home:eth0 192.0.2.6/30 2001:db8:2::2/64")
        lab.cable("home:lan", "host:eth0 2001:db8:42:1200::2/64 10.64.7.2/24")
        lab.cable("home:wg0 2001:db8:f::2/64", "far:wg0 2001:db8:f::1/64")
        lab["home"].bridge("br-lan", "lan")
        for name, four, six in (("exit", "192.0.2.2", "2001:db8:1::2"), ("home", "192.0.2.5", "2001:db8:2::1"),
                                ("host", "10.64.7.1", "2001:db8:42:1200::1")):
            lab[name].ip(f"route add default via {four}")
            lab[name].ip(f"route add default via {six}")
        yield lab


# ==== routing daemons =================================================================


def babeld(host: Host, dev: str, lines: str) -> Program:
    config = host.folder / f"{host.name}.babeld"
    config.write_text(f"interface {dev} type wired hello-interval 0.5 update-interval 1\n{lines}")
    return host.start(f"babeld -I {config}.pid -S {config}.state -c {config}")


def bird(host: Host, dev: str, lines: str) -> Program:
    """With short intervals; the interface has the name that it has on this host."""
    config = host.folder / f"{host.name}.bird"
    short = f'interface "{dev}" {{ type wired; hello interval 1 s; update interval 2 s; }};'
    config.write_text(lines.replace('interface "eth0";', short))
    assert short in config.read_text()
    return host.start(f"bird -f -c {config} -s {config}.ctl -P {config}.pid")


def with_babeld(lab: Lab) -> None:
    babeld(lab["plain"], "down", "redistribute local deny\n")
    babeld(lab["home"], "eth0", BABELD)


def with_bird(lab: Lab) -> None:
    """Neighbours need no `export`."""
    bird(lab["plain"], "down", re.sub(r"export where.*?;", "", BIRD))
    bird(lab["home"], "eth0", BIRD)


def with_bird_by_source(lab: Lab) -> None:
    """The same lines in bird's tables with source and destination; those without a source are in them too."""
    lines = "ipv6 sadr table master6s;\n" + BIRD.replace("ipv6 {", "ipv6 sadr {")
    bird(lab["plain"], "down", re.sub(r"export where.*?;", "", lines))
    bird(lab["home"], "eth0", lines)


Start = Callable[[Lab], None]
each = pytest.mark.parametrize("start", [with_babeld, with_bird, with_bird_by_source])


# ==== what is known, and what arrives =================================================


def known(host: Host) -> set[str]:
    """What a routing daemon has told this kernel."""
    lines = [line for family in "46" for line in host.look(f"-{family} route show").splitlines()]
    return {" ".join(line.split(" via ")[0].split()) for line in lines if re.search(r"proto (babel|bird)\b", line)}


def arrive(lab: Lab) -> list[str]:
    return [target for target in TARGETS if lab["exit"].reaches(target)]


def both(lab: Lab) -> tuple[Daemon, Daemon]:
    exit_ = lab["exit"].ddpd(EXIT).start()
    home = lab["home"].ddpd(HOME).start()
    home.eventually(lambda: {row["prefix"] for row in home.status()["held"]} == {SIX, FOUR}, 8)
    return exit_, home


@each
def test_the_next_router_learns_the_prefix_as_long_as_it_is_leased(lab: Lab, start: Start) -> None:
    """Announced with the printed lines, reached from beyond, withdrawn when it is given back; and again."""
    start(lab)
    exit_, home = both(lab)
    assert len(exit_.status()["granted"]) == 2 and lab["exit"].routes() == []   # none of ddpd's doing
    eventually(lambda: known(lab["plain"]) == {SIX, FOUR}, 15, "plain knows both prefixes")
    eventually(lambda: arrive(lab) == list(TARGETS), 5, "packets arrive")
    assert not lab["exit"].reaches("2001:db8:42:12ff::1")              # what home does not use ends there
    if start is with_babeld:               # 1.12 withdraws another prefix; its neighbours wait, 15 s at the least
        return
    assert home.command("release").returncode == 0
    home.eventually(lambda: lab["home"].routes() == [], 10)
    eventually(lambda: known(lab["plain"]) == set(), 5, "plain has forgotten both")
    assert arrive(lab) == []
    assert home.command("renew").returncode == 0
    eventually(lambda: known(lab["plain"]) == {SIX, FOUR}, 15, "plain knows both again")
    eventually(lambda: arrive(lab) == list(TARGETS), 5, "packets arrive again")


@pytest.mark.parametrize("start", [with_babeld, with_bird])
def test_nothing_else_is_announced(lab: Lab, start: Start) -> None:
    """Neither home's addresses nor the routes of its operator; renewals and restarts are no news."""
    for route in "2001:db8:77::/48 via 2001:db8:f::1", "unreachable 2001:db8:78::/48 proto static metric 22100":
        lab["home"].ip(f"route add {route}")
    monitor = lab["plain"].start("ip monitor route")

    def news() -> list[str]:
        return re.findall(r".* proto (?:babel|bird)\b.*", monitor.log())

    start(lab)
    _, home = both(lab)
    eventually(lambda: known(lab["plain"]) == {SIX, FOUR}, 15, "plain knows both prefixes")
    eventually(lambda: len(news()) >= 2, 5, "the monitor has heard of them")
    heard = news()
    assert home.command("renew").returncode == 0
    home.stop()
    home.start()
    assert home.command("renew").returncode == 0
    eventually(lambda: arrive(lab) == list(TARGETS), 5, "packets arrive")
    assert known(lab["plain"]) == {SIX, FOUR}
    assert news() == heard


# ==== a default route by source =======================================================


def leaves(host: Host, source: str) -> str:
    """The interface by which a packet from here to far leaves."""
    found = re.search(r" dev (\S+)", host.look(f"-6 route get 2001:db8:f::1 from {source}"))
    return found[1] if found else ""


@pytest.mark.parametrize("start", [with_babeld, with_bird_by_source])
def test_a_default_route_by_source_is_announced(lab: Lab, start: Start) -> None:
    """plain, which has a part of the prefix, sends what comes from there to home, and nothing else."""
    lab["plain"].ip(f"addr add {DEEPER}/128 dev lo")
    lab["plain"].ip("route add default via 2001:db8:1::1")
    lab["home"].ip(f"route add {DEEPER}/128 via 2001:db8:2::1")
    lab["far"].ip(f"route add {SIX} via 2001:db8:f::2")
    start(lab)
    _, home = both(lab)
    eventually(lambda: known(lab["plain"]) == {SIX, FOUR}, 15, "plain knows both prefixes")
    assert leaves(lab["plain"], DEEPER) == "up" and not lab["plain"].reaches("2001:db8:f::1", DEEPER)
    home.write(home.config.read_text() + DEFAULT)
    assert home.command("reload").returncode == 0
    eventually(lambda: known(lab["plain"]) == {SIX, FOUR, f"default from {SIX}"}, 15, "plain knows the default")
    eventually(lambda: lab["plain"].reaches("2001:db8:f::1", DEEPER), 5, "packets arrive")
    assert leaves(lab["plain"], DEEPER) == "down"
    assert leaves(lab["plain"], "2001:db8:1::2") == "up"                # from elsewhere all is as it was
    if start is with_babeld:                                            # it would be forgotten, slowly, as above
        return
    assert home.command("release").returncode == 0
    eventually(lambda: known(lab["plain"]) == set(), 5, "plain has forgotten all")
    assert leaves(lab["plain"], DEEPER) == "up"


def test_bird_without_tables_by_source_leaves_it_alone(lab: Lab) -> None:
    """It is no default route for everybody: the plain `ipv6` that is printed neither learns nor announces it."""
    with_bird(lab)
    _, home = both(lab)
    home.write(home.config.read_text() + DEFAULT)
    assert home.command("reload").returncode == 0
    home.eventually(lambda: f"default from {SIX} dev wg0" in lab["home"].look("-6 route show"))
    eventually(lambda: known(lab["plain"]) == {SIX, FOUR}, 15, "plain knows both prefixes")
    birdc = shutil.which("birdc") or "/usr/sbin/birdc"
    heard = lab["home"].ask(f"{birdc} -s {lab.folder}/home.bird.ctl show route table all").stdout
    assert SIX in heard and "wg0" not in heard
