"""Loads and stores in every space, width and vector length: data, rights, bounds, alignment; never a crash."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pytest

from megamoe_jit.emulator.machine.engine import StopKind
from megamoe_jit.emulator.memory.allocations import Allocations
from megamoe_jit.emulator.memory.spaces import LOCAL_WINDOW, SHARED_WINDOW
from megamoe_jit.emulator.native.context import FaultKind, FaultSpace
from tests.emulator.native.calls import load, store
from tests.emulator.native.harness import SHARED_BASE, Bench, fault, finish, kernel_text

RNG = np.random.default_rng(5)
SHAPES = [
    (1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (4, 4), (4, 8), (8, 1), (8, 2), (8, 4), (16, 1),
]  # fmt: skip
REGISTER = {1: "b16", 2: "b16", 4: "b32", 8: "b64", 16: "b128"}
FRAME = 1024
SMEM = 4096
SPACES = ["global", "shared", "shared::cluster", "local", ""]


def vector_of(name: str, count: int) -> tuple[str, str]:
    """Return (".v4", "{%v0, %v1, %v2, %v3}")."""
    if count == 1:
        return "", f"%{name}0"
    return f".v{count}", "{" + ", ".join(f"%{name}{i}" for i in range(count)) + "}"


def access_kernel(space: str, width: int, count: int, *, is_load: bool, narrow: bool = False) -> str:
    """Return a kernel whose lanes load from, or store to, addresses of an array; data is in another array."""
    vec, regs = vector_of("v", count)
    dotted = f".{space}" if space else ""
    type = f"b{8 * width}"
    size = width * count
    data_regs = f".reg .{REGISTER[width]} %v<{count}>;"
    # Data goes through 64-bit pieces or single elements, so that the access under test is the only one of its kind.
    move = "st" if is_load else "ld"
    data = []
    for i in range(count):
        address, element = f"[%data+{i * width}]", f"%v{i}"
        data.append(f"{move}.global.{type} " + (f"{address}, {element};" if is_load else f"{element}, {address};"))
    address = f"[{'%a32' if narrow else '%a'}+{size}]"
    operands = f"{regs}, {address}" if is_load else f"{address}, {regs}"
    access = f"{'ld' if is_load else 'st'}{dotted}{vec}.{type} {operands};"
    body = f"""
        ld.param.u64 %p, [where];
        ld.param.u64 %data, [data];
        mov.u32 %lane, %laneid;
        mad.wide.u32 %p, %lane, 8, %p;
        mad.wide.u32 %data, %lane, {size}, %data;
        ld.global.u64 %a, [%p];
        cvt.u32.u64 %a32, %a;
        {"" if is_load else " ".join(data)}
        {access}
        {" ".join(data) if is_load else ""}
        ret;"""
    declarations = (
        f".reg .b64 %p, %data, %a; .reg .b32 %lane, %a32; {data_regs} "
        f".shared .align 16 .b8 smem[{SMEM}]; .local .align 16 .b8 frame[{FRAME}];"
    )
    return kernel_text(body, ".param .u64 where, .param .u64 data", declarations)


@dataclass
class Rig:
    """A cluster of two CTAs, allocations with different rights, and a kernel that makes one access a lane."""

    space: str
    width: int
    count: int
    is_load: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        size = self.size = self.width * self.count
        self.allocations = Allocations()
        self.where = np.zeros(32, np.uint64)
        self.data = np.zeros(32 * size, np.uint8)
        self.arrays = {}
        for name, kwargs in {
            "mine": {"rank": 1}, "all": {}, "readonly": {"writable": False}, "peer": {"rank": 0, "peer": True},
            "foreign": {"rank": 0},
        }.items():  # fmt: skip
            raw = RNG.integers(0, 256, 4096 + 64, np.uint8)
            array = raw[-raw.ctypes.data % 64 :][:4096]
            self.arrays[name] = array
            # Only the middle may be touched: nothing is overwritten when a check fails.
            self.allocations.add(array.ctypes.data + 1024, 2048, name=name, keep=raw, **kwargs)
        for array in (self.where, self.data):
            self.allocations.add(array.ctypes.data, array.nbytes)
        params = struct.pack("<QQ", self.where.ctypes.data, self.data.ctypes.data)
        text = access_kernel(self.space, self.width, self.count, is_load=self.is_load, narrow=self.narrow)
        self.bench = Bench(text, cluster=2, rank=1, params=params, allocations=self.allocations)
        for cta in self.bench.cluster.ctas:
            cta.smem[:] = RNG.integers(0, 256, cta.smem.size, np.uint8)
        self.warp = self.bench.warp(cta=1)
        (frames,) = self.warp.ctx.keep
        self.frames = frames.reshape(32, FRAME)
        self.frames[:] = RNG.integers(0, 256, self.frames.shape, np.uint8)

    def bytes_at(self, lane: int, address: int) -> tuple[np.ndarray | None, set[FaultKind]]:
        """Return what a lane's access touches, or the faults that are right to report."""
        size = self.size
        misaligned = {FaultKind.MISALIGNED} if address % size else set()
        space = self.space
        if space == "":
            window = address >> 56
            space = {1: "shared::cluster", 2: "local"}.get(window, "global")
            if space != "global" and (address >> 32) & 0xFFFFFF:
                kind = FaultKind.LOCAL_BOUNDS if space == "local" else FaultKind.SHARED_BOUNDS
                return None, {kind} | misaligned
            if space != "global":
                address &= 0xFFFFFFFF
        if self.narrow:
            address &= 0xFFFFFFFF
        if space.startswith("shared"):
            if address >> 32:
                return None, {FaultKind.SHARED_BOUNDS} | misaligned
            rank, offset = address >> 24, address & 0xFFFFFF
            if rank > 1:
                return None, {FaultKind.SHARED_RANK} | misaligned
            smem = self.bench.cluster.ctas[rank].smem
            wrong = set()
            if rank != 1 and space == "shared":
                wrong.add(FaultKind.SHARED_FOREIGN)
            if not SHARED_BASE <= offset <= len(smem) - size:
                wrong.add(FaultKind.SHARED_BOUNDS)
            wrong |= misaligned
            return (None, wrong) if wrong else (smem[offset : offset + size], set())
        if space == "local":
            if address >> 56 == 2:
                address -= LOCAL_WINDOW
            if address > FRAME - size:
                return None, {FaultKind.LOCAL_BOUNDS} | misaligned
            return (None, misaligned) if misaligned else (self.frames[lane, address : address + size], set())
        for name, array in self.arrays.items():
            start = array.ctypes.data + 1024
            if start <= address < start + 2048:
                wrong = set(misaligned)
                if address + size > start + 2048:
                    wrong.add(FaultKind.OUT_OF_BOUNDS)
                if name == "foreign":
                    wrong.add(FaultKind.FOREIGN_RANK)
                if name == "readonly" and not self.is_load:
                    wrong.add(FaultKind.READ_ONLY)
                at = address - array.ctypes.data
                return (None, wrong) if wrong else (array[at : at + size], set())
        return None, {FaultKind.UNMAPPED} | misaligned

    def wild_addresses(self) -> np.ndarray:
        """Return 32 addresses: fine ones, and some with every kind of fault."""
        size = self.size
        pool = [0, 1, 8, 1 << 63, (1 << 64) - size, (1 << 64) - 1, 1 << 47, 123456789 * 32]
        for array in self.arrays.values():
            start = array.ctypes.data + 1024
            pool += [start + size * int(i) for i in RNG.integers(0, 2048 // size, 24)]
            pool += [start - size, start - 1, start + 2048, start + 2048 - size + 1, start + 1, start + 2048 - size]
        for rank in (0, 1, 2, 15, 16, 255):
            for offset in (0, SHARED_BASE - size, SHARED_BASE, SHARED_BASE + SMEM - size, SHARED_BASE + SMEM, 0xFFFFFF):
                pool += [(rank << 24) | offset, SHARED_WINDOW + ((rank << 24) | offset)]
        for rank in (0, 1, 1, 1):
            offsets = SHARED_BASE + size * RNG.integers(0, SMEM // size, 30)
            pool += [int(offset) | rank << 24 for offset in offsets]
            pool += [SHARED_WINDOW + (int(offset) | rank << 24) for offset in offsets]
        local = [0, size, FRAME - size, FRAME, FRAME + 1, 1, 0xFFFFFFF0, *(size * RNG.integers(0, FRAME // size, 30))]
        pool += [int(address) for address in local] + [LOCAL_WINDOW + int(address) for address in local]
        pool += [SHARED_WINDOW + (1 << 40), LOCAL_WINDOW + (1 << 33), 3 << 56, int(RNG.integers(0, 1 << 63))]
        return np.array([pool[int(i)] % (1 << 64) for i in RNG.integers(0, len(pool), 32)], np.uint64)

    def check(self, addresses: np.ndarray) -> None:
        """Run with these addresses, and compare with what each lane should do."""
        size = self.size
        with np.errstate(over="ignore"):
            self.where[:] = addresses - np.uint64(size)
        self.data[:] = RNG.integers(0, 256, self.data.size, np.uint8)
        data = self.data.reshape(32, size).copy()
        wrong: dict[int, set[FaultKind]] = {}
        expected = data.copy()
        stores = []
        for lane in range(32):
            touched, faults = self.bytes_at(lane, int(addresses[lane]))
            if touched is None:
                wrong[lane] = faults
                expected[lane] = 0 if self.is_load else data[lane]
            elif self.is_load:
                expected[lane] = touched
            else:
                stores.append((touched, data[lane]))
        before = [array.copy() for array in self.memory()]
        stop = self.bench.run(self.warp)
        if wrong:
            assert stop.kind is StopKind.FAULT
            kind, pc, lane, address, reported = fault(self.warp)
            assert lane in wrong, (lane, hex(address))
            assert kind in wrong[lane], (FaultKind(kind), wrong[lane], hex(address))
            assert reported == size
            assert self.bench.program.function.instructions[pc].text.startswith("ld" if self.is_load else "st")
            assert self.warp.ctx.fault_write == (not self.is_load)
            assert address % (1 << 32) == int(addresses[lane]) % (1 << 32)
            self.warp.ctx.clear_fault()
            stop = self.bench.run(self.warp)
        assert stop.kind is StopKind.EXIT
        if self.is_load:
            np.testing.assert_array_equal(self.data.reshape(32, size), expected)
            stores = []
        after = [array.copy() for array in self.memory()]
        for array, old in zip(self.memory(), before, strict=True):
            array[...] = old
        for touched, new in stores:  # lanes ascend: where two lanes store to one place, the engine's last lane wins
            touched[:] = new
        for array, engine in zip(self.memory(), after, strict=True):
            np.testing.assert_array_equal(engine, array)

    def memory(self) -> list[np.ndarray]:
        return [*self.arrays.values(), *(cta.smem for cta in self.bench.cluster.ctas), self.frames]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("width", "count"), SHAPES)
@pytest.mark.parametrize("is_load", [True, False])
def test_accesses_do_what_is_allowed_and_report_the_rest(space: str, width: int, count: int, is_load: bool) -> None:
    rig = Rig(space, width, count, is_load)
    for _ in range(4):
        rig.check(rig.wild_addresses())
        rig.warp = rig.bench.warp(cta=1)
        (frames,) = rig.warp.ctx.keep
        frames.reshape(32, FRAME)[:] = rig.frames
        rig.frames = frames.reshape(32, FRAME)
    # And the ordinary case, where all lanes are fine: consecutive addresses.
    start = {
        "global": rig.arrays["mine"].ctypes.data + 1024, "": rig.arrays["all"].ctypes.data + 1024,
        "local": 0, "shared": (1 << 24) | SHARED_BASE, "shared::cluster": SHARED_BASE,
    }[space]  # fmt: skip
    rig.check(np.uint64(start) + np.uint64(rig.size) * np.arange(32, dtype=np.uint64))


@pytest.mark.parametrize("space", ["shared", "shared::cluster", "local"])
@pytest.mark.parametrize("is_load", [True, False])
def test_narrow_addresses(space: str, is_load: bool) -> None:
    rig = Rig(space, 4, 2, is_load, narrow=True)
    for _ in range(3):
        rig.check(rig.wild_addresses() & np.uint64(0xFFFFFFFF))
        rig.warp = rig.bench.warp(cta=1)
        (frames,) = rig.warp.ctx.keep
        rig.frames = frames.reshape(32, FRAME)


def test_a_fault_names_the_first_one_and_counts_all() -> None:
    rig = Rig("global", 4, 1, True)
    rig.where[:] = 0
    assert rig.bench.run(rig.warp).kind is StopKind.FAULT
    assert rig.warp.ctx.num_faults == 32
    assert fault(rig.warp)[2] == 0


@pytest.mark.parametrize(
    ("load_type", "register", "signed"),
    [("s8", "b32", True), ("u8", "b32", False), ("b8", "b64", False), ("s8", "b16", True), ("s16", "b32", True),
     ("u16", "b64", False), ("s16", "b64", True), ("s32", "b64", True), ("u32", "b64", False), ("b32", "b64", False)],
)  # fmt: skip
def test_narrow_loads_widen_and_stores_cut(load_type: str, register: str, signed: bool) -> None:
    width, wide = int(load_type[1:]) // 8, int(register[1:]) // 8
    source = RNG.integers(0, 256, 32 * width, np.uint8)
    target = np.zeros(32 * wide, np.uint8)
    back = np.zeros(32 * width, np.uint8)
    body = f"""
        mov.u32 %lane, %laneid;
        ld.param.u64 %a, [source]; mad.wide.u32 %a, %lane, {width}, %a;
        ld.param.u64 %b, [target]; mad.wide.u32 %b, %lane, {wide}, %b;
        ld.param.u64 %c, [back]; mad.wide.u32 %c, %lane, {width}, %c;
        ld.global.{load_type} %v, [%a];
        st.global.{register} [%b], %v;
        st.global.b{8 * width} [%c], %v;
        ret;"""
    params = ".param .u64 source, .param .u64 target, .param .u64 back"
    text = kernel_text(body, params, f".reg .b64 %a, %b, %c; .reg .b32 %lane; .reg .{register} %v;")
    arrays = (source, target, back)
    bench = Bench(text, params=struct.pack("<QQQ", *(array.ctypes.data for array in arrays)))
    for array in arrays:
        bench.allocations.add(array.ctypes.data, array.nbytes)
    finish(bench, bench.warp())
    letter = "i" if signed else "u"
    expected = source.view(f"{letter}{width}").astype(f"{letter}{wide}")
    np.testing.assert_array_equal(target.view(f"{letter}{wide}"), expected)
    np.testing.assert_array_equal(back, source)


def test_guarded_loads_keep_the_other_lanes_registers() -> None:
    source = RNG.integers(0, 2**32, 64, np.uint32)
    target = np.zeros((32, 4), np.uint32)
    body = """
        mov.u32 %lane, %laneid;
        ld.param.u64 %a, [source]; mad.wide.u32 %a, %lane, 8, %a;
        ld.param.u64 %b, [target]; mad.wide.u32 %b, %lane, 16, %b;
        and.b32 %x, %lane, 1;
        setp.eq.u32 %p, %x, 1;
        add.u32 %r0, %lane, 1000;
        mov.u32 %r1, 7;
        @%p ld.global.v2.u32 {%r0, %r1}, [%a];
        mov.u16 %h, 5;
        cvt.u32.u16 %r2, %h;
        @!%p ld.global.u8 %r2, [%a];
        @!%p ld.global.v2.u32 {_, %r3}, [%a];
        @%p mov.u32 %r3, 9;
        st.global.v4.u32 [%b], {%r0, %r1, %r2, %r3};
        ret;"""
    text = kernel_text(
        body,
        ".param .u64 source, .param .u64 target",
        ".reg .b64 %a, %b; .reg .b32 %lane, %x; .reg .b32 %r<4>; .reg .pred %p; .reg .b16 %h;",
    )
    bench = Bench(text, params=struct.pack("<QQ", source.ctypes.data, target.ctypes.data))
    for array in (source, target):
        bench.allocations.add(array.ctypes.data, array.nbytes)
    finish(bench, bench.warp())
    lane = np.arange(32)
    odd = lane % 2 == 1
    expected = np.stack(
        [
            np.where(odd, source[0::2], lane + 1000),
            np.where(odd, source[1::2], 7),
            np.where(odd, 5, source[0::2] & 0xFF),
            np.where(odd, 9, source[1::2]),
        ],
        axis=1,
    )
    np.testing.assert_array_equal(target, expected)


def test_parameters_by_symbol_and_by_address() -> None:
    out = np.zeros((32, 6), np.uint64)
    body = """
        mov.u32 %lane, %laneid;
        ld.param.u64 %o, [out]; mad.wide.u32 %o, %lane, 48, %o;
        ld.param.u32 %r0, [small+4];
        cvt.u64.u32 %v0, %r0;
        ld.param.v2.u64 {%v1, %v2}, [pair];
        mov.b64 %a, pair;
        ld.param.u64 %v3, [%a+8];
        cvta.param.u64 %a, %a;
        ld.u64 %v4, [%a];
        and.b32 %r1, %lane, 1;
        mad.wide.u32 %a, %r1, 8, %a;
        ld.param.u64 %v5, [%a];
        st.global.u64 [%o], %v0; st.global.u64 [%o+8], %v1; st.global.u64 [%o+16], %v2;
        st.global.u64 [%o+24], %v3; st.global.u64 [%o+32], %v4; st.global.u64 [%o+40], %v5;
        ret;"""
    params = ".param .u64 out, .param .align 4 .b8 small[8], .param .align 16 .b8 pair[16]"
    text = kernel_text(body, params, ".reg .b64 %o, %a; .reg .b64 %v<6>; .reg .b32 %lane; .reg .b32 %r<2>;")
    packed = struct.pack("<QIIQQ", out.ctypes.data, 1, 0xFFFFFFF0, 0x1122334455667788, 99)
    bench = Bench(text, params=packed)
    bench.allocations.add(out.ctypes.data, out.nbytes)
    finish(bench, bench.warp())
    first, second = 0x1122334455667788, 99
    even = [0xFFFFFFF0, first, second, second, first, first]
    np.testing.assert_array_equal(out, np.array([even, [*even[:5], second]] * 16, np.uint64))


@pytest.mark.parametrize(
    ("offset", "kind"),
    [
        (16, FaultKind.PARAM_BOUNDS),
        (-8, FaultKind.PARAM_BOUNDS),
        (4, FaultKind.MISALIGNED),
        (1 << 40, FaultKind.PARAM_BOUNDS),
    ],
)
def test_parameters_have_bounds(offset: int, kind: FaultKind) -> None:
    text = kernel_text(
        f"mov.b64 %a, x;\nadd.u64 %a, %a, {offset};\nld.param.u64 %b, [%a];\nret;",
        ".param .u64 x, .param .u64 y",
        ".reg .b64 %a, %b;",
    )
    bench = Bench(text)
    warp = bench.warp()
    assert bench.run(warp).kind is StopKind.FAULT
    assert fault(warp)[0] == kind
    assert warp.ctx.fault_space == FaultSpace.PARAM


def test_symbols_and_windows() -> None:
    """Addresses of shared, local and global variables, converted to generic and back, with each way to access them."""
    table = np.arange(64, dtype=np.uint32)
    out = np.zeros((32, 8), np.uint64)
    body = """
        mov.u32 %lane, %laneid;
        ld.param.u64 %o, [out]; mad.wide.u32 %o, %lane, 64, %o;
        mov.u32 %r0, second;
        cvt.u64.u32 %v0, %r0;
        cvta.shared.u64 %v1, %v0;
        mov.u64 %v2, var;
        cvta.local.u64 %v3, %v2;
        cvta.to.shared.u64 %v4, %v1;
        mov.u64 %v5, table+8;
        ld.global.u32 %r1, [table+12];
        st.u32 [%v1+4], %r1;
        st.u32 [%v3], %lane;
        ld.shared.u32 %r2, [second+4];
        ld.local.u32 %r3, [var];
        cvt.u64.u32 %v6, %r2;
        cvt.u64.u32 %v7, %r3;
        st.global.v4.u64 [%o], {%v0, %v1, %v2, %v3};
        st.global.v4.u64 [%o+32], {%v4, %v5, %v6, %v7};
        ret;"""
    text = kernel_text(
        body,
        ".param .u64 out",
        ".reg .b64 %o; .reg .b64 %v<8>; .reg .b32 %lane; .reg .b32 %r<4>; .shared .align 8 .b8 first[24]; "
        ".shared .align 16 .b8 second[32]; .local .align 8 .b8 var[8];",
        ".global .align 4 .u32 table[64];",
    )
    aligned = np.zeros(32 * 64 + 64, np.uint8)
    out = aligned[-aligned.ctypes.data % 64 :][: 32 * 64].view(np.uint64).reshape(32, 8)
    bench = Bench(text, cluster=2, params=struct.pack("<Q", out.ctypes.data), symbols={"table": table.ctypes.data})
    for array in (out, table):
        bench.allocations.add(array.ctypes.data, array.nbytes)
    finish(bench, bench.warp(cta=1))
    shared = (1 << 24) | (SHARED_BASE + 32)
    local = out[0, 2] & 0xFFFFFFFF
    expected = [shared, SHARED_WINDOW + shared, out[0, 2], LOCAL_WINDOW + int(local), shared, table.ctypes.data + 8, 3]
    for lane in range(32):
        assert out[lane].tolist() == [*expected, lane]


def test_cluster_addresses() -> None:
    out = np.zeros((32, 6), np.uint32)
    body = """
        mov.u32 %lane, %laneid;
        ld.param.u64 %o, [out]; mad.wide.u32 %o, %lane, 24, %o;
        and.b32 %rank, %lane, 1;
        mov.u32 %r0, buffer;
        mapa.shared::cluster.u32 %r1, %r0, %rank;
        getctarank.shared::cluster.u32 %r2, %r1;
        cvt.u64.u32 %a, %r0;
        cvta.shared.u64 %a, %a;
        mapa.u64 %b, %a, %rank;
        getctarank.u64 %r3, %b;
        isspacep.shared::cta %p0, %b;
        selp.u32 %r4, 1, 0, %p0;
        isspacep.shared::cluster %p0, %b;
        isspacep.global %p1, %o;
        isspacep.local %p2, %o;
        selp.u32 %r5, 1, 0, %p0;
        @%p1 add.u32 %r5, %r5, 2;
        @%p2 add.u32 %r5, %r5, 4;
        add.u64 %b, %b, 4;
        mad.lo.u32 %lane, %lane, 8, 0;
        cvt.u64.u32 %c, %lane;
        add.u64 %b, %b, %c;
        st.u32 [%b], %r2;
        st.global.u32 [%o], %r0; st.global.u32 [%o+4], %r1; st.global.u32 [%o+8], %r2;
        st.global.u32 [%o+12], %r3; st.global.u32 [%o+16], %r4; st.global.u32 [%o+20], %r5;
        ret;"""
    declarations = (
        ".reg .b64 %o, %a, %b, %c; .reg .b32 %lane, %rank; .reg .b32 %r<6>; .reg .pred %p<3>; "
        ".shared .align 8 .b8 buffer[512];"
    )
    bench = Bench(
        kernel_text(body, ".param .u64 out", declarations), cluster=2, params=struct.pack("<Q", out.ctypes.data)
    )
    bench.allocations.add(out.ctypes.data, out.nbytes)
    finish(bench, bench.warp(cta=1))
    own = (1 << 24) | SHARED_BASE
    for lane in range(32):
        rank = lane & 1
        assert out[lane].tolist() == [own, (rank << 24) | SHARED_BASE, rank, rank, rank, 3]
        place = SHARED_BASE + 4 + 8 * lane
        stored = [int(cta.smem[place : place + 4].view(np.uint32)[0]) for cta in bench.cluster.ctas]
        assert stored[rank] == rank


def test_a_cta_that_has_left_is_not_there() -> None:
    rig = Rig("shared::cluster", 4, 1, False)
    rig.bench.cluster.smem_table[0] = 0
    rig.where[:] = SHARED_BASE
    assert rig.bench.run(rig.warp).kind is StopKind.FAULT
    assert fault(rig.warp)[0] == FaultKind.SHARED_RANK


def test_calls_from_python_make_the_same_accesses() -> None:
    rig = Rig("global", 4, 1, True)
    warp = rig.warp
    array = rig.arrays["mine"][1024:3072].view(np.uint32)
    addresses = np.uint64(array.ctypes.data) + 16 * np.arange(32, dtype=np.uint64)
    values = load(warp, 0xFFFF00FF, FaultSpace.GLOBAL, addresses, 4, 2, pc=7)
    expected = np.stack([array[0:128:4], array[1:128:4]])
    expected[:, 8:16] = 0
    np.testing.assert_array_equal(values, expected)
    store(warp, 0xFF, FaultSpace.GENERIC, addresses, np.arange(32, dtype=np.uint64), 8, pc=8)
    np.testing.assert_array_equal(array.view(np.uint64)[0:16:2], range(8))
    assert fault(warp)[0] == FaultKind.NONE
    assert not load(warp, 1, FaultSpace.LOCAL, np.full(32, FRAME, np.uint64), 2, pc=9).any()
    assert fault(warp)[:4] == (FaultKind.LOCAL_BOUNDS, 9, 0, FRAME)
