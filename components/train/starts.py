"""What a challenger starts from: the champion, the champion shrunk, an initialisation learnt from it, fresh weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from components.core.datasets import Pixels
from components.core.models import Classifier, ModelSpec, grow_head, with_image_size
from components.core.recipes import Recipe
from components.train.meta import meta_train
from components.train.randomness import Purpose, torch_generator


@dataclass(frozen=True, kw_only=True)
class Start:
    """What starts are made of: the challenger's `spec`, the champion if there is one, fresh weights (pretrained, where
    that is configured), and what the champion learnt from (images and labels, for episodes)."""

    spec: ModelSpec
    champion: Classifier | None
    fresh: Classifier
    memory: tuple[Pixels, torch.Tensor] | None
    seed: int


def start_model(recipe: Recipe, start: Start) -> Classifier:
    """Make the classifier that the steps begin with, with its own copy of every weight.

    A head that knows more classes than the champion's keeps the old rows bit for bit.
    """
    if recipe.start == "fresh":
        return start.fresh
    assert start.champion is not None, "the policy plans only fresh weights while there is no champion"
    resized = with_image_size(start.champion, start.spec.image_size)
    if recipe.start == "meta":
        assert start.memory is not None
        images, labels = start.memory
        meta_train(resized, images, labels, recipe.meta, seed=start.seed)
    grown = grow_head(resized, start.spec.classes, torch_generator(start.seed, Purpose.WEIGHTS))
    if recipe.start == "shrunk":
        shrink_and_perturb(grown, start.fresh, recipe.shrink, recipe.perturb)
    return grown


@torch.no_grad()
def shrink_and_perturb(model: Classifier, fresh: Classifier, shrink: float, perturb: float) -> None:
    """Weights become shrink * old + perturb * fresh, in place: what was learnt stays in direction, and can move again.

    Scales and shifts of normalisation stay: they have no direction, and shrinking them would shrink every layer twice.

    Source:
        Ash & Adams, "On Warm-Starting Neural Network Training", NeurIPS 2020.
    """
    for old, new in zip(model.parameters(), fresh.parameters(), strict=True):
        if old.dim() > 1:
            old.mul_(shrink).add_(new.to(old.device), alpha=perturb)
