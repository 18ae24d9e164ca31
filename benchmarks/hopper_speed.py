"""How fast is the whole layer on this Hopper GPU, ours and that of others, and how far from the floor?

    python -m benchmarks.hopper_speed [--workloads flash pro ...] [--tokens 1 8 ...] [--routings uniform skewed]
        [--recipes fp8_nvfp4 ...] [--peers all|none|NAME ...] [--deadline 540] [--out FOLDER] [--keep] [--no-record]
    python -m benchmarks.hopper_speed --draw                       # plots of the record that is there; needs no GPU

All in one process on one GPU with the same inputs. What peers compile is compiled ahead, in parallel. The record and
the plots are written after every cell; after the deadline the cells that are left are recorded as skipped. Where a
contender breaks the GPU's context, the script starts itself again without it.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.peers.contender import Contender, Kind
from benchmarks.peers.kinds import BY_NAME, OURS, PEERS, versions
from benchmarks.peers.layer import Layer
from benchmarks.peers.measure import Case, ContextLostError, Measurement, measure, merged, reason
from benchmarks.peers.report import NAME, SUMMARY_HEADINGS, cells, draw_all, make_result, summary_rows
from benchmarks.peers.timing import Timer, graph_us
from benchmarks.peers.workload import WORKLOADS, Cases, Workload, make_sets
from benchmarks.record import RESULTS, load, measure_conditions, save

_SHARE_AHEAD = 0.45  # of the time, at most, for compiling what peers compile
_GRACE_S = 45.0
_LOST = "lost the GPU's context: "


class Run:
    """The state of one run: what is measured, until when, and the rows so far."""

    def __init__(self, options: argparse.Namespace, kinds: Sequence[Kind], start: float) -> None:
        """Take over the rows that are kept, and those of this run's earlier process."""
        self.kinds, self._start = kinds, start
        self._deadline_s: float = options.deadline
        self._folder: Path | None = None if options.no_record else options.out
        self.stamp: str = options.resume or f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S}"
        before = _rows_of(options.out) if options.resume else []
        self.rows: list[Measurement] = [row for row in before if row.run == self.stamp]
        self._kept = [row for row in before if row.run != self.stamp]
        if options.keep and not options.resume:
            self._kept = _rows_of(options.out) or _rows_of(RESULTS)
        self.conditions: dict[str, str] = {}
        self.bf16_ops_per_s = 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline_s - (time.monotonic() - self._start)

    def log(self, text: str) -> None:
        """Print a line with the time since the start."""
        print(f"[{time.monotonic() - self._start:6.1f} s] {text}", flush=True)

    def is_done(self, workload: str, routing: str, num_tokens: int, kind: Kind) -> bool:
        """Return whether an earlier process of this run has the row."""
        return any((*row.cell, row.contender) == (workload, routing, num_tokens, kind.name) for row in self.rows)

    def lost(self, workload: str) -> dict[str, str]:
        """Return the contenders that broke the context on a workload, with what they said."""
        rows = (row for row in self.rows if row.workload == workload and row.note.startswith(_LOST))
        return {row.contender: row.note for row in rows}

    @property
    def has_record(self) -> bool:
        """Whether rows are written."""
        return self._folder is not None

    def save(self) -> None:
        """Write the record."""
        if self._folder is not None:
            save(make_result(merged(self._kept, self.rows), self.conditions), folder=self._folder)

    def finish(self) -> None:
        """Write the record and the plots, and print the short table."""
        result = make_result(merged(self._kept, self.rows), self.conditions)
        self.save()
        if self._folder is not None:
            for path in draw_all(result, self._folder):
                self.log(str(path))
        measured = make_result(self.rows, self.conditions)
        for line in (SUMMARY_HEADINGS, *summary_rows(cells(measured))):
            print(" | ".join(line))


def _rows_of(folder: Path) -> list[Measurement]:
    path = folder / f"{NAME}.json"
    return [Measurement.of(row) for row in load(path).rows] if path.exists() else []


def make_contender(kind: Kind, layer: Layer, max_tokens: int) -> tuple[Contender | None, str, str]:
    """Return the contender, or None with the status and why."""
    try:
        return kind.load()(layer, max_tokens), "", ""
    except ImportError as error:
        return None, "missing", reason(error)
    except Exception as error:  # of others' code: any
        return None, "failed", reason(error)


def measure_workload(run: Run, workload: Workload, cases: Cases, device: torch.device | str, timer: Timer) -> None:
    """Measure all contenders on all cases; raises ContextLostError when a GPU is lost."""
    layer = Layer(workload=workload, device=device)
    max_tokens = max(count for _, count in cases)
    lost = run.lost(workload.name)
    made: dict[str, tuple[Contender | None, str, str]] = {}
    for kind in run.kinds:
        if kind.name in lost or run.seconds_left < 0:
            made[kind.name] = (
                (None, "failed", lost[kind.name]) if kind.name in lost else (None, "skipped", "no time left")
            )
            continue
        made[kind.name] = make_contender(kind, layer, max_tokens)
        contender, status, note = made[kind.name]
        if contender is not None:
            try:
                contender.compile_for(sorted({count for _, count in cases}))
            except Exception as error:  # of others' code: any
                made[kind.name] = (None, "failed", reason(error))
        run.log(f"{workload.name}: {kind.name} {f'{status}: {note}' if status else 'ready'}")
    for routing, num_tokens in cases:
        case = Case(workload, routing, make_sets(workload, routing, num_tokens, device=device))
        for kind in run.kinds:
            if run.is_done(workload.name, routing, num_tokens, kind):
                continue
            blank = replace(case.blank(kind, run.bf16_ops_per_s), run=run.stamp)
            contender, status, note = made[kind.name]
            if contender is None:
                run.rows.append(replace(blank, status=status, note=note))
            elif run.seconds_left < 0:
                run.rows.append(replace(blank, status="skipped", note="no time left"))
            else:
                run.rows.append(measure(contender, case, blank, timer))
                run.log(_line(run.rows[-1]))
        run.save()


def _line(row: Measurement) -> str:
    where = f"{row.workload:8} {row.routing:8} {row.num_tokens:5} {row.contender:14}"
    if row.us is None:
        return f"{where} {row.status}: {row.note}"
    error = "no result" if row.rel_l2 is None else f"relative L2 {row.rel_l2:.4f}"
    return f"{where} {row.us:9.1f} us {row.own_floor_us / row.us:5.2f} of the floor, {error} {row.variant} {row.note}"


def compile_ahead(run: Run, cases: Sequence[tuple[Workload, Cases]], processes: int) -> None:
    """Compile our kernels and the peers', all in parallel, into their caches on disk."""
    from benchmarks.peers.ours import build_ahead
    from benchmarks.peers.warm import jobs_of, run_jobs

    tokens = {workload.name: [count for _, count in some] for workload, some in cases}
    importable = [kind for kind in run.kinds if kind.warm != "nothing" and _is_importable(kind)]
    jobs = jobs_of(importable, tokens)
    recipes = [kind.name for kind in run.kinds if kind.is_ours]
    max_tokens = max(count for counts in tokens.values() for count in counts)
    with ThreadPoolExecutor(1) as pool:
        warming = pool.submit(run_jobs, jobs, processes, run.seconds_left * _SHARE_AHEAD, run.log)
        for failure in build_ahead([workload for workload, _ in cases], recipes, max_tokens, processes):
            run.log(f"not built: {failure}")
        run.log("our kernels are built")
        warming.result()


def _is_importable(kind: Kind) -> bool:
    try:
        kind.load()
    except Exception:  # of others' code: any; the reason is recorded where the contender is made
        return False
    return True


def chosen_kinds(ours: Sequence[str], peers: Sequence[str]) -> list[Kind]:
    """Return the contenders that the options name, in the order of the list."""
    groups = {"all": PEERS, "none": ()}
    wanted = {*ours, *(one for name in peers for one in groups.get(name, (name,)))}
    unknown = sorted(wanted - BY_NAME.keys())
    if unknown:
        raise SystemExit(f"unknown contenders: {', '.join(unknown)}. There are {', '.join(BY_NAME)}.")
    return [kind for name, kind in BY_NAME.items() if name in wanted]


def parse(args: Sequence[str]) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=tuple(WORKLOADS))
    parser.add_argument("--tokens", nargs="+", type=int, help="instead of each workload's own counts")
    parser.add_argument("--routings", nargs="+", default=["uniform", "skewed"], choices=("uniform", "skewed"))
    parser.add_argument("--recipes", nargs="*", default=list(OURS), choices=OURS)
    parser.add_argument("--peers", nargs="+", default=["all"], help=f"all, none, or of {', '.join(PEERS)}")
    parser.add_argument("--deadline", type=float, default=540.0, help="seconds after which cells are skipped")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that compile ahead")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record and the plots")
    parser.add_argument("--keep", action="store_true", help="keep the cells of the record that are not measured now")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--draw", action="store_true", help="only draw the plots of the record in --out")
    parser.add_argument("--resume", help=argparse.SUPPRESS)
    return parser.parse_args(args)


def command_of(args: Sequence[str]) -> str:
    """Return the command for the record: what was measured, not where it was written or how often it was begun."""
    kept, place = [], 0
    while place < len(args):
        if args[place] in ("--out", "--resume"):
            place += 2
            continue
        kept.append(args[place])
        place += 1
    return shlex.join(["python", "-m", "benchmarks.hopper_speed", *kept])


def main(args: Sequence[str] | None = None, *, restart: Callable[[str, list[str]], object] = os.execv) -> int:
    """Measure, record and draw; a machine without a GPU measures nothing."""
    args = sys.argv[1:] if args is None else list(args)
    options = parse(args)
    if options.draw:
        for path in draw_all(load(options.out / f"{NAME}.json"), options.out):
            print(path)
        return 0
    if not torch.cuda.is_available():
        print("hopper_speed: not measured, torch finds no CUDA device here.")
        return 0
    os.environ.setdefault("MEGAMOE_JIT_TIMEOUT_S", "20")
    run = Run(options, chosen_kinds(options.recipes, options.peers), time.monotonic())
    # A kernel that never ends keeps its host waiting: the process then ends itself, with what was written so far.
    faulthandler.dump_traceback_later(max(0.0, run.seconds_left) + _GRACE_S, exit=True)
    cases = [(WORKLOADS[name], WORKLOADS[name].cases(options.tokens, options.routings)) for name in options.workloads]
    cases = [(workload, some) for workload, some in cases if some]
    if not options.resume:
        compile_ahead(run, cases, options.processes)
    from benchmarks.peers.ceilings import measure_ceilings

    ceilings = measure_ceilings()
    run.bf16_ops_per_s = ceilings.bf16_ops_per_s
    run.conditions = {**measure_conditions(), "command": command_of(args), **versions(), **ceilings.words()}
    run.log(", ".join(f"{name} {value}" for name, value in ceilings.words().items()))
    for workload, some in cases:
        try:
            measure_workload(run, workload, some, "cuda", graph_us)
        except ContextLostError as error:
            run.rows.append(replace(error.row, note=_LOST + error.row.note))
            run.save()
            run.log(_line(run.rows[-1]))
            if not run.has_record:
                return 1
            again = [*args, "--resume", run.stamp, "--deadline", f"{run.seconds_left:.0f}"]
            restart(sys.executable, [sys.executable, "-m", "benchmarks.hopper_speed", *again])
            return 1
        torch.cuda.empty_cache()
    run.finish()
    faulthandler.cancel_dump_traceback_later()
    return 0


if __name__ == "__main__":
    sys.exit(main())
