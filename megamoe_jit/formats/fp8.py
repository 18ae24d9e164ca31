"""8-bit encodings: E4M3 and E5M2 elements, UE4M3 and UE8M0 scale factors.

All encoders round once, to nearest with ties to even (UE8M0: as asked), and return a torch float8 tensor;
`.view(torch.uint8)` gives the bits. All decoders take that tensor or its bytes (uint8, int8) and are exact.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.rounding import float32_for_rounding

E4M3_MAX = 448.0
E4M3_MIN_NORMAL = 2.0**-6
E4M3_MIN_SUBNORMAL = 2.0**-9
E5M2_MAX = 57344.0
UE8M0_NAN = 0xFF
UE8M0_BIAS = 127

_E4M3_OVERFLOW = 464.0  # the tie between 448 and the absent 480: it still rounds to 448
_NAN = 0x7F
_BYTES = (torch.uint8, torch.int8)

Ue8m0Rounding = Literal["rp", "rz", "rn"]


def _as_dtype(codes: Tensor, dtype: torch.dtype) -> Tensor:
    if codes.dtype == dtype:
        return codes
    if codes.dtype in _BYTES:
        return codes.view(dtype)
    raise ArgumentError(
        f"codes have dtype {codes.dtype}, but {dtype} or its bytes as uint8 are needed. View the codes as torch.uint8."
    )


def as_e4m3(codes: Tensor) -> Tensor:
    """View E4M3 or UE4M3 bytes (uint8, int8 or float8_e4m3fn) as torch.float8_e4m3fn."""
    return _as_dtype(codes, torch.float8_e4m3fn)


def as_e8m0(codes: Tensor) -> Tensor:
    """View UE8M0 bytes (uint8, int8 or float8_e8m0fnu) as torch.float8_e8m0fnu."""
    return _as_dtype(codes, torch.float8_e8m0fnu)


def encode_e4m3(values: Tensor, *, satfinite: bool = True) -> Tensor:
    """Return `values` as torch.float8_e4m3fn, to nearest with ties to even; float64 is rounded once.

    With `satfinite` (`cvt.rn.satfinite.e4m3x2.f32`) magnitudes above 448 and infinities become 448 with their sign,
    else NaN (a tie at 464 still rounds to 448). NaN becomes 0x7F whatever its sign, the PTX ISA's canonical NaN
    (ml_dtypes keeps the sign). Results that round to zero keep their sign.
    """
    exact = float32_for_rounding(values)
    is_nan = torch.isnan(exact) if satfinite else ~(exact.abs() <= _E4M3_OVERFLOW)
    bits = exact.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    if not satfinite:  # overflow keeps the sign that ml_dtypes and IEEE-like conversions give it
        sign = (torch.signbit(exact) & ~torch.isnan(exact)).to(torch.uint8) << 7
        return torch.where(is_nan, sign | _NAN, bits).view(torch.float8_e4m3fn)
    return bits.masked_fill(is_nan, _NAN).view(torch.float8_e4m3fn)


def decode_e4m3(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values of E4M3 codes; 0x7F and 0xFF are NaN."""
    return as_e4m3(codes).to(torch.float32).to(dtype)


def encode_ue4m3(values: Tensor) -> Tensor:
    """Return `values` as UE4M3 scale factors (torch.float8_e4m3fn whose top bit is 0), saturating at 448.

    Negative values have no code and become 0; NaN becomes 0x7F. PTX has no conversion of this name: kernels convert
    magnitudes to E4M3.
    """
    return encode_e4m3(values.clamp(min=0)).view(torch.uint8).bitwise_and(0x7F).view(torch.float8_e4m3fn)


def decode_ue4m3(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values of UE4M3 scale factors: bit 7 is ignored, as tensor cores do; 0x7F is NaN."""
    return decode_e4m3(as_e4m3(codes).view(torch.uint8).bitwise_and(0x7F), dtype)


def encode_e5m2(values: Tensor, *, satfinite: bool = True) -> Tensor:
    """Return `values` as torch.float8_e5m2, to nearest with ties to even; float64 is rounded once.

    With `satfinite` (`cvt.rn.satfinite.e5m2x2.f32`) too large values and infinities become 57344 with their sign, else
    infinity. NaN becomes 0x7F whatever its sign (ml_dtypes uses 0x7E and keeps the sign).
    """
    exact = float32_for_rounding(values)
    bounded = exact.clamp(-E5M2_MAX, E5M2_MAX) if satfinite else exact
    bits = bounded.to(torch.float8_e5m2).view(torch.uint8)
    return bits.masked_fill(torch.isnan(exact), _NAN).view(torch.float8_e5m2)


def decode_e5m2(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values of E5M2 codes; 0x7C and 0xFC are infinities, larger magnitudes NaN."""
    return _as_dtype(codes, torch.float8_e5m2).to(torch.float32).to(dtype)


def encode_ue8m0(values: Tensor, rounding: Ue8m0Rounding = "rp") -> Tensor:
    """Return powers of two for the magnitudes of `values` as torch.float8_e8m0fnu.

    `rp` takes the next power of two at or above, `rz` at or below, `rn` the nearest (1.5 * 2^e goes up). Zero and all
    up to 2^-127 become 0x00 = 2^-127; infinity and overflow become 0xFE = 2^127 (`.satfinite`); NaN becomes 0xFF; the
    sign is dropped. float64 is rounded once. Source: PTX ISA, cvt to ue8m0x2 (which has `rp` and `rz`).
    """
    if rounding not in ("rp", "rz", "rn"):
        raise ArgumentError(f"rounding={rounding!r} is unknown. Use rp (up), rz (down) or rn (nearest).")
    exact = float32_for_rounding(values)
    bits = exact.view(torch.int32) & 0x7FFFFFFF
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    half = 1 << 22
    if rounding == "rp":
        # Below 2^-126 the exponent field is 0 and 2^-127 is the mantissa 2^22.
        up = torch.where(exponent == 0, mantissa > half, mantissa > 0)
    elif rounding == "rn":
        up = torch.where(exponent == 0, mantissa >= half + half // 2, mantissa >= half)
    else:
        up = torch.zeros_like(exponent, dtype=torch.bool)
    code = (exponent + up.to(torch.int32)).clamp(max=UE8M0_NAN - 1)
    code = code.masked_fill(torch.isnan(exact), UE8M0_NAN)
    return code.to(torch.uint8).view(torch.float8_e8m0fnu)


def decode_ue8m0(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return 2^(code - 127) for UE8M0 codes: 0x00 is 2^-127 (a float32 subnormal), 0xFF is NaN."""
    code = as_e8m0(codes).view(torch.uint8).to(torch.int32)
    bits = (code << 23).masked_fill(code == 0, 1 << 22).masked_fill(code == UE8M0_NAN, 0x7FC00000)
    return bits.view(torch.float32).to(dtype)
