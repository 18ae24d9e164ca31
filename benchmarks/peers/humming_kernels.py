"""humming-kernels: NVFP4 weights with BF16 activations, and MXFP4 weights with FP8 activations.

The second is its nearest to NVFP4 with FP8: it refuses scale factors for 16 values with FP8 activations on Hopper.
Composed as its documentation does: its input kernel (quantise, scatter, activation) and two MoE products; the sort and
the weighted sum, which it leaves to its host, are those of `benchmarks.peers.sorting`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.contender import Contender, Run, Variant
from benchmarks.peers.layer import Layer, Values, dequantized
from benchmarks.peers.padding import WidenedTokens, note, widen_weights, widened
from benchmarks.peers.workload import TokenSet
from megamoe_jit.formats.moe_weights import Checkpoint, MoeWeights

# Rows gathered by the product itself, or scattered into expert order by the input kernel.
_GEMM_TYPES = ("indexed", "grouped_contiguous")
_SWIGLU = {"activation_type": "binary_split", "activation_impl": "a / (1.0f + __expf(-a)) * b"}


def _import(name: str) -> Any:
    return importlib.import_module(name)


class HummingKernels:
    """Both products of one layer, with "nvfp4" (BF16 activations) or "mxfp4" (FP8 activations) weights."""

    def __init__(self, checkpoint: Checkpoint, layer: Layer, max_tokens: int) -> None:
        """Repack the weights."""
        del max_tokens
        self._forward, self._tune = _import("humming.forward"), _import("humming.tune")
        self._sorting = _import("benchmarks.peers.sorting")
        self.weights_name: str = checkpoint
        self._device = torch.device(layer.device)
        self._workload, self._wide = layer.workload, widened(layer.workload)
        self._weights = layer.weights(checkpoint)
        weights = widen_weights(self._weights, self._wide)
        self._l1 = self._repacked(weights, weights.l1_codes, weights.l1_sf, weights.l1_alphas[:, 0].contiguous())
        self._l2 = self._repacked(weights, weights.l2_codes, weights.l2_sf, weights.l2_alphas)

    def _repacked(self, weights: MoeWeights, codes: Tensor, sf: Tensor, alphas: Tensor) -> Any:
        num_experts, rows, half_k = codes.shape
        if weights.checkpoint == "nvfp4":
            scheme, acts = {"quant_method": "modelopt", "quant_algo": "nvfp4"}, {}
            tensors = {"weight": codes, "weight_scale": sf, "weight_scale_2": alphas}
        else:
            scheme = {"dtype": "float4e2m1", "group_size": 32, "scale_dtype": "float8e8m0"}  # type: ignore[dict-item]
            acts = {"dtype": "float8e4m3"}
            tensors = {"weight": codes.view(torch.int32), "weight_scale": sf}
        with torch.device(self._device):
            layer = _import("humming.layer").HummingLayer(
                shape_n=rows,
                shape_k=2 * half_k,
                weight_config=scheme,
                input_config=acts,
                num_experts=num_experts,
                torch_dtype=torch.bfloat16,
            )
        layer = layer.to(self._device)
        layer.load_from_tensors(tensors)
        layer.transform()
        return layer

    def values(self) -> Values:
        """Return the checkpoint's weights."""
        return dequantized(self._weights)

    def _tuning(self, layer: Any, gemm_type: str, num_tokens: int) -> dict[str, Any]:
        tuning: dict[str, Any] = self._tune.get_heuristics_config(
            layer_config=layer.humming_config, shape_m=num_tokens * self._workload.num_topk, gemm_type=gemm_type
        )
        return tuning

    def compile_for(self, tokens: Sequence[int]) -> None:
        """Compile the products, in threads of the library's own for each list and here for the lists.

        What fails here fails again where it is needed, and is recorded there.
        """
        kernel = _import("humming.kernel.humming").HummingKernel

        def compile_list(layer: Any, gemm_type: str) -> None:
            try:
                tunings = [(0, 1 << 30, self._tuning(layer, gemm_type, count)) for count in tokens]
                kernel.prepare_kernels(
                    layer.humming_config.to_str(), json.dumps({"gemm_type": gemm_type}), tunings, self._device
                )
            except Exception as error:  # of others' code: any
                print(f"humming-kernels, {gemm_type}: {type(error).__name__}: {str(error)[:300]}", flush=True)

        lists = [(layer, gemm_type) for layer in (self._l1, self._l2) for gemm_type in _GEMM_TYPES]
        with ThreadPoolExecutor(len(lists)) as pool:
            for done in [pool.submit(compile_list, layer, gemm_type) for layer, gemm_type in lists]:
                done.result()

    def variants(self, num_tokens: int) -> Iterable[Variant]:
        """Return both ways to bring tokens to their experts."""
        for gemm_type in _GEMM_TYPES:
            yield gemm_type, partial(self._make, gemm_type, num_tokens)

    def _make(self, gemm_type: str, num_tokens: int) -> Run:
        shape, device = self._wide, self._device
        tunings = [self._tuning(layer, gemm_type, num_tokens) for layer in (self._l1, self._l2)]
        num_rows = num_tokens * shape.num_topk

        def rows(width: int, count: int = num_rows) -> Tensor:
            return torch.empty(count, width, device=device, dtype=torch.bfloat16)

        gate_up, result, y = rows(2 * shape.intermediate), rows(shape.hidden), rows(shape.hidden, num_tokens)
        sort_for = partial(self._sorting.ExpertSort, num_tokens, shape.num_topk, shape.num_experts, device=device)
        scatter: dict[str, Any] = {}
        place_of = None
        if gemm_type == "indexed":  # a product's list is padded to its own tile
            tiles = [tuning["block_shape"][0] for tuning in tunings]
            sorts = [sort_for(tile=tiles[0])]
            sorts.append(sorts[0] if tiles[1] == tiles[0] else sort_for(tile=tiles[1]))
            orders = [
                {
                    "sorted_ids": sort.sorted_ids,
                    "expert_ids": sort.block_experts,
                    "num_tokens_padded": sort.num_padded,
                    "top_k": top_k,
                }
                for sort, top_k in zip(sorts, (shape.num_topk, 1), strict=True)
            ]
        else:
            sorts = [sort_for(tile=1)]
            orders = [{"expert_layout": sorts[0].ends}] * 2
            place_of = sorts[0].place_of
            scatter = {"layout": "scatter", "scatter_idx": place_of}
        multiply = [
            partial(
                self._forward.humming_forward,
                layer.humming_config,
                weight=layer.weight,
                weight_scale=layer.weight_scale,
                weight_scale_2=getattr(layer, "weight_scale_2", None),
                outputs=outputs,
                locks=layer.locks,
                compute_config={"gemm_type": gemm_type},
                tuning_config=tuning,
                **order,
            )
            for layer, outputs, tuning, order in zip(
                (self._l1, self._l2), (gate_up, result), tunings, orders, strict=True
            )
        ]
        process, wide_tokens = self._forward.may_process_input, WidenedTokens(shape.hidden)

        def run(tokens: TokenSet) -> Tensor:
            for sort in dict.fromkeys(sorts):
                sort(tokens.topk_idx)
            acts, _, scale = process(self._l1.humming_config, wide_tokens.of(tokens), **scatter)
            multiply[0](inputs=acts, input_scale=scale)
            acts, _, scale = process(self._l2.humming_config, gate_up, **_SWIGLU)
            multiply[1](inputs=acts, input_scale=scale)
            self._sorting.weighted_sum(result, place_of, tokens.topk_weights, y)
            return y[:, : self._workload.hidden]

        return run

    def note(self, num_tokens: int) -> str:
        """Return the tiles of both products, for each way."""
        shapes = {
            gemm_type: [self._tuning(layer, gemm_type, num_tokens)["block_shape"] for layer in (self._l1, self._l2)]
            for gemm_type in _GEMM_TYPES
        }
        words = [f"{gemm_type} {l1} and {l2}" for gemm_type, (l1, l2) in shapes.items()]
        return "; ".join(filter(None, (*words, note(self._wide, self._workload))))


def load(checkpoint: Checkpoint) -> Callable[[Layer, int], Contender]:
    """Return what makes the contender of a weight format; ImportError without the library."""
    _import("humming.layer")
    _import("benchmarks.peers.sorting")
    return partial(HummingKernels, checkpoint)
