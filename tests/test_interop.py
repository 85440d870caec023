"""The daemon against peer.py, which knows PROTOCOL.md and not a line of ddpd.py.

    alice, a GranteePeer  ---- UDP, loopback ----  ddpd.py with a pool
    ddpd.py that asks     ---- UDP, loopback ----  hub, a GrantorPeer

No root, nothing in the kernel; ports are ephemeral.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("noise.connection", reason="pip install noiseprotocol")

import peer
from daemon import Daemon, free_port
from peer import Answer, Ask, Grant, GranteePeer, GrantorPeer, Refusal, Want, Wire

pytestmark = pytest.mark.slow             # a daemon is started for each

POOL = ipaddress.ip_network("2001:db8:42::/48")
MOVED = ipaddress.ip_network("2001:db8:77::/48")
LEASE = ipaddress.ip_network("2001:db8:42:1200::/56")
OTHER = ipaddress.ip_network("2001:db8:77:3400::/56")
ANY_56 = Want(0, "::/56")


def base64_of(key: bytes) -> str:
    return base64.b64encode(key).decode()


# ==== alice asks the daemon ====

class Granting:
    """A daemon with a pool, and alice who may ask it."""

    def __init__(self, tmp_path: Path, host: str = "::1", load: int = 200) -> None:
        self.port = free_port(host)
        self.host, self.load = host, load
        self.hub = os.urandom(32)
        self.alice = GranteePeer(os.urandom(32), peer.public_of(self.hub))
        self.daemon = Daemon(self.config(), tmp_path, "hub")
        self.daemon.write_key(self.hub)
        self.wire = Wire(host).to(self.port)

    def config(self, pool: str = str(POOL)) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return (f"[ddpd]\nlisten = {shown}:{self.port}\nload = {self.load}\n"
                f"[pool home]\nprefix = {pool}\ngive = /56-/64\nlifetime = 1h\n"
                f"dns = 2001:db8:42::53\n"
                f"[grantee alice]\nkey = {base64_of(self.alice.public)}\npools = home\nlimit = 4\n"
                f"route = none\n")

    def __enter__(self) -> Granting:
        self.daemon.__enter__()
        return self

    def __exit__(self, *why: object) -> None:
        self.wire.__exit__()
        self.daemon.__exit__(*why)  # type: ignore[arg-type] # passed on as it came

    def told(self, datagram: bytes) -> Answer:
        """What is answered; a nudge that came before it is passed over."""
        self.wire.say(datagram)
        while len(heard := self.wire.hear()) <= 128:
            pass
        return self.alice.read_answer(heard)

    def bound(self) -> Grant:
        """After a first ask: what slot 0 got."""
        answer = self.told(self.alice.ask([ANY_56]))
        assert answer.status == peer.OK
        return answer.preferred(0)


def held(grant: Grant) -> Want:
    return Want(grant.slot, str(grant.prefix), True, grant.ticket)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Granting]:
    with Granting(tmp_path) as scene:
        yield scene


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_a_first_ask_and_its_answer_are_two_datagrams(tmp_path: Path, host: str) -> None:
    with Granting(tmp_path, host) as scene:
        source = ipaddress.ip_address(host)
        answer = scene.told(scene.alice.ask([ANY_56], source=source, hostname="alice.example"))
        assert scene.wire.silent()
        assert (answer.status, answer.version, answer.length) == (peer.OK, 1, 512)
        grant = answer.preferred(0)
        assert grant.prefix.prefixlen == 56
        assert grant.prefix.subnet_of(POOL)  # type: ignore[arg-type] # both are IPv6
        assert (grant.preferred, grant.valid) == (1800, 3600)
        assert answer.times == (900, 1440)
        assert answer.options == {peer.DNS: [ipaddress.ip_address("2001:db8:42::53").packed]}
        [row] = scene.daemon.status()["granted"]
        assert row["grantee"] == "alice"
        assert (row["slot"], row["prefix"]) == (0, str(grant.prefix))
        assert row["hostname"] == "alice.example"


def test_a_sealed_renewal_keeps_the_prefix(scene: Granting) -> None:
    grant = scene.bound()
    for length in (256, 384, 256):
        answer = scene.told(scene.alice.sealed([held(grant)], length=length))
        assert answer.length == length
        assert answer.preferred(0).prefix == grant.prefix
    assert scene.told(scene.alice.sealed()).status == peer.OK                     # a keepalive


def test_asking_again_and_again_gives_the_same_prefix(scene: Granting) -> None:
    grant = scene.bound()
    assert scene.bound().prefix == grant.prefix
    others = scene.told(scene.alice.ask([ANY_56, Want(1, "::/56"), Want(2, "::/64")]))
    assert others.preferred(0).prefix == grant.prefix
    assert len({others.preferred(slot).prefix for slot in (0, 1, 2)}) == 3


def test_a_replayed_first_ask_is_stale_and_its_sealed_repetition_is_not(scene: Granting) -> None:
    first = scene.alice.ask([ANY_56])
    grant = scene.told(first).preferred(0)
    before = scene.alice.session
    stale = scene.told(first)
    assert stale.status == peer.STALE
    assert not stale.grants
    assert stale.length == len(first)
    answer = scene.told(scene.alice.sealed([ANY_56, Want(1, "::/64")]))
    assert answer.status == peer.OK
    assert answer.preferred(0).prefix == grant.prefix
    assert before is not scene.alice.session
    scene.wire.say(first)
    assert scene.wire.hear()[0] == peer.COOKIE                    # one STALE a second


def test_who_shows_where_it_is_gets_its_stale_while_an_ask_is_replayed(scene: Granting) -> None:
    first = scene.alice.ask([ANY_56])
    grant = scene.told(first).preferred(0)
    scene.daemon.stop()
    scene.daemon.start()
    assert scene.told(first).status == peer.STALE
    scene.wire.say(first)
    replayed = scene.wire.hear()
    assert replayed[0] == peer.COOKIE
    again = scene.alice.ask([held(grant)])                        # a higher stamp than any that was told so
    assert scene.told(again).status == peer.STALE
    lower = scene.alice.stamp - 1
    scene.wire.say(scene.alice.ask([held(grant)], stamp=lower))
    cookie = scene.alice.read_cookie(scene.wire.hear())
    assert scene.told(scene.alice.ask([held(grant)], stamp=lower, cookie=cookie)).status == peer.STALE
    assert scene.told(scene.alice.sealed([held(grant)])).preferred(0).prefix == grant.prefix


def test_what_was_held_back_in_the_session_before_undoes_nothing(scene: Granting) -> None:
    grant = scene.bound()
    late = scene.alice.sealed(releases=[0])
    assert scene.bound().prefix == grant.prefix
    scene.wire.say(late)
    assert scene.wire.silent()
    [row] = scene.daemon.status()["granted"]
    assert row["prefix"] == str(grant.prefix)


def test_any_length_is_the_shortest_given_and_then_what_the_slot_has(scene: Granting) -> None:
    assert scene.told(scene.alice.ask([Want(0, "::/0"), Want(1, "::/60")])).preferred(0).prefix.prefixlen == 56
    answer = scene.told(scene.alice.sealed([Want(0, "::/0"), Want(1, "::/0")]))
    assert [answer.preferred(slot).prefix.prefixlen for slot in (0, 1)] == [56, 60]


def test_after_a_restart_a_first_ask_is_stale_and_a_sealed_one_is_not(scene: Granting) -> None:
    grant = scene.bound()
    scene.daemon.stop()
    scene.daemon.start()
    scene.wire.say(scene.alice.sealed([held(grant)]))
    assert scene.wire.silent()                                    # an unknown session: zero bytes
    assert scene.told(scene.alice.ask([held(grant)])).status == peer.STALE
    answer = scene.told(scene.alice.sealed([held(grant)]))
    assert answer.preferred(0).prefix == grant.prefix


def test_a_ticket_is_worth_its_prefix_when_the_lease_file_is_lost(scene: Granting) -> None:
    grant = scene.bound()
    key = peer.derived(b"ddpd ticket", scene.hub)
    sealed = (grant.ticket[:4] + scene.alice.public + bytes([0, 6, grant.prefix.prefixlen])
              + grant.prefix.network_address.packed)
    assert grant.ticket[4:] == peer.mac(key, sealed)
    scene.daemon.stop()
    (scene.daemon.dir / "leases.json").unlink()
    scene.daemon.start()
    assert scene.told(scene.alice.ask([held(grant)])).status == peer.STALE
    assert scene.told(scene.alice.sealed([held(grant)])).preferred(0).prefix == grant.prefix


def test_unknown_types_below_128_are_named_and_the_others_skipped(scene: Granting) -> None:
    extra = peer.tlv(200, b"?") + peer.tlv(100, b"?") + peer.tlv(99, b"?")
    answer = scene.told(scene.alice.ask([ANY_56, ANY_56], extra=extra))     # which goes before INVALID
    assert (answer.status, answer.unsupported) == (peer.UNSUPPORTED, 100)
    assert not answer.grants
    assert scene.daemon.status()["granted"] == []
    answer = scene.told(scene.alice.ask([ANY_56], extra=peer.tlv(200, b"?")))
    assert answer.status == peer.OK
    answer.preferred(0)


def test_a_slot_named_twice_is_invalid(scene: Granting) -> None:
    for ask in (scene.alice.ask([ANY_56, Want(0, "::/64")]), scene.alice.ask([ANY_56], [0])):
        answer = scene.told(ask)
        assert answer.status == peer.INVALID
        assert answer.why
        assert not answer.grants


def test_under_load_an_ask_needs_a_cookie(tmp_path: Path) -> None:
    with Granting(tmp_path, load=1) as scene:
        def cookie_for(**ways: bytes) -> bytes:
            """Ask until the second's one free ask is spent."""
            for _ in range(10):
                first = scene.alice.ask([ANY_56], **ways)
                scene.wire.say(first)
                datagram = scene.wire.hear()
                if datagram[0] == peer.COOKIE:
                    assert datagram[4:8] == first[4:8]
                    return scene.alice.read_cookie(datagram)
            raise AssertionError("ten asks and no cookie")

        cookie = cookie_for()
        answer = scene.told(scene.alice.ask([ANY_56], cookie=cookie))
        assert answer.status == peer.OK
        answer.preferred(0)
        assert cookie_for(cookie=bytes(16))                       # a wrong mac2 is none
        assert scene.told(scene.alice.sealed([ANY_56])).status == peer.OK         # needs none


@pytest.mark.parametrize("session", ["pending", "in use"])
def test_a_changed_pool_nudges_and_deprecates(scene: Granting, session: str) -> None:
    grant = scene.bound()
    if session == "in use":
        scene.told(scene.alice.sealed([held(grant)]))
    scene.daemon.write(scene.config(str(MOVED)))
    scene.daemon.signal(signal.SIGHUP)
    scene.alice.read_nudge(scene.wire.hear())
    scene.alice.read_nudge(scene.wire.hear())                    # once more after a second
    answer = scene.told(scene.alice.sealed([held(grant)], length=384))
    new = answer.preferred(0)
    assert new.prefix.subnet_of(MOVED)  # type: ignore[arg-type] # both are IPv6
    [old] = [other for other in answer.grants if other != new]
    assert (old.slot, old.prefix, old.flags, old.preferred) == (0, grant.prefix, 0, 0)
    assert 0 < old.valid <= 3600
    again = scene.told(scene.alice.sealed([held(new)], length=384))
    assert [other.prefix for other in again.grants if not other.flags] == [grant.prefix]
    assert scene.wire.silent(2.5)                                 # obeyed: no further nudge


def test_a_nudge_ends_with_a_handshake_too(scene: Granting) -> None:
    grant = scene.bound()
    scene.told(scene.alice.sealed([held(grant)]))
    scene.daemon.write(scene.config(str(MOVED)))
    scene.daemon.signal(signal.SIGHUP)
    scene.alice.read_nudge(scene.wire.hear())
    scene.told(scene.alice.ask([held(grant)])).preferred(0)
    assert scene.wire.silent(2.5)


def test_one_slot_is_refused_and_the_other_granted(scene: Granting) -> None:
    wants = [Want(0, "::/40"), Want(1, "0.0.0.0/32"), Want(2, "::/60")]
    answer = scene.told(scene.alice.ask(wants))
    assert answer.status == peer.OK
    reasons = {refusal.slot: refusal.reason for refusal in answer.refusals}
    assert reasons == {0: peer.LENGTH, 1: peer.NO_POOL}
    assert all(refusal.again and refusal.text for refusal in answer.refusals)
    assert answer.preferred(2).prefix.prefixlen == 60


def test_a_released_slot_is_gone_and_comes_back_the_same(scene: Granting) -> None:
    grant = scene.bound()
    answer = scene.told(scene.alice.sealed(releases=[0]))
    assert answer.status == peer.OK
    assert not answer.grants
    assert scene.daemon.status()["granted"] == []
    assert scene.told(scene.alice.sealed([ANY_56])).preferred(0).prefix == grant.prefix


def test_an_answer_is_never_longer_than_its_ask(scene: Granting) -> None:
    wants = [Want(slot, "::/64") for slot in range(4)]
    shortest = scene.alice.ask(wants, length=0)
    answer = scene.told(shortest)
    assert answer.length == len(shortest) < 512
    assert answer.need
    assert len(answer.grants) < 4
    whole = scene.told(scene.alice.ask(wants, length=answer.need))
    assert len(whole.grants) == 4
    assert whole.options
    assert whole.need is None


def test_an_answer_leaves_by_the_port_to_which_the_ask_came(tmp_path: Path) -> None:
    with Granting(tmp_path) as scene:
        other = free_port()
        scene.daemon.stop()
        scene.daemon.write(scene.config().replace("listen = ", f"listen = [::1]:{other} "))
        scene.daemon.start()
        for port in (other, scene.port):
            scene.wire.to(port).say(scene.alice.ask([ANY_56]))
            scene.alice.read_answer(scene.wire.hear())
            assert scene.wire.other == ("::1", port)


def test_twenty_resolvers_are_told(scene: Granting) -> None:
    resolvers = [ipaddress.ip_address(f"2001:db8:42::{n:x}") for n in range(1, 21)]
    named = scene.config().replace("2001:db8:42::53", " ".join(map(str, resolvers)))
    scene.daemon.write(named)
    assert scene.daemon.command("reload").returncode == 0
    answer = scene.told(scene.alice.ask([ANY_56], length=1232))
    assert b"".join(answer.options[peer.DNS]) == b"".join(at.packed for at in resolvers)


def test_what_gets_no_answer(scene: Granting) -> None:
    grant = scene.bound()
    alice, hub = scene.alice, scene.alice.grantor
    stranger = GranteePeer(os.urandom(32), hub)
    renewal = alice.sealed([held(grant)])
    assert scene.told(renewal).status == peer.OK
    silent = {
        "stranger":         stranger.ask([ANY_56]),
        "wrong mac1":       alice.ask([ANY_56], mac1=bytes(16)),
        "version 2":        alice.ask([ANY_56], version=2),
        "reserved":         alice.ask([ANY_56], reserved=b"\0\1"),
        "low-order e":      alice.ask([ANY_56], mangle=lambda d: d[:8] + bytes(32) + d[40:]),
        "flipped bit":      alice.ask([ANY_56], mangle=lambda d: d[:-1] + bytes([d[-1] ^ 1])),
        "no stamp":         alice.ask(payload=bytes([peer.ASK]) + peer.tlv(peer.RUN, bytes(8))),
        "a nudge":          alice.ask(payload=bytes([peer.NUDGE])),
        "an answer":        alice.ask(payload=bytes([peer.ANSWER])),
        "stamp twice":      alice.ask([ANY_56], extra=peer.tlv(peer.STAMP, bytes(8))),
        "padding":          alice.ask([ANY_56], extra=b"\0\0\1"),
        "beyond the end":   alice.ask(payload=alice.message() + bytes([peer.WANT, 3]), length=0),
        "host bits":        alice.ask(extra=peer.tlv(peer.WANT, b"\0\6\70" + bytes(15) + b"\1")),
        "too long":         alice.ask([ANY_56], length=1233),
        "replayed":         renewal,
        "other session":    alice.sealed([ANY_56])[:4] + bytes(8) + alice.sealed([ANY_56])[12:],
        "sealed nudge":     alice.sealed(payload=bytes([peer.NUDGE])),
        "cookie":           bytes([3, 1]) + bytes(50),
        "empty":            b"",
    }
    for name, datagram in silent.items():
        scene.wire.say(datagram)
        assert scene.wire.silent(0.1), name
    assert scene.told(alice.sealed([held(grant)])).preferred(0).prefix == grant.prefix


# ==== the daemon asks the hub ====

class Asking:
    """A daemon that asks, and the hub that hears it; nothing is installed."""

    def __init__(self, tmp_path: Path, host: str = "::1") -> None:
        self.hub = GrantorPeer(os.urandom(32))
        self.wire = Wire(host)
        self.alice = os.urandom(32)
        shown = f"[{host}]" if ":" in host else host
        config = (f"[grantor hub]\nkey = {base64_of(self.hub.public)}\n"
                  f"address = {shown}:{self.wire.port}\nask = 0: ::/56\ninstall = no\n")
        self.daemon = Daemon(config, tmp_path, "alice")
        self.daemon.write_key(self.alice)

    def __enter__(self) -> Asking:
        self.daemon.__enter__()
        return self

    def __exit__(self, *why: object) -> None:
        self.wire.__exit__()
        self.daemon.__exit__(*why)  # type: ignore[arg-type] # passed on as it came

    def hear(self, within_s: float = 5.0) -> Ask:
        return self.hub.read_ask(self.wire.hear(within_s))

    def first(self) -> Ask:
        """The daemon's newest first ask: earlier ones went unheard while it started."""
        ask = self.hub.read_ask(self.wire.newest())
        assert ask.session is None
        return ask

    def answer(self, ask: Ask, *grants: Grant, times: tuple[int, int] = (1800, 2880)) -> None:
        self.wire.say(self.hub.answer(ask, grants=grants, times=times))

    def bound(self, times: tuple[int, int] = (1800, 2880)) -> Ask:
        ask = self.first()
        self.answer(ask, GRANT, times=times)
        self.eventually_holds(LEASE)
        return ask

    def eventually_holds(self, *prefixes: object) -> None:
        wanted = sorted(map(str, prefixes))
        self.daemon.eventually(
            lambda: sorted(row["prefix"] for row in self.daemon.status()["held"]
                           if row.get("prefix")) == wanted)


GRANT = Grant(0, LEASE, 1800, 3600, bytes(range(20)))


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Asking]:
    with Asking(tmp_path) as asking:
        yield asking


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_the_daemon_asks_once_and_is_bound(tmp_path: Path, host: str) -> None:
    with Asking(tmp_path, host) as asking:
        ask = asking.first()
        assert ask.grantee == peer.public_of(asking.alice)
        assert (ask.length, len(ask.run), ask.wants, ask.releases) == (512, 8, [ANY_56], [])
        assert ask.source == ipaddress.ip_address(host)
        assert ask.hostname is None
        asking.answer(ask, GRANT)
        asking.eventually_holds(LEASE)
        assert asking.wire.silent()
        [row] = asking.daemon.status()["held"]
        assert (row["grantor"], row["slot"], row["prefix"]) == ("hub", 0, str(LEASE))
        assert 1700 < row["preferred"] <= 1800
        assert 3500 < row["valid"] <= 3600


def test_an_unanswered_ask_is_asked_anew(asking: Asking) -> None:
    first, second = asking.wire.hear(), asking.wire.hear()
    one, other = asking.hub.read_ask(first), asking.hub.read_ask(second)
    assert other.stamp > one.stamp
    assert (one.run, one.wants) == (other.run, other.wants)
    assert first[4:8] != second[4:8]
    assert first[8:40] != second[8:40]
    asking.answer(one, GRANT)                                     # late, but one of the last four
    asking.eventually_holds(LEASE)


def test_at_t1_the_daemon_renews_sealed(asking: Asking) -> None:
    asking.bound(times=(1, 100))
    renewal = asking.hear()
    assert renewal.session
    assert renewal.wants == [Want(0, str(LEASE), True, GRANT.ticket)]
    assert renewal.length % 128 == 0
    asking.answer(renewal, GRANT, times=(1, 100))
    assert asking.hear().session is renewal.session


def test_a_stale_answer_is_followed_by_a_sealed_ask_at_once(asking: Asking) -> None:
    asking.wire.say(asking.hub.answer(asking.first(), peer.STALE))
    again = asking.hear(0.85)                                     # sooner than it would repeat it
    assert again.session
    assert again.wants == [ANY_56]
    asking.answer(again, GRANT)
    asking.eventually_holds(LEASE)


def test_a_nudge_is_obeyed_at_once_and_only_once(asking: Asking) -> None:
    asking.bound()
    nudge = asking.hub.nudge(asking.hub.newest(peer.public_of(asking.alice)))
    asking.wire.say(nudge)
    ask = asking.hear()
    assert ask.session
    new = Grant(0, OTHER, 1800, 3600, bytes(20))
    old = Grant(0, LEASE, 0, 3000, bytes(20), flags=0)
    asking.answer(ask, new, old)
    asking.eventually_holds(OTHER, LEASE)
    rows = {row["prefix"]: row for row in asking.daemon.status()["held"]}
    assert rows[str(LEASE)]["preferred"] == 0
    assert rows[str(OTHER)]["preferred"] > 1700
    asking.wire.say(nudge)
    assert asking.wire.silent()                                   # a counter is taken once


def test_a_cookie_is_answered_at_once_the_first_time(asking: Asking) -> None:
    first = asking.wire.newest()
    cookie = os.urandom(16)
    forged = bytearray(asking.hub.cookie(first, os.urandom(16)))
    forged[-1] ^= 1
    asking.wire.say(bytes(forged))
    asking.wire.say(asking.hub.cookie(first, cookie))
    second = asking.wire.hear(0.85)
    assert second[-16:] == peer.mac(cookie, second[:-16])
    asking.wire.say(asking.hub.cookie(second, cookie))
    assert asking.wire.silent(0.5)
    asking.answer(asking.hub.read_ask(second), GRANT)
    asking.eventually_holds(LEASE)


def test_a_refused_slot_is_asked_for_again(asking: Asking) -> None:
    refusal = Refusal(0, peer.FULL, 1, "nothing left")
    asking.wire.say(asking.hub.answer(asking.first(), refusals=[refusal], times=(1800, 2880)))
    again = asking.hear()
    assert again.wants == [ANY_56]
    asking.answer(again, GRANT)
    asking.eventually_holds(LEASE)


def test_a_forged_answer_spoils_nothing(asking: Asking) -> None:
    ask = asking.first()
    true = asking.hub.answer(ask, grants=[GRANT], times=(1800, 2880))
    for forged in (true[:-1] + bytes([true[-1] ^ 1]), true[:8] + bytes(32) + true[40:],
                   true[:4] + bytes(4) + true[8:], true[:100], true[:8]):
        asking.wire.say(forged)
    asking.wire.say(true)
    asking.eventually_holds(LEASE)


def test_what_did_not_fit_is_asked_for_at_once(asking: Asking) -> None:
    ask = asking.first()
    extra = peer.tlv(peer.NEED, (600).to_bytes(2, "big"))
    asking.wire.say(asking.hub.answer(ask, grants=[GRANT], times=(1800, 2880), extra=extra))
    longer = asking.hear()
    assert longer.length == 640
    options = {peer.DNS: [bytes(15) + b"\1"]}
    asking.wire.say(asking.hub.answer(longer, grants=[GRANT], times=(1800, 2880), options=options))
    assert asking.wire.silent()


def test_a_grant_that_was_not_asked_for_is_not_held(asking: Asking) -> None:
    ask = asking.first()
    asking.answer(ask, Grant(0, ipaddress.ip_network("2001:db8:42::/48"), 1800, 3600),
                  Grant(7, LEASE, 1800, 3600))
    back = asking.hear()                                          # slot 7 is nothing to it, slot 0 it gives back
    assert (back.wants, back.releases) == ([], [0])
    asking.answer(back)
    assert asking.wire.silent(2.5)
    assert not [row for row in asking.daemon.status()["held"] if row.get("prefix")]


def test_of_two_preferred_grants_of_a_slot_the_last_counts(asking: Asking) -> None:
    asking.answer(asking.first(), GRANT, Grant(0, OTHER, 1800, 3600))
    asking.eventually_holds(LEASE, OTHER)
    rows = {row["prefix"]: row for row in asking.daemon.status()["held"]}
    assert rows[str(LEASE)]["preferred"] == 0
    assert rows[str(OTHER)]["preferred"] > 1700


def test_a_malformed_answer_still_makes_its_session(asking: Asking) -> None:
    ask = asking.first()
    wrong = asking.hub.message(ask, grants=[GRANT], extra=peer.tlv(peer.MTU, b"?"))
    asking.wire.say(asking.hub.answer(ask, payload=peer.padded(wrong, ask.length - peer.ANSWER_FRAME)))
    again = asking.hear()
    assert again.session is asking.hub.newest(ask.grantee)
    assert again.wants == [ANY_56]
    asking.answer(again, GRANT)
    asking.eventually_holds(LEASE)


def test_two_sealed_asks_without_an_answer_and_a_handshake_follows(asking: Asking) -> None:
    asking.bound(times=(1, 100))
    assert asking.hear().session
    assert asking.hear().session
    first = asking.hear(8)
    assert first.session is None
    assert first.wants == [Want(0, str(LEASE), True, GRANT.ticket)]


def test_renew_and_release(asking: Asking) -> None:
    asking.bound()
    assert asking.daemon.command("renew").returncode == 0
    renewal = asking.hear()
    asking.answer(renewal, GRANT)
    asking.daemon.signal(signal.SIGUSR1)
    renewal = asking.hear()
    asking.answer(renewal, GRANT)
    assert asking.daemon.command("release").returncode == 0
    release = asking.hear()
    assert (release.wants, release.releases) == ([], [0])
    asking.answer(release)
    asking.eventually_holds()


def test_after_a_restart_the_daemon_asks_for_what_it_held(asking: Asking) -> None:
    before = asking.bound()
    asking.daemon.stop()
    asking.daemon.start()
    ask = asking.first()
    assert ask.run != before.run
    assert ask.stamp > before.stamp
    assert ask.wants == [Want(0, str(LEASE), True, GRANT.ticket)]
