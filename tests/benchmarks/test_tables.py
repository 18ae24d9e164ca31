from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.record import Column, Result, load, load_all, save
from benchmarks.tables import fill, main, make_tables, markdown_table, recipes_table, result_table

CONDITIONS = {
    "date": "2026-01-02",
    "device": "NVIDIA H200",
    "target": "sm_90a",
    "command": "python -m benchmarks.speed",
}
RESULT = Result(
    name="speed",
    title="How fast",
    columns=(Column(key="tokens", heading="Tokens"), Column(key="us", heading="Time", format=".1f")),
    rows=({"tokens": 8, "us": 12.345, "raw": 1}, {"tokens": 64, "us": None}),
    notes="Median of 20.",
    conditions=CONDITIONS,
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert load(save(RESULT, folder=tmp_path)) == RESULT
    (tmp_path / "raw.json").write_text('{"samples": [1, 2]}')
    assert load_all(tmp_path) == {"speed": RESULT}


def test_a_row_must_have_every_column(tmp_path: Path) -> None:
    broken = Result(name="x", title="", columns=RESULT.columns, rows=({"tokens": 8},), conditions={})
    with pytest.raises(ValueError, match=r"row .* lacks us"):
        save(broken, folder=tmp_path)


def test_a_record_says_when_where_and_how_it_was_made() -> None:
    conditions = Result(name="x", title="", columns=(), rows=()).conditions
    assert {"date", "device", "target", "driver", "nvrtc", "torch", "python", "commit", "command"} == set(conditions)
    assert conditions["nvrtc"].startswith("13.")


def test_a_record_becomes_a_table_with_its_conditions() -> None:
    text = result_table(RESULT)
    assert "| Tokens | Time |\n|---|---|\n| 8 | 12.3 |\n| 64 | - |\n" in text
    assert "Median of 20." in text
    assert "date 2026-01-02, device NVIDIA H200, target sm_90a; `python -m benchmarks.speed`" in text


def test_bars_in_cells_do_not_end_them() -> None:
    assert markdown_table(("a",), [("x | y",)]) == "| a |\n|---|\n| x \\| y |\n"


def test_only_what_is_between_markers_changes() -> None:
    page = "before\n<!-- table: speed -->\nold\n<!-- end -->\nafter\n<!-- table: none -->\n<!-- end -->\n"
    filled = fill(page, make_tables({"speed": RESULT}))
    assert filled.startswith("before\n<!-- table: speed -->\n**How fast**")
    assert "old" not in filled
    assert "results/none.json is missing" in filled
    assert fill(filled, make_tables({"speed": RESULT})) == filled


def test_a_marker_can_select_rows() -> None:
    page = "<!-- table: speed tokens=8 -->\n<!-- end -->\n"
    filled = fill(page, make_tables({"speed": RESULT}))
    assert "| 8 | 12.3 |" in filled
    assert "| 64 |" not in filled
    assert fill(filled, make_tables({"speed": RESULT})) == filled


def test_support_is_hardware_tested_only_where_a_record_says_so() -> None:
    row = {"recipe": "fp8_nvfp4"}
    tested = Result(name="accuracy", title="", columns=(), rows=(row,), conditions=CONDITIONS)
    on_cpu = Result(
        name="accuracy", title="", columns=(), rows=(row,), conditions={"device": "x86_64 CPU", "target": "none"}
    )
    assert "| `fp8_nvfp4` | tested on H200 | - |" in recipes_table({"accuracy": tested})
    assert "| `fp8_nvfp4` | compiles | - |" in recipes_table({"accuracy": on_cpu})
    assert "| `bf16_nvfp4` | compiles | - |" in recipes_table({"accuracy": tested})
    assert "| `nvfp4_nvfp4` | - | compiles |" in recipes_table({})
    emulated = Result(
        name="sm100_correctness",
        title="",
        columns=(),
        rows=({"recipe": "nvfp4_nvfp4"},),
        conditions={"device": "x86_64 CPU", "target": "none"},
    )
    table = recipes_table({"sm100_correctness": emulated})
    assert "| `nvfp4_nvfp4` | - | compiles | emulated | compiles |" in table
    assert "| `mxfp4_mxfp4` | - | compiles | compiles | compiles |" in table


def test_check_fails_for_a_stale_page_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- table: environment -->\n<!-- end -->\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert main(["--check"]) == 1
    assert "MEGAMOE_JIT" not in page.read_text()
    assert main([]) == 0
    assert "MEGAMOE_JIT_CACHE_DIR" in page.read_text()
    assert main(["--check"]) == 0


def test_the_pages_of_this_checkout_are_up_to_date() -> None:
    assert main(["--check"]) == 0, "run: make tables"
