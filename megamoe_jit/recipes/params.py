"""Kernel parameter blocks: the fields of the templates' `Params` structs, in order."""

from __future__ import annotations

import struct
from dataclasses import dataclass

SYM_PARTS = ("tokens", "token_sf", "topk_idx", "topk_weights", "partials")  # SymOffsets in templates/comm/peers.cuh


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamBlock:
    """A struct of 8-byte fields (addresses, offsets, counts), then 4-byte ones; `f` in `words` marks a float."""

    has_peer_table: bool
    quads: tuple[str, ...]
    words: tuple[tuple[str, str], ...]

    def num_bytes(self, *, num_ranks: int) -> int:
        """Return the struct's size."""
        size = 8 * ((num_ranks if self.has_peer_table else 0) + len(self.quads)) + 4 * len(self.words)
        return -(-size // 8) * 8

    def pack(self, values: dict[str, int | float], *, peers: tuple[int, ...] = ()) -> bytes:
        """Return the struct's bytes; `values` holds each field by name (a KeyError names a missing one)."""
        layout = f"<{len(peers) + len(self.quads)}Q" + "".join(code for _, code in self.words)
        packed = struct.pack(
            layout, *peers, *(values[name] for name in self.quads), *(values[name] for name, _ in self.words)
        )
        return packed.ljust(self.num_bytes(num_ranks=len(peers)), b"\0")

    def offset(self, name: str, *, num_ranks: int) -> int:
        """Return the byte offset of field `name`."""
        before = num_ranks if self.has_peer_table else 0
        if name in self.quads:
            return 8 * (before + self.quads.index(name))
        return 8 * (before + len(self.quads)) + 4 * [word for word, _ in self.words].index(name)


# templates/mega_moe/params_sm90.cuh
MEGA_MOE_PARAMS = ParamBlock(
    has_peer_table=True,
    quads=(
        *(f"sym_{part}" for part in SYM_PARTS),
        *(
            "tokens",
            "tokens_sf",
            "acts",
            "acts_sf",
            "routed",
            "routed_sf",
            "routed_weights",
            "rows_ready",
            "l1_done",
            "has_own_sf",
            "l2_done",
            "exited",
            "error_record",
            "timeout_ns",
        ),
        # From here on each call has its own.
        *("l1_weights", "l2_weights", "l1_alphas", "l2_alphas", "l1_bias", "l2_bias", "forecast"),
        *("recv_stats", "y", "y_stride"),
        *("x", "x_stride_bytes", "topk_idx", "topk_weights"),
    ),
    words=(
        *(("topk_idx_bytes", "I"), ("num_tokens", "I"), ("pool_rows", "I"), ("rank", "I")),
        ("routed_scaling_factor", "f"),
    ),
)

# templates/mega_moe/params_sm100.cuh
MEGA_MOE_SM100_PARAMS = ParamBlock(
    has_peer_table=True,
    quads=(
        *(f"sym_{part}" for part in SYM_PARTS),
        "sym_block_sf",
        *("tokens", "tokens_sf", "acts", "acts_sf", "routed", "routed_sf", "routed_weights"),
        *("list_ready", "tokens_ready", "l1_done", "l2_tile_done", "l2_done", "exited", "error_record", "timeout_ns"),
        # From here on each call has its own.
        *("l1_alphas", "l2_alphas", "l1_bias", "l2_bias", "forecast", "recv_stats", "y", "y_stride"),
    ),
    words=(("num_tokens", "I"), ("rank", "I"), ("routed_scaling_factor", "f")),
)

# templates/staging/staging.cuh
STAGING_PARAMS = ParamBlock(
    has_peer_table=False,
    quads=(*(f"sym_{part}" for part in SYM_PARTS), "base", "x", "x_sf", "topk_idx", "topk_weights", "x_stride_bytes"),
    words=(("topk_idx_bytes", "I"), ("num_tokens", "I")),
)

# templates/staging/staging_sm100.cuh
STAGING_SM100_PARAMS = ParamBlock(
    has_peer_table=False,
    quads=(*(f"sym_{part}" for part in SYM_PARTS), "sym_block_sf", "base", "x", "topk_idx", "topk_weights", "x_stride"),
    words=(("topk_idx_bytes", "I"), ("num_tokens", "I")),
)

# templates/gemm/gemm_params.cuh
GEMM_PARAMS = ParamBlock(
    has_peer_table=False,
    quads=("expert_ends", "alphas", "y", "y_stride", "error_record", "timeout_ns"),
    words=(),
)
