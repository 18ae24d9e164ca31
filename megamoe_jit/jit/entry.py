"""A built kernel as a folder of four files, which other tools can read and digests guard."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from megamoe_jit.errors import CacheError
from megamoe_jit.jit.compile import Artifact, Resources
from megamoe_jit.jit.key import SCHEMA_VERSION, KernelKey

CUBIN, PTX, SOURCE, META = "kernel.cubin", "kernel.ptx", "kernel.cu", "meta.json"
ENTRY_FILES = (CUBIN, PTX, SOURCE, META)


class DamagedEntryError(CacheError):
    """A file of an entry is missing, cut short, changed or belongs to another kernel."""


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KernelRecord:
    """Everything that an entry holds: the artifact, and what it was built from.

    `source` is the flattened kernel.cu; `parameters` are the description's constants, `template_values` its other
    values (as JSON has them); `flags` and `nvrtc` are what compiled it.
    """

    key: KernelKey
    artifact: Artifact
    source: str
    entry: str
    flags: tuple[str, ...]
    nvrtc: tuple[int, int]
    parameters: Mapping[str, Any]
    template_values: Mapping[str, Any]
    created: str = field(default_factory=_now)

    def meta(self) -> dict[str, Any]:
        """Return what meta.json says, digests included."""
        contents = self._contents()
        meta = {
            "schema": SCHEMA_VERSION,
            "kernel_name": self.key.kernel_name,
            "arch": self.key.arch,
            "key": self.key.digest,
            "entry": self.entry,
            "flags": list(self.flags),
            "nvrtc": list(self.nvrtc),
            "created": self.created,
            "compile_s": self.artifact.compile_s,
            "resources": asdict(self.artifact.resources),
            "parameters": dict(self.parameters),
            "template_values": dict(self.template_values),
            "log": self.artifact.log,
            "files": {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in contents.items()},
        }
        return {**meta, "digest": _meta_digest(meta)}

    def files(self) -> dict[str, bytes]:
        """Return the entry's files by name, meta.json last."""
        return {**self._contents(), META: (json.dumps(self.meta(), indent=1) + "\n").encode()}

    def _contents(self) -> dict[str, bytes]:
        return {CUBIN: self.artifact.cubin, PTX: self.artifact.ptx.encode(), SOURCE: self.source.encode()}


@dataclass(frozen=True, kw_only=True, slots=True)
class EntryInfo:
    """What a cache says of one entry. `damage` says what is wrong with it, and then the fields below it are None."""

    name: str
    path: Path
    size_bytes: int
    last_used: datetime  # when it was last loaded or built
    damage: str | None
    kernel_name: str | None = None
    arch: str | None = None
    key: str | None = None
    created: str | None = None
    nvrtc: str | None = None
    compile_s: float | None = None
    resources: Resources | None = None


def entry_info(folder: Path, *, check_files: bool = False) -> EntryInfo:
    """Describe the entry in `folder`; `check_files` verifies all of it, not only meta.json."""
    common: dict[str, Any] = {
        "name": folder.name,
        "path": folder,
        "size_bytes": folder_bytes(folder),
        "last_used": datetime.fromtimestamp(last_used(folder), tz=timezone.utc),
    }
    try:
        meta = read_entry(folder).meta() if check_files else read_meta(_read(folder / META))
        key = KernelKey(kernel_name=meta["kernel_name"], arch=meta["arch"], digest=meta["key"])
        if key.entry_name != folder.name:
            raise DamagedEntryError(f"{META} is that of {key}")
        return EntryInfo(
            **common,
            damage=None,
            kernel_name=key.kernel_name,
            arch=key.arch,
            key=key.digest,
            created=meta["created"],
            nvrtc=".".join(map(str, meta["nvrtc"])),
            compile_s=meta["compile_s"],
            resources=Resources(**meta["resources"]),
        )
    except (DamagedEntryError, KeyError, TypeError, OSError) as error:
        return EntryInfo(**common, damage=str(error))


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files in `folder`; 0 when it is gone."""
    total = 0
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            total += file.stat().st_size
    return total


def last_used(folder: Path) -> float:
    """Return the time of `folder` in seconds since the epoch: for an entry, of its last use; 0 when it is gone."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def json_value(value: object) -> Any:
    """Return `value` as JSON can hold it: tuples as lists, anything unknown as its repr."""
    return json.loads(json.dumps(value, default=repr))


def write_entry(folder: Path, record: KernelRecord) -> None:
    """Write the files of `record` into the existing `folder` and see them, and it, to the disk."""
    for name, data in record.files().items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_entry(folder: Path, key: KernelKey | None = None) -> KernelRecord:
    """Read the entry in `folder` and verify it; with `key`, also that it is that kernel's.

    Raises DamagedEntryError, which says what is wrong, and OSError when the folder cannot be read at all.
    """
    return parse_entry({name: _read(folder / name) for name in ENTRY_FILES}, key)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise  # no entry, or one that was evicted meanwhile
        raise DamagedEntryError(f"{path.name} is missing") from None
    except IsADirectoryError:
        raise DamagedEntryError(f"{path.name} is a folder") from None


def parse_entry(files: Mapping[str, bytes], key: KernelKey | None = None) -> KernelRecord:
    """Turn the four files of an entry into a record, after checking every digest; raises DamagedEntryError."""
    meta = read_meta(files[META])
    try:
        for name in (CUBIN, PTX, SOURCE):
            data, expected = files[name], meta["files"][name]
            if len(data) != expected["bytes"]:
                raise DamagedEntryError(f"{name} has {len(data)} bytes of {expected['bytes']}")
            if _sha256(data) != expected["sha256"]:
                raise DamagedEntryError(f"{name} does not have the digest that {META} says")
        found = KernelKey(kernel_name=meta["kernel_name"], arch=meta["arch"], digest=meta["key"])
        if key is not None and found != key:
            raise DamagedEntryError(f"{META} is that of {found}")
        artifact = Artifact(
            ptx=files[PTX].decode(),
            cubin=files[CUBIN],
            log=meta["log"],
            resources=Resources(**meta["resources"]),
            compile_s=meta["compile_s"],
        )
        return KernelRecord(
            key=found,
            artifact=artifact,
            source=files[SOURCE].decode(),
            entry=meta["entry"],
            flags=tuple(meta["flags"]),
            nvrtc=(meta["nvrtc"][0], meta["nvrtc"][1]),
            parameters=meta["parameters"],
            template_values=meta["template_values"],
            created=meta["created"],
        )
    except (KeyError, TypeError, IndexError, UnicodeDecodeError) as error:
        raise DamagedEntryError(f"{META} lacks what version {SCHEMA_VERSION} has: {error!r}") from error


def read_meta(data: bytes) -> dict[str, Any]:
    """Parse meta.json and check its own digest and schema; raises DamagedEntryError."""
    try:
        meta = json.loads(data)
        digest = meta.pop("digest")
        schema = meta["schema"]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise DamagedEntryError(f"{META} cannot be read: {error}") from error
    if digest != _meta_digest(meta):
        raise DamagedEntryError(f"{META} was changed: it does not have its own digest")
    if schema != SCHEMA_VERSION:
        raise DamagedEntryError(f"{META} has version {schema}, this is version {SCHEMA_VERSION}")
    return {**meta, "digest": digest}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _meta_digest(meta: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(meta, sort_keys=True, separators=(",", ":")).encode())
