from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.peers.ours import problem_of
from benchmarks.peers.workload import Workload
from benchmarks.sm90_sweep import ARCH, describe, main, make_config, only, parse_overrides
from megamoe_jit.errors import UnsupportedError
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.ops.moe import MegaMoE
from megamoe_jit.recipes.choose import choose_config, config_for_tile
from megamoe_jit.recipes.recipe import get_recipe
from megamoe_jit.recipes.sm90 import Sm90Config

SHAPE = Workload(name="tiny", hidden=256, intermediate=256, num_experts=4, num_topk=2)
RECIPE = get_recipe("fp8_nvfp4")
PROBLEM = problem_of(SHAPE, 64)


def test_words_become_fields() -> None:
    assert parse_overrides(["block_n=32", "num_stages=5"]) == {"block_n": 32, "num_stages": 5}
    assert describe({"block_n": 32, "num_stages": 5}) == "block_n=32 num_stages=5"
    assert describe({}) == "chosen"


@pytest.mark.parametrize("word", ["block_n", "problem=1", "blocks=2"])
def test_other_words_are_refused_with_the_fields_there_are(word: str) -> None:
    with pytest.raises(SystemExit, match="with a name of block_n, num_stages"):
        parse_overrides([word])


def test_a_configuration_starts_from_its_tile_or_the_choice() -> None:
    assert make_config(PROBLEM, RECIPE, 64, {}) == choose_config(PROBLEM, RECIPE, ARCH, 64).config
    assert make_config(PROBLEM, RECIPE, 64, {"block_n": 8}) == config_for_tile(PROBLEM, RECIPE, ARCH, 8)
    assert make_config(PROBLEM, RECIPE, 64, {"num_stages": 3}).num_stages == 3
    with pytest.raises(UnsupportedError):
        make_config(PROBLEM, get_recipe("nvfp4_nvfp4"), 64, {})


def test_a_layer_takes_the_configuration_given() -> None:
    config = config_for_tile(PROBLEM, RECIPE, ARCH, 16)
    assert isinstance(config, Sm90Config)
    config = replace(config, num_stages=3)
    weights = MoeWeights.random(4, 256, 256)
    with only(config):
        moe = MegaMoE(weights, recipe=RECIPE, num_topk=2, max_tokens_per_rank=64, arch=ARCH, backend="emulator")
        moe.prepare()
    with pytest.raises(RuntimeError, match="instead of the configuration given"), only(config):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
def test_without_a_gpu_kernels_are_only_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--workload", "qwen3", "--tokens", "1", "--processes", "1", "--set", "num_stages=40"]
    assert main([*args, "--compile-only"]) == 0
    printed = capsys.readouterr().out
    assert "num_stages=40, 1 tokens:" in printed
    assert "B of shared memory do not fit" in printed
    assert "0 B spilled" in printed
    assert main(args) == 0
    assert "not measured" in capsys.readouterr().out
