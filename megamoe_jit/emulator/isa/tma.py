"""cp.async.bulk.tensor, cp.reduce.async.bulk.tensor, tensormap.replace and tensormap.cp_fenceproxy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.engines.copies import Bytes, Signal, Site, signal_at, submit_load, submit_store
from megamoe_jit.emulator.engines.reductions import Combine, combination
from megamoe_jit.emulator.engines.tma_box import SMEM_ALIGNMENT, Box, Region, ends_in_chunk, refuse_copy
from megamoe_jit.emulator.isa import qualifiers
from megamoe_jit.emulator.isa.bulk import check_operands, constant, destinations, owner, site_of
from megamoe_jit.emulator.isa.decode import Decode, lanes_of, one_lane
from megamoe_jit.emulator.isa.qualifiers import Qualifiers
from megamoe_jit.emulator.isa.scalars import address_of, coordinates_of, lane_list, value_of
from megamoe_jit.emulator.isa.table import handler, noop
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome
from megamoe_jit.emulator.machine.state import Cta, Place, Warp
from megamoe_jit.emulator.memory.tensor_map import (
    TENSOR_MAP_ALIGNMENT,
    TENSOR_MAP_BYTES,
    Element,
    TensorMap,
    replace_field,
)
from megamoe_jit.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Range, Scope

_SECTION = "Data Movement and Conversion Instructions: Tensor copy"
_DIMS = "1d 2d 3d 4d 5d"
_MODES = "tile tile::gather4 tile::scatter4 im2col im2col::w im2col::w::128 im2col_no_offs im2col_no_offs::w"

_COPY = Qualifiers(
    "cp.async.bulk.tensor",
    {
        "dim": _DIMS,
        "space": qualifiers.ASYNC_SPACES,
        "completion": qualifiers.COMPLETION,
        "mode": _MODES,
        "group": "cta_group::1 cta_group::2",
        "multicast": qualifiers.MULTICAST,
        "hint": qualifiers.CACHE_HINT,
    },
)
_REDUCE = Qualifiers(
    "cp.reduce.async.bulk.tensor",
    {
        "dim": _DIMS,
        "space": qualifiers.ASYNC_SPACES,
        "completion": qualifiers.COMPLETION,
        "mode": _MODES,
        "hint": qualifiers.CACHE_HINT,
        "operation": "add min max inc dec and or xor",
    },
)
_PREFETCH = Qualifiers(
    "cp.async.bulk.prefetch.tensor",
    {"dim": _DIMS, "level": "L2", "space": "global", "mode": _MODES, "hint": "L2::cache_hint L2::evict_last"},
)
_LOADS = ("shared::cta global", "shared::cluster global")
_STORE = "global shared::cta"
_MODES_OF = {_LOADS[0]: ("", "tile", "tile::gather4"), _LOADS[1]: ("", "tile", "tile::gather4"),
             _STORE: ("", "tile", "tile::scatter4")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Form:
    """What the qualifiers of a tensor copy say."""

    opcode: str
    dim: int
    direction: str
    is_gather: bool
    pairs: bool
    multicasts: bool
    has_hint: bool

    @classmethod
    def read(cls, opcode: str, found: dict[str, str], completion: str) -> _Form:
        """Make sense of qualifiers; raises UnsupportedError where they have none, or where it is not emulated."""
        direction, mode = found["space"], found["mode"]
        if mode.startswith("im2col"):
            raise UnsupportedError(
                f"{opcode}: .{mode} is not emulated, only .tile, .tile::gather4 and .tile::scatter4."
            )
        if direction not in _MODES_OF or mode not in _MODES_OF[direction] or found["completion"] != completion:
            raise UnsupportedError(f"{opcode}: no form copies {direction or 'nowhere'} .{mode} {found['completion']}.")
        gathers = mode in ("tile::gather4", "tile::scatter4")
        if not found["dim"] or (gathers and found["dim"] != "2d"):
            raise UnsupportedError(f"{opcode}: .{mode or 'tile'} has no {found['dim'] or 'dimensionless'} form.")
        multicasts, group = bool(found.get("multicast")), found.get("group", "")
        if multicasts and direction != _LOADS[1]:
            raise UnsupportedError(f"{opcode}: .multicast needs .shared::cluster.")
        if group and direction == _STORE:
            raise UnsupportedError(f"{opcode}: .{group} is for copies to shared memory.")
        return cls(
            opcode, int(found["dim"][0]), direction, gathers, group == "cta_group::2", multicasts, bool(found["hint"])
        )


@handler(_COPY.pattern, section=f"{_SECTION}: cp.async.bulk.tensor", where=_COPY.matches)
def cp_async_bulk_tensor(d: Decode) -> Handler:
    """Copy a box of a tensor."""
    found = _COPY.of(d.form)
    is_store = found["space"] == _STORE
    form = _Form.read(d.form.opcode, found, "bulk_group" if is_store else "mbarrier::complete_tx::bytes")
    return _store(d, form, None) if is_store else _load(d, form)


@handler(_REDUCE.pattern, section=f"{_SECTION}: cp.reduce.async.bulk.tensor", where=_REDUCE.matches)
def cp_reduce_async_bulk_tensor(d: Decode) -> Handler:
    """Reduce a box of shared memory into a tensor."""
    found = _REDUCE.of(d.form)
    if found["space"] != _STORE or not found["operation"] or found["mode"] == "tile::scatter4":
        raise UnsupportedError(f"{d.form.opcode}: reductions go from .shared::cta to .global, in .tile mode.")
    return _store(d, _Form.read(d.form.opcode, found, "bulk_group"), found["operation"])


noop(
    _PREFETCH.pattern,
    "caches are not modelled",
    section=f"{_SECTION}: cp.async.bulk.prefetch.tensor",
    where=_PREFETCH.matches,
)


def tensor_map_at(warp: Warp, site: Site, address: int) -> TensorMap:
    """Return the tensor map at a generic address; reports bytes that are none."""
    data, place = warp.machine.resolve(
        warp, address, "generic", TENSOR_MAP_BYTES, write=False, align=TENSOR_MAP_ALIGNMENT
    )
    if place.kind != "global":
        site.refuse(
            warp, f"The tensor map at 0x{address:x} is in {place.kind} memory; it must be param, const or global."
        )
    try:
        return TensorMap.decode(data.tobytes())
    except ArgumentError as error:
        site.refuse(warp, f"At 0x{address:x}, where a tensor map is wanted: {error}")


def _box(
    warp: Warp, site: Site, form: _Form, map_address: int, coordinates: Sequence[int], smem: int, *, reduces: bool
) -> Box:
    map_ = tensor_map_at(warp, site, map_address)
    reason = refuse_copy(
        map_,
        coordinates,
        smem,
        dim=form.dim,
        is_store=form.direction == _STORE,
        gather=form.is_gather,
        reduces=reduces,
    )
    if reason is not None:
        site.refuse(warp, f"{reason} ({map_.describe()})", kind="misaligned" if smem % SMEM_ALIGNMENT else "argument")
    if form.direction == _STORE and ends_in_chunk(map_):
        box = Box(map_, coordinates, gather=form.is_gather, whole_chunks=True)
        find = warp.machine.allocations.find
        if all(find(region.start, region.span) is not None for region in box.regions):
            return box  # else what lies behind the allocation is nobody's
    return Box(map_, coordinates, gather=form.is_gather)


def _memory(warp: Warp, regions: Iterable[Region], *, write: bool) -> list[Bytes]:
    """Return the bytes of global memory that the regions span."""
    resolve = warp.machine.resolve
    return [resolve(warp, region.start, "global", region.span, write=write, align=1)[0] for region in regions]


def _global_ranges(box: Box) -> Iterable[Range]:
    for region in box.regions:
        starts, length = region.rows()
        yield from (("global", None, start, length) for start in starts.tolist())


def _shared_ranges(box: Box, cta: Cta, base: int) -> Iterable[Range]:
    if box.layout.is_dense:
        return (("shared", cta, base, box.layout.extent),)
    return (("shared", cta, box.layout.offsets(base)),)


def _load(d: Decode, form: _Form) -> Handler:
    """Copy to shared memory, completing on an mbarrier."""
    check_operands(d, 3 + form.multicasts + form.has_hint)
    reads, coordinates = (address_of(d, 0), address_of(d, 1), address_of(d, 2)), coordinates_of(d, 1)
    cta_mask = value_of(d, 3, 2) if form.multicasts else None
    space = form.direction.split()[0]
    site = site_of(d)

    def execute(warp: Warp, mask: int) -> Outcome:
        for lane in lane_list(mask):
            dst, map_address, barrier = [read(warp, lane) for read in reads]
            box = _box(warp, site, form, map_address, coordinates(warp, lane), dst, reduces=False)
            _, place = warp.machine.resolve(warp, dst, space, box.layout.extent, write=True, align=SMEM_ALIGNMENT)
            signal = signal_at(warp, site, barrier, space)
            _check_ctas(warp, site, form, space, owner(place), signal.cta)
            ctas = [owner(place)] if cta_mask is None else destinations(warp, site, cta_mask(warp, lane))
            memory = _memory(warp, box.regions, write=False)
            for cta in ctas:
                told = cta if form.multicasts else signal.cta
                if form.multicasts and form.pairs:  # each pair tells its CTA with the parity of the barrier's
                    told = cta.peer(cta.rank & ~1 | signal.cta.rank & 1)
                _submit_load(warp, site, box, memory, cta, place.start, Signal(told, signal.offset))
        return None

    return execute


def _check_ctas(warp: Warp, site: Site, form: _Form, space: str, target: Cta, barrier: Cta) -> None:
    """Refuse a destination or a barrier in a CTA where the form has none."""
    if space == "shared::cta" and target is not warp.cta:
        site.refuse(warp, f"The destination of .shared::cta is in {target.name()}. Use .shared::cluster.")
    if form.multicasts or barrier is target:
        return
    if space == "shared::cta":
        site.refuse(warp, f"The mbarrier of .shared::cta is in {barrier.name()}. Use .shared::cluster.")
    if not form.pairs or barrier.rank // 2 != target.rank // 2:
        allowed = "the CTA of the destination or its pair's" if form.pairs else "the CTA of the destination"
        site.refuse(
            warp, f"The mbarrier is in {barrier.name()}, the data goes to {target.name()}: it must be in {allowed}."
        )


def _submit_load(warp: Warp, site: Site, box: Box, memory: list[Bytes], cta: Cta, base: int, signal: Signal) -> None:
    signal.barrier(warp)
    transactions = box.layout.transaction_bytes
    submit_load(
        warp,
        site,
        "tensor load",
        signal=signal,
        move=lambda: box.layout.scatter(box.load(memory), cta.smem, base),
        transactions=transactions,
        reads=lambda: _global_ranges(box),
        writes=lambda: _shared_ranges(box, cta, base),
        smem_of=(cta,) if cta is signal.cta else (cta, signal.cta),
    )
    warp.machine.counters.tma_bytes += transactions


def _store(d: Decode, form: _Form, operation: str | None) -> Handler:
    """Copy, or reduce with `operation`, from shared memory as part of a bulk group."""
    check_operands(d, 2 + form.has_hint)
    reads, coordinates = (address_of(d, 0), address_of(d, 1)), coordinates_of(d, 0)
    site = site_of(d)

    def execute(warp: Warp, mask: int) -> Outcome:
        for lane in lane_list(mask):
            map_address, src = [read(warp, lane) for read in reads]
            position = coordinates(warp, lane)
            box = _box(warp, site, form, map_address, position, src, reduces=operation is not None)
            _, place = warp.machine.resolve(warp, src, "shared", box.layout.extent, write=False, align=SMEM_ALIGNMENT)
            if place.cta is not warp.cta:
                site.refuse(warp, f"The source of .shared::cta is in {owner(place).name()}.")
            memory = _memory(warp, box.regions, write=True)
            combine = None if operation is None else _combination(warp, site, operation, box.map)
            _submit_store(warp, site, lane, box, memory, place, combine)
        return None

    return execute


def _submit_store(
    warp: Warp, site: Site, lane: int, box: Box, memory: list[Bytes], place: Place, combine: Combine | None
) -> None:
    layout, cta, base = box.layout, owner(place), place.start

    def write(payload: Bytes) -> None:
        if combine is None:
            box.store(payload, memory)
            return
        for target, operand in box.parts(payload, memory, f"u{box.map.element.bits // 8}"):
            reduce_rows(target, operand, combine)

    submit_store(
        warp,
        site,
        lane,
        "tensor store" if combine is None else "tensor reduction",
        read=lambda: layout.gather(cta.smem, base),
        write=write,
        nbytes=layout.transaction_bytes,
        reads=lambda: _shared_ranges(box, cta, base),
        writes=lambda: _global_ranges(box),
        atomic=combine is not None,
    )
    warp.machine.counters.tma_bytes += layout.transaction_bytes


def reduce_rows(target: npt.NDArray[Any], operand: npt.NDArray[Any], combine: Combine) -> None:
    """Reduce `operand` into `target` in place; rows may lie over one another (strides of 0 do that)."""
    extent, overlaps = target.shape[-1] * target.itemsize, False
    for stride, count in sorted(zip(target.strides[:-1], target.shape[:-1], strict=True)):
        if count > 1:
            overlaps |= stride < extent
            extent += (count - 1) * stride
    if not overlaps:
        target[...] = combine(target, operand)
        return
    for index in np.ndindex(target.shape[:-1]):
        target[index] = combine(target[index], operand[index])


# Element type -> PTX type of reductions, by kind of operation.
_ARITHMETIC = {
    Element.U32: "u32", Element.I32: "s32", Element.U64: "u64", Element.I64: "s64", Element.F16: "f16",
    Element.BF16: "bf16", Element.F32: "f32", Element.F32_FTZ: "f32", Element.F64: "f64",
}  # fmt: skip
_ALLOWED = {
    "add": "u32 s32 u64 f32 f64 f16 bf16", "min": "u32 s32 u64 s64 f16 bf16", "max": "u32 s32 u64 s64 f16 bf16",
    "inc": "u32", "dec": "u32", "and": "u32 s32 u64 s64", "or": "u32 s32 u64 s64", "xor": "u32 s32 u64 s64",
}  # fmt: skip


def _combination(warp: Warp, site: Site, operation: str, map_: TensorMap) -> Combine:
    type_ = _ARITHMETIC.get(map_.element)
    if type_ not in _ALLOWED[operation].split():
        site.refuse(warp, f".{operation} of a tensor takes no {map_.element.value} ({map_.describe()}).")
    return combination(operation, type_, flushes=map_.element is Element.F32_FTZ, keeps_nan=True)


_FIELDS = (
    "global_address rank box_dim global_dim global_stride element_stride elemtype interleave_layout swizzle_mode "
    "swizzle_atomicity fill_mode"
)
_ORDINAL_FIELDS = ("box_dim", "global_dim", "global_stride", "element_stride")
_WIDE_FIELDS = ("global_address", "global_stride")
_CONSTANT_FIELDS = ("elemtype", "interleave_layout", "swizzle_mode", "swizzle_atomicity", "fill_mode")


@handler(
    "tensormap.replace.tile.<field>{space:.global|.shared::cta|}.b1024.<type>",
    sets={"field": _FIELDS},
    types="b32 b64",
    section="Data Movement and Conversion Instructions: tensormap.replace",
    where=lambda form: (form["type"] == "b64") == (form["field"] in _WIDE_FIELDS),
)
def tensormap_replace(d: Decode) -> Handler:
    """Replace a field of a tensor map in shared or global memory."""
    field, site = d.form["field"], site_of(d)
    has_ordinal = field in _ORDINAL_FIELDS
    check_operands(d, 2 + has_ordinal)
    ordinal = constant(d, 1) if has_ordinal else 0
    if field in _CONSTANT_FIELDS:
        constant(d, 1)
    reads = address_of(d, 0), value_of(d, 1 + has_ordinal, 8 if field in _WIDE_FIELDS else 4)
    space = {"": "generic", "global": "global", "shared::cta": "shared"}[d.form["space"]]

    def execute(warp: Warp, mask: int) -> Outcome:
        for lane in lane_list(mask):
            address, value = [read(warp, lane) for read in reads]
            data, place = warp.machine.resolve(
                warp, address, space, TENSOR_MAP_BYTES, write=True, align=TENSOR_MAP_ALIGNMENT
            )
            warp.machine.checks.generic(warp, place, TENSOR_MAP_BYTES, "read")
            warp.machine.checks.generic(warp, place, TENSOR_MAP_BYTES, "write")
            try:
                edited = replace_field(data.tobytes(), field, value, ordinal)
            except ArgumentError as error:
                site.refuse(warp, f"tensormap.replace at 0x{address:x}: {error}")
            data[:] = np.frombuffer(edited, np.uint8)
        return None

    return execute


@handler(
    "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.<scope>.sync.aligned",
    sets={"scope": qualifiers.SCOPES},
    section="Parallel Synchronization and Communication Instructions: tensormap.cp_fenceproxy",
)
def tensormap_cp_fenceproxy(d: Decode) -> Handler:
    """Copy a tensor map from shared to global memory, once for the warp, and release it to the tensormap proxy."""
    scope: Scope = d.form["scope"]  # type: ignore[assignment]
    to, from_, site = d.address(0), d.address(1), site_of(d)
    if constant(d, 2) != TENSOR_MAP_BYTES:
        raise UnsupportedError(f"{d.instruction.text}: the size must be {TENSOR_MAP_BYTES}.")

    def execute(warp: Warp, mask: int) -> Outcome:
        lane, machine = one_lane(mask), warp.machine
        addresses = to(warp), from_(warp)
        if any(len(np.unique(operand[lanes_of(mask)])) > 1 for operand in addresses):
            site.refuse(warp, "Lanes give different addresses to tensormap.cp_fenceproxy.")
        dst, src = (int(operand[lane]) for operand in addresses)
        size, align = TENSOR_MAP_BYTES, TENSOR_MAP_BYTES
        data, origin = machine.resolve(warp, src, "shared", size, write=False, align=align)
        target, place = machine.resolve(warp, dst, "global", size, write=True, align=align)
        machine.checks.generic(warp, origin, size, "read")
        machine.checks.generic(warp, place, size, "write")
        machine.checks.fence(warp, "release", scope)
        target[:] = data
        return None

    return execute
