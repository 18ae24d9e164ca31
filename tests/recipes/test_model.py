"""The static model of a call: bytes and cycles by hand, expectations by enumeration, sums, and what may not fall."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from megamoe_jit import ActivationSpec, ArgumentError, Problem, UnsupportedError
from megamoe_jit.arch import get_arch
from megamoe_jit.recipes import RECIPES, choose_config
from megamoe_jit.recipes.gpus import GPUS, Rate, gpus_for
from megamoe_jit.recipes.model import Model, expect_routing, model_call, model_config, rate_of
from megamoe_jit.recipes.sm100 import Sm100Config, config_for_tile

SMALL = Problem(hidden=256, intermediate=128, num_experts=4, num_topk=4, max_tokens_per_rank=64)
LAYER = Problem(hidden=4096, intermediate=2048, num_experts=64, num_topk=4, max_tokens_per_rank=65536)
BLACKWELL = ("nvfp4_nvfp4", "mxfp4_mxfp4", "mxfp8_mxfp4", "mxfp8_nvfp4")
HOPPER = ("fp8_nvfp4", "bf16_nvfp4", "fp8_mxfp4", "bf16_mxfp4")


def moved(model: Model) -> dict[str, tuple[float, float]]:
    """Return (read, written) bytes by name."""
    return {item.name: (item.read_bytes, item.written_bytes) for item in model.traffic}


def test_bytes_of_a_small_layer_are_those_by_hand() -> None:
    """Every token goes to all four experts, so nothing is left to chance.

    L1 is 256 rows (128 gate, 128 up) of K 256, L2 256 rows of K 128; a scale factor is of 16 values.
    """
    model = model_call(SMALL, "nvfp4_nvfp4", "sm_100a", 8)
    assert (model.routing.rows, model.routing.touched_experts) == (32, 4)
    assert (model.routing.token_tiles, model.routing.columns) == (4, 64)
    row, act = 128 + 16, 64 + 8  # codes and scale factors
    assert moved(model) == {
        "weights": (4 * (256 * 128 + 256 * 64), 0),
        "weight scale factors": (4 * (256 * 16 + 256 * 8), 0),
        "tokens": (8 * (row + 4), 0),  # and a second-level scale
        "lists of routed tokens": (32 * 12, 32 * 12),
        "ring of tokens": (32 * row, 32 * row),
        "activations": (32 * act, 32 * act),
        "routing": (32 * (8 + 4), 0),
        "partials": (32 * 512, 32 * 512),
        "y": (0, 8 * 512),
    }
    (b200,) = model.estimates
    must = 196608 + 24576 + 1184 + 384 + 4096
    assert b200.memory_us == pytest.approx(must / 8e12 * 1e6)
    assert b200.streamed_us == pytest.approx((must + 2 * (384 + 4608 + 2304 + 16384)) / 8e12 * 1e6)


def test_cycles_of_a_small_layer_are_those_by_hand() -> None:
    (b200,) = model_call(SMALL, "nvfp4_nvfp4", "sm_100a", 8).estimates
    # 128 rows of a CTA x 16 columns x K 256 (L1), 128 (L2), at 16384 multiply-adds a cycle.
    assert [layer.tile_cycles for layer in b200.layers] == [32, 16]
    assert [layer.tiles for layer in b200.layers] == [4, 4]
    assert [layer.waves for layer in b200.layers] == pytest.approx([4 / 74] * 2)
    # 4 and 2 MMAs read 32 bytes of 128 rows and of half of 16 columns.
    assert [layer.operand_cycles for layer in b200.layers] == [4 * 136 * 32 / 128, 2 * 136 * 32 / 128]
    assert b200.mma_us == pytest.approx(4 * 48 / 74 / (9e15 / (2 * 148 * 16384)) * 1e6)
    assert b200.floor_us == b200.memory_us
    assert b200.bound_by == "memory"


def test_fp8_activations_take_more_bytes_and_half_the_rate() -> None:
    fp4, fp8 = (model_call(SMALL, recipe, "sm_100a", 8) for recipe in ("mxfp4_mxfp4", "mxfp8_mxfp4"))
    assert (fp4.rate, fp8.rate) == (Rate.FP4, Rate.FP8)
    assert moved(fp8)["weights"] == moved(fp4)["weights"]
    assert (moved(fp4)["ring of tokens"][0], moved(fp8)["ring of tokens"][0]) == (32 * (128 + 8), 32 * (256 + 8))
    pairs = zip(fp4.estimates[0].layers, fp8.estimates[0].layers, strict=True)
    assert all(slow.tile_cycles == 2 * fast.tile_cycles for fast, slow in pairs)


def test_without_a_gate_l1_has_half_the_rows() -> None:
    plain = replace(SMALL, intermediate=256, activation=ActivationSpec(kind="relu2"))
    gated = replace(SMALL, intermediate=256)
    rows = [model_call(problem, "nvfp4_nvfp4", "sm_100a", 8).layers[0].rows for problem in (plain, gated)]
    assert rows == [256, 512]


@pytest.mark.parametrize(
    ("num_experts", "num_topk", "num_tokens", "block_n"), [(4, 2, 3, 16), (3, 1, 4, 2), (4, 3, 4, 2)]
)
def test_expectations_are_those_of_all_routings(num_experts: int, num_topk: int, num_tokens: int, block_n: int) -> None:
    problem = replace(SMALL, num_experts=num_experts, num_topk=num_topk)
    touched = tiles = columns = total = 0
    choices = list(itertools.combinations(range(num_experts), num_topk))
    for routing in itertools.product(choices, repeat=num_tokens):
        counts = [sum(e in chosen for chosen in routing) for e in range(num_experts)]
        total += 1
        touched += sum(count > 0 for count in counts)
        tiles += sum(-(-count // block_n) for count in counts)
        columns += sum(-(-count // block_n) * block_n for count in counts)
    got = expect_routing(problem, num_tokens, block_n, (block_n,))
    expected = (touched / total, tiles / total, columns / total)
    assert (got.touched_experts, got.token_tiles, got.columns) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("recipe", "arch"),
    [*((r, "sm_100f") for r in BLACKWELL), *((r, "sm_103a") for r in BLACKWELL), ("fp8_nvfp4", "sm_90a")],
)
def test_more_tokens_never_take_less(recipe: str, arch: str) -> None:
    models = [model_call(LAYER, recipe, arch, n) for n in (1, 2, 7, 32, 33, 300, 1000, 4096)]
    for before, after in itertools.pairwise(models):
        assert after.routing.touched_experts >= before.routing.touched_experts
        for a, b in zip(before.estimates, after.estimates, strict=True):
            assert b.memory_us > a.memory_us
            assert b.streamed_us > a.streamed_us
            assert b.floor_us >= a.floor_us
            assert b.floor_us >= max(b.memory_us, b.mma_us)
            assert b.streamed_us >= b.memory_us


def test_many_tokens_are_bound_by_mma_and_few_by_memory() -> None:
    few, many = (model_call(LAYER, "nvfp4_nvfp4", "sm_100a", n).estimates[0] for n in (1, 65536))
    assert (few.bound_by, many.bound_by) == ("memory", "MMA")
    # At most what an ideal kernel multiplies: three matrices, two operations a weight and row.
    flops = 65536 * 4 * 3 * 4096 * 2048 * 2
    assert flops / 9e15 * 1e6 <= many.mma_us <= 1.1 * flops / 9e15 * 1e6


def test_one_token_touches_its_experts_and_no_more_than_all_are_touched() -> None:
    assert model_call(LAYER, "nvfp4_nvfp4", "sm_100a", 1).routing.touched_experts == pytest.approx(4)
    routing = model_call(LAYER, "nvfp4_nvfp4", "sm_100a", 8192).routing
    assert routing.touched_experts == pytest.approx(64)
    assert routing.columns >= routing.rows


@pytest.mark.parametrize("block_n", [16, 32, 64, 128])
@pytest.mark.parametrize("cta_group", [1, 2])
@pytest.mark.parametrize("recipe", BLACKWELL)
def test_parts_sum_to_what_the_configuration_takes(recipe: str, cta_group: int, block_n: int) -> None:
    config = config_for_tile(LAYER, RECIPES[recipe], get_arch("sm_100a"), block_n, cta_group=cta_group)
    model = model_config(config, 100)
    assert sum(part.size for part in model.tmem) == config.tmem_columns <= 512
    assert sum(part.size for part in model.smem) == config.smem_bytes
    assert all(part.size >= 0 for part in (*model.tmem, *model.smem))
    # What a stage's loads bring is what its shared memory holds, but for FP4 that TMA widens.
    staged = {part.name: part.size for part in model.smem}
    held = sum(staged[name] for name in ("weights", "tokens", "weights_sf", "tokens_sf"))
    widened = staged["weights"] // 2 if config.kind.pads_weights else 0
    assert model.stage_bytes * config.num_stages == held - widened
    assert model.estimates[0].num_groups == 148 // cta_group


@pytest.mark.parametrize("recipe", HOPPER)
def test_hopper_has_no_tensor_memory_and_one_device(recipe: str) -> None:
    model = model_call(LAYER, recipe, "sm_90a", 64)
    assert model.tmem == ()
    assert sum(part.size for part in model.smem) == model.config.smem_bytes
    (h200,) = model.estimates
    assert h200.gpu.name == "H200"
    assert h200.operand_us is None
    weights = model.routing.touched_experts * 3 * 4096 * 2048
    assert moved(model)["weights"][0] == pytest.approx(weights / 2)
    assert moved(model)["weight scale factors"][0] == pytest.approx(weights / 16)


def test_targets_have_the_devices_that_run_them() -> None:
    names = {
        arch: [gpu.name for gpu in gpus_for(get_arch(arch))] for arch in ("sm_90a", "sm_100a", "sm_100f", "sm_103f")
    }
    assert names == {"sm_90a": ["H200"], "sm_100a": ["B200"], "sm_100f": ["B200", "B300"], "sm_103f": ["B300"]}


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_a_devices_rates_imply_one_clock(gpu) -> None:
    clocks = [gpu.clock_hz(rate) for rate, _ in gpu.peak_flops]
    assert clocks == pytest.approx([clocks[0]] * len(clocks), rel=1e-3)
    assert 1.5e9 < clocks[0] < 2.2e9
    assert "NVIDIA" in gpu.source


def test_a_rate_that_a_device_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="H200 has no dense fp4 rate"):
        GPUS[0].cycle_macs(Rate.FP4)


@pytest.mark.parametrize("num_tokens", [0, 65])
def test_tokens_that_no_buffer_holds_are_refused(num_tokens: int) -> None:
    with pytest.raises(ArgumentError, match=f"num_tokens={num_tokens}, but the buffers hold 1 to 64"):
        model_call(SMALL, "nvfp4_nvfp4", "sm_100a", num_tokens)


@pytest.mark.parametrize("latency_ns", [0.0, -1.0, float("nan"), float("inf")])
def test_a_latency_must_be_one(latency_ns: float) -> None:
    with pytest.raises(ArgumentError, match="is no latency"):
        model_call(SMALL, "nvfp4_nvfp4", "sm_100a", 8, latency_ns=latency_ns)


def test_what_has_no_kernel_has_no_model() -> None:
    with pytest.raises(UnsupportedError, match="runs on sm_100a"):
        model_call(SMALL, "nvfp4_nvfp4", "sm_90a", 8)
    with pytest.raises(UnsupportedError, match="num_ranks=2"):
        model_call(replace(SMALL, num_ranks=2), "nvfp4_nvfp4", "sm_100a", 8)


def test_the_configuration_and_its_reasons_are_those_chosen() -> None:
    choice = choose_config(LAYER, "mxfp8_mxfp4", "sm_100f", 500)
    model = model_call(LAYER, "mxfp8_mxfp4", "sm_100f", 500)
    assert (model.config, model.reason, model.others) == (choice.config, choice.reason, choice.others)
    assert isinstance(model.config, Sm100Config)
    assert rate_of(model.config) is Rate.FP8


def test_json_says_that_it_is_a_model() -> None:
    record = json.loads(json.dumps(model_call(SMALL, "nvfp4_nvfp4", "sm_100f", 8).to_json(), default=str))
    assert record["is_measurement"] is False
    assert record["notice"].startswith("a model, not a measurement")
    assert [estimate["gpu"] for estimate in record["estimates"]] == ["B200", "B300"]
    assert all(estimate["floor_us"] > 0 and "NVIDIA" in estimate["source"] for estimate in record["estimates"])
