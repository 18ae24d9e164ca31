"""A tiny kernel for the JIT's tests: it compiles in some 50 ms, and renders from two folders."""

from __future__ import annotations

from pathlib import Path

from megamoe_jit.arch import get_arch
from megamoe_jit.jit.build import build
from megamoe_jit.jit.built import BuiltKernel
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.places import templates_dir
from megamoe_jit.jit.source import KernelSource

TINY_TEMPLATES = Path(__file__).parent / "templates"
ROOTS = (TINY_TEMPLATES, templates_dir())


def tiny_kernel(factor: float = 2.0, *, arch: str = "sm_90a", kernel_name: str = "scale", **more: int) -> KernelSource:
    """Describe templates/scale.cuh, which multiplies by `factor`; `more` are constants that it does not use."""
    parameters = (("block_threads", 128), ("factor", factor), *more.items())
    return KernelSource(kernel_name=kernel_name, entry="scale.cuh", arch=get_arch(arch), parameters=parameters)


def build_tiny(cache: KernelCache, factor: float = 2.0, **more: object) -> BuiltKernel:
    """Build the tiny kernel through `cache`."""
    return build(tiny_kernel(factor), cache=cache, templates=ROOTS, **more)


def again(cache: KernelCache, **more: object) -> KernelCache:
    """The same folder, as another process would open it."""
    return KernelCache(cache.path, **more)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x04
    path.write_bytes(data)
