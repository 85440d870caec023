"""Things become words of `ip`, and what the kernel says becomes things."""

from __future__ import annotations

import socket
import struct

import pytest

import ddpd

NOW = ddpd.Now(1000.0, 0.0)
P6, P4 = ddpd.parse_prefix("2001:db8:1::/56"), ddpd.parse_prefix("10.1.0.0/16")
A6, A4 = ddpd.parse_interface("2001:db8:1::1/64"), ddpd.parse_interface("10.1.0.1/24")
VIA6, VIA4 = ddpd.Reach("fe80::1", "eth0"), ddpd.Reach("192.0.2.1", "")

LINES: list[tuple[ddpd.Thing, str, str]] = [
    (ddpd.Route(P6, 254),
     "route replace unreachable 2001:db8:1::/56 table 254 proto 221 metric 22100",
     "route del unreachable 2001:db8:1::/56 table 254 proto 221 metric 22100"),
    (ddpd.Route(P6, 254, VIA6),
     "route replace 2001:db8:1::/56 via fe80::1 dev eth0 table 254 proto 221 metric 22100",
     "route del 2001:db8:1::/56 via fe80::1 dev eth0 table 254 proto 221 metric 22100"),
    (ddpd.Route(P4, 254, VIA4),
     "route replace 10.1.0.0/16 via 192.0.2.1 table 254 proto 221 metric 22100",
     "route del 10.1.0.0/16 via 192.0.2.1 table 254 proto 221 metric 22100"),
    (ddpd.Route(ddpd.parse_prefix("::/0"), 22101, ddpd.Reach("", "wg0")),
     "route replace ::/0 dev wg0 table 22101 proto 221 metric 22100",
     "route del ::/0 dev wg0 table 22101 proto 221 metric 22100"),
    (ddpd.Address("br0", A6, NOW.boot + 60, NOW.boot + 120.9),
     "addr replace 2001:db8:1::1/64 dev br0 valid_lft 120 preferred_lft 60",
     "addr del 2001:db8:1::1/64 dev br0"),
    (ddpd.Address("br0", A4, 0.0, NOW.boot - 5),
     "addr replace 10.1.0.1/24 dev br0 valid_lft 1 preferred_lft 0", "addr del 10.1.0.1/24 dev br0"),
    (ddpd.Address("br0", A6, float("inf"), float("inf")),
     "addr replace 2001:db8:1::1/64 dev br0 valid_lft forever preferred_lft forever",
     "addr del 2001:db8:1::1/64 dev br0"),
    (ddpd.Rule(6, None, 254), "rule add pref 22100 lookup main suppress_prefixlength 0",
     "rule del pref 22100 lookup main suppress_prefixlength 0"),
    (ddpd.Rule(4, P4, 22103), "rule add pref 22101 from 10.1.0.0/16 lookup 22103",
     "rule del pref 22101 from 10.1.0.0/16 lookup 22103"),
]


@pytest.mark.parametrize(("thing", "add", "delete"), LINES, ids=[row[1][:40] for row in LINES])
def test_words(thing: ddpd.Thing, add: str, delete: str) -> None:
    assert thing.add_line(221, NOW) == add
    assert thing.delete_lines(221)[-1] == delete


def test_an_ipv6_address_loses_its_lifetime_before_it_goes() -> None:
    """Else the kernel leaves the route to its subnet."""
    assert LINES[4][0].delete_lines(221) == [
        "addr change 2001:db8:1::1/64 dev br0 valid_lft forever preferred_lft forever",
        "addr del 2001:db8:1::1/64 dev br0"]
    assert len(LINES[5][0].delete_lines(221)) == len(LINES[0][0].delete_lines(221)) == 1


def test_another_mark() -> None:
    assert ddpd.Route(P6, 254).add_line(99, NOW).endswith("proto 99 metric 9900")
    assert "pref 9901 " in ddpd.Rule(6, P6, 9901).add_line(99, NOW)

# ---- netlink, in bytes that the kernel would send

def attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body + bytes(-len(body) % 4)


def u32(n: int) -> bytes:
    return struct.pack("=I", n)


def route(prefix: ddpd.Prefix, kind: int = 1, proto: int = 221, metric: int = 22100, table: int = 254,
          more: bytes = b"") -> bytes:
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    head = struct.pack("=BBBBBBBBI", family, prefix.length, 0, 0, min(table, 252), proto, 0, kind, 0)
    destination = attribute(1, prefix.packed) if prefix.length else b""
    return head + destination + attribute(15, u32(table)) + attribute(6, u32(metric)) + more


def rule(version: int, pref: int, source: ddpd.Prefix | None, table: int) -> bytes:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    head = struct.pack("=BBBBBBBBI", family, 0, source.length if source else 0, 0, min(table, 252), 0, 0, 1, 0)
    src = attribute(2, source.packed) if source else b""
    return head + attribute(15, u32(table)) + attribute(6, u32(pref)) + src


NAMES = {1: "lo", 2: "eth0", 5: "wg0"}


@pytest.mark.parametrize(("body", "thing"), [
    (route(P6, kind=7, more=attribute(4, u32(1))), ddpd.Route(P6, 254)),
    (route(P4, kind=7), ddpd.Route(P4, 254)),
    (route(P6, more=attribute(5, bytes.fromhex("fe80" + "00" * 13 + "01")) + attribute(4, u32(2))),
     ddpd.Route(P6, 254, VIA6)),
    (route(P4, more=attribute(5, bytes([192, 0, 2, 1])) + attribute(4, u32(2))),
     ddpd.Route(P4, 254, ddpd.Reach("192.0.2.1", "eth0"))),
    (route(ddpd.parse_prefix("::/0"), table=22101, more=attribute(4, u32(5))),
     ddpd.Route(ddpd.parse_prefix("::/0"), 22101, ddpd.Reach("", "wg0"))),
    (route(P6, proto=2), None), (route(P6, proto=99), None), (route(P6, metric=1024), None),
    (route(P6, metric=0), None)])
def test_routes_of_the_kernel(body: bytes, thing: ddpd.Route | None) -> None:
    assert ddpd.route_of(body, 221, NAMES) == thing


@pytest.mark.parametrize(("body", "thing"), [
    (rule(6, 22100, None, 254), ddpd.Rule(6, None, 254)), (rule(4, 22100, None, 254), ddpd.Rule(4, None, 254)),
    (rule(6, 22101, P6, 22101), ddpd.Rule(6, P6, 22101)), (rule(4, 22101, P4, 22105), ddpd.Rule(4, P4, 22105)),
    (rule(6, 0, None, 255), None), (rule(6, 32766, None, 254), None), (rule(4, 22102, P4, 22101), None)])
def test_rules_of_the_kernel(body: bytes, thing: ddpd.Rule | None) -> None:
    assert ddpd.rule_of(body, 221) == thing


def address(index: int, own: ddpd.Prefix, local: bool, far: ddpd.Prefix | None = None) -> bytes:
    family = socket.AF_INET if own.version == 4 else socket.AF_INET6
    head = struct.pack("=BBBBI", family, own.length, 0, 0, index)
    return head + attribute(1, far.packed if far else own.packed) + (attribute(2, own.packed) if local else b"")


MAC = b"\2\0\0\0\0\x05"


def link(index: int, name: str) -> bytes:
    """Of Ethernet, if it is called so."""
    kind = 1 if name.startswith("eth") else 0xFFFE
    return struct.pack("=BBHiII", 0, 0, kind, index, 1, 0) + attribute(1, MAC) + attribute(3, name.encode() + b"\0")


def test_links_and_addresses_of_the_kernel() -> None:
    data = b"".join([message(16, link(2, "eth0")), message(16, link(5, "wg0")),
                     message(20, address(2, A6, local=False)), message(20, address(2, A4, local=True))])
    links = ddpd.links_of(ddpd.netlink_messages(data))
    assert links == ddpd.Links({2: "eth0", 5: "wg0"}, ((2, A6), (2, A4)), {2: 1, 5: 1}, macs={2: MAC},
                               timed=frozenset({(2, A6), (2, A4)}))
    assert links.neighbour(ddpd.parse_host("2001:db8:1::9"), 2)
    assert not links.neighbour(ddpd.parse_host("2001:db8:1::9"), 5)
    assert not links.neighbour(ddpd.parse_host("2001:db8:1::1"), 2), "that is ourselves"
    assert not links.neighbour(ddpd.parse_host("2001:db8:2::9"), 2)
    assert links.neighbour(ddpd.parse_host("10.1.0.77"), 2)


def test_the_far_end_of_a_point_to_point_address_is_a_neighbour() -> None:
    data = b"".join([message(16, link(2, "ppp0")), message(20, address(2, A4._replace(length=32), local=True,
                                                                       far=ddpd.parse_host("10.2.0.1")))])
    links = ddpd.links_of(ddpd.netlink_messages(data))
    assert links.addresses == ((2, A4._replace(length=32)),) and links.far_ends == ((2, ddpd.parse_host("10.2.0.1")),)
    assert links.neighbour(ddpd.parse_host("10.2.0.1"), 2) and not links.neighbour(ddpd.parse_host("10.2.0.1"), 3)
    assert not links.neighbour(ddpd.parse_host("10.2.0.2"), 2)


def test_an_interface_goes_by_the_name_that_the_configuration_uses() -> None:
    others = attribute(52, b"".join(attribute(53, name + b"\0") for name in (b"guest", b"upstream")))
    data = list(ddpd.netlink_messages(message(16, link(2, "eth0") + others)))
    assert [ddpd.links_of(data, called).names[2] for called in ((), ["lan"], ["upstream"], ["upstream", "eth0"])] == \
        ["eth0", "eth0", "upstream", "eth0"]


def test_a_default_route_with_two_next_hops_is_two_gateways() -> None:
    def hop(index: int, via: str) -> bytes:
        parts = attribute(5, ddpd.parse_host(via).packed)
        return struct.pack("=HBBI", 8 + len(parts), 0, 0, index) + parts
    body = struct.pack("=BBBBBBBBI", 10, 0, 0, 0, 254, 3, 0, 1, 0)
    body += attribute(6, struct.pack("=I", 1024)) + attribute(9, hop(2, "fe80::1") + hop(5, "fe80::2"))
    found = ddpd.gateways_of([(24, body)], 221, {2: "eth0", 5: "eth1"})
    assert [(one.reach.via, one.reach.dev, one.scope) for one in found] == \
        [("fe80::1", "eth0", 2), ("fe80::2", "eth1", 5)]


def test_a_host_address_has_no_neighbours() -> None:
    links = ddpd.Links({2: "eth0"}, ((2, ddpd.parse_interface("10.0.0.1/32")),))
    assert not links.neighbour(ddpd.parse_host("10.0.0.1"), 2)
    assert not links.neighbour(ddpd.parse_host("10.0.0.2"), 2)


def test_rules_of_another_table_are_replaced_when_sections_move() -> None:
    """A table's number is the section's place: the old rule would send the packets of one through the other."""
    h, other = (f"[grantor {name}]\nkey = {ddpd.show_key(bytes([n]) * 32)}\naddress = ::1\nask = ::/56\n"
                "default = dev wg0\n" for n, name in enumerate("hg", 1))
    node = ddpd.Node(ddpd.read_config(h, "t"), bytes(32), "b", bytes)
    node.grantees["h"].held = [ddpd.Held(0, P6, bytes(20), NOW.boot + 60, NOW.boot + 60)]
    node.want_grantees()
    before = dict(node.wanted.things)
    node.reconfigure(ddpd.read_config(other + h, "t"), NOW)
    after = node.wanted.things
    assert ddpd.Rule(6, P6, 720) in before.values() and ddpd.Rule(6, P6, 721) in after.values()
    assert ddpd.Rule(6, P6, 720) not in after.values()
    assert {thing.table for thing in node.wanted.things.values() if isinstance(thing, ddpd.Route)} == {254, 721}
