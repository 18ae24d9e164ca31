"""Timelines: what warps and asynchronous engines did when, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cta, Warp

_MAX_SPANS = 500_000
"""A timeline keeps this many spans; later ones are counted, not kept (a trace viewer would not open more)."""


@dataclass(slots=True)
class Timeline:
    """Spans of one launch: (process, track, name, start, duration, details)."""

    spans: list[tuple[str, str, str, int, int, str]] = field(default_factory=list)
    dropped: int = 0

    def add(self, cta: Cta, track: str, name: str, start: int, end: int, details: str = "") -> None:
        """Note that `name` went on from `start` to `end` on `track` of `cta`."""
        if len(self.spans) >= _MAX_SPANS:
            self.dropped += 1
            return
        self.spans.append((cta.name(), track, name, start, max(end - start, 0), details))

    def waited(self, warp: Warp, what: str, start: int) -> None:
        """`warp` waited for `what` from `start` until now."""
        self.add(warp.cta, f"warp {warp.index:2}", f"wait: {what}", start, warp.time)

    def ran(self, op: AsyncOp) -> None:
        """`op` has run."""
        details = f"{op.nbytes} bytes" if op.nbytes else ""
        self.add(op.issuer.cta, op.kind, op.kind, op.issued_at, op.finish_time, details)

    def chrome(self) -> dict[str, Any]:
        """Return the Chrome trace event format: cycles as microseconds of the viewer."""
        return {"traceEvents": list(self._events()), "displayTimeUnit": "ns", "otherData": {"dropped": self.dropped}}

    def _events(self) -> Iterator[dict[str, Any]]:
        processes: dict[str, int] = {}
        tracks: dict[tuple[str, str], int] = {}
        for process, track, name, start, duration, details in self.spans:
            if process not in processes:
                processes[process] = len(processes)
                yield _named("process_name", processes[process], 0, process)
            pid = processes[process]
            if (process, track) not in tracks:
                tracks[process, track] = len(tracks)
                yield _named("thread_name", pid, tracks[process, track], track)
            event = {"ph": "X", "name": name, "pid": pid, "tid": tracks[process, track], "ts": start, "dur": duration}
            yield event | ({"args": {"details": details}} if details else {})


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}
