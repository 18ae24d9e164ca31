"""The MoE layer in float64: the truth, and the truth with a recipe's roundings. Slow, plain, and free of layouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.formats.block_scaled import (
    NVFP4_MAX,
    QuantFormat,
    QuantizedTensor,
    quantize_to_fp8,
    quantize_to_mxfp4,
    quantize_to_mxfp8,
    quantize_to_nvfp4,
)
from megamoe_jit.formats.fp8 import E4M3_MAX
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.formats.rounding import round_to_bfloat16
from megamoe_jit.reference.gemm import gemm_reference
from megamoe_jit.reference.layer import FloatWeights, Layer
from megamoe_jit.reference.rounding_points import ActsRounding, RoundingPoints, rounding_points
from megamoe_jit.reference.routing import expert_counts, is_local

_FORESEEN_MAX = {"nvfp4_foreseen": NVFP4_MAX, "fp8_foreseen": E4M3_MAX}
_CHUNK_ELEMENTS = 1 << 26  # float64 elements of one intermediate tensor that are held at a time


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MoeIntermediates:
    """What happened between the GEMMs, for the P routed (token, slot) pairs in order of expert, then token, then slot.

    Attributes:
        token_idx: int64 [P].
        slot_idx: int64 [P].
        expert_idx: int64 [P], local index.
        gate_up: float64 [P, 2I] L1's result with alpha and bias ([P, I] without a gate).
        acts: float64 [P, I] the activation's result (times the top-k weight where that comes first), before rounding.
        l1_acts: quantised tokens [T, H], or None where they are not quantised.
        l2_acts: quantised `acts` [P, I], or None where they are not quantised.
        partials: float64 [P, H] results of single experts, rounded.
    """

    token_idx: Tensor
    slot_idx: Tensor
    expert_idx: Tensor
    gate_up: Tensor
    acts: Tensor
    l1_acts: QuantizedTensor | None
    l2_acts: QuantizedTensor | None
    partials: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MoeReference:
    """Result of `moe_reference`.

    Attributes:
        y: float64 [T, H]; holds bfloat16 values where the recipe rounds its result.
        expert_counts: int64 [E], routed (token, slot) pairs of each local expert.
        intermediates: MoeIntermediates, or None when not asked for.
    """

    y: Tensor
    expert_counts: Tensor
    intermediates: MoeIntermediates | None = None


def activate(gate_up: Tensor, activation: ActivationSpec) -> Tensor:
    """Return the activation of gate_up [..., 2I] (gate first; [..., I] without a gate), in the dtype given."""
    spec = activation
    if spec.kind == "relu2":
        v = gate_up if spec.clamp is None else gate_up.clamp(max=spec.clamp)
        return v.relu().square()
    gate, up = gate_up.chunk(2, dim=-1)
    if spec.clamp is not None:
        gate, up = gate.clamp(max=spec.clamp), up.clamp(-spec.clamp, spec.clamp)
    gated = gate * torch.sigmoid(spec.alpha * gate) if spec.kind == "swiglu" else torch.nn.functional.gelu(gate)
    return gated * (up + spec.up_bias)


def round_acts(
    values: Tensor, rounding: ActsRounding | None, scale: Tensor | None = None
) -> tuple[Tensor, QuantizedTensor | None]:
    """Return float64 values [N, K] as the next GEMM reads them, and their codes where they are quantised.

    `scale` float32 [N] is the global scale of each row, for "nvfp4_static", "nvfp4_foreseen" and "fp8_foreseen" only.
    """
    if rounding is None:
        return values.to(torch.float64), None
    if rounding == "bf16":
        return round_to_bfloat16(values).to(torch.float64), None
    if rounding == "fp8_token":
        quantized = quantize_to_fp8(values)
    elif rounding == "fp8_128":
        quantized = quantize_to_fp8(values, gran_k=128)
    elif rounding == "fp8_512":
        quantized = quantize_to_fp8(values, gran_k=512)
    elif rounding == "fp8_foreseen":
        quantized = quantize_to_fp8(values, gran_k=128, foreseen=_needed(scale, rounding))
    elif rounding == "mxfp8":
        quantized = quantize_to_mxfp8(values)
    elif rounding == "mxfp4":
        quantized = quantize_to_mxfp4(values)
    elif rounding == "nvfp4_token":
        quantized = quantize_to_nvfp4(values, global_scale="token")
    elif rounding in ("nvfp4_static", "nvfp4_foreseen"):
        quantized = quantize_to_nvfp4(values, global_scale=_needed(scale, rounding))
    else:
        raise ArgumentError(f"activation rounding {rounding!r} is unknown. See RoundingPoints for those there are.")
    return quantized.dequantize(torch.float64), quantized


def _needed(scale: Tensor | None, rounding: str) -> Tensor:
    if scale is None:
        raise ArgumentError(
            f"rounding {rounding!r} got no scale, but one for each row is needed. Pass l2_act_scales float32 [E] "
            "for 'nvfp4_static', and use 'nvfp4_foreseen' and 'fp8_foreseen' for l2_acts only."
        )
    return scale


def _token_scales(x: Tensor, l1_acts: QuantizedTensor | None, element_max: float) -> Tensor:
    """Return amax / element_max of each token as its own scale, also where the tokens themselves are not rounded."""
    if element_max == E4M3_MAX:
        if l1_acts is None or l1_acts.format is not QuantFormat.FP8_TOKEN:
            l1_acts = quantize_to_fp8(x)
        return l1_acts.sf
    if l1_acts is not None and l1_acts.global_scale is not None:
        return l1_acts.global_scale
    scale = quantize_to_nvfp4(x, global_scale="token").global_scale
    assert scale is not None
    return scale


def _bf16_if(values: Tensor, rounding: str | None) -> Tensor:
    return round_to_bfloat16(values) if rounding == "bf16" else values


def _check(x: Tensor, topk_idx: Tensor, topk_weights: Tensor, hidden: int) -> None:
    if x.ndim != 2 or x.shape[1] != hidden:
        raise ArgumentError(
            f"x has shape {list(x.shape)}, but [num_tokens, {hidden}] is needed for weights with hidden={hidden}. "
            "Check the layer."
        )
    if topk_idx.dtype not in (torch.int32, torch.int64):
        raise ArgumentError(f"topk_idx has dtype {topk_idx.dtype}, but int32 or int64 is needed. Convert it.")
    if topk_idx.ndim != 2 or topk_idx.shape[0] != x.shape[0] or topk_weights.shape != topk_idx.shape:
        raise ArgumentError(
            f"topk_idx {list(topk_idx.shape)} and topk_weights {list(topk_weights.shape)} must both be "
            f"[{x.shape[0]}, num_topk] for x {list(x.shape)}. Give one row a token."
        )


def moe_reference(
    x: Tensor,
    topk_idx: Tensor,
    topk_weights: Tensor,
    weights: MoeWeights | FloatWeights,
    *,
    activation: ActivationSpec | None = None,
    rounding: str | RoundingPoints = "exact",
    routed_scaling_factor: float = 1.0,
    expert_offset: int = 0,
    l1_bias: Tensor | None = None,
    l2_bias: Tensor | None = None,
    l2_act_scales: Tensor | None = None,
    return_intermediates: bool = False,
) -> MoeReference:
    """Compute an MoE layer in float64 on the tensors' device, rounding only where `rounding` says.

    Args:
        x: tokens [T, H], bfloat16 or any wider float.
        topk_idx: int32 or int64 [T, K], global expert indices; -1 (any negative) is not routed.
        topk_weights: float [T, K].
        weights: MoeWeights of E experts, or float (l1 [E, 2I, H], l2 [E, H, I]) for roundings that leave the weights
        alone. activation: ActivationSpec, SwiGLU by default.
        rounding: a recipe's name, "exact", or RoundingPoints.
        routed_scaling_factor: multiplies the sum over experts, before the result is rounded.
        expert_offset: global index of expert 0 of `weights`; entries that name other ranks' experts add nothing.
        l1_bias: float [E, 2I] for float weights (MoeWeights carry their own).
        l2_bias: float [E, H] for float weights.
        l2_act_scales: float32 [E], global scale of the intermediate for rounding "nvfp4_static".
        return_intermediates: also return MoeIntermediates.

    Order of operations: L1 -> alpha, bias -> (gate_up) -> clamp, activation -> (top-k weight) -> (l2_acts) -> L2 ->
    alpha, bias -> top-k weight -> (partial) -> sum over slots in order -> routed_scaling_factor -> (out). Everything
    between two roundings is float64; sums are off by 1e-13 or so.
    """
    points = rounding_points(rounding) if isinstance(rounding, str) else rounding
    spec = activation or ActivationSpec()
    layer = Layer.of(weights, points, l1_bias, l2_bias)
    _check(x, topk_idx, topk_weights, layer.hidden)
    if layer.gated != spec.gated:
        raise ArgumentError(
            f"activation {spec.kind!r} needs {2 if spec.gated else 1} * intermediate L1 rows, but the weights have "
            f"{2 if layer.gated else 1} * {layer.intermediate}. Choose another activation or other weights."
        )
    num_tokens, num_topk = topk_idx.shape
    flat_idx = topk_idx.to(torch.int64).flatten()
    flat_weights = topk_weights.to(torch.float64).flatten()
    counts = expert_counts(topk_idx, layer.num_experts, expert_offset)
    local = is_local(flat_idx, layer.num_experts, expert_offset)
    # A stable sort by expert; what is not local comes last and is cut off.
    key = torch.where(local, flat_idx - expert_offset, layer.num_experts)
    pairs = torch.argsort(key, stable=True)[: int(local.sum())]
    acts, l1_acts = round_acts(x, points.l1_acts)

    before = points.topk_weight_stage == "before_requant"
    rounds_partial = points.partial == "bf16"
    partials = torch.zeros(
        num_tokens * num_topk, layer.hidden, dtype=torch.bfloat16 if rounds_partial else torch.float64, device=x.device
    )
    step = max(1, _CHUNK_ELEMENTS // max(layer.hidden, 2 * layer.intermediate))
    kept: list[tuple[Tensor, Tensor, QuantizedTensor | None]] = []
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count == 0:
            continue
        l1, l2 = layer.values(expert)
        for chunk in torch.split(pairs[start : start + count], step):
            gate_up = layer.scale_l1(gemm_reference(acts[chunk // num_topk], l1), expert)
            gate_up = _bf16_if(gate_up, points.gate_up)
            topk_weight = flat_weights[chunk].unsqueeze(1)
            hidden = activate(gate_up, spec)
            if before:
                hidden = hidden * topk_weight
            scale = None if l2_act_scales is None else l2_act_scales[expert].float().expand(len(chunk))
            if points.l2_acts in _FORESEEN_MAX:
                element_max = _FORESEEN_MAX[points.l2_acts]
                token_scale = _token_scales(x, l1_acts, element_max)[chunk // num_topk]
                weight = flat_weights[chunk] if before else None
                scale = layer.foresee_acts_scale(token_scale, l1, expert, spec, weight, element_max)
            rounded, l2_acts = round_acts(hidden, points.l2_acts, scale)
            result = gemm_reference(rounded, l2) * layer.l2_alphas[expert]
            if layer.l2_bias is not None:
                result += layer.l2_bias[expert] * (topk_weight if before else 1.0)
            if not before:
                result *= topk_weight
            partials[chunk] = _bf16_if(result, points.partial).to(partials.dtype)
            if return_intermediates:
                kept.append((gate_up, hidden, l2_acts))
        start += count
    intermediates = None
    if return_intermediates:
        intermediates = _intermediates(pairs, key, num_topk, kept, l1_acts, partials, layer)
    y = _combine(partials.view(num_tokens, num_topk, layer.hidden), points, routed_scaling_factor)
    return MoeReference(y=y, expert_counts=counts, intermediates=intermediates)


def _combine(partials: Tensor, points: RoundingPoints, routed_scaling_factor: float) -> Tensor:
    dtype = torch.float32 if points.sum == "fp32" else torch.float64
    total = torch.zeros(partials.shape[0], partials.shape[2], dtype=dtype, device=partials.device)
    for slot in range(partials.shape[1]):
        total += partials[:, slot].to(dtype)
    total *= routed_scaling_factor
    return _bf16_if(total, points.out).to(torch.float64)


def _intermediates(
    pairs: Tensor,
    key: Tensor,
    num_topk: int,
    kept: list[tuple[Tensor, Tensor, QuantizedTensor | None]],
    l1_acts: QuantizedTensor | None,
    partials: Tensor,
    layer: Layer,
) -> MoeIntermediates:
    rows = layer.intermediate * (2 if layer.gated else 1)
    empty = partials.new_zeros(0, rows, dtype=torch.float64)
    quantized = [q for _, _, q in kept if q is not None]
    return MoeIntermediates(
        token_idx=pairs // num_topk,
        slot_idx=pairs % num_topk,
        expert_idx=key[pairs],
        gate_up=torch.cat([gate_up for gate_up, _, _ in kept]) if kept else empty,
        acts=torch.cat([acts for _, acts, _ in kept]) if kept else empty[:, : layer.intermediate],
        l1_acts=l1_acts,
        l2_acts=_cat(quantized) if quantized else None,
        partials=partials[pairs].to(torch.float64),
    )


def _cat(parts: list[QuantizedTensor]) -> QuantizedTensor:
    def cat(tensors: list[Tensor]) -> Tensor:
        dtype = tensors[0].dtype
        if dtype.itemsize == 1:
            return torch.cat([t.view(torch.uint8) for t in tensors]).view(dtype)
        return torch.cat(tensors)

    scales = [part.global_scale for part in parts if part.global_scale is not None]
    return QuantizedTensor(
        codes=cat([part.codes for part in parts]),
        sf=cat([part.sf for part in parts]),
        format=parts[0].format,
        global_scale=cat(scales) if scales else None,
    )
