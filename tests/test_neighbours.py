"""The neighbour discovery proxy: frames in, frames out; each answer is compared with one of frames.py."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations
from math import inf

import pytest

import ddpd
from ddpd import LeaseState, Neighbour, Probe, Reach, Seek, Wire
from frames import (
    ASKER,
    DESTINATION,
    FRAGMENTED,
    HOP_BY_HOP,
    PROXY,
    ROUTER,
    SOLICITED,
    SOURCE_MAC,
    Frame,
    advertisement,
    duplicate_probe,
    group_of,
    option,
    packed,
    solicitation,
)
from test_grantor import Hub, want

POOL = "[pool home]\nprefix = 2001:db8:42::/48\ngive = /56-/128\nlifetime = 1h\n"
INNER, OTHER = bytes.fromhex("020000000c03"), bytes.fromhex("020000000d04")
T, FREE = "2001:db8:42:100::7", "2001:db8:42:200::7"              # leased, and not
LINKS = ddpd.Links({1: "lo", 2: "eth0", 3: "br0", 4: "br1"}, (
    (1, ddpd.parse_interface("::1/128")), (2, ddpd.parse_interface("2001:db8:ff::b/64")),
    (2, ddpd.parse_interface("fe80::b/64")), (3, ddpd.parse_interface("fe80::c/64")),
    (2, ddpd.parse_interface("192.0.2.1/24"))), dict.fromkeys(range(1, 5), ddpd.IFF_UP),
    macs={2: PROXY, 3: INNER, 4: OTHER})


def node_of(text: str, more: str = POOL) -> ddpd.Node:
    config = ddpd.read_config(f"{more}[ndp eth0]\n{text}\n", "f")
    node = ddpd.Node(config, bytes(32), "boot", random.Random(1).randbytes)
    node.linked(LINKS, ddpd.Now(0.0, 0.0))
    return node


def put(node: ddpd.Node, prefix: str, state: LeaseState = LeaseState.ACTIVE, reach: Reach | None = None) -> ddpd.Lease:
    lease = ddpd.Lease(b"", 0, ddpd.parse_prefix(prefix), state, 3600.0, inf, reach=reach)
    node.grantor.stock.add(lease)
    node.place_proxies()
    return lease


def proxy_of(text: str, *leases: str) -> ddpd.Proxy:
    node = node_of(text)
    for prefix in leases:
        put(node, prefix)
    return node.proxies["eth0"]


def fate(proxy: ddpd.Proxy, frame: Frame | bytes, now: float = 0.0) -> object:
    """The answer, the question, or why there is none."""
    try:
        return proxy.hear(bytes(frame), now)
    except ddpd.Drop as why:
        return str(why)


def answer(target: str, asker: str = "fe80::a", source: str = "fe80::b", flags: int = ROUTER | SOLICITED,
           to: bytes = ASKER) -> bytes:
    """What a proxy has to say: never "override", to everybody and not "solicited" if nobody asked."""
    if asker == "::":
        return bytes(advertisement(target, source, "ff02::1", flags & ~SOLICITED))
    return bytes(advertisement(target, source, asker, flags)._replace(to=to))


# ---- frames

S, YES = solicitation(T), answer(T)
PAD = b"\1\4\0\0\0\0"                                             # an option that fills
LINK = option(SOURCE_MAC, ASKER)
HEARD: dict[str, tuple[Frame, object]] = {
    "to the group": (S, YES),
    "its option counts, not the frame": (solicitation(T, link=OTHER), answer(T, to=OTHER)),
    "no option": (solicitation(T, link=None)._replace(mac=OTHER), answer(T, to=OTHER)),
    "to one of our addresses": (solicitation(T, destination="fe80::b"), YES),
    "to another of them": (solicitation(T, destination="2001:db8:ff::b", link=None), YES),
    "to the target": (solicitation(T, destination=T), YES),
    "to all nodes": (solicitation(T, destination="ff02::1"), YES),
    "from a global address": (solicitation(T, "2001:db8:ff::a"), answer(T, "2001:db8:ff::a")),
    "traffic class, flow, reserved bits": (S._replace(flow=0xFF12345, word=0xFFFFFFFF), YES),
    "Ethernet's padding": (S._replace(tail=bytes(20)), YES),
    "to somebody else": (solicitation(T, destination="2001:db8:ff::c"), "destination"),
    "to another group": (solicitation(T, destination=group_of("2001:db8::1:7")), "destination"),
    "to routers": (solicitation(T, destination="ff02::2"), "destination"),
    "duplicate-address probe": (duplicate_probe(T), answer(T, "::")),
    "probe with an option": (solicitation(T, "::"), "source"),
    "probe with a nonce": (duplicate_probe(T)._replace(options=option(14, b"nonce6")), answer(T, "::")),
    "probe to a wrong group": (solicitation(T, "::", group_of(FREE[:-1] + "8"), None), "destination"),
    "probe to all nodes": (solicitation(T, "::", "ff02::1", None), "destination"),
    "probe to us": (solicitation(T, "::", "fe80::b", None), "destination"),
    "of nobody": (solicitation(FREE), "nobody's"),
    "hop limit 64": (S._replace(hops=64), "hop limit"),
    "hop limit 254": (S._replace(hops=254), "hop limit"),
    "code": (S._replace(code=1), "code"),
    "checksum": (S._replace(off=1), "checksum"),
    "checksum of 0x100 more": (S._replace(off=0x100), "checksum"),
    "longer than the frame": (S._replace(longer=8), "length"),
    "no multiple of 8": (S._replace(longer=4, tail=bytes(8)), "length"),
    "an octet more": (S._replace(longer=1, tail=bytes(8)), "length"),
    "without the target": (S._replace(longer=-16), "length"),
    "less than a target": (solicitation(T, link=None)._replace(longer=-8), "length"),
    "cut in the target": (S._replace(cut=77), "short"),
    "cut in the option": (S._replace(cut=80), "length"),
    "only IPv6": (S._replace(cut=54), "short"),
    "nothing": (S._replace(cut=0), "short"),
    "multicast target": (Frame("ff02::1:2", "fe80::a", group_of("::2"), LINK), "multicast target"),
    "own address": (solicitation("fe80::b"), "own address"),
    "own global address": (solicitation("2001:db8:ff::b"), "own address"),
    "own address of another interface": (solicitation("fe80::c"), "own address"),
    "of ours": (solicitation(T, "fe80::b"), "ours"),
    "source multicast": (solicitation(T, "ff02::1"), "source"),
    "option with a multicast MAC": (solicitation(T, link=b"\x33" + ASKER[1:]), "source"),
    "multicast MAC": (solicitation(T, link=None)._replace(mac=b"\1" + ASKER[1:]), "source"),
    "option of length 0": (S._replace(options=b"\1\0" + ASKER), "options"),
    "second option of length 0": (S._replace(options=LINK + b"\1\0" + ASKER), "options"),
    "option past the end": (S._replace(options=b"\1\2" + ASKER), "options"),
    "unknown options": (S._replace(options=option(14, b"nonce6") + LINK + option(253, bytes(20))), YES),
    "target option is not the source's": (S._replace(options=option(2, OTHER)), YES),
    "option of another kind of link": (S._replace(options=option(SOURCE_MAC, bytes(14))), YES),
    "advertisement": (S._replace(kind=136), "another kind"),
    "router solicitation": (S._replace(kind=133), "another kind"),
    "IPv4": (S._replace(version=4), "another kind"),
    "ARP": (S._replace(ethertype=0x0806), "another kind"),
    "hop by hop": (S._replace(headers=((HOP_BY_HOP, PAD),)), YES),
    "hop by hop, filled one by one": (S._replace(headers=((HOP_BY_HOP, bytes(6)),)), YES),
    "hop by hop, long": (S._replace(headers=((HOP_BY_HOP, b"\1\14" + bytes(12)),)), YES),
    "router alert": (S._replace(headers=((HOP_BY_HOP, b"\5\2\0\0\1\0"),)), YES),
    "destination options": (S._replace(headers=((DESTINATION, PAD),)), YES),
    "both": (S._replace(headers=((HOP_BY_HOP, PAD), (DESTINATION, PAD))), "extension header"),
    "both, in the wrong order": (S._replace(headers=((DESTINATION, PAD), (HOP_BY_HOP, PAD))), "extension header"),
    "three": (S._replace(headers=((HOP_BY_HOP, PAD), (DESTINATION, PAD), (DESTINATION, PAD))), "extension header"),
    "fragment": (S._replace(headers=(FRAGMENTED,)), "extension header"),
    "fragment behind options": (S._replace(headers=((HOP_BY_HOP, PAD), FRAGMENTED)), "extension header"),
    "routing header": (S._replace(headers=((43, bytes(6)),)), "extension header"),
    "an option to be skipped": (S._replace(headers=((DESTINATION, b"\x3e\4\0\0\0\0"),)), YES),
    "an option to be dropped": (S._replace(headers=((DESTINATION, b"\x7e\4\0\0\0\0"),)), "extension header"),
    "... with an error": (S._replace(headers=((HOP_BY_HOP, b"\x9e\4\0\0\0\0"),)), "extension header"),
    "... not for groups": (S._replace(headers=((HOP_BY_HOP, b"\1\0\xde\2\0\0"),)), "extension header"),
    "hop by hop, an option past the end": (S._replace(headers=((HOP_BY_HOP, b"\1\5\0\0\0\0"),)), "extension header"),
    "... and one without a length": (S._replace(headers=((HOP_BY_HOP, b"\1\3\0\0\0\5"),)), "extension header"),
    "hop by hop, bad checksum": (S._replace(headers=((HOP_BY_HOP, PAD),), off=1), "checksum"),
    "hop by hop, hop limit": (S._replace(headers=((HOP_BY_HOP, PAD),), hops=1), "hop limit"),
    "hop by hop, less than itself": (S._replace(headers=((HOP_BY_HOP, PAD),), longer=-36), "extension header"),
    "hop by hop, cut": (S._replace(headers=((HOP_BY_HOP, PAD),), cut=60), "extension header"),
}


@pytest.mark.parametrize("name", HEARD)
def test_what_is_heard(name: str) -> None:
    frame, expected = HEARD[name]
    proxy = proxy_of("proxy = leased", "2001:db8:42:100::/56")
    for _ in range(2):
        assert fate(proxy, frame) == expected
    assert proxy.answers == ({bytes(frame): expected} if isinstance(expected, bytes) else {})


def test_a_tagged_frame_is_not_read() -> None:
    """The kernel takes a tag off where there is an interface for it; what still has one is for nobody here."""
    proxy = proxy_of("proxy = static ::/0")
    assert isinstance(fate(proxy, S._replace(vlan=7)), str)
    assert isinstance(fate(proxy, S._replace(vlan=0, headers=((HOP_BY_HOP, PAD),))), str)


def test_every_length_of_a_frame() -> None:
    """Cut or not: an answer only to the whole."""
    proxy = proxy_of("proxy = leased", "2001:db8:42:100::/56")
    for headers in ((), ((HOP_BY_HOP, PAD),), ((DESTINATION, PAD),)):
        whole = bytes(S._replace(headers=headers))
        assert {fate(proxy, whole[:n]) == YES for n in range(len(whole))} == {False}
        assert fate(proxy, whole) == YES


def test_answers_that_are_kept_are_bounded_and_end_with_any_change() -> None:
    node = node_of("proxy = leased")
    proxy, lease = node.proxies["eth0"], put(node, "2001:db8:42:100::/56")
    for n in range(3 * ddpd.MAX_ANSWERS):
        assert isinstance(fate(proxy, solicitation(f"2001:db8:42:100::{n:x}")), bytes)
        assert len(proxy.answers) <= ddpd.MAX_ANSWERS
    node.grantor.stock.turn(lease, LeaseState.FORMER)
    node.place_proxies()
    assert proxy.answers == {} and fate(proxy, S) == "nobody's"


def test_what_is_known_of_askers_is_bounded_and_ends_with_the_interfaces_address() -> None:
    node = node_of("proxy = static 2001:db8:42::/48")
    proxy = node.proxies["eth0"]
    for n in range(3 * ddpd.MAX_ALIKE):
        assert isinstance(fate(proxy, solicitation(T, f"fe80::1:{n:x}")), bytes)
        assert 0 < len(proxy.alike) <= ddpd.MAX_ALIKE
    node.linked(replace(LINKS, macs={**LINKS.macs, 2: OTHER}), ddpd.Now(0.0, 0.0))
    found = fate(proxy, solicitation(FREE, "fe80::1:bf"))         # of the last of them
    assert isinstance(found, bytes) and found[6:12] == found[-6:] == OTHER


# ---- rules

@pytest.mark.parametrize(("lines", "leases", "outcomes"), [
    (["static 2001:db8:1::/48", "never 2001:db8:1:1::/64", "static 2001:db8:1:1:2::/80", "never 2001:db8:1:1:2::9"],
     [], {
        "2001:db8:1:2::1": True, "2001:db8:1:1::1": "excluded", "2001:db8:1:1:2::1": True,
        "2001:db8:1:1:2::9": "excluded", "2001:db8:2::1": "nobody's"}),
    (["leased", "never 2001:db8:42:100:1::/80"], ["2001:db8:42:100::/56"], {
        T: True, "2001:db8:42:100:1::7": "excluded", "2001:db8:42:1ff::7": True, FREE: "nobody's"}),
    (["leased", "never 2001:db8:42::/48", "never 2001:db8:42:101::/64"],
     ["2001:db8:42:100::/64", "2001:db8:42:101::/64"], {T: True, "2001:db8:42:101::7": "excluded", FREE: "excluded"}),
    (["leased", "static 2001:db8:42:100::/56"], ["2001:db8:42:100::/64"], {T: True, "2001:db8:42:101::7": True}),
    (["never 2001:db8:42::/48"], ["2001:db8:42:100::/56"], {T: "excluded"}),
    (["static 2001:db8:42:200::/56"], ["2001:db8:42:100::/56"], {T: "nobody's", FREE: True}),
    (["static ::/0"], [], {T: True, "fe80::77": "link-local target", "febf::1": "link-local target", "fec0::1": True}),
])
def test_the_longest_prefix_decides(lines: list[str], leases: list[str], outcomes: dict[str, object]) -> None:
    """Whatever the order of the lines, and of the leases."""
    for order in permutations(lines):
        for given_ in permutations(leases):
            proxy = proxy_of("proxy = " + "\n  ".join(order), *given_)
            for target, outcome in outcomes.items():
                assert fate(proxy, solicitation(target)) == (answer(target) if outcome is True else outcome)


@pytest.mark.parametrize(("more", "outcomes"), [
    ("allow = 2001:db8:42:100::/64", {T: YES, FREE: "not allowed", "2001:db8:42:101::1": "not allowed"}),
    ("deny = 2001:db8:42:100::7", {T: "denied", "2001:db8:42:100::8": answer("2001:db8:42:100::8")}),
    ("allow = 2001:db8:42:100::/64\ndeny = 2001:db8:42:100::7, 2001:db8:42:100::9", {
        T: "denied", "2001:db8:42:100::9": "denied", "2001:db8:42:100::8": answer("2001:db8:42:100::8")}),
])
def test_allow_and_deny(more: str, outcomes: dict[str, object]) -> None:
    for proxied in "leased", "static 2001:db8:42::/48":
        proxy = proxy_of(f"proxy = {proxied}\n{more}", "2001:db8:42:100::/56")
        assert {target: fate(proxy, solicitation(target)) for target in outcomes} == outcomes


@pytest.mark.parametrize("state", LeaseState)
@pytest.mark.parametrize("prefix", ["2001:db8:42:100::/56", "2001:db8:42:100::/64", "2001:db8:42:100::7/128"])
def test_a_lease_of_any_state(state: LeaseState, prefix: str) -> None:
    node = node_of("proxy = leased")
    put(node, prefix, state)
    proxy = node.proxies["eth0"]
    assert fate(proxy, S) == (YES if state in (LeaseState.ACTIVE, LeaseState.DEPRECATED) else "nobody's")


def test_what_ended_does_not_hide_what_lives_around_it() -> None:
    node = node_of("proxy = leased")
    inner = put(node, "2001:db8:42:100::/64", LeaseState.FORMER)
    put(node, "2001:db8:42:100::/56")
    assert fate(node.proxies["eth0"], S) == YES
    node.grantor.stock.remove(inner)
    node.place_proxies()
    assert fate(node.proxies["eth0"], S) == YES


@pytest.mark.parametrize(("reach", "named", "probe"), [
    (None, True, True), (Reach("fe80::9", "br0"), True, True), (Reach("", "br0"), True, True),
    (Reach("fe80::9", "eth0"), True, False), (Reach("", "eth0"), False, False),
])
@pytest.mark.parametrize("prefix", ["2001:db8:42:100::/56", "2001:db8:42:100::7/128"])
def test_who_is_on_the_same_link_speaks_for_itself(prefix: str, reach: Reach | None, named: bool, probe: bool) -> None:
    node = node_of(f"proxy = leased\n  static {prefix}")          # a rule as long as the lease changes nothing
    put(node, prefix, reach=reach)
    proxy = node.proxies["eth0"]
    assert fate(proxy, S) == (YES if named else "on this link")
    assert fate(proxy, duplicate_probe(T)) == (answer(T, "::") if probe else "on this link")


def test_a_lease_that_moves_to_this_link_is_left_alone_at_once() -> None:
    """The probe of who has come here must not meet an answer that was kept from before."""
    hub = Hub(POOL + "[ndp eth0]\nproxy = leased\n", who=["alice"])
    (prefix,), proxy = hub.get("alice", want(0)), hub.node.proxies["eth0"]
    hub.node.linked(LINKS, hub.now)
    probe, stock = duplicate_probe(f"{prefix.host}7"), hub.grantor.stock
    assert isinstance(fate(proxy, probe), bytes) and bytes(probe) in proxy.answers
    seen = stock.changes
    hub.grantor.renew(hub.peer("alice"), stock.leased[prefix], (Reach("", "eth0"), ""), hub.now)
    assert fate(proxy, probe) == "on this link"
    assert bytes(probe) not in proxy.answers or stock.changes != seen       # which ends what is kept


@pytest.mark.parametrize(("source", "asker", "expected"), [
    ("link-local", "fe80::a", "fe80::b"), ("link-local", "2001:db8:ff::a", "fe80::b"), ("link-local", "::", "fe80::b"),
    ("interface", "fe80::a", "fe80::b"), ("interface", "2001:db8:ff::a", "2001:db8:ff::b"),
    ("interface", "fd00::a", "2001:db8:ff::b"), ("interface", "::", "fe80::b"),
    ("target", "fe80::a", T), ("target", "2001:db8:ff::a", T), ("target", "::", T),
])
@pytest.mark.parametrize("router", ["yes", "no"])
def test_where_answers_come_from_and_what_they_say(source: str, asker: str, expected: str, router: str) -> None:
    proxy = proxy_of(f"proxy = static {T}\nsource = {source}\nrouter = {router}")
    frame = duplicate_probe(T) if asker == "::" else solicitation(T, asker)
    assert fate(proxy, frame) == answer(T, asker, expected, ROUTER * (router == "yes") | SOLICITED)


def test_without_an_address_the_answer_comes_from_the_target() -> None:
    node = node_of(f"proxy = static {T}")
    node.linked(ddpd.Links(LINKS.names, (), LINKS.flags, macs=LINKS.macs), ddpd.Now(0.0, 0.0))
    assert fate(node.proxies["eth0"], S) == answer(T, source=T)


# ---- method = kernel

KERNEL = "[pool home]\nprefix = 2001:db8:42::/120\ngive = /128\nlifetime = 1h\n"


def kernels(node: ddpd.Node) -> set[tuple[str, str]]:
    things = [thing for thing in node.wanted.things.values() if isinstance(thing, Neighbour)]
    return {(thing.dev, thing.address.host) for thing in things}


@pytest.mark.parametrize("how", ["expires", "released", "revoked"])
def test_the_kernel_answers_for_single_addresses_as_long_as_they_are_leased(how: str) -> None:
    own = KERNEL + "[ndp eth0]\nproxy = leased\n  static 2001:db8:1::1\n  static 2001:db8:2::/64\n"
    text = own + "method = kernel\n[ndp eth1]\nproxy = leased\n"
    hub, fixed = Hub(text, who=["alice"]), ("eth0", "2001:db8:1::1")
    hub.node.linked(LINKS, hub.now)
    assert kernels(hub.node) == {fixed}
    first, second = hub.get("alice", want(0, "::/128"), want(1, "::/128"))
    hub.node.place_proxies()
    assert kernels(hub.node) == {fixed, ("eth0", first.host), ("eth0", second.host)}
    for host in first.host, fixed[1]:
        assert fate(hub.node.proxies["eth0"], solicitation(host)) == "the kernel's"
    assert fate(hub.node.proxies["eth0"], solicitation("2001:db8:2::7")) == answer("2001:db8:2::7")
    hub.configure(own, who=["alice"])
    assert kernels(hub.node) == set() and fate(hub.node.proxies["eth0"], solicitation(first.host)) == answer(first.host)
    hub.configure(text, who=["alice"])
    assert kernels(hub.node) == {fixed, ("eth0", first.host), ("eth0", second.host)}
    hub.restart()
    hub.node.start(hub.now)
    assert kernels(hub.node) == {fixed, ("eth0", first.host), ("eth0", second.host)}
    if how == "released":
        hub.ask("alice", want(1, "::/128"), releases=(0,))
    elif how == "revoked":
        hub.node.revoke(hub.peer("alice"), 0, hub.now)
    else:
        hub.later(2000)
        hub.ask("alice", want(1, "::/128"))
        hub.later(2000)
    assert kernels(hub.node) == {fixed, ("eth0", second.host)}
    hub.configure(own.partition("[ndp")[0], who=["alice"])
    assert kernels(hub.node) == set() and not hub.node.proxies


def test_a_static_address_stays_the_kernels_when_its_lease_ends() -> None:
    text = KERNEL + "[ndp eth0]\nproxy = leased\n{}method = kernel\n"
    hub = Hub(text.format(""), who=["alice"])
    first, = hub.get("alice", want(0, "::/128"))
    hub.configure(text.format(f"  static {first}\n"), who=["alice"])
    assert kernels(hub.node) == {("eth0", first.host)}
    hub.ask("alice", releases=(0,))
    assert kernels(hub.node) == {("eth0", first.host)}


@pytest.mark.parametrize("more", ["  never {}\nmethod = kernel", "method = kernel\ndeny = {}",
                                  "method = kernel\nallow = 2001:db8::/64"])
def test_what_is_excluded_is_not_given_to_the_kernel(more: str) -> None:
    hub = Hub(KERNEL + "[ndp eth0]\nproxy = leased\nmethod = kernel\n", who=["alice"])
    first, = hub.get("alice", want(0, "::/128"))
    hub.configure(KERNEL + f"[ndp eth0]\nproxy = leased\n{more.format(first)}\n", who=["alice"])
    assert kernels(hub.node) == set()


@pytest.mark.parametrize(("reach", "has_kernel", "named"), [
    (None, True, "the kernel's"), (Reach("", "br0"), True, "the kernel's"), (Reach("", "eth0"), False, "on this link"),
    (Reach("fe80::9", "eth0"), False, YES),                       # the kernel would answer probes of addresses, too
], ids=["unrouted", "elsewhere", "here", "behind a gateway here"])
def test_the_kernel_and_who_is_on_the_same_link(reach: Reach | None, has_kernel: bool, named: object) -> None:
    """Somebody answers, wherever that is right."""
    node = node_of("proxy = leased\nmethod = kernel")
    lease = put(node, T, reach=reach)
    node.grantor.route(lease)
    assert (kernels(node) == {("eth0", T)}) == has_kernel and fate(node.proxies["eth0"], S) == named


# ---- auto

def test_auto_asks_the_routing_table() -> None:
    proxy = proxy_of("proxy = auto 2001:db8:42::/48\n  never 2001:db8:42:200::/56")
    found = fate(proxy, S)
    assert isinstance(found, Seek) and found.heard == ddpd.read_solicitation(bytes(S))
    assert fate(proxy, solicitation(FREE)) == "excluded" and proxy.answers == {}
    for index, why in (0, "no route"), (2, "route leads back"):
        with pytest.raises(ddpd.Drop, match=why):
            proxy.led(bytes(S), found.heard, index, 0.0)
    assert proxy.answers == {} and proxy.led(bytes(S), found.heard, 3, 7.0) == YES == proxy.answers[bytes(S)]
    assert proxy.stale_at == 7.0 + ddpd.WAY_S                     # a route may end without news


# ---- iface

IFACE = "proxy = iface 2001:db8:1::/64 br0\n  iface 2001:db8:2::/64 br1\n  iface 2001:db8::/32 br1\n"
I = "2001:db8:1::7"  # noqa: E741


def inside(target: str = I) -> bytes:
    return bytes(advertisement(target, "fe80::77", "fe80::c"))


def test_one_question_for_many_askers() -> None:
    proxy = proxy_of(IFACE)
    askers = [f"fe80::{n:x}" for n in range(100, 110)]
    assert fate(proxy, solicitation(I, askers[0])) == Probe("br0", packed(I))
    assert {fate(proxy, solicitation(I, asker), 0.5) for asker in askers + askers} == {None}
    assert fate(proxy, duplicate_probe("2001:db8:2::7")) == Probe("br1", packed("2001:db8:2::7"))
    answers, wire = proxy.answered_inside(inside(), "br0", 0.6)
    assert answers == [answer(I, asker) for asker in askers[: ddpd.MAX_ASKERS]] and wire is None
    assert proxy.answered_inside(inside("2001:db8:2::7"), "br1", 0.6)[0] == [answer("2001:db8:2::7", "::")]
    assert proxy.waiting == {}


def test_what_answered_inside_is_believed_for_a_while() -> None:
    proxy = proxy_of(IFACE + "ttl = 10s")
    assert fate(proxy, solicitation(I), 5.0) == Probe("br0", packed(I))
    assert proxy.answered_inside(inside(), "br0", 5.5)[0] == [answer(I)]
    assert fate(proxy, solicitation(I), 15.4) == answer(I) and proxy.answers == {}
    assert fate(proxy, solicitation(I), 15.5) == Probe("br0", packed(I))
    assert fate(proxy, solicitation(I), 16.4) is None             # asked, and silent ...
    assert fate(proxy, solicitation(I), 16.6) == Probe("br0", packed(I))


@pytest.mark.parametrize(("frame", "why"), [
    (inside("2001:db8:1::8"), "not asked"), (inside()[:-4], "length"), (bytes(solicitation(I)), "another kind"),
    (bytes(advertisement(I, "::", "fe80::c")), "source"),
    (bytes(advertisement(I, "fe80::77", "fe80::c", link=None)), ""),
    (bytes(advertisement(I, "fe80::77", "fe80::c")._replace(hops=64)), "hop limit"),
], ids=["another target", "cut", "a solicitation", "from nobody", "without an option", "hop limit"])
def test_nothing_for_what_is_not_asked_or_not_right(frame: bytes, why: str) -> None:
    proxy = proxy_of(IFACE)
    assert fate(proxy, solicitation(I)) == Probe("br0", packed(I))
    if not why:
        assert proxy.answered_inside(frame, "br0", 0.1)[0] == [answer(I)]
        return
    with pytest.raises(ddpd.Drop, match=why):
        proxy.answered_inside(frame, "br0", 0.1)
    assert not proxy.known and packed(I) in proxy.waiting


@pytest.mark.parametrize("wired", [False, True])
def test_only_the_interface_that_was_asked_can_answer(wired: bool) -> None:
    """br1 has a rule for a prefix around; who is there must not take what is br0's."""
    proxy = proxy_of(IFACE + "autowire = yes")
    assert fate(proxy, solicitation(I)) == Probe("br0", packed(I))
    if wired:
        assert proxy.answered_inside(inside(), "br0", 0.0)[1] == Wire(packed(I), "br0")
    with pytest.raises(ddpd.Drop):
        proxy.answered_inside(inside(), "br1", 0.1)
    assert wired or not proxy.known


@pytest.mark.parametrize("step", [0.0, 0.0001])
def test_a_scan_is_bounded(step: float) -> None:
    """60,000 targets, at once or within six seconds, half of which answer."""
    proxy, asked = proxy_of(IFACE + "autowire = yes\nttl = 1h"), 0
    for n in range(60_000):
        target = f"2001:db8:1::{n >> 16:x}:{n & 0xFFFF:x}"
        found = fate(proxy, solicitation(target, link=None), n * step)
        asked += isinstance(found, Probe)
        assert isinstance(found, Probe) or found == "too many"
        if isinstance(found, Probe) and n % 2:
            proxy.answered_inside(inside(target), "br0", n * step)
        assert len(proxy.waiting) <= ddpd.MAX_PROBES
        assert max(len(proxy.known), len(proxy.wired)) <= ddpd.MAX_INSIDE
    assert abs(asked - ddpd.PROBES_A_S * (ddpd.BURST_S + 60_000 * step)) <= 2
    assert len(proxy.known) == min(ddpd.MAX_INSIDE, asked // 2 if step else len(proxy.known))


def test_a_scan_does_not_keep_us_from_who_has_answered_before() -> None:
    """The questions that a scan may cost are used up; who is known has a bucket of its own, as bounded."""
    proxy = proxy_of(IFACE + "ttl = 3s")
    assert isinstance(fate(proxy, solicitation(I)), Probe)
    proxy.answered_inside(inside(), "br0", 0.0)
    scan = [fate(proxy, solicitation(f"2001:db8:1::1:{n:x}"), 3.5) for n in range(3 * ddpd.PROBES_A_S)]
    assert scan[-1] == "too many" and len(proxy.waiting) <= ddpd.MAX_PROBES
    assert fate(proxy, solicitation(I), 3.5) == Probe("br0", packed(I))
    again = [fate(proxy, solicitation(I), 3.5 + (n + 1) * (ddpd.PROBE_S + 0.1) / 1e9) for n in range(10)]
    assert set(again) == {None}                                   # it is asked once, however often we are


def test_a_neighbour_that_is_slow_is_waited_for_in_a_scan() -> None:
    """As many are waited for as can be asked within the time that they have."""
    proxy, now = proxy_of(IFACE), 0.0
    assert isinstance(fate(proxy, solicitation(I), now), Probe)
    for n in range(10_000):
        now = n * 0.9 * ddpd.PROBE_S / 10_000
        fate(proxy, solicitation(f"2001:db8:1::1:{n:x}"), now)
    assert len(proxy.answered_inside(inside(), "br0", now)[0]) == 1


@pytest.mark.parametrize(("to", "flags", "is_taken"), [
    ("fe80::c", SOLICITED, True), ("fe80::c", 0, True), ("ff02::1", 0, True), ("ff02::1", SOLICITED, False)])
def test_what_is_said_to_all_was_not_asked_for(to: str, flags: int, is_taken: bool) -> None:
    """RFC 4861 7.1.2."""
    proxy = proxy_of(IFACE)
    assert isinstance(fate(proxy, solicitation(I)), Probe)
    frame = bytes(advertisement(I, "fe80::77", to, flags))
    if is_taken:
        assert len(proxy.answered_inside(frame, "br0", 0.0)[0]) == 1
    else:
        with pytest.raises(ddpd.Drop, match="solicited by a group"):
            proxy.answered_inside(frame, "br0", 0.0)


def test_an_address_that_may_be_anothers_is_no_source_but_still_ours() -> None:
    """RFC 4862 5.4: as long as it is tentative, and if it is a duplicate."""
    own = (2, ddpd.parse_interface("fe80::b/64"))
    place = ddpd.place_on("eth0", replace(LINKS, tentative=frozenset([own])))
    assert isinstance(place, ddpd.Place) and place.addresses == (packed("2001:db8:ff::b"),)
    assert packed("fe80::b") in place.own
    whys = {dev: ddpd.place_on(dev, links) for dev, links in {
        "eth1": LINKS, "lo": LINKS, "br0": replace(LINKS, flags={})}.items()}
    assert whys == {"eth1": "there is none", "lo": "not like Ethernet", "br0": "down"}


def test_status_and_metrics_say_what_was_heard() -> None:
    """Each solicitation counts once, whenever it is answered; no metric is left out."""
    node = node_of("proxy = leased\n  iface 2001:db8:1::/64 br0")
    proxy, links = node.proxies["eth0"], ddpd.Ports(node)
    for frame in bytes(solicitation(I)), bytes(solicitation(I, link=OTHER)), bytes(solicitation(FREE)):
        links.decided(proxy, frame, 0.0)
    node.deaf["br0"] = "down"
    whole = ddpd.status_of(node, ddpd.Now(0.0, 0.0), 10)
    [row] = whole["ndp"]
    assert (row["heard"], row["answered"], row["asked_inside"]) == (3, 0, 1) and row["deaf_inside"] == {"br0": "down"}
    assert row["ignored"] == {"inside is down": 1, "nobody's": 1}
    assert {metric for metric, _, _ in ddpd.samples(whole)} <= {metric for metric, _, _ in ddpd.METRICS}
    text = ddpd.metrics_text(whole)
    assert 'ddpd_proxy_listens{interface="eth0"} 1\n' in text
    assert 'ddpd_solicitations_total{interface="eth0",fate="nobody\'s"} 1\n' in text
    node.deaf["eth0"] = "there is none"
    [row] = ddpd.status_of(node, ddpd.Now(0.0, 0.0), 10)["ndp"]
    assert row["state"] == "cannot listen: there is none"


# ---- autowire

def wired(node: ddpd.Node) -> dict[str, str]:
    routes = [thing for thing in node.wanted.things.values() if isinstance(thing, ddpd.Route)]
    return {route.prefix.host: route.reach.dev for route in routes}


def do(node: ddpd.Node, *found: object) -> None:
    for wire in found:
        if isinstance(wire, Wire):
            node.wire(wire)


def silence(proxy: ddpd.Proxy, at: float) -> list[Probe | Wire]:
    """What is done, from then on, about who does not answer."""
    return [found for n in range(10) for found in proxy.on_timer(at + n * ddpd.PROBE_S)]


def test_a_route_to_what_answers_is_made_looked_after_and_taken_away() -> None:
    node = node_of(IFACE + "autowire = yes")
    proxy, late = node.proxies["eth0"], ddpd.WIRED_S
    assert proxy.deadline == inf and fate(proxy, solicitation(I)) == Probe("br0", packed(I))
    _, wire = proxy.answered_inside(inside(), "br0", 0.0)
    assert wire == Wire(packed(I), "br0") and proxy.deadline == late and proxy.on_timer(late - 1) == []
    do(node, wire)
    assert wired(node) == {I: "br0"}
    assert proxy.on_timer(late) == [Probe("br0", packed(I))] and proxy.on_timer(late + 0.5) == []
    do(node, proxy.answered_inside(inside(), "br0", late + 0.5)[1])
    assert proxy.on_timer(late + 2) == [] and wired(node) == {I: "br0"}
    found = silence(proxy, 2 * late + 1)
    assert found == [Probe("br0", packed(I))] * ddpd.PROBES + [Wire(packed(I), "")] and proxy.deadline == inf
    do(node, *found)
    assert wired(node) == {} and not proxy.known and not proxy.wired
    with pytest.raises(ddpd.Drop, match="not asked"):
        proxy.answered_inside(inside(), "br0", 2 * late + 100)


@pytest.mark.parametrize(("route", "is_adopted"), [
    (ddpd.wired_route(packed(I), "br0"), True), (ddpd.wired_route(packed(I), "br1"), True),
    (ddpd.wired_route(packed("2001:db9::1"), "br0"), False), (ddpd.wired_route(packed(I), "br2"), False),
    (ddpd.Route(ddpd.parse_prefix("2001:db8:1::/96"), ddpd.MAIN, Reach("", "br0")), False),
    (ddpd.Route(ddpd.parse_prefix(I), ddpd.MAIN, Reach("fe80::9", "br0")), False),
    (ddpd.Route(ddpd.parse_prefix(I), 720, Reach("", "br0")), False),
])
def test_what_an_earlier_run_has_wired_goes_on(route: ddpd.Route, is_adopted: bool) -> None:
    node = node_of(IFACE + "autowire = yes")
    node.adopt([route])
    proxy, dev = node.proxies["eth0"], route.reach.dev
    assert wired(node) == ({I: dev} if is_adopted else {})
    found = silence(proxy, 5.0)
    assert found == ([Probe(dev, packed(I))] * ddpd.PROBES + [Wire(packed(I), "")] if is_adopted else [])
    do(node, *found)
    assert wired(node) == {}
    off = node_of(IFACE)
    off.adopt([route])
    assert wired(off) == {}


def test_a_reload_keeps_what_is_wired_as_long_as_a_rule_says_so() -> None:
    text = POOL + f"[ndp eth0]\n{IFACE}autowire = yes\n"
    hub = Hub(text)
    proxy = hub.node.proxies["eth0"]
    assert fate(proxy, solicitation(I)) == Probe("br0", packed(I))
    do(hub.node, proxy.answered_inside(inside(), "br0", 0.0)[1])
    hub.configure(text)
    assert wired(hub.node) == {I: "br0"} and hub.node.proxies["eth0"] is proxy
    hub.configure(text + "router = no\n")
    assert wired(hub.node) == {I: "br0"} and hub.node.proxies["eth0"] is not proxy
    hub.configure(text.replace("[ndp eth0]\nproxy = ", f"[ndp eth0]\nproxy = never {I}\n  "))
    assert wired(hub.node) == {}


def test_what_is_leased_since_it_was_wired_is_the_leases() -> None:
    """The address, or a prefix around it; and the route does not come back while that lives."""
    for leased in T, "2001:db8:42:100::/56":
        node = node_of("proxy = leased\n  iface 2001:db8:42::/48 br0\nautowire = yes")
        proxy = node.proxies["eth0"]
        assert isinstance(fate(proxy, S), Probe)
        do(node, proxy.answered_inside(inside(T), "br0", 0.0)[1])
        lease = put(node, leased, reach=Reach("", "br1"))
        node.grantor.route(lease)
        do(node, *proxy.let_go())
        assert wired(node) == {lease.prefix.host: "br1"} and not proxy.wired
        with pytest.raises(ddpd.Drop, match="not asked"):
            proxy.answered_inside(inside(T), "br0", 1.0)
        node.adopt([ddpd.wired_route(packed(T), "br0")])
        assert wired(node) == {lease.prefix.host: "br1"} and not proxy.wired


@pytest.mark.parametrize("how", ["silent", "reload", "adopted"])
def test_autowire_leaves_routes_of_leases_alone(how: str) -> None:
    """They may be to the same address: what was wired, and is leased since."""
    node = node_of("proxy = leased\n  iface 2001:db8:42::/48 br0\nautowire = yes")
    proxy = node.proxies["eth0"]
    if how != "adopted":
        assert isinstance(fate(proxy, S), Probe)
        do(node, proxy.answered_inside(inside(T), "br0", 0.0)[1])
    node.grantor.route(put(node, T, reach=Reach("", "br0")))
    if how == "adopted":
        node.adopt([ddpd.wired_route(packed(T), "br0")])
    if how == "reload":
        node.add_proxies(ddpd.read_config(POOL, "f"))
    do(node, *silence(proxy, 1000.0))
    assert wired(node) == {T: "br0"}
