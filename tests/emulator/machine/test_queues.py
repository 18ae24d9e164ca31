"""Asynchronous operations: order within queues, conditions, policies, virtual time."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from megamoe_jit.emulator.machine.queues import AsyncOp, AsyncQueues, Group


class Recorder:
    """Queues whose operations write down that they ran."""

    def __init__(self, completion: Any = "lazy", seed: int = 0) -> None:
        self.ran: list[str] = []
        self.finished: list[str] = []
        self.queues = AsyncQueues(completion, random.Random(seed), lambda op: self.finished.append(op.kind))
        self.time = 0

    def submit(self, name: str, **fields: Any) -> AsyncOp:
        issuer: Any = SimpleNamespace(time=self.time)
        run = fields.pop("run", lambda: self.ran.append(name))
        op = AsyncOp(issuer=issuer, kind=name, pc=0, run=run, **fields)
        self.queues.submit(op)
        return op


@pytest.mark.parametrize("seed", range(10))
def test_queues_keep_their_order(seed: int) -> None:
    recorder = Recorder(seed=seed)
    for i in range(6):
        recorder.submit(f"a{i}", queue="a")
        recorder.submit(f"b{i}", queue=("b", 1))
        recorder.submit(f"c{i}")
    assert recorder.ran == []
    assert recorder.queues.pending == 18
    while recorder.queues.step():
        pass
    assert recorder.queues.pending == 0
    for letter in "ab":
        assert [name for name in recorder.ran if name[0] == letter] == [f"{letter}{i}" for i in range(6)]
    assert recorder.finished == recorder.ran


def test_orders_differ_by_seed() -> None:
    orders = set()
    for seed in range(8):
        recorder = Recorder(seed=seed)
        for i in range(6):
            recorder.submit(str(i))
        recorder.queues.drain_ready()
        orders.add(tuple(recorder.ran))
    assert len(orders) == 8


def test_conditions_hold_operations_back() -> None:
    recorder = Recorder("eager")
    door: list[bool] = []
    held = recorder.submit("held", queue="q", ready=lambda: bool(door))
    recorder.submit("behind", queue="q")
    recorder.submit("free")
    assert recorder.ran == ["free"]
    assert not recorder.queues.step()
    door.append(True)
    recorder.queues.drain_ready()
    assert recorder.ran == ["free", "held", "behind"]
    assert held.done


def test_eager_operations_may_start_others() -> None:
    recorder = Recorder("eager")

    def run() -> None:
        recorder.ran.append("first")
        recorder.submit("second")
        recorder.ran.append("end of first")

    recorder.submit("first", run=run)
    assert recorder.ran == ["first", "end of first", "second"]


def test_running_one_runs_those_before_it() -> None:
    recorder = Recorder()
    ops = [recorder.submit(str(i), queue="q") for i in range(4)]
    recorder.queues.run(ops[2])
    assert recorder.ran == ["0", "1", "2"]
    recorder.queues.run(ops[1])  # done already
    assert recorder.queues.operations() == [ops[3]]


@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_probability_is_kept(chance: float) -> None:
    recorder = Recorder(chance, seed=4)
    for i in range(2000):
        recorder.submit(str(i))
    for _ in range(1000):
        recorder.queues.chance()
    assert abs(len(recorder.ran) / 1000 - chance) < 0.05
    lazy = Recorder("lazy")
    lazy.submit("x")
    lazy.queues.chance()
    assert lazy.ran == []


def test_virtual_time() -> None:
    """An operation starts at its issue, or when the one before it in its queue ends."""
    recorder = Recorder()
    recorder.time = 100
    first, second = (recorder.submit(name, queue="q", duration=50) for name in "ab")
    recorder.time = 1000
    third, other = recorder.submit("c", queue="q", duration=7), recorder.submit("d", nbytes=3200, duration=None)
    recorder.queues.drain_ready()
    assert (first.finish_time, second.finish_time, third.finish_time) == (150, 200, 1007)
    assert other.finish_time > 1000 + 3200 // 64


def test_groups_count() -> None:
    group = Group("copies")
    woken = []
    warp: Any = SimpleNamespace(unpark=woken.append)
    group.add(2)
    group.park(warp, 5)
    group.finish()
    assert woken == [5]
    assert group.describe() == "copies: 1 operations pending"
    group.finish(by=SimpleNamespace(finish_time=77))  # type: ignore[arg-type]
    assert (group.pending, group.time) == (0, 77)
