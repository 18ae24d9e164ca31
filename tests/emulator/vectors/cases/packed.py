"""Arithmetic of f16, bf16 and pairs of them."""

from __future__ import annotations

from functools import partial

from tests.emulator.vectors.case import Case, Family
from tests.emulator.vectors.cases.compare import float_pairs
from tests.emulator.vectors.data import Array, Source, packed
from tests.emulator.vectors.elementwise import elementwise, forms

FAMILY = Family("packed")
SECTION = "Half Precision Floating Point Instructions"


def operands(kind: str, seed: str, count: int = 1024) -> dict[str, Array]:
    """Return scalar operands h, k, l and packed ones a, b, c whose halves are unrelated."""
    scalars = {}
    for half in ("low", "high"):
        pair = float_pairs(kind, f"packed {seed} {half}", count)
        scalars[half] = [pair["a"], pair["b"], Source(f"packed/{seed} {half}").floats(count, kind)]
    inputs = dict(zip("hkl", scalars["low"], strict=True))
    for key, low, high in zip("abc", scalars["low"], scalars["high"], strict=True):
        inputs[key] = packed(low, high[::-1])
    return inputs


def arithmetic(kind: str, op: str) -> Case:
    """One operation with every modifier, of scalars and of pairs."""
    modifiers = ("", ".ftz", ".sat", ".ftz.sat") if kind == "f16" else ("",)
    if op == "fma":
        modifiers += (".relu", ".ftz.relu") if kind == "f16" else (".relu",)
    count = 3 if op == "fma" else 2
    items = []
    for modifier in modifiers:
        items += forms([f"{op}.rn{modifier}.{kind}"], ", ".join(f"%{key}" for key in "hkl"[:count]), "b16")
        items += forms([f"{op}.rn{modifier}.{kind}x2"], ", ".join(f"%{key}" for key in "abc"[:count]))
    return elementwise(items, operands(kind, f"{kind} {op}"), section=f"{SECTION}: {op}")


def min_max(kind: str) -> Case:
    """Every form of min and max."""
    flushes = ("", ".ftz") if kind == "f16" else ("",)
    names = [
        f"{op}{ftz}{nan}{sign}.{kind}"
        for op in ("min", "max")
        for ftz in flushes
        for nan in ("", ".NaN")
        for sign in ("", ".xorsign.abs")
    ]
    items = forms(names, "%h, %k", "b16") + forms([f"{name}x2" for name in names], "%a, %b")
    return elementwise(items, operands(kind, f"{kind} min_max"), section=f"{SECTION}: min, max")


def unary(kind: str) -> Case:
    """abs and neg."""
    names = [f"{op}.{kind}" for op in ("abs", "neg")] + (["abs.ftz.f16", "neg.ftz.f16"] if kind == "f16" else [])
    items = forms(names, "%h", "b16") + forms([f"{name}x2" for name in names], "%a")
    return elementwise(items, operands(kind, f"{kind} unary"), section=f"{SECTION}: abs, neg")


for _kind in ("f16", "bf16"):
    for _op in ("add", "sub", "mul", "fma"):
        FAMILY.add(f"{_op}_{_kind}", partial(arithmetic, _kind, _op))
    FAMILY.add(f"min_max_{_kind}", partial(min_max, _kind))
    FAMILY.add(f"unary_{_kind}", partial(unary, _kind))
