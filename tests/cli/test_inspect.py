from __future__ import annotations

import os

import pytest
import torch

from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.ops.plan import Workspace, pool_tensor_map
from megamoe_jit.recipes import Problem, plan_kernels
from megamoe_jit.recipes.sm90 import Sm90Config
from tests.cli.conftest import Run


def entry(cache: KernelCache, kernel: str) -> str:
    """Return the name of an entry of `kernel`."""
    return next(folder.name for folder in cache.folders() if folder.name.startswith(kernel))


def test_inspect_says_what_a_kernel_is_made_of(run: Run, warm_cache: KernelCache) -> None:
    record = run("inspect", entry(warm_cache, "mega_moe_sm90"), "--json").record
    assert (record["kernel_name"], record["arch"], record["entry"]) == ("mega_moe_sm90", "sm_90a", "mega_moe/sm90.cuh")
    assert (record["parameters"]["hidden"], record["parameters"]["num_experts"]) == (256, 4)
    assert record["mma_shapes"] == ["m64n8k32"]
    assert record["template_values"]["tma_boxes"] == [["tokens_map", 8, 128], ["acts_map", 8, 128]]
    assert record["resources"]["registers"] > 0
    assert sum(record["mmas"].values()) > 0
    assert record["instructions"].items() >= record["mmas"].items()


def test_inspect_prints_for_people(run: Run, warm_cache: KernelCache) -> None:
    out = run("inspect", entry(warm_cache, "mega_moe_sm90")).out
    for words in (
        "MMA shapes: m64n8k32",
        "TMA box: tokens_map 8 x 128",
        "TMA box: acts_map 8 x 128",
        "num_experts",
        " x wgmma.mma_async.",
        "registers",
    ):
        assert words in out
    assert "MMA shapes: none" in run("inspect", entry(warm_cache, "stage_tokens")).out


def test_an_entry_is_found_by_name_digest_or_folder(run: Run, warm_cache: KernelCache) -> None:
    name = entry(warm_cache, "mega_moe_sm90")
    assert warm_cache.kernels_dir is not None
    keys = [
        run("inspect", wanted, "--json").record["key"]
        for wanted in ("mega_moe", name, name.rpartition("-")[2][:12], warm_cache.kernels_dir / name)
    ]
    assert len(set(keys)) == 1
    assert keys[0].startswith(name.rpartition("-")[2])


def test_without_a_name_it_is_the_kernel_used_last(run: Run, warm_cache: KernelCache) -> None:
    for age, folder in enumerate(warm_cache.folders()):
        os.utime(folder, (1e9 - age, 1e9 - age))
    last = warm_cache.folders()[1]
    os.utime(last, (2e9, 2e9))
    assert run("inspect", "--json").record["path"] == str(last)


@pytest.mark.parametrize(("name", "sentence"), [("stage", "2 begin so: stage_tokens-sm_90a-"), ("x", "none begins so")])
def test_a_name_must_mean_one_kernel(run: Run, warm_cache: KernelCache, name: str, sentence: str) -> None:
    ran = run("inspect", name, "--json")
    assert ran.code == 1
    assert f"kernel='{name}' must mean one of 3 cached kernels, and {sentence}" in ran.record["error"]


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_the_boxes_shown_are_those_of_the_tensor_maps(recipe: str) -> None:
    problem = Problem(hidden=256, intermediate=128, num_experts=4, num_topk=2, max_tokens_per_rank=64)
    kernels = [kernel for kernel in plan_kernels(problem, recipe, "sm_90a") if isinstance(kernel, Sm90Config)]
    assert len(kernels) > 1
    for kernel in kernels:
        workspace = Workspace.allocate(kernel.shapes, torch.device("cpu"))
        boxes = kernel.template_values()["tma_boxes"]
        assert isinstance(boxes, tuple)
        for (name, *box), pool in zip(boxes, (workspace.tokens(), workspace.acts()), strict=True):
            assert tuple(reversed(box)) == pool_tensor_map(pool, kernel.box_rows).spec.box, name
