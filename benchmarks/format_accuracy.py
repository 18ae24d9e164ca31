"""What does each format lose, and what do conversions between formats lose on top? On the CPU.

    python -m benchmarks.format_accuracy [--no-record]

Writes two records: format_accuracy (quantisers against float values) and scale_conversion (conversions of NVFP4
weights).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.accuracy_data import layers
from benchmarks.record import Cell, Column, Result, save
from megamoe_jit.formats.adapt import adapt_nvfp4_to_mxfp4, conversion_loss, fold_global_scale
from megamoe_jit.formats.block_scaled import (
    QuantFormat,
    QuantizedTensor,
    quantize_to_fp8,
    quantize_to_mxfp4,
    quantize_to_mxfp8,
    quantize_to_nvfp4,
    quantize_weight_to_nvfp4,
)
from megamoe_jit.reference.compare import rel_l2
from megamoe_jit.reference.gemm import operand_values

FORMATS: dict[str, tuple[str, Callable[[Tensor], QuantizedTensor]]] = {
    "NVFP4, global scale per tensor": ("max(x/5, S/4, 0.006 g)", quantize_to_nvfp4),
    "NVFP4, global scale per token": ("max(x/5, S/4, 0.006 g)", lambda x: quantize_to_nvfp4(x, global_scale="token")),
    "MXFP4, scale rounded up": ("max(x/5, S/4)", quantize_to_mxfp4),
    "MXFP4, scale rounded down (OCP)": ("max(x/4, S/4)", lambda x: quantize_to_mxfp4(x, rounding="floor")),
    "MXFP8, scale rounded up": ("max(x/17, S/1024)", quantize_to_mxfp8),
    "MXFP8, scale rounded down (OCP)": ("max(x/8, S/1024)", lambda x: quantize_to_mxfp8(x, rounding="floor")),
    "FP8 per token": ("max(x/17, S/1024)", quantize_to_fp8),
    "FP8 per (token, 128)": ("max(x/17, S/1024)", lambda x: quantize_to_fp8(x, gran_k=128)),
}
FORMAT_COLUMNS = (
    Column(key="format", heading="format"),
    Column(key="bound", heading="bound on the error of a value x"),
    Column(key="normal", heading="normal", format=".4f"),
    Column(key="heavy-tailed", heading="heavy-tailed", format=".4f"),
    Column(key="real", heading="real", format=".4f"),
)
FORMAT_NOTES = (
    "Relative L2 error of quantising the tokens of benchmarks/accuracy_data.py (heavy-tailed ones have large "
    "channels). S is the scale of the element with the global scale g in it."
)
CONVERSION_COLUMNS = (
    Column(key="data", heading="weights"),
    Column(key="conversion", heading="conversion"),
    Column(key="rel_l2", heading="relative L2 change", format=".4f"),
    Column(key="worst_block", heading="worst block of 16", format=".3f"),
    Column(key="largest_factor", heading="largest factor", format=".2f"),
    Column(key="changed", heading="values changed", format=".0%"),
    Column(key="flushed", heading="flushed to 0", format=".1%"),
    Column(key="rel_l2_float", heading="relative L2 to the float weights", format=".4f"),
)
CONVERSION_NOTES = (
    "Change against the NVFP4 weights themselves; the last column also holds what NVFP4 lost before. The largest "
    "factor is that of new over old (or old over new) among values that stayed nonzero. MXFP4 from float is a direct "
    "quantisation, for comparison. Folding was measured on the weights scaled to a deviation of 0.02, as of trained "
    "large models."
)


def format_rows() -> list[dict[str, Cell]]:
    """Return one row for each quantiser."""
    rows: list[dict[str, Cell]] = []
    made = layers()
    for name, (bound, quantize) in FORMATS.items():
        row: dict[str, Cell] = {"format": name, "bound": bound, "real": None}
        for layer in made:
            row[layer.name] = rel_l2(quantize(layer.x).dequantize(torch.float64), layer.x)
        rows.append(row)
    return rows


def _alone(weight: QuantizedTensor) -> QuantizedTensor:
    return replace(weight, global_scale=None)


def _adapt(weight: QuantizedTensor, **how: str) -> QuantizedTensor:
    adapted = adapt_nvfp4_to_mxfp4(weight.codes, weight.sf, **how)  # type: ignore[arg-type]
    return replace(adapted, global_scale=weight.global_scale)


def _decode_to_e4m3(weight: QuantizedTensor) -> QuantizedTensor:
    values = operand_values(_alone(weight), e4m3_product=True) / 8
    scale = torch.full(values.shape[:-1], 8.0)
    assert weight.global_scale is not None
    return QuantizedTensor(
        codes=values.float().to(torch.float8_e4m3fn),
        sf=scale * weight.global_scale[:, None],
        format=QuantFormat.FP8_TOKEN,
    )


def conversion_rows() -> list[dict[str, Cell]]:
    """Return one row for each data set and conversion."""
    rows: list[dict[str, Cell]] = []
    for layer in layers():
        w = layer.l1 * (0.02 / layer.l1.std())
        weight = quantize_weight_to_nvfp4(w)
        assert weight.global_scale is not None
        converted = {
            "NVFP4, unchanged": weight,
            "scales only, nearest to the larger": _adapt(weight, method="max"),
            "scales only, rounded up from the larger": _adapt(weight, method="max", rounding="rp"),
            "codes re-rounded to the new scale": _adapt(weight, method="requantize"),
            "MXFP4 from float": quantize_to_mxfp4(w),
            "decoded to E4M3 on chip": _decode_to_e4m3(weight),
            "global scale folded, one kept for all experts": fold_global_scale(weight, keep=weight.global_scale.max()),
            "global scale folded, none kept": fold_global_scale(weight),
        }
        for name, new in converted.items():
            loss = conversion_loss(weight, new)
            rows.append(
                {
                    "data": layer.name,
                    "conversion": name,
                    "rel_l2": loss.rel_l2,
                    "worst_block": loss.worst_block,
                    "largest_factor": loss.largest_factor,
                    "changed": loss.changed,
                    "flushed": loss.flushed,
                    "rel_l2_float": rel_l2(new.dequantize(torch.float64), w),
                }
            )
    return rows


def main() -> None:
    """Measure, print and store both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    results = (
        Result(
            name="format_accuracy",
            title="Relative L2 error of each format",
            columns=FORMAT_COLUMNS,
            rows=tuple(format_rows()),
            notes=FORMAT_NOTES,
        ),
        Result(
            name="scale_conversion",
            title="What conversions of NVFP4 weights lose",
            columns=CONVERSION_COLUMNS,
            rows=tuple(conversion_rows()),
            notes=CONVERSION_NOTES,
        ),
    )
    for result in results:
        for row in result.rows:
            print("  ".join(f"{column.key}={row[column.key]}" for column in result.columns))
        if not args.no_record:
            print(f"stored in {save(result)}")


if __name__ == "__main__":
    main()
