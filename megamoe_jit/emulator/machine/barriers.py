"""Barriers of a CTA (`barrier.cta`, 16 of them) and of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Cluster, Cta


class NamedBarriers:
    """The 16 barriers of a CTA."""

    def __init__(self, cta: Cta) -> None:
        """All idle."""
        self.cta = cta


class ClusterBarrier:
    """`barrier.cluster` of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        """Phase 0."""
        self.cluster = cluster
