"""`megamoe-jit demo`: render, compile and cache the kernels of one layer, run it, and say how far off the result is."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from megamoe_jit.cli.output import JsonOption, console, emit_json, format_bytes, print_line, print_table
from megamoe_jit.cli.warmup import OUTCOME_COLUMNS, Outcome, build_one, compiled_s
from megamoe_jit.errors import CompileError

if TYPE_CHECKING:
    from torch import Tensor

    from megamoe_jit.formats.moe_weights import MoeWeights
    from megamoe_jit.ops import MegaMoE
    from megamoe_jit.recipes import Problem, Recipe

_NUM_TIMED_CALLS = 5
_WHERE = {
    "cuda": "the fused kernel",
    "emulator": "the fused kernel's PTX in the emulator",
    "reference": "the reference",
}
BackendOption = Annotated[
    str | None,
    typer.Option(
        help="cuda, emulator or reference. Default: this machine's GPU for its own target, else the emulator."
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoReport:
    """What one run of the demo found.

    `cosine` is to the layer without any rounding of activations, `rel_l2` the relative L2 error to the recipe's
    float64 oracle. `compile_s` is NVRTC's time for the kernels that were not in the cache, `cache` is "hit" when all of
    them were; `call_ms` is the median of a few calls, the host's part included, in the emulator the time of one call.
    `emulated` says what that call executed, None elsewhere.
    """

    backend: str
    device: str
    arch: str
    recipe: str
    shape: dict[str, int]
    cosine: float
    rel_l2: float
    compile_s: float
    cache: str
    kernels: list[Outcome]
    tensor_maps: list[str]
    call_ms: float
    wall_s: float
    emulated: EmulatedCall | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EmulatedCall:
    """What one call executed in the emulator, on a device of `num_sms` SMs."""

    num_sms: int
    launches: int
    warp_instructions: int
    mmas: int
    tma_bytes: int
    barrier_waits: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer with its input: BF16 tokens `x` [T, H], routing [T, K] and the experts' weights."""

    weights: MoeWeights
    x: Tensor
    topk_idx: Tensor
    topk_weights: Tensor


def demo(
    *,
    hidden: Annotated[int, typer.Option(help="Model width.")] = 512,
    intermediate: Annotated[int, typer.Option(help="Expert width after gating.")] = 256,
    experts: Annotated[int, typer.Option(help="Number of experts.")] = 8,
    topk: Annotated[int, typer.Option(help="Experts for each token.")] = 2,
    tokens: Annotated[int, typer.Option(help="Tokens of the call.")] = 32,
    recipe: Annotated[str | None, typer.Option(help="A recipe. Default: the target's for NVFP4 weights.")] = None,
    arch: Annotated[
        str | None, typer.Option(help="Target to compile for. Default: this machine's GPU, else sm_100f.")
    ] = None,
    backend: BackendOption = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, tokens and routing.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compile the kernels of a random layer, run it on this machine, and compare with the float64 reference.

    On a GPU of the target the kernels run there, elsewhere in the emulator, which executes their PTX on the CPU: by
    default those for the GPU at hand, and without one the Blackwell kernel (nvfp4_nvfp4, sm_100f).
    """
    start = time.perf_counter()
    from megamoe_jit.cli.target import EMULATED_ARCH, target_arch
    from megamoe_jit.recipes import Problem, default_recipe, get_recipe

    target = target_arch(arch, without_gpu=EMULATED_ARCH)
    chosen = get_recipe(recipe) if recipe else default_recipe(target)
    problem = Problem(
        hidden=hidden, intermediate=intermediate, num_experts=experts, num_topk=topk, max_tokens_per_rank=max(tokens, 1)
    )
    report = run_demo(problem, chosen, target, backend=backend_here(target, backend), num_tokens=tokens, seed=seed)
    report = replace(report, wall_s=time.perf_counter() - start)
    if as_json:
        emit_json(asdict(report))
    else:
        _print_report(report)


def backend_here(target: str, given: str | None) -> str:
    """Return the backend that runs kernels of `target` on this machine; raises as resolve_backend does."""
    from megamoe_jit.cli.target import device_arch
    from megamoe_jit.runtime.backend import resolve_backend

    on_gpu = given in (None, "cuda") and target == device_arch()
    return resolve_backend(given, "cuda" if on_gpu else "cpu")


def run_demo(problem: Problem, recipe: Recipe, arch: str, *, backend: str, num_tokens: int, seed: int) -> DemoReport:
    """Build the kernels of `problem`, run a random layer of it on `backend`, and compare it with the oracle."""
    from megamoe_jit.ops import MegaMoE
    from megamoe_jit.recipes import plan_kernels

    start = time.perf_counter()
    outcomes = [build_one(description) for description in plan_kernels(problem, recipe, arch)]
    for outcome in outcomes:
        if outcome.error:
            raise CompileError(outcome.error)
    layer = random_layer(
        problem, recipe, num_tokens=num_tokens, seed=seed, device="cuda" if backend == "cuda" else "cpu"
    )
    moe = MegaMoE(
        layer.weights,
        recipe=recipe.name,
        num_topk=problem.num_topk,
        max_tokens_per_rank=problem.max_tokens_per_rank,
        backend=backend,
        arch=arch,
    )
    first = time.perf_counter()
    y, emulated = call(moe, layer)
    call_s = time.perf_counter() - first
    if backend != "emulator":
        call_s = statistics.median(_call_s(moe, layer) for _ in range(_NUM_TIMED_CALLS))
    cosine, rel_l2 = judge(y, layer, recipe.name)
    return DemoReport(
        backend=backend,
        device=_device_name(backend),
        arch=arch,
        recipe=recipe.name,
        shape={
            "hidden": problem.hidden,
            "intermediate": problem.intermediate,
            "num_experts": problem.num_experts,
            "num_topk": problem.num_topk,
            "num_tokens": num_tokens,
        },
        cosine=cosine,
        rel_l2=rel_l2,
        compile_s=compiled_s(outcomes),
        cache="hit" if all(outcome.cache == "hit" for outcome in outcomes) else "miss",
        kernels=outcomes,
        tensor_maps=describe_tensor_maps(moe),
        call_ms=call_s * 1e3,
        wall_s=time.perf_counter() - start,
        emulated=emulated,
    )


def call(moe: MegaMoE, layer: Layer) -> tuple[Tensor, EmulatedCall | None]:
    """Run a layer once; the second value says what an emulator executed."""
    if moe.backend != "emulator":
        return moe(layer.x, layer.topk_idx, layer.topk_weights), None
    from megamoe_jit.runtime.emulated import emulated_backend

    device = emulated_backend()
    before = device.work()
    y = moe(layer.x, layer.topk_idx, layer.topk_weights)
    work = device.work().since(before)
    return y, EmulatedCall(num_sms=device.num_sms, **asdict(work))


def random_layer(problem: Problem, recipe: Recipe, *, num_tokens: int, seed: int, device: str) -> Layer:
    """Return random weights in the recipe's checkpoint format, normal tokens, distinct random experts."""
    import torch

    from megamoe_jit.formats.moe_weights import MoeWeights

    generator = torch.Generator().manual_seed(seed)
    weights = MoeWeights.random(
        problem.num_experts,
        problem.hidden,
        problem.intermediate,
        seed=seed,
        device=device,
        checkpoint=recipe.checkpoint,
    )
    x = torch.randn(num_tokens, problem.hidden, generator=generator).to(torch.bfloat16)
    logits = torch.randn(num_tokens, problem.num_experts, generator=generator)
    topk_weights, topk_idx = logits.softmax(-1).topk(problem.num_topk)
    return Layer(weights=weights, x=x.to(device), topk_idx=topk_idx.to(device), topk_weights=topk_weights.to(device))


def judge(y: Tensor, layer: Layer, recipe: str) -> tuple[float, float]:
    """Return the cosine of `y` to the layer without roundings, and its relative L2 error to the recipe's oracle."""
    from megamoe_jit.reference.compare import cosine, rel_l2
    from megamoe_jit.reference.moe import moe_reference

    arguments = (layer.x, layer.topk_idx, layer.topk_weights, layer.weights)
    truth, oracle = moe_reference(*arguments, rounding="exact").y, moe_reference(*arguments, rounding=recipe).y
    return cosine(y, truth), rel_l2(y, oracle)


def describe_tensor_maps(moe: MegaMoE) -> list[str]:
    """Return one line for each TMA descriptor that the layer's kernels are given; none on the reference."""
    from megamoe_jit.ops.plan import moe_plan

    if moe.backend == "reference":
        return []
    plan = moe_plan(moe.sym_buffer, moe.activation, fast_math=moe.fast_math, topk_weight_stage=moe.topk_weight_stage)
    plan.bind(moe.l1, moe.l2)
    return [f"{name}: {tensor_map.describe()}" for name, tensor_map in plan.tensor_maps()]


def _call_s(moe: MegaMoE, layer: Layer) -> float:
    import torch

    start = time.perf_counter()
    moe(layer.x, layer.topk_idx, layer.topk_weights)
    if layer.x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _device_name(backend: str) -> str:
    import torch

    return torch.cuda.get_device_name() if backend == "cuda" else platform.processor() or platform.machine()


def _print_report(report: DemoReport) -> None:
    print_table("Kernels", OUTCOME_COLUMNS, [outcome.row for outcome in report.kernels])
    if report.tensor_maps:
        console.print("TMA descriptors", style="bold")
    for line in report.tensor_maps:
        print_line(f"  {line}")
    shape = ", ".join(f"{name} {value}" for name, value in report.shape.items())
    oracle = " (which is the reference itself)" if report.backend == "reference" else ""
    print_line("")
    print_line(f"{report.recipe} for {report.arch}, run by {_WHERE[report.backend]} on {report.device}")
    print_line(f"  {shape}")
    if report.emulated is not None:
        _print_emulated(report.emulated)
    print_line(f"  cosine to the unquantised truth   {report.cosine:.6f}")
    print_line(f"  relative L2 error to the oracle   {report.rel_l2:.2e}{oracle}")
    print_line(
        f"  compiling {report.compile_s:.2f} s (cache {report.cache}), one call {report.call_ms:.3f} ms, "
        f"in all {report.wall_s:.2f} s"
    )


def _print_emulated(call: EmulatedCall) -> None:
    launches = f"{call.launches} launch{'' if call.launches == 1 else 'es'}"
    print_line(
        f"  {launches} on {call.num_sms} emulated SMs: {call.warp_instructions:,} warp instructions, "
        f"{call.mmas:,} MMAs, {format_bytes(call.tma_bytes)} by TMA, {call.barrier_waits:,} barrier waits"
    )
    print_line(
        f"  races, missing fences, misused barriers: {len(call.errors) or 'none'}, warnings: {len(call.warnings)}"
    )
    for finding in (*call.errors, *call.warnings):
        print_line(f"    {finding.splitlines()[0]}")
