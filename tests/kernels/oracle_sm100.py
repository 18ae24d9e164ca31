"""What the fused Blackwell kernel left between its GEMMs, to be held to the oracle's codes and scale factors."""

from __future__ import annotations

import torch
from torch import Tensor

from megamoe_jit.ops.moe import MegaMoE
from megamoe_jit.ops.plan_sm100 import Sm100MoePlan
from megamoe_jit.recipes.choose import config_for_tile, token_tile
from megamoe_jit.recipes.sm100 import Sm100Config
from megamoe_jit.reference.moe import MoeIntermediates

_ATOM_BYTES, _ATOM_ROWS, _NIBBLE = 512, 128, 4


def fused_plan(moe: MegaMoE) -> Sm100MoePlan:
    """Return the layer's plan; it has been called before."""
    return next(plan for plan in moe.sym_buffer.plans.values() if isinstance(plan, Sm100MoePlan))


def fused_config(moe: MegaMoE, num_tokens: int) -> Sm100Config:
    """Return the configuration that a call of `num_tokens` takes."""
    problem = fused_plan(moe).problem
    config = config_for_tile(problem, moe.recipe, moe.arch, token_tile(problem, moe.recipe, num_tokens))
    assert isinstance(config, Sm100Config)
    return config


def intermediate_codes(moe: MegaMoE, inner: MoeIntermediates, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return what the last call's L2 read: codes uint8 [P, I] (FP4: one a byte) and scale factors uint8 [P, groups].

    An expert's rows begin with a token tile of their own, and a tile's scale factors lie in UTCCP atoms: byte
    (row % 32) * 16 + row / 32 * 4 + group % 4 of the atom of word group / 4.
    """
    plan, config = fused_plan(moe), fused_config(moe, num_tokens)
    layout, tile = plan.shapes.layouts()[1], config.block_n
    counts = torch.bincount(inner.expert_idx, minlength=config.problem.num_local_experts)
    tiles = (counts + tile - 1) // tile
    assert int(tiles.sum()) <= config.ring_tiles, "a ring that was used twice holds the last tiles only"
    in_expert = torch.arange(len(inner.expert_idx)) - (counts.cumsum(0) - counts)[inner.expert_idx]
    ring_tile = (tiles.cumsum(0) - tiles)[inner.expert_idx] + in_expert // tile
    in_tile = in_expert % tile

    row_bytes = plan.shapes.row_bytes(layout.padded_k)
    rows = plan.workspace.part("acts", config.ring_tiles * tile * row_bytes).view(-1, row_bytes)[
        ring_tile * tile + in_tile
    ]
    if not plan.shapes.is_fp8:
        rows = torch.stack((rows & 15, rows >> _NIBBLE), -1).flatten(1)

    atoms = config.ring_tiles * config.token_atoms
    words = plan.shapes.ring_words(layout)
    sf = plan.workspace.part("acts_sf", atoms * words * _ATOM_BYTES)
    sf = sf.view(atoms, words, 32, 4, 4)[ring_tile * config.token_atoms + in_tile // _ATOM_ROWS]
    at = torch.arange(len(in_tile))
    sf = sf[at, :, in_tile % 32, in_tile % _ATOM_ROWS // 32].flatten(1)
    intermediate = config.problem.intermediate
    return rows[:, :intermediate].contiguous(), sf[:, : -(-intermediate // config.kind.gran_k)].contiguous()


def oracle_codes(inner: MoeIntermediates) -> tuple[Tensor, Tensor]:
    """Return the oracle's codes and scale factors in the same form."""
    assert inner.l2_acts is not None
    codes = inner.l2_acts.codes.view(torch.uint8)
    if codes.shape[1] != inner.acts.shape[1]:
        codes = torch.stack((codes & 15, codes >> _NIBBLE), -1).flatten(1)
    return codes, inner.l2_acts.sf.view(torch.uint8)
