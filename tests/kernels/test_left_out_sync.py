"""The layer's own kernels with one piece of synchronisation left out: the emulator reports nearly all of them.

Values alone would not do: with eager completion most of these kernels still give the right result.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from megamoe_jit.emulator import Limits
from megamoe_jit.errors import EmulatorFault
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.ops.moe import MegaMoE
from megamoe_jit.runtime import emulated
from megamoe_jit.runtime.emulated import EmulatedBackend, EmulatorSettings
from tests.kernels.one_kernel import one_kernel
from tests.marks import slow

HIDDEN, INTERMEDIATE, NUM_EXPERTS, NUM_TOPK, NUM_TOKENS = 256, 256, 3, 2, 150
SAMPLES = 4
"""Places of each kind that are tried."""


@dataclass(frozen=True)
class Kind:
    """A way to leave synchronisation out.

    Attributes:
        line: lines of PTX that it is about; wrong: what becomes of such a line.
        enough: how many of `SAMPLES` places must be reported. Some places are not needed where they stand: a barrier
            after a barrier, the first look of a wait that looks again, a fence between reads and a copy over them.
    """

    line: str
    wrong: Callable[[str], str]
    enough: int


def drop(opcode: str) -> Callable[[str], str]:
    return lambda line: re.sub(rf"{opcode}[^;]*;", "", line, count=1)


def relax(line: str) -> str:
    return re.sub(r"\.(release|acquire|acq_rel)\b", ".relaxed", line, count=1)


def pass_by(line: str) -> str:
    return re.sub(r"mbarrier\.try_wait\S+\s+(%?\w+),[^;]*;", r"setp.eq.u32 \1, 0, 0;", line)


KINDS = {
    "barrier of the block": Kind(r"^\s*bar(rier)?\.sync", drop(r"bar(rier)?\.sync"), 2),
    "wait for an mbarrier": Kind(r"mbarrier\.try_wait", pass_by, 2),
    "proxy fence": Kind(r"^\s*fence\.proxy\.async", drop(r"fence\.proxy"), 1),
    "order of flags": Kind(r"st\.release|red\.release|ld\.acquire", relax, 1),
    "wait for cp.async": Kind(r"^\s*cp\.async\.wait_all", drop(r"cp\.async\.wait_all"), 2),
    "wait for wgmma": Kind(r"wgmma\.wait_group", drop(r"wgmma\.wait_group"), 2),
    "wait for tcgen05": Kind(r"tcgen05\.wait", drop(r"tcgen05\.wait"), 1),
}


class Layer:
    """A small layer on an emulated device whose kernels' texts can be changed on the way."""

    def __init__(self, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        self.recipe = recipe
        self.patch = monkeypatch
        self.weights = MoeWeights.random(NUM_EXPERTS, HIDDEN, INTERMEDIATE, seed=1)
        self.x = torch.randn(NUM_TOKENS, HIDDEN, dtype=torch.bfloat16)
        self.topk_weights, self.topk_idx = torch.randn(NUM_TOKENS, NUM_EXPERTS).softmax(-1).topk(NUM_TOPK)

    def run(self, change: Callable[[str], str], completion: str) -> EmulatedBackend:
        """Run the layer with each PTX text changed."""
        device = EmulatedBackend(EmulatorSettings(num_sms=2, completion=completion))
        device.emulator.limits = Limits(max_seconds=300)
        load = device.emulator.load
        device.emulator.load = lambda ptx: load(change(ptx))
        self.patch.setattr(emulated, "emulated_backend", lambda: device)
        moe = MegaMoE(self.weights, recipe=self.recipe, num_topk=NUM_TOPK, max_tokens_per_rank=256, backend="emulator")
        with one_kernel(NUM_TOKENS):
            moe(self.x, self.topk_idx, self.topk_weights)
        return device

    def executed(self) -> tuple[str, set[int]]:
        """Return the text of the layer's main kernel, and its lines that are executed (counted from 0)."""
        device = self.run(lambda ptx: ptx, "lazy")
        texts: dict[str, set[int]] = {}
        for text, module in device._modules.items():
            for program in module._programs.values():
                counts: Any = program
                instructions = program.function.instructions
                texts[text] = {
                    instructions[pc].line - 1
                    for block, count in zip(counts.blocks, counts.block_counts.tolist(), strict=True)
                    if count
                    for pc in range(block.start, block.end)
                }
        return max(texts.items(), key=lambda item: len(item[1]))


def is_reported(layer: Layer, text: str, number: int, wrong: str) -> bool:
    """Whether the kernel with line `number` replaced is reported under some policy."""
    lines = text.split("\n")
    lines[number] = wrong
    changed = "\n".join(lines)
    for completion in ("lazy", "eager"):
        with contextlib.suppress(EmulatorFault):
            layer.run(lambda ptx: changed if ptx == text else ptx, completion)
            continue
        return True
    return False


@slow("compiles and runs dozens of changed kernels")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "nvfp4_nvfp4"])
def test_left_out_synchronisation_is_reported(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(recipe, monkeypatch)
    text, executed = layer.executed()
    lines = text.split("\n")
    # More places where there is time for them: a weekly job's choice, not a test's.
    samples = int(os.environ.get("LEFT_OUT_SAMPLES", SAMPLES))
    results: dict[str, list[tuple[str, bool]]] = {}
    for name, kind in KINDS.items():
        places = [number for number in sorted(executed) if re.search(kind.line, lines[number])]
        random.Random(recipe).shuffle(places)
        for number in places[:samples]:
            wrong = kind.wrong(lines[number])
            assert wrong != lines[number]
            reported = is_reported(layer, text, number, wrong)
            results.setdefault(name, []).append((f"{number + 1}: {lines[number].strip()}", reported))
    assert len(results) >= 5
    for name, found in results.items():
        enough = min(KINDS[name].enough, len(found))
        assert sum(reported for _, reported in found) >= enough, (name, found)
