"""The peers of a WireGuard interface as grantees: whose entries are whose, and that those of others stay."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from itertools import chain
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import ddpd
from ddpd import AllowedIp, Prefix, WgPeer, WgState, parse_prefix

KEYS = [ddpd.keypair(bytes([n]) * 32).public for n in range(1, 11)]
A, B, C = KEYS[:3]
HUB = ddpd.keypair(bytes(range(32))).public
POOLS = """
[pool six]
prefix   = 2001:db8:42::/48
give     = /56-/64 /128
lifetime = 1h
[pool four]
prefix   = 10.9.0.0/24
give     = /32
lifetime = 1h
"""
WG = "[wireguard wg0]\npools = six four\nlimit = 3\nrate = 1000/1s\n"
ETH0 = bytes(16) + (2).to_bytes(4, "little")


def grantee(name: str, key: bytes, more: str = "") -> str:
    return f"[grantee {name}]\nkey = {ddpd.show_key(key)}\npools = six four\n{more}\n"


class World:
    """A node, and an interface that routes as WireGuard does: an entry has one peer, who says it last has it."""

    def __init__(self, text: str = POOLS + WG, peers: Iterable[bytes] = ()) -> None:
        self.text, self.boot, self.stamp = text, 1000.0, 0
        self.table: dict[bytes, list[Prefix]] = {key: [] for key in peers}
        self.installed: dict[ddpd.Key, ddpd.Thing] = {}
        self.calls = 0
        self.start([])

    @property
    def now(self) -> ddpd.Now:
        return ddpd.Now(self.boot, self.boot + 1e9)

    def start(self, records: list[Any]) -> None:
        """A new program; the interface is as it was."""
        self.node = ddpd.Node(ddpd.read_config(self.text, "t"), bytes(range(32)), "boot", random.Random(1).randbytes)
        self.node.links = self.node.grantor.links = ddpd.Links({1: "lo", 2: "eth0", 3: "wg0"})
        assert not self.node.restore(records, self.now)
        self.installed = {key: thing for key, thing in self.node.made.items() if self.has(thing)}
        self.node.start(self.now)
        self.node.wanted.changed |= self.installed.keys() | self.node.wanted.things.keys()
        self.look()

    def restart(self, clean: bool) -> None:
        file = ddpd.LeaseFile()
        data = b"".join(file.whole(self.node.records(clean, self.now)))
        found, damage = ddpd.parse_lease_file(data.decode().split("\n"))
        assert not damage
        self.start([record for _, record in found.values()])

    def has(self, thing: ddpd.Thing) -> bool:
        if isinstance(thing, AllowedIp):
            return thing.prefix in self.table.get(thing.key, ())
        return isinstance(thing, WgPeer) and thing.key in self.table

    def say(self, key: bytes, allowed: Iterable[Prefix]) -> None:
        """`wg set wg0 peer KEY allowed-ips ...`"""
        new = list(dict.fromkeys(allowed))
        for other, had in self.table.items():
            self.table[other] = [prefix for prefix in had if other == key or prefix not in new]
        self.table[key] = new

    def state(self) -> WgState:
        return WgState(HUB, 51820, {key: tuple(allowed) for key, allowed in self.table.items()})

    def look(self, times: int = 1) -> list[ddpd.Effect]:
        effects: list[ddpd.Effect] = []
        for _ in range(times):
            self.boot += ddpd.PEERS_S
            effects += self.node.handle_peers("wg0", self.state(), self.now)
            lost = {key for key, thing in self.installed.items() if not self.has(thing)}
            self.installed = {key: thing for key, thing in self.installed.items() if key not in lost}
            self.node.wanted.changed |= lost
            self.perform()
        return effects

    def perform(self) -> None:
        """As the installer does: what is foreign is not taken for ours, what is ours is written down before it is."""
        wanted = self.node.wanted
        things = {key: thing for key, thing in wanted.things.items() if isinstance(thing, WgPeer | AllowedIp)}
        gone, new = ddpd.plan(self.installed, things, chain(self.installed, things))
        wanted.changed.clear()
        self.write([(n, thing, False) for n, thing in enumerate(gone)])
        new = [thing for thing in new if thing.id in self.node.made or not self.has(thing)]
        new = [thing for thing in new if not isinstance(thing, AllowedIp) or thing.key in self.table
               or WgPeer("wg0", thing.key).id in things]
        self.node.made |= {thing.id: thing for thing in new}
        self.write([(n, thing, True) for n, thing in enumerate(new)])
        self.installed = {key: thing for key, thing in things.items() if key in self.node.made and self.has(thing)}
        self.node.made = {key: thing for key, thing in self.node.made.items() if self.has(thing)}

    def write(self, changes: list[tuple[int, Any, bool]]) -> None:
        """Through the text of `wg addconf`, and what that does."""
        lists, removed, _ = ddpd.peer_list(self.state().peers, changes)
        self.calls += bool(lists) + bool(removed)
        for part in ddpd.addconf_text(lists).split("[Peer]\n")[1:]:
            key, *rows = (line.partition(" = ")[2] for line in part.splitlines())
            self.say(ddpd.public_key(key), map(parse_prefix, rows))
        for key_ in removed:
            del self.table[key_]

    def ask(self, key: bytes, *wants: str, releases: tuple[int, ...] = ()) -> ddpd.Answer:
        self.stamp += 1
        peer = self.node.grantor.peer_of(key)
        assert peer is not None, "a stranger"
        ask = ddpd.Ask(stamp=self.stamp, run=key[:8], releases=releases,
                       wants=tuple(ddpd.Want(n, parse_prefix(text)) for n, text in enumerate(wants)))
        answer, _ = self.node.grantor.handle_ask(peer, ask, ddpd.Path("192.0.2.9", 5000, 0, ETH0), self.now)
        self.perform()
        return answer

    def get(self, key: bytes, *wants: str) -> list[Prefix]:
        return [grant.prefix for grant in self.ask(key, *wants).grants if grant.current]

    def later(self, s: float) -> None:
        self.boot += s
        while self.node.deadline <= self.boot:
            self.node.on_timer(self.now)
        self.perform()

    def living(self) -> dict[Prefix, bytes]:
        return {lease.prefix: lease.key for lease in self.node.grantor.stock.leased.values() if lease.living}

    def ours(self) -> dict[Prefix, bytes]:
        return {thing.prefix: thing.key for thing in self.node.made.values() if isinstance(thing, AllowedIp)}

# ---- leases


def test_a_peer_is_a_grantee_and_its_lease_an_allowed_ip() -> None:
    world = World(peers=[A, B])
    foreign = [parse_prefix("fd00::1"), parse_prefix("10.1.0.0/16")]
    world.say(A, foreign)
    world.look()
    [six, four] = world.get(A, "::/56", "0.0.0.0/32")
    assert world.table == {A: [*foreign, four, six], B: []}
    route = world.node.wanted.things[ddpd.Route(six, ddpd.MAIN).id]
    assert route == ddpd.Route(six, ddpd.MAIN, ddpd.Reach("", "wg0"))
    world.ask(A, releases=(0, 1))
    assert world.table == {A: foreign, B: []} and route.id not in world.node.wanted.things


def test_what_a_tunnel_needs_is_told() -> None:
    world = World(POOLS + WG + "endpoint = vpn.example.net\nallowed = fd00::/8\nkeepalive =\n", [A])
    answer = world.ask(A, "::/56")
    assert (answer.wg_key, answer.wg_endpoint, answer.wg_allowed, answer.wg_keepalive) == (
        HUB, "vpn.example.net:51820", (parse_prefix("fd00::/8"),), None)
    world = World(POOLS + WG + "endpoint = [2001:db8::1]:4500\n", [A])
    assert world.ask(A, "::/56").wg_endpoint == "[2001:db8::1]:4500"
    world = World(peers=[A])
    answer = world.ask(A, "::/56")
    assert (answer.wg_endpoint, answer.wg_keepalive) == (":51820", 25)
    assert answer.wg_allowed == (parse_prefix("0.0.0.0/0"), parse_prefix("::/0"))


@pytest.mark.parametrize(("asked_at", "endpoint"), [
    ("::ffff:192.0.2.1", "192.0.2.1:51820"), ("2001:db8::1", "[2001:db8::1]:51820"), ("::", ":51820")])
def test_the_endpoint_is_where_was_asked(asked_at: str, endpoint: str) -> None:
    world = World(peers=[A])
    peer = world.node.grantor.peer_of(A)
    assert peer is not None
    ask = ddpd.Ask(stamp=1, run=A[:8], wants=(ddpd.Want(0, parse_prefix("::/56")),))
    path = ddpd.Path("2001:db8:e::2", 5000, 0, socket.inet_pton(socket.AF_INET6, asked_at) + (2).to_bytes(4, "little"))
    assert world.node.grantor.handle_ask(peer, ask, path, world.now)[0].wg_endpoint == endpoint


def test_who_asks_through_the_tunnel_is_not_told_where_it_is() -> None:
    world = World(peers=[A])
    peer = world.node.grantor.peer_of(A)
    assert peer is not None
    ask = ddpd.Ask(stamp=1, run=A[:8], wants=(ddpd.Want(0, parse_prefix("::/56")),))
    inside = ddpd.Path("fd00::1", 5000, 0, bytes(16) + (3).to_bytes(4, "little"))
    assert world.node.grantor.handle_ask(peer, ask, inside, world.now)[0].wg_endpoint is None


@pytest.mark.parametrize("entry", ["2001:db8:42::/48", "2001:db8:40::/44", "2001:db8:42:5500::/64"])
def test_what_others_have_is_reserved(entry: str) -> None:
    """Of the pool nothing that overlaps it is given, to nobody."""
    world = World(POOLS.replace("/48", "/55").replace("42::", "42:5400::") + WG, [A, B])
    world.say(B, [parse_prefix(entry)])
    world.look()
    given = world.get(A, "::/56")
    assert given == ([parse_prefix("2001:db8:42:5400::/56")] if entry.endswith("/64") else [])
    assert world.table[B] == [parse_prefix(entry)]


def test_a_default_route_reserves_nothing() -> None:
    world = World(peers=[A, B])
    world.say(B, [parse_prefix("::/0"), parse_prefix("0.0.0.0/0")])
    world.look()
    assert len(world.get(A, "::/56", "0.0.0.0/32")) == 2


def test_a_pin_that_is_another_peers_is_refused() -> None:
    pin = parse_prefix("10.9.0.7")
    world = World(POOLS + WG + grantee("alice", A, "pin = 10.9.0.7\nlengths = /128"), [A, B])
    world.say(B, [pin])
    world.look()
    [refused] = world.ask(A, "0.0.0.0/32").refusals
    assert refused.text == "the pinned prefix overlaps an allowed IP of another peer" and world.table[B] == [pin]
    world.say(B, [])
    world.look()
    assert world.get(A, "0.0.0.0/32") == [pin]


def test_an_own_entry_written_by_hand_stays_by_hand() -> None:
    """It has the pin already: nothing is added, and nothing goes when the lease ends."""
    pin = parse_prefix("10.9.0.7")
    world = World(POOLS + WG + grantee("alice", A, "pin = 10.9.0.7"), [A])
    world.say(A, [pin])
    world.look()
    assert world.get(A, "0.0.0.0/32") == [pin] and not world.ours()
    world.ask(A, releases=(0,))
    assert world.table[A] == [pin]


def test_our_own_address_on_the_interface_is_reserved() -> None:
    world = World(POOLS.replace("10.9.0.0/24", "10.9.0.0/30") + WG, [A, B])
    world.node.grantor.links = ddpd.Links({3: "wg0"}, ((3, ddpd.parse_interface("10.9.0.1/30")),))
    world.look()
    assert world.get(A, "0.0.0.0/32") == [parse_prefix("10.9.0.2")] and not world.get(B, "0.0.0.0/32")


def test_what_is_given_to_another_by_hand_ends() -> None:
    world = World(peers=[A, B])
    [six] = world.get(A, "::/56")
    world.say(B, [six])
    world.look()
    assert not world.living() and world.table == {A: [], B: [six]}
    assert was_nudged(world, A), "it is told to ask again"
    [other] = world.get(A, "::/56")
    assert other != six


# ---- peers come and go


def test_who_is_removed_has_no_leases() -> None:
    world = World(peers=[A, B])
    world.get(A, "::/56")
    world.get(B, "::/56")
    del world.table[A]
    world.look()
    assert world.node.grantor.peer_of(A) is None, "it may not ask"
    assert A in world.living().values(), "once is not enough: perhaps it is just being written anew"
    world.look()
    assert list(world.living().values()) == [B]


def test_who_went_while_the_program_was_away() -> None:
    world = World(peers=[A, B])
    world.get(A, "::/56")
    del world.table[A]
    world.restart(clean=False)
    assert A in world.living().values()
    world.look()
    assert not world.living() and world.table == {B: []}


def test_own_terms_for_one_peer() -> None:
    world = World(POOLS + WG + grantee("alice", A, "limit = 1\nlengths = /64"), [A, B])
    assert [refused.reason for refused in world.ask(A, "::/56").refusals] == [ddpd.Reason.LENGTH]
    assert [prefix.length for prefix in world.get(A, "::/64")] == [64] and len(world.table[A]) == 1
    del world.table[A]
    world.look(2)
    assert not world.living()


def test_a_route_of_its_own_is_no_business_of_wireguard() -> None:
    world = World(POOLS + WG + grantee("alice", A, "route = dev eth0"), [A])
    [six] = world.get(A, "::/56")
    assert world.table == {A: []} and six in world.living()


def test_added_peers() -> None:
    """Who is granted something is a peer, until that ends; who was one before stays one."""
    world = World(POOLS + WG + "add_peers = yes\n" + grantee("alice", A) + grantee("bob", B), [B])
    [six] = world.get(A, "::/56")
    world.get(B, "::/56")
    assert world.table[A] == [six]
    world.later(1800)
    world.get(A, "::/56", "0.0.0.0/32")
    world.ask(A, releases=(0,))
    assert len(world.table[A]) == 1
    world.ask(A, releases=(1,))
    world.later(4000)
    assert world.table == {B: []}


def test_only_one_interface_adds_peers() -> None:
    two = WG + "add_peers = yes\n"
    with pytest.raises(ddpd.ConfigError, match=r"\[wireguard wg1\] add_peers: \[wireguard wg0\] adds them already"):
        ddpd.read_config(POOLS + two + two.replace("wg0", "wg1"), "f")


@pytest.mark.parametrize("how", ["reload", "restart"])
def test_a_new_key_has_the_leases_of_the_old_one(how: str) -> None:
    world = World(peers=[A, C])
    [six] = world.get(A, "::/56")
    world.text += grantee("alice", B, f"was = {ddpd.show_key(A)}")
    if how == "reload":
        world.node.reconfigure(ddpd.read_config(world.text, "t"), world.now)
        world.perform()
    else:
        world.restart(clean=True)
    world.table[B] = []                                           # `wg set`: after, as somebody has to be first
    world.look()
    assert world.living() == {six: B} and world.table == {A: [], B: [six], C: []}
    assert world.get(B, "::/56") == [six]
    assert world.node.grantor.peer_of(A) is None, "the old key is nobody's"
    del world.table[A]
    world.look(3)
    assert world.living() == {six: B}
    world.restart(clean=True)
    assert world.living() == {six: B}


def test_a_section_that_goes_takes_its_leases_along() -> None:
    world = World(peers=[A])
    world.say(A, [parse_prefix("fd00::1")])
    world.look()
    world.get(A, "::/56")
    world.node.reconfigure(ddpd.read_config(POOLS, "t"), world.now)
    world.perform()
    assert not world.living() and world.table == {A: [parse_prefix("fd00::1")]}


def test_who_is_removed_by_hand_is_not_added_again() -> None:
    """Only whom the operator has named is added."""
    world = World(POOLS + WG + "add_peers = yes\n" + grantee("alice", A), [B])
    world.get(A, "::/56")
    world.get(B, "::/56")
    del world.table[B]
    world.look(4)
    assert list(world.living().values()) == [A] and list(world.table) == [A]
    del world.table[A]
    world.look(4)
    assert list(world.living().values()) == [A] and len(world.table[A]) == 1, "this one comes back"


def test_a_peer_that_others_need_too_stays() -> None:
    """It was added; somebody has given it something besides."""
    world = World(POOLS + WG + "add_peers = yes\n" + grantee("alice", A))
    [six] = world.get(A, "::/56")
    other = parse_prefix("192.168.7.0/24")
    world.say(A, [six, other])
    world.look()
    world.ask(A, releases=(0,))
    assert world.table == {A: [other]}


def test_who_is_written_anew_step_by_step_has_lost_nothing() -> None:
    """Each step is an event, at which we look at once."""
    world = World(peers=[A])
    [six] = world.get(A, "::/56")
    del world.table[A]
    for _ in range(9):
        world.node.handle_peers("wg0", world.state(), world.now)
        world.boot += 0.2
    world.table[A] = []
    world.look(2)
    assert world.living() == {six: A} and world.table == {A: [six]}


@pytest.mark.parametrize("between", ["reload", "away"])
def test_who_has_gone_is_missed_whatever_happens_between(between: str) -> None:
    world = World(peers=[A, B])
    world.get(A, "::/56")
    del world.table[A]
    world.look()
    if between == "reload":
        world.node.reconfigure(ddpd.read_config(world.text, "t"), world.now)
    else:
        world.node.handle_peers("wg0", None, world.now)
    world.look(2)
    assert not world.living()


def test_while_the_interface_is_away_leases_are_renewed_as_they_were() -> None:
    """And what others have there stays reserved."""
    world = World(POOLS.replace("10.9.0.0/24", "10.9.0.0/30") + WG, [A, B])
    world.say(B, [parse_prefix("10.9.0.1"), parse_prefix("10.9.0.2")])
    world.look()
    [six] = world.get(A, "::/56")
    world.node.handle_peers("wg0", None, world.now)
    assert world.get(A, "::/56") == [six] and not world.get(A, "::/56", "0.0.0.0/32")[1:]
    [lease] = [lease for lease in world.node.grantor.stock.leased.values() if lease.living]
    assert lease.reach == ddpd.Reach("", "wg0")
    world.look()
    assert world.table[A] == [six]


def was_nudged(world: World, key: bytes) -> bool:
    """Since it was asked the last time."""
    peer = world.node.grantor.peers[key]
    nudged, peer.nudged = peer.nudged, 0
    return nudged > 0


def test_who_has_a_tunnel_is_told_that_it_is_another_one() -> None:
    """Another port, another endpoint, ...: told at once, as any renumbering."""
    world = World(peers=[A])
    world.get(A, "::/56")
    world.look()
    assert not was_nudged(world, A), "nothing has changed"
    world.node.reconfigure(ddpd.read_config(world.text + "allowed = fd00::/8\n", "t"), world.now)
    world.look()
    assert was_nudged(world, A)
    world.node.handle_peers("wg0", world.state()._replace(port=4567), world.now)
    assert was_nudged(world, A) and world.ask(A, "::/56").wg_endpoint == ":4567"


@pytest.mark.parametrize("before", ["", "no such section"])
def test_a_section_that_comes_makes_peers_of_who_has_leases(before: str) -> None:
    text = POOLS + grantee("alice", A)
    world = World(text + WG + "add_peers = yes\n")
    if before:
        world.get(A, "::/56")
    world.node.reconfigure(ddpd.read_config(text, "t"), world.now)
    world.perform()
    world.get(A, "::/56")
    assert world.table == {}
    world.node.reconfigure(ddpd.read_config(world.text, "t"), world.now)
    world.look()
    assert was_nudged(world, A)
    [six] = world.get(A, "::/56")
    assert world.table == {A: [six]}


def test_who_becomes_a_peer_is_told_to_ask() -> None:
    world = World(POOLS + WG + grantee("alice", A), [B])
    [six] = world.get(A, "::/56")
    world.table[A] = []
    world.look()
    assert was_nudged(world, A) and world.get(A, "::/56") == [six] and world.table[A] == [six]


def test_a_pin_that_is_moved_by_hand() -> None:
    pin = parse_prefix("10.9.0.7")
    world = World(POOLS + WG + grantee("alice", A, "pin = 10.9.0.7"), [A, B])
    world.say(A, [pin])
    world.look()
    world.get(A, "0.0.0.0/32")
    world.say(B, [pin])
    world.look()
    assert not world.living() and world.table == {A: [], B: [pin]}


def test_what_wg_quick_has_saved_is_ours_after_a_reboot() -> None:
    """With SaveConfig the table of before is there again; what we had made of it goes when its lease ends."""
    world = World(peers=[A])
    foreign = ddpd.parse_prefix("192.0.2.7/32")
    world.table[A].append(foreign)
    assert len(world.get(A, "::/56")) == 1
    records = [record for record in world.node.records(True, world.now) if record["kind"] != "granted"]
    for record in records:
        record.update({"boot": "another"} if record["kind"] == "run" else {})
    world.start(records)
    assert not world.node.made and world.table == {A: [foreign]}


@pytest.mark.parametrize(("was", "says"), [
    (A, "[grantee alice] was: the key of [grantee alice], too"),
    (B, "[grantee alice] was: the key of [grantee bob], too")])
def test_a_key_is_of_one(was: bytes, says: str) -> None:
    text = POOLS + grantee("alice", A, f"was = {ddpd.show_key(was)}") + grantee("bob", B)
    with pytest.raises(ddpd.ConfigError) as wrong:
        ddpd.read_config(text, "f")
    assert says in str(wrong.value)


def test_one_interface_is_not_made_twice() -> None:
    tunnel = f"[grantor h]\nkey = {ddpd.show_key(A)}\naddress = h\nask = ::/56\n[tunnel wg0]\ngrantor = h\n"
    with pytest.raises(ddpd.ConfigError, match=r"\[wireguard wg0\]: \[tunnel wg0\] makes it"):
        ddpd.read_config(POOLS + WG + "add_peers = yes\n" + tunnel, "f")
    ddpd.read_config(POOLS + WG + "add_peers = yes\nlisten = none\n" + tunnel, "f")


def test_what_was_reserved_is_free_again_without_the_section() -> None:
    """And nobody is reached through the interface any more."""
    world = World(POOLS.replace("/48", "/56") + WG + grantee("bob", B), [A, B])
    world.say(A, [parse_prefix("2001:db8:42::/56")])
    world.look()
    assert not world.get(B, "::/56")
    world.node.reconfigure(ddpd.read_config(POOLS.replace("/48", "/56") + grantee("bob", B), "t"), world.now)
    [six] = world.get(B, "::/56")
    [lease] = [lease for lease in world.node.grantor.stock.leased.values() if lease.prefix == six]
    assert lease.reach is None and world.table[B] == []


def test_what_the_status_shows() -> None:
    world = World(POOLS + WG + "add_peers = yes\n" + grantee("bob", B), [A])
    world.say(A, [parse_prefix("fd00::1")])
    world.look()
    world.get(A, "::/56")
    world.get(B, "0.0.0.0/32")
    world.look()
    said = ddpd.status_of(world.node, world.now, 9)
    assert said["wireguard"] == [{
        "interface": "wg0", "state": "there", "public_key": ddpd.show_key(HUB), "port": 51820, "peers": 2,
        "added_peers": 1, "allowed_ips": 3, "leased_ips": 2, "made": False}]
    rows = [" ".join(line.split()) for line in ddpd.status_text(said, colours=False).splitlines()]
    assert "wireguard wg0 there 51820 2 1 3 2" in rows
    world.node.handle_peers("wg0", None, world.now)
    assert "wireguard wg0  not there" in ddpd.status_text(ddpd.status_of(world.node, world.now, 9), colours=False)


def test_hundreds_of_peers_are_written_in_one_go() -> None:
    keys = [ddpd.digest(bytes((n // 256, n % 256))) for n in range(300)]
    world = World(POOLS.replace("/24", "/16").replace("10.9", "10.8") + WG, keys)
    for key in keys:
        world.get(key, "::/64")
    for key in keys:                                              # somebody has put a file in place anew
        world.table[key] = []
    world.calls = 0
    world.restart(clean=True)
    assert world.calls == 1 and all(len(allowed) == 1 for allowed in world.table.values())


# ---- whatever happens

PREFIXES = st.sampled_from([parse_prefix(text) for text in (
    "::/0", "0.0.0.0/0", "2001:db8::/32", "2001:db8:42:8000::/49", "2001:db8:42:1000::/56", "2001:db8:42:2000::/64",
    "2001:db8:42:3000::7", "10.9.0.0/28", "10.9.0.77", "10.9.0.78", "10.1.0.0/16", "fd00:1::/64",
    "fd00:1::1", "fe80::7")])
NAMED = KEYS[4:8]                                                 # of these, some are added
PEERS = st.integers(0, len(KEYS) - 1).map(KEYS.__getitem__)


class Operators(RuleBasedStateMachine):
    """Ten peers, an operator with `wg`, grantees that ask, a program that crashes: a model says what is whose."""

    def __init__(self) -> None:
        super().__init__()
        named = "".join(grantee(f"named{n}", key, "limit = 3\nrate = 1000/1s") for n, key in enumerate(NAMED))
        self.world = World(POOLS + WG + "add_peers = yes\n" + named, KEYS[:6])
        self.foreign: dict[bytes, list[Prefix]] = {key: [] for key in KEYS[:6]}

    @rule(key=PEERS, want=st.sampled_from(["::/56", "::/60", "::/64", "::/128", "0.0.0.0/32"]))
    def ask(self, key: bytes, want: str) -> None:
        if self.world.node.grantor.peer_of(key) is not None:
            self.world.ask(key, want)

    @rule(key=PEERS)
    def release(self, key: bytes) -> None:
        if self.world.node.grantor.peer_of(key) is not None:
            self.world.ask(key, releases=(0, 1, 2))

    @rule(key=PEERS, prefix=PREFIXES, at=st.integers(0, 5))
    def write_by_hand(self, key: bytes, prefix: Prefix, at: int) -> None:
        """As `wg` has it: the entry leaves whom it was of."""
        if key not in self.world.table or prefix in self.world.table[key]:
            return
        for other in self.foreign.values():
            if prefix in other:
                other.remove(prefix)
        self.world.say(key, [*self.world.table[key][:at], prefix, *self.world.table[key][at:]])
        ours = set(self.world.ours())
        self.foreign[key] = [entry for entry in self.world.table[key] if entry == prefix or entry not in ours]
        self.world.look()

    @rule(key=PEERS, at=st.integers(0, 5))
    def strike_by_hand(self, key: bytes, at: int) -> None:
        """Any of its entries, one of ours too: that comes back."""
        listed = self.world.table.get(key, [])
        if at < len(listed):
            entry = listed[at]
            self.world.say(key, [other for other in listed if other != entry])
            if entry in self.foreign[key]:
                self.foreign[key].remove(entry)
            self.world.look()

    @rule(key=PEERS)
    def add_peer(self, key: bytes) -> None:
        if key not in self.world.table:
            self.world.table[key], self.foreign[key] = [], []
            self.world.look()

    @rule()
    def go_away_and_come_back(self) -> None:
        self.world.node.handle_peers("wg0", None, self.world.now)
        self.world.look()

    @rule()
    def reload(self) -> None:
        self.world.node.reconfigure(ddpd.read_config(self.world.text, "t"), self.world.now)
        self.world.look()

    @precondition(lambda self: len(self.world.table) > 3)
    @rule(key=PEERS)
    def remove_peer(self, key: bytes) -> None:
        if key in self.world.table:
            del self.world.table[key], self.foreign[key]
            self.world.look(2)
            assert key in NAMED or key not in self.world.living().values()

    @rule(s=st.sampled_from([10.0, 1000.0, 2500.0, 8000.0]))
    def wait(self, s: float) -> None:
        self.world.later(s)

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        self.world.restart(clean)

    @invariant()
    def what_is_foreign_is_as_it_was_and_ours_are_the_leases(self) -> None:
        ours = self.world.ours()
        for key, listed in self.world.table.items():
            assert [entry for entry in listed if ours.get(entry) != key] == self.foreign.setdefault(key, [])
        self.foreign = {key: self.foreign[key] for key in self.world.table}
        assert {*self.world.living().values()} <= {*self.world.table}
        there = {(key, entry) for key, listed in self.world.table.items() for entry in listed}
        foreign = {(key, entry) for key, listed in self.foreign.items() for entry in listed}
        leased = {(key, prefix) for prefix, key in self.world.living().items()}
        assert there - foreign == leased - foreign


Operators.TestCase.settings = settings(max_examples=8, stateful_step_count=500, deadline=None)
TestOperators = pytest.mark.slow(Operators.TestCase)
