"""Strong loads and stores: relaxed, acquire, release, volatile, mmio. A load that sees what it saw before yields.

Volatile accesses to local memory, which no other thread sees, are ordinary ones (`memory`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megamoe_jit.emulator.isa.decode import Decode, lanes_of, one_lane
from megamoe_jit.emulator.isa.table import Form, handler
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome, Yield
from megamoe_jit.emulator.parser.nodes import WIDTH
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Scope, Semantics
    from megamoe_jit.emulator.machine.state import Warp

_SECTION = "Data Movement and Conversion Instructions: "
_TYPES = "b8 b16 b32 b64 b128 u8 u16 u32 u64 s8 s16 s32 s64 f32 f64"
_SPACE = "{space:.global|.shared{::cta|::cluster|}|.const|}"
_HINTS = (
    "{.L1::evict_normal|.L1::evict_unchanged|.L1::evict_first|.L1::evict_last|.L1::no_allocate|}"
    "{.L2::evict_normal|.L2::evict_first|.L2::evict_last|}{.L2::cache_hint}{.L2::64B|.L2::128B|.L2::256B|}"
)
_VECTOR = "{vector:.v2|.v4|.v8|}.<type>"
_SCOPE = ".{scope:cta|cluster|gpu|sys}"


@dataclass(slots=True)
class Poll:
    """What a load saw last.

    Attributes:
        addresses, values: of the active lanes, as bytes; turn: `executed` when it did, to find the latest.
    """

    addresses: bytes
    values: bytes
    width: int
    turn: int

    def describe(self) -> str:
        """Say in words what was seen."""
        addresses = np.frombuffer(self.addresses, np.uint64)
        value = int.from_bytes(self.values[: self.width], "little")
        more = f" (and {len(addresses) - 1} more)" if len(addresses) > 1 else ""
        return f"{value:#x} at {int(addresses[0]):#x}{more}"


def order_of(form: Form) -> tuple[Semantics, Scope]:
    """Return semantics and scope of a strong access; .volatile is relaxed at system scope."""
    order = form["order"]
    if order in ("volatile", "mmio.relaxed.sys"):
        return "relaxed", "sys"
    return order, form["scope"]  # type: ignore[return-value]


def _count(d: Decode) -> int:
    vector = d.form["vector"]
    count = int(vector[1:]) if vector else 1
    if len(d.items(0 if d.form.opcode.startswith("ld") else 1)) != count:
        raise UnsupportedError(f"{d.instruction.text}: {count} values are needed.")
    return count


@handler("ld.{order:relaxed|acquire}" + _SCOPE + _SPACE + _HINTS + _VECTOR, section=_SECTION + "ld", types=_TYPES)
@handler("ld.{order:volatile|mmio.relaxed.sys}" + _SPACE + _HINTS + _VECTOR, section=_SECTION + "ld", types=_TYPES)
def load(d: Decode) -> Handler:
    """Load; the same value at the same address as the last time yields to other warps."""
    count, width, pc = _count(d), WIDTH[d.form.type], d.pc
    semantics, scope = order_of(d.form)
    addresses, space = d.address(1), d.form["space"] or "generic"
    letter = "i" if d.form.type[0] == "s" else "u"
    if width == 16:
        raise UnsupportedError(f"{d.instruction.text}: strong 128-bit loads are not supported.")
    dtype = np.dtype(f"{letter}{width}")
    write = d.write_many(0, dtype)
    size = width * count

    def run(warp: Warp, mask: int) -> Outcome:
        machine, where = warp.machine, addresses(warp)
        lanes = lanes_of(mask)
        checks = machine.checks
        first = one_lane(mask)
        if (where[lanes] == where[first]).all():
            address = int(where[first])
            bytes_, place = machine.resolve(warp, address, space, size, write=False, align=size, lane=first)
            if place.kind != "local":
                if checks.enabled:
                    checks.strong(warp, place, size, "read", semantics, scope)
                write(warp, mask, bytes_.view(dtype))
                return _yields(warp, pc, where[first : first + 1], bytes_, width)
        data = np.zeros((32, size), np.uint8)
        found: dict[int, Any] = {}  # all lanes of a warp mostly poll one word
        for lane, address in zip(lanes.tolist(), where[lanes].tolist(), strict=True):
            if address not in found or space == "local":
                found[address], place = machine.resolve(warp, address, space, size, write=False, align=size, lane=lane)
                if checks.enabled and place.kind != "local":
                    checks.strong(warp, place, size, "read", semantics, scope)
            data[lane] = found[address]
        write(warp, mask, data.view(dtype).T)
        return _yields(warp, pc, where[lanes], data[lanes], width)

    return run


def _yields(warp: Warp, pc: int, addresses: Any, values: Any, width: int) -> Outcome:
    """Remember what was seen; nothing new lets others run."""
    seen = Poll(addresses.tobytes(), values.tobytes(), width, warp.ctx.executed)
    before, warp.polls[pc] = warp.polls.get(pc), seen
    if before is not None and before.values == seen.values and before.addresses == seen.addresses:
        return Yield(spin=True)
    return None


@handler("st.{order:relaxed|release}" + _SCOPE + _SPACE + _HINTS + _VECTOR, section=_SECTION + "st", types=_TYPES)
@handler("st.{order:volatile|mmio.relaxed.sys}" + _SPACE + _HINTS + _VECTOR, section=_SECTION + "st", types=_TYPES)
def store(d: Decode) -> Handler:
    """Store; a release hands over all that this thread has seen."""
    count, width = _count(d), WIDTH[d.form.type]
    semantics, scope = order_of(d.form)
    addresses, space = d.address(0), d.form["space"] or "generic"
    if width == 16:
        raise UnsupportedError(f"{d.instruction.text}: strong 128-bit stores are not supported.")
    values = d.values(1, np.dtype(f"u{width}"))
    size = width * count

    def run(warp: Warp, mask: int) -> Outcome:
        machine, where = warp.machine, addresses(warp)
        data = np.ascontiguousarray(values(warp).T).view(np.uint8)
        checks = machine.checks
        for lane in lanes_of(mask).tolist():
            bytes_, place = machine.resolve(warp, int(where[lane]), space, size, write=True, align=size, lane=lane)
            if checks.enabled and place.kind != "local":
                checks.strong(warp, place, size, "write", semantics, scope)
            bytes_[:] = data[lane]
        return None

    return run
