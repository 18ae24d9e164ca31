"""A tiny kernel for the JIT's tests: it compiles in some 50 ms, and renders from two folders."""

from __future__ import annotations

from pathlib import Path

from megamoe_jit.arch import get_arch
from megamoe_jit.jit.places import templates_dir
from megamoe_jit.jit.source import KernelSource

TINY_TEMPLATES = Path(__file__).parent / "templates"
ROOTS = (TINY_TEMPLATES, templates_dir())


def tiny_kernel(factor: float = 2.0, *, arch: str = "sm_90a", kernel_name: str = "scale", **more: int) -> KernelSource:
    """Describe templates/scale.cuh, which multiplies by `factor`; `more` are constants that it does not use."""
    parameters = (("block_threads", 128), ("factor", factor), *more.items())
    return KernelSource(kernel_name=kernel_name, entry="scale.cuh", arch=get_arch(arch), parameters=parameters)
