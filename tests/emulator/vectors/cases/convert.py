"""cvt: integers, floats, packed and narrow formats."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.emulator.vectors.case import Case, Family
from tests.emulator.vectors.cases.compare import float_pairs
from tests.emulator.vectors.data import FLOATS, Array, Source, packed
from tests.emulator.vectors.elementwise import Form, elementwise, forms

FAMILY = Family("convert")
SECTION = "Data Movement and Conversion Instructions: cvt"
INTEGERS = tuple(f"{kind}{bits}" for bits in (8, 16, 32, 64) for kind in "su")
FLOAT_ROUNDINGS = ("rn", "rz", "rm", "rp")
INTEGER_ROUNDINGS = ("rni", "rzi", "rmi", "rpi")


def register_size(kind: str) -> str:
    """Return the size of the register that holds a type; bytes live in 16-bit ones."""
    return "b16" if kind in ("bf16", "f16") else f"b{max(16, int(kind.lstrip('sufb')))}"


def integer_sources(seed: str, count: int = 256) -> dict[str, Array]:
    """Return one input of each register size."""
    return {f"i{size}": Source(f"convert/{seed}").integers(count, f"uint{size[1:]}") for size in ("b16", "b32", "b64")}


def covers(target: str, source: str) -> bool:
    """Return whether a type holds every value of another: then there is nothing to saturate."""
    bits, source_bits = int(target[1:]), int(source[1:])
    if target[0] == source[0]:
        return bits >= source_bits
    return target[0] == "s" and bits > source_bits


def from_integer(source: str) -> Case:
    """One integer type to every other, wrapping and saturating."""
    inputs = {f"i{register_size(source)}": integer_sources(f"from {source}")[f"i{register_size(source)}"]}
    items = []
    for kind in INTEGERS:
        names = [f"cvt.{kind}.{source}"] + ([] if covers(kind, source) else [f"cvt.sat.{kind}.{source}"])
        items += forms(names, f"%i{register_size(source)}", register_size(kind))
    return elementwise(items, inputs, section=SECTION)


for _kind in INTEGERS:
    FAMILY.add(f"integer_{_kind}", partial(from_integer, _kind))


def integer_to_float(target: str) -> Case:
    """Every integer type to one float, in every rounding mode."""
    items = []
    for source in INTEGERS[2 if target == "bf16" else 0 :]:  # bf16 has no form for bytes
        names = [f"cvt.{mode}.{target}.{source}" for mode in FLOAT_ROUNDINGS]
        names += [f"cvt.rn.sat.{target}.{source}"] if target != "bf16" else []
        items += forms(names, f"%i{register_size(source)}", register_size(target))
    return elementwise(items, integer_sources(f"to {target}"), section=SECTION)


def float_to_integer(source: str) -> Case:
    """One float to every integer type, in every rounding mode; what lies beyond the range is clamped."""
    items = []
    for target in INTEGERS[2 if source == "bf16" else 0 :]:
        names = [f"cvt.{mode}.{target}.{source}" for mode in INTEGER_ROUNDINGS]
        names += [f"cvt.{mode}.ftz.{target}.f32" for mode in ("rni", "rpi")] if source == "f32" else []
        items += forms(names, "%a", register_size(target))
    values = Source(f"convert/from {source}").floats(512, source)
    ties = (np.arange(-64, 64) * 0.5).astype(
        {"f16": "float16", "f32": "float32", "f64": "float64"}.get(source, "float32")
    )
    bits = ties.view(FLOATS[source][0]) if source != "bf16" else (ties.view("uint32") >> np.uint32(16)).astype("uint16")
    values[: bits.size] = bits
    edges = np.array(FLOATS[source][2], FLOATS[source][0])
    values[bits.size : bits.size + edges.size] = edges
    return elementwise(items, {"a": values}, section=SECTION)


for _kind in FLOATS:
    FAMILY.add(f"integer_to_{_kind}", partial(integer_to_float, _kind))
    FAMILY.add(f"{_kind}_to_integer", partial(float_to_integer, _kind))


def narrowing_values(count: int, *narrow: tuple[int, int, int]) -> Array:
    """Return special f32 and those around rounding boundaries of formats (exponent bits, mantissa bits, bias)."""
    source = Source(f"convert/narrowing {narrow}")
    values = source.floats(count, "f32")
    for index, (_, mantissa, bias) in enumerate(narrow):
        chosen = source.below(count, len(narrow) + 1) == index
        exponent = (127 - bias + source.between(count, -mantissa - 2, 2 * bias + 3)).astype("uint32")
        kept = source.bits(count, "uint32") & np.uint32(0x7FFFFF)
        top = source.bits(count, "uint32") & np.uint32(0x7FFFFF & ~((1 << (23 - mantissa)) - 1))
        # Low bits just below, at and just above half of the last place, or of the next (for subnormal results).
        half = np.uint32(1) << (np.uint32(22 - mantissa) + source.below(count, 3).astype("uint32"))
        low = (half.astype("int64") + source.between(count, -1, 1)).astype("uint32") & np.uint32(0x7FFFFF)
        low = np.where(source.below(count, 8) == 0, kept, low).astype("uint32")
        sign = source.below(count, 2).astype("uint32") << np.uint32(31)
        bits = (sign | exponent << np.uint32(23) | (top ^ low) & np.uint32(0x7FFFFF)).astype("uint32")
        values = np.where(chosen, bits, values).astype("uint32")
    edges = np.array(FLOATS["f32"][2], "uint32")
    values[: edges.size] = edges
    return values


@FAMILY.case("f32_to_f16")
def f32_to_f16() -> Case:
    """Rounding modes, flushing, saturation, clamping at zero."""
    names = [
        f"cvt.{mode}{modifier}.f16.f32" for mode in FLOAT_ROUNDINGS for modifier in ("", ".ftz", ".sat", ".ftz.sat")
    ]
    names += ["cvt.rn.relu.f16.f32", "cvt.rz.relu.f16.f32"]
    return elementwise(forms(names, "%a", "b16"), {"a": narrowing_values(2048, (5, 10, 15))}, section=SECTION)


@FAMILY.case("f32_to_bf16")
def f32_to_bf16() -> Case:
    """Rounding modes and clamping at zero."""
    names = [f"cvt.{mode}.bf16.f32" for mode in FLOAT_ROUNDINGS] + [
        f"cvt.{mode}.relu.bf16.f32" for mode in ("rn", "rz")
    ]
    return elementwise(forms(names, "%a", "b16"), {"a": narrowing_values(2048, (8, 7, 127))}, section=SECTION)


@FAMILY.case("f32_to_pairs")
def f32_to_pairs() -> Case:
    """Two floats to a pair: the first source is the upper half."""
    names = [
        f"cvt.{mode}{relu}.{kind}x2.f32" for kind in ("f16", "bf16") for mode in ("rn", "rz") for relu in ("", ".relu")
    ]
    inputs = {"a": narrowing_values(1024, (5, 10, 15)), "b": narrowing_values(1024, (8, 7, 127), (5, 10, 15))}
    return elementwise(forms(names, "%a, %b"), inputs, section=SECTION)


@FAMILY.case("f32_to_tf32")
def f32_to_tf32() -> Case:
    """Rounding to TF32."""
    names = ["cvt.rna.tf32.f32", "cvt.rn.tf32.f32", "cvt.rz.tf32.f32", "cvt.rn.relu.tf32.f32", "cvt.rz.relu.tf32.f32"]
    return elementwise(forms(names, "%a"), {"a": narrowing_values(2048, (8, 10, 127))}, section=SECTION)


@FAMILY.case("f32_to_f64")
def f32_to_f64() -> Case:
    """Widening, exact but for flushed subnormals."""
    inputs = {"a": Source("convert/f32_to_f64").floats(1024, "f32")}
    return elementwise(
        forms(["cvt.f64.f32", "cvt.ftz.f64.f32", "cvt.sat.f64.f32"], "%a", "b64"), inputs, section=SECTION
    )


@FAMILY.case("f64_to_f32")
def f64_to_f32() -> Case:
    """Narrowing in every rounding mode."""
    names = [f"cvt.{mode}{modifier}.f32.f64" for mode in FLOAT_ROUNDINGS for modifier in ("", ".ftz", ".sat")]
    source = Source("convert/f64_to_f32")
    values = source.floats(1024, "f64")
    exponent = (source.between(512, -152, 129) + 1023).astype("uint64") << np.uint64(52)
    low = source.pick(512, (0, 1, 1 << 28, (1 << 28) - 1, (1 << 28) + 1, 3 << 28, 1 << 29), "uint64")
    values[512:] = exponent | (source.bits(512, "uint64") & np.uint64(0xFFFFFF << 28)) ^ low
    return elementwise(forms(names, "%a"), {"a": values}, section=SECTION)


@FAMILY.case("f64_to_f16")
def f64_to_f16() -> Case:
    """Narrowing at once, not through f32."""
    source = Source("convert/f64_to_f16")
    exponent = (source.between(1024, -27, 17) + 1023).astype("uint64") << np.uint64(52)
    low = source.pick(1024, (0, 1, 1 << 41, (1 << 41) - 1, (1 << 41) + 1, 1 << 28), "uint64")
    values = exponent | (source.bits(1024, "uint64") & np.uint64(0x7FF << 41)) ^ low
    names = [f"cvt.{mode}.f16.f64" for mode in FLOAT_ROUNDINGS]
    return elementwise(forms(names, "%a", "b16"), {"a": values}, section=SECTION)


def round_to_integer(kind: str) -> Case:
    """A float to an integral float."""
    names = [f"cvt.{mode}.{kind}.{kind}" for mode in INTEGER_ROUNDINGS]
    names += (
        ["cvt.rni.ftz.f32.f32", "cvt.rpi.sat.f32.f32", "cvt.sat.f32.f32", "cvt.ftz.f32.f32"] if kind == "f32" else []
    )
    values = float_pairs(kind, f"round {kind}")["b"]
    ties = (np.arange(-64, 64) * 0.5).astype({"f16": "float16", "f32": "float32", "f64": "float64"}[kind])
    values[:128] = ties.view(FLOATS[kind][0])
    return elementwise(forms(names, "%a", register_size(kind)), {"a": values}, section=SECTION)


for _kind in ("f16", "f32", "f64"):
    FAMILY.add(f"round_{_kind}", partial(round_to_integer, _kind))


def all_halves(kind: str) -> Case:
    """All 65536 values of a 16-bit float, widened."""
    items = forms([f"cvt.f32.{kind}"], "%h")
    return elementwise(items, {"h": np.arange(65536, dtype="uint16")}, section=SECTION)


for _kind in ("f16", "bf16"):
    FAMILY.add(f"{_kind}_to_f32", partial(all_halves, _kind))


@FAMILY.case("half_to_others")
def half_to_others() -> Case:
    """16-bit floats to f64, to each other and flushed."""
    inputs = {
        "h": Source("convert/half_to_others f16").floats(1024, "f16"),
        "k": Source("convert/half_to_others").floats(1024, "bf16"),
    }
    items = (
        forms(["cvt.f64.f16"], "%h", "b64")
        + forms(["cvt.f64.bf16"], "%k", "b64")
        + forms(["cvt.ftz.f32.f16", "cvt.sat.f32.f16"], "%h")
    )
    items += forms(["cvt.rn.f16.bf16", "cvt.rz.f16.bf16"], "%k", "b16") + forms(
        ["cvt.rn.bf16.f16", "cvt.rp.bf16.f16"], "%h", "b16"
    )
    return elementwise(items, inputs, section=SECTION)


NARROW = {"e4m3x2": (4, 3, 7), "e5m2x2": (5, 2, 15)}


def to_fp8(kind: str) -> Case:
    """Two f32 to two bytes: rounding, saturation, NaN, clamping at zero; the first source is the upper byte."""
    names = [f"cvt.rn.satfinite.{kind}.f32", f"cvt.rn.satfinite.relu.{kind}.f32"]
    values = narrowing_values(8192, NARROW[kind])
    inputs = {"a": values, "b": values[::-1].copy()}
    return elementwise(forms(names, "%a, %b", "b16"), inputs, section=SECTION)


def half_to_fp8(kind: str) -> Case:
    """All f16 values to bytes."""
    values = np.arange(65536, dtype="uint16")
    inputs = {"a": packed(values[::2], values[1::2])}
    names = [f"cvt.rn.satfinite.{kind}.f16x2", f"cvt.rn.satfinite.relu.{kind}.f16x2"]
    return elementwise(forms(names, "%a", "b16"), inputs, section=SECTION)


def from_fp8(kind: str) -> Case:
    """All bytes, in either half, to f16."""
    codes = np.arange(256, dtype="uint16")
    values = np.concatenate([codes | codes[::-1] << np.uint16(8), codes << np.uint16(8)]).astype("uint16")
    names = [f"cvt.rn.f16x2.{kind}", f"cvt.rn.relu.f16x2.{kind}"]
    return elementwise(forms(names, "%h"), {"h": values}, section=SECTION)


for _kind in NARROW:
    FAMILY.add(f"f32_to_{_kind}", partial(to_fp8, _kind))
    FAMILY.add(f"f16x2_to_{_kind}", partial(half_to_fp8, _kind))
    FAMILY.add(f"{_kind}_to_f16x2", partial(from_fp8, _kind))


@FAMILY.case("pack")
def pack() -> Case:
    """cvt.pack: two integers saturated into halves or bytes of a word."""
    source = Source("convert/pack")
    edges = (*range(-3, 4), 127, 128, -128, -129, 255, 256, 32767, 32768, -32768, -32769, 65535, 65536, 1 << 31)
    inputs = {key: source.integers(512, "uint32", [edge & 0xFFFFFFFF for edge in edges]) for key in "abc"}
    items = forms(["cvt.pack.sat.u16.s32", "cvt.pack.sat.s16.s32"], "%a, %b")
    items += forms(["cvt.pack.sat.u8.s32.b32", "cvt.pack.sat.s8.s32.b32"], "%a, %b, %c")
    return elementwise(items, inputs, section="Data Movement and Conversion Instructions: cvt.pack")


@FAMILY.case("moves")
def moves() -> Case:
    """mov that packs, unpacks and drops parts."""
    source = Source("convert/moves")
    inputs = {
        "a": source.bits(256, "uint32"),
        "b": source.bits(256, "uint32"),
        "x": source.bits(256, "uint64"),
        "h": source.bits(256, "uint16"),
    }
    items = [
        Form(text="mov.b32 {{%h8, %h9}}, %a;\nmov.b32 {d}, {{%h9, %h8}};"),
        Form(text="mov.b64 {{%r8, %r9}}, %x;\nxor.b32 {d}, %r8, %r9;"),
        Form(text="mov.b64 {{%r8, _}}, %x;\nmov.b32 {d}, %r8;"),
        Form(text="mov.b64 {{_, %r8}}, %x;\nmov.u32 {d}, %r8;"),
        Form(text="mov.b64 {d}, {{%a, %b}};", out="b64"),
        Form(text="mov.b64 {{%h8, %h9, %h10, %h11}}, %x;\nmov.b64 {d}, {{%h11, %h8, %h10, %h9}};", out="b64"),
        Form(text="mov.b32 {d}, {{%h, %h}};"),
        Form(
            text=".reg .b128 %q;\nmov.b128 %q, {{%x, %x}};\nmov.b128 {{%d8, %d9}}, %q;\nsub.s64 {d}, %d8, %d9;",
            out="b64",
        ),
        Form(text="mov.u16 {d}, %h;", out="b16"),
        Form(text="mov.f32 {d}, 0f7FC12345;"),
        Form(text="mov.b64 {d}, -2;", out="b64"),
        Form(text="mov.u32 {d}, WARP_SZ;"),
    ]
    return elementwise(items, inputs, section="Data Movement and Conversion Instructions: mov", version="8.4")
