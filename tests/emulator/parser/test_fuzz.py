"""Damaged texts are refused for what they are: only PtxSyntaxError leaves the parser, and it always comes back."""

import contextlib
import random
import time

import pytest

from benchmarks.fuzzing.mutations import mutate, mutate_with_care, tokens
from megamoe_jit.emulator.parser import PtxSyntaxError, blocks, liveness, parse
from tests.emulator.parser.samples import HEADER, compile_cuda, ptx_entry
from tests.emulator.parser.test_inline import _FUNCTIONS

_NUM_TEXTS = 2000

_SYNTAX = ptx_entry(
    """
    .reg .pred %p<5>; .reg .b32 %r<9>, a; .reg .v2 .b64 v; .local .align 8 .b8 frame[32];
    .loc 1 5 3, function_name $L__info_string0, inlined_at 1 2 3
    ld.param.u64 v.x, [q+8]; mov.b64 {%r1, _}, v.x; @!%p1 setp.eq.s32 %p2|%p3, %r1, -5;
    { .reg .pred p; L: @p bra L; T: .branchtargets L, M; brx.idx %r1, T; .pragma "x{"; M: }
    { .param .b32 n; st.param.b32 [n], 0f3F800000; .param .b32 r; call.uni (r), triangle, (n); ld.param.b32 a, [r+0]; }
    cp.async.bulk.tensor.2d.shared::cta.global [a], [v.y, {%r1, %r2}], [%r3 + 8]; ret;""",
    params=".param .u64 .ptr .global .align 1 x, .param .align 64 .b8 q[128]",
    before=_FUNCTIONS
    + ".global .align 8 .u64 t[2][2] = {{1, generic(s)+4}, {0xF}}; .const .b8 s[] = {1,2,3};"
    + '.extern .shared .align 16 .b8 d[]; .file 1 "/x.cu"\n.section .debug_str\n{\n$L__info_string0:\n.b8 1,2,0\n}\n',
    directives=".maxntid 128, 1, 1 .reqnctapercluster 2",
)


def test_damaged_texts() -> None:
    compiled = compile_cuda(
        "__device__ __noinline__ int f(int x) { return x * x; }\n"
        'extern "C" __global__ void k(int* out, int n)\n'
        "{ __shared__ int s[8]; s[n] = f(n); out[n] = s[n] > 3 ? n : f(n + 1); }",
        "sm_90a",
        "-lineinfo",
    )
    texts = [_SYNTAX, compiled, HEADER + _FUNCTIONS]
    words = [tokens(text) for text in texts]
    for text in texts:
        parse(text)
    rng = random.Random(8)
    lines: list[int] = []
    outcomes = {"read": 0, "refused": 0}
    for _ in range(_NUM_TEXTS):
        which = rng.randrange(len(texts))
        careful = rng.random() < 0.2
        text = mutate_with_care(rng, texts[which]) if careful else mutate(rng, texts[which], words[which])
        start = time.process_time()
        try:
            for function in parse(text).entries:
                liveness(function, blocks(function, lambda instruction: "cp" in instruction.opcode))
            outcomes["read"] += 1
        except PtxSyntaxError as error:
            outcomes["refused"] += 1
            lines.append(error.line - text.count("\n"))
        assert time.process_time() - start < 5, text
    assert max(lines) <= 1, "errors are inside the text"
    assert outcomes["refused"] > outcomes["read"] > _NUM_TEXTS // 20


@pytest.mark.parametrize(
    "unit", ["{", "(", "[", "L: ", ".reg .b32 ", "op ", "op a, ", '"', "/*", "@", ".entry k { ", "\n", ",", "1", "-"]
)
def test_long_repetitions_come_back(unit: str) -> None:
    for text in (HEADER + unit * 20000, ptx_entry(unit * 20000), ptx_entry(f".reg .b32 a; op a, {unit * 20000};")):
        start = time.process_time()
        with contextlib.suppress(PtxSyntaxError):
            parse(text)
        assert time.process_time() - start < 5
