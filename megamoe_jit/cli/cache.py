"""`megamoe-jit cache`: what the kernel cache holds, and moving it elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megamoe_jit.cli.output import JsonOption, console, emit_json, format_bytes, print_line, print_table
from megamoe_jit.errors import CacheError

if TYPE_CHECKING:
    from megamoe_jit.jit.cache import KernelCache

cache_app = typer.Typer(help="List, verify, clear, pack and unpack the kernel cache.", no_args_is_help=True)

ArchiveArgument = Annotated[Path, typer.Argument(help="A .tar or .tar.gz file.")]


@cache_app.command("list")
def list_entries(*, as_json: JsonOption = False) -> None:
    """List the kernels in the cache, and say for how many layers there are tuned choices."""
    from megamoe_jit.jit.tuned import record_paths

    cache = _cache()
    tuned = [path.name for path in record_paths(cache)]
    entries = cache.entries()
    total = sum(entry.size_bytes for entry in entries)
    if as_json:
        record = {"path": str(cache.path), "bytes": total, "entries": [asdict(entry) for entry in entries]}
        emit_json({**record, "tuned": tuned})
        return
    rows = [
        (
            entry.name,
            entry.resources and entry.resources.registers,
            entry.compile_s,
            format_bytes(entry.size_bytes),
            f"{entry.last_used:%Y-%m-%d %H:%M}",
            entry.damage or "whole",
        )
        for entry in entries
    ]
    columns = ("kernel", "registers", "compile s", "size", "last used (UTC)", "state")
    print_table(f"{cache.path}: {len(entries)} kernels, {format_bytes(total)}", columns, rows)
    if tuned:
        print_line(f"tuned choices for {len(tuned)} layers")


@cache_app.command()
def verify(*, as_json: JsonOption = False) -> None:
    """Check every digest; damaged entries are set aside, and built again when next needed. Tuned choices likewise."""
    from megamoe_jit.jit.tuned import verify_records

    cache = _cache()
    entries, damaged_tuned = cache.verify(), verify_records(cache)
    damaged = [entry for entry in entries if entry.damage is not None]
    if as_json:
        record = {
            "path": str(cache.path),
            "whole": len(entries) - len(damaged),
            "damaged": [asdict(entry) for entry in damaged],
            "damaged_tuned": damaged_tuned,
        }
        emit_json(record)
    else:
        for entry in damaged:
            print_line(f"damaged, set aside: {entry.name}: {entry.damage}")
        for name in damaged_tuned:
            print_line(f"damaged, set aside: tuned choices {name}")
        console.print(f"{len(entries) - len(damaged)} kernels are whole, {len(damaged)} were damaged", highlight=False)
    if damaged or damaged_tuned:
        raise typer.Exit(1)


@cache_app.command()
def clear(*, as_json: JsonOption = False) -> None:
    """Remove every kernel and tuned choice; what is needed again is compiled again."""
    cache = _cache()
    count = cache.clear()
    if as_json:
        emit_json({"path": str(cache.path), "removed": count})
    else:
        print_line(f"{count} kernels removed from {cache.path}")


@cache_app.command()
def path(*, as_json: JsonOption = False) -> None:
    """Print the folder that is in use."""
    folder = str(_cache().path)
    if as_json:
        emit_json({"path": folder})
    else:
        print(folder)


@cache_app.command()
def pack(archive: ArchiveArgument, *, as_json: JsonOption = False) -> None:
    """Write all kernels and tuned choices into one file, for machines that cannot or may not compile."""
    from megamoe_jit.jit.archive import pack as pack_archive

    packed = pack_archive(_cache(), archive)
    if not packed:
        archive.unlink(missing_ok=True)
        raise CacheError(
            f"the cache {_cache().path} holds no kernel to pack. Build some with `megamoe-jit warmup --preset ...`."
        )
    size = archive.stat().st_size
    if as_json:
        emit_json({"archive": str(archive), "bytes": size, "packed": packed})
    else:
        print_line(f"{len(packed)} kernels packed into {archive} ({format_bytes(size)})")


@cache_app.command()
def unpack(archive: ArchiveArgument, *, as_json: JsonOption = False) -> None:
    """Add the kernels and tuned choices of an archive to the cache."""
    from megamoe_jit.jit.archive import unpack as unpack_archive

    cache = _cache()
    unpacked = unpack_archive(archive, cache)
    if as_json:
        emit_json({"path": str(cache.path), **asdict(unpacked)})
        return
    print_line(f"{len(unpacked.added)} kernels added to {cache.path}, {len(unpacked.present)} were there")
    if unpacked.tuned:
        print_line(f"tuned choices for {len(unpacked.tuned)} layers added where there were none")


def _cache() -> KernelCache:
    from megamoe_jit.jit.cache import default_cache

    return default_cache()
