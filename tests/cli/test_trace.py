from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megamoe_jit.cli.trace import merged
from tests.cli.conftest import SMALL, Run


def events_of(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


@pytest.mark.parametrize(("arch", "mma"), [("sm_90a", "wgmma"), ("sm_100f", "tcgen05.mma")])
def test_a_trace_shows_each_kernel_block_and_engine(run: Run, tmp_path: Path, arch: str, mma: str) -> None:
    path = tmp_path / "trace.json"
    ran = run("trace", path, *SMALL, "--tokens", "6", "--arch", arch, "--json")
    assert ran.code == 0
    record, events = ran.record, events_of(path)
    assert record["events"] == len(events)
    assert record["bytes"] == path.stat().st_size
    *staging, fused = record["kernels"]
    assert fused.startswith("mega_moe")
    assert [kernel.startswith("stage_tokens") for kernel in staging] == ([] if arch == "sm_90a" else [True])
    processes = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    assert {name.split(":")[0] for name in processes.values()} == {*staging, fused}
    assert len([name for name in processes.values() if name.startswith(fused)]) == 4  # one block an SM
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and event["pid"] in processes for event in spans)
    assert any(mma in event["name"] for event in spans)
    ends = {kernel: [s["ts"] for s in spans if processes[s["pid"]].startswith(kernel)] for kernel in (*staging, fused)}
    assert all(max(ends[kernel], default=0) <= min(ends[fused]) for kernel in staging)


def test_a_trace_says_where_it_is(run: Run, tmp_path: Path) -> None:
    ran = run("trace", tmp_path / "t.json", *SMALL, "--tokens", "2", "--arch", "sm_90a")
    assert ran.code == 0
    assert f"written to {tmp_path / 't.json'}" in ran.out
    assert "ui.perfetto.dev" in ran.out


def test_no_tokens_give_an_empty_trace(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    record = run("trace", path, *SMALL, "--tokens", "0", "--arch", "sm_90a", "--json").record
    assert (record["events"], record["kernels"], events_of(path)) == (0, [], [])


def test_launches_follow_one_another_in_blocks_of_their_own() -> None:
    def timeline(*spans: tuple[int, int, int]) -> dict[str, Any]:
        named = [{"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"CTA {pid}"}} for pid, *_ in spans]
        return {"traceEvents": [*named, *({"ph": "X", "pid": p, "ts": t, "dur": d} for p, t, d in spans)]}

    events = list(merged([("a", timeline((0, 5, 10), (1, 0, 2))), ("b", timeline((0, 1, 1)))]))
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == ["a: CTA 0", "a: CTA 1", "b: CTA 0"]
    assert [(e["pid"], e["ts"]) for e in events if e["ph"] == "X"] == [(0, 5), (1, 0), (2, 16)]
    assert list(merged([])) == []
