from __future__ import annotations

import gc

import pytest
import torch

from benchmarks.host_overhead import CALLS_PER_BATCH, NUM_BATCHES, batch_times_us, main


def test_a_batch_gives_the_mean_of_its_calls_without_the_wait() -> None:
    now, calls, batch = 0, 0, -1  # nanoseconds

    def call() -> None:
        nonlocal now, calls
        calls += 1
        now += 1000 * (batch + 2)

    def synchronize() -> None:
        nonlocal now, batch
        batch += 1
        now += 10**9

    times = batch_times_us(call, synchronize, clock_ns=lambda: now)
    assert calls == CALLS_PER_BATCH * (NUM_BATCHES + 1)  # one batch warms up
    assert times == [float(index + 2) for index in range(NUM_BATCHES)]


def test_the_collector_rests_during_measurements_and_is_on_again_when_one_fails() -> None:
    states = []

    def call() -> None:
        states.append(gc.isenabled())
        if len(states) > 2 * CALLS_PER_BATCH:
            raise KeyError

    with pytest.raises(KeyError):
        batch_times_us(call, lambda: None)
    assert states[CALLS_PER_BATCH:] == [False] * (CALLS_PER_BATCH + 1)
    assert gc.isenabled()


def test_a_machine_without_a_gpu_says_that_nothing_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["host_overhead"])
    assert main() == 0
    assert "not measured, torch finds no CUDA device" in capsys.readouterr().out
