"""Kernel parameters: PTX signatures, what does not fit them in words, and packing held to C's struct layout."""

from __future__ import annotations

import ctypes
import re
import struct
from functools import partial
from typing import Any

import pytest
import torch
from cuda.bindings import nvrtc
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit.errors import ArgumentError
from megamoe_jit.runtime.driver import Driver
from megamoe_jit.runtime.launch import (
    KernelSignature,
    Param,
    ParamBuffer,
    ParamKind,
    PtxParam,
    check_params,
    f32,
    i32,
    i64,
    parse_signature,
    pointer,
    struct_bytes,
    tensor_map,
    u32,
    u64,
)
from megamoe_jit.runtime.tensormap import TensorMap, TensorMapSpec, TmaElement
from tests.runtime.fake_driver import MANY_PARAMS_PTX, FakeDriver

SOURCE = """
struct alignas(64) Map { unsigned char bytes[128]; };
struct Args { unsigned long long pointers[3]; unsigned num_tokens; float scale; };
extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(2, 1, 1) fused(
    const float* __restrict__ x, int n, unsigned u, long long l, unsigned long long ul, float f,
    const __grid_constant__ Map map, const __grid_constant__ Args args) {
    ((float*)args.pointers[0])[n] = x[u] + f + l + ul + map.bytes[0] + args.scale;
}
extern "C" __global__ void fused_too(__nv_bool unused) {}
extern "C" __global__ void nothing() {}
"""
TENSOR_MAP = TensorMap(
    spec=TensorMapSpec(element=TmaElement.U8, dims=(64, 64), byte_strides=(64,), box=(16, 16)), address=0x10000
)


@pytest.fixture(scope="module")
def compiled() -> str:
    _, program = nvrtc.nvrtcCreateProgram(SOURCE.replace("__nv_bool", "bool").encode(), b"kernels.cu", 0, [], [])
    (status,) = nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=sm_90a"])
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = bytearray(size)
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    return ptx.rstrip(b"\0").decode()


def test_nvrtc_signatures_are_read(compiled: str) -> None:
    signature = parse_signature(compiled, "fused")
    assert [(param.type, param.size, param.alignment) for param in signature.params] == [
        ("u64", 8, 8),
        ("u32", 4, 4),
        ("u32", 4, 4),
        ("u64", 8, 8),
        ("u64", 8, 8),
        ("f32", 4, 4),
        ("b8", 128, 64),
        ("b8", 32, 8),
    ]
    assert signature.offsets == (0, 8, 12, 16, 24, 32, 64, 192)
    assert signature.param_bytes == 224
    assert (signature.max_threads, signature.required_cluster) == (384, (2, 1, 1))
    assert parse_signature(compiled, "fused_too").params[0].size == 1
    assert parse_signature(compiled, "nothing") == KernelSignature(name="nothing", params=())


HEADERS = [
    (".entry k(\n\t.param .u64 .ptr .global .align 16 k_param_0\n)\n{", [("u64", 8, 8)]),
    (
        ".entry k(\n\t.param .u64 .ptr .align 1 k_param_0,\n\t.param .b32 k_param_1\n)\n{",
        [("u64", 8, 8), ("b32", 4, 4)],
    ),
    (".entry k ( .param .u64 .ptr k_param_0, .param .s32 k$1 )\n{", [("u64", 8, 8), ("s32", 4, 4)]),
    (
        ".entry k(\n\t.param .u32 a, // .param .u64 not_me\n\t.param .f64 b /* .param .u8 c */\n)\n{",
        [("u32", 4, 4), ("f64", 8, 8)],
    ),
    (".entry k(\n\t.param .align 4 .b8 a[12],\n\t.param .b8 b[3]\n)\n.maxntid 128\n{", [("b8", 12, 4), ("b8", 3, 1)]),
    (".entry kk(.param .u32 a)\n{ ret; }\n.visible .entry k(.param .u8 a)\n{", [("u8", 1, 1)]),
    (".entry k\n{", []),
]


@pytest.mark.parametrize(("ptx", "params"), HEADERS)
def test_every_spelling_of_a_parameter_is_read(ptx: str, params: list[tuple[str, int, int]]) -> None:
    assert [(p.type, p.size, p.alignment) for p in parse_signature(ptx, "k").params] == params


def test_launch_directives_are_read() -> None:
    assert parse_signature(MANY_PARAMS_PTX, "scale").max_threads == 384
    paired = parse_signature(MANY_PARAMS_PTX, "paired")
    assert (paired.required_block, paired.required_cluster, paired.max_threads) == ((128, 1, 1), (2, 1, 1), None)
    assert parse_signature(".entry k()\n.maxntid 32, 4, 2\n{", "k").max_threads == 256
    assert parse_signature(".entry k()\n.reqntid 96\n{", "k").required_block == (96, 1, 1)


def test_a_kernel_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(
        ArgumentError, match="kernel_name='scal' is no entry of the PTX, which has: scale, empty, paired"
    ):
        parse_signature(MANY_PARAMS_PTX, "scal")
    with pytest.raises(ArgumentError, match="which has: none"):
        parse_signature("", "scale")


BAD_PARAMS: list[tuple[Any, str]] = [
    (lambda: u32("n", -1), "parameter 'n' is -1, which does not fit a u32"),
    (lambda: u32("n", 2**32), "parameter 'n' is 4294967296, which does not fit a u32"),
    (lambda: i32("n", 2**31), "parameter 'n' is 2147483648, which does not fit a i32"),
    (lambda: i32("n", -(2**31) - 1), "which does not fit a i32"),
    (lambda: u64("n", 2**64), "which does not fit a u64"),
    (lambda: u64("n", -1), "which does not fit a u64"),
    (lambda: i64("n", 2**63), "which does not fit a i64"),
    (lambda: f32("n", 1e40), "parameter 'n' is 1e+40, which does not fit a f32"),
    (lambda: pointer("n", -8), "parameter 'n' is -8, which does not fit a pointer"),
    (lambda: u32("n", 1.5), "parameter 'n' is a float, and a u32 takes int"),
    (lambda: u32("n", torch.tensor(3)), "parameter 'n' is a Tensor, and a u32 takes int"),
    (lambda: f32("n", torch.tensor(3.0)), "parameter 'n' is a Tensor, and a f32 takes int or float"),
    (lambda: pointer("n", 1.0), "parameter 'n' is a float, and a pointer takes int or Tensor"),
    (lambda: pointer("n", None), "parameter 'n' is a NoneType, and a pointer takes int or Tensor"),
    (lambda: tensor_map("n", 5), "parameter 'n' is a int, and a tensor map takes TensorMap or bytes"),
    (lambda: tensor_map("n", b"short"), "parameter 'n' has 5 bytes, and a tensor map has 128"),
    (lambda: struct_bytes("n", bytearray(8)), "parameter 'n' is a bytearray, and a struct takes bytes"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD_PARAMS)
def test_a_value_that_does_not_fit_its_kind_is_refused_in_words(make: Any, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        make()


def scale_params() -> list[Param]:
    """Return parameters that fit the kernel `scale`."""
    return [
        pointer("x", 0x7F0000000000),
        u32("n", 7),
        f32("factor", 1.5),
        tensor_map("map", TENSOR_MAP),
        struct_bytes("args", bytes(range(24))),
    ]


MISFITS: list[tuple[int, Param, str]] = [
    (0, u32("x", 1), "parameter 0 ('x') of scale is a u32 of 4 bytes, and the kernel declares .u64"),
    (0, f32("x", 1), "parameter 0 ('x') of scale is a f32 of 4 bytes, and the kernel declares .u64"),
    (1, pointer("n", 1), "parameter 1 ('n') of scale is a pointer of 8 bytes, and the kernel declares .u32"),
    (1, f32("n", 1), "parameter 1 ('n') of scale is a f32 of 4 bytes, and the kernel declares .u32"),
    (2, u32("f", 1), "parameter 2 ('f') of scale is a u32 of 4 bytes, and the kernel declares .f32"),
    (2, i32("f", 1), "parameter 2 ('f') of scale is a i32 of 4 bytes, and the kernel declares .f32"),
    (
        3,
        struct_bytes("map", bytes(64)),
        "parameter 3 ('map') of scale is a struct of 64 bytes, and the kernel declares .b8[128]",
    ),
    (3, pointer("map", 1), "is a pointer of 8 bytes, and the kernel declares .b8[128] aligned to 64"),
    (
        4,
        tensor_map("args", TENSOR_MAP),
        "parameter 4 ('args') of scale is a tensor map of 128 bytes, and the kernel declares .b8[24] aligned to 8",
    ),
    (4, struct_bytes("args", bytes(32)), "is a struct of 32 bytes, and the kernel declares .b8[24] aligned to 8"),
    (4, u64("args", 1), "is a u64 of 8 bytes, and the kernel declares .b8[24] aligned to 8"),
    (1, struct_bytes("n", bytes(4)), "is a struct of 4 bytes, and the kernel declares .u32"),
]


@pytest.mark.parametrize(("index", "param", "sentence"), MISFITS)
def test_a_parameter_of_another_kind_is_refused_in_words(index: int, param: Param, sentence: str) -> None:
    signature = parse_signature(MANY_PARAMS_PTX, "scale")
    params = scale_params()
    check_params(signature, params)
    params[index] = param
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        check_params(signature, params)


def test_the_number_of_parameters_is_checked() -> None:
    signature = parse_signature(MANY_PARAMS_PTX, "scale")
    with pytest.raises(
        ArgumentError, match=re.escape("scale takes 5 parameters, and the plan has 4 (x, n, factor, map)")
    ):
        check_params(signature, scale_params()[:4])
    with pytest.raises(ArgumentError, match=re.escape("empty takes 0 parameters, and the plan has 1 (n)")):
        check_params(parse_signature(MANY_PARAMS_PTX, "empty"), [u32("n", 1)])


def test_a_tensor_map_needs_an_aligned_parameter() -> None:
    signature = parse_signature(".entry k(.param .align 16 .b8 a[128])\n{", "k")
    with pytest.raises(ArgumentError, match=r"must be aligned to 64 bytes, and the kernel declares .* use alignas"):
        check_params(signature, [tensor_map("map", TENSOR_MAP)])
    check_params(signature, [struct_bytes("bytes", bytes(128))])


def test_parameters_beyond_what_cuda_passes_are_refused() -> None:
    signature = parse_signature(".entry k(.param .align 8 .b8 a[32768])\n{", "k")
    with pytest.raises(ArgumentError, match="k takes 32768 bytes of parameters, and CUDA passes at most 32764"):
        check_params(signature, [struct_bytes("args", bytes(32768))])


C_TYPES = {
    ParamKind.POINTER: (ctypes.c_uint64, "u64"),
    ParamKind.U32: (ctypes.c_uint32, "u32"),
    ParamKind.I32: (ctypes.c_int32, "u32"),
    ParamKind.U64: (ctypes.c_uint64, "u64"),
    ParamKind.I64: (ctypes.c_int64, "b64"),
    ParamKind.F32: (ctypes.c_float, "f32"),
}
VALUES = {
    ParamKind.POINTER: st.integers(0, 2**64 - 1),
    ParamKind.U32: st.integers(0, 2**32 - 1),
    ParamKind.I32: st.integers(-(2**31), 2**31 - 1),
    ParamKind.U64: st.integers(0, 2**64 - 1),
    ParamKind.I64: st.integers(-(2**63), 2**63 - 1),
    ParamKind.F32: st.floats(width=32, allow_nan=False),
}
NUMBERS = st.sampled_from(list(C_TYPES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind], VALUES[kind]))


def pointers_of(buffer: ParamBuffer, count: int) -> list[int]:
    """Return the addresses in the array that the driver is given."""
    return [address or 0 for address in (ctypes.c_void_p * count).from_address(buffer.address)]


@given(st.lists(NUMBERS, min_size=1, max_size=12))
def test_packing_is_that_of_a_c_struct(numbers: list[tuple[ParamKind, Any, Any]]) -> None:
    fields = [(f"p{i}", C_TYPES[kind][0]) for i, (kind, _, _) in enumerate(numbers)]
    c_struct = type("CStruct", (ctypes.Structure,), {"_fields_": fields})
    signature = KernelSignature(
        name="k",
        params=tuple(
            PtxParam(name=name, type=C_TYPES[kind][1], size=ctypes.sizeof(c_type), alignment=ctypes.alignment(c_type))
            for (name, c_type), (kind, _, _) in zip(fields, numbers, strict=True)
        ),
    )
    buffer = ParamBuffer(signature, [Param(name=f"p{i}", kind=kind, value=v) for i, (kind, v, _) in enumerate(numbers)])
    addresses = pointers_of(buffer, len(numbers))
    assert addresses[0] % 64 == 0
    assert [a - addresses[0] for a in addresses] == [getattr(c_struct, name).offset for name, _ in fields]
    expected = c_struct(*(value for _, value, _ in numbers))
    for version in (0, 1):
        for (name, c_type), address, index in zip(fields, addresses, range(len(numbers)), strict=True):
            size = ctypes.sizeof(c_type)
            offset = getattr(c_struct, name).offset
            assert ctypes.string_at(address, size) == bytes(expected)[offset : offset + size]
            assert buffer.read(index) == ctypes.string_at(address, size)
        if version == 0:
            for index, (_, _, value) in enumerate(numbers):
                buffer.update(index, value)
            expected = c_struct(*(value for _, _, value in numbers))


def scale_buffer() -> ParamBuffer:
    """Return packed parameters of the kernel `scale`; its tensor map is 128 bytes of 1."""
    return ParamBuffer(
        parse_signature(MANY_PARAMS_PTX, "scale"),
        scale_params(),
        partial(TensorMap.encode, driver=Driver(FakeDriver())),
    )


def test_tensors_maps_and_structs_are_packed_and_updated() -> None:
    buffer = scale_buffer()
    assert [buffer.read(index) for index in range(5)] == [
        struct.pack("<Q", 0x7F0000000000),
        struct.pack("<I", 7),
        struct.pack("<f", 1.5),
        bytes([1] * 128),
        bytes(range(24)),
    ]
    tensor = torch.arange(4, dtype=torch.int32)
    counter = torch.tensor([5])  # an integer of one element: its address is wanted, not its value
    for value in (tensor, counter, torch.nn.Parameter(torch.zeros(3))):
        buffer.update(0, value)
        assert buffer.read(0) == struct.pack("<Q", value.data_ptr())
    buffer.update(2, 3)
    assert buffer.read(2) == struct.pack("<f", 3.0)
    buffer.update(3, TensorMap(spec=TENSOR_MAP.spec, address=0x20000))
    assert buffer.read(3) == bytes([2] * 128)
    buffer.update(4, b"x" * 24)
    buffer.patch(4, 8, b"yyyy")
    assert buffer.read(4) == b"x" * 8 + b"yyyy" + b"x" * 12
    assert buffer.index_of("map") == 3
    pointers = pointers_of(buffer, 5)
    assert ctypes.string_at(pointers[4], 24) == buffer.read(4)


BAD_UPDATES: list[tuple[Any, str]] = [
    (lambda b: b.update(1, 2**32), "parameter 'n' is 4294967296, which does not fit a u32"),
    (lambda b: b.update(1, 1.0), "parameter 'n' is a float, and a u32 takes int"),
    (lambda b: b.update(1, torch.tensor(1)), "parameter 'n' is a Tensor, and a u32 takes int"),
    (lambda b: b.update(0, 1.0), "parameter 'x' is a float, and a pointer takes int or Tensor"),
    (lambda b: b.update(0, "x"), "parameter 'x' is a str, and a pointer takes int or Tensor"),
    (lambda b: b.update(2, 1e39), "parameter 'factor' is 1e+39, which does not fit a f32"),
    (lambda b: b.update(3, b"short"), "parameter 'map' has 5 bytes, and a tensor map has 128"),
    (lambda b: b.update(4, b"short"), "parameter 'args' has 5 bytes, and the kernel declares 24"),
    (lambda b: b.patch(4, 20, b"12345"), "bytes 20 to 25 of parameter 'args', a struct of 24 bytes, cannot be patched"),
    (lambda b: b.patch(4, -1, b"1"), "bytes -1 to 0 of parameter 'args'"),
    (lambda b: b.patch(3, 0, b"1"), "bytes 0 to 1 of parameter 'map', a tensor map of 128 bytes, cannot be patched"),
    (lambda b: b.index_of("scale"), "name='scale' is no parameter of this launch, which has x, n, factor, map, args"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD_UPDATES)
def test_a_bad_update_is_refused_in_words_and_changes_nothing(change: Any, sentence: str) -> None:
    buffer = scale_buffer()
    before = [buffer.read(index) for index in range(5)]
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        change(buffer)
    assert [buffer.read(index) for index in range(5)] == before
