"""The adder of `adder.py`, compiled with LLVM: the multiplications of a kernel spend their time here.

Vectors run over columns of D. Terms are products of significands (32-bit sums) or dot products of 16 (64-bit sums). For
exact arithmetic both exist with 64 and with 128 bits; they flag elements whose exponents lie too far apart for that.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from megamoe_jit.emulator.engines.numerics.adder import MIN_EXPONENT, NAN_F32

COLUMNS = 16
"""Columns of D that a vector holds; arrays are padded to a multiple of it."""
EXACT_FRACTION_BITS = {64: 53, 128: 96}
"""Of exact sums, by their width: bits this far below the largest term are kept."""

_I1, _I32, _I64, _F64 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.DoubleType()
_POINTER = ir.IntType(8).as_pointer()


@dataclass(frozen=True, slots=True)
class Variant:
    """Which kernel: blocks of 16 products as terms or single products; width of sums in bits; exact or truncating."""

    blocks: bool
    bits: int
    exact: bool = False

    @property
    def name(self) -> str:
        """Name of the compiled function."""
        return f"{'block' if self.blocks else 'dot'}{self.bits}{'exact' if self.exact else ''}"

    @property
    def lanes(self) -> int:
        """Columns worked on at once: 128-bit integers have no vectors."""
        return 1 if self.bits == 128 else COLUMNS


# rows, columns (padded), terms; a significands and exponents [rows, terms]; b likewise [terms, columns];
# block dot products [terms, rows, columns]; D [rows, columns] with its row stride (0: one row of zeros);
# left, right: alignment shifts of terms; F; least exponent of D; terms of a 32-bit sum; fraction bits kept of the
# result (0: float64 results); results [rows, columns]; flags [rows, columns]
_POINTERS = ("sa", "ea", "sb", "eb", "blocks", "d", "out", "flags")
_NUMBERS = ("rows", "columns", "terms", "d_stride", "left", "right", "fraction", "d_min", "chunk", "kept")
_ARGUMENTS = _NUMBERS[:3] + _POINTERS[:6] + _NUMBERS[3:] + _POINTERS[6:]


class _Builder:
    """Writes one kernel. `self.arg` are its arguments; loops carry values in phi nodes, so that no pass is needed."""

    def __init__(self, variant: Variant, module: ir.Module) -> None:
        kinds = [_POINTER if name in _POINTERS else _I64 for name in _ARGUMENTS]
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), variant.name)
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.variant = variant
        self.arg = dict(zip(_ARGUMENTS, self.function.args, strict=True))
        self.module = module

    # --- types and constants ---

    def lanes_of(self, scalar: ir.Type) -> ir.Type:
        return scalar if self.variant.lanes == 1 else ir.VectorType(scalar, self.variant.lanes)

    def constant(self, scalar: ir.Type, value: Any) -> ir.Constant:
        if self.variant.lanes == 1:
            return ir.Constant(scalar, value)
        return ir.Constant(self.lanes_of(scalar), [value] * self.variant.lanes)

    def splat(self, value: ir.Value) -> ir.Value:
        if self.variant.lanes == 1:
            return value
        vector = self.lanes_of(value.type)
        first = self.b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
        mask = ir.Constant(ir.VectorType(_I32, self.variant.lanes), [0] * self.variant.lanes)
        return self.b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)

    def i64(self, value: int) -> ir.Constant:
        return ir.Constant(_I64, value)

    # --- memory ---

    def _place(self, name: str, index: ir.Value, scalar: ir.Type, vector: bool) -> ir.Value:
        base = self.b.bitcast(self.arg[name], scalar.as_pointer())
        place = self.b.gep(base, [index])
        return self.b.bitcast(place, self.lanes_of(scalar).as_pointer()) if vector else place

    def load(self, name: str, index: ir.Value, *, vector: bool = False) -> ir.Value:
        return self.b.load(self._place(name, index, _I32, vector), align=4)

    def store(self, value: ir.Value, index: ir.Value, scalar: ir.Type) -> None:
        self.b.store(value, self._place("out", index, scalar, True), align=4 if scalar == _I32 else 8)

    # --- control ---

    def loop(
        self,
        start: ir.Value,
        end: ir.Value,
        step: int | ir.Value,
        carried: Sequence[ir.Value],
        body: Callable[..., Sequence[ir.Value]],
    ) -> tuple[ir.Value, ...]:
        """Run body(i, *carried) -> carried for i in [start, end); returns the last carried values."""
        b, entry = self.b, self.b.block
        head, inside, after = (self.function.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(_I64)
        index.add_incoming(start, entry)
        phis = []
        for value in carried:
            phi = b.phi(value.type)
            phi.add_incoming(value, entry)
            phis.append(phi)
        b.cbranch(b.icmp_signed("<", index, end), inside, after)
        b.position_at_end(inside)
        results = body(index, *phis)
        index.add_incoming(b.add(index, self.i64(step) if isinstance(step, int) else step), b.block)
        for phi, value in zip(phis, results, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return tuple(phis)

    # --- arithmetic on lanes ---

    def maximum(self, a: ir.Value, c: ir.Value) -> ir.Value:
        return self.b.select(self.b.icmp_signed(">", a, c), a, c)

    def minimum(self, a: ir.Value, c: ir.Value) -> ir.Value:
        return self.b.select(self.b.icmp_signed("<", a, c), a, c)

    def intrinsic(self, name: str, value: ir.Value, *flags: int) -> ir.Value:
        lanes = self.variant.lanes
        scalar = value.type.element if lanes > 1 else value.type
        suffix = f"{f'v{lanes}' if lanes > 1 else ''}i{scalar.width}"
        kind = ir.FunctionType(value.type, [value.type, *[_I1] * len(flags)])
        full = f"llvm.{name}.{suffix}"
        function = self.module.globals.get(full) or ir.Function(self.module, kind, full)
        return self.b.call(function, [value, *[ir.Constant(_I1, flag) for flag in flags]])

    def shifted(self, value: ir.Value, shift: ir.Value, wide: ir.Type) -> tuple[ir.Value, ir.Value]:
        """Shift the magnitude of `value` right by i32 `shift`, keeping its sign; also whether bits were lost."""
        b = self.b
        top = wide.width - 1
        shift = self.minimum(shift, self.constant(_I32, top))
        if wide.width > 32:
            shift = b.zext(shift, self.lanes_of(wide))
        sign = b.ashr(value, self.constant(wide, top))
        magnitude = self.intrinsic("abs", value, 0)
        kept = b.lshr(magnitude, shift)
        lost = b.icmp_unsigned("!=", b.shl(kept, shift), magnitude) if self.variant.exact else None
        return b.sub(b.xor(kept, sign), sign), lost

    def power_of_two(self, exponent: ir.Value) -> ir.Value:
        """2.0**exponent of i32 lanes, which must be a normal float64."""
        field = self.b.sext(self.b.add(exponent, self.constant(_I32, 1023)), self.lanes_of(_I64))
        return self.b.bitcast(self.b.shl(field, self.constant(_I64, 52)), self.lanes_of(_F64))

    # --- the kernel ---

    def build(self) -> None:
        def column_panel(column: ir.Value) -> Sequence[ir.Value]:
            self.loop(self.i64(0), self.arg["rows"], 1, (), lambda row: self._element(row, column))
            return ()

        self.loop(self.i64(0), self.arg["columns"], self.variant.lanes, (), column_panel)
        self.b.ret_void()

    def _element(self, row: ir.Value, column: ir.Value) -> Sequence[ir.Value]:
        b = self.b
        d = self.load("d", b.add(b.mul(row, self.arg["d_stride"]), column), vector=True)
        field = b.and_(b.lshr(d, self.constant(_I32, 23)), self.constant(_I32, 255))
        fraction = b.and_(d, self.constant(_I32, (1 << 23) - 1))
        is_normal = b.icmp_signed("!=", field, self.constant(_I32, 0))
        magnitude = b.select(is_normal, b.or_(fraction, self.constant(_I32, 1 << 23)), fraction)
        exponent = b.sub(self.maximum(field, self.constant(_I32, 1)), self.constant(_I32, 127))
        least = self.splat(b.trunc(self.arg["d_min"], _I32))
        counted = b.select(
            b.icmp_signed("!=", magnitude, self.constant(_I32, 0)),
            self.maximum(exponent, least),
            self.constant(_I32, MIN_EXPONENT),
        )
        top = self._top_exponent(row, column, counted)
        sign = b.ashr(d, self.constant(_I32, 31))
        total, lost = self._accumulator(b.sub(b.xor(magnitude, sign), sign), b.sub(top, exponent))
        total, lost = self._sum(row, column, top, total, lost)
        at = b.add(b.mul(row, self.arg["columns"]), column)
        if self.variant.exact:
            self._finish_exact(total, lost, top, d, field, at)
        else:
            self._finish(total, top, d, field, at)
        return ()

    def _term(self, row: ir.Value, column: ir.Value, k: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Significand and exponent of a term, i32 lanes."""
        b = self.b
        at_a = b.add(b.mul(row, self.arg["terms"]), k)
        at_b = b.add(b.mul(k, self.arg["columns"]), column)
        exponent = b.add(self.splat(self.load("ea", at_a)), self.load("eb", at_b, vector=True))
        value = b.mul(self.splat(self.load("sa", at_a)), self.load("sb", at_b, vector=True))
        if self.variant.blocks:
            at = b.add(b.mul(b.add(b.mul(k, self.arg["rows"]), row), self.arg["columns"]), column)
            value = b.mul(value, self._block(at))
            zero = b.icmp_signed("==", value, self.constant(_I32, 0))
            exponent = b.select(zero, self.constant(_I32, MIN_EXPONENT), exponent)
        return value, exponent

    def _block(self, at: ir.Value) -> ir.Value:
        dot = self.b.load(self._place("blocks", at, ir.FloatType(), True), align=4)
        return self.b.fptosi(dot, self.lanes_of(_I32))

    def _top_exponent(self, row: ir.Value, column: ir.Value, start: ir.Value) -> ir.Value:
        def step(k: ir.Value, top: ir.Value) -> Sequence[ir.Value]:
            if self.variant.blocks:
                return (self.maximum(top, self._term(row, column, k)[1]),)
            b = self.b
            left = self.splat(self.load("ea", b.add(b.mul(row, self.arg["terms"]), k)))
            right = self.load("eb", b.add(b.mul(k, self.arg["columns"]), column), vector=True)
            return (self.maximum(top, b.add(left, right)),)

        return self.loop(self.i64(0), self.arg["terms"], 1, (start,), step)[0]

    def _accumulator(self, value: ir.Value, below: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Align the old D (23 fraction bits): left by F - 23, or right where F is smaller."""
        b, wide = self.b, ir.IntType(max(self.variant.bits, 64))
        difference = b.sub(self.arg["fraction"], self.i64(23))
        zero = self.i64(0)
        left = b.select(b.icmp_signed(">", difference, zero), difference, zero)
        right = b.select(b.icmp_signed("<", difference, zero), b.sub(zero, difference), zero)
        value = b.sext(value, self.lanes_of(wide))
        value = b.shl(value, self.splat(b.zext(left, wide) if wide.width > 64 else left))
        return self.shifted(value, b.add(below, self.splat(b.trunc(right, _I32))), wide)

    def _sum(
        self, row: ir.Value, column: ir.Value, top: ir.Value, total: ir.Value, lost: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        b, variant = self.b, self.variant
        wide = ir.IntType(variant.bits)
        right = self.splat(b.trunc(self.arg["right"], _I32))
        left = self.arg["left"]
        left = self.splat(b.trunc(left, wide) if wide.width < 64 else b.zext(left, wide) if wide.width > 64 else left)

        def aligned(k: ir.Value) -> tuple[ir.Value, ir.Value]:
            value, exponent = self._term(row, column, k)
            if wide.width > 32:
                value = b.sext(value, self.lanes_of(wide))
            return self.shifted(b.shl(value, left), b.add(b.sub(top, exponent), right), wide)

        if variant.bits > 32:

            def step(k: ir.Value, sums: ir.Value, *flag: ir.Value) -> Sequence[ir.Value]:
                value, lost_here = aligned(k)
                return (b.add(sums, value), *[b.or_(old, lost_here) for old in flag])

            carried = (total, lost) if variant.exact else (total,)
            results = self.loop(self.i64(0), self.arg["terms"], 1, carried, step)
            return results[0], results[1] if variant.exact else lost

        def chunk(start: ir.Value, sums: ir.Value) -> Sequence[ir.Value]:
            end = b.add(start, self.arg["chunk"])
            end = b.select(b.icmp_signed("<", end, self.arg["terms"]), end, self.arg["terms"])
            zero = self.constant(_I32, 0)
            part = self.loop(start, end, 1, (zero,), lambda k, acc: (b.add(acc, aligned(k)[0]),))[0]
            return (b.add(sums, b.sext(part, self.lanes_of(_I64))),)

        return self.loop(self.i64(0), self.arg["terms"], self.arg["chunk"], (total,), chunk)[0], lost

    def _finish(self, total: ir.Value, top: ir.Value, d: ir.Value, field: ir.Value, at: ir.Value) -> None:
        b = self.b
        scale = self.power_of_two(b.sub(top, self.splat(b.trunc(self.arg["fraction"], _I32))))
        value = b.fmul(b.sitofp(total, self.lanes_of(_F64)), scale)
        special = b.icmp_signed("==", field, self.constant(_I32, 255))
        as_float = b.bitcast(d, self.lanes_of(ir.FloatType()))
        value = b.select(special, b.fpext(as_float, self.lanes_of(_F64)), value)
        wants_f32 = b.icmp_signed("!=", self.arg["kept"], self.i64(0))
        narrow, wide, after = (self.function.append_basic_block() for _ in range(3))
        b.cbranch(wants_f32, narrow, wide)
        b.position_at_end(wide)
        self.store(value, at, _F64)
        b.branch(after)
        b.position_at_end(narrow)
        bits = b.bitcast(self._truncated(value), self.lanes_of(_I32))
        fraction = b.and_(d, self.constant(_I32, (1 << 23) - 1))
        is_nan = b.and_(special, b.icmp_signed("!=", fraction, self.constant(_I32, 0)))
        bits = b.select(is_nan, self.constant(_I32, NAN_F32), bits)
        self.store(bits, at, _I32)
        b.branch(after)
        b.position_at_end(after)

    def _truncated(self, value: ir.Value) -> ir.Value:
        """Truncate float64 lanes to `kept` fraction bits (fewer below FP32's least exponent); exact as FP32 then."""
        b = self.b
        bits = b.bitcast(value, self.lanes_of(_I64))
        field = b.and_(b.lshr(bits, self.constant(_I64, 52)), self.constant(_I64, 0x7FF))
        below = b.sub(self.constant(_I64, 1023 + MIN_EXPONENT), field)
        below = self.maximum(below, self.constant(_I64, 0))
        drop = b.add(self.splat(b.sub(self.i64(52), self.arg["kept"])), below)
        gone = b.icmp_signed(">", drop, self.constant(_I64, 52))
        drop = self.minimum(drop, self.constant(_I64, 52))
        bits = b.shl(b.lshr(bits, drop), drop)
        bits = b.select(gone, self.constant(_I64, 0), bits)
        return b.fptrunc(b.bitcast(bits, self.lanes_of(_F64)), self.lanes_of(ir.FloatType()))

    def _finish_exact(
        self, total: ir.Value, lost: ir.Value, top: ir.Value, d: ir.Value, field: ir.Value, at: ir.Value
    ) -> None:
        """Store the sum as a float64 rounded to odd, which a second rounding turns into the right one."""
        b, wide = self.b, ir.IntType(self.variant.bits)
        negative = b.icmp_signed("<", total, self.constant(wide, 0))
        magnitude = self.intrinsic("abs", total, 0)
        if wide.width == 128:
            zeros = b.trunc(self.intrinsic("ctlz", magnitude, 0), _I32)
            shift = self.maximum(b.sub(ir.Constant(_I32, 128 - 53), zeros), ir.Constant(_I32, 0))
            wide_shift = b.zext(shift, wide)
        else:
            # sums of up to 65 terms below 2**(2 + F) are below 2**62: 9 bits at most do not fit
            long = b.icmp_signed(">=", magnitude, self.constant(wide, 1 << 53))
            wide_shift = b.select(long, self.constant(wide, 9), self.constant(wide, 0))
            shift = b.trunc(wide_shift, self.lanes_of(_I32))
        kept = b.lshr(magnitude, wide_shift)
        odd = b.icmp_unsigned("!=", b.shl(kept, wide_shift), magnitude)
        kept = b.or_(kept, b.zext(odd, self.lanes_of(wide)))
        whole = b.sitofp(b.trunc(kept, _I64) if wide.width == 128 else kept, self.lanes_of(_F64))
        exponent = b.sub(b.add(top, shift), self.splat(b.trunc(self.arg["fraction"], _I32)))
        value = b.fmul(whole, self.power_of_two(exponent))
        value = b.select(negative, b.fneg(value), value)
        special = b.icmp_signed("==", field, self.constant(_I32, 255))
        as_float = b.bitcast(d, self.lanes_of(ir.FloatType()))
        value = b.select(special, b.fpext(as_float, self.lanes_of(_F64)), value)
        self.store(value, at, _F64)
        lost = b.zext(b.and_(lost, b.not_(special)), self.lanes_of(ir.IntType(8)))
        b.store(lost, self._place("flags", at, ir.IntType(8), True), align=1)


class _Kernels:
    """Compiled kernels; keeps the execution engine alive."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
        )
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._machine)
        self._functions: dict[Variant, Any] = {}

    def get(self, variant: Variant) -> Any:
        found = self._functions.get(variant)
        if found is None:
            module = ir.Module(variant.name)
            module.triple = self._machine.triple
            module.data_layout = str(self._machine.target_data)
            _Builder(variant, module).build()
            compiled = llvm.parse_assembly(str(module))
            compiled.verify()
            self._engine.add_module(compiled)
            self._engine.finalize_object()
            kinds = [ctypes.c_void_p if name in _POINTERS else ctypes.c_int64 for name in _ARGUMENTS]
            found = ctypes.CFUNCTYPE(None, *kinds)(self._engine.get_function_address(variant.name))
            self._functions[variant] = found
        return found


@functools.cache
def _kernels() -> _Kernels:
    return _Kernels()


def kernel(variant: Variant) -> Callable[..., None]:
    """Return the compiled kernel; its arguments are `_ARGUMENTS`, pointers as integers. Compiles at first use."""
    function: Callable[..., None] = _kernels().get(variant)
    return function
