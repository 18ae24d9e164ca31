"""`megamoe-jit emulate`: kernels from PTX files, results against NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megamoe_jit.errors import DeadlockFault, EmulatorFault, MemoryFault
from tests.cli.conftest import Run

_HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"

# out[i] = a * x[i] + out[i] for i < n, and the shift by b for the structure that comes by value.
_AXPY = """
.visible .entry axpy(.param .u64 x, .param .u64 out, .param .u32 n, .param .f32 a, .param .align 8 .b8 s[16])
{
    .reg .pred p; .reg .b32 %r<9>; .reg .f32 %f<9>; .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [out]; ld.param.u32 %r1, [n]; ld.param.f32 %f1, [a];
    ld.param.f32 %f2, [s+8];
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 p, %r5, %r1; @p bra END;
    mul.wide.s32 %rd3, %r5, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f3, [%rd4]; ld.global.f32 %f4, [%rd5];
    fma.rn.f32 %f5, %f1, %f3, %f4; add.rn.f32 %f6, %f5, %f2;
    st.global.f32 [%rd5], %f6;
END: ret;
}
"""
_OTHER = ".visible .entry required() .reqntid 64 { ret; }\n"


@pytest.fixture
def axpy(tmp_path: Path) -> Path:
    path = tmp_path / "axpy.ptx"
    path.write_text(_HEADER + _AXPY)
    return path


def _inputs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(9)
    x, out = rng.standard_normal((2, 300)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "out.npy", out)
    np.save(folder / "s.npy", np.array([0, 0, 2.0, 0], np.float32))
    return x, out


def test_results_are_numpys(run: Run, axpy: Path, tmp_path: Path) -> None:
    x, before = _inputs(tmp_path)
    args = [text for value in ("x.npy", "out.npy", "s.npy") for text in ("--arg", str(tmp_path / value))]
    ran = run(
        "emulate", axpy, "--grid", "3", "--block", "100,1", *args[:4], "--arg", "280", "--arg", "1.5", *args[4:],
        "--save", f"out={tmp_path / 'new' / 'after.npy'}", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    record = ran.record
    assert (record["kernel"], record["grid"], record["block"]) == ("axpy", [3, 1, 1], [100, 1, 1])
    assert record["instructions"]["fma.rn.f32"] == 4 + 4 + 3, "the last warp is past the end as a whole"
    assert record["findings"] == []
    assert record["warp_instructions"] == sum(record["instructions"].values())
    after = np.load(tmp_path / "new" / "after.npy")
    expected = (np.float64(1.5) * x + before).astype(np.float32) + np.float32(2)
    assert (after[:280] == expected[:280]).all()
    assert (after[280:] == before[280:]).all()
    assert (np.load(tmp_path / "out.npy") == before).all(), "inputs stay as they are"


def test_report_for_people(run: Run, axpy: Path) -> None:
    ran = run(
        "emulate", axpy, "--block", "32", "--arg", "x=ones:float32:32", "--arg", "y=arange:float32:32", "--arg", "32",
        "--arg", "f32:2", "--arg", "zeros:float32:4",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    for words in (
        "axpy: grid (1, 1, 1), block (32, 1, 1)",
        "fma.rn.f32",
        "Arrays afterwards",
        "2.0 3.0 4.0 5.0 6.0 7.0 ...",
    ):
        assert words in ran.out


def test_entries_fill_in_their_own_shape(run: Run, tmp_path: Path, axpy: Path) -> None:
    path = tmp_path / "both.ptx"
    path.write_text(_HEADER + _AXPY + _OTHER)
    record = run("emulate", path, "--kernel", "required", "--json").record
    assert (record["block"], record["cluster"]) == ([64, 1, 1], [1, 1, 1])
    folder = tmp_path / "entry"
    folder.mkdir()
    (folder / "kernel.ptx").write_text(_HEADER + _OTHER)
    assert run("emulate", folder, "--json").record["kernel"] == "required"


def _faulty(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "faulty.ptx"
    path.write_text(
        f"{_HEADER}.entry k(.param .u64 out) .reqntid 32 {{ .reg .b64 %rd<9>; .reg .b32 %r<9>; .reg .pred p; {body} }}"
    )
    return path


@pytest.mark.parametrize(
    ("body", "fault", "words"),
    [
        ("ld.param.u64 %rd1, [out]; st.global.u32 [%rd1+4096], 1; ret;", MemoryFault, "out-of-bounds"),
        ("ld.param.u64 %rd1, [out]; st.global.u32 [%rd1+2], 1; ret;", MemoryFault, "misaligned"),
        (".shared .align 8 .b8 b[8]; mov.u32 %r1, b; mbarrier.init.shared::cta.b64 [%r1], 5; bar.sync 0;"
         "L: mbarrier.try_wait.parity.shared::cta.b64 p, [%r1], 0; @!p bra L; ret;", DeadlockFault, "deadlock"),
        ("trap;", EmulatorFault, "trap"),
    ],
)  # fmt: skip
def test_faults_end_the_command_with_a_report(
    run: Run, tmp_path: Path, body: str, fault: type[EmulatorFault], words: str
) -> None:
    path = _faulty(tmp_path, body)
    ran = run("emulate", path, "--arg", "out=zeros:uint32:8", "--save", tmp_path / "out.npy")
    assert ran.code == 1
    assert words in " ".join(ran.err.split())
    assert "warp instructions" in ran.out
    assert (tmp_path / "out.npy").exists(), "what the kernel left is of use to whoever looks for the fault"
    record = run("emulate", path, "--arg", "out=zeros:uint32:8", "--json").record
    assert record["type"] == fault.__name__
    assert words in record["error"]


def test_a_timeline_shows_copies_and_waits(run: Run, tmp_path: Path) -> None:
    path = _faulty(
        tmp_path,
        ".shared .align 16 .b8 s[16]; .shared .align 8 .b8 b[8]; .reg .pred first; ld.param.u64 %rd1, [out];"
        "mov.u32 %r1, b; mov.u32 %r2, s; mov.u32 %r3, %tid.x; setp.eq.s32 first, %r3, 0;"
        "@first mbarrier.init.shared::cta.b64 [%r1], 1; fence.mbarrier_init.release.cluster; bar.sync 0;"
        "@first mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 16;"
        "@first cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 16, [%r1];"
        "L: mbarrier.try_wait.parity.shared::cta.b64 p, [%r1], 0; @!p bra L; ret;",
    )
    record = run("emulate", path, "--arg", "zeros:uint32:4", "--trace", tmp_path / "new" / "t.json", "--json").record
    assert record["tma_bytes"] == 16
    assert record["saved"] == {"trace": str(tmp_path / "new" / "t.json")}
    names = {event["name"] for event in json.loads((tmp_path / "new" / "t.json").read_text())["traceEvents"]}
    assert any("bulk" in name for name in names)
    assert any(name.startswith("wait: ") and "mbarrier" in name for name in names)


def test_checks_can_warn(run: Run, tmp_path: Path) -> None:
    path = _faulty(
        tmp_path,
        ".shared .b32 s; mov.u32 %r1, %tid.x; st.shared.u32 [s], %r1; ld.param.u64 %rd1, [out];"
        "st.global.u32 [%rd1], %r1; ret;",
    )
    record = run("emulate", path, "--grid", "2", "--arg", "zeros:uint32:8", "--checks", "warn", "--json").record
    assert record["findings"], "two CTAs write one word"
    assert (
        run("emulate", path, "--grid", "2", "--arg", "zeros:uint32:8", "--checks", "off", "--json").record["findings"]
        == []
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--block", "32"], "has 5 parameters, and 0 --arg are given"),
        ([], "axpy does not say how large its blocks are; give --block"),
        (["--kernel", "nothing"], "must be one of the file's entries: axpy"),
        (["--block", "0"], "dimension of 0"),
        (["--block", "1", "--grid", "2,0"], "dimension of 0"),
        (["--block", "a"], "one to three numbers"),
        (["--block", "1,2,3,4"], "one to three numbers"),
        (["--completion", "sometimes"], "must be lazy, eager, or a probability"),
        (["--completion", "1.5"], "must be lazy, eager, or a probability"),
        (["--checks", "loud"], "checks='loud'"),
        (["--engine", "gpu"], "engine='gpu'"),
        (["--arg", "what?"], "is no argument"),
        (["--arg", "1", "--save", "out.npy"], "no array among the arguments is called 'out'"),
        (["--arg", "zeros:int8:1", "--save", "out.npy"], "none with a name"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(run: Run, axpy: Path, options: list[str], words: str) -> None:
    ran = run("emulate", axpy, *options)
    assert ran.code == 1
    assert words in " ".join(ran.err.split())


def test_dimensions_are_written_with_commas_or_crosses(run: Run, axpy: Path) -> None:
    args = ["zeros:float32:4", "zeros:float32:4", "0", "1.0", "zeros:float32:4"]
    options = [text for arg in args for text in ("--arg", arg)]
    for grid in ("2x3", "2,3", "2,3,1"):
        assert run("emulate", axpy, *options, "--block", "32", "--grid", grid, "--json").record["grid"] == [2, 3, 1]


def test_files_that_are_no_ptx(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.ptx").write_text("hello")
    (tmp_path / "binary.ptx").write_bytes(bytes(range(256)))
    assert "PTX line 1, column 1" in run("emulate", tmp_path / "bad.ptx").err
    assert "cannot be read as PTX text" in run("emulate", tmp_path / "binary.ptx").err
    assert "cannot be read as PTX text" in run("emulate", tmp_path / "absent.ptx").err
    (tmp_path / "unknown.ptx").write_text(f"{_HEADER}.entry k() .reqntid 32 {{ frobnicate.b32; ret; }}")
    assert "frobnicate.b32" in run("emulate", tmp_path / "unknown.ptx").err
