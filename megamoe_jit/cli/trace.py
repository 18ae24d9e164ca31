"""`megamoe-jit trace`: run a layer in the emulator, and write what each warp and copy engine did when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from megamoe_jit.cli.output import JsonOption, emit_json, print_line


def trace(
    output: Annotated[Path, typer.Argument(help="A .json file, for ui.perfetto.dev or chrome://tracing.")],
    *,
    hidden: Annotated[int, typer.Option(help="Model width.")] = 512,
    intermediate: Annotated[int, typer.Option(help="Expert width after gating.")] = 256,
    experts: Annotated[int, typer.Option(help="Number of experts.")] = 4,
    topk: Annotated[int, typer.Option(help="Experts for each token.")] = 2,
    tokens: Annotated[int, typer.Option(help="Tokens of the call.")] = 16,
    recipe: Annotated[str | None, typer.Option(help="A recipe. Default: the target's for NVFP4 weights.")] = None,
    arch: Annotated[
        str | None, typer.Option(help="Target to compile for. Default: this machine's GPU, else sm_100f.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, tokens and routing.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Run one call of a random layer in the emulator, and write its timeline: warps, copies and MMAs of every block.

    Time is virtual: it shows what waits for what, not how long it takes on a GPU.
    """
    from megamoe_jit.cli.demo import call, random_layer
    from megamoe_jit.cli.target import EMULATED_ARCH, target_arch
    from megamoe_jit.ops import MegaMoE
    from megamoe_jit.recipes import Problem, default_recipe, get_recipe
    from megamoe_jit.runtime.backend import resolve_backend
    from megamoe_jit.runtime.emulated import emulated_backend

    target = target_arch(arch, without_gpu=EMULATED_ARCH)
    chosen = get_recipe(recipe) if recipe else default_recipe(target)
    problem = Problem(
        hidden=hidden, intermediate=intermediate, num_experts=experts, num_topk=topk, max_tokens_per_rank=max(tokens, 1)
    )
    backend = resolve_backend("emulator", "cpu")
    layer = random_layer(problem, chosen, num_tokens=tokens, seed=seed, device="cpu")
    moe = MegaMoE(
        layer.weights,
        recipe=chosen.name,
        num_topk=topk,
        max_tokens_per_rank=problem.max_tokens_per_rank,
        backend=backend,
        arch=target,
    )
    _, emulated = call(moe, layer)
    assert emulated is not None
    timelines = emulated_backend().timelines()[-emulated.launches :] if emulated.launches else []
    events = list(merged(timelines))
    output.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))
    record = {
        "path": str(output),
        "bytes": output.stat().st_size,
        "events": len(events),
        "recipe": chosen.name,
        "arch": target,
        "kernels": [kernel for kernel, _ in timelines],
        "warp_instructions": emulated.warp_instructions,
    }
    if as_json:
        emit_json(record)
    else:
        print_line(f"{len(events)} events of {', '.join(kernel for kernel, _ in timelines)} written to {output}")
        print_line("Open it in https://ui.perfetto.dev or chrome://tracing.")


def merged(timelines: list[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield the events of several launches, one after the other in time, each block named for its kernel."""
    start, first_process = 0, 0
    for kernel, timeline in timelines:
        end, processes = start, 0
        for event in timeline["traceEvents"]:
            moved = event | {"pid": first_process + event["pid"]}
            processes = max(processes, event["pid"] + 1)
            if event["ph"] == "M" and event["name"] == "process_name":
                moved["args"] = {"name": f"{kernel}: {event['args']['name']}"}
            if "ts" in event:
                moved["ts"] = start + event["ts"]
                end = max(end, moved["ts"] + event.get("dur", 0))
            yield moved
        start, first_process = end, first_process + processes
