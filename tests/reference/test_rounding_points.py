import pytest

from megamoe_jit.errors import ArgumentError
from megamoe_jit.recipes.recipe import RECIPES, Element, Operand, Recipe, ScaleType
from megamoe_jit.reference.rounding_points import RoundingPoints, list_rounding_points, rounding_points


def rounding_of(operand: Operand) -> str:
    return {
        (Element.BF16, None, None): "bf16",
        (Element.E4M3, ScaleType.FP32, None): "fp8_token",
        (Element.E4M3, ScaleType.FP32, 128): "fp8_128" if operand.row_scale is None else "fp8_foreseen",
        (Element.E4M3, ScaleType.UE8M0, 32): "mxfp8",
        (Element.E2M1, ScaleType.UE8M0, 32): "mxfp4",
        (Element.E2M1, ScaleType.UE4M3, 16): "nvfp4_token" if operand.row_scale == "fp32" else "nvfp4_foreseen",
    }[operand.element, operand.sf_type, operand.gran_k]


def weights_rounding_of(recipe: Recipe) -> str | None:
    if recipe.weights.element is Element.E4M3:
        return "e4m3_product"
    return "mxfp4_requantize" if (recipe.checkpoint, recipe.weights.sf_type) == ("nvfp4", ScaleType.UE8M0) else None


def test_every_recipe_has_its_rounding_points() -> None:
    assert list_rounding_points() == [*RECIPES, "exact"]


@pytest.mark.parametrize("name", RECIPES)
def test_rounding_points_agree_with_the_recipe(name: str) -> None:
    recipe, points = RECIPES[name], rounding_points(name)
    assert points.name == name
    assert points.checkpoint == recipe.checkpoint
    # Tokens that the caller brings as codes have one scale each; those that kernels quantise have more.
    tokens = rounding_of(recipe.l1_acts)
    assert points.l1_acts == ("fp8_512" if tokens == "fp8_token" else tokens)
    assert points.l2_acts == rounding_of(recipe.l2_acts)
    assert points.weights == weights_rounding_of(recipe)
    assert (points.topk_weight_stage, points.partial, points.sum, points.out) == ("after_l2", "bf16", "fp32", "bf16")


def test_exact_rounds_nothing() -> None:
    points = rounding_points("exact")
    assert points == RoundingPoints.exact()
    rounded = (points.l1_acts, points.weights, points.gate_up, points.l2_acts, points.partial, points.sum, points.out)
    assert rounded == (None,) * 7


def test_fields_can_be_replaced_and_faults_are_named() -> None:
    assert rounding_points("bf16_nvfp4", gate_up="bf16").gate_up == "bf16"
    with pytest.raises(ArgumentError, match=r"recipe='w4a4' has no rounding points\. Use one of nvfp4_nvfp4"):
        rounding_points("w4a4")
    with pytest.raises(ArgumentError, match="l3_acts is no rounding point"):
        rounding_points("bf16_nvfp4", l3_acts="bf16")
    with pytest.raises(ArgumentError, match="topk_weight_stage='never' is unknown"):
        rounding_points("bf16_nvfp4", topk_weight_stage="never")
