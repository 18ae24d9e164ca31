"""An emulator that records what it is given: the part of `megamoe_jit.emulator.api` that the backend calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Memory:
    """Memory that a launch may touch."""

    tensor: torch.Tensor
    writable: bool = True


@dataclass
class Module:
    """A loaded text, and its launches as dictionaries."""

    ptx: str
    launches: list[dict[str, Any]] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    run: Callable[[], None] = lambda: None

    def prepare(self, name: str) -> None:
        """Record that a kernel was compiled."""
        self.prepared.append(name)

    def launch(self, name: str, **arguments: Any) -> None:
        """Record a launch, then do what the test wants a kernel to do."""
        self.launches.append({"name": name, **arguments})
        self.run()


class Emulator:
    """What it was made with, and what it loaded."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.modules: list[Module] = []

    def load(self, ptx: str) -> Module:
        """Record a text."""
        self.modules.append(Module(ptx))
        return self.modules[-1]
