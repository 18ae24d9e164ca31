"""Which recipe should I take? What each one rounds, and what that costs on the same layer.

A recipe names the formats that meet in the tensor core. Errors are against the layer without any rounding of
activations; the weights are those of a 4-bit checkpoint in each case.
"""

import torch

from megamoe_jit import MegaMoE, MoeWeights, get_recipe, list_recipes
from megamoe_jit.reference.compare import cosine, rel_l2
from megamoe_jit.reference.moe import moe_reference


def main() -> None:
    """Run one random layer by every recipe on the reference backend, and print how far each is from the truth."""
    l1, l2 = torch.randn(4, 512, 256) / 16, torch.randn(4, 256, 256) / 16
    x = torch.randn(32, 256, dtype=torch.bfloat16)
    topk_weights, topk_idx = torch.randn(32, 4).softmax(-1).topk(2)
    for name in list_recipes():
        recipe = get_recipe(name)
        weights = MoeWeights.from_float(l1, l2, checkpoint=recipe.checkpoint)
        truth = moe_reference(x, topk_idx, topk_weights, weights).y
        moe = MegaMoE(weights, recipe=recipe, arch=recipe.targets[0], backend="reference")
        y = moe(x, topk_idx, topk_weights)
        print(f"{name:12} cosine {cosine(y, truth):.6f}  relative L2 {rel_l2(y, truth):.4f}  {recipe.loss}")


if __name__ == "__main__":
    main()
