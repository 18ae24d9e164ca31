from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import emulator_mutations as benchmark
from benchmarks.emulator_mutations import (
    COLUMNS,
    SURVIVOR_COLUMNS,
    Verdict,
    examine,
    judge,
    rows_of,
    survivors_of,
    with_reasons,
)
from benchmarks.journal import Journal
from benchmarks.mutation import equivalent
from benchmarks.mutation.cases import Case, Completion, Ran
from benchmarks.mutation.equivalent import EQUIVALENT, Reason, reason_for
from benchmarks.mutation.operators import Mutant
from benchmarks.record import Result
from megamoe_jit.errors import EmulatorFault

LIMIT = Reason(where="seldom", why="the seed is too rare", equivalent=False)
NAMES = ("loud", "late", "silent", "seldom")


class Program:
    """Stands in for a compiled kernel: what its handlers are decides what a run gives."""

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}


def _mutant(number: int) -> Mutant:
    return Mutant(kind="wait", change="dropped", place=NAMES[number], handlers={number: lambda warp, mask: None})


def _case() -> tuple[Case, list[tuple[Completion, int]]]:
    """A kernel whose first mistake raises, whose second shows under lazy completion, whose last with one seed."""
    program, runs, zeros = Program(), [], torch.zeros(4)

    def run(completion: Completion, seed: int) -> Ran:
        runs.append((completion, seed))
        wrong = next(iter(program.handlers), None)
        if wrong == 0:
            raise EmulatorFault("stopped")
        is_wrong = (wrong == 1 and completion == "lazy") or (wrong == 3 and seed == 2)
        return Ran(y=torch.full((4,), float(is_wrong)))

    return Case(name="a kernel", run=run, program=lambda: program, expected=zeros, reference=zeros), runs


def test_who_catches_what() -> None:
    case, runs = _case()
    verdicts = [judge("kernel", case, _mutant(number), 5) for number in range(4)]
    assert [set(verdict.caught_by) for verdict in verdicts] == [
        {"lazy", "eager", "random"}, {"lazy"}, set(), {"random"},
    ]  # fmt: skip
    assert [verdict.how for verdict in verdicts] == [
        "lazy: EmulatorFault: stopped",
        "lazy: another y",
        "",
        "random: another y",
    ]
    assert Counter(runs)["lazy", 0] == 4
    assert case.program().handlers == {}, "the kernel is whole again"


def test_a_warning_is_a_catch_too() -> None:
    case, _ = _case()
    assert case.complaint(Ran(y=torch.zeros(4))) == ""
    assert case.complaint(Ran(y=torch.full((4,), -0.0))) == "another y"
    warned = Ran(y=torch.zeros(4), reports=frozenset({"unordered-rows", "note"}))
    assert case.complaint(warned) == "warnings: note, unordered-rows"
    assert replace(case, known=frozenset({"note"})).complaint(warned) == "warnings: unordered-rows"


def test_rows_and_survivors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalent, "EQUIVALENT", (Reason(where="silent", why="nothing"), LIMIT))
    case, _ = _case()
    verdicts = [judge("kernel", case, _mutant(number), 2) for number in range(4)]
    rows = rows_of(verdicts)
    assert all({column.key for column in COLUMNS} <= row.keys() for row in rows)
    of_class = next(row for row in rows if row["kind"] == "wait")
    assert of_class == {
        "case": "kernel", "kind": "wait", "mutants": 4, "equivalent": 1,
        "lazy": 2, "random": 1, "eager": 1, "caught": 2, "rate": 66.67,
    }  # fmt: skip
    assert {**rows[-1], "kind": "wait", "case": "kernel"} == of_class
    survivors = survivors_of(verdicts)
    assert [(row["place"], row["equivalent"], row["why"]) for row in survivors] == [
        ("silent", True, "nothing"), ("seldom", False, "the seed is too rare"),
    ]  # fmt: skip
    assert all({column.key for column in SURVIVOR_COLUMNS} == row.keys() for row in survivors)


def test_reasons_can_be_given_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = _case()
    verdicts = [judge("kernel", case, _mutant(number), 2) for number in range(4)]
    monkeypatch.setattr(equivalent, "EQUIVALENT", ())
    table = Result(
        name="m",
        title="",
        columns=COLUMNS,
        rows=tuple(rows_of(verdicts)),
        notes="2 of 4 (50.0 %). Seeds.",
        conditions={},
    )
    found = Result(name="s", title="", columns=SURVIVOR_COLUMNS, rows=tuple(survivors_of(verdicts)), conditions={})
    assert (table.rows[-1]["equivalent"], found.rows[0]["why"]) == (0, None)
    monkeypatch.setattr(equivalent, "EQUIVALENT", (Reason(where="silent", why="nothing"), LIMIT))
    told, why = with_reasons(table, found)
    assert list(told.rows) == rows_of(verdicts)
    assert list(why.rows) == survivors_of(verdicts)
    assert told.notes == "2 of 3 mistakes that change something were caught (66.67 %). Seeds."
    with pytest.raises(AssertionError, match="another run's"):
        with_reasons(table, replace(found, rows=found.rows[:1]))


def test_verdicts_of_an_interrupted_run_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = _case()
    judged: list[str] = []

    def watched(name: str, case: Case, mutant: Mutant, num_random: int) -> Verdict:
        judged.append(mutant.place)
        if len(judged) == 2:
            raise KeyboardInterrupt
        return judge(name, case, mutant, num_random)

    monkeypatch.setattr(benchmark, "CASES", {"kernel": lambda: case})
    monkeypatch.setattr(benchmark, "mutants", lambda program, executed: [_mutant(number) for number in range(4)])
    monkeypatch.setattr(benchmark, "judge", watched)
    with pytest.raises(KeyboardInterrupt):
        list(examine("kernel", Journal("m", {}, folder=tmp_path), num_random=2, limit=None))
    verdicts = list(examine("kernel", Journal("m", {}, folder=tmp_path), num_random=2, limit=None))
    assert judged == ["loud", "late", "late", "silent", "seldom"]
    assert [(v.mutant.place, set(v.caught_by)) for v in verdicts] == [
        ("loud", {"lazy", "eager", "random"}), ("late", {"lazy"}), ("silent", set()), ("seldom", set()),
    ]  # fmt: skip


def test_reasons_are_said_of_survivors_only() -> None:
    reason = EQUIVALENT[0]
    mutant = Mutant(kind=reason.kind or "wait", change="dropped", place=f"x {reason.where} y", handlers={})
    assert reason_for(reason.case, mutant) == reason
    caught = Verdict(case=reason.case, mutant=mutant, caught_by=frozenset({"lazy"}), how="lazy: another y")
    missed = Verdict(case=reason.case, mutant=mutant, caught_by=frozenset(), how="")
    assert (caught.reason, missed.reason) == (None, reason)
    elsewhere = Mutant(kind=mutant.kind, change="dropped", place="elsewhere", handlers={})
    assert reason_for(reason.case, elsewhere) is None
