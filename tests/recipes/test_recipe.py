"""Recipes as nouns: what each says of itself, which targets it has, and which one a checkpoint takes."""

from __future__ import annotations

import pytest

from megamoe_jit import UnsupportedError, default_recipe, get_recipe, list_recipes
from megamoe_jit.arch import ARCHS, MmaGeneration, get_arch
from megamoe_jit.recipes.choose import recipes_of
from megamoe_jit.recipes.recipe import RECIPES, Element, Operand, Recipe, ScaleType

NAMES = [
    "nvfp4_nvfp4",
    "mxfp8_mxfp4",
    "mxfp8_nvfp4",
    "mxfp4_mxfp4",
    "fp8_nvfp4",
    "bf16_nvfp4",
    "fp8_mxfp4",
    "bf16_mxfp4",
]
DESCRIPTIONS = {
    "nvfp4_nvfp4": "NVFP4 weights; activations e2m1 with ue4m3 per 16 and fp32 per token (L1), "
    "e2m1 with ue4m3 per 16 and a power of two per token (L2); the tensor core multiplies "
    "e2m1 weights by e2m1 activations with tcgen05.mma kind::mxf4nvf4 block16 on sm_100a, sm_100f, sm_103a, sm_103f. ",
    "mxfp8_mxfp4": "MXFP4 weights; activations e4m3 with ue8m0 per 32 (L1), e4m3 with ue8m0 per 32 (L2); "
    "the tensor core multiplies e2m1 weights by e4m3 activations with tcgen05.mma kind::mxf8f6f4 block32 on sm_100a",
    "mxfp8_nvfp4": "NVFP4 weights; activations e4m3 with ue8m0 per 32 (L1)",
    "mxfp4_mxfp4": "MXFP4 weights; activations e2m1 with ue8m0 per 32 (L1)",
    "fp8_nvfp4": "NVFP4 weights; activations e4m3 with fp32 per token (L1), "
    "e4m3 with fp32 per 128 and a power of two per token (L2); the tensor core "
    "multiplies e4m3 weights by e4m3 activations with wgmma e4m3 with decoded weights in registers on "
    "sm_90a. ",
    "bf16_nvfp4": "NVFP4 weights; activations bf16 (L1), bf16 (L2); the tensor core multiplies bf16 weights by bf16 "
    "activations with wgmma bf16 with decoded weights in registers on sm_90a. ",
    "fp8_mxfp4": "MXFP4 weights; activations e4m3 with fp32 per token (L1)",
    "bf16_mxfp4": "MXFP4 weights; activations bf16 (L1)",
}
DEFAULTS = {
    ("sm_90a", "nvfp4"): "fp8_nvfp4",
    ("sm_90a", "mxfp4"): "fp8_mxfp4",
    ("sm_100a", "nvfp4"): "nvfp4_nvfp4",
    ("sm_100f", "mxfp4"): "mxfp8_mxfp4",
    ("sm_103a", "nvfp4"): "nvfp4_nvfp4",
    ("sm_103f", "mxfp4"): "mxfp8_mxfp4",
}


def test_the_recipes_there_are() -> None:
    assert list_recipes() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_describes_itself(name: str) -> None:
    recipe = get_recipe(name)
    assert get_recipe(recipe) is recipe
    text = recipe.describe()
    assert text.startswith(f"{name}: {DESCRIPTIONS[name]}")
    assert text.endswith(recipe.loss)
    assert recipe.loss.endswith(".")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_a_recipe_agrees_with_itself(recipe: Recipe) -> None:
    """The name is L1's activations, then the checkpoint; targets have the instruction; operands are of one family."""
    acts, checkpoint = recipe.name.split("_")
    assert checkpoint == recipe.checkpoint
    prefix = {Element.E2M1: acts, Element.E4M3: acts, Element.BF16: "bf16"}[recipe.l1_acts.element]
    assert prefix == acts
    assert recipe.targets
    assert all(get_arch(target).generation is recipe.generation for target in recipe.targets)
    assert recipe.l1_acts.element is recipe.l2_acts.element
    hopper = recipe.generation is MmaGeneration.WGMMA
    # Hopper multiplies one element type by itself; Blackwell reads 4-bit weights with block scale factors.
    assert recipe.weights.element is (recipe.l1_acts.element if hopper else Element.E2M1)
    assert (recipe.weights.gran_k is None) == hopper
    assert recipe.mma.startswith("wgmma" if hopper else "tcgen05.mma")


@pytest.mark.parametrize(
    ("operand", "text"),
    [
        (Operand(element=Element.BF16), "bf16"),
        (Operand(element=Element.E4M3, sf_type=ScaleType.FP32), "e4m3 with fp32 per token"),
        (Operand(element=Element.E2M1, sf_type=ScaleType.UE8M0, gran_k=32), "e2m1 with ue8m0 per 32"),
        (
            Operand(element=Element.E2M1, sf_type=ScaleType.UE4M3, gran_k=16, row_scale="fp32"),
            "e2m1 with ue4m3 per 16 and fp32 per token",
        ),
    ],
)
def test_operands_in_words(operand: Operand, text: str) -> None:
    assert str(operand) == text


@pytest.mark.parametrize(("arch", "checkpoint"), DEFAULTS)
def test_the_recipe_that_a_checkpoint_takes(arch: str, checkpoint: str) -> None:
    recipe = default_recipe(arch, checkpoint)
    assert recipe.name == DEFAULTS[arch, checkpoint]
    assert recipe.checkpoint == checkpoint
    assert arch in recipe.targets
    assert default_recipe(get_arch(arch), checkpoint) is recipe


def test_nvfp4_is_the_default_checkpoint() -> None:
    assert default_recipe("sm_90a") is default_recipe("sm_90a", "nvfp4")


@pytest.mark.parametrize(
    ("arch", "checkpoint"), [("sm_120a", "nvfp4"), ("sm_121a", "mxfp4"), ("sm_90a", "int4"), ("sm_100a", "")]
)
def test_no_recipe_for_it(arch: str, checkpoint: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"no recipe runs .*'{checkpoint}' on {arch}\. Formats: nvfp4, mxfp4\."):
        default_recipe(arch, checkpoint)


def test_recipes_by_arch() -> None:
    found = {name: recipes_of(arch) for name, arch in ARCHS.items()}
    assert found["sm_90a"] == NAMES[4:]
    assert found["sm_100a"] == found["sm_103f"] == NAMES[:4]
    assert found["sm_120a"] == []


def test_unknown_recipes_are_told_which_there_are() -> None:
    with pytest.raises(UnsupportedError, match=rf"recipe='nvfp4' is unknown\. Use one of {', '.join(NAMES)}\."):
        get_recipe("nvfp4")
