"""The Hopper kernels end to end against the recipe's float64 oracle, on a GPU."""

from __future__ import annotations

import pytest
import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.formats.block_scaled import quantize_to_fp8
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.ops.moe import MegaMoE, fp8_nvfp4_mega_moe, get_symm_buffer_for_nvfp4_mega_moe, stage_tokens
from megamoe_jit.ops.weights import transform_weights
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.sm90 import token_tiles
from megamoe_jit.reference.moe import expert_counts
from tests.kernels.one_kernel import one_kernel
from tests.kernels.oracle import BOUNDS, check_output, tokens_and_routing
from tests.marks import needs_sm90

pytestmark = needs_sm90
NVFP4_RECIPES = ("fp8_nvfp4", "bf16_nvfp4")


@pytest.mark.parametrize("recipe", BOUNDS)
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 33, 130, 700])
@pytest.mark.parametrize(
    ("hidden", "intermediate", "num_experts", "num_topk"), [(256, 256, 1, 1), (384, 784, 6, 2), (1040, 512, 64, 8)]
)
def test_agrees_with_the_oracle(
    recipe: str, num_tokens: int, hidden: int, intermediate: int, num_experts: int, num_topk: int
) -> None:
    """Token counts around every tile, padded widths, experts without tokens; twice, into poisoned memory."""
    if recipe.endswith("mxfp4"):
        hidden, intermediate = hidden // 32 * 32, intermediate // 32 * 32
    checkpoint = "nvfp4" if recipe.endswith("nvfp4") else "mxfp4"
    weights = MoeWeights.random(num_experts, hidden, intermediate, seed=1, device="cuda", checkpoint=checkpoint)
    moe = MegaMoE(weights, recipe=recipe, num_topk=num_topk, max_tokens_per_rank=768)
    x, topk_idx, topk_weights = tokens_and_routing(num_tokens, hidden, num_experts, num_topk)
    stats = torch.zeros(num_experts, dtype=torch.int32, device="cuda")
    first, second = (
        moe(x, topk_idx, topk_weights, out=torch.full_like(x, float("nan")), recv_stats=stats) for _ in range(2)
    )
    assert torch.equal(first.view(torch.int16), second.view(torch.int16))
    assert torch.equal(stats.long(), 2 * expert_counts(topk_idx, num_experts))
    check_output(moe, weights, x, topk_idx, topk_weights, first)


@pytest.mark.parametrize("recipe", NVFP4_RECIPES)
@pytest.mark.parametrize("fast_math", [True, False])
@pytest.mark.parametrize(
    "activation",
    [
        ActivationSpec(),
        ActivationSpec(clamp=0.5),
        ActivationSpec.swigluoai(),
        ActivationSpec(kind="gelu"),
        ActivationSpec(kind="gelu", up_bias=0.5, clamp=1.0),
        ActivationSpec(kind="relu2"),
        ActivationSpec(kind="relu2", clamp=0.7),
    ],
    ids=lambda spec: f"{spec.kind}-{spec.alpha}-{spec.up_bias}-{spec.clamp}",
)
def test_activations_and_biases(recipe: str, activation: ActivationSpec, fast_math: bool) -> None:
    weights = MoeWeights.random(5, 272, 336, seed=2, device="cuda", gated=activation.gated, bias=True)
    moe = MegaMoE(weights, recipe=recipe, activation=activation, fast_math=fast_math, routed_scaling_factor=2.5)
    x, topk_idx, topk_weights = tokens_and_routing(50, 272, 5, 3)
    y = moe(x, topk_idx, topk_weights)
    check_output(moe, weights, x, topk_idx, topk_weights, y, activation=activation, routed_scaling_factor=2.5)


@pytest.mark.parametrize("recipe", NVFP4_RECIPES)
@pytest.mark.parametrize(("low", "high"), [(0, 0x7F), (1, 24)], ids=["all", "smallest"])
def test_every_block_scale(recipe: str, low: int, high: int) -> None:
    """Block scales over all of UE4M3 (448 must not overflow), and the smallest: products are subnormal in E4M3."""
    generator = torch.Generator("cuda").manual_seed(5)
    weights = MoeWeights.random(2, 256, 256, seed=3, device="cuda")
    for sf in (weights.l1_sf, weights.l2_sf):
        drawn = torch.randint(low, high, sf.shape, generator=generator, device="cuda", dtype=torch.uint8)
        sf.view(torch.uint8).copy_(drawn)
    moe = MegaMoE(weights, recipe=recipe)
    x, topk_idx, topk_weights = tokens_and_routing(200, 256, 2, 1)
    check_output(moe, weights, x, topk_idx, topk_weights, moe(x, topk_idx, topk_weights))


@pytest.mark.parametrize("recipe", NVFP4_RECIPES)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("view_dtype", [torch.int32, torch.int64])
def test_views_filled_by_the_caller(recipe: str, index_dtype: torch.dtype, view_dtype: torch.dtype) -> None:
    """Codes written into the views, with one scale a token, give what staging gives."""
    weights = MoeWeights.random(4, 272, 256, seed=4, device="cuda")
    l1, l2 = transform_weights(weights, recipe, "sm_90a")
    buffer = get_symm_buffer_for_nvfp4_mega_moe(None, 4, 64, 2, 272, 256, recipe=recipe, topk_idx_dtype=view_dtype)
    x, topk_idx, topk_weights = tokens_and_routing(30, 272, 4, 2, index_dtype=index_dtype)
    x = (60 * x).to(torch.float8_e4m3fn).bfloat16()  # exact with a token's one scale, so that staging finds no better
    x[:, 7] = 448.0
    stage_tokens(x, topk_idx, topk_weights, buffer)
    staged = fp8_nvfp4_mega_moe(torch.empty_like(x), l1, l2, buffer)
    buffer.topk_idx.fill_(-1)
    if recipe == "fp8_nvfp4":
        quantized = quantize_to_fp8(x)
        buffer.fill(quantized.codes, quantized.sf, topk_idx, topk_weights)
    else:
        buffer.fill(x, None, topk_idx, topk_weights)
    filled = fp8_nvfp4_mega_moe(torch.empty_like(x), l1, l2, buffer, None, (1, 1, 16))
    assert torch.equal(staged, filled)
    stage_tokens(x, topk_idx, topk_weights, buffer)
    with pytest.raises(ArgumentError, match="30 tokens were staged"):
        fp8_nvfp4_mega_moe(torch.empty_like(x)[:20], l1, l2, buffer)


@pytest.mark.parametrize("recipe", NVFP4_RECIPES)
def test_strided_rows(recipe: str) -> None:
    """Rows of x and y may lie apart, at addresses that allow no wide access."""
    weights = MoeWeights.random(3, 272, 256, seed=6, device="cuda")
    moe = MegaMoE(weights, recipe=recipe)
    x, topk_idx, topk_weights = tokens_and_routing(20, 272, 3, 2)
    dense = moe(x, topk_idx, topk_weights)
    wide = torch.zeros(20, 301, dtype=torch.bfloat16, device="cuda")
    wide[:, 3:275] = x
    out = torch.full_like(wide, 7.0)
    moe(wide[:, 3:275], topk_idx, topk_weights, out=out[:, 5:277])
    assert torch.equal(out[:, 5:277], dense)
    assert bool((out[:, :5] == 7).all())
    assert bool((out[:, 277:] == 7).all())


@pytest.mark.parametrize("recipe", NVFP4_RECIPES)
def test_routing_extremes(recipe: str) -> None:
    """One expert gets everything; nobody goes anywhere; indices that are no expert are not routed."""
    weights = MoeWeights.random(8, 256, 256, seed=7, device="cuda")
    moe = MegaMoE(weights, recipe=recipe, num_topk=1, max_tokens_per_rank=300)
    x, topk_idx, topk_weights = tokens_and_routing(300, 256, 8, 1)
    everything = torch.full_like(topk_idx, 5)
    check_output(moe, weights, x, everything, topk_weights, moe(x, everything, topk_weights))
    for nowhere in (-1, 8, -(2**40)):
        y = moe(x, torch.full_like(topk_idx, nowhere), topk_weights, out=torch.full_like(x, float("nan")))
        assert bool((y == 0).all()), nowhere


@pytest.mark.parametrize("recipe", NVFP4_RECIPES)
def test_token_tiles_agree(recipe: str) -> None:
    """The token tile is a matter of speed: every one gives the same bits."""
    weights = MoeWeights.random(3, 512, 384, seed=9, device="cuda")
    x, topk_idx, topk_weights = tokens_and_routing(330, 512, 3, 2)
    outputs = {}
    problem = Problem(hidden=512, intermediate=384, num_experts=3, num_topk=2, max_tokens_per_rank=1)
    for tile in token_tiles(problem):
        with one_kernel(330, tile=tile):
            moe = MegaMoE(weights, recipe=recipe)
            outputs[tile] = moe(x, topk_idx, topk_weights)
            check_output(moe, weights, x, topk_idx, topk_weights, outputs[tile])
    for tile, y in outputs.items():
        assert torch.equal(y, outputs[8]), tile


def test_capture_in_a_graph() -> None:
    """A captured call replays on new tokens; a call that would have to load kernels inside a capture says so."""
    weights = MoeWeights.random(4, 256, 256, seed=8, device="cuda")
    moe = MegaMoE(weights, num_topk=2, max_tokens_per_rank=64)
    x, topk_idx, topk_weights = tokens_and_routing(40, 256, 4, 2)
    y = torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y.zero_()  # torch warns of a capture without work
        with pytest.raises(ArgumentError, match="capture"):
            moe(x, topk_idx, topk_weights, out=y)
    moe.prepare()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        moe(x, topk_idx, topk_weights, out=y)
    for seed in (1, 2):
        fresh, idx, weight = tokens_and_routing(40, 256, 4, 2, seed=seed)
        for target, source in ((x, fresh), (topk_idx, idx), (topk_weights, weight)):
            target.copy_(source)
        y.fill_(float("nan"))
        graph.replay()
        assert torch.equal(y, moe(fresh, idx, weight))
