"""Scale factors elsewhere, or of another format, are wrong: what docs/blackwell.md answers could not be otherwise.

Each change is made to the rendered grouped GEMM, which then runs in the emulator on data that shows a misplaced factor.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megamoe_jit import CompileError, get_arch
from megamoe_jit.errors import EmulatorFault
from megamoe_jit.formats.fp8 import decode_ue4m3, encode_ue4m3
from megamoe_jit.jit.compile import CompileOptions, compile_source
from megamoe_jit.jit.render import RenderedSource, render
from megamoe_jit.jit.source import KernelDescription
from megamoe_jit.ops import gemm
from megamoe_jit.reference.compare import rel_l2
from tests.kernels.test_grouped_gemm_sm100 import assert_rounded_once, run

MMA = "gemm/roles/mma.cuh"
SFA = "gemm::kSfaColumn + word * 4, sfb"
SFB = "gemm::kSfbColumn + word * gemm::kSfbWordColumns + atom * 4"


def change(monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str) -> None:
    """Have the grouped GEMM built with `old` replaced by `new` in one of its files."""

    def build(description: KernelDescription) -> object:
        rendered = render(description)
        text = dict(rendered.files)[file]
        assert text.count(old) == 1
        files = tuple((name, text.replace(old, new) if name == file else other) for name, other in rendered.files)
        artifact = compile_source(
            replace(rendered, files=files), description.arch, CompileOptions(), kernel_name=description.kernel_name
        )
        return SimpleNamespace(kernel_name=description.kernel_name, artifact=artifact)

    monkeypatch.setattr(gemm, "build", build)


WRONG = {
    "words in turns": ("nvfp4_nvfp4", "sfb + word * gemm", "sfb + (word ^ 1) * gemm"),
    "words of weights in turns": ("mxfp4_mxfp4", SFA, SFA.replace("word", "(1 - word)")),
    "one id for all (mxfp8)": ("mxfp8_mxfp4", "(columns, sf_id)", "(columns, 0)"),
    "one id for all (mxfp4)": ("mxfp4_mxfp4", "(columns, sf_id)", "(columns, 0)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_place_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, *changed = WRONG[name]
    assert_rounded_once(*run(recipe, [40, 5], 256, 256, block_n=64))
    change(monkeypatch, MMA, *changed)
    y, exact = run(recipe, [40, 5], 256, 256, block_n=64)
    assert rel_l2(y, exact) > 0.1


def test_row_blocks_8_columns_apart_leave_rows_without_scale_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, MMA, SFB, SFB.replace("atom * 4", "atom * 8"))
    with pytest.raises(EmulatorFault, match=r"scale factors of B .* of row 128"):
        run("nvfp4_nvfp4", [200, 7], 256, 256, block_n=256)


@pytest.mark.parametrize("recipe", ["mxfp8_mxfp4", "mxfp4_mxfp4"])
def test_kinds_of_ue8m0_refuse_the_other_scale_format(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one bit: with UE4M3 for one operand, the other would have it too, which these kinds do not take."""
    change(monkeypatch, "config.cuh", "kMmaScaleType = 1", "kMmaScaleType = 0")
    with pytest.raises(EmulatorFault, match="scale"):
        run(recipe, [5], 256, 128)


def test_the_scale_format_bit_changes_both_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales of 1 are 0x38 in UE4M3. Read as UE8M0 they are 2^-71: the product shows that both were read so."""
    ones = torch.full((1, 512), 0x38, dtype=torch.uint8)
    codes = torch.full((4, 32), 0x22, dtype=torch.uint8)  # 64 values of 1
    weights = torch.full((1, 128, 32), 0x22, dtype=torch.uint8)
    offs = torch.tensor([4], dtype=torch.int32)
    y = gemm.nvfp4_grouped_gemm(codes, weights, ones[0], ones, offs, arch="sm_100f")
    assert bool((y == 64).all())
    change(monkeypatch, "config.cuh", "kMmaScaleType = 0", "kMmaScaleType = 1")
    y = gemm.nvfp4_grouped_gemm(codes, weights, ones[0], ones, offs, arch="sm_100f", alphas=torch.tensor([2.0**100]))
    assert bool((y == 64 * 2.0 ** (100 - 71 - 71)).all())


def test_widened_weights_count_as_they_lie_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier that expects 128 bytes of a row, as it lies in shared memory, never opens."""
    change(monkeypatch, "config.cuh", "kWeightRowBytes = 64", "kWeightRowBytes = 128")
    with pytest.raises(EmulatorFault, match="deadlock"):
        run("mxfp8_mxfp4", [5], 256, 128)


@pytest.mark.parametrize(("type_name", "is_known"), [("e4m3x2", True), ("ue4m3x2", False)])
def test_there_is_no_conversion_to_ue4m3(type_name: str, is_known: bool) -> None:
    text = (
        'extern "C" __global__ void kernel(unsigned short* out) {\n'
        f'    asm volatile("cvt.rn.satfinite.{type_name}.f32 %0, %1, %2;" : "=h"(*out) : "f"(1.0f), "f"(2.0f));\n'
        "}\n"
    )
    for arch in ("sm_100f", "sm_103a"):
        source, options = RenderedSource(main=text, files=()), CompileOptions()
        if is_known:
            assert type_name in compile_source(source, get_arch(arch), options, kernel_name="kernel").ptx
        else:
            with pytest.raises(CompileError):
                compile_source(source, get_arch(arch), options, kernel_name="kernel")


def test_a_value_that_is_not_negative_has_one_byte_in_both_formats() -> None:
    """All float16 values from 0 on: their rounding to E4M3 is their code in UE4M3."""
    values = torch.arange(0x7C00, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    e4m3 = values.clamp(max=448).to(torch.float8_e4m3fn)
    assert torch.equal(encode_ue4m3(values).view(torch.uint8), e4m3.view(torch.uint8))
    assert torch.equal(decode_ue4m3(e4m3.view(torch.uint8)), e4m3.float())
