"""The Python side of shadow memory: accesses of handlers and of asynchronous work, whole ranges at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.checks.granules import Watched
from megamoe_jit.emulator.memory import tmem
from megamoe_jit.emulator.native.shadow_layout import (
    ACTOR_MASK,
    ACTOR_SHIFT,
    ASYNC,
    ATOMIC,
    BYTES_SHIFT,
    EPOCH_BITS,
    EPOCH_MASK,
    IN_FLIGHT,
    INITIALISED,
    OBJECT,
    READ_PC_BITS,
    SharedShadow,
)

_U = np.uint64
_EPOCH_MASK, _ACTOR_MASK, _ACTOR_SHIFT = _U(EPOCH_MASK), _U(ACTOR_MASK), _U(ACTOR_SHIFT)
_BYTES_SHIFT = _U(BYTES_SHIFT)
TMEM_BYTES = tmem.SHADOW_BYTES
TAIL = 1 << 50
"""Flag of a read word: maybe nobody uses what was read, see `granules.watch`."""


class Clash(NamedTuple):
    """An earlier access that is not ordered before a later one.

    Attributes:
        what: "write" or "read", the earlier access.
        actor, epoch, pc: who and where (pc -1: not known).
        is_async: it came through the async proxy.
        is_ordered: it is ordered, but no proxy fence (or tcgen05 fence) lies between.
        offset: first byte where they meet: offset in the shared space, in tensor memory, or host address.
        is_tail: what one of them reads there is maybe not used.
    """

    what: str
    actor: int
    epoch: int
    pc: int
    is_async: bool
    is_ordered: bool
    offset: int
    is_tail: bool = False


def unseen_write(
    at: Watched, clock: npt.NDArray[np.uint32], own: int, *, strong: bool, fenced: npt.NDArray[np.uint32] | None
) -> Clash | None:
    """Return a write of these bytes that `clock` has not seen, if there is one.

    Args:
        at: the bytes of the later access.
        clock: an ORDER row.
        own: actor whose writes are ordered anyway.
        strong: the later access is atomic, and so may meet atomic ones.
        fenced: a SHARED or GLOBAL row that ordinary writes must be in too (a TENSOR row, for tensor memory), or None.
    """
    shadow, index = at.shadow, at.granules
    words = shadow.writer[index] if isinstance(shadow, SharedShadow) else shadow["writer"][index]
    if not words.any():
        return None
    actors = (words >> _ACTOR_SHIFT & _ACTOR_MASK).astype(np.int64)
    epochs = (words & _EPOCH_MASK).astype(np.uint32)
    bad = epochs > _at(clock, actors)
    if bad.any():
        bad &= actors != own
    ordered = False
    if not bad.any():
        if fenced is None:
            return None
        bad = epochs > _at(fenced, actors)
        if not bad.any():
            return None
        bad &= actors != own
        if not at.is_tensor:  # what came through the async proxy needs no proxy fence to be used there again
            bad &= words & _U(ASYNC) == 0
        ordered = True
    if not at.is_whole:
        bad &= words >> _BYTES_SHIFT & at.masks != 0
    if strong:
        bad &= words & _U(ATOMIC) == 0
    bad &= words != 0
    if not bad.any():
        return None
    first = int(bad.argmax())
    word = int(words[first])
    pcs = shadow.writer_pc[index] if isinstance(shadow, SharedShadow) else shadow["writer_pc"][index]
    return Clash(
        "write",
        int(actors[first]),
        int(epochs[first]),
        int(pcs[first]),
        bool(word & ASYNC),
        ordered,
        at.offset(first),
        at.is_tail,
    )


def unseen_read(at: Watched, clock: npt.NDArray[np.uint32], own: tuple[int, ...], *, strong: bool) -> Clash | None:
    """Return a read of these bytes that `clock` has not seen, if there is one; actors `own` are ordered anyway."""
    shadow, index = at.shadow, at.granules
    if not isinstance(shadow, SharedShadow):
        words = shadow["reader"][index]
        actors = (words >> _ACTOR_SHIFT & _ACTOR_MASK).astype(np.int64)
        bad = ((words & _EPOCH_MASK) > _at(clock, actors)) & (words >> _BYTES_SHIFT & at.masks != 0)
        for actor in own:
            bad &= actors != actor
        if strong:
            bad &= words & _U(ATOMIC) == 0
        if not bad.any():
            return None
        certain = bad & (words & _U(TAIL) == 0)
        first = int((certain if certain.any() else bad).argmax())
        word = int(words[first])
        pc = int(shadow["reader_pc"][index][first])
        return Clash(
            "read",
            int(actors[first]),
            word & EPOCH_MASK,
            pc,
            bool(word & ASYNC),
            False,
            at.offset(first),
            bool(word & TAIL),
        )
    entries = shadow.reads[index]
    if not entries.any():
        return None
    seen = clock[shadow.first_reader : shadow.first_reader + shadow.read_stride]
    if len(seen) < shadow.read_stride:  # a clock that was cut where it is zero
        seen = np.pad(seen, (0, shadow.read_stride - len(seen)))
    unseen = (entries & np.uint32(EPOCH_MASK)) > seen
    if not unseen.any():
        return None
    for actor in own:
        column = actor - shadow.first_reader
        if 0 <= column < shadow.read_stride:
            unseen[:, column] = False
    masks = np.broadcast_to(at.masks, (len(entries),)).astype(np.uint32)[:, None]
    unseen &= entries >> np.uint32(EPOCH_BITS) & masks != 0
    if not unseen.any():
        return None
    row, column = (int(i) for i in np.unravel_index(unseen.argmax(), unseen.shape))
    last = int(shadow.last_read[index][row])
    pc = last & ((1 << READ_PC_BITS) - 1) if last >> READ_PC_BITS == column else -1
    epoch = int(entries[row, column]) & EPOCH_MASK
    return Clash("read", shadow.first_reader + column, epoch, pc, False, False, at.offset(row))


def unwritten(at: Watched) -> int | None:
    """Return the offset of a byte of shared memory that nobody wrote, if there is one."""
    if not isinstance(at.shadow, SharedShadow):
        return None
    missing = ~at.shadow.state[at.granules].astype(np.uint64) & at.masks & _U(INITIALISED)
    return at.offset(int((missing != 0).argmax())) if missing.any() else None


def in_flight(at: Watched) -> bool:
    """Whether a pending operation will write some of these bytes."""
    return isinstance(at.shadow, SharedShadow) and bool((at.shadow.state[at.granules] & IN_FLIGHT).any())


def mark_in_flight(at: Watched, pending: bool) -> None:
    """Note that an operation will write these bytes, or that it has."""
    if isinstance(at.shadow, SharedShadow):
        if pending:
            at.shadow.state[at.granules] |= IN_FLIGHT
        else:
            at.shadow.state[at.granules] &= 0xFF ^ IN_FLIGHT


def mark_object(at: Watched, present: bool) -> None:
    """Note that an opaque object lies in these bytes, or that it does no more."""
    if isinstance(at.shadow, SharedShadow):
        if present:
            at.shadow.state[at.granules] |= OBJECT
        else:
            at.shadow.state[at.granules] &= 0xFF ^ OBJECT


def touches_object(at: Watched) -> bool:
    """Whether an opaque object lies in these bytes."""
    return isinstance(at.shadow, SharedShadow) and bool((at.shadow.state[at.granules] & OBJECT).any())


def note_write(at: Watched, actor: int, epoch: int, pc: int, flags: int) -> None:
    """Remember a write."""
    words = _U(epoch | actor << ACTOR_SHIFT | flags) | (at.masks << _BYTES_SHIFT)
    shadow, index = at.shadow, at.granules
    if isinstance(shadow, SharedShadow):
        shadow.writer[index] = words
        shadow.writer_pc[index] = pc
        shadow.state[index] |= at.masks.astype(np.uint8)
    else:
        shadow["writer"][index] = words
        shadow["writer_pc"][index] = pc


def note_read(at: Watched, actor: int, epoch: int, pc: int, flags: int) -> None:
    """Remember a read; shared memory only has room for actors of the cluster's block."""
    shadow, index = at.shadow, at.granules
    if isinstance(shadow, SharedShadow):
        column = actor - shadow.first_reader
        if 0 <= column < shadow.num_readers:
            shadow.reads[index, column] = np.uint32(epoch) | (at.masks.astype(np.uint32) << np.uint32(EPOCH_BITS))
            shadow.last_read[index] = column << READ_PC_BITS | (pc & ((1 << READ_PC_BITS) - 1))
    else:
        shadow["reader"][index] = _U(epoch | actor << ACTOR_SHIFT | flags) | (at.masks << _BYTES_SHIFT)
        shadow["reader_pc"][index] = pc


def _at(clock: npt.NDArray[np.uint32], actors: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Look `actors` up in a clock that may be shorter than their numbers."""
    if len(clock) > int(actors.max(initial=0)):
        return clock[actors]
    return np.where(actors < len(clock), clock[np.minimum(actors, len(clock) - 1)], np.uint32(0))
