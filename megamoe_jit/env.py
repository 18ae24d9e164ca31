"""Every MEGAMOE_JIT_* environment variable, in one table. Variables are read when asked, never at import."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from megamoe_jit.errors import ArgumentError

PREFIX = "MEGAMOE_JIT_"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable(Generic[T]):
    """One environment variable: how to read it, and the words that its documentation is printed from."""

    name: str
    kind: str  # what a value looks like, in the words of tables and error messages
    default: T
    default_text: str
    help: str
    parse: Callable[[str], T]

    def get(self) -> T:
        """Return the value now; the default when it is unset or empty. Raises ArgumentError for a bad value."""
        text = os.environ.get(self.name)
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError:
            raise ArgumentError(
                f"{self.name}={text!r} is not understood: it takes {self.kind}. "
                f"Set it so, or unset it for {self.default_text}."
            ) from None


def _parse_flag(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _parse_path(text: str) -> Path:
    return Path(text).expanduser()


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_UNITS = {"b": 1} | {
    f"{letter}{i}b": base**power
    for power, letter in enumerate("kmgt", start=1)
    for i, base in (("", 1000), ("i", 1024))
}


def _parse_size(text: str) -> int | None:
    if text.lower() == "none":
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * _UNITS[(match[2] or "B").lower()])


def _parse_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(text)
    return seconds


def _parse_count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


def _parse_completion(text: str) -> str | float:
    """Read "lazy", "eager" or a probability."""
    if text.lower() in ("lazy", "eager"):
        return text.lower()
    probability = float(text)
    if not 0 < probability <= 1:
        raise ValueError(text)
    return probability


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(text)
        return text.lower()

    return parse


_FLAG = "1 or 0"

CACHE_DIR: Variable[Path | None] = Variable(
    name=PREFIX + "CACHE_DIR",
    kind="a folder",
    default=None,
    default_text="`cache/` of a source checkout, else the user's cache folder",
    help="Where built kernels are kept.",
    parse=_parse_path,
)
CACHE_ONLY: Variable[bool] = Variable(
    name=PREFIX + "CACHE_ONLY",
    kind=_FLAG,
    default=False,
    default_text="0",
    help="Refuse to compile: a kernel that the cache does not hold raises MissingKernelError.",
    parse=_parse_flag,
)
CACHE_MAX_BYTES: Variable[int | None] = Variable(
    name=PREFIX + "CACHE_MAX_BYTES",
    kind="a size such as 500MB or 4GiB, or none",
    default=4 << 30,
    default_text="4GiB",
    help="Cap on the cache; the kernels that were not loaded for the longest time go first.",
    parse=_parse_size,
)
TUNING: Variable[bool] = Variable(
    name=PREFIX + "TUNING",
    kind=_FLAG,
    default=True,
    default_text="1",
    help="Use what `MegaMoE.autotune` chose and stored in the cache.",
    parse=_parse_flag,
)
DUMP: Variable[bool] = Variable(
    name=PREFIX + "DUMP",
    kind=_FLAG,
    default=False,
    default_text="0",
    help="Leave .cu, .ptx, .cubin, .sass and .json of every kernel that is built or loaded.",
    parse=_parse_flag,
)
DUMP_DIR: Variable[Path | None] = Variable(
    name=PREFIX + "DUMP_DIR",
    kind="a folder",
    default=None,
    default_text="`dump/` below the cache",
    help="Where MEGAMOE_JIT_DUMP leaves its files; setting it turns the dump on.",
    parse=_parse_path,
)
LINEINFO: Variable[bool] = Variable(
    name=PREFIX + "LINEINFO",
    kind=_FLAG,
    default=True,
    default_text="1",
    help="Put template positions into PTX and cubin, for profilers, sanitizers and reports.",
    parse=_parse_flag,
)
LOG: Variable[str | None] = Variable(
    name=PREFIX + "LOG",
    kind="debug, info, warning or error",
    default=None,
    default_text="what the application's logging says",
    help="Level of the logger `megamoe_jit`.",
    parse=_choice("debug", "info", "warning", "error"),
)
BACKEND: Variable[str | None] = Variable(
    name=PREFIX + "BACKEND",
    kind="cuda, emulator or reference",
    default=None,
    default_text="the one that fits the tensors' device",
    help="What runs the kernels when a call does not say.",
    parse=_choice("cuda", "emulator", "reference"),
)
TIMEOUT_S: Variable[float] = Variable(
    name=PREFIX + "TIMEOUT_S",
    kind="a positive number of seconds",
    default=120.0,
    default_text="120",
    help="How long a kernel waits for another block or rank before it stops and says for whom it waited.",
    parse=_parse_seconds,
)

EMULATOR_SMS: Variable[int] = Variable(
    name=PREFIX + "EMULATOR_SMS",
    kind="a positive number",
    default=4,
    default_text="4",
    help="SMs of the emulated device: a kernel's grid has that many blocks, and the host that much work.",
    parse=_parse_count,
)
EMULATOR_SEED: Variable[int] = Variable(
    name=PREFIX + "EMULATOR_SEED",
    kind="an integer",
    default=0,
    default_text="0",
    help="What decides the order in which emulated warps and copies run, and what fills memory that nobody wrote.",
    parse=int,
)
EMULATOR_COMPLETION: Variable[str | float] = Variable(
    name=PREFIX + "EMULATOR_COMPLETION",
    kind="lazy, eager or a probability such as 0.05",
    default="lazy",
    default_text="lazy",
    help="When emulated copies and MMAs complete: as late as possible, at once, or with that probability at each step.",
    parse=_parse_completion,
)
EMULATOR_CHECKS: Variable[str] = Variable(
    name=PREFIX + "EMULATOR_CHECKS",
    kind="error, warn or off",
    default="error",
    default_text="error",
    help="Whether races, missing fences and misused barriers stop emulated kernels, are noted, or are not looked for.",
    parse=_choice("error", "warn", "off"),
)
EMULATOR_ENGINE: Variable[str] = Variable(
    name=PREFIX + "EMULATOR_ENGINE",
    kind="native or numpy",
    default="native",
    default_text="native",
    help="What executes emulated instructions: compiled code, or NumPy (far slower; to compare the two).",
    parse=_choice("native", "numpy"),
)
EMULATOR_NUMERICS: Variable[str] = Variable(
    name=PREFIX + "EMULATOR_NUMERICS",
    kind="hardware or exact",
    default="hardware",
    default_text="hardware",
    help="How emulated tensor cores add: cut off as published models of the hardware do, or exactly and rounded once.",
    parse=_choice("hardware", "exact"),
)

VARIABLES: Mapping[str, Variable[Any]] = {
    variable.name: variable
    for variable in (
        CACHE_DIR,
        CACHE_ONLY,
        CACHE_MAX_BYTES,
        TUNING,
        DUMP,
        DUMP_DIR,
        LINEINFO,
        LOG,
        BACKEND,
        TIMEOUT_S,
        EMULATOR_SMS,
        EMULATOR_SEED,
        EMULATOR_COMPLETION,
        EMULATOR_CHECKS,
        EMULATOR_ENGINE,
        EMULATOR_NUMERICS,
    )
}


def check_environment() -> None:
    """Raise ArgumentError for a MEGAMOE_JIT_* variable that does not exist or has a bad value."""
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in VARIABLES:
            close = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.0)
            raise ArgumentError(
                f"the environment sets {name}, which megamoe_jit does not have. Is it {close[0]}? "
                f"Unset it, or take one of {', '.join(VARIABLES)}."
            )
    for variable in VARIABLES.values():
        variable.get()


def configure_logging() -> None:
    """Apply MEGAMOE_JIT_LOG to the logger `megamoe_jit`; without it, a dump is announced at level info.

    Adds a handler (to stderr) only where neither that logger nor the root logger has one. Does nothing when neither
    variable is set.
    """
    logger = logging.getLogger("megamoe_jit")
    if (level := LOG.get()) is not None:
        logger.setLevel(level.upper())
    elif not (DUMP.get() or DUMP_DIR.get()):
        return
    elif not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger.addHandler(handler)


def markdown_table() -> str:
    """Return the README's table of all variables."""
    rows = ["| variable | value | default | effect |", "|---|---|---|---|"]
    rows += [f"| `{v.name}` | {v.kind} | {v.default_text} | {v.help} |" for v in VARIABLES.values()]
    return "\n".join(rows) + "\n"
