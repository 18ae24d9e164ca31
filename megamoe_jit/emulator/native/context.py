"""What native code and Python both see of a warp: one ctypes structure, whose field names are the interface.

Control. A lane is live until it exits. `lane_pc` is exact for every live lane whenever an engine has returned. Lanes
of `blocked` do not run: Python has parked them, or (those of `waiting`, a subset) the engine lets them wait at a
`.sync` instruction for lanes of its member mask; those it lets go again by itself. The group that runs next is made of
all lanes at the lowest PC among live lanes that are neither blocked nor `tired`; blocked lanes at that PC join it, and
are blocked no more. A group becomes tired when it has used up its fuel, and nobody is tired any more when no other lane
is left to run.

Faults. A failed access is noted in `fault_*` (the first one; `num_faults` counts all) and suppressed: loads give zeros,
stores do nothing. The engine stops with FAULT at the end of the block, where `lane_pc` names the next instruction, so
that a caller may clear the fault and run on.

Races. Violations that the engine sees go into `races`: the first RACE_CAPACITY ones of a slice, `num_races` counts all.
Who empties it sets `num_races` to zero.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

NUM_LANES = 32
FULL_MASK = 0xFFFFFFFF
RACE_CAPACITY = 32


class FaultKind(IntEnum):
    """What was wrong with an access or a branch."""

    NONE = 0
    UNMAPPED = 1
    """No allocation holds the first byte."""
    OUT_OF_BOUNDS = 2
    """It begins inside an allocation and ends behind it."""
    MISALIGNED = 3
    """The address is no multiple of the access's size."""
    READ_ONLY = 4
    """A store to memory that this kernel may only read."""
    FOREIGN_RANK = 5
    """The allocation belongs to another rank and is not peer accessible."""
    SHARED_BOUNDS = 6
    """Outside of the CTA's shared memory, or in its first SHARED_BASE bytes, which are the system's."""
    SHARED_RANK = 7
    """The cluster has no CTA of that rank, or it has left."""
    SHARED_FOREIGN = 8
    """An access to .shared::cta names another CTA's memory."""
    LOCAL_BOUNDS = 9
    """Outside of the lane's local frame."""
    PARAM_BOUNDS = 10
    """Outside of the kernel's parameters."""
    MEMBER_MASK = 11
    """An executing lane is not in the member mask of its `.sync` instruction (`fault_address` is the mask)."""
    BRANCH_INDEX = 12
    """brx.idx past the end of its table (`fault_address` is the index)."""
    DIVERGENT_UNIFORM = 13
    """Lanes disagree in a branch that is marked `.uni`."""


class FaultSpace(IntEnum):
    """State space of the access that failed, as the instruction names it."""

    NONE = 0
    GENERIC = 1
    GLOBAL = 2
    SHARED = 3
    SHARED_CLUSTER = 4
    LOCAL = 5
    PARAM = 6


class RaceKind(IntEnum):
    """What the engine's checker saw; `Race.other_*` is the earlier access."""

    READ_AFTER_WRITE = 1
    """A read of bytes whose last write is not ordered before it."""
    WRITE_AFTER_WRITE = 2
    """A write over bytes whose last write is not ordered before it."""
    WRITE_AFTER_READ = 3
    """A write over bytes that another actor has read, unordered."""
    READ_UNINITIALISED = 4
    """A read of shared memory that nobody has written (no earlier access)."""
    READ_IN_FLIGHT = 5
    """A read of bytes that a pending asynchronous operation will write (`other_*` is the last completed write)."""
    WRITE_IN_FLIGHT = 6
    """A write to bytes that a pending asynchronous operation will write."""
    WRITE_OBJECT = 7
    """A write over an opaque object (mbarrier) in shared memory."""


class Race(ctypes.Structure):
    """One violation; an instruction execution adds one of each kind at most.

    Attributes:
        kind: RaceKind; pc, lane: the later access.
        address: host address (global) or shared address with the CTA's rank in bits 24 and up.
        size: bytes of the lane's access.
        is_shared: 1 for shared memory.
        other_actor, other_epoch, other_pc: the earlier access; pc -1 where it is not known.
        is_async: 1 when the earlier access came through the async proxy.
    """

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("pc", ctypes.c_int32),
        ("lane", ctypes.c_int32),
        ("size", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("other_actor", ctypes.c_uint32),
        ("other_epoch", ctypes.c_uint32),
        ("other_pc", ctypes.c_int32),
        ("is_shared", ctypes.c_uint8),
        ("is_async", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 2),
    )


class WarpContext(ctypes.Structure):
    """State of one warp; see the module's docstring. Addresses are host addresses, 0 for nothing.

    Attributes:
        lane_pc: next instruction of each lane.
        live, blocked, waiting: masks; see the module's docstring.
        arrived: lanes that wait in a `bar.warp.sync`.
        tired: lanes whose group used up its fuel.
        mask: lanes of the current group.
        straight: `mask` while no jump needs a look at other lanes or at a fault; the engine's own.
        pc: instruction at which the engine stopped.
        stop: machine.engine.StopKind; stop_mask: lanes that the stop is about (a handler's, reduced by the guard).
        fuel: warp instructions that the engine may execute; when it is below zero, the next jump back yields.
        executed: warp instructions so far; not exact while native code runs.
        fuel_start: `fuel` when the engine was entered; the engine's own.
        clock: added to `executed` gives virtual time.
        regs: the register file.
        block_counts: uint64 a block of the program, how often it was executed.
        hints: uint32 a memory instruction of the program: the allocation that it touched last.
        symbols: uint64 addresses of the program's `symbols`.
        params, param_bytes: the kernel's parameters.
        local, local_bytes: frames of the lanes, one after the other, `local_bytes` each (a multiple of 16).
        smem_table: uint64[16][2], `Cluster.smem_table`: address and size of each CTA's shared space.
        cta_rank: rank in the cluster.
        ranges: `Allocations.table_address`; rank: whose allocations may be touched.
        fault_*: kind (FaultKind), space (FaultSpace), instruction, lane, address as the program gave it, bytes.
        checks: 1 when accesses are checked for races; then:
        actor, epoch: this warp in the shadow; clocks: uint32[num_actors], its vector clock (`epoch` is its own entry).
        shadow_table: uint64[16], address of each CTA's `shadow_layout.SharedShadow`, 0 for none.
    """

    _fields_ = (
        ("lane_pc", ctypes.c_int32 * NUM_LANES),
        ("live", ctypes.c_uint32),
        ("blocked", ctypes.c_uint32),
        ("waiting", ctypes.c_uint32),
        ("arrived", ctypes.c_uint32),
        ("tired", ctypes.c_uint32),
        ("mask", ctypes.c_uint32),
        ("straight", ctypes.c_uint32),
        ("pc", ctypes.c_int32),
        ("stop", ctypes.c_int32),
        ("stop_mask", ctypes.c_uint32),
        ("fuel", ctypes.c_int64),
        ("fuel_start", ctypes.c_int64),
        ("executed", ctypes.c_uint64),
        ("clock", ctypes.c_uint64),
        ("regs", ctypes.c_uint64),
        ("block_counts", ctypes.c_uint64),
        ("hints", ctypes.c_uint64),
        ("symbols", ctypes.c_uint64),
        ("params", ctypes.c_uint64),
        ("local", ctypes.c_uint64),
        ("smem_table", ctypes.c_uint64),
        ("ranges", ctypes.c_uint64),
        ("param_bytes", ctypes.c_uint32),
        ("local_bytes", ctypes.c_uint32),
        ("cta_rank", ctypes.c_uint32),
        ("rank", ctypes.c_int32),
        ("fault_kind", ctypes.c_int32),
        ("fault_space", ctypes.c_int32),
        ("fault_pc", ctypes.c_int32),
        ("fault_lane", ctypes.c_int32),
        ("fault_address", ctypes.c_uint64),
        ("fault_size", ctypes.c_uint32),
        ("fault_write", ctypes.c_uint32),
        ("num_faults", ctypes.c_uint32),
        ("checks", ctypes.c_uint32),
        ("actor", ctypes.c_uint32),
        ("epoch", ctypes.c_uint32),
        ("clocks", ctypes.c_uint64),
        ("shadow_table", ctypes.c_uint64),
        ("num_actors", ctypes.c_uint32),
        ("num_races", ctypes.c_uint32),
        ("races", Race * RACE_CAPACITY),
    )

    def clear_fault(self) -> None:
        """Forget the fault, so that the engine can run on."""
        self.fault_kind = FaultKind.NONE
        self.num_faults = 0
