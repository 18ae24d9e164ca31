"""Token tiles by measurement: `MegaMoE.autotune` times them on the device, and later plans find its choices on disk."""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from megamoe_jit import env
from megamoe_jit.arch import Arch
from megamoe_jit.errors import ArgumentError, CacheError, LaunchError, UnsupportedError
from megamoe_jit.jit.cache import default_cache
from megamoe_jit.jit.compile import nvrtc_version
from megamoe_jit.jit.key import templates_digest
from megamoe_jit.jit.render import render
from megamoe_jit.jit.tuned import TUNING_SCHEMA, TunedTile, TuningRecord, find_record, keep_record, record_paths
from megamoe_jit.recipes.choose import config_for_tile, token_tile, token_tiles, token_tiles_for
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import Recipe
from megamoe_jit.runtime.backend import Backend

if TYPE_CHECKING:
    from megamoe_jit.ops.plan import AnyMoePlan

logger = logging.getLogger("megamoe_jit.tuning")

# Times candidates: each is the calls to make in turn, and gets the time of one of them, in microseconds.
Measure: TypeAlias = Callable[[Sequence[Sequence[Callable[[], object]]]], Sequence[float]]

_MARGIN = 0.02  # a tile replaces the rule's when it takes less time by more than this share
_MOST_TILES = 6  # of an expert; narrower tiles are hopeless
_NUM_ROUTINGS = 8  # random ones, called in turn, so that small calls do not find their weights in L2
_NUM_ROUNDS = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedTiles:
    """Measured token tiles of a layer, by number of tokens: what a plan asks before it asks the rule."""

    problem: Problem
    recipe: Recipe
    tiles: tuple[tuple[int, int], ...] = ()  # (num_tokens, block_n)

    def tile(self, num_tokens: int) -> int | None:
        """Return the token tile for a call, or None where the rule decides.

        A choice holds up to the geometric means of its number of tokens and its neighbours'. The rule decides outside
        of what was measured, and where its own tile won.
        """
        counts = [count for count, _ in self.tiles]
        if not counts or not min(counts) <= num_tokens <= max(counts):
            return None
        count, block_n = min(self.tiles, key=lambda tile: max(tile[0] / num_tokens, num_tokens / tile[0]))
        if block_n == token_tile(self.problem, self.recipe, count):
            return None
        return block_n if block_n in token_tiles_for(self.problem, self.recipe, num_tokens) else None

    @property
    def needed(self) -> set[int]:
        """The token tiles that `tile` can return."""
        return {block_n for count, block_n in self.tiles if block_n != token_tile(self.problem, self.recipe, count)}


def stored_tiles(problem: Problem, recipe: Recipe, arch: Arch, backend: Backend) -> TunedTiles:
    """Return what was tuned for a layer on the backend's device; nothing with MEGAMOE_JIT_TUNING=0."""
    cache, record = default_cache(), None
    if env.TUNING.get() and record_paths(cache):
        record = find_record(cache, _key(problem, recipe, arch, backend))
    return _tiles(problem, recipe, arch, record)


def tune(
    plan: AnyMoePlan,
    call: Callable[[Tensor, Tensor, Tensor, Tensor], object],
    num_tokens: Sequence[int] | None,
    measure: Measure | None = None,
) -> tuple[TunedTile, ...]:
    """Time the token tiles of `plan`, store the choices, and let the plan use them; `call` has x, indices, weights, y.

    See `MegaMoE.autotune`.
    """
    problem, buffer, before = plan.problem, plan.buffer, plan.tiles
    counts = _check_counts(num_tokens, problem.max_tokens_per_rank)
    on_device = torch.cuda.device(buffer.device) if buffer.device.type == "cuda" else contextlib.nullcontext()
    try:
        with on_device:
            chosen = tuple(_tune(plan, call, count, measure or graph_us) for count in counts)
    finally:
        plan.retile(before)
    key = _key(problem, buffer.recipe, buffer.arch, plan.backend)
    record = TuningRecord(key=key, tiles=chosen, driver=plan.backend.driver_version)
    try:
        record = keep_record(default_cache(), record)
    except CacheError as error:
        logger.warning("%s This process uses them until it ends.", error)
    if env.TUNING.get():
        plan.retile(_tiles(problem, buffer.recipe, buffer.arch, record))
    return chosen


def graph_us(candidates: Sequence[Sequence[Callable[[], object]]]) -> list[float]:
    """Return the time of one call of each candidate in microseconds: medians of CUDA-graph replays, taken in turn."""
    graphs = [torch.cuda.CUDAGraph() for _ in candidates]
    times: list[list[float]] = [[] for _ in candidates]
    for graph, calls in zip(graphs, candidates, strict=True):
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
    for _ in range(_NUM_ROUNDS):  # one replay of each, again and again: clocks drift
        for graph, us in zip(graphs, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            us.append(start.elapsed_time(end) * 1e3)
    return [statistics.median(us) / len(calls) for us, calls in zip(times, candidates, strict=True)]


def winner(us: Mapping[int, float], rule: int) -> int:
    """Return the token tile of least time; the rule's unless that is faster by more than 2 %."""
    best = min(us, key=us.__getitem__)
    return best if us[best] < (1 - _MARGIN) * us[rule] else rule


def candidates_for(problem: Problem, recipe: Recipe, arch: Arch, num_tokens: int) -> list[int]:
    """Return the token tiles worth timing for a call of `num_tokens` tokens, the rule's first."""
    mean, rule = problem.tokens_per_expert(num_tokens), token_tile(problem, recipe, num_tokens)
    others = [n for n in token_tiles_for(problem, recipe, num_tokens) if n != rule and mean <= _MOST_TILES * n]
    return [rule, *(n for n in others if _has_kernel(problem, recipe, arch, n))]


def _tune(
    plan: AnyMoePlan, call: Callable[[Tensor, Tensor, Tensor, Tensor], object], num_tokens: int, measure: Measure
) -> TunedTile:
    problem, recipe, device = plan.problem, plan.buffer.recipe, plan.buffer.device
    generator = torch.Generator(device).manual_seed(num_tokens)
    x = torch.randn(num_tokens, problem.hidden, generator=generator, device=device).bfloat16()
    y, routings = torch.empty_like(x), [_routing(problem, num_tokens, generator) for _ in range(_NUM_ROUTINGS)]

    def run(block_n: int, routing: tuple[Tensor, Tensor]) -> None:
        plan.retile(TunedTiles(problem=problem, recipe=recipe, tiles=((num_tokens, block_n),)))
        call(x, *routing, y)

    def bits(block_n: int, routing: tuple[Tensor, Tensor]) -> Tensor:
        y.fill_(float("nan"))
        run(block_n, routing)
        return y.view(torch.int16).clone()

    rule, *others = tiles = candidates_for(problem, recipe, plan.buffer.arch, num_tokens)
    for routing in routings:
        expected = bits(rule, routing)
        for block_n in others:
            if not torch.equal(bits(block_n, routing), expected):
                raise LaunchError(
                    f"token tiles {block_n} and {rule} of recipe {recipe.name} give different results for {num_tokens} "
                    "tokens, and every tile must give the same bits. Nothing was stored; this is a bug of megamoe_jit."
                )
    times = [float(time) for time in measure([[partial(run, n, routing) for routing in routings] for n in tiles])]
    if len(times) != len(tiles) or not all(0 < time < float("inf") for time in times):
        raise ArgumentError(f"measure returned {times}. Return {len(tiles)} positive times, in microseconds.")
    us = dict(zip(tiles, times, strict=True))
    best = winner(us, rule)
    logger.info(
        "%d tokens: token tile %d, %.1f us; the rule's is %d, %.1f us", num_tokens, best, us[best], rule, us[rule]
    )
    return TunedTile(num_tokens=num_tokens, block_n=best, us=us[best], rule_us=us[rule])


def _routing(problem: Problem, num_tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return distinct experts for each token, all equally likely, and weights that sum to one."""
    scores = torch.rand(num_tokens, problem.num_experts, generator=generator, device=generator.device)
    weights, topk_idx = scores.topk(problem.num_topk, dim=1)
    return topk_idx, weights / weights.sum(1, keepdim=True)


def _check_counts(num_tokens: Sequence[int] | None, capacity: int) -> list[int]:
    if num_tokens is None:
        return sorted({capacity, *(1 << i for i in range(capacity.bit_length()))})
    for count in num_tokens:
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= capacity:
            raise ArgumentError(
                f"num_tokens holds {count!r}, but the buffer takes calls of 1 to {capacity} tokens. Pass integers in "
                "that range, or make the layer with a larger max_tokens_per_rank."
            )
    if not num_tokens:
        raise ArgumentError("num_tokens is empty. Pass the token counts of your calls, or None for powers of two.")
    return sorted(set(num_tokens))


def _key(problem: Problem, recipe: Recipe, arch: Arch, backend: Backend) -> dict[str, Any]:
    """Return for what a choice holds: everything that times depend on but tokens and capacity."""
    layer = asdict(problem)
    del layer["max_tokens_per_rank"]
    for name in ("alpha", "up_bias", "clamp"):  # 7, 7.0 and another library's 7 are one clamp
        value = layer["activation"][name]
        layer["activation"][name] = None if value is None else float(value)
    kernel = config_for_tile(problem, recipe, arch, token_tiles(problem, recipe)[0])
    return {
        "schema": TUNING_SCHEMA,
        "problem": layer,
        "recipe": recipe.name,
        "arch": arch.name,
        "device": backend.device_name,
        "num_sms": backend.num_sms,
        "nvrtc": list(nvrtc_version()),
        "templates": templates_digest(render(kernel)),
    }


def _tiles(problem: Problem, recipe: Recipe, arch: Arch, record: TuningRecord | None) -> TunedTiles:
    measured = () if record is None else record.tiles
    known = [n for n in token_tiles(problem, recipe) if measured and _has_kernel(problem, recipe, arch, n)]
    tiles = tuple((tile.num_tokens, tile.block_n) for tile in measured if tile.block_n in known)
    return TunedTiles(problem=problem, recipe=recipe, tiles=tiles)


def _has_kernel(problem: Problem, recipe: Recipe, arch: Arch, block_n: int) -> bool:
    try:
        config_for_tile(problem, recipe, arch, block_n)
    except UnsupportedError:
        return False
    return True
