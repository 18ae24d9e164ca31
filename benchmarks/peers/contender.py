"""What can be timed: somebody's way to compute a layer, with its own weights made from the layer's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from benchmarks.peers.layer import Layer, Values
from benchmarks.peers.workload import TokenSet

Run = Callable[[TokenSet], Tensor]
Variant = tuple[str, Callable[[], Run]]


class Contender(Protocol):
    """A layer of somebody, ready for calls.

    `weights_name` names what `values` returns: contenders with equal names have equal weights. `note` says what was
    chosen for calls of so many tokens.
    """

    weights_name: str

    def values(self) -> Values:
        """Return the contender's own weights, dequantised."""

    def compile_for(self, tokens: Sequence[int]) -> None:
        """Compile what calls of these token counts need."""

    def variants(self, num_tokens: int) -> Iterable[Variant]:
        """Return ways to run calls of `num_tokens` tokens, named; the function of each allocates its buffers.

        A run maps BF16 x and its routing to BF16 y, all work included. It may write the same y each time, and may
        prepare something at the first call with an input.
        """

    def note(self, num_tokens: int) -> str:
        """Return what was chosen for calls of `num_tokens` tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """An entry of the list of contenders.

    `load` imports what is needed (ImportError where that is missing) and returns what makes the contender of a layer
    for calls of up to so many tokens. `warm` says what a process that compiles ahead compiles at a time.
    """

    name: str
    heading: str
    what: str
    acts: Literal["fp8", "bf16"]
    load: Callable[[], Callable[[Layer, int], Contender]]
    is_ours: bool = False
    distributions: tuple[str, ...] = ()
    warm: Literal["nothing", "workload", "tokens"] = "nothing"
