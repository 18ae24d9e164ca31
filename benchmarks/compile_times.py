"""What does a kernel cost before it runs? Cold compile, load from disk and hit in memory, for models; needs no GPU.

python -m benchmarks.compile_times [--presets deepseek-v4-flash gpt-oss-20b ...] [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.record import Cell, Column, Result, save
from megamoe_jit.cli.presets import get_preset
from megamoe_jit.cli.warmup import plan_models
from megamoe_jit.jit.build import build
from megamoe_jit.jit.built import BuiltKernel
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.source import KernelDescription

COLUMNS = (
    Column(key="model", heading="Model"),
    Column(key="kernel", heading="Kernel"),
    Column(key="variant", heading="Variant"),
    Column(key="compile_s", heading="Compile, s", format=".2f"),
    Column(key="load_ms", heading="Load from disk, ms", format=".2f"),
    Column(key="hit_us", heading="Hit in memory, us", format=".2f"),
    Column(key="registers", heading="Registers"),
    Column(key="spill_bytes", heading="Spilled bytes"),
    Column(key="cubin_kib", heading="Cubin, KiB", format=".0f"),
)
NOTES = (
    "Compile: rendering, NVRTC and publishing into an empty cache. Load: rendering, reading and verifying each digest, "
    "as a new process does (imports apart). Hit: `build` asked again for the same description. All are medians."
)
_HITS = 10_000


def measure(model: str, description: KernelDescription, repeats: int) -> dict[str, Cell]:
    """Return one row: the three ways to a kernel, each in the median of `repeats`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(repeat) for repeat in range(repeats)]
        colds = [_timed(partial(build, description, cache=KernelCache(path))) for path in paths]
        loads = [_timed(partial(build, description, cache=KernelCache(path))) for path in paths]
        cache = KernelCache(paths[0])
        built = build(description, cache=cache)
        assert built.cache_hit
        hits = [_timed(partial(_build_often, description, cache)) for _ in range(repeats)]
    return {
        "model": model,
        "kernel": built.kernel_name,
        "variant": _variant(description),
        "compile_s": statistics.median(colds),
        "nvrtc_s": built.artifact.compile_s,
        "load_ms": statistics.median(loads) * 1e3,
        "hit_us": statistics.median(hits) / _HITS * 1e6,
        **_size(built),
    }


def _build_often(description: KernelDescription, cache: KernelCache) -> None:
    for _ in range(_HITS):
        build(description, cache=cache)


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _variant(description: KernelDescription) -> str:
    constants = description.constants()
    shown = [name for name in ("block_n", "num_stages", "source_is_codes") if name in constants]
    return ", ".join(f"{name}={constants[name]}" for name in shown)


def _size(built: BuiltKernel) -> dict[str, Cell]:
    resources = built.resources
    return {
        "registers": resources.registers,
        "spill_bytes": resources.spill_stores + resources.spill_loads,
        "cubin_kib": len(built.cubin) / 1024,
    }


def main() -> None:
    """Measure every kernel of the models named, and store the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["deepseek-v4-flash", "gpt-oss-20b"])
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for name in options.presets:
        descriptions = plan_models(
            [get_preset(name)], archs=[options.arch], recipes=None, num_ranks=1, max_tokens_per_rank=8192
        )
        build(descriptions[0], cache=KernelCache(None))  # imports Jinja and loads NVRTC
        for description in descriptions:
            rows.append(measure(name, description, options.repeats))
            print(rows[-1], flush=True)
    title = f"What a kernel costs before it runs ({options.arch})"
    print(save(Result(name="compile_times", title=title, columns=COLUMNS, rows=tuple(rows), notes=NOTES)))


if __name__ == "__main__":
    main()
