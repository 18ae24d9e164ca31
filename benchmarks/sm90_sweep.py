"""What does a Hopper configuration cost? Ours alone, with fields of the configuration overridden, checked and timed.

    python -m benchmarks.sm90_sweep --workload flash --recipe fp8_nvfp4 --tokens 8 64 256
        --set block_n=32 --set block_n=64 num_stages=6 ...      # one configuration each; the chosen one always runs
    python -m benchmarks.sm90_sweep ... --compile-only          # registers and spills; needs no GPU

A configuration starts as `config_for_tile` makes it (with block_n) or as `choose_config` does, and `--set` replaces
fields of it. Some tokens are compared with the recipe's float64 oracle. Prints a table; keeps no record.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.peers.layer import checked_rows, make_weights
from benchmarks.peers.ours import problem_of
from benchmarks.peers.timing import graph_us
from benchmarks.peers.workload import WORKLOADS, TokenSet, Workload, make_sets, num_touched
from benchmarks.sm90_correctness import BOUNDS
from megamoe_jit import env
from megamoe_jit.arch import get_arch
from megamoe_jit.cli.warmup import build_all, build_one
from megamoe_jit.errors import MegaMoeError
from megamoe_jit.ops import plan
from megamoe_jit.ops.moe import MegaMoE
from megamoe_jit.ops.weights import TransformedWeights, transform_weights
from megamoe_jit.recipes import choose
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import Recipe, get_recipe
from megamoe_jit.recipes.sm90 import Sm90Config
from megamoe_jit.reference.compare import rel_l2
from megamoe_jit.reference.moe import moe_reference

ARCH = get_arch("sm_90a")
_CHECKED = 16  # tokens that are compared with the oracle
Overrides = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one configuration at one token count."""

    us: float
    share: float
    error: float


def parse_overrides(words: Sequence[str]) -> Overrides:
    """Return the fields that `name=value` words set; SystemExit for what is no field of Sm90Config."""
    known = [field.name for field in fields(Sm90Config) if field.name not in ("problem", "recipe", "arch")]
    found: Overrides = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise SystemExit(f"--set {word}: give name=value, with a name of {', '.join(known)}.")
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[name] = value
    return found


def make_config(problem: Problem, recipe: Recipe, num_tokens: int, overrides: Overrides) -> Sm90Config:
    """Return the configuration with these fields; raises UnsupportedError or ArgumentError for what cannot be."""
    if "block_n" in overrides:
        config = choose.config_for_tile(problem, recipe, ARCH, overrides["block_n"])
    else:
        config = choose.choose_config(problem, recipe, ARCH, num_tokens).config
    assert isinstance(config, Sm90Config)
    return replace(config, **overrides)


@contextlib.contextmanager
def only(config: Sm90Config) -> Iterator[None]:
    """Within this context layers have `config` for every call; raises RuntimeError at its end when none took it."""
    plan_kernels = choose.plan_kernels

    def with_config(problem: Problem, *args: Any) -> tuple[object, ...]:
        others = [kernel for kernel in plan_kernels(problem, *args) if not isinstance(kernel, Sm90Config)]
        return (*others, replace(config, problem=problem))

    def for_problem(problem: Problem, *_: Any) -> Sm90Config:
        return replace(config, problem=problem)

    def choice(problem: Problem, *_: Any) -> choose.Choice:
        return choose.Choice(config=for_problem(problem), reason="given", others=())

    answers: dict[str, Any] = {
        "plan_kernels": with_config,
        "token_tile": lambda *_: config.block_n,
        "config_for_tile": for_problem,
        "choose_config": choice,
    }
    built: set[Sm90Config] = set()
    build = getattr(plan, "build")  # noqa: B009 - what the plan calls, which is not its to export

    def build_and_note(description: Any, **options: Any) -> Any:
        if isinstance(description, Sm90Config):
            built.add(replace(description, problem=config.problem))
        return build(description, **options)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {env.TUNING.name: "0"}))
        for name, answer in (answers | {"build": build_and_note}).items():
            if hasattr(plan, name):
                stack.enter_context(mock.patch.object(plan, name, answer))
        yield
    if built != {config}:
        raise RuntimeError(f"the layer built {[one.block_n for one in built]} instead of the configuration given")


class Sweep:
    """One workload and recipe: weights, inputs and oracle values, each made once."""

    def __init__(self, workload: Workload, recipe: Recipe, tokens: Sequence[int]) -> None:
        """Make the weights."""
        self.workload, self.recipe = workload, recipe
        self.problem = problem_of(workload, max(tokens))
        self._weights = make_weights(workload, recipe.checkpoint, "cuda")
        self._transformed: tuple[TransformedWeights, TransformedWeights] = transform_weights(
            self._weights, recipe, ARCH
        )
        self._inputs = {count: make_sets(workload, "uniform", count, device="cuda") for count in tokens}
        self._oracles: dict[int, torch.Tensor] = {}

    def _oracle(self, num_tokens: int, some: TokenSet) -> torch.Tensor:
        if num_tokens not in self._oracles:
            self._oracles[num_tokens] = moe_reference(
                some.x, some.topk_idx, some.topk_weights, self._weights, rounding=self.recipe.name
            ).y
        return self._oracles[num_tokens]

    def run(self, config: Sm90Config, num_tokens: int) -> Outcome:
        """Check and time one configuration."""
        sets = self._inputs[num_tokens]
        with only(config):
            moe = MegaMoE(
                self._transformed,
                num_topk=self.workload.num_topk,
                max_tokens_per_rank=self.problem.max_tokens_per_rank,
            )
            moe.prepare()
            outputs = [torch.full_like(tokens.x, float("nan")) for tokens in sets]

            def call(index: int) -> None:
                moe(sets[index].x, sets[index].topk_idx, sets[index].topk_weights, out=outputs[index])

            call(0)
            rows = checked_rows(num_tokens, "cuda")[:: max(1, min(num_tokens, 64) // _CHECKED)]
            error = rel_l2(outputs[0][rows], self._oracle(num_tokens, sets[0].rows(rows)))
            us = graph_us([partial(call, index) for index in range(len(sets))])
        return Outcome(us=us, share=self.workload.floor_us(num_tokens, num_touched(sets)) / us, error=error)


def describe(overrides: Overrides) -> str:
    """Return the overridden fields in words."""
    return " ".join(f"{name}={value}" for name, value in overrides.items()) or "chosen"


def compile_all(configs: Sequence[Sm90Config], processes: int, *, is_loud: bool) -> None:
    """Build the configurations in parallel; prints registers and spills, or only failures."""
    for outcome in build_all(dict.fromkeys(configs), processes, build_one=build_one):
        if outcome.error or is_loud:
            found = outcome.error or f"{outcome.registers} registers, {outcome.spill_bytes} B spilled"
            print(f"{outcome.entry or outcome.kernel}: {found}, {outcome.wall_s:.1f} s", flush=True)


def main(args: Sequence[str] | None = None) -> int:
    """Sweep; the exit status says whether every configuration was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="flash", choices=tuple(WORKLOADS))
    parser.add_argument("--recipe", default="fp8_nvfp4", choices=tuple(BOUNDS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[8, 64, 256, 1024])
    parser.add_argument("--set", nargs="+", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that compile")
    parser.add_argument("--compile-only", action="store_true", help="compile, and say what the kernels need")
    options = parser.parse_args(args)
    workload, recipe = WORKLOADS[options.workload], get_recipe(options.recipe)
    problem = problem_of(workload, max(options.tokens))
    tried = [{}, *(parse_overrides(words) for words in options.set)]
    configs: dict[tuple[int, int], Sm90Config] = {}
    for at, overrides in enumerate(tried):
        for count in options.tokens:
            try:
                config = make_config(problem, recipe, count, overrides)
            except MegaMoeError as refusal:
                print(f"{describe(overrides)}, {count} tokens: {refusal}")
                continue
            if config.smem_bytes > ARCH.max_smem_bytes:
                print(f"{describe(overrides)}, {count} tokens: {config.smem_bytes} B of shared memory do not fit")
                continue
            configs[at, count] = config
    compile_all(list(configs.values()), options.processes, is_loud=options.compile_only)
    if options.compile_only:
        return 0
    if not torch.cuda.is_available():
        print("sm90_sweep: not measured, torch finds no CUDA device here.")
        return 0
    os.environ.setdefault("MEGAMOE_JIT_TIMEOUT_S", "20")
    sweep = Sweep(workload, recipe, options.tokens)
    is_right = True
    print(f"{'configuration':44} tokens block_n        us  floor/time  relative L2")
    for count in options.tokens:
        for at, overrides in enumerate(tried):
            if (at, count) not in configs:
                continue
            config = configs[at, count]
            name = f"{describe(overrides):44} {count:6} {config.block_n:7}"
            try:
                found = sweep.run(config, count)
            except (MegaMoeError, RuntimeError) as failure:
                is_right = False
                print(f"{name} {type(failure).__name__}: {' '.join(str(failure).split())[:200]}", flush=True)
                continue
            is_bad = not found.error < BOUNDS[recipe.name]
            is_right &= not is_bad
            line = f"{name} {found.us:9.1f} {found.share:11.3f} {found.error:12.2e}"
            print(f"{line}{'  WRONG' if is_bad else ''}", flush=True)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
