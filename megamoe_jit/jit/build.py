"""From a kernel description to a built kernel: from memory, from disk, or through NVRTC."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from megamoe_jit import env
from megamoe_jit.errors import CompileError, MissingKernelError
from megamoe_jit.jit.built import BuiltKernel, Origin
from megamoe_jit.jit.cache import KernelCache, default_cache
from megamoe_jit.jit.compile import CompileOptions, compile_source, nvrtc_version
from megamoe_jit.jit.dump import dump, dump_dir
from megamoe_jit.jit.entry import KernelRecord, json_value
from megamoe_jit.jit.key import KernelKey, kernel_key
from megamoe_jit.jit.render import RenderedSource, render
from megamoe_jit.jit.source import KernelDescription

logger = logging.getLogger("megamoe_jit.build")


def build(
    description: KernelDescription,
    *,
    options: CompileOptions | None = None,
    cache: KernelCache | None = None,
    templates: Sequence[Path] | None = None,
) -> BuiltKernel:
    """Return the kernel of `description`, compiled at most once by all processes that share the cache.

    `options` default to CompileOptions(lineinfo=MEGAMOE_JIT_LINEINFO); `cache` to `default_cache()`; `templates`
    (folders, the first match wins) to the package's. A repeated call finds the kernel in memory and touches no disk.
    Needs no GPU.

    Raises CompileError when a template does not render or NVRTC refuses it, MissingKernelError when
    MEGAMOE_JIT_CACHE_ONLY forbids to compile what the cache lacks, UnsupportedError without NVRTC, ArgumentError for a
    bad description or environment.
    """
    if cache is None:
        cache = default_cache()
    roots = None if templates is None else tuple(templates)
    # By its raw text: parsing costs more than all the rest of a hit.
    request = (os.environ.get("MEGAMOE_JIT_LINEINFO") if options is None else options, roots)
    return cache.recall(description, request) or _build(description, options, cache, roots, request)


def _build(
    description: KernelDescription,
    options: CompileOptions | None,
    cache: KernelCache,
    roots: tuple[Path, ...] | None,
    request: tuple[object, ...],
) -> BuiltKernel:
    start = time.perf_counter()
    env.configure_logging()
    options = options or CompileOptions(lineinfo=env.LINEINFO.get())
    try:
        rendered = render(description, templates=roots)
    except CompileError as error:
        raise CompileError(f"{error}\n{_parameters(description)}", errors=error.errors) from error.__cause__
    key = kernel_key(
        rendered,
        kernel_name=description.kernel_name,
        arch=description.arch,
        flags=options.flags(description.arch),
        nvrtc=nvrtc_version(),
    )
    built = cache.recall_key(key)
    if built is None:
        if (record := cache.load(key)) is not None:
            built = cache.remember(_built(record, Origin.DISK, cache.entry_path(key), start))
        else:
            built = _compile_once(description, rendered, options, key, cache, start)
        logger.info("%s %s in %.3f s", built.origin.value, key, built.build_s)
        if (folder := dump_dir(cache)) is not None:
            dump(built, folder)
    cache.remember_request(description, request, built)
    return built


def _built(record: KernelRecord, origin: Origin, path: Path | None, start: float) -> BuiltKernel:
    return BuiltKernel(record=record, origin=origin, path=path, build_s=time.perf_counter() - start)


def _compile_once(
    description: KernelDescription,
    rendered: RenderedSource,
    options: CompileOptions,
    key: KernelKey,
    cache: KernelCache,
    start: float,
) -> BuiltKernel:
    if env.CACHE_ONLY.get():
        raise _missing(key, cache)
    with cache.lock(key.entry_name):
        # While this thread waited for the lock, another thread or another process may have built the kernel.
        if (built := cache.recall_key(key)) is not None:
            return built
        if (record := cache.load(key, set_aside=True)) is not None:
            return cache.remember(_built(record, Origin.DISK, cache.entry_path(key), start))
        record = _compile(description, rendered, options, key, cache)
        return cache.remember(_built(record, Origin.COMPILED, cache.publish(record), start))


def _compile(
    description: KernelDescription,
    rendered: RenderedSource,
    options: CompileOptions,
    key: KernelKey,
    cache: KernelCache,
) -> KernelRecord:
    try:
        artifact = compile_source(rendered, description.arch, options, kernel_name=description.kernel_name)
    except CompileError as error:
        raise _explain(error, description, cache.keep_refused(key, rendered, error.log)) from None
    return KernelRecord(
        key=key,
        artifact=artifact,
        source=rendered.flatten(),
        entry=description.entry,
        flags=options.flags(description.arch),
        nvrtc=nvrtc_version(),
        parameters=dict(description.constants()),
        template_values=json_value(dict(description.template_values())),
    )


def _explain(error: CompileError, description: KernelDescription, kept_in: Path | None) -> CompileError:
    where = (
        "could not be kept" if kept_in is None else f"is kept in {kept_in} (kernel.cu has all of it, log.txt the log)"
    )
    message = (
        f"{error}\n{_parameters(description)}\nThe rendered source {where}.\n"
        "Mend the template at the line named first, or choose parameters that it can take."
    )
    return CompileError(message, errors=error.errors, log=error.log, source_path=kept_in)


def _parameters(description: KernelDescription) -> str:
    return "Parameters: " + (", ".join(f"{name}={value}" for name, value in description.constants().items()) or "none")


def _missing(key: KernelKey, cache: KernelCache) -> MissingKernelError:
    similar = sum(folder.name.startswith(f"{key.kernel_name}-{key.arch}-") for folder in cache.folders())
    return MissingKernelError(
        f"MEGAMOE_JIT_CACHE_ONLY is set, and the cache {cache.path} does not hold {key} whole. It has {similar} others "
        f"of {key.kernel_name} for {key.arch}: a kernel is found when its parameters, the package's version and NVRTC "
        f"{'.'.join(map(str, nvrtc_version()))} are those that it was built with. Fill the cache with "
        "`megamoe-jit warmup` or `megamoe-jit cache unpack`, or unset MEGAMOE_JIT_CACHE_ONLY to compile here."
    )
