"""ldmatrix and stmatrix: matrices of 8- and 16-bit elements between shared memory and the fragments of a warp.

Rows of a matrix are 16 bytes at addresses that lanes give: lane 8 * i + r has row r of the i-th 8-row matrix, lane
16 * i + r that of the i-th 16-row one. Sources: PTX ISA, "ldmatrix" and "stmatrix"; fragments of 8-bit matrices as
CUTLASS's copy traits have them, and as measured on sm_120.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.engines.copies import Bytes, Site
from megamoe_jit.emulator.engines.lanes import Offsets, check_alignment, gathered, own_offsets, scattered
from megamoe_jit.emulator.isa.bulk import check_operands, site_of
from megamoe_jit.emulator.isa.decode import Decode, Reader
from megamoe_jit.emulator.isa.qualifiers import Qualifiers
from megamoe_jit.emulator.isa.table import handler
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome
from megamoe_jit.emulator.machine.state import Warp
from megamoe_jit.errors import UnsupportedError

_SECTION = "Warp Level Matrix Multiply-Accumulate Instructions: "
ROW = 16
"""Bytes of a matrix row in shared memory."""
Words: TypeAlias = npt.NDArray[np.uint32]


def load_m8n8(rows: Bytes, transposed: bool) -> Words:
    """Return the fragments (matrices, 32) of 8x8 matrices of 16 bits, from their rows."""
    if not transposed:
        return rows.view(np.uint32).reshape(-1, 32)
    halves = rows.view(np.uint16).reshape(-1, 8, 8).transpose(0, 2, 1)
    return np.ascontiguousarray(halves).view(np.uint32).reshape(-1, 32)


def store_m8n8(words: Words, transposed: bool) -> Bytes:
    """Return the rows of 8x8 matrices of 16 bits, from fragments (matrices, 32)."""
    if transposed:
        halves = words.view(np.uint16).reshape(-1, 8, 8).transpose(0, 2, 1)
        words = np.ascontiguousarray(halves).view(np.uint32)
    return words.view(np.uint8).reshape(-1, ROW)


def load_m16n16(rows: Bytes) -> Words:
    """Return the fragments (2 * matrices, 32) of 16x16 matrices of bytes, transposed.

    Byte j of a lane's first register is row 4 * (lane % 4) + j, column lane / 4; the second is 8 columns further.
    """
    columns = rows.reshape(-1, ROW, ROW).transpose(0, 2, 1)
    return np.ascontiguousarray(columns).view(np.uint32).reshape(-1, 32)


def store_m16n8(words: Words) -> Bytes:
    """Return the rows (8 a matrix) of 16x8 matrices of bytes stored transposed, from fragments (matrices, 32).

    Byte e of a lane's register is row lane / 4 + 8 * (e / 2), column 2 * (lane % 4) + e % 2 of the matrix.
    """
    values = words.view(np.uint8).reshape(-1, 8, 4, 2, 2)  # matrix, lane / 4, lane % 4, upper half, odd column
    return np.ascontiguousarray(values.transpose(0, 2, 4, 3, 1)).reshape(-1, ROW)


def expand(rows: Bytes, source: str) -> Bytes:
    """Return a byte for each of the 16 elements of packed rows: 4 bits (8 bytes of 16) or 6 bits (12 of 16)."""
    if source == "b4x16_p64":
        data = rows[:, :8]
        return np.stack((data & 15, data >> 4), axis=2).reshape(-1, ROW)
    triples = rows[:, :12].reshape(len(rows), 4, 3).astype(np.uint32)
    bits = triples[:, :, 0] | triples[:, :, 1] << 8 | triples[:, :, 2] << 16
    return np.stack([bits >> 6 * i & 63 for i in range(4)], axis=2).astype(np.uint8).reshape(-1, ROW)


_SHARED = {"sync": "sync", "aligned": "aligned", "number": "x1 x2 x4", "trans": "trans", "space": "shared shared::cta"}
_LOAD = Qualifiers(
    "ldmatrix", {**_SHARED, "shape": "m8n8 m16n16 m8n16", "type": "b16 b8 b8x16", "source": "b6x16_p32 b4x16_p64"}
)
_STORE = Qualifiers("stmatrix", {**_SHARED, "shape": "m8n8 m16n8", "type": "b16 b8"})


def _is_legal_load(found: dict[str, str]) -> bool:
    packs = found["type"] == "b8x16"
    if not (found["sync"] and found["aligned"] and found["number"]) or packs != bool(found["source"]):
        return False
    match found["shape"]:
        case "m8n8":
            return found["type"] == "b16"
        case "m16n16":
            return bool(found["trans"]) and found["number"] != "x4" and found["type"] != "b16"
    return found["shape"] == "m8n16" and packs and not found["trans"]


def _is_legal_store(found: dict[str, str]) -> bool:
    if not (found["sync"] and found["aligned"] and found["number"]):
        return False
    if found["shape"] == "m8n8":
        return found["type"] == "b16"
    return found["shape"] == "m16n8" and found["type"] == "b8" and bool(found["trans"])


@handler(_LOAD.pattern, section=f"{_SECTION}ldmatrix", where=_LOAD.matches)
def ldmatrix(d: Decode) -> Handler:
    """Load matrices: fragments of rows that lanes point at."""
    found = _LOAD.of(d.form)
    if not _is_legal_load(found):
        raise UnsupportedError(f"{d.form.opcode}: ldmatrix has no such combination of qualifiers.")
    count, source = int(found["number"][1:]), found["source"]
    is_wide, transposed = found["shape"] == "m16n16", bool(found["trans"])
    check_operands(d, 2)
    if len(d.items(0)) != count * (1 + is_wide):
        raise UnsupportedError(f"{d.instruction.text}: {d.form.opcode} has {count * (1 + is_wide)} destinations.")
    write, rows_at = d.write_many(0, np.uint32), _row_offsets(d, 1, count * (16 if is_wide else 8), found["space"])

    def execute(warp: Warp, mask: int) -> Outcome:
        offsets = rows_at(warp)
        _tell(warp, offsets, "read")
        rows = gathered(warp.cta.smem, offsets, ROW)
        rows = expand(rows, source) if source else rows
        write(warp, mask, load_m16n16(rows) if is_wide else load_m8n8(rows, transposed))
        return None

    return execute


@handler(_STORE.pattern, section=f"{_SECTION}stmatrix", where=_STORE.matches)
def stmatrix(d: Decode) -> Handler:
    """Store matrices: fragments to rows that lanes point at."""
    found = _STORE.of(d.form)
    if not _is_legal_store(found):
        raise UnsupportedError(f"{d.form.opcode}: stmatrix has no such combination of qualifiers.")
    count, is_wide, transposed = int(found["number"][1:]), found["shape"] == "m16n8", bool(found["trans"])
    check_operands(d, 2)
    if len(d.items(1)) != count:
        raise UnsupportedError(f"{d.instruction.text}: {d.form.opcode} has {count} sources.")
    values, rows_at = d.values(1, np.uint32), _row_offsets(d, 0, 8 * count, found["space"])

    def execute(warp: Warp, mask: int) -> Outcome:  # noqa: ARG001
        offsets = rows_at(warp)
        _tell(warp, offsets, "write")
        words = values(warp)
        scattered(warp.cta.smem, offsets, ROW, store_m16n8(words) if is_wide else store_m8n8(words, transposed))
        return None

    return execute


def _row_offsets(d: Decode, index: int, count: int, qualifier: str) -> Callable[[Warp], Offsets]:
    """Read the offsets in shared memory of the first `count` lanes' rows."""
    addresses: Reader = d.address(index)
    site: Site = site_of(d)
    space = "shared" if qualifier else "generic"

    def read(warp: Warp) -> Offsets:
        rows = addresses(warp)[:count]
        check_alignment(warp, site, rows, ROW, "Row")
        return own_offsets(warp, site, rows, ROW, space=space)

    return read


def _tell(warp: Warp, offsets: Offsets, access: str) -> None:
    """Tell the checker about the rows."""
    checks = warp.machine.checks
    if checks.enabled:
        touched = (offsets[:, None] + np.arange(ROW)).reshape(-1)
        checks.generic_ranges(warp, (("shared", warp.cta, touched),), "read" if access == "read" else "write")
