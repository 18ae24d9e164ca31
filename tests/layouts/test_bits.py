import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit.errors import ArgumentError
from megamoe_jit.layouts.bits import BitPermutation

permutations = st.permutations(range(32)).map(lambda p: BitPermutation(targets=tuple(p)))
words = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8)


def as_int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64).to(torch.int32)


@given(permutations, words)
def test_apply_agrees_with_one_bit_at_a_time(permutation: BitPermutation, values: list[int]) -> None:
    expected = as_int32([permutation.apply_word(value) for value in values])
    assert torch.equal(permutation.apply(as_int32(values)), expected)


@given(permutations, words)
def test_inverse_undoes(permutation: BitPermutation, values: list[int]) -> None:
    tensor = as_int32(values)
    assert torch.equal(permutation.inverse.apply(permutation.apply(tensor)), tensor)


def test_apply_leaves_its_input_alone() -> None:
    tensor = as_int32([0x12345678, 0x89ABCDEF])
    before = tensor.clone()
    BitPermutation(targets=tuple(reversed(range(32)))).apply(tensor)
    assert torch.equal(tensor, before)


@pytest.mark.parametrize("targets", [tuple(range(31)), (0, *range(31)), (*range(31), 32)])
def test_refuses_what_is_no_permutation(targets: tuple[int, ...]) -> None:
    with pytest.raises(
        ArgumentError, match=r"does not name each of the bits 0\.\.31 once.*Give 32 distinct bit numbers"
    ):
        BitPermutation(targets=targets)


def test_refuses_other_dtypes() -> None:
    with pytest.raises(ArgumentError, match=r"dtype torch\.int64.*View the tensor as torch\.int32"):
        BitPermutation(targets=tuple(range(32))).apply(torch.zeros(4, dtype=torch.int64))
