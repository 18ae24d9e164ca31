from __future__ import annotations

from pathlib import Path

import pytest

from megamoe_jit.jit.cache import KernelCache, default_cache
from tests.cli.conftest import SMALL, Run


def damage(cache: KernelCache) -> str:
    """Change one byte of the cubin of the first entry; return the entry's name."""
    folder = cache.folders()[0]
    cubin = folder / "kernel.cubin"
    data = bytearray(cubin.read_bytes())
    data[100] ^= 1
    cubin.write_bytes(data)
    return folder.name


def test_path_is_the_folder_in_use(run: Run, cache: KernelCache) -> None:
    assert run("cache", "path").out == f"{cache.path}\n"
    assert run("cache", "path", "--json").record == {"path": str(cache.path)}


def test_an_empty_cache_lists_nothing(run: Run) -> None:
    assert run("cache", "list", "--json").record["entries"] == []
    assert "0 kernels, 0 B" in run("cache", "list").out


def test_list_says_what_each_entry_is(run: Run, warm_cache: KernelCache) -> None:
    record = run("cache", "list", "--json").record
    assert [entry["name"] for entry in record["entries"]] == [folder.name for folder in warm_cache.folders()]
    assert record["bytes"] == sum(entry["size_bytes"] for entry in record["entries"]) > 0
    assert {entry["kernel_name"] for entry in record["entries"]} == {"mega_moe_sm90", "stage_tokens"}
    text = run("cache", "list").out
    assert all(entry["name"] in text for entry in record["entries"])
    assert text.count("whole") == 3


def test_verify_finds_and_sets_aside_a_changed_byte(run: Run, warm_cache: KernelCache) -> None:
    name = damage(warm_cache)
    ran = run("cache", "verify", "--json")
    assert ran.code == 1
    assert ran.record["whole"] == 2
    assert [entry["name"] for entry in ran.record["damaged"]] == [name]
    again = run("cache", "verify")
    assert (again.code, again.out) == (0, "2 kernels are whole, 0 were damaged\n")


def test_verify_names_the_damage_for_people(run: Run, warm_cache: KernelCache) -> None:
    name = damage(warm_cache)
    ran = run("cache", "verify")
    assert ran.code == 1
    assert f"damaged, set aside: {name}: kernel.cubin does not have the digest" in ran.out


def test_clear_removes_every_kernel(run: Run, warm_cache: KernelCache) -> None:
    assert run("cache", "clear", "--json").record["removed"] == 3
    assert warm_cache.folders() == []
    assert run("cache", "clear").out == f"0 kernels removed from {warm_cache.path}\n"


@pytest.mark.parametrize("archive_name", ["kernels.tar", "kernels.tar.gz"])
def test_packed_kernels_serve_where_nothing_may_be_compiled(
    run: Run, warm_cache: KernelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive_name: str
) -> None:
    archive = tmp_path / archive_name
    packed = run("cache", "pack", archive, "--json").record
    assert packed["bytes"] == archive.stat().st_size
    assert packed["packed"] == [folder.name for folder in warm_cache.folders()]

    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_ONLY", "1")
    demo = ("demo", *SMALL, "--tokens", "8", "--arch", "sm_90a", "--json")
    refused = run(*demo)
    assert refused.code == 1
    assert "MEGAMOE_JIT_CACHE_ONLY is set" in refused.record["error"]
    assert run("cache", "unpack", archive, "--json").record["added"] == packed["packed"]
    assert run(*demo).record["cache"] == "hit"
    assert run("cache", "unpack", archive).out == f"0 kernels added to {default_cache().path}, 3 were there\n"


def test_there_must_be_something_to_pack(run: Run, tmp_path: Path) -> None:
    ran = run("cache", "pack", tmp_path / "kernels.tar", "--json")
    assert ran.code == 1
    assert "holds no kernel to pack" in ran.record["error"]
    assert not (tmp_path / "kernels.tar").exists()


def test_a_file_that_is_no_archive_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.tar").write_text("not an archive")
    ran = run("cache", "unpack", tmp_path / "notes.tar", "--json")
    assert ran.code == 1
    assert ran.record["type"] == "CacheError"
    assert "notes.tar is no readable archive of kernels" in ran.record["error"]
