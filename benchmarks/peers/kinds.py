"""The list of contenders: our recipes, and the peers that can be installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from importlib import metadata

from benchmarks.peers.contender import Contender, Kind
from benchmarks.peers.layer import Layer


def _load(module: str, *args: str) -> Callable[[Layer, int], Contender]:
    """Import a contender's module only when it is measured."""
    found = importlib.import_module(f"benchmarks.peers.{module}")
    made: Callable[[Layer, int], Contender] = found.load(*args)
    return made


KINDS = (
    Kind(
        name="fp8_nvfp4",
        heading="fp8_nvfp4",
        what="this package: NVFP4 weights, FP8 activations",
        acts="fp8",
        load=partial(_load, "ours", "fp8_nvfp4"),
        is_ours=True,
    ),
    Kind(
        name="bf16_nvfp4",
        heading="bf16_nvfp4",
        what="this package: NVFP4 weights, BF16 activations",
        acts="bf16",
        load=partial(_load, "ours", "bf16_nvfp4"),
        is_ours=True,
    ),
    Kind(
        name="fp8_mxfp4",
        heading="fp8_mxfp4",
        what="this package: MXFP4 weights, FP8 activations",
        acts="fp8",
        load=partial(_load, "ours", "fp8_mxfp4"),
        is_ours=True,
    ),
    Kind(
        name="humming_nvfp4",
        heading="humming NVFP4 + BF16",
        what="humming-kernels: NVFP4 weights, BF16 activations",
        acts="bf16",
        load=partial(_load, "humming_kernels", "nvfp4"),
        distributions=("humming-kernels",),
        warm="workload",
    ),
    Kind(
        name="humming_mxfp4",
        heading="humming MXFP4 + FP8",
        what="humming-kernels: MXFP4 weights, FP8 activations",
        acts="fp8",
        load=partial(_load, "humming_kernels", "mxfp4"),
        distributions=("humming-kernels",),
        warm="workload",
    ),
    Kind(
        name="sgl_fp8",
        heading="sgl-deep-gemm FP8",
        what="sgl-deep-gemm: fused, FP8 weights (scales for 128 x 128), FP8 activations",
        acts="fp8",
        load=partial(_load, "sgl_deep_gemm"),
        distributions=("sgl-deep-gemm", "apache-tvm-ffi"),
        warm="tokens",
    ),
    Kind(
        name="torch_bf16",
        heading="torch BF16",
        what="torch._grouped_mm, weights dequantised to BF16 beforehand",
        acts="bf16",
        load=partial(_load, "torch_grouped"),
        distributions=("torch",),
    ),
)
BY_NAME = {kind.name: kind for kind in KINDS}
OURS = tuple(kind.name for kind in KINDS if kind.is_ours)
PEERS = tuple(kind.name for kind in KINDS if not kind.is_ours)


def versions() -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    names = dict.fromkeys(name for kind in KINDS for name in kind.distributions if name != "torch")
    return {name: found for name in names if (found := _version(name))}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
