"""One cell: a contender on one workload, routing and token count; and the rows that cells become."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from benchmarks.peers.contender import Contender, Kind, Run
from benchmarks.peers.layer import Values, checked_rows, moe_truth
from benchmarks.peers.timing import Timer
from benchmarks.peers.workload import Routing, TokenSet, Workload, num_touched
from benchmarks.record import Cell
from megamoe_jit.reference.compare import cosine, rel_l2

_LONGEST = 300  # characters of an error that are kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One row of the record.

    `status` is "measured", "missing" (not installed), "failed", or "skipped" (no time left), with the reason in `note`.
    `floor_us` is that of NVFP4 weights on FP8 tensor cores, `own_floor_us` that of the contender's activations on this
    GPU in this run. `rel_l2` and `cosine` are to the truth of the contender's own dequantised weights. `run` says when
    and from which commit the row came.
    """

    workload: str
    routing: str
    num_tokens: int
    contender: str
    status: str
    variant: str = ""
    us: float | None = None
    other_us: str = ""
    floor_us: float = 0.0
    own_floor_us: float = 0.0
    rel_l2: float | None = None
    cosine: float | None = None
    note: str = ""
    run: str = ""

    def row(self) -> dict[str, Cell]:
        """Return the row."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Cell]) -> Measurement:
        """Return the measurement that a row was."""
        return cls(**row)  # type: ignore[arg-type]

    @property
    def cell(self) -> tuple[str, str, int]:
        """What is compared with each other: workload, routing, tokens."""
        return self.workload, self.routing, self.num_tokens


class Case:
    """The inputs of a cell, and the truth for each set of weights, computed once."""

    def __init__(self, workload: Workload, routing: Routing, sets: list[TokenSet]) -> None:
        """Keep the inputs and find the floor."""
        self.workload, self.routing, self.sets = workload, routing, sets
        self.num_tokens = sets[0].x.shape[0]
        self.num_touched = num_touched(sets)
        self._rows = checked_rows(self.num_tokens, sets[0].x.device)
        self._truths: dict[str, Tensor] = {}

    def blank(self, kind: Kind, bf16_ops_per_s: float) -> Measurement:
        """Return the row of a contender before anything is known but the floors."""
        floor_us = self.workload.floor_us(self.num_tokens, self.num_touched)
        own = self.workload.floor_us(self.num_tokens, self.num_touched, ops_per_s=bf16_ops_per_s)
        return Measurement(
            workload=self.workload.name,
            routing=self.routing,
            num_tokens=self.num_tokens,
            contender=kind.name,
            status="skipped",
            floor_us=floor_us,
            own_floor_us=own if kind.acts == "bf16" else floor_us,
        )

    def errors(self, y: Tensor, weights_name: str, values: Callable[[], Values]) -> tuple[float, float]:
        """Return relative L2 and cosine of y of the first input, on some of its tokens."""
        if weights_name not in self._truths:
            self._truths[weights_name] = moe_truth(self.sets[0].rows(self._rows), values())
        truth, some = self._truths[weights_name], y[self._rows]
        return rel_l2(some, truth), cosine(some, truth)


def reason(error: BaseException) -> str:
    """Return an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]


def is_context_lost() -> bool:
    """Return whether the GPU's context is lost, so that nothing more can be measured in this process."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


class ContextLostError(Exception):
    """A contender broke the GPU's context; the row says which."""

    def __init__(self, row: Measurement) -> None:
        """Keep the row."""
        super().__init__(row.note)
        self.row = row


def measure(contender: Contender, case: Case, blank: Measurement, timer: Timer) -> Measurement:
    """Time every variant, judge the fastest, and return its row; raises ContextLostError."""
    times: dict[str, float] = {}
    runs: dict[str, Run] = {}
    failures: list[str] = []
    for name, make in contender.variants(case.num_tokens):
        found = _time_variant(make, case, timer)
        if isinstance(found, Exception):
            failures.append(f"{name}: {reason(found)}")
            if is_context_lost():
                raise ContextLostError(replace(blank, status="failed", note="; ".join(failures))) from found
        else:
            runs[name], times[name] = found
    if not times:
        return replace(blank, status="failed", note="; ".join(failures))
    best = min(times, key=lambda name: times[name])
    others = {name: us for name, us in times.items() if name != best}
    try:
        y = runs[best](case.sets[0])
        is_finite = bool(torch.isfinite(y).all())
        error_l2, angle = case.errors(y, contender.weights_name, contender.values)
        note = contender.note(case.num_tokens)
    except Exception as error:  # of others' code: any
        row = replace(blank, status="failed", note=reason(error))
        if is_context_lost():
            raise ContextLostError(row) from error
        return row
    return replace(
        blank,
        status="measured",
        variant=best,
        us=times[best],
        other_us=", ".join(f"{name} {us:.1f}" for name, us in others.items()),
        rel_l2=error_l2 if is_finite and math.isfinite(error_l2) else None,
        cosine=angle if is_finite and math.isfinite(angle) else None,
        note="; ".join(filter(None, (note, *failures, "" if is_finite else "y is not finite"))),
    )


def _time_variant(make: Callable[[], Run], case: Case, timer: Timer) -> tuple[Run, float] | Exception:
    """Return a variant and its time, or what it raised."""
    try:
        run = make()
        return run, timer([_bound(run, tokens) for tokens in case.sets])
    except Exception as error:  # of others' code: any
        return error


def _bound(run: Run, tokens: TokenSet) -> Callable[[], object]:
    return lambda: run(tokens)


def merged(kept: Iterable[Measurement], new: Iterable[Measurement]) -> list[Measurement]:
    """Return all rows, those of `new` instead of the whole cells of `kept` that they measured again.

    A cell that the new run had no time for does not replace one that was measured.
    """
    kept, fresh = list(kept), list(new)
    had = {row.cell for row in kept if row.status == "measured"}
    measured = {row.cell for row in fresh if row.status == "measured"}
    fresh = [row for row in fresh if row.cell in measured or row.cell not in had]
    again = {row.cell for row in fresh}
    return [*(row for row in kept if row.cell not in again), *fresh]
