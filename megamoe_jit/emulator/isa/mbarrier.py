"""mbarrier instructions. A wait that fails parks its lanes on the barrier; phases are machine/mbarrier.py's.

Whatever scope is written, an arrival is ordered before waits of the whole cluster: the default scope of remote arrivals
is .cta, and all code relies on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megamoe_jit.emulator.isa.decode import Decode, lanes_of
from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.scalars import address_of, lane_list, value_of
from megamoe_jit.emulator.isa.table import Form, handler, pure
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.mbarrier import MAX_COUNT, Mbarrier
from megamoe_jit.emulator.machine.outcome import Outcome, Park, Yield
from megamoe_jit.emulator.memory.spaces import OFFSET_MASK, RANK_SHIFT, WINDOW_MASK, space_of
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp

_SECTION = "Parallel Synchronization and Communication Instructions: mbarrier"
_OWN = "{space:.shared{::cta}|}"
_ANY = "{space:.shared{::cta}|.shared::cluster|}"
_RELEASE = "{semantics:.release|.relaxed|}{.cta|.cluster|}"
_ACQUIRE = "{semantics:.acquire|.relaxed|}{.cta|.cluster|}"
_RELAXED = "{semantics:.relaxed|}{.cta|.cluster|}"
_HOW = {"how": "arrive arrive_drop"}
_ALIGNMENT = 8


def barrier_at(warp: Warp, address: int, space: str, lane: int = 0) -> Mbarrier:
    """Return the barrier at `address`; reports addresses outside of shared memory and barriers not initialised."""
    cta, offset = _place(warp, address, space, lane)
    barrier: Mbarrier = cta.mbarrier(offset, warp)
    return barrier


def _place(warp: Warp, address: int, space: str, lane: int) -> tuple[Any, int]:
    known = address & OFFSET_MASK
    if address >> RANK_SHIFT == warp.cta.rank and known in warp.cta.mbarriers and space:
        return warp.cta, known
    if not space and space_of(address) != "shared":
        warp.machine.fault("argument", f"An mbarrier at generic address {address:#x}, which is not shared.", by=warp)
    _, place = warp.machine.resolve(
        warp, address & WINDOW_MASK, space or "shared::cluster", _ALIGNMENT, write=True, align=_ALIGNMENT, lane=lane
    )
    return place.cta, place.start


@handler("mbarrier.init" + _OWN + ".b64", section=f"{_SECTION}.init")
def mbarrier_init(d: Decode) -> Handler:
    """Make a barrier that expects `count` arrivals a phase."""
    addresses, counts, space = d.address(0), d.value(1, np.uint32), d.form["space"]

    def run(warp: Warp, mask: int) -> Outcome:
        where, count = addresses(warp), counts(warp)
        for lane in lanes_of(mask).tolist():
            cta, offset = _place(warp, int(where[lane]), space, lane)
            _make(warp, cta, offset, int(count[lane]), lane)
        return None

    return run


def _make(warp: Warp, cta: Any, offset: int, count: int, lane: int) -> None:
    machine = warp.machine
    if not 1 <= count <= MAX_COUNT:
        machine.fault("argument", f"mbarrier.init with {count} arrivals; 1 to {MAX_COUNT} are possible.", by=warp)
    for known, old in cta.mbarriers.items():
        if known != offset and abs(known - offset) < _ALIGNMENT:
            machine.fault("mbarrier-bytes", f"{old.name()} overlaps the new one at {offset:#x}.", by=warp)
    old = cta.mbarriers.get(offset)
    if old is not None:
        busy = old.parked or old.tx or old.pending != old.expected
        state = old.describe()
        machine.report(
            "mbarrier-reinit" if busy else "mbarrier-reinit-quiet",
            f"mbarrier.init of a barrier that was not invalidated{' and is in use' if busy else ''}: {state}.",
            by=warp,
            lanes=1 << lane,
        )
        machine.checks.mbarrier_inval(old, warp)
    barrier = cta.mbarriers[offset] = Mbarrier(cta, offset, count)
    barrier.time = barrier.phase_time = warp.time
    cta.smem[offset : offset + 8] = np.frombuffer(f"mbar{offset % 10000:04}".encode(), np.uint8)
    machine.checks.mbarrier_init(barrier, warp)


@handler("mbarrier.inval" + _OWN + ".b64", section=f"{_SECTION}.inval")
def mbarrier_inval(d: Decode) -> Handler:
    """Unmake a barrier: its bytes are ordinary memory again."""
    addresses, space = d.address(0), d.form["space"]

    def run(warp: Warp, mask: int) -> Outcome:
        where = addresses(warp)
        for lane in lanes_of(mask).tolist():
            barrier = barrier_at(warp, int(where[lane]), space, lane)
            if barrier.parked:
                warp.machine.report(
                    "mbarrier-reinit", f"mbarrier.inval while lanes wait: {barrier.describe()}.", by=warp
                )
            warp.machine.checks.mbarrier_inval(barrier, warp)
            del barrier.cta.mbarriers[barrier.offset]
        return None

    return run


@dataclass(frozen=True, slots=True)
class _Arrival:
    """Operands and qualifiers of an arrive."""

    releases: bool
    no_complete: bool = False
    drops: bool = False


def _arrive(d: Decode, *, with_tx: bool) -> Handler:
    """Arrive, for each lane; `state` is the phase before the lane's arrival."""
    form = d.form
    has_state = d.count > 1 and form["space"] != "shared::cluster"
    write_state = d.write(0, np.uint64) if has_state else None
    wants_state = has_state and type(d.operand(0)).__name__ != "Sink"
    at = 1 if d.count > 1 or with_tx else 0
    addresses = d.address(at)
    extra = d.value(at + 1, np.uint32) if d.count > at + 1 else None
    one_address = address_of(d, at)
    one_extra = value_of(d, at + 1, 4) if d.count > at + 1 else None
    if with_tx and extra is None:
        raise UnsupportedError(f"{d.instruction.text} needs a transaction count.")
    space = form["space"]
    arrival = _Arrival(
        releases=form["semantics"] != "relaxed",
        no_complete=form.has("noComplete"),
        drops=form["how"] == "arrive_drop",
    )

    def run_one(warp: Warp, lane: int) -> None:
        barrier = barrier_at(warp, one_address(warp, lane), space, lane)
        operand = one_extra(warp, lane) if one_extra is not None else 1
        if with_tx:
            barrier.expect_tx(operand, by=warp)
        elif not 1 <= operand <= MAX_COUNT:
            warp.machine.fault("argument", f"{operand} arrivals; 1 to {MAX_COUNT} are possible.", by=warp)
        token = barrier.arrive(
            1 if with_tx else operand,
            by=warp,
            release=arrival.releases,
            no_complete=arrival.no_complete,
            drop=arrival.drops,
        )
        if wants_state and write_state is not None:
            write_state(warp, 1 << lane, np.uint64(token))

    def run(warp: Warp, mask: int) -> Outcome:
        lanes = lane_list(mask)
        if len(lanes) > 1 and not with_tx and not wants_state:
            where, operands = addresses(warp), extra(warp) if extra is not None else None
            if _arrive_together(warp, where, operands, lanes, space, arrival):
                return None
        for lane in lanes:
            run_one(warp, lane)
        return None

    return run


def _arrive_together(
    warp: Warp, where: Any, operands: Any, lanes: Sequence[int], space: str, arrival: _Arrival
) -> bool:
    """Arrive at once when all lanes arrive at one barrier and no phase ends between two of them."""
    first = int(where[lanes[0]])
    if any(int(where[lane]) != first for lane in lanes):
        return False
    barrier = barrier_at(warp, first, space, lanes[0])
    total = len(lanes) if operands is None else sum(int(operands[lane]) for lane in lanes)
    if total > barrier.pending or total < len(lanes):
        return False
    barrier.arrive(total, by=warp, release=arrival.releases, no_complete=arrival.no_complete, drop=arrival.drops)
    return True


@handler("mbarrier.<how>" + _RELEASE + _ANY + ".b64", section=f"{_SECTION}.arrive", sets=_HOW)
@handler("mbarrier.<how>.noComplete" + _RELEASE + _OWN + ".b64", section=f"{_SECTION}.arrive", sets=_HOW)
def mbarrier_arrive(d: Decode) -> Handler:
    """Arrive `count` times (default once); the drop form leaves later phases too."""
    return _arrive(d, with_tx=False)


@handler("mbarrier.<how>.expect_tx" + _RELEASE + _ANY + ".b64", section=f"{_SECTION}.arrive", sets=_HOW)
def mbarrier_arrive_expect_tx(d: Decode) -> Handler:
    """Expect transactions, then arrive."""
    return _arrive(d, with_tx=True)


@handler("mbarrier.expect_tx" + _RELAXED + _ANY + ".b64", section=f"{_SECTION}.expect_tx")
def mbarrier_expect_tx(d: Decode) -> Handler:
    """Expect transactions."""
    return _transactions(d, lambda barrier, count, warp: barrier.expect_tx(count, by=warp))


@handler("mbarrier.complete_tx" + _RELAXED + _ANY + ".b64", section=f"{_SECTION}.complete_tx")
def mbarrier_complete_tx(d: Decode) -> Handler:
    """Complete transactions by hand, without any asynchronous work."""
    return _transactions(d, lambda barrier, count, warp: barrier.complete_tx(count, by=warp))


def _transactions(d: Decode, act: Callable[[Mbarrier, int, Warp], None]) -> Handler:
    addresses, counts, space = d.address(0), d.value(1, np.uint32), d.form["space"]

    def run(warp: Warp, mask: int) -> Outcome:
        where, count = addresses(warp), counts(warp)
        for lane in lanes_of(mask).tolist():
            act(barrier_at(warp, int(where[lane]), space, lane), int(count[lane]), warp)
        return None

    return run


@pure("mbarrier.pending_count.b64", section=f"{_SECTION}.pending_count", dst="u32", src="b64")
def mbarrier_pending_count(c: Calc, form: Form, state: Lanes) -> Lanes:  # noqa: ARG001
    """Read the pending count out of a state."""
    return (state & MAX_COUNT).resize("i32")


@handler(
    "mbarrier.{wait:test_wait|try_wait}{parity:.parity|}" + _ACQUIRE + _OWN + ".b64", section=f"{_SECTION}.try_wait"
)
def mbarrier_wait(d: Decode) -> Handler:
    """Ask whether a phase is over, by parity or by the state of an arrival; try_wait suspends while it is not."""
    form = d.form
    suspends, by_parity = form["wait"] == "try_wait", bool(form["parity"])
    acquires = form["semantics"] != "relaxed"
    done, addresses, space, pc = d.write(0, np.uint8), d.address(1), form["space"], d.pc
    phases = d.value(2, np.uint32 if by_parity else np.uint64)
    one_address, one_phase = address_of(d, 1), value_of(d, 2, 4 if by_parity else 8)

    def is_over(warp: Warp, barrier: Mbarrier, phase: int) -> bool:
        if by_parity and phase > 1:
            warp.machine.fault("argument", f"phaseParity {phase}; it is 0 or 1.", by=warp)
        over = barrier.test_parity(phase) if by_parity else barrier.test_token(phase)
        if by_parity:
            _follow(warp, barrier, phase, over)
        if over:
            warp.advance_to(barrier.phase_time)
            warp.machine.checks.mbarrier_observe(barrier, warp, acquire=acquires)
        return over

    def answer(warp: Warp, mask: int, verdicts: Any, waited: tuple[Mbarrier, ...]) -> Outcome:
        if waited and suspends and not warp.timed_out & mask and not np.any(verdicts):
            warp.machine.counters.barrier_waits += 1
            return Park(waited, can_time_out=True)
        warp.timed_out &= ~mask
        done(warp, mask, verdicts)
        if waited and not np.any(verdicts):
            warp.polls[pc] = _Asked(waited[0], warp.ctx.executed)
            return Yield(spin=True)
        warp.spins = 0
        return None

    def run(warp: Warp, mask: int) -> Outcome:
        if mask & (mask - 1) == 0:
            lane = mask.bit_length() - 1
            barrier = barrier_at(warp, one_address(warp, lane), space, lane)
            over = is_over(warp, barrier, one_phase(warp, lane))
            return answer(warp, mask, np.uint8(over), () if over else (barrier,))
        where, wanted = addresses(warp), phases(warp)
        answers: dict[tuple[int, int], bool] = {}
        waited: dict[int, Mbarrier] = {}
        verdicts = np.zeros(32, np.uint8)
        for lane in lanes_of(mask).tolist():
            key = (int(where[lane]), int(wanted[lane]))
            if key not in answers:
                barrier = barrier_at(warp, key[0], space, lane)
                answers[key] = is_over(warp, barrier, key[1])
                if not answers[key]:
                    waited[key[0]] = barrier
            verdicts[lane] = answers[key]
        return answer(warp, mask, verdicts, tuple(waited.values()))

    return run


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question that was answered with "not yet", for reports of deadlocks; turn: `executed` at that time."""

    barrier: Mbarrier
    turn: int

    def describe(self) -> str:
        """Say in words what was seen."""
        return self.barrier.describe()


@dataclass(slots=True)
class _Followed:
    """What a warp knows of a barrier: the last phase it saw end (-1: none), and the phase at which it was parked."""

    seen: int = -1
    parked: int | None = None


def _follow(warp: Warp, barrier: Mbarrier, parity: int, over: bool) -> None:
    """Report phases that pass a waiter unseen: parity cannot tell them from those it has not waited for."""
    known: dict[Mbarrier, _Followed] = warp.scratch.setdefault("mbarriers", {})
    followed = known.get(barrier)
    if followed is None:
        followed = known[barrier] = _Followed()
    phase = barrier.phase
    if over:
        # The phase just before the current one has this parity.
        followed.seen, followed.parked = max(followed.seen, phase - 1), None
        return
    if followed.parked is not None and phase >= followed.parked + 2:
        warp.machine.report(
            "phase-missed",
            f"Phase {followed.parked} of {barrier.name()} ended while this warp waited for it, and so did phase "
            f"{followed.parked + 1}, before the warp could look: parity {parity} now means phase {phase}.",
            by=warp,
        )
    elif followed.parked is None:
        wanted = followed.seen + 1 + ((followed.seen + 1 ^ parity) & 1)
        if phase >= wanted + 2:
            warp.machine.report(
                "phase-alias",
                f"This warp, which last saw phase {followed.seen} of {barrier.name()} end, waits for parity {parity}; "
                f"phases {wanted} to {phase - 1} have ended meanwhile, so it now waits for phase {phase}.",
                by=warp,
            )
    followed.parked = phase
