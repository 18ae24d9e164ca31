"""ldmatrix and stmatrix against the manual's fragments, element by element."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.memory.spaces import SHARED_WINDOW
from megamoe_jit.errors import EmulatorFault, UnsupportedError
from tests.emulator.isa.rig import Rig, shared


def rows_at(count: int, seed: int) -> list[int]:
    """Return scattered places for rows of 16 bytes."""
    return random.Random(seed).sample(range(2048, 32768, 16), count)


def registers(count: int) -> str:
    return "{" + ", ".join(f"%r{8 + i}" for i in range(count)) + "}"


def fill(rig: Rig, seed: int) -> Any:
    rig.cta.smem[:] = np.random.default_rng(seed).integers(0, 256, len(rig.cta.smem), dtype=np.uint8)
    return rig.cta.smem


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("space", [".shared", ".shared::cta", ""])
def test_ldmatrix_of_16_bits(count: int, trans: str, space: str) -> None:
    rig = Rig(
        f"ldmatrix.sync.aligned.m8n8.x{count}{trans}{space}.b16 {registers(count)}, [{'%r0' if space else '%d0'}]"
    )
    smem, rows = fill(rig, count), rows_at(32, count)
    rig.set(r0=rows, d0=SHARED_WINDOW + np.array(rows))
    rig.step(0)
    for matrix in range(count):
        got = rig.register(f"%r{8 + matrix}")
        for lane in range(32):
            for half in range(2):
                row, column = lane // 4, 2 * (lane % 4) + half
                if trans:
                    row, column = column, row
                at = rows[8 * matrix + row] + 2 * column
                assert int(got[lane]) >> 16 * half & 0xFFFF == int(smem[at]) | int(smem[at + 1]) << 8


def element(smem: Any, row: int, column: int, source: str) -> int:
    """Return element `column` of a row: a byte, or 4 or 6 packed bits."""
    bits = {"": 8, "b4x16_p64": 4, "b6x16_p32": 6}[source]
    whole = int.from_bytes(smem[row : row + 16].tobytes(), "little")
    return whole >> bits * column & (1 << bits) - 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("source", ["", "b4x16_p64", "b6x16_p32"])
def test_ldmatrix_of_16_rows_of_bytes(count: int, source: str) -> None:
    """As measured on sm_120: lane L has rows 4 * (L % 4).. of columns L / 4 and L / 4 + 8."""
    kind = f"b8x16.{source}" if source else "b8"
    rig = Rig(f"ldmatrix.sync.aligned.m16n16.x{count}.trans.shared.{kind} {registers(2 * count)}, [%r0]")
    smem, rows = fill(rig, count), rows_at(32, count)
    rig.set(r0=rows)
    rig.step(0)
    for register in range(2 * count):
        got = rig.register(f"%r{8 + register}")
        for lane in range(32):
            for j in range(4):
                row, column = rows[16 * (register // 2) + 4 * (lane % 4) + j], lane // 4 + 8 * (register % 2)
                assert int(got[lane]) >> 8 * j & 0xFF == element(smem, row, column, source)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("source", ["b4x16_p64", "b6x16_p32"])
def test_ldmatrix_of_packed_rows(count: int, source: str) -> None:
    rig = Rig(f"ldmatrix.sync.aligned.m8n16.x{count}.shared.b8x16.{source} {registers(count)}, [%r0]")
    smem, rows = fill(rig, count), rows_at(32, count)
    rig.set(r0=rows)
    rig.step(0)
    for matrix in range(count):
        got = rig.register(f"%r{8 + matrix}")
        for lane in range(32):
            for j in range(4):
                value = element(smem, rows[8 * matrix + lane // 4], 4 * (lane % 4) + j, source)
                assert int(got[lane]) >> 8 * j & 0xFF == value


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_stmatrix_of_16_bits(count: int, trans: str) -> None:
    rig = Rig(f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r0], {registers(count)}")
    smem, rows = fill(rig, count), rows_at(32, count)
    want = smem.copy()
    rng = np.random.default_rng(count)
    rig.set(r0=rows)
    for matrix in range(count):
        values = rng.integers(0, 1 << 32, 32, dtype=np.uint32)
        rig.register(f"%r{8 + matrix}")[:] = values
        for lane in range(32):
            for half in range(2):
                row, column = lane // 4, 2 * (lane % 4) + half
                if trans:
                    row, column = column, row
                at = rows[8 * matrix + row] + 2 * column
                want[at], want[at + 1] = (int(values[lane]) >> 16 * half + 8 * byte & 0xFF for byte in range(2))
    rig.step(0)
    assert np.array_equal(smem, want)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix_of_bytes(count: int) -> None:
    """Fragments are those of a 16x8 accumulator: e0 e1 in row lane / 4, e2 e3 eight rows below."""
    rig = Rig(f"stmatrix.sync.aligned.m16n8.x{count}.trans.shared.b8 [%r0], {registers(count)}")
    smem, rows = fill(rig, count), rows_at(32, count)
    want = smem.copy()
    rng = np.random.default_rng(count)
    rig.set(r0=rows)
    for matrix in range(count):
        values = rng.integers(0, 1 << 32, 32, dtype=np.uint32)
        rig.register(f"%r{8 + matrix}")[:] = values
        for lane in range(32):
            for e in range(4):
                row, column = lane // 4 + 8 * (e // 2), 2 * (lane % 4) + e % 2
                want[rows[8 * matrix + column] + row] = int(values[lane]) >> 8 * e & 0xFF
    rig.step(0)
    assert np.array_equal(smem, want)


def test_what_is_stored_loads_again() -> None:
    for trans in ("", ".trans"):
        rig = Rig(
            f"stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r0], {registers(4)}",
            f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r0]",
        )
        rig.set(r0=rows_at(32, 1), **{f"r{8 + i}": np.arange(32) * 7919 + i for i in range(4)})
        rig.step(0)
        rig.step(1)
        for i in range(4):
            assert np.array_equal(rig.register(f"%r{8 + i}"), rig.register(f"%r{20 + i}"))


@pytest.mark.parametrize(
    "text",
    [
        "ldmatrix.sync.aligned.m16n16.x4.trans.shared.b8 {%r0, %r1, %r2, %r3}, [%r9]",
        "ldmatrix.sync.aligned.m16n16.x1.shared.b8 {%r0, %r1}, [%r9]",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b8 {%r0}, [%r9]",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8 {%r0}, [%r9]",
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r0}, [%r9]",
        "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8x16.b4x16_p64 {%r0}, [%r9]",
        "stmatrix.sync.aligned.m16n8.x1.shared.b8 [%r9], {%r0}",
        "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r9], {%r0}",
    ],
)
def test_forms_that_do_not_exist_fail_at_load_time(text: str) -> None:
    with pytest.raises(UnsupportedError):
        Rig(text).step(0)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [(2056, "is no multiple of 16"), (64, "shared address 0x40"), (shared(2048, 1), "may only name its own")],
)
def test_wrong_rows_are_reported(row: int, sentence: str) -> None:
    rig = Rig("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r0]", cluster=2)
    rig.set(r0=[*[2048] * 7, row, *[0] * 24])  # the addresses of lanes 8.. are not used
    with pytest.raises(EmulatorFault) as caught:
        rig.step(0)
    assert sentence in str(caught.value)
