"""The CUDA backend against a recording driver: what it loads, sets and launches, and its errors in words."""

from __future__ import annotations

import re
import struct
from typing import Any

import pytest
import torch

from megamoe_jit.errors import ArgumentError, LaunchError, UnsupportedError
from megamoe_jit.runtime.backend import Backend, LaunchPlan
from megamoe_jit.runtime.cuda import CudaBackend, cuda_backend
from megamoe_jit.runtime.driver import STICKY_ERRORS, Driver, get_driver
from megamoe_jit.runtime.launch import f32, pointer, struct_bytes, tensor_map, u32
from megamoe_jit.runtime.memory import MAGIC, error_record
from megamoe_jit.runtime.tensormap import TensorMap, TensorMapSpec, TmaElement
from tests.runtime.fake_driver import CONTEXT, MANY_PARAMS_PTX, FakeDriver, WrongContextDriver, kernel

TENSOR_MAP = TensorMap(
    spec=TensorMapSpec(element=TmaElement.U8, dims=(64, 64), byte_strides=(64,), box=(16, 16)), address=0x10000
)


def plan_of(name: str = "empty", **changes: Any) -> LaunchPlan:
    """Return a small plan."""
    fields: dict[str, Any] = {"grid": (132, 1, 1), "block": (128, 1, 1), **changes}
    return LaunchPlan(**{"kernel": kernel(name), **fields})


@pytest.fixture
def fake() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def backend(fake: FakeDriver) -> CudaBackend:
    return CudaBackend(0, driver=Driver(fake))


def test_a_launch_hands_everything_to_the_driver(fake: FakeDriver, backend: CudaBackend) -> None:
    tensor = torch.zeros(4)
    plan = LaunchPlan(
        kernel=kernel("scale"),
        grid=(264, 2, 1),
        block=(384, 1, 1),
        cluster=(2, 1, 1),
        smem_bytes=200 * 1024,
        pdl=True,
        params=(
            pointer("x", tensor),
            u32("n", 7),
            f32("factor", 1.5),
            tensor_map("map", TENSOR_MAP),
            struct_bytes("args", bytes(range(24))),
        ),
    )
    fake.param_sizes = [8, 4, 4, 128, 24]
    prepared = backend.prepare(plan)
    prepared.launch(0x77)
    (launched,) = fake.launches
    assert (launched.grid, launched.block, launched.smem_bytes) == ((264, 2, 1), (384, 1, 1), 200 * 1024)
    assert launched.stream == 0x77
    assert launched.attributes == {"CLUSTER_DIMENSION": (2, 1, 1), "PROGRAMMATIC_STREAM_SERIALIZATION": 1}
    assert launched.params == (
        struct.pack("<Q", tensor.data_ptr()),
        struct.pack("<I", 7),
        struct.pack("<f", 1.5),
        bytes([1] * 128),
        bytes(range(24)),
    )
    assert (fake.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 200 * 1024) in [
        args[1:] for name, args in fake.calls if name == "cuFuncSetAttribute"
    ]


def test_repeated_launches_only_launch(fake: FakeDriver, backend: CudaBackend) -> None:
    plan = LaunchPlan(
        kernel=kernel("scale"),
        grid=(1, 1, 1),
        block=(128, 1, 1),
        params=(
            pointer("x", 0x1000),
            u32("n", 7),
            f32("factor", 1.5),
            tensor_map("map", TENSOR_MAP),
            struct_bytes("args", bytes(24)),
        ),
    )
    fake.param_sizes = [8, 4, 4, 128, 24]
    prepared = backend.prepare(plan)
    before = len(fake.calls)
    prepared.launch(0)
    prepared.update(prepared.index_of("n"), 9)
    prepared.patch(4, 16, struct.pack("<Q", 5))
    prepared.set_grid(3)
    prepared.launch(0x55)
    prepared.launch(0)
    assert [name for name, _ in fake.calls[before:]] == ["cuLaunchKernelEx"] * 3
    assert [launched.stream for launched in fake.launches] == [0, 0x55, 0]
    assert [launched.grid[0] for launched in fake.launches] == [1, 3, 3]
    assert [launched.params[1] for launched in fake.launches] == [struct.pack("<I", n) for n in (7, 9, 9)]
    assert fake.launches[1].params[4] == bytes(16) + struct.pack("<Q", 5)
    assert fake.launches[0].attributes == {}


def test_the_default_stream_is_torchs_current_one(
    fake: FakeDriver, backend: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = iter([0x10, 0x20])
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: next(streams) + device, raising=False)
    prepared = backend.prepare(plan_of())
    prepared.launch()
    prepared.launch()
    assert [launched.stream for launched in fake.launches] == [0x10, 0x20]


def test_without_the_raw_getter_torch_makes_a_stream_object(
    fake: FakeDriver, backend: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream", raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("S", (), {"cuda_stream": 0x30 + device}))
    backend.launch(plan_of())
    assert fake.launches[0].stream == 0x30


def test_a_kernel_is_loaded_once_a_device(fake: FakeDriver) -> None:
    driver = Driver(fake)
    first, second = CudaBackend(0, driver=driver), CudaBackend(1, driver=driver)
    for backend in (first, first, second):
        backend.prepare(plan_of())
    assert fake.count("cuLibraryLoadData") == 2
    first.prepare(plan_of(kernel=kernel("empty", cubin=b"\x7fELF other")))
    assert fake.count("cuLibraryLoadData") == 3
    assert fake.current == CONTEXT  # loading for device 1 left the current device alone
    loaded = first.load(kernel("empty"))
    assert (loaded.registers, loaded.static_smem_bytes, loaded.max_threads) == (64, 1024, 384)


def test_shared_memory_is_allowed_once_and_never_less(fake: FakeDriver, backend: CudaBackend) -> None:
    for smem_bytes in (100_000, 50_000, 100_000, 0, 200_000):
        backend.prepare(plan_of(smem_bytes=smem_bytes))
    assert [args[2] for name, args in fake.calls if name == "cuFuncSetAttribute"] == [100_000, 200_000]


def test_large_clusters_are_asked_for(fake: FakeDriver, backend: CudaBackend) -> None:
    backend.prepare(plan_of(cluster=(8, 1, 1), grid=(16, 1, 1)))
    assert fake.count("cuFuncSetAttribute") == 0
    backend.prepare(plan_of(cluster=(16, 1, 1), grid=(16, 1, 1)))
    attribute = fake.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    assert [args[1:] for name, args in fake.calls if name == "cuFuncSetAttribute"] == [(attribute, 1)]


def test_a_cooperative_grid_must_be_resident(fake: FakeDriver, backend: CudaBackend) -> None:
    prepared = backend.prepare(plan_of(cooperative=True))
    prepared.launch(0)
    assert fake.launches[0].attributes == {"COOPERATIVE": 1}
    with pytest.raises(
        LaunchError, match=re.escape("has 133 blocks, and cuda:0 (NVIDIA H200 0, compute capability 9.0) holds 132")
    ):
        backend.prepare(plan_of(cooperative=True, grid=(133, 1, 1)))
    fake.blocks_per_sm = 2
    assert backend.max_resident_blocks(plan_of()) == 264
    assert backend.max_resident_blocks(plan_of(cluster=(2, 1, 1))) == 120  # 60 clusters of two
    with pytest.raises(LaunchError, match=r"has 132 blocks, and .* holds 120"):
        backend.prepare(plan_of(cooperative=True, cluster=(2, 1, 1)))
    with pytest.raises(ArgumentError, match="is cooperative, and its grid was checked against the device"):
        prepared.set_grid(1)


@pytest.mark.parametrize("refusal", [201, 400])
def test_a_launch_finds_its_way_back_to_its_device(refusal: int) -> None:
    fake = WrongContextDriver()
    fake.refusal = refusal
    driver = Driver(fake)
    prepared = CudaBackend(1, driver=driver).prepare(plan_of())
    prepared.launch(0)  # device 0 is current
    assert (fake.launches[0].context, fake.current) == (CONTEXT + 1, CONTEXT)
    fake.current = 0  # a thread that never used CUDA
    prepared.launch(0)
    assert (fake.launches[1].context, fake.current) == (CONTEXT + 1, CONTEXT + 1)


DEVICE_LIMITS: list[tuple[dict[str, Any], Any, type[Exception], str]] = [
    (
        {"kernel": kernel("empty", ptx=MANY_PARAMS_PTX.replace("sm_90a", "sm_100f"))},
        None,
        UnsupportedError,
        "empty was built for sm_100f, which cuda:0 (NVIDIA H200 0, compute capability 9.0) does not run. Build it for "
        "sm_90a.",
    ),
    (
        {"block": (512, 1, 1)},
        None,
        LaunchError,
        "has 512 threads a block, and empty with 64 registers takes at most 384. Use fewer threads, or compile it with "
        "__launch_bounds__(512).",
    ),
    (
        {"smem_bytes": 232448},
        None,
        LaunchError,
        "needs 233472 bytes of shared memory a block (1024 of them static), and cuda:0",
    ),
    (
        {"cooperative": True},
        lambda fake: fake.device_attributes.update(COOPERATIVE_LAUNCH=0),
        LaunchError,
        "is cooperative, and cuda:0 (NVIDIA H200 0, compute capability 9.0) takes no cooperative launches",
    ),
]


@pytest.mark.parametrize(("changes", "prepare", "error", "sentence"), DEVICE_LIMITS)
def test_what_the_device_cannot_hold_is_refused_in_words(
    changes: dict[str, Any], prepare: Any, error: type[Exception], sentence: str, fake: FakeDriver
) -> None:
    if prepare:
        prepare(fake)
    with pytest.raises(error, match=re.escape(sentence)):
        CudaBackend(0, driver=Driver(fake)).prepare(plan_of(**changes))


DRIVER_ERRORS = [
    (
        "cuLibraryLoadData",
        209,
        "loading empty on cuda:0 (NVIDIA H200 0, compute capability 9.0) failed in cuLibraryLoadData: "
        "CUDA_ERROR_NO_BINARY_FOR_GPU (words for 209). The cubin was built for another architecture.",
    ),
    ("cuLibraryLoadData", 200, "CUDA_ERROR_INVALID_IMAGE (words for 200). The cubin is damaged"),
    (
        "cuLibraryGetKernel",
        500,
        "failed in cuLibraryGetKernel: CUDA_ERROR_NOT_FOUND (words for 500). The cubin holds no symbol of that name",
    ),
    (
        "cuFuncSetAttribute",
        1,
        "allowing empty 50000 bytes of dynamic shared memory failed in cuFuncSetAttribute: CUDA_ERROR_INVALID_VALUE",
    ),
    (
        "cuDevicePrimaryCtxRetain",
        2,
        "opening the primary context of cuda:0 failed in cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY",
    ),
    (
        "cuLaunchKernelEx",
        701,
        "launching empty with grid=(132, 1, 1) block=(128, 1, 1) cluster=(1, 1, 1) smem=50000 B on cuda:0 (NVIDIA H200 "
        "0, compute capability 9.0) failed: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (words for 701). The block needs more "
        "registers",
    ),
    (
        "cuLaunchKernelEx",
        720,
        "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE (words for 720). All blocks of a cooperative launch must fit",
    ),
    (
        "cuLaunchKernelEx",
        900,
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (words for 900). Prepare the launch (load the kernel) before the "
        "capture begins.",
    ),
    (
        "cuLaunchKernelEx",
        719,
        "CUDA_ERROR_LAUNCH_FAILED (words for 719). The CUDA context is lost: this or an earlier kernel",
    ),
    ("cuLaunchKernelEx", 400, "CUDA_ERROR_INVALID_HANDLE (words for 400). The stream, kernel or context is gone"),
    ("cuLaunchKernelEx", 999, "CUDA_ERROR_UNKNOWN (words for 999). Look the error up"),
]


@pytest.mark.parametrize(("function", "code", "sentence"), DRIVER_ERRORS)
def test_an_error_of_the_driver_is_told_in_words(
    function: str, code: int, sentence: str, fake: FakeDriver, backend: CudaBackend
) -> None:
    fake.errors[function] = code
    with pytest.raises(LaunchError, match=re.escape(sentence)):
        backend.launch(plan_of(smem_bytes=50_000), stream=0)


def test_a_failed_launch_tells_what_an_earlier_kernel_recorded(fake: FakeDriver, backend: CudaBackend) -> None:
    prepared = backend.prepare(plan_of())
    record = error_record(0, waits={3: "a routed list"}, driver=backend.driver)
    record._words[:] = [MAGIC, 3, 17, 160, 2, 1, 0, 0]
    fake.errors["cuLaunchKernelEx"] = 719
    with pytest.raises(
        LaunchError,
        match="a kernel on cuda:0 stopped itself: rank 0, block 17, thread 160 gave up waiting for a routed list",
    ):
        prepared.launch(0)


@pytest.mark.parametrize(
    ("dims", "sentence"),
    [
        ((0,), "cannot launch empty: grid=(0, 1, 1) has x=0"),
        ((3,), "cluster=(2, 1, 1) does not divide grid=(3, 1, 1)"),
    ],
)
def test_a_bad_grid_is_refused_and_the_old_one_kept(
    dims: tuple[int, ...], sentence: str, fake: FakeDriver, backend: CudaBackend
) -> None:
    prepared = backend.prepare(plan_of(cluster=(2, 1, 1)))
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        prepared.set_grid(*dims)
    prepared.launch(0)
    assert fake.launches[0].grid == (132, 1, 1)


def test_a_device_without_cuda_is_refused_in_words(fake: FakeDriver) -> None:
    with pytest.raises(ArgumentError, match=r"device=cpu is no CUDA device\. Pass a tensor or device of type cuda"):
        CudaBackend("cpu", driver=Driver(fake))
    assert CudaBackend("cuda:1", driver=Driver(fake)).device == 1
    assert CudaBackend(torch.device("cuda", 1), driver=Driver(fake)).device == 1


def test_the_shared_backend_is_one_a_device(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(fake)
    monkeypatch.setattr("megamoe_jit.runtime.cuda.get_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    backend: Backend = cuda_backend()
    assert backend is cuda_backend("cuda:1")
    assert backend is cuda_backend("cuda")
    assert backend is not cuda_backend(0)
    assert backend.name == "cuda"


def test_every_error_with_advice_exists(fake: FakeDriver) -> None:
    from megamoe_jit.runtime.driver import _ADVICE

    names = {member.name for member in fake.CUresult}
    assert not (STICKY_ERRORS | set(_ADVICE)) - names


def test_a_code_that_the_bindings_do_not_know_is_still_told(fake: FakeDriver) -> None:
    driver = Driver(fake)
    assert driver.error_name(123456) == "CUDA_ERROR_123456"
    assert driver.explain(123456, "doing it failed").startswith("doing it failed: CUDA_ERROR_123456. Look")


def test_no_driver_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megamoe_jit.runtime.driver._load", lambda: "no NVIDIA driver library was found (libcuda)")
    with pytest.raises(
        UnsupportedError,
        match=re.escape('backend="cuda" needs an NVIDIA driver, and no NVIDIA driver library was found (libcuda).'),
    ):
        get_driver()
