"""Matrix products and attention as a user of Triton writes them."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    a_ptr,
    b_ptr,
    d_ptr,
    m,
    n,
    k,
    a_stride,
    b_stride,
    d_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    B_IS_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUM: tl.constexpr,
):
    """D[m, n] = A[m, k] @ B, where B is stored as [k, n], or as [n, k] (B_IS_COLUMNS)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    a_at = a_ptr + rows[:, None] * a_stride + inner[None, :]
    if B_IS_COLUMNS:
        b_at = b_ptr + columns[None, :] * b_stride + inner[:, None]
    else:
        b_at = b_ptr + inner[:, None] * b_stride + columns[None, :]
    accum = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACCUM)
    for at in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        a = tl.load(a_at, mask=(rows[:, None] < m) & (inner[None, :] < k - at), other=0.0)
        b = tl.load(b_at, mask=(columns[None, :] < n) & (inner[:, None] < k - at), other=0.0)
        accum = tl.dot(a, b, accum, input_precision=PRECISION, out_dtype=ACCUM)
        a_at += BLOCK_K
        b_at += BLOCK_K if B_IS_COLUMNS else BLOCK_K * b_stride
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(d_ptr + rows[:, None] * d_stride + columns[None, :], accum.to(d_ptr.dtype.element_ty), mask=inside)


@triton.jit
def matmul_persistent(
    a_map,
    b_map,
    d_map,
    m,
    n,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    SPECIALIZE: tl.constexpr,
):
    """D[m, n] = A[m, k] @ B[n, k]^T, relu applied, through tensor maps, each program over several tiles."""
    tiles_n = tl.cdiv(n, BLOCK_N)
    num_tiles = tl.cdiv(m, BLOCK_M) * tiles_n
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), warp_specialize=SPECIALIZE):
        row = tile // tiles_n * BLOCK_M
        column = tile % tiles_n * BLOCK_N
        accum = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in tl.range(0, tl.cdiv(k, BLOCK_K), num_stages=STAGES):
            a = a_map.load([row, step * BLOCK_K])
            b = b_map.load([column, step * BLOCK_K])
            accum = tl.dot(a, b.T, accum)
        d_map.store([row, column], tl.maximum(accum, 0.0).to(d_map.dtype))


@triton.jit
def matmul_split_k(
    a_map,
    b_map,
    d_map,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Add A[m, k] @ B[n, k]^T to D, each program of axis 2 a share of k, by reducing tensor-map stores."""
    row = tl.program_id(0) * BLOCK_M
    column = tl.program_id(1) * BLOCK_N
    share = k // tl.num_programs(2)
    start = tl.program_id(2) * share
    accum = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for at in tl.range(start, start + share, BLOCK_K, num_stages=STAGES):
        accum = tl.dot(a_map.load([row, at]), b_map.load([column, at]).T, accum)
    d_map.atomic_add([row, column], accum.to(d_map.dtype))


@triton.jit
def gathered_matmul(
    x_map,
    w_map,
    index_ptr,
    d_map,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows index[i] of X times W[n, k]^T: tokens of an expert, gathered by the tensor map, scattered back to row i."""
    first = tl.program_id(0) * BLOCK_M
    column = tl.program_id(1) * BLOCK_N
    index = tl.load(index_ptr + first + tl.arange(0, BLOCK_M))
    accum = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for at in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        accum = tl.dot(x_map.gather(index, at), w_map.load([column, at]).T, accum)
    d_map.scatter(accum.to(d_map.dtype), first + tl.arange(0, BLOCK_M), column)


@triton.jit
def attention(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    length,
    scale,
    HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    STAGES: tl.constexpr,
):
    """o = softmax(q @ k^T x scale) @ v for one head a program of axis 1, [heads, length, HEAD], online softmax."""
    at = tl.program_id(1) * length * HEAD
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inner = tl.arange(0, HEAD)
    others = tl.arange(0, BLOCK_KV)
    q = tl.load(q_ptr + at + rows[:, None] * HEAD + inner[None, :])
    largest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    accum = tl.zeros((BLOCK_Q, HEAD), tl.float32)
    for start in tl.range(0, length, BLOCK_KV, num_stages=STAGES):
        keys = tl.load(k_ptr + at + (start + others)[None, :] * HEAD + inner[:, None])
        scores = tl.dot(q, keys) * (scale * 1.4426950408889634)
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2(scores - new_largest[:, None])
        correction = tl.exp2(largest - new_largest)
        total = total * correction + tl.sum(p, 1)
        accum = accum * correction[:, None]
        values = tl.load(v_ptr + at + (start + others)[:, None] * HEAD + inner[None, :])
        accum = tl.dot(p.to(values.dtype), values, accum)
        largest = new_largest
    accum = accum / total[:, None]
    tl.store(o_ptr + at + rows[:, None] * HEAD + inner[None, :], accum.to(o_ptr.dtype.element_ty))
