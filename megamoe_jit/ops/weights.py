"""Weights in the layout of a kernel: made once at load time, reversible, one relocatable run of bytes an expert."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from megamoe_jit.arch import Arch, MmaGeneration, arch_for_capability, get_arch
from megamoe_jit.errors import ArgumentError, UnsupportedError
from megamoe_jit.formats.adapt import adapt_nvfp4_to_mxfp4, mxfp4_to_nvfp4
from megamoe_jit.formats.fp4 import packed_bytes
from megamoe_jit.formats.fp8 import decode_ue4m3
from megamoe_jit.formats.moe_weights import Checkpoint, MoeWeights
from megamoe_jit.formats.product_fit import e4m3_product_fit
from megamoe_jit.layouts.interleave import crop_branches, pad_branches
from megamoe_jit.layouts.mx_scales import restore_ue8m0, rounded_in_e4m3, stash_zero_groups
from megamoe_jit.layouts.scales import pack_sf_words, permute_sf_for_utccp, unpack_sf_words
from megamoe_jit.layouts.weights_sm90 import Sm90Element, Sm90WeightLayout, sm90_layouts
from megamoe_jit.layouts.weights_sm100 import Sm100WeightLayout, sm100_layouts
from megamoe_jit.recipes.recipe import Element, Recipe, default_recipe, get_recipe, list_recipes

Layer = Literal["l1", "l2"]
WeightLayout = Sm90WeightLayout | Sm100WeightLayout


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TransformedWeights:
    """One layer's weights (L1 or L2 of a rank's experts) in the layout of a recipe's kernel.

    Attributes:
        layer: "l1" (gate and up) or "l2" (down).
        recipe: name of the recipe that they were made for.
        arch: name of the target.
        hidden: the model's own (unpadded) width H.
        intermediate: the model's own width I.
        gated: whether L1 has gate rows.
        layout: where an element lies; has padded_rows (of one branch) and padded_k.
        data: uint8 [E, bytes] contiguous: sm_90a blocks of codes and scales, or Blackwell's codes [total_rows, K/2].
        sf: None on sm_90a; int32 [E, total_rows, words], MN-major, UTCCP order on Blackwell.
        alphas: float32 [E, 2] (L1: gate, up; equal without a gate) or [E] (L2): the checkpoint's alphas times what the
            kernel's decoder leaves out (8 or 512 on sm_90a, 1 on Blackwell) and, for an MXFP4 checkpoint on sm_90a, the
            power of two that `sf_shift` says; for fp8_nvfp4 also times the factor that makes up for the mean error of
            its E4M3 products (`formats.product_fit`).
        bias: float32 [E, rows of all branches after padding], in checkpoint order, zeros in the padding; or None.
        sf_shift: int32 [E, branches] or None: block scales were divided by 2^sf_shift to become UE4M3.
        plain_alphas: `alphas` without that factor, where there is one, so that the inverse is exact; else None.
        forecast: float32 [E, 4] for an L1 of recipe nvfp4_nvfp4 or fp8_*, else None: sizes that its results' scale is
            foreseen from, gate norm, up norm, gate bias, up bias (reference/forecast.py has the formula).
    """

    layer: Layer
    recipe: str
    arch: str
    hidden: int
    intermediate: int
    gated: bool
    layout: WeightLayout
    data: Tensor
    sf: Tensor | None = None
    alphas: Tensor
    bias: Tensor | None = None
    sf_shift: Tensor | None = None
    plain_alphas: Tensor | None = None
    forecast: Tensor | None = None

    def __repr__(self) -> str:
        """Say what they are, without the tensors' contents."""
        return (
            f"TransformedWeights({self.layer} of {self.num_experts} experts, hidden={self.hidden}, "
            f"intermediate={self.intermediate}, recipe={self.recipe}, arch={self.arch}, {self.num_bytes} B on "
            f"{self.device})"
        )

    @property
    def num_experts(self) -> int:
        """Number of experts E held here."""
        return self.data.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.data.device

    @property
    def padded_rows(self) -> int:
        """Rows of one branch after padding: intermediate for L1, hidden for L2."""
        return self.layout.padded_rows

    @property
    def padded_k(self) -> int:
        """K after padding: hidden for L1, intermediate for L2."""
        return self.layout.padded_k

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    @property
    def codes(self) -> Tensor:
        """Blackwell's packed codes as uint8 [E, total_rows, K/2]; UnsupportedError on sm_90a, which has blocks."""
        if isinstance(self.layout, Sm90WeightLayout):
            raise UnsupportedError(
                f"weights for {self.arch} are blocks of codes and scales, not rows. Use data, or "
                "untransform_weights(...)."
            )
        return self.data.view(self.num_experts, self.layout.total_rows, self.layout.padded_k // 2)

    def expert_blocks(self) -> dict[str, Tensor]:
        """Return every tensor as a view [E, -1] whose row e is all that belongs to expert e (for load balancers)."""
        return {
            name: (tensor.transpose(1, 2) if name == "sf" else tensor).view(self.num_experts, -1)
            for name, tensor in self._tensors().items()
        }

    def to(self, device: torch.device | str) -> TransformedWeights:
        """Return the weights on `device`; those already there are shared, not copied."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        names = ("data", "sf", "alphas", "bias", "sf_shift", "plain_alphas", "forecast")
        named = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Matrix:
    """One layer's tensors as MoeWeights has them."""

    layer: Layer
    codes: Tensor
    sf: Tensor
    alphas: Tensor  # [E, branches]
    bias: Tensor | None


def transform_weights(
    weights: MoeWeights, recipe: str | Recipe | None = None, arch: str | Arch | None = None
) -> tuple[TransformedWeights, TransformedWeights]:
    """Return (L1, L2) of a layer's weights in the layout of `recipe`'s kernel on `arch`.

    Works where the weights are (CPU or GPU), one expert at a time, without a widened copy. recipe defaults to the one
    that the checkpoint format takes on arch, arch to the weights' device (sm_90a, or the recipe's target, on a CPU).
    Blackwell's L2 codes share the storage of `weights.l2_codes` where no padding is needed.

    Rounded: nothing, but for recipe mxfp8_nvfp4, which re-rounds codes and scales to UE8M0 blocks of 32
    (`adapt_nvfp4_to_mxfp4`). MXFP4 weights on sm_90a are exact or refused: their scales must fit UE4M3 after one power
    of two for each expert's gate, up and down.

    Raises UnsupportedError for a recipe that is not for arch or for the checkpoint format, ArgumentError for MXFP4
    scales or alphas out of range.
    """
    recipe, arch = _choose(recipe, arch, weights.checkpoint, weights.device)
    l1, l2 = _layouts(recipe, weights.hidden, weights.intermediate, weights.gated)
    down_alphas = weights.l2_alphas[:, None]
    matrices = (
        _Matrix(layer="l1", codes=weights.l1_codes, sf=weights.l1_sf, alphas=weights.l1_alphas, bias=weights.l1_bias),
        _Matrix(layer="l2", codes=weights.l2_codes, sf=weights.l2_sf, alphas=down_alphas, bias=weights.l2_bias),
    )
    first, second = (
        _transform(matrix, layout, recipe, arch, weights) for matrix, layout in zip(matrices, (l1, l2), strict=True)
    )
    return first, second


def untransform_weights(l1: TransformedWeights, l2: TransformedWeights) -> MoeWeights:
    """Return the checkpoint-order weights that `transform_weights` got: the same bits in every tensor.

    For recipe mxfp8_nvfp4 they are the adapted weights, as an MXFP4 checkpoint with alphas: what the kernel multiplies.
    Raises ArgumentError when l1 and l2 are not the two layers of one transform.
    """
    for name, given, layer in (("l1", l1, "l1"), ("l2", l2, "l2")):
        if given.layer != layer:
            raise ArgumentError(
                f"{name} holds the layer {given.layer!r}, but {layer!r} is needed. Pass L1 first, then L2."
            )
    for field in ("recipe", "arch", "hidden", "intermediate", "gated", "num_experts"):
        if getattr(l1, field) != getattr(l2, field):
            raise ArgumentError(
                f"l1 has {field}={getattr(l1, field)!r} and l2 {field}={getattr(l2, field)!r}: they are not of one "
                "transform. Pass both results of the same transform_weights(...) call."
            )
    recipe = get_recipe(l1.recipe)
    up, down = _untransform(l1), _untransform(l2)
    checkpoint: Checkpoint = "nvfp4" if recipe.checkpoint == "nvfp4" and recipe.name != "mxfp8_nvfp4" else "mxfp4"
    sf_dtype = torch.float8_e4m3fn if checkpoint == "nvfp4" else torch.float8_e8m0fnu
    return MoeWeights(
        l1_codes=up.codes,
        l1_sf=up.sf.view(sf_dtype),
        l1_alphas=up.alphas,
        l2_codes=down.codes,
        l2_sf=down.sf.view(sf_dtype),
        l2_alphas=down.alphas[:, 0].contiguous(),
        l1_bias=up.bias,
        l2_bias=down.bias,
        checkpoint=checkpoint,
    )


def transform_nvfp4_weights_for_mega_moe(
    l1_weights: tuple[Tensor, Tensor],
    l2_weights: tuple[Tensor, Tensor],
    *,
    l1_alphas: Tensor | None = None,
    l2_alphas: Tensor | None = None,
    l1_bias: Tensor | None = None,
    l2_bias: Tensor | None = None,
    recipe: str | Recipe | None = None,
    arch: str | Arch | None = None,
) -> tuple[TransformedWeights, TransformedWeights]:
    """Return (L1, L2) in the layout of a kernel, from stacked (codes, sf) pairs: the call that other libraries have.

    Args:
        l1_weights: codes [E, 2I, H/2] (gate rows, then up rows; [E, I, H/2] without a gate) as uint8, int8 or
            float4_e2m1fn_x2, and block scales in one of these forms, told apart by dtype and shape: float8_e4m3fn or
            bytes [E, 2I, H/16]; int32 words [E, 2I, H/64], byte 0 = least K, MN-major or K-major. MXFP4 weights come as
            float8_e8m0fnu or bytes [E, 2I, H/32] or int32 [E, 2I, H/128]. Scales are in checkpoint order, not yet
            permuted for UTCCP.
        l2_weights: the same for [E, H, I/2].
        l1_alphas: float32 [E, 2] (gate, up), [E] or a scalar: second-level multipliers; ones by default.
        l2_alphas: float32 [E] or a scalar.
        l1_bias: float [E, 2I], or None.
        l2_bias: float [E, H], or None.
        recipe: name of a recipe; by default the one that the format takes on arch.
        arch: target; by default that of the weights' device.

    Raises ArgumentError for other dtypes and shapes, and what `transform_weights` raises.
    """
    l1_codes, l1_sf, checkpoint = _checkpoint_pair("l1_weights", l1_weights)
    l2_codes, l2_sf, l2_checkpoint = _checkpoint_pair("l2_weights", l2_weights)
    if checkpoint != l2_checkpoint:
        raise ArgumentError(
            f"l1_weights have {checkpoint} block scales and l2_weights {l2_checkpoint}: a layer has one format. "
            "Check which tensor is which."
        )
    one = torch.ones((), device=l1_codes.device)
    weights = MoeWeights.from_checkpoint(
        l1_codes,
        l1_sf,
        l2_codes,
        l2_sf,
        checkpoint=checkpoint,
        l1_global_scale=one if l1_alphas is None else l1_alphas,
        l2_global_scale=one if l2_alphas is None else l2_alphas,
        l1_bias=l1_bias,
        l2_bias=l2_bias,
    )
    return transform_weights(weights, recipe, arch)


def _pack_nvfp4_sf_for_utccp(sf: Tensor) -> Tensor:
    """Return block scales as tcgen05.cp wants them: int32 [..., rows, words], MN-major, rows in UTCCP order.

    sf: checkpoint-order bytes [..., rows, groups] (float8_e4m3fn, uint8 or int8), or int32 words [..., rows, words] of
    any strides. rows is a multiple of 128; groups are padded with zero bytes to a multiple of 4. No bit changes.
    """
    return permute_sf_for_utccp(sf if sf.dtype == torch.int32 else pack_sf_words(sf))


def _checkpoint_pair(name: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Checkpoint]:
    """Return (codes uint8 [E, rows, K/2], sf bytes [E, rows, groups], format) of a caller's (codes, sf)."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ArgumentError(
            f"{name} must be a pair (codes, block scales), not {type(pair).__name__}. Pass both tensors."
        )
    codes, sf = packed_bytes(pair[0]), pair[1]
    codes = codes.flatten(2) if codes.ndim == 4 else codes
    if codes.ndim != 3 or sf.ndim != 3 or sf.shape[:2] != codes.shape[:2]:
        raise ArgumentError(
            f"{name} are codes {list(codes.shape)} and block scales {list(sf.shape)}, but [experts, rows, K/2] and "
            "[experts, rows, groups] are needed. Stack the experts, and pass scales in checkpoint order."
        )
    k, width = 2 * codes.shape[2], sf.shape[2]
    forms: dict[Checkpoint, tuple[torch.dtype, int, int]] = {
        "nvfp4": (torch.float8_e4m3fn, -(-k // 16), -(-k // 64)),
        "mxfp4": (torch.float8_e8m0fnu, -(-k // 32), -(-k // 128)),
    }
    for checkpoint, (dtype, groups, words) in forms.items():
        if sf.dtype == torch.int32 and width == words:
            return codes, unpack_sf_words(sf, groups=groups), checkpoint
        if sf.dtype in (dtype, torch.uint8, torch.int8) and width == groups:
            return codes, sf.view(torch.uint8), checkpoint
    raise ArgumentError(
        f"{name} have block scales {sf.dtype} {list(sf.shape)} for K={k}. NVFP4 needs float8_e4m3fn or bytes with "
        f"{forms['nvfp4'][1]} columns or int32 words with {forms['nvfp4'][2]}; MXFP4 float8_e8m0fnu or bytes with "
        f"{forms['mxfp4'][1]} or int32 words with {forms['mxfp4'][2]}. Pass one of these."
    )


def _choose(
    recipe: str | Recipe | None, arch: str | Arch | None, checkpoint: Checkpoint, device: torch.device
) -> tuple[Recipe, Arch]:
    """Fill in what the caller left open, and refuse what does not go together."""
    recipe = None if recipe is None else get_recipe(recipe)
    if arch is not None:
        arch = get_arch(arch)
    elif device.type == "cuda":
        arch = arch_for_capability(torch.cuda.get_device_capability(device))
    else:
        arch = get_arch(recipe.targets[0] if recipe else "sm_90a")
    if recipe is None:
        return default_recipe(arch, checkpoint), arch
    if recipe.checkpoint != checkpoint or arch.name not in recipe.targets:
        fitting = [
            name
            for name in list_recipes()
            if arch.name in get_recipe(name).targets and get_recipe(name).checkpoint == checkpoint
        ]
        raise UnsupportedError(
            f"recipe={recipe.name!r} takes {recipe.checkpoint} weights on {', '.join(recipe.targets)}, but the weights "
            f"are {checkpoint} and arch={arch.name}. Use {' or '.join(fitting) or 'another arch'} for them."
        )
    return recipe, arch


def _layouts(recipe: Recipe, hidden: int, intermediate: int, gated: bool) -> tuple[WeightLayout, WeightLayout]:
    if recipe.generation is MmaGeneration.WGMMA:
        element = Sm90Element(recipe.weights.element.value)
        return sm90_layouts(hidden=hidden, intermediate=intermediate, gated=gated, element=element)
    assert recipe.weights.gran_k is not None
    return sm100_layouts(hidden=hidden, intermediate=intermediate, gated=gated, gran_k=recipe.weights.gran_k)


def _transform(
    matrix: _Matrix, layout: WeightLayout, recipe: Recipe, arch: Arch, weights: MoeWeights
) -> TransformedWeights:
    sf: Tensor | None = None
    shift: Tensor | None = None
    if isinstance(layout, Sm100WeightLayout):
        codes, block_sf = matrix.codes, matrix.sf
        if recipe.checkpoint == "nvfp4" and layout.gran_k == 32:
            adapted = adapt_nvfp4_to_mxfp4(codes, block_sf)
            codes, block_sf = adapted.codes, adapted.sf
        codes, sf = layout.pack(codes, block_sf)
        # The codes may be the caller's own tensor: TMA that unpacks FP4 needs a start at a multiple of 32 bytes.
        data = (codes if codes.data_ptr() % 32 == 0 else codes.clone()).view(codes.shape[0], -1)
    elif recipe.checkpoint == "mxfp4":
        data, shift = _pack_mxfp4_sm90(matrix, layout, recipe)
    else:
        data = layout.pack(matrix.codes, matrix.sf)
    plain_alphas = _kernel_alphas(matrix, _alpha_factor(layout, shift))
    # MXFP4's scales are powers of two: its products are exact.
    rounds_products = recipe.weights.element is Element.E4M3 and recipe.checkpoint == "nvfp4"
    alphas = plain_alphas
    if rounds_products:
        fit = e4m3_product_fit(matrix.codes, matrix.sf, branches=layout.branches)
        alphas = (plain_alphas.double() * fit).float()
    bias = matrix.bias
    if bias is not None:
        padded = pad_branches(bias[..., None], branches=layout.branches, padded_rows=layout.padded_rows, padded_width=1)
        bias = padded[..., 0].clone(memory_format=torch.contiguous_format)
    foresees = matrix.layer == "l1" and recipe.l2_acts.row_scale == "a power of two"
    alphas, plain_alphas = (_in_kernel_shape(matrix.layer, given) for given in (alphas, plain_alphas))
    return TransformedWeights(
        layer=matrix.layer,
        recipe=recipe.name,
        arch=arch.name,
        hidden=weights.hidden,
        intermediate=weights.intermediate,
        gated=weights.gated,
        layout=layout,
        data=data,
        sf=sf,
        alphas=alphas,
        bias=bias,
        sf_shift=shift,
        plain_alphas=plain_alphas if rounds_products else None,
        forecast=_acts_forecast(matrix, layout, recipe.checkpoint) if foresees else None,
    )


def _in_kernel_shape(layer: Layer, alphas: Tensor) -> Tensor:
    """Return alphas [E, branches] as kernels read them: [E, 2] for L1, [E] for L2."""
    return alphas.expand(-1, 2).contiguous() if layer == "l1" else alphas[:, 0].contiguous()


# Sum of the squares of a byte's two codes.
_SQUARES = (0.0, 0.25, 1.0, 2.25, 4.0, 9.0, 16.0, 36.0) * 2


def _acts_forecast(matrix: _Matrix, layout: WeightLayout, checkpoint: Checkpoint) -> Tensor:
    """Return float32 [E, 4]: root mean square row length (alpha included) of gate and up, then of their biases."""
    device, branches = matrix.codes.device, layout.branches
    squares = torch.tensor(_SQUARES, device=device)
    pairs = (squares[None, :] + squares[:, None]).flatten()  # by byte
    sizes = torch.zeros(matrix.codes.shape[0], 2, 2, dtype=torch.float64, device=device)
    for expert, codes in enumerate(matrix.codes):
        sf = matrix.sf[expert].view(torch.uint8)
        groups = pairs[codes.int()].view(*sf.shape, -1).sum(-1)
        scales = decode_ue4m3(sf).double() if checkpoint == "nvfp4" else torch.exp2(sf.double() - 127)
        rows = (groups * scales.square()).sum(-1)
        sizes[expert, 0] = rows.view(branches, -1).mean(-1).sqrt() * matrix.alphas[expert].double()
    if matrix.bias is not None:
        sizes[:, 1] = matrix.bias.double().square().view(len(sizes), branches, -1).mean(-1).sqrt()
    return sizes.flatten(1).float()


def _untransform(given: TransformedWeights) -> _Matrix:
    layout = given.layout
    if isinstance(layout, Sm100WeightLayout):
        assert given.sf is not None
        codes, sf = layout.unpack(given.codes, given.sf)
    else:
        codes, sf = layout.unpack(given.data)
        sf = sf.view(torch.uint8)
        if given.sf_shift is not None:
            sf = _unpack_mxfp4_sf(codes, sf, given.sf_shift)
    plain = given.alphas if given.plain_alphas is None else given.plain_alphas
    alphas = plain.view(given.num_experts, -1)[:, : layout.branches].double()
    bias = given.bias
    if bias is not None:
        bias = crop_branches(bias[..., None], branches=layout.branches, count=layout.rows, width=1)[..., 0].contiguous()
    return _Matrix(
        layer=given.layer,
        codes=codes,
        sf=sf,
        alphas=(alphas / _alpha_factor(layout, given.sf_shift)).float().contiguous(),
        bias=bias,
    )


def _alpha_factor(layout: WeightLayout, shift: Tensor | None) -> Tensor | float:
    """What a checkpoint's alphas are multiplied by for the kernel: a power of two."""
    factor = layout.element.decode_factor if isinstance(layout, Sm90WeightLayout) else 1.0
    return factor if shift is None else torch.exp2(shift.double()) * factor


def _kernel_alphas(matrix: _Matrix, factor: Tensor | float) -> Tensor:
    """Return the alphas times the power of two `factor`; raises ArgumentError where float32 cannot hold the product."""
    alphas = (matrix.alphas.double() * factor).float()
    wrong = (alphas.double() / factor != matrix.alphas) | ~alphas.isfinite()
    if bool(wrong.any()):
        expert, branch = wrong.nonzero()[0].tolist()
        exponent = torch.as_tensor(factor).expand(alphas.shape)[expert, branch].log2().item()
        raise ArgumentError(
            f"{matrix.layer}_alphas of expert {expert} is {matrix.alphas[expert, branch].item():g}, which the kernel "
            f"needs times 2^{exponent:g}: float32 cannot hold that. Rescale the checkpoint's block scales and alphas."
        )
    return alphas


def _pack_mxfp4_sm90(matrix: _Matrix, layout: Sm90WeightLayout, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return (data, sf_shift [E, branches]) of MXFP4 weights, whose scales become UE4M3; raises where they cannot."""
    num_experts = matrix.codes.shape[0]
    data = torch.empty(num_experts, layout.bytes_per_expert, dtype=torch.uint8, device=matrix.codes.device)
    shifts = []
    for expert in range(num_experts):
        codes = matrix.codes[expert].view(layout.branches, layout.rows, -1)
        ue8m0 = matrix.sf.view(torch.uint8)[expert].view(layout.branches, layout.rows, -1)
        where = f"{matrix.layer.upper()} of expert {expert}"
        try:
            converted = mxfp4_to_nvfp4(codes, ue8m0)
        except ArgumentError as error:
            raise ArgumentError(f"{where}, recipe {recipe.name}: {error}") from error
        assert converted.global_scale is not None
        shifts.append((converted.global_scale.view(torch.int32) >> 23) - 127)
        ue4m3 = converted.sf.view(torch.uint8)
        rounded = rounded_in_e4m3(codes, ue4m3) if layout.element is Sm90Element.E4M3 else 0
        if rounded:
            raise ArgumentError(
                f"{where}, recipe {recipe.name}: {rounded} of {ue4m3.numel()} groups of 16 have scales so far below "
                "the largest of their matrix that E4M3 would round their values (it holds them exactly down to 2^-13 "
                "of the largest scale). Use recipe bf16_mxfp4, which is exact down to 2^-17."
            )
        sf = stash_zero_groups(codes, ue4m3, ue8m0).view(1, layout.checkpoint_rows, -1)
        layout.pack(matrix.codes[expert : expert + 1], sf, out=data[expert : expert + 1])
    return data, torch.stack(shifts)


def _unpack_mxfp4_sf(codes: Tensor, sf: Tensor, shift: Tensor) -> Tensor:
    """Return the UE8M0 bytes [E, rows, K/32] that `_pack_mxfp4_sm90` coded, one expert at a time."""
    experts = [
        restore_ue8m0(
            codes[expert].view(shift.shape[1], -1, codes.shape[2]), sf[expert].view(shift.shape[1], -1, sf.shape[2]), by
        ).flatten(0, 1)
        for expert, by in enumerate(shift)
    ]
    return torch.stack(experts)
