"""A router: what the .ipk holds, unpacked with tar, BusyBox and nothing else, Python without what python3-light lacks.

    with Lab("hub", "home") as lab:
        router = Router(tmp_path, lab["home"], ipks, Slim(sys.executable, library))
        router.write("etc/config/ddpd", "config ddpd 'main'\\n\\toption enabled '1'\\n")
        router.init("start")                   # /etc/init.d/ddpd under a stand-in for rc.common; procd is played here
        netifd = Netifd(router, "wan6d", {"proto": "ddpd", ...}, "eth0")
        netifd.setup()

Each command runs in a root folder of its own (chroot, in a mount namespace of its own) and the host's network
namespace.  The stand-ins in tests/router record what they are told in /record, which `told` reads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab import Host, secret_of
from test_architecture import ABSENT, FAILING

HERE = Path(__file__).resolve().parent
PLACES = ("import os, sys, sysconfig; "
          "print(os.path.realpath(sys.executable), sysconfig.get_path('stdlib'), sys.base_prefix)")

# Python as python3-light has it: what is not there cannot be imported, also where something else imports it.
BLOCKER = """
import sys

class Absent:
    names = frozenset({names!r}.split())

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in cls.names:
            raise ModuleNotFoundError(f"No module named {{name!r}} (python3-light has none)", name=name)

for name in [name for name in sys.modules if name in Absent.names]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent)
sys.dont_write_bytecode = True
"""
TO_SHELL = """#!{python}
import json, shlex, sys
for name, value in json.loads(sys.argv[1]).items():
    rows = value if isinstance(value, list) else []
    if isinstance(value, list):
        print(f"JSON_COUNT_{{name}}={{len(rows)}}")
        for n, row in enumerate(rows, 1):
            print(f"JSON_{{name}}_{{n}}={{shlex.quote(str(row))}}")
    else:
        print(f"JSON_{{name}}={{shlex.quote(str(int(value) if isinstance(value, bool) else value))}}")
"""
UCI_EXPORT = r"""#!{python}
import os, re, sys
if not os.path.exists(sys.argv[1]):
    sys.exit("uci: Entry not found")
LINE = r"[ \t]*(#.*)?\n|config \w+( '\w+')?[ \t]*\n|[ \t](option|list) \w+ '[^']*'[ \t]*(#.*)?\n"
text = open(sys.argv[1]).read()
if not re.fullmatch(f"({{LINE}})*", text):
    sys.exit("uci: Parse error")
"""
OLDEST_PYNACL = "1.5.0"
Call = tuple[str, ...]


class Slim:
    """A Python as python3-light has it, with a library folder that holds PyNaCl."""

    def __init__(self, python: str, library: Path) -> None:
        self.library = library
        said = subprocess.run([python, "-c", PLACES], capture_output=True, text=True, check=True).stdout
        self.path, stdlib, prefix = said.split()
        wanted = [*Path("/lib").glob("*-linux-*"), Path("/lib64"), *Path("/usr/lib").glob("*-linux-*"),
                  Path(stdlib), Path(self.path), library, *([Path(prefix)] if prefix != "/usr" else [])]
        # What of this machine a root folder needs.  (/lib may be a link to /usr/lib; ld.so is looked for in /lib64.)
        self.bound = [str(path) for path in wanted
                      if path.exists() and (path == Path("/lib64") or not path.is_symlink())]


def pythons() -> list[str]:
    """Every Python here that ddpd runs on, one for each version; ours first."""
    tried = [sys.executable, *(f"python3.{minor}" for minor in range(11, 20)),
             *map(str, sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3")))]
    found: dict[str, str] = {}
    for name in tried:
        path = shutil.which(name)
        done = path and subprocess.run([path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True,
                                       text=True, check=False)
        if path and done and done.returncode == 0 and tuple(map(int, done.stdout.split())) >= (3, 11):
            found.setdefault(done.stdout, path)
    return list(found.values())


def install_pynacl(python: str, folder: Path) -> str:
    """The oldest that is supported.  Why it cannot be installed; empty if it is."""
    done = subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(folder),
                           f"pynacl=={OLDEST_PYNACL}"], capture_output=True, text=True, check=False)
    return "".join(done.stderr.strip().splitlines()[-1:]) if done.returncode else ""


class Router:
    """Root folder, commands, and procd for one service."""

    def __init__(self, folder: Path, host: Host, ipks: Iterable[Path], slim: Slim) -> None:
        self.host, self.root = host, folder / "root"
        self.root.mkdir()
        for ipk in ipks:
            self.unpack(ipk)
        self.furnish()
        self.write("usr/bin/python3", f'#!/bin/sh\nexec env PYTHONPATH=/slim:{slim.library} {slim.path} "$@"\n', 0o755)
        self.write("slim/sitecustomize.py", BLOCKER.format(names=" ".join(sorted(ABSENT | FAILING))))
        self.write("bin/to-shell", TO_SHELL.format(python=slim.path), 0o755)
        self.write("bin/uci-export", UCI_EXPORT.format(python=slim.path), 0o755)
        self.bound = slim.bound
        for path in self.bound:
            place = self.root / path.lstrip("/")
            if os.path.isdir(path):
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        self.calls: list[Call] = []                               # of the last `init`
        self.heard = 0                                            # of what was recorded
        self.task: subprocess.Popen[bytes] | None = None          # of procd
        self.instance: tuple[list[str], str] | None = None

    def unpack(self, ipk: Path) -> None:
        """As opkg does, by plain tar."""
        for archive in ("data", "control"):
            data = subprocess.run(["tar", "-xzOf", str(ipk), f"./{archive}.tar.gz"], check=True, capture_output=True)
            target = self.root if archive == "data" else self.root / f"usr/lib/opkg/info/{ipk.name.split('_')[0]}"
            target.mkdir(parents=True, exist_ok=True)
            subprocess.run(["tar", "-xzf", "-", "-C", str(target)], input=data.stdout, check=True)

    def furnish(self) -> None:
        for name in ("bin", "sbin", "usr/bin", "usr/sbin", "proc", "dev", "sys", "tmp", "var/run", "var/lock", "etc"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, self.root / "bin/busybox")
        applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in applets:
            if not (self.root / "bin" / applet).exists():
                (self.root / "bin" / applet).symlink_to("busybox")
        flock = shutil.which("flock")                             # OpenWrt's BusyBox has it, Debian's has not
        assert flock is not None
        shutil.copy(flock, self.root / "usr/bin/flock")
        for source in (HERE / "router").rglob("*"):
            if source.is_file():
                target = self.root / source.relative_to(HERE / "router")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                shutil.copy(source, target)

    # -- commands

    def argv(self, command: list[str]) -> list[str]:
        root = shlex.quote(str(self.root))
        binds = "".join(f"mount --bind {path} {root}{path};" for path in [*self.bound, "/dev", "/proc", "/sys"])
        return [*self.host.inside(), "unshare", "-m", "--propagation", "private", "sh", "-c",
                f'set -e; {binds} exec chroot {root} "$@"', "sh", *command]

    def alone(self, command: Iterable[str], env: Mapping[str, str] | None) -> list[str]:
        """In the router's own small environment."""
        given = [f"{key}={value}" for key, value in (env or {}).items()]
        return self.argv(["/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *given, *command])

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.alone(command, env), capture_output=True, text=True, check=False, timeout=60)

    def start(self, command: list[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.root / "log").open("ab") as log:
            return subprocess.Popen(self.alone(command, env), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def sh(self, command: str) -> str:
        done = self.run("sh", "-c", command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # -- files

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def write_key(self, name: str, file: str = "etc/ddpd/key") -> None:
        """The private key of whoever has this name in the laboratory."""
        self.write(file, base64.b64encode(secret_of(name)).decode() + "\n", 0o600)

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def log(self) -> str:
        return self.read("log") if (self.root / "log").exists() else ""

    def told(self) -> list[Call]:
        """What has been recorded since."""
        record = self.root / "record"
        text = record.read_text()[self.heard :] if record.exists() else ""
        text = text[: text.rfind("\n") + 1]
        self.heard += len(text)
        return [tuple(line.split("\x1f")[:-1]) for line in text.split("\n")[:-1]]

    # -- procd

    def init(self, action: str, *words: str) -> subprocess.CompletedProcess[str]:
        """/etc/init.d/ddpd ACTION, and what procd does then; `calls` has what it was told."""
        self.told()
        done = self.run("/etc/init.d/ddpd", action, *words)
        self.calls = self.told()
        if ("procd_close_service",) in self.calls:
            self.apply()
        return done

    def params(self) -> dict[str, list[str]]:
        return {call[1]: list(call[2:]) for call in self.calls if call[0] == "procd_set_param"}

    def apply(self) -> None:
        """A service without an instance is stopped; one whose file has changed gets its reload signal."""
        params = self.params()
        if "command" not in params:
            self.stop()
            self.instance = None
            return
        conf = self.root / params["file"][0].lstrip("/")
        if conf.is_symlink():
            conf = self.root / os.readlink(conf).lstrip("/")
        if ("procd_send_signal", "ddpd", "*", "HUP") in self.calls and self.task is not None:
            self.task.send_signal(signal.SIGHUP)
        instance = params["command"], hashlib.md5(conf.read_bytes(), usedforsecurity=False).hexdigest()
        if self.task is None or self.task.poll() is not None:
            self.task = self.start(params["command"])
        elif instance != self.instance:
            self.task.send_signal(signal.Signals[f"SIG{params['reload_signal'][0]}"])
        self.instance = instance

    def stop(self) -> int | None:
        if self.task is None:
            return None
        self.task.terminate()
        code = self.task.wait(10)
        self.task = None
        return code

    def status(self) -> dict[str, list[dict[str, object]]]:
        said = self.run("/usr/sbin/ddpd", "status", "--json")
        return dict(json.loads(said.stdout)) if said.returncode == 0 else {}


class Netifd:
    """One interface of a shell protocol, as netifd treats it."""

    def __init__(self, router: Router, interface: str, config: Mapping[str, object], device: str) -> None:
        self.router, self.interface, self.config, self.device = router, interface, dict(config), device
        self.task: subprocess.Popen[bytes] | None = None
        self.script: subprocess.Popen[bytes] | None = None        # the handler, while it sets up
        self.calls: list[Call] = []
        self.exported: dict[str, str] = {}
        self.update: list[Call] = []                              # begun, and perhaps not sent yet
        self.data: dict[str, str] = {}                            # of ifstatus: merged, until it goes down
        self.shown: list[Call] = []                               # its errors, until it comes up
        self.up = False

    def command(self, action: str) -> list[str]:
        return ["sh", "-c", 'cd /lib/netifd/proto; exec ./ddpd.sh "$@"', "sh", "ddpd", action, self.interface,
                json.dumps(self.config), self.device]

    def handler(self, action: str, env: Mapping[str, str] | None = None) -> list[Call]:
        done = self.router.run(*self.command(action), env=env)
        assert "syntax" not in done.stderr and "not found" not in done.stderr, done.stderr
        return self.hear()

    def hear(self) -> list[Call]:
        calls = self.router.told()
        self.calls += calls
        for call in calls:
            assert call[0] != "proto_block_restart", "what is mended would stay dead until `ifup`"
            if call[0] == "proto_init_update":
                self.update = []
            elif call[0] == "proto_send_update":
                assert re.match(r"action=0 link-up=[01] (state=|$)", call[2]), call
                self.updated("link-up=1" in call[2])
            elif call[0] == "proto_notify_error" and call[1] == self.interface:
                self.shown = [call[2:]]                           # `lasterror`: the last takes the others' place
            elif call[0] == "proto_export":
                name, _, value = call[1].partition("=")
                self.exported[name] = value
            elif call[0] == "proto_run_command" and self.script is not None:
                self.task = self.router.start(list(call[2:]), self.exported)
                self.router.write(f"task.{self.interface}", str(self.task.pid))
            self.update.append(call)
        return calls

    def updated(self, up: bool) -> None:
        told = {call[1]: call[2] for call in self.update if call[0] in ("json_add_string", "json_add_boolean")}
        self.data = {**self.data, **told} if up else {}
        self.shown = self.shown if self.up or not up else []
        self.up = up

    def setup(self) -> list[Call]:
        """Until the handler has ended, or has told an error and sleeps.  One that ends without a task is set up again
        at once, and for ever."""
        self.script = self.router.start(self.command("setup"))
        calls: list[Call] = []
        until = time.monotonic() + 60
        while self.script.poll() is None and time.monotonic() < until:
            calls += self.hear()
            if any(call[0] == "proto_notify_error" for call in calls):
                time.sleep(0.5)
                break
            time.sleep(0.05)
        calls += self.hear()
        assert self.script.poll() is None or self.runs(), self.router.log()
        assert "syntax error" not in self.router.log() and "not found" not in self.router.log()
        return calls

    def rests(self) -> bool:
        """The handler sleeps, and there is no task."""
        return self.script is not None and self.script.poll() is None and not self.runs()

    def runs(self) -> bool:
        self.hear()
        return self.task is not None

    def teardown(self, env: Mapping[str, str] | None = None) -> int | None:
        """The code with which the task has ended, within 5 s; None: it had to be killed."""
        if self.script is not None and self.script.poll() is None:
            self.script.terminate()
            assert self.script.wait(1) in (0, -signal.SIGTERM)    # netifd kills it then
        self.script = None
        self.handler("teardown", env)
        self.data, self.up = {}, False
        task, self.task = self.task, None
        if task is None:
            return 0
        try:
            return task.wait(5)
        except subprocess.TimeoutExpired:
            task.kill()
            task.wait()
            return None

    def reload(self, **options: object) -> list[Call]:
        """`network reload` after these were changed."""
        self.config.update(options)
        self.teardown()
        return self.setup()

    def updates(self) -> list[list[Call]]:
        """Each proto_init_update with what came until proto_send_update."""
        found: list[list[Call]] = []
        beside: list[Call] = []                                   # what belongs to none
        update = beside
        for call in self.calls:
            if call[0] == "proto_init_update":
                update = []
                found.append(update)
            elif call[0] == "proto_send_update":
                update = beside
            update.append(call)
        return found

    def errors(self) -> list[Call]:
        return [call[2:] for call in self.calls if call[0] == "proto_notify_error"]
