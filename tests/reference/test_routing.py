import torch

from megamoe_jit.reference.routing import ExpertLoad, expert_counts, expert_load, is_local

IDX = torch.tensor([[0, 3, -1], [3, 3, 7], [-1, -5, 6], [2, 0, 9]])


def test_counts_leave_out_masked_slots_and_other_ranks() -> None:
    assert expert_counts(IDX, 10).tolist() == [2, 0, 1, 3, 0, 0, 1, 1, 0, 1]
    assert expert_counts(IDX.int(), 4, expert_offset=3).tolist() == [3, 0, 0, 1]
    assert expert_counts(IDX[:0], 4).tolist() == [0] * 4
    assert is_local(IDX, 4, 3).sum() == 4


def test_load_says_how_even_routing_is() -> None:
    assert expert_load(IDX, 4, expert_offset=0) == ExpertLoad(
        num_routed=6, num_masked=3, num_elsewhere=3, num_idle=1, largest=3, imbalance=2.0
    )
    assert expert_load(torch.arange(8).view(4, 2), 8).imbalance == 1.0
    nothing = expert_load(torch.full((3, 2), -1), 5)
    assert (nothing.num_idle, nothing.largest, nothing.imbalance) == (5, 0, 0.0)
