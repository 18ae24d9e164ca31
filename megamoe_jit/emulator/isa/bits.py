"""Bit fields, bit counts, logic, shifts, and permutations of bytes."""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001

from __future__ import annotations

from megamoe_jit.emulator.isa.integer import is_signed, joined
from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.table import Form, pure

_ARITHMETIC = "Integer Arithmetic Instructions: "
_LOGIC = "Logic and Shift Instructions: "
_NONE = 0xFFFFFFFF


def low_mask(calc: Calc, type: str, count: Lanes) -> Lanes:
    """Return `count` ones (an i32, any value) at the bottom of a `type`; all ones from its width on."""
    bits = int(type[1:])
    full = count.uge(bits)
    ones = calc.const(type, 1) << full.where(0, count).resize(type)
    return full.where(calc.const(type, -1), ones - 1)


def shift_left(a: Lanes, count: Lanes) -> Lanes:
    """Shift left by an i32 of any value; zero from the width on."""
    out = count.uge(a.bits)
    return out.where(0, a << out.where(0, count).resize(a.type))


def shift_right(a: Lanes, count: Lanes) -> Lanes:
    """Shift right without sign by an i32 of any value; zero from the width on."""
    out = count.uge(a.bits)
    return out.where(0, a >> out.where(0, count).resize(a.type))


def shift_right_signed(a: Lanes, count: Lanes) -> Lanes:
    """Shift right with sign by an i32 of any value; the sign from the width on."""
    return a.ashr(count.uge(a.bits).where(a.bits - 1, count).resize(a.type))


@pure("popc.<type>", types="b32 b64", dst="u32", src="<type>", section=_ARITHMETIC + "popc")
def popc(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Count of ones."""
    return a.popcount().resize("i32")


@pure("clz.<type>", types="b32 b64", dst="u32", src="<type>", section=_ARITHMETIC + "clz")
def clz(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Count of zeros above the highest one."""
    return a.leading_zeros().resize("i32")


@pure("bfind{.shiftamt}.<type>", types="u32 u64 s32 s64", dst="u32", src="<type>", section=_ARITHMETIC + "bfind")
def bfind(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Position of the highest bit that is not a copy of the sign, or how far it is from the top; all ones if none."""
    if is_signed(form.type):
        a = a ^ a.ashr(a.bits - 1)
    zeros = a.leading_zeros().resize("i32")
    return zeros.eq(a.bits).where(_NONE, zeros if form.has("shiftamt") else a.bits - 1 - zeros)


@pure("brev.<type>", types="b32 b64", dst="<type>", src="<type>", section=_ARITHMETIC + "brev")
def brev(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Mirror the bits."""
    return a.reverse_bits()


@pure("bfe.<type>", types="u32 u64 s32 s64", dst="<type>", src="<type> u32 u32", section=_ARITHMETIC + "bfe")
def bfe(calc: Calc, form: Form, a: Lanes, position: Lanes, length: Lanes) -> Lanes:
    """Extract a field; bits past the top are zeros, or copies of the sign."""
    position, length = position & 255, length & 255
    if not is_signed(form.type):
        return shift_right(a, position) & low_mask(calc, a.type, length)
    field = shift_right_signed(a, position)
    unused = length.uge(a.bits).where(0, a.bits - length) & (a.bits - 1)
    up = unused.resize(a.type)
    return length.eq(0).where(0, (field << up).ashr(up))


@pure("bfi.<type>", types="b32 b64", dst="<type>", src="<type> <type> u32 u32", section=_ARITHMETIC + "bfi")
def bfi(calc: Calc, form: Form, a: Lanes, b: Lanes, position: Lanes, length: Lanes) -> Lanes:
    """Put the low bits of a into a field of b."""
    position, length = position & 255, length & 255
    mask = shift_left(low_mask(calc, a.type, length), position)
    return (shift_left(a, position) & mask) | (b & ~mask)


@pure("fns.b32", dst="b32", src="b32 u32 s32", section=_ARITHMETIC + "fns")
def fns(calc: Calc, form: Form, mask: Lanes, base: Lanes, offset: Lanes) -> Lanes:
    """Position of the offset-th one counted from base, upwards or (offset < 0) downwards; all ones if there is none."""
    down = offset.slt(0)
    bits = down.where(mask.reverse_bits(), mask)
    start = down.where(31 - base, base)
    wanted = offset.eq(0).where(1, down.where(-offset, offset))
    bits = bits & ~low_mask(calc, "i32", start & 31)
    # The highest position below which there are fewer than `wanted` ones, by bisection.
    position = mask.const(0)
    for step in (16, 8, 4, 2, 1):
        beyond = (bits & low_mask(calc, "i32", position + step)).popcount().ult(wanted)
        position = beyond.where(position + step, position)
    found = base.ult(32) & wanted.ule(bits.popcount()) & (offset.ne(0) | position.eq(base))
    return found.where(down.where(31 - position, position), _NONE)


@pure("szext{mode:.clamp|.wrap}.<type>", types="u32 s32", dst="<type>", src="<type> u32", section=_ARITHMETIC + "szext")
def szext(calc: Calc, form: Form, a: Lanes, width: Lanes) -> Lanes:
    """Extend the low `width` bits; no bits give zero."""
    if form["mode"] == "wrap":
        width = width & 31
    if not is_signed(form.type):
        return a & low_mask(calc, "i32", width)
    unused = width.uge(32).where(0, 32 - width) & 31
    return width.eq(0).where(0, (a << unused).ashr(unused))


@pure("bmsk{mode:.clamp|.wrap}.b32", dst="b32", src="b32 b32", section=_ARITHMETIC + "bmsk")
def bmsk(calc: Calc, form: Form, position: Lanes, width: Lanes) -> Lanes:
    """Mask of `width` ones from `position` on."""
    if form["mode"] == "wrap":
        position, width = position & 31, width & 31
    # Both ends stop at the top; without the clamp of the first sum a huge width could wrap around.
    end = width.uge(32).where(32, width) + position.uge(32).where(32, position)
    return low_mask(calc, "i32", end) & ~low_mask(calc, "i32", position)


_BITWISE = "pred b16 b32 b64"


@pure("and.<type>", types=_BITWISE, dst="<type>", src="<type> <type>", section=_LOGIC + "and")
def and_(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Bitwise and."""
    return a & b


@pure("or.<type>", types=_BITWISE, dst="<type>", src="<type> <type>", section=_LOGIC + "or")
def or_(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Bitwise or."""
    return a | b


@pure("xor.<type>", types=_BITWISE, dst="<type>", src="<type> <type>", section=_LOGIC + "xor")
def xor(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Bitwise exclusive or."""
    return a ^ b


@pure("not.<type>", types=_BITWISE, dst="<type>", src="<type>", section=_LOGIC + "not")
def not_(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Bitwise complement."""
    return ~a


@pure("cnot.<type>", types="b16 b32 b64", dst="<type>", src="<type>", section=_LOGIC + "cnot")
def cnot(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """1 for zero, 0 else."""
    return a.eq(0).zext(a.type)


def _table(bits: int, inputs: tuple[Lanes, ...]) -> Lanes | int:
    """Evaluate a truth table (entry 0b101 is a=1, b=0, c=1); 0 and -1 stand for all zeros and all ones.

    f(a, ...) = f0 ^ (a & (f0 ^ f1)) splits the table at its first input.
    """
    size = 1 << len(inputs)
    if bits in (0, (1 << size) - 1):
        return -1 if bits else 0
    half = size // 2
    low, high = bits & ((1 << half) - 1), bits >> half
    base, change = _table(low, inputs[1:]), _table(low ^ high, inputs[1:])
    if isinstance(change, int):
        if change == 0:
            return base
        change = inputs[0]
    else:
        change = inputs[0] & change
    if isinstance(base, int):
        return ~change if base else change
    return base ^ change


def _lop3(a: Lanes, b: Lanes, c: Lanes, lut: Lanes) -> Lanes:
    if lut.known is not None:
        result = _table(lut.known & 0xFF, (a, b, c))
        return a.const(result) if isinstance(result, int) else result
    result = a.const(0)
    for entry in range(8):
        row = -((lut >> entry) & 1)
        for i, value in enumerate((a, b, c)):
            row = row & (value if entry >> (2 - i) & 1 else ~value)
        result = result | row
    return result


@pure("lop3.b32", dst="b32", src="b32 b32 b32 u32", section=_LOGIC + "lop3")
def lop3(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes, lut: Lanes) -> Lanes:
    """Any function of three bits, by its truth table."""
    return _lop3(a, b, c, lut)


@pure("lop3{op:.or|.and}.b32", dst="b32 pred", src="b32 b32 b32 u32 pred", section=_LOGIC + "lop3")
def lop3_test(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes, lut: Lanes, q: Lanes) -> tuple[Lanes, Lanes]:
    """`lop3`, and whether its result is not zero, combined with q."""
    result = _lop3(a, b, c, lut)
    some = result.ne(0)
    return result, some | q if form["op"] == "or" else some & q


@pure("shl.<type>", types="b16 b32 b64", dst="<type>", src="<type> u32", section=_LOGIC + "shl")
def shl(calc: Calc, form: Form, a: Lanes, count: Lanes) -> Lanes:
    """Shift left; zero from the width on."""
    return shift_left(a, count)


@pure("shr.<type>", types="b16 b32 b64 u16 u32 u64 s16 s32 s64", dst="<type>", src="<type> u32", section=_LOGIC + "shr")
def shr(calc: Calc, form: Form, a: Lanes, count: Lanes) -> Lanes:
    """Shift right; zero, or the sign, from the width on."""
    return shift_right_signed(a, count) if is_signed(form.type) else shift_right(a, count)


@pure("shf{side:.l|.r}{mode:.clamp|.wrap}.b32", dst="b32", src="b32 b32 u32", section=_LOGIC + "shf")
def shf(calc: Calc, form: Form, a: Lanes, b: Lanes, count: Lanes) -> Lanes:
    """Shift the 64 bits b:a; left keeps the high word, right the low word."""
    count = count & 31 if form["mode"] == "wrap" else count.ugt(32).where(32, count)
    both, by = joined(a, b), count.zext("i64")
    return ((both << by) >> 32 if form["side"] == "l" else both >> by).trunc("i32")


_SELECTORS = {
    "f4e": (0x3210, 0x4321, 0x5432, 0x6543),
    "b4e": (0x5670, 0x6701, 0x7012, 0x0123),
    "rc8": (0x0000, 0x1111, 0x2222, 0x3333),
    "ecl": (0x3210, 0x3211, 0x3222, 0x3333),
    "ecr": (0x0000, 0x1110, 0x2210, 0x3210),
    "rc16": (0x1010, 0x3232, 0x1010, 0x3232),
}
"""Byte selectors of the special modes of prmt, by the low two bits of c."""

_PRMT = "Data Movement and Conversion Instructions: prmt"


@pure("prmt.b32", dst="b32", src="b32 b32 b32", section=_PRMT)
def prmt(calc: Calc, form: Form, a: Lanes, b: Lanes, selector: Lanes) -> Lanes:
    """Pick four of eight bytes by the selector's digits; a digit's top bit spreads the byte's sign instead."""
    if selector.known is not None:
        return _prmt_known(a, b, selector.known)
    both = joined(a, b)
    result = a.const(0)
    for i in range(4):
        digit = selector >> (4 * i)
        byte = (both >> ((digit & 7) << 3).zext("i64")).trunc("i32")
        spread = -((byte >> 7) & 1)
        byte = (digit & 8).ne(0).where(spread, byte) & 0xFF
        result = result | (byte << (8 * i))
    return result


def _prmt_known(a: Lanes, b: Lanes, selector: int) -> Lanes:
    """`prmt` with a constant selector: bytes that move together move in one operation."""
    moves: dict[tuple[bool, int], int] = {}
    parts: list[Lanes] = []
    for i in range(4):
        digit = selector >> (4 * i) & 0xF
        place, mask = 8 * (digit & 3), 0xFF << (8 * i)
        if digit & 8:
            # The byte to the top, its sign over the whole word, then the byte wanted.
            parts.append(((b if digit & 4 else a) << (24 - place)).ashr(31) & mask)
        else:
            key = (bool(digit & 4), 8 * i - place)
            moves[key] = moves.get(key, 0) | mask
    for (second, shift), mask in moves.items():
        source = b if second else a
        moved = source << shift if shift > 0 else source >> -shift if shift < 0 else source
        kept = 0xFFFFFFFF << shift & 0xFFFFFFFF if shift > 0 else 0xFFFFFFFF >> -shift
        parts.append(moved if mask == kept else moved & mask)
    result = parts[0]
    for part in parts[1:]:
        result = result | part
    return result


@pure("prmt.b32{mode:.f4e|.b4e|.rc8|.ecl|.ecr|.rc16}", dst="b32", src="b32 b32 b32", section=_PRMT)
def prmt_mode(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Pick bytes by one of four selectors of the mode."""
    selectors = _SELECTORS[form["mode"]]
    if c.known is not None:
        return _prmt_known(a, b, selectors[c.known & 3])
    high = (c & 2).ne(0).where((c & 1).ne(0).where(c.const(selectors[3]), selectors[2]), c.const(0))
    low = (c & 1).ne(0).where(c.const(selectors[1]), selectors[0])
    return prmt(calc, form, a, b, (c & 2).ne(0).where(high, low))
