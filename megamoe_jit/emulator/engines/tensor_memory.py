"""Which cells of tensor memory instructions touch: accumulators, scale factors, loads and stores, copies.

A cell is a word at (lane 0..127, column 0..511). PTX ISA, "Data Path Layout Organization", "Block Scaling",
"Data Movement Shape", "tcgen05.cp".
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from megamoe_jit.emulator.engines.numerics.formats import Array

LANES = 128
QUARTER = 32
"""Lanes that one warp of a warpgroup reaches."""


def split_address(address: int) -> tuple[int, int]:
    """Return (lane, column) of a tensor-memory address."""
    return address >> 16 & 0xFFFF, address & 0xFFFF


@dataclass(frozen=True, slots=True)
class AccumulatorLayout:
    """Where a CTA's share of D lies, by the PTX ISA's letters.

    Attributes:
        letter: "A", "B", "D", "E", "F" or "G".
        rows: of the CTA's share.
        columns: N of the instruction.
    """

    letter: str
    rows: int
    columns: int

    @property
    def width(self) -> int:
        """Columns of tensor memory."""
        return self.columns // {"B": 2, "E": 2, "G": 4}.get(self.letter, 1)

    @property
    def may_start_at_lane_16(self) -> bool:
        """Whether the base lane may be 16: half of each quarter is used."""
        return self.letter == "F"

    def lanes(self, base_lane: int = 0) -> Array:
        """Lanes that are touched, ascending."""
        if self.letter == "F":
            row = np.arange(self.rows)
            return 32 * (row // 16) + row % 16 + base_lane
        return np.arange(LANES)

    def to_matrix(self, cells: Array) -> Array:
        """Arrange cells [lanes, width] as [rows, columns]."""
        parts = self.columns // self.width
        if parts == 1:
            return cells
        return cells.reshape(parts, self.rows, self.width).transpose(1, 0, 2).reshape(self.rows, self.columns)

    def to_cells(self, matrix: Array) -> Array:
        """Arrange a matrix [rows, columns] as cells [lanes, width]."""
        parts = self.columns // self.width
        if parts == 1:
            return matrix
        return matrix.reshape(self.rows, parts, self.width).transpose(1, 0, 2).reshape(-1, self.width)


def accumulator_layout(m: int, n: int, *, cta_group: int, ws: bool) -> AccumulatorLayout:
    """Return the layout of a CTA's share of a dense D of shape m x n."""
    if cta_group == 2:
        return AccumulatorLayout("A", 128, n) if m == 256 else AccumulatorLayout("B", 64, n)
    if ws:
        return {
            128: AccumulatorLayout("D", 128, n),
            64: AccumulatorLayout("E", 64, n),
            32: AccumulatorLayout("G", 32, n),
        }[m]
    return AccumulatorLayout("D", 128, n) if m == 128 else AccumulatorLayout("F", 64, n)


def scale_columns(rows: int, *, split_halves: bool = False) -> int:
    """Columns that the scale factors of `rows` rows take for one word along K."""
    return -(-(rows // 2 if split_halves else rows) // QUARTER)


def read_scales(
    words: Array, column: int, rows: int, first: int, count: int, *, split_halves: bool = False
) -> tuple[Array, str | None]:
    """Read scale factors of an operand.

    The row r of an operand has its word in lane r % 32 of all four quarters, column `column + r / 32`. With
    `split_halves` (B of a pair of CTAs that computes 128 rows) the two halves of the rows lie in lanes 0..63 and
    64..127, twice each.

    Args:
        words: [128, 512] uint32.
        column: of the operand's first word.
        rows: of the operand.
        first: byte of the first scale in the word (the descriptor's id).
        count: scales of a row; more than a word holds continue in the next word, 4 columns on up to 128 rows, else 8.
        split_halves: see above.

    Returns:
        [rows, count] uint8, and what is wrong: quarters that differ.
    """
    width = scale_columns(rows, split_halves=split_halves)
    next_word = 4 if rows <= 128 else 8
    num_words = -(-(first + count) // 4)
    blocks = [
        np.ascontiguousarray(words[:, column + next_word * word : column + next_word * word + width]).view(np.uint8)
        for word in range(num_words)
    ]
    # [quarter, lane, column, byte over all words]
    data = np.concatenate([block.reshape(4, QUARTER, width, 4) for block in blocks], axis=3)
    data = data[..., first : first + count]
    problem = None
    if split_halves:
        half = rows // 2
        by_row = data.transpose(0, 2, 1, 3).reshape(4, width * QUARTER, count)[:, :half]
        for low, high in ((0, 1), (2, 3)):
            problem = problem or _replica_problem(by_row[low : high + 1], (low, high), column)
        return np.concatenate([by_row[0], by_row[2]]), problem
    by_row = data.transpose(0, 2, 1, 3).reshape(4, width * QUARTER, count)[:, :rows]
    return by_row[0], _replica_problem(by_row, (0, 1, 2, 3), column)


def _replica_problem(copies: Array, quarters: tuple[int, ...], column: int) -> str | None:
    """Say which copy of the scales differs from the first, if one does."""
    if (copies[1:] == copies[:1]).all():
        return None
    copy, row, scale = (int(found[0]) for found in np.nonzero(copies != copies[:1]))
    lane, at = row % QUARTER, column + row // QUARTER
    return (
        f"scale {scale} of row {row} (column {at}) is {copies[0, row, scale]:#04x} in lane {32 * quarters[0] + lane}, "
        f"but {copies[copy, row, scale]:#04x} in lane {32 * quarters[copy] + lane}: all of these quarters must hold "
        f"it, as tcgen05.cp with .warpx4 (.warpx2) leaves it"
    )


# --- loads and stores -----------------------------------------------------------------------------------------------

REGISTERS = {"32x32b": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4, "16x32bx2": 1}
"""Registers of a thread for `.x1`."""
MAX_REGISTERS = 128


@functools.lru_cache(maxsize=128)
def transfer_cells(shape: str, registers: int, split: int = 0) -> tuple[Array, Array]:
    """Lanes and columns, from the address's, that each register of each thread stands for: [registers, 32] each."""
    r, t = np.arange(registers)[:, None], np.arange(QUARTER)[None]
    if shape == "32x32b":
        lane, column = t + 0 * r, r + 0 * t
    elif shape == "16x64b":
        lane, column = t // 4 + 8 * (t % 2) + 0 * r, 2 * r + t % 4 // 2
    elif shape == "16x128b":
        lane, column = t // 4 + 8 * (r % 2), 4 * (r // 2) + t % 4
    elif shape == "16x256b":
        lane, column = t // 4 + 8 * (r // 2 % 2), 8 * (r // 4) + 2 * (t % 4) + r % 2
    else:
        lane, column = t % 16 + 0 * r, r + t // 16 * split
    return lane, column


def load_cells(
    words: Array, lane: int, column: int, shape: str, registers: int, *, split: int = 0, pack: bool = False
) -> Array:
    """Read registers [registers, 32]; `pack` joins the low halves of two columns, the lower column in the low half."""
    lanes, columns = transfer_cells(shape, registers, split)
    lanes, columns = lane + lanes, column + columns
    values: Array
    if pack:
        columns = columns + transfer_cells(shape, registers, 0)[1]
        values = words[lanes, columns] & 0xFFFF | words[lanes, columns + 1] << 16
    else:
        values = words[lanes, columns]
    return values


def store_cells(
    words: Array,
    lane: int,
    column: int,
    shape: str,
    values: Array,
    *,
    split: int = 0,
    unpack: bool = False,
    threads: Array | None = None,
) -> None:
    """Write registers [registers, 32]; `unpack` spreads the halves of each over two columns."""
    lanes, columns = transfer_cells(shape, values.shape[0], split)
    lanes, columns = lane + lanes, column + columns
    if unpack:
        columns = columns + transfer_cells(shape, values.shape[0], 0)[1]
    if threads is not None:
        lanes, columns, values = lanes[:, threads], columns[:, threads], values[:, threads]
    if not unpack:
        words[lanes, columns] = values
        return
    words[lanes, columns] = values & 0xFFFF
    words[lanes, columns + 1] = values >> 16


def transfer_span(shape: str, registers: int, *, split: int = 0, wide: bool = False) -> tuple[int, int]:
    """Return (lanes, columns) from the base that a load or store reaches; `wide` with .pack::16b or .unpack::16b."""
    lanes, columns = transfer_cells(shape, registers, split)
    extra = int(transfer_cells(shape, registers, 0)[1].max()) + 1 if wide else 0
    return int(lanes.max()) + 1, int(columns.max()) + 1 + extra


# --- copies from shared memory --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CopyShape:
    """A shape of tcgen05.cp: rows of shared memory and the lanes that they go to.

    Attributes:
        rows: in shared memory.
        row_bytes: 16 or 32.
        lanes: [copies, rows]: lane of each row, from the address's, for each of its copies.
    """

    rows: int
    row_bytes: int
    lanes: Array

    @property
    def columns(self) -> int:
        """Columns of tensor memory that a row takes."""
        return self.row_bytes // 4


@functools.cache
def copy_shape(name: str) -> CopyShape:
    """Return the shape called `name`, with its multicast: "32x128b.warpx4"."""
    row = np.arange(LANES)
    lanes: dict[str, tuple[int, int, Array]] = {
        "128x256b": (128, 32, row[None]),
        "128x128b": (128, 16, row[None]),
        "4x256b": (4, 32, QUARTER * row[None, :4]),
        "64x128b.warpx2::02_13": (64, 16, np.stack([row[:64], row[:64] + 64])),
        "64x128b.warpx2::01_23": (64, 16, np.stack([row[:64] + 32 * (row[:64] // 32 + k) for k in range(2)])),
        "32x128b.warpx4": (32, 16, np.stack([row[:32] + 32 * k for k in range(4)])),
    }
    rows, row_bytes, where = lanes[name]
    return CopyShape(rows, row_bytes, where)


def widen(data: Array, bits: int) -> Array:
    """Decompress groups of 16 elements of 4 or 6 bits (padded to 16 bytes) to a byte each, in place of the group.

    The byte holds 4 bits at 5:2 and 6 bits at 5:0, as operands in tensor memory want them.
    """
    from megamoe_jit.emulator.engines.operands import padded

    codes = padded(data, bits)
    return codes << 2 if bits == 4 else codes
