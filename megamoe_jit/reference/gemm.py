"""One block-scaled matrix product in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.block_scaled import QuantFormat, QuantizedTensor
from megamoe_jit.formats.fp8 import decode_e4m3, encode_e4m3

# Products code x scale reach 2688; a shift by 2^-3 is the least that keeps them within E4M3's 448.
E4M3_PRODUCT_SHIFT = 8.0


def operand_values(operand: QuantizedTensor | Tensor, *, e4m3_product: bool = False) -> Tensor:
    """Return float64 values of a GEMM operand [..., K], its global scale included.

    With `e4m3_product` an NVFP4 operand is decoded as sm_90a's FP8 kernels do: 8 * e4m3(code * sf / 8), to nearest
    even.
    """
    if isinstance(operand, Tensor):
        return operand.to(torch.float64)
    if not e4m3_product:
        return operand.dequantize(torch.float64)
    if operand.format is not QuantFormat.NVFP4:
        raise ArgumentError(
            f"the operand is {operand.format.value}, but only nvfp4 is decoded to E4M3. Convert mxfp4 with "
            "mxfp4_to_nvfp4(...)."
        )
    exact = QuantizedTensor(codes=operand.codes, sf=operand.sf, format=operand.format).dequantize(torch.float32)
    values = decode_e4m3(encode_e4m3(exact.div_(E4M3_PRODUCT_SHIFT)), torch.float64).mul_(E4M3_PRODUCT_SHIFT)
    if operand.global_scale is not None:
        scale = operand.global_scale.to(torch.float64)
        values.mul_(scale.reshape(*scale.shape, *(1,) * (values.ndim - scale.ndim)))
    return values


def gemm_reference(
    acts: QuantizedTensor | Tensor, weights: QuantizedTensor | Tensor, *, e4m3_product: bool = False
) -> Tensor:
    """Return acts [M, K] @ weights [N, K]^T as float64 [M, N], each operand dequantised exactly.

    `e4m3_product` rounds the weights as `operand_values` says. float64 sums of a few thousand such products are off by
    1e-13 or so, relative to the sum of magnitudes: exact for every comparison here.
    """
    return operand_values(acts) @ operand_values(weights, e4m3_product=e4m3_product).mT
