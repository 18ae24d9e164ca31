"""Build hook: a wheel carries the top-level templates/ as package data of megamoe_jit."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TemplatesHook(BuildHookInterface):
    """Maps templates/ to megamoe_jit/templates.

    Hatchling's own `force-include` would copy the files into editable installs too, where the copy would go stale.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the mapping for every kind of wheel but the editable one."""
        if version != "editable":
            build_data["force_include"]["templates"] = "megamoe_jit/templates"
