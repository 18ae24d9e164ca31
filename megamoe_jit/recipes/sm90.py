"""Configurations of the Hopper kernels: tiles, shared memory, registers; computed once, asserted in the templates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from megamoe_jit.arch import Arch, MmaGeneration
from megamoe_jit.errors import UnsupportedError
from megamoe_jit.layouts.struct import StructLayout, round_up, struct_layout
from megamoe_jit.recipes.params import MEGA_MOE_PARAMS, STAGING_PARAMS
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import Element, Recipe

# The foreseen scale of L1's results (reference/forecast.py): a token's values are about its largest one over 4, and
# blocks of 128 results come to 16 .. 32; a block keeps the scale down to the last (formats/block_scaled.py).
_FORECAST_RMS, _FORECAST_FACTOR, _LEAST_FORESEEN = 448 / 4, 1 / 4, 1 / 4
ACTIVATION_CODES = {"swiglu": 0, "gelu": 1, "relu2": 2}
MIN_AMAX = 1e-10  # smaller rows and blocks are quantised as if they had this maximum: no division by zero
SF_GRAN_K = 128  # intermediate values that share a scale factor; one K stage of L2
TOKEN_SF_GRAN_K = 512  # values of a token that share a scale; what L1 sums between promotions
ONE_PASS_TILES = (8, 16, 24, 32, 48, 64)  # token tiles whose 256 weight rows fit the registers at once
# Wider token tiles take two passes of 128 rows: more MMA work for each weight that is decoded. The widest is for E4M3
# only.
TWO_PASS_TILES, WIDEST_TILE = (128,), 192
_WIDTH_STEP = 64  # of the MMAs of wide tiles, for those that are not full
_BLOCK_M, _BLOCK_K = 256, 128
# K stages after which E4M3 sums are promoted from the tensor core's 13-bit adder to FP32. On an H200 (hidden 4096,
# intermediate 2048) the K between promotions decides how often requantisation meets another code than exact sums would:
# 1.0 %, 1.6 %, 2.4 % of codes for 128, 256, 512, and with it how far y is from the oracle: 4.2e-3, 5.2e-3, 6.1e-3
# relative L2. The distance from the truth is the same for all three; sums of terms of one sign lose up to 6e-3 at 512.
_PROMOTED_STAGES = TOKEN_SF_GRAN_K // _BLOCK_K
_NUM_CONSUMER_WARPGROUPS = 2
# The widest tiles need every register that there is.
_REGISTERS = {False: (40, 232), True: (24, 240)}  # of loaders and consumers, by whether the tile is the widest
_MAX_STAGES = 8
_QUEUE_TILES = 4  # tiles between their scheduler and the others
_FIRST_DISPATCH_THREAD = 96  # the warps of the loaders and of their tiles do not wait for tokens
_MOST_CHUNK_TOKENS = 32
# Copies of the decoding table: of 16, each lane of a half-warp has one in banks of its own. Fewer may save a stage.
_TABLE_COPIES = (16, 8, 4)
_WIDEST_OF_FOUR_BLOCKS = 24576  # hidden up to which staging needs no more than 64 registers


def token_tiles(problem: Problem, recipe: Recipe) -> tuple[int, ...]:
    """Return the token tiles that kernels of a problem can have, narrowest first."""
    if not problem.activation.gated:
        return ONE_PASS_TILES
    widest = (WIDEST_TILE,) if recipe.l1_acts.element is Element.E4M3 else ()
    return (*ONE_PASS_TILES, *TWO_PASS_TILES, *widest)


def token_tile(problem: Problem, recipe: Recipe, num_tokens: int) -> int:
    """Return the token tile for a call.

    The narrowest that holds the mean share of an expert and 1.5 standard deviations more, so that few experts need a
    second tile, which would read their weights again; the widest where none does. docs/hopper_speed.md has the times
    of neighbouring tiles that the rule rests on.
    """
    mean = problem.tokens_per_expert(num_tokens)
    tiles = token_tiles(problem, recipe)
    return next((n for n in tiles if mean + 1.5 * math.sqrt(mean) <= n), tiles[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Sm90Shapes:
    """Padded sizes that the weight transform, the workspace and the kernels agree on."""

    problem: Problem
    recipe: Recipe

    @property
    def is_fp8(self) -> bool:
        """Whether activations are E4M3 (else BF16)."""
        return self.recipe.l1_acts.element is Element.E4M3

    @property
    def act_bytes(self) -> int:
        """Bytes of an activation element."""
        return 1 if self.is_fp8 else 2

    @property
    def hidden_k(self) -> int:
        """Hidden as L1's K: a multiple of the K stage."""
        return round_up(self.problem.hidden, _BLOCK_K)

    @property
    def scale_blocks(self) -> int:
        """Scales of a token (E4M3)."""
        return -(-self.hidden_k // TOKEN_SF_GRAN_K)

    @property
    def hidden_padded(self) -> int:
        """Hidden as L2's rows: a multiple of the weight tile."""
        return round_up(self.problem.hidden, _BLOCK_M)

    @property
    def intermediate_padded(self) -> int:
        """Intermediate, so that L1's tiles are whole; a multiple of the scale factors' 128."""
        return round_up(self.problem.intermediate, SF_GRAN_K if self.problem.activation.gated else _BLOCK_M)

    @property
    def l1_rows(self) -> int:
        """Rows of L1's padded weight: gate and up, or the one matrix."""
        return self.intermediate_padded * (2 if self.problem.activation.gated else 1)

    @property
    def slots(self) -> int:
        """Capacity for routed tokens: every slot of every rank may come here."""
        return self.problem.max_tokens_per_rank * self.problem.num_ranks * self.problem.num_topk

    @property
    def pool_rows(self) -> int:
        """Rows of the pool, where each token tile has all its rows, also an expert's last."""
        widest = token_tiles(self.problem, self.recipe)[-1]
        return round_up(self.slots + min(self.slots, self.problem.num_local_experts) * (widest - 1), 4)

    def workspace(self) -> StructLayout:
        """Return the parts of a rank's private workspace; the counters (from rows_ready on) start as zeros."""
        e = self.problem.num_local_experts
        max_token_tiles = self.slots // min(ONE_PASS_TILES) + e
        return struct_layout(
            ("tokens", self.pool_rows * self.hidden_k * self.act_bytes, 1024),
            ("tokens_sf", self.scale_blocks * self.pool_rows * 4, 1024),
            ("acts", self.pool_rows * self.intermediate_padded * self.act_bytes, 1024),
            ("acts_sf", self.intermediate_padded // SF_GRAN_K * self.pool_rows * 4, 1024),
            ("routed", self.pool_rows * 4, 1024),
            ("routed_sf", self.pool_rows * 4, 1024),
            ("routed_weights", self.pool_rows * 4, 1024),
            ("rows_ready", max_token_tiles * 4, 1024),
            ("l1_done", max_token_tiles * 4, 16),
            ("has_own_sf", max_token_tiles * 4, 16),
            ("l2_done", 4, 16),
            ("exited", 4, 16),
        )

    def symmetric(self) -> StructLayout:
        """Return the symmetric buffer's parts: what the caller fills, what staging writes, what experts send home."""
        p = self.problem
        t, slots = p.max_tokens_per_rank, p.max_tokens_per_rank * p.num_topk
        return struct_layout(
            ("x", t * p.hidden * self.act_bytes, 1024),
            ("x_sf", t * 4, 1024),
            ("topk_idx", slots * p.topk_idx_bytes, 1024),
            ("topk_weights", slots * 4, 1024),
            ("tokens", t * self.hidden_k * self.act_bytes, 1024),
            ("token_sf", t * (self.scale_blocks + 1) * 4, 1024),
            ("partials", slots * self.hidden_padded * 2, 1024),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sm90Config:
    """One build of the fused kernel: a problem, a recipe and the token tile `block_n`."""

    problem: Problem
    recipe: Recipe
    arch: Arch
    block_n: int
    num_stages: int
    table_copies: int = _TABLE_COPIES[0]

    kernel_name = "mega_moe_sm90"
    entry = "mega_moe/sm90.cuh"
    num_threads = 128 * (1 + _NUM_CONSUMER_WARPGROUPS)

    @property
    def shapes(self) -> Sm90Shapes:
        """Padded sizes."""
        return Sm90Shapes(problem=self.problem, recipe=self.recipe)

    @property
    def num_passes(self) -> int:
        """Passes over a tile's weight rows."""
        return 1 if self.block_n <= ONE_PASS_TILES[-1] else 2

    @property
    def registers(self) -> tuple[int, int]:
        """Registers of a loader's and of a consumer's thread."""
        return _REGISTERS[self.block_n == WIDEST_TILE]

    @property
    def pass_m(self) -> int:
        """Weight rows of a pass."""
        return _BLOCK_M // self.num_passes

    @property
    def chunk_tokens(self) -> int:
        """Tokens that dispatch has in hand: a thread fixes the row of a slot."""
        return min(_MOST_CHUNK_TOKENS, (self.num_threads - _FIRST_DISPATCH_THREAD) // self.problem.num_topk)

    @property
    def mma_widths(self) -> tuple[int, ...]:
        """Columns of the MMAs that the kernel has, narrowest first."""
        return tuple(range(self._min_width, self.block_n + 1, self._width_step))

    @property
    def _width_step(self) -> int:
        return min(self.block_n, _WIDTH_STEP)

    @property
    def _min_width(self) -> int:
        # Each width's instance has registers of its own for what MMAs read, and the widest tile has none to spare.
        return min(self.block_n, 2 * _WIDTH_STEP if self.block_n == WIDEST_TILE else _WIDTH_STEP)

    @property
    def token_stage_bytes(self) -> int:
        """Shared memory of a stage's tokens."""
        return self.block_n * _BLOCK_K * self.shapes.act_bytes

    @property
    def weight_stage_bytes(self) -> int:
        """Shared memory of a stage's codes and block scale factors: 9 bytes for 16 weights."""
        return self.pass_m * _BLOCK_K * 9 // 16

    @property
    def _out_bytes(self) -> int:
        """L2's results of one 64-row tile for each warpgroup in BF16; in L1 a first pass's FP32 values need as much.

        L1's codes, half as much, take the place of those values. Before all that it is dispatch's: a number for each
        expert, for each slot of a token in hand, and for each token.
        """
        own_tokens = 4 * (self.problem.num_local_experts + self.chunk_tokens * (self.problem.num_topk + 1))
        return max(self.block_n * 128 * _NUM_CONSUMER_WARPGROUPS, round_up(own_tokens, 128))

    def shared_storage(self) -> StructLayout:
        """Return the twin of `SharedStorage` in templates/mega_moe/storage_sm90.cuh."""
        e, n, s = self.problem.num_local_experts, self.block_n, self.num_stages
        return struct_layout(
            ("tokens", s * self.token_stage_bytes, 1024),
            ("weights", s * self.weight_stage_bytes, 128),
            ("out", self._out_bytes, 128),
            ("sf", s * n * 4, 16),
            ("decode_table", self._decode_table_rows * self.table_copies * 8, 128),
            ("columns", _NUM_CONSUMER_WARPGROUPS * round_up(12 * n + 24, 16), 16),
            ("may_not_fit", 4, 4),
            ("has_own_sf", s * 4, 4),
            ("is_last", 4, 4),
            ("queue", _QUEUE_TILES * (32 + 2 * 8), 16),
            ("schedule", 4 * (3 * e + 1), 4),
            ("ring", 2 * s * 8, 8),
        )

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.shared_storage().num_bytes

    @property
    def _decode_table_rows(self) -> int:
        return 128 if self.shapes.is_fp8 else 1

    def constants(self) -> Mapping[str, bool | int | float | str]:
        """Return what `config.cuh` prints."""
        p, sizes = self.problem, self.shapes
        clamp = p.activation.clamp
        return {
            "num_ranks": p.num_ranks,
            "num_experts": p.num_experts,
            "num_local_experts": p.num_local_experts,
            "num_topk": p.num_topk,
            "topk_idx_bytes": p.topk_idx_bytes,
            "hidden": p.hidden,
            "hidden_padded": sizes.hidden_padded,
            "intermediate_padded": sizes.intermediate_padded,
            "l1_rows": sizes.l1_rows,
            "block_m": _BLOCK_M,
            "block_n": self.block_n,
            "block_k": _BLOCK_K,
            "num_stages": self.num_stages,
            "num_passes": self.num_passes,
            "promoted_stages": _PROMOTED_STAGES,
            "scale_blocks": sizes.scale_blocks,
            "pass_m": self.pass_m,
            "l1_m_tiles": sizes.l1_rows // _BLOCK_M,
            "l2_m_tiles": sizes.hidden_padded // _BLOCK_M,
            "l1_k_stages": sizes.hidden_k // _BLOCK_K,
            "l2_k_stages": sizes.intermediate_padded // _BLOCK_K,
            # How many L2 tiles take the time of one L1 tile: both have as many rows.
            "l2_tiles_per_l1": max(1, round(sizes.hidden_k / sizes.intermediate_padded)),
            "l1_blocks_per_tile": 1 if p.activation.gated else 2,
            "num_threads": self.num_threads,
            "num_consumer_warpgroups": _NUM_CONSUMER_WARPGROUPS,
            "first_consumer_thread": 128,
            "first_dispatch_thread": _FIRST_DISPATCH_THREAD,
            "chunk_tokens": self.chunk_tokens,
            "min_width": self._min_width,
            "width_step": self._width_step,
            "full_arrivals": 2,  # the loaders of weights and of tokens
            "empty_arrivals": 4 * _NUM_CONSUMER_WARPGROUPS,  # each consumer warp
            "loader_registers": self.registers[0],
            "consumer_registers": self.registers[1],
            "is_fp8": sizes.is_fp8,
            "has_token_scales": sizes.is_fp8,
            "is_gated": p.activation.gated,
            "act_bytes": sizes.act_bytes,
            "token_k_bytes": _BLOCK_K * sizes.act_bytes,
            "token_row_bytes": sizes.hidden_k * sizes.act_bytes,
            "act_row_bytes": sizes.intermediate_padded * sizes.act_bytes,
            "token_stage_bytes": self.token_stage_bytes,
            "weight_block_bytes": _BLOCK_M * _BLOCK_K * 9 // 16,
            "weight_stage_bytes": self.weight_stage_bytes,
            "stage_code_bytes": self.pass_m * _BLOCK_K // 2,
            "stage_scale_bytes": self.pass_m * _BLOCK_K // 16,
            "out_bytes": self._out_bytes,
            "decode_table_rows": self._decode_table_rows,
            "table_copies": self.table_copies,
            "box_rows": self.box_rows,
            "smem_bytes": self.smem_bytes,
            "param_bytes": MEGA_MOE_PARAMS.num_bytes(num_ranks=p.num_ranks),
            "activation": ACTIVATION_CODES[p.activation.kind],
            "alpha": float(p.activation.alpha),
            "up_bias": float(p.activation.up_bias),
            "has_clamp": clamp is not None,
            "clamp": float(clamp if clamp is not None else 0.0),
            "fast_math": p.fast_math,
            "min_amax": MIN_AMAX,
            "forecast_rms": float(_FORECAST_RMS),
            "forecast_factor": float(_FORECAST_FACTOR),
            "least_foreseen": float(_LEAST_FORESEEN),
        }

    def template_values(self) -> Mapping[str, object]:
        """Return the MMA widths for the asm loop, and the TMA boxes for readers of meta.json.

        A box is given outermost first: both layers read the pool by box_rows rows of 128 bytes, the swizzle's span.
        """
        return {
            "family": "sm90",
            "wgmma_n": self.mma_widths,
            "tma_boxes": tuple(
                (name, self.box_rows, 128 // self.shapes.act_bytes) for name in ("tokens_map", "acts_map")
            ),
        }

    @property
    def box_rows(self) -> int:
        """Rows of a TMA box of activations: tiles that are not full load fewer boxes.

        The loader's thread takes 100 clocks a box, so wide tiles have few.
        """
        widest = max(32, self.block_n // 2)
        return next(rows for rows in (64, 32, 24, 16, 8) if self.block_n % rows == 0 and rows <= widest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sm90StagingConfig:
    """One build of the staging kernel: from BF16 tokens, or from codes that the caller quantised."""

    problem: Problem
    recipe: Recipe
    arch: Arch
    source_is_codes: bool = False

    kernel_name = "stage_tokens"
    entry = "staging/staging.cuh"
    num_threads = 256

    @property
    def blocks_per_sm(self) -> int:
        """Blocks of the grid for each SM, all resident: a thread's share of a token must fit its registers."""
        hidden_k = Sm90Shapes(problem=self.problem, recipe=self.recipe).hidden_k
        return 4 if hidden_k <= _WIDEST_OF_FOUR_BLOCKS else 1

    def constants(self) -> Mapping[str, bool | int | float | str]:
        """Return what `config.cuh` prints."""
        p = self.problem
        sizes = Sm90Shapes(problem=p, recipe=self.recipe)
        return {
            "num_ranks": p.num_ranks,
            "num_experts": p.num_experts,
            "num_topk": p.num_topk,
            "topk_idx_bytes": p.topk_idx_bytes,
            "hidden": p.hidden,
            "hidden_k": sizes.hidden_k,
            "scale_blocks": sizes.scale_blocks,
            "num_threads": self.num_threads,
            "blocks_per_sm": self.blocks_per_sm,
            "is_fp8": sizes.is_fp8,
            "source_is_codes": self.source_is_codes,
            "act_bytes": sizes.act_bytes,
            "token_row_bytes": sizes.hidden_k * sizes.act_bytes,
            "param_bytes": STAGING_PARAMS.num_bytes(num_ranks=1),
            "min_amax": MIN_AMAX,
        }

    def template_values(self) -> Mapping[str, object]:
        """Return nothing: the kernel has no asm loop."""
        return {}


def reject(config: Sm90Config) -> str | None:
    """Return why `config` cannot run, or None."""
    if config.arch.generation is not MmaGeneration.WGMMA or config.recipe.generation is not MmaGeneration.WGMMA:
        return f"recipe {config.recipe.name} on {config.arch} has no wgmma kernel: these are for sm_90a"
    if config.problem.num_ranks != 1:
        return f"num_ranks={config.problem.num_ranks}: the Hopper kernel dispatches within one rank"
    if config.num_passes > 1 and not config.problem.activation.gated:
        return (
            f"block_n={config.block_n} takes two passes, and without a gate a tile's values belong to two scale factors"
        )
    # setmaxnreg moves registers inside what the block was launched with; asking for more waits for ever.
    pool = config.num_threads * (config.arch.regs_per_sm // config.num_threads // 8 * 8)
    loader, consumer = config.registers
    wanted = 128 * (loader + _NUM_CONSUMER_WARPGROUPS * consumer)
    if wanted > pool:
        return f"the roles want {wanted} registers, and {config.num_threads} threads are launched with {pool}"
    if config.num_stages < 2:
        return f"num_stages={config.num_stages}: loaders and consumers need two stages to overlap"
    if config.smem_bytes > config.arch.max_smem_bytes:
        return (
            f"{config.num_stages} stages of {config.block_n} tokens need {config.smem_bytes} B of shared memory, "
            f"{config.arch} has {config.arch.max_smem_bytes} B"
        )
    return None


def config_for_tile(problem: Problem, recipe: Recipe, arch: Arch, block_n: int) -> Sm90Config:
    """Return the build for one token tile with as many stages as fit, then as many copies of the decoding table.

    Raises UnsupportedError when nothing fits.
    """
    reason: str | None = None
    for num_stages, copies in itertools.product(range(_MAX_STAGES, 1, -1), _TABLE_COPIES):
        config = Sm90Config(
            problem=problem, recipe=recipe, arch=arch, block_n=block_n, num_stages=num_stages, table_copies=copies
        )
        reason = reject(config)
        if reason is None:
            return config
    raise UnsupportedError(f"no Hopper kernel for this call: {reason}. Choose another recipe, arch or number of ranks.")
