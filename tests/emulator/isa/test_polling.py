"""Strong loads and stores of every width, space and vector; barriers, fences and sleep in all their spellings."""

from __future__ import annotations

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator
from megamoe_jit.emulator.isa.polling import order_of
from megamoe_jit.emulator.isa.table import Kind, lookup
from megamoe_jit.errors import MemoryFault, UnsupportedError
from tests.emulator.cuda_source import object_cache

_HEAD = ".version 8.7\n.target sm_100a\n.address_size 64\n"
_ORDERS = [
    ("ld.volatile", "st.volatile"), ("ld.relaxed.cta", "st.relaxed.cta"), ("ld.acquire.gpu", "st.release.gpu"),
    ("ld.acquire.sys", "st.release.sys"), ("ld.relaxed.cluster", "st.release.cluster"),
    ("ld.mmio.relaxed.sys", "st.mmio.relaxed.sys"),
]  # fmt: skip
_WIDTHS = [("u8", 2, 1), ("s8", 2, 1), ("u16", 2, 2), ("b32", 4, 4), ("s32", 8, 4), ("f32", 4, 4), ("u64", 8, 8)]


def copy_kernel(load: str, store: str, space: str, type_: str, register_bytes: int, vector: int) -> str:
    """Each lane reads its elements of x, through shared memory when that is the space, and writes them to y."""
    size = {"8": 1, "6": 2, "2": 4, "4": 8}[type_[-1]] * vector
    registers = [f"%v{i}" for i in range(vector)]
    operand = registers[0] if vector == 1 else "{" + ", ".join(registers) + "}"
    suffix = (f".v{vector}" if vector > 1 else "") + f".{type_}"
    kind = {2: "b16", 4: "f32" if type_ == "f32" else "b32", 8: "b64"}[register_bytes]
    weak_load, weak_store = f"ld.global{suffix}", f"st.global{suffix}"
    if space == "shared":
        middle = f"{store}.shared{suffix} [%s], {operand};\n{load}.shared{suffix} {operand}, [%s];"
    else:
        middle, weak_load, weak_store = "", f"{load}{space}{suffix}", f"{store}{space}{suffix}"
    return f"""{_HEAD}
.visible .entry k(.param .u64 x, .param .u64 y) {{
.reg .b64 %x, %y, %o; .reg .b32 %t, %s; .reg .{kind} {", ".join(registers)};
.shared .align 32 .b8 tile[1024];
ld.param.u64 %x, [x]; ld.param.u64 %y, [y];
mov.u32 %t, %tid.x; mul.wide.u32 %o, %t, {size}; add.u64 %x, %x, %o; add.u64 %y, %y, %o;
mul.lo.u32 %t, %t, {size}; mov.u32 %s, tile; add.u32 %s, %s, %t;
{weak_load} {operand}, [%x];
{middle}
{weak_store} [%y], {operand};
ret; }}
"""


@pytest.mark.parametrize(("load", "store"), _ORDERS)
@pytest.mark.parametrize("space", [".global", "", "shared"])
def test_copies_of_every_width(load: str, store: str, space: str) -> None:
    rng = np.random.default_rng(1)
    for type_, register_bytes, size in _WIDTHS:
        for vector in (1, 2, 4):
            if size * vector > 16:
                continue
            x = rng.integers(0, 256, 32 * size * vector, dtype=np.uint8)
            y = np.zeros_like(x)
            module = Emulator(cache_dir=object_cache()).load(
                copy_kernel(load, store, space, type_, register_bytes, vector)
            )
            module.launch("k", 1, 32, args=[x, y])
            assert np.array_equal(x, y), (type_, vector)
            assert module.report.findings == []


def test_narrow_loads_fill_their_registers() -> None:
    """s8 into 32 bits keeps the sign, u8 does not."""
    ptx = f"""{_HEAD}
.visible .entry k(.param .u64 x, .param .u64 y) {{
.reg .b64 %x, %y, %o; .reg .b32 %t, %a, %b;
ld.param.u64 %x, [x]; ld.param.u64 %y, [y];
mov.u32 %t, %tid.x; cvt.u64.u32 %o, %t; add.u64 %x, %x, %o; mul.lo.u64 %o, %o, 8; add.u64 %y, %y, %o;
ld.volatile.global.s8 %a, [%x]; ld.relaxed.gpu.global.u8 %b, [%x];
st.global.v2.b32 [%y], {{%a, %b}};
ret; }}
"""
    x = np.arange(-16, 16, dtype=np.int8) * 7
    y = np.zeros((32, 2), np.uint32)
    Emulator(cache_dir=object_cache()).load(ptx).launch("k", 1, 32, args=[x, y])
    assert np.array_equal(y[:, 0].view(np.int32), x.astype(np.int32))
    assert np.array_equal(y[:, 1], x.view(np.uint8).astype(np.uint32))


def test_misaligned_vectors() -> None:
    ptx = copy_kernel("ld.acquire.gpu", "st.release.gpu", ".global", "b32", 4, 4)
    x, y = np.zeros(200, np.uint32), np.zeros(200, np.uint32)
    with pytest.raises(MemoryFault, match="no multiple of 16"):
        Emulator(cache_dir=object_cache()).load(ptx).launch("k", 1, 32, args=[x[1 + (-(x.ctypes.data // 4)) % 4 :], y])


@pytest.mark.parametrize(
    ("opcode", "order"),
    [
        ("ld.volatile.global.u32", ("relaxed", "sys")),
        ("ld.volatile.v4.f32", ("relaxed", "sys")),
        ("ld.acquire.gpu.global.L1::no_allocate.L2::128B.v2.u64", ("acquire", "gpu")),
        ("ld.relaxed.cluster.shared::cluster.u32", ("relaxed", "cluster")),
        ("ld.mmio.relaxed.sys.global.u32", ("relaxed", "sys")),
        ("st.release.cta.shared::cta.b32", ("release", "cta")),
        ("st.relaxed.gpu.global.L2::cache_hint.v4.b32", ("relaxed", "gpu")),
    ],
)
def test_orders(opcode: str, order: tuple[str, str]) -> None:
    assert order_of(lookup(opcode).form) == order


def test_spellings() -> None:
    """Spellings of the manual and of compilers, and some that are none."""
    good = """bar.sync bar.cta.sync barrier.sync barrier.sync.aligned barrier.cta.sync.aligned bar.arrive
        barrier.arrive.aligned bar.red.popc.u32 bar.cta.red.and.pred barrier.cta.red.or.aligned.pred
        barrier.cluster.arrive barrier.cluster.arrive.release barrier.cluster.arrive.relaxed.aligned
        barrier.cluster.wait barrier.cluster.wait.acquire.aligned membar.cta membar.gl membar.sys fence.sc.gpu
        fence.acq_rel.sys fence.acquire.cluster fence.proxy.alias fence.proxy.async fence.proxy.async.global
        fence.proxy.async.shared::cluster fence.proxy.tensormap::generic.release.gpu fence.mbarrier_init.release.cluster
        mbarrier.init.b64 mbarrier.inval.shared::cta.b64 mbarrier.arrive.b64 mbarrier.arrive.release.cta.shared.b64
        mbarrier.arrive.relaxed.cluster.shared::cluster.b64 mbarrier.arrive.noComplete.release.cta.shared::cta.b64
        mbarrier.arrive_drop.expect_tx.shared::cta.b64 mbarrier.arrive.expect_tx.relaxed.cta.shared::cluster.b64
        mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 mbarrier.complete_tx.shared::cta.b64
        mbarrier.test_wait.acquire.cta.shared::cta.b64 mbarrier.test_wait.parity.b64 mbarrier.try_wait.b64
        mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 setmaxnreg.dec.sync.aligned.u32 nanosleep.u32 trap
        createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 createpolicy.range.global.L2::evict_first.b64
        createpolicy.cvt.L2.b64"""
    for opcode in good.split():
        assert lookup(opcode).kind in (Kind.HANDLER, Kind.NOOP), opcode
        assert lookup(opcode).section
    bad = """bar.wait barrier.cluster.sync fence.gpu.acq_rel fence.proxy.sync mbarrier.arrive.acquire.cta.b64
        mbarrier.try_wait.release.cta.b64 setmaxnreg.inc.u32 st.acquire.gpu.u32 ld.release.gpu.u32 ld.relaxed.u32"""
    for opcode in bad.split():
        with pytest.raises(UnsupportedError):
            lookup(opcode)
