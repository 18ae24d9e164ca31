"""The CUDA driver's edge: every driver call goes through a `Driver`, so that tests swap one object for it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

from megamoe_jit.errors import LaunchError, UnsupportedError

T = TypeVar("T")

# After one of these the context is lost: every later call of the process returns the same error.
STICKY_ERRORS = frozenset(
    {
        "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_CONTEXT_IS_DESTROYED",
        "CUDA_ERROR_HARDWARE_STACK_ERROR",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "CUDA_ERROR_INVALID_PC",
        "CUDA_ERROR_LAUNCH_FAILED",
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        "CUDA_ERROR_MISALIGNED_ADDRESS",
    }
)
_STICKY_ADVICE = (
    "The CUDA context is lost: this or an earlier kernel of the process failed. Restart the process; run it once more "
    "under compute-sanitizer, or with CUDA_LAUNCH_BLOCKING=1, to see which kernel it was."
)
_ADVICE = {
    "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE": (
        "All blocks of a cooperative launch must fit on the device at once. Launch fewer blocks, or stop what else "
        "holds its SMs (MPS limits, green contexts)."
    ),
    "CUDA_ERROR_INVALID_CLUSTER_SIZE": (
        "Use a cluster of at most 8 blocks (16 where the device allows it) that divides the grid."
    ),
    "CUDA_ERROR_INVALID_CONTEXT": (
        "Make the stream's device current (torch.cuda.set_device) and launch on a stream of that device."
    ),
    "CUDA_ERROR_INVALID_HANDLE": (
        "The stream, kernel or context is gone or belongs to another device. Use a live stream of the kernel's device."
    ),
    "CUDA_ERROR_INVALID_IMAGE": (
        "The cubin is damaged or no cubin. Clear this kernel from the cache (megamoe-jit cache verify) and build it "
        "again."
    ),
    "CUDA_ERROR_INVALID_VALUE": (
        "A dimension, size or attribute is outside what this device and driver take. Compare the values above with "
        "`megamoe-jit doctor`."
    ),
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": (
        "The block needs more registers or shared memory than an SM has. Use fewer threads or fewer stages."
    ),
    "CUDA_ERROR_NO_BINARY_FOR_GPU": (
        "The cubin was built for another architecture. Build the kernel for this device's target."
    ),
    "CUDA_ERROR_NOT_FOUND": "The cubin holds no symbol of that name. Build the kernel again from its source.",
    "CUDA_ERROR_OUT_OF_MEMORY": "Free device memory (torch.cuda.empty_cache()), or use a smaller capacity.",
    "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT": (
        "Run the call once before the capture, then capture on a stream that is not the default stream."
    ),
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": (
        "An earlier call broke the capture. Look for the first error inside the capture."
    ),
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": "Prepare the launch (load the kernel) before the capture begins.",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "The driver is older than the PTX. Load the cubin, or update the driver.",
}


class Driver:
    """A driver module with the interface of `cuda.bindings.driver` (functions return `(CUresult, *values)`).

    Remembers what is asked of the driver once: device handles and properties, primary contexts, loaded kernels.
    """

    def __init__(self, module: Any) -> None:
        """Wrap a driver module on which cuInit was called."""
        self.module = module
        self._memo: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returned the first time that this driver was asked for `key`."""
        with self._lock:
            if key not in self._memo:
                self._memo[key] = make()
            value: T = self._memo[key]
            return value

    def recall(self, key: Hashable) -> Any:
        """Return what is remembered for `key`, or None."""
        return self._memo.get(key)

    def call(self, doing: str, function: str, *args: Any) -> Any:
        """Call `function` and return its value (or None, or a tuple); LaunchError says what `doing` failed."""
        code, *values = getattr(self.module, function)(*args)
        if int(code):
            raise LaunchError(self.explain(int(code), f"{doing} failed in {function}"))
        return values[0] if len(values) == 1 else tuple(values) or None

    def error_name(self, code: int) -> str:
        """Return the driver's name of an error code ("CUDA_ERROR_INVALID_VALUE")."""
        try:
            return str(self.module.CUresult(code).name)
        except ValueError:
            return f"CUDA_ERROR_{code}"

    def explain(self, code: int, failed: str) -> str:
        """Return a sentence on an error: what failed, the driver's name and words for it, and what to do."""
        name = self.error_name(code)
        try:
            result, text = self.module.cuGetErrorString(self.module.CUresult(code))
            words = f" ({text.decode()})" if not int(result) and text else ""
        except ValueError:  # a code that the bindings do not know
            words = ""
        advice = (
            _STICKY_ADVICE
            if name in STICKY_ERRORS
            else _ADVICE.get(name, "Look the error up in the CUDA driver API's list of CUresult values.")
        )
        return f"{failed}: {name}{words}. {advice}"

    def device(self, index: int) -> Any:
        """Return the CUdevice of device `index`."""
        return self.remember(("device", index), lambda: self.call(f"opening cuda:{index}", "cuDeviceGet", index))

    @contextlib.contextmanager
    def current(self, index: int) -> Iterator[None]:
        """Make the primary context of device `index` (the one torch uses) current on this thread for a while."""
        doing = f"opening the primary context of cuda:{index}"
        context = self.remember(
            ("context", index), lambda: self.call(doing, "cuDevicePrimaryCtxRetain", self.device(index))
        )
        before = self.call("asking for the current context", "cuCtxGetCurrent")
        if int(before) == int(context):
            yield
            return
        self.call(f"making cuda:{index} current", "cuCtxSetCurrent", context)
        try:
            yield
        finally:
            if int(before):  # a thread that had none keeps this one
                self.call("restoring the current context", "cuCtxSetCurrent", before)


@functools.lru_cache(maxsize=1)
def _load() -> Driver | str:
    """Return the machine's driver, or why there is none."""
    try:
        module = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        return f"cuda.bindings cannot be imported ({error})"
    try:
        (code,) = module.cuInit(0)
    except RuntimeError as error:  # cuda.bindings found no libcuda
        return f"no NVIDIA driver library was found ({error})"
    driver = Driver(module)
    return driver if not int(code) else driver.explain(int(code), "cuInit failed")


def find_driver() -> Driver | None:
    """Return the machine's CUDA driver, or None where there is none; `get_driver` says why."""
    loaded = _load()
    return loaded if isinstance(loaded, Driver) else None


def get_driver() -> Driver:
    """Return the machine's CUDA driver; raises UnsupportedError that says why there is none."""
    loaded = _load()
    if isinstance(loaded, str):
        raise UnsupportedError(
            f'backend="cuda" needs an NVIDIA driver, and {loaded}. Install the driver on a machine with a GPU, or use '
            'backend="reference".'
        )
    return loaded
