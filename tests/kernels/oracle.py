"""How end-to-end kernel tests judge a result: the whole against the recipe's oracle, and each half by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megamoe_jit.formats.block_scaled import QuantFormat, QuantizedTensor
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.layouts.weights_sm90 import Sm90Element, permute_token_k
from megamoe_jit.ops import plan
from megamoe_jit.ops.moe import MegaMoE
from megamoe_jit.ops.plan import MoePlan
from megamoe_jit.reference.compare import rel_l2
from megamoe_jit.reference.moe import MoeIntermediates, moe_reference

# E4M3 sums are promoted every 512 of K: docs/numerics.md says what that costs.
BOUNDS = {"fp8_nvfp4": 8e-3, "bf16_nvfp4": 3e-3, "fp8_mxfp4": 8e-3, "bf16_mxfp4": 3e-3}
_SUM_ERROR = 2e-3  # of L1's sums and the activation, relative to a block's largest value
# Of y from the kernel's own activations: roundings to BF16 that inexact sums (fp8: 13 fraction bits) turn over.
_SECOND_HALF_BOUNDS = {True: 2e-3, False: 1e-3}
_ENOUGH_VALUES = 30_000  # intermediate values over which the share of neighbouring codes averages


def tokens_and_routing(
    num_tokens: int,
    hidden: int,
    num_experts: int,
    num_topk: int,
    *,
    seed: int = 0,
    index_dtype: torch.dtype = torch.int64,
    device: str = "cuda",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random tokens with distinct experts each, a tenth of the slots not routed."""
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(num_tokens, hidden, generator=generator, device=device).bfloat16()
    scores = torch.rand(num_tokens, num_experts, generator=generator, device=device)
    topk_idx = scores.topk(num_topk, dim=1).indices
    topk_idx = torch.where(torch.rand(topk_idx.shape, generator=generator, device=device) < 0.1, -1, topk_idx)
    return x, topk_idx.to(index_dtype), torch.rand(topk_idx.shape, generator=generator, device=device)


def check_output(
    moe: MegaMoE, weights: MoeWeights, x: Tensor, topk_idx: Tensor, topk_weights: Tensor, y: Tensor, **oracle: Any
) -> None:
    """Hold `y`, the layer's last result, to the oracle.

    E4M3 sums of L1 are inexact in hardware (13 fraction bits), so that some of the intermediate codes are neighbours of
    the oracle's: at most one code step away, at most 4 % of them (2.4 % is usual). What L2 makes of the kernel's own
    codes is held tighter. The bound on the whole needs enough values for that 2.4 % to average.
    """
    reference = moe_reference(
        x, topk_idx, topk_weights, weights, rounding=moe.recipe.name, return_intermediates=True, **oracle
    )
    inner = reference.intermediates
    assert inner is not None
    if len(inner.token_idx) == 0:
        assert torch.equal(y.double(), reference.y)
        return
    own = second_half(_check_first_half(moe, inner, weights.intermediate, len(x)), inner, weights, topk_weights, moe)
    assert rel_l2(y, own) < _SECOND_HALF_BOUNDS[moe.recipe.name.startswith("fp8")]
    if len(inner.token_idx) * weights.intermediate >= _ENOUGH_VALUES:
        assert rel_l2(y, reference.y) < BOUNDS[moe.recipe.name]


def _pool_rows(moe: MegaMoE, workspace: plan.Workspace, inner: MoeIntermediates, num_tokens: int) -> Tensor:
    """Return the pool's row of each routed row.

    An expert's rows begin with a token tile of their own, in whatever order the kernel brought them: `routed` says
    which slot a row is.
    """
    problem = moe.sym_buffer.problem
    tile = plan.token_tile(problem, moe.recipe, num_tokens)
    counts = torch.bincount(inner.expert_idx, minlength=problem.num_local_experts)
    tiles = (counts + tile - 1) // tile
    first_tile, first_row = tiles.cumsum(0) - tiles, counts.cumsum(0) - counts
    at = torch.arange(len(inner.expert_idx), device=counts.device)
    rows = first_tile[inner.expert_idx] * tile + at - first_row[inner.expert_idx]  # the expert's, in some order
    start = workspace.shapes.workspace().offsets()["routed"]
    routed = workspace.memory[start : start + workspace.shapes.pool_rows * 4].view(torch.int32)[rows].long()
    slots = inner.token_idx * problem.num_topk + inner.slot_idx
    assert torch.equal(inner.expert_idx, inner.expert_idx.sort().values)
    # Both are permutations of the same slots, expert by expert.
    order, brought = slots.argsort(), routed.argsort()
    assert torch.equal(slots[order], routed[brought])
    assert torch.equal(inner.expert_idx[order], inner.expert_idx[brought])
    found = torch.empty_like(rows)
    found[order] = rows[brought]
    return found


def _check_first_half(moe: MegaMoE, inner: MoeIntermediates, intermediate: int, num_tokens: int) -> Tensor:
    """Compare the activations that the kernel left in its pool with the oracle's; return their values [P, I]."""
    workspace = next(plan for plan in moe.sym_buffer.plans.values() if isinstance(plan, MoePlan)).workspace
    rows = _pool_rows(moe, workspace, inner, num_tokens)
    fp8 = moe.recipe.name.startswith("fp8")
    acts_pool = workspace.acts()
    pool = acts_pool.view(torch.uint8)[rows].view(acts_pool.dtype)  # CUDA indexes no float8
    pool = permute_token_k(pool, Sm90Element.E4M3 if fp8 else Sm90Element.BF16, inverse=True)
    pool = pool[:, :intermediate].contiguous()
    if not fp8:
        assert rel_l2(pool, inner.acts) < 3e-3
        return pool.double()
    assert inner.l2_acts is not None
    sf = workspace.acts_sf()[: -(-intermediate // 128), rows].T.contiguous()
    assert torch.allclose(sf, inner.l2_acts.sf, rtol=2 * _SUM_ERROR, atol=0)
    acts = QuantizedTensor(codes=pool, sf=sf, format=QuantFormat.FP8_BLOCK).dequantize(torch.float64)
    expected = inner.l2_acts.dequantize(torch.float64)
    # A step of E4M3 is at most an eighth of the value; near zero, values move by what L1's sums are off.
    largest = 448 * sf.double().repeat_interleave(128, dim=1)[:, :intermediate]
    bound = torch.maximum(acts.abs(), expected.abs()) * 0.126 + largest * _SUM_ERROR
    assert bool(((acts - expected).abs() <= bound).all())
    is_other = pool.view(torch.uint8) != inner.l2_acts.codes.view(torch.uint8)
    assert float(is_other.double().mean()) < 0.04
    return acts


def second_half(
    acts: Tensor, inner: MoeIntermediates, weights: MoeWeights, topk_weights: Tensor, moe: MegaMoE
) -> Tensor:
    """Return y in float64 with the recipe's roundings from given activations [P, I], written out in plain torch."""
    l2 = weights.l2().dequantize(torch.float64)
    if moe.recipe.name == "fp8_nvfp4":
        rounded = (l2 / 8).float().to(torch.float8_e4m3fn).double() * 8
        # The factor of least squares that the kernel's alphas carry.
        squares = rounded.square().sum((1, 2))
        l2 = rounded * ((rounded * l2).sum((1, 2)) / squares.where(squares > 0, 1.0))[:, None, None]
    num_tokens, num_topk = topk_weights.shape
    partials = torch.zeros(num_tokens, num_topk, weights.hidden, dtype=torch.bfloat16, device=acts.device)
    for expert in range(weights.num_experts):
        mine = inner.expert_idx == expert
        token, slot = inner.token_idx[mine], inner.slot_idx[mine]
        out = acts[mine] @ l2[expert].T * weights.l2_alphas[expert].double()
        if weights.l2_bias is not None:
            out = out + weights.l2_bias[expert].double()
        partials[token, slot] = (out * topk_weights[token, slot].double()[:, None]).bfloat16()
    total = torch.zeros(num_tokens, weights.hidden, device=acts.device)
    for k in range(num_topk):
        total += partials[:, k].float()
    return (total * moe.routed_scaling_factor).bfloat16().double()
