"""Inspecting: instruction histograms, MMA shapes, reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megamoe_jit.jit.build import build
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.inspect import inspect_kernel, instruction_histogram, mma_shapes
from tests.jit.kernels import ROOTS, tiny_kernel

PTX = """
// a comment; with mov.u32 in it
.version 9.0
.target sm_90a
.address_size 64
.global .align 4 .u32 kConstant = 128;
.extern .shared .align 1024 .b8 smem_bytes[];
.func helper() { ret; }
.visible .entry k(
    .param .u64 .ptr .align 1 k_param_0,
    .param .align 64 .b8 k_param_1[128]
)
.maxntid 384, 1, 1
.minnctapersm 1
{
    .reg .pred %p<3>;
    .reg .b32 %r<9>;
    .loc 1 7 0
$L__BB0_1: // header
    ld.param.u64 %rd1, [k_param_0]; mov.u32 %r1, %tid.x;
    .pragma "nounroll";
    @%p1 bra $L__BB0_1;
    @!%p2 bra.uni $L__BB0_2;
    /* block
       mov.u64 comment; */
    // begin inline asm
    { .reg .pred p; setp.ne.b32 p, %r1, 0;
    wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {%f1, %f2}, {%r1, %r2}, %rd2, p, 1, 1; }
    // end inline asm
    wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%f1, %f2}, {%r1,
        %r2}, %rd2, p, 1, 1;
$L__BB0_2:
    mov.b64 {%r1, %r2}, %rd1;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1], %r2, [%r3];
    tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16 [%r1], %rd1, %rd2, %r3, [%r4], [%r5], p;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1};
    ret;
}
    .file 1 "/mega_moe/sm90.cuh"
    .section .debug_str
    {
$L__info_string0:
.b8 95
    }
"""


def test_every_instruction_is_counted_once_with_its_modifiers() -> None:
    assert instruction_histogram(PTX) == {
        "ret": 2,
        "bra": 1,
        "bra.uni": 1,
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes": 1,
        "ld.param.u64": 1,
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": 1,
        "mov.b64": 1,
        "mov.u32": 1,
        "setp.ne.b32": 1,
        "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16": 1,
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3": 1,
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3": 1,
    }


def test_the_most_frequent_come_first() -> None:
    assert list(instruction_histogram("ret; add.s32 a; sub.s32 b; add.s32 c;")) == ["add.s32", "ret", "sub.s32"]
    assert instruction_histogram("") == {}


def test_shapes_are_in_order_of_size() -> None:
    assert mma_shapes(instruction_histogram(PTX)) == ("m16n8k16", "m64n8k32", "m64n128k32")


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_the_histogram_of_a_compiled_kernel_agrees_with_its_lines(cache: KernelCache, arch: str) -> None:
    ptx = build(tiny_kernel(arch=arch), cache=cache, templates=ROOTS).ptx
    lines = [line.strip() for line in ptx[ptx.index("{") :].splitlines()]
    instructions = [line for line in lines if line.endswith(";") and not line.startswith((".", "//"))]
    assert sum(instruction_histogram(ptx).values()) == len(instructions)


def test_a_report_has_all_parts_and_is_json(cache: KernelCache) -> None:
    built = build(tiny_kernel(), cache=cache, templates=ROOTS)
    report = inspect_kernel(built.record)
    assert report.kernel_name == "scale"
    assert report.parameters == {"block_threads": 128, "factor": 2.0}
    assert report.resources == built.resources
    assert report.instructions["fma.rn.f32"] == 1
    assert report.mmas == {}
    assert report.cubin_bytes == len(built.cubin)
    values = json.loads(json.dumps(report.to_json()))
    assert values["resources"]["registers"] == built.resources.registers
    assert values["nvrtc"].startswith("13.")
    assert values["flags"][0] == "--gpu-architecture=sm_90a"


def test_mmas_are_found(cache: KernelCache, tmp_path: Path) -> None:
    (tmp_path / "scale.cuh").write_text(
        'extern "C" __global__ void scale(float* d, unsigned* a) {\n'
        '    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "\n'
        '        "{${ 4 | regs }}, {${ 4 | regs(4) }}, {${ 2 | regs(8) }}, {${ 4 | regs }};"\n'
        "        : ${ 4 | inouts } : ${ 6 | ins });\n}\n"
    )
    report = inspect_kernel(build(tiny_kernel(), cache=cache, templates=(tmp_path,)).record)
    assert report.mmas == {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": 1}
    assert report.mma_shapes == ("m16n8k8",)
