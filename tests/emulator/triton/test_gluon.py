"""Kernels that name their instructions: CTA pairs, multicast, tensor-memory shapes, operands in registers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from triton.experimental.gluon import language as gl

from tests.emulator.triton import gluon_kernels
from tests.emulator.triton.compiled import compile_kernel
from tests.emulator.triton.operands import TRITON_CODES, TRITON_SF, plain, rounded, scaled, to_float64
from tests.emulator.triton.running import Described, run

Bases = list[list[int]]


def map_type(kind: str, shape: tuple[int, ...], bits: int, bases: Bases | None = None, swizzle: int = 128) -> str:
    """Return the type of a tensor map; `bases` says how CTAs of a cluster share the block."""
    layout = gl.NVMMASharedLayout(
        swizzle_byte_width=swizzle, element_bitwidth=bits, rank=len(shape), cga_layout=bases or []
    )
    return f"tensordesc<{kind}{list(shape)},{layout!r}>"


PAIRS = [
    # CTAs, then for A, B and D: block and how its halves lie in the cluster.
    (2, False, ((256, 64), [[1, 0]]), ((128, 64), [[1, 0]]), ((256, 128), [[1, 0]])),
    (2, False, ((256, 64), [[1, 0]]), ((64, 64), [[1, 0]]), ((256, 64), [[1, 0]])),
    # Two pairs: each loads its half of A and sends it to the other.
    (4, True, ((256, 64), [[1, 0], [0, 0]]), ((256, 64), [[1, 0], [2, 0]]), ((256, 256), [[1, 0], [0, 1]])),
]


@pytest.mark.parametrize(("num_ctas", "multicast", "a_block", "b_block", "d_block"), PAIRS)
def test_a_pair_of_ctas_shares_one_product(
    num_ctas: int, a_block: Any, b_block: Any, d_block: Any, *, multicast: bool
) -> None:
    signature = {
        "a_map": map_type("bf16", a_block[0], 16, a_block[1]),
        "b_map": map_type("bf16", b_block[0], 16, b_block[1]),
        "d_map": map_type("bf16", d_block[0], 16, d_block[1]),
        "k": "i32",
    }
    constants = {"NUM_STAGES": 3, "MULTICAST": multicast}
    compiled = compile_kernel(gluon_kernels.pair_matmul, signature, constants, num_ctas=num_ctas, gluon=True)
    assert "tcgen05.mma.cta_group::2" in compiled.ptx
    assert multicast == (".multicast::cluster [" in compiled.ptx and "complete_tx::bytes.multicast" in compiled.ptx)
    rng = np.random.default_rng(1)
    m, n, k = 512, 512, 320
    a, b = plain((m, k), torch.bfloat16, rng), plain((n, k), torch.bfloat16, rng)
    d = torch.zeros(m, n, dtype=torch.bfloat16)
    grid = (m // d_block[0][0], n // d_block[0][1])
    run(compiled, grid, {"a_map": Described(a), "b_map": Described(b), "d_map": Described(d), "k": k})
    assert torch.equal(d, rounded(to_float64(a) @ to_float64(b).T, torch.bfloat16))


@pytest.mark.parametrize(("element", "gran_k"), [("e2m1", 16), ("e2m1", 32), ("e4m3", 32), ("e5m2", 32)])
@pytest.mark.parametrize("num_ctas", [1, 2])
def test_a_scaled_product_copies_its_scale_factors(element: str, gran_k: int, num_ctas: int) -> None:
    per_byte = 2 if element == "e2m1" else 1
    block_m, block_n, block_k = 128 * num_ctas, 128, 128 * per_byte
    halves = [[1, 0]] if num_ctas == 2 else []
    codes, sf, columns = TRITON_CODES[element], TRITON_SF[gran_k], block_k // gran_k // 4

    def sf_map(rows: int, basis: list[int]) -> str:
        return map_type(sf, (1, rows // 128, columns, 2, 256), 8, [basis] if num_ctas == 2 else [], swizzle=0)

    signature = {
        "a_map": map_type(codes, (block_m, block_k // per_byte), 8, halves),
        "a_sf_map": sf_map(block_m, [0, 1, 0, 0, 0]),
        "b_map": map_type(codes, (block_n, block_k // per_byte), 8, halves),
        "b_sf_map": sf_map(block_n, [0, 0, 0, 0, 0]),
        "d_map": map_type("bf16", (block_m, block_n), 16, halves),
        "k": "i32",
    }
    constants = {"A_FORMAT": element, "B_FORMAT": element, "GRAN_K": gran_k, "BLOCK_K": block_k, "NUM_STAGES": 2}
    compiled = compile_kernel(gluon_kernels.pair_scaled_matmul, signature, constants, num_ctas=num_ctas, gluon=True)
    assert f"tcgen05.cp.cta_group::{num_ctas}" in compiled.ptx
    rng = np.random.default_rng(2)
    m, n, k = 256, 256, block_k * 3
    a, b = (scaled(rows, k, element, gran_k, rng, wide=False) for rows in (m, n))
    d = torch.zeros(m, n, dtype=torch.bfloat16)
    arguments = {
        "a_map": Described(a.codes),
        "a_sf_map": Described(a.blocked_sf),
        "b_map": Described(b.codes),
        "b_sf_map": Described(b.blocked_sf),
        "d_map": Described(d),
        "k": k,
    }
    run(compiled, (m // block_m, n // block_n), arguments)
    assert torch.equal(d, rounded(a.values @ b.values.T, torch.bfloat16))


SHAPES = ["32x32b", "16x64b", "16x128b", "16x256b", "32x32b_splitn"]


@pytest.mark.parametrize("store_shape", SHAPES)
@pytest.mark.parametrize("load_shape", SHAPES)
@pytest.mark.parametrize(("rows", "columns"), [(128, 64), (64, 32)])
def test_every_shape_reaches_the_same_cells(store_shape: str, load_shape: str, rows: int, columns: int) -> None:
    constants = {"ROWS": rows, "COLUMNS": columns, "STORE_SHAPE": store_shape, "LOAD_SHAPE": load_shape}
    signature = {"x_ptr": "*i32", "y_ptr": "*i32"}
    compiled = compile_kernel(gluon_kernels.through_tensor_memory, signature, constants, gluon=True)
    x = torch.from_numpy(np.random.default_rng(3).integers(-(2**31), 2**31 - 1, (rows, columns), dtype=np.int32))
    y = torch.zeros_like(x)
    run(compiled, (1,), {"x_ptr": x, "y_ptr": y})
    assert torch.equal(y, x + 1)


@pytest.mark.parametrize("m", [64, 128])
@pytest.mark.parametrize("in_tensor_memory", [False, True])
def test_operand_a_may_lie_in_tensor_memory(m: int, *, in_tensor_memory: bool) -> None:
    signature = {"a_ptr": "*bf16", "b_map": map_type("bf16", (64, 64), 16), "d_ptr": "*fp32"}
    constants = {"M": m, "N": 64, "K": 64, "A_IN_TENSOR_MEMORY": in_tensor_memory}
    compiled = compile_kernel(gluon_kernels.matmul_from_tensor_memory, signature, constants, gluon=True)
    rng = np.random.default_rng(4)
    a, b = plain((m, 64), torch.bfloat16, rng), plain((64, 64), torch.bfloat16, rng)
    d = torch.zeros(m, 64)
    run(compiled, (1,), {"a_ptr": a, "b_map": Described(b), "d_ptr": d})
    assert np.array_equal(to_float64(d), to_float64(a) @ to_float64(b).T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("m", "num_warps"), [(64, 4), (128, 8)])
def test_wgmma_takes_a_from_registers(dtype: torch.dtype, m: int, num_warps: int) -> None:
    kind = "bf16" if dtype == torch.bfloat16 else "fp16"
    signature = {"a_ptr": f"*{kind}", "b_map": map_type(kind, (64, 64), 16), "d_ptr": "*fp32"}
    constants = {"M": m, "N": 64, "K": 128, "INSTR_N": 64}
    compiled = compile_kernel(
        gluon_kernels.warpgroup_matmul, signature, constants, capability=90, num_warps=num_warps, gluon=True
    )
    rng = np.random.default_rng(5)
    a, b = plain((m, 128), dtype, rng), plain((64, 128), dtype, rng)
    d = torch.zeros(m, 64)
    run(compiled, (1,), {"a_ptr": a, "b_map": Described(b), "d_ptr": d})
    assert np.array_equal(to_float64(d), to_float64(a) @ to_float64(b).T)
