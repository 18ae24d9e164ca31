"""cp.async.bulk: copies of bytes between global memory and shared memory, and their groups; st.bulk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from megamoe_jit.emulator.engines.copies import (
    POISON,
    Bytes,
    Signal,
    Site,
    commit_groups,
    range_of,
    signal_at,
    submit_load,
    submit_store,
    wait_groups,
)
from megamoe_jit.emulator.engines.reductions import bits_dtype, combination
from megamoe_jit.emulator.isa import qualifiers
from megamoe_jit.emulator.isa.decode import Decode
from megamoe_jit.emulator.isa.qualifiers import Qualifiers
from megamoe_jit.emulator.isa.scalars import address_of, lane_list, value_of
from megamoe_jit.emulator.isa.table import handler, noop
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome
from megamoe_jit.emulator.machine.state import Cta, Place, Warp
from megamoe_jit.emulator.parser.nodes import Imm
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Range

_Reduce: TypeAlias = Callable[[Bytes, Bytes], None]
_ASYNC = "Data Movement and Conversion Instructions: Asynchronous copy"
BULK_ALIGNMENT = 16
"""Of addresses and sizes of bulk copies."""
_MAX_ST_BULK = 16777216

_COPY = Qualifiers(
    "cp.async.bulk",
    {
        "semantics": "weak relaxed",
        "scope": qualifiers.SCOPES,
        "space": qualifiers.ASYNC_SPACES,
        "completion": qualifiers.COMPLETION,
        "multicast": qualifiers.MULTICAST,
        "hint": qualifiers.CACHE_HINT,
        "out_of_bounds": "ignore_oob",
        "mask": "cp_mask",
        "type": "b128",
    },
)
_DIRECTIONS = {
    "shared::cta global": "mbarrier::complete_tx::bytes",
    "shared::cluster global": "mbarrier::complete_tx::bytes",
    "shared::cluster shared::cta": "mbarrier::complete_tx::bytes",
    "global shared::cta": "bulk_group",
}


@handler(_COPY.pattern, section=f"{_ASYNC}: cp.async.bulk", where=_COPY.matches)
def cp_async_bulk(d: Decode) -> Handler:
    """Copy bytes; the direction says what it completes on."""
    found = _COPY.of(d.form)
    direction, completion = found["space"], found["completion"]
    if _DIRECTIONS.get(direction) != completion:
        raise UnsupportedError(
            f"{d.form.opcode}: no form copies {direction or 'nowhere'} with {completion or 'nothing'}."
        )
    is_store = direction == "global shared::cta"
    if (found["out_of_bounds"] and direction != "shared::cta global") or (found["mask"] and not is_store):
        raise UnsupportedError(f"{d.form.opcode}: .ignore_oob is for global to shared::cta, .cp_mask for stores.")
    if found["multicast"] and direction != "shared::cluster global":
        raise UnsupportedError(f"{d.form.opcode}: .multicast is for copies from global memory to shared::cluster.")
    if is_store:
        return _store(d, has_hint=bool(found["hint"]), has_mask=bool(found["mask"]))
    return _load(
        d,
        *direction.split(),
        ignores=bool(found["out_of_bounds"]),
        multicasts=bool(found["multicast"]),
        has_hint=bool(found["hint"]),
    )


def site_of(d: Decode) -> Site:
    """Return what reports need to know of the instruction."""
    return Site(d.pc, d.op.section)


def check_operands(d: Decode, count: int) -> None:
    """Refuse an instruction with another number of operands."""
    if d.count != count:
        raise UnsupportedError(f"{d.instruction.text} has {d.count} operands, and {d.form.opcode} takes {count}.")


def check_bulk(warp: Warp, site: Site, size: int, what: str = "size") -> None:
    """Refuse a number of bytes that is no multiple of 16."""
    if size % BULK_ALIGNMENT:
        site.refuse(warp, f"{what} {size} of a bulk copy is no multiple of {BULK_ALIGNMENT}.")


def destinations(warp: Warp, site: Site, mask: int) -> Iterator[Cta]:
    """Yield the CTAs of a multicast."""
    if not mask:
        site.refuse(warp, "The CTA mask of a multicast is 0: no CTA gets the data.")
    for rank in range(mask.bit_length()):
        if mask >> rank & 1:
            yield warp.cta.peer(rank)


def _load(d: Decode, target: str, source: str, *, ignores: bool, multicasts: bool, has_hint: bool) -> Handler:
    """Copy to shared memory, completing on an mbarrier."""
    barrier_index = 5 if ignores else 3
    check_operands(d, barrier_index + 1 + multicasts + has_hint)
    reads = [address_of(d, 0), address_of(d, 1), value_of(d, 2, 4), address_of(d, barrier_index)]
    reads += [value_of(d, 3, 4), value_of(d, 4, 4)] if ignores else []
    cta_mask = value_of(d, barrier_index + 1, 2) if multicasts else None
    site = site_of(d)

    def execute(warp: Warp, mask: int) -> Outcome:
        for lane in lane_list(mask):
            dst, src, size, barrier, *margins = [read(warp, lane) for read in reads]
            left, right = margins or (0, 0)
            check_bulk(warp, site, size)
            if left > 15 or right > 15 or left + right > size:
                site.refuse(
                    warp, f"ignoreBytesLeft {left} and ignoreBytesRight {right}: both are 0 to 15, of {size} bytes."
                )
            if not size:
                continue
            if src % BULK_ALIGNMENT:
                site.refuse(warp, f"Source address 0x{src:x} is no multiple of {BULK_ALIGNMENT}.", kind="misaligned")
            resolve = warp.machine.resolve
            _, place = resolve(warp, dst, target, size, write=True, align=BULK_ALIGNMENT, lane=lane)
            data, origin = resolve(warp, src + left, source, size - left - right, write=False, align=1, lane=lane)
            signal = signal_at(warp, site, barrier, target)
            _check_ctas(warp, site, target, source, place, signal, multicasts)
            ctas = [owner(place)] if cta_mask is None else destinations(warp, site, cta_mask(warp, lane))
            for cta in ctas:
                copy = _Copy(cta, place.start, size, left, data, origin)
                copy.submit(warp, site, Signal(cta, signal.offset))
        return None

    return execute


def _check_ctas(
    warp: Warp, site: Site, target: str, source: str, place: Place, signal: Signal, multicasts: bool
) -> None:
    """Refuse a destination or a barrier in a CTA where the form has none."""
    if target == "shared::cta" and place.cta is not warp.cta:
        site.refuse(warp, f"The destination of .shared::cta is in {owner(place).name()}.")
    if source == "shared::cta" and place.cta is warp.cta:
        site.refuse(warp, "A copy from shared::cta to shared::cluster goes to another CTA of the cluster.")
    if not multicasts and signal.cta is not place.cta:
        site.refuse(warp, f"The mbarrier is in {signal.cta.name()}, the data goes to {owner(place).name()}.")


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy of `data` (at `origin`) to [start + skip, ...) in `cta`; the rest of `size` bytes is unspecified."""

    cta: Cta
    start: int
    size: int
    skip: int
    data: Bytes
    origin: Place

    def submit(self, warp: Warp, site: Site, signal: Signal) -> None:
        """Start it."""
        signal.barrier(warp)
        submit_load(
            warp,
            site,
            "bulk load",
            signal=signal,
            move=self._move,
            transactions=self.size,
            reads=lambda: (range_of(self.origin, len(self.data)),),
            writes=lambda: (("shared", self.cta, self.start, self.size),),
            smem_of=(self.cta,) if self.origin.cta is None else (self.cta, self.origin.cta),
        )
        warp.machine.counters.tma_bytes += self.size

    def _move(self) -> None:
        target = self.cta.smem[self.start : self.start + self.size]
        if len(self.data) != self.size:
            target[:] = POISON
        target[self.skip : self.skip + len(self.data)] = self.data


def owner(place: Place) -> Cta:
    """Return the CTA of a shared place."""
    assert place.cta is not None, "a shared place has a CTA"
    return place.cta


def _store(d: Decode, *, has_hint: bool, has_mask: bool) -> Handler:
    """Copy from shared memory to global memory, as part of a bulk group."""
    check_operands(d, 3 + has_hint + has_mask)
    reads = [address_of(d, 0), address_of(d, 1), value_of(d, 2, 4)]
    byte_mask = value_of(d, 3 + has_hint, 2) if has_mask else None
    site = site_of(d)

    def execute(warp: Warp, mask: int) -> Outcome:
        for lane in lane_list(mask):
            dst, src, size = [read(warp, lane) for read in reads]
            check_bulk(warp, site, size)
            if not size:
                continue
            source, origin = own_source(warp, site, src, size, lane)
            target, place = warp.machine.resolve(warp, dst, "global", size, write=True, align=BULK_ALIGNMENT, lane=lane)
            kept = _kept_bytes(byte_mask(warp, lane), size) if byte_mask else None
            _submit_copy(warp, site, lane, source, origin, target, place, kept)
        return None

    return execute


def _submit_copy(
    warp: Warp, site: Site, lane: int, source: Bytes, origin: Place, target: Bytes, place: Place, kept: Bytes | None
) -> None:
    """Start a store of `source` to `target`; `kept` says which bytes."""
    size = len(source)

    def write(payload: Bytes) -> None:
        if kept is None:
            target[:] = payload
        else:
            np.copyto(target, payload, where=kept.view(np.bool_))

    def written() -> Iterable[Range]:
        return (range_of(place, size),) if kept is None else (("global", None, place.start + np.flatnonzero(kept)),)

    submit_store(
        warp,
        site,
        lane,
        "bulk store",
        read=source.copy,
        write=write,
        nbytes=size,
        reads=lambda: (range_of(origin, size),),
        writes=written,
    )
    warp.machine.counters.tma_bytes += size


def own_source(warp: Warp, site: Site, address: int, size: int, lane: int) -> tuple[Bytes, Place]:
    """Return the bytes of the own CTA's shared memory that a bulk operation reads."""
    source, origin = warp.machine.resolve(warp, address, "shared", size, write=False, align=BULK_ALIGNMENT, lane=lane)
    if origin.cta is not warp.cta:
        site.refuse(warp, f"The source of .shared::cta is in {owner(origin).name()}.")
    return source, origin


def _kept_bytes(byte_mask: int, size: int) -> Bytes:
    """Return 1 for each byte that a 16-bit mask, repeated, lets through."""
    chunk = np.array([byte_mask >> i & 1 for i in range(16)], np.uint8)
    return np.tile(chunk, size // 16)


_REDUCE = Qualifiers(
    "cp.reduce.async.bulk",
    {
        "semantics": "relaxed",
        "scope": qualifiers.SCOPES,
        "space": qualifiers.ASYNC_SPACES,
        "completion": qualifiers.COMPLETION,
        "hint": qualifiers.CACHE_HINT,
        "operation": "and or xor add inc dec min max",
        "subnormals": "noftz",
        "type": "f16 bf16 b32 u32 s32 b64 u64 s64 f32 f64",
    },
)
_SHARED_REDUCTIONS = {
    "add": "u32 s32 u64", "min": "u32 s32", "max": "u32 s32", "inc": "u32", "dec": "u32",
    "and": "b32", "or": "b32", "xor": "b32",
}  # fmt: skip
_GLOBAL_REDUCTIONS = {
    "add": "u32 s32 u64 f32 f64 f16 bf16", "min": "u32 s32 u64 s64 f16 bf16", "max": "u32 s32 u64 s64 f16 bf16",
    "inc": "u32", "dec": "u32", "and": "b32 b64", "or": "b32 b64", "xor": "b32 b64",
}  # fmt: skip


@handler(_REDUCE.pattern, section=f"{_ASYNC}: cp.reduce.async.bulk", where=_REDUCE.matches)
def cp_reduce_async_bulk(d: Decode) -> Handler:
    """Reduce elements of shared memory into global memory, or into another CTA's shared memory."""
    found = _REDUCE.of(d.form)
    direction, operation, type_ = found["space"], found["operation"], found["type"]
    is_store = direction == "global shared::cta"
    allowed = _GLOBAL_REDUCTIONS if is_store else _SHARED_REDUCTIONS
    if (not is_store and direction != "shared::cluster shared::cta") or _DIRECTIONS[direction] != found["completion"]:
        raise UnsupportedError(f"{d.form.opcode}: no form reduces {direction or 'nowhere'} with {found['completion']}.")
    if type_ not in allowed.get(operation, "").split():
        raise UnsupportedError(f"{d.form.opcode}: .{operation} of {direction} takes no {type_ or 'missing type'}.")
    if (operation == "add" and type_ in ("f16", "bf16")) != bool(found["subnormals"]) and type_ != "f32":
        raise UnsupportedError(f"{d.form.opcode}: .noftz belongs to .add of .f16 and .bf16.")
    combine, dtype = combination(operation, type_, keeps_nan=is_store), bits_dtype(type_)
    check_operands(d, (3 if is_store else 4) + bool(found["hint"]))
    reads = [address_of(d, 0), address_of(d, 1), value_of(d, 2, 4)]
    barrier = None if is_store else address_of(d, 3)
    site = site_of(d)

    def reduce_into(target: Bytes, payload: Bytes) -> None:
        elements = target.view(dtype)
        elements[:] = combine(elements, payload.view(dtype))

    def execute(warp: Warp, mask: int) -> Outcome:
        for lane in lane_list(mask):
            dst, src, size = [read(warp, lane) for read in reads]
            check_bulk(warp, site, size)
            if not size:
                continue
            source, origin = own_source(warp, site, src, size, lane)
            space = "global" if is_store else "shared::cluster"
            target, place = warp.machine.resolve(warp, dst, space, size, write=True, align=BULK_ALIGNMENT, lane=lane)
            if barrier is None:
                _submit_reduction(warp, site, lane, source, origin, target, place, reduce_into)
                continue
            signal = signal_at(warp, site, barrier(warp, lane), "shared::cluster")
            if signal.cta is not place.cta:
                site.refuse(warp, f"The mbarrier is in {signal.cta.name()}, the data goes to {owner(place).name()}.")
            _submit_remote_reduction(warp, site, source, origin, target, place, signal, reduce_into)
        return None

    return execute


def _submit_reduction(
    warp: Warp, site: Site, lane: int, source: Bytes, origin: Place, target: Bytes, place: Place, reduce_into: _Reduce
) -> None:
    size = len(source)
    submit_store(
        warp,
        site,
        lane,
        "bulk reduction",
        read=source.copy,
        write=lambda payload: reduce_into(target, payload),
        nbytes=size,
        reads=lambda: (range_of(origin, size),),
        writes=lambda: (range_of(place, size),),
        atomic=True,
    )


def _submit_remote_reduction(
    warp: Warp,
    site: Site,
    source: Bytes,
    origin: Place,
    target: Bytes,
    place: Place,
    signal: Signal,
    reduce_into: _Reduce,
) -> None:
    size = len(source)
    submit_load(
        warp,
        site,
        "bulk reduction",
        signal=signal,
        move=lambda: reduce_into(target, source),
        transactions=size,
        reads=lambda: (range_of(origin, size),),
        writes=lambda: (range_of(place, size),),
        smem_of=(owner(place), warp.cta),
        atomic=True,
    )


@handler("cp.async.bulk.commit_group", section=f"{_ASYNC}: cp.async.bulk.commit_group")
def cp_async_bulk_commit_group(d: Decode) -> Handler:  # noqa: ARG001
    """Close the bulk group of each thread."""

    def execute(warp: Warp, mask: int) -> Outcome:
        commit_groups(warp, lane_list(mask))
        return None

    return execute


@handler("cp.async.bulk.wait_group{.read}", section=f"{_ASYNC}: cp.async.bulk.wait_group")
def cp_async_bulk_wait_group(d: Decode) -> Handler:
    """Wait for bulk groups, or for their sources to be read."""
    allowed, reads_only = constant(d, 0), d.form.has("read")

    def execute(warp: Warp, mask: int) -> Outcome:
        return wait_groups(warp, lane_list(mask), allowed, reads_only=reads_only)

    return execute


def constant(d: Decode, index: int) -> int:
    """Return the integer constant that operand `index` must be."""
    operand = d.operand(index)
    if not isinstance(operand, Imm) or operand.is_float:
        raise UnsupportedError(f"{d.instruction.text}: operand {index} must be an integer constant.")
    return int(operand.value)


noop(
    "cp.async.bulk.prefetch.L2.global{.L2::cache_hint|.L2::evict_last|}",
    "caches are not modelled",
    section=f"{_ASYNC}: cp.async.bulk.prefetch",
)


@handler("st.bulk{.weak}{.shared::cta}", section="Data Movement and Conversion Instructions: st.bulk")
def st_bulk(d: Decode) -> Handler:
    """Fill a part of shared memory with zeros, at once."""
    if constant(d, 2):
        raise UnsupportedError(f"{d.instruction.text}: only 0 can be stored.")
    space = "shared" if d.form.has("shared::cta") else "generic"
    reads, site = (address_of(d, 0), value_of(d, 1, 8)), site_of(d)

    def execute(warp: Warp, mask: int) -> Outcome:
        for lane in lane_list(mask):
            address, size = [read(warp, lane) for read in reads]
            if size % 8 or size > _MAX_ST_BULK:
                site.refuse(warp, f"size {size} of st.bulk is no multiple of 8 up to {_MAX_ST_BULK}.")
            if not size:
                continue
            target, place = warp.machine.resolve(warp, address, space, size, write=True, align=8, lane=lane)
            if place.kind != "shared":
                site.refuse(warp, f"Address 0x{address:x} of st.bulk is no shared address.")
            warp.machine.checks.generic(warp, place, size, "write")
            target[:] = 0
        return None

    return execute
