"""The interface of what executes ordinary instructions: the native engine and the numpy interpreter implement it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.outcome import Outcome
    from megamoe_jit.emulator.machine.state import Cta, Warp
    from megamoe_jit.emulator.parser.nodes import Function, PtxModule

Handler: TypeAlias = "Callable[[Warp, int], Outcome]"
"""Executes one instruction for the lanes of a mask."""


class StopKind(IntEnum):
    """Why an engine gave a warp back."""

    HANDLER = 0
    """The instruction at `pc` must be executed by its Python handler, for lanes `mask`."""
    YIELD = 1
    """The fuel is used up."""
    EXIT = 2
    """No lane is live."""
    BLOCKED = 3
    """Every live lane is blocked."""
    FAULT = 4
    """A memory access failed; `warp.ctx.fault_*` says which."""


class Stop(NamedTuple):
    """What `Engine.run` returns."""

    kind: StopKind
    pc: int
    mask: int


class Program(Protocol):
    """A function made ready: every instruction decoded, every handler bound."""

    @property
    def function(self) -> Function:
        """What was made ready."""
        ...

    @property
    def handlers(self) -> Mapping[int, Handler]:
        """PC -> handler, of the instructions that Python executes."""
        ...

    def new_warp(self, cta: Cta, index: int) -> Warp:
        """Make warp `index` of `cta`: a `Warp` with `regs` and `ctx`, and constant special registers in their slots.

        `machine.specials.special_values(warp, name)` gives those registers. `cta` has its shared memory, its cluster
        has all its CTAs.
        """
        ...

    def free_warp(self, warp: Warp) -> None:
        """Give back what `new_warp` made: the warp has exited."""
        ...

    def instruction_counts(self) -> Counter[str]:
        """Return how often warps executed each opcode, since the program was made."""
        ...


class Engine(Protocol):
    """Makes programs of functions, and runs warps of them."""

    def prepare(self, function: Function, module: PtxModule) -> Program:
        """Decode everything; raises UnsupportedError that lists every instruction without a meaning here."""
        ...

    def run(self, warp: Warp) -> Stop:
        """Run `warp` (its `ctx.fuel` is set) until a stop."""
        ...
