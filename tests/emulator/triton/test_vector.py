"""Triton's kernels without matrix products, compiled by it for Blackwell and for Hopper, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.emulator.triton import vector_kernels
from tests.emulator.triton.compiled import compile_kernel
from tests.emulator.triton.operands import plain, rounded, to_float64
from tests.emulator.triton.running import run

pytestmark = pytest.mark.parametrize("capability", [100, 90])
U32 = (1 << 32) - 1


def launch(
    kernel: Any,
    capability: int,
    grid: tuple[int, ...],
    arguments: dict[str, tuple[str, Any]],
    constants: dict[str, Any],
    **options: Any,
) -> Any:
    """Compile and run: arguments by name, each with its Triton type; returns the report."""
    compiled = compile_kernel(
        kernel,
        {name: kind for name, (kind, _) in arguments.items()},
        constants,
        capability=capability,
        **options,
    )
    return run(compiled, grid, {name: value for name, (_, value) in arguments.items()})


def integers(shape: tuple[int, ...], rng: np.random.Generator, low: int = -(2**31), high: int = 2**31) -> torch.Tensor:
    """Return random int32."""
    return torch.from_numpy(rng.integers(low, high, shape).astype(np.int32))


@pytest.mark.parametrize(("columns", "num_warps"), [(1, 4), (100, 1), (777, 4), (1024, 8)])
def test_softmax(capability: int, columns: int, num_warps: int) -> None:
    x = plain((3, 1024), torch.bfloat16, np.random.default_rng(1), wide=True) * 4
    y = torch.full_like(x, 7)
    arguments = {"x_ptr": ("*bf16", x), "y_ptr": ("*bf16", y), "columns": ("i32:any", columns), "stride": ("i32", 1024)}
    launch(vector_kernels.softmax, capability, (3,), arguments, {"BLOCK": 1024}, num_warps=num_warps)
    given = to_float64(x)[:, :columns]
    numerator = np.exp(given - given.max(1, keepdims=True))
    expected = numerator / numerator.sum(1, keepdims=True)
    np.testing.assert_allclose(to_float64(y)[:, :columns], expected, rtol=2.0**-8 + 1e-5)
    assert (y[:, columns:] == 7).all()


def test_layer_norm(capability: int) -> None:
    rng = np.random.default_rng(2)
    rows, columns = 3, 700
    x, weight = plain((rows, columns), torch.float16, rng, wide=True), plain((columns,), torch.float32, rng, wide=True)
    bias, y = plain((columns,), torch.float32, rng, wide=True), torch.zeros(rows, columns, dtype=torch.float16)
    mean, rstd = torch.zeros(rows), torch.zeros(rows)
    arguments = {
        "x_ptr": ("*fp16", x),
        "weight_ptr": ("*fp32", weight),
        "bias_ptr": ("*fp32", bias),
        "y_ptr": ("*fp16", y),
        "mean_ptr": ("*fp32", mean),
        "rstd_ptr": ("*fp32", rstd),
        "columns": ("i32:any", columns),
        "eps": ("fp32", 1e-5),
    }
    launch(vector_kernels.layer_norm, capability, (rows,), arguments, {"BLOCK": 256})
    given = to_float64(x)
    expected_rstd = 1 / np.sqrt(given.var(1) + 1e-5)
    np.testing.assert_allclose(to_float64(mean), given.mean(1), atol=1e-6)
    np.testing.assert_allclose(to_float64(rstd), expected_rstd, rtol=1e-6)
    normal = (given - given.mean(1, keepdims=True)) * expected_rstd[:, None]
    np.testing.assert_allclose(to_float64(y), normal * to_float64(weight) + to_float64(bias), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("num_warps", [1, 4])
def test_reductions(capability: int, num_warps: int) -> None:
    rows, columns = 32, 64
    x = integers((rows, columns), np.random.default_rng(3))
    x[3, 7] = x[3, 40] = 2**31 - 1  # the first of equal ones is the place of the largest
    out, index = torch.zeros(3 * rows + 2 * columns, dtype=torch.int32), torch.zeros(rows + columns, dtype=torch.int32)
    arguments = {"x_ptr": ("*i32", x), "out_ptr": ("*i32", out), "index_ptr": ("*i32", index)}
    constants = {"ROWS": rows, "COLUMNS": columns}
    launch(vector_kernels.reductions, capability, (1,), arguments, constants, num_warps=num_warps)
    n = x.numpy()
    with np.errstate(over="ignore"):
        parts = [n.sum(1, dtype=np.int32), n.max(1), np.bitwise_xor.reduce(n, 1), n.sum(0, dtype=np.int32), n.min(0)]
    assert np.array_equal(out.numpy(), np.concatenate(parts))
    assert np.array_equal(index.numpy(), np.concatenate([n.argmax(1), n.argmin(0)]))


def test_scans_and_sorts(capability: int) -> None:
    rows, columns = 8, 128
    x = integers((rows, columns), np.random.default_rng(4))
    scan = torch.zeros(2, rows, columns, dtype=torch.int32)
    ordered, product = torch.zeros_like(x), torch.zeros_like(x)
    arguments = {
        "x_ptr": ("*i32", x),
        "scan_ptr": ("*i32", scan),
        "sorted_ptr": ("*i32", ordered),
        "product_ptr": ("*i32", product),
    }
    launch(vector_kernels.scan_and_sort, capability, (1,), arguments, {"ROWS": rows, "COLUMNS": columns})
    n = x.numpy()
    with np.errstate(over="ignore"):
        assert np.array_equal(scan[0].numpy(), n.cumsum(1, dtype=np.int32))
        assert np.array_equal(scan[1].numpy(), n[::-1].cumsum(0, dtype=np.int32)[::-1])
        assert np.array_equal(product.numpy(), n.cumprod(1, dtype=np.int32))
    assert np.array_equal(ordered.numpy(), -np.sort(-n.astype(np.int64), 1))


def test_transposes_and_gathers(capability: int) -> None:
    size, rng = 32, np.random.default_rng(5)
    x = plain((size, size), torch.float16, rng, wide=True)
    index = integers((size, size), rng, 0, size)
    y, z = torch.zeros_like(x), torch.zeros_like(x)
    arguments = {"x_ptr": ("*fp16", x), "index_ptr": ("*i32", index), "y_ptr": ("*fp16", y), "z_ptr": ("*fp16", z)}
    launch(vector_kernels.transpose_and_gather, capability, (1,), arguments, {"SIZE": size})
    assert torch.equal(y, x.T)
    assert torch.equal(z, x.gather(1, index.long()))


def test_histograms(capability: int) -> None:
    size, block, bins = 2000, 512, 64
    x = integers((size,), np.random.default_rng(6), 0, bins)
    x[:300] = 5
    counts, local = torch.ones(bins, dtype=torch.int32), torch.zeros(4, bins, dtype=torch.int32)
    arguments = {
        "x_ptr": ("*i32", x),
        "counts_ptr": ("*i32", counts),
        "local_ptr": ("*i32", local),
        "size": ("i32:any", size),
    }
    launch(vector_kernels.histogram, capability, (4,), arguments, {"BLOCK": block, "BINS": bins})
    assert torch.equal(counts, 1 + torch.bincount(x, minlength=bins).int())
    for share, found in zip(x.split(block), local, strict=True):
        assert torch.equal(found, torch.bincount(share, minlength=bins).int())


def test_atomics(capability: int) -> None:
    programs, block, slots = 4, 256, 32
    x = integers((programs * block,), np.random.default_rng(7), -7, 8)
    f32, f16, bf16 = (torch.zeros(slots, dtype=dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))
    i32 = torch.zeros(5, slots, dtype=torch.int32)
    i32[4] = -1
    lock, counter = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    arguments = {
        "x_ptr": ("*i32", x),
        "f32_ptr": ("*fp32", f32),
        "f16_ptr": ("*fp16", f16),
        "bf16_ptr": ("*bf16", bf16),
        "i32_ptr": ("*i32", i32),
        "lock_ptr": ("*i32", lock),
        "counter_ptr": ("*i32", counter),
    }
    launch(vector_kernels.atomics, capability, (programs,), arguments, {"BLOCK": block, "SLOTS": slots})
    n = x.numpy().reshape(-1, slots)
    sums = n.sum(0)
    assert all(np.array_equal(to_float64(found), sums) for found in (f32, f16, bf16))
    expected = [
        np.maximum(n.max(0), 0),
        np.minimum(n.min(0), 0),
        np.bitwise_xor.reduce(n, 0),
        np.bitwise_or.reduce(n, 0),
        np.bitwise_and.reduce(n, 0),
    ]
    assert np.array_equal(i32.numpy(), np.stack(expected))
    assert (int(counter), int(lock)) == (n.sum(), 0)


def test_fp8_quantisation(capability: int) -> None:
    rows, columns, block = 4, 256, 128
    x = plain((rows, columns), torch.bfloat16, np.random.default_rng(8), wide=True)
    x[1, :block] = 0
    codes = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
    sf = torch.zeros(rows, columns // block)
    arguments = {
        "x_ptr": ("*bf16", x),
        "codes_ptr": ("*fp8e4nv", codes),
        "sf_ptr": ("*fp32", sf),
        "columns": ("i32", columns),
    }
    launch(vector_kernels.quantize_fp8, capability, (rows, columns // block), arguments, {"BLOCK": block})
    blocks = x.float().view(rows, -1, block)
    largest = blocks.abs().amax(-1).clamp(min=1e-10)
    torch.testing.assert_close(sf, largest / 448, rtol=1e-6, atol=0)
    back = codes.float().view(rows, -1, block) * sf[..., None]
    assert ((back - blocks).abs() <= blocks.abs() / 15 + largest[..., None] * 2.0**-17).all()


def edge_floats(rng: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """Return floats of every exponent, halfway cases of narrow types, zeros, infinities and NaN."""
    numbers = rng.integers(0, 1 << 32, size, dtype=np.uint64).astype(np.uint32).view(np.float32)
    ties = (1 + rng.integers(0, 64, size // 4) / 64 + 2.0**-8).astype(np.float32) * np.float32(2) ** rng.integers(
        -20, 18, size // 4
    ).astype(np.float32)
    specials = np.array([0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 448, 464, 465, 57344, 61440, 1e-9], np.float32)
    numbers[: len(ties)] = ties
    numbers[-len(specials) :] = specials
    return numbers


def test_conversions_round_once_to_nearest_even(capability: int) -> None:
    size = 2048
    x = torch.from_numpy(edge_floats(np.random.default_rng(9), size))
    outputs = {
        "f16_ptr": ("*fp16", torch.zeros(size, dtype=torch.float16)),
        "bf16_ptr": ("*bf16", torch.zeros(size, dtype=torch.bfloat16)),
        "e4m3_ptr": ("*fp8e4nv", torch.zeros(size, dtype=torch.float8_e4m3fn)),
        "e5m2_ptr": ("*fp8e5", torch.zeros(size, dtype=torch.float8_e5m2)),
        "i32_ptr": ("*i32", torch.zeros(size, dtype=torch.int32)),
        "back_ptr": ("*fp32", torch.zeros(size)),
    }
    arguments = {"x_ptr": ("*fp32", x), **outputs}
    launch(vector_kernels.conversions, capability, (size // 256,), arguments, {"SIZE": 256})
    f16, bf16, e4m3, e5m2, i32, _ = (tensor for _, tensor in outputs.values())
    torch.testing.assert_close(f16, x.half(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(bf16, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(i32, torch.where(x.abs() < 1e9, x, 0.0).int(), rtol=0, atol=0)
    for narrow, largest in ((e4m3, 448.0), (e5m2, 57344.0)):
        saturated = x.clamp(-largest, largest)  # cvt.satfinite: infinities too; NaN stays
        torch.testing.assert_close(narrow.float(), saturated.to(narrow.dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_functions_are_within_their_documented_errors(capability: int) -> None:
    size = 1024
    rng = np.random.default_rng(10)
    x = torch.from_numpy(np.concatenate([rng.standard_normal(size - 64) * 3, rng.uniform(-2e5, 2e5, 64)])).float()
    y = torch.zeros(12, size)
    arguments = {"x_ptr": ("*fp32", x), "y_ptr": ("*fp32", y), "size": ("i32", size)}
    launch(vector_kernels.functions, capability, (size // 256,), arguments, {"BLOCK": 256})
    n = to_float64(x)
    with np.errstate(over="ignore", invalid="ignore"):
        sigmoid = 1 / (1 + np.exp(-n))
        expected = {
            0: (np.exp(n), 3e-6),
            1: (np.log2(np.abs(n) + 1), 1e-6),
            2: (np.sin(n), 1e-6),
            3: (sigmoid, 3e-6),
            4: (torch.erf(x.double()).numpy(), 1e-6),
            5: (1 / np.sqrt(np.abs(n) + 1), 1e-6),
            6: (np.tanh(n), 1e-6),
            7: ((np.abs(n) + 0.5) ** 1.75, 1e-5),
        }
    for row, (exact, error) in expected.items():
        kept = (np.abs(n) < 80) if row in (0, 3) else slice(None)  # beyond, exponentials leave FP32
        least = {1: 1.0, 2: 1e-2, 4: 1e-2, 6: 1e-2}.get(row, 0.0)  # near zero the error is absolute
        wrong = np.abs(to_float64(y[row])[kept] - exact[kept])
        assert (wrong <= error * np.maximum(np.abs(exact[kept]), least) + 1e-38).all(), row
    assert torch.equal(y[8], rounded(np.sqrt(np.abs(n)), torch.float32))
    assert torch.equal(y[9], rounded(n / to_float64(x.abs() + 3.0), torch.float32))
    assert torch.equal(y[10], (x * 8).round() + x.floor() + x.ceil())
    assert torch.equal(y[11], rounded(n * n + n, torch.float32))


def test_integer_arithmetic(capability: int) -> None:
    size, rng = 1024, np.random.default_rng(11)
    a, b = integers((size,), rng), integers((size,), rng)
    b[: size // 2] = integers((size // 2,), rng, 1, 50)
    b[b == 0] = 3
    a[:3] = torch.tensor([-(2**31) + 1, 2**31 - 1, 0])
    out = torch.zeros(12, size, dtype=torch.int64)
    arguments = {"a_ptr": ("*i32", a), "b_ptr": ("*i32", b), "out_ptr": ("*i64", out), "size": ("i32", size)}
    launch(vector_kernels.integers, capability, (size // 256,), arguments, {"BLOCK": 256})
    for i in range(size):
        assert out[:, i].tolist() == integer_results(int(a[i]), int(b[i])), i


def integer_results(a: int, b: int) -> list[int]:
    """Return what the kernel `integers` computes, in Python's integers; division truncates as C's does."""

    def signed(value: int, bits: int) -> int:
        return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)

    def quotient(p: int, q: int) -> int:
        return abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)

    ua, ub = a & U32, b & U32
    return [
        quotient(a, b),
        a - b * quotient(a, b),
        ua // ub,
        ua % ub,
        quotient(signed(a * 4294967291 + b, 64), signed(b * 3, 64)),
        ua * ub >> 32,
        signed(a << ub % 32, 32),
        a >> ub % 32,
        signed((a >> ub % 64) ^ b, 64),
        signed(min(a, b) + abs(a), 64),
        ua.bit_count() * 64 + (32 - ub.bit_length()),
        int(np.float32(a)),
    ]


def test_philox(capability: int) -> None:
    size, seed = 500, 0x1234_5678_9ABC
    out = torch.zeros(4, size, dtype=torch.int32)
    arguments = {"out_ptr": ("*i32", out), "seed": ("i64", seed), "size": ("i32:any", size)}
    launch(vector_kernels.random_numbers, capability, (2,), arguments, {"BLOCK": 256})
    expected = np.array([philox((at, 0, 0, 0), (seed & U32, seed >> 32)) for at in range(size)], np.uint64)
    assert np.array_equal(out.numpy().view(np.uint32), expected.astype(np.uint32).T)


def philox(counter: tuple[int, ...], key: tuple[int, int], rounds: int = 10) -> tuple[int, ...]:
    """Return four words of Philox 4x32 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3)."""
    a, b, c, d = counter
    first, second = key
    for _ in range(rounds):
        high_a, low_a = divmod(a * 0xD2511F53, 1 << 32)
        high_c, low_c = divmod(c * 0xCD9E8D57, 1 << 32)
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
        first, second = (first + 0x9E3779B9) & U32, (second + 0xBB67AE85) & U32
    return a, b, c, d


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.float16], ids=str)
def test_copies_through_maps_that_the_kernel_makes_end_at_the_tensors_edge(capability: int, dtype: torch.dtype) -> None:
    rows, columns = 50, 144
    memory = torch.full((rows + 8, columns), 9, dtype=dtype)
    x, y = plain((rows, columns), dtype, np.random.default_rng(12)), memory[:rows]
    kind = {torch.float32: "fp32", torch.int32: "i32", torch.float16: "fp16"}[dtype]
    arguments = {
        "x_ptr": (f"*{kind}", x),
        "y_ptr": (f"*{kind}", y),
        "rows": ("i32:any", rows),
        "columns": ("i32", columns),
    }
    report = launch(vector_kernels.copy_blocks, capability, (2, 3), arguments, {"ROWS": 32, "COLUMNS": 64})
    assert torch.equal(y, x + 1)
    assert (memory[rows:] == 9).all()
    assert report.tma_bytes > 0
