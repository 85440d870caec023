"""A fuzzer that is led by what it reaches: `tests/fuzz.py TARGET[,TARGET...]|all [SECONDS [SEED]] [OPTIONS]`.

    --corpus FOLDER   begin with FOLDER/TARGET.json too, and write the smallest inputs that reach as much there
    --own             this fuzzer, though atheris is there

With atheris (and libFuzzer) that mutates, else the one here: it follows the lines of ddpd.py from one to the next, by
`sys.settrace`, or from Python 3.12 on by `sys.monitoring`, keeps what reaches something new, and mutates that: bits,
splices, numbers that are often wrong, lengths, words of each target.  What is found is made small, and printed with
its traceback.  No network; no file but in a temporary folder, and in FOLDER.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

try:
    import atheris
except ImportError:
    atheris = None
if atheris is not None and __name__ == "__main__" and "--own" not in sys.argv:
    with atheris.instrument_imports(include=["ddpd"]):
        sys.path.insert(0, str(Path(__file__).parent.parent))
        import ddpd
else:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import ddpd
from fuzz_targets import SEPARATOR, TARGETS, Target, quiet

SLOWEST_S = 1.0                          # that an input may take
TRACED = 20                              # ... and so many times as long while each line is looked at
LONGEST = 4096                           # bytes of an input
VECTORS = Path(__file__).parent / "vectors" / "fuzz"
Arc = tuple[CodeType, int, int]


class Hang(BaseException):
    """It takes too long; no `except Exception` is to catch that."""


class Finding(NamedTuple):
    """What must not happen, and what makes it happen."""

    target: str
    data: bytes
    kind: str                            # the exception, and the line of ddpd.py from which it came
    trace: str


# ---- one input

def hang(_signal: int, _frame: FrameType | None) -> None:
    raise Hang(f"more than {SLOWEST_S:g} s")


@contextmanager
def alarm(limit_s: float) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def place_of(why: BaseException) -> str:
    """Where in ddpd.py it came from; what a target itself objects to is told apart by its words."""
    frames = traceback.extract_tb(why.__traceback__)
    inner = [frame for frame in frames if frame.filename == ddpd.__file__]
    if isinstance(why, AssertionError) or not inner:
        return f"{type(why).__name__} {frames[-1].name}:{frames[-1].lineno}"
    return f"{type(why).__name__} {inner[-1].name}:{inner[-1].lineno}"


def finding_of(target: Target, data: bytes, limit_s: float = SLOWEST_S) -> Finding | None:
    """What goes wrong with this input."""
    try:
        with alarm(limit_s):
            target.run(data)
    except KeyboardInterrupt:
        raise
    except BaseException as why:  # noqa: BLE001 - that is what is looked for
        return Finding(target.name, data, place_of(why), "".join(traceback.format_exception(why)))
    return None


# ---- what is reached

class Coverage:
    """The lines of ddpd.py that follow one another."""

    def __init__(self) -> None:
        self.arcs: set[Arc] = set()
        self.last: dict[CodeType, int] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """What runs inside is looked at."""
        yield

    def reach(self, target: Target, data: bytes, limit_s: float) -> tuple[set[Arc], Finding | None]:
        self.arcs, self.last = set(), {}
        with self.watch():
            found = finding_of(target, data, limit_s)
        return self.arcs, found

    def step(self, code: CodeType, line: int) -> None:
        self.arcs.add((code, self.last.get(code, 0), line))
        self.last[code] = line


class Traced(Coverage):
    @contextmanager
    def watch(self) -> Iterator[None]:
        file = ddpd.__file__

        def local(frame: FrameType, event: str, _arg: Any) -> Any:
            if event == "line":
                self.step(frame.f_code, frame.f_lineno)
            return local

        def enter(frame: FrameType, _event: str, _arg: Any) -> Any:
            if frame.f_code.co_filename != file:
                return None
            self.last[frame.f_code] = 0
            return local

        sys.settrace(enter)
        try:
            yield
        finally:
            sys.settrace(None)


class Monitored(Coverage):
    """Python 3.12 and later: much less is paid for what is not looked at."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        monitoring: Any = vars(sys)["monitoring"]
        file, tool = ddpd.__file__, monitoring.COVERAGE_ID

        def begun(code: CodeType, _offset: int) -> Any:
            if code.co_filename != file:
                return monitoring.DISABLE
            self.last[code] = 0
            return None

        def line(code: CodeType, number: int) -> Any:
            if code.co_filename != file:
                return monitoring.DISABLE
            self.step(code, number)
            return None

        monitoring.use_tool_id(tool, "fuzz")
        monitoring.register_callback(tool, monitoring.events.PY_START, begun)
        monitoring.register_callback(tool, monitoring.events.LINE, line)
        monitoring.set_events(tool, monitoring.events.PY_START | monitoring.events.LINE)
        try:
            yield
        finally:
            monitoring.set_events(tool, 0)
            monitoring.free_tool_id(tool)


def coverage() -> Coverage:
    return Monitored() if hasattr(sys, "monitoring") else Traced()


# ---- mutations

BYTES = bytes((0, 1, 2, 3, 4, 6, 8, 15, 16, 17, 20, 31, 32, 48, 56, 58, 60, 64, 127, 128, 129, 134, 135, 136, 200, 253,
               254, 255))
NUMBERS = (0, 1, 2, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**53, 2**63,
           2**64 - 1)
WRITTEN = [str(n).encode() for n in (*NUMBERS, -1, -2**63, 10**40)] + [
    b"1e999", b"-1e999", b"1e308", b"0.5", b"NaN", b'"nan"', b"null", b"true", b"[]", b"{}", b'""', b"-0", b"1_0",
    b"9" * 4400,
    b"\xc2\xb2", b"\xd9\xa1", b"\xff", b"\0", b"\\u0000", b"\\ud800", b"\r", b"\n", b"\t", b" ", b"\xe2\x80\xa8",
    b"\x1c", b"%",
    b"fe80::1%eth0", b"::ffff:1.2.3.4", b"::/0", b"0.0.0.0/0", b"2000::/3", b"forever"]


def change_byte(data: bytearray, rand: random.Random) -> None:
    data[rand.randrange(len(data))] = rand.choice(BYTES) if rand.random() < 0.6 else rand.randrange(256)


def flip_bit(data: bytearray, rand: random.Random) -> None:
    data[rand.randrange(len(data))] ^= 1 << rand.randrange(8)


def step_byte(data: bytearray, rand: random.Random) -> None:
    """Lengths are often off by one."""
    at = rand.randrange(len(data))
    data[at] = (data[at] + rand.choice((-8, -2, -1, 1, 2, 8))) % 256


def put_number(data: bytearray, rand: random.Random) -> None:
    size, number = rand.choice((1, 2, 4, 8)), rand.choice(NUMBERS)
    at = rand.randrange(len(data))
    data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, rand.choice(("big", "little")))


def cut_out(data: bytearray, rand: random.Random) -> None:
    at = rand.randrange(len(data))
    del data[at : at + rand.choice((1, 1, 2, 4, 16, rand.randrange(1, len(data) + 1)))]


def double(data: bytearray, rand: random.Random) -> None:
    at, size = rand.randrange(len(data)), rand.choice((1, 2, 8, 32, 128))
    to = rand.randrange(len(data) + 1)
    data[to:to] = data[at : at + size] * rand.choice((1, 1, 2, 16))


def put_bytes(data: bytearray, rand: random.Random) -> None:
    at = rand.randrange(len(data) + 1)
    data[at:at] = rand.randbytes(rand.choice((1, 2, 4, 16)))


def number_in_text(data: bytearray, rand: random.Random) -> None:
    """A number that is written there becomes another."""
    at = rand.randrange(len(data))
    while at < len(data) and not 48 <= data[at] <= 57:
        at += 1
    end = at
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    data[at:end] = rand.choice(WRITTEN)


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    change_byte, flip_bit, step_byte, put_number, cut_out, double, put_bytes, number_in_text)


def spliced(data: bytes, other: bytes, rand: random.Random) -> bytes:
    """At steps, where the target has any; else anywhere."""
    if rand.random() < 0.6 and (SEPARATOR in data or SEPARATOR in other):
        ours, theirs = data.split(SEPARATOR), other.split(SEPARATOR)
        at = rand.randrange(len(ours) + 1)
        ours[at : at + rand.randrange(2)] = theirs[rand.randrange(len(theirs)) :][: rand.choice((1, 1, 2, 8))]
        return SEPARATOR.join(ours)
    cut, from_ = rand.randrange(len(data) + 1), rand.randrange(len(other) + 1)
    return data[:cut] + other[from_:]


def mutated(target: Target, data: bytes, other: bytes, rand: random.Random) -> bytes:
    if rand.random() < 0.2:
        data = spliced(data, other, rand)
    changed = bytearray(data)
    for _ in range(rand.choice((1, 1, 1, 2, 2, 3, 4, 8))):
        if not changed or rand.random() < 0.25:
            word = rand.choice(target.words if target.words and rand.random() < 0.6 else WRITTEN)
            at = rand.randrange(len(changed) + 1)
            changed[at : at + rand.choice((0, 0, len(word)))] = word
        else:
            rand.choice(MUTATIONS)(changed, rand)
    return bytes(changed[:LONGEST])


# ---- making small

def smaller(data: bytes) -> Iterator[bytes]:
    """Without some of it: steps first, then bytes, half of all at first."""
    parts = data.split(SEPARATOR)
    for n in range(len(parts) if len(parts) > 1 else 0):
        yield SEPARATOR.join(parts[:n] + parts[n + 1 :])
    size = max(1, len(data) // 2)
    while True:
        for at in range(0, len(data), size):
            yield data[:at] + data[at + size :]
        if size == 1:
            return
        size //= 2


def minimised(data: bytes, is_same: Callable[[bytes], bool], within_s: float) -> bytes:
    until, shrinks = time.monotonic() + within_s, True
    while shrinks and time.monotonic() < until:
        shrinks = False
        for less in smaller(data):
            if time.monotonic() >= until:
                break
            if len(less) < len(data) and is_same(less):
                data, shrinks = less, True
                break
    return data


def made_small(found: Finding, target: Target, within_s: float = 20.0) -> Finding | None:
    """None: it was slow once, as the machine had something else to do."""
    if found.kind.startswith("Hang") and finding_of(target, found.data) is None:
        return None

    def is_same(data: bytes) -> bool:
        less = finding_of(target, data)
        return less is not None and less.kind == found.kind
    return finding_of(target, minimised(found.data, is_same, within_s)) or found


# ---- corpora

def written(data: bytes) -> str:
    """Text as text, all else in hexadecimal digits."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "hex:" + data.hex()
    return "text:" + text if all(letter.isprintable() or letter == "\n" for letter in text) else "hex:" + data.hex()


def unwritten(text: str) -> bytes:
    kind, _, rest = text.partition(":")
    return rest.encode() if kind == "text" else bytes.fromhex(rest)


def read_corpus(folder: Path, name: str) -> list[bytes]:
    """Its findings too: what was wrong once may be so again."""
    path = folder / f"{name}.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return [unwritten(text) for text in (*found["corpus"], *(row["input"] for row in found["findings"]))]


def write_corpus(folder: Path, name: str, corpus: Iterable[bytes], findings: Iterable[Finding]) -> None:
    """What is known as a finding stays one."""
    path = folder / f"{name}.json"
    known = json.loads(path.read_text())["findings"] if path.exists() else []
    inputs = {row["input"] for row in known}
    known += [{"what": found.kind, "input": written(found.data)} for found in findings
              if written(found.data) not in inputs]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"corpus": sorted(map(written, corpus)), "findings": known}, indent=1) + "\n")


def smallest_cover(reached: dict[bytes, set[Arc]], most: int) -> list[bytes]:
    """As few and short inputs as reach all of it, greedily; `most` bytes of them."""
    left, chosen, size = set().union(*reached.values()), list[bytes](), 0
    rest = dict(reached)
    while left and rest:
        best = max(rest, key=lambda data: (len(rest[data] & left) / (20 + len(written(data))), -len(data)))
        gain = rest.pop(best) & left
        if not gain:
            break
        left -= gain
        if size + len(written(best)) <= most:
            chosen.append(best)
            size += len(written(best))
    return chosen


# ---- the fuzzer that is always there

class Fuzzer:
    def __init__(self, target: Target, seed: int, seeds: Iterable[bytes]) -> None:
        self.target, self.rand, self.coverage = target, random.Random(f"{target.name} {seed}"), coverage()
        self.corpus: dict[bytes, set[Arc]] = {}
        self.seen: set[Arc] = set()
        self.findings: dict[str, Finding] = {}
        self.runs = 0
        for data in seeds:
            self.add(data)

    def add(self, data: bytes) -> None:
        self.runs += 1
        arcs, found = self.coverage.reach(self.target, data, TRACED * SLOWEST_S)
        if found is not None:
            small = made_small(found, self.target) if found.kind not in self.findings else None
            if small is not None:
                self.findings[found.kind] = tell(small)
            return
        if arcs - self.seen:
            self.seen |= arcs
            self.corpus[data] = arcs

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            known = list(self.corpus) or [b""]
            at = self.rand.randrange(len(known)) if self.rand.random() < 0.6 else \
                max(0, len(known) - 1 - int(self.rand.expovariate(0.2)))         # what is new has been mutated least
            data, other = known[at], self.rand.choice(known)
            for _ in range(8):
                self.add(mutated(self.target, data, other, self.rand))


def tell(found: Finding) -> Finding:
    print(f"==== {found.target}: {found.kind}\n{written(found.data)}\n{found.trace}", flush=True)
    return found


def covered(target: Target, inputs: Iterable[bytes]) -> dict[bytes, set[Arc]]:
    """What each of these reaches; without those that find something."""
    looks = coverage()
    both = {data: looks.reach(target, data, TRACED * SLOWEST_S) for data in inputs}
    return {data: arcs for data, (arcs, found) in both.items() if found is None}


# ---- atheris

def by_atheris(target: Target, seconds: int, seed: int, seeds: Iterable[bytes], folder: Path) -> list[Finding]:
    """In a process of its own, as libFuzzer ends it; what it finds does not end it."""
    place, report = folder / target.name, folder / f"{target.name}.findings"
    place.mkdir()
    for n, data in enumerate(seeds):
        (place / f"{n}").write_bytes(data)
    words = folder / f"{target.name}.words"
    words.write_text("".join('"' + "".join(rf"\x{byte:02x}" for byte in word) + '"\n'
                             for word in [*target.words, *WRITTEN, SEPARATOR] if 0 < len(word) <= 64))
    child = os.fork()
    if not child:
        known: dict[str, Finding] = {}
        others = list(seeds)

        def other(data: bytes, most: int, seed: int) -> bytes:
            """As libFuzzer does it, or as we do."""
            rand = random.Random(seed)
            if rand.random() < 0.5:
                mutant: bytes = atheris.Mutate(data, most)
                return mutant
            return mutated(target, data, rand.choice(others), rand)[:most]

        def one(data: bytes) -> None:
            found = finding_of(target, data)
            if found is not None and found.kind not in known:
                known[found.kind] = found
                with report.open("a") as file:
                    file.write(json.dumps(found._replace(data=b"")._asdict() | {"data": data.hex()},
                                          default=str) + "\n")

        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", f"-seed={seed + 1}", f"-max_len={LONGEST}",
                       "-timeout=60",
                       "-verbosity=0", "-print_final_stats=1", f"-dict={words}", "-rss_limit_mb=2000", str(place)], one,
                       custom_mutator=other)
        atheris.Fuzz()
        os._exit(0)
    os.waitpid(child, 0)
    rows: list[Any] = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    return [Finding(target.name, bytes.fromhex(row["data"]), row["kind"], row["trace"]) for row in rows]


# ---- the command

def fuzz(target: Target, seconds: float, seed: int, folder: Path | None, own: bool) -> list[Finding]:
    begun = time.monotonic()
    seeds = list(dict.fromkeys([*target.seeds(), *read_corpus(VECTORS, target.name),
                                *(read_corpus(folder, target.name) if folder else ())]))
    if atheris is None or own:
        fuzzer = Fuzzer(target, seed, seeds)
        fuzzer.run(begun + seconds)
        corpus, found, runs = fuzzer.corpus, list(fuzzer.findings.values()), f"{fuzzer.runs} runs"
    else:
        with tempfile.TemporaryDirectory() as temporary:
            raw = by_atheris(target, max(1, int(seconds)), seed, seeds, Path(temporary))
            inputs = [path.read_bytes() for path in (Path(temporary) / target.name).iterdir()]
        found = [tell(small) for one in raw if (small := made_small(one, target)) is not None]
        corpus, runs = covered(target, inputs) if folder else {}, f"{len(inputs)} inputs"
    arcs = len(set().union(*corpus.values())) if corpus else 0
    print(f"{target.name:10} {time.monotonic() - begun:6.0f} s  {runs}  {arcs} arcs  {len(found)} findings", flush=True)
    if folder is not None:
        write_corpus(folder, target.name, smallest_cover(corpus, target.room), found)
    return found


def main(argv: list[str]) -> int:
    own, folder = "--own" in argv, Path(argv[argv.index("--corpus") + 1]) if "--corpus" in argv else None
    words = [word for n, word in enumerate(argv) if not word.startswith("--") and (not n or argv[n - 1] != "--corpus")]
    names = list(TARGETS) if words[:1] in ([], ["all"]) else words[0].split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        print(f"no target {', '.join(unknown)} (have: {', '.join(TARGETS)})")
        return 2
    seconds = float(words[1]) if words[1:] else 60.0
    seed = int(words[2]) if words[2:] else int.from_bytes(os.urandom(3), "big")
    print(f"seed {seed}, {'atheris' if atheris is not None and not own else 'own fuzzer'}", flush=True)
    with quiet():
        found = [one for name in names for one in fuzz(TARGETS[name], seconds / len(names), seed, folder, own)]
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
