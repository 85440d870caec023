"""The one-minute network: a host on a LAN behind two routers gets an address by ddpd and uses it.

Five hosts, made of network namespaces of this machine; nothing outside them is touched:

    internet ------- exit ------- plain ------- home ------- host
                   grantor     knows nothing   grantee    believes router
                               of ddpd                    advertisements

    python tests/demo.py        root, or anybody whom the kernel lets make namespaces

Exit code 0 only if the last packet came back.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import FrameType

from lab import Datagram, Host, Lab, LabError, Program, Recorder, own_world

DDPD = Path(__file__).resolve().parent.parent / "ddpd.py"
FAR = "2001:db8:ffff::1"                  # the host called internet
NAMES = ("internet", "exit*", "plain*", "home*", "host")
WORDS = b"hello from the LAN"
RADVD = "home.radvd" if shutil.which("radvd") else ""      # the file that ddpd writes for it; dnsmasq needs none
PICTURE = """
    internet ------- exit ------- plain ------- home ------- host
 2001:db8:ffff::1  grantor      a router,     grantee     a computer:
                                IPv4 and      asks for    configures
              2001:db8:42::/48  babeld only   a /56       itself
"""

EXIT = """\
[ddpd]
key     = exit.key
leases  = exit.leases
control = exit.sock
listen  = 0.0.0.0:3373

[pool home]
prefix   = 2001:db8:42::/48
give     = /56
lifetime = 12h

[grantee home]
key   = {home}
pools = home
"""

HOME = """\
[ddpd]
key     = home.key
leases  = home.leases
control = home.sock
RADVD
[grantor exit]
key     = {exit}
address = 192.0.2.1
ask     = ::/56 on br-lan
""".replace("RADVD", f"radvd   = {RADVD}\n" if RADVD else "")


# ==== how it is told ==================================================================

COLOURS = {"say": "1", "exit": "33", "vps": "33", "home": "36", "wire": "32", "shown": "2", "bad": "31"}


def colour(kind: str, text: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m"


def say(text: str) -> None:
    print(colour("say", f"\n* {text}"), flush=True)


def show(text: str, kind: str = "shown") -> None:
    """Something as it is: a file, an output."""
    for line in map(str.rstrip, text.strip("\n").splitlines()):
        print("    " + colour(kind, line if len(line) <= 112 else line[:109] + "..."), flush=True)


def line(who: str, text: str) -> None:
    print(f"{colour(who, f'{who:>5}')} | {text}", flush=True)


# ==== the world =======================================================================


def build(lab: Lab) -> None:
    lab.cable("internet:eth0 2001:db8:ffff::1/64", "exit:up 2001:db8:ffff::2/64")
    lab.cable("exit:down 192.0.2.1/30",            "plain:up 192.0.2.2/30")
    lab.cable("plain:down 198.51.100.1/30",        "home:up 198.51.100.2/30")
    lab.cable("home:lan",                          "host:eth0")
    lab["home"].bridge("br-lan", "lan")
    lab["internet"].ip("route add 2001:db8:42::/48 via 2001:db8:ffff::2")
    lab["exit"].ip("route add default via 2001:db8:ffff::1 proto static")
    lab["exit"].ip("route add 198.51.100.0/30 via 192.0.2.2")
    lab["home"].ip("route add default via 198.51.100.1")
    lab["exit"].babeld("down", say="redistribute ip ::/0 eq 0 allow")
    lab["plain"].babeld("up", "down")
    lab["home"].babeld("up")


class Told:
    """Tells datagrams and log lines as they come: an ask, the grantor, the answer, the grantee."""

    def __init__(self, wire: Recorder) -> None:
        self.wire = wire
        self.told = 0
        self.logs: dict[str, tuple[Program, int]] = {}

    def follow(self, who: str, program: Program) -> None:
        self.logs[who] = (program, 0)

    def round(self) -> None:
        fresh = self.wire.ddpd()[self.told :]
        self.told += len(fresh)
        self.datagrams([d for d in fresh if d.dport == 3373], "ask")
        self.log("exit")
        self.datagrams([d for d in fresh if d.dport != 3373], "answer")
        self.log("home")

    def datagrams(self, fresh: list[Datagram], what: str) -> None:
        for d in fresh:
            line("wire", f"{what}: {d}, {len(d.data)} bytes of UDP over IPv4, seen beside exit")

    def log(self, who: str) -> None:
        if who not in self.logs:
            return
        program, at = self.logs[who]
        whole, _, _ = program.log()[at:].rpartition("\n")
        for text in whole.splitlines():
            line(who, text)
        self.logs[who] = (program, at + len(whole) + 1 if whole else at)

    def until(self, truth: Callable[[], object], what: str, within_s: float = 10) -> None:
        end = time.monotonic() + within_s
        while not truth():
            self.round()
            if time.monotonic() > end:
                raise LabError(f"{what}: not within {within_s:.0f} s")
            time.sleep(0.02)
        time.sleep(0.1)
        self.round()


def ddpd(lab: Lab, *args: str, stdin: str = "") -> str:
    """A ddpd command in the folder of the demo."""
    done = subprocess.run([sys.executable, str(DDPD), *args], input=stdin, text=True,
                          capture_output=True, cwd=lab.folder, check=False)
    if done.returncode:
        raise LabError(f"ddpd.py {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout.strip()


def run_ddpd(host: Host) -> Program:
    show(f"{host.name}# ddpd.py -v -c {host.name}.conf", host.name)
    with redirect_stdout(StringIO()):
        return host.start(f"{sys.executable} {DDPD} -v -c {host.name}.conf")


# ==== the story =======================================================================


def write_configs(lab: Lab, **configs: str) -> None:
    public = {}
    for name in configs:
        key = lab.folder / f"{name}.key"
        key.touch(mode=0o600)
        key.write_text(ddpd(lab, "genkey") + "\n")
        public[name] = ddpd(lab, "pubkey", stdin=key.read_text())
    for name, text in configs.items():
        config = lab.folder / f"{name}.conf"
        config.touch(mode=0o600)
        config.write_text(text.format(**public))
        say(f"{name}.conf")
        show(config.read_text())


def tell(lab: Lab) -> None:
    """The whole story; LabError if it does not come to its end."""
    say("Five hosts and four cables, just made.  Between exit and home there is only IPv4.")
    show(PICTURE)
    write_configs(lab, exit=EXIT, home=HOME)
    wire = lab["exit"].record("down")
    told = Told(wire)
    say("The grantor starts on exit, the grantee on home.  The ask for an IPv6 prefix goes "
        "over IPv4.")
    told.follow("exit", run_ddpd(lab["exit"]))
    told.until(lambda: (lab.folder / "exit.sock").exists(), "the grantor starts")
    told.follow("home", run_ddpd(lab["home"]))
    told.until(lambda: lab["home"].addresses("br-lan"), "home has its prefix")
    first = wire.ddpd()[0]
    say("What whoever listens on the way can read of the ask (ddpd.py decode HEX):")
    show(ddpd(lab, "decode", first.data.hex()))
    say("home made the prefix real: the whole of it unreachable, a subnet of it on the LAN.")
    show("home# ip route show proto 221")
    show("\n".join(lab["home"].routes()))
    show("home# ip address show dev br-lan")
    show(lab["home"].look("-6 address show dev br-lan scope global"))
    say("ddpd.py status on exit.  ddpd sets no route to home itself, and says why (`reach`):\n"
        "  beyond other routers, finding the way is a routing daemon's work.")
    show(ddpd(lab, "status", "-c", "exit.conf"))
    say("babeld is one: on home it announces what carries protocol 221, and exit learns the way to it.")
    told.until(lambda: routes_to_pool(lab), "exit has the route")
    show("exit# ip route show root 2001:db8:42::/48")
    show(routes_to_pool(lab))
    say("ddpd.py status on home.  The lease is for 12 hours, and will be renewed long before.")
    show(ddpd(lab, "status", "-c", "home.conf"))
    announce(lab, told)
    say("host believes it, and takes an address for as long.")
    told.until(lambda: lab["host"].addresses("eth0"), "the host configures itself")
    show("host# ip address show dev eth0")
    show(lab["host"].look("-6 address show dev eth0 scope global"))
    told.until(lambda: lab["home"].look("-6 route show default"), "home has a default route")
    last_packet(lab)


def announce(lab: Lab, told: Told) -> None:
    """On the LAN, for as long as the lease says."""
    if RADVD:
        say(f"radvd on home advertises the subnet.  ddpd has written {RADVD} for it, with what is left of the lease:")
        told.until(lambda: "prefix" in (lab.folder / RADVD).read_text(), "radvd has its file")
        show((lab.folder / RADVD).read_text())
    else:
        say("dnsmasq on home advertises the subnet that is on br-lan, with what is left of the lease.")
    with redirect_stdout(StringIO()):
        lab["home"].advertises("br-lan", RADVD)


def routes_to_pool(lab: Lab) -> str:
    return lab["exit"].look("-6 route show root 2001:db8:42::/48")


def last_packet(lab: Lab) -> None:
    """A datagram from the LAN to the far end, which sends it back to where it came from."""
    source = lab["host"].addresses("eth0")[0].split("/")[0]
    upstream = lab["internet"].record("eth0")
    with (lab["internet"].socket(socket.AF_INET6) as far,
          lab["host"].socket(socket.AF_INET6) as near):
        far.bind((FAR, 7777))
        near.bind((source, 0))
        near.settimeout(0.3)
        came_back = any(echo(near, far) for _ in range(10))
    say(f"host says hello to the internet from {source}, its address by ddpd.  At the far end:")
    for n, d in enumerate(d for d in upstream.datagrams(7777) if WORDS in d.data):
        line("wire", f"{'back' if n % 2 else 'out '}: {d} {d.data.decode()!r}")
    if not came_back:
        raise LabError("the last packet did not come back")


def echo(near: socket.socket, far: socket.socket) -> bool:
    """One try: out, and back."""
    try:
        near.sendto(WORDS, (FAR, 7777))
        far.settimeout(0.3)
        words, asker = far.recvfrom(100)
        far.sendto(words, asker)
        return near.recv(100) == WORDS
    except OSError:
        return False


# ==== start and end ===================================================================


def missing() -> list[str]:
    """What has to be installed first."""
    gone = [name for name in ("ip", "babeld") if not shutil.which(name)]
    if not shutil.which("radvd") and not shutil.which("dnsmasq"):
        gone.append("radvd or dnsmasq")
    return gone


def stop(_number: int, _frame: FrameType | None) -> None:
    """Once: who presses Ctrl-C again must not stop the cleaning up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@dataclass
class Story:
    """What `main` needs for one."""

    names: tuple[str, ...]
    build: Callable[[Lab], None]
    tell: Callable[[Lab], None]            # LabError if it does not come to its end
    missing: Callable[[], list[str]]


def run(story: Story, folder: Path) -> bool:
    transcript = StringIO()               # the commands of the lab are of interest if it fails
    try:
        with ExitStack() as stack:
            lab = Lab(*story.names, folder=folder)
            stack.push(lab)               # before it begins: whatever it has made is removed
            with redirect_stdout(transcript):
                lab.__enter__()
                story.build(lab)
            story.tell(lab)
        return True
    except LabError as error:
        print(transcript.getvalue())
        print(colour("bad", f"demo: {error}"), file=sys.stderr)
        return False


def main(story: Story) -> int:
    if story.missing():
        print(f"demo: please install {' and '.join(story.missing())} first", file=sys.stderr)
        return 2
    why = own_world([sys.executable, *sys.argv])
    if why:
        print(f"demo: no network namespaces here: {why}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        with tempfile.TemporaryDirectory(prefix="ddpd-demo-") as folder:
            return 0 if run(story, Path(folder)) else 1
    except KeyboardInterrupt:
        print("demo: interrupted; nothing is left behind", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(Story(NAMES, build, tell, missing)))
