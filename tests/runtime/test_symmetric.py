"""The symmetric buffer as memory: its parts, their sizes, views, addresses, and its end."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from megamoe_jit import ArgumentError, Problem, get_recipe, list_recipes
from megamoe_jit.arch import MmaGeneration, get_arch
from megamoe_jit.recipes.recipe import Recipe
from megamoe_jit.recipes.sm100 import Sm100Shapes
from megamoe_jit.runtime.symmetric import SymmBuffer, SymmHandle, buffer_layout, estimate_buffer, group_ranks

LAYER = Problem(hidden=512, intermediate=256, num_experts=8, num_topk=3, max_tokens_per_rank=40)
ROUTING = {"topk_idx": 40 * 3 * 8, "topk_weights": 40 * 3 * 4}
STAGED = {
    "token_sf": 40 * (1 + 1) * 4,  # one block of 512, then the whole token
    "partials": 40 * 3 * 512 * 2,
}
HOME = {"partials": 40 * 3 * 512 * 2}
PARTS = {
    "nvfp4_nvfp4": {"x": 40 * 256, "x_sf": 40 * 32, "x_scales": 40 * 4, **HOME},
    "mxfp8_mxfp4": {"x": 40 * 512, "x_sf": 40 * 16, "x_scales": 40 * 4, **HOME},
    "mxfp8_nvfp4": {"x": 40 * 512, "x_sf": 40 * 16, "x_scales": 40 * 4, **HOME},
    "mxfp4_mxfp4": {"x": 40 * 256, "x_sf": 40 * 16, "x_scales": 40 * 4, **HOME},
    "fp8_nvfp4": {"x": 40 * 512, "x_sf": 40 * 4, "tokens": 40 * 512, **STAGED},
    "bf16_nvfp4": {"x": 40 * 1024, "x_sf": 40 * 4, "tokens": 40 * 1024, **STAGED},
    "fp8_mxfp4": {"x": 40 * 512, "x_sf": 40 * 4, "tokens": 40 * 512, **STAGED},
    "bf16_mxfp4": {"x": 40 * 1024, "x_sf": 40 * 4, "tokens": 40 * 1024, **STAGED},
}


def make(recipe: str = "fp8_nvfp4", **changes: object) -> SymmBuffer:
    """Return a buffer of the layer on the CPU."""
    chosen: Recipe = get_recipe(recipe)
    problem = replace(LAYER, **changes)  # type: ignore[arg-type]
    return SymmBuffer(problem=problem, recipe=chosen, arch=get_arch(chosen.targets[0]), device=torch.device("cpu"))


@pytest.mark.parametrize("name", list_recipes())
def test_parts_have_the_sizes_that_views_and_kernels_need(name: str) -> None:
    recipe = get_recipe(name)
    layout = buffer_layout(LAYER, recipe)
    assert {field.name: field.num_bytes for field in layout.fields} == PARTS[name] | ROUTING
    offsets = layout.offsets()
    ends = {field.name: offsets[field.name] + field.num_bytes for field in layout.fields}
    assert all(offset % 1024 == 0 for offset in offsets.values())
    assert all(ends[a] <= offsets[b] for a, b in itertools.pairwise(sorted(offsets, key=offsets.__getitem__)))
    assert make(name).num_bytes == layout.num_bytes >= max(ends.values())


@pytest.mark.parametrize("name", list_recipes())
def test_an_estimate_names_every_part(name: str) -> None:
    recipe = get_recipe(name)
    estimate = estimate_buffer(LAYER, recipe)
    workspace = estimate.pop("workspace")
    assert estimate == PARTS[name] | ROUTING
    if recipe.generation is MmaGeneration.WGMMA:
        # Each expert's last token tile has all its rows, whatever the tile is.
        rows = 40 * 3 + 8 * (191 if name.startswith("fp8") else 127)
        pools = rows * (512 + 256) * (1 if name.startswith("fp8") else 2)  # tokens and activations
        # Scale factors of activations and tokens; slot, scale and weight of a row.
        columns = rows * 4 * (256 // 128 + 512 // 512 + 3)
        assert 0 < workspace - pools - columns < 4 * 1024  # counters, and the alignment of parts
    else:
        assert workspace == Sm100Shapes(problem=LAYER, recipe=recipe).workspace().num_bytes


def test_int32_indices_take_half_the_room() -> None:
    wide, narrow = (estimate_buffer(replace(LAYER, topk_idx_bytes=n), get_recipe("fp8_nvfp4")) for n in (8, 4))
    assert wide | {"topk_idx": 40 * 3 * 4} == narrow


@pytest.mark.parametrize("name", list_recipes())
def test_views_share_the_buffers_memory(name: str) -> None:
    """A byte written through a view lies at the part's address, and nowhere else."""
    buffer = make(name)
    views = {"x": buffer.x, "x_sf": buffer.x_sf, "x_scales": buffer.x_scales}
    views |= {"topk_idx": buffer.topk_idx, "topk_weights": buffer.topk_weights}
    assert buffer.handle is not None
    for part, view in views.items():
        if view is None:
            continue
        assert view.is_contiguous()
        assert view.data_ptr() == buffer.address(part) == buffer.handle.buffer_ptrs[0] + buffer.offsets[part]
        raw = buffer.view(part, torch.uint8, (-1,))
        before = raw.clone()
        view.view(torch.uint8).view(-1)[-1] = 77
        assert raw[view.numel() * view.element_size() - 1] == 77
        raw.copy_(before)
    assert bool((buffer.topk_idx == -1).all())
    assert not buffer.topk_weights.any()
    assert not buffer.x.view(torch.uint8).any()


def test_a_destroyed_buffer_lets_its_memory_go() -> None:
    buffer = make("nvfp4_nvfp4")
    buffer.plans["key"] = object()
    assert not buffer.is_destroyed
    for _ in range(2):
        buffer.destroy()
        assert buffer.is_destroyed
        assert buffer.handle is None
        assert not buffer.plans
        assert buffer.x_sf is buffer.x_scales is None
        assert buffer.x.numel() == buffer.topk_idx.numel() == buffer.topk_weights.numel() == 0
    with pytest.raises(ArgumentError, match="sym_buffer was destroyed"):
        buffer.check_alive()
    assert buffer.num_bytes == make("nvfp4_nvfp4").num_bytes


def test_a_handle_names_every_rank() -> None:
    class OneRank:
        def size(self) -> int:
            return 1

        def rank(self) -> int:
            return 0

    assert group_ranks(None) == group_ranks(OneRank()) == (1, 0)
    buffer = make()
    assert buffer.handle == SymmHandle(buffer_ptrs=(buffer.address("x") - buffer.offsets["x"],), rank=0)
    assert (buffer.rank, buffer.experts_start_idx) == (0, 0)


def test_no_buffer_is_made_inside_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    recipe = get_recipe("fp8_nvfp4")
    with pytest.raises(ArgumentError, match=r"cannot be made inside a CUDA graph capture\. Make it before the capture"):
        SymmBuffer(problem=LAYER, recipe=recipe, arch=get_arch("sm_90a"), device=torch.device("cuda", 0))
    make()  # the CPU captures nothing
