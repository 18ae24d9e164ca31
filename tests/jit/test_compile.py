"""Compiling: every target gives PTX, cubin and resources; what fails says where and why."""

from __future__ import annotations

import re

import pytest

from megamoe_jit.arch import ARCHS, get_arch
from megamoe_jit.errors import CompileError, UnsupportedError
from megamoe_jit.jit import compile as compile_module
from megamoe_jit.jit.compile import (
    CompileOptions,
    Resources,
    compile_source,
    first_errors,
    nvrtc_version,
    parse_resources,
)
from megamoe_jit.jit.render import RenderedSource, render
from tests.jit.kernels import ROOTS, tiny_kernel

SM90 = get_arch("sm_90a")


def source(text: str) -> RenderedSource:
    return RenderedSource(main=f'#line 1 "/k.cuh"\n{text}', files=())


@pytest.mark.parametrize("arch", ARCHS.values(), ids=str)
def test_one_compile_gives_ptx_and_cubin_for_every_target(arch: object) -> None:
    kernel = tiny_kernel(arch=str(arch))
    artifact = compile_source(render(kernel, templates=ROOTS), kernel.arch, CompileOptions(), kernel_name="scale")
    assert f".target {arch}" in artifact.ptx
    assert artifact.ptx.isascii()
    assert not artifact.ptx.endswith("\0")
    assert artifact.cubin.startswith(b"\x7fELF")
    assert 0 < artifact.resources.registers < 32
    assert 0 < artifact.compile_s < 60


def test_resources_are_what_the_kernel_takes() -> None:
    text = """
    extern "C" __global__ void __launch_bounds__(1024, 2) hungry(float* p, int n) {
        __shared__ float smem[300];
        float local[64];
        for (int i = 0; i < 64; ++i) local[i] = p[i * n];
        smem[threadIdx.x] = local[n & 63];
        __syncthreads();
        for (int i = 0; i < 64; ++i) p[i] = local[i] * smem[(i + n) % 300];
    }
    extern "C" __global__ void other(float* p) { p[0] = 1.0f; }
    """
    artifact = compile_source(source(text), SM90, CompileOptions(), kernel_name="hungry")
    resources = artifact.resources
    assert resources.static_smem == 1200
    assert resources.stack_frame >= 256
    assert resources.spill_stores > 0
    assert resources.spill_loads > 0
    assert resources.registers == 32  # 65,536 / (2 x 1024)
    other = parse_resources(artifact.log, "other")
    assert (other.static_smem, other.stack_frame) == (0, 0)


def test_resources_of_a_kernel_that_the_log_does_not_have_are_zero() -> None:
    zeros = Resources(registers=0, static_smem=0, spill_stores=0, spill_loads=0, stack_frame=0, local=0)
    assert parse_resources("", "k") == zeros


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("\nint f() { return x; }", ['/k.cuh(2): error: identifier "x" is undefined']),
        ('#error "no"\n', ['/k.cuh(1): catastrophic error: #error directive: "no"']),
        ('#include "absent.cuh"\n', ['/k.cuh(1): catastrophic error: cannot open source file "absent.cuh"']),
        (
            'extern "C" __global__ void k() {\n  static_assert(1 == 2, "sizes differ");\n}',
            ["/k.cuh(2): error: static assertion failed"],
        ),
        ('extern "C" __global__ void k() { asm volatile("bogus.op;"); }', ["ptxas"]),
    ],
)
def test_errors_have_template_and_line(text: str, errors: list[str]) -> None:
    with pytest.raises(CompileError, match="NVRTC refused kernel 'k' for sm_90a") as caught:
        compile_source(source(text), SM90, CompileOptions(), kernel_name="k")
    assert len(caught.value.errors) >= len(errors)
    for error, expected in zip(caught.value.errors, errors, strict=False):
        assert error.startswith(expected)
        assert error in str(caught.value)
    assert caught.value.errors[0] in caught.value.log


def test_the_first_errors_are_few_and_different() -> None:
    log = "\n".join(f"/k.cuh({i // 2}): error: number {i // 2}" for i in range(40)) + "\n1 error detected"
    assert first_errors(log) == tuple(f"/k.cuh({i}): error: number {i}" for i in range(5))


def test_a_symbol_that_the_source_lacks_is_told() -> None:
    with pytest.raises(
        CompileError, match=re.escape("has no kernel 'other'. Declare it as extern \"C\" __global__ void other(...)")
    ):
        compile_source(source("__global__ void other() {}"), SM90, CompileOptions(), kernel_name="other")


def test_an_option_that_nvrtc_does_not_know_is_told() -> None:
    with pytest.raises(CompileError, match="--no-such-option"):
        compile_source(source(""), SM90, CompileOptions(extra=("--no-such-option",)), kernel_name="k")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (CompileOptions(), "--generate-line-info"),
        (CompileOptions(), "--fmad=true"),
        (CompileOptions(fmad=False), "--fmad=false"),
        (CompileOptions(fast_math=True), "--use_fast_math"),
        (CompileOptions(max_registers=64), "--maxrregcount=64"),
        (CompileOptions(std="c++17"), "--std=c++17"),
        (CompileOptions(extra=("-DX=1",)), "-DX=1"),
    ],
)
def test_options_become_flags(options: CompileOptions, flag: str) -> None:
    assert flag in options.flags(SM90)
    kernel = 'extern "C" __global__ void k(float* p) { p[0] = p[1] * p[2] + p[3]; }'
    ptx = compile_source(source(kernel), SM90, options, kernel_name="k").ptx
    assert ("fma" in ptx) == options.fmad


def test_line_information_names_templates_and_nothing_of_this_machine() -> None:
    rendered = render(tiny_kernel(), templates=ROOTS)
    with_lines, without = (
        compile_source(rendered, SM90, CompileOptions(lineinfo=on), kernel_name="scale") for on in (True, False)
    )
    assert re.findall(r'\.file\s+\d+ "([^"]*)"', with_lines.ptx) == ["/scale.cuh", "/lane.cuh"]
    assert "inlined_at" in with_lines.ptx
    assert ".loc" not in without.ptx
    for artifact in (with_lines, without):
        assert str(ROOTS[0]).encode() not in artifact.cubin + artifact.ptx.encode()


def test_the_version_of_nvrtc_is_13() -> None:
    assert nvrtc_version()[0] == 13


def test_a_machine_without_nvrtc_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(compile_module.importlib, "import_module", fail)
    with pytest.raises(
        UnsupportedError, match=re.escape("no cuda.bindings.nvrtc") + ".*pip install 'nvidia-cuda-nvrtc>=13'"
    ):
        nvrtc_version()


def test_an_nvrtc_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Result:
        NVRTC_SUCCESS = 0

    class Failing:
        nvrtcResult = Result

        class Status:
            name = "NVRTC_ERROR_OUT_OF_MEMORY"

        @classmethod
        def nvrtcVersion(cls) -> tuple[object, int, int]:
            return cls.Status, 0, 0

        @classmethod
        def nvrtcCreateProgram(cls, *args: object) -> tuple[object, None]:
            return cls.Status, None

    monkeypatch.setattr(compile_module.importlib, "import_module", lambda name: Failing)
    with pytest.raises(UnsupportedError, match="NVRTC_ERROR_OUT_OF_MEMORY"):
        nvrtc_version()
    with pytest.raises(CompileError, match="nvrtcCreateProgram failed"):
        compile_source(source(""), SM90, CompileOptions(), kernel_name="k")
