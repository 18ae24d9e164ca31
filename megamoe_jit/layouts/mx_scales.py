"""A reversible coding of MXFP4's UE8M0 scales as pairs of UE4M3 scales, for kernels that decode UE4M3 only.

A group of 32 codes with the scale 2^e becomes two groups of 16 with the UE4M3 scale 2^(e - shift), one shift for each
matrix (`formats.adapt.mxfp4_to_nvfp4`). UE4M3 holds 2^-9 .. 2^8, so the scale of a group of zero codes may not fit. Its
value is zero under any scale: its two bytes carry the UE8M0 byte in two nibbles instead, so that nothing is lost.

    some code not 0   byte 0 = byte 1 = UE4M3 of 2^(e - shift)
    all codes 0       byte 0 = UE8M0 byte / 16, byte 1 = UE8M0 byte % 16         (0 .. 15: small finite UE4M3 numbers)
"""

from __future__ import annotations

import torch
from torch import Tensor

_UE8M0_BIAS = 127
_GROUP_BYTES = 16  # codes of one UE8M0 group of 32

# Exponent of the UE4M3 byte of each power of two: mantissa bits 3, bias 7, subnormals 1, 2, 4 x 2^-9.
_EXPONENTS = {1: -9, 2: -8, 4: -7} | {(e + 7) << 3: e for e in range(-6, 9)}
# How often 2 divides a code's magnitude, counted in halves (0.5, 1, 1.5, 2, 3, 4, 6); zero: as often as one likes.
_FACTORS_OF_TWO = (99, 0, 1, 0, 2, 1, 3, 2)


def zero_groups(codes: Tensor) -> Tensor:
    """Return bool [..., K/32]: the groups of packed `codes` uint8 [..., K/2] whose values are all (+-) 0."""
    return ((codes.reshape(*codes.shape[:-1], -1, _GROUP_BYTES) & 0x77) == 0).all(dim=-1)


def stash_zero_groups(codes: Tensor, ue4m3: Tensor, ue8m0: Tensor) -> Tensor:
    """Return UE4M3 bytes `ue4m3` [..., K/16] with the bytes `ue8m0` [..., K/32] written over zero groups' scales."""
    halves = torch.stack((ue8m0 >> 4, ue8m0 & 15), dim=-1)
    pairs = ue4m3.reshape(*ue8m0.shape, 2)
    return torch.where(zero_groups(codes)[..., None], halves, pairs).reshape(ue4m3.shape)


def restore_ue8m0(codes: Tensor, ue4m3: Tensor, shift: Tensor) -> Tensor:
    """Return the UE8M0 bytes [..., N, K/32] of coded scales `ue4m3` uint8 [..., N, K/16]; `shift` int [...]."""
    pairs = ue4m3.reshape(*ue4m3.shape[:-1], -1, 2)
    exponents = torch.zeros(256, dtype=torch.int16, device=ue4m3.device)
    for byte, exponent in _EXPONENTS.items():
        exponents[byte] = exponent
    used = exponents[pairs[..., 0].int()] + shift[..., None, None] + _UE8M0_BIAS
    stashed = pairs[..., 0] << 4 | pairs[..., 1]
    return torch.where(zero_groups(codes), stashed, used.to(torch.uint8))


def rounded_in_e4m3(codes: Tensor, ue4m3: Tensor) -> int:
    """Return how many groups of 16 hold a code for which E4M3 cannot hold code x scale / 8; scales are powers of two.

    A code is n halves, so that the product is n x 2^(e - 4) and must be a multiple of E4M3's least step 2^-9. The upper
    end is safe: 6 x 2^8 / 8 = 192.
    """
    small = (ue4m3 < (7 - 5) << 3).nonzero(as_tuple=True)  # scales below 2^-5; the others are exact for every code
    if not small[0].numel():
        return 0
    groups = codes.reshape(*ue4m3.shape, -1)[small]
    magnitudes = torch.stack((groups & 7, groups >> 4 & 7), dim=-1).flatten(1)
    device = codes.device
    factors = torch.tensor(_FACTORS_OF_TWO, device=device)[magnitudes.int()].amin(dim=1)
    exponents = torch.full((256,), 99, device=device)
    for byte, exponent in _EXPONENTS.items():
        exponents[byte] = exponent
    return int((factors + exponents[ue4m3[small].int()] < -5).sum())
