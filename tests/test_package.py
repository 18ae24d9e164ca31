"""The package as users get it: its names, what importing costs, and the wheel."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import megamoe_jit

ROOT = Path(__file__).resolve().parent.parent


def type_checking_imports() -> dict[str, str]:
    """Return name -> module of the imports in megamoe_jit/__init__.py that only type checkers see."""
    tree = ast.parse((ROOT / "megamoe_jit/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {
        alias.name: node.module or "" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_type_checkers_see_the_names_that_are_exported() -> None:
    assert type_checking_imports() == megamoe_jit._EXPORTS
    public = {name for name in megamoe_jit._EXPORTS if not name.startswith("_")}
    assert set(megamoe_jit.__all__) == {"__version__"} | public


@pytest.mark.parametrize("name", sorted(megamoe_jit._EXPORTS))
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(megamoe_jit, name) is getattr(import_module(megamoe_jit._EXPORTS[name]), name)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'MegaMoe'.*MegaMoeError"):
        _ = megamoe_jit.MegaMoe  # type: ignore[attr-defined]


def test_importing_loads_nothing_heavy_and_is_fast() -> None:
    code = (
        "import json, sys, time\nstart = time.perf_counter()\nimport megamoe_jit\n"
        "elapsed = time.perf_counter() - start\n"
        "heavy = {'torch', 'numpy', 'cuda', 'jinja2', 'typer', 'rich', 'ctypes', 'platformdirs', 'filelock'}\n"
        "print(json.dumps([elapsed, sorted(heavy & set(sys.modules))]))"
    )
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
        for _ in range(3)
    ]
    assert runs[0][1] == []
    assert min(elapsed for elapsed, _ in runs) < 1.5


def test_the_modules_import_in_one_direction(capfd: pytest.CaptureFixture[str]) -> None:
    result = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_the_targets_of_the_makefile_are_those_that_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets == {"setup", "demo", "test", "lint", "golden", "bench", "tables", "clean"}
    named = set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text()))
    assert targets - named == {"clean"}
    assert named <= targets


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an sdist, as an index serves it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (sdist,) = folder.glob("*.tar.gz")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(sdist),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_is_pure_and_carries_every_template(wheel: Path) -> None:
    assert wheel.name == f"megamoe_jit-{megamoe_jit.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "templates").rglob("*") if path.is_file()}
    assert {
        name.removeprefix("megamoe_jit/") for name in names if name.startswith("megamoe_jit/templates/")
    } == templates
    assert "megamoe_jit/py.typed" in names
    assert not [name for name in names if name.endswith((".so", ".pyd", ".pyc"))]
    assert {name.split("/")[0] for name in names} == {"megamoe_jit", f"megamoe_jit-{megamoe_jit.__version__}.dist-info"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh virtual environment with the wheel; dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    command = [
        sys.executable,
        "-m",
        "pip",
        f"--python={folder / 'bin/python'}",
        "install",
        "--quiet",
        "--no-deps",
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    # A plain path: .pth files of this environment (an editable install of the checkout) are not read through it.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run_installed(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """Run a command away from the checkout and return what it prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MEGAMOE_JIT_"))}
    result = subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_installed_wheel_renders_its_own_templates(installed: Path, tmp_path: Path) -> None:
    code = (
        "from megamoe_jit.recipes import Problem, plan_kernels\nfrom megamoe_jit.jit.render import render\n"
        "from megamoe_jit.jit.places import templates_dir\n"
        "problem = Problem(hidden=512, intermediate=512, num_experts=8, num_topk=2, max_tokens_per_rank=128)\n"
        "kernel = plan_kernels(problem, 'fp8_nvfp4', 'sm_90a')[0]\n"
        "print(templates_dir(), kernel.kernel_name in render(kernel).flatten())"
    )
    folder, rendered = run_installed([installed / "python", "-c", code], tmp_path).split()
    assert rendered == "True"
    assert Path(folder).is_relative_to(installed.parent)


def test_the_console_script_of_an_installed_wheel_uses_the_users_cache(installed: Path, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    version = json.loads(
        run_installed([installed / "megamoe-jit", "version", "--json"], tmp_path, **home).splitlines()[-1]
    )
    assert version["megamoe_jit"] == megamoe_jit.__version__
    path = json.loads(
        run_installed([installed / "megamoe-jit", "cache", "path", "--json"], tmp_path, **home).splitlines()[-1]
    )
    assert Path(path["path"]).is_relative_to(tmp_path / "cache")
