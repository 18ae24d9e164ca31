"""Kernels that choose instructions themselves: CTA pairs, multicast, tensor-memory shapes, operands in registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.blackwell import (
    TensorMemoryLayout,
    TensorMemoryScalesLayout,
    allocate_tensor_memory,
    tcgen05_commit,
    tcgen05_copy,
    tcgen05_mma,
    tcgen05_mma_barrier_count,
    tcgen05_mma_scaled,
    tma,
)
from triton.experimental.gluon.language.nvidia.hopper import (
    cluster,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@gluon.jit
def pair_matmul(a_map, b_map, d_map, k, NUM_STAGES: gl.constexpr, MULTICAST: gl.constexpr):
    """D = A @ B^T by CTA pairs (one MMA over both), operands through a ring of stages."""
    BLOCK_M: gl.constexpr = a_map.block_type.shape[0]
    BLOCK_K: gl.constexpr = a_map.block_type.shape[1]
    BLOCK_N: gl.constexpr = b_map.block_type.shape[0]
    d_cga: gl.constexpr = d_map.layout.cga_layout
    row = gl.program_id(0) * BLOCK_M
    column = gl.program_id(1) * BLOCK_N
    a_smem = gl.allocate_shared_memory(a_map.dtype, [NUM_STAGES, BLOCK_M, BLOCK_K], a_map.layout)
    b_smem = gl.allocate_shared_memory(b_map.dtype, [NUM_STAGES, BLOCK_N, BLOCK_K], b_map.layout)
    accum_layout: gl.constexpr = TensorMemoryLayout(
        [128, BLOCK_N // (gl.num_ctas() // 2 if MULTICAST else 1)], col_stride=1, cga_layout=d_cga, two_ctas=True
    )
    accum = allocate_tensor_memory(gl.float32, [BLOCK_M, BLOCK_N], accum_layout)
    full = mbarrier.allocate_mbarrier(batch=NUM_STAGES, two_ctas=True)
    empty = mbarrier.allocate_mbarrier(batch=NUM_STAGES)
    num_commits: gl.constexpr = tcgen05_mma_barrier_count([a_smem, b_smem], MULTICAST, True)
    for slot in gl.static_range(NUM_STAGES):
        mbarrier.init(full.index(slot), 1)
        mbarrier.init(empty.index(slot), num_commits)
    # The compiler's own barrier is relaxed, and its word for tcgen05.alloc lies where another CTA's copy arrives.
    cluster.barrier()
    num_steps = k // BLOCK_K
    for step in range(num_steps):
        stage = step % NUM_STAGES
        turn = step // NUM_STAGES
        mbarrier.wait(empty.index(stage), (turn & 1) ^ 1, deps=[a_smem, b_smem])
        mbarrier.expect(full.index(stage), a_map.nbytes_per_cta + b_map.nbytes_per_cta)
        tma.async_load(a_map, [row, step * BLOCK_K], full.index(stage), a_smem.index(stage), multicast=MULTICAST)
        tma.async_load(b_map, [column, step * BLOCK_K], full.index(stage), b_smem.index(stage), multicast=MULTICAST)
        mbarrier.wait(full.index(stage), turn & 1, deps=[a_smem, b_smem])
        tcgen05_mma(
            a_smem.index(stage),
            b_smem.index(stage).permute((1, 0)),
            accum,
            use_acc=step != 0,
            multicast=MULTICAST,
            mbarriers=[empty.index(stage)],
        )
    mbarrier.wait(empty.index((num_steps - 1) % NUM_STAGES), ((num_steps - 1) // NUM_STAGES) & 1, deps=[a_smem, b_smem])
    d = accum.load().to(d_map.dtype)
    d_smem = gl.allocate_shared_memory(d_map.dtype, d_map.block_type.shape, d_map.layout)
    d_smem.store(d)
    fence_async_shared()
    tma.async_store(d_map, [row, column], d_smem)
    tma.store_wait(0)
    cluster.barrier()
    for slot in gl.static_range(NUM_STAGES):
        mbarrier.invalidate(full.index(slot))
        mbarrier.invalidate(empty.index(slot))


@gluon.jit
def _scales_in_rows(packed, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """View blocks of 128 x 4 scale factors, each [32, 4, 4] (row % 32, row / 32, column), as [ROWS, COLUMNS]."""
    blocks = packed.reshape((packed.shape[1], packed.shape[2], 32, 4, 4))
    return blocks.permute((0, 3, 2, 1, 4)).reshape((ROWS, COLUMNS))


@gluon.jit
def pair_scaled_matmul(
    a_map,
    a_sf_map,
    b_map,
    b_sf_map,
    d_map,
    k,
    A_FORMAT: gl.constexpr,
    B_FORMAT: gl.constexpr,
    GRAN_K: gl.constexpr,
    BLOCK_K: gl.constexpr,
    NUM_STAGES: gl.constexpr,
):
    """Block-scaled D = A @ B^T by CTA pairs; scale factors go from shared to tensor memory by copies."""
    A_PER_BYTE: gl.constexpr = 2 if A_FORMAT == "e2m1" else 1
    B_PER_BYTE: gl.constexpr = 2 if B_FORMAT == "e2m1" else 1
    BLOCK_M: gl.constexpr = d_map.block_type.shape[0]
    BLOCK_N: gl.constexpr = d_map.block_type.shape[1]
    SF_K: gl.constexpr = BLOCK_K // GRAN_K
    row = gl.program_id(0) * BLOCK_M
    column = gl.program_id(1) * BLOCK_N
    a_smem = gl.allocate_shared_memory(a_map.dtype, [NUM_STAGES] + a_map.block_type.shape, a_map.layout)  # noqa: RUF005
    b_smem = gl.allocate_shared_memory(b_map.dtype, [NUM_STAGES] + b_map.block_type.shape, b_map.layout)  # noqa: RUF005
    a_sf_smem = gl.allocate_shared_memory(a_sf_map.dtype, [NUM_STAGES] + a_sf_map.block_type.shape, a_sf_map.layout)  # noqa: RUF005
    b_sf_smem = gl.allocate_shared_memory(b_sf_map.dtype, [NUM_STAGES] + b_sf_map.block_type.shape, b_sf_map.layout)  # noqa: RUF005
    pair: gl.constexpr = gl.num_ctas() == 2
    accum_layout: gl.constexpr = TensorMemoryLayout(
        [128, BLOCK_N], col_stride=1, cga_layout=[[1, 0]] if pair else [], two_ctas=pair
    )
    accum = allocate_tensor_memory(gl.float32, [BLOCK_M, BLOCK_N], accum_layout)
    a_sf_layout: gl.constexpr = TensorMemoryScalesLayout(cga_layout=[[1, 0]] if pair else [])
    b_sf_layout: gl.constexpr = TensorMemoryScalesLayout(cga_layout=[[0, 0]] if pair else [])
    a_sf = allocate_tensor_memory(a_sf_map.dtype, [BLOCK_M, SF_K], a_sf_layout)
    b_sf = allocate_tensor_memory(b_sf_map.dtype, [BLOCK_N, SF_K], b_sf_layout)
    full = mbarrier.allocate_mbarrier(batch=NUM_STAGES, two_ctas=pair)
    empty = mbarrier.allocate_mbarrier(batch=NUM_STAGES)
    for slot in gl.static_range(NUM_STAGES):
        mbarrier.init(full.index(slot), 1)
        mbarrier.init(empty.index(slot), 1)
    num_steps = k // BLOCK_K
    for step in range(num_steps):
        stage = step % NUM_STAGES
        turn = step // NUM_STAGES
        mbarrier.wait(empty.index(stage), (turn & 1) ^ 1)
        mbarrier.expect(
            full.index(stage),
            a_map.nbytes_per_cta + b_map.nbytes_per_cta + a_sf_map.nbytes_per_cta + b_sf_map.nbytes_per_cta,
        )
        tma.async_load(a_map, [row, step * (BLOCK_K // A_PER_BYTE)], full.index(stage), a_smem.index(stage))
        tma.async_load(b_map, [column, step * (BLOCK_K // B_PER_BYTE)], full.index(stage), b_smem.index(stage))
        sf_block = step * (SF_K // 4)
        tma.async_load(a_sf_map, [0, row // 128, sf_block, 0, 0], full.index(stage), a_sf_smem.index(stage))
        tma.async_load(
            b_sf_map, [0, column // 128, sf_block, 0, 0], full.index(stage), b_sf_smem.index(stage), multicast=pair
        )
        mbarrier.wait(full.index(stage), turn & 1)
        tcgen05_copy(_scales_in_rows(a_sf_smem.index(stage), BLOCK_M, SF_K), a_sf)
        tcgen05_copy(_scales_in_rows(b_sf_smem.index(stage), BLOCK_N, SF_K), b_sf)
        tcgen05_mma_scaled(
            a_smem.index(stage),
            b_smem.index(stage).permute((1, 0)),
            accum,
            a_sf,
            b_sf,
            A_FORMAT,
            B_FORMAT,
            use_acc=step != 0,
        )
        tcgen05_commit(empty.index(stage))
    mbarrier.wait(empty.index((num_steps - 1) % NUM_STAGES), ((num_steps - 1) // NUM_STAGES) & 1)
    d_smem = gl.allocate_shared_memory(d_map.dtype, d_map.block_type.shape, d_map.layout)
    d_smem.store(accum.load().to(d_map.dtype))
    fence_async_shared()
    tma.async_store(d_map, [row, column], d_smem)
    tma.store_wait(0)
    for slot in gl.static_range(NUM_STAGES):
        mbarrier.invalidate(full.index(slot))
        mbarrier.invalidate(empty.index(slot))


@gluon.jit
def through_tensor_memory(
    x_ptr, y_ptr, ROWS: gl.constexpr, COLUMNS: gl.constexpr, STORE_SHAPE: gl.constexpr, LOAD_SHAPE: gl.constexpr
):
    """y = x by way of tensor memory, stored in one shape and loaded in another, plus one for each element loaded."""
    memory: gl.constexpr = TensorMemoryLayout([ROWS, COLUMNS], col_stride=1)
    tmem = allocate_tensor_memory(x_ptr.dtype.element_ty, [ROWS, COLUMNS], memory)
    store_layout: gl.constexpr = tmem.get_reg_layout(instr_variant=STORE_SHAPE)
    load_layout: gl.constexpr = tmem.get_reg_layout(instr_variant=LOAD_SHAPE)
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, store_layout))
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, store_layout))
    tmem.store(gl.load(x_ptr + rows[:, None] * COLUMNS + columns[None, :]))
    y = tmem.load(load_layout) + 1
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, load_layout))
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, load_layout))
    gl.store(y_ptr + rows[:, None] * COLUMNS + columns[None, :], y)


@gluon.jit
def matmul_from_tensor_memory(
    a_ptr, b_map, d_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, A_IN_TENSOR_MEMORY: gl.constexpr
):
    """One tile of D = A @ B^T whose A goes through registers to tensor memory (or to shared memory)."""
    registers: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    rows = gl.arange(0, M, gl.SliceLayout(1, registers))
    inner = gl.arange(0, K, gl.SliceLayout(0, registers))
    a = gl.load(a_ptr + rows[:, None] * K + inner[None, :])
    b_smem = gl.allocate_shared_memory(b_map.dtype, b_map.block_type.shape, b_map.layout)
    loaded = mbarrier.allocate_mbarrier()
    done = mbarrier.allocate_mbarrier()
    mbarrier.init(loaded, 1)
    mbarrier.init(done, 1)
    mbarrier.expect(loaded, b_map.nbytes_per_cta)
    tma.async_load(b_map, [0, 0], loaded, b_smem)
    accum = allocate_tensor_memory(gl.float32, [M, N], TensorMemoryLayout([M, N], col_stride=1))
    mbarrier.wait(loaded, 0)
    if A_IN_TENSOR_MEMORY:
        a_tmem = allocate_tensor_memory(b_map.dtype, [M, K], TensorMemoryLayout([M, K], col_stride=1))
        a_tmem.store(gl.convert_layout(a, a_tmem.get_reg_layout()))
        tcgen05_mma(a_tmem, b_smem.permute((1, 0)), accum, use_acc=False, mbarriers=[done])
    else:
        a_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([M, K], b_map.dtype)
        a_smem = gl.allocate_shared_memory(b_map.dtype, [M, K], a_layout, a)
        fence_async_shared()
        tcgen05_mma(a_smem, b_smem.permute((1, 0)), accum, use_acc=False, mbarriers=[done])
    mbarrier.wait(done, 0)
    mbarrier.invalidate(loaded)
    mbarrier.invalidate(done)
    d_layout: gl.constexpr = accum.get_reg_layout()
    rows = gl.arange(0, M, gl.SliceLayout(1, d_layout))
    columns = gl.arange(0, N, gl.SliceLayout(0, d_layout))
    gl.store(d_ptr + rows[:, None] * N + columns[None, :], accum.load(d_layout))


@gluon.jit
def warpgroup_matmul(a_ptr, b_map, d_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, INSTR_N: gl.constexpr):
    """One tile of D = A @ B^T by wgmma with A in registers, two MMAs in flight."""
    registers: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0],
        warps_per_cta=[gl.num_warps(), 1],
        instr_shape=[16, INSTR_N, 256 // b_map.dtype.primitive_bitwidth],
    )
    operand: gl.constexpr = gl.DotOperandLayout(
        operand_index=0, parent=registers, k_width=32 // b_map.dtype.primitive_bitwidth
    )
    HALF: gl.constexpr = K // 2
    rows = gl.arange(0, M, gl.SliceLayout(1, operand))
    inner = gl.arange(0, HALF, gl.SliceLayout(0, operand))
    b_smem = gl.allocate_shared_memory(b_map.dtype, [2, N, HALF], b_map.layout)
    loaded = mbarrier.allocate_mbarrier()
    mbarrier.init(loaded, 1)
    mbarrier.expect(loaded, 2 * b_map.nbytes_per_cta)
    tma.async_load(b_map, [0, 0], loaded, b_smem.index(0))
    tma.async_load(b_map, [0, HALF], loaded, b_smem.index(1))
    first = gl.load(a_ptr + rows[:, None] * K + inner[None, :])
    second = gl.load(a_ptr + rows[:, None] * K + HALF + inner[None, :])
    accum = gl.zeros([M, N], gl.float32, registers)
    mbarrier.wait(loaded, 0)
    accum = warpgroup_mma(first, b_smem.index(0).permute((1, 0)), accum, use_acc=False, is_async=True)
    accum = warpgroup_mma(second, b_smem.index(1).permute((1, 0)), accum, is_async=True)
    accum, first, second = warpgroup_mma_wait(num_outstanding=0, deps=[accum, first, second])
    mbarrier.invalidate(loaded)
    rows = gl.arange(0, M, gl.SliceLayout(1, registers))
    columns = gl.arange(0, N, gl.SliceLayout(0, registers))
    gl.store(d_ptr + rows[:, None] * N + columns[None, :], accum)
