"""What a built kernel is made of: parameters, resources, the PTX instructions in it, the shapes of its MMAs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megamoe_jit.jit.compile import Resources
from megamoe_jit.jit.entry import KernelRecord

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRING = re.compile(r'"[^"\n]*"')
_DIRECTIVE_LINE = re.compile(
    r"^[ \t]*(?:\.(?:version|target|address_size|loc|file|section|b8|b16|b32|b64)\b|@@)[^\n]*$", re.MULTILINE
)
_LABEL = re.compile(r"^[$%\w]+:(?!:)\s*")
_PREDICATE = re.compile(r"^@!?%?[$\w]+\s+")
_OPCODE = re.compile(r"[a-z][a-z0-9_]*(?:(?:\.|::)[A-Za-z0-9_]+)*")
_MMA = re.compile(r"^(?:wgmma\.mma_async|tcgen05\.mma|wmma\.mma|mma)\b(?!\.sp::ordered_metadata\.wait)")
_SHAPE = re.compile(r"m\d+n\d+k\d+")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KernelReport:
    """What `inspect` says of one kernel; `to_json` is what the CLI and the dump print.

    `instructions` counts opcodes with all their modifiers as they stand in the PTX, most frequent first; `mmas` those
    that multiply matrices; `mma_shapes` their shapes where the opcode has one (tcgen05 has its shape in a descriptor).
    """

    kernel_name: str
    arch: str
    key: str
    entry: str
    flags: tuple[str, ...]
    nvrtc: str
    compile_s: float
    resources: Resources
    parameters: Mapping[str, Any]
    template_values: Mapping[str, Any]
    ptx_bytes: int
    cubin_bytes: int
    instructions: Mapping[str, int]
    mmas: Mapping[str, int]
    mma_shapes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "flags": list(self.flags), "mma_shapes": list(self.mma_shapes)}


def inspect_kernel(record: KernelRecord) -> KernelReport:
    """Return the report of a built or loaded kernel (`BuiltKernel.record`)."""
    histogram = instruction_histogram(record.artifact.ptx)
    mmas = {opcode: count for opcode, count in histogram.items() if _MMA.match(opcode)}
    return KernelReport(
        kernel_name=record.key.kernel_name,
        arch=record.key.arch,
        key=record.key.digest,
        entry=record.entry,
        flags=record.flags,
        nvrtc=".".join(map(str, record.nvrtc)),
        compile_s=record.artifact.compile_s,
        resources=record.artifact.resources,
        parameters=record.parameters,
        template_values=record.template_values,
        ptx_bytes=len(record.artifact.ptx.encode()),
        cubin_bytes=len(record.artifact.cubin),
        instructions=histogram,
        mmas=mmas,
        mma_shapes=mma_shapes(mmas),
    )


def instruction_histogram(ptx: str) -> dict[str, int]:
    """Count the instructions of `ptx` by opcode with modifiers, most frequent first, then by name."""
    counts = Counter(_opcodes(ptx))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def mma_shapes(opcodes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the shapes that stand in `opcodes` ("m64n64k32"), in order of size."""
    shapes = {shape for opcode in opcodes for shape in _SHAPE.findall(opcode)}
    return tuple(sorted(shapes, key=lambda shape: tuple(map(int, re.findall(r"\d+", shape)))))


def _opcodes(ptx: str) -> Iterator[str]:
    text = _DIRECTIVE_LINE.sub("", _STRING.sub("", _COMMENT.sub("", ptx)))
    for statement in text.split(";"):
        # Before the opcode may stand a function's header, which ends in its brace, more braces, labels, a predicate.
        statement = (
            re.sub(r"^.*?\)[^(){}]*\{", "", statement, count=1, flags=re.DOTALL)
            if ".entry" in statement or ".func" in statement
            else statement
        )
        statement = statement.lstrip(" \t\n{}")
        while label := _LABEL.match(statement):
            statement = statement[label.end() :].lstrip(" \t\n{}")
        statement = _PREDICATE.sub("", statement, count=1)
        if opcode := _OPCODE.match(statement):
            yield opcode[0]
