"""Every instruction that CUDA's own C++ wrappers (`cuda::ptx`) can emit is read, operand by operand."""

import re
from pathlib import Path

import pytest

from megamoe_jit.emulator.parser import parse
from megamoe_jit.errors import UnsupportedError
from megamoe_jit.jit.headers import find_headers
from tests.emulator.parser.samples import ptx_entry

_ASM = re.compile(r'asm\s*(?:volatile)?\s*\(((?:\s*"(?:[^"\\]|\\.)*")+)')
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_OPCODE = re.compile(r"(?:@!?\w+\s+)?([a-z][\w.:]*)")


def _generated_headers() -> list[Path]:
    try:
        folder = find_headers()
    except UnsupportedError:
        return []
    return sorted(folder.rglob("cuda/__ptx/instructions/generated/*.h"))


def _statements() -> set[str]:
    """Inline assembly of all wrappers, with register names for the operands."""
    found: set[str] = set()
    for header in _generated_headers():
        for match in _ASM.finditer(header.read_text()):
            text = "".join(_STRING.findall(match.group(1))).replace("\\n", "\n").replace("\\t", "\t")
            found.add(re.sub(r"%(%|\d+)", lambda hit: "%" if hit[1] == "%" else f"operand{hit[1]}", text))
    return found


def test_wrappers_of_cccl() -> None:
    statements = _statements()
    if not statements:
        pytest.skip("CCCL's headers are not installed")
    assert len(statements) > 1000
    opcodes: set[str] = set()
    for text in sorted(statements):
        function = parse(ptx_entry(f".reg .b32 operand<200>;\n{text}\n ret;")).functions["k"]
        parsed = [instruction.opcode for instruction in function.instructions[:-1]]
        written = [piece.strip().lstrip("{").strip() for piece in re.split(r"[;\n]", text)]
        expected = [match.group(1) for piece in written if (match := _OPCODE.match(piece))]
        assert parsed == expected, text
        opcodes.update(parsed)
        operands = set(re.findall(r"operand\d+", text))
        assert {reg.name for reg in function.registers} >= operands
    assert len(opcodes) > 1000
