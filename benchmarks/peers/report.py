"""The record of `benchmarks.hopper_speed` as tables for the pages, and as a plot for each workload."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.kinds import KINDS, OURS, PEERS
from benchmarks.peers.measure import Measurement
from benchmarks.peers.workload import TOKENS, WORKLOADS
from benchmarks.record import RESULTS, Column, Result

NAME = "hopper_speed"
TITLE = "The whole layer on one GPU: ours, peers, and the floor"
COLUMNS = (
    Column(key="workload", heading="layer"),
    Column(key="routing", heading="routing"),
    Column(key="num_tokens", heading="tokens"),
    Column(key="contender", heading="who"),
    Column(key="us", heading="us", format=".1f"),
    Column(key="floor_us", heading="floor, us", format=".1f"),
    Column(key="rel_l2", heading="relative L2", format=".4f"),
    Column(key="cosine", heading="cosine", format=".6f"),
    Column(key="status", heading="status"),
)
NOTES = (
    "BF16 in, BF16 out, everything between included; every routed expert is local. A time is the median of CUDA-graph "
    "replays over 12, 6 or 3 inputs with routing of their own. Floor: NVFP4 bytes of the touched experts, x and y over "
    "4.55 TB/s, or operations over 1,333 TFLOP/s; for BF16 activations over this run's BF16 matmul rate. Relative L2 "
    "and cosine are to the float64 truth of each one's own dequantised weights, on up to 64 tokens. Skewed routing "
    "sends half of the slots to a tenth of the experts."
)
_WRONG = 0.2  # relative L2 from which a result is no result
_BASELINE = {"bf16_nvfp4": "humming_nvfp4"}  # who is compared with whom, where not the fastest peer

Rows = dict[str, Measurement]


def is_right(row: Measurement | None) -> bool:
    """Return whether a row holds the time of a correct result."""
    return row is not None and row.us is not None and row.rel_l2 is not None and row.rel_l2 < _WRONG


def cells(result: Result, wanted: Mapping[str, str] | None = None) -> dict[tuple[str, str, int], Rows]:
    """Return the measurements of each (workload, routing, tokens) by contender, in the record's order."""
    found: dict[tuple[str, str, int], Rows] = {}
    for row in map(Measurement.of, result.rows):
        if all(str(getattr(row, key)) == value for key, value in (wanted or {}).items()):
            found.setdefault(row.cell, {})[row.contender] = row
    order = list(WORKLOADS)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1] == "skewed", item[0][2])))


def fastest_peer(rows: Rows) -> Measurement | None:
    """Return the peer with the least time among those that are right."""
    peers = [rows[name] for name in PEERS if is_right(rows.get(name))]
    return min(peers, key=lambda row: row.us or 0.0, default=None)


def aim_of(workload: str, routing: str, num_tokens: int) -> float | None:
    """Return the share of the floor that `fp8_nvfp4` shall reach, where there is an aim."""
    return dict(WORKLOADS[workload].aims).get(num_tokens) if routing == "uniform" else None


def _us(row: Measurement | None) -> str:
    if row is None or row.us is None:
        return "-" if row is None or row.status in ("missing", "skipped") else row.status
    return f"{row.us:,.1f}" if row.us < 1000 else f"{row.us:,.0f}"


def _share(row: Measurement | None) -> str:
    return f"{row.own_floor_us / row.us:.2f}" if row is not None and row.us else "-"


def _ratio(row: Measurement | None, other: Measurement | None) -> str:
    return f"{other.us / row.us:.2f}" if row and other and row.us and other.us and is_right(row) else "-"


def _heading(name: str) -> str:
    return next(kind.heading for kind in KINDS if kind.name == name)


def summary_rows(found: Mapping[tuple[str, str, int], Rows]) -> list[list[str]]:
    """Return the short table: our recipes with their shares of the floor, and who comes next."""
    lines = []
    for (workload, routing, num_tokens), rows in found.items():
        ours, bf16, peer = rows.get("fp8_nvfp4"), rows.get("bf16_nvfp4"), fastest_peer(rows)
        aim = aim_of(workload, routing, num_tokens)
        baseline = rows.get(_BASELINE["bf16_nvfp4"])
        floor_us = next(iter(rows.values())).floor_us
        lines.append(
            [
                workload if routing == "uniform" else f"{workload}, {routing}",
                f"{num_tokens}",
                f"{floor_us:,.1f}",
                *(_us(ours), _share(ours), "-" if aim is None else f"{aim:.2f}"),
                "-" if peer is None else f"{_us(peer)} ({_heading(peer.contender)})",
                _ratio(ours, peer),
                *(_us(bf16), _share(bf16), _ratio(bf16, baseline if is_right(baseline) else None)),
            ]
        )
    return lines


SUMMARY_HEADINGS = (
    *("layer", "tokens", "floor, us", "`fp8_nvfp4`, us", "floor / time", "aim", "fastest peer, us", "peer / ours"),
    *("`bf16_nvfp4`, us", "floor / time", "humming NVFP4 + BF16 / ours"),
)


def times_table(found: Mapping[tuple[str, str, int], Rows]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines of everybody's times."""
    names = [kind.name for kind in KINDS if any(kind.name in rows for rows in found.values())]
    headings = ["layer", "routing", "tokens", "floor, us", *(_heading(name) for name in names)]
    lines = [
        [workload, routing, str(num_tokens), f"{next(iter(rows.values())).floor_us:,.1f}"]
        + [_us(rows.get(name)) for name in names]
        for (workload, routing, num_tokens), rows in found.items()
    ]
    return headings, lines


def accuracy_table(found: Mapping[tuple[str, str, int], Rows]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines of the largest relative L2 and the least cosine of each contender and workload."""
    lines = []
    for workload in dict.fromkeys(cell[0] for cell in found):
        for kind in KINDS:
            rows = [rows[kind.name] for cell, rows in found.items() if cell[0] == workload and kind.name in rows]
            judged = [row for row in rows if row.status == "measured"]
            if judged:
                errors = [row.rel_l2 for row in judged if row.rel_l2 is not None]
                angles = [row.cosine for row in judged if row.cosine is not None]
                bad = len(judged) - len(errors)
                lines.append(
                    [
                        *(workload, kind.heading),
                        f"{max(errors):.4f}" if errors else "-",
                        f"{min(angles):.6f}" if angles else "-",
                        "none" if bad == 0 else f"{bad} of {len(judged)}",
                    ]
                )
    return ["layer", "who", "largest relative L2", "least cosine", "results not finite"], lines


def gaps_table(found: Mapping[tuple[str, str, int], Rows]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines of what was not measured, and why: one line for each reason."""
    counts: dict[tuple[str, str, str, str], list[str]] = {}
    for (workload, routing, num_tokens), rows in found.items():
        for row in rows.values():
            if row.status != "measured":
                key = (_heading(row.contender), workload, row.status, row.note)
                counts.setdefault(key, []).append(f"{num_tokens}{' skewed' if routing == 'skewed' else ''}")
    lines = [
        [who, workload, ", ".join(tokens), status, note] for (who, workload, status, note), tokens in counts.items()
    ]
    return ["who", "layer", "tokens", "status", "why"], lines


def tables(result: Result, table: str, wanted: Mapping[str, str]) -> tuple[Sequence[str], list[list[str]]]:
    """Return headings and lines of the table called hopper_speed_`table`."""
    found = cells(result, wanted)
    if table == "summary":
        named = {cell: rows for cell, rows in found.items() if cell[1] == "uniform" and cell[2] in TOKENS}
        return SUMMARY_HEADINGS, summary_rows(named if not wanted else found)
    if table == "times":
        return times_table(found)
    if table == "accuracy":
        return accuracy_table(found)
    if table == "gaps":
        return gaps_table(found)
    raise KeyError(f"hopper_speed has no table {table!r}: summary, times, accuracy or gaps")


TABLES = tuple(f"{NAME}_{table}" for table in ("summary", "times", "accuracy", "gaps"))
_OURS_STYLE = {"fp8_nvfp4": "#c2410c", "bf16_nvfp4": "#1d4ed8", "fp8_mxfp4": "#d97706"}
_PEER_STYLE = {"humming_nvfp4": "#60a5fa", "humming_mxfp4": "#a3a3a3", "sgl_fp8": "#16a34a", "torch_bf16": "#7c3aed"}


def draw(result: Result, workload: str, path: Path) -> Path:
    """Draw time against tokens of one workload with uniform routing, both axes logarithmic. Needs matplotlib."""
    # The extra `bench` has it; nothing else of the project needs it, nor does type checking.
    plt: Any = importlib.import_module("matplotlib.pyplot")
    plt.switch_backend("Agg")
    found = {cell[2]: rows for cell, rows in cells(result, {"workload": workload, "routing": "uniform"}).items()}
    figure, panel = plt.subplots(figsize=(7.2, 5.0), layout="constrained")
    tokens = sorted(found)
    floors = [next(iter(found[count].values())).floor_us for count in tokens]
    panel.fill_between(tokens, floors, [min(floors) / 3] * len(tokens), color="#f3f4f6", linewidth=0)
    panel.plot(tokens, floors, color="#111827", linewidth=1.6, label="floor (NVFP4, FP8 tensor cores)")
    for name in (*PEERS, *OURS):
        points = [(count, found[count][name].us) for count in tokens if is_right(found[count].get(name))]
        if not points:
            continue
        ours = name in _OURS_STYLE
        panel.plot(
            *zip(*points, strict=True),
            color=(_OURS_STYLE if ours else _PEER_STYLE)[name],
            marker="o" if ours else ".",
            markersize=5 if ours else 6,
            linewidth=2.0 if ours else 1.0,
            linestyle="-" if ours else "--",
            label=f"ours, {name}" if ours else _heading(name),
        )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(tokens, [str(count) for count in tokens], fontsize=8)
    panel.minorticks_off()
    panel.set_ylim(bottom=min(floors) / 1.5)
    panel.set_xlabel("tokens of the call")
    panel.set_ylabel("time of the layer, us")
    shape = WORKLOADS[workload]
    panel.set_title(
        f"{workload}: hidden {shape.hidden}, intermediate {shape.intermediate}, {shape.num_experts} experts, "
        f"top-{shape.num_topk}, {result.conditions.get('device', '')}",
        fontsize=9,
        color="#374151",
    )
    panel.grid(visible=True, which="major", color="#e5e7eb", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return path


def draw_all(result: Result, folder: Path = RESULTS) -> list[Path]:
    """Draw every workload of the record; none where matplotlib is missing."""
    names = dict.fromkeys(cell[0] for cell in cells(result, {"routing": "uniform"}))
    try:
        return [draw(result, name, folder / f"{NAME}_{name}.png") for name in names]
    except ImportError as error:
        print(f"no plot: {error.name} is not installed. Install pip install 'megamoe-jit[bench]'.")
        return []


def make_result(rows: Iterable[Measurement], conditions: Mapping[str, str]) -> Result:
    """Return the record of these rows."""
    return Result(
        name=NAME,
        title=TITLE,
        columns=COLUMNS,
        rows=tuple(row.row() for row in rows),
        notes=NOTES,
        conditions=conditions,
    )
