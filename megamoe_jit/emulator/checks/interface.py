"""What engines and handlers tell the checker; `NoChecks` is the one that does not listen.

A range is (kind, cta or None, start, length) or, for scattered accesses of one CTA, (kind, cta, offsets) with an integer
array of byte offsets: kind "shared", "global" or "tmem", start an offset in the CTA's space or a host address.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cta, Place, Warp

Range: TypeAlias = "tuple[str, Cta | None, int, int] | tuple[str, Cta | None, npt.NDArray[np.integer[Any]]]"
Access: TypeAlias = Literal["read", "write", "atomic"]
Semantics: TypeAlias = Literal["weak", "relaxed", "acquire", "release", "acq_rel"]
Scope: TypeAlias = Literal["cta", "cluster", "gpu", "sys"]
SCOPES: tuple[Scope, ...] = ("cta", "cluster", "gpu", "sys")


class Checks(Protocol):
    """Interface of the checker. `actor` names a chain of asynchronous work: see `begin_async`."""

    enabled: bool

    def generic(self, warp: Warp, place: Place, size: int, access: Access) -> None:
        """A Python handler makes an ordinary (weak) access on behalf of `warp`, through the generic proxy."""
        ...

    def strong(
        self, warp: Warp, place: Place, size: int, access: Access, semantics: Semantics, scope: Scope, value: int = 0
    ) -> None:
        """A polling load or a strong store (relaxed, volatile, acquire, release)."""
        ...

    def atomic(
        self, warp: Warp, place: Place, size: int, semantics: Semantics = "relaxed", scope: Scope = "gpu"
    ) -> None:
        """An atom or red reads and writes `size` bytes."""
        ...

    def begin_async(self, warp: Warp, op: AsyncOp, actor: object, *, proxy: str = "async") -> Any:
        """An asynchronous operation is issued; the result goes into `op.access`.

        `actor` is the Mbarrier that it completes on, or a key like ("bulk", warp), ("tc", cta), ("wgmma", warpgroup)
        of a chain whose waits call `observe_chain`. `proxy` is "generic" for cp.async (not TMA), which needs no fence.
        """
        ...

    def async_read(self, op: AsyncOp, ranges: Iterable[Range]) -> None:
        """`op` reads (called in its `run`)."""
        ...

    def async_write(self, op: AsyncOp, ranges: Iterable[Range]) -> None:
        """`op` writes (called in its `run`)."""
        ...

    def commit_chain(self, warp: Warp, actor: object) -> int:
        """Close a group of a chain; returns its number, for `observe_chain`."""
        ...

    def observe_chain(self, warp: Warp, actor: object, number: int, *, reads_only: bool = False) -> None:
        """`warp` has seen group `number` of the chain complete (`reads_only`: only that its sources were read)."""
        ...

    def end_async(self, op: AsyncOp) -> None:
        """`op` has run; called by the queues."""
        ...


class NoChecks:
    """Listens to nothing."""

    enabled = False

    def __getattr__(self, name: str) -> Any:
        """Every call is accepted and does nothing."""
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing


def _nothing(*_: object, **__: object) -> None:
    return None
