from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.emulator_speed import (
    BASE,
    CHUNKS,
    GROWTH_COLUMNS,
    SPEED_COLUMNS,
    Layer,
    draw,
    measure_chunk,
    measure_growth,
    run_chunk,
)
from benchmarks.record import RESULTS, load


@pytest.mark.parametrize("name", CHUNKS)
def test_loops_are_long_and_both_engines_agree_on_them(name: str) -> None:
    lines = CHUNKS[name]()
    assert len(lines) >= 134
    out, executed = run_chunk(lines, turns=2)
    again, same = run_chunk(lines, turns=2, engine="numpy")
    assert torch.equal(out, again)
    assert executed == same > 2 * len(lines)
    assert len(out.unique()) > 32


@pytest.mark.parametrize("name", CHUNKS)
def test_a_loop_counts_what_one_launch_executes(name: str) -> None:
    row = measure_chunk(name, turns=10, repeats=2)
    assert {column.key for column in SPEED_COLUMNS} == row.keys()
    executed, instructions = (int(row[key] or 0) for key in ("executed", "instructions"))
    assert 0 <= executed - 10 * instructions < 100


def test_a_call_is_measured_with_and_without_checks() -> None:
    layer = Layer(num_tokens=4, hidden=128, intermediate=128, num_experts=4)
    row = {"axis": "tokens", **measure_growth(layer, calls=1)}
    assert {column.key for column in GROWTH_COLUMNS} <= row.keys()
    assert int(row["mmas"] or 0) > 0
    assert float(row["first_cpu_s"] or 0) > 0


def test_the_growth_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="in the extra `bench`")
    result = load(RESULTS / "emulator_growth.json")
    assert draw(result, tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert replace(BASE, num_tokens=128) == Layer(num_tokens=128)
