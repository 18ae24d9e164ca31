"""Kernels without matrix products: normalisations, reductions, scans, sorts, atomics, conversions, random numbers."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def softmax(x_ptr, y_ptr, columns, stride, BLOCK: tl.constexpr):
    """Rows of y = softmax of rows of x, any number of columns up to BLOCK."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + at, mask=at < columns, other=-float("inf")).to(tl.float32)
    numerator = tl.exp(x - tl.max(x, axis=0))
    y = numerator / tl.sum(numerator, axis=0)
    tl.store(y_ptr + row * stride + at, y.to(y_ptr.dtype.element_ty), mask=at < columns)


@triton.jit
def layer_norm(x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, columns, eps, BLOCK: tl.constexpr):
    """Layer norm of rows in blocks of columns: two passes for the statistics, one for the result."""
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / columns
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
        centred = tl.where(at < columns, x - mean, 0.0)
        squares += centred * centred
    rstd = 1 / tl.sqrt(tl.sum(squares, axis=0) / columns + eps)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < columns
        x = tl.load(x_ptr + row * columns + at, mask=inside, other=0.0).to(tl.float32)
        y = (x - mean) * rstd * tl.load(weight_ptr + at, mask=inside) + tl.load(bias_ptr + at, mask=inside)
        tl.store(y_ptr + row * columns + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def reductions(x_ptr, out_ptr, index_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum, max, min, xor and the places of extremes, over both axes of an int32 matrix."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    x = tl.load(x_ptr + rows[:, None] * COLUMNS + columns[None, :])
    tl.store(out_ptr + rows, tl.sum(x, axis=1))
    tl.store(out_ptr + ROWS + rows, tl.max(x, axis=1))
    tl.store(out_ptr + 2 * ROWS + rows, tl.xor_sum(x, axis=1))
    tl.store(out_ptr + 3 * ROWS + columns, tl.sum(x, axis=0))
    tl.store(out_ptr + 3 * ROWS + COLUMNS + columns, tl.min(x, axis=0))
    tl.store(index_ptr + rows, tl.argmax(x, axis=1))
    tl.store(index_ptr + ROWS + columns, tl.argmin(x, axis=0))


@triton.jit
def scan_and_sort(x_ptr, scan_ptr, sorted_ptr, product_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Running sums (both directions), sorted rows, running products of rows."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    at = rows[:, None] * COLUMNS + columns[None, :]
    x = tl.load(x_ptr + at)
    tl.store(scan_ptr + at, tl.cumsum(x, axis=1))
    tl.store(scan_ptr + ROWS * COLUMNS + at, tl.cumsum(x, axis=0, reverse=True))
    tl.store(sorted_ptr + at, tl.sort(x, descending=True))
    tl.store(product_ptr + at, tl.cumprod(x, axis=1))


@triton.jit
def transpose_and_gather(x_ptr, index_ptr, y_ptr, z_ptr, SIZE: tl.constexpr):
    """A transposed copy, and a gather along rows."""
    at = tl.arange(0, SIZE)
    x = tl.load(x_ptr + at[:, None] * SIZE + at[None, :])
    index = tl.load(index_ptr + at[:, None] * SIZE + at[None, :])
    tl.store(y_ptr + at[:, None] * SIZE + at[None, :], tl.trans(x))
    tl.store(z_ptr + at[:, None] * SIZE + at[None, :], tl.gather(x, index, axis=1))


@triton.jit
def histogram(x_ptr, counts_ptr, local_ptr, size, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Counts of values by atomics on global memory, and by the compiler's own histogram of each block."""
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(x_ptr + at, mask=inside, other=0)
    tl.atomic_add(counts_ptr + x, 1, mask=inside)
    tl.store(local_ptr + block * BINS + tl.arange(0, BINS), tl.histogram(x, BINS, mask=inside))


@triton.jit
def atomics(
    x_ptr, f32_ptr, f16_ptr, bf16_ptr, i32_ptr, lock_ptr, counter_ptr, BLOCK: tl.constexpr, SLOTS: tl.constexpr
):
    """Sums in three float types, bit operations and extremes, and a counter under a spin lock."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    slot = at % SLOTS
    tl.atomic_add(f32_ptr + slot, x.to(tl.float32))
    tl.atomic_add(f16_ptr + slot, x.to(tl.float16))
    tl.atomic_add(bf16_ptr + slot, x.to(tl.bfloat16))
    tl.atomic_max(i32_ptr + slot, x)
    tl.atomic_min(i32_ptr + SLOTS + slot, x)
    tl.atomic_xor(i32_ptr + 2 * SLOTS + slot, x)
    tl.atomic_or(i32_ptr + 3 * SLOTS + slot, x)
    tl.atomic_and(i32_ptr + 4 * SLOTS + slot, x)
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    tl.store(counter_ptr, tl.load(counter_ptr) + tl.sum(x, axis=0))
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def quantize_fp8(x_ptr, codes_ptr, sf_ptr, columns, BLOCK: tl.constexpr):
    """Blocks of BLOCK elements to E4M3 with an FP32 scale each."""
    row = tl.program_id(0)
    block = tl.program_id(1)
    at = row * columns + block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-10)
    sf = largest / 448.0
    tl.store(codes_ptr + at, (x / sf).to(tl.float8e4nv))
    tl.store(sf_ptr + row * (columns // BLOCK) + block, sf)


@triton.jit
def conversions(x_ptr, f16_ptr, bf16_ptr, e4m3_ptr, e5m2_ptr, i32_ptr, back_ptr, SIZE: tl.constexpr):
    """FP32 to each narrower type and back."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x = tl.load(x_ptr + at)
    half, brain = x.to(tl.float16), x.to(tl.bfloat16)
    e4m3, e5m2 = x.to(tl.float8e4nv), x.to(tl.float8e5)
    tl.store(f16_ptr + at, half)
    tl.store(bf16_ptr + at, brain)
    tl.store(e4m3_ptr + at, e4m3)
    tl.store(e5m2_ptr + at, e5m2)
    tl.store(i32_ptr + at, tl.where(tl.abs(x) < 1e9, x, 0.0).to(tl.int32))
    tl.store(back_ptr + at, e4m3.to(tl.float32) + e5m2.to(tl.float32) + half.to(tl.float32) + brain.to(tl.float32))


@triton.jit
def functions(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """Functions of one argument, in rows of y: fast ones and those of libdevice."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    tl.store(y_ptr + at, tl.exp(x), mask=inside)
    tl.store(y_ptr + size + at, tl.log2(tl.abs(x) + 1.0), mask=inside)
    tl.store(y_ptr + 2 * size + at, tl.sin(x), mask=inside)
    tl.store(y_ptr + 3 * size + at, tl.sigmoid(x), mask=inside)
    tl.store(y_ptr + 4 * size + at, tl.erf(x), mask=inside)
    tl.store(y_ptr + 5 * size + at, tl.rsqrt(tl.abs(x) + 1.0), mask=inside)
    tl.store(y_ptr + 6 * size + at, libdevice.tanh(x), mask=inside)
    tl.store(y_ptr + 7 * size + at, libdevice.pow(tl.abs(x) + 0.5, 1.75), mask=inside)
    tl.store(y_ptr + 8 * size + at, tl.sqrt_rn(tl.abs(x)), mask=inside)
    tl.store(y_ptr + 9 * size + at, tl.div_rn(x, tl.abs(x) + 3.0), mask=inside)
    tl.store(y_ptr + 10 * size + at, libdevice.rint(x * 8.0) + tl.floor(x) + tl.ceil(x), mask=inside)
    tl.store(y_ptr + 11 * size + at, tl.fma(x, x, x), mask=inside)


@triton.jit
def integers(a_ptr, b_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """Integer arithmetic of 32 and 64 bits, in rows of out (int64)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    a = tl.load(a_ptr + at, mask=inside, other=1)
    b = tl.load(b_ptr + at, mask=inside, other=1)
    wide_a, wide_b = a.to(tl.int64), b.to(tl.int64)
    bits_a, bits_b = a.to(tl.uint32, bitcast=True), b.to(tl.uint32, bitcast=True)
    tl.store(out_ptr + at, (a // b).to(tl.int64), mask=inside)
    tl.store(out_ptr + size + at, (a % b).to(tl.int64), mask=inside)
    tl.store(out_ptr + 2 * size + at, (bits_a // bits_b).to(tl.int64), mask=inside)
    tl.store(out_ptr + 3 * size + at, (bits_a % bits_b).to(tl.int64), mask=inside)
    tl.store(out_ptr + 4 * size + at, (wide_a * 4294967291 + wide_b) // (wide_b * 3), mask=inside)
    tl.store(out_ptr + 5 * size + at, tl.umulhi(bits_a, bits_b).to(tl.int64), mask=inside)
    tl.store(out_ptr + 6 * size + at, (a << (bits_b % 32).to(tl.int32)).to(tl.int64), mask=inside)
    tl.store(out_ptr + 7 * size + at, (a >> (bits_b % 32).to(tl.int32)).to(tl.int64), mask=inside)
    tl.store(out_ptr + 8 * size + at, (wide_a >> (bits_b % 64).to(tl.int64)) ^ wide_b, mask=inside)
    tl.store(out_ptr + 9 * size + at, tl.minimum(a, b).to(tl.int64) + tl.abs(a).to(tl.int64), mask=inside)
    tl.store(out_ptr + 10 * size + at, libdevice.popc(a).to(tl.int64) * 64 + libdevice.clz(b), mask=inside)
    tl.store(out_ptr + 11 * size + at, wide_a.to(tl.float32).to(tl.int64), mask=inside)


@triton.jit
def random_numbers(out_ptr, seed, size, BLOCK: tl.constexpr):
    """Philox: four words for each offset, and uniform floats."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    first, second, third, fourth = tl.randint4x(seed, at)
    tl.store(out_ptr + at, first, mask=inside)
    tl.store(out_ptr + size + at, second, mask=inside)
    tl.store(out_ptr + 2 * size + at, third, mask=inside)
    tl.store(out_ptr + 3 * size + at, fourth, mask=inside)


@triton.jit
def copy_blocks(x_ptr, y_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A copy through tensor maps made by the kernel, with edges, and one added."""
    x_map = tl.make_tensor_descriptor(x_ptr, [rows, columns], [columns, 1], [ROWS, COLUMNS])
    y_map = tl.make_tensor_descriptor(y_ptr, [rows, columns], [columns, 1], [ROWS, COLUMNS])
    row, column = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
    y_map.store([row, column], x_map.load([row, column]) + 1)
