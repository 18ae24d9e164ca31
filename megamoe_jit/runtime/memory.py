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

import torch

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


class ErrorRecord:
    """Eight words of host memory that kernels report in. `waits` names the wait codes of the kernels.

    Pass `device_pointer` to kernels; ask `report()` or `raise_if_failed()` after a launch or synchronisation failed.
    """

    device: str
    device_pointer: int

    def __init__(self, address: int, *, waits: Mapping[int, str] | None = None) -> None:
        """Read the words at a host address, which must stay allocated."""
        self.waits = WAITS if waits is None else waits
        self._words = (ctypes.c_uint32 * len(WORDS)).from_address(address)

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
        raise LaunchError(f"a kernel on {self.device} stopped itself: {what}. {self._advice()}") from cause

    def clear(self) -> None:
        """Forget the record, so that a kernel can report again."""
        ctypes.memset(ctypes.addressof(self._words), 0, ctypes.sizeof(self._words))

    def _advice(self) -> str:
        raise NotImplementedError


class HostErrorRecord(ErrorRecord):
    """The record of a CUDA device: pinned, device-mapped host memory, one block a device.

    Neither `report` nor `raise_if_failed` costs a driver call, so both work when the context is lost.
    """

    def __init__(self, device: int, *, waits: Mapping[int, str] | None = None, driver: Driver | None = None) -> None:
        """Allocate the block, zeroed."""
        self.device = f"cuda:{device}"
        driver = driver or get_driver()
        flags = driver.module.CU_MEMHOSTALLOC_PORTABLE | driver.module.CU_MEMHOSTALLOC_DEVICEMAP
        with driver.current(device):
            doing = "allocating the error record in pinned host memory"
            host = int(driver.call(doing, "cuMemHostAlloc", RECORD_BYTES, flags))
            ctypes.memset(host, 0, RECORD_BYTES)
            self.device_pointer = int(driver.call(doing, "cuMemHostGetDevicePointer", host, 0))
        # Never freed: a kernel may write it as long as the process lives.
        super().__init__(host, waits=waits)

    def _advice(self) -> str:
        return (
            f"Waits end after {env.TIMEOUT_S.name} seconds, within which every block and rank must make progress. Look "
            "for a rank that failed or never launched, raise the time-out if the machine is that slow, and restart the "
            "process: its CUDA context is lost."
        )


class EmulatedErrorRecord(ErrorRecord):
    """The record of the emulated device: ordinary host memory, which kernels reach at its own address."""

    device = "the emulated device"

    def __init__(self, *, waits: Mapping[int, str] | None = None) -> None:
        """Allocate the block, zeroed."""
        self.memory = torch.zeros(RECORD_BYTES, dtype=torch.uint8)
        self.device_pointer = self.memory.data_ptr()
        super().__init__(self.device_pointer, waits=waits)

    def raise_if_failed(self, waits: Mapping[int, str] | None = None, *, cause: BaseException | None = None) -> None:
        """Raise as every record does, and forget: the emulated device is as good as new."""
        try:
            super().raise_if_failed(waits, cause=cause)
        finally:
            self.clear()

    def _advice(self) -> str:
        return (
            f"Waits end after {env.TIMEOUT_S.name} seconds of virtual time, which passes when nothing else can go on: "
            f"whoever it waited for will never come. {env.EMULATOR_SEED.name} and {env.EMULATOR_COMPLETION.name} say "
            "in which order things run."
        )


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
