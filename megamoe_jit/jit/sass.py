"""What the machine code of a kernel consists of: instructions by role, and those of tensor cores and TMA."""

from __future__ import annotations

import logging
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megamoe_jit.jit.dump import find_nvdisasm

logger = logging.getLogger("megamoe_jit.sass")

ENTRY_ROLE, FUNCTIONS_ROLE = "entry", "functions"
_TIMEOUT_S = 120.0
_LINE = re.compile(r'^\s*//## File "([^"]*)", line \d+')
_INSTRUCTION = re.compile(r"^\s*(?:\{\s*)?/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")
_ROLE = re.compile(r"/roles/(\w+?)(?:_sm\d+)?\.cuh$")
_FUNCTION = re.compile(r"^\s*\.type\s+([^\s,]+),@function")
# UTCOMMA multiplies FP4, UTCQMMA FP8; UTCCP copies scale factors to tensor memory, LDTM loads from it; UTMALDG is a TMA
# load, UBLKCP a bulk copy; HGMMA and QGMMA are Hopper's MMAs.
_ASYNC = re.compile(r"^(UTC\w*MMA|[HQ]GMMA|UTCCP|UTCBAR|LDTM|UTMA\w+|UBLK\w+)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class SassReport:
    """Instructions of a cubin: by role, in all, and those that tensor cores, tensor memory and TMA execute.

    A role is the template file roles/<role>.cuh that the code was inlined from, the outermost of several; `entry` is
    code of none, `functions` are those that the compiler did not inline. Counts are of instructions as they stand, not
    as often as they run, and without NOP, which pads the end.
    """

    instructions: int
    roles: Mapping[str, int]
    engines: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


def disassemble_inlined(cubin: bytes) -> str | None:
    """Return the SASS of `cubin` with chains of source positions, or None when no disassembler can read it."""
    for tool in find_nvdisasm():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            command = [str(tool), "--print-code", "--print-line-info-inline", file.name]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                logger.debug("%s failed: %s", tool, error)
                continue
        if done.returncode == 0:
            return done.stdout
        logger.debug("%s refused the cubin: %s", tool, done.stderr.strip())
    return None


def sass_report(sass: str) -> SassReport:
    """Count the instructions of `sass`, which `disassemble_inlined` returned."""
    roles: Counter[str] = Counter()
    engines: Counter[str] = Counter()
    role, chain_ended, num_functions = ENTRY_ROLE, True, 0
    for line in sass.splitlines():
        if match := _LINE.match(line):
            # A position is a run of lines, from the innermost file to the kernel's; the outermost role names it.
            if chain_ended:
                role, chain_ended = ENTRY_ROLE, False
            if found := _ROLE.search(match[1]):
                role = found[1]
        elif match := _INSTRUCTION.match(line):
            chain_ended = True
            if match[1] == "NOP":
                continue
            roles[role if num_functions <= 1 else FUNCTIONS_ROLE] += 1
            if _ASYNC.match(match[1]):
                engines[match[1]] += 1
        elif _FUNCTION.match(line):
            num_functions += 1
            role, chain_ended = ENTRY_ROLE, True
    return SassReport(instructions=sum(roles.values()), roles=_ordered(roles), engines=_ordered(engines))


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
