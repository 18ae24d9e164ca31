"""What the machine answered: one compressed archive a family, and a manifest of what was run where."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.emulator.vectors.case import Case, InOut, Output

Array = NDArray[Any]
FOLDER = Path(__file__).parent / "recorded"
MANIFEST = "manifest.json"


@functools.cache
def manifest(folder: Path = FOLDER) -> dict[str, Any]:
    """Return conditions and, by case, the hashes of its program and inputs; empty before the first recording."""
    path = folder / MANIFEST
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    return found


@functools.lru_cache(maxsize=2)
def _archive(folder: Path, family: str) -> Any:
    return np.load(folder / f"{family}.npz", allow_pickle=False)


def recorded(case: Case, folder: Path = FOLDER) -> dict[int, Array]:
    """Return the recorded contents of each compared argument."""
    family, name = case.name.split("/")
    archive = _archive(folder, family)
    found = {}
    for index in case.outputs:
        arg = case.args[index]
        assert isinstance(arg, Output | InOut)
        shape, dtype = (arg.shape, arg.dtype) if isinstance(arg, Output) else (arg.data.shape, arg.data.dtype)
        found[index] = _joined(archive[f"{name}.{index}"]).view(dtype).reshape(shape)
    return found


def stale(case: Case, folder: Path = FOLDER) -> str | None:
    """Return why a recording does not belong to the case as it is now, or None."""
    entry = manifest(folder)["cases"].get(case.name)
    if entry is None:
        return f"{case.name} was never recorded"
    if entry["ptx"] != case.ptx_digest:
        return f"the program or launch of {case.name} has changed since it was recorded"
    if entry["inputs"] != case.input_digest:
        return f"inputs of {case.name} differ from those that it was recorded with"
    return None


def save(results: Mapping[str, Mapping[int, Array]], folder: Path = FOLDER) -> None:
    """Write the archives of whole families; results are by case, then by argument."""
    folder.mkdir(parents=True, exist_ok=True)
    for family in sorted({name.split("/")[0] for name in results}):
        with zipfile.ZipFile(folder / f"{family}.npz", "w", zipfile.ZIP_LZMA) as archive:
            for name, outputs in sorted(results.items()):
                if name.split("/")[0] != family:
                    continue
                for index, data in outputs.items():
                    buffer = io.BytesIO()
                    np.save(buffer, _split(data))
                    # A fixed date: the same results are the same bytes.
                    archive.writestr(
                        zipfile.ZipInfo(f"{name.split('/')[1]}.{index}.npy"), buffer.getvalue(), zipfile.ZIP_LZMA
                    )


def _split(data: Array) -> Array:
    """Return bytes with equal places of all elements together: signs and exponents compress, fractions do not."""
    flat = np.ascontiguousarray(data).reshape(-1)
    return np.ascontiguousarray(flat.view("uint8").reshape(flat.size, flat.dtype.itemsize).T)


def _joined(planes: Array) -> Array:
    return np.ascontiguousarray(planes.T).reshape(-1)
