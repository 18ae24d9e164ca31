"""Random matrices in narrow formats with the numbers that they stand for, decoded by ml_dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

F64 = npt.NDArray[np.float64]
_FP8 = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
_TORCH_FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_SF = {16: ml_dtypes.float8_e4m3fn, 32: ml_dtypes.float8_e8m0fnu}
TRITON_CODES = {"e2m1": "u8", "e4m3": "fp8e4nv", "e5m2": "fp8e5"}
TRITON_SF = {16: "fp8e4nv", 32: "u8"}  # E4M3 for 16 elements (NVFP4), E8M0 for 32 (MX formats)


@dataclass(frozen=True)
class Scaled:
    """A matrix [rows, k] of codes with a scale factor for `gran_k` of them.

    Attributes:
        codes: as stored: uint8 [rows, k / 2] with the first element in the low half, or float8 [rows, k].
        sf: bytes [rows, k / gran_k].
        values: what both stand for, float64 [rows, k].
    """

    codes: torch.Tensor
    sf: torch.Tensor
    values: F64

    @property
    def blocked_sf(self) -> torch.Tensor:
        """Scale factors in blocks of 128 rows x 4: [1, rows / 128, columns / 4, 2, 256] bytes.

        A block holds row r and column c at byte r % 32 * 16 + r // 32 * 4 + c, as tensor memory takes them.
        """
        rows, columns = self.sf.shape
        blocks = self.sf.view(torch.uint8).reshape(rows // 128, 4, 32, columns // 4, 4).permute(0, 3, 2, 1, 4)
        return blocks.reshape(1, rows // 128, columns // 4, 2, 256).contiguous().view(self.sf.dtype)


def scaled(rows: int, k: int, element: str, gran_k: int, rng: np.random.Generator, *, wide: bool) -> Scaled:
    """Return random codes and scale factors.

    Not `wide`: products are multiples of one power of two and so few that any order of FP32 sums is exact. `wide`:
    normal values over the format's range and scale factors over many binades.
    """
    if element == "e2m1":
        nibbles = rng.integers(0, 16, (rows, k), dtype=np.uint8)
        codes = torch.from_numpy(nibbles[:, 0::2] | nibbles[:, 1::2] << 4).clone()  # torch aligns, NumPy does not
        values = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    else:
        numbers = rng.standard_normal((rows, k)) * 16 if wide else rng.integers(-7, 8, (rows, k)) / 2
        narrow = numbers.astype(_FP8[element])
        codes = torch.from_numpy(narrow.view(np.uint8)).clone().view(_TORCH_FP8[element])
        values = narrow.astype(np.float64)
    shape = (rows, k // gran_k)
    if wide:
        factors = np.exp2(rng.uniform(-5, 5, shape))
    elif gran_k == 16:
        factors = rng.choice([0.5, 0.75, 1.0, 1.25, 1.5, 2.0], shape)
    else:
        factors = rng.choice([0.5, 1.0, 2.0], shape)
    sf = factors.astype(_SF[gran_k])
    values = values * np.repeat(sf.astype(np.float64), gran_k, axis=1)
    sf_bytes = torch.from_numpy(sf.view(np.uint8)).clone()
    return Scaled(codes=codes, sf=sf_bytes.view(torch.float8_e4m3fn) if gran_k == 16 else sf_bytes, values=values)


def plain(shape: tuple[int, ...], dtype: torch.dtype, rng: np.random.Generator, *, wide: bool = False) -> torch.Tensor:
    """Return small integers (exact in any order of sums) or, `wide`, normal numbers, rounded to `dtype`."""
    numbers = rng.standard_normal(shape) if wide else rng.integers(-4, 5, shape).astype(np.float64)
    return torch.from_numpy(numbers).to(torch.float32).to(dtype).clone()


def to_float64(tensor: torch.Tensor) -> F64:
    """Return the numbers of a tensor of any dtype."""
    numbers: F64 = (tensor if tensor.dtype.itemsize > 1 else tensor.to(torch.float32)).to(torch.float64).numpy()
    return numbers


def rounded(numbers: Any, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 once, to nearest even (conversions of torch and ml_dtypes to bfloat16 round to float32 first)."""
    exact = np.asarray(numbers, dtype=np.float64)
    if dtype == torch.bfloat16:
        quantum = np.exp2(np.maximum(np.frexp(exact)[1], -125) - 8.0)
        exact = np.rint(exact / quantum) * quantum
    if dtype == torch.float16:
        return torch.from_numpy(exact.astype(np.float16))
    return torch.from_numpy(exact).to(dtype)
