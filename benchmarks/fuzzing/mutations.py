"""Damaged PTX: at random, to be refused, and with care, to be run."""

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

_STATEMENT = re.compile(r"(?<=[;{}:\n])\s*(@!?%?\w+\s+)?([a-z][\w.:]*)\s([^;{}]*(?:\{[^;{}]*\}[^;{}]*)*);")
_REGISTER = re.compile(r"%(?:rs|rd|fd|p|r|f)\d+")
_NUMBER = re.compile(r"(?<![\w$%.])-?(?:0[xX][0-9a-fA-F]+|\d+)(?![\w$.])")
_QUALIFIER = re.compile(r"(?<=\.)[a-z]\w*(?:::\w+)?")
_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    31,
    32,
    33,
    63,
    64,
    127,
    128,
    255,
    256,
    1024,
    65535,
    1 << 20,
    (1 << 31) - 1,
)
_LARGE_NUMBERS = (1 << 31, (1 << 32) - 1, 1 << 56, 1 << 63, (1 << 64) - 1, -(1 << 63))


def tokens(text: str) -> list[str]:
    """Return the words, spaces and marks of `text`, which joined make it again."""
    return _TOKEN.findall(text)


def mutate(rng: random.Random, text: str, words: list[str]) -> str:
    """Return `text`, whose tokens are `words`, with one to many pieces of damage at random places."""
    if rng.random() < 0.6:
        changed = list(words)
        for _ in range(rng.choice((1, 1, 1, 2, 5, 40))):
            _change_token(rng, changed)
        return "".join(changed)
    letters = list(text)
    for _ in range(rng.choice((1, 1, 3, 10, 100))):
        _change_letter(rng, letters)
    return "".join(letters)


def mutate_with_care(rng: random.Random, text: str) -> str:
    """Return `text` with one to a few statements changed into others that often still are PTX."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        statements = list(_STATEMENT.finditer(text))
        if not statements:
            return text
        here, there = rng.choice(statements), rng.choice(statements)
        kind = rng.randrange(7)
        if kind == 0:
            text = text[: here.start()] + text[here.end() :]
        elif kind == 1:
            text = text[: here.end()] + there.group() + text[here.end() :]
        elif kind == 2:
            text = text[: here.start()] + there.group() + text[here.end() :]
        elif kind == 3:
            text = _replace_one(
                rng, text, here.span(3), _NUMBER, str(rng.choice((*_NUMBERS, *_NUMBERS, *_LARGE_NUMBERS)))
            )
        elif kind == 4:
            text = _replace_one(rng, text, here.span(3), _REGISTER, _some_register(rng, text))
        elif kind == 5:
            other = rng.choice([match.group() for match in _QUALIFIER.finditer(there.group(2))] or ["u32"])
            text = _replace_one(rng, text, here.span(2), _QUALIFIER, other)
        else:
            guard = rng.choice(("", "@%p1 ", "@!%p1 "))
            start, end = here.span(1) if here.group(1) else (here.start(2), here.start(2))
            text = text[:start] + guard + text[end:]
    return text


def _some_register(rng: random.Random, text: str) -> str:
    """Return a register that the text mentions, often mentioned ones more often."""
    return str(rng.choice(_REGISTER.findall(text) or ["%r1"]))


def _replace_one(rng: random.Random, text: str, span: tuple[int, int], pattern: re.Pattern[str], new: str) -> str:
    found = [match.span() for match in pattern.finditer(text, *span)]
    if not found:
        return text
    start, end = rng.choice(found)
    return text[:start] + new + text[end:]


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
