"""Opcodes whose qualifiers may come in any order: a pattern that takes them, and what each of them is.

Assemblers take `cp.async.bulk.tensor.2d.tile.shared::cluster.global` and `...shared::cluster.global.tile` alike, and
compilers write both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megamoe_jit.emulator.isa.table import Form

SEMANTICS = "weak relaxed acquire release acq_rel"
SCOPES = "cta cluster gpu sys"
CACHE_HINT = "L2::cache_hint"
MULTICAST = "multicast::cluster multicast::cluster::16b"
ASYNC_SPACES = "shared::cluster shared::cta global"
COMPLETION = "mbarrier::complete_tx::bytes bulk_group"


@dataclass(frozen=True, slots=True)
class Qualifiers:
    """A base opcode and the qualifiers that may follow it.

    Attributes:
        base: `cp.async.bulk.tensor`.
        kinds: name of a kind -> its words. Each kind occurs once at most, but "space", whose words keep their order.
    """

    base: str
    kinds: Mapping[str, str]

    @property
    def pattern(self) -> str:
        """Pattern for the table; `matches` says which of its opcodes are right."""
        words = "|".join(f".{word}" for kind in self.kinds.values() for word in kind.split())
        return self.base + f"{{{words}|}}" * (len(self.kinds) + 1)

    def matches(self, form: Form) -> bool:
        """Whether every qualifier is known and no kind occurs twice; `where=` of the table."""
        return self.read(form.opcode) is not None

    def read(self, opcode: str) -> dict[str, str] | None:
        """Return kind -> word ("" where absent; "space" has its words joined by a blank), None for a wrong opcode."""
        kind_of = {word: kind for kind, words in self.kinds.items() for word in words.split()}
        found = dict.fromkeys(self.kinds, "")
        for word in opcode.removeprefix(self.base).split(".")[1:]:
            kind = kind_of.get(word)
            if kind is None or (found[kind] and kind != "space"):
                return None
            found[kind] = f"{found[kind]} {word}".strip()
        return found

    def of(self, form: Form) -> dict[str, str]:
        """Return the qualifiers of a form that `matches`."""
        found = self.read(form.opcode)
        assert found is not None, f"{form.opcode} does not match {self.base}"
        return found
