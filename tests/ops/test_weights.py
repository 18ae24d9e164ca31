import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megamoe_jit.errors import ArgumentError, UnsupportedError
from megamoe_jit.formats.adapt import adapt_weights_to_mxfp4
from megamoe_jit.formats.block_scaled import QuantFormat, QuantizedTensor
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.layouts.scales import pack_sf_words, permute_sf_for_utccp, to_blocked
from megamoe_jit.layouts.weights_sm90 import Sm90WeightLayout
from megamoe_jit.ops.weights import (
    TransformedWeights,
    _pack_nvfp4_sf_for_utccp,
    transform_nvfp4_weights_for_mega_moe,
    transform_weights,
    untransform_weights,
)
from megamoe_jit.recipes.recipe import RECIPES, get_recipe
from tests.marks import needs_gpu

EXACT = [name for name in RECIPES if name != "mxfp8_nvfp4"]
SM90 = [name for name, recipe in RECIPES.items() if recipe.targets == ("sm_90a",)]


def make(recipe: str, hidden: int = 160, intermediate: int = 96, *, gated: bool = True, seed: int = 0) -> MoeWeights:
    checkpoint = get_recipe(recipe).checkpoint
    return MoeWeights.random(3, hidden, intermediate, checkpoint=checkpoint, gated=gated, bias=True, seed=seed)


def bits(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous().view(torch.uint8)


def assert_same_bits(first: MoeWeights, second: MoeWeights) -> None:
    assert first.checkpoint == second.checkpoint
    for name in MoeWeights.__slots__:
        a, b = getattr(first, name), getattr(second, name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype, name
            assert torch.equal(bits(a), bits(b)), name
        else:
            assert a == b, name


def assert_same_transform(first: TransformedWeights, second: TransformedWeights) -> None:
    for name, block in first.expert_blocks().items():
        assert torch.equal(block, second.expert_blocks()[name]), name
    assert first.layout == second.layout
    assert (first.recipe, first.arch, first.gated) == (second.recipe, second.arch, second.gated)


@settings(max_examples=12)
@given(st.sampled_from(EXACT), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 100))
def test_round_trip_gives_the_same_bits(recipe: str, h: int, i: int, gated: bool, seed: int) -> None:
    gran_k = 16 if get_recipe(recipe).checkpoint == "nvfp4" else 32
    weights = make(recipe, gran_k * h, gran_k * i, gated=gated, seed=seed)
    l1, l2 = transform_weights(weights, recipe)
    assert_same_bits(untransform_weights(l1, l2), weights)


@pytest.mark.parametrize("recipe", SM90)
@pytest.mark.parametrize("gated", [True, False])
def test_scales_and_alphas_of_sm90_give_the_checkpoint_values(recipe: str, gated: bool) -> None:
    """What the kernel multiplies: UE4M3 scales as packed, alphas as packed, and the decoder's constant factor."""
    weights = make(recipe, gated=gated)
    for given_layer, expected in zip(
        transform_weights(weights, recipe), weights.dequantize(torch.float64), strict=True
    ):
        layout = given_layer.layout
        assert isinstance(layout, Sm90WeightLayout)
        codes, sf = layout.unpack(given_layer.data)
        values = QuantizedTensor(codes=codes, sf=sf, format=QuantFormat.NVFP4).dequantize(torch.float64)
        values = values.view(3, layout.branches, layout.rows, layout.k)
        factor = 8 if recipe.startswith("fp8") else 512
        plain = given_layer.alphas if given_layer.plain_alphas is None else given_layer.plain_alphas
        alphas = plain.double().view(3, -1)[:, : layout.branches, None, None]
        assert torch.equal((values * alphas / factor).view(expected.shape), expected)


@pytest.mark.parametrize("gated", [True, False])
def test_e4m3_products_are_off_by_nothing_on_average(gated: bool) -> None:
    """With the fitted alphas what is left of the rounding is orthogonal to what the tensor core multiplies."""
    weights = make("fp8_nvfp4", gated=gated)
    for given_layer, expected in zip(
        transform_weights(weights, "fp8_nvfp4"), weights.dequantize(torch.float64), strict=True
    ):
        assert given_layer.plain_alphas is not None
        branches = given_layer.layout.branches
        operand = weights.l1() if given_layer.layer == "l1" else weights.l2()
        exact = QuantizedTensor(codes=operand.codes, sf=operand.sf, format=QuantFormat.NVFP4).dequantize(torch.float64)
        rounded = (exact / 8).to(torch.float32).to(torch.float8_e4m3fn).double()
        alphas = given_layer.alphas.double().view(3, -1)[:, :branches, None, None]
        values, wanted = rounded.view(3, branches, -1, exact.shape[-1]), expected.view(3, branches, -1, exact.shape[-1])
        left = values * alphas - wanted
        assert float(((values * alphas * left).sum((2, 3)) / wanted.square().sum((2, 3))).abs().max()) < 1e-7
        plain = given_layer.plain_alphas.double().view(3, -1)[:, :branches, None, None]
        assert bool((left.square().sum((2, 3)) < (values * plain - wanted).square().sum((2, 3))).all())


def test_alphas_without_a_gate_are_repeated() -> None:
    weights = make("fp8_nvfp4", gated=False)
    l1, l2 = transform_weights(weights, "fp8_nvfp4")
    assert l1.plain_alphas is not None
    assert l2.plain_alphas is not None
    assert torch.equal(l1.plain_alphas, weights.l1_alphas.expand(3, 2) * 8)
    assert torch.equal(l1.alphas[:, 0], l1.alphas[:, 1])
    assert torch.equal(l2.plain_alphas, weights.l2_alphas * 8)


@pytest.mark.parametrize("recipe", ["nvfp4_nvfp4", "mxfp8_nvfp4"])
def test_blackwell_alphas_are_the_checkpoint_ones(recipe: str) -> None:
    weights = make(recipe)
    l1, l2 = transform_weights(weights, recipe)
    assert torch.equal(l1.alphas, weights.l1_alphas)
    assert torch.equal(l2.alphas, weights.l2_alphas)


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "nvfp4_nvfp4"])
def test_bias_is_in_padded_checkpoint_order(recipe: str) -> None:
    weights = make(recipe)
    l1, l2 = transform_weights(weights, recipe)
    assert l1.bias is not None
    assert l2.bias is not None
    assert weights.l1_bias is not None
    assert weights.l2_bias is not None
    assert l1.padded_rows == 128
    assert l1.bias.shape == (3, 256)
    assert torch.equal(l1.bias[:, :96], weights.l1_bias[:, :96])
    assert torch.equal(l1.bias[:, 128 : 128 + 96], weights.l1_bias[:, 96:])
    assert not l1.bias[:, 96:128].any()
    assert not l1.bias[:, 224:].any()
    assert torch.equal(l2.bias[:, :160], weights.l2_bias)
    assert not l2.bias[:, 160:].any()


def test_mxfp8_nvfp4_gives_back_what_the_kernel_multiplies() -> None:
    weights = make("mxfp8_nvfp4")
    back = untransform_weights(*transform_weights(weights, "mxfp8_nvfp4"))
    assert_same_bits(back, adapt_weights_to_mxfp4(weights))


def test_mxfp8_nvfp4_pads_a_half_block() -> None:
    weights = make("mxfp8_nvfp4", 176, 80)  # 5.5 and 2.5 blocks of 32
    l1, l2 = transform_weights(weights, "mxfp8_nvfp4")
    assert (l1.padded_k, l2.padded_k) == (256, 128)
    assert l1.sf is not None
    assert l1.sf.shape == (3, 256, 2)
    with pytest.raises(ArgumentError, match="hidden=176 is no multiple of 32"):
        untransform_weights(l1, l2)


@pytest.mark.parametrize("recipe", RECIPES)
def test_experts_are_relocatable(recipe: str) -> None:
    weights = make(recipe)
    order = [2, 0, 1]
    moved = {
        name: torch.stack([getattr(weights, name)[expert] for expert in order])
        for name in MoeWeights.__slots__
        if name != "checkpoint"
    }
    for plain, permuted in zip(
        transform_weights(weights, recipe), transform_weights(replace(weights, **moved), recipe), strict=True
    ):
        blocks = plain.expert_blocks()
        assert set(blocks) >= {"data", "alphas", "bias"}
        for name, block in blocks.items():
            assert torch.equal(block[order], permuted.expert_blocks()[name]), name


@pytest.mark.parametrize("recipe", ["fp8_mxfp4", "bf16_mxfp4"])
def test_mxfp4_scales_of_zero_groups_survive_sm90(recipe: str) -> None:
    weights = make(recipe)
    codes, sf = weights.l1_codes.clone(), weights.l1_sf.view(torch.uint8).clone()
    codes[:, ::3, :16] &= 0x88
    sf[:, ::3, 0] = torch.arange(64).to(torch.uint8) * 3  # as far off as they may be
    sf[0, 0, 0] = 254
    weights = replace(weights, l1_codes=codes, l1_sf=sf.view(torch.float8_e8m0fnu))
    assert_same_bits(untransform_weights(*transform_weights(weights, recipe)), weights)


def test_mxfp4_experts_without_any_weight() -> None:
    weights = make("bf16_mxfp4")
    weights = replace(weights, l1_codes=torch.zeros_like(weights.l1_codes))
    assert_same_bits(untransform_weights(*transform_weights(weights, "bf16_mxfp4")), weights)


def with_exponent_span(span: int) -> MoeWeights:
    """MXFP4 weights of which one group's scale (its codes all 0.5) lies 2^-span below all others of its matrix."""
    weights = make("fp8_mxfp4")
    codes, sf = weights.l2_codes.clone(), torch.full_like(weights.l2_sf.view(torch.uint8), 120)
    codes[:, 1:] |= 0x11
    codes[2, 5, 16:32] = 0x11
    sf[2, 5, 1] = 120 - span
    return replace(weights, l2_codes=codes, l2_sf=sf.view(torch.float8_e8m0fnu))


@pytest.mark.parametrize(("recipe", "span"), [("fp8_mxfp4", 13), ("bf16_mxfp4", 17)])
def test_mxfp4_exponents_may_span_what_the_decoder_holds(recipe: str, span: int) -> None:
    weights = with_exponent_span(span)
    assert_same_bits(untransform_weights(*transform_weights(weights, recipe)), weights)


@pytest.mark.parametrize(
    ("recipe", "span", "sentence"),
    [
        ("fp8_mxfp4", 14, r"L2 of expert 2, recipe fp8_mxfp4: 2 of 960 groups of 16 .*Use recipe bf16_mxfp4"),
        ("bf16_mxfp4", 18, r"L2 of expert 2, recipe bf16_mxfp4: 1 of \d+ groups have a scale more than 2\^17 below"),
    ],
)
def test_mxfp4_exponents_beyond_it_are_refused(recipe: str, span: int, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        transform_weights(with_exponent_span(span), recipe)


def base_pairs(checkpoint: str) -> tuple[MoeWeights, dict[str, torch.Tensor]]:
    weights = make("fp8_nvfp4" if checkpoint == "nvfp4" else "fp8_mxfp4")
    alphas = {} if checkpoint == "mxfp4" else {"l1_alphas": weights.l1_alphas, "l2_alphas": weights.l2_alphas}
    return replace(weights, l1_bias=None, l2_bias=None), alphas


CODE_FORMS = {
    "uint8": lambda codes: codes,
    "int8": lambda codes: codes.view(torch.int8),
    "float4": lambda codes: codes.view(torch.float4_e2m1fn_x2),
}
SF_FORMS = {
    "float8": lambda sf: sf,
    "uint8": lambda sf: sf.view(torch.uint8),
    "int8": lambda sf: sf.view(torch.int8),
    "int32 MN-major": pack_sf_words,
    "int32 K-major": lambda sf: pack_sf_words(sf).contiguous(),
    "strided uint8": lambda sf: sf.view(torch.uint8).transpose(1, 2).contiguous().transpose(1, 2),
}


@pytest.mark.parametrize("checkpoint", ["nvfp4", "mxfp4"])
@pytest.mark.parametrize("sf_form", SF_FORMS)
@pytest.mark.parametrize("code_form", CODE_FORMS)
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100f"])
def test_compatible_call_takes_every_form(checkpoint: str, sf_form: str, code_form: str, arch: str) -> None:
    weights, alphas = base_pairs(checkpoint)
    codes, sf = CODE_FORMS[code_form], SF_FORMS[sf_form]
    given_layers = transform_nvfp4_weights_for_mega_moe(
        (codes(weights.l1_codes), sf(weights.l1_sf)), (codes(weights.l2_codes), sf(weights.l2_sf)), arch=arch, **alphas
    )
    for given_layer, expected in zip(given_layers, transform_weights(weights, arch=arch), strict=True):
        assert_same_transform(given_layer, expected)


def test_compatible_call_defaults() -> None:
    weights, _ = base_pairs("nvfp4")
    pairs = (weights.l1_codes, weights.l1_sf), (weights.l2_codes, weights.l2_sf)
    l1, l2 = transform_nvfp4_weights_for_mega_moe(*pairs)
    assert (l1.recipe, l1.arch) == ("fp8_nvfp4", "sm_90a")
    assert l1.plain_alphas is not None
    assert l2.plain_alphas is not None
    assert torch.equal(l1.plain_alphas, torch.full((3, 2), 8.0))
    assert torch.equal(l2.plain_alphas, torch.full((3,), 8.0))
    l1, _ = transform_nvfp4_weights_for_mega_moe(*pairs, recipe="nvfp4_nvfp4", l1_alphas=torch.tensor([1.5, 2.5, 3.5]))
    assert (l1.recipe, l1.arch) == ("nvfp4_nvfp4", "sm_100a")
    assert torch.equal(l1.alphas, torch.tensor([[1.5, 1.5], [2.5, 2.5], [3.5, 3.5]]))


def test_gpt_oss_blocks_are_codes_too() -> None:
    weights, _ = base_pairs("mxfp4")
    blocks = weights.l1_codes.view(3, 192, 5, 16), weights.l2_codes.view(3, 160, 3, 16)
    l1, _ = transform_nvfp4_weights_for_mega_moe((blocks[0], weights.l1_sf), (blocks[1], weights.l2_sf))
    assert_same_transform(l1, transform_weights(weights)[0])


@pytest.mark.parametrize("form", ["float8", "uint8", "int8", "int32 MN-major", "int32 K-major"])
def test_pack_nvfp4_sf_for_utccp(form: str) -> None:
    sf = torch.randint(0, 127, (2, 256, 24), dtype=torch.uint8).view(torch.float8_e4m3fn)
    packed = _pack_nvfp4_sf_for_utccp(SF_FORMS[form](sf))
    assert packed.dtype == torch.int32
    assert packed.shape == (2, 256, 6)
    assert packed.stride() == (6 * 256, 1, 256)
    atoms = packed.transpose(1, 2).contiguous().view(torch.uint8).view(2, 6, 2, 512)
    assert torch.equal(atoms.transpose(1, 2).reshape(2, -1), to_blocked(sf))
    words = permute_sf_for_utccp(packed, inverse=True)
    assert torch.equal(words.contiguous().view(torch.uint8), sf.view(torch.uint8))


def test_blackwell_l2_codes_share_storage_when_nothing_is_padded() -> None:
    weights = make("nvfp4_nvfp4", 256, 128)
    _, l2 = transform_weights(weights, "nvfp4_nvfp4")
    assert l2.codes.data_ptr() == weights.l2_codes.data_ptr()


def test_noun_says_what_it_is() -> None:
    weights = make("nvfp4_nvfp4", 256, 128)
    l1, _ = transform_weights(weights, "nvfp4_nvfp4", "sm_100f")
    assert repr(l1).startswith("TransformedWeights(l1 of 3 experts, hidden=256, intermediate=128, recipe=nvfp4_nvfp4")
    assert l1.num_bytes == 3 * (256 * 256 * 9 // 16 + 2 * 4 + 256 * 4 + 4 * 4)
    assert l1.codes.shape == (3, 256, 128)
    moved = l1.to("cpu")
    assert moved.data is l1.data
    assert (moved.recipe, moved.layout) == (l1.recipe, l1.layout)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    ("recipe", "arch"), [("nvfp4_nvfp4", "sm_100f"), ("fp8_nvfp4", "sm_90a"), ("fp8_mxfp4", "sm_90a")]
)
def test_sizes_for_the_forecast_are_those_of_the_values(recipe: str, arch: str, gated: bool) -> None:
    weights = make(recipe, 288, 160, gated=gated)
    l1, l2 = transform_weights(weights, recipe, arch)
    values = weights.l1().dequantize(torch.float64) * weights.l1_row_alphas.double()[..., None]
    branches = 2 if gated else 1
    norms = values.view(3, branches, 160, 288).square().sum(-1).mean(-1).sqrt()
    assert weights.l1_bias is not None
    biases = weights.l1_bias.double().view(3, branches, 160).square().mean(-1).sqrt()
    assert l1.forecast is not None
    forecast = l1.forecast.view(3, 2, 2)[..., :branches]
    torch.testing.assert_close(forecast[:, 0].double(), norms, rtol=1e-6, atol=0)
    torch.testing.assert_close(forecast[:, 1].double(), biases, rtol=1e-6, atol=0)
    assert l2.forecast is None
    assert transform_weights(make("mxfp4_mxfp4", 256, 128), "mxfp4_mxfp4", "sm_100f")[0].forecast is None
    assert transform_weights(make("bf16_nvfp4", 256, 128), "bf16_nvfp4", "sm_90a")[0].forecast is None


NVFP4, NVFP4_ALPHAS = base_pairs("nvfp4")
MXFP4, _ = base_pairs("mxfp4")
L1, L2 = (NVFP4.l1_codes, NVFP4.l1_sf), (NVFP4.l2_codes, NVFP4.l2_sf)


@pytest.mark.parametrize(
    ("error", "call", "sentence"),
    [
        (
            UnsupportedError,
            lambda: transform_weights(NVFP4, "nvfp4_nvfp4", "sm_90a"),
            r"recipe='nvfp4_nvfp4' takes nvfp4 weights on sm_100a.*arch=sm_90a\. Use fp8_nvfp4 or bf16_nvfp4",
        ),
        (
            UnsupportedError,
            lambda: transform_weights(MXFP4, "fp8_nvfp4"),
            r"takes nvfp4 weights.*weights are mxfp4.*Use fp8_mxfp4 or bf16_mxfp4",
        ),
        (UnsupportedError, lambda: transform_weights(NVFP4, "int4"), r"recipe='int4' is unknown"),
        (UnsupportedError, lambda: transform_weights(NVFP4, arch="sm_80"), r"arch='sm_80' is not a known target"),
        (
            UnsupportedError,
            lambda: transform_weights(NVFP4, "fp8_nvfp4")[0].codes,
            r"are blocks .* not rows\. Use data",
        ),
        (
            ArgumentError,
            lambda: transform_weights(replace(NVFP4, l1_alphas=torch.full((3, 2), 1e38)), "bf16_nvfp4"),
            r"l1_alphas of expert 0 is 1e\+38, which the kernel needs times 2\^9: float32 cannot hold that\. Rescale",
        ),
        (
            ArgumentError,
            lambda: untransform_weights(*reversed(transform_weights(NVFP4))),
            r"l1 holds the layer 'l2', but 'l1' is needed\. Pass L1 first",
        ),
        (
            ArgumentError,
            lambda: untransform_weights(transform_weights(NVFP4)[0], transform_weights(NVFP4, "bf16_nvfp4")[1]),
            r"l1 has recipe='fp8_nvfp4' and l2 recipe='bf16_nvfp4'.*Pass both results of the same transform_weights",
        ),
        (
            ArgumentError,
            lambda: transform_nvfp4_weights_for_mega_moe(NVFP4.l1_codes, L2),
            r"l1_weights must be a pair \(codes, block scales\), not Tensor\. Pass both",
        ),
        (
            ArgumentError,
            lambda: transform_nvfp4_weights_for_mega_moe(L1, (NVFP4.l2_codes, NVFP4.l2_sf.float())),
            r"l2_weights have block scales torch\.float32 \[3, 160, 6\] for K=96\. NVFP4 needs float8_e4m3fn or bytes "
            r"with 6 columns or int32 words with 2; MXFP4 .* with 3 or int32 words with 1",
        ),
        (
            ArgumentError,
            lambda: transform_nvfp4_weights_for_mega_moe((NVFP4.l1_codes, NVFP4.l1_sf.view(torch.uint8)[..., :7]), L2),
            r"l1_weights have block scales torch\.uint8 \[3, 192, 7\] for K=160",
        ),
        (
            ArgumentError,
            lambda: transform_nvfp4_weights_for_mega_moe((NVFP4.l1_codes, MXFP4.l1_sf.view(torch.float8_e4m3fn)), L2),
            r"l1_weights have block scales torch\.float8_e4m3fn \[3, 192, 5\]",
        ),
        (
            ArgumentError,
            lambda: transform_nvfp4_weights_for_mega_moe((NVFP4.l1_codes, NVFP4.l1_sf[:, :10]), L2),
            r"l1_weights are codes \[3, 192, 80\] and block scales \[3, 10, 10\]",
        ),
        (
            ArgumentError,
            lambda: transform_nvfp4_weights_for_mega_moe(L1, (MXFP4.l2_codes, MXFP4.l2_sf)),
            r"l1_weights have nvfp4 block scales and l2_weights mxfp4: a layer has one format",
        ),
        (
            ArgumentError,
            lambda: transform_nvfp4_weights_for_mega_moe(L1, L2, l1_alphas=torch.ones(4)),
            r"a global scale has shape \[4\], but \[3, 2\], \[3\] or a scalar is needed",
        ),
        (
            ArgumentError,
            lambda: _pack_nvfp4_sf_for_utccp(torch.zeros(2, 100, 4, dtype=torch.uint8)),
            r"\[2, 100, 1\]; the UTCCP order takes .* multiple of 128",
        ),
        (
            ArgumentError,
            lambda: _pack_nvfp4_sf_for_utccp(torch.zeros(2, 128, 4)),
            r"sf is torch\.float32 .* of dtype uint8, int8, float8_e4m3fn",
        ),
    ],
)
def test_bad_input(error: type[Exception], call, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()


@needs_gpu
@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4", "nvfp4_nvfp4"])
def test_a_large_layer_transforms_quickly_and_without_a_second_copy(recipe: str) -> None:
    num_experts, hidden, intermediate = 48, 7168, 3072
    shapes = {"l1": (2 * intermediate, hidden), "l2": (hidden, intermediate)}
    tensors = {}
    for layer, (rows, k) in shapes.items():
        tensors[f"{layer}_codes"] = torch.randint(0, 256, (num_experts, rows, k // 2), dtype=torch.uint8, device="cuda")
        sf = torch.randint(0, 127, (num_experts, rows, k // 16), dtype=torch.uint8, device="cuda")
        tensors[f"{layer}_sf"] = sf.view(torch.float8_e4m3fn)
    alphas = {
        "l1_alphas": torch.ones(num_experts, 2, device="cuda"),
        "l2_alphas": torch.ones(num_experts, device="cuda"),
    }
    weights = MoeWeights(**tensors, **alphas)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    l1, l2 = transform_weights(weights, recipe, get_recipe(recipe).targets[0])
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    one_expert = tensors["l1_codes"][0].numel()
    assert torch.cuda.max_memory_allocated() - before < l1.num_bytes + l2.num_bytes + 8 * one_expert
    assert seconds < 5, "about one second on an H200; the bound leaves room for a busy machine"
    assert_same_bits(untransform_weights(l1, l2), weights)
