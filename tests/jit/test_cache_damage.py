"""Damaged entries of the cache: found, set aside and built again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megamoe_jit.jit import entry as entry_module
from megamoe_jit.jit.built import Origin
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.entry import ENTRY_FILES, DamagedEntryError, parse_entry, read_meta
from tests.jit.kernels import again, build_tiny, flip


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[Callable[[Path], None]] = [truncate, empty, flip, append, Path.unlink, folder_instead]
CASES = [(file, damage) for file in ENTRY_FILES for damage in DAMAGES if (file, damage) != ("meta.json", append)]


@pytest.mark.parametrize(("file", "damage"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_a_damaged_entry_is_set_aside_and_built_again(
    cache: KernelCache, caplog: pytest.LogCaptureFixture, file: str, damage: Callable[[Path], None]
) -> None:
    first = build_tiny(cache)
    assert first.path is not None
    assert cache.path is not None
    damage(first.path / file)

    rebuilt = build_tiny(again(cache))
    assert rebuilt.origin is Origin.COMPILED
    assert rebuilt.path == first.path
    assert len(list((cache.path / "damaged").iterdir())) == 1
    assert sum("is damaged" in record.message for record in caplog.records) == 1
    healthy = build_tiny(again(cache))
    assert healthy.origin is Origin.DISK
    assert healthy.cubin == first.cubin


def swap_files(cache: KernelCache, name: str) -> None:
    """Put a whole file of another kernel into the first kernel's entry."""
    a, b = build_tiny(cache, 2.0), build_tiny(cache, 3.0)
    assert a.path is not None
    assert b.path is not None
    (a.path / name).write_bytes((b.path / name).read_bytes())


@pytest.mark.parametrize("file", ["kernel.ptx", "kernel.cu", "kernel.cubin", "meta.json"])
def test_a_file_of_another_kernel_is_damage(cache: KernelCache, file: str) -> None:
    swap_files(cache, file)
    assert build_tiny(again(cache), 2.0).origin is Origin.COMPILED


def test_a_whole_entry_of_another_kernel_is_damage(cache: KernelCache) -> None:
    for file in ENTRY_FILES:
        swap_files(cache, file)
    rebuilt = build_tiny(again(cache), 2.0)
    assert rebuilt.origin is Origin.COMPILED
    assert "kFactor = 2.0f" in rebuilt.record.source


def edit_meta(meta: dict[str, object], **changes: object) -> bytes:
    """Change meta.json and give it the digest that fits."""
    changed = {name: value for name, value in (meta | changes).items() if name != "digest" and value is not None}
    return json.dumps({**changed, "digest": entry_module._meta_digest(changed)}).encode()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "meta.json cannot be read"),
        (b"[]", "meta.json cannot be read"),
        (b"null", "meta.json cannot be read"),
        (b"{}", "meta.json cannot be read"),
        (b"[" * 100_000, "meta.json cannot be read"),
        (b"\xff", "meta.json cannot be read"),
        (b'{"digest": "", "schema": 1}', "was changed"),
        (edit_meta({}, schema=999), "meta.json has version 999"),
    ],
)
def test_a_meta_json_that_is_none_is_damage(data: bytes, sentence: str) -> None:
    with pytest.raises(DamagedEntryError, match=sentence):
        read_meta(data)


@pytest.mark.parametrize(
    "changes", [{"files": {}}, {"nvrtc": []}, {"resources": {"registers": 1}}, {"log": None}, {"files": 3}]
)
def test_a_meta_json_that_lacks_fields_is_damage(cache: KernelCache, changes: dict[str, object]) -> None:
    files = build_tiny(cache).record.files()
    files["meta.json"] = edit_meta(json.loads(files["meta.json"]), **changes)
    with pytest.raises(DamagedEntryError, match=r"meta\.json lacks"):
        parse_entry(files)


def test_damaged_entries_are_kept_in_small_number(cache: KernelCache) -> None:
    assert cache.path is not None
    for _ in range(12):
        built = build_tiny(cache)
        assert built.path is not None
        flip(built.path / "kernel.ptx")
        cache.forget()
    assert len(list((cache.path / "damaged").iterdir())) == 8


def test_verify_finds_damage_and_sets_it_aside(cache: KernelCache) -> None:
    good, bad, worse = (build_tiny(cache, factor) for factor in (1.0, 2.0, 3.0))
    assert bad.path is not None
    assert worse.path is not None
    flip(bad.path / "kernel.cubin")
    (worse.path / "meta.json").write_text("{")
    assert [info.damage is None for info in cache.entries()].count(True) == 2  # reads meta.json only

    for set_aside in (False, True):
        found = {info.name: info for info in cache.verify(set_aside=set_aside)}
        assert found[good.key.entry_name].damage is None
        assert found[good.key.entry_name].kernel_name == "scale"
        assert found[bad.key.entry_name].damage == "kernel.cubin does not have the digest that meta.json says"
        assert "meta.json cannot be read" in str(found[worse.key.entry_name].damage)
    assert [info.name for info in cache.verify()] == [good.key.entry_name]


def test_a_folder_with_the_name_of_another_kernel_is_damage(cache: KernelCache) -> None:
    built = build_tiny(cache)
    assert built.path is not None
    built.path.rename(built.path.with_name("scale-sm_90a-" + "0" * 32))
    (info,) = cache.entries()
    assert info.damage == f"meta.json is that of {built.key}"
