"""What to compute: recipes, problems, and the kernel configurations that serve them."""

from megamoe_jit.recipes.choose import Choice, choose_config, plan_kernels
from megamoe_jit.recipes.problem import Problem
from megamoe_jit.recipes.recipe import (
    RECIPES,
    Element,
    Operand,
    Recipe,
    ScaleType,
    default_recipe,
    get_recipe,
    list_recipes,
)

__all__ = [
    "RECIPES",
    "Choice",
    "Element",
    "Operand",
    "Problem",
    "Recipe",
    "ScaleType",
    "choose_config",
    "default_recipe",
    "get_recipe",
    "list_recipes",
    "plan_kernels",
]
