"""Architectures: what a compile target can do, as far as kernels and checks need to know."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from megamoe_jit.errors import UnsupportedError


class MmaGeneration(Enum):
    """Tensor-core instruction families, each with a template family of its own."""

    WGMMA = "wgmma"  # Hopper
    TCGEN05 = "tcgen05"  # data-center Blackwell
    MMA_SYNC = "mma.sync"  # consumer Blackwell, warp level


@dataclass(frozen=True, kw_only=True, slots=True)
class Arch:
    """A compile target in NVRTC's spelling and the limits that configurations are checked against.

    Sources: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; PTX ISA, ".target".
    """

    name: str  # "sm_90a"
    capability: tuple[int, int]  # of the devices that it is built for
    generation: MmaGeneration
    max_smem_bytes: int  # dynamic shared memory that one block may ask for
    regs_per_sm: int = 65536
    is_family: bool = False  # "f" targets run on every later device of the same major version

    def __str__(self) -> str:
        """Return the name, for messages."""
        return self.name

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a cubin for this target loads on a device of compute capability `capability`."""
        if self.is_family:
            return capability[0] == self.capability[0] and capability[1] >= self.capability[1]
        return capability == self.capability


_KIB = 1024
ARCHS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch(name="sm_90a", capability=(9, 0), generation=MmaGeneration.WGMMA, max_smem_bytes=227 * _KIB),
        Arch(name="sm_100a", capability=(10, 0), generation=MmaGeneration.TCGEN05, max_smem_bytes=227 * _KIB),
        Arch(
            name="sm_100f",
            capability=(10, 0),
            generation=MmaGeneration.TCGEN05,
            max_smem_bytes=227 * _KIB,
            is_family=True,
        ),
        Arch(name="sm_103a", capability=(10, 3), generation=MmaGeneration.TCGEN05, max_smem_bytes=227 * _KIB),
        Arch(
            name="sm_103f",
            capability=(10, 3),
            generation=MmaGeneration.TCGEN05,
            max_smem_bytes=227 * _KIB,
            is_family=True,
        ),
        Arch(name="sm_120a", capability=(12, 0), generation=MmaGeneration.MMA_SYNC, max_smem_bytes=99 * _KIB),
        Arch(name="sm_121a", capability=(12, 1), generation=MmaGeneration.MMA_SYNC, max_smem_bytes=99 * _KIB),
    )
}


def get_arch(name: str | Arch) -> Arch:
    """Return the target called `name` ("sm_90a", "sm_100f", ...); raises UnsupportedError for an unknown one."""
    if isinstance(name, Arch):
        return name
    try:
        return ARCHS[name]
    except (KeyError, TypeError):  # TypeError: a list or dict
        raise UnsupportedError(f"arch={name!r} is not a known target. Use one of {', '.join(ARCHS)}.") from None


def arch_for_capability(capability: tuple[int, int]) -> Arch:
    """Return the target that a device of compute capability (major, minor) is compiled for by default.

    Family targets come first, so that one cubin serves a family. Raises UnsupportedError when no target fits.
    """
    fitting = [arch for arch in ARCHS.values() if arch.runs_on(capability)]
    if not fitting:
        known = ", ".join(f"{major}.{minor}" for major, minor in sorted({a.capability for a in ARCHS.values()}))
        raise UnsupportedError(
            f"the device has compute capability {capability[0]}.{capability[1]}, and megamoe_jit has targets for "
            f'{known}. Use one of those devices, or backend="reference" on any.'
        )
    return max(fitting, key=lambda arch: (arch.is_family, -arch.capability[1]))
