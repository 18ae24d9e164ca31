"""Hopper configurations: padded sizes, shared memory inside the limit for every problem, and reasons to refuse."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit import ActivationSpec, Problem, UnsupportedError, get_arch, get_recipe
from megamoe_jit.jit.source import spell_constants
from megamoe_jit.layouts.struct import StructLayout
from megamoe_jit.layouts.weights_sm90 import Sm90Element, sm90_layouts
from megamoe_jit.recipes import plan_kernels, sm90
from megamoe_jit.recipes.sm90 import (
    WIDEST_TILE,
    Sm90Config,
    Sm90Shapes,
    Sm90StagingConfig,
    config_for_tile,
    reject,
    token_tiles,
)

SM90 = get_arch("sm_90a")
HOPPER = ("fp8_nvfp4", "bf16_nvfp4", "fp8_mxfp4", "bf16_mxfp4")
RELU2 = ActivationSpec(kind="relu2")
COUNTERS = ("rows_ready", "l1_done", "has_own_sf", "l2_done", "exited")
LAYER = Problem(hidden=4096, intermediate=2048, num_experts=32, num_topk=6, max_tokens_per_rank=512)
# hidden, intermediate -> hidden as K, hidden as rows, intermediate padded with a gate and without
PADDED = [
    (128, 128, 128, 256, 128, 256),
    (384, 768, 384, 512, 768, 768),
    (2880, 2880, 2944, 3072, 2944, 3072),
    (4096, 2048, 4096, 4096, 2048, 2048),
    (7168, 3072, 7168, 7168, 3072, 3072),
    (16, 16, 128, 256, 128, 256),
    (129, 257, 256, 256, 384, 512),
    (65536, 65536, 65536, 65536, 65536, 65536),
]


def config(recipe: str = "fp8_nvfp4", block_n: int = 16, num_stages: int = 4, **changes: object) -> Sm90Config:
    """Return a configuration of the layer, with any number of stages."""
    problem = replace(LAYER, **changes)  # type: ignore[arg-type]
    return Sm90Config(problem=problem, recipe=get_recipe(recipe), arch=SM90, block_n=block_n, num_stages=num_stages)


@pytest.mark.parametrize("case", PADDED, ids=lambda case: f"{case[0]}x{case[1]}")
@pytest.mark.parametrize("recipe", HOPPER)
def test_padded_sizes(case: tuple[int, ...], recipe: str) -> None:
    hidden, intermediate, hidden_k, hidden_padded, gated, ungated = case
    problem = replace(LAYER, hidden=hidden, intermediate=intermediate)
    shapes = Sm90Shapes(problem=problem, recipe=get_recipe(recipe))
    assert (shapes.hidden_k, shapes.hidden_padded) == (hidden_k, hidden_padded)
    assert (shapes.intermediate_padded, shapes.l1_rows) == (gated, 2 * gated)
    without = Sm90Shapes(problem=replace(problem, activation=RELU2), recipe=get_recipe(recipe))
    assert (without.intermediate_padded, without.l1_rows) == (ungated, ungated)
    assert (shapes.is_fp8, shapes.act_bytes) == ((True, 1) if recipe.startswith("fp8") else (False, 2))


@pytest.mark.parametrize("activation", [ActivationSpec(), RELU2], ids=["gated", "ungated"])
@pytest.mark.parametrize("recipe", HOPPER)
@given(hidden=st.integers(1, 512).map(lambda n: 16 * n), intermediate=st.integers(1, 512).map(lambda n: 16 * n))
def test_kernel_and_weight_transform_pad_alike(
    recipe: str, activation: ActivationSpec, hidden: int, intermediate: int
) -> None:
    problem = replace(LAYER, hidden=hidden, intermediate=intermediate, activation=activation)
    constants = Sm90Config(problem=problem, recipe=get_recipe(recipe), arch=SM90, block_n=8, num_stages=2).constants()
    element = Sm90Element(get_recipe(recipe).weights.element.value)
    l1, l2 = sm90_layouts(hidden=hidden, intermediate=intermediate, gated=activation.gated, element=element)
    block = constants["weight_block_bytes"]
    assert isinstance(block, int)
    for layout, tiles, stages in ((l1, "l1_m_tiles", "l1_k_stages"), (l2, "l2_m_tiles", "l2_k_stages")):
        assert layout.bytes_per_expert == int(constants[tiles]) * int(constants[stages]) * block
    assert l1.padded_rows * l1.branches == constants["l1_rows"]
    assert l1.padded_k * int(constants["act_bytes"]) == constants["token_row_bytes"]
    assert l1.padded_k == int(constants["l1_k_stages"]) * int(constants["block_k"])
    assert l1.padded_rows == constants["intermediate_padded"]
    assert (l2.padded_rows, l2.padded_k) == (constants["hidden_padded"], constants["intermediate_padded"])


def spans(layout: StructLayout) -> list[tuple[str, int, int]]:
    """Return (name, begin, end) of each part in order of address."""
    offsets = layout.offsets()
    return sorted(
        ((field.name, offsets[field.name], offsets[field.name] + field.num_bytes) for field in layout.fields),
        key=lambda span: span[1],
    )


SWEEP = [
    replace(LAYER, hidden=hidden, intermediate=intermediate, num_experts=experts, num_topk=topk, activation=activation)
    for (hidden, intermediate), (experts, topk), activation in itertools.product(
        [(16, 16), (2880, 2880), (7168, 3072), (65536, 65536)],
        [(1, 1), (32, 4), (384, 16)],
        [ActivationSpec(), RELU2],
    )
]


@pytest.mark.parametrize("recipe", HOPPER)
@pytest.mark.parametrize(
    "problem", SWEEP, ids=lambda p: f"{p.hidden}x{p.intermediate}-{p.num_experts}x{p.num_topk}-{p.activation.kind}"
)
def test_shared_memory_fits_for_every_problem_and_tile(problem: Problem, recipe: str) -> None:
    """Each tile has a configuration of at least two stages, and one stage more would not fit (or is not allowed)."""
    for block_n in token_tiles(problem, get_recipe(recipe)):
        chosen = config_for_tile(problem, get_recipe(recipe), SM90, block_n)
        assert reject(chosen) is None
        assert 2 <= chosen.num_stages <= 8
        assert chosen.smem_bytes <= SM90.max_smem_bytes == 232448
        one_more = replace(chosen, num_stages=chosen.num_stages + 1)
        assert chosen.num_stages == 8 or reject(one_more)
        parts = spans(chosen.shared_storage())
        assert all(end <= begin for (_, _, end), (_, begin, _) in itertools.pairwise(parts))
        assert parts[0][:2] == ("tokens", 0)  # the swizzle needs 1024-byte alignment of every stage
        assert chosen.token_stage_bytes % 1024 == 0
        assert chosen.weight_stage_bytes % 16 == 0
        assert chosen.num_threads * 168 <= SM90.regs_per_sm


@pytest.mark.parametrize("recipe", HOPPER)
@pytest.mark.parametrize("problem", SWEEP[:4])
def test_registers_of_the_roles_fit_an_sm(problem: Problem, recipe: str) -> None:
    for block_n in token_tiles(problem, get_recipe(recipe)):
        chosen = config_for_tile(problem, get_recipe(recipe), SM90, block_n)
        constants = chosen.constants()
        registers = (constants["loader_registers"], constants["consumer_registers"])
        assert registers == chosen.registers == ((24, 240) if block_n == WIDEST_TILE else (40, 232))
        consumers = int(constants["num_consumer_warpgroups"])
        needed = 128 * (int(constants["loader_registers"]) + consumers * int(constants["consumer_registers"]))
        assert needed <= 384 * 168  # what the launch gives; setmaxnreg only moves registers inside it
        assert constants["loader_registers"] % 8 == constants["consumer_registers"] % 8 == 0  # type: ignore[operator]
        assert constants["num_threads"] == 128 * (1 + consumers)
        assert constants["first_consumer_thread"] == 128
        assert constants["full_arrivals"] == 2  # one thread loads weights, one activations
        assert constants["empty_arrivals"] == 4 * consumers


@pytest.mark.parametrize("num_experts", [32, 384])
@pytest.mark.parametrize("recipe", HOPPER)
def test_the_widest_tile_is_for_e4m3_and_fits_beside_many_experts(recipe: str, num_experts: int) -> None:
    """Every further expert takes 12 bytes of the schedule; 192 tokens leave room for those of the largest models."""
    problem = replace(LAYER, num_experts=num_experts)
    if not recipe.startswith("fp8"):
        assert token_tiles(problem, get_recipe(recipe))[-1] == 128
        return
    assert token_tiles(problem, get_recipe(recipe))[-1] == WIDEST_TILE == 192
    chosen = config_for_tile(problem, get_recipe(recipe), SM90, WIDEST_TILE)
    assert reject(chosen) is None
    assert (chosen.num_passes, chosen.pass_m, chosen.mma_widths) == (2, 128, (128, 192))
    assert chosen.num_stages >= 3  # with two, loading hardly runs ahead


@pytest.mark.parametrize("recipe", HOPPER)
@pytest.mark.parametrize("activation", [ActivationSpec(), RELU2], ids=["gated", "ungated"])
def test_parts_in_device_memory_lie_apart_and_aligned(recipe: str, activation: ActivationSpec) -> None:
    problem = replace(LAYER, hidden=2880, intermediate=2880, activation=activation)
    shapes = Sm90Shapes(problem=problem, recipe=get_recipe(recipe))
    slots = 512 * 6
    assert shapes.slots == slots
    widest = 64 if not activation.gated else 192 if shapes.is_fp8 else 128
    assert shapes.pool_rows == slots + 32 * (widest - 1)  # any tile fits
    sizes = {field.name: field.num_bytes for field in shapes.symmetric().fields}
    act = shapes.act_bytes
    assert sizes == {
        "x": 512 * 2880 * act,
        "x_sf": 512 * 4,
        "topk_idx": slots * 8,
        "topk_weights": slots * 4,
        "tokens": 512 * 2944 * act,
        "token_sf": 512 * (6 + 1) * 4,  # one for each 512 of 2944, and the token's own
        "partials": slots * 3072 * 2,
    }
    padded = 2944 if activation.gated else 3072
    workspace = {field.name: field.num_bytes for field in shapes.workspace().fields}
    assert workspace["tokens"] == shapes.pool_rows * 2944 * act
    assert workspace["acts"] == shapes.pool_rows * padded * act
    assert workspace["tokens_sf"] == 6 * shapes.pool_rows * 4
    assert workspace["acts_sf"] == padded // 128 * shapes.pool_rows * 4
    for part in ("routed", "routed_sf", "routed_weights"):
        assert workspace[part] == shapes.pool_rows * 4  # beside their rows of the pool
    # One counter for each token tile: an expert's last one may hold a single token.
    assert workspace["rows_ready"] == workspace["l1_done"] == workspace["has_own_sf"]
    assert workspace["l1_done"] // 4 >= max(
        sum(-(-share // 8) for share in shares)
        for shares in ([slots], [1] * 31 + [slots - 31], [slots // 32] * 32, [97] * 31 + [slots - 97 * 31])
    )
    for layout in (shapes.symmetric(), shapes.workspace()):
        parts = spans(layout)
        assert all(end <= begin for (_, _, end), (_, begin, _) in itertools.pairwise(parts))
    for layout, counters in ((shapes.symmetric(), ()), (shapes.workspace(), COUNTERS[1:])):
        assert all(begin % (16 if name in counters else 1024) == 0 for name, begin, _ in spans(layout))
    # The counters come last, in one run that is zeroed at once.
    assert [name for name, _, _ in spans(shapes.workspace())][-len(COUNTERS) :] == list(COUNTERS)


@given(
    capacity=st.integers(1, 40),
    num_experts=st.integers(1, 9),
    num_topk=st.integers(1, 5),
    activation=st.sampled_from([ActivationSpec(), RELU2]),
    recipe_name=st.sampled_from(HOPPER),
    data=st.data(),
)
def test_the_pool_holds_every_routing(
    capacity: int, num_experts: int, num_topk: int, activation: ActivationSpec, recipe_name: str, data: st.DataObject
) -> None:
    """Whatever experts the slots go to, each tile's rows lie in the pool, and each has a counter."""
    num_topk = min(num_topk, num_experts)
    problem = replace(
        LAYER, num_experts=num_experts, num_topk=num_topk, max_tokens_per_rank=capacity, activation=activation
    )
    recipe = get_recipe(recipe_name)
    shapes = Sm90Shapes(problem=problem, recipe=recipe)
    sizes = {field.name: field.num_bytes for field in shapes.workspace().fields}
    of_slots = data.draw(st.lists(st.integers(0, num_experts - 1), max_size=capacity * num_topk))
    rows = [of_slots.count(expert) for expert in range(num_experts)]
    assert shapes.pool_rows % 4 == 0  # a bulk copy of scale factors starts at 16 bytes in every row block
    for tile in token_tiles(problem, recipe):
        tiles = sum(-(-count // tile) for count in rows)
        assert tiles * tile <= shapes.pool_rows
        assert tiles * 4 <= sizes["rows_ready"]


REJECTED = [
    (config("nvfp4_nvfp4"), r"recipe nvfp4_nvfp4 on sm_90a has no wgmma kernel: these are for sm_90a"),
    (replace(config(), arch=get_arch("sm_100a")), r"recipe fp8_nvfp4 on sm_100a has no wgmma kernel"),
    (config(num_ranks=2), r"num_ranks=2: the Hopper kernel dispatches within one rank"),
    (config(block_n=128, activation=RELU2), r"block_n=128 takes two passes, and without a gate"),
    (config(block_n=192, activation=RELU2), r"block_n=192 takes two passes, and without a gate"),
    (config(num_stages=1), r"num_stages=1: loaders and consumers need two stages to overlap"),
    (config(num_stages=40), r"40 stages of 16 tokens need \d+ B of shared memory, sm_90a has 232448 B"),
]


@pytest.mark.parametrize(("bad", "reason"), REJECTED)
def test_reasons_to_refuse(bad: Sm90Config, reason: str) -> None:
    import re

    given = reject(bad)
    assert given is not None
    assert re.match(reason, given)


def test_roles_share_the_registers_of_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """384 threads are launched with 168 registers each; setmaxnreg would wait for ever for more than their sum."""
    for block_n in (16, WIDEST_TILE):
        chosen = config(block_n=block_n, num_stages=2)
        monkeypatch.setattr(sm90, "_REGISTERS", {block_n == WIDEST_TILE: (72, 216)})
        assert reject(chosen) is None
        monkeypatch.setattr(sm90, "_REGISTERS", {block_n == WIDEST_TILE: (80, 216)})
        assert reject(chosen) == "the roles want 65536 registers, and 384 threads are launched with 64512"


def test_no_kernel_is_told_with_the_reason() -> None:
    problem = replace(LAYER, num_ranks=2)
    words = (
        r"no Hopper kernel for this call: num_ranks=2: .* within one rank\. Choose another recipe, arch or number of"
    )
    with pytest.raises(UnsupportedError, match=words):
        config_for_tile(problem, get_recipe("fp8_nvfp4"), SM90, 8)
    with pytest.raises(UnsupportedError, match=words):
        plan_kernels(problem, "fp8_nvfp4", "sm_90a")


@pytest.mark.parametrize("recipe", HOPPER)
def test_constants_print_and_descriptions_are_keys(recipe: str) -> None:
    """Equal descriptions are one key; what changes the source changes the constants."""
    kernels = plan_kernels(LAYER, recipe, "sm_90a")
    assert len(set(kernels)) == len(kernels)
    assert set(kernels) == set(plan_kernels(replace(LAYER, activation=ActivationSpec()), recipe, "sm_90a"))
    printed = {tuple(constant.definition for constant in spell_constants(kernel.constants())) for kernel in kernels}
    assert len(printed) == len(kernels)


CHANGES = [
    {"activation": ActivationSpec(kind="gelu")},
    {"activation": RELU2},
    {"activation": ActivationSpec(alpha=1.702)},
    {"activation": ActivationSpec(up_bias=1.0)},
    {"activation": ActivationSpec(clamp=0.0)},
    {"activation": ActivationSpec(clamp=7.0)},
    {"fast_math": False},
    {"topk_idx_bytes": 4},
    {"hidden": 4112},
    {"intermediate": 2176},
    {"num_experts": 64},
    {"num_topk": 7},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_whatever_changes_the_arithmetic_changes_the_constants(changes: dict[str, object]) -> None:
    assert dict(config().constants()) != dict(config(**changes).constants())


def test_capacity_and_padding_do_not_ask_for_another_kernel() -> None:
    """The capacity is no constant: a larger buffer loads the same kernels."""
    assert dict(config().constants()) == dict(config(max_tokens_per_rank=65536).constants())
    staging = [
        Sm90StagingConfig(problem=problem, recipe=get_recipe("fp8_nvfp4"), arch=SM90).constants()
        for problem in (LAYER, replace(LAYER, max_tokens_per_rank=1, activation=RELU2, intermediate=128))
    ]
    assert dict(staging[0]) == dict(staging[1])


@pytest.mark.parametrize("recipe", HOPPER)
def test_template_values(recipe: str) -> None:
    for kernel in plan_kernels(replace(LAYER, max_tokens_per_rank=8192), recipe, "sm_90a"):
        values = kernel.template_values()
        if isinstance(kernel, Sm90StagingConfig):
            assert values == {}
            continue
        widths = values["wgmma_n"]
        assert isinstance(widths, tuple)
        assert widths[-1] == kernel.block_n
        assert list(widths) == sorted(set(widths))
        boxes = values["tma_boxes"]
        assert isinstance(boxes, tuple)
        assert [name for name, _, _ in boxes] == ["tokens_map", "acts_map"]
        for _, rows, columns in boxes:
            assert kernel.block_n % rows == 0
            assert rows % 8 == 0  # the swizzle's pattern
            assert columns * kernel.shapes.act_bytes == 128
