"""Measures of distance between a result and its oracle, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def _flat(actual: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    return actual.to(torch.float64).flatten(), expected.to(device=actual.device, dtype=torch.float64).flatten()


def rel_l2(actual: Tensor, expected: Tensor) -> float:
    """Return ||actual - expected|| / ||expected||; 0 when both are zero or empty, infinity when only `expected` is."""
    a, b = _flat(actual, expected)
    difference, norm = float((a - b).norm()), float(b.norm())
    if norm == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / norm


def cosine(actual: Tensor, expected: Tensor) -> float:
    """Return the cosine of the angle between the flattened tensors; 1 when both are empty or zero, 0 when one is."""
    a, b = _flat(actual, expected)
    norms = float(a.norm() * b.norm())
    if norms == 0:
        return 1.0 if float(a.norm() + b.norm()) == 0 else 0.0
    return float(a @ b) / norms


def calc_diff(actual: Tensor, expected: Tensor) -> float:
    """Return 1 - 2 <a, b> / (<a, a> + <b, b>), the measure of DeepGEMM's tests; 0 when both are empty or zero."""
    a, b = _flat(actual, expected)
    squares = float(a @ a + b @ b)
    return 0.0 if squares == 0 else 1.0 - 2.0 * float(a @ b) / squares
