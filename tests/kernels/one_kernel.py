"""Plans with one fused Hopper kernel: a test of a single call compiles no token tile that it does not take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from megamoe_jit.arch import Arch
from megamoe_jit.ops import plan
from megamoe_jit.recipes import plan_kernels
from megamoe_jit.recipes.choose import MoeConfig, StagingConfig
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import Recipe
from megamoe_jit.recipes.sm90 import Sm90StagingConfig, config_for_tile, token_tile


@contextmanager
def one_kernel(num_tokens: int, *, tile: int | None = None) -> Iterator[None]:
    """Have Hopper plans hold the kernel for calls of `num_tokens` tokens, or that of a token tile, for every call."""

    def chosen(problem: Problem, recipe: Recipe, *_: object) -> int:
        return token_tile(problem, recipe, num_tokens) if tile is None else tile

    def kernels(problem: Problem, recipe: Recipe, arch: Arch) -> tuple[StagingConfig | MoeConfig, ...]:
        staging = (kernel for kernel in plan_kernels(problem, recipe, arch) if isinstance(kernel, Sm90StagingConfig))
        return (*staging, config_for_tile(problem, recipe, arch, chosen(problem, recipe)))

    with mock.patch.object(plan, "plan_kernels", kernels), mock.patch.object(plan, "token_tile", chosen):
        yield
