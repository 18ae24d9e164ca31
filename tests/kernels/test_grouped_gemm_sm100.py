"""Blackwell's grouped GEMM in the emulator, against float64 sums of the dequantised operands."""

from __future__ import annotations

import itertools

import pytest
import torch

from megamoe_jit.formats.block_scaled import (
    QuantizedTensor,
    quantize_to_mxfp4,
    quantize_to_mxfp8,
    quantize_to_nvfp4,
    quantize_weight_to_nvfp4,
)
from megamoe_jit.ops.gemm import (
    assemble_scales_2d_side,
    assemble_scales_3d_side,
    compute_expert_offsets,
    make_b_k_major,
    run_nvfp4_grouped_gemm,
    scaled_grouped_gemm,
)


def quantized(recipe: str, x: torch.Tensor, w: torch.Tensor) -> tuple[QuantizedTensor, QuantizedTensor]:
    """Return tokens and weights in a recipe's formats."""
    if recipe == "nvfp4_nvfp4":
        return quantize_to_nvfp4(x), quantize_weight_to_nvfp4(w)
    return (quantize_to_mxfp4(x) if recipe == "mxfp4_mxfp4" else quantize_to_mxfp8(x)), quantize_to_mxfp4(w)


def run(
    recipe: str, counts: list[int], n: int, k: int, *, block_n: int | None = None, cta_group: int = 2, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (y of the kernel, y in float64) for random operands."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(sum(counts), k, generator=generator), torch.randn(len(counts), n, k, generator=generator)
    # Rows and blocks of quite different sizes: a scale factor in a wrong place shows.
    x *= torch.exp2(torch.randint(-4, 5, (sum(counts), 1), generator=generator).float())
    w *= torch.exp2(torch.randint(-2, 3, (len(counts), n, k // 32), generator=generator).float()).repeat_interleave(
        32, -1
    )
    tokens, weights = quantized(recipe, x, w)
    starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
    alphas = torch.rand(len(counts), generator=generator) + 0.5
    y = scaled_grouped_gemm(
        tokens.codes,
        weights.codes,
        assemble_scales_2d_side([tokens.sf[a:b] for a, b in itertools.pairwise(starts)]),
        assemble_scales_3d_side(list(weights.sf)),
        compute_expert_offsets(torch.tensor(counts)),
        recipe=recipe,
        alphas=alphas,
        arch="sm_100f",
        block_n=block_n,
        cta_group=cta_group,
    )
    blocks = [
        QuantizedTensor(codes=q.codes, sf=q.sf, format=q.format).dequantize(torch.float64) for q in (tokens, weights)
    ]
    exact = torch.cat(
        [alphas[e].double() * blocks[0][starts[e] : starts[e + 1]] @ blocks[1][e].T for e in range(len(counts))]
    )
    return y, exact


def assert_rounded_once(y: torch.Tensor, exact: torch.Tensor) -> None:
    """Hold y to the float64 sums rounded to BF16; next to a tie, one step to the other side is right."""
    rounded = exact.bfloat16()
    differs = y != rounded
    assert differs.double().mean() < 1e-3
    assert bool(((y.double() - exact).abs() <= exact.abs() * 2.0**-8 * 1.001)[differs].all())


@pytest.mark.parametrize("cta_group", [1, 2])
@pytest.mark.parametrize("recipe", ["nvfp4_nvfp4", "mxfp8_mxfp4", "mxfp4_mxfp4"])
def test_every_kind_multiplies(recipe: str, cta_group: int) -> None:
    assert_rounded_once(*run(recipe, [40, 0, 5], 256, 384, cta_group=cta_group))


@pytest.mark.parametrize("block_n", [32, 64, 128, 192, 256])
def test_every_tile_multiplies(block_n: int) -> None:
    assert_rounded_once(*run("nvfp4_nvfp4", [200, 7], 256, 320, block_n=block_n))


@pytest.mark.parametrize(("n", "k"), [(8, 64), (136, 96), (264, 448), (520, 1088)])
def test_rows_and_k_that_fill_no_tile(n: int, k: int) -> None:
    assert_rounded_once(*run("nvfp4_nvfp4", [3, 33], n, k, block_n=32))


def test_sums_that_float32_holds_are_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    codes_x = torch.randint(0, 256, (24, 128), generator=generator, dtype=torch.uint8)
    codes_w = torch.randint(0, 256, (2, 256, 128), generator=generator, dtype=torch.uint8)
    ones = torch.ones(24, 16).to(torch.float8_e4m3fn), torch.ones(2, 256, 16).to(torch.float8_e4m3fn)
    y = scaled_grouped_gemm(
        codes_x,
        codes_w,
        assemble_scales_2d_side([ones[0][:10], ones[0][10:]]),
        assemble_scales_3d_side(list(ones[1])),
        torch.tensor([10, 24], dtype=torch.int32),
        arch="sm_100f",
    )
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])

    def decoded(codes: torch.Tensor) -> torch.Tensor:
        return torch.stack((values[codes.int() & 15], values[codes.int() >> 4]), -1).flatten(-2)

    x, w = decoded(codes_x), decoded(codes_w)
    assert torch.equal(y, torch.cat((x[:10] @ w[0].T, x[10:] @ w[1].T)).bfloat16())


def test_the_bridge_runs_as_the_example_does() -> None:
    generator = torch.Generator().manual_seed(2)
    counts, n, k = [5, 130], 128, 256
    parts = [torch.randn(m, k, generator=generator) for m in counts]
    b = make_b_k_major(torch.randn(2, k, n, generator=generator))
    quantized_a = [quantize_to_nvfp4(part) for part in parts]
    quantized_b = quantize_weight_to_nvfp4(b.transpose(1, 2))
    assert quantized_b.global_scale is not None
    global_a = torch.stack([q.global_scale for q in quantized_a])  # type: ignore[misc]
    y = run_nvfp4_grouped_gemm(
        torch.cat([q.codes for q in quantized_a]),
        quantized_b.codes.transpose(1, 2),
        assemble_scales_2d_side([q.sf for q in quantized_a]),
        assemble_scales_3d_side(list(quantized_b.sf)),
        compute_expert_offsets(torch.tensor(counts)),
        global_a,
        quantized_b.global_scale,
    )
    weights = quantized_b.dequantize(torch.float64)
    exact = torch.cat([q.dequantize(torch.float64) @ weights[e].T for e, q in enumerate(quantized_a)])
    assert_rounded_once(y, exact)
