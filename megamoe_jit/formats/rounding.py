"""Rounding in one step: wide floats to the narrow formats without rounding twice."""

from __future__ import annotations

import torch
from torch import Tensor

from megamoe_jit.errors import ArgumentError


def float32_for_rounding(values: Tensor) -> Tensor:
    """Return float32 values that round to every narrower format as `values` would.

    float16, bfloat16 and float32 pass exactly. float64 is rounded to odd (toward zero, last bit set when inexact),
    which keeps any later rounding to at most 22 significant bits correct. Raises ArgumentError for dtypes that are no
    float of 16 bits or more.
    Source: S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums" (rounding to odd).
    """
    if values.dtype == torch.float32:
        return values
    if values.dtype in (torch.float16, torch.bfloat16):
        return values.float()
    if values.dtype != torch.float64:
        raise ArgumentError(
            f"values have dtype {values.dtype}, but a float of 16, 32 or 64 bits is needed. Convert them first."
        )
    nearest = values.to(torch.float32)
    widened = nearest.to(torch.float64)
    too_large = widened.abs() > values.abs()
    inexact = widened != values
    bits = nearest.view(torch.int32) - too_large.to(torch.int32)
    return (bits | inexact.to(torch.int32)).view(torch.float32)


def round_to_bfloat16(values: Tensor) -> Tensor:
    """Return `values` rounded once to bfloat16 (to nearest, ties to even), in their own dtype."""
    return float32_for_rounding(values).to(torch.bfloat16).to(values.dtype)
