"""What ddpd made is removed to the last line; what it did not make is never touched.

    exit:down ------------------ home:up   home:lan --- host:eth0
    192.0.2.1                    192.0.2.2
    2001:db8:1::1                2001:db8:1::2
"""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import Daemon
from lab import IP, Host, Lab, busybox_path, changes, eventually, needs, with_keys

pytestmark = needs("ip link add dev eth0 type veth")

EXIT = """
[ddpd]
[pool six]
prefix   = 2001:db8:42::/48
give     = /56 /128
lifetime = 30s
[pool four]
prefix   = 10.64.0.0/16
give     = /24 /32
lifetime = 30s
[grantee home]
key   = @home
pools = six four
limit = 2
pin   = 2001:db8:42:1200::/56 10.64.7.0/24
route = {}
"""

HOME = """
[grantor exit]
key     = @exit
address = {}
default = via 2001:db8:1::1 dev up
ask     = ::/56 on br-lan
          0.0.0.0/24 on br-lan
          ::/128 on up
          0.0.0.0/32 on up
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("exit*", "home*", "host") as lab:
        lab.cable("exit:down 192.0.2.1/24 2001:db8:1::1/64",
                  "home:up   192.0.2.2/24 2001:db8:1::2/64")
        lab.cable("home:lan", "host:eth0")
        lab["home"].bridge("br-lan", "lan")
        yield lab


def bound(home: Daemon) -> list[str]:
    return sorted(row["prefix"] for row in home.status()["held"] if row["prefix"])


def both(lab: Lab, over: str = "192.0.2.1", path: str = "", lifetime: str = "30s",
         ) -> tuple[Daemon, Daemon]:
    config = EXIT.format("auto").replace("30s", lifetime)
    exit_ = lab["exit"].ddpd(config, path=path).start()
    home = lab["home"].ddpd(HOME.format(over), path=path).start()
    home.eventually(lambda: len(bound(home)) == 4, 8)
    lab["home"].settled()
    return exit_, home


# ==== clean ===========================================================================


@pytest.mark.parametrize("tool", ["iproute2", "busybox"])
@pytest.mark.parametrize("over", ["192.0.2.1", "2001:db8:1::1"])
def test_clean_after_a_crash_leaves_the_kernel_as_it_was(lab: Lab, tool: str, over: str) -> None:
    """kill -9, clean: not one line of addresses, routes, rules differs from before; both roles."""
    hosts = lab["exit"], lab["home"]
    before = [host.kernel() for host in hosts]
    path = busybox_path(lab.folder) if tool == "busybox" else ""
    daemons = both(lab, over, path=path)
    for daemon in daemons:
        daemon.kill()
    for host, was in zip(hosts, before, strict=True):
        assert changes(was, host.kernel())               # a crash removes nothing ...
    for daemon in daemons:
        done = daemon.command("clean")
        assert done.returncode == 0, done.stderr
    for host, was in zip(hosts, before, strict=True):
        assert changes(was, host.kernel()) == []         # ... clean removes all


def test_clean_twice_is_harmless_and_says_nothing_more(lab: Lab) -> None:
    before = lab["home"].kernel()
    _, home = both(lab)
    home.kill()
    for _ in range(2):
        assert home.command("clean").returncode == 0
        assert changes(before, lab["home"].kernel()) == []


def test_a_start_after_clean_binds_the_same_again(lab: Lab) -> None:
    _, home = both(lab)
    prefixes, made = bound(home), lab["home"].kernel()
    home.stop()
    home.command("clean")
    home.start()
    home.eventually(lambda: bound(home) == prefixes)
    home.eventually(lambda: lab["home"].kernel() == made)


def test_release_takes_everything_back_on_both_sides(lab: Lab) -> None:
    """What is released is removed on the grantor at once; on the grantee it is deprecated."""
    before = lab["exit"].kernel()
    exit_, home = both(lab)
    assert home.command("release").returncode == 0
    exit_.eventually(lambda: lab["exit"].kernel() == before)
    assert exit_.status()["granted"] == []


# ==== what others made ================================================================


FOREIGN = {
    "home": ("route add unreachable 2001:db8:42:1200::/56 proto static",
             "route add unreachable 10.64.7.0/24 proto static metric 50",
             "route add 2001:db8:42:1200::/56 via 2001:db8:1::9 dev up metric 30000",
             "route add 203.0.113.0/24 via 192.0.2.9 proto 221",
             "-6 rule add pref 22150 from 2001:db8:42:1200::/56 lookup main",
             "addr add 2001:db8:99::1/64 dev br-lan",
             "addr add 192.0.2.77/32 dev up"),
    "exit": ("route add 2001:db8:42:1200::/56 via 2001:db8:1::9 proto static",
             "route add 10.64.7.0/24 via 192.0.2.9 proto static",
             "route add unreachable 2001:db8:42::/48 proto static"),
}


def foreign(lab: Lab) -> list[list[str]]:
    """What the operator made, as `ip` shows it: everything that is there before ddpd starts."""
    for name, commands in FOREIGN.items():
        for command in commands:
            lab[name].ip(command)
    return [lab[name].kernel() for name in FOREIGN]


def gone(lab: Lab, had: list[list[str]]) -> list[str]:
    return [f"{name}: {line}" for name, lines in zip(FOREIGN, had, strict=True)
            for line in sorted(set(lines) - set(lab[name].kernel()))]


def test_routes_and_rules_of_others_survive_a_whole_life(lab: Lab) -> None:
    """Equal in prefix to ours, there before: bind, renew, release, SIGTERM, restart, clean."""
    had = foreign(lab)
    exit_, home = both(lab)
    assert "2001:db8:42:1200::/56" in bound(home) and "10.64.7.0/24" in bound(home)
    assert gone(lab, had) == []
    assert home.command("renew").returncode == 0
    assert gone(lab, had) == []
    for daemon in exit_, home:
        daemon.stop()
        assert gone(lab, had) == []
        daemon.start()
        assert gone(lab, had) == []
    home.eventually(lambda: len(bound(home)) == 4)
    assert home.command("release").returncode == 0
    exit_.eventually(lambda: exit_.status()["granted"] == [])
    assert gone(lab, had) == []
    for daemon in exit_, home:
        daemon.kill()
        daemon.command("clean")
    for name, was in zip(FOREIGN, had, strict=True):
        assert changes(was, lab[name].kernel()) == []


@pytest.mark.parametrize("address", ["2001:db8:42:1200::1/64 dev br-lan",
                                     "10.64.7.1/24 dev br-lan",
                                     "2001:db8:42:1200::1/128 dev lo"])
def test_an_equal_address_of_the_operator_survives_a_whole_life(lab: Lab, address: str) -> None:
    """An address that ddpd would have made, made by hand before: it stays, for ever valid."""
    lab["home"].ip(f"addr add {address}")
    had = lab["home"].kernel()

    def survives() -> bool:
        return not set(had) - set(lab["home"].kernel())

    exit_ = lab["exit"].ddpd(EXIT.format("auto")).start()
    home = lab["home"].ddpd(HOME.format("192.0.2.1")).start()
    home.eventually(lambda: len(bound(home)) >= 3)        # the others, whatever it thinks of this
    assert survives()
    home.command("renew")
    assert survives()
    home.stop()
    home.start()
    assert survives()
    home.command("release")
    exit_.eventually(lambda: exit_.status()["granted"] == [])
    assert survives()
    home.kill()
    home.command("clean")
    assert changes(had, lab["home"].kernel()) == []


# ==== restarts of the grantee =========================================================


def addresses(host: Host) -> list[str]:
    return host.addresses("br-lan") + host.addresses("br-lan", 4)


def test_a_restart_is_no_outage(lab: Lab) -> None:
    """SIGTERM neither releases nor removes; a start with the grantor away asks nobody first."""
    exit_, home = both(lab)
    prefixes, made = bound(home), lab["home"].kernel()
    home.stop()
    assert changes(made, lab["home"].kernel()) == []
    assert len(exit_.status()["granted"]) == 4
    exit_.kill()
    home.start()
    assert bound(home) == prefixes
    assert changes(made, lab["home"].kernel()) == []
    home.stop()
    home.command("clean")
    wire = lab["home"].record("up")
    home.start()                                           # not even an answer to hope for
    home.eventually(lambda: lab["home"].kernel() == made, 6)
    assert bound(home) == prefixes
    assert all(d.dport == 3373 for d in wire.ddpd())
    exit_.start()
    home.eventually(lambda: {row["state"] for row in home.status()["held"]} == {"bound"}, 15)
    assert bound(home) == prefixes


def test_a_crash_long_after_the_first_grant_is_no_outage(lab: Lab) -> None:
    """Renewed several times, killed, started: what is on file must not be over by then."""
    exit_, home = both(lab, lifetime="12s")
    prefixes, made = bound(home), lab["home"].kernel()
    lives_until = time.monotonic() + 13
    eventually(lambda: time.monotonic() > lives_until, 14)
    assert changes(made, lab["home"].kernel()) == []
    home.kill()
    exit_.kill()
    home.start()
    assert bound(home) == prefixes
    assert changes(made, lab["home"].kernel()) == []


def test_it_renews_at_half_of_the_preferred_lifetime(lab: Lab) -> None:
    """16 s valid, 8 s preferred, so 4 s until the renewal, which is one sealed exchange."""
    wire = lab["home"].record("up")
    began = time.monotonic()
    _, home = both(lab, lifetime="16s")
    is_bound = time.monotonic()
    eventually(lambda: [d.data[0] for d in wire.ddpd()][-3:] == [2, 4, 4], 8, "a renewal")
    assert began + 4 <= time.monotonic() < is_bound + 7
    assert all(row["valid"] > 12 for row in home.status()["held"])


def lifetimes(host: Host, address: str) -> tuple[int, int]:
    """(preferred, valid) seconds left of an address on br-lan; (0, 0) when it is gone."""
    for line in host.look("-o addr show dev br-lan").splitlines():
        words = line.split()
        if words[3] == address:
            return (int(words[words.index("preferred_lft") + 1].removesuffix("sec")),
                    int(words[words.index("valid_lft") + 1].removesuffix("sec")))
    return 0, 0


def test_a_removed_line_is_deprecated_and_at_its_end_released(lab: Lab) -> None:
    """Hosts must have time to leave it: not preferred at once, routed until it is over."""
    exit_, home = both(lab, lifetime="8s")
    six = "2001:db8:42:1200::1/64"
    assert lifetimes(lab["home"], six)[0] > 0
    before = lab["exit"].kernel()
    home.write(with_keys(HOME.format("192.0.2.1").replace("::/56 on br-lan\n          ", "")))
    assert home.command("reload").returncode == 0
    home.eventually(lambda: lifetimes(lab["home"], six)[0] == 0, 3)
    assert 0 < lifetimes(lab["home"], six)[1] <= 8          # not torn out
    assert changes(before, lab["exit"].kernel()) == []
    home.eventually(lambda: lifetimes(lab["home"], six) == (0, 0), 9)
    exit_.eventually(lambda: len(exit_.status()["granted"]) == 3)
    assert len(bound(home)) == 3
    assert lifetimes(lab["home"], "10.64.7.1/24")[0] > 0    # the others are as they were


def test_a_changed_pool_renumbers_within_two_seconds(lab: Lab) -> None:
    """The old prefix is deprecated, the new one is there beside it; the grantee was nudged."""
    text = EXIT.format("none").replace("pin   = 2001:db8:42:1200::/56 10.64.7.0/24\n", "")
    exit_ = lab["exit"].ddpd(text).start()
    home = lab["home"].ddpd(HOME.format("192.0.2.1")).start()
    home.eventually(lambda: len(bound(home)) == 4)
    home.command("renew")                                   # the session is known to be alive
    (old,) = lab["home"].addresses("br-lan")
    exit_.write(exit_.config.read_text().replace("2001:db8:42::/48", "2001:db8:43::/48"))
    assert exit_.command("reload").returncode == 0
    home.eventually(lambda: any(a.startswith("2001:db8:43:")
                                for a in lab["home"].addresses("br-lan")), 2)
    (new,) = set(lab["home"].addresses("br-lan")) - {old}
    assert lifetimes(lab["home"], old)[0] == 0 < lifetimes(lab["home"], old)[1] <= 30
    assert lifetimes(lab["home"], new)[0] > 0
    routes = [line for line in lab["home"].routes() if line.startswith("unreachable 2001")]
    assert len(routes) == 2                                 # both are announced meanwhile


def test_a_link_that_vanishes_gets_its_addresses_back(lab: Lab) -> None:
    _, home = both(lab)
    had = addresses(lab["home"])
    assert len(had) == 2
    lab["home"].ip("link del dev br-lan")
    lab["home"].bridge("br-lan", "lan")
    home.eventually(lambda: sorted(addresses(lab["home"])) == sorted(had), 10)


# ==== what cannot be done =============================================================


def test_without_a_disk_nothing_is_made_that_nobody_would_own(lab: Lab, tmp_path: Path) -> None:
    """Full from the start: no address and no rule; with room again both, and `clean` finds them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    before = lab["home"].kernel()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=True)
    try:
        fill = disk / "fill"
        fill.write_bytes(bytes(64 * 1024))
        lab["exit"].ddpd(EXIT.format("auto")).start()
        home = lab["home"].ddpd(f"[ddpd]\nleases = {disk}/leases.json\n" + HOME.format("192.0.2.1")).start()
        home.eventually(lambda: len(bound(home)) == 4, 8)
        assert not [line for line in changes(before, lab["home"].kernel()) if "address:" in line or "rule" in line]
        fill.unlink()
        home.eventually(lambda: len(addresses(lab["home"])) == 2, 45)
        home.kill()
        assert home.command("clean").returncode == 0
        assert changes(before, lab["home"].kernel()) == []
    finally:
        for daemon in lab["home"].daemons:
            daemon.kill()
        subprocess.run(["umount", "-l", disk], check=True)


def breakable(tmp_path: Path) -> tuple[str, Path]:
    """A folder for PATH with an `ip` that fails as long as there is a file."""
    tool, broken = tmp_path / "bin" / "ip", tmp_path / "broken"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n[ ! -e {broken} ] || {{ echo no >&2; exit 1; }}\nexec {IP} "$@"\n')
    tool.chmod(0o755)
    return str(tool.parent), broken


def test_what_cannot_be_taken_away_stays_ours(lab: Lab, tmp_path: Path) -> None:
    """`ip` fails for a while: tried again, and `clean` knows of it."""
    path, broken = breakable(tmp_path)
    before = lab["home"].kernel()
    _, home = both(lab, path=path)
    broken.touch()
    assert home.command("release").returncode == 0
    home.eventually(lambda: "cannot remove command=" in home.log())
    home.kill()                                # before `ip` works again: not between two commands for one address
    broken.unlink()
    assert home.command("clean").returncode == 0
    assert changes(before, lab["home"].kernel()) == []


def test_what_could_not_be_made_is_not_ours(lab: Lab, tmp_path: Path) -> None:
    """An operator has made it meanwhile: it stays, whatever ddpd does."""
    path, broken = breakable(tmp_path)
    broken.touch()
    _, home = both(lab, path=path)
    home.eventually(lambda: "cannot install command=" in home.log())
    lab["home"].address("br-lan", "10.64.7.1/24")
    by_hand = addresses(lab["home"])
    broken.unlink()
    home.eventually(lambda: "2001:db8:42:" in lab["home"].look("addr show dev up"), 45)
    assert home.command("release").returncode == 0
    home.eventually(lambda: home.status()["held"] == [])
    home.stop()
    assert home.command("clean").returncode == 0
    assert addresses(lab["home"]) == by_hand == ["10.64.7.1/24"]


def test_a_record_of_what_is_gone_takes_nothing_of_the_operators(lab: Lab) -> None:
    """The interface went, then the lease: an equal address that is made later is not ours."""
    _, home = both(lab)
    had = lab["home"].addresses("br-lan")
    lab["home"].ip("link del dev br-lan")
    home.command("release")
    home.eventually(lambda: home.status()["held"] == [])
    home.stop()
    lab["home"].bridge("br-lan", "lan")
    lab["home"].address("br-lan", *had)
    home.command("clean")
    assert lab["home"].addresses("br-lan") == had
