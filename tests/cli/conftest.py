"""Fixtures of the commands' tests: a cache of their own, and a command line that runs in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megamoe_jit.cli.main import main
from megamoe_jit.jit.cache import KernelCache, default_cache

# A layer whose three kernels compile in a second.
SMALL = ("--hidden", "256", "--intermediate", "128", "--experts", "4", "--topk", "2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """What a command left: its exit status and what it printed."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """The JSON object in the last line of stdout; nothing before it may be one."""
        *before, last = self.out.splitlines()
        assert not any(line.startswith("{") for line in before)
        record: dict[str, Any] = json.loads(last)
        return record


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `megamoe-jit ARGUMENTS...` as a process of its own would: kernels in memory are forgotten before."""

    def run(*arguments: str | Path) -> Ran:
        default_cache().forget()
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Ran(code=int(exit_info.value.code or 0), out=printed.out, err=printed.err)

    return run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelCache:
    """An empty cache, which commands find through the environment."""
    for name in list(os.environ):
        if name.startswith("MEGAMOE_JIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "cache"))
    return default_cache()


@pytest.fixture(scope="session")
def warm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the kernels of the SMALL layer, compiled once for all tests; not to be written to."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEGAMOE_JIT_CACHE_DIR", str(folder))
        with pytest.raises(SystemExit) as exit_info:
            main(["warmup", *SMALL, "--max-tokens", "8", "--arch", "sm_90a", "--processes", "1", "--json"])
    assert not exit_info.value.code
    return folder


@pytest.fixture
def warm_cache(cache: KernelCache, warm_dir: Path) -> KernelCache:
    """A cache of the test's own that holds the kernels of the SMALL layer."""
    import shutil

    assert cache.path is not None
    shutil.copytree(warm_dir, cache.path)
    return cache
