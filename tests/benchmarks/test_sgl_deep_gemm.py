from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import sgl_deep_gemm
from benchmarks.peers.layer import Layer, moe_truth
from benchmarks.peers.workload import Workload, make_sets
from megamoe_jit.reference.compare import rel_l2

STEP = 8  # tokens that the stand-in's buffer is a multiple of


class StandIn:
    """The calls of the library that the adapter makes, with their meaning computed in torch; the buffer is ignored."""

    def get_token_alignment_for_mega_moe(self) -> int:
        return STEP

    def get_symm_buffer_size_for_sm90_mega_moe(
        self, num_ranks: int, experts: int, capacity: int, topk: int, hidden: int, inter: int, fp8: bool, act: str
    ) -> tuple[int, Any]:
        assert (num_ranks, fp8, act, capacity % STEP) == (1, True, "swiglu", 0)
        views = (
            torch.zeros(capacity, hidden, dtype=torch.float8_e4m3fn),
            torch.zeros(capacity, hidden // 128),
            torch.zeros(capacity, topk, dtype=torch.int64),
            torch.zeros(capacity, topk),
        )
        return 1024, lambda buffer: views

    def mega_moe_pre_dispatch_sm90(
        self,
        x: Tensor,
        topk_idx: Tensor,
        topk_weights: Tensor,
        buf_x: Tensor,
        buf_x_sf: Tensor,
        buf_topk_idx: Tensor,
        buf_topk_weights: Tensor,
        num_tokens: int,
        group_size: int,
        factor: float,
    ) -> None:
        assert (group_size, factor, num_tokens) == (128, 1.0, len(x))
        assert buf_x.shape[1] == x.shape[1]
        self.staged = (x, topk_idx, topk_weights)

    def fp8_mega_moe(
        self,
        y: Tensor,
        l1: Tensor,
        l1_sf: Tensor,
        l2: Tensor,
        l2_sf: Tensor,
        stats: None,
        buffer: Tensor,
        pointers: list[int],
        rank: int,
        capacity: int,
        num_experts: int,
        num_topk: int,
        recipe: tuple[int, int, int],
        activation: str,
        clamp: None,
        fast_math: bool,
    ) -> None:
        x, topk_idx, topk_weights = self.staged
        assert (pointers, rank, recipe, activation) == ([buffer.data_ptr()], 0, (128, 128, 128), "swiglu")
        assert capacity >= len(x)
        assert (num_experts, num_topk) == (len(l1), topk_idx.shape[1])
        y.zero_()
        for token, slot in torch.cartesian_prod(torch.arange(len(x)), torch.arange(num_topk)).tolist():
            expert = int(topk_idx[token, slot])
            groups = l1[expert].float().view(-1, 2, 8, l1.shape[2])  # gate 0..7, up 0..7, gate 8..15, ...
            parts = groups.transpose(0, 1).reshape(l1.shape[1:])
            scales = l1_sf[expert].repeat_interleave(128, 0).repeat_interleave(128, 1)
            gate, up = ((parts * scales) @ x[token].float()).chunk(2)
            scales = l2_sf[expert].repeat_interleave(128, 0).repeat_interleave(128, 1)
            result = (l2[expert].float() * scales) @ (F.silu(gate) * up)
            y[token] += (topk_weights[token, slot] * result).bfloat16()


@pytest.mark.parametrize("hidden", [128, 96])
def test_the_adapter_calls_what_computes_the_layer(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("deep_gemm")
    module._C = StandIn()
    module._from_dlpack_if_needed = lambda tensor, dtype=None: tensor if dtype is None else tensor.view(dtype)
    monkeypatch.setitem(sys.modules, "deep_gemm", module)
    shape = Workload(name="x", hidden=hidden, intermediate=128, num_experts=4, num_topk=2)
    peer = sgl_deep_gemm.load()(Layer(workload=shape, device="cpu"), 5)
    [(name, make)] = peer.variants(5)
    assert name == "mega"
    run = make()
    for tokens in make_sets(shape, "uniform", 5, device="cpu", count=2):
        y = run(tokens)
        assert y.shape == (5, hidden)
        assert rel_l2(y, moe_truth(tokens, peer.values())) < 0.02
    assert ("widened" in peer.note(5)) == (hidden == 96)
