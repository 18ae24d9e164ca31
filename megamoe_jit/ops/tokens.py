"""Tokens between their two forms: values, and the codes and scale factors that a recipe's buffer holds."""

from __future__ import annotations

import torch
from torch import Tensor

from megamoe_jit.formats.block_scaled import (
    QuantFormat,
    QuantizedTensor,
    quantize_to_fp8,
    quantize_to_mxfp4,
    quantize_to_mxfp8,
    quantize_to_nvfp4,
)
from megamoe_jit.recipes.recipe import Element, Operand, Recipe, ScaleType
from megamoe_jit.runtime.symmetric import SymmBuffer


def acts_format(operand: Operand) -> QuantFormat | None:
    """Return the format of quantised activations; None for BF16."""
    if operand.element is Element.BF16:
        return None
    return {
        (Element.E4M3, ScaleType.FP32): QuantFormat.FP8_TOKEN if operand.gran_k is None else QuantFormat.FP8_BLOCK,
        (Element.E4M3, ScaleType.UE8M0): QuantFormat.MXFP8,
        (Element.E2M1, ScaleType.UE8M0): QuantFormat.MXFP4,
        (Element.E2M1, ScaleType.UE4M3): QuantFormat.NVFP4,
    }[operand.element, operand.sf_type or ScaleType.FP32]


def quantize_tokens(x: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return tokens [num_tokens, hidden] he (codes, scale factors, second-level scales) of SymmBuffer's views."""
    form = acts_format(recipe.l1_acts)
    if form is None:
        return x, None, None
    if form is QuantFormat.FP8_TOKEN:
        quantized = quantize_to_fp8(x)
    elif form is QuantFormat.MXFP8:
        quantized = quantize_to_mxfp8(x)
    elif form is QuantFormat.MXFP4:
        quantized = quantize_to_mxfp4(x)
    else:
        quantized = quantize_to_nvfp4(x, global_scale="token")
    return quantized.codes, quantized.sf, quantized.global_scale


def token_values(buffer: SymmBuffer, num_tokens: int) -> Tensor:
    """Return a buffer's first tokens as float64 [num_tokens, hidden]: exactly what the codes in its views stand for."""
    form = acts_format(buffer.recipe.l1_acts)
    codes = buffer.x[:num_tokens]
    if form is None or buffer.x_sf is None:
        return codes.double()
    sf = buffer.x_sf[:num_tokens]
    if sf.dtype == torch.int32:
        sf = sf.view(torch.float8_e4m3fn if form is QuantFormat.NVFP4 else torch.float8_e8m0fnu)
    scales = None if buffer.x_scales is None else buffer.x_scales[:num_tokens]
    return QuantizedTensor(codes=codes, sf=sf, format=form, global_scale=scales).dequantize(torch.float64)
