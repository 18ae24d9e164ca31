"""The same launch plans on a CUDA device and on the emulated one: parameters, clusters, grids, tensor maps."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from megamoe_jit.errors import LaunchError
from megamoe_jit.runtime.backend import Backend, Launchable, LaunchPlan
from megamoe_jit.runtime.cuda import CudaBackend, cuda_backend
from megamoe_jit.runtime.emulated import EmulatedBackend, EmulatorSettings
from megamoe_jit.runtime.launch import Param, f32, i32, i64, pointer, struct_bytes, tensor_map, u32, u64
from megamoe_jit.runtime.tensormap import Swizzle, TmaElement, tensor_map_for
from tests.marks import needs_gpu
from tests.runtime.probes import probe

_BLACKWELL_ONLY = (TmaElement.PACKED_U4, TmaElement.PADDED_U4, TmaElement.PADDED_U6)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A backend, the tensors' device, the target that probes are compiled for, a block's most shared memory."""

    backend: Backend
    tensors: str
    arch: str
    max_smem_bytes: int

    def prepare(self, name: str, params: list[Param], **changes: Any) -> Launchable:
        """Prepare one of the probes."""
        fields: dict[str, Any] = {"grid": (1, 1, 1), "block": (128, 1, 1), **changes}
        return self.backend.prepare(LaunchPlan(kernel=probe(name, self.arch), params=tuple(params), **fields))

    def zeros(self, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """Return zeros on the device."""
        return torch.zeros(shape, dtype=dtype, device=self.tensors)


@pytest.fixture(params=[pytest.param("cuda", marks=needs_gpu), "emulated sm_90a", "emulated sm_100a"])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "cuda":
        backend: CudaBackend = cuda_backend(0)
        info = backend.info
        return Device(backend=backend, tensors="cuda:0", arch=info.arch.name, max_smem_bytes=info.max_smem_bytes)
    emulated = EmulatedBackend(EmulatorSettings(num_sms=6))
    return Device(backend=emulated, tensors="cpu", arch=request.param.split()[1], max_smem_bytes=227 * 1024)


def test_every_kind_of_parameter_arrives(device: Device) -> None:
    out = device.zeros(3, dtype=torch.float64)
    launch = device.prepare(
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


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_blocks_come_in_clusters(device: Device, size: int) -> None:
    out = device.zeros(32, 2)
    launch = device.prepare("cluster_of", [pointer("out", out)], grid=(32, 1, 1), cluster=(size, 1, 1))
    launch.launch()
    assert out.tolist() == [[block % size, size] for block in range(32)]


def test_cooperative_blocks_meet_with_all_shared_memory(device: Device) -> None:
    arrived, met = device.zeros(1), device.zeros(1)
    smem_bytes = device.max_smem_bytes
    params = [pointer("arrived", arrived), pointer("met", met)]
    num_sms = device.backend.num_sms
    launch = device.prepare("meet", params, grid=(num_sms, 1, 1), smem_bytes=smem_bytes, cooperative=True)
    launch.launch()
    assert met.item() == num_sms
    with pytest.raises(LaunchError, match=f"has {num_sms + 1} blocks, and .* holds {num_sms} of them at once"):
        device.prepare("meet", params, grid=(num_sms + 1, 1, 1), smem_bytes=smem_bytes, cooperative=True)


def test_a_dependent_launch_sees_what_the_one_before_wrote(device: Device) -> None:
    source, target = device.zeros(1024), device.zeros(1024)
    params = [pointer("to", target), pointer("from", source)]
    write = device.prepare("write_slowly", [pointer("values", source), u32("value", 0)], grid=(8, 1, 1))
    copy = device.prepare("copy_after", params, grid=(8, 1, 1), pdl=True)
    for value in range(1, 6):
        write.update(1, value)
        write.launch()
        copy.launch()
    assert target.tolist() == [5] * 1024


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
    device: Device,
    dtype: torch.dtype,
    element: TmaElement | None,
    inner: int,
    swizzle: Swizzle,
    at: tuple[int, int],
) -> None:
    if element in _BLACKWELL_ONLY and device.arch == "sm_90a":
        pytest.skip(f"{element} needs compute capability 10.0, the device is of {device.arch}")
    rows, box_rows, columns = 40, 32, 512
    raw = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, device=device.tensors)
    tensor_map_ = tensor_map_for(raw.view(dtype), box=(box_rows, inner), swizzle=swizzle, element=element)
    spec = tensor_map_.spec
    out, failed = device.zeros(spec.box_smem_bytes, dtype=torch.uint8), device.zeros(1)
    column, row = at[0] * inner, at[1]  # at row 24 half of the box lies outside of the tensor and reads zero
    launch = device.prepare(
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
        memory=(raw,),
    )
    launch.launch()
    start = column * spec.element.bits // 8
    box = torch.zeros(box_rows, inner * spec.element.bits // 8, dtype=torch.uint8, device=device.tensors)
    inside = raw[row : row + box_rows, start : start + box.shape[1]]
    box[: inside.shape[0]] = inside
    assert failed.item() == 0
    if spec.element.is_padded:  # 8 bytes of data, 8 that nobody promises anything about
        assert torch.equal(out.view(-1, 2, 8)[:, 0], box.view(-1, 8))
    else:
        assert torch.equal(out, swizzled(box, swizzle))


def test_a_kernel_that_stops_itself_is_told_in_words() -> None:
    backend = EmulatedBackend(EmulatorSettings(num_sms=1))  # a CUDA device loses its context: test_hardware has it
    record = backend.error_record()
    record.waits = {4: "the other block"}
    launch = Device(backend=backend, tensors="cpu", arch="sm_90a", max_smem_bytes=0).prepare(
        "give_up", [pointer("record", record.device_pointer)], grid=(8, 1, 1), block=(32, 1, 1)
    )
    for _ in range(2):
        with pytest.raises(
            LaunchError,
            match=r"a kernel on the emulated device stopped itself: rank 0, block 3, thread 5 gave up waiting for the "
            r"other block \(index 33: expected 6, saw 5\)\.",
        ):
            launch.launch()
