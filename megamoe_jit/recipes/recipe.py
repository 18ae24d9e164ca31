"""Recipes: which formats are multiplied, with which scale factors, by which instruction, on which targets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from megamoe_jit.arch import Arch, MmaGeneration, get_arch
from megamoe_jit.errors import UnsupportedError


class Element(Enum):
    """Element encodings of an operand."""

    E2M1 = "e2m1"
    E4M3 = "e4m3"
    BF16 = "bf16"


class ScaleType(Enum):
    """Encodings of a scale factor."""

    UE4M3 = "ue4m3"
    UE8M0 = "ue8m0"
    FP32 = "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Operand:
    """Encoding of one GEMM operand: `element` codes, one `sf_type` scale factor for each `gran_k` elements of K.

    gran_k None with a scale type means one scale a row (a token); `row_scale` says which factor a row (NVFP4's
    second level) is applied on top of the block scale factors.
    """

    element: Element
    sf_type: ScaleType | None = None
    gran_k: int | None = None
    row_scale: Literal["fp32", "a power of two"] | None = None

    def __str__(self) -> str:
        """Return the encoding in words, as descriptions of recipes use them."""
        if self.sf_type is None:
            return self.element.value
        text = f"{self.element.value} with {self.sf_type.value} per {self.gran_k or 'token'}"
        return text + (f" and {self.row_scale} per token" if self.row_scale else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a mega-MoE call multiplies by what, and what is rounded where.

    `checkpoint` is the format of the expert weights as given ("nvfp4" or "mxfp4"); they stay in it. `weights` is the
    operand that the MMA sees after on-chip decoding or scale adaptation. `loss` says in words what the recipe rounds
    beyond the formats.
    """

    name: str
    l1_acts: Operand
    l2_acts: Operand
    checkpoint: Literal["nvfp4", "mxfp4"]
    weights: Operand
    mma: str
    generation: MmaGeneration
    targets: tuple[str, ...]
    loss: str

    def describe(self) -> str:
        """Return one paragraph on what this recipe computes and what it rounds."""
        return (
            f"{self.name}: {self.checkpoint.upper()} weights; activations {self.l1_acts} (L1), {self.l2_acts} (L2); "
            f"the tensor core multiplies {self.weights.element.value} weights by {self.l1_acts.element.value} "
            f"activations with {self.mma} on {', '.join(self.targets)}. {self.loss}"
        )


_E4M3_TOKEN = Operand(element=Element.E4M3, sf_type=ScaleType.FP32)
_E4M3_L2_ACTS = Operand(element=Element.E4M3, sf_type=ScaleType.FP32, gran_k=128, row_scale="a power of two")
_BF16 = Operand(element=Element.BF16)
_NVFP4 = Operand(element=Element.E2M1, sf_type=ScaleType.UE4M3, gran_k=16)
_NVFP4_ACTS = Operand(element=Element.E2M1, sf_type=ScaleType.UE4M3, gran_k=16, row_scale="fp32")
_NVFP4_L2_ACTS = Operand(element=Element.E2M1, sf_type=ScaleType.UE4M3, gran_k=16, row_scale="a power of two")
_MXFP4 = Operand(element=Element.E2M1, sf_type=ScaleType.UE8M0, gran_k=32)
_MXFP8 = Operand(element=Element.E4M3, sf_type=ScaleType.UE8M0, gran_k=32)
_SM90 = ("sm_90a",)
_SM100 = ("sm_100a", "sm_100f", "sm_103a", "sm_103f")

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="nvfp4_nvfp4",
            l1_acts=_NVFP4_ACTS,
            l2_acts=_NVFP4_L2_ACTS,
            checkpoint="nvfp4",
            weights=_NVFP4,
            mma="tcgen05.mma kind::mxf4nvf4 block16",
            generation=MmaGeneration.TCGEN05,
            targets=_SM100,
            loss="Products are exact; activations are rounded to 4 bits twice.",
        ),
        Recipe(
            name="mxfp8_mxfp4",
            l1_acts=_MXFP8,
            l2_acts=_MXFP8,
            checkpoint="mxfp4",
            weights=_MXFP4,
            mma="tcgen05.mma kind::mxf8f6f4 block32",
            generation=MmaGeneration.TCGEN05,
            targets=_SM100,
            loss="Products are exact.",
        ),
        Recipe(
            name="mxfp8_nvfp4",
            l1_acts=_MXFP8,
            l2_acts=_MXFP8,
            checkpoint="nvfp4",
            weights=_MXFP4,
            mma="tcgen05.mma kind::mxf8f6f4 block32",
            generation=MmaGeneration.TCGEN05,
            targets=_SM100,
            loss="Weights change: each pair of UE4M3/16 scales becomes one UE8M0/32 scale, "
            "and the codes are rounded to it.",
        ),
        Recipe(
            name="mxfp4_mxfp4",
            l1_acts=_MXFP4,
            l2_acts=_MXFP4,
            checkpoint="mxfp4",
            weights=_MXFP4,
            mma="tcgen05.mma kind::mxf4 block32",
            generation=MmaGeneration.TCGEN05,
            targets=_SM100,
            loss="Products are exact; activations are rounded to 4 bits twice.",
        ),
        Recipe(
            name="fp8_nvfp4",
            l1_acts=_E4M3_TOKEN,
            l2_acts=_E4M3_L2_ACTS,
            checkpoint="nvfp4",
            weights=Operand(element=Element.E4M3),
            mma="wgmma e4m3 with decoded weights in registers",
            generation=MmaGeneration.WGMMA,
            targets=_SM90,
            loss="code x scale / 8 is rounded to E4M3 on chip: inexact where it needs more than 4 significant bits.",
        ),
        Recipe(
            name="bf16_nvfp4",
            l1_acts=_BF16,
            l2_acts=_BF16,
            checkpoint="nvfp4",
            weights=_BF16,
            mma="wgmma bf16 with decoded weights in registers",
            generation=MmaGeneration.WGMMA,
            targets=_SM90,
            loss="Weights are exact: code x scale has at most 6 significant bits.",
        ),
        Recipe(
            name="fp8_mxfp4",
            l1_acts=_E4M3_TOKEN,
            l2_acts=_E4M3_L2_ACTS,
            checkpoint="mxfp4",
            weights=Operand(element=Element.E4M3),
            mma="wgmma e4m3 with decoded weights in registers",
            generation=MmaGeneration.WGMMA,
            targets=_SM90,
            loss="Weights are exact while the exponents of an expert span what E4M3 holds; "
            "the transform refuses others.",
        ),
        Recipe(
            name="bf16_mxfp4",
            l1_acts=_BF16,
            l2_acts=_BF16,
            checkpoint="mxfp4",
            weights=_BF16,
            mma="wgmma bf16 with decoded weights in registers",
            generation=MmaGeneration.WGMMA,
            targets=_SM90,
            loss="Weights are exact.",
        ),
    )
}


def list_recipes() -> list[str]:
    """Return the names of all recipes."""
    return list(RECIPES)


def get_recipe(name: str | Recipe) -> Recipe:
    """Return the recipe called `name`; raises UnsupportedError for an unknown one."""
    if isinstance(name, Recipe):
        return name
    try:
        return RECIPES[name]
    except (KeyError, TypeError):  # TypeError: a list or dict
        raise UnsupportedError(f"recipe={name!r} is unknown. Use one of {', '.join(RECIPES)}.") from None


def default_recipe(arch: str | Arch, checkpoint: str = "nvfp4") -> Recipe:
    """Return the recipe that a checkpoint format takes on `arch` unless the user chooses another."""
    arch = get_arch(arch)
    name = {
        (MmaGeneration.WGMMA, "nvfp4"): "fp8_nvfp4",
        (MmaGeneration.WGMMA, "mxfp4"): "fp8_mxfp4",
        (MmaGeneration.TCGEN05, "nvfp4"): "nvfp4_nvfp4",
        (MmaGeneration.TCGEN05, "mxfp4"): "mxfp8_mxfp4",
    }.get((arch.generation, checkpoint))
    if name is None:
        raise UnsupportedError(
            f"no recipe runs a checkpoint of format {checkpoint!r} on {arch}. Formats: nvfp4, mxfp4."
        )
    return RECIPES[name]
