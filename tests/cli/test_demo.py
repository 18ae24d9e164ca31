from __future__ import annotations

import math

import pytest

from megamoe_jit.cli.demo import describe_tensor_maps
from megamoe_jit.recipes import Problem, get_recipe
from tests.cli.conftest import SMALL, Run
from tests.marks import needs_sm90

KEYS = {"backend", "arch", "recipe", "shape", "cosine", "rel_l2", "compile_s", "cache", "wall_s"}
ON_SM90A = (*SMALL, "--tokens", "8", "--arch", "sm_90a")


def test_the_demo_compiles_runs_and_reports(run: Run) -> None:
    first = run("demo", *ON_SM90A, "--json")
    assert first.code == 0
    record = first.record
    assert record.keys() >= KEYS
    assert (record["arch"], record["recipe"], record["cache"]) == ("sm_90a", "fp8_nvfp4", "miss")
    assert record["shape"] == {"hidden": 256, "intermediate": 128, "num_experts": 4, "num_topk": 2, "num_tokens": 8}
    assert 0 < record["compile_s"] < record["wall_s"]
    assert 0.995 < record["cosine"] < 1 - 1e-6  # E4M3 activations and weights were rounded
    assert record["rel_l2"] < 5e-3
    assert [kernel["kernel"] for kernel in record["kernels"]] == ["stage_tokens", "stage_tokens", "mega_moe_sm90"]
    assert all(kernel["registers"] > 0 for kernel in record["kernels"])


def test_a_second_demo_compiles_nothing(run: Run, warm_cache: object) -> None:
    record = run("demo", *ON_SM90A, "--json").record
    assert (record["cache"], record["compile_s"]) == ("hit", 0)


def test_exact_weights_come_closer_to_the_truth(run: Run, warm_cache: object) -> None:
    fp8, bf16 = (run("demo", *ON_SM90A, "--recipe", name, "--json").record for name in ("fp8_nvfp4", "bf16_nvfp4"))
    assert bf16["recipe"] == "bf16_nvfp4"
    assert 1 - bf16["cosine"] < (1 - fp8["cosine"]) / 10


def test_the_seed_decides_the_numbers(run: Run, warm_cache: object) -> None:
    once, again, other = (run("demo", *ON_SM90A, "--seed", seed, "--json").record["cosine"] for seed in "112")
    assert once == again != other


def test_no_tokens_are_no_error(run: Run, warm_cache: object) -> None:
    record = run("demo", *SMALL, "--tokens", "0", "--arch", "sm_90a", "--json").record
    assert math.isclose(record["cosine"], 1.0)


def test_the_demo_prints_for_people(run: Run, warm_cache: object) -> None:
    ran = run("demo", *ON_SM90A)
    assert ran.code == 0
    for words in ("mega_moe_sm90", "tensor map at 0x", "cosine to the unquantised truth", "fp8_nvfp4 for sm_90a"):
        assert words in ran.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--recipe", "fp7"), "recipe='fp7' is unknown"),
        (("--arch", "sm_80"), "arch='sm_80' is not a known target"),
        (("--arch", "sm_100f"), "recipe nvfp4_nvfp4 on sm_100f has no kernel"),
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


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_tensor_maps_describe_a_box_for_each_token_tile(recipe: str) -> None:
    problem = Problem(hidden=256, intermediate=300, num_experts=4, num_topk=2, max_tokens_per_rank=32)
    lines = describe_tensor_maps(problem, get_recipe(recipe), "sm_90a")
    box_k, dtype = (128, "UINT8") if recipe == "fp8_nvfp4" else (64, "BFLOAT16")
    assert len(lines) == 3
    assert all(f"box=({box_k}, {n}) swizzle=128B" in line for n, line in zip((8, 16, 32), lines, strict=True))
    # 300 intermediate values are padded to 384, and every slot of every token has a row.
    assert all(f"2-D {dtype} dims=(384, 64)" in line for line in lines)


@needs_sm90
@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_on_hopper_the_demo_runs_the_fused_kernel(run: Run, recipe: str) -> None:
    record = run("demo", "--recipe", recipe, "--json").record
    assert record["backend"] == "cuda"
    assert 0 < record["rel_l2"] < {"fp8_nvfp4": 5e-3, "bf16_nvfp4": 3e-3}[recipe]
