"""Staging on a GPU where it differs by problem: very wide tokens, and indices that are narrowed."""

from __future__ import annotations

import pytest
import torch

from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.ops.moe import MegaMoE, get_symm_buffer_for_nvfp4_mega_moe
from tests.kernels.oracle import check_output, tokens_and_routing
from tests.marks import needs_sm90

pytestmark = needs_sm90


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
@pytest.mark.parametrize("hidden", [24576, 24592])
def test_very_wide_tokens(recipe: str, hidden: int) -> None:
    """On both sides of the width from which fewer blocks share an SM."""
    weights = MoeWeights.random(2, hidden, 256, seed=11, device="cuda")
    moe = MegaMoE(weights, recipe=recipe)
    x, topk_idx, topk_weights = tokens_and_routing(70, hidden, 2, 2)
    check_output(moe, weights, x, topk_idx, topk_weights, moe(x, topk_idx, topk_weights))


@pytest.mark.parametrize("nowhere", [-1, 4, 2**32, 2**32 + 1, -(2**32)])
@pytest.mark.parametrize("view_dtype", [torch.int32, torch.int64])
def test_no_expert_stays_none_in_32_bits(nowhere: int, view_dtype: torch.dtype) -> None:
    """2^32 is not expert 0."""
    weights = MoeWeights.random(4, 256, 256, seed=12, device="cuda")
    buffer = get_symm_buffer_for_nvfp4_mega_moe(None, 4, 32, 2, 256, 256, topk_idx_dtype=view_dtype)
    moe = MegaMoE(weights, sym_buffer=buffer)
    x, topk_idx, topk_weights = tokens_and_routing(20, 256, 4, 2)
    y = moe(x, torch.full_like(topk_idx, nowhere), topk_weights, out=torch.full_like(x, float("nan")))
    assert bool((y == 0).all())
    topk_idx[::2, 1] = nowhere
    stats = torch.zeros(4, dtype=torch.int32, device="cuda")
    y = moe(x, topk_idx, topk_weights, recv_stats=stats)
    masked = torch.where(topk_idx == nowhere, -1, topk_idx)
    check_output(moe, weights, x, masked, topk_weights, y)
    assert int(stats.sum()) == int((masked >= 0).sum())
