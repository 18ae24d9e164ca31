"""Permutations of the bits of 32-bit words, as masks and shifts on whole tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from megamoe_jit.errors import ArgumentError

_WORD_BITS = 32


def _signed(mask: int) -> int:
    """Return the int32 that has the bits of `mask`: torch refuses Python integers past 2**31 - 1 for int32 tensors."""
    return mask - (1 << _WORD_BITS) if mask >> (_WORD_BITS - 1) else mask


@dataclass(frozen=True, kw_only=True, slots=True)
class BitPermutation:
    """Where each of the 32 bits of a word goes: bit `b` moves to bit `targets[b]`."""

    targets: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what is no permutation."""
        if sorted(self.targets) != list(range(_WORD_BITS)):
            raise ArgumentError(
                f"targets={self.targets} does not name each of the bits 0..31 once, as a permutation of a 32-bit word "
                "needs. Give 32 distinct bit numbers."
            )

    @property
    def inverse(self) -> BitPermutation:
        """The permutation that undoes this one."""
        sources = [0] * _WORD_BITS
        for source, target in enumerate(self.targets):
            sources[target] = source
        return BitPermutation(targets=tuple(sources))

    @property
    def terms(self) -> Mapping[int, int]:
        """Masks by shift: the permuted word is the OR over `(word shifted left by shift) & mask`."""
        masks: dict[int, int] = {}
        for source, target in enumerate(self.targets):
            masks[target - source] = masks.get(target - source, 0) | (1 << target)
        return masks

    def apply_word(self, word: int) -> int:
        """Return one permuted word; the slow twin of `apply`."""
        return sum(((word >> source) & 1) << target for source, target in enumerate(self.targets))

    def apply(self, words: torch.Tensor) -> torch.Tensor:
        """Return the int32 tensor `words` with the bits of each word permuted; takes one more tensor of its size."""
        if words.dtype != torch.int32:
            raise ArgumentError(
                f"words has dtype {words.dtype}, and bits are permuted in torch.int32. View the tensor as torch.int32."
            )
        out = torch.zeros_like(words)
        moved = torch.empty_like(words)
        for shift, mask in self.terms.items():
            # An arithmetic shift to the right copies the sign bit downwards; the mask drops those copies.
            if shift >= 0:
                torch.bitwise_left_shift(words, shift, out=moved)
            else:
                torch.bitwise_right_shift(words, -shift, out=moved)
            moved &= _signed(mask)
            out |= moved
        return out
