"""st.async and red.async: stores and reductions of single values that complete on a remote mbarrier, or release."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.engines.copies import Bytes, Signal, Site, range_of, signal_at, submit_load
from megamoe_jit.emulator.engines.reductions import Combine, bits_dtype, combination
from megamoe_jit.emulator.isa.bulk import check_operands, owner, site_of
from megamoe_jit.emulator.isa.decode import Decode, lanes_of
from megamoe_jit.emulator.isa.qualifiers import Qualifiers
from megamoe_jit.emulator.isa.table import handler
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome
from megamoe_jit.emulator.machine.queues import AsyncOp
from megamoe_jit.emulator.machine.state import Place, Warp
from megamoe_jit.emulator.parser.nodes import RegOp
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Range, Scope

Payloads: TypeAlias = Callable[[Warp], npt.NDArray[np.uint8]]
Move: TypeAlias = Callable[[Bytes, Bytes], None]
"""Brings a payload to its target."""

_STORE = Qualifiers(
    "st.async",
    {
        "semantics": "weak release",
        "mmio": "mmio",
        "scope": "cluster gpu sys",
        "space": "shared::cluster global",
        "completion": "mbarrier::complete_tx::bytes",
        "vector": "v2 v4",
        "type": "b8 b16 b32 b64 b128 u8 u16 u32 u64 s8 s16 s32 s64 f32 f64",
    },
)
_REDUCE = Qualifiers(
    "red.async",
    {
        "semantics": "relaxed release",
        "mmio": "mmio",
        "scope": "cluster gpu sys",
        "space": "shared::cluster global",
        "completion": "mbarrier::complete_tx::bytes",
        "operation": "add min max inc dec and or xor",
        "type": "b32 u32 s32 u64 s64",
    },
)
_REMOTE_REDUCTIONS = {
    "add": "u32 s32 u64", "min": "u32 s32", "max": "u32 s32", "inc": "u32", "dec": "u32",
    "and": "b32", "or": "b32", "xor": "b32",
}  # fmt: skip


@handler(_STORE.pattern, section="Data Movement and Conversion Instructions: st.async", where=_STORE.matches)
def st_async(d: Decode) -> Handler:
    """Store values, some time later."""
    found = _STORE.of(d.form)
    type_, releases = found["type"], found["semantics"] == "release"
    narrow = type_[1:] in ("8", "16")
    if not type_ or (
        found["vector"] and (type_[1:] not in ("32", "64") or (found["vector"], type_[1:]) == ("v4", "64"))
    ):
        raise UnsupportedError(f"{d.form.opcode}: st.async has no such vector and type.")
    if (releases and (found["vector"] or type_ == "b128")) or (narrow and not releases):
        raise UnsupportedError(f"{d.form.opcode}: st.async has no such type with .{found['semantics'] or 'weak'}.")
    count = int(found["vector"][1:]) if found["vector"] else 1
    return _handler(d, found, _payloads(d, type_, count), _overwrite, "st.async", remote_only=False)


@handler(
    _REDUCE.pattern,
    section="Parallel Synchronization and Communication Instructions: red.async",
    where=_REDUCE.matches,
)
def red_async(d: Decode) -> Handler:
    """Combine values with memory, some time later."""
    found = _REDUCE.of(d.form)
    operation, type_, releases = found["operation"], found["type"], found["semantics"] == "release"
    allowed = {"add": "u32 s32 u64 s64"} if releases else _REMOTE_REDUCTIONS
    if not found["semantics"] or type_ not in allowed.get(operation, "").split():
        raise UnsupportedError(f"{d.form.opcode}: red.async has no such operation and type.")
    combine: Combine = combination(operation, type_)
    dtype = bits_dtype(type_)

    def move(target: Bytes, payload: Bytes) -> None:
        cell = target.view(dtype)
        cell[:] = combine(cell, payload.view(dtype))

    return _handler(d, found, _payloads(d, type_, 1), move, "red.async", remote_only=True)


def _overwrite(target: Bytes, payload: Bytes) -> None:
    target[:] = payload


def _payloads(d: Decode, type_: str, count: int) -> Payloads:
    """Read what each lane sends as (32, bytes)."""
    if type_ == "b128":
        operand, layout = d.operand(1), d.layout
        if not isinstance(operand, RegOp) or operand.reg.width != 16:
            raise UnsupportedError(f"{d.instruction.text}: operand 1 must be a .b128 register.")
        reg = operand.reg
        return lambda warp: layout.view(warp, reg).copy().view(np.uint8)
    if len(d.items(1)) != count:
        raise UnsupportedError(f"{d.instruction.text}: {d.form.opcode} takes {count} values.")
    values = d.values(1, bits_dtype(type_))
    return lambda warp: np.ascontiguousarray(values(warp).T).view(np.uint8)


def _handler(
    d: Decode, found: dict[str, str], payloads: Payloads, move: Move, kind: str, *, remote_only: bool
) -> Handler:
    """Make the handler of either instruction."""
    site, addresses = site_of(d), d.address(0)
    if found["semantics"] == "release":
        if found["space"] == "shared::cluster" or found["completion"] or found["scope"] not in ("gpu", "sys"):
            raise UnsupportedError(f"{d.form.opcode}: .release is for global memory, at scope .gpu or .sys.")
        check_operands(d, 2)
        scope: Scope = found["scope"]  # type: ignore[assignment]
        return _releasing(site, addresses, payloads, move, kind, "global" if found["space"] else "generic", scope)
    if found["space"] == "global" or found["mmio"] or found["scope"] not in ("", "cluster"):
        raise UnsupportedError(f"{d.form.opcode}: only .release is for global memory.")
    check_operands(d, 3)
    barriers = d.address(2)
    space = "shared::cluster" if found["space"] else "generic"

    def execute(warp: Warp, mask: int) -> Outcome:
        if len(warp.cluster.ctas) < 2:
            site.refuse(warp, f"{kind} needs a cluster of two CTAs or more.")
        data, targets, signals = payloads(warp), addresses(warp), barriers(warp)
        sent: dict[Signal, list[tuple[Bytes, Place, Bytes]]] = {}
        for lane in lanes_of(mask).tolist():
            payload = data[lane].copy()
            target, place = warp.machine.resolve(
                warp, int(targets[lane]), space, len(payload), write=True, align=len(payload)
            )
            signal = signal_at(warp, site, int(signals[lane]), space)
            if place.cta is not signal.cta:
                where = place.cta.name() if place.cta is not None else "global memory"
                site.refuse(warp, f"The data goes to {where}, the mbarrier is in {signal.cta.name()}.")
            if remote_only and signal.cta is warp.cta:
                site.refuse(warp, f"{kind} goes to another CTA of the cluster.")
            sent.setdefault(signal, []).append((target, place, payload))
        for signal, parts in sent.items():
            _send(warp, site, kind, signal, parts, move, is_atomic=remote_only)
        return None

    return execute


def _send(
    warp: Warp,
    site: Site,
    kind: str,
    signal: Signal,
    parts: list[tuple[Bytes, Place, Bytes]],
    move: Move,
    *,
    is_atomic: bool,
) -> None:
    """Start what the lanes send to one barrier."""

    def written() -> Iterable[Range]:
        return [range_of(place, len(payload)) for _, place, payload in parts]

    def bring() -> None:
        for target, _, payload in parts:
            move(target, payload)

    submit_load(
        warp,
        site,
        kind,
        signal=signal,
        move=bring,
        transactions=sum(len(payload) for _, _, payload in parts),
        reads=tuple,
        writes=written,
        smem_of=(owner(parts[0][1]),),
        proxy="generic",
        atomic=is_atomic,
        at_exit="flush",
    )


def _releasing(
    site: Site,
    addresses: Callable[[Warp], npt.NDArray[Any]],
    payloads: Payloads,
    move: Move,
    kind: str,
    space: str,
    scope: Scope,
) -> Handler:
    """Store to global memory, releasing what came before; the end of the CTA completes it."""

    def execute(warp: Warp, mask: int) -> Outcome:
        machine, data, targets = warp.machine, payloads(warp), addresses(warp)
        parts = []
        for lane in lanes_of(mask).tolist():
            payload = data[lane].copy()
            target, place = machine.resolve(
                warp, int(targets[lane]), space, len(payload), write=True, align=len(payload)
            )
            if place.kind != "global":
                site.refuse(warp, f"Address 0x{int(targets[lane]):x} is no global address.")
            access = "write" if kind == "st.async" else "atomic"
            machine.checks.strong(warp, place, len(payload), access, "release", scope)  # type: ignore[arg-type]
            parts.append((target, payload))

        def run() -> None:
            for target, payload in parts:
                move(target, payload)

        nbytes = sum(len(payload) for _, payload in parts)
        machine.submit(AsyncOp(issuer=warp, kind=kind, pc=site.pc, run=run, at_exit="flush", nbytes=nbytes))
        return None

    return execute
