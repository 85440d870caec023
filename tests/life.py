"""A home, and everything that happens to one in years: the topology and the events of the tests of a grantee's life.

    host:eth0 --- lan home up --------- down mid far ----------- down exit lo 203.0.113.1, 2001:db8:ee::1
                  br-lan  192.0.2.2     192.0.2.1  198.51.100.2   198.51.100.1  ... and of a second address each
                          2001:db8:1::2 2001:db8:1::1
    grantee                             a router, NAT for IPv4       grantor

After each event what the kernel has is compared, line by line, with what the leases say, and what the operator has made
beside it must be as it was.  An event is what happens, and then what the operator's own scripts (netifd, ifupdown) do
again.
"""

from __future__ import annotations

import py_compile
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path

from daemon import PROGRAM, compiled
from lab import Host, Lab, LabError, Program, busybox_path, eventually

FIXED_S = 6.0                             # until all is as it should be; most takes 0.2 s
NAMES = ("203.0.113.1", "203.0.113.2"), ("2001:db8:ee::1", "2001:db8:ee::2")
EXIT = """
[pool six]
prefix    = 2001:db8:42::/48
give      = /56 /128
lifetime  = 1h
preferred = {preferred}s
renew     = {renew}s
[pool four]
prefix    = 10.64.0.0/16
give      = /24
lifetime  = 1h
preferred = {preferred}s
renew     = {renew}s
[grantee home]
key   = @home
pools = six four
limit = 2
"""
HOME = """
[grantor exit]
key     = @exit
address = exit.test
default = auto redistribute
ask     = ::/56 on br-lan
          ::/128 on up
          0.0.0.0/24 on br-lan
"""
FOREIGN = ("addr add 2001:db8:99::1/64 dev br-lan", "addr add 192.168.9.1/24 dev br-lan")
FOREIGN_FOR_EVER = ("route add unreachable 2001:db8:98::/48 proto static",
                    "-6 rule add pref 22150 from 2001:db8:99::/64 lookup main",
                    "-4 rule add pref 22150 from 192.168.9.0/24 lookup main")
OURS = re.compile(r"^(address|route[46]|rule[46]): ")
NOT_OURS = re.compile(r" (fe80:|ff00::/8)")        # what every interface makes for itself
RULES = re.compile(r"rule([46]): (2210[01]):")
UPLINK = "home:up 192.0.2.2/24 2001:db8:1::2/64", "mid:down 192.0.2.1/24 2001:db8:1::1/64"
BOOT = """import builtins, io, runpy, sys
folder = sys.argv[1]
sys.argv = sys.argv[3:]
real = open
def opened(name, *args, **ways):
    if name == "/proc/sys/kernel/random/boot_id":
        with real(folder + "/boot") as file:
            return io.StringIO(file.read())
    return real(name, *args, **ways)
builtins.open = opened
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Life:
    """The home of the picture, its grantor, and what happens to them."""

    def __init__(self, lab: Lab, tool: str, version: int) -> None:
        self.lab, self.addresses = lab, NAMES[version == 6]
        self.host, self.mid, self.exit_host = lab["home"], lab["mid"], lab["exit"]
        self.boots = 1
        self.world()
        (lab.folder / "fake.py").write_text(BOOT)
        self.boot()
        self.hosts = lab.folder / "hosts"
        self.hosts.touch()
        self.resolv = lab.folder / "resolv.conf"
        self.resolv.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        self.names = self.host.start(f"dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts "
                                     f"--addn-hosts={self.hosts} --interface=lo --bind-interfaces --local-ttl=0 "
                                     f"--pid-file= --user=root --log-facility=-")
        self.place = 0                    # which of its addresses the grantor has
        self.point(self.place)
        self.exit = self.exit_host.ddpd(EXIT.format(renew=20, preferred=60)).start()
        path = busybox_path(lab.folder) if tool == "busybox" else ""
        before = self.kernel()
        self.home = self.host.ddpd(HOME, path=path, wrap=self.wrap()).start()
        eventually(lambda: len(self.held()) == 3 and self.is_bound(), 8, "bound")
        self.expected = self.kernel()     # from now on
        self.check_made(sorted(set(self.kernel()) - set(before)))

    # -- the world ---------------------------------------------------------------------

    def world(self) -> None:
        self.lab.cable(*UPLINK)
        self.lab.cable("mid:far 198.51.100.2/24 2001:db8:2::2/64", "exit:down 198.51.100.1/24 2001:db8:2::1/64")
        self.lab.cable("home:lan", "host:eth0")
        self.host.bridge("br-lan", "lan")
        for addresses in NAMES:
            self.exit_host.address("lo", *(f"{each}/{32 if '.' in each else 128}" for each in addresses))
        self.mid.ip("route add 203.0.113.0/24 via 198.51.100.1")
        self.mid.ip("route add 2001:db8:ee::/64 via 2001:db8:2::1")
        self.exit_host.ip("route add default via 2001:db8:2::2")
        self.masquerade()
        self.operator_up()
        for command in (*FOREIGN, *FOREIGN_FOR_EVER):
            self.host.ip(command)

    def masquerade(self) -> None:
        """A NAT that gives another port to each flow."""
        self.mid.nft("""table ip nat
delete table ip nat
table ip nat {
    chain out { type nat hook postrouting priority 100; oifname "far" masquerade random; }
}""")

    def operator_up(self) -> None:
        """What the operator's own scripts do when the uplink comes up."""
        for command in ("addr replace 2001:db8:1::2/64 dev up", "addr replace 192.0.2.2/24 dev up",
                        "-6 route replace default via 2001:db8:1::1 dev up",
                        "-4 route replace default via 192.0.2.1 dev up"):
            self.host.ip(command)

    def foreign(self) -> None:
        for command in FOREIGN:
            self.host.ip(command.replace("addr add", "addr replace"))

    def wrap(self) -> tuple[str, ...]:
        """Its own name server, and a boot of its own."""
        folder = self.lab.folder
        mounts = f"mount --make-rprivate / && mount --bind {self.resolv} /etc/resolv.conf"
        return ("unshare", "--mount", "sh", "-c", f"{mounts} && exec \"$@\"", "sh", sys.executable,
                str(folder / "fake.py"), str(folder))

    def boot(self) -> None:
        (self.lab.folder / "boot").write_text(f"boot-{self.boots}")

    def point(self, n: int, known: bool = True) -> None:
        """The name server gives the grantor's name this address, or none."""
        self.hosts.write_text(f"{self.addresses[n]} exit.test\n" if known else "")
        eventually(lambda: "started" in self.names.log(), what="dnsmasq runs")
        self.names.process.send_signal(signal.SIGHUP)

    # -- what there is -----------------------------------------------------------------

    def held(self) -> list[str]:
        return sorted(row["prefix"] for row in self.home.status()["held"])

    def kernel(self) -> list[str]:
        """Addresses, routes and rules; links have other numbers after they were made anew."""
        return sorted({line for line in self.host.kernel() if OURS.match(line) and not NOT_OURS.search(line)})

    def is_bound(self) -> bool:
        return {row["state"] for row in self.home.status()["held"]} == {"bound"}

    def check_made(self, made: list[str]) -> None:
        """Line by line what three leases mean, for an uplink with a default router."""
        six, one, four = sorted(self.held(), key=lambda prefix: (":" not in prefix, not prefix.endswith("/56"), prefix))
        if ":" not in one:
            one, four = four, one
        lan6, lan4 = ip_network(six), ip_network(four)
        own4 = str(lan4.network_address + 1)
        wanted = {
            f"address: br-lan inet6 {lan6.network_address}1/64", f"address: br-lan inet {own4}/24",
            f"address: up inet6 {one}", f"route6: unreachable {six} ", f"route4: unreachable {four} ",
            f"rule6: 22101: from {six} ", f"rule4: 22101: from {four} ", "rule6: 22100: ", "rule4: 22100: ",
            "route6: default via 2001:db8:1::1 dev up table 720 proto 221 metric 22100",
            "route4: default via 192.0.2.1 dev up table 720 proto 221 metric 22100",
            f"route6: default from {six} via 2001:db8:1::1 dev up proto 221 metric 22100",
            f"route6: default from {one.removesuffix('/128')} via 2001:db8:1::1 dev up proto 221 metric 22100"}
        # An address lease is in its own rule too; the rest the kernel makes of our addresses.
        wanted.add(f"rule6: 22101: from {one.removesuffix('/128')} ")
        rest = [line for line in made if "proto kernel" not in line]
        assert len(rest) == len(wanted), rest
        for line in wanted:
            assert sum(each.startswith(line) for each in rest) == 1, (line, rest)

    def as_expected(self) -> bool:
        return self.kernel() == self.expected

    def wait(self, within_s: float = FIXED_S) -> float:
        """Until all is as it should be; how long that took."""
        began = time.monotonic()
        try:
            eventually(self.as_expected, within_s, every_s=0.02)
        except LabError:
            have = self.kernel()
            lines = [f"- {line}" for line in self.expected if line not in have]
            lines += [f"+ {line}" for line in have if line not in self.expected]
            raise LabError("\n".join(["the kernel is not what the leases say:", *lines])) from None
        return time.monotonic() - began

    # -- what happens: each leaves the world so that it can be put right ---------------------

    def uplink_goes_down_and_up(self) -> None:
        self.host.ip("link set dev up down")
        self.host.ip("link set dev up up")
        self.operator_up()

    def uplink_loses_its_carrier(self) -> None:
        self.mid.ip("link set dev down down")
        self.mid.ip("link set dev down up")
        self.mid.ip("addr replace 2001:db8:1::1/64 dev down")

    def uplink_is_made_anew(self) -> None:
        self.host.ip("link del dev up")
        self.lab.cable(*UPLINK)
        self.operator_up()

    def lan_goes_down_and_up(self) -> None:
        self.host.ip("link set dev br-lan down")
        self.host.ip("link set dev br-lan up")
        self.foreign()

    def lan_is_made_anew(self) -> None:
        self.host.ip("link del dev br-lan")
        self.host.bridge("br-lan", "lan")
        self.foreign()

    def addresses_are_flushed(self) -> None:
        self.host.ip("addr flush dev br-lan scope global")
        self.foreign()

    def one_address_is_removed(self) -> None:
        [line] = [line for line in self.expected if "br-lan inet6" in line and "2001:db8:99::" not in line]
        self.host.ip(f"addr del {line.split()[3]} dev br-lan")

    def routes_are_flushed(self) -> None:
        for family in "46":
            self.host.ip(f"-{family} route flush table all proto 221")

    def rules_are_removed(self) -> None:
        for rule in [rule for line in self.expected if (rule := RULES.match(line))]:
            self.host.ip(f"-{rule[1]} rule del pref {rule[2]}")

    def restarted(self) -> None:
        self.home.stop()
        self.home.start()

    def killed(self) -> None:
        self.home.kill()
        self.home.start()

    def upgraded(self) -> None:
        """Another version of the program takes over the files of this one."""
        self.home.stop()
        newer = self.lab.folder / f"ddpd-{self.boots}.py"
        newer.write_text(re.sub(r'(?m)^VERSION: Final = .*$', 'VERSION: Final = "9.9.9"', PROGRAM.read_text()))
        py_compile.compile(str(newer), f"{newer}c", doraise=True)               # as it is installed
        self.home.program = Path(f"{newer}c")
        self.home.start()
        assert self.home.status()["version"] == "9.9.9"
        self.home.program = compiled()

    def machine_off(self) -> None:
        """A power failure: no goodbye, and a kernel that knows nothing."""
        self.home.kill()
        self.rules_are_removed()
        self.routes_are_flushed()
        for name in ("up", "lan", "br-lan"):
            self.host.ip(f"link del dev {name}")
        self.boots += 1
        self.boot()

    def machine_on(self) -> None:
        """As an init does it: everything at once, the daemon before its links."""
        self.home.start()
        self.lab.cable(*UPLINK)
        self.lab.cable("home:lan", "host:eth0")
        self.host.bridge("br-lan", "lan")
        self.operator_up()
        self.foreign()

    def rebooted(self) -> None:
        self.machine_off()
        self.machine_on()

    def rebooted_without_its_lease_file(self) -> None:
        self.machine_off()
        (self.home.dir / "leases.json").unlink()
        self.machine_on()

    def nat_forgets(self) -> None:
        """Another port, in the middle of a lease."""
        self.mid.sysctl({"net/netfilter/nf_conntrack_udp_timeout": 1,
                         "net/netfilter/nf_conntrack_udp_timeout_stream": 1})
        time.sleep(1.5)
        assert self.home.command("renew").returncode == 0

    def grantor_is_restarted(self) -> None:
        self.exit.stop()
        self.exit.start()
        assert self.home.command("renew").returncode == 0

    def grantor_moves(self) -> None:
        """To another address under the same name; the old one is silent."""
        old, self.place = self.place, 1 - self.place
        address = self.addresses[old]
        length = 128 if ":" in address else 32
        self.point(self.place)
        self.exit_host.ip(f"addr del {address}/{length} dev lo")
        assert self.home.command("renew").returncode == 0
        self.home.eventually(partial(self.asked_at, self.addresses[self.place]), 10)
        self.exit_host.ip(f"addr add {address}/{length} dev lo")

    def asked_at(self, address: str) -> bool:
        [row] = self.home.status()["grantors"]
        return address in row["at"] and row["state"] == "bound"

    def name_is_not_known(self) -> None:
        """The name server has lost it: the address that it had is asked all the same."""
        self.point(self.place, known=False)
        assert self.home.command("renew").returncode == 0
        eventually(self.is_bound, 8)
        self.point(self.place)


EVENTS: dict[str, Callable[[Life], None]] = {event.__name__: event for event in (
    Life.uplink_goes_down_and_up, Life.uplink_loses_its_carrier, Life.uplink_is_made_anew, Life.lan_goes_down_and_up,
    Life.lan_is_made_anew, Life.addresses_are_flushed, Life.one_address_is_removed, Life.routes_are_flushed,
    Life.rules_are_removed, Life.restarted, Life.killed, Life.upgraded, Life.rebooted,
    Life.rebooted_without_its_lease_file, Life.nat_forgets, Life.grantor_is_restarted, Life.name_is_not_known,
    Life.grantor_moves)}


# ==== an upstream that is never the same ================================================
#
#    host:eth0 --- lan home up --------- down mid far ----------- down exit lo 2001:db8:ee::1
#                  br-lan    2001:db8:1::2    2001:db8:2::2      2001:db8:2::1
#              radvd or dnsmasq              drops what is leased
#
# The provider numbers the uplink out of a prefix of its own, another one each time, or leaves it with nothing but a
# link-local address and gives a prefix for the LAN.  It lets nothing in that comes from a leased address: what is asked
# from there is never answered.

POOLS = IPv6Network("2001:db8:4000::/36")              # all that is ever leased here
LEASES = """
[pool six]
prefix    = {pool}
give      = /56
lifetime  = 2m
preferred = {preferred}s
renew     = 3s
[grantee home]
key   = @home
pools = six
route = none
"""
HOUSE = """
[ddpd]
radvd = {folder}/radvd.conf
[grantor exit]
key     = @exit
address = 2001:db8:ee::1
hook    = {folder}/hook
ask     = ::/56 on br-lan
"""
HUP = """#!/bin/sh
cd {folder} || exit
[ ! -e radvd.pid ] || kill -HUP "$(cat radvd.pid)"
"""
FOLLOWS = "interface=br-lan\nenable-ra\ndhcp-range=::,constructor:br-lan,ra-only\nra-param=br-lan,4\n"
PREFERRED_S = 14
LATE_S = 2.0                              # for which a host may prefer what br-lan prefers no longer
BOOTED_S = 5.0                            # ... after a reboot of the router, from when it is bound
SETTLED_S = 15.0


def is_leased(prefix: str) -> bool:
    return IPv6Network(prefix).subnet_of(POOLS)


class Wrong(AssertionError):  # noqa: N818 - a verdict
    """What must never be was, for a moment."""


class Watch(threading.Thread):
    """Looks all the time, whatever happens meanwhile; what it has seen is in `wrong`."""

    def __init__(self, weather: Weather) -> None:
        super().__init__(daemon=True)
        self.weather, self.wrong, self.looks = weather, "", 0
        self.late: dict[str, float] = {}  # prefixes that the host should have left, since when
        self.ended = threading.Event()
        self.away = threading.Event()     # the router is off, and can tell nobody anything

    def run(self) -> None:
        while not self.ended.wait(0.1) and not self.wrong:
            try:
                self.look()
            except Wrong as why:
                self.wrong = str(why)

    def look(self) -> None:
        self.looks += 1
        now, lan, host = time.monotonic(), self.weather.on_lan(), self.weather.on_host()
        lost = set() if self.away.is_set() else set(filter(is_leased, host - lan))
        self.late = {prefix: self.late.get(prefix, now) for prefix in lost}
        for prefix, since in self.late.items():
            if now - since > LATE_S:
                raise Wrong(f"the host has preferred {prefix} for {now - since:.1f} s since br-lan does not")
        for address, _ in self.weather.host_of_ddpd.asked_from():
            if ":" in address and ip_address(address) in POOLS:
                raise Wrong(f"asked from {address}, which is leased")
        refused = [line for line in self.weather.home.log().splitlines() if "UNTRUSTED" in line]
        if refused:
            raise Wrong(refused[0])


class Weather:
    """The home of the picture, with one announcer, and what its provider and its grantor do to it."""

    def __init__(self, lab: Lab, announcer: str, dice: random.Random) -> None:
        self.lab, self.announcer, self.dice = lab, announcer, dice
        self.host_of_ddpd, self.mid = lab["home"], lab["mid"]
        self.folder, self.boots, self.pools, self.links = lab.folder, 1, 0, 0
        self.numbered = True
        self.program: Program | None = None
        (self.folder / "hook").write_text(HUP.format(folder=self.folder))
        (self.folder / "hook").chmod(0o755)
        (self.folder / "fake.py").write_text(BOOT)
        (self.folder / "boot").write_text("boot-1")
        (self.folder / "dnsmasq.conf").write_text(FOLLOWS)
        self.world()
        self.exit = lab["exit"].ddpd(LEASES.format(pool=self.pool(), preferred=PREFERRED_S)).start()
        self.home = self.host_of_ddpd.ddpd(HOUSE.format(folder=self.folder),
                                           wrap=(sys.executable, str(self.folder / "fake.py"), str(self.folder)))
        self.home.start()
        self.announce()
        self.settle()
        self.watch = Watch(self)
        self.watch.start()

    # -- the world ---------------------------------------------------------------------

    def world(self) -> None:
        self.lab.cable("mid:far 2001:db8:2::2/64", "exit:down 2001:db8:2::1/64")
        self.lab.cable("home:lan", "host:eth0")
        self.lab["host"].sysctl({"net/ipv6/conf/eth0/max_addresses": 0})    # of the years before, for two hours each
        self.host_of_ddpd.bridge("br-lan", "lan")
        self.lab["exit"].address("lo", "2001:db8:ee::1/128")
        self.lab["exit"].ip("route add default via 2001:db8:2::2")
        self.mid.ip("route add 2001:db8:ee::/64 via 2001:db8:2::1")
        self.mid.nft(f"""table ip6 bcp38 {{
    chain in {{ type filter hook prerouting priority 0; iifname "down" ip6 saddr {POOLS} drop; }}
}}""")
        self.host_of_ddpd.notes_asks()
        self.connect()

    def connect(self) -> None:
        """The uplink is there, with other numbers each time."""
        self.lab.cable("home:up fe80::2/64", "mid:down fe80::1/64")
        self.number()

    def number(self) -> None:
        """By an address on the uplink, or by a prefix for the LAN; then what was there goes."""
        self.links += 1
        net = f"2001:db8:a{self.links % 4096:03x}::"
        self.host_of_ddpd.address("up" if self.numbered else "br-lan", f"{net}2/64")
        self.mid.ip(f"-6 route replace {net}/64 via fe80::2 dev down")
        self.host_of_ddpd.ip("-6 route replace default via fe80::1 dev up")
        for dev in ("up", "br-lan"):
            for address in self.host_of_ddpd.addresses(dev):
                if address.startswith("2001:db8:a") and not address.startswith(net):
                    self.host_of_ddpd.ip(f"addr del {address} dev {dev}")

    def pool(self) -> str:
        """Another /48 each time."""
        self.pools += 1
        return f"2001:db8:{0x4000 + self.pools:x}::/48"

    def announce(self) -> None:
        if self.announcer == "dnsmasq":
            command = (f"dnsmasq --keep-in-foreground --port=0 --conf-file={self.folder}/dnsmasq.conf --pid-file= "
                       f"--dhcp-leasefile={self.folder}/leases --log-facility=-")
        else:
            eventually((self.folder / "radvd.conf").exists, what="ddpd has written radvd.conf")
            (self.folder / "radvd.pid").unlink(missing_ok=True)
            command = (f"radvd --nodaemon --logmethod stderr --config {self.folder}/radvd.conf "
                       f"--pidfile {self.folder}/radvd.pid")
        self.program = self.host_of_ddpd.start(command)
        if self.announcer == "radvd":
            eventually((self.folder / "radvd.pid").exists, what="radvd runs")

    # -- what there is -----------------------------------------------------------------

    def on_lan(self) -> set[str]:
        return self.preferred(self.host_of_ddpd, "br-lan")

    def on_host(self) -> set[str]:
        return self.preferred(self.lab["host"], "eth0")

    def preferred(self, host: Host, dev: str) -> set[str]:
        """The /64s in which a new connection may begin."""
        shown = host.look(f"-6 -o addr show dev {dev} scope global")
        return {str(ip_interface(line.split()[3]).network) for line in shown.splitlines()
                if " preferred_lft 0sec" not in line}

    def leased(self) -> set[str]:
        """The /64 that br-lan is to have, if the grantor knows of one."""
        return {str(next(ip_network(row["prefix"]).subnets(new_prefix=64))) for row in self.exit.status()["granted"]
                if row["preferred"]}

    def is_settled(self) -> bool:
        wanted = self.leased()
        lan, host = (set(filter(is_leased, found)) for found in (self.on_lan(), self.on_host()))
        return len(wanted) == 1 and lan == host == wanted

    def settle(self) -> float:
        """Until the LAN and the host on it have what is leased, and nothing else; how long that took."""
        began = time.monotonic()
        try:
            eventually(self.is_settled, SETTLED_S, every_s=0.1)
        except LabError:
            raise LabError(f"leased {self.leased()}, br-lan prefers {self.on_lan()}, the host {self.on_host()}\n"
                           f"{self.home.log()[-2000:]}") from None
        return time.monotonic() - began

    # -- what happens --------------------------------------------------------------------

    def renumber(self) -> None:
        old = next(line for line in self.exit.config.read_text().splitlines() if line.startswith("prefix "))
        self.exit.write(self.exit.config.read_text().replace(old, f"prefix    = {self.pool()}"))

    def grantor_renumbers(self) -> None:
        self.renumber()
        assert self.exit.command("reload").returncode == 0

    def grantor_renumbers_while_the_uplink_is_away(self) -> None:
        self.host_of_ddpd.ip("link del dev up")
        self.grantor_renumbers()
        self.connect()

    def grantor_is_killed(self) -> None:
        self.exit.kill()
        self.exit.start()

    def grantor_is_replaced(self) -> None:
        """By one that knows nothing of before, with the same key."""
        self.exit.kill()
        for name in ("leases.json", "key.granted"):
            (self.exit.dir / name).unlink(missing_ok=True)
        self.renumber()
        self.exit.start()

    def grantor_is_away_until_all_has_faded(self) -> None:
        self.exit.kill()
        eventually(lambda: not any(map(is_leased, self.on_lan())), PREFERRED_S + 3)
        self.exit.start()

    def uplink_is_away(self) -> None:
        self.host_of_ddpd.ip("link del dev up")
        time.sleep(self.dice.uniform(0, 5))
        self.connect()

    def uplink_goes_down_and_up(self) -> None:
        self.host_of_ddpd.ip("link set dev up down")
        self.host_of_ddpd.ip("link set dev up up")
        self.host_of_ddpd.ip("addr replace fe80::2/64 dev up")
        self.number()

    def provider_renumbers(self) -> None:
        self.number()

    def provider_numbers_the_other_side(self) -> None:
        """The uplink has an address from now on; or it has none, and the LAN has."""
        self.numbered = not self.numbered
        self.number()

    def restarted(self) -> None:
        self.home.stop()
        self.home.start()

    def killed(self) -> None:
        self.home.kill()
        self.home.start()

    def lease_file_is_lost(self) -> None:
        self.home.stop()
        (self.home.dir / "leases.json").unlink()
        self.home.start()

    def router_is_rebooted(self) -> None:
        """Its hosts remember; and in half of the cases there is another prefix when it is back."""
        self.watch.away.set()
        self.home.kill()
        if self.program is not None:
            self.program.end(hard=True)
        self.host_of_ddpd.ip("link del dev up")
        self.host_of_ddpd.look("addr flush dev br-lan scope global")
        self.host_of_ddpd.look("-6 route flush table all proto 221")
        self.host_of_ddpd.look("-6 rule del pref 22101")
        self.boots += 1
        (self.folder / "boot").write_text(f"boot-{self.boots}")
        if self.dice.random() < 0.5:
            self.grantor_renumbers()
        self.connect()
        for start in self.dice.sample([self.home.start, self.announce], 2):
            start()
        eventually(lambda: bool(self.leased() & self.on_lan()), SETTLED_S, "bound after the reboot")
        eventually(lambda: not any(map(is_leased, self.on_host() - self.on_lan())), BOOTED_S,
                   "the host has left what was before the reboot")
        self.watch.away.clear()


WEATHER: dict[str, Callable[[Weather], None]] = {event.__name__: event for event in (
    Weather.grantor_renumbers, Weather.grantor_renumbers_while_the_uplink_is_away, Weather.grantor_is_killed,
    Weather.grantor_is_replaced, Weather.grantor_is_away_until_all_has_faded, Weather.uplink_is_away,
    Weather.uplink_goes_down_and_up, Weather.provider_renumbers, Weather.provider_numbers_the_other_side,
    Weather.restarted, Weather.killed, Weather.lease_file_is_lost, Weather.router_is_rebooted)}
