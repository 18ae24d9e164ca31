"""Our recipes, called as users call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from benchmarks.peers.contender import Contender, Run, Variant
from benchmarks.peers.layer import Layer, Values, dequantized
from benchmarks.peers.workload import TokenSet, Workload
from megamoe_jit.ops.moe import MegaMoE
from megamoe_jit.recipes.choose import choose_config, plan_kernels
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import get_recipe


def problem_of(workload: Workload, max_tokens: int) -> Problem:
    """Return the problem that kernels of a workload are built for."""
    return Problem(
        hidden=workload.hidden,
        intermediate=workload.intermediate,
        num_experts=workload.num_experts,
        num_topk=workload.num_topk,
        max_tokens_per_rank=max_tokens,
    )


def build_ahead(workloads: Iterable[Workload], recipes: Sequence[str], max_tokens: int, processes: int) -> list[str]:
    """Build every kernel of our recipes in parallel, into the cache; returns what failed, with its error."""
    from megamoe_jit.cli.warmup import build_all, build_one

    descriptions = dict.fromkeys(
        description
        for workload in workloads
        for recipe in recipes
        for description in plan_kernels(problem_of(workload, max_tokens), recipe, "sm_90a")
    )
    outcomes = build_all(descriptions, processes, build_one=build_one)
    return [f"{outcome.kernel}: {outcome.error}" for outcome in outcomes if outcome.cache == "failed"]


class Ours:
    """One recipe of the package."""

    def __init__(self, recipe: str, layer: Layer, max_tokens: int) -> None:
        """Transform the weights."""
        self.recipe = get_recipe(recipe)
        self.weights_name: str = self.recipe.checkpoint
        self._weights = layer.weights(self.recipe.checkpoint)
        self._moe = MegaMoE(
            self._weights, recipe=recipe, num_topk=layer.workload.num_topk, max_tokens_per_rank=max_tokens
        )

    def values(self) -> Values:
        """Return the checkpoint's weights."""
        return dequantized(self._weights)

    def compile_for(self, tokens: Sequence[int]) -> None:
        """Build and load every kernel: which one a call takes is its own matter."""
        del tokens
        self._moe.prepare()

    def variants(self, num_tokens: int) -> Iterable[Variant]:
        """Return the one call that there is."""

        def make() -> Run:
            y = torch.empty(num_tokens, self._weights.hidden, dtype=torch.bfloat16, device=self._weights.device)

            def run(tokens: TokenSet) -> Tensor:
                return self._moe(tokens.x, tokens.topk_idx, tokens.topk_weights, out=y)

            return run

        yield "fused", make

    def note(self, num_tokens: int) -> str:
        """Return why which configuration was chosen."""
        if self._moe.backend == "reference":
            return ""
        return choose_config(self._moe.sym_buffer.problem, self.recipe, self._moe.arch, num_tokens).reason


def load(recipe: str) -> Callable[[Layer, int], Contender]:
    """Return what makes the contender of a recipe."""

    def make(layer: Layer, max_tokens: int) -> Contender:
        return Ours(recipe, layer, max_tokens)

    return make
