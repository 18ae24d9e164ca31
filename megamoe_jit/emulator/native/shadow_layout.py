"""Shadow memory of the race checker: what native code and the Python checker both read and write.

Memory is watched in granules of 4 bytes. An access is known by its actor (number of a warp or of a chain of
asynchronous work; 0 is who was there before the launch) and that actor's epoch when it happened; it is ordered before a
warp when `epoch <= clocks[actor]` in the warp's vector clock. A mask of the granule's bytes goes with it, so that
neighbours that write single bytes of a word do not collide; of two writers of different bytes in one granule the later
is remembered.

- a *write word* (uint64) is `pack_write(...)`: epoch, actor, byte mask, and flags; 0 where nobody wrote.
- a *read entry* (uint32) of shared memory is `epoch | byte mask << EPOCH_BITS`, one for each possible reader; so a
  write is held against every reader's last read. 0 where it did not read.
- a *read word* (uint64) of global memory is packed like a write word: there only the last reader is remembered.

Native code looks at flags as follows: ATOMIC and ASYNC change nothing (an ordinary access collides with both), ASYNC is
passed on in `Race.is_async`.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

GRANULE = 4
EPOCH_BITS = 28
ACTOR_BITS = 20
ACTOR_SHIFT = EPOCH_BITS
ASYNC = 1 << 48
"""Flag of a write word: through the async proxy."""
ATOMIC = 1 << 49
"""Flag of a write word: an atomic or otherwise strong access; Python's checker lets those be unordered."""
BYTES_SHIFT = 52
"""First of the four bits of a write word that say which bytes of the granule were accessed."""
EPOCH_MASK = (1 << EPOCH_BITS) - 1
ACTOR_MASK = (1 << ACTOR_BITS) - 1

INITIALISED = 0x0F
"""State of a shared granule: bit i is set when its byte i has been written."""
IN_FLIGHT = 0x10
"""State: a pending asynchronous operation will write here; native reads and writes are violations."""
OBJECT = 0x20
"""State: an opaque object (mbarrier) lies here; native writes are violations."""

READ_PC_BITS = 20
"""`last_read` is (slot of the reader << READ_PC_BITS) | pc."""
READ_STRIDE = 16
"""Rows of `reads` are padded to a multiple of this many entries, which native code compares at once."""


def pack_write(actor: int, epoch: int, byte_mask: int = 0xF, flags: int = 0) -> int:
    """Return the write word of an access."""
    return epoch | actor << ACTOR_SHIFT | byte_mask << BYTES_SHIFT | flags


class SharedShadowPointers(ctypes.Structure):
    """Addresses of the arrays of a SharedShadow; native code reads it."""

    _fields_ = (
        ("writer", ctypes.c_uint64),
        ("writer_pc", ctypes.c_uint64),
        ("state", ctypes.c_uint64),
        ("reads", ctypes.c_uint64),
        ("last_read", ctypes.c_uint64),
        ("first_reader", ctypes.c_uint32),
        ("num_readers", ctypes.c_uint32),
        ("read_stride", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class SharedShadow:
    """Shadow of one CTA's shared space; granule i is bytes 4i to 4i + 3 of `Cta.smem`.

    Readers are actors `first_reader` to `first_reader + num_readers - 1`, so all that can read the shared memory of a
    cluster must have neighbouring numbers. Vector clocks that native code compares must hold at least
    `first_reader + read_stride` entries.

    Attributes:
        writer: uint64 write words.
        writer_pc: int32.
        state: uint8, INITIALISED bits and flags.
        reads: uint32 [granules, read_stride] read entries; columns are readers.
        last_read: uint32, who read last and where: see READ_PC_BITS; reports name its PC when it is the culprit.
        pointers: addresses of these for native code; `address` is its own, which goes into `WarpContext.shadow_table`.
    """

    def __init__(self, smem_bytes: int, first_reader: int, num_readers: int) -> None:
        """Make the shadow of a shared space of `smem_bytes`: nothing written, nothing read."""
        granules = -(-smem_bytes // GRANULE)
        stride = -(-num_readers // READ_STRIDE) * READ_STRIDE
        # Zeros of this size are the operating system's untouched pages: a row costs memory when it is first used.
        self.writer = np.zeros(granules, np.uint64)
        self.writer_pc = np.zeros(granules, np.int32)
        self.state = np.zeros(granules, np.uint8)
        self.reads = np.zeros((granules, stride), np.uint32)
        self.last_read = np.zeros(granules, np.uint32)
        self.first_reader = first_reader
        self.num_readers = num_readers
        self.read_stride = stride
        self.pointers = SharedShadowPointers(
            writer=self.writer.ctypes.data,
            writer_pc=self.writer_pc.ctypes.data,
            state=self.state.ctypes.data,
            reads=self.reads.ctypes.data,
            last_read=self.last_read.ctypes.data,
            first_reader=first_reader,
            num_readers=num_readers,
            read_stride=stride,
        )

    @property
    def address(self) -> int:
        """Where `pointers` lies."""
        return ctypes.addressof(self.pointers)


# Python 3.13 has a name for it; the number is Linux's.
_NO_RESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

GLOBAL_GRANULE = np.dtype(
    [("writer", np.uint64), ("reader", np.uint64), ("writer_pc", np.int32), ("reader_pc", np.int32)]
)
"""Shadow of 4 bytes of global memory: the last write word and the last read word, with their instructions."""


class GlobalShadow:
    """Shadow of one range of global memory, [start, end) host addresses.

    Memory is reserved at once and taken when it is touched.

    Attributes:
        granules: GLOBAL_GRANULE array; `granules[0]` is the word that holds `start`.
    """

    def __init__(self, start: int, end: int) -> None:
        """Make the shadow: nothing written, nothing read."""
        self.first = start // GRANULE
        count = -(-end // GRANULE) - self.first
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self._pages = mmap.mmap(-1, max(count, 1) * GLOBAL_GRANULE.itemsize, flags=flags)
        self.granules: npt.NDArray[Any] = np.frombuffer(self._pages, GLOBAL_GRANULE, count)

    @property
    def address(self) -> int:
        """Where `granules` begins."""
        return int(self.granules.ctypes.data)

    def slice(self, address: int, size: int) -> npt.NDArray[Any]:
        """Return the granules that hold bytes [address, address + size)."""
        return self.granules[address // GRANULE - self.first : -(-(address + size) // GRANULE) - self.first]
