"""The public call on the reference backend is the oracle with the recipe's roundings, for every recipe."""

from __future__ import annotations

import pytest
import torch

from megamoe_jit import MegaMoE, MoeWeights, get_recipe, list_recipes
from megamoe_jit.reference.moe import moe_reference


@pytest.mark.parametrize("name", list_recipes())
def test_the_reference_backend_is_the_oracle(name: str) -> None:
    recipe = get_recipe(name)
    weights = MoeWeights.random(4, 256, 128, seed=3, checkpoint=recipe.checkpoint)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(9, 256, generator=generator).to(torch.bfloat16)
    topk_weights, topk_idx = torch.randn(9, 4, generator=generator).softmax(-1).topk(2)
    topk_idx[3, 0] = -1
    moe = MegaMoE(weights, recipe=recipe, arch=recipe.targets[0], backend="reference")
    y = moe(x, topk_idx, topk_weights)
    assert torch.equal(y.double(), moe_reference(x, topk_idx, topk_weights, weights, rounding=name).y)
    assert not torch.equal(y.double(), moe_reference(x, topk_idx, topk_weights, weights, rounding="exact").y)
