"""Directed rounding of f64, in integers: there is no wider float to be exact in.

Magnitudes are 128-bit integers, two i64 each, with a sticky flag for what was shifted out.
"""

from __future__ import annotations

from megamoe_jit.emulator.isa.integer import product, smaller
from megamoe_jit.emulator.isa.lanes import Lanes

_SIGN = 1 << 63
_MANTISSA = (1 << 52) - 1
_INFINITY = 0x7FF << 52
_BIAS = 1023
_TERM_TOP, _SUM_TOP = 125, 126
"""Bits that the leading ones of terms and of their sum are moved to; a sum of two terms reaches one bit further."""


class _Wide:
    """A 128-bit magnitude, and whether anything is below it."""

    def __init__(self, high: Lanes, low: Lanes, sticky: Lanes) -> None:
        self.high = high
        self.low = low
        self.sticky = sticky

    def leading_zeros(self) -> Lanes:
        """Count zeros above the highest one; 128 for zero."""
        return self.high.eq(0).where(self.low.leading_zeros() + 64, self.high.leading_zeros())

    def is_zero(self) -> Lanes:
        return (self.high | self.low).eq(0)

    def shifted_left(self, count: Lanes) -> _Wide:
        """Shift by 0 to 127; nothing is lost, as the caller knows."""
        far, by = count.uge(64), count & 63
        carried = (self.low >> 1) >> (63 - by)
        high = far.where(self.low << by, (self.high << by) | carried)
        return _Wide(high, far.where(0, self.low << by), self.sticky)

    def shifted_right(self, count: Lanes) -> _Wide:
        """Shift by any number; what falls out sticks."""
        count = smaller(count, count.const(127), False)
        far, by = count.uge(64), count & 63
        lost_low = self.low & ((1 << by) - 1)
        lost_high = self.high & ((1 << by) - 1)
        lost = far.where(self.low | lost_high, lost_low).ne(0)
        carried = (self.high << 1) << (63 - by)
        low = far.where(self.high >> by, (self.low >> by) | carried)
        return _Wide(far.where(0, self.high >> by), low, self.sticky | lost)

    def __add__(self, other: _Wide) -> _Wide:
        low = self.low + other.low
        carry = low.ult(self.low).zext("i64")
        return _Wide(self.high + other.high + carry, low, self.sticky | other.sticky)

    def __sub__(self, other: _Wide) -> _Wide:
        """Subtract what is not larger; where `other` has something below, one more goes, and the rest sticks."""
        extra = other.sticky.zext("i64")
        low = self.low - other.low
        borrow = self.low.ult(other.low).zext("i64")
        borrow = borrow + low.ult(extra).zext("i64")
        return _Wide(self.high - other.high - borrow, low - extra, self.sticky | other.sticky)

    def less(self, other: _Wide) -> Lanes:
        return self.high.ult(other.high) | (self.high.eq(other.high) & self.low.ult(other.low))


def _choose(condition: Lanes, a: _Wide, b: _Wide) -> _Wide:
    return _Wide(
        condition.where(a.high, b.high), condition.where(a.low, b.low), (condition & a.sticky) | (~condition & b.sticky)
    )


def _unpacked(bits: Lanes) -> tuple[Lanes, Lanes]:
    """Return significand (the leading one at bit 52, 0 for zero) and exponent field (below 1 for subnormals)."""
    fraction, field = bits & _MANTISSA, (bits >> 52) & 0x7FF
    shift = fraction.leading_zeros() - 11
    is_small = field.eq(0)
    tiny = fraction << (shift & 63)
    return is_small.where(tiny, fraction | (1 << 52)), is_small.where(1 - shift, field)


def _aligned(value: _Wide, exponent: Lanes, top: int) -> tuple[_Wide, Lanes]:
    """Move the leading one up to bit `top`; `exponent` is that of bit 0. Zero gets a very small one."""
    is_zero = value.is_zero()
    shift = is_zero.where(0, value.leading_zeros() - (127 - top))
    return value.shifted_left(shift), is_zero.where(-100000, exponent - shift)


def _rounded(value: _Wide, exponent: Lanes, negative: Lanes, mode: str) -> Lanes:
    """Return the bits of a magnitude times 2**exponent, rounded: rz, rm, rp, or up (away from zero)."""
    value, exponent = _aligned(value, exponent, _SUM_TOP)
    # Exponent field of the result; subnormals give up bits until it is 1.
    field = exponent + (_SUM_TOP + _BIAS)
    below = field.slt(1).where(1 - field, 0)
    dropped = below + (_SUM_TOP - 52)
    cut = value.shifted_right(smaller(dropped, dropped.const(127), False))
    magnitude = cut.low + field.slt(1).where(0, (field - 1) << 52)
    inexact = cut.sticky
    away = {"rz": None, "rm": negative, "rp": ~negative, "up": inexact}[mode]
    if away is not None:
        magnitude = magnitude + (inexact & away).zext("i64")
    over = field.sgt(2046) | magnitude.uge(_INFINITY)
    largest = magnitude.const(_INFINITY - 1)
    stopped = largest if away is None else away.where(magnitude.const(_INFINITY), largest)
    return over.where(stopped, magnitude)


def multiply_add(a: Lanes, b: Lanes, c: Lanes, mode: str) -> Lanes:
    """Return the f64 bits (i64) of a * b + c of finite f64 bits, rounded once.

    Modes are rz, rm, rp, and "up", which keeps the sign of all that is not zero.
    """
    (ma, ea), (mb, eb), (mc, ec) = _unpacked(a), _unpacked(b), _unpacked(c)
    low, high = product(ma, mb, False)
    nothing = low.ne(low)
    # The product's bit 0 weighs 2**(ea - 1075 + eb - 1075), the addend's 2**(ec - 1075).
    x, ex = _aligned(_Wide(high, low, nothing), ea + eb - 2 * 1075, _TERM_TOP)
    y, ey = _aligned(_Wide(mc.const(0), mc, nothing), ec - 1075, _TERM_TOP)
    x_sign, y_sign = ((a ^ b) & _SIGN).ne(0), (c & _SIGN).ne(0)
    # The larger one first: by exponent, then by magnitude.
    swap = ex.slt(ey) | (ex.eq(ey) & x.less(y))
    first, second = _choose(swap, y, x), _choose(swap, x, y)
    e_first, e_second = swap.where(ey, ex), swap.where(ex, ey)
    sign = (swap & y_sign) | (~swap & x_sign)
    second = second.shifted_right(e_first - e_second)
    opposite = x_sign ^ y_sign
    total = _choose(opposite, first - second, first + second)
    is_zero = total.is_zero() & ~total.sticky
    zero_sign = (x_sign & y_sign) | (opposite if mode == "rm" else nothing)
    negative = (is_zero & zero_sign) | (~is_zero & sign)
    magnitude = is_zero.where(0, _rounded(total, e_first, sign, mode))
    return magnitude | (negative.zext("i64") << 63)


def corrected(nearest: Lanes, error: Lanes, mode: str) -> Lanes:
    """Turn an f64 rounded to nearest into the one rounded by `mode`; `error` (f64) has the sign of exact - rounded."""
    bits = nearest.cast("i64")
    negative = bits.slt(0)
    above, below = error.compare("ogt", 0.0), error.compare("olt", 0.0)
    # One step away from zero is one more, towards zero one less, of the bits.
    larger, less = (above & ~negative) | (below & negative), (below & ~negative) | (above & negative)
    if mode == "rz":
        return (bits - less.zext("i64")).cast("f64")
    away = negative if mode == "rm" else ~negative
    return (bits + (larger & away).zext("i64") - (less & ~away).zext("i64")).cast("f64")


def _finite(value: Lanes) -> Lanes:
    """Whether an f64 is a number other than infinity."""
    return (value.cast("i64") & _INFINITY).ne(_INFINITY)


def _limited(value: Lanes) -> Lanes:
    """Replace an infinity, which rounding made, by the largest number."""
    bits = value.cast("i64")
    return (bits & (_SIGN - 1)).eq(_INFINITY).where(bits - 1, bits).cast("f64")


def add(a: Lanes, b: Lanes, mode: str) -> Lanes:
    """Add f64; NaN and infinities as to nearest."""
    exact = multiply_add(a.cast("i64"), a.const(1.0).cast("i64"), b.cast("i64"), mode)
    return (_finite(a) & _finite(b)).where(exact, (a + b).cast("i64")).cast("f64")


def multiply(a: Lanes, b: Lanes, mode: str) -> Lanes:
    """Multiply f64; a zero of the product's own sign is added, so that a zero product keeps it."""
    x, y = a.cast("i64"), b.cast("i64")
    exact = multiply_add(x, y, (x ^ y) & _SIGN, mode)
    return (_finite(a) & _finite(b)).where(exact, (a * b).cast("i64")).cast("f64")


def fused(a: Lanes, b: Lanes, c: Lanes, mode: str) -> Lanes:
    """Multiply and add f64, rounded once."""
    exact = multiply_add(a.cast("i64"), b.cast("i64"), c.cast("i64"), mode)
    finite = _finite(a) & _finite(b) & _finite(c)
    return finite.where(exact, a.fma(b, c).cast("i64")).cast("f64")


def divide(a: Lanes, b: Lanes, mode: str) -> Lanes:
    """Divide f64: the remainder's sign says which way the nearest quotient is off."""
    nearest = a / b
    quotient = _limited(nearest)
    remainder = multiply_add((-quotient).cast("i64"), b.cast("i64"), a.cast("i64"), "up")
    error = (remainder ^ (b.cast("i64") & _SIGN)).cast("f64")
    usual = _finite(a) & _finite(b) & b.compare("une", 0.0)
    return usual.where(corrected(quotient, error, mode).cast("i64"), nearest.cast("i64")).cast("f64")


def root(a: Lanes, mode: str) -> Lanes:
    """Square root of f64."""
    nearest = a.sqrt()
    remainder = multiply_add((-nearest).cast("i64"), nearest.cast("i64"), a.cast("i64"), "up")
    usual = _finite(a) & a.compare("ogt", 0.0)
    exact = corrected(nearest, remainder.cast("f64"), mode)
    return usual.where(exact.cast("i64"), nearest.cast("i64")).cast("f64")
