"""What runs kernels: the plan of a launch, the interface of a backend, and which backend a call takes."""

from __future__ import annotations

import functools
import importlib.util
import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from megamoe_jit import env
from megamoe_jit.errors import ArgumentError, UnsupportedError
from megamoe_jit.runtime.launch import KernelSignature, Param, check_params, parse_signature
from megamoe_jit.runtime.memory import ErrorRecord

BACKENDS = ("cuda", "emulator", "reference")
EMULATOR_PACKAGES = ("numpy", "llvmlite", "ml_dtypes")  # the extra `emulator`
Dims = tuple[int, int, int]
Tensors = tuple[torch.Tensor | None, ...]

_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)
_MAX_THREADS = 1024
_MAX_CLUSTER = 16  # 8 on every device; 16 where non-portable sizes are allowed
_MAX_SMEM_BYTES = 227 * 1024


class CompiledCode(Protocol):
    """What one compile left: `jit.compile.Artifact`."""

    @property
    def ptx(self) -> str:
        """PTX text."""
        ...

    @property
    def cubin(self) -> bytes:
        """Machine code of one target."""
        ...


class LoadableKernel(Protocol):
    """A kernel that can be launched: `jit.build.BuiltKernel`."""

    @property
    def kernel_name(self) -> str:
        """The entry's symbol."""
        ...

    @property
    def artifact(self) -> CompiledCode:
        """Its code."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LaunchPlan:
    """A launch, complete but for its stream: kernel, dimensions, shared memory, attributes, parameters.

    Attributes:
        grid, block, cluster: (x, y, z); `cluster` divides `grid`.
        smem_bytes: dynamic shared memory of a block.
        cooperative: all blocks must be resident at once (grid-wide waits need it).
        pdl: programmatic stream serialisation: the kernel may start before the one ahead of it in the stream has ended,
            and must execute griddepcontrol.wait before it reads what that one wrote.
        memory: tensors that the kernel may read and write in every launch, reached through addresses in structs and
            tensor maps; kept alive. Tensors that are parameters need no mention.

    Raises ArgumentError when a dimension is out of CUDA's range, or when parameters or dimensions differ from what the
    kernel's PTX declares (.param list, .maxntid, .reqntid, .reqnctapercluster).
    """

    kernel: LoadableKernel
    grid: Dims
    block: Dims
    cluster: Dims = (1, 1, 1)
    smem_bytes: int = 0
    cooperative: bool = False
    pdl: bool = False
    params: tuple[Param, ...] = ()
    memory: tuple[torch.Tensor, ...] = ()

    def __post_init__(self) -> None:
        """Check dimensions and parameters."""
        reason = reject_dims(self.grid, self.block, self.cluster, self.smem_bytes) or self._reject_signature()
        if reason:
            raise ArgumentError(f"cannot launch {self.kernel.kernel_name}: {reason}")
        check_params(self.signature, self.params)

    @property
    def signature(self) -> KernelSignature:
        """What the kernel's PTX declares."""
        return parse_signature(self.kernel.artifact.ptx, self.kernel.kernel_name)

    @property
    def num_threads(self) -> int:
        """Threads of a block."""
        return math.prod(self.block)

    def describe(self) -> str:
        """Return one line on the launch's shape."""
        text = f"{self.kernel.kernel_name} with grid={self.grid} block={self.block} cluster={self.cluster}"
        text += f" smem={self.smem_bytes} B"
        return text + (" cooperative" if self.cooperative else "") + (" pdl" if self.pdl else "")

    def _reject_signature(self) -> str | None:
        signature = self.signature
        if signature.max_threads is not None and self.num_threads > signature.max_threads:
            return (
                f"block={self.block} has {self.num_threads} threads, and the kernel was compiled for at most "
                f"{signature.max_threads} (__launch_bounds__). Use a smaller block, or compile for a larger one."
            )
        for name, given, required in (
            ("block", self.block, signature.required_block),
            ("cluster", self.cluster, signature.required_cluster),
        ):
            if required is not None and given != required:
                return (
                    f"{name}={given}, and the kernel was compiled for exactly {required}. Use that, or compile it "
                    "again."
                )
        return None


def reject_dims(grid: Dims, block: Dims, cluster: Dims, smem_bytes: int) -> str | None:
    """Return why no device takes a launch of this shape, or None."""
    for name, dims, limits in (
        ("grid", grid, _MAX_GRID),
        ("block", block, _MAX_BLOCK),
        ("cluster", cluster, (_MAX_CLUSTER,) * 3),
    ):
        if len(dims) != 3:
            return f"{name}={dims} has {len(dims)} dimensions. Give x, y and z."
        for axis, value, limit in zip("xyz", dims, limits, strict=True):
            if not 1 <= value <= limit:
                return (
                    f"{name}={dims} has {axis}={value}, and CUDA takes 1 to {limit}. Skip an empty launch, and loop "
                    "inside the kernel for more."
                )
    if math.prod(block) > _MAX_THREADS:
        return f"block={block} has {math.prod(block)} threads, and a block has at most {_MAX_THREADS}. Use fewer warps."
    if math.prod(cluster) > _MAX_CLUSTER:
        return (
            f"cluster={cluster} has {math.prod(cluster)} blocks, and a cluster has at most {_MAX_CLUSTER}. Use a "
            "smaller one."
        )
    if any(extent % size for extent, size in zip(grid, cluster, strict=True)):
        return f"cluster={cluster} does not divide grid={grid}. Round the grid up to a multiple of the cluster."
    if not 0 <= smem_bytes <= _MAX_SMEM_BYTES:
        return (
            f"smem_bytes={smem_bytes}, and a block has at most {_MAX_SMEM_BYTES} bytes of shared memory. Use fewer "
            "stages or smaller tiles."
        )
    return None


class Launchable(Protocol):
    """A launch whose kernel is loaded and whose parameters are packed: repeating it is cheap."""

    @property
    def plan(self) -> LaunchPlan:
        """What was prepared; parameters as they were then."""
        ...

    def update(self, index: int, value: Any) -> None:
        """Set parameter `index` to another value of its kind."""
        ...

    def patch(self, index: int, offset: int, data: bytes) -> None:
        """Overwrite bytes of the struct parameter `index`."""
        ...

    def launch(self, stream: int | None = None, *, reads: Tensors = (), writes: Tensors = ()) -> None:
        """Enqueue the kernel on a stream handle, torch's current stream by default.

        `reads` and `writes`: memory of this launch beyond the plan's (None is skipped), whose addresses were patched
        in; what a kernel touches outside of all that is an error where accesses are checked.
        """
        ...


class Backend(Protocol):
    """Runs launch plans on one device; above it nothing asks which backend it has."""

    @property
    def name(self) -> str:
        """One of BACKENDS."""
        ...

    @property
    def device_name(self) -> str:
        """The device's model, such as "NVIDIA H200"."""
        ...

    @property
    def driver_version(self) -> str:
        """Newest CUDA version that the driver serves, such as "13.0"."""
        ...

    @property
    def num_sms(self) -> int:
        """SMs of the device: a persistent kernel's grid has one block for each."""
        ...

    def is_capturing(self) -> bool:
        """Whether launches are being recorded into a graph, where nothing can be loaded."""
        ...

    def error_record(self) -> ErrorRecord:
        """Return where kernels of the device record why they stopped; every launch may write it."""
        ...

    def prepare(self, plan: LaunchPlan) -> Launchable:
        """Load the plan's kernel and pack its parameters: the launch itself neither allocates nor synchronises."""
        ...

    def launch(self, plan: LaunchPlan, stream: int | None = None) -> None:
        """Prepare `plan` and launch it once."""
        ...


def open_backend(device: torch.device | str) -> Backend:
    """Return what runs kernels on tensors of `device`: the CUDA backend, or for the CPU the emulator.

    Raises UnsupportedError without a driver, or without what the emulator needs.
    """
    device = torch.device(device)
    if device.type == "cuda":
        from megamoe_jit.runtime.cuda import cuda_backend

        return cuda_backend(device)
    from megamoe_jit.runtime.emulated import emulated_backend

    return emulated_backend()


def resolve_backend(name: str | None, device: torch.device | str) -> str:
    """Return the backend that a call takes: "cuda", "emulator" or "reference".

    `name` decides when given, then MEGAMOE_JIT_BACKEND, then the device of the tensors: kernels run on the GPU for cuda
    tensors, in the emulator for others. Raises ArgumentError for an unknown name or one that cannot serve the device,
    UnsupportedError for an emulator that is not installed.
    """
    device = device if isinstance(device, torch.device) else torch.device(device)
    given = f"backend={name!r}"
    if name is None:
        name = env.BACKEND.get()
        given = f"{env.BACKEND.name}={name}"
    if name is None:
        name = "cuda" if device.type == "cuda" else "emulator"
        given = f"no backend was given, and tensors on {device} run in the emulator"
    if name not in BACKENDS:
        raise ArgumentError(f"{given} is no backend. Use one of {', '.join(BACKENDS)}.")
    if name == "emulator":
        if device.type == "cuda":
            raise ArgumentError(
                f"{given} runs kernels on tensors of the CPU, and the tensors are on {device}. Move them with .cpu(), "
                'or use backend="cuda".'
            )
        if missing := missing_packages():
            raise UnsupportedError(
                f"{given}, which needs {' and '.join(missing)}. Install pip install 'megamoe-jit[emulator]', or use "
                'backend="reference", which runs without.'
            )
    if name == "cuda" and device.type != "cuda":
        raise ArgumentError(
            f"{given} runs kernels on a GPU, and the tensors are on {device}. Move them to a CUDA device, or use "
            'backend="emulator" or "reference".'
        )
    return name


def missing_packages() -> list[str]:
    """Return the packages of the extra `emulator` that are not installed."""
    return [package for package in EMULATOR_PACKAGES if not _is_installed(package)]


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
