"""Which experts get which tokens, and how evenly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertLoad:
    """How evenly routing spreads over the local experts.

    Attributes:
        num_routed: (token, slot) pairs that go to a local expert.
        num_masked: pairs with a negative index.
        num_elsewhere: pairs that go to another rank's experts.
        num_idle: local experts that get nothing.
        largest: most pairs of one expert.
        imbalance: largest over mean (1.0 is even; 0.0 when nothing is routed).
    """

    num_routed: int
    num_masked: int
    num_elsewhere: int
    num_idle: int
    largest: int
    imbalance: float


def expert_counts(topk_idx: Tensor, num_experts: int, expert_offset: int = 0) -> Tensor:
    """Return int64 [num_experts]: how many entries of topk_idx [T, K] name each of the experts from `expert_offset` on.

    Negative entries (not routed) and other ranks' experts count nowhere.
    """
    local = topk_idx.to(torch.int64).flatten() - expert_offset
    return torch.bincount(local[is_local(topk_idx, num_experts, expert_offset).flatten()], minlength=num_experts)


def expert_load(topk_idx: Tensor, num_experts: int, expert_offset: int = 0) -> ExpertLoad:
    """Return statistics of `expert_counts`."""
    counts = expert_counts(topk_idx, num_experts, expert_offset)
    num_routed, num_masked = int(counts.sum()), int((topk_idx < 0).sum())
    largest = int(counts.max())
    return ExpertLoad(
        num_routed=num_routed,
        num_masked=num_masked,
        num_elsewhere=topk_idx.numel() - num_routed - num_masked,
        num_idle=int((counts == 0).sum()),
        largest=largest,
        imbalance=largest * num_experts / num_routed if num_routed else 0.0,
    )


def is_local(topk_idx: Tensor, num_experts: int, expert_offset: int = 0) -> Tensor:
    """Return which entries of topk_idx name one of the `num_experts` experts from `expert_offset` on."""
    return (topk_idx >= expert_offset) & (topk_idx < expert_offset + num_experts)
