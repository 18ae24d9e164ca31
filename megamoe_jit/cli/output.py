"""How commands print: rich text for people, or exactly one JSON object as the last line of stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, as the last line.")]

# Progress and warnings go to stderr, so that stdout stays what was asked for.
console = Console(width=None if sys.stdout.isatty() else 120)
log_console = Console(stderr=True)


def emit_json(record: Mapping[str, object]) -> None:
    """Print `record` as one line of JSON; paths and enums become text."""
    print(json.dumps(record, default=str), flush=True)


def print_line(text: str, *, style: str | None = None) -> None:
    """Print `text` as it is: no markup, no highlighting, no wrapping."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> None:
    """Print a table with one header line; every cell is shown as it is (no markup), and only the last column wraps."""
    table = Table(
        title=escape(title),
        title_justify="left",
        caption=escape(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        table.add_column(escape(column), overflow="fold", no_wrap=column is not columns[-1])
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row))
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_bytes(num_bytes: int) -> str:
    """Return a size in the unit that people read: 512 B, 11.4 KiB, 3.2 GiB."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
