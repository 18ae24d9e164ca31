# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false, disallow-untyped-decorators=false
"""What this GPU can do at most: read memory, and multiply matrices in FP8 and BF16 with the libraries at hand."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from benchmarks.peers.timing import event_times_ms

_READ_BYTES = 4 << 30
_SIZES = (4096, 8192)
_MEASURED_MS = 250.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Rates of one GPU in one run."""

    read_bytes_per_s: float
    fp8_ops_per_s: float
    bf16_ops_per_s: float

    def words(self) -> dict[str, str]:
        """Return the rates as conditions of a record."""
        return {
            "read": f"{self.read_bytes_per_s / 1e12:.2f} TB/s",
            "FP8 matmul": f"{self.fp8_ops_per_s / 1e12:.0f} TFLOP/s",
            "BF16 matmul": f"{self.bf16_ops_per_s / 1e12:.0f} TFLOP/s",
        }


@triton.jit
def _read(source, sums, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * STEPS * BLOCK
    total = tl.zeros((BLOCK,), tl.int32)
    for step in tl.static_range(STEPS):
        total ^= tl.load(source + first + step * BLOCK + tl.arange(0, BLOCK))
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))


def _median_s(call: Callable[[], object]) -> float:
    """Return the median time of a call between events, after a warm-up of as long as is measured."""

    call()
    count = max(5, int(_MEASURED_MS / statistics.median(event_times_ms(call, 5))))
    event_times_ms(call, count)
    return statistics.median(event_times_ms(call, count)) / 1e3


def _read_rate() -> float:
    source = torch.randint(-(2**31), 2**31 - 1, (_READ_BYTES // 4,), device="cuda", dtype=torch.int32)
    rates = []
    for block, steps, warps in ((2048, 8, 4), (4096, 8, 8), (2048, 16, 4), (8192, 4, 8)):
        grid = source.numel() // (block * steps)
        sums = torch.empty(grid, device="cuda", dtype=torch.int32)

        def call(grid=grid, sums=sums, steps=steps, block=block, warps=warps):
            _read[(grid,)](source, sums, steps, block, num_warps=warps)

        rates.append(_READ_BYTES / _median_s(call))
    return max(rates)


def _matmul_rates(size: int) -> tuple[float, float]:
    """Return operations a second in FP8 (fast accumulation) and in BF16 of a product of random square matrices."""
    a, b = (torch.randn(size, size, device="cuda") for _ in range(2))
    one = torch.ones((), device="cuda")
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    a16, b16 = a.bfloat16(), b.bfloat16().t()
    fp8_s = _median_s(lambda: torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16, use_fast_accum=True))
    return 2 * size**3 / fp8_s, 2 * size**3 / _median_s(lambda: a16 @ b16)


def measure_ceilings() -> Ceilings:
    """Measure this GPU, for about five seconds."""
    fp8, bf16 = zip(*(_matmul_rates(size) for size in _SIZES), strict=True)
    return Ceilings(read_bytes_per_s=_read_rate(), fp8_ops_per_s=max(fp8), bf16_ops_per_s=max(bf16))
