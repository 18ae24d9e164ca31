import ml_dtypes
import numpy as np
import pytest
import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.block_scaled import (
    QuantFormat,
    QuantizedTensor,
    quantize_to_mxfp4,
    quantize_to_mxfp8,
    quantize_to_nvfp4,
)
from megamoe_jit.formats.fp4 import E2M1_MAGNITUDES, pack_fp4
from megamoe_jit.reference.gemm import gemm_reference, operand_values

GENERATOR = torch.Generator().manual_seed(0)


def test_products_are_those_of_the_dequantised_operands() -> None:
    acts = quantize_to_mxfp8(torch.randn(7, 64, generator=GENERATOR))
    weights = quantize_to_nvfp4(torch.randn(5, 64, generator=GENERATOR), global_scale=0.003)
    expected = acts.dequantize(torch.float64).numpy() @ weights.dequantize(torch.float64).numpy().T
    np.testing.assert_allclose(gemm_reference(acts, weights).numpy(), expected, rtol=1e-13)
    plain = torch.randn(7, 64, generator=GENERATOR)
    assert torch.equal(gemm_reference(plain, weights), plain.double() @ weights.dequantize(torch.float64).T)


def every_product() -> QuantizedTensor:
    """All 16 codes times all 127 scales."""
    codes = torch.arange(16, dtype=torch.uint8).expand(127, 16)
    sf = torch.arange(127, dtype=torch.uint8).view(127, 1).view(torch.float8_e4m3fn)
    return QuantizedTensor(codes=pack_fp4(codes), sf=sf, format=QuantFormat.NVFP4, global_scale=torch.tensor(0.25))


def test_every_code_times_every_scale_rounds_once_to_e4m3() -> None:
    exact = (
        np.array(E2M1_MAGNITUDES)
        * np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)[:, None]
    )
    expected = (exact / 8).astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * 8
    values = operand_values(every_product(), e4m3_product=True).numpy() * 4
    np.testing.assert_array_equal(values[:, :8], expected)
    np.testing.assert_array_equal(values[:, 8:], -expected)
    nonzero = exact[1:, 1:]
    assert nonzero.size == 882
    assert (nonzero != expected[1:, 1:]).sum() == 332, "332 of the 882 nonzero products are inexact at a shift of 2^-3"
    assert (expected[1:, 1:] == 0).sum() == 18


def test_only_nvfp4_is_decoded_to_e4m3() -> None:
    w = quantize_to_mxfp4(torch.randn(2, 32, generator=GENERATOR))
    with pytest.raises(ArgumentError, match="the operand is mxfp4, but only nvfp4 is decoded to E4M3"):
        operand_values(w, e4m3_product=True)
