"""E2M1, the 4-bit float: codes and values, two codes to a byte.

Code bits are sign : exponent (2) : mantissa (1); magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6. There is neither infinity nor
NaN. In a byte the element with the even index has the low nibble, in checkpoints and in registers alike.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.rounding import float32_for_rounding

E2M1_MAX = 6.0
E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_VALUES = E2M1_MAGNITUDES + tuple(-magnitude for magnitude in E2M1_MAGNITUDES)

_PACKED_DTYPES = (torch.uint8, torch.int8, torch.float4_e2m1fn_x2)


def _tie_up(threshold: float) -> float:
    """Return the least float32 above `threshold`: a tie there goes down to the even code."""
    return float(torch.nextafter(torch.tensor(threshold), torch.tensor(math.inf)))


# Least float32 magnitude of codes 1..7. Ties go to the even code: 0.25 -> 0, 0.75 -> 1, 1.25 -> 1, 1.75 -> 2, 2.5 -> 2,
# 3.5 -> 4, 5 -> 4.
_THRESHOLDS = (_tie_up(0.25), 0.75, _tie_up(1.25), 1.75, _tie_up(2.5), 3.5, _tie_up(5.0))


@functools.cache
def _thresholds(device: torch.device) -> Tensor:
    return torch.tensor(_THRESHOLDS, dtype=torch.float32, device=device)


@functools.cache
def _pair_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return values of both nibbles of each byte, [256, 2]."""
    byte = torch.arange(256, device=device)
    values = torch.tensor(E2M1_VALUES, dtype=dtype, device=device)
    return torch.stack((values[byte & 0xF], values[byte >> 4]), dim=1)


def encode_e2m1(values: Tensor) -> Tensor:
    """Return the E2M1 codes (uint8 0..15, one a byte) nearest to `values`, any float of 16 bits or more.

    Rounds to nearest, ties to the even code, and saturates at 6 (`cvt.rn.satfinite.e2m1x2.f32`): the sign of a zero
    result is kept, infinities become 6 with their sign, and NaN becomes +6 (0x7) whatever its sign. float64 is rounded
    once.
    Source: PTX ISA, cvt. (ml_dtypes agrees for all but NaN, which it turns into a zero.)
    """
    exact = float32_for_rounding(values).contiguous()
    magnitude = torch.bucketize(exact.abs(), _thresholds(exact.device), out_int32=True, right=True).to(torch.uint8)
    sign = (torch.signbit(exact) & ~torch.isnan(exact)).to(torch.uint8)
    return magnitude | (sign << 3)


def decode_e2m1(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values of E2M1 codes held one a byte (uint8 or int8; the upper nibble is ignored), exactly."""
    table = torch.tensor(E2M1_VALUES, dtype=dtype, device=codes.device)
    index = codes.view(torch.uint8).flatten().to(torch.int32) & 0xF
    return table.index_select(0, index).view(codes.shape)


def pack_fp4(codes: Tensor) -> Tensor:
    """Pack codes uint8 [..., K] (low nibbles count, K even) into bytes [..., K/2], the even index in the low nibble."""
    if codes.dtype not in (torch.uint8, torch.int8) or codes.ndim == 0 or codes.shape[-1] % 2:
        raise ArgumentError(
            f"codes are {codes.dtype} {list(codes.shape)}, but uint8 [..., K] with an even K is needed (two codes "
            "share a byte). Pad K by one zero code."
        )
    codes = codes.view(torch.uint8) & 0xF
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def packed_bytes(packed: Tensor) -> Tensor:
    """Return packed codes given as uint8, int8 or float4_e2m1fn_x2 as uint8 of the same shape, without a copy."""
    if packed.dtype not in _PACKED_DTYPES:
        raise ArgumentError(
            f"packed FP4 codes have dtype {packed.dtype}, but uint8, int8 or float4_e2m1fn_x2 is needed. "
            "View the bytes as torch.uint8."
        )
    return packed.view(torch.uint8)


def unpack_fp4(packed: Tensor) -> Tensor:
    """Return codes uint8 [..., K], one a byte, of packed codes [..., K/2]: the inverse of `pack_fp4`."""
    data = packed_bytes(packed)
    return torch.stack((data & 0xF, data >> 4), dim=-1).flatten(-2)


def decode_fp4(packed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values [..., K] of packed codes [..., K/2]."""
    data = packed_bytes(packed)
    pairs = _pair_table(data.device, dtype).index_select(0, data.flatten().to(torch.int32))
    return pairs.view(*data.shape[:-1], 2 * data.shape[-1])


def as_float4_x2(packed: Tensor) -> Tensor:
    """View packed codes [..., K/2] as torch.float4_e2m1fn_x2 (same shape, same storage)."""
    return packed_bytes(packed).view(torch.float4_e2m1fn_x2)
