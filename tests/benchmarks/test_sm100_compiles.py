from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import sm100_compiles
from benchmarks.record import load
from megamoe_jit import get_arch
from megamoe_jit.cli.presets import list_presets
from megamoe_jit.recipes.sm100 import TOKEN_TILES


def test_every_model_recipe_and_tile_is_built_once() -> None:
    every = list(sm100_compiles.builds(get_arch("sm_103a")))
    assert len({build.key for build in every}) == len(every)
    assert {build.model for build in every} >= {preset.name for preset in list_presets()} | {"gemm"}
    for recipe in sm100_compiles.RECIPES:
        fused = [b for b in every if b.recipe == recipe and b.description.kernel_name == "mega_moe_sm100"]
        assert {build.tile for build in fused} == set(TOKEN_TILES)
    assert {build.description.arch.name for build in every} == {"sm_103a"}


def test_a_run_compiles_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = list(sm100_compiles.builds(get_arch("sm_100f")))[:2]  # the staging kernel and a fused one
    monkeypatch.setattr(sm100_compiles, "RESULTS", tmp_path)
    monkeypatch.setattr(sm100_compiles, "builds", lambda arch: iter(two))
    monkeypatch.setattr("sys.argv", ["sm100_compiles", "--archs", "sm_100f"])
    assert sm100_compiles.main() == 0
    rows = load(tmp_path / "sm100_compiles.json").rows
    assert [(row["kernel"], row["builds"]) for row in rows] == [("stage_tokens_sm100", 1), ("mega_moe_sm100", 1)]
    for row in rows:
        assert (row["spill_bytes"], row["stack_bytes"]) == (0, 0)
        assert min(float(row[name] or 0) for name in ("registers", "compile_s", "cubin_kib")) > 0

    compiled: list[str] = []
    original = sm100_compiles.compile_one

    def spilling(build: sm100_compiles.Build, source: str) -> dict[str, object]:
        compiled.append(build.key)
        return original(build, source) | {"spill_bytes": 8}

    monkeypatch.setattr(sm100_compiles, "compile_one", spilling)
    raw = tmp_path / sm100_compiles.RAW
    kept = json.loads(raw.read_text())
    kept[two[0].key]["source"] = "another"
    raw.write_text(json.dumps(kept))
    assert sm100_compiles.main() == 1
    assert compiled == [two[0].key]
    assert f"2 builds, 1 wrong: {two[0].key}" in capsys.readouterr().out
    (first, _) = load(tmp_path / "sm100_compiles_summary.json").rows
    assert first["spill_bytes"] == 8
