"""Small floating-point formats and f32, as arithmetic on bits: the same bits from every engine."""

from __future__ import annotations

from dataclasses import dataclass

from megamoe_jit.emulator.isa.lanes import Lanes

F32_NAN = 0x7FFFFFFF
F32_INFINITY = 0x7F800000
F32_SIGN = 0x80000000


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of sign, exponent and mantissa, most significant first, no wider than f32.

    Attributes:
        exponent_bits: of the code.
        mantissa_bits: of the code.
        bias: of the exponent.
        max_finite: code of the largest magnitude.
        infinity: code, or None.
        nan: code that a NaN becomes: a NaN where the format has one, else what PTX says instead.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    max_finite: int
    infinity: int | None
    nan: int

    @property
    def bits(self) -> int:
        """Width of a code."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def sign(self) -> int:
        """The sign's bit."""
        return 1 << (self.bits - 1)

    @property
    def dropped(self) -> int:
        """How many bits of f32's mantissa it does without."""
        return 23 - self.mantissa_bits

    @property
    def lowest_exponent(self) -> int:
        """Exponent field of f32 for the smallest normal magnitude."""
        return 128 - self.bias


F16 = Format(exponent_bits=5, mantissa_bits=10, bias=15, max_finite=0x7BFF, infinity=0x7C00, nan=0x7FFF)
BF16 = Format(exponent_bits=8, mantissa_bits=7, bias=127, max_finite=0x7F7F, infinity=0x7F80, nan=0x7FFF)
# Codes of tf32 are those of 19 bits; a register holds them in its upper bits.
TF32 = Format(exponent_bits=8, mantissa_bits=10, bias=127, max_finite=0x3FBFF, infinity=0x3FC00, nan=0x3FFFF)
E4M3 = Format(exponent_bits=4, mantissa_bits=3, bias=7, max_finite=0x7E, infinity=None, nan=0x7F)
E5M2 = Format(exponent_bits=5, mantissa_bits=2, bias=15, max_finite=0x7B, infinity=0x7C, nan=0x7F)
E2M3 = Format(exponent_bits=2, mantissa_bits=3, bias=1, max_finite=0x1F, infinity=None, nan=0x1F)
E3M2 = Format(exponent_bits=3, mantissa_bits=2, bias=3, max_finite=0x1F, infinity=None, nan=0x1F)
E2M1 = Format(exponent_bits=2, mantissa_bits=1, bias=1, max_finite=0x7, infinity=None, nan=0x7)

FORMATS = {
    "f16": F16, "bf16": BF16, "tf32": TF32, "e4m3": E4M3, "e5m2": E5M2, "e2m3": E2M3, "e3m2": E3M2, "e2m1": E2M1,
}  # fmt: skip


def is_nan(bits: Lanes) -> Lanes:
    """Whether f32 bits (i32) are a NaN."""
    return (bits & 0x7FFFFFFF).ugt(F32_INFINITY)


def decode(code: Lanes, format: Format) -> Lanes:
    """Return the f32 of a code (i32, bits above the code's ignored).

    Exact. A NaN becomes 0x7fffffff, but from bf16 keeps its bits (that conversion is a shift on the hardware too).
    """
    bits = code << (32 - format.bits)
    if format is BF16:
        return bits.cast("f32")
    magnitude = (bits & 0x7FFFFFFF) >> (32 - format.bits)
    # Mantissa in place, exponent still with the small bias: a multiplication mends it, for subnormals too.
    value = ((magnitude << format.dropped).cast("f32") * 2.0 ** (127 - format.bias)).cast("i32")
    if format.infinity is not None:
        value = magnitude.eq(format.infinity).where(F32_INFINITY, value)
    value = value | (bits & F32_SIGN)
    if format.infinity is not None:
        value = magnitude.ugt(format.infinity).where(F32_NAN, value)
    elif format.nan != format.max_finite:
        value = magnitude.eq(format.nan).where(F32_NAN, value)
    return value.cast("f32")


def _nearest(magnitude: Lanes, format: Format) -> Lanes:
    """Round f32 magnitude bits to the nearest code, ties to even; codes past the largest are right as integers."""
    drop = format.dropped
    rounding = ((1 << (drop - 1)) - 1) - ((127 - format.bias) << 23)
    normal = (magnitude + rounding + ((magnitude >> drop) & 1)) >> drop
    if format.lowest_exponent == 1:
        return normal
    # Adding a number whose last place is the smallest subnormal rounds there, in hardware, to nearest even.
    exponent = 151 - format.bias - format.mantissa_bits
    tiny = (magnitude.cast("f32") + 2.0 ** (exponent - 127)).cast("i32") - (exponent << 23)
    return magnitude.ult(format.lowest_exponent << 23).where(tiny, normal)


def _truncated(magnitude: Lanes, format: Format) -> tuple[Lanes, Lanes, Lanes]:
    """Cut f32 magnitude bits to a code; return it, the bits cut off, and how many those are (40 for all above)."""
    exponent = magnitude >> 23
    is_normal = exponent.ne(0)
    significand = (magnitude & 0x7FFFFF) | (is_normal.zext("i32") << 23)
    exponent = is_normal.where(exponent, 1)
    below = format.lowest_exponent - exponent
    is_small = below.sgt(0)
    far = 40 - format.dropped
    cut = is_small.where(below.sgt(far).where(far, below), 0) + format.dropped
    shift = cut.ugt(31).where(31, cut)
    base = is_small.where(0, (exponent - format.lowest_exponent) << format.mantissa_bits)
    return (significand >> shift) + base, significand & ((1 << shift) - 1), cut


def encode(
    value: Lanes,
    format: Format,
    rounding: str = "rn",
    *,
    satfinite: bool = False,
    relu: bool = False,
    random: tuple[Lanes, int] | None = None,
) -> Lanes:
    """Return the code (i32) of an f32 value.

    Args:
        value: f32.
        format: of the code.
        rounding: rn, rna (ties away from zero), rz, rm, rp, or rs (stochastic).
        satfinite: overflow and infinity become the largest magnitude; formats without infinity need it.
        relu: negative values, -0 too, become +0; NaN stays NaN.
        random: for rs: integers (i32) and their width; a carry of their sum with the bits cut off rounds up.
    """
    bits = value.cast("i32")
    magnitude = bits & 0x7FFFFFFF
    negative = bits.slt(0)
    assert satfinite or format.infinity is not None, "what has no infinity saturates"
    beyond: Lanes | int = format.max_finite if satfinite or format.infinity is None else format.infinity
    if rounding == "rn":
        code = _nearest(magnitude, format)
    elif rounding == "rna":
        assert format.lowest_exponent == 1, "only tf32 is rounded so"
        code = (magnitude + (1 << (format.dropped - 1))) >> format.dropped
    else:
        code, rest, cut = _truncated(magnitude, format)
        if rounding == "rs":
            assert random is not None, "stochastic rounding needs its bits"
            number, width = random
            fraction = rest.zext("i64") << (40 - cut).zext("i64")
            up = (fraction + (number.zext("i64") << (40 - width))).uge(1 << 40)
            code = code + up.zext("i32")
        else:
            away = {"rz": None, "rp": ~negative, "rm": negative}[rounding]
            if away is not None:
                code = code + (rest.ne(0) & away).zext("i32")
            if not satfinite and format.infinity is not None:
                # A finite value too large stays finite unless it is rounded away from zero.
                stays = magnitude.ult(F32_INFINITY) if away is None else magnitude.ult(F32_INFINITY) & ~away
                beyond = stays.where(code.const(format.max_finite), format.infinity)
    code = code.ugt(format.max_finite).where(beyond, code)
    code = negative.where(0, code) if relu else code | ((bits >> (32 - format.bits)) & format.sign)
    return is_nan(bits).where(format.nan, code)
