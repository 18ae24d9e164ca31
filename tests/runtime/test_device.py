"""Device properties, read from the driver once."""

from __future__ import annotations

import re

import pytest
import torch

from megamoe_jit.errors import LaunchError, UnsupportedError
from megamoe_jit.runtime.device import device_index, device_info, driver_version
from megamoe_jit.runtime.driver import Driver
from tests.runtime.fake_driver import FakeDriver


def test_properties_are_those_of_the_driver() -> None:
    info = device_info(1, driver=Driver(FakeDriver()))
    assert (info.index, info.name, info.capability, info.num_sms) == (1, "NVIDIA H200 1", (9, 0), 132)
    assert (info.max_smem_bytes, info.smem_bytes_per_sm, info.l2_bytes) == (232448, 233472, 60 << 20)
    assert (info.memory_bytes, info.supports_cooperative, info.driver_version) == (141 << 30, True, (13, 0))
    assert info.arch.name == "sm_90a"
    assert str(info) == "cuda:1 (NVIDIA H200 1, compute capability 9.0)"


def test_properties_are_read_once_a_device() -> None:
    fake = FakeDriver()
    driver = Driver(fake)
    first = device_info(0, driver=driver)
    calls = len(fake.calls)
    assert device_info("cuda:0", driver=driver) is first
    assert device_info(torch.device("cuda", 0), driver=driver) is first
    assert len(fake.calls) == calls
    assert device_info(1, driver=driver) != first


def test_a_device_without_a_target_says_so() -> None:
    fake = FakeDriver()
    fake.device_attributes["COMPUTE_CAPABILITY_MAJOR"] = 8
    with pytest.raises(UnsupportedError, match=r"compute capability 8\.0"):
        _ = device_info(0, driver=Driver(fake)).arch


def test_a_device_that_is_not_there_is_told_in_words() -> None:
    fake = FakeDriver()
    fake.errors["cuDeviceGet"] = 101
    with pytest.raises(LaunchError, match=re.escape("opening cuda:7 failed in cuDeviceGet: CUDA_ERROR_INVALID_DEVICE")):
        device_info(7, driver=Driver(fake))


def test_a_device_is_named_in_any_of_torchs_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for device, index in ((None, 3), ("cuda", 3), ("cuda:1", 1), (torch.device("cuda:2"), 2), (5, 5)):
        assert device_index(device) == index


def test_the_drivers_version_has_two_parts() -> None:
    assert driver_version(driver=Driver(FakeDriver())) == (13, 0)
