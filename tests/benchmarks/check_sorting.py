"""Runs the Triton kernels of `benchmarks.peers.sorting` in Triton's interpreter and compares them with torch."""

from __future__ import annotations

import torch

from benchmarks.peers.sorting import ExpertSort, weighted_sum
from benchmarks.peers.workload import Workload, uniform_routing

CASES = ((32, 6, 1, 8), (48, 6, 40, 16), (16, 8, 100, 1), (5, 2, 7, 64))  # experts, top-k, tokens, tile
HIDDEN = 96


def check_sort(sort: ExpertSort, topk_idx: torch.Tensor, num_experts: int, tile: int) -> int:
    flat = topk_idx.flatten()
    counts = torch.bincount(flat, minlength=num_experts)
    padded = (counts + tile - 1) // tile * tile
    ends = [0, *padded.cumsum(0).tolist()]
    assert int(sort.num_padded) == ends[-1]
    assert sort.ends.tolist() == ends
    for expert in range(num_experts):
        found = sort.sorted_ids[ends[expert] : ends[expert + 1]].tolist()
        slots = (flat == expert).nonzero().flatten().tolist()
        assert found == slots + [flat.numel()] * (len(found) - len(slots))
        if tile > 1:
            assert set(sort.block_experts[ends[expert] // tile : ends[expert + 1] // tile].tolist()) <= {expert}
    assert torch.equal(sort.sorted_ids[sort.place_of.flatten().long()].long(), torch.arange(flat.numel()))
    return ends[-1]


def check_sum(place_of: torch.Tensor, num_rows: int, num_tokens: int, num_topk: int) -> None:
    rows, weights = torch.randn(num_tokens * num_topk, HIDDEN).bfloat16(), torch.rand(num_tokens, num_topk)
    y, y_sorted = torch.empty(2, num_tokens, HIDDEN, dtype=torch.bfloat16)
    weighted_sum(rows, None, weights, y)
    expected = (rows.float().view(num_tokens, num_topk, HIDDEN) * weights.unsqueeze(2)).sum(1)
    assert float(((y.float() - expected).abs() / expected.abs().clamp(min=0.1)).max()) < 2**-6
    by_expert = torch.zeros(num_rows, HIDDEN).bfloat16()
    by_expert[place_of.flatten().long()] = rows
    weighted_sum(by_expert, place_of, weights, y_sorted)
    assert torch.equal(y, y_sorted)


def main() -> None:
    torch.manual_seed(0)
    for num_experts, num_topk, num_tokens, tile in CASES:
        shape = Workload(name="x", hidden=HIDDEN, intermediate=32, num_experts=num_experts, num_topk=num_topk)
        sort = ExpertSort(num_tokens, num_topk, num_experts, tile, "cpu")
        for seed in range(2):  # the second call finds what the first left
            topk_idx = uniform_routing(shape, num_tokens, torch.Generator().manual_seed(seed))
            sort(topk_idx)
            num_rows = check_sort(sort, topk_idx, num_experts, tile)
        check_sum(sort.place_of, num_rows, num_tokens, num_topk)


if __name__ == "__main__":
    main()
