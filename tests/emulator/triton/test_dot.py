"""Triton's ordinary products and attention, compiled by it for Blackwell and for Hopper, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl

from tests.emulator.triton import dot_kernels
from tests.emulator.triton.compiled import Compiled, compile_kernel
from tests.emulator.triton.operands import plain, rounded, to_float64
from tests.emulator.triton.running import Described, run

BLACKWELL, HOPPER = 100, 90
TRITON_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.float32: "fp32",
    torch.int8: "i8",
    torch.int32: "i32",
}
KINDS = {
    torch.float16: ("kind::f16", "m64n64k16.f32.f16.f16"),
    torch.bfloat16: ("kind::f16", "m64n64k16.f32.bf16.bf16"),
    torch.float8_e4m3fn: ("kind::f8f6f4", "m64n64k32.f32.e4m3.e4m3"),
    torch.float8_e5m2: ("kind::f8f6f4", "m64n64k32.f32.e5m2.e5m2"),
    torch.float32: ("kind::tf32", "m64n64k8.f32.tf32.tf32"),
    torch.int8: ("kind::i8", "m64n64k32.s32.s8.s8"),
}


def matmul(
    dtype: torch.dtype,
    out: torch.dtype,
    *,
    b_is_columns: bool = True,
    block: tuple[int, int, int] = (128, 64, 64),
    stages: int = 3,
    precision: str = "tf32",
    **options: Any,
) -> Compiled:
    """Compile the product of matrices of `dtype`."""
    signature = {
        "a_ptr": f"*{TRITON_TYPES[dtype]}",
        "b_ptr": f"*{TRITON_TYPES[dtype]}",
        "d_ptr": f"*{TRITON_TYPES[out]}",
        "m": "i32:any",
        "n": "i32:any",
        "k": "i32:any",
        "a_stride": "i32",
        "b_stride": "i32",
        "d_stride": "i32",
    }
    constants = {
        "BLOCK_M": block[0],
        "BLOCK_N": block[1],
        "BLOCK_K": block[2],
        "STAGES": stages,
        "B_IS_COLUMNS": b_is_columns,
        "PRECISION": precision,
        "ACCUM": tl.int32 if dtype == torch.int8 else tl.float32,
    }
    return compile_kernel(dot_kernels.matmul, signature, constants, **options)


def product(
    compiled: Compiled,
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    *,
    b_is_columns: bool = True,
    block: tuple[int, int, int] = (128, 64, 64),
    k: int | None = None,
    **settings: Any,
) -> Any:
    """Run it into `d`; returns the report."""
    arguments = {
        "a_ptr": a,
        "b_ptr": b,
        "d_ptr": d,
        "m": d.shape[0],
        "n": d.shape[1],
        "k": k or a.shape[1],
        "a_stride": a.stride(0),
        "b_stride": b.stride(0),
        "d_stride": d.stride(0),
    }
    grid = (-(-d.shape[0] // block[0]), -(-d.shape[1] // block[1]))
    return run(compiled, grid, arguments, **settings)


@pytest.mark.parametrize("dtype", list(KINDS), ids=str)
@pytest.mark.parametrize("b_is_columns", [True, False])
@pytest.mark.parametrize("capability", [BLACKWELL, HOPPER])
def test_products_of_every_type_are_exact(dtype: torch.dtype, capability: int, *, b_is_columns: bool) -> None:
    rng = np.random.default_rng(1)
    m, n, k = 144, 80, 200  # edges of every tile, and a k that ends inside one
    out = torch.int32 if dtype == torch.int8 else torch.float32
    compiled = matmul(dtype, out, b_is_columns=b_is_columns, capability=capability)
    # On Hopper only 16-bit types take B from rows of k.
    if b_is_columns or dtype.itemsize == 2 or capability == BLACKWELL:
        assert KINDS[dtype][0 if capability == BLACKWELL else 1] in compiled.ptx
    a = plain((m, 208), dtype, rng)
    b = plain((n, 208) if b_is_columns else (208, n), dtype, rng)
    expected = to_float64(a)[:, :k] @ (to_float64(b)[:, :k].T if b_is_columns else to_float64(b)[:k])
    d = torch.zeros(m, n, dtype=out)
    product(compiled, a, b, d, b_is_columns=b_is_columns, k=k)
    assert np.array_equal(to_float64(d), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("capability", [BLACKWELL, HOPPER])
@pytest.mark.parametrize("numerics", ["exact", "hardware"])
def test_normal_values_are_within_the_accumulators_error(dtype: torch.dtype, capability: int, numerics: str) -> None:
    rng = np.random.default_rng(2)
    m, n, k = 128, 64, 512
    a, b = plain((m, k), dtype, rng, wide=True), plain((n, k), dtype, rng, wide=True)
    d = torch.zeros(m, n)
    product(matmul(dtype, torch.float32, capability=capability), a, b, d, numerics=numerics)
    # Terms are cut 2^-13 below the largest of an MMA by Hopper's FP8, 2^-23 or so by the others; sums round to FP32.
    relative = 2.0**-12 if (capability, numerics) == (HOPPER, "hardware") and dtype.itemsize == 1 else 2.0**-22
    magnitude = np.abs(to_float64(a)) @ np.abs(to_float64(b)).T
    error = np.abs(to_float64(d) - to_float64(a) @ to_float64(b).T)
    assert (error <= relative * magnitude).all()


@pytest.mark.parametrize("capability", [BLACKWELL, HOPPER])
def test_tf32_uses_ten_bits_of_fraction(capability: int) -> None:
    rng = np.random.default_rng(3)
    m, n, k = 128, 64, 128
    a, b = plain((m, k), torch.float32, rng, wide=True), plain((n, k), torch.float32, rng, wide=True)
    d = torch.zeros(m, n)
    product(matmul(torch.float32, torch.float32, capability=capability), a, b, d, numerics="exact")

    def cut(tensor: torch.Tensor) -> Any:
        bits = tensor.numpy().view(np.uint32) & np.uint32(0xFFFFE000)
        return bits.view(np.float32).astype(np.float64)

    magnitude = np.abs(to_float64(a)) @ np.abs(to_float64(b)).T
    assert (np.abs(to_float64(d) - cut(a) @ cut(b).T) <= magnitude * 2.0**-20).all()
    assert np.abs(to_float64(d) - to_float64(a) @ to_float64(b).T).max() > 1e-4


@pytest.mark.parametrize("capability", [BLACKWELL, HOPPER])
@pytest.mark.parametrize(
    ("dtype", "precision", "block", "instruction"),
    [
        (torch.float32, "ieee", (32, 32, 32), "fma.rn.f32"),
        (torch.bfloat16, "tf32", (16, 32, 32), "mma.sync.aligned.m16n8k16"),
        (torch.float16, "tf32", (16, 16, 64), "mma.sync.aligned.m16n8k16"),
    ],
    ids=["fma", "mma.sync bf16", "mma.sync f16"],
)
def test_small_tiles_take_other_instructions(
    capability: int, dtype: torch.dtype, precision: str, block: tuple[int, int, int], instruction: str
) -> None:
    rng = np.random.default_rng(4)
    compiled = matmul(dtype, torch.float32, block=block, precision=precision, stages=2, capability=capability)
    assert instruction in compiled.ptx
    a, b = plain((40, 96), dtype, rng), plain((48, 96), dtype, rng)
    d = torch.zeros(40, 48)
    product(compiled, a, b, d, block=block)
    assert np.array_equal(to_float64(d), to_float64(a) @ to_float64(b).T)


def persistent(
    dtype: torch.dtype, *, block: tuple[int, int, int] = (128, 128, 64), specialize: bool, **options: Any
) -> Compiled:
    """Compile the persistent product of tensor maps, D in bfloat16."""
    block_m, block_n, block_k = block
    kind = TRITON_TYPES[dtype]
    signature = {
        "a_map": f"tensordesc<{kind}[{block_m}, {block_k}]>",
        "b_map": f"tensordesc<{kind}[{block_n}, {block_k}]>",
        "d_map": f"tensordesc<bf16[{block_m}, {block_n}]>",
        "m": "i32",
        "n": "i32",
        "k": "i32",
    }
    constants = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "STAGES": 3, "SPECIALIZE": specialize}
    return compile_kernel(dot_kernels.matmul_persistent, signature, constants, **options)


PERSISTENT = [
    (BLACKWELL, False, 4, 1),
    (BLACKWELL, False, 8, 1),
    (BLACKWELL, True, 4, 1),
    (BLACKWELL, True, 8, 1),
    (BLACKWELL, False, 4, 2),
    (HOPPER, False, 4, 1),
    (HOPPER, False, 8, 1),
    (HOPPER, True, 8, 1),
    (HOPPER, False, 4, 2),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(("capability", "specialize", "num_warps", "num_ctas"), PERSISTENT)
def test_persistent_products_are_exact(
    dtype: torch.dtype, capability: int, num_warps: int, num_ctas: int, *, specialize: bool
) -> None:
    rng = np.random.default_rng(5)
    block = (128 * num_ctas, 128, 64)
    compiled = persistent(
        dtype, block=block, specialize=specialize, capability=capability, num_warps=num_warps, num_ctas=num_ctas
    )
    m, n, k = 300, 256, 320
    a, b = plain((m, k), dtype, rng), plain((n, k), dtype, rng)
    d = torch.zeros(m, n, dtype=torch.bfloat16)
    arguments = {"a_map": Described(a), "b_map": Described(b), "d_map": Described(d), "m": m, "n": n, "k": k}
    run(compiled, (2,), arguments)
    expected = np.maximum(to_float64(a) @ to_float64(b).T, 0)
    assert torch.equal(d, rounded(expected, torch.bfloat16))


@pytest.mark.parametrize("capability", [BLACKWELL, HOPPER])
def test_split_sums_meet_through_reducing_copies(capability: int) -> None:
    rng = np.random.default_rng(6)
    signature = {
        "a_map": "tensordesc<bf16[128, 64]>",
        "b_map": "tensordesc<bf16[64, 64]>",
        "d_map": "tensordesc<fp32[128, 64]>",
        "k": "i32",
    }
    constants = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "STAGES": 2}
    compiled = compile_kernel(dot_kernels.matmul_split_k, signature, constants, capability=capability)
    assert "cp.reduce.async.bulk.tensor" in compiled.ptx
    a, b = plain((256, 512), torch.bfloat16, rng), plain((64, 512), torch.bfloat16, rng)
    d = torch.ones(256, 64)
    run(compiled, (2, 1, 4), {"a_map": Described(a), "b_map": Described(b), "d_map": Described(d), "k": 512})
    assert np.array_equal(to_float64(d), 1 + to_float64(a) @ to_float64(b).T)


def test_rows_are_gathered_and_scattered_by_index() -> None:
    rng = np.random.default_rng(7)
    signature = {
        "x_map": "tensordesc<bf16[1, 64]>",
        "w_map": "tensordesc<bf16[64, 64]>",
        "index_ptr": "*i32",
        "d_map": "tensordesc<bf16[1, 64]>",
        "k": "i32",
    }
    constants = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "STAGES": 2}
    compiled = compile_kernel(dot_kernels.gathered_matmul, signature, constants)
    assert "tile::gather4" in compiled.ptx
    assert "tile::scatter4" in compiled.ptx
    x, w = plain((300, 128), torch.bfloat16, rng), plain((64, 128), torch.bfloat16, rng)
    index = torch.from_numpy(rng.integers(0, 300, 256).astype(np.int32))
    index[7] = 300  # one past the end reads as zeros
    d = torch.ones(250, 64, dtype=torch.bfloat16)  # rows past the end are not written
    arguments = {"x_map": Described(x), "w_map": Described(w), "index_ptr": index, "d_map": Described(d), "k": 128}
    run(compiled, (2,), arguments)
    rows = np.vstack([to_float64(x), np.zeros((1, 128))])[index.numpy()]
    assert torch.equal(d, rounded(rows @ to_float64(w).T, torch.bfloat16)[:250])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("capability", [BLACKWELL, HOPPER])
def test_attention_is_within_rounding(dtype: torch.dtype, capability: int) -> None:
    rng = np.random.default_rng(8)
    kind = TRITON_TYPES[dtype]
    signature = {f"{name}_ptr": f"*{kind}" for name in "qkvo"} | {"length": "i32", "scale": "fp32"}
    constants = {"HEAD": 64, "BLOCK_Q": 128, "BLOCK_KV": 64, "STAGES": 2}
    compiled = compile_kernel(dot_kernels.attention, signature, constants, capability=capability)
    q, k, v = (plain((2, 256, 64), dtype, rng, wide=True) for _ in range(3))
    o = torch.zeros_like(q)
    arguments = {"q_ptr": q, "k_ptr": k, "v_ptr": v, "o_ptr": o, "length": 256, "scale": 0.125}
    run(compiled, (2, 2), arguments)
    scores = to_float64(q) @ to_float64(k).transpose(0, 2, 1) * 0.125
    p = np.exp(scores - scores.max(-1, keepdims=True))
    expected = p @ to_float64(v) / p.sum(-1, keepdims=True)
    # p is rounded to the operands' type before the second product, and o at the end.
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    magnitude = p @ np.abs(to_float64(v)) / p.sum(-1, keepdims=True)
    assert (np.abs(to_float64(o) - expected) <= unit * (magnitude + np.abs(expected)) + 1e-5).all()
