"""tcgen05.mma: operands of all its forms. `.collector` qualifiers change what stays near the tensor core, not results.

PTX ISA, "TensorCore 5th Generation Family Instructions: tcgen05.mma".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megamoe_jit.emulator.engines.instruction_descriptors import MmaKind
from megamoe_jit.emulator.engines.tcgen05 import SECTION
from megamoe_jit.emulator.engines.tcgen05_mma import Form, Operands, multiply
from megamoe_jit.emulator.isa.decode import Decode, Reader
from megamoe_jit.emulator.isa.table import handler
from megamoe_jit.emulator.isa.tcgen05 import cta_group, issuers
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.parser.nodes import Address, Imm, Vec
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.outcome import Outcome
    from megamoe_jit.emulator.machine.state import Warp

_SECTION = f"{SECTION}: tcgen05.mma"
_GROUP = "{group:.cta_group::1|.cta_group::2}"
_KEEP_A = "{.collector::a::fill|.collector::a::use|.collector::a::lastuse|.collector::a::discard|}"
_KEEP_B = "{.collector::<buffer>::<keep>}"
_DENSE = "f16 tf32 f8f6f4 i8"
_SCALED = "mxf8f6f4 mxf4 mxf4nvf4"
_BLOCKS = {
    ("mxf8f6f4", ""): 32, ("mxf8f6f4", "scale_vec::1X"): 32, ("mxf8f6f4", "block32"): 32,
    ("mxf4", ""): 32, ("mxf4", "scale_vec::2X"): 32, ("mxf4", "block32"): 32,
    ("mxf4nvf4", "scale_vec::2X"): 32, ("mxf4nvf4", "block32"): 32,
    ("mxf4nvf4", "scale_vec::4X"): 16, ("mxf4nvf4", "block16"): 16,
}  # fmt: skip
_SIZES = "{size:.scale_vec::1X|.scale_vec::2X|.scale_vec::4X|.block16|.block32|}"


@handler(f"tcgen05.mma{_GROUP}.kind::<kind>{{.ashift}}{_KEEP_A}", sets={"kind": _DENSE}, section=_SECTION)
def tcgen05_mma(d: Decode) -> Handler:
    """D = A * B + D."""
    if d.form.has("ashift"):
        raise UnsupportedError(f"{d.form.opcode}: .ashift is not modelled.")
    kind, group = MmaKind(d.form["kind"]), cta_group(d)
    after = list(range(4, d.count))
    disabled = None
    if after and isinstance(d.operand(after[0]), Vec):
        index = after.pop(0)
        if len(d.items(index)) != 4 * group:
            raise UnsupportedError(f"{d.instruction.text}: disable-output-lane has {4 * group} registers.")
        disabled = d.values(index, np.uint32)
    shift = 0
    if len(after) == 2:
        shift = _shift(d, after.pop(), kind)
    if len(after) != 1:
        raise UnsupportedError(f"{d.instruction.text} has {d.count} operands; see {_SECTION}.")
    return _handler(d, _form(d, kind, group), _Reads(d, after[0], disabled=disabled, shift=shift))


def _shift(d: Decode, index: int, kind: MmaKind) -> int:
    operand = d.operand(index)
    if kind not in (MmaKind.F16, MmaKind.TF32):
        raise UnsupportedError(f"{d.instruction.text}: scale-input-d is for kind::f16 and kind::tf32.")
    if not isinstance(operand, Imm) or not isinstance(operand.value, int) or not 0 <= operand.value <= 15:
        raise UnsupportedError(f"{d.instruction.text}: scale-input-d must be a constant of 0 to 15.")
    return operand.value


@handler(f"tcgen05.mma{_GROUP}.kind::<kind>.block_scale{_SIZES}{_KEEP_A}", sets={"kind": _SCALED}, section=_SECTION)
def tcgen05_mma_block_scale(d: Decode) -> Handler:
    """D = (A * scale-A) * (B * scale-B) + D."""
    block = _BLOCKS.get((d.form["kind"], d.form["size"]))
    if block is None:
        raise UnsupportedError(f"{d.form.opcode}: kind::{d.form['kind']} has no .{d.form['size'] or 'default size'}.")
    if d.count != 7 or not all(isinstance(d.operand(index), Address) for index in (4, 5)):
        raise UnsupportedError(f"{d.instruction.text}: {d.form.opcode} takes D, A, B, idesc, [scale-A], [scale-B], p.")
    form = _form(d, MmaKind(d.form["kind"]), cta_group(d), block=block)
    return _handler(d, form, _Reads(d, 6, scales=(d.address(4), d.address(5))))


@handler(
    f"tcgen05.mma.ws.cta_group::1.kind::<kind>{_KEEP_B}",
    sets={"kind": _DENSE, "buffer": "b0 b1 b2 b3", "keep": "fill use lastuse discard"},
    section=f"{SECTION}: tcgen05.mma.ws",
)
def tcgen05_mma_ws(d: Decode) -> Handler:
    """D = A * B + D with B kept near the tensor core: other shapes and layouts, the same sums."""
    if d.count != 5:
        raise UnsupportedError(f"{d.instruction.text}: a zero-column mask is not modelled.")
    return _handler(d, _form(d, MmaKind(d.form["kind"]), 1, ws=True), _Reads(d, 4))


@handler(
    f"tcgen05.mma.sp{_GROUP}.kind::<kind>{{.ashift}}{_KEEP_A}",
    sets={"kind": _DENSE},
    section=f"{SECTION}: tcgen05.mma.sp",
)
@handler(
    f"tcgen05.mma.sp{_GROUP}.kind::<kind>.block_scale{_SIZES}{_KEEP_A}",
    sets={"kind": _SCALED},
    section=f"{SECTION}: tcgen05.mma.sp",
)
@handler(
    f"tcgen05.mma.ws.sp.cta_group::1.kind::<kind>{_KEEP_B}",
    sets={"kind": _DENSE, "buffer": "b0 b1 b2 b3", "keep": "fill use lastuse discard"},
    section=f"{SECTION}: tcgen05.mma.ws.sp",
)
def tcgen05_mma_sparse(d: Decode) -> Handler:
    """Sparse A is refused by name."""
    raise UnsupportedError(f"{d.form.opcode}: sparse A is not modelled.")


def _form(d: Decode, kind: MmaKind, group: int, *, ws: bool = False, block: int = 0) -> Form:
    return Form(kind=kind, cta_group=group, ws=ws, block=block, target=d.module.target, pc=d.pc)


@dataclass(frozen=True, slots=True)
class _Lane:
    """Reads one lane of operands that may be absent."""

    reader: Reader | None

    def __call__(self, warp: Warp, lane: int) -> int:
        return 0 if self.reader is None else int(self.reader(warp)[lane])


class _Reads:
    """Reads the operands of an instruction for one lane."""

    def __init__(
        self,
        d: Decode,
        predicate: int,
        *,
        scales: tuple[Reader, Reader] | None = None,
        disabled: Reader | None = None,
        shift: int = 0,
    ) -> None:
        in_tensor_memory = isinstance(d.operand(1), Address)
        if not isinstance(d.operand(0), Address) or isinstance(d.operand(2), Address | Vec):
            raise UnsupportedError(f"{d.instruction.text}: D is an address in brackets, B a 64-bit descriptor.")
        self.d, self.b, self.idesc = d.address(0), d.value(2, np.uint64), d.value(3, np.uint32)
        self.a = d.address(1) if in_tensor_memory else d.value(1, np.uint64)
        self.in_tensor_memory = in_tensor_memory
        self.accumulate = d.predicate(predicate)
        self.sfa, self.sfb = (_Lane(read) for read in scales or (None, None))
        self.disabled, self.shift = disabled, shift

    def operands(self, warp: Warp, lane: int) -> Operands:
        """Return the operands' values."""
        a = int(self.a(warp)[lane])
        return Operands(
            d=int(self.d(warp)[lane]),
            idesc=int(self.idesc(warp)[lane]),
            a_raw=None if self.in_tensor_memory else a,
            a_address=a if self.in_tensor_memory else 0,
            b_raw=int(self.b(warp)[lane]),
            sfa=self.sfa(warp, lane),
            sfb=self.sfb(warp, lane),
            accumulate=bool(self.accumulate(warp)[lane]),
            shift=self.shift,
            disabled=() if self.disabled is None else tuple(int(word) for word in self.disabled(warp)[:, lane]),
        )


def _handler(d: Decode, form: Form, reads: _Reads) -> Handler:
    opcode = d.form.opcode

    def run(warp: Warp, mask: int) -> Outcome:
        for lane in issuers(warp, mask, opcode):
            multiply(warp, form, reads.operands(warp, lane), lane=lane)
        return None

    return run
