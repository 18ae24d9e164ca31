"""The numpy engine, too, gives what a Hopper GPU gave: kernels that branch, wait, exchange and touch every space."""

from __future__ import annotations

import pytest

from megamoe_jit.emulator.api import Emulator
from tests.emulator.test_vectors import check
from tests.emulator.vectors.cases import build, families

FAMILIES = ("barriers", "cluster", "control", "matrix", "mbarriers", "memory", "warp")
NAMES = [name for family, names in families().items() if family in FAMILIES for name in names]


@pytest.mark.parametrize("name", NAMES)
def test_replay(name: str) -> None:
    check(build(name), Emulator(engine="numpy"))
