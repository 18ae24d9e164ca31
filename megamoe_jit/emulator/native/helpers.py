"""The library of native helpers: compiled once with the optimiser, loaded once a process."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from megamoe_jit.emulator.native.check_helpers import check_helpers
from megamoe_jit.emulator.native.compile import Library, compile_ir
from megamoe_jit.emulator.native.control_helpers import control_helpers
from megamoe_jit.emulator.native.ir import Body, module_text
from megamoe_jit.emulator.native.memory_helpers import ZEROS, memory_helpers
from megamoe_jit.emulator.native.objects import ObjectCache
from megamoe_jit.emulator.native.value_helpers import table_data, value_helpers


def helper_bodies() -> list[Body]:
    """Return all helpers."""
    return [*control_helpers(), *memory_helpers(), *check_helpers(), *value_helpers()]


class Helpers:
    """The loaded helpers.

    Attributes:
        addresses: name -> address.
    """

    def __init__(self, library: Library, names: list[str]) -> None:
        """Take the addresses of a loaded library, which stays alive with this."""
        self._library = library
        self.addresses: Mapping[str, int] = {name: library.address(name) for name in names}


_loaded: dict[str, Helpers] = {}


def load_helpers(cache: ObjectCache | None = None) -> Helpers:
    """Return the helpers, from this process, from `cache`, or compiled now."""
    cache = cache or ObjectCache(None)
    key = cache.key("helpers")
    known = _loaded.get(key)
    if known is None:
        objects = cache.load(key)
        if objects is None:
            objects = [compile_ir(_text(), optimise=True)]
            cache.keep(key, objects)
        names = _names()
        known = _loaded[key] = Helpers(Library(objects, names, {}), names)
    return known


@functools.cache
def _bodies() -> list[Body]:
    return helper_bodies()


def _names() -> list[str]:
    return [body.name for body in _bodies()]


def _text() -> str:
    return module_text(_bodies(), [ZEROS, *table_data()])
