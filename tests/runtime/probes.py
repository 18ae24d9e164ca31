"""Small kernels that show what a launch was given, compiled with NVRTC for whatever device there is."""

from __future__ import annotations

import functools

from cuda.bindings import nvrtc

from megamoe_jit.runtime.backend import LoadableKernel
from tests.runtime.fake_driver import kernel

SOURCE = r"""
struct alignas(64) Map { unsigned char bytes[128]; };
struct Args { unsigned long long out; unsigned num_values; float scale; };

// Every kind of parameter, added up.
extern "C" __global__ void __launch_bounds__(384, 1) sum_params(
    double* out, int a, unsigned b, long long c, unsigned long long d, float e, const __grid_constant__ Map map,
    const __grid_constant__ Args args) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        out[0] = double(a) + double(b) + double(c) + double(d) + double(e);
        out[1] = map.bytes[127];
        ((double*)args.out)[2] = args.num_values * args.scale;
    }
}

extern "C" __global__ void add_one(unsigned* values) { atomicAdd(values + blockIdx.x, 1u); }

// Where each block is: its rank in the cluster, the cluster's size.
extern "C" __global__ void cluster_of(unsigned* out) {
    unsigned rank, size;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    if (threadIdx.x == 0) out[2 * blockIdx.x] = rank, out[2 * blockIdx.x + 1] = size;
}

// All blocks meet: hangs (for a while) unless they are resident together.
extern "C" __global__ void meet(unsigned* arrived, unsigned* met) {
    extern __shared__ unsigned char smem[];
    if (threadIdx.x != 0) return;
    smem[0] = 1;
    atomicAdd(arrived, 1u);
    for (unsigned tries = 0; tries < (1u << 22); ++tries)
        if (atomicAdd(arrived, 0u) == gridDim.x) { atomicAdd(met, smem[0]); return; }
}

// Programmatic dependent launch: the second may start early, and must see what the first wrote.
extern "C" __global__ void write_slowly(unsigned* values, unsigned value) {
    asm volatile("griddepcontrol.launch_dependents;");
    for (unsigned i = 0; i < 200; ++i) __nanosleep(1000);
    values[blockIdx.x * blockDim.x + threadIdx.x] = value;
}
extern "C" __global__ void copy_after(unsigned* to, const unsigned* from) {
    asm volatile("griddepcontrol.wait;" ::: "memory");
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    to[i] = *(const volatile unsigned*)(from + i);
}

// One box of a tensor map as it lies in shared memory; `failed` when the expected bytes never arrived.
extern "C" __global__ void load_box(
    const __grid_constant__ Map map, unsigned char* out, int x, int y, unsigned box_bytes, unsigned tx_bytes, unsigned*
    failed) { extern __shared__ __align__(1024) unsigned char smem[];
    const unsigned base = unsigned(__cvta_generic_to_shared(smem));
    const unsigned barrier = base + (box_bytes + 7) / 8 * 8;
    for (unsigned i = threadIdx.x; i < box_bytes; i += blockDim.x) smem[i] = 0xEE;
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(tx_bytes) : "memory");
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
            ::"r"(base), "l"(&map), "r"(x), "r"(y), "r"(barrier)
            : "memory");
    }
    unsigned done = 0;
    for (unsigned tries = 0; tries < 10000 && !done; ++tries)
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
            : "=r"(done)
            : "r"(barrier)
            : "memory");
    if (!done) *failed = 1;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < box_bytes; i += blockDim.x) out[i] = smem[i];
}

// A thread that gives up, as comm::give_up does.
extern "C" __global__ void give_up(unsigned* record) {
    if (blockIdx.x == 3 && threadIdx.x == 5) {
        volatile unsigned* out = record;
        if (atomicCAS_system(record, 0u, 1u) == 0u) {
            const unsigned words[7] = {4, blockIdx.x, threadIdx.x, 33, 6, 5, 0};
            for (unsigned i = 0; i < 7; ++i) out[1 + i] = words[i];
            __threadfence_system();
            out[0] = 0x4D6F4531;
            __threadfence_system();
        }
        __trap();
    }
}
extern "C" __global__ void nothing() {}
"""


@functools.cache
def compile_probes(arch: str) -> tuple[str, bytes]:
    """Return PTX and cubin of all probes for a target."""
    _, program = nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"probes.cu", 0, [], [])
    (status,) = nvrtc.nvrtcCompileProgram(program, 2, [f"--gpu-architecture={arch}".encode(), b"--std=c++17"])
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = bytearray(size)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise AssertionError(log.decode())
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = bytearray(size)
    nvrtc.nvrtcGetPTX(program, ptx)
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    cubin = bytearray(size)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(program)
    return ptx.rstrip(b"\0").decode(), bytes(cubin)


def probe(name: str, arch: str = "sm_90a") -> LoadableKernel:
    """Return one of the kernels above."""
    ptx, cubin = compile_probes(arch)
    return kernel(name, ptx, cubin)
