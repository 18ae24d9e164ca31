"""Every example runs as it stands, and is short."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAX_LINES = {"README": 15, "example": 75}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_says_what_it_did(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path))
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert len(path.read_text().splitlines()) <= MAX_LINES["example"]


def test_there_are_five_examples_and_the_readme_names_them() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(EXAMPLES) == 5
    assert [path.name for path in EXAMPLES if f"examples/{path.name}" not in readme] == []


def test_the_example_in_the_readme_is_short() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= MAX_LINES["README"]  # tests/test_docs.py runs it
