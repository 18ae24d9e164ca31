"""The public calls on the reference backend: every recipe, every form of input, bit for bit the oracle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megamoe_jit import (
    ActivationSpec,
    MegaMoE,
    MoeWeights,
    SymmBuffer,
    fp8_nvfp4_mega_moe,
    get_recipe,
    list_recipes,
    stage_tokens,
    transform_weights,
)
from megamoe_jit.errors import ArgumentError
from megamoe_jit.ops.tokens import quantize_tokens
from megamoe_jit.reference.moe import expert_counts, moe_reference
from megamoe_jit.reference.rounding_points import rounding_points
from tests.ops.layers import (
    CAPACITY,
    EXPERTS,
    HIDDEN,
    TOPK,
    buffer,
    call,
    layer,
    routing,
    stage,
    tokens,
    transformed,
    weights,
)

# Dtypes and columns of a buffer's views: x, x_sf packed, x_sf plain, and whether there are x_scales.
VIEWS = {
    "nvfp4_nvfp4": (torch.uint8, 64, (torch.int32, 2), (torch.float8_e4m3fn, 8), True),
    "mxfp8_mxfp4": (torch.float8_e4m3fn, 128, (torch.int32, 1), (torch.float8_e8m0fnu, 4), False),
    "mxfp8_nvfp4": (torch.float8_e4m3fn, 128, (torch.int32, 1), (torch.float8_e8m0fnu, 4), False),
    "mxfp4_mxfp4": (torch.uint8, 64, (torch.int32, 1), (torch.float8_e8m0fnu, 4), False),
    "fp8_nvfp4": (torch.float8_e4m3fn, 128, (torch.float32, None), (torch.float32, None), False),
    "bf16_nvfp4": (torch.bfloat16, 128, None, None, False),
    "fp8_mxfp4": (torch.float8_e4m3fn, 128, (torch.float32, None), (torch.float32, None), False),
    "bf16_mxfp4": (torch.bfloat16, 128, None, None, False),
}
BLOCK_SCALED = [name for name in list_recipes() if get_recipe(name).l1_acts.gran_k is not None]


@pytest.fixture(autouse=True)
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_BACKEND", "reference")


def oracle(recipe: str, num_tokens: int = 6, **changes: object) -> Tensor:
    """Return the oracle's result for the layer's tokens."""
    topk_idx, topk_weights = routing(num_tokens)
    arguments: dict[str, object] = {"rounding": recipe, **changes}
    return moe_reference(tokens(num_tokens), topk_idx, topk_weights, weights(recipe), **arguments).y  # type: ignore[arg-type]


def oracle_of_codes(recipe: str, num_tokens: int = 6, **changes: object) -> Tensor:
    """Return the oracle's result for tokens that come as codes: in E4M3 with one scale a token."""
    points = rounding_points(recipe, **({"l1_acts": "fp8_token"} if recipe.startswith("fp8") else {}))
    return oracle(recipe, num_tokens, rounding=points, **changes)


def run(recipe: str, filled: SymmBuffer, num_tokens: int = 6, **changes: object) -> Tensor:
    """Call fp8_nvfp4_mega_moe into poisoned memory."""
    y = torch.full((num_tokens, HIDDEN), float("nan"), dtype=torch.bfloat16)
    l1, l2 = transformed(recipe)
    result = fp8_nvfp4_mega_moe(y, l1, l2, filled, **changes)  # type: ignore[arg-type]
    assert result is y
    return y


@pytest.mark.parametrize("recipe", list_recipes())
@pytest.mark.parametrize("num_tokens", [1, 6, CAPACITY])
def test_a_layer_is_the_oracle(recipe: str, num_tokens: int) -> None:
    """With neither arch nor capacity given: on the CPU the recipe's first target is imitated."""
    moe = MegaMoE(weights(recipe), recipe=recipe)
    y = moe(tokens(num_tokens), *routing(num_tokens))
    assert moe.arch.name == moe.sym_buffer.arch.name == get_recipe(recipe).targets[0]
    assert y.dtype == torch.bfloat16
    assert torch.equal(y.double(), oracle(recipe, num_tokens))
    assert not torch.equal(y.double(), oracle(recipe, num_tokens, rounding="exact"))


@pytest.mark.parametrize("recipe", list_recipes())
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("view_dtype", [torch.int32, torch.int64])
def test_staged_tokens_give_the_oracle(recipe: str, index_dtype: torch.dtype, view_dtype: torch.dtype) -> None:
    staged = stage(topk_idx=routing(6, index_dtype)[0], sym_buffer=buffer(recipe=recipe, topk_idx_dtype=view_dtype))
    assert staged.topk_idx.dtype == view_dtype
    assert torch.equal(run(recipe, staged).double(), oracle(recipe))


def sf_forms(x_sf: Tensor | None) -> dict[str, Tensor | None]:
    """Return scale factors in each form that `fill` takes."""
    if x_sf is None or x_sf.dtype == torch.float32:
        return {"as they are": x_sf}
    raw = x_sf.view(torch.uint8)
    strided = torch.stack((raw, raw), dim=2)[..., 0].view(x_sf.dtype)
    return {
        "float8": x_sf,
        "uint8": raw,
        "int8": raw.view(torch.int8),
        "packed": raw.view(torch.int32),
        "strided": strided,
    }


def code_forms(x: Tensor) -> dict[str, Tensor]:
    """Return codes in each form that `fill` takes."""
    if x.dtype == torch.bfloat16:
        return {"bf16": x, "strided": torch.stack((x, x), dim=2)[..., 0]}
    raw = x.view(torch.uint8)
    forms = {"codes": x, "uint8": raw, "int8": raw.view(torch.int8), "strided": raw.T.contiguous().T.view(x.dtype)}
    return {**forms, "x2": raw.view(torch.float4_e2m1fn_x2)} if x.dtype == torch.uint8 else forms


@pytest.mark.parametrize("recipe", list_recipes())
@pytest.mark.parametrize("packed_sf", [True, False])
def test_every_form_of_codes_and_scale_factors_gives_the_oracle(recipe: str, packed_sf: bool) -> None:
    x, x_sf, x_scales = quantize_tokens(tokens(), get_recipe(recipe))
    wanted = oracle_of_codes(recipe)
    codes, scales = code_forms(x), sf_forms(x_sf)
    pairs = [
        (code, scale) for code in codes for scale in scales if code == next(iter(codes)) or scale == next(iter(scales))
    ]
    for code, scale in pairs:
        filled = buffer(recipe=recipe, packed_sf=packed_sf)
        filled.fill(codes[code], scales[scale], *routing(), x_scales=x_scales)
        assert torch.equal(run(recipe, filled).double(), wanted), (code, scale)


@pytest.mark.parametrize("recipe", list_recipes())
@pytest.mark.parametrize("packed_sf", [True, False])
def test_views_are_as_documented_and_may_be_written(recipe: str, packed_sf: bool) -> None:
    dtype, columns, packed, plain, has_scales = VIEWS[recipe]
    made = buffer(recipe=recipe, packed_sf=packed_sf)
    assert (made.x.dtype, tuple(made.x.shape)) == (dtype, (CAPACITY, columns))
    form = packed if packed_sf else plain
    assert (made.x_sf is None) == (form is None)
    if made.x_sf is not None and form is not None:
        assert made.x_sf.dtype == form[0]
        assert tuple(made.x_sf.shape) == ((CAPACITY,) if form[1] is None else (CAPACITY, form[1]))
    assert (made.x_scales is not None) == has_scales
    assert made.topk_idx.dtype == torch.int64
    assert tuple(made.topk_idx.shape) == tuple(made.topk_weights.shape) == (CAPACITY, TOPK)
    assert bool((made.topk_idx == -1).all())

    x, x_sf, x_scales = quantize_tokens(tokens(), get_recipe(recipe))
    made.x[:6] = x
    if made.x_sf is not None and x_sf is not None:
        made.x_sf[:6] = x_sf.view(made.x_sf.dtype)
    if made.x_scales is not None and x_scales is not None:
        made.x_scales[:6] = x_scales
    made.topk_idx[:6], made.topk_weights[:6] = routing()
    assert torch.equal(run(recipe, made).double(), oracle_of_codes(recipe))
    assert torch.equal(
        run(recipe, made, 3).double(), oracle_of_codes(recipe)[:3]
    )  # y says how many tokens the call has


@pytest.mark.parametrize("recipe", BLOCK_SCALED)
def test_packed_scale_factors_hold_the_least_k_in_the_lowest_byte(recipe: str) -> None:
    _, x_sf, x_scales = quantize_tokens(tokens(), get_recipe(recipe))
    assert x_sf is not None
    staged = stage(sym_buffer=buffer(recipe=recipe, packed_sf=True))
    words = x_sf.view(torch.uint8).long().view(6, -1, 4) << torch.tensor([0, 8, 16, 24])
    assert staged.x_sf is not None
    assert torch.equal(staged.x_sf[:6].long() & 0xFFFFFFFF, words.sum(2))
    if x_scales is not None:
        assert staged.x_scales is not None
        assert torch.equal(staged.x_scales[:6], x_scales)


@pytest.mark.parametrize("recipe", list_recipes())
def test_zero_tokens(recipe: str) -> None:
    moe = layer(weights=weights(recipe), recipe=recipe)
    stats = torch.ones(EXPERTS, dtype=torch.int32)
    y = moe(tokens(0), *routing(0), recv_stats=stats)
    assert tuple(y.shape) == (0, HIDDEN)
    assert stats.tolist() == [1] * EXPERTS
    empty = stage(x=tokens(0), topk_idx=routing(0)[0], topk_weights=routing(0)[1], sym_buffer=buffer(recipe=recipe))
    assert empty.num_staged == 0
    assert tuple(run(recipe, empty, 0).shape) == (0, HIDDEN)


@pytest.mark.parametrize("nowhere", [-1, EXPERTS, -(2**40), 2**40])
@pytest.mark.parametrize("view_dtype", [torch.int32, torch.int64])
def test_slots_that_are_not_routed_add_nothing(nowhere: int, view_dtype: torch.dtype) -> None:
    """Not even where 2^40 would be expert 0 in 32 bits."""
    shared = buffer(topk_idx_dtype=view_dtype)
    topk_idx, topk_weights = routing()
    one_slot = topk_idx.clone()
    one_slot[:, 1] = nowhere
    y = layer(sym_buffer=shared)(tokens(), one_slot, topk_weights)
    masked = torch.where(one_slot == nowhere, -1, one_slot)
    assert torch.equal(y.double(), moe_reference(tokens(), masked, topk_weights, weights(), rounding="fp8_nvfp4").y)
    out = torch.full_like(tokens(), float("nan"))
    assert not layer(sym_buffer=shared)(tokens(), torch.full_like(topk_idx, nowhere), topk_weights, out=out).any()
    assert not out.any()


def test_statistics_are_added_to() -> None:
    stats = torch.arange(EXPERTS, dtype=torch.int32)
    moe = layer()
    for _ in range(2):
        moe(tokens(), *routing(), recv_stats=stats)
    counts = expert_counts(routing()[0], EXPERTS)
    assert stats.tolist() == (torch.arange(EXPERTS) + 2 * counts).tolist()
    call(cumulative_local_expert_recv_stats=stats)
    assert stats.tolist() == (torch.arange(EXPERTS) + 3 * counts).tolist()


def test_an_own_buffer_grows_and_then_stays() -> None:
    moe = layer()
    moe(tokens(), *routing())
    first = moe.sym_buffer
    address = first.x.data_ptr()
    assert first.num_max_tokens_per_rank == 128
    moe(tokens(128), *routing(128))
    assert moe.sym_buffer is first
    y = moe(tokens(129), *routing(129))
    assert moe.sym_buffer is not first
    assert moe.sym_buffer.num_max_tokens_per_rank == 256
    assert torch.equal(y.double(), oracle("fp8_nvfp4", 129))
    assert torch.equal(moe(tokens(), *routing()).double(), oracle("fp8_nvfp4"))
    assert moe.sym_buffer.num_max_tokens_per_rank == 256
    # A captured graph may still write to what was outgrown.
    assert not first.is_destroyed
    assert first.x.data_ptr() == address


@pytest.mark.parametrize(
    ("calls", "capacities"),
    [
        ([0, 1, 128, 129, 256, 257], [128, 256, 512]),
        ([100, 1000, 1025], [128, 1024, 2048]),
        ([40000, 40065], [40064, 65536]),
    ],
)
def test_growth_doubles_up_to_the_largest_capacity(
    calls: list[int], capacities: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(self: MegaMoE, num_topk: int, capacity: int) -> SimpleNamespace:
        made.append(capacity)
        return SimpleNamespace(num_max_tokens_per_rank=capacity)

    monkeypatch.setattr(MegaMoE, "_make_buffer", make)
    moe = layer()
    for num_tokens in calls:
        moe._buffer_for(torch.empty(num_tokens, TOPK, dtype=torch.int64, device="meta"))
    assert made == capacities


def test_sizes_given_at_construction_make_the_buffer_at_once() -> None:
    moe = layer(num_topk=TOPK, max_tokens_per_rank=CAPACITY)
    made = moe.sym_buffer
    moe.prepare()  # the reference has nothing to prepare
    assert (made.num_topk, made.num_max_tokens_per_rank) == (TOPK, CAPACITY)
    moe(tokens(CAPACITY), *routing(CAPACITY))
    assert moe.sym_buffer is made


def test_layers_share_a_buffer() -> None:
    """Two layers take turns on one buffer, and a third that is not gated."""
    shared = buffer()
    other = MoeWeights.random(EXPERTS, HIDDEN, 128, seed=9)
    ungated = MoeWeights.random(EXPERTS, HIDDEN, 128, seed=10, gated=False)
    layers = (
        (layer(sym_buffer=shared), weights(), ActivationSpec()),
        (layer(weights=other, sym_buffer=shared, activation="gelu"), other, ActivationSpec(kind="gelu")),
        (layer(weights=ungated, sym_buffer=shared, activation="relu2"), ungated, ActivationSpec(kind="relu2")),
    )
    for _ in range(2):
        for moe, own, activation in layers:
            wanted = moe_reference(tokens(), *routing(), own, activation=activation, rounding="fp8_nvfp4").y
            assert moe.sym_buffer is shared
            assert torch.equal(moe(tokens(), *routing()).double(), wanted)


def test_out_is_written_and_returned() -> None:
    out = torch.full_like(tokens(), float("nan"))
    assert layer()(tokens(), *routing(), out=out) is out
    assert torch.equal(out.double(), oracle("fp8_nvfp4"))
    wide = torch.full((6, 200), 7.0).bfloat16()
    layer()(tokens(), *routing(), out=wide[:, 30 : 30 + HIDDEN])
    assert torch.equal(wide[:, 30 : 30 + HIDDEN], out)
    assert bool((wide[:, :30] == 7).all())
    assert bool((wide[:, 30 + HIDDEN :] == 7).all())


def test_out_may_be_the_tokens() -> None:
    x = tokens().clone()
    layer()(x, *routing(), out=x)
    assert torch.equal(x.double(), oracle("fp8_nvfp4"))


def test_strided_tokens_are_taken_as_they_lie() -> None:
    wide = torch.zeros(6, 200).bfloat16()
    wide[:, 5 : 5 + HIDDEN] = tokens()
    y = layer()(wide[:, 5 : 5 + HIDDEN], *routing())
    assert y.is_contiguous()
    assert torch.equal(y.double(), oracle("fp8_nvfp4"))


def test_routed_scaling_factor() -> None:
    wanted = oracle("fp8_nvfp4", routed_scaling_factor=2.5)
    assert torch.equal(layer(routed_scaling_factor=2.5)(tokens(), *routing()).double(), wanted)
    assert torch.equal(call(routed_scaling_factor=2.5).double(), wanted)
    assert torch.equal(call(routed_scaling_factor=2).double(), oracle("fp8_nvfp4", routed_scaling_factor=2.0))
    assert not torch.equal(wanted, oracle("fp8_nvfp4"))


def test_the_stage_of_the_topk_weight() -> None:
    """Scales are powers of two, so that codes depend on what is multiplied before them."""
    points = rounding_points("mxfp8_nvfp4", topk_weight_stage="before_requant")
    wanted = oracle("mxfp8_nvfp4", rounding=points)
    given: dict[str, Any] = {"recipe": "mxfp8_nvfp4", "topk_weight_stage": "before_requant"}
    assert torch.equal(layer(**given)(tokens(), *routing()).double(), wanted)
    assert not torch.equal(wanted, oracle("mxfp8_nvfp4"))


ACTIVATIONS = [
    ({"activation": "swiglu"}, ActivationSpec()),
    ({"activation": "swiglu", "activation_clamp": 0.5}, ActivationSpec(clamp=0.5)),
    ({"activation_alpha": 1.702, "activation_up_bias": 1.0, "activation_clamp": 7.0}, ActivationSpec.swigluoai()),
    ({"activation": ActivationSpec.swigluoai()}, ActivationSpec.swigluoai()),
    ({"activation": "gelu", "activation_up_bias": 0.5}, ActivationSpec(kind="gelu", up_bias=0.5)),
    ({"activation": "relu2"}, ActivationSpec(kind="relu2")),
    ({"activation": "relu2", "activation_clamp": 0.25, "fast_math": False}, ActivationSpec(kind="relu2", clamp=0.25)),
]


@pytest.mark.parametrize(("arguments", "spec"), ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_activations_and_biases(arguments: dict[str, object], spec: ActivationSpec, bias: bool) -> None:
    own = weights(gated=spec.gated, bias=bias)
    l1, l2 = transformed(gated=spec.gated, bias=bias)
    wanted = moe_reference(tokens(), *routing(), own, activation=spec, rounding="fp8_nvfp4").y
    assert torch.equal(call(l1_weights=l1, l2_weights=l2, **arguments).double(), wanted)
    assert torch.equal(layer(weights=own, activation=spec)(tokens(), *routing()).double(), wanted)
    assert torch.equal(layer(weights=(l1, l2), activation=spec)(tokens(), *routing()).double(), wanted)


@pytest.mark.parametrize(("recipe", "gran_k"), [("fp8_nvfp4", 16), ("mxfp8_nvfp4", 16), ("fp8_mxfp4", 32)])
def test_the_recipe_tuple_names_the_checkpoints_scale_factors(recipe: str, gran_k: int) -> None:
    for given in ((1, 1, gran_k), [1, 1, gran_k], torch.Size((1, 1, gran_k)), None):
        staged = stage(sym_buffer=buffer(recipe=recipe))
        l1, l2 = transformed(recipe)
        y = fp8_nvfp4_mega_moe(torch.empty_like(tokens()), l1, l2, staged, None, given)
        assert torch.equal(y.double(), oracle(recipe))


def test_defaults_follow_checkpoint_arch_and_pair() -> None:
    assert layer().recipe.name == buffer().recipe.name == "fp8_nvfp4"
    assert layer(weights=weights("fp8_mxfp4")).recipe.name == "fp8_mxfp4"
    assert layer(arch="sm_103a").recipe.name == "nvfp4_nvfp4"
    assert buffer(arch="sm_103a").recipe.name == "nvfp4_nvfp4"
    pair = transform_weights(weights(), "nvfp4_nvfp4", "sm_100f")
    assert (layer(weights=pair).arch.name, layer(weights=pair).recipe.name) == ("sm_100f", "nvfp4_nvfp4")
    assert torch.equal(layer(weights=pair)(tokens(), *routing()).double(), oracle("nvfp4_nvfp4"))


def test_a_call_without_staging_reads_the_views() -> None:
    """`fill` after `stage_tokens` wins; so does what was staged before, once it was used."""
    staged = stage()
    x, x_sf, _ = quantize_tokens(tokens() * 2, get_recipe("fp8_nvfp4"))
    staged.fill(x, x_sf, *routing())
    points = rounding_points("fp8_nvfp4", l1_acts="fp8_token")
    doubled = moe_reference(tokens() * 2, *routing(), weights(), rounding=points).y
    assert torch.equal(run("fp8_nvfp4", staged).double(), doubled)
    stage_tokens(tokens(), *routing(), staged)
    assert staged.num_staged == 6
    assert torch.equal(run("fp8_nvfp4", staged).double(), oracle("fp8_nvfp4"))
    assert staged.num_staged is None
    assert tuple(run("fp8_nvfp4", staged, 2).shape) == (2, HIDDEN)


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "fp8_mxfp4"])
def test_tokens_quantised_with_other_scales_are_taken_as_they_are(recipe: str) -> None:
    """Codes need not reach 448, as with static scales; rounding them to scales of their own would change them."""
    scales = torch.full((6,), 0.037)
    codes = (tokens() / scales[:, None]).clamp(-300, 300).to(torch.float8_e4m3fn)
    filled = buffer(recipe=recipe)
    filled.fill(codes, scales, *routing())
    values = codes.double() * scales.double()[:, None]
    rounding = rounding_points(recipe, l1_acts=None)
    wanted = moe_reference(values, *routing(), weights(recipe), rounding=rounding).y
    assert torch.equal(run(recipe, filled).double(), wanted)
    assert not torch.equal(wanted, moe_reference(values, *routing(), weights(recipe), rounding=recipe).y)


def test_no_gradient_is_recorded() -> None:
    moe = layer(num_topk=TOPK, max_tokens_per_rank=CAPACITY)
    y = moe(tokens().clone().requires_grad_(), routing()[0], routing()[1].clone().requires_grad_())
    assert not y.requires_grad
    assert not moe.sym_buffer.x.requires_grad
    assert not moe.sym_buffer.topk_weights.requires_grad


def test_inference_mode_and_plain_calls_share_a_buffer() -> None:
    with torch.inference_mode():
        moe = layer(num_topk=TOPK, max_tokens_per_rank=CAPACITY)
        inside = moe(tokens(), *routing())
    assert torch.equal(inside, moe(tokens(), *routing()))


def test_expert_parallel_names() -> None:
    made = buffer()
    assert (made.num_experts, made.num_topk, made.hidden, made.intermediate_hidden) == (EXPERTS, TOPK, HIDDEN, 128)
    assert (made.rank, made.experts_start_idx) == (0, 0)


def test_a_second_call_is_checked_as_the_first() -> None:
    """A call that looks like the last one is not checked again; any that differs is."""
    layer = MegaMoE(MoeWeights.random(4, 64, 64), num_topk=2, max_tokens_per_rank=8)
    x, topk_idx, topk_weights = torch.randn(4, 64).bfloat16(), torch.zeros(4, 2, dtype=torch.int64), torch.rand(4, 2)
    y = layer(x, topk_idx, topk_weights, out=torch.empty_like(x))
    assert torch.equal(layer(x, topk_idx, topk_weights, out=torch.empty_like(x)), y)
    assert torch.equal(layer(x, topk_idx, topk_weights), y)
    wide = torch.zeros(4, 4, dtype=torch.int64)
    for bad, sentence in (
        ((x.float(), topk_idx, topk_weights), "x is torch.float32"),
        ((x[:3], topk_idx, topk_weights), "x is torch.bfloat16 \\[3, 64\\]"),
        ((x, topk_idx.to(torch.int16), topk_weights), "topk_idx is torch.int16"),
        ((x, wide[:, ::2], topk_weights), "topk_idx .* has strides"),
        ((x, topk_idx, topk_weights.double()), "topk_weights is torch.float64"),
        ((x, topk_idx, topk_weights.to("meta")), "topk_weights is on meta"),
        ((x, topk_idx, None), "topk_weights is a NoneType"),
    ):
        with pytest.raises(ArgumentError, match=sentence):
            layer(*bad)  # type: ignore[arg-type]
        assert torch.equal(layer(x, topk_idx, topk_weights), y)
    for bad_out, sentence in (
        (torch.empty(4, 64), "y is torch.float32"),
        (torch.empty(64, 4).bfloat16().T, "y .* has strides"),
        (torch.empty(4, 64, dtype=torch.bfloat16, requires_grad=True), "requires grad"),
    ):
        layer(x, topk_idx, topk_weights, out=torch.empty_like(x))
        with pytest.raises(ArgumentError, match=sentence):
            layer(x, topk_idx, topk_weights, out=bad_out)
    layer(x, topk_idx, topk_weights)
    layer.sym_buffer.destroy()
    with pytest.raises(ArgumentError, match="destroyed"):
        layer(x, topk_idx, topk_weights)
