"""Kernels that mistakes are made in, each with operands, a run, and the result that is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from megamoe_jit.reference.compare import rel_l2

_NEAR = 5e-3
Completion = Literal["lazy", "eager"] | float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """A run to the end: y, and the kinds of the reports that did not stop it: warnings."""

    y: Tensor
    reports: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A kernel: `run` executes it under a completion policy and a seed; `expected` is the right y.

    `program` is the compiled kernel of the first run, whose handlers can be replaced. `reference` is y as float64 has
    it, for a fused layer with the recipe's rounding points. `known` are warnings that the kernel as it is gives too.
    """

    name: str
    run: Callable[[Completion, int], Ran]
    program: Callable[[], Any]
    expected: Tensor
    reference: Tensor
    known: frozenset[str] = frozenset()

    def has_right_bits(self, ran: Ran) -> bool:
        """Whether y is bit for bit the expected one."""
        return torch.equal(ran.y.view(torch.uint8), self.expected.view(torch.uint8))

    def complaint(self, ran: Ran) -> str:
        """Say what is wrong with a run: another y, or warnings that the kernel as it is does not give."""
        if not self.has_right_bits(ran):
            return "another y"
        new = sorted(ran.reports - self.known)
        return f"warnings: {', '.join(new)}" if new else ""


def _checked(name: str, run: Callable[[Completion, int], Ran], program: Callable[[], Any], reference: Tensor) -> Case:
    """Return the case, when the kernel as it is gives one y, near the reference, under all policies."""
    policies: tuple[Completion, ...] = ("eager", "eager", "lazy", "lazy", 0.3)
    ran = [run(policy, seed) for seed, policy in enumerate(policies)]
    known = frozenset().union(*(each.reports for each in ran))
    case = Case(name=name, run=run, program=program, expected=ran[0].y, reference=reference, known=known)
    assert rel_l2(case.expected, reference) < _NEAR, f"{name} as it is: y is not right"
    assert all(case.has_right_bits(each) for each in ran), f"{name} as it is: y differs from run to run"
    return case


def _on_backend(name: str, kernel: str, call: Callable[[], Tensor], reference: Tensor) -> Case:
    """Return a case that runs through the emulator backend."""
    from megamoe_jit.runtime.emulated import emulated_backend

    backend = emulated_backend()

    def run(completion: Completion, seed: int) -> Ran:
        emulator = backend.emulator
        before, known = (emulator.completion, emulator.seed), backend.work()
        emulator.completion, emulator.seed = completion, seed
        try:
            y = call()
        finally:
            emulator.completion, emulator.seed = before
        said = backend.work().since(known)
        return Ran(y=y, reports=frozenset(text.partition(":")[0] for text in (*said.errors, *said.warnings)))

    run("eager", 0)
    launched = dict(backend._launched)  # kernel name -> module of its last launch
    return _checked(name, run, lambda: launched[kernel].prepare(kernel), reference)


def grouped_gemm(recipe: str = "nvfp4_nvfp4", cta_group: int = 2) -> Case:
    """Blackwell's grouped GEMM: two experts, tiles with a tail; every CTA group reuses stages and accumulators."""
    from megamoe_jit.formats import block_scaled
    from megamoe_jit.formats.block_scaled import QuantizedTensor
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

    a, b = (
        QuantizedTensor(codes=q.codes, sf=q.sf, format=q.format).dequantize(torch.float64) for q in (tokens, weights)
    )
    exact = torch.cat([rows @ b[expert].T for expert, rows in enumerate(torch.split(a, counts))])
    return _on_backend(f"grouped_gemm {recipe} x{cta_group}", "grouped_gemm_sm100", call, exact)


@contextmanager
def _tight(num_stages: int) -> Iterator[None]:
    """Have layers compiled with few stages and, on Blackwell, a ring of two token tiles, so that all are used again."""
    from megamoe_jit.ops import plan, plan_sm100
    from megamoe_jit.recipes.choose import plan_kernels
    from megamoe_jit.recipes.sm90 import Sm90Config
    from megamoe_jit.recipes.sm100 import Sm100Config

    def tight(kernel: Any) -> Any:
        if isinstance(kernel, Sm100Config):
            return replace(kernel, num_stages=num_stages, ring_tiles=2)
        return replace(kernel, num_stages=num_stages) if isinstance(kernel, Sm90Config) else kernel

    def changed(problem: Any, recipe: Any, arch: Any) -> tuple[Any, ...]:
        return tuple(tight(kernel) for kernel in plan_kernels(problem, recipe, arch))

    modules: tuple[Any, ...] = (plan, plan_sm100)
    for module in modules:
        module.plan_kernels = changed
    try:
        yield
    finally:
        for module in modules:
            module.plan_kernels = plan_kernels


def mega_moe(recipe: str, arch: str, kernel: str) -> Case:
    """A fused MoE: three experts whose tiles several warps write, rings that turn in a tile, fewer lists than CTAs."""
    from megamoe_jit import MegaMoE, MoeWeights
    from megamoe_jit.recipes import get_recipe
    from megamoe_jit.reference.moe import moe_reference

    generator = torch.Generator().manual_seed(5)
    num_tokens, hidden, intermediate, experts, topk = 61, 768, 256, 3, 2
    weights = MoeWeights.random(experts, hidden, intermediate, seed=5, checkpoint=get_recipe(recipe).checkpoint)
    x = torch.randn(num_tokens, hidden, generator=generator).bfloat16()
    topk_weights, topk_idx = torch.randn(num_tokens, experts, generator=generator).softmax(-1).topk(topk)
    moe = MegaMoE(weights, recipe=recipe, arch=arch, backend="emulator", max_tokens_per_rank=num_tokens, num_topk=topk)
    reference = moe_reference(x, topk_idx, topk_weights, weights, rounding=recipe).y
    with _tight(num_stages=2):
        return _on_backend(f"mega_moe {recipe} {arch}", kernel, lambda: moe(x, topk_idx, topk_weights), reference)


def _triton(
    name: str, compiled: Any, grid: tuple[int, ...], arguments: Callable[[Tensor], Any], reference: Tensor
) -> Case:
    """Return a case of another compiler's kernel: `arguments` gives those of a call that writes y."""
    from megamoe_jit.emulator.api import Emulator, Memory
    from tests.emulator.triton.running import NOT_REPORTED, Described, describe

    emulator = Emulator(suppress=NOT_REPORTED)
    module = emulator.load(compiled.ptx)
    scratch = torch.zeros(1 << 16, dtype=torch.uint8)

    def run(completion: Completion, seed: int) -> Ran:
        emulator.completion, emulator.seed = completion, seed
        y = torch.zeros_like(reference, dtype=torch.bfloat16)
        named, maps = arguments(y), iter(compiled.maps)
        args: list[Any] = []
        for argument, kind in compiled.signature:
            value = named[argument]
            args += describe(value.tensor, next(maps)) if kind.startswith("tensordesc") else [value]
        known = len(module.report.findings)
        module.launch(
            compiled.name,
            grid=(*grid, 1, 1)[:3],
            block=(compiled.num_threads, 1, 1),
            shared_bytes=compiled.smem_bytes,
            args=[*args, scratch, 0],
            memory=[Memory(value.tensor) for value in named.values() if isinstance(value, Described)],
        )
        return Ran(y=y, reports=frozenset(finding.kind for finding in module.report.findings[known:]))

    return _checked(name, run, lambda: module.prepare(compiled.name), reference)


def triton_pointers() -> Case:
    """Triton's own NVFP4 product for Blackwell; operands through pointers, by cp.async."""
    from tests.emulator.triton import scaled_kernels
    from tests.emulator.triton import test_dot_scaled as triton

    tiles = triton.Tiles(m=128, n=128, k=512)
    compiled = triton.through_pointers(scaled_kernels.scaled_matmul, tiles, triton.NVFP4, torch.bfloat16)
    a, b = triton.operands(tiles, triton.NVFP4, 0)
    return _triton(
        "triton nvfp4 by pointers",
        compiled,
        tiles.grid,
        lambda y: triton.pointer_arguments(compiled, a, b, y),
        torch.as_tensor(a.values @ b.values.T),
    )


def triton_maps() -> Case:
    """The same through tensor maps, by TMA."""
    from tests.emulator.triton import scaled_kernels
    from tests.emulator.triton import test_dot_scaled as triton

    tiles = triton.Tiles(m=128, n=128, k=1024, block_k=256)
    compiled = triton.through_maps(scaled_kernels.scaled_matmul_host_descriptors, tiles, triton.NVFP4, {})
    a, b = triton.operands(tiles, triton.NVFP4, 0)
    return _triton(
        "triton nvfp4 by maps",
        compiled,
        tiles.grid,
        lambda y: triton.map_arguments(a, b, y),
        torch.as_tensor(a.values @ b.values.T),
    )


def triton_hopper() -> Case:
    """Triton's own FP8 product for Hopper: cp.async and wgmma."""
    from tests.emulator.triton import test_dot as triton

    generator = torch.Generator().manual_seed(0)
    m, n, k = 128, 64, 256
    a, b = (torch.randn(rows, k, generator=generator).to(torch.float8_e4m3fn) for rows in (m, n))
    compiled = triton.matmul(torch.float8_e4m3fn, torch.bfloat16, capability=triton.HOPPER)
    sizes = {"m": m, "n": n, "k": k, "a_stride": k, "b_stride": k, "d_stride": n}
    return _triton(
        "triton fp8 on Hopper",
        compiled,
        (1,),
        lambda y: {"a_ptr": a, "b_ptr": b, "d_ptr": y, **sizes},
        a.double() @ b.double().T,
    )


CASES: dict[str, Callable[[], Case]] = {
    "gemm_nvfp4_pair": grouped_gemm,
    "gemm_mxfp8_single": lambda: grouped_gemm("mxfp8_mxfp4", 1),
    "mega_sm100": lambda: mega_moe("nvfp4_nvfp4", "sm_100f", "mega_moe_sm100"),
    "mega_sm90": lambda: mega_moe("fp8_nvfp4", "sm_90a", "mega_moe_sm90"),
    "triton_pointers": triton_pointers,
    "triton_maps": triton_maps,
    "triton_hopper": triton_hopper,
}
