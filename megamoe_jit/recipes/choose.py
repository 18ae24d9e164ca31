"""From a problem to kernel configurations, with the reason for each choice."""

from __future__ import annotations

from dataclasses import dataclass

from megamoe_jit.arch import Arch, MmaGeneration, get_arch
from megamoe_jit.errors import UnsupportedError
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import Element, Recipe, get_recipe
from megamoe_jit.recipes.sm90 import WGMMA_N, Sm90Config, Sm90StagingConfig, config_for_tile


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A configuration, why it was chosen, and why each other token tile was not."""

    config: Sm90Config
    reason: str
    others: tuple[str, ...]


def check_target(recipe: str | Recipe, arch: str | Arch) -> tuple[Recipe, Arch]:
    """Return recipe and target as nouns; raises UnsupportedError when no kernel serves the pair."""
    recipe, arch = get_recipe(recipe), get_arch(arch)
    if arch.name not in recipe.targets:
        raise UnsupportedError(
            f"recipe {recipe.name} runs on {', '.join(recipe.targets)}, and the target is {arch}. "
            "Choose one of recipes.default_recipe(arch), or another target."
        )
    if arch.generation is not MmaGeneration.WGMMA:
        raise UnsupportedError(
            f'recipe {recipe.name} on {arch} has no kernel in this version. Use backend="reference", or a GPU of '
            "target sm_90a."
        )
    return recipe, arch


def token_tile(problem: Problem, num_tokens: int) -> int:
    """Return the token tile for a call: the smallest MMA width that holds an expert's mean share, else the largest.

    Weights are read once for each token tile of an expert, so a tile too small costs bandwidth; one too large costs MMA
    and epilogue work on empty columns.
    """
    mean = problem.tokens_per_expert(num_tokens)
    return next((n for n in WGMMA_N if mean <= n), WGMMA_N[-1])


def choose_config(problem: Problem, recipe: str | Recipe, arch: str | Arch, num_tokens: int) -> Choice:
    """Return the configuration for a call of `num_tokens` tokens a rank; raises UnsupportedError when there is none."""
    recipe, arch = check_target(recipe, arch)
    mean, block_n = problem.tokens_per_expert(num_tokens), token_tile(problem, num_tokens)
    others = tuple(
        f"block_n={n}: "
        + ("the mean does not fit, weights would be read again" if n < block_n else "more empty columns")
        for n in WGMMA_N
        if n != block_n
    )
    return Choice(
        config=config_for_tile(problem, recipe, arch, block_n),
        reason=f"block_n={block_n}: an expert gets {mean:.1f} tokens on average",
        others=others,
    )


def plan_kernels(
    problem: Problem, recipe: str | Recipe, arch: str | Arch
) -> tuple[Sm90StagingConfig | Sm90Config, ...]:
    """Return every kernel that calls of 1 to max_tokens_per_rank tokens can need; raises UnsupportedError as above."""
    recipe, arch = check_target(recipe, arch)
    tiles = [n for n in WGMMA_N if token_tile(problem, 1) <= n <= token_tile(problem, problem.max_tokens_per_rank)]
    sources = (False, True) if recipe.l1_acts.element is Element.E4M3 else (False,)  # BF16 codes are BF16 tokens
    return (
        *(Sm90StagingConfig(problem=problem, recipe=recipe, arch=arch, source_is_codes=codes) for codes in sources),
        *(config_for_tile(problem, recipe, arch, n) for n in tiles),
    )
