"""Strategies that are not a pull: batch norm that keeps its statistics, and mixing the champion back in."""

from __future__ import annotations

import torch
from torch import nn

from components.core.models import Classifier
from components.train.strategy import Situation, Strategy, Tensors

CHAMPION = "champion."


class KeepBatchNorm(Strategy):
    """Let batch norm use the champion's statistics, and leave them as they are.

    Statistics of few or changed images can do more harm than the weights do (Li et al., "Revisiting batch
    normalization for practical domain adaptation", 2016, shows how much they carry).
    """

    def set_mode(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


class Interpolation(Strategy):
    """Mix the champion's weights back into the result: share * champion + (1 - share) * challenger.

    Works where both lie in one basin, as a fine-tune and its start do. Rows of the head that are new stay as learnt;
    statistics of batch norm are mixed like weights.

    Source:
        Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR 2022.
    """

    def __init__(self, share: float) -> None:
        """Take the champion's share, in [0, 1)."""
        self.share = share
        self.champion: Tensors = {}

    def prepare(self, situation: Situation) -> Tensors:
        return {CHAMPION + name: value.detach().clone() for name, value in situation.champion.state_dict().items()}

    def begin(self, model: Classifier, kept: Tensors) -> None:
        self.champion = {name.removeprefix(CHAMPION): v for name, v in kept.items() if name.startswith(CHAMPION)}

    @torch.no_grad()
    def finish(self, model: Classifier) -> None:
        for name, value in model.state_dict().items():
            old = self.champion.get(name)
            if old is not None and value.is_floating_point() and value.shape[1:] == old.shape[1:]:
                value[: len(old)].lerp_(old, self.share) if value.dim() else value.lerp_(old, self.share)
