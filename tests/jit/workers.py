"""Processes for the cache's tests: `python workers.py <what> <folder> ...` prints one JSON line.

Run as a program, so that what is killed is never the test runner, and what forks has no threads.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

from megamoe_jit.jit.build import build
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.compile import nvrtc_version
from tests.jit.kernels import ROOTS, tiny_kernel

FACTORS = (1.0, 2.0, 3.0)


def report(value: object) -> None:
    """Print what a test reads."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def build_all(folder: str) -> None:
    """Build each kernel once, when the file `go` appears; print where each came from."""
    ready = Path(folder, f"ready.{os.getpid()}")
    nvrtc_version()
    ready.touch()
    while not Path(folder, "go").exists():
        time.sleep(0.001)
    cache = KernelCache(Path(folder, "cache"))
    report([build(tiny_kernel(f), cache=cache, templates=ROOTS).origin.value for f in FACTORS])


def build_under_eviction(folder: str, max_bytes: str, seed: str) -> None:
    """Build and reload kernels in a cache that holds about two of them; print how often each way was taken."""
    chance, origins = random.Random(int(seed)), []
    for _ in range(30):
        cache = KernelCache(folder, max_bytes=int(max_bytes))
        built = build(tiny_kernel(chance.choice(FACTORS)), cache=cache, templates=ROOTS)
        assert ".entry scale(" in built.ptx
        origins.append(built.origin.value)
    report({origin: origins.count(origin) for origin in sorted(set(origins))})


def time_hits(folder: str) -> None:
    """Print the seconds of a hit in memory: with a cache given, and through the default cache."""
    kernel, cache = tiny_kernel(), KernelCache(folder)
    calls = (lambda: build(kernel, cache=cache, templates=ROOTS), lambda: build(kernel, templates=ROOTS))
    report([call() and min(timeit.repeat(call, number=1000, repeat=30)) / 1000 for call in calls])


def hold_lock(folder: str, entry_name: str) -> None:
    """Hold an entry's lock until killed."""
    with KernelCache(folder).lock(entry_name):
        report("held")
        time.sleep(600)


def kill_at_random(folder: str, times: str) -> None:
    """Kill builders of kernels 1.0, 2.0, ... at random moments: every other counted from when it begins to publish."""
    cache_dir, chance = Path(folder), random.Random(0)
    nvrtc_version()  # loaded before the forks, so that their time goes into rendering, compiling and publishing

    def build_one(factor: float, publishing: int) -> None:
        cache = KernelCache(cache_dir)
        publish = cache.publish

        def announce(*args: object) -> object:
            os.write(publishing, b"p")
            return publish(*args)

        cache.publish = announce
        build(tiny_kernel(factor), cache=cache, templates=ROOTS)

    def run(factor: float, kill: Callable[[int, int], None] | None) -> tuple[float, float, bool]:
        """Fork a builder; return seconds until it published and until it ended, and whether it was killed."""
        reader, writer = os.pipe()
        start, published = time.perf_counter(), 0.0
        if (child := os.fork()) == 0:
            os.close(reader)
            build_one(factor, writer)
            os._exit(0)
        os.close(writer)
        if kill is not None:
            kill(child, reader)
        elif select.select([reader], [], [], 60)[0] and os.read(reader, 1):
            published = time.perf_counter() - start
        _, status = os.waitpid(child, 0)
        os.close(reader)
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0, status
        return published, time.perf_counter() - start, killed

    until_publish, until_end, _ = run(0.5, None)

    def early(child: int, reader: int) -> None:
        time.sleep(chance.uniform(0, until_publish * 1.1))
        os.kill(child, signal.SIGKILL)

    def while_publishing(child: int, reader: int) -> None:
        select.select([reader], [], [], 60)
        time.sleep(chance.uniform(0, (until_end - until_publish) * 1.1))
        os.kill(child, signal.SIGKILL)

    killed, attempts = 0, 0
    # On a busy machine many builders end before their moment comes: go on until as many as asked for were killed.
    while killed < int(times) and attempts < 10 * int(times):
        attempts += 1
        killed += run(float(attempts), early if attempts % 2 else while_publishing)[2]
    report({"killed": killed, "attempts": attempts, "until_publish_s": until_publish, "until_end_s": until_end})


def kill_at_each_step(folder: str) -> None:
    """Kill a builder just before its first, second, ... change of the disk, each in a cache of its own.

    Print the numbers of steps that ended in a kill; the last run got through.
    """
    nvrtc_version()
    step = 0
    while True:
        if (child := os.fork()) == 0:
            count_down(step)
            build(tiny_kernel(), cache=KernelCache(Path(folder, str(step))), templates=ROOTS)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        assert os.WIFSIGNALED(status), status
        step += 1
    report(step)


def count_down(steps: int) -> None:
    """Let this process kill itself instead of taking its next change of the disk after `steps` of them."""
    left = [steps]

    def guard(function: Callable[..., object]) -> Callable[..., object]:
        def guarded(*args: object, **kwargs: object) -> object:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*args, **kwargs)

        return guarded

    os.fsync = guard(os.fsync)
    shutil.rmtree = guard(shutil.rmtree)
    for name in ("mkdir", "rename", "open"):
        setattr(Path, name, guard(getattr(Path, name)))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
