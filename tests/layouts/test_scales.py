import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit.errors import ArgumentError
from megamoe_jit.layouts.scales import (
    blocked_offset,
    from_blocked,
    is_mn_major,
    pack_sf_words,
    permute_sf_for_utccp,
    to_blocked,
    unpack_sf_words,
    utccp_place,
)

experts = st.integers(1, 3)
rows = st.integers(1, 300)
groups = st.integers(1, 21)


def random_sf(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@given(experts, rows, groups)
def test_words_round_trip_bytes_and_strides(e: int, r: int, g: int) -> None:
    sf = random_sf(e, r, g)
    words = pack_sf_words(sf)
    assert words.shape == (e, r, -(-g // 4))
    assert is_mn_major(words)
    assert words.stride(2) % 4 == 0, "a TMA stride is a multiple of 16 bytes"
    assert torch.equal(unpack_sf_words(words, groups=g), sf)
    for group in range(g):  # byte 0 is the least significant
        byte = (words[..., group // 4].to(torch.int64) >> (8 * (group % 4))) & 0xFF
        assert torch.equal(byte.to(torch.uint8), sf[..., group])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e8m0fnu])
def test_words_take_every_byte_dtype(dtype: torch.dtype) -> None:
    sf = random_sf(2, 8, 8)
    assert torch.equal(pack_sf_words(sf.view(dtype)), pack_sf_words(sf))


def test_words_of_a_view_that_starts_at_an_odd_byte() -> None:
    sf = random_sf(4 * 8 + 1)[1:].view(4, 8)
    assert torch.equal(unpack_sf_words(pack_sf_words(sf)), sf)


@given(experts, st.integers(1, 3), st.integers(1, 6))
def test_utccp_order_round_trip_and_closed_form(e: int, blocks: int, n: int) -> None:
    words = torch.randint(-(2**31), 2**31, (e, 128 * blocks, n)).to(torch.int32)
    ordered = permute_sf_for_utccp(words)
    assert is_mn_major(ordered)
    place = utccp_place(torch.arange(128 * blocks))
    assert sorted(place.tolist()) == list(range(128 * blocks))
    assert torch.equal(ordered[:, place], words)
    assert torch.equal(permute_sf_for_utccp(ordered, inverse=True), words)


# Worked examples of the SF atom: 128 rows, K = 256 with 16 values a scale, and K = 128 with 32 values a scale.
@pytest.mark.parametrize(
    ("row", "k", "gran_k", "byte"),
    [
        (0, 0, 16, 0),
        (37, 0, 16, 84),
        (37, 80, 16, 597),
        (64, 128, 16, 1032),
        (127, 255, 16, 2047),
        (0, 0, 32, 0),
        (37, 40, 32, 85),
        (127, 127, 32, 511),
    ],
)
def test_one_row_block_in_utccp_order_is_the_hardware_atom(row: int, k: int, gran_k: int, byte: int) -> None:
    num_groups = 16 if gran_k == 16 else 4
    sf = torch.zeros(128, num_groups, dtype=torch.uint8)
    sf[row, k // gran_k] = 1
    memory = permute_sf_for_utccp(pack_sf_words(sf)).transpose(0, 1).contiguous().view(torch.uint8).flatten()
    assert memory.nonzero().flatten().tolist() == [byte]


@given(experts, rows, groups)
def test_blocked_round_trip_and_closed_form(e: int, r: int, g: int) -> None:
    sf = random_sf(e, r, g)
    blocked = to_blocked(sf)
    assert blocked.shape == (e, -(-r // 128) * 128 * (-(-g // 4) * 4))
    assert torch.equal(from_blocked(blocked, rows=r, groups=g), sf)
    row, group = torch.meshgrid(torch.arange(r), torch.arange(g), indexing="ij")
    offset = blocked_offset(row, group, groups=g)
    assert torch.equal(blocked[:, offset], sf)
    outside = torch.ones(blocked.shape[1], dtype=torch.bool).index_fill(0, offset.flatten(), False)
    assert len(set(offset.flatten().tolist())) == r * g
    assert not blocked[:, outside].any()


def test_blocked_and_utccp_agree_for_one_row_block() -> None:
    sf = random_sf(128, 16)
    utccp = permute_sf_for_utccp(pack_sf_words(sf)).transpose(0, 1).contiguous().view(torch.uint8).flatten()
    assert torch.equal(utccp, to_blocked(sf))


WORDS = torch.zeros(2, 128, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: pack_sf_words(WORDS), r"sf is torch\.int32 \[2, 128, 2\].*Unpack int32 words with unpack_sf_words"),
        (lambda: pack_sf_words(torch.zeros(2, 4)), r"sf is torch\.float32.*of dtype uint8, int8, float8_e4m3fn"),
        (lambda: unpack_sf_words(random_sf(2, 4)), r"words is torch\.uint8 \[2, 4\].*Pack bytes with pack_sf_words"),
        (lambda: unpack_sf_words(WORDS, groups=9), r"groups=9 need 3 words of four a row, but words has 2"),
        (lambda: permute_sf_for_utccp(WORDS[:, :100]), r"words is torch\.int32 \[2, 100, 2\].*multiple of 128\. Pad"),
        (lambda: permute_sf_for_utccp(WORDS.to(torch.int64)), r"words is torch\.int64.*takes torch\.int32"),
        (lambda: from_blocked(random_sf(2, 512), rows=129, groups=4), r"take 256 x 4 = 1024 in blocked order\. Pass"),
    ],
)
def test_bad_input(call, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        call()
