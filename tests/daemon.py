"""A ddpd that runs: its folder, its config, its log; started, asked and ended by pid.

    with Daemon("[ddpd]\\nlisten = 127.0.0.1:5000\\n...", tmp_path, "hub") as hub:
        assert hub.status()["granted"] == []

The folder is tmp_path/name.  `key`, `leases` and `control` point into it unless the config says
otherwise.  `prefix` goes before the command: ["ip", "netns", "exec", NAMESPACE].
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import py_compile
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = Path(__file__).resolve().parent.parent / "ddpd.py"
START_S = 15.0          # a start is far quicker; machines that test are busy
STOP_S = 10.0


@cache
def compiled() -> Path:
    """Byte code, as `make install` has it: thousands of starts would each compile all of it again."""
    folder = Path(tempfile.mkdtemp(prefix="ddpd-"))
    atexit.register(shutil.rmtree, folder)
    folder.chmod(0o755)                    # some of them are nobody's
    py_compile.compile(str(PROGRAM), str(folder / "ddpd.pyc"), doraise=True)
    return folder / "ddpd.pyc"


class Daemon:
    def __init__(self, config: str, tmp_path: Path, name: str = "ddpd", *,
                 prefix: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.dir = tmp_path / name
        self.dir.mkdir(parents=True, exist_ok=True)
        self.config = self.dir / "ddpd.conf"
        self.logfile = self.dir / "log"
        self.prefix = list(prefix)
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.program = compiled()
        self.control = ""
        self.write(config)

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind:
            print(f"---- {self.name} ----\n{self.log()}")
        self.kill()

    def write(self, config: str) -> None:
        """Put the config in place; what lives in files goes to this daemon's own folder."""
        if not re.search(r"(?m)^\[ddpd\]", config):
            config = "[ddpd]\n" + config
        for key, file in (("key", "key"), ("leases", "leases.json"), ("control", "ddpd.sock")):
            own = config.split("[ddpd]", 1)[1].split("\n[", 1)[0]
            if not re.search(rf"(?m)^{key}\s*=", own):
                config = config.replace("[ddpd]", f"[ddpd]\n{key} = {self.dir / file}", 1)
        self.config.write_text(config)
        self.config.chmod(0o600)

    def write_key(self, private: bytes, name: str = "key") -> None:
        file = self.dir / name
        file.write_text(base64.b64encode(private).decode() + "\n")
        file.chmod(0o600)

    def start(self) -> Daemon:
        """Start it, and return when it answers on its control socket."""
        assert not self.running(), f"{self.name} runs already"
        print(f"[+] {self.name}: started, pid {self.launch().pid}")
        self.eventually(lambda: self.told("status", rows=0), START_S)
        return self

    def launch(self, *command: str) -> subprocess.Popen[bytes]:
        """Start it and do not wait: it may be killed before it has read its config."""
        try:
            found = re.findall(r"(?m)^control\s*=\s*(\S+)", self.config.read_text(errors="replace"))
        except OSError:                    # that is what some tests are about
            found = []
        self.control = found[0] if found else str(self.dir / "ddpd.sock")
        with self.logfile.open("ab") as log:
            self.process = subprocess.Popen(self.argv(*command), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env=self.env)
        return self.process

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self.end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL: a crash."""
        return self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        if self.running():
            print(f"[+] {self.name}: {number.name}")
            self.process.send_signal(number)
        process, self.process = self.process, None
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} survived {number.name}\n{self.log()}") from None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        print(f"[+] {self.name}: {number.name}")
        self.process.send_signal(number)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def argv(self, *command: str) -> list[str]:
        return [*self.prefix, sys.executable, str(self.program), *command, "-c", str(self.config)]

    def command(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a subcommand with this daemon's config, such as command("renew")."""
        return subprocess.run(self.argv(*command), env=self.env, text=True, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=60, check=False)

    def told(self, do: str, **rest: Any) -> dict[str, Any] | None:
        """What it says to an order, without a program that gives it; nothing if it does not answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            try:
                sock.connect(self.control)
                sock.sendall(json.dumps({"do": do, **rest}).encode() + b"\n")
                heard = b"".join(iter(lambda: sock.recv(1 << 20), b""))
            except OSError:
                return None
        said: dict[str, Any] | None = json.loads(heard) if heard.endswith(b"\n") else None
        return said

    def status(self) -> dict[str, Any]:
        """As `status --json` says it, which takes a hundred times as long; that is asked where this says nothing."""
        said = self.told("status")
        if said is not None and "error" not in said:
            return said
        done = self.command("status", "--json")
        if done.returncode:
            raise AssertionError(f"{self.name}: no status\n{done.stdout}{done.stderr}{self.log()}")
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def log(self) -> str:
        return self.logfile.read_text(errors="replace") if self.logfile.exists() else ""

    def eventually(self, truth: Callable[[], object], within_s: float = 5.0) -> None:
        """Poll while the daemon lives; show its log if it does not become true."""
        end = time.monotonic() + within_s
        while not truth():
            if not self.running():
                raise AssertionError(f"{self.name} ended by itself\n{self.log()}")
            if time.monotonic() > end:
                raise AssertionError(f"{self.name}: not true within {within_s} s\n{self.log()}")
            time.sleep(0.05)


def free_port(host: str = "::1") -> int:
    """A UDP port that nobody uses now, and that the kernel will give to no client of ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind((host, port))
            except OSError:
                continue
            return port
