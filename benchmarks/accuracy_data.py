"""Layers that the accuracy benchmarks measure on: random normal, heavy-tailed, and real weights where installed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.real_data import load_minilm, why_missing

NUM_TOKENS, NUM_TOPK = 256, 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """Float weights l1 [E, 2I, H] and l2 [E, H, I] of an MoE layer, tokens x bf16 [T, H], and their routing [T, K]."""

    name: str
    l1: Tensor
    l2: Tensor
    x: Tensor
    topk_idx: Tensor
    topk_weights: Tensor


def _layer(name: str, l1: Tensor, l2: Tensor, tokens: Tensor, generator: torch.Generator) -> Layer:
    topk_idx = torch.rand(len(tokens), len(l1), generator=generator).topk(NUM_TOPK).indices
    weights = torch.rand(len(tokens), NUM_TOPK, generator=generator) + 0.1
    return Layer(
        name=name,
        l1=l1,
        l2=l2,
        x=tokens.bfloat16(),
        topk_idx=topk_idx,
        topk_weights=weights / weights.sum(1, keepdim=True),
    )


def _student(generator: torch.Generator, shape: tuple[int, ...], freedom: int) -> Tensor:
    """Return Student's t values of variance 1."""
    chi = torch.zeros(shape)
    for _ in range(freedom):
        chi += torch.randn(shape, generator=generator).square()
    t = torch.randn(shape, generator=generator) / (chi / freedom).sqrt()
    return t * math.sqrt((freedom - 2) / freedom)


def layers(num_experts: int = 4, hidden: int = 1024, intermediate: int = 512) -> list[Layer]:
    """Return the layers, the real one last and only where its package is installed.

    "normal": weights of variance 1/K and tokens of variance 1. "heavy-tailed": the same variances from Student's t with
    4 degrees of freedom, and one token channel in 64 twenty times larger, as in the residual streams of large models.
    "real": the feed-forward weights and the normalised word embeddings of all-MiniLM-L6-v2 (six experts, 384 x 768).
    """
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_experts, 2 * intermediate, hidden), (num_experts, hidden, intermediate), (NUM_TOKENS, hidden))

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    def heavy(shape: tuple[int, ...]) -> Tensor:
        return _student(generator, shape, 4)

    made = []
    for name, draw in (("normal", normal), ("heavy-tailed", heavy)):
        l1, l2, tokens = (draw(shape) for shape in shapes)
        if name == "heavy-tailed":
            tokens[:, ::64] *= 20
        made.append(_layer(name, l1 / hidden**0.5, l2 / intermediate**0.5, tokens, generator))
    if why_missing() is None:
        real = load_minilm(NUM_TOKENS)
        made.append(_layer("real", real.l1, real.l2, real.tokens, generator))
    return made
