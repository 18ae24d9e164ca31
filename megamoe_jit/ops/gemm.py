"""Block-scaled grouped GEMM of Blackwell's tensor cores, and bridge functions with names of the CuTeDSL example.

    y[t] = alphas[e] * weights[e] @ tokens[t]        for the tokens of expert e: rows offs[e - 1] .. offs[e] - 1

Scale factors come in the blocked order of cuBLAS (layouts/scales.py): 512-byte tiles of 128 rows x 4 groups along K,
tiles of a row block next to one another. Each expert's tokens begin a row block of their own.
Source of the bridge's names and shapes: NVIDIA/cutlass, torch_scaled_grouped_mm.py of the CuTeDSL examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megamoe_jit import env
from megamoe_jit.arch import Arch, get_arch
from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats import block_scaled
from megamoe_jit.formats.fp4 import packed_bytes
from megamoe_jit.jit.build import build
from megamoe_jit.layouts.scales import to_blocked
from megamoe_jit.ops.checks import default_arch
from megamoe_jit.recipes.choose import check_pair
from megamoe_jit.recipes.params import GEMM_PARAMS
from megamoe_jit.recipes.recipe import get_recipe
from megamoe_jit.recipes.sm100_gemm import MMA_KINDS, MmaKind, Sm100GemmConfig, gemm_config
from megamoe_jit.recipes.waits import WAITS
from megamoe_jit.runtime.backend import Backend, LaunchPlan, open_backend
from megamoe_jit.runtime.launch import struct_bytes, tensor_map
from megamoe_jit.runtime.tensormap import Swizzle, TmaElement, tensor_map_for

_LONGEST_NS = 2**62  # a century and a half
_TOKEN_TILES = (32, 64, 128)


def scaled_grouped_gemm(
    tokens: Tensor,
    weights: Tensor,
    tokens_sf: Tensor,
    weights_sf: Tensor,
    offs: Tensor,
    *,
    recipe: str = "nvfp4_nvfp4",
    alphas: Tensor | None = None,
    out: Tensor | None = None,
    arch: str | Arch | None = None,
    block_n: int | None = None,
    cta_group: int = 2,
) -> Tensor:
    """Return y bfloat16 [num_tokens, N]: each expert's tokens times its weights, sums in FP32, rounded once.

    Args:
        tokens: codes [num_tokens, K/2] (E2M1, two a byte) or float8_e4m3fn [num_tokens, K] (mxfp8 recipes), sorted by
            expert.
        weights: E2M1 codes [E, N, K/2].
        tokens_sf: scale factors in blocked order, bytes: for each expert round_up(its tokens, 128) rows.
        weights_sf: scale factors in blocked order, bytes [E, round_up(N, 128) * round_up(K / gran_k, 4)].
        offs: int32 [E], one past each expert's last token.
        recipe: names the operands: nvfp4_nvfp4, mxfp8_mxfp4, mxfp8_nvfp4 (adapted weights) or mxfp4_mxfp4.
        alphas: float32 [E], factor of each expert's products; ones when None.
        out: written instead of a new tensor; last stride 1, rows a multiple of 16 bytes apart.
        arch: target; that of the device (sm_100f on a CPU) when None.
        block_n: tokens of a tile; chosen from the mean tokens of an expert when None.
        cta_group: 2 for CTA pairs with tiles of 256 rows, 1 for single CTAs.

    Products are exact (block scale factors are applied by the tensor core). K is a multiple of 32 (128 for mxfp8), N of
    8.
    Raises ArgumentError for other shapes, dtypes and devices, UnsupportedError for a target without tcgen05.
    """
    kind = MMA_KINDS.get(recipe)
    if kind is None:
        raise ArgumentError(f"recipe={recipe!r} has no grouped GEMM. Use one of {', '.join(MMA_KINDS)}.")
    _, arch = check_pair(
        recipe, get_arch(arch) if arch is not None else default_arch(tokens.device, get_recipe(recipe))
    )
    tokens, weights = _codes(tokens), _codes(weights)
    num_tokens, num_experts, n, k = _check_codes(tokens, weights, kind)
    tokens_sf, weights_sf = _check_sf(tokens_sf, weights_sf, num_experts, n, k, kind)
    offs = _check_offs(offs, num_tokens, num_experts, tokens.device)
    _check_sf_rows(tokens_sf, offs, -(-k // (4 * kind.gran_k)))
    if alphas is not None:
        _check_alphas(alphas, num_experts, tokens.device)
    if out is None:
        y = torch.empty(num_tokens, n, dtype=torch.bfloat16, device=tokens.device)
    else:
        y = _check_out(out, num_tokens, n, tokens.device)
    if num_tokens == 0:
        return y
    config = gemm_config(
        arch=arch,
        kind=kind,
        num_experts=num_experts,
        n=n,
        k=k,
        block_n=block_n or _token_tile(num_tokens, num_experts),
        cta_group=cta_group,
    )
    backend = open_backend(tokens.device)
    backend.launch(_plan(config, backend, tokens, weights, tokens_sf, weights_sf, offs, alphas, y))
    backend.error_record().raise_if_failed(WAITS)
    return y


def nvfp4_grouped_gemm(
    tokens: Tensor,
    weights: Tensor,
    tokens_sf: Tensor,
    weights_sf: Tensor,
    offs: Tensor,
    *,
    alphas: Tensor | None = None,
    out: Tensor | None = None,
    arch: str | Arch | None = None,
) -> Tensor:
    """Return `scaled_grouped_gemm` of NVFP4 tokens and NVFP4 weights."""
    return scaled_grouped_gemm(tokens, weights, tokens_sf, weights_sf, offs, alphas=alphas, out=out, arch=arch)


# --- bridge ---------------------------------------------------------------------------------------------------


def quantize_to_nvfp4(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (codes uint8 [M, K/2], sf float8_e4m3fn [M, K/16], global scale float32 []) of x [M, K]."""
    quantized = block_scaled.quantize_to_nvfp4(x)
    assert quantized.global_scale is not None
    return quantized.codes, quantized.sf, quantized.global_scale


def quantize_weight_to_nvfp4(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (codes uint8 [E, N, K/2], sf float8_e4m3fn [E, N, K/16], global scales float32 [E]) of w [E, N, K]."""
    quantized = block_scaled.quantize_weight_to_nvfp4(w)
    assert quantized.global_scale is not None
    return quantized.codes, quantized.sf, quantized.global_scale


def assemble_scales_2d_side(scales: Sequence[Tensor]) -> Tensor:
    """Return uint8, one dimension: each expert's scale factors [m_e, groups] in blocked order, one after another."""
    parts = [to_blocked(sf) for sf in scales if sf.shape[0]]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def assemble_scales_3d_side(scales: Sequence[Tensor]) -> Tensor:
    """Return uint8 [E, round_up(N, 128) * round_up(groups, 4)]: each expert's scales [N, groups] in blocked order."""
    return torch.stack([to_blocked(sf) for sf in scales])


def make_b_k_major(b: Tensor) -> Tensor:
    """Return b [E, K, N] with stride 1 along K; the same tensor where it is so already."""
    return b if b.stride(1) == 1 else b.transpose(1, 2).contiguous().transpose(1, 2)


def compute_expert_offsets(counts: Tensor) -> Tensor:
    """Return int32 [E]: one past each expert's last row, from the number of rows of each."""
    return counts.cumsum(0, dtype=torch.int32)


def run_nvfp4_grouped_gemm(
    a: Tensor, b: Tensor, sfa: Tensor, sfb: Tensor, offs: Tensor, global_scale_a: Tensor, global_scale_b: Tensor
) -> Tensor:
    """Return bfloat16 [tokens, N] of codes a [tokens, K/2] and b [E, K/2, N] (stride 1 along K), scales blocked.

    global_scale_a and global_scale_b are float32, one for each expert or one for all. Raises as `scaled_grouped_gemm`.
    """
    if b.ndim != 3 or b.stride(1) != 1:
        raise ArgumentError(
            f"b has shape {list(b.shape)} and strides {b.stride()}, but [experts, K/2, N] with stride 1 along K is "
            "needed. Call make_b_k_major(b)."
        )
    for name, scale in (("global_scale_a", global_scale_a), ("global_scale_b", global_scale_b)):
        if scale.ndim > 1 or scale.numel() not in (1, b.shape[0]):
            raise ArgumentError(
                f"{name} has {scale.numel()} values, and one for each of {b.shape[0]} experts or one for all is "
                "needed. Pass what the quantiser returned."
            )
    alphas = (global_scale_a.float() * global_scale_b.float()).expand(b.shape[0]).contiguous()
    return nvfp4_grouped_gemm(a, b.transpose(1, 2), sfa, sfb, offs, alphas=alphas)


# --- arguments ------------------------------------------------------------------------------------------------


def _codes(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8)
    return packed_bytes(tensor) if tensor.dtype != torch.uint8 else tensor


def _check_codes(tokens: Tensor, weights: Tensor, kind: MmaKind) -> tuple[int, int, int, int]:
    """Return (num_tokens, num_experts, N, K)."""
    per_byte = 1 if kind.token_type == 0 and kind.pads_weights else 2
    if tokens.ndim != 2 or weights.ndim != 3 or tokens.shape[1] * per_byte != weights.shape[2] * 2:
        raise ArgumentError(
            f"tokens has {list(tokens.shape)} bytes and weights {list(weights.shape)}, but [tokens, K/{per_byte}] and "
            "[experts, N, K/2] with one K are needed. Check the packing and the order of the dimensions."
        )
    for name, tensor in (("tokens", tokens), ("weights", weights)):
        if not tensor.is_contiguous() or tensor.data_ptr() % 32:
            raise ArgumentError(
                f"{name} has strides {tensor.stride()} at an address {tensor.data_ptr() % 32} past a multiple of 32, "
                "and TMA needs contiguous rows from a multiple of 32 bytes. Call .contiguous() or .clone()."
            )
        if tensor.device != tokens.device:
            raise ArgumentError(f"{name} is on {tensor.device}, but tokens are on {tokens.device}. Move it there.")
    return tokens.shape[0], weights.shape[0], weights.shape[1], weights.shape[2] * 2


def _check_sf(
    tokens_sf: Tensor, weights_sf: Tensor, num_experts: int, n: int, k: int, kind: MmaKind
) -> tuple[Tensor, Tensor]:
    """Return both as int32 [tiles, 128]."""
    words = -(-k // (4 * kind.gran_k))
    expected = num_experts * -(-n // 128) * words * 512
    checked = []
    for name, tensor, wanted in (("tokens_sf", tokens_sf, None), ("weights_sf", weights_sf, expected)):
        num_bytes = tensor.numel() * tensor.element_size()
        if not tensor.is_contiguous() or num_bytes % (512 * words) or (wanted is not None and num_bytes != wanted):
            needed = f"{wanted} B" if wanted is not None else f"a multiple of {512 * words} B (128 rows)"
            raise ArgumentError(
                f"{name} has {num_bytes} B and strides {tensor.stride()}, but {needed} in blocked order, contiguous, "
                "are needed. Use assemble_scales_2d_side(...) for tokens and assemble_scales_3d_side(...) for weights."
            )
        checked.append(tensor.view(torch.uint8).view(-1, 512).view(torch.int32))
    return checked[0], checked[1]


def _check_offs(offs: Tensor, num_tokens: int, num_experts: int, device: torch.device) -> Tensor:
    if offs.dtype != torch.int32 or offs.shape != (num_experts,) or offs.device != device or not offs.is_contiguous():
        raise ArgumentError(
            f"offs is {offs.dtype} {list(offs.shape)} on {offs.device}, but int32 [{num_experts}] on {device} is "
            "needed. Use compute_expert_offsets(...)."
        )
    if not offs.is_cuda and (bool((offs.diff() < 0).any()) or int(offs[0]) < 0 or int(offs[-1]) != num_tokens):
        raise ArgumentError(
            f"offs={offs.tolist()} are not ends of the experts' runs of {num_tokens} tokens. They do not fall, and the "
            "last is the number of tokens."
        )
    return offs


def _check_sf_rows(tokens_sf: Tensor, offs: Tensor, words: int) -> None:
    """Hold the number of 128-row blocks to the experts' tokens, where reading them waits for no GPU."""
    if offs.is_cuda:
        return
    blocks = int(((offs.diff(prepend=offs.new_zeros(1)) + 127) // 128).sum())
    if len(tokens_sf) != blocks * words:
        raise ArgumentError(
            f"tokens_sf has {len(tokens_sf) // words * 128} rows, but the experts' tokens, each expert's padded to a "
            f"multiple of 128, take {blocks * 128}. Use assemble_scales_2d_side(...) of each expert's scale factors."
        )


def _check_alphas(alphas: Tensor, num_experts: int, device: torch.device) -> None:
    if alphas.dtype != torch.float32 or alphas.shape != (num_experts,) or not alphas.is_contiguous():
        raise ArgumentError(
            f"alphas is {alphas.dtype} {list(alphas.shape)}, and one float32 for each of {num_experts} experts is "
            "needed. Multiply both operands' global scales."
        )
    if alphas.device != device:
        raise ArgumentError(f"alphas is on {alphas.device}, but tokens are on {device}. Move it there.")


def _check_out(out: Tensor, num_tokens: int, n: int, device: torch.device) -> Tensor:
    if out.device != device:
        raise ArgumentError(f"out is on {out.device}, but tokens are on {device}. Make it there.")
    if out.ndim == 2 and out.shape[0] != num_tokens:
        raise ArgumentError(f"out has {out.shape[0]} rows, and there are {num_tokens} tokens. Make it as long.")
    if out.dtype != torch.bfloat16 or out.ndim != 2 or out.shape[1] != n or out.stride(1) != 1 or out.stride(0) % 8:
        raise ArgumentError(
            f"out is {out.dtype} {list(out.shape)} with strides {out.stride()}, but bfloat16 [num_tokens, {n}], dense "
            "in its last dimension and with rows a multiple of 8 apart, is needed. Leave it out to get a new one."
        )
    if out.data_ptr() % 16:
        raise ArgumentError("out begins at no multiple of 16 bytes. Leave it out to get a new one.")
    return out


def _token_tile(num_tokens: int, num_experts: int) -> int:
    mean = num_tokens / num_experts
    return next((n for n in _TOKEN_TILES if mean <= n), _TOKEN_TILES[-1])


def _plan(
    config: Sm100GemmConfig,
    backend: Backend,
    tokens: Tensor,
    weights: Tensor,
    tokens_sf: Tensor,
    weights_sf: Tensor,
    offs: Tensor,
    alphas: Tensor | None,
    y: Tensor,
) -> LaunchPlan:
    kind = config.kind
    values: dict[str, int | float] = {
        "expert_ends": offs.data_ptr(),
        "alphas": 0 if alphas is None else alphas.data_ptr(),
        "y": y.data_ptr(),
        "y_stride": y.stride(0),
        "error_record": backend.error_record().device_pointer,
        "timeout_ns": min(int(env.TIMEOUT_S.get() * 1e9), _LONGEST_NS),
    }
    packed = TmaElement.PACKED_U4
    weight_element = TmaElement.PADDED_U4 if kind.pads_weights else packed
    token_element = TmaElement.U8 if kind.pads_weights else packed
    maps = {
        "weights": tensor_map_for(
            weights.flatten(0, 1), box=(128, kind.block_k), swizzle=Swizzle.B128, element=weight_element
        ),
        "weights_sf": tensor_map_for(weights_sf, box=(config.sf_words, 128)),
        "tokens": tensor_map_for(
            tokens, box=(config.load_n, kind.block_k), swizzle=Swizzle.B128, element=token_element
        ),
        "tokens_sf": tensor_map_for(tokens_sf, box=(config.sf_words, 128)),
    }
    tensors = (tokens, weights, tokens_sf, weights_sf, offs, alphas, y)
    groups = max(1, backend.num_sms // config.cta_group)
    return LaunchPlan(
        kernel=build(config),
        grid=(groups * config.cta_group, 1, 1),
        block=(config.num_threads, 1, 1),
        cluster=(config.cta_group, 1, 1),
        smem_bytes=config.smem_bytes,
        params=(
            struct_bytes("params", GEMM_PARAMS.pack(values)),
            *(tensor_map(name, value) for name, value in maps.items()),
        ),
        memory=tuple(tensor for tensor in tensors if tensor is not None),
    )
