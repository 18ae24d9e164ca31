"""Do all Blackwell kernels compile without spills? Every configuration of named models and of variants, four targets.

    python -m benchmarks.sm100_compiles [--archs sm_100f ...] [--models minilm variants gemm ...] [--again]

Needs no GPU. Each compile is kept in results/sm100_compiles.raw.json, and not repeated while its source is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.record import RESULTS, Cell, Column, Result, save
from megamoe_jit.arch import Arch, get_arch
from megamoe_jit.cli.presets import list_presets
from megamoe_jit.formats.activation import ActivationSpec
from megamoe_jit.jit.compile import CompileOptions, compile_source
from megamoe_jit.jit.render import render
from megamoe_jit.jit.source import KernelDescription
from megamoe_jit.recipes import Problem, plan_kernels
from megamoe_jit.recipes.sm100_gemm import MMA_KINDS, gemm_config

ARCHS = ("sm_100f", "sm_103f", "sm_100a", "sm_103a")
RECIPES = ("nvfp4_nvfp4", "mxfp8_mxfp4", "mxfp8_nvfp4", "mxfp4_mxfp4")
MAX_COMPILE_S = 5.0
RAW = "sm100_compiles.raw.json"
_MAX_TOKENS = 8192
_SECONDS_BETWEEN_SAVES = 20
_SMALL = Problem(hidden=1024, intermediate=1024, num_experts=8, num_topk=2, max_tokens_per_rank=_MAX_TOKENS)
_VARIANTS = {
    "clamp": replace(_SMALL, activation=ActivationSpec(clamp=7.0)),
    "swigluoai": replace(_SMALL, activation=ActivationSpec.swigluoai()),
    "gelu": replace(_SMALL, activation=ActivationSpec(kind="gelu", up_bias=1.0)),
    "relu2": replace(_SMALL, activation=ActivationSpec(kind="relu2", clamp=2.0)),
    "accurate": replace(_SMALL, fast_math=False, topk_idx_bytes=4),
    "before_requant": replace(_SMALL, topk_weight_stage="before_requant"),
    "narrow": replace(_SMALL, hidden=224, intermediate=160, num_experts=1, num_topk=1),
    "many": replace(_SMALL, num_experts=384, num_topk=16),
    "largest": replace(_SMALL, hidden=65536, intermediate=65536, num_experts=384, num_topk=16),
}
_MEASURES = (
    Column(key="builds", heading="builds"),
    Column(key="registers", heading="registers, at most"),
    Column(key="spill_bytes", heading="spilled bytes"),
    Column(key="stack_bytes", heading="stack and local bytes"),
    Column(key="compile_s", heading="slowest compile, s", format=".2f"),
    Column(key="cpu_s", heading="of CPU, s", format=".2f"),
    Column(key="cubin_kib", heading="largest cubin, KiB", format=".0f"),
)
COLUMNS = (
    Column(key="kernel", heading="kernel"),
    Column(key="recipe", heading="recipe"),
    Column(key="tile", heading="token tile"),
    Column(key="arch", heading="target"),
    *_MEASURES,
)
SUMMARY_COLUMNS = (COLUMNS[0], COLUMNS[3], *_MEASURES)
NOTES = (
    "Every kernel that calls of 1 to 8192 tokens can need: for each model that the package knows by name with each "
    "recipe, for activations, narrow and largest sizes, 1 and 384 experts, and top-k weights before requantisation; "
    "the grouped GEMM with every tile, alone and in pairs. Compile: NVRTC's time for PTX and cubin, on a machine whose "
    "cores did other things too; of CPU: what the process used meanwhile."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """One kernel to compile: for which model, and which token tile it is (0: none)."""

    model: str
    recipe: str
    tile: int
    description: KernelDescription

    @property
    def key(self) -> str:
        """A name that no other build has."""
        kernel, arch = self.description.kernel_name, self.description.arch.name
        group = dict(self.description.constants()).get("cta_group", 0)
        return f"{self.model} {kernel} {self.recipe} n{self.tile} g{group} {arch}"


def builds(arch: Arch) -> Iterator[Build]:
    """Yield every build for a target."""
    problems = {
        preset.name: Problem(
            hidden=preset.hidden,
            intermediate=preset.intermediate,
            num_experts=preset.num_experts,
            num_topk=preset.num_topk,
            max_tokens_per_rank=_MAX_TOKENS,
            activation=preset.activation_spec(),
        )
        for preset in list_presets()
    }
    for model, problem in {**problems, **{f"variants {name}": p for name, p in _VARIANTS.items()}}.items():
        for recipe in RECIPES:
            for kernel in plan_kernels(problem, recipe, arch):
                tile = int(dict(kernel.constants()).get("block_n", 0))
                yield Build(model=model, recipe=recipe, tile=tile, description=kernel)
    for recipe, kind in MMA_KINDS.items():
        for tile in (16, 32, 64, 128, 192, 256):
            for cta_group in (1, 2) if tile >= 32 else (1,):
                config = gemm_config(
                    arch=arch, kind=kind, num_experts=32, n=4096, k=7168, block_n=tile, cta_group=cta_group
                )
                yield Build(model="gemm", recipe=recipe, tile=tile, description=config)


def compile_one(build: Build, source: str) -> dict[str, Any]:
    """Compile a build and return what became of it; `source` is the digest of what was rendered."""
    description = build.description
    start = time.process_time()
    artifact = compile_source(
        render(description), description.arch, CompileOptions(), kernel_name=description.kernel_name
    )
    cpu_s = time.process_time() - start
    resources = artifact.resources
    return {
        "kernel": description.kernel_name,
        "model": build.model,
        "recipe": build.recipe,
        "tile": build.tile,
        "arch": description.arch.name,
        "source": source,
        "registers": resources.registers,
        "spill_bytes": resources.spill_stores + resources.spill_loads,
        "stack_bytes": resources.stack_frame + resources.local,
        "compile_s": round(artifact.compile_s, 3),
        "cpu_s": round(cpu_s, 3),
        "cubin_kib": round(len(artifact.cubin) / 1024, 1),
    }


def grouped(raw: dict[str, dict[str, Any]], columns: tuple[Column, ...]) -> tuple[dict[str, Cell], ...]:
    """Return one row for each combination of the columns that name kernels: the number of builds, and the worst."""
    names = [column.key for column in columns if column not in _MEASURES]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in raw.values():
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    measures = [column.key for column in _MEASURES[1:]]
    return tuple(
        {**dict(zip(names, group, strict=True)), "builds": len(rows)}
        | {measure: max(row[measure] for row in rows) for measure in measures}
        for group, rows in groups.items()
    )


def store(raw: dict[str, dict[str, Any]]) -> None:
    """Write the raw file, the record and its summary."""
    unfinished = RESULTS / f"{RAW}.tmp"
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in raw.items())
    unfinished.write_text(f"{{\n{lines}\n}}\n")
    unfinished.replace(RESULTS / RAW)
    title = "Blackwell kernels as NVRTC compiles them"
    for name, columns in (("sm100_compiles", COLUMNS), ("sm100_compiles_summary", SUMMARY_COLUMNS)):
        result = Result(name=name, title=title, columns=columns, rows=grouped(raw, columns), notes=NOTES)
        save(result, folder=RESULTS)


def main() -> int:
    """Compile what is not stored yet; the exit status says whether nothing spilled and all was fast enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=list(ARCHS))
    parser.add_argument("--models", nargs="+", help="only models, variants or gemm whose name begins so")
    parser.add_argument("--again", action="store_true", help="compile stored ones too")
    args = parser.parse_args()
    stored = json.loads((RESULTS / RAW).read_text()) if (RESULTS / RAW).exists() else {}
    raw: dict[str, dict[str, Any]] = {}
    saved = time.monotonic()
    for build in (build for arch in args.archs for build in builds(get_arch(arch))):
        if args.models and not build.model.startswith(tuple(args.models)):
            continue
        source = hashlib.sha256(render(build.description).flatten().encode()).hexdigest()[:16]
        old = stored.get(build.key)
        if old is None or old["source"] != source or args.again:
            raw[build.key] = compile_one(build, source)
            print(build.key, raw[build.key], flush=True)
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                store({**stored, **raw})
                saved = time.monotonic()
        else:
            raw[build.key] = old
    everything = len(args.archs) == len(ARCHS) and not args.models
    store(raw if everything else {**stored, **raw})
    wrong = [
        key for key, row in raw.items() if row["spill_bytes"] or row["stack_bytes"] or row["compile_s"] >= MAX_COMPILE_S
    ]
    print(f"{len(raw)} builds, {len(wrong)} wrong: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
