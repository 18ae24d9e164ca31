"""From problems to configurations: which token tile a call takes, which kernels a buffer needs, and who is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megamoe_jit import ActivationSpec, Problem, UnsupportedError, get_recipe
from megamoe_jit.arch import ARCHS
from megamoe_jit.recipes import RECIPES, choose_config, plan_kernels
from megamoe_jit.recipes.choose import check_pair, check_target, token_tile
from megamoe_jit.recipes.sm90 import Sm90Config, Sm90StagingConfig, token_tiles

# Eight tokens are a mean of one an expert.
LAYER = Problem(hidden=4096, intermediate=2048, num_experts=32, num_topk=4, max_tokens_per_rank=8192)
HOPPER = ("fp8_nvfp4", "bf16_nvfp4", "fp8_mxfp4", "bf16_mxfp4")
WIDEST = 0
# Tokens of a call -> tile. A tile of 8 is full at a mean of 4.7 and 1.5 standard deviations more, 16 at 11, 24 at 17.7,
# 32 at 24.6, 48 at 38.7, 64 at 53.1, 128 at 112.1; more takes the widest.
TILES = {0: 8, 1: 8, 37: 8, 38: 16, 88: 16, 89: 24, 141: 24, 142: 32, 196: 32, 197: 48, 309: 48, 310: 64, 424: 64}
TILES |= {425: 128, 896: 128, 897: WIDEST, 2048: WIDEST, 8192: WIDEST}


def widest(problem: Problem, recipe: str) -> int:
    """Return the widest tile of a problem."""
    return token_tiles(problem, get_recipe(recipe))[-1]


@pytest.mark.parametrize("recipe", HOPPER)
@pytest.mark.parametrize("num_tokens", TILES)
def test_a_call_takes_the_narrowest_tile_that_most_experts_fit(recipe: str, num_tokens: int) -> None:
    wanted = TILES[num_tokens] or (192 if recipe.startswith("fp8") else 128)
    assert token_tile(LAYER, get_recipe(recipe), num_tokens) == wanted
    choice = choose_config(LAYER, recipe, "sm_90a", num_tokens)
    assert choice.config.block_n == wanted
    assert choice.reason == f"block_n={wanted}: an expert gets {num_tokens / 8:.1f} tokens on average"
    others = {int(text.partition("=")[2].partition(":")[0]): text for text in choice.others}
    assert sorted([*others, wanted]) == list(token_tiles(LAYER, get_recipe(recipe)))
    for tile, text in others.items():
        assert ("read weights again" in text) == (tile < wanted)
        assert ("more empty columns" in text) == (tile > wanted)


@pytest.mark.parametrize(
    ("num_experts", "num_topk", "num_tokens", "tile"),
    [(1, 1, 4, 8), (1, 1, 5, 16), (384, 16, 113, 8), (384, 16, 114, 16), (384, 1, 1792, 8), (384, 1, 1824, 16)],
)
def test_few_and_many_experts(num_experts: int, num_topk: int, num_tokens: int, tile: int) -> None:
    problem = replace(LAYER, num_experts=num_experts, num_topk=num_topk)
    assert choose_config(problem, "fp8_nvfp4", "sm_90a", num_tokens).config.block_n == tile


def test_tiles_grow_with_the_call_and_no_further_than_the_widest() -> None:
    for recipe in HOPPER:
        for activation in (ActivationSpec(), ActivationSpec(kind="relu2")):
            problem = replace(LAYER, activation=activation)
            tiles = [token_tile(problem, get_recipe(recipe), n) for n in range(1, 8192, 7)]
            assert tiles == sorted(tiles)
            assert set(tiles) == set(token_tiles(problem, get_recipe(recipe)))


PLANS = [  # capacity, tiles that are built
    (1, [8]),
    (37, [8]),
    (38, [8, 16]),
    (100, [8, 16, 24]),
    (196, [8, 16, 24, 32]),
    (424, [8, 16, 24, 32, 48, 64]),
    (512, [8, 16, 24, 32, 48, 64, 128]),
    (896, [8, 16, 24, 32, 48, 64, 128]),
    (4096, [8, 16, 24, 32, 48, 64, 128, WIDEST]),
]


@pytest.mark.parametrize(("capacity", "tiles"), PLANS)
@pytest.mark.parametrize("recipe", HOPPER)
def test_a_plan_has_every_kernel_that_calls_can_need(recipe: str, capacity: int, tiles: list[int]) -> None:
    problem = replace(LAYER, max_tokens_per_rank=capacity)
    kernels = plan_kernels(problem, recipe, "sm_90a")
    staging = [kernel.source_is_codes for kernel in kernels if isinstance(kernel, Sm90StagingConfig)]
    assert staging == ([False, True] if recipe.startswith("fp8") else [False])
    # BF16 has no wider tile than 128.
    wanted = [tile or 192 for tile in tiles if tile != WIDEST or recipe.startswith("fp8")]
    assert [kernel.block_n for kernel in kernels if isinstance(kernel, Sm90Config)] == wanted
    for num_tokens in {*range(1, min(capacity, 512) + 1), capacity}:
        assert choose_config(problem, recipe, "sm_90a", num_tokens).config in kernels
    assert all(kernel.problem == problem and kernel.arch.name == "sm_90a" for kernel in kernels)


def test_hopper_kernels_weigh_after_l2_only() -> None:
    problem = replace(LAYER, topk_weight_stage="before_requant")
    for plan in (plan_kernels, lambda *pair: choose_config(*pair, 1)):
        with pytest.raises(UnsupportedError, match=r"'before_requant' has no kernel for recipe bf16_nvfp4: Hopper"):
            plan(problem, "bf16_nvfp4", "sm_90a")
    _, fused, *_ = plan_kernels(problem, "mxfp8_nvfp4", "sm_100f")
    assert fused.constants()["weighs_before_requant"]
    assert not plan_kernels(LAYER, "mxfp8_nvfp4", "sm_100f")[1].constants()["weighs_before_requant"]


def test_a_plan_begins_with_the_tile_of_one_token() -> None:
    """With as many slots as experts, each token is one of every expert's; a plan leaves out no tile in between."""
    problem = replace(LAYER, num_experts=16, num_topk=16, max_tokens_per_rank=53)
    tiles = [k.block_n for k in plan_kernels(problem, "bf16_nvfp4", "sm_90a") if isinstance(k, Sm90Config)]
    assert tiles == [8, 16, 24, 32, 48, 64]


@pytest.mark.parametrize("recipe", HOPPER)
def test_two_passes_need_a_gate(recipe: str) -> None:
    gated, ungated = LAYER, replace(LAYER, activation=ActivationSpec(kind="relu2"))
    assert widest(gated, recipe) == (192 if recipe.startswith("fp8") else 128)
    assert widest(ungated, recipe) == 64
    assert token_tile(ungated, get_recipe(recipe), 8192) == 64


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("arch", ARCHS)
def test_targets(recipe: str, arch: str) -> None:
    """A pair runs, or says why not and what else to take."""
    if arch not in RECIPES[recipe].targets:
        words = rf"recipe {recipe} runs on .*, and the target is {arch}\. Choose recipe .* for it, or another target\."
        for check in (check_pair, check_target):
            with pytest.raises(UnsupportedError, match=words):
                check(recipe, arch)
        return
    assert check_pair(recipe, arch) == (RECIPES[recipe], ARCHS[arch])
    assert check_target(recipe, arch) == (RECIPES[recipe], ARCHS[arch])
    staging, *kernels = plan_kernels(LAYER, recipe, arch)
    assert choose_config(LAYER, recipe, arch, 1).config in kernels
    assert {kernel.arch for kernel in (staging, *kernels)} == {ARCHS[arch]}
