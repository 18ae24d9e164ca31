"""The emulator backend: runs launch plans on tensors of the CPU by executing their PTX."""

from __future__ import annotations

import functools
import importlib
import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megamoe_jit import env
from megamoe_jit.arch import ARCHS
from megamoe_jit.errors import EmulatorFault, LaunchError, UnsupportedError
from megamoe_jit.jit.cache import default_cache
from megamoe_jit.runtime.backend import EMULATOR_PACKAGES, LaunchPlan, LoadableKernel, Tensors
from megamoe_jit.runtime.launch import ParamBuffer, ParamKind, Value
from megamoe_jit.runtime.memory import EmulatedErrorRecord
from megamoe_jit.runtime.tensormap import TensorMap

_MAX_THREADS_PER_SM = 2048
_MAX_BLOCKS_PER_SM = 32
_SMEM_BYTES_PER_SM = 228 * 1024
_RESERVED_SMEM_BYTES = 1024  # of each block
_MAX_SMEM_BYTES = max(arch.max_smem_bytes for arch in ARCHS.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class EmulatorSettings:
    """What the emulated device is like; the variables of the same names in `env` say what each means."""

    num_sms: int = 4
    seed: int = 0
    completion: str | float = "lazy"
    checks: str = "error"
    engine: str = "native"
    numerics: str = "hardware"

    @classmethod
    def from_environment(cls) -> EmulatorSettings:
        """Read the environment now."""
        return cls(
            num_sms=env.EMULATOR_SMS.get(),
            seed=env.EMULATOR_SEED.get(),
            completion=env.EMULATOR_COMPLETION.get(),
            checks=env.EMULATOR_CHECKS.get(),
            engine=env.EMULATOR_ENGINE.get(),
            numerics=env.EMULATOR_NUMERICS.get(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EmulatedWork:
    """What launches did: warp instructions, tensor-core instructions, bytes by TMA, waits at barriers.

    `errors` are findings that are certainly wrong (where the checks raise none), `warnings` what depends on the model.
    """

    launches: int = 0
    warp_instructions: int = 0
    mmas: int = 0
    tma_bytes: int = 0
    barrier_waits: int = 0
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def since(self, earlier: EmulatedWork) -> EmulatedWork:
        """Return what was done after `earlier`."""
        return EmulatedWork(
            launches=self.launches - earlier.launches,
            warp_instructions=self.warp_instructions - earlier.warp_instructions,
            mmas=self.mmas - earlier.mmas,
            tma_bytes=self.tma_bytes - earlier.tma_bytes,
            barrier_waits=self.barrier_waits - earlier.barrier_waits,
            errors=self.errors[len(earlier.errors) :],
            warnings=self.warnings[len(earlier.warnings) :],
        )


class EmulatedBackend:
    """Runs launch plans on an emulated device; `emulated_backend()` returns the shared one.

    A launch returns when the kernel has ended. Launches of several threads run one after another.
    """

    name = "emulator"

    def __init__(self, settings: EmulatorSettings | None = None) -> None:
        """Open a device; nothing is parsed yet. Raises UnsupportedError without the packages of the extra."""
        self.settings = settings or EmulatorSettings.from_environment()
        cache = default_cache()
        self.emulator = _import_emulator().Emulator(
            seed=self.settings.seed,
            completion=self.settings.completion,
            checks=self.settings.checks,
            engine=self.settings.engine,
            numerics=self.settings.numerics,
            cache_dir=cache.path / "emulator" if cache.path is not None else None,
        )
        self.lock = threading.RLock()
        self._modules: dict[str, Any] = {}
        self._launched: list[tuple[str, Any]] = []  # kernels and modules, in the order of their last launches
        self._num_launches = 0
        self._record: EmulatedErrorRecord | None = None

    @property
    def device_name(self) -> str:
        """What stands for the device's model."""
        return "emulator"

    @property
    def driver_version(self) -> str:
        """There is no driver."""
        return "none"

    @property
    def num_sms(self) -> int:
        """SMs of the emulated device."""
        return self.settings.num_sms

    def is_capturing(self) -> bool:
        """Whether launches are being recorded: never."""
        return False

    def error_record(self) -> EmulatedErrorRecord:
        """Return where kernels record why they stopped; every launch may write it."""
        if self._record is None:
            self._record = EmulatedErrorRecord()
        return self._record

    def load(self, kernel: LoadableKernel) -> Any:
        """Parse, decode and compile a kernel, once; raises UnsupportedError, naming what the emulator does not know."""
        ptx = kernel.artifact.ptx
        with self.lock:
            module = self._modules.get(ptx)
            if module is None:
                module = self.emulator.load(ptx)
                module.prepare(kernel.kernel_name)
                self._modules[ptx] = module
            return module

    def prepare(self, plan: LaunchPlan) -> EmulatedLaunch:
        """Check the launch against the device and pack its parameters.

        The kernel is parsed and compiled when it is first launched: of several prepared tiles a call takes one.
        """
        if plan.smem_bytes > _MAX_SMEM_BYTES:
            raise LaunchError(
                f"{plan.describe()} needs {plan.smem_bytes} bytes of shared memory a block, and a device has "
                f"{_MAX_SMEM_BYTES}. Use fewer stages or smaller tiles."
            )
        resident = resident_blocks(plan) * self.num_sms
        if plan.cooperative and math.prod(plan.grid) > resident:
            raise LaunchError(
                f"{plan.describe()} has {math.prod(plan.grid)} blocks, and the emulated device of {self.num_sms} SMs "
                f"holds {resident} of them at once, which a cooperative launch needs. Launch fewer blocks, or set "
                f"{env.EMULATOR_SMS.name}."
            )
        return EmulatedLaunch(backend=self, plan=plan)

    def launch(self, plan: LaunchPlan, stream: int | None = None) -> None:
        """Prepare `plan` and launch it once."""
        self.prepare(plan).launch(stream)

    def work(self) -> EmulatedWork:
        """Return what all launches of this device did so far."""
        reports = [module.report for module in self._modules.values()]
        findings = [finding for report in reports for finding in report.findings]
        return EmulatedWork(
            launches=self._num_launches,
            warp_instructions=sum(report.warp_instructions for report in reports),
            mmas=sum(report.mmas for report in reports),
            tma_bytes=sum(report.tma_bytes for report in reports),
            barrier_waits=sum(report.barrier_waits for report in reports),
            errors=tuple(str(finding) for finding in findings if finding.severity == "error"),
            warnings=tuple(str(finding) for finding in findings if finding.severity != "error"),
        )

    def timelines(self) -> list[tuple[str, dict[str, Any]]]:
        """Return each kernel's name and last launch as a Chrome trace, in the order of these launches."""
        return [(name, module.report.timeline()) for name, module in self._launched]

    def note_launch(self, kernel: str, module: Any) -> None:
        """Remember a launch for `work` and `timelines`."""
        self._num_launches += 1
        self._launched = [pair for pair in self._launched if pair[1] is not module]
        self._launched.append((kernel, module))


class EmulatedLaunch:
    """A kernel with packed parameters; `launch` executes it to its end."""

    def __init__(self, *, backend: EmulatedBackend, plan: LaunchPlan) -> None:
        """Pack parameters."""
        self.plan: LaunchPlan = plan
        self._backend = backend
        self._signature = plan.signature
        self._buffer = ParamBuffer(self._signature, plan.params, encode_tensor_map)
        # Tensors that are parameters, by index: `update` replaces them.
        self._tensors = {
            index: param.value for index, param in enumerate(plan.params) if isinstance(param.value, torch.Tensor)
        }

    def index_of(self, name: str) -> int:
        """Return the index of the parameter called `name`."""
        return self._buffer.index_of(name)

    def update(self, index: int, value: Value) -> None:
        """Set parameter `index` to another value of its kind; raises ArgumentError for one that does not fit."""
        self._buffer.update(index, value)
        if self.plan.params[index].kind is ParamKind.POINTER:
            self._tensors.pop(index, None)
            if isinstance(value, torch.Tensor):
                self._tensors[index] = value

    def patch(self, index: int, offset: int, data: bytes) -> None:
        """Overwrite `data` at byte `offset` of the struct parameter `index`; raises ArgumentError outside of it."""
        self._buffer.patch(index, offset, data)

    def launch(self, stream: int | None = None, *, reads: Tensors = (), writes: Tensors = ()) -> None:  # noqa: ARG002
        """Execute the kernel, which may touch the plan's memory, its tensor parameters, `reads` and `writes`.

        Raises LaunchError when the kernel gave up waiting and said why, EmulatorFault when it did something wrong.
        """
        plan = self.plan
        record = self._backend.error_record()
        memory = [
            *_regions((*plan.memory, *self._tensors.values(), *writes, record.memory), writable=True),
            *_regions(reads, writable=False),
        ]
        args = [self._buffer.read(index) for index in range(len(plan.params))]
        with self._backend.lock:
            module = self._backend.load(plan.kernel)
            self._backend.note_launch(plan.kernel.kernel_name, module)
            try:
                module.launch(
                    plan.kernel.kernel_name,
                    grid=plan.grid,
                    block=plan.block,
                    cluster=plan.cluster,
                    shared_bytes=plan.smem_bytes,
                    args=args,
                    memory=memory,
                    cooperative=plan.cooperative,
                )
            except EmulatorFault as fault:
                record.raise_if_failed(cause=fault)
                raise
            # A thread that gives up traps, but a kernel may also go on after it wrote.
            record.raise_if_failed()


def emulated_backend() -> EmulatedBackend:
    """Return the emulated device that the environment describes: one for equal settings."""
    return _backend(EmulatorSettings.from_environment())


def resident_blocks(plan: LaunchPlan) -> int:
    """Return how many blocks of the plan an SM holds, registers aside."""
    return min(
        _MAX_BLOCKS_PER_SM,
        _MAX_THREADS_PER_SM // plan.num_threads,
        _SMEM_BYTES_PER_SM // (plan.smem_bytes + _RESERVED_SMEM_BYTES),
    )


def encode_tensor_map(tensor_map: TensorMap) -> bytes:
    """Return the 128 bytes by which the emulator knows a tensor map."""
    described = importlib.import_module("megamoe_jit.emulator.memory.tensor_map").TensorMap
    encoded: bytes = described.describing(tensor_map.spec, tensor_map.address).encode()
    return encoded


@functools.cache
def _backend(settings: EmulatorSettings) -> EmulatedBackend:
    return EmulatedBackend(settings)


def _regions(tensors: Iterable[torch.Tensor | None], *, writable: bool) -> Iterator[Any]:
    """Yield each tensor's memory, from its first to its last element."""
    memory = _import_emulator().Memory
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            yield memory(tensor, writable=writable)


def _import_emulator() -> Any:
    try:
        return importlib.import_module("megamoe_jit.emulator.api")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EMULATOR_PACKAGES:
            raise
        raise UnsupportedError(
            f"the emulator needs {error.name}, which is not installed. Install pip install 'megamoe-jit[emulator]', or "
            'use backend="reference", which runs without.'
        ) from error
