"""Block-scaled tensors: quantise, hold and dequantise NVFP4, MXFP4, MXFP8 and FP8 with float32 scales.

| format | codes | scale factor `sf` | `global_scale` |
|---|---|---|---|
| NVFP4 | E2M1 | UE4M3, one for 16 values of K | float32 multiplier, one a tensor, a row (token) or an expert |
| MXFP4 | E2M1 | UE8M0, one for 32 values | none |
| MXFP8 | E4M3 | UE8M0, one for 32 values | none |
| FP8_TOKEN | E4M3 | float32, one a row | none |
| FP8_BLOCK | E4M3 | float32, one for 128 values | none |
| FP8_512 | E4M3 | float32, one for 512 values | none |

Blocks are counted along the last dimension K from 0; a last block may be short, and counts as padded with zeros.
All arithmetic is float32 (float64 input is rounded to float32 first), division and products each rounded to nearest
even, so that a kernel that follows the docstrings gets the same bits. In the error bounds S is the scale of the
element, `sf * global_scale`, and x the element; rounding in float32 adds at most a factor 1 + 2^-18. A NaN makes its
block NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.fp4 import E2M1_MAX, decode_fp4, encode_e2m1, pack_fp4
from megamoe_jit.formats.fp8 import (
    E4M3_MAX,
    E4M3_MIN_SUBNORMAL,
    decode_e4m3,
    decode_ue4m3,
    decode_ue8m0,
    encode_e4m3,
    encode_ue4m3,
    encode_ue8m0,
)
from megamoe_jit.formats.rounding import float32_for_rounding

MIN_AMAX = 1e-10  # least maximum that a scale is made for: keeps scales of all-zero blocks finite and normal
NVFP4_GRAN_K = 16
MX_GRAN_K = 32
FP8_GRAN_K = 128
FP8_SEARCHED_GRAN_K = 512
# Scales that are tried for a block of 512, over the least of them: quarters of a binade; and their squares.
_SEARCH_STEPS = tuple(float(torch.tensor(2 ** (i / 4), dtype=torch.float32)) for i in range(4))
_SEARCH_WEIGHTS = tuple(float(torch.tensor(2 ** (i / 2), dtype=torch.float32)) for i in range(4))
# A block keeps its row's foreseen scale down to this maximum: most bits of its values then still lie above 2^-6, E4M3's
# smallest normal number.
LEAST_FORESEEN = 0.25
NVFP4_MAX = E4M3_MAX * E2M1_MAX  # 2688: largest value over global_scale


class QuantFormat(Enum):
    """Formats of a `QuantizedTensor`."""

    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"
    MXFP8 = "mxfp8"
    FP8_TOKEN = "fp8_token"
    FP8_BLOCK = "fp8_block"
    FP8_512 = "fp8_512"

    @property
    def gran_k(self) -> int | None:
        """Elements of K that share a scale factor; None when a whole row does."""
        return _GRAN_K[self]

    @property
    def is_fp4(self) -> bool:
        """Whether codes are E2M1, packed two to a byte."""
        return self in (QuantFormat.NVFP4, QuantFormat.MXFP4)


_GRAN_K = {
    QuantFormat.NVFP4: NVFP4_GRAN_K,
    QuantFormat.MXFP4: MX_GRAN_K,
    QuantFormat.MXFP8: MX_GRAN_K,
    QuantFormat.FP8_TOKEN: None,
    QuantFormat.FP8_BLOCK: FP8_GRAN_K,
    QuantFormat.FP8_512: FP8_SEARCHED_GRAN_K,
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedTensor:
    """Codes with their scale factors; which is which stands in the table of this module.

    Attributes:
        codes: uint8 [..., K/2] packed (FP4 formats) or float8_e4m3fn [..., K].
        sf: float8_e4m3fn [..., ceil(K/16)], float8_e8m0fnu [..., ceil(K/32)], float32 [..., ceil(K/128 or 512)] or
        [...].
        format: the QuantFormat.
        global_scale: float32 multiplier whose shape is a leading part of [...] (scalar: (), per expert: (E,)), or None.
    """

    codes: Tensor
    sf: Tensor
    format: QuantFormat
    global_scale: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Logical shape [..., K]."""
        if self.format.is_fp4:
            return torch.Size((*self.codes.shape[:-1], 2 * self.codes.shape[-1]))
        return self.codes.shape

    def scales(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the scale of each element, global scale included, broadcastable to `shape` ([..., K] or [..., 1])."""
        if self.format is QuantFormat.FP8_TOKEN:
            return self.sf.to(dtype).unsqueeze(-1)
        if self.format is QuantFormat.NVFP4:
            sf = decode_ue4m3(self.sf, dtype)
        elif self.format in (QuantFormat.FP8_BLOCK, QuantFormat.FP8_512):
            sf = self.sf.to(dtype)
        else:
            sf = decode_ue8m0(self.sf, dtype)
        if self.global_scale is not None:
            sf = sf * _over_leading(self.global_scale.to(dtype), sf.ndim)
        return expand_sf(sf, self.shape[-1], self.format.gran_k or 1)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values [..., K]: exact in float64; in float32 only the product with a global scale rounds, once.

        The block scale is applied before the global scale, since code x block scale is exact (6 significant bits).
        """
        values = decode_fp4(self.codes, dtype) if self.format.is_fp4 else decode_e4m3(self.codes, dtype)
        if self.global_scale is None:
            return values.mul_(self.scales(dtype))
        blocks = QuantizedTensor(codes=self.codes, sf=self.sf, format=self.format)
        return values.mul_(blocks.scales(dtype)).mul_(_over_leading(self.global_scale.to(dtype), values.ndim))


def expand_sf(sf: Tensor, k: int, gran_k: int) -> Tensor:
    """Repeat each of the scale factors [..., ceil(k/gran_k)] for its `gran_k` elements: [..., k]."""
    return sf.unsqueeze(-1).expand(*sf.shape, gran_k).flatten(-2)[..., :k]


def _over_leading(scale: Tensor, ndim: int) -> Tensor:
    """Append dimensions of size 1: a scale of leading dimensions then broadcasts over `ndim` dimensions."""
    return scale.reshape(*scale.shape, *(1,) * (ndim - scale.ndim))


def _blocks(x: Tensor, gran_k: int) -> Tensor:
    """Return float32 x as [..., ceil(K/gran_k), gran_k], zero-padded."""
    pad = -x.shape[-1] % gran_k
    padded = F.pad(x, (0, pad)) if pad else x
    return padded.reshape(*padded.shape[:-1], padded.shape[-1] // gran_k, gran_k)


def _unblock(blocks: Tensor, k: int) -> Tensor:
    return blocks.flatten(-2)[..., :k].contiguous()


def _amax(x: Tensor, dim: int | tuple[int, ...] | None = -1) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros(x.shape[:-1]) if dim == -1 else x.new_zeros(())
    return x.abs().amax(dim=() if dim is None else dim)


def true_quotient(values: Tensor, divisor: float) -> Tensor:
    """Return values / divisor, correctly rounded: for a plain number torch multiplies by its reciprocal on CUDA."""
    return values / values.new_full((), divisor)


def _input(x: Tensor, *, packed: bool) -> Tensor:
    if x.ndim == 0 or (packed and x.shape[-1] % 2):
        raise ArgumentError(
            f"x has shape {list(x.shape)}, but [..., K]{' with an even K' if packed else ''} is needed"
            f"{' (two codes share a byte)' if packed else ''}. Add a dimension, or pad K with zeros."
        )
    return x.to(torch.float32) if x.dtype == torch.float64 else float32_for_rounding(x)


def quantize_to_nvfp4(
    x: Tensor, *, global_scale: Literal["tensor", "token"] | float | Tensor = "tensor", min_amax: float = MIN_AMAX
) -> QuantizedTensor:
    """Quantise x [..., K] to NVFP4.

    `global_scale` "tensor" is max(amax(x), min_amax) / 2688, "token" the same for each row; a number or a float32
    tensor whose shape is a leading part of x's is taken as it is. Per 16 values
    `sf = ue4m3(max(amax / (6 * global_scale), 2^-9))`, then
    `codes = e2m1(x / (sf * global_scale))`, all rounded to nearest even, codes saturating.

    Error: |dequantised - x| <= max(|x| / 5, S / 4, 6 * 2^-10 * global_scale); the last term is felt only in blocks
    whose sf is subnormal (amax below 6 * 2^-6 * global_scale), in others S <= (17/16) amax / 6. With a given
    global_scale, |x| - 2688 * global_scale is added where that is positive (saturation).
    Source: NVIDIA ModelOpt's NVFP4; deepseek-ai/DeepGEMM #409 (floor of 2^-9).
    """
    x32 = _input(x, packed=True)
    if isinstance(global_scale, Tensor):
        scale = global_scale.to(device=x.device, dtype=torch.float32)
        if scale.ndim >= x.ndim or scale.shape != x.shape[: scale.ndim]:
            raise ArgumentError(
                f"global_scale has shape {list(scale.shape)}, but a leading part of {list(x.shape[:-1])} is needed for "
                f"x {list(x.shape)}. Pass a scalar, one scale for each leading index, or 'tensor' or 'token'."
            )
    elif isinstance(global_scale, float | int):
        scale = torch.tensor(float(global_scale), dtype=torch.float32, device=x.device)
    elif global_scale in ("tensor", "token"):
        scale = true_quotient(_amax(x32, None if global_scale == "tensor" else -1).clamp(min=min_amax), NVFP4_MAX)
    else:
        raise ArgumentError(
            f"global_scale={global_scale!r} is unknown. Use 'tensor', 'token', a number or a float32 tensor."
        )
    return _to_nvfp4(x32, scale)


def _to_nvfp4(x32: Tensor, global_scale: Tensor) -> QuantizedTensor:
    blocks = _blocks(x32, NVFP4_GRAN_K)
    scale = _over_leading(global_scale, x32.ndim)
    sf = encode_ue4m3((_amax(blocks) / (E2M1_MAX * scale)).clamp(min=E4M3_MIN_SUBNORMAL))
    codes = encode_e2m1(blocks / (decode_ue4m3(sf) * scale).unsqueeze(-1))
    return QuantizedTensor(
        codes=pack_fp4(_unblock(codes, x32.shape[-1])), sf=sf, format=QuantFormat.NVFP4, global_scale=global_scale
    )


def quantize_weight_to_nvfp4(w: Tensor) -> QuantizedTensor:
    """Quantise weights [..., N, K] to NVFP4 with one global scale for each leading index (expert), as exporters do.

    The global scale is max(amax(w[e]), 1e-10) / 2688; the rest and the error bound are those of `quantize_to_nvfp4`.
    """
    if w.ndim < 2:
        raise ArgumentError(f"w has shape {list(w.shape)}, but [..., N, K] is needed. Add the row dimension.")
    w32 = _input(w, packed=True)
    amax = _amax(w32, (-2, -1)) if w32.numel() else w32.new_zeros(w32.shape[:-2])
    return _to_nvfp4(w32, true_quotient(amax.clamp(min=MIN_AMAX), NVFP4_MAX))


def _mx_scale(blocks: Tensor, element_max: float, rounding: Literal["ceil", "floor"], min_amax: float) -> Tensor:
    amax = _amax(blocks).clamp(min=min_amax)
    if rounding == "ceil":
        return encode_ue8m0(true_quotient(amax, element_max), "rp")
    if rounding == "floor":
        return encode_ue8m0(amax / 2.0 ** math.floor(math.log2(element_max)), "rz")
    raise ArgumentError(f"rounding={rounding!r} is unknown. Use 'ceil' (never saturates) or 'floor' (OCP MX).")


def quantize_to_mxfp4(
    x: Tensor, *, rounding: Literal["ceil", "floor"] = "ceil", min_amax: float = MIN_AMAX
) -> QuantizedTensor:
    """Quantise x [..., K] to MXFP4: per 32 values a power of two, and E2M1 codes of x over it, saturating.

    `ceil`: `sf = 2^ceil(log2(max(amax, min_amax) / 6))`; |dequantised - x| <= max(|x| / 5, S / 4) with S < amax / 3.
    `floor`: `sf = 2^(floor(log2(max(amax, min_amax))) - 2)`; |dequantised - x| <= max(|x| / 4, S / 4) with
    S <= amax / 4 (values between 6 S and 8 S saturate). Sources: OCP Microscaling Formats 1.0 (`floor`),
    DeepGEMM's UE8M0 scales (`ceil`).
    """
    x32 = _input(x, packed=True)
    blocks = _blocks(x32, MX_GRAN_K)
    sf = _mx_scale(blocks, E2M1_MAX, rounding, min_amax)
    codes = encode_e2m1(blocks / decode_ue8m0(sf).unsqueeze(-1))
    return QuantizedTensor(codes=pack_fp4(_unblock(codes, x32.shape[-1])), sf=sf, format=QuantFormat.MXFP4)


def quantize_to_mxfp8(
    x: Tensor, *, rounding: Literal["ceil", "floor"] = "ceil", min_amax: float = MIN_AMAX
) -> QuantizedTensor:
    """Quantise x [..., K] to MXFP8: per 32 values a power of two, and E4M3 codes of x over it, saturating.

    `ceil`: `sf = 2^ceil(log2(max(amax, min_amax) / 448))`; |dequantised - x| <= max(|x| / 17, S * 2^-10) with
    S < amax / 224.
    `floor`: `sf = 2^(floor(log2(max(amax, min_amax))) - 8)`; |dequantised - x| <= max(|x| / 8, S * 2^-10) (values
    between 448 S and 512 S saturate). Sources as for `quantize_to_mxfp4`.
    """
    x32 = _input(x, packed=False)
    blocks = _blocks(x32, MX_GRAN_K)
    sf = _mx_scale(blocks, E4M3_MAX, rounding, min_amax)
    codes = encode_e4m3(blocks / decode_ue8m0(sf).unsqueeze(-1)).view(torch.uint8)
    return QuantizedTensor(
        codes=_unblock(codes, x32.shape[-1]).view(torch.float8_e4m3fn), sf=sf, format=QuantFormat.MXFP8
    )


def _quantize_with_best_scale(x32: Tensor, min_amax: float) -> QuantizedTensor:
    blocks = _blocks(x32, FP8_SEARCHED_GRAN_K)
    smallest = true_quotient(_amax(blocks).clamp(min=min_amax), E4M3_MAX)
    sf, codes, least = smallest, torch.empty(0), torch.full_like(smallest, torch.inf)
    for step, weight in zip(_SEARCH_STEPS, _SEARCH_WEIGHTS, strict=True):
        scale = smallest * step
        scaled = blocks * (1.0 / scale).unsqueeze(-1)
        tried = encode_e4m3(scaled).view(torch.uint8)
        difference = (decode_e4m3(tried.view(torch.float8_e4m3fn)) - scaled).double() * 32
        error = (difference * difference).round().sum(-1).float() * weight
        is_better = error < least
        codes = torch.where(is_better.unsqueeze(-1), tried, codes) if codes.numel() else tried
        sf, least = torch.where(is_better, scale, sf), torch.where(is_better, error, least)
    codes = _unblock(codes, x32.shape[-1]).view(torch.float8_e4m3fn)
    return QuantizedTensor(codes=codes, sf=sf, format=QuantFormat.FP8_512)


def _power_of_two(values: Tensor) -> Tensor:
    """Return 2^floor(log2(v)) of positive normal float32 values, inside 2^-100 .. 2^100."""
    return (values.view(torch.int32) & 0x7F800000).view(torch.float32).clamp(2.0**-100, 2.0**100)


def quantize_to_fp8(
    x: Tensor, *, gran_k: int | None = None, min_amax: float = MIN_AMAX, foreseen: Tensor | None = None
) -> QuantizedTensor:
    """Quantise x [..., K] to E4M3 with a float32 scale for each row (gran_k None) or each 128 or 512 values of it.

    `s = max(amax, min_amax) / 448`, then `codes = e4m3(x * (1 / s))`: quotient, reciprocal and product are each rounded
    to float32, as the staging kernel and the L1 epilogue of sm_90a do.
    Error: |dequantised - x| <= max(|x| / 17, s * 2^-10).

    With gran_k 512 it is s 2^(i/4), i = 0 .. 3, with the least squared error, the first of equals. The errors of
    x / s are summed in units of 2^-10 of a squared unit, each rounded to an integer, then multiplied by 2^(i/2): so the
    choice depends on no order of sums. On normal values that is worth 4 % of the error, as much as scales for 64.

    `foreseen` float32 [...] (gran_k 128 only) has a scale for each row, a power of two, that all blocks take whose
    largest magnitude is zero or lies in LEAST_FORESEEN .. 448 times it. Others have s = 2^(floor(log2(max(amax,
    min_amax) / 448)) + 1), also a power of two: a kernel's sums can then go on from block to block exactly.
    """
    if gran_k not in (None, FP8_GRAN_K, FP8_SEARCHED_GRAN_K):
        raise ArgumentError(
            f"gran_k={gran_k} has no FP8 format here. Use None (a scale a row), {FP8_GRAN_K} or {FP8_SEARCHED_GRAN_K}."
        )
    x32 = _input(x, packed=False)
    if gran_k is None:
        sf = true_quotient(_amax(x32).clamp(min=min_amax), E4M3_MAX)
        codes = encode_e4m3(x32 * (1.0 / sf).unsqueeze(-1))
        return QuantizedTensor(codes=codes, sf=sf, format=QuantFormat.FP8_TOKEN)
    if gran_k == FP8_SEARCHED_GRAN_K:
        return _quantize_with_best_scale(x32, min_amax)
    blocks = _blocks(x32, gran_k)
    amax = _amax(blocks)
    sf = true_quotient(amax.clamp(min=min_amax), E4M3_MAX)
    if foreseen is not None:
        rows = foreseen.float().unsqueeze(-1)
        fits = (amax == 0) | ((amax >= LEAST_FORESEEN * rows) & (amax <= E4M3_MAX * rows))
        sf = torch.where(fits, rows, _power_of_two(amax.clamp(min=min_amax) * (2 / E4M3_MAX)))
    codes = encode_e4m3(blocks * (1.0 / sf).unsqueeze(-1)).view(torch.uint8)
    return QuantizedTensor(
        codes=_unblock(codes, x32.shape[-1]).view(torch.float8_e4m3fn), sf=sf, format=QuantFormat.FP8_BLOCK
    )
