"""A case: one small kernel, what it is given, and how closely its results must agree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
POISON = 0xA5  # what an output holds before the launch
BUFFER_ALIGNMENT = 1024  # of every argument in memory, here and on the device


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A buffer that the kernel reads."""

    data: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A buffer of poison that the kernel writes; `labels` name its rows (dimension 0) in reports."""

    shape: tuple[int, ...]
    dtype: str
    labels: tuple[str, ...] = ()

    @property
    def poisoned(self) -> Array:
        """The buffer before the launch."""
        size = int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
        return np.full(size, POISON, np.uint8).view(self.dtype).reshape(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class InOut:
    """A buffer that the kernel reads and writes."""

    data: Array
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scratch:
    """A buffer of zeros that the kernel may use, and that is not compared."""

    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Scalar:
    """A parameter by value."""

    value: int | float
    dtype: str = "uint32"

    @property
    def number(self) -> Any:
        """The value as a NumPy scalar of its type."""
        return np.dtype(self.dtype).type(self.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bytes:
    """A structure by value."""

    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Map:
    """A tensor map over argument `of` from `offset` on, by value or, with `in_memory`, as a pointer to global memory.

    Dimension 0 is the innermost; `element` and `swizzle` are names of the driver's enums ("BFLOAT16", "128B").
    """

    of: int
    element: str
    dims: tuple[int, ...]
    byte_strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...] = ()
    swizzle: str = "NONE"
    offset: int = 0
    is_nan_filled: bool = False
    in_memory: bool = False

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return ITEM_BYTES[self.element]

    @property
    def span_bytes(self) -> int:
        """Bytes of shared memory that rows of one swizzle width would take: no layout of the box needs more."""
        span = int(self.swizzle.removesuffix("B")) if self.swizzle != "NONE" else 0
        inner = self.box[0] * self.item_bytes
        return self.box_bytes * max(span, inner) // inner

    @property
    def box_bytes(self) -> int:
        """Bytes of shared memory that a copy fills: a step of s in a dimension takes every s-th element of its box."""
        steps = (1, *self.element_strides[1:]) if self.element_strides else (1,) * len(self.box)
        return self.item_bytes * int(
            np.prod([-(-extent // step) for extent, step in zip(self.box, steps, strict=True)])
        )


ITEM_BYTES = {
    **dict.fromkeys(("UINT8",), 1),
    **dict.fromkeys(("UINT16", "FLOAT16", "BFLOAT16"), 2),
    **dict.fromkeys(("UINT32", "INT32", "FLOAT32", "FLOAT32_FTZ", "TFLOAT32", "TFLOAT32_FTZ"), 4),
    **dict.fromkeys(("UINT64", "INT64", "FLOAT64"), 8),
}

Argument = Input | Output | InOut | Scratch | Scalar | Bytes | Map


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far a value may be from the recorded one: |difference| <= absolute + relative * |recorded|.

    `value_dtype` says what the bits of a result are ("float32", "float16", "bfloat16"). NaN must be NaN, infinities
    the same.
    """

    value_dtype: str
    absolute: float = 0.0
    relative: float = 0.0


# Which payload a NaN of f64 has is open, and so is which operand's it is.
ANY_NAN = Tolerance(value_dtype="float64")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kernel, named `kernel` in `ptx`, and one launch of it.

    Results are compared bit for bit unless `tolerance` names the argument. `section` is the PTX ISA's.
    """

    ptx: str
    args: tuple[Argument, ...]
    name: str = ""
    grid: tuple[int, int, int] = (1, 1, 1)
    block: tuple[int, int, int] = (32, 1, 1)
    cluster: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 0
    tolerance: Mapping[int, Tolerance] = field(default_factory=dict)
    section: str = ""
    faults: bool = False  # nothing is compared: the machine refused to go on

    @property
    def outputs(self) -> tuple[int, ...]:
        """Indices of the arguments whose memory is compared."""
        return () if self.faults else tuple(i for i, arg in enumerate(self.args) if isinstance(arg, Output | InOut))

    @property
    def ptx_digest(self) -> str:
        """Hash of the program and its launch; vectors belong to exactly one."""
        launch = f"{self.grid}{self.block}{self.cluster}{self.shared_bytes}"
        return hashlib.sha256((self.ptx + launch).encode()).hexdigest()[:16]

    @property
    def input_digest(self) -> str:
        """Hash of everything that the kernel is given."""
        digest = hashlib.sha256()
        for arg in self.args:
            if isinstance(arg, Input | InOut):
                digest.update(f"{arg.data.dtype}{arg.data.shape}".encode() + np.ascontiguousarray(arg.data).tobytes())
            elif isinstance(arg, Scalar):
                digest.update(arg.number.tobytes())
            else:
                digest.update(repr(replace(arg, labels=()) if isinstance(arg, Output) else arg).encode())
        return digest.hexdigest()[:16]


class Family:
    """Cases of one subject, built when asked for: collecting tests costs nothing."""

    def __init__(self, name: str) -> None:
        """Start an empty family."""
        self.name = name
        self._builders: dict[str, Callable[[], Case]] = {}

    def add(self, name: str, builder: Callable[[], Case]) -> None:
        """Add a case under `family/name`."""
        key = f"{self.name}/{name}"
        if key in self._builders:
            raise ValueError(f"two cases are named {key}")
        self._builders[key] = builder

    def case(self, name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
        """Return a decorator that adds a builder."""

        def register(builder: Callable[[], Case]) -> Callable[[], Case]:
            self.add(name, builder)
            return builder

        return register

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._builders)

    def build(self, key: str) -> Case:
        """Return a case with its inputs."""
        return replace(self._builders[key](), name=key)
