"""Constants: their C++ names, types and literals."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit.errors import ArgumentError
from megamoe_jit.jit.source import cpp_name, spell_constants


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("block_m", "kBlockM"),
        ("num_stages", "kNumStages"),
        ("l1_k_stages", "kL1KStages"),
        ("x", "kX"),
        ("a1_2b", "kA12b"),
    ],
)
def test_python_names_become_cpp_names(name: str, expected: str) -> None:
    assert cpp_name(name) == expected


@pytest.mark.parametrize("name", ["", "blockM", "_block", "block_", "block__m", "1st", "block-m", "größe"])
def test_names_that_are_no_snake_case_are_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="has no C\\+\\+ name"):
        cpp_name(name)


@pytest.mark.parametrize(
    ("value", "definition"),
    [
        (True, "constexpr bool kValue = true;"),
        (False, "constexpr bool kValue = false;"),
        (0, "constexpr uint32_t kValue = 0;"),
        (2**32 - 1, "constexpr uint32_t kValue = 4294967295;"),
        (2**32, "constexpr uint64_t kValue = 4294967296ull;"),
        (2**64 - 1, "constexpr uint64_t kValue = 18446744073709551615ull;"),
        (-1, "constexpr int64_t kValue = -1ll;"),
        (-(2**63), "constexpr int64_t kValue = -9223372036854775807ll - 1;"),
        (1.0, "constexpr float kValue = 1.0f;"),
        (-0.0, "constexpr float kValue = -0.0f;"),
        (0.1, "constexpr float kValue = 0.100000001f;"),
        (1e30, "constexpr float kValue = 1.00000002e+30f;"),
        (1e-60, "constexpr float kValue = 0.0f;"),
        ("fp8", 'constexpr char kValue[] = "fp8";'),
        ('a"\\', 'constexpr char kValue[] = "a\\"\\\\";'),
    ],
)
def test_each_type_has_its_definition(value: bool | int | float | str, definition: str) -> None:
    (constant,) = spell_constants({"value": value})
    assert constant.definition == definition


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_the_printed_float_is_the_float(value: float) -> None:
    (constant,) = spell_constants({"value": value})
    printed = float(constant.literal.removesuffix("f"))
    assert struct.pack("<f", printed) == struct.pack("<f", value)


@pytest.mark.parametrize(
    ("constants", "sentence"),
    [
        ({"value": 2**64}, "no 64-bit integer holds"),
        ({"value": -(2**63) - 1}, "no 64-bit integer holds"),
        ({"value": float("inf")}, "'value' is inf, which is no finite float"),
        ({"value": float("nan")}, "'value' is nan, which is no finite float"),
        ({"value": 1e39}, "'value' is 1e+39, which is no finite float"),
        ({"value": "two\nlines"}, "text constants are printable ASCII"),
        ({"value": None}, "has type NoneType; C++ constants are bool, int, float or str"),
        ({"value": (1, 2)}, "has type tuple"),
        ({"a1b": 1, "a_1b": 2}, "constants 'a1b' and 'a_1b' are both kA1b in C++. Rename one."),
    ],
)
def test_what_cpp_cannot_hold_is_refused(constants: dict[str, object], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        spell_constants(constants)
