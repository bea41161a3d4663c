"""Gradient-based meta-learning: move a body so that a few steps on a few images of new classes suffice.

Old classes play the part of new ones: an episode draws some of them, adapts a fresh head (and, but for ANIL, the body)
to a few of their images, and judges the result by others. Batch norm keeps the champion's statistics: those of an
episode would tell its images from each other. A head starts at zero, so that no class is favoured; nothing of it is
learnt.

Not covered: what is done with the initialisation afterwards (`strategies` fits a head and takes the recipe's steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from components.core.errors import ConfigurationError
from components.core.logs import progress
from components.core.models import Classifier
from components.core.recipes import MetaConfig
from components.train.batches import Rows
from components.train.randomness import Purpose, generator

Params = dict[str, Tensor]
WEIGHT, BIAS = "head.weight", "head.bias"


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Images to adapt to and images to be judged by, with labels from 0 to the number of ways, int64."""

    support: Tensor
    support_labels: Tensor
    queries: Tensor
    query_labels: Tensor


def draw_episodes(rows: Rows, labels: Tensor, config: MetaConfig, seed: int) -> Iterator[Episode]:
    """Draw episodes for ever, balanced over their classes.

    Args:
        rows: n images.
        labels: int64 (n,).
        config: `ways`, `shots` and `queries`; classes with too few images for both are left out, and where fewer
            classes than `ways` are left, episodes have fewer.
        seed: Of the draws.

    Raises:
        ConfigurationError: Fewer than two classes have enough images.
    """
    enough = config.shots + config.queries
    members = [(labels == label).nonzero().flatten().cpu().numpy() for label in labels.unique()]
    turns = (0, 1, 2, 3) if config.turned else (0,)
    classes = [(rows_of, turn) for rows_of in members if len(rows_of) >= enough for turn in turns]
    if len(classes) < 2 * len(turns):
        raise ConfigurationError(
            f"{len(classes) // len(turns)} classes with {enough} images to learn an initialisation from",
            expected="two at least",
            next_command="lower meta.shots or meta.queries of the strategy, or keep more training.exemplars",
        )
    ways = min(config.ways, len(classes))
    targets = torch.arange(ways, device=labels.device)
    number = 0
    while True:
        rng = generator(seed, Purpose.EPISODES, number)
        number += 1
        images = [
            rows[torch.from_numpy(rng.permutation(members)[:enough]).to(rows.device)].rot90(turn, (-2, -1))
            for members, turn in (classes[c] for c in rng.permutation(len(classes))[:ways])
        ]
        support, queries = (
            torch.cat([shown[part] for shown in images]).to(labels.device)
            for part in (slice(config.shots), slice(config.shots, None))
        )
        yield Episode(
            support=support,
            support_labels=targets.repeat_interleave(config.shots),
            queries=queries,
            query_labels=targets.repeat_interleave(config.queries),
        )


def adapt(
    answer: Callable[[Params], Tensor],
    params: Params,
    labels: Tensor,
    *,
    steps: int,
    learning_rate: float,
    second_order: bool,
    moving: tuple[str, ...] | None = None,
) -> Params:
    """Take gradient steps on the cross-entropy of one set of images.

    Args:
        answer: Parameters to logits (n, ways) of these images.
        params: Where to start; not changed.
        labels: int64 (n,).
        steps: How many.
        learning_rate: Of plain gradient descent.
        second_order: Whether what comes out can be differentiated through the steps themselves; else only as if each
            step had added a constant.
        moving: Names of the parameters that move; by default all.

    Returns:
        Adapted parameters, by the same names.
    """
    names = moving or tuple(params)
    for _ in range(steps):
        loss = functional.cross_entropy(answer(params), labels)
        moved = [params[name] for name in names]
        # materialize: a weight that has no part in the answers, such as an auxiliary head's, gets zeros
        gradients = torch.autograd.grad(loss, moved, create_graph=second_order, materialize_grads=True)
        params = {**params, **{n: params[n] - learning_rate * g for n, g in zip(names, gradients, strict=True)}}
    return params


def meta_train(model: Classifier, rows: Rows, labels: Tensor, config: MetaConfig, *, seed: int) -> list[float]:
    """Learn an initialisation of the body, in place; the head stays as it was, and no longer fits.

    What to expect, on digits: five images of each of five unseen ones, five steps from a head of zeros, three champions
    that knew five others, the defaults but for 60 steps and a meta_batch of 2. ANIL gained 6.5 points of accuracy (4 to
    8), MAML 4.9 (0 to 10), reptile with parts 2.8 (-3 to 10); the first-order form lost 8.5 and wants a
    meta_learning_rate of 1e-4. Without `turned`, all but reptile lost. A head that is fitted to its optimum instead
    (`logistic`) gained nothing from it.

    Args:
        model: Its body is where the learning starts; batch norm uses, and keeps, the statistics it has.
        rows: Images of the classes that are known.
        labels: int64 (n,), on the model's device.
        config: Algorithm and sizes.
        seed: Of the episodes.

    Returns:
        Mean loss on the queries of each step's episodes, nats (of reptile: on all images, after adapting to them).

    Raises:
        ConfigurationError: See `draw_episodes`.
        FloatingPointError: The loss of a step's episodes is not finite.

    Source:
        MAML and its first-order form: Finn et al., "Model-Agnostic Meta-Learning", ICML 2017. Reptile, with its update
        as the gradient of an adaptive optimiser: Nichol et al., "On First-Order Meta-Learning Algorithms", 2018. ANIL:
        Raghu et al., "Rapid Learning or Feature Reuse?", ICLR 2020.
    """
    model.eval()
    body: Params = {name: p for name, p in model.named_parameters() if name.startswith("body.")}
    optimizer = torch.optim.Adam(body.values(), lr=config.meta_learning_rate)
    episodes = draw_episodes(rows, labels, config, seed)
    gradient = GRADIENTS[config.algorithm]
    losses = []
    # MATH: the faster kernels of attention have no second derivative
    with progress("learning an initialisation", config.steps) as advance, sdpa_kernel(SDPBackend.MATH):
        for _ in range(config.steps):
            found = [gradient(model, body, next(episodes), config) for _ in range(config.meta_batch)]
            losses.append(sum(loss for loss, _ in found) / len(found))
            if not np.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss of the episodes is {losses[-1]}: lower meta.inner_learning_rate")
            for name, parameter in body.items():
                parameter.grad = sum((grads[name] for _, grads in found), torch.zeros_like(parameter)) / len(found)
            optimizer.step()
            advance(1)
    for parameter in body.values():
        parameter.grad = None
    return losses


Gradient = Callable[[Classifier, Params, Episode, MetaConfig], tuple[float, Params]]


def _fresh_head(model: Classifier, episode: Episode) -> Params:
    ways = int(episode.support_labels.max()) + 1
    weight = model.head.weight.new_zeros(ways, model.head.in_features).requires_grad_()
    return {WEIGHT: weight, BIAS: model.head.bias.new_zeros(ways).requires_grad_()}


def _maml(model: Classifier, body: Params, episode: Episode, config: MetaConfig) -> tuple[float, Params]:
    return _through_all(model, body, episode, config, second_order=True)


def _first_order(model: Classifier, body: Params, episode: Episode, config: MetaConfig) -> tuple[float, Params]:
    return _through_all(model, body, episode, config, second_order=False)


def _through_all(
    model: Classifier, body: Params, episode: Episode, config: MetaConfig, *, second_order: bool
) -> tuple[float, Params]:
    """Gradient of the loss on the queries after body and head have adapted, by the body before that."""

    def answers(images: Tensor) -> Callable[[Params], Tensor]:
        return lambda params: functional_call(model, params, (images,))

    adapted = adapt(
        answers(episode.support),
        {**body, **_fresh_head(model, episode)},
        episode.support_labels,
        steps=config.inner_steps,
        learning_rate=config.inner_learning_rate,
        second_order=second_order,
    )
    loss = functional.cross_entropy(answers(episode.queries)(adapted), episode.query_labels)
    return _gradient_of(loss, body)


def _anil(model: Classifier, body: Params, episode: Episode, config: MetaConfig) -> tuple[float, Params]:
    """The same where only the head adapts: features are computed once."""
    features = model.embed(torch.cat([episode.support, episode.queries]))
    support, queries = features.split([len(episode.support), len(episode.queries)])

    def answers(rows: Tensor) -> Callable[[Params], Tensor]:
        return lambda params: functional.linear(rows, params[WEIGHT], params[BIAS])

    adapted = adapt(
        answers(support),
        _fresh_head(model, episode),
        episode.support_labels,
        steps=config.inner_steps,
        learning_rate=config.inner_learning_rate,
        second_order=True,
    )
    loss = functional.cross_entropy(answers(queries)(adapted), episode.query_labels)
    return _gradient_of(loss, body)


def _reptile(model: Classifier, body: Params, episode: Episode, config: MetaConfig) -> tuple[float, Params]:
    """The way from the adapted body back, by the inner rate: what an optimiser takes for a gradient.

    Each step sees other images of the episode: that is where reptile learns to generalise (section 5 of its paper).
    """
    images = torch.cat([episode.support, episode.queries])
    labels = torch.cat([episode.support_labels, episode.query_labels])

    def answers(shown: Tensor) -> Callable[[Params], Tensor]:
        return lambda params: functional_call(model, params, (shown,))

    adapted = {**body, **_fresh_head(model, episode)}
    for step in range(config.inner_steps):
        part = slice(step, None, config.inner_steps)  # rows are sorted by class: every class is in every part
        adapted = adapt(
            answers(images[part]),
            adapted,
            labels[part],
            steps=1,
            learning_rate=config.inner_learning_rate,
            second_order=False,
        )
    with torch.no_grad():
        loss = functional.cross_entropy(answers(images)(adapted), labels)
        return float(loss), {n: (value - adapted[n]) / config.inner_learning_rate for n, value in body.items()}


def _gradient_of(loss: Tensor, body: Params) -> tuple[float, Params]:
    gradients = torch.autograd.grad(loss, list(body.values()), materialize_grads=True)
    return float(loss.detach()), dict(zip(body, gradients, strict=True))


GRADIENTS: Mapping[str, Gradient] = {"maml": _maml, "first-order": _first_order, "reptile": _reptile, "anil": _anil}
