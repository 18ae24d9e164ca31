"""Fences. Memory is coherent here at all times; fences matter to the checker, which reports where they are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from megamoe_jit.emulator.isa.decode import Decode
from megamoe_jit.emulator.isa.table import handler, noop
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Scope, Semantics
    from megamoe_jit.emulator.machine.state import Warp

_SECTION = "Parallel Synchronization and Communication Instructions: membar/fence"
_LEVELS: dict[str, Scope] = {"cta": "cta", "gl": "gpu", "sys": "sys"}
_SEMANTICS: dict[str, Semantics] = {
    "": "acq_rel",
    "acq_rel": "acq_rel",
    "sc": "acq_rel",
    "acquire": "acquire",
    "release": "release",
}


@handler("fence{semantics:.sc|.acq_rel|.acquire|.release|}.{scope:cta|cluster|gpu|sys}", section=_SECTION)
def fence(d: Decode) -> Handler:
    """Order this thread's accesses, as other threads in scope see them; .sc is .acq_rel and more."""
    return _fence(_SEMANTICS[d.form["semantics"]], d.form["scope"])  # type: ignore[arg-type]


@handler("membar{.sc}.{level:cta|gl|sys}", section=_SECTION)
def membar(d: Decode) -> Handler:
    """The older spelling: fence.sc at cta, gpu or sys scope."""
    return _fence("acq_rel", _LEVELS[d.form["level"]])


@handler(
    "fence{semantics:.acquire|.release}.sync_restrict::{what:shared::cta.cluster|shared::cluster.cluster}",
    section=_SECTION,
)
def fence_restricted(d: Decode) -> Handler:
    """A fence for shared memory only, or for mbarriers: taken as the whole fence."""
    return _fence(_SEMANTICS[d.form["semantics"]], "cluster")


def _fence(semantics: Semantics, scope: Scope) -> Handler:
    def run(warp: Warp, mask: int) -> Outcome:  # noqa: ARG001
        warp.machine.checks.fence(warp, semantics, scope)
        return None

    return run


@handler("fence.proxy.async{space:.global|.shared{::cta|::cluster|}|}", section=f"{_SECTION}: fence.proxy")
@handler("fence.proxy.async::generic.{semantics:acquire|release}.sync_restrict::{space:shared::cta|shared::cluster}.cluster",
         section=f"{_SECTION}: fence.proxy")  # fmt: skip
def fence_proxy_async(d: Decode) -> Handler:
    """Order ordinary accesses and those of the async proxy, in all memory or in one kind."""
    space: Literal["", "global", "shared"] = d.form["space"].partition("::")[0]  # type: ignore[assignment]

    def run(warp: Warp, mask: int) -> Outcome:  # noqa: ARG001
        warp.machine.checks.fence_proxy(warp, space)
        return None

    return run


@handler("fence.mbarrier_init.release.cluster", section=_SECTION)
def fence_mbarrier_init(d: Decode) -> Handler:  # noqa: ARG001
    """Make this thread's mbarrier.init visible to the async proxy and the cluster."""

    def run(warp: Warp, mask: int) -> Outcome:  # noqa: ARG001
        warp.machine.checks.fence_mbarrier_init(warp)
        return None

    return run


noop("fence.proxy.alias", "an address has one alias here", section=f"{_SECTION}: fence.proxy")


@handler(
    "fence.proxy.tensormap::generic.{semantics:acquire|release|acq_rel}.{scope:cta|cluster|gpu|sys}",
    section=f"{_SECTION}: fence.proxy",
)
def fence_proxy_tensormap(d: Decode) -> Handler:
    """Order accesses to a tensor map and its use: taken as the fence of the same scope, and as a proxy fence."""
    semantics: Semantics = _SEMANTICS[d.form["semantics"]]
    scope: Scope = d.form["scope"]  # type: ignore[assignment]

    def run(warp: Warp, mask: int) -> Outcome:  # noqa: ARG001
        warp.machine.checks.fence(warp, semantics, scope)
        warp.machine.checks.fence_proxy(warp)
        return None

    return run
