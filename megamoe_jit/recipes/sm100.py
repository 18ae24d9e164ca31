"""Configurations of the fused Blackwell kernel: tiles, tensor memory, shared memory, the ring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from megamoe_jit.arch import Arch, MmaGeneration
from megamoe_jit.errors import UnsupportedError
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.layouts.struct import StructLayout, round_up, struct_layout
from megamoe_jit.layouts.weights_sm100 import Sm100WeightLayout, sm100_layouts
from megamoe_jit.recipes.params import MEGA_MOE_SM100_PARAMS, STAGING_SM100_PARAMS
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import Element, Recipe, ScaleType
from megamoe_jit.recipes.sm90 import ACTIVATION_CODES, MIN_AMAX
from megamoe_jit.recipes.sm100_gemm import MMA_KINDS, MmaKind

TOKEN_TILES = (16, 32, 64, 128)
_BLOCK_M = 128  # weight rows of one CTA: lanes of tensor memory
_ROW_BYTES = 128  # of an operand row in a stage: the span of the widest swizzle
_ATOM_BYTES = 512
_NUM_EPILOGUE_WARPGROUPS, _NUM_DISPATCH_THREADS = 2, 128
_FIRST_EPILOGUE_WARP = 4
_MAX_STAGES = 8
_RING_BYTES = 512 << 20  # of tokens and activations in flight, unless two waves of one token tile need more
_MAX_TMEM_COLUMNS = 512
# A token's values are about its largest one over 4 (root mean square), and its second-level scale is that over 2688.
_FORECAST_RMS = 2688 / 4
# A block of 16 results has a maximum of about twice gate x up: over 6 (E2M1), with a scale factor near 2^1.4.
_FORECAST_FACTOR = 1 / 8


def token_tile(problem: Problem, recipe: Recipe, num_tokens: int) -> int:
    """Return the narrowest token tile that holds the mean share of an expert and 1.5 standard deviations more.

    The widest, where none does. Few experts then need a second tile, which would read their weights again.
    """
    del recipe
    mean = problem.tokens_per_expert(num_tokens)
    return next((n for n in TOKEN_TILES if mean + 1.5 * math.sqrt(mean) <= n), TOKEN_TILES[-1])


def mean_that_fits(block_n: int) -> float:
    """Return the mean number of tokens an expert of which 1.5 standard deviations more fill `block_n`."""
    return ((math.sqrt(2.25 + 4 * block_n) - 1.5) / 2) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Sm100Shapes:
    """Padded sizes that the weight transform, the workspace and the kernels agree on."""

    problem: Problem
    recipe: Recipe

    @property
    def kind(self) -> MmaKind:
        """The MMA's kind and operand types."""
        return MMA_KINDS[self.recipe.name]

    @property
    def is_fp8(self) -> bool:
        """Whether activations are E4M3 (else E2M1)."""
        return self.recipe.l1_acts.element is Element.E4M3

    @property
    def has_token_scales(self) -> bool:
        """Whether activations have a second-level scale for each token."""
        return self.recipe.l1_acts.row_scale is not None

    def layouts(self) -> tuple[Sm100WeightLayout, Sm100WeightLayout]:
        """Return the weight layouts of L1 and L2."""
        p = self.problem
        return sm100_layouts(
            hidden=p.hidden, intermediate=p.intermediate, gated=p.activation.gated, gran_k=self.kind.gran_k
        )

    def row_bytes(self, k: int) -> int:
        """Return the bytes of k activation codes."""
        return k if self.is_fp8 else k // 2

    @property
    def sf_words(self) -> int:
        """Words of four scale factors along K in a stage."""
        return self.kind.block_k // (4 * self.kind.gran_k)

    def ring_words(self, layout: Sm100WeightLayout) -> int:
        """Return the words along K that the rings hold of a row block: whole stages.

        A stage's load then never meets the next token tile's words, which others may be writing.
        """
        return round_up(layout.num_words, self.sf_words)

    @property
    def hidden_k(self) -> int:
        """Hidden as L1's K."""
        return self.layouts()[0].padded_k

    @property
    def hidden_padded(self) -> int:
        """Hidden as L2's rows."""
        return self.layouts()[1].total_rows

    @property
    def intermediate_padded(self) -> int:
        """Intermediate as L2's K and as rows of one of L1's branches."""
        return self.layouts()[1].padded_k

    @property
    def slots(self) -> int:
        """Capacity for routed tokens: every slot of every rank may come here."""
        return self.problem.max_tokens_per_rank * self.problem.num_ranks * self.problem.num_topk

    def max_token_tiles(self, block_n: int) -> int:
        """Return how many token tiles of `block_n` a call can have that this tile is chosen for.

        A call's slots may all go to a few experts, or leave a partly filled tile at each.
        """
        slots = self.slots
        if block_n != TOKEN_TILES[-1]:
            slots = min(slots, int(mean_that_fits(block_n) * self.problem.num_experts))
        return slots // block_n + self.problem.num_local_experts

    def ring_tiles(self, block_n: int) -> int:
        """Return the ring's length: all token tiles, or as many as its memory may hold; a multiple of two waves."""
        l1, l2 = self.layouts()
        codes = block_n * (self.row_bytes(l1.padded_k) + self.row_bytes(l2.padded_k))
        scales = -(-block_n // 128) * (self.ring_words(l1) + self.ring_words(l2)) * _ATOM_BYTES
        fitting = _RING_BYTES // (codes + scales) // 2 * 2
        return max(2, min(round_up(self.max_token_tiles(block_n), 2), fitting))

    def workspace(self) -> StructLayout:
        """Return the parts of a rank's private workspace; the counters (from list_ready on) start as zeros.

        One workspace serves the rings of all token tiles: rows of codes, and 128-row blocks (atoms) of scale factors.
        """
        e, (l1, l2) = self.problem.num_local_experts, self.layouts()
        ring_rows = max(self.ring_tiles(n) * n for n in TOKEN_TILES)
        ring_atoms = max(self.ring_tiles(n) * -(-n // 128) for n in TOKEN_TILES)
        counters = max(self.max_token_tiles(n) for n in TOKEN_TILES) * 4
        return struct_layout(
            ("tokens", ring_rows * self.row_bytes(l1.padded_k), 1024),
            ("tokens_sf", ring_atoms * self.ring_words(l1) * _ATOM_BYTES, 1024),
            ("acts", ring_rows * self.row_bytes(l2.padded_k), 1024),
            ("acts_sf", ring_atoms * self.ring_words(l2) * _ATOM_BYTES, 1024),
            ("routed", self.slots * 4, 1024),
            ("routed_sf", self.slots * 4, 1024),
            ("routed_weights", self.slots * 4, 1024),
            ("list_ready", e * 4, 1024),
            ("tokens_ready", counters, 16),
            ("l1_done", counters, 16),
            ("l2_tile_done", counters, 16),
            ("l2_done", 4, 16),
            ("exited", 4, 16),
        )

    def symmetric(self) -> StructLayout:
        """Return the symmetric buffer's parts: what the caller or staging fills, and what experts send home."""
        p = self.problem
        t, slots = p.max_tokens_per_rank, p.max_tokens_per_rank * p.num_topk
        return struct_layout(
            ("x", t * self.row_bytes(p.hidden), 1024),
            ("x_sf", t * p.hidden // self.kind.gran_k, 1024),
            ("x_scales", t * 4, 1024),
            ("topk_idx", slots * p.topk_idx_bytes, 1024),
            ("topk_weights", slots * 4, 1024),
            ("partials", slots * self.hidden_padded * 2, 1024),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sm100Config:
    """One build of the fused kernel: a problem, a recipe, the token tile `block_n`, CTAs alone (1) or in pairs (2).

    `ring_tiles` token tiles are in flight at once, in two waves. `scale_vec` selects the older spelling of the MMA.
    """

    problem: Problem
    recipe: Recipe
    arch: Arch
    block_n: int
    cta_group: int
    num_stages: int
    ring_tiles: int
    scale_vec: bool = False

    kernel_name = "mega_moe_sm100"
    entry = "mega_moe/sm100.cuh"
    num_threads = 32 * _FIRST_EPILOGUE_WARP + 128 * _NUM_EPILOGUE_WARPGROUPS + _NUM_DISPATCH_THREADS

    @property
    def shapes(self) -> Sm100Shapes:
        """Padded sizes."""
        return Sm100Shapes(problem=self.problem, recipe=self.recipe)

    @property
    def kind(self) -> MmaKind:
        """The MMA's kind and operand types."""
        return self.shapes.kind

    @property
    def tile_m(self) -> int:
        """Weight rows of a tile."""
        return _BLOCK_M * self.cta_group

    @property
    def load_n(self) -> int:
        """Tokens that one CTA loads."""
        return self.block_n // self.cta_group

    @property
    def sf_words(self) -> int:
        """Words of four scale factors along K in a stage."""
        return self.shapes.sf_words

    @property
    def token_atoms(self) -> int:
        """Blocks of 128 rows that a token tile's scale factors take."""
        return -(-self.block_n // 128)

    @property
    def _sf_columns(self) -> int:
        return 4 * self.sf_words * (1 + self.token_atoms)

    @property
    def num_accums(self) -> int:
        """Accumulators: two where they fit, so that a tile's epilogue runs beside the next one's MMAs."""
        return 2 if 2 * self.block_n + self._sf_columns <= _MAX_TMEM_COLUMNS else 1

    @property
    def tmem_columns(self) -> int:
        """Columns to allocate: accumulators and one stage's scale factors, a power of two of at least 32."""
        needed = self.num_accums * self.block_n + self._sf_columns
        return max(32, 1 << (needed - 1).bit_length())

    @property
    def acts_tile_values(self) -> int:
        """Intermediate values of a CTA's L1 tile."""
        return _BLOCK_M // 2 if self.problem.activation.gated else _BLOCK_M

    def epilogue_storage(self) -> StructLayout:
        """Return the twin of `EpilogueStorage` in templates/mega_moe/storage_sm100.cuh."""
        n = self.block_n
        return struct_layout(
            ("tile", n * _BLOCK_M * 2, 128),
            ("tile_sf", n * 8, 16),
            ("amax", 2 * 16 * 4 * 4, 16),
            ("factor", n * 4, 4),
            ("token_scale", n * 4, 4),
            ("acts_scale", n * 4, 4),
            ("slot", n * 4, 4),
        )

    def shared_storage(self) -> StructLayout:
        """Return the twin of `SharedStorage` in templates/mega_moe/storage_sm100.cuh."""
        s, e = self.num_stages, self.problem.num_local_experts
        return struct_layout(
            ("weights", s * _BLOCK_M * _ROW_BYTES, 1024),
            ("tokens", s * self.load_n * _ROW_BYTES, 1024),
            ("weights_sf", s * self.sf_words * _ATOM_BYTES, 128),
            ("tokens_sf", s * self.token_atoms * self.sf_words * _ATOM_BYTES, 128),
            ("epilogue", _NUM_EPILOGUE_WARPGROUPS * self.epilogue_storage().num_bytes, 128),
            ("schedule", 4 * (2 * (e + 1) + self.num_threads // 32), 4),
            ("ring", 2 * s * 8, 8),
            ("accum_full", self.num_accums * 8, 8),
            ("accum_empty", self.num_accums * 8, 8),
            ("tmem", 4, 4),
            ("is_last", 4, 4),
        )

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.shared_storage().num_bytes

    def constants(self) -> Mapping[str, bool | int | float | str]:
        """Return what `config.cuh` prints."""
        return {**self._problem_constants(), **self._tile_constants(), **_activation_constants(self.problem)}

    def _problem_constants(self) -> dict[str, bool | int | float | str]:
        p, sizes, kind = self.problem, self.shapes, self.kind
        l1, l2 = sizes.layouts()
        return {
            "num_ranks": p.num_ranks,
            "num_experts": p.num_experts,
            "num_local_experts": p.num_local_experts,
            "num_topk": p.num_topk,
            "topk_idx_bytes": p.topk_idx_bytes,
            "hidden": p.hidden,
            "hidden_padded": sizes.hidden_padded,
            "intermediate_padded": sizes.intermediate_padded,
            "l1_rows": l1.total_rows,
            "l2_rows": l2.total_rows,
            "l1_k_words": l1.num_words,
            "l2_k_words": l2.num_words,
            "l1_ring_words": sizes.ring_words(l1),
            "l2_ring_words": sizes.ring_words(l2),
            "source_row_bytes": sizes.row_bytes(p.hidden),
            "source_groups": -(-p.hidden // kind.gran_k),
            "token_row_bytes": sizes.row_bytes(l1.padded_k),
            "act_row_bytes": sizes.row_bytes(l2.padded_k),
            "gran_k": kind.gran_k,
            "is_ue4m3": self.recipe.l1_acts.sf_type is ScaleType.UE4M3,
            "has_token_scales": sizes.has_token_scales,
            "inverse_element_max": 1 / (448 if sizes.is_fp8 else 6),
            "min_amax": MIN_AMAX,
            "forecast_rms": float(_FORECAST_RMS),
            "forecast_factor": float(_FORECAST_FACTOR),
            "weighs_before_requant": p.topk_weight_stage == "before_requant",
            "param_bytes": MEGA_MOE_SM100_PARAMS.num_bytes(num_ranks=p.num_ranks),
        }

    def _tile_constants(self) -> dict[str, bool | int | float | str]:
        kind = self.kind
        l1, l2 = self.shapes.layouts()
        return {
            "cta_group": self.cta_group,
            "block_m": _BLOCK_M,
            "block_n": self.block_n,
            "block_k": kind.block_k,
            "tile_m": self.tile_m,
            "load_n": self.load_n,
            "num_stages": self.num_stages,
            "num_accums": self.num_accums,
            "tmem_columns": self.tmem_columns,
            "token_atoms": self.token_atoms,
            "sf_words": self.sf_words,
            "ring_tiles": self.ring_tiles,
            "wave_tiles": self.ring_tiles // 2,
            "l1_m_tiles": l1.total_rows // self.tile_m,
            "l2_m_tiles": l2.total_rows // self.tile_m,
            "l1_arrivals": l1.total_rows // _BLOCK_M,  # each CTA's part of each tile
            "l2_arrivals": l2.total_rows // _BLOCK_M,
            "l1_k_stages": -(-l1.padded_k // kind.block_k),
            "l2_k_stages": -(-l2.padded_k // kind.block_k),
            "l1_mmas": l1.padded_k // kind.mma_k,
            "l2_mmas": l2.padded_k // kind.mma_k,
            "mma_m": self.tile_m,
            "mma_a_type": kind.weight_type,
            "mma_b_type": kind.token_type,
            "mma_scale_type": kind.scale_type,
            "mmas_per_stage": kind.block_k // kind.mma_k,
            "mmas_per_word": 4 // kind.scales_per_mma,
            "scales_per_mma": kind.scales_per_mma,
            # Bytes that a row of weights counts on the barrier: widened FP4 counts as it lies in memory.
            "weight_stage_row_bytes": _ROW_BYTES // 2 if kind.pads_weights else _ROW_BYTES,
            "acts_per_byte": 1 if self.shapes.is_fp8 else 2,
            "acts_tile_bytes": self.shapes.row_bytes(self.acts_tile_values),
            "full_arrivals": 1,  # the even CTA's loader, with the bytes of both
            "empty_arrivals": 1,  # a commit
            "accum_full_arrivals": 1,  # a commit
            "accum_empty_arrivals": 4 * self.cta_group,  # each warp of the warpgroup that has the tile, in each CTA
            "num_threads": self.num_threads,
            "first_epilogue_warp": _FIRST_EPILOGUE_WARP,
            "num_epilogue_warpgroups": _NUM_EPILOGUE_WARPGROUPS,
            "first_dispatch_warp": _FIRST_EPILOGUE_WARP + 4 * _NUM_EPILOGUE_WARPGROUPS,
            "num_dispatch_threads": _NUM_DISPATCH_THREADS,
            "smem_bytes": self.smem_bytes,
        }

    def template_values(self) -> Mapping[str, object]:
        """Return the qualifiers that only text can have, and the family of shared roles."""
        return {
            "family": "sm100",
            "cta_group": self.cta_group,
            "mma_kind": self.kind.spelling(scale_vec=self.scale_vec),
        }


def _activation_constants(problem: Problem) -> dict[str, bool | int | float | str]:
    spec: ActivationSpec = problem.activation
    return {
        "activation": ACTIVATION_CODES[spec.kind],
        "is_gated": spec.gated,
        "alpha": float(spec.alpha),
        "up_bias": float(spec.up_bias),
        "has_clamp": spec.clamp is not None,
        "clamp": float(spec.clamp if spec.clamp is not None else 0.0),
        "fast_math": problem.fast_math,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Sm100StagingConfig:
    """One build of the staging kernel, from BF16 tokens; codes of the caller's are in place as they are."""

    problem: Problem
    recipe: Recipe
    arch: Arch

    kernel_name = "stage_tokens_sm100"
    entry = "staging/staging_sm100.cuh"
    num_threads = 256
    blocks_per_sm = 4

    def constants(self) -> Mapping[str, bool | int | float | str]:
        """Return what `config.cuh` prints."""
        p = self.problem
        sizes = Sm100Shapes(problem=p, recipe=self.recipe)
        return {
            "num_ranks": p.num_ranks,
            "num_experts": p.num_experts,
            "num_topk": p.num_topk,
            "topk_idx_bytes": p.topk_idx_bytes,
            "hidden": p.hidden,
            "gran_k": sizes.kind.gran_k,
            "num_threads": self.num_threads,
            "is_ue4m3": self.recipe.l1_acts.sf_type is ScaleType.UE4M3,
            "has_token_scales": sizes.has_token_scales,
            "acts_per_byte": 1 if sizes.is_fp8 else 2,
            "element_max": 448.0 if sizes.is_fp8 else 6.0,
            "source_row_bytes": sizes.row_bytes(p.hidden),
            "param_bytes": STAGING_SM100_PARAMS.num_bytes(num_ranks=1),
            "min_amax": MIN_AMAX,
        }

    def template_values(self) -> Mapping[str, object]:
        """Return nothing: the kernel has no text of its own to pick."""
        return {}


def reject(config: Sm100Config) -> str | None:
    """Return why `config` cannot run, or None."""
    if config.arch.generation is not MmaGeneration.TCGEN05 or config.recipe.generation is not MmaGeneration.TCGEN05:
        return f"recipe {config.recipe.name} on {config.arch} has no tcgen05 kernel: these are for sm_100 and sm_103"
    if config.scale_vec and config.arch.is_family:
        return f"scale_vec is not for family targets such as {config.arch}, which spell it block{config.kind.gran_k}"
    if config.problem.num_ranks != 1:
        return f"num_ranks={config.problem.num_ranks}: the Blackwell kernel dispatches within one rank"
    if config.cta_group not in (1, 2):
        return f"cta_group={config.cta_group}: an MMA is of one CTA or of a pair"
    if config.block_n not in TOKEN_TILES:
        return f"block_n={config.block_n}: token tiles are {', '.join(map(str, TOKEN_TILES))}"
    if config.problem.hidden % config.kind.gran_k:
        return f"hidden={config.problem.hidden} is no multiple of {config.kind.gran_k}, which share a scale factor"
    if config.ring_tiles < 2 or config.ring_tiles % 2:
        return f"ring_tiles={config.ring_tiles}: the ring holds two waves of as many token tiles"
    if config.num_stages < 2:
        return f"num_stages={config.num_stages}: loads and MMAs need two stages to overlap"
    if config.smem_bytes > config.arch.max_smem_bytes:
        return (
            f"{config.num_stages} stages of {config.block_n} tokens need {config.smem_bytes} B of shared memory, "
            f"{config.arch} has {config.arch.max_smem_bytes} B"
        )
    return None


def config_for_tile(
    problem: Problem, recipe: Recipe, arch: Arch, block_n: int, *, cta_group: int = 2, ring_tiles: int | None = None
) -> Sm100Config:
    """Return the build for one token tile with as many stages as fit; raises UnsupportedError when none does.

    `ring_tiles` defaults to what Sm100Shapes says; a shorter ring takes more waves and gives the same result.
    """
    if ring_tiles is None:
        ring_tiles = Sm100Shapes(problem=problem, recipe=recipe).ring_tiles(block_n)
    reason: str | None = None
    for num_stages in range(_MAX_STAGES, 1, -1):
        config = Sm100Config(
            problem=problem,
            recipe=recipe,
            arch=arch,
            block_n=block_n,
            cta_group=cta_group,
            num_stages=num_stages,
            ring_tiles=ring_tiles,
        )
        reason = reject(config)
        if reason is None:
            return config
    raise UnsupportedError(
        f"no Blackwell kernel for this call: {reason}. Choose another recipe, arch or number of ranks."
    )
