"""tcgen05 but for its multiplications: allocation, loads and stores, copies, commits, fences.

PTX ISA, "TensorCore 5th Generation Family Instructions".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from megamoe_jit.emulator.engines import tcgen05, tcgen05_alloc, tcgen05_copy, tcgen05_transfer
from megamoe_jit.emulator.engines.tensor_memory import MAX_REGISTERS, REGISTERS, copy_shape
from megamoe_jit.emulator.isa.decode import Decode, lanes_of
from megamoe_jit.emulator.isa.mbarrier import barrier_at
from megamoe_jit.emulator.isa.operands import check_count, register_offsets, register_words, uniform
from megamoe_jit.emulator.isa.table import handler
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.parser.nodes import Imm
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.outcome import Outcome
    from megamoe_jit.emulator.machine.state import Cta, Warp

_SECTION = tcgen05.SECTION
_GROUP = "{group:.cta_group::1|.cta_group::2}"
_NUMBERS = " ".join(f"x{1 << n}" for n in range(8))
_TRANSFERS = {"shape": " ".join(REGISTERS), "num": _NUMBERS}
_COPIES = (
    "128x256b 4x256b 128x128b 64x128b.warpx2::02_13 64x128b.warpx2::01_23 32x128b.warpx4 "
    "warpx2::02_13.64x128b warpx2::01_23.64x128b warpx4.32x128b"
)
"""Assemblers take the two parts in any order."""


def cta_group(d: Decode) -> int:
    """Return 1 or 2 of the opcode's `.cta_group`."""
    return int(d.form["group"][-1])


def issuers(warp: Warp, mask: int, opcode: str) -> list[int]:
    """Return the lanes that issue an instruction that one thread is to issue; more than one is a report."""
    lanes: list[int] = lanes_of(mask).tolist()
    if len(lanes) > 1:
        warp.machine.report(
            "tcgen05-issue",
            f"{len(lanes)} threads execute {opcode}: each of them issues it. Let one do so (elect.sync).",
            by=warp,
            lanes=mask,
            section=_SECTION,
        )
    return lanes


# --- allocation -----------------------------------------------------------------------------------------------------


@handler(f"tcgen05.alloc{_GROUP}.sync.aligned{{space:.shared::cta|}}.b32", section=f"{_SECTION}: tcgen05.alloc")
def tcgen05_alloc_(d: Decode) -> Handler:
    """Take columns and write their address to shared memory."""
    address, columns, group, space = d.address(0), d.value(1, np.uint32), cta_group(d), d.form["space"] or "generic"

    def run(warp: Warp, _: int) -> Outcome:
        where = uniform(warp, address, "the destination of tcgen05.alloc", _SECTION)
        return tcgen05_alloc.allocate(
            warp, where, space, uniform(warp, columns, "the number of columns", _SECTION), group
        )

    return run


@handler(f"tcgen05.dealloc{_GROUP}.sync.aligned.b32", section=f"{_SECTION}: tcgen05.dealloc")
def tcgen05_dealloc(d: Decode) -> Handler:
    """Give columns back."""
    address, columns, group = d.value(0, np.uint32), d.value(1, np.uint32), cta_group(d)

    def run(warp: Warp, _: int) -> Outcome:
        where = uniform(warp, address, "the address of tcgen05.dealloc", _SECTION)
        tcgen05_alloc.free(warp, where, uniform(warp, columns, "the number of columns", _SECTION), group)
        return None

    return run


@handler(
    f"tcgen05.relinquish_alloc_permit{_GROUP}.sync.aligned", section=f"{_SECTION}: tcgen05.relinquish_alloc_permit"
)
def tcgen05_relinquish(_: Decode) -> Handler:
    """Allocate no more."""

    def run(warp: Warp, _: int) -> Outcome:
        tcgen05_alloc.relinquish(warp)
        return None

    return run


# --- order ----------------------------------------------------------------------------------------------------------


@handler("tcgen05.fence::before_thread_sync", section=f"{_SECTION}: tcgen05.fence")
@handler("tcgen05.fence::after_thread_sync", section=f"{_SECTION}: tcgen05.fence")
def tcgen05_fence(d: Decode) -> Handler:
    """Order tcgen05 work across a synchronisation of threads."""
    when: Literal["before", "after"] = "before" if "before" in d.form.opcode else "after"

    def run(warp: Warp, _: int) -> Outcome:
        warp.machine.checks.tensor_fence(warp, when)
        return None

    return run


@handler("tcgen05.wait::ld.sync.aligned", section=f"{_SECTION}: tcgen05.wait")
def tcgen05_wait_ld(_: Decode) -> Handler:
    """Wait for the warp's loads."""
    return lambda warp, _: tcgen05_transfer.wait_loads(warp)


@handler("tcgen05.wait::st.sync.aligned", section=f"{_SECTION}: tcgen05.wait")
def tcgen05_wait_st(_: Decode) -> Handler:
    """Wait for the warp's stores."""
    return lambda warp, _: tcgen05_transfer.wait_stores(warp)


@handler(
    f"tcgen05.commit{_GROUP}.mbarrier::arrive::one{{space:.shared::cluster|}}{{.multicast::cluster}}.b64",
    section=f"{_SECTION}: tcgen05.commit",
)
def tcgen05_commit(d: Decode) -> Handler:
    """Arrive at an mbarrier, or at one in each CTA of a mask, when the thread's earlier work is done."""
    address, space, multicast = d.address(0), d.form["space"], d.form.has("multicast::cluster")
    check_count(d, 1 + multicast)
    read_mask = d.value(1, np.uint16) if multicast else None
    group = cta_group(d)

    def run(warp: Warp, mask: int) -> Outcome:
        where = address(warp)
        masks = None if read_mask is None else read_mask(warp)
        for lane in issuers(warp, mask, "tcgen05.commit"):
            tcgen05.ctas_of(warp, group)
            barrier = barrier_at(warp, int(where[lane]), space, lane)
            targets: tuple[tuple[Cta, int], ...] = ((barrier.cta, barrier.offset),)
            if masks is not None:
                ranks = int(masks[lane])
                if not ranks:
                    tcgen05.refuse(warp, "the CTA mask of tcgen05.commit is 0: no barrier would get the arrival")
                chosen = [warp.cta.peer(rank) for rank in range(16) if ranks >> rank & 1]
                targets = tuple((cta, cta.mbarrier(barrier.offset, warp).offset) for cta in chosen)
            tcgen05.commit(warp, targets, pc=d.pc, lane=lane)
        return None

    return run


# --- loads and stores -----------------------------------------------------------------------------------------------


def _split(d: Decode, index: int) -> int:
    """Read the immediate between the halves of 16x32bx2."""
    operand = d.operand(index)
    if not isinstance(operand, Imm) or not isinstance(operand.value, int):
        raise UnsupportedError(f"{d.instruction.text}: operand {index} must be a constant number of columns.")
    return operand.value


def _transfer_shape(d: Decode, split: int, **fields: Any) -> tcgen05_transfer.Shape:
    name = d.form["shape"]
    registers = REGISTERS[name] * int(d.form["num"][1:])
    if registers > MAX_REGISTERS:
        raise UnsupportedError(f"{d.form.opcode} needs {registers} registers; {MAX_REGISTERS} are the limit.")
    return tcgen05_transfer.Shape(name, registers, split=split, **fields)


@handler("tcgen05.ld.sync.aligned.<shape>.<num>{.pack::16b}.b32", sets=_TRANSFERS, section=f"{_SECTION}: tcgen05.ld")
def tcgen05_ld(d: Decode) -> Handler:
    """Load cells to registers."""
    has_split = d.form["shape"] == "16x32bx2"
    check_count(d, 2 + has_split)
    shape = _transfer_shape(d, _split(d, 2) if has_split else 0, packed=d.form.has("pack::16b"))
    places, address = register_words(register_offsets(d, 0, shape.registers, "operand 0")), d.address(1)

    def run(warp: Warp, _: int) -> Outcome:
        tcgen05_transfer.load(warp, shape, places, None, uniform(warp, address, "the address", _SECTION), pc=d.pc)
        return None

    return run


@handler(
    "tcgen05.ld.red.sync.aligned.<shape>.<num>.<op>{.abs}{.NaN}.<type>",
    sets={"shape": "32x32b 16x32bx2", "num": _NUMBERS.removeprefix("x1 "), "op": "min max"},
    types="f32 u32 s32",
    section=f"{_SECTION}: tcgen05.ld",
)
def tcgen05_ld_red(d: Decode) -> Handler:
    """Load cells to registers, and the smallest or largest of each thread's to one more."""
    has_split = d.form["shape"] == "16x32bx2"
    check_count(d, 3 + has_split)
    shape = _transfer_shape(
        d,
        _split(d, 3) if has_split else 0,
        reduction=d.form["op"],
        kind=d.form.type,
        absolute=d.form.has("abs"),
        propagates_nan=d.form.has("NaN"),
    )
    if shape.kind != "f32" and (shape.absolute or shape.propagates_nan):
        raise UnsupportedError(f"{d.form.opcode}: .abs and .NaN are for .f32.")
    places, reduced, address = (
        register_words(register_offsets(d, 0, shape.registers, "operand 0")),
        register_words(register_offsets(d, 1, 1, "operand 1"))[0],
        d.address(2),
    )

    def run(warp: Warp, _: int) -> Outcome:
        tcgen05_transfer.load(warp, shape, places, reduced, uniform(warp, address, "the address", _SECTION), pc=d.pc)
        return None

    return run


@handler("tcgen05.st.sync.aligned.<shape>.<num>{.unpack::16b}.b32", sets=_TRANSFERS, section=f"{_SECTION}: tcgen05.st")
def tcgen05_st(d: Decode) -> Handler:
    """Store registers to cells."""
    has_split = d.form["shape"] == "16x32bx2"
    check_count(d, 2 + has_split)
    shape = _transfer_shape(d, _split(d, 1) if has_split else 0, packed=d.form.has("unpack::16b"))
    address, index = d.address(0), 1 + has_split
    if len(d.items(index)) != shape.registers:
        raise UnsupportedError(f"{d.instruction.text}: operand {index} must be {shape.registers} registers.")
    values = d.values(index, np.uint32)

    def run(warp: Warp, _: int) -> Outcome:
        tcgen05_transfer.store(warp, shape, values(warp), uniform(warp, address, "the address", _SECTION), pc=d.pc)
        return None

    return run


# --- copies ---------------------------------------------------------------------------------------------------------


@handler(
    f"tcgen05.cp{_GROUP}.<shape>{{.b8x16.b4x16_p64|.b8x16.b6x16_p32|}}",
    sets={"shape": _COPIES},
    section=f"{_SECTION}: tcgen05.cp",
)
def tcgen05_cp(d: Decode) -> Handler:
    """Copy rows of shared memory to tensor memory."""
    name = ".".join(sorted(d.form["shape"].split(".")))  # the shape begins with a digit
    bits = 4 if d.form.has("b4x16_p64") else 6 if d.form.has("b6x16_p32") else 0
    what = tcgen05_copy.Copy(copy_shape(name), name, bits, cta_group(d))
    check_count(d, 2)
    address, descriptor = d.address(0), d.value(1, np.uint64)
    return _issued(
        "tcgen05.cp",
        lambda warp, lane: tcgen05_copy.copy(
            warp, what, int(address(warp)[lane]), int(descriptor(warp)[lane]), pc=d.pc, lane=lane
        ),
    )


@handler(f"tcgen05.shift{_GROUP}.down", section=f"{_SECTION}: tcgen05.shift")
def tcgen05_shift(d: Decode) -> Handler:
    """Move rows of tensor memory by one."""
    address, group = d.address(0), cta_group(d)
    return _issued(
        "tcgen05.shift",
        lambda warp, lane: tcgen05_copy.shift_down(warp, int(address(warp)[lane]), group, pc=d.pc, lane=lane),
    )


def _issued(opcode: str, start: Callable[[Warp, int], None]) -> Handler:
    """Make the handler of an instruction that one thread issues."""

    def run(warp: Warp, mask: int) -> Outcome:
        for lane in issuers(warp, mask, opcode):
            start(warp, lane)
        return None

    return run
