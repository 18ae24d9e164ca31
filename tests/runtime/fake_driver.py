"""A driver that records: it answers as `cuda.bindings.driver` would on two H200s, with that module's types."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from cuda.bindings import driver as real

from megamoe_jit.runtime.backend import LoadableKernel

CONTEXT, LIBRARY, KERNEL, FUNCTION = 0x1000, 0x2000, 0x3000, 0x4000  # handles; contexts and functions add the device
_WITHOUT_VALUE = ("cuCtxSetCurrent", "cuFuncSetAttribute", "cuLaunchKernelEx")
MANY_PARAMS_PTX = """
.version 9.0
.target sm_90a
.address_size 64
.visible .entry scale(
	.param .u64 scale_param_0,
	.param .u32 scale_param_1,
	.param .f32 scale_param_2,
	.param .align 64 .b8 scale_param_3[128],
	.param .align 8 .b8 scale_param_4[24]
)
.maxntid 384, 1, 1
.minnctapersm 1
{
	ret;
}
.visible .entry empty()
{
	ret;
}
.visible .entry paired()
.explicitcluster
.reqnctapercluster 2, 1, 1
.reqntid 128, 1, 1
{
	ret;
}
"""


def kernel(name: str = "empty", ptx: str = MANY_PARAMS_PTX, cubin: bytes = b"\x7fELF") -> LoadableKernel:
    """Return a kernel with the given PTX."""
    return SimpleNamespace(kernel_name=name, artifact=SimpleNamespace(ptx=ptx, cubin=cubin))


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What one cuLaunchKernelEx was given."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    smem_bytes: int
    stream: int
    attributes: dict[str, Any]
    params: tuple[bytes, ...]
    context: int


class FakeDriver:
    """Functions return `(CUresult, *values)`, are recorded in `calls`, and fail with the code in `errors`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.errors: dict[str, int] = {}
        self.launches: list[Launched] = []
        self.param_sizes: list[int] = []  # of the kernel that is launched, for `Launched.params`
        self.current = CONTEXT
        self.blocks_per_sm, self.num_clusters = 1, 60
        self.function_attributes = {
            "NUM_REGS": 64,
            "SHARED_SIZE_BYTES": 1024,
            "LOCAL_SIZE_BYTES": 0,
            "MAX_THREADS_PER_BLOCK": 384,
        }
        self.device_attributes = {
            "COMPUTE_CAPABILITY_MAJOR": 9,
            "COMPUTE_CAPABILITY_MINOR": 0,
            "MULTIPROCESSOR_COUNT": 132,
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 232448,
            "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": 233472,
            "L2_CACHE_SIZE": 60 << 20,
            "COOPERATIVE_LAUNCH": 1,
        }
        self.host_memory = ctypes.create_string_buffer(b"\xff" * 4096, 4096)

    def __getattr__(self, name: str) -> Any:
        if not (name.startswith("cu") and name[2].isupper()):
            return getattr(real, name)  # types and constants; functions are answered here or not at all
        answer: Callable[..., tuple[Any, ...]] = object.__getattribute__(self, f"_{name}")

        def function(*args: Any) -> tuple[Any, ...]:
            self.calls.append((name, args))
            code = self.errors.get(name, 0)
            if code:
                return (real.CUresult(code),) if name in _WITHOUT_VALUE else (real.CUresult(code), None)
            return (real.CUresult.CUDA_SUCCESS, *answer(*args))

        return function

    def count(self, name: str) -> int:
        """Return how often a function was called."""
        return sum(called == name for called, _ in self.calls)

    def _cuDriverGetVersion(self) -> tuple[int]:
        return (13000,)

    def _cuDeviceGet(self, index: int) -> tuple[Any]:
        return (real.CUdevice(index),)

    def _cuDeviceGetName(self, length: int, device: Any) -> tuple[bytes]:
        return (f"NVIDIA H200 {int(device)}".encode().ljust(length, b"\0"),)

    def _cuDeviceGetAttribute(self, attribute: Any, device: Any) -> tuple[int]:
        return (self.device_attributes[attribute.name.removeprefix("CU_DEVICE_ATTRIBUTE_")],)

    def _cuDeviceTotalMem(self, device: Any) -> tuple[int]:
        return (141 << 30,)

    def _cuDevicePrimaryCtxRetain(self, device: Any) -> tuple[Any]:
        return (real.CUcontext(CONTEXT + int(device)),)

    def _cuCtxGetCurrent(self) -> tuple[Any]:
        return (real.CUcontext(self.current),)

    def _cuCtxSetCurrent(self, context: Any) -> tuple[()]:
        self.current = int(context)
        return ()

    def _cuLibraryLoadData(self, code: bytes, *options: Any) -> tuple[Any]:
        assert options == ([], [], 0, [], [], 0)
        return (real.CUlibrary(LIBRARY),)

    def _cuLibraryGetKernel(self, library: Any, name: bytes) -> tuple[Any]:
        assert int(library) == LIBRARY
        assert isinstance(name, bytes)
        return (real.CUkernel(KERNEL),)

    def _cuKernelGetFunction(self, handle: Any) -> tuple[Any]:
        assert int(handle) == KERNEL
        return (real.CUfunction(FUNCTION + self.current - CONTEXT),)

    def _cuFuncGetAttribute(self, attribute: Any, function: Any) -> tuple[int]:
        return (self.function_attributes[attribute.name.removeprefix("CU_FUNC_ATTRIBUTE_")],)

    def _cuFuncSetAttribute(self, function: Any, attribute: Any, value: int) -> tuple[()]:
        return ()

    def _cuOccupancyMaxActiveBlocksPerMultiprocessor(self, function: Any, threads: int, smem_bytes: int) -> tuple[int]:
        return (self.blocks_per_sm,)

    def _cuOccupancyMaxActiveClusters(self, function: Any, config: Any) -> tuple[int]:
        assert config.attrs[0].id.name == "CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION"
        return (self.num_clusters,)

    def _cuMemHostAlloc(self, num_bytes: int, flags: int) -> tuple[int]:
        return (ctypes.addressof(self.host_memory),)

    def _cuMemHostGetDevicePointer(self, host: int, flags: int) -> tuple[Any]:
        return (real.CUdeviceptr(host + (1 << 47)),)

    def _cuGetErrorString(self, code: Any) -> tuple[bytes]:
        return (f"words for {int(code)}".encode(),)

    def _cuTensorMapEncodeTiled(self, *args: Any) -> tuple[Any]:
        encoded = real.CUtensorMap()
        ctypes.memmove(encoded.getPtr(), bytes([self.count("cuTensorMapEncodeTiled")] * 128), 128)
        return (encoded,)

    def _cuLaunchKernelEx(self, config: Any, function: Any, params: int, extra: int) -> tuple[()]:
        assert extra == 0
        values = {
            "CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION": lambda v: (v.clusterDim.x, v.clusterDim.y, v.clusterDim.z),
            "CU_LAUNCH_ATTRIBUTE_COOPERATIVE": lambda v: v.cooperative,
            "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION": lambda v: v.programmaticStreamSerializationAllowed,
        }
        attributes = config.attrs
        assert config.numAttrs == len(attributes)
        pointers = (ctypes.c_void_p * len(self.param_sizes)).from_address(params)
        self.launches.append(
            Launched(
                grid=(config.gridDimX, config.gridDimY, config.gridDimZ),
                block=(config.blockDimX, config.blockDimY, config.blockDimZ),
                smem_bytes=config.sharedMemBytes,
                stream=int(config.hStream),
                attributes={
                    a.id.name.removeprefix("CU_LAUNCH_ATTRIBUTE_"): values[a.id.name](a.value) for a in attributes
                },
                params=tuple(
                    ctypes.string_at(pointer, size) for pointer, size in zip(pointers, self.param_sizes, strict=True)
                ),
                context=self.current,
            )
        )
        return ()


class WrongContextDriver(FakeDriver):
    """Refuses launches while another device's context is current, as drivers do on the default stream."""

    refusal = 201

    def __getattr__(self, name: str) -> Any:
        function = super().__getattr__(name)
        if name != "cuLaunchKernelEx":
            return function

        def launch(config: Any, handle: Any, *args: Any) -> tuple[Any, ...]:
            if int(handle) - FUNCTION != self.current - CONTEXT:
                return (real.CUresult(self.refusal),)
            return tuple(function(config, handle, *args))

        return launch
