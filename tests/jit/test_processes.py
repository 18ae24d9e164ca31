"""The cache among processes: built once, killed at any moment, evicted while read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from megamoe_jit.jit.build import build
from megamoe_jit.jit.built import Origin
from megamoe_jit.jit.cache import KernelCache
from tests.jit.kernels import ROOTS, tiny_kernel

ROOT = Path(__file__).parents[2]


def start(*arguments: object, **more: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEGAMOE_JIT_")} | more
    command = [sys.executable, "-m", "tests.jit.workers", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> object:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output)


def test_eight_processes_compile_each_kernel_once(tmp_path: Path) -> None:
    processes = [start("build_all", tmp_path) for _ in range(8)]
    while len(list(tmp_path.glob("ready.*"))) < 8:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    origins = [finish(process) for process in processes]
    for of_one_kernel in zip(*origins, strict=True):
        assert sorted(of_one_kernel) == ["compiled"] + ["disk"] * 7
    assert [info.damage for info in KernelCache(tmp_path / "cache").verify()] == [None] * 3


def test_a_hit_in_memory_costs_less_than_five_microseconds(tmp_path: Path) -> None:
    # In a process of its own: coverage's tracer costs more than the hit.
    seconds = finish(start("time_hits", tmp_path, MEGAMOE_JIT_CACHE_DIR=str(tmp_path / "default")))
    assert isinstance(seconds, list)
    assert len(seconds) == 2
    assert max(seconds) < 5e-6


def assert_usable(folder: Path, factors: tuple[float, ...]) -> None:
    """Every entry that can be seen is whole, every kernel can be had at once, and then every kernel is there."""
    assert [info for info in KernelCache(folder).verify(set_aside=False) if info.damage] == []
    for factor in factors:
        built = build(tiny_kernel(factor), cache=KernelCache(folder, lock_timeout_s=20), templates=ROOTS)
        assert built.build_s < 20  # no lock of a dead process
    cache = KernelCache(folder)
    assert {build(tiny_kernel(factor), cache=cache, templates=ROOTS).origin for factor in factors} == {Origin.DISK}


def test_kill_9_at_fifty_random_moments_leaves_a_usable_cache(tmp_path: Path) -> None:
    outcome = finish(start("kill_at_random", tmp_path / "cache", 50))
    assert isinstance(outcome, dict)
    assert outcome["killed"] == 50, outcome
    assert_usable(tmp_path / "cache", factors=tuple(float(i + 1) for i in range(outcome["attempts"])))


def test_kill_9_before_each_change_of_the_disk_leaves_a_usable_cache(tmp_path: Path) -> None:
    num_steps = finish(start("kill_at_each_step", tmp_path))
    assert isinstance(num_steps, int)
    assert num_steps >= 12  # folders, four files and their syncs, the renames
    for step in range(num_steps):
        assert_usable(tmp_path / str(step), factors=(2.0,))


def test_a_killed_holder_of_a_lock_blocks_nobody(cache: KernelCache) -> None:
    key = build(tiny_kernel(), cache=KernelCache(None), templates=ROOTS).key
    holder = start("hold_lock", cache.path, key.entry_name)
    assert holder.stdout is not None
    assert json.loads(holder.stdout.readline()) == "held"
    blocked = build(tiny_kernel(), cache=KernelCache(cache.path, lock_timeout_s=0.1), templates=ROOTS)
    assert blocked.build_s >= 0.1  # the lock is real ...
    cache.clear()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    free = build(tiny_kernel(), cache=KernelCache(cache.path, lock_timeout_s=20), templates=ROOTS)
    assert free.build_s < 20  # ... and gone


def test_processes_that_evict_each_others_kernels_all_get_theirs(tmp_path: Path) -> None:
    one = KernelCache(tmp_path / "one")
    build(tiny_kernel(), cache=one, templates=ROOTS)
    cap = int(one.entries()[0].size_bytes * 2.5)
    processes = [start("build_under_eviction", tmp_path / "cache", cap, seed) for seed in range(4)]
    origins = [finish(process) for process in processes]
    assert all(isinstance(counts, dict) and sum(counts.values()) == 30 for counts in origins)
    assert any("compiled" in counts for counts in origins)
    cache = KernelCache(tmp_path / "cache", max_bytes=cap)
    assert [info.damage for info in cache.verify(set_aside=False) if info.damage] == []
    cache.evict()
    assert sum(info.size_bytes for info in cache.entries()) <= cap
    assert not (tmp_path / "cache" / "damaged").exists()
