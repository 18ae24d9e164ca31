from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.conftest import hardware_summary


def report(when: str, *marks: str, skipped: bool = False) -> Any:
    return SimpleNamespace(when=when, skipped=skipped, keywords=dict.fromkeys(marks, 1))


def test_the_summary_counts_what_ran_on_hardware_and_what_did_not() -> None:
    reports = [
        report("setup"),
        report("call"),
        report("call", "slow"),
        report("call", "needs_sm90"),
        report("teardown", "needs_sm90"),
        report("setup", "needs_gpu", skipped=True),
        report("setup", "needs_ranks", skipped=True),
    ]
    assert hardware_summary(reports) == ("hardware: 1 tests ran on a GPU, 2 skipped for want of one; 2 tests need none")
    assert hardware_summary([report("call")]) == "hardware: 0 tests ran on a GPU; 1 tests need none"
