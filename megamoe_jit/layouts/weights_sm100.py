"""FP4 weights of the Blackwell kernels: codes K-major for TMA, scale factors as UTCCP atoms.

    codes  uint8 [E, rows, K/2]             rows interleaved (L1: 8 gate rows, their 8 up rows, ...), even K low nibble
    sf     int32 [E, rows, K/(4 gran_k)]    MN-major words in UTCCP order: for each word along K and each 128 rows, one
                                            512-byte atom; strides (rows * words, 1, rows)

Both are one relocatable run of bytes for each expert. See interleave.py and scales.py for the pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.layouts.interleave import GRANULE, interleaved_row
from megamoe_jit.layouts.scales import ATOM_GROUPS, ATOM_ROWS, utccp_place
from megamoe_jit.layouts.struct import round_up

PAIR_ROWS = 2 * ATOM_ROWS  # rows of a CTA pair's tile
K_MULTIPLE = 128  # one SF word of gran_k 32, two of gran_k 16; half a 256-element TMA box is filled with zeros


@dataclass(frozen=True, kw_only=True, slots=True)
class Sm100WeightLayout:
    """One layer's layout: `rows` outputs a branch (intermediate for L1, hidden for L2) and `k` inputs.

    branches is 2 for a gated L1 (gate rows, then up rows, in the checkpoint), else 1. The rows of all branches together
    are padded to a multiple of 256, K to `k_multiple`, with zero codes and zero scale bytes.
    """

    rows: int
    k: int
    gran_k: int
    branches: int = 1
    k_multiple: int = K_MULTIPLE

    def __post_init__(self) -> None:
        """Refuse sizes that have no layout."""
        if self.gran_k not in (16, 32):
            raise ArgumentError(f"gran_k={self.gran_k} is no FP4 block size. Use 16 (NVFP4) or 32 (MXFP4).")
        if self.rows < 1 or self.k < 1 or self.k % 16:
            raise ArgumentError(
                f"a layer of {self.rows} rows and K={self.k} was given; rows must be positive and K a positive "
                "multiple of 16. Pad K with zero codes."
            )
        if self.branches not in (1, 2):
            raise ArgumentError(f"branches={self.branches} was given; use 2 for gate and up rows, 1 otherwise.")
        if self.k_multiple < K_MULTIPLE or self.k_multiple % K_MULTIPLE:
            raise ArgumentError(
                f"k_multiple={self.k_multiple} is no positive multiple of {K_MULTIPLE}. Use {K_MULTIPLE}."
            )

    @property
    def checkpoint_rows(self) -> int:
        """Rows of the checkpoint's tensor: all branches."""
        return self.rows * self.branches

    @property
    def padded_rows(self) -> int:
        """Rows of one branch after padding."""
        return round_up(self.rows, PAIR_ROWS // self.branches)

    @property
    def total_rows(self) -> int:
        """Rows of the packed tensors."""
        return self.padded_rows * self.branches

    @property
    def padded_k(self) -> int:
        """K after padding."""
        return round_up(self.k, self.k_multiple)

    @property
    def groups(self) -> int:
        """Block scales along K of one checkpoint row; the last may cover fewer than gran_k values."""
        return -(-self.k // self.gran_k)

    @property
    def num_words(self) -> int:
        """SF words along K of one row."""
        return self.padded_k // (self.gran_k * ATOM_GROUPS)

    def pack(self, codes: torch.Tensor, sf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (codes, sf) in this layout of checkpoint weights; nothing is rounded.

        codes: uint8 [E, checkpoint_rows, K/2], even K in the low nibble. sf: uint8 (or float8) [E, checkpoint_rows,
        ceil(K/gran_k)]. Where nothing is to be padded or interleaved, the codes are returned as they are (one storage).
        Raises ArgumentError for other shapes and dtypes.
        """
        sf = sf.view(torch.uint8) if sf.element_size() == 1 else sf
        self._check("codes", codes, torch.uint8, (self.checkpoint_rows, self.k // 2))
        self._check("sf", sf, torch.uint8, (self.checkpoint_rows, self.groups))
        num_experts = codes.shape[0]
        if sf.shape[0] != num_experts or sf.device != codes.device:
            raise ArgumentError(
                f"codes hold {num_experts} experts on {codes.device}, sf {sf.shape[0]} on {sf.device}, and both must "
                "agree. Move or slice one of them."
            )
        packed_sf = torch.empty(num_experts, self.num_words, self.total_rows, dtype=torch.int32, device=codes.device)
        padded_sf = codes.new_zeros(self.branches, self.padded_rows, self.num_words * ATOM_GROUPS)
        for expert in range(num_experts):
            padded_sf[:, : self.rows, : self.groups] = sf[expert].view(self.branches, self.rows, -1)
            words = self._in_turns(padded_sf.view(torch.int32)).reshape(self.total_rows // ATOM_ROWS, 4, 32, -1)
            packed_sf[expert].view(self.num_words, -1, 32, 4).copy_(words.permute(3, 0, 2, 1))
        return self._pack_codes(codes), packed_sf.transpose(1, 2)

    def unpack(self, codes: torch.Tensor, sf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes and the sf bytes (uint8) that `pack` got; shares the codes' storage where `pack` did."""
        self._check("codes", codes, torch.uint8, (self.total_rows, self.padded_k // 2))
        self._check("sf", sf, torch.int32, (self.total_rows, self.num_words))
        num_experts = codes.shape[0]
        plain_sf = codes.new_empty(num_experts, self.branches, self.rows, self.groups)
        for expert in range(num_experts):
            atoms = sf[expert].reshape(-1, 32, 4, self.num_words)
            words = self._in_branches(atoms.transpose(1, 2).reshape(self.total_rows, self.num_words))
            plain_sf[expert] = words.view(torch.uint8)[:, : self.rows, : self.groups]
        return self._unpack_codes(codes), plain_sf.flatten(1, 2)

    def code_position(self, row: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (byte of the expert's codes, its low bit 0 or 4) of the code at checkpoint (row, k)."""
        return self.packed_row(row) * (self.padded_k // 2) + k // 2, k % 2 * 4

    def scale_byte(self, row: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """Return where the scale of checkpoint (row, K group) lies, as a byte of the expert's scale factors."""
        place = utccp_place(self.packed_row(row))
        return (group // ATOM_GROUPS * self.total_rows + place) * 4 + group % ATOM_GROUPS

    def packed_row(self, row: torch.Tensor) -> torch.Tensor:
        """Return the row of the packed tensors that a checkpoint row lies in, before UTCCP order."""
        return interleaved_row(row, self.rows) if self.branches == 2 else row

    def _pack_codes(self, codes: torch.Tensor) -> torch.Tensor:
        if self.branches == 1 and codes.shape[1:] == (self.total_rows, self.padded_k // 2):
            return codes
        out = codes.new_empty(codes.shape[0], self.total_rows, self.padded_k // 2)
        padded = codes.new_zeros(self.branches, self.padded_rows, self.padded_k // 2)
        for expert in range(codes.shape[0]):
            padded[:, : self.rows, : self.k // 2] = codes[expert].view(self.branches, self.rows, -1)
            out[expert].view(-1, self.branches, GRANULE, self.padded_k // 2).copy_(self._in_turns(padded))
        return out

    def _unpack_codes(self, codes: torch.Tensor) -> torch.Tensor:
        if self.branches == 1 and (self.rows, self.k) == (self.padded_rows, self.padded_k):
            return codes
        plain = codes.new_empty(codes.shape[0], self.branches, self.rows, self.k // 2)
        for expert in range(codes.shape[0]):
            plain[expert] = self._in_branches(codes[expert])[:, : self.rows, : self.k // 2]
        return plain.flatten(1, 2)

    def _in_turns(self, branches: torch.Tensor) -> torch.Tensor:
        """Return a view [turn, branch, 8, X] of [branch, padded_rows, X]: its first three digits are the packed row."""
        return branches.view(self.branches, -1, GRANULE, branches.shape[-1]).transpose(0, 1)

    def _in_branches(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [branch, padded_rows, X] of packed rows [total_rows, X]."""
        turns = rows.reshape(-1, self.branches, GRANULE, rows.shape[-1]).transpose(0, 1)
        return turns.reshape(self.branches, self.padded_rows, rows.shape[-1])

    def _check(self, name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        if tensor.dtype != dtype or tuple(tensor.shape[1:]) != shape or tensor.ndim != 1 + len(shape):
            raise ArgumentError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, and this layout (rows={self.rows}, K={self.k}, "
                f"gran_k={self.gran_k}, branches={self.branches}) takes {dtype} [num_experts, {shape[0]}, {shape[1]}]. "
                "Pass the tensor that belongs to the layout."
            )


def sm100_layouts(
    *, hidden: int, intermediate: int, gated: bool, gran_k: int
) -> tuple[Sm100WeightLayout, Sm100WeightLayout]:
    """Return the layouts of L1 and L2; L2's K is padded as L1's outputs are."""
    l1 = Sm100WeightLayout(rows=intermediate, k=hidden, gran_k=gran_k, branches=2 if gated else 1)
    k_multiple = PAIR_ROWS // l1.branches
    return l1, Sm100WeightLayout(rows=hidden, k=intermediate, gran_k=gran_k, k_multiple=k_multiple)
