"""The fused Hopper kernel gives the bits in the emulator that it gave on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels.recorded_cases import CASES, FOLDER, RecordedCase


def recorded(case: RecordedCase, *, fmad: bool) -> torch.Tensor:
    with np.load(FOLDER / "sm90_moe.npz") as archive:
        return torch.from_numpy(archive[f"{case.name}{'-fmad' if fmad else ''}"]).view(torch.bfloat16)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_the_emulator_gives_the_gpus_bits(case: RecordedCase) -> None:
    expected = recorded(case, fmad=False)
    assert expected.float().abs().max() > 0
    assert torch.equal(case.run("cpu", fmad=False).view(torch.int16), expected.view(torch.int16))
