"""Formats give the same bits on CUDA as on the CPU."""

from collections.abc import Callable

import pytest
import torch

from megamoe_jit.formats.adapt import adapt_nvfp4_to_mxfp4, convert_weights_to_nvfp4
from megamoe_jit.formats.block_scaled import (
    QuantizedTensor,
    quantize_to_fp8,
    quantize_to_mxfp4,
    quantize_to_mxfp8,
    quantize_to_nvfp4,
    quantize_weight_to_nvfp4,
)
from megamoe_jit.formats.fp4 import encode_e2m1
from megamoe_jit.formats.fp8 import encode_e4m3, encode_e5m2, encode_ue4m3, encode_ue8m0
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.reference.moe import moe_reference
from megamoe_jit.reference.rounding_points import list_rounding_points, rounding_points
from tests.marks import needs_gpu

pytestmark = needs_gpu


def same_bits(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(
        a.cpu().reshape(-1).view(torch.uint8), b.cpu().reshape(-1).view(torch.uint8)
    )


@pytest.mark.parametrize("encode", [encode_e2m1, encode_e4m3, encode_ue4m3, encode_e5m2, encode_ue8m0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codecs(encode: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1 << 20,), dtype=torch.int64, generator=generator).to(torch.int32)
    values = torch.cat((bits.view(torch.float32), torch.randn(1 << 20, generator=generator) * 4)).to(dtype)
    assert same_bits(encode(values.cuda()), encode(values))


@pytest.mark.parametrize(
    "quantize",
    [
        quantize_to_nvfp4,
        lambda x: quantize_to_nvfp4(x, global_scale="token"),
        quantize_weight_to_nvfp4,
        quantize_to_mxfp4,
        quantize_to_mxfp8,
        quantize_to_fp8,
        lambda x: quantize_to_fp8(x, gran_k=128),
    ],
)
def test_quantisers(quantize: Callable[[torch.Tensor], QuantizedTensor]) -> None:
    x = torch.randn(4, 512, 1000, generator=torch.Generator().manual_seed(1))
    on_gpu, on_cpu = quantize(x.cuda()), quantize(x)
    for name in ("codes", "sf", "global_scale"):
        assert same_bits(getattr(on_gpu, name), getattr(on_cpu, name)), name
    assert same_bits(on_gpu.dequantize(), on_cpu.dequantize())


def test_conversions() -> None:
    w = MoeWeights.random(2, 512, 256, seed=1)
    for method in ("max", "requantize"):
        on_gpu = adapt_nvfp4_to_mxfp4(w.l1_codes.cuda(), w.l1_sf.cuda(), method=method)  # type: ignore[arg-type]
        on_cpu = adapt_nvfp4_to_mxfp4(w.l1_codes, w.l1_sf, method=method)  # type: ignore[arg-type]
        assert same_bits(on_gpu.codes, on_cpu.codes)
        assert same_bits(on_gpu.sf, on_cpu.sf)
    m = MoeWeights.random(2, 512, 256, seed=1, checkpoint="mxfp4")
    assert same_bits(convert_weights_to_nvfp4(m.to("cuda")).l1_sf, convert_weights_to_nvfp4(m).l1_sf)
    assert MoeWeights.random(1, 64, 64, device="cuda").device.type == "cuda"


@pytest.mark.parametrize("name", list_rounding_points())
def test_oracle(name: str) -> None:
    weights = MoeWeights.random(4, 256, 192, seed=2, checkpoint=rounding_points(name).checkpoint or "nvfp4", bias=True)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 256, generator=generator).bfloat16()
    topk_idx = torch.rand(50, 4, generator=generator).topk(2).indices
    topk_weights = torch.rand(50, 2, generator=generator)
    on_cpu = moe_reference(x, topk_idx, topk_weights, weights, rounding=name).y
    on_gpu = moe_reference(x.cuda(), topk_idx.cuda(), topk_weights.cuda(), weights.to("cuda"), rounding=name).y
    assert float((on_gpu.cpu() - on_cpu).norm() / on_cpu.norm()) < 1e-4, "sums in another order may move a rounding"
