"""Environment variables: one table, read when asked, bad values in words."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megamoe_jit import env
from megamoe_jit.errors import ArgumentError

PACKAGE = Path(env.__file__).parent


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(env.PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("megamoe_jit")
    before = (logger.level, logger.handlers[:])
    logger.handlers[:] = []
    yield logger
    logger.level, logger.handlers[:] = before


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        (env.CACHE_DIR, "/var/kernels", Path("/var/kernels")),
        (env.CACHE_DIR, "~/kernels", Path.home() / "kernels"),
        (env.CACHE_ONLY, "1", True),
        (env.CACHE_ONLY, "off", False),
        (env.CACHE_MAX_BYTES, "1000", 1000),
        (env.CACHE_MAX_BYTES, "1.5 KB", 1500),
        (env.CACHE_MAX_BYTES, "2MiB", 2 << 20),
        (env.CACHE_MAX_BYTES, "4gib", 4 << 30),
        (env.CACHE_MAX_BYTES, "1TB", 10**12),
        (env.CACHE_MAX_BYTES, "none", None),
        (env.DUMP, "Yes", True),
        (env.LINEINFO, "0", False),
        (env.LOG, "DEBUG", "debug"),
        (env.BACKEND, "reference", "reference"),
        (env.TIMEOUT_S, "0.5", 0.5),
    ],
)
def test_a_variable_is_read_when_asked(
    monkeypatch: pytest.MonkeyPatch, variable: env.Variable[object], text: str, value: object
) -> None:
    assert variable.get() == variable.default
    monkeypatch.setenv(variable.name, text)
    assert variable.get() == value
    monkeypatch.setenv(variable.name, "")
    assert variable.get() == variable.default


@pytest.mark.parametrize(
    ("variable", "text", "sentence"),
    [
        (
            env.CACHE_ONLY,
            "maybe",
            "MEGAMOE_JIT_CACHE_ONLY='maybe' is not understood: it takes 1 or 0. Set it so, or unset it for 0.",
        ),
        (env.CACHE_MAX_BYTES, "4 gigs", "it takes a size such as 500MB or 4GiB, or none"),
        (env.CACHE_MAX_BYTES, "-1", "MEGAMOE_JIT_CACHE_MAX_BYTES='-1' is not understood"),
        (env.LOG, "loud", "it takes debug, info, warning or error"),
        (env.BACKEND, "gpu", "it takes cuda, emulator or reference"),
        (env.TIMEOUT_S, "0", "it takes a positive number of seconds"),
        (env.TIMEOUT_S, "inf", "it takes a positive number of seconds"),
        (env.TIMEOUT_S, "nan", "it takes a positive number of seconds"),
    ],
)
def test_a_bad_value_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, variable: env.Variable[object], text: str, sentence: str
) -> None:
    monkeypatch.setenv(variable.name, text)
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        variable.get()
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        env.check_environment()


def test_a_misspelt_variable_is_refused_with_the_closest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    env.check_environment()
    monkeypatch.setenv("MEGAMOE_JIT_CACHEDIR", "/tmp")
    with pytest.raises(ArgumentError, match=r"MEGAMOE_JIT_CACHEDIR, which .* Is it MEGAMOE_JIT_CACHE_DIR"):
        env.check_environment()


def test_the_table_has_a_row_for_each_variable() -> None:
    header, rule, *rows = env.markdown_table().splitlines()
    assert header == "| variable | value | default | effect |"
    assert rule.count("|") == header.count("|")
    assert [row.split("`")[1] for row in rows] == list(env.VARIABLES)
    assert all(row.count("|") == header.count("|") for row in rows)


def test_every_variable_named_in_the_package_is_in_the_table() -> None:
    named = {
        name for path in PACKAGE.rglob("*.py") for name in re.findall(r"MEGAMOE_JIT_[A-Z_]*[A-Z]", path.read_text())
    }
    assert named <= env.VARIABLES.keys()


def test_logging_is_left_alone_unless_asked(logger: logging.Logger) -> None:
    env.configure_logging()
    assert not logger.handlers


@pytest.mark.parametrize(("name", "text", "level"), [("LOG", "debug", logging.DEBUG), ("DUMP", "1", logging.INFO)])
def test_logging_follows_its_variable(
    monkeypatch: pytest.MonkeyPatch, logger: logging.Logger, name: str, text: str, level: int
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setenv(env.PREFIX + name, text)
    env.configure_logging()
    env.configure_logging()
    assert logger.level == level
    assert len(logger.handlers) == 1


def test_a_dump_does_not_hide_what_is_logged_already(monkeypatch: pytest.MonkeyPatch, logger: logging.Logger) -> None:
    logger.setLevel(logging.DEBUG)
    monkeypatch.setenv("MEGAMOE_JIT_DUMP", "1")
    env.configure_logging()
    assert logger.level == logging.DEBUG


def test_an_application_that_logs_gets_no_second_handler(
    monkeypatch: pytest.MonkeyPatch, logger: logging.Logger
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    monkeypatch.setenv("MEGAMOE_JIT_LOG", "info")
    env.configure_logging()
    assert not logger.handlers
    assert logger.level == logging.INFO


def test_importing_the_jit_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "jinja2", "filelock", "platformdirs", "cuda")
    code = (
        f"import sys, megamoe_jit.jit.build, megamoe_jit.jit.archive; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
