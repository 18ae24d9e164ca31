"""Launches of public calls, read back as structs: every address, offset, stride and count that a kernel gets."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import torch

from megamoe_jit import ActivationSpec, ArgumentError, LaunchError, SymmBuffer, get_recipe
from megamoe_jit.ops import plan
from megamoe_jit.ops.plan import MoePlan, Workspace, moe_plan, pool_tensor_map
from megamoe_jit.ops.tokens import quantize_tokens
from megamoe_jit.recipes import choose_config, plan_kernels
from megamoe_jit.recipes.params import SYM_PARTS
from megamoe_jit.recipes.sm90 import Sm90Config, Sm90StagingConfig
from megamoe_jit.runtime.memory import MAGIC
from tests.ops.layers import (
    CAPACITY,
    EXPERTS,
    HIDDEN,
    TOPK,
    buffer,
    call,
    fill,
    layer,
    routing,
    stage,
    tokens,
    transformed,
)
from tests.ops.recording_gpu import STREAM, RecordingGpu, gpu

__all__ = ["gpu"]
NUM_SMS = 132


def pool_rows(capacity: int = CAPACITY, recipe: str = "fp8_nvfp4") -> int:
    """Rows of the pool: all slots, and room to fill each expert's last token tile, whichever tile is taken."""
    slots, widest = capacity * TOPK, 192 if recipe.startswith("fp8") else 128
    rows = slots + min(slots, EXPERTS) * (widest - 1)
    return -(-rows // 4) * 4


def base(made: SymmBuffer) -> int:
    """Return the address of a buffer."""
    assert made.handle is not None
    return made.handle.buffer_ptrs[0]


def offsets(params: Any) -> dict[str, int]:
    """Return the symmetric offsets that a launch got."""
    return {part: getattr(params.sym, part) for part in SYM_PARTS}


def workspaces(made: SymmBuffer) -> list[Workspace]:
    """Return the workspaces of a buffer."""
    return [value for value in made.plans.values() if isinstance(value, Workspace)]


def address(tensor: torch.Tensor | None) -> int:
    """Return a tensor's address, 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def test_staging_gets_the_tokens_and_the_buffer(gpu: RecordingGpu) -> None:
    x, (topk_idx, topk_weights) = tokens(), routing()
    staged = stage()
    config, launched, params = gpu.staging()
    assert not config.source_is_codes
    assert launched.grid == (NUM_SMS * 4, 1, 1)
    assert (launched.block, launched.smem_bytes) == ((config.num_threads, 1, 1), 0)
    assert (launched.stream, launched.attributes) == (STREAM, {})
    assert offsets(params) == {part: staged.offsets[part] for part in SYM_PARTS}
    assert params.base == base(staged) == staged.x.data_ptr() - staged.offsets["x"]
    assert (params.x, params.x_sf) == (x.data_ptr(), 0)
    assert (params.topk_idx, params.topk_weights) == (topk_idx.data_ptr(), topk_weights.data_ptr())
    assert (params.x_stride_bytes, params.topk_idx_bytes, params.num_tokens) == (2 * HIDDEN, 8, 6)
    assert staged.num_staged == 6


def test_the_fused_launch_gets_everything(gpu: RecordingGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_TIMEOUT_S", "2.5")
    l1, l2 = transformed(bias=True)
    made, y, stats = stage(), torch.empty_like(tokens()), torch.zeros(EXPERTS, dtype=torch.int32)
    call(
        y=y,
        l1_weights=l1,
        l2_weights=l2,
        sym_buffer=made,
        cumulative_local_expert_recv_stats=stats,
        routed_scaling_factor=2.5,
    )
    config, launched, params = gpu.mega()
    assert (launched.grid, launched.block) == ((NUM_SMS, 1, 1), (config.num_threads, 1, 1))
    assert launched.smem_bytes == config.smem_bytes > 0
    assert (launched.stream, launched.attributes) == (
        STREAM,
        {"COOPERATIVE": 1, "PROGRAMMATIC_STREAM_SERIALIZATION": 1},
    )
    assert tuple(params.peers) == (base(made),)
    assert offsets(params) == {part: made.offsets[part] for part in SYM_PARTS}
    for name, tensor in (("l1_weights", l1.data), ("l2_weights", l2.data), ("l1_alphas", l1.alphas)):
        assert getattr(params, name) == tensor.data_ptr(), name
    assert params.l2_alphas == l2.alphas.data_ptr()
    assert (params.l1_bias, params.l2_bias) == (address(l1.bias), address(l2.bias))
    assert params.l1_bias != 0
    assert l1.forecast is not None
    assert params.forecast == l1.forecast.data_ptr()
    assert (params.recv_stats, params.y, params.y_stride) == (stats.data_ptr(), y.data_ptr(), HIDDEN)
    assert (params.num_tokens, params.pool_rows, params.rank) == (6, pool_rows(), 0)
    assert params.routed_scaling_factor == 2.5
    assert (params.error_record, params.timeout_ns) == (gpu.record.device_pointer, 2_500_000_000)
    (workspace,) = workspaces(made)
    begin, layout = workspace.memory.data_ptr(), workspace.shapes.workspace()
    assert {name: getattr(params, name) - begin for name in layout.offsets()} == layout.offsets()
    assert workspace.memory.numel() == layout.num_bytes
    assert not workspace.memory[layout.offsets()["rows_ready"] :].any()
    assert made.num_staged is None


def test_a_call_over_staged_tokens_has_no_x(gpu: RecordingGpu) -> None:
    """Tokens and routing are those of the buffer, the indices as wide as staging wrote them."""
    for dtype, index_bytes in ((torch.int64, 8), (torch.int32, 4)):
        made = stage(sym_buffer=buffer(topk_idx_dtype=dtype))
        call(sym_buffer=made)
        params = gpu.mega()[2]
        assert (params.x, params.x_stride_bytes) == (0, 0)
        begin = base(made)
        assert (params.topk_idx, params.topk_weights) == tuple(
            begin + made.offsets[part] for part in ("topk_idx", "topk_weights")
        )
        assert params.topk_idx_bytes == index_bytes


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_a_layer_launches_once_and_gives_the_kernel_its_arguments(gpu: RecordingGpu, recipe: str) -> None:
    """The kernel reads x and the routing where the caller has them; a call over staged tokens forgets them again."""
    moe = layer(weights=transformed(recipe))
    x, (topk_idx, topk_weights) = tokens(), routing(6, torch.int32)
    for count in (1, 2, 3):
        moe(x, topk_idx, topk_weights)
        assert [type(config) for config in gpu.configs] == [Sm90Config] * count
    params = gpu.mega()[2]
    assert (params.x, params.x_stride_bytes) == (x.data_ptr(), 2 * HIDDEN)
    assert (params.topk_idx, params.topk_weights) == (topk_idx.data_ptr(), topk_weights.data_ptr())
    assert (params.topk_idx_bytes, params.num_tokens) == (4, 6)
    assert moe.sym_buffer.topk_idx.dtype == torch.int64  # the buffer's own indices may be of another width
    stage(sym_buffer=moe.sym_buffer)
    l1, l2 = transformed(recipe)
    call(l1_weights=l1, l2_weights=l2, sym_buffer=moe.sym_buffer)
    params = gpu.mega()[2]
    assert (params.x, params.topk_idx_bytes) == (0, 8)


def test_staged_tokens_are_gone_after_a_layers_call(gpu: RecordingGpu) -> None:
    """A layer's call with tokens of its own drops what was staged before, and the next call stages the views."""
    moe = layer(num_topk=TOPK, max_tokens_per_rank=CAPACITY)
    made = stage(sym_buffer=moe.sym_buffer)
    moe(tokens(), *routing())
    assert made.num_staged is None
    call(sym_buffer=made)
    assert [getattr(config, "source_is_codes", None) for config in gpu.configs] == [False, None, True, None]


def test_a_very_long_timeout_fits_the_field(gpu: RecordingGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAMOE_JIT_TIMEOUT_S", "1e30")
    call()
    assert gpu.mega()[2].timeout_ns == 2**62


def test_without_bias_and_statistics_their_addresses_are_null(gpu: RecordingGpu) -> None:
    call()
    _, _, params = gpu.mega()
    assert (params.l1_bias, params.l2_bias, params.recv_stats) == (0, 0, 0)
    assert params.routed_scaling_factor == 1.0


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_rows_may_lie_apart(gpu: RecordingGpu, recipe: str) -> None:
    wide, out = torch.zeros(6, 200).bfloat16(), torch.zeros(6, 300).bfloat16()
    topk_idx, topk_weights = routing(6, torch.int32)
    l1, l2 = transformed(recipe)
    layer(weights=(l1, l2))(wide[:, 30 : 30 + HIDDEN], topk_idx, topk_weights, out=out[:, 5 : 5 + HIDDEN])
    _, _, params = gpu.mega()
    assert (params.y, params.y_stride) == (out.data_ptr() + 10, 300)
    stage(x=wide[:, 30 : 30 + HIDDEN], topk_idx=topk_idx, topk_weights=topk_weights, sym_buffer=buffer(recipe=recipe))
    for taken in (params, gpu.staging()[2]):
        assert (taken.x, taken.x_stride_bytes) == (wide.data_ptr() + 60, 400)
        assert (taken.topk_idx, taken.topk_idx_bytes) == (topk_idx.data_ptr(), 4)


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_views_are_staged_from_the_buffer_itself(gpu: RecordingGpu, recipe: str) -> None:
    """Codes and their scales where tokens are quantised, values where they are not."""
    l1, l2 = transformed(recipe)
    filled = fill(recipe)
    call(y=torch.empty(5, HIDDEN).bfloat16(), l1_weights=l1, l2_weights=l2, sym_buffer=filled)
    config, _, params = gpu.staging()
    is_fp8 = recipe.startswith("fp8")
    assert config.source_is_codes == is_fp8
    assert params.x == filled.x.data_ptr()
    assert params.x_sf == (address(filled.x_sf) if is_fp8 else 0)
    assert (params.topk_idx, params.topk_weights) == (filled.topk_idx.data_ptr(), filled.topk_weights.data_ptr())
    assert (params.x_stride_bytes, params.topk_idx_bytes) == (HIDDEN * (1 if is_fp8 else 2), 8)
    assert params.num_tokens == gpu.mega()[2].num_tokens == 5
    assert filled.num_staged is None


def test_what_is_filled_last_is_what_runs(gpu: RecordingGpu) -> None:
    """Staged tokens that nobody used do not hide codes that the caller put into the views after them."""
    made = stage()
    fill(sym_buffer=made)
    assert made.num_staged is None
    call(sym_buffer=made)
    assert [getattr(config, "source_is_codes", None) for config in gpu.configs] == [False, True, None]
    fill(sym_buffer=made)
    stage(sym_buffer=made)
    call(sym_buffer=made)
    assert [getattr(config, "source_is_codes", None) for config in gpu.configs[3:]] == [False, None]


def test_the_view_of_int32_indices_is_read_as_such(gpu: RecordingGpu) -> None:
    filled = fill(sym_buffer=buffer(topk_idx_dtype=torch.int32))
    call(sym_buffer=filled)
    config, _, params = gpu.staging()
    assert (params.topk_idx, params.topk_idx_bytes) == (filled.topk_idx.data_ptr(), 4)
    assert config.problem.topk_idx_bytes == 4
    assert gpu.mega()[0].problem.topk_idx_bytes == 4


def test_staged_tokens_are_not_staged_again(gpu: RecordingGpu) -> None:
    made = buffer()
    for _ in range(3):
        call(sym_buffer=stage(sym_buffer=made))
    kinds = [type(config) for config in gpu.configs]
    assert kinds == [Sm90StagingConfig, Sm90Config] * 3


def test_the_arithmetic_of_a_call_chooses_its_kernels(gpu: RecordingGpu) -> None:
    x, (topk_idx, topk_weights) = tokens(), routing()
    clamped = ActivationSpec(kind="gelu", clamp=2.0)
    for arguments, activation, fast_math in (
        ({}, ActivationSpec(), True),
        ({"activation": clamped, "fast_math": False}, clamped, False),
        ({"activation": "gelu", "activation_clamp": 2.0}, clamped, True),
    ):
        layer(**arguments)(x, topk_idx, topk_weights)
        of_layer = gpu.mega()[0].problem
        call(**arguments)
        of_call = gpu.mega()[0].problem
        for problem in (of_layer, of_call):
            assert (problem.activation, problem.fast_math) == (activation, fast_math)
    call(activation_alpha=1.5, activation_up_bias=0.25, fast_math=1)
    problem = gpu.mega()[0].problem
    assert problem.activation == ActivationSpec(alpha=1.5, up_bias=0.25)
    assert problem.fast_math is True


def test_a_layer_passes_statistics_and_factor_on(gpu: RecordingGpu) -> None:
    stats = torch.zeros(EXPERTS, dtype=torch.int32)
    layer(routed_scaling_factor=0.5)(tokens(), *routing(), recv_stats=stats)
    params = gpu.mega()[2]
    assert (params.recv_stats, params.routed_scaling_factor) == (stats.data_ptr(), 0.5)
    with pytest.raises(ArgumentError, match=r"stats is torch\.int64 \[4\] on cpu"):
        layer()(tokens(), *routing(), recv_stats=stats.long())
    with pytest.raises(ArgumentError, match=r"y is torch\.float32"):
        layer()(tokens(), *routing(), out=tokens().float())


def test_no_tokens_launch_nothing(gpu: RecordingGpu) -> None:
    moe = layer(num_topk=TOPK, max_tokens_per_rank=CAPACITY)
    moe.prepare()
    y = moe(tokens(0), *routing(0))
    assert tuple(y.shape) == (0, HIDDEN)
    assert gpu.launches == []
    empty = buffer()
    call(y=torch.empty(0, HIDDEN).bfloat16(), sym_buffer=empty)
    assert gpu.launches == []
    assert empty.num_staged is None


def test_the_token_tile_follows_the_call(gpu: RecordingGpu) -> None:
    """Everything is prepared before the first call; then each number of tokens has its tile, always the same."""
    moe = layer(num_topk=TOPK, max_tokens_per_rank=64)
    moe.prepare()
    problem, recipe = moe.sym_buffer.problem, moe.recipe
    used = set()
    with gpu.only_launches():
        for num_tokens in (1, 7, 16, 17, 32, 33, 64, 16, 64):
            moe(tokens(num_tokens), *routing(num_tokens))
            config, launched, params = gpu.mega()
            assert config.block_n == choose_config(problem, recipe, "sm_90a", num_tokens).config.block_n
            assert launched.smem_bytes == config.smem_bytes
            assert (params.num_tokens, params.pool_rows) == (num_tokens, pool_rows(64))
            used.add(config.block_n)
    assert len(used) > 2
    assert used <= {config.block_n for config in gpu.asked if isinstance(config, Sm90Config)}


def test_a_repeated_call_only_launches(gpu: RecordingGpu) -> None:
    moe = layer()
    x, (topk_idx, topk_weights), y = tokens(), routing(), torch.empty_like(tokens())
    moe(x, topk_idx, topk_weights, out=y)
    first = [launched.params for launched in gpu.launches]
    with gpu.only_launches():
        moe(x, topk_idx, topk_weights, out=y)
    assert len(first) == 1
    assert [launched.params for launched in gpu.launches[1:]] == first


def test_each_call_has_its_own_outputs(gpu: RecordingGpu) -> None:
    moe = layer()
    outputs = [torch.empty_like(tokens()) for _ in range(2)]
    stats = torch.zeros(EXPERTS, dtype=torch.int32)
    moe(tokens(), *routing(), out=outputs[0], recv_stats=stats)
    moe(tokens(), *routing(), out=outputs[1])
    seen = [struct.unpack_from("<Q", launched.params[0], 0)[0] for launched in gpu.launches]
    assert seen == [base(moe.sym_buffer)] * 2
    assert gpu.mega()[2].y == outputs[1].data_ptr()
    assert gpu.mega()[2].recv_stats == 0


def test_layers_of_a_model_share_kernels_and_workspace(gpu: RecordingGpu) -> None:
    shared = buffer()
    other = transformed(bias=True)
    moes = [layer(sym_buffer=shared), layer(weights=other, sym_buffer=shared)]
    for moe in (*moes, *moes):
        moe(tokens(), *routing())
        l1, l2 = moe.l1, moe.l2
        params = gpu.mega()[2]
        assert (params.l1_weights, params.l2_weights) == (l1.data.data_ptr(), l2.data.data_ptr())
        assert (params.l1_bias, params.l2_bias) == (address(l1.bias), address(l2.bias))
    assert len(workspaces(shared)) == 1
    planned = plan_kernels(shared.problem, "fp8_nvfp4", "sm_90a")
    assert gpu.asked == [kernel for kernel in planned if isinstance(kernel, Sm90Config)]  # once each
    moes[0].prepare()
    assert set(gpu.asked) == set(planned)
    assert len(gpu.asked) == len(planned)


def test_weights_are_checked_once(gpu: RecordingGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Any] = []
    original = plan.check_weights
    monkeypatch.setattr(plan, "check_weights", lambda *args: (checked.append(args), original(*args)))
    made, (l1, l2) = buffer(), transformed()
    for _ in range(3):
        call(l1_weights=l1, l2_weights=l2, sym_buffer=stage(sym_buffer=made))
    assert len(checked) == 1
    with pytest.raises(ArgumentError, match="l1_weights are l2 weights"):
        call(l1_weights=l2, l2_weights=l1, sym_buffer=stage(sym_buffer=made))
    call(l1_weights=l1, l2_weights=l2, sym_buffer=stage(sym_buffer=made))


def test_activations_have_plans_of_their_own(gpu: RecordingGpu) -> None:
    """Gated ones share a workspace; without a gate intermediate is padded to another width."""
    made = buffer(intermediate_hidden=384, num_topk=1)
    nouns = [ActivationSpec(), ActivationSpec.swigluoai(), ActivationSpec(kind="relu2")]
    plans = [moe_plan(made, activation, fast_math=True) for activation in nouns]
    assert plans[0] is moe_plan(made, ActivationSpec(), fast_math=True)
    assert plans[0] is not moe_plan(made, ActivationSpec(), fast_math=False)
    assert plans[0].workspace is plans[1].workspace
    assert plans[2].workspace is not plans[0].workspace
    assert [p.workspace.acts().shape[1] for p in plans] == [384, 384, 512]


@pytest.mark.parametrize("recipe", ["fp8_nvfp4", "bf16_nvfp4"])
def test_tensor_maps_cover_the_pools(gpu: RecordingGpu, recipe: str) -> None:
    num_rows = pool_rows(recipe=recipe)
    l1, l2 = transformed(recipe)
    made = stage(sym_buffer=buffer(recipe=recipe))
    call(l1_weights=l1, l2_weights=l2, sym_buffer=made)
    config, launched, params = gpu.mega()
    (workspace,) = workspaces(made)
    acts = workspace.acts()
    assert tuple(acts.shape) == (num_rows, 128)
    if recipe.startswith("fp8"):
        scales = workspace.acts_sf()
        assert (scales.dtype, tuple(scales.shape)) == (torch.float32, (1, num_rows))
        assert scales.data_ptr() == params.acts_sf
    boxes = config.template_values()["tma_boxes"]
    assert isinstance(boxes, tuple)
    pools = ("tokens_map", workspace.tokens(), params.tokens), ("acts_map", acts, params.acts)
    # The recording driver fills the n-th map that it encodes with n.
    encoded = [args for name, args in gpu.driver.calls if name == "cuTensorMapEncodeTiled"]
    for (name, pool, start), box, packed in zip(pools, boxes, launched.params[1:], strict=True):
        assert tuple(pool.shape) == (num_rows, 128)  # both widths are padded to 128
        assert box == (name, config.box_rows, 128 // pool.element_size())
        described = pool_tensor_map(pool, config.box_rows)
        assert described.address == pool.data_ptr() == start
        assert described.spec.dims == (128, num_rows)
        assert described.spec.box == (128 // pool.element_size(), config.box_rows)
        assert "B128" in described.spec.swizzle.name
        number = packed[0]
        assert packed == bytes([number] * 128)
        _, rank, address_, dims, _, encoded_box, *_ = encoded[number - 1]
        assert (rank, int(address_)) == (2, pool.data_ptr())
        assert [int(d) for d in dims] == [128, num_rows]
        assert [int(b) for b in encoded_box] == list(described.spec.box)
    assert params.tokens != params.acts
    names = [name for name, _ in moe_plan(made, ActivationSpec(), fast_math=True).tensor_maps()]
    assert f"tokens, token tile {config.block_n}" in names
    assert f"acts, token tile {config.block_n}" in names
    assert len(names) == len(set(names))


def test_codes_from_the_quantiser_reach_the_kernel(gpu: RecordingGpu) -> None:
    """What `fill` copied lies where the kernel reads it."""
    filled = fill()
    call(sym_buffer=filled)
    params = gpu.staging()[2]
    assert filled._storage is not None
    memory = filled._storage
    codes, x_sf, _ = quantize_tokens(tokens(), get_recipe("fp8_nvfp4"))
    at = params.x - memory.data_ptr()
    assert torch.equal(memory[at : at + 6 * HIDDEN].view(6, HIDDEN), codes.view(torch.uint8))
    at = params.x_sf - memory.data_ptr()
    assert x_sf is not None
    assert torch.equal(memory[at : at + 24].view(torch.float32), x_sf)


def test_kernels_are_not_loaded_inside_a_capture(gpu: RecordingGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    moe = layer(num_topk=TOPK, max_tokens_per_rank=CAPACITY)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(
        ArgumentError, match=r"not loaded yet, which a CUDA graph capture does not allow\. Run the call"
    ):
        moe(tokens(), *routing())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    moe.prepare()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with gpu.only_launches():
        moe(tokens(), *routing())
    with pytest.raises(ArgumentError, match=r"not loaded yet"):
        call(sym_buffer=moe.sym_buffer, activation="gelu", y=torch.empty(6, HIDDEN).bfloat16())


def test_a_kernel_that_stopped_itself_is_told_by_the_next_call(gpu: RecordingGpu) -> None:
    moe = layer()
    moe(tokens(), *routing())
    gpu.record._words[:] = [MAGIC, 5, 17, 160, 2, 40, 39, 0]
    with pytest.raises(
        LaunchError, match=r"block 17, thread 160 gave up waiting for all L2 tiles .*expected 40, saw 39"
    ):
        moe(tokens(), *routing())


def test_another_number_of_tokens_than_staged_is_refused(gpu: RecordingGpu) -> None:
    made = stage()
    with pytest.raises(ArgumentError, match=r"y has 5 rows, but 6 tokens were staged"):
        call(y=torch.empty(5, HIDDEN).bfloat16(), sym_buffer=made)
    assert made.num_staged == 6
    call(sym_buffer=made)


def test_a_plan_belongs_to_its_buffer(gpu: RecordingGpu) -> None:
    """A buffer that grew has new addresses; a destroyed one has no plans."""
    moe = layer()
    moe(tokens(), *routing())
    first = base(moe.sym_buffer)
    moe(tokens(129), *routing(129))
    params = gpu.mega()[2]
    assert params.peers[0] == base(moe.sym_buffer) != first
    assert (params.num_tokens, params.pool_rows) == (129, pool_rows(256))
    made = stage()
    assert any(isinstance(value, plan.StagingPlan) for value in made.plans.values())
    made.destroy()
    assert not made.plans
    assert not any(isinstance(value, MoePlan) for value in made.plans.values())
