"""Dumps: five files of every kernel that is built or loaded, one line that says where."""

from __future__ import annotations

import json
import logging
import re
import stat
from importlib import metadata
from pathlib import Path

import pytest

from megamoe_jit.jit import dump as dump_module
from megamoe_jit.jit.build import build
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.compile import CompileOptions
from megamoe_jit.jit.dump import disassemble, dump, dump_dir, find_disassembler, find_nvdisasm
from tests.jit.kernels import ROOTS, tiny_kernel

has_disassembler = find_disassembler() is not None


def suffixes(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def tool(folder: Path, script: str) -> Path:
    path = folder / "nvdisasm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without nvdisasm."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)


def test_every_kernel_built_or_loaded_is_dumped_and_said_where(
    cache: KernelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "megamoe_jit")
    monkeypatch.setenv("MEGAMOE_JIT_DUMP_DIR", str(tmp_path / "dump"))
    for this in (cache, KernelCache(cache.path)):  # compiled, then loaded
        built = build(tiny_kernel(), cache=this, templates=ROOTS)
        folder = tmp_path / "dump"
        expected = (
            [".cu", ".cubin", ".json", ".ptx", ".sass"] if has_disassembler else [".cu", ".cubin", ".json", ".ptx"]
        )
        assert suffixes(folder) == expected
        stem = folder / built.key.entry_name
        assert stem.with_suffix(".ptx").read_text() == built.ptx
        assert stem.with_suffix(".cubin").read_bytes() == built.cubin
        assert json.loads(stem.with_suffix(".json").read_text())["instructions"]["fma.rn.f32"] == 1
        lines = [record.message for record in caplog.records if record.name == "megamoe_jit.dump"]
        assert len(lines) == 1
        assert lines[0].startswith(f"dumped {stem}")
        caplog.clear()
        for path in folder.iterdir():
            path.unlink()
        build(tiny_kernel(), cache=this, templates=ROOTS)  # from memory: neither built nor loaded
        assert suffixes(folder) == []


def test_the_dump_goes_below_the_cache_by_default(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert dump_dir(cache) is None
    monkeypatch.setenv("MEGAMOE_JIT_DUMP", "1")
    assert cache.path is not None
    assert dump_dir(cache) == cache.path / "dump"
    monkeypatch.chdir(tmp_path)
    assert dump_dir(KernelCache(None)) == tmp_path / "dump"
    monkeypatch.setenv("MEGAMOE_JIT_DUMP_DIR", str(tmp_path / "there"))
    assert dump_dir(cache) == tmp_path / "there"


def test_a_dump_that_cannot_be_written_costs_a_warning_only(
    cache: KernelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEGAMOE_JIT_DUMP_DIR", str(tmp_path / "file" / "dump"))
    assert build(tiny_kernel(), cache=cache, templates=ROOTS).path is not None
    assert "cannot be dumped to" in caplog.text


@pytest.mark.skipif(not has_disassembler, reason="no nvdisasm on this machine (extra `sass`)")
def test_sass_has_instructions_and_template_lines(cache: KernelCache) -> None:
    sass = disassemble(build(tiny_kernel(), cache=cache, templates=ROOTS).cubin)
    assert sass is not None
    assert "FFMA" in sass
    assert "/scale.cuh" in sass


@pytest.mark.usefixtures("no_tools")
def test_without_a_disassembler_the_dump_has_no_sass_and_says_so(cache: KernelCache, tmp_path: Path) -> None:
    assert find_disassembler() is None
    built = build(tiny_kernel(), cache=cache, templates=ROOTS)
    dump(built, tmp_path / "dump")
    assert suffixes(tmp_path / "dump") == [".cu", ".cubin", ".json", ".ptx"]
    assert json.loads((tmp_path / "dump" / f"{built.key.entry_name}.json").read_text())["sass"].startswith(
        "no nvdisasm"
    )


@pytest.mark.usefixtures("no_tools")
def test_disassemblers_are_tried_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = tool(tmp_path, "echo cannot read >&2; exit 1")  # on PATH
    hangs = tool(tmp_path / "home" / "bin", "exec sleep 60")
    works = tool(tmp_path / "cuda" / "bin", "echo sass")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "cuda"))
    monkeypatch.setattr(dump_module, "_DISASSEMBLE_TIMEOUT_S", 0.2)
    assert list(find_nvdisasm()) == [refuses, hangs, works]
    assert disassemble(b"cubin") == "sass\n"
    works.unlink()
    assert disassemble(b"cubin") is None


def test_the_wheel_has_a_disassembler(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        metadata.files("nvidia-cuda-nvdisasm")
    except metadata.PackageNotFoundError:
        pytest.skip("nvidia-cuda-nvdisasm is not installed (extra `sass`)")
    assert [path.name for path in find_nvdisasm()][-1] == "nvdisasm"


@pytest.mark.skipif(not has_disassembler, reason="no nvdisasm on this machine (extra `sass`)")
def test_line_information_leaves_the_machine_code(cache: KernelCache) -> None:
    codes = []
    for lineinfo in (True, False):
        built = build(tiny_kernel(), options=CompileOptions(lineinfo=lineinfo), cache=cache, templates=ROOTS)
        codes.append(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?;)", disassemble(built.cubin) or "", re.MULTILINE))
    assert len(codes[0]) > 8
    assert codes[0] == codes[1]
