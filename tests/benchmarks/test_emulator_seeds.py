from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import emulator_seeds
from benchmarks.emulator_seeds import COLUMNS, COMPLETIONS, examine
from benchmarks.journal import Journal
from benchmarks.mutation.cases import Case, Completion, Ran, triton_hopper
from megamoe_jit.errors import EmulatorFault


def _case(seen: list[int]) -> Case:
    """A kernel that is reported under one seed, differs under another, and warns under a third."""

    def run(completion: Completion, seed: int) -> Ran:
        seen.append(seed)
        if seed == 3:
            raise EmulatorFault("race: something")
        return Ran(y=torch.full((2,), float(seed == 5)), reports=frozenset({"note"} if seed == 6 else ()))

    zeros = torch.zeros(2)
    return Case(name="a kernel", run=run, program=lambda: None, expected=zeros, reference=zeros)


def test_reports_and_differences_are_counted_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(emulator_seeds, "KERNELS", {"kernel": lambda: _case(seen)})
    examine("kernel", 4, Journal("seeds", {}, folder=tmp_path))
    row = examine("kernel", 16, Journal("seeds", {}, folder=tmp_path))
    assert seen == list(range(16)), "seeds of the first run are not run again"
    assert {column.key for column in COLUMNS} == row.keys()
    assert (row["reports"], row["differences"], row["warnings"]) == (1, 1, "`note` once")
    assert (row["lazy"], row["eager"], row["random"]) == (4, 4, 8)


def test_completions_mix_all_policies() -> None:
    assert {"lazy", "eager"} < set(COMPLETIONS)
    assert len({completion for completion in COMPLETIONS if isinstance(completion, float)}) >= 3


def test_a_correct_kernel_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(emulator_seeds, "KERNELS", {"triton": triton_hopper})
    row = examine("triton", len(COMPLETIONS), Journal("seeds", {}, folder=tmp_path))
    assert (row["reports"], row["differences"], row["warnings"]) == (0, 0, "none")
    assert 0 < float(row["rel_l2"] or 0) < 5e-3
