"""Where templates and the default cache are, in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from megamoe_jit.jit.places import checkout_root, default_cache_dir, templates_dir

ROOT = Path(__file__).parents[2]


def test_this_checkout() -> None:
    assert checkout_root() == ROOT
    assert templates_dir() == ROOT / "templates"
    assert default_cache_dir() == ROOT / "cache"


def test_an_installed_package_has_its_own_templates_and_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    package = tmp_path / "site-packages" / "megamoe_jit"
    package.mkdir(parents=True)
    assert checkout_root(package) is None
    assert templates_dir(package) == package / "templates"
    assert default_cache_dir(package) == tmp_path / "home" / "megamoe_jit"


def test_a_project_that_holds_a_copy_of_the_package_is_no_checkout(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    assert checkout_root(tmp_path / "megamoe_jit") is None
