"""Where each recipe rounds: one field for each rounding point, so that a kernel can be held to exactly its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.activation import TopkWeightStage, check_topk_weight_stage

ActsRounding = Literal[
    "bf16",
    "fp8_token",
    "fp8_128",
    "fp8_512",
    "fp8_foreseen",
    "mxfp8",
    "mxfp4",
    "nvfp4_token",
    "nvfp4_static",
    "nvfp4_foreseen",
]
WeightsRounding = Literal["e4m3_product", "mxfp4_requantize", "mxfp4_max"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundingPoints:
    """Roundings of one MoE call, in the order in which they happen; None means that nothing is rounded there.

    Attributes:
        name: recipe, or "exact".
        checkpoint: format of the weights that the recipe takes ("nvfp4", "mxfp4"), None for any.
        l1_acts: tokens, as the first GEMM reads them. `fp8_token`: `quantize_to_fp8(x)`, also where the caller
            brings codes; `fp8_128`, `fp8_512`: `quantize_to_fp8(x, gran_k=...)`;
            `fp8_foreseen`: `quantize_to_fp8(x, gran_k=128, foreseen=s)`, s of reference/forecast.py (`l2_acts` only);
            `mxfp8`, `mxfp4`: `quantize_to_mx...`; `nvfp4_token`: `quantize_to_nvfp4(x, global_scale="token")`;
            `nvfp4_static`: with a given scale for each expert; `nvfp4_foreseen`: with the power of two of
            reference/forecast.py for each token and expert (`l2_acts` only); `bf16`.
        weights: what the MMA reads beside the checkpoint's exact code x block scale. `e4m3_product`: 8 * e4m3(code * sf
        / 8), times
            the factor that brings each expert's gate, up and down nearest to the exact products (least squares);
            `mxfp4_requantize`, `mxfp4_max`: `adapt_nvfp4_to_mxfp4`.
        gate_up: L1's result, after alpha and bias, before clamp and activation.
        topk_weight_stage: where the top-k weight multiplies: the partial result ("after_l2"), or the activation's
        result before
            it is quantised ("before_requant"; the L2 bias is then multiplied where it is added).
        l2_acts: the activation's result, as the second GEMM reads it.
        partial: one expert's result for one token, after alpha, bias and top-k weight.
        sum: type of the sum over top-k slots, taken in slot order.
        out: the result.
    """

    name: str
    checkpoint: Literal["nvfp4", "mxfp4"] | None = None
    l1_acts: ActsRounding | None = None
    weights: WeightsRounding | None = None
    gate_up: Literal["bf16"] | None = None
    topk_weight_stage: TopkWeightStage = "after_l2"
    l2_acts: ActsRounding | None = None
    partial: Literal["bf16"] | None = "bf16"
    sum: Literal["fp32"] | None = "fp32"
    out: Literal["bf16"] | None = "bf16"

    def __post_init__(self) -> None:
        """Refuse a top-k stage that does not exist, with ArgumentError."""
        check_topk_weight_stage(self.topk_weight_stage)

    @classmethod
    def exact(cls) -> RoundingPoints:
        """Return no rounding at all: the unquantised truth (for the weights as given)."""
        return cls(name="exact", partial=None, sum=None, out=None)


_POINTS: dict[str, RoundingPoints] = {
    points.name: points
    for points in (
        RoundingPoints(name="nvfp4_nvfp4", checkpoint="nvfp4", l1_acts="nvfp4_token", l2_acts="nvfp4_foreseen"),
        RoundingPoints(name="mxfp8_mxfp4", checkpoint="mxfp4", l1_acts="mxfp8", l2_acts="mxfp8"),
        RoundingPoints(
            name="mxfp8_nvfp4", checkpoint="nvfp4", l1_acts="mxfp8", weights="mxfp4_requantize", l2_acts="mxfp8"
        ),
        RoundingPoints(name="mxfp4_mxfp4", checkpoint="mxfp4", l1_acts="mxfp4", l2_acts="mxfp4"),
        RoundingPoints(
            name="fp8_nvfp4", checkpoint="nvfp4", l1_acts="fp8_512", weights="e4m3_product", l2_acts="fp8_foreseen"
        ),
        RoundingPoints(name="bf16_nvfp4", checkpoint="nvfp4", l1_acts="bf16", l2_acts="bf16"),
        RoundingPoints(
            name="fp8_mxfp4", checkpoint="mxfp4", l1_acts="fp8_512", weights="e4m3_product", l2_acts="fp8_foreseen"
        ),
        RoundingPoints(name="bf16_mxfp4", checkpoint="mxfp4", l1_acts="bf16", l2_acts="bf16"),
    )
}


def list_rounding_points() -> list[str]:
    """Return the names that `rounding_points` takes: every recipe, then "exact"."""
    return [*_POINTS, "exact"]


def rounding_points(recipe_name: str, **overrides: Any) -> RoundingPoints:
    """Return the rounding points of a recipe ("exact" for none), with fields replaced by `overrides`.

    Raises ArgumentError for an unknown recipe or field.
    """
    points = RoundingPoints.exact() if recipe_name == "exact" else _POINTS.get(recipe_name)
    if points is None:
        raise ArgumentError(
            f"recipe={recipe_name!r} has no rounding points. Use one of {', '.join(list_rounding_points())}."
        )
    unknown = set(overrides) - set(RoundingPoints.__dataclass_fields__)
    if unknown:
        raise ArgumentError(
            f"{', '.join(sorted(unknown))} is no rounding point. Use some of "
            f"{', '.join(RoundingPoints.__dataclass_fields__)}."
        )
    return replace(points, **overrides)
