"""tcgen05 but for its products: allocation, loads and stores, copies, commits; on the machine, one thing at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.engines import tcgen05_transfer
from megamoe_jit.emulator.engines.tcgen05 import tmem_of
from megamoe_jit.emulator.engines.tensor_memory import REGISTERS
from megamoe_jit.emulator.isa import table
from megamoe_jit.emulator.machine.state import Warp
from megamoe_jit.errors import DeadlockFault, EmulatorFault, MemoryFault, UnsupportedError
from tests.emulator.engines import tiles
from tests.emulator.engines.mini import MiniProgram, Run
from tests.emulator.engines.test_tcgen05_mma import padded_bytes
from tests.emulator.engines.test_tensor_memory import atom_offset, ld_cell

SLOT, BAR, SOURCE = 1024, 1032, 2048
ALLOC, DEALLOC = (
    "tcgen05.alloc.cta_group::{}.sync.aligned.shared::cta.b32",
    "tcgen05.dealloc.cta_group::{}.sync.aligned.b32",
)


def run(
    body: str,
    *,
    setup: Callable[[MiniProgram, Warp], None] | None = None,
    registers: str = "",
    **machine: Any,
) -> Run:
    """Run `body`; %first is a predicate of warp 0 of each CTA, %one of its lane 0, %rN what `setup` sets."""

    def made(program: MiniProgram, warp: Warp) -> None:
        program.set(warp, "%slot", warp.cta.rank << 24 | SLOT)
        program.set(warp, "%bar", warp.cta.rank << 24 | BAR)
        program.set(warp, "%first", warp.index == 0)
        program.set(warp, "%one", (np.arange(32) == 0) & (warp.index == 0))
        if setup is not None:
            setup(program, warp)

    declared = """
        .reg .b32 %slot; .reg .b32 %bar; .reg .pred %first; .reg .pred %one; .reg .pred %done; .reg .b32 %r<8>;
        .reg .b64 %q; .reg .b16 %mask;
    """
    return Run(body, made, registers=declared + registers, **{"smem_bytes": 1 << 15, **machine})


def slots(done: Run) -> list[int]:
    """What allocations wrote, by CTA."""
    return [int(cta.smem[SLOT : SLOT + 4].view(np.uint32)[0]) for cta in done.warps[0].cta.cluster.ctas]


# --- allocation -----------------------------------------------------------------------------------------------------


def zero(program: MiniProgram, warp: Warp) -> None:
    for i in range(8):
        program.set(warp, f"%r{i}", 0)


def test_an_allocation_writes_its_address() -> None:
    done = run(f"@%first {ALLOC.format(1)} [%slot], 64;\n@%first {DEALLOC.format(1)} %r0, 64;", setup=zero)
    assert slots(done) == [0]
    assert tmem_of(done.warps[0].cta).leak() is None


def test_a_leak_is_reported() -> None:
    with pytest.raises(EmulatorFault, match=r"leaves with tensor memory still allocated: allocated: 0\.\.127"):
        run(f"@%first {ALLOC.format(1)} [%slot], 128;", checks="error")


@pytest.mark.parametrize("seed", range(4))
def test_an_allocation_waits_for_columns(seed: int) -> None:
    """Two warps take 512 columns one after the other."""
    body = f"{ALLOC.format(1)} [%slot], 512;\n{DEALLOC.format(1)} %r0, 512;"
    done = run(body, setup=zero, warps=3, seed=seed)
    assert tmem_of(done.warps[0].cta).leak() is None
    with pytest.raises(DeadlockFault, match=r"free columns in tensor memory of CTA 0, allocated: 0\.\.511"):
        run(f"{ALLOC.format(1)} [%slot], 512;", setup=zero, warps=2, seed=seed)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("@%first {0} [%slot], 48;", "power of two"),
        ("@%first {0} [%slot], 64; @%first {0} [%slot], 128;", "must not be larger"),
        ("@%first tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned; @%first {0} [%slot], 32;", "relinquish"),
        ("@%first {0} [%slot], 64; @%first {1} %r0, 32;", "no allocation of 32 columns at 0"),
        ("@%first {0} [%slot], 64; @%first {1} %r1, 64;", "has lane 1"),
    ],
)
def test_rules_of_allocation(body: str, words: str) -> None:
    def setup(program: MiniProgram, warp: Warp) -> None:
        program.set(warp, "%r0", 0)
        program.set(warp, "%r1", 1 << 16)

    with pytest.raises(EmulatorFault, match=words):
        run(body.format(ALLOC.format(1), DEALLOC.format(1)), setup=setup)


@pytest.mark.parametrize("seed", range(6))
def test_a_pair_allocates_together(seed: int) -> None:
    body = f"@%first {ALLOC.format(2)} [%slot], 128;\n@%first {DEALLOC.format(2)} %r0, 128;"
    done = run(body, setup=zero, cluster=4, warps=2, seed=seed)
    assert slots(done) == [0] * 4
    assert all(tmem_of(cta).leak() is None for cta in done.warps[0].cta.cluster.ctas)


def test_both_ctas_of_a_pair_must_ask_for_the_same() -> None:
    def setup(program: MiniProgram, warp: Warp) -> None:
        program.set(warp, "%r0", 64 if warp.cta.rank else 128)

    with pytest.raises(EmulatorFault, match="of 128 columns in CTA 0 of the cluster, but of 64 in CTA 1"):
        run(f"@%first {ALLOC.format(2)} [%slot], %r0;", setup=setup, cluster=2)

    def alone(program: MiniProgram, warp: Warp) -> None:
        program.set(warp, "%first", warp.cta.rank == 0)

    with pytest.raises((DeadlockFault, MemoryFault), match=r"of CTA 1 of the cluster|has left"):
        run(f"@%first {ALLOC.format(2)} [%slot], 32;", setup=alone, cluster=2)


# --- loads and stores -----------------------------------------------------------------------------------------------


def transfer(
    shape: str, num: int, *, load: str = "", store: str = "", split: int = 0, base: Any = None, **machine: Any
) -> tuple[Run, np.ndarray, np.ndarray]:
    """Load with one suffix, store with another; returns (run, words before, words after)."""
    count = REGISTERS[shape] * num
    regs = "{" + ", ".join(f"%v{i}" for i in range(count)) + "}"
    middle = f", {split}" if shape == "16x32bx2" else ""
    body = f"""
        tcgen05.ld.sync.aligned.{shape}.x{num}{load}.b32 {regs}, [%r0]{middle};
        tcgen05.wait::ld.sync.aligned;
        tcgen05.st.sync.aligned.{shape}.x{num}{store}.b32 [%r1]{middle}, {regs};
        tcgen05.wait::st.sync.aligned;
        bar.sync 0;
        @%first {DEALLOC.format(1)} %r2, 512;
    """
    before: list[np.ndarray] = []

    def setup(program: MiniProgram, warp: Warp) -> None:
        memory = tmem_of(warp.cta)
        if warp.index == 0:
            memory.allocate(0, 512)
            memory.words[:] = np.random.default_rng(num).integers(0, 1 << 32, (128, 512), dtype=np.uint32)
            before.append(memory.words.copy())
        lane = 32 * (warp.index % 4) if base is None else base(warp)
        program.set(warp, "%r0", lane << 16 | 7)
        program.set(warp, "%r1", lane << 16 | 300)
        program.set(warp, "%r2", 0)

    done = run(body, setup=setup, registers=f".reg .b32 %v<{count}>;", **machine)
    return done, before[0], tmem_of(done.warps[0].cta).words


@pytest.mark.parametrize("num", [1, 2, 8])
@pytest.mark.parametrize("shape", sorted(REGISTERS))
@pytest.mark.parametrize("completion", ["lazy", "eager", 0.3])
def test_registers_take_and_give_cells(shape: str, num: int, completion: Any) -> None:
    split = 64
    done, before, after = transfer(shape, num, split=split, completion=completion)
    expected = before.copy()
    for warp in range(4):
        for r in range(REGISTERS[shape] * num):
            got = done.get(warp, f"%v{r}")
            for t in range(32):
                lane, column = ld_cell(shape, t, r, split)
                assert got[t] == before[32 * warp + lane, 7 + column]
                expected[32 * warp + lane, 300 + column] = got[t]
    assert np.array_equal(after, expected)


def test_packed_halves() -> None:
    done, before, after = transfer("32x32b", 4, load=".pack::16b", store=".unpack::16b")
    for r in range(4):
        low, high = before[:, 7 + 2 * r] & 0xFFFF, before[:, 8 + 2 * r] & 0xFFFF
        got = np.concatenate([done.get(warp, f"%v{r}") for warp in range(4)])
        assert np.array_equal(got, low | high << 16)
        assert np.array_equal(after[:, 300 + 2 * r], low)
        assert np.array_equal(after[:, 301 + 2 * r], high)


def test_the_upper_half_of_a_quarter() -> None:
    done, before, _ = transfer("16x256b", 1, base=lambda warp: 32 * warp.index + 16)
    lane, column = ld_cell("16x256b", 9, 2, 0)
    assert done.get(3, "%v2")[9] == before[96 + 16 + lane, 7 + column]


def test_a_warp_reaches_its_own_quarter() -> None:
    done, before, _ = transfer("32x32b", 1, base=lambda warp: 0, checks="error")
    assert np.array_equal(done.get(2, "%v0"), before[64:96, 7]), "the lane is taken modulo 32"
    assert {finding.kind for finding in done.machine.findings} == {"tmem-lanes", "uninitialised"}
    with pytest.raises(MemoryFault, match=r"names lane 32 in quarter 1; it reaches lanes"):
        transfer("32x32b", 1, base=lambda warp: 32, checks="error")
    with pytest.raises(EmulatorFault, match="needs a multiple of 32"):
        transfer("32x32b", 1, base=lambda warp: 16)


def test_cells_outside_are_reported() -> None:
    body = "tcgen05.ld.sync.aligned.32x32b.x4.b32 {%r4, %r5, %r6, %r7}, [%r0];"

    def setup(program: MiniProgram, warp: Warp) -> None:
        if warp.index == 0:
            tmem_of(warp.cta).allocate(0, 32)
        program.set(warp, "%r0", 32 * warp.index << 16 | 30)

    with pytest.raises(MemoryFault, match=r"tcgen05\.ld: column 32 is not allocated"):
        run(body, setup=setup)


LOAD = "tcgen05.ld.sync.aligned.32x32b.x2.b32 {%r4, %r5}, [%r0];"


def with_cells(program: MiniProgram, warp: Warp) -> None:
    """Columns 0..31 are allocated, column c of lane l holds 1000 c + l."""
    memory = tmem_of(warp.cta)
    if warp.index == 0:
        memory.allocate(0, 32)
        memory.words[:] = 1000 * np.arange(512) + np.arange(128)[:, None]
    for i in range(8):
        program.set(warp, f"%r{i}", 0)
    program.set(warp, "%r0", 32 * (warp.index % 4) << 16)


def test_registers_are_not_there_before_the_wait() -> None:
    free = f"bar.sync 0;\n@%first {DEALLOC.format(1)} %r1, 32;"
    early = run(f"{LOAD}\n{free}", setup=with_cells, completion="eager")
    assert np.isnan(early.get(1, "%r5").view(np.float32)).all()
    done = run(f"{LOAD}\ntcgen05.wait::ld.sync.aligned;\n{free}", setup=with_cells)
    assert np.array_equal(done.get(1, "%r5"), 1000 + 32 + np.arange(32))
    at_once = run(f"{LOAD}\n{free}", setup=with_cells, suppress=("tmem-registers",))
    assert np.array_equal(at_once.get(1, "%r5"), 1000 + 32 + np.arange(32))


def test_registers_written_before_the_wait_are_reported() -> None:
    write = "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%r4, %r5}, {%r1}, {%r1}, {%r2, %r3};"
    with pytest.raises(EmulatorFault, match=r"registers of a tcgen05.ld \(PC 0\) were written before"):
        run(f"{LOAD}\n{write}\ntcgen05.wait::ld.sync.aligned;", setup=with_cells, checks="error")


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("max.f32", "f32"),
        ("min.f32", "f32"),
        ("max.abs.f32", "f32"),
        ("max.NaN.f32", "f32"),
        ("max.s32", "s32"),
        ("min.u32", "u32"),
    ],
)
def test_reductions_of_loaded_registers(suffix: str, kind: str) -> None:
    rng = np.random.default_rng(len(suffix))
    values = (
        rng.standard_normal((128, 4)).astype(np.float32) if kind == "f32" else rng.integers(-(2**31), 2**31, (128, 4))
    )
    if kind == "f32":
        values[5, 2] = values[70] = np.nan
    bits = values.view(np.uint32) if kind == "f32" else values.astype(np.int64).astype(np.uint32)

    def setup(program: MiniProgram, warp: Warp) -> None:
        with_cells(program, warp)
        if warp.index == 0:
            tmem_of(warp.cta).words[:, :4] = bits

    body = f"""
        tcgen05.ld.red.sync.aligned.32x32b.x4.{suffix} {{%r2, %r3, %r4, %r5}}, %r6, [%r0];
        tcgen05.wait::ld.sync.aligned; bar.sync 0; @%first {DEALLOC.format(1)} %r1, 32;
    """
    done = run(body, setup=setup, target="sm_103a")
    got = np.concatenate([done.get(warp, "%r6") for warp in range(4)])
    numbers = bits.view({"f32": np.float32, "s32": np.int32, "u32": np.uint32}[kind])
    if "abs" in suffix:
        numbers = np.abs(numbers)
    expected = np.array([
        np.nan if ("NaN" in suffix and np.isnan(row).any()) or np.isnan(row).all()
        else (max if "max" in suffix else min)(x for x in row.tolist() if x == x)
        for row in (numbers.astype(np.float64) if kind == "f32" else numbers)
    ])  # fmt: skip
    found = got.view(numbers.dtype)
    assert np.array_equal(found.astype(np.float64), expected.astype(np.float64), equal_nan=True)
    assert np.array_equal(done.get(0, "%r4"), bits[:32, 2])


# --- copies ---------------------------------------------------------------------------------------------------------

COPIES = {
    "128x256b": lambda row: [row],
    "128x128b": lambda row: [row],
    "4x256b": lambda row: [31 + 32 * row],
    "64x128b.warpx2::02_13": lambda row: [row, row + 64],
    "64x128b.warpx2::01_23": lambda row: [row % 32 + 64 * (row // 32) + 32 * copy for copy in range(2)],
    "32x128b.warpx4": lambda row: [row + 32 * copy for copy in range(4)],
}
SHIFTED = "tcgen05.shift.cta_group::1.down [%r0];"
FINISH = """
    @%one tcgen05.commit.cta_group::{0}.mbarrier::arrive::one.shared::cluster{1}.b64 [%bar]{2};
    mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar], 0;
"""
INIT = "@%one mbarrier.init.shared::cta.b64 [%bar], 1; fence.mbarrier_init.release.cluster; bar.sync 0;"


@pytest.mark.parametrize("form", ["", ".b8x16.b4x16_p64", ".b8x16.b6x16_p32"])
@pytest.mark.parametrize("name", sorted(COPIES))
@pytest.mark.parametrize("swizzle", ["none", "128B"])
def test_copies(name: str, form: str, swizzle: str) -> None:
    rng = np.random.default_rng(1)
    row_bytes = 32 if "256b" in name else 16
    rows = {"4": 4, "6": 64, "3": 32, "1": 128}[name[0]]
    bits = 4 if "b4" in form else 6
    codes = rng.integers(0, 1 << bits, (rows, row_bytes)).astype(np.uint8)
    data = padded_bytes(codes, bits) if form else rng.integers(0, 256, (rows, row_bytes)).astype(np.uint8)
    wide = (codes << 2 if bits == 4 else codes) if form else data
    before: list[np.ndarray] = []

    def setup(program: MiniProgram, warp: Warp) -> None:
        if warp.index == 0:
            memory = tmem_of(warp.cta)
            memory.allocate(0, 512)
            before.append(memory.words.copy())
            tiles.write_rows(warp.cta.smem, SOURCE, data, swizzle)
        base_lane = 31 if name == "4x256b" else 0
        program.set(warp, "%r0", base_lane << 16 | 100)
        program.set(warp, "%r1", 0)
        program.set(warp, "%q", tiles.sm100_descriptor(SOURCE, *tiles.strides(swizzle, False), swizzle))

    copy = f"{INIT}\n@%one tcgen05.cp.cta_group::1.{name}{form} [%r0], %q;{FINISH.format(1, '', '')}"
    done = run(f"{copy}bar.sync 0; @%first {DEALLOC.format(1)} %r1, 512;", setup=setup)
    expected = before[0]
    for row in range(rows):
        for lane in COPIES[name](row):
            expected[lane, 100 : 100 + row_bytes // 4] = wide[row].view(np.uint32)
    assert np.array_equal(tmem_of(done.warps[0].cta).words, expected)


@pytest.mark.parametrize("completion", ["lazy", "eager"])
def test_a_pair_copies_in_both_ctas(completion: Any) -> None:
    """512 bytes of each CTA's own shared memory, issued once; the commit arrives in both."""
    rng = np.random.default_rng(2)
    scales = rng.integers(0, 256, (2, 128, 4)).astype(np.uint8)

    def setup(program: MiniProgram, warp: Warp) -> None:
        cta = warp.cta
        tmem_of(cta).allocate(0, 32)
        for r in range(128):
            for s in range(4):
                cta.smem[SOURCE + atom_offset(r, s)] = scales[cta.rank, r, s]
        program.set(warp, "%r0", 8)
        program.set(warp, "%r1", 0)
        program.set(warp, "%mask", 3)
        program.set(warp, "%q", 0x0000400800000000 | SOURCE >> 4)
        program.set(warp, "%first", (np.arange(32) == 0) & (cta.rank == 0))

    body = f"""
        @%one mbarrier.init.shared::cta.b64 [%bar], 1;
        fence.mbarrier_init.release.cluster;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        @%first tcgen05.cp.cta_group::2.warpx4.32x128b [%r0], %q;
        @%first tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%bar], %mask;
        mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar], 0;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        {DEALLOC.format(2)} %r1, 32;
    """
    done = run(body, setup=setup, cluster=2, warps=1, completion=completion, checks="error")
    for cta in done.warps[0].cta.cluster.ctas:
        data = tmem_of(cta).words.view(np.uint8).reshape(128, 512, 4)
        for r in range(128):
            for quarter in range(4):
                assert np.array_equal(data[32 * quarter + r % 32, 8 + r // 32], scales[cta.rank, r])


def test_rows_shift_down_within_quarters() -> None:
    def setup(program: MiniProgram, warp: Warp) -> None:
        with_cells(program, warp)
        program.set(warp, "%r0", 4)

    body = f"{INIT}\n@%one {SHIFTED}{FINISH.format(1, '', '')}bar.sync 0; @%first {DEALLOC.format(1)} %r1, 32;"
    words = tmem_of(run(body, setup=setup).warps[0].cta).words
    for lane in range(128):
        source = lane if lane % 32 == 31 else lane + 1
        assert words[lane, 4] == 4000 + source
        assert words[lane, 11] == 11000 + source
        assert words[lane, 3] == 3000 + lane
        assert words[lane, 12] == 12000 + lane


@pytest.mark.parametrize(
    ("body", "value", "words"),
    [
        ("@%one tcgen05.cp.cta_group::1.32x128b.warpx4 [%r0], %q;", 32 << 16, "base lane must be below 1"),
        ("@%one tcgen05.cp.cta_group::1.4x256b [%r0], %q;", 32 << 16, "base lane must be below 32"),
        ("@%one tcgen05.cp.cta_group::1.128x256b [%r0], %q;", 28, "column 32 is not allocated"),
        ("@%one tcgen05.shift.cta_group::1.down [%r0];", 5 << 16, "must be a multiple of 32"),
        ("@%first tcgen05.shift.cta_group::1.down [%r0];", 0, "32 threads execute tcgen05.shift"),
    ],
)
def test_what_copies_report(body: str, value: int, words: str) -> None:
    def setup(program: MiniProgram, warp: Warp) -> None:
        with_cells(program, warp)
        program.set(warp, "%r0", value)
        program.set(warp, "%q", 0x0000400800000000 | SOURCE >> 4)

    with pytest.raises(EmulatorFault, match=words):
        run(body, setup=setup, checks="error")


def test_freeing_what_is_in_use_is_reported() -> None:
    def setup(program: MiniProgram, warp: Warp) -> None:
        with_cells(program, warp)
        program.set(warp, "%r0", 0)

    with pytest.raises(EmulatorFault, match=r"tcgen05.dealloc while a tcgen05.shift of CTA 0 warp 0 is under way"):
        run(f"@%one {SHIFTED} @%first {DEALLOC.format(1)} %r1, 32;", setup=setup, warps=1, checks="error")


# --- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tcgen05.ld.sync.aligned.16x256b.x64.b32 {%r0}, [%r1];", "needs 256 registers"),
        ("tcgen05.ld.sync.aligned.32x32b.x2.b32 {%r0}, [%r1];", "must be 2 registers"),
        ("tcgen05.ld.sync.aligned.16x32bx2.x1.b32 {%r0}, [%r1], %r2;", "constant number"),
        ("tcgen05.st.sync.aligned.32x32b.x2.b32 [%r1], {%r0};", "must be 2 registers"),
        ("tcgen05.ld.red.sync.aligned.32x32b.x2.max.abs.u32 {%r0, %r1}, %r2, [%r3];", ".abs and .NaN are for .f32"),
        ("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%bar], %mask;", "takes 1"),
    ],
)
def test_forms_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        run(text)


def test_shapes_of_every_number_of_registers() -> None:
    for shape, registers in REGISTERS.items():
        for exponent in range(8):
            name = f"tcgen05.ld.sync.aligned.{shape}.x{1 << exponent}.b32"
            assert table.find(name) is not None
            assert (registers << exponent <= 128) == (registers * (1 << exponent) <= 128)
    plain = tcgen05_transfer.Shape("32x32b", 4)
    assert plain.base_step == 32
    assert tcgen05_transfer.Shape("16x64b", 4).base_step == 16


def test_a_commit_of_another_thread_is_reported() -> None:
    def setup(program: MiniProgram, warp: Warp) -> None:
        with_cells(program, warp)
        program.set(warp, "%r0", 0)
        program.set(warp, "%first", np.arange(32) == 9)

    body = f"{INIT}\n@%first {SHIFTED}{FINISH.format(1, '', '')}"
    with pytest.raises(EmulatorFault, match=r"commit of lane 0 .* the work at PC 3 is lane 9's"):
        run(body, setup=setup, warps=1, checks="error")
