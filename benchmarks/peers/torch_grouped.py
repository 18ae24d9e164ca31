"""Plain PyTorch: weights dequantised to BF16 beforehand, grouped matrix products, and eager glue around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.contender import Run, Variant
from benchmarks.peers.layer import Layer, Values, dequantized
from benchmarks.peers.workload import TokenSet

_grouped_mm: Any = getattr(torch, "_grouped_mm", None)


class TorchGrouped:
    """`torch._grouped_mm` over rows sorted by expert."""

    weights_name = "nvfp4"

    def __init__(self, layer: Layer, max_tokens: int) -> None:
        """Dequantise the weights to BF16, two bytes each."""
        del max_tokens
        if _grouped_mm is None:
            raise ImportError("this torch has no grouped matrix product")
        self._workload, self._weights = layer.workload, layer.weights("nvfp4")
        values = dequantized(self._weights, torch.float32)
        pairs = [values(expert) for expert in range(layer.workload.num_experts)]
        self._l1 = torch.stack([l1.bfloat16() for l1, _ in pairs]).transpose(1, 2)
        self._l2 = torch.stack([l2.bfloat16() for _, l2 in pairs]).transpose(1, 2)
        self._experts = torch.arange(layer.workload.num_experts, device=layer.device, dtype=torch.int32)

    def values(self) -> Values:
        """Return the checkpoint's weights: rounding them to BF16 is part of this way."""
        return dequantized(self._weights)

    def compile_for(self, tokens: Sequence[int]) -> None:
        """Compile nothing."""

    def variants(self, num_tokens: int) -> Iterable[Variant]:
        """Return the one way."""
        num_topk, hidden = self._workload.num_topk, self._workload.hidden

        def run(tokens: TokenSet) -> Tensor:
            experts, order = tokens.topk_idx.flatten().sort(stable=True)
            ends = torch.searchsorted(experts, self._experts, right=True).int()
            gate, up = _grouped_mm(tokens.x[order // num_topk], self._l1, offs=ends).chunk(2, dim=1)
            result = _grouped_mm(F.silu(gate) * up, self._l2, offs=ends)
            by_slot = torch.empty_like(result)
            by_slot[order] = result
            weighted = by_slot.view(num_tokens, num_topk, hidden) * tokens.topk_weights.bfloat16().unsqueeze(2)
            return weighted.sum(1)

        def make() -> Run:
            return run

        yield "grouped_mm", make

    def note(self, num_tokens: int) -> str:
        """Return nothing: there is no choice."""
        del num_tokens
        return ""


def load() -> type[TorchGrouped]:
    """Return the contender's class."""
    return TorchGrouped
