"""Pure instructions as code: short forms in place, long ones as functions that the optimiser compiles once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megamoe_jit.emulator.isa.decode import Signature
from megamoe_jit.emulator.native.ir import Body, Val, module_text
from megamoe_jit.emulator.native.ops import LANES, LlvmOps
from megamoe_jit.emulator.parser.nodes import Imm

MAX_INLINE = 12
"""Longest form, in IR instructions, that is written in place.

Unoptimised code costs about as much to compile as to call from here on: a conversion to FP4 has 60 instructions, its
function about 20 after optimisation.
"""


@dataclass(frozen=True, slots=True)
class _Outlined:
    """A form that has a function: takes the lanes of sources that are not constants, predicates as i32 masks."""

    body: Body
    results: tuple[str, ...]


class Forms:
    """Pure forms of one kernel."""

    def __init__(self) -> None:
        """Know none."""
        self._known: dict[object, _Outlined | None] = {}
        self._bodies: list[Body] = []

    def apply(self, form: Signature, ops: LlvmOps, values: Sequence[Val]) -> tuple[Val, ...]:
        """Evaluate `form` on `values`, one for each of its sources; gives its destinations'."""
        known = tuple(isinstance(typed.operand, Imm) for typed in form.src)
        constants = tuple(value.type if value.const is None else (value.type, value.const) for value in values)
        key = (form.op.form.opcode, len(form.dst), known, constants)
        if key not in self._known:
            self._known[key] = self._outline(form, values)
        outlined = self._known[key]
        if outlined is None:
            return form.apply(ops, values)
        return _call(outlined, ops, values)

    def _outline(self, form: Signature, values: Sequence[Val]) -> _Outlined | None:
        """Return the function of a form, None when the form is short."""
        params = [("i32", "active")]
        params += [
            ("i32" if value.type == LANES["i1"] else value.type, f"value{index}")
            for index, value in enumerate(values)
            if value.const is None
        ]
        name = f"form{len(self._bodies)}"
        trial = Body(name, "void", params)
        results = tuple(value.type for value in _evaluate(trial, form, values))
        if len(trial.lines) <= MAX_INLINE:
            return None
        passed = ["i32" if type == LANES["i1"] else type for type in results]
        body = Body(name, passed[0] if len(passed) == 1 else f"{{ {', '.join(passed)} }}", params)
        outputs = [_packed(value) for value in _evaluate(body, form, values)]
        if len(outputs) == 1:
            body.ret(outputs[0])
        else:
            whole = Val(body, body.returns, "poison")
            for index, value in enumerate(outputs):
                whole = body.emit(body.returns, f"insertvalue {whole}, {value}, {index}")
            body.ret(whole)
        self._bodies.append(body)
        return _Outlined(body, results)

    def text(self) -> str | None:
        """Return the module of all functions, None when there is none."""
        return module_text(self._bodies) if self._bodies else None


def _evaluate(body: Body, form: Signature, values: Sequence[Val]) -> tuple[Val, ...]:
    ops = LlvmOps(body, lambda: body["active"].bitcast(LANES["i1"]))
    inside = []
    for index, value in enumerate(values):
        if value.const is not None:
            inside.append(Val(body, value.type, value.text, value.const))
        else:
            inside.append(body[f"value{index}"].bitcast(value.type))
    return form.apply(ops, inside)


def _packed(value: Val) -> Val:
    return value.bitcast("i32") if value.type == LANES["i1"] else value


def _call(outlined: _Outlined, ops: LlvmOps, values: Sequence[Val]) -> tuple[Val, ...]:
    f, body = ops.f, outlined.body
    args = [ops.active().bitcast("i32"), *(_packed(value) for value in values if value.const is None)]
    result = f.call(body.name, body.returns, *args)
    if len(outlined.results) == 1:
        return (result.bitcast(outlined.results[0]),)
    parts = []
    for index, type in enumerate(outlined.results):
        passed = "i32" if type == LANES["i1"] else type
        parts.append(f.emit(passed, f"extractvalue {result}, {index}").bitcast(type))
    return tuple(parts)
