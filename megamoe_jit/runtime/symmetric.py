"""The symmetric buffer: what a call's tokens come in and what experts send home through.

One buffer serves all layers of a model. On one rank it is plain device memory; kernels reach it through a table of base
pointers with one entry for each rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megamoe_jit.arch import Arch, MmaGeneration
from megamoe_jit.errors import ArgumentError, RankMismatchError, UnsupportedError
from megamoe_jit.layouts.struct import StructLayout, round_up
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import Element, Recipe, ScaleType
from megamoe_jit.recipes.sm90 import Sm90Shapes
from megamoe_jit.recipes.sm100 import Sm100Shapes

_INDEX_DTYPES = (torch.int32, torch.int64)
_BYTE_DTYPES = (torch.uint8, torch.int8)


@dataclass(frozen=True, kw_only=True, slots=True)
class SymmHandle:
    """Where the ranks' buffers lie: `buffer_ptrs[r]` is rank r's base address."""

    buffer_ptrs: tuple[int, ...]
    rank: int


def group_ranks(group: Any) -> tuple[int, int]:
    """Return (number of ranks, own rank) of a torch.distributed process group; None is one rank by itself."""
    if group is None:
        return 1, 0
    if not all(callable(getattr(group, method, None)) for method in ("size", "rank")):
        raise ArgumentError(
            f"group is a {type(group).__name__}, but a torch.distributed process group that this process is in, or "
            "None for one rank, is needed. Pass torch.distributed.group.WORLD or None."
        )
    num_ranks, rank = group.size(), group.rank()
    if not 0 <= rank < num_ranks:
        raise RankMismatchError(
            f"group says that this process is rank {rank} of {num_ranks}, so it is not in the group. Pass a group "
            "that it belongs to."
        )
    return num_ranks, rank


def buffer_layout(problem: Problem, recipe: Recipe) -> StructLayout:
    """Return the parts of a rank's buffer by name, with sizes and offsets in bytes.

    Raises ArgumentError when the recipe's block scale factors do not divide hidden.
    """
    if recipe.generation is MmaGeneration.WGMMA:
        return Sm90Shapes(problem=problem, recipe=recipe).symmetric()
    gran_k = recipe.l1_acts.gran_k
    assert gran_k is not None
    if problem.hidden % gran_k:
        raise ArgumentError(
            f"hidden={problem.hidden}, but recipe {recipe.name} needs a multiple of {gran_k} (values that share a "
            f"scale factor). Pad hidden with zeros to {round_up(problem.hidden, gran_k)}."
        )
    return Sm100Shapes(problem=problem, recipe=recipe).symmetric()


def estimate_buffer(problem: Problem, recipe: Recipe) -> dict[str, int]:
    """Return the bytes of each part of the symmetric buffer and, as "workspace", of a rank's private workspace."""
    parts = {field.name: field.num_bytes for field in buffer_layout(problem, recipe).fields}
    shapes = Sm90Shapes if recipe.generation is MmaGeneration.WGMMA else Sm100Shapes
    parts["workspace"] = shapes(problem=problem, recipe=recipe).workspace().num_bytes
    return parts


class SymmBuffer:
    """Device memory for one rank's tokens, routing and returning expert outputs, and the views that a caller fills.

    Views (T = max_tokens_per_rank, K = num_topk, H = hidden), filled before a call, or written by `stage_tokens`:

    - x: the recipe's activation codes in natural order: float8_e4m3fn [T, H], bfloat16 [T, H], or uint8 [T, H/2]
      packed E2M1.
    - x_sf: float32 [T] (fp8 recipes); int32 [T, H/(4 gran_k)], four scale bytes a word, least K first, or with
      `packed_sf=False` the same bytes as float8 [T, H/gran_k]; None for BF16 recipes.
    - x_scales: float32 [T], NVFP4's second-level scale of each token; None for other recipes.
    - topk_idx: int64 or int32 [T, K]; -1 means not routed, and so does any index that is no expert.
    - topk_weights: float32 [T, K].

    Raises ArgumentError for sizes out of range, RankMismatchError for a process group of another size.
    """

    def __init__(
        self,
        *,
        problem: Problem,
        recipe: Recipe,
        arch: Arch,
        device: torch.device,
        group: Any = None,
        packed_sf: bool = True,
    ) -> None:
        """Allocate zeroed memory and make the views."""
        num_ranks, rank = group_ranks(group)
        if num_ranks != problem.num_ranks:
            raise RankMismatchError(
                f"group has {num_ranks} ranks, and the problem was made for num_ranks={problem.num_ranks}. Use the "
                "same group for both."
            )
        if num_ranks != 1:
            raise UnsupportedError(
                f"group has {num_ranks} ranks, and this version runs expert parallelism on one. Pass group=None on "
                "each rank and exchange tokens outside of the call."
            )
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise ArgumentError(
                "a symmetric buffer cannot be made inside a CUDA graph capture. Make it before the capture."
            )
        self.problem, self.recipe, self.arch, self.device, self.group = problem, recipe, arch, device, group
        self.rank, self.packed_sf = rank, packed_sf
        self.layout = buffer_layout(problem, recipe)
        self.offsets = self.layout.offsets()
        self._sizes = {field.name: field.num_bytes for field in self.layout.fields}
        self._storage: Tensor | None = self._allocate()
        self.handle: SymmHandle | None = SymmHandle(buffer_ptrs=(self._storage.data_ptr(),), rank=rank)
        self.num_staged: int | None = None  # tokens that stage_tokens put in kernel order for the next call
        self.staged: torch.Tensor | None = None  # they themselves, for the reference: the views hold rounded ones
        self.plans: dict[Any, Any] = {}  # prepared launches over this memory (ops.plan)

        t, h, acts = problem.max_tokens_per_rank, problem.hidden, recipe.l1_acts
        dtype = {Element.E4M3: torch.float8_e4m3fn, Element.BF16: torch.bfloat16, Element.E2M1: torch.uint8}[
            acts.element
        ]
        self.x = self.view("x", dtype, (t, h // 2 if acts.element is Element.E2M1 else h))
        self.x_sf: Tensor | None = None
        self.x_scales = self.view("x_scales", torch.float32, (t,)) if acts.row_scale else None
        if acts.sf_type is ScaleType.FP32:
            self.x_sf = self.view("x_sf", torch.float32, (t,))
        elif acts.gran_k is not None:
            self.x_sf = self._block_sf(acts.gran_k, packed_sf)
        index_dtype = torch.int64 if problem.topk_idx_bytes == 8 else torch.int32
        self.topk_idx = self.view("topk_idx", index_dtype, (t, problem.num_topk))
        self.topk_weights = self.view("topk_weights", torch.float32, (t, problem.num_topk))
        self.topk_idx.fill_(-1)

    def _allocate(self) -> Tensor:
        try:
            # A buffer made under torch.inference_mode() is written outside of it too; its views likewise.
            with torch.inference_mode(False):
                return torch.zeros(self.layout.num_bytes, dtype=torch.uint8, device=self.device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one, and stays one
            largest = max(self._sizes, key=self._sizes.__getitem__)
            raise type(error)(
                f"no memory for a symmetric buffer of {self.layout.num_bytes} B ({self._sizes[largest]} B of it "
                f"{largest!r}) on {self.device}, for {self.problem.max_tokens_per_rank} tokens. Make it with a smaller "
                f"num_max_tokens_per_rank. {error}"
            ) from error

    def view(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return part `name` as a tensor that shares the buffer's memory."""
        self.check_alive()
        assert self._storage is not None
        start = self.offsets[name]
        with torch.inference_mode(False):
            return self._storage[start : start + self._sizes[name]].view(dtype).view(shape)

    @property
    def memory(self) -> Tensor:
        """All bytes of this rank's buffer, uint8 [num_bytes]."""
        self.check_alive()
        assert self._storage is not None
        return self._storage

    def address(self, name: str) -> int:
        """Return the device address of part `name`."""
        assert self.handle is not None
        return self.handle.buffer_ptrs[self.rank] + self.offsets[name]

    @property
    def num_bytes(self) -> int:
        """Bytes of the buffer on one rank."""
        return self.layout.num_bytes

    @property
    def num_max_tokens_per_rank(self) -> int:
        """Capacity in tokens."""
        return self.problem.max_tokens_per_rank

    @property
    def num_experts(self) -> int:
        """Experts of all ranks."""
        return self.problem.num_experts

    @property
    def num_topk(self) -> int:
        """Experts a token goes to."""
        return self.problem.num_topk

    @property
    def hidden(self) -> int:
        """Model width."""
        return self.problem.hidden

    @property
    def intermediate_hidden(self) -> int:
        """Width between the GEMMs."""
        return self.problem.intermediate

    @property
    def experts_start_idx(self) -> int:
        """First expert of this rank."""
        return self.rank * self.problem.num_local_experts

    def fill(
        self, x: Tensor, x_sf: Tensor | None, topk_idx: Tensor, topk_weights: Tensor, *, x_scales: Tensor | None = None
    ) -> None:
        """Copy quantised tokens and their routing into the views, in any form that they come in.

        x [n, H] (or [n, H/2] packed E2M1 as uint8, int8 or float4_e2m1fn_x2); x_sf packed (int32) or plain (bytes or
        float8), or float32 [n]; topk_idx int32 or int64 [n, K]; topk_weights float32 [n, K]. Raises ArgumentError for
        anything else.
        """
        self.check_alive()
        num_tokens = check_routing(
            topk_idx, topk_weights, num_topk=self.num_topk, capacity=self.num_max_tokens_per_rank, device=self.device
        )
        # What is no expert stays none where int64 becomes int32: 2^32 must not become expert 0.
        wide = topk_idx.dtype != self.topk_idx.dtype
        experts = topk_idx.clamp(-1, self.num_experts) if wide else topk_idx
        copies: list[tuple[Tensor, Tensor]] = [(self.topk_idx, experts), (self.topk_weights, topk_weights)]
        for name, given, target, dtypes in (
            ("x", x, self.x, self._code_dtypes),
            ("x_sf", x_sf, self.x_sf, self._sf_dtypes),
            ("x_scales", x_scales, self.x_scales, (torch.float32,)),
        ):
            if (given is None) != (target is None):
                need = (
                    "needs none"
                    if target is None
                    else f"needs {target.dtype} [{', '.join(map(str, ('num_tokens', *target.shape[1:])))}]"
                )
                raise ArgumentError(
                    f"{name} is {'missing' if given is None else 'given'}, and recipe {self.recipe.name} {need}. "
                    "See SymmBuffer."
                )
            if given is None or target is None:
                continue
            check_tensor(name, given)
            if given.device != self.device:
                raise ArgumentError(f"{name} is on {given.device}, but the buffer is on {self.device}. Move it there.")
            raw, goal = given, target
            if len(dtypes) > 1 and given.dtype in dtypes and given.ndim == target.ndim:
                raw, goal = _as_bytes(given), _as_bytes(target)
            if given.dtype not in dtypes or raw.shape != (num_tokens, *goal.shape[1:]):
                raise ArgumentError(
                    f"{name} is {given.dtype} {list(given.shape)}, and {num_tokens} tokens of recipe "
                    f"{self.recipe.name} need "
                    f"{target.dtype} {[num_tokens, *target.shape[1:]]} (or the same as bytes; block scale factors "
                    "packed or not). Quantise them with the recipe's quantiser, or let stage_tokens do it."
                )
            copies.append((goal, raw))
        with torch.no_grad():
            for goal, raw in copies:
                goal[:num_tokens].copy_(raw)
        self.num_staged = self.staged = None

    @property
    def _code_dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes that codes for `x` may come in."""
        if self.recipe.l1_acts.element is Element.BF16:
            return (torch.bfloat16,)
        packed = self.recipe.l1_acts.element is Element.E2M1
        return (torch.float4_e2m1fn_x2 if packed else torch.float8_e4m3fn, *_BYTE_DTYPES)

    @property
    def _sf_dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes that scale factors for `x_sf` may come in."""
        sf_type = self.recipe.l1_acts.sf_type
        if sf_type is ScaleType.FP32:
            return (torch.float32,)
        return (torch.float8_e4m3fn if sf_type is ScaleType.UE4M3 else torch.float8_e8m0fnu, torch.int32, *_BYTE_DTYPES)

    def destroy(self) -> None:
        """Drop the memory, the views and the prepared launches."""
        self.plans.clear()
        self.handle = self._storage = self.x_sf = self.x_scales = None
        self.x = self.topk_idx = self.topk_weights = torch.empty(0)

    def check_alive(self) -> None:
        """Raise ArgumentError when the buffer was destroyed."""
        if self._storage is None:
            raise ArgumentError("sym_buffer was destroyed. Make a new one with get_symm_buffer_for_nvfp4_mega_moe.")

    @property
    def is_destroyed(self) -> bool:
        """Whether `destroy` was called."""
        return self._storage is None

    def _block_sf(self, gran_k: int, packed: bool) -> Tensor:
        t, h = self.problem.max_tokens_per_rank, self.problem.hidden
        if packed:
            if h % (4 * gran_k):
                raise ArgumentError(
                    f"hidden={h} gives {h // gran_k} scale factors a token, which do not fill whole int32 words. Use "
                    "packed_sf=False."
                )
            return self.view("x_sf", torch.int32, (t, h // (4 * gran_k)))
        return self.view("x_sf", self._sf_dtypes[0], (t, h // gran_k))


def check_routing(topk_idx: Tensor, topk_weights: Tensor, *, num_topk: int, capacity: int, device: torch.device) -> int:
    """Return the number of tokens of a call's routing; raises ArgumentError unless both tensors fit."""
    check_tensor("topk_idx", topk_idx)
    check_tensor("topk_weights", topk_weights)
    if topk_idx.ndim != 2 or topk_idx.shape[1] != num_topk or topk_idx.dtype not in _INDEX_DTYPES:
        raise ArgumentError(
            f"topk_idx is {topk_idx.dtype} {list(topk_idx.shape)}, but int32 or int64 [num_tokens, {num_topk}] is "
            "needed. Pass the router's expert indices, -1 where a slot is not routed."
        )
    num_tokens = topk_idx.shape[0]
    if topk_weights.dtype != torch.float32 or topk_weights.shape != topk_idx.shape:
        raise ArgumentError(
            f"topk_weights is {topk_weights.dtype} {list(topk_weights.shape)}, but float32 {list(topk_idx.shape)} (as "
            "topk_idx) is needed. Convert it with .float()."
        )
    if num_tokens > capacity:
        raise ArgumentError(
            f"{num_tokens} tokens were given, and the buffer holds {capacity}. Split the batch, or make it with a "
            "larger capacity."
        )
    for name, tensor in (("topk_idx", topk_idx), ("topk_weights", topk_weights)):
        if tensor.device != device:
            raise ArgumentError(f"{name} is on {tensor.device}, but the buffer is on {device}. Move it there.")
        if not tensor.is_contiguous():
            raise ArgumentError(
                f"{name} {list(tensor.shape)} has strides {list(tensor.stride())}, but a contiguous tensor is needed. "
                "Call .contiguous()."
            )
    return num_tokens


def check_tensor(name: str, value: object) -> None:
    """Raise ArgumentError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"{name} is a {type(value).__name__}, but a tensor is needed. Pass a torch.Tensor.")


def _as_bytes(tensor: Tensor) -> Tensor:
    return (tensor if tensor.dtype.itemsize == 1 else tensor.contiguous()).view(torch.uint8)
