"""Integer arithmetic, logic, shifts and bit fields."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from tests.emulator.vectors.case import Case, Family
from tests.emulator.vectors.data import INTEGER_EDGES, Array, Source, all_pairs
from tests.emulator.vectors.elementwise import Form, elementwise, forms

FAMILY = Family("integer")
SIZES = {16: "uint16", 32: "uint32", 64: "uint64"}


def operands(seed: str, bits: int, count: int = 640) -> dict[str, Array]:
    """Return three operands: the first two hold every pair of the first twenty edges."""
    source, dtype = Source(f"integer/{seed}"), SIZES[bits]
    a, b = (source.integers(count, dtype) for _ in "ab")
    first, second = all_pairs(INTEGER_EDGES[dtype][:16], dtype)
    a[: first.size], b[: second.size] = first, second
    return {"a": a, "b": b, "c": source.integers(count, dtype)}


def add_case(name: str, bits: int, items: Callable[[int], list[Form]], operand_names: str = "ab") -> None:
    """Add a case whose operands all have one size."""

    def build() -> Case:
        inputs = {key: data for key, data in operands(f"{name}{bits}", bits).items() if key in operand_names}
        return elementwise(items(bits), inputs, section=f"Integer Arithmetic and Logic Instructions: {name}")

    FAMILY.add(f"{name}_{bits}", build)


def typed(names: str, bits: int, kinds: str = "su") -> list[str]:
    """Return opcodes with each signedness: ("add sub", 16) gives add.s16, add.u16, sub.s16, sub.u16."""
    return [f"{name}.{kind}{bits}" for name in names.split() for kind in kinds]


def _add_sub(bits: int) -> list[Form]:
    out = f"b{bits}"
    items = forms(typed("add sub", bits), "%a, %b", out) + forms(typed("add sub", bits, "s"), "%a, -7", out)
    items += forms([f"sub.s{bits}"], "100, %b", out)
    return items + (forms(["add.sat.s32", "sub.sat.s32"], "%a, %b") if bits == 32 else [])


def _multiply(bits: int) -> list[Form]:
    items = forms(typed("mul.lo mul.hi", bits), "%a, %b", f"b{bits}") + forms([f"mul.lo.s{bits}"], "%a, -3", f"b{bits}")
    return items + (forms(typed("mul.wide", bits), "%a, %b", f"b{bits * 2}") if bits < 64 else [])


def _multiply_add(bits: int) -> list[Form]:
    items = forms(typed("mad.lo mad.hi", bits), "%a, %b, %c", f"b{bits}")
    return items + (forms(["mad.hi.sat.s32"], "%a, %b, %c") if bits == 32 else [])


def _min_max(bits: int) -> list[Form]:
    return forms(typed("min max", bits), "%a, %b", f"b{bits}")


def _unary(bits: int) -> list[Form]:
    return forms([f"abs.s{bits}", f"neg.s{bits}", f"not.b{bits}", f"cnot.b{bits}"], "%a", f"b{bits}")


def _logic(bits: int) -> list[Form]:
    names = [f"{name}.b{bits}" for name in ("and", "or", "xor")]
    return forms(names, "%a, %b", f"b{bits}") + forms(names, "%a, 0x5A3C", f"b{bits}")


for _bits in SIZES:
    add_case("add_sub", _bits, _add_sub)
    add_case("mul", _bits, _multiply)
    add_case("mad", _bits, _multiply_add, "abc")
    add_case("min_max", _bits, _min_max)
    add_case("unary", _bits, _unary, "a")
    add_case("logic", _bits, _logic)


@FAMILY.case("mad_wide")
def mad_wide() -> Case:
    """Products of 16 and 32 bits added to twice as many."""
    source = Source("integer/mad_wide")
    inputs = {
        key: source.integers(512, dtype)
        for key, dtype in zip("hkabx", ["uint16"] * 2 + ["uint32"] * 2 + ["uint64"], strict=True)
    }
    items = forms(["mad.wide.s16", "mad.wide.u16"], "%h, %k, %a") + forms(
        ["mad.wide.s32", "mad.wide.u32"], "%a, %b, %x", "b64"
    )
    return elementwise(items, inputs, section="Integer Arithmetic Instructions: mad")


@FAMILY.case("mul24")
def mul24() -> Case:
    """The 24-bit multiplier's forms."""
    names = [f"{op}.{part}.{kind}32" for op in ("mul24",) for part in ("lo", "hi") for kind in "su"]
    items = forms(names, "%a, %b") + forms([name.replace("mul", "mad") for name in names], "%a, %b, %c")
    items += forms(["mad24.hi.sat.s32"], "%a, %b, %c")
    return elementwise(items, operands("mul24", 32), section="Integer Arithmetic Instructions: mul24, mad24")


@FAMILY.case("carry")
def carry() -> Case:
    """Chains through the carry flag."""
    chains = {
        "add": "add.cc.u32 %r8, %a, %b;\naddc.cc.u32 %r9, %b, %c;\naddc.u32 {d}, %a, %c;",
        "sub": "sub.cc.u32 %r8, %a, %b;\nsubc.cc.u32 %r9, %b, %c;\nsubc.u32 {d}, %a, %c;",
        "mad": "mad.lo.cc.u32 %r8, %a, %b, %c;\nmadc.hi.cc.u32 %r9, %a, %b, %c;\naddc.u32 {d}, %r9, 0;",
    }
    items = [Form(text=text) for text in chains.values()]
    return elementwise(items, operands("carry", 32), section="Extended-Precision Integer Arithmetic Instructions")


def division(bits: int, by_zero: bool) -> Case:
    """Quotients and remainders. Division by zero is undefined in PTX; what the machine does is kept apart."""
    inputs = operands(f"div{bits}", bits)
    inputs.pop("c")
    zero = inputs["b"] == 0
    inputs["b"] = np.zeros_like(inputs["b"]) if by_zero else np.where(zero, 3, inputs["b"]).astype(SIZES[bits])
    return elementwise(
        forms(typed("div rem", bits), "%a, %b", f"b{bits}"), inputs, section="Integer Arithmetic Instructions: div, rem"
    )


for _bits in SIZES:
    FAMILY.add(f"div_{_bits}", partial(division, _bits, False))
    FAMILY.add(f"div_by_zero_{_bits}", partial(division, _bits, True))


def shifts(bits: int) -> Case:
    """Shifts by amounts up to and far beyond the width."""
    inputs = {"a": operands(f"shift{bits}", bits)["a"]}
    source = Source(f"integer/shift{bits}")
    near = source.below(640, 2 * bits + 2).astype("uint32")
    inputs["n"] = np.where(source.below(640, 4) == 0, source.integers(640, "uint32"), near).astype("uint32")
    names = [f"shl.b{bits}", f"shr.u{bits}", f"shr.s{bits}", f"shr.b{bits}"]
    items = forms(names, "%a, %n", f"b{bits}")
    items += [form for amount in (1, bits - 1, bits) for form in forms(names[:3], f"%a, {amount}", f"b{bits}")]
    return elementwise(items, inputs, section="Logic and Shift Instructions: shl, shr")


for _bits in SIZES:
    FAMILY.add(f"shift_{_bits}", partial(shifts, _bits))


@FAMILY.case("funnel_shift")
def funnel_shift() -> Case:
    """shf in both directions, clamping and wrapping."""
    inputs = operands("shf", 32)
    inputs["c"] = Source("integer/shf amounts").pick(
        640, (0, 1, 5, 16, 31, 32, 33, 40, 63, 64, 255, 0xFFFFFFFF), "uint32"
    )
    names = [f"shf.{side}.{mode}.b32" for side in "lr" for mode in ("clamp", "wrap")]
    return elementwise(forms(names, "%a, %b, %c"), inputs, section="Logic and Shift Instructions: shf")


def fields(bits: int) -> Case:
    """Bit fields at positions and of lengths that leave the word; beyond 255 the PTX ISA leaves them open."""
    inputs = {key: data for key, data in operands(f"field{bits}", bits).items() if key in "ab"}
    source = Source(f"integer/field{bits}")
    for key in ("pos", "len"):
        near = source.below(640, bits + 4).astype("uint32")
        inputs[key] = np.where(source.below(640, 5) == 0, source.below(640, 256), near).astype("uint32")
    items = forms(typed("bfe", bits), "%a, %pos, %len", f"b{bits}")
    items += forms([f"bfi.b{bits}"], "%a, %b, %pos, %len", f"b{bits}")
    items += forms([f"bfe.u{bits}", f"bfe.s{bits}"], "%a, 5, 11", f"b{bits}")
    return elementwise(items, inputs, section="Integer Arithmetic Instructions: bfe, bfi")


def counting(bits: int) -> Case:
    """Bit counts and positions."""
    inputs = {"a": operands(f"count{bits}", bits)["a"]}
    items = forms([f"popc.b{bits}", f"clz.b{bits}"], "%a") + forms([f"brev.b{bits}"], "%a", f"b{bits}")
    items += forms(typed("bfind bfind.shiftamt", bits), "%a")
    return elementwise(items, inputs, section="Integer Arithmetic Instructions: popc, clz, bfind, brev")


for _bits in (32, 64):
    FAMILY.add(f"field_{_bits}", partial(fields, _bits))
    FAMILY.add(f"count_{_bits}", partial(counting, _bits))


@FAMILY.case("fns")
def fns() -> Case:
    """Position of the n-th set bit from a base, upwards and downwards."""
    source = Source("integer/fns")
    inputs = {"a": source.integers(1024, "uint32"), "base": source.below(1024, 32).astype("uint32")}
    inputs["n"] = source.between(1024, -9, 9).astype("int32").view("uint32")
    return elementwise(forms(["fns.b32"], "%a, %base, %n"), inputs, section="Integer Arithmetic Instructions: fns")


@FAMILY.case("prmt")
def prmt() -> Case:
    """Byte permutations: every mode, selectors from registers and immediates."""
    inputs = operands("prmt", 32)
    inputs["c"] = Source("integer/prmt selectors").bits(640, "uint32")
    modes = ("", ".f4e", ".b4e", ".rc8", ".ecl", ".ecr", ".rc16")
    items = forms([f"prmt.b32{mode}" for mode in modes], "%a, %b, %c")
    items += [
        form for sel in (0x3210, 0x5410, 0x7632, 0xBA98, 0x0C4F) for form in forms(["prmt.b32"], f"%a, %b, {sel}")
    ]
    return elementwise(items, inputs, section="Data Movement and Conversion Instructions: prmt")


@FAMILY.case("lop3")
def lop3() -> Case:
    """All 256 functions of three bits."""
    source = Source("integer/lop3")
    inputs = {key: source.bits(32, "uint32") for key in "abc"}
    items = [Form(text=f"lop3.b32 {{d}}, %a, %b, %c, {table};") for table in range(256)]
    return elementwise(items, inputs, section="Logic and Shift Instructions: lop3")


@FAMILY.case("lop3_predicate")
def lop3_predicate() -> Case:
    """lop3 that combines whether the result is not zero with a predicate."""
    source = Source("integer/lop3_predicate")
    inputs = {key: source.pick(256, (0, 1, 3, 0xF0, 0xFFFFFFFF), "uint32") for key in "abc"}
    items = [
        Form(text=f"setp.eq.u32 %p4, %c, 1;\nlop3.{op}.b32 %r8|%p0, %a, %b, %c, {table}, %p4;", out="pred")
        for op in ("or", "and")
        for table in (0x80, 0x96, 0x01)
    ]
    return elementwise(items, inputs, section="Logic and Shift Instructions: lop3", version="8.2")


@FAMILY.case("dot")
def dot() -> Case:
    """Dot products of bytes and sums of absolute differences."""
    names = [f"dp4a.{a}32.{b}32" for a in "su" for b in "su"]
    names += [f"dp2a.{part}.{a}32.{b}32" for part in ("lo", "hi") for a in "su" for b in "su"]
    items = forms([*names, "sad.s32", "sad.u32"], "%a, %b, %c")
    return elementwise(items, operands("dot", 32), section="Integer Arithmetic Instructions: dp4a, dp2a, sad")


@FAMILY.case("sad_16_64")
def sad_16_64() -> Case:
    """Sums of absolute differences of other sizes."""
    inputs = {f"{key}h": data for key, data in operands("sad16", 16).items()}
    inputs |= {f"{key}x": data for key, data in operands("sad64", 64).items()}
    items = forms(["sad.s16", "sad.u16"], "%ah, %bh, %ch", "b16") + forms(
        ["sad.s64", "sad.u64"], "%ax, %bx, %cx", "b64"
    )
    return elementwise(items, inputs, section="Integer Arithmetic Instructions: sad")


@FAMILY.case("packed_16")
def packed_16() -> Case:
    """Pairs of 16-bit integers and clamping at zero."""
    names = [f"{op}.{kind}16x2" for op in ("add", "min", "max") for kind in "su"]
    names += ["min.relu.s16x2", "max.relu.s16x2", "min.relu.s32", "max.relu.s32"]
    return elementwise(
        forms(names, "%a, %b"), operands("packed", 32), section="Integer Arithmetic Instructions: add, min, max"
    )


@FAMILY.case("masks")
def masks() -> Case:
    """bmsk and szext."""
    inputs = {key: data for key, data in operands("masks", 32).items() if key == "a"}
    source = Source("integer/masks")
    inputs |= {
        "n": source.integers(640, "uint32", (*range(36), 255, 1 << 31)),
        "m": source.below(640, 40).astype("uint32"),
    }
    items = [form for mode in ("clamp", "wrap") for form in forms([f"bmsk.{mode}.b32"], "%m, %n")]
    items += [form for mode in ("clamp", "wrap") for form in forms([f"szext.{mode}.{k}32" for k in "su"], "%a, %n")]
    return elementwise(items, inputs, section="Integer Arithmetic Instructions: bmsk, szext")
