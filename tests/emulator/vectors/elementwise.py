"""Kernels that apply many forms to the same inputs, one element a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tests.emulator.vectors.case import Argument, Case, Input, Output, Tolerance
from tests.emulator.vectors.ptx import kernel

Array = NDArray[Any]
BLOCK = 128
WIDTHS = {"b16": 2, "b32": 4, "b64": 8}
_LETTER = {"b16": "h", "b32": "r", "b64": "d"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Instructions with `{d}` as destination, inputs by name (%a), temporaries %h8.. %r8.. %d8.. %p4..

    `out` is the size of the destination, or "pred" for %p0 (and %p1 with "pred2").
    """

    text: str
    out: str = "b32"

    @property
    def label(self) -> str:
        """What is said of a difference."""
        return self.text.format(d="d")


def forms(opcodes: Iterable[str], operands: str, out: str = "b32") -> list[Form]:
    """Return forms that differ in their opcode only."""
    return [Form(text=f"{opcode} {{d}}, {operands};", out=out) for opcode in opcodes]


def predicates(opcodes: Iterable[str], operands: str) -> list[Form]:
    """Return forms that set one predicate."""
    return [Form(text=f"{opcode} %p0, {operands};", out="pred") for opcode in opcodes]


def elementwise(
    items: Sequence[Form],
    inputs: Mapping[str, Array],
    *,
    section: str,
    tolerance: Tolerance | Mapping[str, Tolerance] | None = None,
    version: str = "8.0",
) -> Case:
    """Return the case that stores every form's result for every element; inputs are unsigned and of one length.

    `tolerance` is that of all results, or by size of the destination.
    """
    (count,) = {len(data) for data in inputs.values()}
    if count % 32:
        raise ValueError(f"{count} elements are no whole number of warps")
    groups = [group for group in ("b16", "b32", "b64", "u8") if any(_group(form) == group for form in items)]
    args: list[Argument] = [Input(data=data) for data in inputs.values()]
    rows: dict[str, list[str]] = {group: [] for group in groups}
    lines = [
        "mov.u32 %r0, %ctaid.x;",
        "mov.u32 %r1, %ntid.x;",
        "mov.u32 %r2, %tid.x;",
        "mad.lo.u32 %r0, %r0, %r1, %r2;",
    ]
    registers = ""
    for name, data in inputs.items():
        size = data.dtype.itemsize
        registers += f"    .reg .b{size * 8} %{name};\n"
        lines += [f"mad.wide.u32 %d0, %r0, {size}, %in_{name};", f"ld.global.b{size * 8} %{name}, [%d0];"]
    for group in groups:
        registers += f"    .reg .b64 %to_{group};\n"
        lines.append(f"mad.wide.u32 %to_{group}, %r0, {WIDTHS.get(group, 1)}, %out_{group};")
    for form in items:
        group = _group(form)
        at = len(rows[group]) * count * WIDTHS.get(group, 1)
        rows[group].append(form.label)
        if group == "u8":
            lines += [*form.text.splitlines(), "selp.b32 %r3, 1, 0, %p0;"]
            lines += ["selp.b32 %r4, 2, 0, %p1;", "or.b32 %r3, %r3, %r4;"] if form.out == "pred2" else []
            lines.append(f"st.global.b8 [%to_u8+{at}], %r3;")
        else:
            result = f"%{_LETTER[group]}5"
            lines += [*form.text.format(d=result).splitlines(), f"st.global.{group} [%to_{group}+{at}], {result};"]
    dtypes = {"b16": "uint16", "b32": "uint32", "b64": "uint64", "u8": "uint8"}
    first = len(args)
    args += [
        Output(shape=(len(rows[group]), count), dtype=dtypes[group], labels=tuple(rows[group])) for group in groups
    ]
    params = [f".u64 in_{name}" for name in inputs] + [f".u64 out_{group}" for group in groups]
    block = BLOCK if count % BLOCK == 0 else 32
    text = kernel(f"{registers}\n" + "\n".join(lines), params, version=version)
    bounds = dict.fromkeys(groups, tolerance) if isinstance(tolerance, Tolerance) else dict(tolerance or {})
    return Case(
        ptx=text,
        args=tuple(args),
        grid=(count // block, 1, 1),
        block=(block, 1, 1),
        tolerance={first + groups.index(group): bound for group, bound in bounds.items()},
        section=section,
    )


def _group(form: Form) -> str:
    return "u8" if form.out in ("pred", "pred2") else form.out
