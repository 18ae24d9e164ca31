"""Exceptions of the package: one root, a few classes, each named for what the caller can do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class MegaMoeError(Exception):
    """Root of every exception that megamoe_jit raises on purpose."""


class ArgumentError(MegaMoeError, ValueError):
    """An argument has a shape, dtype, device, stride or value that the call cannot take; the message says which."""


class UnsupportedError(MegaMoeError):
    """The combination of architecture, recipe and option has no implementation here; the message names one that has."""


class CompileError(MegaMoeError):
    """NVRTC refused a rendered kernel.

    Attributes:
        errors: the first diagnostics, each with its template and line.
        log: the whole NVRTC log.
        source_path: folder that keeps the rendered sources, or None when it could not be written.
    """

    def __init__(
        self, message: str, *, errors: Sequence[str] = (), log: str = "", source_path: Path | None = None
    ) -> None:
        """Keep the message and what it is about."""
        super().__init__(message)
        self.errors = tuple(errors)
        self.log = log
        self.source_path = source_path


class CacheError(MegaMoeError):
    """The kernel cache or an archive of it cannot be used as asked."""


class MissingKernelError(CacheError):
    """Cache-only mode met a kernel that the cache does not hold; warm the cache or allow compiling."""


class RankMismatchError(MegaMoeError):
    """Expert-parallel ranks disagree on something that all must share."""


class LaunchError(MegaMoeError):
    """The driver refused a launch, or a kernel stopped itself (a wait that timed out) and said why."""


class EmulatorFault(MegaMoeError):
    """A kernel did something that the emulator reports; the message says what, who and where.

    Attributes:
        report: `megamoe_jit.emulator.Report` with the parts of the message, or None.
    """

    def __init__(self, message: str, *, report: object = None) -> None:
        """Keep the message and its parts."""
        super().__init__(message)
        self.report = report


class MemoryFault(EmulatorFault):
    """An emulated access is outside of every allocation, misaligned, or in memory that the thread may not touch."""


class RaceFault(EmulatorFault):
    """Emulated accesses collide: nothing orders them, or a fence between proxies is missing."""


class DeadlockFault(EmulatorFault):
    """No emulated warp can go on; the message says what each of them waits for."""
