"""mbarrier objects against the manual's words, event by event, and what passes a waiter unseen."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator
from megamoe_jit.emulator.checks.interface import NoChecks
from megamoe_jit.emulator.machine.mbarrier import MAX_COUNT, Mbarrier, token_pending
from megamoe_jit.errors import EmulatorFault
from tests.emulator.cuda_source import compile_cuda, object_cache


@dataclass
class Manual:
    """The object of PTX ISA, "Contents of the mbarrier object", and its "Phase completion"."""

    expected: int
    pending: int
    tx: int = 0
    completed: int = 0

    def settle(self) -> None:
        if self.pending == 0 and self.tx == 0:
            self.completed += 1
            self.pending = self.expected


def new_barrier(count: int) -> tuple[Mbarrier, list[str]]:
    reports: list[str] = []
    machine = SimpleNamespace(checks=NoChecks(), report=lambda kind, *_, **__: reports.append(kind))
    cta = SimpleNamespace(machine=machine, name=lambda: "CTA 0")
    return Mbarrier(cta, 1024, count), reports  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_random_events(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice([1, 2, 7, 40])
    barrier, reports = new_barrier(count)
    manual = Manual(count, count)
    tokens: list[tuple[int, int, int]] = []
    for _ in range(400):
        match rng.randrange(5):
            case 0 | 1:
                if not manual.pending:  # only transactions can end this phase
                    continue
                n = rng.randint(1, manual.pending)
                drop = rng.random() < 0.05 and manual.expected > n
                before = manual.completed, manual.pending
                manual.pending -= n
                manual.expected -= n if drop else 0
                tokens.append((barrier.arrive(n, by=None, drop=drop), *before))
            case 2:
                n = rng.choice([16, 48, 1024])
                manual.tx += n
                barrier.expect_tx(n, by=None)
            case 3:
                n = rng.choice([manual.tx, 16]) if manual.tx > 0 else 16 * (rng.random() < 0.1)
                manual.tx -= n
                barrier.complete_tx(n, by=None)
            case 4:
                if rng.random() < 0.2:
                    manual.pending += 1
                    barrier.add_pending(1, by=None)
        manual.settle()
        assert (barrier.pending, barrier.expected, barrier.tx, barrier.phase) == (
            manual.pending, manual.expected, manual.tx, manual.completed,
        )  # fmt: skip
        for parity in (0, 1):  # the phase just before the current one has the other parity
            assert barrier.test_parity(parity) == ((manual.completed - 1) % 2 == parity)
        for token, phase, pending in tokens[-5:]:
            assert barrier.test_token(token) == (manual.completed > phase)
            assert token_pending(token) == pending
    assert reports == []
    assert manual.completed > 5


def test_ranges() -> None:
    barrier, reports = new_barrier(3)
    barrier.arrive(4, by=None)
    assert reports == ["mbarrier-count"]
    assert (barrier.phase, barrier.pending) == (1, 3)  # taken as what there was
    barrier.expect_tx(MAX_COUNT, by=None)
    assert reports == ["mbarrier-count"]
    barrier.expect_tx(1, by=None)
    assert reports == ["mbarrier-count", "mbarrier-tx"]
    barrier, reports = new_barrier(1)
    barrier.complete_tx(MAX_COUNT, by=None)  # before it is expected: fine while the phase is open
    assert reports == []
    barrier.complete_tx(1, by=None)
    assert reports == ["mbarrier-tx"]
    barrier, reports = new_barrier(2)
    barrier.arrive(1, by=None, no_complete=True)
    assert reports == []
    barrier.arrive(1, by=None, no_complete=True)
    assert reports == ["mbarrier-count"]


def launch(source: str, *args: Any, block: int = 96, kinds: set[str] | None = None, **settings: Any) -> list[str]:
    """Run kernel k; returns kinds of findings, and adds that of a fault to `kinds`."""
    module = Emulator(cache_dir=object_cache(), **settings).load(compile_cuda(source))
    try:
        module.launch("k", 1, block, args=args)
    except EmulatorFault as fault:
        if kinds is not None:
            kinds.add(fault.report.kind)  # type: ignore[attr-defined]
        raise
    return [finding.kind for finding in module.report.findings]


_MISSED = r"""
extern "C" __global__ void k(u32* out) {
    __shared__ alignas(8) u64 barrier;
    if (threadIdx.x == 0) { mbar_init(smem(&barrier), 1); fence_init(); }
    __syncthreads();
    if (threadIdx.x == 32) { mbar_wait(smem(&barrier), 0); out[0] = 1; }
    if (threadIdx.x == 64) {
        for (volatile int i = 0; i < 3000; i = i + 1) {}
        mbar_arrive(smem(&barrier));
        mbar_arrive(smem(&barrier));
        for (volatile int i = 0; i < 3000; i = i + 1) {}
    }
}
"""


def test_two_phases_while_a_waiter_sleeps() -> None:
    """Nothing holds the arriving thread back: a phase ends and the next one too before the waiter looks."""
    kinds = set()
    for seed in range(12):
        with contextlib.suppress(EmulatorFault):  # the waiter may look in time
            launch(_MISSED, np.zeros(1, np.uint32), seed=seed, kinds=kinds)
    assert "phase-missed" in kinds
    assert kinds <= {"phase-missed", "deadlock"}


_ALIAS = r"""
extern "C" __global__ void k(u32* out) {
    __shared__ alignas(8) u64 barrier;
    if (threadIdx.x == 0) { mbar_init(smem(&barrier), 1); fence_init(); }
    __syncthreads();
    if (threadIdx.x == 64) for (int i = 0; i < ROUNDS; i++) mbar_arrive(smem(&barrier));
    __syncthreads();
    if (threadIdx.x == 32) out[0] = mbar_test(smem(&barrier), 0) + 2 * mbar_test(smem(&barrier), 1);
}
"""


@pytest.mark.parametrize(("rounds", "answer", "kinds"), [(0, 2, []), (1, 1, []), (2, 2, ["phase-alias"])])
def test_a_phase_that_cannot_be_told(rounds: int, answer: int, kinds: list[str]) -> None:
    """After two phases, parity 0 looks as if phase 0 had not ended: a warning."""
    out = np.zeros(1, np.uint32)
    assert launch(_ALIAS.replace("ROUNDS", str(rounds)), out) == kinds
    assert out[0] == answer


def test_bad_operands() -> None:
    for body, words in (
        ("mbar_init(smem(&barrier), 0)", "mbarrier.init with 0 arrivals"),
        ("mbar_init(smem(&barrier), 1 << 20)", "mbarrier.init with 1048576 arrivals"),
        ("mbar_init(smem(&barrier) + 4, 1)", "no multiple of 8"),
        ("mbar_init(smem(&barrier), 1); mbar_test(smem(&barrier), 2)", "phaseParity 2; it is 0 or 1"),
        ("mbar_init(64, 1)", "has \\[0x400"),
    ):
        source = f'extern "C" __global__ void k(u32*) {{ __shared__ u64 barrier; barrier = 1; {body}; }}'
        with pytest.raises(EmulatorFault, match=words):
            launch(source.replace("barrier = 1; ", ""), np.zeros(1, np.uint32), block=1)


def test_an_initialised_barrier_is_quietly_initialised_again() -> None:
    source = r"""
    extern "C" __global__ void k(u32*) {
        __shared__ alignas(8) u64 barrier;
        if (threadIdx.x == 0) { mbar_init(smem(&barrier), 1); mbar_init(smem(&barrier), 2); }
    }"""
    assert launch(source, np.zeros(1, np.uint32)) == ["mbarrier-reinit-quiet"]
