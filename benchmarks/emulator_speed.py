"""How long does the emulator take? Straight code, compiling, and calls of the Blackwell layer as they grow.

    python -m benchmarks.emulator_speed [--only speed growth plot] [--no-record]

Writes two records, and a plot of the second one. Time is the process's CPU time, on one thread: other work on the
machine lengthens the wall time, which is recorded too.
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, Cell, Column, Result, load, save
from megamoe_jit import MegaMoE, MoeWeights, Problem, env
from megamoe_jit.emulator import Emulator
from megamoe_jit.emulator.native.helpers import Helpers
from megamoe_jit.emulator.native.objects import ObjectCache
from megamoe_jit.emulator.parser import parse
from megamoe_jit.jit.build import build
from megamoe_jit.recipes import plan_kernels
from megamoe_jit.runtime.emulated import EmulatedWork, emulated_backend

RECIPE, ARCH = "nvfp4_nvfp4", "sm_100f"
PLOT = RESULTS / "emulator_growth.png"
SPEED_COLUMNS = (
    Column(key="what", heading="what"),
    Column(key="instructions", heading="instructions of the text", format=",.0f"),
    Column(key="executed", heading="warp instructions executed", format=",.0f"),
    Column(key="cpu_s", heading="CPU, s", format=".3f"),
    Column(key="wall_s", heading="wall, s", format=".3f"),
    Column(key="rate", heading="million warp instructions a CPU second", format=".0f"),
)
SPEED_NOTES = (
    "One warp of 32 lanes; each loop is one straight piece, and ends with three instructions that count and jump. "
    "Compiling is that of one process: reading the text, and making it executable without and with the object cache. "
    "A loop is the fastest of {repeats} launches by CPU time, compiling of {compilations}; the helpers are loaded once."
)
GROWTH_COLUMNS = (
    Column(key="axis", heading="what grows"),
    Column(key="num_tokens", heading="tokens"),
    Column(key="hidden", heading="hidden"),
    Column(key="num_experts", heading="experts"),
    Column(key="warp_instructions", heading="warp instructions", format=",.0f"),
    Column(key="mmas", heading="MMAs", format=",.0f"),
    Column(key="error_cpu_s", heading='CPU with checks="error", s', format=".2f"),
    Column(key="error_wall_s", heading='wall with "error", s', format=".2f"),
    Column(key="off_cpu_s", heading='CPU with checks="off", s', format=".2f"),
    Column(key="off_wall_s", heading='wall with "off", s', format=".2f"),
)
GROWTH_NOTES = (
    'Calls of `MegaMoE(..., recipe="nvfp4_nvfp4", arch="sm_100f", backend="emulator")`, staging and fused kernel, '
    "{calls} after the first one, which compiles: the fastest by CPU time. {base.intermediate} intermediate, "
    "{base.num_topk} experts a token, the default device of {num_sms} SMs. Instructions and MMAs are those with checks."
)
_TURNS = 200_000
_REPEATS = 5
_COMPILATIONS = 2
_WARM_CALLS = 2
_COMPILED_LAYER = Problem(hidden=1024, intermediate=256, num_experts=8, num_topk=2, max_tokens_per_rank=16)


# --- straight code ---


def arithmetic() -> list[str]:
    """Return 134 instructions of integer and float arithmetic on 8 registers each, every one used again."""
    integers = (
        "mad.lo.u32 %r{a}, %r{b}, %r{c}, %r{a};",
        "xor.b32 %r{a}, %r{a}, %r{b};",
        "shf.l.wrap.b32 %r{a}, %r{a}, %r{c}, 7;",
        "add.u32 %r{a}, %r{b}, %r{c};",
        "max.s32 %r{a}, %r{a}, %r{b};",
    )
    floats = (
        "fma.rn.f32 %f{a}, %f{b}, %f{c}, %f{a};",
        "add.rn.f32 %f{a}, %f{a}, %f{b};",
        "mul.rn.f32 %f{a}, %f{a}, %f{c};",
        "min.f32 %f{a}, %f{a}, %f{b};",
    )
    lines = []
    for step in range(67):
        names = {"a": step % 8, "b": (step + 3) % 8, "c": (step + 5) % 8}
        lines += [integers[step % 5].format(**names), floats[step % 4].format(**names)]
    return lines


def swiglu() -> list[str]:
    """Return what an epilogue does to 8 gates and 8 ups of a thread: SwiGLU, then FP4 codes with E4M3 scale factors.

    Four columns of two values. A group's largest magnitude is taken over 8 lanes, as in the fused Blackwell kernel.
    """
    lines = []
    for column in range(4):
        values = [f"%v{p}" for p in range(2)]
        for p, value in enumerate(values):
            gate, up = f"%f{2 * column + p}", f"%f{(2 * column + p + 3) % 8}"
            lines += [
                f"fma.rn.f32 %g, {gate}, %alpha, %bias;",
                f"fma.rn.f32 %u, {up}, %alpha, %bias;",
                "mul.rn.f32 %t, %g, 0fBFB8AA3B;",  # -log2(e)
                "ex2.approx.ftz.f32 %t, %t;",
                "add.rn.f32 %t, %t, 0f3F800000;",
                "rcp.approx.ftz.f32 %t, %t;",
                "mul.rn.f32 %g, %g, %t;",
                f"mul.rn.f32 {value}, %g, %u;",
            ]
        lines += ["abs.f32 %t, %v0;", "abs.f32 %u, %v1;", "max.NaN.f32 %t, %t, %u;"]
        for step in (4, 8, 16):
            lines += [f"shfl.sync.bfly.b32 %u, %t, {step}, 31, -1;", "max.NaN.f32 %t, %t, %u;"]
        lines += [
            "mul.rn.f32 %t, %t, 0f3E2AAAAB;",  # 1 / 6
            "max.NaN.f32 %t, %t, 0f3B000000;",  # the least scale factor above zero
            "cvt.rn.satfinite.e4m3x2.f32 %scale, 0f00000000, %t;",
            "cvt.rn.f16x2.e4m3x2 %pair, %scale;",
            "mov.b32 {%low, %high}, %pair;",
            "cvt.f32.f16 %t, %low;",
            "rcp.approx.ftz.f32 %t, %t;",
            *(f"mul.rn.f32 {value}, {value}, %t;" for value in values),
            "cvt.rn.satfinite.e2m1x2.f32 %codes, %v1, %v0;",
            "mov.b32 %pair, {%codes, 0, 0, 0};",
            f"xor.b32 %r{column}, %r{column}, %pair;",
        ]
    return lines


def looped(lines: Sequence[str]) -> str:
    """Return a kernel `loop(turns, out)` around `lines`; each thread stores its 16 registers, [thread, 16] u32."""
    starts = [f"add.u32 %r{index}, %tid, {index * 77 + 1}; cvt.rn.f32.u32 %f{index}, %r{index};" for index in range(8)]
    scaled = [f"mul.rn.f32 %f{index}, %f{index}, 0f3C23D70A;" for index in range(8)]
    stores = [
        f"st.global.u32 [%out + {4 * index}], %r{index}; st.global.f32 [%out + {32 + 4 * index}], %f{index};"
        for index in range(8)
    ]
    body = "\n".join([*starts, *scaled, "again:", *lines])
    end = "\n".join(stores)
    return f"""
.version 8.8
.target sm_100a
.address_size 64
.visible .entry loop(.param .u32 turns, .param .u64 out) {{
.reg .b32 %r<8>, %tid, %left, %pair;
.reg .f32 %f<8>, %v<2>, %g, %u, %t, %alpha, %bias;
.reg .b16 %scale, %low, %high;
.reg .b8 %codes;
.reg .b64 %out;
.reg .pred %more;
ld.param.u32 %left, [turns];
ld.param.u64 %out, [out];
mov.u32 %tid, %tid.x;
mad.wide.u32 %out, %tid, 64, %out;
mov.f32 %alpha, 0f3F400000;
mov.f32 %bias, 0f3D800000;
{body}
sub.u32 %left, %left, 1;
setp.ne.u32 %more, %left, 0;
@%more bra again;
{end}
ret;
}}
"""


CHUNKS = {
    "integer and float arithmetic": arithmetic,
    "SwiGLU, FP4 codes and scale factors": swiglu,
}


def run_chunk(lines: Sequence[str], turns: int, engine: str = "native") -> tuple[torch.Tensor, int]:
    """Run a loop around `lines` with one warp; returns what it stored, [32, 16] int32, and warp instructions."""
    module = Emulator(checks="off", engine=engine).load(looped(lines))
    out = torch.zeros(32, 16, dtype=torch.int32)
    module.launch("loop", grid=1, block=32, args=[turns, out])
    return out, module.report.warp_instructions


# --- time ---


@dataclass(frozen=True, order=True, slots=True)
class Took:
    """What something took: CPU time of the process, then wall time."""

    cpu_s: float
    wall_s: float

    def cells(self, prefix: str = "") -> dict[str, Cell]:
        """Return both as cells."""
        return {f"{prefix}cpu_s": self.cpu_s, f"{prefix}wall_s": self.wall_s}


def timed(call: Callable[[], object]) -> Took:
    """Run `call` once."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Took(time.process_time() - cpu, time.perf_counter() - wall)


def measure_chunk(name: str, turns: int, repeats: int) -> dict[str, Cell]:
    """Return the row of one of CHUNKS: its fastest launch of `turns`, after a short one."""
    lines = CHUNKS[name]()
    module = Emulator(checks="off").load(looped(lines))
    out = torch.zeros(32, 16, dtype=torch.int32)
    module.launch("loop", grid=1, block=32, args=[1, out])
    before = module.report.warp_instructions
    took = min(timed(lambda: module.launch("loop", grid=1, block=32, args=[turns, out])) for _ in range(repeats))
    executed = (module.report.warp_instructions - before) // repeats
    return {
        "what": f"a loop of {len(lines)} + 3: {name}",
        "instructions": len(lines) + 3,
        "executed": executed,
        **took.cells(),
        "rate": executed / took.cpu_s / 1e6,
    }


def measure_compiling(repeats: int) -> Iterator[dict[str, Cell]]:
    """Yield what the kernels of a layer, and the helpers that all kernels share, take to become executable."""
    empty: dict[str, Cell] = {"instructions": None, "executed": None, "rate": None}
    with tempfile.TemporaryDirectory() as folder:
        for what in ("empty", "full"):
            took = timed(partial(_load_helpers, Path(folder)))
            yield {**empty, "what": f"the engine's helpers, object cache {what}", **took.cells()}
    for description in plan_kernels(_COMPILED_LAYER, RECIPE, ARCH):
        built = build(description)
        name, ptx = built.kernel_name, built.artifact.ptx
        variant = f" {tile} columns wide" if (tile := description.constants().get("block_n")) else ""
        instructions = len(parse(ptx).functions[name].instructions)
        runs = [_compile(name, ptx) for _ in range(repeats)]
        for what in runs[0]:
            took = min(run[what] for run in runs)
            yield {**empty, "what": f"`{name}`{variant}, {what}", "instructions": instructions, **took.cells()}


def _compile(name: str, ptx: str) -> dict[str, Took]:
    """Read and compile a kernel; loading the helpers is in neither, as this process has them."""
    took = {"read": timed(lambda: parse(ptx))}
    with tempfile.TemporaryDirectory() as folder:
        for state in ("empty", "full"):
            module = Emulator(cache_dir=folder).load(ptx)
            took[f"compiled, object cache {state}"] = timed(partial(module.prepare, name))
    return took


def _load_helpers(folder: Path) -> Helpers:
    """Load the helpers as a new process does."""
    from megamoe_jit.emulator.native import helpers

    helpers._loaded.clear()
    return helpers.load_helpers(ObjectCache(folder))


# --- growth ---


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A call of a layer."""

    num_tokens: int = 16
    hidden: int = 256
    intermediate: int = 256
    num_experts: int = 8
    num_topk: int = 2


BASE = Layer()
SIZES = {
    "num_tokens": (4, 8, 16, 32, 64, 128),
    "hidden": (128, 256, 512, 1024),
    "num_experts": (2, 4, 8, 16),
}
WORDS = {"num_tokens": "tokens", "hidden": "hidden", "num_experts": "experts"}


@contextmanager
def checks(mode: str) -> Iterator[None]:
    """Let the emulated device check as `mode` says."""
    name = env.EMULATOR_CHECKS.name
    before = os.environ.get(name)
    os.environ[name] = mode
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def measure_call(layer: Layer, mode: str, calls: int) -> tuple[Took, Took, EmulatedWork]:
    """Return what the first call of `layer` took, the fastest of `calls` more, and what the last of them did."""
    generator = torch.Generator().manual_seed(0)
    weights = MoeWeights.random(layer.num_experts, layer.hidden, layer.intermediate, seed=0)
    x = torch.randn(layer.num_tokens, layer.hidden, generator=generator).bfloat16()
    scores = torch.randn(layer.num_tokens, layer.num_experts, generator=generator)
    topk_weights, topk_idx = scores.softmax(-1).topk(layer.num_topk)
    with checks(mode):
        moe = MegaMoE(
            weights,
            num_topk=layer.num_topk,
            max_tokens_per_rank=layer.num_tokens,
            recipe=RECIPE,
            arch=ARCH,
            backend="emulator",
        )
        backend = emulated_backend()
        first = timed(lambda: moe(x, topk_idx, topk_weights))
        tooks = []
        for _ in range(calls):
            before = backend.work()
            tooks.append(timed(lambda: moe(x, topk_idx, topk_weights)))
            work = backend.work().since(before)
    return first, min(tooks), work


def measure_growth(layer: Layer, calls: int) -> dict[str, Cell]:
    """Return what calls of `layer` take with and without checks, and what one executes."""
    first, checked, work = measure_call(layer, "error", calls)
    _, unchecked, _ = measure_call(layer, "off", calls)
    return {
        "num_tokens": layer.num_tokens,
        "hidden": layer.hidden,
        "intermediate": layer.intermediate,
        "num_experts": layer.num_experts,
        "num_topk": layer.num_topk,
        "warp_instructions": work.warp_instructions,
        "mmas": work.mmas,
        **checked.cells("error_"),
        **unchecked.cells("off_"),
        **first.cells("first_"),
    }


def draw(result: Result, path: Path = PLOT) -> Path:
    """Draw the growth: one panel for each size, CPU time over it, both axes logarithmic. Needs matplotlib."""
    # The extra `bench` has it; nothing else of the project needs it, nor does type checking.
    plt: Any = importlib.import_module("matplotlib.pyplot")
    plt.switch_backend("Agg")
    figure, panels = plt.subplots(1, len(SIZES), figsize=(10.5, 3.6), sharey=True, layout="constrained")
    units = {"num_tokens": "tokens of the call", "hidden": "hidden, elements", "num_experts": "experts"}
    others = {
        axis: ", ".join(f"{getattr(BASE, other)} {WORDS[other]}" for other in SIZES if other != axis) for axis in SIZES
    }
    for panel, axis in zip(panels, SIZES, strict=True):
        rows = sorted((row for row in result.rows if row["axis"] == WORDS[axis]), key=lambda row: int(row[axis] or 0))
        sizes = [int(row[axis] or 0) for row in rows]
        lines = {mode: [float(row[f"{mode}_cpu_s"] or 0) for row in rows] for mode in ("error", "off")}
        for (mode, seconds), colour, marker in zip(lines.items(), ("#c2410c", "#1d4ed8"), "os", strict=False):
            panel.plot(sizes, seconds, color=colour, marker=marker, markersize=4.5, label=f'checks="{mode}"')
        steep = [lines["error"][-1] * size / sizes[-1] for size in sizes]
        panel.plot(sizes, steep, color="#9ca3af", linewidth=1, linestyle=":", label="in proportion")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xlabel(units[axis])
        panel.set_title(others[axis], fontsize=9, color="#374151")
        panel.grid(visible=True, which="both", color="#e5e7eb", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    low = min(float(row["off_cpu_s"] or 1) for row in result.rows)
    panels[0].set_ylim(bottom=low / 2)
    panels[0].set_ylabel("CPU time of a call, s")
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path


def main() -> None:
    """Measure, print and store both records and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["speed", "growth", "plot"], choices=("speed", "growth", "plot"))
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    if "speed" in options.only:
        rows = []
        for row in _speed_rows():
            rows.append(row)
            print(row, flush=True)
        notes = SPEED_NOTES.format(repeats=_REPEATS, compilations=_COMPILATIONS)
        title = "What the emulator takes to run straight code, and to compile"
        result = Result(name="emulator_speed", title=title, columns=SPEED_COLUMNS, rows=tuple(rows), notes=notes)
        if not options.no_record:
            print(save(result))
    if "growth" in options.only:
        rows = []
        known: dict[Layer, dict[str, Cell]] = {}
        for axis, sizes in SIZES.items():
            for layer in (replace(BASE, **{axis: size}) for size in sizes):
                if layer not in known:  # the same one is a row of every size
                    known[layer] = measure_growth(layer, _WARM_CALLS)
                rows.append({"axis": WORDS[axis], **known[layer]})
                print(rows[-1], flush=True)
        notes = GROWTH_NOTES.format(base=BASE, calls=_WARM_CALLS, num_sms=emulated_backend().num_sms)
        title = "What a call of the Blackwell layer takes in the emulator"
        result = Result(name="emulator_growth", title=title, columns=GROWTH_COLUMNS, rows=tuple(rows), notes=notes)
        if not options.no_record:
            print(save(result))
    print(f"{time.process_time() - begun:.0f} s of CPU time")
    if "plot" in options.only and not options.no_record:
        try:
            print(draw(load(RESULTS / "emulator_growth.json")))
        except ImportError as error:
            print(f"no plot: {error.name} is not installed. Install pip install 'megamoe-jit[bench]'.")


def _speed_rows() -> Iterator[dict[str, Cell]]:
    for name in CHUNKS:
        yield measure_chunk(name, _TURNS, _REPEATS)
    yield from measure_compiling(_COMPILATIONS)


if __name__ == "__main__":
    main()
