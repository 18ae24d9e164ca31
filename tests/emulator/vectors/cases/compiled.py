"""Kernels that NVRTC compiled from CUDA C++ (../compiled), without contraction of products and sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.emulator.vectors.case import Argument, Case, Family, InOut, Input, Output, Scalar
from tests.emulator.vectors.data import Source

FAMILY = Family("compiled")
FOLDER = Path(__file__).parent.parent / "compiled"
Dim3 = tuple[int, int, int]


def program(
    name: str,
    args: tuple[Argument, ...],
    *,
    grid: Dim3 = (1, 1, 1),
    block: Dim3 = (128, 1, 1),
    cluster: Dim3 = (1, 1, 1),
) -> Case:
    """Return the case of a stored program."""
    text = (FOLDER / f"{name}.ptx").read_text()
    return Case(ptx=text, args=args, grid=grid, block=block, cluster=cluster, section=f"compiled from {name}.cu")


def source(name: str) -> Source:
    """Return the stream of a program's inputs."""
    return Source(f"compiled/{name}")


@FAMILY.case("bitonic_sort")
def bitonic_sort() -> Case:
    """A sort in shared memory."""
    keys = Input(data=source("sort").bits(512, "uint32"))
    return program("bitonic_sort", (keys, Output(shape=(512,), dtype="int32"), Output(shape=(512,), dtype="int32")))


def tree_walk(name: str) -> Case:
    """Data-dependent loops over a stack in local memory."""
    return program(name, (Input(data=source("tree").bits(128, "uint32")), Output(shape=(128,), dtype="uint32")))


FAMILY.add("tree_walk", lambda: tree_walk("tree_walk"))
FAMILY.add("tree_walk_debug", lambda: tree_walk("tree_walk_debug"))


@FAMILY.case("float_pipeline")
def float_pipeline() -> Case:
    """Floats and doubles."""
    values = source("floats")
    x = values.floats(256, "f32").view("float32")
    x[::2] = (values.normal(128) * 10).astype("float32")
    y = values.normal(256) * 1000.0
    args = (
        *(Input(data=x), Input(data=y), Output(shape=(256, 4), dtype="uint32")),
        *(Output(shape=(256, 2), dtype="uint64"), Output(shape=(256, 3), dtype="uint32")),
    )
    return program("float_pipeline", args, grid=(2, 1, 1))


@FAMILY.case("quantize")
def quantize() -> Case:
    """Rows to E4M3 with power-of-two scales of 32 elements."""
    stream = source("quantize")
    rows = (stream.normal(8 * 512) * np.exp2(stream.between(8 * 512, -4, 4))).astype("float32")
    args = (Input(data=rows), Output(shape=(8, 16), dtype="uint8"), Output(shape=(8, 512), dtype="uint8"))
    return program("quantize", args, grid=(2, 1, 1))


@FAMILY.case("tokens")
def tokens() -> Case:
    """A switch, tables of strings."""
    return program(
        "tokens", (Input(data=source("tokens").bits(128 * 40, "uint8")), Output(shape=(128,), dtype="int32"))
    )


@FAMILY.case("functions")
def functions() -> Case:
    """Calls with structures and pointers."""
    args = (
        Input(data=source("functions").bits(64, "int32")),
        Output(shape=(64,), dtype="int32"),
        Output(shape=(64,), dtype="uint64"),
    )
    return program("functions", args, block=(64, 1, 1))


@FAMILY.case("wide_integers")
def wide_integers() -> Case:
    """64- and 128-bit integers."""
    args = (Input(data=source("wide").integers(64, "uint64")), Output(shape=(10, 64), dtype="uint64"))
    return program("wide_integers", args, block=(64, 1, 1))


@FAMILY.case("decoupled_scan")
def decoupled_scan() -> Case:
    """Blocks that wait for blocks before them; how far each looks back is open, what it finds is not."""
    args = (
        *(Input(data=source("scan").bits(2048, "uint32")), Output(shape=(2048,), dtype="uint32")),
        *(InOut(data=np.zeros(8, "uint32")) for _ in range(3)),
    )
    return program("decoupled_scan", args, grid=(8, 1, 1), block=(256, 1, 1))


def life(name: str) -> Case:
    """A 2-D block."""
    args: tuple[Argument, ...] = (
        *(Input(data=source("life").bits(64 * 48, "uint8")), Output(shape=(48, 64), dtype="uint8")),
        *(Scalar(value=64, dtype="int32"), Scalar(value=48, dtype="int32")),
    )
    return program(name, args, grid=(2, 3, 1), block=(32, 16, 1))


FAMILY.add("life", lambda: life("life"))
FAMILY.add("life_lineinfo", lambda: life("life_lineinfo"))


@FAMILY.case("mandelbrot")
def mandelbrot() -> Case:
    """Loops of a length for each lane."""
    numbers = (Scalar(value=value, dtype="float32") for value in (-2.25, -1.25, 0.05))
    return program("mandelbrot", (Output(shape=(48, 64), dtype="int32"), *numbers), grid=(4, 6, 1), block=(16, 8, 1))


@FAMILY.case("messages")
def messages() -> Case:
    """Calls of printf and of assert's function."""
    return program(
        "messages",
        (Input(data=source("messages").bits(32, "int32")), Output(shape=(32,), dtype="int32")),
        block=(32, 1, 1),
    )


@FAMILY.case("cluster_histogram")
def cluster_histogram() -> Case:
    """Counters in the shared memory of four blocks."""
    args = (Input(data=source("histogram").bits(8 * 4 * 128, "uint32")), Output(shape=(8, 64), dtype="uint32"))
    return program("cluster_histogram", args, grid=(8, 1, 1), cluster=(4, 1, 1))
