"""The Blackwell grouped GEMM compiles for every target and kind, spills nothing, and holds its instructions."""

from __future__ import annotations

import re

import pytest

from megamoe_jit import UnsupportedError, get_arch
from megamoe_jit.jit.compile import Artifact, CompileOptions, compile_source
from megamoe_jit.jit.render import render
from megamoe_jit.recipes.sm100_gemm import MMA_KINDS, Sm100GemmConfig, gemm_config, reject

ARCHS = ("sm_100a", "sm_100f", "sm_103a", "sm_103f")


def compiled(config: Sm100GemmConfig) -> Artifact:
    return compile_source(render(config), config.arch, CompileOptions(), kernel_name=config.kernel_name)


def config(
    recipe: str = "nvfp4_nvfp4", arch: str = "sm_100f", block_n: int = 128, cta_group: int = 2
) -> Sm100GemmConfig:
    return gemm_config(
        arch=get_arch(arch),
        kind=MMA_KINDS[recipe],
        num_experts=4,
        n=512,
        k=8192,
        block_n=block_n,
        cta_group=cta_group,
    )


@pytest.mark.parametrize("cta_group", [1, 2])
@pytest.mark.parametrize("recipe", MMA_KINDS)
@pytest.mark.parametrize("arch", ARCHS)
def test_it_compiles_without_spills_to_its_own_kind_of_mma(arch: str, recipe: str, cta_group: int) -> None:
    artifact = compiled(config(recipe, arch, cta_group=cta_group))
    resources = artifact.resources
    assert (resources.spill_stores, resources.spill_loads, resources.stack_frame, resources.local) == (0, 0, 0, 0)
    kind = MMA_KINDS[recipe]
    mmas = set(re.findall(r"tcgen05\.mma\.\S+", artifact.ptx))
    assert mmas == {f"tcgen05.mma.cta_group::{cta_group}.kind::{kind.name}.block_scale.block{kind.gran_k}"}
    assert len(re.findall(r"tcgen05\.mma\.", artifact.ptx)) == kind.block_k // kind.mma_k
    assert set(re.findall(r"tcgen05\.cp\.\S+", artifact.ptx)) == {f"tcgen05.cp.cta_group::{cta_group}.32x128b.warpx4"}


@pytest.mark.parametrize("block_n", [32, 64, 128, 192, 256])
def test_every_tile_fits_tensor_memory_and_shared_memory(block_n: int) -> None:
    built = config(block_n=block_n)
    assert reject(built) is None
    assert built.tmem_columns <= 512
    assert built.num_accums == (1 if block_n == 256 else 2)
    assert compiled(built).resources.spill_stores == 0


def test_the_older_spelling_is_for_architecture_targets() -> None:
    kind = MMA_KINDS["nvfp4_nvfp4"]
    fields = {
        **{"kind": kind, "num_experts": 1, "n": 256, "k": 256},
        **{"block_n": 64, "cta_group": 1, "num_stages": 4, "scale_vec": True},
    }
    family = Sm100GemmConfig(arch=get_arch("sm_100f"), **fields)  # type: ignore[arg-type]
    assert "family targets" in str(reject(family))
    specific = Sm100GemmConfig(arch=get_arch("sm_100a"), **fields)  # type: ignore[arg-type]
    assert reject(specific) is None
    assert "kind::mxf4nvf4.block_scale.scale_vec::4X" in compiled(specific).ptx


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 260}, "multiple of 8"),
        ({"k": 48}, "multiple of 32"),
        ({"block_n": 40}, "block_n=40"),
        ({"arch": get_arch("sm_90a")}, "no tcgen05"),
        ({"kind": MMA_KINDS["mxfp8_mxfp4"], "k": 192}, "multiple of 128"),
    ],
)
def test_shapes_that_cannot_run_are_refused_in_words(changes: dict[str, object], words: str) -> None:
    fields: dict[str, object] = {
        "arch": get_arch("sm_100f"),
        "kind": MMA_KINDS["nvfp4_nvfp4"],
        "num_experts": 1,
        "n": 256,
        "k": 256,
        "block_n": 64,
        "cta_group": 1,
    }
    with pytest.raises(UnsupportedError, match=words):
        gemm_config(**{**fields, **changes})  # type: ignore[arg-type]
