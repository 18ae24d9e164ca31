"""Matrix descriptors and operand layouts, element by element from the manual's formulas."""

from __future__ import annotations

import numpy as np
import pytest

from megamoe_jit.emulator.engines import descriptors, operands
from megamoe_jit.emulator.engines.descriptors import Swizzle
from megamoe_jit.emulator.engines.numerics import FORMATS
from megamoe_jit.emulator.engines.numerics.formats import Operand
from tests.emulator.engines.tiles import exchange, sm90_descriptor, sm100_descriptor


@pytest.mark.parametrize(
    ("value", "swizzle", "stride"),
    [
        (0x4000404000000000, "128B", 1024),
        (0x8000402000000000, "64B", 512),
        (0xC000401000000000, "32B", 256),
        (0x0000400800000000, "none", 128),
    ],
)
def test_ready_descriptors(value: int, swizzle: str, stride: int) -> None:
    decoded, problems = descriptors.decode_sm100(value | 0x12340 >> 4)
    assert not problems
    assert (decoded.start, decoded.leading, decoded.stride) == (0x12340, 0, stride)
    assert decoded.swizzle is Swizzle(swizzle)
    assert value == sm100_descriptor(0, 0, stride, swizzle)


@pytest.mark.parametrize(
    ("bits", "field"),
    [
        (1 << 14, "bits 15:14"),
        (1 << 31, "bits 31:30"),
        (1 << 47, "version"),
        (1 << 55, "bits 60:53"),
        (3 << 61, "swizzle"),
    ],
)
def test_illegal_sm100_fields_are_named(bits: int, field: str) -> None:
    good = sm100_descriptor(1024, 0, 1024, "none")
    assert descriptors.decode_sm100(good)[1] == []
    _, problems = descriptors.decode_sm100(good | bits)
    assert len(problems) == 1
    assert problems[0].startswith(field)


def test_base_offset_belongs_to_swizzles() -> None:
    swizzled = sm100_descriptor(1024, 0, 1024, "128B") | 4 << 49
    assert "base offset (bits 51:49) is 4" in descriptors.decode_sm100(swizzled)[1][0]
    plain = sm100_descriptor(1024, 0, 128, "none") | 4 << 49
    assert descriptors.decode_sm100(plain)[1] == []


def test_sm90_codes_and_fields() -> None:
    for swizzle in ("none", "32B", "64B", "128B"):
        decoded, problems = descriptors.decode_sm90(sm90_descriptor(2048, 128, 1024, swizzle))
        assert not problems
        assert decoded.swizzle is Swizzle(swizzle)
        assert (decoded.start, decoded.leading, decoded.stride) == (2048, 128, 1024)
    _, problems = descriptors.decode_sm90(sm90_descriptor(0, 0, 1024, "128B") | 1 << 46)
    assert "bits 48:46" in problems[0]
    assert "base offset" in descriptors.decode_sm90(1 << 62 | 1 << 49)[1][0]


def test_the_hopper_descriptor_of_a_shipped_kernel() -> None:
    decoded, problems = descriptors.decode_sm90(4611686293305360384 | 2)
    assert not problems
    assert (decoded.start, decoded.stride, decoded.swizzle) == (32, 1024, Swizzle.B128)


@pytest.mark.parametrize("swizzle", ["none", "32B", "64B", "128B"])
def test_k_major_rows(swizzle: str) -> None:
    rng = np.random.default_rng(1)
    width = {"none": 16, "32B": 32, "64B": 64, "128B": 128}[swizzle]
    memory = rng.integers(0, 256, 1 << 16).astype(np.uint8)
    leading, stride = (2048, 128 * 3) if swizzle == "none" else (0, 8 * width + 1024)
    for step in range(width // 32 or 1):
        start = 4096 + 32 * step
        decoded, _ = descriptors.decode_sm100(sm100_descriptor(start, leading, stride, swizzle))
        assert not descriptors.layout_problems(decoded, mn_major=False)
        addresses = operands.operand_addresses(decoded, 64, 32, 1, 32, mn_major=False)
        codes = operands.shared_codes(memory, addresses, FORMATS["e4m3"], 64, packed=False, mn_major=False)
        for row in range(64):
            for k in range(32):
                if swizzle == "none":
                    place = start + row // 8 * stride + k // 16 * leading + row % 8 * 16 + k % 16
                else:
                    place = exchange(swizzle, start + row // 8 * stride + row % 8 * width + k)
                assert codes[row, k] == memory[place]


@pytest.mark.parametrize(("form", "size"), [("e5m2", 1), ("f16", 2), ("bf16", 2), ("tf32", 4)])
@pytest.mark.parametrize("swizzle", ["none", "32B", "64B", "128B", "128B with 32B atom"])
def test_mn_major_columns(swizzle: str, form: str, size: int) -> None:
    rng = np.random.default_rng(2)
    width = {"none": 16, "32B": 32, "64B": 64}.get(swizzle, 128)
    atom = 4 if swizzle == "128B with 32B atom" else 8
    memory = rng.integers(0, 256, 1 << 17).astype(np.uint8)
    rows, depth = 64, 32 // size
    leading, stride = 8192, 1024 if swizzle != "none" else 512
    start = 16384
    decoded, _ = descriptors.decode_sm100(sm100_descriptor(start, leading, stride, swizzle))
    assert not descriptors.layout_problems(decoded, mn_major=True)
    addresses = operands.operand_addresses(decoded, rows, depth, size, 32, mn_major=True)
    codes = operands.shared_codes(memory, addresses, FORMATS[form], rows, packed=False, mn_major=True)
    assert codes.shape == (rows, depth)
    for row in range(rows):
        for k in range(depth):
            along = row * size
            if swizzle == "none":
                place = start + k // 8 * leading + k % 8 * 16 + along // 16 * stride + along % 16
            else:
                place = start + along // width * leading + along % width + k // atom * stride + k % atom * width
            place = exchange(swizzle, place)
            expected = int.from_bytes(memory[place : place + size].tobytes(), "little")
            assert codes[row, k] == (expected >> 13 if size == 4 else expected)


def test_mn_major_of_fewer_rows_than_a_piece() -> None:
    memory = np.arange(1 << 12, dtype=np.uint32).astype(np.uint8)
    decoded, _ = descriptors.decode_sm100(sm100_descriptor(1024, 256, 128, "none"))
    addresses = operands.operand_addresses(decoded, 8, 32, 1, 32, mn_major=True)
    codes = operands.shared_codes(memory, addresses, FORMATS["e4m3"], 8, packed=False, mn_major=True)
    assert codes.shape == (8, 32)
    assert codes[3, 9] == memory[1024 + 256 + 16 + 3]


def test_packed_fp4_has_its_first_element_in_the_low_half() -> None:
    rng = np.random.default_rng(3)
    memory = rng.integers(0, 256, 8192).astype(np.uint8)
    decoded, _ = descriptors.decode_sm100(sm100_descriptor(2048 + 64, 0, 1024, "128B"))
    addresses = operands.operand_addresses(decoded, 16, 64, 1, 32, mn_major=False)
    codes = operands.shared_codes(memory, addresses, FORMATS["e2m1"], 16, packed=True, mn_major=False)
    for row in range(16):
        for k in range(64):
            byte = int(memory[exchange("128B", 2048 + 64 + row // 8 * 1024 + row % 8 * 128 + k // 2)])
            assert codes[row, k] == (byte >> 4 if k % 2 else byte & 15)


@pytest.mark.parametrize(("form", "bits"), [("e2m1", 4), ("e2m3", 6), ("e3m2", 6)])
@pytest.mark.parametrize("mn_major", [False, True])
def test_padded_groups_of_16(form: str, bits: int, mn_major: bool) -> None:
    rng = np.random.default_rng(4)
    memory = rng.integers(0, 256, 1 << 14).astype(np.uint8)
    decoded, _ = descriptors.decode_sm100(sm100_descriptor(4096, 4096, 1024, "128B"))
    addresses = operands.operand_addresses(decoded, 32, 32, 1, 32, mn_major=mn_major)
    codes = operands.shared_codes(memory, addresses, FORMATS[form], 32, packed=False, mn_major=mn_major)
    for row in range(32):
        for k in range(32):
            outer, inner = (k, row) if mn_major else (row, k)
            first = exchange("128B", 4096 + outer // 8 * 1024 + outer % 8 * 128 + inner // 16 * 16)
            group = int.from_bytes(memory[first : first + 16].tobytes(), "little")
            assert codes[row, k] == group >> (bits * (inner % 16)) & ((1 << bits) - 1)


def test_k96_continues_in_the_next_buffer() -> None:
    rng = np.random.default_rng(5)
    memory = rng.integers(0, 256, 1 << 15).astype(np.uint8)
    buffers = (4096, 12288)
    start = 96  # 48 bytes from here: 32 in this buffer, 16 in the next
    decoded, problems = descriptors.decode_sm100(
        sm100_descriptor(buffers[0] + start, buffers[1], 1024, "128B", absolute=True)
    )
    assert not problems
    assert not descriptors.layout_problems(decoded, mn_major=False, step_bytes=48)
    addresses = operands.operand_addresses(decoded, 16, 96, 1, 48, mn_major=False)
    codes = operands.shared_codes(memory, addresses, FORMATS["e2m1"], 16, packed=True, mn_major=False)
    for row in range(16):
        for k in range(96):
            along = start + k // 2
            place = buffers[along // 128] + row // 8 * 1024 + row % 8 * 128 + along % 128
            byte = int(memory[exchange("128B", place)])
            assert codes[row, k] == (byte >> 4 if k % 2 else byte & 15)


def test_layout_problems_say_what_is_wrong() -> None:
    over, _ = descriptors.decode_sm100(sm100_descriptor(1024 + 112, 0, 1024, "128B"))
    assert "run over its end" in descriptors.layout_problems(over, mn_major=False)[0]
    wrong, _ = descriptors.decode_sm100(sm100_descriptor(1024, 0, 1024, "128B with 32B atom"))
    assert "only for MN-major" in descriptors.layout_problems(wrong, mn_major=False)[0]
    absolute, _ = descriptors.decode_sm100(sm100_descriptor(1024, 2048, 1024, "128B", absolute=True))
    assert "bit 52" in descriptors.layout_problems(absolute, mn_major=False)[0]
    assert not descriptors.layout_problems(absolute, mn_major=False, step_bytes=48)
    inside, _ = descriptors.decode_sm100(sm100_descriptor(1024 + 32, 0, 1024, "128B"))
    assert "MN group" in descriptors.layout_problems(inside, mn_major=True)[0]
    late, _ = descriptors.decode_sm100(sm100_descriptor(1024 + 256, 0, 1024, "128B"))
    assert "row 2" in str(descriptors.phase_warning(late))
    assert descriptors.phase_warning(over) is None


def test_containers_of_tensor_memory() -> None:
    rng = np.random.default_rng(6)
    words = rng.integers(0, 1 << 32, (4, 8), dtype=np.uint32)
    data = words.view(np.uint8)
    for name, expected in (("e2m1", data >> 2 & 15), ("e2m3", data & 63), ("e3m2", data & 63), ("e4m3", data)):
        assert np.array_equal(operands.tensor_memory_codes(words, FORMATS[name], packed=False), expected)
    assert np.array_equal(operands.tensor_memory_codes(words, FORMATS["f16"], packed=False), words.view(np.uint16))
    packed = operands.tensor_memory_codes(words, FORMATS["e2m1"], packed=True)
    for lane, k in ((0, 0), (2, 17), (3, 63)):
        assert packed[lane, k] == int(words[lane, k // 8]) >> (4 * (k % 8)) & 15
    assert Operand(FORMATS["e2m1"], packed).halves().shape == (4, 64)
