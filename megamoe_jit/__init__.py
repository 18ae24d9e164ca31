"""Fused mixture-of-experts layers for 4-bit checkpoints: rendered, compiled and cached when first needed.

Importing this package loads neither torch nor CUDA: each name below is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from megamoe_jit.arch import get_arch as get_arch
    from megamoe_jit.errors import MegaMoeError as MegaMoeError
    from megamoe_jit.recipes.recipe import get_recipe as get_recipe
    from megamoe_jit.recipes.recipe import list_recipes as list_recipes

# Where each public name lives; a test holds the imports above, which type checkers read, to this table.
_EXPORTS = {
    "MegaMoeError": "megamoe_jit.errors",
    "get_arch": "megamoe_jit.arch",
    "get_recipe": "megamoe_jit.recipes.recipe",
    "list_recipes": "megamoe_jit.recipes.recipe",
}

__all__ = [
    "MegaMoeError",
    "__version__",
    "get_arch",
    "get_recipe",
    "list_recipes",
]


def __getattr__(name: str) -> object:
    """Import the public name `name` from its module, once (PEP 562)."""
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Public names: {', '.join(__all__)}.")
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
