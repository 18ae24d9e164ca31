"""What Hopper kernels compile to: no local memory, no spills but the widest tile's, and the instructions they need."""

from __future__ import annotations

import re

import pytest

from megamoe_jit.jit.compile import Artifact
from megamoe_jit.jit.inspect import instruction_histogram
from megamoe_jit.jit.render import render
from megamoe_jit.recipes import plan_kernels
from megamoe_jit.recipes.params import MEGA_MOE_PARAMS, STAGING_PARAMS
from megamoe_jit.recipes.sm90 import WIDEST_TILE, Sm90Config
from megamoe_jit.runtime.launch import parse_signature
from tests.templates.sm90_kernels import LAYER, SM90, compiled, fused_kernels, staging_kernels

FUSED, STAGING = fused_kernels(), staging_kernels()
_WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.(\S+)\s+(.*?);", re.DOTALL)
_REGISTER = r"%[a-z]+\d+"
# The widest tile alone spills: 192 of a thread's 240 registers are sums, and 48 are too few for the rest. The loop over
# the K stages between promotions spills only where it gives up a wait; the rest is at promotions and between tiles.
_SPILLED_BYTES = 192  # of a thread's stack


def check_memory(artifact: Artifact, histogram: dict[str, int], *, num_threads: int, may_spill: bool = False) -> None:
    """Assert that the kernel keeps what it works on in registers, and that a block of it fits an SM."""
    resources = artifact.resources
    if may_spill:
        assert 0 < resources.stack_frame <= _SPILLED_BYTES  # once it is 0 the exception can go
        assert resources.spill_stores > 0
    else:
        assert (resources.spill_stores, resources.spill_loads) == (0, 0)
        assert resources.stack_frame == 0
    assert resources.local == 0
    assert 0 < resources.registers * num_threads <= SM90.regs_per_sm
    assert not [opcode for opcode in histogram if re.match(r"(ld|st)\.local|cvta\.local|mov.*local", opcode)]
    assert "__local_depot" not in artifact.ptx


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_kernel(name: str) -> None:
    config = FUSED[name]
    artifact = compiled(config)
    histogram = instruction_histogram(artifact.ptx)
    is_widest = config.block_n == WIDEST_TILE
    check_memory(artifact, histogram, num_threads=config.num_threads, may_spill=is_widest)
    assert artifact.resources.static_smem == 0

    # One MMA form for each width, weights in registers (A: four of them), tokens in shared memory (B: a descriptor).
    form = "k32.f32.e4m3.e4m3" if config.shapes.is_fp8 else "k16.f32.bf16.bf16"
    found = _WGMMA.findall(artifact.ptx)
    widths = config.template_values()["wgmma_n"]
    assert isinstance(widths, tuple)
    assert {shape for shape, _ in found} == {f"m64n{width}{form}" for width in widths}
    last = "" if config.shapes.is_fp8 else r", \d+"  # BF16 may transpose B
    for shape, operands in found:
        width = int(re.match(r"m64n(\d+)k", shape)[1])  # type: ignore[index]
        text = " ".join(operands.split())
        sums = ", ".join([_REGISTER] * (width // 2))
        fragment = ", ".join([_REGISTER] * 4)
        assert re.fullmatch(rf"{{ ?{sums} ?}}, {{ ?{fragment} ?}}, {_REGISTER}, \w+, 1, 1{last}", text), text

    bulk = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
    if config.num_passes == 1:
        bulk += ".L2::cache_hint"  # weights that are read once
    tensor = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
    for opcode in (bulk, tensor, "setmaxnreg.inc.sync.aligned.u32", "setmaxnreg.dec.sync.aligned.u32"):
        assert histogram.get(opcode, 0) >= 1, opcode
    assert any(opcode.startswith("mbarrier.try_wait.parity") for opcode in histogram)
    assert any(opcode.startswith("fence.proxy.async") for opcode in histogram)
    # Tokens come by TMA: threads copy single words (columns) only. Results of L2, and E4M3 codes, leave by stmatrix.
    assert {opcode for opcode in histogram if re.match(r"cp\.async\.c[ag]", opcode)} == {"cp.async.ca.shared.global"}
    columns = {width // 8 for width in widths}
    fours = {4} if max(columns) >= 4 else set()
    tails = {part for groups in columns for part in (2, 1) if groups & part}
    stores = {int(number) for number in re.findall(r"stmatrix\S*\.x(\d)\.trans", " ".join(histogram))}
    assert stores == fours | tails

    signature = parse_signature(artifact.ptx, config.kernel_name)
    params, *maps = signature.params
    assert params.size == MEGA_MOE_PARAMS.num_bytes(num_ranks=1) == config.constants()["param_bytes"]
    assert [(described.size, described.alignment) for described in maps] == [(128, 64)] * 2
    assert signature.max_threads == config.num_threads


@pytest.mark.parametrize("name", STAGING)
def test_a_staging_kernel(name: str) -> None:
    config = STAGING[name]
    artifact = compiled(config)
    histogram = instruction_histogram(artifact.ptx)
    check_memory(artifact, histogram, num_threads=config.num_threads)
    converts = [opcode for opcode in histogram if "e4m3x2" in opcode]
    assert bool(converts) == (name.startswith("fp8") and not config.source_is_codes)
    (params,) = parse_signature(artifact.ptx, config.kernel_name).params
    assert params.size == STAGING_PARAMS.num_bytes(num_ranks=1) == config.constants()["param_bytes"]


@pytest.mark.parametrize(("nvfp4", "mxfp4"), [("fp8_nvfp4", "fp8_mxfp4"), ("bf16_nvfp4", "bf16_mxfp4")])
def test_checkpoint_formats_share_their_kernels(nvfp4: str, mxfp4: str) -> None:
    """MXFP4 weights have become UE4M3-scaled before they get here, so one build serves both."""
    ours, theirs = (plan_kernels(LAYER, recipe, SM90) for recipe in (nvfp4, mxfp4))
    assert [render(kernel) for kernel in ours] == [render(kernel) for kernel in theirs]


def test_every_kernel_of_a_plan_is_among_those_compiled_here() -> None:
    """The table above has every token tile, so that no tile goes unbuilt."""
    for recipe in ("fp8_nvfp4", "bf16_nvfp4"):
        planned = [kernel for kernel in plan_kernels(LAYER, recipe, SM90) if isinstance(kernel, Sm90Config)]
        assert planned
        assert set(planned) <= set(FUSED.values())
