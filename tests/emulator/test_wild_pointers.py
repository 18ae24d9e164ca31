"""Wild pointers end in a report that names the instruction, the thread and the line, never in a dead process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator
from megamoe_jit.errors import MemoryFault
from tests.emulator.cuda_source import compile_cuda, object_cache

_SOURCE = r"""
extern "C" __global__ void k(u32* out, u64 wild, int what) {
    u32 t = threadIdx.x;
    out[t] = t;
    if (t == 37) {
        u32* p = (u32*)wild;
        if (what == 0) out[t] = *p;
        if (what == 1) *p = 1;
        if (what == 2) atomicAdd(p, 1);
        if (what == 3) bulk_store(p, (u32)wild, 16);
        if (what == 4) { u32 x; ASM("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"((u32)wild)); out[t] = x; }
        if (what == 5) out[t] = *(volatile unsigned char*)p;
    }
}
"""
_OPCODES = ("ld.global", "st.global", "atom.global", "cp.async.bulk", "ld.shared", "ld.volatile")
_WILD = (0, 16, 0x1000, 0x7FFF_FFFF_F000, 0xDEAD_BEEF_0000, 0xFFFF_FFFF_FFFF_FFF0)


@pytest.mark.parametrize("engine", ["native", "numpy"])
@pytest.mark.parametrize("checks", ["error", "off"])
@pytest.mark.parametrize(("what", "opcode"), list(enumerate(_OPCODES)), ids=_OPCODES)
def test_the_report_names_the_instruction(what: int, opcode: str, checks: str, engine: str) -> None:
    module = Emulator(engine=engine, checks=checks, cache_dir=object_cache()).load(compile_cuda(_SOURCE))
    for wild in _WILD:
        out = np.full(64 + 2, 7, np.uint32)
        with pytest.raises(MemoryFault) as caught:
            module.launch("k", 1, 64, args=[out[1:-1], wild, what])
        text = str(caught.value)
        line = next(number for number, row in enumerate(_SOURCE.split("\n"), 1) if f"what == {what}" in row)
        for words in ("out-of-bounds", f"at {opcode}", f"/roles/kernel.cu:{line}", "CTA 0, warp 1, lanes 5"):
            assert words in text, (wild, words, text)
        assert (out[[0, -1]] == 7).all()


def test_the_report_says_where_the_pointer_went() -> None:
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(_SOURCE))
    out: Any = np.zeros(64, np.uint32)
    with pytest.raises(MemoryFault, match="0xdeadbeef0000"):
        module.launch("k", 1, 64, args=[out, 0xDEAD_BEEF_0000, 1])
    past = out.ctypes.data + out.nbytes
    with pytest.raises(MemoryFault, match=f"{past:#x}"):
        module.launch("k", 1, 64, args=[out, past, 1])


def test_memory_that_is_no_more_is_wild() -> None:
    """A launch knows its own arguments, not those of the launch before."""
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(_SOURCE))
    old, out = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    module.launch("k", 1, 64, args=[old, old.ctypes.data + 4 * 37, 0])
    with pytest.raises(MemoryFault, match="out-of-bounds"):
        module.launch("k", 1, 64, args=[out, old.ctypes.data + 4 * 37, 0])
