"""Where templates and the default cache lie, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def checkout_root(package: Path = _PACKAGE) -> Path | None:
    """Return the source checkout that `package` is part of, or None when it is installed."""
    root = package.parent
    is_checkout = (root / "pyproject.toml").is_file() and (root / "templates").is_dir()
    return root if is_checkout else None


def templates_dir(package: Path = _PACKAGE) -> Path:
    """Return the template folder: top-level `templates/` of a checkout, package data of an installed wheel."""
    root = checkout_root(package)
    return package / "templates" if root is None else root / "templates"


def default_cache_dir(package: Path = _PACKAGE) -> Path:
    """Return the cache folder without MEGAMOE_JIT_CACHE_DIR: `cache/` of a checkout, else the user's cache folder."""
    root = checkout_root(package)
    if root is not None:
        return root / "cache"
    import platformdirs

    return Path(platformdirs.user_cache_dir("megamoe_jit", appauthor=False))
