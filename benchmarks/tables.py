"""Prints tables into README.md and docs/: between markers, from the records in results/ and from the package itself.

A page says where a table goes, and this script fills it in:

    <!-- table: environment -->
    <!-- end -->

Names are those of records (results/<name>.json), of the tables that the package knows (`environment`, `recipes`,
`sm90_budgets`, `reports`), and of what the record `hopper_speed` becomes: `hopper_speed_summary`, `..._times`,
`..._accuracy`, `..._gaps`.
`<!-- table: speed model=flash num_tokens=64 -->` prints only the rows of the record with these values.
`python -m benchmarks.tables --check` changes nothing and fails when a page is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.record import Cell, Column, Result, load_all
from megamoe_jit import env
from megamoe_jit.arch import get_arch

Table = Callable[[str, Mapping[str, str]], str]
ROOT = Path(__file__).resolve().parent.parent
_MARKED = re.compile(r"(<!-- table: ([\w.-]+)((?: [\w.-]+=[^\s=]+)*) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; cells may not hold line breaks, and their bars are escaped."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (headings, *rows)]
    lines.insert(1, "|" + "---|" * len(headings))
    return "\n".join(lines) + "\n"


def result_table(result: Result) -> str:
    """Return the table of a record, with its notes and the conditions that it was measured under."""
    rows = [[_show(column, row[column.key]) for column in result.columns] for row in result.rows]
    table = markdown_table([column.heading for column in result.columns], rows)
    return f"**{result.title}**\n\n{table}{_notes(result)}"


def _show(column: Column, value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, column.format) if isinstance(value, int | float) else value


def recipes_table(results: Mapping[str, Result]) -> str:
    """Return what each recipe has on each target: a kernel that ran on hardware, in the emulator, or only compiles."""
    from benchmarks.sm100_cases import ARCH as EMULATED_ARCH
    from megamoe_jit.arch import ARCHS
    from megamoe_jit.cli.support import support_of
    from megamoe_jit.recipes.recipe import RECIPES

    tested = {
        (row.get("recipe"), result.conditions.get("target")): result.conditions["device"].removeprefix("NVIDIA ")
        for result in results.values()
        for row in result.rows
    }
    emulated = {
        (row["recipe"], EMULATED_ARCH)
        for row in (results["sm100_correctness"].rows if "sm100_correctness" in results else ())
    }
    targets = list(ARCHS)

    def cell(recipe: str, arch: str) -> str:
        support = support_of(recipe, arch)
        if not support.has_kernel:
            return "reference" if support.is_target else "-"
        device = tested.get((recipe, arch))
        if device:
            return f"tested on {device}"
        return "emulated" if (recipe, arch) in emulated else "compiles"

    rows = ([f"`{recipe}`", *(cell(recipe, arch) for arch in targets)] for recipe in RECIPES)
    return markdown_table(("Recipe", *targets), rows)


def sm90_budgets_table() -> str:
    """Return shared memory and registers of each token tile of the fused sm_90a kernel, for one layer."""
    from megamoe_jit.recipes import Problem, get_recipe
    from megamoe_jit.recipes.sm90 import config_for_tile, token_tiles

    problem = Problem(hidden=4096, intermediate=2048, num_experts=32, num_topk=6, max_tokens_per_rank=4096)
    arch = get_arch("sm_90a")
    headings = (
        *("Recipe", "Token tile", "Passes x rows", "Stages", "A stage, B (tokens + weights)", "Shared memory, B"),
        *("Unused, B", "Registers of sums", "Registers of fragments"),
    )
    rows: list[tuple[str, ...]] = []
    registers: dict[tuple[int, int], int] = {}  # of loaders and consumers, and the first token tile with so many
    for recipe in (get_recipe("fp8_nvfp4"), get_recipe("bf16_nvfp4")):
        for block_n in token_tiles(problem, recipe):
            config = config_for_tile(problem, recipe, arch, block_n)
            registers.setdefault(config.registers, block_n)
            is_fp8, m64 = config.shapes.is_fp8, config.pass_m // 64 // 2  # 64-row tiles that a warpgroup multiplies
            counts = (config.smem_bytes, arch.max_smem_bytes - config.smem_bytes, m64 * block_n // 2 * (1 + is_fp8))
            rows.append(
                (
                    *(f"`{recipe.name}`", str(block_n), f"{config.num_passes} x {config.pass_m}"),
                    *(str(config.num_stages), f"{config.token_stage_bytes} + {config.weight_stage_bytes}"),
                    *map(str, (*counts, 2 * m64 * (8 if is_fp8 else 16))),
                )
            )
    threads = config.num_threads - 128
    sums = (
        f"from token tile {block_n} on {threads} consumer threads x {consumer} + 128 loader threads x {loader} = "
        f"{threads * consumer + 128 * loader}"
        for (loader, consumer), block_n in registers.items()
    )
    note = (
        f"A block may have {arch.max_smem_bytes} B of shared memory, and an SM has {arch.regs_per_sm} registers: "
        f"{', '.join(sums)}."
    )
    return markdown_table(headings, rows) + f"\n{note}\n"


def reports_table() -> str:
    """Return the kinds of the emulator's reports."""
    from megamoe_jit.emulator.faults import KINDS

    headings = ("kind", "meaning", "certain", "raises", "PTX ISA")
    rows = [
        (
            f"`{kind.name}`",
            kind.meaning,
            "yes" if kind.severity == "error" else "depends",
            f"`{kind.fault.__name__}`",
            kind.section,
        )
        for kind in KINDS.values()
    ]
    return markdown_table(headings, rows)


def hopper_speed_table(result: Result, table: str, wanted: Mapping[str, str]) -> str:
    """Return one of the tables that the record of `benchmarks.hopper_speed` becomes; its conditions below the first."""
    from benchmarks.peers.report import tables

    headings, rows = tables(result, table, wanted)
    text = markdown_table(headings, rows) if rows else "_Nothing._\n"
    return text + _notes(result) if table == "summary" else text


def _notes(result: Result) -> str:
    conditions = ", ".join(f"{name} {value}" for name, value in result.conditions.items() if name != "command")
    command = result.conditions.get("command", "")
    notes = f"\n{result.notes}\n" if result.notes else ""
    return f"{notes}\n<sub>{conditions}; `{command}`</sub>\n"


def select(result: Result, wanted: Mapping[str, str]) -> Result:
    """Return `result` with only the rows that have these values."""
    rows = tuple(row for row in result.rows if all(str(row[key]) == value for key, value in wanted.items()))
    return replace(result, rows=rows)


def fill(text: str, table: Table) -> str:
    """Return `text` with everything between its markers replaced."""

    def print_table(match: re.Match[str]) -> str:
        wanted = dict(pair.split("=") for pair in match[3].split())
        return match[1] + table(match[2], wanted) + match[4]

    return _MARKED.sub(print_table, text)


def make_tables(results: Mapping[str, Result]) -> Table:
    """Return the function from a marker's name, and the values that rows shall have, to its table."""

    def table(name: str, wanted: Mapping[str, str]) -> str:
        if name == "environment":
            return env.markdown_table()
        if name == "recipes":
            return recipes_table(results)
        if name == "sm90_budgets":
            return sm90_budgets_table()
        if name == "reports":
            return reports_table()
        record, _, part = name.rpartition("_")
        if record == "hopper_speed" and record in results:
            return hopper_speed_table(results[record], part, wanted)
        if name in results:
            return result_table(select(results[name], wanted))
        missing = record if record == "hopper_speed" else name
        return f"_Not measured yet: benchmarks/results/{missing}.json is missing._\n"

    return table


def pages() -> list[Path]:
    """Return every page that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main(args: Sequence[str] | None = None) -> int:
    """Rewrite the pages, or with --check say which are out of date; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page is out of date")
    options = parser.parse_args(args)
    tables = make_tables(load_all())
    stale = []
    for page in pages():
        text = page.read_text()
        filled = fill(text, tables)
        if filled != text:
            stale.append(page.relative_to(ROOT))
            if not options.check:
                page.write_text(filled)
    for name in stale:
        print(f"{name}: {'out of date, run: make tables' if options.check else 'rewritten'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
