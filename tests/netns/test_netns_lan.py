"""Conventional LANs: what is granted is announced by the real dnsmasq or radvd, with the pages' configs as printed.

    exit:down ------------------ home:up   home:lan --- host:eth0
    192.0.2.1                    192.0.2.2   br-lan
    2001:db8:1::1                2001:db8:1::2          configures itself: SLAAC, BusyBox's udhcpc
    grantor                      grantee, dnsmasq or radvd

The hook's folder, /run/ddpd, is one of the laboratory; nothing else of it is changed.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path

import pytest

from daemon import Daemon
from docs import printed
from lab import IP, Host, Lab, Program, busybox_path, eventually, needs, with_keys

pytestmark = [needs("ip link add dev eth0 type veth"), needs("command -v busybox"), needs("command -v dnsmasq"),
              needs("command -v radvd")]

EXIT = """
[pool six]
prefix   = 2001:db8:42::/48
give     = /56
lifetime = {life}
[pool four]
prefix   = 10.64.0.0/16
give     = /24
lifetime = {life}
dns      = 192.0.2.53 2001:db8::53
[grantee home]
key   = @home
pools = six four
"""
HOME = """
[ddpd]
radvd = {run}/radvd.conf
dhcp  = {run}/dhcp.conf
[grantor exit]
key     = @exit
address = {over}
hook    = {hook}
ask     = ::/56 on br-lan
          0.0.0.0/24 on br-lan
"""
LEASED = """#!/bin/sh
case $1 in
deconfig)    ip -4 addr flush dev eth0 ;;
bound|renew) ip addr add "$ip/$mask" dev eth0; ip route replace default via "$router"; echo "$dns" >{} ;;
esac
"""
TOOLS = ("ash", "cat", "cmp", "cp")                         # BusyBox's, for the hook
Seen = dict[str, tuple[int, int]]                            # address: seconds for which it is preferred, valid


# ==== docs/home-router.md =============================================================


def test_the_hook_is_short_and_clean(tmp_path: Path) -> None:
    hook = printed("#!/bin/sh")
    assert len(hook.splitlines()) <= 30
    assert subprocess.run(["sh", "-n"], input=hook, text=True, check=False).returncode == 0
    if shutil.which("shellcheck"):
        (tmp_path / "hook").write_text(hook)
        done = subprocess.run(["shellcheck", tmp_path / "hook"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


# ==== a home ==========================================================================


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit*", "home*", "host") as lab:
        lab.cable("exit:down 192.0.2.1/24 2001:db8:1::1/64", "home:up   192.0.2.2/24 2001:db8:1::2/64")
        lab.cable("home:lan", "host:eth0")
        lab["home"].bridge("br-lan", "lan")
        try:
            yield lab
        finally:
            for daemon in lab["home"].daemons:
                daemon.kill()
            eventually(lambda: not orphans(lab["home"]))


def orphans(host: Host) -> list[int]:
    """What the hook left behind in this namespace, the DHCP server for one: ended, until there is none."""
    shown = subprocess.run([IP, "netns", "pids", host.netns], capture_output=True, text=True, check=True).stdout
    found = [pid for pid in map(int, shown.split()) if pid not in {program.process.pid for program in host.programs}]
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return found


def run(lab: Lab) -> Path:
    (lab.folder / "run").mkdir(exist_ok=True)
    return lab.folder / "run"


def hook(lab: Lab, tool: str = "iproute2") -> tuple[Path, str]:
    """The printed hook in this laboratory's folders, and the folder that stands first in PATH."""
    text = printed("#!/bin/sh").replace("/run/ddpd", str(run(lab)))
    path = ""
    if tool == "busybox":
        path = busybox_path(lab.folder)
        for name in TOOLS:
            (Path(path) / name).symlink_to(str(shutil.which("busybox")))
        text = text.replace("#!/bin/sh", f"#!{path}/ash", 1)
    file = lab.folder / "hook"
    file.write_text(text)
    file.chmod(0o755)
    return file, path


def announcer(lab: Lab, what: str) -> Program:
    """The real program, with the printed config, before anything is granted."""
    if what == "dnsmasq":
        (lab.folder / "dnsmasq.conf").write_text(printed("interface=br-lan"))
        return lab["home"].start(f"dnsmasq --keep-in-foreground --port=0 --conf-file={lab.folder}/dnsmasq.conf "
                                 f"--pid-file= --dhcp-leasefile={lab.folder}/leases --log-facility=-")
    eventually((run(lab) / "radvd.conf").exists, what="ddpd has written radvd.conf")
    program = lab["home"].start(f"radvd --nodaemon --logmethod stderr --config {run(lab)}/radvd.conf "
                                f"--pidfile {run(lab)}/radvd.pid")
    eventually((run(lab) / "radvd.pid").exists, what="radvd runs")
    return program


def world(lab: Lab, what: str, tool: str = "iproute2", over: str = "2001:db8:1::1", life: str = "10m",
          ) -> tuple[Daemon, Daemon]:
    """Grantor, not yet started, and grantee, with an announcer.  dnsmasq needs no hook for IPv6."""
    file, path = hook(lab, tool)
    if what == "dnsmasq" and ":" in over:
        file.write_text("#!/bin/sh\n")                       # so says the page
    home = lab["home"].ddpd(HOME.format(over=over, hook=file, run=run(lab)), path=path).start()
    announcer(lab, what)
    return lab["exit"].ddpd(EXIT.format(life=life), path=path), home


def seen(host: Host, dev: str = "eth0", family: int = 6) -> Seen:
    """The global addresses of an interface, and how long they are preferred and valid."""
    found: Seen = {}
    for line in host.look(f"-{family} -o addr show dev {dev} scope global").replace("forever", "9999sec").splitlines():
        words = line.split()
        found[words[3]] = (int(words[words.index("preferred_lft") + 1].removesuffix("sec")),
                           int(words[words.index("valid_lft") + 1].removesuffix("sec")))
    return found


def preferred(host: Host, dev: str = "eth0") -> list[str]:
    """The prefixes in which a new connection may begin."""
    return [prefix_of(address) for address, (left, _) in seen(host, dev).items() if left]


def prefix_of(address: str) -> str:
    return str(ip_interface(address).network)


def all_in(addresses: list[str], start: str) -> bool:
    return bool(addresses) and all(address.startswith(start) for address in addresses)


def took(what: str, truth: Callable[[], object], within_s: float) -> None:
    """`eventually`, with patience for a slow machine, and the time in the transcript beside what it should take."""
    began = time.monotonic()
    eventually(truth, 4 * within_s, what, every_s=0.01)
    print(f"[=] {what}: {time.monotonic() - began:.2f} s of {within_s} s")


def moves(exit_: Daemon, *swaps: tuple[str, str]) -> None:
    text = exit_.config.read_text()
    for old, new in swaps:
        assert old in text
        text = text.replace(old, new)
    exit_.write(text)
    done = exit_.command("reload")
    assert done.returncode == 0, done.stderr


# ==== IPv6 ============================================================================


@pytest.mark.parametrize("tool", ["iproute2", "busybox"])
@pytest.mark.parametrize("what", ["dnsmasq", "radvd"])
def test_hosts_follow_a_grant_a_renumbering_and_each_loss(lab: Lab, what: str, tool: str) -> None:
    """The host has the address a second after br-lan (radvd: at once), and prefers nothing that was lost."""
    exit_, home = world(lab, what, tool)
    exit_.start()
    home.command("renew")
    took("granted, on br-lan", lambda: preferred(lab["home"], "br-lan"), 1)
    took("granted, the host has it", lambda: preferred(lab["host"]), 1.5 if what == "dnsmasq" else 0.7)
    [old] = preferred(lab["host"])
    assert [old] == preferred(lab["home"], "br-lan")
    eventually(lambda: lab["host"].reaches("2001:db8:1::1"))

    home.command("renew")                                    # the session is known to be alive
    moves(exit_, ("2001:db8:42::/48", "2001:db8:43::/48"))
    took("renumbered", lambda: all_in(preferred(lab["host"]), "2001:db8:43:"), 2)
    assert old in map(prefix_of, seen(lab["host"]))          # there, and deprecated
    assert preferred(lab["host"]) == preferred(lab["home"], "br-lan")
    assert all(0 < valid <= 600 for _, valid in seen(lab["host"]).values())
    eventually(lambda: lab["host"].reaches("2001:db8:1::1"))

    assert exit_.command("revoke", "home").returncode == 0
    took("revoked", lambda: not preferred(lab["host"]), 2)
    assert len(seen(lab["host"])) == 2
    exit_.command("revoke", "home", "--undo")
    home.command("renew")
    took("granted again", lambda: preferred(lab["host"]), 2)

    assert home.command("release").returncode == 0
    took("released", lambda: not preferred(lab["host"]), 2)
    assert not seen(lab["home"], "br-lan")
    eventually(lambda: "default" not in lab["host"].look("-6 route"), what="the router is none any more")


@pytest.mark.parametrize("what", ["dnsmasq", "radvd"])
def test_a_silent_grantors_prefix_is_preferred_no_longer_than_it_said(lab: Lab, what: str) -> None:
    """Nobody tells: the lifetimes that the host was told run out with those of br-lan."""
    exit_, home = world(lab, what, life="8s")
    exit_.start()
    home.command("renew")
    eventually(lambda: preferred(lab["host"]))
    exit_.kill()
    eventually(lambda: not preferred(lab["home"], "br-lan"), 6)
    took("deprecated by the kernel, then by the host", lambda: not preferred(lab["host"]), 1.5)
    assert len(seen(lab["host"])) == 1


def test_two_grantors_share_a_lan(lab: Lab) -> None:
    """An event of one rewrites what both gave: the lost prefix goes, the other is preferred no longer than before."""
    exit_, home = world(lab, "radvd")
    text = EXIT.format(life="10m").replace(":42:", ":77:").replace("10.64.", "10.77.")
    other = lab["exit"].ddpd("[ddpd]\nlisten = [::]:3374\nmark = 222\n" + text, "other")
    home.write(home.config.read_text() + with_keys(
        HOME.partition("[grantor")[1] + HOME.partition("[grantor")[2].format(
            over="[2001:db8:1::1]:3374", hook=lab.folder / "hook").replace("exit", "other")))
    for daemon in exit_, other:
        daemon.start()
    home.command("reload")
    eventually(lambda: len(preferred(lab["host"])) == 2)
    [kept] = [prefix for prefix in preferred(lab["host"]) if ":77:" in prefix]
    eventually(lambda: max(left for left, _ in seen(lab["home"], "br-lan").values()) <= 297)
    assert exit_.command("revoke", "home").returncode == 0
    took("revoked", lambda: preferred(lab["host"]) == [kept], 2)
    assert "AdvPreferredLifetime 29" in (run(lab) / "radvd.conf").read_text()
    assert max(left for left, _ in seen(lab["host"]).values()) <= 298


# ==== IPv4 ============================================================================


def leases(lab: Lab) -> Program:
    """A host that asks for an address as a phone does."""
    script = lab.folder / "leased"
    script.write_text(LEASED.format(lab.folder / "dns"))
    script.chmod(0o755)
    return lab["host"].start(f"busybox udhcpc -f -t 20 -T 1 -i eth0 -s {script}")


def four(lab: Lab) -> list[str]:
    return [address for address in seen(lab["host"], family=4) if address.startswith("10.")]


def follows(lab: Lab, client: Program) -> bool:
    """As after half of its lease, and again: what it asks while dnsmasq is started anew, nobody hears."""
    client.process.send_signal(signal.SIGUSR1)
    return all_in(four(lab), "10.65.")


@pytest.mark.parametrize(("what", "tool"), [("dnsmasq", "iproute2"), ("radvd", "busybox")])
def test_a_granted_ipv4_prefix_serves_a_lan_too(lab: Lab, what: str, tool: str) -> None:
    """udhcpc gets an address of the /24 and the name server, reaches the exit, and follows a renumbering."""
    exit_, home = world(lab, what, tool, over="192.0.2.1")
    exit_.start()
    home.command("renew")
    eventually(lambda: lab["home"].addresses("br-lan", 4))
    client = leases(lab)
    took("the host has IPv4", lambda: four(lab), 8)                  # dnsmasq pings an address before it offers it
    [old], [router] = four(lab), lab["home"].addresses("br-lan", 4)
    assert old.startswith("10.64.") and old != router
    assert old.rpartition(".")[0] == router.rpartition(".")[0] and old.endswith("/24")
    eventually(lambda: (lab.folder / "dns").exists() and (lab.folder / "dns").read_text() == "192.0.2.53\n")
    eventually(lambda: lab["host"].reaches("192.0.2.1"))

    home.command("renew")
    moves(exit_, ("10.64.0.0/16", "10.65.0.0/16"), ("2001:db8:42::/48", "2001:db8:43::/48"))
    took("IPv6 beside it", lambda: all_in(preferred(lab["host"]), "2001:db8:43:"), 2)
    eventually(lambda: follows(lab, client), 15, "the host has the new IPv4", every_s=2)
    eventually(lambda: lab["host"].reaches("192.0.2.1"))

    assert home.command("release").returncode == 0
    took("IPv6 is lost with it", lambda: not preferred(lab["host"]), 2)
    eventually(lambda: "dhcp-range" not in (run(lab) / "dhcp.conf").read_text(), what="nobody serves what was lost")
