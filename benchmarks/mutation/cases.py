"""Kernels that mistakes are made in, each with operands, a run, and the result that is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Completion = Literal["lazy", "eager"] | float


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A kernel: `run` executes it under a completion policy and a seed and returns y; `expected` is the right one.

    `program` is the compiled kernel of the first run, whose handlers can be replaced.
    """

    name: str
    run: Callable[[Completion, int], Tensor]
    program: Callable[[], Any]
    expected: Tensor

    def is_right(self, y: Tensor) -> bool:
        """Whether y is bit for bit the expected one."""
        return torch.equal(y.view(torch.uint8), self.expected.view(torch.uint8))


def _on_backend(name: str, kernel: str, call: Callable[[], Tensor]) -> Case:
    """Return a case that runs through the emulator backend."""
    from megamoe_jit.runtime.emulated import emulated_backend

    backend = emulated_backend()

    def run(completion: Completion, seed: int) -> Tensor:
        emulator = backend.emulator
        before = emulator.completion, emulator.seed
        emulator.completion, emulator.seed = completion, seed
        try:
            return call()
        finally:
            emulator.completion, emulator.seed = before

    expected = run("eager", 0)
    for other in ("lazy", 0.3):
        assert torch.equal(run(other, 1), expected), f"{name} differs under {other} completion"
    launched = dict(backend._launched)  # kernel name -> module of its last launch
    return Case(name=name, run=run, program=lambda: launched[kernel].prepare(kernel), expected=expected)


def grouped_gemm(recipe: str = "nvfp4_nvfp4", cta_group: int = 2) -> Case:
    """Blackwell's grouped GEMM: two experts, tiles with a tail; every CTA group reuses stages and accumulators."""
    from megamoe_jit.formats import block_scaled
    from megamoe_jit.ops import gemm

    generator = torch.Generator().manual_seed(3)
    counts, n, k = [70, 41], 512, 256 * 3
    x = torch.randn(sum(counts), k, generator=generator)
    # Rows and blocks of different sizes, so that a scale factor in a wrong place shows.
    x *= torch.exp2(torch.randint(-3, 4, (sum(counts), k // 32), generator=generator).float()).repeat_interleave(32, 1)
    w = torch.randn(len(counts), n, k, generator=generator)
    w *= torch.exp2(torch.randint(-3, 4, (len(counts), n, k // 32), generator=generator).float()).repeat_interleave(
        32, 2
    )
    if recipe == "nvfp4_nvfp4":
        tokens, weights = block_scaled.quantize_to_nvfp4(x), block_scaled.quantize_weight_to_nvfp4(w)
    else:
        tokens, weights = block_scaled.quantize_to_mxfp8(x), block_scaled.quantize_to_mxfp4(w)
    tokens_sf = gemm.assemble_scales_2d_side([tokens.sf[: counts[0]], tokens.sf[counts[0] :]])
    weights_sf = gemm.assemble_scales_3d_side(list(weights.sf))
    offs = gemm.compute_expert_offsets(torch.tensor(counts))

    def call() -> Tensor:
        return gemm.scaled_grouped_gemm(
            tokens.codes,
            weights.codes,
            tokens_sf,
            weights_sf,
            offs,
            recipe=recipe,
            arch="sm_100f",
            block_n=32,
            cta_group=cta_group,
        )

    return _on_backend(f"grouped_gemm {recipe} x{cta_group}", "grouped_gemm_sm100", call)


@contextmanager
def _tight(num_stages: int) -> Iterator[None]:
    """Have layers compiled with few stages and, on Blackwell, a ring of two token tiles, so that all are used again."""
    from megamoe_jit.ops import plan, plan_sm100
    from megamoe_jit.recipes.choose import plan_kernels

    def changed(problem: Any, recipe: Any, arch: Any) -> tuple[Any, ...]:
        return tuple(
            replace(kernel, num_stages=num_stages, **({"ring_tiles": 2} if hasattr(kernel, "ring_tiles") else {}))
            if hasattr(kernel, "num_stages")
            else kernel
            for kernel in plan_kernels(problem, recipe, arch)
        )

    modules: tuple[Any, ...] = (plan, plan_sm100)
    for module in modules:
        module.plan_kernels = changed
    try:
        yield
    finally:
        for module in modules:
            module.plan_kernels = plan_kernels


def mega_moe(recipe: str, arch: str, kernel: str, *, hidden: int = 256) -> Case:
    """A fused MoE: three experts whose tiles several warps write, two stages, fewer lists than CTAs."""
    from megamoe_jit import MegaMoE, MoeWeights
    from megamoe_jit.recipes import get_recipe

    generator = torch.Generator().manual_seed(5)
    num_tokens, intermediate, experts, topk = 61, 256, 3, 2
    weights = MoeWeights.random(experts, hidden, intermediate, seed=5, checkpoint=get_recipe(recipe).checkpoint)
    x = torch.randn(num_tokens, hidden, generator=generator).bfloat16()
    topk_weights, topk_idx = torch.randn(num_tokens, experts, generator=generator).softmax(-1).topk(topk)
    moe = MegaMoE(weights, recipe=recipe, arch=arch, backend="emulator", max_tokens_per_rank=num_tokens, num_topk=topk)
    with _tight(num_stages=2):
        return _on_backend(f"mega_moe {recipe} {arch}", kernel, lambda: moe(x, topk_idx, topk_weights))


def triton_dot_scaled() -> Case:
    """Triton's own NVFP4 product for Blackwell, operands through tensor maps where the compiler allows."""
    from megamoe_jit.emulator.api import Emulator
    from tests.emulator.triton import scaled_kernels
    from tests.emulator.triton import test_dot_scaled as triton
    from tests.emulator.triton.running import NOT_REPORTED

    tiles = triton.Tiles(m=128, n=128, k=512)
    compiled = triton.through_pointers(scaled_kernels.scaled_matmul, tiles, triton.NVFP4, torch.bfloat16)
    a, b = triton.operands(tiles, triton.NVFP4, 0)
    emulator = Emulator(suppress=NOT_REPORTED)
    module = emulator.load(compiled.ptx)
    scratch = torch.zeros(1 << 16, dtype=torch.uint8)

    def run(completion: Completion, seed: int) -> Tensor:
        emulator.completion = completion
        emulator.seed = seed
        y = torch.zeros(tiles.m, tiles.n, dtype=torch.bfloat16)
        named = triton.pointer_arguments(compiled, a, b, y)
        args = [named[name] for name, _ in compiled.signature]
        module.launch(
            compiled.name,
            grid=(*tiles.grid, 1),
            block=(compiled.num_threads, 1, 1),
            shared_bytes=compiled.smem_bytes,
            args=[*args, scratch, 0],
        )
        return y

    expected = run("eager", 0)
    return Case(
        name="triton dot_scaled nvfp4", run=run, program=lambda: module.prepare(compiled.name), expected=expected
    )


CASES: dict[str, Callable[[], Case]] = {
    "gemm_nvfp4_pair": grouped_gemm,
    "gemm_mxfp8_single": lambda: grouped_gemm("mxfp8_mxfp4", 1),
    "mega_sm100": lambda: mega_moe("nvfp4_nvfp4", "sm_100f", "mega_moe_sm100"),
    "mega_sm90": lambda: mega_moe("fp8_nvfp4", "sm_90a", "mega_moe_sm90"),
    "triton_nvfp4": triton_dot_scaled,
}
