"""How do I load my NVFP4 checkpoint? Stack the experts; codes and block scales stay as they are, bit by bit.

The tensors here have the names and shapes of a ModelOpt export. For compressed-tensors (`weight_packed`,
`weight_global_scale`) pass global_scale_divides=True; for gpt-oss (MXFP4) checkpoint="mxfp4", row_order="interleaved".
"""

import torch

from megamoe_jit import MegaMoE, MoeWeights, quantize_weight_to_nvfp4

NUM_EXPERTS, HIDDEN, INTERMEDIATE = 4, 256, 128
Tensors = dict[str, torch.Tensor]


def load_layer(tensors: Tensors, prefix: str, num_experts: int) -> MoeWeights:
    """Return the experts below `prefix` ("model.layers.3.mlp.experts"), whose names are <prefix>.<expert>.<part>."""

    def stack(projection: str, name: str) -> torch.Tensor:
        return torch.stack([tensors[f"{prefix}.{expert}.{projection}.{name}"] for expert in range(num_experts)])

    def gate_and_up(name: str, dim: int) -> torch.Tensor:
        return torch.cat([stack("gate_proj", name).view(torch.uint8), stack("up_proj", name).view(torch.uint8)], dim)

    # Gate and up may have different second-level scales, and keep them.
    gate_up_scale = torch.stack([stack("gate_proj", "weight_scale_2"), stack("up_proj", "weight_scale_2")], -1)
    return MoeWeights.from_checkpoint(
        gate_and_up("weight", 1),
        gate_and_up("weight_scale", 1),
        stack("down_proj", "weight"),
        stack("down_proj", "weight_scale"),
        l1_global_scale=gate_up_scale,
        l2_global_scale=stack("down_proj", "weight_scale_2"),
    )


def make_checkpoint(prefix: str) -> Tensors:
    """Return what `safetensors.torch.load_file` gives for a (small, random) export."""
    tensors: Tensors = {}
    for expert in range(NUM_EXPERTS):
        for projection, rows, columns in (
            ("gate_proj", INTERMEDIATE, HIDDEN),
            ("up_proj", INTERMEDIATE, HIDDEN),
            ("down_proj", HIDDEN, INTERMEDIATE),
        ):
            quantized = quantize_weight_to_nvfp4(torch.randn(1, rows, columns) / columns**0.5)
            assert quantized.global_scale is not None
            name = f"{prefix}.{expert}.{projection}"
            tensors[f"{name}.weight"] = quantized.codes[0]
            tensors[f"{name}.weight_scale"] = quantized.sf[0]
            tensors[f"{name}.weight_scale_2"] = quantized.global_scale.reshape(())
    return tensors


def main() -> None:
    """Load a layer and run it."""
    prefix = "model.layers.3.mlp.experts"
    weights = load_layer(make_checkpoint(prefix), prefix, NUM_EXPERTS)
    topk_weights, topk_idx = torch.randn(8, NUM_EXPERTS).softmax(-1).topk(2)
    y = MegaMoE(weights)(torch.randn(8, HIDDEN, dtype=torch.bfloat16), topk_idx, topk_weights)
    print(
        f"{weights.num_experts} experts, hidden {weights.hidden}, intermediate {weights.intermediate}: {list(y.shape)}"
    )


if __name__ == "__main__":
    main()
