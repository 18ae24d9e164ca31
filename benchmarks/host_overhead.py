"""What does a repeated call cost the host? Until it returns, while the GPU works through the queue behind it.

    python -m benchmarks.host_overhead [--shapes minilm flash] [--tokens 1 64]

The public calls, the same call replayed from a CUDA graph, one prepared launch of an empty kernel, and for comparison
one in-place addition of torch. Needs a GPU.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.record import Cell, Column, Result, save
from benchmarks.sm90_correctness import SHAPES, Shape, routing
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.jit.build import build
from megamoe_jit.jit.places import templates_dir
from megamoe_jit.jit.source import KernelSource
from megamoe_jit.ops.moe import MegaMoE, fp8_nvfp4_mega_moe, stage_tokens
from megamoe_jit.runtime.backend import LaunchPlan
from megamoe_jit.runtime.cuda import cuda_backend
from megamoe_jit.runtime.launch import pointer, u32

# Small enough that no batch fills the GPU's launch queue, on which the host would wait.
CALLS_PER_BATCH = 50
NUM_BATCHES = 40
AIMS_US = {"call": 15.0, "replay": 3.0}
TEMPLATES = Path(__file__).parent / "templates"

COLUMNS = (
    Column(key="call", heading="call"),
    Column(key="shape", heading="shape"),
    Column(key="num_tokens", heading="tokens", format=","),
    Column(key="median_us", heading="host us", format=".2f"),
    Column(key="p90_us", heading="90th percentile", format=".2f"),
    Column(key="aim_us", heading="aim", format=".0f"),
)
NOTES = (
    f"Time until the call returns, mean of {CALLS_PER_BATCH} calls in a row; median and 90th percentile of "
    f"{NUM_BATCHES} such batches, the GPU idle before each. Kernels are prepared beforehand."
)


def batch_times_us(
    call: Callable[[], object],
    synchronize: Callable[[], object],
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[float]:
    """Return the mean time of one call, in microseconds, for each batch, fastest first."""
    for _ in range(CALLS_PER_BATCH):
        call()
    synchronize()
    times = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(NUM_BATCHES):
            start = clock_ns()
            for _ in range(CALLS_PER_BATCH):
                call()
            times.append((clock_ns() - start) / CALLS_PER_BATCH / 1e3)
            synchronize()
    finally:
        if was_enabled:
            gc.enable()
    return sorted(times)


def row_of(name: str, call: Callable[[], object], *, aim: str | None = None, **fields: Cell) -> dict[str, Cell]:
    """Measure one call."""
    times = batch_times_us(call, torch.cuda.synchronize)
    row = {
        "call": name,
        "shape": None,
        "num_tokens": None,
        **fields,
        "median_us": statistics.median(times),
        "p90_us": times[len(times) * 9 // 10],
        "min_us": times[0],
        "aim_us": AIMS_US[aim] if aim else None,
    }
    print(f"{name:58} {row['shape'] or '':8} {row['num_tokens'] or '':>5} {row['median_us']:7.2f} us", flush=True)
    return row


def public_calls(name: str, shape: Shape, tokens: list[int]) -> Iterator[dict[str, Cell]]:
    """Measure the public calls of one layer."""
    weights = MoeWeights.random(shape.num_experts, shape.hidden, shape.intermediate, seed=1, device="cuda")
    moe = MegaMoE(weights, num_topk=shape.num_topk, max_tokens_per_rank=max(tokens))
    moe.prepare()
    for num_tokens in tokens:
        yield from calls_of(moe, name, shape, num_tokens)


def calls_of(moe: MegaMoE, name: str, shape: Shape, num_tokens: int) -> Iterator[dict[str, Cell]]:
    """Measure a layer's calls with one number of tokens."""
    generator = torch.Generator("cuda").manual_seed(num_tokens)
    x = torch.randn(num_tokens, shape.hidden, generator=generator, device="cuda").bfloat16()
    topk_idx, topk_weights = routing(generator, num_tokens, shape)
    y, buffer = torch.empty_like(x), moe.sym_buffer
    fields: dict[str, Cell] = {"shape": name, "num_tokens": num_tokens}

    def whole() -> None:
        moe(x, topk_idx, topk_weights)

    def into() -> None:
        moe(x, topk_idx, topk_weights, out=y)

    def staged() -> None:
        stage_tokens(x, topk_idx, topk_weights, buffer)
        fp8_nvfp4_mega_moe(y, moe.l1, moe.l2, buffer)

    yield row_of("moe(x, topk_idx, topk_weights)", whole, aim="call", **fields)
    yield row_of("moe(x, topk_idx, topk_weights, out=y)", into, aim="call", **fields)
    yield row_of("stage_tokens(...), fp8_nvfp4_mega_moe(...)", staged, aim="call", **fields)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        into()
    yield row_of("replay of a CUDA graph with moe(..., out=y)", graph.replay, aim="replay", **fields)


def single_launches() -> Iterator[dict[str, Cell]]:
    """Measure one launch, ours and torch's."""
    backend = cuda_backend(torch.cuda.current_device())
    source = KernelSource(kernel_name="empty", entry="empty.cuh", arch=backend.info.arch)
    values = torch.zeros(32, device="cuda")
    plan = LaunchPlan(
        kernel=build(source, templates=(TEMPLATES, templates_dir())),
        grid=(1, 1, 1),
        block=(32, 1, 1),
        params=(pointer("values", values), u32("num_values", 32)),
    )
    prepared = backend.prepare(plan)
    yield row_of("prepared.launch() of an empty kernel", prepared.launch)

    def changed() -> None:
        prepared.update(0, values)
        prepared.launch()

    yield row_of("prepared.update(0, tensor), prepared.launch()", changed)
    yield row_of("torch: values.add_(1)", lambda: values.add_(1))


def main() -> int:
    """Measure and record; a machine without a GPU measures nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", nargs="+", default=["minilm", "flash"], choices=sorted(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("host_overhead: not measured, torch finds no CUDA device here.")
        return 0
    rows = list(single_launches())
    for name in args.shapes:
        rows += public_calls(name, SHAPES[name], args.tokens)
    if not args.no_record:
        title = "Host time of repeated calls"
        print(save(Result(name="host_overhead", title=title, columns=COLUMNS, rows=tuple(rows), notes=NOTES)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
