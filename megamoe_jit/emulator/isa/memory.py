"""Loads, stores and addresses.

Engines ask `access_of` what a load or store does, and do it. Cache operators, eviction priorities, prefetch sizes and
cache policies change no value and are passed over. Strong loads and stores, which may poll, are in `polling`.
"""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megamoe_jit.emulator.isa.decode import Decode
from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.table import Form, Op, memory, pure
from megamoe_jit.emulator.memory.spaces import LOCAL_WINDOW, RANK_SHIFT, SHARED_WINDOW, WINDOW_MASK, WINDOW_SHIFT
from megamoe_jit.emulator.native.context import FaultSpace
from megamoe_jit.emulator.parser.nodes import WIDTH

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp

_MOVEMENT = "Data Movement and Conversion Instructions: "
_TYPES = "b8 b16 b32 b64 b128 u8 u16 u32 u64 s8 s16 s32 s64 f32 f64"
_LEVELS = (
    "{.L1::evict_normal|.L1::evict_unchanged|.L1::evict_first|.L1::evict_last|.L1::no_allocate|}"
    "{.L2::evict_normal|.L2::evict_first|.L2::evict_last|}{.L2::cache_hint}{.L2::64B|.L2::128B|.L2::256B|}"
)
_VECTOR = "{vector:.v2|.v4|.v8|}.<type>"
_SPACES = {
    "": FaultSpace.GENERIC,
    "global": FaultSpace.GLOBAL,
    "const": FaultSpace.GLOBAL,
    "shared": FaultSpace.SHARED,
    "shared::cta": FaultSpace.SHARED,
    "shared::cluster": FaultSpace.SHARED_CLUSTER,
    "local": FaultSpace.LOCAL,
    "param": FaultSpace.PARAM,
    "param::entry": FaultSpace.PARAM,
}
_MAX_BYTES = 32


@dataclass(frozen=True, slots=True)
class Access:
    """A load or store.

    Attributes:
        is_load: else a store.
        space: state space that the instruction names; const variables are in global memory.
        type: PTX type of an element; width: its bytes.
        count: elements of a lane.
    """

    is_load: bool
    space: FaultSpace
    type: str
    count: int

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return WIDTH[self.type]

    @property
    def size(self) -> int:
        """Bytes of a lane's access."""
        return self.width * self.count


def access_of(op: Op) -> Access | None:
    """Return what a `memory` form loads or stores; None for `isspacep`."""
    if op.function is is_in_own_cta:
        return None
    access: Access = op.function(op.form)
    return access


def _count(form: Form) -> int:
    return int(form["vector"][1:]) if form["vector"] else 1


def _is_possible(form: Form) -> bool:
    count, width = _count(form), WIDTH[form.type]
    return count == 1 or (width <= 8 and count * width <= _MAX_BYTES and (count < 8 or width == 4))


@memory(
    "ld{.weak}{space:.const|.global|.local|.param{::entry}|.shared{::cta|::cluster|}|}"
    "{.ca|.cg|.cs|.lu|.cv|}{.nc}" + _LEVELS + _VECTOR,
    section=_MOVEMENT + "ld, ld.global.nc", types=_TYPES, where=_is_possible,
)  # fmt: skip
@memory("ldu{space:.global|}" + _VECTOR, section=_MOVEMENT + "ldu", types=_TYPES, where=_is_possible)
@memory("ld.volatile{space:.local}" + _VECTOR, section=_MOVEMENT + "ld", types=_TYPES, where=_is_possible)
def load(form: Form) -> Access:
    """Load elements; narrow ones are widened to their registers as their type says."""
    return Access(is_load=True, space=_SPACES[form["space"]], type=form.type, count=_count(form))


@memory(
    "st{.weak}{space:.global|.local|.shared{::cta|::cluster|}|}{.wb|.cg|.cs|.wt|}" + _LEVELS + _VECTOR,
    section=_MOVEMENT + "st", types=_TYPES, where=_is_possible,
)  # fmt: skip
@memory("st.volatile{space:.local}" + _VECTOR, section=_MOVEMENT + "st", types=_TYPES, where=_is_possible)
def store(form: Form) -> Access:
    """Store elements: the low bits of registers that are wider."""
    return Access(is_load=False, space=_SPACES[form["space"]], type=form.type, count=_count(form))


_CVTA = "{space:.const|.global|.local|.param{::entry}|.shared{::cta|::cluster|}}.u64"
_WINDOWS = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}


@pure("cvta" + _CVTA, section=_MOVEMENT + "cvta", dst="u64", src="u64")
def to_generic(c: Calc, form: Form, address: Lanes) -> Lanes:
    """Make an address of a space generic."""
    window = _WINDOWS.get(form["space"].partition("::")[0])
    return address if window is None else (address & WINDOW_MASK) | window


@pure("cvta.to" + _CVTA, section=_MOVEMENT + "cvta", dst="u64", src="u64")
def from_generic(c: Calc, form: Form, address: Lanes) -> Lanes:
    """Make a generic address one of a space."""
    window = _WINDOWS.get(form["space"].partition("::")[0])
    return address if window is None else address & WINDOW_MASK


@pure("mapa{.shared::cluster}.<type>", section=_MOVEMENT + "mapa", types="u32 u64", dst="<type>", src="<type> u32")
def map_to_rank(c: Calc, form: Form, address: Lanes, rank: Lanes) -> Lanes:
    """Replace the rank of the CTA that a shared (or generic shared) address names."""
    placed = (rank & 0xFF) << RANK_SHIFT
    return (address & ~(0xFF << RANK_SHIFT)) | placed.resize(address.type)


@pure("getctarank{.shared::cluster}.<type>", section=_MOVEMENT + "getctarank", types="u32 u64", dst="u32", src="<type>")
def rank_of(c: Calc, form: Form, address: Lanes) -> Lanes:
    """Tell the rank of the CTA that a shared address names."""
    return ((address >> RANK_SHIFT) & 0xFF).resize("i32")


@pure(
    "isspacep{space:.const|.global|.local|.shared::cluster|.param{::entry}}",
    section=_MOVEMENT + "isspacep", dst="pred", src="u64",
)  # fmt: skip
def is_in_space(c: Calc, form: Form, address: Lanes) -> Lanes:
    """Tell by its window whether a generic address is in a space; const and param lie in global memory here."""
    window = address >> WINDOW_SHIFT
    wanted = {"global": 0, "shared::cluster": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(form["space"])
    return c.const("i1", 0) if wanted is None else window.eq(wanted >> WINDOW_SHIFT)


@memory("isspacep.shared{::cta}", section=_MOVEMENT + "isspacep")
def is_in_own_cta(d: Decode) -> Callable[[Warp, int], None]:
    """Tell whether a generic address is in the shared memory of the own CTA."""
    read, write = d.value(1, np.uint64), d.write(0, np.uint8)

    def run(warp: Warp, mask: int) -> None:
        own = np.uint64((SHARED_WINDOW >> RANK_SHIFT) | warp.cta.rank)
        write(warp, mask, (read(warp) >> np.uint64(RANK_SHIFT) == own).astype(np.uint8))

    return run
