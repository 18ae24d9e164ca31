"""Third-party kernels with one piece of synchronisation left out: the emulator says so, however right values are."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import torch

from megamoe_jit.errors import EmulatorFault
from tests.emulator.triton import scaled_kernels
from tests.emulator.triton.compiled import Compiled
from tests.emulator.triton.operands import rounded
from tests.emulator.triton.running import run
from tests.emulator.triton.test_dot_scaled import NVFP4, Tiles, map_arguments, operands, through_maps

NEEDED = re.compile(
    r"(?:@%p\d+ )?"
    r"(mbarrier\.try_wait|mbarrier\.arrive\.expect_tx|tcgen05\.commit|tcgen05\.wait::st|fence\.proxy\.async)"
)
TILES = Tiles(m=128, n=128, k=1024, block_k=256)


def without(compiled: Compiled, number: int) -> Compiled:
    """Leave one line out; a wait becomes one that succeeds at once."""
    lines = compiled.ptx.split("\n")
    is_wait = "try_wait" in lines[number]
    lines[number] = "setp.eq.u32 complete, 0, 0;" if is_wait else ""
    return replace(compiled, ptx="\n".join(lines))


def outcome(compiled: Compiled) -> str:
    """Return the kind of the fault, or whether the result is right."""
    a, b = operands(TILES, NVFP4, seed=3)
    d = torch.zeros(TILES.m, TILES.n, dtype=torch.bfloat16)
    try:
        run(compiled, (1,), map_arguments(a, b, d))
    except EmulatorFault as fault:
        return str(fault.report.kind)  # type: ignore[attr-defined]
    return "right" if torch.equal(d, rounded(a.values @ b.values.T, d.dtype)) else "wrong"


def test_each_wait_commit_fence_and_announcement_is_missed() -> None:
    compiled = through_maps(scaled_kernels.scaled_matmul_host_descriptors, TILES, NVFP4, {})
    assert outcome(compiled) == "right"
    found: dict[str, Counter[str]] = {}
    for number, line in enumerate(compiled.ptx.split("\n")):
        if match := NEEDED.match(line.strip()):
            found.setdefault(match[1], Counter())[outcome(without(compiled, number))] += 1
    assert found.keys() == {
        "mbarrier.try_wait", "mbarrier.arrive.expect_tx", "tcgen05.commit", "tcgen05.wait::st", "fence.proxy.async",
    }  # fmt: skip
    for what, kinds in found.items():
        assert not kinds.keys() & {"right", "wrong"}, (what, kinds)
    assert found["mbarrier.try_wait"]["in-flight"] >= 4
    assert found["mbarrier.arrive.expect_tx"].keys() == {"deadlock"}
    assert found["fence.proxy.async"].keys() == {"proxy"}


def test_a_barrier_that_orders_something_is_missed() -> None:
    """Most of the compiler's thread barriers order nothing here, since one thread issues; two do."""
    compiled = through_maps(scaled_kernels.scaled_matmul_host_descriptors, TILES, NVFP4, {})
    lines = compiled.ptx.split("\n")
    barriers = [number for number, line in enumerate(lines) if line.strip() == "bar.sync \t0;"]
    kinds = Counter(outcome(without(compiled, number)) for number in barriers)
    assert kinds["wrong"] == 0
    assert kinds.keys() == {"right", "race", "overwrite"}
