"""`megamoe-jit version`: this package's version, and those of what it stands on."""

from __future__ import annotations

import platform
from importlib import metadata

import megamoe_jit
from megamoe_jit.cli.output import JsonOption, console, emit_json

_STANDS_ON = ("torch", "cuda-python", "cuda-bindings", "nvidia-cuda-nvrtc", "jinja2")


def installed_versions() -> dict[str, str | None]:
    """Return distribution name -> installed version (None: not installed); imports none of them."""
    return {name: _installed_version(name) for name in _STANDS_ON}


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version(*, as_json: JsonOption = False) -> None:
    """Print the versions of this package and of what it stands on."""
    record = {"megamoe_jit": megamoe_jit.__version__, "python": platform.python_version(), **installed_versions()}
    if as_json:
        emit_json(record)
        return
    for name, value in record.items():
        console.print(f"{name} {value or 'not installed'}", highlight=False)
