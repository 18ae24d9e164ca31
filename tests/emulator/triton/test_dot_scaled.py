"""Triton's block-scaled products, compiled by it for Blackwell and for Hopper, against float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tests.emulator.triton import scaled_kernels
from tests.emulator.triton.compiled import Compiled, compile_kernel
from tests.emulator.triton.operands import TRITON_CODES, TRITON_SF, Scaled, rounded, scaled, to_float64
from tests.emulator.triton.running import Described, run

NVFP4, MXFP4, MXFP8 = ("e2m1", "e2m1", 16), ("e2m1", "e2m1", 32), ("e4m3", "e4m3", 32)
MIXED = [("e5m2", "e4m3", 32), ("e4m3", "e2m1", 32), ("e2m1", "e5m2", 32)]
FORMATS = [NVFP4, MXFP4, MXFP8, *MIXED]
TRITON_FLOATS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def name_of(formats: tuple[str, str, int]) -> str:
    """Name a case."""
    return "-".join(map(str, formats))


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Shape of a product, and how the kernel cuts it."""

    m: int
    n: int
    k: int
    block_m: int = 128
    block_n: int = 128
    block_k: int = 128
    stages: int = 2

    def constants(self, formats: tuple[str, str, int]) -> dict[str, Any]:
        """Return the kernel's constants."""
        a, b, gran_k = formats
        return {
            "A_FORMAT": a,
            "B_FORMAT": b,
            "GRAN_K": gran_k,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "STAGES": self.stages,
        }

    @property
    def grid(self) -> tuple[int, int]:
        """Programs along m and n."""
        return -(-self.m // self.block_m), -(-self.n // self.block_n)


def operands(tiles: Tiles, formats: tuple[str, str, int], seed: int, *, wide: bool = False) -> tuple[Scaled, Scaled]:
    """Return A [m, k] and B [n, k]."""
    rng = np.random.default_rng(seed)
    a, b, gran_k = formats
    return (
        scaled(tiles.m, tiles.k, a, gran_k, rng, wide=wide),
        scaled(tiles.n, tiles.k, b, gran_k, rng, wide=wide),
    )


def through_pointers(
    kernel: Any, tiles: Tiles, formats: tuple[str, str, int], dtype: torch.dtype, **options: Any
) -> Compiled:
    """Compile a kernel whose operands are pointers."""
    a, b, gran_k = formats
    signature = {
        "a_ptr": f"*{TRITON_CODES[a]}",
        "a_sf_ptr": f"*{TRITON_SF[gran_k]}",
        "b_ptr": f"*{TRITON_CODES[b]}",
        "b_sf_ptr": f"*{TRITON_SF[gran_k]}",
        "d_ptr": f"*{TRITON_FLOATS[dtype]}",
        "m": "i32:any",
        "n": "i32:any",
        "k": "i32",
    }
    if kernel is scaled_kernels.scaled_matmul:
        signature |= {"a_stride": "i32", "b_stride": "i32", "d_stride": "i32:any"}
    return compile_kernel(kernel, signature, tiles.constants(formats), **options)


def through_maps(
    kernel: Any, tiles: Tiles, formats: tuple[str, str, int], constants: dict[str, Any], **options: Any
) -> Compiled:
    """Compile a kernel whose operands are tensor maps of the host; D is bfloat16."""
    a, b, gran_k = formats
    sf_columns = tiles.block_k // gran_k // 4

    def sf_map(rows: int) -> str:
        return f"tensordesc<{TRITON_SF[gran_k]}[1, {rows // 128}, {sf_columns}, 2, 256]>"

    def operand_map(element: str, rows: int) -> str:
        return f"tensordesc<{TRITON_CODES[element]}[{rows}, {tiles.block_k // (1 + (element == 'e2m1'))}]>"

    signature = {
        "a_map": operand_map(a, tiles.block_m),
        "a_sf_map": sf_map(tiles.block_m),
        "b_map": operand_map(b, tiles.block_n),
        "b_sf_map": sf_map(tiles.block_n),
        "d_map": f"tensordesc<bf16[{tiles.block_m}, {tiles.block_n}]>",
        "m": "i32",
        "n": "i32",
        "k": "i32",
    }
    return compile_kernel(kernel, signature, tiles.constants(formats) | constants, **options)


def map_arguments(a: Scaled, b: Scaled, d: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of a kernel that takes tensor maps."""
    return {
        "a_map": Described(a.codes),
        "a_sf_map": Described(a.blocked_sf),
        "b_map": Described(b.codes),
        "b_sf_map": Described(b.blocked_sf),
        "d_map": Described(d),
        "m": d.shape[0],
        "n": d.shape[1],
        "k": a.values.shape[1],
    }


def pointer_arguments(compiled: Compiled, a: Scaled, b: Scaled, d: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of a kernel that takes pointers."""
    given = {
        "a_ptr": a.codes,
        "a_sf_ptr": a.sf,
        "b_ptr": b.codes,
        "b_sf_ptr": b.sf,
        "d_ptr": d,
        "m": d.shape[0],
        "n": d.shape[1],
        "k": a.values.shape[1],
        "a_stride": a.codes.shape[1],
        "b_stride": b.codes.shape[1],
        "d_stride": d.stride(0),
    }
    return {name: given[name] for name, _ in compiled.signature}


def mma_of(formats: tuple[str, str, int]) -> str:
    """Return the Blackwell instruction that a product of these formats must be."""
    a, b, gran_k = formats
    if (a, b) == ("e2m1", "e2m1"):
        return "kind::mxf4nvf4.block_scale.block16" if gran_k == 16 else "kind::mxf4.block_scale.block32"
    return "kind::mxf8f6f4.block_scale.block32"


@pytest.mark.parametrize("formats", FORMATS, ids=name_of)
@pytest.mark.parametrize(("capability", "mma"), [(100, "tcgen05.mma"), (90, "wgmma.mma_async")])
def test_a_product_through_pointers_is_exact(formats: tuple[str, str, int], capability: int, mma: str) -> None:
    tiles = Tiles(m=200, n=136, k=384)
    compiled = through_pointers(scaled_kernels.scaled_matmul, tiles, formats, torch.float32, capability=capability)
    assert mma in compiled.ptx
    assert capability == 90 or mma_of(formats) in compiled.ptx
    a, b = operands(tiles, formats, seed=1)
    wide_d = torch.full((tiles.m, tiles.n + 8), 7.0)
    d = wide_d[:, : tiles.n]
    report = run(compiled, tiles.grid, pointer_arguments(compiled, a, b, d))
    assert torch.equal(d, rounded(a.values @ b.values.T, torch.float32))
    assert (wide_d[:, tiles.n :] == 7).all()
    assert report.mmas > 0
    assert {finding.kind for finding in report.findings} <= {"uninitialised"}  # rows past the edge, of no use


@pytest.mark.parametrize("formats", FORMATS, ids=name_of)
@pytest.mark.parametrize("capability", [100, 90])
def test_a_product_through_maps_that_the_kernel_makes_is_exact(formats: tuple[str, str, int], capability: int) -> None:
    tiles = Tiles(m=160, n=136, k=256, block_m=128, block_n=64)
    kernel = scaled_kernels.scaled_matmul_device_descriptors
    compiled = through_pointers(kernel, tiles, formats, torch.bfloat16, capability=capability)
    assert "tensormap.replace" in compiled.ptx
    assert compiled.scratch_bytes > 0
    a, b = operands(tiles, formats, seed=2)
    d = torch.full((tiles.m, tiles.n), 7.0, dtype=torch.bfloat16)
    report = run(compiled, tiles.grid, pointer_arguments(compiled, a, b, d))
    assert torch.equal(d, rounded(a.values @ b.values.T, torch.bfloat16))
    assert report.tma_bytes > 0


@pytest.mark.parametrize("formats", FORMATS, ids=name_of)
def test_a_product_through_maps_of_the_host_is_exact(formats: tuple[str, str, int]) -> None:
    tiles = Tiles(m=256, n=128, k=512, block_k=256)
    compiled = through_maps(scaled_kernels.scaled_matmul_host_descriptors, tiles, formats, {})
    assert "tcgen05.cp" in compiled.ptx
    a, b = operands(tiles, formats, seed=3)
    d = torch.zeros(tiles.m, tiles.n, dtype=torch.bfloat16)
    run(compiled, (tiles.grid[0] * tiles.grid[1],), map_arguments(a, b, d))
    assert torch.equal(d, rounded(a.values @ b.values.T, torch.bfloat16))


def test_a_larger_product_is_exact() -> None:
    tiles = Tiles(m=512, n=512, k=2048, block_k=256)
    compiled = through_maps(scaled_kernels.scaled_matmul_persistent, tiles, NVFP4, {"SPECIALIZE": True})
    a, b = operands(tiles, NVFP4, seed=9)
    d = torch.zeros(tiles.m, tiles.n, dtype=torch.bfloat16)
    run(compiled, (4,), map_arguments(a, b, d))
    assert torch.equal(d, rounded(a.values @ b.values.T, torch.bfloat16))


@pytest.mark.parametrize("formats", [NVFP4, MXFP8, ("e4m3", "e2m1", 32)], ids=name_of)
@pytest.mark.parametrize("specialize", [False, True])
def test_a_persistent_product_with_roles_is_exact(formats: tuple[str, str, int], *, specialize: bool) -> None:
    tiles = Tiles(m=384, n=256, k=512, block_k=256 if formats == NVFP4 else 128)
    compiled = through_maps(scaled_kernels.scaled_matmul_persistent, tiles, formats, {"SPECIALIZE": specialize})
    assert compiled.num_threads == (256 if specialize else 128)
    a, b = operands(tiles, formats, seed=4)
    d = torch.zeros(tiles.m, tiles.n, dtype=torch.bfloat16)
    run(compiled, (2,), map_arguments(a, b, d))
    assert torch.equal(d, rounded(a.values @ b.values.T, torch.bfloat16))


@pytest.mark.parametrize(
    "tiles",
    [
        Tiles(m=128, n=64, k=128, block_n=64, stages=1),
        Tiles(m=128, n=256, k=512, block_n=256, block_k=256, stages=3),
        Tiles(m=256, n=32, k=768, block_m=256, block_n=32, block_k=256, stages=4),
        Tiles(m=1, n=1, k=128),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_warps", [4, 8])
def test_tiles_stages_and_warps_change_nothing(tiles: Tiles, num_warps: int) -> None:
    compiled = through_pointers(scaled_kernels.scaled_matmul, tiles, NVFP4, torch.float32, num_warps=num_warps)
    a, b = operands(tiles, NVFP4, seed=5)
    d = torch.full((tiles.m, tiles.n), 7.0)
    run(compiled, tiles.grid, pointer_arguments(compiled, a, b, d))
    assert torch.equal(d, rounded(a.values @ b.values.T, torch.float32))


@pytest.mark.parametrize("formats", FORMATS, ids=name_of)
@pytest.mark.parametrize("numerics", ["exact", "hardware"])
def test_wide_values_are_within_the_accumulators_error(formats: tuple[str, str, int], numerics: str) -> None:
    tiles = Tiles(m=128, n=128, k=512)
    compiled = through_pointers(scaled_kernels.scaled_matmul, tiles, formats, torch.float32)
    a, b = operands(tiles, formats, seed=6, wide=True)
    d = torch.zeros(tiles.m, tiles.n)
    run(compiled, tiles.grid, pointer_arguments(compiled, a, b, d), numerics=numerics)
    magnitude = np.abs(a.values) @ np.abs(b.values).T
    error = np.abs(to_float64(d) - a.values @ b.values.T)
    # An MMA adds 32 or 64 products to FP32: rounded once for each, or cut off 25 bits below the largest product.
    steps = tiles.k // 32
    assert (error <= magnitude * steps * 2.0**-24).all()
    assert error.max() > 0


@pytest.mark.parametrize("case", ["zeros", "nan scale", "nan code", "infinite code", "largest"])
def test_edges_of_the_formats(case: str) -> None:
    formats = {"nan code": MXFP8, "infinite code": ("e5m2", "e4m3", 32)}.get(case, NVFP4)
    tiles = Tiles(m=128, n=128, k=128)
    compiled = through_pointers(scaled_kernels.scaled_matmul, tiles, formats, torch.float32)
    a, b = operands(tiles, formats, seed=7)
    codes, sf = a.codes.view(torch.uint8), a.sf.view(torch.uint8)
    expected = a.values @ b.values.T
    if case == "zeros":
        codes.zero_()
        expected = np.zeros_like(expected)
    elif case == "nan scale":
        sf[5, 2] = 0x7F
        expected[5] = np.nan
    elif case == "nan code":
        codes[9, 100] = 0x7F
        expected[9] = np.nan
    elif case == "infinite code":
        codes[3, 50] = 0x7C
        signs = np.sign(b.values[:, 50])
        expected[3] = np.where(signs == 0, np.nan, np.where(signs > 0, np.inf, -np.inf))
    else:  # 6 x 448 in every place: sums of the format's largest products
        codes.fill_(0x77)
        sf.fill_(0x7E)
        expected = np.full((tiles.m, tiles.k), 6.0 * 448) @ b.values.T
    d = torch.zeros(tiles.m, tiles.n)
    run(compiled, tiles.grid, pointer_arguments(compiled, a, b, d))
    np.testing.assert_array_equal(d.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("completion", ["lazy", "eager", 0.05])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_order_of_completion_changes_or_accuses_it(completion: str | float, seed: int) -> None:
    tiles = Tiles(m=256, n=128, k=512, block_k=256)
    compiled = through_maps(scaled_kernels.scaled_matmul_persistent, tiles, NVFP4, {"SPECIALIZE": True})
    a, b = operands(tiles, NVFP4, seed=8)
    d = torch.zeros(tiles.m, tiles.n, dtype=torch.bfloat16)
    report = run(compiled, (1,), map_arguments(a, b, d), seed=seed, completion=completion)
    assert torch.equal(d, rounded(a.values @ b.values.T, torch.bfloat16))
    assert [finding for finding in report.findings if finding.severity == "error"] == []
