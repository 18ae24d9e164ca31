"""Where block scale factors lie for Blackwell's tensor cores: words, the UTCCP atom, and cuBLAS's blocked order.

A scale factor is one byte; one row has `groups` of them along K. Three steps from the checkpoint's [rows, groups]:

1. Words: 4 neighbours along K are one int32 (byte 0 = least K), and words are MN-major: the row is the fastest index,
   so that TMA fetches one word of 128 rows as 512 contiguous bytes. Rows are padded to a multiple of 4 (16 bytes, a
   TMA stride), groups to a multiple of 4.
2. UTCCP order: in each block of 128 rows, the word of row a * 32 + b goes to place b * 4 + a. The 512 bytes are then
   the atom that `tcgen05.cp.32x128b.warpx4` copies to tensor memory as it is:

       16-byte line b (of 32)   | row b     | row b + 32 | row b + 64 | row b + 96 |    each: 4 bytes = 4 groups along K
       tensor memory            lane b, column 0, 1, 2, 3 (of each of the four 32-lane quarters)

3. Blocked (cuBLAS's 128x4 order, `torch._scaled_mm`): the same atoms, but all atoms of one block of 128 rows before
   those of the next, so K atoms are the fastest:

       offset(row, group) = (row / 128 * words + group / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + group % 4

Sources: PTX ISA, tcgen05.cp and tcgen05.mma block scaling; cuBLAS, "1D block scaling factors layout"; DeepGEMM's
MN-major words. All functions move bytes and change none.
"""

from __future__ import annotations

import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.layouts.struct import round_up

ATOM_ROWS = 128
ATOM_GROUPS = 4
ATOM_BYTES = ATOM_ROWS * ATOM_GROUPS
WORD_ALIGN_ROWS = 4  # 16 bytes: TMA's unit of strides

_BYTE_DTYPES = (torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e8m0fnu)


def pack_sf_words(sf: torch.Tensor) -> torch.Tensor:
    """Return int32 [..., rows, ceil(groups / 4)], MN-major, of the scale bytes `sf` [..., rows, groups].

    Strides of the result are (..., 1, rows rounded up to 4): step 1 of the module's text. `sf` is uint8, int8,
    float8_e4m3fn or float8_e8m0fnu. Raises ArgumentError for other dtypes.
    """
    raw = _bytes(sf)
    rows, groups = raw.shape[-2:]
    words, aligned_rows = -(-groups // ATOM_GROUPS), round_up(rows, WORD_ALIGN_ROWS)
    if groups % ATOM_GROUPS:
        padded = raw.new_zeros(*raw.shape[:-1], words * ATOM_GROUPS)
        padded[..., :groups] = raw
        raw = padded
    out = torch.zeros(*raw.shape[:-2], words, aligned_rows, dtype=torch.int32, device=raw.device)
    out[..., :rows] = _as_words(raw).transpose(-1, -2)
    return out[..., :rows].transpose(-1, -2)


def unpack_sf_words(words: torch.Tensor, *, groups: int | None = None) -> torch.Tensor:
    """Return the scale bytes uint8 [..., rows, groups] of int32 `words` [..., rows, n] of any strides.

    `groups` defaults to 4 n; the inverse of `pack_sf_words`.
    """
    if words.dtype != torch.int32 or words.ndim < 2:
        raise ArgumentError(
            f"words is {words.dtype} {list(words.shape)}, and packed scale factors are torch.int32 [..., rows, words]. "
            "Pack bytes with pack_sf_words(...) first."
        )
    groups = ATOM_GROUPS * words.shape[-1] if groups is None else groups
    if -(-groups // ATOM_GROUPS) != words.shape[-1]:
        raise ArgumentError(
            f"groups={groups} need {-(-groups // ATOM_GROUPS)} words of four a row, but words has {words.shape[-1]}. "
            "Pass the number of scale factors of a row."
        )
    # clone, not contiguous(): for a single word a row the latter keeps a stride that cannot be viewed as bytes.
    raw = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return raw[..., :groups].contiguous()


def utccp_place(row: torch.Tensor) -> torch.Tensor:
    """Return where the word of `row` goes in UTCCP order (step 2)."""
    r = row % ATOM_ROWS
    return row - r + r % 32 * 4 + r // 32


def permute_sf_for_utccp(words: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
    """Return int32 words [..., rows, n] with rows in UTCCP order (or back), MN-major; rows is a multiple of 128."""
    if words.dtype != torch.int32 or words.ndim < 2 or words.shape[-2] % ATOM_ROWS:
        raise ArgumentError(
            f"words is {words.dtype} {list(words.shape)}; the UTCCP order takes torch.int32 [..., rows, words] with "
            f"rows a multiple of {ATOM_ROWS}. Pad the rows with zero bytes and pack them with pack_sf_words(...)."
        )
    *lead, rows, count = words.shape
    inner = (32, 4) if inverse else (4, 32)
    blocks = words.transpose(-1, -2).reshape(*lead, count, rows // ATOM_ROWS, *inner)
    return blocks.transpose(-1, -2).reshape(*lead, count, rows).transpose(-1, -2)


def blocked_offset(row: torch.Tensor, group: torch.Tensor, *, groups: int) -> torch.Tensor:
    """Return the byte offset of the scale of (row, group) in blocked order (step 3) of rows with `groups` scales."""
    atom = row // ATOM_ROWS * -(-groups // ATOM_GROUPS) + group // ATOM_GROUPS
    return atom * ATOM_BYTES + row % 32 * 16 + row % ATOM_ROWS // 32 * 4 + group % ATOM_GROUPS


def to_blocked(sf: torch.Tensor) -> torch.Tensor:
    """Return uint8 [..., round_up(rows, 128) * round_up(groups, 4)]: scale bytes `sf` [..., rows, groups] blocked."""
    raw = _bytes(sf)
    *lead, rows, groups = raw.shape
    padded_rows, padded_groups = round_up(rows, ATOM_ROWS), round_up(groups, ATOM_GROUPS)
    padded = raw.new_zeros(*lead, padded_rows, padded_groups)
    padded[..., :rows, :groups] = raw
    digits = padded.reshape(*lead, padded_rows // ATOM_ROWS, 4, 32, padded_groups // ATOM_GROUPS, ATOM_GROUPS)
    n = len(lead)
    return digits.permute(*range(n), n, n + 3, n + 2, n + 1, n + 4).reshape(*lead, padded_rows * padded_groups)


def from_blocked(blocked: torch.Tensor, *, rows: int, groups: int) -> torch.Tensor:
    """Return uint8 [..., rows, groups]: the inverse of `to_blocked`."""
    raw = _bytes(blocked)
    padded_rows, padded_groups = round_up(rows, ATOM_ROWS), round_up(groups, ATOM_GROUPS)
    if raw.ndim < 1 or raw.shape[-1] != padded_rows * padded_groups:
        raise ArgumentError(
            f"blocked has {list(raw.shape)} bytes, but {rows} rows of {groups} scale factors take "
            f"{padded_rows} x {padded_groups} = {padded_rows * padded_groups} in blocked order. Pass the rows and "
            "groups that it was made with."
        )
    lead = raw.shape[:-1]
    digits = raw.reshape(*lead, padded_rows // ATOM_ROWS, padded_groups // ATOM_GROUPS, 32, 4, ATOM_GROUPS)
    n = len(lead)
    plain = digits.permute(*range(n), n, n + 3, n + 2, n + 1, n + 4).reshape(*lead, padded_rows, padded_groups)
    return plain[..., :rows, :groups].contiguous()


def is_mn_major(words: torch.Tensor) -> bool:
    """Whether int32 `words` [..., rows, n] has the row as its fastest index (a single row or word is both)."""
    return words.stride(-2) == 1 or words.shape[-2] == 1


def _bytes(sf: torch.Tensor) -> torch.Tensor:
    if sf.dtype not in _BYTE_DTYPES or sf.ndim < 1:
        raise ArgumentError(
            f"sf is {sf.dtype} {list(sf.shape)}, and block scale factors are bytes [..., rows, groups] of dtype uint8, "
            "int8, float8_e4m3fn or float8_e8m0fnu. Unpack int32 words with unpack_sf_words(...)."
        )
    return sf.view(torch.uint8)


def _as_words(raw: torch.Tensor) -> torch.Tensor:
    raw = raw.contiguous()
    if raw.storage_offset() % 4:
        raw = raw.clone()
    return raw.view(torch.int32)
