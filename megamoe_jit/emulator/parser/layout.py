"""Places a function's variables and makes its instructions final."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from megamoe_jit.emulator.parser.body import Body
from megamoe_jit.emulator.parser.inline import Flat, lower_params
from megamoe_jit.emulator.parser.nodes import SHARED_BASE, Function, Instruction, PtxSyntaxError, Variable

_ENDS = frozenset({"ret", "ret.uni", "exit", "trap", "bra", "bra.uni"})
_MIN_DYNAMIC_ALIGN = 16
_MAX_LOCAL_BYTES = 512 * 1024  # of a thread, by the CUDA C++ Programming Guide


def build_function(body: Body, flat: Flat, module_variables: Mapping[str, Variable]) -> Function:
    """Return the function of `flat`; of the module's shared and local variables it gets those that it mentions."""
    lower_params(flat)
    names = flat.names
    # In the module's order, so that a variable's address does not depend on what mentions it first.
    declared = [variable for name, variable in module_variables.items() if name in names.used]
    declared += names.declared_locals.values()
    variables, shared_end, dynamic, local_end = place_variables(declared)
    if local_end > _MAX_LOCAL_BYTES:
        raise PtxSyntaxError(
            f"{body.name} has {local_end} bytes of local memory, calls included; {_MAX_LOCAL_BYTES} is the limit"
        )
    instructions = [
        Instruction(
            index=index,
            opcode=raw.opcode,
            operands=raw.operands,
            guard=raw.guard,
            line=raw.line,
            text=raw.text,
            location=location,
        )
        for index, (raw, location) in enumerate(flat.instructions)
    ]
    last = instructions[-1] if instructions else None
    falls_off = last is None or last.guard is not None or last.opcode not in _ENDS
    if falls_off or any(target == len(instructions) for target in flat.labels.values()):
        # The end of a body returns; an instruction that says so spares everybody else the case.
        instructions.append(
            Instruction(
                index=len(instructions),
                opcode="ret",
                operands=(),
                guard=None,
                line=last.line if last else 0,
                text="ret;",
                location=last.location if last else None,
            )
        )
    limits = body.limits
    return Function(
        name=body.name,
        is_entry=body.is_entry,
        params=body.params,
        registers=tuple(names.registers),
        instructions=tuple(instructions),
        labels=dict(flat.labels),
        branch_tables=dict(flat.branch_tables),
        variables=variables,
        local_bytes=local_end,
        shared_bytes=shared_end - SHARED_BASE,
        dynamic_shared_offset=dynamic,
        max_threads=_product(limits.get("maxntid")),
        max_block=_triple(limits.get("maxntid")),
        required_block=_triple(limits.get("reqntid")),
        required_cluster=_triple(limits.get("reqnctapercluster")),
        max_cluster=_first(limits.get("maxclusterrank")),
        min_ctas=_first(limits.get("minnctapersm")),
        max_registers=_first(limits.get("maxnreg")),
    )


def place_variables(declared: list[Variable]) -> tuple[dict[str, Variable], int, int, int]:
    """Return the variables in place, the end of static shared memory, the start of dynamic, and the frame's size."""
    placed: dict[str, Variable] = {}
    shared, local, dynamic_align = SHARED_BASE, 0, _MIN_DYNAMIC_ALIGN
    for variable in declared:
        if variable.space == "local":
            local = _align_up(local, variable.align)
            placed[variable.name] = replace(variable, offset=local)
            local += variable.size
        elif variable.is_extern:
            dynamic_align = max(dynamic_align, variable.align)
        else:
            shared = _align_up(shared, variable.align)
            placed[variable.name] = replace(variable, offset=shared)
            shared += variable.size
    dynamic = _align_up(shared, dynamic_align)
    for variable in declared:
        if variable.is_extern:
            placed[variable.name] = replace(variable, offset=dynamic)
    return placed, shared, dynamic, local


def _align_up(value: int, align: int) -> int:
    return -(-value // align) * align


def _triple(numbers: tuple[int, ...] | None) -> tuple[int, int, int] | None:
    if numbers is None:
        return None
    x, y, z = (*numbers, 1, 1)[:3]
    return x, y, z


def _product(numbers: tuple[int, ...] | None) -> int | None:
    found = _triple(numbers)
    return None if found is None else found[0] * found[1] * found[2]


def _first(numbers: tuple[int, ...] | None) -> int | None:
    return None if numbers is None else numbers[0]
