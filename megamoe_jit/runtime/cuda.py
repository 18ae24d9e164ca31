"""The CUDA backend: loads cubins, checks them against the device, and launches with little host work."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megamoe_jit.arch import get_arch
from megamoe_jit.errors import ArgumentError, LaunchError, UnsupportedError
from megamoe_jit.runtime.backend import LaunchPlan, LoadableKernel, Tensors, reject_dims
from megamoe_jit.runtime.device import DeviceInfo, device_index, device_info
from megamoe_jit.runtime.driver import Driver, get_driver
from megamoe_jit.runtime.launch import ParamBuffer, Value
from megamoe_jit.runtime.memory import HostErrorRecord, error_record, raise_if_failed
from megamoe_jit.runtime.tensormap import TensorMap

_PORTABLE_CLUSTER = 8  # blocks that every device with clusters takes
# cuLaunchKernelEx returns one of these when the current context is not the kernel's: CUDA_ERROR_INVALID_CONTEXT,
# _INVALID_HANDLE.
_WRONG_CONTEXT = (201, 400)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedKernel:
    """A kernel in a device's context, and what the driver says that it takes."""

    name: str
    function: Any  # CUfunction
    registers: int
    static_smem_bytes: int
    local_bytes: int
    max_threads: int


class CudaBackend:
    """Runs launch plans on one device; `cuda_backend(device)` returns the shared one."""

    name = "cuda"

    def __init__(self, device: torch.device | int | str | None = None, *, driver: Driver | None = None) -> None:
        """Open a device; nothing is loaded yet."""
        self.driver = driver or get_driver()
        self.device = device_index(device)
        self._smem_limits: dict[LoadedKernel, int] = {}  # dynamic shared memory allowed so far

    @property
    def info(self) -> DeviceInfo:
        """Properties of the device."""
        return device_info(self.device, driver=self.driver)

    @property
    def device_name(self) -> str:
        """The device's model, as the driver spells it."""
        return self.info.name

    @property
    def driver_version(self) -> str:
        """Newest CUDA version that the driver serves."""
        return ".".join(map(str, self.info.driver_version))

    @property
    def num_sms(self) -> int:
        """SMs of the device."""
        return self.info.num_sms

    def is_capturing(self) -> bool:
        """Whether torch's current stream is being captured into a graph."""
        return torch.cuda.is_current_stream_capturing()

    def error_record(self) -> HostErrorRecord:
        """Return where kernels of the device record why they stopped; not inside a graph capture."""
        return error_record(self.device, driver=self.driver)

    def load(self, kernel: LoadableKernel) -> LoadedKernel:
        """Load a kernel's cubin into the device's primary context, once; not inside a graph capture.

        Raises UnsupportedError when it was built for other devices, LaunchError when the driver refuses it.
        """
        key = ("kernel", self.device, kernel.kernel_name, kernel.artifact.cubin)
        loaded: LoadedKernel = self.driver.remember(key, lambda: self._load(kernel))
        return loaded

    def prepare(self, plan: LaunchPlan) -> PreparedLaunch:
        """Load the plan's kernel, check the launch against the device, pack its parameters; not inside a graph capture.

        Raises LaunchError when the device cannot hold such a launch, UnsupportedError as `load` does.
        """
        prepared = self._pack(plan)
        if plan.cooperative:
            resident = self._resident_blocks(prepared)
            if math.prod(plan.grid) > resident:
                raise LaunchError(
                    f"{plan.describe()} has {math.prod(plan.grid)} blocks, and {self.info} holds {resident} of them at "
                    "once, which a cooperative launch needs. Launch fewer blocks, or use fewer registers or less "
                    "shared memory a block."
                )
        return prepared

    def launch(self, plan: LaunchPlan, stream: int | None = None) -> None:
        """Prepare `plan` and launch it once on a stream handle (torch's current stream by default)."""
        self.prepare(plan).launch(stream)

    def max_resident_blocks(self, plan: LaunchPlan) -> int:
        """Return how many blocks of the plan's shape the device holds at once: a cooperative grid's limit."""
        return self._resident_blocks(self._pack(plan))

    def _pack(self, plan: LaunchPlan) -> PreparedLaunch:
        kernel = self.load(plan.kernel)
        self._check(plan, kernel)
        self._allow(plan, kernel)
        return PreparedLaunch(backend=self, plan=plan, kernel=kernel)

    def _load(self, kernel: LoadableKernel) -> LoadedKernel:
        driver, name = self.driver, kernel.kernel_name
        target = _target(kernel.artifact.ptx)
        if target and not get_arch(target).runs_on(self.info.capability):
            raise UnsupportedError(
                f"{name} was built for {target}, which {self.info} does not run. Build it for {self.info.arch}."
            )
        with driver.current(self.device):
            doing = f"loading {name} on {self.info}"
            library = driver.call(doing, "cuLibraryLoadData", kernel.artifact.cubin, [], [], 0, [], [], 0)
            handle = driver.call(doing, "cuLibraryGetKernel", library, name.encode())
            # The function of this context, asked for now: with lazy loading the first launch would load it, inside a
            # capture.
            function = driver.call(doing, "cuKernelGetFunction", handle)
            attribute = driver.module.CUfunction_attribute

            def ask(which: str) -> int:
                value: int = driver.call(
                    doing, "cuFuncGetAttribute", getattr(attribute, f"CU_FUNC_ATTRIBUTE_{which}"), function
                )
                return value

            return LoadedKernel(
                name=name,
                function=function,
                registers=ask("NUM_REGS"),
                static_smem_bytes=ask("SHARED_SIZE_BYTES"),
                local_bytes=ask("LOCAL_SIZE_BYTES"),
                max_threads=ask("MAX_THREADS_PER_BLOCK"),
            )

    def _check(self, plan: LaunchPlan, kernel: LoadedKernel) -> None:
        """Raise LaunchError when no block of the plan fits on an SM of this device."""
        info = self.info
        if plan.num_threads > kernel.max_threads:
            raise LaunchError(
                f"{plan.describe()} has {plan.num_threads} threads a block, and {kernel.name} with {kernel.registers} "
                f"registers takes at most {kernel.max_threads}. Use fewer threads, or compile it with "
                f"__launch_bounds__({plan.num_threads})."
            )
        smem_bytes = plan.smem_bytes + kernel.static_smem_bytes
        if smem_bytes > info.max_smem_bytes:
            raise LaunchError(
                f"{plan.describe()} needs {smem_bytes} bytes of shared memory a block ({kernel.static_smem_bytes} of "
                f"them static), and {info} has {info.max_smem_bytes}. Use fewer stages or smaller tiles."
            )
        if plan.cooperative and not info.supports_cooperative:
            raise LaunchError(
                f"{plan.describe()} is cooperative, and {info} takes no cooperative launches. Launch it without, on an "
                "idle device."
            )

    def _allow(self, plan: LaunchPlan, kernel: LoadedKernel) -> None:
        """Allow the kernel the plan's dynamic shared memory and cluster size; what was allowed before stays allowed."""
        driver, function = self.driver, kernel.function
        attribute = driver.module.CUfunction_attribute
        with driver.current(self.device):
            if plan.smem_bytes > self._smem_limits.get(kernel, 0):
                doing = f"allowing {kernel.name} {plan.smem_bytes} bytes of dynamic shared memory"
                which = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                driver.call(doing, "cuFuncSetAttribute", function, which, plan.smem_bytes)
                self._smem_limits[kernel] = plan.smem_bytes
            if math.prod(plan.cluster) > _PORTABLE_CLUSTER:
                doing = f"allowing {kernel.name} clusters of {math.prod(plan.cluster)} blocks"
                which = attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
                driver.call(doing, "cuFuncSetAttribute", function, which, 1)

    def _resident_blocks(self, prepared: PreparedLaunch) -> int:
        driver, plan, function = self.driver, prepared.plan, prepared.kernel.function
        doing = f"asking how many blocks of {plan.describe()} fit on {self.info}"
        size = math.prod(plan.cluster)
        with driver.current(self.device):
            if size > 1:
                clusters: int = driver.call(doing, "cuOccupancyMaxActiveClusters", function, prepared.config)
                return clusters * size
            per_sm: int = driver.call(
                doing, "cuOccupancyMaxActiveBlocksPerMultiprocessor", function, plan.num_threads, plan.smem_bytes
            )
            return per_sm * self.info.num_sms


class PreparedLaunch:
    """A loaded kernel with packed parameters and attributes: `launch` is one call into the driver.

    Neither `update` nor `launch` allocates or synchronises, so both may run inside a graph capture (the captured node
    keeps the values of that moment). One object serves one thread at a time. Tensors of the plan are kept alive, those
    of `update` are not.
    """

    __slots__ = (
        "_backend",
        "_buffer",
        "_current_stream",
        "_launch",
        "_stream",
        "_stream_type",
        "config",
        "kernel",
        "plan",
    )

    def __init__(self, *, backend: CudaBackend, plan: LaunchPlan, kernel: LoadedKernel) -> None:
        """Pack parameters, dimensions and attributes as the driver takes them."""
        module = backend.driver.module
        self.plan = plan
        self.kernel = kernel
        self.config = _config(module, plan)
        self._backend = backend
        encode = functools.partial(TensorMap.encode, driver=backend.driver)
        self._buffer = ParamBuffer(plan.signature, plan.params, encode)
        self._launch = functools.partial(module.cuLaunchKernelEx, self.config, kernel.function, self._buffer.address, 0)
        self._stream = 0  # handle in the config, which starts as the default stream
        self._stream_type = module.CUstream
        self._current_stream = _stream_getter(backend.device)

    def index_of(self, name: str) -> int:
        """Return the index of the parameter called `name`, for `update`."""
        return self._buffer.index_of(name)

    def update(self, index: int, value: Value) -> None:
        """Set parameter `index` to another value of its kind; raises ArgumentError for one that does not fit."""
        self._buffer.update(index, value)

    def patch(self, index: int, offset: int, data: bytes) -> None:
        """Overwrite `data` at byte `offset` of the struct parameter `index`; raises ArgumentError outside of it."""
        self._buffer.patch(index, offset, data)

    def set_grid(self, x: int, y: int = 1, z: int = 1) -> None:
        """Launch another number of blocks from now on; ArgumentError when out of range or the plan is cooperative."""
        if self.plan.cooperative:
            raise ArgumentError(
                f"{self.plan.describe()} is cooperative, and its grid was checked against the device. Prepare a new "
                "plan."
            )
        reason = reject_dims((x, y, z), self.plan.block, self.plan.cluster, self.plan.smem_bytes)
        if reason:
            raise ArgumentError(f"cannot launch {self.kernel.name}: {reason}")
        self.config.gridDimX, self.config.gridDimY, self.config.gridDimZ = x, y, z

    def launch(self, stream: int | None = None, *, reads: Tensors = (), writes: Tensors = ()) -> None:  # noqa: ARG002
        """Enqueue the kernel on a stream handle, torch's current stream by default; raises LaunchError in words.

        `reads` and `writes` are for backends that check accesses; here the caller keeps memory alive as ever.
        """
        if stream is None:
            stream = self._current_stream()
        if stream != self._stream:
            self.config.hStream = self._stream_type(stream)
            self._stream = stream
        (code,) = self._launch()
        if code:
            self._fail(int(code))

    def _fail(self, code: int) -> None:
        """Launch again in the right context when that was the reason; else raise LaunchError."""
        driver = self._backend.driver
        if code in _WRONG_CONTEXT:
            # Another device, or none, is current on this thread. Checking first would cost every launch.
            with driver.current(self._backend.device):
                code = int(self._launch()[0])
            if not code:
                return
        raise_if_failed(self._backend.device, driver=driver)
        raise LaunchError(driver.explain(code, f"launching {self.plan.describe()} on {self._backend.info} failed"))


def cuda_backend(device: torch.device | int | str | None = None) -> CudaBackend:
    """Return the backend of a device (torch's current one by default); UnsupportedError where there is no driver."""
    driver, index = get_driver(), device_index(device)
    backend: CudaBackend = driver.remember(("backend", index), lambda: CudaBackend(index, driver=driver))
    return backend


def _config(module: Any, plan: LaunchPlan) -> Any:
    """Return the plan as a CUlaunchConfig on the default stream."""
    config = module.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = plan.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = plan.block
    config.sharedMemBytes = plan.smem_bytes
    attributes = []
    if math.prod(plan.cluster) > 1:
        cluster = module.CUlaunchAttribute()
        cluster.id = module.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        dims = cluster.value.clusterDim
        dims.x, dims.y, dims.z = plan.cluster
        attributes.append(cluster)
    if plan.cooperative:
        cooperative = module.CUlaunchAttribute()
        cooperative.id = module.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        cooperative.value.cooperative = 1
        attributes.append(cooperative)
    if plan.pdl:
        pdl = module.CUlaunchAttribute()
        pdl.id = module.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        pdl.value.programmaticStreamSerializationAllowed = 1
        attributes.append(pdl)
    config.attrs = attributes
    config.numAttrs = len(attributes)
    return config


def _stream_getter(device: int) -> Callable[[], int]:
    """Return the cheapest way to torch's current stream of a device: the raw getter makes no Stream object."""
    raw: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if raw is not None:
        return lambda: raw(device)
    return lambda: torch.cuda.current_stream(device).cuda_stream


def _target(ptx: str) -> str | None:
    """Return the `.target` of a PTX text."""
    found = re.search(r"^\s*\.target\s+(\w+)", ptx, flags=re.MULTILINE)
    return found[1] if found else None
