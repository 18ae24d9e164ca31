"""Published peak figures of devices, with their sources: what models of kernels divide by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from megamoe_jit.arch import Arch
from megamoe_jit.errors import UnsupportedError


class Rate(Enum):
    """Which peak rate of the tensor cores a kernel's MMAs run at."""

    FP4 = "fp4"
    FP8 = "fp8"
    BF16 = "bf16"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """Published peak figures of a device: dense rates in FLOP/s, bandwidth in B/s.

    `macs_per_cycle` of one SM is not published: it is inferred, as the numbers that give one clock for all rates.
    """

    name: str
    capability: tuple[int, int]
    num_sms: int
    bytes_per_s: float
    peak_flops: tuple[tuple[Rate, float], ...]
    macs_per_cycle: tuple[tuple[Rate, int], ...]
    source: str

    def cycle_macs(self, rate: Rate) -> int:
        """Return the multiply-adds of one SM in a cycle; raises UnsupportedError where the device lacks the rate."""
        return int(self._of(self.macs_per_cycle, rate))

    def clock_hz(self, rate: Rate) -> float:
        """Return the clock that the peak rate implies."""
        return self._of(self.peak_flops, rate) / (2 * self.num_sms * self.cycle_macs(rate))

    def _of(self, table: Iterable[tuple[Rate, float]], rate: Rate) -> float:
        for known, value in table:
            if known is rate:
                return value
        raise UnsupportedError(f"{self.name} has no dense {rate.value} rate here. Choose a recipe for its target.")


GPUS: tuple[Gpu, ...] = (
    Gpu(
        name="H200",
        capability=(9, 0),
        num_sms=132,
        bytes_per_s=4.8e12,
        peak_flops=((Rate.FP8, 1979e12), (Rate.BF16, 989.5e12)),
        macs_per_cycle=((Rate.FP8, 4096), (Rate.BF16, 2048)),
        source="NVIDIA H200 datasheet (SXM): 4.8 TB/s; FP8 3,958 and BF16 1,979 TFLOPS with sparsity, half of it dense",
    ),
    Gpu(
        name="B200",
        capability=(10, 0),
        num_sms=148,
        bytes_per_s=8e12,
        peak_flops=((Rate.FP4, 9e15), (Rate.FP8, 4.5e15)),
        macs_per_cycle=((Rate.FP4, 16384), (Rate.FP8, 8192)),
        source="NVIDIA HGX B200 specifications, an eighth of: FP4 72 PFLOPS dense, FP8 72 PFLOPS with sparsity, half "
        "of it dense; 8 TB/s HBM3e a GPU. 148 SMs are what devices report",
    ),
    Gpu(
        name="B300",
        capability=(10, 3),
        num_sms=148,
        bytes_per_s=8e12,
        peak_flops=((Rate.FP4, 13.5e15), (Rate.FP8, 4.5e15)),
        macs_per_cycle=((Rate.FP4, 24576), (Rate.FP8, 8192)),
        source="NVIDIA on Blackwell Ultra: 1.5 times Blackwell's dense FP4, here of HGX B200's, and 8 TB/s HBM3e; HGX "
        "B300 specifications, an eighth of: FP8 72 PFLOPS with sparsity, half of it dense. Tables for boards of other "
        "power give 13.1 to 15 PFLOPS FP4. 148 SMs are what devices report",
    ),
)


def gpus_for(arch: Arch) -> tuple[Gpu, ...]:
    """Return the devices with published figures here that run cubins of `arch`."""
    return tuple(gpu for gpu in GPUS if arch.runs_on(gpu.capability))
