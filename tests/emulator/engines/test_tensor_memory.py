"""Cells of tensor memory: accumulators, scale factors, loads and stores, copies; element by element."""

from __future__ import annotations

import numpy as np
import pytest

from megamoe_jit.emulator.engines import tensor_memory as tm
from megamoe_jit.emulator.engines.operands import padded


def d_cell(letter: str, m: int, n: int, columns: int) -> tuple[int, int]:
    """The manual's table of layouts: lane and column of D[m, n] of a CTA's share."""
    half, quarter = columns // 2, columns // 4
    return {
        "A": (m, n),
        "D": (m, n),
        "B": (m + 64 * (n >= half), n % half),
        "E": (m + 64 * (n >= half), n % half),
        "F": (32 * (m // 16) + m % 16, n),
        "G": (m + 32 * (n // quarter), n % quarter),
    }[letter]


@pytest.mark.parametrize(
    ("m", "group", "ws", "letter", "rows"),
    [
        (256, 2, False, "A", 128),
        (128, 2, False, "B", 64),
        (128, 1, False, "D", 128),
        (128, 1, True, "D", 128),
        (64, 1, True, "E", 64),
        (64, 1, False, "F", 64),
        (32, 1, True, "G", 32),
    ],
)
def test_accumulator_layouts(m: int, group: int, ws: bool, letter: str, rows: int) -> None:
    columns = 64
    layout = tm.accumulator_layout(m, columns, cta_group=group, ws=ws)
    assert (layout.letter, layout.rows, layout.columns) == (letter, rows, columns)
    lanes = layout.lanes()
    matrix = np.arange(rows * columns).reshape(rows, columns)
    cells = np.full((128, layout.width), -1)
    cells[lanes] = layout.to_cells(matrix)
    for row in range(rows):
        for column in range(columns):
            assert cells[d_cell(letter, row, column, columns)] == matrix[row, column]
    assert (cells != -1).sum() == rows * columns
    assert np.array_equal(layout.to_matrix(cells[lanes]), matrix)
    if letter == "F":
        assert np.array_equal(layout.lanes(16), lanes + 16)
    assert layout.may_start_at_lane_16 == (letter == "F")


def ld_cell(shape: str, t: int, r: int, split: int) -> tuple[int, int]:
    return {
        "32x32b": (t, r),
        "16x64b": (t // 4 + 8 * (t % 2), 2 * r + (t % 4) // 2),
        "16x128b": (t // 4 + 8 * (r % 2), 4 * (r // 2) + t % 4),
        "16x256b": (t // 4 + 8 * ((r // 2) % 2), 8 * (r // 4) + 2 * (t % 4) + r % 2),
        "16x32bx2": (t % 16, r + (t // 16) * split),
    }[shape]


@pytest.mark.parametrize("num", [1, 2, 4, 32])
@pytest.mark.parametrize("shape", sorted(tm.REGISTERS))
def test_load_and_store_maps(shape: str, num: int) -> None:
    registers, split = tm.REGISTERS[shape] * num, 40
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 32, (128, 512), dtype=np.uint32)
    lane, column = 64, 100
    used_split = split if shape == "16x32bx2" else 0
    got = tm.load_cells(words, lane, column, shape, registers, split=used_split)
    places = set()
    for r in range(registers):
        for t in range(32):
            dl, dc = ld_cell(shape, t, r, split)
            assert got[r, t] == words[lane + dl, column + dc]
            places.add((dl, dc))
    assert len(places) == registers * 32, "no cell belongs to two registers"
    height, width = tm.transfer_span(shape, registers, split=used_split)
    assert (height, width) == (max(dl for dl, _ in places) + 1, max(dc for _, dc in places) + 1)
    if shape != "16x32bx2":
        assert len(places) == height * width, "the block is filled"
    fresh = np.zeros_like(words)
    tm.store_cells(fresh, lane, column, shape, got, split=used_split)
    assert np.array_equal(tm.load_cells(fresh, lane, column, shape, registers, split=used_split), got)
    assert (fresh != 0).sum() <= len(places)


@pytest.mark.parametrize("shape", sorted(tm.REGISTERS))
def test_pack_and_unpack(shape: str) -> None:
    """A register of the packed form stands for columns 2c and 2c + 1 where the plain one stands for c."""
    registers, split = tm.REGISTERS[shape] * 2, 64 if shape == "16x32bx2" else 0
    rng = np.random.default_rng(1)
    words = rng.integers(0, 1 << 32, (128, 512), dtype=np.uint32)
    got = tm.load_cells(words, 32, 8, shape, registers, split=split, pack=True)
    for r in range(registers):
        for t in range(32):
            dl, dc = ld_cell(shape, t, r, 0)
            first = 8 + 2 * dc + (split if split and t >= 16 else 0)
            assert got[r, t] == (int(words[32 + dl, first]) & 0xFFFF | (int(words[32 + dl, first + 1]) & 0xFFFF) << 16)
    fresh = np.zeros_like(words)
    tm.store_cells(fresh, 32, 8, shape, got, split=split, unpack=True)
    assert np.array_equal(tm.load_cells(fresh, 32, 8, shape, registers, split=split, pack=True), got)
    assert fresh.max() <= 0xFFFF
    columns = np.flatnonzero(fresh.any(axis=0))
    assert columns.max() - 8 + 1 == tm.transfer_span(shape, registers, split=split, wide=True)[1]


def test_store_leaves_other_threads_cells_alone() -> None:
    words = np.zeros((128, 512), np.uint32)
    tm.store_cells(words, 0, 0, "32x32b", np.ones((2, 32), np.uint32), threads=np.array([0, 5]))
    assert np.argwhere(words).tolist() == [[0, 0], [0, 1], [5, 0], [5, 1]]


@pytest.mark.parametrize(
    ("name", "rows", "row_bytes", "where"),
    [
        ("128x256b", 128, 32, lambda row: [row]),
        ("128x128b", 128, 16, lambda row: [row]),
        ("4x256b", 4, 32, lambda row: [32 * row]),
        ("64x128b.warpx2::02_13", 64, 16, lambda row: [row, row + 64]),
        ("64x128b.warpx2::01_23", 64, 16, lambda row: [row % 32 + 64 * (row // 32), row % 32 + 64 * (row // 32) + 32]),
        ("32x128b.warpx4", 32, 16, lambda row: [row, row + 32, row + 64, row + 96]),
    ],
)
def test_copy_shapes(name: str, rows: int, row_bytes: int, where: object) -> None:
    shape = tm.copy_shape(name)
    assert (shape.rows, shape.row_bytes, shape.columns) == (rows, row_bytes, row_bytes // 4)
    for row in range(rows):
        assert shape.lanes[:, row].tolist() == where(row)  # type: ignore[operator]


def copy_atom(words: np.ndarray, column: int, atom: np.ndarray, name: str = "32x128b.warpx4") -> None:
    """What tcgen05.cp does with rows of 16 contiguous bytes."""
    shape = tm.copy_shape(name)
    data = atom.reshape(shape.rows, 16).view(np.uint32)
    for lanes in shape.lanes:
        words[lanes, column : column + shape.columns] = data


def atom_offset(r: int, s: int) -> int:
    """Byte of scale s (0..3) of row r (0..127) in a 512-byte atom."""
    return (r % 32) * 16 + (r // 32) * 4 + s


def test_worked_example_nvfp4() -> None:
    """128 rows, K = 256: 16 scales a row, four atoms, four MMAs of K = 64 at base + 4 i."""
    rng = np.random.default_rng(9)
    scales = rng.integers(0, 127, (128, 16)).astype(np.uint8)
    smem = np.zeros(2048, np.uint8)
    for r in range(128):
        for s in range(16):
            smem[(s // 4) * 512 + atom_offset(r, s % 4)] = scales[r, s]
    for r, s, byte in ((0, 0, 0), (37, 0, 84), (37, 5, 597), (64, 8, 1032), (127, 15, 2047)):
        assert smem[byte] == scales[r, s]
    words = np.zeros((128, 512), np.uint32)
    base = 64
    for atom in range(4):
        copy_atom(words, base + 4 * atom, smem[512 * atom : 512 * atom + 512])
    data = words.view(np.uint8).reshape(128, 512, 4)
    for r, s, lane, column, byte in ((37, 5, 5, 5, 1), (64, 8, 0, 10, 0), (127, 15, 31, 15, 3)):
        assert data[lane, base + column, byte] == scales[r, s]
    for step in range(4):
        got, problem = tm.read_scales(words, base + 4 * step, 128, 0, 4)
        assert problem is None
        assert np.array_equal(got, scales[:, 4 * step : 4 * step + 4])


def test_worked_example_mxfp8() -> None:
    """128 rows, K = 128: one atom, the SF id is the MMA's index."""
    rng = np.random.default_rng(10)
    scales = rng.integers(0, 256, (128, 4)).astype(np.uint8)
    smem = np.zeros(512, np.uint8)
    for r in range(128):
        for s in range(4):
            smem[atom_offset(r, s)] = scales[r, s]
    for r, s, byte in ((0, 0, 0), (37, 1, 85), (127, 3, 511)):
        assert smem[byte] == scales[r, s]
    words = np.zeros((128, 512), np.uint32)
    copy_atom(words, 0, smem)
    for step in range(4):
        got, problem = tm.read_scales(words, 0, 128, step, 1)
        assert problem is None
        assert np.array_equal(got[:, 0], scales[:, step])


def test_two_row_blocks_are_four_columns_apart() -> None:
    rng = np.random.default_rng(11)
    scales = rng.integers(0, 256, (256, 4)).astype(np.uint8)
    words = np.zeros((128, 512), np.uint32)
    for block in range(2):
        atom = np.zeros(512, np.uint8)
        for r in range(128):
            for s in range(4):
                atom[atom_offset(r, s)] = scales[128 * block + r, s]
        copy_atom(words, 32 + 4 * block, atom)
    got, problem = tm.read_scales(words, 32, 256, 2, 2)
    assert problem is None
    assert np.array_equal(got, scales[:, 2:])
    got, _ = tm.read_scales(words, 32, 72, 0, 4)
    assert np.array_equal(got, scales[:72])


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_quarter_that_differs_is_named(quarter: int) -> None:
    words = np.zeros((128, 512), np.uint32)
    words[32 * quarter + 5, 17] = 0x00AB0000
    _, problem = tm.read_scales(words, 16, 64, 0, 4)
    assert problem is not None
    assert f"lane {32 * quarter + 5}" in problem
    assert "scale 2 of row 37 (column 17)" in problem
    assert "0xab" in problem
    assert tm.read_scales(words, 16, 64, 0, 2)[1] is None, "only the scales that are read count"
    assert tm.read_scales(words, 16, 32, 0, 4)[1] is None


def test_halves_of_a_pair_that_computes_128_rows() -> None:
    rng = np.random.default_rng(12)
    scales = rng.integers(0, 256, (256, 4)).astype(np.uint8)
    words = np.zeros((128, 512), np.uint32)
    for n in range(256):
        half, rest = divmod(n, 128)
        for copy in range(2):
            words[64 * half + 32 * copy + rest % 32, 8 + rest // 32] = scales[n].view(np.uint32)[0]
    got, problem = tm.read_scales(words, 8, 256, 0, 4, split_halves=True)
    assert problem is None
    assert np.array_equal(got, scales)
    words[64 + 32 + 3, 8] ^= 1
    assert "lane 99" in str(tm.read_scales(words, 8, 256, 0, 4, split_halves=True)[1])
    # filled from two adjacent atoms of 32 rows
    fresh = np.zeros((128, 512), np.uint32)
    rows = rng.integers(0, 256, (64, 16)).astype(np.uint8)
    copy_atom(fresh, 0, rows, "64x128b.warpx2::01_23")
    got, problem = tm.read_scales(fresh, 0, 256, 0, 4, split_halves=True)
    assert problem is None
    for n in range(256):
        half, rest = divmod(n, 128)
        assert np.array_equal(got[n], rows[32 * half + rest % 32, 4 * (rest // 32) : 4 * (rest // 32) + 4])


@pytest.mark.parametrize(("rows", "stride"), [(128, 4), (256, 8), (192, 8)])
def test_scales_of_k96_continue_in_the_next_word(rows: int, stride: int) -> None:
    rng = np.random.default_rng(13)
    scales = rng.integers(0, 256, (rows, 8)).astype(np.uint8)
    words = np.zeros((128, 512), np.uint32)
    for r in range(rows):
        for word in range(2):
            for quarter in range(4):
                value = scales[r, 4 * word : 4 * word + 4].view(np.uint32)[0]
                words[32 * quarter + r % 32, stride * word + r // 32] = value
    for first, count in ((0, 6), (2, 6), (3, 3), (1, 3)):
        got, problem = tm.read_scales(words, 0, rows, first, count)
        assert problem is None
        assert np.array_equal(got, scales[:, first : first + count])


def test_widening_groups() -> None:
    data = np.arange(64, dtype=np.uint8).reshape(2, 32)
    assert np.array_equal(tm.widen(data, 4), padded(data, 4) << 2)
    assert np.array_equal(tm.widen(data, 6), padded(data, 6))
