"""Which token tile is fastest for how many tokens an expert? Every tile, on every token count, on this GPU.

    python -m benchmarks.token_tiles [--recipes fp8_nvfp4 bf16_nvfp4] [--tokens 1 8 ...]

Tiles give the same bits; only the time differs. `recipes.choose.token_tile` follows this table.
"""

from __future__ import annotations

import argparse
import os
import sys
from unittest import mock

import torch

from benchmarks.record import Cell, Column, Result, save
from benchmarks.sm90_correctness import SHAPES, graph_us, routing
from megamoe_jit import env
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.ops import plan
from megamoe_jit.ops.moe import MegaMoE
from megamoe_jit.ops.weights import transform_weights
from megamoe_jit.recipes import choose
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import get_recipe
from megamoe_jit.recipes.sm90 import ONE_PASS_TILES, TWO_PASS_TILES, WIDEST_TILE, token_tiles

TILES = (*ONE_PASS_TILES, *TWO_PASS_TILES, WIDEST_TILE)
TOKENS = (1, 8, 32, 64, 128, 256, 1024, 2048, 4096, 8192)
COLUMNS = (
    Column(key="recipe", heading="recipe"),
    Column(key="num_tokens", heading="tokens"),
    Column(key="mean", heading="mean tokens an expert", format=".1f"),
    *(Column(key=f"us_{tile}", heading=f"{tile}, us", format=".0f") for tile in TILES),
    Column(key="chosen", heading="chosen"),
)
_MOST_TILES = 6  # of an expert; narrower tiles are hopeless and take long


def main() -> int:
    """Time every tile and record the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipes", nargs="+", default=["fp8_nvfp4", "bf16_nvfp4"])
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    args = parser.parse_args()
    shape = SHAPES["flash"]
    weights = MoeWeights.random(shape.num_experts, shape.hidden, shape.intermediate, seed=1, device="cuda")
    rows: list[dict[str, Cell]] = []
    for recipe in map(get_recipe, args.recipes):
        transformed = transform_weights(weights, recipe, "sm_90a")
        for num_tokens in args.tokens:
            problem = Problem(
                hidden=shape.hidden,
                intermediate=shape.intermediate,
                num_experts=shape.num_experts,
                num_topk=shape.num_topk,
                max_tokens_per_rank=num_tokens,
            )
            generator = torch.Generator("cuda").manual_seed(num_tokens)
            x = torch.randn(num_tokens, shape.hidden, generator=generator, device="cuda").bfloat16()
            topk_idx, topk_weights = routing(generator, num_tokens, shape)
            y, mean = torch.empty_like(x), problem.tokens_per_expert(num_tokens)
            row: dict[str, Cell] = {"recipe": recipe.name, "num_tokens": num_tokens, "mean": mean}
            row |= {f"us_{tile}": None for tile in TILES}
            row["chosen"] = choose.token_tile(problem, recipe, num_tokens)
            for tile in token_tiles(problem, recipe):
                if mean > tile * _MOST_TILES and tile < 64:
                    continue
                with (
                    mock.patch.dict(os.environ, {env.TUNING.name: "0"}),  # or stored choices would go before the patch
                    mock.patch.object(choose, "token_tile", return_value=tile),
                    mock.patch.object(plan, "token_tile", return_value=tile),
                ):
                    moe = MegaMoE(transformed, num_topk=shape.num_topk, max_tokens_per_rank=num_tokens)
                    moe(x, topk_idx, topk_weights, out=y)
                    row[f"us_{tile}"] = graph_us(lambda: moe(x, topk_idx, topk_weights, out=y))  # noqa: B023
            rows.append(row)
            print(row, flush=True)
    notes = (
        "Hidden 4096, intermediate 2048, 32 experts, top-6, a sixteenth of the slots masked; medians of graph replays."
    )
    print(save(Result(name="token_tiles", title="Token tiles", columns=COLUMNS, rows=tuple(rows), notes=notes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
