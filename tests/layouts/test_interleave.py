import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit.errors import ArgumentError
from megamoe_jit.layouts.interleave import (
    crop_branches,
    deinterleave_gate_up,
    interleave_gate_up,
    interleaved_row,
    pad_branches,
)

granules = st.sampled_from([1, 2, 8, 16])


def test_order_is_the_documented_one() -> None:
    gate_up = torch.cat((torch.arange(16), 100 + torch.arange(16)))[:, None]
    order = interleave_gate_up(gate_up)[:, 0].tolist()
    assert order == [*range(8), *range(100, 108), *range(8, 16), *range(108, 116)]


@given(granules, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_interleave_round_trip_and_closed_form(granule: int, turns: int, width: int, experts: int) -> None:
    intermediate = granule * turns
    rows = torch.randint(0, 1000, (experts, 2 * intermediate, width))
    interleaved = interleave_gate_up(rows, granule=granule)
    place = interleaved_row(torch.arange(2 * intermediate), intermediate, granule=granule)
    assert sorted(place.tolist()) == list(range(2 * intermediate))
    assert torch.equal(interleaved[:, place], rows)
    assert torch.equal(deinterleave_gate_up(interleaved, granule=granule), rows)


@given(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_padding_round_trip(branches: int, count: int, width: int, more_rows: int, more_width: int) -> None:
    rows = torch.randint(1, 1000, (2, branches * count, width))
    padded = pad_branches(rows, branches=branches, padded_rows=count + more_rows, padded_width=width + more_width)
    assert padded.shape == (2, branches * (count + more_rows), width + more_width)
    assert torch.equal(crop_branches(padded, branches=branches, count=count, width=width), rows)
    assert padded.count_nonzero() == rows.numel()
    if branches == 2:  # up rows begin where gate's padding ends
        assert torch.equal(padded[:, count + more_rows : 2 * count + more_rows, :width], rows[:, count:])


def test_no_padding_is_no_copy() -> None:
    rows = torch.zeros(1, 4, 4)
    assert pad_branches(rows, branches=2, padded_rows=2, padded_width=4) is rows
    assert crop_branches(rows, branches=2, count=2, width=4) is rows


@pytest.mark.parametrize("shape", [(12, 4), (2, 24, 3), (16,)])
def test_refuses_rows_that_have_no_whole_turns(shape: tuple[int, ...]) -> None:
    for function in (interleave_gate_up, deinterleave_gate_up):
        with pytest.raises(
            ArgumentError, match=r"intermediate a multiple of 8\. Pad gate and up each with pad_branches"
        ):
            function(torch.zeros(shape))
