from __future__ import annotations

from benchmarks.emulator_tests import COLUMNS, Ran, rows_of


def test_rows_add_up_what_used_the_emulator() -> None:
    ran = [
        Ran(group="tests/emulator", cpu_s=1.5, used_emulator=True),
        Ran(group="tests/emulator", cpu_s=0.25, used_emulator=True, failed=True),
        Ran(group="tests/kernels", cpu_s=4.0, used_emulator=True),
        Ran(group="tests/kernels", cpu_s=100.0, used_emulator=False),
    ]
    rows = rows_of(ran, 2)
    assert [(row["tests"], row["count"], row["cpu_s"], row["slowest_s"], row["failed"]) for row in rows] == [
        ("tests/emulator", 4, 3.5, 1.5, 1), ("tests/kernels", 2, 8.0, 4.0, 0), ("all", 6, 11.5, 4.0, 1),
    ]  # fmt: skip
    assert all({column.key for column in COLUMNS} == row.keys() for row in rows)
