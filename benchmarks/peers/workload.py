"""Layers, token counts and routings that are timed, and the least time that each can take on one H200."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# Of one H200, measured: the fastest read of a few gigabytes, and the fastest FP8 matrix product of a library.
READ_BYTES_PER_S = 4.55e12
FP8_OPS_PER_S = 1333e12
NVFP4_BYTES = 9 / 16  # a weight's code and its share of a block scale factor
BF16_BYTES = 2

Routing = Literal["uniform", "skewed"]
TOKENS = (1, 8, 64, 256, 1024, 4096, 8192)
BETWEEN = (24, 128, 512, 2048)
SKEWED = (64, 1024, 8192)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One rank's experts of one MoE layer; every slot of the routing names one of them.

    `aims` holds (tokens, share): what part of `floor_us` our FP8 recipe shall reach with uniform routing.
    """

    name: str
    hidden: int
    intermediate: int
    num_experts: int
    num_topk: int
    between: tuple[int, ...] = ()
    skewed: tuple[int, ...] = ()
    aims: tuple[tuple[int, float], ...] = ()

    def cases(self, tokens: Sequence[int] | None = None, routings: Sequence[Routing] = ("uniform", "skewed")) -> Cases:
        """Return (routing, tokens) in the order of measuring; `tokens` replaces the workload's own counts."""
        uniform = (*TOKENS, *self.between) if tokens is None else tuple(tokens)
        skewed = self.skewed if tokens is None else tuple(tokens) if self.skewed else ()
        by_routing: dict[Routing, tuple[int, ...]] = {"uniform": uniform, "skewed": skewed}
        return tuple((routing, count) for routing in routings for count in by_routing[routing])

    def weight_bytes(self, num_touched: float) -> float:
        """Return the bytes of `num_touched` experts' NVFP4 weights."""
        return num_touched * 3 * self.hidden * self.intermediate * NVFP4_BYTES

    def operations(self, num_tokens: int) -> float:
        """Return multiplications and additions of both GEMMs."""
        return 2.0 * num_tokens * self.num_topk * 3 * self.hidden * self.intermediate

    def floor_us(self, num_tokens: int, num_touched: float, *, ops_per_s: float = FP8_OPS_PER_S) -> float:
        """Return the least time of a call: its bytes (weights touched, x, y) once, or its operations."""
        tokens_bytes = 2 * num_tokens * self.hidden * BF16_BYTES
        read_s = (self.weight_bytes(num_touched) + tokens_bytes) / READ_BYTES_PER_S
        return 1e6 * max(read_s, self.operations(num_tokens) / ops_per_s)


Cases = tuple[tuple[Routing, int], ...]
_AIMS = ((1, 0.60), (8, 0.82), (64, 0.85), (256, 0.80), (1024, 0.72), (4096, 0.82), (8192, 0.85))
_PRO_AIMS = tuple((tokens, 0.90 if tokens in (8, 64) else share) for tokens, share in _AIMS)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="flash",
            hidden=4096,
            intermediate=2048,
            num_experts=32,
            num_topk=6,
            between=BETWEEN,
            skewed=SKEWED,
            aims=_AIMS,
        ),
        Workload(
            name="pro",
            hidden=7168,
            intermediate=3072,
            num_experts=48,
            num_topk=6,
            between=BETWEEN,
            skewed=SKEWED,
            aims=_PRO_AIMS,
        ),
        Workload(name="gpt-oss", hidden=2880, intermediate=2880, num_experts=32, num_topk=4),
        Workload(name="qwen3", hidden=4096, intermediate=1536, num_experts=16, num_topk=8),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSet:
    """Input of one call: x bfloat16 [T, H], topk_idx int32 [T, K] without -1, topk_weights float32 [T, K]."""

    x: Tensor
    topk_idx: Tensor
    topk_weights: Tensor

    def rows(self, index: Tensor) -> TokenSet:
        """Return some of the tokens."""
        return TokenSet(x=self.x[index], topk_idx=self.topk_idx[index], topk_weights=self.topk_weights[index])


def num_hot_experts(workload: Workload) -> int:
    """Return how many experts skewed routing prefers: a tenth, at least one."""
    return max(1, workload.num_experts // 10)


def uniform_routing(workload: Workload, num_tokens: int, generator: torch.Generator) -> Tensor:
    """Return distinct experts for each token, all equally likely: int32 [T, K]."""
    scores = torch.rand(num_tokens, workload.num_experts, generator=generator, device=generator.device)
    return scores.topk(workload.num_topk, dim=1).indices.int()


def skewed_routing(workload: Workload, num_tokens: int, generator: torch.Generator) -> Tensor:
    """Return distinct experts for each token, half of its slots (where they are enough) among the hot ones."""
    device = generator.device
    num_hot = num_hot_experts(workload)
    num_hot_slots = min(workload.num_topk // 2, num_hot)
    order = torch.randperm(workload.num_experts, generator=generator, device=device)

    def choose(experts: Tensor, num_slots: int) -> Tensor:
        scores = torch.rand(num_tokens, len(experts), generator=generator, device=device)
        return experts[scores.topk(num_slots, dim=1).indices]

    hot = choose(order[:num_hot], num_hot_slots)
    return torch.cat((hot, choose(order[num_hot:], workload.num_topk - num_hot_slots)), dim=1).int()


def num_sets(num_tokens: int) -> int:
    """Return how many inputs take turns, so that the L2 cache does not hold the experts of the last call."""
    return 12 if num_tokens <= 8 else 6 if num_tokens <= 256 else 3


def make_sets(
    workload: Workload, routing: Routing, num_tokens: int, *, device: torch.device | str, count: int | None = None
) -> list[TokenSet]:
    """Return inputs with tokens and routing of their own; the same arguments give the same ones on one device type."""
    generator = torch.Generator(device).manual_seed(1000 + num_tokens)
    route = skewed_routing if routing == "skewed" else uniform_routing
    sets = []
    for _ in range(num_sets(num_tokens) if count is None else count):
        x = torch.randn(num_tokens, workload.hidden, generator=generator, device=device).bfloat16()
        weights = torch.rand(num_tokens, workload.num_topk, generator=generator, device=device) + 0.1
        sets.append(
            TokenSet(
                x=x,
                topk_idx=route(workload, num_tokens, generator).contiguous(),
                topk_weights=weights / weights.sum(1, keepdim=True),
            )
        )
    return sets


def num_touched(sets: Sequence[TokenSet]) -> float:
    """Return the mean number of experts that a set's tokens go to."""
    return sum(len(experts_of(tokens.topk_idx)) for tokens in sets) / len(sets)


def experts_of(topk_idx: Tensor) -> list[int]:
    """Return the experts that a routing names, in order."""
    return torch.bincount(topk_idx.flatten()).nonzero().flatten().tolist()
