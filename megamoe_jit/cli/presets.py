"""Named models: the shapes that `warmup` and `demo` know by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from megamoe_jit.errors import ArgumentError

if TYPE_CHECKING:
    from megamoe_jit.formats.activation import ActivationSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One model's mixture-of-experts layer, as its published configuration has it."""

    name: str
    hidden: int
    intermediate: int
    num_experts: int
    num_topk: int
    checkpoint: str = "nvfp4"
    activation: Literal["swiglu", "swigluoai"] = "swiglu"

    def activation_spec(self) -> ActivationSpec:
        """Return the activation that this model has between L1 and L2."""
        from megamoe_jit.formats.activation import ActivationSpec

        return ActivationSpec.swigluoai() if self.activation == "swigluoai" else ActivationSpec()


_PRESETS = {
    preset.name: preset
    for preset in (
        Preset(name="minilm", hidden=384, intermediate=768, num_experts=6, num_topk=2),
        Preset(name="deepseek-v3", hidden=7168, intermediate=2048, num_experts=256, num_topk=8),
        Preset(name="deepseek-v4-flash", hidden=4096, intermediate=2048, num_experts=256, num_topk=6),
        Preset(name="deepseek-v4-pro", hidden=7168, intermediate=3072, num_experts=384, num_topk=6),
        Preset(name="glm-4.5", hidden=5120, intermediate=1536, num_experts=160, num_topk=8),
        Preset(name="glm-4.5-air", hidden=4096, intermediate=1408, num_experts=128, num_topk=8),
        Preset(name="kimi-k2", hidden=7168, intermediate=2048, num_experts=384, num_topk=8),
        Preset(name="mixtral-8x7b", hidden=4096, intermediate=14336, num_experts=8, num_topk=2),
        Preset(name="qwen3-30b-a3b", hidden=2048, intermediate=768, num_experts=128, num_topk=8),
        Preset(name="qwen3-235b-a22b", hidden=4096, intermediate=1536, num_experts=128, num_topk=8),
        *(
            Preset(
                name=name,
                hidden=2880,
                intermediate=2880,
                num_experts=num_experts,
                num_topk=4,
                checkpoint="mxfp4",
                activation="swigluoai",
            )
            for name, num_experts in (("gpt-oss-20b", 32), ("gpt-oss-120b", 128))
        ),
    )
}


def list_presets() -> tuple[Preset, ...]:
    """Return every named model."""
    return tuple(_PRESETS.values())


def get_preset(name: str) -> Preset:
    """Return the preset called `name`; raises ArgumentError for an unknown one."""
    try:
        return _PRESETS[name]
    except KeyError:
        raise ArgumentError(
            f"preset={name!r} is unknown. Use one of {', '.join(_PRESETS)}, or give --hidden, --intermediate, "
            "--experts and --topk."
        ) from None
