"""Blackwell kernels whose builds are looked at: every recipe, pairs and single CTAs, both spellings."""

from __future__ import annotations

from dataclasses import replace

from megamoe_jit import ActivationSpec, Problem, get_arch, get_recipe
from megamoe_jit.jit.source import KernelDescription
from megamoe_jit.recipes.sm100 import Sm100Config, Sm100StagingConfig, config_for_tile
from megamoe_jit.recipes.sm100_gemm import MMA_KINDS, Sm100GemmConfig, gemm_config

RECIPES = ("nvfp4_nvfp4", "mxfp8_mxfp4", "mxfp8_nvfp4", "mxfp4_mxfp4")
LAYER = Problem(hidden=2880, intermediate=2880, num_experts=32, num_topk=4, max_tokens_per_rank=4096)


def fused(
    recipe: str, block_n: int = 16, *, arch: str = "sm_100f", cta_group: int = 2, problem: Problem = LAYER
) -> Sm100Config:
    """Return a configuration of the fused kernel."""
    return config_for_tile(problem, get_recipe(recipe), get_arch(arch), block_n, cta_group=cta_group)


def gemm(recipe: str, cta_group: int) -> Sm100GemmConfig:
    """Return a configuration of the grouped GEMM."""
    return gemm_config(
        arch=get_arch("sm_100f"),
        kind=MMA_KINDS[recipe],
        num_experts=32,
        n=5760,
        k=2944,
        block_n=64,
        cta_group=cta_group,
    )


def golden() -> dict[str, KernelDescription]:
    """Return the kernels that have golden files, by name."""
    named: dict[str, KernelDescription] = {}
    for recipe in RECIPES:
        named[f"stage_tokens_sm100_{recipe}"] = Sm100StagingConfig(
            problem=LAYER, recipe=get_recipe(recipe), arch=get_arch("sm_100f")
        )
        named[f"mega_moe_sm100_{recipe}_n16"] = fused(recipe)
    before = replace(LAYER, topk_weight_stage="before_requant", activation=ActivationSpec(kind="relu2"))
    named |= {
        "mega_moe_sm100_nvfp4_nvfp4_n128": fused("nvfp4_nvfp4", 128),
        "mega_moe_sm100_nvfp4_nvfp4_n16_single": fused("nvfp4_nvfp4", cta_group=1),
        "mega_moe_sm100_nvfp4_nvfp4_n16_scale_vec": replace(fused("nvfp4_nvfp4", arch="sm_100a"), scale_vec=True),
        "mega_moe_sm100_mxfp8_mxfp4_n16_relu2_before_requant": fused("mxfp8_mxfp4", problem=before),
        "grouped_gemm_nvfp4_nvfp4": gemm("nvfp4_nvfp4", 2),
        "grouped_gemm_nvfp4_nvfp4_single": gemm("nvfp4_nvfp4", 1),
    }
    return named
