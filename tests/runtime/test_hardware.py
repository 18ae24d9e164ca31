"""On a CUDA device: streams, graphs, threads, the driver's rules, and a kernel that loses the context."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from megamoe_jit.errors import LaunchError
from megamoe_jit.runtime.backend import LaunchPlan
from megamoe_jit.runtime.cuda import CudaBackend, PreparedLaunch, cuda_backend
from megamoe_jit.runtime.device import device_info
from megamoe_jit.runtime.driver import get_driver
from megamoe_jit.runtime.launch import Param, pointer
from megamoe_jit.runtime.tensormap import (
    Interleave,
    OobFill,
    Swizzle,
    TensorMapSpec,
    TmaElement,
    _encode,
)
from tests.marks import needs_gpu, needs_ranks
from tests.runtime.probes import probe
from tests.runtime.test_tensormap import BAD_SPECS, GOOD_SPECS

pytestmark = needs_gpu
ROOT = Path(__file__).parents[2]
_BLACKWELL_ONLY = (TmaElement.PACKED_U4, TmaElement.PADDED_U4, TmaElement.PADDED_U6)
_PLAIN_SWIZZLES = (Swizzle.NONE, Swizzle.B32, Swizzle.B64, Swizzle.B128)


@pytest.fixture
def backend() -> CudaBackend:
    return cuda_backend(0)


def prepare(backend: CudaBackend, name: str, params: list[Param], **changes: Any) -> PreparedLaunch:
    """Prepare one of the probes."""
    fields: dict[str, Any] = {"grid": (1, 1, 1), "block": (128, 1, 1), **changes}
    return backend.prepare(LaunchPlan(kernel=probe(name, backend.info.arch.name), params=tuple(params), **fields))


def zeros(*shape: int, dtype: torch.dtype = torch.int32, device: str = "cuda:0") -> torch.Tensor:
    """Return zeros on the device."""
    return torch.zeros(shape, dtype=dtype, device=device)


def test_properties_are_torchs_too() -> None:
    info, torchs = device_info(0), torch.cuda.get_device_properties(0)
    assert (info.name, info.capability) == (torchs.name, (torchs.major, torchs.minor))
    assert info.num_sms == torchs.multi_processor_count
    assert info.max_smem_bytes == torchs.shared_memory_per_block_optin
    assert info.l2_bytes == torchs.L2_cache_size
    assert info.supports_cooperative


def test_launches_go_to_the_current_stream(backend: CudaBackend) -> None:
    values = zeros(4)
    launch = prepare(backend, "add_one", [pointer("values", values)], grid=(4, 1, 1), block=(1, 1, 1))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        launch.launch()
        assert not stream.query()
    launch.launch(stream.cuda_stream)
    stream.synchronize()
    assert values.tolist() == [2, 2, 2, 2]


def test_a_graph_replays_the_launch_as_it_was_captured(backend: CudaBackend) -> None:
    first, second = zeros(2), zeros(2)
    launch = prepare(backend, "add_one", [pointer("values", first)], grid=(2, 1, 1), block=(1, 1, 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch.launch()
        launch.launch()
    launch.update(0, second)
    for _ in range(3):
        graph.replay()
    launch.launch()
    torch.cuda.synchronize()
    assert (first.tolist(), second.tolist()) == ([6, 6], [1, 1])


def test_a_thread_that_never_used_cuda_can_launch(backend: CudaBackend) -> None:
    values = zeros(1)
    launch = prepare(backend, "add_one", [pointer("values", values)], block=(1, 1, 1))
    torch.cuda.synchronize()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            launch.launch(0)
            get_driver().call("synchronising", "cuCtxSynchronize")
        except LaunchError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert failures == []
    assert values.item() == 1


@needs_ranks(2)
def test_a_launch_goes_to_its_device_whichever_is_current() -> None:
    values = zeros(1, device="cuda:1")
    launch = prepare(cuda_backend(1), "add_one", [pointer("values", values)], block=(1, 1, 1))
    assert torch.cuda.current_device() == 0
    launch.launch()
    launch.launch()
    torch.cuda.synchronize(1)
    assert torch.cuda.current_device() == 0
    assert values.item() == 2


def test_what_is_no_cubin_is_refused_in_words(backend: CudaBackend) -> None:
    kernel: Any = probe("nothing", backend.info.arch.name)
    kernel.artifact.cubin = b"neither a cubin nor PTX" + bytes(64)
    with pytest.raises(LaunchError, match=r"loading nothing on cuda:0 .* failed in cu\w+: CUDA_ERROR_"):
        backend.prepare(LaunchPlan(kernel=kernel, grid=(1, 1, 1), block=(32, 1, 1)))


@pytest.mark.parametrize("fields", GOOD_SPECS)
def test_the_driver_takes_what_the_rules_take(backend: CudaBackend, fields: dict[str, Any]) -> None:
    spec = TensorMapSpec(**fields)
    if backend.info.capability < (10, 0) and (spec.element in _BLACKWELL_ONLY or spec.swizzle not in _PLAIN_SWIZZLES):
        pytest.skip(f"a map that needs compute capability 10.0, the device is {backend.info}")
    memory = torch.zeros(4096, dtype=torch.uint8, device="cuda:0")
    assert len(_encode(get_driver(), spec, memory.data_ptr())) == 128


@pytest.mark.parametrize(("base", "changes", "sentence"), BAD_SPECS)
def test_the_driver_refuses_what_the_rules_refuse(
    backend: CudaBackend, base: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    spec = object.__new__(TensorMapSpec)  # past the rules
    defaults = {
        "interleave": Interleave.NONE,
        "oob_fill": OobFill.ZERO,
        "l2_promotion": TensorMapSpec(**base).l2_promotion,
    }
    fields = {**defaults, **base, **changes}
    fields.setdefault("element_strides", (1,) * len(fields["dims"]))
    for name, value in fields.items():
        object.__setattr__(spec, name, value)
    rank = len(fields["dims"])
    if rank == 0 or len(fields["byte_strides"]) < rank - 1 or len(fields["box"]) < rank:
        pytest.skip("the driver would read past the end of an array")
    memory = torch.zeros(4096, dtype=torch.uint8, device="cuda:0")
    try:
        _encode(get_driver(), spec, memory.data_ptr())
    except (
        LaunchError,
        OverflowError,
        ValueError,
    ):  # the bindings refuse negative integers and six dimensions themselves
        return
    pytest.xfail(f"the driver takes what its documentation rules out: {sentence}")


def test_a_kernel_that_stops_itself_is_told_in_words() -> None:
    script = """
        from megamoe_jit.errors import LaunchError
        from megamoe_jit.runtime.backend import LaunchPlan
        from megamoe_jit.runtime.cuda import cuda_backend
        from megamoe_jit.runtime.launch import pointer
        from megamoe_jit.runtime.memory import error_record, raise_if_failed
        from tests.runtime.probes import probe

        backend = cuda_backend(0)
        record = error_record(0, waits={4: "the other block"})
        kernel = probe("give_up", backend.info.arch.name)
        params = (pointer("record", record.device_pointer),)
        launch = backend.prepare(LaunchPlan(kernel=kernel, grid=(8, 1, 1), block=(32, 1, 1), params=params))
        raise_if_failed(0)
        launch.launch(0)
        try:
            with backend.driver.current(0):
                backend.driver.call("synchronising", "cuCtxSynchronize")
        except LaunchError as error:
            print(error)
        for ask in (lambda: raise_if_failed(0), lambda: launch.launch(0)):
            try:
                ask()
            except LaunchError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    assert lines[0].startswith("synchronising failed in cuCtxSynchronize: CUDA_ERROR_")
    assert "The CUDA context is lost" in lines[0]
    for line in lines[1:]:
        assert line.startswith(
            "a kernel on cuda:0 stopped itself: rank 0, block 3, thread 5 gave up waiting for the other block "
            "(index 33: expected 6, saw 5)."
        )
