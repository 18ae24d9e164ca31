"""`megamoe-jit inspect-sf`: which row and K group a byte of packed scale factors belongs to, and where it goes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megamoe_jit.cli.output import JsonOption, emit_json, print_line
from megamoe_jit.errors import ArgumentError

if TYPE_CHECKING:
    from megamoe_jit.layouts.sf_places import SfPlace, SfPlaces


def inspect_sf(
    *,
    recipe: Annotated[str, typer.Option(help="A Blackwell recipe.")] = "nvfp4_nvfp4",
    layer: Annotated[Literal["l1", "l2"], typer.Option(help="l1 (gate and up) or l2 (down).")] = "l1",
    hidden: Annotated[int, typer.Option(help="Model width.")] = 4096,
    intermediate: Annotated[int, typer.Option(help="Expert width after gating.")] = 2048,
    row: Annotated[int | None, typer.Option(help="Checkpoint row (L1: gate rows, then up rows).")] = None,
    group: Annotated[int | None, typer.Option(help="Group along K that shares the scale factor.")] = None,
    byte: Annotated[int | None, typer.Option(help="Byte, instead of row and group: see --stage.")] = None,
    stage: Annotated[
        Literal["checkpoint", "packed", "shared", "tensor"], typer.Option(help="What --byte counts in.")
    ] = "packed",
    tile: Annotated[int, typer.Option(help="For --stage shared and tensor: block of 128 packed rows.")] = 0,
    k_stage: Annotated[int, typer.Option(help="For --stage shared and tensor: stage along K.")] = 0,
    lane: Annotated[int, typer.Option(help="For --stage tensor.")] = 0,
    column: Annotated[int, typer.Option(help="For --stage tensor: after the operand's first.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Follow one scale factor from the checkpoint to tensor memory, or find what lies at a byte of any stage."""
    places = places_of(recipe, layer, hidden, intermediate)
    if byte is None:
        place: SfPlace | None = places.of(row or 0, group or 0)
    elif row is not None or group is not None:
        raise ArgumentError("--byte was given beside --row or --group. Give a byte of a stage, or a row and a group.")
    elif stage == "tensor":
        place = places.at_tensor(tile, k_stage, lane, column, byte)
    elif stage == "shared":
        place = places.at_shared(tile, k_stage, byte)
    else:
        place = places.at_checkpoint(byte) if stage == "checkpoint" else places.at_packed(byte)
    if as_json:
        emit_json({"place": None if place is None else asdict(place)})
    elif place is None:
        print_line("padding: no row or group of the checkpoint")
    else:
        _print_place(places, place)


def places_of(recipe: str, layer: str, hidden: int, intermediate: int) -> SfPlaces:
    """Return the places of a layer's scale factors; raises ArgumentError for a recipe without block scaling."""
    from megamoe_jit.layouts.sf_places import SfPlaces
    from megamoe_jit.layouts.weights_sm100 import sm100_layouts
    from megamoe_jit.recipes.sm100_gemm import MMA_KINDS

    kind = MMA_KINDS.get(recipe)
    if kind is None:
        raise ArgumentError(
            f"recipe={recipe!r} has no scale factors in tensor memory. Use one of {', '.join(MMA_KINDS)}."
        )
    layouts = sm100_layouts(hidden=hidden, intermediate=intermediate, gated=True, gran_k=kind.gran_k)
    return SfPlaces(layout=layouts[0 if layer == "l1" else 1], block_k=kind.block_k, mma_k=kind.mma_k)


def atom_picture(in_tile: int, byte: int) -> list[str]:
    """Return lines that draw an atom, 16 bytes a line, with the scale factor of row `in_tile` of 128 marked."""
    line, block = in_tile % 32, in_tile // 32
    lines = ["  line  bytes 0-3     4-7          8-11         12-15        (4 groups of one row each)"]
    for shown in sorted({0, 1, line, 31}):
        cells = []
        for i in range(4):
            codes = "".join("#" if (shown, i, j) == (line, block, byte) else "." for j in range(4))
            cells.append(f"row {i * 32 + shown:3d} {codes}")
        lines.append(f"  {shown:4d}  " + " ".join(cells))
        if shown + 1 not in {0, 1, line, 31} and shown < 31:
            lines.append("   ...")
    return lines


def _print_place(places: SfPlaces, place: SfPlace) -> None:
    layout, tensor = places.layout, place.tensor
    k = place.group * layout.gran_k
    branch = "" if layout.branches == 1 else f" ({'gate' if place.row < layout.rows else 'up'})"
    print_line(f"row {place.row}{branch}, group {place.group}: K {k} to {k + layout.gran_k - 1}", style="bold")
    print_line(f"  checkpoint      byte {place.checkpoint_byte} of [{layout.checkpoint_rows}, {layout.groups}]")
    print_line(f"  packed          row {place.packed_row}: tile {place.tile}, row {place.packed_row % 128} of 128")
    print_line(
        f"                  word {place.group // 4}, byte {place.group % 4} of it; byte {place.packed_byte} of all"
    )
    print_line(f"  shared memory   K stage {place.k_stage}: byte {place.shared_byte} of the stage's scale factors")
    print_line(
        f"  tensor memory   lane {tensor.lane} (and + 32, + 64, + 96), column + {tensor.column}, byte {tensor.byte}"
    )
    print_line(f"  read by         MMA {tensor.mma} of the stage, with scale factor id {tensor.sf_id}")
    print_line("")
    print_line("The atom that it lies in (# is its byte):")
    for line in atom_picture(place.packed_row % 128, tensor.byte):
        print_line(line)
