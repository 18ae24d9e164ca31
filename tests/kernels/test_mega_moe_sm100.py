"""The fused Blackwell kernel in the emulator, its checker on, against each recipe's float64 oracle."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from megamoe_jit import (
    ActivationSpec,
    MegaMoE,
    MoeWeights,
    Problem,
    fp8_nvfp4_mega_moe,
    get_arch,
    get_recipe,
    get_symm_buffer_for_nvfp4_mega_moe,
    transform_weights,
)
from megamoe_jit.formats.activation import TopkWeightStage
from megamoe_jit.jit.build import build
from megamoe_jit.ops import plan_sm100
from megamoe_jit.ops.tokens import quantize_tokens
from megamoe_jit.recipes import sm100
from megamoe_jit.reference.compare import rel_l2
from megamoe_jit.reference.moe import MoeReference, moe_reference
from megamoe_jit.reference.rounding_points import rounding_points
from megamoe_jit.runtime.emulated import emulated_backend
from tests.kernels.oracle_sm100 import fused_plan, intermediate_codes, oracle_codes

RECIPES = ("nvfp4_nvfp4", "mxfp8_mxfp4", "mxfp8_nvfp4", "mxfp4_mxfp4")


class Layer:
    """Random weights, tokens and routing of one shape."""

    def __init__(
        self,
        recipe: str,
        *,
        tokens: int,
        hidden: int = 256,
        intermediate: int = 256,
        experts: int = 4,
        topk: int = 2,
        activation: ActivationSpec | None = None,
        bias: bool = False,
        stage: TopkWeightStage = "after_l2",
        scaling: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.recipe, self.activation = recipe, activation or ActivationSpec()
        self.stage: TopkWeightStage = stage
        self.scaling = scaling
        self.fast_math = True
        generator = torch.Generator().manual_seed(seed)
        self.weights = MoeWeights.random(
            experts,
            hidden,
            intermediate,
            seed=seed,
            checkpoint=get_recipe(recipe).checkpoint,
            gated=self.activation.gated,
            bias=bias,
        )
        self.x = torch.randn(tokens, hidden, generator=generator).bfloat16()
        logits = torch.randn(tokens, experts, generator=generator)
        self.topk_weights, self.topk_idx = logits.softmax(-1).topk(topk)
        self.topk = topk

    def moe(self, arch: str = "sm_100f") -> MegaMoE:
        return MegaMoE(
            self.weights,
            recipe=self.recipe,
            arch=arch,
            backend="emulator",
            activation=self.activation,
            num_topk=self.topk,
            max_tokens_per_rank=max(1, len(self.x)),
            topk_weight_stage=self.stage,
            routed_scaling_factor=self.scaling,
            fast_math=self.fast_math,
        )

    def run(self, arch: str = "sm_100f") -> torch.Tensor:
        return self.moe(arch)(self.x, self.topk_idx, self.topk_weights)

    def oracle(self, *, return_intermediates: bool = False) -> MoeReference:
        return moe_reference(
            self.x,
            self.topk_idx,
            self.topk_weights,
            self.weights,
            activation=self.activation,
            rounding=rounding_points(self.recipe, topk_weight_stage=self.stage),
            routed_scaling_factor=self.scaling,
            return_intermediates=return_intermediates,
        )


def change_kernels(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    """Have the fused kernels built with other fields of their configurations."""
    kernels = plan_sm100.plan_kernels

    def changed(problem: Problem, *rest: object) -> tuple[object, ...]:
        staging, *fused = kernels(problem, *rest)  # type: ignore[arg-type]
        return staging, *(replace(kernel, **fields) for kernel in fused)  # type: ignore[type-var]

    monkeypatch.setattr(plan_sm100, "plan_kernels", changed)


def assert_right(layer: Layer, y: torch.Tensor, bound: float = 2e-3) -> None:
    """Sums in float32 may meet another code than exact ones would, in few places."""
    assert rel_l2(y, layer.oracle().y) < bound


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe(recipe: str) -> None:
    """Codes and scale factors between the GEMMs are the oracle's too, but for a few that float32 sums turn over."""
    layer = Layer(recipe, tokens=33, hidden=384, intermediate=256, experts=5, topk=3)
    moe = layer.moe()
    assert_right(layer, moe(layer.x, layer.topk_idx, layer.topk_weights))
    inner = layer.oracle(return_intermediates=True).intermediates
    assert inner is not None
    for mine, wanted in zip(intermediate_codes(moe, inner, 33), oracle_codes(inner), strict=True):
        assert mine.shape == wanted.shape
        assert float((mine == wanted).double().mean()) >= 0.999


@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_few_tokens(tokens: int) -> None:
    layer = Layer("nvfp4_nvfp4", tokens=tokens)
    y = layer.run()
    assert y.shape == (tokens, 256)
    if tokens:
        assert_right(layer, y)


@pytest.mark.parametrize(("experts", "topk"), [(1, 1), (16, 6), (64, 8)])
def test_experts_and_topk(experts: int, topk: int) -> None:
    layer = Layer("nvfp4_nvfp4", tokens=9, experts=experts, topk=topk, hidden=128, intermediate=128)
    assert_right(layer, layer.run())


@pytest.mark.parametrize(
    ("recipe", "hidden", "intermediate"),
    [
        *(("nvfp4_nvfp4", 208, 176), ("nvfp4_nvfp4", 144, 400)),
        *(("mxfp8_mxfp4", 224, 160), ("mxfp8_nvfp4", 160, 352), ("mxfp4_mxfp4", 352, 96)),
    ],
)
def test_widths_that_fill_no_tile(recipe: str, hidden: int, intermediate: int) -> None:
    layer = Layer(recipe, tokens=12, hidden=hidden, intermediate=intermediate)
    assert_right(layer, layer.run())


ACTIVATIONS = {
    "clamped": ActivationSpec(clamp=0.5),
    "swigluoai": ActivationSpec.swigluoai(),
    "gelu": ActivationSpec(kind="gelu"),
    "relu2": ActivationSpec(kind="relu2"),
}


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        *itertools.product(("nvfp4_nvfp4", "mxfp8_mxfp4"), ACTIVATIONS),
        ("mxfp4_mxfp4", "relu2"),
    ],
)
def test_activations_and_biases(recipe: str, name: str) -> None:
    layer = Layer(recipe, tokens=10, activation=ACTIVATIONS[name], bias=True)
    assert_right(layer, layer.run())


@pytest.mark.parametrize("recipe", RECIPES)
def test_top_k_weights_before_requantisation(recipe: str) -> None:
    layer = Layer(recipe, tokens=10, activation=ActivationSpec(clamp=3.0), bias=True, stage="before_requant")
    layer.topk_weights[0] = torch.tensor([2.0**-12, -(2.0**-13)])  # second-level scales follow the weight
    layer.topk_weights[1, 0] = 0
    y = layer.run()
    assert_right(layer, y)
    assert rel_l2(y[0], layer.oracle().y[0]) < 2e-3
    layer.stage = "after_l2"
    assert rel_l2(y, layer.oracle().y) > 5e-3  # other codes


def test_the_routed_scaling_factor_multiplies_before_the_result_is_rounded() -> None:
    layer = Layer("nvfp4_nvfp4", tokens=9, scaling=2.7)
    assert_right(layer, layer.run())


def test_a_call_is_two_launches() -> None:
    layer = Layer("nvfp4_nvfp4", tokens=9)
    moe, device = layer.moe(), emulated_backend()
    for _ in range(2):
        before = device.work()
        moe(layer.x, layer.topk_idx, layer.topk_weights)
        assert device.work().since(before).launches == 2
    assert [name for name, _ in device.timelines()[-2:]] == ["stage_tokens_sm100", "mega_moe_sm100"]


def test_tokens_that_go_nowhere_and_experts_without_any() -> None:
    layer = Layer("nvfp4_nvfp4", tokens=8)
    layer.topk_idx[layer.topk_idx == 2] = -1
    layer.topk_idx[3] = -1
    layer.topk_idx[5, 0] = 2**40
    stats = torch.full((4,), 100, dtype=torch.int32)
    moe = layer.moe()
    for calls in (1, 2):
        y = moe(layer.x, layer.topk_idx, layer.topk_weights, recv_stats=stats)
        assert_right(layer, y)
        assert not y[3].any()
        assert stats.tolist() == [100 + calls * int((layer.topk_idx == e).sum()) for e in range(4)]


@pytest.mark.parametrize("recipe", ["nvfp4_nvfp4", "mxfp8_mxfp4"])
def test_tokens_may_be_put_into_the_views_and_indices_be_int32(recipe: str) -> None:
    """Codes and scale factors that the caller brings are what staging would have made: one launch less, the same y."""
    layer = Layer(recipe, tokens=11, hidden=160)
    staged = layer.run()
    buffer = get_symm_buffer_for_nvfp4_mega_moe(
        *(None, 4, 11, 2, 160, 256),
        recipe=recipe,
        arch="sm_100f",
        device="cpu",
        topk_idx_dtype=torch.int32,
        packed_sf=False,
    )
    codes, sf, scales = quantize_tokens(layer.x, get_recipe(recipe))
    buffer.fill(codes, sf, layer.topk_idx.int(), layer.topk_weights, x_scales=scales)
    l1, l2 = transform_weights(layer.weights, recipe, "sm_100f")
    stats = torch.zeros(4, dtype=torch.int32)
    before = emulated_backend().work()
    y = fp8_nvfp4_mega_moe(torch.empty_like(layer.x), l1, l2, buffer, stats, backend="emulator")
    assert emulated_backend().work().since(before).launches == 1
    assert torch.equal(y, staged)
    assert int(stats.sum()) == 22


def test_accurate_exponentials() -> None:
    layer = Layer("nvfp4_nvfp4", tokens=9)
    layer.fast_math = False
    assert_right(layer, layer.run())


def test_all_tokens_at_one_expert_take_several_tiles() -> None:
    layer = Layer("nvfp4_nvfp4", tokens=90, hidden=128, intermediate=128, experts=8, topk=1)
    layer.topk_idx[:] = 5
    assert_right(layer, layer.run())


@pytest.mark.parametrize(("completion", "seed"), [("eager", 0), (0.3, 1), (0.3, 2), ("lazy", 3)])
def test_schedules_do_not_matter(completion: str | float, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer("nvfp4_nvfp4", tokens=20)
    emulator = emulated_backend().emulator
    monkeypatch.setattr(emulator, "completion", completion)
    monkeypatch.setattr(emulator, "seed", seed)
    moe = layer.moe()
    first = moe(layer.x, layer.topk_idx, layer.topk_weights)
    assert_right(layer, first)
    assert torch.equal(moe(layer.x, layer.topk_idx, layer.topk_weights), first)  # counters were reset


@pytest.mark.parametrize("seed", [0, 1])
def test_no_load_meets_what_others_write_beside_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage has four words of scale factors, K only two: the rings hold four, so that none is another tile's."""
    layer = Layer("nvfp4_nvfp4", tokens=24, hidden=128, intermediate=128, experts=8)
    device = emulated_backend()
    monkeypatch.setattr(device.emulator, "completion", 0.3)
    monkeypatch.setattr(device.emulator, "seed", seed)
    before = device.work()
    assert_right(layer, layer.run())
    assert device.work().since(before).warnings == ()


@pytest.mark.parametrize(
    ("recipe", "cta_group", "ring_tiles"),
    [
        *(("nvfp4_nvfp4", 1, None), ("nvfp4_nvfp4", 2, 2), ("nvfp4_nvfp4", 2, 4)),
        *(("mxfp8_mxfp4", 1, None), ("mxfp4_mxfp4", 1, 2)),
    ],
)
def test_single_ctas_and_short_rings_give_the_same_bits(
    recipe: str, cta_group: int, ring_tiles: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Layer(recipe, tokens=40, hidden=128, intermediate=128, experts=6)
    expected = layer.run()
    change_kernels(monkeypatch, cta_group=cta_group, **({"ring_tiles": ring_tiles} if ring_tiles else {}))
    assert torch.equal(layer.run(), expected)


@pytest.mark.parametrize(("arch", "scale_vec"), [("sm_103f", False), ("sm_100a", True)])
def test_other_targets_and_the_older_spelling_give_the_same_bits(
    arch: str, scale_vec: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Layer("nvfp4_nvfp4", tokens=12, hidden=128, intermediate=128)
    expected = layer.run()
    change_kernels(monkeypatch, scale_vec=scale_vec)
    moe = layer.moe(arch)
    assert torch.equal(moe(layer.x, layer.topk_idx, layer.topk_weights), expected)
    (ptx,) = {launch.plan.kernel.artifact.ptx for launch in fused_plan(moe)._launches.values()}  # type: ignore[attr-defined]
    assert f".target {arch}" in ptx
    assert ("scale_vec::4X" in ptx) == scale_vec != ("block16" in ptx)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("arch", ["sm_100a", "sm_100f", "sm_103a", "sm_103f"])
def test_every_configuration_compiles_without_spills(recipe: str, arch: str) -> None:
    problem = Problem(hidden=4096, intermediate=2048, num_experts=32, num_topk=6, max_tokens_per_rank=8192)
    for block_n in sm100.TOKEN_TILES:
        config = sm100.config_for_tile(problem, get_recipe(recipe), get_arch(arch), block_n)
        built = build(config)
        resources = built.artifact.resources
        assert (resources.spill_stores, resources.spill_loads, resources.stack_frame, resources.local) == (0, 0, 0, 0)
        assert f"tcgen05.mma.cta_group::2.{config.kind.spelling(scale_vec=False)}" in built.artifact.ptx
        assert built.artifact.compile_s < 5
