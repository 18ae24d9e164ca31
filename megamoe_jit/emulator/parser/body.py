"""Bodies of functions: instructions, labels, scopes and what they declare."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from megamoe_jit.emulator.parser.debug import LOC, Locations
from megamoe_jit.emulator.parser.declarations import initial_bytes, parse_declaration, parse_registers
from megamoe_jit.emulator.parser.lexer import OperandError, Source, split_operands
from megamoe_jit.emulator.parser.nodes import (
    LabelOp,
    Operand,
    Param,
    PtxSyntaxError,
    Reg,
    RegOp,
    Symbol,
    Variable,
    Vec,
)
from megamoe_jit.emulator.parser.operands import parse_operands
from megamoe_jit.emulator.parser.scopes import Names, ParamVariable, Scope

_STATEMENT = re.compile(
    r"\s*(?:"
    r"([A-Za-z_$%][\w$]*)\s*:(?!:)"
    r"|(?:@\s*(!?)\s*([A-Za-z_$%][\w$]*)\s+)?([a-z]\w*(?:(?:\.|::)\w+|:[0-9]+)*)([^;]*);"
    r"|([{}])"
    r"|(\.[a-z]\w*)([^;]*);"
    r")",
    re.A,
)
_LABEL_NAME = re.compile(r"\s*([A-Za-z_$%][\w$]*)\s*", re.A)
_SPACE = re.compile(r"\s*")
_MAX_DEPTH = 200


class Raw:
    """An instruction that has no final index yet; `location` is the number of its `.loc` record, negative without."""

    __slots__ = ("guard", "line", "location", "opcode", "operands", "text")

    def __init__(
        self, opcode: str, operands: tuple[Operand, ...], guard: tuple[Reg, bool] | None, line: int, text: str, loc: int
    ) -> None:
        """Keep what was read."""
        self.opcode = opcode
        self.operands = operands
        self.guard = guard
        self.line = line
        self.text = text
        self.location = loc


@dataclass(slots=True, kw_only=True)
class Body:
    """A function as read: branches name indices, calls still stand.

    Attributes:
        formals: parameters: entries have Params, device functions registers or names of ParamVariables.
        returns: results of a device function, alike.
        limits: directives of the header: "maxntid" -> (384, 1, 1).
    """

    name: str
    is_entry: bool
    names: Names
    params: tuple[Param, ...] = ()
    formals: tuple[Reg | str, ...] = ()
    returns: tuple[Reg | str, ...] = ()
    limits: dict[str, tuple[int, ...]] = field(default_factory=dict)
    instructions: list[Raw] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    branch_tables: dict[str, tuple[int, ...]] = field(default_factory=dict)
    calls: list[Raw] = field(default_factory=list)
    offset: int = 0


class BodyReader:
    """Reads the statements of one function."""

    def __init__(
        self, source: Source, locations: Locations, body: Body, scope: Scope, add_global: Callable[[str, str], None]
    ) -> None:
        """Start in the function's `scope`; `add_global` takes declarations of module-wide spaces."""
        self._source = source
        self._locations = locations
        self._body = body
        self._scope = scope
        self._add_global = add_global
        self._location = -1
        self._pending_label: str | None = None
        self._branches: list[tuple[Raw, int, Scope, int]] = []
        self._tables: list[tuple[str, str, Scope, int]] = []

    def read(self, start: int) -> int:
        """Read from behind the opening brace; returns the offset behind the closing one."""
        source, text = self._source, self._source.text
        position, depth = start, 0
        match_statement = _STATEMENT.match
        while True:
            match = match_statement(text, position)
            if match is None:
                raise self._unreadable(position)
            kind = match.lastindex
            try:
                if kind == 5:
                    self._instruction(match)
                elif kind == 1:
                    self._label(match.group(1))
                elif kind == 6:
                    if match.group(6) == "}":
                        if depth == 0:
                            position = match.end()
                            break
                        depth -= 1
                        assert self._scope.parent is not None
                        self._scope = self._scope.parent
                    else:
                        depth += 1
                        if depth > _MAX_DEPTH:
                            raise OperandError("braces are nested too deeply")
                        self._scope = Scope(self._body.names, self._scope)
                elif match.group(7) == ".loc":
                    position = self._loc(match.start(7))
                    continue
                else:
                    self._directive(match.group(7), match.group(8), match.start(7))
            except OperandError as error:
                raise source.error(str(error), match.start()) from None
            position = match.end()
        self._resolve()
        return position

    def _unreadable(self, position: int) -> PtxSyntaxError:
        source = self._source
        found = _SPACE.match(source.text, position)
        assert found is not None
        at = found.end()
        # A `.loc` has no semicolon, so the last one of a function finds no statement that ends behind it.
        if at == len(source.text):
            return source.error(f"the body of {self._body.name} is never closed", at)
        return source.error(f"{source.excerpt(at)!r} is no statement", at)

    def _loc(self, position: int) -> int:
        match = LOC.match(self._source.text, position)
        if match is None:
            raise OperandError(f"{self._source.excerpt(position)!r} is no .loc")
        self._location = self._locations.add(match)
        return match.end()

    def _label(self, name: str) -> None:
        scope = self._scope
        if name in scope.labels:
            raise OperandError(f"label {name!r} stands twice in one scope")
        unique = self._body.names.unique(name)
        index = len(self._body.instructions)
        scope.labels[name] = (unique, index)
        self._body.labels[unique] = index
        self._pending_label = name

    def _instruction(self, match: re.Match[str]) -> None:
        negated, guard_name, opcode, text = match.group(2, 3, 4, 5)
        scope = self._scope
        guard: tuple[Reg, bool] | None = None
        if guard_name is not None:
            operand = scope.resolve(guard_name)
            if not isinstance(operand, RegOp) or operand.reg.type != "pred":
                raise OperandError(f"guard {guard_name!r} is no predicate")
            guard = (operand.reg, negated == "!")
        offset = match.start(3) if guard_name is not None else match.start(4)
        raw = Raw(opcode, (), guard, self._source.line(offset), " ".join(match.group().split()), self._location)
        base = opcode[:4]
        if base == "bra" or base == "bra.":
            self._branches.append((raw, 0, scope, offset))
            raw.operands = (Symbol(name=text.strip()),)
        elif base == "brx.":
            parts = text.rsplit(",", 1)
            raw.operands = (*parse_operands(parts[0], scope), Symbol(name=parts[-1].strip()))
            if len(raw.operands) != 2:
                raise OperandError("brx.idx needs an index and a list of targets")
            self._branches.append((raw, 1, scope, offset))
        elif base == "call" and (len(opcode) == 4 or opcode[4] == "."):
            raw.operands = self._call(text, scope)
            self._body.calls.append(raw)
        else:
            raw.operands = parse_operands(text, scope)
        self._body.instructions.append(raw)
        self._pending_label = None

    def _call(self, text: str, scope: Scope) -> tuple[Operand, ...]:
        parts = [part.strip() for part in split_operands(text)]
        lists: list[tuple[Operand, ...]] = [(), ()]
        if parts[0].startswith("("):
            lists[0] = self._call_list(parts.pop(0), scope)
        if not parts:
            raise OperandError("a call names no function")
        callee = scope.resolve(parts[0])
        if not isinstance(callee, Symbol) or callee.name not in scope.names.module:
            raise OperandError(f"call through {parts[0][:60]!r}: indirect calls are not supported")
        if len(parts) > 1 and parts[1].startswith("("):
            lists[1] = self._call_list(parts[1], scope)
        return Vec(items=lists[0]), callee, Vec(items=lists[1])

    def _call_list(self, text: str, scope: Scope) -> tuple[Operand, ...]:
        if not text.endswith(")"):
            raise OperandError(f"{text[:60]!r} is no list of parameters")
        return parse_operands(text[1:-1], scope)

    def _directive(self, name: str, text: str, offset: int) -> None:
        scope, names = self._scope, self._body.names
        if name == ".reg":
            for register, count, kind, lanes in parse_registers(text):
                if count is None:
                    scope.declare_register(register, kind, lanes)
                else:
                    scope.declare_registers(register, count, kind)
        elif name == ".param":
            for declared in parse_declaration(f".param{text}", "param"):
                unique = names.unique(declared.name)
                names.param_variables[unique] = ParamVariable(
                    name=unique,
                    type=declared.type if not declared.dims else "",
                    size=declared.size,
                    align=declared.align,
                )
                scope.declare(declared.name, Symbol(name=unique))
        elif name in (".local", ".shared"):
            self._memory(name[1:], text)
        elif name in (".global", ".const"):
            self._add_global(f"{name}{text}", name[1:])
        elif name in (".branchtargets", ".calltargets", ".callprototype"):
            self._list_of_targets(name, text, offset)
        elif name != ".pragma":
            raise OperandError(f"{name} is not known in a function")

    def _memory(self, space: str, text: str) -> None:
        scope, names = self._scope, self._body.names
        for declared in parse_declaration(f".{space}{text}", space):
            if declared.init is not None:
                raise OperandError(f"{declared.name!r} is of space .{space}, which cannot be initialised")
            if space == "shared" and not self._body.is_entry:
                # One place, wherever the function is inlined.
                unique = names.unique(f"{self._body.name}::{declared.name}")
            else:
                unique = names.unique(declared.name)
            size, _, _ = initial_bytes(declared)
            names.declared_locals[unique] = Variable(
                name=unique,
                space=space,
                align=declared.align,
                size=size,
                is_extern=bool(declared.dims) and declared.dims[0] is None,
            )
            scope.declare(declared.name, Symbol(name=unique))

    def _list_of_targets(self, name: str, text: str, offset: int) -> None:
        label = self._pending_label
        if label is None:
            raise OperandError(f"{name} without a name before it")
        unique, _ = self._scope.labels.pop(label)
        del self._body.labels[unique]
        self._scope.declare(label, Symbol(name=unique))
        self._pending_label = None
        if name == ".branchtargets":
            self._tables.append((unique, text, self._scope, offset))

    def _resolve(self) -> None:
        """Give branches their targets, now that all labels are known."""
        body = self._body
        for unique, text, scope, offset in self._tables:
            body.branch_tables[unique] = tuple(self._target(label, scope, offset).target for label in text.split(","))
        for raw, which, scope, offset in self._branches:
            name = raw.operands[which]
            assert isinstance(name, Symbol)
            if which == 0:
                raw.operands = (self._target(name.name, scope, offset),)
                continue
            try:
                table = scope.resolve(name.name)
            except OperandError as error:
                raise self._source.error(str(error), offset) from None
            if not isinstance(table, Symbol) or table.name not in body.branch_tables:
                raise self._source.error(f"{name.name!r} is no .branchtargets list", offset)
            raw.operands = (raw.operands[0], table)

    def _target(self, text: str, scope: Scope, offset: int) -> LabelOp:
        match = _LABEL_NAME.fullmatch(text)
        found = scope.find_label(match.group(1)) if match is not None else None
        if found is None:
            raise self._source.error(f"label {text.strip()[:60]!r} is not in {self._body.name}", offset)
        return LabelOp(name=found[0], target=found[1])
