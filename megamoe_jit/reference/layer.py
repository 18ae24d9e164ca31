"""Weights of a layer as an oracle reads them: float64 values of one expert at a time, FP4 or float."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.formats.adapt import adapt_weights_to_mxfp4, convert_weights_to_nvfp4
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.reference.forecast import foresee_acts_scale
from megamoe_jit.reference.gemm import operand_values
from megamoe_jit.reference.rounding_points import RoundingPoints

FloatWeights = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """Weights of either kind behind one face: values of an expert in float64, and what is applied after each GEMM."""

    weights: MoeWeights | FloatWeights
    e4m3_product: bool
    num_experts: int
    hidden: int
    intermediate: int
    gated: bool
    l1_row_alphas: Tensor | None  # float64 [E, rows]
    l2_alphas: Tensor  # float64 [E]
    l1_bias: Tensor | None
    l2_bias: Tensor | None

    @classmethod
    def of(
        cls,
        weights: MoeWeights | FloatWeights,
        points: RoundingPoints,
        l1_bias: Tensor | None,
        l2_bias: Tensor | None,
    ) -> Layer:
        """Prepare `weights` for the roundings in `points`; raises ArgumentError where the two do not fit."""
        if isinstance(weights, MoeWeights):
            if l1_bias is not None or l2_bias is not None:
                raise ArgumentError(
                    "l1_bias or l2_bias was given beside MoeWeights, which carry their own. Put them into the weights."
                )
            ready = _prepare(weights, points)
            return cls(
                weights=ready,
                e4m3_product=points.weights == "e4m3_product",
                num_experts=ready.num_experts,
                hidden=ready.hidden,
                intermediate=ready.intermediate,
                gated=ready.gated,
                l1_row_alphas=ready.l1_row_alphas.double(),
                l2_alphas=ready.l2_alphas.double(),
                l1_bias=_double(ready.l1_bias),
                l2_bias=_double(ready.l2_bias),
            )
        l1, l2 = weights
        if points.weights is not None:
            raise ArgumentError(
                f"recipe {points.name} rounds FP4 weights ({points.weights}), but float weights were given. "
                "Quantise them with MoeWeights.from_float(...)."
            )
        if l1.ndim != 3 or l2.ndim != 3 or l1.shape[0] != l2.shape[0] or l1.shape[2] != l2.shape[1]:
            raise ArgumentError(
                f"l1 {list(l1.shape)} and l2 {list(l2.shape)} do not fit: [experts, 2 * intermediate, hidden] and "
                "[experts, hidden, intermediate] are needed. Check the order of the dimensions."
            )
        return cls(
            weights=weights,
            e4m3_product=False,
            num_experts=l1.shape[0],
            hidden=l1.shape[2],
            intermediate=l2.shape[2],
            gated=l1.shape[1] == 2 * l2.shape[2],
            l1_row_alphas=None,
            l2_alphas=torch.ones(l1.shape[0], dtype=torch.float64, device=l1.device),
            l1_bias=_double(l1_bias),
            l2_bias=_double(l2_bias),
        )

    def values(self, expert: int) -> tuple[Tensor, Tensor]:
        """Return l1 [rows, H] and l2 [H, I] of one expert in float64, without alphas."""
        if isinstance(self.weights, MoeWeights):
            exact = operand_values(self.weights.l1(expert)), operand_values(self.weights.l2(expert))
            if not self.e4m3_product:
                return exact
            rounded = (operand_values(w, e4m3_product=True) for w in (self.weights.l1(expert), self.weights.l2(expert)))
            l1, l2 = (
                torch.cat([_fit(*pair) for pair in zip(r.chunk(branches), e.chunk(branches), strict=True)])
                for r, e, branches in zip(rounded, exact, (2 if self.gated else 1, 1), strict=True)
            )
            return l1, l2
        return self.weights[0][expert].double(), self.weights[1][expert].double()

    def scale_l1(self, accum: Tensor, expert: int) -> Tensor:
        """Apply alphas and bias of L1 to its sums."""
        if self.l1_row_alphas is not None:
            accum = accum * self.l1_row_alphas[expert]
        return accum if self.l1_bias is None else accum + self.l1_bias[expert]

    def foresee_acts_scale(
        self,
        token_scale: Tensor,
        l1: Tensor,
        expert: int,
        activation: ActivationSpec,
        weight: Tensor | None,
        element_max: float,
    ) -> Tensor:
        """Return float32 [T]: the scale of these tokens' activations at `expert`, whose L1 values are `l1`."""
        alphas = l1.new_ones(len(l1)) if self.l1_row_alphas is None else self.l1_row_alphas[expert]
        bias = None if self.l1_bias is None else self.l1_bias[expert]
        return foresee_acts_scale(token_scale, l1, alphas, bias, activation, weight, element_max=element_max)


def _prepare(weights: MoeWeights, points: RoundingPoints) -> MoeWeights:
    """Return the weights in the format that the recipe's MMA decodes."""
    if points.checkpoint not in (None, weights.checkpoint):
        raise ArgumentError(
            f"recipe {points.name} takes {points.checkpoint} weights, but these are {weights.checkpoint}. "
            "Choose a recipe for them, or convert them with megamoe_jit.formats.adapt."
        )
    if points.weights == "mxfp4_requantize":
        return adapt_weights_to_mxfp4(weights, method="requantize")
    if points.weights == "mxfp4_max":
        return adapt_weights_to_mxfp4(weights, method="max")
    if points.weights == "e4m3_product" and weights.checkpoint == "mxfp4":
        return convert_weights_to_nvfp4(weights)
    return weights


def _fit(rounded: Tensor, exact: Tensor) -> Tensor:
    """Return `rounded` times the factor that brings it nearest to `exact`, in the sense of least squares."""
    squares = rounded.square().sum()
    return rounded if squares == 0 else rounded * ((rounded * exact).sum() / squares)


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float64)
