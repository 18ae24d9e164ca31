"""MEGAMOE_JIT_DUMP: the files of every kernel that is built or loaded, SASS among them, in one folder to look at."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megamoe_jit import env
from megamoe_jit.jit.built import BuiltKernel
from megamoe_jit.jit.cache import KernelCache
from megamoe_jit.jit.inspect import inspect_kernel

logger = logging.getLogger("megamoe_jit.dump")

_DISASSEMBLE_TIMEOUT_S = 120.0


def dump_dir(cache: KernelCache) -> Path | None:
    """Return the folder that MEGAMOE_JIT_DUMP and MEGAMOE_JIT_DUMP_DIR ask to dump to now, or None."""
    folder = env.DUMP_DIR.get()
    if folder is not None:
        return folder
    if not env.DUMP.get():
        return None
    return Path.cwd() / "dump" if cache.path is None else cache.path / "dump"


def dump(built: BuiltKernel, folder: Path) -> list[Path]:
    """Write .cu, .ptx, .cubin, .sass (where a disassembler is found) and .json of `built`; return their paths.

    Logs one line that says where. A folder that cannot be written is a warning, since the kernel itself is fine.
    """
    report, disassembly = inspect_kernel(built.record).to_json(), disassemble(built.cubin)
    report["sass"] = "written" if disassembly is not None else "no nvdisasm found, or none that reads this cubin"
    files = {
        ".cu": built.record.source.encode(),
        ".ptx": built.ptx.encode(),
        ".cubin": built.cubin,
        ".json": (json.dumps(report, indent=1) + "\n").encode(),
    }
    if disassembly is not None:
        files[".sass"] = disassembly.encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [_replace(folder / f"{built.key.entry_name}{suffix}", data) for suffix, data in files.items()]
    except OSError as error:
        logger.warning("kernel %s cannot be dumped to %s: %s", built.key, folder, error)
        return []
    logger.info("dumped %s/%s{%s}", folder, built.key.entry_name, ",".join(files))
    return paths


def _replace(path: Path, data: bytes) -> Path:
    """Write `path` in one step: several processes may dump the same kernel."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    Path(temporary).replace(path)
    return path


def disassemble(cubin: bytes) -> str | None:
    """Return the SASS of `cubin` with source positions, or None when no disassembler is found that can read it."""
    for tool in find_nvdisasm():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            try:
                done = subprocess.run(
                    [str(tool), "--print-line-info", file.name],
                    capture_output=True, text=True, errors="replace", timeout=_DISASSEMBLE_TIMEOUT_S, check=False,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                logger.debug("%s failed: %s", tool, error)
                continue
        if done.returncode == 0:
            return done.stdout
        logger.debug("%s refused the cubin: %s", tool, done.stderr.strip())
    return None


def find_disassembler() -> Path | None:
    """Return the nvdisasm that dumps try first, or None."""
    return next(find_nvdisasm(), None)


def find_nvdisasm() -> Iterator[Path]:
    """Yield the nvdisasm programs found on PATH, in CUDA_HOME or CUDA_PATH, and in the wheel nvidia-cuda-nvdisasm."""
    if (found := shutil.which("nvdisasm")) is not None:
        yield Path(found)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if (home := os.environ.get(variable)) and (tool := Path(home) / "bin" / "nvdisasm").is_file():
            yield tool
    from importlib import metadata

    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == "nvdisasm" and (tool := Path(str(file.locate()))).is_file():
            yield tool
