"""A small network laboratory: namespaces, cables, programs that run, packets that are seen.

    with Lab("hub", "leaf") as lab:
        lab.cable("hub:eth0 fd00::1/64", "leaf:eth0 fd00::2/64")
        wire = lab["hub"].record("eth0")
        eventually(lambda: lab["leaf"].reaches("fd00::1"))
        assert wire.datagrams()

Every command that changes something is printed before it runs, so a failed test reads as a
transcript.  Names carry the process id: two runs never meet, and nothing needs cleaning by hand.
Programs are ended by their pid.  Only the standard library is needed.

Not root?  `python tests/lab.py COMMAND` runs COMMAND as root of a user namespace of its own.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import ipaddress
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from daemon import Daemon

os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"     # where routing daemons are, for root or not
IP = shutil.which("ip") or "/sbin/ip"     # by its path: a BusyBox `ip` may stand first in PATH
CLONE_NEWNET = 0x40000000
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
SO_RCVBUFFORCE = 33
UDP = 17
SERIAL = itertools.count(1)               # of the laboratories of this process
DDPD_PORT = 3373

QUICK = {                                 # a laboratory has no time for duplicate-address probes
    "net/ipv6/conf/all/accept_dad": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/router_solicitation_delay": 0,
}
ROUTER = {
    "net/ipv4/ip_forward": 1,
    "net/ipv6/conf/all/forwarding": 1,
    "net/ipv6/conf/default/forwarding": 1,
}

LOOKS = {                                 # all that ddpd might leave behind in a kernel
    "link":    "-o link show",
    "address": "-o addr show",
    "route4":  "-4 route show table all",
    "route6":  "-6 route show table all",
    "rule4":   "-4 rule show",
    "rule6":   "-6 rule show",
    "proxy":   "neigh show proxy",
}
VOLATILE = re.compile(r"(valid_lft|preferred_lft|expires) \d+sec")


class LabError(AssertionError):
    """The laboratory could not do what the test told it to."""


# ==== packets =========================================================================


@dataclass(frozen=True)
class Datagram:
    """One UDP datagram as it was seen on a wire."""

    source: str
    sport: int
    target: str
    dport: int
    data: bytes

    def __str__(self) -> str:
        return f"{spell(self.source, self.sport)} > {spell(self.target, self.dport)}"


def spell(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_datagram(frame: bytes) -> Datagram | None:
    """The UDP datagram in an Ethernet frame; None for anything else."""
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    packet = frame[14:]
    if ethertype == ETH_P_IP and packet[9] == UDP:
        start = (packet[0] & 15) * 4
        source, target = packet[12:16], packet[16:20]
    elif ethertype == ETH_P_IPV6 and packet[6] == UDP:
        start = 40
        source, target = packet[8:24], packet[24:40]
    else:
        return None
    sport, dport, length = struct.unpack_from("!HHH", packet, start)
    return Datagram(str(ipaddress.ip_address(source)), sport,
                    str(ipaddress.ip_address(target)), dport,
                    packet[start + 8 : start + length])


class Recorder:
    """Sees every frame that passes an interface, in both directions, from now on."""

    def __init__(self, sock: socket.socket, dev: str) -> None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        except PermissionError:           # root of a user namespace gets what there is
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        sock.bind((dev, ETH_P_ALL))
        sock.setblocking(False)
        self.sock = sock
        self.seen: list[bytes] = []

    def frames(self) -> list[bytes]:
        while True:
            try:
                self.seen.append(self.sock.recv(65535))
            except BlockingIOError:
                return self.seen

    def datagrams(self, port: int | None = None) -> list[Datagram]:
        """The UDP datagrams so far; with `port`, those from it or to it."""
        found = [d for frame in self.frames() if (d := parse_datagram(frame))]
        return [d for d in found if port in (None, d.sport, d.dport)]

    def ddpd(self) -> list[Datagram]:
        return self.datagrams(DDPD_PORT)

    def forget(self) -> None:
        self.frames().clear()

    def save(self, file: Path) -> None:
        """Write a pcap that tcpdump and Wireshark read."""
        out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
        for n, frame in enumerate(self.frames()):
            out += struct.pack("<IIII", n, 0, len(frame), len(frame)) + frame
        file.write_bytes(out)


# ==== hosts ===========================================================================


class Host:
    def __init__(self, name: str, folder: Path, serial: int) -> None:
        self.name = name
        self.netns = f"ddpd-{os.getpid()}-{serial}-{name}"
        self.folder = folder              # where its programs keep their logs
        self.programs: list[Program] = []
        self.daemons: list[Daemon] = []
        self.sockets: list[socket.socket] = []

    # -- commands ----------------------------------------------------------------------

    def sh(self, command: str, stdin: str | None = None) -> str:
        """Change something: say it, do it, fail if it fails."""
        print(f"[+] {self.name}: {command}" + (f" <<\n{stdin}" if stdin else ""))
        done = self.ask(command, stdin)
        if done.returncode:
            raise LabError(f"{self.name}: {command}\n{done.stderr}")
        return done.stdout

    def ask(self, command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Look at something, silently: polls do not belong in the transcript."""
        return subprocess.run([*self.inside(), *shlex.split(command)],
                              input=stdin, text=True, capture_output=True, check=False)

    def inside(self) -> list[str]:
        """What to put before a command so that it runs here."""
        return [IP, "netns", "exec", self.netns]

    def ip(self, args: str) -> str:
        return self.sh(f"ip {args}")

    def look(self, args: str) -> str:
        """What `ip` shows of this host."""
        return subprocess.run([IP, "-n", self.netns, *shlex.split(args)],
                              text=True, capture_output=True, check=False).stdout

    def sysctl(self, values: Mapping[str, int]) -> None:
        """sysctl, without the program: that of BusyBox and of procps differ."""
        print(f"[+] {self.name}: sysctl {' '.join(f'{k}={v}' for k, v in values.items())}")
        with self.entered():
            for key, value in values.items():
                Path(f"/proc/sys/{key}").write_text(str(value))

    def nft(self, rules: str) -> None:
        self.sh("nft -f -", stdin=rules)

    # -- what it is --------------------------------------------------------------------

    def routes_on(self) -> None:
        """Make it a router."""
        self.sysctl(ROUTER)

    def address(self, dev: str, *addresses: str) -> None:
        for address in addresses:
            self.ip(f"addr add {address} dev {dev}")

    def bridge(self, dev: str, *ports: str) -> None:
        self.ip(f"link add dev {dev} type bridge forward_delay 0")
        for port in ports:
            self.ip(f"link set dev {port} master {dev}")
        self.ip(f"link set dev {dev} up")
        if ports:
            eventually(lambda: "state UP" in self.look(f"link show dev {dev}"), what=f"{dev} is up")

    def masquerades(self, dev: str) -> None:
        """A NAT for IPv4: what leaves by `dev` has this host's address there."""
        self.nft(f"""table ip nat {{
    chain out {{ type nat hook postrouting priority 100; oifname "{dev}" masquerade; }}
}}""")

    def loses(self, tenths: str = "0, 3, 6") -> None:
        """Lose these of each ten ddpd datagrams that come here, each way; the first is number 0.

        `numgen inc`, not `random`: a test that fails must fail again.
        """
        self.nft(f"""table inet loss {{
    chain in {{
        type filter hook prerouting priority -300;
        udp dport {DDPD_PORT} numgen inc mod 10 {{ {tenths} }} drop
        udp sport {DDPD_PORT} numgen inc mod 10 {{ {tenths} }} drop
    }}
}}""")

    def notes_asks(self) -> None:
        """From now on, each address and port from which something here asks is written down, sent or not."""
        self.nft(f"""table inet asks {{
    set six {{ type ipv6_addr . inet_service; flags dynamic; size 1000; }}
    set four {{ type ipv4_addr . inet_service; flags dynamic; size 1000; }}
    chain out {{
        type filter hook output priority 0;
        udp dport {DDPD_PORT} add @six {{ ip6 saddr . udp sport }}
        udp dport {DDPD_PORT} add @four {{ ip saddr . udp sport }}
    }}
}}""")

    def asked_from(self) -> set[tuple[str, int]]:
        """What `notes_asks` has written down."""
        shown = json.loads(self.ask("nft -j list table inet asks").stdout)["nftables"]
        rows = [element["concat"] for row in shown if "set" in row for element in row["set"].get("elem", ())]
        return {(address, port) for address, port in rows}

    # -- programs ----------------------------------------------------------------------

    def start(self, command: str) -> Program:
        """A program that stays: it is ended with the laboratory, or by its `end`."""
        print(f"[+] {self.name}: {command} &")
        program = Program(self, shlex.split(command))
        self.programs.append(program)
        return program

    def ddpd(self, config: str, name: str = "", *, path: str = "",
             wrap: tuple[str, ...] = ()) -> Daemon:
        """A new ddpd of this host, not started yet, with an empty folder and the key of its name.

        `@name` in the config is the public key of `name`; `path` stands first in PATH; `wrap` is
        a command that runs it.
        """
        from daemon import Daemon
        name = name or self.name
        shutil.rmtree(self.folder / name, ignore_errors=True)
        env = {"PATH": f"{path}:{os.environ['PATH']}"} if path else {}
        daemon = Daemon(with_keys(config), self.folder, name, prefix=[*self.inside(), *wrap],
                        env=env)
        daemon.write_key(secret_of(name))
        self.daemons.append(daemon)
        return daemon

    def babeld(self, *devs: str, say: str = "") -> Program:
        """A routing daemon that says what ddpd installed; `say` are more filters."""
        lines = [*(f"interface {dev} type wired hello-interval 0.3 update-interval 1"
                   for dev in devs),
                 "redistribute ip ::/0 le 128 proto 221 allow",
                 "redistribute ip 0.0.0.0/0 le 32 proto 221 allow", *say.splitlines(),
                 "redistribute local deny", "redistribute deny"]
        name = f"{self.name}.babeld"
        (self.folder / name).write_text("\n".join(lines) + "\n")
        return self.start(f"babeld -I {name}.pid -S {name}.state -c {name} {' '.join(devs)}")

    def advertises(self, dev: str, conf: str = "") -> Program:
        """Router advertisements: what a radvd.conf says, or else what addresses the interface has, and for how long."""
        if conf:
            return self.start(f"radvd --nodaemon --logmethod stderr --config {conf} "
                              f"--pidfile {conf}.pid")
        return self.start(f"dnsmasq --no-daemon --conf-file=/dev/null --port=0 --interface={dev} "
                          f"--enable-ra --ra-param={dev},4,60 "
                          f"--dhcp-leasefile={self.name}.dnsmasq "
                          f"--dhcp-range=::,constructor:{dev},ra-only")

    # -- WireGuard ---------------------------------------------------------------------

    def wireguard(self, dev: str, *peers: str, port: int = 51820, name: str = "", quiet: bool = True) -> None:
        """An interface made by hand, up, with the key of this host's name.

        `quiet`: it has no address of its own accord, as one of the kernel's has none.
        A peer is what `wg set` is told of it: "@leaf allowed-ips fd00::2/128 endpoint 192.0.2.1:51820".
        """
        key = self.folder / f"{self.name}.wg"
        key.write_text(base64.b64encode(secret_of(name or self.name)).decode() + "\n")
        key.chmod(0o600)
        self.sh(f"wireguard-go {dev}")
        if quiet:
            self.sysctl({f"net/ipv6/conf/{dev}/addr_gen_mode": 1})
        self.sh(f"wg set {dev} private-key {key} listen-port {port}")
        for peer in peers:
            self.sh(with_keys(f"wg set {dev} peer {peer}"))
        self.ip(f"link set dev {dev} up")

    def end_tunnels(self) -> None:
        """With its interface ends whoever carries its packets."""
        for line in self.look("-o link show type tun").splitlines():
            self.look(f"link del dev {line.split()[1].strip(':')}")

    def allowed(self, dev: str) -> dict[str, list[str]]:
        """What `wg` shows: allowed IPs by public key, in their order."""
        rows = (line.split() for line in self.ask(f"wg show {dev} allowed-ips").stdout.splitlines())
        return {row[0]: [word for word in row[1:] if word != "(none)"] for row in rows}

    # -- packets -----------------------------------------------------------------------

    def socket(self, family: int, kind: int = socket.SOCK_DGRAM, proto: int = 0) -> socket.socket:
        """A socket of this host in this process."""
        with self.entered():
            sock = socket.socket(family, kind, proto)
        self.sockets.append(sock)
        return sock

    @contextmanager
    def entered(self) -> Iterator[None]:
        with open("/proc/thread-self/ns/net") as ours, open(f"/run/netns/{self.netns}") as theirs:
            enter(theirs.fileno())
            try:
                yield
            finally:
                enter(ours.fileno())

    def record(self, dev: str) -> Recorder:
        return Recorder(self.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)),
                        dev)

    def reaches(self, address: str, source: str = "") -> bool:
        """True if a UDP datagram to a closed port there is refused.  (No ping needed.)"""
        family = family_of(address)
        with self.socket(family) as sock:
            sock.settimeout(0.5)
            try:
                if source:
                    sock.bind((source, 0))
                sock.connect((address, 9))
                sock.send(b"")
                sock.recv(1)
            except ConnectionRefusedError:
                return True
            except OSError:
                pass
        return False

    # -- what its kernel has -----------------------------------------------------------

    def kernel(self) -> list[str]:
        """Links, addresses, routes of all tables, rules, proxy neighbours; counters removed."""
        return sorted(f"{what}: {line}" for what, look in LOOKS.items()
                      for line in calm(self.look(look)))

    def settled(self) -> list[str]:
        """The same, when nothing changes any more: what is told by a daemon may be there a moment later."""
        looks = [self.kernel()]

        def is_settled() -> bool:
            looks.append(self.kernel())
            return looks[-1] == looks[-2]
        time.sleep(0.2)
        eventually(is_settled, 5, f"{self.name} settles", every_s=0.2)
        return looks[-1]

    def routes(self, proto: int = 221) -> list[str]:
        """The routes of both families, all tables, that carry a mark.

        Not `ip route show proto N`: that leaves out what it was asked for.
        """
        return [line for family in "46"
                for line in calm(self.look(f"-{family} route show table all"))
                if f" proto {proto} " in f"{line} "]

    def addresses(self, dev: str, family: int = 6) -> list[str]:
        """The global addresses of an interface, with their lengths."""
        shown = self.look(f"-{family} -o addr show dev {dev} scope global")
        return [line.split()[3] for line in shown.splitlines()]


class Program:
    """A program that runs on a host: its log, its pid, its end."""

    def __init__(self, host: Host, argv: list[str]) -> None:
        self.log_file = host.folder / f"{host.name}.{Path(argv[0]).name}.{len(host.programs)}.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen([*host.inside(), *argv], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, cwd=host.folder)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def running(self) -> bool:
        return self.process.poll() is None

    def end(self, hard: bool = False) -> None:
        if self.running():
            (self.process.kill if hard else self.process.terminate)()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def calm(shown: str) -> list[str]:
    """What `ip` shows, line by line, without interface numbers, counters, padding and what passes by itself."""
    return [" ".join(VOLATILE.sub(r"\1 N", re.sub(r"^\d+: (?=\w)", "", line)).replace(" tentative ", " ").split())
            for line in shown.replace("\\", " ").splitlines()]


def changes(before: list[str], after: list[str]) -> list[str]:
    """What has gone from a kernel (-) and what has come (+)."""
    return ([f"- {line}" for line in before if line not in after]
            + [f"+ {line}" for line in after if line not in before])


def secret_of(name: str) -> bytes:
    """The private key of whoever has this name in the laboratory: always the same."""
    return hashlib.blake2s(name.encode(), person=b"ddpd lab").digest()


def public_of(name: str) -> str:
    from nacl.bindings import crypto_scalarmult_base
    return base64.b64encode(crypto_scalarmult_base(secret_of(name))).decode()


def with_keys(config: str) -> str:
    return re.sub(r"@(\w+)", lambda found: public_of(found[1]), config)


def wg_name(host: str) -> str:
    """Of an interface: wireguard-go's sockets are those of the whole machine, whatever the namespace."""
    return f"wg{os.getpid()}{host[:5]}"


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


# ==== the laboratory ==================================================================


class Lab:
    """Hosts and cables.  A name that ends in `*` is a router: Lab("exit*", "host")."""

    def __init__(self, *names: str, folder: Path | None = None) -> None:
        self.own_folder = None if folder else tempfile.TemporaryDirectory(prefix="ddpd-lab-")
        self.folder = folder or Path(self.own_folder.name if self.own_folder else "")
        self.routers = {name.rstrip("*") for name in names if name.endswith("*")}
        serial = next(SERIAL)
        self.hosts = {name.rstrip("*"): Host(name.rstrip("*"), self.folder, serial)
                      for name in names}

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> Lab:
        try:
            for host in self.hosts.values():
                subprocess.run([IP, "netns", "add", host.netns], check=True)
                host.sysctl(QUICK)
                host.ip("link set dev lo up")
                if host.name in self.routers:
                    host.routes_on()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for host in self.hosts.values():
            for daemon in host.daemons:
                print(f"---- {daemon.name} ----\n{daemon.log()}")
                daemon.kill()
            for program in host.programs:
                program.end(hard=True)
            host.end_tunnels()
            for sock in host.sockets:
                sock.close()
            subprocess.run([IP, "netns", "del", host.netns], check=False, capture_output=True)
        if self.own_folder:
            self.own_folder.cleanup()

    def leave(self, *names: str) -> None:
        """After a test in a world that goes on: no daemon left, and nothing that one made."""
        for host in [self[name] for name in names or self.hosts]:
            for daemon in host.daemons:
                print(f"---- {daemon.name} ----\n{daemon.log()}")
                if daemon.running():
                    daemon.command("release")
                    daemon.kill()
                    daemon.command("clean")
            host.daemons.clear()

    def cable(self, one: str, other: str) -> None:
        """Join two hosts: cable("hub:eth0 192.0.2.1/24 fd00::1/64", "leaf:eth0 fd00::2/64")."""
        (a, a_dev, a_has), (b, b_dev, b_has) = self.end(one), self.end(other)
        a.ip(f"link add dev {a_dev} type veth peer name {b_dev} netns {b.netns}")
        for host, dev, addresses in (a, a_dev, a_has), (b, b_dev, b_has):
            host.ip(f"link set dev {dev} up")
            host.address(dev, *addresses)

    def end(self, text: str) -> tuple[Host, str, list[str]]:
        place, *addresses = text.split()
        name, dev = place.split(":", 1)
        return self[name], dev, addresses


def eventually(truth: Callable[[], object], within_s: float = 5.0, what: str = "",
               every_s: float = 0.05) -> None:
    """Poll; never sleep and hope."""
    end = time.monotonic() + within_s
    while not truth():
        if time.monotonic() > end:
            raise LabError(f"{what or 'not true'}: not within {within_s} s")
        time.sleep(every_s)


def tried(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["unshare", "-n", "sh", "-c", command], capture_output=True, text=True, check=False)


def can(command: str) -> bool:
    """For what not all kernels have, and is tested where they do."""
    return tried(command).returncode == 0


def needs(command: str) -> pytest.MarkDecorator:
    """Skip, loudly, where this kernel or user cannot do `command` in a fresh namespace."""
    import pytest
    trial = tried(command)
    why = f"this machine cannot: {command}: {trial.stderr.strip()}"
    if os.geteuid():
        why += "; not root: try `python tests/lab.py python -m pytest tests/netns`"
    return pytest.mark.skipif(trial.returncode != 0, reason=why)


def busybox_path(folder: Path) -> str:
    """A folder for PATH in which `ip` is BusyBox's."""
    place = folder / "busybox"
    place.mkdir(exist_ok=True)
    busybox = shutil.which("busybox")
    if not busybox:
        raise LabError("busybox is not installed")
    if not (place / "ip").exists():
        (place / "ip").symlink_to(busybox)
    return str(place)


# ==== a world of one's own ============================================================
#
# Root makes named network namespaces as it likes.  Anybody else may do so as root of a user
# namespace, with a mount namespace in which /run can be written.

NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
CLEAN_END = ["--pid", "--fork", "--kill-child", "--mount-proc"]      # not allowed in all containers
INSIDE = "DDPD_LAB_INSIDE"


def can_lab() -> str:
    """Empty if network namespaces with names can be made here; else why not."""
    name = f"ddpd-{os.getpid()}-trial"
    if not shutil.which("ip"):
        return "`ip` (iproute2) is not installed"
    made = subprocess.run([IP, "netns", "add", name], text=True, capture_output=True, check=False)
    if made.returncode == 0:
        made = subprocess.run([IP, "-n", name, "link", "add", "dev", "a", "type", "veth"],
                              text=True, capture_output=True, check=False)
        subprocess.run([IP, "netns", "del", name], capture_output=True, check=False)
    return made.stderr.strip() if made.returncode else ""


def own_world(argv: list[str]) -> str:
    """Return where namespaces can be made; else start `argv` again where they can.

    The answer is empty, or says why it cannot be done here at all.
    """
    if os.environ.get(INSIDE):
        open_run()
        return can_lab()
    why = can_lab() if os.geteuid() == 0 else "not root"
    if not why:
        return ""
    if not shutil.which("unshare"):
        return f"{why}, and `unshare` (util-linux) is not installed"
    refusal = ""
    for namespaces in (NAMESPACES + CLEAN_END, NAMESPACES):
        trial = subprocess.run([*namespaces, "true"], text=True, capture_output=True, check=False)
        if trial.returncode == 0:
            sys.stdout.flush()
            os.execvpe(namespaces[0], [*namespaces, *argv], {**os.environ, INSIDE: "1"})
        refusal = trial.stderr.strip()
    return f"{why}, and this kernel lets nobody else make namespaces ({refusal})"


def open_run() -> None:
    """Lay a /run over /run in which /run/netns can be made; all that was there stays there."""
    new = tempfile.mkdtemp(prefix="ddpd-run-")
    for command in ("mount --make-rprivate /", f"mount -t tmpfs none {new}", f"mkdir {new}/.old",
                    f"mount --rbind /run {new}/.old", f"mount --move {new} /run"):
        subprocess.run(command.split(), check=False, capture_output=True)
    os.rmdir(new)
    for name in set(os.listdir("/run/.old")) - {"netns"}:
        os.symlink(f".old/{name}", f"/run/{name}")


def main(argv: list[str]) -> int:
    if not argv:
        print(__doc__)
        return 2
    why = own_world([sys.executable, __file__, *argv])
    if why:
        print(f"lab: no network namespaces here: {why}", file=sys.stderr)
        return 2
    return subprocess.run(argv, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
