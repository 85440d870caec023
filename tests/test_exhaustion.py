"""What a machine has none of any more, and files that somebody has touched: it is survived, and said."""

from __future__ import annotations

import _thread
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ddpd
from test_grantor import AT, HOME, HUB, KEYS, Hub, Pair, grantee, want

NOW = ddpd.Now(1000.0, 1_700_000_000.0)
Said = pytest.CaptureFixture[str]


def full(*_: Any, **__: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


# ---- no thread, no descriptor

@pytest.fixture
def resolver() -> Iterator[ddpd.Resolver]:
    made = ddpd.Resolver()
    yield made
    os.close(made.readable)
    os.close(made.writable)


def test_where_no_thread_can_be_started_a_name_has_no_address_yet(
        resolver: ddpd.Resolver, monkeypatch: pytest.MonkeyPatch, capfd: Said) -> None:
    def none(*_: object) -> int:
        raise RuntimeError("can't start new thread")
    found = [ddpd.Path("2001:db8::1", 0)]
    monkeypatch.setattr(_thread, "start_new_thread", none)
    resolver.look_up("exit", "exit.example")
    assert list(resolver.results()) == [("exit", "exit.example", ())]
    assert "cannot look up exit.example: can't start new thread" in capfd.readouterr().err
    resolver.look_up("exit", "2001:db8::1")                       # needs none
    assert list(resolver.results()) == [("exit", "2001:db8::1", tuple(found))]
    monkeypatch.setattr(_thread, "start_new_thread", lambda work, words: work(*words))
    monkeypatch.setattr(ddpd, "look_up", lambda _, flags=0: full() if flags else found)
    resolver.look_up("exit", "exit.example")                      # the next time there is one
    assert list(resolver.results()) == [("exit", "exit.example", tuple(found))]


def test_where_no_descriptor_is_left_the_control_socket_rests(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be readable, and nobody let in, in a busy loop."""
    class Deaf:
        def accept(self) -> None:
            raise OSError(errno.EMFILE, "Too many open files")
    controls = ddpd.Controls(str(tmp_path / "sock"))
    daemon, sock = ddpd.Daemon.__new__(ddpd.Daemon), controls.sock
    monkeypatch.setattr(controls, "sock", Deaf())
    controls.serve(daemon, [controls.sock], NOW)
    assert controls.sockets() == [] and NOW.boot < controls.deadline() <= NOW.boot + 1
    later = NOW._replace(boot=controls.deadline())
    controls.serve(daemon, [], later)
    assert controls.sockets() == [controls.sock]
    controls.sock = sock
    controls.close()


# ---- the lease file

ODD_NAMES = ["eth0+dmz", "wan~1", "br-lan:0", "a.b@c"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_interface_of_any_name_lives_through_the_lease_file(name: str) -> None:
    hub = Hub(HOME + grantee("alice").replace("route = none\n", ""), [])
    links = ddpd.Links({1: name}, ((1, ddpd.parse_interface("2001:db8:e::1/64")),))
    hub.grantor.links = links
    hub.ask("alice", want(0), source=ddpd.parse_host("2001:db8:e::2"))
    [before] = hub.peer("alice").leases
    assert before.reach == ddpd.Reach("2001:db8:e::2", name)
    hub.restart()                                                 # which asserts that no line is damaged
    [after] = hub.peer("alice").leases
    assert (after.prefix, after.reach) == (before.prefix, before.reach)
    made = ddpd.Address(name, ddpd.parse_interface("2001:db8::1/64"))
    assert ddpd.made_of(made.record()) == made


@pytest.mark.parametrize("name", ["eth0;reboot", "$(x)", "é", "a'b", "-"])
def test_an_interface_whose_name_is_no_word_has_no_route(name: str) -> None:
    """The kernel allows it; `ip -batch` and the lease file would not survive all of them."""
    hub = Hub(HOME + grantee("alice").replace("route = none\n", ""), [])
    hub.grantor.links = ddpd.Links({1: name}, ((1, ddpd.parse_interface("2001:db8:e::1/64")),))
    hub.ask("alice", want(0), source=ddpd.parse_host("2001:db8:e::2"))
    [lease] = hub.peer("alice").leases
    assert (lease.reach is None) == (name != "-")
    hub.restart()
    assert hub.living() == [lease.prefix]


def kinds() -> Iterator[ddpd.Record]:
    """A record of each kind that is on file."""
    pair = Pair()
    pair.trip()
    now = pair.now
    yield from (record for record in pair.hub.node.records(False, now))
    yield from (record for record in pair.leaf.records(False, now) if record["kind"] != "run")
    yield ddpd.Address("br0", ddpd.parse_interface("2001:db8::1/64")).record()
    yield {"kind": "recovering", "left": 60}


@pytest.mark.parametrize("long", ["x" * 400, 10**400, 10**39, "9" * 400, ["x" * 400], " " * 400])
def test_what_somebody_made_longer_than_a_line_is_no_trouble_at_the_next_start(long: Any) -> None:
    """A line that is too long may be read; what is written of it is as wide as a line, or it is damaged."""
    for record in kinds():
        for name in [*record, "more", "serial"]:
            line = json.dumps({"serial": 1, **record, name: long})
            found, damage = ddpd.parse_lease_file(["[" + json.dumps({"kind": "file", "version": 1}), "," + line, "]"])
            for node in (Pair().hub.node, Pair().fresh_leaf()):
                damage += node.restore([each for _, each in found.values()], NOW)
                file = ddpd.LeaseFile(max((each["serial"] for _, each in found.values()), default=0))
                assert {len(row) for row in list(file.whole(node.records(False, NOW)))[:-1]} <= {ddpd.LINE}


# ---- commands that cannot write say so

class Bare:
    """A kernel in which nothing is."""

    def __init__(self, *_: object) -> None:
        self.installed: dict[ddpd.Key, ddpd.Thing] = {}
        self.busybox = False

    def nothing(self, *_: object) -> dict[Any, Any]:
        return {}

    look = look_at_all = left_behind = strays = run = remove = nothing


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text(ddpd.show_key(HUB) + "\n")
    (tmp_path / "key").chmod(0o600)
    path = tmp_path / "ddpd.conf"
    path.write_text(f"[ddpd]\nkey = {tmp_path}/key\nleases = {tmp_path}/l.json\ncontrol = {tmp_path}/c.sock\n"
                    f"[grantor exit]\nkey = {ddpd.show_key(KEYS['alice'])}\naddress = ::1\nask = ::/56\n")
    held = ddpd.Held(0, ddpd.parse_prefix("2001:db8:42::/56"), bytes(20), 5e3, 6e3).record(KEYS["alice"], "b", NOW)
    made = ddpd.Address("br0", ddpd.parse_interface("2001:db8:42::1/64")).record()
    store = ddpd.Store(str(tmp_path / "l.json"))
    store.rewrite([held, made])
    os.close(store.fd)
    return path


@pytest.mark.parametrize("is_full", [True, False])
@pytest.mark.parametrize(("command", "says"), [
    (["clean"], "removed 0, but"), (["release", "exit"], "given back, but")])
def test_a_command_that_cannot_write_says_so(command: list[str], says: str, is_full: bool, conf: Path, capsys: Said,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpd, "Kernel", Bare)
    monkeypatch.setattr(ddpd, "ask_once", lambda *_: True)
    if is_full:
        monkeypatch.setattr(os, "pwrite", full)
    code, said = ddpd.main([*command, "-c", str(conf)]), capsys.readouterr().err
    left = {row["kind"] for row in json.loads((conf.parent / "l.json").read_text())} - {"file"}
    if is_full:
        assert code not in (0, 3) and says in said and "cannot be written" in said and left == {"made", "held"}
    else:
        assert (code, said) == (0, "") and left == {"held" if command == ["clean"] else "made"}


# ---- files of others

def test_handlers_that_belong_to_somebody_else_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "site.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    file.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(file, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ddpd.ConfigError, match="belongs to somebody else"):
        ddpd.load_handlers(str(file))
    assert not (tmp_path / "ran").exists()


# ---- `[ ddpd ]`

@pytest.mark.parametrize("head", ["[ddpd]", "[ ddpd ]", "[ddpd ]  ; ours", "[\tddpd\t]"])
def test_blanks_in_a_head_are_none_for_the_daemon_nor_for_a_command(head: str, tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_text(f"{head}\ncontrol = /run/ours.sock\n[ pool  home ]\nprefix = 2001:db8::/48\ngive = /56\n")
    config = ddpd.load_config(str(path))
    assert (config.control, [pool.name for pool in config.pools]) == ("/run/ours.sock", ["home"])
    assert ddpd.load_main(str(path)).control == "/run/ours.sock"


@pytest.mark.parametrize("head", ["[grantee alice]", "[ grantee  alice ]"])
def test_blanks_in_a_head_cost_no_grantee_its_agreement(head: str, tmp_path: Path) -> None:
    """Its own file goes wrong: what it said before goes on."""
    conf, own = tmp_path / "c", tmp_path / "grantees" / "file"
    own.parent.mkdir()
    conf.write_text(f"[ddpd]\ngrantees = {own.parent}\n{HOME}")
    own.write_text(f"{head}\nkey = {ddpd.show_key(KEYS['alice'])}\npools = home\n")
    before = ddpd.load_config(str(conf))
    own.write_text(own.read_text().replace("= home", "= none"))
    assert list(ddpd.load_config(str(conf), before).agreements) == [KEYS["alice"]]


# ---- who is known

FORGETS = f"[ddpd]\nhold = 60s\n{HOME}"


def remove(pair: Pair) -> None:
    """Until its leases are over and it is forgotten."""
    for _ in range(3):
        pair.hub.configure(FORGETS, who=["bob"])
        pair.hub.later(3601)
    assert KEYS["alice"] not in pair.hub.grantor.peers


def test_who_was_removed_and_is_there_again_goes_on_in_its_session() -> None:
    pair = Pair(FORGETS)
    pair.trip()
    pair.trip()
    session = pair.leaf.initiators["h"].session
    remove(pair)
    with pytest.raises(ddpd.Stranger) as caught:
        pair.hear(pair.ask())
    assert caught.value.is_proved
    pair.hub.configure(FORGETS)
    pair.trip()
    assert pair.leaf.initiators["h"].session is session
    assert pair.held == {str(prefix) for prefix in pair.hub.living()}


def test_an_old_session_of_who_was_removed_and_is_there_again_is_old() -> None:
    """What was held back in it does not count once another has been used."""
    pair = Pair(FORGETS)
    pair.trip()
    pair.trip()
    remove(pair)
    pair.hub.configure(FORGETS)
    pair.trip()
    pair.leaf.operate(ddpd.Event.RELEASE, "h", pair.now)
    release = pair.ask()
    pair.leaf.operate(ddpd.Event.RENEW, "h", pair.now)
    pair.leaf.initiators["h"].session = None
    pair.trip()
    with pytest.raises(ddpd.Drop, match="session replaced"):
        pair.hear(release)
    assert {str(prefix) for prefix in pair.hub.living()} == pair.held


def test_an_old_ask_of_who_was_removed_and_is_there_again_counts_for_nothing() -> None:
    pair = Pair()
    first = pair.ask()
    pair.apply(pair.hear(first))
    pair.trip()
    for who in (["bob"], KEYS):
        pair.hub.configure(HOME, who=who)
        pair.hub.later(1)
    before = [(lease.prefix, lease.valid_until) for lease in pair.hub.peer("alice").leases]
    pair.hear(first)
    assert [(lease.prefix, lease.valid_until) for lease in pair.hub.peer("alice").leases] == before
    assert pair.hub.node.counters["sent_stale"] == 1


def strange(pair: Pair, own: bool) -> bytes:
    """A first ask that names carol's key, by who has it, or by somebody who knows only that."""
    theirs = ddpd.keypair(bytes([3]) * 32)
    pair.leaf.initiators["h"].s = theirs if own else ddpd.KeyPair(ddpd.keypair(bytes([9]) * 32).secret, theirs.public)
    return pair.ask()


@pytest.mark.parametrize("own", [True, False], ids=["its own key", "another's"])
def test_a_key_is_offered_for_admission_only_by_who_has_it(own: bool, capfd: Said) -> None:
    pair = Pair()
    pair.hub.configure(HOME, who=["alice"])
    talker = ddpd.Talker.__new__(ddpd.Talker)
    talker.node = pair.hub.node
    assert talker.handle_datagram(strange(pair, own), AT, "", pair.now) == []
    said = capfd.readouterr().err
    assert (f"[grantee NAME] key = {ddpd.show_key(KEYS['carol'])}" in said) == own and ("to_admit" in said) == own
    assert pair.hub.node.counters["drop stranger"] == 1
