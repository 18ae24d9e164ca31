"""The emulator backend: what of a launch plan reaches the emulator, and what comes back."""

from __future__ import annotations

import importlib
import re
import struct
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megamoe_jit.emulator.memory.tensor_map import TensorMap as EmulatedMap
from megamoe_jit.errors import ArgumentError, DeadlockFault, LaunchError, UnsupportedError
from megamoe_jit.runtime import emulated
from megamoe_jit.runtime.backend import Backend, Launchable, LaunchPlan, open_backend
from megamoe_jit.runtime.emulated import EmulatedBackend, EmulatorSettings, emulated_backend, resident_blocks
from megamoe_jit.runtime.launch import f32, pointer, struct_bytes, tensor_map, u32
from megamoe_jit.runtime.memory import MAGIC, EmulatedErrorRecord
from megamoe_jit.runtime.tensormap import OobFill, Swizzle, TmaElement, tensor_map_for
from tests.runtime import fake_emulator
from tests.runtime.fake_driver import kernel


@pytest.fixture(autouse=True)
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "_import_emulator", lambda: fake_emulator)


def plan_of(data: torch.Tensor, *, memory: tuple[torch.Tensor, ...] = (), **changes: Any) -> LaunchPlan:
    """Return a plan of the kernel `scale`, with every kind of parameter."""
    params = (
        pointer("data", data),
        u32("count", 7),
        f32("factor", 1.5),
        tensor_map("map", tensor_map_for(data, box=(2, 64), swizzle=Swizzle.B128)),
        struct_bytes("rest", bytes(range(24))),
    )
    arguments = {"grid": (4, 1, 1), "block": (128, 1, 1), "smem_bytes": 2048, "params": params, "memory": memory}
    return LaunchPlan(kernel=kernel("scale"), **(arguments | changes))


def launches(backend: EmulatedBackend) -> list[dict[str, Any]]:
    return backend.emulator.modules[0].launches


def touched(launch: dict[str, Any]) -> list[tuple[int, bool]]:
    return [(region.tensor.data_ptr(), region.writable) for region in launch["memory"]]


def test_a_plan_reaches_the_emulator_whole() -> None:
    backend = EmulatedBackend(EmulatorSettings(num_sms=3))
    protocol: Backend = backend
    data, workspace = torch.zeros(4, 64, dtype=torch.bfloat16), torch.zeros(32)
    prepared: Launchable = protocol.prepare(plan_of(data, memory=(workspace,)))
    x, y = torch.ones(5), torch.zeros(6)
    prepared.launch(reads=(x, None, torch.empty(0)), writes=(y, None))
    (launch,) = launches(backend)
    assert (launch["name"], launch["grid"], launch["block"]) == ("scale", (4, 1, 1), (128, 1, 1))
    assert (launch["cluster"], launch["shared_bytes"]) == ((1, 1, 1), 2048)
    packed_map = EmulatedMap.decode(launch["args"][3])
    assert (packed_map.address, packed_map.dims, packed_map.box) == (data.data_ptr(), (64, 4), (64, 2))
    assert packed_map.swizzle.name == "B128"
    assert launch["args"][:3] == [struct.pack("<Q", data.data_ptr()), struct.pack("<I", 7), struct.pack("<f", 1.5)]
    assert launch["args"][4] == bytes(range(24))
    record = protocol.error_record()
    assert touched(launch) == [
        (workspace.data_ptr(), True),
        (data.data_ptr(), True),
        (y.data_ptr(), True),
        (record.device_pointer, True),
        (x.data_ptr(), False),
    ]


def test_what_is_updated_is_what_the_next_launch_may_touch() -> None:
    backend = EmulatedBackend(EmulatorSettings())
    first, second = torch.zeros(4, 64, dtype=torch.bfloat16), torch.zeros(4, 64, dtype=torch.bfloat16)
    plan = plan_of(
        first, params=(*plan_of(first).params[:3], tensor_map("map", bytes(128)), struct_bytes("r", b"r" * 24))
    )
    prepared = backend.prepare(plan)
    prepared.update(prepared.index_of("data"), second)
    prepared.patch(4, 8, b"yyyy")
    prepared.update(1, 9)
    prepared.launch()
    prepared.update(0, 0x1000)  # an address says nothing about memory
    prepared.launch()
    one, two = launches(backend)
    assert one["args"][0] == struct.pack("<Q", second.data_ptr())
    assert (one["args"][1], one["args"][4]) == (struct.pack("<I", 9), b"r" * 8 + b"yyyy" + b"r" * 12)
    record = backend.error_record().device_pointer
    assert touched(one) == [(second.data_ptr(), True), (record, True)]
    assert touched(two) == [(record, True)]
    with pytest.raises(ArgumentError, match="cannot be patched"):
        prepared.patch(0, 0, b"x")


def test_a_text_is_loaded_once() -> None:
    backend = EmulatedBackend(EmulatorSettings())
    data = torch.zeros(4, 64, dtype=torch.bfloat16)
    backend.launch(plan_of(data))
    backend.prepare(plan_of(data, grid=(2, 1, 1)))
    backend.prepare(LaunchPlan(kernel=kernel("empty"), grid=(1, 1, 1), block=(32, 1, 1)))
    assert len(backend.emulator.modules) == 1
    assert len(launches(backend)) == 1


def test_settings_come_from_the_environment_and_equal_ones_share_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "_backend", emulated._backend.__wrapped__)
    for name, value in (
        ("SMS", "2"),
        ("SEED", "17"),
        ("COMPLETION", "0.25"),
        ("CHECKS", "warn"),
        ("ENGINE", "numpy"),
        ("NUMERICS", "exact"),
    ):
        monkeypatch.setenv(f"MEGAMOE_JIT_EMULATOR_{name}", value)
    backend = emulated_backend()
    assert backend.num_sms == 2
    settings = {key: value for key, value in backend.emulator.settings.items() if key != "cache_dir"}
    assert settings == {"seed": 17, "completion": 0.25, "checks": "warn", "engine": "numpy", "numerics": "exact"}
    assert backend.emulator.settings["cache_dir"].name == "emulator"


def test_one_device_serves_all_tensors_of_the_cpu() -> None:
    emulated._backend.cache_clear()
    try:
        assert open_backend("cpu") is open_backend(torch.device("cpu")) is emulated_backend()
        assert open_backend("cpu").name == "emulator"
    finally:
        emulated._backend.cache_clear()


COOPERATIVE = [
    ({"block": (128, 1, 1), "smem_bytes": 0}, 16),
    ({"block": (384, 1, 1), "smem_bytes": 1024}, 5),
    ({"block": (32, 1, 1), "smem_bytes": 0}, 32),
    ({"block": (128, 1, 1), "smem_bytes": 113 * 1024}, 2),
    ({"block": (128, 1, 1), "smem_bytes": 227 * 1024}, 1),
]


@pytest.mark.parametrize(("shape", "per_sm"), COOPERATIVE)
def test_a_cooperative_grid_must_fit_on_the_device(shape: dict[str, Any], per_sm: int) -> None:
    backend, data = EmulatedBackend(EmulatorSettings(num_sms=2)), torch.zeros(4, 64, dtype=torch.bfloat16)
    fitting = plan_of(data, cooperative=True, **(shape | {"grid": (2 * per_sm, 1, 1)}))
    assert resident_blocks(fitting) == per_sm
    backend.launch(fitting)
    too_many = plan_of(data, cooperative=True, **(shape | {"grid": (2 * per_sm + 1, 1, 1)}))
    with pytest.raises(LaunchError, match=rf"holds {2 * per_sm} of them at once.*MEGAMOE_JIT_EMULATOR_SMS"):
        backend.prepare(too_many)
    backend.prepare(plan_of(data, **(shape | {"grid": (1000, 1, 1)})))


def give_up(record: EmulatedErrorRecord) -> None:
    """Write what a kernel writes before it traps."""
    struct.pack_into("<8I", record.memory.numpy().data, 0, MAGIC, 4, 17, 160, 33, 6, 5, 2)


@pytest.mark.parametrize("traps", [True, False])
def test_a_kernel_that_gave_up_is_told_in_words_and_the_next_may_run(*, traps: bool) -> None:
    backend, data = EmulatedBackend(EmulatorSettings()), torch.zeros(4, 64, dtype=torch.bfloat16)
    prepared = backend.prepare(plan_of(data))
    fault = DeadlockFault("nobody can go on")

    def run() -> None:
        give_up(backend.error_record())
        if traps:
            raise fault

    backend.load(prepared.plan.kernel).run = run
    with pytest.raises(
        LaunchError,
        match=r"a kernel on the emulated device stopped itself: rank 2, block 17, thread 160 gave up waiting for .*"
        r"expected 6, saw 5.*MEGAMOE_JIT_TIMEOUT_S seconds of virtual time",
    ) as caught:
        prepared.launch()
    assert caught.value.__cause__ is (fault if traps else None)
    backend.load(prepared.plan.kernel).run = lambda: None
    prepared.launch()


def test_a_fault_of_a_kernel_is_the_callers() -> None:
    backend = EmulatedBackend(EmulatorSettings())
    prepared = backend.prepare(plan_of(torch.zeros(4, 64, dtype=torch.bfloat16)))
    fault = DeadlockFault("nobody can go on")

    def run() -> None:
        raise fault

    backend.load(prepared.plan.kernel).run = run
    with pytest.raises(DeadlockFault) as caught:
        prepared.launch()
    assert caught.value is fault


@pytest.mark.parametrize("package", ["llvmlite", "ml_dtypes", "numpy"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.undo()
    missing = ModuleNotFoundError(f"No module named '{package}.ir'", name=f"{package}.ir")

    def fail(name: str) -> Any:
        raise missing

    monkeypatch.setattr(emulated, "importlib", SimpleNamespace(import_module=fail))
    sentence = f"the emulator needs {package}.ir, which is not installed. Install pip install 'megamoe-jit[emulator]'"
    with pytest.raises(UnsupportedError, match=re.escape(sentence)):
        EmulatedBackend(EmulatorSettings())


def test_a_broken_emulator_is_no_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def fail(name: str) -> Any:
        raise ImportError("cannot import name 'x'", name="megamoe_jit.emulator.api")

    monkeypatch.setattr(emulated, "importlib", SimpleNamespace(import_module=fail))
    with pytest.raises(ImportError, match="cannot import name"):
        EmulatedBackend(EmulatorSettings())


@pytest.mark.parametrize(
    ("tensor", "element", "box"),
    [
        (torch.zeros(8, 128, dtype=torch.uint8), None, (4, 64)),
        (torch.zeros(8, 128, dtype=torch.uint8), TmaElement.PACKED_U4, (4, 128)),
        (torch.zeros(8, 128, dtype=torch.uint8), TmaElement.PADDED_U4, (4, 128)),
        (torch.zeros(3, 8, 64, dtype=torch.bfloat16), None, (1, 4, 64)),
        (torch.zeros(2, 3, 4, 5, 16, dtype=torch.float32), None, (1, 1, 2, 5, 16)),
        (torch.zeros(32, dtype=torch.int64), None, (16,)),
    ],
)
def test_every_field_of_a_tensor_map_arrives(
    tensor: torch.Tensor, element: TmaElement | None, box: tuple[int, ...]
) -> None:
    importlib.import_module("megamoe_jit.emulator.memory.tensor_map")
    fill = OobFill.NAN if tensor.dtype.is_floating_point else OobFill.ZERO
    given = tensor_map_for(tensor, box=box, element=element, oob_fill=fill)
    arrived = EmulatedMap.decode(emulated.encode_tensor_map(given))
    assert arrived.address == tensor.data_ptr()
    for name in ("dims", "byte_strides", "box", "element_strides"):
        assert getattr(arrived, name) == getattr(given.spec, name)
    for name in ("element", "swizzle", "interleave", "l2_promotion", "oob_fill"):
        assert getattr(arrived, name).value == getattr(given.spec, name).value
