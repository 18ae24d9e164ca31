"""Fused mixture-of-experts layers for 4-bit checkpoints: rendered, compiled and cached when first needed.

Importing this package loads neither torch nor CUDA: each name below is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from megamoe_jit.arch import Arch as Arch
    from megamoe_jit.arch import get_arch as get_arch
    from megamoe_jit.errors import ArgumentError as ArgumentError
    from megamoe_jit.errors import CacheError as CacheError
    from megamoe_jit.errors import CompileError as CompileError
    from megamoe_jit.errors import LaunchError as LaunchError
    from megamoe_jit.errors import MegaMoeError as MegaMoeError
    from megamoe_jit.errors import MissingKernelError as MissingKernelError
    from megamoe_jit.errors import RankMismatchError as RankMismatchError
    from megamoe_jit.errors import UnsupportedError as UnsupportedError
    from megamoe_jit.formats.activation import ActivationSpec as ActivationSpec
    from megamoe_jit.formats.block_scaled import QuantizedTensor as QuantizedTensor
    from megamoe_jit.formats.block_scaled import quantize_to_fp8 as quantize_to_fp8
    from megamoe_jit.formats.block_scaled import quantize_to_mxfp4 as quantize_to_mxfp4
    from megamoe_jit.formats.block_scaled import quantize_to_mxfp8 as quantize_to_mxfp8
    from megamoe_jit.formats.block_scaled import quantize_to_nvfp4 as quantize_to_nvfp4
    from megamoe_jit.formats.block_scaled import quantize_weight_to_nvfp4 as quantize_weight_to_nvfp4
    from megamoe_jit.formats.moe_weights import MoeWeights as MoeWeights
    from megamoe_jit.ops.gemm import nvfp4_grouped_gemm as nvfp4_grouped_gemm
    from megamoe_jit.ops.gemm import scaled_grouped_gemm as scaled_grouped_gemm
    from megamoe_jit.ops.moe import MegaMoE as MegaMoE
    from megamoe_jit.ops.moe import fp8_nvfp4_mega_moe as fp8_nvfp4_mega_moe
    from megamoe_jit.ops.moe import get_symm_buffer_for_nvfp4_mega_moe as get_symm_buffer_for_nvfp4_mega_moe
    from megamoe_jit.ops.moe import stage_tokens as stage_tokens
    from megamoe_jit.ops.weights import TransformedWeights as TransformedWeights
    from megamoe_jit.ops.weights import _pack_nvfp4_sf_for_utccp as _pack_nvfp4_sf_for_utccp
    from megamoe_jit.ops.weights import transform_nvfp4_weights_for_mega_moe as transform_nvfp4_weights_for_mega_moe
    from megamoe_jit.ops.weights import transform_weights as transform_weights
    from megamoe_jit.ops.weights import untransform_weights as untransform_weights
    from megamoe_jit.recipes.problem import Problem as Problem
    from megamoe_jit.recipes.recipe import Recipe as Recipe
    from megamoe_jit.recipes.recipe import default_recipe as default_recipe
    from megamoe_jit.recipes.recipe import get_recipe as get_recipe
    from megamoe_jit.recipes.recipe import list_recipes as list_recipes
    from megamoe_jit.runtime.symmetric import SymmBuffer as SymmBuffer
    from megamoe_jit.runtime.symmetric import estimate_buffer as estimate_buffer

# Where each public name lives. Type checkers read the imports above; a test holds the two together.
_EXPORTS = {
    "ActivationSpec": "megamoe_jit.formats.activation",
    "Arch": "megamoe_jit.arch",
    "ArgumentError": "megamoe_jit.errors",
    "CacheError": "megamoe_jit.errors",
    "CompileError": "megamoe_jit.errors",
    "LaunchError": "megamoe_jit.errors",
    "MegaMoE": "megamoe_jit.ops.moe",
    "MegaMoeError": "megamoe_jit.errors",
    "MissingKernelError": "megamoe_jit.errors",
    "MoeWeights": "megamoe_jit.formats.moe_weights",
    "Problem": "megamoe_jit.recipes.problem",
    "QuantizedTensor": "megamoe_jit.formats.block_scaled",
    "RankMismatchError": "megamoe_jit.errors",
    "Recipe": "megamoe_jit.recipes.recipe",
    "SymmBuffer": "megamoe_jit.runtime.symmetric",
    "TransformedWeights": "megamoe_jit.ops.weights",
    "UnsupportedError": "megamoe_jit.errors",
    "_pack_nvfp4_sf_for_utccp": "megamoe_jit.ops.weights",
    "default_recipe": "megamoe_jit.recipes.recipe",
    "estimate_buffer": "megamoe_jit.runtime.symmetric",
    "fp8_nvfp4_mega_moe": "megamoe_jit.ops.moe",
    "get_arch": "megamoe_jit.arch",
    "get_recipe": "megamoe_jit.recipes.recipe",
    "get_symm_buffer_for_nvfp4_mega_moe": "megamoe_jit.ops.moe",
    "list_recipes": "megamoe_jit.recipes.recipe",
    "nvfp4_grouped_gemm": "megamoe_jit.ops.gemm",
    "quantize_to_fp8": "megamoe_jit.formats.block_scaled",
    "quantize_to_mxfp4": "megamoe_jit.formats.block_scaled",
    "quantize_to_mxfp8": "megamoe_jit.formats.block_scaled",
    "quantize_to_nvfp4": "megamoe_jit.formats.block_scaled",
    "quantize_weight_to_nvfp4": "megamoe_jit.formats.block_scaled",
    "scaled_grouped_gemm": "megamoe_jit.ops.gemm",
    "stage_tokens": "megamoe_jit.ops.moe",
    "transform_nvfp4_weights_for_mega_moe": "megamoe_jit.ops.weights",
    "transform_weights": "megamoe_jit.ops.weights",
    "untransform_weights": "megamoe_jit.ops.weights",
}

__all__ = [
    "ActivationSpec",
    "Arch",
    "ArgumentError",
    "CacheError",
    "CompileError",
    "LaunchError",
    "MegaMoE",
    "MegaMoeError",
    "MissingKernelError",
    "MoeWeights",
    "Problem",
    "QuantizedTensor",
    "RankMismatchError",
    "Recipe",
    "SymmBuffer",
    "TransformedWeights",
    "UnsupportedError",
    "__version__",
    "default_recipe",
    "estimate_buffer",
    "fp8_nvfp4_mega_moe",
    "get_arch",
    "get_recipe",
    "get_symm_buffer_for_nvfp4_mega_moe",
    "list_recipes",
    "nvfp4_grouped_gemm",
    "quantize_to_fp8",
    "quantize_to_mxfp4",
    "quantize_to_mxfp8",
    "quantize_to_nvfp4",
    "quantize_weight_to_nvfp4",
    "scaled_grouped_gemm",
    "stage_tokens",
    "transform_nvfp4_weights_for_mega_moe",
    "transform_weights",
    "untransform_weights",
]


def __getattr__(name: str) -> object:
    """Import the public name `name` from its module, once (PEP 562)."""
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Public names: {', '.join(__all__)}.")
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
