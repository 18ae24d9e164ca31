"""One small layer, and calls on it that are right until a test changes an argument."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from megamoe_jit import (
    MegaMoE,
    MoeWeights,
    SymmBuffer,
    TransformedWeights,
    fp8_nvfp4_mega_moe,
    get_recipe,
    get_symm_buffer_for_nvfp4_mega_moe,
    stage_tokens,
    transform_weights,
)
from megamoe_jit.ops.tokens import quantize_tokens

EXPERTS, TOPK, HIDDEN, INTERMEDIATE, CAPACITY, TOKENS = 4, 2, 128, 128, 16, 6


class Group:
    """A process group as far as buffers look at one."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


@functools.cache
def weights(recipe: str = "fp8_nvfp4", **changes: Any) -> MoeWeights:
    """Return the layer's weights in the recipe's checkpoint format."""
    return MoeWeights.random(EXPERTS, HIDDEN, INTERMEDIATE, seed=1, checkpoint=get_recipe(recipe).checkpoint, **changes)


@functools.cache
def transformed(recipe: str = "fp8_nvfp4", **changes: Any) -> tuple[TransformedWeights, TransformedWeights]:
    """Return them in kernel order."""
    return transform_weights(weights(recipe, **changes), recipe)


@functools.cache
def tokens(num_tokens: int = TOKENS, hidden: int = HIDDEN) -> Tensor:
    """Return bf16 [num_tokens, hidden], rows of very different sizes."""
    generator = torch.Generator().manual_seed(2)
    sizes = torch.exp2(torch.arange(num_tokens) % 7 - 3.0)[:, None]
    return (torch.randn(num_tokens, hidden, generator=generator) * sizes).bfloat16()


@functools.cache
def routing(num_tokens: int = TOKENS, dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    """Return topk_idx with distinct experts a token and a slot or two that is not routed, and topk_weights."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(num_tokens, EXPERTS, generator=generator)
    topk_idx = scores.topk(TOPK, dim=1).indices
    topk_idx[1::4, 0] = -1
    return topk_idx.to(dtype), torch.rand(num_tokens, TOPK, generator=generator) + 0.1


def buffer(**changes: Any) -> SymmBuffer:
    """Call get_symm_buffer_for_nvfp4_mega_moe for the layer."""
    arguments: dict[str, Any] = {
        "group": None,
        "num_experts": EXPERTS,
        "num_max_tokens_per_rank": CAPACITY,
        "num_topk": TOPK,
        "hidden": HIDDEN,
        "intermediate_hidden": INTERMEDIATE,
        "device": "cpu",
    }
    return get_symm_buffer_for_nvfp4_mega_moe(**{**arguments, **changes})


def destroyed() -> SymmBuffer:
    """Return a buffer that is gone."""
    gone = buffer()
    gone.destroy()
    return gone


def stage(**changes: Any) -> SymmBuffer:
    """Call stage_tokens; return the buffer."""
    topk_idx, topk_weights = routing()
    arguments = {"x": tokens(), "topk_idx": topk_idx, "topk_weights": topk_weights, **changes}
    if "sym_buffer" not in arguments:
        arguments["sym_buffer"] = buffer()
    stage_tokens(**arguments)
    return arguments["sym_buffer"]


def fill(recipe: str = "fp8_nvfp4", **changes: Any) -> SymmBuffer:
    """Call SymmBuffer.fill with the recipe's codes of the layer's tokens; return the buffer."""
    x, x_sf, x_scales = quantize_tokens(tokens(), get_recipe(recipe))
    topk_idx, topk_weights = routing()
    arguments: dict[str, Any] = {"x": x, "x_sf": x_sf, "topk_idx": topk_idx, "topk_weights": topk_weights}
    arguments = {**arguments, "x_scales": x_scales, **changes}
    target = arguments.pop("sym_buffer") if "sym_buffer" in arguments else buffer(recipe=recipe)
    target.fill(**arguments)
    return target


def call(**changes: Any) -> Tensor:
    """Call fp8_nvfp4_mega_moe on staged tokens."""
    l1, l2 = transformed()
    arguments: dict[str, Any] = {"y": torch.empty_like(tokens()), "l1_weights": l1, "l2_weights": l2, **changes}
    if "sym_buffer" not in arguments:
        arguments["sym_buffer"] = stage()
    return fp8_nvfp4_mega_moe(**arguments)


def layer(**changes: Any) -> MegaMoE:
    """Make a MegaMoE."""
    return MegaMoE(**{"weights": weights(), **changes})


def layer_call(**changes: Any) -> Tensor:
    """Make a MegaMoE and call it: arguments of the call by name, all others go to the constructor."""
    topk_idx, topk_weights = routing()
    arguments = {"x": tokens(), "topk_idx": topk_idx, "topk_weights": topk_weights, "out": None, "recv_stats": None}
    of_call = {name: changes.pop(name, default) for name, default in arguments.items()}
    return layer(**changes)(**of_call)
