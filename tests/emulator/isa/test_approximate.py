"""Approximate functions against f64 and their documented errors, and their special values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.isa.evaluate import one
from tests.emulator.isa.numbers import operands

Array = NDArray[Any]
INF, NAN = np.inf, np.nan

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


def single(name: str, x: Array) -> Array:
    return one(f"{name}.f32", x.astype(np.float32).view(np.uint32)).view(np.float32)


# Relative errors: a little more than those measured over all operands of an H200.
HARDWARE_ERRORS = {"rcp": 2.0**-23.2, "sqrt": 2.0**-23.2, "rsqrt": 2.0**-22.9, "ex2": 2.0**-22.7}


def numbers() -> Array:
    (bits,) = operands("f32", 60000, 1, 90)
    rng = np.random.default_rng(91)
    near = (rng.standard_normal(60000) * 2.0 ** rng.uniform(-6, 6, 60000)).astype(np.float32)
    return np.concatenate([bits.view(np.float32), near, np.arange(-200, 200).astype(np.float32)])


@pytest.mark.parametrize("name", HARDWARE_ERRORS)
def test_errors_are_the_hardwares(name: str) -> None:
    x = numbers()
    small = (x.view(np.uint32) & np.uint32(0x7F800000)) == 0
    for form, operand in ((f"{name}.approx", x), (f"{name}.approx.ftz", np.where(small, np.copysign(0, x), x))):
        got = single(form, x).astype(np.float64)
        with np.errstate(all="ignore"):
            exact = FUNCTIONS[name](operand.astype(np.float64))
            nearest = exact.astype(np.float32)
            error = np.abs(got - exact) / np.abs(exact)
        assert np.array_equal(np.isnan(got), np.isnan(exact))
        is_normal = np.isfinite(nearest) & (np.abs(exact) >= 2.0**-126)
        assert error[is_normal].max() < HARDWARE_ERRORS[name]
        rest = ~is_normal & ~np.isnan(exact)
        if "ftz" in form:
            nearest = np.where(np.abs(exact) < 2.0**-126, np.copysign(np.float32(0), nearest), nearest)
            # The last few results below the normal numbers are rounded up to the first one.
            rest &= np.abs(exact) < 2.0**-126 * (1 - 2.0**-20)
            assert np.array_equal(got[rest], nearest[rest])
        else:
            assert np.array_equal(got[rest & np.isinf(nearest)], nearest[rest & np.isinf(nearest)])
            finite = rest & np.isfinite(nearest)
            assert np.abs(got[finite] - nearest[finite]).max(initial=0) <= 2.0**-149


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in HARDWARE_ERRORS])
def test_are_the_nearest_f32(name: str) -> None:
    x = numbers()
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name](x.astype(np.float64)).astype(np.float32)
    got = one(f"{name}.approx.f32", x.view(np.uint32))
    nan = np.isnan(exact)
    assert np.array_equal(got[~nan].view(np.float32), exact[~nan])
    assert (got[nan] == 0x7FFFFFFF).all()
    if name != "tanh":
        small = (x.view(np.uint32) & np.uint32(0x7F800000)) == 0
        flushed = np.where(small, np.copysign(np.float32(0), x), x)
        kept = one(f"{name}.approx.f32", flushed.view(np.uint32))
        kept = np.where(kept & np.uint32(0x7F800000) == 0, kept & np.uint32(1 << 31), kept)
        assert np.array_equal(one(f"{name}.approx.ftz.f32", x.view(np.uint32)), kept)


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("rcp", [0.0, -0.0, INF, -INF, 4.0], [INF, -INF, 0.0, -0.0, 0.25]),
        ("rsqrt", [0.0, -0.0, INF, -1.0, 4.0], [INF, -INF, 0.0, NAN, 0.5]),
        ("sqrt", [0.0, -0.0, INF, -1.0, 4.0], [0.0, -0.0, INF, NAN, 2.0]),
        ("ex2", [0.0, -0.0, INF, -INF, 3.0, -149.0, -151.0, 128.0], [1, 1, INF, 0.0, 8, 2.0**-149, 0.0, INF]),
        ("lg2", [0.0, -0.0, INF, -1.0, 8.0, 2.0**-149], [-INF, -INF, INF, NAN, 3.0, -149.0]),
        ("sin", [0.0, -0.0, INF, -INF], [0.0, -0.0, NAN, NAN]),
        ("cos", [0.0, -0.0, INF, -INF], [1.0, 1.0, NAN, NAN]),
        ("tanh", [0.0, -0.0, INF, -INF], [0.0, -0.0, 1.0, -1.0]),
    ],
)
def test_special_values(name: str, inputs: list[float], outputs: list[float]) -> None:
    got = single(f"{name}.approx", np.array(inputs))
    expected = np.array(outputs, np.float32)
    assert np.array_equal(got, expected, equal_nan=True)
    keep = ~np.isnan(expected)
    assert np.array_equal(np.signbit(got[keep]), np.signbit(expected[keep]))


@pytest.mark.parametrize("form", ["div.full", "div.approx", "div.full.ftz", "div.approx.ftz"])
def test_quotients(form: str) -> None:
    a, b = operands("f32", 20000, 2, 92)

    def flushed(bits: Array) -> Array:
        return np.where(bits & np.uint32(0x7F800000) == 0, bits & np.uint32(1 << 31), bits)

    x, y = (flushed(a), flushed(b)) if "ftz" in form else (a, b)
    x, y = x.view(np.float32), y.view(np.float32)
    with np.errstate(all="ignore"):
        expected = x / y
        huge = (np.abs(y) > 2.0**126) & np.isfinite(y)
        if "approx" in form:
            expected = np.where(huge, x * np.copysign(np.float32(0), y), expected)
    got = one(f"{form}.f32", a, b)
    assert (got[np.isnan(expected)] == 0x7FFFFFFF).all()
    values, known = got.view(np.float32).astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        close = (values == known) | (np.abs(values - known) <= 2.0**-22 * np.abs(known) + 2.0**-148)
        # Next to infinity, and to what is flushed, the last place decides.
        edge = (np.abs(known) > 2.0**127.99) | ("ftz" in form) & (np.abs(known) < 2.0**-126 * (1 + 2.0**-20))
    assert (close | edge | np.isnan(known)).all()
    if "ftz" in form:
        assert np.array_equal(got, flushed(got))


@pytest.mark.parametrize("type", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["tanh", "ex2"])
def test_every_half(name: str, type: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    dtype: Any = np.float16 if type == "f16" else ml_dtypes.bfloat16
    form = f"{name}.approx{'.ftz' if (name, type) == ('ex2', 'bf16') else ''}.{type}"
    if name == "ex2":  # the approximation of f32, cut off
        power = single("ex2.approx.ftz", every.view(dtype).astype(np.float32))
        with np.errstate(over="ignore"):
            nearest = power.astype(dtype)
        past = nearest.astype(np.float32) > power
        expected = nearest.view(np.uint16) - (past & (power < 65536 if type == "f16" else np.isfinite(power)))
        expected = np.where(np.isnan(power), 0x7FFF, expected).astype(np.uint16)
    else:
        with np.errstate(all="ignore"):
            exact = FUNCTIONS[name](every.view(dtype).astype(np.float64)).astype(np.float32)
            expected = np.where(np.isnan(exact), 0x7FFF, exact.astype(dtype).view(np.uint16))
    assert np.array_equal(one(form, every), expected)
    pairs = every.astype(np.uint32) | every[::-1].astype(np.uint32) << np.uint32(16)
    both = expected.astype(np.uint32) | expected[::-1].astype(np.uint32) << np.uint32(16)
    assert np.array_equal(one(f"{form}x2", pairs), both)


@pytest.mark.parametrize("name", ["rcp", "rsqrt"])
def test_gross_f64(name: str) -> None:
    (bits,) = operands("f64", 5000, 1, 93)
    result = one(f"{name}.approx.ftz.f64", bits)
    assert not (result & np.uint64(0xFFFFFFFF)).any()
    x = (bits & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name](x)
        keep = np.isfinite(exact) & (np.abs(x) >= 2.0**-1022) & (np.abs(exact) >= 2.0**-1022) & np.isfinite(x)
        error = np.abs(result.view(np.float64)[keep] / exact[keep] - 1)
    assert error.max() < 2.0**-20
    special = np.array([0.0, -0.0, INF, NAN, 2.0**-1060], np.float64).view(np.uint64)
    expected = {"rcp": [INF, -INF, 0.0, NAN, INF], "rsqrt": [INF, -INF, 0.0, NAN, INF]}[name]
    got = one(f"{name}.approx.ftz.f64", special)
    assert np.array_equal(got.view(np.float64), expected, equal_nan=True)
    assert got[3] == 0x7FFFFFFF00000000


def test_precise_rsqrt_of_f64() -> None:
    x = np.array([4.0, 2.0, 1e300, -0.0, 0.0, INF], np.float64)
    with np.errstate(divide="ignore"):
        expected = 1 / np.sqrt(x)
    assert np.array_equal(one("rsqrt.approx.f64", x.view(np.uint64)).view(np.float64), expected)
