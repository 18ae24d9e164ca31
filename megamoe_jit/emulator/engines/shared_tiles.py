"""Operands of matrix multiplications in the shared memory of a CTA: bounds, what the checker hears, decoding."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megamoe_jit.emulator.engines.descriptors import CHUNK
from megamoe_jit.emulator.engines.numerics.formats import Array, ElementFormat, Operand
from megamoe_jit.emulator.engines.operands import codes_of, gather
from megamoe_jit.emulator.parser.nodes import SHARED_BASE

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Range
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cta

_CACHED = 64
"""Decoded operands that are kept: a tile of tokens meets several tiles of weights, and the other way round."""


def check_bounds(cta: Cta, op: AsyncOp, name: str, addresses: Array) -> None:
    """Report an operand that leaves the CTA's shared memory."""
    first, last = int(addresses.min()), int(addresses.max()) + CHUNK
    if first < SHARED_BASE or last > len(cta.smem):
        cta.machine.fault(
            "out-of-bounds",
            f"{op.kind} reads {name} from shared addresses {first:#x}..{last - 1:#x}; {cta.name()} has "
            f"[{SHARED_BASE:#x}, {len(cta.smem):#x}).",
            by=op,
        )


def note_read(cta: Cta, op: AsyncOp, addresses: Array) -> None:
    """Tell the checker that `op` reads these 16-byte pieces."""
    checks = cta.machine.checks
    if checks.enabled:
        entry: Range = ("shared", cta, addresses, CHUNK)
        checks.async_read(op, (entry,))


def shared_operand(
    ctas: Sequence[Cta],
    addresses: Array,
    form: ElementFormat,
    rows: int,
    *,
    packed: bool,
    mn_major: bool,
    negate: bool,
) -> Operand:
    """Decode an operand, `rows` rows of each CTA one after the other; what was decoded lately is not decoded again."""
    tiles = [gather(cta.smem, addresses) for cta in ctas]
    cache: OrderedDict[object, Operand] = ctas[0].machine.scratch.setdefault("operands", OrderedDict())
    key = (form.name, tiles[0].shape, rows, packed, mn_major, negate, *(tile.tobytes() for tile in tiles))
    operand = cache.get(key)
    if operand is None:
        codes = [codes_of(tile, form, rows, packed=packed, mn_major=mn_major) for tile in tiles]
        operand = cache[key] = Operand(form, codes[0] if len(codes) == 1 else np.concatenate(codes), negate=negate)
        if len(cache) > _CACHED:
            cache.popitem(last=False)
    else:
        cache.move_to_end(key)
    return operand


def shared_bytes(ctas: Sequence[Cta], addresses: Array, rows: int, *, mn_major: bool) -> Array:
    """Read an operand of integers, `rows` rows of each CTA one after the other: uint8 [rows, K]."""
    tiles = [gather(cta.smem, addresses) for cta in ctas]
    return np.concatenate([np.ascontiguousarray(tile.T[:rows]) if mn_major else tile for tile in tiles])
