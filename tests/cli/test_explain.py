"""`megamoe-jit explain`: the model's figures as JSON and for people, the SASS, and what is refused."""

from __future__ import annotations

import pytest

from megamoe_jit.cli import explain as explain_module
from megamoe_jit.jit import sass as sass_module
from megamoe_jit.jit.dump import find_disassembler
from megamoe_jit.jit.sass import disassemble_inlined, sass_report
from tests.cli.conftest import SMALL, Run

QUICK = ("--max-tokens", "64", "--tokens", "8", "--no-sass")


def test_json_has_the_model_and_says_that_it_is_one(run: Run) -> None:
    record = run("explain", "--preset", "gpt-oss-20b", "--tokens", "64", "--no-sass", "--json").record
    assert record["is_measurement"] is False
    assert "not a measurement" in record["notice"]
    assert (record["model"], record["recipe"], record["arch"]) == ("gpt-oss-20b", "mxfp8_mxfp4", "sm_100f")
    assert (record["hidden"], record["num_topk"], record["num_tokens"]) == (2880, 4, 64)
    assert [estimate["gpu"] for estimate in record["estimates"]] == ["B200", "B300"]
    assert record["estimates"][0]["bound_by"] == "memory"
    assert sum(record["tmem_columns"].values()) <= 512
    assert record["sass"] == {"note": "not asked for (--no-sass)"}


def test_it_prints_for_people(run: Run) -> None:
    out = run("explain", *SMALL, *QUICK).out
    for words in (
        "This is a model, not a measurement",
        "custom, 8 tokens: nvfp4_nvfp4 on sm_100f",
        "block_n=16: an expert gets 4.0 tokens on average",
        "not block_n=32: more empty columns",
        "weight scale factors *",
        "ring of tokens",
        "B200: MMA cycles of a CTA at the dense FP4 peak",
        "B300: MMA cycles",
        "bound by memory",
        "NVIDIA HGX B200 specifications",
        "of 512 columns allocated",
        "Shared memory: ",
        "SASS: not asked for",
    ):
        assert words in out


def test_hopper_has_bytes_and_a_floor(run: Run) -> None:
    out = run("explain", *SMALL, *QUICK, "--arch", "sm_90a").out
    assert "fp8_nvfp4 on sm_90a" in out
    assert "H200: MMA cycles of a CTA at the dense FP8 peak" in out
    assert "Tensor memory" not in out


@pytest.mark.parametrize(("name", "kind"), [("relu2", "relu2"), ("swigluoai", "swiglu"), ("gelu", "gelu")])
def test_activations_have_names(run: Run, name: str, kind: str) -> None:
    assert run("explain", *SMALL, *QUICK, "--activation", name, "--json").record["activation"] == kind


def test_a_shape_replaces_the_presets(run: Run) -> None:
    record = run("explain", "--preset", "minilm", "--hidden", "512", "--no-sass", "--json").record
    assert (record["hidden"], record["intermediate"]) == (512, 768)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--hidden", "256"), "no --preset was given"),
        (("--preset", "no-such"), "preset='no-such' is unknown"),
        (("--preset", "minilm", "--arch", "sm_120a"), "no recipe runs"),
        (("--preset", "minilm", "--arch", "sm_120a", "--recipe", "nvfp4_nvfp4"), "the target is sm_120a"),
        (("--preset", "minilm", "--tokens", "8193"), "num_tokens=8193, but the buffers hold"),
        (("--preset", "minilm", "--latency-ns", "0"), "is no latency"),
    ],
)
def test_what_cannot_be_modelled_is_refused(run: Run, arguments: tuple[str, ...], error: str) -> None:
    ran = run("explain", *arguments, "--no-sass", "--json")
    assert ran.code == 1
    assert error in ran.record["error"]


def test_the_cubin_is_counted_by_role(run: Run) -> None:
    if find_disassembler() is None:
        pytest.skip("no nvdisasm on this machine (extra `sass`)")
    code = run("explain", *SMALL, "--max-tokens", "64", "--tokens", "8", "--arch", "sm_100a", "--json").record["sass"]
    assert 0 < code["registers"] <= 128
    assert code["spill_bytes"] == 0
    roles = {"route", "load", "mma", "dispatch", "epilogue_l1", "epilogue_l2", "combine", "cleanup"}
    assert roles <= set(code["roles"])
    assert sum(code["roles"].values()) == code["instructions"]
    assert {"UTMALDG", "UTCCP", "UTCOMMA", "LDTM"} <= set(code["engines"])


def test_without_a_compiled_kernel_or_a_disassembler_it_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass_module, "find_nvdisasm", lambda: iter(()))
    assert disassemble_inlined(b"cubin") is None
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_ONLY", "1")
    note = run("explain", *SMALL, "--tokens", "8", "--json").record["sass"]["note"]
    assert note.startswith("no cubin: MEGAMOE_JIT_CACHE_ONLY is set")


LISTING = """
        .type           kernel,@function
\t//## File "/mega_moe/sm100.cuh", line 65
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
\t//## File "/ptx/tma.cuh", line 13 inlined at "/mega_moe/roles/load_sm100.cuh", line 38
\t//## File "/mega_moe/roles/load_sm100.cuh", line 38 inlined at "/mega_moe/sm100.cuh", line 89
\t//## File "/mega_moe/sm100.cuh", line 89
        /*0010*/              @!P0 UTMALDG.2D [UR20], [UR4] ;
        /*0020*/                   NOP ;
        /*0030*/              @UP1 UMOV UR1, UR2 ;
\t//## File "/mega_moe/roles/epilogue_sm100.cuh", line 5 inlined at "/mega_moe/roles/epilogue_l1_sm100.cuh", line 9
\t//## File "/mega_moe/roles/epilogue_l1_sm100.cuh", line 9 inlined at "/mega_moe/sm100.cuh", line 70
        /*0040*/                   LDTM.x16 R4, tmem[UR4] ;
        .type           give_up,@function
\t//## File "/comm/wait.cuh", line 31
        /*0050*/                   RET.REL.NODEC R2 `(kernel) ;
"""


def test_instructions_belong_to_the_outermost_role() -> None:
    report = sass_report(LISTING)
    assert report.roles == {"load": 2, "entry": 1, "epilogue_l1": 1, "functions": 1}
    assert report.engines == {"LDTM": 1, "UTMALDG": 1}
    assert report.instructions == 5


def test_counts_of_nothing_are_none() -> None:
    assert explain_module._counts({}) == "none"
