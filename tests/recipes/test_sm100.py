"""Blackwell configurations: tensor memory, rings, token tiles, and reasons to refuse."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit import ActivationSpec, Problem, UnsupportedError, get_arch, get_recipe
from megamoe_jit.recipes import choose_config, plan_kernels
from megamoe_jit.recipes.sm100 import TOKEN_TILES, Sm100Config, Sm100Shapes, config_for_tile, reject

LAYER = Problem(hidden=4096, intermediate=2048, num_experts=32, num_topk=4, max_tokens_per_rank=8192)
RECIPES = ("nvfp4_nvfp4", "mxfp8_mxfp4", "mxfp8_nvfp4", "mxfp4_mxfp4")


def config(recipe: str = "nvfp4_nvfp4", block_n: int = 16, **changes: object) -> Sm100Config:
    """Return the configuration of a tile with some fields replaced, whether it can run or not."""
    made = config_for_tile(LAYER, get_recipe(recipe), get_arch("sm_100f"), block_n)
    return replace(made, **changes)  # type: ignore[arg-type]


# Columns of scale factors that 128 rows of one stage take, and of all tensor memory with tiles of 16 and of 128 tokens:
# two accumulators, scale factors of the weights' 128 rows, and of the tokens' 128.
COLUMNS = {
    "nvfp4_nvfp4": (16, 2 * 16 + 32, 2 * 128 + 32),
    "mxfp4_mxfp4": (8, 2 * 16 + 16, 2 * 128 + 16),
    "mxfp8_mxfp4": (4, 2 * 16 + 8, 2 * 128 + 8),
    "mxfp8_nvfp4": (4, 2 * 16 + 8, 2 * 128 + 8),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_tensor_memory_holds_two_accumulators_and_the_scale_factors_of_a_stage(recipe: str) -> None:
    of_rows, narrow, wide = COLUMNS[recipe]
    for block_n, needed in ((16, narrow), (128, wide)):
        made = config(recipe, block_n)
        assert 4 * made.sf_words == of_rows
        assert made.num_accums == 2
        assert made.tmem_columns == {16: 64, 128: 512}[block_n] >= needed > made.tmem_columns // 2


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("hidden", "intermediate"), [(128, 128), (384, 768), (2880, 2880), (7168, 2048)])
def test_rings_hold_whole_stages_of_scale_factors(recipe: str, hidden: int, intermediate: int) -> None:
    problem = replace(LAYER, hidden=hidden, intermediate=intermediate)
    shapes = Sm100Shapes(problem=problem, recipe=get_recipe(recipe))
    for layout in shapes.layouts():
        words = shapes.ring_words(layout)
        assert words % shapes.sf_words == 0
        assert layout.num_words <= words < layout.num_words + shapes.sf_words
    sizes = {field.name: field.num_bytes for field in shapes.workspace().fields}
    for block_n in TOKEN_TILES:
        tiles = shapes.ring_tiles(block_n)
        for name, layout in zip(("tokens", "acts"), shapes.layouts(), strict=True):
            assert tiles * block_n * shapes.row_bytes(layout.padded_k) <= sizes[name]
            assert tiles * shapes.ring_words(layout) * 512 <= sizes[f"{name}_sf"]


@given(tokens=st.integers(1, 8192), topk=st.integers(1, 8), experts=st.integers(8, 384))
def test_a_call_has_no_more_token_tiles_than_its_counters(tokens: int, topk: int, experts: int) -> None:
    """Whatever the routing is: one expert may get all, and each may have a tile that is partly filled."""
    problem = replace(LAYER, num_topk=topk, num_experts=experts)
    chosen = choose_config(problem, "nvfp4_nvfp4", "sm_100f", tokens).config
    slots, shapes = tokens * topk, Sm100Shapes(problem=problem, recipe=get_recipe("nvfp4_nvfp4"))
    filled = min(experts, slots)
    most = (slots - filled) // chosen.block_n + filled
    assert most <= shapes.max_token_tiles(chosen.block_n)
    assert shapes.ring_tiles(chosen.block_n) % 2 == 0


# Tokens of a call (eight are a mean of one an expert) -> tile: 16 is full at a mean of 11 and 1.5 standard deviations
# more, 32 at 24.6, 64 at 53.
@pytest.mark.parametrize(
    ("num_tokens", "tile"), [(0, 16), (1, 16), (88, 16), (89, 32), (196, 32), (197, 64), (424, 64), (425, 128)]
)
def test_a_call_takes_the_narrowest_tile_that_most_experts_fit(num_tokens: int, tile: int) -> None:
    for recipe in RECIPES:
        assert choose_config(LAYER, recipe, "sm_103f", num_tokens).config.block_n == tile


@pytest.mark.parametrize(("capacity", "tiles"), [(1, [16]), (89, [16, 32]), (8192, [16, 32, 64, 128])])
def test_a_plan_is_one_staging_kernel_and_every_tile_that_calls_can_need(capacity: int, tiles: list[int]) -> None:
    staging, *fused = plan_kernels(replace(LAYER, max_tokens_per_rank=capacity), "mxfp8_nvfp4", "sm_100a")
    assert staging.kernel_name == "stage_tokens_sm100"
    assert [kernel.block_n for kernel in fused if isinstance(kernel, Sm100Config)] == tiles


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": get_arch("sm_90a")}, "has no tcgen05 kernel"),
        ({"recipe": get_recipe("fp8_nvfp4")}, "has no tcgen05 kernel"),
        ({"scale_vec": True}, "scale_vec is not for family targets such as sm_100f, which spell it block16"),
        ({"problem": replace(LAYER, num_ranks=2)}, "num_ranks=2"),
        ({"cta_group": 4}, "cta_group=4: an MMA is of one CTA or of a pair"),
        ({"block_n": 48}, "block_n=48: token tiles are 16, 32, 64, 128"),
        ({"problem": replace(LAYER, hidden=4104)}, "hidden=4104 is no multiple of 16"),
        ({"ring_tiles": 3}, "ring_tiles=3: the ring holds two waves"),
        ({"num_stages": 1}, "num_stages=1: loads and MMAs need two stages"),
        ({"num_stages": 20}, "20 stages of 16 tokens need .* B of shared memory, sm_100f has 232448 B"),
    ],
)
def test_what_cannot_run_has_a_reason(changes: dict[str, object], words: str) -> None:
    assert reject(config()) is None
    assert re.search(words, str(reject(replace(config(), **changes))))  # type: ignore[arg-type]


def test_a_problem_without_a_kernel_is_refused_in_words() -> None:
    with pytest.raises(UnsupportedError, match=r"no Blackwell kernel for this call: num_ranks=2.* Choose another"):
        plan_kernels(replace(LAYER, num_ranks=2), "nvfp4_nvfp4", "sm_100f")


def test_kernels_differ_by_what_is_compiled_in() -> None:
    problems = (
        LAYER,
        replace(LAYER, topk_weight_stage="before_requant"),
        replace(LAYER, activation=ActivationSpec(kind="gelu")),
        replace(LAYER, activation=ActivationSpec(clamp=1.0)),
        replace(LAYER, fast_math=False),
        replace(LAYER, topk_idx_bytes=4),
    )
    made = [tuple(sorted(config(problem=problem).constants().items())) for problem in problems]
    assert len(set(made)) == len(made)
