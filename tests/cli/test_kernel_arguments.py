from __future__ import annotations

import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from megamoe_jit.cli.kernel_arguments import check_arguments, parse_argument, parse_arguments, save_array
from megamoe_jit.emulator.parser import Param
from megamoe_jit.errors import ArgumentError


def _param(kind: str, size: int, name: str = "p") -> Param:
    return Param(name=name, type=kind, size=size, align=8, offset=0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-1", -1),
        ("0x10", 16),
        ("007", 7),
        ("1.5", 1.5),
        ("-.5e3", -500.0),
        ("1e3", 1000.0),
        ("inf", float("inf")),
        ("null", 0),
        ("f32:1.5", struct.pack("<f", 1.5)),
        ("f64:-2", struct.pack("<d", -2)),
        ("f16:0.5", struct.pack("<e", 0.5)),
        ("bf16:1.0", b"\x80\x3f"),
        ("u8:255", b"\xff"),
        ("s16:-2", b"\xfe\xff"),
        ("u64:0xff", struct.pack("<Q", 255)),
        ("b32:-1", b"\xff\xff\xff\xff"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    argument = parse_argument(text)
    assert argument.array is None
    assert argument.scalar == value
    assert type(argument.scalar) is type(value)
    assert parse_argument(f"name={text}").name == "name"
    assert parse_argument(f"name={text}").scalar == value


_BAD = """x x= =7 7x
f33:1 f32:x u8:256 s8:-129 u32:1.5 zeros zeros:float32 zeros:nope:4 zeros:float32: zeros:float32:4,4
ones:float32:99999999999x99 zeros:O0:3 f16:1e9 0x --5"""


@pytest.mark.parametrize("text", ["", "a b", *_BAD.split()])
def test_what_is_no_argument(text: str) -> None:
    with pytest.raises(ArgumentError):
        parse_argument(text)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint8", "float64", "bfloat16", "float8_e4m3fn"])
def test_fills(dtype: str) -> None:
    known = np.dtype(getattr(ml_dtypes, dtype, dtype))
    made = {}
    for kind in ("zeros", "ones", "arange", "normal", "uniform", "integers"):
        array = parse_argument(f"a={kind}:{dtype}:4x3", seed=5).array
        assert array is not None
        assert (array.dtype, array.shape, array.flags.c_contiguous) == (known, (4, 3), True)
        made[kind] = array.astype(np.float64)
    assert (made["zeros"] == 0).all()
    assert (made["ones"] == 1).all()
    assert (made["arange"].reshape(-1) == np.arange(12)).all()
    assert made["uniform"].min() >= 0
    assert made["uniform"].max() <= 1


def test_random_fills_follow_seed_and_position() -> None:
    texts = ["a=normal:float32:50", "b=normal:float32:50"]
    first, again, other = (parse_arguments(texts, seed=seed) for seed in (1, 1, 7))
    for x, y, z in zip(first, again, other, strict=True):
        assert x.array is not None
        assert y.array is not None
        assert z.array is not None
        assert (x.array == y.array).all()
        assert (x.array != z.array).any()
    assert (first[0].array != first[1].array).any()


def test_short_names_of_types() -> None:
    assert parse_argument("zeros:bf16:2").array.dtype == ml_dtypes.bfloat16
    assert parse_argument("zeros:fp8:2").array.dtype == ml_dtypes.float8_e4m3fn


def test_files(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.int16).reshape(3, 4).T
    np.save(tmp_path / "in.npy", values)
    argument = parse_argument(str(tmp_path / "in.npy"))
    assert argument.name == "in"
    assert argument.array is not None
    assert argument.array.flags.c_contiguous
    assert (argument.array == values).all()
    assert parse_argument(f"w={tmp_path / 'in.npy'}").name == "w"
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    for name in ("bad.npy", "absent.npy"):
        with pytest.raises(ArgumentError, match="cannot be read as an array"):
            parse_argument(str(tmp_path / name))


def test_arrays_that_numpy_cannot_name_are_saved_as_bits(tmp_path: Path) -> None:
    values = np.array([1.0, -2.0], ml_dtypes.bfloat16)
    save_array(values, tmp_path / "new" / "x.npy")
    assert (np.load(tmp_path / "new" / "x.npy").view(ml_dtypes.bfloat16) == values).all()
    save_array(np.arange(3.0), tmp_path / "y.npy")
    assert np.load(tmp_path / "y.npy").dtype == np.float64


def test_names_are_given_once() -> None:
    with pytest.raises(ArgumentError, match="two arguments are called 'x'"):
        parse_arguments(["x=1", "2", "x=3"], seed=0)


@pytest.mark.parametrize(
    ("texts", "params", "message"),
    [
        (["1"], (), "has 0 parameters, and 1 --arg are given. It takes, in order: none"),
        ([], (_param("u64", 8), _param("b8", 128, "map")), r"p \(pointer or u64\), map \(128 bytes by value\)"),
        (["zeros:uint8:4"], (_param("u32", 4),), "is u32, and an array is given"),
        (["zeros:uint8:4"], (_param("b8", 16),), "16 bytes by value, and the array has 4 bytes"),
        (["f64:1"], (_param("f32", 4),), "is f32, and a value of 8 bytes"),
    ],
)
def test_arguments_must_fit_the_parameters(texts: list[str], params: tuple[Param, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_arguments(parse_arguments(texts, seed=0), params, "k")


def test_arguments_that_fit() -> None:
    params = (_param("u64", 8), _param("b8", 16), _param("f32", 4), _param("u8", 1), _param("u64", 8))
    check_arguments(parse_arguments(["zeros:int8:3", "zeros:int32:4", "2", "u8:1", "null"], seed=0), params, "k")
