"""Runs the adapter of humming-kernels on a stand-in for that library that computes each call's meaning in torch.

Triton's interpreter runs the sort and the sum.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.layer import Layer, moe_truth
from benchmarks.peers.workload import Workload, make_sets
from megamoe_jit.formats.block_scaled import QuantFormat, QuantizedTensor
from megamoe_jit.reference.compare import rel_l2

SHAPES = (
    Workload(name="x", hidden=128, intermediate=128, num_experts=5, num_topk=2),
    Workload(name="widened", hidden=64, intermediate=96, num_experts=5, num_topk=2),
)
compiled: list[str] = []


class HummingLayer:
    def __init__(
        self,
        *,
        shape_n: int,
        shape_k: int,
        weight_config: dict[str, Any],
        input_config: dict[str, Any],
        num_experts: int,
        torch_dtype: torch.dtype,
    ) -> None:
        self.is_nvfp4 = weight_config.get("quant_algo") == "nvfp4"
        assert torch_dtype is torch.bfloat16
        assert input_config == ({} if self.is_nvfp4 else {"dtype": "float8e4m3"})
        assert self.is_nvfp4 or (weight_config["group_size"], weight_config["scale_dtype"]) == (32, "float8e8m0")
        self.shape = (num_experts, shape_n, shape_k)
        self.locks = torch.zeros(2048, dtype=torch.int32)

    def to(self, device: torch.device) -> HummingLayer:
        return self

    def load_from_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.weight, self.weight_scale = tensors["weight"], tensors["weight_scale"]
        codes = self.weight.view(torch.uint8)
        assert codes.shape == (*self.shape[:2], self.shape[2] // 2)
        layout = QuantFormat.NVFP4 if self.is_nvfp4 else QuantFormat.MXFP4
        self.values = QuantizedTensor(codes=codes, sf=self.weight_scale, format=layout).dequantize()
        if self.is_nvfp4:
            self.weight_scale_2 = tensors["weight_scale_2"]
            assert self.weight_scale_2.shape == self.shape[:1]
            self.values = self.values * self.weight_scale_2[:, None, None]

    def transform(self) -> None:
        self.humming_config = self

    def to_str(self) -> str:
        return "a layer"


def get_heuristics_config(*, layer_config: HummingLayer, shape_m: int, gemm_type: str) -> dict[str, Any]:
    return {"block_shape": (16 if layer_config.shape[1] > 128 else 8, 64, 64), "rows": shape_m, "type": gemm_type}


class HummingKernel:
    @staticmethod
    def prepare_kernels(layer: str, compute: str, tunings: list[Any], device: torch.device) -> None:
        compiled.append(compute)
        assert len(tunings) == 2


def may_process_input(
    config: HummingLayer,
    inputs: Tensor,
    *,
    layout: str = "normal",
    scatter_idx: Tensor | None = None,
    activation_type: str = "none",
    activation_impl: str | None = None,
) -> tuple[Tensor, None, Tensor | None]:
    result = inputs
    if activation_type == "binary_split":
        assert activation_impl is not None
        gate, up = inputs.float().chunk(2, dim=1)
        result = (F.silu(gate) * up).bfloat16()
    if layout == "scatter":
        assert scatter_idx is not None
        scattered = torch.empty(scatter_idx.numel(), inputs.shape[1], dtype=inputs.dtype)
        scattered[scatter_idx.flatten().long()] = inputs.repeat_interleave(scatter_idx.shape[1], 0)
        result = scattered
    return result, None, None if config.is_nvfp4 else torch.ones(len(result))


def humming_forward(
    config: HummingLayer,
    inputs: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_scale_2: Tensor | None = None,
    outputs: Tensor | None = None,
    input_scale: Tensor | None = None,
    sorted_ids: Tensor | None = None,
    expert_ids: Tensor | None = None,
    num_tokens_padded: Tensor | None = None,
    expert_layout: Tensor | None = None,
    locks: Tensor | None = None,
    top_k: int = 1,
    compute_config: dict[str, Any] | None = None,
    tuning_config: dict[str, Any] | None = None,
) -> None:
    assert outputs is not None
    assert tuning_config is not None
    assert compute_config == {"gemm_type": tuning_config["type"]}
    assert tuning_config["rows"] == len(outputs)
    assert (weight is config.weight, weight_scale is config.weight_scale, locks is config.locks) == (True,) * 3
    assert (input_scale is None) == config.is_nvfp4 == (weight_scale_2 is not None)
    outputs.fill_(float("nan"))
    if compute_config["gemm_type"] == "indexed":
        assert sorted_ids is not None
        assert expert_ids is not None
        assert num_tokens_padded is not None
        tile = tuning_config["block_shape"][0]
        for block in range(int(num_tokens_padded) // tile):
            rows = sorted_ids[block * tile :][:tile].long()
            rows = rows[rows < len(outputs)]
            outputs[rows] = (inputs[rows // top_k].float() @ config.values[expert_ids[block]].T).bfloat16()
    else:
        assert expert_layout is not None
        for expert in range(len(expert_layout) - 1):
            start, end = expert_layout[expert : expert + 2].tolist()
            outputs[start:end] = (inputs[start:end].float() @ config.values[expert].T).bfloat16()


def install() -> None:
    parts: dict[str, dict[str, Any]] = {
        "humming": {},
        "humming.layer": {"HummingLayer": HummingLayer},
        "humming.tune": {"get_heuristics_config": get_heuristics_config},
        "humming.forward": {"may_process_input": may_process_input, "humming_forward": humming_forward},
        "humming.kernel": {},
        "humming.kernel.humming": {"HummingKernel": HummingKernel},
    }
    for name, members in parts.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module


def main() -> None:
    install()
    from benchmarks.peers.humming_kernels import load

    for shape in SHAPES:
        for checkpoint in ("nvfp4", "mxfp4"):
            peer = load(checkpoint)(Layer(workload=shape, device="cpu"), 9)  # type: ignore[arg-type]
            compiled.clear()
            peer.compile_for([1, 9])
            assert sorted(compiled) == ['{"gemm_type": "grouped_contiguous"}'] * 2 + ['{"gemm_type": "indexed"}'] * 2
            for count in (1, 9):
                for name, make in peer.variants(count):
                    run = make()
                    for tokens in make_sets(shape, "skewed", count, device="cpu", count=2):
                        error = rel_l2(run(tokens), moe_truth(tokens, peer.values()))
                        assert error < 0.02, (shape.name, checkpoint, count, name, error)
            assert ("widened" in peer.note(9)) == (shape.name == "widened")


if __name__ == "__main__":
    main()
