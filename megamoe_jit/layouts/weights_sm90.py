"""Fragment-major NVFP4 weights of the sm_90a kernels: where each code and each block scale lies.

The consumer threads of an sm_90a kernel feed wgmma's register A operand, so a thread's share of a tile lies together:
16 bytes (32 codes) and two scale bytes for each unit of 64 weight rows x 64 K. One expert's layer is one relocatable
run of blocks, each of which one bulk copy fetches:

    data[expert] = blocks [tile][stage]           tile = 256 packed rows, stage = 128 of K, 18432 B a block
    block        = codes  [m64 0..3][unit 0..1][thread 0..127][16 B]        16384 B
                   scales [m64 0..3][unit 0..1][thread 0..127][2 B]          2048 B   raw UE4M3 bytes of the checkpoint

    thread = 32 warp + lane, t = lane % 4, g = 16 warp + lane / 4; its 16 code bytes are four little-endian words:
                       group of 16 K: 64 unit + 16 t
                 offsets 0..7 of the group   offsets 8..15
      row g        word 0                      word 1          scale byte 0
      row g + 8    word 2                      word 3          scale byte 1

Which checkpoint row a packed row is depends on the layer (RowOrder): in L1 the two rows of a thread are the gate and
the up row of one intermediate value. Inside a word the bits lie as the decoder wants them (Sm90Element, _code_bits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.layouts.bits import BitPermutation
from megamoe_jit.layouts.struct import round_up

TILE_ROWS = 256  # packed rows of a block
STAGE_K = 128  # K of a block
UNIT_ROWS = 64
UNIT_K = 64
GROUP_K = 16  # K elements that share a scale
THREADS = 128  # of the warpgroup that owns a unit
CODE_BYTES = TILE_ROWS * STAGE_K // 2
SCALE_BYTES = TILE_ROWS * STAGE_K // GROUP_K
BLOCK_BYTES = CODE_BYTES + SCALE_BYTES

_DIGITS = {"wg": 2, "m": 2, "warp": 4, "half": 2, "j_high": 4, "j_low": 2, "unit": 2, "t": 4}


class Sm90Element(Enum):
    """What the tensor core multiplies after decoding; sets the order of bits in a word of codes and of K in token rows.

    The values are those of `recipes.Element`.
    """

    E4M3 = "e4m3"
    BF16 = "bf16"

    @property
    def decode_factor(self) -> float:
        """What kernels multiply alphas by: the decoder yields code x scale / 8 (E4M3) or code x scale / 512 (BF16)."""
        return 8.0 if self is Sm90Element.E4M3 else 512.0


class RowOrder(Enum):
    """Which checkpoint row lies in which packed row; half, warp and j as in a unit: packed row = 16 warp + 8 half + j.

    L1_GATED: tile i holds intermediates 128 i .. 128 i + 127 twice: half 0 their gate rows, half 1 their up rows.
    L1_PLAIN: tile i holds intermediates 256 i .. 256 i + 255: half 0 the first 128, half 1 the others.
        In both, a thread's values of a warpgroup's two m64 are neighbours, and those of a warp's 8 lanes of a column
        are 16 neighbouring bytes of the row that L2 reads, in its order of K: stores move whole vectors.
    L2: tile i holds hidden rows 256 i .. 256 i + 255 in order.
    """

    L1_GATED = "l1_gated"
    L1_PLAIN = "l1_plain"
    L2 = "l2"

    @property
    def branches(self) -> int:
        """2 where the checkpoint has gate rows and then up rows, else 1."""
        return 2 if self is RowOrder.L1_GATED else 1

    @property
    def row_multiple(self) -> int:
        """What the rows of each branch are padded to a multiple of."""
        return TILE_ROWS // self.branches


# A row number's digits, most significant first: as the checkpoint counts and as the tile does. m64 = 2 wg + m.
_CHECKPOINT_ROWS = {
    RowOrder.L1_GATED: ("half", "tile", "wg", "j_high", "warp", "j_low", "m"),
    RowOrder.L1_PLAIN: ("tile", "half", "wg", "j_high", "warp", "j_low", "m"),
    RowOrder.L2: ("tile", "wg", "m", "warp", "half", "j_high", "j_low"),
}
_GROUPS = ("stage", "unit", "t")  # digits of a group number along K, the same in both
_BLOCK = ("tile", "stage", "wg", "m", "unit", "warp", "j_high", "j_low", "t", "half")


def _code_bits(element: Sm90Element, offset: int) -> tuple[int, int, int, int]:
    """Return where bits 0..3 (mantissa, two of exponent, sign) of the code at `offset` 0..7 lie in its 32-bit word."""
    if element is Sm90Element.E4M3:
        # The low 16 bits are a prmt selector for offsets 0..3, the high ones for 4..7; signs lie where a bit select
        # takes them from the word itself (0..3) or from the word shifted left by four (4..7).
        sign = 8 * offset + 7 if offset < 4 else 8 * (offset - 4) + 3
        return (4 * offset, 4 * offset + 1, 4 * offset + 2, sign)
    # Offsets 2p and 2p + 1 lie in the two halves of the word, so that one shift and one mask yield two bf16.
    return _BF16_BITS[offset]


_BF16_BITS = (
    (4, 5, 6, 13),
    (20, 21, 22, 29),
    (0, 1, 2, 9),
    (16, 17, 18, 25),
    (10, 11, 12, 19),
    (26, 27, 28, 3),
    (14, 7, 8, 15),
    (30, 23, 24, 31),
)
_WORDS = {
    element: BitPermutation(targets=tuple(bit for offset in range(8) for bit in _code_bits(element, offset)))
    for element in Sm90Element
}


def sm90_token_permutation(element: Sm90Element) -> torch.Tensor:
    """Return int64 [64] `perm` with stored[p] = natural[perm[p]], for each block of 64 K elements of a token row.

    wgmma's A fragment gives a thread scattered K; with tokens stored in this order, what it gets is 16 neighbours.
    """
    t, step, half, j = _token_digits(element)
    k = 16 * t + (16 // _steps(element)) * step + _run(element) * half + j
    return k.reshape(-1)


def _steps(element: Sm90Element) -> int:
    """MMA instructions along the 64 K of a unit."""
    return 2 if element is Sm90Element.E4M3 else 4


def _run(element: Sm90Element) -> int:
    """Neighbours in K that one 32-bit register holds."""
    return 4 if element is Sm90Element.E4M3 else 2


def _token_digits(element: Sm90Element) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return t, step, half, j of every position in stored order."""
    step, half, t, j = torch.meshgrid(
        torch.arange(_steps(element)), torch.arange(2), torch.arange(4), torch.arange(_run(element)), indexing="ij"
    )
    return t, step, half, j


def permute_token_k(x: torch.Tensor, element: Sm90Element, *, inverse: bool = False) -> torch.Tensor:
    """Return `x` [..., K] with K in the order that sm_90a kernels store tokens in (or back); K is a multiple of 64."""
    if x.shape[-1] % UNIT_K:
        raise ArgumentError(
            f"x has {x.shape[-1]} values along K, and tokens are permuted in blocks of {UNIT_K}. Pad K with zeros."
        )
    perm = sm90_token_permutation(element).to(x.device)
    if inverse:
        perm = torch.argsort(perm)
    # Bytes are moved as bytes: torch does not index every float8 tensor.
    raw = x.view(torch.uint8) if x.element_size() == 1 else x
    return raw.reshape(*x.shape[:-1], -1, UNIT_K)[..., perm].view(x.dtype).reshape(x.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sm90WeightLayout:
    """One layer's fragment-major layout: `rows` outputs a branch (intermediate for L1, hidden for L2) and `k` inputs.

    Rows are padded to `row_order.row_multiple` in each branch, K to `k_multiple`, with zero codes and zero scales.
    """

    row_order: RowOrder
    element: Sm90Element
    rows: int
    k: int
    k_multiple: int = STAGE_K

    def __post_init__(self) -> None:
        """Refuse sizes that have no layout."""
        if self.rows < 1 or self.k < 1 or self.k % GROUP_K:
            raise ArgumentError(
                f"a layer of {self.rows} rows and K={self.k} was given; rows must be positive and K a positive "
                f"multiple of {GROUP_K} (one block scale for {GROUP_K} values). Pad the checkpoint's K with zero codes."
            )
        if self.k_multiple % STAGE_K or self.k_multiple < STAGE_K:
            raise ArgumentError(
                f"k_multiple={self.k_multiple} is not a positive multiple of {STAGE_K}. Use {STAGE_K} or {2 * STAGE_K}."
            )

    @property
    def branches(self) -> int:
        """2 where the checkpoint has gate rows and then up rows, else 1."""
        return self.row_order.branches

    @property
    def checkpoint_rows(self) -> int:
        """Rows of the checkpoint's tensor: both branches."""
        return self.rows * self.branches

    @property
    def padded_rows(self) -> int:
        """Rows of one branch after padding."""
        return round_up(self.rows, self.row_order.row_multiple)

    @property
    def padded_k(self) -> int:
        """K after padding."""
        return round_up(self.k, self.k_multiple)

    @property
    def num_tiles(self) -> int:
        """Blocks of 256 packed rows."""
        return self.padded_rows * self.branches // TILE_ROWS

    @property
    def num_stages(self) -> int:
        """Blocks along K of one tile."""
        return self.padded_k // STAGE_K

    @property
    def bytes_per_expert(self) -> int:
        """Size of one expert's run of blocks."""
        return self.num_tiles * self.num_stages * BLOCK_BYTES

    def block_offset(self, tile: int, stage: int) -> int:
        """Return the byte offset of block (tile, stage) in an expert's run."""
        return (tile * self.num_stages + stage) * BLOCK_BYTES

    def pack(self, codes: torch.Tensor, sf: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return uint8 [E, bytes_per_expert]: checkpoint weights in this layout.

        codes: uint8 [E, checkpoint_rows, K/2], even K in the low nibble. sf: float8_e4m3fn or its bytes
        [E, checkpoint_rows, K/16]. Nothing is rounded or decoded. Works on one expert at a time, so that the memory
        needed besides the result is a few times one expert's codes. Raises ArgumentError for other shapes and dtypes.
        """
        sf = sf.view(torch.uint8) if sf.dtype == torch.float8_e4m3fn else sf
        self._check("codes", codes, (self.checkpoint_rows, self.k // 2))
        self._check("sf", sf, (self.checkpoint_rows, self.k // GROUP_K))
        num_experts = codes.shape[0]
        if sf.shape[0] != num_experts or sf.device != codes.device:
            raise ArgumentError(
                f"codes hold {num_experts} experts on {codes.device}, sf {sf.shape[0]} on {sf.device}, and both must "
                "agree. Move or slice one of them."
            )
        if out is None:
            out = torch.empty(num_experts, self.bytes_per_expert, dtype=torch.uint8, device=codes.device)
        else:
            self._check("out", out, (self.bytes_per_expert,))
        branches = self.branches
        # Allocated once for all experts; what lies outside the checkpoint's rows and K stays zero.
        padded_codes = codes.new_zeros(branches, self.padded_rows, self.padded_k // 2)
        padded_sf = codes.new_zeros(branches, self.padded_rows, self.padded_k // GROUP_K)
        for expert in range(num_experts):
            padded_codes[:, : self.rows, : self.k // 2] = codes[expert].view(branches, self.rows, -1)
            padded_sf[:, : self.rows, : self.k // GROUP_K] = sf[expert].view(branches, self.rows, -1)
            words = _WORDS[self.element].apply(padded_codes.view(torch.int32))
            code_blocks, sf_blocks = self._block_views(out[expert])
            code_blocks.copy_(self._in_block_order(words.view(torch.int64)))
            sf_blocks.copy_(self._in_block_order(padded_sf))
        return out

    def unpack(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `pack` got: uint8 [E, checkpoint_rows, K/2], float8_e4m3fn [E, checkpoint_rows, K/16]."""
        self._check("data", data, (self.bytes_per_expert,))
        num_experts, branches = data.shape[0], self.branches
        codes = data.new_empty(num_experts, branches, self.rows, self.k // 2)
        sf = data.new_empty(num_experts, branches, self.rows, self.k // GROUP_K)
        padded_codes = data.new_empty(branches, self.padded_rows, self.padded_k // 2)
        padded_sf = data.new_empty(branches, self.padded_rows, self.padded_k // GROUP_K)
        for expert in range(num_experts):
            code_blocks, sf_blocks = self._block_views(data[expert])
            self._in_block_order(padded_codes.view(torch.int64)).copy_(code_blocks)
            self._in_block_order(padded_sf).copy_(sf_blocks)
            words = _WORDS[self.element].inverse.apply(padded_codes.view(torch.int32))
            codes[expert] = words.view(torch.uint8)[:, : self.rows, : self.k // 2]
            sf[expert] = padded_sf[:, : self.rows, : self.k // GROUP_K]
        return codes.flatten(1, 2), sf.flatten(1, 2).view(torch.float8_e4m3fn)

    def code_bits(self, row: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Return int64 [..., 4]: where bits 0..3 of the code at checkpoint (row, k) lie, as bits of the expert's run.

        Written from what a thread owns, digit by digit, as the slow twin of `pack`. row and k: int64 of one shape.
        """
        block, thread, half, unit, m64 = self._owner(row, k // GROUP_K)
        offset = k % GROUP_K
        word = half * 2 + offset // 8
        byte = block + ((m64 * 2 + unit) * THREADS + thread) * 16 + 4 * word
        table = torch.tensor([_code_bits(self.element, o) for o in range(8)], device=row.device)
        return byte[..., None] * 8 + table[offset % 8]

    def scale_byte(self, row: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """Return int64: where the scale of checkpoint (row, K group of 16) lies, as a byte of the expert's run."""
        block, thread, half, unit, m64 = self._owner(row, group)
        return block + CODE_BYTES + ((m64 * 2 + unit) * THREADS + thread) * 2 + half

    def packed_row(self, row: torch.Tensor) -> torch.Tensor:
        """Return int64: tile * 256 + row inside the tile of a checkpoint row."""
        if self.row_order is RowOrder.L2:
            tile, r = row // 256, row % 256
            m64, warp, half, j = r // 64, r // 16 % 4, r // 8 % 2, r % 8
        else:
            branch, r = row // self.rows, row % self.rows
            if self.row_order is RowOrder.L1_GATED:
                tile, half, r = r // 128, branch, r % 128
            else:
                tile, half, r = r // 256, r // 128 % 2, r % 128
            m64, warp, j = 2 * (r // 64) + r % 2, r // 4 % 4, 2 * (r // 16 % 4) + r // 2 % 2
        return 256 * tile + 64 * m64 + 16 * warp + 8 * half + j

    def _owner(self, row: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return block's byte offset, thread, half, unit, m64 of the (row, group of 16) pair."""
        packed = self.packed_row(row)
        tile, m64, r = packed // 256, packed // 64 % 4, packed % 64
        warp, half, j = r // 16, r // 8 % 2, r % 8
        stage, unit, t = group // 8, group // 4 % 2, group % 4
        return (tile * self.num_stages + stage) * BLOCK_BYTES, 32 * warp + 4 * j + t, half, unit, m64

    def _in_block_order(self, groups: torch.Tensor) -> torch.Tensor:
        """Return a view of padded checkpoint-order [branches, padded_rows, groups along K] in the order of _BLOCK."""
        names: Sequence[str] = (*_CHECKPOINT_ROWS[self.row_order], *_GROUPS)
        sizes = {**_DIGITS, "tile": self.num_tiles, "stage": self.num_stages}
        return groups.view([sizes[name] for name in names]).permute([names.index(name) for name in _BLOCK])

    def _block_views(self, run: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of one expert's run in the order of _BLOCK: codes as int64 (a group of 16), scales as bytes."""
        blocks = run.view(self.num_tiles, self.num_stages, BLOCK_BYTES)
        sizes = [self.num_tiles, self.num_stages, *(_DIGITS[name] for name in _BLOCK[2:])]
        return blocks[..., :CODE_BYTES].view(torch.int64).view(sizes), blocks[..., CODE_BYTES:].view(sizes)

    def _check(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        if tensor.dtype != torch.uint8 or tuple(tensor.shape[1:]) != shape or tensor.ndim != 1 + len(shape):
            raise ArgumentError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, and this {self.row_order.value} layout "
                f"(rows={self.rows}, K={self.k}) takes torch.uint8 [num_experts, {', '.join(map(str, shape))}]. "
                "Pass the tensor that belongs to the layout."
            )
        if name in ("data", "out") and not (tensor.is_contiguous() and tensor.storage_offset() % 16 == 0):
            raise ArgumentError(
                f"{name} is not contiguous or does not start at a multiple of 16 bytes. Pass {name}.contiguous() or a "
                "fresh tensor."
            )


def sm90_layouts(
    *, hidden: int, intermediate: int, gated: bool, element: Sm90Element
) -> tuple[Sm90WeightLayout, Sm90WeightLayout]:
    """Return the layouts of L1 and L2; L2's K is padded as L1's outputs are."""
    l1 = Sm90WeightLayout(
        row_order=RowOrder.L1_GATED if gated else RowOrder.L1_PLAIN, element=element, rows=intermediate, k=hidden
    )
    l2 = Sm90WeightLayout(
        row_order=RowOrder.L2, element=element, rows=hidden, k=intermediate, k_multiple=l1.row_order.row_multiple
    )
    return l1, l2
