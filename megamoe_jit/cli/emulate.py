"""`megamoe-jit emulate`: run a kernel of a PTX file on the CPU, with every access watched."""

from __future__ import annotations

import importlib
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megamoe_jit.cli.output import JsonOption, console, emit_json, format_bytes, print_line, print_table
from megamoe_jit.errors import ArgumentError, EmulatorFault, UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.cli.kernel_arguments import KernelArgument
    from megamoe_jit.emulator.parser import Function

Dim3 = tuple[int, int, int]

_DIMENSIONS = re.compile(r"\d{1,10}(?:[,x]\d{1,10}){0,2}")
_NAMED_PATH = re.compile(r"([A-Za-z_]\w*)=(.+)")
_NUM_OPCODES_SHOWN = 16
_NUM_VALUES_SHOWN = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """A launch that ended, or one that a fault ended.

    Attributes:
        kernel: name of the entry; grid, block, cluster, shared_bytes: as launched.
        fault: text of the fault that ended it, or None.
        saved: what was written, argument -> file.
        load_s, run_s: seconds to parse and compile, and to run.
    """

    kernel: str
    grid: Dim3
    block: Dim3
    cluster: Dim3
    shared_bytes: int
    load_s: float
    run_s: float
    report: Any
    fault: EmulatorFault | None = None
    saved: dict[str, str] = field(default_factory=dict)


def emulate(
    ptx: Annotated[Path, typer.Argument(help="A PTX file, or a folder of the cache with a kernel.ptx.")],
    *,
    kernel: Annotated[str, typer.Option(help="The entry to run. Default: the only one.")] = "",
    grid: Annotated[str, typer.Option(help="Blocks of the grid: 4 or 2,1,1.")] = "1",
    block: Annotated[str, typer.Option(help="Threads of a block. Default: what the entry requires.")] = "",
    cluster: Annotated[str, typer.Option(help="Blocks of a cluster. Default: what the entry requires, else 1.")] = "",
    shared: Annotated[int, typer.Option(help="Bytes of dynamic shared memory.")] = 0,
    arg: Annotated[
        list[str] | None,
        typer.Option(
            help="One argument, in order: in.npy, zeros:float32:16x64 (or ones, arange, normal, uniform, integers), 7, "
            "1.5, f32:1.5, null; NAME=... gives it a name."
        ),
    ] = None,
    save: Annotated[
        list[str] | None,
        typer.Option(help="Write the argument called like the file to it afterwards: out.npy, or NAME=path.npy."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the schedule and of random arguments.")] = 0,
    completion: Annotated[
        str, typer.Option(help="When asynchronous work completes: lazy, eager, or a probability per step.")
    ] = "lazy",
    checks: Annotated[str, typer.Option(help="What is done about races and the like: error, warn or off.")] = "error",
    engine: Annotated[str, typer.Option(help="native (LLVM), or numpy (slow, needs no compiler).")] = "native",
    numerics: Annotated[str, typer.Option(help="Tensor-core sums: hardware, or exact.")] = "hardware",
    trace: Annotated[
        Path | None, typer.Option(help="Write a timeline there, for Perfetto or chrome://tracing.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a kernel of a PTX file on the CPU; print what it did, and stop at races, bad accesses and deadlocks."""
    from megamoe_jit.cli.kernel_arguments import parse_arguments

    api = _import_api()
    text = _read(ptx)
    arguments = parse_arguments(arg or [], seed=seed)
    outputs = _outputs(save or [], arguments)
    emulator = api.Emulator(
        seed=seed, completion=_completion(completion), checks=checks, engine=engine, numerics=numerics
    )
    launched = run(
        emulator,
        text,
        kernel=kernel,
        grid=grid,
        block=block,
        cluster=cluster,
        shared_bytes=shared,
        arguments=arguments,
    )
    for name, path in outputs.items():
        _save(name, path, arguments)
        launched.saved[name] = str(path)
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text(json.dumps(launched.report.timeline()))
        launched.saved["trace"] = str(trace)
    if as_json and launched.fault is None:
        emit_json(to_json(launched))
    elif not as_json:
        _print(launched, arguments)
    if launched.fault is not None:
        raise launched.fault


def run(
    emulator: Any,
    text: str,
    *,
    kernel: str,
    grid: str,
    block: str,
    cluster: str,
    shared_bytes: int,
    arguments: list[KernelArgument],
) -> Launched:
    """Load `text`, fill in what the entry says by itself, launch it; a fault ends the launch, and is in the result."""
    from megamoe_jit.cli.kernel_arguments import check_arguments, is_by_value

    start = time.perf_counter()
    module = emulator.load(text)
    function = find_entry(module.ptx.functions, kernel)
    blocks, threads, ctas = launch_shape(function, grid, block, cluster)
    check_arguments(arguments, function.params, function.name)
    module.prepare(function.name)
    load_s = time.perf_counter() - start
    values = [
        argument.scalar
        if argument.array is None
        else (argument.array.tobytes() if is_by_value(param) else argument.array)
        for argument, param in zip(arguments, function.params, strict=True)
    ]
    start = time.perf_counter()
    fault = None
    try:
        module.launch(function.name, grid=blocks, block=threads, cluster=ctas, shared_bytes=shared_bytes, args=values)
    except EmulatorFault as caught:
        fault = caught
    return Launched(
        kernel=function.name,
        grid=blocks,
        block=threads,
        cluster=ctas,
        shared_bytes=shared_bytes,
        load_s=load_s,
        run_s=time.perf_counter() - start,
        report=module.report,
        fault=fault,
    )


def find_entry(functions: Any, name: str) -> Function:
    """Return the entry called `name`, or the only one; raises ArgumentError with the names there are."""
    if name in functions:
        return functions[name]  # type: ignore[no-any-return]
    if not name and len(functions) == 1:
        return next(iter(functions.values()))  # type: ignore[no-any-return]
    raise ArgumentError(
        f"--kernel {name!r} must be one of the file's entries: {', '.join(functions) or 'there are none'}."
    )


def launch_shape(function: Function, grid: str, block: str, cluster: str) -> tuple[Dim3, Dim3, Dim3]:
    """Return grid, block and cluster; what is not given comes from the entry's directives."""
    required = function.required_block
    if not block and required is None:
        most = f" of at most {function.max_threads} threads" if function.max_threads else ""
        raise ArgumentError(f"{function.name} does not say how large its blocks are; give --block{most}.")
    threads = _dimensions("block", block) if block else required
    ctas = _dimensions("cluster", cluster) if cluster else function.required_cluster or (1, 1, 1)
    assert threads is not None
    return _dimensions("grid", grid), threads, ctas


def to_json(launched: Launched) -> dict[str, object]:
    """Return the launch as one JSON object."""
    report = launched.report
    return {
        "kernel": launched.kernel,
        "grid": launched.grid,
        "block": launched.block,
        "cluster": launched.cluster,
        "shared_bytes": launched.shared_bytes,
        "warp_instructions": report.warp_instructions,
        "instructions": dict(report.instructions.most_common()),
        "tma_bytes": report.tma_bytes,
        "mmas": report.mmas,
        "barrier_waits": report.barrier_waits,
        "findings": [str(finding) for finding in report.findings],
        "printed": report.printed,
        "load_s": launched.load_s,
        "run_s": launched.run_s,
        "saved": launched.saved,
    }


def _import_api() -> Any:
    try:
        return importlib.import_module("megamoe_jit.emulator.api")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("numpy", "llvmlite", "ml_dtypes"):
            raise
        raise UnsupportedError(
            f"the emulator needs {error.name}, which is not installed: pip install 'megamoe-jit[emulator]'"
        ) from error


def _read(path: Path) -> str:
    file = path / "kernel.ptx" if path.is_dir() else path
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{file} cannot be read as PTX text: {error}") from None


def _dimensions(what: str, text: str) -> Dim3:
    if not _DIMENSIONS.fullmatch(text):
        raise ArgumentError(f"--{what} {text!r} must be one to three numbers: 4 or 2,1,1")
    x, y, z = (*map(int, re.split("[,x]", text)), 1, 1)[:3]
    if 0 in (x, y, z):
        raise ArgumentError(f"--{what} {text!r} has a dimension of 0")
    return x, y, z


def _completion(text: str) -> str | float:
    if text in ("lazy", "eager"):
        return text
    try:
        chance = float(text)
    except ValueError:
        chance = -1.0
    if not 0 < chance <= 1:
        raise ArgumentError(f"--completion {text!r} must be lazy, eager, or a probability such as 0.05")
    return chance


def _outputs(texts: list[str], arguments: list[KernelArgument]) -> dict[str, Path]:
    arrays = [argument.name for argument in arguments if argument.array is not None and argument.name]
    outputs: dict[str, Path] = {}
    for text in texts:
        match = _NAMED_PATH.fullmatch(text)
        name, path = (match.group(1), Path(match.group(2))) if match else (Path(text).stem, Path(text))
        if name not in arrays:
            raise ArgumentError(
                f"--save {text!r}: no array among the arguments is called {name!r}; there are "
                f"{', '.join(arrays) or 'none with a name (write --arg NAME=...)'}."
            )
        outputs[name] = path
    return outputs


def _save(name: str, path: Path, arguments: list[KernelArgument]) -> None:
    from megamoe_jit.cli.kernel_arguments import save_array

    for argument in arguments:
        if argument.name == name and argument.array is not None:
            save_array(argument.array, path)


def _print(launched: Launched, arguments: list[KernelArgument]) -> None:
    report = launched.report
    if report.printed:
        print_line(report.printed.rstrip("\n"))
    shape = f"grid {launched.grid}, block {launched.block}"
    shape += f", cluster {launched.cluster}" if launched.cluster != (1, 1, 1) else ""
    shape += f", {format_bytes(launched.shared_bytes)} dynamic shared memory" if launched.shared_bytes else ""
    print_line(f"{launched.kernel}: {shape}", style="bold")
    print_line(
        f"  loaded in {launched.load_s:.2f} s, run in {launched.run_s:.2f} s: {report.warp_instructions} warp "
        f"instructions, {report.mmas} tensor-core instructions, {format_bytes(report.tma_bytes)} by TMA, "
        f"{report.barrier_waits} barrier waits"
    )
    if launched.fault is not None:
        return
    for finding in report.findings:
        print_line(str(finding), style="yellow")
    shown = report.instructions.most_common(_NUM_OPCODES_SHOWN)
    left = len(report.instructions) - len(shown)
    print_table("Warp instructions", ("opcode", "count"), shown, caption=f"and {left} more kinds" if left else "")
    rows = [_describe(argument) for argument in arguments if argument.array is not None and argument.name]
    if rows:
        print_table("Arrays afterwards", ("name", "type", "shape", "values"), rows)
    for name, path in launched.saved.items():
        console.print(f"{name} is in {path}", markup=False, highlight=False, soft_wrap=True)


def _describe(argument: KernelArgument) -> tuple[str, str, str, str]:
    array = argument.array
    assert array is not None
    values = " ".join(str(value) for value in array.reshape(-1)[:_NUM_VALUES_SHOWN])
    more = " ..." if array.size > _NUM_VALUES_SHOWN else ""
    return argument.name, str(array.dtype), "x".join(map(str, array.shape)), values + more
