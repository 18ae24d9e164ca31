"""PTX texts for the parser's tests, and operands as short texts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cuda.bindings import nvrtc

from megamoe_jit.emulator.parser import (
    Address,
    Function,
    Imm,
    LabelOp,
    Not,
    Operand,
    Pair,
    PtxModule,
    RegOp,
    Sink,
    Special,
    Symbol,
    Vec,
    parse,
)

HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"


def ptx_entry(body: str, *, params: str = "", before: str = "", directives: str = "") -> str:
    """Return a module whose only entry, `k`, has `body`."""
    return f"{HEADER}{before}\n.visible .entry k({params}) {directives}\n{{\n{body}\n}}\n"


def parse_entry(body: str, *, params: str = "", before: str = "", directives: str = "") -> Function:
    """Return the entry `k` with `body`, parsed."""
    return parse(ptx_entry(body, params=params, before=before, directives=directives)).functions["k"]


def one_operand(text: str, *, declare: str = "", before: str = "", params: str = "") -> Operand:
    """Return what `text` means as the only operand of an instruction."""
    return parse_entry(f"{declare}\n op.x {text};\n ret;", before=before, params=params).instructions[0].operands[0]


def show(operand: Operand) -> str:
    """Return an operand as a short text that tells all kinds apart."""
    if isinstance(operand, RegOp):
        return operand.reg.name
    if isinstance(operand, Imm):
        return f"#{operand.value}"
    if isinstance(operand, Special):
        return f"special {operand.name}"
    if isinstance(operand, Symbol):
        return f"&{operand.name}" + (f"+{operand.offset}" if operand.offset else "")
    if isinstance(operand, LabelOp):
        return f"-> {operand.target}"
    if isinstance(operand, Pair):
        return f"{show(operand.first)}|{show(operand.second)}"
    if isinstance(operand, Vec):
        return "{" + ", ".join(show(item) for item in operand.items) + "}"
    if isinstance(operand, Not):
        return f"!{show(operand.operand)}"
    if isinstance(operand, Sink):
        return "_"
    assert isinstance(operand, Address)
    inside = [] if operand.base is None else [show(operand.base)]
    inside += [str(operand.offset)] if operand.offset or operand.base is None else []
    inside += [] if operand.coords is None else [show(operand.coords)]
    inside += [show(item) for item in operand.extra]
    return f"[{' '.join(inside)}]"


def shown(function: Function) -> list[str]:
    """Return the instructions of a function as short texts: guard, opcode, operands."""
    lines: list[str] = []
    for instruction in function.instructions:
        guard = ""
        if instruction.guard is not None:
            guard = f"@{'!' if instruction.guard[1] else ''}{instruction.guard[0].name} "
        operands = ", ".join(show(operand) for operand in instruction.operands)
        lines.append(f"{guard}{instruction.opcode} {operands}".rstrip())
    return lines


def compile_cuda(source: str, arch: str, *options: str) -> str:
    """Return the PTX that NVRTC makes of CUDA C++ called `/sample.cu`.

    With -G in a process of its own: NVRTC keeps a part of that option, and compiles what comes after it otherwise than
    before (parameters by generic addresses), so that other tests of this process would see other kernels.
    """
    if "-G" not in options:
        return compile_here(source, arch, *options)
    code = (
        "import json, sys; from tests.emulator.parser.samples import compile_here; "
        "print(compile_here(*json.load(sys.stdin)))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([source, arch, *options]),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    return child.stdout


def compile_here(source: str, arch: str, *options: str) -> str:
    """Return the PTX that NVRTC makes of CUDA C++ called `/sample.cu`, compiled in this process."""

    def call(function: str, *args: object) -> object:
        status, *results = getattr(nvrtc, function)(*args)
        if int(status) != 0 and function != "nvrtcCompileProgram":
            raise AssertionError(f"{function}: {status}")
        return status if function == "nvrtcCompileProgram" else (results[0] if results else None)

    program = call("nvrtcCreateProgram", source.encode(), b"/sample.cu", 0, [], [])
    flags = [f"--gpu-architecture={arch}", "--std=c++20", "--device-as-default-execution-space", *options]
    status = call("nvrtcCompileProgram", program, len(flags), [flag.encode() for flag in flags])
    if int(status) != 0:
        log = bytearray(call("nvrtcGetProgramLogSize", program))
        call("nvrtcGetProgramLog", program, log)
        raise AssertionError(log.decode())
    ptx = bytearray(call("nvrtcGetPTXSize", program))
    call("nvrtcGetPTX", program, ptx)
    return ptx.rstrip(b"\0").decode()


def parsed_cuda(source: str, arch: str, *options: str) -> PtxModule:
    """Return the module that NVRTC makes of CUDA C++, parsed."""
    return parse(compile_cuda(source, arch, *options))
