"""`megamoe-jit warmup`: compile the kernels of named models ahead, into the cache, in several processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megamoe_jit.cli.output import JsonOption, console, emit_json, log_console, print_line, print_table
from megamoe_jit.cli.presets import Preset, get_preset, list_presets
from megamoe_jit.cli.target import target_arch
from megamoe_jit.errors import ArgumentError, MegaMoeError

if TYPE_CHECKING:
    from megamoe_jit.jit.source import KernelDescription


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one kernel: compiled now, found in the cache, or failed with `error`."""

    kernel: str
    arch: str
    cache: Literal["hit", "miss", "failed"]
    wall_s: float
    entry: str = ""  # its name in the cache
    compile_s: float = 0.0
    registers: int = 0
    spill_bytes: int = 0
    error: str | None = None

    @property
    def row(self) -> tuple[object, ...]:
        """Cells below OUTCOME_COLUMNS; the key is what `inspect` takes."""
        key = self.entry.rpartition("-")[2][:12]
        return self.kernel, self.arch, key, self.cache, self.wall_s, self.compile_s, self.registers, self.spill_bytes


OUTCOME_COLUMNS = ("kernel", "target", "key", "cache", "wall s", "compile s", "registers", "spilled B")


def warmup(
    *,
    preset: Annotated[
        list[str] | None, typer.Option(help="A named model; repeat for several (--list shows them).")
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Model width; replaces the preset's.")] = None,
    intermediate: Annotated[int | None, typer.Option(help="Expert width after gating.")] = None,
    experts: Annotated[int | None, typer.Option(help="Number of experts in all.")] = None,
    topk: Annotated[int | None, typer.Option(help="Experts for each token.")] = None,
    ranks: Annotated[int, typer.Option(help="Expert-parallel ranks, which share the experts evenly.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one rank that the buffers are made for.")] = 8192,
    recipe: Annotated[
        list[str] | None, typer.Option(help="A recipe; repeat for several. Default: the one for checkpoint and target.")
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option(help="A target; repeat for several. Default: this machine's GPU, else sm_90a.")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", "-j", help="Compiling processes (0: one for each core).")
    ] = 0,
    show_list: Annotated[bool, typer.Option("--list", help="List the named models and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compile the kernels of named models, or of one given by its shape, into the cache."""
    if show_list:
        _print_presets(as_json=as_json)
        return
    start = time.perf_counter()
    models = _models(preset, hidden=hidden, intermediate=intermediate, num_experts=experts, num_topk=topk)
    archs = [target_arch(name) for name in arch] if arch else [target_arch()]
    descriptions = plan_models(models, archs=archs, recipes=recipe, num_ranks=ranks, max_tokens_per_rank=max_tokens)
    outcomes = _build_with_progress(descriptions, processes or os.cpu_count() or 1)
    record = summarise(outcomes, models=[model.name for model in models], archs=archs)
    record["wall_s"] = time.perf_counter() - start
    if as_json:
        emit_json(record)
    else:
        _print_summary(outcomes, record)
    if record["failed"]:
        raise typer.Exit(1)


def plan_models(
    models: Iterable[Preset],
    *,
    archs: Iterable[str],
    recipes: Iterable[str] | None,
    num_ranks: int,
    max_tokens_per_rank: int,
) -> list[KernelDescription]:
    """Return every kernel that `models` need on `archs`, each once, in the order of first need."""
    from megamoe_jit.recipes import Problem, default_recipe, plan_kernels

    chosen = list(recipes or ())
    descriptions: dict[KernelDescription, None] = {}
    for model in models:
        problem = Problem(
            hidden=model.hidden,
            intermediate=model.intermediate,
            num_experts=model.num_experts,
            num_topk=model.num_topk,
            max_tokens_per_rank=max_tokens_per_rank,
            num_ranks=num_ranks,
            activation=model.activation_spec(),
        )
        for arch in archs:
            for recipe in chosen or [default_recipe(arch, model.checkpoint).name]:
                descriptions.update(dict.fromkeys(plan_kernels(problem, recipe, arch)))
    return list(descriptions)


def build_all(
    descriptions: Iterable[KernelDescription], processes: int, *, build_one: Callable[[KernelDescription], Outcome]
) -> Iterator[Outcome]:
    """Build every kernel in at most `processes` spawned processes (1: in this one); yield outcomes as they come."""
    # A plan lists its largest tiles last, and those take longest to compile: they start first.
    pending = list(descriptions)[::-1]
    workers = min(processes, len(pending))
    if workers <= 1:
        yield from map(build_one, pending)
        return
    # Spawned, not forked: torch and NVRTC threads of this process do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(build_one, description) for description in pending]):
            yield future.result()


def build_one(description: KernelDescription) -> Outcome:
    """Build one kernel through the cache; a failure becomes an outcome, so that the others still get built."""
    from megamoe_jit.jit.build import build

    start = time.perf_counter()
    kernel, arch = description.kernel_name, description.arch.name
    try:
        built = build(description)
    except MegaMoeError as error:
        wall_s = time.perf_counter() - start
        return Outcome(kernel=kernel, arch=arch, cache="failed", wall_s=wall_s, error=str(error))
    resources = built.artifact.resources
    return Outcome(
        kernel=kernel,
        arch=arch,
        cache="hit" if built.cache_hit else "miss",
        wall_s=time.perf_counter() - start,
        entry=built.key.entry_name,
        compile_s=built.artifact.compile_s,
        registers=resources.registers,
        spill_bytes=resources.spill_stores + resources.spill_loads,
    )


def compiled_s(outcomes: Iterable[Outcome]) -> float:
    """Return NVRTC's time for the kernels that were compiled now."""
    return sum((outcome.compile_s for outcome in outcomes if outcome.cache == "miss"), 0.0)


def summarise(outcomes: list[Outcome], *, models: list[str], archs: list[str]) -> dict[str, object]:
    """Return the JSON record of a warm-up."""
    from megamoe_jit.jit.cache import default_cache

    counts = {state: sum(outcome.cache == state for outcome in outcomes) for state in ("miss", "hit", "failed")}
    return {
        "models": models,
        "archs": archs,
        "kernels": len(outcomes),
        "compiled": counts["miss"],
        "cached": counts["hit"],
        "failed": counts["failed"],
        "compile_s": compiled_s(outcomes),
        "cache_dir": str(default_cache().path),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def _models(
    presets: list[str] | None,
    *,
    hidden: int | None,
    intermediate: int | None,
    num_experts: int | None,
    num_topk: int | None,
) -> list[Preset]:
    if presets:
        models = [get_preset(name) for name in presets]
        return [
            replace(
                model,
                hidden=hidden or model.hidden,
                intermediate=intermediate or model.intermediate,
                num_experts=num_experts or model.num_experts,
                num_topk=num_topk or model.num_topk,
            )
            for model in models
        ]
    if hidden is None or intermediate is None or num_experts is None or num_topk is None:
        raise ArgumentError(
            "no --preset was given, and a layer needs --hidden, --intermediate, --experts and --topk. "
            "Give all four, or name a model (--list shows them)."
        )
    return [Preset(name="custom", hidden=hidden, intermediate=intermediate, num_experts=num_experts, num_topk=num_topk)]


def _build_with_progress(descriptions: list[KernelDescription], processes: int) -> list[Outcome]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    outcomes = []
    with Progress(*columns, console=log_console) as progress:
        task = progress.add_task("building kernels", total=len(descriptions))
        for outcome in build_all(descriptions, processes, build_one=build_one):
            outcomes.append(outcome)
            progress.advance(task)
    return outcomes


def _print_summary(outcomes: list[Outcome], record: dict[str, object]) -> None:
    print_table("Kernels", OUTCOME_COLUMNS, [outcome.row for outcome in outcomes if outcome.error is None])
    for outcome in outcomes:
        if outcome.error:
            console.print(f"[bold red]failed:[/] {outcome.kernel} for {outcome.arch}")
            print_line(outcome.error)
    print_line(
        f"{record['compiled']} compiled, {record['cached']} found in the cache, {record['failed']} failed, "
        f"in {record['wall_s']:.1f} s. The cache is {record['cache_dir']}"
    )


def _print_presets(*, as_json: bool) -> None:
    if as_json:
        emit_json({"presets": [asdict(preset) for preset in list_presets()]})
        return
    columns = ("name", "H", "I", "experts", "top-k", "checkpoint", "activation")
    rows = [
        (p.name, p.hidden, p.intermediate, p.num_experts, p.num_topk, p.checkpoint, p.activation)
        for p in list_presets()
    ]
    print_table("Named models (H hidden, I intermediate)", columns, rows)
