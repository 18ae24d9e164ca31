"""Checks of call arguments: each says what was given, what is needed and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from megamoe_jit.arch import Arch, get_arch
from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.layouts.weights_sm90 import Sm90WeightLayout
from megamoe_jit.ops.weights import TransformedWeights
from megamoe_jit.recipes.recipe import Recipe, get_recipe
from megamoe_jit.runtime.device import device_info
from megamoe_jit.runtime.symmetric import SymmBuffer, check_tensor

_NO_GPU_ARCH = "sm_90a"
_MAX_FLOAT32 = torch.finfo(torch.float32).max
_ALIGN = {"data": 16, "alphas": 4, "bias": 16}  # bulk copies and vector loads, single floats


def check_device(device: torch.device | str | int | None) -> torch.device:
    """Return a device with its index, torch's current GPU (else the CPU) for None; raises ArgumentError for others."""
    given = device
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    except (RuntimeError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise ArgumentError(f"device={given!r} is no device ({why}). Pass a CUDA device or the CPU.") from error
    if device.type not in ("cuda", "cpu"):
        raise ArgumentError(
            f"device={given!r}, but kernels run on CUDA devices and the reference on the CPU. Pass one."
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(
            f'device={given!r}, but torch {torch.__version__} sees no GPU. Pass device="cpu" for the reference, or '
            "install a torch built for CUDA beside a driver."
        )
    return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device


def default_arch(device: torch.device, recipe: Recipe | None = None) -> Arch:
    """Return the target of a device: the GPU's own; on the CPU the recipe's first, which the reference imitates."""
    if device.type == "cuda":
        return device_info(device).arch
    return get_arch(recipe.targets[0] if recipe is not None else _NO_GPU_ARCH)


def check_factor(factor: float) -> float:
    """Return routed_scaling_factor as a float; raises ArgumentError unless it is a number that FP32 holds."""
    if type(factor) is float and -_MAX_FLOAT32 <= factor <= _MAX_FLOAT32:  # what nearly every call gives
        return factor
    if not isinstance(factor, Real) or not abs(factor) <= _MAX_FLOAT32:
        raise ArgumentError(f"routed_scaling_factor={factor!r}, but a finite FP32 number is needed. Pass a float.")
    return float(factor)


def check_buffer(buffer: SymmBuffer) -> None:
    """Raise ArgumentError unless this is a live buffer."""
    if not isinstance(buffer, SymmBuffer):
        raise ArgumentError(
            f"sym_buffer is a {type(buffer).__name__}. Pass what get_symm_buffer_for_nvfp4_mega_moe(...) returned."
        )
    buffer.check_alive()


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


def check_shared_buffer(buffer: SymmBuffer, num_topk: int | None, max_tokens_per_rank: int | None) -> None:
    """Raise ArgumentError unless this is a live buffer of the sizes that were given beside it."""
    check_buffer(buffer)
    for name, given, has in (
        ("num_topk", num_topk, buffer.num_topk),
        ("max_tokens_per_rank", max_tokens_per_rank, buffer.num_max_tokens_per_rank),
    ):
        if given not in (None, has):
            raise ArgumentError(
                f"{name}={given}, and sym_buffer was made for {has}. Leave {name} out, or make a buffer of that size."
            )


def check_layer(weights: object) -> None:
    """Raise ArgumentError unless these are the weights of one layer, in checkpoint order or transformed."""
    if isinstance(weights, MoeWeights):
        return
    if not isinstance(weights, (tuple, list)) or len(weights) != 2:
        raise ArgumentError(
            f"weights are a {type(weights).__name__}, but MoeWeights or the pair (l1, l2) of transform_weights(...) is "
            "needed. Make one with MoeWeights.from_checkpoint(...)."
        )
    for name, transformed, layer in zip(("l1_weights", "l2_weights"), weights, ("l1", "l2"), strict=True):
        _check_kernel_order(name, transformed, layer)


def check_recipe_tuple(recipe: Sequence[int] | None, weights: TransformedWeights) -> None:
    """Raise ArgumentError unless `recipe` is the (gran_m, gran_n, gran_k) of the weights' checkpoint."""
    if recipe is None:
        return
    _check_kernel_order("l1_weights", weights, "l1")
    needed = (1, 1, 16 if get_recipe(weights.recipe).checkpoint == "nvfp4" else 32)
    if isinstance(recipe, str) or not isinstance(recipe, Sequence) or tuple(recipe) != needed:
        raise ArgumentError(
            f"recipe={getattr(recipe, 'name', recipe)!r}, but the weights ({weights.recipe}) have scale factors of "
            f"(gran_m, gran_n, gran_k) = {needed}. Pass that, or None."
        )


def check_tokens(x: Tensor, num_tokens: int, buffer: SymmBuffer) -> None:
    """Raise ArgumentError unless x is bfloat16 [num_tokens, hidden] with dense rows on the buffer's device."""
    check_tensor("x", x)
    if x.dtype != torch.bfloat16 or x.ndim != 2 or x.shape[0] != num_tokens or x.shape[1] != buffer.hidden:
        raise ArgumentError(
            f"x is {x.dtype} {list(x.shape)}, but torch.bfloat16 [{num_tokens}, {buffer.hidden}] is needed "
            "(rows as in topk_idx, hidden as in the buffer). Convert or reshape it."
        )
    _check_rows("x", x, buffer.device)


def check_output(y: Tensor, buffer: SymmBuffer) -> None:
    """Raise ArgumentError unless y is bfloat16 [up to the capacity, hidden] in dense rows on a live buffer's device."""
    check_buffer(buffer)
    check_tensor("y", y)
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
    if y.requires_grad:
        raise ArgumentError("y requires grad, and the call has no backward. Pass y.detach().")
    _check_rows("y", y, buffer.device)


def check_staged(num_tokens: int, buffer: SymmBuffer) -> None:
    """Raise ArgumentError when the last `stage_tokens` staged another number of tokens than the call has."""
    if buffer.num_staged not in (None, num_tokens):
        raise ArgumentError(
            f"y has {num_tokens} rows, but {buffer.num_staged} tokens were staged. "
            "Pass y with as many rows, or stage the tokens of this call."
        )


def check_weights(
    l1: TransformedWeights, l2: TransformedWeights, buffer: SymmBuffer, activation: ActivationSpec
) -> None:
    """Raise ArgumentError unless the weights belong to the buffer's recipe and sizes, and to the activation."""
    problem = buffer.problem
    for name, weights, layer in (("l1_weights", l1, "l1"), ("l2_weights", l2, "l2")):
        _check_kernel_order(name, weights, layer)
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
        _check_parts(name, weights)
    check_gate(l1, activation)


def check_gate(l1: TransformedWeights, activation: ActivationSpec) -> None:
    """Raise ArgumentError unless the weights have gate rows just when the activation needs them."""
    if l1.gated != activation.gated:
        raise ArgumentError(
            f"activation {activation.kind!r} needs weights {'with' if activation.gated else 'without'} gate rows, and "
            f"l1_weights have {'them' if l1.gated else 'none'}. Choose another activation, or other weights."
        )


def check_stats(recv_stats: Tensor | None, buffer: SymmBuffer) -> None:
    """Raise ArgumentError unless the statistics are None or contiguous int32 [local experts] on the buffer's device."""
    if recv_stats is None:
        return
    check_tensor("cumulative_local_expert_recv_stats", recv_stats)
    problem = buffer.problem
    if (
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


def _check_kernel_order(name: str, weights: object, layer: str) -> None:
    if not isinstance(weights, TransformedWeights):
        raise ArgumentError(
            f"{name} is a {type(weights).__name__}, but weights in kernel order are needed. "
            "Pass what transform_nvfp4_weights_for_mega_moe(l1, l2) returned."
        )
    if weights.layer != layer:
        raise ArgumentError(f"{name} are {weights.layer} weights. Pass the pair (l1, l2) in its order.")


def _check_parts(name: str, weights: TransformedWeights) -> None:
    """Raise ArgumentError unless each tensor is as the transform made it (load balancers put their own in place)."""
    layout, num_experts = weights.layout, weights.num_experts
    rows = layout.padded_rows * layout.branches
    expert_bytes = (
        layout.bytes_per_expert if isinstance(layout, Sm90WeightLayout) else layout.total_rows * layout.padded_k // 2
    )
    for part, tensor, dtype, shape in (
        ("data", weights.data, torch.uint8, (num_experts, expert_bytes)),
        ("alphas", weights.alphas, torch.float32, (num_experts, 2) if weights.layer == "l1" else (num_experts,)),
        ("bias", weights.bias, torch.float32, (num_experts, rows)),
    ):
        if tensor is None:
            continue
        if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device != weights.data.device:
            raise ArgumentError(
                f"{name}.{part} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, but {dtype} {list(shape)} "
                f"on {weights.data.device} is needed. Transform the weights again, or put experts into such a tensor."
            )
        if not tensor.is_contiguous() or tensor.data_ptr() % _ALIGN[part]:
            raise ArgumentError(
                f"{name}.{part} has strides {list(tensor.stride())} and starts at address {tensor.data_ptr():#x}, but "
                f"it must be contiguous and start at a multiple of {_ALIGN[part]} bytes. Copy it to a fresh tensor."
            )


def _check_rows(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ArgumentError(f"{name} is on {tensor.device}, but the buffer is on {device}. Move it there.")
    if tensor.stride(1) != 1 or tensor.stride(0) < tensor.shape[1] * (tensor.shape[0] > 1):
        raise ArgumentError(
            f"{name} {list(tensor.shape)} has strides {list(tensor.stride())}, but rows must be dense and must not "
            "overlap. Call .contiguous()."
        )
