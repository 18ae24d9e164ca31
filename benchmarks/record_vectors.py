"""What does a Hopper GPU answer? Runs the kernels of tests/emulator/vectors and stores what they leave in memory.

    python -m benchmarks.record_vectors --out FOLDER [--families wgmma tma] [--workers 6]
    python -m benchmarks.record_vectors --compile            CUDA C++ to PTX with NVRTC, no GPU
    python -m benchmarks.record_vectors --assemble ptxas     every program through an assembler, no GPU

Each case runs twice from fresh memory, between guards; results that differ, guards that changed and kernels that fail
or hang are named and not stored, unless the case is there to fail. The emulator replays what is stored bit for bit
(tests/emulator/test_vectors.py).
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import measure_conditions
from megamoe_jit.runtime.driver import Driver, get_driver
from megamoe_jit.runtime.tensormap import OobFill, Swizzle, TensorMap, TensorMapSpec, TmaElement
from tests.emulator.vectors import store
from tests.emulator.vectors.case import Array, Bytes, Case, InOut, Input, Map, Output, Scalar, Scratch
from tests.emulator.vectors.cases import build, families

COMPILED = Path(__file__).parent.parent / "tests" / "emulator" / "vectors" / "compiled"
# The newest that driver 580 assembles; NVRTC writes its own, though these programs need nothing of it.
PTX_VERSION = "9.0"
GUARD = 1024  # bytes of poison before and after every buffer
TIMEOUT_S = 30.0
_FAULT = re.compile(r"CUDA_ERROR_(?!OUT_OF|NOT_|INVALID_VALUE|INVALID_PTX)\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one case left in memory, or what went wrong."""

    outputs: dict[int, Array]
    error: str = ""


class Gpu:
    """The device's memory and launches, through the driver alone."""

    def __init__(self) -> None:
        """Open device 0."""
        self.driver: Driver = get_driver()
        self._context = self.driver.current(0)
        self._context.__enter__()

    def call(self, function: str, *args: Any) -> Any:
        """Call the driver; raises LaunchError."""
        return self.driver.call("recording vectors", function, *args)

    def upload(self, data: bytes) -> int:
        """Return the address of a guarded copy."""
        guard = bytes([0xC3]) * GUARD
        padded = guard + data + guard
        base = int(self.call("cuMemAlloc", len(padded)))
        self.call("cuMemcpyHtoD", base, padded, len(padded))
        return base + GUARD

    def download(self, address: int, size: int) -> tuple[bytes, bool]:
        """Return a buffer's bytes and whether its guards are whole; frees it."""
        host = bytearray(size + 2 * GUARD)
        self.call("cuMemcpyDtoH", host, address - GUARD, len(host))
        self.call("cuMemFree", address - GUARD)
        guard = bytes([0xC3]) * GUARD
        return bytes(host[GUARD:-GUARD]), host[:GUARD] == guard and host[-GUARD:] == guard

    def load(self, case: Case) -> Any:
        """Assemble a program."""
        module = self.driver.module
        options, values = [], []
        if ", debug" in case.ptx:
            options, values = [module.CUjit_option.CU_JIT_OPTIMIZATION_LEVEL], [0]
        loaded = self.call("cuModuleLoadDataEx", case.ptx.encode() + b"\0", len(options), options, values)
        function = self.call("cuModuleGetFunction", loaded, b"kernel")
        if case.shared_bytes:
            which = module.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.call("cuFuncSetAttribute", function, which, case.shared_bytes)
        return loaded, function

    def run(self, case: Case) -> Answer:
        """Run a case once."""
        loaded, function = self.load(case)
        buffers: dict[int, int] = {}
        sizes: dict[int, int] = {}
        for index, arg in enumerate(case.args):
            if isinstance(arg, Input | InOut | Output | Scratch):
                data = _contents(arg)
                buffers[index], sizes[index] = self.upload(data), len(data)
        values = [self._parameter(case, index, buffers, sizes) for index in range(len(case.args))]
        holders = [ctypes.create_string_buffer(value, len(value)) for value in values]
        pointers = (ctypes.c_void_p * max(len(holders), 1))(*(ctypes.addressof(holder) for holder in holders))
        self.call("cuLaunchKernelEx", self._config(case), function, ctypes.addressof(pointers), 0)
        self.call("cuCtxSynchronize")
        outputs, error = {}, ""
        for index, address in buffers.items():
            data, is_whole = self.download(address, sizes[index])
            error = error or ("" if is_whole else f"argument {index}: written outside")
            arg = case.args[index]
            if isinstance(arg, Input) and data != _contents(arg):
                error = error or f"argument {index}: an input has changed"
            if isinstance(arg, InOut | Output):
                outputs[index] = np.frombuffer(data, arg.dtype if isinstance(arg, Output) else arg.data.dtype)
        self.call("cuModuleUnload", loaded)
        return Answer(outputs=outputs, error=error)

    def _parameter(self, case: Case, index: int, buffers: dict[int, int], sizes: dict[int, int]) -> bytes:
        arg = case.args[index]
        if isinstance(arg, Scalar):
            return bytes(arg.number.tobytes())
        if isinstance(arg, Bytes):
            return arg.data
        if isinstance(arg, Map):
            blob = tensor_map(arg, buffers[arg.of]).encode(self.driver)
            if not arg.in_memory:
                return blob
            buffers[index], sizes[index] = self.upload(blob), len(blob)
        return buffers[index].to_bytes(8, "little")

    def _config(self, case: Case) -> Any:
        module = self.driver.module
        config = module.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = case.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = case.block
        config.sharedMemBytes = case.shared_bytes
        if case.cluster != (1, 1, 1):
            attribute = module.CUlaunchAttribute()
            attribute.id = module.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            dims = attribute.value.clusterDim
            dims.x, dims.y, dims.z = case.cluster
            config.attrs, config.numAttrs = [attribute], 1
        return config


def tensor_map(arg: Map, address: int) -> TensorMap:
    """Return a case's tensor map as the driver takes it."""
    spec = TensorMapSpec(
        element=TmaElement(arg.element),
        dims=arg.dims,
        byte_strides=arg.byte_strides,
        box=arg.box,
        element_strides=arg.element_strides,
        swizzle=Swizzle(arg.swizzle),
        oob_fill=OobFill.NAN if arg.is_nan_filled else OobFill.ZERO,
    )
    if spec.transaction_bytes != arg.box_bytes:
        raise ValueError(f"{arg} counts {arg.box_bytes} bytes a box, the driver's rules {spec.transaction_bytes}")
    return TensorMap(spec=spec, address=address + arg.offset)


def _contents(arg: Input | InOut | Output | Scratch) -> bytes:
    if isinstance(arg, Scratch):
        return bytes(arg.size)
    return bytes((arg.poisoned if isinstance(arg, Output) else arg.data).tobytes())


def answer(gpu: Gpu, name: str) -> Answer:
    """Run a case twice; the results are those of the first run when both agree."""
    case = build(name)
    first = gpu.run(case)
    if case.faults:
        return Answer(outputs={}, error="went through, and was to fault")
    second = gpu.run(case)
    error = first.error or second.error
    for index, data in first.outputs.items():
        if not np.array_equal(data.view("uint8"), second.outputs[index].view("uint8")):
            error = error or f"argument {index}: two runs differ"
    return Answer(outputs=first.outputs, error=error)


def _work(connection: Connection) -> None:
    """Answer for one name after another, in a process of its own: what fails takes its CUDA context along."""
    gpu = Gpu()
    while (name := connection.recv()) is not None:
        try:
            result = answer(gpu, name)
        except Exception as failure:  # whatever it is, the parent records it
            result = Answer(outputs={}, error=f"{type(failure).__name__}: {failure}")
        connection.send((result.outputs, result.error))


class Worker:
    """A child process that is replaced after each failure."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process: Any = None
        self._connection: Any = None

    def ask(self, name: str) -> Answer:
        """Return a case's answer; one that hangs or dies becomes an error."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        error = f"no answer within {TIMEOUT_S:.0f} s"
        try:
            self._connection.send(name)
            if self._connection.poll(TIMEOUT_S):
                outputs, error = self._connection.recv()
                if not error or "Error" not in error:
                    return Answer(outputs=outputs, error=error)
        except (EOFError, OSError):
            error = "the process died"
        self.close()
        return Answer(outputs={}, error=error)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def record(names: Sequence[str], workers: int) -> Iterator[tuple[str, Answer]]:
    """Run every case on the GPU."""
    pool = [Worker() for _ in range(workers)]

    def run(index: int) -> list[tuple[str, Answer]]:
        return [(name, pool[index].ask(name)) for name in names[index::workers]]

    with ThreadPoolExecutor(workers) as threads:
        for answers in threads.map(run, range(workers)):
            yield from answers
    for worker in pool:
        worker.close()


def assemble(names: Sequence[str], ptxas: str) -> int:
    """Print what the assembler objects to; returns how many programs it refused."""
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / "case.ptx"
            case = build(name)
            path.write_text(case.ptx)
            level = "-O0" if ", debug" in case.ptx else "-O1"
            found = subprocess.run(
                [ptxas, "-arch=sm_90a", level, "-o", "/dev/null", path], capture_output=True, text=True
            )
            if found.returncode:
                refused += 1
                print(f"{name}: {found.stderr.strip()}")
    print(f"{len(names)} programs, {refused} refused")
    return refused


def compile_sources() -> None:
    """Write the PTX of every CUDA source."""
    nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
    for path in sorted(COMPILED.glob("*.cu")):
        options = [b"-arch=compute_90a", b"-fmad=false", b"-std=c++17", b"-default-device", b"--device-int128"]
        options += [b"-G"] if path.stem.endswith("_debug") else []
        options += [b"-lineinfo"] if path.stem.endswith("_lineinfo") else []
        _, program = nvrtc.nvrtcCreateProgram(path.read_bytes(), f"/{path.name}".encode(), 0, [], [])
        (code,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(code):
            log = bytearray(nvrtc.nvrtcGetProgramLogSize(program)[1])
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"{path.name}: {log.decode()}")
        text = bytearray(nvrtc.nvrtcGetPTXSize(program)[1])
        nvrtc.nvrtcGetPTX(program, text)
        ptx = re.sub(r"\.version \d+\.\d+", f".version {PTX_VERSION}", text.decode().rstrip("\0\n ")) + "\n"
        path.with_suffix(".ptx").write_text(ptx)
        print(path.with_suffix(".ptx").name)


def main() -> int:
    """Record, compile or assemble; returns the number of cases that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=store.FOLDER)
    parser.add_argument("--families", nargs="+", default=sorted(families()))
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--assemble", metavar="PTXAS")
    args = parser.parse_args()
    names = [name for family in args.families for name in families()[family]]
    if args.compile:
        compile_sources()
        return 0
    if args.assemble:
        return assemble(names, args.assemble)
    answers = dict(record(names, args.workers))
    failed = {name: found.error for name, found in sorted(answers.items()) if found.error}
    kept = {name: dict(found.outputs) for name, found in answers.items() if not found.error}
    store.save(kept, args.out)
    entries = {}
    for name in sorted(answers):
        case = build(name)
        fault = _FAULT.search(failed.get(name, "")) if case.faults else None
        if name in kept or fault:
            entries[name] = {"ptx": case.ptx_digest, "inputs": case.input_digest}
        if fault:
            entries[name]["fault"] = fault[0]
            failed.pop(name)
    path = args.out / store.MANIFEST
    before = json.loads(path.read_text())["cases"] if path.exists() else {}
    others = {name: entry for name, entry in before.items() if name.split("/")[0] not in args.families}
    found = {"conditions": measure_conditions(), "cases": dict(sorted({**others, **entries}.items()))}
    path.write_text(json.dumps(found, indent=0) + "\n")
    for name, error in failed.items():
        print(f"{name}: {error}")
    print(f"{len(entries)} cases recorded in {args.out}, {len(failed)} failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(min(main(), 99))
