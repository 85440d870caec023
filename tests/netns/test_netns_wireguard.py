"""WireGuard made by ddpd: two files, two programs, and there is a tunnel with addresses and a routed prefix.

    net ----------- hub ~~~~~~~~~~~~~~~~ leaf ------------- host
    2001:db8:f::1   eth0 192.0.2.1       eth0 192.0.2.2     a computer on br-lan
                    [wireguard]          [tunnel]
"""

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from ipaddress import IPv6Network
from pathlib import Path

import pytest

import docs
from daemon import Daemon
from lab import Host, Lab, busybox_path, changes, eventually, needs, public_of, secret_of, wg_name
from peer import GranteePeer, Want

pytestmark = needs("ip link add dev eth0 type veth && ip tuntap add dev tun0 mode tun && command -v wireguard-go wg")

FAR = "2001:db8:f::1"
HUB_WG, LEAF_WG = wg_name("hub"), wg_name("leaf")
POOL = """
[pool home]
prefix   = 2001:db8:42::/48
give     = /56 /128
lifetime = {lifetime}
[grantee leaf]
key   = @leaf
pools = home
limit = 2
"""
HUB = POOL.format(lifetime="1h") + f"""
[wireguard {HUB_WG}]
pools     = home
add_peers = yes
address   = fd00:9::1/64
"""
LEAF = f"""
[grantor hub]
key     = @hub
address = 192.0.2.1
ask     = ::/56 on br-lan
          ::/128 on {LEAF_WG}
[tunnel {LEAF_WG}]
grantor = hub
routes  = fd00:9::/64
"""
FOREIGN = ("link add dev other0 type veth peer name other1", "addr add 2001:db8:98::1/64 dev other0",
           "link set dev other0 up", "route add unreachable 2001:db8:97::/48 proto static",
           "-6 rule add pref 22150 from 2001:db8:98::/64 lookup main")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("net", "hub*", "leaf*", "host") as lab:
        lab.cable(f"net:eth0 {FAR}/64", "hub:net 2001:db8:f::2/64")
        lab.cable("hub:eth0 192.0.2.1/24", "leaf:eth0 192.0.2.2/24")
        lab.cable("leaf:lan", "host:eth0")
        lab["leaf"].bridge("br-lan", "lan")
        lab["net"].ip("route add 2001:db8:42::/48 via 2001:db8:f::2")
        yield lab


def settle_host(lab: Lab) -> str:
    """The host takes an address of the LAN, and its router."""
    net = IPv6Network(lab["leaf"].addresses("br-lan")[0], strict=False)
    lab["host"].look("addr flush dev eth0 scope global")
    lab["host"].look(f"addr add {net[9]}/64 dev eth0")
    lab["host"].look(f"route replace default via {net[1]}")
    return str(net[9])


def is_bound(lab: Lab) -> bool:
    return bool(lab["leaf"].addresses("br-lan")) and bool(lab["leaf"].addresses(LEAF_WG))


def ours(host: Host, dev: str) -> list[str]:
    """All of a kernel that tells of us, or of the tunnel."""
    return [line for line in host.kernel() if " proto 221 " in f"{line} " or dev in line or " 2210" in line]


# ==== the story =======================================================================


def test_two_files_and_there_is_a_tunnel(lab: Lab) -> None:
    """Nothing but keys and one address; soon packets cross, both ways, and nobody reads them."""
    wire = lab["leaf"].record("eth0")
    hub = lab["hub"].ddpd(HUB).start()
    leaf = lab["leaf"].ddpd(LEAF).start()
    leaf.eventually(lambda: is_bound(lab))
    own, began = settle_host(lab), time.monotonic()
    eventually(lambda: lab["host"].reaches(FAR, own), 10, "out", every_s=0.01)
    took_s = time.monotonic() - began
    assert lab["net"].reaches(own), "and in"
    assert lab["leaf"].reaches("fd00:9::1"), "`routes`, from an address of the tunnel's"
    assert took_s < 4, f"{took_s}: WireGuard says it again after 5 s"
    words = b"not to be read by anybody"
    with lab["host"].socket(socket.AF_INET6) as sock, lab["net"].socket(socket.AF_INET6) as far:
        far.bind((FAR, 7777))
        far.settimeout(2)
        sock.sendto(words, (FAR, 7777))
        assert far.recvfrom(99)[0] == words
    frames = b"".join(wire.frames())
    prefix = bytes.fromhex("20010db80042")
    assert words not in frames and prefix not in frames and wire.datagrams(51820)
    [leases] = [lab["hub"].allowed(HUB_WG)[public_of("leaf")]]
    assert sorted(leases) == sorted(row["prefix"] for row in hub.status()["granted"])


def test_what_was_made_goes_and_nothing_else(lab: Lab) -> None:
    """Released, asked for anew, cleaned up: beside it there are things of others."""
    for who in ("hub", "leaf"):
        for line in FOREIGN:
            lab[who].ip(line)
    before = {who: lab[who].kernel() for who in ("hub", "leaf")}
    hub, leaf = lab["hub"].ddpd(HUB).start(), lab["leaf"].ddpd(LEAF).start()
    leaf.eventually(lambda: is_bound(lab))
    held = {row["prefix"] for row in leaf.status()["held"]}
    leaf.command("release")
    leaf.eventually(lambda: lab["leaf"].kernel() == before["leaf"])
    hub.eventually(lambda: lab["hub"].allowed(HUB_WG) == {})
    leaf.command("renew")
    leaf.eventually(lambda: is_bound(lab))
    assert {row["prefix"] for row in leaf.status()["held"]} == held
    for daemon in (hub, leaf):
        daemon.stop()
        assert daemon.command("clean").returncode == 0
    eventually(lambda: {who: lab[who].kernel() for who in before} == before)
    assert not list(Path("/run/wireguard").glob(f"*{os.getpid()}*")), "nobody carries packets any more"


def test_a_restart_is_no_outage(lab: Lab) -> None:
    """The tunnel of before goes on, with its process, port and peer, while both programs are away, and after."""
    hub, leaf = lab["hub"].ddpd(HUB).start(), lab["leaf"].ddpd(LEAF).start()
    leaf.eventually(lambda: is_bound(lab))
    own = settle_host(lab)
    eventually(lambda: lab["host"].reaches(FAR, own))
    before = {who: (lab[who].settled(), lab[who].sh(f"wg show {dev} listen-port"))
              for who, dev in (("hub", HUB_WG), ("leaf", LEAF_WG))}
    for end in (Daemon.stop, Daemon.kill):
        end(hub), end(leaf)
        assert lab["host"].reaches(FAR, own)
        leaf.start()
        time.sleep(0.5)
        assert lab["host"].reaches(FAR, own), "while nobody answers"
        hub.start()
        leaf.eventually(lambda: leaf.status()["held"][0]["state"] == "bound", 15)
        assert lab["host"].reaches(FAR, own)
        assert before == {who: (lab[who].kernel(), lab[who].sh(f"wg show {dev} listen-port"))
                          for who, dev in (("hub", HUB_WG), ("leaf", LEAF_WG))}


@pytest.mark.parametrize("who", ["hub", "leaf"])
def test_an_interface_that_vanishes_comes_back(lab: Lab, who: str) -> None:
    hub, leaf = lab["hub"].ddpd(HUB).start(), lab["leaf"].ddpd(LEAF).start()
    leaf.eventually(lambda: is_bound(lab))
    own = settle_host(lab)
    dev, before = {"hub": HUB_WG, "leaf": LEAF_WG}[who], lab[who].settled()
    lab[who].ip(f"link del dev {dev}")
    daemon = {"hub": hub, "leaf": leaf}[who]
    daemon.eventually(lambda: lab[who].kernel() == before, 45)
    leaf.command("renew")
    eventually(lambda: lab["host"].reaches(FAR, own), 30)        # who is left alone by WireGuard has patience for 15 s


def test_an_interface_of_another_is_not_taken(lab: Lab) -> None:
    lab["leaf"].wireguard(LEAF_WG, "@other allowed-ips fd00::/64", port=4444)
    before = lab["leaf"].ask(f"wg showconf {LEAF_WG}").stdout
    hub, leaf = lab["hub"].ddpd(HUB).start(), lab["leaf"].ddpd(LEAF).start()
    leaf.eventually(lambda: "there is one that ddpd has not made" in leaf.log())
    leaf.eventually(lambda: bool(lab["leaf"].addresses("br-lan")))
    leaf.stop()
    leaf.command("clean")
    assert lab["leaf"].ask(f"wg showconf {LEAF_WG}").stdout == before
    hub.stop()


@pytest.mark.parametrize("who", ["hub", "leaf"])
def test_another_one_of_the_name_of_ours_is_not_taken(lab: Lab, who: str) -> None:
    """While ddpd was away its interface has gone, and somebody has made one of that name."""
    hub, leaf = lab["hub"].ddpd(HUB).start(), lab["leaf"].ddpd(LEAF).start()
    leaf.eventually(lambda: is_bound(lab))
    daemon, dev = {"hub": (hub, HUB_WG), "leaf": (leaf, LEAF_WG)}[who]
    daemon.stop()
    lab[who].ip(f"link del dev {dev}")
    eventually(lambda: not Path(f"/run/wireguard/{dev}.sock").exists())
    lab[who].wireguard(dev, "@other allowed-ips fd00::/64", port=4444, name="operator")
    before = lab[who].ask(f"wg show {dev} dump").stdout.splitlines()
    daemon.start()
    time.sleep(1)
    daemon.stop()
    daemon.command("clean")
    assert [line for line in lab[who].ask(f"wg show {dev} dump").stdout.splitlines() if line in before] == before


def test_a_new_key_of_its_own(lab: Lab) -> None:
    """The tunnel is still ours, and is given the new key; the grantor has been told so."""
    hub, leaf = lab["hub"].ddpd(HUB).start(), lab["leaf"].ddpd(LEAF).start()
    leaf.eventually(lambda: is_bound(lab))
    own = settle_host(lab)
    leaf.stop()
    leaf.write_key(secret_of("new"))
    hub.config.write_text(hub.config.read_text().replace(
        f"key   = {public_of('leaf')}", f"key   = {public_of('new')}\nwas   = {public_of('leaf')}"))
    hub.command("reload")
    leaf.start()
    assert lab["leaf"].sh(f"wg show {LEAF_WG} public-key").strip() in (public_of("leaf"), public_of("new"))
    eventually(lambda: lab["leaf"].sh(f"wg show {LEAF_WG} public-key").strip() == public_of("new"))
    assert settle_host(lab) == own
    eventually(lambda: lab["host"].reaches(FAR, own), 20)
    assert list(lab["hub"].allowed(HUB_WG)) == [public_of("new")]


def test_a_grantor_with_another_key(lab: Lab) -> None:
    """Its WireGuard's, that is: the peer of before goes, and the endpoint is told to the new one."""
    hub, leaf = lab["hub"].ddpd(HUB).start(), lab["leaf"].ddpd(LEAF).start()
    leaf.eventually(lambda: is_bound(lab))
    (lab.folder / "other").write_text(b64encode(secret_of("other")).decode())
    lab["hub"].sh(f"wg set {HUB_WG} private-key {lab.folder}/other")
    leaf.eventually(lambda: public_of("other") in lab["leaf"].allowed(LEAF_WG), 40)
    assert lab["leaf"].sh(f"wg show {LEAF_WG} endpoints").split() == [public_of("other"), "192.0.2.1:51820"]
    hub.stop()


@pytest.mark.parametrize("level", ["verbose", "error"])
def test_a_talkative_wireguard_go(lab: Lab, level: str) -> None:
    lab["hub"].ddpd(HUB).start()
    leaf = lab["leaf"].ddpd(LEAF)
    leaf.env = {**leaf.env, "LOG_LEVEL": level}
    leaf.start()
    leaf.eventually(lambda: is_bound(lab))


def test_with_busybox(lab: Lab) -> None:
    path = busybox_path(lab.folder)
    hub, leaf = lab["hub"].ddpd(HUB, path=path).start(), lab["leaf"].ddpd(LEAF, path=path).start()
    leaf.eventually(lambda: is_bound(lab))
    own = settle_host(lab)
    eventually(lambda: lab["host"].reaches(FAR, own))
    leaf.command("release")
    leaf.eventually(lambda: not any(LEAF_WG in line for line in lab["leaf"].kernel()))
    hub.stop()


def test_asked_inside_of_the_tunnel_too(lab: Lab) -> None:
    """By `address = IF`: when the way outside is closed, the way inside is found, and the lease goes on."""
    config = HUB.replace("1h", "20s")
    hub = lab["hub"].ddpd(config).start()
    leaf = lab["leaf"].ddpd(LEAF.replace("192.0.2.1", f"192.0.2.1 {LEAF_WG}")).start()
    leaf.eventually(lambda: is_bound(lab))
    lab["hub"].nft("table inet shut { chain in { type filter hook input priority 0; "
                   "iifname eth0 udp dport 3373 drop; }; }")
    leaf.eventually(lambda: "fd00:9::1" in str(leaf.status()["grantors"][0]["at"]), 20)
    eventually(lambda: min(row["valid"] for row in leaf.status()["held"]) > 15, 10)
    told = lab["leaf"].sh(f"wg show {LEAF_WG} endpoints")
    assert "192.0.2.1:51820" in told, "the tunnel does not lead through itself"
    hub.stop()


def test_an_endpoint_by_name_and_told_prefixes(lab: Lab) -> None:
    """Names are looked up here; what is told is written as numbers, and nothing of it is a word of a command."""
    config = HUB + "endpoint = vpn.test:4567\nallowed = 2001:db8::/32\nkeepalive = 7s\n"
    lab["hub"].ddpd(config.replace("address   =", "listen    = 4567\naddress   =")).start()
    resolv = lab.folder / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:5 attempts:1\n")
    lab["leaf"].start("dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --interface=lo "
                      "--bind-interfaces --host-record=vpn.test,192.0.2.1")
    eventually(lambda: "127.0.0.1:53 " in lab["leaf"].ask("ss -Hlun").stdout)
    mounts = f"mount --make-rprivate / && mount --bind {resolv} /etc/resolv.conf"
    leaf = lab["leaf"].ddpd(LEAF, wrap=("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")).start()
    leaf.eventually(lambda: is_bound(lab), 15)
    shown = lab["leaf"].sh(f"wg show {LEAF_WG} dump").splitlines()[1].split("\t")
    assert shown[2:4] == ["192.0.2.1:4567", "2001:db8::/32"] and shown[7] == "7"


def test_a_name_that_nobody_knows_makes_no_tunnel(lab: Lab) -> None:
    lab["hub"].ddpd(HUB + "endpoint = nowhere.invalid:51820\n").start()
    leaf = lab["leaf"].ddpd(LEAF).start()
    leaf.eventually(lambda: bool(lab["leaf"].addresses("br-lan")))
    assert LEAF_WG not in lab["leaf"].look("link show")


# ==== the peers of an interface =======================================================


@pytest.fixture
def peers() -> Iterator[Lab]:
    """A grantor with an interface made by hand, and one grantee that is a peer of it, made by hand too."""
    with Lab("hub*", "leaf") as lab:
        lab.cable("hub:eth0 192.0.2.1/24", "leaf:eth0 192.0.2.2/24")
        lab["hub"].wireguard(HUB_WG, "@leaf allowed-ips fe80::7/128,10.1.0.0/16")
        lab["leaf"].wireguard(LEAF_WG, "@hub allowed-ips ::/0 endpoint 192.0.2.1:51820")
        lab["leaf"].ip(f"addr add fe80::7/128 dev {LEAF_WG}")
        yield lab


PEERS = f"""
[pool home]
prefix   = 2001:db8:42::/48
give     = /56 /128
lifetime = 1h
[wireguard {HUB_WG}]
pools = home
"""
ASKS = """
[grantor hub]
key     = @{hub}
address = 192.0.2.1
ask     = ::/56 on lo
"""


def test_peers_come_and_go(peers: Lab) -> None:
    """One that is added may ask at once; one that is removed has nothing; a new key has what the old one had."""
    own = ["fe80::7/128", "10.1.0.0/16"]
    hub = peers["hub"].ddpd(PEERS).start()
    leaf = peers["leaf"].ddpd(ASKS.format(hub="hub")).start()
    leaf.eventually(lambda: bool(leaf.status()["held"]))
    prefix = leaf.status()["held"][0]["prefix"]
    eventually(lambda: peers["hub"].allowed(HUB_WG) == {public_of("leaf"): [*own, prefix]})

    second = peers["leaf"].ddpd(ASKS.format(hub="hub").replace("on lo", ""), name="second")
    asked = second.command("ask", "--json", "--wait", "1")
    assert asked.returncode == 3, "a stranger"
    peers["hub"].sh(f"wg set {HUB_WG} peer {public_of('second')}")
    asked = second.command("ask", "--json", "--wait", "2")
    assert asked.returncode == 0, asked.stderr
    got = json.loads(asked.stdout)["grants"][0]["prefix"]
    eventually(lambda: peers["hub"].allowed(HUB_WG)[public_of("second")] == [got])

    peers["hub"].sh(f"wg set {HUB_WG} peer {public_of('second')} remove")
    hub.eventually(lambda: got not in {row["prefix"] for row in hub.status()["granted"]}, 30)
    assert second.command("ask", "--json", "--wait", "1").returncode == 3
    assert not any(got in line for line in peers["hub"].routes())


def test_a_key_that_is_changed(peers: Lab) -> None:
    hub = peers["hub"].ddpd(PEERS).start()
    leaf = peers["leaf"].ddpd(ASKS.format(hub="hub")).start()
    leaf.eventually(lambda: bool(leaf.status()["held"]))
    prefix = leaf.status()["held"][0]["prefix"]
    leaf.stop()
    peers["hub"].sh(f"wg set {HUB_WG} peer {public_of('leaf')} remove peer {public_of('new')} allowed-ips fe80::7/128")
    new = f"\n[grantee leaf]\nkey = {public_of('new')}\nwas = {public_of('leaf')}\npools = home\n"
    hub.config.write_text(hub.config.read_text() + new)
    assert hub.command("reload").returncode == 0
    hub.eventually(lambda: peers["hub"].allowed(HUB_WG) == {public_of("new"): ["fe80::7/128", prefix]})
    leaf.write_key(secret_of("new"))
    leaf.start()
    leaf.eventually(lambda: [row["state"] for row in leaf.status()["held"]] == ["bound"])
    assert leaf.status()["held"][0]["prefix"] == prefix


def test_addresses_found_at_the_first_start(peers: Lab) -> None:
    """With no lease file, what is on the tunnel is held for 15 s: it is confirmed, or goes."""
    asks = ASKS.format(hub="hub").replace("::/56 on lo", f"::/128 on {LEAF_WG}")
    hub = peers["hub"].ddpd(PEERS).start()
    leaf = peers["leaf"].ddpd(asks).start()
    leaf.eventually(lambda: bool(peers["leaf"].addresses(LEAF_WG)))
    [own] = peers["leaf"].addresses(LEAF_WG)
    leaf.kill()
    (leaf.dir / "leases.json").unlink()                           # its record is lost, its address still there
    leaf.start()
    leaf.eventually(lambda: [60 < row["valid"] <= 3600 for row in leaf.status()["held"]] == [True])
    assert peers["leaf"].addresses(LEAF_WG) == [own] and hub.status()["granted"][0]["prefix"] == own
    leaf.stop()
    leaf.command("clean")
    (leaf.dir / "leases.json").unlink()
    for address in ("2001:db8:42::7/128", "2001:db8:43::7/64"):
        peers["leaf"].ip(f"addr add {address} dev {LEAF_WG}")
    leaf.start()
    leaf.eventually(lambda: own in peers["leaf"].addresses(LEAF_WG))
    assert "2001:db8:42::7/128" in peers["leaf"].addresses(LEAF_WG)
    leaf.eventually(lambda: {*peers["leaf"].addresses(LEAF_WG)} == {"2001:db8:43::7/64", own}, 25)


def test_an_address_of_another_kind_is_left_alone(peers: Lab) -> None:
    """At the first start there is an address that is nothing like a lease of that grantor: it is the operator's."""
    peers["hub"].ddpd(PEERS).start()
    peers["leaf"].ip(f"addr add fd00:9::2/128 dev {LEAF_WG}")
    leaf = peers["leaf"].ddpd(ASKS.format(hub="hub").replace("::/56 on lo", f"::/128 on {LEAF_WG}")).start()
    leaf.eventually(lambda: len(peers["leaf"].addresses(LEAF_WG)) == 2)
    leaf.stop()
    assert leaf.command("clean").returncode == 0
    shown = peers["leaf"].look(f"-6 -o addr show dev {LEAF_WG} scope global")
    assert "fd00:9::2/128" in shown and "valid_lft forever" in shown and len(shown.splitlines()) == 1


def printed(begin: str) -> str:
    """The block that begins so, with the keys of here."""
    block = docs.printed(begin)
    for there, here in (("AvRrA7O4QhBqvpkZGJOBiVEkvWMTRq5kP4EMIcPJ7H4=", public_of("leaf")),
                        ("5Pz6YYy4WuOEnLQDDjYOTKO+Y7z3XKmkfnmMmUrDL0U=", public_of("hub")),
                        ("KIYmxqiBZzbIV+uQ1xbKTkL2UhKSiHhdtRfR1Ny9PHE=", b64encode(secret_of("leaf")).decode())):
        block = block.replace(there, here)
    return block


@pytest.fixture
def alice() -> Iterator[Lab]:
    with Lab("hub*", "leaf*") as lab:
        lab.cable("hub:eth0 203.0.113.1/24", "leaf:eth0 203.0.113.2/24")
        lab["leaf"].bridge("br-lan")
        lab["hub"].address("lo", "2001:db8:42:ffff::1/128")
        yield lab


def test_the_two_files_as_printed(alice: Lab) -> None:
    alice["hub"].ddpd(printed("; /etc/ddpd.conf on the hub").replace("wg0", HUB_WG)).start()
    leaf = alice["leaf"].ddpd(printed("; /etc/ddpd.conf at alice's").replace("wg0", LEAF_WG)).start()
    leaf.eventually(lambda: len(alice["leaf"].addresses("br-lan")) == 1 == len(alice["leaf"].addresses(LEAF_WG)))
    own = alice["leaf"].addresses("br-lan")[0].split("/")[0]
    eventually(lambda: alice["leaf"].reaches("fd00:9::1", own))


def test_wg_quick_as_printed(alice: Lab) -> None:
    """It asks before there is an interface, and has an address when there is one."""
    hub = alice["hub"].ddpd(printed("; /etc/ddpd.conf on the hub").replace("wg0", HUB_WG)).start()
    leaf = alice["leaf"].ddpd(printed("; /etc/ddpd.conf at alice's").replace("wg0", LEAF_WG))
    tools = alice.folder / "tools"
    tools.mkdir()
    (tools / "ddpd").write_text(f'#!/bin/sh\nexec {sys.executable} {leaf.program} "$@"\n')
    (tools / "ddpd").chmod(0o755)
    conf = alice.folder / f"{LEAF_WG}.conf"
    text = printed("# /etc/wireguard/wg0.conf at alice's").replace("/etc/ddpd.conf", str(leaf.config))
    conf.write_text(text.replace("/run/", f"{alice.folder}/"))
    conf.chmod(0o600)
    alice["leaf"].sh(f"env PATH={tools}:{os.environ['PATH']} wg-quick up {conf}")
    try:
        own = {address.split("/")[0] for address in alice["leaf"].addresses(LEAF_WG)}
        assert own & {row["prefix"].split("/")[0] for row in hub.status()["granted"]}
        eventually(lambda: alice["leaf"].reaches("2001:db8:42:ffff::1", own.copy().pop()))
        assert alice["leaf"].reaches("fd00:9::1")
    finally:
        alice["leaf"].sh(f"wg-quick down {conf}")


def test_introductions(peers: Lab) -> None:
    """`introduce --wg` is what wg-quick and `wg addconf` take."""
    hub = peers["hub"].ddpd(PEERS + "endpoint = 192.0.2.1:51820\nallowed = fd00::/8\n")
    leaf = peers["leaf"].ddpd(ASKS.format(hub="hub"))
    said = hub.command("introduce", "--wg").stdout
    assert said == (f"[Peer]\nPublicKey = {public_of('hub')}\nEndpoint = 192.0.2.1:51820\nAllowedIPs = fd00::/8\n"
                    "PersistentKeepalive = 25\n")
    peers["leaf"].sh(f"wg set {LEAF_WG} peer {public_of('hub')} remove")
    peers["leaf"].sh(f"wg addconf {LEAF_WG} /dev/stdin", stdin=said)
    assert peers["leaf"].allowed(LEAF_WG) == {public_of("hub"): ["fd00::/8"]}
    said = leaf.command("introduce", "--wg").stdout
    peers["hub"].sh(f"wg set {HUB_WG} peer {public_of('leaf')} remove")
    peers["hub"].sh(f"wg addconf {HUB_WG} /dev/stdin", stdin=said)
    assert peers["hub"].allowed(HUB_WG) == {public_of("leaf"): []}


def test_secrets_stay_secret(lab: Lab) -> None:
    """Neither in an argument, nor in a log, nor in a file that others may read."""
    spy = lab.folder / "spy"
    spy.mkdir()
    for program in ("wg", "ip"):
        where = subprocess.run(["which", program], capture_output=True, text=True, check=True).stdout.strip()
        (spy / program).write_text(f'#!/bin/sh\necho "{program} $*" >>{lab.folder}/said\nexec {where} "$@"\n')
        (spy / program).chmod(0o755)
    hub, leaf = lab["hub"].ddpd(HUB, path=str(spy)).start(), lab["leaf"].ddpd(LEAF, path=str(spy)).start()
    leaf.eventually(lambda: is_bound(lab))
    said = (lab.folder / "said").read_text() + hub.log() + leaf.log() + leaf.command("show", "hub").stdout
    for daemon in (hub, leaf):
        assert (daemon.dir / "key").read_text().strip() not in said
        assert f"private-key {daemon.dir / 'key'}" in said
    assert re.search(r"wg addconf \S+ /dev/stdin\n", said)


@pytest.mark.parametrize(("wg", "says"), [
    ("exec sleep 60", "Connection timed out"), ("echo nonsense", "not a key"), ("exit 7", "wg failed"),
    ("exec head -c 3000000 /dev/zero", "not a key"), (r"printf '\377\376' >&2; exit 1", "cannot see peers"),
])
def test_a_wg_that_is_out_of_order(peers: Lab, wg: str, says: str) -> None:
    """It costs the asks of others little; what is there stays; and when it works again, so does everything."""
    hub = peers["hub"].ddpd(PEERS + f"[grantee second]\nkey = {public_of('second')}\npools = home\n").start()
    leaf = peers["leaf"].ddpd(ASKS.format(hub="hub")).start()
    leaf.eventually(lambda: bool(leaf.status()["held"]))
    before = peers["hub"].allowed(HUB_WG)
    hub.kill()
    folder = peers.folder / "broken"
    folder.mkdir()
    (folder / "wg").write_text(f"#!/bin/sh\n{wg}\n")
    (folder / "wg").chmod(0o755)
    hub.env = {**hub.env, "PATH": f"{folder}:{os.environ['PATH']}"}
    hub.start()
    assert says in hub.log()
    second = peers["leaf"].ddpd(ASKS.format(hub="hub").replace("on lo", ""), name="second")
    for _ in range(3):
        assert second.command("ask", "--json", "--wait", "5").returncode == 0
    assert hub.log().count("cannot see peers") == 1, "said once"
    (folder / "wg").unlink()
    hub.eventually(lambda: peers["hub"].allowed(HUB_WG) == before, 30)
    leaf.command("renew")
    leaf.eventually(lambda: [row["state"] for row in leaf.status()["held"]] == ["bound"])
    assert peers["hub"].allowed(HUB_WG) == before


# ==== killed ==========================================================================


KILL_AT = """#!/bin/sh
# Counts the commands of one program; at the n-th its parent is killed, before or after it has been carried out.
n=$(($(cat {folder}/count) + 1))
echo $n >{folder}/count
[ "$n $WHEN" != "$KILL_AT before" ] || {{ kill -9 $PPID; exit 1; }}
{where} "$@"
code=$?
[ "$n $WHEN" != "$KILL_AT after" ] || kill -9 $PPID
exit $code
"""


def killing(folder: Path) -> str:
    spy = folder / "kill"
    spy.mkdir()
    for program in ("wg", "ip", "wireguard-go"):
        where = subprocess.run(["which", program], capture_output=True, text=True, check=True).stdout.strip()
        (spy / program).write_text(KILL_AT.format(folder=folder, where=where))
        (spy / program).chmod(0o755)
    return str(spy)


def run_killed(daemon: Daemon, folder: Path, at: int, when: str, until: Callable[[], bool], within_s: float) -> bool:
    """Start it, to be killed at its n-th command; was it?"""
    (folder / "count").write_text("0")
    daemon.env = {**daemon.env, "KILL_AT": str(at), "WHEN": when}
    daemon.launch()
    end = time.monotonic() + within_s
    while time.monotonic() < end and daemon.running() and not until():
        time.sleep(0.01)
    killed = not daemon.running()
    daemon.kill()
    return killed


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("who", ["hub", "leaf"])
def test_killed_at_every_command(lab: Lab, who: str, when: str) -> None:
    """From nothing to a tunnel, killed at the first command, at the second, ...: the next start brings it about."""
    path = killing(lab.folder)
    hub = lab["hub"].ddpd(HUB, path=path if who == "hub" else "")
    leaf = lab["leaf"].ddpd(LEAF, path=path if who == "leaf" else "")
    for line in FOREIGN:
        lab[who].ip(line)
    nothing = lab[who].kernel()
    victim, other = (hub, leaf) if who == "hub" else (leaf, hub)
    (lab.folder / "count").write_text("0")
    other.start()
    victim.start()
    victim.eventually(lambda: is_bound(lab))

    def allowed() -> list[str]:
        return sorted(lab["hub"].allowed(HUB_WG).get(public_of("leaf"), ()))

    eventually(lambda: len(allowed()) == 2)
    dev, at, killed = HUB_WG if who == "hub" else LEAF_WG, 0, True
    all_of_it, rows = ours(lab[who], dev), "granted" if who == "hub" else "held"

    def is_there() -> bool:
        return ours(lab[who], dev) == all_of_it and len(allowed()) == 2

    while killed and at < 60:
        victim.kill()
        victim.command("clean")
        eventually(lambda: lab[who].kernel() == nothing, what=f"killed at {at}: clean")
        at += 1
        if who == "hub":
            leaf.command("renew")
        killed = run_killed(victim, lab.folder, at, when, is_there, 20)
        victim.env["KILL_AT"] = "0"
        victim.start()
        leaf.command("renew")                                     # two crashes in a row end what nobody has renewed
        try:
            victim.eventually(is_there, 20)
        except AssertionError:
            print(f"killed {when} command {at}:", *changes(all_of_it, ours(lab[who], dev)), *allowed(), sep="\n")
            raise
        assert allowed() == sorted(row["prefix"] for row in victim.status()[rows])
    assert at > 9, "it needs more commands than that"


# ==== whoever writes there ============================================================

STEPS, SEED = 50, int(os.environ.get("DDPD_SEED", "970"))
TEN = tuple(f"peer{n}" for n in range(10))
BY_HAND = ("::/0", "0.0.0.0/0", "2001:db8:42:8000::/50", "2001:db8:42:1200::/56", "2001:db8:42:1300::/64",
           "10.1.0.0/16", "10.9.0.0/25", "2001:db8:42:1400::7/128", "fd00:1::/64", "fd00:1::1/128", "fe80::77/128",
           "192.0.2.77/32")


class Crowd:
    """Ten peers of an interface, with entries of every kind; what is whose is written down here."""

    def __init__(self, lab: Lab, hub: Daemon) -> None:
        self.lab, self.hub, self.dice = lab, hub, random.Random(SEED)
        self.askers = {name: GranteePeer(secret_of(name), b64decode(public_of("hub"))) for name in TEN}
        self.foreign: dict[str, list[str]] = {name: [] for name in TEN}

    def listed(self) -> dict[str, list[str]]:
        allowed = self.lab["hub"].allowed(HUB_WG)
        return {name: allowed[public_of(name)] for name in TEN if public_of(name) in allowed}

    def leased(self) -> dict[str, list[str]]:
        rows = self.hub.status()["granted"]
        return {name: sorted(row["prefix"] for row in rows if row["key"] == public_of(name)) for name in TEN}

    def is_right(self) -> bool:
        listed, leased = self.listed(), self.leased()
        as_by_hand = all([entry for entry in listed[name] if entry in self.foreign[name]] == self.foreign[name]
                         and sorted({*self.foreign[name], *leased[name]}) == sorted(listed[name]) for name in listed)
        return as_by_hand and not any(leased[name] for name in TEN if name not in listed)

    # -- what happens ------------------------------------------------------------------

    def ask(self, name: str) -> None:
        want = self.dice.choice(("::/56", "::/60", "::/64", "::/128"))
        self.tell(self.askers[name].ask([Want(self.dice.randrange(2), want)]))

    def release(self, name: str) -> None:
        self.tell(self.askers[name].ask([], [0, 1]))

    def tell(self, datagram: bytes) -> None:
        with self.lab["leaf"].socket(socket.AF_INET) as sock:
            sock.settimeout(1)
            sock.sendto(datagram, ("192.0.2.1", 3373))
            try:
                sock.recv(2048)
            except TimeoutError:                                  # no peer at this moment
                pass

    def write(self, name: str) -> None:
        """`wg` moves an entry from whom it was of, silently."""
        entry, listed = self.dice.choice(BY_HAND), self.listed()
        if name not in listed or entry in listed[name]:
            return
        at = self.dice.randrange(len(listed[name]) + 1)
        allowed = [*listed[name][:at], entry, *listed[name][at:]]
        for other in TEN:
            self.foreign[other] = [old for old in self.foreign[other] if old != entry]
        self.foreign[name] = [old for old in allowed if old in (*self.foreign[name], entry)]
        self.lab["hub"].sh(f"wg set {HUB_WG} peer {public_of(name)} allowed-ips {','.join(allowed)}")
        self.look()

    def strike(self, name: str) -> None:
        """One of theirs, or one of ours, which then comes back."""
        listed = self.listed().get(name, [])
        if listed:
            entry = self.dice.choice(listed)
            rest = [old for old in listed if old != entry]
            self.foreign[name] = [old for old in self.foreign[name] if old != entry]
            self.lab["hub"].sh(f"wg set {HUB_WG} peer {public_of(name)} allowed-ips '{','.join(rest)}'")
            self.look()

    def come_or_go(self, name: str) -> None:
        is_there = name in self.listed()
        self.lab["hub"].sh(f"wg set {HUB_WG} peer {public_of(name)}" + " remove" * is_there)
        self.foreign[name] = []
        self.look()

    def look(self) -> None:
        """It looks every three seconds; and, half of the time, now."""
        if self.dice.random() < 0.5:
            self.hub.command("reload")

    def crash(self, _: str) -> None:
        self.hub.kill()
        self.hub.start()


def test_random_steps(peers: Lab) -> None:
    """After each of them what others wrote is as they wrote it, in their order, and ours are exactly the leases."""
    lab = peers
    lab["hub"].sh(f"wg set {HUB_WG} peer {public_of('leaf')} remove")
    hub = lab["hub"].ddpd(PEERS + "limit = 2\nrate = 1000/1s\n").start()
    crowd = Crowd(lab, hub)
    for name in TEN[:7]:
        crowd.come_or_go(name)
        crowd.write(name)
    psk = lab.folder / "psk"
    psk.write_text(b64encode(bytes([7]) * 32).decode())
    lab["hub"].sh(f"wg set {HUB_WG} peer {public_of(TEN[0])} preshared-key {psk} endpoint 192.0.2.2:7 "
                  "persistent-keepalive 9")
    steps = [crowd.ask] * 5 + [crowd.release, crowd.write, crowd.write, crowd.strike, crowd.come_or_go, crowd.crash]
    for n in range(STEPS):
        step, name = crowd.dice.choice(steps), crowd.dice.choice(TEN[1:] if n % 2 else TEN[:1] + TEN[1:4])
        if step != crowd.come_or_go or name != TEN[0]:
            print(f"[{n}] {step.__name__} {name}")
            step(name)
            eventually(crowd.is_right, 30, f"step {n}: {crowd.listed()} {crowd.leased()} {crowd.foreign}")
    rows = [row.split("\t") for row in lab["hub"].sh(f"wg show {HUB_WG} dump").splitlines()]
    [row] = [row for row in rows if row[0] == public_of(TEN[0])]
    assert (row[1], row[2], row[7]) == (psk.read_text(), "192.0.2.2:7", "9"), "all else stays too"
