"""A tunnel from a lease: what is made of what a grantor says, and what of it is not believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import ddpd
from ddpd import Interface, Path, Reach, Route, parse_prefix
from test_grantee import P1, T0, Leaf, at, grant

KEY = bytes(range(32, 64))
TUNNEL = "[tunnel wg0]\ngrantor = h\nroutes = fd00:9::/64 10.9.0.0/16\nmtu = 1380\n"
TOLD: dict[str, Any] = {"wg_key": KEY, "wg_endpoint": ":51820", "wg_allowed": (parse_prefix("::/0"),),
                        "wg_keepalive": 25}
MADE = Interface("wg0", KEY, "[2001:db8::1]:51820", (parse_prefix("::/0"),), 25, 1380, "/etc/ddpd/key",
                 own=ddpd.keypair(bytes(32)).public)


def leaf(more: str = TUNNEL, heard_at: str = "2001:db8::1") -> Leaf:
    found = Leaf(more=more)
    found.grantee.heard_at = Path(heard_at, 3373)
    return found


def wanted(found: Leaf) -> Interface | None:
    thing = found.node.wanted.things.get(Interface("wg0").id)
    assert thing is None or isinstance(thing, Interface)
    return thing


def looked_up(effects: list[ddpd.Effect]) -> list[str]:
    return [effect.host for effect in effects if isinstance(effect, ddpd.Lookup)]


def test_what_the_answer_says_is_made() -> None:
    found = leaf()
    found.answer(grant(), **TOLD)
    assert wanted(found) == MADE
    things = found.node.wanted.things.values()
    for text in ("fd00:9::/64", "10.9.0.0/16"):
        assert Route(parse_prefix(text), ddpd.MAIN, Reach("", "wg0")) in things
    assert Route(parse_prefix("::/0"), found.grantee.table, Reach("", "wg0")) in things, "what has P1 as its source"
    assert found.grantee.options["wg_endpoint"] == "[2001:db8::1]:51820"


@pytest.mark.parametrize(("default", "reach"), [("none", None), ("dev eth0", Reach("", "eth0"))])
def test_another_default(default: str, reach: Reach | None) -> None:
    found = leaf(f"default = {default}\n{TUNNEL}")
    found.answer(grant(), **TOLD)
    reaches = [thing.reach for thing in found.node.wanted.things.values()
               if isinstance(thing, Route) and thing.prefix.length == 0]
    assert reaches == ([reach] if reach else []) and wanted(found) == MADE


def test_nothing_leased_no_tunnel() -> None:
    found = leaf()
    found.answer(refusals=(ddpd.Refusal(0, ddpd.Reason.FULL, 60, "full"),), **TOLD)
    assert wanted(found) is None
    found.answer(grant(), **TOLD)
    found.answer(grant(valid=0, current=False), **TOLD)
    found.grantee.on_timer(at(T0 + 1))
    found.node.want_grantees()
    assert wanted(found) is None


def test_without_install_the_kernel_is_left_alone() -> None:
    found = leaf("install = no\n" + TUNNEL)
    found.answer(grant(), **TOLD)
    assert not found.node.wanted.things and found.grantee.options["wg_key"] == KEY


@pytest.mark.parametrize("missing", ["wg_key", "wg_endpoint"])
def test_what_is_not_said_is_not_made_and_what_was_said_stays(missing: str) -> None:
    """A grantor whose interface is down for a while; or that was asked inside of the tunnel."""
    less = {name: value for name, value in TOLD.items() if name != missing}
    found = leaf()
    found.answer(grant(), **less)
    assert wanted(found) is None
    found = leaf()
    found.answer(grant(), **TOLD)
    found.grantee.heard_at = Path("fd00:9::1", 3373)
    found.answer(grant(), **less)
    assert wanted(found) == MADE


def test_an_endpoint_that_moves() -> None:
    found = leaf()
    found.answer(grant(), **TOLD)
    found.answer(grant(), **TOLD | {"wg_endpoint": "[2001:db8:77::7]:4500"})
    assert wanted(found) == MADE._replace(endpoint="[2001:db8:77::7]:4500")
    found.grantee.heard_at = Path("::ffff:192.0.2.1", 3373)
    found.answer(grant(), **TOLD)
    assert wanted(found) == MADE._replace(endpoint="192.0.2.1:51820")
    found.grantee.heard_at = Path("fe80::1", 3373, 3)
    found.answer(grant(), **TOLD)
    assert wanted(found) == MADE._replace(endpoint="[fe80::1%3]:51820")


@pytest.mark.parametrize(("told", "answers_at", "expected"), [
    ("192.168.1.2:51820", "::ffff:203.0.113.1", "203.0.113.1:51820"),       # a port is forwarded to it
    ("192.168.1.2:51820", "::ffff:192.168.1.9", "192.168.1.2:51820"),
    ("[fd00::2]:51820", "2001:db8::1", "[2001:db8::1]:51820"),
    ("203.0.113.7:51820", "::ffff:192.168.1.9", "203.0.113.7:51820"),
    ("[fe80::1]:51820", "fe80::1", "[fe80::1%3]:51820"),
])
def test_an_endpoint_behind_something_that_changes_addresses(told: str, answers_at: str, expected: str) -> None:
    found = leaf()
    found.grantee.heard_at = Path(answers_at, 3373, 3 if answers_at == "fe80::1" else 0)
    found.answer(grant(), **TOLD | {"wg_endpoint": told})
    assert wanted(found) == MADE._replace(endpoint=expected)


def test_an_endpoint_with_a_name() -> None:
    """Looked up here, by the family in which the grantor answers; and again while nobody answers."""
    found = leaf()
    effects = found.answer(grant(), **TOLD | {"wg_endpoint": "vpn.example.net:4500"})
    assert looked_up(effects) == ["vpn.example.net"] and wanted(found) is None
    places = (Path("::ffff:192.0.2.1", 0), Path("2001:db8:77::7", 0))
    found.node.resolved("h", "vpn.example.net", places, at(T0))
    assert wanted(found) == MADE._replace(endpoint="[2001:db8:77::7]:4500")
    found.node.resolved("h", "vpn.example.net", (), at(T0))
    assert wanted(found) == MADE._replace(endpoint="[2001:db8:77::7]:4500"), "nobody knows it now"
    assert "vpn.example.net" in looked_up(found.grantee.on_timer(at(T0 + 3000)))
    assert all(place.host != "2001:db8:77::7" for place in found.grantee.places()), "it is not where asks go"


def test_an_endpoint_that_no_name_server_knows_yet() -> None:
    """A minute later it is looked up again; not at half of the lease's time."""
    found, told = leaf(), TOLD | {"wg_endpoint": "vpn.example.net:4500"}
    found.answer(grant(), **told)
    found.node.resolved("h", "vpn.example.net", (), at(T0))
    assert found.grantee.deadline <= T0 + 60
    assert [looked_up(found.grantee.on_timer(at(T0 + after_s))) for after_s in (59, 60, 61, 120)] == \
        [[], ["vpn.example.net"], [], ["vpn.example.net"]]
    found.node.resolved("h", "vpn.example.net", (Path("2001:db8:77::7", 0),), at(T0 + 61))
    assert wanted(found) == MADE._replace(endpoint="[2001:db8:77::7]:4500")


@pytest.mark.parametrize("endpoint", [
    "[ff02::1]:51820", "224.0.0.1:51820", "0.0.0.0:51820", "127.0.0.1:53", "[::1]:53", "[::]:1", "[fe80::7]:9",
    "[2001:db8:1:100::7]:51820", "192.0.2.1", "192.0.2.1:0", "192.0.2.1:65536", "a b:1", "-x:1 remove", "$(id):1",
    "gateway:1", "gateway%eth0:1", "[2001:db8::1", "x" * 64 + ":1", ":", ":x", "",
])
def test_endpoints_that_are_none(endpoint: str) -> None:
    """Of nobody, inside of what it gave, or no endpoint at all."""
    found = leaf()
    effects = found.answer(grant(), **TOLD | {"wg_endpoint": endpoint})
    assert str(P1).startswith("2001:db8:1:100:") and wanted(found) is None
    assert not looked_up(effects)


def test_a_route_around_the_other_end_is_not_made() -> None:
    found = leaf(TUNNEL.replace("fd00:9::/64", "2001:db8::/64 fd00:9::/64"))
    found.answer(grant(), **TOLD)
    routes = {thing.prefix for thing in found.node.wanted.things.values()
              if isinstance(thing, Route) and thing.reach.dev == "wg0" and thing.table == ddpd.MAIN}
    assert routes == {parse_prefix("fd00:9::/64"), parse_prefix("10.9.0.0/16")}


def test_after_a_restart_it_stays_as_it_is_until_somebody_answers() -> None:
    found = leaf()
    found.answer(grant(), **TOLD)
    records = [MADE.record(), *(held.record(found.grantee.contact.key, "b", at(T0))
                                         for held in found.grantee.held)]
    again = leaf()
    again.node.restore(records, at(T0))
    again.node.adopt([Interface("wg0", KEY)])
    again.node.start(at(T0))
    assert wanted(again) == Interface("wg0", KEY), "as it is in the kernel: nothing to be done"
    again.answer(grant(), **TOLD)
    assert wanted(again) == MADE


def test_a_reload_that_takes_it_away_or_changes_it() -> None:
    found = leaf()
    found.answer(grant(), **TOLD)
    text = ddpd.read_config("[grantor h]\nkey = " + ddpd.show_key(found.grantee.contact.key)
                            + "\naddress = 2001:db8::1\nask = ::/56\n" + TUNNEL.replace("1380", "1400"), "t")
    found.node.reconfigure(text, at(T0))
    assert wanted(found) == MADE._replace(mtu=1400)
    found.node.reconfigure(replace(text, contacts=(replace(text.contacts[0], tunnel=None),)), at(T0))
    assert wanted(found) is None


@pytest.mark.parametrize(("allowed", "own", "expected"), [
    ("10.9.0.1/32 fd00::/64", "", ["::ffff:10.9.0.1", "fd00::1"]),
    ("::/0 0.0.0.0/0", "10.9.0.7/24 2001:db8::7/64", ["::ffff:10.9.0.1", "2001:db8::1"]),
    ("::/0", "2001:db8::7/128", []),
    ("fe80::/64", "fe80::7/64", ["fe80::"]),
    ("10.9.0.0/24", "10.9.0.1/24", []),                           # the first of it is our own
    ("", "10.9.0.7/24", []),
])
def test_where_a_grantor_is_inside(allowed: str, own: str, expected: list[str]) -> None:
    links = ddpd.Links({5: "wg0"}, tuple((5, ddpd.parse_interface(text)) for text in own.split()))
    found = ddpd.places_inside([parse_prefix(text) for text in allowed.split()], 5, links)
    assert [place.host for place in found] == expected
    assert all((place.scope == 5) == place.host.startswith("fe80") for place in found)


FOUND = parse_prefix("2001:db8:1:f::7")


def with_found() -> Leaf:
    found = Leaf(lines="::/128 on wg0")
    found.node.links = ddpd.Links({5: "wg0"}, ((5, FOUND), (5, ddpd.parse_interface("fe80::7/128")),
                                               (5, ddpd.parse_interface("2001:db8:1:f::8/64"))))
    assert len(found.node.assume("h", "wg0")) == 1 and found.held() == {str(FOUND): True}
    return found


def test_what_is_found_at_the_first_start_is_asked_for_and_not_on_file() -> None:
    found = with_found()
    assert [want.prefix for want in found.ask().wants] == [FOUND]
    assert not [record for record in found.node.records(True, at(T0)) if record["kind"] in ("held", "made")]
    assert not found.node.made, "and not ours"


@pytest.mark.parametrize(("given", "left_s"), [
    (FOUND, 3600.0),                                              # confirmed
    (parse_prefix("2001:db8:1:e::9"), ddpd.FOUND_S),              # one like it instead
    (parse_prefix("2001:db8:2:e::9"), None),                      # nothing like it: it was never a lease
    (None, None),                                                 # refused
])
def test_what_becomes_of_what_was_found(given: ddpd.Prefix | None, left_s: float | None) -> None:
    found = with_found()
    if given is None:
        found.answer(refusals=(ddpd.Refusal(0, ddpd.Reason.NO_POOL, 60, "none"),))
    else:
        found.answer(grant(prefix=given))
    found.node.wanted.records = {}
    found.node.believe("h")
    left = [held.valid_until - T0 for held in found.grantee.held if held.prefix == FOUND]
    assert left == ([] if left_s is None else [left_s])
    assert len(found.node.wanted.records) == len(found.node.made) == len(left), "ours as long as it is held"
