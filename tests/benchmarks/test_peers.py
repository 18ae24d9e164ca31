from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.peers import workload as workloads
from benchmarks.peers.kinds import BY_NAME, KINDS, OURS, PEERS, versions
from benchmarks.peers.layer import Layer, checked_rows, dequantized, make_weights, moe_truth
from benchmarks.peers.padding import WidenedTokens, narrowed, note, widen_weights, widened
from benchmarks.peers.sgl_deep_gemm import interleave, quantize_blocks
from benchmarks.peers.torch_grouped import TorchGrouped
from benchmarks.peers.warm import Job, jobs_of, run_jobs, zero_layer
from benchmarks.peers.workload import (
    TOKENS,
    WORKLOADS,
    Workload,
    make_sets,
    num_hot_experts,
    num_sets,
    num_touched,
    skewed_routing,
    uniform_routing,
)
from megamoe_jit.reference.compare import rel_l2
from megamoe_jit.reference.moe import moe_reference

ROOT = Path(__file__).parents[2]
TINY = Workload(name="tiny", hidden=64, intermediate=32, num_experts=10, num_topk=2, skewed=(8,))


def test_the_floor_is_bytes_or_operations() -> None:
    flash, pro = WORKLOADS["flash"], WORKLOADS["pro"]
    # One token touches six experts; at 4096 tokens operations decide. Microseconds, by hand.
    assert flash.floor_us(1, 6) == pytest.approx((6 * 3 * 4096 * 2048 * 9 / 16 + 4 * 4096) / 4.55e6)
    assert flash.floor_us(1, 6) == pytest.approx(18.7, abs=0.05)
    assert flash.floor_us(4096, 32) == pytest.approx(2 * 4096 * 6 * 3 * 4096 * 2048 / 1333e6)
    counts = (256, 1024, 4096, 8192)
    assert [flash.floor_us(count, 32) for count in counts] == pytest.approx([101, 232, 928, 1855], abs=1)
    assert [pro.floor_us(count, 48) for count in counts] == pytest.approx([394, 609, 2435, 4870], abs=2)
    assert flash.floor_us(4096, 32, ops_per_s=700e12) == pytest.approx(flash.floor_us(4096, 32) * 1333 / 700)
    assert flash.floor_us(8, 30, ops_per_s=700e12) == flash.floor_us(8, 30)


def test_cases_are_each_once_and_follow_the_options() -> None:
    flash = WORKLOADS["flash"]
    assert flash.cases()[: len(TOKENS)] == tuple(("uniform", count) for count in TOKENS)
    assert {count for routing, count in flash.cases() if routing == "skewed"} == set(workloads.SKEWED)
    assert len(set(flash.cases())) == len(flash.cases())
    assert flash.cases((7,), ("uniform",)) == (("uniform", 7),)
    assert WORKLOADS["qwen3"].cases((7,)) == (("uniform", 7),)


@pytest.mark.parametrize("shape", WORKLOADS.values(), ids=list(WORKLOADS))
@pytest.mark.parametrize("route", [uniform_routing, skewed_routing])
def test_routing_names_distinct_experts(shape: Workload, route: object) -> None:
    assert callable(route)
    topk_idx = route(shape, 100, torch.Generator().manual_seed(3))
    assert topk_idx.dtype == torch.int32
    assert topk_idx.shape == (100, shape.num_topk)
    assert 0 <= int(topk_idx.min()) <= int(topk_idx.max()) < shape.num_experts
    assert all(len(set(row)) == shape.num_topk for row in topk_idx.tolist())


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_skewed_routing_sends_half_of_the_slots_to_a_tenth_of_the_experts(name: str) -> None:
    shape = WORKLOADS[name]

    def hot_share(topk_idx: torch.Tensor) -> float:
        counts = Counter(topk_idx.flatten().tolist()).most_common(num_hot_experts(shape))
        return sum(count for _, count in counts) / topk_idx.numel()

    generator = torch.Generator().manual_seed(1)
    assert hot_share(skewed_routing(shape, 1000, generator)) == 0.5
    assert hot_share(uniform_routing(shape, 1000, generator)) < 0.13
    assert num_hot_experts(shape) == shape.num_experts // 10


def test_inputs_differ_from_set_to_set_and_not_from_call_to_call() -> None:
    first, again = (make_sets(TINY, "uniform", 8, device="cpu") for _ in range(2))
    assert len(first) == num_sets(8) == 12
    assert (num_sets(64), num_sets(1024)) == (6, 3)
    assert torch.equal(first[3].x, again[3].x)
    assert not torch.equal(first[0].x, first[1].x)
    assert not torch.equal(first[0].topk_idx, first[1].topk_idx)
    assert torch.allclose(first[0].topk_weights.sum(1), torch.ones(8))
    assert 2 <= num_touched(first) <= 10
    one = replace(first[0], topk_idx=torch.tensor([[1, 2]], dtype=torch.int32))
    two = replace(first[0], topk_idx=torch.tensor([[1, 2], [4, 5]], dtype=torch.int32))
    assert num_touched([one, two]) == 3


@pytest.mark.parametrize("checkpoint", ["nvfp4", "mxfp4"])
def test_the_truth_is_the_reference(checkpoint: str) -> None:
    weights = make_weights(TINY, checkpoint, "cpu")  # type: ignore[arg-type]
    tokens = make_sets(TINY, "skewed", 12, device="cpu", count=1)[0]
    expected = moe_reference(tokens.x, tokens.topk_idx, tokens.topk_weights, weights).y
    truth = moe_truth(tokens, dequantized(weights))
    assert rel_l2(truth, expected) < 1e-12
    rows = torch.tensor([0, 5, 11])
    assert rel_l2(moe_truth(tokens.rows(rows), dequantized(weights)), expected[rows]) < 1e-12


def test_weights_are_in_the_range_of_exporters() -> None:
    weights = make_weights(TINY, "nvfp4", "cpu")
    assert float(weights.l1_sf.float().max()) == 448.0
    assert torch.equal(weights.l1_alphas[:, 0], weights.l1_alphas[:, 1])
    l1, _ = dequantized(weights)(0)
    assert float(l1.std()) == pytest.approx(TINY.hidden**-0.5, rel=0.1)
    layer = Layer(workload=TINY, device="cpu")
    assert layer.weights("nvfp4") is layer.weights("nvfp4")
    assert torch.equal(layer.weights("nvfp4").l1_codes, weights.l1_codes)


def test_few_tokens_are_all_checked_and_many_over_the_whole_call() -> None:
    assert checked_rows(5, "cpu").tolist() == [0, 1, 2, 3, 4]
    rows = checked_rows(8192, "cpu").tolist()
    assert len(set(rows)) == 64
    assert (rows[0], rows[-1]) == (0, 8191)


def test_torch_computes_the_layer() -> None:
    layer = Layer(workload=TINY, device="cpu")
    peer = TorchGrouped(layer, 8)
    tokens = make_sets(TINY, "uniform", 8, device="cpu", count=1)[0]
    [(name, make)] = peer.variants(8)
    assert name == "grouped_mm"
    assert rel_l2(make()(tokens), moe_truth(tokens, peer.values())) < 0.02


def test_blocks_of_fp8_weights_are_scaled_to_their_maximum() -> None:
    w = torch.randn(256, 128) * torch.tensor([1.0, 300.0]).repeat_interleave(128).unsqueeze(1)
    codes, sf = quantize_blocks(w)
    assert sf.shape == (2, 1)
    values = codes.float() * sf.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert rel_l2(values[:128], w[:128]) < 0.04
    assert rel_l2(values[128:], w[128:]) < 0.04


@pytest.mark.parametrize("checkpoint", ["nvfp4", "mxfp4"])
def test_a_widened_layer_computes_the_same(checkpoint: str) -> None:
    weights = make_weights(TINY, checkpoint, "cpu")  # type: ignore[arg-type]
    wide = widened(TINY)
    assert (wide.hidden, wide.intermediate) == (128, 128)
    assert widened(wide) is wide
    assert widen_weights(weights, TINY) is weights
    tokens = make_sets(TINY, "uniform", 8, device="cpu", count=1)[0]
    wide_weights = widen_weights(weights, wide)
    widener = WidenedTokens(wide.hidden)
    wide_tokens = replace(tokens, x=widener.of(tokens))
    assert widener.of(tokens) is wide_tokens.x
    expected = moe_truth(tokens, dequantized(weights))
    y = moe_truth(wide_tokens, dequantized(wide_weights))
    assert rel_l2(y[:, : TINY.hidden], expected) < 1e-12
    assert not y[:, TINY.hidden :].any()
    assert rel_l2(moe_truth(tokens, narrowed(dequantized(wide_weights), wide, TINY)), expected) < 1e-12
    old, new = weights.l1_sf.float(), wide_weights.l1_sf.float()
    assert (float(new.min()), float(new.max())) == (float(old.min()), float(old.max()))
    assert (note(wide, TINY), note(TINY, TINY)) == ("widened to 128 x 128", "")


def test_gate_and_up_rows_are_interleaved_by_eight() -> None:
    rows = torch.arange(32, dtype=torch.uint8).unsqueeze(1)
    expected = [*range(8), *range(16, 24), *range(8, 16), *range(24, 32)]
    assert interleave(rows).flatten().tolist() == expected


def test_the_list_of_contenders() -> None:
    assert len(BY_NAME) == len(KINDS)
    assert OURS == ("fp8_nvfp4", "bf16_nvfp4", "fp8_mxfp4")
    assert set(OURS).isdisjoint(PEERS)
    assert "torch" not in versions()


def test_compiling_ahead_takes_a_process_for_each_job() -> None:
    tokens = {"flash": [8, 1, 8], "pro": [64]}
    jobs = jobs_of([BY_NAME["sgl_fp8"], BY_NAME["humming_nvfp4"], BY_NAME["torch_bf16"]], tokens)
    assert jobs[0] == Job(kind="humming_nvfp4", workload="flash", tokens=(1, 8))
    assert sum(job.kind == "sgl_fp8" for job in jobs) == 3
    assert jobs[0].command[1:] == ["-m", "benchmarks.peers.warm", "humming_nvfp4", "flash", "1", "8"]


def test_jobs_that_fail_or_are_late_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    scripts = {
        "good": "print('noise')",
        "bad": "raise SystemExit('no compiler')",
        "slow": "import time; time.sleep(60)",
    }
    monkeypatch.setattr(Job, "command", property(lambda job: [sys.executable, "-c", scripts[job.kind]]))
    jobs = [Job(kind=kind, workload="flash", tokens=(1, 8)) for kind in scripts]
    run_jobs(jobs, 3, 3.0, lines.append)
    text = "\n".join(lines)
    assert "good flash 1 8, " in text
    assert "noise" not in text
    assert "no compiler" in text
    assert "s stopped" in text
    lines.clear()
    run_jobs(jobs[:1], 1, 0.0, lines.append)
    assert lines == ["not compiled ahead, no time left: good flash 1 8"]


def test_a_zero_layer_has_values() -> None:
    layer = zero_layer(replace(TINY, intermediate=64), "cpu")
    for checkpoint in ("nvfp4", "mxfp4"):
        l1, l2 = dequantized(layer.weights(checkpoint))(1)  # type: ignore[arg-type]
        assert l1.shape == (128, 64)
        assert not l1.any()
        assert not l2.any()


@pytest.mark.parametrize("script", ["check_sorting.py", "check_humming.py"])
def test_kernels_of_the_sort_and_those_around_it(script: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    # Triton decides when it is imported whether kernels are interpreted: in a process of their own.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).parent / script)],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
