"""Archives: round trips, the same bytes for the same kernels, and nothing taken from a bad one."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from megamoe_jit.errors import CacheError
from megamoe_jit.jit import archive as archive_module
from megamoe_jit.jit.archive import Unpacked, pack, unpack
from megamoe_jit.jit.build import build
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.entry import ENTRY_FILES
from tests.jit.kernels import ROOTS, tiny_kernel

LONG_NAME = "k" * 128  # the longest kernel name: tar's plain headers cannot hold its path


@pytest.fixture
def full(tmp_path: Path) -> KernelCache:
    """A cache with two kernels."""
    cache = KernelCache(tmp_path / "full")
    for factor in (1.0, 2.0):
        build(tiny_kernel(factor), cache=cache, templates=ROOTS)
    return cache


def names(cache: KernelCache) -> list[str]:
    return [info.name for info in cache.entries()]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_what_is_packed_is_what_is_unpacked(
    full: KernelCache, cache: KernelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    archive = tmp_path / f"kernels.{suffix}"
    assert pack(full, archive) == names(full)
    assert (archive.read_bytes()[:2] == b"\x1f\x8b") == (suffix != "tar")
    assert unpack(archive, cache) == Unpacked(added=tuple(names(full)), present=())
    for name in names(full):
        for file in ENTRY_FILES:
            assert full.path is not None
            assert cache.path is not None
            assert (cache.path / "kernels" / name / file).read_bytes() == (
                full.path / "kernels" / name / file
            ).read_bytes()
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_ONLY", "1")
    assert build(tiny_kernel(1.0), cache=cache, templates=ROOTS).cache_hit
    assert unpack(archive, cache) == Unpacked(added=(), present=tuple(names(full)))


def test_equal_kernels_make_equal_archives(full: KernelCache, cache: KernelCache, tmp_path: Path) -> None:
    for suffix in ("tar", "tar.gz"):
        first, second = tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"
        pack(full, first)
        unpack(first, cache)
        os.utime(cache.path / "kernels" / names(cache)[0])
        pack(cache, second)
        assert first.read_bytes() == second.read_bytes()


def test_some_kernels_can_be_packed(full: KernelCache, cache: KernelCache, tmp_path: Path) -> None:
    chosen = names(full)[1]
    assert pack(full, tmp_path / "one.tar", names=[chosen]) == [chosen]
    assert unpack(tmp_path / "one.tar", cache).added == (chosen,)
    with pytest.raises(CacheError, match="has no entry 'absent'"):
        pack(full, tmp_path / "none.tar", names=["absent", chosen])
    assert not (tmp_path / "none.tar").exists()


def test_a_long_kernel_name_survives(cache: KernelCache, tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "scale.cuh").write_text(f'extern "C" __global__ void {LONG_NAME}() {{}}\n')
    source = KernelCache(tmp_path / "source")
    built = build(tiny_kernel(kernel_name=LONG_NAME), cache=source, templates=(folder,))
    pack(source, tmp_path / "long.tar")
    assert unpack(tmp_path / "long.tar", cache).added == (built.key.entry_name,)


def test_damaged_entries_are_left_out(full: KernelCache, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = full.folders()
    (bad / "kernel.ptx").write_text("")
    assert pack(full, tmp_path / "kernels.tar") == [good.name]
    assert f"{bad.name} is left out of the archive: kernel.ptx has 0 bytes" in caplog.text


def test_an_archive_that_cannot_be_written_leaves_nothing(
    full: KernelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CacheError, match="cannot be written"):
        pack(full, tmp_path / "absent" / "kernels.tar")

    archive = tmp_path / "kernels.tar"
    archive.write_text("the archive before")

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive_module, "_add", fail)
    with pytest.raises(CacheError, match="No space left on device"):
        pack(full, archive)
    assert archive.read_text() == "the archive before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_cache_that_cannot_be_written_is_told(full: KernelCache, tmp_path: Path) -> None:
    pack(full, tmp_path / "kernels.tar")
    (tmp_path / "file").touch()
    for cache in (KernelCache(tmp_path / "file" / "cache"), KernelCache(None)):
        with pytest.raises(CacheError, match=r"cannot be written, so scale-sm_90a-\w+ was not unpacked"):
            unpack(tmp_path / "kernels.tar", cache)


# --- archives that someone else made ---


def members(full: KernelCache) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of a good archive, to be spoilt."""
    pairs = []
    for folder in full.folders():
        for file in ENTRY_FILES:
            data = (folder / file).read_bytes()
            info = tarfile.TarInfo(f"kernels/{folder.name}/{file}")
            info.size = len(data)
            pairs.append((info, data))
    return pairs


def extra(
    name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def write_tar(path: Path, pairs: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for info, data in pairs:
            tar.addfile(info, io.BytesIO(data))


NAME = "scale-sm_90a-" + "0" * 32


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (extra("/etc/passwd"), "no plain file of a kernel"),
        (extra("../outside"), "no plain file of a kernel"),
        (extra("kernels/../kernel.ptx"), "no plain file of a kernel"),
        (extra("kernels/./kernel.ptx"), "no plain file of a kernel"),
        (extra("kernels//kernel.ptx"), "no plain file of a kernel"),
        (extra(f"kernels/{NAME}/../kernel.ptx"), "no plain file of a kernel"),
        (extra(f"kernels/{NAME}/evil.so"), "no plain file of a kernel"),
        (extra(f"kernels/{NAME}"), "no plain file of a kernel"),
        (extra("kernels/.hidden/kernel.ptx"), "no plain file of a kernel"),
        (extra(f"locks/{NAME}/kernel.ptx"), "no plain file of a kernel"),
        (extra(f"kernels/{NAME}\\x/kernel.ptx"), "no plain file of a kernel"),
        (extra(f"kernels/{NAME}/kernel.ptx", kind=tarfile.SYMTYPE, link="/etc/passwd"), "no plain file of a kernel"),
        (extra(f"kernels/{NAME}/kernel.ptx", kind=tarfile.LNKTYPE, link="/etc/passwd"), "no plain file of a kernel"),
        (extra(f"kernels/{NAME}/kernel.ptx", kind=tarfile.CHRTYPE), "no plain file of a kernel"),
        (extra(f"kernels/{NAME}/kernel.ptx", kind=tarfile.FIFOTYPE), "no plain file of a kernel"),
        (extra(f"kernels/{NAME}/kernel.ptx", kind=tarfile.DIRTYPE), "no plain file of a kernel"),
        (extra(f"kernels/{NAME}/kernel.ptx"), f"{NAME} has no kernel.cubin"),
    ],
    ids=lambda value: value[0].name if isinstance(value, tuple) else "",
)
def test_a_foreign_member_refuses_the_whole_archive(
    full: KernelCache, tmp_path: Path, more: tuple[tarfile.TarInfo, bytes], sentence: str
) -> None:
    archive = tmp_path / "bad.tar"
    write_tar(archive, [*members(full), more])
    target = KernelCache(tmp_path / "deep" / "target")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CacheError, match="nothing of it was unpacked: .*" + re.escape(sentence)):
        unpack(archive, target)
    assert sorted(tmp_path.rglob("*")) == before


Spoil = Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]]


def twice(pairs: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [*pairs, pairs[0]]


def changed(pairs: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
    info, data = pairs[0]
    return [(info, data[:-1] + b"?"), *pairs[1:]]


def other_name(pairs: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
    for info, _ in pairs[4:]:
        info.name = f"kernels/{NAME}/{info.name.rpartition('/')[2]}"
    return pairs


def other_meta(pairs: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
    info, data = pairs[3]
    data = json.dumps({**json.loads(data), "kernel_name": "../../up"}).encode()
    info.size = len(data)
    return [*pairs[:3], (info, data), *pairs[4:]]


def huge(pairs: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
    info = tarfile.TarInfo(pairs[0][0].name)
    info.size = 1 << 40
    return [*pairs[1:], (info, b"")]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (twice, "is there twice"),
        (changed, "is damaged: kernel.cubin does not have the digest"),
        (other_name, f"{NAME} holds another kernel"),
        (other_meta, "is damaged: meta.json was changed"),
        (huge, "more than any kernel's file"),
    ],
)
def test_a_spoilt_entry_refuses_the_whole_archive(
    full: KernelCache, cache: KernelCache, tmp_path: Path, spoil: Spoil, sentence: str
) -> None:
    if spoil is huge:  # tarfile would not write a member without its bytes
        archive = tmp_path / "bad.tar"
        archive.write_bytes(b"".join(_raw(info, data) for info, data in spoil(members(full))))
    else:
        write_tar(archive := tmp_path / "bad.tar", spoil(members(full)))
    with pytest.raises(CacheError, match=r"refused, and nothing of it was unpacked: .*" + re.escape(sentence)):
        unpack(archive, cache)
    assert cache.entries() == []


def _raw(info: tarfile.TarInfo, data: bytes) -> bytes:
    return info.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_an_archive_that_was_cut_or_changed_is_refused(
    full: KernelCache, cache: KernelCache, tmp_path: Path, suffix: str
) -> None:
    archive = tmp_path / f"kernels.{suffix}"
    pack(full, archive)
    whole = archive.read_bytes()
    for spoilt in (
        b"",
        b"no archive",
        whole[: len(whole) // 3],
        whole[: len(whole) // 2 | 1],
        whole[:700] + b"?" * 9 + whole[709:],
    ):
        archive.write_bytes(spoilt)
        with pytest.raises(CacheError):
            unpack(archive, cache)
        assert cache.entries() == []


def test_an_absent_archive_is_told(cache: KernelCache, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"no readable archive of kernels: .*No such file"):
        unpack(tmp_path / "absent.tar", cache)
