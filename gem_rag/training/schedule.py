"""What changes during a run, as functions of the step: loss weights and learning rate."""

from __future__ import annotations

import math

from gem_rag.training.recipe import Recipe


def alpha(recipe: Recipe, step: int) -> float:
    """Weight of the contrastive loss in (1 - alpha) L_ntp + alpha L_cl (paper section 4).

    0 in the first `contrastive_from` steps, then rising to 1 over `ramp` steps. A recipe with only
    one of the losses gives it all the weight throughout.
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
    """The learning rate: a mix of the two phases' by alpha, warmed up, decaying by a cosine."""
    schedule = recipe.schedule
    contrastive = schedule.contrastive_learning_rate or schedule.learning_rate
    contrastive_weight = alpha(recipe, step)
    peak = (1 - contrastive_weight) * schedule.learning_rate + contrastive_weight * contrastive
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * cosine)


def raw_share(recipe: Recipe, step: int) -> float:
    """Share of rows that stay raw text: all while adapting, then the recipe's.

    It is 0 in the scope `special`: raw text cannot teach a frozen model anything.
    """
    if recipe.scope == "special" or recipe.next_token is None:
        return 0.0
    return 1.0 if step < recipe.schedule.adapt else recipe.next_token.raw


def only_aligns(recipe: Recipe, step: int) -> bool:
    """Whether a contrastive step only aligns vectors with the teacher's: the first ones may."""
    first = recipe.schedule.contrastive_from if recipe.next_token else 0
    return step < first + recipe.schedule.align
