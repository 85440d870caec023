"""Each subcommand through main(argv), as a person runs it."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import ddpd

SECRET = bytes(range(32))
PUBLIC = ddpd.keypair(SECRET).public
OTHER = ddpd.show_key(bytes([7]) * 32)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text(ddpd.show_key(SECRET) + "\n")
    (tmp_path / "key").chmod(0o600)
    path = tmp_path / "ddpd.conf"
    path.write_text(f"[ddpd]\nkey = {tmp_path}/key\nleases = {tmp_path}/l.json\ncontrol = {tmp_path}/c.sock\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = ddpd.main([str(word) for word in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


Said = pytest.CaptureFixture[str]


# ---- without PyNaCl

@pytest.mark.parametrize("how", [[ddpd.__file__], ["-c", (
    "import os, sys; sys.path.insert(0, os.getcwd()); import ddpd; sys.exit(ddpd.main(sys.argv[1:]))")]],
    ids=["as a script", "as installed"])
@pytest.mark.parametrize("command", ["run", "check", "genkey"])
def test_without_pynacl_one_line_says_what_to_install(how: list[str], command: str) -> None:
    """`-S`: of what is installed besides Python, nothing is found."""
    done = subprocess.run([sys.executable, "-B", "-I", "-S", *how, command], cwd=Path(ddpd.__file__).parent,
                          text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "PyNaCl" in done.stderr


# ---- keys

def test_genkey_is_another_each_time(capsys: Said) -> None:
    keys = {run(capsys, "genkey")[1] for _ in range(5)}
    assert len(keys) == 5 and all(len(ddpd.public_key(key.strip())) == 32 for key in keys)


@pytest.mark.skipif(not shutil.which("wg"), reason="no wg")
def test_pubkey_is_that_of_wg(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = run(capsys, "genkey")[1]
    theirs = subprocess.run(["wg", "genkey"], text=True, capture_output=True, check=True).stdout
    for key in (ours, theirs):
        wg = subprocess.run(["wg", "pubkey"], input=key, text=True, capture_output=True, check=True).stdout
        monkeypatch.setattr("sys.stdin", io.StringIO(key))
        assert run(capsys, "pubkey") == (0, wg, "")


@pytest.mark.parametrize("junk", ["", "abc", "A" * 43 + "\n", "é"])
def test_pubkey_of_junk(capsys: Said, monkeypatch: pytest.MonkeyPatch, junk: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(junk))
    code, out, err = run(capsys, "pubkey")
    assert (code, out) == (2, "") and err.startswith("ddpd: standard input holds no private key")


# ---- check

def test_check(capsys: Said, conf: Path) -> None:
    conf.write_text(conf.read_text() + "[pool p]\nprefix = 10.0.0.0/8\ngive = /24\n")
    code, out, err = run(capsys, "check", "-c", conf)
    assert code == 0 and "ok (1 pools, 0 grantees, 0 grantors, 0 pins)" in out and err == ""


@pytest.mark.parametrize("bad", ["[pool p]\n", "[ddpd]\n", "nonsense\n", "mark = 0\n"])
@pytest.mark.parametrize("command", [["check"], [], ["run"], ["introduce"], ["ask"], ["clean"]])
def test_a_bad_config_is_one_line_and_exit_2(capsys: Said, conf: Path, bad: str, command: list[str]) -> None:
    conf.write_text(conf.read_text() + bad)
    code, out, err = run(capsys, "-c", conf, *command)
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith(f"ddpd: {conf}:")


def test_no_config(capsys: Said, tmp_path: Path) -> None:
    code, _, err = run(capsys, "-c", tmp_path / "none", "check")
    assert code == 2 and err == f"ddpd: {tmp_path}/none: No such file or directory\n"


def test_check_warns_of_what_is_probably_not_meant(capsys: Said, conf: Path) -> None:
    conf.write_text(conf.read_text() + f"[grantor h]\nkey = {OTHER}\naddress = ::1\nask = ::/64 on a b\n")
    assert "no subnet 1 for b" in run(capsys, "-c", conf, "check")[1]


def test_check_reads_the_key(capsys: Said, conf: Path) -> None:
    (conf.parent / "key").write_text("oops")
    assert run(capsys, "-c", conf, "check")[0] == 2


# ---- introduce

def sections(out: str) -> str:
    return "\n".join(line for line in out.splitlines() if not line.startswith(";"))


def test_a_grantor_introduces_itself(capsys: Said, conf: Path) -> None:
    conf.write_text(conf.read_text() + "[pool p]\nprefix = 2001:db8::/48\ngive = /56-/64\n")
    code, out, _ = run(capsys, "-c", conf, "introduce")
    contact, = ddpd.read_config(sections(out), "pasted").contacts
    assert code == 0 and contact.key == PUBLIC and contact.lines[0].prefix.length == 56
    assert contact.addresses == (ddpd.HostPort(socket.gethostname(), 3373),)


def test_a_grantor_that_has_only_ipv4(capsys: Said, conf: Path) -> None:
    """What is pasted has to be something that it gives."""
    conf.write_text(conf.read_text() + "[pool p]\nprefix = 10.0.0.0/8\ngive = /24\n")
    contact, = ddpd.read_config(sections(run(capsys, "-c", conf, "introduce")[1]), "pasted").contacts
    assert str(contact.lines[0].prefix) == "0.0.0.0/24"


def test_a_grantee_introduces_itself(capsys: Said, conf: Path) -> None:
    conf.write_text(conf.read_text() + f"[grantor h]\nkey = {OTHER}\naddress = ::1\nask = ::/64\n")
    code, out, _ = run(capsys, "-c", conf, "introduce")
    pool = "[pool POOL]\nprefix = 10.0.0.0/8\ngive = /24\n"
    assert code == 0 and list(ddpd.read_config(pool + sections(out), "pasted").agreements) == [PUBLIC]


def test_introduce_makes_the_key(capsys: Said, conf: Path) -> None:
    (conf.parent / "key").unlink()
    assert run(capsys, "-c", conf, "introduce")[0] == 0 and (conf.parent / "key").exists()


# ---- without a daemon

@pytest.mark.parametrize("command", ["status", "renew", "reload"])
def test_no_daemon(capsys: Said, conf: Path, command: str) -> None:
    code, out, err = run(capsys, "-c", conf, command)
    assert (code, out, err) == (2, "", f"ddpd: no daemon answers at {conf.parent}/c.sock\n")


@pytest.mark.parametrize("command", ["ask", "release"])
def test_a_grantor_that_is_not_known(capsys: Said, conf: Path, command: str) -> None:
    code, _, err = run(capsys, "-c", conf, command, "nobody")
    assert code == 2 and "no grantor named 'nobody' (have: none)" in err


@pytest.mark.parametrize("command", ["ask", "release"])
def test_nobody_answers(capsys: Said, conf: Path, command: str) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("::1", 0))
        conf.write_text(conf.read_text() + f"[grantor h]\nkey = {OTHER}\n"
                        f"address = [::1]:{deaf.getsockname()[1]}\nask = ::/64\n")
        code, out, err = run(capsys, "-c", conf, command, "--wait", "1")
    assert (code, out) == (3, "") and "h does not answer" in err


# ---- decode

HEADS = {"ask": b"\1\1\0\0", "answer": b"\2\1\0\0", "cookie": b"\3\1\0\0", "sealed": b"\4\1\0\0"}


@pytest.mark.parametrize(("kind", "parts"), [
    ("ask", ["id", "e", "s sealed", "payload", "mac1", "mac2"]), ("answer", ["id", "e", "payload"]),
    ("cookie", ["id", "nonce", "cookie"]), ("sealed", ["session", "counter", "payload"])])
def test_decode(capsys: Said, conf: Path, kind: str, parts: list[str]) -> None:
    body = bytes(n % 251 for n in range(ddpd.SHORTEST[kind] + 10 - 4))
    if kind == "cookie":
        body = body[:ddpd.SHORTEST[kind] - 4]
    code, out, _ = run(capsys, "-c", conf, "decode", (HEADS[kind] + body).hex())
    rows = {line[:10].strip(): line[10:] for line in out.splitlines()}
    assert code == 0 and rows["kind"] == kind and rows["length"] == str(len(body) + 4)
    assert "".join(rows[part] for part in parts) == body.hex()


def test_decode_with_our_key_reads_an_ask_to_us(capsys: Said, conf: Path) -> None:
    text = f"[grantor h]\nkey = {ddpd.show_key(PUBLIC)}\naddress = ::1\nask = ::/56\nhostname = r1\n"
    leaf = ddpd.Node(ddpd.read_config(text, "t"), bytes([9]) * 32, "b", bytes)
    leaf.start(ddpd.Now(0, 0))
    leaf.resolved("h", "::1", (ddpd.Path("::1", 0),), ddpd.Now(0, 0))
    datagram = leaf.compose("h", "2001:db8::2", ddpd.Now(0, 0))
    code, out, _ = run(capsys, "-c", conf, "decode", datagram.hex())
    assert code == 0 and ddpd.show_key(leaf.s.public) in out and "r1" in out and "yes" in out
    changed = datagram[:100] + bytes([datagram[100] ^ 1]) + datagram[101:]
    assert re.search(r"for us +no", run(capsys, "-c", conf, "decode", changed.hex())[1])


@pytest.mark.parametrize(("junk", "says"), [
    ("xyz", "want the datagram as hexadecimal digits"),
    *[(junk, "not a datagram of ddpd: ")
      for junk in ("00", "0101", "", "01010000" + "00" * 10, "05010000" + "00" * 60)]])
def test_decode_junk(capsys: Said, monkeypatch: pytest.MonkeyPatch, junk: str, says: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(junk))
    code, out, err = run(capsys, "decode", *([junk] if junk else []))
    assert (code, out) == (2, "") and err.startswith(f"ddpd: {says}")


# ---- usage

@pytest.mark.parametrize(("argv", "says"), [
    (["chekc"], "no such command: chekc (did you mean 'check'? --help lists them)"),
    (["--jsn"], "no such option: --jsn"), (["-c"], "-c needs a value"), (["ask", "--wait"], "--wait needs a value"),
    (["ask", "--wait", "soon"], "'soon' is not a whole number")])
def test_wrong_usage(capsys: Said, argv: list[str], says: str) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "") and says in err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(capsys: Said, flag: str) -> None:
    code, out, err = run(capsys, flag)
    assert code == 0 and err == "" and all(f" {name} " in out for name in ddpd.COMMANDS)


def test_version(capsys: Said) -> None:
    assert run(capsys, "--version") == (0, ddpd.VERSION + "\n", "")


# ---- what is shown

def test_status_has_what_programs_read() -> None:
    text = f"[pool p]\nprefix = 10.0.0.0/8\ngive = /24\n[grantor h]\nkey = {OTHER}\naddress = ::1\nask = ::/56\n"
    node = ddpd.Node(ddpd.read_config(text, "t"), SECRET, "b", bytes)
    node.start(ddpd.Now(0, 0))
    shown = json.loads(json.dumps(ddpd.status_of(node, ddpd.Now(5.0, 0.0), 100)))
    assert shown.keys() >= {"version", "public_key", "pools", "granted", "held", "counters"}
    assert shown["pools"][0].keys() == {"name", "prefix", "leases", "free_fraction"}
    assert shown["public_key"] == ddpd.show_key(PUBLIC)
    assert "p" in ddpd.status_text(ddpd.status_of(node, ddpd.Now(5.0, 0.0), 100), colours=False)
