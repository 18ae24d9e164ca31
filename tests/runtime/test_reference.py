"""The reference backend: the oracle behind the interface of a call."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from megamoe_jit.errors import ArgumentError, UnsupportedError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.formats.block_scaled import quantize_to_fp8
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.recipes.recipe import get_recipe
from megamoe_jit.reference.moe import moe_reference
from megamoe_jit.runtime.reference import run_reference

WEIGHTS = MoeWeights.random(4, 64, 32, seed=1)


def call(num_tokens: int = 5) -> dict[str, Any]:
    """Return the tensors of a call; the last slot of token 0 is not routed, one index is no expert of four."""
    generator = torch.Generator().manual_seed(2)
    topk_idx = torch.randint(0, 4, (num_tokens, 2), generator=generator)
    if num_tokens:
        topk_idx[0, 1] = -1
        topk_idx[-1, 0] = 4
    return {
        "x": torch.randn(num_tokens, 64, generator=generator).to(torch.bfloat16),
        "topk_idx": topk_idx,
        "topk_weights": torch.rand(num_tokens, 2, generator=generator),
        "weights": WEIGHTS,
    }


def test_the_result_is_the_oracles_in_bf16() -> None:
    spec = ActivationSpec(clamp=1.0)
    for recipe in ("fp8_nvfp4", get_recipe("bf16_nvfp4")):
        y = run_reference(**call(), recipe=recipe, activation=spec, routed_scaling_factor=2.5)
        name = recipe if isinstance(recipe, str) else recipe.name
        expected = moe_reference(**call(), rounding=name, activation=spec, routed_scaling_factor=2.5).y
        assert y.dtype == torch.bfloat16
        assert torch.equal(y.double(), expected)


def test_experts_of_another_rank_add_nothing() -> None:
    arguments = call()
    whole = run_reference(**arguments, recipe="fp8_nvfp4")
    shifted = run_reference(**{**arguments, "topk_idx": arguments["topk_idx"] + 8}, recipe="fp8_nvfp4", expert_offset=8)
    masked = arguments["topk_idx"].clone()
    masked[-1, 0] = -1
    without = run_reference(**{**arguments, "topk_idx": masked}, recipe="fp8_nvfp4")
    assert torch.equal(whole, shifted)
    assert torch.equal(whole, without)


def test_out_is_written_and_counts_are_added() -> None:
    arguments = call()
    out = torch.full((5, 64), torch.nan, dtype=torch.bfloat16)
    recv_stats = torch.tensor([10, 20, 30, 40], dtype=torch.int32)
    y = run_reference(**arguments, recipe="fp8_nvfp4", out=out, recv_stats=recv_stats)
    assert y is out
    assert torch.equal(out, run_reference(**arguments, recipe="fp8_nvfp4"))
    counts = [int((arguments["topk_idx"] == expert).sum()) for expert in range(4)]
    assert recv_stats.tolist() == [base + count for base, count in zip((10, 20, 30, 40), counts, strict=True)]
    assert run_reference(**call(0), recipe="fp8_nvfp4").shape == (0, 64)


def test_tokens_that_were_rounded_are_not_rounded_again() -> None:
    arguments = call()
    rounded = quantize_to_fp8(arguments["x"]).dequantize(torch.float64)
    again = run_reference(**{**arguments, "x": rounded}, recipe="fp8_nvfp4", x_is_rounded=True)
    assert torch.equal(again, run_reference(**arguments, recipe="fp8_nvfp4", l1_acts="fp8_token"))
    coarse = run_reference(**{**arguments, "x": rounded * 1.03}, recipe="fp8_nvfp4", x_is_rounded=True)
    assert not torch.equal(coarse, again)


def test_a_rounding_point_can_be_replaced() -> None:
    arguments = call()
    finer = run_reference(**arguments, recipe="fp8_nvfp4", l2_acts=None)
    assert not torch.equal(finer, run_reference(**arguments, recipe="fp8_nvfp4"))


BAD_CALLS = [
    (
        {"recv_stats": torch.zeros(3, dtype=torch.int32)},
        ArgumentError,
        "recv_stats has shape [3], and one count for each of 4 local experts is needed",
    ),
    (
        {"out": torch.zeros(5, 32, dtype=torch.bfloat16)},
        ArgumentError,
        "out is torch.bfloat16 [5, 32], and the result is torch.bfloat16 [5, 64]",
    ),
    (
        {"out": torch.zeros(5, 64)},
        ArgumentError,
        "out is torch.float32 [5, 64], and the result is torch.bfloat16 [5, 64]",
    ),
    ({"recipe": "fp4"}, UnsupportedError, "recipe='fp4' is unknown"),
    ({"recipe": "fp8_mxfp4"}, ArgumentError, "recipe fp8_mxfp4 takes mxfp4 weights, but these are nvfp4"),
    ({"l3_acts": None}, ArgumentError, "l3_acts is no rounding point"),
]


@pytest.mark.parametrize(("changes", "error", "sentence"), BAD_CALLS)
def test_a_bad_call_is_refused_in_words(changes: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        run_reference(**{**call(), "recipe": "fp8_nvfp4", **changes})
