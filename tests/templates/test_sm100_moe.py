"""The fused Blackwell kernel holds the instructions that its configuration asks for, as often as its loops say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megamoe_jit import get_arch
from megamoe_jit.jit.compile import Artifact, CompileOptions, compile_source
from megamoe_jit.jit.inspect import instruction_histogram
from megamoe_jit.jit.render import render
from megamoe_jit.recipes.sm100 import Sm100Config, reject
from tests.templates.sm100_kernels import RECIPES, fused

KINDS = {
    "nvfp4_nvfp4": "kind::mxf4nvf4.block_scale.block16",
    "mxfp8_mxfp4": "kind::mxf8f6f4.block_scale.block32",
    "mxfp8_nvfp4": "kind::mxf8f6f4.block_scale.block32",
    "mxfp4_mxfp4": "kind::mxf4.block_scale.block32",
}
# Of a stage of one token tile of 16: 512-byte atoms of weights' and of tokens' scale factors.
COPIES = {"nvfp4_nvfp4": 4 + 4, "mxfp8_mxfp4": 1 + 1, "mxfp8_nvfp4": 1 + 1, "mxfp4_mxfp4": 2 + 2}
TMA = "cp.async.bulk.tensor.2d{}.shared::cluster.global.tile.mbarrier::complete_tx::bytes"


def compiled(config: Sm100Config) -> Artifact:
    return compile_source(render(config), config.arch, CompileOptions(), kernel_name=config.kernel_name)


def counts(config: Sm100Config, start: str) -> dict[str, int]:
    """Return the instructions of a kernel that begin so."""
    histogram = instruction_histogram(compiled(config).ptx)
    return {opcode: count for opcode, count in histogram.items() if opcode.startswith(start)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_mmas_and_copies_are_those_of_the_recipe(recipe: str) -> None:
    config = fused(recipe)
    histogram = counts(config, "")
    # A stage of four MMAs, once in L1's loop and once in L2's.
    assert {opcode: n for opcode, n in histogram.items() if opcode.startswith("tcgen05.mma")} == {
        f"tcgen05.mma.cta_group::2.{KINDS[recipe]}": 2 * 4
    }
    assert {opcode: n for opcode, n in histogram.items() if opcode.startswith("tcgen05.cp")} == {
        "tcgen05.cp.cta_group::2.32x128b.warpx4": 2 * COPIES[recipe]
    }
    # Weights, tokens and both scale factors, of L1 and of L2; the compiler may unroll.
    assert histogram[TMA.format(".cta_group::2")] % (2 * 4) == 0
    assert histogram["tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32"] == 1
    assert histogram["tcgen05.dealloc.cta_group::2.sync.aligned.b32"] == 1
    assert histogram["griddepcontrol.wait"] == 1
    assert not [opcode for opcode in histogram if "local" in opcode or "wgmma" in opcode]


def test_a_single_cta_has_no_instruction_of_a_pair() -> None:
    histogram = counts(fused("nvfp4_nvfp4", cta_group=1), "")
    assert histogram["tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16"] == 8
    assert histogram[TMA.format("")] % 8 == 0
    assert not [opcode for opcode in histogram if "cta_group::2" in opcode or "multicast" in opcode]


@pytest.mark.parametrize("arch", ["sm_100a", "sm_103a"])
def test_architecture_targets_take_the_older_spelling_when_asked(arch: str) -> None:
    config = replace(fused("nvfp4_nvfp4", arch=arch), scale_vec=True)
    assert reject(config) is None
    artifact = compiled(config)
    resources = artifact.resources
    assert (resources.spill_stores, resources.spill_loads, resources.stack_frame, resources.local) == (0, 0, 0, 0)
    histogram = instruction_histogram(artifact.ptx)
    assert histogram["tcgen05.mma.cta_group::2.kind::mxf4nvf4.block_scale.scale_vec::4X"] == 8
    assert not [opcode for opcode in histogram if "block16" in opcode]


@pytest.mark.parametrize("arch", ["sm_100f", "sm_103f"])
def test_family_targets_refuse_the_older_spelling(arch: str) -> None:
    config = replace(fused("nvfp4_nvfp4"), arch=get_arch(arch), scale_vec=True)
    assert "scale_vec is not for family targets" in str(reject(config))
