"""What every test run says at its end: how much of it ran on hardware."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

HARDWARE_MARKS = ("needs_gpu", "needs_sm90", "needs_ranks")


def hardware_summary(reports: Iterable[pytest.TestReport]) -> str:
    """Return one line on which tests ran on a GPU, which had none to run on, and how many need none."""
    counts = Counter[str]()
    for report in reports:
        if report.when != "call" and not (report.when == "setup" and report.skipped):
            continue
        on_hardware = any(mark in report.keywords for mark in HARDWARE_MARKS)
        counts[("skipped" if report.skipped else "ran") if on_hardware else "host"] += 1
    no_gpu = f", {counts['skipped']} skipped for want of one" if counts["skipped"] else ""
    return f"hardware: {counts['ran']} tests ran on a GPU{no_gpu}; {counts['host']} tests need no GPU"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the line below the results."""
    reports = [
        report
        for outcome in ("passed", "failed", "skipped", "xfailed", "xpassed")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    terminalreporter.write_line(hardware_summary(reports))
