"""What every test run does: skip what this machine cannot run, and say at the end how much ran on hardware."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import settings

from tests.marks import HARDWARE_MARKS, pytest_runtest_setup

__all__ = ["pytest_runtest_setup"]

# What a developer tuned on this machine does not decide which kernels are tested.
os.environ["MEGAMOE_JIT_TUNING"] = "0"

# The time of one example says more about how busy the machine is than about the code.
settings.register_profile("megamoe", deadline=None)
settings.load_profile("megamoe")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option behind `make golden`."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files (tests/templates/golden)")


def hardware_summary(reports: Iterable[pytest.TestReport]) -> str:
    """Return one line on which tests ran on a GPU, which had none to run on, and how many need none."""
    counts = Counter[str]()
    for report in reports:
        if report.when == "call" or (report.when == "setup" and report.skipped):
            on_hardware = any(mark in report.keywords for mark in HARDWARE_MARKS)
            counts[("skipped" if report.skipped else "ran") if on_hardware else "host"] += 1
    no_gpu = f", {counts['skipped']} skipped for want of one" if counts["skipped"] else ""
    return f"hardware: {counts['ran']} tests ran on a GPU{no_gpu}; {counts['host']} tests need none"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the line below the results."""
    outcomes = ("passed", "failed", "skipped", "xfailed", "xpassed")
    reports = [report for outcome in outcomes for report in terminalreporter.stats.get(outcome, [])]
    terminalreporter.write_line(hardware_summary(reports))
