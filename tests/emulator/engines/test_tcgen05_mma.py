"""tcgen05.mma on the machine: every kind, layout and source against sums of whole matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.engines.numerics import FORMATS, Operand, Scales, block_dot, dot, integer_dot, rule_for
from megamoe_jit.emulator.engines.tcgen05 import tmem_of
from megamoe_jit.emulator.machine.state import Warp
from megamoe_jit.errors import EmulatorFault, MemoryFault, UnsupportedError
from tests.emulator.engines import tiles
from tests.emulator.engines.mini import MiniProgram, Run
from tests.emulator.engines.test_tensor_memory import d_cell

A_START, B_START, BAR = 1024, 32768, 1024 + 65536 - 64
D_COLUMN, A_COLUMN, SFA_COLUMN, SFB_COLUMN = 0, 256, 300, 400
BITS = {"e2m1": 4, "e2m3": 6, "e3m2": 6}


def padded_bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Groups of 16 codes along the last axis as 16 bytes: packed, then noise."""
    out = np.full(codes.shape, 0xEE, np.uint8)
    for place in np.ndindex(*codes.shape[:-1], codes.shape[-1] // 16):
        first = 16 * place[-1]
        value = sum(int(code) << (bits * i) for i, code in enumerate(codes[(*place[:-1], slice(first, first + 16))]))
        data = np.frombuffer(value.to_bytes(2 * bits, "little"), np.uint8)
        out[(*place[:-1], slice(first, first + 2 * bits))] = data
    return out


def packed_bytes(codes: np.ndarray) -> np.ndarray:
    return codes[:, 0::2] | codes[:, 1::2] << 4


def finite(name: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    form = FORMATS[name]
    if form.bits > 8:
        values = rng.standard_normal(shape).astype(np.float32)
        if name == "f16":
            return values.astype(np.float16).view(np.uint16)
        bits = values.view(np.uint32)
        return (bits >> 16).astype(np.uint16) if name == "bf16" else bits
    codes = rng.integers(0, 1 << form.bits, shape).astype(np.uint8)
    return np.where(form.split(codes)[1] > 1000, 0, codes).astype(np.uint8)


class Case:
    """One instruction, its operands in every place that the manual says, and what it leaves in D."""

    def __init__(
        self,
        kind: str,
        a_type: str,
        b_type: str,
        *,
        m: int = 128,
        n: int = 64,
        k: int = 0,
        group: int = 1,
        ws: bool = False,
        d_type: str = "f32",
        scale: str = "",
        scales: int = 0,
        qualifier: str = "",
        ids: tuple[int, int] = (0, 0),
        a_in_tmem: bool = False,
        trans: tuple[bool, bool] = (False, False),
        negate: tuple[bool, bool] = (False, False),
        swizzle: str = "128B",
        accumulate: bool = True,
        shift: int | None = None,
        disabled: list[int] | None = None,
        saturate: bool = False,
        base_lane: int = 0,
        collector: str = "",
        target: str = "sm_100a",
        **machine: Any,
    ) -> None:
        rng = np.random.default_rng([m, n, group, ws, len(kind), a_in_tmem])
        self.kind, self.types, self.m, self.n, self.group = kind, (a_type, b_type), m, n, group
        self.packed = kind in ("mxf4", "mxf4nvf4")
        self.k = k or {"f16": 16, "tf32": 8}.get(kind, 64 if self.packed else 32)
        self.a, self.b = (
            rng.integers(0, 256, (rows, self.k)).astype(np.uint8) if kind == "i8" else finite(name, (rows, self.k), rng)
            for name, rows in ((a_type, m), (b_type, n))
        )
        self.negate, self.d_type, self.scale, self.accumulate, self.saturate = (
            negate,
            d_type,
            scale,
            accumulate,
            saturate,
        )
        if d_type == "s32":
            self.d = rng.integers(0, 1 << 32, (m, n), dtype=np.uint32)
        elif d_type == "f16":
            self.d = rng.standard_normal((m, n)).astype(np.float16).view(np.uint16)
        else:
            self.d = rng.standard_normal((m, n)).astype(np.float32).view(np.uint32)
        low, high = (118, 136) if scale == "ue8m0" else (0, 127)
        self.sfa, self.sfb = (rng.integers(low, high, (rows, max(scales, 1))).astype(np.uint8) for rows in (m, n))
        self.scales, self.ids = scales, ids
        self.shift, self.disabled, self.base_lane, self.ws = shift, disabled, base_lane, ws
        self.letter = {
            (256, 2, False): "A", (128, 2, False): "B", (128, 1, False): "D", (128, 1, True): "D",
            (64, 1, True): "E", (64, 1, False): "F", (32, 1, True): "G",
        }[m, group, ws]  # fmt: skip
        self.rows = m // group
        self.trans, self.swizzle, self.a_in_tmem = trans, swizzle, a_in_tmem
        self.before: dict[int, np.ndarray] = {}

        mma = f"tcgen05.mma{'.ws' if ws else ''}.cta_group::{group}.kind::{kind}"
        mma += (f".block_scale{qualifier}" if scale else "") + collector
        operands = f"[%d], {'[%ta]' if a_in_tmem else '%adesc'}, %bdesc, %idesc"
        if scale:
            operands += ", [%sfa], [%sfb]"
        if disabled is not None:
            operands += ", {" + ", ".join(f"%off{i}" for i in range(4 * group)) + "}"
        operands += ", %acc" + (f", {shift}" if shift is not None else "")
        multicast = ".multicast::cluster" if group == 2 else ""
        commit = f"tcgen05.commit.cta_group::{group}.mbarrier::arrive::one.shared::cluster{multicast}.b64 [%bar]"
        sync = "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n" if group == 2 else ""
        body = f"""
            @%lane0 mbarrier.init.shared::cta.b64 [%bar], 1;
            fence.mbarrier_init.release.cluster;
            {sync}
            @%leader {mma} {operands};
            @%leader {commit}{", %pair" if group == 2 else ""};
            mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar], 0;
            {sync}
            tcgen05.dealloc.cta_group::{group}.sync.aligned.b32 %zero, 512;
        """
        registers = """
            .reg .b32 %d; .reg .b32 %ta; .reg .b64 %adesc; .reg .b64 %bdesc; .reg .b32 %idesc; .reg .b32 %sfa;
            .reg .b32 %sfb; .reg .b32 %off<8>; .reg .pred %acc; .reg .b32 %bar; .reg .b16 %pair; .reg .pred %done;
            .reg .b32 %zero; .reg .pred %lane0; .reg .pred %leader;
        """
        self.run = Run(
            body, self.setup, registers=registers, warps=1, cluster=group, smem_bytes=1 << 16, target=target, **machine
        )

    # --- where operands lie ---

    @property
    def idesc(self) -> int:
        codes = {
            "e4m3": 0,
            "e5m2": 1,
            "e2m3": 3,
            "e3m2": 4,
            "e2m1": 5,
            "f16": 0,
            "bf16": 1,
            "tf32": 2,
            "u8": 0,
            "s8": 1,
        }
        a, b = (1 if self.packed else codes[name] for name in self.types)
        raw = a << 7 | b << 10 | self.negate[0] << 13 | self.negate[1] << 14
        raw |= self.trans[0] << 15 | self.trans[1] << 16 | (self.n >> 3) << 17
        if self.scale:
            raw |= (self.scale == "ue8m0") << 23 | (self.m >> 7) << 27 | self.ids[0] << 29 | self.ids[1] << 4
            return raw | (self.k == 96) << 31
        return raw | self.saturate << 3 | {"f16": 0, "f32": 1, "s32": 2}[self.d_type] << 4 | (self.m >> 4) << 24

    def operand_bytes(self, codes: np.ndarray, name: str) -> np.ndarray:
        """Bytes [rows, bytes along K] in shared memory."""
        if self.packed:
            return packed_bytes(codes)
        if name in BITS:
            return padded_bytes(codes, BITS[name])
        return codes.view(np.uint8)

    def write_operand(self, smem: np.ndarray, start: int, codes: np.ndarray, name: str, transposed: bool) -> None:
        if transposed:
            columns = np.ascontiguousarray(codes.T)
            data = padded_bytes(columns, BITS[name]) if name in BITS else columns.view(np.uint8)
            tiles.write_columns(smem, start, data, self.swizzle)
        else:
            tiles.write_rows(smem, start, self.operand_bytes(codes, name), self.swizzle)

    def setup(self, program: MiniProgram, warp: Warp) -> None:
        cta = warp.cta
        tmem = tmem_of(cta)
        tmem.allocate(0, 512)
        share = slice(self.rows * cta.rank, self.rows * (cta.rank + 1))
        half = slice(self.n // self.group * cta.rank, self.n // self.group * (cta.rank + 1))
        self.write_operand(cta.smem, A_START, self.a[share], self.types[0], self.trans[0])
        self.write_operand(cta.smem, B_START, self.b[half], self.types[1], self.trans[1])
        for row in range(self.rows):
            for column in range(self.n):
                lane, at = d_cell(self.letter, row, column, self.n)
                tmem.words[lane + self.base_lane, D_COLUMN + at] = self.d[share][row, column]
        if self.a_in_tmem:
            self.write_a_cells(tmem.words, self.a[share])
        if self.scale:
            self.write_scales(tmem.words, SFA_COLUMN, self.sfa[share], self.ids[0], halves=False)
            self.write_scales(tmem.words, SFB_COLUMN, self.sfb, self.ids[1], halves=self.letter == "B")
        self.before[cta.rank] = tmem.words.copy()
        values = {
            "%d": self.base_lane << 16 | D_COLUMN, "%ta": self.base_lane << 16 | A_COLUMN, "%idesc": self.idesc,
            "%adesc": tiles.sm100_descriptor(A_START, *tiles.strides(self.swizzle, self.trans[0]), self.swizzle),
            "%bdesc": tiles.sm100_descriptor(B_START, *tiles.strides(self.swizzle, self.trans[1]), self.swizzle),
            "%sfa": SFA_COLUMN, "%sfb": SFB_COLUMN, "%acc": self.accumulate, "%bar": cta.rank << 24 | BAR, "%pair": 3,
            "%zero": 0, "%lane0": np.arange(32) == 0, "%leader": (np.arange(32) == 0) & (cta.rank == 0),
        }  # fmt: skip
        for i, word in enumerate(self.disabled or ()):
            values[f"%off{i}"] = word
        for name, value in values.items():
            program.set(warp, name, value)

    def write_a_cells(self, words: np.ndarray, codes: np.ndarray) -> None:
        name = self.types[0]
        if self.packed:
            data = packed_bytes(codes)
        elif name in BITS:
            data = codes << 2 if BITS[name] == 4 else codes
        else:
            data = codes.view(np.uint8)
        for row, line in enumerate(np.ascontiguousarray(data).view(np.uint32)):
            lane = 32 * (row // 16) + row % 16 + self.base_lane if self.letter == "F" else row
            words[lane, A_COLUMN : A_COLUMN + len(line)] = line
            if self.letter == "B":
                words[lane + 64, A_COLUMN : A_COLUMN + len(line)] = line

    def write_scales(self, words: np.ndarray, base: int, codes: np.ndarray, first: int, *, halves: bool) -> None:
        data = words.view(np.uint8).reshape(128, 512, 4)
        rows, count = codes.shape
        for row in range(rows):
            for s in range(count):
                word, byte = divmod(first + s, 4)
                inner, quarters = row, range(4)
                if halves:
                    half, inner = divmod(row, rows // 2)
                    quarters = range(2 * half, 2 * half + 2)
                column = base + word * (4 if rows <= 128 else 8) + inner // 32
                for quarter in quarters:
                    data[32 * quarter + inner % 32, column, byte] = codes[row, s]

    # --- what comes out ---

    def expected(self) -> np.ndarray:
        old: np.ndarray | None = self.d if self.accumulate else None
        if self.kind == "i8":
            left, right = (
                codes.view(np.int8) if name == "s8" else codes
                for codes, name in zip((self.a, self.b), self.types, strict=True)
            )
            return integer_dot(left, right, old, saturate=self.saturate)
        operands = [
            Operand(FORMATS[name], codes >> 13 if name == "tf32" else codes, negate=negate)
            for codes, name, negate in zip((self.a, self.b), self.types, self.negate, strict=True)
        ]
        if old is not None and self.shift is not None:
            dtype = np.float16 if self.d_type == "f16" else np.float32
            old = (old.view(dtype).astype(np.float32) / 2**self.shift).view(np.uint32)
        scales = None
        if self.scale:
            scales = Scales(FORMATS[self.scale], self.sfa), Scales(FORMATS[self.scale], self.sfb)
        if scales is not None and self.packed:
            return block_dot(*operands, scales, old)
        rule = rule_for("tcgen05", self.types[0], "f16" if self.d_type == "f16" else "f32")
        return dot(*operands, old, rule, scales=scales)

    def check(self) -> None:
        expected = self.expected()
        for cta in self.run.warps[0].cta.cluster.ctas:
            words = tmem_of(cta).words
            untouched = np.ones((128, 512), bool)
            for row in range(self.rows):
                for column in range(self.n):
                    lane, at = d_cell(self.letter, row, column, self.n)
                    lane, at = lane + self.base_lane, at + D_COLUMN
                    if self.disabled and self.disabled[4 * cta.rank + lane // 32] >> lane % 32 & 1:
                        continue
                    untouched[lane, at] = False
                    value = int(words[lane, at])
                    want = int(expected[self.rows * cta.rank + row, column])
                    assert value == want, (cta.rank, row, column)
            assert np.array_equal(words[untouched], self.before[cta.rank][untouched])


DENSE = [
    ("f16", "f16", "f16", "f32"), ("f16", "bf16", "bf16", "f32"), ("f16", "f16", "bf16", "f32"),
    ("f16", "f16", "f16", "f16"), ("tf32", "tf32", "tf32", "f32"), ("f8f6f4", "e4m3", "e5m2", "f32"),
    ("f8f6f4", "e4m3", "e4m3", "f16"), ("f8f6f4", "e2m1", "e3m2", "f32"), ("f8f6f4", "e2m3", "e2m1", "f32"),
    ("i8", "s8", "u8", "s32"), ("i8", "u8", "s8", "s32"),
]  # fmt: skip
LAYOUTS = [
    (128, 1, False),
    (64, 1, False),
    (256, 2, False),
    (128, 2, False),
    (128, 1, True),
    (64, 1, True),
    (32, 1, True),
]


@pytest.mark.parametrize(("kind", "a", "b", "d"), DENSE)
def test_dense_kinds(kind: str, a: str, b: str, d: str) -> None:
    Case(kind, a, b, d_type=d, n=32).check()


@pytest.mark.parametrize("a_in_tmem", [False, True])
@pytest.mark.parametrize(("m", "group", "ws"), LAYOUTS)
def test_layouts(m: int, group: int, ws: bool, a_in_tmem: bool) -> None:
    Case("f8f6f4", "e4m3", "e4m3", m=m, group=group, ws=ws, a_in_tmem=a_in_tmem).check()


@pytest.mark.parametrize(("kind", "a", "b", "d"), DENSE)
def test_a_in_tensor_memory(kind: str, a: str, b: str, d: str) -> None:
    Case(kind, a, b, d_type=d, n=32, a_in_tmem=True).check()


def test_half_of_the_lanes_may_begin_at_16() -> None:
    Case("f16", "f16", "f16", m=64, n=16, base_lane=16).check()
    Case("f16", "f16", "f16", m=64, n=16, base_lane=16, a_in_tmem=True).check()


@pytest.mark.parametrize("swizzle", ["none", "32B", "64B", "128B"])
@pytest.mark.parametrize("trans", [(True, False), (False, True), (True, True)])
def test_transposes(swizzle: str, trans: tuple[bool, bool]) -> None:
    Case("f16", "bf16", "bf16", trans=trans, swizzle=swizzle, n=48).check()
    Case("f8f6f4", "e4m3", "e2m1", trans=trans, swizzle=swizzle, n=32).check()


def test_tf32_with_the_32_byte_atom() -> None:
    Case("tf32", "tf32", "tf32", trans=(True, True), swizzle="128B with 32B atom", n=32).check()


def test_flags() -> None:
    Case("f16", "f16", "f16", negate=(True, False), n=16).check()
    Case("f8f6f4", "e4m3", "e5m2", negate=(True, True), accumulate=False, n=16).check()
    Case("i8", "s8", "s8", d_type="s32", saturate=True, n=16).check()
    Case("tf32", "tf32", "tf32", shift=3, n=16).check()
    Case("f16", "f16", "f16", d_type="f16", shift=15, n=16).check()
    Case("f8f6f4", "e4m3", "e4m3", n=16, collector=".collector::a::lastuse").check()
    Case("f8f6f4", "e4m3", "e4m3", n=64, ws=True, m=64, collector=".collector::b2::fill").check()


@pytest.mark.parametrize("group", [1, 2])
def test_disabled_lanes_keep_what_they_had(group: int) -> None:
    words = [0xF0F0F0F0, 0, 0xFFFFFFFF, 1, 2, 0x80000000, 0xFFFF, 0x12345678][: 4 * group]
    Case("f8f6f4", "e4m3", "e4m3", m=128 * group, group=group, disabled=words, n=32).check()


SCALED = [
    ("mxf8f6f4", "e4m3", "e4m3", "ue8m0", 1, ""), ("mxf8f6f4", "e5m2", "e2m1", "ue8m0", 1, ".scale_vec::1X"),
    ("mxf8f6f4", "e3m2", "e2m3", "ue8m0", 1, ".block32"), ("mxf4", "e2m1", "e2m1", "ue8m0", 2, ""),
    ("mxf4", "e2m1", "e2m1", "ue8m0", 2, ".block32"), ("mxf4nvf4", "e2m1", "e2m1", "ue4m3", 4, ".block16"),
    ("mxf4nvf4", "e2m1", "e2m1", "ue4m3", 4, ".scale_vec::4X"), ("mxf4nvf4", "e2m1", "e2m1", "ue8m0", 4, ".block16"),
    ("mxf4nvf4", "e2m1", "e2m1", "ue8m0", 2, ".scale_vec::2X"),
]  # fmt: skip


@pytest.mark.parametrize(("m", "group"), [(128, 1), (256, 2), (128, 2)])
@pytest.mark.parametrize(("kind", "a", "b", "scale", "scales", "qualifier"), SCALED)
def test_block_scaled(kind: str, a: str, b: str, scale: str, scales: int, qualifier: str, m: int, group: int) -> None:
    Case(kind, a, b, scale=scale, scales=scales, qualifier=qualifier, m=m, group=group, n=64).check()


@pytest.mark.parametrize("n", [8, 72, 192, 256])
def test_any_n_of_scale_factors(n: int) -> None:
    Case("mxf4nvf4", "e2m1", "e2m1", scale="ue4m3", scales=4, qualifier=".block16", n=n).check()


@pytest.mark.parametrize("ids", [(0, 3), (1, 2), (3, 0)])
def test_scale_factor_ids(ids: tuple[int, int]) -> None:
    Case("mxf8f6f4", "e4m3", "e4m3", scale="ue8m0", scales=1, ids=ids, n=32).check()
    if ids[1] != 3:
        Case("mxf4", "e2m1", "e2m1", scale="ue8m0", scales=2, ids=(2, 0), n=32).check()


def test_scaled_a_in_tensor_memory() -> None:
    Case("mxf4nvf4", "e2m1", "e2m1", scale="ue4m3", scales=4, qualifier=".block16", a_in_tmem=True, n=32).check()
    Case("mxf8f6f4", "e2m1", "e4m3", scale="ue8m0", scales=1, a_in_tmem=True, n=32).check()
    Case("mxf4", "e2m1", "e2m1", scale="ue8m0", scales=2, a_in_tmem=True, m=256, group=2, n=32).check()


@pytest.mark.parametrize(("scales", "qualifier", "ids"), [(6, ".block16", (0, 2)), (3, ".block32", (3, 1))])
@pytest.mark.parametrize("group", [1, 2])
def test_k96(scales: int, qualifier: str, ids: tuple[int, int], group: int) -> None:
    case = Case(
        "mxf4nvf4", "e2m1", "e2m1", k=96, scale="ue8m0", scales=scales, qualifier=qualifier, ids=ids, n=160,
        m=128 * group, group=group, target="sm_103a", swizzle="128B",
    )  # fmt: skip
    case.check()


def test_exact_numerics_round_once() -> None:
    case = Case("mxf4nvf4", "e2m1", "e2m1", scale="ue4m3", scales=4, qualifier=".block16", n=16, numerics="exact")
    operands = [Operand(FORMATS["e2m1"], codes) for codes in (case.a, case.b)]
    scales = Scales(FORMATS["ue4m3"], case.sfa), Scales(FORMATS["ue4m3"], case.sfb)
    expected = block_dot(*operands, scales, case.d, numerics="exact")
    words = tmem_of(case.run.warps[0].cta).words
    assert np.array_equal(words[:, :16], expected)
    assert (expected != case.expected()).any()


@pytest.mark.parametrize("completion", ["lazy", "eager", 0.5])
def test_checks_are_quiet_about_a_right_kernel(completion: Any) -> None:
    case = Case("f8f6f4", "e4m3", "e4m3", n=32, checks="error", completion=completion, m=256, group=2)
    case.check()
    assert not [finding for finding in case.run.machine.findings if finding.kind != "uninitialised"]


# --- what is refused and reported -----------------------------------------------------------------------------------


def broken(**change: Any) -> None:
    """A right instruction but for one thing."""
    defaults: dict[str, Any] = {"scale": "ue4m3", "scales": 4, "qualifier": ".block16", "n": 32}
    wrong = change.pop("wrong", {})

    class Broken(Case):
        def setup(self, program: MiniProgram, warp: Warp) -> None:
            super().setup(program, warp)
            for name, value in wrong.items():
                if callable(value):
                    value(warp)
                else:
                    program.set(warp, name, value)

    kind, a, b = change.pop("kind", ("mxf4nvf4", "e2m1", "e2m1"))
    Broken(kind, a, b, **{**defaults, **change})


DENSE_OPTIONS: dict[str, Any] = {"kind": ("f16", "f16", "f16"), "scale": "", "scales": 0, "qualifier": ""}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wrong": {"%idesc": 0x08400480 | 4 << 7}}, "A type .bits 9:7. is 5"),
        ({"wrong": {"%idesc": 0x08400480 | 1 << 15}}, "transposes"),
        ({"wrong": {"%idesc": 0x08400480 & ~(0x3F << 17)}}, "N is 0"),
        ({"wrong": {"%adesc": 0x4000404000000000 & ~(1 << 46)}}, "descriptor of A .*version"),
        ({"wrong": {"%bdesc": tiles.sm100_descriptor(1024 + 112, 0, 1024, "128B")}}, "descriptor of B .*over its end"),
        ({"wrong": {"%d": 16 << 16}}, "base lane 16; it must be 0"),
        ({"wrong": {"%sfa": 1 << 16}}, "scale-A .*base lane 1"),
        ({"m": 64, **DENSE_OPTIONS, "wrong": {"%d": 8 << 16}}, "base lane 8; it must be 0 or 16"),
        ({**DENSE_OPTIONS, "a_in_tmem": True, "trans": (True, False)}, "A in tensor memory is K-major"),
        ({"n": 64, "wrong": {"%sfb": 511}}, "scale-B of tcgen05.mma: .*not all in"),
        (
            {"wrong": {"free": lambda warp: tmem_of(warp.cta).free(0, 512)}},
            "D of tcgen05.mma: column 0 is not allocated",
        ),
        ({"wrong": {"%leader": np.arange(32) < 2}}, "2 threads execute tcgen05.mma"),
        ({"k": 96, "scales": 6}, "K = 96"),
    ],
)
def test_reports_name_the_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(EmulatorFault, match=words):
        broken(**change, checks="error")


def test_scale_factors_must_be_in_all_quarters() -> None:
    def damage(warp: Warp) -> None:
        tmem_of(warp.cta).words[69, SFB_COLUMN] ^= 0xFF00

    with pytest.raises(EmulatorFault, match=r"scale factors of B .* scale 1 of row 5 \(column 400\)"):
        broken(wrong={"damage": damage}, checks="error")
    with pytest.raises(MemoryFault, match="reads B from shared addresses"):
        broken(wrong={"%bdesc": tiles.sm100_descriptor(65536 + 512, 0, 1024, "128B")})


def test_rows_of_a_must_be_in_both_halves_for_128_rows_of_a_pair() -> None:
    def damage(warp: Warp) -> None:
        tmem_of(warp.cta).words[64 + 3, A_COLUMN] ^= 1

    with pytest.raises(EmulatorFault, match=r"again in 64\.\.127"):
        broken(a_in_tmem=True, m=128, group=2, wrong={"damage": damage})


def test_a_pair_needs_a_cluster_of_two() -> None:
    def setup(program: MiniProgram, warp: Warp) -> None:
        program.set(warp, "%a", 0)
        program.set(warp, "%one", np.arange(32) == 7)

    with pytest.raises(EmulatorFault, match="has no pair"):
        Run("@%one tcgen05.shift.cta_group::2.down [%a];", setup, registers=".reg .b32 %a; .reg .pred %one;", warps=1)


@pytest.mark.parametrize(
    ("opcode", "operands", "words"),
    [
        ("tcgen05.mma.sp.cta_group::1.kind::f16", "[%r], %q, %q, [%r], %r, %p", "sparse"),
        ("tcgen05.mma.ws.sp.cta_group::1.kind::f16", "[%r], %q, %q, [%r], %r, %p", "sparse"),
        (
            "tcgen05.mma.sp.cta_group::1.kind::mxf4.block_scale.block32",
            "[%r], %q, %q, [%r], %r, [%r], [%r], %p",
            "sparse",
        ),
        ("tcgen05.mma.cta_group::1.kind::f16.ashift", "[%r], [%r], %q, %r, %p", "ashift"),
        ("tcgen05.mma.ws.cta_group::1.kind::f16", "[%r], %q, %q, %r, %p, %q", "zero-column"),
        (
            "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block16",
            "[%r], %q, %q, %r, [%r], [%r], %p",
            "has no .block16",
        ),
        ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale", "[%r], %q, %q, %r, [%r], [%r], %p", "has no"),
        ("tcgen05.mma.cta_group::1.kind::f8f6f4", "[%r], %q, %q, %r, %p, 3", "scale-input-d is for"),
        ("tcgen05.mma.cta_group::1.kind::f16", "[%r], %q, %q, %r, %p, 16", "0 to 15"),
        ("tcgen05.mma.cta_group::1.kind::f16", "[%r], %q, %q, %r, {%r, %r}, %p", "has 4 registers"),
        ("tcgen05.mma.cta_group::1.kind::f16", "%r, %q, %q, %r, %p", "address in brackets"),
    ],
)
def test_forms_that_are_refused(opcode: str, operands: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        Run(
            f"{opcode} {operands};", lambda program, warp: None,
            registers=".reg .b32 %r; .reg .b64 %q; .reg .pred %p;", warps=1,
        )  # fmt: skip
