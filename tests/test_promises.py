"""What is promised is kept, and nobody gets more than is agreed, whatever grantees, twins, crashes and reloads do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

import ddpd
from test_grantor import HOME, KEYS, WALL, Hub, grantee, want

P = ddpd.parse_prefix
TINY = "[pool home]\nprefix = 2001:db8:42::/63\ngive = /64\nlifetime = 1h\n"


def crash(hub: Hub) -> None:
    hub.restart(clean=False)


# ---- lifetimes

def test_a_lifetime_longer_than_the_pools_is_kept_through_a_crash() -> None:
    hub = Hub(TINY, more="limit = 2\nlifetime = 24h-48h")
    mine = hub.get("alice", want(0), want(1))
    assert len(mine) == 2 and hub.ask("alice", want(0), want(1)).grants[0].valid_s == 86400
    crash(hub)
    hub.later(3700)
    assert set(hub.living()) == set(mine) and hub.refused("bob", want(0)) == [ddpd.Reason.FULL]
    hub.later(86400)
    assert hub.get("bob", want(0))


def test_nothing_is_drawn_for_the_longest_lifetime_when_the_lease_file_is_lost() -> None:
    hub = Hub(TINY, more="limit = 2\nlifetime = 24h-48h")
    grant = hub.ask("alice", want(0)).grants[0]
    hub.restart(lost=True)
    hub.later(3700)
    assert hub.refused("bob", want(0)) == [ddpd.Reason.RECOVERING]
    assert hub.get("alice", want(0, str(grant.prefix), grant.ticket)) == [grant.prefix]


@pytest.mark.parametrize("more", ["until = 2020-01-01", None], ids=["over", "removed"])
def test_a_lease_for_ever_ends_with_its_agreement(more: str | None) -> None:
    hub = Hub(HOME.replace("1h", "forever"))
    hub.get("alice", want(0))
    hub.configure(HOME.replace("1h", "forever"), who=["bob"] if more is None else ["alice"], more=more or "")
    hub.later(ddpd.LINGER_S + 1)
    hub.later(1)
    assert hub.living() == []


def test_until_holds_after_a_crash_too() -> None:
    hub = Hub(HOME.replace("1h", "forever"), more="until = 2023-11-15")
    end_s = ddpd.parse_date("2023-11-15") - WALL
    hub.get("alice", want(0))
    crash(hub)
    hub.later(0)
    hub.later(end_s + 1)
    hub.later(1)
    assert hub.living() == []


def test_status_says_what_the_grantee_was_told() -> None:
    for more in ("lifetime = 30m", "lifetime = 2h-4h", "", "until = 2023-11-14T22:43"):
        hub = Hub(HOME, more=more)
        grant = hub.ask("alice", want(0)).grants[0]
        [row] = ddpd.status_of(hub.node, hub.now, 10)["granted"]
        assert (row["preferred"], row["valid"]) == (grant.preferred_s, grant.valid_s), more


def test_who_changes_its_mind_keeps_what_it_had_for_two_hours() -> None:
    """Not for a whole lifetime more: else a limit of one is one of each length."""
    hub = Hub(HOME.replace("1h", "12h"), more="limit = 1")
    for length in (64, 63, 62, 61, 60) * 8:
        hub.get("alice", want(0, f"::/{length}"))
        hub.later(3600)
        assert len(hub.living()) <= 3


def test_no_two_that_live_overlap_whoever_has_them() -> None:
    table = {"alice": "2001:db8:77::/56"}
    hub = Hub()
    hub.grantor.site = {"before_pins": lambda asked, _: P(table[asked.grantee])}
    for said in ("2001:db8:77::/56", "2001:db8:77:10::/60", "2001:db8:77::/48", "2001:db8:77::/56"):
        table["alice"] = said
        hub.later(30)
        assert hub.get("alice", want(0, "::/56")) == [P(said)] == hub.living()


# ---- revoked

def test_after_a_revoke_of_all_no_slot_has_another_at_once() -> None:
    hub = Hub()
    hub.get("alice", want(0))
    hub.node.revoke(hub.peer("alice"), None, hub.now)
    assert hub.refused("alice", want(1)) == [ddpd.Reason.REVOKED]
    hub.later(ddpd.REVOKED_S)
    assert hub.get("alice", want(1))


def test_a_site_cannot_give_what_is_revoked() -> None:
    hub = Hub()
    hub.grantor.site = {"before_pins": lambda *_: P("2001:db8:77::/56")}
    hub.get("alice", want(0, "::/56"))
    hub.node.revoke(hub.peer("alice"), 0, hub.now)
    hub.later(ddpd.REVOKED_S + 1)
    assert hub.refused("alice", want(0, "::/56")) == [ddpd.Reason.REVOKED] and hub.living() == []
    hub.restart()
    assert [lease.state for lease in hub.peer("alice").leases] == [ddpd.LeaseState.REVOKED]


# ---- a site's handlers switch nothing off

@pytest.mark.parametrize("site", [{}, {"looking_glass": lambda *_: None}, {"before_pins": lambda *_: None}],
                         ids=["none", "glass", "nothing said"])
def test_total_and_a_full_disk_hold_with_a_site(site: dict[str, ddpd.SiteHandler]) -> None:
    hub = Hub(more="limit = 4\ntotal = ::/56")
    hub.grantor.site = site
    first = hub.get("alice", want(0, "::/56"))
    hub.configure(HOME.replace(":42:", ":77:").replace("/56", "/52"), more="limit = 4\ntotal = ::/56")
    assert hub.refused("alice", want(0, "::/52")) == [ddpd.Reason.LIMIT]
    hub.grantor.disk_full = True
    assert hub.refused("alice", want(0, "::/56")) == [ddpd.Reason.DISK] and hub.living() == first


def test_no_stage_of_the_sites_outlives_the_agreement() -> None:
    hub = Hub(more="until = 2001-01-01")
    hub.grantor.site = {"instead_of_agreement": lambda *_: None}
    assert hub.refused("alice", want(0)) == [ddpd.Reason.ENDED] and hub.living() == []


def test_what_could_not_be_saved_cost_nothing() -> None:
    hub = Hub("[ddpd]\nrate = 1/1h\n" + HOME, more="rate = 1/1h")
    hub.get("alice", want(0))
    hub.grantor.unsaved()
    hub.grantor.disk_full = False
    assert hub.get("alice", want(0))


# ---- twins

class Twins:
    """Two grantors with one key, and a half each of a /61."""

    POOL = "[pool home]\nprefix = 2001:db8:42::/61\ngive = /63,/64\nlifetime = 12h\nshare = {}/2\n"

    def __init__(self, more: str = "limit = 1") -> None:
        self.one, self.two = (Hub(self.POOL.format(n), more=more) for n in (1, 2))

    def holders(self) -> list[ddpd.Prefix]:
        return sorted(self.one.living() + self.two.living())

    def later(self, s: float) -> None:
        for hub in (self.one, self.two):
            hub.later(s)


def apart(prefixes: Iterable[ddpd.Prefix]) -> bool:
    found = list(prefixes)
    return not any(one.overlaps(other) for n, one in enumerate(found) for other in found[:n])


@pytest.mark.parametrize("how", ["released", "replaced, then released"])
def test_a_ticket_of_what_was_released_shares_nothing_with_another(how: str) -> None:
    twins = Twins()
    grant = twins.one.ask("alice", want(0)).grants[0]
    if how != "released":
        twins.one.get("alice", want(0, "::/63"))
    twins.one.ask("alice", releases=(0,))
    twins.one.configure(Twins.POOL.format(1), more="limit = 4\nrate = 99/1s")
    others = twins.one.get("bob", *[want(slot) for slot in range(4)])
    again = twins.two.get("alice", want(0, str(grant.prefix), grant.ticket))
    assert apart([*others, *again])


def test_nobody_empties_a_share_with_what_it_gives_back() -> None:
    hub = Hub("[pool home]\nprefix = 2001:db8:42::/56\ngive = /64\nlifetime = 12h\nshare = 1/2\n", more="limit = 1")
    got = set()
    for slot in range(200):
        got |= set(hub.get("alice", want(slot)))
        hub.later(10)
    assert 3 <= len(got) <= 2 * ddpd.MAX_FORMER and hub.get("bob", want(0))


def test_what_the_grantee_has_by_now_goes_on_at_both() -> None:
    """To and fro between twins that both know the slot: one prefix, whoever is asked."""
    twins = Twins()
    old = twins.one.ask("alice", want(0)).grants[0]
    twins.one.ask("alice", releases=(0,))
    now_has = twins.two.ask("alice", want(0)).grants[0]
    assert now_has.prefix != old.prefix
    for hub in (twins.one, twins.two, twins.one, twins.two):
        [grant] = [grant for grant in hub.ask("alice", want(0, str(now_has.prefix), now_has.ticket)).grants
                   if grant.current]
        assert grant.prefix == now_has.prefix
        now_has = grant
        twins.later(600)


def test_a_lease_of_ones_own_gives_way_to_the_twins_that_is_held() -> None:
    twins = Twins()
    mine = twins.one.ask("alice", want(0)).grants[0]
    other = twins.two.ask("alice", want(0)).grants[0]             # as if `one` were dead, and the ticket lost
    assert twins.one.get("alice", want(0, str(other.prefix), other.ticket)) == [other.prefix] != [mine.prefix]


# ---- reloads

def test_pins_whose_ids_go_wrong_are_pins_that_go(tmp_path: Path) -> None:
    csv = tmp_path / "pins.csv"
    csv.write_text("id,address,prefix\nalice,,2001:db8:42:100::/56\nbob,,2001:db8:42:200::/56\n")
    conf = tmp_path / "ddpd.conf"
    conf.write_text(f"[ddpd]\npins = {csv}\n" + HOME + grantee("alice") + grantee("bob"))
    before = ddpd.load_config(str(conf))
    csv.write_text("id,address,prefix\nalicia,,2001:db8:42:100::/56\nbob,,2001:db8:42:200::/56\n")
    after = ddpd.load_config(str(conf), before)
    assert (after.pins.lost, after.pins.gone, after.pins.come) == (1, [], [])
    assert after.unknown == ("alicia",) and any("alicia" in line for line in ddpd.warnings(after))


@pytest.mark.parametrize(("give", "warned"), [("/60", False), ("/56", True), ("/52", True)])
def test_a_pool_below_that_can_never_give_is_told(give: str, warned: bool) -> None:
    text = f"[grantor e]\nkey = {ddpd.show_key(KEYS['bob'])}\naddress = ::1\nask = ::/56\n" \
           f"[pool below]\nprefix = grantor e\ngive = {give}\n"
    told = list(ddpd.warnings(ddpd.read_config(text, "t")))
    assert any("[pool below] give: [grantor e] is asked for nothing" in line for line in told) == warned


def test_who_is_neither_agreed_with_nor_leased_to_is_forgotten() -> None:
    hub = Hub()
    hub.get("alice", want(0))
    hub.ask("bob")
    hub.configure(HOME, who=["carol"])
    hub.later(0)
    assert set(hub.grantor.peers) == {KEYS["alice"]}


def test_another_route_counts_from_the_next_ask_on() -> None:
    """Which may come before the review."""
    hub = Hub(who=["alice"])
    hub.get("alice", want(0))
    hub.text = hub.text.replace("route = none", "route = auto")
    hub.node.grantor.agreements = ddpd.read_config(hub.text, "t").agreements
    assert hub.peer("alice").seen == ()
    hub.get("alice", want(0))
    assert hub.peer("alice").leases[0].why != "route = none"


def test_a_removed_grantee_is_found_by_its_name_and_marked() -> None:
    hub = Hub()
    hub.get("alice", want(0))
    hub.configure(HOME, who=["bob"])
    assert ddpd.show_of(hub.node, "alice", hub.now)["leases"]
    assert "alice (removed)" in ddpd.status_text(ddpd.status_of(hub.node, hub.now, 10), colours=False)


def test_a_hopeless_ask_is_not_thought_over_twice() -> None:
    text = TINY.replace("home", "full").replace(":42:", ":77:") + HOME.replace("home", "more")
    hub = Hub(text + "".join(grantee(name, "limit = 2", "full more") for name in KEYS), who=[])
    hub.get("alice", want(0, "::/56"))
    hub.ask("alice", releases=(0,))
    assert hub.grantor.reclaim(hub.grantor.pools["full"], 64, hub.peer("bob").agreement) is None
    assert ("full", 64) in hub.grantor.hopeless
    hub.get("bob", want(0))
    hub.ask("bob", releases=(0,))
    assert not hub.grantor.hopeless
