"""Whose is what is there: own leftovers are known again, what others have is given away by nobody.

    exit:down ------------------ home:up   home:br-lan
    192.0.2.1                    192.0.2.2
    2001:db8:1::1                2001:db8:1::2
    grantor                      grantee
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from daemon import Daemon
from lab import Host, Lab, busybox_path, changes, eventually, needs, public_of, wg_name
from life import BOOT

pytestmark = needs("ip link add dev eth0 type veth && command -v busybox")

OURS = "2001:db8:42:1200::/56"
LAN = "2001:db8:42:1200::1/64"
EXIT = f"""
[pool six]
prefix   = 2001:db8:42::/48
give     = /56 /128
[pool four]
prefix   = 10.64.0.0/16
give     = /24
[grantee home]
key   = @home
pools = six four
limit = 2
pin   = {OURS} 10.64.7.0/24
"""
HOME = """
[grantor exit]
key     = @exit
address = 2001:db8:1::1
default = auto
ask     = ::/56 on br-lan
"""
ALL = HOME + "          ::/128 on up\n          0.0.0.0/24 on br-lan\n"
TOOLS = pytest.mark.parametrize("tool", ["iproute2", "busybox"])


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit*", "home*") as lab:
        lab.cable("exit:down 192.0.2.1/24 2001:db8:1::1/64", "home:up 192.0.2.2/24 2001:db8:1::2/64")
        lab["home"].bridge("br-lan")
        yield lab


def path_of(lab: Lab, tool: str) -> str:
    return busybox_path(lab.folder) if tool == "busybox" else ""


def held(home: Daemon) -> list[str]:
    return sorted(row["prefix"] for row in home.status()["held"] if row["prefix"] and row["state"] == "bound")


def refused(home: Daemon) -> list[str]:
    """The reasons, in the order of the log."""
    return re.findall(r"refused .*reason=(\w+)", home.log())


# ==== netifd ==========================================================================


NETIFD = """#!/bin/sh
# As netifd: an address of the prefix on the LAN, left there for two hours when the prefix has gone (RFC 9096).
case $1 in
started)          [ -n "$DDPD_PREFIXES" ] || exit; mode="" ;;
bound)            mode="" ;;
released|stopped) mode="preferred_lft 0 valid_lft 7200" ;;
*)                exit ;;
esac
echo "$1 $DDPD_PREFIXES" >>{folder}/said
ip -6 addr replace {address} dev br-lan $mode
"""


def as_netifd(lab: Lab, address: str = LAN) -> str:
    hook = lab.folder / "netifd"
    hook.write_text(NETIFD.format(folder=lab.folder, address=address))
    hook.chmod(0o755)
    return HOME.replace("default = auto\n", f"install = no\nhook    = {hook}\n")


def has_left(host: Host, address: str) -> bool:
    """It is there, and preferred no longer."""
    return any(address in line and "preferred_lft 0sec" in line for line in
               host.look("-6 -o addr show dev br-lan").splitlines())


@pytest.mark.parametrize("address", [LAN, "2001:db8:42:1200::1/60"], ids=["a /64", "a /60"])
@pytest.mark.parametrize("end", ["release", "stop", "stop and lose the lease file"])
def test_netifds_leftover_is_no_reason_to_refuse(lab: Lab, end: str, address: str) -> None:
    """`install = no`: what the hook has made of the prefix is left there, deprecated; the prefix is taken again."""
    lab["exit"].ddpd(EXIT).start()
    home = lab["home"].ddpd(as_netifd(lab, address)).start()
    home.eventually(lambda: held(home) == [OURS] and address in lab["home"].addresses("br-lan"))
    if end == "release":
        assert home.command("release").returncode == 0
    else:
        home.stop()
        if "lose" in end:
            (home.dir / "leases.json").unlink()
    eventually(lambda: has_left(lab["home"], address), what="the hook has been told")
    if end == "release":
        assert home.command("renew").returncode == 0
    else:
        home.start()
    home.eventually(lambda: held(home) == [OURS], 3)
    home.eventually(lambda: not has_left(lab["home"], address), 3)          # the hook has been told that, too
    assert refused(home) == []


def test_a_stranger_s_address_is_a_reason_whoever_installs(lab: Lab) -> None:
    """One that is preferred, and was there before: the operator has another network with these numbers."""
    lab["home"].ip(f"addr add {LAN} dev br-lan")
    lab["exit"].ddpd(EXIT).start()
    home = lab["home"].ddpd(as_netifd(lab)).start()
    home.eventually(lambda: refused(home) == ["UNTRUSTED"])
    assert held(home) == []


# ==== the lease file is lost ===========================================================


@TOOLS
@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill], ids=["stopped", "killed"])
def test_what_is_left_of_a_lost_lease_file_is_known_again(lab: Lab, end: Callable[[Daemon], int], tool: str) -> None:
    """Deleted "to start afresh": it keeps its prefixes, nothing goes for a moment, and `clean` still removes all."""
    host = lab["home"]
    before = host.kernel()
    lab["exit"].ddpd(EXIT).start()
    home = host.ddpd(ALL, path=path_of(lab, tool)).start()
    home.eventually(lambda: len(held(home)) == 3)
    prefixes, made = held(home), host.settled()
    end(home)
    (home.dir / "leases.json").unlink()
    seen = host.start("ip monitor address route")
    home.start()
    home.eventually(lambda: held(home) == prefixes, 8)
    home.eventually(lambda: host.kernel() == made, 3)
    lan = [address for family in (6, 4) for address in host.addresses("br-lan", family)]
    for text in (*lan, f"unreachable {OURS}"):
        assert not re.search(rf"(?m)^Deleted .*{re.escape(text)}", seen.log()), seen.log()
    assert refused(home) == []
    home.stop()
    assert home.command("clean").returncode == 0
    assert changes(before, host.kernel()) == []


# ==== a LAN with another name ==========================================================


def leased_on(host: Host, dev: str) -> list[str]:
    return sorted(host.addresses(dev, 6) + host.addresses(dev, 4))


@TOOLS
@pytest.mark.parametrize("when", ["while it runs", "while it is stopped"])
def test_a_lan_that_is_renamed_loses_what_the_new_one_gets(lab: Lab, when: str, tool: str) -> None:
    """lan0 is lan9 from now on, and there is another lan0: that has the subnets, and lan9 has nothing of ours."""
    host = lab["home"]
    host.bridge("lan0")
    host.address("lan0", "2001:db8:99::1/64")
    eventually(lambda: "tentative" not in host.look("addr show dev lan0"))
    before = host.kernel()
    lab["exit"].ddpd(EXIT).start()
    home = host.ddpd(ALL.replace("br-lan", "lan0"), path=path_of(lab, tool)).start()
    home.eventually(lambda: len(held(home)) == 3 and len(leased_on(host, "lan0")) == 3)
    if when == "while it is stopped":
        home.stop()
    host.ip("link set dev lan0 name lan9")
    host.bridge("lan0")
    if when == "while it is stopped":
        home.start()
    ours = [LAN, "10.64.7.1/24"]
    home.eventually(lambda: leased_on(host, "lan0") == sorted(ours), 6)
    home.eventually(lambda: leased_on(host, "lan9") == ["2001:db8:99::1/64"], 6)
    routes = host.look("-6 route show table all") + host.look("-4 route show table all")
    assert not re.search(r"(?m)^(local |anycast )?(2001:db8:42:|10\.64\.).* dev lan9 ", routes), routes
    assert [line for line in routes.splitlines() if line.startswith("2001:db8:42:1200::/64 dev lan0 ")]
    assert len(held(home)) == 3 and refused(home) == []
    home.stop()
    assert home.command("clean").returncode == 0
    assert leased_on(host, "lan0") == [] and leased_on(host, "lan9") == ["2001:db8:99::1/64"]
    host.ip("link del dev lan0")
    host.ip("link set dev lan9 name lan0")
    assert changes(before, host.kernel()) == []


def test_two_lans_that_change_their_names(lab: Lab) -> None:
    """lan0 and lan1 are the other way round from now on, and so are the subnets."""
    host = lab["home"]
    for dev in "lan0", "lan1":
        host.bridge(dev)
    macs = {dev: mac(host, dev) for dev in ("lan0", "lan1")}
    lab["exit"].ddpd(EXIT).start()
    home = host.ddpd(HOME.replace("br-lan", "lan0 lan1")).start()
    subnets = {"lan0": [LAN], "lan1": ["2001:db8:42:1201::1/64"]}
    home.eventually(lambda: {dev: leased_on(host, dev) for dev in subnets} == subnets)
    for old, new in (("lan0", "lanx"), ("lan1", "lan0"), ("lanx", "lan1")):
        host.ip(f"link set dev {old} name {new}")
    assert {dev: mac(host, dev) for dev in macs} == {"lan0": macs["lan1"], "lan1": macs["lan0"]}
    home.eventually(lambda: {dev: leased_on(host, dev) for dev in subnets} == subnets, 6)


def mac(host: Host, dev: str) -> str:
    [found] = re.findall(r"link/ether (\S+)", host.look(f"-o link show dev {dev}"))
    return str(found)


# ==== WireGuard's configuration is saved ==================================================


HUB_WG, LEAF_WG = wg_name("hub"), wg_name("leaf")
HUB = f"""
[pool home]
prefix   = 2001:db8:42::/48
give     = /56 /128
[wireguard {HUB_WG}]
pools = home
"""
ADDS = HUB.replace("[wireguard", "[grantee leaf]\nkey   = @leaf\npools = home\n[wireguard") + "add_peers = yes\n"
LEAF = """
[grantor hub]
key     = @hub
address = 192.0.2.1
ask     = ::/56 on lo
"""
OWN = ["fe80::7/128", "10.1.0.0/16"]


@needs("ip tuntap add dev tun0 mode tun && command -v wireguard-go wg")
@pytest.mark.parametrize("by", ["hand", "add_peers"])
def test_leased_allowed_ips_that_were_saved_are_ours_after_a_reboot(by: str) -> None:
    """`SaveConfig = true`: wg-quick has written them down at the end, and puts them back before ddpd is started."""
    with Lab("hub*", "leaf") as lab:
        lab.cable("hub:eth0 192.0.2.1/24", "leaf:eth0 192.0.2.2/24")
        host = lab["hub"]
        by_hand = (f"@leaf allowed-ips {','.join(OWN)}",) if by == "hand" else ()
        host.wireguard(HUB_WG, *by_hand, "@other allowed-ips 2001:db8:42:7700::/56")
        (lab.folder / "fake.py").write_text(BOOT)
        (lab.folder / "boot").write_text("one")
        hub = host.ddpd(HUB if by == "hand" else ADDS,
                        wrap=(sys.executable, str(lab.folder / "fake.py"), str(lab.folder))).start()
        leaf = lab["leaf"].ddpd(LEAF).start()
        leaf.eventually(lambda: len(held(leaf)) == 1)
        [prefix] = held(leaf)
        own = OWN if by == "hand" else []
        whole = {public_of("leaf"): [*own, prefix], public_of("other"): ["2001:db8:42:7700::/56"]}
        eventually(lambda: host.allowed(HUB_WG) == whole)

        saved = host.ask(f"wg showconf {HUB_WG}").stdout
        hub.stop()
        host.ip(f"link del dev {HUB_WG}")
        (lab.folder / "boot").write_text("two")
        host.wireguard(HUB_WG)
        host.sh(f"wg setconf {HUB_WG} /dev/stdin", stdin=saved)
        assert {key: sorted(ips) for key, ips in host.allowed(HUB_WG).items()} == {
            key: sorted(ips) for key, ips in whole.items()}
        hub.start()
        leaf.command("renew")
        leaf.eventually(lambda: held(leaf) == [prefix])
        assert [row["prefix"] for row in hub.status()["granted"]] == [prefix]

        assert leaf.command("release").returncode == 0
        rest = {public_of("other"): ["2001:db8:42:7700::/56"]} | ({public_of("leaf"): sorted(OWN)} if own else {})
        hub.eventually(lambda: {key: sorted(ips) for key, ips in host.allowed(HUB_WG).items()} == rest, 6)


# ==== the grantor's own links ============================================================


def asks(lab: Lab, name: str, want: str, slots: int = 1) -> tuple[list[str], list[str]]:
    """What somebody new is given, and the reasons for what is not."""
    config = "[grantor exit]\nkey = @exit\naddress = 2001:db8:1::1\nask = " + "\n  ".join([want] * slots) + "\n"
    said = json.loads(lab["home"].ddpd(config, name).command("ask", "--json").stdout)
    return [row["prefix"] for row in said["grants"]], [row["reason"].upper() for row in said["refused"]]


def crowd(names: list[str], terms: str) -> str:
    return "".join(f"[grantee {name}]\nkey = @{name}\npools = six\n{terms}" for name in names)


CROWD = [f"n{n}" for n in range(4)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_link_that_is_numbered_out_of_the_pool_is_not_given_away(lab: Lab, when: str) -> None:
    """Two /56s, in one of which this machine's own network lies: one is given, and there is none for the next."""
    host = lab["exit"]
    host.ip("link add dev eth1 type veth peer name eth9")
    host.ip("link set dev eth1 up")
    if when == "before":
        host.address("eth1", "2001:db8:42:ffff::1/64")
    text = "[pool six]\nprefix = 2001:db8:42:fe00::/55\ngive = /56\n"
    exit_ = host.ddpd(text + crowd(CROWD, "route = none\n")).start()
    if when == "after":
        host.address("eth1", "2001:db8:42:ffff::1/64")
    assert asks(lab, "n0", "::/56") == (["2001:db8:42:fe00::/56"], [])
    for name in CROWD[1:]:
        assert asks(lab, name, "::/56") == ([], ["FULL"])
    done = exit_.command("check")
    assert re.search(r"eth1.*2001:db8:42:ffff::|2001:db8:42:ffff::.*eth1", done.stdout + done.stderr), done


def test_an_on_link_network_is_given_but_for_the_own_addresses(lab: Lab) -> None:
    """A rented server: the pool is the network of its interface; all of that is given but what it has itself."""
    host = lab["exit"]
    host.ip("link add dev eth1 type veth peer name eth9")
    host.ip("link set dev eth1 up")
    host.address("eth1", "2001:db8:77:1::5/64")
    text = "[pool six]\nprefix = {}\ngive = {}\n" + crowd(CROWD, "route = none\nlimit = 16\nrate = 100/1s\n")
    exit_ = host.ddpd(text.format("2001:db8:77:1::/64", "/66")).start()
    given, why = asks(lab, "n0", "::/66", 4)
    assert sorted(given) == [f"2001:db8:77:1:{quarter}::/66" for quarter in ("4000", "8000", "c000")]
    assert why == ["FULL"]
    exit_.write(exit_.config.read_text().replace("2001:db8:77:1::/64", "2001:db8:77:1::/125").replace("/66", "/128"))
    assert exit_.command("reload").returncode == 0
    given, why = asks(lab, "n1", "::/128", 8)
    assert sorted(given) == [f"2001:db8:77:1::{n}/128" for n in (1, 2, 3, 4, 6, 7)] and set(why) == {"FULL"}


# ==== refused for a link that goes ======================================================


@pytest.mark.parametrize("goes", ["addr del 2001:db8:42:1277::1/64 dev other0", "link del dev other0",
                                  "link set dev other0 down"])
def test_what_was_in_the_way_goes_and_the_prefix_is_taken_at_once(lab: Lab, goes: str) -> None:
    """Refused as it overlaps a network of somebody else; two seconds after that has gone it is bound."""
    host = lab["home"]
    host.ip("link add dev other0 type veth peer name other1")
    host.ip("link set dev other0 up")
    host.address("other0", "2001:db8:42:1277::1/64")
    lab["exit"].ddpd(EXIT).start()
    home = host.ddpd(HOME).start()
    home.eventually(lambda: refused(home) == ["UNTRUSTED"])
    host.ip(goes)
    home.eventually(lambda: held(home) == [OURS] and host.addresses("br-lan") == [LAN], 2)


def test_what_was_in_the_way_shrinks(lab: Lab) -> None:
    """One of two goes: it is still refused, and not asked for again and again."""
    host = lab["home"]
    host.ip("link add dev other0 type veth peer name other1")
    host.ip("link set dev other0 up")
    host.address("other0", "2001:db8:42:1277::1/64", "2001:db8:42:1278::1/64")
    lab["exit"].ddpd(EXIT).start()
    home = host.ddpd(HOME).start()
    home.eventually(lambda: refused(home) == ["UNTRUSTED"])
    wire = host.record("up")
    host.ip("addr del 2001:db8:42:1277::1/64 dev other0")
    time.sleep(1)
    assert held(home) == []
    host.ip("addr del 2001:db8:42:1278::1/64 dev other0")
    home.eventually(lambda: held(home) == [OURS], 2)
    assert len([each for each in wire.ddpd() if each.dport == 3373]) <= 6
