"""Tensor copies from global to shared memory: ranks, types, swizzles, every edge."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from tests.emulator.vectors.case import ITEM_BYTES, Argument, Case, Family, Input, Map, Output, Scratch
from tests.emulator.vectors.data import Array, Source
from tests.emulator.vectors.ptx import MAP_PARAM, kernel, wait

FAMILY = Family("tma")
SECTION = "Data Movement and Conversion Instructions: cp.async.bulk.tensor"
THREADS = 128
FLOAT_OF = {"FLOAT16": "f16", "BFLOAT16": "bf16", "FLOAT64": "f64"} | dict.fromkeys(
    ("FLOAT32", "FLOAT32_FTZ", "TFLOAT32", "TFLOAT32_FTZ"), "f32"
)


def tensor_map(
    element: str, dims: tuple[int, ...], box: tuple[int, ...], *, padding: int = 16, **fields: object
) -> Map:
    """Return a map over argument 1 whose rows, planes and so on are padded by some bytes."""
    strides: list[int] = []
    size = dims[0] * ITEM_BYTES[element]
    for extent in dims[1:]:
        size = -(-size // 16) * 16 + padding
        strides.append(size)
        size *= extent
    spec = Map(of=1, element=element, dims=dims, byte_strides=tuple(strides), box=box)
    return replace(spec, **fields)  # type: ignore[arg-type]


def tensor_bytes(spec: Map) -> int:
    """Return the bytes that a tensor spans, from its first element to its last, in whole 16s."""
    last = (spec.dims[0] - 1) * spec.item_bytes + spec.item_bytes
    last += sum((extent - 1) * stride for extent, stride in zip(spec.dims[1:], spec.byte_strides, strict=True))
    return -(-last // 16) * 16


def values(source: Source, element: str, size: int) -> Array:
    """Return bytes of elements of a type: floats have special values among them."""
    if element in FLOAT_OF:
        return source.floats(-(-size // ITEM_BYTES[element]), FLOAT_OF[element]).view("uint8")[:size]
    return source.bits(size, "uint8")


def corners(source: Source, spec: Map, count: int, *, is_signed: bool = True) -> Array:
    """Return coordinates of boxes: inside, across each side by one and by all but one, outside, and mixtures."""
    columns = []
    for axis, (extent, box) in enumerate(zip(spec.dims, spec.box, strict=True)):
        known = [0, 1, max(extent - box, 0), extent - box // 2 - 1, extent - 1, extent, extent + 37]
        known += [-1, 1 - box, -box, -box - 35] if is_signed else []
        picks = source.pick(count, [value & 0xFFFFFFFF for value in known], "uint32").view("int32")
        picks[0] = 0
        inside = source.below(count, max(extent - box, 0) + 1).astype("int32")
        # Most boxes touch one side only: other axes stay inside, so that something is left to see.
        chosen = source.below(count, 2 * len(spec.dims))
        column = np.where((chosen == axis) | (chosen > 2 * len(spec.dims) - 2) | (np.arange(count) == 0), picks, inside)
        # The address that an inner coordinate leads to must be a multiple of 16 bytes: the machine faults otherwise.
        columns.append(column // (16 // spec.item_bytes) * (16 // spec.item_bytes) if axis == 0 else column)
    return np.stack(columns, axis=1).astype("int32")


def tile_operand(rank: int, first: str = "%c") -> str:
    """Return the coordinates' vector."""
    return "{" + ", ".join(f"{first}{axis}" for axis in range(rank)) + "}"


def load(
    spec: Map,
    seed: str,
    *,
    count: int = 12,
    offset: int = 0,
    destination: str = "shared::cluster",
    hint: bool = False,
    base: Map | None = None,
    edits: tuple[str, ...] = (),
) -> Case:
    """Copies of one box after another into poisoned shared memory, all of which is then stored.

    With `edits`, fields of the map `base` are replaced in the kernel, which makes it `spec`.
    """
    rank, size = len(spec.dims), spec.box_bytes
    total = -(-(offset + spec.span_bytes) // 256) * 256 + 256
    rounds = -(-total // (16 * THREADS))
    last = total // 16 - (rounds - 1) * THREADS
    source = Source(f"tma/{seed}")
    opcode = f"cp.async.bulk.tensor.{rank}d.{destination}.global.tile.mbarrier::complete_tx::bytes"
    opcode += ".L2::cache_hint" if hint else ""
    guard = [f"@%p{1 if index == rounds - 1 else 2} " for index in range(rounds)]
    poison = "".join(
        f"{guard[i]}st.shared.v4.u32 [%r2+{i * 16 * THREADS}], {{%r3, %r3, %r3, %r3}};\n" for i in range(rounds)
    )
    out = "".join(
        f"{guard[i]}ld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r2+{i * 16 * THREADS}];\n"
        f"{guard[i]}st.global.v4.u32 [%d2+{i * 16 * THREADS}], {{%r10, %r11, %r12, %r13}};\n"
        for i in range(rounds)
    )
    body = f"""
        .reg .b32 %c<5>;
        .shared .align 1024 .b8 cells[{total}];
        .shared .align 8 .b64 bar;
        {"mov.b64 %d1, %map;" if spec.in_memory else "mov.b64 %d1, map;"}
        {"" if spec.in_memory else "cvta.param.u64 %d1, %d1;"}
        createpolicy.fractional.L2::evict_first.b64 %d9, 1.0;
        mov.u32 %r0, %tid.x;
        mov.u32 %r1, cells;
        mad.lo.u32 %r2, %r0, 16, %r1;
        mov.u32 %r3, 0x5A5A5A5A;
        setp.lt.u32 %p1, %r0, {last};
        setp.ge.u32 %p2, %r0, 0;
        setp.eq.u32 %p3, %r0, 0;
        @%p3 mbarrier.init.shared::cta.b64 [bar], 1;
        @%p3 fence.mbarrier_init.release.cluster;
        @%p3 prefetch.tensormap [%d1];
        mad.wide.u32 %d2, %r0, 16, %out;
        mov.b64 %d3, %coords;
        mov.u32 %r4, 0;
        mov.u32 %r5, 0;
        {replace_fields(edits) if edits else ""}
    top:
        {poison}
        fence.proxy.async.shared::cta;
        bar.sync 0;
        @!%p3 bra issued;
    """
    body += "".join(f"ld.global.u32 %c{axis}, [%d3+{4 * axis}];\n" for axis in range(rank))
    body += f"""
        mbarrier.arrive.expect_tx.shared::cta.b64 %d4, [bar], {size};
        cp.async.bulk.prefetch.tensor.{rank}d.L2.global.tile [%d1, {tile_operand(rank)}];
        {opcode} [%r1+{offset}], [%d1, {tile_operand(rank)}], [bar]{", %d9" if hint else ""};
    issued:
        {wait("bar", "%r5", "spin")}
        {out}
        bar.sync 0;
        xor.b32 %r5, %r5, 1;
        add.u64 %d2, %d2, {total};
        add.u64 %d3, %d3, {4 * rank};
        add.u32 %r4, %r4, 1;
        setp.lt.u32 %p4, %r4, {count};
        @%p4 bra top;
    """
    args: tuple[Argument, ...] = (
        base or spec,
        Input(data=values(source, spec.element, tensor_bytes(spec) + spec.offset)),
        Input(data=corners(source, spec, count)),
        Output(shape=(count, total), dtype="uint8"),
    )
    params = (".u64 map" if spec.in_memory else MAP_PARAM, ".u64 tensor", ".u64 coords", ".u64 out")
    if edits:
        params += (".u64 scratch", ".u64 other")
        args += (Scratch(size=128), Input(data=values(source, spec.element, tensor_bytes(spec))))
    text = kernel(body, params, version="8.6")
    return Case(ptx=text, args=args, block=(THREADS, 1, 1), section=SECTION)


def replace_fields(edits: tuple[str, ...]) -> str:
    """Return the code that copies the map, edits the copy ("global_dim.b32 1, 9") and makes it the map that is used."""
    lines = [
        ".shared .align 128 .b8 copy[128];\nmov.u32 %r20, copy;\nsetp.lt.u32 %p5, %r0, 32;\n@!%p5 bra edited;",
        "mad.lo.u32 %r21, %r0, 4, %r20;\nmad.wide.u32 %d10, %r0, 4, %d1;\nld.u32 %r22, [%d10];\n"
        "st.shared.u32 [%r21], %r22;",
        "bar.warp.sync -1;\n@!%p3 bra fields;",
    ]
    for edit in edits:
        field, operands = edit.split(" ", 1)
        name, kind = field.split(".")
        lines.append(f"tensormap.replace.tile.{name}.shared::cta.b1024.{kind} [%r20], {operands};")
    lines += [
        "fields:\nbar.warp.sync -1;",
        "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
        "[%scratch], [%r20], 128;",
        "edited:\nbar.sync 0;\nfence.proxy.tensormap::generic.acquire.gpu [%scratch], 128;\nmov.b64 %d1, %scratch;",
    ]
    return "\n".join(lines)


def add(name: str, spec: Map, **options: object) -> None:
    """Add a load."""
    FAMILY.add(f"load_{name}", partial(load, spec, name, **options))  # type: ignore[arg-type]


add("1d", tensor_map("UINT8", (300,), (64,)))
add("1d_f32", tensor_map("FLOAT32", (77,), (20,)))
for _element in ITEM_BYTES:
    _inner = 32 // ITEM_BYTES[_element]
    add(f"2d_{_element.lower()}", tensor_map(_element, (_inner * 3 + 1, 13), (_inner, 6)))
for _span in (32, 64, 128):
    _swizzle = f"{_span}B"
    for _inner in (16, 32, 64, 128):
        if _inner <= _span:
            add(
                f"2d_swizzle_{_span}_inner_{_inner}",
                tensor_map("UINT8", (_inner + 40, 27), (_inner, 16), swizzle=_swizzle),
                count=8,
            )
    add(f"2d_swizzle_{_span}_bf16", tensor_map("BFLOAT16", (_span, 21), (_span // 2, 10), swizzle=_swizzle), count=8)
    add(f"3d_swizzle_{_span}", tensor_map("UINT16", (_span, 7, 5), (_span // 2, 4, 3), swizzle=_swizzle), count=8)
    add(
        f"4d_swizzle_{_span}",
        tensor_map("UINT32", (_span // 4 + 3, 4, 3, 3), (_span // 4, 3, 2, 2), swizzle=_swizzle),
        count=8,
    )
    add(
        f"5d_swizzle_{_span}",
        tensor_map("UINT8", (_span + 5, 3, 3, 2, 3), (_span, 2, 2, 2, 2), swizzle=_swizzle),
        count=8,
    )
    # The pattern follows the address, not the start of the box.
    add(
        f"2d_swizzle_{_span}_offset",
        tensor_map("UINT8", (_span + 8, 30), (_span, 12), swizzle=_swizzle),
        count=4,
        offset=384,
    )
add("3d", tensor_map("UINT8", (70, 6, 5), (32, 3, 2)))
add("4d", tensor_map("UINT16", (20, 4, 5, 3), (16, 2, 3, 2)))
add("5d", tensor_map("FLOAT32", (9, 3, 4, 3, 2), (8, 2, 2, 2, 2)))
for _element in ("FLOAT16", "BFLOAT16", "FLOAT32", "FLOAT64", "TFLOAT32"):
    add(
        f"nan_{_element.lower()}",
        tensor_map(_element, (32 // ITEM_BYTES[_element] + 1, 9), (32 // ITEM_BYTES[_element], 6), is_nan_filled=True),
    )
add("nan_swizzle_128", tensor_map("BFLOAT16", (80, 21), (64, 9), swizzle="128B", is_nan_filled=True), count=8)
add("strides_2d", tensor_map("UINT8", (50, 40), (32, 9), element_strides=(1, 2)))
add("strides_3d", tensor_map("UINT16", (50, 20, 15), (16, 8, 7), element_strides=(1, 3, 2)))
add("strides_inner", tensor_map("UINT32", (50, 20), (8, 5), element_strides=(2, 1)))
add(
    "strides_4d_swizzle", tensor_map("UINT8", (80, 9, 8, 5), (64, 4, 5, 2), element_strides=(1, 2, 4, 1), swizzle="64B")
)
add("overlapping_rows", Map(of=1, element="UINT8", dims=(48, 20), byte_strides=(16,), box=(32, 8)))
add("repeated_rows", Map(of=1, element="UINT16", dims=(40, 6, 3), byte_strides=(0, 96), box=(16, 4, 2)))
add("offset_base", tensor_map("UINT8", (50, 9), (32, 4), offset=80))
add("map_in_memory", tensor_map("UINT8", (50, 9), (32, 4), in_memory=True))
add("large_box", tensor_map("UINT8", (200, 200), (64, 256), padding=0), count=3)
add("wide_box", tensor_map("FLOAT16", (300, 5), (256, 2)), count=6)
add("cache_hint", tensor_map("UINT8", (64, 9), (32, 4)), hint=True)
add("cta_destination", tensor_map("UINT8", (64, 9), (32, 4)), destination="shared::cta")
_BASE = tensor_map("UINT8", (64, 9), (32, 4))
add("replace_address", _BASE, base=_BASE, edits=("global_address.b64 %other",))
add(
    "replace_shape",
    replace(_BASE, dims=(50, 12), byte_strides=(48,), box=(16, 6), element_strides=(1, 2)),
    base=_BASE,
    edits=(
        "global_dim.b32 0, 50",
        "global_dim.b32 1, 12",
        "global_stride.b64 0, 48",
        "box_dim.b32 0, 16",
        "box_dim.b32 1, 6",
        "element_stride.b32 1, 2",
    ),
)
add(
    "replace_modes",
    replace(tensor_map("BFLOAT16", (70, 9), (64, 4)), swizzle="128B", is_nan_filled=True),
    base=tensor_map("UINT16", (70, 9), (64, 4)),
    edits=("swizzle_mode.b32 3", "fill_mode.b32 1", "elemtype.b32 10", "interleave_layout.b32 0"),
    count=6,
)
