"""The expert weights of one MoE layer, in checkpoint order: what every transform, kernel and oracle starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from megamoe_jit.errors import ArgumentError
from megamoe_jit.formats.block_scaled import (
    MX_GRAN_K,
    NVFP4_GRAN_K,
    QuantFormat,
    QuantizedTensor,
    quantize_to_mxfp4,
    quantize_weight_to_nvfp4,
)
from megamoe_jit.formats.fp4 import packed_bytes
from megamoe_jit.formats.fp8 import UE8M0_BIAS, as_e4m3, as_e8m0

Checkpoint = Literal["nvfp4", "mxfp4"]
RowOrder = Literal["gate_up", "interleaved"]
_NAN_SF = {"nvfp4": 0x7F, "mxfp4": 0xFF}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MoeWeights:
    """FP4 weights of the experts of one layer (those of one rank), contiguous and row-major.

    A weight is `e2m1(code) * sf * alpha`. L1 rows are gate [0, I) then up [I, 2I); without a gate (relu2) there are I
    rows. H and I are multiples of the block (16 for NVFP4, 32 for MXFP4).

    Attributes:
        l1_codes: uint8 [E, 2I, H/2] ([E, I, H/2] without a gate), two codes a byte, even K in the low nibble.
        l1_sf: float8_e4m3fn [E, 2I, H/16] (nvfp4) or float8_e8m0fnu [E, 2I, H/32] (mxfp4).
        l1_alphas: float32 [E, 2] second-level multipliers of gate and up ([E, 1] without a gate); ones for mxfp4.
        l2_codes: uint8 [E, H, I/2].
        l2_sf: as l1_sf, [E, H, I/16] or [E, H, I/32].
        l2_alphas: float32 [E].
        l1_bias: float32 [E, 2I] added to gate and up after their alphas, or None.
        l2_bias: float32 [E, H] added after alpha and before the top-k weight, or None.
        checkpoint: "nvfp4" or "mxfp4".

    Raises ArgumentError, at construction, for wrong dtypes, shapes, strides and devices, for block scales that are
    negative or NaN, and for alphas and biases that are not finite. (The last checks read the tensors: on a GPU they
    wait for it.)
    """

    l1_codes: Tensor
    l1_sf: Tensor
    l1_alphas: Tensor
    l2_codes: Tensor
    l2_sf: Tensor
    l2_alphas: Tensor
    l1_bias: Tensor | None = None
    l2_bias: Tensor | None = None
    checkpoint: Checkpoint = "nvfp4"

    def __post_init__(self) -> None:
        """Validate."""
        self.validate()

    @property
    def num_experts(self) -> int:
        """Number of experts E held here."""
        return self.l1_codes.shape[0]

    @property
    def hidden(self) -> int:
        """Model width H."""
        return self.l2_codes.shape[1]

    @property
    def intermediate(self) -> int:
        """Width I between the GEMMs, after gating."""
        return 2 * self.l2_codes.shape[2]

    @property
    def gated(self) -> bool:
        """Whether L1 has a gate row for each up row."""
        return self.l1_codes.shape[1] != self.intermediate

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.l1_codes.device

    @property
    def gran_k(self) -> int:
        """Elements of K that share a block scale."""
        return NVFP4_GRAN_K if self.checkpoint == "nvfp4" else MX_GRAN_K

    @property
    def l1_row_alphas(self) -> Tensor:
        """l1_alphas repeated for each L1 row: float32 [E, 2I] ([E, I] without a gate)."""
        return self.l1_alphas.repeat_interleave(self.intermediate, dim=1)

    def validate(self) -> None:
        """Check dtypes, shapes, strides, devices and values; raises ArgumentError with the first fault."""
        if self.checkpoint not in _NAN_SF:
            raise ArgumentError(f"checkpoint={self.checkpoint!r} is unknown. Use 'nvfp4' or 'mxfp4'.")
        for name in ("l1_codes", "l2_codes"):
            codes = getattr(self, name)
            if codes.dtype != torch.uint8 or codes.ndim != 3:
                raise ArgumentError(
                    f"{name} is {codes.dtype} {list(codes.shape)}, but uint8 [experts, rows, K/2] is needed. "
                    "MoeWeights.from_checkpoint(...) takes int8 and float4_e2m1fn_x2 codes too."
                )
        num_experts, l1_rows, half_hidden = self.l1_codes.shape
        hidden, intermediate, gran_k = 2 * half_hidden, self.intermediate, self.gran_k
        if num_experts < 1 or hidden < 1 or intermediate < 1:
            raise ArgumentError(
                f"l1_codes {list(self.l1_codes.shape)} and l2_codes {list(self.l2_codes.shape)} are empty, but at "
                "least one expert with rows is needed. Check how the layer was sliced."
            )
        for name, size in (("hidden", hidden), ("intermediate", intermediate)):
            if size % gran_k:
                raise ArgumentError(
                    f"{name}={size} is no multiple of {gran_k}, the block of {self.checkpoint} scale factors. "
                    "Pad it with zero codes."
                )
        if l1_rows not in (intermediate, 2 * intermediate):
            raise ArgumentError(
                f"l1_codes has {l1_rows} rows, but l2_codes {list(self.l2_codes.shape)} says "
                f"intermediate={intermediate}: {2 * intermediate} rows (gate, up) or {intermediate} rows (no gate) are "
                "needed. Check that L1 and L2 are of the same layer."
            )
        sf_dtype = torch.float8_e4m3fn if self.checkpoint == "nvfp4" else torch.float8_e8m0fnu
        num_alphas = l1_rows // intermediate
        expected: list[tuple[str, torch.dtype, tuple[int, ...]]] = [
            ("l1_codes", torch.uint8, (num_experts, l1_rows, hidden // 2)),
            ("l1_sf", sf_dtype, (num_experts, l1_rows, hidden // gran_k)),
            ("l1_alphas", torch.float32, (num_experts, num_alphas)),
            ("l2_codes", torch.uint8, (num_experts, hidden, intermediate // 2)),
            ("l2_sf", sf_dtype, (num_experts, hidden, intermediate // gran_k)),
            ("l2_alphas", torch.float32, (num_experts,)),
            ("l1_bias", torch.float32, (num_experts, l1_rows)),
            ("l2_bias", torch.float32, (num_experts, hidden)),
        ]
        for name, dtype, shape in expected:
            tensor = getattr(self, name)
            if tensor is None and name.endswith("bias"):
                continue
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise ArgumentError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, but {dtype} {list(shape)} is needed for a "
                    f"{self.checkpoint} layer with {num_experts} experts, hidden={hidden}, intermediate={intermediate}"
                    ". MoeWeights.from_checkpoint(...) converts dtypes."
                )
            if not tensor.is_contiguous():
                raise ArgumentError(
                    f"{name} {list(shape)} has strides {list(tensor.stride())}, but a contiguous tensor is needed"
                    ". Call .contiguous() on it."
                )
            if tensor.device != self.device:
                raise ArgumentError(
                    f"{name} is on {tensor.device}, but l1_codes is on {self.device}, and the weights of a layer must "
                    "share a device. Move it there."
                )
        for name in ("l1_sf", "l2_sf"):
            self._check_sf(name, getattr(self, name))
        for name in ("l1_alphas", "l2_alphas", "l1_bias", "l2_bias"):
            tensor = getattr(self, name)
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise ArgumentError(
                    f"{name} holds {int((~torch.isfinite(tensor)).sum())} values that are not finite, but kernels need "
                    "finite ones. Look for a divisor read as a multiplier, or a damaged checkpoint."
                )

    def _check_sf(self, name: str, sf: Tensor) -> None:
        bits = sf.view(torch.uint8)
        nan = _NAN_SF[self.checkpoint]
        # One pass over the bytes in the good case: UE4M3 is fine below 0x7F, UE8M0 below 0xFF.
        if int(bits.max()) < nan:
            return
        if self.checkpoint == "nvfp4" and (num_negative := int((bits > nan).sum())):
            raise ArgumentError(
                f"{name} holds {num_negative} negative block scales (bytes above 0x7F), but UE4M3 has no sign. "
                "Check that the bytes are scales, not codes."
            )
        raise ArgumentError(
            f"{name} holds {int((bits == nan).sum())} NaN block scales (byte 0x{nan:02X}), but each must be a number. "
            "The checkpoint is damaged, or the bytes are not scales."
        )

    @classmethod
    def from_float(
        cls,
        l1: Tensor,
        l2: Tensor,
        checkpoint: Checkpoint = "nvfp4",
        *,
        gated: bool = True,
        l1_bias: Tensor | None = None,
        l2_bias: Tensor | None = None,
    ) -> MoeWeights:
        """Quantise float weights l1 [E, 2I, H] ([E, I, H] when not gated) and l2 [E, H, I].

        NVFP4: gate, up and down of each expert get a global scale of their own (`quantize_weight_to_nvfp4`).
        MXFP4: `quantize_to_mxfp4`. Rounding and error bounds are theirs.
        """
        if l1.ndim != 3 or l2.ndim != 3 or l1.shape[0] != l2.shape[0] or l1.shape[2] != l2.shape[1]:
            raise ArgumentError(
                f"l1 {list(l1.shape)} and l2 {list(l2.shape)} do not fit: [experts, 2 * intermediate, hidden] and "
                "[experts, hidden, intermediate] are needed. Check the order of the dimensions."
            )
        num_parts = 2 if gated else 1
        if l1.shape[1] != num_parts * l2.shape[2]:
            raise ArgumentError(
                f"l1 has {l1.shape[1]} rows, but {num_parts} * intermediate = {num_parts * l2.shape[2]} are needed "
                f"with gated={gated}. Check gated, and that L1 and L2 are of the same layer."
            )
        num_experts = l1.shape[0]
        if checkpoint == "nvfp4":
            parts = quantize_weight_to_nvfp4(l1.reshape(num_experts, num_parts, l2.shape[2], l1.shape[2]))
            assert parts.global_scale is not None
            down = quantize_weight_to_nvfp4(l2)
            assert down.global_scale is not None
            l1_alphas, l2_alphas = parts.global_scale, down.global_scale
            l1_codes, l1_sf = parts.codes.flatten(1, 2), parts.sf.view(torch.uint8).flatten(1, 2).view(parts.sf.dtype)
        elif checkpoint == "mxfp4":
            up, down = quantize_to_mxfp4(l1), quantize_to_mxfp4(l2)
            l1_alphas = torch.ones(num_experts, num_parts, device=l1.device)
            l2_alphas = torch.ones(num_experts, device=l1.device)
            l1_codes, l1_sf = up.codes, up.sf
        else:
            raise ArgumentError(f"checkpoint={checkpoint!r} is unknown. Use 'nvfp4' or 'mxfp4'.")
        return cls(
            l1_codes=l1_codes.contiguous(),
            l1_sf=l1_sf,
            l1_alphas=l1_alphas.contiguous(),
            l2_codes=down.codes,
            l2_sf=down.sf,
            l2_alphas=l2_alphas.contiguous(),
            l1_bias=None if l1_bias is None else l1_bias.float().contiguous(),
            l2_bias=None if l2_bias is None else l2_bias.float().contiguous(),
            checkpoint=checkpoint,
        )

    @classmethod
    def from_checkpoint(
        cls,
        l1_codes: Tensor,
        l1_sf: Tensor,
        l2_codes: Tensor,
        l2_sf: Tensor,
        *,
        checkpoint: Checkpoint = "nvfp4",
        l1_global_scale: Tensor | None = None,
        l2_global_scale: Tensor | None = None,
        global_scale_divides: bool = False,
        row_order: RowOrder = "gate_up",
        l1_bias: Tensor | None = None,
        l2_bias: Tensor | None = None,
    ) -> MoeWeights:
        """Normalise stacked checkpoint tensors: dtypes, block axis, row order and the sense of the global scales.

        Args:
            l1_codes: packed codes as uint8, int8 or float4_e2m1fn_x2 [E, 2I, H/2], or gpt-oss blocks [E, 2I, H/32, 16].
            l1_sf: block scales, float8_e4m3fn or bytes [E, 2I, H/16] (nvfp4), float8_e8m0fnu or bytes [E, 2I, H/32].
            l2_codes: as l1_codes, [E, H, I/2] or [E, H, I/32, 16].
            l2_sf: as l1_sf.
            checkpoint: "nvfp4" or "mxfp4".
            l1_global_scale: float [E, 2] (gate, up), [E] (one for both) or a scalar; nvfp4 needs it, mxfp4 has none.
            l2_global_scale: float [E] or a scalar.
            global_scale_divides: True for compressed-tensors' `weight_global_scale`, False for ModelOpt's
                `weight_scale_2`.
            row_order: "gate_up" for [gate(I), up(I)], "interleaved" for gpt-oss's gate, up, gate, up.
            l1_bias: float [E, 2I] in the same row order, or None.
            l2_bias: float [E, H], or None.
        """
        l1_codes, l2_codes = (_flat_blocks(packed_bytes(codes)) for codes in (l1_codes, l2_codes))
        as_sf = as_e4m3 if checkpoint == "nvfp4" else as_e8m0
        l1_sf, l2_sf = as_sf(l1_sf), as_sf(l2_sf)
        if row_order not in ("gate_up", "interleaved"):
            raise ArgumentError(f"row_order={row_order!r} is unknown. Use 'gate_up' or 'interleaved'.")
        if row_order == "interleaved":
            l1_codes, l1_bias = _deinterleave(l1_codes), None if l1_bias is None else _deinterleave(l1_bias)
            l1_sf = _deinterleave(l1_sf.view(torch.uint8)).view(l1_sf.dtype)
        if checkpoint == "nvfp4" and (l1_global_scale is None or l2_global_scale is None):
            raise ArgumentError(
                "an nvfp4 checkpoint needs l1_global_scale and l2_global_scale (weight_scale_2 of ModelOpt, "
                "weight_global_scale of compressed-tensors), but one is None. Pass torch.ones(()) "
                "if the block scales are complete."
            )
        num_experts = l1_codes.shape[0]
        num_alphas = max(1, l1_codes.shape[1] // max(1, 2 * l2_codes.shape[-1]))
        return cls(
            l1_codes=l1_codes.contiguous(),
            l1_sf=_contiguous_fp8(l1_sf),
            l1_alphas=_alphas(l1_global_scale, (num_experts, num_alphas), global_scale_divides, l1_codes.device),
            l2_codes=l2_codes.contiguous(),
            l2_sf=_contiguous_fp8(l2_sf),
            l2_alphas=_alphas(l2_global_scale, (num_experts,), global_scale_divides, l1_codes.device),
            l1_bias=None if l1_bias is None else l1_bias.float().contiguous(),
            l2_bias=None if l2_bias is None else l2_bias.float().contiguous(),
            checkpoint=checkpoint,
        )

    @classmethod
    def random(
        cls,
        num_experts: int,
        hidden: int,
        intermediate: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        checkpoint: Checkpoint = "nvfp4",
        gated: bool = True,
        bias: bool = False,
    ) -> MoeWeights:
        """Return random weights whose values have a standard deviation near K^-0.5, made without a float copy of them.

        Codes follow a rounded normal distribution, block scales spread over a factor of 4 as in real checkpoints, and
        the alphas of gate, up and down differ and are no powers of two, so that a mixed-up scale shows. The same seed
        gives the same weights on one device type.
        """
        generator = torch.Generator(device=device).manual_seed(seed)
        rows = (2 if gated else 1) * intermediate
        l1 = _random_operand(generator, (num_experts, rows, hidden), checkpoint)
        l2 = _random_operand(generator, (num_experts, hidden, intermediate), checkpoint)

        def alphas(shape: tuple[int, ...], k: int) -> Tensor:
            if checkpoint == "mxfp4":
                return torch.ones(shape, device=device)
            jitter: Tensor = torch.rand(shape, generator=generator, device=device) * 0.5 + 0.75
            return jitter / (math.sqrt(k) * _RANDOM_STD["nvfp4"])

        def biases(width: int) -> Tensor | None:
            return torch.randn(num_experts, width, generator=generator, device=device) * 0.1 if bias else None

        return cls(
            l1_codes=l1[0],
            l1_sf=l1[1],
            l1_alphas=alphas((num_experts, 2 if gated else 1), hidden),
            l2_codes=l2[0],
            l2_sf=l2[1],
            l2_alphas=alphas((num_experts,), intermediate),
            l1_bias=biases(rows),
            l2_bias=biases(hidden),
            checkpoint=checkpoint,
        )

    def l1(self, expert: int | slice = slice(None)) -> QuantizedTensor:
        """L1 of one expert or of some, without its alphas, as a QuantizedTensor."""
        return self._operand(self.l1_codes[expert], self.l1_sf[expert])

    def l2(self, expert: int | slice = slice(None)) -> QuantizedTensor:
        """L2 of one expert or of some, without its alphas, as a QuantizedTensor."""
        return self._operand(self.l2_codes[expert], self.l2_sf[expert])

    def _operand(self, codes: Tensor, sf: Tensor) -> QuantizedTensor:
        return QuantizedTensor(codes=codes, sf=sf, format=QuantFormat(self.checkpoint))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return the float weights (l1 [E, 2I, H], l2 [E, H, I]) with their alphas; exact in float64."""
        l1 = self.l1().dequantize(dtype).mul_(self.l1_row_alphas.to(dtype).unsqueeze(-1))
        l2 = self.l2().dequantize(dtype).mul_(self.l2_alphas.to(dtype)[:, None, None])
        return l1, l2

    def to(self, device: torch.device | str) -> MoeWeights:
        """Return the weights on `device`; those already there are shared, not copied."""
        return replace(
            self,
            l1_codes=self.l1_codes.to(device),
            l1_sf=self.l1_sf.to(device),
            l1_alphas=self.l1_alphas.to(device),
            l2_codes=self.l2_codes.to(device),
            l2_sf=self.l2_sf.to(device),
            l2_alphas=self.l2_alphas.to(device),
            l1_bias=None if self.l1_bias is None else self.l1_bias.to(device),
            l2_bias=None if self.l2_bias is None else self.l2_bias.to(device),
        )


# Standard deviation of code x block scale in `_random_operand`, before the alphas of `random`.
_RANDOM_STD = {"nvfp4": 173.0, "mxfp4": 3.07}


def _random_operand(
    generator: torch.Generator, shape: tuple[int, int, int], checkpoint: Checkpoint
) -> tuple[Tensor, Tensor]:
    num_experts, rows, k = shape
    device = generator.device
    # 16 draws of the codes of a rounded normal variable with a deviation of 2: the share of each magnitude is about
    # that of real weights.
    magnitudes = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7], dtype=torch.uint8, device=device)
    draws = torch.randint(0, 256, (num_experts, rows, k // 2, 2), dtype=torch.uint8, generator=generator, device=device)
    codes = magnitudes.index_select(0, (draws & 0xF).flatten().to(torch.int32)).view(draws.shape) | ((draws >> 4) & 0x8)
    packed = codes[..., 0] | (codes[..., 1] << 4)
    if checkpoint == "nvfp4":
        sf_shape = (num_experts, rows, k // NVFP4_GRAN_K)
        # UE4M3 bytes 0x60..0x70: 32..128.
        sf = torch.randint(0x60, 0x71, sf_shape, dtype=torch.uint8, generator=generator, device=device)
        return packed, sf.view(torch.float8_e4m3fn)
    sf_shape = (num_experts, rows, k // MX_GRAN_K)
    center = UE8M0_BIAS - round(math.log2(_RANDOM_STD["mxfp4"] * k**0.5))
    sf = torch.randint(center - 1, center + 2, sf_shape, dtype=torch.uint8, generator=generator, device=device)
    return packed, sf.view(torch.float8_e8m0fnu)


def _flat_blocks(codes: Tensor) -> Tensor:
    return codes.flatten(2) if codes.ndim == 4 else codes


def _deinterleave(rows: Tensor) -> Tensor:
    return torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1)


def _contiguous_fp8(sf: Tensor) -> Tensor:
    return sf.view(torch.uint8).contiguous().view(sf.dtype)


def _alphas(scale: Tensor | None, shape: tuple[int, ...], divides: bool, device: torch.device) -> Tensor:
    if scale is None:
        return torch.ones(shape, dtype=torch.float32, device=device)
    scale = scale.to(device=device, dtype=torch.float32)
    if scale.numel() == 1:
        scale = scale.reshape((1,) * len(shape))
    elif scale.shape == shape[:1] and len(shape) == 2:
        scale = scale.unsqueeze(1)
    elif tuple(scale.shape) != shape:
        raise ArgumentError(
            f"a global scale has shape {list(scale.shape)}, but {list(shape)}, [{shape[0]}] or a scalar is needed. "
            "Stack one scale for each expert."
        )
    return (1.0 / scale if divides else scale).expand(shape).contiguous()
