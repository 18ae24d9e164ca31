import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit.layouts.struct import round_up, struct_layout

C_TYPES = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


@given(st.lists(st.tuples(st.sampled_from(sorted(C_TYPES)), st.integers(1, 5)), min_size=1, max_size=8))
def test_offsets_and_size_are_those_of_a_c_compiler(members: list[tuple[int, int]]) -> None:
    fields = [(f"f{i}", size * count, size) for i, (size, count) in enumerate(members)]
    layout = struct_layout(*fields)
    names = [(f"f{i}", C_TYPES[size] * count) for i, (size, count) in enumerate(members)]
    twin = type("Twin", (ctypes.Structure,), {"_fields_": names})
    assert layout.offsets() == {name: getattr(twin, name).offset for name, _ in names}
    assert layout.num_bytes == ctypes.sizeof(twin)
    assert layout.align == ctypes.alignment(twin)


@pytest.mark.parametrize(("value", "multiple", "expected"), [(0, 8, 0), (1, 8, 8), (8, 8, 8), (2880, 256, 3072)])
def test_round_up(value: int, multiple: int, expected: int) -> None:
    assert round_up(value, multiple) == expected
