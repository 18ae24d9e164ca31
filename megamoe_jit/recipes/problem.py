"""The problem that a kernel is built for: everything of a model and a call that is compiled in."""

from __future__ import annotations

from dataclasses import dataclass, field

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.activation import ActivationSpec, TopkWeightStage, check_topk_weight_stage

MAX_TOKENS_PER_RANK = 65536


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Shapes and arithmetic of one MoE layer; the number of tokens of a call is not part of it.

    `hidden` and `intermediate` are the model's own (unpadded) widths, `num_experts` counts all ranks' experts,
    `max_tokens_per_rank` is the capacity that buffers are made for. Raises ArgumentError for values outside the limits
    below.
    """

    hidden: int
    intermediate: int
    num_experts: int
    num_topk: int
    max_tokens_per_rank: int
    num_ranks: int = 1
    activation: ActivationSpec = field(default_factory=ActivationSpec)
    fast_math: bool = True
    topk_idx_bytes: int = 8
    topk_weight_stage: TopkWeightStage = "after_l2"

    def __post_init__(self) -> None:
        """Check every field."""
        check_topk_weight_stage(self.topk_weight_stage)
        for name, low, high in (
            ("hidden", 1, 65536),
            ("intermediate", 1, 65536),
            ("num_experts", 1, 384),
            ("num_topk", 1, 16),
            ("max_tokens_per_rank", 1, MAX_TOKENS_PER_RANK),
            ("num_ranks", 1, 72),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ArgumentError(
                    f"{name}={value!r}, but kernels take an integer from {low} to {high}. Pass one in that range."
                )
        if self.num_topk > self.num_experts:
            raise ArgumentError(
                f"num_topk={self.num_topk} is more than num_experts={self.num_experts}; a token goes to each expert "
                "once. Pass a smaller num_topk."
            )
        if self.num_experts % self.num_ranks:
            raise ArgumentError(
                f"num_experts={self.num_experts} does not divide among num_ranks={self.num_ranks}; "
                "each rank owns the same number of experts. Add empty experts, or use another number of ranks."
            )
        if self.topk_idx_bytes not in (4, 8):
            raise ArgumentError(
                f"topk_idx_bytes={self.topk_idx_bytes}, but indices are int32 (4) or int64 (8). Pass one of them."
            )

    @property
    def num_local_experts(self) -> int:
        """Experts of one rank: rank r owns r x num_local_experts and the next ones."""
        return self.num_experts // self.num_ranks

    def tokens_per_expert(self, num_tokens: int) -> float:
        """Return the mean number of tokens that an expert gets when each rank has `num_tokens`."""
        return num_tokens * self.num_ranks * self.num_topk / self.num_experts
