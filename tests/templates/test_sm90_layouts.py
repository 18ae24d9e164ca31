"""Python and the templates agree on every size, offset and code, and a build fails where they do not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from megamoe_jit import CompileError
from megamoe_jit.arch import Arch
from megamoe_jit.jit.compile import CompileOptions, compile_source
from megamoe_jit.jit.places import templates_dir
from megamoe_jit.jit.render import render
from megamoe_jit.layouts.struct import StructLayout
from megamoe_jit.layouts.weights_sm90 import Sm90Element, sm90_token_permutation
from megamoe_jit.recipes.params import MEGA_MOE_PARAMS, STAGING_PARAMS, ParamBlock
from megamoe_jit.recipes.sm90 import ACTIVATION_CODES, Sm90Config, Sm90StagingConfig
from megamoe_jit.recipes.waits import WAITS
from megamoe_jit.runtime.memory import MAGIC, WORDS
from tests.templates.sm90_kernels import FUSED_FOR_LAYOUTS, STAGING_FOR_LAYOUTS

EMPTY_KERNEL = 'extern "C" __global__ void {name}() {{}}\n'


@dataclass(frozen=True)
class Wrong:
    """A description with some constants changed behind the back of the others."""

    right: Sm90Config | Sm90StagingConfig
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def kernel_name(self) -> str:
        return self.right.kernel_name

    @property
    def entry(self) -> str:
        return self.right.entry

    @property
    def arch(self) -> Arch:
        return self.right.arch

    def constants(self) -> Mapping[str, Any]:
        return {**self.right.constants(), **dict(self.changes)}

    def template_values(self) -> Mapping[str, object]:
        return self.right.template_values()


def compile_with(kernel: Sm90Config | Sm90StagingConfig, text: str, **constants: Any) -> None:
    """Compile `text` in place of a kernel, with its templates and its constants, some of them changed."""
    rendered = render(Wrong(kernel, tuple(constants.items())))
    main = text + EMPTY_KERNEL.format(name=kernel.kernel_name)
    compile_source(replace(rendered, main=main), kernel.arch, CompileOptions(), kernel_name=kernel.kernel_name)


def offset_asserts(struct: str, offsets: Mapping[str, int]) -> str:
    """Return C++ that compiles only when each member lies at its offset."""
    return "".join(
        f'static_assert(__builtin_offsetof({struct}, {member}) == {offset}, "{member}");\n'
        for member, offset in offsets.items()
    )


def param_offsets(block: ParamBlock) -> dict[str, int]:
    """Return each member's offset as Python packs it: sym_tokens is sym.tokens."""
    names = [*block.quads, *(name for name, _ in block.words)]
    return {re.sub("^sym_", "sym.", name): block.offset(name, num_ranks=1) for name in names}


def members(struct: str, template: str) -> list[str]:
    """Return a struct's members in a template, in order."""
    text = re.sub(r"//[^\n]*", "", (templates_dir() / template).read_text())
    body = re.search(rf"struct {struct} {{(.*?)\n}};", text, re.DOTALL)
    assert body is not None
    declarations = [line.partition("=")[0].strip() for line in body[1].split(";") if line.strip()]
    return [re.search(r"(\w+)(\[[^\]]*\])*$", line)[1] for line in declarations]  # type: ignore[index]


def part_names(layout: StructLayout) -> list[str]:
    """Return the names of a layout's fields."""
    return [field.name for field in layout.fields]


@pytest.mark.parametrize("name", FUSED_FOR_LAYOUTS)
def test_shared_memory_is_where_python_plans_it(name: str) -> None:
    config = FUSED_FOR_LAYOUTS[name]
    planned = config.shared_storage()
    assert members("SharedStorage", "mega_moe/storage_sm90.cuh") == part_names(planned)
    sizes = "".join(
        f"static_assert(sizeof(mega_moe::SharedStorage::{field.name}) == {field.num_bytes});\n"
        for field in planned.fields
    )
    asserts = offset_asserts("mega_moe::SharedStorage", planned.offsets()) + sizes
    compile_with(config, '#include "mega_moe/storage_sm90.cuh"\n' + asserts)
    last = part_names(planned)[-1]
    wrong = offset_asserts("mega_moe::SharedStorage", {last: planned.offsets()[last] + 8})
    with pytest.raises(CompileError, match=rf'static assertion failed with "{last}"|{last}'):
        compile_with(config, '#include "mega_moe/storage_sm90.cuh"\n' + wrong)


def test_fused_params_are_where_python_packs_them() -> None:
    config = next(iter(FUSED_FOR_LAYOUTS.values()))
    offsets = param_offsets(MEGA_MOE_PARAMS)
    compile_with(config, '#include "mega_moe/params_sm90.cuh"\n' + offset_asserts("mega_moe::Params", offsets))
    named = [name for name in offsets if "." not in name]
    assert members("Params", "mega_moe/params_sm90.cuh") == ["peers", "sym", *named]
    in_sym = [name.removeprefix("sym.") for name in offsets if "." in name]
    assert members("SymOffsets", "comm/peers.cuh") == in_sym


def test_staging_params_are_where_python_packs_them() -> None:
    config = next(iter(STAGING_FOR_LAYOUTS.values()))
    offsets = param_offsets(STAGING_PARAMS)
    main = f'#include "{config.entry}"\n' + offset_asserts("staging::Params", offsets)
    rendered = replace(render(config), main=main)
    compile_source(rendered, config.arch, CompileOptions(), kernel_name=config.kernel_name)
    assert members("Params", "staging/staging.cuh") == ["sym", *(name for name in offsets if "." not in name)]


WRONG_CONSTANTS = [  # constant, the template whose assertion must fail, header that has it
    ("smem_bytes", "mega_moe/storage_sm90.cuh"),
    ("num_stages", "mega_moe/storage_sm90.cuh"),
    ("num_local_experts", "mega_moe/storage_sm90.cuh"),
    ("token_stage_bytes", "mega_moe/storage_sm90.cuh"),
    ("param_bytes", "mega_moe/params_sm90.cuh"),
    ("num_ranks", "mega_moe/params_sm90.cuh"),
]


@pytest.mark.parametrize(("constant", "template"), WRONG_CONSTANTS)
def test_a_wrong_constant_does_not_compile(constant: str, template: str) -> None:
    """Each of these sizes is computed in Python; were one wrong, the template's assertion would stop the build."""
    config = next(iter(FUSED_FOR_LAYOUTS.values()))
    compile_with(config, f'#include "{template}"\n')
    wrong = int(config.constants()[constant]) + 1024
    with pytest.raises(CompileError) as caught:
        compile_with(config, f'#include "{template}"\n', **{constant: wrong})
    assert any(re.search(rf"/{template}\(\d+\): .*static assertion failed", error) for error in caught.value.errors)


def test_a_wrong_size_of_staging_parameters_does_not_compile() -> None:
    config = next(iter(STAGING_FOR_LAYOUTS.values()))
    wrong = render(Wrong(config, (("param_bytes", 8),)))
    with pytest.raises(CompileError, match=r"/staging/staging\.cuh\(\d+\): .*static assertion failed"):
        compile_source(wrong, config.arch, CompileOptions(), kernel_name=config.kernel_name)


def enumerators(enum: str, template: str) -> dict[str, int]:
    """Return an enum's names and codes in a template."""
    text = (templates_dir() / template).read_text()
    body = re.search(rf"enum class {enum} : uint32_t {{(.*?)}};", text, re.DOTALL)
    assert body is not None
    return {name: int(code) for name, code in re.findall(r"(k\w+) = (\d+)", body[1])}


def test_wait_codes_have_words() -> None:
    """A code without words would be reported as a number; words without a code would be said of another wait."""
    codes = enumerators("WaitFor", "comm/wait.cuh")
    assert list(codes.values()) == list(WAITS) == list(range(1, len(WAITS) + 1))
    # Which words belong to which code: a word of the enumerator's name stands in each, except where MMAs are meant.
    words = ("stage", "stage", "list", "L1", "L2", None, "accum", "dispatch", "ring", "tile", "place")
    for (name, code), word in zip(codes.items(), words, strict=True):
        if word is not None:
            assert word.lower() in name.lower()
            assert word in WAITS[code]
    used = "".join(path.read_text() for path in templates_dir().rglob("*.cuh"))
    assert all(f"WaitFor::{name}" in used for name in codes)


def test_the_error_record_is_read_as_it_is_written() -> None:
    text = (templates_dir() / "comm" / "wait.cuh").read_text()
    body = re.search(r"struct ErrorRecord {\s*uint32_t ([^;]*);\s*};", text)
    assert body is not None
    assert tuple(name.strip() for name in body[1].split(",")) == WORDS
    assert re.search(r"kErrorMagic = (0x[0-9A-Fa-f]+)", text)[1] == f"0x{MAGIC:X}"  # type: ignore[index]


def test_activation_codes() -> None:
    codes = enumerators("Activation", "mega_moe/activation.cuh")
    assert {name.removeprefix("k").lower(): code for name, code in codes.items()} == ACTIVATION_CODES


@pytest.mark.parametrize("element", Sm90Element)
def test_the_k_order_of_tokens_is_pythons(element: Sm90Element) -> None:
    """Every position of two blocks of 64, as the weight side permutes them; a shifted one does not compile."""
    natural = sm90_token_permutation(element).tolist()
    position = {k: place for place, k in enumerate(natural)}
    order = f"layout::TokenOrder<{'true' if element is Sm90Element.E4M3 else 'false'}>::position"
    include = '#include "layout/token_order.cuh"\n'
    config = next(iter(FUSED_FOR_LAYOUTS.values()))
    asserts = "".join(f"static_assert({order}({k}) == {k // 64 * 64 + position[k % 64]});\n" for k in range(128))
    compile_with(config, include + asserts)
    with pytest.raises(CompileError, match="static assertion failed"):
        compile_with(config, include + f"static_assert({order}(5) == {position[5] + 4});\n")
