"""A site's own handlers: where they stand in the chain, what they may say, and what their faults cost.

    in the chain     before, instead of and after each stage; what each is told, and who decided
    nonsense         what is no decision is refused, in words that a grantee can read
    faults           raising, slow, hanging, hiding: through guarded(), and in a daemon that must live on
    files            what is no file of handlers, at the start and at a reload
    a source         prefixes looked up elsewhere: begun, renewed, changed, ended
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

pytest.importorskip("noise.connection", reason="pip install noiseprotocol")

import ddpd
import peer
from daemon import PROGRAM, Daemon, free_port
from peer import Answer, GranteePeer, Want, Wire
from test_grantor import HOME, KEYS, Hub, want

Site = Callable[[ddpd.Asked, Any], Any]

OWN = "2001:db8:77:4000::/56"             # of no pool
LOW = "2001:db8:42::/56"                  # in HOME
ANY_56 = Want(0, "::/56")
STAGES = ("agreement", "pins", "pools")


def site(hub: Hub, **handlers: Site) -> Hub:
    hub.grantor.site = {name: ddpd.guarded(name, handler) for name, handler in handlers.items()}
    return hub


def says(value: Any) -> Site:
    return lambda _asked, _so_far: value


def read(answer: ddpd.Answer) -> ddpd.Answer:
    """As the grantee has it: what it cannot read, it drops."""
    message = ddpd.decode(ddpd.encode(answer))
    assert isinstance(message, ddpd.Answer)
    return message


def only(answer: ddpd.Answer) -> ddpd.Refusal:
    """The one refusal of an answer without grants."""
    [refusal], grants = read(answer).refusals, answer.grants
    assert not grants
    return refusal


# ==== in the chain ====

def test_each_handler_is_told_what_was_decided_so_far() -> None:
    calls: list[tuple[str, Any]] = []

    def noting(name: str) -> Site:
        return lambda _asked, so_far: calls.append((name, so_far))

    names = [f"{when}_{stage}" for stage in STAGES for when in ("before", "after")]
    hub = site(Hub(), **{name: noting(name) for name in names})
    [prefix] = hub.get("alice", want(0, "::/56"))
    assert calls == [(name, str(prefix) if name == "after_pools" else None) for name in names]
    calls.clear()
    assert hub.get("alice", want(0, "::/56")) == [prefix]                 # kept: decided among the pins
    assert calls == [(name, str(prefix) if name == "after_pins" else None) for name in names[:4]]
    calls.clear()
    hub.ask("bob", want(0, "::/48"))
    assert calls[-1] == ("after_pools", ddpd.Refuse("/48 is not given (given: /56-/64)", 3600))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("when", ["before", "instead_of", "after"])
def test_a_prefix_of_any_stage_is_granted(when: str, stage: str) -> None:
    hub = site(Hub(), **{f"{when}_{stage}": says(OWN)})
    answer = read(hub.ask("alice", want(0, "::/56")))
    assert [str(grant.prefix) for grant in answer.grants] == [OWN] and not answer.refusals
    assert hub.grantor.by == ((0, f"{when}_{stage}"),)
    assert [str(prefix) for prefix in hub.get("alice", want(0, "::/56"))] == [OWN]
    assert [str(prefix) for prefix in hub.living()] == [OWN]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("when", ["before", "instead_of", "after"])
def test_a_refusal_of_any_stage_is_said(when: str, stage: str) -> None:
    hub = site(Hub(), **{f"{when}_{stage}": says(ddpd.Refuse("the bill is unpaid", 777))})
    refusal = only(hub.ask("alice", want(3, "::/56")))
    assert (refusal.slot, refusal.reason, refusal.again_s) == (3, ddpd.Reason.SITE, 777)
    assert refusal.text == "the bill is unpaid" and hub.grantor.by == ((3, f"{when}_{stage}"),)


def test_what_stands_before_decides_and_what_stands_instead_is_not_asked() -> None:
    asked: list[str] = []
    hub = site(Hub(), before_pools=says(OWN), instead_of_pools=lambda _a, _s: asked.append("instead"))
    assert [str(prefix) for prefix in hub.get("alice", want(0, "::/56"))] == [OWN] and not asked


@pytest.mark.parametrize(("stage", "gone"), [("agreement", "limit"), ("pins", "pin"), ("pools", "draw")])
def test_instead_of_a_stage_that_stage_is_not_run(stage: str, gone: str) -> None:
    """Three wants of a grantee with `limit = 1` and a pin: each stage gone is seen by what is answered."""
    pin = "2001:db8:42:ff00::/56"
    hub = site(Hub(who=["alice"], more=f"limit = 1\npin = {pin}"), **{f"instead_of_{stage}": says(None)})
    answer = hub.ask("alice", want(0, "::/56"), want(1, "::/64"))
    reasons = [ddpd.Reason(refusal.reason).name for refusal in answer.refusals]
    assert (str(answer.grants[0].prefix) == pin) == (gone != "pin")
    assert reasons == {"limit": [], "pin": ["LIMIT"], "draw": ["LIMIT"]}[gone]
    other = site(Hub(), **{f"instead_of_{stage}": says(None)})
    assert other.refused("bob", want(0, "::/56")) == ([ddpd.Reason.NO_POOL] if gone == "draw" else [])


@pytest.mark.parametrize(("config", "wants", "reason"), [
    ("limit = 1\ntotal = ::/60", "::/56",        ddpd.Reason.LIMIT),
    ("limit = 1",                "::/48",        ddpd.Reason.LENGTH),
    ("limit = 1",                "0.0.0.0/32",   ddpd.Reason.NO_POOL),
])
def test_what_was_refused_can_still_be_given(config: str, wants: str, reason: ddpd.Reason) -> None:
    """after_ has the last word of its stage."""
    hub = Hub(more=config)
    assert hub.refused("alice", want(0, wants)) == [reason]
    given = OWN if wants.startswith(":") else "198.51.100.7/32"
    site(hub, after_agreement=lambda _a, so_far: given if so_far else None,
         after_pools=lambda _a, so_far: given if so_far else None)
    answer = read(hub.ask("alice", want(0, wants)))
    assert [str(grant.prefix) for grant in answer.grants] == [given.removesuffix("/32")] or \
        [str(grant.prefix) for grant in answer.grants] == [given]


def test_a_handler_is_told_who_asks_for_what() -> None:
    heard: list[ddpd.Asked] = []
    hub = site(Hub(), before_agreement=lambda asked, _: heard.append(asked))
    [first] = hub.get("alice", want(2, "::/56"))
    hub.ask("alice", want(2, str(first)), hostname="r1.example")
    key = ddpd.show_key(KEYS["alice"])
    assert heard == [ddpd.Asked("alice", key, 2, "::/56", 6, 56, "", ""),
                     ddpd.Asked("alice", key, 2, str(first), 6, 56, str(first), "r1.example")]


@pytest.mark.parametrize(("stage", "says_", "kept"), [
    ("before_options",     {"mtu": 1400, "search": "a.example"},       {"dns": True, "mtu": False}),
    ("instead_of_options", {"mtu": 1400, "search": ["a.example"]},     {"dns": False, "mtu": True}),
    ("after_options",      {"mtu": "1400", "search": ("a.example",)},  {"dns": True, "mtu": True}),
])
def test_options(stage: str, says_: dict[str, Any], kept: dict[str, bool]) -> None:
    """Before: the pool's are written over them. Instead of: alone. After: over the pool's."""
    hub = site(Hub(HOME + "dns = 2001:db8:42::53\nmtu = 1300\n"), **{stage: says(says_)})
    answer = read(hub.ask("alice", want(0)))
    assert [str(dns.host) for dns in answer.dns] == (["2001:db8:42::53"] if kept["dns"] else [])
    assert (answer.mtu, answer.search) == (1400 if kept["mtu"] else 1300, ("a.example",))


def test_options_are_told_as_they_are_written() -> None:
    heard: list[Any] = []
    hub = site(Hub(HOME + "dns = 2001:db8:42::53 192.0.2.53\nsearch = a.example\nmtu = 1400\n"),
               after_options=lambda _asked, so_far: heard.append(so_far))
    read(hub.ask("alice", want(0)))
    assert heard == [{"dns": ["2001:db8:42::53", "192.0.2.53"], "search": ["a.example"], "mtu": 1400}]
    site(hub, after_options=lambda _asked, so_far: so_far)                # back as it came
    answer = read(hub.ask("alice", want(0)))
    assert [dns.host for dns in answer.dns] == heard[0]["dns"] and answer.mtu == 1400


BAD_OPTIONS: list[Any] = [
    7, "dns", b"dns", ["dns"], {"dsn": "::1"}, {"dns": "no address"}, {"dns": 5}, {"dns": [5]}, {"dns": None},
    {"mtu": 10**9}, {"mtu": "wide"}, {"mtu": [1400, 1500]}, {"search": "ä.example"}, {"search": "a..b"}, {1: 2},
    {"ntp": ["2001:db8::/64"]}, {"wg_key": b"k"}, {"grants": ()}, {"status": 3}, {"stamp": 1}, object(), {"dns": {}},
    {"search": "\ud800"}, {"dns": "\0"}, {"dns": b"\xff"},
]


@pytest.mark.parametrize("said", BAD_OPTIONS, ids=repr)
@pytest.mark.parametrize("stage", ["before_options", "instead_of_options", "after_options"])
def test_bad_options_cost_nobody_a_lease(stage: str, said: Any) -> None:
    hub = site(Hub(HOME + "dns = 2001:db8:42::53\n"), **{stage: says(said)})
    answer = read(hub.ask("alice", want(0)))
    assert [grant.current for grant in answer.grants] == [True]
    assert [dns.host for dns in answer.dns] == ([] if stage.startswith("instead") else ["2001:db8:42::53"])
    notes = [effect.text for effect in hub.effects if isinstance(effect, ddpd.Note)]
    assert len([note for note in notes if "handler" in note and "grantee=alice" in note]) == 1


def test_more_options_than_an_answer_has_room_for() -> None:
    many = {"dns": [f"2001:db8::{n:x}" for n in range(1, 40)], "search": [f"{n}.example" for n in range(50)]}
    hub = site(Hub(), after_options=says(many))
    answer = read(hub.ask("alice", want(0)))
    assert len(answer.dns) == 39 and len(answer.search) == 50
    short = ddpd.decode(ddpd.fitted(answer, ddpd.encode(answer), 400, 56))
    assert isinstance(short, ddpd.Answer) and short.grants == answer.grants


def test_the_looking_glass_sees_what_is_answered_and_changes_nothing(tmp_path: Path) -> None:
    with World(tmp_path, {"alice": ""}, handlers=GLASS.format(folder=tmp_path)) as world:
        prefix = world.prefix("alice")
        assert world.ask("alice", Want(0, "::/56"), Want(1, "::/56")).refusals
        seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
        assert [row[0:2] for row in seen] == [["alice", prefix]] * 2
        assert [refused["text"] for refused in seen[-1][2]] == ["`limit` is 1 of IPv6"]


GLASS = """
import json
def looking_glass(asked, answer):
    with open('{folder}/seen', 'a') as file:
        print(json.dumps([asked.grantee, answer['grants'][0]['prefix'], answer.get('refusals')]), file=file)
    raise SystemExit
"""


# ==== nonsense ====

def bobs(hub: Hub) -> str:
    return str(hub.get("bob", want(0, "::/56"))[0])


NONSENSE: list[tuple[Any, str]] = [
    (42,                                "returned int"),
    (True,                              "returned bool"),
    (0,                                 "returned int"),
    (1.5,                               "returned float"),
    (b"2001:db8:77::/56",               "returned bytes"),
    ([OWN],                             "returned list"),
    ([],                                "returned list"),
    ({},                                "returned dict"),
    (iter("abc"),                       "returned str_"),
    (object(),                          "returned object"),
    (ddpd.Refuse,                       "returned type"),
    (ValueError("x"),                   "returned ValueError"),
    (NotImplemented,                    "returned NotImplementedType"),
    ("",                                "before_pins: "),
    ("nonsense",                        "nonsense"),
    ("2001:db8:77::1/56",               "host bits"),
    ("2001:db8:77::/129",               "before_pins: "),
    ("2001:db8:77::/-1",                "before_pins: "),
    ("2001:db8:77::/56 ",               "before_pins: "),
    ("2001:db8:77::%eth0/64",           "before_pins: "),
    ("198.51.100.0/24",                 "of another family"),
    ("::/0",                            "before_pins: "),
    ("ff02::/64",                       "before_pins: "),
    ("fe80::/64",                       "before_pins: "),
    ("::1/128",                         "before_pins: "),
    ("é",                               "before_pins: "),
    ("é" * 300,                         "before_pins: "),
    ("\U0001f600" * 200,                "before_pins: "),
    ("\ud800",                          "before_pins: "),
    ("a\nb",                            "before_pins: "),
    ("\0",                              "before_pins: "),
    ("x" * 100_000,                     "before_pins: "),
    ("9" * 10_000 + "/64",              "before_pins: "),
    ("2001:db8::/" + "9" * 5000,        "before_pins: "),
]


@pytest.mark.parametrize(("said", "text"), NONSENSE, ids=lambda value: ascii(value)[:40])
def test_nonsense_is_refused(said: Any, text: str) -> None:
    hub = site(Hub(), before_pins=lambda asked, _: said if asked.grantee == "alice" else None)
    refusal = only(hub.ask("alice", want(0, "::/56")))
    assert refusal.reason == ddpd.Reason.SITE and refusal.again_s == 60
    assert refusal.text.startswith("before_pins: ") and text in refusal.text
    assert bobs(hub) and not hub.peer("alice").leases
    assert_one_line_each(hub)


def assert_one_line_each(hub: Hub) -> None:
    for effect in hub.effects:
        assert not isinstance(effect, ddpd.Note) or ("\n" not in effect.text and "\0" not in effect.text)


@pytest.mark.parametrize("said", ["0.0.0.0/8", "127.0.0.1", "169.254.0.0/24", "224.0.0.1", "255.255.255.255"])
def test_what_is_nobodys_to_give(said: str) -> None:
    hub = site(Hub(), before_pins=says(said))
    assert "nobody's to give" in only(hub.ask("alice", want(0, "0.0.0.0/32"))).text


@pytest.mark.parametrize("of", ["bob's", "inside of bob's", "around bob's", "bob's pin", "around bob's pin"])
def test_what_is_somebody_elses_is_refused(of: str) -> None:
    pin = "2001:db8:42:ff00::/60"
    config = ddpd.read_config(HOME + "".join(
        f"[grantee {name}]\nkey = {ddpd.show_key(KEYS[name])}\npools = home\nlimit = 3\n{more}\n"
        for name, more in (("alice", ""), ("bob", f"pin = {pin}"))), "t")
    hub = Hub()
    hub.node.reconfigure(config, hub.now)
    lease = ddpd.parse_prefix(str(hub.get("bob", want(0, "::/56"), want(1, "::/60"))[0]))
    inside, around = ddpd.Prefix(6, lease.first, 60), lease.network(48)
    said = {"bob's": lease, "inside of bob's": inside, "around bob's": around, "bob's pin": ddpd.parse_prefix(pin),
            "around bob's pin": ddpd.parse_prefix(pin).network(52)}[of]
    site(hub, before_pins=says(str(said)))
    assert "another" in only(hub.ask("alice", want(0, "::/56"))).text
    assert hub.peer("bob").living()[0].prefix == lease


@pytest.mark.parametrize("second", [OWN, "2001:db8:77:4010::/60", "2001:db8:77::/48"],
                         ids=["the same", "inside of it", "around it"])
def test_no_prefix_for_two_slots_of_one_grantee(second: str) -> None:
    """A handler that forgets to look at `asked.slot` must not promise one prefix twice."""
    hub = site(Hub(), before_pins=lambda asked, _: OWN if asked.slot == 0 else second)
    for wants in ((want(0, "::/56"), want(1, "::/56")), (want(1, "::/56"),), (want(1, "::/56"), want(0, "::/56"))):
        answer = read(hub.ask("alice", *wants))
        current = [grant.prefix for grant in answer.grants if grant.current]
        assert not any(one.overlaps(other) for n, one in enumerate(current) for other in current[:n])
        living = [lease.prefix for lease in hub.peer("alice").leases if lease.state is ddpd.LeaseState.ACTIVE]
        assert not any(one.overlaps(other) for n, one in enumerate(living) for other in living[:n])
        assert {lease.prefix for lease in hub.peer("alice").leases} == set(hub.grantor.stock.leased)


REFUSES: list[tuple[ddpd.Refuse, str, int]] = [
    (ddpd.Refuse("no"),                                  "no",               60),
    (ddpd.Refuse("no", 1),                               "no",               1),
    (ddpd.Refuse("no", 0),                               "no",               1),
    (ddpd.Refuse("no", -5),                              "no",               1),
    (ddpd.Refuse(""),                                    "",                 60),
    (ddpd.Refuse("unpaid: 12 €"),                        "unpaid: 12 ?",     60),
    (ddpd.Refuse("one\ntwo\0"),                          "one?two?",         60),
    (ddpd.Refuse("\ud800"),                              "?",                60),
    (ddpd.Refuse("x" * 1000),                            "x" * 200,          60),
]


@pytest.mark.parametrize(("said", "text", "again_s"), REFUSES, ids=lambda value: ascii(value)[:40])
def test_a_refusal_can_be_read_by_the_grantee(said: ddpd.Refuse, text: str, again_s: int) -> None:
    refusal = only(site(Hub(), before_pools=says(said)).ask("alice", want(0, "::/56")))
    assert (refusal.reason, refusal.text, refusal.again_s) == (ddpd.Reason.SITE, text, again_s)


BAD_AGAIN: list[Any] = ["soon", "", None, float("nan"), float("inf"), -float("inf"), 10**400, [60], b"60", 2**32, 1e30]


@pytest.mark.parametrize("again", BAD_AGAIN, ids=lambda value: ascii(value)[:20])
def test_a_refusal_with_nonsense_for_a_time_is_a_refusal(again: Any) -> None:
    refusal = only(site(Hub(), before_pools=says(ddpd.Refuse("no", again))).ask("alice", want(0, "::/56")))
    assert refusal.reason == ddpd.Reason.SITE and 1 <= refusal.again_s <= ddpd.FOREVER


class Mute:
    """Cannot be written, compared or judged."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__

    def __bool__(self) -> bool:
        raise ZeroDivisionError


class MuteText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("said", [Mute(), MuteText(OWN), ddpd.Refuse(Mute())], ids=["thing", "text", "refusal"])  # type: ignore[arg-type] # that is the point
def test_what_cannot_even_be_looked_at(said: Any) -> None:
    hub = site(Hub(), before_pins=says(said))
    assert only(hub.ask("alice", want(0, "::/56"))).reason == ddpd.Reason.SITE
    site(hub, after_options=says(Mute()))
    assert len(read(hub.ask("bob", want(0))).grants) == 1


# ==== faults ====

def raises(why: BaseException) -> Site:
    def handler(_asked: ddpd.Asked, _so_far: Any) -> None:
        raise why
    return handler


class MuteError(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class Größe(Exception):  # noqa: N818 - the name is the point
    pass


RAISED: list[BaseException] = [
    LookupError("no such customer"), SystemExit(0), SystemExit("bye"), KeyboardInterrupt(), GeneratorExit(),
    StopIteration(), RecursionError("deep"), MemoryError(), MuteError(), Größe("groß"), OSError(28, "full", "/x"),
    ValueError("one\ntwo"), UnicodeError("\ud800"), ddpd.Drop("mine"), BaseException(),
    ExceptionGroup("many", [ValueError("a"), TypeError("b")]), AssertionError("%s %d"),
]


@pytest.mark.parametrize("why", RAISED, ids=lambda why: type(why).__name__)
@pytest.mark.parametrize("name", ["before_agreement", "instead_of_pins", "after_pools"])
def test_who_raises_refuses(why: BaseException, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    hub = site(Hub(), **{name: raises(why)})
    ddpd.log.kinds.clear()
    refusal = only(hub.ask("alice", want(0, "::/56")))
    assert refusal.reason == ddpd.Reason.SITE
    assert refusal.text == ddpd.printable(f"{name}: {type(why).__name__}")          # not what it said: that is ours
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("handler failed")]
    assert f"handler={name} grantee=alice key={ddpd.show_key(KEYS['alice'])[:8]}" in line and "line=" in line
    assert_one_line_each(hub)


def test_the_line_is_that_of_the_sites_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where a library raises, or the call itself fails."""
    file = put(tmp_path / "site.py", "import json\n\ndef before_pins(asked, so_far):\n    return json.loads('{')\n"
               "def before_pools():\n    return None\n")
    hub = Hub()
    hub.grantor.site = ddpd.load_handlers(str(file))
    ddpd.log.kinds.clear()
    hub.ask("alice", want(0))
    hub.grantor.site.pop("before_pins")
    hub.ask("alice", want(0))
    first, second = [line for line in capfd.readouterr().err.splitlines() if line.startswith("handler failed")]
    assert "handler=before_pins" in first and "line=4" in first
    assert "handler=before_pools" in second and ("line=5" in second or "line=0" in second)


@pytest.mark.parametrize(("seconds", "logged"), [(0.0, False), (0.1, True)])
def test_who_is_slow_is_logged(seconds: float, logged: bool, capfd: pytest.CaptureFixture[str]) -> None:
    def slow(_asked: ddpd.Asked, _so_far: Any) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        return OWN

    hub = site(Hub(), before_pins=slow)
    ddpd.log.kinds.clear()
    assert [str(prefix) for prefix in hub.get("alice", want(0, "::/56"))] == [OWN]
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("handler slow")]
    assert bool(lines) == logged
    assert not logged or re.search(r"handler=before_pins grantee=alice took_ms=[1-9]\d\d+\b", lines[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")     # it may cut a callback of gc
def test_no_alarm_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal
    monkeypatch.setattr(ddpd, "HANDLER_S", 0.05)
    before = signal.getsignal(signal.SIGALRM)
    for handler in (says(OWN), raises(KeyError("x")), lambda _a, _s: time.sleep(9)):
        site(Hub(), before_pins=handler).ask("alice", want(0, "::/56"))
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGALRM) == before


def test_an_alarm_at_the_very_end_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that takes just as long as it may: cut or not, nothing of the alarm gets out."""
    monkeypatch.setattr(ddpd, "HANDLER_S", 0.002)
    hub = site(Hub(more="limit = 4\nrate = 9999/1s"), before_pins=busy(0.002))
    for n in range(300):
        site(hub, before_pins=busy(0.0019 + n % 20 * 1e-5))
        answer = read(hub.ask("alice", want(0, "::/56")))
        assert len(answer.grants) + len(answer.refusals) == 1


def busy(seconds: float) -> Site:
    def handler(_asked: ddpd.Asked, _so_far: Any) -> str:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return OWN
    return handler


HANGING = {
    "loops":              "while True: pass",
    "sleeps":             "time.sleep(60)",
    "catches once":       "try: time.sleep(60)\n    except BaseException: pass\n    time.sleep(60)",
    "hides":              "while True:\n        try: time.sleep(60)\n        except Exception: pass",
}


@pytest.mark.parametrize("how", HANGING)
def test_who_hangs_is_cut(tmp_path: Path, how: str) -> None:
    """In a process of its own, which a handler that cannot be cut would hold for ever."""
    put(tmp_path / "site.py", f"import time\n\ndef before_pins(asked, so_far):\n    {HANGING[how]}\n")
    program = (f"import sys; sys.path[:0] = {[str(PROGRAM.parent), str(PROGRAM.parent / 'tests')]}\n"
               "import ddpd\nfrom test_grantor import Hub, want\nddpd.HANDLER_S = 0.1\nhub = Hub()\n"
               f"hub.grantor.site = ddpd.load_handlers({str(tmp_path / 'site.py')!r})\n"
               "print([refusal.text for refusal in hub.ask('alice', want(0)).refusals])\n"
               "hub.grantor.site = {}\nprint(len(hub.get('bob', want(0))))\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["['before_pins: TimeoutError']", "1"], done.stderr
    assert "took longer than 0.1 s" in done.stderr


# ==== through a daemon ====

def put(file: Path, text: str, mode: int = 0o644) -> Path:
    file.write_text(text)
    file.chmod(mode)
    return file


class World:
    """A daemon with handlers, and grantees who may ask it: {name: more lines of its section}."""

    def __init__(self, tmp_path: Path, who: Mapping[str, str], handlers: str | None = None,
                 pools: str = HOME, main: str = "") -> None:
        self.port, self.hub = free_port("::1"), os.urandom(32)
        self.who, self.pools, self.main = dict(who), pools, main
        self.peers = {name: GranteePeer(os.urandom(32), peer.public_of(self.hub)) for name in who}
        self.wires: dict[str, Wire] = {}
        self.site = tmp_path / "site.py"
        if handlers is not None:
            put(self.site, handlers)
            self.main += f"handlers = {self.site}\n"
        self.daemon = Daemon(self.config(), tmp_path, "hub")
        self.daemon.write_key(self.hub)

    def config(self) -> str:
        grantees = "".join(f"[grantee {name}]\nkey = {base64.b64encode(self.peers[name].public).decode()}\n"
                           f"{'' if 'pools' in more else 'pools = home'}\nroute = none\n{more}\n"
                           for name, more in self.who.items())
        return f"[ddpd]\nlisten = [::1]:{self.port}\n{self.main}{self.pools}{grantees}"

    def __enter__(self) -> Self:
        self.daemon.__enter__()
        self.wires = {name: Wire("::1").to(self.port) for name in self.who}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for wire in self.wires.values():
            wire.__exit__()
        self.daemon.__exit__(kind, error, trace)

    def said(self, name: str, datagram: bytes) -> Answer:
        """Its answer; nudges are passed over."""
        wire = self.wires[name]
        wire.say(datagram)
        answer = wire.hear(8.0)
        while len(answer) <= 128:
            answer = wire.hear(8.0)
        return self.peers[name].read_answer(answer)

    def ask(self, name: str, *wants: Want, **ways: Any) -> Answer:
        """A first ask; where that is stale, a sealed one."""
        one = self.peers[name]
        answer = self.said(name, one.ask(wants or [ANY_56], **ways))
        return self.said(name, one.sealed(wants or [ANY_56], length=512)) if answer.status == peer.STALE else answer

    def prefix(self, name: str, *wants: Want) -> str:
        return str(self.ask(name, *wants).preferred(0).prefix)

    def refusal(self, name: str, *wants: Want) -> peer.Refusal:
        [refusal] = self.ask(name, *wants).refusals
        return refusal

    def tell(self, order: object) -> Any:
        """One order to the control socket, and its answer; nothing if it was cut off."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(self.daemon.dir / "ddpd.sock"))     # first: with a timeout it would not wait for a place
            sock.settimeout(5.0)
            sock.sendall(order if isinstance(order, bytes) else json.dumps(order).encode() + b"\n")
            try:
                heard = b"".join(iter(lambda: sock.recv(1 << 20), b""))
            except ConnectionResetError:
                return None
        lines = [json.loads(line) for line in heard.splitlines()]
        return lines[0] if len(lines) == 1 else lines or None

    def reload(self, handlers: str | None = None) -> dict[str, Any]:
        if handlers is not None:
            put(self.site, handlers)
        said: dict[str, Any] = self.tell({"do": "reload"})
        return said

    def logged(self, start: str) -> list[str]:
        return [line for line in self.daemon.log().splitlines() if line.startswith(start)]


BEHAVES = f"""
import time

def slow():
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        pass
    return '{OWN}'

def loops():
    while True:
        pass

def raises():
    raise LookupError('no such customer')

def before_pins(asked, so_far):
    behave = globals().get(asked.grantee)
    return behave() if behave else None
"""
FAULTS = {"raises": "LookupError", "loops": "TimeoutError"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    who = dict.fromkeys([*FAULTS, "slow", "alice"], "")
    with World(tmp_path_factory.mktemp("world"), who, BEHAVES) as world:
        yield world


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_refuses_one_ask_and_the_daemon_goes_on(world: World, name: str) -> None:
    refusal = world.refusal(name)
    assert refusal.reason == ddpd.Reason.SITE and FAULTS[name] in refusal.text
    assert world.prefix("alice")
    [line] = world.logged(f"handler failed handler=before_pins grantee={name} ")
    assert re.search(r" key=\S{8} line=\d", line)
    assert world.tell({"do": "show", "what": name})["grantee"] == name
    if name == "raises":
        number = BEHAVES.splitlines().index("    raise LookupError('no such customer')") + 1
        assert f"line={number} " in line and "no such customer" in line


@pytest.mark.slow
def test_a_tenth_of_a_second_is_slow(world: World) -> None:
    assert world.prefix("slow") == OWN
    assert re.search(r"grantee=slow took_ms=[1-9]\d\d+", world.logged("handler slow")[-1])


@pytest.mark.slow
def test_others_are_served_while_one_hangs(world: World) -> None:
    """They wait for HANDLER_S, not longer."""
    world.wires["loops"].say(world.peers["loops"].ask([ANY_56]))
    begun = time.monotonic()
    assert world.prefix("alice")
    assert time.monotonic() - begun < ddpd.HANDLER_S + 4.0
    while len(datagram := world.wires["loops"].hear()) <= 128:
        pass
    assert world.peers["loops"].read_answer(datagram).refusals


# ==== files ====

BAD_FILES = [
    ("def before_pins(asked, so_far:\n    pass\n",           r"site\.py:1: SyntaxError: "),
    ("x = 1\nif x\n",                                        r"site\.py:2: SyntaxError: "),
    ("def f():\n  return 1\n return 2\n",                    r"site\.py:3: IndentationError: "),
    ("x = 1\n\ny = x.missing\n",                             r"site\.py:3: AttributeError: "),
    ("import no_such_module_at_all\n",                       r"site\.py:1: ModuleNotFoundError: "),
    ("def before_pin(asked, so_far): pass\n",                r"before_pin has no place .*mean 'before_pins'"),
    ("def looking_glas(asked, so_far): pass\n",              r"mean 'looking_glass'"),
    ("def instead_of_all(asked, so_far): pass\n",            r"instead_of_all has no place"),
    ("def befor_pins(asked, so_far): pass\n",                r"befor_pins has no place .*mean 'before_pins'"),
    ("def insteadof_pools(asked, so_far): pass\n",           r"insteadof_pools has no place"),
    ("raise SystemExit('bye')\n",                            r"site\.py:1: SystemExit: bye"),
    ("import sys\nsys.exit(0)\n",                            r"site\.py:2: SystemExit"),
    ("class Mute(Exception):\n    def __str__(self): raise self\nraise Mute\n",   r"site\.py:\d+: "),
    ("x = '\0'\n",                                           r"site\.py:\d+: "),
    ("before_pins = 7\n",                                    r"before_pins"),
]


@pytest.mark.parametrize(("source", "says"), BAD_FILES, ids=lambda value: ascii(value)[:40])
def test_a_bad_file_is_one_error_with_its_line(tmp_path: Path, source: str, says: str) -> None:
    file = put(tmp_path / "site.py", source)
    with pytest.raises(ddpd.ConfigError, match=says) as caught:
        ddpd.load_handlers(str(file))
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o622, 0o666])
def test_a_file_that_others_may_write_is_not_run(tmp_path: Path, mode: int) -> None:
    file = put(tmp_path / "site.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n", mode)
    with pytest.raises(ddpd.ConfigError, match=r"others may write it \(chmod go-w\)"):
        ddpd.load_handlers(str(file))
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ddpd.ConfigError, match="No such file"):
        ddpd.load_handlers(str(tmp_path / "none"))
    (tmp_path / "site.py").write_bytes(b"x = '\xff'\n")
    with pytest.raises(ddpd.ConfigError, match="not UTF-8"):
        ddpd.load_handlers(str(tmp_path / "site.py"))


def test_what_is_no_hook_is_left_alone(tmp_path: Path) -> None:
    file = put(tmp_path / "site.py", "import json\nTABLE = {}\ndef helper(): pass\nclass Source: pass\n"
               "def before_pins(asked, so_far): return Refuse(str(len(TABLE)))\n")
    assert list(ddpd.load_handlers(str(file))) == ["before_pins"]
    assert ddpd.load_handlers("") == {}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_start_with_a_bad_file_is_exit_2_and_one_line(tmp_path: Path, command: str) -> None:
    world = World(tmp_path, {}, "def before_pins(\n")
    done = world.daemon.command(command)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    assert done.stderr.startswith(f"ddpd: {world.site}:1: SyntaxError")


GOOD = f"def before_pins(asked, so_far):\n    return '{OWN}'\n"

@pytest.mark.slow
@pytest.mark.parametrize(("source", "says"), [
    ("def before_pins(\n", ":1: SyntaxError"), ("raise SystemExit(0)\n", "SystemExit"),
    ("while True: pass\n", "TimeoutError")], ids=["syntax", "exit", "endless"])
def test_a_reload_with_a_bad_file_is_refused_and_the_old_handlers_go_on(
        tmp_path: Path, source: str, says: str) -> None:
    with World(tmp_path, {"alice": ""}, GOOD) as world:
        assert world.prefix("alice") == OWN
        assert says in world.reload(source)["error"]
        assert world.prefix("alice") == OWN
        assert says in world.logged("reload refused")[-1]


@pytest.mark.slow
def test_a_reload_takes_new_handlers_and_none(tmp_path: Path) -> None:
    """Each time the grantee is nudged, and what the old ones gave counts down."""
    other = OWN.replace("4000", "5000")
    with World(tmp_path, {"alice": ""}, GOOD) as world:
        assert world.prefix("alice") == OWN
        assert world.reload(GOOD.replace(OWN, other)) == {}
        world.peers["alice"].read_nudge(world.wires["alice"].hear(2.0))
        answer = world.ask("alice")
        assert str(answer.preferred(0).prefix) == other
        assert [str(grant.prefix) for grant in answer.grants if not grant.flags & 1] == [OWN]
        world.daemon.write(world.config().replace("handlers", ";handlers"))
        assert world.reload() == {}
        assert world.prefix("alice").startswith("2001:db8:42:")
        assert {row["prefix"]: row["state"] for row in world.daemon.status()["granted"]} == {
            OWN: "deprecated", other: "deprecated", world.prefix("alice"): "active"}


# ==== a source ====

SOURCE = """
import json

def before_pins(asked, so_far):
    with open('{source}') as file:
        return json.load(file).get(asked.grantee, {{}}).get(str(asked.slot))
"""


class Sourced(World):
    """Prefixes of grantees and slots that stand in a file."""

    def __init__(self, tmp_path: Path, who: Mapping[str, str], pools: str = HOME, main: str = "") -> None:
        self.source = tmp_path / "source.json"
        self.assign({})
        super().__init__(tmp_path, who, SOURCE.format(source=self.source), pools, main)

    def assign(self, rows: dict[str, dict[int, str]]) -> None:
        self.source.write_text(json.dumps(rows))

    def states(self) -> dict[str, str]:
        return {row["prefix"]: row["state"] for row in self.daemon.status()["granted"]}


def held(answer: Answer, slot: int = 0) -> Want:
    grant = answer.preferred(slot)
    return Want(slot, str(grant.prefix), True, grant.ticket)


@pytest.mark.slow
def test_a_source_gives_keeps_changes_and_ends(tmp_path: Path) -> None:
    other = OWN.replace("4000", "5000")
    with Sourced(tmp_path, {"alice": ""}) as world:
        world.assign({"alice": {0: OWN}})
        first = world.ask("alice")
        grant = first.preferred(0)
        assert (str(grant.prefix), grant.valid) == (OWN, 3600)            # outside of all pools: as the first pool says
        again = world.said("alice", world.peers["alice"].sealed([held(first)]))
        assert held(again).prefix == OWN and world.states() == {OWN: "active"}
        world.assign({"alice": {0: other}})
        changed = world.said("alice", world.peers["alice"].sealed([held(again)]))
        assert {str(grant.prefix): grant.preferred > 0 for grant in changed.grants} == {other: True, OWN: False}
        assert world.states() == {OWN: "deprecated", other: "active"}
        world.assign({})
        ended = world.said("alice", world.peers["alice"].sealed([held(changed)], length=512))
        assert str(ended.preferred(0).prefix).startswith("2001:db8:42:")
        assert world.states()[other] == world.states()[OWN] == "deprecated"


@pytest.mark.slow
def test_a_source_that_is_down_refuses_and_ends_nothing(tmp_path: Path) -> None:
    with Sourced(tmp_path, {"alice": ""}) as world:
        world.assign({"alice": {0: OWN}})
        first = world.ask("alice")
        world.source.rename(tmp_path / "away")
        refused = world.said("alice", world.peers["alice"].sealed([held(first)]))
        assert [refusal.reason for refusal in refused.refusals] == [ddpd.Reason.SITE]
        assert world.states() == {OWN: "active"}
        (tmp_path / "away").rename(world.source)
        back = world.said("alice", world.peers["alice"].sealed([held(first)]))
        assert held(back).prefix == OWN


@pytest.mark.slow
@pytest.mark.parametrize("crash", [False, True])
def test_a_sourced_lease_outlives_a_restart(tmp_path: Path, crash: bool) -> None:
    with Sourced(tmp_path, {"alice": "limit = 2", "bob": ""}) as world:
        world.assign({"alice": {0: OWN, 1: LOW}})
        first = world.ask("alice", ANY_56, Want(1, "::/56"))
        assert held(first, 1).prefix == LOW
        assert world.daemon.kill() if crash else not world.daemon.stop()
        world.daemon.start()
        assert world.states() == {LOW: "active", OWN: "active"}
        world.assign({"alice": {0: OWN, 1: LOW}, "bob": {0: OWN}})
        assert "another" in world.refusal("bob").text
        again = world.ask("alice", held(first), held(first, 1))
        assert [held(again, slot).prefix for slot in (0, 1)] == [OWN, LOW]


def sourced(hub: Hub, table: Mapping[tuple[str, int], str]) -> Hub:
    return site(hub, before_pins=lambda asked, _: table.get((asked.grantee, asked.slot)))


def test_what_a_source_gave_out_of_a_pool_is_drawn_for_nobody() -> None:
    """A pool of two: the source gives one half, so others get the other, or nothing."""
    tiny = "[pool home]\nprefix = 2001:db8:42::/63\ngive = /64\nlifetime = 1h\n"
    for half, rest in (("2001:db8:42::/64", "2001:db8:42:1::/64"), ("2001:db8:42:1::/64", "2001:db8:42::/64")):
        hub = sourced(Hub(tiny), {("alice", 0): half})
        assert [str(prefix) for prefix in hub.get("alice", want(0))] == [half]
        assert [str(prefix) for prefix in hub.get("bob", want(0))] == [rest]
        assert hub.refused("carol", want(0)) == [ddpd.Reason.FULL]


def test_a_source_gives_any_length() -> None:
    hub = sourced(Hub(), {("alice", 0): "2001:db8:77::/48", ("bob", 0): "2001:db8:42:1::/80"})
    assert [str(prefix) for prefix in hub.get("alice", want(0, "::/56"))] == ["2001:db8:77::/48"]
    assert [str(prefix) for prefix in hub.get("bob", want(0, "::/56"))] == ["2001:db8:42:1::/80"]
    assert hub.get("alice", want(0, "::/56")) == [ddpd.parse_prefix("2001:db8:77::/48")]


def test_a_source_is_enough_where_there_is_no_pool_of_the_family() -> None:
    hub = sourced(Hub(), {("alice", 4): "198.51.100.7"})
    assert [str(prefix) for prefix in hub.get("alice", want(4, "0.0.0.0/32"))] == ["198.51.100.7/32"]
    assert hub.refused("bob", want(4, "0.0.0.0/32")) == [ddpd.Reason.NO_POOL]


def test_a_sourced_lease_is_renewed_like_any_other() -> None:
    """What a slot has is nothing new: no rate, no limit, no full disk stands in its way."""
    slots = {("alice", slot): f"2001:db8:77:{slot}00::/56" for slot in range(1, 6)}
    hub = sourced(Hub(more="limit = 5\nrate = 5/1h\ntotal = ::/52"), slots)
    wants = [want(slot, "::/56") for slot in range(1, 6)]
    first = hub.get("alice", *wants)
    assert [str(prefix) for prefix in first] == list(slots.values())
    assert hub.get("alice", *wants) == first
    hub.grantor.disk_full = True
    assert hub.get("alice", *wants) == first
    hub.grantor.disk_full = False
    hub.configure(HOME, more="limit = 1\nrate = 5/1h")
    sourced(hub, slots)
    assert hub.get("alice", *wants) == first


def test_a_reload_leaves_sourced_leases_alone() -> None:
    """Nobody is nudged for what the source would give again."""
    hub = sourced(Hub(), {("alice", 0): OWN})
    first = hub.get("alice", want(0, "::/56"))
    hub.configure(HOME)
    assert hub.get("alice", want(0, "::/56")) == first and hub.living() == first
    assert [str(lease.state.value) for lease in hub.peer("alice").leases] == ["active"]


def test_a_slot_that_is_not_named_keeps_what_a_source_gave() -> None:
    hub = sourced(Hub(), {("alice", 0): OWN})
    hub.ask("alice", want(0, "::/56"))
    hub.ask("alice", want(1, "::/64"))
    assert {lease.state for lease in hub.peer("alice").leases} == {ddpd.LeaseState.ACTIVE}
    hub.restart()
    sourced(hub, {("alice", 0): OWN})
    hub.ask("alice", want(1, "::/64"))
    assert {lease.state for lease in hub.peer("alice").leases} == {ddpd.LeaseState.ACTIVE}


def test_revoked_is_revoked_whatever_the_source_says() -> None:
    hub = sourced(Hub(), {("alice", 0): OWN})
    hub.ask("alice", want(0, "::/56"))
    hub.node.revoke(hub.peer("alice"), None, hub.now)
    for wants in ("::/56", OWN):
        assert not any(grant.current for grant in hub.ask("alice", want(0, wants)).grants)
    sourced(hub, {("bob", 0): OWN})
    assert "another" in only(hub.ask("bob", want(0, "::/56"))).text


def test_explain_and_an_ask_agree_about_the_site() -> None:
    table = {"alice": OWN, "bob": 42, "carol": ddpd.Refuse("unpaid", 99)}
    hub = site(Hub(), before_pins=lambda asked, _: table[asked.grantee])
    for name in table:
        told = ddpd.explained(hub.node, name, "::/56", hub.now)
        answer = hub.ask(name, want(0, "::/56"))
        assert told["handler"] == "before_pins" == hub.grantor.by[0][1]
        assert told.get("prefix") == next((str(grant.prefix) for grant in answer.grants), None)
        assert told.get("text") == next((refusal.text for refusal in answer.refusals), None)
