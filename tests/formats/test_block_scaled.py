from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.block_scaled import (
    QuantFormat,
    QuantizedTensor,
    expand_sf,
    quantize_to_fp8,
    quantize_to_mxfp4,
    quantize_to_mxfp8,
    quantize_to_nvfp4,
    quantize_weight_to_nvfp4,
)
from megamoe_jit.formats.fp4 import pack_fp4, unpack_fp4

F32_SLACK = 1 + 2.0**-18
Quantize = Callable[[torch.Tensor], QuantizedTensor]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def heavy_tailed(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_t(2, shape).astype(np.float32))


def wide(*shape: int) -> torch.Tensor:
    """Rows from 2^-60 to 2^60, with values of very different sizes within a row."""
    rng = np.random.default_rng(1)
    scale = 2.0 ** rng.uniform(-60, 60, (*shape[:-1], 1)) * 2.0 ** rng.uniform(-24, 0, shape)
    return torch.from_numpy((rng.normal(size=shape) * scale).astype(np.float32))


def sparse(*shape: int) -> torch.Tensor:
    x = normal(*shape)
    x[x.abs() < 1.5] = 0
    x[..., : shape[-1] // 2] = 0
    return x


QUANTIZERS: dict[str, tuple[Quantize, Callable[[torch.Tensor, torch.Tensor, QuantizedTensor], torch.Tensor]]] = {}


def bounded_by(name: str, quantize: Quantize) -> Callable[[Any], Any]:
    def add(bound: Any) -> Any:
        QUANTIZERS[name] = (quantize, bound)
        return bound

    return add


@bounded_by("nvfp4 tensor", quantize_to_nvfp4)
@bounded_by("nvfp4 token", lambda x: quantize_to_nvfp4(x, global_scale="token"))
@bounded_by("nvfp4 weight", quantize_weight_to_nvfp4)
def nvfp4_bound(x: torch.Tensor, scale: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
    assert q.global_scale is not None
    g = q.global_scale.double().reshape(*q.global_scale.shape, *(1,) * (x.ndim - q.global_scale.ndim))
    return torch.maximum(torch.maximum(x.abs() / 5, scale / 4), 6 * 2.0**-10 * g)


@bounded_by("mxfp4", quantize_to_mxfp4)
def mxfp4_bound(x: torch.Tensor, scale: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
    return torch.maximum(x.abs() / 5, scale / 4)


@bounded_by("mxfp4 floor", lambda x: quantize_to_mxfp4(x, rounding="floor"))
def mxfp4_floor_bound(x: torch.Tensor, scale: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
    return torch.maximum(x.abs() / 4, scale / 4)


@bounded_by("mxfp8", quantize_to_mxfp8)
@bounded_by("fp8 token", quantize_to_fp8)
@bounded_by("fp8 block", lambda x: quantize_to_fp8(x, gran_k=128))
@bounded_by("fp8 512", lambda x: quantize_to_fp8(x, gran_k=512))
def fp8_bound(x: torch.Tensor, scale: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
    return torch.maximum(x.abs() / 17, scale * 2.0**-10)


@bounded_by("mxfp8 floor", lambda x: quantize_to_mxfp8(x, rounding="floor"))
def mxfp8_floor_bound(x: torch.Tensor, scale: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
    return torch.maximum(x.abs() / 8, scale * 2.0**-10)


@pytest.mark.parametrize("make", [normal, heavy_tailed, wide, sparse])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_stated_error_bound_holds(name: str, make: Callable[..., torch.Tensor]) -> None:
    quantize, bound = QUANTIZERS[name]
    x = make(4, 128, 512)
    q = quantize(x)
    assert q.shape == x.shape
    error = (q.dequantize(torch.float64) - x.double()).abs()
    limit = bound(x.double(), q.scales(torch.float64), q) * F32_SLACK
    assert bool((error <= limit).all()), f"worst {float((error / limit).max())}"


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_stated_error_bound_is_reached(name: str) -> None:
    quantize, bound = QUANTIZERS[name]
    x = normal(1024, 1024)
    q = quantize(x)
    error = (q.dequantize(torch.float64) - x.double()).abs()
    assert float((error / bound(x.double(), q.scales(torch.float64), q)).max()) > 0.98


def test_scales_stay_below_the_stated_share_of_the_block_maximum() -> None:
    x = normal(256, 512)
    amax16 = expand_sf(x.view(256, 32, 16).abs().amax(-1), 512, 16).double()
    amax32 = expand_sf(x.view(256, 16, 32).abs().amax(-1), 512, 32).double()
    assert bool((quantize_to_nvfp4(x).scales(torch.float64) <= 17 / 16 * amax16 / 6 * F32_SLACK).all())
    assert bool((quantize_to_mxfp4(x).scales(torch.float64) < amax32 / 3 * F32_SLACK).all())
    assert bool((quantize_to_mxfp4(x, rounding="floor").scales(torch.float64) <= amax32 / 4).all())
    assert bool((quantize_to_mxfp8(x).scales(torch.float64) < amax32 / 224 * F32_SLACK).all())


def blocks_of(x: np.ndarray, gran_k: int) -> np.ndarray:
    pad = -x.shape[-1] % gran_k
    return np.pad(x, ((0, 0), (0, pad))).reshape(x.shape[0], -1, gran_k)


def slow_nvfp4(x: np.ndarray, global_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    blocks, g = blocks_of(x, 16), global_scale.reshape(-1, 1)
    wanted = np.maximum(np.abs(blocks).max(-1) / (np.float32(6) * g), np.float32(2.0**-9))
    sf = np.minimum(wanted, np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
    ratio = blocks / (sf.astype(np.float32) * g)[..., None]
    return np.clip(ratio, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8), sf.view(np.uint8)


@pytest.mark.parametrize("make", [normal, heavy_tailed, wide, sparse])
@pytest.mark.parametrize("mode", ["tensor", "token", "given"])
@pytest.mark.parametrize("k", [512, 40])
def test_nvfp4_bits_are_those_of_the_docstring(make: Callable[..., torch.Tensor], mode: str, k: int) -> None:
    x = make(32, k)
    xn = x.numpy()
    if mode == "tensor":
        q = quantize_to_nvfp4(x)
        expected = np.maximum(np.abs(xn).max(), np.float32(1e-10)) / np.float32(2688)
    elif mode == "token":
        q = quantize_to_nvfp4(x, global_scale="token")
        expected = np.maximum(np.abs(xn).max(-1), np.float32(1e-10)) / np.float32(2688)
    else:
        expected = np.linspace(1e-3, 1e-2, 32, dtype=np.float32)
        q = quantize_to_nvfp4(x, global_scale=torch.from_numpy(expected))
    assert q.global_scale is not None
    np.testing.assert_array_equal(q.global_scale.numpy(), expected)
    codes, sf = slow_nvfp4(xn, np.broadcast_to(expected, 32))
    np.testing.assert_array_equal(q.sf.view(torch.uint8).numpy(), sf)
    np.testing.assert_array_equal(unpack_fp4(q.codes).numpy(), codes.reshape(32, -1)[:, :k])


@pytest.mark.parametrize("make", [normal, heavy_tailed, wide, sparse])
@pytest.mark.parametrize("rounding", ["ceil", "floor"])
@pytest.mark.parametrize(
    ("quantize", "largest", "exponent", "dtype"),
    [(quantize_to_mxfp4, 6, 2, ml_dtypes.float4_e2m1fn), (quantize_to_mxfp8, 448, 8, ml_dtypes.float8_e4m3fn)],
)
def test_mx_bits_are_those_of_the_docstring(
    make: Callable[..., torch.Tensor], rounding: Any, quantize: Any, largest: int, exponent: int, dtype: type
) -> None:
    x = make(32, 200)
    q = quantize(x, rounding=rounding)
    blocks = blocks_of(x.numpy(), 32)
    amax = np.maximum(np.abs(blocks).max(-1), np.float32(1e-10))
    if rounding == "ceil":
        power = np.ceil(np.log2((amax / np.float32(largest)).astype(np.float64)))
    else:
        power = np.floor(np.log2(amax.astype(np.float64))) - exponent
    np.testing.assert_array_equal(q.sf.view(torch.uint8).numpy(), power + 127)
    codes = (
        np.clip(blocks / (2.0 ** power[..., None]).astype(np.float32), -largest, largest).astype(dtype).view(np.uint8)
    )
    actual = unpack_fp4(q.codes) if q.format.is_fp4 else q.codes.view(torch.uint8)
    np.testing.assert_array_equal(actual.numpy(), codes.reshape(32, -1)[:, :200])


@pytest.mark.parametrize("make", [normal, heavy_tailed, wide, sparse])
@pytest.mark.parametrize("gran_k", [None, 128])
def test_fp8_bits_are_those_of_the_docstring(make: Callable[..., torch.Tensor], gran_k: int | None) -> None:
    x = make(32, 200)
    q = quantize_to_fp8(x, gran_k=gran_k)
    blocks = blocks_of(x.numpy(), gran_k or 200)
    s = np.maximum(np.abs(blocks).max(-1), np.float32(1e-10)) / np.float32(448)
    codes = np.clip(blocks * (np.float32(1) / s)[..., None], -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(q.sf.numpy(), s if gran_k else s[:, 0])
    np.testing.assert_array_equal(q.codes.view(torch.uint8).numpy(), codes.view(np.uint8).reshape(32, -1)[:, :200])


def test_fp8_multiplies_by_the_rounded_reciprocal_of_the_scale() -> None:
    """Rows whose scale is an odd number hold ties of x / s, which the rounded reciprocal decides otherwise."""
    values = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    ties = (values[1:] + values[:-1]) / 2
    odd = np.arange(1, 200, 2, dtype=np.float32)[:, None]
    x = np.concatenate([448 * odd, odd * ties], axis=1)
    product = (x * (np.float32(1) / odd)).astype(ml_dtypes.float8_e4m3fn)
    quotient = (x / odd).astype(ml_dtypes.float8_e4m3fn)
    assert (product != quotient).sum() > 100, "the two orders differ here"
    codes = quantize_to_fp8(torch.from_numpy(x)).codes.view(torch.uint8).numpy()
    np.testing.assert_array_equal(codes, product.view(np.uint8))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_dequantising_is_code_times_scale_times_global_scale(name: str) -> None:
    q = QUANTIZERS[name][0](normal(3, 8, 96))
    codes = unpack_fp4(q.codes).numpy().view(ml_dtypes.float4_e2m1fn) if q.format.is_fp4 else q.codes.float().numpy()
    if q.sf.dtype == torch.float8_e8m0fnu:
        sf = 2.0 ** (q.sf.view(torch.uint8).double().numpy() - 127)
    else:
        sf = q.sf.double().numpy()
    sf = sf[..., None] if q.format is QuantFormat.FP8_TOKEN else np.repeat(sf, q.format.gran_k or 1, axis=-1)[..., :96]
    g = np.ones(()) if q.global_scale is None else q.global_scale.double().numpy()
    expected = codes.astype(np.float64) * sf * g.reshape(*g.shape, *(1,) * (3 - g.ndim))
    np.testing.assert_array_equal(q.dequantize(torch.float64).numpy(), expected)
    single = q.dequantize()
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=2.0**-23)


@pytest.mark.parametrize("quantize", [quantize_to_mxfp4, quantize_to_mxfp8])
def test_mx_values_pass_unchanged(quantize: Quantize) -> None:
    once = quantize(normal(4, 8, 96) + 0.1).dequantize()
    assert torch.equal(quantize(once).dequantize(), once)


def test_nvfp4_codes_and_scales_pass_unchanged_when_each_block_reaches_six() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 8, 16), dtype=torch.uint8, generator=generator)
    codes[..., 3] = 0x7
    sf = torch.randint(0x01, 0x7F, (64, 8), dtype=torch.uint8, generator=generator)
    given = QuantizedTensor(
        codes=pack_fp4(codes.flatten(1)),
        sf=sf.view(torch.float8_e4m3fn),
        format=QuantFormat.NVFP4,
        global_scale=torch.tensor(0.5),
    )
    again = quantize_to_nvfp4(given.dequantize(), global_scale=0.5)
    assert torch.equal(again.sf.view(torch.uint8), sf)
    assert torch.equal(again.codes, given.codes)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_quantise_as_their_float32(name: str, dtype: torch.dtype) -> None:
    quantize = QUANTIZERS[name][0]
    x = normal(4, 8, 96).to(dtype)
    a, b = quantize(x), quantize(x.float())
    assert torch.equal(a.codes.view(torch.uint8), b.codes.view(torch.uint8))
    assert torch.equal(a.sf.view(torch.uint8), b.sf.view(torch.uint8))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_zeros_stay_zeros_with_finite_scales(name: str) -> None:
    q = QUANTIZERS[name][0](torch.zeros(2, 3, 80))
    assert not q.dequantize().any()
    scales = q.scales(torch.float64)
    assert bool((torch.isfinite(scales) & (scales > 0)).all())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_empty_tensors_quantise(name: str) -> None:
    q = QUANTIZERS[name][0](torch.empty(0, 5, 64))
    assert q.dequantize().shape == (0, 5, 64)


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if "tensor" not in name and "weight" not in name])
def test_a_nan_stays_in_its_row(name: str) -> None:
    x = normal(3, 64)
    x[1, 5] = float("nan")
    values = QUANTIZERS[name][0](x).dequantize()
    assert bool(values[1, :16].isnan().all())
    assert not values[[0, 2]].isnan().any()


def test_weights_get_one_global_scale_for_each_expert() -> None:
    w = normal(3, 8, 64) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    q = quantize_weight_to_nvfp4(w)
    assert q.global_scale is not None
    assert torch.equal(q.global_scale, w.abs().amax((1, 2)) / 2688)
    for expert in range(3):
        alone = quantize_to_nvfp4(w[expert])
        assert torch.equal(q.codes[expert], alone.codes)
        assert torch.equal(q.sf.view(torch.uint8)[expert], alone.sf.view(torch.uint8))
    assert int(q.sf.view(torch.uint8).max()) == 0x7E, "the largest block uses all of UE4M3"


def test_a_given_global_scale_saturates_what_it_cannot_hold() -> None:
    q = quantize_to_nvfp4(torch.tensor([[100.0] + [1.0] * 15]), global_scale=0.01)
    assert float(q.dequantize()[0, 0]) == pytest.approx(26.88)


def test_scales_of_small_blocks_do_not_vanish() -> None:
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 16:] = 2688.0, 2.0**-10
    q = quantize_to_nvfp4(x)
    assert q.sf.view(torch.uint8).tolist() == [[0x7E, 0x01]]
    assert torch.equal(q.dequantize()[0, 16:], torch.full((16,), 2.0**-10))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: quantize_to_nvfp4(torch.ones(2, 3)), r"x has shape \[2, 3\], but .* an even K"),
        (lambda: quantize_to_mxfp4(torch.ones(())), r"x has shape \[\]"),
        (lambda: quantize_to_mxfp8(torch.ones(4, dtype=torch.int64)), "dtype torch.int64"),
        (
            lambda: quantize_to_nvfp4(torch.ones(2, 16), global_scale=torch.ones(3)),
            r"a leading part of \[2\] is needed",
        ),
        (lambda: quantize_to_nvfp4(torch.ones(2, 16), global_scale=torch.ones(2, 16)), "a leading part"),
        (lambda: quantize_to_nvfp4(torch.ones(2, 16), global_scale="row"), "global_scale='row' is unknown"),  # type: ignore[arg-type]
        (lambda: quantize_weight_to_nvfp4(torch.ones(16)), r"but \[..., N, K\] is needed"),
        (lambda: quantize_to_mxfp4(torch.ones(16), rounding="up"), "rounding='up' is unknown"),  # type: ignore[arg-type]
        (lambda: quantize_to_fp8(torch.ones(64), gran_k=64), "gran_k=64"),
    ],
)
def test_bad_inputs_are_refused_in_words(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        call()


def test_blocks_of_128_take_the_foreseen_scale_where_they_fit_it() -> None:
    """From a quarter of it to 448 times it, both ends included; others get the power of two above amax / 448."""
    foreseen = torch.tensor([2.0**-3, 2.0])
    largest = torch.tensor([[0.0, 2.0**-5, 2.0**-5.01, 56.0, 56.5], [0.0, 0.5, 0.499, 896.0, 900.0]])
    x = normal(2, 5 * 128).clamp(-3, 3).view(2, 5, 128) / 4
    x[..., 17] = 1.0
    x = (x * largest[..., None]).view(2, -1)
    q = quantize_to_fp8(x, gran_k=128, foreseen=foreseen)
    own = 2.0 ** (torch.log2(largest / 448).floor() + 1)
    fits = torch.tensor([True, True, False, True, False])
    assert torch.equal(q.sf, torch.where(fits, foreseen[:, None], own))
    expected = (x / expand_sf(q.sf, x.shape[1], 128)).numpy().astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(q.codes.view(torch.uint8).numpy(), expected.view(np.uint8))
    # What fits loses no more than E4M3's own rounding of the block's larger values.
    error, size = ((part.view(2, 5, 128)[:, [1, 3]].norm(dim=-1)) for part in (q.dequantize(torch.float64) - x, x))
    assert bool((error < 0.04 * size).all())


@pytest.mark.parametrize("make", [normal, heavy_tailed, wide, sparse])
def test_blocks_of_512_take_the_best_of_four_scales(make: Callable[..., torch.Tensor]) -> None:
    """The least sum of squared errors, counted in integers; exact blocks keep the scale that makes the largest 448."""
    x = make(16, 1100)
    x[3, :512] = torch.arange(512).remainder(8) * 64.0  # exact with scale 1
    q = quantize_to_fp8(x, gran_k=512)
    values = np.pad(x.numpy(), ((0, 0), (0, 3 * 512 - 1100))).reshape(16, 3, 512)
    smallest = np.maximum(np.abs(values).max(-1), np.float32(1e-10)) / np.float32(448)
    costs, tried = [], []
    for i in range(4):
        scale = smallest * np.float32(2 ** (i / 4))
        scaled = values * (np.float32(1) / scale)[..., None]
        codes = scaled.astype(ml_dtypes.float8_e4m3fn)
        error = (codes.astype(np.float64) - scaled) * 32
        costs.append(np.rint(error * error).sum(-1).astype(np.float32) * np.float32(2 ** (i / 2)))
        tried.append((scale, codes.view(np.uint8)))
    best = np.stack(costs).argmin(0)  # the first of equals
    assert best[3, 0] == 0
    assert make is not normal or len(np.unique(best)) == 4
    for row, block in np.ndindex(16, 3):
        scale, codes = tried[best[row, block]]
        assert q.sf[row, block] == scale[row, block]
        width = min(512, 1100 - 512 * block)
        actual = q.codes[row, 512 * block : 512 * block + width].view(torch.uint8).numpy()
        np.testing.assert_array_equal(actual, codes[row, block, :width])
