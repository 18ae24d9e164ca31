"""`megamoe-jit explain`: what a model says of one call of a fused kernel, without running it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from megamoe_jit.cli.output import JsonOption, emit_json, print_line, print_table
from megamoe_jit.cli.presets import Preset, get_preset
from megamoe_jit.errors import ArgumentError, MissingKernelError, UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.formats.activation import ActivationSpec
    from megamoe_jit.recipes.choose import MoeConfig
    from megamoe_jit.recipes.model import Estimate, Model

DEFAULT_ARCH = "sm_100f"  # the family target, whose one cubin runs on B200 and B300
ActivationName = Literal["swiglu", "swigluoai", "gelu", "relu2"]


def explain(
    *,
    preset: Annotated[str | None, typer.Option(help="A named model (`warmup --list` shows them).")] = None,
    hidden: Annotated[int | None, typer.Option(help="Model width; replaces the preset's.")] = None,
    intermediate: Annotated[int | None, typer.Option(help="Expert width after gating.")] = None,
    experts: Annotated[int | None, typer.Option(help="Number of experts.")] = None,
    topk: Annotated[int | None, typer.Option(help="Experts for each token.")] = None,
    activation: Annotated[ActivationName | None, typer.Option(help="Default: the preset's, else swiglu.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Default: the one for checkpoint and target.")] = None,
    arch: Annotated[str, typer.Option(help="A target.")] = DEFAULT_ARCH,
    tokens: Annotated[int, typer.Option(help="Tokens of the call.")] = 64,
    max_tokens: Annotated[int, typer.Option(help="Tokens that the buffers are made for.")] = 8192,
    latency_ns: Annotated[float, typer.Option(help="Assumed latency of a load from memory.")] = 800.0,
    sass: Annotated[
        bool, typer.Option("--sass/--no-sass", help="Compile the kernel (through the cache) and count its SASS.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Model one call of a fused kernel: bytes, MMA cycles, resources, floor. A model, not a measurement."""
    from megamoe_jit.recipes import Problem, default_recipe
    from megamoe_jit.recipes.model import model_call

    layer = _layer(preset, hidden=hidden, intermediate=intermediate, num_experts=experts, num_topk=topk)
    problem = Problem(
        hidden=layer.hidden,
        intermediate=layer.intermediate,
        num_experts=layer.num_experts,
        num_topk=layer.num_topk,
        max_tokens_per_rank=max_tokens,
        activation=activation_of(activation) if activation else layer.activation_spec(),
    )
    chosen = recipe or default_recipe(arch, layer.checkpoint).name
    model = model_call(problem, chosen, arch, tokens, latency_ns=latency_ns)
    code = machine_code(model.config) if sass else {"note": "not asked for (--no-sass)"}
    if as_json:
        emit_json({"model": layer.name, **model.to_json(), "sass": code})
    else:
        _print_model(layer, model)
        _print_code(code)


def activation_of(name: ActivationName) -> ActivationSpec:
    """Return the activation called `name`, with its model's constants."""
    from megamoe_jit.formats.activation import ActivationSpec

    return ActivationSpec.swigluoai() if name == "swigluoai" else ActivationSpec(kind=name)


def machine_code(config: MoeConfig) -> dict[str, Any]:
    """Return registers, spills and the counts of SASS instructions as JSON values, or a note that says what lacks."""
    from megamoe_jit.jit.build import build
    from megamoe_jit.jit.sass import disassemble_inlined, sass_report

    try:
        built = build(config)
    except (UnsupportedError, MissingKernelError) as error:
        return {"note": f"no cubin: {error}"}
    resources = built.artifact.resources
    code: dict[str, Any] = {
        "registers": resources.registers,
        "spill_bytes": resources.spill_stores + resources.spill_loads,
        "stack_bytes": resources.stack_frame,
    }
    disassembly = disassemble_inlined(built.cubin)
    if disassembly is None:
        return {**code, "note": "no nvdisasm that reads this cubin: pip install 'megamoe-jit[sass]' brings one"}
    return {**code, **sass_report(disassembly).to_json()}


def _layer(
    preset: str | None,
    *,
    hidden: int | None,
    intermediate: int | None,
    num_experts: int | None,
    num_topk: int | None,
) -> Preset:
    if preset is not None:
        model = get_preset(preset)
        return replace(
            model,
            hidden=model.hidden if hidden is None else hidden,
            intermediate=model.intermediate if intermediate is None else intermediate,
            num_experts=model.num_experts if num_experts is None else num_experts,
            num_topk=model.num_topk if num_topk is None else num_topk,
        )
    if hidden is None or intermediate is None or num_experts is None or num_topk is None:
        raise ArgumentError(
            "no --preset was given, and a layer needs --hidden, --intermediate, --experts and --topk. "
            "Give all four, or name a model (`megamoe-jit warmup --list` shows them)."
        )
    return Preset(name="custom", hidden=hidden, intermediate=intermediate, num_experts=num_experts, num_topk=num_topk)


def _print_model(layer: Preset, model: Model) -> None:
    from megamoe_jit.recipes.model import NOTICE, TMEM_COLUMNS

    config, problem, routing = model.config, model.config.problem, model.routing
    print_line(f"{layer.name}, {model.num_tokens} tokens: {config.recipe.name} on {config.arch}", style="bold")
    print_line(f"This is {NOTICE}.")
    print_line(
        f"  hidden {problem.hidden}, intermediate {problem.intermediate}, {problem.num_experts} experts, "
        f"top-{problem.num_topk}, {problem.activation.kind}"
    )
    print_line(f"  {model.reason}")
    for other in model.others:
        print_line(f"    not {other}")
    print_line(f"  {_parameters(model)}")
    print_line(
        f"  uniform routing: {routing.touched_experts:.1f} experts touched, {routing.token_tiles:.1f} token tiles, "
        f"{routing.columns:.0f} columns for {routing.rows} rows"
    )
    print_line("")
    print_table(
        "Expected MB of a call (*: must cross memory's pins)",
        ("what", "read", "written", "through SMs"),
        [
            (item.name + (" *" if item.must_move else ""), *_megabytes(item.read_bytes, item.written_bytes,
             item.requested_bytes))
            for item in model.traffic
        ],
    )  # fmt: skip
    for estimate in model.estimates:
        _print_estimate(model, estimate)
    if model.tmem:
        allocated = sum(part.size for part in model.tmem)
        parts = ", ".join(f"{part.name} {part.size}" for part in model.tmem)
        print_line(f"Tensor memory: {allocated} of {TMEM_COLUMNS} columns allocated ({parts})")
    parts = ", ".join(f"{part.name} {part.size}" for part in model.smem)
    print_line(f"Shared memory: {config.smem_bytes} of {config.arch.max_smem_bytes} B ({parts})")


def _parameters(model: Model) -> str:
    from megamoe_jit.recipes.model import group_sms
    from megamoe_jit.recipes.sm100 import Sm100Config

    config = model.config
    text = f"block_n {config.block_n}, CTAs a tile {group_sms(config)}, {config.num_stages} stages"
    ring = f", ring of {config.ring_tiles} token tiles" if isinstance(config, Sm100Config) else ""
    return f"{text} of {model.stage_bytes} B{ring}"


def _print_estimate(model: Model, estimate: Estimate) -> None:
    gpu = estimate.gpu
    print_table(
        f"{gpu.name}: MMA cycles of a CTA at the dense {model.rate.value.upper()} peak",
        ("layer", "tiles", "waves", "mean tile", "full tile", "operands at 128 B a cycle"),
        [
            (part.name, part.tiles, part.waves, part.tile_cycles, part.full_tile_cycles, part.operand_cycles)
            for part in estimate.layers
        ],
    )
    print_line(
        f"  floor {estimate.floor_us:.1f} us, bound by {estimate.bound_by}: memory {estimate.memory_us:.1f} us, MMA "
        f"{estimate.mma_us:.1f} us ({estimate.num_groups} groups, {estimate.clock_hz / 1e9:.2f} GHz implied); "
        f"{estimate.streamed_us:.1f} us if no cache kept what the launch itself writes"
    )
    print_line(
        f"  weights in flight {estimate.in_flight_bytes / 1e6:.1f} MB in all stages; bandwidth x "
        f"{model.latency_ns:g} ns (assumed) = {estimate.needed_bytes / 1e6:.1f} MB"
    )
    if estimate.operand_us is not None:
        print_line(
            f"  operands from shared memory {estimate.operand_us:.1f} us, if the tensor core reads 128 B a cycle "
            "(assumed, not in the floor)"
        )
    print_line(f"  peaks: {gpu.source}")
    print_line("")


def _print_code(code: dict[str, Any]) -> None:
    if "registers" in code:
        spills = f"{code['spill_bytes']} B spilled" if code["spill_bytes"] else "no spills"
        print_line(f"Compiled: {code['registers']} registers, {spills}, stack {code['stack_bytes']} B")
    if "roles" in code:
        print_line(f"  {code['instructions']} SASS instructions, as they stand: {_counts(code['roles'])}")
        print_line(f"  of tensor cores, tensor memory and TMA: {_counts(code['engines'])}")
    if "note" in code:
        print_line(f"SASS: {code['note']}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _megabytes(*sizes: float) -> tuple[str, ...]:
    return tuple(f"{size / 1e6:.3f}" if size else "-" for size in sizes)
