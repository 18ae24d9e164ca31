"""Rules that keep templates readable CUDA: what Jinja may do in them, where assembly stands, how files open."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megamoe_jit.jit.places import templates_dir

TEMPLATES = templates_dir()
FILES = sorted(path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.rglob("*.cuh"))


def read(name: str) -> str:
    return (TEMPLATES / name).read_text()


def without_comments(text: str) -> str:
    return re.sub(r"//(?!%)[^\n]*", "", text)


def is_entry(name: str) -> bool:
    return 'extern "C" __global__' in read(name)


def test_there_are_templates() -> None:
    assert {"config.cuh", "types.cuh"} <= set(FILES)
    assert any(is_entry(name) for name in FILES)
    assert all(path.suffix in (".cuh", ".md") for path in TEMPLATES.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", FILES)
def test_a_header_is_included_once_and_an_entry_by_nobody(name: str) -> None:
    includes = {match for other in FILES for match in re.findall(r'#include "([^"]+)"', read(other))}
    if is_entry(name):
        assert name not in includes
    else:
        assert re.search(r"^#pragma once$", read(name), re.MULTILINE)


@pytest.mark.parametrize("name", FILES)
def test_quoted_includes_are_paths_below_the_template_folder(name: str) -> None:
    for include in re.findall(r'#include "([^"]+)"', read(name)):
        assert "${" in include or include in FILES


@pytest.mark.parametrize("name", FILES)
def test_assembly_stands_in_ptx_only(name: str) -> None:
    assert name.startswith("ptx/") or not re.search(r"\basm\b", without_comments(read(name)))


@pytest.mark.parametrize("name", FILES)
def test_jinja_loops_and_names_and_does_nothing_else(name: str) -> None:
    statements = re.findall(r"^[ \t]*//%[ \t]*(\w+)", read(name), re.MULTILINE)
    assert set(statements) <= {"for", "endfor", "set"}
    for expression in re.findall(r"\$\{([^}]*)\}", read(name)):
        assert re.fullmatch(r" [\w.]+( [+*-] \d+)?( \| \w+(\([^()]*\))?)* ", expression), expression


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_one_subject(name: str) -> None:
    assert len(read(name).splitlines()) <= 500


@pytest.mark.parametrize("name", FILES)
def test_lines_fit_and_end_cleanly(name: str) -> None:
    text = read(name)
    assert text.endswith("\n")
    assert text.isascii()
    assert [line for line in text.splitlines() if line != line.rstrip() or "\t" in line] == []


def test_the_same_include_is_never_written_with_another_path() -> None:
    assert len({Path(name).name for name in FILES if not is_entry(name)}) == sum(not is_entry(name) for name in FILES)
