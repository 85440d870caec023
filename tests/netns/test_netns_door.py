"""wg-dynamic through real tunnels: who has which address; who is slow, idle or wrong, or comes a thousand times.

    leaf ~~~~~~~~~~~~ hub ~~~~~~~~~~~~ two
    fe80::7         fe80::         fe80::8
"""

import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import Daemon
from lab import Lab, busybox_path, eventually, needs, public_of, wg_name

pytestmark = needs("ip link add dev eth0 type veth && ip tuntap add dev tun0 mode tun && command -v wireguard-go wg")

HUB_WG = wg_name("hub")
WG = {name: wg_name(name) for name in ("leaf", "two")}
HUB = f"""
[pool six]
prefix   = 2001:db8:42::/48
give     = /128
lifetime = 1h
[pool four]
prefix   = 10.9.0.0/24
give     = /32
lifetime = 1h
[wireguard {HUB_WG}]
pools = six four
"""
ANY = b"request_ip=1\nip=0.0.0.0\nip=::\n\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("hub*", "leaf", "two") as lab:
        lab.cable("hub:leaf 192.0.2.1/24", "leaf:eth0 192.0.2.2/24")
        lab.cable("hub:two 192.0.3.1/24", "two:eth0 192.0.3.2/24")
        lab["hub"].wireguard(HUB_WG, "@leaf allowed-ips fe80::7/128", "@two allowed-ips fe80::8/128")
        for name, own, at in (("leaf", "fe80::7", "192.0.2.1"), ("two", "fe80::8", "192.0.3.1")):
            lab[name].wireguard(WG[name], f"@hub allowed-ips fe80::/64 endpoint {at}:51820")
            lab[name].ip(f"addr add {own}/128 dev {WG[name]}")
            lab[name].ip(f"route add fe80::/128 dev {WG[name]}")
        yield lab


@pytest.fixture
def hub(lab: Lab) -> Iterator[Daemon]:
    hub = lab["hub"].ddpd(HUB).start()
    hub.eventually(lambda: "local fe80:: " in lab["hub"].look(f"-6 route show table local dev {HUB_WG}"))
    yield hub
    print(hub.log())
    hub.kill()
    hub.command("clean")
    lab["hub"].daemons.clear()


def index_of(lab: Lab, who: str) -> int:
    return int(lab[who].look(f"-o link show {WG[who]}").split(":")[0])


def caller(lab: Lab, who: str = "leaf") -> socket.socket:
    sock = lab[who].socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.settimeout(3)
    sock.bind(({"leaf": "fe80::7", "two": "fe80::8"}[who], 0, 0, index_of(lab, who)))
    sock.connect(("fe80::", 970, 0, index_of(lab, who)))
    return sock


def heard(sock: socket.socket) -> str:
    """Up to the empty line, or the end."""
    data = b""
    while not data.endswith(b"\n\n") and (more := sock.recv(9000)):
        data += more
    return data.decode()


def said(lab: Lab, message: bytes, who: str = "leaf") -> dict[str, str]:
    with caller(lab, who) as sock:
        sock.sendall(message)
        rows = [line.split("=", 1) for line in heard(sock).splitlines() if line]
    return {key: " ".join(value for name, value in rows if name == key) for key, _ in rows}


def test_an_address_of_each_family(lab: Lab, hub: Daemon) -> None:
    first = said(lab, ANY)
    four, six = first["ip"].split()
    assert first["errno"] == "0" and first["leasetime"] == "3600"
    allowed = lab["hub"].allowed(HUB_WG)
    assert allowed == {public_of("leaf"): ["fe80::7/128", four, six], public_of("two"): ["fe80::8/128"]}
    routes = lab["hub"].routes()
    assert len(routes) == 2 and all(f"dev {HUB_WG} " in route for route in routes)
    hub.kill()
    hub.start()
    assert said(lab, f"request_ip=1\nip={four}\nip={six}\n\n".encode())["ip"] == first["ip"], "it was on disk"
    assert said(lab, f"request_ip=1\nip={four}\n\n".encode(), "two")["errno"] == "3"
    assert said(lab, f"request_ip=1\nip={six}\n\n".encode())["ip"] == six
    assert lab["hub"].allowed(HUB_WG)[public_of("leaf")] == ["fe80::7/128", six]


@pytest.mark.parametrize(("message", "errno"), [
    (b"request_ip=2\n\n", "2"), (b"hello\n\n", "1"), (b"request_ip=1\nip=x\n\n", "1"),
    (b"request_ip=1\nip=\0", "1"), (b"request_ip=1\nx=" + b"y" * 4096, "1"),
    (b"request_ip=1\n" + b"x=yyyyyyyyyyyyyyy\n" * 500, "1"),
])
def test_what_is_wrong_is_told(lab: Lab, hub: Daemon, message: bytes, errno: str) -> None:
    assert said(lab, message)["errno"] == errno
    assert said(lab, ANY)["errno"] == "0" and hub.running()


def test_one_message_after_the_other_and_in_pieces(lab: Lab, hub: Daemon) -> None:
    with caller(lab) as sock:
        for octet in ANY:
            sock.sendall(bytes([octet]))
        first = heard(sock)
        sock.sendall(ANY)
        assert heard(sock).split("leasestart")[0] == first.split("leasestart")[0]
        sock.sendall(ANY + ANY)
        heard(sock)
        assert sock.recv(9) == b"", "who does not wait for an answer is answered once"
    assert hub.running()


def test_who_hangs_up_early(lab: Lab, hub: Daemon) -> None:
    for n in range(len(ANY)):
        with caller(lab) as sock:
            sock.sendall(ANY[: n + 1])
    assert said(lab, ANY)["errno"] == "0" and hub.running()


@pytest.mark.parametrize("who", ["the same", "another"])
def test_a_thousand_idle_ones_are_in_nobodys_way(lab: Lab, hub: Daemon, who: str) -> None:
    """Whether they are of the same peer as who is served, or of another one; and no descriptor is left over."""
    index, idle = index_of(lab, "leaf"), []
    for _ in range(1000):
        sock = lab["leaf"].socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.bind(("fe80::7", 0, 0, index))
        assert sock.connect_ex(("fe80::", 970, 0, index))
        idle.append(sock)
    took = []
    for _ in range(9):
        began = time.perf_counter()
        assert said(lab, ANY, "leaf" if who == "the same" else "two")["errno"] == "0"
        took.append(time.perf_counter() - began)
    assert hub.process is not None
    assert statistics.median(took) < 0.5, f"{took}: a SYN that has to wait costs a second"
    open_ = lab["hub"].sh(f"ls /proc/{hub.process.pid}/fd").split()
    assert len(open_) < 100
    for sock in idle:
        sock.close()


@pytest.mark.usefixtures("hub")
def test_an_octet_a_second(lab: Lab) -> None:
    """It has ten seconds for all of it, like everybody."""
    with caller(lab) as slow:
        began, ended = time.monotonic(), 0.0
        while not ended and time.monotonic() < began + 15:
            try:
                slow.sendall(b"r")
                slow.settimeout(0.5)
                ended = time.monotonic() - began if slow.recv(1) == b"" else 0.0
            except TimeoutError:
                assert said(lab, ANY, "two")["errno"] == "0"
            except OSError:
                ended = time.monotonic() - began
    assert 9 < ended < 12, ended


@pytest.mark.parametrize("path", ["", "busybox"])
def test_beside_an_address_of_its_own_accord(lab: Lab, path: str) -> None:
    """With that, a router's kernel takes fe80:: for the address of any router there, at which TCP is not heard."""
    lab["hub"].ip(f"link del dev {HUB_WG}")
    eventually(lambda: not Path(f"/run/wireguard/{HUB_WG}.sock").exists())
    peers = ("@leaf allowed-ips fe80::7/128", "@two allowed-ips fe80::8/128")
    lab["hub"].wireguard(HUB_WG, *peers, quiet=False)
    eventually(lambda: "anycast fe80::" in lab["hub"].look(f"-6 route show table local dev {HUB_WG}"))
    hub = lab["hub"].ddpd(HUB, path=busybox_path(lab.folder) if path else "").start()
    eventually(lambda: is_served(lab), 40, "the door", every_s=0.5)
    lab["hub"].ip(f"link set dev {HUB_WG} down")
    lab["hub"].ip(f"link set dev {HUB_WG} up")
    eventually(lambda: is_served(lab), 40, "the door, again", every_s=0.5)
    hub.stop()
    hub.command("clean")


def is_served(lab: Lab) -> bool:
    try:
        return said(lab, ANY)["errno"] == "0"
    except OSError:
        return False


def test_the_door_comes_back_with_its_interface(lab: Lab, hub: Daemon) -> None:
    lab["hub"].ip(f"link del dev {HUB_WG}")
    hub.eventually(lambda: "cannot see peers" in hub.log())
    eventually(lambda: not Path(f"/run/wireguard/{HUB_WG}.sock").exists())
    lab["hub"].wireguard(HUB_WG, "@leaf allowed-ips fe80::7/128", "@two allowed-ips fe80::8/128")
    eventually(lambda: is_served(lab), 40, "the door", every_s=0.5)
    hub.config.write_text(hub.config.read_text() + "dynamic = no\n")
    assert hub.command("reload").returncode == 0
    with pytest.raises(OSError, match=r"refused|timed out"):
        caller(lab)
