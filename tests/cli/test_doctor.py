from __future__ import annotations

import pytest

from megamoe_jit import recipes
from megamoe_jit.cli import doctor as doctor_module
from megamoe_jit.cli.doctor import report_recipes
from megamoe_jit.cli.support import support_of
from megamoe_jit.errors import UnsupportedError
from megamoe_jit.jit import compile as compile_module
from megamoe_jit.jit import dump, headers
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.recipes import RECIPES
from megamoe_jit.runtime import backend
from tests.cli.conftest import Run
from tests.marks import needs_gpu

NAMES = [
    "megamoe_jit", "torch", "NVRTC", "CUDA headers", "driver", "GPU", "emulator", "disassembler", "cache",
    "environment",
]  # fmt: skip


HOPPER = {"fp8_nvfp4", "bf16_nvfp4", "fp8_mxfp4", "bf16_mxfp4"}


def checks(run: Run) -> dict[str, dict[str, str]]:
    """Return the checks of one `doctor --json` by name."""
    return {check["name"]: check for check in run("doctor", "--json").record["checks"]}


def test_doctor_looks_at_everything(run: Run, warm_cache: KernelCache) -> None:
    ran = run("doctor", "--json")
    assert ran.code == 0
    assert ran.record["ok"] is True
    assert [check["name"] for check in ran.record["checks"]] == NAMES
    found = checks(run)
    assert found["NVRTC"]["detail"].startswith("13.")
    assert f"{warm_cache.path} (writable): 3 kernels" in found["cache"]["detail"]


def test_doctor_prints_for_people(run: Run) -> None:
    out = run("doctor").out
    assert all(name in out for name in NAMES)
    assert all(f"{recipe}: " in out for recipe in RECIPES)


@needs_gpu
def test_doctor_sees_the_gpu(run: Run) -> None:
    found = checks(run)
    assert found["driver"]["state"] == found["GPU"]["state"] == "ok"


def test_each_recipe_says_how_it_runs_without_a_gpu() -> None:
    reports = {report.recipe: report for report in report_recipes(None)}
    assert set(reports) == set(RECIPES)
    assert {name for name, report in reports.items() if report.runs == "emulator"} >= HOPPER
    assert reports["fp8_nvfp4"].compiles_for == ("sm_90a",)
    assert "the emulator, kernels for sm_90a; there is no GPU here" in reports["fp8_nvfp4"].detail
    assert "the emulator, kernels for sm_100a, sm_100f" in reports["nvfp4_nvfp4"].detail
    assert "e2m1 weights x e4m3 activations" in reports["mxfp8_nvfp4"].computes


def test_without_the_emulator_recipes_run_on_the_reference(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_is_installed", lambda package: package != "llvmlite")
    reports = {report.recipe: report for report in report_recipes(None)}
    assert {report.runs for report in reports.values()} == {"reference"}
    assert "there is no GPU here, but kernels for sm_90a compile" in reports["fp8_nvfp4"].detail
    found = checks(run)["emulator"]
    assert found["state"] == "absent"
    assert found["detail"].startswith("needs llvmlite (pip install 'megamoe-jit[emulator]')")


def test_each_recipe_says_how_it_runs_on_hopper_and_on_another_gpu() -> None:
    on_hopper = {report.recipe: report for report in report_recipes("sm_90a")}
    assert [name for name, report in on_hopper.items() if report.runs == "kernel"] == [
        "fp8_nvfp4", "bf16_nvfp4", "fp8_mxfp4", "bf16_mxfp4",
    ]  # fmt: skip
    elsewhere = {report.recipe: report for report in report_recipes("sm_120a")}
    assert "this GPU (sm_120a) has no kernel for it" in elsewhere["fp8_nvfp4"].detail


def test_support_tells_a_foreign_target_from_a_missing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert support_of("fp8_nvfp4", "sm_90a").has_kernel
    foreign = support_of("nvfp4_nvfp4", "sm_90a")

    def refuse(*arguments: object) -> None:
        raise UnsupportedError("it has no kernel in this version")

    monkeypatch.setattr(recipes, "plan_kernels", refuse)
    missing = support_of("nvfp4_nvfp4", "sm_100f")
    assert (missing.is_target, missing.has_kernel, foreign.is_target) == (True, False, False)
    assert "has no kernel" in missing.reason
    assert "defined for sm_100a" in foreign.reason


def test_a_missing_nvrtc_is_broken_and_exit_status_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UnsupportedError("NVRTC cannot be loaded")

    monkeypatch.setattr(compile_module, "nvrtc_version", fail)
    ran = run("doctor", "--json")
    assert ran.code == 1
    assert ran.record["ok"] is False
    assert {"name": "NVRTC", "state": "broken", "detail": "NVRTC cannot be loaded"} in ran.record["checks"]


def test_a_misspelt_variable_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIRS", "x")
    found = checks(run)
    assert found["environment"]["state"] == "broken"
    assert "MEGAMOE_JIT_CACHE_DIRS" in found["environment"]["detail"]


def test_variables_that_are_set_are_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_LINEINFO", "0")
    assert "MEGAMOE_JIT_LINEINFO=0" in checks(run)["environment"]["detail"]


def test_what_is_merely_absent_breaks_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UnsupportedError("no CUDA headers")

    monkeypatch.setattr(headers, "find_headers", fail)
    monkeypatch.setattr(dump, "find_disassembler", lambda: None)
    monkeypatch.setattr(doctor_module, "device_arch", lambda: None)
    ran = run("doctor", "--json")
    states = {check["name"]: check["state"] for check in ran.record["checks"]}
    assert (ran.code, states["CUDA headers"], states["disassembler"]) == (0, "absent", "absent")
