"""Prepared launches of the Blackwell kernels; the same faces as the Hopper ones in ops/plan.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from megamoe_jit import env
from megamoe_jit.errors import MegaMoeError
from megamoe_jit.jit.build import build
from megamoe_jit.layouts.struct import StructLayout
from megamoe_jit.ops.checks import check_weights
from megamoe_jit.ops.tuning import TunedTiles, stored_tiles
from megamoe_jit.ops.weights import TransformedWeights
from megamoe_jit.recipes.choose import config_for_tile, plan_kernels, token_tile
from megamoe_jit.recipes.params import MEGA_MOE_SM100_PARAMS, STAGING_SM100_PARAMS, SYM_PARTS, ParamBlock
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.sm100 import Sm100Config, Sm100Shapes, Sm100StagingConfig
from megamoe_jit.recipes.waits import WAITS
from megamoe_jit.runtime.backend import Launchable, LaunchPlan, open_backend
from megamoe_jit.runtime.launch import struct_bytes, tensor_map
from megamoe_jit.runtime.symmetric import SymmBuffer
from megamoe_jit.runtime.tensormap import Swizzle, TensorMap, TmaElement, tensor_map_for

_LONGEST_NS = 2**62  # a century and a half
_CALL = struct.Struct("<8QIIf")  # l1_alphas .. routed_scaling_factor
_SOURCE = struct.Struct("<4QII")  # x .. num_tokens
_SYM_NAMES = {"tokens": "x", "token_sf": "x_scales"}  # the buffer's names of the kernels' parts
_WEIGHT_MAPS = ("l1_weights", "l1_weights_sf", "l2_weights", "l2_weights_sf")
# The kernel's parameters, in order: the struct, then tensor maps.
_MAPS = ("l1_weights", "l1_weights_sf", "tokens", "tokens_sf", "l2_weights", "l2_weights_sf", "acts", "acts_sf")


@dataclass(kw_only=True, slots=True)
class Sm100Workspace:
    """A rank's private memory: rings of tokens and activations, routing lists, counters (zero between calls)."""

    layout: StructLayout
    memory: Tensor

    @classmethod
    def allocate(cls, layout: StructLayout, device: torch.device) -> Sm100Workspace:
        """Allocate it zeroed: counters have to be, and parts of scale-factor atoms that no row fills are read."""
        memory = torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the first call may come on another stream
        return cls(layout=layout, memory=memory)

    def reset(self) -> None:
        """Zero the counters, as a call finds them and leaves them."""
        self.memory[self.layout.offsets()["list_ready"] :].zero_()

    def addresses(self) -> dict[str, int]:
        """Return each part's device address."""
        return {name: self.memory.data_ptr() + offset for name, offset in self.layout.offsets().items()}

    def part(self, name: str, num_bytes: int) -> Tensor:
        """Return the first `num_bytes` of a part, uint8."""
        start = self.layout.offsets()[name]
        return self.memory[start : start + num_bytes]


class Sm100StagingPlan:
    """The staging launch of one buffer. Codes that the caller put in the views are in kernel order as they are."""

    def __init__(self, buffer: SymmBuffer) -> None:
        """Build the kernel and load it."""
        self.buffer = buffer
        backend = open_backend(buffer.device)
        (config,) = (c for c in plan_kernels(buffer.problem, buffer.recipe, buffer.arch) if _is_staging(c))
        assert isinstance(config, Sm100StagingConfig)
        values: dict[str, int | float] = {
            **_zeros(STAGING_SM100_PARAMS),
            **_sym_values(buffer),
            "base": _base(buffer),
        }
        self._launch: Launchable = backend.prepare(
            LaunchPlan(
                kernel=build(config),
                grid=(backend.num_sms * config.blocks_per_sm, 1, 1),
                block=(config.num_threads, 1, 1),
                params=(struct_bytes("params", STAGING_SM100_PARAMS.pack(values)),),
                memory=(buffer.memory,),
            )
        )
        self._source_at = STAGING_SM100_PARAMS.offset("x", num_ranks=1)

    def stage(self, x: Tensor, x_sf: Tensor | None, topk_idx: Tensor, topk_weights: Tensor) -> None:
        """Quantise checked BF16 tokens into the buffer, with their routing: one launch."""
        assert x_sf is None
        num_tokens = x.shape[0]
        self.buffer.num_staged = num_tokens
        if num_tokens == 0:
            return
        source = _SOURCE.pack(
            x.data_ptr(),
            topk_idx.data_ptr(),
            topk_weights.data_ptr(),
            x.stride(0),
            topk_idx.element_size(),
            num_tokens,
        )
        self._launch.patch(0, self._source_at, source)
        self._launch.launch(reads=(x, topk_idx, topk_weights))

    def stage_views(self, num_tokens: int) -> None:
        """Take what the caller wrote into the buffer's views: it is where the kernel reads."""
        self.buffer.num_staged = num_tokens


class Sm100MoePlan:
    """The fused launches of one buffer and one activation, for every token tile; a call patches a few fields.

    Not for several threads at once, nor for overlapping calls on two streams: they would share the workspace.
    """

    def __init__(self, buffer: SymmBuffer, problem: Problem) -> None:
        """Build the kernels; they are loaded with the first weights, whose tensor maps are parameters."""
        self.backend = open_backend(buffer.device)
        self.buffer, self.problem = buffer, problem
        self.error_record = self.backend.error_record()
        self.shapes = Sm100Shapes(problem=problem, recipe=buffer.recipe)
        kernels = plan_kernels(problem, buffer.recipe, buffer.arch)
        self._configs = [config for config in kernels if isinstance(config, Sm100Config)]
        layout = self.shapes.workspace()
        key = ("workspace", layout)
        if key not in buffer.plans:
            buffer.plans[key] = Sm100Workspace.allocate(layout, buffer.device)
        self.workspace: Sm100Workspace = buffer.plans[key]
        self._launches = {config.block_n: self._prepare(config) for config in self._configs}
        self._weights: tuple[TransformedWeights, TransformedWeights] | None = None
        self._addresses: tuple[int, ...] = ()
        self._weight_memory: tuple[Tensor | None, ...] = ()
        self._call_at = MEGA_MOE_SM100_PARAMS.offset("l1_alphas", num_ranks=problem.num_ranks)
        self.retile(stored_tiles(problem, buffer.recipe, buffer.arch, self.backend))

    def retile(self, tiles: TunedTiles) -> None:
        """Take token tiles from `tiles`, and where they have none from the rule; kernels that are missing are built."""
        for block_n in sorted(tiles.needed - self._launches.keys()):
            config = config_for_tile(self.problem, self.buffer.recipe, self.buffer.arch, block_n)
            assert isinstance(config, Sm100Config)
            self._configs.append(config)
            self._launches[block_n] = self._prepare(config)
            self._weights = None  # the next bind gives the new launch its tensor maps
        self.tiles = tiles

    def bind(self, l1: TransformedWeights, l2: TransformedWeights) -> None:
        """Take the weights of the next call; raises ArgumentError when they do not fit the buffer or the activation."""
        if self._weights is not None and self._weights[0] is l1 and self._weights[1] is l2:
            return
        check_weights(l1, l2, self.buffer, self.problem.activation)
        self._weights = (l1, l2)
        called = (l1.alphas, l2.alphas, l1.bias, l2.bias, l1.forecast)
        self._weight_memory = (*called, l1.data, l1.sf, l2.data, l2.sf)
        self._addresses = tuple(0 if tensor is None else tensor.data_ptr() for tensor in called)
        maps = self._weight_maps(l1, l2)
        for launch in self._launches.values():
            for name, value in maps.items():
                launch.update(1 + _MAPS.index(name), value)

    def run(self, y: Tensor, recv_stats: Tensor | None, routed_scaling_factor: float) -> None:
        """Launch the fused kernel with the bound weights over what was staged; all arguments were checked."""
        num_tokens = y.shape[0]
        self.buffer.num_staged = None
        if num_tokens == 0:
            return
        block_n = self.tiles.tile(num_tokens) or token_tile(self.problem, self.buffer.recipe, num_tokens)
        launch = self._launches[block_n]
        call = _CALL.pack(
            *self._addresses,
            0 if recv_stats is None else recv_stats.data_ptr(),
            y.data_ptr(),
            y.stride(0),
            num_tokens,
            self.buffer.rank,
            routed_scaling_factor,
        )
        launch.patch(0, self._call_at, call)
        try:
            launch.launch(reads=self._weight_memory, writes=(y, recv_stats))
        except MegaMoeError:
            if not y.is_cuda:  # a GPU's context is lost; elsewhere the next call finds counters as this one did
                self.workspace.reset()
            raise

    def tensor_maps(self) -> list[tuple[str, TensorMap]]:
        """Return the tensor maps of all launches with the bound weights, each with the name of what it describes."""
        weights = [] if self._weights is None else list(self._weight_maps(*self._weights).items())
        return weights + [
            (f"{name}, token tile {config.block_n}", ring)
            for config in self._configs
            for name, ring in self._ring_maps(config).items()
        ]

    def raise_if_failed(self) -> None:
        """Raise LaunchError when a kernel of this device stopped itself (a wait timed out) since the process began."""
        self.error_record.raise_if_failed(WAITS)

    def _prepare(self, config: Sm100Config) -> Launchable:
        values: dict[str, int | float] = {
            **_zeros(MEGA_MOE_SM100_PARAMS),
            **_sym_values(self.buffer),
            **self.workspace.addresses(),
            "error_record": self.error_record.device_pointer,
            "timeout_ns": min(int(env.TIMEOUT_S.get() * 1e9), _LONGEST_NS),
        }
        maps = self._ring_maps(config)
        groups = max(1, self.backend.num_sms // config.cta_group)
        return self.backend.prepare(
            LaunchPlan(
                kernel=build(config),
                grid=(groups * config.cta_group, 1, 1),
                block=(config.num_threads, 1, 1),
                cluster=(config.cta_group, 1, 1),
                smem_bytes=config.smem_bytes,
                cooperative=True,  # tiles and combine wait for other blocks
                pdl=True,  # the kernel waits for staging itself (roles/route.cuh)
                params=(
                    struct_bytes("params", MEGA_MOE_SM100_PARAMS.pack(values, peers=(_base(self.buffer),))),
                    # Weights are bound later; until then any map stands in their place.
                    *(tensor_map(name, maps.get(name, maps["tokens_sf"])) for name in _MAPS),
                ),
                memory=(self.buffer.memory, self.workspace.memory),
            )
        )

    def _ring_maps(self, config: Sm100Config) -> dict[str, TensorMap]:
        """Return the maps of the rings: rows of codes in boxes of the CTA's tokens, and atoms of scale factors."""
        shapes, maps = self.shapes, {}
        rows, atoms = config.ring_tiles * config.block_n, config.ring_tiles * config.token_atoms
        for name, layout in zip(("tokens", "acts"), shapes.layouts(), strict=True):
            row_bytes = shapes.row_bytes(layout.padded_k)
            codes = self.workspace.part(name, rows * row_bytes).view(rows, row_bytes)
            element = TmaElement.U8 if shapes.is_fp8 else TmaElement.PACKED_U4
            box = (config.load_n, config.kind.block_k)
            maps[name] = tensor_map_for(codes, box=box, swizzle=Swizzle.B128, element=element)
            words = atoms * shapes.ring_words(layout)
            sf = self.workspace.part(f"{name}_sf", words * 512).view(torch.int32).view(words, 128)
            maps[f"{name}_sf"] = tensor_map_for(sf, box=(config.sf_words, 128))
        return maps

    def _weight_maps(self, l1: TransformedWeights, l2: TransformedWeights) -> dict[str, TensorMap]:
        """Return the maps of the weights: 128 rows of codes in a box, and 128 words of scale factors a K word."""
        kind, maps = self.shapes.kind, {}
        sf_words = self._configs[0].sf_words
        for name, weights in (("l1_weights", l1), ("l2_weights", l2)):
            assert weights.sf is not None
            codes = weights.codes.flatten(0, 1)
            element = TmaElement.PADDED_U4 if kind.pads_weights else TmaElement.PACKED_U4
            maps[name] = tensor_map_for(codes, box=(128, kind.block_k), swizzle=Swizzle.B128, element=element)
            sf = weights.sf.transpose(1, 2).flatten(0, 1)  # [experts x words, rows]
            maps[f"{name}_sf"] = tensor_map_for(sf, box=(sf_words, 128))
        return maps


def _is_staging(config: object) -> bool:
    return isinstance(config, Sm100StagingConfig)


def _sym_values(buffer: SymmBuffer) -> dict[str, int]:
    values = {f"sym_{part}": buffer.offsets.get(_SYM_NAMES.get(part, part), 0) for part in SYM_PARTS}
    return {**values, "sym_block_sf": buffer.offsets["x_sf"]}


def _base(buffer: SymmBuffer) -> int:
    assert buffer.handle is not None
    return buffer.handle.buffer_ptrs[buffer.rank]


def _zeros(block: ParamBlock) -> dict[str, int | float]:
    return dict.fromkeys((*block.quads, *(name for name, _ in block.words)), 0)
