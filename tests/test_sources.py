"""From which of its addresses a grantee asks, and what leaves by which: a model of the kernel, and random histories."""

from __future__ import annotations

from dataclasses import dataclass, field
from socket import AF_INET6, inet_ntop

import pytest
from hypothesis import example, given, settings, strategies as st

import ddpd

T0 = 1000.0
LO, WAN, LAN, TUN = 1, 2, 3, 4
NAMES = {LO: "lo", WAN: "wan", LAN: "br-lan", TUN: "tun0"}
FLAGS = {LO: 0x9, WAN: 0x1043, LAN: 0x1003, TUN: 0x10D1}             # tun0: point-to-point, no neighbours
LEASED = ddpd.parse_prefix("2001:db8:a:100::/56")


def at(boot: float) -> ddpd.Now:
    return ddpd.Now(boot, 1_700_000_000.0)


@dataclass(frozen=True)
class Own:
    """An address of this machine, and what the kernel says of it."""

    index: int
    text: str
    state: str = ""                      # tentative, duplicate, deprecated

    @property
    def prefix(self) -> ddpd.Prefix:
        return ddpd.parse_interface(self.text)

    @property
    def host(self) -> ddpd.Prefix:
        return self.prefix._replace(length=ddpd.WIDTH[self.prefix.version])

    @property
    def is_link_local(self) -> bool:
        return self.text.startswith(("fe80:", "169.254."))


def links(*owns: Own) -> ddpd.Links:
    def marked(*states: str) -> frozenset[tuple[int, ddpd.Prefix]]:
        return frozenset((own.index, own.prefix) for own in owns if own.state in states)
    return ddpd.Links(NAMES, tuple((own.index, own.prefix) for own in owns), FLAGS, marked("deprecated"),
                      tentative=marked("tentative", "duplicate"), duplicate=marked("duplicate"))


def mapped(host: ddpd.Prefix) -> str:
    return inet_ntop(AF_INET6, ddpd.mapped(host))


def offered(host: ddpd.Prefix, leaves: int, owns: list[Own]) -> str:
    """What Linux chooses (RFC 6724, 5): of the interface by which the packet leaves, else of any; no tentative one."""
    able = [own for own in owns if own.prefix.version == host.version and own.state not in ("tentative", "duplicate")
            and (own.index == leaves or not own.is_link_local)]
    is_local = ddpd.is_link_local(host)

    def badness(own: Own) -> tuple[bool, ...]:
        too_small = own.is_link_local and not is_local
        return (too_small, own.state == "deprecated", own.index != leaves,
                (ddpd.GLOBAL.holds(own.host) != ddpd.GLOBAL.holds(host)))
    best = min(able, key=badness, default=None)
    return mapped(best.host) if best else "::1" if host.version == 6 else "::ffff:127.0.0.1"


def chosen(host: str, leaves: int, owns: list[Own], leased: list[ddpd.Prefix], old: str = "") -> str:
    target = ddpd.parse_host(host)
    way = ddpd.Way(ddpd.Reach("", NAMES[leaves]), offered(target, leaves, owns), True)
    return ddpd.choose_source(way, target, links(*owns), leased, old)


WAN_6, WAN_LOCAL = Own(WAN, "2001:db8:1::2/64"), Own(WAN, "fe80::2/64")
LAN_6, LAN_LOCAL = Own(LAN, "2001:db8:aaaa::1/64"), Own(LAN, "fe80::1:1/64")
LAN_LEASED = Own(LAN, "2001:db8:a:100::1/64")
LOOP, LOOP_6 = Own(LO, "::1/128"), Own(LO, "2001:db8:10::1/128")


def put(own: Own, state: str) -> Own:
    return Own(own.index, own.text, state)


@pytest.mark.parametrize(("host", "owns", "source"), [
    ("2001:db8:9::1", [LOOP, WAN_6, WAN_LOCAL], "2001:db8:1::2"),
    ("2001:db8:9::1", [LOOP, put(WAN_6, "tentative"), LAN_LOCAL], ""),             # never ::1, nor the LAN's fe80::
    ("2001:db8:9::1", [LOOP, put(WAN_6, "tentative"), LAN_6], "2001:db8:aaaa::1"),  # better than none
    ("2001:db8:9::1", [LOOP, put(WAN_6, "tentative"), WAN_LOCAL], "fe80::2"),       # a neighbour may answer there
    ("2001:db8:9::1", [LOOP, put(WAN_6, "duplicate"), WAN_LOCAL, LAN_6], "2001:db8:aaaa::1"),
    ("2001:db8:9::1", [LOOP, put(WAN_6, "deprecated"), LAN_6], "2001:db8:aaaa::1"),
    ("2001:db8:9::1", [LOOP, put(WAN_6, "deprecated")], ""),
    ("2001:db8:9::1", [WAN_LOCAL, LAN_LEASED, LAN_6], "2001:db8:aaaa::1"),         # the provider's own is on the LAN
    ("2001:db8:9::1", [WAN_LOCAL, LAN_LEASED, LOOP_6, LAN_6], "2001:db8:10::1"),
    ("2001:db8:9::1", [WAN_LOCAL, LAN_LEASED], "fe80::2"),
    ("2001:db8:9::1", [LAN_LEASED], ""),
    ("fe80::9", [WAN_6, WAN_LOCAL, LAN_LOCAL], "fe80::2"),
    ("fe80::9", [WAN_6, LAN_LOCAL], "2001:db8:1::2"),
    ("192.0.2.1", [WAN_6, Own(WAN, "198.51.100.2/24"), Own(LAN, "192.168.1.1/24")], "::ffff:198.51.100.2"),
    ("192.0.2.1", [WAN_6, Own(WAN, "169.254.7.7/16"), Own(LAN, "192.168.1.1/24")], "::ffff:192.168.1.1"),
    ("192.0.2.1", [WAN_6, Own(LO, "127.0.0.1/8")], ""),
])
def test_from_which_address_is_asked(host: str, owns: list[Own], source: str) -> None:
    assert chosen(host, WAN, owns, [LEASED]) == source


def test_a_tunnel_that_has_only_a_leased_address_is_asked_from_that() -> None:
    inside = Own(TUN, "2001:db8:a:100::7/128")
    assert chosen("2001:db8:a::1", TUN, [LOOP, WAN_6, inside], []) == "2001:db8:a:100::7"
    lease = ddpd.parse_prefix("2001:db8:a:100::7/128")
    assert chosen("2001:db8:a::1", TUN, [LOOP, inside], [lease]) == "2001:db8:a:100::7"
    assert chosen("2001:db8:a::1", TUN, [LOOP, put(inside, "deprecated")], [lease]) == "2001:db8:a:100::7"
    assert chosen("2001:db8:a::1", WAN, [LOOP, Own(WAN, inside.text)], [lease]) == "", "not elsewhere"
    for others in ([WAN_6], [LAN_6], [LAN_6, WAN_6, LOOP_6]):     # of which the tunnel knows nothing
        assert chosen("2001:db8:a::1", TUN, [*others, inside], [lease]) == "2001:db8:a:100::7"
    own = Own(TUN, "2001:db8:7::7/64")
    assert chosen("2001:db8:a::1", TUN, [WAN_6, inside, own], [lease]) == "2001:db8:7::7", "one that is not leased"


def test_what_is_in_use_stays_while_it_is_as_good() -> None:
    """Temporary addresses come every day; the kernel would send from the newest."""
    newer = Own(WAN, "2001:db8:1::66/64")
    owns = [newer, WAN_6, LAN_6]
    assert chosen("2001:db8:9::1", WAN, owns, []) == "2001:db8:1::66"
    assert chosen("2001:db8:9::1", WAN, owns, [], old="2001:db8:1::2") == "2001:db8:1::2"
    assert chosen("2001:db8:9::1", WAN, [newer, put(WAN_6, "deprecated")], [], old="2001:db8:1::2") == "2001:db8:1::66"
    assert chosen("2001:db8:9::1", WAN, owns, [], old="2001:db8:aaaa::1") == "2001:db8:1::66", "better than another's"


# ---- at random

TEXTS = ["2001:db8:1::2/64", "2001:db8:1::66/64", "2001:db8:aaaa::1/64", "fd00:1::1/64", "fe80::2/64", "fe80::3/64",
         "2001:db8:a:100::1/64", "2001:db8:a:1ff::1/128", "2001:db8:b::1/64", "198.51.100.2/24", "192.168.1.1/24",
         "10.1.7.1/24", "169.254.7.7/16"]
OWNS = st.lists(st.builds(Own, st.sampled_from([LO, WAN, LAN]), st.sampled_from(TEXTS),
                          st.sampled_from(["", "", "tentative", "duplicate", "deprecated"])),
                unique_by=lambda own: (own.index, own.text), max_size=9)
LEASES = st.lists(st.sampled_from([LEASED, ddpd.parse_prefix("2001:db8:b::/48"), ddpd.parse_prefix("10.1.7.0/24")]),
                  unique=True)
HOSTS = st.sampled_from(["2001:db8:9::1", "fd00:9::1", "fe80::9", "192.0.2.1"])


def is_allowed(own: Own, leased: list[ddpd.Prefix], leaves: int = WAN) -> bool:
    return (not own.state and (own.index == leaves or not own.is_link_local)
            and not any(prefix.holds(own.host) for prefix in leased))


@settings(max_examples=500)
@given(HOSTS, OWNS, LEASES)
@example("2001:db8:9::1", [put(WAN_6, "tentative"), WAN_LOCAL, LAN_6], [])
def test_never_from_a_wrong_address_and_from_a_global_one_if_there_is_any(host: str, owns: list[Own],
                                                                         leased: list[ddpd.Prefix]) -> None:
    owns = [LOOP, Own(LO, "127.0.0.1/8"), *owns]
    target, source = ddpd.parse_host(host), chosen(host, WAN, owns, leased)
    good = [own for own in owns[2:] if own.prefix.version == target.version and is_allowed(own, leased)]
    assert bool(source) == bool(good)
    if not source:
        return
    assert ddpd.parse_host(source) in [own.host for own in good]
    if not ddpd.is_link_local(target) and not all(own.is_link_local for own in good):
        assert not ddpd.is_link_local(ddpd.parse_host(source))


@settings(max_examples=300)
@given(HOSTS, st.lists(st.tuples(OWNS, LEASES), min_size=2, max_size=6))
def test_a_source_changes_only_for_a_reason(host: str, history: list[tuple[list[Own], list[ddpd.Prefix]]]) -> None:
    """With nothing changed it stays; and what is left for another one is no longer as good."""
    old = ""
    for owns, leased in history:
        now = chosen(host, WAN, owns, leased, old)
        assert chosen(host, WAN, owns, leased, now) == now
        was = [own for own in owns if old and mapped(own.host) == old and is_allowed(own, leased)]
        if now != old and was:
            new = [own for own in owns if mapped(own.host) == now and is_allowed(own, leased)]
            is_local = ddpd.is_link_local(ddpd.parse_host(host))
            assert min((own.is_link_local != is_local, own.index != WAN, own.index != LO) for own in new) < \
                min((own.is_link_local != is_local, own.index != WAN, own.index != LO) for own in was) or \
                {own.index for own in new} != {own.index for own in was} or \
                offered(ddpd.parse_host(host), WAN, owns) == now
        old = now


# ---- in a node

@dataclass
class Home:
    """It asks 2001:db8:9::1, by wan."""

    more: str = ""
    events: list[ddpd.Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        text = f"[grantor a]\nkey = {ddpd.show_key(bytes([1]) * 32)}\naddress = 2001:db8:9::1\nask = ::/56 on br-lan\n"
        self.node = ddpd.Node(ddpd.read_config(text + self.more, "t"), bytes(32), "boot", lambda n: b"\x80" * n)
        self.node.start(at(T0))
        self.grantee = self.node.grantees["a"]
        self.node.resolved("a", "2001:db8:9::1", (ddpd.Path("2001:db8:9::1", 0),), at(T0))

    def see(self, *owns: Own, boot: float = T0) -> list[ddpd.Effect]:
        """The kernel has told that addresses have changed: the ways are looked at anew."""
        effects = self.node.linked(links(*owns), at(boot))
        ways: dict[ddpd.Aim, ddpd.Way | None] = {}
        for aim, place in self.node.aims().items():
            if place is not None:
                offer = offered(ddpd.parse_host(place.host), WAN, list(owns))
                ways[aim] = ddpd.Way(ddpd.Reach("fe80::9", "wan"), offer, True)
        return [*effects, *self.node.routed(ways, (), has_changed=True, now=at(boot))]

    @property
    def source(self) -> str:
        return self.grantee.way.source if self.grantee.way is not None else "-"


def test_an_address_that_becomes_ready_is_asked_from_at_once() -> None:
    """At boot an interface is called up while its address is still tentative."""
    home = Home()
    assert ddpd.Call("a") not in home.see(LOOP, put(WAN_6, "tentative"), LAN_LOCAL) and home.source == ""
    home.grantee.enter(ddpd.State.SEEKING, T0 + 100)               # it has become patient
    assert ddpd.Call("a") in home.see(LOOP, WAN_6, LAN_LOCAL, boot=T0 + 2) and home.source == "2001:db8:1::2"


def test_an_address_that_goes_is_left_at_once() -> None:
    home = Home()
    home.see(WAN_6, Own(WAN, "2001:db8:1::66/64"))
    home.grantee.enter(ddpd.State.BOUND, T0 + 5000)
    assert ddpd.Call("a") in home.see(put(WAN_6, "deprecated"), Own(WAN, "2001:db8:1::66/64"), boot=T0 + 1)
    assert home.source == "2001:db8:1::66"


TUNNEL = f"""
[tunnel tun0]
grantor = a
[grantor b]
key = {ddpd.show_key(bytes([2]) * 32)}
address = 2001:db8:9::2
ask = ::/56
"""
END = ddpd.parse_host("2001:db8:9::1")


def test_a_tunnels_own_packets_leave_by_an_address_that_is_not_leased() -> None:
    home = Home(TUNNEL)
    interface = ddpd.Interface("tun0", bytes(32), "[2001:db8:9::1]:51820")
    home.grantee.interface = interface
    home.grantee.held = [ddpd.Held(0, LEASED, bytes(20), T0 + 50, T0 + 100)]

    def route() -> list[ddpd.Route]:
        return [thing for thing in home.node.wanted.things.values()
                if isinstance(thing, ddpd.Route) and thing.prefix == END]
    home.see(WAN_6, WAN_LOCAL, LAN_LEASED)
    assert route() == [], "the kernel does it right by itself"
    home.see(WAN_LOCAL, LAN_6, LAN_LEASED)
    assert route() == [], "here too"
    home.see(WAN_LOCAL, LAN_LEASED, LAN_6)
    assert [(one.reach, one.leaves_by) for one in route()] == [(ddpd.Reach("fe80::9", "wan"), "2001:db8:aaaa::1")]
    home.see(WAN_LOCAL, LAN_LEASED)
    assert [one.leaves_by for one in route()] == ["fe80::2"]
    home.see(LAN_LEASED)
    assert route() == [], "there is none that is better"
    line = ddpd.Route(END, ddpd.MAIN, ddpd.Reach("fe80::9", "wan"), leaves_by="2001:db8:aaaa::1").add_line(221,
                         at(T0))
    assert line == ("route replace 2001:db8:9::1/128 via fe80::9 dev wan table 254 proto 221 metric 22100 "
                    "src 2001:db8:aaaa::1")


def test_the_way_to_a_tunnels_end_is_looked_up_beside_it() -> None:
    """Else the route that we have made would be what is found, for ever."""
    home = Home(TUNNEL)
    home.grantee.interface = ddpd.Interface("tun0", bytes(32), "[2001:db8:9::1]:51820")
    assert home.node.aims()["tunnel", "a"] == ddpd.Path("2001:db8:9::", 0)
    home.grantee.interface = ddpd.Interface("tun0", bytes(32), "192.0.2.6:51820")
    assert home.node.aims()["tunnel", "a"] == ddpd.Path("::ffff:192.0.2.7", 0)
