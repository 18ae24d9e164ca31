"""What tests may need, under one name each, and why they are skipped where it is absent.

@needs_gpu          a CUDA device
@needs_sm90         a device of compute capability 9.0
@needs_ranks(4)     that many CUDA devices
@slow("reason")     takes more than about ten seconds; runs nevertheless, `-m "not slow"` leaves it out
"""

from __future__ import annotations

import functools

import pytest

from megamoe_jit.runtime.driver import find_driver

HARDWARE_MARKS = ("needs_gpu", "needs_sm90", "needs_ranks")

needs_gpu = pytest.mark.needs_gpu
needs_sm90 = pytest.mark.needs_sm90


def needs_ranks(count: int) -> pytest.MarkDecorator:
    """The test runs `count` ranks, each on a device of its own."""
    return pytest.mark.needs_ranks(count)


def slow(reason: str) -> pytest.MarkDecorator:
    """The test takes more than about ten seconds, because of `reason`."""
    return pytest.mark.slow(reason=reason)


@functools.cache
def capabilities() -> tuple[tuple[int, int], ...]:
    """Compute capability of each CUDA device, as the driver says (torch may be a CPU build); empty without a driver."""
    driver = find_driver()
    if driver is None:
        return ()
    prefix = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_"
    major, minor = (getattr(driver.module.CUdevice_attribute, prefix + name) for name in ("MAJOR", "MINOR"))
    devices = range(int(driver.call("counting devices", "cuDeviceGetCount")))
    handles = [driver.call("opening a device", "cuDeviceGet", index) for index in devices]

    def read(attribute: object, handle: object) -> int:
        return int(driver.call("reading a capability", "cuDeviceGetAttribute", attribute, handle))

    return tuple((read(major, handle), read(minor, handle)) for handle in handles)


def skip_reason(item: pytest.Item, found: tuple[tuple[int, int], ...]) -> str | None:
    """Return why `item` cannot run on devices of these capabilities, or None."""
    here = "has " + (", ".join(f"{major}.{minor}" for major, minor in found) or "none")
    if item.get_closest_marker("needs_gpu") and not found:
        return f"needs a CUDA device, this machine {here}"
    if item.get_closest_marker("needs_sm90") and (9, 0) not in found:
        return f"needs a device of compute capability 9.0, this machine {here}"
    if (mark := item.get_closest_marker("needs_ranks")) and len(found) < mark.args[0]:
        return f"needs {mark.args[0]} CUDA devices, this machine {here}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose needs are not met (tests/conftest.py makes this a hook)."""
    if not any(item.get_closest_marker(name) for name in HARDWARE_MARKS):
        return
    if reason := skip_reason(item, capabilities()):
        pytest.skip(reason)
