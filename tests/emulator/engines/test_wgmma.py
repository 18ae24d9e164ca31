"""wgmma: fragments and operands against the manual's formulas, order and registers in flight, what is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.engines import wgmma
from megamoe_jit.emulator.engines.numerics import FORMATS, Operand, dot, integer_dot, rule_for
from megamoe_jit.emulator.isa import table
from megamoe_jit.emulator.machine.state import Warp
from megamoe_jit.errors import EmulatorFault, MemoryFault, UnsupportedError
from tests.emulator.engines import tiles
from tests.emulator.engines.mini import MiniProgram, Run

DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32}
A_START, B_START = 1024, 32768


def d_place(thread: int, r: int) -> tuple[int, int]:
    """Row and column of 32-bit register r of a thread of the warpgroup."""
    w, lane = divmod(thread, 32)
    return 16 * w + lane // 4 + 8 * (r // 2 % 2), 8 * (r // 4) + 2 * (lane % 4) + r % 2


def a_place(thread: int, i: int, j: int, per_word: int) -> tuple[int, int]:
    """Row and k of element j of register i of A."""
    w, lane = divmod(thread, 32)
    return 16 * w + lane // 4 + 8 * (i % 2), 4 * per_word * (i // 2) + per_word * (lane % 4) + j


@pytest.mark.parametrize("n", [8, 16, 64, 256])
def test_accumulator_places(n: int) -> None:
    shape = wgmma.Shape(n, 32, "f32", "e4m3", "e4m3")
    offsets = [128 * (7 + 3 * r) for r in range(n // 2)]
    places = wgmma.accumulator_words(shape, offsets)
    for thread in range(32):
        for r in range(n // 2):
            row, column = d_place(thread, r)
            assert places[row, column] == offsets[r] // 4 + thread
    half = wgmma.Shape(n, 32, "f16", "e4m3", "e4m3")
    places = wgmma.accumulator_words(half, offsets[: n // 4])
    for thread in range(32):
        for r in range(n // 4):
            for part in range(2):
                row = thread // 4 + 8 * (r % 2)
                column = 8 * (r // 2) + 2 * (thread % 4) + part
                assert places[row, column] == offsets[r] // 2 + 2 * thread + part


@pytest.mark.parametrize("kind", ["e4m3", "bf16", "tf32"])
def test_operand_places(kind: str) -> None:
    shape = wgmma.Shape(64, DEPTH[kind], "f32", kind, kind)
    per_word = DEPTH[kind] // 8
    offsets = [1280, 128, 640, 0]
    places = wgmma.operand_places(shape, offsets)
    assert len(np.unique(places)) == 16 * DEPTH[kind]
    for thread in range(32):
        for i in range(4):
            for j in range(per_word):
                row, k = a_place(thread, i, j, per_word)
                assert places[row, k] == (offsets[i] + 4 * thread) * per_word // 4 + j


def codes_for(kind: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Random finite codes [rows, K] in the container that shared memory has: u8, u16 or u32 words."""
    shape = (rows, DEPTH[kind])
    if kind in ("s8", "u8"):
        return rng.integers(0, 256, shape).astype(np.uint8)
    if kind in ("e4m3", "e5m2"):
        codes = rng.integers(0, 256, shape).astype(np.uint8)
        return np.where(np.isin(codes & 0x7F, [0x7F, 0x7E, 0x7D, 0x7C]), 0, codes).astype(np.uint8)
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    return (bits >> 16).astype(np.uint16) if kind == "bf16" else bits


def product(
    a: np.ndarray, b: np.ndarray, d: np.ndarray | None, kinds: tuple[str, str, str], **flags: Any
) -> np.ndarray:
    a_type, b_type, d_type = kinds
    if d_type == "s32":
        signed = [x.view(np.int8) if kind == "s8" else x for x, kind in ((a, a_type), (b, b_type))]
        return integer_dot(signed[0], signed[1], d, **flags)
    left, right = (x >> 13 if kind == "tf32" else x for x, kind in ((a, a_type), (b, b_type)))
    operands = (
        Operand(FORMATS[a_type], left, negate=flags.get("negate_a", False)),
        Operand(FORMATS[b_type], right, negate=flags.get("negate_b", False)),
    )
    return dot(*operands, d, rule_for("wgmma", a_type, "f16" if d_type == "f16" else "f32"))


class Case:
    """One instruction of four warps, run on the machine."""

    def __init__(
        self,
        kinds: tuple[str, str, str],
        n: int,
        *,
        in_registers: bool = False,
        swizzle: str = "128B",
        trans_a: bool = False,
        trans_b: bool = False,
        negate: tuple[bool, bool] = (False, False),
        scale_d: bool = True,
        repeat: int = 1,
        saturate: bool = False,
        **machine: Any,
    ) -> None:
        a_type, b_type, d_type = kinds
        rng = np.random.default_rng([n, len(a_type), in_registers, trans_a])
        self.a, self.b = codes_for(a_type, 64, rng), codes_for(b_type, n, rng)
        if d_type == "s32":
            self.d = rng.integers(0, 1 << 32, (64, n), dtype=np.uint32)
        else:
            dtype = np.float16 if d_type == "f16" else np.float32
            self.d = rng.standard_normal((64, n)).astype(dtype).view(f"u{np.dtype(dtype).itemsize}")
        self.kinds, self.n = kinds, n
        count = n // (4 if d_type == "f16" else 2)
        regs = [f"%d{r}" for r in range(count)]
        a_desc = tiles.sm90_descriptor(A_START, *tiles.strides(swizzle, trans_a), swizzle)
        b_desc = tiles.sm90_descriptor(B_START, *tiles.strides(swizzle, trans_b), swizzle)
        a_text = "{%a0, %a1, %a2, %a3}" if in_registers else "%adesc"
        flags = ""
        if d_type != "s32":
            flags = "".join(f", {-1 if flag else 1}" for flag in negate)
        if a_type in ("f16", "bf16"):
            flags += ("" if in_registers else f", {int(trans_a)}") + f", {int(trans_b)}"
        sat = ".satfinite" if saturate else ""
        types = f"{sat}.s32.{a_type}.{b_type}" if d_type == "s32" else f".{d_type}.{a_type}.{b_type}"
        one = (
            f"wgmma.mma_async.sync.aligned.m64n{n}k{DEPTH[a_type]}{types} "
            f"{{{', '.join(regs)}}}, {a_text}, %bdesc, %scale{flags};"
        )
        body = "wgmma.fence.sync.aligned;\n" + (one + "\n") * repeat
        body += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;"
        per_word = DEPTH[a_type] // 8

        def setup(program: MiniProgram, warp: Warp) -> None:
            smem = warp.cta.smem
            if warp.index == 0:
                for codes, start, transposed in ((self.a, A_START, trans_a), (self.b, B_START, trans_b)):
                    if transposed:
                        tiles.write_columns(smem, start, np.ascontiguousarray(codes.T).view(np.uint8), swizzle)
                    else:
                        tiles.write_rows(smem, start, codes.view(np.uint8), swizzle)
            program.set(warp, "%adesc", a_desc)
            program.set(warp, "%bdesc", b_desc)
            program.set(warp, "%scale", scale_d)
            if in_registers:
                for i in range(4):
                    words = np.zeros((32, per_word), self.a.dtype)
                    for lane in range(32):
                        for j in range(per_word):
                            words[lane, j] = self.a[a_place(32 * warp.index + lane, i, j, per_word)]
                    program.set(warp, f"%a{i}", words.view(np.uint32).ravel())
            for r in range(count):
                program.set(warp, f"%d{r}", self.fragment(self.d, warp.index, r))

        declared = f".reg .b32 %d<{count}>; .reg .b32 %a<4>; .reg .b64 %adesc; .reg .b64 %bdesc; .reg .pred %scale;"
        self.run = Run(body, setup, registers=declared, target="sm_90a", **machine)
        self.count = count

    def fragment(self, matrix: np.ndarray, warp: int, r: int) -> np.ndarray:
        """Register r of warp `warp` that holds its share of `matrix`."""
        lane = np.arange(32)
        if matrix.dtype == np.uint16:
            row = 16 * warp + lane // 4 + 8 * (r % 2)
            column = 8 * (r // 2) + 2 * (lane % 4)
            return np.stack([matrix[row, column], matrix[row, column + 1]], 1).copy().view(np.uint32).ravel()
        row = 16 * warp + lane // 4 + 8 * (r // 2 % 2)
        return matrix[row, 8 * (r // 4) + 2 * (lane % 4) + r % 2]

    def check(self, expected: np.ndarray) -> None:
        for warp in range(4):
            for r in range(self.count):
                assert np.array_equal(self.run.get(warp, f"%d{r}"), self.fragment(expected, warp, r)), (warp, r)


FLOATS = [
    ("e4m3", "e4m3", "f32"), ("e4m3", "e5m2", "f32"), ("e5m2", "e4m3", "f16"), ("f16", "f16", "f32"),
    ("f16", "f16", "f16"), ("bf16", "bf16", "f32"), ("tf32", "tf32", "f32"),
]  # fmt: skip


@pytest.mark.parametrize("in_registers", [False, True])
@pytest.mark.parametrize("kinds", FLOATS)
def test_products(kinds: tuple[str, str, str], in_registers: bool) -> None:
    for n in (8, 40):
        case = Case(kinds, n, in_registers=in_registers)
        case.check(product(case.a, case.b, case.d, kinds))


@pytest.mark.parametrize("swizzle", ["none", "32B", "64B", "128B"])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(False, True), (True, False), (True, True)])
def test_transposed_operands(swizzle: str, trans_a: bool, trans_b: bool) -> None:
    case = Case(("bf16", "bf16", "f32"), 64, swizzle=swizzle, trans_a=trans_a, trans_b=trans_b)
    case.check(product(case.a, case.b, case.d, case.kinds))


@pytest.mark.parametrize("swizzle", ["none", "32B", "64B"])
def test_other_swizzles(swizzle: str) -> None:
    case = Case(("e4m3", "e4m3", "f32"), 24, swizzle=swizzle)
    case.check(product(case.a, case.b, case.d, case.kinds))


@pytest.mark.parametrize("negate", [(True, False), (False, True), (True, True)])
def test_negation_and_scale_d(negate: tuple[bool, bool]) -> None:
    case = Case(("f16", "f16", "f32"), 16, negate=negate, scale_d=False, in_registers=True)
    expected = product(case.a, case.b, None, case.kinds, negate_a=negate[0], negate_b=negate[1])
    case.check(expected)


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("kinds", [("s8", "s8", "s32"), ("u8", "s8", "s32"), ("s8", "u8", "s32"), ("u8", "u8", "s32")])
def test_integers(kinds: tuple[str, str, str], saturate: bool) -> None:
    case = Case(kinds, 48, saturate=saturate, in_registers=saturate)
    case.check(product(case.a, case.b, case.d, kinds, saturate=saturate))


def test_instructions_of_a_group_run_in_order() -> None:
    case = Case(("e4m3", "e4m3", "f32"), 16, repeat=3)
    d = case.d
    for _ in range(3):
        d = product(case.a, case.b, d, case.kinds)
    case.check(d)
    assert case.run.machine.counters.mmas == 3


@pytest.mark.parametrize("completion", ["lazy", "eager", 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_any_completion_and_order_of_warps(completion: Any, seed: int) -> None:
    case = Case(("e4m3", "e4m3", "f32"), 8, repeat=2, completion=completion, seed=seed)
    case.check(product(case.a, case.b, product(case.a, case.b, case.d, case.kinds), case.kinds))


def test_exact_numerics() -> None:
    case = Case(("e4m3", "e4m3", "f32"), 8, numerics="exact")
    rule = rule_for("wgmma", "e4m3", "f32")
    form = FORMATS["e4m3"]
    case.check(dot(Operand(form, case.a), Operand(form, case.b), case.d, rule, numerics="exact"))


# --- registers in flight, and reports --------------------------------------------------------------------------------

MMA = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%d0, %d1, %d2, %d3}, %adesc, %bdesc, 1, 1, 1;"
RS = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, %bdesc, 1, 1, 1;"
FENCE, COMMIT, WAIT = "wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned"


def run(body: str, *, warps: int = 4, change: Any = None, a_raw: int = 0, b_raw: int = 0, **machine: Any) -> Run:
    good = tiles.sm90_descriptor(A_START, 0, 1024, "128B")

    def setup(program: MiniProgram, warp: Warp) -> None:
        if warp.index == 0:
            warp.cta.smem[1024:] = 0x38
        program.set(warp, "%adesc", a_raw or good)
        program.set(warp, "%bdesc", b_raw or good)
        for r in range(8):
            program.set(warp, f"%d{r}", 0)
        for r in range(4):
            program.set(warp, f"%a{r}", 0x38383838)
        if change is not None:
            change(program, warp)

    registers = ".reg .b32 %d<8>; .reg .b32 %a<4>; .reg .b64 %adesc; .reg .b64 %bdesc;"
    return Run(body, setup, registers=registers, warps=warps, target="sm_90a", **machine)


def test_results_come_back_when_the_wait_has_passed() -> None:
    done = run(f"{FENCE}\n{MMA}\n{COMMIT}\n{WAIT} 0;")
    assert (done.get(2, "%d1") == np.float32(32).view(np.uint32)).all()
    for body in (f"{FENCE}\n{MMA}\n{COMMIT}", f"{FENCE}\n{MMA}\n{COMMIT}\n{WAIT} 1;"):
        early = run(body, completion="eager")
        assert np.isnan(early.get(2, "%d1").view(np.float32)).all(), "D is not to be read before the wait"
        assert np.isnan(early.get(2, "%d1").view(np.float16)).all()


def test_a_later_group_keeps_the_accumulator() -> None:
    body = f"{FENCE}\n{MMA}\n{COMMIT}\n{MMA}\n{COMMIT}\n{WAIT} 1;"
    assert np.isnan(run(body, completion="eager").get(0, "%d0").view(np.float32)).all()
    assert (run(body + f"\n{WAIT} 0;").get(0, "%d0") == np.float32(64).view(np.uint32)).all()


def test_two_accumulators_are_apart() -> None:
    other = MMA.replace("%d0, %d1, %d2, %d3", "%d4, %d5, %d6, %d7")
    done = run(f"{FENCE}\n{MMA}\n{COMMIT}\n{other}\n{COMMIT}\n{WAIT} 1;", completion="eager")
    assert (done.get(1, "%d3") == np.float32(32).view(np.uint32)).all()
    assert np.isnan(done.get(1, "%d7").view(np.float32)).all()


WRITE_D = (
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%a0, %a1}, "
    "{%d4, %d5, %d6, %d7};"
)
"""An ordinary instruction that writes D's registers."""


def test_registers_that_nobody_touched_need_no_second_fence() -> None:
    again = run(f"{FENCE}\n{MMA}\n{COMMIT}\n{WAIT} 0;\n{MMA}\n{COMMIT}\n{WAIT} 0;", checks="error")
    assert (again.get(3, "%d2") == np.float32(64).view(np.uint32)).all()
    run(f"{FENCE}\n{MMA}\n{COMMIT}\n{WAIT} 0;\n{WRITE_D}\n{FENCE}\n{MMA}\n{COMMIT}\n{WAIT} 0;", checks="error")


WRITE_A = WRITE_D.replace("%d0, %d1, %d2, %d3", "%a0, %a1, %a2, %a3", 1)


def test_registers_of_a_may_change_before_a_fence() -> None:
    run(f"{FENCE}\n{RS}\n{COMMIT}\n{WAIT} 0;\n{WRITE_A}\n{FENCE}\n{RS}\n{COMMIT}\n{WAIT} 0;", checks="error")
    run(f"{FENCE}\n{RS}\n{RS}\n{COMMIT}\n{WAIT} 0;\n{RS}\n{COMMIT}\n{WAIT} 0;", checks="error")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"{MMA}\n{COMMIT}\n{WAIT} 0;", "no wgmma.fence since"),
        (f"{FENCE}\n{RS}\n{COMMIT}\n{WAIT} 0;\n{WRITE_A}\n{RS}\n{COMMIT}\n{WAIT} 0;", "takes A from registers"),
        (f"{FENCE}\n{WRITE_A}\n{RS}\n{COMMIT}\n{WAIT} 0;", "takes A from registers"),
        (f"{FENCE}\n{MMA}\n{COMMIT}\n{WAIT} 0;\n{WRITE_D}\n{MMA}\n{COMMIT}\n{WAIT} 0;", "no wgmma.fence since"),
        (
            f"{FENCE}\n{MMA}\n{MMA.replace('%d0, %d1, %d2, %d3', '%d3, %d4, %d5, %d6')}",
            "shares 1 accumulator registers",
        ),
    ],
)
def test_misuse_is_reported(body: str, words: str) -> None:
    with pytest.raises(EmulatorFault, match=words):
        run(body, checks="error")


def test_registers_touched_in_flight_are_reported() -> None:
    """mma.sync stands for ordinary instructions that write the registers."""
    sources = "{{%a0, %a1, %a2, %a3}}, {{%a0, %a1}}, {{%d4, %d5, %d6, %d7}};"
    write = f"mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {{{{{{0}}}}}}, {sources}"
    for mma, touched in ((MMA, "%d0, %d1, %d2, %d3"), (RS, "%a0, %a1, %a2, %a3")):
        body = f"{FENCE}\n{mma}\n{COMMIT}\n{write.format(touched)}\n{WAIT} 0;"
        with pytest.raises(EmulatorFault, match="were written while"):
            run(body, checks="error")
    body = f"{FENCE}\n{RS}\n{COMMIT}\n{WAIT} 0;\n{write.format('%a0, %a1, %a2, %a3')}"
    run(body, checks="error")


def test_warps_must_agree() -> None:
    def change(program: MiniProgram, warp: Warp) -> None:
        if warp.index == 2:
            program.set(warp, "%bdesc", tiles.sm90_descriptor(A_START + 1024, 0, 1024, "128B"))

    with pytest.raises(EmulatorFault, match="descriptor of B 0x4000004000000080, but"):
        run(f"{FENCE}\n{MMA}\n{COMMIT}\n{WAIT} 0;", change=change, seed=1)

    def lanes(program: MiniProgram, warp: Warp) -> None:
        program.set(warp, "%bdesc", np.where(np.arange(32) == 5, 0, 1).astype(np.uint64))

    with pytest.raises(EmulatorFault, match="in lane 5"):
        run(f"{FENCE}\n{MMA}\n{COMMIT}\n{WAIT} 0;", change=lanes)


def test_a_warpgroup_needs_four_warps() -> None:
    with pytest.raises(EmulatorFault, match="four consecutive"):
        run(f"{FENCE}", warps=3)


@pytest.mark.parametrize(
    ("raw", "words", "error"),
    [
        (tiles.sm90_descriptor(1024, 0, 1024, "128B") | 1 << 46, "bits 48:46", EmulatorFault),
        (tiles.sm90_descriptor(1024 + 112, 0, 1024, "128B"), "run over its end", EmulatorFault),
        (tiles.sm90_descriptor(0, 0, 1024, "128B"), "reads B from shared addresses", MemoryFault),
        (tiles.sm90_descriptor(65536 + 1024, 0, 1024, "128B"), "reads B from shared addresses", MemoryFault),
    ],
)
def test_bad_descriptors(raw: int, words: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=words):
        run(f"{FENCE}\n{MMA}\n{COMMIT}\n{WAIT} 0;", b_raw=raw)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MMA.replace("sync.a", "sp.sync.a").replace("k32", "k64").replace("desc, 1", "desc, %a0, 0, 1"), "sparse"),
        (MMA.replace("k32.f32.e4m3.e4m3", "k256.s32.b1.b1.and.popc").replace(", 1, 1;", ";"), "single-bit"),
        (MMA.replace("k32", "k16"), "K of .e4m3 is 32"),
        (MMA.replace("%d2, %d3", "%d2"), "must be 4 registers"),
        (MMA.replace("1, 1, 1;", "1, 2, 1;"), "must be 1 or -1"),
        (MMA.replace("1, 1, 1;", "1, 1, 1, 0;"), "has 7 operands"),
        (MMA.replace("n8k32.f32.e4m3.e4m3", "n40k32.s32.s8.s8"), "multiple of 16"),
        (MMA.replace("n8k32.f32.e4m3.e4m3", "n8k16.f16.bf16.bf16"), "FP32 accumulators only"),
        ("wgmma.wait_group.sync.aligned -1;", "at least 0"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        run(text)


def test_every_dense_form_of_the_manual_is_known() -> None:
    for n in range(8, 257, 8):
        for k, types in ((16, "f32.f16.f16"), (8, "f32.tf32.tf32"), (32, "f16.e5m2.e5m2"), (16, "f32.bf16.bf16")):
            assert table.find(f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{types}") is not None
