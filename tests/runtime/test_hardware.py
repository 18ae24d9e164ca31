"""On a device: what a launch hands over, attributes, graphs, tensor maps, and a kernel that stops itself."""

from __future__ import annotations

import struct
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
from megamoe_jit.runtime.launch import Param, f32, i32, i64, pointer, struct_bytes, tensor_map, u32, u64
from megamoe_jit.runtime.tensormap import (
    Interleave,
    OobFill,
    Swizzle,
    TensorMapSpec,
    TmaElement,
    _encode,
    tensor_map_for,
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


def test_every_kind_of_parameter_arrives(backend: CudaBackend) -> None:
    out = zeros(3, dtype=torch.float64)
    launch = prepare(
        backend,
        "sum_params",
        [
            pointer("out", out),
            i32("a", -3),
            u32("b", 2**32 - 1),
            i64("c", -(2**40)),
            u64("d", 2**50),
            f32("e", 0.5),
            tensor_map("map", bytes(range(128))),
            struct_bytes("args", struct.pack("<QIf", out.data_ptr(), 6, 1.5)),
        ],
    )
    launch.launch()
    assert out.tolist() == [-3 + 2**32 - 1 - 2**40 + 2**50 + 0.5, 127, 9]
    launch.update(launch.index_of("a"), 3)
    launch.patch(launch.index_of("args"), 8, struct.pack("<I", 8))
    launch.launch()
    assert out.tolist() == [3 + 2**32 - 1 - 2**40 + 2**50 + 0.5, 127, 12]


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


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_blocks_come_in_clusters(backend: CudaBackend, size: int) -> None:
    if size > 1 and backend.info.capability < (9, 0):
        pytest.skip(f"{backend.info} has no clusters")
    out = zeros(32, 2)
    launch = prepare(backend, "cluster_of", [pointer("out", out)], grid=(32, 1, 1), cluster=(size, 1, 1))
    launch.launch()
    assert out.tolist() == [[block % size, size] for block in range(32)]


def test_cooperative_blocks_meet_with_all_shared_memory(backend: CudaBackend) -> None:
    arrived, met = zeros(1), zeros(1)
    smem_bytes = backend.info.max_smem_bytes
    params = [pointer("arrived", arrived), pointer("met", met)]
    num_sms = backend.info.num_sms
    launch = prepare(backend, "meet", params, grid=(num_sms, 1, 1), smem_bytes=smem_bytes, cooperative=True)
    launch.launch()
    assert met.item() == num_sms
    with pytest.raises(LaunchError, match=f"has {num_sms + 1} blocks, and .* holds {num_sms} of them at once"):
        prepare(backend, "meet", params, grid=(num_sms + 1, 1, 1), smem_bytes=smem_bytes, cooperative=True)


def test_a_dependent_launch_sees_what_the_one_before_wrote(backend: CudaBackend) -> None:
    source, target = zeros(1024), zeros(1024)
    params = [pointer("to", target), pointer("from", source)]
    write = prepare(backend, "write_slowly", [pointer("values", source), u32("value", 0)], grid=(8, 1, 1))
    copy = prepare(backend, "copy_after", params, grid=(8, 1, 1), pdl=True)
    for value in range(1, 6):
        write.update(1, value)
        write.launch()
        copy.launch()
    assert target.tolist() == [5] * 1024


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


def swizzled(box: torch.Tensor, swizzle: Swizzle) -> torch.Tensor:
    """Return the bytes [rows, inner bytes] as they lie in shared memory: chunks of 16 bytes change places."""
    flat = box.reshape(-1)
    logical = torch.arange(flat.numel(), device=flat.device)
    mask = {Swizzle.NONE: 0, Swizzle.B32: 1, Swizzle.B64: 3, Swizzle.B128: 7}[swizzle]
    physical = logical ^ (((logical >> 7) & mask) << 4)
    out = torch.empty_like(flat)
    out[physical] = flat
    return out


BOXES = [
    (torch.uint8, None, 256, Swizzle.NONE),
    (torch.uint8, None, 32, Swizzle.B32),
    (torch.uint8, None, 64, Swizzle.B64),
    (torch.uint8, None, 128, Swizzle.B128),
    (torch.bfloat16, None, 64, Swizzle.B128),
    (torch.int32, None, 16, Swizzle.B64),
    (torch.float8_e4m3fn, None, 128, Swizzle.B128),
    (torch.uint8, TmaElement.PACKED_U4, 256, Swizzle.B128),
    (torch.uint8, TmaElement.PADDED_U4, 128, Swizzle.NONE),
]


@pytest.mark.parametrize(("dtype", "element", "inner", "swizzle"), BOXES)
@pytest.mark.parametrize("at", [(0, 0), (1, 24)])
def test_a_box_arrives_swizzled_with_the_bytes_that_were_announced(
    backend: CudaBackend,
    dtype: torch.dtype,
    element: TmaElement | None,
    inner: int,
    swizzle: Swizzle,
    at: tuple[int, int],
) -> None:
    if element in _BLACKWELL_ONLY and backend.info.capability < (10, 0):
        pytest.skip(f"{element} needs compute capability 10.0, the device is {backend.info}")
    rows, box_rows, columns = 40, 32, 512
    raw = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, device="cuda:0")
    tensor_map_ = tensor_map_for(raw.view(dtype), box=(box_rows, inner), swizzle=swizzle, element=element)
    spec = tensor_map_.spec
    out, failed = zeros(spec.box_smem_bytes, dtype=torch.uint8), zeros(1)
    column, row = at[0] * inner, at[1]  # at row 24 half of the box lies outside of the tensor and reads zero
    launch = prepare(
        backend,
        "load_box",
        [
            tensor_map("map", tensor_map_),
            pointer("out", out),
            i32("x", column),
            i32("y", row),
            u32("box_bytes", spec.box_smem_bytes),
            u32("tx_bytes", spec.transaction_bytes),
            pointer("failed", failed),
        ],
        smem_bytes=spec.box_smem_bytes + 16,
    )
    launch.launch()
    start = column * spec.element.bits // 8
    box = torch.zeros(box_rows, inner * spec.element.bits // 8, dtype=torch.uint8, device="cuda:0")
    inside = raw[row : row + box_rows, start : start + box.shape[1]]
    box[: inside.shape[0]] = inside
    assert failed.item() == 0
    if spec.element.is_padded:  # 8 bytes of data, 8 that nobody promises anything about
        assert torch.equal(out.view(-1, 2, 8)[:, 0], box.view(-1, 8))
    else:
        assert torch.equal(out, swizzled(box, swizzle))


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
