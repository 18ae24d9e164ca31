"""Object code on disk: reused, and rebuilt whatever happens to it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from megamoe_jit.emulator.native import engine as engine_module
from megamoe_jit.emulator.native.engine import NativeEngine
from megamoe_jit.emulator.native.objects import ObjectCache
from tests.emulator.native.harness import Bench, finish, kernel_text

TEXT = kernel_text("mov.u32 %r1, 5;\nadd.u32 %r1, %r1, %r1;\nret;", "", ".reg .b32 %r<3>;")


def test_objects_come_back_as_they_were(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "deep" / "folder")
    key = cache.key("a", "b")
    assert cache.load(key) is None
    cache.keep(key, [b"first", b"", b"third" * 1000])
    assert cache.load(key) == [b"first", b"", b"third" * 1000]
    assert ObjectCache(tmp_path / "deep" / "folder").load(key) is not None
    assert [path.name for path in (tmp_path / "deep" / "folder").iterdir()] == [f"{key}.o"], "no staging file stays"


def test_keys_tell_their_parts_apart() -> None:
    cache = ObjectCache(None)
    keys = [cache.key(*parts) for parts in (("ab",), ("a", "b"), ("a", "", "b"), ("b", "a"), ())]
    assert len(set(keys)) == len(keys)
    assert cache.key("ab") == keys[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:10],
        lambda text: text[:-1],
        lambda text: text + b"x",
        lambda text: text[:60] + bytes([text[60] ^ 1]) + text[61:],
        lambda text: b"something else entirely" * 100,
    ],
)
def test_damaged_entries_are_not_there(tmp_path: Path, damage, caplog: pytest.LogCaptureFixture) -> None:
    cache = ObjectCache(tmp_path)
    key = cache.key("x")
    cache.keep(key, [b"code" * 100])
    path = tmp_path / f"{key}.o"
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load(key) is None
    assert "damaged" in caplog.text
    cache.keep(key, [b"code" * 100])
    assert cache.load(key) == [b"code" * 100]


def test_a_folder_that_cannot_be_written_costs_only_the_reuse(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    cache = ObjectCache(blocker / "cache")
    cache.keep(cache.key("x"), [b"code"])
    assert cache.load(cache.key("x")) is None


def test_entries_not_used_for_long_make_room(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, max_bytes=5000)
    keys = [cache.key(str(number)) for number in range(6)]
    for age, key in enumerate(keys[:5]):
        cache.keep(key, [bytes(900)])
        os.utime(tmp_path / f"{key}.o", (1000 + age, 1000 + age))
    assert cache.load(keys[0]) is not None  # now it is the one used last
    left_behind = tmp_path / ".x.o.123"
    left_behind.write_bytes(b"")
    os.utime(left_behind, (1000, 1000))
    cache.keep(keys[5], [bytes(900)])
    assert [cache.load(key) is not None for key in keys] == [True, False, True, True, True, True]
    assert not left_behind.exists()
    cache.keep(keys[1], [bytes(20_000)])  # larger than all: it alone stays
    assert [cache.load(key) is not None for key in keys] == [False, True, False, False, False, False]


def test_programs_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_ir = engine_module.compile_ir
    monkeypatch.setattr(
        engine_module, "compile_ir", lambda text, **how: compiled.append(how) or compile_ir(text, **how)
    )
    for _ in range(2):
        bench = Bench(TEXT, engine=NativeEngine(tmp_path))
        finish(bench, bench.warp())
        assert len(compiled) == 1
    entry = next(path for path in tmp_path.iterdir() if path.stat().st_size < 20_000)
    entry.write_bytes(entry.read_bytes()[:-5])
    bench = Bench(TEXT, engine=NativeEngine(tmp_path))
    finish(bench, bench.warp())
    assert len(compiled) == 2
    other = TEXT.replace("5", "6")
    Bench(other, engine=NativeEngine(tmp_path))
    assert len(compiled) == 3


def test_loading_is_quick(tmp_path: Path) -> None:
    body = "\n".join(f"mad.lo.u32 %r{i % 50}, %r{(7 * i) % 50}, {i}, %r{(3 * i) % 50};" for i in range(1000))
    text = kernel_text(body + "\nst.shared.u32 [1024], %r1;\nret;", "", ".reg .b32 %r<50>; .shared .b8 s[16];")
    times = []
    for _ in range(2):
        start = time.perf_counter()
        Bench(text, engine=NativeEngine(tmp_path))
        times.append(time.perf_counter() - start)
    assert times[1] < 0.6 * times[0]  # what is left is parsing and binding
