"""Tensor copies and reductions from shared to global memory: what lies outside is left alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from tests.emulator.vectors.case import Case, Family, InOut, Input, Map
from tests.emulator.vectors.cases.tma import THREADS, corners, tensor_bytes, tensor_map, tile_operand, values
from tests.emulator.vectors.data import Source
from tests.emulator.vectors.ptx import MAP_PARAM, kernel

FAMILY = Family("tma_store")
SECTION = "Data Movement and Conversion Instructions: cp.async.bulk.tensor, cp.reduce.async.bulk.tensor"
MARGIN = 64  # bytes around the tensor that must stay as they are


def store(
    spec: Map, seed: str, *, reduction: str = "", count: int = 6, offset: int = 0, is_signed: bool = False
) -> Case:
    """Boxes from shared memory, one after another; the machine faults at negative coordinates."""
    rank, size = len(spec.dims), spec.box_bytes
    spec = replace(spec, offset=MARGIN)
    source = Source(f"tma_store/{seed}")
    rounds = -(-size // (16 * THREADS))
    last = size // 16 - (rounds - 1) * THREADS
    fill = ""
    for index in range(rounds):
        guard = "@%p1 " if index == rounds - 1 else ""
        fill += f"{guard}ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%d2+{index * 16 * THREADS}];\n"
        fill += f"{guard}st.shared.v4.u32 [%r2+{offset + index * 16 * THREADS}], {{%r10, %r11, %r12, %r13}};\n"
    opcode = f"cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{reduction}.tile.bulk_group"
    opcode = opcode if reduction else f"cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"
    body = f"""
        .reg .b32 %c<5>;
        .shared .align 1024 .b8 cells[{offset + size}];
        mov.b64 %d1, map;
        cvta.param.u64 %d1, %d1;
        mov.u32 %r0, %tid.x;
        mov.u32 %r1, cells;
        mad.lo.u32 %r2, %r0, 16, %r1;
        setp.lt.u32 %p1, %r0, {last};
        setp.eq.u32 %p3, %r0, 0;
        mad.wide.u32 %d2, %r0, 16, %boxes;
        mov.b64 %d3, %coords;
        mov.u32 %r4, 0;
    top:
        {fill}
        fence.proxy.async.shared::cta;
        bar.sync 0;
        @!%p3 bra stored;
    """
    body += "".join(f"ld.global.u32 %c{axis}, [%d3+{4 * axis}];\n" for axis in range(rank))
    body += f"""
        {opcode} [%d1, {tile_operand(rank)}], [%r1+{offset}];
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group 0;
    stored:
        bar.sync 0;
        add.u64 %d2, %d2, {size};
        add.u64 %d3, %d3, {4 * rank};
        add.u32 %r4, %r4, 1;
        setp.lt.u32 %p4, %r4, {count};
        @%p4 bra top;
    """
    args = (
        spec,
        InOut(data=values(source, spec.element, tensor_bytes(spec) + 2 * MARGIN)),
        Input(data=corners(source, spec, count, is_signed=is_signed)),
        Input(data=np.concatenate([values(source, spec.element, size) for _ in range(count)])),
    )
    text = kernel(body, (MAP_PARAM, ".u64 tensor", ".u64 coords", ".u64 boxes"))
    return Case(ptx=text, args=args, block=(THREADS, 1, 1), section=SECTION, faults=is_signed)


def add(name: str, spec: Map, **options: object) -> None:
    """Add a store."""
    FAMILY.add(name, partial(store, spec, name, **options))  # type: ignore[arg-type]


add("1d", tensor_map("UINT8", (300,), (64,)))
add("2d_u8", tensor_map("UINT8", (45, 13), (32, 6)))
add("2d_bf16", tensor_map("BFLOAT16", (41, 13), (16, 6)))
add("2d_f32", tensor_map("FLOAT32", (33, 13), (8, 6)))
add("2d_f32_ftz", tensor_map("FLOAT32_FTZ", (33, 13), (8, 6)))
add("2d_tf32", tensor_map("TFLOAT32", (33, 13), (8, 6)))
add("2d_f64", tensor_map("FLOAT64", (9, 13), (4, 6)))
for _span in (32, 64, 128):
    _swizzle = f"{_span}B"
    add(f"2d_swizzle_{_span}", tensor_map("UINT8", (_span + 24, 27), (_span, 16), swizzle=_swizzle))
    add(f"3d_swizzle_{_span}", tensor_map("UINT16", (_span, 7, 5), (_span // 2, 4, 3), swizzle=_swizzle))
add("2d_swizzle_128_offset", tensor_map("UINT8", (140, 30), (128, 12), swizzle="128B"), offset=384)
add("3d", tensor_map("UINT8", (70, 6, 5), (32, 3, 2)))
add("4d", tensor_map("UINT16", (20, 4, 5, 3), (16, 2, 3, 2)))
add("5d", tensor_map("FLOAT32", (9, 3, 4, 3, 2), (8, 2, 2, 2, 2)))
add("strides", tensor_map("UINT8", (50, 40), (32, 9), element_strides=(1, 2)))

for _element, _ops in {
    "UINT32": ("add", "min", "max", "inc", "dec", "and", "or", "xor"),
    "INT32": ("add", "min", "max"),
    "UINT64": ("add", "min", "max", "and", "or", "xor"),
    "INT64": ("min", "max"),
    "FLOAT16": ("add", "min", "max"),
    "BFLOAT16": ("add", "min", "max"),
    "FLOAT32": ("add",),
    "FLOAT32_FTZ": ("add",),
    "FLOAT64": ("add",),
}.items():
    _inner = 32 // (8 if "64" in _element else 2 if "16" in _element else 4)
    for _op in _ops:
        add(f"reduce_{_op}_{_element.lower()}", tensor_map(_element, (_inner + 5, 9), (_inner, 4)), reduction=_op)
add("reduce_add_swizzle_128", tensor_map("UINT32", (40, 20), (32, 9), swizzle="128B"), reduction="add")
add("reduce_xor_4d", tensor_map("UINT32", (9, 4, 3, 3), (8, 2, 2, 2)), reduction="xor")
add("negative_1d", tensor_map("UINT8", (300,), (64,)), is_signed=True)
add("negative_2d", tensor_map("BFLOAT16", (41, 13), (16, 6)), is_signed=True)
add("negative_reduce", tensor_map("UINT32", (33, 13), (8, 6)), is_signed=True, reduction="add")
