import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit.formats.fp4 import decode_fp4
from megamoe_jit.formats.fp8 import decode_ue4m3, encode_e4m3, encode_ue4m3
from megamoe_jit.layouts.mx_scales import restore_ue8m0, rounded_in_e4m3, stash_zero_groups, zero_groups


@given(st.integers(0, 2**32 - 1), st.integers(-100, 100))
def test_every_scale_comes_back(seed: int, shift: int) -> None:
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(0, 256, (2, 6, 32), dtype=np.uint8))
    codes[torch.from_numpy(rng.random((2, 6, 32)) < 0.5)] = 0x80  # plus and minus zero
    codes[:, ::2, :16] &= 0x88  # whole groups of zeros
    exponents = torch.from_numpy(rng.integers(-9, 9, (2, 6, 2))) + shift
    ue8m0 = (exponents + 127).to(torch.uint8)
    ue4m3 = encode_ue4m3(torch.exp2((exponents - shift).float())).view(torch.uint8).repeat_interleave(2, dim=-1)
    zero = zero_groups(codes)
    assert zero[:, ::2, 0].all()
    ue8m0[zero] = torch.from_numpy(rng.integers(0, 255, int(zero.sum()), dtype=np.uint8))  # any scale at all
    coded = stash_zero_groups(codes, ue4m3, ue8m0)
    assert int(coded.max()) < 0x7F
    assert torch.equal(coded.view(2, 6, 2, 2)[~zero], ue4m3.view(2, 6, 2, 2)[~zero])
    assert torch.equal(restore_ue8m0(codes, coded, torch.full((2,), shift)), ue8m0)


@pytest.mark.parametrize("exponent", range(-9, 9))
def test_counts_groups_that_e4m3_rounds(exponent: int) -> None:
    """All 16 codes, each filling a group of its own, against rounding of the values themselves."""
    codes = (torch.arange(16) * 0x11).to(torch.uint8)[:, None].expand(16, 8).reshape(1, 128)
    ue4m3 = encode_ue4m3(torch.full((1, 16), 2.0**exponent)).view(torch.uint8)
    products = decode_fp4(codes) * decode_ue4m3(ue4m3).repeat_interleave(16, dim=-1) / 8
    rounded = encode_e4m3(products).float() != products
    expected = int(rounded.view(16, 16).any(dim=-1).sum())
    assert rounded_in_e4m3(codes, ue4m3) == expected
    assert (expected > 0) == (exponent < -5)
