"""Block-scaled matrix products as a user of Triton writes them: the compiler under them decides on layouts."""

import triton
import triton.language as tl


@triton.jit
def scaled_matmul(
    a_ptr,
    a_sf_ptr,
    b_ptr,
    b_sf_ptr,
    d_ptr,
    m,
    n,
    k,
    a_stride,
    b_stride,
    d_stride,
    A_FORMAT: tl.constexpr,
    B_FORMAT: tl.constexpr,
    GRAN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """D[m, n] = A[m, k] @ B[n, k]^T through pointers; rows past m and n are masked, BLOCK_K divides k."""
    A_PER_BYTE: tl.constexpr = 2 if A_FORMAT == "e2m1" else 1
    B_PER_BYTE: tl.constexpr = 2 if B_FORMAT == "e2m1" else 1
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    a_k = tl.arange(0, BLOCK_K // A_PER_BYTE)
    b_k = tl.arange(0, BLOCK_K // B_PER_BYTE)
    sf_k = tl.arange(0, BLOCK_K // GRAN_K)
    num_sf = k // GRAN_K
    a_at = a_ptr + rows[:, None] * a_stride + a_k[None, :]
    b_at = b_ptr + columns[None, :] * b_stride + b_k[:, None]
    a_sf_at = a_sf_ptr + rows[:, None] * num_sf + sf_k[None, :]
    b_sf_at = b_sf_ptr + columns[:, None] * num_sf + sf_k[None, :]
    accum = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        a = tl.load(a_at, mask=rows[:, None] < m)
        b = tl.load(b_at, mask=columns[None, :] < n)
        a_sf = tl.load(a_sf_at, mask=rows[:, None] < m)
        b_sf = tl.load(b_sf_at, mask=columns[:, None] < n)
        accum = tl.dot_scaled(a, a_sf, A_FORMAT, b, b_sf, B_FORMAT, accum)
        a_at += BLOCK_K // A_PER_BYTE
        b_at += BLOCK_K // B_PER_BYTE
        a_sf_at += BLOCK_K // GRAN_K
        b_sf_at += BLOCK_K // GRAN_K
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(d_ptr + rows[:, None] * d_stride + columns[None, :], accum.to(d_ptr.dtype.element_ty), mask=inside)


@triton.jit
def scaled_matmul_device_descriptors(
    a_ptr,
    a_sf_ptr,
    b_ptr,
    b_sf_ptr,
    d_ptr,
    m,
    n,
    k,
    A_FORMAT: tl.constexpr,
    B_FORMAT: tl.constexpr,
    GRAN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """As scaled_matmul, with operands and result through tensor maps that the kernel itself fills in."""
    A_PER_BYTE: tl.constexpr = 2 if A_FORMAT == "e2m1" else 1
    B_PER_BYTE: tl.constexpr = 2 if B_FORMAT == "e2m1" else 1
    a_map = tl.make_tensor_descriptor(
        a_ptr, [m, k // A_PER_BYTE], [k // A_PER_BYTE, 1], [BLOCK_M, BLOCK_K // A_PER_BYTE]
    )
    b_map = tl.make_tensor_descriptor(
        b_ptr, [n, k // B_PER_BYTE], [k // B_PER_BYTE, 1], [BLOCK_N, BLOCK_K // B_PER_BYTE]
    )
    d_map = tl.make_tensor_descriptor(d_ptr, [m, n], [n, 1], [BLOCK_M, BLOCK_N])
    first_row = tl.program_id(0) * BLOCK_M
    first_column = tl.program_id(1) * BLOCK_N
    rows = first_row + tl.arange(0, BLOCK_M)
    columns = first_column + tl.arange(0, BLOCK_N)
    sf_k = tl.arange(0, BLOCK_K // GRAN_K)
    a_sf_at = a_sf_ptr + rows[:, None] * (k // GRAN_K) + sf_k[None, :]
    b_sf_at = b_sf_ptr + columns[:, None] * (k // GRAN_K) + sf_k[None, :]
    accum = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for at in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        a = a_map.load([first_row, at // A_PER_BYTE])
        b = b_map.load([first_column, at // B_PER_BYTE])
        a_sf = tl.load(a_sf_at + at // GRAN_K, mask=rows[:, None] < m)
        b_sf = tl.load(b_sf_at + at // GRAN_K, mask=columns[:, None] < n)
        accum = tl.dot_scaled(a, a_sf, A_FORMAT, b.T, b_sf, B_FORMAT, accum)
    d_map.store([first_row, first_column], accum.to(d_ptr.dtype.element_ty))


@triton.jit
def _packed_scales(sf_map, block_rows, at, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load [ROWS, COLUMNS] scale factors: blocks of 128 x 4, each as [32, 4, 4] bytes (row % 32, row / 32)."""
    packed = sf_map.load([0, block_rows, at, 0, 0])
    blocks = packed.reshape(ROWS // 128, COLUMNS // 4, 32, 4, 4)
    return blocks.trans(0, 3, 2, 1, 4).reshape(ROWS, COLUMNS)


@triton.jit
def scaled_matmul_host_descriptors(
    a_map,
    a_sf_map,
    b_map,
    b_sf_map,
    d_map,
    m,
    n,
    k,
    A_FORMAT: tl.constexpr,
    B_FORMAT: tl.constexpr,
    GRAN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Everything through tensor maps of the host, scale factors in blocks that the tensor core can copy as they are."""
    A_PER_BYTE: tl.constexpr = 2 if A_FORMAT == "e2m1" else 1
    B_PER_BYTE: tl.constexpr = 2 if B_FORMAT == "e2m1" else 1
    SF_K: tl.constexpr = BLOCK_K // GRAN_K
    tile = tl.program_id(0)
    tiles_n = tl.cdiv(n, BLOCK_N)
    tile_m = tile // tiles_n
    tile_n = tile % tiles_n
    accum = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in tl.range(0, tl.cdiv(k, BLOCK_K), num_stages=STAGES):
        a = a_map.load([tile_m * BLOCK_M, step * (BLOCK_K // A_PER_BYTE)])
        b = b_map.load([tile_n * BLOCK_N, step * (BLOCK_K // B_PER_BYTE)])
        a_sf = _packed_scales(a_sf_map, tile_m * (BLOCK_M // 128), step * (SF_K // 4), BLOCK_M, SF_K)
        b_sf = _packed_scales(b_sf_map, tile_n * (BLOCK_N // 128), step * (SF_K // 4), BLOCK_N, SF_K)
        accum = tl.dot_scaled(a, a_sf, A_FORMAT, b.T, b_sf, B_FORMAT, accum)
    d_map.store([tile_m * BLOCK_M, tile_n * BLOCK_N], accum.to(d_map.dtype))


@triton.jit
def scaled_matmul_persistent(
    a_map,
    a_sf_map,
    b_map,
    b_sf_map,
    d_map,
    m,
    n,
    k,
    A_FORMAT: tl.constexpr,
    B_FORMAT: tl.constexpr,
    GRAN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    SPECIALIZE: tl.constexpr,
):
    """As scaled_matmul_host_descriptors, each program over several tiles, its roles in warps of their own."""
    A_PER_BYTE: tl.constexpr = 2 if A_FORMAT == "e2m1" else 1
    B_PER_BYTE: tl.constexpr = 2 if B_FORMAT == "e2m1" else 1
    SF_K: tl.constexpr = BLOCK_K // GRAN_K
    tiles_n = tl.cdiv(n, BLOCK_N)
    num_tiles = tl.cdiv(m, BLOCK_M) * tiles_n
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), warp_specialize=SPECIALIZE):
        tile_m = tile // tiles_n
        tile_n = tile % tiles_n
        accum = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in tl.range(0, tl.cdiv(k, BLOCK_K), num_stages=STAGES):
            a = a_map.load([tile_m * BLOCK_M, step * (BLOCK_K // A_PER_BYTE)])
            b = b_map.load([tile_n * BLOCK_N, step * (BLOCK_K // B_PER_BYTE)])
            a_sf = _packed_scales(a_sf_map, tile_m * (BLOCK_M // 128), step * (SF_K // 4), BLOCK_M, SF_K)
            b_sf = _packed_scales(b_sf_map, tile_n * (BLOCK_N // 128), step * (SF_K // 4), BLOCK_N, SF_K)
            accum = tl.dot_scaled(a, a_sf, A_FORMAT, b.T, b_sf, B_FORMAT, accum)
        d_map.store([tile_m * BLOCK_M, tile_n * BLOCK_N], accum.to(d_map.dtype))
