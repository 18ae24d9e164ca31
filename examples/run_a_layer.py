"""How do I run a mixture-of-experts layer? Weights, tokens, routing: one call."""

import torch

from megamoe_jit import MegaMoE, MoeWeights


def main() -> None:
    """Run 16 tokens through a layer of 8 experts: the fused kernel on a GPU, or its PTX in the emulator."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = MoeWeights.random(8, 512, 256, device=device)  # experts, hidden, intermediate
    moe = MegaMoE(weights, num_topk=2, max_tokens_per_rank=16)  # the recipe is the device's default for NVFP4
    moe.prepare()  # compiles, or finds in the cache, every kernel that calls can need

    x = torch.randn(16, 512, device=device, dtype=torch.bfloat16)
    topk_weights, topk_idx = torch.randn(16, 8, device=device).softmax(-1).topk(2)
    y = moe(x, topk_idx, topk_weights)
    print(
        f"{moe.recipe.name} on {moe.backend}: y {list(y.shape)} {y.dtype}, rms {y.float().square().mean().sqrt():.3f}"
    )


if __name__ == "__main__":
    main()
