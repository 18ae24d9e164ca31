"""The cache in one process: hits, folders that cannot be written, eviction, cache-only mode."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import threading
from pathlib import Path

import pytest

from megamoe_jit.errors import ArgumentError, CompileError, MissingKernelError
from megamoe_jit.jit import build as build_module
from megamoe_jit.jit import cache as cache_module
from megamoe_jit.jit import entry as entry_module
from megamoe_jit.jit.build import build
from megamoe_jit.jit.built import BuiltKernel, Origin
from megamoe_jit.jit.cache import KernelCache, default_cache
from megamoe_jit.jit.compile import CompileOptions
from megamoe_jit.jit.entry import ENTRY_FILES, KernelRecord, json_value, parse_entry
from megamoe_jit.jit.source import KernelSource
from tests.jit.kernels import ROOTS, again, build_tiny, flip, tiny_kernel

# --- hits ---


def test_first_compiled_then_in_memory_then_on_disk(cache: KernelCache) -> None:
    first = build_tiny(cache)
    assert first.origin is Origin.COMPILED
    assert not first.cache_hit
    assert build_tiny(cache) is first

    loaded = build_tiny(again(cache))
    assert loaded.origin is Origin.DISK
    assert loaded.cache_hit
    assert loaded.path == first.path
    for name in ("key", "ptx", "cubin", "resources", "kernel_name", "arch", "artifact"):
        assert getattr(loaded, name) == getattr(first, name)
    assert loaded.record.meta() == first.record.meta()


def test_the_entry_is_four_files_that_say_what_they_are(cache: KernelCache) -> None:
    built = build_tiny(cache)
    assert built.path is not None
    assert sorted(path.name for path in built.path.iterdir()) == sorted(ENTRY_FILES)
    assert (built.path / "kernel.ptx").read_text() == built.ptx
    assert (built.path / "kernel.cubin").read_bytes() == built.cubin
    assert "constexpr float kFactor = 2.0f;" in (built.path / "kernel.cu").read_text()
    meta = json.loads((built.path / "meta.json").read_text())
    assert meta["parameters"] == {"block_threads": 128, "factor": 2.0}
    assert meta["arch"] == "sm_90a"
    assert meta["resources"]["registers"] == built.resources.registers
    assert repr(built).startswith(f"BuiltKernel({built.key}, compiled, ")


def test_equal_descriptions_share_a_kernel_in_memory(cache: KernelCache) -> None:
    assert build_tiny(cache) is build_tiny(cache)
    assert build(dataclasses.replace(tiny_kernel()), cache=cache, templates=list(ROOTS)) is build_tiny(cache)
    # Another description of the same source finds it by its key.
    unused = dataclasses.replace(tiny_kernel(), values=(("unused", 1),))
    assert build(unused, cache=cache, templates=ROOTS) is build_tiny(cache)


def test_options_make_kernels_of_their_own(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build_tiny(cache)
    assert ".loc" in plain.ptx
    assert build_tiny(cache, options=CompileOptions()) is plain
    monkeypatch.setenv("MEGAMOE_JIT_LINEINFO", "0")
    bare = build_tiny(cache)
    assert ".loc" not in bare.ptx
    assert build_tiny(cache, options=CompileOptions(lineinfo=False)) is bare


def test_what_is_recalled_by_identity_does_not_grow_without_end(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_NUM_REMEMBERED", 10)
    kernels = [tiny_kernel() for _ in range(50)]
    built = {id(build(kernel, cache=cache, templates=ROOTS)) for kernel in kernels}
    assert len(built) == 1
    assert len(cache._by_identity) <= 10


def test_a_cache_in_memory_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = KernelCache(None)
    built = build_tiny(cache)
    assert built.path is None
    assert build_tiny(cache) is built
    assert cache.entries() == cache.verify() == []
    assert cache.clear() == 0
    assert build_tiny(cache) is not built
    assert list(tmp_path.iterdir()) == []
    assert repr(cache) == "KernelCache(None)"


def test_threads_compile_a_kernel_once(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, compile_source = [], build_module.compile_source

    def counting(*args: object, **kwargs: object) -> object:
        compiled.append(threading.get_ident())
        return compile_source(*args, **kwargs)

    monkeypatch.setattr(build_module, "compile_source", counting)
    for this in (cache, KernelCache(None)):
        compiled.clear()
        results: list[BuiltKernel] = []
        start = threading.Barrier(6)

        def work(
            results: list[BuiltKernel] = results, start: threading.Barrier = start, this: KernelCache = this
        ) -> None:
            start.wait()
            results.append(build_tiny(this))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(compiled) == 1
        assert len({id(built) for built in results}) == 1


# --- the default cache ---


def test_the_default_cache_follows_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "a"))
    a = default_cache()
    assert a.path == tmp_path / "a"
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "b"))
    assert default_cache().path == tmp_path / "b"
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "a"))
    assert default_cache() is a


def test_a_bad_variable_is_told_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "bad"))
    monkeypatch.setenv("MEGAMOE_JIT_CASHE_ONLY", "1")
    with pytest.raises(ArgumentError, match="Is it MEGAMOE_JIT_CACHE_ONLY"):
        build(tiny_kernel(), templates=ROOTS)


# --- folders that cannot be written ---


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_cache_below_a_file_degrades_to_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = KernelCache(tmp_path / "file" / "cache")
    first, second = build_tiny(cache, 2.0), build_tiny(cache, 3.0)
    assert first.path is second.path is None
    assert build_tiny(cache, 2.0) is first
    (warning,) = warnings_in(caplog)
    assert "cannot be written" in warning
    assert "Set MEGAMOE_JIT_CACHE_DIR" in warning
    assert cache.entries() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_is_full_degrades_to_memory(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(entry_module.os, "fsync", fail)
    first, second = build_tiny(cache, 2.0), build_tiny(cache, 3.0)
    assert first.path is second.path is None
    assert build_tiny(cache, 2.0) is first
    assert [os.strerror(code) in message for message in warnings_in(caplog)] == [True]
    assert cache.path is not None
    assert list((cache.path / "staging").iterdir()) == []

    monkeypatch.undo()  # space again: the next process finds nothing, and keeps its kernel
    assert build_tiny(again(cache), 2.0).path is not None


def test_a_cache_that_is_read_only_still_gives_what_it_has(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built = build_tiny(cache)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(cache_module.os, "utime", refuse)
    monkeypatch.setattr(Path, "rename", refuse)
    reader = again(cache)
    assert build_tiny(reader).origin is Origin.DISK
    assert warnings_in(caplog) == []
    assert build_tiny(reader, 3.0).path is None
    assert len(warnings_in(caplog)) == 1
    assert cache.remove(built.path or Path()) is False


def test_an_entry_that_cannot_be_read_is_a_miss(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build_tiny(cache)

    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert build_tiny(again(cache)).origin is Origin.COMPILED
    assert len(warnings_in(caplog)) == 1


def test_a_file_system_without_locks_only_loses_the_waiting(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    built = build_tiny(cache)
    assert built.path is not None
    assert build_tiny(again(cache)).cache_hit
    assert warnings_in(caplog) == []


def test_a_lock_that_is_never_released_delays_by_its_time_out_only(
    cache: KernelCache, caplog: pytest.LogCaptureFixture
) -> None:
    key = build_tiny(cache).key
    cache.clear()
    with cache.lock(key.entry_name):
        built = build_tiny(again(cache, lock_timeout_s=0.2))
    assert built.origin is Origin.COMPILED
    assert built.path is not None
    assert [message.startswith("no lock on ") for message in warnings_in(caplog)] == [True]


def test_who_publishes_second_keeps_the_first_entry(cache: KernelCache) -> None:
    built = build_tiny(cache)
    record = dataclasses.replace(built.record, created="later")
    assert cache.publish(record) == built.path
    loaded = cache.load(built.key)
    assert loaded is not None
    assert loaded.created == built.record.created
    assert cache.path is not None
    assert list((cache.path / "staging").iterdir()) == []


# --- size ---


def test_the_cap_evicts_what_was_not_loaded_for_the_longest_time(tmp_path: Path) -> None:
    sizes = KernelCache(tmp_path / "sizes")
    build_tiny(sizes)
    (entry,) = sizes.entries()
    cache = KernelCache(tmp_path / "cache", max_bytes=int(entry.size_bytes * 3.5))
    built = [build_tiny(cache, factor) for factor in (1.0, 2.0, 3.0)]
    for age, kernel in zip((300, 200, 100), built, strict=True):
        assert kernel.path is not None
        os.utime(kernel.path, (1e9 - age, 1e9 - age))
    assert build_tiny(again(cache), 1.0).cache_hit  # loading makes it young
    build_tiny(cache, 4.0)
    held = {info.name for info in cache.entries()}
    assert held == {built[0].key.entry_name, built[2].key.entry_name, build_tiny(cache, 4.0).key.entry_name}
    assert sum(info.size_bytes for info in cache.entries()) <= entry.size_bytes * 3.5


def test_a_cap_below_one_kernel_keeps_the_newest(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path, max_bytes=1)
    for factor in (1.0, 2.0):
        built = build_tiny(cache, factor)
        assert built.path is not None
        assert [info.name for info in cache.entries()] == [built.path.name]


@pytest.mark.parametrize(("text", "kept"), [("none", 2), ("1", 1)])
def test_the_cap_comes_from_its_variable(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch, text: str, kept: int
) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_MAX_BYTES", text)
    build_tiny(cache, 1.0)
    build_tiny(cache, 2.0)
    assert len(cache.entries()) == kept


def test_an_entry_that_is_evicted_while_it_is_read_is_a_miss(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build_tiny(cache)
    assert built.path is not None
    read_bytes = Path.read_bytes

    def evict_first(path: Path) -> bytes:
        if path.name == ENTRY_FILES[1]:
            cache.remove(path.parent)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", evict_first)
    assert again(cache).load(built.key) is None
    monkeypatch.undo()
    assert cache.verify() == []


def test_an_entry_is_removed_in_one_step(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build_tiny(cache)
    assert built.path is not None
    rmtree = cache_module.shutil.rmtree
    seen = []

    def look_first(folder: Path, **more: object) -> None:
        seen.append((built.path.exists(), sorted(path.name for path in folder.iterdir())))
        rmtree(folder, **more)

    monkeypatch.setattr(cache_module.shutil, "rmtree", look_first)
    assert cache.remove(built.path)
    assert seen == [(False, sorted(ENTRY_FILES))]


def test_what_killed_processes_left_is_swept_up(cache: KernelCache) -> None:
    assert cache.path is not None
    old, young = cache.new_staging("old"), cache.new_staging("young")
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "kernel.cubin").touch()
    os.utime(old, (1e9, 1e9))
    build_tiny(cache)
    assert not old.exists()
    assert young.exists()


def test_clear_removes_everything(cache: KernelCache) -> None:
    assert cache.path is not None
    built = build_tiny(cache)
    assert built.path is not None
    flip(built.path / "kernel.ptx")
    cache.forget()
    build_tiny(cache)
    build_tiny(cache, 3.0)
    assert cache.clear() == 2
    assert cache.entries() == []
    assert not (cache.path / "damaged").exists()
    assert build_tiny(cache).origin is Origin.COMPILED


# --- cache-only mode ---


def test_cache_only_loads_and_does_not_compile(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    build_tiny(cache, 2.0)
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_ONLY", "1")
    monkeypatch.delattr(build_module, "compile_source")
    assert build_tiny(again(cache), 2.0).cache_hit
    with pytest.raises(MissingKernelError) as caught:
        build_tiny(cache, 3.0)
    message = str(caught.value)
    assert str(cache.path) in message
    assert "It has 1 others of scale for sm_90a" in message
    assert "megamoe-jit warmup" in message


# --- refused sources ---


def broken_kernel(tmp_path: Path) -> tuple[KernelSource, tuple[Path, ...]]:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "scale.cuh").write_text('#include "config.cuh"\n\nextern "C" __global__ void scale() { wrong(); }\n')
    return tiny_kernel(), (folder, *ROOTS)


def test_a_refused_kernel_says_all_that_is_needed_to_mend_it(cache: KernelCache, tmp_path: Path) -> None:
    kernel, roots = broken_kernel(tmp_path)
    with pytest.raises(CompileError) as caught:
        build(kernel, cache=cache, templates=roots)
    error = caught.value
    assert error.errors == ('/scale.cuh(3): error: identifier "wrong" is undefined',)
    assert error.source_path is not None
    assert cache.path is not None
    assert error.source_path.parent == cache.path / "failed"
    assert str(error).splitlines() == [
        "NVRTC refused kernel 'scale' for sm_90a:",
        '  /scale.cuh(3): error: identifier "wrong" is undefined',
        "Parameters: block_threads=128, factor=2.0",
        f"The rendered source is kept in {error.source_path} (kernel.cu has all of it, log.txt the log).",
        "Mend the template at the line named first, or choose parameters that it can take.",
    ]
    assert "wrong();" in (error.source_path / "kernel.cu").read_text()
    assert "constexpr float kFactor = 2.0f;" in (error.source_path / "config.cuh").read_text()
    assert (error.source_path / "log.txt").read_text() == error.log
    assert cache.entries() == []


def test_a_template_that_does_not_render_says_for_which_parameters(cache: KernelCache, tmp_path: Path) -> None:
    (tmp_path / "scale.cuh").write_text("${ absent }")
    with pytest.raises(CompileError) as caught:
        build(tiny_kernel(), cache=cache, templates=(tmp_path,))
    assert caught.value.errors == ("/scale.cuh(1): 'absent' is undefined",)
    assert str(caught.value).endswith("\nParameters: block_threads=128, factor=2.0")


@pytest.mark.parametrize("below_a_file", [True, False])
def test_a_refused_source_is_kept_even_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below_a_file: bool
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    kernel, roots = broken_kernel(tmp_path)
    with pytest.raises(CompileError) as caught:
        build(kernel, cache=KernelCache(tmp_path / "file" / "cache" if below_a_file else None), templates=roots)
    assert caught.value.source_path is not None
    assert caught.value.source_path.parent == tmp_path
    assert "wrong();" in (caught.value.source_path / "scale.cuh").read_text()


def test_a_refused_source_that_cannot_be_kept_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    kernel, roots = broken_kernel(tmp_path)
    with pytest.raises(CompileError, match=re.escape("The rendered source could not be kept.")) as caught:
        build(kernel, cache=KernelCache(None), templates=roots)
    assert caught.value.source_path is None


def test_refused_sources_are_kept_in_small_number(cache: KernelCache, tmp_path: Path) -> None:
    _, roots = broken_kernel(tmp_path)
    for factor in range(12):
        with pytest.raises(CompileError):
            build(tiny_kernel(float(factor)), cache=cache, templates=roots)
    assert cache.path is not None
    assert len(list((cache.path / "failed").iterdir())) == 8


# --- records ---


def test_template_values_are_kept_as_json_has_them() -> None:
    assert json_value({"shapes": ((8, 4),), "odd": {1}}) == {"shapes": [[8, 4]], "odd": "{1}"}


def test_a_record_survives_its_files(cache: KernelCache) -> None:
    kernel = dataclasses.replace(tiny_kernel(), values=(("shapes", ((8, 4), (16, 8))),))
    record = build(kernel, cache=cache, templates=ROOTS).record
    copy = parse_entry(record.files(), record.key)
    names = [field.name for field in dataclasses.fields(KernelRecord)]
    assert [getattr(copy, name) for name in names] == [getattr(record, name) for name in names]
