"""The recorder without a GPU: what it takes for an answer, and that its maps are the emulator's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import record_vectors
from benchmarks.record_vectors import Answer, Worker, answer, tensor_map
from tests.emulator.vectors import replay, store
from tests.emulator.vectors.case import Case, InOut, Input, Map, Output
from tests.emulator.vectors.cases import build, families

ADDRESS = 1 << 30


def maps() -> list[Map]:
    cases = (build(name) for family in ("tma", "tma_store", "cluster_copies", "faults") for name in families()[family])
    return [arg for case in cases for arg in case.args if isinstance(arg, Map)]


def test_maps_describe_one_tensor_to_both() -> None:
    found = maps()
    assert len(found) > 100
    for arg in found:
        device, emulated = tensor_map(arg, ADDRESS), replay.tensor_map(arg, ADDRESS)
        assert device.spec.transaction_bytes == arg.box_bytes
        assert (device.address, device.spec.dims, device.spec.box) == (emulated.address, emulated.dims, emulated.box)
        for field in ("byte_strides", "element_strides"):
            assert getattr(device.spec, field) == getattr(emulated, field)
        for field in ("element", "swizzle", "oob_fill"):
            assert getattr(device.spec, field).value == getattr(emulated, field).value


class FakeGpu:
    """Answers with the given outputs, one after the other."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)

    def run(self, case: Case) -> Answer:
        return self.answers.pop(0)


def some_answer(value: int, error: str = "") -> Answer:
    return Answer(outputs={1: np.full(4, value, np.uint32)}, error=error)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ((some_answer(3), some_answer(3)), ""),
        ((some_answer(3), some_answer(4)), "argument 1: two runs differ"),
        ((some_answer(3), some_answer(3, "argument 0: written outside")), "argument 0: written outside"),
    ],
)
def test_two_runs_must_agree(answers: tuple[Answer, ...], error: str) -> None:
    gpu: Any = FakeGpu(*answers)
    found = answer(gpu, "warp/shfl")
    assert found.error == error
    assert np.array_equal(found.outputs[1], np.full(4, 3, np.uint32))


def test_a_fault_that_does_not_come_is_an_error() -> None:
    gpu: Any = FakeGpu(some_answer(0))
    assert "was to fault" in answer(gpu, "faults/trap").error


def hangs_or_dies(connection: Any) -> None:
    while True:
        name = connection.recv()
        if name == "dies":
            return
        if name == "answers":
            connection.send(({0: np.arange(3)}, ""))


def test_workers_outlive_kernels_that_hang_or_die(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_vectors, "_work", hangs_or_dies)
    monkeypatch.setattr(record_vectors, "TIMEOUT_S", 30.0)
    worker = Worker()
    try:
        assert worker.ask("answers").error == ""
        assert worker.ask("dies").error == "the process died"
        assert np.array_equal(worker.ask("answers").outputs[0], np.arange(3))
        monkeypatch.setattr(record_vectors, "TIMEOUT_S", 0.2)
        assert worker.ask("hangs").error == "no answer within 0 s"
        monkeypatch.setattr(record_vectors, "TIMEOUT_S", 30.0)
        assert worker.ask("answers").error == ""
    finally:
        worker.close()


def test_archives_give_back_what_was_saved(tmp_path: Path) -> None:
    results = {}
    for name in ("convert/pack", "integer/mul_64", "tma/load_1d", "compare/setp_f16"):
        case = build(name)
        results[name] = {
            index: np.random.default_rng(7).bytes(arg.poisoned.nbytes if isinstance(arg, Output) else arg.data.nbytes)
            for index, arg in enumerate(case.args)
            if isinstance(arg, Output | InOut)
        }
    stored = {}
    for name, outputs in results.items():
        args = build(name).args
        dtypes = {i: args[i].dtype if isinstance(args[i], Output) else args[i].data.dtype for i in outputs}  # type: ignore[union-attr]
        stored[name] = {index: np.frombuffer(data, dtypes[index]) for index, data in outputs.items()}
    store.save(stored, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    store.save(stored, tmp_path)
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}, "the same results are the same bytes"
    for name, outputs in results.items():
        found = store.recorded(build(name), tmp_path)
        assert {index: data.tobytes() for index, data in found.items()} == outputs


def test_a_recording_belongs_to_one_program_and_its_inputs() -> None:
    case = build("integer/mul_32")
    assert store.stale(case) is None
    assert "program" in (store.stale(replace(case, ptx=case.ptx.replace("mul.lo.s32", "mul.lo.u32"))) or "")
    assert "program" in (store.stale(replace(case, shared_bytes=16)) or "")
    first = case.args[0]
    assert isinstance(first, Input)
    changed = replace(first, data=np.roll(first.data, 1))
    assert "inputs" in (store.stale(replace(case, args=(changed, *case.args[1:]))) or "")
    assert "never" in (store.stale(replace(case, name="integer/none")) or "")
