"""How long does the demo take where there is no GPU, with an empty cache and with a full one?

    python -m benchmarks.emulator_demo [--arch sm_100f] [--recipe nvfp4_nvfp4] [--repeats 3] [--no-record]

Each run is a process of its own, imports included. Cold: kernels and the emulator's object code are compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.record import Cell, Column, Result, measure_conditions, save

COLUMNS = (
    Column(key="demo", heading="demo"),
    Column(key="cache", heading="cache"),
    Column(key="wall_s", heading="wall, s", format=".1f"),
    Column(key="cpu_s", heading="CPU, s", format=".1f"),
    Column(key="compile_s", heading="of it NVRTC, wall, s", format=".1f"),
    Column(key="call_s", heading="of it the call, wall, s", format=".1f"),
    Column(key="rel_l2", heading="relative L2 to the oracle", format=".1e"),
)
_DEMO = "import sys; from megamoe_jit.cli.main import main; sys.exit(main())"


def run_once(arguments: Sequence[str], folder: str) -> dict[str, Any]:
    """Run the demo in a process of its own with its cache in `folder`; returns its report, its wall and CPU time."""
    environment = {**os.environ, "MEGAMOE_JIT_CACHE_DIR": folder}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as users have it: modules are compiled once
    before, start = _children_s(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _DEMO, "demo", "--backend", "emulator", "--json", *arguments],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    wall = time.perf_counter() - start
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**report, "process_wall_s": wall, "process_cpu_s": _children_s() - before}


def row_of(demo: str, cache: str, runs: Sequence[dict[str, Any]]) -> dict[str, Cell]:
    """Return the fastest run by CPU time."""
    best = min(runs, key=lambda run: run["process_cpu_s"])
    return {
        "demo": demo,
        "cache": cache,
        "wall_s": round(best["process_wall_s"], 2),
        "cpu_s": round(best["process_cpu_s"], 2),
        "compile_s": round(best["compile_s"], 2),
        "call_s": round(best["call_ms"] / 1e3, 2),
        "rel_l2": best["rel_l2"],
    }


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run cold and warm, and leave the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_100f")
    parser.add_argument("--recipe", default="nvfp4_nvfp4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    conditions = measure_conditions()
    arguments = ("--arch", options.arch, "--recipe", options.recipe)
    cold, warm, load = [], [], os.getloadavg()[0]
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(run_once(arguments, folder))
            warm.append(run_once(arguments, folder))
    demo = f"`{options.recipe}`, {options.arch}"
    rows = (row_of(demo, "empty", cold), row_of(demo, "full", warm))
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    shape = ", ".join(f"{value} {key.removeprefix('num_')}" for key, value in cold[0]["shape"].items())
    if not options.no_record:
        notes = (
            f"{shape}; the fastest of {options.repeats} processes by CPU time. Other work shared the machine's "
            f"{os.cpu_count()} cores (load average {load:.1f} at the start)."
        )
        save(
            Result(
                name="emulator_demo",
                title="The demo in the emulator",
                columns=COLUMNS,
                rows=rows,
                notes=notes,
                conditions=conditions,
            )
        )


if __name__ == "__main__":
    main()
