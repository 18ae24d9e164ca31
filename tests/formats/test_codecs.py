from collections.abc import Callable
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.fp4 import (
    as_float4_x2,
    decode_e2m1,
    decode_fp4,
    encode_e2m1,
    pack_fp4,
    packed_bytes,
    unpack_fp4,
)
from megamoe_jit.formats.fp8 import (
    as_e4m3,
    as_e8m0,
    decode_e4m3,
    decode_e5m2,
    decode_ue4m3,
    decode_ue8m0,
    encode_e4m3,
    encode_e5m2,
    encode_ue4m3,
    encode_ue8m0,
)
from megamoe_jit.formats.rounding import float32_for_rounding, round_to_bfloat16

ALL_BYTES = torch.arange(256, dtype=torch.uint8)
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-149), 2.0**-126, 2.0**-127, 3.4e38, -3.4e38]


def midpoints(values: np.ndarray) -> np.ndarray:
    """All values, all ties between neighbours, and the numbers next to each, in float64."""
    finite = np.unique(values[np.isfinite(values)].astype(np.float64))
    largest_step = finite[-1] - finite[-2]
    points = np.concatenate(
        [finite, (finite[1:] + finite[:-1]) / 2, [finite[-1] + largest_step / 2, finite[-1] + largest_step]]
    )
    return np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf), -points])


def float32_inputs(values: np.ndarray) -> np.ndarray:
    """Every bfloat16, two million random bit patterns, a million normal numbers, and all ties with their neighbours."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 2_000_000, dtype=np.uint32).view(np.float32)
    brain = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    normal = rng.normal(0, 4, 1_000_000).astype(np.float32)
    ties = midpoints(values).astype(np.float32)
    near = np.concatenate([np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))])
    return np.concatenate([np.array(SPECIAL, np.float32), bits, brain, normal, ties, near])


def float64_inputs(values: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    normal = rng.normal(0, 4, 500_000) * 2.0 ** rng.integers(-12, 12, 500_000)
    return np.concatenate([np.array(SPECIAL), normal, midpoints(values), [1e300, -1e300, 1e-300, 5e-324]])


def by_ml_dtypes(values: np.ndarray, dtype: type) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(values.astype(dtype).view(np.uint8))


CODES = {
    "e2m1": (encode_e2m1, ml_dtypes.float4_e2m1fn, 6.0),
    "e4m3": (encode_e4m3, ml_dtypes.float8_e4m3fn, 448.0),
    "e5m2": (encode_e5m2, ml_dtypes.float8_e5m2, 57344.0),
}


def by_definition(values: np.ndarray, dtype: type, largest: float, sign_bit: int) -> torch.Tensor:
    """Nearest magnitude, ties to the even code, by comparison with exact midpoints (ml_dtypes rounds float64 twice)."""
    magnitudes = np.arange(sign_bit, dtype=np.uint8).view(dtype).astype(np.float64)
    magnitudes = magnitudes[magnitudes <= largest]
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    low = np.searchsorted(middles, np.abs(values), side="left")  # a tie counts as below the middle
    is_tie = middles[np.minimum(low, len(middles) - 1)] == np.abs(values)
    codes = low + (is_tie & (low % 2 == 1))
    return torch.from_numpy((codes | np.where(np.signbit(values), sign_bit, 0)).astype(np.uint8))


@pytest.mark.parametrize("name", CODES)
def test_float32_encodes_as_ml_dtypes_does_and_saturates(name: str) -> None:
    encode, dtype, largest = CODES[name]
    values = float32_inputs(np.arange(16 if name == "e2m1" else 256, dtype=np.uint8).view(dtype).astype(np.float64))
    codes = encode(torch.from_numpy(values)).view(torch.uint8)
    nan = torch.from_numpy(np.isnan(values))
    expected = by_ml_dtypes(np.clip(values, -largest, largest), dtype)
    assert torch.equal(codes[~nan], expected[~nan])
    assert nan.any()
    assert torch.equal(codes[nan].unique(), torch.tensor([0x7 if name == "e2m1" else 0x7F], dtype=torch.uint8))


@pytest.mark.parametrize("name", CODES)
def test_float64_encodes_to_the_nearest_value(name: str) -> None:
    encode, dtype, largest = CODES[name]
    values = float64_inputs(np.arange(16 if name == "e2m1" else 256, dtype=np.uint8).view(dtype).astype(np.float64))
    values = values[~np.isnan(values)]
    codes = encode(torch.from_numpy(values)).view(torch.uint8)
    assert torch.equal(codes, by_definition(values, dtype, largest, 8 if name == "e2m1" else 128))


@pytest.mark.parametrize(
    ("encode", "dtype"), [(encode_e4m3, ml_dtypes.float8_e4m3fn), (encode_e5m2, ml_dtypes.float8_e5m2)]
)
def test_encoding_without_saturation_agrees_with_ml_dtypes(encode: Callable[..., torch.Tensor], dtype: type) -> None:
    values = float32_inputs(np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64))
    codes = encode(torch.from_numpy(values), satfinite=False).view(torch.uint8)
    nan = torch.from_numpy(np.isnan(values))
    assert torch.equal(codes[~nan], by_ml_dtypes(values, dtype)[~nan])
    assert torch.equal(codes[nan].unique(), torch.tensor([0x7F], dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("encode", [encode_e2m1, encode_e4m3, encode_e5m2, encode_ue4m3, encode_ue8m0])
def test_every_16_bit_float_encodes_like_its_float32(encode: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    assert torch.equal(encode(values).view(torch.uint8), encode(values.float()).view(torch.uint8))


@pytest.mark.parametrize(
    ("decode", "dtype"),
    [
        (decode_e4m3, ml_dtypes.float8_e4m3fn),
        (decode_e5m2, ml_dtypes.float8_e5m2),
        (decode_ue8m0, ml_dtypes.float8_e8m0fnu),
    ],
)
@pytest.mark.parametrize("out", [torch.float32, torch.float64])
def test_all_bytes_decode_as_ml_dtypes_does(decode: Callable[..., torch.Tensor], dtype: type, out: torch.dtype) -> None:
    expected = ALL_BYTES.numpy().view(dtype).astype(np.float64)
    decoded = decode(ALL_BYTES, out)
    assert decoded.dtype == out
    np.testing.assert_array_equal(decoded.double().numpy(), expected)
    np.testing.assert_array_equal(
        np.signbit(decoded.numpy())[~np.isnan(expected)], np.signbit(expected)[~np.isnan(expected)]
    )
    assert torch.equal(decode(ALL_BYTES.view(torch.int8), out).isnan(), decoded.isnan())


def test_all_e2m1_codes_decode_as_ml_dtypes_does() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    expected = codes.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert decode_e2m1(codes).numpy().tobytes() == expected.tobytes()  # bytes, since -0 == 0
    assert torch.equal(decode_e2m1(codes | 0xF0), decode_e2m1(codes))
    assert decode_e2m1(codes, torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(encode_e2m1(decode_e2m1(codes)), codes)


def test_e4m3_codes_survive_a_round_trip() -> None:
    numbers = ALL_BYTES[(ALL_BYTES & 0x7F) != 0x7F]
    assert torch.equal(encode_e4m3(decode_e4m3(numbers)).view(torch.uint8), numbers)
    assert torch.equal(encode_ue4m3(decode_ue4m3(numbers)).view(torch.uint8), numbers & 0x7F)


def test_ue4m3_has_no_sign() -> None:
    assert torch.equal(decode_ue4m3(ALL_BYTES | 0x80).nan_to_num(), decode_ue4m3(ALL_BYTES & 0x7F).nan_to_num())
    bits = encode_ue4m3(torch.tensor([-1.0, -0.0, -np.inf, np.nan, 500.0, 2.0**-10, 2.0**-9])).view(torch.uint8)
    assert bits.tolist() == [0, 0, 0, 0x7F, 0x7E, 0, 1]


def ue8m0_expected(value: float, rounding: str) -> int:
    """The code by exact rational arithmetic."""
    magnitude = abs(value)
    if np.isnan(magnitude):
        return 0xFF
    if np.isinf(magnitude):
        return 0xFE
    exact = Fraction(magnitude)
    code = next((c for c in range(254, -1, -1) if Fraction(2) ** (c - 127) <= exact), 0)
    below = Fraction(2) ** (code - 127)
    if exact > below and (rounding == "rp" or (rounding == "rn" and exact >= below * 3 / 2)):
        code += 1
    return min(code, 254)


@pytest.mark.parametrize("rounding", ["rp", "rz", "rn"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ue8m0_encodes_by_exact_arithmetic(rounding: str, dtype: type) -> None:
    powers = 2.0 ** np.array([-149, -140, -128, -127, -126, -125, -6, -1, 0, 1, 5, 100, 126, 127], np.float64)
    points = np.concatenate([powers, powers * 1.5, powers * 1.75])
    points = points[points <= np.finfo(np.float32).max].astype(dtype)
    near = [np.nextafter(points, dtype(np.inf)), np.nextafter(points, dtype(0))]
    values = np.concatenate([points, *near, -points, np.array(SPECIAL, dtype)])
    expected = [ue8m0_expected(float(value), rounding) for value in values]
    assert encode_ue8m0(torch.from_numpy(values), rounding).view(torch.uint8).tolist() == expected


def test_ue8m0_nearest_agrees_with_ml_dtypes_on_normal_floats() -> None:
    # Between 2^-127 and 1.5 * 2^-127 ml_dtypes takes the farther power of two; the exact test above covers subnormals.
    values = np.random.default_rng(2).integers(0x00800000, 0x7F000000, 2_000_000, dtype=np.uint32).view(np.float32)
    assert torch.equal(
        encode_ue8m0(torch.from_numpy(values), "rn").view(torch.uint8), by_ml_dtypes(values, ml_dtypes.float8_e8m0fnu)
    )


def test_ue8m0_codes_survive_a_round_trip_in_every_rounding() -> None:
    for rounding in ("rp", "rz", "rn"):
        assert torch.equal(encode_ue8m0(decode_ue8m0(ALL_BYTES), rounding).view(torch.uint8), ALL_BYTES)


@pytest.mark.parametrize("shift", [2.0**-40, -(2.0**-40)])
def test_float64_is_rounded_once(shift: float) -> None:
    """float32 would turn these into ties, and ties into even codes."""
    assert decode_e2m1(
        encode_e2m1(torch.tensor([0.25 + shift, 2.5 + shift, 5 + shift], dtype=torch.float64))
    ).tolist() == ([0.5, 3.0, 6.0] if shift > 0 else [0.0, 2.0, 4.0])
    assert float(decode_e4m3(encode_e4m3(torch.tensor(17.0 + shift * 16, dtype=torch.float64)))) == (
        18.0 if shift > 0 else 16.0
    )
    tie = torch.tensor(1 + 2.0**-8 + shift, dtype=torch.float64)
    assert float(round_to_bfloat16(tie)) == (1 + 2.0**-7 if shift > 0 else 1.0)


def test_round_to_bfloat16_is_right_in_one_step() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=200_000) * 2.0 ** rng.integers(-136, 120, 200_000)
    ties = (rng.integers(0x0080, 0x7F00, 10_000).astype(np.uint32) << 16 | 0x8000).view(np.float32).astype(np.float64)
    values = np.concatenate([values, ties, -ties, np.nextafter(ties, np.inf), np.nextafter(ties, 0)])
    _, exponent = np.frexp(values)
    last_bit = np.maximum(exponent - 8, -133)
    expected = np.ldexp(np.rint(np.ldexp(values, -last_bit)), last_bit)
    np.testing.assert_array_equal(round_to_bfloat16(torch.from_numpy(values)).numpy(), expected)
    special = torch.tensor([np.inf, -np.inf, np.nan, 1e300, -1e300, 0.0], dtype=torch.float64)
    assert torch.equal(
        round_to_bfloat16(special).nan_to_num(7.0),
        torch.tensor([np.inf, -np.inf, 7.0, np.inf, -np.inf, 0.0]).double().nan_to_num(7.0),
    )


def test_round_to_bfloat16_agrees_with_ml_dtypes_on_float32() -> None:
    values = float32_inputs(np.arange(3.0))
    with np.errstate(all="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(round_to_bfloat16(torch.from_numpy(values)).numpy(), expected)


def test_packing_puts_even_elements_into_low_nibbles() -> None:
    codes = torch.tensor([[0x1, 0x2, 0xF, 0x0], [0x7, 0x8, 0x3, 0x4]], dtype=torch.uint8)
    packed = pack_fp4(codes)
    assert packed.tolist() == [[0x21, 0x0F], [0x87, 0x43]]
    assert torch.equal(unpack_fp4(packed), codes)
    assert torch.equal(decode_fp4(packed), decode_e2m1(codes))
    assert torch.equal(pack_fp4(codes | 0xA0), packed), "upper nibbles do not count"


def test_all_bytes_unpack_and_pack_again() -> None:
    assert torch.equal(pack_fp4(unpack_fp4(ALL_BYTES)), ALL_BYTES)
    assert torch.equal(decode_fp4(ALL_BYTES, torch.float64), decode_e2m1(unpack_fp4(ALL_BYTES), torch.float64))


def test_views_share_storage() -> None:
    packed = ALL_BYTES.clone().view(16, 16)
    assert as_float4_x2(packed).dtype == torch.float4_e2m1fn_x2
    assert as_float4_x2(packed).shape == packed.shape
    for given in (packed, packed.view(torch.int8), as_float4_x2(packed)):
        assert packed_bytes(given).data_ptr() == packed.data_ptr()
        assert torch.equal(packed_bytes(given), packed)
    assert as_e4m3(packed).dtype == torch.float8_e4m3fn
    assert as_e8m0(packed.view(torch.int8)).dtype == torch.float8_e8m0fnu
    assert as_e4m3(as_e4m3(packed)).data_ptr() == packed.data_ptr()


def test_strided_values_encode_like_contiguous_ones() -> None:
    values = torch.randn(64, 48)
    assert torch.equal(encode_e2m1(values.T), encode_e2m1(values).T)
    assert torch.equal(encode_e4m3(values[:, ::3]).float(), encode_e4m3(values).float()[:, ::3])
    assert encode_e2m1(torch.empty(0, 4)).shape == (0, 4)
    assert decode_fp4(torch.empty(3, 0, dtype=torch.uint8)).shape == (3, 0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: encode_e2m1(torch.ones(4, dtype=torch.int32)), "dtype torch.int32"),
        (lambda: float32_for_rounding(torch.ones(4, dtype=torch.uint8)), "float of 16, 32 or 64 bits is needed"),
        (lambda: pack_fp4(torch.zeros(3, dtype=torch.uint8)), "even K is needed"),
        (lambda: pack_fp4(torch.zeros(4)), "uint8"),
        (lambda: packed_bytes(torch.zeros(4)), "uint8, int8 or float4_e2m1fn_x2 is needed"),
        (lambda: as_e4m3(torch.zeros(4)), "float8_e4m3fn or its bytes"),
        (lambda: as_e8m0(torch.zeros(4, dtype=torch.float8_e4m3fn)), "float8_e8m0fnu or its bytes"),
        (lambda: encode_ue8m0(torch.ones(1), "up"), "Use rp"),  # type: ignore[arg-type]
    ],
)
def test_bad_inputs_are_refused_in_words(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        call()
