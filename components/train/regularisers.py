"""What holds a challenger to its champion while it learns: pulls on the weights, and staying with old answers."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.core.logs import progress
from components.core.models import Classifier
from components.train.fisher import PREFIX, empirical_fisher
from components.train.strategy import Batch, Situation, Strategy, Tensors

logger = logging.getLogger(__name__)
ANCHOR, TEACHER = "anchor.", "teacher.logits"


class Pull(Strategy):
    """Base of the pulls toward the champion's weights, as gradients in closed form.

    A term of the loss would give the same gradients, through autograd, at 3 to 13 times the cost (facts of the
    project). Rows of the head that are new have no champion to be pulled to. `strength` multiplies the penalty.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.held: list[tuple[nn.Parameter, Tensor]] = []

    def prepare(self, situation: Situation) -> Tensors:
        return {ANCHOR + name: value.detach().clone() for name, value in situation.champion.named_parameters()}

    def begin(self, model: Classifier, kept: Tensors) -> None:
        self.held = [
            (parameter, kept[ANCHOR + name])
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
            and ANCHOR + name in kept
            # Rows may have been added; position embeddings of another image size have no anchor.
            and parameter.shape[1:] == kept[ANCHOR + name].shape[1:]
        ]

    def _lists(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Gradients, weights and anchors of everything that is held; of a grown head the old rows."""
        gradients: list[Tensor] = []
        weights: list[Tensor] = []
        for parameter, anchor in self.held:
            assert parameter.grad is not None, "a weight that moves has a gradient"
            grown = parameter.shape != anchor.shape
            gradients.append(parameter.grad[: len(anchor)] if grown else parameter.grad)
            weights.append(parameter.detach()[: len(anchor)] if grown else parameter.detach())
        return gradients, weights, [anchor for _, anchor in self.held]


class L2SP(Pull):
    """Penalty `strength / 2 * |w - w0|^2`.

    Source:
        Li et al., "Explicit inductive bias for transfer learning with convolutional networks", ICML 2018.
    """

    def add_gradient(self) -> None:
        gradients, weights, anchors = self._lists()
        torch._foreach_add_(gradients, torch._foreach_sub(weights, anchors), alpha=self.strength)


class L1SP(Pull):
    """Penalty `strength * |w - w0|_1`; its gradient is taken as zero where a weight has not moved.

    Source:
        Li et al., ICML 2018.
    """

    def add_gradient(self) -> None:
        gradients, weights, anchors = self._lists()
        directions = torch._foreach_sign(torch._foreach_sub(weights, anchors))
        torch._foreach_add_(gradients, directions, alpha=self.strength)


class EWC(Pull):
    """Penalty `strength / 2 * sum F (w - w0)^2`: a pull only on what matters to the champion's knowledge.

    F is the champion's accumulated Fisher information where its version has one, else it is computed from what the
    champion learnt from.

    Source:
        Kirkpatrick et al., PNAS 114 (2017); online over many windows: Schwarz et al., ICML 2018.
    """

    def __init__(self, strength: float, known: Tensors | None) -> None:
        """Take the strength, and the champion's Fisher information by parameter, if its version has it."""
        super().__init__(strength)
        self.known = known
        self.importance: list[Tensor] = []

    def prepare(self, situation: Situation) -> Tensors:
        fisher = self.known
        if fisher is None:
            images, labels = situation.memory()
            if not len(images):
                logger.warning(
                    "train: ewc holds nothing: the champion's version remembers no images (training.exemplars)"
                )
            fisher = empirical_fisher(situation.champion, images, labels) if len(images) else {}
        return {**super().prepare(situation), **{PREFIX + name: value for name, value in fisher.items()}}

    def begin(self, model: Classifier, kept: Tensors) -> None:
        super().begin(model, kept)
        named = {id(parameter): name for name, parameter in model.named_parameters()}
        self.held = [(p, anchor) for p, anchor in self.held if PREFIX + named[id(p)] in kept]
        self.importance = [kept[PREFIX + named[id(p)]] for p, _ in self.held]

    def add_gradient(self) -> None:
        if not self.held:
            return
        gradients, weights, anchors = self._lists()
        moved = torch._foreach_sub(weights, anchors)
        torch._foreach_addcmul_(gradients, moved, self.importance, self.strength)


class Distillation(Strategy):
    """Learning without forgetting: stay with the champion's softened answers, where it is right.

    The champion's logits are computed once for every row, not in every step: the challenger sees an augmented image,
    the champion answered for the plain one. The loss is T^2 KL(champion || challenger) in nats, over all classes: to
    the champion, new ones have probability zero, so old images push them down. Rows that the champion answers wrongly
    count as zero: their labels say the opposite. (Where the champion was right about a fifth of a changed window,
    staying with all its answers halved what was learnt; and over the old classes alone, new ones took over: on digits
    with 15 replayed images, 62 % of the old ones stayed known without distillation, 0 to 50 % that way, 70 % this way.)

    Source:
        Li & Hoiem, "Learning without Forgetting", ECCV 2016; only where the old model is right: focal distillation, Yan
        et al., "Positive-Congruent Training", CVPR 2021; T^2: Hinton et al., "Distilling the Knowledge", 2015.
    """

    def __init__(self, weight: float, temperature: float) -> None:
        self.weight, self.temperature = weight, temperature
        self.teacher = torch.empty(0)

    def prepare(self, situation: Situation) -> Tensors:
        return {TEACHER: champion_logits(situation)}

    def begin(self, model: Classifier, kept: Tensors) -> None:
        logits = kept[TEACHER]
        known = (logits / self.temperature).softmax(1)
        self.teacher = functional.pad(known, (0, len(model.spec.classes) - known.shape[1]))

    def loss(self, batch: Batch) -> Tensor:
        wanted = self.teacher[batch.index]
        wanted = wanted * (wanted.argmax(1) == batch.labels)[:, None]
        if batch.mixing:
            wanted = batch.mixing.values(wanted)
        answers = (batch.outputs[0].float() / self.temperature).log_softmax(1)
        return self.weight * self.temperature**2 * functional.kl_div(answers, wanted, reduction="batchmean")


@torch.no_grad()  # not inference mode: what comes out of that cannot take part in a loss
def champion_logits(situation: Situation) -> Tensor:
    """The champion's logits for every training row, float32 (n, known classes), on its device; images of another size
    than its own are resized for it."""
    model, size = situation.champion, situation.champion.spec.image_size
    device = model.head.weight.device
    parts = [torch.empty(0, len(model.spec.classes), device=device)]
    with progress("asking the champion", len(situation.images)) as advance:
        for batch in situation.images.batches(situation.batch_rows):
            images = batch.to(device)
            if images.shape[-1] != size:
                images = functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
            parts.append(model(images).float())
            advance(len(batch))
    return torch.cat(parts)
