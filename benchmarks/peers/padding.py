"""Layers widened with zeros, for peers whose kernels need hidden and intermediate in multiples of 128."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.layer import Values
from benchmarks.peers.workload import TokenSet, Workload
from megamoe_jit.formats.moe_weights import MoeWeights

_MULTIPLE = 128


def widened(workload: Workload) -> Workload:
    """Return the workload with hidden and intermediate rounded up to multiples of 128; itself where they are."""

    def up(width: int) -> int:
        return -(-width // _MULTIPLE) * _MULTIPLE

    hidden, intermediate = up(workload.hidden), up(workload.intermediate)
    if (hidden, intermediate) == (workload.hidden, workload.intermediate):
        return workload
    return replace(workload, hidden=hidden, intermediate=intermediate)


def _grown(tensor: Tensor, rows: int, columns: int, *, repeats: bool) -> Tensor:
    """Return [..., rows, columns] of bytes; new places are zero, or copies of the last row and column."""
    data = tensor.view(torch.uint8)
    more_rows, more_columns = rows - data.shape[-2], columns - data.shape[-1]
    if repeats:  # block scales of zero codes: those nearby keep the range of an expert's scales as it is
        data = torch.cat((data, data[..., -1:].expand(*data.shape[:-1], more_columns)), dim=-1)
        data = torch.cat((data, data[..., -1:, :].expand(*data.shape[:-2], more_rows, columns)), dim=-2)
    else:
        data = F.pad(data, (0, more_columns, 0, more_rows))
    return data.contiguous().view(tensor.dtype)


def widen_weights(weights: MoeWeights, wide: Workload) -> MoeWeights:
    """Return the weights with zero codes for the new rows and columns."""
    if (wide.hidden, wide.intermediate) == (weights.hidden, weights.intermediate):
        return weights
    num_experts, gran_k = weights.num_experts, weights.gran_k

    def l1(tensor: Tensor, columns: int, *, repeats: bool) -> Tensor:
        parts = tensor.view(torch.uint8).view(num_experts, 2, weights.intermediate, -1)
        return _grown(parts, wide.intermediate, columns, repeats=repeats).flatten(1, 2).view(tensor.dtype)

    return replace(
        weights,
        l1_codes=l1(weights.l1_codes, wide.hidden // 2, repeats=False),
        l1_sf=l1(weights.l1_sf, wide.hidden // gran_k, repeats=True),
        l2_codes=_grown(weights.l2_codes, wide.hidden, wide.intermediate // 2, repeats=False),
        l2_sf=_grown(weights.l2_sf, wide.hidden, wide.intermediate // gran_k, repeats=True),
    )


def narrowed(values: Values, wide: Workload, workload: Workload) -> Values:
    """Return the values of a widened layer without the new rows and columns."""

    def some(expert: int) -> tuple[Tensor, Tensor]:
        l1, l2 = values(expert)
        parts = l1.view(2, wide.intermediate, wide.hidden)[:, : workload.intermediate, : workload.hidden]
        return parts.flatten(0, 1), l2[: workload.hidden, : workload.intermediate]

    return some


class WidenedTokens:
    """Tokens widened once for each input, before the clock starts, as a model would keep them."""

    def __init__(self, hidden: int) -> None:
        """Know the new width."""
        self._hidden = hidden
        self._known: dict[int, tuple[TokenSet, Tensor]] = {}  # by id of the input, which the entry keeps alive

    def of(self, tokens: TokenSet) -> Tensor:
        """Return x bfloat16 [T, new hidden]."""
        more = self._hidden - tokens.x.shape[1]
        if not more:
            return tokens.x
        if id(tokens) not in self._known:
            self._known[id(tokens)] = (tokens, F.pad(tokens.x, (0, more)))
        return self._known[id(tokens)][1]


def note(wide: Workload, workload: Workload) -> str:
    """Return what was widened, in words."""
    return "" if wide is workload else f"widened to {wide.hidden} x {wide.intermediate}"
