"""Basic blocks and liveness of a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megamoe_jit.emulator.parser.nodes import Function, Instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Instructions [start, end) that run one after the other; `successors` are indices of blocks."""

    start: int
    end: int
    successors: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Indices of the registers whose values are wanted at a block's start and at its end."""

    live_in: frozenset[int]
    live_out: frozenset[int]


def blocks(function: Function, is_stop: Callable[[Instruction], bool]) -> tuple[Block, ...]:
    """Cut `function` into blocks: at labels, after branches, before and after each instruction that `is_stop` names."""
    raise NotImplementedError


def liveness(function: Function, blocks: Sequence[Block]) -> tuple[Liveness, ...]:
    """Return what is live at both ends of each block; a guarded or partial write does not kill."""
    raise NotImplementedError
