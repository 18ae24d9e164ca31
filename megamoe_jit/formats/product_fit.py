"""The factor that makes NVFP4 weights nearest to themselves again after a decoder has rounded them to E4M3.

Hopper's FP8 kernels multiply 8 * e4m3(code * sf / 8) where code * sf is meant. That rounding is to nearest, and all the
same it is off on average: of the eight mantissas that a scale can have, times 1.5, more round down than up. The factor
of least squares, sum(w * v) / sum(v * v) over a matrix's exact values w and rounded ones v, takes the mean error out;
it costs nothing, since kernels multiply each expert's sums by an alpha anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megamoe_jit.formats.fp4 import decode_e2m1
from megamoe_jit.formats.fp8 import decode_e4m3, decode_ue4m3, encode_e4m3

_SHIFT = 8.0  # the least power of two that keeps every product of a code and a scale inside E4M3
_CHUNK_ROWS = 1 << 12


def e4m3_product_fit(codes: Tensor, sf: Tensor, *, branches: int = 1) -> Tensor:
    """Return float64 [E, branches]: the factor of each expert's branch (gate and up rows, or all rows).

    codes: uint8 [E, rows, K/2], E2M1 pairs; sf: UE4M3 bytes [E, rows, K/16]. Exact sums over the counts of each pair of
    magnitude and scale; 1 where every product is exact, or zero.
    """
    magnitudes = decode_e2m1(torch.arange(8, dtype=torch.uint8, device=codes.device)).double()
    scales = decode_ue4m3(torch.arange(128, dtype=torch.uint8, device=codes.device)).double()
    exact = (scales[:, None] * magnitudes).nan_to_num(0.0).flatten()  # byte 0x7F is no number
    rounded = decode_e4m3(encode_e4m3(exact / _SHIFT), torch.float64) * _SHIFT
    fits = codes.new_ones(codes.shape[0], branches, dtype=torch.float64)
    for expert in range(codes.shape[0]):
        for branch, (of_codes, of_sf) in enumerate(
            zip(codes[expert].chunk(branches), sf[expert].view(torch.uint8).chunk(branches), strict=True)
        ):
            counts = _count_products(of_codes, of_sf).double()
            squares = (counts * rounded * rounded).sum()
            fit = (counts * exact * rounded).sum() / squares
            fits[expert, branch] = torch.where(squares > 0, fit, 1.0)
    return fits


def _count_products(codes: Tensor, sf: Tensor) -> Tensor:
    """Return int64 [1024]: how often each scale (7 bits) meets each magnitude (3 bits) in a matrix."""
    counts = torch.zeros(1024, dtype=torch.int64, device=codes.device)
    for first in range(0, codes.shape[0], _CHUNK_ROWS):
        some, scales = (tensor[first : first + _CHUNK_ROWS] for tensor in (codes, sf))
        pairs = ((scales & 0x7F).short() * 8).repeat_interleave(8, dim=1)
        for nibbles in (some & 7, some >> 4 & 7):
            counts += torch.bincount((pairs + nibbles).flatten(), minlength=1024)
    return counts
