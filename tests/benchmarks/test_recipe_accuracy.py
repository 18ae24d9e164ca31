from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.accuracy_data import layers
from benchmarks.recipe_accuracy import COLUMNS, measure
from tests.kernels.test_mega_moe_sm100 import RECIPES


@pytest.mark.parametrize("data", ["normal", "heavy-tailed"])
def test_a_layer_gives_a_row_for_each_recipe_and_the_kernels_figures_are_the_oracles(data: str) -> None:
    layer = next(made for made in layers(num_experts=2, hidden=128, intermediate=128) if made.name == data)
    few = replace(layer, x=layer.x[:16], topk_idx=layer.topk_idx[:16], topk_weights=layer.topk_weights[:16])
    rows = {str(row["recipe"]): row for row in measure(few, emulates=data == "normal")}
    for row in rows.values():
        assert row.keys() >= {column.key for column in COLUMNS}
        assert 0.5 < float(row["cosine"] or 0) < 1
    blackwell = {name for name, row in rows.items() if row["family"] == "Blackwell"}
    assert blackwell == {*RECIPES, "mxfp8_nvfp4, scales only"}
    for name, row in rows.items():
        is_adapted = name.startswith("mxfp8_nvfp4")
        assert (row["rel_l2_adaptation"] is not None) == is_adapted
        if data == "normal" and name in RECIPES:
            assert float(row["kernel_to_oracle"] or 0) < 2e-3
            assert row["kernel_cosine"] == pytest.approx(row["cosine"], abs=1e-4)
        else:
            assert row["kernel_cosine"] is None
    adapted, recipe_alone = (float(rows["mxfp8_nvfp4"][key] or 0) for key in ("rel_l2_adaptation", "rel_l2_recipe"))
    assert 0 < adapted < recipe_alone * 1.05
    assert adapted < float(rows["mxfp8_nvfp4, scales only"]["rel_l2_adaptation"] or 0)
