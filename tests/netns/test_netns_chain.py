"""A chain: what is held above is granted below, and what happens above arrives below in seconds.

                                                              leaf1:br-lan
    exit:down -------------- mid:up    mid:one ------- leaf1:up
    2001:db8:1::1            ::2       2001:db8:2::1   ::2
                                       mid:two ------- leaf2:up
                             mid:br-lan 2001:db8:3::1  ::2
                                                              leaf2:br-lan

exit gives /48s of a /40 to mid; mid gives parts of what it holds to the leaves.  Who said what to
whom, and when, is captured on every cable and printed.
"""

import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv6Network, ip_interface, ip_network
from signal import SIGUSR1
from typing import Any

import pytest

from daemon import Daemon
from lab import (
    DDPD_PORT,
    ETH_P_ALL,
    Host,
    Lab,
    LabError,
    Recorder,
    changes,
    eventually,
    needs,
    parse_datagram,
    with_keys,
)

pytestmark = needs("ip link add dev eth0 type veth")

SO_TIMESTAMPNS = 35
HOP_S = 2.0                                # what one hop may take
LEAVES = ("leaf1", "leaf2")
MID = "2001:db8:1::2"                      # as the exit sees it
WAY = {"leaf1": ("2001:db8:2::2", "one"),  # as mid sees them
       "leaf2": ("2001:db8:3::2", "two")}
WHO = {"2001:db8:1::1": "exit", MID: "mid", "2001:db8:2::1": "mid", "2001:db8:3::1": "mid",
       "2001:db8:2::2": "leaf1", "2001:db8:3::2": "leaf2"}
KINDS = {1: "ask", 2: "answer", 3: "cookie", 4: "sealed"}

SHORT = "5s\npreferred = 4s"                # T1 is 2 s
EXIT = """
[ddpd]
[pool six]
prefix   = 2001:db8:4200::/40
give     = {give}
lifetime = {lifetime}
[grantee mid]
key   = @mid
pools = six
"""
BELOW = """
[ddpd]
[pool below]
prefix   = {prefix}
give     = {give}
lifetime = {lifetime}
[grantee leaf1]
key   = @leaf1
pools = below
limit = 2
[grantee leaf2]
key   = @leaf2
pools = below
limit = 2
"""
ABOVE = """
[grantor exit]
key     = @exit
address = 2001:db8:1::1
ask     = ::/48 on br-lan
"""
LEAF = """
[grantor mid]
key     = @mid
address = {}
ask     = {}
"""


# ==== the world =======================================================================


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit*", "mid*", "leaf1*", "leaf2*") as lab:
        lab.cable("exit:down 2001:db8:1::1/64", "mid:up 2001:db8:1::2/64")
        for n, (name, (_, dev)) in enumerate(WAY.items(), 2):
            lab.cable(f"mid:{dev} 2001:db8:{n}::1/64", f"{name}:up 2001:db8:{n}::2/64")
            lab[name].ip(f"route add default via 2001:db8:{n}::1")
        for name in ("mid", *LEAVES):
            lab[name].bridge("br-lan")
            lab[name].bridge("br-guest")
        yield lab


Chain = dict[str, Daemon]


def below(prefix: str = "grantor exit", give: str = "/56", lifetime: str = "12h") -> str:
    return BELOW.format(prefix=prefix, give=give, lifetime=lifetime)


def leaf_config(name: str, *asks: str) -> str:
    via, _ = WAY[name]
    return LEAF.format(via.replace("::2", "::1"), "\n          ".join(asks))


def start(lab: Lab, mid: str, exit_: str, **asks: tuple[str, ...]) -> Chain:
    """From the top; a leaf asks for one /56 unless it is said what."""
    chain = {"exit": lab["exit"].ddpd(exit_).start(), "mid": lab["mid"].ddpd(mid).start()}
    for name in LEAVES:
        lines = asks.get(name, ("::/56 on br-lan",))
        chain[name] = lab[name].ddpd(leaf_config(name, *lines)).start()
    return chain


def whole(lab: Lab, lifetime: str) -> Chain:
    """exit, mid and the leaves, each with one prefix."""
    chain = start(lab, below() + ABOVE, EXIT.format(give="/48", lifetime=lifetime))
    eventually(lambda: all(preferred(lab[name]) for name in LEAVES), 8, "the leaves have prefixes")
    return chain


def holds(host: Host) -> list[str]:
    """The prefixes that it has made real."""
    return sorted(line.split()[1] for line in host.routes() if line.startswith("unreachable"))


# ==== what is seen ====================================================================


class Capture(Recorder):
    """A recorder that knows when."""

    def __init__(self, host: Host, dev: str) -> None:
        sock = host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        super().__init__(sock, dev)
        self.times: list[float] = []

    def frames(self) -> list[bytes]:
        while True:
            try:
                frame, told, _, _ = self.sock.recvmsg(65535, 64)
            except BlockingIOError:
                return self.seen
            whole_s, ns = struct.unpack("@ll", told[0][2])
            self.times.append(whole_s + ns / 1e9)
            self.seen.append(frame)

    def story(self, began: float) -> list[tuple[float, str]]:
        """Each ddpd datagram since then: when, and who said what to whom."""
        found = []
        for at, frame in zip(self.times, list(self.frames()), strict=False):
            datagram = parse_datagram(frame) if at >= began else None
            if datagram and DDPD_PORT in (datagram.sport, datagram.dport):
                who = f"{WHO[datagram.source]:>5} > {WHO[datagram.target]:5}"
                found.append((at - began, f"{who}  {KINDS[datagram.data[0]]:6} "
                                          f"{len(datagram.data):4} bytes"))
        return found


class Wires:
    """All cables at once."""

    def __init__(self, lab: Lab) -> None:
        self.captures = {"exit - mid":  Capture(lab["mid"], "up"),
                         "mid - leaf1": Capture(lab["mid"], "one"),
                         "mid - leaf2": Capture(lab["mid"], "two")}
        self.began = time.time()

    def counts(self, what: str = "") -> dict[str, int]:
        return {cable: sum(what in line for _, line in capture.story(self.began))
                for cable, capture in self.captures.items()}

    def tell(self, moments: dict[str, float]) -> None:
        """Captures and timings, in the order in which they happened."""
        rows = [row for capture in self.captures.values() for row in capture.story(self.began)]
        rows += [(at, f"-------------  {what}") for what, at in moments.items()]
        print("\n".join(f"  {at:7.3f} s  {line}" for at, line in sorted(rows)))
        print(f"  datagrams: {self.counts()}")


Truths = dict[str, Callable[[], bool]]


def order(daemon: Daemon, command: str, truths: Truths, within_s: float,
          ) -> tuple[float, dict[str, float]]:
    """Give an order; when (since it was given) each of these became true."""
    began, moments = time.time(), dict[str, float]()
    print(f"[+] {daemon.name}: ddpd {command}")
    done = subprocess.Popen(daemon.argv(*command.split()), stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        watch(truths, moments, began, within_s)
    finally:
        said, _ = done.communicate(timeout=10)
        print(f"    {said.strip()}")
    assert done.returncode == 0, said
    return began, moments


def watch(truths: Truths, moments: dict[str, float], began: float, within_s: float) -> None:
    while len(moments) < len(truths):
        for what, truth in truths.items():
            if what not in moments and truth():
                moments[what] = time.time() - began
        if time.time() - began > within_s:
            missing = sorted(truths.keys() - moments.keys())
            raise LabError(f"not within {within_s} s: {', '.join(missing)}; was: {moments}")
        time.sleep(0.01)


def lan(host: Host, dev: str = "br-lan") -> dict[str, bool]:
    """Each global address of the LAN: is it preferred?"""
    shown = host.look(f"-6 -o addr show dev {dev} scope global").splitlines()
    return {line.split()[3]: " deprecated " not in line for line in shown}


def preferred(host: Host) -> list[str]:
    return sorted(address for address, is_preferred in lan(host).items() if is_preferred)


def deprecated(host: Host) -> list[str]:
    return sorted(address for address, is_preferred in lan(host).items() if not is_preferred)


def way(prefix: str, via: str, dev: str) -> str:
    return f"{prefix} via {via} dev {dev} proto 221 metric 22100 pref medium"


def unreachable(prefix: str) -> str:
    return f"unreachable {prefix} dev lo proto 221 metric 22100 pref medium"


def routes_wanted(tops: list[str], parts: dict[str, list[str]]) -> dict[str, list[str]]:
    """What each hop has when these are all the leases there are."""
    mid = [unreachable(top) for top in tops]
    mid += [way(part, *WAY[name]) for name in LEAVES for part in parts[name]]
    return {"exit": sorted(way(top, MID, "down") for top in tops), "mid": sorted(mid),
            **{name: sorted(unreachable(part) for part in parts[name]) for name in LEAVES}}


def routes(lab: Lab) -> dict[str, list[str]]:
    return {name: sorted(host.routes()) for name, host in lab.hosts.items()}


def first_address(prefix: str) -> str:
    """Of this node, on the LAN that has the prefix's first /64."""
    return f"{ip_network(prefix).network_address + 1}/64"


def moved(prefix: str, by: int = 1) -> str:
    """The same place in another /40."""
    net = IPv6Network(prefix)
    return str(IPv6Network((int(net.network_address) + (by << 88), net.prefixlen)))


def inside(prefix: str, outer: str) -> bool:
    return ip_interface(prefix).network.subnet_of(ip_network(outer))     # type: ignore[arg-type]


# ==== renumbering from the top ========================================================


def change_top(exit_: Daemon) -> None:
    exit_.write(exit_.config.read_text().replace("2001:db8:4200::/40", "2001:db8:4300::/40"))


def test_a_new_prefix_at_the_top_is_on_the_lans_within_two_seconds(lab: Lab) -> None:
    """On an idle path: preferred, with the same subnet bits; the old one is deprecated and lives on."""
    chain = whole(lab, "10m")
    (top,), parts = holds(lab["mid"]), {name: holds(lab[name]) for name in LEAVES}
    assert all(inside(part, top) for name in LEAVES for part in parts[name])
    assert routes(lab) == routes_wanted([top], parts)
    old = {name: preferred(lab[name]) for name in ("mid", *LEAVES)}
    assert old == {"mid": [first_address(top)],
                   **{name: [first_address(part) for part in parts[name]] for name in LEAVES}}
    new = {name: [first_address(moved(prefix)) for prefix in prefixes]
           for name, prefixes in {"mid": [top], **parts}.items()}
    wires = Wires(lab)
    time.sleep(0.5)                                         # an idle path, and nothing due
    assert sum(wires.counts().values()) == 0
    change_top(chain["exit"])

    def renumbered(name: str) -> Callable[[], bool]:
        return lambda: (preferred(lab[name]), deprecated(lab[name])) == (new[name], old[name])

    wires.began, moments = order(chain["exit"], "reload", {
        f"{name} is renumbered": renumbered(name) for name in ("mid", *LEAVES)}, 3 * HOP_S)
    wires.tell(moments)
    assert max(moments.values()) < HOP_S
    assert wires.counts() == wires.counts("sealed")         # not one handshake
    assert max(wires.counts().values()) <= 6
    tops, both = [top, moved(top)], {name: [part, moved(part)] for name, (part,) in parts.items()}
    assert routes(lab) == routes_wanted(tops, both)         # both are routed meanwhile
    for address in [address for name in LEAVES for address in lan(lab[name])]:
        eventually(partial(lab["exit"].reaches, address.split("/")[0]), 1, address)


def test_the_old_prefix_is_gone_from_every_hop_at_its_end(lab: Lab) -> None:
    """And not before; then the routes of all hops are the new leases and nothing else."""
    chain = whole(lab, SHORT)
    (top,), parts = holds(lab["mid"]), {name: holds(lab[name]) for name in LEAVES}
    change_top(chain["exit"])
    began, _ = order(chain["exit"], "reload", {
        "leaf1 has both": lambda: len(lan(lab["leaf1"])) == 2,
        "leaf2 has both": lambda: len(lan(lab["leaf2"])) == 2}, 2 * HOP_S)
    after = {name: [moved(part) for part in parts[name]] for name in LEAVES}
    eventually(lambda: routes(lab) == routes_wanted([moved(top)], after), 10, "only the new")
    assert time.time() - began > 2.5                        # renewed at 2 s: 3 s were left
    lans = {name: [first_address(part) for part in after[name]] for name in LEAVES}
    eventually(lambda: {name: list(lan(lab[name])) for name in LEAVES} == lans)


# ==== revocation ======================================================================


def test_a_revocation_travels_down_two_seconds_a_hop(lab: Lab) -> None:
    """At once not routed at the top; then gone from mid, with its routes; then off the leaves."""
    chain = whole(lab, "10m")
    (top,), parts = holds(lab["mid"]), {name: holds(lab[name]) for name in LEAVES}
    wires = Wires(lab)

    def off(name: str) -> Callable[[], bool]:
        return lambda: not any(inside(address, top) for address in preferred(lab[name]))

    wires.began, moments = order(chain["exit"], "revoke mid", {
        "exit routes nothing": lambda: lab["exit"].routes() == [],
        "mid has no address of it": lambda: not lan(lab["mid"]),
        "mid routes nothing": lambda: lab["mid"].routes() == [],
        **{f"{name} is off it": off(name) for name in LEAVES}}, 3 * HOP_S)
    wires.tell(moments)
    for name in LEAVES:
        print(f"  {name} now: {lan(lab[name])}")
    above = max(moments["mid has no address of it"], moments["mid routes nothing"])
    assert above < HOP_S
    assert max(moments[f"{name} is off it"] for name in LEAVES) < above + HOP_S
    assert chain["exit"].status()["granted"] == []
    for name in ("mid", *LEAVES):                           # tickets do not bring it back
        chain[name].kill()
        chain[name].start()
    time.sleep(1)
    for name in ("mid", *LEAVES):
        assert not any(inside(address, top) for address in preferred(lab[name]))
    assert lab["exit"].routes() == lab["mid"].routes() == []
    assert parts                                            # (there was something to lose)


# ==== what mid may give ===============================================================


USED = (5, 40)                             # mid's own subnets of its /58


def test_mid_keeps_its_own_subnets_and_nothing_below_outlives_what_is_above(lab: Lab) -> None:
    """Two of four /60s have a LAN of mid inside; two are left for three asks.

    Then the exit falls silent: what mid holds runs out, and so, never later, does all below.
    """
    above = ABOVE.replace("::/48 on br-lan", f"::/58 on br-lan={USED[0]} br-guest={USED[1]}")
    asks = {"leaf1": ("::/60 on br-lan", "::/60 on br-guest"), "leaf2": ("::/60 on br-lan",)}
    chain = start(lab, below(give="/60") + above, EXIT.format(give="/58", lifetime=SHORT), **asks)
    chain["mid"].eventually(lambda: "reason=FULL" in chain["mid"].log() and len(given(chain)) == 2)
    (top,) = holds(lab["mid"])
    quarters = [str(net) for net in ip_network(top).subnets(new_prefix=60)]
    assert sorted(given(chain)) == [quarters[1], quarters[3]]
    own = {str(ip_interface(address).network)
           for dev in ("br-lan", "br-guest") for address in lan(lab["mid"], dev)}
    assert own == {str(list(ip_network(top).subnets(new_prefix=64))[n]) for n in USED}
    nothing_outlives(chain, 1)
    chain["exit"].kill()
    nothing_outlives(chain, 0.5)
    hosts = [lab[name] for name in ("mid", *LEAVES)]
    eventually(lambda: not any(lan(host, dev) for host in hosts for dev in ("br-lan", "br-guest")),
               9, "nothing is left on any LAN")
    eventually(lambda: not any(host.routes() for host in hosts), 5, "no route is left")


def given(chain: Chain) -> list[str]:
    """What mid has given to the leaves, which agree."""
    rows = [row["prefix"] for row in chain["mid"].status()["granted"] if row["valid"]]
    assert len(set(rows)) == len(rows)
    return rows


def ends(rows: list[dict[str, Any]], kind: str, at: float) -> float:
    """The latest end of these leases, at least; they are shown in whole seconds."""
    return max((at + row[kind] for row in rows), default=at)


def nothing_outlives(chain: Chain, for_s: float) -> None:
    """From below to above: what is looked at later can only have become longer."""
    over = time.monotonic() + for_s
    while time.monotonic() < over:
        looked = []
        for name, which in (("leaf1", "held"), ("leaf2", "held"), ("mid", "granted"),
                            ("mid", "held"), ("exit", "granted")):
            if chain[name].running():
                before = time.monotonic()
                rows = [row for row in chain[name].status()[which] if row["prefix"]]
                looked.append((f"{name} {which}", rows, before, time.monotonic()))
        for kind in ("valid", "preferred"):
            for n, (lower, rows, at, _) in enumerate(looked):
                for upper, others, _, till in looked[max(n + 1, 2):]:
                    if kind == "preferred" and upper.endswith("granted"):
                        continue                            # a grantor shows what it told, or now has left
                    assert ends(rows, kind, at) <= ends(others, kind, till) + 1, (kind, lower, upper)


# ==== mid comes and goes ==============================================================


def still(lab: Lab, had: dict[str, list[str]], for_s: float) -> None:
    """The LANs have these addresses, preferred, and no other, at every moment."""
    over = time.monotonic() + for_s
    while time.monotonic() < over:
        assert {name: preferred(lab[name]) for name in LEAVES} == had
        assert {name: deprecated(lab[name]) for name in LEAVES} == {name: [] for name in LEAVES}
        time.sleep(0.05)


def rules(host: Host) -> list[str]:
    return sorted(line for line in host.look("-6 rule show").splitlines() if "lookup 72" in line)


def test_a_restart_knows_its_own_rules_again(lab: Lab) -> None:
    """A pool that follows says so before anything else: the kernel has to be looked at even before that."""
    mid = below() + ABOVE + "default = via 2001:db8:1::1 dev up\n"
    chain = start(lab, mid, EXIT.format(give="/48", lifetime="60s"))
    eventually(lambda: rules(lab["mid"]) and preferred(lab["leaf1"]), 8, "the rules are there")
    had = rules(lab["mid"])
    for end in (chain["mid"].stop, chain["mid"].kill):
        end()
        chain["mid"].start()
        eventually(lambda: heard_from_both(chain), 8, "both are heard again", every_s=0.3)
        assert rules(lab["mid"]) == had and "cannot install" not in chain["mid"].log()
    chain["mid"].stop()
    assert chain["mid"].command("clean").returncode == 0
    assert rules(lab["mid"]) == [] == lab["mid"].routes()


def test_mid_killed_and_restarted_changes_nothing_below(lab: Lab) -> None:
    """The leaves keep their prefixes, through renewals too, and no other prefix is ever given.

    Without the exit mid grants of what it still holds.  A new board with the old key holds
    nothing until the exit is back, and that is no reason for the leaves to leave their prefixes.
    """
    chain = whole(lab, "60s")
    had, was = {name: preferred(lab[name]) for name in LEAVES}, routes(lab)
    for lost in "nothing", "the exit", "the exit and all but the key":
        print(f"---- lost: {lost}")
        chain["mid"].kill()
        if lost != "nothing":
            chain["exit"].kill()
        if lost.endswith("key"):
            (chain["mid"].dir / "leases.json").unlink()
            lab["mid"].ip("-6 addr flush dev br-lan scope global")
            lab["mid"].ip("-6 route flush proto 221")
        still(lab, had, 0.1)
        chain["mid"].start()
        if lost.endswith("key"):
            eventually(lambda: refused_to_both(chain), 8, "both are refused", every_s=0.3)
            still(lab, had, 0.3)
            chain["exit"].start()
            chain["mid"].signal(SIGUSR1)
            eventually(lambda: lab["mid"].routes(), 8, "mid holds its prefix again")
        eventually(lambda: heard_from_both(chain), 8, "both are heard again", every_s=0.3)
        still(lab, had, 0.3)
        eventually(lambda: routes(lab) == was, 2, "the same routes")
        if lost == "the exit":
            chain["exit"].start()


def refused_to_both(chain: Chain) -> bool:
    """Ask until mid has said that it cannot say; the third ask of a leaf is a handshake."""
    for name in LEAVES:
        chain[name].signal(SIGUSR1)
    return all("refused grantor=mid" in chain[name].log() for name in LEAVES)


def heard_from_both(chain: Chain) -> bool:
    """Ask until mid, since its restart, has granted what each leaf asked for."""
    for name in LEAVES:
        chain[name].signal(SIGUSR1)
    rows = chain["mid"].status()["granted"]
    assert len(rows) <= len(LEAVES)
    return [bool(row["from"]) for row in rows] == [True, True]


# ==== other pools that move ===========================================================


RENUMBERINGS = [                           # what happens to the address of the interface, and when
    (0.0, "addr del {old} dev wan", "addr add {new} dev wan"),
    (1.0, "addr del {old} dev wan", "addr add {new} dev wan"),
    (0.0, "addr add {new} dev wan", "addr del {old} dev wan"),
    (1.0, "addr add {new} dev wan", "addr change {old} dev wan preferred_lft 0"),
]


def test_a_pool_that_follows_an_interface(lab: Lab) -> None:
    """Another prefix on it: the leaf is renumbered within two seconds, with the same subnet bits."""
    old = "2001:db8:5000::1/48"
    lab["mid"].bridge("wan")
    lab["mid"].address("wan", old)
    mid = lab["mid"].ddpd(below("interface wan", lifetime="10m")).start()
    leaf = lab["leaf1"].ddpd(leaf_config("leaf1", "::/56 on br-lan")).start()
    leaf.eventually(lambda: preferred(lab["leaf1"]))
    assert inside(preferred(lab["leaf1"])[0], "2001:db8:5000::/48")
    wire = Capture(lab["mid"], "one")
    for pause_s, *commands in RENUMBERINGS:
        new = moved(str(ip_interface(old).network), 0x10).replace("::/48", "::1/48")
        first, second = (command.format(old=old, new=new) for command in commands)
        follows(lab, (pause_s, first, second), wire)
        assert [pool["prefix"] for pool in mid.status()["pools"]] == [new.replace("::1", "::")]
        old = new


def follows(lab: Lab, happens: tuple[float, str, str], wire: Capture) -> None:
    """The leaf has the same place in the new prefix, and what it had is deprecated."""
    (had,), (pause_s, first, second) = preferred(lab["leaf1"]), happens
    there = first_address(moved(str(ip_interface(had).network), 0x10))
    lab["mid"].ip(first)
    time.sleep(pause_s)                                     # a line that is down for a moment
    began, moments = time.time(), dict[str, float]()
    lab["mid"].ip(second)
    watch({"leaf1 is renumbered": lambda: preferred(lab["leaf1"]) == [there]},
          moments, began, 2 * HOP_S)
    for at, line in [*wire.story(began), *((at, what) for what, at in moments.items())]:
        print(f"  {at:7.3f} s  {line}")
    assert max(moments.values()) < HOP_S
    assert had in deprecated(lab["leaf1"])


def test_a_ula_is_made_once_and_kept(lab: Lab) -> None:
    """A /48 of fd00::/8: the same after a restart, a crash, and with the lease file lost."""
    mid = lab["mid"].ddpd(below("ula", lifetime="60s")).start()
    leaf = lab["leaf1"].ddpd(leaf_config("leaf1", "::/56 on br-lan")).start()
    leaf.eventually(lambda: preferred(lab["leaf1"]))
    (pool,) = [row["prefix"] for row in mid.status()["pools"]]
    assert inside(pool, "fd00::/8") and pool.endswith("/48")
    assert [inside(part, pool) for part in holds(lab["leaf1"])] == [True]
    had = lab["leaf1"].kernel()
    for end, lost in (mid.stop, False), (mid.kill, False), (mid.kill, True):
        end()
        if lost:
            (mid.dir / "leases.json").unlink()
        mid.start()
        assert [row["prefix"] for row in mid.status()["pools"]] == [pool]
    leaf.eventually(lambda: renewed(leaf, mid), 15)
    assert changes(had, lab["leaf1"].kernel()) == []
    other = lab["exit"].ddpd(with_keys(EXIT.format(give="/56", lifetime="8s"))
                             .replace("2001:db8:4200::/40", "ula")).start()
    assert [row["prefix"] for row in other.status()["pools"]] != [pool]


def renewed(leaf: Daemon, grantor: Daemon) -> bool:
    """Ask until the grantor, since its restart, has heard and granted."""
    leaf.signal(SIGUSR1)
    return [bool(row["from"]) for row in grantor.status()["granted"]] == [True]
