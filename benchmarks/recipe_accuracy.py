"""How near to the unquantised layer does each recipe come? The float64 oracle with the recipe's roundings, on the CPU.

    python -m benchmarks.recipe_accuracy [--no-emulator] [--no-record]

The oracle has no accumulation error. The Blackwell kernels run on the same data in the emulator beside it, some minutes
long; the Hopper ones are held to the oracle on hardware (benchmarks/sm90_correctness.py).
"""

from __future__ import annotations

import argparse

from torch import Tensor

from benchmarks.accuracy_data import Layer, layers
from benchmarks.record import Cell, Column, Result, save
from megamoe_jit.arch import MmaGeneration
from megamoe_jit.formats.moe_weights import Checkpoint, MoeWeights
from megamoe_jit.ops.moe import MegaMoE
from megamoe_jit.recipes.recipe import RECIPES, get_recipe
from megamoe_jit.reference.compare import cosine, rel_l2
from megamoe_jit.reference.moe import moe_reference
from megamoe_jit.reference.rounding_points import RoundingPoints, list_rounding_points, rounding_points

COLUMNS = (
    Column(key="data", heading="data"),
    Column(key="recipe", heading="recipe"),
    Column(key="cosine", heading="oracle: cosine to the truth", format=".5f"),
    Column(key="rel_l2", heading="oracle: relative L2 error", format=".4f"),
    Column(key="rel_l2_weights", heading="of it: FP4 weights alone", format=".4f"),
    Column(key="rel_l2_recipe", heading="of it: the recipe alone", format=".4f"),
    Column(key="rel_l2_adaptation", heading="of that: UE8M0 scales for NVFP4 weights", format=".4f"),
    Column(key="kernel_cosine", heading="emulated kernel: cosine to the truth", format=".5f"),
    Column(key="kernel_to_oracle", heading="emulated kernel: relative L2 to the oracle", format=".1e"),
)
NOTES = (
    "Truth: float weights and BF16 tokens in float64, nothing rounded. FP4 weights alone: the checkpoint's weights, "
    "nothing else rounded. The recipe alone: its result against that. Errors of independent roundings add as squares. "
    'heavy-tailed and real are what benchmarks/accuracy_data.py says; "scales only" is the simple scale adaptation, '
    "for comparison. Oracle: float64 with the recipe's roundings. Emulated kernel: the Blackwell kernel's PTX for "
    "sm_100f, executed on the CPU (- : not run)."
)
ADAPTATIONS = ("mxfp4_requantize", "mxfp4_max")


def variants() -> list[tuple[str, RoundingPoints]]:
    """Return every recipe, and mxfp8_nvfp4 with its weights adapted the simple way."""
    named = [(name, rounding_points(name)) for name in list_rounding_points() if name != "exact"]
    return [*named, ("mxfp8_nvfp4, scales only", rounding_points("mxfp8_nvfp4", weights="mxfp4_max"))]


def measure(layer: Layer, *, emulates: bool) -> list[dict[str, Cell]]:
    """Return one row for each recipe; `emulates` runs the Blackwell kernels too."""
    call = (layer.x, layer.topk_idx, layer.topk_weights)
    truth = moe_reference(*call, (layer.l1, layer.l2)).y
    checkpoints: dict[Checkpoint, MoeWeights] = {
        "nvfp4": MoeWeights.from_float(layer.l1, layer.l2, "nvfp4"),
        "mxfp4": MoeWeights.from_float(layer.l1, layer.l2, "mxfp4"),
    }
    unrounded = {name: moe_reference(*call, weights).y for name, weights in checkpoints.items()}
    rows: list[dict[str, Cell]] = []
    for name, points in variants():
        checkpoint: Checkpoint = points.checkpoint or "nvfp4"
        weights = checkpoints[checkpoint]
        y = moe_reference(*call, weights, rounding=points).y
        adapted = None
        if points.weights in ADAPTATIONS:
            only = RoundingPoints(name=name, weights=points.weights, partial=None, sum=None, out=None)
            adapted = rel_l2(moe_reference(*call, weights, rounding=only).y, unrounded[checkpoint])
        is_blackwell = name in RECIPES and get_recipe(name).generation is MmaGeneration.TCGEN05
        kernel = run_emulated(layer, weights, name) if emulates and is_blackwell else None
        rows.append(
            {
                "data": layer.name,
                "recipe": name,
                "family": "Hopper" if name in RECIPES and not is_blackwell else "Blackwell",
                "cosine": cosine(y, truth),
                "rel_l2": rel_l2(y, truth),
                "rel_l2_weights": rel_l2(unrounded[checkpoint], truth),
                "rel_l2_recipe": rel_l2(y, unrounded[checkpoint]),
                "rel_l2_adaptation": adapted,
                "kernel_cosine": None if kernel is None else cosine(kernel, truth),
                "kernel_to_oracle": None if kernel is None else rel_l2(kernel, y),
            }
        )
    return rows


def run_emulated(layer: Layer, weights: MoeWeights, recipe: str) -> Tensor:
    """Return what the recipe's kernel makes of the layer in the emulator."""
    num_tokens, num_topk = layer.topk_idx.shape
    moe = MegaMoE(
        weights, recipe=recipe, arch="sm_100f", backend="emulator", num_topk=num_topk, max_tokens_per_rank=num_tokens
    )
    return moe(layer.x, layer.topk_idx, layer.topk_weights)


def main() -> None:
    """Measure all layers, print the rows and store them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--no-emulator", action="store_true", help="leave the kernels out")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    rows = []
    for layer in layers():
        rows += measure(layer, emulates=not args.no_emulator)
    for row in rows:
        print(
            f"{row['data']:12} {row['recipe']:26} cosine {row['cosine']:.5f}  rel L2 {row['rel_l2']:.4f}  "
            f"weights {row['rel_l2_weights']:.4f}  recipe {row['rel_l2_recipe']:.4f}  "
            f"adaptation {row['rel_l2_adaptation']}  kernel {row['kernel_cosine']} {row['kernel_to_oracle']}"
        )
    if not args.no_record:
        result = Result(
            name="recipe_accuracy", title="Accuracy of the recipes", columns=COLUMNS, rows=tuple(rows), notes=NOTES
        )
        print(f"stored in {save(result)}")


if __name__ == "__main__":
    main()
