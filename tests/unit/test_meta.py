"""Meta-learning: gradients through an adaptation by hand, episodes, and that bodies adapt better afterwards."""

from __future__ import annotations

import math
from functools import cache
from itertools import islice

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from components.core.errors import ConfigurationError
from components.core.models import Classifier, ModelSpec, build_classifier
from components.core.recipes import LoopConfig, MetaConfig
from components.train.loop import fit
from components.train.meta import BIAS, GRADIENTS, WEIGHT, Episode, Params, adapt, draw_episodes, meta_train

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = MetaConfig(ways=5, shots=5, queries=10, steps=60, meta_batch=2, inner_learning_rate=0.02)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


# --- a model of one weight: logits (w x, 0); the loss of class 0 at x is log(1 + exp(-w x))

W, X, Q, RATE = 0.7, 1.5, -0.4, 0.3


def one_weight(x: float) -> object:
    inputs = torch.tensor([[x, 0.0]], dtype=torch.float64)
    return lambda params: params["w"] * inputs


def loss_after_adapting(w: Tensor, *, second_order: bool, steps: int = 1) -> Tensor:
    label = torch.tensor([0])
    adapted = adapt(
        one_weight(X),  # type: ignore[arg-type]
        {"w": w},
        label,
        steps=steps,
        learning_rate=RATE,
        second_order=second_order,
    )
    return functional.cross_entropy(one_weight(Q)(adapted), label)  # type: ignore[operator]


def test_gradient_through_one_step_by_hand() -> None:
    w = torch.tensor(W, dtype=torch.float64, requires_grad=True)
    (full,) = torch.autograd.grad(loss_after_adapting(w, second_order=True), w)
    (first,) = torch.autograd.grad(loss_after_adapting(w, second_order=False), w)
    slope, bend = -X * sigmoid(-W * X), X * X * sigmoid(W * X) * sigmoid(-W * X)
    moved = W - RATE * slope
    outer = -Q * sigmoid(-moved * Q)
    assert float(first) == pytest.approx(outer, abs=1e-12)
    assert float(full) == pytest.approx(outer * (1 - RATE * bend), abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gradient_through_several_steps_agrees_with_finite_differences(steps: int) -> None:
    w = torch.tensor(W, dtype=torch.float64, requires_grad=True)
    (full,) = torch.autograd.grad(loss_after_adapting(w, second_order=True, steps=steps), w)
    near = []
    for shift in (1e-5, -1e-5):
        shifted = torch.tensor(W + shift, dtype=torch.float64, requires_grad=True)
        near.append(float(loss_after_adapting(shifted, second_order=True, steps=steps).detach()))
    assert float(full) == pytest.approx((near[0] - near[1]) / 2e-5, rel=1e-6)


def test_only_what_is_named_moves() -> None:
    params = {"w": torch.tensor(W, requires_grad=True), "b": torch.tensor(0.5, requires_grad=True)}

    def answer(p: Params) -> Tensor:
        return torch.stack([p["w"] * X + p["b"], torch.zeros(())])[None]

    adapted = adapt(answer, params, torch.tensor([0]), steps=3, learning_rate=0.1, second_order=False, moving=("b",))
    assert adapted["w"] is params["w"]
    assert float(adapted["b"].detach()) > 0.5
    assert float(params["b"].detach()) == 0.5


# --- on digits


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    images = functional.interpolate(images, size=(16, 16), mode="bilinear", antialias=True)
    return images.round().to(torch.uint8), torch.from_numpy(data.target).long()


def of_classes(low: int, high: int) -> tuple[Tensor, Tensor]:
    images, labels = digits()
    keep = (labels >= low) & (labels < high)
    return images[keep], labels[keep]


@cache
def champion() -> Classifier:
    spec = ModelSpec(
        architecture="small-cnn", classes=tuple("01234"), image_size=16, channels=1, mean=(0.3,), std=(0.37,)
    )
    model = build_classifier(spec, torch.Generator().manual_seed(0))
    images, labels = of_classes(0, 5)
    fit(model, images[:500], labels[:500], LoopConfig(epochs=6, learning_rate=3e-3), batch_size=16, seed=0)
    return model.eval()


def copy_of(model: Classifier) -> Classifier:
    other = build_classifier(model.spec, torch.Generator().manual_seed(0))
    other.load_state_dict(model.state_dict())
    return other.eval()


def body_of(model: Classifier) -> Params:
    return {name: value for name, value in model.named_parameters() if name.startswith("body.")}


def fresh_head(ways: int) -> Params:
    return {WEIGHT: torch.zeros(ways, 64, requires_grad=True), BIAS: torch.zeros(ways, requires_grad=True)}


def episode(config: MetaConfig = CONFIG, seed: int = 0) -> Episode:
    return next(draw_episodes(*of_classes(0, 5), config, seed))


def test_an_episode_is_balanced_and_judges_by_other_images() -> None:
    images, labels = of_classes(0, 5)
    for drawn in islice(draw_episodes(images, labels, CONFIG, 0), 5):
        assert drawn.support_labels.bincount().tolist() == [5] * 5
        assert drawn.query_labels.bincount().tolist() == [10] * 5
        seen = {bytes(image.numpy()) for image in drawn.support.rot90(0, (2, 3)).contiguous()}
        assert not seen & {bytes(image.numpy()) for image in drawn.queries.contiguous()}


def test_unturned_episodes_show_each_class_under_one_label() -> None:
    images, labels = of_classes(0, 5)
    drawn = episode(CONFIG.model_copy(update={"turned": False}))
    known = {bytes(image.numpy()): int(label) for image, label in zip(images, labels, strict=True)}
    names = [known[bytes(image.contiguous().numpy())] for image in drawn.support]
    for way in range(5):
        (name,) = {n for n, label in zip(names, drawn.support_labels.tolist(), strict=True) if label == way}
        queries = drawn.queries[drawn.query_labels == way]
        assert {known[bytes(image.contiguous().numpy())] for image in queries} == {name}


def test_episodes_follow_their_seed() -> None:
    assert torch.equal(episode(seed=3).support, episode(seed=3).support)
    assert not torch.equal(episode(seed=3).support, episode(seed=4).support)


def test_classes_without_enough_images_are_left_out_and_one_alone_is_refused() -> None:
    images, labels = of_classes(0, 5)
    few = torch.cat([(labels == c).nonzero().flatten()[: 20 if c < 2 else 3] for c in range(5)])
    config = CONFIG.model_copy(update={"turned": False})
    drawn = next(draw_episodes(images[few], labels[few], config, 0))
    assert int(drawn.query_labels.max()) == 1
    alone = (labels == 0).nonzero().flatten()
    with pytest.raises(ConfigurationError, match="1 classes with 15 images"):
        next(draw_episodes(images[alone], labels[alone], config, 0))


def test_anil_is_maml_in_which_only_the_head_adapts() -> None:
    model, drawn = champion(), episode()
    body = body_of(model)

    def answers(images: Tensor) -> object:
        return lambda params: functional_call(model, params, (images,))

    adapted = adapt(
        answers(drawn.support),  # type: ignore[arg-type]
        {**body, **fresh_head(5)},
        drawn.support_labels,
        steps=CONFIG.inner_steps,
        learning_rate=CONFIG.inner_learning_rate,
        second_order=True,
        moving=(WEIGHT, BIAS),
    )
    loss = functional.cross_entropy(answers(drawn.queries)(adapted), drawn.query_labels)  # type: ignore[operator]
    expected = torch.autograd.grad(loss, list(body.values()))
    found_loss, found = GRADIENTS["anil"](model, body, drawn, CONFIG)
    assert found_loss == pytest.approx(float(loss.detach()), abs=1e-5)
    for value, (name, _) in zip(expected, body.items(), strict=True):
        assert torch.allclose(found[name], value, atol=1e-5)


def test_reptiles_update_after_one_step_is_the_plain_gradient() -> None:
    model, drawn = champion(), episode()
    body, head = body_of(model), {WEIGHT: torch.zeros(5, 64), BIAS: torch.zeros(5)}
    images, labels = torch.cat([drawn.support, drawn.queries]), torch.cat([drawn.support_labels, drawn.query_labels])
    loss = functional.cross_entropy(functional_call(model, {**body, **head}, (images,)), labels)
    expected = torch.autograd.grad(loss, list(body.values()))
    _, found = GRADIENTS["reptile"](model, body, drawn, CONFIG.model_copy(update={"inner_steps": 1}))
    for value, name in zip(expected, body, strict=True):
        assert torch.allclose(found[name], value, atol=1e-4)


def test_first_order_leaves_out_the_second_derivatives() -> None:
    model, drawn = champion(), episode()
    full = GRADIENTS["maml"](model, body_of(model), drawn, CONFIG)
    first = GRADIENTS["first-order"](model, body_of(model), drawn, CONFIG)
    assert full[0] == pytest.approx(first[0], abs=1e-5)  # the same adaptation, the same loss
    assert any(not torch.allclose(full[1][name], first[1][name], atol=1e-4) for name in full[1])


@pytest.mark.parametrize("algorithm", GRADIENTS)
def test_head_and_statistics_stay_and_one_seed_gives_one_body(algorithm: str) -> None:
    config = MetaConfig(algorithm=algorithm, ways=3, steps=2, meta_batch=1, inner_steps=2)  # type: ignore[arg-type]
    models = [copy_of(champion()) for _ in range(3)]
    losses = [
        meta_train(model, *of_classes(0, 5), config, seed=seed) for model, seed in zip(models, (1, 1, 2), strict=True)
    ]
    assert losses[0] == losses[1] != losses[2]
    first, second = (model.state_dict() for model in models[:2])
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = champion().state_dict()
    stayed = [name for name in before if torch.equal(before[name], first[name])]
    assert {"head.weight", "head.bias"} <= set(stayed)
    assert all(name in stayed for name in before if "running" in name)
    assert any(name.startswith("body.") and "weight" in name for name in before.keys() - set(stayed))
    assert all(parameter.grad is None for parameter in models[0].parameters())


def adapted_accuracy(model: Classifier, config: MetaConfig) -> float:
    """Accuracy on unseen digits (5 to 9, in all four positions) after adapting a zero head, as the episodes do."""
    moving = (WEIGHT, BIAS) if config.algorithm == "anil" else None
    scores = []
    for drawn in islice(draw_episodes(*of_classes(5, 10), config.model_copy(update={"queries": 40}), 99), 6):

        def answers(images: Tensor) -> object:
            return lambda params: functional_call(model, params, (images,))

        adapted = adapt(
            answers(drawn.support),  # type: ignore[arg-type]
            {**body_of(model), **fresh_head(5)},
            drawn.support_labels,
            steps=config.inner_steps,
            learning_rate=config.inner_learning_rate,
            second_order=False,
            moving=moving,
        )
        with torch.no_grad():
            answered = answers(drawn.queries)(adapted).argmax(1)  # type: ignore[operator]
        scores.append(float((answered == drawn.query_labels).float().mean()))
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("algorithm", "rate", "steps"),
    [("anil", 1e-3, 60), ("first-order", 1e-4, 60), ("reptile", 3e-4, 60), ("maml", 1e-4, 40)],
)
def test_a_body_that_learnt_from_episodes_adapts_better_from_five_images_a_class(
    algorithm: str, rate: float, steps: int
) -> None:
    config = CONFIG.model_copy(update={"algorithm": algorithm, "meta_learning_rate": rate, "steps": steps})
    model = copy_of(champion())
    before = adapted_accuracy(model, config)
    meta_train(model, *of_classes(0, 5), config, seed=0)
    assert adapted_accuracy(model, config) > before + 0.04


def test_every_algorithm_runs_on_attention() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            rows = x[:, 0]
            out: Tensor = self.attention(rows, rows, rows, need_weights=False)[0].mean(1)
            return out

    spec = champion().spec.model_copy(update={"image_size": 8})
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for algorithm in GRADIENTS:
        config = MetaConfig(algorithm=algorithm, ways=3, steps=1, meta_batch=1)  # type: ignore[arg-type]
        (loss,) = meta_train(Classifier(spec, Attention(), 8), images, torch.arange(60) % 3, config, seed=0)
        assert math.isfinite(loss)


def test_a_weight_without_a_part_in_the_answers_is_left_alone() -> None:
    """An auxiliary head takes no part in evaluation mode; no algorithm stumbles over it."""
    model = copy_of(champion())
    model.body.add_module("spare", torch.nn.Linear(2, 2))
    model.body.forward = lambda x: torch.nn.Sequential(*list(model.body.children())[:-1])(x)  # type: ignore[method-assign]
    before = model.body.spare.weight.detach().clone()  # type: ignore[union-attr,operator]
    for algorithm in GRADIENTS:
        config = MetaConfig(algorithm=algorithm, ways=2, steps=1, meta_batch=1, inner_steps=1)  # type: ignore[arg-type]
        meta_train(model, *of_classes(0, 5), config, seed=0)
    assert torch.equal(model.body.spare.weight, before)  # type: ignore[union-attr,arg-type]
