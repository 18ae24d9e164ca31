"""How do I call it as I call other mega-MoE libraries? Buffer, transformed weights, staging and the call, one by one.

One buffer serves all layers of a model, because a call leaves nothing in it.
"""

import torch

from megamoe_jit import (
    MoeWeights,
    fp8_nvfp4_mega_moe,
    get_symm_buffer_for_nvfp4_mega_moe,
    stage_tokens,
    transform_nvfp4_weights_for_mega_moe,
)

NUM_EXPERTS, HIDDEN, INTERMEDIATE, NUM_TOPK, MAX_TOKENS = 4, 512, 256, 2, 16


def main() -> None:
    """Run two layers over one buffer, and count the tokens that each expert got."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    buffer = get_symm_buffer_for_nvfp4_mega_moe(
        None, NUM_EXPERTS, MAX_TOKENS, NUM_TOPK, HIDDEN, INTERMEDIATE, device=device
    )
    tokens_of_expert = torch.zeros(NUM_EXPERTS, dtype=torch.int32, device=device)
    x = torch.randn(16, HIDDEN, dtype=torch.bfloat16, device=device)
    for seed in range(2):
        layer = MoeWeights.random(NUM_EXPERTS, HIDDEN, INTERMEDIATE, seed=seed, device=device)
        l1, l2 = transform_nvfp4_weights_for_mega_moe(
            (layer.l1_codes, layer.l1_sf),
            (layer.l2_codes, layer.l2_sf),
            l1_alphas=layer.l1_alphas,  # ModelOpt's weight_scale_2 of gate and up
            l2_alphas=layer.l2_alphas,
        )
        topk_weights, topk_idx = torch.randn(16, NUM_EXPERTS, device=device).softmax(-1).topk(NUM_TOPK)
        topk_idx[0, 1] = -1  # this slot goes nowhere
        y = torch.empty_like(x)
        stage_tokens(x, topk_idx, topk_weights, buffer)  # quantises; or fill buffer.x, x_sf, topk_idx, topk_weights
        fp8_nvfp4_mega_moe(y, l1, l2, buffer, tokens_of_expert)
        x = x + y
    print(f"{buffer.num_bytes} B of buffer; tokens of each expert: {tokens_of_expert.tolist()}")


if __name__ == "__main__":
    main()
