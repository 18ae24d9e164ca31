"""Results of the fused Hopper kernel on a GPU, bit by bit, for tests that run it in the emulator.

    python -m benchmarks.record_sm90_moe --out FOLDER

Writes y of each case of tests/kernels/recorded_cases.py, compiled with and without contraction of products and sums.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import measure_conditions
from tests.kernels.recorded_cases import CASES


def main() -> None:
    """Run every case and write the archive and its manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for case in CASES:
        for fmad in (False, True):
            y = case.run("cuda", fmad=fmad)
            again = case.run("cuda", fmad=fmad)
            assert torch.equal(y.view(torch.int16), again.view(torch.int16)), f"{case.name} differs from call to call"
            arrays[f"{case.name}{'-fmad' if fmad else ''}"] = y.view(torch.int16).cpu().numpy()
    np.savez_compressed(folder / "sm90_moe.npz", **arrays)  # type: ignore[arg-type]
    (folder / "sm90_moe.json").write_text(json.dumps(measure_conditions(), indent=1) + "\n")
    print(f"{len(arrays)} results in {folder}")


if __name__ == "__main__":
    main()
