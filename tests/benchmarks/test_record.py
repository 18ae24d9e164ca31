from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.record import Column, Result, load, measure_conditions, save

RESULT = Result(
    name="speed",
    title="How fast",
    columns=(Column(key="tokens", heading="Tokens"),),
    rows=({"tokens": 8},),
    conditions={"device": "NVIDIA H200"},
)


def test_a_record_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text("{}")
    assert load(save(RESULT, folder=tmp_path)) == RESULT
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def test_a_write_that_fails_keeps_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(RESULT, folder=tmp_path)

    def replace(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="disk full"):
        save(Result(name="speed", title="Other", columns=(), rows=(), conditions={}), folder=tmp_path)
    assert load(tmp_path / "speed.json") == RESULT


@pytest.mark.parametrize(
    ("status", "commit"), [("", "abc123"), (" M megamoe_jit/arch.py\n", "abc123 with uncommitted changes")]
)
def test_a_commit_says_whether_it_is_what_ran(status: str, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        outputs = {"rev-parse": "abc123\n", "status": status}
        found = next((text for word, text in outputs.items() if word in command), "580.95\n")
        return subprocess.CompletedProcess(command, 0, stdout=found)

    monkeypatch.setattr(record.subprocess, "run", run)
    conditions = measure_conditions()
    assert conditions["commit"] == commit
    assert conditions["driver"] == "580.95"
