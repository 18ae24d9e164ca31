"""Names of a function: nested scopes in which inline assembly declares the same ones again and again."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from megamoe_jit.emulator.parser.lexer import OperandError
from megamoe_jit.emulator.parser.nodes import WIDTH, Imm, Operand, Reg, RegOp, Special, Variable, Vec

_NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]{0,9})", re.S)
_AXES = ("", ".x", ".y", ".z", ".w")

_AXED = ("tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid")
_PLAIN = """
    laneid warpid nwarpid smid nsmid gridid is_explicit_cluster cluster_ctarank cluster_nctarank
    lanemask_eq lanemask_le lanemask_lt lanemask_ge lanemask_gt
    clock clock_hi clock64 globaltimer globaltimer_lo globaltimer_hi
    total_smem_size aggr_smem_size dynamic_smem_size current_graph_exec
    reserved_smem_offset_begin reserved_smem_offset_end reserved_smem_offset_cap
    reserved_smem_offset_0 reserved_smem_offset_1
"""

SPECIAL_REGISTERS = frozenset(
    [f"%{name}{axis}" for name in _AXED for axis in _AXES]
    + [f"%{name}" for name in _PLAIN.split()]
    + [f"%envreg{i}" for i in range(32)]
    + [f"%pm{i}{suffix}" for i in range(8) for suffix in ("", "_64")]
)
"""Names of the PTX ISA's special registers."""


@dataclass(slots=True, kw_only=True)
class ParamVariable:
    """A `.param` variable inside a function: a call's argument or result, or a device function's own parameter."""

    name: str
    type: str
    size: int
    align: int


@dataclass(slots=True, kw_only=True)
class Names:
    """What a function has declared so far, whatever the scope; unique names only.

    Attributes:
        module: names of the module's variables and functions.
        used: those of them that the function mentions.
        declared_locals: variables of spaces local and shared, not placed yet.
    """

    module: dict[str, Operand]
    registers: list[Reg] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    param_variables: dict[str, ParamVariable] = field(default_factory=dict)
    declared_locals: dict[str, Variable] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """Return `name`, with a number where the function has one so called already."""
        count = self.taken.get(name, 0)
        self.taken[name] = count + 1
        if count == 0 and name not in self.module:
            return name
        return self.unique(f"{name}.{count + 1}")

    def new_register(self, name: str, kind: str) -> Reg:
        """Return the function's next register."""
        reg = Reg(name=self.unique(name), type=kind, index=len(self.registers))
        self.registers.append(reg)
        return reg


class Scope:
    """Names between a pair of braces.

    Attributes:
        operands: text -> operand, for the operands that this scope has read before.
        labels: name -> (unique name, index of the next instruction).
    """

    __slots__ = ("_families", "_names", "labels", "names", "operands", "parent")

    def __init__(self, names: Names, parent: Scope | None = None) -> None:
        """Open a scope inside `parent`."""
        self.names = names
        self.parent = parent
        # A scope without declarations means by every text what its parent means.
        self.operands: dict[str, Operand] = {} if parent is None else parent.operands
        self.labels: dict[str, tuple[str, int]] = {}
        self._names: dict[str, Operand] = {}
        self._families: dict[str, tuple[str, int, int]] = {}

    def declare(self, name: str, operand: Operand) -> None:
        """Let `name` mean `operand` from here on; raises OperandError when the scope has it already."""
        if name in self._names or name in self._families:
            raise OperandError(f"{name!r} is declared twice in one scope")
        self._names[name] = operand
        self.operands = {}

    def declare_register(self, name: str, kind: str, lanes: int = 1) -> None:
        """Declare a register, or with `lanes` a vector of them."""
        _check_type(kind)
        # Registers are made when they are first met: compilers declare many more than they use.
        self._declare_family(name, (kind, -1, lanes))

    def declare_registers(self, prefix: str, count: int, kind: str) -> None:
        """Declare `prefix<count>`."""
        _check_type(kind)
        self._declare_family(f"{prefix}<", (kind, count, 1))

    def _declare_family(self, key: str, family: tuple[str, int, int]) -> None:
        if key in self._families or key in self._names:
            raise OperandError(f"register {key.rstrip('<')!r} is declared twice in one scope")
        self._families[key] = family
        self.operands = {}

    def resolve(self, name: str) -> Operand:
        """Return what `name` means here; raises OperandError when it is not declared."""
        scope: Scope | None = self
        while scope is not None:
            found = scope._names.get(name) or scope._register(name)
            if found is not None:
                return found
            scope = scope.parent
        if (found := self.names.module.get(name)) is not None:
            self.names.used.add(name)
            return found
        if name in SPECIAL_REGISTERS:
            return Special(name=name)
        if name == "WARP_SZ":
            return Imm(value=32)
        raise OperandError(f"{name!r} is not declared")

    def _register(self, name: str) -> Operand | None:
        if not self._families:
            return None
        kind, count, lanes = self._families.get(name, ("", 0, 0))
        if not kind and (match := _NUMBERED.fullmatch(name)) is not None:
            prefix, number = match.groups()
            kind, count, lanes = self._families.get(f"{prefix}<", ("", 0, 0))
            if int(number) >= count:
                return None
        if not kind:
            base, dot, member = name.rpartition(".")
            vector = self._families.get(base) if dot else None
            if vector is None or member not in ("x", "y", "z", "w", "r", "g", "b", "a"):
                return None
            index = "xyzw".find(member) if member in "xyzw" else "rgba".find(member)
            whole = self.resolve(base)
            return whole.items[index] if isinstance(whole, Vec) and index < len(whole.items) else None
        operand: Operand
        if lanes == 1:
            operand = RegOp(reg=self.names.new_register(name, kind))
        else:
            operand = Vec(
                items=tuple(RegOp(reg=self.names.new_register(f"{name}.{axis}", kind)) for axis in "xyzw"[:lanes])
            )
        self._names[name] = operand
        return operand

    def find_label(self, name: str) -> tuple[str, int] | None:
        """Return the unique name and the place of the label `name` as seen from here."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.labels:
                return scope.labels[name]
            scope = scope.parent
        return None


def _check_type(kind: str) -> None:
    if kind not in WIDTH:
        raise OperandError(f"registers of type {kind!r} are not known")
