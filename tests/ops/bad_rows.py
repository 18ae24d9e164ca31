"""What a row of the tables of bad inputs is, and what several tables share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megamoe_jit import ArgumentError, MegaMoeError
from tests.ops.layers import routing, tokens, transformed


@dataclass(frozen=True)
class Bad:
    """A call that must fail: what is wrong with it, the call, the sentence (a regular expression), the class."""

    name: str
    run: Callable[[], Any]
    words: str
    error: type[MegaMoeError] = ArgumentError


IDX, WEIGHT = routing()
X, NOT_A_NUMBER = tokens(), float("nan")
L1, L2 = transformed()
DESTROYED = r"sym_buffer was destroyed\. Make a new one with get_symm_buffer_for_nvfp4_mega_moe"
NO_TENSOR = r"is a {}, but a tensor is needed\. Pass a torch\.Tensor"
OVERLAP = r"rows must be dense and must not overlap\. Call \.contiguous\(\)"
NOT_MADE_FOR_IT = r"so it is not in the group\. Pass a group that it belongs to"


def routing_rows(run: Callable[..., Any]) -> list[Bad]:
    """Return the rows on topk_idx and topk_weights, which several calls take."""
    shape = r"but int32 or int64 \[num_tokens, 2\] is needed\. Pass the router's expert indices"
    strided = torch.stack((IDX, IDX), dim=2)[..., 0]
    return [
        Bad("int16 indices", lambda: run(topk_idx=IDX.short()), rf"topk_idx is torch\.int16 \[6, 2\], {shape}"),
        Bad("float indices", lambda: run(topk_idx=IDX.float()), rf"topk_idx is torch\.float32 \[6, 2\], {shape}"),
        Bad("other num_topk", lambda: run(topk_idx=IDX[:, :1]), rf"topk_idx is torch\.int64 \[6, 1\], {shape}"),
        Bad("3-d indices", lambda: run(topk_idx=IDX[None]), rf"topk_idx is torch\.int64 \[1, 6, 2\], {shape}"),
        Bad("indices as a list", lambda: run(topk_idx=IDX.tolist()), "topk_idx " + NO_TENSOR.format("list")),
        Bad(
            "strided indices",
            lambda: run(topk_idx=strided),
            r"topk_idx \[6, 2\] has strides \[4, 2\], but a contiguous",
        ),
        Bad(
            "indices elsewhere", lambda: run(topk_idx=IDX.to("meta")), r"topk_idx is on meta, but the buffer is on cpu"
        ),
        Bad(
            "float64 weights",
            lambda: run(topk_weights=WEIGHT.double()),
            r"float64 \[6, 2\], .* Convert it with \.float",
        ),
        Bad(
            "bf16 weights",
            lambda: run(topk_weights=WEIGHT.bfloat16()),
            r"topk_weights is torch\.bfloat16 \[6, 2\], but",
        ),
        Bad(
            "fewer weights",
            lambda: run(topk_weights=WEIGHT[:5]),
            r"float32 \[5, 2\], but float32 \[6, 2\] \(as topk_idx",
        ),
        Bad("no weights", lambda: run(topk_weights=None), "topk_weights " + NO_TENSOR.format("NoneType")),
        Bad(
            "strided weights", lambda: run(topk_weights=WEIGHT.T.contiguous().T), r"has strides \[1, 6\], but a contig"
        ),
        Bad(
            "weights elsewhere", lambda: run(topk_weights=WEIGHT.to("meta")), r"topk_weights is on meta, but the buffer"
        ),
    ]
