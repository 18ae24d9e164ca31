"""A GPU that records: public calls on CPU tensors reach a recording driver, with every parameter that they packed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cuda.bindings import driver as real

from megamoe_jit.ops import moe, plan
from megamoe_jit.recipes.params import MEGA_MOE_PARAMS, STAGING_PARAMS
from megamoe_jit.recipes.sm90 import Sm90Config, Sm90StagingConfig
from megamoe_jit.runtime.cuda import CudaBackend
from megamoe_jit.runtime.driver import Driver
from tests.recipes.param_structs import MegaMoeParams, StagingParams
from tests.runtime.fake_driver import FakeDriver, Launched

STREAM = 0x5150


def kernel(config: Sm90Config | Sm90StagingConfig) -> Any:
    """Return what `build` would, with a header of PTX only: the signature is what launches are checked against."""
    name = config.kernel_name
    if isinstance(config, Sm90StagingConfig):
        params = f".param .align 8 .b8 {name}_param_0[{STAGING_PARAMS.num_bytes(num_ranks=1)}]"
    else:
        size = MEGA_MOE_PARAMS.num_bytes(num_ranks=1)
        maps = "".join(f", .param .align 64 .b8 {name}_param_{number}[128]" for number in (1, 2))
        params = f".param .align 8 .b8 {name}_param_0[{size}]{maps}"
    ptx = f".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry {name}({params})\n"
    ptx += f".maxntid {config.num_threads}, 1, 1\n{{\n ret;\n}}\n"
    cubin = b"\x7fELF" + repr(config).encode()
    return SimpleNamespace(kernel_name=name, artifact=SimpleNamespace(ptx=ptx, cubin=cubin), config=config)


class RecordingDriver(FakeDriver):
    """Tells kernels apart, so that each launch is read with its own parameters."""

    def __init__(self, gpu: RecordingGpu) -> None:
        super().__init__()
        self.gpu = gpu
        self.function_attributes["SHARED_SIZE_BYTES"] = 0
        self.loaded: list[Any] = []  # kernels in the order of their functions

    def _cuLibraryLoadData(self, code: bytes, *options: Any) -> tuple[Any]:
        self.loaded.append(self.gpu.built[code])
        return super()._cuLibraryLoadData(code, *options)

    def _cuKernelGetFunction(self, handle: Any) -> tuple[Any]:
        return (real.CUfunction(0x9000 + len(self.loaded) - 1),)

    def _cuLaunchKernelEx(self, config: Any, function: Any, params: int, extra: int) -> tuple[()]:
        launched = self.loaded[int(function) - 0x9000].config
        is_staging = isinstance(launched, Sm90StagingConfig)
        self.param_sizes = [ctypes.sizeof(StagingParams)] if is_staging else [ctypes.sizeof(MegaMoeParams), 128, 128]
        self.gpu.configs.append(launched)
        return super()._cuLaunchKernelEx(config, function, params, extra)


class RecordingGpu:
    """What was built and launched."""

    def __init__(self) -> None:
        self.built: dict[bytes, Any] = {}
        self.asked: list[Any] = []  # configs that `build` was called with
        self.configs: list[Any] = []  # of the launches, in order
        self.driver = RecordingDriver(self)
        self.backend = CudaBackend(0, driver=Driver(self.driver))
        self.record = self.backend.error_record()

    def build(self, config: Any) -> Any:
        """Stand in for jit.build."""
        made = kernel(config)
        self.asked.append(config)
        return self.built.setdefault(made.artifact.cubin, made)

    @property
    def launches(self) -> list[Launched]:
        """Every launch, in order."""
        return self.driver.launches

    def staging(self) -> tuple[Sm90StagingConfig, Launched, StagingParams]:
        """Return the last staging launch with its parameters read back."""
        config, launched = next(pair for pair in self._pairs() if isinstance(pair[0], Sm90StagingConfig))
        return config, launched, StagingParams.from_buffer_copy(launched.params[0])

    def mega(self) -> tuple[Sm90Config, Launched, MegaMoeParams]:
        """Return the last fused launch with its parameters read back."""
        config, launched = next(pair for pair in self._pairs() if isinstance(pair[0], Sm90Config))
        return config, launched, MegaMoeParams.from_buffer_copy(launched.params[0])

    @contextmanager
    def only_launches(self) -> Iterator[None]:
        """Assert that the driver is asked for launches and nothing else."""
        before = len(self.driver.calls)
        yield
        assert {name for name, _ in self.driver.calls[before:]} <= {"cuLaunchKernelEx"}

    def _pairs(self) -> list[tuple[Any, Launched]]:
        return list(zip(self.configs, self.launches, strict=True))[::-1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> RecordingGpu:
    """Send every call of the test to a recording GPU; its tensors stay on the CPU."""
    recording = RecordingGpu()
    monkeypatch.setattr(plan, "build", recording.build)
    monkeypatch.setattr(plan, "open_backend", lambda device: recording.backend)
    monkeypatch.setattr(moe, "resolve_backend", lambda name, device: "cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: STREAM + device, raising=False)
    return recording
