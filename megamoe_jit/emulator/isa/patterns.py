"""Patterns of opcodes in the manual's own notation; the docstring of `table` describes it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_WORD = re.compile(r"<(\w+)>|\{(\w+)\}")
_NAMED = re.compile(r"\{(\w+):(?!:)")


@dataclass(frozen=True, slots=True)
class _Choice:
    """One of several sequences, kept under a name when it has one."""

    name: str | None
    sequences: tuple[tuple[str | _Choice, ...], ...]

    def regex(self) -> str:
        """Return the regular expression of the alternatives."""
        inner = "|".join(_regex(sequence) for sequence in self.sequences)
        return f"(?P<{self.name}>{inner})" if self.name else f"(?:{inner})"


_Sequence = tuple[str | _Choice, ...]


def _regex(sequence: _Sequence) -> str:
    return "".join(re.escape(part) if isinstance(part, str) else part.regex() for part in sequence)


def _spellings(sequence: _Sequence) -> Iterator[str]:
    parts = [
        [part] if isinstance(part, str) else [text for inner in part.sequences for text in _spellings(inner)]
        for part in sequence
    ]
    return map("".join, itertools.product(*parts))


class Pattern:
    """A pattern, read: `match` an opcode, or list all `spellings`."""

    def __init__(self, text: str, sets: Mapping[str, str]) -> None:
        """Read `text`; `sets` has the words of its `<names>`, in one string with blanks between."""
        self.text = text
        self._sets = sets
        self._unused = set(sets)
        ((self._sequence,), _) = self._read(0, closed=False)
        assert not self._unused, f"{text}: sets without a place: {sorted(self._unused)}"
        self._regex: re.Pattern[str] | None = None  # made when first asked for: most patterns never are

    def match(self, opcode: str) -> dict[str, str] | None:
        """Return what the named parts hold when the whole of `opcode` fits, without leading dots."""
        if self._regex is None:
            self._regex = re.compile(_regex(self._sequence))
        found = self._regex.fullmatch(opcode)
        return None if found is None else {name: (text or "").lstrip(".") for name, text in found.groupdict().items()}

    def spellings(self) -> Iterator[str]:
        """Yield every opcode that fits."""
        return _spellings(self._sequence)

    def _words(self, name: str) -> _Choice:
        assert name in self._sets, f"{self.text}: no set of words for <{name}>"
        self._unused.discard(name)
        # Longer words first: a regular expression takes the first that fits.
        return _Choice(name, tuple((word,) for word in sorted(self._sets[name].split(), key=len, reverse=True)))

    def _read(self, at: int, *, closed: bool) -> tuple[tuple[_Sequence, ...], int]:
        """Read alternatives from `at` to the brace that ends them; return them and where what follows begins."""
        sequences: list[_Sequence] = []
        parts: list[str | _Choice] = []
        while at < len(self.text):
            char = self.text[at]
            word = _WORD.match(self.text, at)
            if word and (word[1] or word[2] in self._sets):
                parts.append(self._words(word[1] or word[2]))
                at = word.end()
            elif char == "{":
                named = _NAMED.match(self.text, at)
                inner, at = self._read(named.end() if named else at + 1, closed=True)
                is_optional = not named and len(inner) == 1
                parts.append(_Choice(named[1] if named else None, (*inner, ()) if is_optional else inner))
            elif char == "}" and closed:
                return (*sequences, tuple(parts)), at + 1
            elif char == "|" and closed:
                sequences.append(tuple(parts))
                parts, at = [], at + 1
            else:
                parts.append(char)
                at += 1
        assert not closed, f"{self.text}: a brace is not closed"
        return (*sequences, tuple(parts)), at
