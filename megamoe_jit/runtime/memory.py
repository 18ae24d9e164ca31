"""Host memory that kernels write: the record that a kernel leaves before it stops itself.

The device side (`comm::ErrorRecord` in templates/comm/wait.cuh) is eight 32-bit words. A thread that gives up claims
word 0 by compare-and-swap (FREE -> CLAIMED), writes the others, fences at system scope, writes MAGIC to word 0, fences
again and traps. The trap loses the CUDA context, but not this memory: it belongs to the process, and the host reads it
without the driver.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

from megamoe_jit import env
from megamoe_jit.errors import LaunchError
from megamoe_jit.recipes.waits import WAITS
from megamoe_jit.runtime.driver import Driver, find_driver, get_driver

RECORD_BYTES = 256  # one block of pinned memory; the words use its first 32 bytes
FREE, CLAIMED, MAGIC = 0, 1, 0x4D6F4531
WORDS = ("magic", "wait_for", "block", "thread", "index", "expected", "seen", "rank")


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorReport:
    """What a thread wrote before it stopped its kernel."""

    wait_for: int  # code of what it waited for
    block: int
    thread: int
    index: int  # barrier, stage, expert or rank, as `wait_for` says
    expected: int
    seen: int
    rank: int
    is_complete: bool  # False when the kernel stopped while the record was being written

    def describe(self, waits: Mapping[int, str] | None = None) -> str:
        """Return one sentence; `waits` names the wait codes."""
        if not self.is_complete:
            return "a thread began to record why it stopped the kernel, and did not finish"
        what = (waits or {}).get(self.wait_for, f"wait code {self.wait_for}")
        return (
            f"rank {self.rank}, block {self.block}, thread {self.thread} gave up waiting for {what} (index "
            f"{self.index}: expected {self.expected}, saw {self.seen})"
        )


class HostErrorRecord:
    """A pinned, device-mapped block of host memory, one a device, that kernels report in.

    Pass `device_pointer` to kernels; ask `report()` or `raise_if_failed()` after a launch or synchronisation failed.
    Neither costs a driver call, so both work when the context is lost. `waits` names the wait codes of the kernels.
    """

    def __init__(self, device: int, *, waits: Mapping[int, str] | None = None, driver: Driver | None = None) -> None:
        """Allocate the block, zeroed."""
        self.device = device
        self.waits = WAITS if waits is None else waits
        self._driver = driver or get_driver()
        flags = self._driver.module.CU_MEMHOSTALLOC_PORTABLE | self._driver.module.CU_MEMHOSTALLOC_DEVICEMAP
        with self._driver.current(device):
            doing = "allocating the error record in pinned host memory"
            host = int(self._driver.call(doing, "cuMemHostAlloc", RECORD_BYTES, flags))
            ctypes.memset(host, 0, RECORD_BYTES)
            self.device_pointer = int(self._driver.call(doing, "cuMemHostGetDevicePointer", host, 0))
        # Never freed: a kernel may write it as long as the process lives.
        self._words = (ctypes.c_uint32 * len(WORDS)).from_address(host)

    def report(self) -> ErrorReport | None:
        """Return what a kernel recorded, or None when none did."""
        if self._words[0] == FREE:  # asked by every call: reads one word, not eight
            return None
        magic, *words = self._words
        return ErrorReport(**dict(zip(WORDS[1:], words, strict=True)), is_complete=magic == MAGIC)

    def raise_if_failed(self, waits: Mapping[int, str] | None = None, *, cause: BaseException | None = None) -> None:
        """Raise LaunchError in words when a kernel recorded why it stopped; `cause` is the error that showed it."""
        report = self.report()
        if report is None:
            return
        what = report.describe(self.waits if waits is None else waits)
        raise LaunchError(
            f"a kernel on cuda:{self.device} stopped itself: {what}. Waits end after {env.TIMEOUT_S.name} seconds, "
            "within which every block and rank must make progress. Look for a rank that failed or never launched, "
            "raise the time-out if the machine is that slow, and restart the process: its CUDA context is lost."
        ) from cause

    def clear(self) -> None:
        """Forget the record, so that a kernel can report again; for tests, since a trap loses the context."""
        ctypes.memset(ctypes.addressof(self._words), 0, ctypes.sizeof(self._words))


def error_record(
    device: int, *, waits: Mapping[int, str] | None = None, driver: Driver | None = None
) -> HostErrorRecord:
    """Return the error record of a device, allocated when first asked for; not inside a graph capture.

    `waits` names the wait codes of the kernels that get it, and replaces the names given before.
    """
    driver = driver or get_driver()
    record: HostErrorRecord = driver.remember(("error_record", device), lambda: HostErrorRecord(device, driver=driver))
    if waits is not None:
        record.waits = waits
    return record


def raise_if_failed(device: int, *, cause: BaseException | None = None, driver: Driver | None = None) -> None:
    """Raise LaunchError when a kernel on `device` recorded why it stopped; nothing when no record was ever allocated.

    For use after torch raised:

        try:
            torch.cuda.synchronize()
        except torch.AcceleratorError as error:
            raise_if_failed(0, cause=error)
            raise
    """
    driver = driver or find_driver()
    record: HostErrorRecord | None = driver.recall(("error_record", device)) if driver else None
    if record is not None:
        record.raise_if_failed(cause=cause)
