"""The record that every benchmark leaves: a table, and the conditions under which its numbers came about."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

Cell = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a result: the key in each row, the heading in the pages, and how its numbers are printed."""

    key: str
    heading: str
    format: str = ""  # a format specification: ".3g", ",.0f"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One question's answer, as measured in one run.

    `rows` may hold more keys than `columns` name: those are kept in the JSON and left out of the pages.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Cell], ...]
    notes: str = ""  # floor, peers, what a number includes
    conditions: Mapping[str, str] = field(default_factory=lambda: measure_conditions())


def measure_conditions() -> dict[str, str]:
    """Return date, device, target, driver, toolkit, versions, commit and command of this run."""
    import torch

    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
        "target": _target(),
        "driver": _driver_version(),
        "nvrtc": _version("nvidia-cuda-nvrtc"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "command": shlex.join(["python", *_script(sys.argv)]),
    }


def save(result: Result, *, folder: Path = RESULTS) -> Path:
    """Write `result` as `folder/<name>.json` and return the path; readers see the old file or the new one, whole."""
    for row in result.rows:
        missing = [column.key for column in result.columns if column.key not in row]
        if missing:
            raise ValueError(
                f"result {result.name}: row {dict(row)} lacks {', '.join(missing)}, which its columns name"
            )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(asdict(result), indent=1) + "\n")
    return unfinished.replace(path)


def load(path: Path) -> Result:
    """Read a record that `save` wrote."""
    fields = json.loads(path.read_text())
    columns = tuple(Column(**column) for column in fields.pop("columns"))
    return Result(columns=columns, rows=tuple(fields.pop("rows")), **fields)


def load_all(folder: Path = RESULTS) -> dict[str, Result]:
    """Return every record under `folder` by name; other JSON files (raw data) are passed over."""
    records = (load(path) for path in sorted(folder.glob("*.json")) if "columns" in json.loads(path.read_text()))
    return {record.name: record for record in records}


def _script(argv: Sequence[str]) -> list[str]:
    script = Path(argv[0])
    is_ours = script.resolve().parent == Path(__file__).resolve().parent
    return [*(["-m", f"benchmarks.{script.stem}"] if is_ours else [script.name]), *argv[1:]]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _target() -> str:
    import torch

    from megamoe_jit.arch import arch_for_capability

    return arch_for_capability(torch.cuda.get_device_capability()).name if torch.cuda.is_available() else "none"


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = _first_line([*git, "rev-parse", "--short=12", "HEAD"])
    # Results, and the pages that are printed from them, change while benchmarks run.
    code = [":/", *(f":(top,exclude){path}" for path in ("benchmarks/results", "docs", "README.md"))]
    changed = _first_line([*git, "status", "--porcelain", "--untracked-files=no", "--", *code])
    return commit if changed == "none" else f"{commit} with uncommitted changes"


def _driver_version() -> str:
    return _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def _first_line(command: Sequence[str]) -> str:
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return lines[0].strip() if lines else "none"
