"""Arithmetic of f32 and f64 that is defined bit for bit. Every form rounds explicitly, so that none is contracted."""

from __future__ import annotations

from functools import partial

from tests.emulator.vectors.case import ANY_NAN, Case, Family
from tests.emulator.vectors.cases.compare import float_pairs
from tests.emulator.vectors.data import Array, Source
from tests.emulator.vectors.elementwise import elementwise, forms

FAMILY = Family("floating")
ROUNDINGS = ("rn", "rz", "rm", "rp")


def triples(kind: str, seed: str, count: int = 1024) -> dict[str, Array]:
    """Return pairs of special values and a third operand."""
    return float_pairs(kind, f"floating {seed}", count) | {"c": Source(f"floating/{seed}").floats(count, kind)}


def arithmetic(op: str, modifiers: tuple[str, ...]) -> Case:
    """One operation in every rounding mode with a set of modifiers."""
    names = [f"{op}.{mode}{modifier}.f32" for mode in ROUNDINGS for modifier in modifiers]
    inputs = triples("f32", op)
    text = "%a, %b, %c" if op in ("fma", "mad") else "%a, %b"
    if op in ("fma", "mad"):
        inputs["c"][::3] &= 0x80000000  # zero: products decide alone, subnormal ones too
    else:
        inputs.pop("c")
    return elementwise(forms(names, text), inputs, section=f"Floating Point Instructions: {op}")


for _op in ("add", "sub", "mul", "fma"):
    FAMILY.add(f"{_op}_f32", partial(arithmetic, _op, ("", ".sat")))
    FAMILY.add(f"{_op}_f32_ftz", partial(arithmetic, _op, (".ftz", ".ftz.sat")))
for _op in ("div", "mad"):
    FAMILY.add(f"{_op}_f32", partial(arithmetic, _op, ("",)))
FAMILY.add("div_f32_ftz", partial(arithmetic, "div", (".ftz",)))


def doubles(op: str, modes: tuple[str, ...]) -> Case:
    """One operation of f64 in some rounding modes."""
    inputs = triples("f64", f"{op} f64")
    text = {"fma": "%a, %b, %c", "rcp": "%a", "sqrt": "%a"}.get(op, "%a, %b")
    inputs = {key: data for key, data in inputs.items() if f"%{key}" in text}
    names = [f"{op}.{mode}.f64" for mode in modes]
    return elementwise(
        forms(names, text, "b64"), inputs, section=f"Floating Point Instructions: {op}", tolerance=ANY_NAN
    )


for _op in ("add", "sub", "mul", "fma", "div", "rcp", "sqrt"):
    FAMILY.add(f"{_op}_f64", partial(doubles, _op, ROUNDINGS[:1]))
    FAMILY.add(f"{_op}_f64_directed", partial(doubles, _op, ROUNDINGS[1:]))


def roots(op: str) -> Case:
    """Reciprocals and square roots, rounded."""
    names = [f"{op}.{mode}{ftz}.f32" for mode in ROUNDINGS for ftz in ("", ".ftz")]
    inputs = {"a": Source(f"floating/{op}").floats(2048, "f32")}
    return elementwise(forms(names, "%a"), inputs, section=f"Floating Point Instructions: {op}")


FAMILY.add("rcp_f32", partial(roots, "rcp"))
FAMILY.add("sqrt_f32", partial(roots, "sqrt"))


@FAMILY.case("min_max_f32")
def min_max_f32() -> Case:
    """Every form of min and max: NaN passed over or passed on, subnormals flushed, signs combined."""
    names = [
        f"{op}{ftz}{nan}{sign}.f32"
        for op in ("min", "max")
        for ftz in ("", ".ftz")
        for nan in ("", ".NaN")
        for sign in ("", ".xorsign.abs")
    ]
    return elementwise(
        forms(names, "%a, %b"), float_pairs("f32", "min_max"), section="Floating Point Instructions: min, max"
    )


@FAMILY.case("min_max_f64")
def min_max_f64() -> Case:
    """The same of f64."""
    return elementwise(
        forms(["min.f64", "max.f64"], "%a, %b", "b64"),
        float_pairs("f64", "min_max"),
        tolerance=ANY_NAN,
        section="Floating Point Instructions: min, max",
    )


@FAMILY.case("unary")
def unary() -> Case:
    """abs and neg."""
    inputs = {"a": float_pairs("f32", "unary")["a"], "x": float_pairs("f64", "unary")["a"]}
    items = forms(["abs.f32", "abs.ftz.f32", "neg.f32", "neg.ftz.f32"], "%a") + forms(
        ["abs.f64", "neg.f64"], "%x", "b64"
    )
    return elementwise(items, inputs, section="Floating Point Instructions: abs, neg", tolerance={"b64": ANY_NAN})


@FAMILY.case("immediates")
def immediates() -> Case:
    """Constants in every spelling, on either side."""
    inputs = {
        "a": Source("floating/immediates").floats(512, "f32"),
        "x": Source("floating/immediates x").floats(512, "f64"),
    }
    items = [
        *forms(["add.rn.f32"], "%a, 0f3F800000")
        + forms(["mul.rn.f32"], "%a, 1.5")
        + forms(["sub.rn.f32"], "0f40490FDB, %a"),
        *forms(["fma.rn.f32"], "%a, 0fBF000000, 0d4010000000000000") + forms(["max.f32"], "%a, 0f00000000"),
        *forms(["add.rn.f64"], "%x, 0d3FF0000000000000", "b64") + forms(["mul.rn.f64"], "%x, -2.25e-3", "b64"),
    ]
    return elementwise(items, inputs, section="Constants: floating-point", tolerance={"b64": ANY_NAN})


@FAMILY.case("plain")
def plain() -> Case:
    """add, sub and mul without a rounding mode, none followed by another that it could be fused with."""
    inputs = triples("f32", "plain") | {f"x{key}": data for key, data in triples("f64", "plain").items()}
    items = forms(["add.f32", "sub.f32", "mul.f32", "add.ftz.f32", "mul.ftz.sat.f32"], "%a, %b")
    items += forms(["add.f64", "sub.f64", "mul.f64"], "%xa, %xb", "b64")
    return elementwise(items, inputs, section="Floating Point Instructions: add, sub, mul", tolerance={"b64": ANY_NAN})
