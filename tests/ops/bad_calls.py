"""Bad inputs of the fused call and of MegaMoE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from megamoe_jit import ActivationSpec, UnsupportedError, get_recipe
from tests.ops.bad_rows import DESTROYED, IDX, L1, L2, NO_TENSOR, NOT_A_NUMBER, OVERLAP, Bad, X, routing_rows
from tests.ops.layers import EXPERTS, buffer, call, destroyed, layer, layer_call, tokens, transformed, weights


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same values one byte further on."""
    flat = torch.empty(tensor.numel() + 16, dtype=torch.uint8)
    start = 1 if flat.data_ptr() % 16 == 0 else 0
    return flat[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)


Y = torch.empty_like(X)
TUPLE = r"but the weights \(fp8_nvfp4\) have scale factors of \(gran_m, gran_n, gran_k\) = \(1, 1, 16\)\. Pass that, or"
KERNEL_ORDER = (
    r"but weights in kernel order are needed\. Pass what transform_nvfp4_weights_for_mega_moe\(l1, l2\) returned"
)
STATS = r"but a contiguous torch\.int32 \[4\] on cpu is needed\. Allocate it as torch\.zeros"
STAGE = r"topk_weight_stage='before_l2' is unknown\. Use 'after_l2' or 'before_requant'\."
NO_STAGE = r"topk_weight_stage='before_requant' has no kernel for recipe fp8_nvfp4: Hopper kernels .* Leave it at"
FACTOR = r"but a finite FP32 number is needed\. Pass a float"


def stats(given: Any) -> Callable[[], Any]:
    """Return a call with these statistics."""
    return lambda: call(cumulative_local_expert_recv_stats=given)


def with_l1(**parts: Any) -> Callable[[], Any]:
    """Return a call with some tensors of L1 replaced."""
    return lambda: call(l1_weights=replace(L1, **parts))


CALL = [
    Bad(
        "float32 y",
        lambda: call(y=Y.float()),
        r"y is torch\.float32 \[6, 128\], but torch\.bfloat16 \[num_tokens, 128\]",
    ),
    Bad(
        "y of other hidden",
        lambda: call(y=Y[:, :64]),
        r"y is torch\.bfloat16 \[6, 64\], .* Allocate it as x\.new_empty",
    ),
    Bad("flat y", lambda: call(y=Y.flatten()), r"y is torch\.bfloat16 \[768\], but"),
    Bad("no y", lambda: call(y=None), "y " + NO_TENSOR.format("NoneType")),
    Bad("y elsewhere", lambda: call(y=Y.to("meta")), r"y is on meta, but the buffer is on cpu\. Move it there"),
    Bad(
        "transposed y",
        lambda: call(y=torch.empty(128, 6).bfloat16().T),
        rf"y \[6, 128\] has strides \[1, 6\], but {OVERLAP}",
    ),
    Bad(
        "one row of y for all",
        lambda: call(y=Y[:1].expand(6, -1)),
        rf"y \[6, 128\] has strides \[0, 1\], but {OVERLAP}",
    ),
    Bad(
        "y with grad",
        lambda: call(y=Y.clone().requires_grad_()),
        r"y requires grad, and the call has no backward\. Pass",
    ),
    Bad(
        "y beyond the capacity", lambda: call(y=Y.new_empty(17, 128)), r"y has 17 rows, and the buffer holds 16 tokens"
    ),
    Bad(
        "y with fewer rows",
        lambda: call(y=Y[:5]),
        r"y has 5 rows, but 6 tokens were staged\. Pass y with as many rows, or",
    ),
    Bad("y with more rows", lambda: call(y=Y.new_empty(7, 128)), r"y has 7 rows, but 6 tokens were staged"),
    Bad("no buffer", lambda: call(sym_buffer=None), r"sym_buffer is a NoneType\. Pass what get_symm_buffer_for"),
    Bad("destroyed buffer", lambda: call(sym_buffer=destroyed()), DESTROYED),
    Bad(
        "checkpoint codes for l1",
        lambda: call(l1_weights=weights().l1_codes),
        rf"l1_weights is a Tensor, {KERNEL_ORDER}",
    ),
    Bad("the pair as l2", lambda: call(l2_weights=(L1, L2)), rf"l2_weights is a tuple, {KERNEL_ORDER}"),
    Bad("codes beside a tuple", lambda: call(l1_weights=1, recipe=(1, 1, 16)), rf"l1_weights is a int, {KERNEL_ORDER}"),
    Bad(
        "wrong order",
        lambda: call(l1_weights=L2, l2_weights=L1),
        r"l1_weights are l2 weights\. Pass the pair \(l1, l2\) in",
    ),
    Bad("l1 twice", lambda: call(l2_weights=L1), r"l2_weights are l1 weights\. Pass the pair"),
    Bad(
        "weights of another recipe",
        lambda: call(l1_weights=transformed("bf16_nvfp4")[0]),
        r"l1_weights were transformed for recipe bf16_nvfp4 on sm_90a, and the buffer is for fp8_nvfp4 on",
    ),
    Bad(
        "weights of another arch",
        lambda: call(l2_weights=replace(L2, arch="sm_100a")),
        r"l2_weights were transformed for recipe fp8_nvfp4 on sm_100a, and the buffer",
    ),
    Bad(
        "other hidden",
        lambda: call(sym_buffer=buffer(hidden=256), y=Y.new_empty(6, 256)),
        r"= \(4, 128, 128\), .* \(4, 256, 1",
    ),
    Bad(
        "other intermediate",
        lambda: call(sym_buffer=buffer(intermediate_hidden=144)),
        r"made for \(4, 128, 144\)\. Use a",
    ),
    Bad(
        "other experts",
        lambda: call(sym_buffer=buffer(num_experts=8)),
        r"\(experts, hidden, intermediate\) = \(4, 128, 128\)",
    ),
    Bad(
        "weights elsewhere", lambda: call(l2_weights=L2.to("meta")), r"l2_weights are on meta, and the buffer is on cpu"
    ),
    Bad(
        "blocks cut off",
        with_l1(data=L1.data[:, :-16]),
        r"l1_weights\.data is torch\.uint8 \[4, 18416\] .* Transform the",
    ),
    Bad(
        "blocks of another dtype",
        with_l1(data=L1.data.view(torch.int8)),
        r"l1_weights\.data is torch\.int8 \[4, 18432\]",
    ),
    Bad(
        "misaligned blocks",
        with_l1(data=misaligned(L1.data)),
        r"l1_weights\.data .* must be contiguous and start at a mult",
    ),
    Bad(
        "strided blocks",
        with_l1(data=torch.stack((L1.data,) * 2, 2)[..., 0]),
        r"data has strides \[36864, 2\] .* Copy it",
    ),
    Bad(
        "float64 alphas",
        with_l1(alphas=L1.alphas.double()),
        r"l1_weights\.alphas is torch\.float64 \[4, 2\] on cpu, but",
    ),
    Bad(
        "alphas of one branch",
        with_l1(alphas=L1.alphas[:, 0]),
        r"alphas is torch\.float32 \[4\] on cpu, but torch\.float32",
    ),
    Bad("alphas elsewhere", with_l1(alphas=L1.alphas.to("meta")), r"alphas is torch\.float32 \[4, 2\] on meta, but"),
    Bad(
        "short bias",
        with_l1(bias=torch.zeros(4, 128)),
        r"l1_weights\.bias is torch\.float32 \[4, 128\] .* \[4, 256\] on cpu",
    ),
    Bad("gran_k of MXFP4", lambda: call(recipe=(1, 1, 32)), rf"recipe=\(1, 1, 32\), {TUPLE}"),
    Bad("a pair", lambda: call(recipe=[1, 16]), rf"recipe=\[1, 16\], {TUPLE}"),
    Bad("recipe's name", lambda: call(recipe="fp8_nvfp4"), rf"recipe='fp8_nvfp4', {TUPLE}"),
    Bad("recipe itself", lambda: call(recipe=get_recipe("fp8_nvfp4")), rf"recipe='fp8_nvfp4', {TUPLE}"),
    Bad("gran_k alone", lambda: call(recipe=16), rf"recipe=16, {TUPLE}"),
    Bad(
        "unknown activation",
        lambda: call(activation="silu"),
        r"activation='silu' is unknown\. Use one of swiglu, gelu, rel",
    ),
    Bad("no activation", lambda: call(activation=None), r"activation=None is unknown\. Use one of swiglu"),
    Bad(
        "activation without a gate",
        lambda: call(activation="relu2"),
        r"'relu2' needs weights without gate rows, and l1_we",
    ),
    Bad(
        "weights without a gate",
        lambda: call(l1_weights=transformed(gated=False)[0], l2_weights=transformed(gated=False)[1]),
        r"activation 'swiglu' needs weights with gate rows, and l1_weights have none\. Choose another activation",
    ),
    Bad(
        "negative clamp",
        lambda: call(activation_clamp=-1.0),
        r"activation_clamp=-1\.0 must be a finite number >= 0\. Pass N",
    ),
    Bad(
        "clamp not a number",
        lambda: call(activation_clamp=NOT_A_NUMBER),
        r"activation_clamp=nan must be a finite number",
    ),
    Bad(
        "infinite clamp",
        lambda: call(activation_clamp=float("inf")),
        r"activation_clamp=inf must .* Pass None for no clamp",
    ),
    Bad("clamp as text", lambda: call(activation_clamp="7"), r"activation clamp='7' is a str\. Pass a number"),
    Bad("no alpha", lambda: call(activation_alpha=None), r"activation alpha=None is a NoneType\. Pass a number"),
    Bad(
        "infinite alpha", lambda: call(activation_alpha=float("inf")), r"alpha=inf and up_bias=0\.0 must both be finite"
    ),
    Bad(
        "alpha of gelu",
        lambda: call(activation="gelu", activation_alpha=2.0),
        r"alpha=2\.0 has no meaning for activation='g",
    ),
    Bad(
        "spec and clamp",
        lambda: call(activation=ActivationSpec(), activation_clamp=1.0),
        r"clamp=1\.0, .* Put them into",
    ),
    Bad(
        "spec and alpha",
        lambda: call(activation=ActivationSpec(), activation_alpha=1.5),
        r"alpha=1\.5, .* beside it\. Put",
    ),
    Bad("int64 statistics", stats(torch.zeros(4, dtype=torch.int64)), rf"stats is torch\.int64 \[4\] on cpu, {STATS}"),
    Bad(
        "statistics of other experts", stats(torch.zeros(5, dtype=torch.int32)), rf"torch\.int32 \[5\] on cpu, {STATS}"
    ),
    Bad("strided statistics", stats(torch.zeros(8, dtype=torch.int32)[::2]), rf"torch\.int32 \[4\] on cpu, {STATS}"),
    Bad("statistics elsewhere", stats(torch.zeros(4, dtype=torch.int32, device="meta")), rf"\[4\] on meta, {STATS}"),
    Bad("statistics as a list", stats([0] * EXPERTS), "recv_stats " + NO_TENSOR.format("list")),
    Bad(
        "factor not a number", lambda: call(routed_scaling_factor=NOT_A_NUMBER), rf"routed_scaling_factor=nan, {FACTOR}"
    ),
    Bad("factor beyond float32", lambda: call(routed_scaling_factor=1e39), rf"routed_scaling_factor=1e\+39, {FACTOR}"),
    Bad("unknown stage", lambda: call(topk_weight_stage="before_l2"), STAGE),
    Bad(
        "stage without a kernel",
        lambda: call(topk_weight_stage="before_requant", backend="emulator"),
        NO_STAGE,
        UnsupportedError,
    ),
    Bad("no factor", lambda: call(routed_scaling_factor=None), rf"routed_scaling_factor=None, {FACTOR}"),
    Bad("factor as text", lambda: call(routed_scaling_factor="2"), rf"routed_scaling_factor='2', {FACTOR}"),
    Bad(
        "factors as a tensor",
        lambda: call(routed_scaling_factor=torch.ones(3)),
        rf"=tensor\(\[1\., 1\., 1\.\]\), {FACTOR}",
    ),
    Bad(
        "unknown backend",
        lambda: call(backend="gpu"),
        r"backend='gpu' is no backend\. Use one of cuda, emulator, refere",
    ),
    Bad("kernels on the CPU", lambda: call(backend="cuda"), r"backend='cuda' runs kernels on a GPU, and .* are on cpu"),
]

NO_LAYER = (
    r"but MoeWeights or the pair \(l1, l2\) of transform_weights\(\.\.\.\) is needed\. Make one with MoeWeights\.from"
)
LAYER = [
    *(
        row
        for row in routing_rows(layer_call)
        if row.name not in ("other num_topk", "indices elsewhere", "3-d indices")
    ),
    Bad(
        "3-d indices",
        lambda: layer_call(topk_idx=IDX[None]),
        r"topk_idx has shape \[1, 6, 2\], but \[num_tokens, num_topk\]",
    ),
    Bad(
        "other num_topk",
        lambda: layer_call(topk_idx=IDX[:, :1], num_topk=2),
        r"\[6, 1\], but int32 or int64 \[num_tokens, 2",
    ),
    Bad("one tensor", lambda: layer(weights=weights().l1_codes), rf"weights are a Tensor, {NO_LAYER}"),
    Bad("a checkpoint's dict", lambda: layer(weights={}), rf"weights are a dict, {NO_LAYER}"),
    Bad("half a pair", lambda: layer(weights=L1), rf"weights are a TransformedWeights, {NO_LAYER}"),
    Bad("three layers", lambda: layer(weights=(L1, L2, L2)), rf"weights are a tuple, {NO_LAYER}"),
    Bad(
        "wrong order",
        lambda: layer(weights=(L2, L1)),
        r"l1_weights are l2 weights\. Pass the pair \(l1, l2\) in its order",
    ),
    Bad("a pair of tensors", lambda: layer(weights=(L1.data, L2.data)), rf"l1_weights is a Tensor, {KERNEL_ORDER}"),
    Bad("unknown recipe", lambda: layer(recipe="w4a8"), r"recipe='w4a8' is unknown\. Use one of", UnsupportedError),
    Bad(
        "recipe of another checkpoint",
        lambda: layer(recipe="fp8_mxfp4"),
        r"takes mxfp4 weights on sm_90a",
        UnsupportedError,
    ),
    Bad(
        "recipe of another arch",
        lambda: layer(recipe="nvfp4_nvfp4", arch="sm_90a"),
        r"recipe='nvfp4_nvfp4' takes nvfp4 weights on sm_100a, .* Use fp8_nvfp4 or bf16_nvfp4 for them",
        UnsupportedError,
    ),
    Bad(
        "recipe unlike the pair's",
        lambda: layer(weights=(L1, L2), recipe="bf16_nvfp4"),
        r"transformed for fp8_nvfp4\. Tr",
    ),
    Bad("unknown arch", lambda: layer(arch="sm_90"), r"arch='sm_90' is not a known target", UnsupportedError),
    Bad("no slots", lambda: layer_call(num_topk=0), r"num_topk=0, but kernels take an integer from 1 to 16"),
    Bad(
        "no capacity", lambda: layer_call(max_tokens_per_rank=0), r"max_tokens_per_rank=0, but kernels take an integer"
    ),
    Bad(
        "more slots than experts",
        lambda: layer(num_topk=5, max_tokens_per_rank=1),
        r"num_topk=5 is more than num_experts",
    ),
    Bad(
        "capacity too small",
        lambda: layer_call(max_tokens_per_rank=5),
        r"6 tokens were given, and the buffer holds 5\. Split",
    ),
    Bad(
        "activation without a gate",
        lambda: layer(activation="relu2"),
        r"'relu2' needs weights without gate rows, and l1",
    ),
    Bad("unknown activation", lambda: layer(activation="silu"), r"activation='silu' is unknown"),
    Bad(
        "spec and clamp",
        lambda: layer(activation=ActivationSpec(), activation_clamp=1.0),
        r"Put them into the Activation",
    ),
    Bad("unknown stage", lambda: layer(topk_weight_stage="before_l2"), STAGE),
    Bad(
        "stage without a kernel",
        lambda: layer(topk_weight_stage="before_requant", backend="emulator"),
        NO_STAGE,
        UnsupportedError,
    ),
    Bad("factor as text", lambda: layer(routed_scaling_factor="2"), rf"routed_scaling_factor='2', {FACTOR}"),
    Bad(
        "factor not a number",
        lambda: layer(routed_scaling_factor=NOT_A_NUMBER),
        rf"routed_scaling_factor=nan, {FACTOR}",
    ),
    Bad(
        "kernels on the CPU",
        lambda: layer(backend="cuda"),
        r"backend='cuda' runs kernels on a GPU, and the tensors are on",
    ),
    Bad(
        "no buffer of this class",
        lambda: layer(sym_buffer="mine"),
        r"sym_buffer is a str\. Pass what get_symm_buffer_for",
    ),
    Bad("destroyed buffer", lambda: layer(sym_buffer=destroyed()), DESTROYED),
    Bad(
        "buffer of another layer",
        lambda: layer(sym_buffer=buffer(hidden=256)),
        r"the buffer was made for \(4, 256, 128\)",
    ),
    Bad(
        "buffer of another recipe",
        lambda: layer(sym_buffer=buffer(recipe="bf16_nvfp4")),
        r"the buffer is for bf16_nvfp4",
    ),
    Bad(
        "buffer of other slots",
        lambda: layer(sym_buffer=buffer(), num_topk=3),
        r"num_topk=3, and sym_buffer was made for 2",
    ),
    Bad(
        "buffer too small",
        lambda: layer(sym_buffer=buffer(), max_tokens_per_rank=32),
        r"_rank=32, and sym_buffer was made fo",
    ),
    Bad(
        "more tokens than any buffer holds",
        lambda: layer_call(x=tokens(1).expand(65537, -1), topk_idx=IDX[:1].expand(65537, -1)),
        r"max_tokens_per_rank=65537, but kernels take an integer from 1 to 65536",
    ),
    Bad(
        "no buffer yet",
        lambda: layer().sym_buffer,
        r"the layer has no buffer before its first call\. Pass num_topk and max",
    ),
    Bad("out of other rows", lambda: layer_call(out=Y[:5]), r"y has 5 rows, but 6 tokens were staged"),
    Bad(
        "float32 out",
        lambda: layer_call(out=Y.float()),
        r"y is torch\.float32 \[6, 128\], but torch\.bfloat16 \[num_tokens",
    ),
    Bad(
        "other hidden",
        lambda: layer_call(x=tokens(6, 64)),
        r"x is torch\.bfloat16 \[6, 64\], but torch\.bfloat16 \[6, 128\]",
    ),
    Bad("float32 tokens", lambda: layer_call(x=X.float()), r"x is torch\.float32 \[6, 128\], but"),
]
