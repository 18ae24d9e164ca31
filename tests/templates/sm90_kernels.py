"""Hopper kernels whose builds are looked at: every token tile, activation, index width, and shapes at the limits."""

from __future__ import annotations

from dataclasses import replace

from megamoe_jit import ActivationSpec, Problem, get_arch, get_recipe
from megamoe_jit.jit.compile import Artifact, CompileOptions, compile_source
from megamoe_jit.jit.render import render
from megamoe_jit.recipes.sm90 import Sm90Config, Sm90StagingConfig, config_for_tile, token_tiles

SM90 = get_arch("sm_90a")
RECIPES = ("fp8_nvfp4", "bf16_nvfp4")
LAYER = Problem(hidden=4096, intermediate=2048, num_experts=32, num_topk=6, max_tokens_per_rank=8192)
NARROW = Problem(
    hidden=1040,
    intermediate=784,
    num_experts=1,
    num_topk=1,
    max_tokens_per_rank=64,
    activation=ActivationSpec(kind="relu2", clamp=0.5),
    fast_math=False,
    topk_idx_bytes=4,
)
MANY = Problem(
    hidden=2880,
    intermediate=2880,
    num_experts=384,
    num_topk=16,
    max_tokens_per_rank=512,
    activation=ActivationSpec(kind="gelu", up_bias=1.0, clamp=7.0),
)
LARGEST = Problem(
    hidden=65536,
    intermediate=65536,
    num_experts=384,
    num_topk=16,
    max_tokens_per_rank=65536,
    activation=ActivationSpec.swigluoai(),
)
ODD = Problem(hidden=129, intermediate=257, num_experts=2, num_topk=2, max_tokens_per_rank=1, fast_math=False)


def config(problem: Problem, recipe: str, block_n: int) -> Sm90Config:
    """Return the configuration that calls of a token tile use."""
    return config_for_tile(problem, get_recipe(recipe), SM90, block_n)


def fused_kernels() -> dict[str, Sm90Config]:
    """Return the fused kernels by name."""
    chosen: dict[str, Sm90Config] = {}
    for recipe in RECIPES:
        tiles = token_tiles(LAYER, get_recipe(recipe))
        wanted = [("layer", LAYER, tile) for tile in tiles]
        wanted += [("narrow", NARROW, 8), ("narrow", NARROW, 64), ("many", MANY, 16), ("odd", ODD, 8)]
        wanted += [("largest", LARGEST, tiles[-1])]
        chosen |= {f"{recipe}-{name}-n{tile}": config(problem, recipe, tile) for name, problem, tile in wanted}
    return chosen


def staging_kernels() -> dict[str, Sm90StagingConfig]:
    """Return the staging kernels by name."""
    problems = {"layer": LAYER, "narrow": NARROW, "many": MANY, "odd": ODD, "largest": LARGEST}
    # On both sides of the width from which fewer blocks share an SM.
    problems |= {f"hidden{hidden}": replace(LAYER, hidden=hidden) for hidden in (24576, 24704)}
    return {
        f"{recipe}-{name}{'-codes' if codes else ''}": Sm90StagingConfig(
            problem=problem, recipe=get_recipe(recipe), arch=SM90, source_is_codes=codes
        )
        for name, problem in problems.items()
        for recipe, codes in (("fp8_nvfp4", False), ("fp8_nvfp4", True), ("bf16_nvfp4", False))
    }


def compiled(kernel: Sm90Config | Sm90StagingConfig) -> Artifact:
    """Compile a kernel with the options that `build` uses."""
    return compile_source(render(kernel), kernel.arch, CompileOptions(), kernel_name=kernel.kernel_name)


# Layouts depend on the tile, the number of experts and the recipe only.
FUSED_FOR_LAYOUTS = {name: kernel for name, kernel in fused_kernels().items() if "layer" in name or "many" in name}
STAGING_FOR_LAYOUTS = staging_kernels()
