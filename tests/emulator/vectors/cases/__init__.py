"""Every case, by family."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from tests.emulator.vectors.case import Case, Family


@functools.cache
def families() -> dict[str, Family]:
    """Return the families by name: one for each module of this folder that has one."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = (getattr(importlib.import_module(f"{__name__}.{name}"), "FAMILY", None) for name in names)
    return {family.name: family for family in found if family is not None}


def build(name: str) -> Case:
    """Return the case "family/name"."""
    return families()[name.split("/")[0]].build(name)
