"""Emulator, Module, Launch: arguments, memory, ranks, variables, reports."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from megamoe_jit.emulator import KINDS, Emulator, Launch, Memory, Module
from megamoe_jit.errors import ArgumentError, MegaMoeError, MemoryFault, RaceFault, UnsupportedError
from tests.emulator.cuda_source import compile_cuda, object_cache

_ARGS = r"""
struct alignas(8) Pair { short a; u64 b; };
extern "C" __global__ void args(u64* out, signed char c, unsigned short s, int i, long long l, float f, double d,
                                bool b, Pair pair) {
    u64 values[] = {(u64)(long long)c, s, (u64)(long long)i, (u64)l, __float_as_uint(f),
                    (u64)__double_as_longlong(d), b, (u64)(long long)pair.a, pair.b};
    for (int k = 0; k < 9; k++) out[k] = values[k];
}
extern "C" __global__ void copy(const u32* x, u32* y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i];
}
"""


@pytest.fixture(scope="module")
def module() -> Module:
    return Emulator(cache_dir=object_cache()).load(compile_cuda(_ARGS))


def test_arguments_reach_their_parameters(module: Module) -> None:
    out = np.zeros(9, np.uint64)
    pair = np.int16(-9).tobytes() + bytes(6) + (2**63 + 5).to_bytes(8, "little")
    module.launch("args", 1, 1, args=[out, -3, 65535, np.int32(-7), -(2**40), 1.5, 3, True, pair])
    expected = [-3, 65535, -7, -(2**40), 0x3FC00000, int(np.float64(3.0).view(np.uint64)), 1, -9, 2**63 + 5]
    assert [int(v) for v in out] == [v % 2**64 for v in expected]


_GOOD: list[Any] = [np.zeros(9, np.uint64), 1, 1, 1, 1, 1.0, 1.0, True, bytes(16)]
_BAD = [
    ("args", {}, _GOOD[:-1], r"takes 9 arguments, not 8: args_param_0"),
    ("args", {}, [*_GOOD[:1], 128 * 2, *_GOOD[2:]], r"cannot hold 256"),
    ("args", {}, [*_GOOD[:2], -32769, *_GOOD[3:]], r"cannot hold -32769"),
    ("args", {}, [*_GOOD[:3], 1.5, *_GOOD[4:]], r"cannot hold 1\.5"),
    ("args", {}, [*_GOOD[:3], np.zeros(3, np.int32), *_GOOD[4:]], r"is a u32 of 4 bytes, and no pointer"),
    ("args", {}, [*_GOOD[:-1], bytes(15)], r"has 16 bytes, and 15 were given"),
    ("args", {}, ["text", *_GOOD[1:]], r"cannot hold 'text'"),
    ("args", {}, [np.zeros(9, np.uint64)[::-1], *_GOOD[1:]], r"negative strides"),
    ("nothing", {}, [], r"has no kernel 'nothing'; it has args, copy"),
    ("args", {"grid": 0}, _GOOD, r"grid=0; one to three positive integers"),
    ("args", {"block": (32, 32, 2)}, _GOOD, r"has 2048 threads; a CTA has at most 1024"),
    ("args", {"block": (1, 1, 65)}, _GOOD, r"block=\(1, 1, 65\)"),
    ("args", {"grid": 3, "cluster": 2}, _GOOD, r"grid=\(3, 1, 1\) is no multiple of cluster=\(2, 1, 1\)"),
    ("args", {"grid": 32, "cluster": 32}, _GOOD, r"more than 16 CTAs"),
    ("args", {"shared_bytes": 300000}, _GOOD, r"300000 dynamic bytes of shared memory; a CTA has 232448"),
]


@pytest.mark.parametrize(("name", "dims", "args", "words"), _BAD, ids=[words[:30] for *_, words in _BAD])
def test_bad_launches_say_why(module: Module, name: str, dims: dict[str, Any], args: list[Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        module.launch(name, **({"grid": 1, "block": 1} | dims), args=args)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"checks": "some"}, "checks='some'; it is one of 'error', 'warn', 'off'"),
        ({"engine": "fast"}, "engine='fast'"),
        ({"numerics": "best"}, "numerics='best'"),
        ({"completion": 1.5}, "completion=1.5"),
        ({"completion": "late"}, "completion='late'"),
        ({"suppress": ["race", "rays"]}, r"suppress has \['rays'\], which are no kinds of reports"),
    ],
)
def test_bad_settings_say_why(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Emulator(**settings)


def test_an_attribute_of_the_kernel_is_kept() -> None:
    source = r"""
    extern "C" __global__ void __launch_bounds__(64) bounded(u32* x) { x[threadIdx.x] = 1; }
    extern "C" __global__ void __cluster_dims__(2, 1, 1) pairs(u32* x) { x[blockIdx.x] = cluster_rank() + 10; }
    """
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(source))
    x = np.zeros(96, np.uint32)
    with pytest.raises(ArgumentError, match="has 96 threads; the kernel was compiled for 64 at most"):
        module.launch("bounded", 1, 96, args=[x])
    with pytest.raises(ArgumentError, match=r"cluster=\(4, 1, 1\), but the kernel was compiled for \(2, 1, 1\)"):
        module.launch("pairs", 4, 1, 4, args=[x])
    module.launch("pairs", 4, 1, args=[x])
    assert x[:4].tolist() == [10, 11, 10, 11]


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn, torch.bfloat16])
def test_torch_tensors_and_views(module: Module, dtype: torch.dtype) -> None:
    """Any dtype, a view into the middle of a tensor: only the view may be touched."""
    whole = torch.arange(1024, dtype=torch.int32).view(torch.uint8)
    x = whole[512:1536].view(dtype)
    y = torch.zeros(1024, dtype=torch.uint8)
    module.launch("copy", 1, 32, args=[x, y, 256])
    assert torch.equal(y, whole[512:1536])
    with pytest.raises(MemoryFault, match="Reads 4 bytes"):
        module.launch("copy", 1, 32, args=[x, y, 257])


def test_numpy_dtypes_and_read_only_arrays(module: Module) -> None:
    x = np.arange(64).astype(ml_dtypes.bfloat16)
    y = np.zeros(64, ml_dtypes.bfloat16)
    module.launch("copy", 1, 32, args=[x, y, 32])
    assert np.array_equal(x, y)
    y.flags.writeable = False
    with pytest.raises(MemoryFault, match=r"read-only: Writes 4 bytes.*copy_param_1 may only be read"):
        module.launch("copy", 1, 32, args=[x, y, 32])


def test_raw_addresses_need_memory(module: Module) -> None:
    """An integer address is good when the memory was named, for this launch or for all."""
    emulator = Emulator(cache_dir=object_cache())
    module = emulator.load(compile_cuda(_ARGS))
    x, y = np.arange(16, dtype=np.uint32), np.zeros(16, np.uint32)
    args = [x.ctypes.data, y, 16]
    with pytest.raises(MemoryFault, match="no allocation"):
        module.launch("copy", 1, 32, args=args)
    module.launch("copy", 1, 32, args=args, memory=[Memory(x, writable=False)])
    assert np.array_equal(x, y)
    with pytest.raises(MemoryFault):
        module.launch("copy", 1, 32, args=args)
    emulator.memory(x)
    module.launch("copy", 1, 32, args=args)
    emulator.forget(x)
    with pytest.raises(MemoryFault):
        module.launch("copy", 1, 32, args=args)
    with pytest.raises(ArgumentError, match="a torch tensor or a numpy array"):
        emulator.memory([1, 2])


_VARIABLES = r"""
__device__ u32 counter = 40;
__constant__ u32 table[4] = {3, 1, 4, 1};
__device__ u32 data[3] = {7, 8, 9};
__device__ u32* pointer = &data[1];
extern "C" __global__ void k(u32* out) {
    if (threadIdx.x != 0) return;
    counter = counter + 1;
    out[0] = counter;
    out[1] = table[2];
    out[2] = *pointer;
    *pointer = 80;
}
"""


def test_variables_keep_their_values() -> None:
    """Global variables live as long as the module, once a rank; pointers between them are set up."""
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(_VARIABLES))
    out = np.zeros(3, np.uint32)
    module.launch("k", 1, 32, args=[out])
    assert out.tolist() == [41, 4, 8]
    module.launch("k", 1, 32, args=[out])
    assert out.tolist() == [42, 4, 80]
    assert module.variable("counter").view(np.uint32)[0] == 42
    assert module.variable("counter", rank=1).view(np.uint32)[0] == 40
    with pytest.raises(ArgumentError, match="no variable 'count'"):
        module.variable("count")


_RANKS = r"""
extern "C" __global__ void exchange(u32* own, u32* peer, u32* own_flag, u32* peer_flag, u32* out, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) peer[i] = own[i] * 2 + 1;
    __syncthreads();
    if (threadIdx.x == 0) {
        SIGNAL(peer_flag, 1);
        while (LOOK(own_flag) != 1) {}
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = own[n + i];
}
"""


def _exchange(signal: str = "st_release_sys", look: str = "ld_acquire_sys", peer: bool = True) -> list[Any]:
    """Two ranks write into each other's second half; returns each rank's output and expectation."""
    n = 100
    emulator = Emulator(cache_dir=object_cache(), seed=5)
    module = emulator.load(compile_cuda(_RANKS.replace("SIGNAL", signal).replace("LOOK", look)))
    own = [np.concatenate([np.arange(n, dtype=np.uint32) + 1000 * r, np.zeros(n, np.uint32)]) for r in range(2)]
    flags, out = [np.zeros(1, np.uint32) for _ in range(2)], [np.zeros(n, np.uint32) for _ in range(2)]
    for rank in range(2):
        emulator.memory(own[rank], rank=rank, peer=peer)
        emulator.memory(flags[rank], rank=rank, peer=True)
    emulator.launch_together(
        [
            Launch(
                module=module,
                name="exchange",
                grid=1,
                block=64,
                args=[
                    own[rank].ctypes.data,
                    own[1 - rank].ctypes.data + 4 * n,
                    flags[rank].ctypes.data,
                    flags[1 - rank].ctypes.data,
                    out[rank],
                    n,
                ],
            )
            for rank in range(2)
        ]
    )
    return [(out[rank], own[1 - rank][:n] * 2 + 1) for rank in range(2)]


def test_ranks_meet() -> None:
    for got, expected in _exchange():
        assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    ("wrong", "error", "kind"),
    [
        ({"signal": "st_release_gpu"}, RaceFault, "scope"),
        ({"look": "ld_acquire_gpu"}, RaceFault, "scope"),
        ({"peer": False}, MemoryFault, "foreign-rank"),
    ],
)
def test_ranks_need_the_system_scope_and_peer_memory(wrong: dict[str, Any], error: type, kind: str) -> None:
    with pytest.raises(error) as caught:
        _exchange(**wrong)
    assert caught.value.report.kind == kind


_RACE = r"""
extern "C" __global__ void k(u32* x) {
    x[threadIdx.x] = 2;
    if (threadIdx.x >= 32) x[threadIdx.x - 32] = 3;
    __syncthreads();
    x[threadIdx.x] = 1;
}"""


def test_what_happens_to_findings() -> None:
    """checks: errors raise, warnings are noted; suppressed kinds are neither; off looks at no accesses."""
    ptx, x = compile_cuda(_RACE), np.zeros(64, np.uint32)
    with pytest.raises(RaceFault):
        Emulator(cache_dir=object_cache()).load(ptx).launch("k", 1, 64, args=[x])
    module = Emulator(cache_dir=object_cache(), checks="warn").load(ptx)
    module.launch("k", 1, 64, args=[x])
    (finding,) = module.report.findings
    assert (finding.kind, finding.severity) == ("race", "error")
    assert finding.who is not None
    assert finding.earlier is not None
    assert finding.who.role == "kernel"
    assert {finding.who.warp, finding.earlier.who.warp} == {0, 1}  # type: ignore[union-attr]
    assert str(finding) in str(module.report)
    for settings in ({"suppress": ["race"]}, {"checks": "off"}):
        module = Emulator(**settings).load(ptx)  # type: ignore[arg-type]
        module.launch("k", 1, 64, args=[x])
        assert module.report.findings == []
        assert (x == 1).all()


def test_uninitialised_shared_memory_is_a_warning() -> None:
    source = r"""
    extern "C" __global__ void k(u32* x) {
        __shared__ u32 tile[64];
        if (threadIdx.x < 60) tile[threadIdx.x] = 5;
        __syncthreads();
        x[threadIdx.x] = tile[threadIdx.x];
    }"""
    x = np.zeros((2, 64), np.uint32)
    for seed in range(2):
        module = Emulator(cache_dir=object_cache(), seed=seed).load(compile_cuda(source))
        module.launch("k", 1, 64, args=[x[seed]])
        (finding,) = module.report.findings
        assert (finding.kind, finding.severity) == ("uninitialised", "warning")
        assert "tile+0xf0" in finding.message
    assert (x[0, :60] == 5).all()
    assert (x[0, 60:] != x[1, 60:]).any()  # poison is drawn from the seed


def test_reports_count() -> None:
    source = r"""
    extern "C" __global__ void k(u32* x) {
        for (int i = 0; i < 10; i++) { x[threadIdx.x] += i; __syncthreads(); }
        if (threadIdx.x == 3) printf("%d of %s\n", 3, "them");
    }"""
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(source))
    x = np.zeros(64, np.uint32)
    module.launch("k", 1, 64, args=[x])
    report = module.report
    assert report.instructions["bar.sync"] >= 20
    assert report.warp_instructions == sum(report.instructions.values())
    assert report.printed == "3 of them\n"
    assert report.cycles > 20
    assert report.barrier_waits >= 10
    before = report.warp_instructions
    module.launch("k", 1, 64, args=[x])
    assert module.report.warp_instructions >= before + before // 2
    assert "warp instructions" in str(report)
    trace = json.loads(json.dumps(report.timeline()))
    names = {event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert {"CTA 0", "warp  0", "warp  1"} <= names
    waits = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert waits
    assert all(event["dur"] >= 0 and "barrier 0" in event["name"] for event in waits)


def test_unknown_instructions_are_listed_before_anything_runs() -> None:
    ptx = compile_cuda(_ARGS).replace("st.global.u32", "st.global.strange.u32")
    module = Emulator(cache_dir=object_cache()).load(ptx)
    x, y = np.arange(4, dtype=np.uint32), np.zeros(4, np.uint32)
    with pytest.raises(UnsupportedError, match=r"(?s)cannot execute .*kernel\.cu:\d+.*st\.global\.strange\.u32"):
        module.launch("copy", 1, 32, args=[x, y, 4])
    assert not y.any()


def test_kinds_are_whole() -> None:
    """Each kind has a class, a severity, a section and a sentence."""
    for name, kind in KINDS.items():
        assert kind.name == name
        assert issubclass(kind.fault, MegaMoeError)
        assert kind.severity in ("error", "warning")
        assert kind.section
        assert kind.meaning.endswith(".")
