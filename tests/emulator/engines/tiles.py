"""Operands laid out in shared memory element by element, as the manual's formulas say; descriptors that name them."""

from __future__ import annotations

import numpy as np

WIDTH = {"none": 16, "32B": 32, "64B": 64, "128B": 128, "128B with 32B atom": 128}
_SM100 = {"none": 0, "128B with 32B atom": 1, "128B": 2, "64B": 4, "32B": 6}
_SM90 = {"none": 0, "128B": 1, "64B": 2, "32B": 3}


def exchange(swizzle: str, x: int) -> int:
    """The manual's table of swizzle functions."""
    return {
        "none": x,
        "32B": x ^ ((x >> 3) & 0x10),
        "64B": x ^ ((x >> 3) & 0x30),
        "128B": x ^ ((x >> 3) & 0x70),
        "128B with 32B atom": x ^ ((x >> 2) & 0x60),
    }[swizzle]


def sm100_descriptor(start: int, leading: int, stride: int, swizzle: str, *, absolute: bool = False) -> int:
    return (
        (start & 0x3FFFF) >> 4
        | (leading >> 4) << 16
        | (stride >> 4) << 32
        | 1 << 46
        | int(absolute) << 52
        | _SM100[swizzle] << 61
    )


def sm90_descriptor(start: int, leading: int, stride: int, swizzle: str) -> int:
    return (start & 0x3FFFF) >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | _SM90[swizzle] << 62


def strides(swizzle: str, mn_major: bool) -> tuple[int, int]:
    """A (leading, stride) that keeps tiles of up to 256 rows and 32 bytes of K apart."""
    if mn_major:
        return (2048, 128) if swizzle == "none" else (4096, 8 * WIDTH[swizzle] + 1024 - 1024 % 512)
    return (8192, 128) if swizzle == "none" else (0, 8 * WIDTH[swizzle])


def write_rows(smem: np.ndarray, start: int, rows: np.ndarray, swizzle: str) -> None:
    """Write bytes [rows, bytes along K] K-major; `strides(swizzle, False)`."""
    leading, stride = strides(swizzle, False)
    for r, row in enumerate(rows):
        for piece in range(rows.shape[1] // 16):
            along = piece * leading if swizzle == "none" else piece * 16
            place = start + r // 8 * stride + r % 8 * WIDTH[swizzle] + along
            place = exchange(swizzle, place)
            smem[place : place + 16] = row[16 * piece : 16 * piece + 16]


def write_columns(smem: np.ndarray, start: int, columns: np.ndarray, swizzle: str) -> None:
    """Write bytes [K, bytes along M or N] MN-major; `strides(swizzle, True)`."""
    leading, stride = strides(swizzle, True)
    width, atom = WIDTH[swizzle], 4 if swizzle == "128B with 32B atom" else 8
    for k, column in enumerate(columns):
        for piece in range(columns.shape[1] // 16):
            if swizzle == "none":
                place = start + k // 8 * leading + k % 8 * 16 + piece * stride
            else:
                along = 16 * piece
                place = start + along // width * leading + along % width + k // atom * stride + k % atom * width
            place = exchange(swizzle, place)
            smem[place : place + 16] = column[16 * piece : 16 * piece + 16]
