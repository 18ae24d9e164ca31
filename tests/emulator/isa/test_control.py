"""printf, assert, trap, sleeping, register counts, calls, and branches through tables."""

from __future__ import annotations

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator
from megamoe_jit.errors import EmulatorFault
from tests.emulator.cuda_source import compile_cuda, object_cache

# What to print, its arguments in C, and what C's printf makes of it.
_PRINTS = [
    ("%d|%5d|%-5d|%05d|%+d", "-7, 42, 42, 42, 42", "-7|   42|42   |00042|+42"),
    ("%u %x %X %#x %o", "4000000000u, 255, 255, 255, 8", "4000000000 ff FF 0xff 10"),
    ("%lld %llu %llx %ld", "-1ll << 40, ~0ull, 1ull << 60, -5l", "-1099511627776 18446744073709551615 1000000000000000 -5"),  # noqa: E501
    ("%hd %hhu", "70000, 257", "4464 1"),
    ("%f %.2f %8.3f|%-8.1f|%e %g", "1.5f, 3.14159, 2.5f, 2.5, 12345.678, 0.0001", "1.500000 3.14    2.500|2.5     |1.234568e+04 0.0001"),  # noqa: E501
    ("%c%c %s|%6s|%-4s|%%", "'o', 'k', \"text\", \"abc\", \"ab\"", "ok text|   abc|ab  |%"),
    ("%d %f %d %s %lld", "1, 2.5, 3, \"mixed\", 4ll", "1 2.500000 3 mixed 4"),
    ("%*d|%.*f", "6, 42, 1, 3.14159", "    42|3.1"),
    ("no conversions", "", "no conversions"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "arguments", "expected"), _PRINTS, ids=[text for text, *_ in _PRINTS])
def test_printf(text: str, arguments: str, expected: str) -> None:
    comma = ", " if arguments else ""
    source = f'extern "C" __global__ void k(u32* n) {{ n[0] = printf("{text}\\n"{comma}{arguments}); }}'
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(source))
    module.launch("k", 1, 1, args=[np.zeros(1, np.uint32)])
    assert module.report.printed == expected + "\n"


def test_lanes_print_one_after_the_other() -> None:
    source = 'extern "C" __global__ void k() { if (threadIdx.x & 1) printf("%d;", threadIdx.x); }'
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(source))
    module.launch("k", 1, 8)
    assert module.report.printed == "1;3;5;7;"


def test_asserts_and_traps_end_the_launch() -> None:
    source = r"""
    extern "C" __global__ void k(int what) {
        if (what == 1 && threadIdx.x == 5) __assertfail("x > 0", "some/file.cu", 77, "void f()", 1);
        if (what == 2 && threadIdx.x == 6) { printf("before the end\n"); __trap(); }
    }"""
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(source))
    module.launch("k", 1, 32, args=[0])
    with pytest.raises(EmulatorFault, match=r"some/file\.cu:77: void f\(\): Assertion `x > 0` failed") as caught:
        module.launch("k", 1, 32, args=[1])
    assert caught.value.report.who.lanes == 1 << 5
    with pytest.raises(EmulatorFault, match=r"(?s)trap: The kernel trapped\..*before the end.*kernel\.cu:4") as caught:
        module.launch("k", 1, 32, args=[2])
    assert caught.value.report.kind == "trap"
    assert module.report.printed == "before the end\n"


_REGISTERS = r"""
extern "C" __global__ void __launch_bounds__(256) k(int what) {
    if (threadIdx.x < 128) { A; } else { B; }
}
"""


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (24, 240, None),
        (40, 256, None),
        (44, 240, "setmaxnreg 44: the count is a multiple of 8 from 24 to 256"),
        (16, 240, "setmaxnreg 16"),
        (24, 264, "setmaxnreg 264"),
    ],
)
def test_register_counts(first: int, second: int, words: str | None) -> None:
    counts = [f'ASM("setmaxnreg.{how}.sync.aligned.u32 {n};")' for how, n in (("dec", first), ("inc", second))]
    module = Emulator(cache_dir=object_cache()).load(
        compile_cuda(_REGISTERS.replace("A;", counts[0] + ";").replace("B;", counts[1] + ";"))
    )
    if words is None:
        module.launch("k", 1, 256, args=[0])
        assert module.report.findings == []
    else:
        with pytest.raises(EmulatorFault, match=words):
            module.launch("k", 1, 256, args=[0])


def test_register_counts_are_the_warpgroups() -> None:
    source = _REGISTERS.replace(
        "A;", 'if (threadIdx.x < 64) ASM("setmaxnreg.dec.sync.aligned.u32 40;"); '
        'else ASM("setmaxnreg.dec.sync.aligned.u32 48;");'
    ).replace("B;", "")  # fmt: skip
    with pytest.raises(EmulatorFault, match=r"asks for \d+ registers, warp \d of the same warpgroup for"):
        Emulator(cache_dir=object_cache()).load(compile_cuda(source)).launch("k", 1, 256, args=[0])


def test_branches_and_calls() -> None:
    """A switch that becomes a table, a loop with early exits, a function that is not inlined."""
    source = r"""
    __device__ __noinline__ u32 collatz(u32 n) { u32 steps = 0; while (n != 1) { n = n & 1 ? 3 * n + 1 : n / 2; steps++; } return steps; }
    extern "C" __global__ void k(u32* out) {
        const u32 i = threadIdx.x;
        u32 v;
        switch (i % 9) {
            case 0: v = i * 3; break;
            case 1: v = i ^ 55; break;
            case 2: v = collatz(i + 1); break;
            case 3: v = i << 3; break;
            case 4: v = i / 3; break;
            case 5: v = ~i; break;
            case 6: v = i * i; break;
            case 7: return;
            default: v = 1000 + i;
        }
        out[i] = v + collatz(i + 7);
    }"""  # noqa: E501

    def collatz(n: int) -> int:
        steps = 0
        while n != 1:
            n, steps = (3 * n + 1 if n & 1 else n // 2), steps + 1
        return steps

    out = np.zeros(128, np.uint32)
    Emulator(cache_dir=object_cache()).load(compile_cuda(source)).launch("k", 1, 128, args=[out])
    for i in range(128):
        cases = [i * 3, i ^ 55, collatz(i + 1), i << 3, i // 3, ~i, i * i, None, 1000 + i]
        case = cases[i % 9]
        assert out[i] == (0 if case is None else (case + collatz(i + 7)) % 2**32), i
