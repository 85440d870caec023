"""What `make` changes on a machine: what it installs, and says of it before; what starts at boot; `make uninstall`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
TOOLS = ("sh", "awk", "basename", "cat", "chmod", "cp", "dirname", "find", "grep", "head", "id", "kill", "ln", "mkdir",
         "mktemp", "mv", "ls", "readlink", "rm", "sed", "sort", "tail")
WANTS = "etc/systemd/system/multi-user.target.wants"
UNIT, INIT = "/lib/systemd/system/{}", "/etc/init.d/{}"

# ---- a small machine, with a Debian of four commands.  DPKG_ROOT, PLACE and FAULT are in their environment.

COMMANDS = {
    "apt-get": r"""
case "$*" in
*--print-uris*)
    [ -e "$PLACE/updated" ] || exit 100
    echo "1 upgraded, 4 newly installed, 0 to remove and 26 not upgraded."
    echo "Need to get 3135 kB of archives."
    echo "After this operation, 10.3 MB of additional disk space will be used." ;;
*update*) : >"$PLACE/updated" ;;
*)
    ls -l "$DPKG_ROOT/usr/sbin/policy-rc.d" >"$PLACE/policy"
    cp "$PLACE/said" "$PLACE/said-before"
    cat "$PLACE/coming" >>"$PLACE/installed"
    (cd "$DPKG_ROOT" && sh -e "$PLACE/postinst")
    case $FAULT in
    fails)       exit 100 ;;
    interrupted) kill -INT $PPID $$ ;;
    esac ;;
esac""",
    "dpkg-query": r"""
case $1 in
-W) cat "$PLACE/installed" ;;
-L) shift; for package; do cat "$PLACE/$package.list"; done ;;
esac""",
    "update-rc.d": r"""
[ "$2" = disable ] || exit 1
for n in 2 3 4 5; do
    link=$DPKG_ROOT/etc/rc$n.d/S01$1
    [ ! -L "$link" ] || mv "$link" "$DPKG_ROOT/etc/rc$n.d/K01$1"
done""",
    "id": "echo 0",
}


@dataclass
class Machine:
    """Its files are below `root`; what it was told is in `library`."""

    root: Path
    library: Path
    tree: Path

    def __post_init__(self) -> None:
        for folder in (self.library, self.root / "usr/sbin", self.tree / "tests", self.root / WANTS,
                       *(self.root / f"etc/rc{n}.d" for n in "12345S")):
            folder.mkdir(parents=True)
        shutil.copy(REPO / "tests/setup.sh", self.tree / "tests")
        for name in TOOLS:
            (self.root / "usr/sbin" / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        for name, text in COMMANDS.items():
            self.command(name, text)
        self.command("python3", f'case "$*" in *venv*) exit 1 ;; esac\nexec {sys.executable} "$@"')
        for name in ("postinst", "said", "coming"):
            (self.library / name).touch()
        (self.library / "installed").write_text("ii  1.0 sh\nii  1.0 own\n")

    def command(self, name: str, text: str) -> None:
        path = self.root / "usr/sbin" / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{text.strip()}\n")
        path.chmod(0o755)

    def comes(self, package: str, ships: list[str], links: Mapping[str, str]) -> None:
        """A package that the next `apt-get install` brings along, and what its scripts link."""
        (self.library / f"{package}.list").write_text("\n".join(["/.", "/etc", *ships]) + "\n")
        with (self.library / "coming").open("a") as coming, (self.library / "postinst").open("a") as postinst:
            coming.write(f"ii  2.0 {package}\n")
            for link, target in links.items():
                postinst.write(f"mkdir -p {Path(link).parent}\nln -sf {target} {link}\n")

    def boots(self) -> set[str]:
        """What starts at boot."""
        return {f"{path.relative_to(self.root)}" for path in (self.root / "etc").rglob("*")
                if path.is_symlink() and not path.name.startswith("K")}

    def setup(self, purpose: str = "test", fault: str = "") -> tuple[int, str]:
        environment = {"PATH": f"{self.root}/usr/sbin", "DPKG_ROOT": str(self.root), "PLACE": str(self.library),
                       "FAULT": fault, "TMPDIR": str(self.library)}
        with (self.library / "said").open("w") as said:
            done = subprocess.run([self.tree / "tests/setup.sh", purpose], env=environment, stderr=said, check=False,
                                  stdin=subprocess.DEVNULL, timeout=60, start_new_session=True)
        return done.returncode, (self.library / "said").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "root", tmp_path / "library", tmp_path / "tree")
    machine.comes("bird2", [UNIT.format("bird.service"), INIT.format("bird")], {
        f"{WANTS}/bird.service": "/lib/systemd/system/bird.service",
        **{f"etc/rc{n}.d/S01bird": "../init.d/bird" for n in (2, 3, 4, 5)},
        **{f"etc/rc{n}.d/K01bird": "../init.d/bird" for n in (0, 1, 6)}})
    machine.comes("kea-dhcp6-server", ["/usr" + UNIT.format("kea6.service")], {
        f"{WANTS}/kea6.service": "/usr/lib/systemd/system/kea6.service",
        "etc/systemd/system/dhcp.service": "/usr/lib/systemd/system/kea6.service"})
    machine.comes("brought-along:amd64", ["/usr/lib/systemd/user/its.socket", UNIT.format("its@.timer")], {
        "etc/systemd/user/sockets.target.wants/its.socket": "/usr/lib/systemd/user/its.socket",
        "etc/systemd/system/timers.target.wants/its@1.timer": "/lib/systemd/system/its@.timer"})
    return machine


# ---- what starts at boot

@pytest.mark.parametrize("fault", ["", "fails", "interrupted"])
def test_nothing_is_enabled_that_was_not(machine: Machine, fault: str) -> None:
    """Whatever the services of a package are called, and whatever comes of the installation."""
    before = machine.boots()
    code, _ = machine.setup(fault=fault)
    assert (code == 0) == (fault != "interrupted") and "bird2" in (machine.library / "installed").read_text()
    assert machine.boots() == before
    assert (machine.root / "etc/rc2.d/K01bird").is_symlink(), "as update-rc.d leaves it"


def test_what_was_enabled_stays_so(machine: Machine) -> None:
    for name in ("own", "bird"):                     # a bird of one's own, which needs no package
        (machine.root / f"{WANTS}/{name}.service").symlink_to(f"/etc/systemd/system/{name}.service")
    (machine.root / "etc/rc2.d/S01own").symlink_to("../init.d/own")
    before = machine.boots()
    assert machine.setup()[0] == 0
    assert machine.boots() == before


def test_what_somebody_else_enables_meanwhile_stays_so(machine: Machine) -> None:
    other = {f"{WANTS}/own.service": "/lib/systemd/system/own.service", "etc/rc3.d/S01own": "../init.d/own"}
    (machine.library / "own.list").write_text("/lib/systemd/system/own.service\n/etc/init.d/own\n")
    with (machine.library / "postinst").open("a") as postinst:
        postinst.writelines(f"ln -s {target} {link}\n" for link, target in other.items())
    assert machine.setup()[0] == 0
    assert machine.boots() == {*other}


def test_systemd_keeps_what_it_boots_with(machine: Machine) -> None:
    """Where it is new it is not what boots the machine."""
    console = "etc/systemd/system/getty.target.wants/getty@tty1.service"
    machine.comes("systemd", ["/lib/systemd/system/getty@.service"], {console: "/lib/systemd/system/getty@.service"})
    machine.setup()
    assert machine.boots() == {console}


@pytest.mark.parametrize("fault", ["", "fails", "interrupted"])
def test_no_service_starts_meanwhile(machine: Machine, fault: str) -> None:
    machine.setup(fault=fault)
    assert (machine.library / "policy").read_text().startswith("-rwxr-xr-x")
    assert not (machine.root / "usr/sbin/policy-rc.d").exists()


def test_a_policy_of_the_machine_stays(machine: Machine) -> None:
    machine.command("policy-rc.d", "exit 104")
    machine.setup()
    assert (machine.root / "usr/sbin/policy-rc.d").read_text() == "#!/bin/sh\nexit 104\n"


# ---- what is said before

@pytest.mark.parametrize("lists", ["old", "new"])
@pytest.mark.parametrize("purpose", ["demo", "test"])
def test_what_is_installed_is_said_before(machine: Machine, purpose: str, lists: str) -> None:
    """One line: what, how many packages with all that they need, how much to download, how much on the disk."""
    if lists == "new":
        (machine.library / "updated").touch()
    machine.setup(purpose)
    line, = (machine.library / "said-before").read_text().splitlines()
    amount = r"5 packages, 3135 kB to download, 10\.3 MB more on disk"
    assert re.fullmatch(rf"setup: installing( [a-z0-9-]+)+: {amount}", line)
    assert " babeld " in line and (" bird2 " in line) == (purpose == "test")


def test_where_apt_knows_one_package_not_the_others_are_installed(machine: Machine) -> None:
    machine.command("apt-get", COMMANDS["apt-get"].replace(
        "*--print-uris*)", '*" bird2 "*|*" npd6") exit 100 ;;\n*--print-uris*)'))
    (machine.library / "updated").touch()
    code, said = machine.setup()
    assert code == 0 and "setup: could not install npd6; going on without\n" in said
    assert "setup: installing radvd: 5 packages, 3135 kB to download, 10.3 MB more on disk\n" in said


# ---- make uninstall

def make(*words: str, **environment: str) -> str:
    done = subprocess.run(["make", "-s", *words], cwd=REPO, env=os.environ | environment, text=True,
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def there(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


PLACES = [(), ("PREFIX=/usr", "UNITS=/usr/lib/systemd/system")]


@pytest.mark.parametrize("places", PLACES)
def test_what_is_installed_can_be_uninstalled(tmp_path: Path, places: tuple[str, ...]) -> None:
    make("install", f"DESTDIR={tmp_path}", *places)
    assert len(there(tmp_path)) > 10
    make("uninstall", f"DESTDIR={tmp_path}", *places)
    assert there(tmp_path) == set() and tmp_path.exists()


def test_the_pages_are_installed_and_lead_to_each_other(tmp_path: Path) -> None:
    make("install", f"DESTDIR={tmp_path}")
    share = tmp_path / "usr/local/share"
    assert (share / "man/man8/ddpd.8").is_file() and (share / "man/man5/ddpd.conf.5").is_file()
    wanted = {path.name for path in (REPO / "docs").glob("*.md")}
    assert {path.name for path in (share / "doc/ddpd/docs").iterdir()} == wanted
    told = re.findall(r"\]\((docs/[\w.-]+)", (share / "doc/ddpd/README.md").read_text())
    assert told and all((share / "doc/ddpd" / name).is_file() for name in told)


@pytest.mark.parametrize("places", PLACES)
def test_what_others_made_stays(tmp_path: Path, places: tuple[str, ...]) -> None:
    prefix = "usr" if places else "usr/local"
    others = [f"{prefix}/sbin/other", f"{prefix}/lib/ddpd/own.py", f"{prefix}/lib/ddpd/__pycache__/own.cpython-311.pyc",
              f"{prefix}/share/doc/ddpd/notes", "etc/ddpd.conf", "etc/ddpd/key", "var/lib/ddpd/leases.json",
              "etc/systemd/system/other.service", "etc/systemd/system/ddpd.service.d/override.conf"]
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("theirs")
    before = there(tmp_path)
    make("install", f"DESTDIR={tmp_path}", *places)
    (tmp_path / f"{prefix}/lib/ddpd/__pycache__/ddpd.cpython-399.pyc").write_text("by another Python, later")
    said = make("uninstall", f"DESTDIR={tmp_path}", *places)
    assert there(tmp_path) - before == set() and before - there(tmp_path) == set()
    assert len(said.splitlines()) == 1 and all(f" {name}" in said for name in ("/etc/ddpd", "/var/lib/ddpd"))
    make("uninstall", f"DESTDIR={tmp_path}", *places)
    assert there(tmp_path) == before, "twice is as once"
