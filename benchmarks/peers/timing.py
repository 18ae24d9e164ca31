"""How calls are timed: CUDA graphs that run all inputs in turn, medians of their replays."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]
Timer = Callable[[Sequence[Call]], float]
_AT_LEAST_MS, _FEWEST, _MOST = 100.0, 8, 200


def event_times_ms(call: Call, count: int) -> list[float]:
    """Return the time of each of `count` calls, queued one behind the other."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]  # type: ignore[no-untyped-call]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def graph_us(calls: Sequence[Call]) -> float:
    """Return the median time of a call in microseconds; each call should have an input of its own."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    event_times_ms(graph.replay, 2)
    once_ms = max(event_times_ms(graph.replay, 1)[0], 1e-3)
    count = int(min(_MOST, max(_FEWEST, _AT_LEAST_MS / once_ms)))
    return statistics.median(event_times_ms(graph.replay, count)) / len(calls) * 1e3
