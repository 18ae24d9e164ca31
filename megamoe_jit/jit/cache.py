"""The kernel cache: any number of processes build a kernel once, and no accident makes it unusable.

Layout of the folder (docs/cache.md has the reasons):

    kernels/<entry name>/   kernel.cubin kernel.ptx kernel.cu meta.json: whole, because it appears by one rename
    locks/<entry name>.lock one holder compiles, others wait; the kernel's lock, so that it dies with its holder
    staging/                entries being written or removed
    damaged/  failed/       entries that failed verification; sources that NVRTC refused
    tuning/                 tuned choices (jit/tuned.py), one file a layer; eviction leaves them alone
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megamoe_jit import env
from megamoe_jit.jit.built import BuiltKernel
from megamoe_jit.jit.entry import (
    DamagedEntryError,
    EntryInfo,
    KernelRecord,
    entry_info,
    folder_bytes,
    last_used,
    read_entry,
    sync_folder,
    write_entry,
)
from megamoe_jit.jit.key import KernelKey
from megamoe_jit.jit.places import default_cache_dir
from megamoe_jit.jit.render import RenderedSource
from megamoe_jit.jit.source import KernelDescription

if TYPE_CHECKING:
    import filelock

logger = logging.getLogger("megamoe_jit.cache")

_STALE_S = 3600.0  # what lies in staging/ for longer was left by a process that was killed
_NUM_KEPT = 8  # damaged entries and refused sources that are kept to look at
_NUM_REMEMBERED = 4096  # descriptions recalled by identity

_NOT_THERE = (FileNotFoundError, NotADirectoryError)


class KernelCache:
    """Kernels in memory, backed by a folder that processes and machines may share.

    Nothing here raises for the disk's sake: a folder that is full, read-only or absent costs the sharing, not the
    kernel, and is logged once. `path=None` keeps kernels in memory only. `max_bytes=None` takes the cap from
    MEGAMOE_JIT_CACHE_MAX_BYTES.
    """

    def __init__(self, path: Path | str | None, *, max_bytes: int | None = None, lock_timeout_s: float = 600.0) -> None:
        """Describe a cache in the folder `path`, which is created when the first kernel is kept."""
        self.path = None if path is None else Path(path).absolute()
        self._max_bytes = max_bytes
        self._lock_timeout_s = lock_timeout_s
        self._by_identity: dict[tuple[int, Hashable], tuple[KernelDescription, BuiltKernel]] = {}
        self._by_value: dict[tuple[KernelDescription, Hashable], BuiltKernel] = {}
        self._by_key: dict[KernelKey, BuiltKernel] = {}
        self._thread_locks: dict[str, threading.RLock] = {}
        self._mutex = threading.Lock()
        self._has_warned = False

    def __repr__(self) -> str:
        """Name the folder."""
        return f"KernelCache({str(self.path)!r})" if self.path else "KernelCache(None)"

    # --- memory ---

    def recall(self, description: KernelDescription, request: Hashable) -> BuiltKernel | None:
        """Return the kernel that this process has for `description` and `request` (how it was asked for), or None."""
        known = self._by_identity.get((id(description), request))
        if known is not None and known[0] is description:
            return known[1]
        built = self._by_value.get((description, request))
        if built is not None:
            self._remember_identity(description, request, built)
        return built

    def recall_key(self, key: KernelKey) -> BuiltKernel | None:
        """Return the kernel that this process has for `key`, or None."""
        return self._by_key.get(key)

    def remember(self, built: BuiltKernel) -> BuiltKernel:
        """Keep `built` for `recall_key`; return what this process uses for its key, which may be an earlier object."""
        return self._by_key.setdefault(built.key, built)

    def remember_request(self, description: KernelDescription, request: Hashable, built: BuiltKernel) -> None:
        """Keep `built` for `recall`."""
        self._by_value[description, request] = built
        self._remember_identity(description, request, built)

    def _remember_identity(self, description: KernelDescription, request: Hashable, built: BuiltKernel) -> None:
        if len(self._by_identity) >= _NUM_REMEMBERED:
            self._by_identity.clear()
        # The description is kept alive, so that no other object can take over its id.
        self._by_identity[id(description), request] = (description, built)

    def forget(self) -> None:
        """Drop all kernels from memory; those on disk stay."""
        self._by_identity.clear()
        self._by_value.clear()
        self._by_key.clear()

    # --- disk ---

    @property
    def kernels_dir(self) -> Path | None:
        """The folder that holds one folder a kernel."""
        return self.path and self.path / "kernels"

    @property
    def tuning_dir(self) -> Path | None:
        """The folder of tuned choices (jit/tuned.py)."""
        return self.path and self.path / "tuning"

    def entry_path(self, key: KernelKey) -> Path | None:
        """Where `key`'s files are, or would be."""
        return self.path and self.path / "kernels" / key.entry_name

    def load(self, key: KernelKey, *, set_aside: bool = False) -> KernelRecord | None:
        """Return the verified record of `key`, or None when there is none to be had.

        A damaged entry is no entry. `set_aside` moves it away; only the holder of the key's lock may ask for that:
        anybody else might move the good entry that another process has published meanwhile.
        """
        folder = self.entry_path(key)
        if folder is None:
            return None
        try:
            record = read_entry(folder, key)
        except _NOT_THERE:
            return None
        except DamagedEntryError as error:
            if set_aside:
                logger.warning("cache entry %s is damaged (%s); it is set aside and built again", folder, error)
                self.set_aside(folder)
            return None
        except OSError as error:
            self._warn("read", error)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)  # the folder's time is when the kernel was last loaded; eviction goes by it
        return record

    @contextlib.contextmanager
    def lock(self, entry_name: str) -> Iterator[None]:
        """Hold an entry among the threads of this process and, where the folder allows, among all processes.

        The lock only saves double work. Where it cannot be had (read-only folder, no lock support, a holder that takes
        longer than the time-out) building goes on without it, and the atomic publication keeps the cache right.
        """
        with self._mutex:
            thread_lock = self._thread_locks.setdefault(entry_name, threading.RLock())
        with thread_lock, contextlib.ExitStack() as stack:
            if self.path is not None:
                self._lock_file(stack, self.path / "locks" / f"{entry_name}.lock")
            yield

    def _lock_file(self, stack: contextlib.ExitStack, path: Path) -> None:
        import filelock

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_file_lock(path).acquire(timeout=self._lock_timeout_s))
        except filelock.Timeout:
            logger.warning("no lock on %s after %g s; building without it", path, self._lock_timeout_s)
        except (OSError, NotImplementedError) as error:
            logger.debug("no lock on %s: %s", path, error)

    def publish(self, record: KernelRecord) -> Path | None:
        """Write `record` to disk: all of it or, after whatever accident, nothing. Return its folder, or None."""
        folder = self.entry_path(record.key)
        if self.path is None or folder is None:
            return None
        staging = self.new_staging(record.key.entry_name)
        try:
            staging.mkdir(parents=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_entry(staging, record)
            try:
                staging.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return folder  # another process was first; what it wrote is as good
            with contextlib.suppress(OSError):
                sync_folder(folder.parent)
        except OSError as error:
            self._warn("written", error)
            return None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self.evict(keep=folder.name)
        return folder

    def new_staging(self, name: str) -> Path:
        """Return a path in staging/ that nobody else has."""
        assert self.path is not None
        return self.path / "staging" / f"{name}.{uuid.uuid4().hex[:12]}"

    def set_aside(self, folder: Path) -> None:
        """Move a damaged entry (or a file of tuned choices) out of the way, to be looked at."""
        assert self.path is not None
        with contextlib.suppress(OSError):
            (self.path / "damaged").mkdir(exist_ok=True)
            folder.rename(self.path / "damaged" / f"{folder.name}.{uuid.uuid4().hex[:12]}")
            _keep_newest(self.path / "damaged", _NUM_KEPT)

    def keep_refused(self, key: KernelKey, rendered: RenderedSource, log: str) -> Path | None:
        """Write the sources and the log of a kernel that NVRTC refused; return their folder."""
        try:
            if self.path is None:
                raise OSError(errno.EROFS, "the cache is in memory")
            folder = self.path / "failed" / key.entry_name
            _write_refused(folder, rendered, log)
            _keep_newest(folder.parent, _NUM_KEPT)
            return folder
        except OSError:
            with contextlib.suppress(OSError):
                folder = Path(tempfile.mkdtemp(prefix=f"megamoe_jit-{key.kernel_name}-"))
                _write_refused(folder, rendered, log)
                return folder
        return None

    # --- contents ---

    def entries(self) -> list[EntryInfo]:
        """Return what the folder holds, by name. Reads each meta.json only; `verify` reads all files."""
        return [entry_info(folder) for folder in self.folders()]

    def verify(self, *, set_aside: bool = True) -> list[EntryInfo]:
        """Check every digest of every entry; return all entries, the damaged ones with what is wrong in `damage`.

        `set_aside` moves damaged entries away, so that their kernels are built again when next needed.
        """
        return [self._verify(folder, set_aside) for folder in self.folders()]

    def _verify(self, folder: Path, set_aside: bool) -> EntryInfo:
        info = entry_info(folder, check_files=True)
        if info.damage is None or not set_aside:
            return info
        with self.lock(folder.name):
            info = entry_info(folder, check_files=True)  # it may have been built again before we had the lock
            if info.damage is not None:
                logger.warning("cache entry %s is damaged (%s); it is set aside", folder, info.damage)
                self.set_aside(folder)
        return info

    def clear(self) -> int:
        """Remove all kernels, in memory and on disk, tuned choices and what was set aside.

        Returns how many kernels were on disk.
        """
        self.forget()
        count = sum(self.remove(folder) for folder in self.folders())
        if self.path is not None:
            for name in ("tuning", "damaged", "failed"):
                shutil.rmtree(self.path / name, ignore_errors=True)
        self.sweep()
        return count

    def evict(self, *, keep: str = "") -> list[str]:
        """Remove the entries not loaded for the longest time until the cap holds; return their names. `keep` stays.

        A process that is just reading an entry finds it gone and builds it again.
        """
        self.sweep()
        cap = env.CACHE_MAX_BYTES.get() if self._max_bytes is None else self._max_bytes
        if cap is None:
            return []
        sizes = {folder: folder_bytes(folder) for folder in self.folders()}
        total, removed = sum(sizes.values()), list[str]()
        for folder in sorted(sizes, key=last_used):
            if total <= cap:
                break
            if folder.name != keep and self.remove(folder):
                total -= sizes[folder]
                removed.append(folder.name)
        if removed:
            logger.info("evicted %d kernels to keep the cache below %d bytes", len(removed), cap)
        return removed

    def remove(self, folder: Path) -> bool:
        """Remove one entry, in one step as others see it; return whether this call did it."""
        grave = self.new_staging(folder.name)
        try:
            grave.parent.mkdir(exist_ok=True)
            folder.rename(grave)
        except OSError:
            return False
        shutil.rmtree(grave, ignore_errors=True)
        return True

    def sweep(self, *, older_than_s: float = _STALE_S) -> None:
        """Remove what killed processes left in staging/."""
        if self.path is None:
            return
        for folder in _subfolders(self.path / "staging"):
            if last_used(folder) < time.time() - older_than_s:
                shutil.rmtree(folder, ignore_errors=True)

    def folders(self) -> list[Path]:
        """Return the folders of all entries, whole or damaged, by name."""
        return [] if self.kernels_dir is None else _subfolders(self.kernels_dir)

    def _warn(self, what: str, error: OSError) -> None:
        if self._has_warned:
            logger.debug("the kernel cache %s cannot be %s: %s", self.path, what, error)
            return
        self._has_warned = True
        logger.warning(
            "the kernel cache %s cannot be %s (%s): this process keeps its kernels in memory, and others compile them "
            "again. Set MEGAMOE_JIT_CACHE_DIR to a folder with space that they may write.",
            self.path,
            what,
            error,
        )


_default_caches: dict[str | None, KernelCache] = {}


def default_cache() -> KernelCache:
    """Return the cache that MEGAMOE_JIT_CACHE_DIR names now; unset, `cache/` of a checkout or the user's folder.

    Raises ArgumentError when a MEGAMOE_JIT_* variable is misspelt or has a bad value.
    """
    text = os.environ.get("MEGAMOE_JIT_CACHE_DIR")
    cache = _default_caches.get(text)
    if cache is None:
        env.check_environment()
        cache = _default_caches[text] = KernelCache(env.CACHE_DIR.get() or default_cache_dir())
    return cache


def _file_lock(path: Path) -> filelock.BaseFileLock:
    """An exclusive flock: the operating system drops it when its holder ends, however it ends."""
    import filelock

    try:
        # Never the lock that is a file's mere existence: it would outlive a killed holder.
        return filelock.FileLock(path, fallback_to_soft=False)
    except TypeError:  # filelock before 3.20 has no such fallback
        return filelock.FileLock(path)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _keep_newest(folder: Path, count: int) -> None:
    for old in sorted(folder.iterdir(), key=last_used)[:-count]:
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def _write_refused(folder: Path, rendered: RenderedSource, log: str) -> None:
    for name, text in (*rendered.files, ("kernel.cu", rendered.flatten()), ("log.txt", log)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
