"""One row per mistake: the kernel, what makes it wrong, and what is reported; the right kernel reports nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator, Report
from megamoe_jit.errors import DeadlockFault, EmulatorFault, MemoryFault, RaceFault
from tests.emulator.cuda_source import compile_cuda, object_cache


@dataclass(frozen=True)
class Kernel:
    """A kernel `k(const u32* x, u32* y, u32* flags)` with marked places `A`, `B`, ... and what stands there."""

    source: str
    right: dict[str, str]
    grid: int = 1
    block: int = 64

    def text(self, **wrong: str) -> str:
        text = self.source
        for mark, code in (self.right | wrong).items():
            text = text.replace(f"@{mark}@", code)
        assert "@" not in text
        return text


LOAD = Kernel(
    r"""
extern "C" __global__ void k(const u32* x, u32* y, u32*) {
    __shared__ alignas(128) u32 tile[64];
    __shared__ alignas(8) u64 full;
    if (threadIdx.x == 0) { mbar_init(smem(&full), @count@); @fence@; }
    @sync@;
    for (int t = 0; t < 3; t++) {
        if (threadIdx.x == 0) {
            mbar_arrive_tx(smem(&full), @bytes@);
            bulk_load(smem(tile), x + 64 * t, 256, smem(&full));
        }
        @wait@;
        y[64 * t + threadIdx.x] = tile[threadIdx.x ^ 1];
        @release@;
    }
    @end@;
}
""",
    {
        "count": "1", "fence": "fence_init()", "sync": "__syncthreads()", "bytes": "256",
        "wait": "mbar_wait(smem(&full), t & 1)", "release": "__syncthreads()", "end": "",
    },
)  # fmt: skip

STORE = Kernel(
    r"""
extern "C" __global__ void k(const u32* x, u32* y, u32*) {
    __shared__ alignas(128) u32 tile[64];
    for (int t = 0; t < 3; t++) {
        tile[threadIdx.x] = x[64 * t + threadIdx.x];
        @fence@;
        @sync@;
        if (threadIdx.x == 0) { bulk_store(y + 64 * t, smem(tile), 256); bulk_commit(); @wait@; }
        __syncthreads();
    }
    if (threadIdx.x == 0) bulk_wait();
}
""",
    {"fence": "fence_async()", "sync": "__syncthreads()", "wait": "bulk_wait_read()"},
)

READ_BACK = Kernel(
    r"""
extern "C" __global__ void k(const u32* x, u32* y, u32*) {
    __shared__ alignas(128) u32 tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    fence_async();
    __syncthreads();
    if (threadIdx.x == 0) { bulk_store(y, smem(tile), 256); bulk_commit(); @wait@; }
    __syncthreads();
    y[64 + threadIdx.x] = y[threadIdx.x];
    bulk_wait();
}
""",
    {"wait": "bulk_wait()"},
)

EXCHANGE = Kernel(
    r"""
extern "C" __global__ void k(const u32* x, u32* y, u32*) {
    __shared__ u32 tile[64];
    for (int t = 0; t < 3; t++) {
        tile[threadIdx.x] = x[64 * t + threadIdx.x];
        @first@;
        y[64 * t + threadIdx.x] = tile[63 - threadIdx.x];
        @second@;
    }
}
""",
    {"first": "__syncthreads()", "second": "__syncthreads()"},
)

FLAG = Kernel(
    r"""
extern "C" __global__ void k(const u32* x, u32* y, u32* flags) {
    if (blockIdx.x == 0) {
        y[threadIdx.x] = x[threadIdx.x] + 1;
        @sync@;
        if (threadIdx.x == 0) { @fence@; @signal@; }
    } else {
        if (threadIdx.x == 0) { while (@look@ == 0) {} @acquire@; }
        __syncthreads();
        y[64 + threadIdx.x] = y[63 - threadIdx.x];
    }
}
""",
    {
        "sync": "__syncthreads()", "fence": "", "signal": "st_release_gpu(flags, 1)", "look": "ld_acquire_gpu(flags)",
        "acquire": "",
    },
    grid=2,
)  # fmt: skip
FENCES = {
    "fence": "__threadfence()", "signal": "st_relaxed_gpu(flags, 1)", "look": "ld_relaxed_gpu(flags)",
    "acquire": "__threadfence()",
}  # fmt: skip

CLUSTER = Kernel(
    r"""
extern "C" __global__ void __cluster_dims__(2, 1, 1) k(const u32* x, u32* y, u32*) {
    __shared__ u32 tile[64];
    tile[threadIdx.x] = x[64 * blockIdx.x + threadIdx.x];
    @arrive@;
    @wait@;
    y[64 * blockIdx.x + threadIdx.x] = ld_cluster(mapa(smem(&tile[threadIdx.x]), @peer@));
    @end@;
}
""",
    {
        "arrive": "cluster_arrive()", "wait": "cluster_wait()", "peer": "cluster_rank() ^ 1",
        "end": "cluster_arrive(); cluster_wait()",
    },
    grid=2,
)  # fmt: skip

NAMED = Kernel(
    r"""
extern "C" __global__ void k(const u32* x, u32* y, u32*) {
    if (threadIdx.x < 32) { @first@; } else { @second@; }
    y[threadIdx.x] = x[threadIdx.x];
}
""",
    {"first": 'ASM("bar.sync 1, 64;")', "second": 'ASM("bar.sync 1, 64;")'},
)

MBARRIER = Kernel(
    r"""
extern "C" __global__ void k(const u32* x, u32* y, u32*) {
    __shared__ alignas(16) u64 barrier[2];
    if (threadIdx.x == 0) { mbar_init(smem(barrier), 64); @init@; }
    __syncthreads();
    mbar_arrive(smem(barrier));
    @between@;
    mbar_wait(smem(barrier), @parity@);
    __syncthreads();
    @end@;
    y[threadIdx.x] = x[threadIdx.x];
}
""",
    {"init": "", "between": "", "parity": "0", "end": ""},
)

RIGHT = {
    "load": (LOAD, {}), "store": (STORE, {}), "read back": (READ_BACK, {}), "exchange": (EXCHANGE, {}),
    "flag": (FLAG, {}), "flag with fences": (FLAG, FENCES), "cluster": (CLUSTER, {}), "named": (NAMED, {}),
    "mbarrier": (MBARRIER, {}),
    "reinit after inval": (
        MBARRIER, {"end": "if (threadIdx.x == 0) { mbar_inval(smem(barrier)); mbar_init(smem(barrier), 1); }"}
    ),
    "a fence by the issuer": (STORE, {"fence": "", "sync": "__syncthreads(); if (threadIdx.x == 0) fence_async()"}),
    "relaxed cluster arrive": (
        CLUSTER, {"end": 'ASM("barrier.cluster.arrive.relaxed.aligned;"); cluster_wait()'}
    ),
    "membar": (
        FLAG,
        FENCES | {"fence": 'ASM("membar.gl;" ::: "memory")', "acquire": 'ASM("fence.acq_rel.gpu;" ::: "memory")'},
    ),
}  # fmt: skip

WRONG = {
    # Waits.
    "full is not waited for": (LOAD, {"wait": ""}, RaceFault, {"in-flight", "overwrite"}),
    "the wrong parity": (
        LOAD, {"wait": "mbar_wait(smem(&full), (t & 1) ^ 1)"}, EmulatorFault, {"in-flight", "overwrite", "deadlock"}
    ),
    "the tile is not released": (
        LOAD, {"release": ""}, EmulatorFault, {"overwrite", "in-flight", "phase-missed", "deadlock"}
    ),
    "the source is not waited for": (STORE, {"wait": ""}, RaceFault, {"overwrite"}),
    "the write is not waited for": (READ_BACK, {"wait": "bulk_wait_read()"}, RaceFault, {"in-flight", "overwrite"}),
    "no barrier before the exchange": (EXCHANGE, {"first": ""}, RaceFault, {"race"}),
    "no barrier after the exchange": (EXCHANGE, {"second": ""}, RaceFault, {"race"}),
    "no barrier before the signal": (FLAG, {"sync": ""}, RaceFault, {"race"}),
    "no barrier before the store": (STORE, {"sync": ""}, RaceFault, {"overwrite", "proxy", "race"}),
    "no cluster barrier": (CLUSTER, {"arrive": "", "wait": ""}, RaceFault, {"race"}),
    # Fences and scopes.
    "no proxy fence": (STORE, {"fence": ""}, RaceFault, {"proxy"}),
    "a fence of other memory": (
        STORE, {"fence": 'ASM("fence.proxy.async.global;" ::: "memory")'}, RaceFault, {"proxy"}
    ),
    "no init fence": (LOAD, {"fence": ""}, RaceFault, {"mbarrier-init-fence"}),
    "a relaxed signal": (FLAG, {"signal": "st_relaxed_gpu(flags, 1)"}, RaceFault, {"race"}),
    "a relaxed look": (FLAG, {"look": "ld_relaxed_gpu(flags)"}, RaceFault, {"race"}),
    "no fence before the signal": (FLAG, FENCES | {"fence": ""}, RaceFault, {"race"}),
    "no fence after the look": (FLAG, FENCES | {"acquire": ""}, RaceFault, {"race"}),
    "a fence of the CTA": (FLAG, FENCES | {"fence": "__threadfence_block()"}, RaceFault, {"race"}),
    "a signal of the CTA": (
        FLAG, {"signal": 'ASM("st.release.cta.global.u32 [%0], 1;" ::"l"(flags) : "memory")'}, RaceFault, {"scope"}
    ),
    "relaxed arrival, then data": (
        CLUSTER, {"arrive": 'ASM("barrier.cluster.arrive.relaxed.aligned;")'}, RaceFault, {"race"}
    ),
    # Barriers.
    "init is not shown": (LOAD, {"sync": ""}, EmulatorFault, {"mbarrier-init", "race"}),
    "too few bytes expected": (LOAD, {"bytes": "128"}, EmulatorFault, {"deadlock", "mbarrier-tx"}),
    "too many bytes expected": (LOAD, {"bytes": "272"}, DeadlockFault, {"deadlock"}),
    "an arrival is missing": (LOAD, {"count": "2"}, DeadlockFault, {"deadlock"}),
    "more arrivals than expected": (
        MBARRIER, {"init": 'ASM("mbarrier.arrive.shared::cta.b64 _, [%0], 65;" ::"r"(smem(barrier)))'}, EmulatorFault,
        {"mbarrier-count"},
    ),
    "never initialised": (MBARRIER, {"between": "mbar_arrive(smem(barrier) + 8)"}, EmulatorFault, {"mbarrier-init"}),
    "initialised while in use": (
        MBARRIER, {"between": "if (threadIdx.x == 63) mbar_init(smem(barrier), 64)"}, EmulatorFault,
        {"mbarrier-reinit", "deadlock"},
    ),
    "used after inval": (
        MBARRIER, {"end": "if (threadIdx.x == 0) { mbar_inval(smem(barrier)); mbar_arrive(smem(barrier)); }"},
        EmulatorFault, {"mbarrier-init"},
    ),
    "stored over": (MBARRIER, {"end": "barrier[0] = x[0]"}, RaceFault, {"mbarrier-bytes", "race"}),
    "counts differ": (NAMED, {"second": 'ASM("bar.sync 1, 32;")'}, EmulatorFault, {"barrier-args", "deadlock"}),
    "no multiple of a warp": (
        NAMED, {"second": 'ASM("{.reg .b32 n; mov.u32 n, 40; bar.sync 1, n;}")'}, EmulatorFault, {"barrier-args"}
    ),
    "more threads than there are": (NAMED, {"first": 'ASM("bar.sync 1, 96;")'}, EmulatorFault, {"barrier-args"}),
    "barrier 16": (
        NAMED, {"first": 'ASM("{.reg .b32 b; mov.u32 b, 16; bar.sync b;}")'}, EmulatorFault, {"barrier-args"}
    ),
    "one waits for nobody": (NAMED, {"first": ""}, DeadlockFault, {"deadlock"}),
    "half a warp": (
        NAMED, {"first": 'if (threadIdx.x < 16) ASM("bar.sync 1, 64;"); else ASM("bar.sync 2, 64;")'}, EmulatorFault,
        {"non-uniform"},
    ),
    "wait without arrive": (CLUSTER, {"arrive": ""}, EmulatorFault, {"cluster-barrier"}),
    "arrive twice": (CLUSTER, {"wait": "cluster_arrive(); cluster_wait()"}, EmulatorFault, {"cluster-barrier"}),
    # Leaving, and memory.
    "a load is pending at the end": (
        LOAD, {"end": "if (threadIdx.x == 0) bulk_load(smem(tile), x, 256, smem(&full))"}, RaceFault, {"exit-pending"}
    ),
    "no such CTA": (CLUSTER, {"peer": "5"}, MemoryFault, {"out-of-bounds"}),
    "the peer may have left": (
        CLUSTER,
        {
            "end": "if (cluster_rank() == 0) { __nanosleep(1000); for (int i = 0; i < 3000; i++) "
            "y[192 + threadIdx.x] = ld_cluster(mapa(smem(tile), 1)); }"
        },
        MemoryFault, {"cta-exited"},
    ),
    "behind the end": (
        EXCHANGE, {"second": "__syncthreads(); if (t == 2) y[1 << 20] = 1"}, MemoryFault, {"out-of-bounds"}
    ),
    "over constant input": (
        EXCHANGE, {"second": "__syncthreads(); ((u32*)x)[threadIdx.x] = 1"}, MemoryFault, {"read-only"}
    ),
    "misaligned": (
        EXCHANGE, {"second": "__syncthreads(); *(u64*)(y + 65 + 2 * threadIdx.x) = 1"}, MemoryFault, {"misaligned"}
    ),
}  # fmt: skip


def run(kernel: Kernel, wrong: dict[str, str], **settings: object) -> tuple[np.ndarray, np.ndarray, list[Report]]:
    """Launch once; returns x, y and the findings."""
    module = Emulator(cache_dir=object_cache(), **settings).load(compile_cuda(kernel.text(**wrong)))  # type: ignore[arg-type]
    x = np.arange(1, 193, dtype=np.uint32) * 7
    x.flags.writeable = False
    y, flags = np.zeros(256, np.uint32), np.zeros(1, np.uint32)
    module.launch("k", kernel.grid, kernel.block, args=[x, y, flags])
    return x, y, module.report.findings


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("completion", ["lazy", "eager", 0.2])
def test_right_kernels_report_nothing(name: str, completion: str | float) -> None:
    kernel, variant = RIGHT[name]
    for seed in range(3):
        *_, findings = run(kernel, variant, seed=seed, completion=completion)
        assert [str(finding) for finding in findings] == []


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("completion", ["lazy", "eager", 0.2])
def test_wrong_kernels_are_reported(name: str, completion: str | float) -> None:
    """Under every policy: eager completion gives right values in most of these, and is reported all the same."""
    kernel, variant, error, kinds = WRONG[name]
    for seed in range(3):
        if completion == "eager" and kinds == {"exit-pending"}:
            *_, findings = run(kernel, variant, seed=seed, completion=completion)
            assert [finding.kind for finding in findings] == ["exit-tx"]
            continue
        with pytest.raises(error) as caught:
            run(kernel, variant, seed=seed, completion=completion)
        report = caught.value.report
        assert isinstance(report, Report)
        assert report.kind in kinds, str(report)
        assert report.kind in str(report)
        assert report.section
