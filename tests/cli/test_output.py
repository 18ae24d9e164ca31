from __future__ import annotations

import json
from pathlib import Path

import pytest

from megamoe_jit.cli.output import emit_json, format_bytes, print_table


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")],
)
def test_sizes_have_the_unit_that_people_read(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_json_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"path": Path("a/b"), "text": "two\nlines"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"path": "a/b", "text": "two\nlines"}


def test_cells_are_text_and_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[bold]title", ("a", "b"), [("[red]x", None), (0.123456, 7)])
    out = capsys.readouterr().out
    for text in ("[bold]title", "[red]x", "-", "0.1235", "7"):
        assert text in out
