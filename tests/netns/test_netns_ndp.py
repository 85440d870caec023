"""Neighbour discovery proxy, on real interfaces.

    asker:eth0 ---- eth0:proxy:eth1 ---- eth0:inside
    02:..:0a:01     02:..:0b:02
    2001:db8:77::9  2001:db8:77::2
                    2001:db8:77:1::99  2001:db8:88::1    2001:db8:88::2

2001:db8:77:1::/64 is inside.  Everything is asked by frames, and what is said is compared byte for byte.
"""

import json
import os
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ddpd
from daemon import Daemon
from frames import (
    ASKER,
    DESTINATION,
    FRAGMENTED,
    HOP_BY_HOP,
    OVERRIDE,
    PROXY,
    ROUTER,
    SOLICITED,
    Frame,
    advertisement,
    duplicate_probe,
    packed,
    read,
    solicitation,
)
from lab import ETH_P_ALL, Host, Lab, LabError, busybox_path, can, eventually, needs

pytestmark = needs("ip link add dev eth0 type veth")

NET = "2001:db8:77:1:"
FENCE = f"{NET}f:f:f:f"                  # always answered: then what came before has been decided
HERE, OWN, GROUP = "2001:db8:77::9", f"{NET}:99", "ff02::1:ff00:1"
STATIC = f"static {NET}:/64"


def spelt(mac: bytes) -> str:
    return mac.hex(":")


def hosts() -> Lab:
    return Lab("asker", "proxy*", "inside")


def outside(lab: Lab) -> None:
    """The cable on which is asked; asker and proxy are known by their MACs."""
    lab.cable(f"asker:eth0 {HERE}/64", "proxy:eth0 2001:db8:77::2/64")
    for name, mac in ("asker", ASKER), ("proxy", PROXY):
        lab[name].ip(f"link set dev eth0 address {spelt(mac)}")
    eventually(lambda: link_local(lab["proxy"]) and link_local(lab["asker"]))


def link_local(host: Host, dev: str = "eth0") -> str:
    found = re.findall(r"inet6 (fe80:\S+)/64", host.look(f"-6 -o addr show dev {dev} scope link"))
    return str(found[0]) if found else ""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with hosts() as lab:
        outside(lab)
        lab.cable("proxy:eth1 2001:db8:88::1/64", "inside:eth0 2001:db8:88::2/64")
        yield lab


class Asker:
    """Sends frames on an interface, and hears the advertisements of others there."""

    def __init__(self, lab: Lab, dev: str = "eth0") -> None:
        host = lab["asker"]
        self.sock = host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.sock.bind((dev, 0))
        self.wire = host.record(dev)

    def send(self, frame: Frame | bytes) -> None:
        try:
            self.sock.send(bytes(frame))
        except OSError:                  # the cable is out, or gone
            pass

    def heard(self, target: str) -> list[bytes]:
        """Advertisements, whatever else is wrong with them."""
        return [frame for frame in self.wire.frames() if frame[12:14] == b"\x86\xdd" and frame[20] == 58
                and frame[6:12] != ASKER and frame[54:55] == b"\x88" and frame[62:78] == packed(target)]

    def says(self, frame: Frame, target: str = "", within_s: float = 0.4) -> list[bytes]:
        """The advertisement that comes soon."""
        self.wire.forget()
        self.send(frame)
        try:
            eventually(lambda: self.heard(target or frame.target), within_s, every_s=0.002)
        except LabError:
            pass
        return self.heard(target or frame.target)

    def asks(self, target: str, within_s: float = 0.4) -> list[bytes]:
        return self.says(solicitation(target, HERE), within_s=within_s)

    def reaction(self, frame: Frame) -> list[bytes] | None:
        """All that is said of its target until the fence is answered; None if it is not."""
        self.wire.forget()
        self.send(frame)
        self.send(solicitation(FENCE, HERE))
        try:
            eventually(lambda: self.heard(FENCE), 2, every_s=0.002)
        except LabError:
            return None
        return self.heard(frame.target)

    def silent(self, target: str) -> bool:
        return self.reaction(solicitation(target, HERE)) == []


def right(lab: Lab, target: str, to: str = HERE, flags: int = ROUTER | SOLICITED, mac: bytes = PROXY) -> bytes:
    """The answer of a proxy, byte for byte."""
    return bytes(advertisement(target, link_local(lab["proxy"]), to, flags, mac)._replace(mac=mac))


def proxying(lab: Lab, rules: str, more: str = "", **how: Any) -> Daemon:
    rules = "\n        ".join([f"static {FENCE}/128", *rules.split(", ")] if FENCE not in rules else rules.split(", "))
    return lab["proxy"].ddpd(f"[ddpd]\n[ndp eth0]\nproxy = {rules}\n{more}", **how).start()


# ==== the table =======================================================================

Build = Callable[[str], Frame]
GLOBAL = partial(solicitation, source=HERE)
CASES: dict[str, tuple[Build, str]] = {  # what is sent, and the fate: answered to whom, by whom
    "to the group":            (GLOBAL, "asker"),
    "to the group, no option": (partial(GLOBAL, link=None), "asker"),
    "to the target":           (lambda t: GLOBAL(t, destination=t), "asker"),
    "to the target, no option": (lambda t: GLOBAL(t, destination=t, link=None), "asker"),
    "duplicate-address probe": (duplicate_probe, "all"),
    "priority tag (VLAN 0)":   (lambda t: GLOBAL(t)._replace(vlan=0), "asker"),
    "hop-by-hop header":       (lambda t: GLOBAL(t)._replace(headers=((HOP_BY_HOP, b"\1\4"),)), "asker"),
    "destination header":      (lambda t: GLOBAL(t)._replace(headers=((DESTINATION, b"\1\4"),)), "asker"),
    "own address":             (lambda _: GLOBAL(OWN), "kernel"),
    "fragment (RFC 6980)":     (lambda t: GLOBAL(t)._replace(headers=(FRAGMENTED,)), ""),
    "hop limit 64":            (lambda t: GLOBAL(t)._replace(hops=64), ""),
    "bad checksum":            (lambda t: GLOBAL(t)._replace(off=1), ""),
    "code 1":                  (lambda t: GLOBAL(t)._replace(code=1), ""),
    "short":                   (lambda t: GLOBAL(t, link=None)._replace(cut=70, longer=-8), ""),
    "multicast target":        (lambda _: GLOBAL(GROUP), ""),
    "unleased target":         (lambda _: GLOBAL("2001:db8:77:2::1"), ""),
    "VLAN 5":                  (lambda t: GLOBAL(t)._replace(vlan=5), ""),
    "option of length 0":      (lambda t: GLOBAL(t)._replace(options=b"\1\0" + ASKER), ""),
    "probe with an option":    (lambda t: duplicate_probe(t)._replace(options=GLOBAL(t).options), ""),
    "probe to the target":     (lambda t: duplicate_probe(t)._replace(destination=t), ""),
}
TARGETS = {name: build(f"{NET}:{n:x}").target for n, (name, (build, _)) in enumerate(CASES.items(), 1)}
INSIDE = """
[grantor proxy]
key     = @proxy
address = 2001:db8:88::1
ask     = ::/64
"""
LEASED = f"""
[pool six]
prefix = 2001:db8:77::/48
give   = /64
[grantee inside]
key   = @inside
pools = six
pin   = {NET}:/64
[ndp eth0]
proxy = leased
"""


def start_ddpd(lab: Lab) -> None:
    daemon = lab["proxy"].ddpd(LEASED).start()
    inside = lab["inside"].ddpd(INSIDE).start()
    daemon.eventually(lambda: [row["prefix"] for row in inside.status()["held"]] == [f"{NET}:/64"])


def expected(lab: Lab, case: str) -> list[bytes]:
    target, fate = TARGETS[case], CASES[case][1]
    if fate == "all":
        return [right(lab, target, "ff02::1", ROUTER)]
    if fate == "kernel":
        return [bytes(advertisement(OWN, OWN, HERE, ROUTER | SOLICITED | OVERRIDE))]
    return [right(lab, target)] if fate else []


@pytest.fixture(scope="module")
def reactions() -> Iterator[dict[str, tuple[list[bytes] | None, list[bytes]]]]:
    """To all cases: what was said, and what is right."""
    with hosts() as lab:
        outside(lab)
        lab["proxy"].address("eth0", f"{OWN}/128")
        lab.cable("proxy:eth1 2001:db8:88::1/64", "inside:eth0 2001:db8:88::2/64")
        asker = Asker(lab)
        start_ddpd(lab)
        eventually(lambda: asker.asks(FENCE), 10)
        yield {case: (asker.reaction(build(TARGETS[case])), expected(lab, case)) for case, (build, _) in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_reaction_is_right(reactions: dict[str, tuple[list[bytes] | None, list[bytes]]], case: str) -> None:
    """Byte for byte; to what is malformed, or somebody else's: none."""
    said, meant = reactions[case]
    assert said == meant


# ==== where it is easy to go wrong ====================================================


# With this before its command, a ddpd doubts no route by itself: only news of it make it look again.
NEVER_IN_DOUBT = (sys.executable, "-c", """
import sys
from importlib.util import module_from_spec, spec_from_file_location
at = next(n for n, word in enumerate(sys.argv) if word.endswith((".py", ".pyc")))
spec = spec_from_file_location("ddpd", sys.argv[at])
ddpd = sys.modules["ddpd"] = module_from_spec(spec)
spec.loader.exec_module(ddpd)
ddpd.WAY_S = 1000.0
sys.exit(ddpd.main(sys.argv[at + 1:]))
""")


def test_auto_follows_the_routing_table_at_once(lab: Lab) -> None:
    """Route added, a longer one that leads back, a rule for what comes in there, a tunnel; each taken away again."""
    host, asker = lab["proxy"], Asker(lab)
    proxying(lab, "auto 2001:db8:77::/48", wrap=NEVER_IN_DOUBT)
    host.ip("tuntap add dev tun0 mode tun")
    host.ip("link set dev tun0 up")
    near, far = f"{NET}:5", f"{NET}a::5"
    assert asker.silent(near) and asker.silent(far)
    for change, answers, not_ in [
            (f"-6 route add {NET}:/64 dev eth1", (near, far), ()),
            (f"-6 route add {NET}a::/80 via {HERE} dev eth0", (near,), (far,)),
            (f"-6 route replace {NET}a::/80 dev tun0", (near, far), ()),
            (f"-6 rule add iif eth0 to {NET}a::/80 blackhole pref 100", (near,), (far,)),
            ("-6 rule del pref 100", (near, far), ()),
            (f"-6 route add unreachable {near}/128", (far,), (near,)),
            (f"-6 route del {NET}:/64", (far,), (near,)),
            ("link set dev tun0 down", (), (near, far))]:
        host.ip(change)
        for target in answers:
            eventually(lambda: asker.asks(target) == [right(lab, target)], 5)          # noqa: B023
        for target in not_:
            eventually(lambda: asker.silent(target), 5)                                # noqa: B023


def test_a_route_that_runs_out_is_not_believed_for_long(lab: Lab) -> None:
    """The kernel tells of it half a minute later; of a next hop that is replaced, not at all."""
    host, asker, target = lab["proxy"], Asker(lab), f"{NET}:5"
    proxying(lab, f"auto {NET}:/64")
    host.ip(f"-6 route add {NET}:/64 dev eth1 expires 2")
    eventually(lambda: asker.asks(target) == [right(lab, target)])
    assert lasts(asker, target, 8.0) < 6.0


def test_many_rules_fit_an_old_kernels_memory_for_options(lab: Lab) -> None:
    """... in which the filter before and the one after have to fit, as leases and rules come and go."""
    lab["proxy"].sysctl({"net/core/optmem_max": 20480})
    daemon, asker = proxying(lab, f"iface {NET}:/64 eth1"), Asker(lab)
    for many in 1, 40, 200, 500, 3:
        rules = "".join(f"  static {NET}:{n:x}/128\n  iface 2001:db8:78::{n:x}/128 eth1\n" for n in range(1, many + 1))
        daemon.write(f"[ddpd]\n[ndp eth0]\nproxy =\n{rules}")
        assert daemon.command("reload").returncode == 0
        daemon.eventually(lambda: asker.asks(f"{NET}:{many:x}"))                       # noqa: B023
        [row] = daemon.status()["ndp"]
        assert row["state"] == "listens" and row["deaf_inside"] == {}


@pytest.mark.parametrize("most", [ddpd.MAX_CELLS, 100])
def test_what_no_route_tells_apart_goes_one_way(lab: Lab, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 nested routes of all kinds, and rules: as the kernel says for each target alone; also with too many."""
    monkeypatch.setattr(ddpd, "MAX_CELLS", most)
    rand, host, kinds = random.Random(6724), lab["proxy"], ["", "unreachable", "blackhole", "", ""]
    ends, lines = set[ddpd.Prefix](), ["rule add iif eth0 to 2001:db8:77:4200::/56 lookup 7 pref 90"]
    for n in range(120):
        length = rand.choice([48, 49, 56, 63, 64, 65, 80, 96, 127, 128])
        prefix = ddpd.Prefix(6, ddpd.parse_prefix("2001:db8:77::").first | rand.getrandbits(80), 128).network(length)
        kind, dev = rand.choice(kinds), rand.choice(["eth0", "eth1", "lo"])
        table = "table 7" * (n % 7 == 0)
        lines.append(f"route replace {kind} {prefix} {'' if kind else 'dev ' + dev} metric {n + 1} {table}")
        ends |= {ddpd.Prefix(6, prefix.first + at, 128) for at in (-1, 0, prefix.size - 1, prefix.size)}
    for line in lines:
        host.ip(f"-6 {line}")
    index = json.loads(host.ip("-j link show dev eth0"))[0]["ifindex"]
    with host.entered():
        ways, packed = ddpd.Ways(), sorted(end.packed for end in ends)
        found = [ways.of(end, index) for end in packed]
        assert found == [ways.look_up(end, index) for end in packed] and len(set(found)) == 4
        assert (0 < len(ways.found) < len(packed)) == (most > 120)         # fewer were asked than there are
        ways.forget()


def lasts(asker: Asker, target: str, at_most_s: float) -> float:
    """For how long it is answered."""
    start = heard = time.monotonic()
    while time.monotonic() < start + at_most_s:
        heard = time.monotonic() if asker.asks(target, 0.2) else heard
        time.sleep(0.05)
    return heard - start


def test_who_died_inside_is_soon_not_answered_for(lab: Lab) -> None:
    asker, inner = Asker(lab), f"{NET}:5"
    lab["inside"].address("eth0", f"{inner}/64")
    proxying(lab, f"iface {NET}:/64 eth1")
    eventually(lambda: asker.asks(inner), 10)
    lab["inside"].ip("link set dev eth0 down")
    assert lasts(asker, inner, 6) <= 4.2


def jiffies(daemon: Daemon) -> int:
    assert daemon.process
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def rests(daemon: Daemon) -> bool:
    """Of 200 hundredths of a second, at most five."""
    time.sleep(0.5)                                       # for what has happened just now
    before = jiffies(daemon)
    time.sleep(2)
    return jiffies(daemon) - before <= 5


def again(lab: Lab) -> None:
    lab["proxy"].ip("link del dev eth0")
    outside(lab)


EVENTS: dict[str, Callable[[Lab], object]] = {
    "down and up": lambda lab: [lab["proxy"].ip(f"link set dev eth0 {to}") for to in ("down", "up")],
    "down and up in a moment": lambda lab: lab["proxy"].sh("sh -c 'ip link set eth0 down; ip link set eth0 up'"),
    "recreated": again,
    "renamed away and back": lambda lab: [lab["proxy"].ip(f"link set dev {one} name {two}") for one, two in
                                          (("eth0", "x"), ("x", "eth0"))],
    "not heard by all any more": lambda lab: lab["proxy"].ip("link set dev eth0 allmulticast off"),
}


@pytest.mark.parametrize("event", EVENTS)
def test_it_answers_again_after(lab: Lab, event: str) -> None:
    """And is at rest then."""
    daemon = proxying(lab, STATIC)
    target = f"{NET}:7"
    assert Asker(lab).asks(target) == [right(lab, target)]
    EVENTS[event](lab)
    asker = Asker(lab)
    daemon.eventually(lambda: asker.asks(target) == [right(lab, target)])
    assert rests(daemon) and "Traceback" not in daemon.log()


def test_it_rests_while_the_interface_is_down_away_or_not_there_yet(lab: Lab) -> None:
    """And the inner one, which nobody but we may use."""
    host = lab["proxy"]
    daemon = proxying(lab, f"{STATIC}, iface 2001:db8:77:2::/64 eth1, iface 2001:db8:77:3::/64 eth9")
    host.ip("link set dev eth1 down")
    host.ip("link set dev eth0 down")
    assert rests(daemon)
    host.ip("link set dev eth0 name away")
    assert rests(daemon)
    host.ip("link set dev away up")
    host.ip("link del dev eth1")
    assert not Asker(lab).asks(f"{NET}:7")
    host.ip("link set dev away name eth0")
    asker = Asker(lab)
    daemon.eventually(lambda: asker.asks(f"{NET}:7"))
    assert not asker.asks("2001:db8:77:2::7") and not asker.asks("2001:db8:77:3::7")
    daemon.eventually(lambda: asker.asks(f"{NET}:7"))


def test_a_new_mac_is_what_is_said(lab: Lab) -> None:
    daemon, asker, target = proxying(lab, STATIC), Asker(lab), f"{NET}:7"
    assert asker.asks(target)
    for last in 1, 2, 3:
        mac = PROXY[:5] + bytes([last])
        lab["proxy"].ip(f"link set dev eth0 address {spelt(mac)}")
        daemon.eventually(partial(lambda mac: asker.asks(target) == [right(lab, target, mac=mac)], mac), 5)


def test_an_interface_that_comes_later_is_waited_for() -> None:
    with hosts() as lab:
        daemon = proxying(lab, STATIC)
        assert [row["state"] for row in daemon.status()["ndp"]] == ["cannot listen: there is none"]
        assert "interface=eth0" in daemon.log()
        outside(lab)
        asker = Asker(lab)
        daemon.eventually(lambda: asker.asks(f"{NET}:7") == [right(lab, f"{NET}:7")])
        assert [row["state"] for row in daemon.status()["ndp"]] == ["listens"]


def test_a_crash_leaves_the_interface_as_it_was(lab: Lab) -> None:
    """Kernel, and what the interface hears."""
    host, before = lab["proxy"], lab["proxy"].look("-d link show dev eth0")
    assert "promiscuity 0" in before and "allmulti 0" in before
    all_before = host.kernel()
    daemon = proxying(lab, STATIC)
    assert "promiscuity 0" in (now := host.look("-d link show dev eth0")) and "allmulti 1" in now
    daemon.kill()
    assert host.look("-d link show dev eth0") == before and host.kernel() == all_before


def test_many_interfaces_at_once() -> None:
    """Each its own prefix and its own MAC; nothing is said where it does not belong."""
    with Lab("asker", "proxy*") as lab:
        config = "[ddpd]\n"
        for n in range(20):
            lab.cable(f"asker:a{n}", f"proxy:p{n}")
            lab["proxy"].ip(f"link set dev p{n} address 02:00:00:00:00:{n:02x}")
            lab["asker"].ip(f"link set dev a{n} address {spelt(ASKER)}")
            config += f"[ndp p{n}]\nproxy = static 2001:db8:77:{n}::/64\n"
        daemon = lab["proxy"].ddpd(config).start()
        askers = [Asker(lab, f"a{n}") for n in range(20)]
        for n, asker in enumerate(askers):
            [said] = asker.asks(f"2001:db8:77:{n}::7", 2)
            assert read(said).options == ((2, bytes((2, 0, 0, 0, 0, n))),)
            assert read(said).source == link_local(lab["proxy"], f"p{n}")
        askers[3].send(solicitation("2001:db8:77:4::7", HERE))
        assert askers[3].asks("2001:db8:77:3::8", 2) and not askers[3].heard("2001:db8:77:4::7")
        assert [row["answered"] for row in daemon.status()["ndp"]] == [1 + (n == 3) for n in range(20)]


VLANS = "ip link add dev e type veth && ip link add link e name v type vlan id 5"


@pytest.mark.parametrize("kind", ["bridge", *["vlan"] * can(VLANS)])
def test_on_what_lies_above_an_interface(lab: Lab, kind: str) -> None:
    """A bridge whose port hears it; a VLAN, and then not what is untagged."""
    host, target, over = lab["proxy"], f"{NET}:7", {"bridge": "br0", "vlan": "eth0.5"}[kind]
    if kind == "bridge":
        host.ip("link add dev br0 type bridge forward_delay 0 mcast_snooping 1")
        host.ip(f"link set dev br0 address {spelt(PROXY)}")
        host.ip("link set dev eth0 master br0")
    else:
        host.ip("link add link eth0 name eth0.5 type vlan id 5")
    host.ip(f"link set dev {over} up")
    eventually(lambda: link_local(host, over))
    daemon = host.ddpd(f"[ddpd]\n[ndp {over}]\nproxy = {STATIC}\n").start()
    asker = Asker(lab)
    frame = solicitation(target, HERE)._replace(vlan=None if kind == "bridge" else 5)
    daemon.eventually(lambda: asker.says(frame))
    asker.says(frame)
    found = [row["answered"] for row in daemon.status()["ndp"]]
    answer = bytes(advertisement(target, link_local(host, over), HERE, ROUTER | SOLICITED, PROXY))
    assert [said[:12] + said[-74:] for said in asker.heard(target)][:1] == [answer[:12] + answer[-74:]]
    assert not asker.asks(target) if kind == "vlan" else found[0] >= 2


@needs("ip link add dev e type veth && ip link add link e name m type macvlan")
def test_what_is_for_an_interface_above_is_left_to_it(lab: Lab) -> None:
    """A packet socket hears that, too: what a VLAN or, as here, a macvlan on top gets was not asked on eth0."""
    host, target, above = lab["proxy"], f"{NET}:7", bytes.fromhex("0200000000cc")
    host.ip(f"link add link eth0 name m0 address {spelt(above)} type macvlan")
    host.ip("link set dev m0 up")
    daemon, asker = proxying(lab, STATIC), Asker(lab)
    before = daemon.status()["ndp"][0]["heard"]
    for to, answers in (PROXY, 1), (above, 0):
        frame = solicitation(target, HERE, target)._replace(to=to)
        assert len(asker.reaction(frame) or ()) == answers
    assert daemon.status()["ndp"][0]["heard"] == before + 3              # one, and both fences


# ==== inside ==========================================================================


def wires(lab: Lab) -> list[str]:
    return [line.split()[0] for line in lab["proxy"].routes() if "dev eth1" in line]


def test_who_is_inside_is_found(lab: Lab) -> None:
    """A real neighbour: its address, and a probe for it, are answered for; another address is not."""
    asker, inner = Asker(lab), f"{NET}:5"
    lab["inside"].address("eth0", f"{inner}/64")
    daemon = proxying(lab, f"iface {NET}:/64 eth1")
    assert asker.says(duplicate_probe(inner), within_s=1.5) == [right(lab, inner, "ff02::1", ROUTER)]
    assert asker.asks(inner, 1.5) == [right(lab, inner)]
    assert not asker.asks(f"{NET}:6", 1.5)
    assert wires(lab) == []
    [row] = daemon.status()["ndp"]
    assert row["asked_inside"] == 1 and row["known_inside"] == 1       # nobody answered for one of them


def test_autowire_makes_a_route_keeps_it_over_a_restart_and_removes_it(lab: Lab) -> None:
    asker, inner, host = Asker(lab), f"{NET}:5", lab["proxy"]
    lab["inside"].address("eth0", f"{inner}/64")
    before = host.kernel()
    daemon = proxying(lab, f"iface {NET}:/64 eth1", "autowire = yes\nttl = 1s\n")
    assert asker.asks(inner, 1.5)
    daemon.eventually(lambda: wires(lab) == [inner], 5)
    seen = host.start("ip -6 monitor route")
    assert daemon.stop() == 0 and wires(lab) == [inner]
    daemon.start()
    assert asker.asks(inner, 1.5)
    time.sleep(2)                                            # longer than it waits for who is asked
    assert wires(lab) == [inner] and f"Deleted {inner}" not in seen.log()
    lab["inside"].ip("addr flush dev eth0 scope global")
    time.sleep(1)
    assert not asker.asks(inner, 1)
    daemon.eventually(lambda: wires(lab) == [], 6)
    lab["inside"].address("eth0", f"{inner}/64")
    assert asker.asks(inner, 1.5)
    daemon.eventually(lambda: wires(lab) == [inner], 5)
    daemon.kill()
    assert daemon.command("clean").returncode == 0
    seen.end()
    assert host.kernel() == before


# ==== by the kernel ===================================================================

ADDRESSES = f"""
[pool six]
prefix = {NET}:/64
give   = /128
[grantee inside]
key   = @inside
pools = six
limit = 3
[ndp eth0]
proxy  = leased
         static {FENCE}/128
method = kernel
"""
FOREIGN = f"{NET}:dead dev eth0 proxy"


def proxied(host: Host) -> list[str]:
    return sorted(" ".join(line.split()[:4]) for line in host.look("-6 neigh show proxy").splitlines())


class Leased(NamedTuple):
    """A proxy that lets the kernel answer, and who has two addresses of it."""

    proxy: Host
    daemon: Daemon
    inside: Daemon

    def prepare(self) -> None:
        """As the operator has it."""
        self.proxy.sysctl({"net/ipv6/conf/eth0/proxy_ndp": 1, "net/ipv6/neigh/eth0/proxy_delay": 0})
        self.proxy.ip("-6 neigh add proxy " + FOREIGN.removesuffix(" proxy"))

    def leased(self) -> list[str]:
        return [row["prefix"].removesuffix("/128") for row in self.daemon.status()["granted"]]

    def has(self, count: int = 2) -> bool:
        """So many are leased, and these the kernel has, the one that is always proxied, and the operator's."""
        leased = self.leased()
        return len(leased) == count and proxied(self.proxy) == sorted(
            [*(f"{address} dev eth0 proxy" for address in (*leased, FENCE)), FOREIGN])


@pytest.fixture(params=["iproute2", "busybox"])
def leased(request: pytest.FixtureRequest, lab: Lab) -> Leased:
    path = busybox_path(lab.folder) if request.param == "busybox" else ""
    found = Leased(lab["proxy"], lab["proxy"].ddpd(ADDRESSES, path=path),
                   lab["inside"].ddpd(INSIDE.replace("::/64", "::/128\n   ::/128")))
    found.prepare()
    found.daemon.start()
    found.inside.start()
    found.daemon.eventually(found.has)
    return found


def test_the_kernel_has_what_is_leased_and_no_more(leased: Leased, lab: Lab) -> None:
    """Over a restart, the end of leases, a crash; `clean` takes away only what is ours."""
    asker = Asker(lab)
    for target in (*leased.leased(), FENCE):
        assert len(asker.asks(target)) == 1                  # by the kernel; ddpd leaves it to it
    assert leased.daemon.stop() == 0
    leased.daemon.start()
    leased.daemon.eventually(leased.has)
    leased.daemon.kill()
    assert leased.daemon.command("clean").returncode == 0
    assert proxied(leased.proxy) == [FOREIGN]
    leased.daemon.start()
    leased.daemon.eventually(leased.has)
    assert leased.daemon.command("revoke", "inside").returncode == 0
    leased.daemon.eventually(partial(leased.has, 0))


def recreate(leased: Leased, lab: Lab) -> None:
    again(lab)
    leased.prepare()


def lose(leased: Leased, count: int) -> None:
    """Somebody deletes so many; the kernel tells nobody."""
    for address in [*leased.leased(), FENCE][:count]:
        leased.proxy.ip(f"-6 neigh del proxy {address} dev eth0")


def lose_and_look(leased: Leased, lab: Lab) -> None:
    lose(leased, 1)
    lab["proxy"].address("lo", "2001:db8::5/128")


def lose_and_reload(leased: Leased, _: Lab) -> None:
    lose(leased, 1)
    assert leased.daemon.command("reload").returncode == 0


LOSSES: dict[str, Callable[[Leased, Lab], object]] = {
    "the interface was recreated": recreate,
    "one was deleted, an address came": lose_and_look,
    "one was deleted, a reload": lose_and_reload,
    "all were deleted": lambda leased, _: lose(leased, 3),
}


@pytest.mark.parametrize("leased", ["iproute2"], indirect=True)
def test_what_the_kernel_lost_it_has_again(leased: Leased, lab: Lab) -> None:
    for loss, happens in LOSSES.items():
        print(f"[+] {loss}")
        happens(leased, lab)
        leased.daemon.eventually(leased.has, 2 * ddpd.NEIGHBOURS_S)    # of some the kernel tells nobody


# ==== privilege =======================================================================


def lowly(lab: Lab, config: str, *capabilities: str) -> Daemon:
    """A ddpd of nobody, with these capabilities."""
    caps = ",".join(f"+{name.lower().removeprefix('cap_')}" for name in capabilities) or "-all"
    bound = "-all," + caps if capabilities else "-all"
    wrap = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={bound}",
            f"--ambient-caps={caps}", f"--bounding-set={bound}")
    daemon = lab["proxy"].ddpd(config, wrap=wrap)
    lab.folder.chmod(0o755)
    for path in (daemon.dir, *daemon.dir.iterdir()):
        os.chown(path, 65534, 65534)
    return daemon


def needed(daemon: Daemon) -> list[str]:
    """The capabilities that `check` names."""
    return re.findall(r"CAP_\w+", daemon.command("check").stdout)


def test_nobody_with_the_capabilities_that_check_names_does_it_all(lab: Lab) -> None:
    """Grants, routes, answers, asks inside, makes routes; and again on an interface that was recreated, or down."""
    config = f"[ddpd]{LEASED}        iface 2001:db8:77:3::/64 eth1\nautowire = yes\n"
    capabilities = needed(lab["proxy"].ddpd(config, "trial"))
    assert capabilities == ["CAP_NET_ADMIN", "CAP_NET_RAW"]
    lab["inside"].address("eth0", "2001:db8:77:3::5/64")
    daemon, inside = lowly(lab, config, *capabilities).start(), lab["inside"].ddpd(INSIDE).start()
    daemon.eventually(lambda: [row["prefix"] for row in inside.status()["held"]] == [f"{NET}:/64"])
    assert daemon.process and "Uid:\t65534\t65534" in Path(f"/proc/{daemon.process.pid}/status").read_text()
    for event in "", "recreated", "down and up":
        if event:
            EVENTS[event](lab)
        asker = Asker(lab)
        daemon.eventually(lambda: asker.asks(f"{NET}:7") == [right(lab, f"{NET}:7")])      # noqa: B023
        daemon.eventually(lambda: asker.asks("2001:db8:77:3::5", 1.2))                     # noqa: B023
    assert sorted(wires(lab)) == [f"{NET}:/64", "2001:db8:77:3::5"]
    assert "no CAP_" not in daemon.log() and "cannot install" not in daemon.log()


@pytest.mark.parametrize(("missing", "key"), [("CAP_NET_RAW", "proxy"), ("CAP_NET_ADMIN", "route")])
def test_without_one_it_says_what_needs_it_and_goes_on_with_the_rest(lab: Lab, missing: str, key: str) -> None:
    config = "[ddpd]" + LEASED.replace("[ndp", "route = auto\n[ndp")
    daemon = lowly(lab, config, *{"CAP_NET_RAW", "CAP_NET_ADMIN"} - {missing}).start()
    inside, asker = lab["inside"].ddpd(INSIDE).start(), Asker(lab)
    [[number, head, said]] = re.findall(rf"no {missing}, which \S+ line (\d+): \[(.*)\] (\w+) needs", daemon.log())
    lines = daemon.config.read_text().splitlines()
    assert said == key and lines[int(number) - 1].split()[0] == key and f"[{head}]" in lines
    daemon.eventually(lambda: [row["prefix"] for row in inside.status()["held"]] == [f"{NET}:/64"])
    if missing == "CAP_NET_RAW":
        daemon.eventually(lambda: wires(lab) == [f"{NET}:/64"])
        assert not asker.asks(f"{NET}:7")
        assert "cannot listen interface=eth0" in daemon.log()
        assert daemon.status()["ndp"][0]["state"] == "cannot listen: Operation not permitted"
    else:
        daemon.eventually(lambda: asker.asks(f"{NET}:7") == [right(lab, f"{NET}:7")])
        assert wires(lab) == []
    assert rests(daemon)


# ==== as much as there comes, and what is told ========================================


def mutated(random_: random.Random, frames: list[bytes]) -> bytes:
    """One of these, with a few bytes changed, cut, or with more behind."""
    frame = bytearray(random_.choice(frames))
    for _ in range(random_.choice((1, 1, 2, 8))):
        frame[random_.randrange(12, len(frame))] = random_.randrange(256)
    how = random_.random()
    return bytes(frame[:random_.randrange(15, len(frame))] if how < 0.1 else frame + frame[54:] if how < 0.2 else frame)


def test_mutated_frames_leave_it_answering(lab: Lab) -> None:
    daemon = proxying(lab, f"{STATIC}, auto 2001:db8:77:2::/64, iface 2001:db8:77:3::/64 eth1")
    assert daemon.process
    pid, asker, inner, random_ = daemon.process.pid, Asker(lab), Asker.__new__(Asker), random.Random(1)
    seeds = [bytes(build(f"2001:db8:77:{n}::7")) for build, _ in CASES.values() for n in (1, 2, 3)]
    inner.sock = lab["inside"].socket(socket.AF_PACKET, socket.SOCK_RAW)
    inner.sock.bind(("eth0", 0))
    replies = [bytes(advertisement(f"2001:db8:77:3::{n}", "fe80::1", "ff02::1", 0)) for n in (7, 8)]
    for n in range(3):
        for _ in range(20_000):
            asker.send(mutated(random_, seeds))
        for _ in range(100):
            inner.send(mutated(random_, replies))
        asker.wire.forget()
        daemon.eventually(lambda: asker.asks(f"{NET}:7", 2), 20)
        assert daemon.running() and daemon.process.pid == pid, n
    assert "Traceback" not in daemon.log()
    [row] = daemon.status()["ndp"]
    assert 3_000 < row["heard"] <= 60_000 + 1_000
    assert len(row["ignored"]) >= 6
    assert rests(daemon)


def test_status_and_show_say_what_became_of_each(lab: Lab) -> None:
    """Counts by reason, and of each fate the last frame, as it was."""
    daemon, asker = proxying(lab, STATIC.replace("static", "auto") + f", never {NET}8::/80"), Asker(lab)
    sent: dict[str, list[Frame]] = {
        "answered":   [solicitation(FENCE, HERE)] * 3,
        "no route":   [solicitation(f"{NET}:7", HERE)] * 2,
        "hop limit":  [solicitation(FENCE, HERE)._replace(hops=1)],
        "checksum":   [solicitation(FENCE, HERE)._replace(off=n) for n in (1, 2)],
        "code":       [solicitation(FENCE, HERE)._replace(code=9)],
        "options":    [solicitation(FENCE, HERE)._replace(options=bytes(8))],
        "excluded":   [solicitation(f"{NET}8::1", HERE)],
    }
    daemon.signal(signal.SIGSTOP)                            # so that it hears them in one go
    for frames in sent.values():
        for frame in frames:
            asker.send(frame)
    daemon.signal(signal.SIGCONT)
    daemon.eventually(lambda: daemon.status()["ndp"][0]["heard"] == sum(map(len, sent.values())))
    [row] = daemon.status()["ndp"]
    assert (row["interface"], row["state"], row["answered"]) == ("eth0", "listens", 3)
    assert row["ignored"] == {fate: len(frames) for fate, frames in sent.items() if fate != "answered"}
    shown = json.loads(daemon.command("show", "eth0", "--json").stdout)
    assert {last["fate"]: last["frame"] for last in shown["last"]} == {
        fate: bytes(frames[-1]).hex() for fate, frames in sent.items()}
    assert {last["target"] for last in shown["last"] if last["fate"] == "no route"} == {f"{NET}:7"}
    for words in (daemon.command("status").stdout, daemon.command("show", "eth0").stdout):
        assert "eth0" in words and "hop limit" in words and "checksum" in words


def test_a_router_that_would_lose_its_address_is_warned_of(lab: Lab) -> None:
    """Rules and pools around the next hop; none of it if that is left out.  And interfaces that are not there."""
    lab["proxy"].address("eth0", f"{NET}:2/64")
    lab["proxy"].ip(f"-6 route add default via {NET}:1 dev eth0")
    pool = f"[pool p]\nprefix = {NET}:/64\ngive = /80\n"
    for config, wanted in {
            f"[ndp eth0]\nproxy = static {NET}:/64": f"answers for the router {NET}:1",
            f"[ndp eth0]\nproxy = static {NET}:/64\n  never {NET}:1": "",
            f"[ndp eth0]\nproxy = auto {NET}:/64": "",
            f"{pool}[ndp eth0]\nproxy = leased": f"[pool p] may give away the router {NET}:1",
            f"{pool}reserve = {NET}:/112\n[ndp eth0]\nproxy = leased": "",
            "[ndp eth0]\nproxy = leased": "no [pool] to lease from",
            f"[ndp eth7]\nproxy = iface {NET}:/64 br-lna": "no interface br-lna"}.items():
        said = lab["proxy"].ddpd(f"[ddpd]\n{config}\n", "trial").command("check").stdout
        assert wanted in said and (wanted or "router" not in said), said


def test_forwarding_that_is_off_is_warned_of(lab: Lab) -> None:
    lab["proxy"].sysctl({"net/ipv6/conf/all/forwarding": 0})
    daemon = proxying(lab, STATIC)
    assert "warning: net.ipv6.conf.all.forwarding = 0" in daemon.log()
    assert "net.ipv6.conf.all.forwarding" in daemon.command("check").stdout
    lab["proxy"].sysctl({"net/ipv6/conf/all/forwarding": 1})
    assert "all.forwarding" not in daemon.command("check").stdout
