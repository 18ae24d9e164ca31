"""Where packed scale factors part from a dequantised reference, and which mix-up of layouts would explain it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.fp4 import decode_fp4

Place = Callable[[Tensor, Tensor], Tensor]  # (row, group) int64 -> byte


@dataclass(frozen=True, kw_only=True, slots=True)
class SfDifference:
    """The first scale factor that is not the reference's, how many are not, and what would explain them.

    Attributes:
        row, group: the first one, in checkpoint order.
        expected: what the reference implies.
        found: what lies at its place.
        num_wrong, num_checked: scale factors that differ, of those whose block has a nonzero code.
        explained_by: name of the layout under which all of them are right, or None.
    """

    row: int
    group: int
    expected: float
    found: float
    num_wrong: int
    num_checked: int
    explained_by: str | None

    def __str__(self) -> str:
        """Say it in a sentence."""
        text = (
            f"{self.num_wrong} of {self.num_checked} scale factors differ, the first at row {self.row}, group "
            f"{self.group}: {self.found:g} where the reference has {self.expected:g}"
        )
        return text + (f". They lie as {self.explained_by} would put them." if self.explained_by else ".")


def implied_scales(codes: Tensor, reference: Tensor, gran_k: int) -> tuple[Tensor, Tensor]:
    """Return (scales float64 [rows, groups], whether a block shows its own): reference over code, by its largest code.

    codes: E2M1 uint8 [rows, K/2]; reference: the dequantised values [rows, K], without second-level scales.
    """
    rows, k = reference.shape
    if tuple(codes.shape) != (rows, k // 2) or k % gran_k:
        raise ArgumentError(
            f"codes {list(codes.shape)} and reference {list(reference.shape)} do not fit: [rows, K/2] and [rows, K], K "
            f"a multiple of {gran_k}, are needed. Pass codes in checkpoint order."
        )
    values = decode_fp4(codes, torch.float64).view(rows, -1, gran_k)
    largest, where = values.abs().max(-1)
    wanted = reference.double().view(rows, -1, gran_k).gather(-1, where[..., None])[..., 0].abs()
    shows = largest > 0
    return torch.where(shows, wanted / largest.where(shows, torch.ones_like(largest)), torch.ones_like(wanted)), shows


def find_sf_difference(
    codes: Tensor,
    packed: Tensor,
    reference: Tensor,
    *,
    gran_k: int,
    place: Place,
    decode: Callable[[Tensor], Tensor],
    others: Mapping[str, Place],
) -> SfDifference | None:
    """Return how `packed` differs from what `reference` implies, or None when it does not.

    Args:
        codes: E2M1 uint8 [rows, K/2], checkpoint order.
        packed: bytes of the expert's scale factors, uint8.
        reference: dequantised values [rows, K], without second-level scales.
        gran_k: elements that share a scale factor.
        place: byte of the scale factor of (row, group).
        decode: uint8 -> values.
        others: layouts that are often mixed up with it, by name; the first that fits everywhere is the explanation.
    """
    expected, shows = implied_scales(codes, reference, gran_k)
    row, group = torch.meshgrid(*(torch.arange(n) for n in expected.shape), indexing="ij")

    def wrong(layout: Place) -> tuple[Tensor, Tensor]:
        at = layout(row, group)
        inside = (at >= 0) & (at < packed.numel())
        found = decode(packed.flatten()[at.clamp(0, packed.numel() - 1)]).double()
        return shows & (~inside | ((found - expected).abs() > expected.abs() * 1e-6)), found

    differs, found = wrong(place)
    if not bool(differs.any()):
        return None
    first_row, first_group = differs.nonzero()[0].tolist()
    return SfDifference(
        row=first_row,
        group=first_group,
        expected=expected[first_row, first_group].item(),
        found=found[first_row, first_group].item(),
        num_wrong=int(differs.sum()),
        num_checked=int(shows.sum()),
        explained_by=next((name for name, other in others.items() if not bool(wrong(other)[0].any())), None),
    )
