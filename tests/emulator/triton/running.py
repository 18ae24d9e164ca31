"""Compiled kernels of Triton run in the emulator, with the arguments that Triton's launcher would pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from megamoe_jit.emulator.api import Emulator, Memory
from megamoe_jit.emulator.memory.tensor_map import Element, Swizzle, TensorMap
from tests.emulator.triton.compiled import Compiled, MapMeta

_SWIZZLES = (Swizzle.NONE, Swizzle.B32, Swizzle.B64, Swizzle.B128)
_ELEMENTS = tuple(Element)  # in the order of tensormap.replace's element types, which the compiler's numbers are
SCRATCH_ALIGN = 128
# What Triton's compiler leaves out, and hardware forgives: fences of tcgen05 (it orders tensor memory by tcgen05.wait
# and thread barriers alone), tcgen05.wait::ld before the first use of loaded registers, a fence behind mbarrier.init
# within a CTA, and one between the address that tcgen05.alloc writes and a tensor load over it. And where several warps
# hold the same value, all of them store it.
NOT_REPORTED = ("tcgen05-fence", "tmem-registers", "mbarrier-init-fence", "proxy-overwrite", "same-store")


@dataclass(frozen=True)
class Described:
    """A tensor that the kernel gets as a tensor map: rows of dense elements."""

    tensor: torch.Tensor


def run(
    compiled: Compiled, grid: tuple[int, ...], arguments: Mapping[str, Any], *, seed: int = 0, **settings: Any
) -> Any:
    """Run a kernel over `grid` programs, arguments by name; returns the report."""
    x, y, z = (*grid, 1, 1)[:3]
    maps = iter(compiled.maps)
    args: list[Any] = []
    for name, kind in compiled.signature:
        value = arguments[name]
        if kind.startswith("tensordesc"):
            assert isinstance(value, Described)
            args += describe(value.tensor, next(maps))
        else:
            args.append(value)
    scratch = torch.zeros(x * y * z * compiled.num_ctas * compiled.scratch_bytes + SCRATCH_ALIGN, dtype=torch.uint8)
    aligned = scratch[-scratch.data_ptr() % SCRATCH_ALIGN :]
    assert compiled.scratch_align <= SCRATCH_ALIGN
    args += [aligned, 0]  # scratch of the kernel, and of a profiler that is not there
    assert "tcgen05.fence" not in compiled.ptx
    module = Emulator(seed=seed, suppress=NOT_REPORTED, **settings).load(compiled.ptx)
    module.launch(
        compiled.name,
        grid=(x * compiled.num_ctas, y, z),
        block=(compiled.num_threads, 1, 1),
        cluster=(compiled.num_ctas, 1, 1),
        shared_bytes=compiled.smem_bytes,
        args=args,
        memory=[Memory(value.tensor) for value in arguments.values() if isinstance(value, Described)],
    )
    return module.report


def describe(tensor: torch.Tensor, meta: MapMeta) -> list[Any]:
    """Return what a tensor descriptor becomes: a tensor map, then shape and strides as numbers."""
    assert tensor.stride(-1) == 1
    element = _ELEMENTS[meta.element_type]
    assert max(element.bits // 8, 1) == meta.element_bytes == tensor.element_size()
    dims = list(tensor.shape)
    if meta.is_fp4_padded:
        assert element is Element.PADDED_U4
        dims[-1] *= 2
    tensor_map = TensorMap(
        address=tensor.data_ptr(),
        element=element,
        dims=tuple(reversed(dims)),
        byte_strides=tuple(stride * tensor.element_size() for stride in reversed(tensor.stride()[:-1])),
        box=tuple(reversed(meta.box)),
        swizzle=_SWIZZLES[meta.swizzle],
    )
    return [tensor_map, *tensor.shape, *tensor.stride()]
