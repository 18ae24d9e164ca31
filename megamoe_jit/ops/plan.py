"""Prepared launches of the Hopper kernels: one plan serves every layer that shares a buffer and an activation."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from megamoe_jit import env
from megamoe_jit.errors import ArgumentError
from megamoe_jit.jit.build import build
from megamoe_jit.ops.weights import TransformedWeights
from megamoe_jit.recipes.choose import plan_kernels, token_tile
from megamoe_jit.recipes.params import MEGA_MOE_PARAMS, STAGING_PARAMS, SYM_PARTS, ParamBlock
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.sm90 import Sm90Config, Sm90Shapes, Sm90StagingConfig
from megamoe_jit.recipes.waits import WAITS
from megamoe_jit.runtime.backend import LaunchPlan
from megamoe_jit.runtime.cuda import CudaBackend, PreparedLaunch, cuda_backend
from megamoe_jit.runtime.launch import struct_bytes, tensor_map
from megamoe_jit.runtime.memory import HostErrorRecord, error_record
from megamoe_jit.runtime.symmetric import SymmBuffer
from megamoe_jit.runtime.tensormap import Swizzle, TensorMap, tensor_map_for

_STAGING_BLOCKS_PER_SM = 4
_WEIGHTS = struct.Struct("<6Q")  # l1_weights .. l2_bias
_CALL = struct.Struct("<2Q")  # recv_stats, y
_TAIL = struct.Struct("<QIIIf")  # y_stride .. routed_scaling_factor
_SOURCE = struct.Struct("<5QII")  # x .. num_tokens


def acts_tensor_map(acts: Tensor, block_n: int) -> TensorMap:
    """Return the map through which L2 reads activations [pool rows, intermediate]: boxes of 128 bytes x block_n rows, swizzled."""
    return tensor_map_for(acts, box=(block_n, 128 // acts.element_size()), swizzle=Swizzle.B128)


@dataclass(kw_only=True, slots=True)
class Workspace:
    """A rank's private memory: activations between the GEMMs, routing lists, counters (zero between calls)."""

    shapes: Sm90Shapes
    memory: Tensor

    @classmethod
    def allocate(cls, shapes: Sm90Shapes, device: torch.device) -> Workspace:
        """Allocate it; only the counters need to be zero."""
        layout = shapes.workspace()
        memory = torch.empty(layout.num_bytes, dtype=torch.uint8, device=device)
        memory[layout.offsets()["list_ready"] :].zero_()
        return cls(shapes=shapes, memory=memory)

    def addresses(self) -> dict[str, int]:
        """Return each part's device address."""
        return {name: self.memory.data_ptr() + offset for name, offset in self.shapes.workspace().offsets().items()}

    def acts(self) -> Tensor:
        """Return the pool of activations as [pool rows, padded intermediate]."""
        shapes = self.shapes
        dtype = torch.float8_e4m3fn if shapes.is_fp8 else torch.bfloat16
        num_bytes = shapes.pool_rows * shapes.intermediate_padded * shapes.act_bytes
        return self.memory[:num_bytes].view(dtype).view(shapes.pool_rows, shapes.intermediate_padded)


class MoePlan:
    """Every launch that calls on one buffer can need, built, loaded and packed; a call patches a few fields and launches.

    Not for several threads at once, nor for overlapping calls on two streams: they would share the workspace.
    """

    def __init__(self, buffer: SymmBuffer, problem: Problem) -> None:
        """Build the kernels and load them; not inside a graph capture (ArgumentError)."""
        if torch.cuda.is_current_stream_capturing():
            raise ArgumentError(
                "the kernels of this call are not loaded yet, which a CUDA graph capture does not allow. "
                "Run the call once before the capture, or call prepare()."
            )
        self.buffer, self.problem = buffer, problem
        self.backend: CudaBackend = cuda_backend(buffer.device)
        self.error_record: HostErrorRecord = error_record(self.backend.device)
        shapes = Sm90Shapes(problem=problem, recipe=buffer.recipe)
        workspace: Workspace | None = buffer.plans.get("workspace")
        if workspace is None or workspace.shapes.workspace() != shapes.workspace():
            workspace = buffer.plans["workspace"] = Workspace.allocate(shapes, buffer.device)
        self.workspace = workspace
        self._staging: dict[bool, PreparedLaunch] = {}
        self._mega: dict[int, PreparedLaunch] = {}
        self._tiles: dict[int, PreparedLaunch] = {}  # by number of tokens
        for kernel in plan_kernels(problem, buffer.recipe, buffer.arch):
            if isinstance(kernel, Sm90StagingConfig):
                self._staging[kernel.source_is_codes] = self._prepare_staging(kernel)
            else:
                self._mega[kernel.block_n] = self._prepare_mega(kernel)
        offset = MEGA_MOE_PARAMS.offset
        self._weights_at = offset("l1_weights", num_ranks=problem.num_ranks)
        self._call_at = offset("recv_stats", num_ranks=problem.num_ranks)
        self._tail_at = offset("y_stride", num_ranks=problem.num_ranks)
        self._source_at = STAGING_PARAMS.offset("x", num_ranks=1)
        self._pool_rows = shapes.pool_rows

    def stage(self, x: Tensor, x_sf: Tensor | None, topk_idx: Tensor, topk_weights: Tensor) -> None:
        """Put checked tokens (BF16, or the recipe's codes) and their routing in the buffer, in kernel order: one launch."""
        num_tokens = x.shape[0]
        self.buffer.num_staged = num_tokens
        if num_tokens == 0:
            return
        launch = self._staging[x.dtype != torch.bfloat16]
        launch.patch(
            0,
            self._source_at,
            _SOURCE.pack(
                x.data_ptr(),
                0 if x_sf is None else x_sf.data_ptr(),
                topk_idx.data_ptr(),
                topk_weights.data_ptr(),
                x.stride(0) * x.element_size(),
                topk_idx.element_size(),
                num_tokens,
            ),
        )
        launch.launch()

    def stage_views(self, num_tokens: int) -> None:
        """Put what the caller wrote into the buffer's views in kernel order."""
        buffer = self.buffer
        x_sf = None if buffer.x_sf is None else buffer.x_sf[:num_tokens]
        self.stage(buffer.x[:num_tokens], x_sf, buffer.topk_idx[:num_tokens], buffer.topk_weights[:num_tokens])

    def run(
        self,
        y: Tensor,
        l1: TransformedWeights,
        l2: TransformedWeights,
        recv_stats: Tensor | None,
        routed_scaling_factor: float,
    ) -> None:
        """Launch the fused kernel over what was staged; all arguments were checked."""
        num_tokens = y.shape[0]
        self.buffer.num_staged = None
        if num_tokens == 0:
            return
        launch = self._tiles.get(num_tokens)
        if launch is None:
            launch = self._tiles[num_tokens] = self._mega[token_tile(self.problem, num_tokens)]
        launch.patch(0, self._weights_at, _weight_addresses(l1, l2))
        launch.patch(0, self._call_at, _CALL.pack(0 if recv_stats is None else recv_stats.data_ptr(), y.data_ptr()))
        launch.patch(
            0,
            self._tail_at,
            _TAIL.pack(y.stride(0), num_tokens, self._pool_rows, self.buffer.rank, routed_scaling_factor),
        )
        launch.launch()

    def raise_if_failed(self) -> None:
        """Raise LaunchError when a kernel of this device stopped itself (a wait that timed out) since the process began."""
        self.error_record.raise_if_failed(WAITS)

    def tensor_maps(self) -> dict[int, TensorMap]:
        """Return the tensor map of each token tile's kernel."""
        return {block_n: acts_tensor_map(self.workspace.acts(), block_n) for block_n in self._mega}

    def _sym_values(self) -> dict[str, int | float]:
        return {f"sym_{part}": self.buffer.offsets[part] for part in SYM_PARTS}

    def _prepare_staging(self, config: Sm90StagingConfig) -> PreparedLaunch:
        values: dict[str, int | float] = {**_zeros(STAGING_PARAMS), **self._sym_values(), "base": self._base}
        return self.backend.prepare(
            LaunchPlan(
                kernel=build(config),
                grid=(self.backend.info.num_sms * _STAGING_BLOCKS_PER_SM, 1, 1),
                block=(config.num_threads, 1, 1),
                params=(struct_bytes("params", STAGING_PARAMS.pack(values)),),
            )
        )

    def _prepare_mega(self, config: Sm90Config) -> PreparedLaunch:
        values: dict[str, int | float] = {
            **_zeros(MEGA_MOE_PARAMS),
            **self._sym_values(),
            **self.workspace.addresses(),
            "error_record": self.error_record.device_pointer,
            "timeout_ns": int(env.TIMEOUT_S.get() * 1e9),
        }
        return self.backend.prepare(
            LaunchPlan(
                kernel=build(config),
                grid=(self.backend.info.num_sms, 1, 1),
                block=(config.num_threads, 1, 1),
                smem_bytes=config.smem_bytes,
                cooperative=True,  # L2 tiles and combine wait for other blocks
                params=(
                    struct_bytes("params", MEGA_MOE_PARAMS.pack(values, peers=(self._base,))),
                    tensor_map("acts_map", acts_tensor_map(self.workspace.acts(), config.block_n)),
                ),
            )
        )

    @property
    def _base(self) -> int:
        assert self.buffer.handle is not None
        return self.buffer.handle.buffer_ptrs[self.buffer.rank]


def _zeros(block: ParamBlock) -> dict[str, int | float]:
    return dict.fromkeys((*block.quads, *(name for name, _ in block.words)), 0)


def _weight_addresses(l1: TransformedWeights, l2: TransformedWeights) -> bytes:
    return _WEIGHTS.pack(
        l1.data.data_ptr(),
        l2.data.data_ptr(),
        l1.alphas.data_ptr(),
        l2.alphas.data_ptr(),
        0 if l1.bias is None else l1.bias.data_ptr(),
        0 if l2.bias is None else l2.bias.data_ptr(),
    )
