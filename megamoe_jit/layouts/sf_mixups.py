"""Layouts of packed scale factors that are easily taken for Blackwell's: what a checker offers as explanations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from megamoe_jit.layouts.scales import ATOM_BYTES, ATOM_GROUPS, ATOM_ROWS
from megamoe_jit.layouts.weights_sm100 import Sm100WeightLayout

Place = Callable[[Tensor, Tensor], Tensor]


def sf_mixups(layout: Sm100WeightLayout) -> dict[str, Place]:
    """Return byte(row, group) of each of them by name, for the checkpoint rows and groups of `layout`."""
    tiles, words = layout.total_rows // ATOM_ROWS, layout.num_words

    def in_atom(packed_row: Tensor, group: Tensor) -> Tensor:
        r = packed_row % ATOM_ROWS
        return r % 32 * 16 + r // 32 * 4 + group % ATOM_GROUPS

    def atoms(packed_row: Tensor, group: Tensor) -> Tensor:
        return (group // ATOM_GROUPS * tiles + packed_row // ATOM_ROWS) * ATOM_BYTES

    def natural(packed_row: Tensor, group: Tensor) -> Tensor:
        return packed_row % ATOM_ROWS * 4 + group % ATOM_GROUPS

    def apart(row: Tensor) -> Tensor:
        """Gate rows, then up rows, each padded."""
        return row // layout.rows * layout.padded_rows + row % layout.rows

    packed = layout.packed_row
    return {
        "rows in natural order inside each atom (no UTCCP order)": lambda r, g: (
            atoms(packed(r), g) + natural(packed(r), g)
        ),
        "gate rows before up rows (no interleaving)": lambda r, g: atoms(apart(r), g) + in_atom(apart(r), g),
        "gate rows before up rows in natural order": lambda r, g: atoms(apart(r), g) + natural(apart(r), g),
        "cuBLAS's blocked order (K atoms of a row block next to one another)": lambda r, g: (
            (packed(r) // ATOM_ROWS * words + g // ATOM_GROUPS) * ATOM_BYTES + in_atom(packed(r), g)
        ),
        "rows of bytes (K-major, as in the checkpoint)": lambda r, g: packed(r) * (words * ATOM_GROUPS) + g,
        "groups of a word in reverse order": lambda r, g: (
            atoms(packed(r), g) + in_atom(packed(r), g) + 3 - 2 * (g % ATOM_GROUPS)
        ),
    }
