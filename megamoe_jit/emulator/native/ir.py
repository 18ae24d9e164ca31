"""A small writer of LLVM IR text: values with Python's operators, `with` blocks for control flow.

Text, because it is quick to make (a kernel has tens of thousands of lines) and LLVM parses it in a moment. Local
variables are allocas, which the optimiser turns into registers in the modules that are compiled with it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

Number: TypeAlias = "Val | int"

_VECTOR = re.compile(r"<(\d+) x (.+)>")
_SIZES = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "i128": 128, "float": 32, "double": 64, "ptr": 64}


def vector(count: int, element: str) -> str:
    """Return the type of `count` elements."""
    return f"<{count} x {element}>"


def element_of(type: str) -> str:
    """Return the element type of a vector, or the scalar type itself."""
    found = _VECTOR.fullmatch(type)
    return found[2] if found else type


def bits_of(type: str) -> int:
    """Return the bits of a scalar or of a vector's element."""
    return _SIZES[element_of(type)]


def with_element(type: str, element: str) -> str:
    """Return `type` with another element type."""
    found = _VECTOR.fullmatch(type)
    return vector(int(found[1]), element) if found else element


def literal(type: str, value: int | float) -> str:
    """Return the text of a constant, the same in all elements of a vector."""
    element = element_of(type)
    if element in ("float", "double"):
        text = _float_literal(element, float(value))
    elif element == "ptr":
        assert value == 0, "the only constant pointer is null"
        text = "null"
    else:
        bits = _SIZES[element]
        value = int(value) % (1 << bits)
        text = str(value) if bits > 1 else ("true" if value else "false")
    return text if element == type else f"splat ({element} {text})"


def _float_literal(element: str, value: float) -> str:
    if math.isnan(value):
        return "0x7FF8000000000000"
    if element == "float" and math.isfinite(value):
        value = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


class Val:
    """A value of a function that is being written; `text` is its name or literal.

    Python numbers beside it become constants of its type. Integers have no sign: `>>` is the logical shift.
    """

    __slots__ = ("const", "f", "text", "type")

    def __init__(self, f: Body, type: str, text: str, const: int | float | None = None) -> None:
        """Name a value; `const` is its number when all elements hold the same known one."""
        self.f = f
        self.type = type
        self.text = text
        self.const = const

    def __repr__(self) -> str:
        """Type and name, as operands are written."""
        return f"{self.type} {self.text}"

    def _text(self, other: Number) -> str:
        return other.text if isinstance(other, Val) else literal(self.type, other)

    def _op(self, name: str, other: Number) -> Val:
        return self.f.emit(self.type, f"{name} {self.type} {self.text}, {self._text(other)}")

    def __add__(self, other: Number) -> Val:
        """Sum."""
        return self._op("add", other)

    def __sub__(self, other: Number) -> Val:
        """Difference."""
        return self._op("sub", other)

    def __mul__(self, other: Number) -> Val:
        """Product."""
        return self._op("mul", other)

    def __and__(self, other: Number) -> Val:
        """Bitwise and."""
        return self._op("and", other)

    def __or__(self, other: Number) -> Val:
        """Bitwise or."""
        return self._op("or", other)

    def __xor__(self, other: Number) -> Val:
        """Bitwise exclusive or."""
        return self._op("xor", other)

    def __lshift__(self, other: Number) -> Val:
        """Shift left."""
        return self._op("shl", other)

    def __rshift__(self, other: Number) -> Val:
        """Shift right, zeros from the left."""
        return self._op("lshr", other)

    def __invert__(self) -> Val:
        """Bitwise not."""
        return self._op("xor", -1)

    def cmp(self, predicate: str, other: Number) -> Val:
        """Compare integers as eq ne ult ule ugt uge slt sle sgt sge."""
        text = f"icmp {predicate} {self.type} {self.text}, {self._text(other)}"
        return self.f.emit(with_element(self.type, "i1"), text)

    def eq(self, other: Number) -> Val:
        """Whether equal."""
        return self.cmp("eq", other)

    def ne(self, other: Number) -> Val:
        """Whether different."""
        return self.cmp("ne", other)

    def ult(self, other: Number) -> Val:
        """Whether less, without sign."""
        return self.cmp("ult", other)

    def ule(self, other: Number) -> Val:
        """Whether less or equal, without sign."""
        return self.cmp("ule", other)

    def ugt(self, other: Number) -> Val:
        """Whether greater, without sign."""
        return self.cmp("ugt", other)

    def uge(self, other: Number) -> Val:
        """Whether greater or equal, without sign."""
        return self.cmp("uge", other)

    def cast(self, how: str, type: str) -> Val:
        """Convert by an LLVM instruction (trunc, zext, sext, bitcast, inttoptr, ptrtoint, ...)."""
        return self if type == self.type else self.f.emit(type, f"{how} {self.type} {self.text} to {type}")

    def zext(self, type: str) -> Val:
        """Widen with zeros."""
        return self.cast("zext", type)

    def trunc(self, type: str) -> Val:
        """Keep the low bits."""
        return self.cast("trunc", type)

    def bitcast(self, type: str) -> Val:
        """Read the bits as another type."""
        return self.cast("bitcast", type)

    def ptr(self) -> Val:
        """Take a 64-bit integer as an address."""
        return self.cast("inttoptr", "ptr")

    def address(self) -> Val:
        """Take an address as a 64-bit integer."""
        return self.cast("ptrtoint", "i64")

    def select(self, a: Val, b: Number) -> Val:
        """Take `a` where this i1 condition is set, else `b`."""
        other = b.text if isinstance(b, Val) else literal(a.type, b)
        return self.f.emit(a.type, f"select {self}, {a}, {a.type} {other}")

    def splat(self, count: int = 32) -> Val:
        """Make a vector with this scalar in each element."""
        type = vector(count, self.type)
        if self.const is not None:
            return self.f.const(type, self.const)
        one = self.f.emit(type, f"insertelement {type} poison, {self}, i64 0")
        zeros = f"<{count} x i32> zeroinitializer"
        return self.f.emit(type, f"shufflevector {one}, {type} poison, {zeros}")

    def element(self, index: Number) -> Val:
        """Take one element of a vector."""
        at = index if isinstance(index, Val) else self.f.const("i32", index)
        return self.f.emit(element_of(self.type), f"extractelement {self}, {at}")

    def at(self, offset: Number, type: str = "i8") -> Val:
        """Return this address plus `offset` elements of `type`."""
        if isinstance(offset, int):
            if offset == 0:
                return self
            offset = self.f.const("i64", offset)
        return self.f.emit("ptr", f"getelementptr {type}, {self}, {offset}")

    def load(self, type: str, align: int | None = None) -> Val:
        """Load from this address."""
        suffix = f", align {align}" if align else ""
        return self.f.emit(type, f"load {type}, {self}{suffix}")

    def store(self, value: Val, align: int | None = None) -> None:
        """Store to this address."""
        suffix = f", align {align}" if align else ""
        self.f.line(f"store {value}, {self}{suffix}")


class Var:
    """A local variable."""

    __slots__ = ("address", "type")

    def __init__(self, address: Val, type: str) -> None:
        """Wrap an alloca."""
        self.address = address
        self.type = type

    def get(self) -> Val:
        """Read it."""
        return self.address.load(self.type)

    def set(self, value: Number) -> None:
        """Write it."""
        self.address.store(value if isinstance(value, Val) else self.address.f.const(self.type, value))


class Body:
    """One function that is being written."""

    def __init__(
        self,
        name: str,
        returns: str,
        params: Sequence[tuple[str, str]],
        *,
        linkage: str = "",
        attributes: str = "nounwind",
    ) -> None:
        """Start `returns @name(params)`, params as (type, name)."""
        self.name = name
        self.returns = returns
        self.param_types = tuple(type.partition(" noalias")[0] for type, _ in params)
        listed = ", ".join(f"{type} %{param}" for type, param in params)
        self._head = f"define {linkage + ' ' if linkage else ''}{returns} @{name}({listed}) {attributes} {{"
        self._entry: list[str] = []
        self.lines: list[str] = []
        self._count = 0
        self._ended = False
        self.current = "entry"
        self.calls: dict[str, str] = {}
        named = zip(self.param_types, params, strict=True)
        self._params = {param: Val(self, type, f"%{param}") for type, (_, param) in named}

    def __getitem__(self, param: str) -> Val:
        """Return a parameter."""
        return self._params[param]

    @property
    def declaration(self) -> str:
        """The line by which another module declares this function."""
        return f"declare {self.returns} @{self.name}({', '.join(self.param_types)}) nounwind"

    @property
    def has_ended(self) -> bool:
        """Whether the block that is being written has its jump."""
        return self._ended

    # --- straight code ---

    def line(self, text: str) -> None:
        """Add an instruction without a result."""
        self.lines.append(f"  {text}")

    def emit(self, type: str, text: str) -> Val:
        """Add an instruction and return its result."""
        self._count = count = self._count + 1
        self.lines.append(f"  %v{count} = {text}")
        return Val(self, type, f"%v{count}")

    def const(self, type: str, value: int | float) -> Val:
        """Return a constant, the same in all elements of a vector."""
        return Val(self, type, literal(type, value), value)

    def null(self) -> Val:
        """Return the null pointer."""
        return Val(self, "ptr", "null")

    def lanes(self, type: str, values: Sequence[int]) -> Val:
        """Return a constant vector of the given integers."""
        listed = ", ".join(f"{type} {value}" for value in values)
        return Val(self, vector(len(values), type), f"<{listed}>")

    def alloca(self, type: str, align: int | None = None) -> Val:
        """Reserve memory in the function's frame."""
        self._count = count = self._count + 1
        suffix = f", align {align}" if align else ""
        self._entry.append(f"  %v{count} = alloca {type}{suffix}")
        return Val(self, "ptr", f"%v{count}")

    def var(self, type: str, value: Number) -> Var:
        """Make a local variable."""
        variable = Var(self.alloca(type), type)
        variable.set(value)
        return variable

    def call(self, name: str, returns: str, *args: Val) -> Val:
        """Call a function; the module gets its declaration."""
        self.calls[name] = f"declare {returns} @{name}({', '.join(arg.type for arg in args)}) nounwind"
        text = f"call {returns} @{name}({', '.join(map(repr, args))})"
        if returns == "void":
            self.line(text)
            return Val(self, "void", "")
        return self.emit(returns, text)

    def intrinsic(self, name: str, returns: str, *args: Val) -> Val:
        """Call an LLVM intrinsic whose overloaded type is that of its first argument."""
        return self.call(f"llvm.{name}.{mangled(args[0].type)}", returns, *args)

    # --- control flow ---

    def label(self, name: str) -> str:
        """Return a name for a block that no other block of this function has."""
        self._count += 1
        return f"{name}{self._count}"

    def place(self, label: str) -> None:
        """Begin block `label`; the block before falls into it."""
        if not self._ended:
            self.line(f"br label %{label}")
        self.lines.append(f"{label}:")
        self.current = label
        self._ended = False

    def jump(self, label: str) -> None:
        """End the block with a jump."""
        self.line(f"br label %{label}")
        self._ended = True

    def branch(self, condition: Val, then: str, otherwise: str) -> None:
        """End the block with a conditional jump."""
        self.line(f"br {condition}, label %{then}, label %{otherwise}")
        self._ended = True

    def switch(self, value: Val, default: str, cases: Iterable[tuple[int, str]]) -> None:
        """End the block with a jump to the case of `value`."""
        listed = " ".join(f"{value.type} {number}, label %{label}" for number, label in cases)
        self.line(f"switch {value}, label %{default} [ {listed} ]")
        self._ended = True

    def phi(self, type: str, incoming: Iterable[tuple[str, str]]) -> Val:
        """Begin a block with the value that belongs to the block it was reached from: (value, label) pairs."""
        return self.emit(type, f"phi {type} " + ", ".join(f"[ {value}, %{label} ]" for value, label in incoming))

    def ret(self, value: Val | None = None) -> None:
        """Return."""
        self.line(f"ret {value}" if value is not None else "ret void")
        self._ended = True

    @contextmanager
    def if_(self, condition: Val) -> Iterator[None]:
        """Execute the `with` body when `condition` is set."""
        then, end = self.label("then"), self.label("end")
        self.branch(condition, then, end)
        self.place(then)
        yield
        self.place(end)

    @contextmanager
    def while_(self, condition: Callable[[], Val]) -> Iterator[None]:
        """Execute the `with` body as long as `condition()` is set."""
        head, body, end = self.label("head"), self.label("body"), self.label("end")
        self.place(head)
        self.branch(condition(), body, end)
        self.place(body)
        yield
        if not self._ended:
            self.jump(head)
        self.place(end)

    @contextmanager
    def range_(self, start: Number, stop: Number, type: str = "i64") -> Iterator[Val]:
        """Execute the `with` body for each number from `start` to before `stop`."""
        index = self.var(type, start)
        bound = stop if isinstance(stop, Val) else self.const(type, stop)
        with self.while_(lambda: index.get().ult(bound)):
            yield index.get()
            index.set(index.get() + 1)

    @contextmanager
    def each_bit(self, mask: Val) -> Iterator[Val]:
        """Execute the `with` body for each set bit of an i32, its number as i32, lowest first."""
        left = self.var("i32", mask)
        with self.while_(lambda: left.get().ne(0)):
            bits = left.get()
            yield self.call("llvm.cttz.i32", "i32", bits, self.const("i1", 1))
            left.set(bits & (bits - 1))

    def text(self) -> str:
        """Return the function's IR."""
        if not self._ended:
            self.ret()
        return "\n".join([self._head, "begin:", *self._entry, "  br label %entry", "entry:", *self.lines, "}"])


def mangled(type: str) -> str:
    """Return how an intrinsic's name spells `type`."""
    found = _VECTOR.fullmatch(type)
    element = {"float": "f32", "double": "f64", "ptr": "p0"}.get(element_of(type), element_of(type))
    return f"v{found[1]}{element}" if found else element


def module_text(bodies: Sequence[Body], extra: Sequence[str] = ()) -> str:
    """Return a module of functions, with declarations of what they call and do not hold."""
    own = {body.name for body in bodies}
    calls = {name: text for body in bodies for name, text in body.calls.items() if name not in own}
    return "\n".join([*extra, *calls.values(), *(body.text() for body in bodies), ""])
