"""CUDA C++ for tests of the emulator: compiled with NVRTC, with the few wrappers that the kernels need."""

from __future__ import annotations

import functools
import tempfile

from cuda.bindings import nvrtc

from megamoe_jit.jit.headers import find_headers

WRAPPERS = r"""
using u32 = unsigned;
using u64 = unsigned long long;
extern "C" int printf(const char*, ...);
#define ASM asm volatile
__device__ __forceinline__ u32 smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void mbar_init(u32 b, u32 n) {
    ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b), "r"(n) : "memory");
}
__device__ __forceinline__ void mbar_inval(u32 b) { ASM("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(b) : "memory"); }
__device__ __forceinline__ void mbar_arrive(u32 b) {
    ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b) : "memory");
}
__device__ __forceinline__ u64 mbar_arrive_state(u32 b) {
    u64 s;
    ASM("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(s) : "r"(b) : "memory");
    return s;
}
__device__ __forceinline__ void mbar_arrive_remote(u32 b, u32 rank) {
    ASM("{.reg .b32 r; mapa.shared::cluster.u32 r, %0, %1;"
        " mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r];}" ::"r"(b), "r"(rank) : "memory");
}
__device__ __forceinline__ void mbar_arrive_tx(u32 b, u32 n) {
    ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(n) : "memory");
}
__device__ __forceinline__ bool mbar_try(u32 b, u32 parity) {
    u32 d;
    ASM("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(d)
        : "r"(b), "r"(parity)
        : "memory");
    return d;
}
__device__ __forceinline__ bool mbar_test(u32 b, u32 parity) {
    u32 d;
    ASM("{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(d)
        : "r"(b), "r"(parity)
        : "memory");
    return d;
}
__device__ __forceinline__ void mbar_wait(u32 b, u32 parity) { while (!mbar_try(b, parity)) {} }
__device__ __forceinline__ void fence_init() { ASM("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void fence_async() { ASM("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void fence_async_all() { ASM("fence.proxy.async;" ::: "memory"); }
__device__ __forceinline__ void bulk_load(u32 to, const void* from, u32 n, u32 b) {
    ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
        "r"(n), "r"(b)
        : "memory");
}
__device__ __forceinline__ void bulk_store(void* to, u32 from, u32 n) {
    ASM("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(n) : "memory");
}
__device__ __forceinline__ void bulk_commit() { ASM("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ __forceinline__ void bulk_wait() { ASM("cp.async.bulk.wait_group 0;" ::: "memory"); }
__device__ __forceinline__ void bulk_wait_read() { ASM("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ u32 ld_acquire_gpu(const u32* p) {
    u32 v;
    ASM("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ u32 ld_acquire_sys(const u32* p) {
    u32 v;
    ASM("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ u32 ld_relaxed_gpu(const u32* p) {
    u32 v;
    ASM("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ void st_release_gpu(u32* p, u32 v) {
    ASM("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void st_release_sys(u32* p, u32 v) {
    ASM("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void st_relaxed_gpu(u32* p, u32 v) {
    ASM("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void cluster_arrive() { ASM("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { ASM("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ u32 cluster_rank() {
    u32 r;
    ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
__device__ __forceinline__ u32 mapa(u32 address, u32 rank) {
    u32 r;
    ASM("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));
    return r;
}
__device__ __forceinline__ void st_cluster(u32 address, u32 v) {
    ASM("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
__device__ __forceinline__ u32 ld_cluster(u32 address) {
    u32 v;
    ASM("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}
"""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="emulator-objects-")


def object_cache() -> str:
    """Return a folder for `Emulator(cache_dir=...)` that lasts as long as this process: kernels are compiled once."""
    return _folder().name


@functools.cache
def compile_cuda(source: str, arch: str = "sm_90a", *, headers: bool = False) -> str:
    """Return the PTX of `source`, with the wrappers before it; line numbers of reports are those of `source`.

    With `headers`, it may include CUDA's and CCCL's headers, and has no wrappers.
    """
    text = f'#line 1 "/wrappers.cuh"\n{WRAPPERS}\n#line 1 "/roles/kernel.cu"\n{source}'
    if headers:
        text = f'#line 1 "/roles/kernel.cu"\n{source}'
    error, program = nvrtc.nvrtcCreateProgram(text.encode(), b"/roles/kernel.cu", 0, [], [])
    assert not error.value
    options = [f"--gpu-architecture=compute_{arch[3:]}".encode(), b"-lineinfo", b"--std=c++17"]
    if headers:
        folder = find_headers()
        options += [f"--include-path={path}".encode() for path in (folder, folder / "cccl")]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytearray(size)  # no bytes: NVRTC would write into the object that Python shares for all of one byte
    nvrtc.nvrtcGetProgramLog(program, log)
    assert not error.value, log.decode()
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = bytearray(size)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.decode().rstrip("\0 ")
