"""sgl-deep-gemm: one fused kernel for FP8 weights (a scale for 128 x 128 of them) and FP8 activations, on one rank.

An easier format with twice the bytes: its weights are ours, rounded to FP8. Hidden and intermediate are padded with
zeros to multiples of 128, the tokens before the clock starts.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.contender import Run, Variant
from benchmarks.peers.layer import Layer, Values, dequantized
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


def padded(width: int) -> int:
    """Return the next multiple of 128."""
    return -(-width // _BLOCK) * _BLOCK


class SglDeepGemm:
    """The fused layer with its buffer; weights are quantised from the layer's NVFP4 ones."""

    weights_name = "fp8"

    def __init__(self, layer: Layer, max_tokens: int) -> None:
        """Quantise the weights."""
        del max_tokens
        self._package: Any = importlib.import_module("deep_gemm")
        self._workload, self._device = layer.workload, torch.device(layer.device)
        self._hidden, self._intermediate = padded(layer.workload.hidden), padded(layer.workload.intermediate)
        exact = dequantized(layer.weights("nvfp4"), torch.float32)
        l1_codes, l2_codes = [], []
        l1_sf, l2_sf = [], []
        for expert in range(layer.workload.num_experts):
            l1, l2 = exact(expert)
            codes, sf = quantize_blocks(self._pad_l1(l1))
            l1_codes.append(codes.view(torch.uint8))
            l1_sf.append(sf)
            codes, sf = quantize_blocks(self._pad_l2(l2))
            l2_codes.append(codes.view(torch.uint8))
            l2_sf.append(sf)
        self._l1_codes, self._l2 = torch.stack(l1_codes), torch.stack(l2_codes).view(torch.float8_e4m3fn)
        self._l1 = torch.stack([interleave(codes) for codes in l1_codes]).view(torch.float8_e4m3fn)
        self._l1_sf, self._l2_sf = torch.stack(l1_sf), torch.stack(l2_sf)

    def _pad_l1(self, l1: Tensor) -> Tensor:
        shape = self._workload
        parts = l1.view(2, shape.intermediate, shape.hidden)
        more = (0, self._hidden - shape.hidden, 0, self._intermediate - shape.intermediate)
        return F.pad(parts, more).reshape(2 * self._intermediate, self._hidden)

    def _pad_l2(self, l2: Tensor) -> Tensor:
        shape = self._workload
        return F.pad(l2, (0, self._intermediate - shape.intermediate, 0, self._hidden - shape.hidden))

    def values(self) -> Values:
        """Return the FP8 weights, without the padding."""
        shape = self._workload

        def scaled(codes: Tensor, sf: Tensor) -> Tensor:
            return codes.double() * sf.double().repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)

        def values(expert: int) -> tuple[Tensor, Tensor]:
            l1 = scaled(self._l1_codes[expert].view(torch.float8_e4m3fn), self._l1_sf[expert])
            l1 = l1.view(2, self._intermediate, self._hidden)[:, : shape.intermediate, : shape.hidden]
            l2 = scaled(self._l2[expert], self._l2_sf[expert])[: shape.hidden, : shape.intermediate]
            return l1.reshape(2 * shape.intermediate, shape.hidden), l2

        return values

    def compile_for(self, tokens: Sequence[int]) -> None:
        """Compile nothing: the library compiles at the first call, which the warm-up makes in other processes."""

    def variants(self, num_tokens: int) -> Iterable[Variant]:
        """Return the one fused call, with its quantising kernel."""

        def make() -> Run:
            return self._make(num_tokens)

        yield "mega", make

    def _make(self, num_tokens: int) -> Run:
        module, shape = self._package._C, self._workload
        step = int(module.get_token_alignment_for_mega_moe())
        capacity = -(-num_tokens // step) * step
        sizes = (capacity, shape.num_topk, self._hidden, self._intermediate)
        num_bytes, slices = module.get_symm_buffer_size_for_sm90_mega_moe(1, shape.num_experts, *sizes, True, "swiglu")
        buffer = torch.zeros(num_bytes, dtype=torch.int8, device=self._device)
        views = slices(buffer)
        as_torch = self._package._from_dlpack_if_needed
        x, x_sf = as_torch(views[0], torch.float8_e4m3fn), as_torch(views[1])
        topk_idx, topk_weights = as_torch(views[2]), as_torch(views[3])
        y = torch.empty(num_tokens, self._hidden, device=self._device, dtype=torch.bfloat16)
        padded_x: dict[int, tuple[TokenSet, Tensor]] = {}  # by id of the set, which the entry keeps alive

        def run(tokens: TokenSet) -> Tensor:
            if id(tokens) not in padded_x:
                more = (0, self._hidden - shape.hidden)
                padded_x[id(tokens)] = (tokens, F.pad(tokens.x, more) if more[1] else tokens.x)
            staged = padded_x[id(tokens)][1]
            module.mega_moe_pre_dispatch_sm90(
                *(staged, tokens.topk_idx, tokens.topk_weights, x, x_sf, topk_idx, topk_weights),
                *(num_tokens, _BLOCK, 1.0),
            )
            module.fp8_mega_moe(
                *(y, self._l1, self._l1_sf, self._l2, self._l2_sf, None, buffer, [buffer.data_ptr()], 0, capacity),
                *(shape.num_experts, shape.num_topk, (_BLOCK, _BLOCK, _BLOCK), "swiglu", None, True),
            )
            return y[:, : shape.hidden]

        return run

    def note(self, num_tokens: int) -> str:
        """Return whether anything was padded."""
        del num_tokens
        is_padded = (self._hidden, self._intermediate) != (self._workload.hidden, self._workload.intermediate)
        return f"padded to {self._hidden} x {self._intermediate}" if is_padded else ""


def load() -> type[SglDeepGemm]:
    """Return the contender's class; ImportError without the library."""
    importlib.import_module("deep_gemm")
    return SglDeepGemm
