"""Does the emulator ever report a kernel that is right, or let it give other values?

    python -m benchmarks.emulator_seeds [--seeds 50] [--kernel NAME ...] [--no-record]

Each kernel runs once a seed, checks on. Seeds take turns in completion: lazy, eager, and by chance of several sizes.
Exits with 1 when a report stops one, or when a y differs by a bit from the first one. An interrupted run goes on where
it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.journal import Journal, fingerprint
from benchmarks.mutation.cases import (
    Case,
    Completion,
    grouped_gemm,
    mega_moe,
    triton_hopper,
    triton_maps,
    triton_pointers,
)
from benchmarks.record import Cell, Column, Result, measure_conditions, save
from megamoe_jit.errors import MegaMoeError
from megamoe_jit.reference.compare import rel_l2

COMPLETIONS: tuple[Completion, ...] = ("lazy", 0.3, "eager", 0.02, "lazy", 0.1, "eager", 0.8)
SM100_RECIPES = ("nvfp4_nvfp4", "mxfp8_mxfp4", "mxfp8_nvfp4", "mxfp4_mxfp4")
SM90_RECIPES = ("fp8_nvfp4", "bf16_nvfp4")
COLUMNS = (
    Column(key="kernel", heading="kernel"),
    Column(key="lazy", heading="seeds: lazy", format=".0f"),
    Column(key="random", heading="random", format=".0f"),
    Column(key="eager", heading="eager", format=".0f"),
    Column(key="reports", heading="stopped by a report", format=".0f"),
    Column(key="differences", heading="with other bits", format=".0f"),
    Column(key="warnings", heading="warnings"),
    Column(key="rel_l2", heading="relative L2 to float64", format=".1e"),
)


def _sm100(recipe: str) -> Callable[[], Case]:
    return lambda: mega_moe(recipe, "sm_100f", "mega_moe_sm100")


def _sm90(recipe: str) -> Callable[[], Case]:
    return lambda: mega_moe(recipe, "sm_90a", "mega_moe_sm90")


KERNELS: dict[str, Callable[[], Case]] = {
    **{f"mega_moe_sm100 {recipe}": _sm100(recipe) for recipe in SM100_RECIPES},
    **{f"mega_moe_sm90 {recipe}": _sm90(recipe) for recipe in SM90_RECIPES},
    "grouped_gemm_sm100 nvfp4_nvfp4, pairs": grouped_gemm,
    "grouped_gemm_sm100 mxfp8_mxfp4, single CTAs": lambda: grouped_gemm("mxfp8_mxfp4", 1),
    "Triton, NVFP4 through pointers": triton_pointers,
    "Triton, NVFP4 through tensor maps": triton_maps,
    "Triton, FP8 on Hopper": triton_hopper,
}


def try_seed(case: Case, seed: int) -> dict[str, Any]:
    """Run one seed; says under which completion, whether y has the same bits, and what was reported."""
    completion = COMPLETIONS[seed % len(COMPLETIONS)]
    found: dict[str, Any] = {"seed": seed, "completion": completion, "report": "", "warnings": [], "differs": False}
    try:
        ran = case.run(completion, seed)
    except MegaMoeError as error:
        return {**found, "report": str(error)}
    return {**found, "warnings": sorted(ran.reports), "differs": not case.has_right_bits(ran)}


def _counted(kinds: Iterable[str]) -> str:
    counts = sorted(Counter(kinds).items())
    return ", ".join(f"`{kind}` {'once' if count == 1 else f'{count} times'}" for kind, count in counts) or "none"


def row_of(name: str, error: float, found: list[dict[str, Any]]) -> dict[str, Cell]:
    """Return the row of a kernel."""
    completions = [entry["completion"] for entry in found]
    return {
        "kernel": name,
        "lazy": completions.count("lazy"),
        "random": sum(isinstance(completion, float) for completion in completions),
        "eager": completions.count("eager"),
        "reports": sum(bool(entry["report"]) for entry in found),
        "differences": sum(entry["differs"] for entry in found),
        "warnings": _counted(kind for entry in found for kind in entry["warnings"]),
        "rel_l2": error,
    }


def examine(name: str, seeds: int, journal: Journal) -> dict[str, Cell]:
    """Run a kernel over all seeds that `journal` does not have yet."""
    found = [entry for entry in journal.entries if entry["kernel"] == name and entry["seed"] < seeds]
    case: Case | None = None
    for seed in range(seeds):
        if any(entry["seed"] == seed for entry in found):
            continue
        case = case or KERNELS[name]()
        start = time.perf_counter()
        entry = {"kernel": name, "rel_l2": rel_l2(case.expected, case.reference), **try_seed(case, seed)}
        journal.add(entry)
        found.append(entry)
        outcome = entry["report"] or ("other bits" if entry["differs"] else "right")
        print(
            f"{name}, seed {seed}, {entry['completion']}: {outcome} ({time.perf_counter() - start:.1f} s)", flush=True
        )
    return row_of(name, found[0]["rel_l2"], found)


def main() -> int:
    """Run all kernels and leave the record; returns 1 when one was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="run this one only (may be repeated)")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    conditions = measure_conditions()
    sources = fingerprint("benchmarks/mutation/cases.py", "tests/emulator/triton/*.py")
    journal = Journal("emulator_seeds", {"sources": sources})
    rows = tuple(examine(name, options.seeds, journal) for name in options.kernel or KERNELS)
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    if not options.no_record:
        notes = (
            'Checks on (`checks="error"`). Layers have 61 tokens, 768 hidden, 256 intermediate, 3 experts, 2 a token, '
            "and are compiled with two stages and a ring of two token tiles. Float64 has the recipe's rounding points "
            "for layers, and is a plain sum for products, whose difference is that y is rounded to BF16. "
            "`uninitialised`: the GEMM's epilogue reads groups of 32 columns from tensor memory, and stores none "
            "past an expert's last token."
        )
        save(
            Result(
                name="emulator_seeds",
                title="Correct kernels in the emulator over many seeds",
                columns=COLUMNS,
                rows=rows,
                notes=notes,
                conditions=conditions,
            )
        )
        if options.kernel is None:
            journal.finish()
    return int(any(row["reports"] or row["differences"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
