"""The engines share a table of instructions and nothing that executes it: they must agree on damaged kernels, too."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.fuzzing.kernels import NUM_FLOATS
from benchmarks.fuzzing.worker import case
from megamoe_jit.emulator.api import Emulator, Limits
from megamoe_jit.errors import MegaMoeError

_NUM_TEXTS = 100
_SEED = 21
# Damage can turn addresses into data, and those differ from run to run.
_MAX_DIFFERENT = 4


@pytest.mark.parametrize("completion", ["eager", "lazy"])
def test_engines_agree_on_damaged_kernels(completion: str) -> None:
    inputs = np.linspace(-4, 4, NUM_FLOATS, dtype=np.float32)
    out = np.zeros(NUM_FLOATS, np.float32)
    limits = Limits(max_instructions=20_000, max_seconds=60)
    ran, different = 0, []
    for index in range(_NUM_TEXTS):
        found = case(_SEED, index)
        if not found.with_care:
            continue
        results: list[object] = []
        for engine in ("native", "numpy"):
            out[:] = 0
            emulator = Emulator(seed=index, completion=completion, checks="off", engine=engine, limits=limits)
            try:
                module = emulator.load(found.text)
                kernel = found.kernel
                module.launch("kernel", kernel.grid, kernel.block, kernel.cluster, args=[out, inputs, NUM_FLOATS])
                results.append((out.tobytes(), module.report.instructions, module.report.printed))
                ran += 1
            except MegaMoeError as error:
                results.append((type(error), str(error).partition(":")[0]))
        if results[0] != results[1]:
            different.append(index)
    assert ran > _NUM_TEXTS // 2
    assert len(different) <= _MAX_DIFFERENT, different
