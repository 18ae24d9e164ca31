"""sgl-deep-gemm: one fused kernel for FP8 weights (a scale for 128 x 128 of them) and FP8 activations, on one rank.

An easier format with twice the bytes: its weights are ours, rounded to FP8.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.contender import Run, Variant
from benchmarks.peers.layer import Layer, Values, dequantized
from benchmarks.peers.padding import WidenedTokens, narrowed, note, widen_weights, widened
from benchmarks.peers.workload import TokenSet

_BLOCK = 128
_E4M3_MAX = 448.0


def quantize_blocks(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return E4M3 codes [N, K] and a float32 scale for each 128 x 128 of w float32 [N, K], both multiples of 128."""
    rows, k = w.shape
    blocks = w.view(rows // _BLOCK, _BLOCK, k // _BLOCK, _BLOCK)
    sf = blocks.abs().amax((1, 3)).clamp_min(1e-10) / _E4M3_MAX
    return (blocks / sf[:, None, :, None]).to(torch.float8_e4m3fn).view(rows, k), sf


def interleave(codes: Tensor) -> Tensor:
    """Return rows gate 0..7, up 0..7, gate 8..15, ... of codes uint8 [2I, K] with all gate rows first."""
    gate, up = codes.chunk(2)
    k = codes.shape[1]
    return torch.stack([gate.reshape(-1, 8, k), up.reshape(-1, 8, k)], 1).reshape(codes.shape)


class SglDeepGemm:
    """The fused layer with its buffer; weights are quantised from the layer's NVFP4 ones."""

    weights_name = "fp8"

    def __init__(self, layer: Layer, max_tokens: int) -> None:
        """Quantise the weights."""
        del max_tokens
        self._package: Any = importlib.import_module("deep_gemm")
        self._workload, self._device = layer.workload, torch.device(layer.device)
        self._wide = wide = widened(layer.workload)
        exact = dequantized(widen_weights(layer.weights("nvfp4"), wide), torch.float32)
        parts = [tuple(map(quantize_blocks, exact(expert))) for expert in range(wide.num_experts)]
        self._l1_codes = torch.stack([l1[0].view(torch.uint8) for l1, _ in parts])
        self._l1 = torch.stack([interleave(codes) for codes in self._l1_codes]).view(torch.float8_e4m3fn)
        self._l2 = torch.stack([l2[0].view(torch.uint8) for _, l2 in parts]).view(torch.float8_e4m3fn)
        self._l1_sf, self._l2_sf = (torch.stack([part[at][1] for part in parts]) for at in range(2))

    def values(self) -> Values:
        """Return the FP8 weights."""

        def scaled(codes: Tensor, sf: Tensor) -> Tensor:
            return codes.double() * sf.double().repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)

        def values(expert: int) -> tuple[Tensor, Tensor]:
            l1 = scaled(self._l1_codes[expert].view(torch.float8_e4m3fn), self._l1_sf[expert])
            return l1, scaled(self._l2[expert], self._l2_sf[expert])

        return narrowed(values, self._wide, self._workload)

    def compile_for(self, tokens: Sequence[int]) -> None:
        """Compile nothing: the library compiles at the first call, which the warm-up makes in other processes."""

    def variants(self, num_tokens: int) -> Iterable[Variant]:
        """Return the one fused call, with its quantising kernel."""

        def make() -> Run:
            return self._make(num_tokens)

        yield "mega", make

    def _make(self, num_tokens: int) -> Run:
        module, shape = self._package._C, self._wide
        step = int(module.get_token_alignment_for_mega_moe())
        capacity = -(-num_tokens // step) * step
        sizes = (capacity, shape.num_topk, shape.hidden, shape.intermediate)
        num_bytes, slices = module.get_symm_buffer_size_for_sm90_mega_moe(1, shape.num_experts, *sizes, True, "swiglu")
        buffer = torch.zeros(num_bytes, dtype=torch.int8, device=self._device)
        views = slices(buffer)
        as_torch = self._package._from_dlpack_if_needed
        x, x_sf = as_torch(views[0], torch.float8_e4m3fn), as_torch(views[1])
        topk_idx, topk_weights = as_torch(views[2]), as_torch(views[3])
        y = torch.empty(num_tokens, shape.hidden, device=self._device, dtype=torch.bfloat16)
        wide_tokens = WidenedTokens(shape.hidden)

        def run(tokens: TokenSet) -> Tensor:
            module.mega_moe_pre_dispatch_sm90(
                *(wide_tokens.of(tokens), tokens.topk_idx, tokens.topk_weights, x, x_sf, topk_idx, topk_weights),
                *(num_tokens, _BLOCK, 1.0),
            )
            module.fp8_mega_moe(
                *(y, self._l1, self._l1_sf, self._l2, self._l2_sf, None, buffer, [buffer.data_ptr()], 0, capacity),
                *(shape.num_experts, shape.num_topk, (_BLOCK, _BLOCK, _BLOCK), "swiglu", None, True),
            )
            return y[:, : self._workload.hidden]

        return run

    def note(self, num_tokens: int) -> str:
        """Return whether anything was widened."""
        del num_tokens
        return note(self._wide, self._workload)


def load() -> type[SglDeepGemm]:
    """Return the contender's class; ImportError without the library."""
    importlib.import_module("deep_gemm")
    return SglDeepGemm
