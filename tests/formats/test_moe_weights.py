from dataclasses import replace
from typing import Any

import pytest
import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.block_scaled import quantize_to_mxfp4, quantize_to_nvfp4
from megamoe_jit.formats.fp4 import as_float4_x2
from megamoe_jit.formats.moe_weights import MoeWeights

E, H, I = 3, 64, 96  # noqa: E741
FLAVOURS = [("nvfp4", True), ("nvfp4", False), ("mxfp4", True), ("mxfp4", False)]


def floats(gated: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    l1 = torch.randn(E, (2 if gated else 1) * I, H, generator=generator) * 0.05
    l1[:, :I] *= 3  # gate and up need different global scales
    return l1, torch.randn(E, H, I, generator=generator) * 0.1


def same(a: MoeWeights, b: MoeWeights) -> bool:
    names = ("l1_codes", "l1_sf", "l1_alphas", "l2_codes", "l2_sf", "l2_alphas", "l1_bias", "l2_bias")
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    return a.checkpoint == b.checkpoint and all(
        x is y if x is None or y is None else torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in pairs
    )


@pytest.mark.parametrize(("checkpoint", "gated"), FLAVOURS)
def test_properties_follow_from_the_shapes(checkpoint: Any, gated: bool) -> None:
    w = MoeWeights.random(E, H, I, checkpoint=checkpoint, gated=gated, bias=True)
    gran_k = 16 if checkpoint == "nvfp4" else 32
    assert (w.num_experts, w.hidden, w.intermediate, w.gated, w.gran_k) == (E, H, I, gated, gran_k)
    assert w.device == torch.device("cpu")
    rows = 2 * I if gated else I
    assert w.l1_codes.shape == (E, rows, H // 2)
    assert w.l1_sf.shape == (E, rows, H // gran_k)
    assert w.l2_sf.shape == (E, H, I // gran_k)
    assert w.l1_alphas.shape == (E, 2 if gated else 1)
    assert w.l1_row_alphas.shape == (E, rows)
    assert w.l1_bias is not None
    assert w.l1_bias.shape == (E, rows)


@pytest.mark.parametrize(("checkpoint", "gated"), FLAVOURS)
def test_random_weights_repeat_and_have_the_promised_size(checkpoint: Any, gated: bool) -> None:
    def make(seed: int) -> MoeWeights:
        return MoeWeights.random(4, 512, 256, seed=seed, checkpoint=checkpoint, gated=gated)

    assert same(make(1), make(1))
    assert not same(make(1), make(2))
    l1, l2 = make(1).dequantize()
    assert 0.6 < float(l1.std()) * 512**0.5 < 1.6
    assert 0.6 < float(l2.std()) * 256**0.5 < 1.6
    assert abs(float(l1.mean())) < 0.05 * float(l1.std())


@pytest.mark.parametrize("gated", [True, False])
def test_from_float_gives_gate_up_and_down_scales_of_their_own(gated: bool) -> None:
    l1, l2 = floats(gated)
    w = MoeWeights.from_float(l1, l2, gated=gated)
    parts = l1.view(E, -1, I, H)
    torch.testing.assert_close(w.l1_alphas, parts.abs().amax((2, 3)) / 2688)
    torch.testing.assert_close(w.l2_alphas, l2.abs().amax((1, 2)) / 2688)
    back1, back2 = w.dequantize()
    for expert in range(E):
        for part in range(parts.shape[1]):
            expected = quantize_to_nvfp4(parts[expert, part]).dequantize()
            assert torch.equal(back1[expert, part * I : (part + 1) * I], expected)
        assert torch.equal(back2[expert], quantize_to_nvfp4(l2[expert]).dequantize())


def test_from_float_makes_mxfp4_without_alphas() -> None:
    l1, l2 = floats()
    w = MoeWeights.from_float(l1, l2, "mxfp4", l1_bias=torch.ones(E, 2 * I).bfloat16(), l2_bias=torch.ones(E, H))
    assert torch.equal(w.l1_alphas, torch.ones(E, 2))
    assert torch.equal(w.l2_alphas, torch.ones(E))
    assert torch.equal(w.dequantize()[0], quantize_to_mxfp4(l1).dequantize())
    assert w.l1_bias is not None
    assert w.l1_bias.dtype == torch.float32


def test_dequantize_is_exact_in_float64() -> None:
    w = MoeWeights.from_float(*floats())
    l1, l2 = w.dequantize(torch.float64)
    assert l1.dtype == torch.float64
    up = w.l1(1).dequantize(torch.float64)[I:] * w.l1_alphas[1, 1].double()
    assert torch.equal(l1[1, I:], up)
    assert torch.equal(l2[2], w.l2(2).dequantize(torch.float64) * w.l2_alphas[2].double())


def test_checkpoint_dtypes_are_normalised_without_copies() -> None:
    w = MoeWeights.from_float(*floats())
    again = MoeWeights.from_checkpoint(
        as_float4_x2(w.l1_codes),
        w.l1_sf.view(torch.uint8),
        w.l2_codes.view(torch.int8),
        w.l2_sf,
        l1_global_scale=w.l1_alphas.double(),
        l2_global_scale=w.l2_alphas,
    )
    assert same(again, w)
    assert again.l1_codes.data_ptr() == w.l1_codes.data_ptr()
    assert again.l2_sf.data_ptr() == w.l2_sf.data_ptr()


def test_divisors_become_multipliers() -> None:
    w = MoeWeights.from_float(*floats())
    divisors = {"l1_global_scale": 1 / w.l1_alphas, "l2_global_scale": 1 / w.l2_alphas}
    again = MoeWeights.from_checkpoint(w.l1_codes, w.l1_sf, w.l2_codes, w.l2_sf, global_scale_divides=True, **divisors)
    torch.testing.assert_close(again.l1_alphas, w.l1_alphas, rtol=1e-6, atol=0)
    torch.testing.assert_close(again.l2_alphas, w.l2_alphas, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (torch.tensor(2.0), [[2, 2]] * E),
        (torch.tensor([1.0, 2, 3]), [[1, 1], [2, 2], [3, 3]]),
        (torch.tensor([7.0]), [[7, 7]] * E),
    ],
)
def test_global_scales_broadcast_over_gate_and_up(scale: torch.Tensor, expected: list[list[float]]) -> None:
    w = MoeWeights.from_float(*floats())
    again = MoeWeights.from_checkpoint(
        w.l1_codes, w.l1_sf, w.l2_codes, w.l2_sf, l1_global_scale=scale, l2_global_scale=torch.ones(())
    )
    assert again.l1_alphas.tolist() == expected
    assert again.l2_alphas.tolist() == [1.0] * E


def test_gpt_oss_blocks_and_interleaved_rows_are_put_in_order() -> None:
    l1, l2 = floats()
    bias = torch.randn(E, 2 * I)
    w = MoeWeights.from_float(l1, l2, "mxfp4", l1_bias=bias)

    def interleave(t: torch.Tensor) -> torch.Tensor:
        return torch.stack((t[:, :I], t[:, I:]), dim=2).flatten(1, 2)

    again = MoeWeights.from_checkpoint(
        interleave(w.l1_codes).view(E, 2 * I, H // 32, 16),
        interleave(w.l1_sf.view(torch.uint8)),
        w.l2_codes.view(E, H, I // 32, 16),
        w.l2_sf.view(torch.uint8),
        checkpoint="mxfp4",
        row_order="interleaved",
        l1_bias=interleave(bias),
    )
    assert same(again, w)


def test_to_moves_every_tensor() -> None:
    w = MoeWeights.random(1, 32, 32, bias=True)
    assert same(w.to("cpu"), w)
    assert w.to("cpu").l1_codes.data_ptr() == w.l1_codes.data_ptr()


def with_byte(t: torch.Tensor, byte: int) -> torch.Tensor:
    t = t.clone()
    t.view(torch.uint8).view(-1)[3] = byte
    return t


NV = MoeWeights.random(E, H, I, bias=True)
MX = MoeWeights.random(E, H, I, checkpoint="mxfp4")
BAD: list[tuple[MoeWeights, dict[str, Any], str]] = [
    (NV, {"checkpoint": "int4"}, "checkpoint='int4' is unknown"),
    (NV, {"checkpoint": "mxfp4"}, r"l1_sf is torch.float8_e4m3fn .*torch.float8_e8m0fnu \[3, 192, 2\] is needed"),
    (NV, {"l1_codes": NV.l1_codes.view(torch.int8)}, "l1_codes is torch.int8"),
    (NV, {"l2_codes": NV.l2_codes[0]}, "l2_codes is torch.uint8 .*experts, rows, K/2"),
    (NV, {"l1_codes": NV.l1_codes[:0]}, "at least one expert"),
    (NV, {"l1_codes": NV.l1_codes[..., :28].contiguous()}, "hidden=56 is no multiple of 16"),
    (NV, {"l2_codes": NV.l2_codes[..., :44].contiguous()}, "intermediate=88 is no multiple of 16"),
    (MX, {"l2_codes": MX.l2_codes[..., :40].contiguous()}, "intermediate=80 is no multiple of 32"),
    (NV, {"l1_codes": NV.l1_codes[:, :100].contiguous()}, "l1_codes has 100 rows"),
    (NV, {"l2_codes": NV.l2_codes[:2]}, r"l2_codes is torch.uint8 \[2, 64, 48\], but torch.uint8 \[3, 64, 48\]"),
    (NV, {"l1_sf": NV.l1_sf.view(torch.uint8)}, r"l1_sf is torch.uint8"),
    (NV, {"l1_alphas": NV.l1_alphas[:, 0]}, r"l1_alphas is torch.float32 \[3\], but torch.float32 \[3, 2\]"),
    (NV, {"l2_alphas": NV.l2_alphas.double()}, "l2_alphas is torch.float64"),
    (NV, {"l1_bias": NV.l2_bias}, "l1_bias is"),
    (NV, {"l2_codes": NV.l2_codes.mT.contiguous().mT}, "l2_codes .* has strides"),
    (NV, {"l2_alphas": torch.ones(E, device="meta")}, "l2_alphas is on meta, but l1_codes is on cpu"),
    (NV, {"l1_sf": with_byte(NV.l1_sf, 0x7F)}, "l1_sf holds 1 NaN block scales .byte 0x7F"),
    (NV, {"l2_sf": with_byte(NV.l2_sf, 0xFF)}, "l2_sf holds 1 negative block scales"),
    (NV, {"l2_sf": with_byte(NV.l2_sf, 0x80)}, "l2_sf holds 1 negative block scales"),
    (MX, {"l1_sf": with_byte(MX.l1_sf, 0xFF)}, "l1_sf holds 1 NaN block scales .byte 0xFF"),
    (
        NV,
        {"l2_alphas": torch.tensor([1.0, float("inf"), float("nan")])},
        "l2_alphas holds 2 values that are not finite",
    ),
    (NV, {"l1_bias": torch.full((E, 2 * I), float("nan"))}, "l1_bias holds 576 values"),
]


@pytest.mark.parametrize("case", BAD, ids=[case[2][:40] for case in BAD])
def test_bad_weights_are_refused_in_words(case: tuple[MoeWeights, dict[str, Any], str]) -> None:
    weights, change, sentence = case
    with pytest.raises(ArgumentError, match=sentence):
        replace(weights, **change)


def test_large_scales_are_no_fault() -> None:
    replace(NV, l1_sf=with_byte(NV.l1_sf, 0x7E))
    replace(MX, l1_sf=with_byte(MX.l1_sf, 0xFE))


CODES = (NV.l1_codes, NV.l1_sf, NV.l2_codes, NV.l2_sf)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: MoeWeights.from_float(torch.ones(2, 64, 32), torch.ones(2, 32, 64)),
            r"l1 has 64 rows, but 2 \* intermediate = 128",
        ),
        (lambda: MoeWeights.from_float(torch.ones(2, 64, 32), torch.ones(3, 32, 32)), "do not fit"),
        (lambda: MoeWeights.from_float(*floats(), "fp4"), "checkpoint='fp4' is unknown"),  # type: ignore[arg-type]
        (lambda: MoeWeights.from_checkpoint(*CODES), "needs l1_global_scale and l2_global_scale"),
        (
            lambda: MoeWeights.from_checkpoint(*CODES, l1_global_scale=torch.ones(7), l2_global_scale=torch.ones(())),
            r"a global scale has shape \[7\], but \[3, 2\], \[3\] or a scalar is needed",
        ),
        (lambda: MoeWeights.from_checkpoint(*CODES, row_order="up_gate"), "row_order='up_gate' is unknown"),  # type: ignore[arg-type]
        (lambda: MoeWeights.from_checkpoint(CODES[0].float(), *CODES[1:]), "uint8, int8 or float4_e2m1fn_x2"),
    ],
)
def test_bad_checkpoints_are_refused_in_words(call: Any, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        call()
