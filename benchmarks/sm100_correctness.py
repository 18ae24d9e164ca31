"""Are the Blackwell kernels right? A covering selection of layers in the emulator, its checker on, against the oracle.

    python -m benchmarks.sm100_correctness [--recipes nvfp4_nvfp4 ...] [--match 256x256] [--again] [--no-record]

For each case: the share of the codes between the GEMMs that are the oracle's, relative L2 error to the oracle and
cosine to the truth, what the checker found, and whether y is the oracle's bit for bit, which it has to be where sums
are exact. Each case is stored when it is done; a later run passes over those that it finds stored with the same kernel.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence

import torch

from benchmarks.record import RESULTS, Cell, Column, Result, load, save
from benchmarks.sm100_cases import ARCH, RECIPES, Case, Layer, cases, make_layer, sums_are_exact
from megamoe_jit import env
from megamoe_jit.formats.adapt import adapt_weights_to_mxfp4
from megamoe_jit.formats.moe_weights import MoeWeights
from megamoe_jit.jit.build import build
from megamoe_jit.ops.moe import MegaMoE
from megamoe_jit.recipes.choose import check_target, config_for_tile, token_tile
from megamoe_jit.reference.compare import cosine, rel_l2
from megamoe_jit.reference.moe import MoeIntermediates, moe_reference
from megamoe_jit.runtime.emulated import emulated_backend
from tests.kernels.oracle_sm100 import intermediate_codes, oracle_codes
from tests.real_data import why_missing

NAME, BOUND, LEAST_IDENTICAL = "sm100_correctness", 2e-3, 0.999
COLUMNS = (
    Column(key="recipe", heading="recipe"),
    Column(key="data", heading="data"),
    Column(key="hidden", heading="H"),
    Column(key="intermediate", heading="I"),
    Column(key="num_experts", heading="experts"),
    Column(key="num_topk", heading="top-k"),
    Column(key="num_tokens", heading="tokens"),
    Column(key="block_n", heading="token tile"),
    Column(key="completion", heading="completion"),
    Column(key="codes_identical", heading="codes identical", format=".4%"),
    Column(key="rel_l2_oracle", heading="relative L2 to the oracle", format=".1e"),
    Column(key="y_identical", heading="y identical"),
    Column(key="findings", heading="findings"),
    Column(key="cosine_truth", heading="cosine to the truth", format=".5f"),
)
# One row a layer and recipe: the number of runs, and the worst of them.
SUMMARY_COLUMNS = (
    *COLUMNS[: [column.key for column in COLUMNS].index("completion")],
    Column(key="runs", heading="runs"),
    *COLUMNS[[column.key for column in COLUMNS].index("codes_identical") :],
)
NOTES = (
    "Executed by the emulator from the PTX for sm_100f, four SMs, checker on; no such GPU was used. Every layer "
    "runs with every recipe, under each policy of when copies and MMAs complete (lazy: as late as possible; eager: "
    "at once; 0.3: with that probability at each step) with a seed of its own; layers of 2880 and more under one "
    "policy each. Not the full product of tokens, sizes, experts, top-k, recipes and policies. Codes: E2M1 or E4M3 "
    "codes that L2 reads, and their block scale factors. y identical: every BF16 value is the oracle's. Findings: "
    "races, missing fences, misused barriers, reads of memory that nobody wrote, warnings included. Truth: the "
    "dequantised checkpoint, nothing else rounded. real: the FFN weights and tokens of a sentence-embedding model "
    "(six experts). exact: every sum is exact in float32, so that no order of adding is an excuse. All of it takes "
    "some 20 minutes of one core."
)


def run_case(case: Case) -> dict[str, Cell]:
    """Run one case and compare it; the row holds what the table does not show as well."""
    start = time.perf_counter()
    os.environ[env.EMULATOR_COMPLETION.name], os.environ[env.EMULATOR_SEED.name] = case.completion, str(case.seed)
    os.environ[env.EMULATOR_CHECKS.name] = "warn"  # note everything that is found, and go on
    layer = make_layer(case)
    moe = MegaMoE(
        layer.weights,
        recipe=case.recipe,
        arch=ARCH,
        backend="emulator",
        num_topk=case.num_topk,
        max_tokens_per_rank=max(1, case.num_tokens),
    )
    device = emulated_backend()
    before = device.work()
    stats = torch.zeros(case.num_experts, dtype=torch.int32)
    y = torch.full_like(layer.x, float("nan"))
    emulating = time.perf_counter()
    moe(layer.x, layer.topk_idx, layer.topk_weights, out=y, recv_stats=stats)
    emulated_s = time.perf_counter() - emulating
    work = device.work().since(before)
    call = (layer.x, layer.topk_idx, layer.topk_weights, layer.weights)
    oracle = moe_reference(*call, rounding=case.recipe, return_intermediates=True)
    truth = moe_reference(*call)
    assert oracle.intermediates is not None
    problem = moe.sym_buffer.problem
    return {
        "key": case.key,
        "kernel": kernel_digest(case),
        **{name: getattr(case, name) for name in case.__dataclass_fields__},
        "block_n": token_tile(problem, moe.recipe, case.num_tokens),
        **_compare_codes(moe, oracle.intermediates, case.num_tokens),
        "rel_l2_oracle": rel_l2(y, oracle.y),
        "y_identical": bool(torch.equal(y.double(), oracle.y)),
        "findings": len(work.errors) + len(work.warnings),
        "first_finding": next((found.splitlines()[0] for found in (*work.errors, *work.warnings)), ""),
        "cosine_truth": cosine(y, truth.y),
        "rel_l2_truth": rel_l2(y, truth.y),
        "stats_right": bool(torch.equal(stats.long(), oracle.expert_counts)),
        "sums_exact": case.data == "exact" and sums_are_exact(oracle.intermediates, _multiplied(case, layer)),
        "launches": work.launches,
        "warp_instructions": work.warp_instructions,
        "mmas": work.mmas,
        "tma_bytes": work.tma_bytes,
        "emulated_s": emulated_s,
        "wall_s": time.perf_counter() - start,
    }


def _multiplied(case: Case, layer: Layer) -> MoeWeights:
    """Return the weights that the tensor core reads."""
    return adapt_weights_to_mxfp4(layer.weights) if case.recipe == "mxfp8_nvfp4" else layer.weights


def _compare_codes(moe: MegaMoE, inner: MoeIntermediates, num_tokens: int) -> dict[str, Cell]:
    if len(inner.token_idx) == 0:
        return {"codes_identical": None, "sf_identical": None}
    shares = []
    for mine, wanted in zip(intermediate_codes(moe, inner, num_tokens), oracle_codes(inner), strict=True):
        shares.append((int((mine == wanted).sum()), mine.numel()))
    same, total = (sum(counts) for counts in zip(*shares, strict=True))
    return {"codes_identical": same / total, "sf_identical": shares[1][0] / shares[1][1]}


def kernel_digest(case: Case) -> str:
    """Return what names the fused kernel of a case: its cache key."""
    problem = case.problem()
    recipe, arch = check_target(case.recipe, ARCH)
    return build(config_for_tile(problem, recipe, arch, token_tile(problem, recipe, case.num_tokens))).key.entry_name


def summarise(rows: Sequence[Mapping[str, Cell]]) -> tuple[dict[str, Cell], ...]:
    """Return one row for each layer and recipe: the number of its runs, and the worst that they gave."""
    names = [column.key for column in SUMMARY_COLUMNS[: [c.key for c in SUMMARY_COLUMNS].index("runs")]]
    groups: dict[tuple[Cell, ...], list[Mapping[str, Cell]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)

    def numbers(key: str, runs: list[Mapping[str, Cell]]) -> list[float]:
        return [float(run[key]) for run in runs if run[key] is not None]  # type: ignore[arg-type]

    return tuple(
        {
            **dict(zip(names, group, strict=True)),
            "runs": len(runs),
            "codes_identical": min(numbers("codes_identical", runs), default=None),
            "rel_l2_oracle": max(numbers("rel_l2_oracle", runs)),
            "y_identical": all(run["y_identical"] for run in runs),
            "findings": int(sum(numbers("findings", runs))),
            "cosine_truth": min(numbers("cosine_truth", runs)),
        }
        for group, runs in groups.items()
    )


def store(rows: Sequence[Mapping[str, Cell]]) -> None:
    """Write the record of all cases and its summary."""
    title = "Blackwell kernels in the emulator against the oracle"
    for name, columns, shown in (
        (NAME, COLUMNS, tuple(rows)),
        (f"{NAME}_summary", SUMMARY_COLUMNS, summarise(rows)),
    ):
        save(Result(name=name, title=title, columns=columns, rows=shown, notes=NOTES), folder=RESULTS)


def is_right(row: Mapping[str, Cell]) -> bool:
    """Return whether a case is inside all bounds."""
    codes = row["codes_identical"]
    return (
        float(row["rel_l2_oracle"] or 0) < BOUND
        and (codes is None or float(codes) >= LEAST_IDENTICAL)
        and row["findings"] == 0
        and bool(row["stats_right"])
        and row["launches"] == (2 if row["num_tokens"] else 0)
        and (row["data"] != "exact" or bool(row["sums_exact"] and row["y_identical"]))
    )


def main() -> int:
    """Run the cases that are not stored yet; the exit status says whether all are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--match", default="", help="only cases whose name has this in it")
    parser.add_argument("--again", action="store_true", help="run stored cases too")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    stored = {str(row["key"]): dict(row) for row in load(path).rows} if path.exists() else {}
    every = cases()
    wanted = [case for case in every if case.recipe in args.recipes and args.match in case.key]
    rows = dict(stored)
    ok = True
    for case in wanted:
        if case.data == "real" and (reason := why_missing()):
            print(f"{case.key}: {reason}")
            continue
        old = stored.get(case.key)
        if old is None or args.again or old["kernel"] != kernel_digest(case):
            rows[case.key] = run_case(case)
            if not args.no_record:
                store([rows[each.key] for each in every if each.key in rows])
        row = rows[case.key]
        ok &= is_right(row)
        codes = row["codes_identical"]
        print(
            f"{case.key:58} codes {'-' if codes is None else format(codes, '.5%')} L2 {row['rel_l2_oracle']:.1e} "
            f"same {row['y_identical']} exact {row['sums_exact']} findings {row['findings']} "
            f"cosine {row['cosine_truth']:.5f} {row['wall_s']:.1f} s {'' if is_right(row) else 'WRONG'}",
            flush=True,
        )
    if not args.no_record and rows:
        store([rows[each.key] for each in every if each.key in rows])  # those that no case has any more are left out
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
