"""Rendered kernels, and the instructions that they compile to, are those that were reviewed last.

`make golden` rewrites the files in golden/; their diff is part of a change's review.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.jit.build import build
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.compile import nvrtc_version
from megamoe_jit.jit.inspect import instruction_histogram
from megamoe_jit.jit.render import render
from megamoe_jit.jit.source import KernelDescription
from megamoe_jit.recipes import Problem, plan_kernels
from megamoe_jit.recipes.sm90 import Sm90StagingConfig
from tests.templates import sm100_kernels

GOLDEN = Path(__file__).parent / "golden"


def kernels(recipe: str, activation: ActivationSpec) -> dict[str, KernelDescription]:
    """Return a layer's kernels by name: staging, and the fused kernel with a tile of one pass and one of two."""
    problem = Problem(
        hidden=2880, intermediate=2880, num_experts=32, num_topk=4, max_tokens_per_rank=4096, activation=activation
    )
    named: dict[str, KernelDescription] = {}
    for kernel in plan_kernels(problem, recipe, "sm_90a"):
        name = f"{kernel.kernel_name}_{recipe}"
        if isinstance(kernel, Sm90StagingConfig):
            named[name + ("_codes" if kernel.source_is_codes else "")] = kernel
        elif kernel.block_n in (16, 128):
            named[f"{name}_n{kernel.block_n}"] = kernel
    return named


KERNELS = {
    **kernels("fp8_nvfp4", ActivationSpec()),
    **kernels("bf16_mxfp4", ActivationSpec.swigluoai()),
    **sm100_kernels.golden(),
}
# One a template family: other recipes differ in config.cuh only, which has golden files of its own.
IN_FULL = (
    *("stage_tokens_fp8_nvfp4", "mega_moe_sm90_fp8_nvfp4_n16"),
    *("stage_tokens_sm100_nvfp4_nvfp4", "mega_moe_sm100_nvfp4_nvfp4_n16", "grouped_gemm_nvfp4_nvfp4"),
)


def compare(path: Path, text: str, update: bool) -> None:
    """Hold `text` to the file at `path`, or rewrite it."""
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"{path.name} is missing, run: make golden"
    assert text == path.read_text(), f"{path.name} is not what it was; review the difference, then run: make golden"


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.mark.parametrize("name", IN_FULL)
def test_a_kernel_renders_to_its_golden_source(name: str, update: bool) -> None:
    compare(GOLDEN / f"{name}.cu", render(KERNELS[name]).flatten(), update)


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_its_golden_constants(name: str, update: bool) -> None:
    compare(GOLDEN / f"{name}.config.cuh", dict(render(KERNELS[name]).files)["config.cuh"], update)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_to_its_golden_instructions(name: str, update: bool, tmp_path: Path) -> None:
    folder = GOLDEN / "nvrtc-{}.{}".format(*nvrtc_version())
    if not folder.is_dir() and not update:
        pytest.skip(f"no golden instructions for {folder.name}: the counts of another compiler say nothing")
    histogram = instruction_histogram(build(KERNELS[name], cache=KernelCache(tmp_path)).ptx)
    lines = [f"{count:6} {opcode}\n" for opcode, count in sorted(histogram.items())]
    compare(folder / f"{name}.txt", "".join(lines), update)


def test_every_golden_file_is_of_a_kernel(update: bool) -> None:
    """A file that nothing is compared with would stand for a kernel that is gone."""
    wanted = {f"{name}.cu" for name in IN_FULL} | {f"{name}.config.cuh" for name in KERNELS}
    wanted |= {f"{name}.txt" for name in KERNELS}
    stale = [path for path in GOLDEN.rglob("*") if path.is_file() and path.name not in wanted]
    if update:
        while stale:
            stale.pop().unlink()
    assert not stale, "left over, run: make golden"


def test_two_passes_are_among_the_golden_kernels() -> None:
    assert {"mega_moe_sm90_fp8_nvfp4_n128", "mega_moe_sm90_bf16_mxfp4_n128", "stage_tokens_fp8_nvfp4_codes"} <= set(
        KERNELS
    )
