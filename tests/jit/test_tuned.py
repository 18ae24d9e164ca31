"""Files of tuned choices: merged, published in one step, and never in the way when they are damaged."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megamoe_jit.errors import CacheError
from megamoe_jit.jit import tuned
from megamoe_jit.jit.archive import Unpacked, pack, unpack
from megamoe_jit.jit.build import build
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.entry import DamagedEntryError
from megamoe_jit.jit.tuned import (
    TunedTile,
    TuningRecord,
    find_record,
    keep_record,
    parse_record,
    record_name,
    record_paths,
    verify_records,
)
from tests.jit.kernels import ROOTS, tiny_kernel

KEY = {"schema": 1, "device": "NVIDIA H200", "num_sms": 132}


def record(*tiles: tuple[int, int], **key: Any) -> TuningRecord:
    choices = tuple(TunedTile(num_tokens=t, block_n=n, us=90.0, rule_us=100.0) for t, n in tiles)
    return TuningRecord(key={**KEY, **key}, tiles=choices, driver="13.0")


def stored(cache: KernelCache, **key: Any) -> list[tuple[int, int]]:
    found = find_record(cache, {**KEY, **key})
    return [] if found is None else [(tile.num_tokens, tile.block_n) for tile in found.tiles]


def only_path(cache: KernelCache) -> Path:
    (path,) = record_paths(cache)
    return path


def damaged(cache: KernelCache) -> list[Path]:
    assert cache.path is not None
    return sorted((cache.path / "damaged").glob("*"))


def test_what_is_kept_is_found(cache: KernelCache) -> None:
    assert find_record(cache, KEY) is None
    kept = keep_record(cache, record((8, 16)))
    assert find_record(KernelCache(cache.path), KEY) == kept
    text = json.loads(only_path(cache).read_text())
    assert text["key"] == KEY
    assert (text["tiles"], text["driver"]) == ([{"num_tokens": 8, "block_n": 16, "us": 90.0, "rule_us": 100.0}], "13.0")
    assert text["date"]
    assert text["package"]


@pytest.mark.parametrize("change", [{"device": "NVIDIA H100"}, {"num_sms": 78}, {"schema": 2}, {"more": None}])
def test_another_key_is_another_file(cache: KernelCache, change: dict[str, Any]) -> None:
    keep_record(cache, record((8, 16)))
    assert stored(cache, **change) == []
    keep_record(cache, record((8, 32), **change))
    assert (stored(cache), stored(cache, **change)) == ([(8, 16)], [(8, 32)])


def test_records_are_merged(cache: KernelCache) -> None:
    keep_record(cache, record((8, 16), (64, 24)))
    merged = keep_record(cache, record((1, 8), (64, 32)))
    assert [(tile.num_tokens, tile.block_n) for tile in merged.tiles] == stored(cache) == [(1, 8), (8, 16), (64, 32)]
    keep_record(cache, record((8, 64), (512, 64)), is_newer=False)
    assert stored(cache) == [(1, 8), (8, 16), (64, 32), (512, 64)]


def test_processes_that_tune_at_once_keep_each_others_choices(cache: KernelCache) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from megamoe_jit.jit.cache import KernelCache\n"
        "from tests.jit.test_tuned import keep_record, record\n"
        "for i in range(20): keep_record(KernelCache(sys.argv[1]), record((int(sys.argv[2]) + 2 * i, 8)))\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(cache.path), str(first)], env=environment, cwd=root)
        for first in (1, 2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert stored(cache) == [(n, 8) for n in range(1, 41)]


def test_a_writer_that_fails_leaves_the_file_as_it_was(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_record(cache, record((8, 16)))
    before = only_path(cache).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tuned.os, "replace", fail)
        with pytest.raises(CacheError, match=r"No space left on device.*Set MEGAMOE_JIT_CACHE_DIR"):
            keep_record(cache, record((64, 32)))
    assert only_path(cache).read_bytes() == before
    assert cache.path is not None
    assert list((cache.path / "staging").iterdir()) == []
    with pytest.raises(CacheError, match="in memory only"):
        keep_record(KernelCache(None), record((8, 16)))
    assert find_record(KernelCache(None), KEY) is None


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(record((8, 16)).data()), **fields}).encode()


def tile(**fields: Any) -> dict[str, Any]:
    return {"num_tokens": 8, "block_n": 16, "us": 90.0, "rule_us": 100.0, **fields}


BAD = {
    "cut short": record((8, 16)).data()[:-30],
    "empty": b"",
    "no text": b"\xff\xfe",
    "a list": b"[]",
    "another key": changed(key={**KEY, "num_sms": 1}),
    "no tiles": changed(tiles=None),
    "one field more": changed(extra=1),
    "a tile's field more": changed(tiles=[tile(extra=1)]),
    "tokens as text": changed(tiles=[tile(num_tokens="8")]),
    "a fraction of a token": changed(tiles=[tile(num_tokens=8.5)]),
    "a flag": changed(tiles=[tile(block_n=True)]),
    "no time": changed(tiles=[tile(us=0)]),
    "endless time": changed(tiles=[tile(us=float("inf"))]),
    "not a number": changed(tiles=[tile(rule_us=float("nan"))]),
    "twice": changed(tiles=[tile(), tile()]),
    "out of order": changed(tiles=[tile(), tile(num_tokens=4)]),
    "no driver": changed(driver=None),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_damaged_file_is_set_aside_and_a_miss(
    cache: KernelCache, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    keep_record(cache, record((8, 16)))
    path = only_path(cache)
    path.write_bytes(data)
    with pytest.raises(DamagedEntryError):
        parse_record(path.name, data)
    with caplog.at_level(logging.WARNING):
        assert stored(cache) == stored(cache) == []
    assert [message for message in caplog.messages if path.name in message] == caplog.messages
    assert len(caplog.messages) == 1
    assert [aside.read_bytes() for aside in damaged(cache)] == [data]
    keep_record(cache, record((64, 32)))
    assert stored(cache) == [(64, 32)]


def test_few_damaged_files_are_kept(cache: KernelCache) -> None:
    for _ in range(12):
        keep_record(cache, record((8, 16)))
        only_path(cache).write_bytes(b"?")
        assert stored(cache) == []
    assert len(damaged(cache)) == 8


def test_verify_clear_and_eviction(cache: KernelCache, tmp_path: Path) -> None:
    small = KernelCache(cache.path, max_bytes=1)
    keep_record(cache, record((8, 16)))
    keep_record(cache, record((8, 16), num_sms=78))
    build(tiny_kernel(1.0), cache=small, templates=ROOTS)
    build(tiny_kernel(2.0), cache=small, templates=ROOTS)
    assert len(small.folders()) == 1
    assert verify_records(cache) == []
    bad = record_paths(cache)[0]
    bad.write_bytes(b"?")
    assert verify_records(cache) == [bad.name]
    assert len(record_paths(cache)) == 1
    assert cache.clear() == 1
    assert record_paths(cache) == []


def test_archives_carry_choices(cache: KernelCache, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (name,) = pack_one(cache, tmp_path / "kernels.tar.gz")
    other = KernelCache(tmp_path / "other")
    keep_record(other, record((8, 64), (512, 64)))
    done = unpack(tmp_path / "kernels.tar.gz", other)
    assert done == Unpacked(added=(name,), present=(), tuned=(record_name(KEY),))
    assert stored(other) == [(8, 64), (64, 32), (512, 64)]  # what was measured there stays
    pack(cache, tmp_path / "some.tar", names=[name])
    assert unpack(tmp_path / "some.tar", KernelCache(tmp_path / "third")).tuned == ()
    only_path(cache).write_bytes(b"?")
    pack(cache, tmp_path / "without.tar")
    assert "left out of the archive" in caplog.text
    assert unpack(tmp_path / "without.tar", KernelCache(tmp_path / "fourth")).tuned == ()


def pack_one(cache: KernelCache, archive: Path) -> list[str]:
    build(tiny_kernel(1.0), cache=cache, templates=ROOTS)
    keep_record(cache, record((8, 16), (64, 32)))
    return pack(cache, archive)


@pytest.mark.parametrize("data", [BAD["another key"], BAD["twice"]], ids=["another key", "twice"])
def test_an_archive_with_bad_choices_is_refused(
    cache: KernelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr("megamoe_jit.jit.archive.parse_record", lambda name, data: None)
    build(tiny_kernel(1.0), cache=cache, templates=ROOTS)
    keep_record(cache, record((8, 16)))
    only_path(cache).write_bytes(data)
    pack(cache, tmp_path / "bad.tar")
    monkeypatch.undo()
    other = KernelCache(tmp_path / "other")
    with pytest.raises(CacheError, match="the archive is refused"):
        unpack(tmp_path / "bad.tar", other)
    assert other.folders() == record_paths(other) == []
