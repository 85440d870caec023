"""Every (state, event) of the table and every one that is not in it; what is believed, and what not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import ddpd
from ddpd import Event, State

T0 = 1000.0
KEY = bytes(range(32))
HUB = ddpd.Path("2001:db8::1", 3373)
P1, P2 = (ddpd.parse_prefix(f"2001:db8:{n}:100::/56") for n in (1, 2))
TEXT = f"[grantor h]\nkey = {ddpd.show_key(KEY)}\naddress = 2001:db8::1 2001:db8::9\nask = {{}}\n"


def at(boot: float) -> ddpd.Now:
    return ddpd.Now(boot, 1_700_000_000.0)


def grant(slot: int = 0, prefix: ddpd.Prefix = P1, valid: int = 3600, preferred: int = 1800,
          current: bool = True) -> ddpd.Grant:
    return ddpd.Grant(slot, prefix, current, preferred if current else 0, valid, bytes([slot + 1]) * 20)


class Leaf:
    def __init__(self, lines: str = "::/56", more: str = "") -> None:
        config = ddpd.read_config(TEXT.format(lines) + more, "t")
        self.node = ddpd.Node(config, bytes(32), "b", lambda n: b"\x80" * n)
        self.node.start(at(T0))
        self.grantee = self.node.grantees["h"]
        for host in ("2001:db8::1", "2001:db8::9"):
            self.grantee.resolved(host, (ddpd.Path(host, 0),), at(T0))
        self.stamp = 0

    def ask(self) -> ddpd.Ask:
        self.stamp += 1
        return self.grantee.ask(self.stamp, b"run-----", ddpd.parse_host("2001:db8::2"))

    def answer(self, *grants: ddpd.Grant, boot: float = T0, sent: float | None = None,
               ask: ddpd.Ask | None = None, taken: str = "", **more: Any) -> list[ddpd.Effect]:
        answer = ddpd.Answer(stamp=1, status=more.pop("status", 0), version=1, grants=grants, **more)
        effects = self.grantee.answered(ask or self.ask(), answer, boot if sent is None else sent, at(boot),
                                        lambda _: taken)
        self.node.want_grantees()
        return effects

    def held(self) -> dict[str, bool]:
        return {str(held.prefix): held.current for held in self.grantee.held}


def in_state(state: State) -> Leaf:
    leaf = Leaf()
    if state in (State.BOUND, State.RENEWING, State.REBINDING):
        leaf.answer(grant())
    if state in (State.RENEWING, State.REBINDING):
        leaf.grantee.on_timer(at(leaf.grantee.timer))
    if state is State.REBINDING:
        leaf.grantee.on_timer(at(leaf.grantee.t2_at + 1))
    if state is State.RELEASED:
        leaf.answer(grant())
        leaf.grantee.step(Event.RELEASE, at(T0))
    assert leaf.grantee.state is state
    return leaf


# (state, event) -> (state afterwards, is something asked)
AFTER = {
    (State.SEEKING,   Event.DUE):      (State.SEEKING, True),
    (State.SEEKING,   Event.ANSWERED): (State.SEEKING, False),
    (State.SEEKING,   Event.NUDGED):   (State.SEEKING, True),
    (State.SEEKING,   Event.RENEW):    (State.SEEKING, True),
    (State.SEEKING,   Event.RELEASE):  (State.RELEASED, True),
    (State.BOUND,     Event.DUE):      (State.RENEWING, True),
    (State.BOUND,     Event.ANSWERED): (State.BOUND, False),
    (State.BOUND,     Event.NUDGED):   (State.RENEWING, True),
    (State.BOUND,     Event.RENEW):    (State.REBINDING, True),
    (State.BOUND,     Event.RELEASE):  (State.RELEASED, True),
    (State.RENEWING,  Event.DUE):      (State.RENEWING, True),
    (State.RENEWING,  Event.ANSWERED): (State.BOUND, False),
    (State.RENEWING,  Event.NUDGED):   (State.RENEWING, True),
    (State.RENEWING,  Event.RENEW):    (State.REBINDING, True),
    (State.RENEWING,  Event.RELEASE):  (State.RELEASED, True),
    (State.REBINDING, Event.DUE):      (State.REBINDING, True),
    (State.REBINDING, Event.ANSWERED): (State.BOUND, False),
    (State.REBINDING, Event.NUDGED):   (State.RENEWING, True),
    (State.REBINDING, Event.RENEW):    (State.REBINDING, True),
    (State.REBINDING, Event.RELEASE):  (State.RELEASED, True),
    (State.RELEASED,  Event.DUE):      (State.RELEASED, True),
    (State.RELEASED,  Event.ANSWERED): (State.RELEASED, False),
    (State.RELEASED,  Event.NUDGED):   (State.SEEKING, True),
    (State.RELEASED,  Event.RENEW):    (State.SEEKING, True),
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)),
                         ids=lambda v: v.name)
def test_every_state_and_event(state: State, event: Event) -> None:
    leaf = in_state(state)
    after, asks = AFTER.get((state, event), (state, False))
    now = leaf.grantee.t1_at if leaf.grantee.t1_at < float("inf") else T0
    effects = leaf.grantee.step(event, at(now))
    assert leaf.grantee.state is after
    assert (ddpd.Call("h") in effects) == asks


# ---- times

def test_t1_and_t2() -> None:
    leaf = Leaf()
    leaf.answer(grant(preferred=1000), sent=T0 - 2)
    assert (leaf.grantee.t1_at, leaf.grantee.t2_at) == (T0 + 498, T0 + 798)
    leaf.answer(grant(), times=(100, 200), sent=T0 - 2)
    assert (leaf.grantee.t1_at, leaf.grantee.t2_at) == (T0 + 98, T0 + 198)


def test_lifetimes_count_from_when_the_ask_was_sent() -> None:
    leaf = Leaf()
    leaf.answer(grant(), sent=T0 - 30)
    held, = leaf.grantee.held
    assert (held.prefers_until, held.valid_until) == (T0 + 1770, T0 + 3570)


def test_for_ever() -> None:
    leaf = Leaf()
    leaf.answer(grant(valid=ddpd.FOREVER, preferred=ddpd.FOREVER), times=(ddpd.FOREVER, ddpd.FOREVER))
    assert leaf.grantee.state is State.BOUND and leaf.grantee.deadline == float("inf")


def test_one_second_at_least() -> None:
    leaf = Leaf()
    leaf.answer(grant(valid=1, preferred=1))
    assert leaf.grantee.t1_at >= T0 + 1


def test_keepalive() -> None:
    leaf = Leaf(more="keepalive = 25s\n")
    leaf.answer(grant())
    assert leaf.grantee.timer == T0 + 25


def asks_at(leaf: Leaf, until: float) -> list[float]:
    found = []
    while (moment := leaf.grantee.deadline) < until:
        if ddpd.Call("h") in leaf.grantee.on_timer(at(moment)):
            found.append(moment)
    return found


def test_unanswered_asks_are_repeated_up_to_every_two_minutes() -> None:
    """1 s doubling to 120 s, each ±10 %."""
    leaf = Leaf()
    leaf.grantee.enter(State.SEEKING, T0)
    moments = asks_at(leaf, T0 + 3600)
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    for gap, ideal in zip(gaps, [1, 2, 4, 8, 16, 32, 64, *[120] * 99], strict=False):
        assert 0.9 * ideal <= gap <= 1.1 * ideal
    assert len(gaps) > 30


def test_every_address_in_turn_after_t2_only() -> None:
    leaf = in_state(State.RENEWING)
    places = []
    for _ in range(40):
        leaf.grantee.on_timer(at(leaf.grantee.deadline))
        place = leaf.grantee.place()
        assert place is not None
        places.append((leaf.grantee.state, place.host))
    assert {host for state, host in places if state is State.RENEWING} == {"2001:db8::1"}
    assert {host for state, host in places if state is State.REBINDING} == {"2001:db8::1", "2001:db8::9"}


def test_after_a_start_another_address_is_asked_within_a_minute() -> None:
    """T2 is not on file, and the first address may be dead: a lease of hours must not wait for its last tenth."""
    before, leaf = in_state(State.BOUND), Leaf()
    leaf.node.restore(before.node.records(True, at(T0)), at(T0))
    leaf.node.start(at(T0))
    assert leaf.grantee.state is State.RENEWING and leaf.held() == {str(P1): True}
    hosts = set()
    while leaf.grantee.deadline < T0 + 60:
        leaf.grantee.on_timer(at(leaf.grantee.deadline))
        place = leaf.grantee.place()
        assert place is not None
        hosts.add(place.host)
    assert hosts == {"2001:db8::1", "2001:db8::9"}


def test_while_the_grantor_is_silent_the_lease_runs_out_and_the_asking_goes_on() -> None:
    leaf = in_state(State.BOUND)
    moments = asks_at(leaf, T0 + 10_000)
    assert leaf.held() == {} and leaf.grantee.state is State.SEEKING
    assert len(moments) > 40 and moments[0] == T0 + 900


# ---- what is asked

def test_what_is_held_is_asked_for_with_its_ticket() -> None:
    leaf = Leaf("::/56\n  ::/60")
    leaf.answer(grant())
    assert leaf.ask().wants == (ddpd.Want(0, P1, bytes([1]) * 20), ddpd.Want(1, ddpd.parse_prefix("::/60")))


def test_lines_keep_their_slots_when_they_move() -> None:
    leaf = Leaf("::/56\n  ::/60\n  ::/60\n  7: 0.0.0.0/32")
    assert sorted(leaf.grantee.slots.values()) == [0, 1, 2, 7]
    text = TEXT.format("0.0.0.0/24\n  7: 0.0.0.0/32\n  ::/60\n  ::/56")
    leaf.node.reconfigure(ddpd.read_config(text, "t"), at(T0))
    ask = leaf.ask()
    assert {str(w.prefix): w.slot for w in ask.wants} == {"::/60": 1, "::/56": 0, "0.0.0.0/32": 7, "0.0.0.0/24": 3}
    assert ask.releases == (2,)


def test_what_is_given_back_is_not_used_any_longer() -> None:
    """The grantor may give it to another at once: so a line that is gone is not released while it lingers."""
    leaf = Leaf("::/56\n  ::/60")
    other = ddpd.parse_prefix("2001:db8:3:100::/60")
    leaf.answer(grant(), grant(1, other))
    leaf.node.reconfigure(ddpd.read_config(TEXT.format("::/56"), "t"), at(T0))
    ask = leaf.ask()
    leaf.answer(grant(), ask=ask)
    assert not set(ask.releases) & {held.slot for held in leaf.grantee.held}


def test_a_removed_line_lingers_deprecated_and_is_given_back_when_it_is_over() -> None:
    leaf = Leaf("::/56\n  ::/60")
    other = ddpd.parse_prefix("2001:db8:3:100::/60")
    leaf.answer(grant(), grant(1, other, valid=90_000, preferred=50_000))
    leaf.node.reconfigure(ddpd.read_config(TEXT.format("::/56"), "t"), at(T0))
    assert leaf.held() == {str(P1): True, str(other): False}
    assert [held.valid_until for held in leaf.grantee.held if held.slot == 1] == [T0 + ddpd.LINGER_S]
    leaf.answer(grant(valid=90_000), boot=T0 + ddpd.LINGER_S - 1)
    assert leaf.ask().releases == ()
    leaf.grantee.on_timer(at(T0 + ddpd.LINGER_S))
    assert leaf.ask().releases == (1,) and leaf.held() == {str(P1): True}
    assert leaf.grantee.deadline <= T0 + ddpd.LINGER_S + 2        # and that is told soon


def test_what_the_operator_gives_back_is_dropped_at_once() -> None:
    leaf = Leaf("::/56 on br0")
    leaf.answer(grant())
    effects = leaf.node.operate(Event.RELEASE, "", at(T0 + 1))
    assert leaf.held() == {} and leaf.node.wanted.things == {}
    assert ddpd.Call("h") in effects and written(leaf) == [None]


def test_no_slot_is_wanted_and_given_back_in_one_ask() -> None:
    """It would be answered INVALID: a new line may take the number of one that was removed."""
    leaf = Leaf("::/56\n  ::/60")
    leaf.answer(grant())
    leaf.node.reconfigure(ddpd.read_config(TEXT.format("::/56"), "t"), at(T0))
    assert leaf.ask().releases == (1,)
    leaf.node.reconfigure(ddpd.read_config(TEXT.format("::/56\n  ::/62"), "t"), at(T0))
    ask = leaf.ask()
    assert not set(ask.releases) & {want.slot for want in ask.wants}


# ---- what is believed

@pytest.mark.parametrize(("bad", "why"), [
    (grant(0, ddpd.parse_prefix("2001:db8:1:100::/60")), "asked for /56"),
    (grant(0, ddpd.parse_prefix("2001:db8::/48")), "asked for /56"),
    (grant(0, ddpd.parse_prefix("10.0.0.0/32")), "asked for /56 of IPv6"),
    (grant(0, ddpd.parse_prefix("fe80::/56")), "accept"),
    (grant(0, ddpd.parse_prefix("ff00::/56")), "accept"),
])
def test_what_is_not_believed(bad: ddpd.Grant, why: str) -> None:
    leaf = Leaf()
    leaf.answer(bad)
    assert leaf.held() == {} and leaf.node.wanted.things == {}
    assert why in leaf.grantee.complaints[bad.slot][1]
    assert leaf.grantee.state is State.SEEKING and leaf.grantee.timer == T0 + ddpd.GIVE_BACK_S


def test_what_is_not_taken_is_given_back_and_asked_for_again_later_and_later() -> None:
    leaf, bad, boot, gaps = Leaf(), grant(0, ddpd.parse_prefix("2001:db8:1:100::/60")), T0, []
    for _ in range(8):
        leaf.answer(bad, boot=boot)
        boot = leaf.grantee.timer
        ask = leaf.grantee.ask(1, b"run-----", P1)
        assert (ask.wants, ask.releases) == ((), (0,))
        leaf.grantee.on_timer(at(boot))
        leaf.grantee.answered(ask, ddpd.Answer(stamp=1, status=0, version=1), boot, at(boot), lambda _: "")
        gaps.append(round(leaf.grantee.timer - boot + ddpd.GIVE_BACK_S))
        boot = leaf.grantee.timer
        leaf.grantee.on_timer(at(boot))
        assert [want.slot for want in leaf.grantee.ask(1, b"run-----", P1).wants] == [0]
    assert gaps == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    leaf.answer(grant(), boot=boot)
    assert leaf.grantee.untaken_s == {} and leaf.held() == {str(P1): True}


def test_a_renewal_does_not_ask_for_what_was_not_taken_before_its_time() -> None:
    leaf = Leaf("::/56\n  ::/60")
    leaf.answer(grant(), grant(1, ddpd.parse_prefix("2001:db8:9::/64")), times=(3, 60))
    leaf.grantee.on_timer(at(leaf.grantee.timer))                    # given back
    leaf.answer(grant(), boot=T0 + 2.5, times=(3, 60))
    leaf.grantee.on_timer(at(leaf.grantee.t1_at))
    assert [want.slot for want in leaf.grantee.ask(1, b"run-----", P1).wants] == [0]
    leaf.grantee.step(Event.RENEW, at(T0 + 6))
    assert [want.slot for want in leaf.grantee.ask(1, b"run-----", P1).wants] == [0, 1]


def test_who_is_told_to_ask_again_gives_nothing_back() -> None:
    leaf = Leaf()
    leaf.answer(grant(0, ddpd.parse_prefix("2001:db8:1:100::/60")))
    leaf.grantee.step(Event.RENEW, at(T0 + 1))
    ask = leaf.grantee.ask(1, b"run-----", P1)
    assert [want.slot for want in ask.wants] == [0] and not ask.releases


def test_an_answer_that_grants_nothing_says_nothing_of_when_to_renew() -> None:
    """Else a lease that is refused for a day, or whose ask is INVALID, is not renewed until it is over."""
    leaf = Leaf("::/56\n  ::/60")
    leaf.answer(grant(), times=(900, 1400))
    t1, t2 = leaf.grantee.t1_at, leaf.grantee.t2_at
    leaf.answer(refusals=(ddpd.Refusal(0, ddpd.Reason.FULL, 86_400, ""), ddpd.Refusal(1, ddpd.Reason.FULL, 86_400, "")))
    assert (leaf.grantee.t1_at, leaf.grantee.t2_at, leaf.grantee.timer) == (t1, t2, t1)
    leaf.answer(status=ddpd.Status.INVALID, boot=t1 + 5)
    assert leaf.grantee.timer == t1 + 5 + 60 and leaf.grantee.t2_at == t2


@pytest.mark.parametrize(("times", "expected"), [
    ((900, 1400), (900, 1400)), ((0, 1400), (900, 1440)), ((900, 0), (900, 1440)), ((900, 800), (900, 1440))])
def test_times_that_contradict_each_other_count_as_missing(times: tuple[int, int], expected: tuple[int, int]) -> None:
    leaf = Leaf()
    leaf.answer(grant(), times=times)
    assert (leaf.grantee.t1_at - T0, leaf.grantee.t2_at - T0) == expected


def test_what_nobody_asked_for_leaves_nothing_behind() -> None:
    leaf = Leaf()
    leaf.answer(grant(3), refusals=(ddpd.Refusal(7, 1, 5, "no"),))
    assert leaf.held() == {} and leaf.grantee.complaints == {} and leaf.grantee.refused == {}


def test_no_grantor_can_send_a_slot_away_for_years() -> None:
    leaf = Leaf()
    leaf.answer(refusals=(ddpd.Refusal(0, 1, 2**32 - 1, "never"),))
    assert leaf.grantee.timer == T0 + ddpd.MAX_AGAIN_S


@pytest.mark.parametrize("prefix", [P1, ddpd.parse_prefix("2001:db8:1:100::/60"), ddpd.parse_prefix("2001:db8::/48")])
def test_any_length_takes_what_comes(prefix: ddpd.Prefix) -> None:
    leaf = Leaf("::/0 on br0")
    assert leaf.grantee.ask(1, b"run-----", P1).wants == (ddpd.Want(0, ddpd.parse_prefix("::/0")),)
    leaf.answer(grant(0, prefix))
    assert leaf.held() == {str(prefix): True}
    assert leaf.grantee.ask(1, b"run-----", P1).wants[0].prefix == prefix


def test_what_another_has_is_not_taken() -> None:
    leaf = Leaf()
    leaf.answer(grant(), taken="overlaps 2001:db8:1::/48 on eth0")
    assert leaf.held() == {}


def test_an_address_inside_of_what_is_held_does_not_end_the_renewals() -> None:
    """The operator's, or one of ours that a look at the links found before its record."""
    leaf = Leaf("::/56 on br0")
    leaf.answer(grant())
    leaf.node.links = ddpd.Links({2: "eth0"}, ((2, ddpd.parse_interface("2001:db8:1:1ff::9/64")),))
    why = leaf.node.taken("h", P1)
    assert "eth0" in why
    leaf.answer(grant(), boot=T0 + 900, taken=why)
    assert leaf.grantee.complaints == {} and leaf.grantee.held[0].valid_until == T0 + 900 + 3600


@pytest.mark.parametrize("second", [str(P1), "2001:db8:1:1f0::/60"])
def test_two_slots_do_not_overlap(second: str) -> None:
    prefix = ddpd.parse_prefix(second)
    leaf = Leaf(f"::/56\n  ::/{prefix.length}")
    leaf.answer(grant(), grant(1, prefix))
    assert leaf.held() == {str(P1): True} and len(leaf.grantee.held) == 1


def test_what_a_link_has_is_not_taken() -> None:
    leaf = Leaf()
    leaf.node.links = ddpd.Links({2: "eth0"}, ((2, ddpd.parse_interface("2001:db8:1:1ff::1/64")),))
    assert "eth0" in leaf.node.taken("h", P1) and leaf.node.taken("h", P2) == ""
    ours = ddpd.Address("eth0", ddpd.parse_interface("2001:db8:1:1ff::1/64"))
    leaf.node.made = {ours.id: ours}
    assert leaf.node.taken("h", P1) == ""


@pytest.mark.parametrize(("told", "taken"), [(1280, 1280), (576, 1280), (9000, 9000), (65535, 9000)])
def test_mtu_is_bounded(told: int, taken: int) -> None:
    leaf = Leaf()
    leaf.answer(grant(), mtu=told)
    assert leaf.grantee.options["mtu"] == taken


# ---- what is lost or replaced

def test_a_replaced_prefix_is_deprecated_for_two_hours_at_most() -> None:
    leaf = Leaf()
    leaf.answer(grant(valid=90_000, preferred=50_000))
    leaf.answer(grant(0, P2), boot=T0 + 10)
    old = leaf.grantee.held[0]
    assert leaf.held() == {str(P1): False, str(P2): True}
    assert (old.prefers_until, old.valid_until) == (T0 + 10, T0 + 10 + ddpd.LINGER_S)


def test_a_deprecated_grant_is_valid_no_longer_than_it_says() -> None:
    leaf = Leaf()
    leaf.answer(grant(valid=90_000, preferred=50_000))
    leaf.answer(grant(0, P1, valid=100, current=False), grant(0, P2))
    assert leaf.held() == {str(P1): False, str(P2): True}
    assert leaf.grantee.held[0].valid_until == T0 + 100


def test_a_deprecated_grant_that_is_not_held_is_ignored() -> None:
    leaf = Leaf()
    leaf.answer(grant(0, P2, current=False))
    assert leaf.held() == {}


@pytest.mark.parametrize(("reason", "lost"), [
    (ddpd.Reason.NO_POOL, True), (ddpd.Reason.LENGTH, True), (ddpd.Reason.REVOKED, True),
    (ddpd.Reason.ENDED, True), (ddpd.Reason.FULL, False), (ddpd.Reason.LIMIT, False),
    (ddpd.Reason.RATE, False), (ddpd.Reason.RECOVERING, False), (ddpd.Reason.CLONE, False),
    (ddpd.Reason.DISK, False), (77, False)])
def test_refusals_that_mean_lost(reason: int, lost: bool) -> None:
    leaf = Leaf()
    leaf.answer(grant())
    leaf.answer(refusals=(ddpd.Refusal(0, reason, 100, "so"),))
    assert leaf.held() == {str(P1): not lost}
    assert leaf.grantee.timer == T0 + 100


def test_a_refusal_without_a_time_doubles_up_to_an_hour() -> None:
    leaf, waits = Leaf(), []
    for _ in range(9):
        leaf.answer(refusals=(ddpd.Refusal(0, ddpd.Reason.FULL, 0, ""),))
        waits.append(leaf.grantee.timer - T0)
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_a_refused_lease_that_runs_out_is_sought_again() -> None:
    """Its slot may be asked for again only later; but nobody is bound who holds nothing."""
    leaf = Leaf()
    leaf.answer(grant(valid=100, preferred=50))
    leaf.answer(refusals=(ddpd.Refusal(0, ddpd.Reason.FULL, 3600, ""),))
    leaf.grantee.on_timer(at(T0 + 101))
    assert leaf.held() == {} and leaf.grantee.state is State.SEEKING


@pytest.mark.parametrize("status", [2, 3, 99])
def test_other_statuses_keep_what_is_held(status: int) -> None:
    leaf = Leaf()
    leaf.answer(grant())
    leaf.answer(grant(0, P2), status=status)
    assert leaf.held() == {str(P1): True} and leaf.grantee.timer > T0 + 50


def test_a_slot_left_out_keeps_what_it_has() -> None:
    leaf = Leaf("::/56\n  ::/60")
    other = ddpd.parse_prefix("2001:db8:3:100::/60")
    leaf.answer(grant(), grant(1, other))
    leaf.answer(grant())
    assert leaf.held() == {str(P1): True, str(other): True} and leaf.grantee.timer == T0 + 60


def test_options_stay_when_an_answer_had_no_room_for_them() -> None:
    leaf = Leaf()
    leaf.answer(grant(), search=("lan",))
    leaf.answer(grant(), need=900)
    assert leaf.grantee.options == {"search": ("lan",)}
    leaf.answer(grant())
    assert leaf.grantee.options == {}


# ---- giving back

def test_giving_back_is_repeated_until_it_is_answered() -> None:
    leaf = in_state(State.RELEASED)
    assert leaf.ask().wants == () and leaf.ask().releases == (0,)
    assert len(asks_at(leaf, T0 + 600)) > 5
    leaf.answer(boot=T0 + 600)
    assert leaf.held() == {} and leaf.grantee.deadline == float("inf")


def test_a_reload_does_not_end_the_giving_back() -> None:
    leaf = in_state(State.RELEASED)
    leaf.node.reconfigure(ddpd.read_config(TEXT.format("::/56"), "t"), at(T0 + 1))
    assert leaf.ask().releases == (0,) and leaf.ask().wants == ()


def test_a_late_answer_does_not_end_the_giving_back() -> None:
    leaf = Leaf()
    leaf.answer(grant())
    renewal = leaf.ask()
    leaf.grantee.step(Event.RELEASE, at(T0))
    leaf.answer(grant(), ask=renewal)
    assert leaf.grantee.releases == {0} and leaf.grantee.deadline < T0 + 200


# ---- what is written

def written(leaf: Leaf) -> list[ddpd.Record | None]:
    """Since this was asked last; slots, which are written once, aside."""
    records, leaf.node.wanted.records = leaf.node.wanted.records, {}
    return [record for key, record in records.items() if key[0] != "slot"]


def test_renewals_are_not_written_until_a_quarter_has_passed() -> None:
    leaf = Leaf()
    for after_s, writes in (0, 1), (800, 0), (1800, 1):
        leaf.answer(grant(valid=7200), boot=T0 + after_s)
        assert len(written(leaf)) == writes


def test_what_is_over_is_struck_out() -> None:
    leaf = Leaf()
    leaf.answer(grant(valid=100, preferred=50))
    leaf.grantee.on_timer(at(T0 + 100))
    records = leaf.node.wanted.records
    assert [(key[-1], record) for key, record in records.items() if key[0] == "held"] == [(str(P1), None)]


# ---- interfaces

@pytest.mark.parametrize(("line", "prefix", "addresses"), [
    ("::/56 on br0 br1=7 br2", "2001:db8:1:100::/56",
     {"br0": "2001:db8:1:100::1/64", "br1": "2001:db8:1:107::1/64", "br2": "2001:db8:1:101::1/64"}),
    ("::/64 on br0", "2001:db8:1:100::/64", {"br0": "2001:db8:1:100::1/64"}),
    ("::/64 on br0 br1", "2001:db8:1:100::/64", {"br0": "2001:db8:1:100::1/64"}),
    ("::/80 on br0", "2001:db8:1:100::/80", {"br0": "2001:db8:1:100::1/80"}),
    ("::/128 on br0", "2001:db8:1::7/128", {"br0": "2001:db8:1::7/128"}),
    ("0.0.0.0/24 on br0", "10.1.2.0/24", {"br0": "10.1.2.1/24"}),
    ("0.0.0.0/32 on wg0", "10.1.2.3/32", {"wg0": "10.1.2.3/32"}),
])
def test_addresses(line: str, prefix: str, addresses: dict[str, str]) -> None:
    leaf = Leaf(line)
    leaf.answer(grant(0, ddpd.parse_prefix(prefix)))
    things = leaf.node.wanted.things.values()
    assert {t.dev: str(t.address) for t in things if isinstance(t, ddpd.Address)} == addresses
    routes = [str(t.prefix) for t in things if isinstance(t, ddpd.Route)]
    assert routes == ([] if ddpd.parse_prefix(prefix).is_address else [prefix])


def test_each_prefix_leaves_by_its_own_gateway() -> None:
    leaf = Leaf(more="default = dev wg0\n")
    leaf.answer(grant())
    things = set(leaf.node.wanted.things.values())
    table = 720
    assert things == {
        ddpd.Route(P1, ddpd.MAIN), ddpd.Rule(6, None, ddpd.MAIN), ddpd.Rule(6, P1, table),
        ddpd.Route(ddpd.parse_prefix("::/0"), table, ddpd.Reach("", "wg0"))}


def test_install_no_leaves_the_kernel_alone() -> None:
    leaf = Leaf("::/56 on br0", "install = no\ndefault = dev wg0\n")
    leaf.answer(grant())
    assert leaf.held() == {str(P1): True} and leaf.node.wanted.things == {}


@pytest.mark.parametrize("line", ["::/56 on br0", "0.0.0.0/24 on br0"])
def test_a_gateway_of_the_other_family_is_no_gateway(line: str) -> None:
    via = {6: "192.0.2.1", 4: "2001:db8::1"}[ddpd.parse_prefix(line.split()[0]).version]
    leaf = Leaf(line, f"default = via {via}\n")
    leaf.answer(grant(0, P1 if via == "192.0.2.1" else ddpd.parse_prefix("10.1.2.0/24")))
    assert {type(thing) for thing in leaf.node.wanted.things.values()} == {ddpd.Route, ddpd.Address}
    assert {thing.table for thing in leaf.node.wanted.things.values() if isinstance(thing, ddpd.Route)} == {ddpd.MAIN}


# ---- a restart

def restored(lines: str, *records: ddpd.Record) -> Leaf:
    leaf = Leaf.__new__(Leaf)
    leaf.node = ddpd.Node(ddpd.read_config(TEXT.format(lines), "t"), bytes(32), "b", lambda n: b"\x80" * n)
    assert leaf.node.restore(records, at(T0 + 1)) == []
    leaf.grantee, leaf.stamp = leaf.node.grantees["h"], 0
    return leaf


def test_slots_are_written_down_at_the_start() -> None:
    """Not only at the end: kill -9 must not number them anew."""
    leaf = Leaf("::/56\n  ::/60")
    first = ddpd.Node(leaf.node.config, bytes(32), "b", bytes)
    first.start(at(T0))
    slots = [record for record in first.wanted.records.values() if record is not None]
    assert {record["line"]: record["slot"] for record in slots} == {"6/56#0": 0, "6/60#0": 1}
    again = restored("::/60\n  ::/56", *slots)
    assert again.grantee.slots == {"6/56#0": 0, "6/60#0": 1}


def test_slots_of_which_the_record_is_lost_are_those_of_the_leases() -> None:
    leaf = Leaf("::/56\n  ::/60")
    leaf.answer(grant(0), grant(1, ddpd.parse_prefix("2001:db8:3:100::/60")))
    records = [held.record(KEY, "b", at(T0)) for held in leaf.grantee.held]
    again = restored("::/60\n  ::/56", *records)
    assert again.grantee.slots == {"6/56#0": 0, "6/60#0": 1}
    assert all(want.ticket for want in again.ask().wants) and again.ask().releases == ()
    again.node.start(at(T0 + 1))
    written_again = again.node.wanted.records
    assert [record["slot"] for key, record in written_again.items() if key[0] == "slot" and record] == [1, 0]
