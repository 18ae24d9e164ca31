"""Line information: `.loc` with what it was inlined at, `.file`, and the strings of the debug sections."""

from __future__ import annotations

import re

from megamoe_jit.emulator.parser.lexer import OperandError, parse_integer
from megamoe_jit.emulator.parser.nodes import Location

LOC = re.compile(
    r"\.loc\s+([0-9]{1,9})\s+([0-9]{1,9})\s+([0-9]{1,9})"
    r"(?:\s*,\s*function_name\s+([\w$]+)(?:\s*\+\s*([0-9]{1,9}))?\s*,\s*inlined_at\s+([0-9]{1,9})\s+([0-9]{1,9})\s+([0-9]{1,9}))?",
    re.A,
)
_SECTION_ITEM = re.compile(r"\s*(?:([A-Za-z_$%.][\w$.]*)\s*:|\.(b8|b16|b32|b64)\s+([^\n]*))", re.A)
_ITEM_BYTES = {"b8": 1, "b16": 2, "b32": 4, "b64": 8}

# Inlining nests far less deeply; a longer chain comes from positions that repeat.
_MAX_CHAIN = 64


class Locations:
    """The module's `.loc` records; a number stands for each, since the text may name the files at its end."""

    def __init__(self) -> None:
        """Start without any."""
        self.files: dict[int, str] = {}
        self._strings: dict[str, bytes] = {}
        self._records: list[tuple[int, int, str, int, int, int]] = []
        self._latest: dict[tuple[int, int, int], int] = {}
        self._numbers: dict[tuple[int, int, int, str, int, int], int] = {}
        self._made: dict[int, Location] = {}

    def add(self, match: re.Match[str]) -> int:
        """Keep the record that LOC matched; returns its number."""
        file, line, column, label, skip, *at = match.groups()
        position = (int(file), int(line), int(column))
        parent, depth = -1, 0
        if label is not None:
            outer = (int(at[0]), int(at[1]), int(at[2]))
            # The text names the outer place by position alone: the latest record of that position is the best guess.
            parent = self._latest.get(outer, -1)
            if parent >= 0 and self._records[parent][5] >= _MAX_CHAIN:
                parent = -1
            if parent < 0:
                parent = self._keep((*outer, "", 0, -1), 0)
            depth = self._records[parent][5] + 1
        return self._keep((*position, label or "", int(skip or 0), parent), depth)

    def _keep(self, key: tuple[int, int, int, str, int, int], depth: int) -> int:
        number = self._numbers.get(key, -1)
        if number < 0:
            file, line, _, label, skip, parent = key
            number = len(self._records)
            self._records.append((file, line, label, skip, parent, depth))
            self._numbers[key] = number
        self._latest[key[:3]] = number
        return number

    def add_section(self, body: str) -> None:
        """Keep the strings that the labels of a debug section stand before; other data is passed over."""
        labels: list[str] = []
        data = bytearray()
        starts: list[int] = []
        for match in _SECTION_ITEM.finditer(body):
            label, kind, values = match.groups()
            if label is not None:
                labels.append(label)
                starts.append(len(data))
                continue
            data += _data(_ITEM_BYTES[kind], values)
        for label, start in zip(labels, starts, strict=True):
            self._strings[label] = bytes(data[start : start + 1024])

    def location(self, number: int) -> Location | None:
        """Return the place of record `number`; None for a negative number, which stands for none."""
        if number < 0:
            return None
        made = self._made.get(number)
        if made is None:
            file, line, label, skip, parent, _ = self._records[number]
            made = Location(
                file=self.files.get(file, f"<file {file}>"),
                line=line,
                inlined_at=self.location(parent),
                function=self._function(label, skip) if label else None,
            )
            self._made[number] = made
        return made

    def _function(self, label: str, skip: int) -> str:
        data = self._strings.get(label)
        if data is None:
            return label
        return data[skip:].partition(b"\0")[0].decode("utf-8", "replace") or label


def _data(size: int, values: str) -> bytes:
    if size == 1:
        try:
            return bytes([int(value) for value in values.split(",")])
        except ValueError:
            pass  # hexadecimal, negative, or not a number at all
    data = bytearray()
    for value in values.split(","):
        try:
            number = parse_integer(value)
        except OperandError:
            number = 0  # a label, or a difference of two: of no use for names
        data += (number & (1 << (8 * size)) - 1).to_bytes(size, "little")
    return bytes(data)


class CallSites:
    """Places of instructions that were inlined from a device function, seen from their callers."""

    def __init__(self) -> None:
        """Start without any."""
        self._made: dict[tuple[int, int], Location] = {}
        self._kept: list[Location] = []

    def inlined(self, location: Location | None, call: Location | None, function: str) -> Location | None:
        """Return `location` with the place of the `call` to `function` at the end of its chain."""
        if location is None or call is None:
            return location or call
        key = (id(location), id(call))
        made = self._made.get(key)
        if made is None:
            chain = location.chain
            made = call
            for place in reversed(chain):
                name = function if place is chain[-1] else place.function
                made = Location(file=place.file, line=place.line, inlined_at=made, function=name)
            self._made[key] = made
            # The keys are identities, so what they identify has to stay alive.
            self._kept += [location, call]
        return made
