"""mma.sync: fragments and scale factors register by register, products against sums of the whole matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.engines import mma_sync
from megamoe_jit.emulator.engines.numerics import FORMATS, Operand, Scales, block_dot, dot, integer_dot, rule_for
from megamoe_jit.errors import EmulatorFault, UnsupportedError
from tests.emulator.engines.mini import MiniProgram, Run, Warp

SHIFT = {"e2m1": 2}
"""Of a code in its byte."""


def a_place(lane: int, i: int, j: int, per_word: int) -> tuple[int, int]:
    g, t = divmod(lane, 4)
    return g + 8 * (i % 2), 4 * per_word * (i // 2) + per_word * t + j


def b_place(lane: int, i: int, j: int, per_word: int) -> tuple[int, int]:
    g, t = divmod(lane, 4)
    return g, 4 * per_word * i + per_word * t + j


def c_place(lane: int, i: int) -> tuple[int, int]:
    g, t = divmod(lane, 4)
    return g + 8 * (i // 2), 2 * t + i % 2


def pack(codes: np.ndarray, place: Any, registers: int, bits: int) -> np.ndarray:
    """Registers [registers, 32] of a matrix of codes that take `bits` each."""
    words = np.zeros((registers, 32), np.uint64)
    for i in range(registers):
        for lane in range(32):
            for j in range(32 // bits):
                words[i, lane] |= np.uint64(int(codes[place(lane, i, j, 32 // bits)]) << (bits * j))
    return words.astype(np.uint32)


def pack_c(matrix: np.ndarray) -> np.ndarray:
    """Registers of an accumulator."""
    rows = matrix.shape[0]
    if matrix.dtype == np.uint16:
        words = np.zeros((rows // 8, 32), np.uint32)
        for lane in range(32):
            for i in range(rows // 8):
                row, column = c_place(lane, 2 * i)
                words[i, lane] = int(matrix[row, column]) | int(matrix[row, column + 1]) << 16
        return words
    words = np.zeros((rows // 4, 32), np.uint32)
    for lane in range(32):
        for i in range(rows // 4):
            words[i, lane] = matrix[c_place(lane, i)]
    return words


def finite(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    if kind in mma_sync.INTEGERS:
        return rng.integers(0, 1 << mma_sync.INTEGERS[kind][0], shape).astype(np.uint8)
    form = FORMATS[kind]
    if kind == "tf32":
        return rng.standard_normal(shape).astype(np.float32).view(np.uint32)
    if kind == "bf16":
        return (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if kind == "f16":
        return rng.standard_normal(shape).astype(np.float16).view(np.uint16)
    codes = rng.integers(0, 1 << form.bits, shape).astype(np.uint8)
    return np.where(form.split(codes)[1] > 1000, 0, codes).astype(np.uint8)


def integers(codes: np.ndarray, kind: str) -> np.ndarray:
    bits, signed = mma_sync.INTEGERS[kind]
    return np.where(signed & (codes >= 1 << (bits - 1)), codes.astype(np.int16) - (1 << bits), codes).astype(np.int16)


def run(
    opcode: str, parts: dict[str, np.ndarray], tail: str = "", *, target: str = "sm_120a", **extra: Any
) -> np.ndarray:
    """Run one instruction of one warp; returns D's registers."""
    names = {name: "{" + ", ".join(f"%{name}{i}" for i in range(len(words))) + "}" for name, words in parts.items()}
    count = len(parts["c"])
    d = "{" + ", ".join(f"%d{i}" for i in range(count)) + "}"

    def setup(program: MiniProgram, warp: Warp) -> None:
        for name, words in parts.items():
            for i, word in enumerate(words):
                program.set(warp, f"%{name}{i}", word)
        for name, value in extra.items():
            program.set(warp, f"%{name}", value)

    registers = " ".join(f".reg .b32 %{name}<8>;" for name in "abcd")
    registers += ".reg .b32 %sfa; .reg .b32 %sfb; .reg .b16 %id<4>;"
    done = Run(
        f"{opcode} {d}, {names['a']}, {names['b']}, {names['c']}{tail};",
        setup,
        registers=registers,
        warps=1,
        target=target,
    )
    return np.stack([done.get(0, f"%d{i}") for i in range(count)])


CASES = [
    ("m16n8k8", "f16", "f16", "f32"), ("m16n8k16", "f16", "f16", "f32"), ("m16n8k16", "f16", "f16", "f16"),
    ("m16n8k8", "bf16", "bf16", "f32"), ("m16n8k16", "bf16", "bf16", "f32"), ("m16n8k4", "tf32", "tf32", "f32"),
    ("m16n8k8", "tf32", "tf32", "f32"), ("m16n8k16", "e4m3", "e5m2", "f32"), ("m16n8k32", "e5m2", "e4m3", "f32"),
    ("m16n8k32", "e4m3", "e4m3", "f16"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "a_kind", "b_kind", "d_kind"), CASES)
def test_floats(shape: str, a_kind: str, b_kind: str, d_kind: str) -> None:
    rng = np.random.default_rng(3)
    k = int(shape.partition("k")[2])
    bits = {"f16": 16, "bf16": 16, "tf32": 32}.get(a_kind, 8)
    a, b = finite(a_kind, (16, k), rng), finite(b_kind, (8, k), rng)
    dtype = np.float16 if d_kind == "f16" else np.float32
    c = rng.standard_normal((16, 8)).astype(dtype).view(f"u{np.dtype(dtype).itemsize}")
    parts = {
        "a": pack(a, a_place, 16 * k * bits // 1024, bits),
        "b": pack(b, b_place, 8 * k * bits // 1024, bits),
        "c": pack_c(c),
    }
    got = run(f"mma.sync.aligned.{shape}.row.col.{d_kind}.{a_kind}.{b_kind}.{d_kind}", parts)
    shift = 13 if a_kind == "tf32" else 0
    operands = Operand(FORMATS[a_kind], a >> shift), Operand(FORMATS[b_kind], b >> shift)
    assert np.array_equal(got, pack_c(dot(*operands, c, rule_for("mma", a_kind, d_kind))))  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["sm_90a", "sm_100a", "sm_103a"])
@pytest.mark.parametrize("d_kind", ["f32", "f16"])
@pytest.mark.parametrize(("a_kind", "b_kind"), [("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e5m2")])
def test_fp8_as_f16(a_kind: str, b_kind: str, d_kind: str, target: str) -> None:
    """Datacenter parts have no FP8 mma.sync: two FP16 ones of every other byte pair, and C added to nearest."""
    rng = np.random.default_rng(5)
    a, b = finite(a_kind, (16, 32), rng), finite(b_kind, (8, 32), rng)
    dtype = np.float16 if d_kind == "f16" else np.float32
    c = (rng.standard_normal((16, 8)) * 50).astype(dtype)
    parts = {"a": pack(a, a_place, 4, 8), "b": pack(b, b_place, 2, 8), "c": pack_c(c.view(f"u{c.itemsize}"))}
    got = run(f"mma.sync.aligned.m16n8k32.row.col.{d_kind}.{a_kind}.{b_kind}.{d_kind}", parts, target=target)
    halves = [FORMATS[kind].values(codes).astype(np.float16) for kind, codes in ((a_kind, a), (b_kind, b))]
    total = None
    for first in (0, 2):
        columns = sorted([*range(first, 32, 4), *range(first + 1, 32, 4)])
        left, right = (Operand(FORMATS["f16"], half[:, columns].copy().view(np.uint16)) for half in halves)
        total = dot(left, right, total, rule_for("mma", "f16", d_kind))  # type: ignore[arg-type]
    assert total is not None
    with np.errstate(over="ignore"):
        wanted = (c + total.view(dtype)).view(f"u{c.itemsize}")
    assert np.array_equal(got, pack_c(np.where(np.isnan(wanted.view(dtype)), np.iinfo(wanted.dtype).max // 2, wanted)))


@pytest.mark.parametrize("b_kind", ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1"])
@pytest.mark.parametrize("a_kind", ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1"])
def test_any_narrow_pair(a_kind: str, b_kind: str) -> None:
    rng = np.random.default_rng(4)
    a, b = finite(a_kind, (16, 32), rng), finite(b_kind, (8, 32), rng)
    c = rng.standard_normal((16, 8)).astype(np.float32).view(np.uint32)
    noise = {"e2m1": 0xC3, "e2m3": 0xC0, "e3m2": 0xC0}  # bits of the byte that do not count
    left = a << SHIFT.get(a_kind, 0) | rng.integers(0, 256, a.shape).astype(np.uint8) & noise.get(a_kind, 0)
    right = b << SHIFT.get(b_kind, 0) | rng.integers(0, 256, b.shape).astype(np.uint8) & noise.get(b_kind, 0)
    parts = {"a": pack(left, a_place, 4, 8), "b": pack(right, b_place, 2, 8), "c": pack_c(c)}
    operands = Operand(FORMATS[a_kind], a), Operand(FORMATS[b_kind], b)
    got = run(f"mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.{a_kind}.{b_kind}.f32", parts)
    rule = rule_for("mma", a_kind, "f32")
    assert np.array_equal(got, pack_c(dot(*operands, c, rule)))
    sfa, sfb = (rng.integers(120, 134, (rows, 1)).astype(np.uint8) for rows in (16, 8))
    for byte_id in range(4):
        words = scale_words(sfa, 0, byte_id), scale_words(sfb, 2, byte_id)
        tail = f", %sfa, {{{byte_id}, 0}}, %sfb, {{{byte_id}, 2}}"
        opcode = f"mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.f32.{a_kind}.{b_kind}.f32.ue8m0"
        got = run(opcode, parts, tail, sfa=words[0], sfb=words[1])
        scales = Scales(FORMATS["ue8m0"], sfa), Scales(FORMATS["ue8m0"], sfb)
        assert np.array_equal(got, pack_c(dot(*operands, c, rule, scales=scales)))


def scale_words(codes: np.ndarray, thread_id: int, byte_id: int) -> np.ndarray:
    """One register of scale factors; lanes and bytes that do not count hold noise."""
    rows, count = codes.shape
    data = np.random.default_rng(0).integers(0, 256, (32, 4)).astype(np.uint8)
    for lane in range(32):
        g, t = divmod(lane, 4)
        for s in range(count):
            if rows == 16 and t // 2 == thread_id:
                data[lane, byte_id + s] = codes[g + 8 * (t % 2), s]
            elif rows == 8 and t == thread_id:
                data[lane, byte_id + s] = codes[g, s]
    return data.view(np.uint32).ravel()


@pytest.mark.parametrize(
    ("kind", "vector", "count", "scale"),
    [
        ("mxf4nvf4", ".scale_vec::4X", 4, "ue4m3"),
        ("mxf4nvf4", ".scale_vec::4X", 4, "ue8m0"),
        ("mxf4nvf4", ".scale_vec::2X", 2, "ue8m0"),
        ("mxf4", ".scale_vec::2X", 2, "ue8m0"),
        ("mxf4", "", 2, "ue8m0"),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_packed_fp4(kind: str, vector: str, count: int, scale: str, before: bool) -> None:
    rng = np.random.default_rng(count)
    a, b = (rng.integers(0, 16, (rows, 64)).astype(np.uint8) for rows in (16, 8))
    low, high = (120, 134) if scale == "ue8m0" else (0, 127)
    sfa, sfb = (rng.integers(low, high, (rows, count)).astype(np.uint8) for rows in (16, 8))
    c = rng.standard_normal((16, 8)).astype(np.float32).view(np.uint32)
    parts = {"a": pack(a, a_place, 4, 4), "b": pack(b, b_place, 2, 4), "c": pack_c(c)}
    form = FORMATS["e2m1"]
    scales = Scales(FORMATS[scale], sfa), Scales(FORMATS[scale], sfb)
    expected = pack_c(block_dot(Operand(form, a), Operand(form, b), scales, c))
    qualifiers = f"kind::{kind}.block_scale{vector}"
    shape = f"{qualifiers}.m16n8k64.row.col" if before else f"m16n8k64.row.col.{qualifiers}"
    opcode = f"mma.sync.aligned.{shape}.f32.e2m1.e2m1.f32.{scale}"
    for byte_id in (0, 2) if count == 2 else (0,):
        for thread_a, thread_b in ((0, 0), (1, 3), (1, 1)):
            words = scale_words(sfa, thread_a, byte_id), scale_words(sfb, thread_b, byte_id)
            tail = ", %sfa, {%id0, %id1}, %sfb, {%id2, %id3}"
            ids = {"id0": byte_id, "id1": thread_a, "id2": byte_id, "id3": thread_b}
            assert np.array_equal(run(opcode, parts, tail, sfa=words[0], sfb=words[1], **ids), expected)


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize(
    ("shape", "a_kind", "b_kind"),
    [
        ("m16n8k32", "s8", "u8"), ("m16n8k16", "u8", "s8"), ("m8n8k16", "s8", "s8"),
        ("m16n8k64", "s4", "u4"), ("m16n8k32", "u4", "u4"), ("m8n8k32", "s4", "s4"),
    ],
)  # fmt: skip
def test_integers(shape: str, a_kind: str, b_kind: str, saturate: bool) -> None:
    rng = np.random.default_rng(5)
    m, k = int(shape[1:].partition("n")[0]), int(shape.partition("k")[2])
    bits = mma_sync.INTEGERS[a_kind][0]
    a, b = finite(a_kind, (m, k), rng), finite(b_kind, (8, k), rng)
    c = np.where(rng.random((m, 8)) < 0.5, 2**31 - 9, -(2**31) + 9).astype(np.int32).view(np.uint32)
    place = a_place if m == 16 else b_place
    parts = {"a": pack(a, place, m * k * bits // 1024, bits), "b": pack(b, b_place, 8 * k * bits // 1024, bits)}
    parts["c"] = pack_c(c)
    got = run(f"mma.sync.aligned.{shape}.row.col{'.satfinite' if saturate else ''}.s32.{a_kind}.{b_kind}.s32", parts)
    expected = integer_dot(integers(a, a_kind), integers(b, b_kind), c, saturate=saturate)
    assert np.array_equal(got, pack_c(expected))


@pytest.mark.parametrize(
    ("count", "byte_id", "thread_id", "words"),
    [
        (4, 1, 0, "byte-id of scale A is 1"),
        (2, 1, 0, "byte-id of scale A is 1"),
        (4, 0, 2, "thread-id of scale A is 2"),
    ],
)
def test_illegal_ids(count: int, byte_id: int, thread_id: int, words: str) -> None:
    parts = {"a": np.zeros((4, 32), np.uint32), "b": np.zeros((2, 32), np.uint32), "c": np.zeros((4, 32), np.uint32)}
    opcode = f"mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::{count}X.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue8m0"
    with pytest.raises(EmulatorFault, match=words):
        run(opcode, parts, f", %sfa, {{{byte_id}, {thread_id}}}, %sfb, {{0, 0}}", sfa=0, sfb=0)
    assert mma_sync.scale_problem("B", 1, 3, 3) is None
    assert mma_sync.scale_problem("B", 1, 4, 0) is not None


@pytest.mark.parametrize(
    "opcode",
    [
        "mma.sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16",
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f32",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.u4.s32",
        "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue8m0",
        "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.f32.e2m1.e2m1.f32.ue4m3",
        "mma.sync.aligned.m16n8k64.row.col.kind::mxf8f6f4.block_scale.f32.e2m1.e2m1.f32.ue8m0",
        "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.f32.e4m3.e4m3.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    ],
)
def test_combinations_that_do_not_exist(opcode: str) -> None:
    parts = {"a": np.zeros((3, 32), np.uint32), "b": np.zeros((2, 32), np.uint32), "c": np.zeros((4, 32), np.uint32)}
    with pytest.raises(UnsupportedError, match="mma"):
        run(opcode, parts)
