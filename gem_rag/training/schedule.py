"""What changes in the course of a run: the weights of the two losses, and the learning rate.

Plain functions of the step.
"""

from __future__ import annotations

import math

from gem_rag.training.recipe import Recipe


def alpha(recipe: Recipe, step: int) -> float:
    """Weight of the contrastive loss in (1 - alpha) L_ntp + alpha L_cl (paper section 4).

    0 in the first `contrastive_from` steps, then rising to 1 over `ramp` steps. A recipe with one
    of the two losses only has it throughout.
    """
    if recipe.contrastive is None:
        return 0.0
    if recipe.next_token is None:
        return 1.0
    elapsed = step - recipe.schedule.contrastive_from
    if elapsed < 0:
        return 0.0
    return min(1.0, (elapsed + 1) / (recipe.schedule.ramp + 1))


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """The learning rate: the two phases' mixed by alpha, warmed up, decaying by a cosine."""
    plan = recipe.schedule
    contrastive = plan.contrastive_learning_rate or plan.learning_rate
    share = alpha(recipe, step)
    mixed = (1 - share) * plan.learning_rate + share * contrastive
    if step < plan.warmup_steps:
        return mixed * (step + 1) / plan.warmup_steps
    progress = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    return mixed * (
        plan.min_lr_ratio + (1 - plan.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    )


def raw_share(recipe: Recipe, step: int) -> float:
    """Share of rows that stay raw text: all while adapting, then the recipe's.

    None in the `special` scope, where plain text has nothing to teach a frozen model.
    """
    if recipe.scope == "special" or recipe.next_token is None:
        return 0.0
    return 1.0 if step < recipe.schedule.adapt else recipe.next_token.raw
