"""The noun that building ends in: a kernel that a backend can load."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from megamoe_jit.jit.compile import Artifact, Resources
from megamoe_jit.jit.entry import KernelRecord
from megamoe_jit.jit.key import KernelKey


class Origin(Enum):
    """Where a built kernel came from when this process first asked for it."""

    COMPILED = "compiled"
    DISK = "disk"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BuiltKernel:
    """A kernel that is ready to load. Hashes by identity: asking twice for one kernel gives the same object.

    `path` is its folder in the cache, None when the cache could not keep it; `build_s` is what the first request took
    in this process, rendering included.
    """

    record: KernelRecord
    origin: Origin
    path: Path | None
    build_s: float

    @property
    def kernel_name(self) -> str:
        """The `extern "C"` symbol."""
        return self.record.key.kernel_name

    @property
    def arch(self) -> str:
        """The target in NVRTC's spelling."""
        return self.record.key.arch

    @property
    def key(self) -> KernelKey:
        """The key in the cache."""
        return self.record.key

    @property
    def artifact(self) -> Artifact:
        """PTX, cubin, log and resources."""
        return self.record.artifact

    @property
    def ptx(self) -> str:
        """The PTX text."""
        return self.record.artifact.ptx

    @property
    def cubin(self) -> bytes:
        """The machine code, an ELF file."""
        return self.record.artifact.cubin

    @property
    def resources(self) -> Resources:
        """Registers, shared memory and spills."""
        return self.record.artifact.resources

    @property
    def cache_hit(self) -> bool:
        """Whether the cache on disk had the kernel, so that nothing was compiled."""
        return self.origin is Origin.DISK

    def __repr__(self) -> str:
        """One line without the code."""
        return f"BuiltKernel({self.key}, {self.origin.value}, {self.build_s:.3f} s)"
