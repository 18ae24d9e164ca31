import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.formats.adapt import adapt_nvfp4_to_mxfp4
from megamoe_jit.formats.block_scaled import (
    QuantFormat,
    quantize_to_fp8,
    quantize_to_mxfp4,
    quantize_to_mxfp8,
    quantize_to_nvfp4,
)
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.reference.compare import rel_l2
from megamoe_jit.reference.moe import activate, moe_reference, round_acts
from megamoe_jit.reference.rounding_points import RoundingPoints, list_rounding_points, rounding_points

T, H, I, E, K = 13, 64, 160, 5, 3  # noqa: E741
RECIPES = [name for name in list_rounding_points() if name != "exact"]


def inputs(seed: int = 0, num_tokens: int = T) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, routing with masked slots and one idle expert, and weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_tokens, H, generator=generator).bfloat16()
    topk_idx = torch.rand(num_tokens, E - 1, generator=generator).topk(K).indices
    topk_idx[torch.rand(num_tokens, K, generator=generator) < 0.2] = -1
    topk_idx[:1] = -1
    return x, topk_idx, torch.rand(num_tokens, K, generator=generator) + 0.1


def layer(checkpoint: str = "nvfp4", gated: bool = True, bias: bool = True) -> MoeWeights:
    return MoeWeights.random(E, H, I, seed=3, checkpoint=checkpoint, gated=gated, bias=bias)  # type: ignore[arg-type]


def bf16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def identity(values: np.ndarray) -> np.ndarray:
    return values


def by(quantize: Callable[[torch.Tensor], Any]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda row: quantize(torch.from_numpy(row)).dequantize(torch.float64).numpy()


ROUND: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: identity,
    "bf16": bf16,
    "fp8_token": by(quantize_to_fp8),
    "fp8_128": by(lambda row: quantize_to_fp8(row, gran_k=128)),
    "fp8_512": by(lambda row: quantize_to_fp8(row, gran_k=512)),
    "mxfp8": by(quantize_to_mxfp8),
    "mxfp4": by(quantize_to_mxfp4),
    "nvfp4_token": by(quantize_to_nvfp4),  # of one row: the tensor is the token
}


def activate_slowly(l1: np.ndarray, spec: ActivationSpec) -> np.ndarray:
    out = []
    gated = spec.kind != "relu2"
    for i in range(len(l1) // 2 if gated else len(l1)):
        if not gated:
            v = min(l1[i], math.inf if spec.clamp is None else spec.clamp)
            out.append(max(v, 0.0) ** 2)
            continue
        g, u = l1[i], l1[len(l1) // 2 + i]
        if spec.clamp is not None:
            g, u = min(g, spec.clamp), min(max(u, -spec.clamp), spec.clamp)
        h = g / (1 + math.exp(-spec.alpha * g)) if spec.kind == "swiglu" else g * 0.5 * (1 + math.erf(g / math.sqrt(2)))
        out.append(h * (u + spec.up_bias))
    return np.array(out)


def round_with_foreseen_scale(
    h: np.ndarray,
    token: torch.Tensor,
    l1: np.ndarray,
    alphas: np.ndarray,
    bias: np.ndarray,
    spec: ActivationSpec,
    weight: float,
    rounding: str,
) -> np.ndarray:
    """Round with a power of two foreseen from the sizes of token, weights and biases, and the weight that h has."""
    rms = float(token.double().abs().max()) / 4
    sizes = []
    for part in np.split(np.arange(len(l1)), 1 if spec.kind == "relu2" else 2):
        squares = sum(float(v) ** 2 for v in l1[part].flat) / len(part)
        offset = math.sqrt(sum(float(v) ** 2 for v in bias[part]) / len(part))
        sizes.append(rms * alphas[part[0]] * math.sqrt(squares) + offset)
    product = sizes[0] * (sizes[0] if spec.kind == "relu2" else sizes[1] + abs(spec.up_bias)) * abs(weight)
    if rounding == "nvfp4_foreseen":
        scale = 2.0 ** math.floor(math.log2(product / 8))
        return quantize_to_nvfp4(torch.from_numpy(h), global_scale=scale).dequantize(torch.float64).numpy()
    scale = 2.0 ** math.floor(math.log2(product / 4))
    return np.concatenate([round_e4m3_block(h[i : i + 128], scale) for i in range(0, len(h), 128)])


def round_e4m3_block(block: np.ndarray, foreseen: float) -> np.ndarray:
    """E4M3 with the foreseen scale, or, where the largest value does not lie in 1/4 .. 448 times it, one of its own."""
    largest = np.abs(block).max()
    fits = largest == 0 or foreseen / 4 <= largest <= 448 * foreseen
    scale = foreseen if fits else 2.0 ** (math.floor(math.log2(max(largest, 1e-10) / 448)) + 1)
    return (block.astype(np.float32) / np.float32(scale)).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


def moe_slowly(
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weights: torch.Tensor,
    weights: MoeWeights,
    *,
    spec: ActivationSpec,
    points: RoundingPoints,
    scaling: float = 1.0,
    l1: np.ndarray | None = None,
    l2: np.ndarray | None = None,
) -> np.ndarray:
    """One token, one slot, one value at a time; `l1` and `l2` stand in for the dequantised weights without alphas."""
    a1, a2 = weights.l1_row_alphas.double().numpy(), weights.l2_alphas.double().numpy()
    l1 = weights.l1().dequantize(torch.float64).numpy() if l1 is None else l1
    l2 = weights.l2().dequantize(torch.float64).numpy() if l2 is None else l2
    b1 = np.zeros(a1.shape) if weights.l1_bias is None else weights.l1_bias.double().numpy()
    b2 = np.zeros(l2.shape[:2]) if weights.l2_bias is None else weights.l2_bias.double().numpy()
    y = np.zeros((len(x), weights.hidden))
    before = points.topk_weight_stage == "before_requant"
    for t in range(len(x)):
        row = ROUND[points.l1_acts](x[t].double().numpy())
        total = np.zeros(weights.hidden, np.float32 if points.sum else np.float64)
        for k in range(topk_idx.shape[1]):
            e, w = int(topk_idx[t, k]), float(topk_weights[t, k])
            if e < 0:
                continue
            gate_up = (l1[e] @ row) * a1[e] + b1[e]
            h = activate_slowly(bf16(gate_up) if points.gate_up else gate_up, spec) * (w if before else 1.0)
            if points.l2_acts in ("nvfp4_foreseen", "fp8_foreseen"):
                weight = w if before else 1.0
                h = round_with_foreseen_scale(h, x[t], l1[e], a1[e], b1[e], spec, weight, points.l2_acts)
            else:
                h = ROUND[points.l2_acts](h)
            out = (l2[e] @ h) * a2[e] + b2[e] * (w if before else 1.0)
            out = out * (1.0 if before else w)
            total += (bf16(out) if points.partial else out).astype(total.dtype)
        y[t] = total * total.dtype.type(scaling)
    return bf16(y) if points.out else y


def assert_close(actual: torch.Tensor, expected: np.ndarray, points: RoundingPoints) -> None:
    """float64 sums taken in another order may move a rounding by one step, in few places."""
    if points.out is None and points.l2_acts is None:
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)
    else:
        assert rel_l2(actual, torch.from_numpy(expected)) < 1e-4


SPECS = [
    ActivationSpec(),
    ActivationSpec(clamp=0.7),
    ActivationSpec.swigluoai(),
    ActivationSpec(alpha=1.3, up_bias=0.5, clamp=0.4),
    ActivationSpec(kind="gelu"),
    ActivationSpec(kind="gelu", up_bias=1.0, clamp=0.3),
    ActivationSpec(kind="relu2"),
    ActivationSpec(kind="relu2", clamp=0.5),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_truth_is_the_formula(spec: ActivationSpec, bias: bool) -> None:
    weights = layer(gated=spec.gated, bias=bias)
    exact = RoundingPoints.exact()
    expected = moe_slowly(*inputs(), weights, spec=spec, points=exact, scaling=2.5)
    result = moe_reference(*inputs(), weights, activation=spec, routed_scaling_factor=2.5)
    assert result.y.dtype == torch.float64
    assert_close(result.y, expected, exact)


def weights_by_hand(points: RoundingPoints, weights: MoeWeights) -> dict[str, np.ndarray]:
    """What the recipe's MMA reads, made without the oracle."""
    if points.weights is None:
        return {}
    operands = {"l1": weights.l1(), "l2": weights.l2()}
    if points.weights == "e4m3_product" and points.checkpoint == "nvfp4":
        eighths = {name: w.dequantize().numpy() / 8 for name, w in operands.items()}
        rounded = {name: v.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) for name, v in eighths.items()}
        for name, branches in (("l1", 2), ("l2", 1)):
            for expert, exact in enumerate(eighths[name]):
                parts = zip(np.split(rounded[name][expert], branches), np.split(exact, branches), strict=True)
                for r, e in parts:
                    r *= np.vdot(r, e) / np.vdot(r, r)  # a view: least squares of each branch
        return {name: v * 8 for name, v in rounded.items()}
    if points.weights == "e4m3_product":
        return {}  # powers of two: exact
    adapted = {name: adapt_nvfp4_to_mxfp4(w.codes, w.sf) for name, w in operands.items()}
    return {name: w.dequantize(torch.float64).numpy() for name, w in adapted.items()}


@pytest.mark.parametrize("stage", ["after_l2", "before_requant"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_rounds_where_it_says(name: str, stage: Any) -> None:
    points = rounding_points(name, topk_weight_stage=stage)
    assert points.checkpoint is not None
    weights = layer(points.checkpoint)
    spec = ActivationSpec(clamp=2.0)
    expected = moe_slowly(*inputs(), weights, spec=spec, points=points, scaling=1.5, **weights_by_hand(points, weights))
    actual = moe_reference(*inputs(), weights, activation=spec, rounding=points, routed_scaling_factor=1.5).y
    assert_close(actual, expected, points)
    assert torch.equal(actual, actual.bfloat16().double()), "y holds bfloat16 values"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_stay_near_the_truth(name: str) -> None:
    weights = layer(str(rounding_points(name).checkpoint))
    truth = moe_reference(*inputs(), weights).y
    error = rel_l2(moe_reference(*inputs(), weights, rounding=name).y, truth)
    assert 1e-4 < error < (0.006 if name.startswith("bf16") else 0.3)


CHANGES: list[dict[str, Any]] = [
    {"l1_acts": None},
    {"l1_acts": "mxfp8"},
    {"weights": None},
    {"weights": "mxfp4_requantize"},
    {"weights": "mxfp4_max"},
    {"gate_up": "bf16"},
    {"l2_acts": "bf16"},
    {"l2_acts": "fp8_token"},
    {"topk_weight_stage": "before_requant"},
    {"partial": None},
    {"out": None},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_each_rounding_point_matters(change: dict[str, Any]) -> None:
    assert {f.name for f in fields(RoundingPoints)} == {k for c in CHANGES for k in c} | {"name", "checkpoint", "sum"}
    weights = layer()
    # With a float32 scale for each block, codes do not depend on a factor in front: the stage shows with powers of two.
    base = {"l2_acts": "mxfp4"} if "topk_weight_stage" in change else {}
    before = moe_reference(*inputs(), weights, rounding=rounding_points("fp8_nvfp4", **base)).y
    changed = moe_reference(*inputs(), weights, rounding=rounding_points("fp8_nvfp4", **base, **change)).y
    assert rel_l2(changed, before) > 1e-5


def test_the_topk_weight_stage_changes_nothing_but_roundings() -> None:
    weights = layer()
    exact = RoundingPoints.exact()
    after = moe_reference(*inputs(), weights, rounding=exact).y
    before = moe_reference(*inputs(), weights, rounding=replace(exact, topk_weight_stage="before_requant")).y
    torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-12)


def test_partials_are_summed_in_slot_order_in_float32() -> None:
    """2^25 + 1 is 2^25 in float32: what is left of the 1 depends on the order."""
    l1 = torch.zeros(3, 32, 16)
    l1[:, 0, 0], l1[:, 16, 1] = 40.0, 1.0  # silu(40) = 40, times up
    l2 = torch.zeros(3, 16, 16)
    l2[:, 0, 0] = torch.tensor([2.0**25, 1.0, -(2.0**25)]) / 40
    x = torch.zeros(1, 16)
    x[0, :2] = 1.0
    points = RoundingPoints.exact()

    def total(order: list[int], points: RoundingPoints) -> float:
        return float(moe_reference(x, torch.tensor([order]), torch.ones(1, 3), (l1, l2), rounding=points).y[0, 0])

    assert total([0, 1, 2], points) == pytest.approx(1.0)
    in_float32 = replace(points, partial="bf16", sum="fp32")
    assert [total(order, in_float32) for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2])] == [0.0, 1.0, 0.0]


def test_one_expert_twice_in_a_row_counts_twice() -> None:
    x, _, _ = inputs()
    weights = layer()
    once = moe_reference(x, torch.full((T, 1), 2), torch.ones(T, 1), weights).y
    twice = moe_reference(x, torch.full((T, 2), 2), torch.tensor([[0.75, 0.5]]).expand(T, 2), weights)
    torch.testing.assert_close(twice.y, once * 1.25, rtol=1e-12, atol=1e-12)
    assert twice.expert_counts.tolist() == [0, 0, 2 * T, 0, 0]


def test_unrouted_tokens_get_zero_and_empty_batches_pass() -> None:
    x, topk_idx, topk_weights = inputs()
    for rounding in ("exact", *RECIPES):
        weights = layer(rounding_points(rounding).checkpoint or "nvfp4")
        result = moe_reference(x, torch.full_like(topk_idx, -1), topk_weights, weights, rounding=rounding)
        assert not result.y.any()
        assert not result.expert_counts.any()
        empty = moe_reference(*inputs(num_tokens=0), weights, rounding=rounding, return_intermediates=True)
        assert empty.y.shape == (0, H)
        assert empty.intermediates is not None
        assert empty.intermediates.acts.shape == (0, I)


def test_masked_slots_do_not_touch_their_neighbours() -> None:
    x, topk_idx, topk_weights = inputs()
    weights = layer()
    full = moe_reference(x, topk_idx, topk_weights, weights, rounding="fp8_nvfp4").y
    masked = topk_idx.clone()
    masked[5] = -7  # any negative index
    part = moe_reference(
        x, masked, topk_weights * float("nan") ** (masked < 0).float(), weights, rounding="fp8_nvfp4"
    ).y
    assert not part[5].any()
    keep = torch.arange(T) != 5
    assert torch.equal(part[keep], full[keep])


@pytest.mark.parametrize("idx_dtype", [torch.int32, torch.int64])
def test_the_parts_of_two_ranks_add_up(idx_dtype: torch.dtype) -> None:
    x, topk_idx, topk_weights = inputs()
    topk_idx = topk_idx.to(idx_dtype)
    whole = layer()

    def part(start: int, stop: int) -> Any:
        names = ("l1_codes", "l1_sf", "l1_alphas", "l2_codes", "l2_sf", "l2_alphas", "l1_bias", "l2_bias")
        weights = replace(whole, **{name: getattr(whole, name)[start:stop] for name in names})
        return moe_reference(x, topk_idx, topk_weights, weights, expert_offset=start)

    total = moe_reference(x, topk_idx, topk_weights, whole)
    low, high = part(0, 2), part(2, E)
    torch.testing.assert_close(low.y + high.y, total.y, rtol=1e-12, atol=1e-13)
    assert torch.equal(torch.cat((low.expert_counts, high.expert_counts)), total.expert_counts)


@pytest.mark.parametrize("name", RECIPES)
def test_chunks_of_rows_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = layer(str(rounding_points(name).checkpoint))
    whole = moe_reference(*inputs(num_tokens=40), weights, rounding=name, return_intermediates=True)
    monkeypatch.setattr("megamoe_jit.reference.moe._CHUNK_ELEMENTS", 2 * I * 3)
    parts = moe_reference(*inputs(num_tokens=40), weights, rounding=name, return_intermediates=True)
    assert rel_l2(parts.y, whole.y) < 1e-4
    assert whole.intermediates is not None
    assert parts.intermediates is not None
    torch.testing.assert_close(parts.intermediates.gate_up, whole.intermediates.gate_up, rtol=1e-10, atol=1e-12)
    assert torch.equal(parts.intermediates.token_idx, whole.intermediates.token_idx)


@pytest.mark.parametrize("name", RECIPES)
def test_intermediates_lead_from_tokens_to_the_result(name: str) -> None:
    x, topk_idx, topk_weights = inputs()
    weights = layer(str(rounding_points(name).checkpoint))
    result = moe_reference(x, topk_idx, topk_weights, weights, rounding=name, return_intermediates=True)
    mid = result.intermediates
    assert mid is not None
    num_pairs = int((topk_idx >= 0).sum())
    assert mid.gate_up.shape == (num_pairs, 2 * I)
    assert torch.equal(topk_idx[mid.token_idx, mid.slot_idx], mid.expert_idx)
    assert torch.equal(mid.expert_idx, mid.expert_idx.sort(stable=True).values)
    assert torch.equal(activate(mid.gate_up, ActivationSpec()), mid.acts)
    if name.startswith("bf16"):
        assert mid.l1_acts is None
        assert mid.l2_acts is None
    else:
        assert mid.l1_acts is not None
        assert mid.l2_acts is not None
        assert mid.l1_acts.shape == x.shape
        assert mid.l2_acts.shape == mid.acts.shape
        assert rel_l2(mid.l2_acts.dequantize(), mid.acts) < 0.2
        assert (mid.l2_acts.format is QuantFormat.FP8_BLOCK) == name.startswith("fp8")
    y = torch.zeros(T, H, dtype=torch.float64).index_add_(0, mid.token_idx, mid.partials)
    torch.testing.assert_close(y, result.y, rtol=2.0**-7, atol=1e-2)


def test_float_weights_take_recipes_that_leave_weights_alone() -> None:
    weights = layer()
    l1, l2 = weights.dequantize(torch.float64)
    bias = {"l1_bias": weights.l1_bias, "l2_bias": weights.l2_bias}
    for rounding in ("exact", "bf16_nvfp4", "nvfp4_nvfp4"):
        a = moe_reference(*inputs(), weights, rounding=rounding).y
        b = moe_reference(*inputs(), (l1, l2), rounding=rounding, **bias).y
        assert rel_l2(b, a) < 1e-4


def test_static_scales_of_the_intermediate_are_those_given() -> None:
    weights = layer()
    scales = torch.tensor([0.01, 0.02, 0.004, 0.03, 0.01])
    points = rounding_points("nvfp4_nvfp4", l2_acts="nvfp4_static")
    mid = moe_reference(
        *inputs(), weights, rounding=points, l2_act_scales=scales, return_intermediates=True
    ).intermediates
    assert mid is not None
    assert mid.l2_acts is not None
    assert mid.l2_acts.global_scale is not None
    assert torch.equal(mid.l2_acts.global_scale, scales[mid.expert_idx])
    again = quantize_to_nvfp4(mid.acts, global_scale=scales[mid.expert_idx])
    assert torch.equal(again.codes, mid.l2_acts.codes)


def test_activation_keeps_dtype_and_device() -> None:
    assert activate(torch.randn(3, 8), ActivationSpec()).dtype == torch.float32
    assert activate(torch.randn(3, 8), ActivationSpec()).shape == (3, 4)
    assert activate(torch.randn(3, 8), ActivationSpec(kind="relu2")).shape == (3, 8)


X, IDX, W = inputs()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: moe_reference(X[:, :32], IDX, W, layer()), r"x has shape \[13, 32\], but \[num_tokens, 64\]"),
        (lambda: moe_reference(X, IDX.float(), W, layer()), "topk_idx has dtype torch.float32"),
        (lambda: moe_reference(X, IDX[:4], W, layer()), r"must both be \[13, num_topk\]"),
        (lambda: moe_reference(X, IDX, W[:, :2], layer()), r"must both be \[13, num_topk\]"),
        (lambda: moe_reference(X, IDX, W, layer(), rounding="fp8"), "recipe='fp8' has no rounding points"),
        (
            lambda: moe_reference(X, IDX, W, layer("mxfp4"), rounding="fp8_nvfp4"),
            "takes nvfp4 weights, but these are mxfp4",
        ),
        (
            lambda: moe_reference(X, IDX, W, layer(), activation=ActivationSpec(kind="relu2")),
            r"needs 1 \* intermediate L1 rows, but the weights have 2 \* 160",
        ),
        (
            lambda: moe_reference(X, IDX, W, layer(gated=False)),
            r"needs 2 \* intermediate L1 rows, but the weights have 1 \* 160",
        ),
        (
            lambda: moe_reference(X, IDX, W, layer().dequantize(), rounding="fp8_nvfp4"),
            "rounds FP4 weights .e4m3_product., but float weights were given",
        ),
        (lambda: moe_reference(X, IDX, W, (torch.ones(2, 4, 64), torch.ones(2, 32, 2))), "do not fit"),
        (lambda: moe_reference(X, IDX, W, layer(), l1_bias=torch.ones(E, 2 * I)), "given beside MoeWeights"),
        (
            lambda: moe_reference(X, IDX, W, layer(), rounding=rounding_points("nvfp4_nvfp4", l2_acts="nvfp4_static")),
            "got no scale",
        ),
        (lambda: round_acts(torch.ones(2, 32), "fp6"), "rounding 'fp6' is unknown"),  # type: ignore[arg-type]
    ],
)
def test_bad_inputs_are_refused_in_words(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        call()
