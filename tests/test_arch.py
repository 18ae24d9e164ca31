"""Targets: which device runs which, and which one a device is compiled for."""

from __future__ import annotations

import pytest

from megamoe_jit import UnsupportedError, get_arch
from megamoe_jit.arch import ARCHS, MmaGeneration, arch_for_capability

CAPABILITIES = [(8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)]
RUNS_ON = {
    "sm_90a": [(9, 0)],
    "sm_100a": [(10, 0)],
    "sm_100f": [(10, 0), (10, 3)],
    "sm_103a": [(10, 3)],
    "sm_103f": [(10, 3)],
    "sm_120a": [(12, 0)],
    "sm_121a": [(12, 1)],
}
# An architecture-specific cubin runs on its own device only; a family's on later devices of the same major version.
DEFAULTS = {(9, 0): "sm_90a", (10, 0): "sm_100f", (10, 3): "sm_100f", (12, 0): "sm_120a", (12, 1): "sm_121a"}


@pytest.mark.parametrize("name", RUNS_ON)
def test_devices_of_a_target(name: str) -> None:
    arch = get_arch(name)
    assert [capability for capability in CAPABILITIES if arch.runs_on(capability)] == RUNS_ON[name]
    assert str(arch) == arch.name == name
    assert get_arch(arch) is arch
    assert arch.is_family == name.endswith("f")


def test_every_target_is_in_the_table() -> None:
    assert list(ARCHS) == list(RUNS_ON)


@pytest.mark.parametrize("capability", DEFAULTS)
def test_the_target_of_a_device(capability: tuple[int, int]) -> None:
    arch = arch_for_capability(capability)
    assert arch.name == DEFAULTS[capability]
    assert arch.runs_on(capability)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 1), (11, 0), (13, 0)])
def test_a_device_without_a_target(capability: tuple[int, int]) -> None:
    known = r"9\.0, 10\.0, 10\.3, 12\.0, 12\.1"
    words = (
        rf"compute capability {capability[0]}\.{capability[1]}, and megamoe_jit has targets for {known}\. Use one of"
    )
    with pytest.raises(UnsupportedError, match=words):
        arch_for_capability(capability)


@pytest.mark.parametrize("name", ["sm_90", "SM_90A", "compute_90a", "", None, ["sm_90a"], 90])
def test_an_unknown_target(name: object) -> None:
    with pytest.raises(UnsupportedError, match=r"is not a known target\. Use one of sm_90a, sm_100a, .*, sm_121a\."):
        get_arch(name)  # type: ignore[arg-type]


def test_generations_and_limits() -> None:
    """CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""
    by_generation = {generation: set[str]() for generation in MmaGeneration}
    for name, arch in ARCHS.items():
        by_generation[arch.generation].add(name)
        assert arch.max_smem_bytes == (99 if arch.capability[0] == 12 else 227) * 1024
        assert arch.regs_per_sm == 65536
    assert by_generation[MmaGeneration.WGMMA] == {"sm_90a"}
    assert by_generation[MmaGeneration.TCGEN05] == {"sm_100a", "sm_100f", "sm_103a", "sm_103f"}
    assert by_generation[MmaGeneration.MMA_SYNC] == {"sm_120a", "sm_121a"}
