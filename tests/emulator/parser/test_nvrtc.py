"""What NVRTC writes today, of a kernel that has all that the parser must cope with, and the project's own kernels."""

from __future__ import annotations

import functools
import re
import time

import pytest

from megamoe_jit.emulator.parser import Instruction, LabelOp, PtxModule, RegOp, Symbol, blocks, liveness, parse
from megamoe_jit.emulator.parser.cfg import accesses
from tests.emulator.parser.samples import compile_cuda

_SOURCE = r"""
struct Big { int a[5]; double d; };
__device__ __noinline__ int collatz(int n, int* steps) {
    int count = 0;
    while (n != 1) { n = (n & 1) ? 3 * n + 1 : n / 2; count++; }
    *steps = count;
    return n;
}
__device__ __noinline__ Big make(Big b, int k) { b.a[k % 5] += k; b.d *= 2; return b; }
__device__ __noinline__ unsigned char narrow(unsigned char c, short s, bool p, float f) {
    return p ? c + s : (unsigned char)f;
}
__device__ int table[4] = {1, 2, 3, 4};
__constant__ float coefficients[3][2] = {{1.f, 2.f}, {3.f}, {5.f, 6.f}};
__device__ int* pointers[2] = {table, table + 2};
__device__ __forceinline__ long long leaf() {
    return clock64();  // LEAF
}
__device__ __forceinline__ long long middle() {
    return leaf();  // MIDDLE
}
extern "C" __global__ void __launch_bounds__(128, 2) __cluster_dims__(2, 1, 1)
sample(int* out, const float* in, Big b, int n, char flag, const __grid_constant__ Big whole) {
    extern __shared__ __align__(128) unsigned char dynamic[];
    __shared__ volatile double fixed[3];
    int local[8];
    for (int i = 0; i < 8; i++) local[i] = in[i] * i;
    int steps;
    int r = collatz(threadIdx.x + 1, &steps);
    Big q = make(b, n);
    fixed[n % 3] = q.d;
    dynamic[n] = flag;
    __syncthreads();
    switch (n) {
        case 0: r += 7; break;
        case 1: r *= 3; break;
        case 2: r ^= 5; break;
        case 3: r = -r; break;
        case 4: r = __popc(r); break;
        case 5: r = out[3]; break;
        case 6: r <<= 3; break;
        default: r = 0;
    }
    if (n == 77) printf("value %d %f {;}\n", r, in[0]);
    asm volatile("{ .reg .pred p; .reg .b32 t, u; setp.ne.s32 p, %1, 0; @!p bra DONE; add.s32 t, %1, %2; mov.b32 %0, t;"
                 " DONE: }" : "+r"(r) : "r"(n), "n"(4 + 2));
    asm volatile("{ .reg .pred p; .reg .b32 t<3>; DONE: mov.b32 t1, %0; setp.ne.s32 p, t1, 0; @p bra DONE; }" ::"r"(n));
    unsigned barrier = __cvta_generic_to_shared(dynamic);
    asm volatile("{ .reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [%0 + 16];"
                 " mbarrier.arrive.shared::cta.b64 _, [%0+0]; }" ::"r"(barrier) : "memory");
    r += middle();  // KERNEL
    out[threadIdx.x] = r + steps + local[n & 7] + q.a[1] + *pointers[n & 1] + (int)coefficients[n % 3][1]
                       + narrow(flag, n, n > 3, in[1]) + whole.a[n % 5] + (int)fixed[0];
    if (out[0] == 5) __assertfail("message", "file", 3, "function", 1);
}
"""
_ARCHS = ("sm_90a", "sm_100a", "sm_120a")


@functools.cache
def _ptx(arch: str, option: str) -> str:
    return compile_cuda(_SOURCE, arch, option)


@functools.cache
def _module(arch: str, option: str) -> PtxModule:
    return parse(_ptx(arch, option))


@pytest.mark.parametrize("option", ["-lineinfo", "-G"])
@pytest.mark.parametrize("arch", _ARCHS)
def test_the_sample_is_read_whole(arch: str, option: str) -> None:
    module = _module(arch, option)
    (function,) = module.entries
    assert module.target == arch
    assert [(p.offset, p.size, p.align) for p in function.params] == [
        (0, 8, 8), (8, 8, 8), (16, 32, 8), (48, 4, 4), (52, 1, 1), (56, 32, 8),
    ]  # fmt: skip
    assert (function.max_block, function.min_ctas, function.required_cluster) == ((128, 1, 1), 2, (2, 1, 1))
    assert function.shared_bytes == 24
    assert function.dynamic_shared_offset == 1024 + 128
    calls = [i for i in function.instructions if i.base == "call"]
    assert {_callee(call) for call in calls} == {"vprintf", "__assertfail"}
    assert not any(i.opcode.startswith("st.param") for i in function.instructions)
    assert module.globals["coefficients"].space == "const"
    assert module.globals["pointers"].relocations == ((0, "table"), (8, "table"))
    texts = [
        variable.init.rstrip(b"\0") for name, variable in module.globals.items() if "str" in name and variable.init
    ]
    assert b"value %d %f {;}\n" in texts


def _callee(call: Instruction) -> str:
    callee = call.operands[1]
    assert isinstance(callee, Symbol)
    return callee.name


@pytest.mark.parametrize("option", ["-lineinfo", "-G"])
@pytest.mark.parametrize("arch", _ARCHS)
def test_every_line_with_an_instruction_is_one(arch: str, option: str) -> None:
    """NVRTC writes its own instructions one to a line, behind a tab; inline assembly and calls look otherwise."""
    lines = _ptx(arch, option).splitlines()
    first = next(number for number, line in enumerate(lines) if ".entry sample" in line)
    last = next(number for number, line in enumerate(lines) if number > first and line.startswith("}"))
    expected = {
        (number + 1, match.group(1))
        for number, line in enumerate(lines)
        if first < number < last and (match := re.match(r"\t(?:@!?%p[0-9]+ )?([a-z][\w.:]*)\s*(?:\t|;)", line))
    }
    expected = {(line, opcode) for line, opcode in expected if not re.match(r"call|[sl][td]\.param", opcode)}
    (function,) = _module(arch, option).entries
    found = {(i.line, i.opcode) for i in function.instructions}
    assert len(expected) > 100
    assert expected <= found
    for line, opcode in found - expected:
        text = lines[line - 1]
        assert (
            not first < line <= last
            or "param" in text
            or opcode.startswith("call")
            or re.match(r"\t(\{ .reg|  )", text)
        )


@pytest.mark.parametrize("arch", _ARCHS)
def test_inlined_places_lead_to_the_kernel(arch: str) -> None:
    lines = {name: 1 + _SOURCE[: _SOURCE.index(f"// {name}")].count("\n") for name in ("LEAF", "MIDDLE", "KERNEL")}
    (function,) = _module(arch, "-lineinfo").entries
    (clock,) = (i for i in function.instructions if "%clock64" in i.text)
    assert clock.location is not None
    assert [(place.file, place.line) for place in clock.location.chain] == [
        ("/sample.cu", lines["LEAF"]),
        ("/sample.cu", lines["MIDDLE"]),
        ("/sample.cu", lines["KERNEL"]),
    ]
    assert [place.function for place in clock.location.chain] == ["_Z4leafv", "_Z6middlev", None]
    inlined = {i.location.chain[-2].function for i in function.instructions if i.location and i.location.inlined_at}
    assert {"_Z7collatziPi", "_Z4make3Bigi", "_Z6narrowhsbf"} <= inlined


@pytest.mark.parametrize("arch", _ARCHS)
def test_graph_of_the_sample(arch: str) -> None:
    (function,) = _module(arch, "-lineinfo").entries
    found = blocks(function, lambda instruction: instruction.base == "bar")
    assert sum(block.end - block.start for block in found) == len(function.instructions)
    live = liveness(function, found)
    assert live[0].live_in == frozenset(), "no register is read before it is written"
    for instruction in function.instructions:
        for operand in instruction.operands:
            if isinstance(operand, LabelOp):
                assert function.labels[operand.name] == operand.target
    written = {index for i in function.instructions for index in accesses(i).writes}
    read = {index for i in function.instructions for index in accesses(i).reads}
    assert read <= written


def test_types_of_registers_are_as_declared() -> None:
    (function,) = _module("sm_90a", "-lineinfo").entries
    assert {reg.type for reg in function.registers} >= {"pred", "b16", "b32", "b64"}
    for instruction in function.instructions:
        if instruction.base == "setp":
            assert isinstance(instruction.operands[0], RegOp)
            assert instruction.operands[0].reg.type == "pred"


def test_speed() -> None:
    """About 0.02 ms an instruction on a server core; the bound is for a machine ten times busier."""
    (function,) = _module("sm_100a", "-lineinfo").entries
    text = _ptx("sm_100a", "-lineinfo")
    start = time.process_time()
    for _ in range(3):
        parse(text)
    assert time.process_time() - start < 3 * 0.0002 * len(function.instructions) + 0.2
