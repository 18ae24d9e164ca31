"""Virtual time: a warp instruction is one cycle and one nanosecond, asynchronous work takes what kind and size say.

The figures are round numbers of the order that Hopper has; they shape timelines, no result depends on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Warp

TRY_WAIT_TIMEOUT = 1000
"""Cycles that a `try_wait` without a hint suspends a warp when nothing happens."""

_LATENCY = {"wgmma": 64, "tcgen05.mma": 64, "tcgen05.cp": 32, "tcgen05.commit": 8}
_DEFAULT_LATENCY = 500
_BYTES_PER_CYCLE = 32


def duration(op: AsyncOp) -> int:
    """Return the cycles that `op` takes."""
    if op.duration is not None:
        return op.duration
    return _LATENCY.get(op.kind, _DEFAULT_LATENCY) + op.nbytes // _BYTES_PER_CYCLE


def time_of(by: Warp | AsyncOp | None) -> int:
    """Return the virtual time at which `by` acts."""
    if by is None:
        return 0
    finish = getattr(by, "finish_time", None)
    return finish if finish is not None else by.time  # type: ignore[union-attr]
