"""One root, and classes that callers can tell apart."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

from megamoe_jit import errors
from megamoe_jit.errors import ArgumentError, CacheError, CompileError, MegaMoeError, MissingKernelError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, BaseException)]


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_has_one_root(error: type[Exception]) -> None:
    assert issubclass(error, MegaMoeError)
    assert error.__doc__
    with pytest.raises(MegaMoeError, match="what was wrong"):
        raise error("what was wrong")


def test_what_callers_catch() -> None:
    assert issubclass(ArgumentError, ValueError)
    assert issubclass(MissingKernelError, CacheError)
    assert not issubclass(CompileError, ValueError)


def test_a_compile_error_carries_its_diagnostics() -> None:
    error = CompileError("refused", errors=["/a.cuh(1): error"], log="everything", source_path=Path("/kept"))
    assert (error.errors, error.log, error.source_path) == (("/a.cuh(1): error",), "everything", Path("/kept"))
    assert CompileError("refused").errors == ()
    copy = pickle.loads(pickle.dumps(error))  # worker processes of `warmup` send theirs home
    assert (str(copy), copy.errors, copy.log, copy.source_path) == (
        "refused",
        error.errors,
        "everything",
        Path("/kept"),
    )
