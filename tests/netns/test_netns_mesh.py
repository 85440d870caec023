"""A mesh: two exits that give prefixes, three routers that know nothing of ddpd, two homes that ask both.

                         internet 2001:db8:ffff::1
                       a |             | b
                      up |             | up
                    +--------+     +--------+
    2001:db8:a::/48 | exit a |     | exit b | 2001:db8:b::/48        ddpd (grantors), babeld
                    +--------+     +--------+
                    mesh |             | mesh
                       +----+       +----+
                       | r1 |-------| r2 |------ mesh away br-lan    away: ddpd (grantee), babeld
                       +----+       +----+
                          |  +----+  |
                          +--| r3 |--+       r1, r2, r3: babeld and nothing else
                             +----+
                                |
                                +--------------- mesh home br-lan    home: ddpd (grantee), babeld, dnsmasq
                                                             |
                                                        eth0 host    a computer

No cable of the mesh has an address, save the link-local ones that every interface makes for itself.  Exits and homes
have one of their own each, by which they ask and answer, and nothing more than these do the routers between them
need to know:

    the way to these addresses               IPv6 in one world, IPv4 in the other
    the way to each home's prefixes          the unreachable routes of protocol 221 are announced
    for each pool, the way to its exit       default routes by source: babeld's `src-prefix`
"""

import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from daemon import Daemon
from lab import IP, Host, Lab, LabError, Program, Recorder, busybox_path, eventually, needs

pytestmark = needs("ip link add dev eth0 type veth && command -v babeld && command -v dnsmasq")

FAR, PORT = "2001:db8:ffff::1", 7777       # a host that says again what it is told
EXITS, ROUTERS, HOMES = ("a", "b"), ("r1", "r2", "r3"), ("home", "away")
CABLES = [("a:mesh", "r1:a"), ("b:mesh", "r2:b"), ("r1:r2", "r2:r1"), ("r1:r3", "r3:r1"),
          ("r2:r3", "r3:r2"), ("r3:home", "home:mesh"), ("r2:away", "away:mesh")]
MESH = {name: [end.split(":")[1] for cable in CABLES for end in cable if end.startswith(f"{name}:")]
        for name in (*EXITS, *ROUTERS, *HOMES)}
POOL = {name: f"2001:db8:{name}::/48" for name in EXITS}
WORLDS = {                                 # how one asks, and with which `ip` the homes work
    "over IPv6":               ("2001:db8::{}/128", "2001:db8::/64", "iproute2"),
    "over IPv4, with BusyBox": ("192.0.2.{}/32",    "192.0.2.0/24",  "busybox"),
}
RENEW_S, PREFERRED_S = 3, 6                # a death is noticed 3 to 6 s later; dnsmasq tells it one second after that

EXIT = f"""
[ddpd]
[pool {{name}}]
prefix    = {{pool}}
give      = /56
lifetime  = 40s
preferred = {PREFERRED_S}s
renew     = {RENEW_S}s
[grantee home]
key   = @home
pools = {{name}}
[grantee away]
key   = @away
pools = {{name}}
"""
HOME = """
[grantor {name}]
key     = @{name}
address = {address}
ask     = ::/56 on br-lan
"""


# ==== the world =======================================================================


@dataclass(frozen=True)
class Mesh:
    lab: Lab
    asks: Recorder                         # what passes between home and the mesh
    family: int
    exits: dict[str, Daemon]
    homes: dict[str, Daemon]


@pytest.fixture(scope="module", params=WORLDS)
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    node, nodes, tool = WORLDS[request.param]
    address = {name: node.format(n) for n, name in enumerate((*EXITS, *HOMES), 1)}
    with Lab("internet*", *(f"{name}*" for name in MESH), "host") as lab:
        lab["internet"].address("lo", f"{FAR}/128")
        for one, other in CABLES:
            lab.cable(one, other)
        for name in EXITS:
            lab.cable(f"internet:{name}", f"{name}:up")
            lab["internet"].address(name, f"2001:db8:ffff:{name}::1/64")
            lab["internet"].ip(f"route add {POOL[name]} via 2001:db8:ffff:{name}::2")
            dial(lab[name])
        lab.cable("home:lan", "host:eth0")
        lab["home"].bridge("br-lan", "lan")
        lab["away"].bridge("br-lan")
        for name, own in address.items():
            lab[name].address("lo", own)
        for name, devs in MESH.items():
            lab[name].babeld(*devs, say=says(name, nodes))
        announces(lab["home"])
        asks = lab["r3"].record("home")
        path = busybox_path(lab.folder) if tool == "busybox" else ""
        exits = {name: lab[name].ddpd(EXIT.format(name=name, pool=POOL[name])).start() for name in EXITS}
        where = "".join(HOME.format(name=name, address=address[name].split("/")[0]) for name in EXITS)
        homes = {name: lab[name].ddpd(where, path=path).start() for name in HOMES}
        yield Mesh(lab, asks, 6 if ":" in nodes else 4, exits, homes)


def dial(exit_: Host) -> None:
    """What an exit does when its line comes up; all of it is gone when the line goes down."""
    exit_.address("up", f"2001:db8:ffff:{exit_.name}::2/64")
    exit_.ip(f"route add default via 2001:db8:ffff:{exit_.name}::1 proto static")


def says(name: str, nodes: str) -> str:
    """What babeld announces here besides what ddpd made: the own address; on an exit, the way out, by source."""
    own = "" if name in ROUTERS else f"redistribute local ip {nodes} allow\n"
    return own + (f"redistribute ip ::/0 eq 0 src-prefix {POOL[name]}\n" if name in EXITS else "")


def announces(home: Host) -> Program:
    """dnsmasq, as in docs/home-router.md: unlike radvd up to 2.19 it tells what is left of the kernel's lifetimes."""
    return home.start("dnsmasq --no-daemon --user=root --conf-file=/dev/null --port=0 --interface=br-lan --enable-ra "
                      "--ra-param=br-lan,4,60 --dhcp-leasefile=home.dnsmasq "
                      "--dhcp-range=::,constructor:br-lan,ra-only")


def lan(host: Host, dev: str) -> dict[str, str]:
    """Of each exit, "preferred" or "deprecated": the state of the address of its pool on this interface."""
    shown = [line.split() for line in host.look(f"-6 -o addr show dev {dev} scope global").splitlines()]
    states = {ip_interface(words[3]): "deprecated" if "deprecated" in words else "preferred" for words in shown}
    return {name: state for name in EXITS for own, state in states.items() if own in ip_network(POOL[name])}


def address_of(host: Host, dev: str, name: str) -> str:
    """The one address of that exit's pool."""
    (found,) = [own for own in (address.split("/")[0] for address in host.addresses(dev))
                if ip_address(own) in ip_network(POOL[name])]
    return found


BOTH = {"a": "preferred", "b": "preferred"}
WITHOUT_A = {"a": "deprecated", "b": "preferred"}


def solicits(host: Host) -> None:
    """Ask for an advertisement, as a host does whose link has just come up.

    In the first minute of a prefix dnsmasq advertises every 5 to 20 s, if nothing changes, whatever it is told.
    Lifetimes of this laboratory are shorter, and so run out on the host meanwhile; those of the world do not.
    """
    with host.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.sendto(struct.pack("!BxHxxxx", 133, 0), ("ff02::2", 0, 0, socket_index(host, "eth0")))


def socket_index(host: Host, dev: str) -> int:
    with host.entered():
        return socket.if_nametoindex(dev)


def everybody_has_both(mesh: Mesh) -> None:
    """Wait until the homes and the host have an address of each exit, and new connections may use either."""
    eventually(lambda: all(lan(mesh.lab[name], "br-lan") == BOTH for name in HOMES), 20, "the homes have both")
    solicits(mesh.lab["host"])
    eventually(lambda: lan(mesh.lab["host"], "eth0") == BOTH, 5, "the host has both")


# ==== packets =========================================================================


def hello(lab: Lab, name: str = "host", source: str = "") -> str:
    """Send a datagram to the far end, which sends it back; its source, which the kernel chooses if it is not said."""
    with lab["internet"].socket(socket.AF_INET6) as far, lab[name].socket(socket.AF_INET6) as near:
        far.bind((FAR, PORT))
        far.settimeout(1)
        near.settimeout(1)
        near.bind((source or "::", 0))
        near.connect((FAR, PORT))
        chosen: str = near.getsockname()[0]
        try:
            near.send(b"hello")
            words, asker = far.recvfrom(100)
            far.sendto(words, asker)
            assert near.recv(100) == b"hello"
        except TimeoutError:
            return f"nothing came back to {chosen}"
        return chosen


def comes_back(lab: Lab, name: str, source: str) -> bool:
    return hello(lab, name, source) == source


def call(lab: Lab) -> str:
    """A TCP connection from the host to the far end: its source there."""
    with (lab["internet"].socket(socket.AF_INET6, socket.SOCK_STREAM) as far,
          lab["host"].socket(socket.AF_INET6, socket.SOCK_STREAM) as near):
        far.bind((FAR, 0))
        far.listen()
        near.settimeout(2)
        near.connect(far.getsockname())
        sock, peer = far.accept()
        sock.close()
        return str(peer[0])


def both_ways(source: str) -> list[tuple[str, str]]:
    return [(source, FAR), (FAR, source)]


def seen(wire: Recorder) -> list[tuple[str, str]]:
    return [(d.source, d.target) for d in wire.datagrams(PORT)]


# ==== both exits live =================================================================


def test_what_has_its_source_in_a_pool_leaves_and_returns_by_its_exit(mesh: Mesh) -> None:
    """From the host, and from the home beside exit b: what is of a's pool passes b by."""
    lab = mesh.lab
    everybody_has_both(mesh)
    for name, dev in ("host", "eth0"), ("away", "br-lan"):
        for exit_, other in EXITS, EXITS[::-1]:
            source = address_of(lab[name], dev, exit_)
            eventually(partial(comes_back, lab, name, source), 5, f"{name} is reached at {source}")
            wires = {one: lab[one].record("up") for one in EXITS}
            assert hello(lab, name, source) == source
            assert (seen(wires[exit_]), seen(wires[other])) == (both_ways(source), [])
    for exit_, daemon in mesh.exits.items():
        rows = daemon.status()["granted"]
        assert sorted(row["grantee"] for row in rows) == sorted(HOMES)
        assert {row["prefix"] for row in rows} == {
            row["prefix"] for home in mesh.homes.values() for row in home.status()["held"] if row["grantor"] == exit_}


def test_routers_between_run_babeld_and_know_no_prefix_of_their_own(mesh: Mesh) -> None:
    """No ddpd, no address but link-local ones; and it is by the family of this world that one asks."""
    lab = mesh.lab
    for name in ROUTERS:
        assert programs(lab[name]) == ["babeld"]
        assert lab[name].routes() == []
        assert lab[name].look("-o addr show scope global") == ""
    assert "ddpd.py" in " ".join(programs(lab["home"]))     # the guard can bark
    eventually(mesh.asks.ddpd, 5, "home asks")
    assert {ip_address(d.source).version for d in mesh.asks.ddpd()} == {mesh.family}


def programs(host: Host) -> list[str]:
    """Of every process in this namespace, its name; of Python, the file that it runs."""
    pids = subprocess.run([IP, "netns", "pids", host.netns], text=True, capture_output=True, check=True).stdout
    words = [Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in pids.split()]
    return sorted(Path(argv["python" in argv[0]]).name for argv in words)


# ==== an exit dies ====================================================================


Change = Callable[[Mesh], object]


def line_down(mesh: Mesh) -> None:
    for dev in "up", "mesh":
        mesh.lab["a"].ip(f"link set dev {dev} down")


def line_up(mesh: Mesh) -> None:
    for dev in "up", "mesh":
        mesh.lab["a"].ip(f"link set dev {dev} up")
    dial(mesh.lab["a"])


DEATHS: dict[str, tuple[Change, Change, bool]] = {            # ... and does it pass packets on meanwhile?
    "its ddpd is killed":  (lambda mesh: mesh.exits["a"].kill(), lambda mesh: mesh.exits["a"].start(), True),
    "its links go down":   (line_down, line_up, False),
}


@pytest.mark.parametrize("death", DEATHS)
def test_new_connections_leave_a_dead_exit_and_return_to_it(mesh: Mesh, death: str) -> None:
    """Nobody tells the homes: what is not renewed is no longer preferred, and so is no source of what is new."""
    lab, (dies, lives, passes) = mesh.lab, DEATHS[death]
    everybody_has_both(mesh)
    had = {name: address_of(lab["host"], "eth0", name) for name in EXITS}
    after(mesh, dies, WITHOUT_A, 3 * RENEW_S)
    assert hello(lab) == call(lab) == had["b"]
    assert address_of(lab["host"], "eth0", "a") == had["a"]                # deprecated, not gone
    assert comes_back(lab, "host", had["a"]) == passes                     # what runs, runs on if it can
    after(mesh, lives, BOTH, 20)
    assert {name: address_of(lab["host"], "eth0", name) for name in EXITS} == had
    eventually(partial(comes_back, lab, "host", had["a"]), 5, "the host is reached by a")


def after(mesh: Mesh, happens: Change, wanted: dict[str, str], within_s: float) -> dict[str, float]:
    """When, after something happened, the LANs of the homes and the host had these addresses in these states."""
    places = {"home": "br-lan", "away": "br-lan", "host": "eth0"}
    happens(mesh)
    began, moments = time.monotonic(), dict[str, float]()
    while places.keys() - moments.keys():
        now_s = time.monotonic() - began
        states = {name: lan(mesh.lab[name], dev) for name, dev in places.items() if name not in moments}
        moments |= {name: now_s for name, state in states.items() if state == wanted}
        if now_s > within_s:
            raise LabError(f"not within {within_s} s: {wanted}; but {states}, and {moments}")
        time.sleep(0.05)
    print("".join(f"  {at:7.3f} s  {name}: {wanted}\n" for name, at in moments.items()))
    return moments
