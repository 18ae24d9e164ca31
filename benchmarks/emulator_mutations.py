"""How many mistakes of one instruction does the emulator catch?

    python -m benchmarks.emulator_mutations [--case NAME ...] [--random 5] [--limit N] [--no-record]

Each mutant runs under lazy completion, random completion (several seeds) and eager completion. It is caught when a run
raises a fault, stops itself with a record, or returns another y than the correct kernel, bit for bit.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.mutation.cases import CASES, Case, Completion
from benchmarks.mutation.operators import Mutant, counted, mutants, replaced
from benchmarks.record import Cell, Column, Result, save
from megamoe_jit.errors import MegaMoeError

RANDOM = 0.3  # probability of a completion at each step of the scheduler
KINDS = ("wait", "fence", "commit", "expect_tx", "phase", "arrive", "SF column", "swizzle", "bar.sync")
COLUMNS = (
    Column(key="case", heading="kernel"),
    Column(key="kind", heading="class"),
    Column(key="mutants", heading="mutants", format=".0f"),
    Column(key="lazy", heading="caught: lazy", format=".0f"),
    Column(key="random", heading="random", format=".0f"),
    Column(key="eager", heading="eager", format=".0f"),
    Column(key="caught", heading="any", format=".0f"),
    Column(key="equivalent", heading="equivalent", format=".0f"),
)
# Mistakes that change nothing that could be seen, with the reason: (kernel or "", class, part of the place) -> why.
EQUIVALENT: tuple[tuple[str, str, str, str], ...] = (
    (
        "",
        "",
        "at ring.cuh:38 <- ring.cuh:44",
        "the last waits of a loader: what they wait for comes before an arrival that the epilogue waits for, in order "
        "of one thread's commits, which the emulator keeps",
    ),
    (
        "gemm",
        "wait",
        "cp.async.bulk.wait_group at tma_sm100.cuh:33 <- epilogue.cuh",
        "the last wait for stores: a CTA that leaves waits for them in the emulator",
    ),
    (
        "gemm",
        "fence",
        "<- sm100.cuh:47",
        "before the barrier behind the allocation nothing has touched tensor memory",
    ),
    ("gemm", "fence", "<- sm100.cuh:49", "whoever touches tensor memory first waits for an mbarrier and fences again"),
    ("gemm", "fence", "<- sm100.cuh:63", "every warp has fenced after its last access, before it released the tile"),
    ("gemm", "fence", "<- sm100.cuh:66", "only the deallocation follows, which the emulator orders by the barrier"),
)


@dataclass(kw_only=True)
class Verdict:
    """What came of one mutant: policies that caught it, and how the first one did."""

    mutant: Mutant
    caught_by: set[str] = field(default_factory=set)
    how: str = ""


def judge(case: Case, mutant: Mutant, num_random: int) -> Verdict:
    """Run one mutant under each policy."""
    verdict = Verdict(mutant=mutant)
    plan: list[tuple[str, Completion, range]] = [
        ("lazy", "lazy", range(1)),
        ("eager", "eager", range(1)),
        ("random", RANDOM, range(num_random)),
    ]
    with replaced(case.program(), mutant.handlers):
        for policy, completion, seeds in plan:
            for seed in seeds:
                how = _outcome(case, completion, seed)
                if how:
                    verdict.caught_by.add(policy)
                    verdict.how = verdict.how or f"{policy}: {how}"
                    break
    return verdict


def _outcome(case: Case, completion: Completion, seed: int) -> str:
    try:
        return "" if case.is_right(case.run(completion, seed)) else "another y"
    except MegaMoeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def reason_for(case: str, mutant: Mutant) -> str | None:
    """Return why a mistake cannot be seen, or None."""
    for name, kind, place, why in EQUIVALENT:
        if name in case and kind in ("", mutant.kind) and place in f"{mutant.place} {mutant.change}":
            return why
    return None


def examine(name: str, *, num_random: int, limit: int | None) -> list[Verdict]:
    """Return the verdicts on every mutant of a case, or on `limit` of them spread over all."""
    case = CASES[name]()
    program = case.program()
    with counted(program) as executed:
        assert case.is_right(case.run("lazy", 0)), "the correct kernel gives its own y"
    found = mutants(program, executed)
    if limit is not None and limit < len(found):
        found = [found[i * len(found) // limit] for i in range(limit)]
    verdicts = []
    for number, mutant in enumerate(found):
        start = time.perf_counter()
        verdict = judge(case, mutant, num_random)
        verdicts.append(verdict)
        outcome = verdict.how if verdict.caught_by else "SURVIVED"
        print(
            f"{name} {number + 1}/{len(found)} {mutant.kind}: {mutant.place}, {mutant.change}: {outcome} "
            f"({time.perf_counter() - start:.1f} s)",
            flush=True,
        )
    return verdicts


def rows_of(name: str, verdicts: list[Verdict]) -> list[dict[str, Cell]]:
    """Return one row a class of mistakes."""
    rows: list[dict[str, Cell]] = []
    for kind in KINDS:
        mine = [verdict for verdict in verdicts if verdict.mutant.kind == kind]
        if not mine:
            continue
        by = Counter(policy for verdict in mine for policy in verdict.caught_by)
        survivors = [verdict for verdict in mine if not verdict.caught_by]
        excused = [verdict for verdict in survivors if reason_for(name, verdict.mutant)]
        rows.append(
            {
                "case": name,
                "kind": kind,
                "mutants": len(mine),
                **{policy: by[policy] for policy in ("lazy", "random", "eager")},
                "caught": len(mine) - len(survivors),
                "equivalent": len(excused),
                "survivors": "; ".join(
                    f"{v.mutant.place}, {v.mutant.change}"
                    + (f" (equivalent: {why})" if (why := reason_for(name, v.mutant)) else "")
                    for v in survivors
                ),
            }
        )
    return rows


def main() -> None:
    """Run the cases and leave the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="run this one only (may be repeated)")
    parser.add_argument("--random", type=int, default=5, help="seeds under random completion")
    parser.add_argument("--limit", type=int, help="at most so many mutants of each case")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Cell]] = []
    for name in options.case or CASES:
        rows += rows_of(name, examine(name, num_random=options.random, limit=options.limit))
    total = sum(int(row["mutants"] or 0) - int(row["equivalent"] or 0) for row in rows)
    caught = sum(int(row["caught"] or 0) for row in rows)
    print(f"{caught} of {total} mistakes that can be seen were caught ({100 * caught / max(total, 1):.1f} %)")
    if not options.no_record:
        notes = (
            f"{caught} of {total} mistakes that change something were caught ({100 * caught / max(total, 1):.1f} %). "
            f"Random completion: {options.random} seeds. Survivors, with the reason where they are equivalent, are in "
            "the record."
        )
        save(
            Result(
                name="emulator_mutations",
                title="Mistakes of one instruction that the emulator catches",
                columns=COLUMNS,
                rows=tuple(rows),
                notes=notes,
            )
        )


if __name__ == "__main__":
    main()
