"""Does damaged PTX ever do more than be refused, run, or raise a fault? Small kernels, damaged in thousands of ways.

    python -m benchmarks.emulator_fuzz [--texts 100000] [--seed 0] [--processes 1] [--engine native] [--no-record]
    python -m benchmarks.emulator_fuzz --show 1234            # print text 1234, and how it is run
    python -m benchmarks.emulator_fuzz --again 1234:hang ...  # run the record's bad texts again, once they are mended

Each text is parsed, decoded, compiled and launched in a child process. Nothing may crash it, hang it, raise anything
that is no MegaMoeError, or change memory that the kernel was not given. Exits with 1 when something does. Outcomes are
kept as they come: a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.fuzzing.kernels import KERNELS
from benchmarks.fuzzing.worker import BAD_OUTCOMES, GOOD_OUTCOMES, case
from benchmarks.journal import Journal, fingerprint
from benchmarks.record import RESULTS, Cell, Column, Result, load, measure_conditions, save

CHUNK = 1000  # texts of one process: starting it takes as long as 60 of them
TIMEOUT_S = 60.0
COLUMNS = (
    Column(key="kernel", heading="kernel"),
    Column(key="texts", heading="texts", format=",.0f"),
    Column(key="ran", heading="ran to the end", format=",.0f"),
    Column(key="fault", heading="stopped by a fault", format=",.0f"),
    Column(key="syntax", heading="refused: syntax", format=",.0f"),
    Column(key="unsupported", heading="refused: instruction", format=",.0f"),
    Column(key="argument", heading="refused: launch", format=",.0f"),
    Column(key="bad", heading="crash, hang, stray write or other exception", format=",.0f"),
    Column(key="mended", heading="the same at first, mended since", format=",.0f"),
)
NOTES = (
    "Texts are the PTX of small kernels with tokens or characters deleted, doubled, swapped and replaced (40 %), or "
    "with statements, registers, numbers and qualifiers exchanged (60 %). Checks and completion are drawn for each."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one text."""

    index: int
    outcome: str
    detail: str


def run_texts(
    seed: int,
    first: int,
    last: int,
    *,
    engine: str,
    timeout_s: float = TIMEOUT_S,
    worker: Sequence[str] = ("-m", "benchmarks.fuzzing.worker"),
) -> Iterator[Outcome]:
    """Run texts `first` to `last` - 1 in child processes, a new one after each death; yields an outcome for each."""
    while first < last:
        command = [sys.executable, *worker, str(seed), str(first), str(last), engine]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            try:
                for found in _watch(child, first, timeout_s):
                    yield found
                    first = found.index + 1
            finally:
                child.kill()


def _watch(child: subprocess.Popen[bytes], first: int, timeout_s: float) -> Iterator[Outcome]:
    """Yield the outcomes that `child` prints; when it dies or is silent for too long, that is the last text's."""
    assert child.stdout is not None
    assert child.stderr is not None
    running, pending = first, b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout_s):
                yield Outcome(index=running, outcome="hang", detail=f"nothing for {timeout_s:.0f} s")
                return
            data = os.read(child.stdout.fileno(), 1 << 16)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                word, index, *rest = line.decode(errors="replace").split(" ", 3)
                running = int(index)
                if word == "done":
                    yield Outcome(index=running, outcome=rest[0], detail=rest[1] if len(rest) > 1 else "")
                    running += 1
    code = child.wait()
    if code != 0:
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        tail = " | ".join(child.stderr.read().decode(errors="replace").splitlines()[:12])
        yield Outcome(index=running, outcome="crash", detail=f"{name}: {tail}")


def fuzz(
    seed: int,
    num_texts: int,
    *,
    engine: str,
    processes: int = 1,
    timeout_s: float = TIMEOUT_S,
    journal: Journal | None = None,
) -> list[Outcome]:
    """Run `num_texts` texts in `processes` processes; prints the bad ones as they come.

    Chunks that `journal` holds are not run again, the others are added to it.
    """
    known = {entry["first"]: entry for entry in journal.entries} if journal else {}

    def one(first: int) -> dict[str, Any]:
        last = min(first + CHUNK, num_texts)
        if first in known and known[first]["last"] == last:
            return known[first]
        start = time.monotonic()
        found = [
            (outcome.index, outcome.outcome, outcome.detail if outcome.outcome in BAD_OUTCOMES else "")
            for outcome in run_texts(seed, first, last, engine=engine, timeout_s=timeout_s)
        ]
        return {"first": first, "last": last, "seconds": time.monotonic() - start, "outcomes": found}

    outcomes = []
    with ThreadPoolExecutor(processes) as pool:
        for chunk in pool.map(one, range(0, num_texts, CHUNK)):
            if journal and chunk["first"] not in known:
                journal.add(chunk)
            found = [Outcome(index=index, outcome=what, detail=detail) for index, what, detail in chunk["outcomes"]]
            for outcome in found:
                if outcome.outcome in BAD_OUTCOMES:
                    print(f"text {outcome.index}: {outcome.outcome}: {outcome.detail}", flush=True)
            print(f"{chunk['last']} of {num_texts}", file=sys.stderr, flush=True)
            outcomes += found
    return outcomes


def rows(outcomes: list[Outcome]) -> list[dict[str, Cell]]:
    """Return one row for each kernel, and one for all of them."""
    counts: dict[str, Counter[str]] = {kernel.name: Counter() for kernel in KERNELS}
    for outcome in outcomes:
        counts[KERNELS[outcome.index % len(KERNELS)].name][outcome.outcome] += 1
    counts["all"] = sum(counts.values(), Counter())
    return [
        {
            "kernel": name,
            "texts": found.total(),
            **{outcome: found[outcome] for outcome in (*GOOD_OUTCOMES, *BAD_OUTCOMES)},
            "bad": sum(found[outcome] for outcome in BAD_OUTCOMES),
            "mended": 0,
        }
        for name, found in counts.items()
    ]


def mended(record: Result, before: list[Outcome], after: list[Outcome], commit: str) -> Result:
    """Return `record` with what came of its bad texts when they were run again, at `commit`."""
    table = [dict(row) for row in record.rows]
    assert int(table[-1]["bad"] or 0) == len(before) == len(after), "all bad texts of the record are to be run again"
    for was, now in zip(before, after, strict=True):
        assert was.index == now.index
        name = KERNELS[was.index % len(KERNELS)].name
        is_mended = now.outcome not in BAD_OUTCOMES
        for row in (row for row in table if row["kernel"] in (name, "all")):
            row[was.outcome] = int(row[was.outcome] or 0) - 1
            row[now.outcome] = int(row[now.outcome] or 0) + 1
            row["bad"] = sum(int(row[outcome] or 0) for outcome in BAD_OUTCOMES)
            row["mended"] = int(row.get("mended") or 0) + is_mended
    for row in table:
        row.setdefault("mended", 0)
    kinds = Counter(was.outcome for was in before)
    first = ", ".join(f"{count} ended in {kind}" for kind, count in sorted(kinds.items()))
    notes = f"{record.notes} At first {first}; these {len(before)} ran again at commit {commit}, after the mending."
    return replace(record, columns=COLUMNS, rows=tuple(table), notes=notes)


def run_again(indices: Sequence[int], seed: int, engine: str) -> list[Outcome]:
    """Run single texts."""
    return [found for index in indices for found in run_texts(seed, index, index + 1, engine=engine)]


def main() -> int:
    """Fuzz, print and store the table; returns 1 when a text did what none may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--engine", default="native", choices=("native", "numpy"))
    parser.add_argument("--show", type=int, help="print one text instead")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--again", nargs="+", metavar="INDEX:OUTCOME", help="run the record's bad texts again")
    args = parser.parse_args()
    if args.again is not None:
        pairs = [given.split(":") for given in args.again]
        before = [Outcome(index=int(index), outcome=outcome, detail="") for index, outcome in pairs]
        after = run_again([was.index for was in before], args.seed, args.engine)
        for now in after:
            print(f"text {now.index}: {now.outcome}: {now.detail}")
        save(mended(load(RESULTS / "emulator_fuzz.json"), before, after, measure_conditions()["commit"]))
        return int(any(now.outcome in BAD_OUTCOMES for now in after))
    if args.show is not None:
        found = case(args.seed, args.show)
        print(f"// {found.kernel.name}, checks={found.checks}, completion={found.completion}\n{found.text}")
        return 0
    conditions = measure_conditions()
    state = {"sources": fingerprint("benchmarks/fuzzing/*.py"), "seed": args.seed, "engine": args.engine}
    journal = Journal("emulator_fuzz", state)
    outcomes = fuzz(args.seed, args.texts, engine=args.engine, processes=args.processes, journal=journal)
    table = rows(outcomes)
    for row in table:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    if not args.no_record:
        seconds = sum(chunk["seconds"] for chunk in journal.entries)
        notes = f"{NOTES} Seed {args.seed}, {args.engine} engine, {seconds:,.0f} s in {args.processes} process(es)."
        save(
            Result(
                name="emulator_fuzz",
                title="Damaged PTX in the emulator",
                columns=COLUMNS,
                rows=tuple(table),
                notes=notes,
                conditions=conditions,
            )
        )
        journal.finish()
    return 1 if table[-1]["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
