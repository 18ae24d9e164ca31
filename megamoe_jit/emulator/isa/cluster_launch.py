"""clusterlaunchcontrol: a running cluster takes over one that has not started.

There is one to take only where a grid runs in waves (`Limits.resident_ctas`); else every request is declined, which
programs must be ready for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megamoe_jit.emulator.isa.decode import Decode, lanes_of
from megamoe_jit.emulator.isa.mbarrier import barrier_at
from megamoe_jit.emulator.isa.table import handler
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome
from megamoe_jit.emulator.machine.queues import AsyncOp
from megamoe_jit.emulator.parser.nodes import RegOp
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.mbarrier import Mbarrier
    from megamoe_jit.emulator.machine.state import Dims, Warp

_SECTION = "Parallel Synchronization and Communication Instructions: clusterlaunchcontrol"
_BYTES = 16
_TAKEN = 1
"""Bit 0 of the answer; the first CTA's x, y, z are in its other three words. The encoding is opaque to programs."""


def encode(first: Dims | None) -> bytes:
    """Return the 16 bytes of an answer: the first CTA of the cluster that was taken, or None."""
    words = (0, 0, 0, 0) if first is None else (_TAKEN, *first)
    return b"".join(word.to_bytes(4, "little") for word in words)


@handler(
    "clusterlaunchcontrol.try_cancel.async{space:.shared::cta|}.mbarrier::complete_tx::bytes"
    "{all:.multicast::cluster::all|}.b128",
    section=f"{_SECTION}.try_cancel",
)
def try_cancel(d: Decode) -> Handler:
    """Ask for a cluster; the answer and 16 transaction bytes arrive together, in every CTA with .multicast."""
    addresses, barriers, pc = d.address(0), d.address(1), d.pc
    space, multicasts = "shared" if d.form["space"] else "generic", bool(d.form["all"])

    def run(warp: Warp, mask: int) -> Outcome:
        where, at = addresses(warp), barriers(warp)
        for lane in lanes_of(mask).tolist():
            _, place = warp.machine.resolve(warp, int(where[lane]), space, _BYTES, write=True, align=_BYTES, lane=lane)
            barrier = barrier_at(warp, int(at[lane]), d.form["space"], lane)
            ctas = warp.cluster.ctas if multicasts else [warp.cta]
            told = [cta.mbarrier(barrier.offset, warp) for cta in ctas]
            _submit(warp, pc, place.start, told)
        return None

    return run


def _submit(warp: Warp, pc: int, offset: int, barriers: list[Mbarrier]) -> None:
    machine = warp.machine
    checks = machine.checks

    def run() -> None:
        answer = np.frombuffer(encode(machine.scheduler.take_cluster(warp.grid)), np.uint8)
        for barrier in barriers:
            if checks.enabled:
                checks.async_write(op, (("shared", barrier.cta, offset, _BYTES),), actor=barrier)
            barrier.cta.smem[offset : offset + _BYTES] = answer
            barrier.complete_tx(_BYTES, by=op)

    op = AsyncOp(
        issuer=warp,
        kind="try_cancel",
        pc=pc,
        run=run,
        smem_of=tuple(barrier.cta for barrier in barriers),
        nbytes=_BYTES,
    )
    if checks.enabled:
        writes = [("shared", barrier.cta, offset, _BYTES) for barrier in barriers]
        op.access = checks.begin_async(warp, op, barriers[0], writes=writes)
    machine.submit(op)


def _words(d: Decode, index: int) -> Any:
    """Read a .b128 register as (32, 4) words."""
    operand = d.operand(index)
    if not isinstance(operand, RegOp) or operand.reg.width != _BYTES:
        raise UnsupportedError(f"{d.instruction.text}: operand {index} must be a .b128 register.")
    reg, view = operand.reg, d.layout.view
    return lambda warp: view(warp, reg).view(np.uint32)


@handler("clusterlaunchcontrol.query_cancel.is_canceled.pred.b128", section=f"{_SECTION}.query_cancel")
def is_canceled(d: Decode) -> Handler:
    """Tell whether a cluster was taken."""
    write, read = d.write(0, np.uint8), _words(d, 1)

    def run(warp: Warp, mask: int) -> Outcome:
        write(warp, mask, (read(warp)[:, 0] & _TAKEN).astype(np.uint8))
        return None

    return run


@handler("clusterlaunchcontrol.query_cancel.get_first_ctaid.v4.b32.b128", section=f"{_SECTION}.query_cancel")
def first_cta(d: Decode) -> Handler:
    """Tell where the first CTA of the cluster is: {x, y, z, _}."""
    writers = [d.writer(item, np.uint32) for item in d.items(0)[:3]]
    read = _words(d, 1)

    def run(warp: Warp, mask: int) -> Outcome:
        words = read(warp)
        for axis, write in enumerate(writers):
            write(warp, mask, words[:, 1 + axis].copy())
        return None

    return run


@handler("clusterlaunchcontrol.query_cancel.get_first_ctaid::{axis:x|y|z}.b32.b128", section=f"{_SECTION}.query_cancel")
def first_cta_axis(d: Decode) -> Handler:
    """Tell one coordinate of the first CTA of the cluster."""
    write, read, axis = d.write(0, np.uint32), _words(d, 1), 1 + "xyz".index(d.form["axis"])

    def run(warp: Warp, mask: int) -> Outcome:
        write(warp, mask, read(warp)[:, axis].copy())
        return None

    return run
