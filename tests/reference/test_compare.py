import math

import pytest
import torch

from megamoe_jit.reference.compare import calc_diff, cosine, rel_l2

A = torch.tensor([[3.0, 0.0], [0.0, 4.0]])


def test_distances_of_known_vectors() -> None:
    b = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    assert rel_l2(b, A) == pytest.approx(math.sqrt(32) / 5)
    assert cosine(b, A) == pytest.approx(9 / 25)
    assert calc_diff(b, A) == pytest.approx(1 - 18 / 50)


def test_equal_tensors_have_no_distance_in_any_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert rel_l2(A.to(dtype), A) == 0
        assert cosine(A.to(dtype), A) == pytest.approx(1.0)
        assert calc_diff(A.to(dtype), A) == pytest.approx(0.0)


def test_cosine_ignores_size_and_the_others_do_not() -> None:
    assert cosine(A * 2, A) == pytest.approx(1.0)
    assert rel_l2(A * 2, A) == pytest.approx(1.0)
    assert calc_diff(A * 2, A) == pytest.approx(0.2)


def test_zeros_and_empty_tensors_have_answers() -> None:
    zero, empty = torch.zeros(3), torch.empty(0, 4)
    assert (rel_l2(zero, zero), cosine(zero, zero), calc_diff(zero, zero)) == (0.0, 1.0, 0.0)
    assert (rel_l2(empty, empty), cosine(empty, empty), calc_diff(empty, empty)) == (0.0, 1.0, 0.0)
    assert (rel_l2(torch.ones(3), zero), cosine(torch.ones(3), zero)) == (math.inf, 0.0)


def test_a_nan_does_not_pass_for_agreement() -> None:
    bad = A.clone()
    bad[0, 0] = float("nan")
    assert not rel_l2(bad, A) < 1
    assert not cosine(bad, A) > 0
    assert not calc_diff(bad, A) < 1
