"""Approximate functions: ex2, rcp, rsqrt, sqrt and div bit for bit, the others within the PTX ISA's errors."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.emulator.vectors.case import Case, Family, Tolerance
from tests.emulator.vectors.data import F32_EDGES, Array, Source, packed
from tests.emulator.vectors.elementwise import Form, elementwise, forms

FAMILY = Family("approximate")
SECTION = "Floating Point Instructions"


def near(seed: str, low: int, high: int, count: int = 2048, *, is_signed: bool = True) -> Array:
    """Return special values, then floats with exponents from `low` to `high`."""
    source = Source(f"approximate/{seed}")
    exponent = (source.between(count, low, high) + 127).astype("uint32") << np.uint32(23)
    sign = source.below(count, 2).astype("uint32") << np.uint32(31) if is_signed else np.uint32(0)
    values = (exponent | source.bits(count, "uint32") & np.uint32(0x7FFFFF) | sign).astype("uint32")
    values[: len(F32_EDGES)] = np.array(F32_EDGES, "uint32")
    return values


# Operations, exponents of the operands, and twice the documented error (of the hardware, and of what is compared with
# it); None: the emulator has the hardware's tables.
UNARY: dict[str, tuple[tuple[int, int], Tolerance | None]] = {
    "ex2": ((-24, 7), None),
    "rcp": ((-126, 127), None),
    "rsqrt": ((-126, 127), None),
    "sqrt": ((-126, 127), None),
    "lg2": ((-126, 127), Tolerance(value_dtype="float32", absolute=2.0**-21, relative=2.0**-21)),
    "tanh": ((-20, 5), Tolerance(value_dtype="float32", relative=2.0**-10)),
    "sin": ((-12, 1), Tolerance(value_dtype="float32", absolute=2.0**-19.4)),
    "cos": ((-12, 1), Tolerance(value_dtype="float32", absolute=2.0**-19.4)),
}


def unary(name: str) -> Case:
    """One function, flushing subnormals and not."""
    (low, high), tolerance = UNARY[name]
    names = ("tanh.approx.f32",) if name == "tanh" else (f"{name}.approx.ftz.f32", f"{name}.approx.f32")
    values = near(name, low, high)
    if name in ("sin", "cos"):  # the error is documented between -pi and pi
        values = np.where(np.abs(values.view("float32")) > np.float32(np.pi), 0x3F800000, values).astype("uint32")
        values = np.where(np.isnan(values.view("float32")), 0x3F000000, values).astype("uint32")
    return elementwise(forms(names, "%a"), {"a": values}, section=f"{SECTION}: {name}", tolerance=tolerance)


for _name in UNARY:
    FAMILY.add(_name, partial(unary, _name))


@FAMILY.case("div")
def div() -> Case:
    """Approximate quotients of operands inside the documented range."""
    inputs = {key: near(f"div {key}", -60, 60)[64:] for key in "ab"}
    inputs = {key: data[: len(data) // 32 * 32] for key, data in inputs.items()}
    names = ("div.approx.f32", "div.approx.ftz.f32", "div.full.f32", "div.full.ftz.f32")
    return elementwise(forms(names, "%a, %b"), inputs, section=f"{SECTION}: div")


@FAMILY.case("doubles")
def doubles() -> Case:
    """Approximations of f64 that read the upper word only."""
    items = forms(["rcp.approx.ftz.f64", "rsqrt.approx.ftz.f64", "rsqrt.approx.f64"], "%a", "b64")
    source = Source("approximate/doubles")
    exponent = (source.between(512, -300, 300) + 1023).astype("uint64") << np.uint64(52)
    values = exponent | source.bits(512, "uint64") & np.uint64((1 << 52) - 1)
    tolerance = Tolerance(value_dtype="float64", relative=2.0**-19)
    return elementwise(items, {"a": values}, section=f"{SECTION}: rcp.approx.ftz.f64", tolerance=tolerance)


def halves(kind: str, op: str) -> Case:
    """All 65536 values of a 16-bit type, alone and in pairs."""
    values = np.arange(65536, dtype="uint16")
    name = f"{op}.approx.ftz" if (op, kind) == ("ex2", "bf16") else f"{op}.approx"
    items = forms([f"{name}.{kind}"], "%h", "b16")
    tolerance = None
    if op == "tanh":
        dtype, places = ("bfloat16", 8) if kind == "bf16" else ("float16", 10)
        tolerance = Tolerance(value_dtype=dtype, absolute=2.0**-places)
    return elementwise(
        items, {"h": values}, section=f"Half Precision {SECTION}: {op}", tolerance=tolerance, version="8.6"
    )


def half_pairs(kind: str, op: str) -> Case:
    """Pairs: the halves do not mix."""
    source = Source(f"approximate/{op} {kind}x2")
    name = f"{op}.approx.ftz" if (op, kind) == ("ex2", "bf16") else f"{op}.approx"
    inputs = {"a": packed(source.floats(512, kind), source.floats(512, kind))}
    inputs["h"] = (inputs["a"] & np.uint32(0xFFFF)).astype("uint16")
    inputs["k"] = (inputs["a"] >> np.uint32(16)).astype("uint16")
    # The same pair made of two scalar results: their difference is what is recorded, and it is zero.
    text = (
        f"{name}.{kind}x2 %r8, %a;\n{name}.{kind} %h8, %h;\n{name}.{kind} %h9, %k;\n"
        f"mov.b32 %r9, {{{{%h8, %h9}}}};\nxor.b32 {{d}}, %r8, %r9;"
    )
    return elementwise([Form(text=text)], inputs, section=f"Half Precision {SECTION}: {op}", version="8.6")


for _kind in ("f16", "bf16"):
    for _op in ("ex2", "tanh"):
        FAMILY.add(f"{_op}_{_kind}", partial(halves, _kind, _op))
        FAMILY.add(f"{_op}_{_kind}x2", partial(half_pairs, _kind, _op))
