"""Where CUDA's headers are found, and what is said when they are not."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from megamoe_jit.errors import UnsupportedError
from megamoe_jit.jit import headers as headers_module
from megamoe_jit.jit.headers import find_headers


def test_the_headers_have_cuda_h() -> None:
    assert (find_headers() / "cuda.h").is_file()


def test_a_toolkit_is_found_without_wheels_and_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    monkeypatch.setattr(headers_module, "_TOOLKIT", tmp_path / "absent")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "cuda"))
    with pytest.raises(UnsupportedError, match=r"no CUDA headers were found .* pip install"):
        find_headers()
    (tmp_path / "cuda" / "include").mkdir(parents=True)
    (tmp_path / "cuda" / "include" / "cuda.h").touch()
    assert find_headers() == tmp_path / "cuda" / "include"
