"""Tables of (state of the world, ask) -> answer; and what must never be given twice."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest

import ddpd

HUB = bytes(range(32))
KEYS = {name: ddpd.keypair(bytes([n]) * 32).public for n, name in enumerate(["alice", "bob", "carol"], 1)}
WALL = 1_700_000_000.0
ETH0 = bytes(16) + (1).to_bytes(4, "little")
HOME = "[pool home]\nprefix = 2001:db8:42::/48\ngive = /56-/64\nlifetime = 1h\n"
TINY = "[pool home]\nprefix = 2001:db8:42::/63\ngive = /64\nlifetime = 1h\n"


def grantee(name: str, more: str = "", pools: str = "home") -> str:
    return f"[grantee {name}]\nkey = {ddpd.show_key(KEYS[name])}\npools = {pools}\nroute = none\n{more}\n"


def want(slot: int, text: str = "::/64", ticket: bytes = b"") -> ddpd.Want:
    return ddpd.Want(slot, ddpd.parse_prefix(text), ticket)


class Hub:
    """A grantor, spoken to in messages: no datagrams, no sessions."""

    def __init__(self, text: str = HOME, who: Iterable[str] = KEYS, more: str = "limit = 4") -> None:
        self.more = more
        self.boot, self.wall, self.stamp = 1000.0, WALL, 0
        self.runs = dict.fromkeys(KEYS, b"run-----")
        self.text = text + "".join(grantee(name, more) for name in who)
        self.node = ddpd.Node(ddpd.read_config(self.text, "t"), HUB, "boot", random.Random(1).randbytes)
        self.effects: list[ddpd.Effect] = []

    @property
    def now(self) -> ddpd.Now:
        return ddpd.Now(self.boot, self.wall)

    @property
    def grantor(self) -> ddpd.Grantor:
        return self.node.grantor

    def peer(self, name: str) -> ddpd.Peer:
        peer = self.grantor.peer_of(KEYS[name])
        assert peer is not None
        return peer

    def ask(self, name: str, *wants: ddpd.Want, releases: tuple[int, ...] = (), **more: Any) -> ddpd.Answer:
        self.stamp += 1
        ask = ddpd.Ask(stamp=self.stamp, run=self.runs[name], wants=wants, releases=releases, **more)
        path = ddpd.Path("2001:db8:e::2", 5000, 0, ETH0)
        peer = self.peer(name)
        self.node.wanted.records, self.grantor.unwritten = {}, {}     # as the shell does, once it is on disk
        answer, self.effects = self.grantor.handle_ask(peer, ask, path, self.now)
        peer.stamp = self.stamp
        return answer

    def get(self, name: str, *wants: ddpd.Want) -> list[ddpd.Prefix]:
        return [grant.prefix for grant in self.ask(name, *wants).grants if grant.current]

    def refused(self, name: str, *wants: ddpd.Want) -> list[ddpd.Reason]:
        return [ddpd.Reason(refusal.reason) for refusal in self.ask(name, *wants).refusals]

    def later(self, s: float) -> None:
        self.boot, self.wall = self.boot + s, self.wall + s
        self.effects = self.node.on_timer(self.now)

    def configure(self, text: str, who: Iterable[str] = KEYS, more: str | None = None) -> list[ddpd.Effect]:
        self.text = text + "".join(grantee(name, self.more if more is None else more) for name in who)
        return self.node.reconfigure(ddpd.read_config(self.text, "t"), self.now)

    def restart(self, clean: bool = True, lost: bool = False) -> None:
        """Through the bytes of a lease file."""
        file = ddpd.LeaseFile()
        data = b"".join(file.whole(self.node.records(clean, self.now)))
        self.reborn()
        if lost:
            self.node.recover([], True, self.now)
        else:
            found, damage = ddpd.parse_lease_file(data.decode().split("\n"))
            assert not damage + self.node.restore([record for _, record in found.values()], self.now)

    def reborn(self) -> None:
        self.node = ddpd.Node(ddpd.read_config(self.text, "t"), HUB, "boot", random.Random(2).randbytes)

    def living(self) -> list[ddpd.Prefix]:
        return [lease.prefix for peer in self.grantor.peers.values() for lease in peer.living()]


# ---- same key, same slot, same prefix

def test_a_renewal_gets_the_same_and_writes_nothing() -> None:
    hub = Hub()
    first = hub.get("alice", want(0))
    assert hub.node.wanted.records
    hub.later(1800)
    assert hub.get("alice", want(0)) == first
    assert hub.node.wanted.records == {}


def test_a_lost_run_record_expires_nothing() -> None:
    hub = Hub()
    first = hub.get("alice", want(0))
    for _ in range(3):
        hub.restart(clean=False)
        assert hub.get("alice", want(0)) == first
    records = [record for record in hub.node.records(False, hub.now) if record["kind"] != "run"]
    hub.reborn()
    assert hub.node.restore(records, hub.now) == []
    hub.later(1)
    assert hub.living() == first and hub.get("alice", want(0)) == first


@pytest.mark.parametrize("clean", [True, False])
def test_for_ever(clean: bool) -> None:
    """Lives and is held back for ever, in JSON too; what is replaced is over some time all the same."""
    hub = Hub("[ddpd]\nhold = forever\n" + HOME.replace("1h", "forever"))
    first, second = hub.get("alice", want(0), want(1))
    assert [grant.valid_s for grant in hub.ask("alice", want(0)).grants] == [ddpd.FOREVER]
    hub.ask("alice", releases=(0,))
    hub.restart(clean)
    hub.later(1e9)
    assert hub.living() == [second] and list(hub.grantor.former) == [first]
    hub.configure(HOME.replace(":42:", ":43:"))
    answer = hub.ask("alice", want(1))
    assert [grant.valid_s for grant in answer.grants if not grant.current] == [ddpd.LINGER_S]
    hub.later(ddpd.LINGER_S + 1)
    assert second not in hub.living() and hub.grantor.stock.is_free(second)


@pytest.mark.parametrize("how", ["released", "expired"])
def test_what_ended_is_held_back_for_who_had_it(how: str) -> None:
    hub = Hub(TINY)
    first = hub.get("alice", want(0))
    if how == "released":
        hub.ask("alice", releases=(0,))
    else:
        hub.later(3601)
    assert hub.living() == []
    assert hub.get("bob", want(0)) != first                    # there is another
    hub.restart()
    assert hub.get("alice", want(0)) == first


def test_oldest_first_when_nothing_else_is_left() -> None:
    hub = Hub(TINY)
    first, second = hub.get("alice", want(0)), hub.get("bob", want(0))
    hub.ask("bob", releases=(0,))
    hub.later(1)
    hub.ask("alice", releases=(0,))
    assert hub.get("carol", want(0)) == second
    assert hub.get("carol", want(0), want(1)) == second + first
    assert hub.refused("alice", want(0)) == [ddpd.Reason.FULL]


def test_what_all_slots_had_is_held_back() -> None:
    """A router whose interface goes down and up again releases all that it has, and gets it back."""
    hub = Hub(more="limit = 16\nrate = 32/30s")
    prefixes = hub.get("alice", *[want(slot) for slot in range(16)])
    hub.ask("alice", releases=tuple(range(16)))
    assert set(hub.grantor.former) == set(prefixes)
    assert hub.get("alice", *[want(slot) for slot in range(16)]) == prefixes


def test_of_one_slot_at_most_four_more_are_held_back() -> None:
    hub = Hub(more="limit = 8\nrate = 90/30s\nlengths = /56-/64")
    given = []
    for length in (56, 57, 58, 59, 60, 61, 62, 63):
        given += hub.get("alice", want(0, f"::/{length}"))
        hub.later(1)
        hub.ask("alice", releases=(0,))
    for slot in range(1, 8):
        given += hub.get("alice", want(slot))
        hub.ask("alice", releases=(slot,))
    assert len(hub.grantor.former) <= ddpd.MAX_FORMER + ddpd.MAX_SLOTS
    assert set(given[-8:]) <= set(hub.grantor.former)


def test_hold_ends() -> None:
    hub = Hub()
    first = hub.get("alice", want(0))
    hub.ask("alice", releases=(0,))
    hub.later(30 * 86400 + 1)
    assert hub.grantor.stock.is_free(first[0]) and hub.grantor.former == {}


# ---- refusals


def test_a_long_refusal_is_cut() -> None:
    """A text that is too long would not be encoded, or dropped by who reads it."""
    lengths = " ".join(f"/{length}" for length in range(16, 129, 2))
    answer = Hub(f"[pool home]\nprefix = 2001::/16\ngive = {lengths}\n").ask("alice", want(0, "::/65"))
    heard = ddpd.decode(ddpd.encode(answer))
    assert isinstance(heard, ddpd.Answer) and len(heard.refusals[0].text) == ddpd.MAX_TEXT


def test_what_can_be_granted_is_granted() -> None:
    answer = Hub().ask("alice", want(0), want(1, "::/48"), want(2))
    assert [grant.slot for grant in answer.grants] == [0, 2]
    assert [refusal.slot for refusal in answer.refusals] == [1]


def test_the_limit_counts_a_family_and_the_unnamed_unrenewed_slot_goes_first() -> None:
    text = HOME + "[pool four]\nprefix = 10.0.0.0/16\ngive = /24\n"
    hub = Hub(text, ["alice"], "limit = 2")
    hub.configure(text.replace("[grantee", ""), [], "")
    hub = Hub(text + grantee("alice", "limit = 2", "home four"), [])
    assert len(hub.get("alice", want(0), want(1), want(2, "0.0.0.0/24"))) == 3
    assert hub.refused("alice", want(0), want(1), want(3)) == [ddpd.Reason.LIMIT]
    hub.later(10)
    hub.ask("alice", want(1))
    answer = hub.ask("alice", want(3))                         # slot 0 was unrenewed for longest
    assert [grant.slot for grant in answer.grants] == [3]
    assert {lease.slot for lease in hub.peer("alice").living()} == {1, 2, 3}


def test_new_leases_come_from_a_token_bucket() -> None:
    """Five at once, and one more every six seconds; renewals cost nothing."""
    hub = Hub(more="limit = 256")
    answer = hub.ask("alice", *[want(slot) for slot in range(8)])
    assert len(answer.grants) == 5
    assert {refusal.reason for refusal in answer.refusals} == {ddpd.Reason.RATE}
    assert 6 <= answer.refusals[0].again_s <= 7
    assert len(hub.get("bob", want(0))) == 1
    for n in range(5, 8):
        hub.later(6)
        assert len(hub.get("alice", *[want(slot) for slot in range(8)])) == n + 1
    hub.later(3600 * 24)
    assert len(hub.get("alice", *[want(slot, "::/63") for slot in range(20, 28)])) == 5, "no more than it holds"


def test_the_rate_of_all_grantees_together() -> None:
    hub = Hub("[ddpd]\nrate = 2/10s\n" + HOME)
    assert [len(hub.get(name, want(0))) for name in KEYS] == [1, 1, 0]
    assert "all grantees" in hub.ask("carol", want(0)).refusals[0].text
    hub.later(5)
    assert [len(hub.get(name, want(0))) for name in KEYS] == [1, 1, 1]
    assert hub.refused("alice", want(1)) == [ddpd.Reason.RATE]


@pytest.mark.parametrize("how", ["former", "ticket"])
def test_what_comes_back_by_itself_is_rated_too_and_leaves_no_timers(how: str) -> None:
    hub = Hub(HOME.replace("1h", "30d"))
    prefix, ticket = ticket_of(hub, "alice")
    had, free = 0, {"former": ddpd.GRANTEE_CHANGES.burst, "ticket": 0}[how]      # what it had before is no new lease
    for _ in range(200):
        hub.ask("alice", releases=(0,))
        for lease in list(hub.peer("alice").leases) if how == "ticket" else ():
            hub.grantor.forget(lease)
        had += not hub.refused("alice", want(0, prefix, ticket))
    assert had == free + 4
    hub.boot += 60
    for _ in range(4000):
        hub.boot += 6
        hub.ask("alice", releases=(0,))
        assert hub.get("alice", want(0, prefix, ticket)) == [ddpd.parse_prefix(prefix)]
    assert len(hub.grantor.timers) <= 2100


def test_a_slot_named_twice_is_an_error_and_changes_nothing() -> None:
    hub = Hub()
    for wants, releases in [((want(0), want(0, "::/56")), ()), ((want(3),), (3,)), ((), (1, 1))]:
        answer = hub.ask("alice", *wants, releases=releases)
        assert answer.status == ddpd.Status.INVALID and answer.grants == ()
    assert hub.living() == [] and hub.effects == []


def test_more_slots_than_an_ask_may_name() -> None:
    hub = Hub(more="limit = 256")
    answer = hub.ask("alice", *[want(slot) for slot in range(ddpd.MAX_SLOTS + 1)])
    assert answer.status == ddpd.Status.INVALID and hub.living() == []


def test_a_full_disk_refuses_the_new_and_renews_the_old() -> None:
    hub = Hub()
    first = hub.get("alice", want(0))
    hub.grantor.unwritten.clear()
    hub.grantor.unsaved()
    assert hub.refused("bob", want(0)) == [ddpd.Reason.DISK]
    assert hub.get("alice", want(0)) == first


def test_what_could_not_be_saved_is_not_held() -> None:
    hub = Hub()
    prefix, = hub.get("alice", want(0))
    hub.grantor.unsaved()
    assert hub.living() == [] and hub.grantor.stock.is_free(prefix)


# ---- tickets

def ticket_of(hub: Hub, name: str, slot: int = 0) -> tuple[str, bytes]:
    grant, = hub.ask(name, want(slot)).grants
    return str(grant.prefix), grant.ticket


@pytest.mark.parametrize("forgery", [
    "another's", "other slot", "other length", "other prefix", "flipped", "none", "other hour"])
def test_what_is_no_ticket(forgery: str) -> None:
    hub = Hub()
    prefix, ticket = ticket_of(hub, "alice")
    hub.restart(lost=True)
    hub.node.grantor.recovering_until = -1.0
    name, slot = "alice", 0
    if forgery == "another's":
        name = "bob"
    elif forgery == "other slot":
        slot = 1
    elif forgery == "other length":
        prefix = str(ddpd.parse_prefix(prefix).network(60))
    elif forgery == "other prefix":
        first = ddpd.parse_prefix(prefix)
        prefix = str(first._replace(first=first.first ^ (1 << 70)))
    elif forgery == "flipped":
        ticket = ticket[:-1] + bytes([ticket[-1] ^ 1])
    elif forgery == "none":
        ticket = b""
    else:
        ticket = bytes(4) + ticket[4:]
    assert hub.get(name, want(slot, prefix, ticket)) != [ddpd.parse_prefix(prefix)]


def test_a_ticket_for_what_another_holds_is_worth_nothing() -> None:
    hub = Hub(TINY)
    prefix, ticket = ticket_of(hub, "alice")
    hub.restart(lost=True)
    hub.node.grantor.recovering_until = -1.0
    while prefix not in map(str, hub.living()):
        hub.get("bob", want(len(hub.living())))
    assert str(hub.get("alice", want(0, prefix, ticket))) != prefix
    assert len(set(hub.living())) == len(hub.living())


def test_an_old_ticket_is_no_claim() -> None:
    hub = Hub()
    prefix, ticket = ticket_of(hub, "alice")
    hub.wall += 3 * 3600
    hub.restart(lost=True)
    assert hub.refused("alice", want(0, prefix, ticket)) == [ddpd.Reason.RECOVERING]


def test_a_ticket_is_no_older_for_the_hour_that_has_just_begun() -> None:
    """Whole hours are all that it says: a minute's lease must not be an hour old a second later."""
    hub = Hub(HOME.replace("1h", "1m"))
    hub.wall = WALL // 3600 * 3600 + 3599.0
    prefix, ticket = ticket_of(hub, "alice")
    hub.wall += 2.0
    hub.restart(lost=True)
    assert hub.get("alice", want(0, prefix, ticket)) == [ddpd.parse_prefix(prefix)]


def test_a_ticket_of_the_future_counts_as_now() -> None:
    hub = Hub()
    prefix, ticket = ticket_of(hub, "alice")
    hub.wall = 0.0
    hub.restart(lost=True)
    assert hub.get("alice", want(0, prefix, ticket)) == [ddpd.parse_prefix(prefix)]


def test_a_ticket_for_what_is_no_longer_agreed() -> None:
    hub = Hub()
    prefix, ticket = ticket_of(hub, "alice")
    hub.restart(lost=True)
    hub.configure(HOME.replace(":42:", ":43:"))
    assert str(hub.get("alice", want(0, prefix, ticket))) != prefix


@pytest.mark.parametrize("text", [HOME + "reserve = 2001:db8:42::/49 2001:db8:42:8000::/49\n"])
def test_no_ticket_opens_what_is_reserved(text: str) -> None:
    hub = Hub()
    prefix, ticket = ticket_of(hub, "alice")
    hub.restart(lost=True)
    hub.configure(text)
    assert hub.get("alice", want(0, prefix, ticket)) == []


@pytest.mark.parametrize(("hold", "lifetime", "left"), [
    ("1m", "1h", 3600), ("30d", "1h", 3600), ("1m", "forever", ddpd.FOREVER)])
def test_recovering_lasts_the_longest_lifetime_whatever_hold_is(hold: str, lifetime: str, left: int) -> None:
    """What was promised is promised; `hold` is only a courtesy."""
    hub = Hub(f"[ddpd]\nhold = {hold}\n" + HOME.replace("1h", lifetime))
    hub.restart(lost=True)
    hub.later(0)
    refusal, = hub.ask("alice", want(0)).refusals
    assert refusal.reason == ddpd.Reason.RECOVERING and f" {left} s" in refusal.text and refusal.again_s == 600
    hub.later(3500)
    hub.restart()
    assert hub.refused("alice", want(0)) == [ddpd.Reason.RECOVERING]


def test_recovering_does_not_come_back_after_it_has_ended() -> None:
    """What the lease file says of it must end when it ends: a crash much later is not an amnesia."""
    hub = Hub()
    hub.restart(lost=True)
    records = list(hub.node.records(False, hub.now))
    assert {"kind": "recovering", "left": 3600} in records
    struck = []
    for _ in range(4):
        hub.later(1000)
        struck += [key for key, record in hub.node.wanted.records.items() if record is None]
    hub.ask("alice", want(0))
    struck += [key for key, record in hub.node.wanted.records.items() if record is None]
    assert ("recovering",) in struck


# ---- pools that change

def test_a_renumbering_deprecates_the_old_and_repeats_it() -> None:
    hub = Hub()
    old, = hub.get("alice", want(0))
    hub.configure(HOME.replace(":42:", ":43:"))
    for _ in range(2):
        answer = hub.ask("alice", want(0))
        new = [grant for grant in answer.grants if grant.current]
        assert [grant.prefix for grant in answer.grants if not grant.current] == [old]
        assert new[0].prefix != old and new[0].preferred_s == 1800
        assert [grant.preferred_s for grant in answer.grants if not grant.current] == [0]
        hub.later(60)
    hub.later(3600)
    assert old not in hub.living()


def test_a_renumbering_that_is_taken_back() -> None:
    hub = Hub()
    old = hub.get("alice", want(0))
    hub.configure(HOME.replace(":42:", ":43:"))
    hub.ask("alice", want(0))
    hub.configure(HOME)
    assert hub.get("alice", want(0)) == old


def test_another_length_deprecates() -> None:
    hub = Hub()
    old, = hub.get("alice", want(0))
    answer = hub.ask("alice", want(0, "::/60"))
    assert {(grant.prefix.length, grant.current) for grant in answer.grants} == {(60, True), (64, False)}
    assert not hub.grantor.stock.is_free(old)


def test_a_deprecated_lease_is_kept_to_the_end_that_was_promised() -> None:
    """However often the grantee changes its mind: what it was promised is nobody else's."""
    hub = Hub()
    for length in range(56, 64):
        hub.ask("alice", want(0, f"::/{length}"))
        hub.later(7)
        for lease in hub.peer("alice").leases:
            assert not hub.grantor.stock.is_free(lease.prefix)
    promised = hub.grantor.peers[KEYS["alice"]]
    assert len({lease.prefix for lease in promised.leases}) >= 8 or len(promised.living()) < 8
    assert all(not hub.grantor.stock.is_free(p) for p in hub.living())


def test_a_shorter_lifetime_does_not_shorten_what_was_promised() -> None:
    """The answer that says so may be lost."""
    hub = Hub()
    prefix, = hub.get("alice", want(0))
    hub.configure(HOME.replace("1h", "10m"))
    hub.ask("alice", want(0))
    hub.later(601)
    assert prefix in hub.living() or not hub.grantor.stock.is_free(prefix)


def test_a_pool_that_shrank_into_a_lease_is_free_again_when_that_ends() -> None:
    hub = Hub(HOME, ["alice", "bob"])
    lease, = hub.get("alice", want(0, "::/56"))
    hub.configure(f"[pool home]\nprefix = {lease.network(60) if lease.length > 60 else lease._replace(length=60)}\n"
                  "give = /64\nlifetime = 1h\n")
    assert hub.refused("bob", want(0)) == [ddpd.Reason.FULL]
    hub.later(3601)
    got, = hub.get("bob", want(0))
    assert lease.holds(got)


# ---- pins

PIN = "pin = 2001:db8:42:1200::/56\nlimit = 4"


def test_a_pin_is_given_to_its_owner_and_nobody_else() -> None:
    pin = ddpd.parse_prefix("2001:db8:42:1200::/56")
    hub = Hub(HOME + grantee("alice", PIN), ["bob"])
    assert hub.get("alice", want(0, "::/56")) == [pin]
    assert not hub.grantor.stock.is_free(pin)
    hub.ask("alice", releases=(0,))
    assert not hub.grantor.stock.is_free(pin)
    hub.restart()
    assert hub.get("alice", want(0, "::/56")) == [pin]


def test_a_pin_answers_any_length_unless_another_slot_asks_for_just_that() -> None:
    pin = ddpd.parse_prefix("2001:db8:42:1200::/56")
    hub = Hub(HOME + grantee("alice", PIN), [])
    assert hub.get("alice", want(0)) == [pin]
    hub = Hub(HOME + grantee("alice", PIN), [])
    got = hub.get("alice", want(0), want(1, "::/56"))
    assert got[1] == pin and got[0].length == 64


def test_a_pin_outside_of_all_pools() -> None:
    hub = Hub(HOME + grantee("alice", "pin = 10.1.2.3/32"), [])
    assert hub.get("alice", want(0, "0.0.0.0/32")) == [ddpd.parse_prefix("10.1.2.3/32")]
    assert hub.ask("alice", want(0, "0.0.0.0/32")).grants[0].valid_s == 3600


@pytest.mark.parametrize("length", [52, 56, 60])
def test_a_new_pin_waits_until_the_lease_that_it_overlaps_is_over(length: int) -> None:
    hub = Hub(HOME, ["alice", "bob"])
    lease, = hub.get("alice", want(0, "::/56"))
    pin = lease.network(length) if length <= 56 else lease._replace(length=length)
    text = HOME + grantee("bob", f"pin = {pin}\n")
    hub.configure(text, ["alice"])
    assert hub.refused("bob", want(0, f"::/{length}")) == [ddpd.Reason.FULL]
    hub.ask("alice", releases=(0,))
    assert hub.get("bob", want(0, f"::/{length}")) == [pin]


@pytest.mark.parametrize("length", [52, 60, 64])
def test_a_lease_that_overlaps_anothers_new_pin_makes_room(length: int) -> None:
    hub = Hub(HOME, ["alice", "bob"])
    lease, = hub.get("alice", want(0, "::/60"))
    pin = lease.network(length) if length <= 60 else lease._replace(length=length)
    hub.configure(HOME + grantee("bob", f"pin = {pin}\n"), ["alice"])
    new, = hub.get("alice", want(0, "::/60"))                    # the old one counts down
    assert not new.overlaps(pin) and set(hub.living()) == {new, lease}
    hub.later(3601)
    assert hub.get("bob", want(0, f"::/{length}")) == [pin]


def test_a_pin_of_a_pool_that_is_gone_waits_too() -> None:
    other = "[pool other]\nprefix = 2001:db8:77::/48\ngive = /56\nlifetime = 1h\n"
    hub = Hub(HOME, ["alice", "bob"])
    lease, = hub.get("alice", want(0, "::/56"))
    hub.configure(other + grantee("bob", f"pin = {lease}", "other") + grantee("alice", "", "other"), [])
    assert hub.get("bob", want(0, "::/56")) != [lease]


def test_a_new_pin_replaces_a_lease_of_the_same_shape() -> None:
    hub = Hub(HOME, ["alice"])
    lease, = hub.get("alice", want(0, "::/56"))
    pin = lease._replace(first=lease.first ^ 1 << 72)
    hub.configure(HOME + grantee("alice", f"pin = {pin}"), [])
    assert hub.get("alice", want(0, str(lease))) == [pin]
    assert hub.get("alice", want(0, str(pin))) == [pin], "and that is all that changes"


# ---- clones

def test_runs_a_b_a_are_two_machines() -> None:
    hub = Hub()
    a, b = b"run----a", b"run----b"
    hub.runs["alice"] = a
    assert hub.get("alice", want(0))
    hub.runs["alice"] = b
    assert hub.get("alice", want(0))                           # a restart, for all that is known
    hub.runs["alice"] = a
    assert hub.get("alice", want(0))
    assert any("clone" in effect.text for effect in hub.effects if isinstance(effect, ddpd.Note))
    hub.runs["alice"] = b
    assert hub.refused("alice", want(0)) == [ddpd.Reason.CLONE]
    hub.later(3601)                                            # the other has gone
    assert hub.get("alice", want(0))


def test_restarts_are_no_clones() -> None:
    hub = Hub()
    for n in range(20):
        hub.runs["alice"] = b"run-%04d" % n
        assert hub.get("alice", want(0))


# ---- what is taken


@pytest.mark.parametrize(("pool", "length", "never"), [
    ("10.0.0.0/29", 32, {"10.0.0.0", "10.0.0.7"}), ("2001:db8::/125", 128, {"2001:db8::"}),
    ("10.0.0.0/31", 32, set())])
def test_never_the_network_broadcast_or_anycast_address(pool: str, length: int, never: set[str]) -> None:
    hub = Hub(f"[pool home]\nprefix = {pool}\ngive = /{length}\n", ["alice"], "limit = 9\nrate = 9/1s")
    any_of = "::/128" if length == 128 else "0.0.0.0/32"
    got = {p.host for p in hub.get("alice", *[want(slot, any_of) for slot in range(8)])}
    whole = ddpd.parse_prefix(pool)
    assert got == {ddpd.Prefix(whole.version, whole.first + n, length).host
                   for n in range(whole.size)} - never


@pytest.mark.parametrize("seed", range(20))
def test_the_anycast_address_of_every_subnet_is_left_out(seed: int) -> None:
    """Of two addresses that are free one is the second subnet's: the other is always found."""
    second = ddpd.parse_prefix("2001:db8:0:1::/64").first
    holes = ["2001:db8::/64", *(str(ddpd.Prefix(6, second + (1 << n), 128 - n)) for n in range(1, 64))]
    hub = Hub(f"[pool home]\nprefix = 2001:db8::/63\ngive = /128\nreserve = {' '.join(holes)}\n")
    hub.node.grantor.rand = random.Random(seed).randbytes
    assert [p.first for p in hub.get("alice", want(0, "::/128"))] == [second + 1]
    assert hub.refused("bob", want(0, "::/128")) == [ddpd.Reason.FULL]


# ---- sessions, stale asks, nudges: in datagrams

LEAF = bytes([1]) * 32
AT = ddpd.Path("2001:db8:e::2", 5000, 0, ETH0)
HUB_AT = ddpd.Path("2001:db8::1", 3373)


class Pair:
    """Hub and alice in real datagrams."""

    def __init__(self, text: str = HOME, lines: str = "::/64") -> None:
        self.hub = Hub(text)
        self.lines = lines
        self.leaf = self.fresh_leaf()

    def fresh_leaf(self) -> ddpd.Node:
        text = (f"[grantor h]\nkey = {ddpd.show_key(self.hub.node.s.public)}\naddress = 2001:db8::1\n"
                f"ask = {self.lines}\n")
        leaf = ddpd.Node(ddpd.read_config(text, "l"), LEAF, "boot", random.Random(3).randbytes)
        leaf.start(self.now)
        leaf.resolved("h", "2001:db8::1", (HUB_AT,), self.now)
        return leaf

    @property
    def now(self) -> ddpd.Now:
        return self.hub.now

    def ask(self) -> bytes:
        return self.leaf.compose("h", AT.host, self.now)

    def hear(self, ask: bytes) -> bytes:
        self.effects = self.hub.node.received(ask, AT, self.now)
        return next(effect.datagram for effect in self.effects if isinstance(effect, ddpd.Send))

    def apply(self, answer: bytes) -> list[ddpd.Effect]:
        return self.leaf.received(answer, HUB_AT, self.now, "h")

    def trip(self) -> list[ddpd.Effect]:
        return self.apply(self.hear(self.ask()))

    @property
    def held(self) -> set[str]:
        return {str(held.prefix) for held in self.leaf.grantees["h"].held if held.current}


def test_keys_are_erased_in_time_though_nothing_comes_any_more() -> None:
    pair = Pair("[pool home]\nprefix = 2001:db8:42::/48\ngive = /64\nlifetime = 10d\n")
    pair.trip()
    pair.trip()
    peer, end = pair.hub.peer("alice"), pair.now.boot + ddpd.SESSION_S
    while pair.now.boot < end - ddpd.ERASE_S:
        pair.hub.later(ddpd.ERASE_S - 1)
    assert peer.live is not None and pair.leaf.initiators["h"].session is not None
    pair.hub.later(end + ddpd.ERASE_S - pair.now.boot)
    pair.leaf.on_timer(pair.now)
    again = pair.hub.peer("alice")
    assert pair.hub.node.responder.sessions == {} and (again.live, again.session, again.pending) == (None, None, ())
    assert [initiator.session for initiator in pair.leaf.initiators.values()] == [None] and again.living()


def test_after_stale_two_slots_still_fit() -> None:
    pair = Pair(lines="::/64\n  ::/60\n  ::/56\n  ::/62")
    pair.trip()
    assert len(pair.held) == 4
    pair.hub.restart()
    pair.leaf.initiators["h"].session = None
    pair.trip()
    answer = pair.hear(pair.ask())
    again = pair.apply(answer)
    if ddpd.Call("h") in again:                                # ... or is asked for at once
        pair.trip()
    until = {held.valid_until for held in pair.leaf.grantees["h"].held}
    assert len(until) <= 2 and len(pair.held) == 4


@pytest.mark.parametrize("trips", [1, 2])
def test_a_renumbering_is_nudged_at_once(trips: int) -> None:
    """After the first answer already: its session is all that the grantee has."""
    pair = Pair()
    for _ in range(trips):
        pair.trip()
    old = pair.held
    effects = pair.hub.configure(HOME.replace(":42:", ":43:"))
    nudge, = [effect.datagram for effect in effects if isinstance(effect, ddpd.Send)]
    assert len(nudge) <= 128
    assert ddpd.Call("h") in pair.apply(nudge)
    pair.trip()
    assert pair.held != old and len(pair.held) == 1
    pair.hub.later(5)
    assert not any(isinstance(effect, ddpd.Send) for effect in pair.hub.effects)


def test_a_nudge_does_not_end_a_release() -> None:
    pair = Pair()
    pair.trip()
    pair.trip()
    effects = pair.hub.configure(HOME.replace(":42:", ":43:"))
    nudge, = [effect.datagram for effect in effects if isinstance(effect, ddpd.Send)]
    pair.leaf.operate(ddpd.Event.RELEASE, "h", pair.now)
    with pytest.raises(ddpd.Drop, match="after a release"):
        pair.apply(nudge)
    assert pair.leaf.grantees["h"].state is ddpd.State.RELEASED


def test_what_comes_for_a_grantor_that_a_reload_removed_is_dropped() -> None:
    """Its socket is closed later."""
    pair = Pair()
    answer = pair.hear(pair.ask())
    pair.leaf.reconfigure(ddpd.read_config("", "l"), pair.now)
    with pytest.raises(ddpd.Drop, match="no longer asked"):
        pair.apply(answer)


def test_answers_that_overtake_each_other_leave_the_newer_session() -> None:
    pair = Pair()
    asks = [pair.ask(), pair.ask()]
    older, newer = map(pair.hear, asks)
    pair.apply(newer)
    session = pair.leaf.initiators["h"].session
    with pytest.raises(ddpd.Drop, match="not newer"):
        pair.apply(older)
    assert pair.leaf.initiators["h"].session is session is not None


def test_a_lease_for_ever_that_is_renewed_every_hour() -> None:
    pair = Pair(HOME.replace("1h", "forever") + "renew = 1h\n")
    pair.trip()
    for _ in range(3):
        leaf = pair.leaf.grantees["h"]
        assert (leaf.state, leaf.timer, leaf.deadline) == (ddpd.State.BOUND, pair.now.boot + 3600, leaf.timer)
        pair.hub.later(3600)
        assert ddpd.Call("h") in pair.leaf.on_timer(pair.now)
        pair.trip()


@pytest.mark.parametrize(("place", "answered"), [
    ("2001:db8:e::{n:x}", ddpd.SOURCE_ASKS), ("2001:db8:e:{n:x}::1", 30), ("192.0.2.{n}", 30)])
def test_under_load_an_ipv6_subnet_is_one_source(place: str, answered: int) -> None:
    """Who has a /64 has 2**64 addresses."""
    pair = Pair()
    responder, admitted = pair.hub.node.responder, 0
    responder.load = 0
    for n in range(1, 31):
        source = ddpd.Path(place.format(n=n), 5000, 0, ETH0)
        cookie = responder.admit(pair.fresh_leaf().compose("h", AT.host, pair.now), source, pair.now)
        leaf = pair.fresh_leaf()
        leaf.compose("h", AT.host, pair.now)
        assert cookie is not None and leaf.received(cookie, HUB_AT, pair.now, "h") == [ddpd.Call("h")]
        try:
            admitted += responder.admit(leaf.compose("h", AT.host, pair.now), source, pair.now) is None
        except ddpd.Drop as why:
            assert "one source" in str(why)
    assert admitted == answered


def test_eight_nudges_at_most() -> None:
    pair = Pair()
    pair.trip()
    pair.trip()
    at = [0.0 for effect in pair.hub.configure(HOME.replace(":42:", ":43:")) if isinstance(effect, ddpd.Send)]
    for tenth in range(6000):
        pair.hub.later(0.1)
        at += [(tenth + 1) / 10 for effect in pair.hub.effects if isinstance(effect, ddpd.Send)]
    assert len(at) == ddpd.NUDGES
    gaps = [round(b - a) for a, b in itertools.pairwise(at)]
    assert gaps == [1, 2, 4, 8, 16, 32, 64]


# ---- reach

LAN = ddpd.Links({1: "eth0"}, ((1, ddpd.parse_interface("2001:db8:e::1/64")),))


@pytest.mark.parametrize(("source", "links", "why"), [
    ("2001:db8:e::2", LAN, ""),
    ("2001:db8:e::3", LAN, "changes addresses"),
    (None, LAN, "changes addresses"),
    ("2001:db8:e::2", ddpd.Links(), "not a neighbour"),
    ("2001:db8:e::2", ddpd.Links({1: "eth0"}, ((2, LAN.addresses[0][1]),)), "not a neighbour")])
def test_who_relays_an_ask_draws_no_traffic(source: str | None, links: ddpd.Links, why: str) -> None:
    hub = Hub(HOME + grantee("alice").replace("route = none\n", ""), [])
    hub.grantor.links = links
    prefix, = [g.prefix for g in hub.ask(
        "alice", want(0), source=source and ddpd.parse_host(source)).grants]
    lease, = hub.peer("alice").leases
    if why:
        assert lease.reach is None and why in lease.why and hub.node.wanted.things == {}
    else:
        route = ddpd.Route(prefix, ddpd.MAIN, ddpd.Reach("2001:db8:e::2", "eth0"))
        assert list(hub.node.wanted.things.values()) == [route]
        hub.ask("alice", releases=(0,))
        assert hub.node.wanted.things == {}


def test_a_route_by_a_gateway_of_the_other_family_is_none() -> None:
    hub = Hub(HOME + grantee("alice").replace("route = none", "route = via 192.0.2.1"), [])
    hub.get("alice", want(0))
    lease, = hub.peer("alice").leases
    assert lease.reach is None and lease.why == "192.0.2.1 is no gateway for IPv6" and hub.node.wanted.things == {}


def test_a_pin_that_another_still_holds_does_not_cost_the_lease() -> None:
    hub = Hub(HOME, ["alice", "bob"])
    pin, = hub.get("bob", want(0, "::/56"))
    lease, = hub.get("alice", want(0, "::/56"))
    hub.configure(HOME + grantee("alice", f"pin = {pin}"), ["bob"])
    assert hub.get("alice", want(0, str(lease))) == [lease]
    hub.ask("bob", want(0))
    hub.later(3601)
    assert hub.get("alice", want(0, "::/56")) == [pin]


def test_a_full_disk_renews_what_a_new_pin_should_replace() -> None:
    hub = Hub(HOME, ["alice"])
    lease, = hub.get("alice", want(0, "::/56"))
    hub.configure(HOME + grantee("alice", f"pin = {lease._replace(first=lease.first ^ 1 << 72)}"), [])
    hub.grantor.disk_full = True
    assert hub.get("alice", want(0, str(lease))) == [lease]


# ---- what cannot be written

@pytest.mark.parametrize("want_", ["another length", "another slot at the limit"])
def test_what_cannot_be_written_takes_nothing_from_who_has(want_: str) -> None:
    hub = Hub()
    first = hub.get("alice", want(0, "::/56"))
    before = [(lease.prefix, lease.slot, lease.state, lease.valid_until) for lease in hub.peer("alice").leases]
    hub.ask("alice", want(0, "::/60") if want_ == "another length" else want(1, "::/56"))
    new = next(lease for lease in hub.peer("alice").living() if lease.prefix not in first
               and lease.state is ddpd.LeaseState.ACTIVE)
    assert list(hub.grantor.unwritten) == [new.id]
    hub.grantor.unsaved()
    assert [(lease.prefix, lease.slot, lease.state, lease.valid_until) for lease in hub.peer("alice").leases] == before
    assert hub.grantor.former == {} and hub.grantor.stock.living["home"] == 1
    assert hub.refused("alice", want(1, "::/60")) == [ddpd.Reason.DISK]
    assert hub.get("alice", want(0, "::/56")) == first
