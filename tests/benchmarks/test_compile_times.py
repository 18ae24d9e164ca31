from __future__ import annotations

from benchmarks.compile_times import COLUMNS, measure
from megamoe_jit.recipes import Problem, plan_kernels


def test_a_row_has_every_column_and_each_way_to_a_kernel_is_faster_than_the_one_before() -> None:
    problem = Problem(hidden=256, intermediate=128, num_experts=4, num_topk=2, max_tokens_per_rank=8)
    row = measure("small", plan_kernels(problem, "fp8_nvfp4", "sm_90a")[0], repeats=1)
    assert {column.key for column in COLUMNS} <= row.keys()
    assert row["variant"] == "source_is_codes=False"
    compile_s, load_ms, hit_us = (float(row[key] or 0) for key in ("compile_s", "load_ms", "hit_us"))
    assert 0 < hit_us * 1e-6 < load_ms * 1e-3 < compile_s
