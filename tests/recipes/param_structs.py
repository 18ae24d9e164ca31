"""The kernels' parameter structs as a C compiler lays them out, written by hand from the templates."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_uint32, c_uint64


class SymOffsets(ctypes.Structure):
    """templates/comm/peers.cuh."""

    _fields_ = (
        ("tokens", c_uint64),
        ("token_sf", c_uint64),
        ("topk_idx", c_uint64),
        ("topk_weights", c_uint64),
        ("partials", c_uint64),
    )


class MegaMoeParams(ctypes.Structure):
    """templates/mega_moe/params_sm90.cuh, for one rank."""

    _fields_ = (
        ("peers", c_uint64 * 1),
        ("sym", SymOffsets),
        ("tokens", c_uint64),
        ("tokens_sf", c_uint64),
        ("acts", c_uint64),
        ("acts_sf", c_uint64),
        ("routed", c_uint64),
        ("routed_sf", c_uint64),
        ("routed_weights", c_uint64),
        ("rows_ready", c_uint64),
        ("l1_done", c_uint64),
        ("has_own_sf", c_uint64),
        ("l2_done", c_uint64),
        ("exited", c_uint64),
        ("error_record", c_uint64),
        ("timeout_ns", c_uint64),
        ("l1_weights", c_uint64),
        ("l2_weights", c_uint64),
        ("l1_alphas", c_uint64),
        ("l2_alphas", c_uint64),
        ("l1_bias", c_uint64),
        ("l2_bias", c_uint64),
        ("forecast", c_uint64),
        ("recv_stats", c_uint64),
        ("y", c_uint64),
        ("y_stride", c_uint64),
        ("x", c_uint64),
        ("x_stride_bytes", c_uint64),
        ("topk_idx", c_uint64),
        ("topk_weights", c_uint64),
        ("topk_idx_bytes", c_uint32),
        ("num_tokens", c_uint32),
        ("pool_rows", c_uint32),
        ("rank", c_uint32),
        ("routed_scaling_factor", c_float),
    )


class StagingParams(ctypes.Structure):
    """templates/staging/staging.cuh."""

    _fields_ = (
        ("sym", SymOffsets),
        ("base", c_uint64),
        ("x", c_uint64),
        ("x_sf", c_uint64),
        ("topk_idx", c_uint64),
        ("topk_weights", c_uint64),
        ("x_stride_bytes", c_uint64),
        ("topk_idx_bytes", c_uint32),
        ("num_tokens", c_uint32),
    )
