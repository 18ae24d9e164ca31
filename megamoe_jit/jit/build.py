"""From a kernel description to a built kernel: render, then compile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megamoe_jit.jit.compile import Artifact, CompileOptions, compile_source
from megamoe_jit.jit.render import RenderedSource, render
from megamoe_jit.jit.source import KernelDescription


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BuiltKernel:
    """A kernel that is ready to load."""

    kernel_name: str
    artifact: Artifact
    source: RenderedSource


def build(
    description: KernelDescription, *, options: CompileOptions | None = None, templates: Sequence[Path] | None = None
) -> BuiltKernel:
    """Render and compile `description`."""
    rendered = render(description, templates=templates)
    artifact = compile_source(
        rendered, description.arch, options or CompileOptions(), kernel_name=description.kernel_name
    )
    return BuiltKernel(kernel_name=description.kernel_name, artifact=artifact, source=rendered)
