"""What a parsed PTX module is made of: plain data, every name resolved, every program counter an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from megamoe_jit.errors import ArgumentError

SHARED_BASE = 1024
"""First shared address that a kernel may use; [0, SHARED_BASE) is the system's (`%reserved_smem_offset_end`)."""

WIDTH: Mapping[str, int] = {
    "pred": 1,
    "b8": 1, "u8": 1, "s8": 1, "e4m3": 1, "e5m2": 1,
    "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "e4m3x2": 2, "e5m2x2": 2,
    "b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4,
    "b64": 8, "u64": 8, "s64": 8, "f64": 8, "f32x2": 8,
    "b128": 16,
}  # fmt: skip
"""Bytes of a value of each type; a predicate takes one."""


class PtxSyntaxError(ArgumentError):
    """PTX text that cannot be read; the message says where and what was expected.

    Attributes:
        line: line of the text, counted from 1 (0 where none is to blame).
        column: column of that line, counted from 1 (0 where none is to blame).
    """

    def __init__(self, message: str, *, line: int = 0, column: int = 0) -> None:
        """Keep the place beside the message, which names it too."""
        super().__init__(f"PTX line {line}, column {column}: {message}" if line else f"PTX: {message}")
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True, kw_only=True)
class Reg:
    """A register: `index` is dense and unique in its function, `name` is unique too (scopes' repeats are renamed)."""

    name: str
    type: str
    index: int

    @property
    def width(self) -> int:
        """Bytes of one lane's value."""
        return WIDTH[self.type]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegOp:
    """A register as an operand."""

    reg: Reg


@dataclass(frozen=True, slots=True, kw_only=True)
class Imm:
    """A constant.

    Attributes:
        value: the number; an int as written (negative ones are negative, `0xffffffff` is not).
        is_float: written as a float (`0f3F800000`, `0d...`, `1.5`).
        bits: raw pattern of a float, None for an int.
        size: bytes of `bits` (4 for `0f`, 8 for `0d` and decimals), 0 for an int.
    """

    value: int | float
    is_float: bool = False
    bits: int | None = None
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vec:
    """`{a, b, ...}`; also a call's parenthesised list."""

    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """`[base + offset, {coords}]`: base is a RegOp, a Symbol, or None for a plain number.

    Further operands inside the brackets are in `coords` (the braces' items) and `extra` (what follows them).
    """

    base: Operand | None
    offset: int = 0
    coords: Vec | None = None
    extra: tuple[Operand, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbol:
    """Address of a variable, parameter or function, plus `offset`.

    Look `name` up in `Function.variables` (shared, local), then in its `params`, then in `PtxModule.globals` and
    `PtxModule.functions`; what a `call` names may be in none of them (`vprintf`).
    The name of a branch table is in `Function.branch_tables`.
    """

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """A special register: "%tid.x", "%clock64", "%laneid"."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelOp:
    """A label; `target` is the index of the instruction that follows it."""

    name: str
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """`first|second`: two destinations."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """`_`: a result that nobody wants, or an operand that is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    """`!p`: a predicate operand, negated."""

    operand: Operand


Operand: TypeAlias = RegOp | Imm | Vec | Address | Symbol | Special | LabelOp | Pair | Sink | Not


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A place in the source that a `.loc` names.

    Attributes:
        file: path as in `.file`.
        line: line of that file.
        inlined_at: the call that this place was inlined at, or None.
        function: function that holds the place when it was inlined, as `function_name` gives it.
    """

    file: str
    line: int
    inlined_at: Location | None = None
    function: str | None = None

    @property
    def chain(self) -> tuple[Location, ...]:
        """This place and those it was inlined at, innermost first."""
        places: list[Location] = []
        place: Location | None = self
        while place is not None:
            places.append(place)
            place = place.inlined_at
        return tuple(places)

    def __str__(self) -> str:
        """Return `file:line <- file:line`, innermost first."""
        return " <- ".join(f"{place.file}:{place.line}" for place in self.chain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction of a function.

    Attributes:
        index: its program counter.
        opcode: the whole dotted text, `mbarrier.try_wait.parity.shared::cta.b64`.
        operands: in the order written; of a call (returns Vec, callee Symbol, arguments Vec).
        guard: the predicate and whether it is negated (`@!p`), or None.
        line: line of the PTX text.
        text: the instruction as in the PTX text, its white space as single blanks.
        location: place in the source, or None without `.loc`.
    """

    index: int
    opcode: str
    operands: tuple[Operand, ...]
    guard: tuple[Reg, bool] | None
    line: int
    text: str
    location: Location | None

    @property
    def base(self) -> str:
        """The opcode up to its first dot."""
        return self.opcode.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable of the module or of a function.

    Attributes:
        space: "global", "const", "shared" or "local".
        align: bytes.
        size: bytes; 0 for an `.extern .shared x[]`, and for externals that another module defines.
        init: initial bytes (`size` of them), or None where there is no initialiser (global and const are zeros then).
        relocations: (offset, symbol): add the generic address of `symbol` to the 64-bit word at `offset` of `init`.
        offset: shared: address within the CTA's shared space; local: offset in a lane's frame; else 0.
        is_extern: declared here, defined elsewhere (dynamic shared memory has it too).
    """

    name: str
    space: str
    align: int
    size: int
    init: bytes | None = None
    relocations: tuple[tuple[int, str], ...] = ()
    offset: int = 0
    is_extern: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A parameter of an entry, at `offset` of the parameter buffer (C struct rules)."""

    name: str
    type: str
    size: int
    align: int
    offset: int

    @property
    def is_pointer(self) -> bool:
        """Whether a 64-bit scalar, and so what a pointer is passed as."""
        return self.size == 8 and self.type in ("u64", "b64", "s64")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Function:
    """An entry, with the device functions that it calls inlined.

    Attributes:
        is_entry: true (device functions are not kept).
        params: in order.
        instructions: the last one never falls through, so that every label has an instruction.
        registers: in the order of their indices.
        labels: name -> index of the instruction that follows.
        branch_tables: name of a `.branchtargets` list -> indices.
        variables: unique name -> shared and local variables that the function can reach.
        local_bytes: size of a lane's frame.
        shared_bytes: static shared memory, counted from SHARED_BASE.
        dynamic_shared_offset: shared address at which `.extern .shared` variables begin.
        max_threads: product of `.maxntid`; max_block has its three numbers.
        required_block: `.reqntid`; required_cluster: `.reqnctapercluster`; max_cluster: `.maxclusterrank`.
    """

    name: str
    is_entry: bool
    params: tuple[Param, ...] = ()
    registers: tuple[Reg, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    branch_tables: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    variables: Mapping[str, Variable] = field(default_factory=dict)
    local_bytes: int = 0
    shared_bytes: int = 0
    dynamic_shared_offset: int = SHARED_BASE
    max_threads: int | None = None
    max_block: tuple[int, int, int] | None = None
    required_block: tuple[int, int, int] | None = None
    required_cluster: tuple[int, int, int] | None = None
    max_cluster: int | None = None
    min_ctas: int | None = None
    max_registers: int | None = None

    @property
    def param_bytes(self) -> int:
        """Size of the parameter buffer."""
        return max((param.offset + param.size for param in self.params), default=0)

    def param(self, name: str) -> Param:
        """Return the parameter called `name`; raises ArgumentError when there is none."""
        for param in self.params:
            if param.name == name:
                return param
        raise ArgumentError(f"{self.name} has no parameter {name!r}; it has {[param.name for param in self.params]}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PtxModule:
    """A PTX text, read.

    Attributes:
        version: PTX ISA version, (8, 7).
        target: `sm_100a`.
        functions: the entries, by name.
        globals: variables of spaces global and const, by name (string literals are among them).
        files: number -> path, from `.file`.
    """

    version: tuple[int, int]
    target: str
    functions: Mapping[str, Function]
    globals: Mapping[str, Variable]
    files: Mapping[int, str]

    @property
    def entries(self) -> tuple[Function, ...]:
        """The functions that can be launched."""
        return tuple(self.functions.values())
