"""The activation between the two GEMMs of an expert, and where the top-k weight comes in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

from megamoe_jit.errors import ArgumentError

ActivationKind = Literal["swiglu", "gelu", "relu2"]
# Where the top-k weight multiplies: an expert's result, or the activation's result before it is quantised.
TopkWeightStage = Literal["after_l2", "before_requant"]


def check_topk_weight_stage(stage: str) -> None:
    """Raise ArgumentError for a stage that does not exist."""
    if stage not in get_args(TopkWeightStage):
        raise ArgumentError(f"topk_weight_stage={stage!r} is unknown. Use 'after_l2' or 'before_requant'.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationSpec:
    """What an expert does between L1 and L2.

    With `g = min(gate, clamp)` and `u = clamp(up, -clamp, clamp)` (both unchanged when `clamp` is None):

    - `swiglu`: `g * sigmoid(alpha * g) * (u + up_bias)`;
    - `gelu`: `gelu(g) * (u + up_bias)`, with the exact (erf) GELU;
    - `relu2`: `relu(v) ** 2` of one value `v = min(up, clamp)`; L1 has `intermediate` rows and no gate.

    `ActivationSpec.swigluoai()` is gpt-oss's: alpha 1.702, up_bias 1, clamp 7.
    """

    kind: ActivationKind = "swiglu"
    alpha: float = 1.0
    up_bias: float = 0.0
    clamp: float | None = None

    def __post_init__(self) -> None:
        """Refuse values without a meaning, with ArgumentError."""
        if self.kind not in get_args(ActivationKind):
            raise ArgumentError(
                f"activation={self.kind!r} is unknown. Use one of {', '.join(get_args(ActivationKind))}."
            )
        for name, value in (("alpha", self.alpha), ("up_bias", self.up_bias), ("clamp", self.clamp)):
            if not isinstance(value, Real) and not (name == "clamp" and value is None):
                raise ArgumentError(f"activation {name}={value!r} is a {type(value).__name__}. Pass a number.")
        if not math.isfinite(self.alpha) or not math.isfinite(self.up_bias):
            raise ArgumentError(
                f"activation alpha={self.alpha} and up_bias={self.up_bias} must both be finite. "
                "Pass ordinary numbers (1.0 and 0.0 by default)."
            )
        if self.clamp is not None and not (self.clamp >= 0 and math.isfinite(self.clamp)):
            raise ArgumentError(f"activation_clamp={self.clamp} must be a finite number >= 0. Pass None for no clamp.")
        if self.kind != "swiglu" and self.alpha != 1.0:
            raise ArgumentError(f"alpha={self.alpha} has no meaning for activation={self.kind!r}. Leave it at 1.0.")
        if not self.gated and self.up_bias != 0.0:
            raise ArgumentError(f"up_bias={self.up_bias} has no meaning for activation={self.kind!r}. Leave it at 0.0.")

    @classmethod
    def swigluoai(cls) -> ActivationSpec:
        """Return gpt-oss's activation (source: interfaces of gpt-oss-20b/120b, `swiglu_limit` 7)."""
        return cls(kind="swiglu", alpha=1.702, up_bias=1.0, clamp=7.0)

    @property
    def gated(self) -> bool:
        """Whether L1 yields a gate and an up value (2 * intermediate rows) for each intermediate value."""
        return self.kind != "relu2"
