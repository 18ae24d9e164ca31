"""Prepared launches of the kernels (here the Hopper ones), on the backend of the buffer's device.

One plan serves every layer that shares a buffer and an activation.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megamoe_jit import env
from megamoe_jit.arch import MmaGeneration
from megamoe_jit.errors import ArgumentError, MegaMoeError
from megamoe_jit.formats.activation import ActivationSpec, TopkWeightStage
from megamoe_jit.jit.build import build
from megamoe_jit.ops.checks import check_weights
from megamoe_jit.ops.plan_sm100 import Sm100MoePlan, Sm100StagingPlan
from megamoe_jit.ops.tuning import TunedTiles, stored_tiles
from megamoe_jit.ops.weights import TransformedWeights
from megamoe_jit.recipes.choose import check_target, config_for_tile, plan_kernels, token_tile
from megamoe_jit.recipes.params import MEGA_MOE_PARAMS, STAGING_PARAMS, SYM_PARTS, ParamBlock
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.sm90 import SF_GRAN_K, Sm90Config, Sm90Shapes, Sm90StagingConfig
from megamoe_jit.recipes.waits import WAITS
from megamoe_jit.runtime.backend import Backend, Launchable, LaunchPlan, open_backend
from megamoe_jit.runtime.launch import struct_bytes, tensor_map
from megamoe_jit.runtime.symmetric import SymmBuffer
from megamoe_jit.runtime.tensormap import Swizzle, TensorMap, tensor_map_for

_LONGEST_NS = 2**62  # a century and a half
_CALL = struct.Struct("<14QIIIIf")  # l1_weights .. routed_scaling_factor
_SOURCE = struct.Struct("<5QII")  # x .. num_tokens


def pool_tensor_map(rows: Tensor, box_rows: int) -> TensorMap:
    """Return the map by which a layer reads its pool [pool rows, K], in swizzled boxes of box_rows x 128 B."""
    return tensor_map_for(rows, box=(box_rows, 128 // rows.element_size()), swizzle=Swizzle.B128)


@dataclass(kw_only=True, slots=True)
class Workspace:
    """A rank's private memory: activations between the GEMMs, routing lists, counters (zero between calls)."""

    shapes: Sm90Shapes
    memory: Tensor

    @classmethod
    def allocate(cls, shapes: Sm90Shapes, device: torch.device) -> Workspace:
        """Allocate it; only the counters need to be zero."""
        layout = shapes.workspace()
        workspace = cls(shapes=shapes, memory=torch.empty(layout.num_bytes, dtype=torch.uint8, device=device))
        workspace.reset()
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the first call may come on another stream
        return workspace

    def reset(self) -> None:
        """Zero the counters, as a call finds them and leaves them."""
        self.memory[self.shapes.workspace().offsets()["rows_ready"] :].zero_()

    def addresses(self) -> dict[str, int]:
        """Return each part's device address."""
        return {name: self.memory.data_ptr() + offset for name, offset in self.shapes.workspace().offsets().items()}

    def tokens(self) -> Tensor:
        """Return the pool of routed tokens as [pool rows, hidden as K], K in token order."""
        return self._pool("tokens", self.shapes.hidden_k)

    def acts(self) -> Tensor:
        """Return the pool of activations as [pool rows, padded intermediate], K in token order."""
        return self._pool("acts", self.shapes.intermediate_padded)

    def _pool(self, part: str, columns: int) -> Tensor:
        shapes, start = self.shapes, self.shapes.workspace().offsets()[part]
        dtype = torch.float8_e4m3fn if shapes.is_fp8 else torch.bfloat16
        memory = self.memory[start : start + shapes.pool_rows * columns * shapes.act_bytes]
        return memory.view(dtype).view(shapes.pool_rows, columns)

    def acts_sf(self) -> Tensor:
        """Return the activations' scale factors as float32 [padded intermediate / 128, pool rows] (fp8 recipes)."""
        shapes = self.shapes
        blocks, start = shapes.intermediate_padded // SF_GRAN_K, shapes.workspace().offsets()["acts_sf"]
        memory = self.memory[start : start + blocks * shapes.pool_rows * 4]
        return memory.view(torch.float32).view(blocks, shapes.pool_rows)


class StagingPlan:
    """The staging launches of one buffer: from BF16 tokens, and from codes that the caller put in the views."""

    def __init__(self, buffer: SymmBuffer) -> None:
        """Build the kernels and load them."""
        backend = open_backend(buffer.device)
        self.buffer = buffer
        values: dict[str, int | float] = {
            **_zeros(STAGING_PARAMS),
            **_sym_values(buffer),
            "base": _base(buffer),
        }
        self._launches: dict[bool, Launchable] = {}
        for config in plan_kernels(buffer.problem, buffer.recipe, buffer.arch):
            if isinstance(config, Sm90StagingConfig):
                plan = LaunchPlan(
                    kernel=build(config),
                    grid=(backend.num_sms * config.blocks_per_sm, 1, 1),
                    block=(config.num_threads, 1, 1),
                    params=(struct_bytes("params", STAGING_PARAMS.pack(values)),),
                    memory=(buffer.memory,),
                )
                self._launches[config.source_is_codes] = backend.prepare(plan)
        self._source_at = STAGING_PARAMS.offset("x", num_ranks=1)

    def stage(self, x: Tensor, x_sf: Tensor | None, topk_idx: Tensor, topk_weights: Tensor) -> None:
        """Put checked tokens (BF16, or the recipe's codes) and routing into the buffer in kernel order: one launch."""
        num_tokens = x.shape[0]
        self.buffer.num_staged = num_tokens
        if num_tokens == 0:
            return
        item_bytes = x.element_size()
        launch = self._launches[item_bytes == 1]
        source = _SOURCE.pack(
            x.data_ptr(),
            0 if x_sf is None else x_sf.data_ptr(),
            topk_idx.data_ptr(),
            topk_weights.data_ptr(),
            x.stride(0) * item_bytes,
            topk_idx.element_size(),
            num_tokens,
        )
        launch.patch(0, self._source_at, source)
        launch.launch(reads=(x, x_sf, topk_idx, topk_weights))

    def stage_views(self, num_tokens: int) -> None:
        """Put what the caller wrote into the buffer's views in kernel order."""
        buffer = self.buffer
        x_sf = None if buffer.x_sf is None else buffer.x_sf[:num_tokens]
        self.stage(buffer.x[:num_tokens], x_sf, buffer.topk_idx[:num_tokens], buffer.topk_weights[:num_tokens])


class MoePlan:
    """The fused launches of one buffer and one activation, for every token tile; a call patches a few fields.

    Not for several threads at once, nor for overlapping calls on two streams: they would share the workspace.
    """

    def __init__(self, buffer: SymmBuffer, problem: Problem) -> None:
        """Build the kernels and load them."""
        self.backend = open_backend(buffer.device)
        self.buffer, self.problem = buffer, problem
        self.error_record = self.backend.error_record()
        shapes = Sm90Shapes(problem=problem, recipe=buffer.recipe)
        # Activations with and without a gate pad differently; calls of one kind share their workspace.
        key = ("workspace", shapes.workspace())
        if key not in buffer.plans:
            buffer.plans[key] = Workspace.allocate(shapes, buffer.device)
        self.workspace: Workspace = buffer.plans[key]
        self._launches: dict[int, Launchable] = {
            config.block_n: self._prepare(config)
            for config in plan_kernels(problem, buffer.recipe, buffer.arch)
            if isinstance(config, Sm90Config)
        }
        self._by_num_tokens: dict[int, Launchable] = {}
        self.retile(stored_tiles(problem, buffer.recipe, buffer.arch, self.backend))
        self._weights: tuple[TransformedWeights, TransformedWeights] | None = None
        self._addresses: tuple[int, ...] = ()
        self._weight_memory: tuple[Tensor | None, ...] = ()
        self._call_at = MEGA_MOE_PARAMS.offset("l1_weights", num_ranks=problem.num_ranks)
        self._pool_rows = shapes.pool_rows
        staged = (_base(buffer) + buffer.offsets[part] for part in ("topk_idx", "topk_weights"))
        self._staged = (0, 0, *staged, problem.topk_idx_bytes)

    def retile(self, tiles: TunedTiles) -> None:
        """Take token tiles from `tiles`, and where they have none from the rule; kernels that are missing are built."""
        for block_n in sorted(tiles.needed - self._launches.keys()):
            config = config_for_tile(self.problem, self.buffer.recipe, self.buffer.arch, block_n)
            assert isinstance(config, Sm90Config)
            self._launches[block_n] = self._prepare(config)
        self.tiles = tiles
        self._by_num_tokens.clear()

    def bind(self, l1: TransformedWeights, l2: TransformedWeights) -> None:
        """Take the weights of the next call; raises ArgumentError when they do not fit the buffer or the activation."""
        if self._weights is not None and self._weights[0] is l1 and self._weights[1] is l2:
            return
        check_weights(l1, l2, self.buffer, self.problem.activation)
        self._weights = (l1, l2)
        self._weight_memory = (l1.data, l2.data, l1.alphas, l2.alphas, l1.bias, l2.bias, l1.forecast)
        self._addresses = tuple(0 if tensor is None else tensor.data_ptr() for tensor in self._weight_memory)

    def run(
        self,
        y: Tensor,
        recv_stats: Tensor | None,
        routed_scaling_factor: float,
        source: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        """Launch the fused kernel with the bound weights; all arguments were checked.

        `source` is (x, topk_idx, topk_weights): the kernel then quantises the tokens itself. Without it the call is
        over what was staged.
        """
        num_tokens = y.shape[0]
        self.buffer.num_staged = None
        if num_tokens == 0:
            return
        launch = self._by_num_tokens.get(num_tokens)
        if launch is None:
            block_n = self.tiles.tile(num_tokens) or token_tile(self.problem, self.buffer.recipe, num_tokens)
            launch = self._by_num_tokens[num_tokens] = self._launches[block_n]
        call = _CALL.pack(
            *self._addresses,
            0 if recv_stats is None else recv_stats.data_ptr(),
            y.data_ptr(),
            y.stride(0),
            *(self._staged if source is None else _source_fields(*source)),
            num_tokens,
            self._pool_rows,
            self.buffer.rank,
            routed_scaling_factor,
        )
        launch.patch(0, self._call_at, call)
        try:
            launch.launch(reads=(*self._weight_memory, *(source or ())), writes=(y, recv_stats))
        except MegaMoeError:
            if not y.is_cuda:  # a GPU's context is lost; elsewhere the next call finds counters as this one did
                self.workspace.reset()
            raise

    def tensor_maps(self) -> list[tuple[str, TensorMap]]:
        """Return the tensor maps of all launches, each with the name of what it describes."""
        return [
            (f"{param.name.removesuffix('_map')}, token tile {block_n}", param.value)
            for block_n, launch in self._launches.items()
            for param in launch.plan.params
            if isinstance(param.value, TensorMap)
        ]

    def raise_if_failed(self) -> None:
        """Raise LaunchError when a kernel of this device stopped itself (a wait timed out) since the process began."""
        self.error_record.raise_if_failed(WAITS)

    def _prepare(self, config: Sm90Config) -> Launchable:
        values: dict[str, int | float] = {
            **_zeros(MEGA_MOE_PARAMS),
            **_sym_values(self.buffer),
            **self.workspace.addresses(),
            "error_record": self.error_record.device_pointer,
            "timeout_ns": min(int(env.TIMEOUT_S.get() * 1e9), _LONGEST_NS),
        }
        return self.backend.prepare(
            LaunchPlan(
                kernel=build(config),
                grid=(self.backend.num_sms, 1, 1),
                block=(config.num_threads, 1, 1),
                smem_bytes=config.smem_bytes,
                cooperative=True,  # L2 tiles and combine wait for other blocks
                pdl=True,  # the kernel waits for the one before itself (roles/dispatch_sm90.cuh)
                params=(
                    struct_bytes("params", MEGA_MOE_PARAMS.pack(values, peers=(_base(self.buffer),))),
                    tensor_map("tokens_map", pool_tensor_map(self.workspace.tokens(), config.box_rows)),
                    tensor_map("acts_map", pool_tensor_map(self.workspace.acts(), config.box_rows)),
                ),
                memory=(self.buffer.memory, self.workspace.memory),
            )
        )


AnyMoePlan = MoePlan | Sm100MoePlan


def staging_plan(buffer: SymmBuffer) -> StagingPlan | Sm100StagingPlan:
    """Return the staging launches of `buffer`, prepared when first asked for; not inside a graph capture."""
    plan: StagingPlan | Sm100StagingPlan | None = buffer.plans.get("staging")
    if plan is None:
        check_target(buffer.recipe, buffer.arch)
        _refuse_capture(open_backend(buffer.device))
        is_sm100 = buffer.recipe.generation is MmaGeneration.TCGEN05
        plan = buffer.plans["staging"] = Sm100StagingPlan(buffer) if is_sm100 else StagingPlan(buffer)
    return plan


def moe_plan(
    buffer: SymmBuffer,
    activation: ActivationSpec,
    *,
    fast_math: bool,
    topk_weight_stage: TopkWeightStage = "after_l2",
) -> AnyMoePlan:
    """Return the fused launches of `buffer` for an activation, prepared when first asked for; not inside a capture."""
    key = (activation, fast_math, topk_weight_stage)
    plan: AnyMoePlan | None = buffer.plans.get(key)
    if plan is None:
        check_target(buffer.recipe, buffer.arch)
        _refuse_capture(open_backend(buffer.device))
        problem = replace(
            buffer.problem, activation=activation, fast_math=fast_math, topk_weight_stage=topk_weight_stage
        )
        is_sm100 = buffer.recipe.generation is MmaGeneration.TCGEN05
        plan = buffer.plans[key] = Sm100MoePlan(buffer, problem) if is_sm100 else MoePlan(buffer, problem)
    return plan


def _refuse_capture(backend: Backend) -> None:
    if backend.is_capturing():
        raise ArgumentError(
            "the kernels of this call are not loaded yet, which a CUDA graph capture does not allow. "
            "Run the call once before the capture, or call prepare()."
        )


def _source_fields(x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> tuple[int, ...]:
    x_stride_bytes = x.stride(0) * x.element_size()
    return (x.data_ptr(), x_stride_bytes, topk_idx.data_ptr(), topk_weights.data_ptr(), topk_idx.element_size())


def _sym_values(buffer: SymmBuffer) -> dict[str, int]:
    return {f"sym_{part}": buffer.offsets[part] for part in SYM_PARTS}


def _base(buffer: SymmBuffer) -> int:
    assert buffer.handle is not None
    return buffer.handle.buffer_ptrs[buffer.rank]


def _zeros(block: ParamBlock) -> dict[str, int | float]:
    return dict.fromkeys((*block.quads, *(name for name, _ in block.words)), 0)
