"""Where one block scale factor of Blackwell's weights is at each stage of its way to the tensor core, and back.

    checkpoint   byte of the expert's [rows, groups], rows in checkpoint order
    packed       byte of the expert's packed scale factors: a 512-byte atom for each (word of 4 groups, 128 packed rows)
    shared       byte of a stage's scale factors in a CTA: the atoms of the stage's words
    tensor       lane (of each quarter of 32), column after the operand's first, byte; the MMA that reads it

The picture of an atom is in scales.py. Source of the last two: PTX ISA, tcgen05.cp 32x128b.warpx4 and tcgen05.mma
"Block Scaling".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.layouts.scales import ATOM_BYTES, ATOM_GROUPS, ATOM_ROWS
from megamoe_jit.layouts.weights_sm100 import Sm100WeightLayout

STAGES = ("checkpoint", "packed", "shared", "tensor")
_LANES = 32  # of a quarter of tensor memory: all four hold the same scale factors


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlace:
    """A byte of tensor memory, columns counted from the operand's first, and the instruction that reads it."""

    lane: int
    column: int
    byte: int
    mma: int  # of the stage
    sf_id: int  # of that MMA: the first byte of the word that it uses


@dataclass(frozen=True, kw_only=True, slots=True)
class SfPlace:
    """One scale factor: the row and K group that it belongs to, and its place at each stage.

    `row` is the checkpoint's (L1: gate rows, then up rows), `packed_row` the kernel's. `tile` numbers blocks of 128
    packed rows, `k_stage` the kernel's stages along K.
    """

    row: int
    group: int
    packed_row: int
    tile: int
    k_stage: int
    checkpoint_byte: int
    packed_byte: int
    shared_byte: int
    tensor: TensorPlace


@dataclass(frozen=True, kw_only=True, slots=True)
class SfPlaces:
    """Places of all scale factors of one expert's weights; `block_k` and `mma_k` are the kernel's, in elements."""

    layout: Sm100WeightLayout
    block_k: int
    mma_k: int

    @property
    def words_per_stage(self) -> int:
        """Words of four groups in a K stage."""
        return self.block_k // (self.layout.gran_k * ATOM_GROUPS)

    def of(self, row: int, group: int) -> SfPlace:
        """Return the places of the scale factor of checkpoint (row, group); raises ArgumentError outside of them."""
        layout = self.layout
        for name, value, count in (("row", row, layout.checkpoint_rows), ("group", group, layout.groups)):
            if not 0 <= value < count:
                raise ArgumentError(f"{name}={value}, but this layer has {name}s 0 to {count - 1}. Pass one of them.")
        packed_row = int(layout.packed_row(torch.tensor(row)))
        in_tile, word, byte = packed_row % ATOM_ROWS, group // ATOM_GROUPS, group % ATOM_GROUPS
        in_atom = in_tile % _LANES * 16 + in_tile // _LANES * 4 + byte
        stage_word = word % self.words_per_stage
        scales_per_mma = self.mma_k // layout.gran_k
        return SfPlace(
            row=row,
            group=group,
            packed_row=packed_row,
            tile=packed_row // ATOM_ROWS,
            k_stage=word // self.words_per_stage,
            checkpoint_byte=row * layout.groups + group,
            packed_byte=(word * (layout.total_rows // ATOM_ROWS) + packed_row // ATOM_ROWS) * ATOM_BYTES + in_atom,
            shared_byte=stage_word * ATOM_BYTES + in_atom,
            tensor=TensorPlace(
                lane=in_tile % _LANES,
                column=stage_word * 4 + in_tile // _LANES,
                byte=byte,
                mma=(stage_word * ATOM_GROUPS + byte) // scales_per_mma,
                sf_id=byte // scales_per_mma * scales_per_mma,
            ),
        )

    def at_checkpoint(self, byte: int) -> SfPlace:
        """Return the scale factor at a byte of the checkpoint's tensor."""
        return self.of(*divmod(byte, self.layout.groups))

    def at_packed(self, byte: int) -> SfPlace | None:
        """Return the scale factor at a byte of the packed tensor, or None where it is padding."""
        size = self.layout.num_words * self.layout.total_rows * 4
        if not 0 <= byte < size:
            raise ArgumentError(f"byte={byte}, but an expert's packed scale factors have bytes 0 to {size - 1}.")
        atom, in_atom = divmod(byte, ATOM_BYTES)
        word, tile = divmod(atom, self.layout.total_rows // ATOM_ROWS)
        return self._at(tile, in_atom // 16 + in_atom % 16 // 4 * _LANES, word * ATOM_GROUPS + in_atom % 4)

    def at_shared(self, tile: int, k_stage: int, byte: int) -> SfPlace | None:
        """Return the scale factor at a byte of a stage's in shared memory, or None where it is padding."""
        size = self.words_per_stage * ATOM_BYTES
        if not 0 <= byte < size:
            raise ArgumentError(f"byte={byte}, but a stage's scale factors of 128 rows have bytes 0 to {size - 1}.")
        word, in_atom = divmod(byte, ATOM_BYTES)
        group = (k_stage * self.words_per_stage + word) * ATOM_GROUPS + in_atom % 4
        return self._at(tile, in_atom // 16 + in_atom % 16 // 4 * _LANES, group)

    def at_tensor(self, tile: int, k_stage: int, lane: int, column: int, byte: int) -> SfPlace | None:
        """Return the scale factor at (lane, column, byte) of tensor memory, or None where it is padding."""
        columns = 4 * self.words_per_stage
        if not (0 <= lane < 128 and 0 <= column < columns and 0 <= byte < 4):
            raise ArgumentError(
                f"lane={lane}, column={column}, byte={byte}, but lanes are 0 to 127, columns 0 to {columns - 1} and "
                "bytes 0 to 3."
            )
        word, block = divmod(column, 4)
        group = (k_stage * self.words_per_stage + word) * ATOM_GROUPS + byte
        return self._at(tile, lane % _LANES + block * _LANES, group)

    def _at(self, tile: int, in_tile: int, group: int) -> SfPlace | None:
        row = self.checkpoint_row(tile * ATOM_ROWS + in_tile)
        return None if row is None or group >= self.layout.groups else self.of(row, group)

    def checkpoint_row(self, packed_row: int) -> int | None:
        """Return the checkpoint's row at a packed row, or None where it is padding."""
        layout = self.layout
        if packed_row >= layout.total_rows:
            raise ArgumentError(f"tile {packed_row // ATOM_ROWS}, but there are {layout.total_rows // ATOM_ROWS}.")
        if layout.branches == 1:
            return packed_row if packed_row < layout.rows else None
        turn, in_turn = divmod(packed_row, 16)
        row = turn * 8 + in_turn % 8
        return in_turn // 8 * layout.rows + row if row < layout.rows else None
