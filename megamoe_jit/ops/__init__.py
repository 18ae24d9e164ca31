"""The public operations."""

from megamoe_jit.ops.moe import MegaMoE, fp8_nvfp4_mega_moe, get_symm_buffer_for_nvfp4_mega_moe, stage_tokens
from megamoe_jit.ops.weights import (
    TransformedWeights,
    transform_nvfp4_weights_for_mega_moe,
    transform_weights,
    untransform_weights,
)

__all__ = [
    "MegaMoE",
    "TransformedWeights",
    "fp8_nvfp4_mega_moe",
    "get_symm_buffer_for_nvfp4_mega_moe",
    "stage_tokens",
    "transform_nvfp4_weights_for_mega_moe",
    "transform_weights",
    "untransform_weights",
]
