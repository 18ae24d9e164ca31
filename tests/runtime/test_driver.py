"""The driver's edge: found or not, contexts, and what is asked once."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from megamoe_jit.errors import LaunchError, UnsupportedError
from megamoe_jit.runtime import driver as driver_module
from megamoe_jit.runtime.driver import Driver, find_driver, get_driver
from tests.runtime.fake_driver import CONTEXT, FakeDriver


@pytest.fixture(autouse=True)
def _forget_the_machines_driver() -> Iterator[None]:
    driver_module._load.cache_clear()
    yield
    driver_module._load.cache_clear()


def bindings(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Let `cuda.bindings.driver` be `module`, or raise it."""

    def import_module(name: str) -> Any:
        assert name == "cuda.bindings.driver"
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(driver_module, "importlib", SimpleNamespace(import_module=import_module))


def refuse(error: Exception) -> Any:
    """Return a driver module whose cuInit raises."""

    def cu_init(flags: int) -> Any:
        raise error

    return SimpleNamespace(cuInit=cu_init)


def failing() -> Any:
    """Return a driver module whose cuInit finds no device."""
    fake = FakeDriver()
    fake._cuInit = lambda flags: ()
    fake.errors["cuInit"] = 100
    return SimpleNamespace(
        cuInit=lambda flags: (fake.CUresult(100),), CUresult=fake.CUresult, cuGetErrorString=fake.cuGetErrorString
    )


NO_DRIVERS = [
    (ImportError("No module named 'cuda'"), r"cuda\.bindings cannot be imported \(No module named 'cuda'\)\. Install"),
    (refuse(RuntimeError("Failed to dlopen libcuda.so.1")), r"no NVIDIA driver library was found \(Failed to dlopen"),
    (failing(), r"cuInit failed: CUDA_ERROR_NO_DEVICE \(words for 100\)"),
]


@pytest.mark.parametrize(("module", "sentence"), NO_DRIVERS)
def test_without_a_driver_the_reason_is_told(module: Any, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bindings(monkeypatch, module)
    assert find_driver() is None
    with pytest.raises(UnsupportedError, match=sentence):
        get_driver()


def test_the_driver_is_initialised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDriver()
    fake._cuInit = lambda flags: ()
    bindings(monkeypatch, fake)
    assert isinstance(get_driver(), Driver)
    assert get_driver() is find_driver()
    assert fake.calls == [("cuInit", (0,))]


def test_importing_the_runtime_touches_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings(monkeypatch, RuntimeError("touched"))
    for name in ("backend", "cuda", "device", "emulated", "launch", "memory", "reference", "tensormap"):
        importlib.import_module(f"megamoe_jit.runtime.{name}")


def test_a_context_is_made_current_and_given_back() -> None:
    fake = FakeDriver()
    driver = Driver(fake)
    with driver.current(1):
        assert fake.current == CONTEXT + 1
        with driver.current(1), driver.current(0):
            assert fake.current == CONTEXT
        assert fake.current == CONTEXT + 1
    assert fake.current == CONTEXT
    with pytest.raises(KeyError), driver.current(1):
        raise KeyError
    assert fake.current == CONTEXT
    assert fake.count("cuDevicePrimaryCtxRetain") == 2  # once a device


def test_a_thread_without_a_context_keeps_the_one_it_gets() -> None:
    fake = FakeDriver()
    fake.current = 0
    with Driver(fake).current(1):
        pass
    assert fake.current == CONTEXT + 1


def test_what_failed_is_not_remembered() -> None:
    fake = FakeDriver()
    driver = Driver(fake)
    fake.errors["cuDeviceGet"] = 101
    with pytest.raises(LaunchError):
        driver.device(0)
    fake.errors.clear()
    assert int(driver.device(0)) == 0
    assert driver.recall(("device", 0)) == driver.device(0)
    assert driver.recall("anything") is None


def test_values_come_back_bare() -> None:
    driver = Driver(SimpleNamespace(none=lambda: (0,), one=lambda: (0, 5), two=lambda x: (0, x, 7)))
    assert driver.call("asking", "none") is None
    assert driver.call("asking", "one") == 5
    assert driver.call("asking", "two", 6) == (6, 7)
