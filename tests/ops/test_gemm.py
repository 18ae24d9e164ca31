"""The grouped GEMM's arguments and the bridge: layouts by hand, and a sentence for each bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import megamoe_jit
from megamoe_jit import ArgumentError, UnsupportedError, nvfp4_grouped_gemm, scaled_grouped_gemm
from megamoe_jit.ops import gemm

EXPERTS, TOKENS, N, K = 2, 7, 128, 64
COUNTS = [3, 4]


def operands(**changes: Any) -> dict[str, Any]:
    """Return arguments of nvfp4_grouped_gemm that work, with some replaced."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(TOKENS, K, generator=generator), torch.randn(EXPERTS, N, K, generator=generator)
    tokens, tokens_sf, _ = gemm.quantize_to_nvfp4(x)
    weights, weights_sf, _ = gemm.quantize_weight_to_nvfp4(w)
    arguments = {
        "tokens": tokens,
        "weights": weights,
        "tokens_sf": gemm.assemble_scales_2d_side(tokens_sf.split(COUNTS)),
        "weights_sf": gemm.assemble_scales_3d_side(list(weights_sf)),
        "offs": gemm.compute_expert_offsets(torch.tensor(COUNTS)),
        "arch": "sm_100f",
    }
    return {**arguments, **changes}


def blocked_by_hand(sf: torch.Tensor) -> torch.Tensor:
    """Put bytes [rows, groups] at tile(r / 128, c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4, one by one."""
    rows, groups = sf.shape
    columns = -(-groups // 4)
    out = torch.zeros(-(-rows // 128) * columns * 512, dtype=torch.uint8)
    for r in range(rows):
        for c in range(groups):
            at = (r // 128 * columns + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
            out[at] = sf.view(torch.uint8)[r, c]
    return out


def sf(rows: int, groups: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 127, (rows, groups), generator=generator, dtype=torch.uint8).view(torch.float8_e4m3fn)


def test_scales_of_tokens_are_blocked_expert_by_expert() -> None:
    parts = [sf(3, 5), sf(130, 5, seed=1), sf(0, 5), sf(128, 5, seed=2)]
    wanted = torch.cat([blocked_by_hand(part) for part in parts if len(part)])
    assert torch.equal(gemm.assemble_scales_2d_side(parts), wanted)
    assert len(wanted) == (128 + 256 + 128) * 8
    assert gemm.assemble_scales_2d_side([sf(0, 5)]).shape == (0,)


def test_scales_of_weights_are_blocked_and_stacked() -> None:
    parts = [sf(136, 6), sf(136, 6, seed=1)]
    assembled = gemm.assemble_scales_3d_side(parts)
    assert assembled.shape == (2, 256 * 8)
    assert torch.equal(assembled, torch.stack([blocked_by_hand(part) for part in parts]))


def test_b_becomes_k_major_once() -> None:
    b = torch.arange(24).view(2, 3, 4)
    made = gemm.make_b_k_major(b)
    assert torch.equal(made, b)
    assert made.stride() == (12, 1, 3)
    assert gemm.make_b_k_major(made) is made


def test_offsets_are_the_ends() -> None:
    offs = gemm.compute_expert_offsets(torch.tensor([5, 0, 2]))
    assert offs.tolist() == [5, 5, 7]
    assert offs.dtype == torch.int32


def test_the_bridges_quantisers_are_the_packages_in_tuples() -> None:
    x, w = torch.randn(5, 32), torch.randn(2, 8, 32)
    for function, argument in (("quantize_to_nvfp4", x), ("quantize_weight_to_nvfp4", w)):
        codes, scales, global_scale = getattr(gemm, function)(argument)
        quantized = getattr(megamoe_jit, function)(argument)
        assert torch.equal(codes, quantized.codes)
        assert torch.equal(scales.view(torch.uint8), quantized.sf.view(torch.uint8))
        assert torch.equal(global_scale, quantized.global_scale)


def test_each_expert_has_its_alpha_and_the_result_may_go_anywhere() -> None:
    ones = nvfp4_grouped_gemm(**operands())
    assert torch.equal(ones, scaled_grouped_gemm(**operands(alphas=torch.ones(EXPERTS), cta_group=1)))
    wide = torch.full((TOKENS, N + 8), float("nan"), dtype=torch.bfloat16)
    out = wide[:, :N]
    assert nvfp4_grouped_gemm(**operands(alphas=torch.tensor([2.0, -0.25]), out=out)) is out
    assert torch.equal(out[:3], 2 * ones[:3])
    assert torch.equal(out[3:], ones[3:] / -4)
    assert bool(wide[:, N:].isnan().all())


def test_no_tokens_need_no_kernel() -> None:
    none = torch.empty(0, K // 2, dtype=torch.uint8)
    offs = torch.zeros(EXPERTS, dtype=torch.int32)
    y = nvfp4_grouped_gemm(**operands(tokens=none, tokens_sf=torch.empty(0, dtype=torch.uint8), offs=offs))
    assert y.shape == (0, N)


BAD: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("recipe", lambda: scaled_grouped_gemm(**operands(recipe="fp8_nvfp4")), ArgumentError, "has no grouped GEMM"),
    ("target", lambda: nvfp4_grouped_gemm(**operands(arch="sm_90a")), UnsupportedError, "nvfp4_nvfp4 runs on"),
    (
        "K",
        lambda: nvfp4_grouped_gemm(**operands(tokens=torch.zeros(TOKENS, 48, dtype=torch.uint8))),
        ArgumentError,
        r"tokens has \[7, 48\] bytes and weights \[2, 128, 32\], but \[tokens, K/2\]",
    ),
    (
        "strides",
        lambda: nvfp4_grouped_gemm(**operands(tokens=torch.zeros(TOKENS, 64, dtype=torch.uint8)[:, ::2])),
        ArgumentError,
        r"tokens has strides \(64, 2\)",
    ),
    (
        "scales of tokens",
        lambda: nvfp4_grouped_gemm(**operands(tokens_sf=torch.zeros(100, dtype=torch.uint8))),
        ArgumentError,
        r"tokens_sf has 100 B .* a multiple of 512 B \(128 rows\)",
    ),
    (
        "too few scales of tokens",
        lambda: nvfp4_grouped_gemm(**operands(tokens_sf=torch.zeros(512, dtype=torch.uint8))),
        ArgumentError,
        r"tokens_sf has 128 rows, but the experts' tokens, .* take 256\.",
    ),
    (
        "scales of weights",
        lambda: nvfp4_grouped_gemm(**operands(weights_sf=torch.zeros(1, 512, dtype=torch.uint8))),
        ArgumentError,
        r"weights_sf has 512 B .* 1024 B in blocked order",
    ),
    (
        "offsets' type",
        lambda: nvfp4_grouped_gemm(**operands(offs=torch.tensor([3, 7]))),
        ArgumentError,
        r"offs is torch\.int64 \[2\] on cpu, but int32 \[2\]",
    ),
    (
        "offsets that fall",
        lambda: nvfp4_grouped_gemm(**operands(offs=torch.tensor([8, 7], dtype=torch.int32))),
        ArgumentError,
        r"offs=\[8, 7\] are not ends of the experts' runs of 7 tokens",
    ),
    (
        "offsets that end early",
        lambda: nvfp4_grouped_gemm(**operands(offs=torch.tensor([3, 6], dtype=torch.int32))),
        ArgumentError,
        "the last is the number of tokens",
    ),
    (
        "alphas",
        lambda: nvfp4_grouped_gemm(**operands(alphas=torch.ones(3))),
        ArgumentError,
        r"alphas is torch\.float32 \[3\], and one float32 for each of 2 experts",
    ),
    (
        "alphas elsewhere",
        lambda: nvfp4_grouped_gemm(**operands(alphas=torch.ones(2, device="meta"))),
        ArgumentError,
        "alphas is on meta, but tokens are on cpu",
    ),
    (
        "out elsewhere",
        lambda: nvfp4_grouped_gemm(**operands(out=torch.empty(TOKENS, N, dtype=torch.bfloat16, device="meta"))),
        ArgumentError,
        "out is on meta, but tokens are on cpu",
    ),
    (
        "out",
        lambda: nvfp4_grouped_gemm(**operands(out=torch.empty(TOKENS, N))),
        ArgumentError,
        r"out is torch\.float32 \[7, 128\]",
    ),
    (
        "rows of out",
        lambda: nvfp4_grouped_gemm(**operands(out=torch.empty(TOKENS - 1, N, dtype=torch.bfloat16))),
        ArgumentError,
        r"out has 6 rows, and there are 7 tokens",
    ),
    (
        "b by rows",
        lambda: gemm.run_nvfp4_grouped_gemm(
            torch.zeros(7, 32), torch.zeros(2, 32, 128), *[torch.zeros(1)] * 3, torch.ones(2), torch.ones(2)
        ),
        ArgumentError,
        r"stride 1 along K is needed\. Call make_b_k_major\(b\)",
    ),
    (
        "global scales",
        lambda: gemm.run_nvfp4_grouped_gemm(
            torch.zeros(7, 32),
            gemm.make_b_k_major(torch.zeros(2, 32, 128)),
            *[torch.zeros(1)] * 3,
            torch.ones(3),
            torch.ones(2),
        ),
        ArgumentError,
        r"global_scale_a has 3 values, and one for each of 2 experts or one for all is needed",
    ),
]


@pytest.mark.parametrize(("run", "error", "words"), [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_a_bad_input_gets_its_sentence(run: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run()
