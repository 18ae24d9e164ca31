from __future__ import annotations

import pytest

from tests.emulator import cuda_source
from tests.emulator.parser import samples

_SHARED = list(range(256))


@pytest.mark.parametrize("compile_cuda", [cuda_source.compile_cuda, samples.compile_cuda])
def test_compiling_leaves_objects_alone_that_python_shares(compile_cuda: object) -> None:
    """An empty log is one byte: a `bytes` of that length is one object in the whole process."""
    source = 'extern "C" __global__ void k(int* x) { *x = 1; }'
    assert ".entry k(" in compile_cuda(source, "sm_90a")  # type: ignore[operator]
    assert [bytes([value])[0] for value in _SHARED] == _SHARED
