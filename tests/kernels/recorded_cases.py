"""Layers whose results were recorded on a Hopper GPU: inputs from numpy's PCG64, which is the same everywhere."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from megamoe_jit import ActivationSpec, MegaMoE, MoeWeights
from megamoe_jit.jit.build import build
from megamoe_jit.jit.compile import CompileOptions
from megamoe_jit.ops import plan
from megamoe_jit.ops.weights import TransformedWeights, transform_weights
from tests.kernels.one_kernel import one_kernel

FOLDER = Path(__file__).parent / "recorded"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedCase:
    """One layer and one call."""

    name: str
    recipe: str
    activation: ActivationSpec
    num_tokens: int
    hidden: int = 384
    intermediate: int = 256
    num_experts: int = 5
    num_topk: int = 3

    def run(self, device: str, *, fmad: bool) -> Tensor:
        """Return y [T, H] of kernels compiled with or without contraction, on the GPU or (device "cpu") emulated."""
        rng = np.random.default_rng(sum(map(ord, self.name)))
        e, h, i = self.num_experts, self.hidden, self.intermediate
        rows = 2 * i if self.activation.gated else i

        def codes(n: int, k: int) -> Tensor:
            return torch.from_numpy(rng.integers(0, 256, (e, n, k // 2), np.uint8)).to(device)

        def scales(n: int, k: int) -> Tensor:
            exact = np.exp2(rng.integers(-3, 4, (e, n, k // 16))) * (1 + rng.integers(0, 8, (e, n, k // 16)) / 8)
            return torch.from_numpy(exact).float().to(torch.float8_e4m3fn).to(device)

        weights = MoeWeights.from_checkpoint(
            codes(rows, h),
            scales(rows, h),
            codes(h, i),
            scales(h, i),
            l1_global_scale=torch.full((e,), 2.0**-7 / h**0.5, device=device),
            l2_global_scale=torch.full((e,), 2.0**-7 / i**0.5, device=device),
        )
        x = torch.from_numpy(rng.standard_normal((self.num_tokens, h))).bfloat16().to(device)
        order = np.ascontiguousarray(np.argsort(rng.random((self.num_tokens, e)), axis=1)[:, : self.num_topk])
        topk_weights = torch.from_numpy(rng.random((self.num_tokens, self.num_topk), np.float32)).to(device)
        with compiled(fmad=fmad), one_kernel(self.num_tokens):
            pair = transform_weights(weights, self.recipe, "sm_90a")
            moe = MegaMoE((without_fit(pair[0]), without_fit(pair[1])), activation=self.activation)
            return moe(x, torch.from_numpy(order).to(device), topk_weights)


def without_fit(weights: TransformedWeights) -> TransformedWeights:
    """Return weights with the checkpoint's alphas alone: what was recorded knew no factor for rounded products."""
    return replace(weights, alphas=weights.alphas if weights.plain_alphas is None else weights.plain_alphas)


@contextmanager
def compiled(*, fmad: bool) -> Iterator[None]:
    """Compile kernels with `--fmad` as asked for."""
    with mock.patch.object(plan, "build", functools.partial(build, options=CompileOptions(fmad=fmad))):
        yield


CASES = [
    RecordedCase(name=f"{recipe}-{name}-{tokens}", recipe=recipe, activation=activation, num_tokens=tokens)
    for recipe in ("fp8_nvfp4", "bf16_nvfp4")
    for name, activation, tokens in (
        ("swiglu", ActivationSpec(), 6),
        ("swiglu", ActivationSpec(), 40),
        ("swigluoai", ActivationSpec.swigluoai(), 9),
        ("gelu", ActivationSpec(kind="gelu"), 9),
        ("relu2", ActivationSpec(kind="relu2"), 9),
        ("relu2", ActivationSpec(kind="relu2"), 70),
    )
]
