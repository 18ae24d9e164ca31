"""The emulator gives what a Hopper GPU gave: every recorded kernel, bit for bit, whatever runs first."""

from __future__ import annotations

import pytest

from megamoe_jit.emulator.api import Emulator
from megamoe_jit.errors import EmulatorFault
from tests.emulator.vectors import store
from tests.emulator.vectors.case import Case
from tests.emulator.vectors.cases import build, families
from tests.emulator.vectors.replay import differences, run

NAMES = [name for family in families().values() for name in family]
# What has an order at all: several warps or CTAs, and asynchronous work.
ORDERED = [
    name
    for family in ("barriers", "mbarriers", "copies", "cluster", "cluster_copies", "compiled")
    for name in families()[family]
]


def check(case: Case, emulator: Emulator) -> None:
    """Replay a case and compare all that it leaves in memory; a fault of the machine must be one here."""
    reason = store.stale(case)
    assert reason is None, f"{reason}; run python -m benchmarks.record_vectors on a Hopper GPU"
    if case.faults:
        with pytest.raises(EmulatorFault):
            run(case, emulator)
        return
    wanted = store.recorded(case)
    seen, _ = run(case, emulator)
    found = (differences(case, index, data, wanted[index]) for index, data in seen.items())
    assert not (lines := [text for text in found if text]), "\n".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_replay(name: str) -> None:
    check(build(name), Emulator())


@pytest.mark.parametrize(("seed", "completion"), [(1, "eager"), (2, 0.3)])
@pytest.mark.parametrize("name", ORDERED)
def test_replay_in_another_order(name: str, seed: int, completion: str | float) -> None:
    check(build(name), Emulator(seed=seed, completion=completion))  # type: ignore[arg-type]


def test_every_recording_has_a_case() -> None:
    assert set(store.manifest()["cases"]) == set(NAMES)


def test_recordings_stay_small() -> None:
    assert sum(path.stat().st_size for path in store.FOLDER.iterdir()) < 8 << 20
