"""Several exits: who is preferred, how each is reached, what others on this host are told.  Values in, values out."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import ddpd
import docs
from ddpd import Event, State

T0 = 1000.0
A, B = (ddpd.parse_prefix(f"2001:db8:{name}:100::/56") for name in "ab")
A4 = ddpd.parse_prefix("10.1.7.0/24")
TUN, UP = 7, 2
LINKS = ddpd.Links({1: "lo", UP: "up", TUN: "tun0", 3: "br-lan"},
                   ((UP, ddpd.parse_interface("192.0.2.2/24")), (UP, ddpd.parse_interface("2001:db8:1::2/64"))),
                   {1: 0x1, UP: 0x1043, TUN: 0x10D1, 3: 0x1003})


OWN = "2001:db8:1::2"


def at(boot: float) -> ddpd.Now:
    return ddpd.Now(boot, 1_700_000_000.0)


class Home:
    """A node that asks two exits, a (2001:db8::a) and b (192.0.2.1)."""

    def __init__(self, a: str = "", b: str = "", ask: str = "::/56 on br-lan\n  0.0.0.0/24 on br-lan") -> None:
        self.sections = [
            f"[grantor {name}]\nkey = {ddpd.show_key(bytes([n]) * 32)}\naddress = {host}\nask = {ask}\n{more}\n"
            for n, (name, host, more) in enumerate((("a", "2001:db8::a", a), ("b", "192.0.2.1", b)), 1)]
        config = ddpd.read_config("".join(self.sections), "t")
        self.node = ddpd.Node(config, bytes(32), "boot", lambda n: b"\x80" * n)
        self.node.linked(LINKS, at(T0))
        self.node.start(at(T0))
        self.a, self.b = self.node.grantees["a"], self.node.grantees["b"]
        self.node.resolved("a", "2001:db8::a", (ddpd.Path("2001:db8::a", 0),), at(T0))
        self.node.resolved("b", "192.0.2.1", (ddpd.Path("::ffff:192.0.2.1", 0),), at(T0))

    def answer(self, name: str, *prefixes: ddpd.Prefix, preferred: int = 60, boot: float = T0, trip: float = 0.01,
               **options: Any) -> list[ddpd.Effect]:
        """What the node's `apply` does, without the datagram."""
        grantee = self.node.grantees[name]
        slots = {6: 0, 4: 1}
        grants = tuple(ddpd.Grant(slots[p.version], p, True, preferred, 3600, bytes(20)) for p in prefixes)
        ask = grantee.ask(int(boot), b"run-----", ddpd.parse_host("2001:db8:1::2"))
        grantee.heard(trip)
        answer = ddpd.Answer(stamp=1, status=0, version=1, grants=grants, **options)
        effects = grantee.answered(ask, answer, boot - trip, at(boot), lambda _: "")
        return effects + self.node.follow_changes(at(boot))

    def on_lan(self) -> dict[str, float]:
        """Each address on br-lan, and until when it is preferred."""
        return {str(thing.address): thing.prefers_until for thing in self.node.wanted.things.values()
                if isinstance(thing, ddpd.Address)}

    def preferred(self, boot: float = T0) -> list[str]:
        return sorted(address for address, until in self.on_lan().items() if until > boot)


def notes(effects: list[ddpd.Effect]) -> list[str]:
    return [effect.text for effect in effects if isinstance(effect, ddpd.Note)]


def hooks(effects: list[ddpd.Effect]) -> list[tuple[str, str]]:
    return [(effect.grantor, effect.event) for effect in effects if isinstance(effect, ddpd.Hook)]


LAN_A, LAN_B = "2001:db8:a:100::1/64", "2001:db8:b:100::1/64"


# ==== an exit that dies ===============================================================


def test_what_is_not_renewed_in_time_fades_once_and_is_told() -> None:
    home = Home()
    home.answer("a", A)
    home.a.enter(State.REBINDING, float("inf"))
    assert home.a.deadline == pytest.approx(T0 + 59.99)                   # it wakes for that
    effects = home.node.on_timer(at(T0 + 60))
    assert any(note.startswith("faded grantor=a slot=0") for note in notes(effects))
    assert ("a", "faded") in hooks(effects)
    assert home.a.deadline > T0 + 60                                      # ... once
    assert LAN_A in home.on_lan()                                         # valid, and not removed
    again = home.answer("a", A, boot=T0 + 90)
    assert ("a", "bound") in hooks(again) and LAN_A in home.preferred(T0 + 90)


@pytest.mark.parametrize(("renew", "longest"), [(2, 8.0), (30, 30.0), (4000, 120.0)])
def test_a_lease_that_is_renewed_often_is_asked_for_often(renew: int, longest: float) -> None:
    """An exit with a short T1 that was away for an hour is found again soon."""
    home = Home()
    home.answer("a", A, preferred=3000, times=(renew, 3000))
    home.a.start_renewing(at(T0 + 10))
    for _ in range(12):
        home.a.ask_again(at(T0 + 20))
    assert home.a.patience_s == longest


@pytest.mark.parametrize("renew", [2, 5, 10, 20, 4000])
def test_that_a_grantor_is_silent_is_said_once(renew: int) -> None:
    home = Home()
    home.answer("a", A, preferred=3000, times=(renew, 3000))
    home.a.start_renewing(at(T0 + 10))
    said = [note for _ in range(30) for note in notes(home.a.ask_again(at(T0 + 20)))]
    assert len([note for note in said if note.startswith("silent")]) == 1


def test_what_comes_deprecated_has_faded_and_is_no_news_each_time() -> None:
    """Of a node whose own grantor is silent: it has nothing preferred to give."""
    home = Home()
    home.answer("a", A)
    home.answer("a", A, preferred=0, boot=T0 + 10)
    effects = home.answer("a", A, preferred=0, boot=T0 + 20)
    assert home.a.held[0].faded and ("a", "renewed") in hooks(effects)


def test_a_lease_that_is_over_before_its_answer_is_here_is_asked_for_again() -> None:
    home = Home()
    home.answer("a", A, trip=7200.0)
    assert home.a.held == [] and home.a.state is State.SEEKING and home.a.timer < T0 + 61


def test_a_prefix_around_an_address_that_is_asked_is_not_taken() -> None:
    """It would draw what goes to that grantor."""
    home = Home()
    assert home.node.taken("b", ddpd.parse_prefix("2001:db8::/64")) == "holds the address at which a is asked"
    assert home.node.taken("b", ddpd.parse_prefix("192.0.2.0/29")).startswith("overlaps 192.0.2.0/24")
    assert home.node.taken("b", B) == ""


@pytest.mark.parametrize("bad", ["::1", "ff02::1", "fe80::1", "127.0.0.1", "0.0.0.0", "255.255.255.255"])
def test_name_servers_that_are_nobodys_are_not_taken(bad: str) -> None:
    home = Home()
    good = ddpd.parse_host("2001:db8::53")
    home.answer("a", A, dns=(ddpd.parse_host(bad), good), ntp=(ddpd.parse_host(bad),), mtu=60000)
    assert home.a.options == {"dns": (good,), "mtu": 9000}


# ==== ranks ===========================================================================


def test_only_the_best_rank_that_lives_is_preferred() -> None:
    home = Home("rank = 1", "rank = 2")
    home.answer("b", B, A4)
    assert home.preferred() == ["10.1.7.1/24", LAN_B]
    effects = home.answer("a", A)
    assert ("b", "ranked") in hooks(effects) and "ranked grantor=b IPv6=waits" in notes(effects)
    assert home.preferred() == ["10.1.7.1/24", LAN_A]                      # IPv4 has only b
    assert LAN_B in home.on_lan()                                         # valid, to take over
    home.a.enter(State.REBINDING, float("inf"))
    home.answer("b", B, A4, boot=T0 + 30)
    effects = home.node.on_timer(at(T0 + 60))
    assert ("b", "ranked") in hooks(effects) and "ranked grantor=b IPv6=preferred" in notes(effects)
    assert home.preferred(T0 + 60) == ["10.1.7.1/24", LAN_B]
    home.answer("a", A, boot=T0 + 61)
    assert home.preferred(T0 + 61) == ["10.1.7.1/24", LAN_A]


@pytest.mark.parametrize(("a", "b"), [("", ""), ("rank = 1", ""), ("rank = 3", "rank = 3")])
def test_equal_ranks_and_none_leave_both_preferred(a: str, b: str) -> None:
    home = Home(a, b)
    home.answer("a", A)
    home.answer("b", B)
    assert home.preferred() == [LAN_A, LAN_B]


def test_the_nearest_by_its_round_trip_and_not_for_a_trifle() -> None:
    home = Home("rank = nearest", "rank = nearest")
    home.answer("a", A, trip=0.020)
    assert home.preferred() == [LAN_A]
    home.answer("b", B, trip=0.018)
    assert home.preferred() == [LAN_A]                                    # a tenth is no reason to move
    home.answer("b", B, trip=0.001)
    for _ in range(20):
        home.answer("b", B, trip=0.001)
    assert home.preferred() == [LAN_B]
    for _ in range(40):
        home.answer("b", B, trip=0.019)
    assert home.preferred() == [LAN_B]                                    # and back as little


def test_the_hook_and_status_know_who_waits() -> None:
    home = Home("rank = 1", "rank = 2")
    home.answer("a", A)
    home.answer("b", B)
    assert f"{B},0," in ddpd.environment_of(home.b, "bound", at(T0))["DDPD_PREFIXES"]
    [row] = ddpd.held_rows(home.b, at(T0))
    assert row["waits"] and row["preferred"] == 0
    assert ddpd.lifetimes(row)[0] == "waits"


# ==== the way =========================================================================


def way(dev: str = "up", via: str = "", source: str = "::", is_up: bool = True) -> ddpd.Way:
    return ddpd.Way(ddpd.Reach(via, dev), source, is_up)


GATES = (ddpd.Gateway(0, UP, ddpd.Reach("192.0.2.254", "up"), 4),
         ddpd.Gateway(1024, UP, ddpd.Reach("fe80::9", "up"), 6))


@pytest.mark.parametrize(("name", "found", "gates", "four", "six"), [
    ("a", way(via="fe80::1"), (), "", "via fe80::1 dev up"),                         # the router towards it
    ("a", way(), (), "", "via 2001:db8::a dev up"),                                  # a neighbour
    ("b", way(), GATES, "via 192.0.2.1 dev up", "via fe80::9 dev up"),               # ... of the other family
    ("b", way("br-lan"), GATES, "via 192.0.2.1 dev br-lan", ""),                     # none on that interface
    ("b", way("tun0"), GATES, "dev tun0", "dev tun0"),                               # a tunnel needs no next hop
])
def test_default_auto_is_the_way_of_the_asks(name: str, found: ddpd.Way, gates: tuple[ddpd.Gateway, ...], four: str,
                                             six: str) -> None:
    home = Home("default = auto", "default = auto")
    home.answer(name, A, A4)
    home.node.routed({("grantor", name): found}, gates, has_changed=False, now=at(T0))
    routes = {thing.prefix.version: ddpd.thing_reach(thing.reach) for thing in home.node.wanted.things.values()
              if isinstance(thing, ddpd.Route) and thing.table != ddpd.MAIN}
    assert routes == {version: reach for version, reach in ((4, four), (6, six)) if reach}
    rules = {thing.version for thing in home.node.wanted.things.values() if isinstance(thing, ddpd.Rule)}
    assert rules == set(routes)


def test_a_way_that_is_lost_leaves_the_default_route_as_it_was() -> None:
    home = Home("default = auto")
    home.answer("a", A)
    home.node.routed({("grantor", "a"): way(via="fe80::1")}, (), has_changed=False, now=at(T0))
    before = dict(home.node.wanted.things)
    home.node.routed({("grantor", "a"): None}, (), has_changed=True, now=at(T0))
    assert home.node.wanted.things == before


def test_what_was_known_of_the_other_family_stays_on_its_interface() -> None:
    """The IPv6 router is gone for a moment: what comes from the prefix must not leave by another exit."""
    home = Home(b="default = auto")
    home.node.routed({("grantor", "b"): way()}, GATES, has_changed=False, now=at(T0))
    home.node.routed({("grantor", "b"): way()}, (), has_changed=True, now=at(T0))
    assert home.b.reaches == {4: ddpd.Reach("192.0.2.1", "up"), 6: ddpd.Reach("fe80::9", "up")}
    home.node.routed({("grantor", "b"): way("br-lan")}, (), has_changed=True, now=at(T0))
    assert home.b.reaches == {4: ddpd.Reach("192.0.2.1", "br-lan")}


def test_rules_of_another_table_are_replaced_when_sections_move() -> None:
    """A table's number is the section's place: the old rule would send the packets of one through the other."""
    home = Home("default = dev up", "default = dev up")
    home.answer("a", A)

    def tables() -> list[int]:
        return [thing.table for thing in home.node.wanted.things.values()
                if isinstance(thing, ddpd.Rule) and thing.source == A]
    assert tables() == [720]
    home.node.reconfigure(ddpd.read_config("".join(reversed(home.sections)), "t"), at(T0))
    assert tables() == [721]


def test_a_restart_keeps_the_default_route_that_is_there() -> None:
    home = Home("default = auto", "default = dev up")
    there = [ddpd.Route(ddpd.parse_prefix("::/0"), home.a.table, ddpd.Reach("fe80::1", "up")),
             ddpd.Route(ddpd.parse_prefix("::/0"), home.b.table, ddpd.Reach("fe80::2", "up"))]
    home.node.adopt(there)
    assert home.a.reaches == {6: ddpd.Reach("fe80::1", "up")}
    assert home.b.reaches[6] == ddpd.Reach("", "up")                       # written down, not found


@pytest.mark.parametrize("more", ["default = dev tun0 redistribute", "default = via fe80::1 dev up redistribute"])
def test_redistribute_is_a_route_by_source_and_the_mtu_is_that_of_the_way(more: str) -> None:
    home = Home(more)
    home.answer("a", A, A4, mtu=1400)
    routes = [thing for thing in home.node.wanted.things.values() if isinstance(thing, ddpd.Route) and thing.mtu]
    assert {(route.table, str(route.source or "")) for route in routes} >= {(ddpd.MAIN, str(A)), (home.a.table, "")}
    assert all(route.mtu == 1400 for route in routes)
    assert not any(route.source for route in routes if route.prefix.version == 4)
    line = next(route.add_line(221, at(T0)) for route in routes if route.source)
    assert line.startswith(f"route replace ::/0 from {A} ") and line.endswith("metric 22100 mtu 1400")


@pytest.mark.parametrize(("before", "after", "asks"), [
    (None, way(), True),                                   # there was none
    (way(), way("tun0"), True),                            # another interface
    (way(), way("br-lan"), True),                          # ... and from an address of another one
    (way(is_up=False), way(), True),                       # the cable is in again
    (way(), way(), False), (way(), None, False), (way(), way(is_up=False), False)])
@pytest.mark.parametrize("state", [State.SEEKING, State.BOUND, State.RENEWING, State.REBINDING])
def test_who_is_reached_otherwise_is_asked_at_once(state: State, before: ddpd.Way | None, after: ddpd.Way | None,
                                                   asks: bool) -> None:
    home = Home()
    home.node.routed({("grantor", "a"): before}, (), has_changed=False, now=at(T0))
    home.a.enter(state, T0 + 500)
    effects = home.node.routed({("grantor", "a"): after}, (), has_changed=True, now=at(T0 + 1))
    assert (ddpd.Call("a") in effects) == asks
    assert (home.a.timer < T0 + 4) == asks                 # and patiently from the start again


def test_a_change_is_not_lost_because_somebody_looked_before_it_was_told() -> None:
    """Looked at because another grantor is asked elsewhere; that the network has changed is heard a moment later."""
    home = Home()
    home.node.routed({("grantor", "a"): way()}, (), has_changed=False, now=at(T0))
    assert ddpd.Call("a") not in home.node.routed({("grantor", "a"): way("tun0")}, (), has_changed=False, now=at(T0))
    assert ddpd.Call("a") in home.node.routed({("grantor", "a"): way("tun0")}, (), has_changed=True, now=at(T0))
    assert home.a.way == way("tun0", source=OWN)


def test_who_gave_everything_back_is_left_in_peace() -> None:
    home = Home()
    home.a.step(Event.RELEASE, at(T0))
    home.a.enter(State.RELEASED, float("inf"))
    assert ddpd.Call("a") not in home.node.routed({("grantor", "a"): way()}, (), has_changed=True, now=at(T0))


def test_a_default_router_that_goes_is_asked_no_more() -> None:
    home = Home()
    node = ddpd.Node(ddpd.read_config(f"[grantor a]\nkey = {ddpd.show_key(bytes([1]) * 32)}\naddress = gateway\n"
                                      "ask = ::/56\n", "t"), bytes(32), "boot", lambda n: b"\x80" * n)
    node.start(at(T0))
    node.resolved("a", "gateway", (), at(T0))
    assert node.grantees["a"].place() is None
    for gate, host in zip(GATES, ("::ffff:192.0.2.254", "fe80::9"), strict=True):
        effects = node.routed({}, (gate,), has_changed=True, now=at(T0 + 1))
        place = node.grantees["a"].place()
        assert place is not None and place.host == host and ddpd.Call("a") in effects
    assert home.node.gateways == ()

# ==== hooks ===========================================================================


def states(home: Home, style: str, *events: str) -> list[list[str]]:
    """The arguments of the calls that these events make, the grantee being as it is."""
    said: list[list[str]] = []
    last: ddpd.HookCall | None = None
    for event in events:
        for call in ddpd.HOOK_CALLS[style](home.a, event, last, at(T0)):
            said.append(call[0])
            last = call
    return said


def test_hooks_of_odhcp6c() -> None:
    home = Home()
    home.a.way = way()
    assert states(home, "odhcp6c", "started", "lost", "stopped") == [["up", "started"], ["up", "stopped"]]
    both = ddpd.parse_host("2001:db8::53"), ddpd.parse_host("192.0.2.53")
    home.answer("a", A, ddpd.parse_prefix("10.9.9.0/24"), mtu=1400, search=("corp.example",), dns=both, ntp=both)
    assert states(home, "odhcp6c", "started", "bound", "silent", "renewed", "rebound", "faded") == [
        ["up", each] for each in ("started", "bound", "updated", "rebound", "updated")]
    assert states(home, "odhcp6c", "bound", "renewed") == [["up", each] for each in ("started", "bound", "updated")]
    [_, (_, env)] = ddpd.HOOK_CALLS["odhcp6c"](home.a, "bound", None, at(T0))
    assert env["PREFIXES"] == f"{A},59,3599" and env["ADDRESSES"] == ""
    assert (env["RDNSS"], env["NTP_IP"], env["DOMAINS"], env["RA_MTU"], env["SERVER"]) == (
        "2001:db8::53", "2001:db8::53", "corp.example", "1400", "2001:db8::a")
    last = (["up", "bound"], env)
    home.a.held = []
    [(arguments, env)] = ddpd.HOOK_CALLS["odhcp6c"](home.a, "lost", last, at(T0))
    assert arguments == ["up", "unbound"] and env["PREFIXES"] == ""
    assert ddpd.HOOK_CALLS["odhcp6c"](home.a, "released", (arguments, env), at(T0)) == []


def named(table: str) -> set[str]:
    """What its first column has."""
    return {name for row in re.findall(r"(?m)^\| (`.*?) \|", table) for name in re.findall(r"`(\w+)`", row)}


def test_the_reference_names_every_variable_and_event() -> None:
    home = Home()
    home.a.way = way()
    server = ddpd.parse_host("2001:db8::53")
    home.answer("a", A, mtu=1400, dns=(server,), search=("a.b",), ntp=(server,))
    text = (Path(__file__).parent.parent / "docs/reference.md").read_text()
    events_table, _, variables_table = docs.chapter(text, "Hooks").partition("\n### Variables\n")
    wireguard = {f"DDPD_WG_{name}" for name in ("KEY", "ENDPOINT", "ALLOWED", "KEEPALIVE")}
    assert named(variables_table) == {*ddpd.environment_of(home.a, "bound", at(T0)), *wireguard}
    for name in ddpd.odhcp6c_calls(home.a, "bound", None, at(T0))[0][1]:
        assert f"`{name}`" in variables_table, name
    source = (Path(__file__).parent.parent / "ddpd.py").read_text()
    events = set(re.findall(r'Hook\([^,]*?name, "(\w+)"\)|self\.write_and_tell\(now, "(\w+)"', source))
    assert named(events_table) == {each for pair in events for each in pair if each} | {"bound", "renewed", "rebound",
                                                                                        "stopped"}


# ==== files for others ================================================================


def two(**more: Any) -> Home:
    """a and b, with name servers and a domain each."""
    home = Home(**more)
    home.answer("a", A, A4, dns=(ddpd.parse_host("2001:db8::53"), ddpd.parse_host("192.0.2.53")),
                search=("a.example",), mtu=1400)
    home.answer("b", B, dns=(ddpd.parse_host("2001:db8::53"), ddpd.parse_host("2001:db8:b::53")), search=("b.example",))
    return home


def texts(home: Home, lost: tuple[ddpd.Subnet, ...] = (), boot: float = T0) -> dict[str, str]:
    grantees = home.node.grantees.values()
    return {kind: text_of(grantees, lost, at(boot)) for kind, text_of in ddpd.HANDED_TEXTS.items()}


def test_a_resolver_file() -> None:
    assert texts(two())["resolv"] == ("search a.example b.example\nnameserver 2001:db8::53\n"
                                      "nameserver 192.0.2.53\nnameserver 2001:db8:b::53\n")
    servers = ["server=2001:db8::53", "server=192.0.2.53", "server=2001:db8:b::53"]
    assert texts(two())["dnsmasq"].splitlines() == servers, "neither is preferred, and either could name any domain"
    home = two()
    home.b.leads = frozenset({6})
    assert texts(home)["dnsmasq"].splitlines() == ["server=/b.example/2001:db8::53", "server=/b.example/2001:db8:b::53",
                                                   *servers]


def test_a_dead_exits_name_servers_are_asked_only_if_there_are_no_others() -> None:
    home = two()
    for held in home.a.held:
        held.faded = True
    assert texts(home)["resolv"] == "search b.example\nnameserver 2001:db8::53\nnameserver 2001:db8:b::53\n"
    for held in home.b.held:
        held.faded = True
    assert texts(home)["resolv"] == texts(two())["resolv"]
    home.a.held, home.b.held = [], []
    assert texts(home)["resolv"] == texts(home)["dnsmasq"] == ""


def test_radvd_is_told_what_is_left_and_what_is_lost() -> None:
    home = two()
    home.b.deprecate(home.b.held[0], at(T0))
    home.node.follow_changes(at(T0))
    lost = ("br-lan", ddpd.parse_prefix("2001:db8:c::/64"))
    said = texts(home, (lost,), T0 + 9)["radvd"]
    assert ("prefix 2001:db8:a:100::/64 { AdvPreferredLifetime 50; AdvValidLifetime 3590; "
            "DecrementLifetimes on; };") in said
    assert "prefix 2001:db8:b:100::/64 { AdvPreferredLifetime 0; AdvValidLifetime 3590; };" in said
    assert "prefix 2001:db8:c::/64 { AdvOnLink off; AdvPreferredLifetime 0; AdvValidLifetime 0; };" in said
    assert "AdvLinkMTU 1400" in said and "RDNSS 2001:db8::53 { }" in said and "AdvDefaultLifetime" not in said
    assert set(ddpd.announced_in(said)) == {("br-lan", A.network(64)), ("br-lan", B.network(64))}
    home.a.held, home.b.held = [], []
    assert texts(home)["radvd"] == "interface br-lan { AdvSendAdvert on; AdvDefaultLifetime 0;\n};\n"


@pytest.mark.parametrize(("prefix", "first_last"), [
    ("10.1.7.0/24", "10.1.7.2,10.1.7.254,255.255.255.0"), ("10.1.0.0/22", "10.1.0.2,10.1.3.254,255.255.252.0"),
    ("10.1.7.4/30", "10.1.7.6,10.1.7.6,255.255.255.252"), ("10.1.7.4/31", ""), ("10.1.7.4/32", "")])
def test_dhcp_serves_all_of_an_ipv4_subnet_but_our_own_address(prefix: str, first_last: str) -> None:
    home = Home(ask=f"::/56\n  0.0.0.0/{prefix.partition('/')[2]} on br-lan")
    home.answer("a", ddpd.parse_prefix(prefix), dns=(ddpd.parse_host("192.0.2.53"),), mtu=1400)
    said = texts(home)["dhcp"]
    assert (f"interface=br-lan\ndhcp-range={first_last},300s\n" in said) == bool(first_last)
    assert ("dhcp-range" in said) == bool(first_last)
    assert "dhcp-option=option:dns-server,192.0.2.53\n" in said and "dhcp-option=option:mtu,1400\n" in said
    assert "dhcp-range" not in texts(home, boot=T0 + 61)["dhcp"]           # faded: nobody new


@pytest.mark.parametrize("kind", ["radvd", "dhcp", "dnsmasq"])
def test_the_programs_themselves_take_the_files(kind: str, tmp_path: Path) -> None:
    """... of grantors that tell whatever they may."""
    import shutil
    if not shutil.which("radvd" if kind == "radvd" else "dnsmasq"):
        pytest.skip(f"no program for {kind}")
    file = tmp_path / kind
    home = two()
    many = tuple(ddpd.parse_host(f"2001:db8:{version}::{n}") for n in range(1, 9) for version in (5, 6))
    home.answer("b", B, dns=many, search=("on", "off", "prefix", "RDNSS", "infinity", "1", "b.example"), mtu=9000)
    file.write_text(ddpd.OUR_FILE + texts(home, (("br-lan", ddpd.parse_prefix("2001:db8:c::/64")),))[kind])
    command = {"radvd": ["radvd", "--configtest", "--config", file], "dhcp": ["dnsmasq", "--test", "-C", file],
               "dnsmasq": ["dnsmasq", "--test", "-C", file]}[kind]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_own_file_is_whole_and_never_somebody_elses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "folder" / "resolv.conf"

    def write(text: str) -> None:
        ddpd.write_own(str(path), lambda _: ddpd.OUR_FILE + text)

    for text in "one\n", "":
        write(text)
        assert path.read_text() == ddpd.OUR_FILE + text
        assert [each.name for each in path.parent.iterdir()] == ["resolv.conf"]
    path.write_text("prefix 2001:db8::1/64 by hand\n")     # though it was ours a moment ago
    write("two\n")
    assert path.read_text() == "prefix 2001:db8::1/64 by hand\n"
    assert "there is a file that ddpd has not made" in capfd.readouterr().err
    path.unlink()
    (tmp_path / "elsewhere").write_text("precious")
    (path.parent / f"resolv.conf.{os.getpid()}").symlink_to(tmp_path / "elsewhere")
    write("three\n")
    assert (tmp_path / "elsewhere").read_text() == "precious"
    path.unlink(missing_ok=True)
    path.mkdir()
    write("four\n")
    assert path.is_dir() and [each.name for each in path.parent.iterdir()] == ["resolv.conf"]
