from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megamoe_jit.arch import get_arch
from megamoe_jit.cli import warmup as warmup_module
from megamoe_jit.cli.presets import Preset, get_preset, list_presets
from megamoe_jit.cli.warmup import build_all, build_one, plan_models
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.source import KernelSource
from megamoe_jit.recipes import RECIPES, Problem, plan_kernels
from tests.cli.conftest import SMALL, Run

ROOT = Path(__file__).resolve().parent.parent.parent
ONLY_SMALL = (*SMALL, "--max-tokens", "8", "--arch", "sm_90a")


def plan(*models: Preset, recipes: tuple[str, ...] = (), **changes: int) -> list[object]:
    options = {"num_ranks": 1, "max_tokens_per_rank": 8192} | changes
    return list(plan_models(models, archs=["sm_90a"], recipes=recipes, **options))


def test_a_warm_up_compiles_once(run: Run) -> None:
    first = run("warmup", *ONLY_SMALL, "--processes", "1", "--json").record
    assert (first["kernels"], first["compiled"], first["cached"], first["failed"]) == (3, 3, 0, 0)
    assert first["compile_s"] == pytest.approx(sum(outcome["compile_s"] for outcome in first["outcomes"]))
    second = run("warmup", *ONLY_SMALL, "--processes", "1", "--json").record
    assert (second["compiled"], second["cached"], second["compile_s"]) == (0, 3, 0)


def test_what_was_warmed_up_is_what_a_call_needs(
    run: Run, warm_cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_ONLY", "1")
    assert run("demo", *SMALL, "--tokens", "8", "--arch", "sm_90a", "--json").record["cache"] == "hit"


def test_several_processes_build_into_one_cache(cache: KernelCache) -> None:
    problem = Problem(hidden=256, intermediate=128, num_experts=4, num_topk=2, max_tokens_per_rank=8)
    staging = plan_kernels(problem, "fp8_nvfp4", "sm_90a")[:2]
    outcomes = list(build_all(staging, 2, build_one=build_one))
    assert [outcome.cache for outcome in outcomes] == ["miss", "miss"]
    assert {outcome.entry for outcome in outcomes} == {folder.name for folder in cache.folders()}
    assert [outcome.cache for outcome in build_all(staging, 1, build_one=build_one)] == ["hit", "hit"]


def test_a_kernel_that_fails_does_not_stop_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(hidden=256, intermediate=128, num_experts=4, num_topk=2, max_tokens_per_rank=8)
    broken = KernelSource(kernel_name="broken", entry="no/such.cuh", arch=get_arch("sm_90a"))
    kernels = [broken, plan_kernels(problem, "bf16_nvfp4", "sm_90a")[0]]
    monkeypatch.setattr(warmup_module, "plan_models", lambda *_, **__: kernels)
    ran = run("warmup", *ONLY_SMALL, "--processes", "1", "--json")
    assert ran.code == 1
    assert (ran.record["compiled"], ran.record["failed"]) == (1, 1)
    (failed,) = [outcome for outcome in ran.record["outcomes"] if outcome["cache"] == "failed"]
    assert failed["kernel"] == "broken"
    assert "'no/such.cuh', which is not among the templates" in failed["error"]
    text = run("warmup", *ONLY_SMALL, "--processes", "1")
    assert "failed: broken for sm_90a" in text.out
    assert "0 compiled, 1 found in the cache, 1 failed" in text.out


def test_kernels_that_models_share_are_built_once() -> None:
    small, copy = get_preset("minilm"), get_preset("minilm")
    assert plan(small, copy) == plan(small)
    assert plan(small, get_preset("deepseek-v3")) == plan(small) + plan(get_preset("deepseek-v3"))


def test_each_named_recipe_is_planned() -> None:
    model = get_preset("minilm")
    both = plan(model, recipes=("fp8_nvfp4", "bf16_nvfp4"))
    assert both == plan(model, recipes=("fp8_nvfp4",)) + plan(model, recipes=("bf16_nvfp4",))
    assert plan(model) == plan(model, recipes=("fp8_nvfp4",))  # the default for NVFP4 on Hopper


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_every_preset_has_kernels_on_hopper(preset: Preset) -> None:
    kernels = plan(preset)
    assert kernels
    constants = kernels[-1].constants()  # type: ignore[attr-defined]
    assert constants["hidden"] == preset.hidden
    assert constants["num_experts"] == preset.num_experts
    assert constants["num_topk"] == preset.num_topk
    assert preset.checkpoint in {recipe.checkpoint for recipe in RECIPES.values()}


def test_gpt_oss_has_its_own_activation_and_format() -> None:
    preset = get_preset("gpt-oss-20b")
    assert preset.activation_spec() == ActivationSpec(kind="swiglu", alpha=1.702, up_bias=1.0, clamp=7.0)
    assert {kernel.recipe.name for kernel in plan(preset)} == {"fp8_mxfp4"}  # type: ignore[attr-defined]


def test_options_replace_what_the_preset_says(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Preset] = []

    def remember(models: list[Preset], **_: object) -> list[object]:
        seen.extend(models)
        return []

    monkeypatch.setattr(warmup_module, "plan_models", remember)
    run("warmup", "--preset", "deepseek-v4-flash", "--experts", "32", "--json")
    assert (seen[0].hidden, seen[0].num_experts, seen[0].num_topk) == (4096, 32, 6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "no --preset was given"),
        (("--hidden", "256"), "Give all four, or name a model"),
        (("--preset", "gpt-7"), "preset='gpt-7' is unknown. Use one of minilm,"),
        (("--preset", "minilm", "--arch", "sm_90"), "arch='sm_90' is not a known target"),
        (("--preset", "minilm", "--recipe", "fp8"), "recipe='fp8' is unknown"),
        (("--preset", "minilm", "--ranks", "4"), "num_experts=6 does not divide among num_ranks=4"),
        (("--preset", "minilm", "--ranks", "2"), "num_ranks=2"),
        (("--preset", "minilm", "--arch", "sm_120a"), "no recipe runs a checkpoint of format 'nvfp4' on sm_120a"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(run: Run, options: tuple[str, ...], sentence: str) -> None:
    ran = run("warmup", *options, "--json")
    assert ran.code == 1
    assert sentence in ran.record["error"]


def test_the_named_models_can_be_listed(run: Run) -> None:
    names = [preset["name"] for preset in run("warmup", "--list", "--json").record["presets"]]
    assert names == [preset.name for preset in list_presets()]
    assert all(name in run("warmup", "--list").out for name in names)


def test_the_script_in_the_cache_folder_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "cache/warmup.py"), "--list"]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    listed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment).stdout
    assert "gpt-oss-120b" in listed
