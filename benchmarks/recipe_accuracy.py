"""How near to the unquantised layer does each recipe come? The float64 oracle with the recipe's roundings, on the CPU.

    python -m benchmarks.recipe_accuracy [--no-record]

The oracle has no accumulation error: kernels are held to it separately, within a bound of their own.
"""

from __future__ import annotations

import argparse

from benchmarks.accuracy_data import Layer, layers
from benchmarks.record import Cell, Column, Result, save
from megamoe_jit.formats.moe_weights import Checkpoint, MoeWeights
from megamoe_jit.reference.compare import cosine, rel_l2
from megamoe_jit.reference.moe import moe_reference
from megamoe_jit.reference.rounding_points import RoundingPoints, list_rounding_points, rounding_points

COLUMNS = (
    Column(key="data", heading="data"),
    Column(key="recipe", heading="recipe"),
    Column(key="cosine", heading="cosine to the truth", format=".5f"),
    Column(key="rel_l2", heading="relative L2 error", format=".4f"),
    Column(key="rel_l2_weights", heading="of it: FP4 weights alone", format=".4f"),
    Column(key="rel_l2_recipe", heading="of it: the recipe alone", format=".4f"),
)
NOTES = (
    "Truth: float weights and BF16 tokens in float64, nothing rounded. FP4 weights alone: the checkpoint's weights, "
    "nothing else rounded. The recipe alone: its result against that. Errors of independent roundings add as squares. "
    'heavy-tailed and real are what benchmarks/accuracy_data.py says; "scales only" is the simple scale adaptation, '
    "for comparison."
)


def variants() -> list[tuple[str, RoundingPoints]]:
    """Return every recipe, and mxfp8_nvfp4 with its weights adapted the simple way."""
    named = [(name, rounding_points(name)) for name in list_rounding_points() if name != "exact"]
    return [*named, ("mxfp8_nvfp4, scales only", rounding_points("mxfp8_nvfp4", weights="mxfp4_max"))]


def measure(layer: Layer) -> list[dict[str, Cell]]:
    """Return one row for each recipe."""
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
        y = moe_reference(*call, checkpoints[checkpoint], rounding=points).y
        rows.append(
            {
                "data": layer.name,
                "recipe": name,
                "cosine": cosine(y, truth),
                "rel_l2": rel_l2(y, truth),
                "rel_l2_weights": rel_l2(unrounded[checkpoint], truth),
                "rel_l2_recipe": rel_l2(y, unrounded[checkpoint]),
            }
        )
    return rows


def main() -> None:
    """Measure all layers, print the rows and store them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    rows = [row for layer in layers() for row in measure(layer)]
    for row in rows:
        print(
            f"{row['data']:12} {row['recipe']:26} cosine {row['cosine']:.5f}  rel L2 {row['rel_l2']:.4f}  "
            f"weights {row['rel_l2_weights']:.4f}  recipe {row['rel_l2_recipe']:.4f}"
        )
    if not args.no_record:
        result = Result(
            name="recipe_accuracy", title="Accuracy of the recipes", columns=COLUMNS, rows=tuple(rows), notes=NOTES
        )
        print(f"stored in {save(result)}")


if __name__ == "__main__":
    main()
