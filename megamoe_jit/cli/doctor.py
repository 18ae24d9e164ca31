"""`megamoe-jit doctor`: what this machine has, and for each recipe whether and how it runs here."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata

import typer

import megamoe_jit
from megamoe_jit.cli.output import JsonOption, console, emit_json, format_bytes, print_line
from megamoe_jit.cli.target import device_arch
from megamoe_jit.errors import MegaMoeError


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing looked at: `state` is "ok", "absent" (fine, but something will not run here) or "broken"."""

    name: str
    state: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeReport:
    """Whether and how a recipe runs on this machine, in plain words.

    `runs` is "kernel", "emulator" or "reference"; `computes` says what is multiplied by what, and what is rounded.
    """

    recipe: str
    runs: str
    compiles_for: tuple[str, ...]
    detail: str
    computes: str


def doctor(*, as_json: JsonOption = False) -> None:
    """Say what this machine has, and for each recipe whether and how it runs here."""
    checks = run_checks()
    arch = device_arch()
    recipes = report_recipes(arch)
    healthy = all(check.state != "broken" for check in checks)
    if as_json:
        emit_json(
            {
                "ok": healthy,
                "arch": arch,
                "checks": [asdict(check) for check in checks],
                "recipes": [asdict(report) for report in recipes],
            }
        )
    else:
        _print_report(checks, recipes, arch)
    if not healthy:
        raise typer.Exit(1)


def run_checks() -> list[Check]:
    """Look at everything a kernel needs, in the order in which it is needed."""
    looks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("megamoe_jit", _look_at_package),
        ("torch", _look_at_torch),
        ("NVRTC", _look_at_nvrtc),
        ("CUDA headers", _look_at_headers),
        ("driver", _look_at_driver),
        ("GPU", _look_at_gpu),
        ("emulator", _look_at_emulator),
        ("disassembler", _look_at_disassembler),
        ("cache", _look_at_cache),
        ("environment", _look_at_environment),
    )
    return [_look(name, look) for name, look in looks]


def _look(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except (MegaMoeError, ImportError, OSError) as error:
        return Check(name=name, state="broken", detail=str(error))


def report_recipes(arch: str | None) -> list[RecipeReport]:
    """Return for each recipe how it runs on a GPU of target `arch` (None: no GPU)."""
    from megamoe_jit.recipes import RECIPES

    return [_report(recipe, arch) for recipe in RECIPES]


def _report(recipe: str, arch: str | None) -> RecipeReport:
    from megamoe_jit.cli.support import support_of
    from megamoe_jit.recipes import get_recipe
    from megamoe_jit.runtime.backend import missing_packages

    chosen = get_recipe(recipe)
    compiles_for = tuple(target for target in chosen.targets if support_of(recipe, target).has_kernel)
    operands = f"{chosen.weights.element.value} weights x {chosen.l1_acts.element.value} activations"
    computes = f"{operands}, {chosen.mma}. {chosen.loss}"
    here = f"this GPU ({arch}) has no kernel for it" if arch else "there is no GPU here"
    if arch in compiles_for:
        runs, detail = "kernel", f"one fused {arch} kernel on this GPU"
    elif compiles_for and not missing_packages():
        runs, detail = "emulator", f"the emulator, kernels for {', '.join(compiles_for)}; {here}"
    elif compiles_for:
        runs, detail = "reference", f"the reference; {here}, but kernels for {', '.join(compiles_for)} compile"
    else:
        runs, detail = "reference", f"the reference; no kernel exists yet for {', '.join(chosen.targets)}"
    return RecipeReport(recipe=recipe, runs=runs, compiles_for=compiles_for, detail=detail, computes=computes)


def _look_at_package() -> Check:
    where = "checkout" if _checkout() else "installed package"
    detail = f"{megamoe_jit.__version__} ({where}), Python {platform.python_version()} on {platform.machine()}"
    return Check(name="megamoe_jit", state="ok", detail=detail)


def _checkout() -> bool:
    from megamoe_jit.jit.places import checkout_root

    return checkout_root() is not None


def _look_at_torch() -> Check:
    import torch

    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Check(name="torch", state="ok", detail=f"{torch.__version__}, {cuda}")


def _look_at_nvrtc() -> Check:
    from megamoe_jit.jit.compile import nvrtc_version

    version = ".".join(map(str, nvrtc_version()))
    bindings = metadata.version("cuda-bindings")
    return Check(name="NVRTC", state="ok", detail=f"{version}, called through cuda-bindings {bindings}")


def _look_at_headers() -> Check:
    from megamoe_jit.errors import UnsupportedError
    from megamoe_jit.jit.headers import find_headers

    need = "the package's kernels need none, own templates may"
    try:
        return Check(name="CUDA headers", state="ok", detail=f"{find_headers()} ({need})")
    except UnsupportedError:
        return Check(name="CUDA headers", state="absent", detail=f"not found ({need})")


def _look_at_driver() -> Check:
    from megamoe_jit.runtime.device import driver_version
    from megamoe_jit.runtime.driver import find_driver

    if find_driver() is None:
        return Check(
            name="driver",
            state="absent",
            detail="no NVIDIA driver: kernels compile here, and run in the emulator",
        )
    return Check(name="driver", state="ok", detail="serves CUDA up to {}.{}".format(*driver_version()))


def _look_at_gpu() -> Check:
    import torch

    from megamoe_jit.runtime.device import device_info

    if not torch.cuda.is_available():
        why = "torch sees none" if torch.version.cuda else "torch is a CPU build"
        return Check(name="GPU", state="absent", detail=f"none ({why})")
    infos = [device_info(index) for index in range(torch.cuda.device_count())]
    described = [f"{info}, {info.num_sms} SMs, {format_bytes(info.memory_bytes)}" for info in infos]
    return Check(name="GPU", state="ok", detail="; ".join(described))


def _look_at_emulator() -> Check:
    from megamoe_jit.runtime.backend import missing_packages
    from megamoe_jit.runtime.emulated import EmulatorSettings

    missing = missing_packages()
    if missing:
        need = f"needs {' and '.join(missing)} (pip install 'megamoe-jit[emulator]')"
        return Check(name="emulator", state="absent", detail=f"{need}: without a GPU, layers run on the reference")
    settings = EmulatorSettings.from_environment()
    detail = f"a device of {settings.num_sms} SMs, completion {settings.completion}, checks {settings.checks}"
    return Check(name="emulator", state="ok", detail=detail)


def _look_at_disassembler() -> Check:
    from megamoe_jit.jit.dump import find_disassembler

    path = find_disassembler()
    if path is None:
        return Check(
            name="disassembler", state="absent", detail="none: dumps have no SASS (pip install 'megamoe-jit[sass]')"
        )
    return Check(name="disassembler", state="ok", detail=str(path))


def _look_at_cache() -> Check:
    from megamoe_jit.jit.cache import default_cache

    cache = default_cache()
    assert cache.path is not None, "the default cache has a folder"
    entries = cache.entries()
    size = format_bytes(sum(entry.size_bytes for entry in entries))
    nearest = next(folder for folder in (cache.path, *cache.path.parents) if folder.exists())
    access = "writable" if os.access(nearest, os.W_OK) else "read-only: kernels are kept in memory"
    return Check(name="cache", state="ok", detail=f"{cache.path} ({access}): {len(entries)} kernels, {size}")


def _look_at_environment() -> Check:
    from megamoe_jit import env

    env.check_environment()
    given = [f"{name}={os.environ[name]}" for name in env.VARIABLES if name in os.environ]
    return Check(name="environment", state="ok", detail=", ".join(given) or "no MEGAMOE_JIT_* variable is set")


def _print_report(checks: list[Check], recipes: list[RecipeReport], arch: str | None) -> None:
    colours = {"ok": "green", "absent": "yellow", "broken": "bold red"}
    for check in checks:
        console.print(f"[{colours[check.state]}]{check.state:>7}[/]  [bold]{check.name}[/]:", end=" ")
        print_line(check.detail)
    console.print(f"\nHow each recipe runs here ({arch or 'no GPU'})", style="bold")
    for report in recipes:
        colour = "green" if report.runs == "kernel" else "yellow"
        console.print(f"  [{colour}]{report.recipe}[/]:", end=" ", highlight=False)
        print_line(report.detail)
        print_line(f"    {report.computes}", style="dim")
