"""What a CUDA device can do, asked of the driver once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megamoe_jit.arch import Arch, arch_for_capability
from megamoe_jit.errors import ArgumentError
from megamoe_jit.runtime.driver import Driver, get_driver


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceInfo:
    """Properties of one CUDA device, as the driver reports them."""

    index: int
    name: str
    capability: tuple[int, int]
    num_sms: int
    max_smem_bytes: int  # static and dynamic shared memory that one block may ask for
    smem_bytes_per_sm: int
    l2_bytes: int
    memory_bytes: int
    supports_cooperative: bool
    driver_version: tuple[int, int]  # newest CUDA version that the driver serves, such as (13, 0)

    def __str__(self) -> str:
        """Name the device in messages."""
        return f"cuda:{self.index} ({self.name}, compute capability {self.capability[0]}.{self.capability[1]})"

    @property
    def arch(self) -> Arch:
        """The target that kernels are built for on this device; raises UnsupportedError when there is none."""
        return arch_for_capability(self.capability)


def device_index(device: torch.device | int | str | None = None) -> int:
    """Return the index of a CUDA device given as torch gives it; None means torch's current device."""
    if device is None:
        return torch.cuda.current_device()
    if isinstance(device, int):
        return device
    device = torch.device(device)
    if device.type != "cuda":
        raise ArgumentError(f"device={device} is no CUDA device. Pass a tensor or device of type cuda, such as cuda:0.")
    return torch.cuda.current_device() if device.index is None else device.index


def device_info(device: torch.device | int | str | None = None, *, driver: Driver | None = None) -> DeviceInfo:
    """Return the properties of a device (torch's current one by default), read once per process.

    Raises UnsupportedError where there is no driver, LaunchError when the driver knows no such device.
    """
    driver = driver or get_driver()
    index = device_index(device)
    return driver.remember(("device_info", index), lambda: _read(driver, index))


def driver_version(*, driver: Driver | None = None) -> tuple[int, int]:
    """Return the newest CUDA version that the driver serves, such as (13, 0)."""
    driver = driver or get_driver()
    version: int = driver.call("asking for the driver's version", "cuDriverGetVersion")
    return version // 1000, version % 1000 // 10


def _read(driver: Driver, index: int) -> DeviceInfo:
    device = driver.device(index)
    names = driver.module.CUdevice_attribute

    def attribute(name: str) -> int:
        value: int = driver.call(
            f"asking cuda:{index} for {name.lower()}",
            "cuDeviceGetAttribute",
            getattr(names, f"CU_DEVICE_ATTRIBUTE_{name}"),
            device,
        )
        return value

    name: bytes = driver.call(f"asking cuda:{index} for its name", "cuDeviceGetName", 256, device)
    return DeviceInfo(
        index=index,
        name=name.split(b"\0", 1)[0].decode(),
        capability=(attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
        num_sms=attribute("MULTIPROCESSOR_COUNT"),
        max_smem_bytes=attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        smem_bytes_per_sm=attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
        l2_bytes=attribute("L2_CACHE_SIZE"),
        memory_bytes=driver.call(f"asking cuda:{index} for its memory", "cuDeviceTotalMem", device),
        supports_cooperative=bool(attribute("COOPERATIVE_LAUNCH")),
        driver_version=driver_version(driver=driver),
    )
