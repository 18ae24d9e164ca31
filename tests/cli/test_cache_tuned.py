"""`megamoe-jit cache` with tuned choices beside the kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from megamoe_jit.jit.cache import KernelCache, default_cache
from megamoe_jit.jit.tuned import record_name, record_paths
from tests.cli.conftest import Run
from tests.jit.test_tuned import KEY, keep_record, record

NAME = record_name(KEY)


def test_list_verify_and_clear(run: Run, cache: KernelCache) -> None:
    assert run("cache", "list", "--json").record["tuned"] == []
    assert "tuned" not in run("cache", "list").out
    keep_record(cache, record((8, 16)))
    assert run("cache", "list", "--json").record["tuned"] == [NAME]
    assert run("cache", "list").out.endswith("tuned choices for 1 layers\n")
    assert run("cache", "verify").code == 0
    record_paths(cache)[0].write_text("?")
    ran = run("cache", "verify")
    assert (ran.code, f"damaged, set aside: tuned choices {NAME}" in ran.out) == (1, True)
    assert run("cache", "verify", "--json").record["damaged_tuned"] == []
    keep_record(cache, record((8, 16)))
    assert run("cache", "clear").code == 0
    assert record_paths(cache) == []


def test_pack_and_unpack(run: Run, warm_cache: KernelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_record(warm_cache, record((8, 16)))
    assert run("cache", "pack", tmp_path / "kernels.tar").code == 0
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert "tuned choices for 1 layers" in run("cache", "unpack", tmp_path / "kernels.tar").out
    assert [path.name for path in record_paths(default_cache())] == [NAME]
    assert run("cache", "unpack", tmp_path / "kernels.tar", "--json").record["tuned"] == [NAME]
