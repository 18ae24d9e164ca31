"""Instructions whose result depends on other lanes of the warp. Engines see to it that the members are there."""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001

from __future__ import annotations

from collections.abc import Callable

from megamoe_jit.emulator.isa.extremes import extreme
from megamoe_jit.emulator.isa.integer import halves, joined, larger, smaller
from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.table import ALL_LANES, Form, pure

_SYNC = "Parallel Synchronization and Communication Instructions: "
_MOVE = "Data Movement and Conversion Instructions: "
_MATRIX = "Warp Level Matrix Multiply-Accumulate Instructions: "


def _in_mask(calc: Calc, mask: Lanes) -> Lanes:
    """Whether the lane is in a member mask, and executes."""
    return ((mask >> calc.lane_id()) & 1).ne(0) & calc.active()


def _lowest(mask: Lanes) -> Lanes:
    """Return the number of the lowest set bit, 32 of none."""
    return 32 - (~mask & (mask - 1)).leading_zeros()


@pure(
    "shfl.sync{mode:.up|.down|.bfly|.idx}.b32", dst="b32 pred?", src="b32 b32 b32 b32", members=3,
    section=_MOVE + "shfl.sync",
)  # fmt: skip
def shfl(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes, members: Lanes) -> tuple[Lanes, Lanes]:
    """Take the value of another lane of the segment, the own one (and false) where that lane is outside its bounds."""
    lane, by, clamp, segment = calc.lane_id(), b & 31, c & 31, (c >> 8) & 31
    lowest = lane & segment
    highest = lowest | (clamp & ~segment)
    mode = form["mode"]
    if mode == "up":
        source = lane - by
        inside = source.sge(highest)
    else:
        source = {"down": lambda: lane + by, "bfly": lambda: lane ^ by, "idx": lambda: lowest | (by & ~segment)}[mode]()
        inside = source.sle(highest)
    return calc.permute(a, inside.where(source, lane) & 31), inside


@pure("vote.sync{mode:.all|.any|.uni}.pred", dst="pred", src="pred b32", members=1, section=_SYNC + "vote.sync")
def vote(calc: Calc, form: Form, a: Lanes, members: Lanes) -> Lanes:
    """Whether the predicate holds in all members, in any, or is the same in all."""
    inside = _in_mask(calc, members)
    some, some_not = calc.ballot(a & inside).ne(0), calc.ballot(~a & inside).ne(0)
    return {"all": lambda: ~some_not, "any": lambda: some, "uni": lambda: ~(some & some_not)}[form["mode"]]()


@pure("vote.sync.ballot.b32", dst="b32", src="pred b32", members=1, section=_SYNC + "vote.sync")
def ballot(calc: Calc, form: Form, a: Lanes, members: Lanes) -> Lanes:
    """Bit i is the predicate of lane i, 0 of lanes that are no members."""
    return calc.ballot(a & _in_mask(calc, members))


@pure("activemask.b32", dst="b32", section=_SYNC + "activemask")
def activemask(calc: Calc, form: Form) -> Lanes:
    """Which lanes execute this instruction together."""
    return calc.ballot(calc.active())


@pure("elect.sync", dst="b32 pred", src="b32", members=0, section=_SYNC + "elect.sync")
def elect(calc: Calc, form: Form, members: Lanes) -> tuple[Lanes, Lanes]:
    """Choose the lowest member."""
    leader = _lowest(members)
    return leader, calc.lane_id().eq(leader)


def _lane_values(calc: Calc, value: Lanes) -> list[Lanes]:
    """Return the value of each lane, in all lanes."""
    return [calc.permute(value, calc.const("i32", lane)) for lane in range(32)]


@pure("match.any.sync.<type>", types="b32 b64", dst="b32", src="<type> b32", members=1, section=_SYNC + "match.sync")
def match_any(calc: Calc, form: Form, a: Lanes, members: Lanes) -> Lanes:
    """Members with the same value."""
    inside = calc.ballot(_in_mask(calc, members))
    found = members.const(0)
    for lane, value in enumerate(_lane_values(calc, a)):
        found = found | a.eq(value).where(found.const(1 << lane), 0)
    return found & inside


@pure(
    "match.all.sync.<type>", types="b32 b64", dst="b32 pred?", src="<type> b32", members=1,
    section=_SYNC + "match.sync",
)  # fmt: skip
def match_all(calc: Calc, form: Form, a: Lanes, members: Lanes) -> tuple[Lanes, Lanes]:
    """All members, if all have the same value, else none."""
    inside = _in_mask(calc, members)
    first = calc.permute(a, _lowest(calc.ballot(inside)) & 31)
    same = calc.ballot(a.ne(first) & inside).eq(0)
    return same.where(calc.ballot(inside), 0), same


def _reduced(calc: Calc, value: Lanes, combine: Callable[[Lanes, Lanes], Lanes]) -> Lanes:
    """Combine the values of all lanes by five exchanges; the operation must not care for order."""
    for distance in (16, 8, 4, 2, 1):
        value = combine(value, calc.permute(value, calc.lane_id() ^ distance))
    return value


_REDUCTIONS: dict[str, tuple[Callable[[Lanes, Lanes], Lanes], int]] = {
    "add.u32": (lambda a, b: a + b, 0),
    "add.s32": (lambda a, b: a + b, 0),
    "min.u32": (lambda a, b: smaller(a, b, False), -1),
    "min.s32": (lambda a, b: smaller(a, b, True), 0x7FFFFFFF),
    "max.u32": (lambda a, b: larger(a, b, False), 0),
    "max.s32": (lambda a, b: larger(a, b, True), -0x80000000),
    "and.b32": (lambda a, b: a & b, -1),
    "or.b32": (lambda a, b: a | b, 0),
    "xor.b32": (lambda a, b: a ^ b, 0),
}
"""Operation and its neutral element, which lanes that are no members give."""


@pure(
    "redux.sync.<op>", sets={"op": " ".join(_REDUCTIONS)}, dst="b32", src="b32 b32", members=1,
    section=_SYNC + "redux.sync",
)  # fmt: skip
def redux(calc: Calc, form: Form, a: Lanes, members: Lanes) -> Lanes:
    """Combine the values of all members."""
    combine, neutral = _REDUCTIONS[form["op"]]
    return _reduced(calc, _in_mask(calc, members).where(a, neutral), combine)


@pure("redux.sync{op:.min|.max}{.abs}{.NaN}.f32", dst="f32", src="f32 b32", members=1, section=_SYNC + "redux.sync")
def redux_float(calc: Calc, form: Form, a: Lanes, members: Lanes) -> Lanes:
    """Smallest or largest of all members; NaN is ignored, or wins (.NaN); NaN of all is the result too."""
    inside = _in_mask(calc, members)
    if form.has("abs"):
        a = a.abs()
    # A lane that is no member repeats one that is, whatever its own value.
    own = inside.where(calc.lane_id(), _lowest(calc.ballot(inside)) & 31)
    value = calc.permute(a, own)
    result = _reduced(calc, value, lambda x, y: extreme(x, y, form["op"] == "max", form.has("NaN")))
    return result.is_nan().where(0x7FFFFFFF, result.cast("i32")).cast("f32")


@pure("movmatrix.sync.aligned.m8n8.trans.b16", dst="b32", src="b32", members=ALL_LANES, section=_MATRIX + "movmatrix")
def movmatrix(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Transpose an 8x8 matrix whose row i lies, two elements a lane, in lanes 4 * i to 4 * i + 3."""
    lane = calc.lane_id()
    row, column = lane >> 2, (lane & 3) << 1
    elements = []
    for i in (0, 1):
        low, high = halves(calc.permute(a, ((column + i) << 2) | (row >> 1)))
        elements.append((row & 1).ne(0).where(high, low))
    return joined(*elements)
