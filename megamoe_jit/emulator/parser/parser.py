"""PTX text to a module: directives, variables, functions."""

from __future__ import annotations

import re

from megamoe_jit.emulator.parser.body import Body, BodyReader
from megamoe_jit.emulator.parser.debug import LOC, Locations
from megamoe_jit.emulator.parser.declarations import Declared, initial_bytes, parse_declaration, parse_registers
from megamoe_jit.emulator.parser.inline import Inliner
from megamoe_jit.emulator.parser.layout import build_function
from megamoe_jit.emulator.parser.lexer import OperandError, Source, split_operands
from megamoe_jit.emulator.parser.nodes import (
    Function,
    Operand,
    Param,
    PtxModule,
    PtxSyntaxError,
    Reg,
    RegOp,
    Symbol,
    Variable,
)
from megamoe_jit.emulator.parser.scopes import Names, ParamVariable, Scope

_NAME = r"[A-Za-z_$%][\w$]*"
_PARENTHESISED = r"\(((?:[^()]|\([^()]*\))*)\)"
_START = re.compile(r"\s*(?:(\.[A-Za-z_]\w*)|\Z|;)", re.A)
_LINKED = re.compile(r"(?:\s*\.(?:extern|visible|weak|common)\b)*\s*\.(entry|func|\w+)", re.A)
_VERSION = re.compile(r"\s*\.version\s+([0-9]{1,4})\.([0-9]{1,4})", re.A)
_TARGET = re.compile(r"\s*\.target\s+(\w+(?:\s*,\s*\w+)*)", re.A)
_ADDRESS_SIZE = re.compile(r"\s*\.address_size\s+([0-9]{1,4})", re.A)
_FILE = re.compile(r'\s*\.file\s+([0-9]{1,9})\s+(")_*"(?:\s*,\s*[0-9]+\s*,\s*[0-9]+)?', re.A)
_SECTION = re.compile(r"\s*\.section\s+([\w.$]+)\s*\{([^{}]*)\}", re.A)
_ALIAS = re.compile(rf"\s*\.alias\s+({_NAME})\s*,\s*({_NAME})\s*;", re.A)
_PRAGMA = re.compile(r"\s*\.pragma\s+[^;{}]*;", re.A)
_HEADER = re.compile(
    rf"(?P<linkage>(?:\s*\.(?:extern|visible|weak|common)\b)*)\s*\.(?P<kind>entry|func)\b"
    rf"(?:\s*\.attribute\s*\((?:[^()]|\([^()]*\))*\))?"
    rf"(?:\s*{_PARENTHESISED})?\s*(?P<name>{_NAME})\s*(?:{_PARENTHESISED})?(?P<rest>[^{{;]*)(?P<end>[{{;])",
    re.A,
)
_LIMIT = re.compile(r'\s*\.([a-z_]\w*)((?:(?:\s*,\s*|\s+)[0-9]+)*|\s*"_*")(?=\s|\.|\Z)', re.A)


def parse(text: str) -> PtxModule:
    """Read PTX `text`; raises PtxSyntaxError, and nothing else."""
    return _ModuleReader(text).read()


class _ModuleReader:
    def __init__(self, text: str) -> None:
        self._source = Source(text)
        self._locations = Locations()
        self._version: tuple[int, int] | None = None
        self._target = ""
        self._symbols: dict[str, Operand] = {}
        self._globals: dict[str, Variable] = {}
        self._placed_by_function: dict[str, Variable] = {}  # module's shared and local variables
        self._bodies: dict[str, Body] = {}
        self._declared_functions: set[str] = set()
        self._initialised: list[tuple[Variable, int]] = []

    def read(self) -> PtxModule:
        source, position = self._source, 0
        while True:
            match = _START.match(source.text, position)
            if match is None:
                raise source.error(f"{source.excerpt(position)!r} begins no directive", position)
            directive = match.group(1)
            if directive is None:
                if match.end() == len(source.text):
                    break
                position = match.end()
                continue
            try:
                position = self._directive(directive, position)
            except OperandError as error:
                raise source.error(str(error), match.start(1)) from None
        if self._version is None or not self._target:
            raise PtxSyntaxError("the text has no .version and .target, so it is not PTX")
        self._check_relocations()
        return PtxModule(
            version=self._version,
            target=self._target,
            functions=self._functions(),
            globals=self._globals,
            files=dict(self._locations.files),
        )

    def _directive(self, directive: str, position: int) -> int:
        text = self._source.text
        if directive == ".version":
            match = self._match(_VERSION, position)
            self._version = (int(match.group(1)), int(match.group(2)))
        elif directive == ".target":
            match = self._match(_TARGET, position)
            self._target = match.group(1).split(",")[0].strip()
        elif directive == ".address_size":
            match = self._match(_ADDRESS_SIZE, position)
            if match.group(1) != "64":
                raise OperandError(f"addresses of {match.group(1)} bits are not supported, only of 64")
        elif directive == ".file":
            match = self._match(_FILE, position)
            self._locations.files[int(match.group(1))] = self._source.strings.get(match.start(2), "")
        elif directive == ".section":
            match = self._match(_SECTION, position)
            if match.group(1) == ".debug_str":
                self._locations.add_section(match.group(2))
        elif directive == ".pragma":
            match = self._match(_PRAGMA, position)
        elif directive == ".alias":
            match = self._match(_ALIAS, position)
            self._alias(match.group(1), match.group(2))
        elif directive == ".loc":
            found = LOC.match(text, text.index(".loc", position))
            if found is None:
                raise OperandError(f"{self._source.excerpt(position)!r} is no .loc")
            match = found
        else:
            linked = _LINKED.match(text, position)
            if linked is not None and linked.group(1) in ("entry", "func"):
                return self._function(position)
            return self._variables(position, directive)
        return match.end()

    def _match(self, pattern: re.Pattern[str], position: int) -> re.Match[str]:
        match = pattern.match(self._source.text, position)
        if match is None:
            raise OperandError(f"{self._source.excerpt(position)!r} cannot be read")
        return match

    def _alias(self, alias: str, target: str) -> None:
        if target not in self._bodies or alias in self._bodies:
            raise OperandError(f"{alias!r} cannot be an alias of {target!r}, a function that has a body")
        self._bodies[alias] = self._bodies[target]
        self._symbols[alias] = Symbol(name=alias)

    # Variables

    def _variables(self, position: int, directive: str) -> int:
        end = self._source.text.find(";", position)
        if end < 0:
            raise OperandError(f"{self._source.excerpt(position)!r} has no semicolon")
        text = self._source.text[position:end]
        spaces = [space for space in ("global", "const", "shared", "local") if re.search(rf"\.{space}\b", text)]
        if not spaces:
            raise OperandError(f"{directive} is not known")
        # The first one written is the variable's; a later one may belong to an initialiser or attribute.
        self.add_variables(text, min(spaces, key=lambda space: text.index(f".{space}")), position)
        return end + 1

    def add_variables(self, text: str, space: str, position: int = 0) -> None:
        """Add the variables that the declaration `text` names to the module."""
        for declared in parse_declaration(text, space):
            if declared.name in self._symbols and declared.name not in self._redeclarable(declared):
                raise OperandError(f"{declared.name!r} is declared twice")
            if declared.init is not None and space not in ("global", "const"):
                raise OperandError(f"{declared.name!r} is of space .{space}, which cannot be initialised")
            size, init, relocations = initial_bytes(declared)
            is_open = bool(declared.dims) and declared.dims[0] is None and declared.init is None
            if is_open and "extern" not in declared.linkage:
                raise OperandError(f"{declared.name!r} has no length")
            variable = Variable(
                name=declared.name,
                space=space,
                align=declared.align,
                size=size,
                init=init,
                relocations=relocations,
                is_extern="extern" in declared.linkage,
            )
            self._symbols[declared.name] = Symbol(name=declared.name)
            if space in ("global", "const"):
                self._globals[declared.name] = variable
            else:
                self._placed_by_function[declared.name] = variable
            if relocations:
                self._initialised.append((variable, position))

    def _redeclarable(self, declared: Declared) -> set[str]:
        """Return the name if what has it so far is only an external declaration."""
        known = self._globals.get(declared.name) or self._placed_by_function.get(declared.name)
        return {declared.name} if known is not None and known.is_extern else set()

    def _check_relocations(self) -> None:
        for variable, position in self._initialised:
            for _, symbol in variable.relocations:
                if symbol not in self._globals:
                    raise self._source.error(
                        f"the initialiser of {variable.name!r} names {symbol!r}, which is no global or const variable",
                        position,
                    )

    # Functions

    def _function(self, position: int) -> int:
        match = _HEADER.match(self._source.text, position)
        if match is None:
            raise OperandError(f"{self._source.excerpt(position)!r} is no function")
        name, is_entry = match.group("name"), match.group("kind") == "entry"
        self._symbols.setdefault(name, Symbol(name=name))
        if match.group("end") == ";":
            self._declared_functions.add(name)
            return match.end()
        if name in self._bodies or name in self._globals or name in self._placed_by_function:
            raise OperandError(f"{name!r} is defined twice")
        names = Names(module=self._symbols)
        scope = Scope(names)
        body = Body(name=name, is_entry=is_entry, names=names, limits=_limits(match.group("rest")))
        result_text, param_text = match.group(3), match.group(5)
        if is_entry:
            if result_text is not None:
                raise OperandError(f"entry {name} cannot return anything")
            body.params = _entry_params(param_text or "", scope)
        else:
            body.returns = _formals(result_text or "", scope)
            body.formals = _formals(param_text or "", scope)
        reader = BodyReader(self._source, self._locations, body, scope, self.add_variables)
        end = reader.read(match.end())
        self._bodies[name] = body
        return end

    def _functions(self) -> dict[str, Function]:
        inliner = Inliner(self._bodies, self._locations, lambda message, line: PtxSyntaxError(message, line=line))
        functions: dict[str, Function] = {}
        for name, body in self._bodies.items():
            if body.is_entry and name == body.name:
                functions[name] = build_function(body, inliner.flatten(name), self._placed_by_function)
        return functions


def _limits(text: str) -> dict[str, tuple[int, ...]]:
    limits: dict[str, tuple[int, ...]] = {}
    position = 0
    while position < len(text.rstrip()):
        match = _LIMIT.match(text, position)
        if match is None:
            raise OperandError(f"{' '.join(text[position:].split())[:60]!r} is no directive of a function")
        digits = re.findall(r"[0-9]+", match.group(2))
        is_long = any(len(number.lstrip("0")) > 10 for number in digits)
        numbers = () if is_long else tuple(int(number.lstrip("0") or "0") for number in digits)
        if (
            is_long
            or any(number >= 1 << 32 for number in numbers)
            or (not numbers and match.group(1) in _NUMBERED_LIMITS)
        ):
            raise OperandError(f".{match.group(1)} needs numbers of 32 bits")
        limits[match.group(1)] = numbers
        position = match.end()
    return limits


_NUMBERED_LIMITS = frozenset(
    {"maxntid", "reqntid", "reqnctapercluster", "maxclusterrank", "minnctapersm", "maxnctapersm", "maxnreg"}
)


def _declarations(text: str) -> list[str]:
    return [] if not text.strip() else split_operands(text)


def _entry_params(text: str, scope: Scope) -> tuple[Param, ...]:
    params: list[Param] = []
    offset = 0
    for part in _declarations(text):
        (declared,) = parse_declaration(part, "param")
        if declared.init is not None or (declared.dims and declared.dims[0] is None):
            raise OperandError(f"parameter {declared.name!r} has no size, or an initialiser")
        offset = -(-offset // declared.align) * declared.align
        unique = scope.names.unique(declared.name)
        params.append(Param(name=unique, type=declared.type, size=declared.size, align=declared.align, offset=offset))
        scope.declare(declared.name, Symbol(name=unique))
        offset += declared.size
    return tuple(params)


def _formals(text: str, scope: Scope) -> tuple[Reg | str, ...]:
    formals: list[Reg | str] = []
    for part in _declarations(text):
        if re.match(r"\s*\.reg\b", part):
            ((name, count, kind, lanes),) = parse_registers(part.strip()[4:])
            if count is not None or lanes > 1:
                raise OperandError(f"parameter {name!r} is no single register")
            scope.declare_register(name, kind)
            operand = scope.resolve(name)
            assert isinstance(operand, RegOp)
            formals.append(operand.reg)
            continue
        (declared,) = parse_declaration(part, "param")
        unique = scope.names.unique(declared.name)
        scope.names.param_variables[unique] = ParamVariable(
            name=unique,
            type=declared.type if not declared.dims else "",
            size=declared.size,
            align=declared.align,
        )
        scope.declare(declared.name, Symbol(name=unique))
        formals.append(unique)
    return tuple(formals)
