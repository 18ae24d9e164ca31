"""The search of a block's scale, run in the emulator from its template and held to the rule in formats/."""

from __future__ import annotations

from dataclasses import replace

import torch

from megamoe_jit import Problem
from megamoe_jit.emulator import Emulator
from megamoe_jit.formats.block_scaled import quantize_to_fp8
from megamoe_jit.formats.fp8 import decode_e4m3, encode_e4m3
from megamoe_jit.jit.compile import CompileOptions, compile_source
from megamoe_jit.jit.render import render
from tests.emulator.cuda_source import object_cache
from tests.templates.sm90_kernels import config

KERNEL = """
#include "mega_moe/scale_search.cuh"

// A warp a block of 512: its scale, and its codes.
extern "C" __global__ void __launch_bounds__(config::kNumThreads, 1)
    mega_moe_sm90(const uint32_t* x, float* scale, uint32_t* codes, const float* numbers, float* errors, uint32_t n) {
    const uint32_t lane = threadIdx.x % 32, thread = blockIdx.x * blockDim.x + threadIdx.x, block = thread / 32;
    uint32_t pairs[8];
    for (uint32_t i = 0; i < 8; ++i) pairs[i] = x[block * 256 + lane * 8 + i];
    const mega_moe::BlockScale found = mega_moe::search_scale(pairs, mega_moe::largest_of(pairs));
    if (lane == 0) scale[block] = found.scale;
    for (uint32_t i = 0; i < 4; ++i) {
        codes[block * 128 + lane * 4 + i] = ptx::cvt_e4m3x4(pairs[2 * i], pairs[2 * i + 1], found.inverse);
    }
    for (uint32_t i = thread; i < n; i += gridDim.x * blockDim.x) errors[i] = mega_moe::rounding_error(numbers[i]);
}
"""
NUM_BLOCKS, NUM_WARPS = 4, 12


def blocks() -> torch.Tensor:
    """Return [48, 512] bf16: of many spreads; with quotients at powers of two; zeros, tiny, huge and NaN."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_BLOCKS * NUM_WARPS, 512, generator=generator)
    x *= torch.exp2(4 * torch.randn(x.shape, generator=generator) * (torch.arange(len(x)) % 3)[:, None])
    for j in range(1, 25):  # the largest is 7 j, so that 4 j, 2 j, ... become powers of two, or the numbers beside them
        x[j] = j * torch.exp2(torch.randint(-8, 3, (512,), generator=generator).float())
        x[j, 100] = 7 * j
    x[25], x[26], x[27] = 0.0, 1e-38 * x[26], 1e37 * x[27].clamp(-9, 9)
    x[28, 3], x[29] = torch.nan, torch.nan
    return x.bfloat16()


def numbers() -> torch.Tensor:
    """Return FP32 numbers up to 448: all sizes, those around powers of two and ties."""
    generator = torch.Generator().manual_seed(2)
    around = torch.exp2(torch.arange(-12.0, 9.0))[:, None] * torch.tensor([1, 1.0625, 1.1875, 1.5, 1.9375])
    bits = around.flatten().view(torch.int32)[:, None] + torch.arange(-20, 21, dtype=torch.int32)
    spread = torch.exp2(20 * torch.rand(20000, generator=generator) - 11.5)
    return torch.cat((bits.flatten().view(torch.float32), spread, torch.zeros(1))).clamp(max=448.0)


def test_scales_and_codes_are_those_of_the_rule() -> None:
    problem = Problem(hidden=512, intermediate=256, num_experts=1, num_topk=1, max_tokens_per_rank=8)
    built = config(problem, "fp8_nvfp4", 8)
    artifact = compile_source(
        replace(render(built), main=KERNEL), built.arch, CompileOptions(), kernel_name=built.kernel_name
    )
    x, values = blocks(), numbers()
    scale, errors = torch.zeros(len(x)), torch.zeros(len(values))
    codes = torch.zeros(len(x), 512, dtype=torch.uint8)
    args = (x, scale, codes, values, errors, len(values))
    Emulator(cache_dir=object_cache()).load(artifact.ptx).launch(
        built.kernel_name, NUM_BLOCKS, built.num_threads, args=args
    )
    is_number = ~x.isnan().any(1)
    expected = quantize_to_fp8(x[is_number].float(), gran_k=512)
    assert torch.equal(scale[is_number], expected.sf.flatten())
    assert torch.equal(codes[is_number], expected.codes.view(torch.uint8))
    # A NaN is not the largest, and becomes the code of one.
    assert bool(scale.isfinite().all())
    assert torch.equal(codes & 0x7F == 0x7F, x.isnan())

    # In the unit of the sums an error is that of E4M3, ties in either direction.
    units = (errors.double() ** 2 * 1024).round()
    assert torch.equal(units, ((decode_e4m3(encode_e4m3(values)) - values).double() ** 2 * 1024).round())
