from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import sm100_correctness
from benchmarks.record import load
from benchmarks.sm100_cases import POLICIES, RECIPES, Case, cases, make_layer, sums_are_exact
from megamoe_jit import get_recipe
from megamoe_jit.recipes.choose import token_tile
from megamoe_jit.recipes.sm100 import TOKEN_TILES
from megamoe_jit.reference.moe import moe_reference
from tests.real_data import why_missing

SMALL = Case(
    recipe="nvfp4_nvfp4",
    data="exact",
    hidden=64,
    intermediate=64,
    num_experts=2,
    num_topk=1,
    num_tokens=5,
    completion="eager",
    seed=3,
)


def test_every_value_of_every_axis_meets_every_recipe() -> None:
    every = cases()
    assert len({case.key for case in every}) == len(every)
    for recipe in RECIPES:
        mine = [case for case in every if case.recipe == recipe]
        axes: dict[str, set[Any]] = {
            "num_tokens": {0, 1, 7, 33, 128, 300},
            "num_experts": {1, 4, 16, 64},
            "num_topk": {1, 2, 6, 8},
            "completion": set(POLICIES),
            "data": {"normal", "real", "exact"},
        }
        for name, wanted in axes.items():
            assert {getattr(case, name) for case in mine} >= wanted
        tiles = {token_tile(case.problem(), get_recipe(recipe), case.num_tokens) for case in mine}
        assert tiles == set(TOKEN_TILES)
        sizes = {(case.hidden, case.intermediate) for case in mine}
        assert sizes == {(256, 256), (384, 768), (512, 1024), (2880, 2880), (4096, 2048)}
        assert {case.completion for case in mine if case.data == "exact"} == set(POLICIES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_exact_data_has_exact_sums_and_other_data_has_not(recipe: str) -> None:
    for data in ("exact", "normal"):
        case = replace(SMALL, recipe=recipe, data=data, hidden=256, intermediate=256)
        layer = make_layer(case)
        inner = moe_reference(
            layer.x, layer.topk_idx, layer.topk_weights, layer.weights, rounding=recipe, return_intermediates=True
        ).intermediates
        assert inner is not None
        assert inner.acts.abs().amin(1).max() < inner.acts.abs().amax()
        weights = sm100_correctness._multiplied(case, layer)
        assert sums_are_exact(inner, weights) == (data == "exact")


def test_a_run_stores_each_case_and_the_next_one_passes_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sm100_correctness, "RESULTS", tmp_path)
    monkeypatch.setattr(sm100_correctness, "cases", lambda: [SMALL])
    monkeypatch.setattr("sys.argv", ["sm100_correctness"])
    for name in ("COMPLETION", "SEED", "CHECKS"):
        monkeypatch.setenv(f"MEGAMOE_JIT_EMULATOR_{name}", "")  # restored afterwards
    assert sm100_correctness.main() == 0
    (row,) = load(tmp_path / "sm100_correctness.json").rows
    assert sm100_correctness.is_right(row)
    assert (row["key"], row["codes_identical"], row["y_identical"], row["findings"]) == (SMALL.key, 1.0, True, 0)
    assert row["completion"] == "eager"

    (summary,) = load(tmp_path / "sm100_correctness_summary.json").rows
    assert (summary["runs"], summary["codes_identical"], summary["findings"]) == (1, 1.0, 0)
    worse = {**row, "codes_identical": 0.9, "rel_l2_oracle": 0.1, "findings": 2, "y_identical": False}
    (summary,) = sm100_correctness.summarise([row, {**worse, "completion": "lazy"}])
    assert (summary["runs"], summary["codes_identical"], summary["rel_l2_oracle"]) == (2, 0.9, 0.1)
    assert (summary["findings"], summary["y_identical"]) == (2, False)
    assert len(sm100_correctness.summarise([row, {**row, "num_tokens": 6}])) == 2

    monkeypatch.setattr(sm100_correctness, "run_case", lambda case: pytest.fail("it is stored"))
    assert sm100_correctness.main() == 0
    assert SMALL.key in capsys.readouterr().out
    monkeypatch.setattr(sm100_correctness, "run_case", lambda case: {**row, "findings": 1})
    monkeypatch.setattr(sm100_correctness, "kernel_digest", lambda case: "another kernel")
    assert sm100_correctness.main() == 1
    assert "WRONG" in capsys.readouterr().out


RIGHT = {
    "data": "exact",
    "num_tokens": 3,
    "rel_l2_oracle": 0.0,
    "codes_identical": 1.0,
    "findings": 0,
    "stats_right": True,
    "launches": 2,
    "sums_exact": True,
    "y_identical": True,
}


@pytest.mark.parametrize(
    "change",
    [
        {"rel_l2_oracle": 2.1e-3},
        {"rel_l2_oracle": float("nan")},
        {"codes_identical": 0.998},
        {"findings": 1},
        {"stats_right": False},
        {"launches": 3},
        {"sums_exact": False},
        {"y_identical": False},
    ],
    ids=str,
)
def test_a_case_is_wrong_for_each_reason(change: dict[str, Any]) -> None:
    assert sm100_correctness.is_right(RIGHT)
    assert not sm100_correctness.is_right({**RIGHT, **change})


@pytest.mark.realdata
@pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))
def test_the_real_layer_is_the_real_weights() -> None:
    case = next(case for case in cases() if case.data == "real")
    layer = make_layer(case)
    assert (layer.weights.num_experts, layer.weights.hidden, layer.weights.intermediate) == (6, 384, 768)
    assert layer.x.dtype is torch.bfloat16
