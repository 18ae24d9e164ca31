"""Products of tensor cores against fractions, against probes measured on an H200, and at the formats' edges."""

from __future__ import annotations

import numpy as np
import pytest

from megamoe_jit.emulator.engines.numerics import FORMATS, Operand, Rounding, Rule, Scales, arithmetic, native
from megamoe_jit.emulator.engines.numerics.formats import SPECIAL_EXPONENT, ElementFormat
from tests.emulator.engines.numerics import slow_model

PLAIN = ("e4m3", "e5m2", "e2m3", "e3m2", "e2m1", "f16", "bf16", "tf32")


def finite_codes(form: ElementFormat, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """All finite codes with equal probability, a tenth of them zero."""
    codes = rng.integers(0, 1 << form.bits, shape).astype(f"u{form.storage}")
    if form.bits > 8 and form.name != "f16":  # spread over 40 binades: wider ones never meet in a sum
        field = rng.integers(107, 147, shape).astype(codes.dtype) << form.fraction_bits
        codes = codes & ((1 << form.fraction_bits) - 1) | field | codes & (1 << (form.bits - 1))
    special = form.split(codes)[1] == SPECIAL_EXPONENT
    return np.where(special | (rng.random(shape) < 0.1), 0, codes).astype(codes.dtype)


def accumulators(shape: tuple[int, int], rng: np.random.Generator, dtype: type = np.float32) -> np.ndarray:
    spread = (-20, 20) if dtype is np.float32 else (-24, 4)
    values = rng.standard_normal(shape) * np.exp2(rng.integers(*spread, shape))
    return np.where(rng.random(shape) < 0.1, 0, values).astype(dtype)


def as_bits(d: np.ndarray) -> np.ndarray:
    return d.view(f"u{d.dtype.itemsize}")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_values_of_every_code(name: str) -> None:
    form = FORMATS[name]
    if name == "f32":
        codes = np.random.default_rng(0).integers(0, 1 << 32, 4000).astype(np.uint32)
        codes[:6] = [0, 1 << 31, 1, 0x7F800000, 0xFF800000, 0x7FC00000]
        with np.errstate(invalid="ignore"):
            expected = codes.view(np.float32).astype(np.float64)
    else:
        codes = np.arange(1 << form.bits).astype(f"u{form.storage}")
        expected = slow_model.numbers(name, codes)
    values = form.values(codes)
    assert np.array_equal(values, expected, equal_nan=True)
    nonzero = ~np.isnan(values) & (values != 0)
    assert np.array_equal(np.signbit(values)[nonzero], np.signbit(expected)[nonzero])


@pytest.mark.parametrize("d_type", ["f32", "f16"])
@pytest.mark.parametrize("unit", ["wgmma", "tcgen05"])
@pytest.mark.parametrize("name", PLAIN)
def test_dot_is_the_model(name: str, unit: str, d_type: str) -> None:
    rng = np.random.default_rng([len(name), ord(name[1]), ord(unit[0]), ord(d_type[1])])
    form = FORMATS[name]
    depth = 256 // max(8, form.bits if form.bits != 19 else 32)
    a, b = finite_codes(form, (9, depth), rng), finite_codes(form, (24, depth), rng)
    d = accumulators((9, 24), rng, np.float16 if d_type == "f16" else np.float32)
    rule = arithmetic.rule_for(unit, name, d_type)
    for numerics in ("hardware", "exact"):
        used = rule if numerics == "hardware" else rule.exact
        with np.errstate(over="ignore"):
            expected = slow_model.dot((name, a), (name, b), d, used.fraction_bits, used.rounding.value)
        got = arithmetic.dot(Operand(form, a), Operand(form, b), as_bits(d), rule, numerics=numerics)
        assert np.array_equal(got, as_bits(expected)), (numerics, np.argwhere(got != as_bits(expected))[:5])
        got = arithmetic.dot_reference(Operand(form, a), Operand(form, b), as_bits(d), used)
        assert np.array_equal(got, as_bits(expected))
    got = arithmetic.dot(Operand(form, a), Operand(form, b), None, rule)
    with np.errstate(over="ignore"):
        expected = slow_model.dot((name, a), (name, b), d * 0, rule.fraction_bits, rule.rounding.value)
    assert np.array_equal(got, as_bits(expected))


@pytest.mark.parametrize(("a_name", "b_name"), [("e4m3", "e5m2"), ("e2m1", "e4m3"), ("e3m2", "e2m3")])
def test_mixed_formats_and_row_scales(a_name: str, b_name: str) -> None:
    rng = np.random.default_rng(5)
    a, b = finite_codes(FORMATS[a_name], (8, 32), rng), finite_codes(FORMATS[b_name], (17, 32), rng)
    sfa = rng.integers(110, 140, (8, 1)).astype(np.uint8)
    sfb = rng.integers(110, 140, (17, 1)).astype(np.uint8)
    d = accumulators((8, 17), rng)
    form = FORMATS["ue8m0"]
    for numerics, bits, rounding in (("hardware", 25, "f32"), ("exact", None, "f32 nearest")):
        expected = slow_model.dot((a_name, a), (b_name, b), d, bits, rounding, (sfa, sfb))
        got = arithmetic.dot(
            Operand(FORMATS[a_name], a),
            Operand(FORMATS[b_name], b),
            as_bits(d),
            Rule(25, Rounding.F32),
            numerics=numerics,
            scales=(Scales(form, sfa), Scales(form, sfb)),
        )
        assert np.array_equal(got, as_bits(expected))


@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize("name", ["ue4m3", "ue8m0"])
def test_block_dot_is_the_model(name: str, blocks: int) -> None:
    rng = np.random.default_rng(blocks)
    form = FORMATS[name]
    e2m1 = FORMATS["e2m1"]
    a, b = finite_codes(e2m1, (7, 64), rng), finite_codes(e2m1, (24, 64), rng)
    spread = (0, 127) if name == "ue4m3" else (100, 150)
    sfa = rng.integers(*spread, (7, blocks)).astype(np.uint8)
    sfb = rng.integers(*spread, (24, blocks)).astype(np.uint8)
    d = accumulators((7, 24), rng)
    scales = (Scales(form, sfa), Scales(form, sfb))
    for numerics, bits, rounding in (("hardware", 35, "f32"), ("exact", None, "f32 nearest")):
        expected = slow_model.block_dot(a, b, (name, sfa, sfb), d, bits, rounding)
        got = arithmetic.block_dot(Operand(e2m1, a), Operand(e2m1, b), scales, as_bits(d), numerics=numerics)
        assert np.array_equal(got, as_bits(expected))
        rule = Rule(bits, Rounding(rounding))
        got = arithmetic.block_dot_reference(Operand(e2m1, a), Operand(e2m1, b), scales, as_bits(d), rule)
        assert np.array_equal(got, as_bits(expected))


def test_ue4m3_ignores_its_top_bit() -> None:
    e2m1, form = FORMATS["e2m1"], FORMATS["ue4m3"]
    ones = Operand(e2m1, np.full((1, 64), 2, np.uint8))
    codes = np.array([[0x38, 0x40, 0x30, 0x08]], np.uint8)
    plain = arithmetic.block_dot(ones, ones, (Scales(form, codes), Scales(form, codes)), None)
    marked = arithmetic.block_dot(ones, ones, (Scales(form, codes | 0x80), Scales(form, codes)), None)
    assert plain[0, 0] == marked[0, 0] == np.float32(16 * (1 + 4 + 0.25 + 2**-12)).view(np.uint32)


def e4m3(value: float) -> int:
    codes = np.arange(256).astype(np.uint8)
    (found,) = np.flatnonzero(slow_model.numbers("e4m3", codes) == value)[:1]
    return int(found)


# (products as pairs of factors, old D, result): probes that ran on an H200 with wgmma m64n64k32 of E4M3.
PROBES = [
    ([(16, 16), (2**-2, 2**-3)], 0, 256.03125),
    ([(16, 16), (2**-3, 2**-3)], 0, 256),
    ([(16, 16)] + [(2**-3, 2**-3)] * 31, 0, 256),
    ([(16, 16)] + [(2**-3, -(2**-3))] * 31, 0, 256),
    ([(16, 16), (1.75 * 2**-2, 2**-3)], 0, 256.03125),
    ([(16, 16), (1.75 * 2**-2, -(2**-3))], 0, 255.96875),
    ([(24, 24), (2**-2, 2**-3), (2**-2, 2**-3)], 0, 576.0625),
    ([(24, 24), (2**-2, 2**-3)], 0, 576),
    ([(16, 16)] * 31 + [(2**-2, 2**-3)], 0, 7936),
    ([], 256 + 2**-10, 256),
    ([(16, -16)], 256 + 2**-10, 0),
    ([(2**-1, 2**-1)] * 32, 4096, 4096),
    ([(2**-1, 1)] * 32, 4096, 4112),
    ([(2**-9, 2**-9)], 0, 2**-18),
]


@pytest.mark.parametrize(("products", "old", "expected"), PROBES)
def test_probes_measured_on_hopper(products: list[tuple[float, float]], old: float, expected: float) -> None:
    a, b = np.zeros((1, 32), np.uint8), np.zeros((1, 32), np.uint8)
    for k, (x, y) in enumerate(products):
        a[0, k], b[0, k] = e4m3(x), e4m3(y)
    form = FORMATS["e4m3"]
    d = np.array([[old]], np.float32)
    for order in (np.arange(32), np.arange(32)[::-1]):  # the order of K changes nothing
        got = arithmetic.dot(
            Operand(form, a[:, order]),
            Operand(form, b[:, order]),
            as_bits(d),
            arithmetic.rule_for("wgmma", "e4m3", "f32"),
        )
        assert got.view(np.float32)[0, 0] == expected


def test_some_probes_by_their_bits() -> None:
    assert np.float32(256.03125).view(np.uint32) == 0x43800400
    assert np.float32(576.0625).view(np.uint32) == 0x44100400


@pytest.mark.parametrize("d_type", ["f32", "f16"])
@pytest.mark.parametrize("numerics", ["hardware", "exact"])
def test_infinities_and_nans(numerics: str, d_type: str) -> None:
    form = FORMATS["e5m2"]
    inf, minus_inf, nan, one, minus_one = 0x7C, 0xFC, 0x7E, 0x3C, 0xBC
    rows = [
        ([inf, one], [one, one], 0.0, np.inf),
        ([inf, one], [minus_one, one], 0.0, -np.inf),
        ([inf, minus_inf], [one, one], 0.0, np.nan),
        ([inf, one], [0, one], 0.0, np.nan),
        ([nan, one], [0, one], 0.0, np.nan),
        ([one, one], [one, one], np.inf, np.inf),
        ([one, one], [one, one], np.nan, np.nan),
        ([inf, one], [one, one], -np.inf, np.nan),
        ([0x7B, 0x7B], [0x7B, 0x7B], 0.0, 2 * 57344.0**2 if d_type == "f32" else np.inf),
    ]
    rule = arithmetic.rule_for("tcgen05", "e5m2", d_type)
    dtype = np.float16 if d_type == "f16" else np.float32
    for left, right, old, expected in rows:
        a, b = np.zeros((1, 32), np.uint8), np.zeros((1, 32), np.uint8)
        a[0, :2], b[0, :2] = left, right
        d = np.array([[old]], dtype)
        got = arithmetic.dot(Operand(form, a), Operand(form, b), as_bits(d), rule, numerics=numerics)
        if np.isnan(expected):
            assert got[0, 0] == (0x7FFF if d_type == "f16" else 0x7FFFFFFF)
        else:
            assert got.view(dtype)[0, 0] == expected


def test_special_rows_leave_the_others_alone() -> None:
    rng = np.random.default_rng(2)
    form = FORMATS["bf16"]
    a, b = finite_codes(form, (16, 16), rng), finite_codes(form, (32, 16), rng)
    d = accumulators((16, 32), rng)
    rule = arithmetic.rule_for("tcgen05", "bf16", "f32")
    clean = arithmetic.dot(Operand(form, a), Operand(form, b), as_bits(d), rule)
    a[3, 5], b[7, 2] = 0x7F80, 0x7FC0
    got = arithmetic.dot(Operand(form, a), Operand(form, b), as_bits(d), rule)
    touched = np.zeros((16, 32), bool)
    touched[3], touched[:, 7] = True, True
    assert np.array_equal(got[~touched], clean[~touched])
    assert not np.isfinite(got.view(np.float32)[touched]).any()


def test_nan_scales() -> None:
    e2m1 = FORMATS["e2m1"]
    ones = Operand(e2m1, np.full((2, 64), 2, np.uint8))
    for form, nan, one in (("ue4m3", 0x7F, 0x38), ("ue8m0", 0xFF, 127)):
        sfa = np.full((2, 4), one, np.uint8)
        sfa[1, 2] = nan
        scales = (Scales(FORMATS[form], sfa), Scales(FORMATS[form], np.full((2, 4), one, np.uint8)))
        got = arithmetic.block_dot(ones, ones, scales, None)
        assert (got[0] == np.float32(64).view(np.uint32)).all()
        assert (got[1] == 0x7FFFFFFF).all()
    eights = Operand(FORMATS["e4m3"], np.full((2, 32), 0x38, np.uint8))
    scales = tuple(Scales(FORMATS["ue8m0"], np.array([[127], [0xFF]], np.uint8)) for _ in range(2))
    got = arithmetic.dot(eights, eights, None, Rule(25, Rounding.F32), scales=scales)
    assert got[0, 0] == np.float32(32).view(np.uint32)
    assert (got.ravel()[1:] == 0x7FFFFFFF).all()


def test_fp32_subnormals_and_overflow() -> None:
    form = FORMATS["bf16"]
    tiny = 1 << 7  # 2**-126
    a, b = np.zeros((1, 16), np.uint16), np.zeros((1, 16), np.uint16)
    a[0, 0], b[0, 0] = tiny, (127 - 3) << 7  # 2**-126 * 2**-3, a subnormal
    rule = arithmetic.rule_for("tcgen05", "bf16", "f32")
    assert arithmetic.dot(Operand(form, a), Operand(form, b), None, rule)[0, 0] == 1 << 20
    a[0, 0] = b[0, 0] = 254 << 7  # 2**127 squared
    assert arithmetic.dot(Operand(form, a), Operand(form, b), None, rule)[0, 0] == 0x7F800000
    a[0, 0] |= 1 << 15
    assert arithmetic.dot(Operand(form, a), Operand(form, b), None, rule)[0, 0] == 0xFF800000


def test_exact_sums_with_exponents_far_apart() -> None:
    """Terms that cancel leave one that 96 bits cannot hold beside them."""
    form = FORMATS["bf16"]
    big, one = 250 << 7, 127 << 7
    a, b = np.zeros((2, 16), np.uint16), np.zeros((16, 16), np.uint16)
    a[0, :3] = [big, big | 1 << 15, 3 << 7]
    a[1, :2] = [one, one]
    b[:, :3] = [big, big, 3 << 7]
    b[1, :3] = [big, big, one]
    d = np.zeros((2, 16), np.float32)
    rule = arithmetic.rule_for("tcgen05", "bf16", "f32")
    got = arithmetic.dot(Operand(form, a), Operand(form, b), as_bits(d), rule, numerics="exact")
    expected = slow_model.dot(("bf16", a), ("bf16", b), d, None, "f32 nearest")
    assert expected[0, 1] == 2.0**-124
    assert np.array_equal(got, as_bits(expected))


def test_integers_wrap_or_saturate() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (8, 32)).astype(np.int8), rng.integers(0, 256, (16, 32)).astype(np.uint8)
    d = np.where(rng.random((8, 16)) < 0.5, 2**31 - 5, -(2**31) + 3).astype(np.int32)
    true = a.astype(object) @ b.T.astype(object) + d.astype(object)
    wrapped = [((int(x) + 2**31) % 2**32 - 2**31) for x in true.ravel()]
    clipped = [min(max(int(x), -(2**31)), 2**31 - 1) for x in true.ravel()]
    assert arithmetic.integer_dot(a, b, d).view(np.int32).ravel().tolist() == wrapped
    assert arithmetic.integer_dot(a, b, d, saturate=True).view(np.int32).ravel().tolist() == clipped


def test_negation_flips_every_sign() -> None:
    rng = np.random.default_rng(1)
    form = FORMATS["f16"]
    a, b = finite_codes(form, (8, 16), rng), finite_codes(form, (8, 16), rng)
    rule = arithmetic.rule_for("wgmma", "f16", "f32")
    plain = arithmetic.dot(Operand(form, a), Operand(form, b), None, rule).view(np.float32)
    negated = arithmetic.dot(Operand(form, a, negate=True), Operand(form, b), None, rule).view(np.float32)
    assert np.array_equal(plain, -negated)


def test_kernels_are_compiled_once() -> None:
    variant = native.Variant(blocks=False, bits=32)
    assert native.kernel(variant) is native.kernel(variant)
