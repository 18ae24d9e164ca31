"""How much of the test suite's time is the emulator's?

    python -m benchmarks.emulator_tests [--every 1] [--no-record] [PATHS ...]

Runs the tests that can use the emulator in one process, one thread, and adds up CPU time, of child processes too, test
by test: of those in which the emulator ran, or that are about it. With `--every N` only each N-th test runs, and
times are multiplied by N.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.record import Cell, Column, Result, measure_conditions, save

PATHS = (
    *("tests/emulator", "tests/kernels", "tests/ops", "tests/runtime", "tests/cli", "tests/benchmarks"),
    *("tests/test_docs.py", "tests/test_examples.py"),
)
COLUMNS = (
    Column(key="tests", heading="tests"),
    Column(key="count", heading="number", format=",.0f"),
    Column(key="cpu_s", heading="CPU, s", format=".0f"),
    Column(key="slowest_s", heading="slowest test, CPU, s", format=".1f"),
    Column(key="failed", heading="failed", format=".0f"),
)


@dataclass(kw_only=True, slots=True)
class Ran:
    """One test."""

    group: str
    cpu_s: float
    used_emulator: bool
    failed: bool = False


class Meter:
    """A pytest plugin that measures each test, and notes whether the emulator was at work."""

    def __init__(self, every: int) -> None:
        """Run each test whose position is a multiple of `every`."""
        self.every = every
        self.ran: dict[str, Ran] = {}
        self.uses = 0

    def pytest_sessionstart(self) -> None:
        """Count launches."""
        from megamoe_jit.emulator.machine.machine import Machine

        self._count(Machine, "run")

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep each N-th test."""
        left_out = [item for index, item in enumerate(items) if index % self.every]
        config.hook.pytest_deselected(items=left_out)
        items[:] = items[:: self.every]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Measure one test with its fixtures."""
        uses, before = self.uses, _cpu_s()
        try:
            return (yield)
        finally:
            ran = self.ran.setdefault(item.nodeid, Ran(group="", cpu_s=0, used_emulator=False))
            ran.group = "/".join(item.nodeid.split("/")[:2]).partition("::")[0]
            ran.cpu_s = _cpu_s() - before
            # Tests of its parts need no launch; some run it in a process of their own.
            ran.used_emulator = self.uses > uses or "emul" in item.nodeid.partition("::")[0]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note failures."""
        ran = self.ran.setdefault(report.nodeid, Ran(group="", cpu_s=0, used_emulator=False))
        ran.failed = ran.failed or report.failed

    def _count(self, owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **named: Any) -> Any:
            self.uses += 1
            return function(*args, **named)

        setattr(owner, name, counted)


def _cpu_s() -> float:
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + child.ru_utime + child.ru_stime


def rows_of(ran: list[Ran], every: int) -> list[dict[str, Cell]]:
    """Return one row a folder, and one for all."""
    mine = [test for test in ran if test.used_emulator]
    groups = {group: [test for test in mine if test.group == group] for group in sorted({test.group for test in mine})}
    return [
        {
            "tests": name,
            "count": len(tests) * every,
            "cpu_s": round(sum(test.cpu_s for test in tests) * every, 1),
            "slowest_s": round(max((test.cpu_s for test in tests), default=0.0), 2),
            "failed": sum(test.failed for test in tests),
        }
        for name, tests in {**groups, "all": mine}.items()
    ]


def main() -> int:
    """Run the tests and leave the record; returns pytest's status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help=f"default: {' '.join(PATHS)}")
    parser.add_argument("--every", type=int, default=1, help="run only each N-th test")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    conditions = measure_conditions()
    os.environ["OMP_NUM_THREADS"] = "1"
    paths = options.paths or list(PATHS)
    meter, start, load = Meter(options.every), time.monotonic(), os.getloadavg()[0]
    status = int(pytest.main(["-q", "-p", "no:cacheprovider", *paths], plugins=[meter]))
    wall = time.monotonic() - start
    rows = rows_of(list(meter.ran.values()), options.every)
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    slow = Counter({name: ran.cpu_s for name, ran in meter.ran.items()}).most_common(10)
    print("slowest:", *(f"{cpu_s:.1f} s {name}" for name, cpu_s in slow), sep="\n  ")
    if not options.no_record:
        sampled = f"of every {options.every} tests one ran, and is multiplied. " if options.every > 1 else ""
        notes = (
            "CPU time of tests in which the emulator ran, of one process with one thread; "
            f"{sampled}`make test` spreads tests over all cores. {wall:,.0f} s of wall time, load average {load:.1f} "
            "at the start."
        )
        save(
            Result(
                name="emulator_tests",
                title="The emulator's share of the test suite",
                columns=COLUMNS,
                rows=tuple(rows),
                notes=notes,
                conditions=conditions,
            )
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
