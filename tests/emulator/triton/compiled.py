"""Kernels of Triton compiled to PTX without a GPU, and what a launch of them needs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

Constants = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MapMeta:
    """What the compiler decided about one tensor descriptor that the host fills in."""

    swizzle: int  # CUtensorMapSwizzle
    element_bytes: int
    element_type: int  # number in tensormap.replace's .elemtype
    box: tuple[int, ...]  # outermost first
    is_fp4_padded: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """PTX of one kernel and its launch: threads, cluster, shared memory, scratch."""

    name: str
    ptx: str
    num_threads: int
    num_ctas: int
    smem_bytes: int
    scratch_bytes: int  # a program
    scratch_align: int
    maps: tuple[MapMeta, ...]
    signature: tuple[tuple[str, str], ...]  # run-time arguments: name and Triton type


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    capability: int = 100,
    num_warps: int = 4,
    num_stages: int = 3,
    num_ctas: int = 1,
    fuse: bool = False,
    gluon: bool = False,
) -> Compiled:
    """Compile `kernel` for compute capability 9.0 (90) or 10.0 (100), with arguments that are multiples of 16."""
    return _compile(
        kernel,
        tuple(signature.items()),
        tuple(constants.items()),
        (("num_warps", num_warps), ("num_stages", num_stages), ("num_ctas", num_ctas), ("enable_fp_fusion", fuse)),
        capability,
        gluon,
    )


@functools.lru_cache(maxsize=256)
def _compile(
    kernel: Any,
    signature: tuple[tuple[str, str], ...],
    constants: Constants,
    options: Constants,
    capability: int,
    gluon: bool,
) -> Compiled:
    given = dict(signature)
    divisible = [["tt.divisibility", 16]]
    names = kernel.arg_names
    # "i32:any": an integer that may be anything; pointers and other integers are multiples of 16.
    attrs = {
        (names.index(name),): divisible for name, kind in given.items() if kind[0] == "*" or kind in ("i32", "i64")
    }
    types = {name: kind.partition(":")[0] for name, kind in given.items()}
    source_type = ASTSource
    if gluon:
        from triton.experimental.gluon._runtime import GluonASTSource

        source_type = GluonASTSource
    source = source_type(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=dict(constants),
        attrs=attrs,
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(options))
    meta = built.metadata
    return Compiled(
        name=meta.name,
        ptx=built.asm["ptx"],
        num_threads=32 * meta.num_warps,
        num_ctas=meta.num_ctas,
        smem_bytes=meta.shared,
        scratch_bytes=meta.global_scratch_size,
        scratch_align=meta.global_scratch_align,
        maps=tuple(
            MapMeta(
                swizzle=each["swizzle"],
                element_bytes=each["elem_size"],
                element_type=each["elem_type"],
                box=tuple(each["block_size"]),
                is_fp4_padded=bool(each["fp4_padded"]),
            )
            for each in meta.tensordesc_meta or ()
        ),
        signature=tuple(types.items()),
    )
