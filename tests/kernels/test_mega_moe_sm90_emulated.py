"""The Hopper kernels in the emulator, its checker on, against the recipe's float64 oracle: no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from megamoe_jit.errors import EmulatorFault, LaunchError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.formats.block_scaled import quantize_to_fp8
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.ops import plan as ops_plan
from megamoe_jit.ops.moe import MegaMoE, fp8_nvfp4_mega_moe, get_symm_buffer_for_nvfp4_mega_moe, stage_tokens
from megamoe_jit.ops.weights import transform_weights
from megamoe_jit.recipes import sm90
from megamoe_jit.reference.moe import expert_counts
from megamoe_jit.runtime import emulated
from megamoe_jit.runtime.emulated import EmulatedBackend, EmulatorSettings
from tests.kernels.oracle import BOUNDS, check_output, tokens_and_routing

Open = Callable[..., EmulatedBackend]


@pytest.fixture
def open_device(monkeypatch: pytest.MonkeyPatch) -> Open:
    """Return what makes a device of given settings the one that calls of this test run on."""

    def open_(**settings: Any) -> EmulatedBackend:
        device = EmulatedBackend(EmulatorSettings(**settings))
        monkeypatch.setattr(emulated, "emulated_backend", lambda: device)
        return device

    return open_


def small(recipe: str, hidden: int = 256, intermediate: int = 256, num_experts: int = 3, **options: Any) -> MoeWeights:
    """Return random weights in the recipe's checkpoint format."""
    checkpoint = "nvfp4" if recipe.endswith("nvfp4") else "mxfp4"
    return MoeWeights.random(num_experts, hidden, intermediate, seed=1, checkpoint=checkpoint, **options)


@pytest.mark.parametrize("recipe", BOUNDS)
@pytest.mark.parametrize(
    ("num_tokens", "hidden", "intermediate", "num_experts", "num_topk"),
    [(0, 256, 256, 1, 1), (1, 256, 256, 1, 1), (7, 384, 416, 6, 2), (33, 288, 128, 12, 4)],
)
def test_agrees_with_the_oracle(
    open_device: Open,
    recipe: str,
    num_tokens: int,
    hidden: int,
    intermediate: int,
    num_experts: int,
    num_topk: int,
) -> None:
    """Token counts around a tile, padded widths, experts without tokens; twice, into poisoned memory."""
    device = open_device()
    weights = small(recipe, hidden, intermediate, num_experts)
    moe = MegaMoE(weights, recipe=recipe, num_topk=num_topk, max_tokens_per_rank=48)
    assert moe.backend == "emulator"
    x, topk_idx, topk_weights = tokens_and_routing(num_tokens, hidden, num_experts, num_topk, device="cpu")
    stats = torch.zeros(num_experts, dtype=torch.int32)
    first, second = (
        moe(x, topk_idx, topk_weights, out=torch.full_like(x, float("nan")), recv_stats=stats) for _ in range(2)
    )
    assert torch.equal(first.view(torch.int16), second.view(torch.int16))
    assert torch.equal(stats.long(), 2 * expert_counts(topk_idx, num_experts))
    check_output(moe, weights, x, topk_idx, topk_weights, first)
    work = device.work()
    assert work.errors == ()
    assert (work.launches, work.mmas > 0) == ((4, True) if num_tokens else (0, False))


@pytest.mark.parametrize(("seed", "completion"), [(1, "lazy"), (2, "lazy"), (3, "eager"), (4, 0.05), (5, 0.3)])
@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_no_order_changes_a_bit(open_device: Open, recipe: str, seed: int, completion: str | float) -> None:
    weights = small(recipe)
    x, topk_idx, topk_weights = tokens_and_routing(10, 256, 3, 2, device="cpu")
    results = []
    for settings in ({"num_sms": 4}, {"num_sms": 3, "seed": seed, "completion": completion}):
        device = open_device(**settings)
        results.append(MegaMoE(weights, recipe=recipe)(x, topk_idx, topk_weights))
        assert device.work().errors == ()
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "activation",
    [
        ActivationSpec(clamp=0.5),
        ActivationSpec.swigluoai(),
        ActivationSpec(kind="gelu", up_bias=0.5, clamp=1.0),
        ActivationSpec(kind="relu2", clamp=0.7),
    ],
    ids=lambda spec: f"{spec.kind}-{spec.alpha}-{spec.up_bias}-{spec.clamp}",
)
def test_activations_and_biases(open_device: Open, activation: ActivationSpec) -> None:
    open_device(num_sms=2)
    weights = MoeWeights.random(3, 272, 336, seed=2, gated=activation.gated, bias=True)
    moe = MegaMoE(weights, activation=activation, fast_math=activation.kind == "gelu", routed_scaling_factor=2.5)
    x, topk_idx, topk_weights = tokens_and_routing(12, 272, 3, 2, device="cpu")
    y = moe(x, topk_idx, topk_weights)
    check_output(moe, weights, x, topk_idx, topk_weights, y, activation=activation, routed_scaling_factor=2.5)


def test_token_tiles_agree(open_device: Open) -> None:
    """The token tile is a matter of speed: every one gives the same bits, those of two passes too."""
    open_device(num_sms=2)
    weights = small("bf16_nvfp4")
    x, topk_idx, topk_weights = tokens_and_routing(40, 256, 3, 2, device="cpu")
    outputs = {}
    for tile in (8, 32, 64, 128):
        with pytest.MonkeyPatch.context() as patch:
            for module in (sm90, ops_plan):
                patch.setattr(module, "token_tile", lambda problem, recipe, num_tokens, tile=tile: tile)
            moe = MegaMoE(weights, recipe="bf16_nvfp4")
            outputs[tile] = moe(x, topk_idx, topk_weights)
    for tile, y in outputs.items():
        assert torch.equal(y, outputs[8]), tile


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_views_filled_by_the_caller(open_device: Open, recipe: str) -> None:
    """Codes written into the views give what staging gives."""
    open_device()
    weights = small(recipe, 272)
    l1, l2 = transform_weights(weights, recipe, "sm_90a")
    buffer = get_symm_buffer_for_nvfp4_mega_moe(
        None, 3, 64, 2, 272, 256, recipe=recipe, topk_idx_dtype=torch.int32, device="cpu"
    )
    x, topk_idx, topk_weights = tokens_and_routing(9, 272, 3, 2, device="cpu")
    stage_tokens(x, topk_idx, topk_weights, buffer)
    staged = fp8_nvfp4_mega_moe(torch.empty_like(x), l1, l2, buffer)
    buffer.topk_idx.fill_(-1)
    if recipe == "fp8_nvfp4":
        quantized = quantize_to_fp8(x)
        buffer.fill(quantized.codes, quantized.sf, topk_idx, topk_weights)
    else:
        buffer.fill(x, None, topk_idx, topk_weights)
    assert torch.equal(staged, fp8_nvfp4_mega_moe(torch.empty_like(x), l1, l2, buffer, None, (1, 1, 16)))


def test_strided_rows(open_device: Open) -> None:
    """Rows of x and y may lie apart, at addresses that allow no wide access, and what lies between stays."""
    open_device()
    moe = MegaMoE(small("bf16_nvfp4", 272), recipe="bf16_nvfp4")
    x, topk_idx, topk_weights = tokens_and_routing(5, 272, 3, 2, device="cpu")
    dense = moe(x, topk_idx, topk_weights)
    wide = torch.zeros(5, 301, dtype=torch.bfloat16)
    wide[:, 3:275] = x
    out = torch.full_like(wide, 7.0)
    moe(wide[:, 3:275], topk_idx, topk_weights, out=out[:, 5:277])
    assert torch.equal(out[:, 5:277], dense)
    assert bool((out[:, :5] == 7).all())
    assert bool((out[:, 277:] == 7).all())


def test_routing_extremes(open_device: Open) -> None:
    """One expert gets everything; nobody goes anywhere; indices that are no expert are not routed."""
    open_device()
    weights = small("fp8_nvfp4")
    moe = MegaMoE(weights, num_topk=1, max_tokens_per_rank=40)
    x, topk_idx, topk_weights = tokens_and_routing(40, 256, 3, 1, device="cpu")
    everything = torch.full_like(topk_idx, 2)
    check_output(moe, weights, x, everything, topk_weights, moe(x, everything, topk_weights))
    for nowhere in (-1, 3, -(2**40)):
        y = moe(x, torch.full_like(topk_idx, nowhere), topk_weights, out=torch.full_like(x, float("nan")))
        assert bool((y == 0).all()), nowhere


def test_a_call_after_a_failed_one_is_as_good_as_the_first(open_device: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that the emulator stopped leaves counters half way: the next call does not see them."""
    device = open_device()
    weights = small("bf16_nvfp4")
    moe = MegaMoE(weights, recipe="bf16_nvfp4")
    x, topk_idx, topk_weights = tokens_and_routing(6, 256, 3, 2, device="cpu")
    expected = moe(x, topk_idx, topk_weights)
    too_small = moe.l2.data[:, : moe.l2.data.shape[1] // 2].clone()
    plan = moe._plan
    assert plan is not None
    whole = plan._weight_memory
    plan._weight_memory = tuple(too_small if memory is moe.l2.data else memory for memory in whole)
    with pytest.raises((EmulatorFault, LaunchError), match="no allocation"):
        moe(x, topk_idx, topk_weights)
    plan._weight_memory = whole
    assert torch.equal(moe(x, topk_idx, topk_weights), expected)
    assert device.work().launches == 6


def test_weights_are_only_read(open_device: Open) -> None:
    """What a launch was given to read is read-only there: a kernel that writes it is stopped."""
    open_device()
    moe = MegaMoE(small("bf16_nvfp4"), recipe="bf16_nvfp4")
    x, topk_idx, topk_weights = tokens_and_routing(6, 256, 3, 2, device="cpu")
    y = torch.empty_like(x)
    moe(x, topk_idx, topk_weights, out=y)
    plan = moe._plan
    assert plan is not None
    launch = plan._launches[8].launch
    with pytest.MonkeyPatch.context() as patch:
        for prepared in plan._launches.values():
            patch.setattr(prepared, "launch", lambda *, reads, writes: launch(reads=(*reads, *writes)))
        with pytest.raises(EmulatorFault, match="read-only"):
            moe(x, topk_idx, topk_weights, out=y)
