from __future__ import annotations

from pathlib import Path

from benchmarks.emulator_demo import COLUMNS, row_of, run_once

SMALL = ("--arch", "sm_100f", "--recipe", "nvfp4_nvfp4", "--hidden", "256", "--intermediate", "256", "--experts", "2")


def test_the_second_run_finds_what_the_first_compiled(tmp_path: Path) -> None:
    cold, warm = (run_once((*SMALL, "--tokens", "3"), str(tmp_path)) for _ in range(2))
    assert (cold["cache"], warm["cache"]) == ("miss", "hit")
    assert warm["compile_s"] < cold["compile_s"]
    assert list((tmp_path / "emulator").rglob("*")), "object code is kept too"
    row = row_of("demo", "empty", [cold, {**warm, "process_cpu_s": 1e9}])
    assert {column.key for column in COLUMNS} == row.keys()
    assert row["cpu_s"] == round(cold["process_cpu_s"], 2)
    assert 0 <= float(row["rel_l2"] or 0) < 1e-2
