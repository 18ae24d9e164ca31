"""Autotuning: which tile wins, where a stored choice holds, and that plans take it; times come from a table."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megamoe_jit import (
    ActivationSpec,
    ArgumentError,
    LaunchError,
    MegaMoE,
    MoeWeights,
    UnsupportedError,
    get_arch,
    get_recipe,
)
from megamoe_jit.jit.cache import default_cache
from megamoe_jit.jit.tuned import record_paths
from megamoe_jit.ops import moe, plan, plan_sm100, tuning
from megamoe_jit.ops.tuning import TunedTiles, candidates_for, stored_tiles, winner
from megamoe_jit.recipes import Problem
from megamoe_jit.recipes.choose import config_for_tile, token_tile, token_tiles, token_tiles_for
from tests.marks import needs_gpu

EXPERTS, TOPK, HIDDEN, INTERMEDIATE, CAPACITY = 4, 2, 128, 128, 256
HOPPER, BLACKWELL = ("fp8_nvfp4", "sm_90a"), ("nvfp4_nvfp4", "sm_100f")
PROBLEM = Problem(
    hidden=HIDDEN, intermediate=INTERMEDIATE, num_experts=EXPERTS, num_topk=TOPK, max_tokens_per_rank=CAPACITY
)
both_families = pytest.mark.parametrize(("recipe", "arch"), [HOPPER, BLACKWELL])


@dataclass
class FakeGpu:
    """A backend that notes the token tile of every fused launch and writes what that tile gives."""

    name: str = "cuda"
    device_name: str = "NVIDIA H200"
    driver_version: str = "13.0"
    num_sms: int = 132
    results: dict[int, float] = field(default_factory=dict)  # by token tile; 1 for the others
    built: list[int] = field(default_factory=list)
    launched: list[int] = field(default_factory=list)

    def is_capturing(self) -> bool:
        return False

    def error_record(self) -> Any:
        return SimpleNamespace(device_pointer=0, raise_if_failed=lambda waits: None)

    def build(self, config: Any) -> Any:
        if hasattr(config, "block_n"):
            self.built.append(config.block_n)
        return config

    def prepare(self, launch: Any) -> Any:
        block_n = getattr(launch.kernel, "block_n", None)

        def run(reads: Any = (), writes: Sequence[torch.Tensor] = ()) -> None:
            if block_n is not None:
                self.launched.append(block_n)
                writes[0].fill_(self.results.get(block_n, 1.0))

        ignore = lambda *_: None  # noqa: E731
        return SimpleNamespace(plan=launch, launch=run, patch=ignore, update=ignore)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    """Send every call to a fake GPU, with a cache of its own; tensors stay on the CPU."""
    made = FakeGpu()
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MEGAMOE_JIT_TUNING", "1")
    monkeypatch.setattr(moe, "resolve_backend", lambda name, device: "cuda")
    for module in (plan, plan_sm100):
        monkeypatch.setattr(module, "build", made.build)
        monkeypatch.setattr(module, "open_backend", lambda device: made)
        monkeypatch.setattr(module, "LaunchPlan", SimpleNamespace)
    return made


def layer(recipe: str = HOPPER[0], arch: str = HOPPER[1], capacity: int = CAPACITY, **changes: Any) -> MegaMoE:
    weights = MoeWeights.random(EXPERTS, HIDDEN, INTERMEDIATE, seed=1)
    return MegaMoE(weights, recipe=recipe, arch=arch, num_topk=TOPK, max_tokens_per_rank=capacity, **changes)


def tile_of(gpu: FakeGpu, made: MegaMoE, num_tokens: int) -> int:
    """Return the token tile that a call takes."""
    x, idx = torch.zeros(num_tokens, HIDDEN).bfloat16(), torch.arange(TOPK).repeat(num_tokens, 1)
    made(x, idx, torch.ones(num_tokens, TOPK))
    return gpu.launched[-1]


def rule(num_tokens: int, recipe: str = HOPPER[0]) -> int:
    return token_tile(PROBLEM, get_recipe(recipe), num_tokens)


@dataclass
class Table:
    """Measures by looking up: the time of each token tile; 100 us for the others."""

    gpu: FakeGpu
    us: dict[int, float]
    seen: list[list[int]] = field(default_factory=list)

    def __call__(self, candidates: Sequence[Sequence[Callable[[], object]]]) -> list[float]:
        self.seen.append([])
        for calls in candidates:
            assert len(calls) > 1  # several routings
            for call in calls:
                call()
            self.seen[-1].append(self.gpu.launched[-1])
        return [self.us.get(tile, 100.0) for tile in self.seen[-1]]


@pytest.mark.parametrize(
    ("us", "wanted"),
    [
        ({16: 100.0}, 16),
        ({16: 100.0, 8: 98.0}, 16),  # exactly 2 % is not enough
        ({16: 100.0, 8: 97.9}, 8),
        ({16: 100.0, 8: 97.0, 32: 96.0}, 32),
        ({16: 100.0, 8: 101.0, 32: 150.0}, 16),
    ],
)
def test_a_tile_wins_by_more_than_two_percent(us: dict[int, float], wanted: int) -> None:
    assert winner(us, 16) == wanted


def test_candidates_leave_out_what_is_hopeless() -> None:
    recipe, arch = get_recipe(HOPPER[0]), get_arch(HOPPER[1])
    for num_tokens in (1, 100, 200):
        first, *others = candidates_for(PROBLEM, recipe, arch, num_tokens)
        assert first == token_tile(PROBLEM, recipe, num_tokens)
        mean = PROBLEM.tokens_per_expert(num_tokens)
        assert {first, *others} == {first, *(n for n in token_tiles(PROBLEM, recipe) if mean <= 6 * n)}
    assert 8 not in candidates_for(PROBLEM, recipe, arch, 200)


def test_a_blackwell_call_takes_no_tile_narrower_than_its_counters() -> None:
    recipe = get_recipe(BLACKWELL[0])
    for num_tokens in range(1, CAPACITY + 1):
        tiles = token_tiles_for(PROBLEM, recipe, num_tokens)
        assert tiles[0] == token_tile(PROBLEM, recipe, num_tokens)
        shapes = config_for_tile(PROBLEM, recipe, get_arch(BLACKWELL[1]), tiles[0]).shapes
        slots = num_tokens * TOPK
        assert all(slots // n + EXPERTS <= shapes.max_token_tiles(n) for n in tiles)


def tuned(*tiles: tuple[int, int], recipe: str = HOPPER[0]) -> TunedTiles:
    return TunedTiles(problem=PROBLEM, recipe=get_recipe(recipe), tiles=tiles)


def test_a_choice_holds_up_to_the_geometric_means() -> None:
    wide, wider = 64, 128
    choice = tuned((4, wide), (16, wider), (64, rule(64)), (100, wider))
    wanted = {
        **dict.fromkeys((1, 3), None),  # outside
        **dict.fromkeys((4, 5, 7, 8), wide),  # the mean of 4 and 16 is 8
        **dict.fromkeys((9, 16, 31, 32), wider),
        **dict.fromkeys((33, 64, 79), None),  # the rule won at 64
        **dict.fromkeys((81, 99, 100), wider),  # 80 = sqrt(64 x 100)
        **dict.fromkeys((101, 4096), None),
    }
    assert {n: choice.tile(n) for n in wanted} == wanted
    assert choice.needed == {wide, wider}
    assert tuned().tile(1) is None
    assert tuned((8, wide)).tile(8) == wide
    assert tuned((8, wide)).tile(9) is None


def test_a_choice_that_a_blackwell_call_cannot_take_is_the_rules() -> None:
    recipe = BLACKWELL[0]
    narrow = next(n for n in range(1, CAPACITY) if rule(n + 1, recipe) > 32)
    choice = tuned((narrow // 2, 32), (4 * narrow, 128), recipe=recipe)
    taken = [choice.tile(n) or rule(n, recipe) for n in range(1, CAPACITY + 1)]
    assert all(tile >= rule(n, recipe) for n, tile in enumerate(taken, start=1))


@both_families
def test_a_layer_is_tuned_and_a_later_one_uses_it(gpu: FakeGpu, recipe: str, arch: str) -> None:
    fast = 128
    made, table = layer(recipe, arch), Table(gpu, {fast: 50.0})
    assert rule(8, recipe) != fast
    chosen = made.autotune([2, 8, 8, 32], measure=table)
    assert [(tile.num_tokens, tile.block_n, tile.us) for tile in chosen] == [(n, fast, 50.0) for n in (2, 8, 32)]
    assert {tile.rule_us for tile in chosen} == {100.0}
    assert [seen[0] for seen in table.seen] == [rule(n, recipe) for n in (2, 8, 32)]  # the rule's first
    for each in (made, layer(recipe, arch), layer(recipe, arch, capacity=64)):
        each.prepare()
        built = list(gpu.built)
        assert [tile_of(gpu, each, n) for n in (1, 2, 8, 32, 33)] == [
            rule(1, recipe),
            *(fast, fast, fast),
            rule(33, recipe),
        ]
        assert gpu.built == built  # prepare() built all


def test_layers_that_share_a_buffer_take_the_choice_at_once(gpu: FakeGpu) -> None:
    first = layer()
    second = MegaMoE(MoeWeights.random(EXPERTS, HIDDEN, INTERMEDIATE, seed=2), sym_buffer=first.sym_buffer)
    assert tile_of(gpu, second, 8) == rule(8)
    first.autotune([8], measure=Table(gpu, {64: 50.0}))
    assert tile_of(gpu, second, 8) == tile_of(gpu, first, 8) == 64


def test_tuning_again_adds_and_replaces(gpu: FakeGpu) -> None:
    layer().autotune([4, 16], measure=Table(gpu, {64: 50.0}))
    layer().autotune([16, 64], measure=Table(gpu, {128: 50.0}))
    (path,) = record_paths(default_cache())
    record = json.loads(path.read_text())
    assert [(tile["num_tokens"], tile["block_n"]) for tile in record["tiles"]] == [(4, 64), (16, 128), (64, 128)]
    assert record["key"]["device"] == "NVIDIA H200"
    assert record["key"]["problem"]["hidden"] == HIDDEN
    assert "max_tokens_per_rank" not in record["key"]["problem"]


def test_none_tunes_powers_of_two_and_the_capacity(gpu: FakeGpu) -> None:
    chosen = layer(capacity=100).autotune(measure=Table(gpu, {}))
    assert [tile.num_tokens for tile in chosen] == [1, 2, 4, 8, 16, 32, 64, 100]
    assert [tile.block_n for tile in chosen] == [rule(tile.num_tokens) for tile in chosen]


def test_the_variable_turns_choices_off(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer()
    with monkeypatch.context() as patch:
        patch.setenv("MEGAMOE_JIT_TUNING", "0")
        made.autotune([8], measure=Table(gpu, {64: 50.0}))
        assert tile_of(gpu, made, 8) == tile_of(gpu, layer(), 8) == rule(8)
    assert tile_of(gpu, layer(), 8) == 64


def test_cache_only_mode_reads_choices(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    layer().autotune([8], measure=Table(gpu, {64: 50.0}))
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_ONLY", "1")
    assert tile_of(gpu, layer(), 8) == 64


def test_a_cache_that_cannot_be_written_costs_the_sharing(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "file"))
    made = layer()
    made.autotune([8], measure=Table(gpu, {64: 50.0}))
    assert "cannot be written" in caplog.text
    assert (tile_of(gpu, made, 8), tile_of(gpu, layer(), 8)) == (64, rule(8))


KEYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hidden": ({"hidden": 256}, {}),
    "intermediate": ({"intermediate": 256}, {}),
    "experts": ({"num_experts": 8}, {}),
    "top-k": ({"num_topk": 1}, {}),
    "activation": ({"activation": ActivationSpec(clamp=7.0)}, {}),
    "fast math": ({"fast_math": False}, {}),
    "device": ({}, {"device_name": "NVIDIA H100"}),
    "SMs": ({}, {"num_sms": 78}),
}


@pytest.mark.parametrize(("changes", "device"), KEYS.values(), ids=KEYS)
def test_a_choice_is_for_one_layer_and_device(gpu: FakeGpu, changes: Any, device: Any) -> None:
    layer().autotune([8], measure=Table(gpu, {64: 50.0}))
    recipe, arch = get_recipe(HOPPER[0]), get_arch(HOPPER[1])
    smaller = replace(PROBLEM, max_tokens_per_rank=8)
    assert stored_tiles(smaller, recipe, arch, gpu).tile(8) == 64
    assert stored_tiles(replace(PROBLEM, **changes), recipe, arch, dataclasses.replace(gpu, **device)).tiles == (
        () if changes or device else ((8, 64),)
    )
    assert stored_tiles(PROBLEM, get_recipe("bf16_nvfp4"), arch, gpu).tiles == ()


@pytest.mark.parametrize("clamp", [7, 7.0, np.float32(7.0)])
def test_equal_activations_have_one_key(gpu: FakeGpu, clamp: Any) -> None:
    layer(activation=ActivationSpec(clamp=7.0)).autotune([8], measure=Table(gpu, {64: 50.0}))
    assert tile_of(gpu, layer(activation=ActivationSpec(clamp=clamp)), 8) == 64


@pytest.mark.parametrize("name", ["nvrtc_version", "templates_digest"])
def test_a_choice_is_for_one_compiler_and_one_code(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    layer().autotune([8], measure=Table(gpu, {64: 50.0}))
    monkeypatch.setattr(tuning, name, lambda *_: (99, 9))
    assert tile_of(gpu, layer(), 8) == rule(8)


def test_a_stored_tile_that_is_none_is_passed_over(gpu: FakeGpu) -> None:
    layer().autotune([8], measure=Table(gpu, {64: 50.0}))
    (path,) = record_paths(default_cache())
    path.write_text(path.read_text().replace('"block_n": 64', '"block_n": 72'))
    assert tile_of(gpu, layer(), 8) == rule(8)


def test_tiles_that_disagree_are_refused(gpu: FakeGpu) -> None:
    gpu.results[64] = 2.0
    made = layer()
    with pytest.raises(LaunchError, match=r"token tiles 64 and \d+ of recipe fp8_nvfp4 give different results"):
        made.autotune([8], measure=Table(gpu, {64: 50.0}))
    assert record_paths(default_cache()) == []
    assert tile_of(gpu, made, 8) == rule(8)


def test_results_that_are_no_numbers_are_compared_too(gpu: FakeGpu) -> None:
    gpu.results = dict.fromkeys(token_tiles(PROBLEM, get_recipe(HOPPER[0])), math.inf)
    assert layer().autotune([8], measure=Table(gpu, {64: 50.0}))[0].block_n == 64


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ([], "num_tokens is empty"),
        ([0], "num_tokens holds 0, but the buffer takes calls of 1 to 256 tokens"),
        ([8, 257], "num_tokens holds 257"),
        ([True], "num_tokens holds True"),
        ([8.0], "num_tokens holds 8.0"),
    ],
)
def test_counts_are_checked(gpu: FakeGpu, counts: list[Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        layer().autotune(counts, measure=Table(gpu, {}))


@pytest.mark.parametrize("times", [[], [0.0] * 8, [math.nan] * 8])
def test_times_are_checked(gpu: FakeGpu, times: list[float]) -> None:
    with pytest.raises(ArgumentError, match=r"measure returned .* Return 8 positive times"):
        layer().autotune([8], measure=lambda candidates: times)


@pytest.mark.parametrize("backend", ["emulator", "reference"])
def test_there_is_nothing_to_time_without_a_gpu(backend: str) -> None:
    made = layer(backend=backend)
    with pytest.raises(UnsupportedError, match=f"backend=.{backend}., where there is nothing to time"):
        made.autotune([8])
    if backend == "reference":
        with pytest.raises(UnsupportedError, match="nothing to time"):
            made.autotune([8], measure=lambda candidates: [1.0])


def test_a_layer_without_a_buffer_asks_for_its_sizes(gpu: FakeGpu) -> None:
    made = MegaMoE(MoeWeights.random(EXPERTS, HIDDEN, INTERMEDIATE, seed=1), recipe=HOPPER[0], arch=HOPPER[1])
    with pytest.raises(ArgumentError, match="Pass num_topk and max_tokens_per_rank"):
        made.autotune([8], measure=Table(gpu, {}))


@needs_gpu
def test_a_layer_is_tuned_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("MEGAMOE_JIT_TUNING", "1")
    weights = MoeWeights.random(8, 512, 256, seed=1, device="cuda")
    made = MegaMoE(weights, num_topk=2, max_tokens_per_rank=300)
    x = torch.randn(64, 512, device="cuda").bfloat16()
    topk_weights, topk_idx = torch.rand(64, 8, device="cuda").topk(2)
    before = made(x, topk_idx, topk_weights)
    chosen = made.autotune([1, 64, 300])
    assert [tile.num_tokens for tile in chosen] == [1, 64, 300]
    assert all(0 < tile.us <= tile.rule_us for tile in chosen)
    later = MegaMoE(weights, num_topk=2, max_tokens_per_rank=300)
    assert torch.equal(made(x, topk_idx, topk_weights), before)
    assert torch.equal(later(x, topk_idx, topk_weights), before)
