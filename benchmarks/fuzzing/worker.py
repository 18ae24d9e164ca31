"""Runs damaged kernels, one after the other, and says of each what came of it; the parent watches that it lives.

    python -m benchmarks.fuzzing.worker SEED FIRST LAST ENGINE

Lines on stdout: `start INDEX`, then `done INDEX OUTCOME DETAIL`.
"""

from __future__ import annotations

import faulthandler
import functools
import random
import resource
import sys
import warnings
from dataclasses import dataclass
from typing import Literal

from benchmarks.fuzzing.kernels import KERNELS, NUM_FLOATS, FuzzKernel
from benchmarks.fuzzing.mutations import mutate, mutate_with_care, tokens

MAX_MEMORY = 8 << 30
"""Address space of a worker: a text that makes it ask for more is a finding."""

_MARGIN = 64
_SHARE_WITH_CARE = 0.6
_MAX_INSTRUCTIONS = 100_000
_MAX_SECONDS = 5.0

GOOD_OUTCOMES = ("ran", "fault", "syntax", "unsupported", "argument")
BAD_OUTCOMES = ("exception", "corrupted", "crash", "hang")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Text number `index`: what it was made of, and how it is run."""

    index: int
    kernel: FuzzKernel
    text: str
    with_care: bool
    checks: str
    completion: Literal["lazy", "eager"] | float


def case(seed: int, index: int) -> Case:
    """Return text `index` of `seed`; the same everywhere, for the same NVRTC."""
    rng = random.Random(f"{seed}:{index}")
    completions: tuple[Literal["lazy", "eager"] | float, ...] = ("lazy", "eager", 0.1)
    kernel = KERNELS[index % len(KERNELS)]
    with_care = rng.random() < _SHARE_WITH_CARE
    text = mutate_with_care(rng, kernel.ptx) if with_care else mutate(rng, kernel.ptx, _tokens(kernel))
    return Case(
        index=index,
        kernel=kernel,
        text=text,
        with_care=with_care,
        checks=rng.choice(("error", "warn", "off")),
        completion=rng.choice(completions),
    )


@functools.cache
def _tokens(kernel: FuzzKernel) -> list[str]:
    return tokens(kernel.ptx)


def run(found: Case, engine: str) -> tuple[str, str]:
    """Load and launch a text; returns its outcome with a detail. What no kernel may do ends the process instead."""
    import numpy as np

    from megamoe_jit.emulator.api import Emulator, Limits
    from megamoe_jit.emulator.parser import PtxSyntaxError
    from megamoe_jit.errors import ArgumentError, EmulatorFault, UnsupportedError

    guarded = np.full(NUM_FLOATS + 2 * _MARGIN, 7, np.float32)
    out = guarded[_MARGIN:-_MARGIN]
    out[:] = 0
    inputs = np.linspace(-4, 4, NUM_FLOATS, dtype=np.float32)
    inputs.setflags(write=False)
    before = inputs.copy()
    limits = Limits(max_instructions=_MAX_INSTRUCTIONS, max_seconds=_MAX_SECONDS, stall_seconds=_MAX_SECONDS)
    kernel = found.kernel
    try:
        emulator = Emulator(
            seed=found.index, completion=found.completion, checks=found.checks, engine=engine, limits=limits
        )
        module = emulator.load(found.text)
        if not module.kernels:
            return "argument", "no kernel is left"
        name = "kernel" if "kernel" in module.kernels else module.kernels[0]
        module.launch(name, kernel.grid, kernel.block, kernel.cluster, args=[out, inputs, NUM_FLOATS])
        outcome = ("ran", "")
    except PtxSyntaxError as error:
        outcome = ("syntax", str(error))
    except UnsupportedError as error:
        outcome = ("unsupported", str(error))
    except ArgumentError as error:
        outcome = ("argument", str(error))
    except EmulatorFault as error:
        outcome = ("fault", str(error))
    except Exception as error:
        frames = error.__traceback__
        while frames is not None and frames.tb_next is not None:
            frames = frames.tb_next
        place = f"{frames.tb_frame.f_code.co_filename}:{frames.tb_lineno}" if frames else ""
        outcome = ("exception", f"{type(error).__name__} at {place}: {error}")
    if (inputs != before).any() or (guarded[:_MARGIN] != 7).any() or (guarded[-_MARGIN:] != 7).any():
        return "corrupted", f"memory that the kernel may not write has changed ({outcome[0]})"
    return outcome


def main(arguments: list[str]) -> None:
    """Run texts FIRST to LAST - 1 of SEED."""
    seed, first, last = map(int, arguments[:3])
    faulthandler.enable()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for index in range(first, last):
        print("start", index, flush=True)
        outcome, detail = run(case(seed, index), arguments[3])
        print("done", index, outcome, " ".join(detail.split())[:400], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
