"""Damaged PTX: tokens and characters deleted, doubled, swapped, moved and replaced."""

from __future__ import annotations

import random
import re

_TOKEN = re.compile(r"[\w$%.]+|\s+|[^\w\s]")
_REPLACEMENTS = (
    *"{}()[]<>;,:\"'@!|_=+-*/\\\0é",
    "//", "/*", "*/", "-1", "0x", "0f1", "1e999", "9" * 25, "9" * 5000, "0" * 5000, "1.5", "-0f3F800000",
    ".reg", ".param", ".align", ".loc", ".b8", ".v4", ".shared", ".local", ".entry", ".func", ".section",
    ".branchtargets", "= {", "generic(", "ret", "call", "bra", "brx.idx", "%p1", "%r1", "%rd1", "%tid.x", "WARP_SZ",
    "{" * 300, "(" * 300,
)  # fmt: skip


def tokens(text: str) -> list[str]:
    """Return the words, spaces and marks of `text`, which joined make it again."""
    return _TOKEN.findall(text)


def mutate(rng: random.Random, text: str, words: list[str]) -> str:
    """Return `text`, whose tokens are `words`, with one to many pieces of damage."""
    if rng.random() < 0.6:
        changed = list(words)
        for _ in range(rng.choice((1, 1, 1, 2, 5, 40))):
            _change_token(rng, changed)
        return "".join(changed)
    letters = list(text)
    for _ in range(rng.choice((1, 1, 3, 10, 100))):
        _change_letter(rng, letters)
    return "".join(letters)


def _change_token(rng: random.Random, words: list[str]) -> None:
    kind, here, there = rng.randrange(6), rng.randrange(len(words)), rng.randrange(len(words))
    if kind == 0 and len(words) > 1:
        del words[here]
    elif kind == 1:
        words.insert(here, words[there])
    elif kind == 2:
        words[here], words[there] = words[there], words[here]
    elif kind == 3:
        words[here:here] = words[there : there + rng.randrange(30)]
    elif kind == 4:
        words[here] = words[there]
    else:
        words[here] = rng.choice(_REPLACEMENTS)


def _change_letter(rng: random.Random, letters: list[str]) -> None:
    kind, here = rng.randrange(5), rng.randrange(len(letters))
    if kind == 0 and len(letters) > 1:
        del letters[here]
    elif kind == 1:
        letters.insert(here, chr(rng.randrange(256)))
    elif kind == 2:
        letters[here] = chr(rng.choice((rng.randrange(128), rng.randrange(0x3000))))
    elif kind == 3:
        letters[here] = letters[rng.randrange(len(letters))]
    else:
        del letters[here : min(here + rng.randrange(2000), len(letters) - 1)]
