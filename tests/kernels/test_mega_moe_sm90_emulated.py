"""The Hopper kernels in the emulator, its checker on, against the recipe's float64 oracle: no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from megamoe_jit.errors import EmulatorFault, LaunchError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.formats.block_scaled import quantize_to_fp8
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.ops.moe import MegaMoE, fp8_nvfp4_mega_moe, get_symm_buffer_for_nvfp4_mega_moe, stage_tokens
from megamoe_jit.ops.weights import transform_weights
from megamoe_jit.reference.moe import expert_counts, moe_reference
from megamoe_jit.runtime import emulated
from megamoe_jit.runtime.emulated import EmulatedBackend, EmulatorSettings
from tests.kernels.one_kernel import one_kernel
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
    [(0, 256, 256, 1, 1), (1, 256, 256, 1, 1), (7, 384, 416, 6, 2), (9, 320, 192, 4, 3), (33, 288, 128, 12, 4)],
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
    with one_kernel(num_tokens):
        first, second = (
            moe(x, topk_idx, topk_weights, out=torch.full_like(x, float("nan")), recv_stats=stats) for _ in range(2)
        )
        check_output(moe, weights, x, topk_idx, topk_weights, first)
    assert torch.equal(first.view(torch.int16), second.view(torch.int16))
    assert torch.equal(stats.long(), 2 * expert_counts(topk_idx, num_experts))
    work = device.work()
    assert (work.errors, work.warnings) == ((), ())
    assert (work.launches, work.mmas > 0) == ((2, True) if num_tokens else (0, False))


@pytest.mark.parametrize(("seed", "completion"), [(1, "lazy"), (2, "lazy"), (3, "eager"), (4, 0.05), (5, 0.3)])
@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_no_order_changes_a_bit(open_device: Open, recipe: str, seed: int, completion: str | float) -> None:
    weights = small(recipe)
    x, topk_idx, topk_weights = tokens_and_routing(10, 256, 3, 2, device="cpu")
    results = []
    for settings in ({"num_sms": 4}, {"num_sms": 3, "seed": seed, "completion": completion}):
        device = open_device(**settings)
        with one_kernel(10):
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
    with one_kernel(12):
        y = moe(x, topk_idx, topk_weights)
        check_output(moe, weights, x, topk_idx, topk_weights, y, activation=activation, routed_scaling_factor=2.5)


@pytest.mark.parametrize(("recipe", "tiles"), [("bf16_nvfp4", (24, 48, 64, 128)), ("fp8_nvfp4", (24, 48, 128, 192))])
def test_token_tiles_agree(open_device: Open, recipe: str, tiles: tuple[int, ...]) -> None:
    """The token tile is a matter of speed: every one gives the same bits, those of two passes too."""
    open_device(num_sms=2)
    weights = small(recipe)
    x, topk_idx, topk_weights = tokens_and_routing(40, 256, 3, 2, device="cpu")
    outputs = {}
    for tile in (8, *tiles):
        with one_kernel(40, tile=tile):
            outputs[tile] = MegaMoE(weights, recipe=recipe)(x, topk_idx, topk_weights)
    for tile, y in outputs.items():
        assert torch.equal(y, outputs[8]), tile


@pytest.mark.parametrize("tile", [8, 128, 192])
def test_blocks_with_scale_factors_of_their_own(open_device: Open, tile: int) -> None:
    """Tokens whose results are not what their sizes let expect; others in their tiles get the bits that they get alone.

    Token 1 has a single large value, where weights are small: its results are far below the forecast. One result of
    token 4 is above it: all its values are of the size of the largest, and weights of one row are large and of one
    sign. Token 8 is zeros.
    """
    device = open_device(num_sms=2)
    hidden, intermediate = 512, 384  # three blocks of a token, the last stage of a sum's last block
    weights = small("fp8_nvfp4", hidden, intermediate)
    x, topk_idx, topk_weights = tokens_and_routing(12, hidden, 3, 2, device="cpu")
    x[1] = 0.01 * x[1]
    x[1, 7], x[4], x[8] = 400.0, 100.0, 0.0
    topk_idx[[1, 4, 8]] = torch.tensor([0, 1])
    codes, sf = weights.l1_codes.clone(), weights.l1_sf.view(torch.uint8).clone()
    sf[:, :, 0] = 1
    codes[0, 5], codes[0, intermediate + 5] = 0x77, 0x77
    sf[0, 5, 1:], sf[0, intermediate + 5, 1:] = 0x7E, 0x7E
    weights = replace(weights, l1_codes=codes, l1_sf=sf.view(torch.float8_e4m3fn))
    usual = torch.ones(12, dtype=torch.bool)
    usual[[1, 4]] = False
    moe = MegaMoE(weights, recipe="fp8_nvfp4", num_topk=2, max_tokens_per_rank=12)
    with one_kernel(12, tile=tile):
        y = moe(x, topk_idx, topk_weights)
        check_output(moe, weights, x, topk_idx, topk_weights, y)
        sf_of = reference_sf(moe, weights, x, topk_idx, topk_weights)
        alone = moe(x[usual].contiguous(), topk_idx[usual], topk_weights[usual])
    # The test tests what it means to: blocks of both tokens have other scale factors than their neighbours.
    assert all(len(sf_of[token].unique()) > 1 for token in (1, 4))
    assert sf_of[4][0, 0] > sf_of[4][0, 1] == sf_of[4][0, 2]
    assert all(len(slot.unique()) == 1 for token in (0, 2, 3) for slot in sf_of[token])
    assert torch.equal(y[usual], alone)
    assert device.work().errors == ()


def reference_sf(moe: MegaMoE, weights: MoeWeights, *call: torch.Tensor) -> dict[int, torch.Tensor]:
    """Return the oracle's scale factors of each token's activations, [slots, blocks]."""
    inner = moe_reference(*call, weights, rounding=moe.recipe.name, return_intermediates=True).intermediates
    assert inner is not None
    assert inner.l2_acts is not None
    return {int(token): inner.l2_acts.sf[inner.token_idx == token] for token in inner.token_idx.unique()}


@pytest.mark.parametrize(("recipe", "index_dtype"), [("fp8_nvfp4", torch.int32), ("bf16_nvfp4", torch.int64)])
def test_staged_tokens_give_the_bits_of_a_direct_call(open_device: Open, recipe: str, index_dtype: torch.dtype) -> None:
    """Whoever quantises: the kernel, from rows that lie apart at odd addresses, or staging; indices of any width.

    Nine tokens are more than blocks; three are one a block. A token's result is the same.
    """
    open_device()
    view_dtype = torch.int64 if index_dtype == torch.int32 else torch.int32
    weights = small(recipe, 272, 128)
    buffer = get_symm_buffer_for_nvfp4_mega_moe(
        None, 3, 64, 2, 272, 128, recipe=recipe, topk_idx_dtype=view_dtype, device="cpu"
    )
    x, topk_idx, topk_weights = tokens_and_routing(9, 272, 3, 2, device="cpu", index_dtype=index_dtype)
    topk_idx[0, 0], topk_idx[4, 1], topk_idx[5, 0] = -1, 3, torch.iinfo(index_dtype).max
    topk_idx[6] = torch.iinfo(index_dtype).min
    x *= torch.exp2(torch.arange(9) - 4.0)[:, None].bfloat16()
    apart = torch.zeros(9, 275, dtype=torch.bfloat16)[:, 3:]
    apart.copy_(x)
    masked = torch.where((topk_idx >= 0) & (topk_idx < 3), topk_idx, -1)
    with one_kernel(9):
        moe = MegaMoE(weights, recipe=recipe, sym_buffer=buffer)
        direct = moe(x, topk_idx, topk_weights)
        check_output(moe, weights, x, masked, topk_weights, direct)
        others = {
            "elements one by one": moe(apart, topk_idx, topk_weights),
            "one token a block": moe(apart[3:6], topk_idx[3:6], topk_weights[3:6]),
            "one token a block, aligned": moe(x[3:6], topk_idx[3:6], topk_weights[3:6]),
        }
        for name, tokens, first, end in (
            ("staged", x, 0, 9),
            ("staged, elements one by one", apart, 0, 9),
            ("staged, one token a block", x, 3, 6),
        ):
            stage_tokens(tokens[first:end], topk_idx[first:end], topk_weights[first:end], buffer)
            others[name] = fp8_nvfp4_mega_moe(torch.empty_like(x[first:end]), moe.l1, moe.l2, buffer)
    assert direct[:4].any(dim=1).all()
    for name, y in others.items():
        assert torch.equal(y, direct if len(y) == 9 else direct[3:6]), name


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_tokens_of_several_pieces(open_device: Open, recipe: str) -> None:
    """The last piece is short, and ends inside 64 values; two tokens a block, and one."""
    open_device(num_sms=2)
    hidden = 2064 if recipe == "fp8_nvfp4" else 1040
    weights = small(recipe, hidden, 128, num_experts=1)
    x, topk_idx, topk_weights = tokens_and_routing(3, hidden, 1, 1, device="cpu", seed=3)
    assert bool((topk_idx == 0).all())
    x[1, -1] = 40.0  # the largest is in the last piece
    with one_kernel(3):
        moe = MegaMoE(weights, recipe=recipe, max_tokens_per_rank=8)
        y = moe(x, topk_idx, topk_weights)
        check_output(moe, weights, x, topk_idx, topk_weights, y)
        assert torch.equal(moe(x[1:], topk_idx[1:], topk_weights[1:]), y[1:])


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_more_tokens_than_dispatch_has_in_hand(open_device: Open, recipe: str) -> None:
    """A block's tokens come in chunks of 32, and each token gets what it gets in a call of few; staged ones too."""
    device = open_device(num_sms=1)
    weights = small(recipe, 256, 128)
    x, topk_idx, topk_weights = tokens_and_routing(70, 256, 3, 2, device="cpu")
    x *= torch.exp2(torch.arange(70) % 7 - 3.0)[:, None].bfloat16()
    topk_idx[33, 0], topk_idx[40] = -1, -1
    buffer = get_symm_buffer_for_nvfp4_mega_moe(None, 3, 70, 2, 256, 128, recipe=recipe, device="cpu")
    with one_kernel(70, tile=16):
        moe = MegaMoE(weights, recipe=recipe, sym_buffer=buffer)
        y = moe(x, topk_idx, topk_weights)
        few = [moe(*(t[first : first + 30] for t in (x, topk_idx, topk_weights))) for first in (0, 30, 60)]
        stage_tokens(x, topk_idx, topk_weights, buffer)
        staged = fp8_nvfp4_mega_moe(torch.empty_like(x), moe.l1, moe.l2, buffer)
    assert y[39].any()
    assert not y[40].any()
    assert torch.equal(y, torch.cat(few))
    assert torch.equal(y, staged)
    assert device.work().errors == ()


def test_more_slots_than_are_added_at_once(open_device: Open) -> None:
    """Combine has six partials on their way at a time; here there are eight, some of which go nowhere."""
    open_device(num_sms=2)
    weights = small("bf16_nvfp4", 256, 128, num_experts=8)
    x, topk_idx, topk_weights = tokens_and_routing(2, 256, 8, 8, device="cpu")
    topk_idx[1, :7] = -1
    topk_idx[1, 7] = 2
    with one_kernel(2):
        moe = MegaMoE(weights, recipe="bf16_nvfp4")
        y = moe(x, topk_idx, topk_weights)
        check_output(moe, weights, x, topk_idx, topk_weights, y)
    assert y[1].any()


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_views_filled_by_the_caller(open_device: Open, recipe: str) -> None:
    """Codes written into the views, with one scale a token, give what staging gives."""
    open_device()
    weights = small(recipe, 272)
    l1, l2 = transform_weights(weights, recipe, "sm_90a")
    buffer = get_symm_buffer_for_nvfp4_mega_moe(
        None, 3, 64, 2, 272, 256, recipe=recipe, topk_idx_dtype=torch.int32, device="cpu"
    )
    x, topk_idx, topk_weights = tokens_and_routing(9, 272, 3, 2, device="cpu")
    x = (60 * x).to(torch.float8_e4m3fn).bfloat16()  # exact with a token's one scale, so that staging finds no better
    x[:, 7] = 448.0
    with one_kernel(9):
        stage_tokens(x, topk_idx, topk_weights, buffer)
        staged = fp8_nvfp4_mega_moe(torch.empty_like(x), l1, l2, buffer)
        buffer.topk_idx.fill_(-1)
        if recipe == "fp8_nvfp4":
            quantized = quantize_to_fp8(x)
            buffer.fill(quantized.codes, quantized.sf, topk_idx, topk_weights)
        else:
            buffer.fill(x, None, topk_idx, topk_weights)
        assert torch.equal(staged, fp8_nvfp4_mega_moe(torch.empty_like(x), l1, l2, buffer, None, (1, 1, 16)))


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_strided_rows(open_device: Open, recipe: str) -> None:
    """Rows of x and y may lie apart, at addresses that allow no wide access, and what lies between stays."""
    open_device()
    moe = MegaMoE(small(recipe, 272), recipe=recipe)
    x, topk_idx, topk_weights = tokens_and_routing(5, 272, 3, 2, device="cpu")
    wide = torch.zeros(5, 301, dtype=torch.bfloat16)
    wide[:, 3:275] = x
    assert wide[:, 3:275].data_ptr() % 4  # elements one by one
    out = torch.full_like(wide, 7.0)
    with one_kernel(5):
        dense = moe(x, topk_idx, topk_weights)
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
    with one_kernel(40):
        check_output(moe, weights, x, everything, topk_weights, moe(x, everything, topk_weights))
        for nowhere in (-1, 3, -(2**40), 2**32 + 1):
            y = moe(x, torch.full_like(topk_idx, nowhere), topk_weights, out=torch.full_like(x, float("nan")))
            assert bool((y == 0).all()), nowhere


def test_a_call_after_a_failed_one_is_as_good_as_the_first(open_device: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that the emulator stopped leaves counters half way: the next call does not see them."""
    device = open_device()
    weights = small("bf16_nvfp4")
    moe = MegaMoE(weights, recipe="bf16_nvfp4")
    x, topk_idx, topk_weights = tokens_and_routing(6, 256, 3, 2, device="cpu")
    with one_kernel(6):
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
    assert device.work().launches == 3


def test_weights_are_only_read(open_device: Open) -> None:
    """What a launch was given to read is read-only there: a kernel that writes it is stopped."""
    open_device()
    moe = MegaMoE(small("bf16_nvfp4"), recipe="bf16_nvfp4")
    x, topk_idx, topk_weights = tokens_and_routing(6, 256, 3, 2, device="cpu")
    y = torch.empty_like(x)
    with one_kernel(6):
        moe(x, topk_idx, topk_weights, out=y)
    plan = moe._plan
    assert plan is not None
    (launch,) = (prepared.launch for prepared in plan._launches.values())
    with pytest.MonkeyPatch.context() as patch:
        for prepared in plan._launches.values():
            patch.setattr(prepared, "launch", lambda *, reads, writes: launch(reads=(*reads, *writes)))
        with pytest.raises(EmulatorFault, match="read-only"):
            moe(x, topk_idx, topk_weights, out=y)
