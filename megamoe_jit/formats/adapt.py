"""Between scale formats: NVFP4 to UE8M0 blocks of 32, MXFP4 to NVFP4, and global scales folded into block scales.

The first loses accuracy, the second is exact or refused, the third rounds every block scale a second time.
`conversion_loss` measures any of them; docs/numerics.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.block_scaled import (
    MX_GRAN_K,
    NVFP4_GRAN_K,
    QuantFormat,
    QuantizedTensor,
    expand_sf,
    true_quotient,
)
from megamoe_jit.formats.fp4 import E2M1_MAX, decode_e2m1, decode_fp4, encode_e2m1, pack_fp4, packed_bytes
from megamoe_jit.formats.fp8 import (
    UE8M0_BIAS,
    UE8M0_NAN,
    Ue8m0Rounding,
    as_e4m3,
    as_e8m0,
    decode_ue4m3,
    decode_ue8m0,
    encode_ue4m3,
    encode_ue8m0,
)
from megamoe_jit.formats.moe_weights import MoeWeights

AdaptMethod = Literal["max", "requantize"]

_UE4M3_MIN_EXPONENT, _UE4M3_MAX_EXPONENT = -9, 8  # the powers of two that UE4M3 holds
_MIN_SHIFT = -126  # the global scale stays a normal float32
_CHUNK_ELEMENTS = 1 << 23  # elements widened to float32 at a time


def _by_rows(function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], codes: Tensor, sf: Tensor) -> QuantizedTensor:
    """Apply `function(codes, sf bytes) -> MXFP4 (codes, sf bytes)` to chunks of rows, to hold little widened."""
    rows, sf_rows = codes.reshape(-1, codes.shape[-1]), sf.view(torch.uint8).reshape(-1, sf.shape[-1])
    step = max(1, _CHUNK_ELEMENTS // max(1, 2 * codes.shape[-1]))
    parts = [function(rows[i : i + step], sf_rows[i : i + step]) for i in range(0, max(1, rows.shape[0]), step)]
    new_codes, new_sf = (torch.cat(part) for part in zip(*parts, strict=True))
    return QuantizedTensor(
        codes=new_codes.view(codes.shape),
        sf=new_sf.view(*sf.shape[:-1], new_sf.shape[-1]).view(torch.float8_e8m0fnu),
        format=QuantFormat.MXFP4,
    )


def adapt_nvfp4_to_mxfp4(
    codes: Tensor, sf: Tensor, *, method: AdaptMethod = "requantize", rounding: Ue8m0Rounding = "rn"
) -> QuantizedTensor:
    """Give NVFP4 weights one UE8M0 scale for 32 values instead of a UE4M3 scale for 16; lossy.

    Args:
        codes: packed [..., K/2], uint8, int8 or float4_e2m1fn_x2.
        sf: UE4M3 block scales [..., K/16], float8_e4m3fn or bytes. A global scale is not touched: keep it as alpha.
        method: "max" keeps the codes and takes the power of two nearest to the larger of the two scales; the block with
            the smaller scale is then wrong by the ratio of the two, and both by a factor of up to 3/2 ("rp": 2).
            "requantize" also rounds the codes to the new scale, the better of the two powers of two around amax / 6 by
            squared error.
        rounding: how "max" rounds the scale: "rn" nearest, "rp" up, "rz" down.

    Returns:
        MXFP4 with codes [..., K/2] and sf [..., ceil(K/32)]. Codes of blocks whose scale is 0 become 0: UE8M0 has no
        zero.

    Error of "requantize", with S the new scale and x the old value: |new - x| <= max(|x| / 2, S / 4) where the smaller
    power of two was taken (values above 6 S saturate), max(|x| / 5, S / 4) elsewhere. "max" has no bound below |x|
    times the ratio.
    """
    if method not in ("max", "requantize"):
        raise ArgumentError(f"method={method!r} is unknown. Use 'requantize' (better) or 'max' (keeps the codes).")
    codes, sf = packed_bytes(codes), as_e4m3(sf)
    if sf.shape != (*codes.shape[:-1], -(-2 * codes.shape[-1] // NVFP4_GRAN_K)):
        raise ArgumentError(
            f"sf has shape {list(sf.shape)}, but codes {list(codes.shape)} need one scale for 16 values: "
            f"{[*codes.shape[:-1], -(-2 * codes.shape[-1] // NVFP4_GRAN_K)]}. Check which tensor is which."
        )

    def keep_codes(codes: Tensor, sf: Tensor) -> tuple[Tensor, Tensor]:
        scales = decode_ue4m3(sf)
        pairs = F.pad(scales, (0, scales.shape[-1] % 2)).view(sf.shape[0], -(-sf.shape[1] // 2), 2)
        new = encode_ue8m0(pairs.amax(dim=-1), rounding)
        dead = expand_sf(scales == 0, codes.shape[-1], NVFP4_GRAN_K // 2)
        return codes.masked_fill(dead, 0), new.view(torch.uint8)

    def requantize(codes: Tensor, sf: Tensor) -> tuple[Tensor, Tensor]:
        k = 2 * codes.shape[-1]
        values = decode_fp4(codes) * expand_sf(decode_ue4m3(sf), k, NVFP4_GRAN_K)
        blocks = F.pad(values, (0, -k % MX_GRAN_K)).view(values.shape[0], -(-k // MX_GRAN_K), MX_GRAN_K)
        up = encode_ue8m0(true_quotient(blocks.abs().amax(dim=-1), E2M1_MAX), "rp").view(torch.uint8)
        down = up - (up > 0).to(torch.uint8)
        tried = [_round_to(blocks, candidate) for candidate in (up, down)]
        take_down = tried[1][1] < tried[0][1]
        new_codes = torch.where(take_down.unsqueeze(-1), tried[1][0], tried[0][0])
        return pack_fp4(new_codes.flatten(-2)[..., :k]), torch.where(take_down, down, up)

    return _by_rows(keep_codes if method == "max" else requantize, codes, sf)


def _round_to(blocks: Tensor, sf: Tensor) -> tuple[Tensor, Tensor]:
    """Return E2M1 codes of blocks [..., 32] over the UE8M0 scales `sf` and the squared error of each block."""
    scale = decode_ue8m0(sf).unsqueeze(-1)
    codes = encode_e2m1(blocks / scale)
    # In float64 the sum is exact, so that CPU and CUDA make the same choice.
    return codes, (decode_e2m1(codes) * scale - blocks).double().square().sum(dim=-1)


def mxfp4_to_nvfp4(codes: Tensor, sf: Tensor, *, allow_rounding: bool = False) -> QuantizedTensor:
    """Write MXFP4 weights as NVFP4: each UE8M0 scale becomes two equal UE4M3 scales times a power of two a matrix.

    Args:
        codes: packed [..., N, K/2].
        sf: UE8M0 [..., N, K/32], float8_e8m0fnu or bytes.
        allow_rounding: for groups whose scale is more than 2^17 below the largest of their matrix, round the codes to
            the least scale instead of raising.

    Returns:
        NVFP4 with sf [..., N, K/16] and global_scale [...] = 2^shift. Exact unless rounding was allowed and needed.
        A group of zero codes gets the scale in range that is nearest to its own.

    Raises ArgumentError that says how many groups would round, and for NaN scales.
    """
    codes, exponents = packed_bytes(codes), as_e8m0(sf).view(torch.uint8).to(torch.int32) - UE8M0_BIAS
    if (
        codes.ndim < 2
        or exponents.shape != (*codes.shape[:-1], codes.shape[-1] * 2 // MX_GRAN_K)
        or codes.shape[-1] % 16
    ):
        raise ArgumentError(
            f"codes {list(codes.shape)} and sf {list(sf.shape)} do not fit: [..., N, K/2] and [..., N, K/32] with K a "
            "multiple of 32 are needed. Check which tensor is which."
        )
    if bool((exponents == UE8M0_NAN - UE8M0_BIAS).any()):
        raise ArgumentError("sf holds NaN scales (byte 0xFF), but each must be a number. The checkpoint is damaged.")
    groups = codes.view(*exponents.shape, MX_GRAN_K // 2)
    used = ((groups & 0x77) != 0).any(dim=-1)
    lowest = torch.iinfo(torch.int32).min // 2
    largest = exponents.masked_fill(~used, lowest).amax(dim=(-2, -1))
    shift = (largest - _UE4M3_MAX_EXPONENT).clamp(min=_MIN_SHIFT)
    relative = exponents - shift[..., None, None]
    too_small = used & (relative < _UE4M3_MIN_EXPONENT)
    if bool(too_small.any()):
        if not allow_rounding:
            raise ArgumentError(
                f"{int(too_small.sum())} of {int(used.sum())} groups have a scale more than 2^17 below the largest of "
                "their matrix, but UE4M3 spans 2^-9..2^8. Use a recipe for MXFP4 on Blackwell, or pass "
                "allow_rounding=True."
            )
        codes = _requantize_small(codes, too_small, relative)
    new_sf = encode_ue4m3(torch.exp2(relative.clamp(_UE4M3_MIN_EXPONENT, _UE4M3_MAX_EXPONENT).float()))
    return QuantizedTensor(
        codes=codes,
        sf=new_sf.view(torch.uint8).repeat_interleave(MX_GRAN_K // NVFP4_GRAN_K, dim=-1).view(torch.float8_e4m3fn),
        format=QuantFormat.NVFP4,
        global_scale=torch.exp2(shift.double()).float(),
    )


def _requantize_small(codes: Tensor, too_small: Tensor, relative: Tensor) -> Tensor:
    """Return codes with the marked groups rounded to the scale 2^-9."""
    groups = codes.view(*relative.shape, MX_GRAN_K // 2)
    excess = torch.exp2((relative[too_small] - _UE4M3_MIN_EXPONENT).clamp(min=-60).float())
    groups = groups.clone()
    groups[too_small] = pack_fp4(encode_e2m1(decode_fp4(groups[too_small]) * excess.unsqueeze(-1)))
    return groups.view(codes.shape)


def fold_global_scale(weight: QuantizedTensor, *, keep: float | Tensor = 1.0) -> QuantizedTensor:
    """Fold an NVFP4 global scale into the block scales, but for the part `keep`; lossy.

    The new block scales are `ue4m3(sf * global_scale / keep)`, rounded to nearest and saturating at 448, and the new
    global scale is `keep`, a number or a float32 tensor whose shape is a leading part of the weight's. Each block scale
    is off by up to 1/17 of itself where it stays above 2^-6, and by up to all of it below: with keep=1 the scales of
    trained weights are mostly subnormal (a block maximum of 0.05 makes a scale of 2^-7, which has two bits left).
    Offered for comparison; kernels keep the scales apart.
    """
    if weight.format is not QuantFormat.NVFP4 or weight.global_scale is None:
        raise ArgumentError(
            f"the weight is {weight.format.value} {'with' if weight.global_scale is not None else 'without'} a global "
            "scale, but NVFP4 with one is needed. There is nothing to fold."
        )
    kept = torch.as_tensor(keep, dtype=torch.float32, device=weight.sf.device)
    ndim = weight.sf.ndim
    factor = weight.global_scale.double().reshape(*weight.global_scale.shape, *(1,) * (ndim - weight.global_scale.ndim))
    factor = factor / kept.double().reshape(*kept.shape, *(1,) * (ndim - kept.ndim))
    return replace(weight, sf=encode_ue4m3(decode_ue4m3(weight.sf, torch.float64) * factor), global_scale=kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionLoss:
    """How far converted values are from the original ones.

    Attributes:
        rel_l2: norm of the difference over norm of the original.
        worst_block: the same for the worst block of 16 values.
        changed: share of values that differ.
        largest_factor: largest of new / old and old / new over values where neither is 0 (1.0: all equal).
        flushed: share of nonzero values that became 0.
    """

    rel_l2: float
    worst_block: float
    changed: float
    largest_factor: float
    flushed: float


def conversion_loss(original: QuantizedTensor, converted: QuantizedTensor) -> ConversionLoss:
    """Compare two quantised tensors of the same logical shape in float64."""
    if original.shape != converted.shape:
        raise ArgumentError(
            f"original has shape {list(original.shape)}, converted {list(converted.shape)}, but they must be equal. "
            "Compare a tensor with its own conversion."
        )
    old, new = original.dequantize(torch.float64), converted.dequantize(torch.float64)
    difference = (new - old).reshape(-1, NVFP4_GRAN_K) if old.shape[-1] % NVFP4_GRAN_K == 0 else new - old
    block_norms = old.reshape(difference.shape).norm(dim=-1)
    both = (old != 0) & (new != 0)
    ratio = (new[both] / old[both]).abs()
    nonzero = int((old != 0).sum())
    return ConversionLoss(
        rel_l2=float(difference.norm() / old.norm().clamp(min=1e-300)),
        worst_block=float((difference.norm(dim=-1) / block_norms.clamp(min=1e-300)).max()),
        changed=float((new != old).double().mean()),
        largest_factor=float(torch.maximum(ratio, 1 / ratio).max()) if ratio.numel() else 1.0,
        flushed=float(((old != 0) & (new == 0)).sum() / max(1, nonzero)),
    )


def adapt_weights_to_mxfp4(weights: MoeWeights, *, method: AdaptMethod = "requantize") -> MoeWeights:
    """Apply `adapt_nvfp4_to_mxfp4` to both matrices of a layer; the alphas stay. Lossy."""
    _need(weights, "nvfp4")
    l1 = adapt_nvfp4_to_mxfp4(weights.l1_codes, weights.l1_sf, method=method)
    l2 = adapt_nvfp4_to_mxfp4(weights.l2_codes, weights.l2_sf, method=method)
    return replace(weights, l1_codes=l1.codes, l1_sf=l1.sf, l2_codes=l2.codes, l2_sf=l2.sf, checkpoint="mxfp4")


def convert_weights_to_nvfp4(weights: MoeWeights, *, allow_rounding: bool = False) -> MoeWeights:
    """Write an MXFP4 layer as NVFP4 with `mxfp4_to_nvfp4`; gate, up and down of each expert get their own shift."""
    _need(weights, "mxfp4")
    parts = weights.l1_alphas.shape[1]
    l1 = mxfp4_to_nvfp4(
        weights.l1_codes.view(weights.num_experts, parts, weights.intermediate, -1),
        weights.l1_sf.view(torch.uint8).view(weights.num_experts, parts, weights.intermediate, -1),
        allow_rounding=allow_rounding,
    )
    l2 = mxfp4_to_nvfp4(weights.l2_codes, weights.l2_sf, allow_rounding=allow_rounding)
    assert l1.global_scale is not None
    assert l2.global_scale is not None
    return replace(
        weights,
        l1_codes=l1.codes.view(weights.l1_codes.shape),
        l1_sf=l1.sf.view(torch.uint8).view(*weights.l1_codes.shape[:2], -1).view(torch.float8_e4m3fn),
        l1_alphas=weights.l1_alphas * l1.global_scale,
        l2_codes=l2.codes,
        l2_sf=l2.sf,
        l2_alphas=weights.l2_alphas * l2.global_scale,
        checkpoint="nvfp4",
    )


def fold_alphas(weights: MoeWeights, *, per: Literal["expert", "layer", "nothing"] = "expert") -> MoeWeights:
    """Fold the alphas of an NVFP4 layer into its block scales; lossy (`fold_global_scale`), for comparison.

    `per` says what keeps an alpha: "expert" one for gate and up of each expert (the larger of the two), "layer" one for
    all experts (the largest), "nothing" none at all (all become 1).
    """
    _need(weights, "nvfp4")
    if per not in ("expert", "layer", "nothing"):
        raise ArgumentError(f"per={per!r} is unknown. Use 'expert', 'layer' or 'nothing'.")
    num_experts, parts = weights.l1_alphas.shape
    if per == "expert":
        l1_keep, l2_keep = weights.l1_alphas.amax(dim=1), weights.l2_alphas
    elif per == "layer":
        l1_keep, l2_keep = (a.amax().expand(num_experts) for a in (weights.l1_alphas, weights.l2_alphas))
    else:
        l1_keep = l2_keep = torch.ones_like(weights.l2_alphas)
    split = (num_experts, parts, weights.intermediate, -1)
    l1 = QuantizedTensor(
        codes=weights.l1_codes.view(split),
        sf=weights.l1_sf.view(torch.uint8).view(split).view(torch.float8_e4m3fn),
        format=QuantFormat.NVFP4,
        global_scale=weights.l1_alphas,
    )
    l1_sf = fold_global_scale(l1, keep=l1_keep).sf.view(torch.uint8).view(weights.l1_sf.shape)
    l2_sf = fold_global_scale(replace(weights.l2(), global_scale=weights.l2_alphas), keep=l2_keep).sf
    return replace(
        weights,
        l1_sf=l1_sf.view(torch.float8_e4m3fn),
        l1_alphas=l1_keep.unsqueeze(1).expand(-1, parts).contiguous(),
        l2_sf=l2_sf,
        l2_alphas=l2_keep.contiguous(),
    )


def _need(weights: MoeWeights, checkpoint: str) -> None:
    if weights.checkpoint != checkpoint:
        raise ArgumentError(
            f"weights are of an {weights.checkpoint} checkpoint, but {checkpoint} is needed. There is nothing to "
            "convert."
        )
