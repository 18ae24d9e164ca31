"""Comparison, selection, predicate logic and classification."""

from __future__ import annotations

from functools import partial

from tests.emulator.vectors.case import Case, Family
from tests.emulator.vectors.data import FLOATS, INTEGER_EDGES, Array, Source, all_pairs, packed
from tests.emulator.vectors.elementwise import Form, elementwise, forms, predicates

FAMILY = Family("compare")
EQUALITY = ("eq", "ne")
ORDER = ("lt", "le", "gt", "ge")
UNSIGNED_ORDER = ("lo", "ls", "hi", "hs")
FLOAT_ORDER = (*EQUALITY, *ORDER, *(f"{name}u" for name in ("eq", "ne", "lt", "le", "gt", "ge")), "num", "nan")


def float_pairs(kind: str, seed: str, count: int = 1024) -> dict[str, Array]:
    """Return two operands that hold every pair of special values."""
    dtype, _, edges = FLOATS[kind]
    source = Source(f"compare/{seed}")
    a, b = (source.floats(count, kind) for _ in "ab")
    first, second = all_pairs(edges[:28], dtype)
    a[: first.size], b[: second.size] = first, second
    return {"a": a, "b": b}


def integers(bits: int) -> Case:
    """Every comparison of every integer type of one size."""
    dtype = f"uint{bits}"
    source = Source(f"compare/integers{bits}")
    a, b = (source.integers(640, dtype) for _ in "ab")
    first, second = all_pairs(INTEGER_EDGES[dtype][:20], dtype)
    a[: first.size], b[: second.size] = first, second
    names = [f"setp.{cmp}.s{bits}" for cmp in (*EQUALITY, *ORDER)]
    names += [f"setp.{cmp}.u{bits}" for cmp in (*EQUALITY, *ORDER, *UNSIGNED_ORDER)]
    names += [f"setp.{cmp}.b{bits}" for cmp in EQUALITY]
    items = predicates(names, "%a, %b") + predicates([f"setp.lt.s{bits}", f"setp.hi.u{bits}"], "%a, 7")
    return elementwise(items, {"a": a, "b": b}, section="Comparison and Selection Instructions: setp")


for _bits in (16, 32, 64):
    FAMILY.add(f"setp_{_bits}", partial(integers, _bits))


def floats(kind: str) -> Case:
    """Every comparison of one floating-point type, NaN included."""
    names = [f"setp.{cmp}.{kind}" for cmp in FLOAT_ORDER]
    names += [f"setp.{cmp}.ftz.f32" for cmp in FLOAT_ORDER] if kind == "f32" else []
    names += [f"setp.{cmp}.ftz.f16" for cmp in FLOAT_ORDER] if kind == "f16" else []
    return elementwise(predicates(names, "%a, %b"), float_pairs(kind, kind), section="Comparison Instructions: setp")


for _kind in FLOATS:
    FAMILY.add(f"setp_{_kind}", partial(floats, _kind))


def packed_floats(kind: str) -> Case:
    """Comparisons of both halves, one predicate each."""
    low, high = float_pairs(kind, f"{kind}x2 low"), float_pairs(kind, f"{kind}x2 high")
    inputs = {key: packed(low[key], high[key][::-1]) for key in "ab"}
    items = [Form(text=f"setp.{cmp}.{kind}x2 %p0|%p1, %a, %b;", out="pred2") for cmp in FLOAT_ORDER]
    return elementwise(items, inputs, section="Half Precision Comparison Instructions: setp")


for _kind in ("f16", "bf16"):
    FAMILY.add(f"setp_{_kind}x2", partial(packed_floats, _kind))


@FAMILY.case("setp_combined")
def setp_combined() -> Case:
    """setp that combines with a predicate and writes the complement as well."""
    source = Source("compare/combined")
    inputs = {key: source.pick(256, (0, 1, 2, 0xFFFFFFFF), "uint32") for key in "abc"}
    items = []
    for op in ("and", "or", "xor"):
        for negated in ("", "!"):
            text = f"setp.eq.u32 %p4, %c, 1;\nsetp.lt.{op}.s32 %p0|%p1, %a, %b, {negated}%p4;"
            items.append(Form(text=text, out="pred2"))
    items.append(Form(text="setp.ge.s32 %p0|%p1, %a, %b;", out="pred2"))
    items.append(Form(text="setp.ge.u32 %p0|_, %a, %b;", out="pred"))
    return elementwise(items, inputs, section="Comparison and Selection Instructions: setp")


@FAMILY.case("setp_combined_float")
def setp_combined_float() -> Case:
    """The same of floats with NaN."""
    items = []
    for op in ("and", "or", "xor"):
        for cmp in ("lt", "geu", "nan"):
            text = f"setp.eq.b32 %p4, %a, %b;\nsetp.{cmp}.{op}.f32 %p0|%p1, %a, %b, !%p4;"
            items.append(Form(text=text, out="pred2"))
    return elementwise(items, float_pairs("f32", "combined"), section="Comparison and Selection Instructions: setp")


@FAMILY.case("set")
def set_() -> Case:
    """set: masks of ones, and 1.0, as results."""
    source = Source("compare/set")
    inputs = {key: source.integers(512, "uint32") for key in "ab"} | {
        f"f{key}": data[:512] for key, data in float_pairs("f32", "set").items()
    }
    items = [
        form
        for cmp in ("lt", "eq")
        for form in forms([f"set.{cmp}.{d}32.{s}32" for d in "usf" for s in "us"], "%a, %b")
    ]
    items += [
        form for cmp in ("lt", "neu", "num") for form in forms([f"set.{cmp}.{d}32.f32" for d in "usf"], "%fa, %fb")
    ]
    items += [Form(text="setp.gt.s32 %p4, %a, 0;\nset.le.and.u32.f32 {d}, %fa, %fb, %p4;")]
    items += [Form(text="setp.gt.s32 %p4, %a, 0;\nset.le.xor.f32.s32 {d}, %a, %b, !%p4;")]
    items += forms(["set.lt.ftz.u32.f32", "set.eq.ftz.f32.f32"], "%fa, %fb")
    return elementwise(items, inputs, section="Comparison and Selection Instructions: set")


def packed_set(kind: str) -> Case:
    """set of 16-bit floats and pairs of them."""
    low, high = float_pairs(kind, f"set {kind} low"), float_pairs(kind, f"set {kind} high")
    inputs = {key: packed(low[key], high[key][::-1]) for key in "ab"} | {"h": low["a"], "k": low["b"]}
    items = forms([f"set.{cmp}.{kind}x2.{kind}x2" for cmp in ("lt", "equ", "nan")], "%a, %b")
    items += forms([f"set.{cmp}.u32.{kind}" for cmp in ("ge", "neu")], "%h, %k")
    items += forms([f"set.{cmp}.{kind}.{kind}" for cmp in ("gt", "num")], "%h, %k", "b16")
    return elementwise(items, inputs, section="Half Precision Comparison Instructions: set")


for _kind in ("f16", "bf16"):
    FAMILY.add(f"set_{_kind}x2", partial(packed_set, _kind))


@FAMILY.case("select")
def select() -> Case:
    """selp and slct of every type."""
    source = Source("compare/select")
    inputs = {key: source.integers(512, "uint32") for key in "abc"} | {
        key: source.integers(512, "uint64") for key in "xy"
    }
    inputs |= {key: source.integers(512, "uint16") for key in "hk"} | {"f": source.floats(512, "f32")}
    setp = "setp.lt.s32 %p4, %a, %b;\n"
    items = [Form(text=f"{setp}selp.{t}32 {{d}}, %a, %c, %p4;") for t in "busf"]
    items += [Form(text=f"{setp}selp.{t}64 {{d}}, %x, %y, %p4;", out="b64") for t in "busf"]
    items += [Form(text=f"{setp}selp.{t}16 {{d}}, %h, %k, %p4;", out="b16") for t in "bus"]
    items += [Form(text=f"{setp}selp.b32 {{d}}, -1, 0, %p4;")]
    items += forms([f"slct.{t}32.s32" for t in "busf"], "%a, %b, %c") + forms(["slct.f64.f32"], "%x, %y, %f", "b64")
    items += forms(["slct.u32.f32", "slct.ftz.f32.f32"], "%a, %b, %f") + forms(["slct.u64.s32"], "%x, %y, %c", "b64")
    return elementwise(items, inputs, section="Comparison and Selection Instructions: selp, slct")


@FAMILY.case("predicate_logic")
def predicate_logic() -> Case:
    """and, or, xor, not and mov of predicates, and guards of both signs."""
    source = Source("compare/predicates")
    inputs = {key: source.below(256, 2).astype("uint32") for key in "ab"}
    setp = "setp.ne.u32 %p4, %a, 0;\nsetp.ne.u32 %p5, %b, 0;\n"
    items = [Form(text=f"{setp}{op}.pred %p0, %p4, %p5;", out="pred") for op in ("and", "or", "xor")]
    items += [Form(text=f"{setp}{op}.pred %p0, %p4;", out="pred") for op in ("not", "mov")]
    items += [Form(text=f"{setp}mov.b32 {{d}}, 5;\n@%p4 mov.b32 {{d}}, %b;\n@!%p5 add.u32 {{d}}, {{d}}, 9;")]
    return elementwise(items, inputs, section="Logic and Shift Instructions: and, or, xor, not")


@FAMILY.case("classify")
def classify() -> Case:
    """testp and copysign."""
    a, b = (float_pairs("f32", "classify")[key] for key in "ab")
    x, y = (float_pairs("f64", "classify")[key] for key in "ab")
    kinds = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    items = predicates([f"testp.{kind}.f32" for kind in kinds], "%a") + predicates(
        [f"testp.{kind}.f64" for kind in kinds], "%x"
    )
    items += forms(["copysign.f32"], "%a, %b") + forms(["copysign.f64"], "%x, %y", "b64")
    return elementwise(items, {"a": a, "b": b, "x": x, "y": y}, section="Floating Point Instructions: testp, copysign")
