from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megamoe_jit.cli import main as main_module
from megamoe_jit.errors import CompileError
from tests.cli.conftest import Run

COMMANDS = ("doctor", "demo", "warmup", "cache", "inspect", "emulate", "version")
CACHE_COMMANDS = ("list", "verify", "clear", "path", "pack", "unpack")


def test_help_names_every_command(run: Run) -> None:
    assert all(command in run("--help").out for command in COMMANDS)
    assert all(command in run("cache", "--help").out for command in CACHE_COMMANDS)


@pytest.mark.parametrize(
    "command", [[name] for name in COMMANDS if name != "cache"] + [["cache", name] for name in CACHE_COMMANDS]
)
def test_every_command_takes_json(run: Run, command: list[str]) -> None:
    assert "--json" in run(*command, "--help").out


def test_an_error_is_one_sentence_on_stderr_and_exit_status_1(run: Run) -> None:
    ran = run("inspect")
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.startswith("error: the cache ")
    assert "Build some with `megamoe-jit warmup" in ran.err.replace("\n", " ")


def test_an_error_with_json_is_one_object_on_stdout(run: Run) -> None:
    ran = run("inspect", "--json")
    assert ran.code == 1
    assert set(ran.record) == {"error", "type"}
    assert ran.record["type"] == "ArgumentError"
    assert ran.err == ""


def test_brackets_in_an_error_are_text_and_not_markup(run: Run) -> None:
    assert "kernel='[red]'" not in run("inspect", "[red]").out
    ran = run("warmup", "--preset", "[bold]")
    assert "preset='[bold]' is unknown" in ran.err.replace("\n", " ")


def test_a_compile_error_says_where_the_source_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise CompileError("NVRTC refused it", source_path=Path("kept/here"))

    monkeypatch.setattr(main_module, "app", fail)
    ran = run("version")
    assert ran.code == 1
    assert "NVRTC refused it" in ran.err
    assert "kept/here" in ran.err


def test_a_misspelt_option_is_exit_status_2(run: Run) -> None:
    ran = run("doctor", "--jsom")
    assert ran.code == 2
    assert "--json" in ran.err


def test_version_names_what_the_package_stands_on(run: Run) -> None:
    import torch

    import megamoe_jit

    record = run("version", "--json").record
    assert record["megamoe_jit"] == megamoe_jit.__version__
    assert record["torch"] == torch.__version__
    assert record["nvidia-cuda-nvrtc"].split(".")[0] == "13"
    assert f"torch {torch.__version__}" in run("version").out


def test_the_package_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megamoe_jit", "version", "--json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "megamoe_jit" in json.loads(printed)
