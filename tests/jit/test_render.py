"""Rendering: plain CUDA survives, names are strict, positions are the template's, bytes are the same everywhere."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megamoe_jit.arch import get_arch
from megamoe_jit.errors import ArgumentError, CompileError
from megamoe_jit.jit.compile import CompileOptions, compile_source
from megamoe_jit.jit.places import templates_dir
from megamoe_jit.jit.render import RenderedSource, render
from megamoe_jit.jit.source import KernelSource
from tests.jit.kernels import ROOTS, tiny_kernel

SM90 = get_arch("sm_90a")


def render_files(folder: Path, files: dict[str, str], **values: object) -> RenderedSource:
    """Write templates into `folder` and render the first of them."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    source = KernelSource(kernel_name="k", entry=next(iter(files)), arch=SM90, values=tuple(values.items()))
    return render(source, templates=(folder, templates_dir()))


def body(rendered: RenderedSource, name: str) -> str:
    """Return a rendered file without the #line in front."""
    first, _, text = dict(rendered.files)[name].partition("\n")
    assert first == f'#line 1 "/{name}"'
    return text


@pytest.mark.parametrize(
    "text",
    [
        'asm volatile("{%0, %1}" :: "r"(a));',
        "int x[2][2] = {{0, 1}, {2, 3}};",
        "int y = a %b; // 50 % of it",
        "#pragma unroll\n#define A(x) #x\n",
        "/* {# no comment #} {{ no variable }} {% no block %} */",
        "auto f = [&] { return $L; };  // $ alone",
        "// a plain comment\n//! doxygen\n",
        "no newline at the end",
        "\n\n\n",
    ],
)
def test_plain_cuda_comes_through_unchanged(tmp_path: Path, text: str) -> None:
    assert body(render_files(tmp_path, {"k.cuh": text}), "k.cuh") == text


def test_values_loops_and_comments(tmp_path: Path) -> None:
    text = "${ kernel_name } ${ arch } ${ width }\n//# for authors\n//% for n in sizes\nf${ n }\n//% endfor\nend\n"
    rendered = body(render_files(tmp_path, {"k.cuh": text}, width=3, sizes=(8, 16)), "k.cuh")
    assert [line for line in rendered.splitlines() if not line.startswith("#line")] == [
        "k sm_90a 3",
        "",
        "f8",
        "f16",
        "end",
    ]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("3 | regs", "%0, %1, %2"),
        ("2 | regs(4)", "%4, %5"),
        ("2 | inouts", '"+f"(d[0]), "+f"(d[1])'),
        ("2 | inouts('r', 'accum')", '"+r"(accum[0]), "+r"(accum[1])'),
        ("1 | outs", '"=f"(d[0])'),
        ("2 | ins", '"r"(a[0]), "r"(a[1])'),
        ("0 | regs", ""),
        ("n + 2", "6"),
    ],
)
def test_operand_lists(tmp_path: Path, expression: str, expected: str) -> None:
    assert body(render_files(tmp_path, {"k.cuh": f"${{ {expression} }}"}, n=4), "k.cuh") == expected


def test_constants_are_printed_in_their_order() -> None:
    rendered = dict(render(tiny_kernel(0.5, zeta=1, alpha=2), templates=ROOTS).files)["config.cuh"]
    definitions = re.search(r"namespace config \{\n(.*?)\n\}", rendered, re.DOTALL)
    assert definitions is not None
    assert definitions[1].splitlines() == [
        "constexpr uint32_t kBlockThreads = 128;",
        "constexpr float kFactor = 0.5f;",
        "constexpr uint32_t kZeta = 1;",
        "constexpr uint32_t kAlpha = 2;",
    ]


def test_only_what_the_entry_reaches_is_rendered(tmp_path: Path) -> None:
    files = {
        "k.cuh": '#include "roles/${ role }.cuh"\n # include "types.cuh"\n#include <cuda/ptx>\n//#include "not.cuh"\n',
        "roles/mma.cuh": '#include "types.cuh"\n#include "k.cuh"\n',
        "roles/other.cuh": "${ undefined }",
    }
    rendered = render_files(tmp_path, files, role="mma")
    assert [name for name, _ in rendered.files] == ["k.cuh", "roles/mma.cuh", "types.cuh"]


def test_the_first_folder_wins(tmp_path: Path) -> None:
    rendered = render_files(tmp_path, {"k.cuh": '#include "types.cuh"\n', "types.cuh": "mine\n"})
    assert body(rendered, "types.cuh") == "mine\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n\n${ num_stages }\n", "/k.cuh(3): 'num_stages' is undefined"),
        ("//% for n in sizes\n${ n.reg }\n//% endfor\n", "/k.cuh(2): 'int object' has no attribute 'reg'"),
        ("a\n//% for n in nothing\n//% endfor\n", "/k.cuh(2): 'nothing' is undefined"),
        ("a\n\n//% for n in\n", "/k.cuh(3): "),
        ("a\n${ 1 | squared }\n", "/k.cuh(2): No filter named 'squared'."),
        ("a\n\n${ 'x' | regs }\n", "/k.cuh(3): 'str' object cannot be interpreted as an integer"),
        ('a\n#include "absent.cuh"\n', "/k.cuh(2) includes 'absent.cuh', which is not among the templates"),
        ('//% if true\n//% endif\n\n#include "types.h"', "/k.cuh(4) includes 'types.h'"),
        ('#include "inner/absent.cuh"', "/k.cuh(1) includes 'inner/absent.cuh'"),
    ],
)
def test_what_does_not_render_is_an_error_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(CompileError, match=re.escape(sentence)) as caught:
        render_files(tmp_path, {"k.cuh": text}, sizes=(1,))
    assert sentence in caught.value.errors[0]


def test_an_error_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=re.escape("/roles/a.cuh(2): 'x' is undefined")):
        render_files(tmp_path, {"k.cuh": '#include "roles/a.cuh"\n', "roles/a.cuh": "\n${ x }\n"})


def test_a_relative_include_is_told_its_full_name(tmp_path: Path) -> None:
    with pytest.raises(
        CompileError,
        match=re.escape("/roles/a.cuh(1) includes 'b.cuh', which is not among the templates. Is it 'roles/b.cuh'?"),
    ):
        render_files(
            tmp_path, {"k.cuh": '#include "roles/a.cuh"\n', "roles/a.cuh": '#include "b.cuh"\n', "roles/b.cuh": ""}
        )


def test_a_missing_entry_is_an_error() -> None:
    with pytest.raises(CompileError, match=r"the kernel description names 'absent\.cuh'"):
        render(KernelSource(kernel_name="k", entry="absent.cuh", arch=SM90))


def test_template_values_may_not_hide_what_every_template_has(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="template value 'arch' is a name that every template has already"):
        render_files(tmp_path, {"k.cuh": ""}, arch="mine")


BROKEN = """//# a note
#pragma once
//% for n in (1, 2, 3)
__device__ int f${ n }() {
    return ${ n };
}
//% endfor

//% if true
__device__ int wrong() { return undeclared; }
//% endif
extern "C" __global__ void k() {}
"""


def test_compile_errors_after_loops_have_the_line_of_the_template(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        compile_source(render_files(tmp_path, {"roles/a.cuh": BROKEN}), SM90, CompileOptions(), kernel_name="k")
    line = BROKEN.splitlines().index("__device__ int wrong() { return undeclared; }") + 1
    assert caught.value.errors == (f'/roles/a.cuh({line}): error: identifier "undeclared" is undefined',)


def test_compile_errors_inside_loops_have_the_line_of_the_template(tmp_path: Path) -> None:
    text = "//% for n in (1, 2)\n//# note\n__global__ void k${ n }() {\n    undeclared${ n }();\n}\n//% endfor\n"
    with pytest.raises(CompileError) as caught:
        compile_source(render_files(tmp_path, {"a.cuh": text}), SM90, CompileOptions(), kernel_name="k1")
    assert [error[:9] for error in caught.value.errors] == ["/a.cuh(4)", "/a.cuh(4)"]


def test_the_flattened_file_compiles_to_the_same_code() -> None:
    rendered = render(tiny_kernel(), templates=ROOTS)
    flat = RenderedSource(main=rendered.flatten(), files=())
    artifacts = [compile_source(source, SM90, CompileOptions(), kernel_name="scale") for source in (rendered, flat)]
    assert artifacts[0].ptx == artifacts[1].ptx
    assert artifacts[0].cubin == artifacts[1].cubin
    assert rendered.flatten().count("typedef unsigned int uint32_t;") == 1  # included twice


CODE = """
import hashlib
from megamoe_jit.jit.compile import CompileOptions, compile_source
from megamoe_jit.jit.render import render
from tests.jit.kernels import ROOTS, tiny_kernel
kernel = tiny_kernel(more=3)
rendered = render(kernel, templates=ROOTS)
artifact = compile_source(rendered, kernel.arch, CompileOptions(), kernel_name="scale")
for part in (repr(rendered), artifact.ptx, artifact.cubin.hex()):
    print(hashlib.sha256(part.encode()).hexdigest())
"""


def test_source_ptx_and_cubin_depend_on_neither_folder_nor_hash_seed(tmp_path: Path) -> None:
    seen = set()
    for seed, folder in (("0", tmp_path), ("1", Path.cwd()), ("2", Path("/"))):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(templates_dir().parent)}
        command = [sys.executable, "-c", CODE]
        seen.add(
            subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
        )
    kernel = tiny_kernel(more=3)
    rendered = render(kernel, templates=ROOTS)
    assert seen == {"\n".join(_digests(rendered, kernel)) + "\n"}


def _digests(rendered: RenderedSource, kernel: KernelSource) -> list[str]:
    artifact = compile_source(rendered, kernel.arch, CompileOptions(), kernel_name="scale")
    parts = (repr(rendered), artifact.ptx, artifact.cubin.hex())
    return [hashlib.sha256(part.encode()).hexdigest() for part in parts]
