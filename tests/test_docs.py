"""Pages are held to the code: their examples run, the files that they name exist, and no public name is left out."""

from __future__ import annotations

import re
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import megamoe_jit
from megamoe_jit import Problem, errors, get_arch, get_recipe
from megamoe_jit.recipes.sm90 import config_for_tile
from megamoe_jit.recipes.waits import WAITS
from tests.marks import needs_sm90

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEMPLATES = ROOT / "templates"
ALL_PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), TEMPLATES / "README.md"]
CPU, GPU = "python", "python gpu"
_FENCE = re.compile(r"^( *)```(.*)$")
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"`((?:benchmarks|cache|docs|examples|megamoe_jit|templates|tests)/[\w./-]*)`")


_TEST = re.compile(r"`(test_\w+)`")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block of a page: what stands behind the fence, the number of its first line, and its text."""

    kind: str
    line: int
    text: str


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of `page`; each fence closes."""
    blocks: list[Block] = []
    opened: tuple[str, int] | None = None
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if (fence := _FENCE.match(line)) is None:
            continue
        if opened is None:
            opened = fence[2].strip(), number
        else:
            assert not fence[2].strip(), f"{name_of(page)}:{number} closes the block of line {opened[1]} with words"
            text = "\n".join(lines[opened[1] : number - 1])
            blocks.append(Block(kind=opened[0], line=opened[1] + 1, text=text))
            opened = None
    assert opened is None, f"{name_of(page)}:{opened[1] if opened else 0} opens a block that does not end"
    return blocks


def run(page: Path, kinds: tuple[str, ...]) -> int:
    """Run the page's blocks of these kinds in one module, so that tracebacks name page and line; returns how many."""
    module = types.ModuleType("page")
    blocks = [block for block in blocks_of(page) if block.kind in kinds]
    for block in blocks:
        exec(compile("\n" * (block.line - 1) + block.text, name_of(page), "exec"), module.__dict__)
    return len(blocks)


def with_blocks(kind: str) -> list[Path]:
    return [page for page in PAGES if any(block.kind == kind for block in blocks_of(page))]


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples may leave files and kernels: not in the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEGAMOE_JIT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("page", with_blocks(CPU), ids=name_of)
def test_the_examples_of_a_page_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, on every machine: the README's layer in the emulator, the others' many on the reference."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if page.name != "README.md":
        monkeypatch.setenv("MEGAMOE_JIT_BACKEND", "reference")
    assert run(page, (CPU,))


@needs_sm90
@pytest.mark.parametrize("page", with_blocks(GPU), ids=name_of)
def test_the_examples_of_a_page_run_on_a_gpu(page: Path) -> None:
    assert run(page, (CPU, GPU))


def test_examples_are_found_and_marked_as_they_run() -> None:
    assert {"README.md", "docs/api.md", "docs/adding.md"} <= {name_of(page) for page in with_blocks(CPU)}
    assert with_blocks(GPU)
    for page in ALL_PAGES:
        for block in blocks_of(page):
            assert block.kind in ("", CPU, GPU, "cuda", "sh"), f"{name_of(page)}:{block.line}: {block.kind}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_and_named_files_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    assert [link for link in _LINK.findall(text) if not (page.parent / link).exists()] == []
    assert [path for path in _PATH.findall(text) if not (ROOT / path).exists()] == []


def test_tests_that_pages_name_exist() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)\(", sources, re.MULTILINE))
    named = {name for page in ALL_PAGES for name in _TEST.findall(page.read_text())}
    assert named
    assert named - known == set()


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"]({page.name})" not in index]
    assert missing == ["README.md"]


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_to_headings_lead_to_headings(page: Path) -> None:
    for link, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        target = page.parent / link if link else page
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def test_the_api_page_has_every_public_name() -> None:
    words = set(re.findall(r"\w+", (ROOT / "docs" / "api.md").read_text()))
    assert set(megamoe_jit.__all__) - words == set()
    exceptions = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name in exceptions if name.endswith("Error")} - words == set()


def test_the_walk_through_has_every_wait() -> None:
    text = (ROOT / "docs" / "mega_kernel.md").read_text()
    assert [wait for wait in WAITS.values() if wait not in text] == []


def test_the_templates_page_names_each_role_and_no_file_that_is_gone() -> None:
    text = (TEMPLATES / "README.md").read_text()
    files = {path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.rglob("*.cuh")}
    named = set(re.findall(r"[\w/]+\.cuh", text))
    assert {name for name in named if not any(file == name or file.endswith("/" + name) for file in files)} == set()
    roles = {Path(file).name for file in files if "/roles/" in file}
    assert {role for role in roles if role not in text} == set()


def test_the_templates_page_has_the_counts_of_the_configuration() -> None:
    problem = Problem(hidden=512, intermediate=256, num_experts=8, num_topk=2, max_tokens_per_rank=64)
    constants = config_for_tile(problem, get_recipe("fp8_nvfp4"), get_arch("sm_90a"), 8).constants()
    text = (TEMPLATES / "README.md").read_text()
    for row in (
        f"| 4 .. 7 | {constants['first_consumer_thread']} .. 255 | consumer warpgroup 0",
        "| 1 | thread 32 | load activations |",
        f"| `full[s]` | {constants['full_arrivals']} |",
        f"| `empty[s]` | {constants['empty_arrivals']} |",
    ):
        assert row in text
