"""Keys: a table of what must, and what must not, change one."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megamoe_jit.arch import get_arch
from megamoe_jit.errors import ArgumentError
from megamoe_jit.jit import key as key_module
from megamoe_jit.jit.compile import CompileOptions
from megamoe_jit.jit.key import KernelKey, kernel_key
from megamoe_jit.jit.render import RenderedSource, render
from megamoe_jit.jit.source import KernelSource
from tests.jit.kernels import ROOTS, tiny_kernel


def key_of(
    kernel: KernelSource | None = None,
    *,
    rendered: RenderedSource | None = None,
    options: CompileOptions | None = None,
    nvrtc: tuple[int, int] = (13, 4),
) -> KernelKey:
    kernel = kernel or tiny_kernel()
    return kernel_key(
        rendered or render(kernel, templates=ROOTS),
        kernel_name=kernel.kernel_name,
        arch=kernel.arch,
        flags=(options or CompileOptions()).flags(kernel.arch),
        nvrtc=nvrtc,
    )


def with_text(change: Callable[[str], str]) -> RenderedSource:
    rendered = render(tiny_kernel(), templates=ROOTS)
    files = tuple((name, change(text) if name == "lane.cuh" else text) for name, text in rendered.files)
    return dataclasses.replace(rendered, files=files)


def renamed() -> RenderedSource:
    rendered = render(tiny_kernel(), templates=ROOTS)
    files = tuple(("warp.cuh" if name == "lane.cuh" else name, text) for name, text in rendered.files)
    return dataclasses.replace(rendered, files=files)


def moved_text() -> RenderedSource:
    """The same characters, cut into files at another place."""
    rendered = render(tiny_kernel(), templates=ROOTS)
    (name_a, text_a), (name_b, text_b), *rest = rendered.files
    return dataclasses.replace(rendered, files=((name_a, text_a + text_b[:1]), (name_b, text_b[1:]), *rest))


MUST_CHANGE = {
    "constant's value": lambda: key_of(tiny_kernel(3.0)),
    "constant's type": lambda: key_of(
        dataclasses.replace(tiny_kernel(), parameters=(("block_threads", 128), ("factor", 2)))
    ),
    "one more constant": lambda: key_of(tiny_kernel(more=1)),
    "kernel's name": lambda: key_of(tiny_kernel(kernel_name="other")),
    "target": lambda: key_of(tiny_kernel(arch="sm_100a")),
    "family target": lambda: key_of(tiny_kernel(arch="sm_100f")),
    "text of a header": lambda: key_of(rendered=with_text(lambda text: text + "\n")),
    "name of a header": lambda: key_of(rendered=renamed()),
    "where a header ends": lambda: key_of(rendered=moved_text()),
    "program": lambda: key_of(rendered=dataclasses.replace(render(tiny_kernel(), templates=ROOTS), main="")),
    "line information": lambda: key_of(options=CompileOptions(lineinfo=False)),
    "contraction": lambda: key_of(options=CompileOptions(fmad=False)),
    "fast math": lambda: key_of(options=CompileOptions(fast_math=True)),
    "registers": lambda: key_of(options=CompileOptions(max_registers=64)),
    "language": lambda: key_of(options=CompileOptions(std="c++17")),
    "a macro": lambda: key_of(options=CompileOptions(extra=("-DX=1",))),
    "order of macros": lambda: key_of(options=CompileOptions(extra=("-DX=2", "-DX=1"))),
    "NVRTC's minor version": lambda: key_of(nvrtc=(13, 5)),
    "NVRTC's major version": lambda: key_of(nvrtc=(14, 4)),
}


def test_each_cause_gives_a_key_of_its_own() -> None:
    keys = {cause: make() for cause, make in MUST_CHANGE.items()}
    keys["nothing"] = key_of()
    keys["macros in the other order"] = key_of(options=CompileOptions(extra=("-DX=1", "-DX=2")))
    assert len({key.digest for key in keys.values()}) == len(keys)
    assert len({key.entry_name for key in keys.values()}) == len(keys)


def test_the_schema_version_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of()
    monkeypatch.setattr(key_module, "SCHEMA_VERSION", 999)
    assert key_of() != before


def copied_templates(tmp_path: Path) -> KernelKey:
    """Templates at another place, with other dates and modes."""
    for root in ROOTS:
        shutil.copytree(root, tmp_path / "templates", dirs_exist_ok=True)
    for path in (tmp_path / "templates").rglob("*.cuh"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    return kernel_key_from(tmp_path / "templates")


def kernel_key_from(folder: Path) -> KernelKey:
    return key_of(rendered=render(tiny_kernel(), templates=(folder,)))


def unreached_template(tmp_path: Path) -> KernelKey:
    (tmp_path / "unreached.cuh").write_text("#error\n")
    return key_of(rendered=render(tiny_kernel(), templates=(*ROOTS, tmp_path)))


def other_folder(tmp_path: Path) -> KernelKey:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        return key_of()
    finally:
        os.chdir(before)


def reordered_files(tmp_path: Path) -> KernelKey:
    rendered = render(tiny_kernel(), templates=ROOTS)
    return key_of(rendered=dataclasses.replace(rendered, files=rendered.files[::-1]))


MUST_NOT_CHANGE: dict[str, Callable[[Path], KernelKey]] = {
    "asking again": lambda tmp_path: key_of(),
    "templates copied elsewhere": copied_templates,
    "a template that is not included": unreached_template,
    "working directory": other_folder,
    "order in which files were met": reordered_files,
    "an equal description": lambda tmp_path: key_of(
        KernelSource(**{f.name: getattr(tiny_kernel(), f.name) for f in dataclasses.fields(KernelSource)})
    ),
    "a template value that nothing uses": lambda tmp_path: key_of(
        dataclasses.replace(tiny_kernel(), values=(("unused", 1),))
    ),
}


@pytest.mark.parametrize("cause", MUST_NOT_CHANGE)
def test_what_the_code_does_not_depend_on_leaves_the_key(cause: str, tmp_path: Path) -> None:
    assert MUST_NOT_CHANGE[cause](tmp_path) == key_of()


def test_the_entry_name_is_readable_and_safe() -> None:
    key = key_of()
    assert re.fullmatch(r"scale-sm_90a-[0-9a-f]{32}", key.entry_name)
    assert str(key) == key.entry_name


@pytest.mark.parametrize("name", ["", "a b", "../up", "1st", "a/b", "k" * 129, "größe"])
def test_a_name_that_is_no_symbol_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="cannot be both a symbol and a folder's name"):
        kernel_key(
            render(tiny_kernel(), templates=ROOTS), kernel_name=name, arch=get_arch("sm_90a"), flags=(), nvrtc=(13, 4)
        )
