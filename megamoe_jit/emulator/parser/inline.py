"""Puts the bodies of device functions where they are called, and turns parameters of calls into registers.

The result has neither calls of functions with bodies nor `ld.param`/`st.param` of anything but an entry's parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from megamoe_jit.emulator.parser.body import Body, Raw
from megamoe_jit.emulator.parser.debug import CallSites, Locations
from megamoe_jit.emulator.parser.nodes import (
    WIDTH,
    Address,
    Imm,
    LabelOp,
    Location,
    Not,
    Operand,
    Pair,
    PtxSyntaxError,
    Reg,
    RegOp,
    Sink,
    Symbol,
    Variable,
    Vec,
)
from megamoe_jit.emulator.parser.scopes import Names, ParamVariable

_PARAM_ACCESS = re.compile(r"(ld|st)\.param(?:::func|::entry)?\.(\w+)", re.A)
_PARAM_SPACE = re.compile(r"\.param(?:::func|::entry)?(?=\.|$)", re.A)

_MAX_INSTRUCTIONS = 250_000
_MAX_CALL_DEPTH = 100


@dataclass(slots=True, kw_only=True)
class Flat:
    """A body without calls of functions that have bodies; instructions carry places instead of their numbers."""

    names: Names
    instructions: list[tuple[Raw, Location | None]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    branch_tables: dict[str, tuple[int, ...]] = field(default_factory=dict)


class Inliner:
    """Flattens bodies; each device function once, however often it is called."""

    def __init__(self, bodies: Mapping[str, Body], locations: Locations, error: Callable[[str, int], PtxSyntaxError]):
        """Work on the functions `bodies`; `error` makes an exception for a line of the text."""
        self._bodies = bodies
        self._locations = locations
        self._error = error
        self._flat: dict[str, Flat] = {}
        self._sites = CallSites()

    def flatten(self, name: str, callers: tuple[str, ...] = ()) -> Flat:
        """Return the body of function `name` with its calls inlined; raises PtxSyntaxError, for recursion too."""
        if name in self._flat:
            return self._flat[name]
        body = self._bodies[name]
        if not body.is_entry:
            _formals_are_local(body)
        flat = Flat(names=body.names)
        location = self._locations.location
        calls = {id(raw) for raw in body.calls if _callee(raw) in self._bodies}
        if not calls:
            flat.instructions = [(raw, location(raw.location)) for raw in body.instructions]
            flat.labels = body.labels
            flat.branch_tables = body.branch_tables
            self._flat[name] = flat
            return flat
        positions: list[int] = []
        own: list[int] = []
        for raw in body.instructions:
            positions.append(len(flat.instructions))
            if id(raw) in calls:
                callee = _callee(raw)
                if callee in (*callers, name):
                    raise self._error(f"{callee} calls itself: recursion is not supported", raw.line)
                if len(callers) > _MAX_CALL_DEPTH:
                    raise self._error(f"{name} is called more than {_MAX_CALL_DEPTH} calls deep", raw.line)
                _Call(self, flat, self._bodies[callee], self.flatten(callee, (*callers, name)), raw).expand()
            else:
                if _is_branch(raw):
                    own.append(len(flat.instructions))
                flat.instructions.append((raw, location(raw.location)))
            if len(flat.instructions) > _MAX_INSTRUCTIONS:
                raise self._error(f"{name} has more than {_MAX_INSTRUCTIONS} instructions, calls inlined", raw.line)
        positions.append(len(flat.instructions))
        for index in own:
            raw, place = flat.instructions[index]
            moved = tuple(
                LabelOp(name=op.name, target=positions[op.target]) if isinstance(op, LabelOp) else op
                for op in raw.operands
            )
            flat.instructions[index] = (_copy(raw, moved), place)
        flat.labels |= {label: positions[target] for label, target in body.labels.items()}
        flat.branch_tables |= {
            table: tuple(positions[target] for target in targets) for table, targets in body.branch_tables.items()
        }
        self._flat[name] = flat
        return flat

    def place(self, raw: Raw) -> Location | None:
        """Return where `raw` is in the source."""
        return self._locations.location(raw.location)

    def inlined(self, location: Location | None, call: Location | None, function: str) -> Location | None:
        """Return `location` as seen from a call of `function`."""
        return self._sites.inlined(location, call, function)

    def error(self, message: str, line: int) -> PtxSyntaxError:
        """Return the error that says `message` about a line."""
        return self._error(message, line)


class _Call:
    """One call on its way to becoming its callee's body."""

    def __init__(self, inliner: Inliner, flat: Flat, callee: Body, inner: Flat, raw: Raw) -> None:
        self._inliner, self._flat, self._callee, self._inner, self._raw = inliner, flat, callee, inner, raw
        self._names = flat.names
        self._place = inliner.place(raw)
        self._registers: dict[int, Operand] = {}
        self._symbols: dict[str, str] = {}
        self._copied: dict[int, Operand] = {}
        self._base = 0
        self._prefix = self._names.unique(f"{callee.name}()")

    def expand(self) -> None:
        flat, inner, raw, names = self._flat, self._inner, self._raw, self._names
        returns, _, arguments = raw.operands
        assert isinstance(returns, Vec)
        assert isinstance(arguments, Vec)
        callee = self._callee
        for what, given, wanted in (
            ("arguments", arguments.items, callee.formals),
            ("results", returns.items, callee.returns),
        ):
            if len(given) != len(wanted):
                raise self._inliner.error(f"{callee.name} has {len(wanted)} {what}, not {len(given)}", raw.line)
        skip = len(flat.instructions) if raw.guard is not None else -1
        if raw.guard is not None:
            self._add("bra", (), guard=(raw.guard[0], not raw.guard[1]))  # gets its target below
        for reg in inner.names.registers:
            self._registers[reg.index] = RegOp(reg=names.new_register(f"{self._prefix}{reg.name}", reg.type))
        after = self._bind(arguments.items, returns.items)
        for variable in inner.names.declared_locals.values():
            self._variable(variable)
        for param in inner.names.param_variables.values():
            if param.name not in self._symbols:
                self._new_param(param)
        names.used |= inner.names.used
        self._body()
        for raw_after in after:
            flat.instructions.append((raw_after, self._place))
        if skip >= 0:
            end = LabelOp(name=names.unique(f"{self._prefix}skipped"), target=len(flat.instructions))
            flat.labels[end.name] = end.target
            branch, place = flat.instructions[skip]
            flat.instructions[skip] = (_copy(branch, (end,)), place)

    def _body(self) -> None:
        flat, inner = self._flat, self._inner
        self._base = len(flat.instructions)
        # A `ret` at the very end falls through to what follows the call.
        last = len(inner.instructions) - 1
        if last >= 0:
            final = inner.instructions[last][0]
            drop_last = _is_ret(final) and final.guard is None
        else:
            drop_last = False
        length = len(inner.instructions) - (1 if drop_last else 0)
        end = LabelOp(name=self._names.unique(f"{self._prefix}end"), target=self._base + length)
        flat.labels[end.name] = end.target
        for label, target in inner.labels.items():
            flat.labels[self._names.unique(f"{self._prefix}{label}")] = self._base + min(target, length)
        for table, targets in inner.branch_tables.items():
            self._symbols[table] = self._names.unique(f"{self._prefix}{table}")
            flat.branch_tables[self._symbols[table]] = tuple(self._base + min(target, length) for target in targets)
        self._length = length
        for raw, location in inner.instructions[:length]:
            guard = raw.guard
            if guard is not None:
                guard = (self._reg(guard[0]), guard[1])
            copied = Raw(raw.opcode, (), guard, raw.line, raw.text, raw.location)
            if _is_ret(raw):
                copied.opcode = "bra.uni" if raw.opcode == "ret.uni" else "bra"
                copied.operands = (end,)
            else:
                copied.operands = tuple([self._operand(operand) for operand in raw.operands])
            place = self._inliner.inlined(location, self._place, self._callee.name)
            flat.instructions.append((copied, place))

    def _bind(self, arguments: tuple[Operand, ...], returns: tuple[Operand, ...]) -> list[Raw]:
        """Let the callee's parameters mean the caller's; returns what is to be done when it has returned."""
        after: list[Raw] = []
        bound: set[str] = set()
        for formal, actual in zip(self._callee.formals, arguments, strict=True):
            if isinstance(formal, str) and (variable := self._param(actual)) is not None:
                self._alias(formal, variable)
                bound.add(variable.name)
            elif isinstance(formal, str):
                fresh = self._new_param(self._inner.names.param_variables[formal])
                self._add(f"st.param.{self._scalar(fresh)}", (Address(base=Symbol(name=fresh.name)), actual))
            elif (variable := self._param(actual)) is not None:
                kind = _untyped(formal.type)
                self._add(f"ld.param.{kind}", (self._registers[formal.index], Address(base=Symbol(name=variable.name))))
            else:
                self._add(_move(formal.type), (self._registers[formal.index], actual))
        for formal, actual in zip(self._callee.returns, returns, strict=True):
            variable = self._param(actual)
            if isinstance(formal, str) and variable is not None:
                if variable.name in bound:
                    raise self._inliner.error(
                        f"{variable.name!r} is both argument and result of {self._callee.name}", self._raw.line
                    )
                self._alias(formal, variable)
            elif isinstance(formal, str):
                fresh = self._new_param(self._inner.names.param_variables[formal])
                if not isinstance(actual, Sink):
                    source = Address(base=Symbol(name=fresh.name))
                    after.append(self._raw_like(f"ld.param.{self._scalar(fresh)}", (actual, source)))
            elif variable is not None:
                target = Address(base=Symbol(name=variable.name))
                after.append(
                    self._raw_like(f"st.param.{_untyped(formal.type)}", (target, self._registers[formal.index]))
                )
            elif not isinstance(actual, Sink):
                after.append(self._raw_like(_move(formal.type), (actual, self._registers[formal.index])))
        return after

    def _param(self, actual: Operand) -> ParamVariable | None:
        return self._names.param_variables.get(actual.name) if isinstance(actual, Symbol) else None

    def _scalar(self, variable: ParamVariable) -> str:
        if not variable.type:
            raise self._inliner.error(
                f"{self._callee.name} takes or returns {variable.size} bytes, and a single value stands in the call",
                self._raw.line,
            )
        return _untyped(variable.type)

    def _alias(self, formal: str, variable: ParamVariable) -> None:
        wanted = self._inner.names.param_variables[formal]
        if wanted.size != variable.size:
            raise self._inliner.error(
                f"{variable.name!r} has {variable.size} bytes, and {self._callee.name} wants {wanted.size} there",
                self._raw.line,
            )
        variable.align = max(variable.align, wanted.align)
        self._symbols[formal] = variable.name

    def _new_param(self, like: ParamVariable) -> ParamVariable:
        name = self._names.unique(f"{self._prefix}{like.name}")
        variable = ParamVariable(name=name, type=like.type, size=like.size, align=like.align)
        self._names.param_variables[name] = variable
        self._symbols[like.name] = name
        return variable

    def _variable(self, variable: Variable) -> None:
        names = self._names
        if variable.space == "shared":
            names.declared_locals.setdefault(variable.name, variable)
            return
        name = names.unique(f"{self._prefix}{variable.name}")
        names.declared_locals[name] = Variable(
            name=name, space=variable.space, align=variable.align, size=variable.size
        )
        self._symbols[variable.name] = name

    def _raw_like(self, opcode: str, operands: tuple[Operand, ...], guard: tuple[Reg, bool] | None = None) -> Raw:
        return Raw(opcode, operands, guard, self._raw.line, self._raw.text, self._raw.location)

    def _add(self, opcode: str, operands: tuple[Operand, ...], guard: tuple[Reg, bool] | None = None) -> None:
        self._flat.instructions.append((self._raw_like(opcode, operands, guard), self._place))

    def _reg(self, reg: Reg) -> Reg:
        copied = self._registers[reg.index]
        assert isinstance(copied, RegOp)
        return copied.reg

    def _operand(self, operand: Operand) -> Operand:
        if isinstance(operand, RegOp):
            return self._registers[operand.reg.index]
        known = self._copied.get(id(operand))
        if known is None:
            known = self._copy_operand(operand)
            self._copied[id(operand)] = known
        return known

    def _copy_operand(self, operand: Operand) -> Operand:
        copy = self._operand
        if isinstance(operand, Symbol):
            return Symbol(name=self._symbols.get(operand.name, operand.name), offset=operand.offset)
        if isinstance(operand, Vec):
            return Vec(items=tuple(copy(item) for item in operand.items))
        if isinstance(operand, Address):
            coords = None if operand.coords is None else copy(operand.coords)
            assert coords is None or isinstance(coords, Vec)
            return Address(
                base=None if operand.base is None else copy(operand.base),
                offset=operand.offset,
                coords=coords,
                extra=tuple(copy(item) for item in operand.extra),
            )
        if isinstance(operand, Pair):
            return Pair(first=copy(operand.first), second=copy(operand.second))
        if isinstance(operand, Not):
            return Not(operand=copy(operand.operand))
        if isinstance(operand, LabelOp):
            target = self._base + min(operand.target, self._length)
            return LabelOp(name=f"{self._prefix}{operand.name}", target=target)
        return operand


def lower_params(flat: Flat) -> None:
    """Turn `.param` variables of calls into registers where all accesses are of the whole, else into local memory."""
    names = flat.names
    variables = names.param_variables
    if not variables:
        return
    in_memory: set[str] = {name for name, variable in variables.items() if variable.size not in (2, 4, 8, 16)}
    for raw, _ in flat.instructions:
        if raw.opcode.startswith("call"):
            continue
        whole = _whole_access(raw, variables)
        for operand in raw.operands:
            for name in _symbols(operand):
                if name in variables and name != whole:
                    in_memory.add(name)
    registers: dict[str, RegOp] = {}
    for name, variable in variables.items():
        if name in in_memory:
            names.declared_locals[name] = Variable(name=name, space="local", align=variable.align, size=variable.size)
        else:
            reg = names.new_register(f"{name}()", f"b{8 * variable.size}")
            registers[name] = RegOp(reg=reg)
    for index, (raw, place) in enumerate(flat.instructions):
        if raw.opcode.startswith("call"):
            flat.instructions[index] = (_copy(raw, tuple(_call_list(item, registers) for item in raw.operands)), place)
            continue
        touched = {name for operand in raw.operands for name in _symbols(operand) if name in variables}
        if not touched:
            continue
        whole = _whole_access(raw, variables)
        if whole is not None and whole in registers:
            match = _PARAM_ACCESS.fullmatch(raw.opcode)
            assert match is not None
            load, kind = match.group(1) == "ld", match.group(2)
            operands = (raw.operands[0], registers[whole]) if load else (registers[whole], raw.operands[1])
            copied = _copy(raw, operands)
            copied.opcode = f"mov.{kind}"
        else:
            copied = _copy(raw, raw.operands)
            copied.opcode = _PARAM_SPACE.sub(".local", raw.opcode)
        flat.instructions[index] = (copied, place)


def _call_list(operand: Operand, registers: Mapping[str, RegOp]) -> Operand:
    if not isinstance(operand, Vec):
        return operand
    return Vec(
        items=tuple(registers.get(item.name, item) if isinstance(item, Symbol) else item for item in operand.items)
    )


def _whole_access(raw: Raw, variables: Mapping[str, ParamVariable]) -> str | None:
    """Return the name of the variable that `raw` loads or stores whole, as one value of its size."""
    match = _PARAM_ACCESS.fullmatch(raw.opcode)
    if match is None or len(raw.operands) != 2:
        return None
    value, address = raw.operands if match.group(1) == "ld" else raw.operands[::-1]
    if not isinstance(address, Address) or not isinstance(address.base, Symbol) or address.offset or address.coords:
        return None
    variable = variables.get(address.base.name)
    size = WIDTH.get(match.group(2), 0)
    if variable is None or variable.size != size:
        return None
    # A `mov` wants registers of its own width; loads and stores take wider ones too.
    if isinstance(value, RegOp):
        return variable.name if value.reg.width == size else None
    return variable.name if isinstance(value, Imm | Symbol) and match.group(1) == "st" else None


def _symbols(operand: Operand) -> tuple[str, ...]:
    if isinstance(operand, Symbol):
        return (operand.name,)
    if isinstance(operand, Address):
        return _symbols(operand.base) if operand.base is not None else ()
    if isinstance(operand, Vec):
        return tuple(name for item in operand.items for name in _symbols(item))
    return ()


def _formals_are_local(body: Body) -> None:
    """Send accesses to a device function's parameters through registers where the parameters will be: local memory."""
    for raw in body.instructions:
        if ".param" in raw.opcode and not any(_symbols(operand) for operand in raw.operands):
            raw.opcode = _PARAM_SPACE.sub(".local", raw.opcode)


def _callee(raw: Raw) -> str:
    callee = raw.operands[1]
    assert isinstance(callee, Symbol)
    return callee.name


def _is_branch(raw: Raw) -> bool:
    return any(isinstance(operand, LabelOp) for operand in raw.operands)


def _is_ret(raw: Raw) -> bool:
    return raw.opcode in ("ret", "ret.uni")


def _copy(raw: Raw, operands: tuple[Operand, ...]) -> Raw:
    return Raw(raw.opcode, operands, raw.guard, raw.line, raw.text, raw.location)


def _untyped(kind: str) -> str:
    return f"b{8 * WIDTH[kind]}"


def _move(kind: str) -> str:
    return "mov.pred" if kind == "pred" else f"mov.{_untyped(kind)}"
