"""Small kernels that together use most of what the emulator has: each is compiled by NVRTC, then damaged."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

NUM_FLOATS = 1024
"""Length of the `in` and `out` arrays of every kernel."""

_COMMON = """
using u32 = unsigned int; using u64 = unsigned long long;
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1; fence.mbarrier_init.release.cluster;"
                 ::"r"(barrier), "r"(count));
}
__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
    asm volatile("{ .reg .pred done; LOOP: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra LOOP; }"
                 ::"r"(barrier), "r"(parity) : "memory");
}
#define KERNEL extern "C" __global__ void __launch_bounds__(128) kernel(float* out, const float* in, int n)
"""

_VECTOR = """
KERNEL {
    for (int i = threadIdx.x + blockIdx.x * blockDim.x; i < n; i += gridDim.x * blockDim.x) {
        float x = in[i];
        int j = __float_as_int(x);
        if (j & 1) x = fminf(x * 1.5f + 0.25f, 3.f); else x = x / (fabsf(x) + 1.f) - exp2f(x);
        j = __popc(j) + (j >> (i & 15)) + __brev(j) / (i + 1) + j % 7 + __byte_perm(j, i, 0x3175) + __clz(j) + (short)j;
        unsigned short h;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
        u64 wide = (u64)j * 0x9E3779B97F4A7C15ull >> 20;
        double d = (double)x * j;
        out[i] = x + h + (float)(wide & 255) + (float)d + __sinf(x) + sqrtf(fabsf(x)) + (float)(j * 3);
    }
}
"""

_SHARED = """
KERNEL {
    __shared__ float row[128];
    __shared__ int count;
    int t = threadIdx.x;
    if (t == 0) count = 0;
    row[t] = in[t + blockIdx.x * 128];
    __syncthreads();
    for (int step = 64; step > 0; step >>= 1) {
        if (t < step) row[t] += row[t + step];
        __syncthreads();
    }
    float sum = row[0];
    for (int lane = 16; lane > 0; lane >>= 1) sum += __shfl_xor_sync(0xffffffff, sum, lane);
    atomicAdd(&count, __popc(__ballot_sync(0xffffffff, in[t] > 0.f)));
    asm volatile("bar.sync 3, 64;" ::: "memory");
    asm volatile("barrier.cta.sync 0;" ::: "memory");
    u32 any = __match_any_sync(0xffffffff, t & 3) + __reduce_add_sync(0xffffffff, t);
    atomicAdd(out + 512, sum);
    atomicMax((int*)out + 513, count);
    float4 v = reinterpret_cast<const float4*>(in)[t];
    reinterpret_cast<float4*>(out)[t] = make_float4(v.w, v.z, sum, any + count);
}
"""

_FUNCTIONS = """
__device__ __noinline__ int collatz(int n, int* steps) {
    int count = 0;
    while (n != 1) { n = (n & 1) ? 3 * n + 1 : n / 2; count++; }
    *steps = count;
    return n + 1;
}
KERNEL {
    int local[8], steps = 0;
    for (int i = 0; i < 8; i++) local[i] = in[i] * i;
    int r = collatz(threadIdx.x % 9 + 1, &steps);
    switch (threadIdx.x % 11) {
        case 0: r += 7; break; case 1: r *= 3; break; case 2: r ^= 5; break; case 3: r = -r; break;
        case 4: r = local[r & 7]; break; case 5: r <<= 3; break; case 6: r |= 64; break; default: r = steps;
    }
    if (threadIdx.x == 0) printf("%d %f %s\\n", r, in[0], "text");
    out[threadIdx.x] = r + local[steps & 7];
}
"""

_BULK = """
KERNEL {
    __shared__ alignas(128) float tile[256];
    __shared__ alignas(8) u64 full;
    u32 barrier = shared_address(&full), data = shared_address(tile);
    if (threadIdx.x == 0) init(barrier, 1);
    __syncthreads();
    for (int round = 0; round < 2; round++) {
        if (threadIdx.x == 0) {
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 1024;" ::"r"(barrier) : "memory");
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 1024, [%2];"
                         ::"r"(data), "l"(in + round * 256), "r"(barrier) : "memory");
        }
        wait(barrier, round & 1);
        tile[threadIdx.x] *= 2.f;
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        if (threadIdx.x == 0) {
            asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 1024;"
                         ::"l"(out + round * 256 + blockIdx.x * 512), "r"(data) : "memory");
            asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;" ::: "memory");
        }
        __syncthreads();
    }
}
"""

_CLUSTER = """
KERNEL {
    __shared__ alignas(16) float mine[128];
    __shared__ alignas(8) u64 full;
    u32 barrier = shared_address(&full), data = shared_address(mine), rank, other, other_barrier;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    if (threadIdx.x == 0) {
        init(barrier, 1);
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 512;" ::"r"(barrier) : "memory");
    }
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(data + threadIdx.x * 4), "r"(rank ^ 1));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other_barrier) : "r"(barrier), "r"(rank ^ 1));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                 ::"r"(other), "r"(__float_as_uint(in[threadIdx.x] + rank)), "r"(other_barrier) : "memory");
    wait(barrier, 0);
    out[threadIdx.x + rank * 128] = mine[threadIdx.x];
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
"""

_MMA = """
KERNEL {
    __shared__ alignas(128) unsigned short tile[16 * 16];
    int lane = threadIdx.x & 31;
    for (int i = threadIdx.x; i < 256; i += blockDim.x) tile[i] = __float_as_uint(in[i]) >> 16;
    __syncthreads();
    u32 a[4], row = shared_address(tile) + (lane % 16) * 32 + (lane / 16) * 16;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(row) : "memory");
    float d[4] = {0.f, 1.f, 2.f, 3.f};
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%4, %6},"
                 " {%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]));
    u32 leader = 0;
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(leader));
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = d[i] + leader;
}
"""

_WGMMA = """
KERNEL {
    __shared__ alignas(128) unsigned short a[64 * 16], b[8 * 16];
    for (int i = threadIdx.x; i < 64 * 16; i += 128) a[i] = __float_as_uint(in[i]) >> 16;
    b[threadIdx.x] = __float_as_uint(in[threadIdx.x]) >> 16;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    u64 fields = (u64)(128 >> 4) << 16 | (u64)(256 >> 4) << 32;
    u64 a_desc = (shared_address(a) >> 4 & 0x3fff) | fields, b_desc = (shared_address(b) >> 4 & 0x3fff) | fields;
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0;"
                 " wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0; }"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a_desc), "l"(b_desc), "r"(0) : "memory");
    asm volatile("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = d[i];
}
"""

_TENSOR_MEMORY = """
KERNEL {
    __shared__ u32 base;
    u32 address = shared_address(&base), warp = threadIdx.x / 32, x, y;
    if (warp == 0) {
        asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], 32;" ::"r"(address) : "memory");
        asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;" ::: "memory");
    }
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
    __syncthreads();
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
    u32 mine = base + (warp << 21);
    asm volatile("tcgen05.st.sync.aligned.32x32b.x2.b32 [%0], {%1, %2};"
                 ::"r"(mine), "r"(__float_as_uint(in[threadIdx.x])), "r"(threadIdx.x) : "memory");
    asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
    asm volatile("tcgen05.ld.sync.aligned.32x32b.x2.b32 {%0, %1}, [%2]; tcgen05.wait::ld.sync.aligned;"
                 : "=r"(x), "=r"(y) : "r"(mine) : "memory");
    out[threadIdx.x] = __uint_as_float(x) + y;
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
    __syncthreads();
    if (warp == 0) asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, 32;" ::"r"(base));
}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FuzzKernel:
    """A kernel `kernel(float* out, const float* in, int n)` and how it is launched."""

    name: str
    source: str
    arch: str
    grid: int = 2
    block: int = 128
    cluster: int = 1

    @property
    def ptx(self) -> str:
        """What NVRTC makes of it."""
        return _compile(self.source, self.arch)


KERNELS = (
    FuzzKernel(name="vector", source=_VECTOR, arch="sm_90a", block=64),
    FuzzKernel(name="shared", source=_SHARED, arch="sm_90a", grid=1),
    FuzzKernel(name="functions", source=_FUNCTIONS, arch="sm_90a", block=32, grid=1),
    FuzzKernel(name="bulk", source=_BULK, arch="sm_90a"),
    FuzzKernel(name="cluster", source=_CLUSTER, arch="sm_90a", cluster=2),
    FuzzKernel(name="mma", source=_MMA, arch="sm_100a", block=32, grid=1),
    FuzzKernel(name="wgmma", source=_WGMMA, arch="sm_90a", grid=1),
    FuzzKernel(name="tensor_memory", source=_TENSOR_MEMORY, arch="sm_100a", grid=1),
)


@functools.cache
def _compile(source: str, arch: str) -> str:
    nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")

    status, program = nvrtc.nvrtcCreateProgram((_COMMON + source).encode(), b"/fuzz.cu", 0, [], [])
    flags = [f"--gpu-architecture={arch}".encode(), b"--std=c++20", b"--generate-line-info"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    if int(status):
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = bytearray(size)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"a kernel of the fuzz test does not compile: {bytes(log).decode()}")
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = bytearray(size)
    nvrtc.nvrtcGetPTX(program, ptx)
    return bytes(ptx).rstrip(b"\0").decode()
