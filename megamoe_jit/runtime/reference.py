"""The reference backend: a recipe's MoE layer in float64 with the recipe's roundings, without kernels."""

from __future__ import annotations

from typing import Any

import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.recipes.recipe import Recipe, ScaleType, get_recipe
from megamoe_jit.reference.moe import moe_reference
from megamoe_jit.reference.rounding_points import rounding_points


def run_reference(
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weights: torch.Tensor,
    weights: MoeWeights,
    *,
    recipe: str | Recipe,
    activation: ActivationSpec | None = None,
    routed_scaling_factor: float = 1.0,
    expert_offset: int = 0,
    x_is_rounded: bool = False,
    recv_stats: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    **rounding: Any,
) -> torch.Tensor:
    """Return what a recipe's kernel computes, bf16 [num_tokens, hidden], by `megamoe_jit.reference.moe.moe_reference`.

    Args:
        x: tokens [num_tokens, hidden], any float dtype.
        topk_idx: int32 or int64 [num_tokens, topk]; what is no expert of `weights` adds nothing.
        topk_weights: float32 [num_tokens, topk].
        weights: canonical weights of the local experts, in the recipe's checkpoint format, or adapted by the recipe, as
            `untransform_weights` returns those of mxfp8_nvfp4.
        recipe: which decides what is rounded where; `rounding` replaces single rounding points by name.
        activation: SwiGLU by default.
        routed_scaling_factor: multiplies the sum over experts.
        expert_offset: global index of expert 0 of `weights`.
        x_is_rounded: `x` holds dequantised activations of the recipe, which are not to be rounded again.
        recv_stats: integers [num_experts]; the number of routed pairs of each expert is added to it.
        out: bf16 [num_tokens, hidden] that the result is written to.

    Raises ArgumentError as the oracle does, UnsupportedError for an unknown recipe.
    """
    recipe = get_recipe(recipe)
    if x_is_rounded:
        rounding["l1_acts"] = None
    if weights.checkpoint == "mxfp4" != recipe.checkpoint and recipe.weights.sf_type is ScaleType.UE8M0:
        rounding |= {"checkpoint": "mxfp4", "weights": None}  # the adaptation is done
    result = moe_reference(
        x,
        topk_idx,
        topk_weights,
        weights,
        activation=activation,
        rounding=rounding_points(recipe.name, **rounding),
        routed_scaling_factor=routed_scaling_factor,
        expert_offset=expert_offset,
    )
    if recv_stats is not None:
        if recv_stats.shape != result.expert_counts.shape:
            raise ArgumentError(
                f"recv_stats has shape {list(recv_stats.shape)}, and one count for each of {len(result.expert_counts)} "
                "local experts is needed. Allocate it with that shape."
            )
        recv_stats += result.expert_counts.to(recv_stats)
    y = result.y.to(torch.bfloat16)
    if out is None:
        return y
    if out.shape != y.shape or out.dtype != y.dtype:
        raise ArgumentError(
            f"out is {out.dtype} {list(out.shape)}, and the result is {y.dtype} {list(y.shape)}. Allocate it like that."
        )
    return out.copy_(y)
