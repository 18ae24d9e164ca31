from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import emulator_fuzz
from benchmarks.emulator_fuzz import COLUMNS, Outcome, fuzz, main, mended, rows, run_texts
from benchmarks.fuzzing.kernels import KERNELS, FuzzKernel
from benchmarks.fuzzing.worker import BAD_OUTCOMES, GOOD_OUTCOMES, Case, case, run
from benchmarks.journal import Journal
from benchmarks.record import Result
from megamoe_jit.emulator.parser import PtxSyntaxError, parse

_NUM_TEXTS = 160

# Stands in for the worker: one text kills it, one never ends, one makes it leave early.
_FAKE = """
import os, signal, sys, time
for index in range(int(sys.argv[2]), int(sys.argv[3])):
    print("start", index, flush=True)
    if index == 3: os.kill(os.getpid(), signal.SIGSEGV)
    if index == 5: time.sleep(60)
    if index == 7: sys.exit("no more")
    print("done", index, "ran" if index % 2 else "fault", "some detail", flush=True)
"""


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("engine", ["native", "numpy"])
@pytest.mark.parametrize("checks", ["error", "off"])
def test_kernels_run_while_they_are_whole(kernel: FuzzKernel, checks: str, engine: str) -> None:
    whole = Case(index=0, kernel=kernel, text=kernel.ptx, with_care=True, checks=checks, completion="lazy")
    assert run(whole, engine) == ("ran", "")


def test_texts_follow_from_seed_and_index() -> None:
    texts = [case(3, index) for index in range(2 * len(KERNELS))]
    assert texts == [case(3, index) for index in range(2 * len(KERNELS))]
    assert [found.kernel.name for found in texts[: len(KERNELS)]] == [kernel.name for kernel in KERNELS]
    assert len({found.text for found in texts}) > len(KERNELS)
    assert texts[0] != case(4, 0)


def test_careful_damage_is_mostly_ptx_and_random_damage_mostly_not() -> None:
    read: Counter[tuple[bool, bool]] = Counter()
    for index in range(400):
        found = case(5, index)
        try:
            parse(found.text)
            read[found.with_care, True] += 1
        except PtxSyntaxError:
            read[found.with_care, False] += 1
    assert read[True, True] > 8 * read[True, False]
    assert read[False, False] > 2 * read[False, True] > 0


def test_damaged_kernels_do_no_harm() -> None:
    outcomes = fuzz(1, _NUM_TEXTS, engine="native")
    assert [outcome for outcome in outcomes if outcome.outcome in BAD_OUTCOMES] == []
    assert sorted(outcome.index for outcome in outcomes) == list(range(_NUM_TEXTS))
    table = rows(outcomes)
    assert {column.key for column in COLUMNS} <= table[0].keys()
    total = table[-1]
    assert (total["texts"], total["bad"]) == (_NUM_TEXTS, 0)
    for outcome in ("ran", "fault", "syntax", "unsupported"):
        assert total[outcome], f"none is {outcome}"
    assert all(row["ran"] for row in table), "every kernel runs in some texts"


def test_a_worker_that_dies_or_hangs_is_an_outcome_and_the_rest_goes_on() -> None:
    found = list(run_texts(0, 1, 10, engine="native", timeout_s=3, worker=("-c", _FAKE)))
    assert [(outcome.index, outcome.outcome) for outcome in found] == [
        (1, "ran"), (2, "fault"), (3, "crash"), (4, "fault"), (5, "hang"),
        (6, "fault"), (7, "crash"), (8, "fault"), (9, "ran"),
    ]  # fmt: skip
    assert found[0].detail == "some detail"
    assert found[2].detail.startswith("SIGSEGV")
    assert found[6].detail == "exit status 1: no more"


def test_rows_count_every_outcome() -> None:
    outcomes = [
        Outcome(index=index, outcome=outcome, detail="")
        for index, outcome in enumerate((*GOOD_OUTCOMES, *BAD_OUTCOMES, "ran"))
    ]
    table = rows(outcomes)
    assert [row["kernel"] for row in table] == [*(kernel.name for kernel in KERNELS), "all"]
    assert table[-1] == {"kernel": "all", "texts": 10, "bad": 4, "mended": 0} | {
        outcome: 2 if outcome == "ran" else 1 for outcome in (*GOOD_OUTCOMES, *BAD_OUTCOMES)
    }
    assert sum(row["texts"] for row in table[:-1]) == 10


def test_a_text_can_be_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["emulator_fuzz.py", "--seed", "3", "--show", "4"])
    assert main() == 0
    printed = capsys.readouterr().out
    assert printed.startswith("// cluster, checks=")
    assert printed.endswith(case(3, 4).text + "\n")


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def some(seed: int, first: int, last: int, **_: object) -> Iterator[Outcome]:
        ran.append(first)
        if first == 8 and len(ran) < 4:
            raise KeyboardInterrupt
        for index in range(first, last):
            yield Outcome(index=index, outcome="hang" if index == 5 else "ran", detail="why")

    monkeypatch.setattr(emulator_fuzz, "CHUNK", 4)
    monkeypatch.setattr(emulator_fuzz, "run_texts", some)
    with pytest.raises(KeyboardInterrupt):
        fuzz(1, 10, engine="native", journal=Journal("fuzz", {}, folder=tmp_path))
    outcomes = fuzz(1, 10, engine="native", journal=Journal("fuzz", {}, folder=tmp_path))
    assert ran == [0, 4, 8, 8]
    assert [outcome.index for outcome in outcomes] == list(range(10))
    assert outcomes[5] == Outcome(index=5, outcome="hang", detail="why")


def test_bad_texts_of_a_record_can_be_run_again() -> None:
    def outcomes(*found: str) -> list[Outcome]:
        return [Outcome(index=index, outcome=outcome, detail="") for index, outcome in enumerate(found)]

    first = rows(outcomes("hang", "crash", "ran"))
    for row in first:
        del row["mended"]  # as records had it before any was mended
    record = Result(name="f", title="", columns=COLUMNS, rows=tuple(first), notes="Texts.", conditions={})
    again = mended(record, outcomes("hang", "crash"), outcomes("fault", "crash"), "abc")
    total, (hung, crashed, *_) = again.rows[-1], again.rows
    assert (total["texts"], total["ran"], total["fault"], total["hang"], total["crash"]) == (3, 1, 1, 0, 1)
    assert [(row["bad"], row["mended"]) for row in (total, hung, crashed)] == [(1, 1), (0, 1), (1, 0)]
    assert (
        again.notes
        == "Texts. At first 1 ended in crash, 1 ended in hang; these 2 ran again at commit abc, after the mending."
    )
    with pytest.raises(AssertionError, match="all bad texts"):
        mended(record, outcomes("hang"), outcomes("fault"), "abc")
