"""Keys of the kernel cache: what a built kernel depends on, as content."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from megamoe_jit.arch import Arch
from megamoe_jit.errors import ArgumentError
from megamoe_jit.jit.render import RenderedSource

# Raise it when the meaning of a key or the form of an entry changes: older entries are then never found, only evicted.
SCHEMA_VERSION = 1

_KERNEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelKey:
    """Identity of a built kernel. Equal keys mean equal code; paths, times and file dates are no part of it."""

    kernel_name: str
    arch: str
    digest: str  # SHA-256, 64 hexadecimal digits

    @property
    def entry_name(self) -> str:
        """Name of the kernel's folder in a cache: readable first, unique by its last part."""
        return f"{self.kernel_name}-{self.arch}-{self.digest[:32]}"

    def __str__(self) -> str:
        """Return the entry's name."""
        return self.entry_name


def kernel_key(
    rendered: RenderedSource, *, kernel_name: str, arch: Arch, flags: tuple[str, ...], nvrtc: tuple[int, int]
) -> KernelKey:
    """Return the key: SHA-256 over schema version, symbol, target, options, NVRTC version and rendered sources by name.

    The order of `flags` counts, because it counts for the compiler; the order of files does not: `#include` decides.
    Raises ArgumentError when `kernel_name` is no C identifier of at most 128 characters.
    """
    if not _KERNEL_NAME.fullmatch(kernel_name):
        raise ArgumentError(
            f"kernel_name={kernel_name!r} cannot be both a symbol and a folder's name. "
            "Use letters, digits and underscores, at most 128."
        )
    content = {
        "schema": SCHEMA_VERSION,
        "kernel_name": kernel_name,
        "arch": arch.name,
        "flags": flags,
        "nvrtc": nvrtc,
        "main": rendered.main,
        "files": dict(rendered.files),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return KernelKey(kernel_name=kernel_name, arch=arch.name, digest=hashlib.sha256(canonical.encode()).hexdigest())


def templates_digest(rendered: RenderedSource) -> str:
    """Return SHA-256 over the rendered files by name, but for config.cuh: it changes when the templates' code does."""
    files = {name: text for name, text in rendered.files if name != "config.cuh"}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
