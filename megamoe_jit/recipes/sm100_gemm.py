"""Configurations of Blackwell's block-scaled grouped GEMM: operand kinds, tiles, tensor memory, shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megamoe_jit.arch import Arch, MmaGeneration
from megamoe_jit.errors import UnsupportedError
from megamoe_jit.layouts.struct import StructLayout, struct_layout
from megamoe_jit.recipes.params import GEMM_PARAMS

_BLOCK_M = 128  # weight rows of one CTA: lanes of tensor memory
_ROW_BYTES = 128  # of an operand row in a stage: the span of the widest swizzle
_ATOM_BYTES = 512
_MAX_STAGES = 8
_MAX_TMEM_COLUMNS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class MmaKind:
    """A block-scaled kind of tcgen05.mma with one pair of operand types.

    Attributes:
        name: as in the instruction.
        gran_k: elements of K that share a scale factor.
        mma_k: K of one instruction.
        weight_type, token_type: element codes of the instruction descriptor.
        scale_type: 0 for UE4M3, 1 for UE8M0; one bit for both operands.
        pads_weights: FP4 weights lie in 8-bit containers (TMA widens them), as kind mxf8f6f4 reads them.

    Source: PTX ISA, tcgen05 "Instruction Descriptor", "Block Scaling".
    """

    name: str
    gran_k: int
    mma_k: int
    weight_type: int
    token_type: int
    scale_type: int
    pads_weights: bool = False

    @property
    def block_k(self) -> int:
        """Elements of an operand row of 128 bytes: one stage."""
        return 128 if self.name == "mxf8f6f4" else 256

    @property
    def scales_per_mma(self) -> int:
        """Scale factors of a row that one instruction reads; the next one's begin that many bytes on."""
        return self.mma_k // self.gran_k

    def spelling(self, *, scale_vec: bool) -> str:
        """Return the qualifiers; `scale_vec` selects the older spelling, which family targets refuse."""
        size = f"scale_vec::{self.scales_per_mma}X" if scale_vec else f"block{self.gran_k}"
        return f"kind::{self.name}.block_scale.{size}"


MMA_KINDS: dict[str, MmaKind] = {
    "nvfp4_nvfp4": MmaKind(name="mxf4nvf4", gran_k=16, mma_k=64, weight_type=1, token_type=1, scale_type=0),
    "mxfp4_mxfp4": MmaKind(name="mxf4", gran_k=32, mma_k=64, weight_type=1, token_type=1, scale_type=1),
    "mxfp8_mxfp4": MmaKind(
        name="mxf8f6f4", gran_k=32, mma_k=32, weight_type=5, token_type=0, scale_type=1, pads_weights=True
    ),
    "mxfp8_nvfp4": MmaKind(  # weights adapted to UE8M0 scale factors
        name="mxf8f6f4", gran_k=32, mma_k=32, weight_type=5, token_type=0, scale_type=1, pads_weights=True
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sm100GemmConfig:
    """One build of the grouped GEMM: y [tokens, n] = tokens [tokens, k] @ weights [num_experts, n, k]^T by expert.

    `cta_group` 2 has pairs of CTAs share tiles of 256 weight rows. `block_n` tokens are a tile.
    """

    arch: Arch
    kind: MmaKind
    num_experts: int
    n: int
    k: int
    block_n: int
    cta_group: int
    num_stages: int
    scale_vec: bool = False

    kernel_name = "grouped_gemm_sm100"
    entry = "gemm/sm100.cuh"
    num_threads = 256

    @property
    def load_n(self) -> int:
        """Tokens that one CTA loads."""
        return self.block_n // self.cta_group

    @property
    def k_words(self) -> int:
        """Words of four scale factors along K."""
        return -(-self.k // (4 * self.kind.gran_k))

    @property
    def sf_words(self) -> int:
        """Words of scale factors along K in a stage."""
        return self.kind.block_k // (4 * self.kind.gran_k)

    @property
    def token_atoms(self) -> int:
        """Blocks of 128 tokens that a tile's scale factors lie in; a tile of 192 begins inside of one."""
        return -(-self.block_n // 128)

    @property
    def num_accums(self) -> int:
        """Accumulators: two where they fit, so that a tile's epilogue runs beside the next one's MMAs."""
        return 2 if 2 * self.block_n + self._sf_columns <= _MAX_TMEM_COLUMNS else 1

    @property
    def _sf_columns(self) -> int:
        return 4 * self.sf_words * (1 + self.token_atoms)

    @property
    def tmem_columns(self) -> int:
        """Columns to allocate: accumulators and one stage's scale factors, a power of two of at least 32."""
        needed = self.num_accums * self.block_n + self._sf_columns
        return max(32, 1 << (needed - 1).bit_length())

    def shared_storage(self) -> StructLayout:
        """Return the twin of `SharedStorage` in templates/gemm/gemm_storage.cuh."""
        s = self.num_stages
        return struct_layout(
            ("weights", s * _BLOCK_M * _ROW_BYTES, 1024),
            ("tokens", s * self.load_n * _ROW_BYTES, 1024),
            ("y", self.block_n * _BLOCK_M * 2, 1024),
            ("weights_sf", s * self.sf_words * _ATOM_BYTES, 128),
            ("tokens_sf", s * self.token_atoms * self.sf_words * _ATOM_BYTES, 128),
            ("ring", 2 * s * 8, 8),
            ("accum_full", self.num_accums * 8, 8),
            ("accum_empty", self.num_accums * 8, 8),
            ("tmem", 4, 4),
        )

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.shared_storage().num_bytes

    def constants(self) -> Mapping[str, bool | int | float | str]:
        """Return what `config.cuh` prints."""
        kind = self.kind
        return {
            "num_experts": self.num_experts,
            "n": self.n,
            "row_blocks": -(-self.n // 128),
            "k_words": self.k_words,
            "cta_group": self.cta_group,
            "block_m": _BLOCK_M,
            "block_n": self.block_n,
            "block_k": kind.block_k,
            "tile_m": _BLOCK_M * self.cta_group,
            "load_n": self.load_n,
            "num_stages": self.num_stages,
            "num_accums": self.num_accums,
            "k_stages": -(-self.k // kind.block_k),
            "mma_m": _BLOCK_M * self.cta_group,
            "mma_a_type": kind.weight_type,
            "mma_b_type": kind.token_type,
            "mma_scale_type": kind.scale_type,
            "mmas_per_stage": kind.block_k // kind.mma_k,
            "mmas_per_tile": -(-self.k // kind.mma_k),
            "mmas_per_word": 4 // kind.scales_per_mma,
            "scales_per_mma": kind.scales_per_mma,
            "sf_words": self.sf_words,
            "token_atoms": self.token_atoms,
            "tmem_columns": self.tmem_columns,
            # Bytes that a row of weights counts on the barrier: widened FP4 counts as it lies in memory.
            "weight_row_bytes": _ROW_BYTES // 2 if kind.pads_weights else _ROW_BYTES,
            "full_arrivals": 1,  # the even CTA's loader, with the bytes of both
            "empty_arrivals": 1,  # a commit
            "accum_full_arrivals": 1,  # a commit
            "accum_empty_arrivals": 4 * self.cta_group,  # each epilogue warp of the group
            "num_threads": self.num_threads,
            "first_epilogue_warp": 4,
            "smem_bytes": self.smem_bytes,
            "param_bytes": GEMM_PARAMS.num_bytes(num_ranks=0),
        }

    def template_values(self) -> Mapping[str, object]:
        """Return the qualifiers that only text can have."""
        return {"cta_group": self.cta_group, "mma_kind": self.kind.spelling(scale_vec=self.scale_vec)}


def reject(config: Sm100GemmConfig) -> str | None:
    """Return why `config` cannot run, or None."""
    kind = config.kind
    if config.arch.generation is not MmaGeneration.TCGEN05:
        return f"{config.arch} has no tcgen05: these kernels are for sm_100 and sm_103"
    if config.scale_vec and config.arch.is_family:
        return f"scale_vec is not for family targets such as {config.arch}, which spell it block{kind.gran_k}"
    if config.cta_group not in (1, 2):
        return f"cta_group={config.cta_group}: an MMA is of one CTA or of a pair"
    if config.block_n not in (16, 32, 64, 128, 192, 256):
        return f"block_n={config.block_n}: tiles have 16, 32, 64, 128, 192 or 256 tokens"
    if config.cta_group == 2 and config.block_n < 32:
        return f"block_n={config.block_n}: each CTA of a pair loads at least 16 tokens"
    if config.n < 1 or config.n % 8:
        return f"n={config.n} is no positive multiple of 8: y is stored in units of 16 bytes"
    if config.k < 1 or config.k % 32:
        return f"k={config.k} is no positive multiple of 32: rows of codes are multiples of 16 bytes"
    if kind.pads_weights and config.k % 128:
        return f"k={config.k} is no multiple of 128, which TMA needs to widen FP4 codes. Pad K with zero codes"
    if config.num_stages < 2:
        return f"num_stages={config.num_stages}: loads and MMAs need two stages to overlap"
    if config.smem_bytes > config.arch.max_smem_bytes:
        return (
            f"{config.num_stages} stages of {config.block_n} tokens need {config.smem_bytes} B of shared memory, "
            f"{config.arch} has {config.arch.max_smem_bytes} B"
        )
    return None


def gemm_config(
    *, arch: Arch, kind: MmaKind, num_experts: int, n: int, k: int, block_n: int, cta_group: int = 2
) -> Sm100GemmConfig:
    """Return the build of a shape with as many stages as fit; raises UnsupportedError when none does."""
    reason: str | None = None
    for num_stages in range(_MAX_STAGES, 1, -1):
        config = Sm100GemmConfig(
            arch=arch,
            kind=kind,
            num_experts=num_experts,
            n=n,
            k=k,
            block_n=block_n,
            cta_group=cta_group,
            num_stages=num_stages,
        )
        reason = reject(config)
        if reason is None:
            return config
    raise UnsupportedError(f"no Blackwell grouped GEMM for this call: {reason}.")
