"""From rendered source to PTX and cubin: one NVRTC compile, and what its log says about resources."""

from __future__ import annotations

import importlib
import re
import time
from dataclasses import dataclass
from typing import Any

from megamoe_jit.arch import Arch
from megamoe_jit.errors import CompileError, UnsupportedError
from megamoe_jit.jit.render import PROGRAM_NAME, RenderedSource

_ERROR = re.compile(r"(?:^|\): )(?:catastrophic )?error\b|^ptxas (?:error|fatal)|^nvrtc: error", re.IGNORECASE)
_NUM_ERRORS_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileOptions:
    """NVRTC options beyond the target; all of them are part of the cache key.

    `lineinfo` puts template positions into PTX and cubin: error reports, profilers and the emulator show them, and the
    machine code stays the same. `fmad` lets the compiler contract a * b + c; `fast_math` implies it and adds
    approximate division, square root and flushed subnormals.
    """

    std: str = "c++20"
    lineinfo: bool = True
    fmad: bool = True
    fast_math: bool = False
    max_registers: int | None = None
    extra: tuple[str, ...] = ()

    def flags(self, arch: Arch) -> tuple[str, ...]:
        """Return the options in NVRTC's spelling."""
        flags = [
            f"--gpu-architecture={arch.name}",
            f"--std={self.std}",
            "--device-as-default-execution-space",
            "--ptxas-options=--verbose",
            "--no-cache",  # what NVRTC takes from a cache of its own comes without the resources in the log
            f"--fmad={'true' if self.fmad else 'false'}",
        ]
        if self.lineinfo:
            flags.append("--generate-line-info")
        if self.fast_math:
            flags.append("--use_fast_math")
        if self.max_registers is not None:
            flags.append(f"--maxrregcount={self.max_registers}")
        return (*flags, *self.extra)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one thread or block of the kernel takes, as ptxas reports it: registers, and bytes."""

    registers: int
    static_smem: int
    spill_stores: int
    spill_loads: int
    stack_frame: int
    local: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """The outcome of one compile: `ptx` is what the emulator runs, `cubin` what the driver loads."""

    ptx: str
    cubin: bytes
    log: str
    resources: Resources
    compile_s: float


def nvrtc_version() -> tuple[int, int]:
    """Return (major, minor) of the NVRTC that compiles; raises UnsupportedError when there is none."""
    nvrtc = _nvrtc()
    status, major, minor = nvrtc.nvrtcVersion()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise UnsupportedError(f"NVRTC does not tell its version: {status.name}. Reinstall nvidia-cuda-nvrtc.")
    return int(major), int(minor)


def compile_source(rendered: RenderedSource, arch: Arch, options: CompileOptions, *, kernel_name: str) -> Artifact:
    """Compile `rendered` for `arch`; needs NVRTC, but neither GPU nor driver.

    Raises CompileError with NVRTC's log and the first diagnostics, each with its template and line.
    """
    nvrtc = _nvrtc()
    headers = [text.encode() for _, text in rendered.files]
    names = [name.encode() for name, _ in rendered.files]
    flags = [flag.encode() for flag in options.flags(arch)]
    start = time.perf_counter()
    status, program = nvrtc.nvrtcCreateProgram(
        rendered.main.encode(), PROGRAM_NAME.encode(), len(headers), headers, names
    )
    _check(nvrtc, status, "nvrtcCreateProgram")
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
        log = _fetch(nvrtc, program, "ProgramLog").decode(errors="replace").strip()
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise _compile_error(log, status.name, kernel_name, arch)
        ptx = _fetch(nvrtc, program, "PTX").decode()
        cubin = _fetch(nvrtc, program, "CUBIN", is_text=False)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    compile_s = time.perf_counter() - start
    if f".entry {kernel_name}(" not in ptx:
        raise CompileError(
            f"the source compiles, but has no kernel {kernel_name!r}. "
            f'Declare it as extern "C" __global__ void {kernel_name}(...).',
            log=log,
        )
    return Artifact(ptx=ptx, cubin=cubin, log=log, resources=parse_resources(log, kernel_name), compile_s=compile_s)


def first_errors(log: str, limit: int = _NUM_ERRORS_SHOWN) -> tuple[str, ...]:
    """Return the first diagnostics of an NVRTC log, one line each: "/roles/mma.cuh(12): error: ..."."""
    errors = (line.strip() for line in log.splitlines() if _ERROR.search(line))
    return tuple(dict.fromkeys(errors))[:limit]


def parse_resources(log: str, kernel_name: str) -> Resources:
    """Read the resources of `kernel_name` from a log that ptxas wrote with --verbose."""
    section = log.partition(f"Compiling entry function '{kernel_name}'")[2].partition("Compiling entry function")[0]

    def count(pattern: str) -> int:
        match = re.search(pattern, section)
        return int(match[1]) if match else 0

    return Resources(
        registers=count(r"Used (\d+) registers"),
        static_smem=count(r"(\d+) bytes smem"),
        spill_stores=count(r"(\d+) bytes spill stores"),
        spill_loads=count(r"(\d+) bytes spill loads"),
        stack_frame=count(r"(\d+) bytes stack frame"),
        local=count(r"(\d+) bytes lmem"),
    )


def _compile_error(log: str, status: str, kernel_name: str, arch: Arch) -> CompileError:
    errors = first_errors(log) or tuple(log.splitlines()[:_NUM_ERRORS_SHOWN]) or (status,)
    listed = "\n".join(f"  {error}" for error in errors)
    return CompileError(f"NVRTC refused kernel {kernel_name!r} for {arch}:\n{listed}", errors=errors, log=log)


def _nvrtc() -> Any:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise UnsupportedError(
            f"NVRTC cannot be loaded ({error}), and kernels are compiled with it. "
            "Install it with: pip install 'nvidia-cuda-nvrtc>=13'."
        ) from error
    return nvrtc


def _check(nvrtc: Any, status: object, call: str) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"{call} failed: {status}")


def _fetch(nvrtc: Any, program: object, what: str, *, is_text: bool = True) -> bytes:
    status, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    _check(nvrtc, status, f"nvrtcGet{what}Size")
    buffer = bytearray(size)
    (status,) = getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    _check(nvrtc, status, f"nvrtcGet{what}")
    return bytes(buffer).rstrip(b"\0") if is_text else bytes(buffer)
