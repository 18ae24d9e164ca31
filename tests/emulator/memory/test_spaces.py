from __future__ import annotations

import pytest

from megamoe_jit.emulator.memory.spaces import (
    LOCAL_WINDOW,
    SHARED_WINDOW,
    shared_address,
    space_of,
    split_shared,
)


@pytest.mark.parametrize("rank", [0, 1, 7, 15])
@pytest.mark.parametrize("offset", [0, 1024, 0x38FFF, 0xFFFFFF])
def test_shared_addresses_name_a_cta_and_an_offset(rank: int, offset: int) -> None:
    address = shared_address(rank, offset)
    assert address < 1 << 32
    assert split_shared(address) == split_shared(address + SHARED_WINDOW) == (rank, offset)
    assert space_of(SHARED_WINDOW + address) == "shared"


def test_windows_do_not_meet_host_memory() -> None:
    assert space_of((1 << 56) - 1) == "global"  # host addresses have 48 bits, 57 with five-level paging in kernel space
    assert space_of(LOCAL_WINDOW) == "local"
    assert space_of(LOCAL_WINDOW + 0xFFFFFFFF) == "local"
    assert space_of(3 << 56) == "global"
