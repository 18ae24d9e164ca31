"""Branches and returns (by name: engines know them), calls to the device runtime, traps, sleeping, register counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megamoe_jit.emulator.device_runtime import format_printf, read_string
from megamoe_jit.emulator.isa.decode import Decode, lanes_of
from megamoe_jit.emulator.isa.table import control, handler, noop
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome, Yield
from megamoe_jit.emulator.parser.nodes import Imm, Symbol
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp

_FLOW = "Control Flow Instructions: "
_MISC = "Miscellaneous Instructions: "
_MOVEMENT = "Data Movement and Conversion Instructions: "

control("bra{.uni}", section=_FLOW + "bra")
control("brx.idx{.uni}", section=_FLOW + "brx.idx")
control("ret{.uni}", section=_FLOW + "ret")
control("exit", section=_FLOW + "exit")

_CACHES = "caches are not modelled"
noop("prefetch{.global|.local|}.{L1|L2}", _CACHES, section=_MOVEMENT + "prefetch")
noop("prefetch.global" + "{.L2::evict_last|.L2::evict_normal}", _CACHES, section=_MOVEMENT + "prefetch")
noop("prefetch{.const|.param|}.tensormap", _CACHES, section=_MOVEMENT + "prefetch")
noop("prefetchu.L1", _CACHES, section=_MOVEMENT + "prefetchu")
noop("applypriority{.global}.L2::evict_normal", _CACHES, section=_MOVEMENT + "applypriority")
noop("discard{.global}.L2", "it allows losing data, and need not", section=_MOVEMENT + "discard")
noop("pmevent{.mask}", "there are no performance monitors", section=_MISC + "pmevent")
noop("brkpt", "there is no debugger", section=_MISC + "brkpt")
_DEPENDENT = "launches run one after the other: the grids before have ended"
_GRID = "Parallel Synchronization and Communication Instructions: griddepcontrol"
noop("griddepcontrol.wait", _DEPENDENT, section=_GRID)
noop("griddepcontrol.launch_dependents", _DEPENDENT, section=_GRID)


@handler("createpolicy.fractional.L2::{evict_last|evict_normal|evict_first|evict_unchanged}"
         "{.L2::evict_first|.L2::evict_unchanged|}.b64", section=_MOVEMENT + "createpolicy")  # fmt: skip
@handler("createpolicy.range{.global}.L2::{evict_last|evict_normal|evict_first|evict_unchanged}"
         "{.L2::evict_first|.L2::evict_unchanged|}.b64", section=_MOVEMENT + "createpolicy")  # fmt: skip
@handler("createpolicy.cvt.L2.b64", section=_MOVEMENT + "createpolicy")
def createpolicy(d: Decode) -> Handler:
    """Make a cache policy: a number, as caches are not modelled."""
    write = d.write(0, np.uint64)

    def run(warp: Warp, mask: int) -> Outcome:
        write(warp, mask, np.uint64(0x1000000000000000))
        return None

    return run


@handler("trap", section=_MISC + "trap")
def trap(d: Decode) -> Handler:  # noqa: ARG001
    """Stop the kernel."""

    def run(warp: Warp, mask: int) -> Outcome:
        printed = "".join(warp.machine.printed)
        message = f"The kernel trapped.{f' It printed: {printed[-2000:]}' if printed else ''}"
        warp.machine.fault("trap", message, by=warp, lanes=mask)

    return run


@handler("nanosleep.u32", section=_MISC + "nanosleep")
def nanosleep(d: Decode) -> Handler:
    """Let virtual time pass; others run."""
    times = d.value(0, np.uint32)

    def run(warp: Warp, mask: int) -> Outcome:
        warp.advance_to(warp.time + int(times(warp)[lanes_of(mask)].max(initial=0)))
        # Between polls that saw nothing new it is part of the polling; alone it is a clock that goes on.
        return Yield(spin=warp.spins > 0)

    return run


_MIN_REGISTERS, _MAX_REGISTERS, _REGISTER_STEP = 24, 256, 8
_WARPS_OF_GROUP = 4


@handler("setmaxnreg.{inc|dec}.sync.aligned.u32", section=_MISC + "setmaxnreg")
def setmaxnreg(d: Decode) -> Handler:
    """Check the number; registers are not a resource here. All warps of a warpgroup must give the same numbers."""
    operand = d.operand(0)
    count = int(operand.value) if isinstance(operand, Imm) else 0
    is_legal = _MIN_REGISTERS <= count <= _MAX_REGISTERS and count % _REGISTER_STEP == 0

    def run(warp: Warp, mask: int) -> Outcome:  # noqa: ARG001
        machine = warp.machine
        if not is_legal:
            machine.report(
                "setmaxnreg",
                f"setmaxnreg {count}: the count is a multiple of {_REGISTER_STEP} from {_MIN_REGISTERS} to "
                f"{_MAX_REGISTERS}.",
                by=warp,
            )
        groups: dict[int, list[dict[int, int]]] = warp.cta.scratch.setdefault("setmaxnreg", {})
        turn: int = warp.scratch.get("setmaxnreg", 0)
        warp.scratch["setmaxnreg"] = turn + 1
        turns = groups.setdefault(warp.index // _WARPS_OF_GROUP, [])
        if len(turns) <= turn:
            turns.append({})
        other = next(((index, asked) for index, asked in turns[turn].items() if asked != count), None)
        if other is not None:
            machine.report(
                "setmaxnreg",
                f"Warp {warp.index} asks for {count} registers, warp {other[0]} of the same warpgroup for {other[1]}.",
                by=warp,
            )
        turns[turn][warp.index] = count
        _check_total(warp, groups)
        return None

    return run


def _check_total(warp: Warp, groups: dict[int, list[dict[int, int]]]) -> None:
    """Warn when the warpgroups together ask for more registers than the kernel was compiled to get."""
    grid = warp.grid
    limit = grid.function.max_registers
    num_groups = -(-grid.num_warps // _WARPS_OF_GROUP)
    if limit is None or len(groups) < num_groups:
        return
    asked = sum(next(iter(turns[-1].values())) for turns in groups.values())
    if asked > limit * num_groups:
        warp.machine.report(
            "setmaxnreg",
            f"The warpgroups ask for {asked} registers a lane in all; the CTA is launched with {limit * num_groups}.",
            by=warp,
            severity="warning",
        )


@handler("call{.uni}", section=_FLOW + "call")
def call(d: Decode) -> Handler:
    """Call a function of the device runtime: vprintf or __assertfail. All others were inlined."""
    callee = d.operand(1) if d.count > 1 else d.operand(0)
    name = callee.name if isinstance(callee, Symbol) else ""
    if name == "vprintf":
        return _vprintf(d)
    if name == "__assertfail":
        return _assertfail(d)
    raise UnsupportedError(f"{d.instruction.text}: the device runtime has no {name or 'indirect calls'} here.")


def _vprintf(d: Decode) -> Handler:
    formats, arguments = (d.reader(item, np.uint64) for item in d.items(2))
    write = d.writer(d.items(0)[0], np.uint32) if d.items(0) else None

    def run(warp: Warp, mask: int) -> Outcome:
        where, buffers = formats(warp), arguments(warp)
        results = np.zeros(32, np.uint32)
        for lane in lanes_of(mask).tolist():
            text = format_printf(warp, int(where[lane]), int(buffers[lane]), lane)
            warp.machine.printed.append(text)
            results[lane] = len(text)
        if write is not None:
            write(warp, mask, results)
        return None

    return run


def _assertfail(d: Decode) -> Handler:
    readers: list[Any] = [d.reader(item, np.uint64) for item in d.items(2)]

    def run(warp: Warp, mask: int) -> Outcome:
        lane = int(lanes_of(mask)[0])
        message, file, line, function = (int(read(warp)[lane]) for read in readers[:4])
        texts = [read_string(warp, address, lane) for address in (message, file, function)]
        warp.machine.fault(
            "assert", f"{texts[1]}:{line}: {texts[2]}: Assertion `{texts[0]}` failed.", by=warp, lanes=mask
        )

    return run
