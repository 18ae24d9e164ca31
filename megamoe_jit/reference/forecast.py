"""The second-level scale of NVFP4 activations between the GEMMs, as recipe nvfp4_nvfp4 foresees it.

A kernel quantises a tile of L1's results before it has seen the token's other tiles, so it cannot know the token's
largest value. It foresees a scale from sizes instead, and takes a power of two: then the quantised values do not depend
on it, as long as the block scale factors stay inside UE4M3's normal range (2^-6 .. 448), which is 2^15 wide.

    rms   = 672 s                      s = the token's own NVFP4 scale, amax / 2688: values are about amax / 4
    gate  = rms N_gate + B_gate        N = alpha x root mean square length of the expert's weight rows
    up    = rms N_up + B_up + |up_bias|  B = root mean square of its biases
    scale = 2^floor(log2(gate up / 8)), inside 2^-100 .. 2^100; without a gate up is gate

Activations that are multiplied by their top-k weight before they are quantised have |gate up weight / 8| in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megamoe_jit.formats.activation import ActivationSpec

_TOKEN_RMS = 2688 / 4
_BLOCK_FACTOR = 1 / 8
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
) -> Tensor:
    """Return float32 [T]: the scale of each token's activations at one expert.

    Args:
        token_scale: float [T], the tokens' own NVFP4 scales.
        l1: values of the expert's L1 weights [rows, H], gate rows first, without alphas.
        row_alphas: float [rows], the alpha of each row (one for gate, one for up).
        bias: float [rows], or None.
        activation: ActivationSpec.
        weight: float [T], what the activations are multiplied by, or None.
    """
    rms = _TOKEN_RMS * token_scale.double()
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
    product = gate * up * _BLOCK_FACTOR
    if weight is not None:
        product = (product * weight.double()).abs()
    return torch.exp2(product.log2().floor()).clamp(_SMALLEST, _LARGEST).float()
