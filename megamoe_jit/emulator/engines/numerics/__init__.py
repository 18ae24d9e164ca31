"""Arithmetic of tensor cores: formats, the adder, and matrix products in both of `Emulator`'s numerics."""

from megamoe_jit.emulator.engines.numerics.adder import Rounding, Rule
from megamoe_jit.emulator.engines.numerics.arithmetic import (
    Numerics,
    Scales,
    block_dot,
    dot,
    integer_dot,
    rule_for,
)
from megamoe_jit.emulator.engines.numerics.formats import FORMATS, ElementFormat, Operand

__all__ = [
    "FORMATS", "ElementFormat", "Numerics", "Operand", "Rounding", "Rule", "Scales", "block_dot", "dot", "integer_dot",
    "rule_for",
]  # fmt: skip
