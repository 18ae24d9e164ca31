"""Problems: the limits of every size, and what follows from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megamoe_jit import ActivationSpec, ArgumentError, Problem

LAYER = Problem(hidden=4096, intermediate=2048, num_experts=32, num_topk=6, max_tokens_per_rank=1024)
LIMITS = {
    "hidden": (1, 65536),
    "intermediate": (1, 65536),
    "num_experts": (6, 384),  # as many as num_topk
    "num_topk": (1, 16),
    "max_tokens_per_rank": (1, 65536),
}


@pytest.mark.parametrize("name", LIMITS)
def test_both_ends_of_a_limit_are_allowed_and_no_more(name: str) -> None:
    low, high = LIMITS[name]
    for value in (low, high):
        assert getattr(replace(LAYER, **{name: value}), name) == value
    for value in (high + 1, 0, -1):
        with pytest.raises(
            ArgumentError, match=rf"{name}={value}, but kernels take an integer from 1 to {high}\. Pass"
        ):
            replace(LAYER, **{name: value})


@pytest.mark.parametrize("value", [4096.0, "4096", None, True])
def test_sizes_are_integers(value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"hidden=.* but kernels take an integer"):
        replace(LAYER, hidden=value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_experts": 5}, r"num_topk=6 is more than num_experts=5; .* Pass a smaller num_topk"),
        ({"num_ranks": 5}, r"num_experts=32 does not divide among num_ranks=5; .* Add empty experts, or"),
        ({"num_ranks": 73}, r"num_ranks=73, but kernels take an integer from 1 to 72"),
        ({"num_ranks": 0}, r"num_ranks=0, but kernels take an integer from 1 to 72"),
        ({"topk_weight_stage": "never"}, r"topk_weight_stage='never' is unknown\. Use 'after_l2' or 'before_requant'"),
        ({"topk_idx_bytes": 2}, r"topk_idx_bytes=2, but indices are int32 \(4\) or int64 \(8\)"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        replace(LAYER, **changes)


@pytest.mark.parametrize(("num_ranks", "local", "mean"), [(1, 32, 12.0), (8, 4, 96.0), (32, 1, 384.0)])
def test_shares_of_a_rank(num_ranks: int, local: int, mean: float) -> None:
    problem = replace(LAYER, num_ranks=num_ranks)
    assert problem.num_local_experts == local
    assert problem.tokens_per_expert(64) == mean
    assert problem.tokens_per_expert(0) == 0


def test_equal_problems_are_one_key() -> None:
    same = replace(LAYER, activation=ActivationSpec())
    assert same == LAYER
    assert hash(same) == hash(LAYER)
    assert (
        len({LAYER, same, replace(LAYER, fast_math=False), replace(LAYER, activation=ActivationSpec(clamp=7.0))}) == 3
    )
