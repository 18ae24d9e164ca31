from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import hopper_speed
from benchmarks.hopper_speed import Run, chosen_kinds, command_of, main, measure_workload, parse
from benchmarks.peers import measure as measuring
from benchmarks.peers.contender import Kind
from benchmarks.peers.layer import Layer, Values, moe_truth
from benchmarks.peers.measure import Case, ContextLostError, Measurement, merged
from benchmarks.peers.report import (
    SUMMARY_HEADINGS,
    accuracy_table,
    aim_of,
    cells,
    draw,
    draw_all,
    fastest_peer,
    gaps_table,
    make_result,
    summary_rows,
    times_table,
)
from benchmarks.peers.torch_grouped import TorchGrouped
from benchmarks.peers.workload import TokenSet, Workload, make_sets
from benchmarks.record import load
from benchmarks.tables import fill, make_tables

TINY = Workload(name="flash", hidden=64, intermediate=32, num_experts=10, num_topk=2)
CONDITIONS = {"date": "2026-01-02", "device": "NVIDIA H200", "command": "python -m benchmarks.hopper_speed"}


def row(contender: str, us: float | None, tokens: int = 8, **changes: Any) -> Measurement:
    status = "measured" if us is not None else "missing"
    made = Measurement(
        workload="flash",
        routing="uniform",
        num_tokens=tokens,
        contender=contender,
        status=status,
        us=us,
        floor_us=80.0,
        own_floor_us=80.0,
        rel_l2=0.05 if us is not None else None,
        cosine=0.998 if us is not None else None,
    )
    return replace(made, **changes)


ROWS = [
    row("fp8_nvfp4", 100.0),
    row("bf16_nvfp4", 120.0, own_floor_us=90.0),
    row("humming_nvfp4", 150.0),
    row("humming_mxfp4", 110.0),
    row("sgl_fp8", 60.0, rel_l2=0.9),
    row("torch_bf16", None, note="not installed"),
    row("fp8_nvfp4", 1234.0, tokens=1024, floor_us=400.0, own_floor_us=400.0),
    row("humming_mxfp4", 1000.0, tokens=1024, rel_l2=None, note="y is not finite"),
    row("fp8_nvfp4", 300.0, tokens=64, routing="skewed"),
    row("humming_mxfp4", 200.0, tokens=64, routing="skewed"),
]


def test_the_fastest_peer_is_one_that_is_right() -> None:
    found = cells(make_result(ROWS, CONDITIONS))
    peer = fastest_peer(found["flash", "uniform", 8])
    assert peer is not None
    assert peer.contender == "humming_mxfp4"
    assert fastest_peer(found["flash", "uniform", 1024]) is None


def test_the_short_table() -> None:
    lines = summary_rows(cells(make_result(ROWS, CONDITIONS)))
    assert len(SUMMARY_HEADINGS) == len(lines[0])
    assert lines[0] == [
        *("flash", "8", "80.0", "100.0", "0.80", "0.82", "110.0 (humming MXFP4 + FP8)", "1.10"),
        *("120.0", "0.75", "1.25"),
    ]
    assert lines[1][:8] == ["flash", "1024", "400.0", "1,234", "0.32", "0.72", "-", "-"]
    assert lines[2][:2] == ["flash, skewed", "64"]
    assert aim_of("flash", "skewed", 64) is None
    assert aim_of("pro", "uniform", 64) == 0.90


def test_the_long_tables() -> None:
    found = cells(make_result(ROWS, CONDITIONS))
    headings, lines = times_table(found)
    assert headings[:5] == ["layer", "routing", "tokens", "floor, us", "fp8_nvfp4"]
    assert len(lines) == 3
    assert lines[0][-1] == "-"
    _, lines = accuracy_table(found)
    assert ["flash", "humming MXFP4 + FP8", "0.0500", "0.998000", "1 of 3"] in lines
    _, lines = gaps_table(found)
    assert lines == [["torch BF16", "flash", "8", "missing", "not installed"]]


def test_pages_hold_the_tables() -> None:
    names = ("summary", "times", "accuracy", "gaps")
    page = "".join(f"<!-- table: hopper_speed_{name} -->\n<!-- end -->\n" for name in names)
    text = fill(page, make_tables({"hopper_speed": make_result(ROWS, CONDITIONS)}))
    assert "| flash | 8 | 80.0 | 100.0 | 0.80 | 0.82 | 110.0 (humming MXFP4 + FP8) | 1.10 |" in text
    assert text.count("NVIDIA H200") == 1
    assert "| flash | skewed | 64 | 80.0 | 300.0 |" in text
    assert "results/hopper_speed.json is missing" in fill(page, make_tables({}))


def test_new_cells_replace_whole_old_ones() -> None:
    kept = [row("fp8_nvfp4", 1.0), row("torch_bf16", 2.0), row("fp8_nvfp4", 3.0, tokens=64)]
    rows = merged(kept, [row("fp8_nvfp4", 9.0)])
    assert [(one.num_tokens, one.us) for one in rows] == [(64, 3.0), (8, 9.0)]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_plot_is_drawn_from_the_record(tmp_path: Path) -> None:
    path = draw(make_result(ROWS, CONDITIONS), "flash", tmp_path / "flash.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("benchmarks.peers.report.importlib.import_module", missing)
    assert draw_all(make_result(ROWS, CONDITIONS), tmp_path) == []


class Exact:
    """A contender that computes the truth, or breaks in one of its variants."""

    weights_name = "nvfp4"

    def __init__(self, layer: Layer, max_tokens: int, *, broken: Sequence[str] = ()) -> None:
        self._torch, self._broken = TorchGrouped(layer, max_tokens), broken

    def values(self) -> Values:
        return self._torch.values()

    def compile_for(self, tokens: Sequence[int]) -> None:
        pass

    def variants(self, num_tokens: int) -> Iterable[tuple[str, Callable[[], Callable[[TokenSet], torch.Tensor]]]]:
        def run(name: str, tokens: TokenSet) -> torch.Tensor:
            if name in self._broken:
                raise RuntimeError(f"{name} is broken")
            return moe_truth(tokens, self.values()).bfloat16()

        for name in ("slow", "fast"):
            yield name, lambda name=name: partial(run, name)

    def note(self, num_tokens: int) -> str:
        return "a note"


def kind_of(name: str, load: Callable[[], Any]) -> Kind:
    return Kind(name=name, heading=name, what="", acts="fp8", load=load)


def no_library() -> Any:
    raise ModuleNotFoundError("No module named 'peer'")


def timer(calls: Sequence[Callable[[], object]]) -> float:
    """Call each once; the second variant that is timed is faster."""
    for call in calls:
        call()
    timer_calls.append(len(calls))
    return 100.0 / len(timer_calls)


timer_calls: list[int] = []


def make_run(tmp_path: Path, kinds: Sequence[Kind], *options: str, start: float | None = None) -> Run:
    timer_calls.clear()
    run = Run(parse(["--out", str(tmp_path), *options]), kinds, time.monotonic() if start is None else start)
    run.conditions, run.bf16_ops_per_s = dict(CONDITIONS), 700e12
    return run


def test_a_run_that_keeps_adds_to_the_record_of_its_folder(tmp_path: Path) -> None:
    first = make_run(tmp_path, [])
    first.rows.append(row("fp8_nvfp4", 97.3, tokens=8))
    first.save()
    second = make_run(tmp_path, [], "--keep")
    second.rows.append(row("fp8_nvfp4", 122.8, tokens=64))
    second.save()
    times = {line["num_tokens"]: line["us"] for line in load(tmp_path / "hopper_speed.json").rows}
    assert times == {8: 97.3, 64: 122.8}


def test_a_run_records_everybody(tmp_path: Path) -> None:
    kinds = [
        kind_of("fp8_nvfp4", lambda: Exact),
        kind_of("torch_bf16", lambda: partial(Exact, broken=["fast"])),
        kind_of("sgl_fp8", lambda: partial(Exact, broken=["fast", "slow"])),
        kind_of("humming_nvfp4", no_library),
    ]
    run = make_run(tmp_path, kinds)
    measure_workload(run, TINY, (("uniform", 8),), "cpu", timer)
    by_name = {one.contender: one for one in map(Measurement.of, load(tmp_path / "hopper_speed.json").rows)}
    first = by_name["fp8_nvfp4"]
    assert (first.variant, first.us, first.other_us) == ("fast", 50.0, "slow 100.0")
    assert first.rel_l2 is not None
    assert first.rel_l2 < 4e-3
    assert first.note == "a note"
    assert first.run == run.stamp
    second = by_name["torch_bf16"]
    assert (second.variant, second.note) == ("slow", "a note; fast: RuntimeError: fast is broken")
    assert by_name["sgl_fp8"].status == "failed"
    assert "slow: RuntimeError: slow is broken" in by_name["sgl_fp8"].note
    assert by_name["humming_nvfp4"].status == "missing"


def test_after_the_deadline_cells_are_skipped_and_say_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, [kind_of("fp8_nvfp4", lambda: Exact)], "--deadline", "10", start=time.monotonic() - 11)
    measure_workload(run, TINY, (("uniform", 8),), "cpu", timer)
    [only] = run.rows
    assert (only.status, only.note, only.us) == ("skipped", "no time left", None)
    assert only.floor_us > 0


def test_a_lost_context_starts_the_run_again_without_the_culprit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [kind_of("fp8_nvfp4", lambda: Exact), kind_of("sgl_fp8", lambda: partial(Exact, broken=["slow"]))]
    monkeypatch.setattr(measuring, "is_context_lost", lambda: True)
    run = make_run(tmp_path, kinds)
    cases = (("uniform", 8), ("uniform", 64))
    with pytest.raises(ContextLostError) as caught:
        measure_workload(run, TINY, cases, "cpu", timer)
    run.rows.append(replace(caught.value.row, note=hopper_speed._LOST + caught.value.row.note))
    run.save()
    again = make_run(tmp_path, kinds, "--resume", run.stamp)
    assert [one.contender for one in again.rows] == ["fp8_nvfp4", "sgl_fp8"]
    assert set(again.lost("flash")) == {"sgl_fp8"}
    measure_workload(again, TINY, cases, "cpu", timer)
    statuses = [(one.num_tokens, one.contender, one.status) for one in again.rows]
    assert statuses == [
        (8, "fp8_nvfp4", "measured"),
        (8, "sgl_fp8", "failed"),
        (64, "fp8_nvfp4", "measured"),
        (64, "sgl_fp8", "failed"),
    ]


def test_a_result_that_is_not_finite_is_no_result() -> None:
    layer = Layer(workload=TINY, device="cpu")
    case = Case(TINY, "uniform", make_sets(TINY, "uniform", 8, device="cpu", count=2))
    kind = kind_of("sgl_fp8", lambda: Exact)
    contender = Exact(layer, 8)

    class Broken(Exact):
        def variants(self, num_tokens: int) -> Iterable[tuple[str, Any]]:
            yield "nan", lambda: lambda tokens: torch.full_like(tokens.x, float("nan"))

    good = measuring.measure(contender, case, case.blank(kind, 7e14), lambda calls: 5.0)
    bad = measuring.measure(Broken(layer, 8), case, case.blank(kind, 7e14), lambda calls: 5.0)
    assert good.cosine is not None
    assert good.cosine > 0.999
    assert (bad.rel_l2, bad.cosine, bad.note) == (None, None, "a note; y is not finite")


def test_options_choose_contenders() -> None:
    def names(*words: str) -> list[str]:
        options: argparse.Namespace = parse(words)
        return [kind.name for kind in chosen_kinds(options.recipes, options.peers)]

    assert len(names()) == 7
    assert names("--peers", "none") == ["fp8_nvfp4", "bf16_nvfp4", "fp8_mxfp4"]
    assert names("--recipes", "fp8_nvfp4", "--peers", "torch_bf16") == ["fp8_nvfp4", "torch_bf16"]
    assert names("--recipes", "--peers", "sgl_fp8") == ["sgl_fp8"]
    with pytest.raises(SystemExit, match="unknown contenders: nobody"):
        names("--peers", "nobody")


def test_the_recorded_command_names_no_folder() -> None:
    args = ["--tokens", "1", "8", "--out", "/somewhere", "--keep", "--resume", "2026-01-02", "--deadline", "5"]
    assert command_of(args) == "python -m benchmarks.hopper_speed --tokens 1 8 --keep --deadline 5"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "not measured" in capsys.readouterr().out
