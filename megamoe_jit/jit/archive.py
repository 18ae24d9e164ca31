"""Kernels in one file: `pack` on a machine that compiles, `unpack` where nothing may or can be compiled.

An archive is a tar file (gzipped by its suffix) of entries and tuned choices as they lie in a cache. It names no host
and no path; tuned choices name the model of GPU that they hold for.
Digests find accidents, not malice: unpack archives from people whose kernels you would run.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import re
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from megamoe_jit.errors import CacheError
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.entry import ENTRY_FILES, DamagedEntryError, KernelRecord, parse_entry, read_entry
from megamoe_jit.jit.tuned import TuningRecord, keep_record, parse_record, record_paths

logger = logging.getLogger("megamoe_jit.archive")

_ROOT, _TUNING = "kernels", "tuning"
_ENTRY_NAME = re.compile(r"[A-Za-z0-9_]+-sm_[0-9a-z]+-[0-9a-f]{32}")
_TUNING_NAME = re.compile(r"[0-9a-f]{32}\.json")
_MAX_FILE_BYTES = 256 << 20
_MAX_TUNING_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """Names of the entries of an archive: those that the cache took, and those that it had already.

    `tuned` are its files of tuned choices; the cache took from them what it lacked.
    """

    added: tuple[str, ...]
    present: tuple[str, ...]
    tuned: tuple[str, ...] = ()


def pack(cache: KernelCache, archive: Path | str, *, names: Collection[str] | None = None) -> list[str]:
    """Write the cache's entries and tuned choices, or the entries in `names`, into `archive`; return the names packed.

    Equal entries make equal archives, byte by byte. Damaged entries are left out, with a warning. The file appears in
    one step, when it is complete. Raises CacheError when a name is unknown or the file cannot be written.
    """
    archive = Path(archive)
    folders = {folder.name: folder for folder in cache.folders()}
    if names is not None and (unknown := sorted(set(names) - folders.keys())):
        raise CacheError(f"{cache} has no entry {unknown[0]!r}. `megamoe-jit cache list` shows those that it has.")
    packed = []
    try:
        with _replacing(archive) as temporary, _writer(temporary, is_zipped=archive.suffix in (".gz", ".tgz")) as tar:
            for name in sorted(folders if names is None else names):
                try:
                    record = read_entry(folders[name])
                except (DamagedEntryError, FileNotFoundError) as error:
                    logger.warning("cache entry %s is left out of the archive: %s", name, error)
                    continue
                for file, data in record.files().items():
                    _add(tar, f"{_ROOT}/{name}/{file}", data)
                packed.append(name)
            for path in record_paths(cache) if names is None else ():
                data = path.read_bytes()
                try:
                    parse_record(path.name, data)
                except DamagedEntryError as error:
                    logger.warning("tuned choices are left out of the archive: %s", error)
                    continue
                _add(tar, f"{_TUNING}/{path.name}", data)
    except OSError as error:
        raise CacheError(
            f"the archive {archive} cannot be written: {error}. Choose a file in a folder that exists."
        ) from error
    return packed


def unpack(archive: Path | str, cache: KernelCache) -> Unpacked:
    """Add the entries and tuned choices of `archive` to `cache`; what it has already stays as it is.

    The whole archive is checked first: a member that is no plain file of an entry (an absolute path, "..", a link, a
    device, a duplicate) or a wrong digest raises CacheError, and then nothing is taken. Raises CacheError, too, when
    the file is no archive or the cache cannot be written.
    """
    archive = Path(archive)
    try:
        with tarfile.open(archive, "r:gz" if _is_gzip(archive) else "r:") as tar:
            members, tuning = _check_members(tar)
            for name, files in members.items():
                _read_record(tar, name, files)
            choices = [_read_choices(tar, name, member) for name, member in tuning.items()]
            added, present = [], []
            for name, files in members.items():
                folder = cache.kernels_dir and cache.kernels_dir / name
                if folder is not None and folder.is_dir():
                    present.append(name)
                elif cache.publish(_read_record(tar, name, files)) is None:
                    raise CacheError(
                        f"{cache} cannot be written, so {name} was not unpacked. "
                        "Set MEGAMOE_JIT_CACHE_DIR to a folder with space that you may write."
                    )
                else:
                    added.append(name)
            for record in choices:
                keep_record(cache, record, is_newer=False)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise CacheError(
            f"{archive} is no readable archive of kernels: {error}. Pack it again with `cache pack`."
        ) from error
    return Unpacked(added=tuple(added), present=tuple(present), tuned=tuple(tuning))


def _check_members(
    tar: tarfile.TarFile,
) -> tuple[dict[str, dict[str, tarfile.TarInfo]], dict[str, tarfile.TarInfo]]:
    """Return the members by entry and file, and the files of tuned choices; refuse an archive with anything else."""
    entries: dict[str, dict[str, tarfile.TarInfo]] = {}
    tuning: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        parts = member.name.split("/")
        if len(parts) == 2 and parts[0] == _TUNING and _TUNING_NAME.fullmatch(parts[1]) and member.isreg():
            if parts[1] in tuning or member.size > _MAX_TUNING_BYTES:
                raise _refuse(f"member {member.name!r} is there twice, or larger than tuned choices can be")
            tuning[parts[1]] = member
            continue
        is_entry_file = len(parts) == 3 and parts[0] == _ROOT and parts[2] in ENTRY_FILES
        if not (is_entry_file and _ENTRY_NAME.fullmatch(parts[1]) and member.isreg()):
            raise _refuse(f"member {member.name!r} is no plain file of a kernel")
        if member.size > _MAX_FILE_BYTES:
            raise _refuse(f"member {member.name!r} has {member.size} bytes, more than any kernel's file")
        files = entries.setdefault(parts[1], {})
        if parts[2] in files:
            raise _refuse(f"member {member.name!r} is there twice")
        files[parts[2]] = member
    for name, files in entries.items():
        if missing := [file for file in ENTRY_FILES if file not in files]:
            raise _refuse(f"{name} has no {missing[0]}")
    return entries, tuning


def _read_choices(tar: tarfile.TarFile, name: str, member: tarfile.TarInfo) -> TuningRecord:
    stream = tar.extractfile(member)
    assert stream is not None, "only plain files pass _check_members"
    try:
        return parse_record(name, stream.read())
    except DamagedEntryError as error:
        raise _refuse(str(error)) from None


def _read_record(tar: tarfile.TarFile, name: str, files: dict[str, tarfile.TarInfo]) -> KernelRecord:
    contents = {}
    for file, member in files.items():
        stream = tar.extractfile(member)
        assert stream is not None, "only plain files pass _check_members"
        contents[file] = stream.read()
    try:
        record = parse_entry(contents)
    except DamagedEntryError as error:
        raise _refuse(f"{name} is damaged: {error}") from None
    if record.key.entry_name != name:
        raise _refuse(f"{name} holds another kernel, {record.key}")
    return record


def _refuse(reason: str) -> CacheError:
    return CacheError(
        f"the archive is refused, and nothing of it was unpacked: {reason}. Pack it again with `cache pack`."
    )


def _is_gzip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` that takes its place when the block succeeds, and is removed when it fails."""
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent, delete=False) as file:
        temporary = Path(file.name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writer(path: Path, *, is_zipped: bool) -> Iterator[tarfile.TarFile]:
    with contextlib.ExitStack() as stack:
        stream: io.IOBase = stack.enter_context(path.open("wb"))
        if is_zipped:  # without the time and name that gzip headers carry
            stream = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0))
        yield stack.enter_context(tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))
