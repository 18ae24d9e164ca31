"""Byte layouts of C structs and of workspaces: fields in order, each at the next multiple of its alignment."""

from __future__ import annotations

from dataclasses import dataclass


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """A named part: its size and alignment in bytes."""

    name: str
    num_bytes: int
    align: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StructLayout:
    """Fields placed one after another, as a C++ compiler places the members of a struct."""

    fields: tuple[Field, ...]

    @property
    def align(self) -> int:
        """The largest alignment of a field."""
        return max(field.align for field in self.fields)

    @property
    def num_bytes(self) -> int:
        """Size with the padding at the end, as `sizeof` gives it."""
        end = max(offset + field.num_bytes for offset, field in zip(self.offsets().values(), self.fields, strict=True))
        return round_up(end, self.align)

    def offsets(self) -> dict[str, int]:
        """Return each field's byte offset by name."""
        offsets: dict[str, int] = {}
        end = 0
        for field in self.fields:
            offsets[field.name] = round_up(end, field.align)
            end = offsets[field.name] + field.num_bytes
        return offsets


def struct_layout(*fields: tuple[str, int, int]) -> StructLayout:
    """Return the layout of (name, bytes, alignment) fields."""
    return StructLayout(fields=tuple(Field(name=n, num_bytes=b, align=a) for n, b, a in fields))
