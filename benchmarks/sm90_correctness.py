"""Are the Hopper kernels right? Every shape and token count against the recipe's float64 oracle, twice, on this GPU.

    python -m benchmarks.sm90_correctness [--recipes fp8_nvfp4 bf16_nvfp4] [--shapes flash pro ...] [--tokens 0 1 7 ...]

For each case: relative L2 error to the oracle with the recipe's roundings, cosine to the truth without any, whether two
calls (of which the second overwrites poisoned memory) give the same bits, and the time of a call inside a CUDA graph.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import torch

from benchmarks.record import Cell, Column, Result, save
from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.ops.moe import MegaMoE
from megamoe_jit.reference.compare import cosine, rel_l2
from megamoe_jit.reference.moe import moe_reference

BOUNDS = {"fp8_nvfp4": 8e-3, "bf16_nvfp4": 3e-3, "fp8_mxfp4": 8e-3, "bf16_mxfp4": 3e-3}
# E4M3's bound is for as many intermediate values as the share of codes that meet a neighbour averages over; fewer may
# be twice as far off.
ENOUGH_VALUES = 30_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of one MoE layer."""

    hidden: int
    intermediate: int
    num_experts: int
    num_topk: int


SHAPES = {
    "tiny": Shape(hidden=256, intermediate=256, num_experts=4, num_topk=2),
    "minilm": Shape(hidden=384, intermediate=768, num_experts=6, num_topk=2),
    "gpt-oss": Shape(hidden=2880, intermediate=2880, num_experts=32, num_topk=4),
    "flash": Shape(hidden=4096, intermediate=2048, num_experts=32, num_topk=6),
    "pro": Shape(hidden=7168, intermediate=3072, num_experts=48, num_topk=6),
}
TOKENS = (0, 1, 7, 64, 1000, 4096)
COLUMNS = (
    Column(key="shape", heading="shape"),
    Column(key="recipe", heading="recipe"),
    Column(key="num_tokens", heading="tokens"),
    Column(key="rel_l2_oracle", heading="relative L2 to the recipe's oracle", format=".1e"),
    Column(key="rel_l2_truth", heading="relative L2 to the truth", format=".2e"),
    Column(key="cosine_truth", heading="cosine to the truth", format=".6f"),
    Column(key="bit_identical", heading="two calls bit-identical"),
)
NOTES = (
    "Oracle: the same layer in float64 with the recipe's roundings. "
    "Truth: the dequantised weights in float64 without any. "
    "minilm has the FFN weights of a sentence-embedding model where real_weights is true; the others are random."
)


def layer_weights(name: str, shape: Shape, checkpoint: str, real_weights: str | None) -> MoeWeights:
    """Return random weights on the GPU, or for "minilm" the real ones saved as (l1, l2) in `real_weights`."""
    if name == "minilm" and real_weights:
        l1, l2 = torch.load(real_weights)
        return MoeWeights.from_float(l1.cuda(), l2.cuda(), checkpoint=checkpoint)  # type: ignore[arg-type]
    return MoeWeights.random(
        shape.num_experts,
        shape.hidden,
        shape.intermediate,
        seed=1,
        device="cuda",
        checkpoint=checkpoint,  # type: ignore[arg-type]
    )


def routing(generator: torch.Generator, num_tokens: int, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distinct experts a token with one slot in sixteen masked, and weights that sum to about one."""
    scores = torch.rand(num_tokens, shape.num_experts, generator=generator, device="cuda")
    topk_idx = scores.topk(shape.num_topk, dim=1).indices
    masked = torch.rand(topk_idx.shape, generator=generator, device="cuda") < 1 / 16
    masked[:1] = False  # one token alone shall go somewhere
    weights = torch.rand(topk_idx.shape, generator=generator, device="cuda") + 0.1
    return torch.where(masked, -1, topk_idx), weights / weights.sum(1, keepdim=True).clamp(min=1e-6)


def graph_us(call: object, repeats: int = 20) -> float:
    """Return the median time of a call in a CUDA graph, in microseconds."""
    assert callable(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def run_case(moe: MegaMoE, weights: MoeWeights, shape: Shape, num_tokens: int, *, timed: bool) -> dict[str, Cell]:
    """Run one token count and compare it."""
    generator = torch.Generator("cuda").manual_seed(num_tokens + 17)
    x = torch.randn(num_tokens, shape.hidden, generator=generator, device="cuda").bfloat16()
    topk_idx, topk_weights = routing(generator, num_tokens, shape)
    stats = torch.zeros(shape.num_experts, dtype=torch.int32, device="cuda")
    outputs = []
    for _ in range(2):
        y = torch.full_like(x, float("nan"))
        moe(x, topk_idx, topk_weights, out=y, recv_stats=stats)
        outputs.append(y)
    torch.cuda.synchronize()
    oracle = moe_reference(x, topk_idx, topk_weights, weights, rounding=moe.recipe.name)
    truth = moe_reference(x, topk_idx, topk_weights, weights, rounding="exact")
    y = torch.empty_like(x)
    return {
        "num_tokens": num_tokens,
        "rel_l2_oracle": rel_l2(outputs[0], oracle.y),
        "rel_l2_truth": rel_l2(outputs[0], truth.y),
        "cosine_truth": cosine(outputs[0], truth.y),
        "bit_identical": bool(torch.equal(outputs[0].view(torch.int16), outputs[1].view(torch.int16))),
        "finite": bool(torch.isfinite(outputs[0]).all()),
        "stats_right": bool(torch.equal(stats.long(), 2 * oracle.expert_counts)),
        "graph_us": graph_us(lambda: moe(x, topk_idx, topk_weights, out=y)) if num_tokens and timed else 0.0,
    }


def main() -> int:
    """Run all cases; the exit status says whether each is inside its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipes", nargs="+", default=list(BOUNDS))
    parser.add_argument("--shapes", nargs="+", default=[name for name in SHAPES if name != "tiny"])
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--real-weights", help="torch file with (l1, l2) of the minilm shape")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    args = parser.parse_args()
    results: list[dict[str, Cell]] = []
    is_right = True
    for name in args.shapes:
        shape = SHAPES[name]
        for recipe in args.recipes:
            weights = layer_weights(name, shape, recipe.split("_")[1], args.real_weights)
            start = time.perf_counter()
            try:
                moe = MegaMoE(weights, recipe=recipe, num_topk=shape.num_topk, max_tokens_per_rank=max(args.tokens))
            except ArgumentError as refusal:  # MXFP4 scales that span more than UE4M3 holds
                print(f"{name} {recipe}: {refusal}")
                continue
            moe.prepare()
            torch.cuda.synchronize()
            prepare_s = time.perf_counter() - start
            for num_tokens in args.tokens:
                case = run_case(moe, weights, shape, num_tokens, timed=not args.no_time)
                case = {
                    "shape": name,
                    "real_weights": name == "minilm" and bool(args.real_weights),
                    "recipe": recipe,
                    **case,
                }
                few = num_tokens * shape.num_topk * shape.intermediate < ENOUGH_VALUES and recipe.startswith("fp8")
                bound = BOUNDS[recipe] * (2 if few else 1)
                in_bound = float(case["rel_l2_oracle"]) < bound  # type: ignore[arg-type]
                is_right &= in_bound and all(bool(case[key]) for key in ("bit_identical", "finite", "stats_right"))
                results.append(case | {"bound": bound, "prepare_s": prepare_s})
                print(
                    f"{name:8} {recipe:11} T={num_tokens:5} oracle {case['rel_l2_oracle']:.2e} "
                    f"truth {case['rel_l2_truth']:.2e} cos {case['cosine_truth']:.6f} same {case['bit_identical']} "
                    f"finite {case['finite']} stats {case['stats_right']} {case['graph_us']:.1f} us",
                    flush=True,
                )
    if not args.no_record:
        print(
            save(
                Result(
                    name="sm90_correctness",
                    title="Hopper kernels against the oracle",
                    columns=COLUMNS,
                    rows=tuple(results),
                    notes=NOTES,
                )
            )
        )
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
