"""What an operator sees, asks and takes back: show, explain, leases, revoke, metrics, status; and junk for an order.

    explain     one row for every handler and reason; it changes nothing; it agrees with what is then answered
    show        by name, key, letters; never a secret or a ticket
    leases      of all, one peer, an address, a prefix
    revoke      at once, for `hold`, and back again
    metrics     a strict reader of Prometheus' text format
    status      in a pipe, on a terminal, with a broken configuration
    junk        wrong types for every field of every order: the daemon goes on
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("noise.connection", reason="pip install noiseprotocol")

import ddpd
import peer
from daemon import Daemon
from peer import Want
from test_grantor import HOME, KEYS, TINY, Hub, want
from test_handlers import ANY_56, World, held, put, says, site

Said = pytest.CaptureFixture[str]
PIN = "2001:db8:42:ff00::/56"
V4 = "[pool four]\nprefix = 192.0.2.0/28\ngive = /30-/32\nlifetime = 1h\n"


# ==== explain, every row ====

class Told(NamedTuple):
    """Of one slot: which handler decided, and what."""

    by: str
    prefix: str | None = None
    reason: str | None = None
    text: str | None = None
    again: int | None = None
    valid: int | None = None


def explained(hub: Hub, name: str, text: str) -> Told:
    said = ddpd.explained(hub.node, name, text, hub.now)
    json.dumps(said)
    deciding = [step["handler"] for step in said["steps"] if step["says"] == "decides"]
    assert deciding == ([] if said["handler"] == "nobody" else [said["handler"]])
    assert not deciding or said["steps"][-1]["says"] == "decides"
    assert ("refused" in said) != ("prefix" in said)
    assert all(name in ddpd.explained_text(said) for name in deciding)
    prefix = None if said.get("random") else said.get("prefix")
    return Told(said["handler"], prefix, said.get("refused"), said.get("text"), said.get("again"), said.get("valid"))


def answered(hub: Hub, name: str, text: str) -> Told:
    line = ddpd.parse_line(text)
    answer = hub.ask(name, ddpd.Want(line.slot or 0, line.prefix))
    [(_, by)] = hub.grantor.by
    for refused in answer.refusals:
        return Told(by, None, ddpd.reason_name(refused.reason), refused.text, refused.again_s)
    [grant] = [grant for grant in answer.grants if grant.current]
    return Told(by, None if by == "drawn" else str(grant.prefix), valid=grant.valid_s)


def kept(hub: Hub) -> None:
    hub.ask("alice", want(0, "::/56"))


def changed(config: str, more: str = "limit = 4") -> Callable[[Hub], None]:
    def change(hub: Hub) -> None:
        kept(hub)
        hub.configure(config, more=more)
    return change


def revoked(hub: Hub) -> None:
    kept(hub)
    hub.node.revoke(hub.peer("alice"), None, hub.now)


def released(hub: Hub) -> None:
    kept(hub)
    hub.ask("alice", releases=(0,))


def full_disk(hub: Hub) -> None:
    hub.grantor.disk_full = True


def recovering(hub: Hub) -> None:
    hub.grantor.recovering_until = hub.now.boot + 90


def spent(hub: Hub) -> None:
    hub.ask("alice", want(5), want(6))


def taken(hub: Hub) -> None:
    hub.ask("bob", want(0))
    hub.ask("carol", want(0))


def pin_taken(hub: Hub) -> None:
    hub.ask("bob", want(0, "::/56"))
    first = hub.peer("bob").leases[0].prefix
    config = hub.text.replace(f"{ddpd.show_key(KEYS['alice'])}\n", f"{ddpd.show_key(KEYS['alice'])}\npin = {first}\n")
    hub.node.reconfigure(ddpd.read_config(config, "t"), hub.now)


def unpaid(hub: Hub) -> None:
    site(hub, before_pins=says(ddpd.Refuse("unpaid", 99)))


def assigned(hub: Hub) -> None:
    site(hub, after_pools=says("2001:db8:77::/56"))


def nobody(hub: Hub) -> None:
    site(hub, instead_of_pools=says(None))


UP = f"[grantor up]\nkey = {ddpd.show_key(bytes(range(7, 39)))}\naddress = ::1\nask = ::/40\n"
RATED = "[ddpd]\nrate = 2/1h\n" + HOME
MOVED = HOME.replace("2001:db8:42::", "2001:db8:43::")


class Row(NamedTuple):
    config: str
    more: str
    before: Callable[[Hub], object]
    ask: str
    by: str
    what: str                            # the reason, or a prefix, or nothing


def nothing(_: Hub) -> None:
    pass


ROWS = [
    Row(HOME, "until = 2001-01-01",       nothing,      "::/56",       "ended",        "ENDED"),
    Row(HOME, "limit = 4",                revoked,      "HELD",        "revoked",      "REVOKED"),
    Row(HOME, "limit = 4",                nothing,      "0.0.0.0/32",  "admitted",     "NO_POOL"),
    Row(HOME, "limit = 4",                full_disk,    "::/56",       "admitted",     "DISK"),
    Row(HOME.replace("2001:db8:42::/48", "grantor up") + UP, "", nothing, "::/64", "admitted", "RECOVERING"),
    Row(HOME, "limit = 4\ntotal = ::/58", nothing,      "::/56",       "sized",        "LIMIT"),
    Row(HOME, "limit = 4\nrate = 2/1h",   spent,        "::/56",       "rated",        "RATE"),
    Row(RATED, "limit = 4",               spent,        "::/56",       "rated",        "RATE"),
    Row(HOME, "limit = 4",                kept,         "::/56",       "kept",         "HELD"),
    Row(HOME, "limit = 4",                kept,         "HELD",        "kept",         "HELD"),
    Row(HOME, "limit = 4",                kept,         "3: ::/56",    "drawn",        ""),
    Row(HOME, "limit = 4",                full_disk,    "::/48",       "admitted",     "DISK"),
    Row(HOME, "limit = 4",                pin_taken,    "::/56",       "pinned",       "FULL"),
    Row(HOME, "limit = 4",                nothing,      "::/48",       "right_length", "LENGTH"),
    Row(HOME, "limit = 4\nlengths = /64", nothing,      "::/56",       "right_length", "LENGTH"),
    Row(HOME, "limit = 4",                released,     "::/56",       "remembered",   "HELD"),
    Row(HOME, "limit = 4",                recovering,   "::/56",       "recovered",    "RECOVERING"),
    Row(HOME, "limit = 4",                changed(MOVED), "::/56",     "moved",        "MOVED"),
    Row(HOME, "limit = 4",                nothing,      "::/56",       "drawn",        ""),
    Row(TINY, "limit = 4",                taken,        "::/64",       "drawn",        "FULL"),
    Row(HOME, "limit = 4",                unpaid,       "::/56",       "before_pins",  "SITE"),
    Row(HOME, "limit = 4",                assigned,     "::/56",       "after_pools",  "2001:db8:77::/56"),
    Row(HOME, "limit = 4",                nobody,       "::/56",       "nobody",       "NO_POOL"),
]


def test_every_handler_and_reason_has_a_row() -> None:
    """But `claimed`, which needs a ticket, and CLONE, which is noticed before the chain."""
    handlers = {handler.__name__ for handlers in ddpd.Grantor.STAGES.values() for handler in handlers}
    assert handlers - {row.by for row in ROWS} == {"claimed"}
    assert {reason.name for reason in ddpd.Reason} - {row.what for row in ROWS} == {"CLONE"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.by}-{row.what}-{row.ask}")
def test_what_is_explained_is_what_is_answered(row: Row) -> None:
    hub = Hub(row.config, more=row.more)
    row.before(hub)
    first = next((str(lease.prefix) for lease in hub.grantor.peers[KEYS["alice"]].leases), "") \
        if KEYS["alice"] in hub.grantor.peers else ""
    before = snapshot(hub)
    told = explained(hub, "alice", row.ask.replace("HELD", first))
    assert snapshot(hub) == before
    assert told.by == row.by
    expected = {"HELD": first, "MOVED": first.replace(":42:", ":43:"), "": None}.get(row.what, row.what)
    assert expected == (told.reason or told.prefix)
    assert told == answered(hub, "alice", row.ask.replace("HELD", first))


def test_a_pin_is_explained() -> None:
    hub = Hub(who=["alice"], more=f"limit = 2\npin = {PIN}")
    for text in ("::/56", "::/60", "7: ::/64"):
        assert explained(hub, "alice", text)[:2] == ("pinned", PIN)
    assert answered(hub, "alice", "::/56")[:2] == ("pinned", PIN)
    assert explained(hub, "alice", "::/56")[:2] == ("kept", PIN)


@pytest.mark.parametrize(("peer_", "ask", "says_"), [
    ("nobody", "::/56", "no grantee named 'nobody': a stranger gets no answer"), ("", "::/56", "no grantee named ''"),
    ("alice", "", "is not an ask"), ("alice", "nonsense", "nonsense"), ("alice", "::1/56", "host bits"),
    ("alice", "::/8", "too large"), ("alice", "300: ::/56", "300"), ("alice", "::/56 on", "is not an ask"),
    ("alice", "::/999", "999"), ("alice", "0: ::/56 ::/56", "is not an ask"),
])
def test_what_cannot_be_explained(peer_: str, ask: str, says_: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says_)):
        ddpd.explained(Hub().node, peer_, ask, ddpd.Now(0.0, 0.0))


def test_a_status_file_has_so_many_leases_and_no_key_of_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(more="limit = 4")
    hub.ask("alice", want(0), want(1), want(2))
    monkeypatch.setattr(ddpd, "FILE_ROWS", 2)
    text = ddpd.status_file_text(hub.node, hub.now)
    said, shown = ddpd.status_of(hub.node, hub.now, 2), json.loads(text)
    assert shown.pop("uptime") == int(hub.now.boot) and text.startswith(ddpd.OUR_STATUS) and text.endswith("}\n")
    assert len(shown["granted"]) == 2 and shown["granted_in_all"] == 3
    assert ddpd.show_key(KEYS["alice"]) not in text
    for row in said["granted"]:
        del row["key"]
    assert shown == said


def snapshot(hub: Hub) -> Any:
    """All that an ask could change."""
    grantor = hub.grantor
    peers = {name: (peer.stamp, peer.run, peer.full_at, peer.nudged, peer.glass, [
        (lease.id, lease.state, lease.valid_until, lease.heard, lease.serial) for lease in peer.leases])
        for name, peer in grantor.peers.items()}
    leaves = {name: list(space.leaves(space.root)) for name, space in grantor.stock.spaces.items()}
    return (peers, leaves, list(grantor.former), grantor.full_at, grantor.recovering_until, set(grantor.restless),
            dict(hub.node.counters), list(hub.node.records(False, hub.now)), set(hub.node.wanted.changed),
            ddpd.status_of(hub.node, hub.now, 1000))


# ==== explain, random worlds ====

def random_world(dice: random.Random) -> Hub:
    lines = [f"limit = {dice.choice([1, 2, 3, 9])}"]
    lines += dice.sample(["total = ::/55 0.0.0.0/29", "rate = 3/10m", "lengths = /56 /60 /64 /32", "lifetime = 20m-2h",
                          "until = 2023-11-15"], dice.randrange(3))
    home = dice.choice([HOME, HOME.replace("::/48", "::/54"), TINY, HOME + "reserve = 2001:db8:42::/52\n"])
    hub = Hub("[ddpd]\nhold = 1h\n" + dice.choice(["", "rate = 8/20m\n"]) + home + V4, more="\n".join(lines))
    hub.text = hub.text.replace("pools = home", dice.choice(["pools = home", "pools = home four"]))
    hub.node.reconfigure(ddpd.read_config(hub.text, "t"), hub.now)
    return hub


def random_ask(dice: random.Random, hub: Hub) -> tuple[str, str]:
    name = dice.choice(list(KEYS))
    known = [str(lease.prefix) for peer in hub.grantor.peers.values() for lease in peer.leases]
    wants = dice.choice(["::/56", "::/60", "::/64", "0.0.0.0/32", "0.0.0.0/30", "::/52", *known[:6]])
    return name, f"{dice.randrange(3)}: {wants}"


def random_event(dice: random.Random, hub: Hub) -> None:
    what, name = dice.random(), dice.choice(list(KEYS))
    if what < 0.3:
        hub.later(dice.choice([1, 60, 600, 1900, 3700]))
    elif what < 0.4:
        hub.ask(name, releases=(dice.randrange(3),))
    elif what < 0.45:
        hub.node.revoke(hub.peer(name), dice.choice([None, 0, 1]), hub.now)
    elif what < 0.5:
        hub.node.forgive(hub.peer(name), None, hub.now)
    elif what < 0.55:
        hub.grantor.disk_full = not hub.grantor.disk_full
    elif what < 0.6:
        hub.grantor.recovering_until = hub.now.boot + dice.choice([-1, 300])


@pytest.mark.parametrize("seed", range(12))
def test_explain_agrees_in_random_worlds(seed: int) -> None:
    dice = random.Random(seed)
    hub, by = random_world(dice), set()
    for _ in range(60):
        random_event(dice, hub)
        name, text = random_ask(dice, hub)
        before = snapshot(hub)
        told = explained(hub, name, text)
        assert snapshot(hub) == before, (name, text)
        assert told == answered(hub, name, text), (name, text)
        by.add(told.by)
    assert len(by) > 2


# ==== explain, with a daemon and without ====

def run(capsys: Said, daemon: Daemon, *argv: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = ddpd.main(["-c", str(daemon.config), *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out, said.err


def steady(world: World) -> Any:
    """What of the status does not go by itself, and the lease file."""
    status = world.daemon.status()
    for row in status["granted"]:
        row["preferred"] = row["valid"] = row["age"] = 0
    status["counters"].pop("sent_nudge", None)                # what is nudged is nudged again
    return status, (world.daemon.dir / "leases.json").read_bytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two pools, one of them full; alice has three leases, bob a pin, carol nothing."""
    pools = HOME + "dns = 2001:db8:42::53\n" + V4 + "[pool tiny]\nprefix = 2001:db8:7::/64\ngive = /64\nlifetime = 2h\n"
    who = {"alice": "pools = home four tiny\nlimit = 4", "bob": f"pools = home\npin = {PIN}", "carol": "",
           "dave": "pools = tiny"}
    with World(tmp_path_factory.mktemp("looking"), who, pools=pools) as world:
        world.ask("alice", ANY_56, Want(1, "::/64"), Want(2, "0.0.0.0/32"), hostname="alice.example")
        world.ask("bob")
        world.ask("dave", Want(0, "::/64"))
        yield world


ASKS = [("alice", "::/56", "kept"), ("alice", "3: ::/56", "drawn"), ("bob", "::/60", "kept"),
        ("carol", "::/48", "right_length"), ("carol", "0.0.0.0/32", "admitted"), ("dave", "1: ::/64", "drawn")]


@pytest.mark.slow
def test_explain_with_a_daemon_changes_nothing(world: World, capsys: Said) -> None:
    before = steady(world)
    for name, text, by in ASKS:
        code, out, err = run(capsys, world.daemon, "explain", name, *text.split(), "--json")
        assert (code, err) == (0, "") and json.loads(out)["handler"] == by
        code, out, err = run(capsys, world.daemon, "explain", name, *text.split())
        assert (code, err) == (0, "") and out.startswith(f"{name} asks {text.split()[-1]} in slot ")
        assert out.splitlines()[-1].startswith("answer: ") and out.splitlines()[-2].endswith(("yes", "decides"))
    assert steady(world) == before


@pytest.mark.slow
@pytest.mark.parametrize(("words", "says_"), [
    (["nobody", "::/56"], "no grantee named 'nobody'"), (["alice", "junk"], "junk"), ([], "which peer?"),
    (["alice", "::/56", "on"], "is not an ask")])
def test_explain_says_what_it_does_not_know(world: World, capsys: Said, words: list[str], says_: str) -> None:
    code, out, err = run(capsys, world.daemon, "explain", *words)
    assert (code, out) == (2, "") and says_ in err and err.count("\n") == 1


@pytest.mark.slow
def test_explain_without_a_daemon(tmp_path: Path, capsys: Said) -> None:
    """From the lease file as it lies there; nothing is written, made or locked."""
    with World(tmp_path, {"alice": "limit = 2", "bob": ""}) as world:
        prefix = world.prefix("alice")
        online = run(capsys, world.daemon, "explain", "alice", "::/56", "--json")
        world.daemon.stop()
        before = files(tmp_path)
        offline = run(capsys, world.daemon, "explain", "alice", "::/56", "--json")
        assert json.loads(offline[1]) == json.loads(online[1])
        assert json.loads(offline[1])["prefix"] == prefix and json.loads(offline[1])["handler"] == "kept"
        assert json.loads(run(capsys, world.daemon, "explain", "bob", "::/56", "--json")[1])["random"]
        assert run(capsys, world.daemon, "explain", "nobody", "::/56")[0] == 2
        assert files(tmp_path) == before


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(folder.rglob("*"))
            if file.is_file() and not file.is_socket()}


@pytest.mark.slow
def test_explain_without_a_daemon_and_without_a_lease_file(tmp_path: Path, capsys: Said) -> None:
    """As the next start would answer: never granted, anything goes; else it recovers."""
    with World(tmp_path, {"alice": ""}) as world:
        world.daemon.stop()
        (world.daemon.dir / "leases.json").unlink()
        before = files(tmp_path)
        assert json.loads(run(capsys, world.daemon, "explain", "alice", "::/56", "--json")[1])["handler"] == "drawn"
        assert files(tmp_path) == before
        put(world.daemon.dir / "key.granted", "")
        code, out, _ = run(capsys, world.daemon, "explain", "alice", "::/56", "--json")
        assert code == 0 and json.loads(out).get("refused") == "RECOVERING"


@pytest.mark.slow
def test_explain_without_a_daemon_runs_the_sites_handlers(tmp_path: Path, capsys: Said) -> None:
    refusing = "def before_pins(asked, so_far): return Refuse('unpaid by ' + asked.grantee)\n"
    world = World(tmp_path, {"alice": ""}, refusing)
    said = json.loads(run(capsys, world.daemon, "explain", "alice", "::/56", "--json")[1])
    assert (said["refused"], said["text"]) == ("SITE", "unpaid by alice")
    put(world.site, "def before_pins(\n")
    code, out, err = run(capsys, world.daemon, "explain", "alice", "::/56")
    assert (code, out) == (2, "") and err.startswith(f"ddpd: {world.site}:1: SyntaxError")


@pytest.mark.parametrize("command", [["explain", "alice", "::/56"], ["show", "alice"], ["status"], ["metrics"],
                                     ["leases"], ["revoke", "alice"], ["reload"]])
def test_a_daemon_that_hangs_up(tmp_path: Path, capsys: Said, command: list[str]) -> None:
    """One line, and no traceback."""
    world = World(tmp_path, {"alice": ""})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(world.daemon.dir / "ddpd.sock"))
        sock.listen(1)
        thread = threading.Thread(target=lambda: sock.accept()[0].close())
        thread.start()
        code, out, err = run(capsys, world.daemon, *command)
        thread.join()
    assert (code, out) == (2, "") and "no daemon answers at" in err


# ==== show ====

@pytest.mark.slow
def test_show_by_name_key_or_letters(world: World, capsys: Said) -> None:
    key = base64.b64encode(world.peers["alice"].public).decode()
    shown = [json.loads(run(capsys, world.daemon, "show", what, "--json")[1]) for what in ("alice", key, key[:8])]
    for row in itertools.chain.from_iterable(said["leases"] for said in shown):
        row["preferred"] = row["valid"] = row["age"] = 0
    for said in shown:
        said["ago"] = 0
    assert shown[0] == shown[1] == shown[2]
    said = shown[0]
    assert (said["grantee"], said["key"], said["hostname"], said["clone"]) == ("alice", key, "alice.example", False)
    assert said["agreement"]["limit"] == 4 and said["agreement"]["pools"] == ["home", "four", "tiny"]
    assert [row["slot"] for row in said["leases"]] == [0, 1, 2] == [row["slot"] for row in said["by"]]
    assert {row["handler"] for row in said["by"]} == {"drawn"}
    assert [row["prefix"] for row in said["ask"]["wants"]] == ["::/56", "::/64", "0.0.0.0/32"]
    assert [row["prefix"] for row in said["answer"]["grants"]] == [row["prefix"] for row in said["leases"]]
    assert said["answer"]["dns"] == ["2001:db8:42::53/128"] or said["answer"]["dns"] == ["2001:db8:42::53"]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["nobody", "", "AAAAAAAA", "alic", "::/0"])
def test_show_of_nobody(world: World, capsys: Said, what: str) -> None:
    code, out, err = run(capsys, world.daemon, "show", what)
    assert (code, out, err) == (2, "", f"ddpd: no peer named '{what}'\n")


@pytest.mark.slow
def test_seven_letters_are_too_few(world: World, capsys: Said) -> None:
    key = base64.b64encode(world.peers["alice"].public).decode()
    assert run(capsys, world.daemon, "show", key[:7])[0] == 2


@pytest.mark.slow
def test_show_of_one_who_never_asked(world: World, capsys: Said) -> None:
    said = json.loads(run(capsys, world.daemon, "show", "carol", "--json")[1])
    assert said["grantee"] == "carol" and not said["leases"] and not said.keys() & {"ask", "answer", "by", "ago"}
    code, out, _ = run(capsys, world.daemon, "show", "carol")
    assert code == 0 and "\ngrantee" in "\n" + out


def secrets_in(text: str, secrets: Iterable[bytes]) -> list[str]:
    """In any way in which JSON or a person would write them."""
    forms = (form for secret in secrets
             for form in (secret.hex(), base64.b64encode(secret).decode().rstrip("="), str(secret)))
    return [form for form in forms if form.lower() in text.lower()]


@pytest.mark.slow
def test_no_secret_and_no_ticket_is_ever_shown(world: World, capsys: Said) -> None:
    answer = world.ask("alice", ANY_56)
    again = world.said("alice", world.peers["alice"].sealed([held(answer)], length=512))
    session = world.peers["alice"].session
    assert session is not None
    keys = [bytes(state.k) for state in (session.sending, session.receiving)]
    tickets = [grant.ticket for one in (answer, again) for grant in one.grants]
    secrets = [world.hub, world.peers["alice"].private, *keys, *tickets, *(ticket[4:] for ticket in tickets)]
    assert all(len(set(secret)) > 8 for secret in secrets)
    told = [run(capsys, world.daemon, *words)[1] for words in (
        ["show", "alice"], ["show", "alice", "--json"], ["status", "--json"], ["leases", "--json"], ["metrics"],
        ["explain", "alice", "::/56", "--json"])]
    assert [secrets_in(text, secrets) for text in [*told, world.daemon.log()]] == [[]] * 7
    assert json.loads(told[1])["ask"]["wants"][0]["ticket"] is True            # there was one, and it was not told
    for secret in secrets:                                                     # the search can bark
        assert secrets_in(json.dumps({"ticket": secret.hex()}), secrets)
        assert secrets_in(base64.b64encode(secret).decode(), [secret])


@pytest.mark.slow
def test_show_of_a_grantor(world: World, tmp_path: Path, capsys: Said) -> None:
    """A node that asks: what its grantor said last, and what it holds of it."""
    key = base64.b64encode(peer.public_of(world.hub)).decode()
    config = (f"[grantor exit1]\nkey = {key}\naddress = [::1]:{world.port}\ninstall = no\nask = ::/56\n"
              f"      0.0.0.0/32\n")
    leaf = Daemon(config, tmp_path, "leaf")
    leaf.write_key(world.peers["carol"].private)
    with leaf:
        leaf.eventually(lambda: leaf.status()["held"])
        said = json.loads(run(capsys, leaf, "show", "exit1", "--json")[1])
        assert (said["name"], said["key"], said["state"], said["status"]) == ("exit1", key, "bound", "OK")
        assert said["at"] == f"[::1]:{world.port}" and said["answers"] >= 1
        assert said["held"] and [row["reason"] for row in said["refused"]] == ["NO_POOL"]
        assert said["options"]["dns"] == ["2001:db8:42::53"]
        code, out, _ = run(capsys, leaf, "show", "exit1")
        assert code == 0 and "prefix=" in out and "NO_POOL" in out
        assert run(capsys, leaf, "show", "exit2")[0] == 2
    assert world.prefix("carol")


# ==== leases ====

@pytest.mark.slow
def test_leases_by_everything(world: World, capsys: Said) -> None:
    def leases(*what: str) -> list[str]:
        code, out, err = run(capsys, world.daemon, "leases", *what, "--json")
        assert (code, err) == (0, "")
        return [row["prefix"] for row in json.loads(out)]

    everything = leases()
    of_alice = leases("alice")
    key = base64.b64encode(world.peers["alice"].public).decode()
    assert everything == sorted(everything, key=ddpd.parse_prefix) and set(of_alice) < set(everything)
    assert len(of_alice) == 3 and leases(key) == leases(key[:8]) == of_alice
    for prefix in everything:
        lease = ddpd.parse_prefix(prefix)
        assert leases(prefix) == leases(lease.host) == [prefix]
        assert prefix in leases(str(lease.network(lease.length - 1)))
    assert leases("2001:db8:42::/48") == [prefix for prefix in everything if prefix.startswith("2001:db8:42:")]
    assert leases("::/0") == [prefix for prefix in everything if ":" in prefix]
    assert leases("0.0.0.0/0") == [prefix for prefix in everything if ":" not in prefix]
    assert leases("2001:db8:9999::/48") == leases("2001:db8:9999::1") == leases("203.0.113.1") == []


@pytest.mark.slow
def test_leases_for_a_person(world: World, capsys: Said) -> None:
    code, out, _ = run(capsys, world.daemon, "leases", "alice")
    assert code == 0
    assert_aligned(out.splitlines(), "granted", "prefix")
    assert run(capsys, world.daemon, "leases", "2001:db8:9999::1")[:2] == (0, "no lease\n")
    code, out, err = run(capsys, world.daemon, "leases", "nonsense")
    assert (code, out) == (2, "") and "nonsense" in err


def slowly(daemon: Daemon, order: bytes) -> list[bytes]:
    """By one that says no more after its order, and takes its time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(daemon.dir / "ddpd.sock"))
        sock.sendall(order)
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        return b"".join(iter(lambda: sock.recv(1 << 16), b"")).splitlines()


@pytest.mark.slow
def test_leases_tells_all_of_many(tmp_path: Path, capsys: Said) -> None:
    """More than `status` shows and than one write takes; in order though they were not."""
    world = World(tmp_path, {"alice": "limit = 256"})
    order = random.Random(1).sample(range(5000), 5000)
    records = [{"kind": "granted", "key": ddpd.show_key(world.peers["alice"].public), "slot": n % 256,
                "prefix": f"2001:db8:42:{n:x}::/64", "state": "active", "valid": 3600, "left": 3600, "via": "",
                "dev": "", "since": 0, "epoch": 0} for n in order]
    put(world.daemon.dir / "leases.json", b"".join(ddpd.LeaseFile().whole(iter(records))).decode(), 0o600)
    with world:
        rows = json.loads(run(capsys, world.daemon, "leases", "--json")[1])
        assert [row["prefix"] for row in rows] == [
            str(ddpd.parse_prefix(f"2001:db8:42:{n:x}::/64")) for n in range(5000)]
        assert len(run(capsys, world.daemon, "leases")[1].splitlines()) == 5001
        assert len(slowly(world.daemon, b'{"do": "leases"}\n')) == 1 + 5000 + 1
        status = world.daemon.status()
        assert len(status["granted"]) == ddpd.MAX_SHOWN and status["granted_in_all"] == 5000
        assert "and 4800 more" in run(capsys, world.daemon, "status")[1]
        around = json.loads(run(capsys, world.daemon, "leases", "2001:db8:42:100::/56", "--json")[1])
        assert len(around) == 256


# ==== revoke ====

@pytest.mark.slow
def test_revoke_and_undo(tmp_path: Path, capsys: Said) -> None:
    with World(tmp_path, {"alice": "limit = 2", "bob": "limit = 2"}, pools=TINY) as world:
        first = world.ask("alice", Want(0, "::/64"), Want(1, "::/64"))
        mine = [held(first, slot) for slot in (0, 1)]
        assert run(capsys, world.daemon, "revoke", "alice", 0) == (0, f"{mine[0].prefix}\n", "")
        world.peers["alice"].read_nudge(world.wires["alice"].hear())
        answer = world.said("alice", world.peers["alice"].sealed(mine, length=512))
        assert [(refusal.slot, refusal.reason) for refusal in answer.refusals] == [(0, peer.REVOKED)]
        assert {str(grant.prefix): (grant.valid > 0, grant.flags) for grant in answer.grants} == {
            mine[0].prefix: (False, 0), mine[1].prefix: (True, 1)}
        assert [refusal.reason for refusal in world.ask("bob", Want(0, "::/64")).refusals] == [peer.FULL]
        rows = {row["prefix"]: row["state"] for row in
                json.loads(run(capsys, world.daemon, "leases", "alice", "--json")[1])}
        assert rows == {mine[0].prefix: "revoked", mine[1].prefix: "active"}
        world.daemon.kill()
        world.daemon.start()
        assert [refusal.reason for refusal in world.ask("bob", Want(0, "::/64")).refusals] == [peer.FULL]
        assert run(capsys, world.daemon, "revoke", "alice", "--undo") == (0, f"{mine[0].prefix}\n", "")
        assert str(world.ask("alice", *mine).preferred(0).prefix) == mine[0].prefix


@pytest.mark.slow
def test_revoke_all_and_have_another(tmp_path: Path, capsys: Said) -> None:
    with World(tmp_path, {"alice": "limit = 2", "bob": ""}) as world:
        key = base64.b64encode(world.peers["alice"].public).decode()
        first = world.ask("alice", ANY_56, Want(1, "::/64"))
        code, out, _ = run(capsys, world.daemon, "revoke", key[:8])
        assert code == 0 and sorted(out.split()) == sorted(str(grant.prefix) for grant in first.grants)
        assert world.daemon.status()["granted"] == []
        [refusal] = world.ask("alice", ANY_56).refusals                   # not at once: that it is over must get there
        assert refusal.reason == peer.REVOKED and 50 <= refusal.again <= 60
        assert world.logged("revoked grantee=alice slot=0")


@pytest.mark.slow
@pytest.mark.parametrize(("words", "says_"), [
    ([], "which peer?"), (["nobody"], "'nobody' has no such lease"), (["carol", "9"], "'carol' has no such lease"),
    (["alice", "77"], "'alice' has no such lease"), (["alice", "256"], "256"),
    (["alice", "x"], "'x' is not a whole number"),
    (["alice", "-1"], "no such option: -1"), (["alice", "--undo"], "'alice' has no such lease"),
    (["alice", "0", "1"], "revoke takes no '1'"),
])
def test_revoke_of_nothing(world: World, capsys: Said, words: list[str], says_: str) -> None:
    before = steady(world)
    code, out, err = run(capsys, world.daemon, "revoke", *words)
    assert (code, out) == (2, "") and says_ in err and err.count("\n") == 1
    assert steady(world) == before


# ==== metrics ====

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|NaN|[+-]Inf)")
KINDS = {"counter", "gauge", "histogram", "summary", "untyped"}


def read_metrics(text: str) -> dict[tuple[str, str], float]:
    """Strictly: HELP, TYPE, then all samples of one metric; nothing twice; a line feed at the end."""
    assert text.endswith("\n") and "\n\n" not in text
    found: dict[tuple[str, str], float] = {}
    seen: list[str] = []
    lines = text.splitlines()
    for n, line in enumerate(lines):
        if line.startswith("# HELP "):
            name = re.fullmatch(rf"# HELP ({NAME}) ([^\\]*)", line)
            assert name and name[1] not in seen, line
            seen.append(name[1])
            kind = re.fullmatch(rf"# TYPE {name[1]} (\w+)", lines[n + 1])
            assert kind and kind[1] in KINDS, lines[n + 1]
            assert (kind[1] == "counter") == name[1].endswith("_total"), line
        elif not line.startswith("# TYPE "):
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            assert seen and sample[1] == seen[-1], line
            assert (sample[1], sample[2] or "") not in found, line
            found[sample[1], sample[2] or ""] = float(sample[3])
    return found


GOOD_TEXT = '# HELP a_total Help.\n# TYPE a_total counter\na_total{k="v",l="\\"\\\\\\n"} 1\na_total{k="w"} 2e+06\n'


@pytest.mark.parametrize(("old", "new"), [
    ("Help.\n", "Help."), ("# TYPE a_total counter\n", ""), ("counter", "number"), ('k="w"', 'k="v",l="\\"\\\\\\n"'),
    ('"w"', "w"), ("2e+06", "two"), ('"w"', '"w"w"'), ("2e+06", "2e+06 "), ("2e+06\n", "2e+06"), ("{k=", "{0="),
    ("# HELP a_total Help.\n", ""), ('a_total{k="w"}', 'b_total{k="w"}'), ('"w"', '"w\\x"'), ("counter", "gauge"),
])
def test_the_reader_of_metrics_can_bark(old: str, new: str) -> None:
    assert len(read_metrics(GOOD_TEXT)) == 2
    with pytest.raises(AssertionError):
        read_metrics(GOOD_TEXT.replace(old, new))


def metrics_of(capsys: Said, world: World) -> dict[tuple[str, str], float]:
    code, out, err = run(capsys, world.daemon, "metrics")
    assert (code, err) == (0, "")
    return read_metrics(out)


@pytest.mark.slow
def test_metrics(world: World, capsys: Said) -> None:
    first, status = metrics_of(capsys, world), world.daemon.status()
    assert first["ddpd_leases", 'pool="four"'] == 1 and first["ddpd_leases", 'pool="tiny"'] == 1
    assert first["ddpd_pool_free_ratio", 'pool="tiny"'] == 0
    assert first["ddpd_grantees", ""] == 4 and first["ddpd_disk_full", ""] == first["ddpd_recovering_seconds", ""] == 0
    assert first["ddpd_info", f'version="{ddpd.VERSION}"'] == 1
    assert first["ddpd_datagrams_heard_total", 'kind="ask"'] == status["counters"]["heard_ask"]
    world.ask("carol", Want(0, "::/48"))                                  # a refusal, a drop
    world.wires["carol"].say(b"\1\1\0\0" + bytes(200))
    world.prefix("alice")
    second = metrics_of(capsys, world)
    grown = {name for name in second if second[name] > first.get(name, 0) and name[0].endswith("_total")}
    assert {("ddpd_refusals_total", 'reason="LENGTH"'), ("ddpd_datagrams_heard_total", 'kind="ask"'),
            ("ddpd_datagrams_sent_total", 'kind="answer"')} <= grown
    assert any(name == "ddpd_drops_total" for name, _ in grown)
    assert all(second[name] >= first[name] for name in first if name[0].endswith("_total"))


def test_counters_are_told_to_the_last_digit() -> None:
    """Six digits would stand still for a thousand datagrams, and then jump."""
    hub = Hub()
    for n, count in enumerate((0, 999_999, 1_000_001, 123_456_789, 2**40 + 1)):
        hub.node.counters[f"heard_kind{n}"] = count
        told = read_metrics(ddpd.metrics_text(ddpd.status_of(hub.node, hub.now, 0)))
        assert told["ddpd_datagrams_heard_total", f'kind="kind{n}"'] == count


def test_metrics_of_names_that_need_care() -> None:
    """A pool's name is printable ASCII, and that has quotes."""
    for name in ('a"b', "a\\", "a\\n", "{x}", "a,b=c", "%s"):
        hub = Hub(HOME.replace("[pool home]", f"[pool {name}]"), who=[])
        told = read_metrics(ddpd.metrics_text(ddpd.status_of(hub.node, hub.now, 0)))
        label = name.replace("\\", "\\\\").replace('"', '\\"')
        assert told["ddpd_leases", f'pool="{label}"'] == 0


def test_every_counter_has_a_place() -> None:
    """Whatever is counted is told once."""
    hub = Hub()
    names = ["heard_ask", "sent_answer", "drop mac1 wrong", "drop stale", "refused FULL", "send failed",
             "accounting lost", "something_else", "drop", "heard_unknown kind"]
    for n, name in enumerate(names, 1):
        hub.node.counters[name] = n * 1000
    told = read_metrics(ddpd.metrics_text(ddpd.status_of(hub.node, hub.now, 0)))
    assert sorted(value for (metric, _), value in told.items() if metric.endswith("_total")) == [
        n * 1000 for n in range(1, len(names) + 1)]


@pytest.mark.slow
def test_metrics_to_a_file_that_is_always_whole(world: World, tmp_path: Path, capsys: Said) -> None:
    file = tmp_path / "ddpd.prom"
    seen: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            if file.exists():
                seen.append(file.read_text())

    thread = threading.Thread(target=look)
    thread.start()
    inodes = set()
    for _ in range(30):
        assert run(capsys, world.daemon, "metrics", file) == (0, "", "")
        inodes.add(file.stat().st_ino)
    done.set()
    thread.join()
    assert len(inodes) > 1 and all(read_metrics(text) for text in set(seen))
    assert list(tmp_path.iterdir()) == [file] and file.stat().st_mode & 0o444 == 0o444


@pytest.mark.slow
def test_metrics_to_where_they_cannot_be(world: World, tmp_path: Path, capsys: Said) -> None:
    """One line, and nothing is left behind."""
    (tmp_path / "folder").mkdir()
    for where in (tmp_path / "folder", tmp_path / "none" / "x.prom"):
        code, out, err = run(capsys, world.daemon, "metrics", where)
        assert (code, out) == (2, "") and err.count("\n") == 1 and f"{where}: " in err
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


# ==== status ====

def columns(line: str) -> list[int]:
    """Where words begin: after two blanks."""
    return [match.start() for match in re.finditer(r"(?<=  )\S", line)]


def assert_aligned(lines: list[str], title: str, column: str) -> None:
    rows = [line for line in lines if line.startswith(title + " ")]
    assert len(rows) > 1 and column in rows[0]
    at = rows[0].index(f" {column} ") + 1
    for row in rows[1:]:
        assert row[at - 1] == " " != row[at] and at in columns(row)
        if column == "prefix":
            ddpd.parse_prefix(row[at:].split()[0])


def on_a_terminal(*argv: str) -> str:
    """What a command writes there."""
    master, slave = os.openpty()
    with os.fdopen(master, "rb", buffering=0) as screen:
        done = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        heard = b""
        try:
            while part := screen.read(65536):
                heard += part
        except OSError:                  # the last writer has closed it
            pass
        assert done.wait(10) == 0
    return heard.decode().replace("\r\n", "\n")


COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.slow
def test_status_is_plain_in_a_pipe_and_coloured_on_a_terminal(world: World) -> None:
    plain = world.daemon.command("status").stdout
    coloured = on_a_terminal(*world.daemon.argv("status"))
    assert "\x1b" not in plain and COLOUR.search(coloured)
    assert "\x1b" not in COLOUR.sub("", coloured)
    pools = [[line for line in text.splitlines() if line.startswith("pool ")]
             for text in (plain, COLOUR.sub("", coloured))]
    assert pools[0] == pools[1] and len(pools[0]) == 4
    assert "\x1b[31m" + "#" * ddpd.BAR in coloured and "[" + "#" * ddpd.BAR + "] 100.0 %" in plain


@pytest.mark.slow
def test_status_is_aligned_and_sorted(world: World) -> None:
    lines = world.daemon.command("status").stdout.splitlines()
    for title, column in (("pool", "prefix"), ("pool", "leased"), ("granted", "prefix"), ("granted", "slot"),
                          ("granted", "valid")):
        assert_aligned(lines, title, column)
    rows = [row["prefix"] for row in world.daemon.status()["granted"]]
    assert rows == sorted(rows, key=ddpd.parse_prefix) and len(rows) >= 5
    assert [line.rstrip() for line in lines] == lines


def test_what_lies_outside_of_all_pools_has_its_place_in_the_order() -> None:
    table = {"alice": "2001:db8:1::/56", "bob": "2001:db8:42:100::/56", "carol": "2001:db8:ffff::/56"}
    hub = site(Hub(), before_pins=lambda asked, _: table[asked.grantee])
    for name in ("carol", "alice", "bob"):
        hub.ask(name, want(0, "::/56"))
    assert [row["prefix"] for row in ddpd.status_of(hub.node, hub.now, 10)["granted"]] == list(table.values())


@pytest.mark.parametrize(("full", "filled"), [
    (0.0, 0), (1e-9, 1), (0.049, 1), (0.05, 1), (0.5, 10), (0.999999, 19), (1.0, 20)])
def test_a_bar(full: float, filled: int) -> None:
    """Full only if it is full, empty only if it is empty."""
    assert ddpd.BAR == 20
    drawn = "#" * filled + "." * (20 - filled)
    assert ddpd.bar(full, colours=False) == f"[{drawn}]"
    coloured = ddpd.bar(full, colours=True)
    assert COLOUR.sub("", coloured) == f"[{drawn}]" and coloured.endswith("\x1b[0m]")
    assert ("\x1b[31m" in coloured) == (full > 0.95) and ("\x1b[32m" in coloured) == (full < 0.8)


def test_age_and_time_left() -> None:
    hub = Hub()
    hub.ask("alice", want(0, "::/56"))
    hub.later(125)
    [row] = ddpd.status_of(hub.node, hub.now, 10)["granted"]
    assert (row["age"], row["valid"], row["preferred"]) == (125, 3475, 1675)
    text = ddpd.status_text(ddpd.status_of(hub.node, hub.now, 10), colours=False)
    assert re.search(r"granted +alice +0 +\S+/56 +2m5s +27m55s +57m55s ", text)


BROKEN = ["nonsense\n", "[pool home]\n", "[grantee x]\nkey = 5\n", "[no such]\nx = 1\n", "[ddpd]\nmark = -1\n"]


@pytest.mark.slow
def test_a_broken_config_file_blinds_nobody(tmp_path: Path, capsys: Said) -> None:
    with World(tmp_path, {"alice": ""}) as world:
        good, prefix = world.daemon.config.read_text(), world.prefix("alice")
        broken = [good + bad for bad in BROKEN] + [good.replace("listen", "lisen"), good.replace("/56", "/5x"),
                                                   good.replace("[pool home]", "[pool home")]
        for text in broken:
            world.daemon.config.write_text(text)
            for command in (["status"], ["status", "--json"], ["show", "alice"], ["leases"], ["metrics"],
                            ["explain", "alice", "::/56"]):
                code, out, err = run(capsys, world.daemon, *command)
                assert (code, err) == (0, "") and out, (text, command)
            code, out, err = run(capsys, world.daemon, "reload")
            assert (code, out) == (2, "") and str(world.daemon.config) in err
            assert world.prefix("alice") == prefix
        assert len(world.logged("reload refused")) == len(broken)
        world.daemon.config.write_text(good)
        assert run(capsys, world.daemon, "reload") == (0, "", "")
        assert world.prefix("alice") == prefix


# ==== junk for an order ====

ORDERS = ["status", "leases", "show", "explain", "revoke", "reload", "ask", "renew", "release", "metrics", "run", ""]
FIELDS = ["do", "what", "ask", "slot", "undo", "rows", "wait", "force", "grantor"]
VALUES: list[Any] = [None, True, False, 0, -1, 256, 2**63, 10**400, -10**400, 1.5, float("inf"), -float("inf"),
                     float("nan"), "", "x", "é", "\ud800", "\0", "a\nb", "alice", "::/56", "::/0", "y" * 60_000,
                     "9" * 5000, [], [1], {}, {"a": [None]}, ["alice"]]
RAW = [b"", b"\n", b"{}\n", b"[]\n", b"null\n", b"1\n", b'"x"\n', b"true\n", b"NaN\n", b"\xff\xfe\n", b"\0\n", b"{\n",
       b"[" * 60_000 + b"\n", b'{"a":' * 10_000 + b"\n", b"x" * 70_000, b"x" * 60_000 + b"\n", b"1" * 60_000 + b"\n",
       b'{"do":"status"}\n{"do":"status"}\n', b'{"do":"status"}{"do":"status"}\n', b'{"do":"status","do":[]}\n',
       b'{"do":"status"', b'{"do":"status","rows":1e999}\n', b'{"do":"status","wait":1e999}\n',
       b'{"do":"status","rows":-1e999}\n', b'{"do":"explain","what":"alice","ask":"::/56","wait":-1e400}\n',
       b'{"do": "\\ud800"}\n', b"{'do': 'status'}\n", b'{"do":"st\0atus"}\n']


class Ear:
    """A world that is told junk: what ended its daemon is noted, and it is started anew."""

    def __init__(self, world: World) -> None:
        self.world, self.deadly = world, list[str]()

    def told(self, order: object) -> Any:
        try:
            said = self.world.tell(order)
        except (OSError, ValueError) as why:
            said = why
        if not self.alive():
            self.deadly.append(f"{order!r}"[:80] + "  " + self.world.daemon.log().splitlines()[-1][:80])
            self.world.daemon.kill()
            self.world.daemon.start()
        return said

    def alive(self) -> bool:
        """It answers the next order."""
        try:
            return isinstance(self.world.tell({"do": "status", "rows": 0}), dict)
        except OSError:
            return False


@pytest.fixture(scope="module")
def ear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ear]:
    with World(tmp_path_factory.mktemp("ear"), {"alice": "limit = 4", "bob": ""}) as world:
        world.ask("alice")
        yield Ear(world)


@pytest.mark.slow
@pytest.mark.parametrize("do", ORDERS)
def test_wrong_types_for_every_field_end_nothing(ear: Ear, do: str) -> None:
    ear.deadly.clear()
    good = {"do": do, "what": "alice", "ask": "::/56", "rows": 5}
    for field in FIELDS:
        for value in VALUES if do != "reload" else VALUES[::4]:
            said = ear.told({**good, field: value})
            assert isinstance(said, dict | list), (field, value)
        short = {name: known for name, known in good.items() if name != field}
        assert isinstance(ear.told(short), dict | list)
    assert ear.deadly == []


@pytest.mark.slow
def test_what_is_no_order_at_all_ends_nothing(ear: Ear) -> None:
    ear.deadly.clear()
    for raw in RAW:
        if raw.endswith(b"\n"):
            said = ear.told(raw)
            assert said is None or isinstance(said, dict | list), raw
        else:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(str(ear.world.daemon.dir / "ddpd.sock"))
                try:
                    sock.sendall(raw)
                except BrokenPipeError:
                    pass
            assert ear.alive(), raw
    assert ear.deadly == []


@pytest.mark.slow
def test_who_asks_much_and_reads_nothing_hinders_nobody(ear: Ear) -> None:
    """More connections than there are places, half of them waiting for a reload."""
    socks = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3 * ddpd.MAX_CONTROLS)]
    for n, sock in enumerate(socks):
        sock.connect(str(ear.world.daemon.dir / "ddpd.sock"))
        sock.sendall([b'{"do":"reload"}\n', b'{"do":"leases"}\n', b'{"do":"st'][n % 3])
    assert ear.alive() and ear.world.prefix("bob")
    for sock in socks:
        sock.close()
    assert ear.alive() and ear.world.prefix("bob")


@pytest.mark.slow
def test_a_reload_whose_asker_has_gone(ear: Ear) -> None:
    before = len(ear.world.logged("reloaded"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(ear.world.daemon.dir / "ddpd.sock"))
        sock.sendall(b'{"do":"reload"}\n')
    ear.world.daemon.eventually(lambda: len(ear.world.logged("reloaded")) > before)
    assert ear.alive()


@pytest.mark.slow
def test_a_command_whose_reader_has_had_enough(world: World) -> None:
    """`ddpd status | head -1`: no traceback."""
    first = subprocess.run(["sh", "-c", f"{sys.executable} {' '.join(world.daemon.argv('leases')[1:])} | head -c 1"],
                           capture_output=True, text=True, check=False, timeout=20)
    assert (first.stdout, first.stderr) == ("g", "")


# ==== one that asks much ====

@pytest.mark.slow
def test_whoever_asks_for_much_at_once_is_heard_in_part(tmp_path: Path) -> None:
    """Thirty asks of sixteen slots wait when the daemon looks: four are answered before others are."""
    with World(tmp_path, {"alice": "limit = 16\nrate = 99/1s", "bob": ""}) as world:
        wants = [Want(slot, "::/64") for slot in range(16)]
        world.ask("alice", *wants)
        world.prefix("bob")
        world.daemon.signal(signal.SIGSTOP)
        for _ in range(30):
            world.wires["alice"].say(world.peers["alice"].sealed(wants, length=1200))
        world.wires["bob"].say(world.peers["bob"].sealed([ANY_56]))
        world.daemon.signal(signal.SIGCONT)
        assert world.peers["bob"].read_answer(world.wires["bob"].hear(2.0)).status == peer.OK
        drops = world.daemon.status()["counters"]
        assert drops["drop too many at once"] == 30 - ddpd.SLOTS_AT_ONCE // 16
        assert world.ask("alice", *wants).status == peer.OK
