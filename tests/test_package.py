"""What the packages are made of: the program without what a router does not read, archives, scripts of the shell."""

from __future__ import annotations

import ast
import configparser
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import build
import ddpd
import pack

ROOT = Path(__file__).resolve().parent.parent
SOURCE = (ROOT / "ddpd.py").read_text()


# ---- the program


class Bare(ast.NodeTransformer):
    """A tree without docstrings and the annotations of functions."""

    def bare(self, node: ast.Module | ast.ClassDef | ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = node.body[1:] or [ast.copy_location(ast.Pass(), first)]
        return node

    visit_Module = visit_ClassDef = bare       # noqa: N815 - ast's names

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.bare(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def shape(tree: ast.AST) -> list[tuple[str, int]]:
    """Each node in order, and its line."""
    return [(type(node).__name__, node.lineno) for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.expr)]


def same(short: str, whole: str) -> bool:
    """The same program, line by line."""
    bare = Bare().visit(ast.parse(whole))
    return ast.dump(ast.parse(short)) == ast.dump(bare) and shape(ast.parse(short)) == shape(bare)


def test_the_packed_program_is_the_program() -> None:
    short = pack.stripped(SOURCE)
    assert same(short, SOURCE) and short.count("\n") == SOURCE.count("\n")
    assert len(short) < 0.75 * len(SOURCE)


@pytest.mark.parametrize("text", [
    'def f(a: int, *b: "x", c: list[int] = [], **d: int) -> dict[str, int]:\n    """Doc."""\n',
    'class A:\n    """Doc."""\n    b: int = 1   # why\n',
    'def f(\n    a: int,   # one\n) -> (\n    int\n):\n    # only this\n    return (a +   # two\n            1)\n',
    'x = """\n    # no comment\n"""  # one\n',
    'def f() -> None:\n    """Of\n\n    three lines."""\n    return "#"\n',
    'def f(a: str = "->") -> str:\n    return a\n',
    'if 1:\n    x = 1 and \\\n        2\n',
    'é = "ü"  # ö\ndef f(ä: int, b: int) -> "ß":  # ö\n    return "é"  # é\n',
    '"""Only this."""\n',
    'def f(a: int) -> int: return a  # one\n',
    'f"""{1}\n    {2}"""\nx = f"{3:#x}"  # c\n',
])
def test_what_is_packed_is_the_same(text: str) -> None:
    short = pack.stripped(text)
    assert same(short, text) and len(short) <= len(text), short


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack.pack(ROOT / "ddpd.py", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with zipfile.ZipFile(tmp_path / "one") as archive:
        assert archive.namelist() == ["ddpd.py"]
    done = subprocess.run([sys.executable, "-c", "import sys; sys.path[:] = [sys.argv[1], *sys.path]; import ddpd; "
                           "print(ddpd.__file__); sys.exit(ddpd.main(['version']))", str(tmp_path / "one")],
                          capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == f"{tmp_path}/one/ddpd.py\n{ddpd.VERSION}\n", done.stderr


def test_the_syntax_of_the_oldest_python_that_routers_have() -> None:
    for name in ("ddpd.py", "openwrt/ddpd/root/usr/sbin/ddpd", "openwrt/ddpd/root/usr/lib/ddpd/compile"):
        ast.parse((ROOT / name).read_text(), feature_version=(3, 11))


# ---- archives


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    assert build.main(["ipk", str(out)]) == 0
    return out


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


def extracted(data: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


PACKAGES = ("ddpd", "luci-app-ddpd", "luci-proto-ddpd")


def test_the_packages_have_their_names(dist: Path) -> None:
    assert sorted(path.name for path in dist.iterdir()) == [f"{name}_{ddpd.VERSION}-r1_all.ipk" for name in PACKAGES]


def test_the_same_files_give_the_same_bytes(dist: Path, tmp_path: Path) -> None:
    """Whoever builds them, whenever, wherever: another umask, folder and time."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "tests", "dist", "__pycache__"))
    for path in copy.rglob("*"):
        os.utime(path, (10**9, 10**9))
    subprocess.run([sys.executable, str(copy / "openwrt/build.py"), "ipk", str(tmp_path / "out")], check=True,
                   umask=0o077, capture_output=True)
    for path in dist.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", PACKAGES)
def test_an_ipk_is_as_opkg_wants_it(dist: Path, name: str) -> None:
    data = next(dist.glob(f"{name}_*")).read_bytes()
    assert data[4:8] == b"\0\0\0\0"                                # gzip -n
    outer = members(data)
    assert [member.name for member in outer] == ["./debian-binary", "./data.tar.gz", "./control.tar.gz"]
    assert extracted(data, "./debian-binary") == b"2.0\n"
    for inner in ("./data.tar.gz", "./control.tar.gz"):
        found = members(extracted(data, inner))
        assert all((each.uid, each.gid, each.uname, each.gname) == (0, 0, "", "") for each in [*outer, *found])
        assert len({each.mtime for each in [*outer, *found]}) == 1
        assert [each.name for each in found] == sorted((each.name for each in found), key=lambda n: n.split("/"))
        assert all(member.name == "." or member.name.startswith("./") for member in found)
        assert not gzip.decompress(extracted(data, inner))[257:265].strip(b"ustar  \0")
    control = extracted(extracted(data, "./control.tar.gz"), "./control").decode()
    fields = dict(line.split(": ", 1) for line in control.splitlines())
    assert fields["Package"] == name and fields["Version"] == f"{ddpd.VERSION}-r1" and fields["Architecture"] == "all"
    assert int(fields["Installed-Size"]) == sum(m.size for m in members(extracted(data, "./data.tar.gz")))
    assert fields["License"] == "MIT" and fields["Description"].strip() and fields["Depends"].startswith("libc, ")


def test_sizes(dist: Path) -> None:
    """Without byte code, which is made on the router, some 370 kB."""
    data = next(dist.glob("ddpd_*")).read_bytes()
    files = members(extracted(data, "./data.tar.gz"))
    assert sum(member.size for member in files) < 200_000 and len(data) < 130_000


def test_executables_are_executable(dist: Path) -> None:
    data = extracted(next(dist.glob("ddpd_*")).read_bytes(), "./data.tar.gz")
    modes = {member.name: member.mode for member in members(data)}
    for name in ("etc/init.d/ddpd", "lib/netifd/proto/ddpd.sh", "lib/netifd/ddpd.script", "usr/sbin/ddpd",
                 "usr/lib/ddpd/compile"):
        assert modes[f"./{name}"] == 0o755
    assert modes["./etc/config/ddpd"] == 0o600 and modes["./usr/lib/ddpd/ddpd.zip"] == 0o644


def test_what_opkg_runs(dist: Path) -> None:
    """OpenWrt's own, which enables, starts and stops; that runs ours, which is called so."""
    for name in PACKAGES:
        control = extracted(next(dist.glob(f"{name}_*")).read_bytes(), "./control.tar.gz")
        for script in ("postinst", "prerm"):
            assert f'\ndefault_{script} "$0" "$@"\n' in extracted(control, f"./{script}").decode()
        own = extracted(control, "./postinst-pkg").decode()
        assert ("/usr/sbin/ddpd --version" if name == "ddpd" else "/etc/init.d/rpcd reload") in own
        assert "IPKG_INSTROOT" in own                             # not while an image is built


def test_scripts_of_the_packages_are_shell(dist: Path, tmp_path: Path) -> None:
    for path in dist.iterdir():
        control = extracted(path.read_bytes(), "./control.tar.gz")
        for member in members(control):
            if member.mode & 0o100 and member.isfile():
                script = tmp_path / "script"
                script.write_bytes(extracted(control, member.name))
                for shell in SHELLS:
                    subprocess.run([*shell, "-n", str(script)], check=True)


def test_the_version_stands_in_one_place() -> None:
    makefile = (ROOT / "openwrt/ddpd/Makefile").read_text()
    command = makefile.split("PKG_VERSION:=$(shell ")[1].split(")\n")[0].replace("$$", "$")
    said = subprocess.run(command, shell=True, cwd=ROOT / "openwrt/ddpd", capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ddpd.VERSION and build.version_of(ROOT / "ddpd.py") == ddpd.VERSION
    assert ddpd.VERSION not in makefile


def test_an_apk_is_what_its_tool_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool is recorded: its arguments, the files, and the scripts."""
    tool = tmp_path / "bin/apk"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\nimport json, pathlib, sys\nargv = sys.argv[1:]\n"
                    "files = pathlib.Path(argv[argv.index('--files') + 1])\n"
                    "told = [(argv[n], argv[n + 1]) for n in range(len(argv) - 1)]\n"
                    "scripts = {v.split(':')[0]: open(v.split(':')[1]).read() for k, v in told if k == '--script'}\n"
                    "out = dict(infos=[v for k, v in told if k == '--info'], scripts=scripts, "
                    "files=sorted(str(p.relative_to(files)) for p in files.rglob('*') if p.is_file()), "
                    "lists={p.name: p.read_text() for p in files.glob('lib/apk/packages/*')})\n"
                    "open(argv[argv.index('--output') + 1], 'w').write(json.dumps(out))\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    assert build.main(["apk", str(tmp_path / "out")]) == 0
    said = json.loads((tmp_path / f"out/ddpd-{ddpd.VERSION}-r1.apk").read_text())
    assert {"name:ddpd", f"version:{ddpd.VERSION}-r1", "arch:noarch", "license:MIT",
            "depends:libc python3-light python3-pynacl"} <= set(said["infos"])
    assert said["lists"]["ddpd.conffiles"] == "/etc/config/ddpd\n"
    assert "/etc/init.d/ddpd\n" in said["lists"]["ddpd.list"] and "usr/lib/ddpd/ddpd.zip" in said["files"]
    assert set(said["scripts"]) == {"post-install", "post-upgrade", "pre-deinstall"}
    after = said["scripts"]["post-install"]
    assert "/usr/sbin/ddpd --version" in after and "pkgname=ddpd\n" in after and "PKG_UPGRADE=1" not in after
    assert "export PKG_UPGRADE=1; pkgname=ddpd\n" in said["scripts"]["post-upgrade"]
    assert 'default_prerm "$0"' in said["scripts"]["pre-deinstall"]
    name, digest = said["lists"]["ddpd.conffiles_static"].split()
    assert name == "/etc/config/ddpd" and digest == hashlib.sha256(
        (ROOT / "openwrt/ddpd/root/etc/config/ddpd").read_bytes()).hexdigest()
    for text in said["scripts"].values():
        for shell in SHELLS:
            subprocess.run([*shell, "-n"], input=text, text=True, check=True)


def test_without_its_tool_no_apk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.main(["apk", str(tmp_path / "out")]) == 1
    assert "apk mkpkg" in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---- plain Linux


def test_make_install_and_its_unit(tmp_path: Path) -> None:
    subprocess.run(["make", "-s", "install", f"DESTDIR={tmp_path}"], cwd=ROOT, check=True, capture_output=True)
    unit = configparser.ConfigParser(strict=True)
    unit.optionxform = str                                        # type: ignore[assignment,method-assign]
    unit.read(tmp_path / "etc/systemd/system/ddpd.service")
    service = unit["Service"]
    program = tmp_path / service["ExecStart"].lstrip("/")
    assert os.access(program, os.X_OK) and service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    program.write_text(program.read_text().replace("/usr/local", f"{tmp_path}/usr/local"))
    said = subprocess.run([sys.executable, str(program), "version"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ddpd.VERSION
    needed = set(re.findall(r'"(CAP_\w+)"', SOURCE))
    assert set(service["CapabilityBoundingSet"].split()) == needed
    families = {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"}
    assert set(service["RestrictAddressFamilies"].split()) == families
    assert service["KillMode"] == "process"                       # a wireguard-go that it has made lives on
    for folder in (ddpd.SETTINGS["ddpd"][key].default for key in ("key", "leases")):
        assert str(folder).startswith(("/etc/ddpd/", "/var/lib/ddpd/"))       # as the unit makes them


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    subprocess.run(["make", "-s", "install", f"DESTDIR={tmp_path}"], cwd=ROOT, check=True, capture_output=True)
    unit = tmp_path / "etc/systemd/system/ddpd.service"
    unit.write_text(re.sub("/usr/local/sbin/ddpd|/bin/kill", "/bin/true", unit.read_text()))      # not all have procps
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0 and "ddpd.service" not in done.stderr, done.stderr


# ---- the shell


SHELLS = [["sh"], *([["busybox", "sh"]] if shutil.which("busybox") else [])]
SCRIPTS = [path for path in (ROOT / "openwrt").rglob("*")
           if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell_files_are_of_busybox(path: Path) -> None:
    for shell in SHELLS:
        subprocess.run([*shell, "-n", str(path)], check=True)


def test_all_shell_files_are_found() -> None:
    assert {path.name for path in SCRIPTS} == {"ddpd.sh", "ddpd", "ddpd.script"} and len(SCRIPTS) == 4
