"""Checks of call arguments: each says what was given, what is needed and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megamoe_jit.arch import Arch, get_arch
from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.ops.weights import TransformedWeights
from megamoe_jit.recipes.recipe import get_recipe
from megamoe_jit.runtime.device import device_info
from megamoe_jit.runtime.symmetric import SymmBuffer

_NO_GPU_ARCH = "sm_90a"


def default_arch(device: torch.device) -> Arch:
    """Return the target of a device: the GPU's own, and sm_90a on the CPU (what the reference imitates then)."""
    return device_info(device).arch if device.type == "cuda" else get_arch(_NO_GPU_ARCH)


def as_activation(
    activation: str | ActivationSpec, *, clamp: float | None, alpha: float = 1.0, up_bias: float = 0.0
) -> ActivationSpec:
    """Return the activation of a call; raises ArgumentError when a spec and separate arguments are mixed."""
    if not isinstance(activation, ActivationSpec):
        return ActivationSpec(kind=activation, alpha=alpha, up_bias=up_bias, clamp=clamp)  # type: ignore[arg-type]
    if clamp is not None or alpha != 1.0 or up_bias != 0.0:
        raise ArgumentError(
            f"activation is an ActivationSpec, and clamp={clamp}, alpha={alpha}, up_bias={up_bias} were given beside "
            "it. Put them into the ActivationSpec."
        )
    return activation


def check_recipe_tuple(recipe: Sequence[int] | None, weights: TransformedWeights) -> None:
    """Raise ArgumentError unless `recipe` is the (gran_m, gran_n, gran_k) of the weights' checkpoint."""
    if recipe is None:
        return
    needed = (1, 1, 16 if get_recipe(weights.recipe).checkpoint == "nvfp4" else 32)
    if isinstance(recipe, str) or tuple(recipe) != needed:
        raise ArgumentError(
            f"recipe={recipe!r}, but the weights ({weights.recipe}) have scale factors of "
            f"(gran_m, gran_n, gran_k) = {needed}. Pass that, or None."
        )


def check_tokens(x: Tensor, num_tokens: int, buffer: SymmBuffer) -> None:
    """Raise ArgumentError unless x is bfloat16 [num_tokens, hidden] with dense rows on the buffer's device."""
    if x.dtype != torch.bfloat16 or x.ndim != 2 or x.shape[0] != num_tokens or x.shape[1] != buffer.hidden:
        raise ArgumentError(
            f"x is {x.dtype} {list(x.shape)}, but torch.bfloat16 [{num_tokens}, {buffer.hidden}] is needed "
            "(rows as in topk_idx, hidden as in the buffer). Convert or reshape it."
        )
    _check_rows("x", x, buffer.device)


def check_output(y: Tensor, buffer: SymmBuffer) -> None:
    """Raise ArgumentError unless y is bfloat16 [up to the capacity, hidden] in dense rows on a live buffer's device."""
    if buffer.is_destroyed:
        raise ArgumentError("sym_buffer was destroyed. Make a new one with get_symm_buffer_for_nvfp4_mega_moe.")
    if y.dtype != torch.bfloat16 or y.ndim != 2 or y.shape[1] != buffer.hidden:
        raise ArgumentError(
            f"y is {y.dtype} {list(y.shape)}, but torch.bfloat16 [num_tokens, {buffer.hidden}] is needed. "
            "Allocate it as x.new_empty(x.shape)."
        )
    if y.shape[0] > buffer.num_max_tokens_per_rank:
        raise ArgumentError(
            f"y has {y.shape[0]} rows, and the buffer holds {buffer.num_max_tokens_per_rank} tokens. "
            "Split the batch, or make a larger buffer."
        )
    _check_rows("y", y, buffer.device)


def check_weights(
    l1: TransformedWeights, l2: TransformedWeights, buffer: SymmBuffer, activation: ActivationSpec
) -> None:
    """Raise ArgumentError unless the weights belong to the buffer's recipe and sizes, and to the activation."""
    problem = buffer.problem
    for name, weights, layer in (("l1_weights", l1, "l1"), ("l2_weights", l2, "l2")):
        if not isinstance(weights, TransformedWeights):
            raise ArgumentError(
                f"{name} is a {type(weights).__name__}, but weights in kernel order are needed. "
                "Pass what transform_nvfp4_weights_for_mega_moe(l1, l2) returned."
            )
        if weights.layer != layer:
            raise ArgumentError(f"{name} are {weights.layer} weights. Pass the pair (l1, l2) in its order.")
        if weights.recipe != buffer.recipe.name or weights.arch != buffer.arch.name:
            raise ArgumentError(
                f"{name} were transformed for recipe {weights.recipe} on {weights.arch}, and the buffer is for "
                f"{buffer.recipe.name} on {buffer.arch}. Use the same recipe and arch for both."
            )
        given = (weights.num_experts, weights.hidden, weights.intermediate)
        needed = (problem.num_local_experts, problem.hidden, problem.intermediate)
        if given != needed:
            raise ArgumentError(
                f"{name} have (experts, hidden, intermediate) = {given}, and the buffer was made for {needed}. "
                "Use a buffer of the layer's sizes."
            )
        if weights.data.device != buffer.device:
            raise ArgumentError(
                f"{name} are on {weights.data.device}, and the buffer is on {buffer.device}. Move one of them."
            )
    if l1.gated != activation.gated:
        raise ArgumentError(
            f"activation {activation.kind!r} needs weights {'with' if activation.gated else 'without'} gate rows, and "
            f"l1_weights have {'them' if l1.gated else 'none'}. Choose another activation, or other weights."
        )


def check_stats(recv_stats: Tensor | None, buffer: SymmBuffer) -> None:
    """Raise ArgumentError unless the statistics are None or contiguous int32 [local experts] on the buffer's device."""
    problem = buffer.problem
    if recv_stats is not None and (
        recv_stats.dtype != torch.int32
        or tuple(recv_stats.shape) != (problem.num_local_experts,)
        or not recv_stats.is_contiguous()
        or recv_stats.device != buffer.device
    ):
        raise ArgumentError(
            f"cumulative_local_expert_recv_stats is {recv_stats.dtype} {list(recv_stats.shape)} on "
            f"{recv_stats.device}, but a contiguous torch.int32 [{problem.num_local_experts}] on {buffer.device} is "
            "needed. Allocate it as torch.zeros(...)."
        )


def _check_rows(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ArgumentError(f"{name} is on {tensor.device}, but the buffer is on {device}. Move it there.")
    if tensor.stride(1) != 1 or tensor.stride(0) < tensor.shape[1] * (tensor.shape[0] > 1):
        raise ArgumentError(
            f"{name} {list(tensor.shape)} has strides {list(tensor.stride())}, but rows must be dense and must not "
            "overlap. Call .contiguous()."
        )
