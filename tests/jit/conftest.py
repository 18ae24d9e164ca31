"""Fixtures of the JIT's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megamoe_jit.jit.cache import KernelCache


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No MEGAMOE_JIT_* variable of the user's, and no kernel of a test in the user's cache."""
    for name in list(os.environ):
        if name.startswith("MEGAMOE_JIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "default cache"))


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    """An empty cache."""
    return KernelCache(tmp_path / "cache")
