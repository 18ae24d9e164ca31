"""Kernels of Triton need the package `triton`, which compiles for Blackwell without a GPU."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).resolve().parents[3]
# Read when the package is imported. Without a choice on fusion it warns at each compile.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "0")
os.environ.setdefault("TRITON_CACHE_DIR", str(_CHECKOUT / ".pytest_cache" / "triton"))


class _Skipped(pytest.Module):
    def collect(self) -> list[pytest.Item]:
        """Skip the whole file."""
        pytest.skip("needs the package triton (extra `triton`, which `make setup` installs)", allow_module_level=True)


if importlib.util.find_spec("triton") is None:

    def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
        """Skip test files with a reason instead of failing to import them."""
        skipped: pytest.Module = _Skipped.from_parent(parent, path=module_path)
        return skipped
