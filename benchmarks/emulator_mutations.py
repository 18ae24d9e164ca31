"""How many mistakes of one instruction does the emulator catch?

    python -m benchmarks.emulator_mutations [--case NAME ...] [--random 5] [--limit N] [--no-record]
    python -m benchmarks.emulator_mutations --reasons      # run nothing: put today's reasons into the records

Each mutant runs under lazy completion, random completion (several seeds) and eager completion. It is caught when a run
raises a fault, stops itself with a record, returns another y than the correct kernel, bit for bit, or leaves a warning,
of which the correct kernels have none. Verdicts are kept as they come: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from benchmarks.journal import Journal, fingerprint
from benchmarks.mutation.cases import CASES, Case, Completion
from benchmarks.mutation.equivalent import EQUIVALENT, Reason, reason_for
from benchmarks.mutation.operators import Mutant, counted, mutants, replaced
from benchmarks.record import RESULTS, Cell, Column, Result, load, measure_conditions, save
from megamoe_jit.errors import MegaMoeError

NAME = "emulator_mutations"
RANDOM = 0.3  # probability of a completion at each step of the scheduler
KINDS = ("wait", "fence", "commit", "expect_tx", "phase", "arrive", "SF column", "swizzle", "bar.sync")
FILES = ("benchmarks/mutation/cases.py", "benchmarks/mutation/operators.py", "tests/emulator/triton/*.py")
POLICIES = ("lazy", "random", "eager")
COLUMNS = (
    Column(key="case", heading="kernel"),
    Column(key="kind", heading="class"),
    Column(key="mutants", heading="mutants", format=".0f"),
    Column(key="equivalent", heading="of them equivalent", format=".0f"),
    *(Column(key=policy, heading=f"caught: {policy}", format=".0f") for policy in POLICIES),
    Column(key="caught", heading="caught: any", format=".0f"),
    Column(key="rate", heading="% of those not equivalent", format=".1f"),
)
SURVIVOR_COLUMNS = (
    Column(key="case", heading="kernel"),
    Column(key="kind", heading="class"),
    Column(key="place", heading="instruction"),
    Column(key="change", heading="change"),
    Column(key="equivalent", heading="equivalent"),
    Column(key="why", heading="why it survives"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of one mutant of a case: policies that caught it, and how the first one did."""

    case: str
    mutant: Mutant
    caught_by: frozenset[str]
    how: str

    @property
    def reason(self) -> Reason | None:
        """Why it survived; None when it did not, or when nobody knows."""
        return None if self.caught_by else reason_for(self.case, self.mutant)

    @property
    def is_equivalent(self) -> bool:
        """Whether the mistake changes nothing that could be seen."""
        return self.reason is not None and self.reason.equivalent


def judge(name: str, case: Case, mutant: Mutant, num_random: int) -> Verdict:
    """Run one mutant under each policy."""
    caught_by: dict[str, str] = {}
    plan: list[tuple[str, Completion, range]] = [
        ("lazy", "lazy", range(1)),
        ("eager", "eager", range(1)),
        ("random", RANDOM, range(num_random)),
    ]
    with replaced(case.program(), mutant.handlers):
        for policy, completion, seeds in plan:
            how = next((how for seed in seeds if (how := _outcome(case, completion, seed))), "")
            if how:
                caught_by[policy] = how
    first = next((f"{policy}: {how}" for policy, how in caught_by.items()), "")
    return Verdict(case=name, mutant=mutant, caught_by=frozenset(caught_by), how=first)


def _outcome(case: Case, completion: Completion, seed: int) -> str:
    try:
        return case.complaint(case.run(completion, seed))
    except MegaMoeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def examine(name: str, journal: Journal, *, num_random: int, limit: int | None) -> Iterator[Verdict]:
    """Yield the verdicts on every mutant of a case, or on `limit` of them spread over all."""
    known = {tuple(entry["mutant"]): entry for entry in journal.entries if entry["case"] == name}
    case = CASES[name]()
    program = case.program()
    with counted(program) as executed:
        case.run("lazy", 0)
    found = mutants(program, executed)
    if limit is not None and limit < len(found):
        found = [found[i * len(found) // limit] for i in range(limit)]
    for number, mutant in enumerate(found):
        key = (mutant.kind, mutant.place, mutant.change)
        start = time.perf_counter()
        if key not in known:
            verdict = judge(name, case, mutant, num_random)
            entry = {"case": name, "mutant": key, "caught_by": sorted(verdict.caught_by), "how": verdict.how}
            journal.add(entry)
            print(
                f"{name} {number + 1}/{len(found)} {': '.join(key)}: {verdict.how or 'SURVIVED'} "
                f"({time.perf_counter() - start:.1f} s)",
                flush=True,
            )
        else:
            entry = known[key]
            verdict = Verdict(case=name, mutant=mutant, caught_by=frozenset(entry["caught_by"]), how=str(entry["how"]))
        yield verdict


def row_of(name: str, kind: str, verdicts: Iterable[Verdict]) -> dict[str, Cell]:
    """Return one row of the table."""
    mine = list(verdicts)
    by = Counter(policy for verdict in mine for policy in verdict.caught_by)
    caught = sum(bool(verdict.caught_by) for verdict in mine)
    equivalent = sum(verdict.is_equivalent for verdict in mine)
    return {
        "case": name,
        "kind": kind,
        "mutants": len(mine),
        "equivalent": equivalent,
        **{policy: by[policy] for policy in POLICIES},
        "caught": caught,
        "rate": rate(len(mine), equivalent, caught),
    }


def rate(mutants: int, equivalent: int, caught: int) -> float | None:
    """Return how many per cent of the mutants that are not equivalent were caught."""
    return round(100 * caught / (mutants - equivalent), 2) if mutants > equivalent else None


def rows_of(verdicts: list[Verdict]) -> list[dict[str, Cell]]:
    """Return one row a class of mistakes in each kernel, then one a class, then the total."""
    rows = []
    for name in dict.fromkeys(verdict.case for verdict in verdicts):
        of_case = [verdict for verdict in verdicts if verdict.case == name]
        for kind in KINDS:
            mine = [verdict for verdict in of_case if verdict.mutant.kind == kind]
            rows += [row_of(name, kind, mine)] if mine else []
        rows.append(row_of(name, "all", of_case))
    rows += [row_of("all", kind, [v for v in verdicts if v.mutant.kind == kind]) for kind in KINDS]
    return [*rows, row_of("all", "all", verdicts)]


def survivors_of(verdicts: list[Verdict]) -> list[dict[str, Cell]]:
    """Return one row for each mutant that nothing caught."""
    return [survivor_row(verdict) for verdict in verdicts if not verdict.caught_by]


def survivor_row(verdict: Verdict) -> dict[str, Cell]:
    """Return what the record says of a mutant that nothing caught."""
    return {
        "case": verdict.case,
        "kind": verdict.mutant.kind,
        "place": verdict.mutant.place,
        "change": verdict.mutant.change,
        "equivalent": verdict.is_equivalent,
        "why": verdict.reason.why if verdict.reason else None,
    }


def with_reasons(table: Result, survivors: Result) -> tuple[Result, Result]:
    """Return both records with the reasons that are known today: survivors are looked at after they were found."""
    told: list[dict[str, Cell]] = []
    for row in survivors.rows:
        mutant = Mutant(kind=str(row["kind"]), change=str(row["change"]), place=str(row["place"]), handlers={})
        told.append(survivor_row(Verdict(case=str(row["case"]), mutant=mutant, caught_by=frozenset(), how="")))
    rows = []
    for row in table.rows:
        mine = [t for t in told if row["case"] in ("all", t["case"]) and row["kind"] in ("all", t["kind"])]
        mutants, caught = int(row["mutants"] or 0), int(row["caught"] or 0)
        assert mutants - caught == len(mine), f"{row['case']}, {row['kind']}: another run's survivors"
        equivalent = sum(bool(t["equivalent"]) for t in mine)
        rows.append({**row, "equivalent": equivalent, "rate": rate(mutants, equivalent, caught)})
    notes = f"{summary(rows[-1])} {table.notes.partition(' %). ')[2]}"
    columns = SURVIVOR_COLUMNS
    return replace(table, rows=tuple(rows), notes=notes), replace(survivors, columns=columns, rows=tuple(told))


def summary(total: Mapping[str, Cell]) -> str:
    """Return the sentence about all mutants."""
    visible = int(total["mutants"] or 0) - int(total["equivalent"] or 0)
    return f"{total['caught']} of {visible} mistakes that change something were caught ({total['rate']} %)."


def main() -> None:
    """Run the cases and leave the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="run this one only (may be repeated)")
    parser.add_argument("--random", type=int, default=5, help="seeds under random completion")
    parser.add_argument("--limit", type=int, help="at most so many mutants of each case")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--reasons", action="store_true", help="run nothing; put today's reasons into the records")
    options = parser.parse_args()
    if options.reasons:
        for record in with_reasons(load(RESULTS / f"{NAME}.json"), load(RESULTS / f"{NAME}_survivors.json")):
            save(record)
        return
    conditions = measure_conditions()
    journal = Journal("emulator_mutations", {"sources": fingerprint(*FILES), "random": options.random})
    verdicts = [
        verdict
        for name in options.case or CASES
        for verdict in examine(name, journal, num_random=options.random, limit=options.limit)
    ]
    rows, survivors = rows_of(verdicts), survivors_of(verdicts)
    for row in survivors:
        print(", ".join(f"{key}: {value}" for key, value in row.items()))
    said = [verdict.reason for verdict in verdicts]
    for reason in EQUIVALENT:
        if reason not in said:
            print(f"no survivor has this reason: {reason.case} {reason.kind} {reason.where}")
    print(summary(rows[-1]))
    if options.no_record:
        return
    notes = (
        f"{summary(rows[-1])} A mistake is made in one line of the source: in every instruction that the compiler made "
        "of it. It is caught when a run is stopped by a report, stops itself, gives another y, or leaves a warning "
        f"that the correct kernel does not; random completion has {options.random} seeds, lazy and eager one each."
    )
    save(
        Result(
            name=NAME,
            title="Mistakes of one instruction that the emulator catches",
            columns=COLUMNS,
            rows=tuple(rows),
            notes=notes,
            conditions=conditions,
        )
    )
    save(
        Result(
            name=f"{NAME}_survivors",
            title="Mistakes that nothing caught",
            columns=SURVIVOR_COLUMNS,
            rows=tuple(survivors),
            conditions=conditions,
        )
    )
    if options.case is None and options.limit is None:
        journal.finish()


if __name__ == "__main__":
    main()
