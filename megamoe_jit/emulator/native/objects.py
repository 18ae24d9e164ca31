"""Object code on disk: found again by everything that it depends on, whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from megamoe_jit.emulator.native.compile import host

logger = logging.getLogger("megamoe_jit.emulator")

_MAGIC = b"emulator objects 1\n"
MAX_BYTES = 512 << 20
_STALE_S = 3600.0
_SOURCES = ("native", "isa", "parser", "memory")


@functools.cache
def engine_version() -> str:
    """Return a digest of the emulator's code that decides what code is generated."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((package / folder).glob("*.py")):
            digest.update(f"{folder}/{path.name}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class ObjectCache:
    """A folder of object code; without a folder nothing is kept. No accident on disk raises: it costs the reuse."""

    def __init__(self, path: Path | str | None, *, max_bytes: int = MAX_BYTES) -> None:
        """Describe a cache in the folder `path`, which is created when the first entry is kept.

        Beyond `max_bytes` the entries that were not used for the longest time are removed.
        """
        self.path = None if path is None else Path(path).absolute()
        self._max_bytes = max_bytes

    def key(self, *parts: str) -> str:
        """Return the name of what depends on `parts`, this version of the engine, LLVM and this CPU."""
        digest = hashlib.sha256()
        for part in (host(), engine_version(), *parts):
            digest.update(f"{len(part)}:".encode())
            digest.update(part.encode())
        return digest.hexdigest()

    def load(self, key: str) -> list[bytes] | None:
        """Return the objects kept under `key`, or None; what is damaged is not there."""
        if self.path is None:
            return None
        path = self._file(key)
        try:
            text = path.read_bytes()
        except OSError:
            return None
        head, digest, body = text[: len(_MAGIC)], text[len(_MAGIC) : len(_MAGIC) + 32], text[len(_MAGIC) + 32 :]
        if head != _MAGIC or hashlib.sha256(body).digest() != digest:
            logger.warning("object cache entry %s is damaged; it is built again", path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the file's time is when it was last used
        objects = []
        while body:
            size = int.from_bytes(body[:8], "little")
            objects.append(body[8 : 8 + size])
            body = body[8 + size :]
        return objects

    def keep(self, key: str, objects: Sequence[bytes]) -> None:
        """Write `objects`: all of them or, after whatever accident, nothing."""
        if self.path is None:
            return
        body = b"".join(len(image).to_bytes(8, "little") + image for image in objects)
        path = self._file(key)
        staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staging.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)
            staging.replace(path)
            self._evict(keep=path)
        except OSError as error:
            logger.debug("object cache %s cannot be written: %s", self.path, error)
            with contextlib.suppress(OSError):
                staging.unlink()

    def _evict(self, keep: Path) -> None:
        """Remove old entries, and what killed processes left behind; another process may do the same right now."""
        assert self.path is not None
        entries = []
        for path in self.path.iterdir():
            with contextlib.suppress(OSError):
                found = path.stat()
                if path.suffix == ".o":
                    entries.append((found.st_mtime, found.st_size, path))
                elif path.name.startswith(".") and found.st_mtime < time.time() - _STALE_S:
                    path.unlink()
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._max_bytes:
                break
            if path != keep:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size

    def _file(self, key: str) -> Path:
        assert self.path is not None
        return self.path / f"{key}.o"
