"""Launch plans that no device takes, in words; and which backend a call gets."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from megamoe_jit.errors import ArgumentError, UnsupportedError
from megamoe_jit.runtime import backend
from megamoe_jit.runtime.backend import LaunchPlan, resolve_backend
from megamoe_jit.runtime.launch import u32
from tests.runtime.fake_driver import kernel

EMPTY: dict[str, Any] = {"kernel": kernel("empty"), "grid": (132, 1, 1), "block": (128, 1, 1)}
PAIRED: dict[str, Any] = {**EMPTY, "kernel": kernel("paired"), "cluster": (2, 1, 1)}

BAD_PLANS = [
    (
        EMPTY,
        {"grid": (0, 1, 1)},
        "cannot launch empty: grid=(0, 1, 1) has x=0, and CUDA takes 1 to 2147483647. Skip an empty launch",
    ),
    (EMPTY, {"grid": (1, 65536, 1)}, "grid=(1, 65536, 1) has y=65536, and CUDA takes 1 to 65535"),
    (EMPTY, {"grid": (1, 1, 65536)}, "has z=65536, and CUDA takes 1 to 65535"),
    (EMPTY, {"grid": (2**31, 1, 1)}, "has x=2147483648, and CUDA takes 1 to 2147483647"),
    (EMPTY, {"grid": (1, 1)}, "grid=(1, 1) has 2 dimensions. Give x, y and z."),
    (EMPTY, {"block": (1025, 1, 1)}, "block=(1025, 1, 1) has x=1025, and CUDA takes 1 to 1024"),
    (EMPTY, {"block": (1, 1, 65)}, "has z=65, and CUDA takes 1 to 64"),
    (EMPTY, {"block": (64, 32, 1)}, "block=(64, 32, 1) has 2048 threads, and a block has at most 1024"),
    (EMPTY, {"cluster": (17, 1, 1), "grid": (17, 1, 1)}, "cluster=(17, 1, 1) has x=17, and CUDA takes 1 to 16"),
    (EMPTY, {"cluster": (4, 8, 1), "grid": (4, 8, 1)}, "cluster=(4, 8, 1) has 32 blocks, and a cluster has at most 16"),
    (EMPTY, {"cluster": (8, 1, 1)}, "cluster=(8, 1, 1) does not divide grid=(132, 1, 1). Round the grid up"),
    (EMPTY, {"smem_bytes": 227 * 1024 + 1}, "smem_bytes=232449, and a block has at most 232448 bytes of shared memory"),
    (EMPTY, {"smem_bytes": -1}, "smem_bytes=-1, and a block has at most"),
    (EMPTY, {"params": (u32("n", 1),)}, "empty takes 0 parameters, and the plan has 1 (n)"),
    (EMPTY, {"kernel": kernel("other")}, "kernel_name='other' is no entry of the PTX"),
    (
        PAIRED,
        {"cluster": (1, 1, 1)},
        "cannot launch paired: cluster=(1, 1, 1), and the kernel was compiled for exactly (2, 1, 1)",
    ),
    (PAIRED, {"block": (256, 1, 1)}, "block=(256, 1, 1), and the kernel was compiled for exactly (128, 1, 1)"),
    (
        EMPTY,
        {"kernel": kernel("scale"), "block": (416, 1, 1)},
        "block=(416, 1, 1) has 416 threads, and the kernel was compiled for at most 384 (__launch_bounds__)",
    ),
]


@pytest.mark.parametrize(("base", "changes", "sentence"), BAD_PLANS)
def test_a_plan_that_no_device_takes_is_refused_in_words(
    base: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    LaunchPlan(**base)
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        LaunchPlan(**{**base, **changes})


def test_a_plan_describes_its_launch() -> None:
    plan = LaunchPlan(**{**PAIRED, "smem_bytes": 2048, "cooperative": True, "pdl": True})
    assert plan.describe() == (
        "paired with grid=(132, 1, 1) block=(128, 1, 1) cluster=(2, 1, 1) smem=2048 B cooperative pdl"
    )
    assert plan.num_threads == 128


CHOICES = [
    (None, None, "cuda:1", "cuda"),
    (None, None, "cpu", "emulator"),
    (None, None, "meta", "emulator"),
    (None, "reference", "cuda", "reference"),
    (None, "cuda", "cuda", "cuda"),
    ("reference", "cuda", "cuda", "reference"),
    ("cuda", "reference", "cuda", "cuda"),
    ("reference", None, "cpu", "reference"),
    ("emulator", "reference", "cpu", "emulator"),
    (None, "emulator", "cpu", "emulator"),
]


@pytest.mark.parametrize(("name", "variable", "device", "chosen"), CHOICES)
def test_the_backend_is_that_given_then_the_environments_then_the_devices(
    name: str | None, variable: str | None, device: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEGAMOE_JIT_BACKEND", raising=False)
    if variable:
        monkeypatch.setenv("MEGAMOE_JIT_BACKEND", variable)
    assert resolve_backend(name, device) == chosen
    assert resolve_backend(name, torch.device(device)) == chosen


BAD_CHOICES = [
    ("cpu", None, "cuda", ArgumentError, "backend='cpu' is no backend. Use one of cuda, emulator, reference."),
    ("cuda", None, "cpu", ArgumentError, "backend='cuda' runs kernels on a GPU, and the tensors are on cpu. Move them"),
    (None, "cuda", "cpu", ArgumentError, "MEGAMOE_JIT_BACKEND=cuda runs kernels on a GPU, and the tensors are on cpu"),
    (None, "fast", "cpu", ArgumentError, "MEGAMOE_JIT_BACKEND='fast' is not understood"),
    ("emulator", None, "cuda:1", ArgumentError, "backend='emulator' runs kernels on tensors of the CPU, and the"),
    (None, "emulator", "cuda", ArgumentError, "MEGAMOE_JIT_BACKEND=emulator runs kernels on tensors of the CPU"),
]


@pytest.mark.parametrize(("name", "variable", "device", "error", "sentence"), BAD_CHOICES)
def test_a_backend_that_cannot_serve_is_refused_in_words(
    name: str | None,
    variable: str | None,
    device: str,
    error: type[Exception],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MEGAMOE_JIT_BACKEND", raising=False)
    if variable:
        monkeypatch.setenv("MEGAMOE_JIT_BACKEND", variable)
    with pytest.raises(error, match=re.escape(sentence)):
        resolve_backend(name, device)


@pytest.mark.parametrize(
    ("name", "variable", "sentence"),
    [
        ("emulator", None, "backend='emulator', which needs llvmlite and ml_dtypes. Install pip install 'megamoe-jit["),
        (None, "emulator", "MEGAMOE_JIT_BACKEND=emulator, which needs llvmlite and ml_dtypes."),
        (None, None, "no backend was given, and tensors on cpu run in the emulator, which needs llvmlite and"),
    ],
)
def test_an_emulator_that_is_not_installed_is_refused_in_words(
    name: str | None, variable: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEGAMOE_JIT_BACKEND", raising=False)
    if variable:
        monkeypatch.setenv("MEGAMOE_JIT_BACKEND", variable)
    monkeypatch.setattr(backend, "_is_installed", lambda package: package == "numpy")
    with pytest.raises(UnsupportedError, match=re.escape(sentence)):
        resolve_backend(name, "cpu")
    assert resolve_backend("reference", "cpu") == "reference"
