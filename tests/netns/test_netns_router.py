"""The package on a router: unpacked with tar, BusyBox and a slim Python with the oldest PyNaCl, nothing else.

      hub (grantor) ------------------------ home (the router)
      fd00::1/64, 192.0.2.1                  eth0 = network wan, br-lan = network lan
"""

from __future__ import annotations

import marshal
import os
import re
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ddpd
import docs
from build import main as build
from daemon import Daemon
from lab import Lab, eventually, needs, public_of, wg_name
from luci.samples import FULL, OURS
from onrouter import OLDEST_PYNACL, Netifd, Router, Slim, install_pynacl, pythons

pytestmark = needs("command -v busybox && unshare -m true")

HUB = """
[pool home]
prefix = 2001:db8:42::/48
give   = /56-/64
lifetime = {lifetime}
dns    = 2001:db8::53
search = example.net
mtu    = 1400
[pool four]
prefix = 10.64.0.0/16
give   = /24-/32
lifetime = {lifetime}
[grantee home]
key   = @home
pools = home four
limit = 4
"""


@pytest.fixture(scope="session")
def ipks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("dist")
    assert build(["ipk", str(folder)]) == 0
    return sorted(folder.glob("*.ipk"))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the oldest PyNaCl that is supported."""
    folder = tmp_path_factory.mktemp("oldest")
    why = install_pynacl(sys.executable, folder)
    if why:
        pytest.skip(f"cannot install PyNaCl {OLDEST_PYNACL}: {why}")
    return folder


@pytest.fixture(scope="session")
def slim(library: Path) -> Slim:
    return Slim(sys.executable, library)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("hub", "home") as lab:
        lab.cable("hub:eth0 fd00::1/64 192.0.2.1/24", "home:eth0 fd00::2/64 192.0.2.2/24")
        lab["home"].bridge("br-lan")
        yield lab


@pytest.fixture
def router(lab: Lab, ipks: list[Path], slim: Slim, tmp_path: Path) -> Iterator[Router]:
    router = Router(tmp_path, lab["home"], ipks, slim)
    router.write("etc/devices", "wan eth0\nlan br-lan\n")
    router.write_key("home")
    try:
        yield router
    finally:
        router.stop()
        print(router.log())


def hub(lab: Lab, lifetime: str = "1h") -> Daemon:
    return lab["hub"].ddpd(HUB.format(lifetime=lifetime))


def uci(kind: str, called: str, /, **options: str | list[str]) -> str:
    lines = [f"config {kind} '{called}'"]
    for key, value in options.items():
        word, items = ("list", value) if isinstance(value, list) else ("option", [value])
        lines += [f"\t{word} {key} '{item}'" for item in items]
    return "\n".join([*lines, "", ""])


MAIN = uci("ddpd", "main", enabled="true")
POOL = uci("pool", "home", prefix="2001:db8:42::/48", give="/56")


# ==== what is in it ===================================================================


def test_what_is_installed(router: Router) -> None:
    info = router.root / "usr/lib/opkg/info/ddpd"
    control = (info / "control").read_text()
    assert f"Version: {ddpd.VERSION}-r" in control and "Depends: libc, python3-light, python3-pynacl\n" in control
    assert "Architecture: all\n" in control and (info / "conffiles").read_text() == "/etc/config/ddpd\n"
    assert router.sh("ddpd --version").strip() == ddpd.VERSION                  # the first start makes byte code
    home = router.root / "usr/lib/ddpd"
    (code,) = home.glob("*.code")
    assert code.name.startswith(f"{sys.implementation.cache_tag}-")
    mtime = code.stat().st_mtime_ns
    assert router.sh("ddpd --version").strip() == ddpd.VERSION                  # from byte code
    assert code.stat().st_mtime_ns == mtime
    code.write_bytes(zlib.compress(marshal.dumps(compile("SETTINGS, main = {'ddpd': {}}, print", "x", "exec"))))
    assert "KeyError" in router.run("ddpd", "--version").stderr                 # it is that which runs
    code.write_bytes(code.read_bytes()[:-9])
    assert router.sh("ddpd --version").strip() == ddpd.VERSION                  # damaged: from source, and thrown away
    assert not code.exists() and router.sh("ddpd --version").strip() == ddpd.VERSION and code.exists()
    (home / "cpython-39-00000000.code").touch()
    code.unlink()
    router.sh("/usr/lib/opkg/info/ddpd/postinst-pkg")
    assert [file.name for file in home.glob("*.code")] == [code.name]           # that of another Python goes
    assert router.read("lib/upgrade/keep.d/ddpd") == "/etc/ddpd/\n/etc/ddpd.conf\n"
    assert re.match(r"221\s+ddpd$", router.read("etc/iproute2/rt_protos.d/ddpd.conf"))
    assert (router.root / "etc/config/ddpd").stat().st_mode & 0o777 == 0o600
    router.sh("/usr/lib/opkg/info/ddpd/prerm-pkg")
    assert not list((router.root / "usr/lib/ddpd").glob("*.code*"))


def test_byte_code_that_cannot_be_written_leaves_the_source(router: Router) -> None:
    done = router.run("sh", "-c", "ulimit -f 8; ddpd --version")
    assert done.stdout.strip() == ddpd.VERSION and not list((router.root / "usr/lib/ddpd").glob("*.code*"))


def test_a_slim_python_is_slim(router: Router) -> None:
    for name in ("logging", "pathlib", "encodings.idna"):
        assert "python3-light has none" in router.run("python3", "-c", f"import {name}").stderr
    assert router.sh("python3 -c 'import nacl; print(nacl.__version__)'") == "1.5.0\n"
    assert "BusyBox" in router.run("ip").stderr


def test_every_entry_point_on_a_slim_python(router: Router) -> None:
    router.write("etc/ddpd.conf", "[grantor hub]\nkey = " + public_of("hub") + "\naddress = localhost\nask = ::/64\n")
    router.sh("mkdir -p /var/run/ddpd && ln -s /etc/ddpd.conf /var/run/ddpd/ddpd.conf")
    codes = {"check": 0, "genkey": 0, "introduce": 0, "help": 0, "ask --wait 1": 3, "status": 2, "clean": 0,
             "decode 01010000": 2, "explain hub ::/64": 2, "metrics": 2, "leases": 2}
    for command, code in codes.items():
        done = router.run("sh", "-c", f"ddpd {command}")
        assert done.returncode == code and "Traceback" not in done.stderr, (command, done)
    assert (router.root / "etc/ddpd/leases.json.lock").exists()                 # /var is lost at each boot


# ==== /etc/config/ddpd and procd ======================================================


def test_a_fresh_installation_is_inert(router: Router) -> None:
    done = router.init("start")
    assert done.returncode == 0 and router.instance is None
    assert ("procd_add_reload_trigger", "ddpd") in router.calls
    assert "not enabled" in router.log() and not (router.root / "var/run/ddpd").exists()


def test_the_instance(router: Router) -> None:
    router.write("etc/config/ddpd", MAIN + POOL)
    assert router.init("start").returncode == 0
    assert router.params() == {
        "command": ["/usr/sbin/ddpd", "-c", "/var/run/ddpd/ddpd.conf"], "file": ["/var/run/ddpd/ddpd.conf"],
        "reload_signal": ["HUP"], "respawn": ["3600", "5", "0"], "env": ["DDPD_LOG=split"], "stdout": ["1"],
        "stderr": ["1"], "term_timeout": ["10"]}
    secret = router.read("etc/ddpd/key").strip()
    assert not any(secret in word for call in router.calls for word in call)
    for name, mode in {"var/run/ddpd": 0o700, "var/run/ddpd/ddpd.conf": 0o600, "etc/ddpd/key": 0o600,
                       "etc/ddpd": 0o700}.items():
        assert (router.root / name).stat().st_mode & 0o777 == mode, name
    assert router.read("etc/ddpd/key.pub").strip() == public_of("home")


def test_a_first_start_makes_a_key(router: Router) -> None:
    (router.root / "etc/ddpd/key").unlink()
    router.write("etc/config/ddpd", MAIN + POOL)
    router.init("start")
    secret = ddpd.public_key(router.read("etc/ddpd/key").strip())
    assert ddpd.show_key(ddpd.keypair(secret).public) == router.read("etc/ddpd/key.pub").strip()
    assert f"key     = {router.read('etc/ddpd/key.pub').strip()}" in router.init("introduce").stdout
    router.init("start")
    assert router.read("etc/ddpd/key").strip() == ddpd.show_key(secret)


def test_every_option_becomes_its_line(router: Router) -> None:
    """One to one: what ddpd reads from it is what was written, each key of each section."""
    for name in ("etc/ddpd/pins.csv", "etc/p"):
        router.write(name, "id,address,prefix\n")
    router.write("etc/ddpd/site.py", "")
    (router.root / "etc/ddpd/grantees.d").mkdir()
    router.write("etc/uci", "network.guest.device=br-guest\n")
    text = "".join(uci(kind, f"{kind}0", **(OURS[kind] | {"config": ""} if kind == "ddpd" else OURS[kind]), **values)
                   for kind, values in FULL.items())
    text += uci("pool", "other", name="Other.pool", prefix="ula", give=["/64"])
    router.write("etc/ddpd/other", router.read("etc/ddpd/key"), 0o600)
    router.write("etc/config/ddpd", text)
    assert router.init("start").returncode == 0, router.log()
    sections = {section.kind: section for section in ddpd.read_sections(
        router.read("var/run/ddpd/ddpd.conf"), "f") if section.name != "Other.pool"}
    heads = {"pool": "home", "grantee": "alice.lap-top", "grantor": "exit1", "ndp": "eth0", "wireguard": "wg0",
             "tunnel": "wg1", "ddpd": ""}
    assert {kind: section.name for kind, section in sections.items()} == heads
    for kind, values in FULL.items():
        wanted = {key: (value if isinstance(value, str) else "\n".join(value)) for key, value in values.items()}
        wanted = {key: value.replace("@lan", "br-lan").replace("@wan", "eth0") for key, value in wanted.items()}
        assert {key: value for key, (value, _) in sections[kind].values.items()} == wanted, kind


@pytest.mark.parametrize(("options", "line"), [
    ({"ask": "::/56 on @lan"}, "ask = ::/56 on br-lan"),
    ({"ask": ["::/56 on @lan @guest=7", "0.0.0.0/32"]}, "ask = ::/56 on br-lan br-guest=7\n    0.0.0.0/32"),
    ({"ask": "::/56 on @nobody"}, "ask = ::/56 on nobody"),
    ({"default": "dev @wan"}, "default = dev eth0"),
    ({"install": "0"}, "install = 0"),
])
def test_networks_are_devices(router: Router, options: dict[str, Any], line: str) -> None:
    router.write("etc/uci", "network.guest.device=br-guest\n")
    router.write("etc/config/ddpd", MAIN + uci("grantor", "hub", **{
        "key": public_of("hub"), "address": "fd00::1", "ask": "::/56", **options}))
    assert router.init("start").returncode == 0, router.log()
    assert f"\n{line}\n" in router.read("var/run/ddpd/ddpd.conf").replace("   ", "    ").replace("     ", "    ")
    networks = sorted(set(re.findall(r"@(\w+)", str(options))))
    assert [call[1] for call in router.calls if call[0] == "procd_add_reload_interface_trigger"] == networks


BAD_OPTIONS = [
    (uci("pool", "home", prefix="2001:db8:42::/48"), "[pool home] give: missing"),
    (uci("pool", "home", prefix="ula", gives="/56"), "[pool home] gives: no such key (did you mean 'give'?)"),
    (uci("pol", "home", prefix="2001:db8:42::/48"), "[pol home]: no such section (did you mean 'pool'?)"),
    (uci("grantee", "a", key="abc", pools="home") + POOL, "[grantee a] key: "),
    (uci("pool", "home", prefix="2001:db8:42::/48\nkey = x", give="/56"), "[pool home] prefix: no line break"),
    (uci("pool", "home", prefix="ula ; x", give="/56"), "[pool home] prefix: no line break, ';' or '#'"),
    (uci("pool", "home", name="a]\n[x", prefix="ula", give="/56"), "[pool a]] no name"),
    (uci("ndp", "", proxy="leased").replace(" ''", "") + POOL, "[ndp cfg1] device: missing"),
    (uci("grantee", "bob-laptop", key=public_of("hub"), pools="home") + POOL, "Parse error"),
    (POOL.replace("/56'", "/56"), "Parse error"),
]


def test_a_bad_option_is_said_and_nothing_starts(router: Router) -> None:
    for text, says in BAD_OPTIONS:
        before = len(router.log())
        router.write("etc/config/ddpd", MAIN + text)
        assert router.init("start").returncode != 0 and router.instance is None
        said = router.log()[before:]
        assert says in said and "Traceback" not in said
        assert not list((router.root / "var/run").glob("ddpd/*.new"))
        assert ("procd_add_reload_trigger", "ddpd") in router.calls             # mended, it starts


def test_a_disabled_section_is_left_out(router: Router) -> None:
    """Whatever is wrong with it, and what it needs; a main section that is disabled is not enabled."""
    off = uci("grantor", "old", disabled="1", key="none", address="x;y", ask="::/56 on @guest")
    router.write("etc/config/ddpd", MAIN + off + POOL)
    assert router.init("start").returncode == 0, router.log()
    conf = router.read("var/run/ddpd/ddpd.conf")
    assert "[pool home]" in conf and "old" not in conf
    assert not [call for call in router.calls if call[0] == "procd_add_reload_interface_trigger"]
    router.write("etc/config/ddpd", uci("ddpd", "main", enabled="1", disabled="1") + off.replace("disabled", "rate"))
    assert router.init("reload").returncode == 0 and router.instance is None
    assert router.init("status").stdout == "inactive\n"


def test_what_is_neither_on_nor_off_changes_nothing(router: Router) -> None:
    router.write("etc/config/ddpd", MAIN + POOL)
    router.init("start")
    router.write("etc/config/ddpd", uci("ddpd", "main", enabled="on, please") + POOL)
    assert router.init("reload").returncode != 0 and "enabled is neither 0 nor 1" in router.log()
    assert router.task is not None and router.task.poll() is None


def test_a_full_tmp_installs_nothing(router: Router) -> None:
    router.write("etc/config/ddpd", MAIN + POOL)
    router.init("start")
    before = router.read("var/run/ddpd/ddpd.conf")
    many = "".join(uci("grantee", f"g{n}", key=public_of(f"g{n}"), pools="home") for n in range(60))
    router.write("etc/config/ddpd", MAIN + POOL + many)
    done = router.run("sh", "-c", "ulimit -f 2; exec /etc/init.d/ddpd reload")
    assert done.returncode != 0 and "cannot write /var/run/ddpd/ddpd.conf" in router.log()
    assert router.read("var/run/ddpd/ddpd.conf") == before and not list(router.root.glob("var/run/ddpd/*.new"))


def test_first_starts_at_once_make_one_key(router: Router) -> None:
    (router.root / "etc/ddpd/key").unlink()
    router.sh("ddpd --version")
    tasks = [router.start(["sh", "-c", ". /lib/functions.sh; . /lib/functions/ddpd.sh; ddpd_key /etc/ddpd/key"])
             for _ in range(6)]
    assert [task.wait(30) for task in tasks] == [0] * 6
    secret = ddpd.public_key(router.read("etc/ddpd/key").strip())
    assert router.read("etc/ddpd/key.pub").strip() == ddpd.show_key(ddpd.keypair(secret).public)
    assert (router.root / "etc/ddpd/key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (router.root / "etc/ddpd").iterdir()) == ["key", "key.pub"]


def test_another_key_has_another_public_key(router: Router) -> None:
    """Also if it is older than the one before."""
    router.write("etc/config/ddpd", MAIN + POOL)
    router.init("start")
    router.write_key("other")
    os.utime(router.root / "etc/ddpd/key", (0, 0))
    assert public_of("other") in router.init("introduce").stdout
    assert router.read("etc/ddpd/key.pub").strip() == public_of("other")


def test_who_has_not_done_yet_can_introduce_himself(router: Router) -> None:
    router.write("etc/config/ddpd", uci("ddpd", "main", enabled="0") + POOL + uci("grantee", "x", key="?"))
    said = router.init("introduce").stdout
    assert f"key   = {public_of('home')}" in said


def test_networks_that_are_down(router: Router) -> None:
    router.write("etc/uci", "network.wan6.device=@wan2\nnetwork.wan2.device=eth9\nnetwork.dsl.proto=pppoe\n"
                 "network.dsl.device=eth1\nnetwork.wg0.private_key=secret\n")
    router.write("etc/config/ddpd", MAIN + uci("grantor", "hub", key=public_of("hub"), address="fd00::1", ask=[
        "::/56 on @wan6, @dsl\t@lan=7"]))
    assert router.init("start").returncode == 0, router.log()
    assert "ask = ::/56 on eth9 pppoe-dsl br-lan=7\n" in router.read("var/run/ddpd/ddpd.conf")
    triggers = [call[1] for call in router.calls if call[0] == "procd_add_reload_interface_trigger"]
    assert triggers == sorted(["wan6", "dsl", "lan"])
    router.write("etc/config/ddpd", router.read("etc/config/ddpd").replace("@wan6", "@wg0.private_key"))
    assert router.init("reload").returncode != 0 and "secret" not in router.log()
    assert "'@wg0.private_key' is not an interface name" in router.log()


def test_a_reload_keeps_pid_and_lease(router: Router, lab: Lab) -> None:
    pool = uci("pool", "home", prefix="2001:db8:42::/48", give="/56")
    router.write("etc/config/ddpd", MAIN + pool + uci("grantee", "hub", key=public_of("hub"), pools="home", limit="2"))
    assert router.init("start").returncode == 0
    ask = "[grantor home]\nkey = @home\naddress = fd00::2\nask = {}\ninstall = no\n"
    with lab["hub"].ddpd(ask.format("::/56")) as leaf:
        eventually(lambda: leaf.status()["held"], 10)
        held, task = leaf.status()["held"][0]["prefix"], router.task
        assert task is not None
        router.write("etc/config/ddpd", router.read("etc/config/ddpd").replace("/56'", "/56-/60'"))
        assert router.init("reload").returncode == 0
        eventually(lambda: router.log().count("reloaded") == 1)
        leaf.write(ask.format("::/56\n ::/60").replace("@home", public_of("home")))
        leaf.signal(signal.SIGHUP)
        eventually(lambda: len(leaf.status()["held"]) == 2)
        assert held in [row["prefix"] for row in leaf.status()["held"]]
        router.init("reload")                         # nothing has changed: procd says nothing,
        eventually(lambda: router.log().count("reloaded") == 2)                 # but a file that is named may have
        router.write("etc/config/ddpd", router.read("etc/config/ddpd").replace("/60'", "/60x'"))
        assert router.init("reload").returncode != 0 and "give" in router.log()
        time.sleep(0.5)
        assert router.log().count("reloaded") == 2 and router.task is task and task.poll() is None
        assert held in router.init("status").stdout and held in router.init("show", "hub").stdout
        router.write("etc/config/ddpd", router.read("etc/config/ddpd").replace("enabled 'true'", "enabled '0'"))
        router.init("reload")
        assert router.instance is None and task.poll() == 0
        assert '"granted"' in router.read("etc/ddpd/leases.json")


def test_a_changed_listen_reaches_ddpd(router: Router) -> None:
    """By one signal: no restart, which would forget sessions, and no second signal."""
    router.write("etc/config/ddpd", uci("ddpd", "main", enabled="1", listen="[::]:3373") + POOL)
    assert router.init("start").returncode == 0
    eventually(lambda: "started" in router.log(), 10)
    task = router.task
    router.write("etc/config/ddpd", uci("ddpd", "main", enabled="1", listen="[::]:4444") + POOL)
    assert router.init("reload").returncode == 0 and "listen = [::]:4444\n" in router.read("var/run/ddpd/ddpd.conf")
    assert ("procd_send_signal", "ddpd", "*", "HUP") not in router.calls        # procd has sent one
    eventually(lambda: "reloaded" in router.log(), 10)
    assert router.log().count("reloaded") == 1 and router.task is task and task is not None and task.poll() is None


def test_a_file_by_hand(router: Router) -> None:
    router.write("etc/my.conf", "[ddpd]\ncontrol = /var/run/c.sock\n[pool p]\nprefix = 10.0.0.0/8\ngive = /24\n", 0o600)
    router.write("etc/config/ddpd", uci("ddpd", "main", enabled="1", config="/etc/my.conf") + POOL)
    assert router.init("start").returncode == 0, router.log()
    assert os.readlink(router.root / "var/run/ddpd/ddpd.conf") == "/etc/my.conf"
    eventually(lambda: [row["name"] for row in router.status().get("pools", [])] == ["p"], 10)
    task = router.task
    router.write("etc/my.conf", router.read("etc/my.conf").replace("pool p", "pool q"), 0o600)
    assert router.init("reload").returncode == 0 and router.task is task
    eventually(lambda: [row["name"] for row in router.status().get("pools", [])] == ["q"], 10)
    router.write("etc/my.conf", "nonsense\n")
    assert router.init("reload").returncode != 0 and "'nonsense' stands before any section" in router.log()
    router.write("etc/config/ddpd", uci("ddpd", "main", enabled="1", config="/etc/none.conf"))
    assert router.init("reload").returncode != 0 and "/etc/none.conf: there is no such file" in router.log()
    assert router.task is task and task is not None and task.poll() is None


# ==== the protocol of netifd ==========================================================


def wan6d(**more: object) -> dict[str, object]:
    """None: there is no such option."""
    said = {"proto": "ddpd", "grantor": ["fd00::1"], "key": public_of("hub"), "ask": ["::/56"], **more}
    return {key: value for key, value in said.items() if value is not None}


def test_what_netifd_is_told_of_the_protocol(router: Router) -> None:
    calls = Netifd(router, "", {}, "").handler("dump")
    declared = {call[1].partition(":")[0]: call[0] for call in calls if call[0].startswith("proto_config_add")}
    assert declared == {
        **dict.fromkeys(("grantor", "ask", "accept"), "proto_config_add_array"),
        **dict.fromkeys(("key", "gateway", "hostname", "keepalive", "keyfile"), "proto_config_add_string"),
        "mtu": "proto_config_add_int", "norelease": "proto_config_add_boolean"}
    assert ("dump", "ddpd", "renew-handler=1", "no-device=0", "lasterror=1") in calls


BASE = """[ddpd]
key = /etc/ddpd/key
leases = /etc/ddpd/if-wan6d.json
control = /var/run/ddpd/if-wan6d.sock
status = /var/run/ddpd/if-wan6d.json
mark = 222
[grantor wan6d]
key = {key}
address = fd00::1
ask = ::/56
install = no
hook = /lib/netifd/ddpd.script
release = yes
"""


OPTIONS: list[tuple[dict[str, object], str, str]] = [
    ({}, "", ""),
    ({"ask": []}, "", ""),
    ({"ask": None}, "", ""),
    ({"grantor": ["a.example:4000", "fd00::1"]}, "address = fd00::1", "address = a.example:4000\n    fd00::1"),
    ({"ask": ["3: ::/60 on @lan", "::/64"]}, "ask = ::/56", "ask = 3: ::/60 on br-lan\n    ::/64"),
    ({"ask": ["0.0.0.0/28", "::/80", "::/128"]}, "ask = ::/56",
     "ask = 0.0.0.0/28 on eth0\n    ::/80 on eth0\n    ::/128 on eth0"),
    ({"ask": ["3:", "::/60", "0.0.0.0/28", "on", "@lan"]}, "ask = ::/56",                     # of an `option ask`
     "ask = 3: ::/60\n    0.0.0.0/28 on br-lan"),
    ({"ask": [f"{slot}: ::/60" for slot in range(5)]}, "ask = ::/56",
     "ask = " + "\n    ".join(f"{slot}: ::/60" for slot in range(5))),
    ({"norelease": True}, "release = yes\n", ""),
    ({"norelease": False}, "", ""),
    ({"hostname": "box"}, "release = yes\n", "release = yes\nhostname = box\n"),
    ({"keepalive": "25s"}, "release = yes\n", "release = yes\nkeepalive = 25s\n"),
    ({"accept": ["2000::/3", "10.0.0.0/8"]}, "release = yes\n", "release = yes\naccept = 2000::/3\n    10.0.0.0/8\n"),
    ({"keyfile": "/etc/ddpd/second"}, "key = /etc/ddpd/key", "key = /etc/ddpd/second"),
]


def test_options_of_the_protocol(router: Router) -> None:
    for more, old, new in OPTIONS:
        print(f"[+] {more}")
        calls = Netifd(router, "wan6d", wan6d(**more), "eth0").handler("setup")
        assert [call for call in calls if call[0] == "proto_notify_error"] == []
        conf = re.sub(r"\n +", "\n    ", router.read("var/run/ddpd/if-wan6d.conf"))
        conf = conf.removesuffix("# end\n")
        assert conf == BASE.format(key=public_of("hub")).replace(old, new, 1)
        assert calls[-1] == ("proto_run_command", "wan6d", "/usr/sbin/ddpd", "-c", "/var/run/ddpd/if-wan6d.conf")
        assert (router.root / "var/run/ddpd/if-wan6d.conf").stat().st_mode & 0o777 == 0o600


WRONG: list[tuple[dict[str, object], str]] = [
    ({"grantor": []}, "MISSING_GRANTOR"), ({"key": ""}, "MISSING_KEY"), ({"key": "abc"}, "INVALID_CONFIG"),
    ({"ask": ["::/56 in lan"]}, "INVALID_CONFIG"), ({"grantor": ["a_b"]}, "INVALID_CONFIG"),
    ({"hostname": "x;y"}, "INVALID_CONFIG"), ({"hostname": "x\n[pool p]"}, "INVALID_CONFIG"),
    ({"keyfile": "/proc/none/key"}, "INVALID_CONFIG"), ({"accept": ["all"]}, "INVALID_CONFIG"),
    ({"keepalive": "often"}, "INVALID_CONFIG"),
]


def test_what_is_wrong_rests_until_it_is_mended(router: Router) -> None:
    """`network reload` is all that the mending needs; until then no process comes and goes."""
    mended: set[str] = set()
    for more, code in WRONG:
        print(f"[+] {more}")
        netifd = Netifd(router, "wan6d", wan6d(**more), "eth0")
        netifd.setup()
        assert netifd.rests() and netifd.shown[0][0] == code
        if code not in mended:
            good = {"keyfile": "", "hostname": "", "accept": [], "keepalive": "", **wan6d()}
            netifd.reload(**good)
            assert netifd.runs()
        mended.add(code)
        netifd.teardown()


def test_without_python_it_says_so_and_waits_for_it(router: Router) -> None:
    python = router.read("usr/bin/python3")
    router.write("usr/bin/python3", "#!/bin/sh\nexit 1\n", 0o755)
    netifd = Netifd(router, "wan6d", wan6d(), "eth0")
    netifd.setup()
    assert netifd.errors() == [("NO_PYTHON",)] and netifd.rests()
    router.write("usr/bin/python3", python, 0o755)
    eventually(netifd.runs, 20)
    assert netifd.errors() == [("NO_PYTHON",)]
    netifd.teardown()


def test_a_key_that_comes_late_is_waited_for(router: Router) -> None:
    """Its disk is not there yet: nobody changes the configuration, and the error is told once."""
    router.sh("ln -s /mnt/none/key /etc/ddpd/late")
    netifd = Netifd(router, "wan6d", wan6d(keyfile="/etc/ddpd/late"), "eth0")
    netifd.setup()
    assert netifd.rests() and netifd.errors() == [("INVALID_CONFIG", "no key in /etc/ddpd/late")]
    router.write_key("late", "mnt/none/key")
    eventually(netifd.runs, 20)
    assert len(netifd.errors()) == 1 and router.log().count("no key can be made") == 1
    netifd.teardown()


def told_of(netifd: Netifd, name: str) -> list[tuple[str, ...]]:
    """What the last update has of this kind."""
    netifd.hear()
    updates = netifd.updates()
    return [call[1:] for call in updates[-1] if call[0] == name] if updates else []


def test_a_life_under_netifd(router: Router, lab: Lab) -> None:
    """Setup, renew, renumber, refusal, teardown: what netifd is told, and what is on the wire."""
    lab["home"].bridge("br-guest")
    netifd = Netifd(router, "wan6d", wan6d(ask=["::/56", "::/128", "0.0.0.0/28 on br-guest", "0.0.0.0/32"]), "eth0")
    config = HUB.format(lifetime="1h").replace("limit = 4", "limit = 8").replace(
        "give   = /56-/64", "give   = /56-/128")
    with lab["hub"].ddpd(config) as hub:
        netifd.setup()
        assert netifd.task is not None
        eventually(lambda: len(hub.status()["granted"]) == 4, 10)
        eventually((router.root / "var/run/ddpd/if-wan6d.up").exists, 10)      # the last that is written
        netifd.hear()
        leases = {row["slot"]: row["prefix"] for row in hub.status()["granted"]}
        six, one, four, host = (leases[slot] for slot in range(4))
        ((prefix,),) = told_of(netifd, "proto_add_ipv6_prefix")
        named, preferred, valid = prefix.split(",")
        assert named == six and 1700 < int(preferred) <= 1800 and 3500 < int(valid) <= 3600
        ((address, length, _, _, offlink),) = told_of(netifd, "proto_add_ipv6_address")
        assert (f"{address}/{length}", offlink) == (one, "1")
        assert told_of(netifd, "proto_add_ipv4_address") == [(host.partition("/")[0], "32")]
        assert told_of(netifd, "proto_add_dns_server") == [("2001:db8::53",)]
        assert told_of(netifd, "proto_add_dns_search") == [("example.net",)]
        assert sorted(route[2::3] for route in told_of(netifd, "proto_add_ipv6_route")) == sorted(
            [("fd00::1", six), ("fd00::1", one)])                               # the grantor itself is the next hop
        dynamic = [call for call in netifd.calls if call[0] == "ubus"]
        own = f"{ddpd.Prefix(4, ddpd.parse_prefix(four).first + 1, 32).host}/28"
        assert dynamic[-1] == ("ubus", "call", "network", "add_dynamic", "name=wan6d_br_guest proto=static "
                               f"device=br-guest ipaddr=[ {own} ] ")
        assert lab["home"].routes() == [] and "2001:db8" not in lab["home"].look("addr show")   # netifd does all that
        assert lab["home"].sh("cat /proc/sys/net/ipv6/conf/eth0/mtu") == "1400\n"

        asked = len(netifd.updates())
        netifd.handler("renew")
        eventually(lambda: (netifd.hear(), len(netifd.updates()) > asked)[1], 5)

        hub.write(hub.config.read_text().replace("2001:db8:42::/48", "2001:db8:43::/48"))
        hub.signal(signal.SIGHUP)                                               # renumbered, as RFC 9096 wants it
        eventually(lambda: len(told_of(netifd, "proto_add_ipv6_prefix")) == 2, 8)
        shown = sorted(row[0].split(",") for row in told_of(netifd, "proto_add_ipv6_prefix"))
        assert shown[0][:2] == [six, "0"] and int(shown[0][2]) > 3000
        assert shown[1][0].startswith("2001:db8:43:") and int(shown[1][1]) > 1700

        wire, began = lab["hub"].record("eth0"), time.monotonic()
        assert netifd.teardown() == 0 and time.monotonic() - began < 5
        assert wire.ddpd() and hub.status()["granted"] == []
        netifd.hear()
        assert ("ubus", "call", "network.interface.wan6d_br_guest", "remove") in netifd.calls


@pytest.mark.parametrize(("more", "next_hop"), [({}, "fe80::99"), ({"gateway": "fe80::77"}, "fe80::77")])
def test_the_default_route_of_what_was_given(router: Router, lab: Lab, more: dict[str, str], next_hop: str) -> None:
    """By source, and by the next hop by which the grantor is asked, or the one that is configured."""
    lab["home"].ip("-6 route add fd07::/64 via fe80::99 dev eth0")
    lab["hub"].ip("-6 addr add fe80::99/64 dev eth0")
    lab["hub"].ip("-6 addr add fd07::1/64 dev lo")
    netifd = Netifd(router, "wan6d", wan6d(grantor=["fd07::1"], **more), "eth0")
    with hub(lab) as grantor:
        netifd.setup()
        eventually(lambda: told_of(netifd, "proto_add_ipv6_route"), 10)
        six = grantor.status()["granted"][0]["prefix"]
        ((target, length, via, metric, valid, source),) = told_of(netifd, "proto_add_ipv6_route")
        assert (target, length, via, metric, source) == ("::", "0", next_hop, "", six) and 3000 < int(valid) <= 3600
        netifd.teardown()


def test_many_subnets_of_one_interface_are_one_network(router: Router, lab: Lab) -> None:
    lab["home"].bridge("br-guest")
    ask = ["0.0.0.0/28 on br-guest", "0.0.0.0/27 on br-guest", "::/80 on br-guest"]
    netifd = Netifd(router, "wan6d", wan6d(ask=ask), "eth0")
    with lab["hub"].ddpd(HUB.format(lifetime="1h").replace("/56-/64", "/56-/80")) as grantor:
        netifd.setup()
        eventually((router.root / "var/run/ddpd/if-wan6d.up").exists, 10)
        eventually(lambda: len(grantor.status()["granted"]) == 3)
        netifd.hear()
        (made,) = {call[4] for call in netifd.calls if call[:4] == ("ubus", "call", "network", "add_dynamic")}
        own = {row["slot"]: f"{ddpd.Prefix(4, p.first + 1, 32).host}/{p.length}" for row in grantor.status()["granted"]
               if (p := ddpd.parse_prefix(row["prefix"])).version == 4}
        six = ddpd.parse_prefix(next(row["prefix"] for row in grantor.status()["granted"] if ":" in row["prefix"]))
        assert made == (f"name=wan6d_br_guest proto=static device=br-guest ipaddr=[ {own[0]} {own[1]} ] "
                        f"ip6addr=[ {ddpd.Prefix(6, six.first + 1, 128).host}/80 ] ")
        assert netifd.teardown() == 0
        netifd.hear()
        assert {call[2] for call in netifd.calls if call[0] == "ubus" and call[3] == "remove"} == {
            "network.interface.wan6d_br_guest"}


@pytest.mark.parametrize(("more", "mtu"), [({}, "1400"), ({"mtu": 1300}, "1300")])
def test_the_device_has_its_mtu_back(router: Router, lab: Lab, more: dict[str, object], mtu: str) -> None:
    netifd, file = Netifd(router, "wan6d", wan6d(**more), "eth0"), "cat /proc/sys/net/ipv6/conf/eth0/mtu"
    before = lab["home"].sh(file)
    with hub(lab):
        netifd.setup()
        eventually(lambda: lab["home"].sh(file).strip() == mtu, 10)
        assert netifd.teardown() == 0 and lab["home"].sh(file) == before


def test_a_twin_is_told_apart(router: Router, lab: Lab) -> None:
    """Two interfaces with one key at one grantor would take each other's slots.  The second waits, and starts no Python
    while it does."""
    one, two = (Netifd(router, name, wan6d(), "eth0") for name in ("wan6d", "wan6e"))
    with hub(lab):
        one.setup()
        eventually(lambda: told_of(one, "proto_add_ipv6_prefix"), 10)
        python = router.read("usr/bin/python3")
        router.write("usr/bin/python3", python.replace("exec", "echo started >> /started; exec"), 0o755)
        two.setup()
        assert two.rests()
        (router.root / "started").unlink(missing_ok=True)                       # once, to see that it starts
        time.sleep(6)
        two.hear()
        assert two.errors() == [("CLONE", "if-wan6d asks this grantor with the same key: this one wants a keyfile")]
        assert not (router.root / "started").exists()
        assert one.teardown() == 0                                              # that passes by itself
        eventually(two.runs, 25)
        eventually(lambda: told_of(two, "proto_add_ipv6_prefix"), 10)
        assert two.teardown() == 0


def test_a_dead_twin_is_none(router: Router, lab: Lab) -> None:
    """Its socket may be there still."""
    one, two = (Netifd(router, name, wan6d(norelease=True), "eth0") for name in ("wan6d", "wan6e"))
    with hub(lab):
        one.setup()
        eventually(lambda: told_of(one, "proto_add_ipv6_prefix"), 10)
        assert one.task is not None
        one.task.kill()
        one.task.wait()
        assert (router.root / "var/run/ddpd/if-wan6d.sock").exists()
        two.setup()
        assert two.errors() == []
        eventually(lambda: told_of(two, "proto_add_ipv6_prefix"), 10)
        assert two.teardown() == 0


def test_two_networks_on_one_device_and_its_mtu(router: Router, lab: Lab) -> None:
    """The smallest that is wanted, and its own when the last has gone, in whatever order."""
    router.sh("mkdir -p /var/run/ddpd")
    own = lab["home"].sh("cat /proc/sys/net/ipv6/conf/eth0/mtu").strip()

    def hook(event: str, name: str, mtu: str = "") -> str:
        env = {"DEVICE": "eth0", "INTERFACE": name, "MTU": mtu, "DDPD_PREFIXES": "2001:db8::/56,10,20"}
        arguments = [event, name] if event == "down" else [event]
        assert router.run("/lib/netifd/ddpd.script", *arguments, env=env).returncode == 0
        return lab["home"].sh("cat /proc/sys/net/ipv6/conf/eth0/mtu").strip()
    assert hook("bound", "a", "1400") == "1400" and hook("bound", "b", "1300") == "1300"
    assert hook("bound", "a", "1450") == "1300" and hook("down", "a") == "1300" and hook("down", "b") == own
    assert hook("bound", "b", "1280") == own                                    # it comes too late: it is down


def test_a_device_and_its_vlan_have_an_mtu_each(router: Router, lab: Lab) -> None:
    """Also where the one's name begins like the other's."""
    lab["home"].bridge("eth0.10")
    router.sh("mkdir -p /var/run/ddpd")

    def hook(event: str, name: str, device: str, mtu: str) -> list[str]:
        env = {"DEVICE": device, "INTERFACE": name, "MTU": mtu, "DDPD_PREFIXES": "2001:db8::/56,10,20"}
        arguments = [event, name] if event == "down" else [event]
        assert router.run("/lib/netifd/ddpd.script", *arguments, env=env).returncode == 0
        return [lab["home"].sh(f"cat /proc/sys/net/ipv6/conf/{dev}/mtu").strip() for dev in ("eth0", "eth0.10")]
    own, vlan = hook("down", "none", "", "")
    assert hook("bound", "v", "eth0.10", "1300") == [own, "1300"]
    assert hook("bound", "a", "eth0", "1400") == ["1400", "1300"]
    assert hook("down", "a", "", "") == [own, "1300"] and hook("down", "v", "", "") == [own, vlan]
    assert not list(router.root.glob("var/run/ddpd/mtu/*"))


def test_a_hook_that_comes_late_leaves_nothing(router: Router, lab: Lab) -> None:
    """Torn down while what is bound is being told."""
    lab["home"].bridge("br-guest")
    router.write("bin/ubus", router.read("bin/ubus") + "sleep 0.7\n", 0o755)
    netifd = Netifd(router, "wan6d", wan6d(ask=["0.0.0.0/28 on br-guest", "0.0.0.0/28 on br-lan"]), "eth0")
    with hub(lab):
        netifd.setup()
        eventually(lambda: [call for call in (netifd.hear(), netifd.calls)[1] if call[0] == "ubus"], 10)
        netifd.teardown()
        time.sleep(1.5)
        netifd.hear()
    made = [call[4].split()[0][5:] for call in netifd.calls if call[:4] == ("ubus", "call", "network", "add_dynamic")]
    removed = [call[2].split(".")[-1] for call in netifd.calls if call[0] == "ubus" and call[3] == "remove"]
    assert set(made) == set(removed)
    last = [call[4].split()[0][5:] if call[3] == "add_dynamic" else "" for call in netifd.calls if call[0] == "ubus"]
    assert last[-1] == "" and not (router.root / "var/run/ddpd/if-wan6d.up").exists()


def test_a_full_flash_is_no_missing_key(router: Router) -> None:
    """After a boot /var/run is empty: what is there, and right, need not be written."""
    router.write("etc/config/ddpd", MAIN + POOL)
    assert router.init("start").returncode == 0
    router.stop()
    router.sh("rm -rf /var/run/ddpd")
    router.sh("echo other > /etc/ddpd/key.pub")
    done = router.run("sh", "-c", "ulimit -f 0; . /lib/functions.sh; . /lib/functions/ddpd.sh; ddpd_key /etc/ddpd/key")
    assert done.returncode == 0 and not list((router.root / "etc/ddpd").glob("key.pub.*"))


def test_a_start_with_what_is_wrong_stops_nothing(router: Router) -> None:
    router.write("etc/config/ddpd", MAIN + POOL)
    router.init("start")
    task = router.task
    router.write("etc/config/ddpd", MAIN + POOL.replace("/56", "/x"))
    assert router.init("start").returncode == 0 and router.task is task and task is not None and task.poll() is None


def hooked(netifd: Netifd, event: str, **variables: str) -> None:
    env = {"INTERFACE": "wan6d", "DEVICE": "eth0", "GRANTOR": "exit1", "KEY": "/etc/ddpd/key", "DDPD_SERVER": "fd00::1",
           "DDPD_ANSWERS": "3", "DDPD_STATE": "bound", **variables}
    assert netifd.router.run("/lib/netifd/ddpd.script", event, env=env).returncode == 0
    netifd.hear()


@pytest.fixture
def told(router: Router) -> Netifd:
    """An interface of which hooks tell."""
    router.sh("mkdir -p /var/run/ddpd")
    router.write("etc/ddpd/key.pub", "ours\n")
    return Netifd(router, "wan6d", wan6d(), "eth0")


HELD = "2001:db8::/56,10,20"


def test_an_error_is_told_once_and_the_next_takes_its_place(told: Netifd) -> None:
    for event, variables, wanted in [
            ("silent", {"DDPD_SERVER": ""}, ("NO_NAME",)), ("silent", {"DDPD_ANSWERS": "0"}, ("UNKNOWN_KEY", "ours")),
            ("silent", {"DDPD_ANSWERS": "0", "DDPD_UNSENT": "no route"}, ("NOT_ASKED", "no route")),
            ("silent", {"DDPD_SERVER": "10.0.0.1"}, ("NO_GRANTOR", "10.0.0.1")),
            ("lost", {"DDPD_REFUSED": "0,CLONE 1,CLONE"}, ("CLONE",)),
            ("lost", {"DDPD_REFUSED": "0,LENGTH"}, ("REFUSED", "0,LENGTH")),
            ("silent", {"DDPD_REFUSED": "0,LENGTH"}, ("NO_GRANTOR", "fd00::1"))]:
        before = len(told.errors())
        for _ in range(3):
            hooked(told, event, **variables)
        assert told.errors()[before:] == [wanted] and told.shown == [wanted]
    hooked(told, "lost")
    assert told.shown == [("NO_GRANTOR", "fd00::1")]                            # nothing better is known
    hooked(told, "bound", DDPD_PREFIXES=HELD)
    assert told.shown == []
    hooked(told, "lost", DDPD_STATE="seeking")
    hooked(told, "silent")
    assert told.shown == [("NO_GRANTOR", "fd00::1")]                            # again: netifd had forgotten it


def test_what_is_over_is_over_in_the_data_too(told: Netifd) -> None:
    """netifd keeps what it was told while the interface is up; and no error then, which it would keep too."""
    calm = {"state": "bound", "name": "exit1", "grantor": "fd00::1", "silent": "0", "refused": ""}
    hooked(told, "bound", DDPD_PREFIXES=HELD, DDPD_REFUSED="1,LENGTH")
    assert told.data == {**calm, "refused": "1,LENGTH"}
    hooked(told, "silent", DDPD_PREFIXES=HELD, DDPD_STATE="renewing")
    assert told.data == {**calm, "silent": "1", "state": "renewing"}
    assert ("proto_add_ipv6_prefix", HELD) in told.calls
    hooked(told, "renewed", DDPD_PREFIXES=HELD)
    assert told.data == calm and told.errors() == []


def test_what_is_over_takes_the_interface_down(router: Router, lab: Lab) -> None:
    netifd = Netifd(router, "wan6d", wan6d(norelease=True), "eth0")
    with lab["hub"].ddpd(HUB.format(lifetime="8s")) as grantor:
        netifd.setup()
        eventually(lambda: told_of(netifd, "proto_add_ipv6_prefix"), 10)
        grantor.kill()
        eventually(lambda: ("proto_init_update", "*", "0") in (netifd.hear(), netifd.calls)[1], 20)      # it is over
        assert [error[0] for error in netifd.errors()] in ([], ["NO_GRANTOR"])
        netifd.teardown()


def test_a_dead_grantor_is_waited_for(router: Router, lab: Lab) -> None:
    """Without a grantor: the task lives on, with the same pid; the error is shown; then it is answered."""
    netifd = Netifd(router, "wan6d", wan6d(), "eth0")
    netifd.setup()
    assert netifd.task is not None
    eventually(lambda: netifd.hear() and netifd.errors(), 15)
    until = time.monotonic() + 15
    while time.monotonic() < until:
        assert netifd.task.poll() is None
        time.sleep(0.5)
    netifd.hear()
    assert netifd.errors() == [("UNKNOWN_KEY", public_of("home"))] == netifd.shown
    with hub(lab):
        netifd.handler("renew")
        eventually(lambda: told_of(netifd, "proto_add_ipv6_prefix"), 10)
    began = time.monotonic()
    assert netifd.teardown() == 0 and time.monotonic() - began < 5              # nobody to give it back to


def test_a_name_that_is_not_found(router: Router) -> None:
    netifd = Netifd(router, "wan6d", wan6d(grantor=["nobody.invalid"]), "eth0")
    netifd.setup()
    eventually(lambda: netifd.hear() and netifd.errors(), 15)
    assert netifd.errors() == [("NO_NAME",)] and netifd.teardown() == 0


def test_a_refusal_is_an_error_where_nothing_is_held(router: Router, lab: Lab) -> None:
    netifd = Netifd(router, "wan6d", wan6d(ask=["::/48"]), "eth0")
    with hub(lab):
        netifd.setup()
        eventually(lambda: netifd.hear() and netifd.errors(), 15)
        netifd.handler("renew")
        time.sleep(1)
        netifd.hear()
        assert netifd.errors() == [("REFUSED", "0,LENGTH")]                     # once, until it is another
        netifd.calls = []
        netifd.reload(ask=["::/56", "::/48"])
        eventually(lambda: told_of(netifd, "proto_add_ipv6_prefix"), 10)
        eventually(lambda: (netifd.hear(), netifd.data.get("refused", "").endswith(",LENGTH"))[1], 10)
        assert netifd.data["state"] == "bound" and netifd.shown == []
        assert netifd.teardown() == 0


def test_five_slots(router: Router, lab: Lab) -> None:
    """All is asked for, told, kept, and told again when the interface comes back."""
    netifd = Netifd(router, "wan6d", wan6d(ask=["::/60"] * 5, norelease=True), "eth0")
    with lab["hub"].ddpd(HUB.format(lifetime="1h").replace("limit = 4", "limit = 5")) as grantor:
        netifd.setup()
        eventually(lambda: len(told_of(netifd, "proto_add_ipv6_prefix")) == 5, 15)
        before = sorted(row["prefix"] for row in grantor.status()["granted"])
        netifd.calls = []
        netifd.reload()
        eventually(lambda: len(told_of(netifd, "proto_add_ipv6_prefix")) == 5, 15)
        assert sorted(row[0].split(",")[0] for row in told_of(netifd, "proto_add_ipv6_prefix")) == before
        assert netifd.teardown() == 0


def test_a_restart_tells_at_once_what_is_held(router: Router, lab: Lab) -> None:
    """A crash: netifd tears down, and sets up again; what is on file is told before anybody has answered."""
    netifd = Netifd(router, "wan6d", wan6d(norelease=True), "eth0")
    with hub(lab) as grantor:
        netifd.setup()
        eventually(lambda: told_of(netifd, "proto_add_ipv6_prefix"), 10)
        assert netifd.task is not None
        netifd.task.kill()
        netifd.task.wait()
        grantor.kill()
    began = time.monotonic()
    netifd.teardown({"ERROR": "137"})
    assert time.monotonic() - began < 5                                         # or netifd kills it
    netifd.calls = []
    netifd.setup()
    assert time.monotonic() - began < 8                                         # what has failed once starts at once
    eventually(lambda: told_of(netifd, "proto_add_ipv6_prefix"), 15)
    assert netifd.teardown() == 0


def test_a_killed_netifd_leaves_no_daemon_in_the_way(router: Router, lab: Lab) -> None:
    """The new one knows nothing of the old one's daemon, which has the lease file; another network's goes on."""
    old, other = (Netifd(router, name, wan6d(keyfile=f"/etc/ddpd/{name}"), "eth0") for name in ("wan6d", "wan6e"))
    router.write_key("home", "etc/ddpd/wan6d")
    with hub(lab) as grantor:
        other.setup()
        old.setup()
        eventually(lambda: told_of(old, "proto_add_ipv6_prefix"), 10)
        held = grantor.status()["granted"]
        new = Netifd(router, "wan6d", old.config, "eth0")
        new.setup()
        eventually(lambda: told_of(new, "proto_add_ipv6_prefix"), 10)
        assert old.task is not None and old.task.wait(1) == -signal.SIGKILL
        assert other.task is not None and other.task.poll() is None
        assert [row["prefix"] for row in grantor.status()["granted"]] == [row["prefix"] for row in held]
        assert new.runs() and new.teardown() == 0
        other.teardown()


def test_what_ends_again_and_again_is_started_less_and_less(router: Router) -> None:
    router.sh("mkdir -p /var/run/ddpd")
    waits, file = [], "var/run/ddpd/if-wan6d.failed"
    source = ". /lib/functions.sh; . /lib/netifd/netifd-proto.sh; add_protocol() { :; }; INCLUDE_ONLY=1; " \
             ". /lib/netifd/proto/ddpd.sh; sleep() { echo slept $1; }; "
    netifd = Netifd(router, "wan6d", wan6d(), "eth0")
    for _ in range(7):
        waits.append(router.sh(source + "ddpd_back_off wan6d"))
        netifd.teardown({"ERROR": "1"})
    assert waits == ["", "", *(f"slept {seconds}\n" for seconds in (4, 8, 16, 32, 60))], "the first time at once"
    router.write("var/run/ddpd/if-wan6d.started", "-100\n")                     # it had run for minutes
    netifd.teardown({"ERROR": "1"})
    assert router.read(file) == "0\n"
    netifd.teardown()                                                           # `ifdown`
    assert not (router.root / file).exists()


def left_of(router: Router, name: str) -> list[str]:
    return sorted(str(path.relative_to(router.root)) for folder in ("etc/ddpd", "var/run/ddpd")
                  for path in (router.root / folder).rglob("*") if name in path.name)


NETWORKS = "network.loopback=interface\nnetwork.lan=interface\nnetwork.lan.proto=static\n"


def test_a_deleted_network_leaves_its_key_and_nothing_else(router: Router, lab: Lab) -> None:
    """Also where its leases are to be kept: nobody would ask for them.  Others have what they had."""
    router.write("etc/uci", NETWORKS + "network.wan6d=interface\n")
    netifd = Netifd(router, "wan6d", wan6d(keyfile="/etc/ddpd/key-wan6d", norelease=True), "eth0")
    router.write_key("home", "etc/ddpd/key-wan6d")
    router.write("etc/ddpd/if-lan.json", "of a network that there is\n")
    keys = ["etc/ddpd/key-wan6d", "etc/ddpd/key-wan6d.pub"]
    with hub(lab):
        netifd.setup()
        eventually(lambda: told_of(netifd, "proto_add_ipv6_prefix"), 10)
        assert netifd.teardown() == 0
        assert "etc/ddpd/if-wan6d.json" in left_of(router, "wan6d")             # it is down, and may come up again
        netifd.calls = []
        netifd.setup()
        eventually(lambda: told_of(netifd, "proto_add_ipv6_prefix"), 10)
        router.write("etc/uci", NETWORKS)
        assert netifd.teardown() == 0
    time.sleep(0.5)                                                             # a hook may come late
    assert [name for name in left_of(router, "wan6d") if name.startswith("etc/")] == keys
    assert [name for name in left_of(router, "if-wan6d") if name.startswith("var/")] == ["var/run/ddpd/if-wan6d.gone"]
    assert not list(router.root.glob("var/run/ddpd/mtu/*"))
    assert (router.root / "etc/ddpd/if-lan.json").exists()


@pytest.mark.parametrize(("kept", "uci", "more"), [
    (False, NETWORKS, {}),
    (True, NETWORKS + "network.old=interface\n", {}),
    (True, "", {}),                                                             # /etc/config/network cannot be read
    (True, NETWORKS, {"etc/uci-changes": "-network.old\n"}),                    # not committed yet
    (True, NETWORKS, {"etc/interfaces": "old\n"}),                              # netifd has it: a dynamic one
])
def test_what_deleted_networks_have_left_goes_at_a_start(
        router: Router, lab: Lab, kept: bool, uci: str, more: dict[str, str]) -> None:
    """After an upgrade, or where it was deleted while nothing ran; but not where it is not sure that it is gone."""
    router.write("etc/uci", uci)
    router.sh("mkdir -p /var/run/ddpd/mtu/eth0")
    for name, text in {"etc/ddpd/if-old.json": "[]", "etc/ddpd/if-old.json.lock": "", "var/run/ddpd/if-old.conf": "",
                       "var/run/ddpd/if-old.up": "eth0\n", "var/run/ddpd/mtu/eth0/own": "1500\n",
                       "var/run/ddpd/mtu/eth0/if-old": "1300\n", **more}.items():
        router.write(name, text)
    router.sh("echo 1300 > /proc/sys/net/ipv6/conf/eth0/mtu")
    assert router.init("start").returncode == 0
    assert (left_of(router, "old") != ["var/run/ddpd/if-old.gone"]) == kept and (router.root / "etc/ddpd/key").exists()
    assert lab["home"].sh("cat /proc/sys/net/ipv6/conf/eth0/mtu") == ("1300\n" if kept else "1500\n")


def test_two_interfaces_and_the_daemon_leave_each_other_alone(router: Router, lab: Lab) -> None:
    """The daemon's routes carry its mark; those of netifd's interfaces are not ddpd's."""
    router.write("etc/config/ddpd", uci("ddpd", "main", enabled="1", key="/etc/ddpd/second") +
                 uci("grantor", "hub", key=public_of("hub"), address="fd00::1", ask="::/60 on @lan"))
    router.write_key("second", "etc/ddpd/second")
    more = "[grantee second]\nkey = @second\npools = home\n"
    with lab["hub"].ddpd(HUB.format(lifetime="1h") + more) as grantor:
        assert router.init("start").returncode == 0
        eventually(lambda: lab["home"].routes(), 10)
        netifd = Netifd(router, "wan6d", wan6d(), "eth0")
        netifd.setup()
        eventually(lambda: len(grantor.status()["granted"]) == 2, 10)
        assert netifd.teardown() == 0
        time.sleep(0.5)
        assert len(lab["home"].routes()) == 1


# ==== the pages' files, as printed ====================================================

ALICE, EXIT = "AvRrA7O4QhBqvpkZGJOBiVEkvWMTRq5kP4EMIcPJ7H4=", "5Pz6YYy4WuOEnLQDDjYOTKO+Y7z3XKmkfnmMmUrDL0U="


def printed(begin: str, **keys: str) -> str:
    """The one block that begins so; alice and exit have the keys of those hosts."""
    block = docs.printed(begin)
    named = {"alice": ALICE, "exit": EXIT}
    for name, host in keys.items():
        assert named[name] in block
        block = block.replace(named[name], public_of(host))
    return block


def as_netifd_has_it(text: str, router: Router) -> tuple[str, dict[str, object]]:
    """The interface of a network file, typed as the protocol declares its options."""
    arrays = [call[1].partition(":")[0] for call in Netifd(router, "", {}, "").handler("dump")
              if call[0] == "proto_config_add_array"]
    [name] = re.findall(r"(?m)^config interface '(\w+)'", text)
    found: dict[str, object] = {}
    for word, key, value in re.findall(r"(?m)^\t(option|list) (\w+) '(.*)'$", text):
        rows = found.setdefault(key, []) if key in arrays else None
        if isinstance(rows, list):
            rows += [value] if word == "list" else value.split()
        else:
            found[key] = value
    return name, found


@pytest.mark.parametrize("python", pythons(), ids=lambda path: path.replace(str(Path.home()), "~"))
def test_the_printed_asking_router(lab: Lab, ipks: list[Path], python: str, tmp_path: Path) -> None:
    """On every Python that this machine has, with the oldest PyNaCl; the grantor is named by a host name."""
    why = install_pynacl(python, tmp_path / "library")
    if why:
        pytest.skip(f"cannot install PyNaCl {OLDEST_PYNACL} for {python}: {why}")
    router = Router(tmp_path, lab["home"], ipks, Slim(python, tmp_path / "library"))
    router.write("etc/devices", "wan eth0\n")
    router.write_key("home")
    name, config = as_netifd_has_it(printed("# /etc/config/network\n", exit="hub"), router)
    assert (name, config["device"]) == ("wan6d", "@wan")
    router.write("etc/hosts", "fd00::1 exit1.example.net\n")
    netifd = Netifd(router, name, config, "eth0")
    with hub(lab):
        netifd.setup()
        eventually(lambda: told_of(netifd, "proto_add_ipv6_prefix"), 15)
        assert netifd.teardown() == 0


def test_the_printed_granting_router(router: Router, lab: Lab) -> None:
    lab["home"].address("br-lan", "2001:db8:77:10::1/60")
    router.write("etc/config/ddpd", printed("# /etc/config/ddpd of a grantor\n", alice="hub"))
    assert router.init("start").returncode == 0, router.log()
    assert ("procd_add_reload_interface_trigger", "lan") in router.calls
    with lab["hub"].ddpd("[grantor home]\nkey = @home\naddress = fd00::2\nask = ::/62\ninstall = no\n") as leaf:
        def held() -> list[str]:
            return [row["prefix"] for row in leaf.status()["held"] if row["preferred"]]
        eventually(lambda: held() and held()[0].startswith("2001:db8:77:1"), 15)
        lab["home"].ip("addr add 2001:db8:88:20::1/60 dev br-lan")
        lab["home"].ip("addr del 2001:db8:77:10::1/60 dev br-lan")
        eventually(lambda: held() and held()[0].startswith("2001:db8:88:2"), 10)


def test_the_printed_mesh_node(ipks: list[Path], slim: Slim, tmp_path: Path) -> None:
    """Both prefixes are on lan, the second waits for the first; each leaves by its own exit."""
    with Lab("hub", "other", "home") as lab:
        lab.cable("hub:eth0 fd00::1/128", "home:eth0 fd00::9/128")
        lab.cable("other:eth0 fd00::2/128", "home:eth1 fd00::9/128")
        lab["home"].bridge("br-lan")
        for exit_, dev, own in (("hub", "eth0", "fd00::1"), ("other", "eth1", "fd00::2")):
            lab["home"].ip(f"-6 route add {own} dev {dev}")
            lab[exit_].ip("-6 route add fd00::9 dev eth0")
        router = Router(tmp_path, lab["home"], ipks, slim)
        router.write("etc/devices", "lan br-lan\n")
        router.write_key("home")
        router.write("etc/config/ddpd", printed("# /etc/config/ddpd of a mesh node\n", exit="hub", alice="other"))
        for n, name in enumerate(("hub", "other")):
            lab[name].ddpd(HUB.format(lifetime="1h").replace("2001:db8:42:", f"2001:db8:4{n}:")).start()
        try:
            assert router.init("start").returncode == 0, router.log()
            eventually(lambda: len(lab["home"].addresses("br-lan")) == 2, 15)
            eventually(lambda: lab["home"].look("-6 route show table all proto 221").count("default") == 2, 10)
            waits = {row["grantor"]: row["waits"] for row in router.status()["held"]}
            assert waits == {"exit1": False, "exit2": True}
        finally:
            router.stop()
            print(router.log())


@needs("command -v wg wireguard-go")
def test_the_printed_tunnel(ipks: list[Path], slim: Slim, tmp_path: Path) -> None:
    with Lab("hub", "home") as lab:
        lab.cable("hub:eth0 203.0.113.1/24", "home:eth0 203.0.113.2/24")
        lab["home"].bridge("br-lan")
        wg = wg_name("hub")
        lab["hub"].ddpd(printed("; /etc/ddpd.conf on the hub", alice="home").replace("wg0", wg)).start()
        router = Router(tmp_path, lab["home"], ipks, slim)
        router.write("etc/devices", "lan br-lan\n")
        router.write_key("home")
        for program in ("wg", "wireguard-go"):
            path = shutil.which(program)
            assert path is not None
            shutil.copy(path, router.root / "usr/bin" / program)
        router.write("etc/config/ddpd", printed("# /etc/config/ddpd with a tunnel\n", exit="hub"))
        try:
            assert router.init("start").returncode == 0, router.log()
            eventually(lambda: len(lab["home"].addresses("br-lan")) == 1 == len(lab["home"].addresses("wg0")), 20)
            own = lab["home"].addresses("br-lan")[0].split("/")[0]
            eventually(lambda: lab["home"].reaches("fd00:9::1", own), 10)
        finally:
            router.stop()
            lab["home"].ip("link del wg0")                         # wireguard-go goes with it
            print(router.log())
