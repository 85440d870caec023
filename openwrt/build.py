#!/usr/bin/env python3
"""build.py ipk|apk [FOLDER]: the packages for a router, without OpenWrt's SDK, into FOLDER (dist).

All that is to be known of a package stands in its Makefile, for the SDK and for this; its files lie beside it as they
lie on a router (`root`, and for LuCI `htdocs`).  The same files give the same bytes, whoever builds them and when.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pack import pack

HERE = Path(__file__).resolve().parent
TOP = HERE.parent
DATE = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))

# What opkg and apk run is OpenWrt's own, which enables and starts services; ours is called by it.
CALLS = {"postinst": "default_postinst", "prerm": "default_prerm"}
WRAPPER = """#!/bin/sh
[ "$IPKG_NO_SCRIPT" != 1 ] && [ -s "$IPKG_INSTROOT/lib/functions.sh" ] || exit 0
. "$IPKG_INSTROOT/lib/functions.sh"
{more}{call} "$0" "$@"
"""
FOR_LUCI = """#!/bin/sh
[ -n "$IPKG_INSTROOT" ] || { rm -rf /tmp/luci-indexcache* /tmp/luci-modulecache; /etc/init.d/rpcd reload; }
exit 0
"""


@dataclass
class Package:
    name: str
    version: str
    depends: list[str]
    description: str
    section: str
    licence: str
    conffiles: str
    scripts: dict[str, str]              # postinst, prerm
    folder: Path


def variables(text: str) -> dict[str, str]:
    return {name: value.strip() for name, value in re.findall(r"(?m)^ *(\w+):=(.*)$", text)}


def defined(text: str, name: str) -> str:
    """What `define NAME` says; $$ is a $."""
    found = re.search(rf"(?ms)^define {re.escape(name)}\n(.*?)^endef$", text)
    return found[1].replace("$$", "$") if found else ""


def version_of(program: Path) -> str:
    found = re.search(r'(?m)^VERSION: Final = "(.+)"$', program.read_text())
    assert found is not None
    return found[1]


def words(text: str) -> list[str]:
    return [word.lstrip("+") for word in text.split()]


def package_in(folder: Path) -> Package:
    """From its Makefile: the feed's kind, or LuCI's."""
    text = (folder / "Makefile").read_text()
    said, name = variables(text), folder.name
    of_luci = "LUCI_TITLE" in said
    scripts = {script: defined(text, f"Package/{name}/{script}") for script in CALLS}
    title = said["LUCI_TITLE" if of_luci else "TITLE"]
    return Package(
        name, f"{version_of(TOP / 'ddpd.py')}-r{said.get('PKG_RELEASE', '1')}",
        words(said["LUCI_DEPENDS" if of_luci else "DEPENDS"]),
        " ".join(defined(text, f"Package/{name}/description").split()) or title, "luci" if of_luci else said["SECTION"],
        said["PKG_LICENSE"], defined(text, f"Package/{name}/conffiles"),
        {"postinst": FOR_LUCI} if of_luci else {script: text for script, text in scripts.items() if text}, folder)


# ---- as it lies on a router


def staged(package: Package, root: Path) -> None:
    """The files of the package below root."""
    for source, target in (("root", "."), ("htdocs", "www")):
        if (package.folder / source).is_dir():
            shutil.copytree(package.folder / source, root / target, dirs_exist_ok=True)
    if package.name == "ddpd":
        pack(TOP / "ddpd.py", root / "usr/lib/ddpd/ddpd.zip")
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    for line in package.conffiles.split():
        (root / line.lstrip("/")).chmod(0o600)


def size_of(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def scripts_of(package: Package) -> dict[str, str]:
    """What the package manager runs, by its opkg name."""
    return {script: WRAPPER.format(more="", call=call) for script, call in CALLS.items()} | {
        f"{script}-pkg": text for script, text in package.scripts.items()}


# ---- ipk: a tar of tars


Files = dict[str, tuple[bytes | None, int]]          # name -> what is in it (of a folder, nothing), mode


def added(archive: tarfile.TarFile, name: str, data: bytes | None, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.mtime, info.mode = DATE, mode
    info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    info.size = len(data or b"")
    archive.addfile(info, io.BytesIO(data or b""))


def tar(files: Files) -> bytes:
    """Zipped; names as given, owned by 0:0, folders (no bytes) too."""
    out = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, out, DATE) as zipped, \
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, (data, mode) in files.items():
            added(archive, name, data, mode)
    return out.getvalue()


def tree(root: Path) -> Files:
    found: Files = {"./": (None, 0o755)}
    for path in sorted(root.rglob("*")):
        name = f"./{path.relative_to(root)}"
        mode = path.stat().st_mode & 0o777
        found[name + "/" * path.is_dir()] = (None if path.is_dir() else path.read_bytes(), mode)
    return found


def control_of(package: Package, size: int) -> str:
    return (f"Package: {package.name}\nVersion: {package.version}\nDepends: {', '.join(['libc', *package.depends])}\n"
            f"Source: {package.folder.relative_to(TOP)}\nLicense: {package.licence}\nSection: {package.section}\n"
            f"Architecture: all\nInstalled-Size: {size}\nDescription:  {package.description}\n")


def ipk(package: Package, root: Path, out: Path) -> Path:
    control: Files = {"./control": (control_of(package, size_of(root)).encode(), 0o644)}
    control |= {f"./{name}": (text.encode(), 0o755) for name, text in scripts_of(package).items()}
    if package.conffiles:
        control["./conffiles"] = package.conffiles.encode(), 0o644
    control = {"./": (None, 0o755), **dict(sorted(control.items()))}
    file = out / f"{package.name}_{package.version}_all.ipk"
    file.write_bytes(tar({"./debian-binary": (b"2.0\n", 0o644), "./data.tar.gz": (tar(tree(root)), 0o644),
                          "./control.tar.gz": (tar(control), 0o644)}))
    return file


# ---- apk: its own tool writes it


HOOKS = {"post-install": "postinst", "post-upgrade": "postinst", "pre-deinstall": "prerm"}


def apk(package: Package, root: Path, out: Path) -> Path:
    """The lists in lib/apk/packages are what OpenWrt's scripts read."""
    lists = root / "lib/apk/packages"
    names = sorted(f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file())
    lists.mkdir(parents=True)
    (lists / f"{package.name}.list").write_text("".join(f"{name}\n" for name in names))
    if package.conffiles:
        (lists / f"{package.name}.conffiles").write_text(package.conffiles)
        sums = [f"{line} {hashlib.sha256((root / line.lstrip('/')).read_bytes()).hexdigest()}\n"
                for line in package.conffiles.split()]
        (lists / f"{package.name}.conffiles_static").write_text("".join(sums))
    file = out / f"{package.name}-{package.version}.apk"
    told = {"name": package.name, "version": package.version, "arch": "noarch", "license": package.licence,
            "description": package.description, "origin": str(package.folder.relative_to(TOP)),
            "depends": " ".join(["libc", *package.depends])}
    with tempfile.TemporaryDirectory() as scripts:
        argv = ["apk", "mkpkg", "--files", str(root), "--output", str(file)]
        argv += [word for name, value in told.items() for word in ("--info", f"{name}:{value}")]
        for hook, script in HOOKS.items():
            own = package.scripts.get(script, "").partition("\n")[2]
            text = WRAPPER.format(more="(\n" + own + ")\n" if own else "", call=CALLS[script])
            begin = f"/bin/sh\n{'export PKG_UPGRADE=1; ' * (hook == 'post-upgrade')}pkgname={package.name}\n"
            (Path(scripts) / hook).write_text(text.replace("/bin/sh\n", begin, 1))
            argv += ["--script", f"{hook}:{scripts}/{hook}"]
        subprocess.run(argv, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": str(DATE)})
    return file


FORMATS = {"ipk": ipk, "apk": apk}


def main(argv: list[str]) -> int:
    kind, out = argv[0], Path(argv[1] if argv[1:] else TOP / "dist")
    if kind == "apk" and not shutil.which("apk"):
        sys.stderr.write("`apk mkpkg` is wanted, of apk-tools 3; OpenWrt's SDK has it in staging_dir/host/bin\n")
        return 1
    out.mkdir(parents=True, exist_ok=True)
    for makefile in sorted(HERE.glob("*/Makefile")):
        package = package_in(makefile.parent)
        with tempfile.TemporaryDirectory() as root:
            staged(package, Path(root))
            size = size_of(Path(root))
            file = FORMATS[kind](package, Path(root), out)
        print(f"{file}: {file.stat().st_size:,} bytes, {size:,} installed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
