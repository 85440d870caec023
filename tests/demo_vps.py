"""The rented host: one address of a provider that routes nothing, and a whole home behind it.

Five hosts, made of network namespaces of this machine; nothing outside them is touched:

    internet ------ provider ------- vps
       |          the /64 is      grantor     WireGuard, made
       |          on this link       ||       from two files
       +------------ home ===========++
       IPv4 only    grantee ------- host, a computer

    python tests/demo_vps.py        root, or anybody whom the kernel lets make namespaces and tunnels

Exit code 0 only if the last packet came back.
"""

from __future__ import annotations

import shutil
import socket
import sys
from ipaddress import IPv6Network

from demo import FAR, WORDS, Story, Told, ddpd, echo, line, main, run_ddpd, say, show, write_configs
from frames import SOLICITATION, neighbours
from lab import Lab, LabError, Recorder, wg_name

NAMES = ("internet*", "provider*", "vps*", "home*", "host")
VPS_WG, HOME_WG = wg_name("vps"), wg_name("home")
PICTURE = """
    internet ------------- provider -------------------- vps
 2001:db8:ffff::1        a router, with             203.0.113.2, grantor,
       |                 a /64 on its link:         answers for what is leased
       |                 no route                   2001:db8:77:1::2
       |                                                 .
       +------------------ home  . . . . . . . . . . . . .  no tunnel yet
                  198.51.100.2, no IPv6
                           grantee: asks for a /80 and a /128
                             |
                           host, a computer
"""

VPS = """\
[ddpd]
key     = vps.key
leases  = vps.leases
control = vps.sock

[pool rented]
prefix  = 2001:db8:77:1::/64
reserve = 2001:db8:77:1::/80
give    = /80 /128

[grantee home]
key   = {home}
pools = rented
limit = 2

[wireguard VPS_WG]
pools     = rented
add_peers = yes
""".replace("VPS_WG", VPS_WG)

NDP = """
[ndp eth0]
proxy = leased
"""

HOME = """\
[ddpd]
key     = home.key
leases  = home.leases
control = home.sock

[grantor vps]
key     = {vps}
address = 203.0.113.2
ask     = ::/80 on br-lan
          ::/128 on HOME_WG

[tunnel HOME_WG]
grantor = vps
""".replace("HOME_WG", HOME_WG)


def build(lab: Lab) -> None:
    lab.cable("internet:eth0 2001:db8:ffff::1/64 192.0.2.1/24",    "provider:up 2001:db8:ffff::2/64 192.0.2.2/24")
    lab.cable("provider:lan 2001:db8:77:1::1/64 203.0.113.1/24",   "vps:eth0 2001:db8:77:1::2/64 203.0.113.2/24")
    lab.cable("internet:home 198.51.100.1/24",                     "home:wan 198.51.100.2/24")
    lab.cable("home:lan",                                          "host:eth0")
    lab["home"].bridge("br-lan", "lan")
    for who, gateway in ("internet", "192.0.2.2"), ("provider", "192.0.2.1"), ("vps", "203.0.113.1"), \
            ("home", "198.51.100.1"), ("internet", "2001:db8:ffff::2"), ("vps", "2001:db8:77:1::1"):
        lab[who].ip(f"route add default via {gateway}")


# ==== what is seen on the link ========================================================


def tell_neighbours(wire: Recorder, target: str) -> None:
    """Who asks for this address, and who says that it is there; each only once."""
    told = []
    for said in neighbours(wire.frames()):
        asks = said.kind == SOLICITATION
        words = f"who has {target}?" if asks else f"{target} is at {said.mac.hex(':')}, which is vps"
        told += [words] if said.target == target and words not in told else []
    for words in told:
        line("wire", words)
    wire.forget()


def hello(lab: Lab, who: str, source: str, wire: Recorder) -> bool:
    """A datagram from home to the far end, which sends it back to where it came from."""
    with (lab["internet"].socket(socket.AF_INET6) as far, lab[who].socket(socket.AF_INET6) as near):
        far.bind((FAR, 7777))
        near.bind((source, 0))
        near.settimeout(0.3)
        came_back = any(echo(near, far) for _ in range(5))
    tell_neighbours(wire, source)
    line("wire", f"{WORDS.decode()!r} from {source} (on {who}): {'it came back' if came_back else 'nothing came back'}")
    return came_back


class Logs(Told):
    """Only what the daemons say."""

    def round(self) -> None:
        for who in self.logs:
            self.log(who)


# ==== the story =======================================================================


def tell(lab: Lab) -> None:
    """The whole story; LabError if it does not come to its end."""
    say("Five hosts, just made.  The provider has put a /64 on the link of vps: it routes nothing there.")
    show(PICTURE)
    write_configs(lab, vps=VPS, home=HOME)
    wire = lab["provider"].record("lan")
    told = Logs(wire)
    say("The grantor starts on vps, the grantee on home.  It asks over IPv4, and what it hears makes the tunnel.")
    told.follow("vps", run_ddpd(lab["vps"]))
    told.until(lambda: (lab.folder / "vps.sock").exists(), "the grantor starts")
    told.follow("home", run_ddpd(lab["home"]))
    single, inside = settle(lab, told)
    say("Now there is a tunnel, by WireGuard.  Nobody has written down a key for it, nor an address:")
    show(f"home# wg show {HOME_WG}\n" + lab["home"].ask(f"wg show {HOME_WG}").stdout.rstrip())
    say("vps routes what it has leased into it; home has it on its LAN, and uses vps as its way out.")
    show("vps# ip -6 route show proto 221\n" + "\n".join(lab["vps"].routes()))
    show("home# ip -6 route show proto 221\n" + "\n".join(lab["home"].routes()))
    say("But the provider's router looks for these addresses on its own link, and there nobody has them:")
    if hello(lab, "host", inside, wire):
        raise LabError("it came back without anybody who answers for it")
    say("Two lines more in vps.conf, and `ddpd.py reload`: now vps answers for what is leased, and for nothing else.")
    show(NDP)
    with (lab.folder / "vps.conf").open("a") as config:
        config.write(NDP)
    ddpd(lab, "reload", "-c", "vps.conf")
    if not all([hello(lab, "host", inside, wire), hello(lab, "home", single, wire)]):
        raise LabError("nothing came back")
    hello(lab, "vps", "2001:db8:77:1::2", wire)
    say("`ddpd.py release` on home gives it all back; who asks for it hears nothing more.")
    ddpd(lab, "release", "-c", "home.conf")
    told.until(lambda: not lab["home"].addresses(HOME_WG), "it is given back")
    probe(lab, single, wire)
    say("`ddpd.py renew` gets the same again, and the last packet comes back.")
    ddpd(lab, "renew", "-c", "home.conf")
    single, inside = settle(lab, told)
    show(ddpd(lab, "status", "-c", "vps.conf"))
    if not hello(lab, "host", inside, wire):
        raise LabError("the last packet did not come back")


def settle(lab: Lab, told: Told) -> tuple[str, str]:
    """Wait for both leases; home's own address, and that of the host, which takes one of the /80."""
    told.until(lambda: lab["home"].addresses("br-lan") and lab["home"].addresses(HOME_WG), "home has its prefixes")
    net = IPv6Network(lab["home"].addresses("br-lan")[0], strict=False)
    lab["host"].look("addr flush dev eth0 scope global")
    lab["host"].look(f"addr add {net[2]}/80 dev eth0")
    lab["host"].look(f"route replace default via {net[1]}")
    return lab["home"].addresses(HOME_WG)[0].split("/")[0], str(net[2])


def probe(lab: Lab, address: str, wire: Recorder) -> None:
    """It has to be silent: the provider knows it no longer, and asks."""
    lab["provider"].look("neigh flush dev lan")
    wire.forget()
    reached = lab["internet"].reaches(address)
    tell_neighbours(wire, address)
    if reached:
        raise LabError("what was given back is still answered for")
    line("wire", "nobody answers")


def missing() -> list[str]:
    return [name for name in ("ip", "wg", "wireguard-go") if not shutil.which(name)]


if __name__ == "__main__":
    sys.exit(main(Story(NAMES, build, tell, missing)))
