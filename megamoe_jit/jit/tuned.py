"""Tuned choices on disk: one JSON file for each layer and device, in `tuning/` beside a cache's kernels."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from megamoe_jit import __version__
from megamoe_jit.errors import CacheError
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.entry import DamagedEntryError

logger = logging.getLogger("megamoe_jit.tuning")

# Part of every key. Raise it when the meaning of a key or the form of a file changes: older files are not found then.
TUNING_SCHEMA = 1

_reported: set[Path] = set()  # damaged files that were logged


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedTile:
    """The token tile that was chosen for one number of tokens; times of a call are in microseconds.

    `us` is that of `block_n`, `rule_us` that of the tile that is taken without tuning.
    """

    num_tokens: int
    block_n: int
    us: float
    rule_us: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningRecord:
    """What one file holds: `key` says for what the `tiles` (by num_tokens) were measured, the rest when, by what."""

    key: Mapping[str, Any]
    tiles: tuple[TunedTile, ...]
    driver: str
    package: str = __version__
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def name(self) -> str:
        """The file's name: SHA-256 of the key, 32 hexadecimal digits of it."""
        return record_name(self.key)

    def data(self) -> bytes:
        """Return the file's bytes."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    def over(self, older: TuningRecord | None) -> TuningRecord:
        """Return this record with the token counts of `older` that it lacks."""
        tiles = {tile.num_tokens: tile for tile in (*(older.tiles if older else ()), *self.tiles)}
        return TuningRecord(
            key=self.key,
            tiles=tuple(tiles[n] for n in sorted(tiles)),
            driver=self.driver,
            package=self.package,
            date=self.date,
        )


def record_name(key: Mapping[str, Any]) -> str:
    """Return the name of the file for `key`, which is what JSON can hold."""
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return f"{hashlib.sha256(canonical.encode()).hexdigest()[:32]}.json"


def record_paths(cache: KernelCache) -> list[Path]:
    """Return the files that `cache` has, whole or damaged, by name."""
    return [] if cache.tuning_dir is None else sorted(cache.tuning_dir.glob("*.json"))


def find_record(cache: KernelCache, key: Mapping[str, Any]) -> TuningRecord | None:
    """Return the record for `key`, or None; a damaged file is set aside, logged once, and is none."""
    return None if cache.tuning_dir is None else _read(cache, cache.tuning_dir / record_name(key))


def keep_record(cache: KernelCache, record: TuningRecord, *, is_newer: bool = True) -> TuningRecord:
    """Merge `record` into the file for its key, in one step as others see it; return what the file then holds.

    Where both have a number of tokens, `record` wins, or with `is_newer=False` the file. Raises CacheError when the
    cache cannot be written.
    """
    if cache.path is None or cache.tuning_dir is None:
        raise CacheError("the cache is in memory only and keeps no tuned choices. Give it a folder.")
    path = cache.tuning_dir / record.name
    staging = cache.new_staging(f"tuning-{path.stem}")
    with cache.lock(f"tuning-{path.stem}"):
        stored = _read(cache, path)
        merged = record.over(stored) if is_newer or stored is None else stored.over(record)
        try:
            staging.mkdir(parents=True)
            path.parent.mkdir(exist_ok=True)
            with (staging / path.name).open("wb") as file:
                file.write(merged.data())
                file.flush()
                os.fsync(file.fileno())
            os.replace(staging / path.name, path)  # noqa: PTH105 - the step that publishes
        except OSError as error:
            raise CacheError(
                f"tuned choices cannot be written to {path} ({error}). "
                "Set MEGAMOE_JIT_CACHE_DIR to a folder with space that you may write."
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return merged


def verify_records(cache: KernelCache) -> list[str]:
    """Read every file; set damaged ones aside and return their names."""
    return [path.name for path in record_paths(cache) if _read(cache, path) is None]


def parse_record(name: str, data: bytes) -> TuningRecord:
    """Turn the bytes of the file `name` into a record; raises DamagedEntryError, which says what is wrong."""
    try:
        content = json.loads(data)
        tiles = tuple(TunedTile(**tile) for tile in content["tiles"])
        record = TuningRecord(**{**content, "tiles": tiles})
        is_sound = record.name == name and all(
            isinstance(value, str) for value in (record.driver, record.package, record.date)
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedEntryError(f"{name} cannot be read: {error!r}") from error
    if not is_sound:
        raise DamagedEntryError(f"{name} is not named for its key, or its origin is no text")
    for tile in tiles:
        values = asdict(tile).values()
        if any(type(value) not in (int, float) or not 0 < value < float("inf") for value in values) or not (
            type(tile.num_tokens) is type(tile.block_n) is int
        ):
            raise DamagedEntryError(f"{name} has the choice {tile}")
    counts = [tile.num_tokens for tile in tiles]
    if counts != sorted(set(counts)):
        raise DamagedEntryError(f"{name} has numbers of tokens twice or out of order: {counts}")
    return record


def _read(cache: KernelCache, path: Path) -> TuningRecord | None:
    try:
        return parse_record(path.name, path.read_bytes())
    except FileNotFoundError:
        return None
    except DamagedEntryError:
        pass
    except OSError as error:
        logger.debug("%s cannot be read: %s", path, error)
        return None
    with cache.lock(f"tuning-{path.stem}"):
        try:  # another process may have replaced it before we had the lock
            return parse_record(path.name, path.read_bytes())
        except DamagedEntryError as error:
            if path not in _reported:
                _reported.add(path)
                logger.warning("%s is damaged (%s); it is set aside, and the layer is as before tuning", path, error)
            cache.set_aside(path)
        except OSError as error:
            logger.debug("%s cannot be read: %s", path, error)
    return None
