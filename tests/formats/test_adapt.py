from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.adapt import (
    adapt_nvfp4_to_mxfp4,
    adapt_weights_to_mxfp4,
    conversion_loss,
    convert_weights_to_nvfp4,
    fold_alphas,
    fold_global_scale,
    mxfp4_to_nvfp4,
)
from megamoe_jit.formats.block_scaled import (
    QuantFormat,
    QuantizedTensor,
    expand_sf,
    quantize_to_mxfp4,
    quantize_to_nvfp4,
    quantize_weight_to_nvfp4,
)
from megamoe_jit.formats.fp4 import E2M1_VALUES, decode_fp4, pack_fp4, unpack_fp4
from megamoe_jit.formats.moe_weights import MoeWeights


def nvfp4(*shape: int, seed: int = 0) -> QuantizedTensor:
    """NVFP4 without a global scale, block scales about an octave apart."""
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    q = quantize_to_nvfp4(w)
    return QuantizedTensor(codes=q.codes, sf=q.sf, format=q.format)


def sf_of(*values: float) -> torch.Tensor:
    return torch.tensor([values]).to(torch.float8_e4m3fn)


SIXES = pack_fp4(torch.tensor([[0x7, 0xF, 0x2, 0x0] * 8], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("pair", "rounding", "power"),
    [
        ((4.0, 4.0), "rn", 4.0),
        ((4.0, 1.0), "rn", 4.0),
        ((1.0, 5.5), "rn", 4.0),
        ((1.0, 6.0), "rn", 8.0),
        ((1.0, 4.5), "rp", 8.0),
        ((1.0, 7.5), "rz", 4.0),
    ],
)
def test_the_simple_way_keeps_codes_and_takes_the_larger_scale(
    pair: tuple[float, float], rounding: str, power: float
) -> None:
    q = adapt_nvfp4_to_mxfp4(SIXES, sf_of(*pair), method="max", rounding=rounding)  # type: ignore[arg-type]
    assert q.format is QuantFormat.MXFP4
    assert torch.equal(q.codes, SIXES)
    assert float(q.scales()[0, 0]) == power


def test_the_simple_way_is_off_by_the_ratio_of_the_scales_in_the_smaller_block() -> None:
    q = adapt_nvfp4_to_mxfp4(SIXES, sf_of(1.0, 8.0), method="max")
    values = q.dequantize()[0]
    assert values[:4].tolist() == [48.0, -48.0, 8.0, 0.0], "8 times too large"
    assert values[16:20].tolist() == [48.0, -48.0, 8.0, 0.0]


def test_requantising_rounds_the_smaller_block_to_the_new_scale() -> None:
    q = adapt_nvfp4_to_mxfp4(SIXES, sf_of(1.0, 8.0), method="requantize")
    values = q.dequantize()[0]
    assert values[:4].tolist() == [4.0, -4.0, 0.0, 0.0] or values[:4].tolist() == [8.0, -8.0, 0.0, 0.0]
    assert values[16:20].tolist() == [48.0, -48.0, 8.0, 0.0]


def best_by_hand(values: np.ndarray) -> np.ndarray:
    """The closest MXFP4 block of 32 float values, over all scales and codes."""
    grid = np.array(sorted(set(E2M1_VALUES)))
    best, error = values, np.inf
    for exponent in range(-12, 10):
        rounded = grid[np.abs(values[:, None] / 2.0**exponent - grid).argmin(1)] * 2.0**exponent
        if (e := ((rounded - values) ** 2).sum()) < error:
            best, error = rounded, e
    return best


def test_requantising_finds_the_best_scale_there_is() -> None:
    q = nvfp4(16, 96)
    new = adapt_nvfp4_to_mxfp4(q.codes, q.sf).dequantize(torch.float64)
    old = q.dequantize(torch.float64)
    for block, rounded in zip(old.view(-1, 32).numpy(), new.view(-1, 32).numpy(), strict=True):
        best = best_by_hand(block)
        assert ((rounded - block) ** 2).sum() <= ((best - block) ** 2).sum() * (1 + 1e-6)


def test_requantising_stays_within_its_bound_and_beats_the_simple_way() -> None:
    q = nvfp4(256, 512)
    old = q.dequantize(torch.float64)
    new = adapt_nvfp4_to_mxfp4(q.codes, q.sf)
    error = (new.dequantize(torch.float64) - old).abs()
    assert bool((error <= torch.maximum(old.abs() / 2, new.scales(torch.float64) / 4)).all())
    simple = conversion_loss(q, adapt_nvfp4_to_mxfp4(q.codes, q.sf, method="max"))
    better = conversion_loss(q, new)
    assert better.rel_l2 < 0.5 * simple.rel_l2


@pytest.mark.parametrize("method", ["max", "requantize"])
def test_powers_of_two_in_equal_pairs_adapt_exactly(method: str) -> None:
    given = quantize_to_mxfp4(torch.randn(8, 128, generator=torch.Generator().manual_seed(1)))
    as_nv = mxfp4_to_nvfp4(given.codes, given.sf)
    back = adapt_nvfp4_to_mxfp4(as_nv.codes, as_nv.sf, method=method)  # type: ignore[arg-type]
    assert as_nv.global_scale is not None
    assert torch.equal(back.dequantize() * as_nv.global_scale, given.dequantize())


@pytest.mark.parametrize("method", ["max", "requantize"])
def test_blocks_with_a_zero_scale_become_zero(method: str) -> None:
    q = adapt_nvfp4_to_mxfp4(SIXES, sf_of(0.0, 2.0), method=method)  # type: ignore[arg-type]
    assert not q.dequantize()[0, :16].any()
    assert q.dequantize()[0, 16:20].tolist() == [12.0, -12.0, 2.0, 0.0]


@pytest.mark.parametrize("method", ["max", "requantize"])
def test_a_last_group_may_be_short(method: str) -> None:
    q = nvfp4(4, 48)
    new = adapt_nvfp4_to_mxfp4(q.codes, q.sf, method=method)  # type: ignore[arg-type]
    assert new.shape == (4, 48)
    assert new.sf.shape == (4, 2)
    whole = adapt_nvfp4_to_mxfp4(q.codes[:, :16].contiguous(), q.sf[:, :2].contiguous(), method=method)  # type: ignore[arg-type]
    assert torch.equal(new.codes[:, :16], whole.codes)


def test_many_rows_adapt_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    q = nvfp4(3, 50, 64)
    whole = adapt_nvfp4_to_mxfp4(q.codes, q.sf)
    monkeypatch.setattr("megamoe_jit.formats.adapt._CHUNK_ELEMENTS", 64 * 7)
    chunked = adapt_nvfp4_to_mxfp4(q.codes, q.sf)
    assert torch.equal(whole.codes, chunked.codes)
    assert torch.equal(whole.sf.view(torch.uint8), chunked.sf.view(torch.uint8))
    assert adapt_nvfp4_to_mxfp4(q.codes[:0], q.sf[:0]).shape == (0, 50, 64)


def mxfp4(exponents: list[list[int]], codes: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    sf = (torch.tensor(exponents) + 127).to(torch.uint8)
    if codes is None:
        codes = torch.randint(1, 8, (*sf.shape, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return pack_fp4(codes.flatten(1)), sf


@pytest.mark.parametrize("offset", [-127, -100, -3, 0, 60, 110])
def test_mxfp4_becomes_nvfp4_exactly_over_eighteen_powers_of_two(offset: int) -> None:
    codes, sf = mxfp4([[offset + i for i in range(17, -1, -1)]])
    q = mxfp4_to_nvfp4(codes, sf)
    assert q.format is QuantFormat.NVFP4
    assert torch.equal(q.codes, codes)
    expected = decode_fp4(codes, torch.float64) * expand_sf(2.0 ** (sf.double() - 127), 18 * 32, 32)
    assert torch.equal(q.dequantize(torch.float64), expected)
    assert q.global_scale is not None
    assert q.global_scale.shape == ()
    assert float(q.global_scale.log2()) % 1 == 0


def test_each_matrix_gets_a_shift_of_its_own() -> None:
    given = quantize_to_mxfp4(torch.randn(2, 8, 64) * torch.tensor([1e-12, 1e9])[:, None, None], min_amax=1e-30)
    q = mxfp4_to_nvfp4(given.codes, given.sf)
    assert q.global_scale is not None
    assert q.global_scale.shape == (2,)
    assert torch.equal(q.dequantize(torch.float64), given.dequantize(torch.float64))


def test_what_does_not_fit_is_refused_with_a_count_or_rounded() -> None:
    codes, sf = mxfp4([[0, -18, -19, -40, -5]])
    with pytest.raises(ArgumentError, match="3 of 5 groups have a scale more than"):
        mxfp4_to_nvfp4(codes, sf)
    q = mxfp4_to_nvfp4(codes, sf, allow_rounding=True)
    old = decode_fp4(codes, torch.float64) * expand_sf(2.0 ** (sf.double() - 127), 160, 32)
    error = (q.dequantize(torch.float64) - old).abs()[0]
    assert not error[:32].any()
    assert not error[128:].any()
    assert 0 < float(error[32:64].max()) <= 2.0**-18 * 2, "half a step of the largest codes"
    assert not q.dequantize()[0, 96:128].any(), "2^-40 lies below every code"


def test_groups_of_zeros_do_not_count() -> None:
    codes, sf = mxfp4([[0, -60, 100]])
    unpacked = unpack_fp4(codes).view(3, 32)
    unpacked[1:] = torch.tensor([0, 8] * 16, dtype=torch.uint8)  # zeros of both signs
    q = mxfp4_to_nvfp4(pack_fp4(unpacked.flatten()).view(1, -1), sf)
    assert q.dequantize()[0, :32].abs().max() > 0
    assert not q.dequantize()[0, 32:].any()


def test_folding_everything_rounds_or_flushes_the_scales() -> None:
    w = quantize_weight_to_nvfp4(torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(0)))
    assert w.global_scale is not None
    folded = fold_global_scale(w)
    expected = (w.sf.double() * w.global_scale.double()[:, None, None]).float().to(torch.float8_e4m3fn)
    assert torch.equal(folded.sf.view(torch.uint8), expected.view(torch.uint8))
    assert conversion_loss(w, folded).rel_l2 > 0.005
    tiny = fold_global_scale(replace(w, global_scale=w.global_scale * 1e-6))
    assert conversion_loss(w, tiny).flushed == 1.0


def test_keeping_a_power_of_two_folds_without_loss() -> None:
    w = quantize_to_nvfp4(torch.randn(8, 64), global_scale=2.0**-12)
    folded = fold_global_scale(w, keep=2.0**-11)
    assert torch.equal(folded.dequantize(), w.dequantize())
    loss = conversion_loss(w, folded)
    assert (loss.rel_l2, loss.changed, loss.largest_factor, loss.flushed) == (0.0, 0.0, 1.0, 0.0)


def test_loss_counts_what_changed() -> None:
    codes = pack_fp4(torch.tensor([[2, 2, 0, 4] * 4], dtype=torch.uint8))
    q = QuantizedTensor(codes=codes, sf=sf_of(2.0), format=QuantFormat.NVFP4)
    other = pack_fp4(torch.tensor([[2, 0, 0, 7] * 4], dtype=torch.uint8))
    loss = conversion_loss(q, replace(q, codes=other))
    assert loss.changed == 0.5
    assert loss.flushed == pytest.approx(1 / 3)
    assert loss.largest_factor == 3.0
    assert loss.rel_l2 == pytest.approx((17 / 6) ** 0.5)
    assert loss.worst_block == pytest.approx(loss.rel_l2)


def layer(checkpoint: str) -> MoeWeights:
    generator = torch.Generator().manual_seed(7)
    l1 = torch.randn(3, 128, 96, generator=generator) * torch.tensor([0.02, 0.05]).repeat_interleave(64)[:, None]
    return MoeWeights.from_float(l1, torch.randn(3, 96, 64, generator=generator) * 0.03, checkpoint)  # type: ignore[arg-type]


def test_layers_convert_with_their_alphas() -> None:
    nv, mx = layer("nvfp4"), layer("mxfp4")
    adapted = adapt_weights_to_mxfp4(nv)
    assert adapted.checkpoint == "mxfp4"
    assert torch.equal(adapted.l1_alphas, nv.l1_alphas)
    for old, new in zip(nv.dequantize(), adapted.dequantize(), strict=True):
        assert 0.01 < float((new - old).norm() / old.norm()) < 0.15
    written = convert_weights_to_nvfp4(mx)
    assert written.checkpoint == "nvfp4"
    for old, new in zip(mx.dequantize(torch.float64), written.dequantize(torch.float64), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize(("per", "num_alphas"), [("expert", 3), ("layer", 1), ("nothing", 1)])
def test_folding_a_layer_leaves_the_alphas_that_it_says(per: str, num_alphas: int) -> None:
    nv = layer("nvfp4")
    folded = fold_alphas(nv, per=per)  # type: ignore[arg-type]
    assert torch.equal(folded.l1_alphas[:, 0], folded.l1_alphas[:, 1])
    assert len(folded.l1_alphas.unique()) == num_alphas
    if per == "nothing":
        assert bool((folded.l2_alphas == 1).all())
    loss = [
        float((new - old).norm() / old.norm()) for old, new in zip(nv.dequantize(), folded.dequantize(), strict=True)
    ]
    assert 0.005 < loss[0] < 0.04 if per != "nothing" else loss[0] > 0.04, loss
    assert (loss[1] == 0) == (per == "expert")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: adapt_nvfp4_to_mxfp4(SIXES, sf_of(1.0), method="max"), r"sf has shape \[1, 1\], but .*\[1, 2\]"),
        (lambda: adapt_nvfp4_to_mxfp4(SIXES, sf_of(1.0, 1.0), method="mean"), "method='mean' is unknown"),  # type: ignore[arg-type]
        (lambda: mxfp4_to_nvfp4(SIXES, torch.zeros(1, 2, dtype=torch.uint8)), "do not fit"),
        (lambda: mxfp4_to_nvfp4(SIXES, torch.full((1, 1), 255, dtype=torch.uint8)), "NaN scales"),
        (lambda: fold_global_scale(quantize_to_mxfp4(torch.ones(32))), "the weight is mxfp4 without a global scale"),
        (lambda: fold_global_scale(nvfp4(1, 16)), "nvfp4 without a global scale"),
        (lambda: conversion_loss(nvfp4(1, 16), nvfp4(1, 32)), "must be equal"),
        (lambda: adapt_weights_to_mxfp4(layer("mxfp4")), "mxfp4 checkpoint, but nvfp4 is needed"),
        (lambda: convert_weights_to_nvfp4(layer("nvfp4")), "nvfp4 checkpoint, but mxfp4 is needed"),
        (lambda: fold_alphas(layer("nvfp4"), per="row"), "per='row' is unknown"),  # type: ignore[arg-type]
    ],
)
def test_bad_inputs_are_refused_in_words(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        call()
