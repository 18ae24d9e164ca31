"""Each recipe on a small MoE layer of real weights (see tests/real_data.py); `pytest -rP` shows the cosines."""

import functools
import sys
from collections.abc import Callable

import pytest
import torch

from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.reference.compare import cosine, rel_l2
from megamoe_jit.reference.moe import moe_reference
from megamoe_jit.reference.rounding_points import list_rounding_points, rounding_points
from tests.real_data import HIDDEN, INTERMEDIATE, NUM_EXPERTS, RealLayer, load_minilm, why_missing

pytestmark = [pytest.mark.realdata, pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))]

# Measured, then rounded down by about 0.005: nvfp4_nvfp4 0.9767, mxfp8_nvfp4 0.9691, fp8_nvfp4 0.9869, bf16_nvfp4
# 0.9886, mxfp8_mxfp4 0.9804, mxfp4_mxfp4 0.9551, fp8_mxfp4 0.9807, bf16_mxfp4 0.9814. FP4 weights alone cost most of
# it.
LEAST_COSINE = {
    "nvfp4_nvfp4": 0.972,
    "mxfp8_mxfp4": 0.975,
    "mxfp8_nvfp4": 0.965,
    "mxfp4_mxfp4": 0.95,
    "fp8_nvfp4": 0.982,
    "bf16_nvfp4": 0.984,
    "fp8_mxfp4": 0.976,
    "bf16_mxfp4": 0.976,
}


@functools.cache
def real_layer() -> RealLayer:
    return load_minilm(num_tokens=64)


@functools.cache
def routed() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    topk_idx = torch.rand(64, NUM_EXPERTS, generator=generator).topk(2).indices
    weights = torch.rand(64, 2, generator=generator) + 0.1
    return topk_idx, weights / weights.sum(1, keepdim=True)


def test_the_layer_is_what_it_says() -> None:
    layer = real_layer()
    assert layer.l1.shape == (NUM_EXPERTS, 2 * INTERMEDIATE, HIDDEN)
    assert layer.l2.shape == (NUM_EXPERTS, HIDDEN, INTERMEDIATE)
    assert layer.tokens.shape == (64, HIDDEN)
    for tensor in (layer.l1, layer.l2, layer.tokens):
        assert bool(torch.isfinite(tensor).all())
        assert float(tensor.std()) > 0.01
    assert len(layer.tokens.unique(dim=0)) == 64


@pytest.mark.parametrize("name", [name for name in list_rounding_points() if name != "exact"])
def test_recipes_keep_the_direction_of_the_truth(name: str, record_property: Callable[[str, object], None]) -> None:
    layer, (topk_idx, topk_weights) = real_layer(), routed()
    x = layer.tokens.bfloat16()
    truth = moe_reference(x, topk_idx, topk_weights, (layer.l1, layer.l2)).y
    weights = MoeWeights.from_float(layer.l1, layer.l2, rounding_points(name).checkpoint or "nvfp4")
    y = moe_reference(x, topk_idx, topk_weights, weights, rounding=name).y
    measured = cosine(y, truth)
    sys.stdout.write(
        f"{name}: cosine {measured:.6f}, relative L2 error {rel_l2(y, truth):.4f} to the unquantised layer"
    )
    record_property("cosine", measured)
    assert LEAST_COSINE[name] < measured < LEAST_COSINE[name] + 0.015
