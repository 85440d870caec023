"""What has gone and comes back, as something else or somewhere else: links, routers, names, NATs, twins, hosts.

    exit:down ------------------ home:up   home:br-lan
    192.0.2.1                    192.0.2.2
    2001:db8:1::1                2001:db8:1::2
    grantor                      grantee

Each part of the file draws what it changes of that picture.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from daemon import Daemon
from lab import DDPD_PORT, Host, Lab, Program, busybox_path, changes, eventually, needs, secret_of, wg_name
from life import BOOT

pytestmark = needs("ip link add dev eth0 type veth && command -v busybox && command -v nft")

EXIT = """
[pool six]
prefix    = 2001:db8:42::/48
give      = /56
{}
[pool four]
prefix    = 10.64.0.0/16
give      = /24
{}
[grantee home]
key   = @home
pools = six four
{}
"""
HOME = """
[grantor exit]
key     = @exit
address = {}
ask     = ::/56 on br-lan
"""
SHORT = "lifetime  = 1h\npreferred = 10m\nrenew     = 3s"     # T2, when the next address is tried, is 8 minutes away
TOOLS = pytest.mark.parametrize("tool", ["iproute2", "busybox"])
UPLINK = "exit:down 192.0.2.1/24 2001:db8:1::1/64", "home:up 192.0.2.2/24 2001:db8:1::2/64"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit*", "home*") as lab:
        lab.cable(*UPLINK)
        lab["home"].bridge("br-lan")
        yield lab


def exit_text(pools: str = "", terms: str = "") -> str:
    return EXIT.format(pools, pools, terms)


def path_of(lab: Lab, tool: str) -> str:
    return busybox_path(lab.folder) if tool == "busybox" else ""


def held(home: Daemon) -> list[str]:
    return sorted(row["prefix"] for row in home.status()["held"] if row["prefix"] and row["state"] == "bound")


def is_bound(home: Daemon) -> bool:
    return bool(held(home))


def at(home: Daemon) -> str:
    """Where the grantor is asked."""
    return str(home.status()["grantors"][0]["at"])


def age(home: Daemon) -> int:
    """Seconds since the lease, of an hour or of twelve, was renewed."""
    left = max((row["valid"] for row in home.status()["held"]), default=0)
    return (3600 if left <= 3600 else 43200) - int(left)


def renews(home: Daemon) -> None:
    home.eventually(lambda: age(home) >= 2)
    home.eventually(lambda: is_bound(home) and age(home) <= 1)


def on_lan(host: Host, start: str, dev: str = "br-lan") -> bool:
    """The LAN has an address that starts so, and prefers it."""
    return any(line.split()[3].startswith(start) and " preferred_lft 0sec" not in line
               for line in host.look(f"-o addr show dev {dev} scope global").splitlines())


# ==== a link ==========================================================================


@pytest.mark.parametrize("address", ["fe80::1%ppp0", "[2001:db8:ffff::1]"])
def test_a_line_that_comes_back_is_asked_by_at_once(address: str) -> None:
    """PPPoE: ppp0 is another interface of that name, and behind it there is another prefix."""
    with Lab("exit*", "home*") as lab:
        ends = "exit:ppp7 fe80::1/64 2001:db8:ffff::1/64", "home:ppp0 fe80::2/64 2001:db8:ffff::2/64"
        lab.cable(*ends)
        lab["home"].bridge("br-lan")
        exit_ = lab["exit"].ddpd(exit_text()).start()
        home = lab["home"].ddpd(HOME.format(address).replace("ask ", "default = auto\nask ")).start()
        home.eventually(lambda: on_lan(lab["home"], "2001:db8:42:"))
        number = lab["home"].look("-o link show dev ppp0").split(":")[0]
        lab["home"].ip("link del dev ppp0")
        exit_.write(exit_.config.read_text().replace("2001:db8:42::/48", "2001:db8:43::/48"))
        assert exit_.command("reload").returncode == 0
        time.sleep(3)                                      # the line is down for a while; its nudges have gone nowhere
        lab.cable(*ends)
        assert lab["home"].look("-o link show dev ppp0").split(":")[0] != number
        home.eventually(lambda: on_lan(lab["home"], "2001:db8:43:"), 5)
        assert not on_lan(lab["home"], "2001:db8:42:")
        home.eventually(lambda: "default" in lab["home"].look("-6 route show table 720"), 3)


# ==== routers ==========================================================================
#
#    one:down  ---+
#                 +--- up home br-lan       two routers, one of which is a grantor
#    two:down  ---+


@pytest.fixture
def routers() -> Iterator[Lab]:
    with Lab("one*", "two*", "switch", "home*") as lab:
        for n, name in ((1, "one"), (2, "two")):
            lab.cable(f"{name}:down 192.0.2.{n}/24 2001:db8:1::{n}/64", f"switch:{name}")
        lab.cable("home:up 192.0.2.9/24 2001:db8:1::9/64", "switch:home")
        lab["switch"].bridge("br", "one", "two", "home")
        lab["home"].bridge("br-lan")
        yield lab


@pytest.mark.parametrize("who", ["one", "two"])
@pytest.mark.parametrize("family", [6, 4])
def test_a_default_route_of_two_next_hops_names_two_routers(routers: Lab, family: int, who: str) -> None:
    """`address = gateway`: one route with two next hops is as good as two routes; who answers is the way out, too."""
    hop = "2001:db8:1::{}" if family == 6 else "192.0.2.{}"
    hops = " ".join(f"nexthop via {hop.format(n)} dev up" for n in (1, 2))
    routers["home"].ip(f"-{family} route add default metric 1024 {hops}")
    routers[who].ddpd(exit_text(), "exit").start()
    home = routers["home"].ddpd(HOME.format("gateway").replace("ask ", "default = auto\nask ")).start()
    home.eventually(lambda: is_bound(home), 8)
    n = {"one": 1, "two": 2}[who]
    assert hop.format(n) in at(home)
    if family == 6:
        way = f"default via 2001:db8:1::{n} dev up"
        home.eventually(lambda: way in " ".join(routers["home"].look("-6 route show table 720").split()), 3)


def test_a_next_hop_less_is_no_other_way(routers: Lab) -> None:
    """The router that is asked stays when the other leaves the route; when it leaves itself, the other is asked."""
    for n, name in ((1, "one"), (2, "two")):
        routers[name].ddpd(exit_text().replace(":42:", f":4{n}:"), name).write_key(secret_of("exit"))
        routers[name].daemons[0].start()
    hops = {n: f"nexthop via 2001:db8:1::{n} dev up" for n in (1, 2)}
    routers["home"].ip(f"-6 route add default metric 1024 {hops[1]} {hops[2]}")
    home = routers["home"].ddpd(HOME.format("gateway").replace("ask ", "default = auto\nask ")).start()
    home.eventually(lambda: is_bound(home), 8)
    first, other = (1, 2) if "[2001:db8:1::1]" in at(home) else (2, 1)
    routers["home"].ip(f"-6 route replace default metric 1024 {hops[first]}")
    time.sleep(1)
    assert f"[2001:db8:1::{first}]" in at(home)
    routers["home"].ip(f"-6 route replace default metric 1024 {hops[other]}")
    home.eventually(lambda: f"[2001:db8:1::{other}]" in at(home), 5)
    home.eventually(lambda: on_lan(routers["home"], f"2001:db8:4{other}:"), 5)


# ==== point to point ==================================================================


@TOOLS
@pytest.mark.parametrize(("own", "peer", "ask", "prefix"), [
    ("10.0.0.1", "10.0.0.2/32", "0.0.0.0/24", "10.64."),
    ("2001:db8:5::1", "2001:db8:5::2/128", "::/56", "2001:db8:42:")])
def test_the_peer_of_a_point_to_point_address_is_a_neighbour(own: str, peer: str, ask: str, prefix: str,
                                                             tool: str) -> None:
    """`route = auto`: of PPP's kind, 10.0.0.1 peer 10.0.0.2/32; what is leased is routed there, and reached."""
    with Lab("exit*", "home*") as lab:
        there, _, length = peer.partition("/")
        lab.cable("exit:ppp7", "home:ppp0")
        lab["exit"].address("ppp7", f"'{own}' peer {peer}")
        lab["home"].address("ppp0", f"'{there}' peer {own}/{length}")
        lab["home"].bridge("br-lan")
        before = lab["exit"].kernel()
        exit_ = lab["exit"].ddpd(exit_text(), path=path_of(lab, tool)).start()
        home = lab["home"].ddpd(HOME.format(own).replace("::/56", ask), path=path_of(lab, tool)).start()
        home.eventually(lambda: is_bound(home))
        [lan] = lab["home"].addresses("br-lan", 6 if ":" in own else 4)
        eventually(lambda: any(" dev ppp7 " in f"{line} " for line in lab["exit"].routes()), 3, "routed")
        assert lan.startswith(prefix)
        eventually(lambda: lab["exit"].reaches(lan.split("/")[0]), 3, "reached")
        assert home.command("release").returncode == 0
        exit_.eventually(lambda: changes(before, lab["exit"].kernel()) == [])


# ==== a NAT ===========================================================================


@pytest.mark.parametrize("place", ["192.0.2.1", "2001:db8:1::1"])
def test_behind_a_dead_mapping_another_port_is_used(lab: Lab, place: str) -> None:
    """A NAT, or a firewall with states, that eats what comes from the port of before: nothing else would end that."""
    lab["exit"].ddpd(exit_text(SHORT)).start()
    lab["home"].notes_asks()
    home = lab["home"].ddpd(HOME.format(place)).start()
    home.eventually(lambda: is_bound(home))
    renews(home)
    [(_, port)] = lab["home"].asked_from()
    lab["exit"].nft(f"table inet nat {{ chain in {{ type filter hook prerouting priority -300; "
                    f"udp sport {port} udp dport {DDPD_PORT} drop; }}; }}")
    home.eventually(lambda: len(lab["home"].asked_from()) > 1, 20)
    home.eventually(lambda: is_bound(home) and age(home) <= 3, 3)
    assert len(lab["home"].asked_from()) == 2, "another port, and not another one for each ask"


def test_a_seeking_grantee_behind_a_dead_mapping(lab: Lab) -> None:
    """It has never been answered from this port: others are tried then, too."""
    lab["home"].notes_asks()
    home = lab["home"].ddpd(HOME.format("192.0.2.1")).start()
    home.eventually(lambda: lab["home"].asked_from())
    [(_, port)] = lab["home"].asked_from()
    lab["exit"].nft(f"table inet nat {{ chain in {{ type filter hook prerouting priority -300; "
                    f"udp sport {port} udp dport {DDPD_PORT} drop; }}; }}")
    lab["exit"].ddpd(exit_text()).start()
    home.eventually(lambda: is_bound(home), 20)


# ==== names of interfaces ================================================================


def calm_for(host: Host, seconds: float) -> list[str]:
    """What is made and removed meanwhile."""
    seen = host.start("ip monitor link address route rule")
    time.sleep(seconds)
    seen.end()
    return [line for line in seen.log().splitlines() if "2001:db8:42:" in line or "2001:db8:77:" in line]


@TOOLS
def test_a_lan_by_its_alternative_name(lab: Lab, tool: str) -> None:
    """As systemd gives them: made once, known after a restart, and removed by `clean`."""
    host = lab["home"]
    host.ip("link property add dev br-lan altname lan_alt")
    before = host.kernel()
    lab["exit"].ddpd(exit_text(SHORT)).start()
    home = host.ddpd(HOME.format("2001:db8:1::1").replace("on br-lan", "on lan_alt"), path=path_of(lab, tool)).start()
    home.eventually(lambda: on_lan(host, "2001:db8:42:"))
    assert [line for line in calm_for(host, 5) if "Deleted" in line] == []
    made = host.kernel()
    home.stop()
    home.start()
    home.eventually(lambda: is_bound(home))
    assert host.kernel() == made
    assert "waiting for" not in home.log() and "cannot install" not in home.log()
    home.stop()
    assert home.command("clean").returncode == 0
    assert changes(before, host.kernel()) == []
    home.start()
    home.eventually(lambda: on_lan(host, "2001:db8:42:"))
    host.ip("link del dev br-lan")
    host.bridge("br-lan")
    time.sleep(0.3)
    assert not on_lan(host, "2001:db8:42:")                # it has not this name
    host.ip("link property add dev br-lan altname lan_alt")
    home.eventually(lambda: on_lan(host, "2001:db8:42:"), 6)


@TOOLS
def test_a_route_by_an_alternative_name(lab: Lab, tool: str) -> None:
    host = lab["exit"]
    host.ip("link property add dev down altname down_alt")
    before = host.kernel()
    exit_ = host.ddpd(exit_text(SHORT, "route = dev down_alt"), path=path_of(lab, tool)).start()
    home = lab["home"].ddpd(HOME.format("2001:db8:1::1")).start()
    home.eventually(lambda: is_bound(home))
    [prefix] = held(home)
    exit_.eventually(lambda: any(line.startswith(f"{prefix} dev down ") for line in host.routes()), 3)
    assert calm_for(host, 5) == []
    made = host.kernel()
    exit_.stop()
    exit_.start()
    assert host.kernel() == made
    exit_.stop()
    assert exit_.command("clean").returncode == 0
    assert changes(before, host.kernel()) == []


def test_neighbours_on_an_interface_by_its_alternative_name() -> None:
    """[ndp]: what is leased is answered for; the provider's router takes all of the /64 for on-link."""
    with Lab("net", "exit*", "home*") as lab:
        lab.cable("net:eth0 2001:db8:77:1::1/64", "exit:wan 2001:db8:77:1::5/64")
        lab.cable("exit:down 2001:db8:1::1/64", "home:up 2001:db8:1::2/64")
        lab["home"].bridge("br-lan")
        lab["home"].ip("-6 route add default via 2001:db8:1::1")
        lab["exit"].ip("link property add dev wan altname wan_alt")
        text = exit_text().replace("2001:db8:42::/48", "2001:db8:77:1::/64").replace("/56", "/80")
        text = text.replace("[pool four]", "reserve = 2001:db8:77:1::/80\n[pool four]")
        exit_ = lab["exit"].ddpd(text + "[ndp wan_alt]\nproxy = leased\n").start()
        home = lab["home"].ddpd(HOME.format("2001:db8:1::1").replace("/56", "/80")).start()
        home.eventually(lambda: is_bound(home))
        [address] = lab["home"].addresses("br-lan")
        eventually(lambda: lab["net"].reaches(address.split("/")[0]), 5, "answered for")
        lab["exit"].ip("link set dev wan down")
        lab["exit"].ip("link set dev wan up")
        lab["exit"].ask("ip addr replace 2001:db8:77:1::5/64 dev wan")
        lab["net"].look("neigh flush all")
        eventually(lambda: lab["net"].reaches(address.split("/")[0]), 5, "answered for, again")
        said = [line for line in exit_.log().splitlines() if "listen" in line and "interface=wan_alt" in line]
        assert said[-1].startswith("listens ") and all("down" in line for line in said if "cannot" in line), said


# ==== a name that gets another address ====================================================


def named(lab: Lab) -> tuple[Path, tuple[str, ...]]:
    """An /etc/hosts of its own, and how to run a program with it."""
    hosts = lab.folder / "hosts"
    hosts.touch()
    mounts = f"mount --make-rprivate / && mount --bind {hosts} /etc/hosts"
    return hosts, ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")


def moves(lab: Lab, hosts: Path) -> None:
    """The hub has another address, and its name is known to have it."""
    lab["exit"].ip("addr del 203.0.113.1/32 dev lo")
    lab["exit"].ip("addr add 203.0.113.2/32 dev lo")
    hosts.write_text("203.0.113.2 hub.test\n")


@pytest.mark.slow
def test_a_name_with_another_address_is_noticed_long_before_t1(lab: Lab) -> None:
    """Bound for hours: a minute after the name has moved, the grantor is asked where it is now."""
    hosts, wrap = named(lab)
    hosts.write_text("203.0.113.1 hub.test\n")
    lab["exit"].address("lo", "203.0.113.1/32")
    lab["home"].ip("route add 203.0.113.0/24 via 192.0.2.1")
    lab["exit"].ddpd(exit_text()).start()
    home = lab["home"].ddpd(HOME.format("hub.test"), wrap=wrap).start()
    home.eventually(lambda: is_bound(home))
    moves(lab, hosts)
    home.eventually(lambda: "203.0.113.2" in at(home), 70)
    home.eventually(lambda: is_bound(home) and age(home) < 5, 3)


HUB_WG, HOME_WG = wg_name("hub"), wg_name("home")


@pytest.mark.slow
@needs("ip tuntap add dev tun0 mode tun && command -v wireguard-go wg")
@pytest.mark.parametrize("endpoint", ["", "endpoint = hub.test:51820\n"], ids=["where it asks", "by name"])
def test_a_tunnel_follows_a_name_with_another_address(lab: Lab, endpoint: str) -> None:
    """The hub is asked by its name, or said where the tunnel's other end is by that name."""
    hosts, wrap = named(lab)
    hosts.write_text("203.0.113.1 hub.test\n")
    lab["exit"].address("lo", "203.0.113.1/32")
    lab["home"].ip("route add 203.0.113.0/24 via 192.0.2.1")
    lab["exit"].ddpd(exit_text() + f"[wireguard {HUB_WG}]\npools = six\nadd_peers = yes\naddress = fd00:9::1/64\n"
                     + endpoint).start()
    place = "192.0.2.1" if endpoint else "hub.test"        # asked by its address, it does not move for who asks
    text = HOME.format(place) + f"[tunnel {HOME_WG}]\ngrantor = exit\nroutes = fd00:9::/64\n"
    home = lab["home"].ddpd(text, wrap=wrap).start()
    eventually(lambda: endpoint_of(lab) == "203.0.113.1:51820", 8, "a tunnel")
    moves(lab, hosts)
    home.eventually(lambda: endpoint_of(lab) == "203.0.113.2:51820", 70)


def endpoint_of(lab: Lab) -> str:
    words = lab["home"].ask(f"wg show {HOME_WG} endpoints").stdout.split()
    return words[1] if words[1:] else ""


# ==== several addresses, and twins ========================================================


def deaf(host: Host, place: str) -> None:
    family = "ip6" if ":" in place else "ip"
    host.nft(f"table {family} deaf {{ chain in {{ type filter hook input priority 0; "
             f"{family} daddr {place} udp dport {DDPD_PORT} drop; }}; }}")


@pytest.mark.parametrize("order", [("192.0.2.1", "2001:db8:1::1"), ("2001:db8:1::1", "192.0.2.1")])
def test_renew_tries_every_address_in_turn(lab: Lab, order: tuple[str, str]) -> None:
    """What the operator says is said because something is wrong: T2, which is hours away, is not waited for."""
    lab["exit"].ddpd(exit_text()).start()
    home = lab["home"].ddpd(HOME.format(" ".join(order))).start()
    home.eventually(lambda: is_bound(home) and order[0] in at(home))
    home.eventually(lambda: age(home) >= 2)
    deaf(lab["exit"], order[0])
    assert home.command("renew").returncode == 0
    home.eventually(lambda: is_bound(home) and order[1] in at(home) and age(home) <= 1, 6)


def test_a_twin_takes_over_when_two_asks_stay_unanswered(routers: Lab) -> None:
    """T1 is three seconds, T2 eight minutes: who renews so often wants to know at once that one is dead."""
    text = exit_text(SHORT)
    for n, name in ((1, "one"), (2, "two")):
        routers[name].ddpd(text.replace("give ", f"share = {n}/2\ngive "), name).write_key(secret_of("exit"))
        routers[name].daemons[0].start()
    home = routers["home"].ddpd(HOME.format("192.0.2.1 192.0.2.2")).start()
    home.eventually(lambda: is_bound(home))
    prefixes = held(home)
    first, other = ("one", "192.0.2.2") if "192.0.2.1:" in at(home) else ("two", "192.0.2.1")
    renews(home)                                           # from whom it was granted by
    routers[first].daemons[0].kill()
    home.eventually(lambda: is_bound(home) and f"{other}:" in at(home) and age(home) <= 1, 12)
    assert held(home) == prefixes


# ==== a duplicate address =================================================================


def test_a_duplicate_on_the_lan_is_told_and_not_fought_for() -> None:
    """An old router, or a host that took ::1: the kernel removes ours, and it is there when the other has gone."""
    address = "2001:db8:42:1200::1"
    with Lab("exit*", "home*", "box") as lab:
        lab.cable(*UPLINK)
        lab.cable("home:lan0", "box:eth0")
        host = lab["home"]
        host.sysctl({"net/ipv6/conf/lan0/accept_dad": 1})
        lab["box"].address("eth0", f"{address}/64")
        lab["exit"].ddpd(exit_text("", "pin = 2001:db8:42:1200::/56")).start()
        seen = host.start("ip monitor address")
        home = host.ddpd(HOME.format("2001:db8:1::1").replace("br-lan", "lan0")).start()
        home.eventually(lambda: is_bound(home))
        eventually(lambda: removed(seen, address) > 0, 5, "a kernel that finds duplicates")
        time.sleep(20)
        assert removed(seen, address) <= 10
        said = [line for line in home.log().splitlines() if "duplicate" in line.lower()]
        assert len(said) == 1 and address in said[0] and "lan0" in said[0], said
        assert re.search(rf"(?i){address}.*duplicate|duplicate.*{address}", home.command("status").stdout)
        lab["box"].ip(f"addr del {address}/64 dev eth0")
        home.eventually(lambda: is_ready(host, address), 6)
        assert "duplicate" not in home.command("status").stdout.lower()


def removed(seen: Program, address: str) -> int:
    return len(re.findall(rf"(?m)^Deleted .* {address}/64 ", seen.log()))


def is_ready(host: Host, address: str) -> bool:
    shown = host.look("-6 -o addr show dev lan0")
    return any(f" {address}/64 " in line and "tentative" not in line and "dadfailed" not in line
               for line in shown.splitlines())


# ==== a reboot, and another prefix at once ==================================================
#
#    exit:down ------- home:up    home:lan --- switch --- host:eth0      the host stays up, and remembers
#                                 br-lan, dnsmasq


DNSMASQ = "interface=br-lan\nenable-ra\ndhcp-range=::,constructor:br-lan,ra-only\n"


@needs("command -v dnsmasq")
@pytest.mark.parametrize("forgets", [False, True], ids=["the grantor renumbers", "the grantor knows nothing of before"])
@pytest.mark.parametrize("first", ["dnsmasq", "ddpd"])
def test_hosts_leave_the_prefix_of_before_a_reboot(first: str, forgets: bool) -> None:
    """Granted anew within milliseconds: the old prefix was there too briefly for dnsmasq, and is in hosts for hours."""
    with Lab("exit*", "home*", "switch", "host") as lab:
        lab.cable("home:lan", "switch:home")
        lab.cable("switch:host", "host:eth0")
        lab["switch"].bridge("br", "home", "host")
        (lab.folder / "fake.py").write_text(BOOT)
        (lab.folder / "dnsmasq.conf").write_text(DNSMASQ)
        exit_ = lab["exit"].ddpd(exit_text())
        home = lab["home"].ddpd(HOME.format("2001:db8:1::1"),
                                wrap=(sys.executable, str(lab.folder / "fake.py"), str(lab.folder)))
        exit_.start()
        boots(lab, home, "one", first)
        eventually(lambda: prefers(lab["host"]) == ["2001:db8:42:"], 8, "the host has an address")

        home.kill()
        [program] = [program for program in lab["home"].programs if program.running()]
        program.end(hard=True)
        for dev in ("br-lan", "up"):
            lab["home"].ip(f"link del dev {dev}")
        lab["home"].look("-6 rule del pref 22101")
        lab["home"].look("-6 route flush table all proto 221")
        exit_.stop()
        if forgets:
            (exit_.dir / "leases.json").unlink()
            (exit_.dir / "key.granted").unlink()
        exit_.write(exit_.config.read_text().replace("2001:db8:42::/48", "2001:db8:43::/48"))
        exit_.start()
        boots(lab, home, "two", first)
        eventually(lambda: "2001:db8:43:" in prefers(lab["host"]), 8, "the new one")
        eventually(lambda: prefers(lab["host"]) == ["2001:db8:43:"], 5, "and the old one is deprecated")


def boots(lab: Lab, home: Daemon, name: str, first: str) -> None:
    (lab.folder / "boot").write_text(name)
    lab.cable(*UPLINK)
    lab["home"].bridge("br-lan", "lan")
    starts: dict[str, Callable[[], object]] = {"dnsmasq": partial(announces, lab), "ddpd": home.start}
    for what in sorted(starts, key=lambda what: what != first):
        starts[what]()


def announces(lab: Lab) -> None:
    program = lab["home"].start(f"dnsmasq --keep-in-foreground --port=0 --conf-file={lab.folder}/dnsmasq.conf "
                                f"--pid-file= --dhcp-leasefile={lab.folder}/leases --log-facility=-")
    eventually(lambda: "started" in program.log(), what="dnsmasq runs")


def prefers(host: Host) -> list[str]:
    """The beginnings of the addresses that the host would use for a new connection."""
    shown = host.look("-6 -o addr show dev eth0 scope global")
    return sorted({line.split()[3][:12] for line in shown.splitlines() if " preferred_lft 0sec" not in line})


