"""`megamoe-jit inspect`: what a kernel in the cache is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megamoe_jit.cli.output import JsonOption, emit_json, format_bytes, print_line, print_table
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


def tma_boxes(report: KernelReport) -> list[str]:
    """Return the boxes of the kernel's tensor maps in elements, outermost first: "acts_map 8 x 128"."""
    return [f"{name} {' x '.join(map(str, box))}" for name, *box in report.template_values.get("tma_boxes", ())]


def _print_report(folder: Path, report: KernelReport) -> None:
    resources = report.resources
    print_line(f"{report.kernel_name} for {report.arch}, from {report.entry}", style="bold")
    print_line(f"  {folder}")
    print_line(
        f"  {resources.registers} registers, {resources.static_smem} B static shared memory; spills "
        f"{resources.spill_stores} B stored, {resources.spill_loads} B loaded; stack {resources.stack_frame} B"
    )
    print_line(f"  PTX {format_bytes(report.ptx_bytes)}, cubin {format_bytes(report.cubin_bytes)}")
    print_line(f"  compiled in {report.compile_s:.2f} s by NVRTC {report.nvrtc} with {' '.join(report.flags)}")
    print_line(f"  MMA shapes: {', '.join(report.mma_shapes) or 'none'}")
    for opcode, count in report.mmas.items():
        print_line(f"  {count} x {opcode}")
    for box in tma_boxes(report):
        print_line(f"  TMA box: {box}")
    print_table("Parameters", ("name", "value"), list(report.parameters.items()))
    shown = list(report.instructions.items())[:_NUM_INSTRUCTIONS_SHOWN]
    left = len(report.instructions) - len(shown)
    caption = f"and {left} more kinds (--json has all)" if left else ""
    print_table("PTX instructions", ("instruction", "count"), shown, caption=caption)
