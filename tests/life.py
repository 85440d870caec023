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

import re
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network

from daemon import PROGRAM, compiled
from lab import Lab, LabError, busybox_path, eventually

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
        self.home.program = newer
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
