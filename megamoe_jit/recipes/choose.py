"""From a problem to kernel configurations, with the reason for each choice."""

from __future__ import annotations

from dataclasses import dataclass

from megamoe_jit.arch import Arch, MmaGeneration, get_arch
from megamoe_jit.errors import UnsupportedError
from megamoe_jit.formats.activation import TopkWeightStage
from megamoe_jit.recipes import sm90, sm100
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import RECIPES, Element, Recipe, get_recipe
from megamoe_jit.recipes.sm90 import Sm90Config, Sm90StagingConfig
from megamoe_jit.recipes.sm100 import Sm100Config, Sm100StagingConfig

MoeConfig = Sm90Config | Sm100Config
StagingConfig = Sm90StagingConfig | Sm100StagingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A configuration, why it was chosen, and why each other token tile was not."""

    config: MoeConfig
    reason: str
    others: tuple[str, ...]


def check_pair(recipe: str | Recipe, arch: str | Arch) -> tuple[Recipe, Arch]:
    """Return recipe and target as nouns; raises UnsupportedError when the recipe is not for the target."""
    recipe, arch = get_recipe(recipe), get_arch(arch)
    if arch.name not in recipe.targets:
        raise UnsupportedError(
            f"recipe {recipe.name} runs on {', '.join(recipe.targets)}, and the target is {arch}. "
            f"Choose recipe {' or '.join(recipes_of(arch)) or '(there is none)'} for it, or another target."
        )
    return recipe, arch


def recipes_of(arch: Arch) -> list[str]:
    """Return the names of the recipes that are for `arch`."""
    return [name for name, recipe in RECIPES.items() if arch.name in recipe.targets]


def check_target(recipe: str | Recipe, arch: str | Arch) -> tuple[Recipe, Arch]:
    """Return recipe and target as nouns; raises UnsupportedError when no kernel serves the pair."""
    recipe, arch = check_pair(recipe, arch)
    if arch.generation not in (MmaGeneration.WGMMA, MmaGeneration.TCGEN05):
        raise UnsupportedError(
            f'recipe {recipe.name} on {arch} has no kernel in this version. Use backend="reference", or a GPU of '
            "target sm_90a, sm_100f or sm_103f."
        )
    return recipe, arch


def check_stage(stage: TopkWeightStage, recipe: Recipe) -> None:
    """Raise UnsupportedError unless kernels of `recipe` multiply by the top-k weight at `stage`."""
    if stage != "after_l2" and recipe.generation is not MmaGeneration.TCGEN05:
        raise UnsupportedError(
            f"topk_weight_stage={stage!r} has no kernel for recipe {recipe.name}: Hopper kernels multiply by the top-k "
            'weight after L2. Leave it at "after_l2", choose a Blackwell recipe, or use backend="reference".'
        )


def token_tile(problem: Problem, recipe: Recipe, num_tokens: int) -> int:
    """Return the token tile for a call of `num_tokens` tokens a rank: the family's rule."""
    if recipe.generation is MmaGeneration.TCGEN05:
        return sm100.token_tile(problem, recipe, num_tokens)
    return sm90.token_tile(problem, recipe, num_tokens)


def token_tiles(problem: Problem, recipe: Recipe) -> tuple[int, ...]:
    """Return the token tiles that kernels of a problem can have, narrowest first."""
    if recipe.generation is MmaGeneration.TCGEN05:
        return sm100.TOKEN_TILES
    return sm90.token_tiles(problem, recipe)


def token_tiles_for(problem: Problem, recipe: Recipe, num_tokens: int) -> tuple[int, ...]:
    """Return the token tiles that a call of `num_tokens` tokens a rank can take, narrowest first.

    On Hopper all of them. A Blackwell workspace has counters for as many tiles as the rule makes: there, none narrower
    than the rule's.
    """
    tiles = token_tiles(problem, recipe)
    if recipe.generation is not MmaGeneration.TCGEN05:
        return tiles
    return tuple(n for n in tiles if n >= sm100.token_tile(problem, recipe, num_tokens))


def config_for_tile(problem: Problem, recipe: Recipe, arch: Arch, block_n: int) -> MoeConfig:
    """Return the build for one token tile with as many stages as fit; raises UnsupportedError when none does."""
    if recipe.generation is MmaGeneration.TCGEN05:
        return sm100.config_for_tile(problem, recipe, arch, block_n)
    check_stage(problem.topk_weight_stage, recipe)
    return sm90.config_for_tile(problem, recipe, arch, block_n)


def choose_config(problem: Problem, recipe: str | Recipe, arch: str | Arch, num_tokens: int) -> Choice:
    """Return the configuration for a call of `num_tokens` tokens a rank; raises UnsupportedError when there is none."""
    recipe, arch = check_target(recipe, arch)
    mean, block_n = problem.tokens_per_expert(num_tokens), token_tile(problem, recipe, num_tokens)
    others = tuple(
        f"block_n={n}: "
        + ("too narrow: experts would need more tiles, and read weights again" if n < block_n else "more empty columns")
        for n in token_tiles(problem, recipe)
        if n != block_n
    )
    return Choice(
        config=config_for_tile(problem, recipe, arch, block_n),
        reason=f"block_n={block_n}: an expert gets {mean:.1f} tokens on average",
        others=others,
    )


def plan_kernels(problem: Problem, recipe: str | Recipe, arch: str | Arch) -> tuple[StagingConfig | MoeConfig, ...]:
    """Return every kernel that calls of 1 to max_tokens_per_rank tokens can need; raises UnsupportedError as above."""
    recipe, arch = check_target(recipe, arch)
    narrowest, widest = (token_tile(problem, recipe, n) for n in (1, problem.max_tokens_per_rank))
    tiles = [n for n in token_tiles(problem, recipe) if narrowest <= n <= widest]
    kernels = tuple(config_for_tile(problem, recipe, arch, n) for n in tiles)
    if recipe.generation is MmaGeneration.TCGEN05:
        return (Sm100StagingConfig(problem=problem, recipe=recipe, arch=arch), *kernels)
    sources = (False, True) if recipe.l1_acts.element is Element.E4M3 else (False,)  # BF16 codes are BF16 tokens
    return (
        *(Sm90StagingConfig(problem=problem, recipe=recipe, arch=arch, source_is_codes=codes) for codes in sources),
        *kernels,
    )
