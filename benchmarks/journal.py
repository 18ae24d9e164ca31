"""What an unfinished benchmark has found so far, on disk: an interrupted run goes on where it was.

A journal belongs to one state of the sources. When the package, its templates or the benchmark change, it starts anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "benchmarks"
SOURCES = ("megamoe_jit/**/*.py", "templates/**/*.cuh", "templates/**/*.cu", "templates/**/*.jinja")


def fingerprint(*patterns: str, root: Path = ROOT) -> str:
    """Return a digest of the package's sources, of the files that `patterns` name, and of the compiler's version."""
    digest = hashlib.sha256(metadata.version("nvidia-cuda-nvrtc").encode())
    files = {path for pattern in (*SOURCES, *patterns) for path in root.glob(pattern)}
    for path in sorted(files):
        digest.update(f"\n{path.relative_to(root)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Journal:
    """Entries of one benchmark, each a JSON object, kept for as long as `state` is the same."""

    def __init__(self, name: str, state: Mapping[str, Any], *, folder: Path = FOLDER) -> None:
        """Read what an earlier run with the same state left, or begin an empty journal."""
        self.path = folder / f"{name}.jsonl"
        self.entries: list[dict[str, Any]] = []
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        if lines and _read(lines[0]) == dict(state):
            self.entries = [entry for line in lines[1:] if (entry := _read(line)) is not None]
        folder.mkdir(parents=True, exist_ok=True)
        # An entry that an interruption cut in half is dropped.
        self._write("w", [dict(state), *self.entries])

    def add(self, entry: dict[str, Any]) -> None:
        """Keep an entry; it is on disk when this returns."""
        self._write("a", [entry])
        self.entries.append(entry)

    def finish(self) -> None:
        """Remove the journal, whose entries are in a record now."""
        self.path.unlink()

    def _write(self, mode: str, entries: Iterable[dict[str, Any]]) -> None:
        with self.path.open(mode) as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)


def _read(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None
