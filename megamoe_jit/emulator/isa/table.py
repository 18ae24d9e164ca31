"""The table of instruction forms: a row is a pattern of opcodes with its meaning; `lookup` finds the row of an opcode.

Patterns are written in the manual's own notation, over the whole dotted opcode:

- `{.ftz}` may be absent; it may hold further braces: `{.shared{::cta}}`.
- `{.a|.b}` is one of several; an empty alternative (`{.a|.b|}`) lets it be absent.
- `{round:.rn|.rz|}` is the same and keeps what was there, without its dot, as `form["round"]`.
- `<type>` (or `{type}`) is one word out of a named set, kept as `form["type"]`: `types="u32 s32"` gives the set of
  `<type>`, `sets={"to": "...", "from": "..."}` gives others.

Names in `dst` and `src` (`"<type> b32"`) stand for what the form has kept. Rows come into being by importing the
modules of this package; `lookup` does that when it is first asked.
"""

from __future__ import annotations

import enum
import functools
import importlib
import itertools
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from megamoe_jit.emulator.isa.patterns import Pattern
from megamoe_jit.emulator.isa.sections import section_of
from megamoe_jit.emulator.parser.nodes import Instruction
from megamoe_jit.errors import UnsupportedError

Types: TypeAlias = "str | Callable[[Form, int], tuple[str, ...]]"
"""Operand types: "u32 u32", or what gives them for a form and a number of (flattened) operands."""

ALL_LANES = -1
"""`members=` of an instruction that all lanes of the warp execute together (`.aligned` without a member mask)."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Kind(enum.Enum):
    """Who executes an instruction."""

    PURE = "pure"
    """Values in, values out: `Signature.apply` on the engine's `Ops`."""
    MEMORY = "memory"
    """Loads, stores and addresses that engines execute themselves."""
    CONTROL = "control"
    """Branches, returns and exits, part of every engine."""
    HANDLER = "handler"
    """A Python handler: `Op.function(Decode)` gives it."""
    NOOP = "noop"
    """Named here because it changes nothing that the emulator models; `Op.reason` says why."""


@dataclass(frozen=True, slots=True)
class Form:
    """An opcode as one row reads it.

    Attributes:
        opcode: the whole dotted text.
        captures: what the pattern's named parts hold, without leading dots ("" where absent).
        parts: the opcode's parts between dots; `shared::cta` is one.
        outputs: number of the instruction's (flattened) destinations, 0 while only the opcode is known.
    """

    opcode: str
    captures: Mapping[str, str]
    parts: frozenset[str]
    outputs: int = 0

    def __getitem__(self, name: str) -> str:
        """Return what the pattern's part `name` holds."""
        return self.captures[name]

    def has(self, part: str) -> bool:
        """Whether the opcode has `.part` somewhere."""
        return part in self.parts

    @property
    def type(self) -> str:
        """The pattern's `<type>`."""
        return self.captures["type"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One line of the table; the decorators below describe the fields."""

    kind: Kind
    pattern: Pattern
    section: str
    function: Callable[..., Any] | None
    dst: Types = ""
    src: Types = ""
    members: int | None = None
    carry_in: bool = False
    carry_out: bool = False
    where: Callable[[Form], bool] | None = None
    reason: str = ""
    facts: Mapping[str, Any]

    def match(self, opcode: str) -> Form | None:
        """Return the form when this row is about `opcode`."""
        captures = self.pattern.match(opcode)
        if captures is None:
            return None
        form = Form(opcode, captures, frozenset(opcode.split(".")))
        return form if self.where is None or self.where(form) else None

    def opcodes(self) -> Iterator[str]:
        """Yield every opcode that this row is about."""
        return (opcode for opcode in self.pattern.spellings() if self.match(opcode))


@dataclass(frozen=True, slots=True)
class Op:
    """A row, read for one opcode."""

    row: Row
    form: Form

    @property
    def kind(self) -> Kind:
        """Who executes it."""
        return self.row.kind

    @property
    def section(self) -> str:
        """PTX ISA section."""
        return self.row.section

    @property
    def reason(self) -> str:
        """Why a no-op is one."""
        return self.row.reason

    @property
    def function(self) -> Callable[..., Any]:
        """What the row's decorator stands on."""
        assert self.row.function is not None, f"{self.row.pattern.text} is a no-op"
        return self.row.function

    @property
    def members(self) -> int | None:
        """Index among the (flattened) sources of the member mask of a `.sync` instruction, ALL_LANES, or None."""
        return self.row.members

    @property
    def facts(self) -> Mapping[str, Any]:
        """Further keywords of the row's decorator."""
        return self.row.facts

    def dst_types(self, count: int) -> tuple[str, ...]:
        """Types of `count` destinations."""
        return _types(self.row.dst, self.form, count, "destinations")

    def src_types(self, count: int) -> tuple[str, ...]:
        """Types of `count` sources."""
        return _types(self.row.src, self.form, count, "sources")


def _types(types: Types, form: Form, count: int, what: str) -> tuple[str, ...]:
    if callable(types):
        made = types(form, count)
        if len(made) != count:
            raise UnsupportedError(f"{form.opcode} has {count} {what}, but takes {' '.join(made) or 'none'}.")
        return made
    names = re.sub(r"[<{](\w+)[>}]", lambda found: form[found[1]], types).split()
    wanted = [name.rstrip("?") for name in names]
    optional = sum(name.endswith("?") for name in names)
    if not len(names) - optional <= count <= len(names):
        raise UnsupportedError(f"{form.opcode} has {count} {what}, but takes {' '.join(names) or 'none'}.")
    return tuple(wanted[:count])


_rows: dict[str, list[Row]] = {}


def _add(
    kind: Kind,
    pattern: str,
    section: str,
    function: Callable[..., Any] | None,
    *,
    types: str = "",
    sets: Mapping[str, str] | None = None,
    **fields: Any,
) -> None:
    named = dict(sets or {}) | ({"type": types} if types else {})
    known = {"dst", "src", "members", "carry_in", "carry_out", "where", "reason"}
    facts = {name: fields.pop(name) for name in list(fields) if name not in known}
    row = Row(
        kind=kind, pattern=Pattern(pattern, named), section=section, function=function, facts=facts, **fields
    )  # fmt: skip
    base = re.match(r"[\w$]+", pattern)
    assert base, f"{pattern}: a pattern begins with its base opcode"
    _rows.setdefault(base[0], []).append(row)


def pure(
    pattern: str,
    *,
    section: str,
    types: str = "",
    sets: Mapping[str, str] | None = None,
    dst: Types,
    src: Types = "",
    members: int | None = None,
    carry_in: bool = False,
    carry_out: bool = False,
    where: Callable[[Form], bool] | None = None,
) -> Callable[[_Function], _Function]:
    """Register `function(calc, form, *values) -> value or values` as what a form computes.

    Args:
        pattern: opcodes; see the module's docstring.
        section: PTX ISA section.
        types: words that `<type>` may be.
        sets: words that other names may be.
        dst: types of the destinations; those marked `?` need not be there. The function always gives all values.
        src: types of the sources, vectors' items one by one; those marked `?` need not be there.
        members: of a `.sync` form: which source is the member mask, or ALL_LANES.
        carry_in: the carry flag is one more source, the last (`pred`).
        carry_out: the carry flag is one more destination, the last (`pred`).
        where: further condition on the form.
    """

    def register(function: _Function) -> _Function:
        _add(
            Kind.PURE, pattern, section, function, types=types, sets=sets, dst=dst, src=src, members=members,
            carry_in=carry_in, carry_out=carry_out, where=where,
        )  # fmt: skip
        return function

    return register


def handler(
    pattern: str,
    *,
    section: str,
    types: str = "",
    sets: Mapping[str, str] | None = None,
    where: Callable[[Form], bool] | None = None,
    **facts: Any,
) -> Callable[[_Function], _Function]:
    """Register `function(decode) -> (warp, mask) -> Outcome`: called once at load, its result at each execution."""

    def register(function: _Function) -> _Function:
        _add(Kind.HANDLER, pattern, section, function, types=types, sets=sets, where=where, **facts)
        return function

    return register


def memory(
    pattern: str,
    *,
    section: str,
    types: str = "",
    sets: Mapping[str, str] | None = None,
    where: Callable[[Form], bool] | None = None,
    **facts: Any,
) -> Callable[[_Function], _Function]:
    """Register a load, store or address form that both engines execute; what `function` is, the memory module says."""

    def register(function: _Function) -> _Function:
        _add(Kind.MEMORY, pattern, section, function, types=types, sets=sets, where=where, **facts)
        return function

    return register


def control(pattern: str, *, section: str, where: Callable[[Form], bool] | None = None, **facts: Any) -> None:
    """Register a branch, return or exit, which engines know by its base opcode."""
    _add(Kind.CONTROL, pattern, section, None, where=where, **facts)


def noop(
    pattern: str,
    reason: str,
    *,
    section: str,
    types: str = "",
    sets: Mapping[str, str] | None = None,
    where: Callable[[Form], bool] | None = None,
) -> None:
    """Register a form that changes nothing here, with the reason."""
    _add(Kind.NOOP, pattern, section, None, types=types, sets=sets, where=where, reason=reason)


@functools.cache
def _load() -> None:
    """Import the modules that hold rows."""
    package = importlib.import_module("megamoe_jit.emulator.isa")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def rows() -> tuple[Row, ...]:
    """Return all rows, by base opcode."""
    _load()
    return tuple(row for base in sorted(_rows) for row in _rows[base])


@functools.cache
def find(opcode: str) -> Op | None:
    """Return what the table says about `opcode`, None when it says nothing; two rows for one opcode are a bug."""
    _load()
    for spelling in _spellings(opcode):
        matches = [Op(row, form) for row in _rows.get(opcode.partition(".")[0], ()) if (form := row.match(spelling))]
        assert len(matches) <= 1, f"{opcode} is in several rows: {', '.join(op.row.pattern.text for op in matches)}"
        if matches:
            return matches[0]
    return None


_QUALIFIERS = frozenset(
    (
        "rn",
        "rz",
        "rm",
        "rp",
        "rna",
        "rs",
        "rni",
        "rzi",
        "rmi",
        "rpi",
        "ftz",
        "sat",
        "satfinite",
        "relu",
        "NaN",
        "xorsign",
        "abs",
        "approx",
        "full",
    )
)


def _spellings(opcode: str) -> Iterator[str]:
    """Yield `opcode`, then other orders of its qualifiers: the assembler takes any, the manual prints one."""
    yield opcode
    parts = opcode.split(".")
    places = [place for place, part in enumerate(parts) if part in _QUALIFIERS]
    if 1 < len(places) < 6:
        for order in itertools.permutations(places):
            moved = list(parts)
            for place, origin in zip(places, order, strict=True):
                moved[place] = parts[origin]
            yield ".".join(moved)


def lookup(opcode: str) -> Op:
    """Return what the table says about `opcode`; raises UnsupportedError that names its PTX ISA section."""
    op = find(opcode)
    if op is None:
        known = len(_rows.get(opcode.partition(".")[0], ()))
        near = f"{known} other forms of it are" if known else "no form of it is"
        raise UnsupportedError(
            f"The emulator does not know {opcode} (PTX ISA: {section_of(opcode)}); {near} in its table."
        )
    return op


def unsupported(instructions: Iterable[tuple[Instruction, str]]) -> UnsupportedError:
    """Make the error that lists every instruction of a kernel without a meaning here, with the reason of each.

    Names text, PTX line, source line with its inlined-at chain, and PTX ISA section.
    """
    lines = []
    for instruction, reason in instructions:
        place = f", {instruction.location}" if instruction.location else ""
        section = section_of(instruction.opcode)
        lines.append(f"  PTX line {instruction.line}{place}: {instruction.text}\n    {reason} (PTX ISA: {section})")
    count = "1 instruction" if len(lines) == 1 else f"{len(lines)} instructions"
    return UnsupportedError(f"The emulator cannot execute {count} of this kernel:\n" + "\n".join(lines))
