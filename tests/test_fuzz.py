"""What the fuzzer has kept: inputs that reach much, and all that was wrong once; and that it finds what is planted.

Each comes from `make fuzz`, in `vectors/fuzz/`; `fuzz_targets.py` says what may come of it, and what has to hold.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ddpd
import fuzz
from fuzz_targets import SEPARATOR, TARGETS, Target, quiet

FOLDER = Path(__file__).parent / "vectors" / "fuzz"


@pytest.fixture(autouse=True)
def _nothing_is_logged() -> Iterator[None]:
    with quiet():
        yield


def kept(name: str) -> dict[str, Any]:
    path = FOLDER / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"corpus": [], "findings": []}
    return found


WRONG_ONCE = [(name, row["what"], row["input"]) for name in TARGETS for row in kept(name)["findings"]]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, _, text in WRONG_ONCE],
                         ids=[f"{name}, {what}" for name, what, _ in WRONG_ONCE])
def test_what_was_wrong_once_is_right(name: str, text: str) -> None:
    TARGETS[name].run(fuzz.unwritten(text))


@pytest.mark.parametrize("name", TARGETS)
def test_what_reaches_much_breaks_nothing(name: str) -> None:
    for data in [*TARGETS[name].seeds(), *map(fuzz.unwritten, kept(name)["corpus"])]:
        TARGETS[name].run(data)


def test_the_corpus_is_small_and_of_known_targets() -> None:
    files = sorted(FOLDER.glob("*"))
    assert {path.name for path in files} <= {f"{name}.json" for name in TARGETS}
    assert sum(path.stat().st_size for path in files) < 300_000


# ---- a guard must be able to bark

def planted(data: bytes) -> None:
    """A defect behind two doors that one has to find one after the other."""
    message = ddpd.decode(data)
    if isinstance(message, ddpd.Answer) and message.mtu is not None and message.refusals:
        raise KeyError("planted")


def looked_into(data: bytes) -> None:
    try:
        planted(data)
    except ddpd.Drop:
        pass


def plain(answer: ddpd.Answer) -> bytes:
    return ddpd.encode(answer)


def test_it_finds_what_is_planted_and_makes_it_small(capsys: pytest.CaptureFixture[str]) -> None:
    least = ddpd.Answer(stamp=1, status=0, version=1)
    refused = ddpd.Refusal(0, 1, 2, "no pool of IPv6")
    seeds = [plain(replace(least, mtu=1400)), plain(replace(least, refusals=(refused,)))]
    fuzzer = fuzz.Fuzzer(Target("planted", looked_into, lambda: seeds, [b"\x23\x02\x05\x78"]), 1, seeds)
    assert len(fuzzer.corpus) == 2 and not fuzzer.findings
    for n in range(20_000):
        data, other = fuzzer.rand.choice(list(fuzzer.corpus)), fuzzer.rand.choice(list(fuzzer.corpus))
        fuzzer.add(fuzz.mutated(fuzzer.target, data, other, fuzzer.rand))
        if fuzzer.findings:
            assert n > 0
            break
    [found] = fuzzer.findings.values()
    with pytest.raises(KeyError, match="planted"):
        planted(found.data)
    assert len(found.data) <= len(plain(replace(least, mtu=1400, refusals=(refused,))))
    assert found.kind in capsys.readouterr().out


def test_a_loop_that_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(_data: bytes) -> None:
        while True:
            pass
    monkeypatch.setattr(fuzz, "SLOWEST_S", 0.05)
    found = fuzz.finding_of(Target("endless", endless, list, []), b"", 0.05)
    assert found is not None and found.kind.startswith("Hang")


@pytest.mark.parametrize("data", [b"", b"text\nof two lines", b"\0\xff", "\u00b2 and \u2028".encode(), b"hex:00"])
def test_an_input_is_written_and_read(data: bytes) -> None:
    assert fuzz.unwritten(fuzz.written(data)) == data


def test_mutants_are_bounded_and_of_one_seed_the_same() -> None:
    def mutants() -> list[bytes]:
        rand = random.Random(7)
        return [fuzz.mutated(TARGETS["door"], SEPARATOR.join([b"ip=::"] * 3), b"x" * 5000, rand) for _ in range(2000)]
    assert mutants() == mutants() and max(map(len, mutants())) <= fuzz.LONGEST
