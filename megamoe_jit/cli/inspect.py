"""`megamoe-jit inspect`: what a kernel in the cache is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megamoe_jit.cli.output import JsonOption, console, emit_json, format_bytes, print_table
from megamoe_jit.errors import ArgumentError

if TYPE_CHECKING:
    from megamoe_jit.jit.inspect import KernelReport

_NUM_INSTRUCTIONS_SHOWN = 24


def inspect(
    kernel: Annotated[
        str, typer.Argument(help="Start of an entry's name or of its digest (see `cache list`), or an entry's folder.")
    ] = "",
    *,
    as_json: JsonOption = False,
) -> None:
    """Show parameters, resources, instructions, TMA boxes and MMA shapes of a cached kernel (the last one used)."""
    from megamoe_jit.jit.entry import read_entry
    from megamoe_jit.jit.inspect import inspect_kernel

    folder = find_entry(kernel)
    report = inspect_kernel(read_entry(folder))
    if as_json:
        emit_json({"path": str(folder), **report.to_json()})
    else:
        _print_report(folder, report)


def find_entry(name: str) -> Path:
    """Return the folder of the one entry that `name` means; raises ArgumentError when there is none, or several."""
    from megamoe_jit.jit.cache import default_cache

    if name and (Path(name) / "meta.json").is_file():
        return Path(name)
    cache = default_cache()
    folders = cache.folders()
    if not folders:
        raise ArgumentError(
            f"the cache {cache.path} holds no kernel. Build some with `megamoe-jit warmup --preset ...`."
        )
    if not name:
        return max(folders, key=lambda folder: folder.stat().st_mtime)
    found = [
        folder for folder in folders if folder.name.startswith(name) or folder.name.rpartition("-")[2].startswith(name)
    ]
    if len(found) != 1:
        which = (
            "none begins so"
            if not found
            else f"{len(found)} begin so: " + ", ".join(folder.name for folder in found[:5])
        )
        raise ArgumentError(
            f"kernel={name!r} must mean one of {len(folders)} cached kernels, and {which}. See `cache list`."
        )
    return found[0]


def _print_report(folder: Path, report: KernelReport) -> None:
    resources = report.resources
    console.print(f"[bold]{report.kernel_name}[/] for {report.arch}, from {report.entry}", highlight=False)
    console.print(f"  {folder}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"  {resources.registers} registers, {resources.static_smem} B static shared memory, spills "
        f"{resources.spill_stores} B stored and {resources.spill_loads} B loaded, stack {resources.stack_frame} B; "
        f"PTX {format_bytes(report.ptx_bytes)}, cubin {format_bytes(report.cubin_bytes)}; "
        f"compiled in {report.compile_s:.2f} s by NVRTC {report.nvrtc}",
        highlight=False,
    )
    console.print(f"  MMA shapes: {', '.join(report.mma_shapes) or 'none'}", highlight=False)
    print_table("Parameters", ("name", "value"), list(report.parameters.items()))
    shown = list(report.instructions.items())[:_NUM_INSTRUCTIONS_SHOWN]
    left = len(report.instructions) - len(shown)
    print_table(
        "PTX instructions",
        ("instruction", "count"),
        shown,
        caption=f"and {left} more kinds (--json has all)" if left else "",
    )
