"""Order of L1's gate and up rows in Blackwell's weights, and zero padding.

The checkpoint has all gate rows and then all up rows. The kernels want the gate and the up row of one intermediate
value in one tile, close enough for one thread to hold both, so both come in turns of `granule` = 8 rows:

    checkpoint   g0 g1 ... g(I-1)  u0 u1 ... u(I-1)
    interleaved  g0..g7  u0..u7  g8..g15  u8..u15  ...

Padding is put at the end of gate and of up each, before interleaving.
"""

from __future__ import annotations

import torch

from megamoe_jit.errors import ArgumentError

GRANULE = 8


def interleaved_row(row: torch.Tensor, intermediate: int, *, granule: int = GRANULE) -> torch.Tensor:
    """Return where checkpoint row(s) `row` of [gate; up], `intermediate` rows each, lie after interleaving."""
    branch, i = row // intermediate, row % intermediate
    return 2 * granule * (i // granule) + granule * branch + i % granule


def interleave_gate_up(rows: torch.Tensor, *, granule: int = GRANULE) -> torch.Tensor:
    """Return a copy of `rows` [..., 2I, X] with gate and up rows in turns of `granule`; I is a multiple of it."""
    intermediate = _intermediate(rows, granule)
    lead, width = rows.shape[:-2], rows.shape[-1]
    turns = rows.reshape(*lead, 2, intermediate // granule, granule, width)
    return turns.transpose(-4, -3).reshape(*lead, 2 * intermediate, width)


def deinterleave_gate_up(rows: torch.Tensor, *, granule: int = GRANULE) -> torch.Tensor:
    """Return a copy of `rows` [..., 2I, X] with all gate rows first: the inverse of `interleave_gate_up`."""
    intermediate = _intermediate(rows, granule)
    lead, width = rows.shape[:-2], rows.shape[-1]
    turns = rows.reshape(*lead, intermediate // granule, 2, granule, width)
    return turns.transpose(-4, -3).reshape(*lead, 2 * intermediate, width)


def pad_branches(rows: torch.Tensor, *, branches: int, padded_rows: int, padded_width: int) -> torch.Tensor:
    """Return `rows` [..., branches * R, X] with zeros up to [..., branches * padded_rows, padded_width].

    Each branch (gate, up) is padded on its own. Returns `rows` itself where nothing is to be padded.
    """
    count, width = rows.shape[-2] // branches, rows.shape[-1]
    if (count, width) == (padded_rows, padded_width):
        return rows
    lead = rows.shape[:-2]
    padded = rows.new_zeros(*lead, branches, padded_rows, padded_width)
    padded[..., :count, :width] = rows.reshape(*lead, branches, count, width)
    return padded.reshape(*lead, branches * padded_rows, padded_width)


def crop_branches(rows: torch.Tensor, *, branches: int, count: int, width: int) -> torch.Tensor:
    """Return `rows` without the padding: the inverse of `pad_branches`; `rows` itself where there is none."""
    padded_rows = rows.shape[-2] // branches
    if (padded_rows, rows.shape[-1]) == (count, width):
        return rows
    lead = rows.shape[:-2]
    cropped = rows.reshape(*lead, branches, padded_rows, rows.shape[-1])[..., :count, :width]
    return cropped.reshape(*lead, branches * count, width)


def _intermediate(rows: torch.Tensor, granule: int) -> int:
    if rows.ndim < 2 or rows.shape[-2] % (2 * granule):
        raise ArgumentError(
            f"rows has shape {list(rows.shape)}; interleaving takes [..., 2 x intermediate, width] with intermediate a "
            f"multiple of {granule}. Pad gate and up each with pad_branches(...) first."
        )
    return rows.shape[-2] // 2
