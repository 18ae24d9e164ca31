"""Where CUDA's headers are. The package's own templates need none; kernels that include `<cuda/ptx>` do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from megamoe_jit.errors import UnsupportedError

_TOOLKIT = Path("/usr/local/cuda")


def find_headers() -> Path:
    """Return the folder with cuda.h: from the wheels of CUDA 13, CUDA_HOME, CUDA_PATH or /usr/local/cuda.

    Raises UnsupportedError when none of them has it.
    """
    for folder in _candidates():
        if (folder / "cuda.h").is_file():
            return folder
    raise UnsupportedError(
        "no CUDA headers were found in the wheels of CUDA 13, CUDA_HOME, CUDA_PATH and /usr/local/cuda. "
        "Install them with: pip install 'cuda-toolkit[cudart,cccl]>=13'."
    )


def _candidates() -> Iterator[Path]:
    try:
        files = metadata.files("nvidia-cuda-runtime") or []
    except metadata.PackageNotFoundError:
        files = []
    yield from (Path(str(file.locate())).parent for file in files if file.name == "cuda.h")
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            yield Path(home) / "include"
    yield _TOOLKIT / "include"
