"""The weights that everybody is given, and the truth that everybody is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.workload import TokenSet, Workload, experts_of
from megamoe_jit.formats.block_scaled import quantize_to_mxfp4, quantize_weight_to_nvfp4
from megamoe_jit.formats.moe_weights import Checkpoint, MoeWeights

Values = Callable[[int], tuple[Tensor, Tensor]]
_CHECKED_TOKENS = 64


def _float_weights(workload: Workload, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield l1 float32 [2I, H] and l2 float32 [H, I] of each expert, the same each time."""
    generator = torch.Generator(device).manual_seed(0)
    h, i = workload.hidden, workload.intermediate
    for _ in range(workload.num_experts):
        l1 = torch.randn(2 * i, h, generator=generator, device=device) * h**-0.5
        yield l1, torch.randn(h, i, generator=generator, device=device) * i**-0.5


def _stack(parts: list[Tensor]) -> Tensor:
    """Stack tensors, one-byte floats too, for which torch has no kernel on every device."""
    dtype = parts[0].dtype
    return torch.stack([part.view(torch.uint8) if dtype.itemsize == 1 else part for part in parts]).view(dtype)


def make_weights(workload: Workload, checkpoint: Checkpoint, device: torch.device | str) -> MoeWeights:
    """Return quantised random normal weights.

    NVFP4 as exporters write it: block scales up to 448, a global scale for L1 (gate and up share it, as other software
    needs) and one for L2 of each expert. MXFP4 is made from the same float weights.
    """
    l1_parts, l2_parts = [], []
    for l1, l2 in _float_weights(workload, device):
        quantize = quantize_weight_to_nvfp4 if checkpoint == "nvfp4" else quantize_to_mxfp4
        l1_parts.append(quantize(l1))
        l2_parts.append(quantize(l2))
    one = torch.ones((), device=device)
    l1_alphas = torch.stack([one if part.global_scale is None else part.global_scale for part in l1_parts])
    l2_alphas = torch.stack([one if part.global_scale is None else part.global_scale for part in l2_parts])
    return MoeWeights(
        l1_codes=_stack([part.codes for part in l1_parts]),
        l1_sf=_stack([part.sf for part in l1_parts]),
        l1_alphas=l1_alphas.unsqueeze(1).expand(-1, 2).contiguous(),
        l2_codes=_stack([part.codes for part in l2_parts]),
        l2_sf=_stack([part.sf for part in l2_parts]),
        l2_alphas=l2_alphas,
        checkpoint=checkpoint,
    )


def dequantized(weights: MoeWeights, dtype: torch.dtype = torch.float64) -> Values:
    """Return the function from an expert to its values (l1 [2I, H], l2 [H, I]), exact in float64."""

    def values(expert: int) -> tuple[Tensor, Tensor]:
        l1 = weights.l1(expert).dequantize(dtype) * weights.l1_row_alphas[expert].to(dtype).unsqueeze(1)
        return l1, weights.l2(expert).dequantize(dtype) * weights.l2_alphas[expert].to(dtype)

    return values


@dataclass(kw_only=True, slots=True, eq=False)
class Layer:
    """One workload's weights, each format made when first asked for."""

    workload: Workload
    device: torch.device | str
    known: dict[Checkpoint, MoeWeights] = field(default_factory=dict)

    def weights(self, checkpoint: Checkpoint) -> MoeWeights:
        """Return the weights in a format."""
        if checkpoint not in self.known:
            self.known[checkpoint] = make_weights(self.workload, checkpoint, self.device)
        return self.known[checkpoint]


def moe_truth(tokens: TokenSet, values: Values) -> Tensor:
    """Return y float64 [T, H] of the SwiGLU layer whose experts have these float64 `values`."""
    x, y = tokens.x.double(), torch.zeros(tokens.x.shape, dtype=torch.float64, device=tokens.x.device)
    for expert in experts_of(tokens.topk_idx):
        token, slot = (tokens.topk_idx == expert).nonzero(as_tuple=True)
        l1, l2 = values(expert)
        gate, up = (x[token] @ l1.T).chunk(2, dim=1)
        result = (F.silu(gate) * up) @ l2.T
        y.index_add_(0, token, result * tokens.topk_weights[token, slot].double().unsqueeze(1))
    return y


def checked_rows(num_tokens: int, device: torch.device | str) -> Tensor:
    """Return the tokens that are compared with the truth: all of few, else some spread over the whole call."""
    count = min(num_tokens, _CHECKED_TOKENS)
    return torch.linspace(0, num_tokens - 1, count, device=device).round().long()
