from __future__ import annotations

import math

import pytest

from megamoe_jit.cli import demo as demo_module
from megamoe_jit.errors import DeadlockFault
from tests.cli.conftest import SMALL, Run
from tests.marks import capabilities, needs_sm90

needs_no_hopper = pytest.mark.skipif((9, 0) in capabilities(), reason="this machine has a GPU of a target")

KEYS = {"backend", "arch", "recipe", "shape", "cosine", "rel_l2", "compile_s", "cache", "wall_s", "emulated"}
ON_SM90A = (*SMALL, "--tokens", "8", "--arch", "sm_90a")
ON_REFERENCE = (*ON_SM90A, "--backend", "reference")


def test_the_demo_compiles_runs_and_reports(run: Run) -> None:
    first = run("demo", *ON_SM90A, "--json")
    assert first.code == 0
    record = first.record
    assert record.keys() >= KEYS
    assert (record["arch"], record["recipe"], record["cache"]) == ("sm_90a", "fp8_nvfp4", "miss")
    assert record["shape"] == {"hidden": 256, "intermediate": 128, "num_experts": 4, "num_topk": 2, "num_tokens": 8}
    assert 0 < record["compile_s"] < record["wall_s"]
    assert 0.995 < record["cosine"] < 1 - 1e-6  # E4M3 activations and weights were rounded
    assert record["rel_l2"] < 1.6e-2  # of 2048 intermediate values, few meet a neighbouring code
    assert [kernel["kernel"] for kernel in record["kernels"]] == ["stage_tokens", "stage_tokens", "mega_moe_sm90"]
    assert all(kernel["registers"] > 0 for kernel in record["kernels"])


@needs_no_hopper
@pytest.mark.parametrize(
    ("options", "arch", "recipe", "bound", "launches"),
    [
        ((), "sm_100f", "nvfp4_nvfp4", 1e-3, 2),
        (("--arch", "sm_90a", "--recipe", "bf16_nvfp4"), "sm_90a", "bf16_nvfp4", 3e-3, 1),  # it quantises itself
    ],
)
def test_without_such_a_gpu_the_kernels_run_in_the_emulator(
    run: Run, options: tuple[str, ...], arch: str, recipe: str, bound: float, launches: int
) -> None:
    record = run("demo", *SMALL, "--tokens", "8", *options, "--json").record
    assert (record["backend"], record["arch"], record["recipe"]) == ("emulator", arch, recipe)
    assert record["rel_l2"] < bound
    emulated = record["emulated"]
    assert (emulated["num_sms"], emulated["launches"], emulated["errors"]) == (4, launches, [])
    assert min(emulated[count] for count in ("mmas", "tma_bytes", "barrier_waits")) > 0
    assert emulated["warp_instructions"] > 10_000
    assert any("swizzle=128B" in line for line in record["tensor_maps"])


@needs_no_hopper
def test_the_demo_without_options_is_the_blackwell_kernel_within_its_time(run: Run) -> None:
    cold, warm = run("demo"), run("demo", "--json").record
    for words in (
        "mega_moe_sm100",
        "nvfp4_nvfp4 for sm_100f, run by the fused kernel's PTX in the emulator",
        "warp instructions",
        " MMAs, ",
        " by TMA, ",
        "races, missing fences, misused barriers: none, warnings: 0",
        "cosine to the unquantised truth",
        "relative L2 error to the oracle",
        "(cache miss)",
    ):
        assert words in cold.out
    assert warm["cache"] == "hit"
    assert warm["rel_l2"] < 1e-3
    assert warm["cosine"] > 0.98
    assert warm["wall_s"] < 60  # of a machine that does other things too; alone it takes a few seconds


def test_a_second_demo_compiles_nothing(run: Run, warm_cache: object) -> None:
    record = run("demo", *ON_REFERENCE, "--json").record
    assert (record["backend"], record["emulated"], record["tensor_maps"]) == ("reference", None, [])
    assert (record["cache"], record["compile_s"]) == ("hit", 0)


def test_exact_weights_come_closer_to_the_truth(run: Run, warm_cache: object) -> None:
    recipes = ("fp8_nvfp4", "bf16_nvfp4")
    fp8, bf16 = (run("demo", *ON_REFERENCE, "--recipe", name, "--json").record for name in recipes)
    assert bf16["recipe"] == "bf16_nvfp4"
    assert 1 - bf16["cosine"] < (1 - fp8["cosine"]) / 10


def test_the_seed_decides_the_numbers(run: Run, warm_cache: object) -> None:
    once, again, other = (run("demo", *ON_REFERENCE, "--seed", seed, "--json").record["cosine"] for seed in "112")
    assert once == again != other


@pytest.mark.parametrize("backend", ["emulator", "reference"])
def test_no_tokens_are_no_error(run: Run, warm_cache: object, backend: str) -> None:
    record = run("demo", *SMALL, "--tokens", "0", "--arch", "sm_90a", "--backend", backend, "--json").record
    assert math.isclose(record["cosine"], 1.0)


def test_the_demo_prints_for_people(run: Run, warm_cache: object) -> None:
    ran = run("demo", *ON_SM90A, "--backend", "emulator")
    assert ran.code == 0
    for words in (
        "mega_moe_sm90",
        "tensor map at 0x",
        "cosine to the unquantised truth",
        "fp8_nvfp4 for sm_90a, run by the fused kernel's PTX in the emulator",
        "1 launch on 4 emulated SMs",
        "races, missing fences, misused barriers: none, warnings: 0",
    ):
        assert words in ran.out


def test_findings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    call = demo_module.EmulatedCall(
        num_sms=2,
        launches=2,
        warp_instructions=12345,
        mmas=6,
        tma_bytes=4096,
        barrier_waits=7,
        errors=("race: two\n  by warps",),
        warnings=("unordered-rows: some",),
    )
    demo_module._print_emulated(call)
    printed = capsys.readouterr().out
    assert "12,345 warp instructions, 6 MMAs, 4.0 KiB by TMA, 7 barrier waits" in printed
    assert "misused barriers: 1, warnings: 1\n    race: two\n    unordered-rows: some\n" in printed


def test_a_fault_is_a_message_and_exit_status_1(run: Run, warm_cache: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise DeadlockFault("deadlock: no warp can go on")

    monkeypatch.setattr(demo_module, "call", fail)
    ran = run("demo", *ON_SM90A, "--json")
    assert (ran.code, ran.record["type"]) == (1, "DeadlockFault")
    assert "no warp can go on" in ran.record["error"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--recipe", "fp7"), "recipe='fp7' is unknown"),
        (("--arch", "sm_80"), "arch='sm_80' is not a known target"),
        (("--arch", "sm_120a"), "no recipe runs a checkpoint of format 'nvfp4' on sm_120a"),
        (("--backend", "gpu"), "backend='gpu' is no backend. Use one of cuda, emulator, reference."),
        (("--recipe", "nvfp4_nvfp4"), "recipe nvfp4_nvfp4 runs on sm_100a"),
        (("--topk", "17"), "num_topk=17"),
        (("--experts", "1"), "num_topk=2 is more than num_experts=1"),
        (("--hidden", "100"), "hidden=100 is no multiple of 16"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    run: Run, warm_cache: object, options: tuple[str, ...], sentence: str
) -> None:
    ran = run("demo", *ON_SM90A, *options, "--json")
    assert ran.code == 1
    assert sentence in ran.record["error"]


@needs_sm90
@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_on_hopper_the_demo_runs_the_fused_kernel(run: Run, recipe: str) -> None:
    record = run("demo", "--recipe", recipe, "--json").record
    assert record["backend"] == "cuda"
    assert 0 < record["rel_l2"] < {"fp8_nvfp4": 8e-3, "bf16_nvfp4": 3e-3}[recipe]
