"""The scale of a token's activations between the GEMMs, as recipes nvfp4_nvfp4 and fp8_* foresee it.

A kernel quantises a tile of L1's results before it has seen the token's other tiles, so it cannot know the token's
largest value. It foresees a scale from sizes instead, and takes a power of two: then the quantised values do not depend
on it, as long as they stay in the middle of what the format holds. For NVFP4 it is the second level's: block scale
factors must stay inside UE4M3's normal range (2^-6 .. 448), which is 2^15 wide. In E4M3 it is the only scale, and
blocks of 128 that do not fit it have one of their own (`quantize_to_fp8`).

    rms   = amax / 4                   of the token's values, amax = 2688 (NVFP4) or 448 (E4M3) times its own scale
    gate  = rms N_gate + B_gate        N = alpha x root mean square length of the expert's weight rows
    up    = rms N_up + B_up + |up_bias|  B = root mean square of its biases
    scale = 2^floor(log2(gate up f)), inside 2^-100 .. 2^100; without a gate up is gate

f is 1/8 for NVFP4, where the largest value of 16 is about twice gate up, and 1/4 for E4M3, where the largest of 128 is
about four times gate up, so that it comes to 16 .. 32. Activations that are multiplied by their top-k weight before
they are quantised have |gate up weight f|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.formats.block_scaled import NVFP4_MAX
from megamoe_jit.formats.fp8 import E4M3_MAX

_BLOCK_FACTORS = {NVFP4_MAX: 1 / 8, E4M3_MAX: 1 / 4}
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100


def row_norm(values: Tensor, alpha: Tensor) -> Tensor:
    """Return alpha x the root mean square length of the rows of values [N, K], float64 []."""
    return alpha.double() * values.double().square().sum(-1).mean().sqrt()


def foresee_acts_scale(
    token_scale: Tensor,
    l1: Tensor,
    row_alphas: Tensor,
    bias: Tensor | None,
    activation: ActivationSpec,
    weight: Tensor | None = None,
    *,
    element_max: float = NVFP4_MAX,
) -> Tensor:
    """Return float32 [T]: the scale of each token's activations at one expert.

    Args:
        token_scale: float [T], the tokens' own scales, amax / element_max.
        l1: values of the expert's L1 weights [rows, H], gate rows first, without alphas.
        row_alphas: float [rows], the alpha of each row (one for gate, one for up).
        bias: float [rows], or None.
        activation: ActivationSpec.
        weight: float [T], what the activations are multiplied by, or None.
        element_max: 2688 for NVFP4, 448 for E4M3.
    """
    rms = element_max / 4 * token_scale.double()
    halves = 2 if activation.gated else 1
    sizes = []
    for values, alphas, part in zip(
        l1.chunk(halves),
        row_alphas.chunk(halves),
        (None,) * halves if bias is None else bias.chunk(halves),
        strict=True,
    ):
        size = rms * row_norm(values, alphas[0])
        sizes.append(size if part is None else size + part.double().square().mean().sqrt())
    gate, up = sizes[0], sizes[-1]
    if activation.gated:
        up = up + abs(activation.up_bias)
    product = gate * up * _BLOCK_FACTORS[element_max]
    if weight is not None:
        product = (product * weight.double()).abs()
    return torch.exp2(product.log2().floor()).clamp(_SMALLEST, _LARGEST).float()
