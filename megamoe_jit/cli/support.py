"""What each recipe has on each target: a kernel, or the reference only, and why."""

from __future__ import annotations

from dataclasses import dataclass

from megamoe_jit.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """What recipe `recipe` has on target `arch`.

    `is_target` says that the recipe is defined for the target at all, `has_kernel` that there is a kernel for it;
    `reason` is why not.
    """

    recipe: str
    arch: str
    is_target: bool
    has_kernel: bool
    reason: str = ""


def support_of(recipe: str, arch: str) -> Support:
    """Return what `recipe` has on `arch`, found by planning a small layer; nothing is compiled."""
    from megamoe_jit.recipes import Problem, get_recipe, plan_kernels

    targets = get_recipe(recipe).targets
    if arch not in targets:
        reason = f"{recipe} is defined for {', '.join(targets)}"
        return Support(recipe=recipe, arch=arch, is_target=False, has_kernel=False, reason=reason)
    try:
        plan_kernels(
            Problem(hidden=512, intermediate=512, num_experts=8, num_topk=2, max_tokens_per_rank=128), recipe, arch
        )
    except UnsupportedError as error:
        return Support(recipe=recipe, arch=arch, is_target=True, has_kernel=False, reason=str(error))
    return Support(recipe=recipe, arch=arch, is_target=True, has_kernel=True)
