"""The instruction descriptor: values that public kernels use, and every way of being wrong."""

from __future__ import annotations

import pytest

from megamoe_jit.emulator.engines import instruction_descriptors as idescs
from megamoe_jit.emulator.engines.instruction_descriptors import MmaKind

READY = [
    (0x08400480, "mxf4nvf4", 128, 256, 64, "ue4m3", 0, 0),
    (0x08200480, "mxf4nvf4", 128, 128, 64, "ue4m3", 0, 0),
    (0x10400480, "mxf4nvf4", 256, 256, 64, "ue4m3", 0, 0),
    (0x88400480, "mxf4nvf4", 128, 256, 96, "ue4m3", 0, 0),
    (0x08C00480, "mxf4", 128, 256, 64, "ue8m0", 0, 0),
    (0x48C004A0, "mxf4", 128, 256, 64, "ue8m0", 2, 2),
    (0x08C00000, "mxf8f6f4", 128, 256, 32, "ue8m0", 0, 0),
    (0x68C00030, "mxf8f6f4", 128, 256, 32, "ue8m0", 3, 3),
]


@pytest.mark.parametrize(("raw", "kind", "m", "n", "k", "scale", "sfa", "sfb"), READY)
def test_ready_values(raw: int, kind: str, m: int, n: int, k: int, scale: str, sfa: int, sfb: int) -> None:
    decoded, problems = idescs.decode(raw, MmaKind(kind))
    assert problems == []
    assert decoded is not None
    assert (decoded.m, decoded.n, decoded.k) == (m, n, k)
    assert decoded.scale_format is not None
    assert (decoded.scale_format.name, decoded.sfa_id, decoded.sfb_id) == (scale, sfa, sfb)
    assert decoded.d_type == "f32"
    scales = {"mxf8f6f4": 1, "mxf4": 2, "mxf4nvf4": 4}[kind] if k != 96 else 6
    group = 2 if m == 256 else 1
    assert idescs.shape_problems(decoded, cta_group=group, ws=False, scales=scales, target="sm_103a") == []


def test_mixed_narrow_formats() -> None:
    decoded, problems = idescs.decode(0x08C01400, MmaKind.MXF8F6F4)
    assert not problems
    assert decoded is not None
    assert decoded.a_format is not None
    assert decoded.b_format is not None
    assert (decoded.a_format.name, decoded.b_format.name) == ("e4m3", "e2m1")


def dense(a: int, b: int, d: int, m: int, n: int, **bits: int) -> int:
    raw = d << 4 | a << 7 | b << 10 | (n >> 3) << 17 | (m >> 4) << 24
    for name, value in bits.items():
        raw |= value << int(name.removeprefix("bit"))
    return raw


def test_dense_fields() -> None:
    decoded, problems = idescs.decode(dense(1, 0, 1, 128, 64, bit13=1, bit16=1), MmaKind.F16)
    assert not problems
    assert decoded is not None
    assert decoded.a_format is not None
    assert decoded.b_format is not None
    assert (decoded.a_format.name, decoded.b_format.name, decoded.d_type) == ("bf16", "f16", "f32")
    assert (decoded.negate_a, decoded.negate_b, decoded.transpose_a, decoded.transpose_b) == (True, False, False, True)
    assert (decoded.m, decoded.n, decoded.k, decoded.element_bytes, decoded.step_bytes) == (128, 64, 16, 2, 32)
    decoded, problems = idescs.decode(dense(1, 0, 2, 64, 32, bit3=1), MmaKind.I8)
    assert not problems
    assert decoded is not None
    assert (decoded.a_signed, decoded.b_signed, decoded.saturate, decoded.d_type) == (True, False, True, "s32")


@pytest.mark.parametrize(
    ("raw", "kind", "words"),
    [
        (0x08400480 | 4 << 7, "mxf4nvf4", "A type (bits 9:7) is 5"),
        (0x08C01400, "mxf4", "A type (bits 9:7) is 0"),
        (0x08400480 | 1 << 12, "mxf4nvf4", "bits 12:12"),
        (0x08400480 | 1 << 15, "mxf4nvf4", "transposes"),
        (0x08400480, "mxf4", "scale type (bits 23:23)"),
        (0x08400000, "mxf8f6f4", "scale type (bits 23:23)"),
        (0x08C00000 | 1 << 31, "mxf8f6f4", "bits 31:31"),
        (0x08C00000 | 1 << 24, "mxf8f6f4", "bits 26:24"),
        (0x08C00000 | 1 << 2, "mxf8f6f4", "sparsity (bit 2)"),
        (dense(2, 0, 1, 128, 64), "f16", "A type (bits 9:7) is 2"),
        (dense(2, 2, 0, 128, 64), "tf32", "D type (bits 5:4) is 0"),
        (dense(0, 0, 1, 128, 64, bit3=1), "f16", "saturate"),
        (dense(0, 0, 2, 128, 64, bit13=1), "i8", "negate"),
        (dense(0, 0, 1, 128, 64, bit23=1), "f16", "bits 23:23"),
    ],
)
def test_wrong_fields_are_named(raw: int, kind: str, words: str) -> None:
    _, problems = idescs.decode(raw, MmaKind(kind))
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("raw", "kind", "group", "ws", "scales", "words"),
    [
        (dense(0, 0, 1, 64, 12 * 8, bit0=0), "f16", 1, False, 0, None),
        (dense(0, 0, 1, 256, 64), "f16", 1, False, 0, "M is 256"),
        (dense(0, 0, 1, 64, 64), "f16", 2, False, 0, "M is 64"),
        (dense(0, 0, 1, 128, 24), "f16", 2, False, 0, "N is 24"),
        (dense(0, 0, 1, 32, 64), "f16", 1, True, 0, None),
        (dense(0, 0, 1, 32, 32), "f16", 1, True, 0, "N is 32"),
        (dense(0, 0, 1, 64, 64, bit30=2), "f16", 1, True, 0, None),
        (dense(0, 0, 1, 64, 64, bit30=2), "f16", 1, False, 0, "bits 31:30"),
        (dense(0, 0, 1, 128, 24, bit16=1), "f8f6f4", 1, False, 0, "N is 24"),
        (dense(0, 0, 1, 128, 24), "f8f6f4", 1, False, 0, None),
        (dense(1, 1, 2, 128, 40), "i8", 1, False, 0, "N is 40"),
        (dense(1, 1, 2, 128, 24), "i8", 1, False, 0, None),
        (0x08400480 | 1 << 4, "mxf4nvf4", 1, False, 4, "scale factor B id is 1"),
        (0x08C00480 | 1 << 29, "mxf4", 1, False, 2, "scale factor A id is 1"),
        (0x10400480, "mxf4nvf4", 1, False, 4, "M is 256"),
        (0x88400480, "mxf4nvf4", 1, False, 6, "K = 96"),
    ],
)
def test_shapes(raw: int, kind: str, group: int, ws: bool, scales: int, words: str | None) -> None:
    decoded, _ = idescs.decode(raw, MmaKind(kind))
    assert decoded is not None
    problems = idescs.shape_problems(decoded, cta_group=group, ws=ws, scales=scales, target="sm_100a")
    if words is None:
        assert problems == []
    else:
        assert any(words in problem for problem in problems), problems
