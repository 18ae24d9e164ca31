from __future__ import annotations

from pathlib import Path

from benchmarks.journal import Journal, fingerprint


def test_a_journal_goes_on_where_it_was(tmp_path: Path) -> None:
    first = Journal("a", {"seed": 1}, folder=tmp_path)
    first.add({"n": 1})
    first.add({"n": 2})
    assert Journal("a", {"seed": 1}, folder=tmp_path).entries == [{"n": 1}, {"n": 2}] == first.entries
    assert Journal("b", {"seed": 1}, folder=tmp_path).entries == []


def test_a_journal_of_other_sources_is_left(tmp_path: Path) -> None:
    Journal("a", {"seed": 1}, folder=tmp_path).add({"n": 1})
    assert Journal("a", {"seed": 2}, folder=tmp_path).entries == []
    assert Journal("a", {"seed": 1}, folder=tmp_path).entries == []


def test_half_an_entry_is_dropped(tmp_path: Path) -> None:
    journal = Journal("a", {}, folder=tmp_path)
    journal.add({"n": 1})
    with journal.path.open("a") as file:
        file.write('{"n": 2, "o')
    again = Journal("a", {}, folder=tmp_path)
    again.add({"n": 3})
    assert Journal("a", {}, folder=tmp_path).entries == [{"n": 1}, {"n": 3}]


def test_a_finished_journal_is_gone(tmp_path: Path) -> None:
    journal = Journal("a", {}, folder=tmp_path)
    journal.add({"n": 1})
    journal.finish()
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_follows_the_sources(tmp_path: Path) -> None:
    for name, text in (("megamoe_jit/a.py", "x"), ("templates/ptx/b.cuh", "y"), ("benchmarks/mutation/c.py", "z")):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    seen = {fingerprint(root=tmp_path), fingerprint("benchmarks/mutation/*.py", root=tmp_path)}
    assert len(seen) == 2
    for name in ("megamoe_jit/a.py", "templates/ptx/b.cuh", "benchmarks/mutation/c.py"):
        before = fingerprint("benchmarks/mutation/*.py", root=tmp_path)
        (tmp_path / name).write_text("other")
        assert fingerprint("benchmarks/mutation/*.py", root=tmp_path) != before
