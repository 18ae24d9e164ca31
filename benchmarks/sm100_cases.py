"""Layers for the emulated Blackwell kernels: which cases are run, their weights, tokens and routing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import get_recipe
from megamoe_jit.reference.moe import MoeIntermediates
from tests.real_data import HIDDEN, INTERMEDIATE, NUM_EXPERTS, load_minilm

ARCH = "sm_100f"
Data = Literal["normal", "real", "exact"]
RECIPES = ("nvfp4_nvfp4", "mxfp8_mxfp4", "mxfp8_nvfp4", "mxfp4_mxfp4")
POLICIES = ("lazy", "0.3", "eager")  # when copies and MMAs complete: as late as possible, at random, at once
# What every recipe runs: data, hidden, intermediate, experts, top-k, tokens. Each value of each axis is there, and each
# token tile.
LAYERS: tuple[tuple[Data, int, int, int, int, int], ...] = (
    ("normal", 256, 256, 4, 2, 0),
    ("normal", 256, 256, 1, 1, 1),
    ("normal", 256, 256, 16, 6, 7),
    ("normal", 256, 256, 64, 8, 33),
    ("normal", 256, 256, 4, 2, 300),
    ("normal", 256, 256, 1, 1, 128),
    ("real", HIDDEN, INTERMEDIATE, NUM_EXPERTS, 2, 33),
    ("real", HIDDEN, INTERMEDIATE, NUM_EXPERTS, 6, 7),
    ("real", HIDDEN, INTERMEDIATE, NUM_EXPERTS, 2, 300),
    ("normal", 512, 1024, 4, 2, 7),
    ("normal", 512, 1024, 16, 1, 128),
    ("normal", 512, 1024, 4, 1, 33),
    ("normal", 2880, 2880, 4, 1, 7),
    ("normal", 4096, 2048, 1, 1, 7),
    ("normal", 256, 256, 4, 2, 33),
    ("normal", 256, 256, 4, 1, 128),
    ("real", HIDDEN, INTERMEDIATE, NUM_EXPERTS, 2, 128),
)
_LARGEST_HIDDEN_OF_ALL_POLICIES = 512
EXACT_LAYERS: tuple[tuple[Data, int, int, int, int, int], ...] = (
    ("exact", 256, 256, 4, 2, 33),
    ("exact", 512, 1024, 4, 2, 7),
    ("exact", 256, 256, 4, 2, 300),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One call of one layer, under one policy of the emulator."""

    recipe: str
    data: Data
    hidden: int
    intermediate: int
    num_experts: int
    num_topk: int
    num_tokens: int
    completion: str
    seed: int

    @property
    def key(self) -> str:
        """A name that no other case has."""
        sizes = f"{self.hidden}x{self.intermediate}-e{self.num_experts}k{self.num_topk}t{self.num_tokens}"
        return f"{self.recipe}-{self.data}-{sizes}-{self.completion}-{self.seed}"

    def problem(self) -> Problem:
        """Return the problem that the layer's kernels are built for."""
        return Problem(
            hidden=self.hidden,
            intermediate=self.intermediate,
            num_experts=self.num_experts,
            num_topk=self.num_topk,
            max_tokens_per_rank=max(1, self.num_tokens),
        )


def cases() -> list[Case]:
    """Return every case: each layer with each recipe, large ones with one policy in turns, the others with all.

    Cases are ordered so that a run which is cut off has seen all recipes.
    """
    chosen = []
    for turn, (i, layer), (r, recipe) in itertools.product((0, 1, 2), enumerate(LAYERS), enumerate(RECIPES)):
        if turn == 0 or (layer[1] <= _LARGEST_HIDDEN_OF_ALL_POLICIES and layer[-1] > 0):
            chosen.append((recipe, layer, POLICIES[(i + r + turn) % len(POLICIES)], 5000 * turn + 10 * i + r))
    for layer, (p, policy), recipe in itertools.product(EXACT_LAYERS, enumerate(POLICIES), RECIPES):
        chosen.append((recipe, layer, policy, 1000 + p))
    return [
        Case(
            recipe=recipe,
            data=data,
            hidden=hidden,
            intermediate=intermediate,
            num_experts=experts,
            num_topk=topk,
            num_tokens=tokens,
            completion=policy,
            seed=seed,
        )
        for recipe, (data, hidden, intermediate, experts, topk, tokens), policy, seed in chosen
    ]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """Weights in the recipe's checkpoint format, BF16 tokens x [T, H], and routing [T, K]."""

    weights: MoeWeights
    x: Tensor
    topk_idx: Tensor
    topk_weights: Tensor


def make_layer(case: Case) -> Layer:
    """Return the case's layer; raises FileNotFoundError where the real weights are not installed."""
    generator = torch.Generator().manual_seed(case.num_tokens + 17)
    num_tokens, shape = case.num_tokens, (case.num_experts, case.hidden, case.intermediate)
    checkpoint = get_recipe(case.recipe).checkpoint
    scores = torch.rand(num_tokens, case.num_experts, generator=generator)
    topk_idx = scores.topk(case.num_topk, dim=1).indices
    if case.data == "exact":
        return _exact_layer(case, topk_idx, generator)
    topk_weights = torch.rand(topk_idx.shape, generator=generator) + 0.1
    topk_weights /= topk_weights.sum(1, keepdim=True)
    masked = torch.rand(topk_idx.shape, generator=generator) < 1 / 16
    masked[:1] = False  # one token alone shall go somewhere
    topk_idx = torch.where(masked, -1, topk_idx)
    if case.data == "real":
        real = load_minilm(num_tokens)
        weights = MoeWeights.from_float(real.l1, real.l2, checkpoint=checkpoint)
        return Layer(weights=weights, x=real.tokens.bfloat16(), topk_idx=topk_idx, topk_weights=topk_weights)
    weights = MoeWeights.random(*shape, seed=1, checkpoint=checkpoint)
    x = torch.randn(num_tokens, case.hidden, generator=generator).bfloat16()
    return Layer(weights=weights, x=x, topk_idx=topk_idx, topk_weights=topk_weights)


def _exact_layer(case: Case, topk_idx: Tensor, generator: torch.Generator) -> Layer:
    """Return a layer in which float32 holds every sum and product between two roundings to codes.

    Tokens are E2M1 values with a 6 in each group, so that they are codes times powers of two (NVFP4: token scales are 1
    through one value of 2688). The gate reads this one value alone and is so large that its sigmoid is 1 to the last
    bit. Block scales, alphas and top-k weights are powers of two.
    """
    is_nvfp4, (experts, hidden, intermediate) = (
        case.recipe == "nvfp4_nvfp4",
        (case.num_experts, case.hidden, case.intermediate),
    )
    gran_k = 16 if get_recipe(case.recipe).checkpoint == "nvfp4" else 32

    def codes(*shape: int) -> Tensor:
        return torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)

    def coarse_codes(*shape: int) -> Tensor:
        """Return codes of 0, 2, 4 with signs: sums have few bits."""
        return torch.tensor([0, 0, 4, 6], dtype=torch.uint8)[codes(*shape).long() % 4] | codes(*shape) & 8

    def scales(*shape: int, least: int, most: int) -> Tensor:
        values = torch.exp2(torch.randint(least, most + 1, shape, generator=generator).float())
        return values.to(torch.float8_e4m3fn if gran_k == 16 else torch.float8_e8m0fnu)

    x = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes(case.num_tokens, hidden).long() % 8]
    x *= torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
    x[:, ::16] = 6
    if is_nvfp4:
        x[:, 0], x[:, 1:16] = 2688, 0
    l1 = coarse_codes(experts, 2 * intermediate, hidden)
    l1[:, :intermediate] = 0
    l1[:, :intermediate, 0] = codes(experts, intermediate) % 4 + 4  # 2, 3, 4, 6
    l1[:, intermediate:, 0] = 0
    l1_sf = scales(experts, 2 * intermediate, hidden // gran_k, least=-1, most=1).float()
    l1_sf[:, :intermediate] = 1 if is_nvfp4 else 32
    alphas = torch.ones(experts, 2)
    alphas[:, 0] = 2.0**-5 if is_nvfp4 else 1.0
    if case.recipe == "mxfp8_nvfp4":
        l1_sf[:, :intermediate], alphas[:, 0] = 1, 32
    l2 = coarse_codes(experts, hidden, intermediate)
    weights = MoeWeights(
        checkpoint=get_recipe(case.recipe).checkpoint,
        l1_codes=l1[..., ::2] | l1[..., 1::2] << 4,
        l1_sf=l1_sf.to(torch.float8_e4m3fn if gran_k == 16 else torch.float8_e8m0fnu),
        l1_alphas=alphas,
        l2_codes=l2[..., ::2] | l2[..., 1::2] << 4,
        l2_sf=scales(experts, hidden, intermediate // gran_k, least=-1, most=1),
        l2_alphas=torch.ones(experts),
    )
    topk_weights = torch.exp2(torch.randint(-3, 1, topk_idx.shape, generator=generator).float())
    return Layer(weights=weights, x=x.bfloat16(), topk_idx=topk_idx, topk_weights=topk_weights)


def sums_are_exact(inner: MoeIntermediates, weights: MoeWeights) -> bool:
    """Return whether float32 holds L2's sums of these activations in any order, and L1's results as they are."""
    assert inner.l2_acts is not None
    if not torch.equal(inner.gate_up, inner.gate_up.float().double()):
        return False
    if not torch.equal(inner.acts, inner.acts.float().double()):
        return False
    acts = inner.l2_acts.dequantize(torch.float64)
    for expert in sorted(set(inner.expert_idx.tolist())):
        rows, values = acts[inner.expert_idx == expert], weights.l2(expert).dequantize(torch.float64)
        units = _least_bit(rows).amin(1, keepdim=True) * _least_bit(values).amin(1)
        if bool(((rows.abs() @ values.abs().T) / units >= 2.0**24).any()):
            return False
    return True


def _least_bit(values: Tensor) -> Tensor:
    """Return the value of each number's lowest bit that is set; infinity for 0."""
    mantissa, exponent = torch.frexp(values)
    whole = (mantissa.abs() * 2.0**53).long()
    lowest = (whole & -whole).double()
    return torch.where(values == 0, torch.inf, torch.ldexp(lowest, exponent - 53))
