"""What holds a challenger to its champion: gradients against autograd, Fisher information and distillation by hand."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from components.core.datasets import Pixels
from components.core.models import Classifier, ModelSpec, build_classifier, grow_head
from components.core.recipes import LoopConfig
from components.train.adaptation import Interpolation, KeepBatchNorm
from components.train.augmentation import Mixing
from components.train.fisher import PREFIX, accumulate_fisher, empirical_fisher
from components.train.loop import fit
from components.train.regularisers import EWC, L1SP, L2SP, Distillation, Pull, champion_logits
from components.train.strategy import Batch, Situation, Strategy, Tensors

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spec(classes: int = 2, size: int = 2) -> ModelSpec:
    return ModelSpec(
        architecture="small-cnn",
        classes=tuple("abcdef"[:classes]),
        image_size=size,
        channels=1,
        mean=(0.0,),
        std=(1.0,),
    )


def linear(classes: int = 2) -> Classifier:
    """A linear model of four pixels, each in [0, 1]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(spec(classes), nn.Flatten(), 4).eval()


def small(classes: int = 3) -> Classifier:
    """Convolutions and batch norm with statistics of its own."""
    model = build_classifier(spec(classes, size=8), seeded(0))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2, generator=seeded(1))  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5, generator=seeded(2))  # type: ignore[union-attr]
    return model.eval()


def pictures(rows: int, size: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (rows, 1, size, size), generator=seeded(seed), dtype=torch.uint8)


def pixels(images: Tensor) -> Pixels:
    return Pixels([images], torch.arange(len(images)))


def situation(champion: Classifier, images: Tensor, labels: Tensor, memory: int | None = None) -> Situation:
    kept = len(images) if memory is None else memory
    return Situation(
        champion=champion,
        images=pixels(images),
        labels=labels,
        memory=lambda: (pixels(images).subset(torch.arange(kept)), labels[:kept]),
        batch_rows=3,
    )


def moved(model: nn.Module, seed: int = 5) -> None:
    """Move every weight, but for the first of each, and give each a gradient."""
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn(parameter.shape, generator=seeded(seed)) * 0.1
            step.view(-1)[0] = 0
            parameter += step
            parameter.grad = torch.randn(parameter.shape, generator=seeded(seed + 1)).reshape(parameter.shape)


def fisher_of(model: Classifier) -> Tensors:
    return {n: torch.rand(p.shape, generator=seeded(7)) for n, p in model.named_parameters()}


Penalty = Callable[[Tensor, Tensor, Tensor], Tensor]
PULLS: dict[str, tuple[Callable[[Tensors], Pull], Penalty]] = {
    "l1": (lambda _: L1SP(0.3), lambda w, w0, _: 0.3 * (w - w0).abs().sum()),
    "l2": (lambda _: L2SP(0.3), lambda w, w0, _: 0.3 / 2 * (w - w0).square().sum()),
    "ewc": (lambda fisher: EWC(0.3, fisher), lambda w, w0, f: 0.3 / 2 * (f * (w - w0).square()).sum()),
}


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("name", PULLS)
def test_gradients_in_closed_form_are_those_of_the_penalty(name: str, grown: bool) -> None:
    make, penalty = PULLS[name]
    champion = small()
    fisher = fisher_of(champion)
    pull = make(fisher)
    model = grow_head(champion, "abcdef" if grown else "abc", seeded(3))
    kept = pull.prepare(situation(champion, pictures(6, 8), torch.arange(6) % 3))
    pull.begin(model, kept)
    moved(model)
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    pull.add_gradient()
    old = dict(champion.named_parameters())
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        w = parameter.detach().double().requires_grad_()
        rows = len(old[key])
        penalty(w[:rows], old[key].detach().double(), fisher[key].double()).backward()
        torch.testing.assert_close(parameter.grad - before[key], w.grad.float(), atol=1e-6, rtol=1e-4)  # type: ignore[union-attr]
        assert torch.equal(parameter.grad[rows:], before[key][rows:])


def test_a_strong_pull_on_large_weights_is_exact() -> None:
    # As two large numbers that are subtracted, it would be off by one in twenty.
    champion = linear()
    nn.init.constant_(champion.head.weight, 1000.0)
    model = deepcopy(champion)
    pull = L2SP(100.0)
    pull.begin(model, pull.prepare(situation(champion, pictures(2), torch.tensor([0, 1]))))
    with torch.no_grad():
        model.head.weight += 2**-10
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pull.add_gradient()
    assert model.head.weight.grad is not None
    torch.testing.assert_close(model.head.weight.grad, torch.full((2, 4), 100 * 2**-10))


def test_at_the_champion_nothing_pulls() -> None:
    champion = small()
    for make, _ in PULLS.values():
        pull, model = make(fisher_of(champion)), deepcopy(champion)
        pull.begin(model, pull.prepare(situation(champion, pictures(6, 8), torch.arange(6) % 3)))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pull.add_gradient()
        assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", PULLS)
def test_frozen_weights_are_not_pulled(name: str) -> None:
    champion = small()
    pull, model = PULLS[name][0](fisher_of(champion)), deepcopy(champion)
    model.body.requires_grad_(False)
    pull.begin(model, pull.prepare(situation(champion, pictures(6, 8), torch.arange(6) % 3)))
    moved(model.head)
    pull.add_gradient()
    assert len(pull.held) == 2
    assert all(parameter.grad is None for parameter in model.body.parameters())


def test_what_is_prepared_does_not_move_with_the_champion() -> None:
    champion = linear()
    strategies: list[Strategy] = [L2SP(1.0), Interpolation(0.5)]
    kept = [s.prepare(situation(champion, pictures(2), torch.tensor([0, 1]))) for s in strategies]
    copies = [{name: value.clone() for name, value in tensors.items()} for tensors in kept]
    nn.init.zeros_(champion.head.weight)
    for tensors, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(value, copy[name]) for name, value in tensors.items())


def trained(strategies: Sequence[Strategy], champion: Classifier, labels: Tensor, images: Tensor) -> Classifier:
    model = deepcopy(champion)
    kept: Tensors = {}
    for strategy in strategies:
        kept |= strategy.prepare(situation(champion, images, labels))
    for strategy in strategies:
        strategy.begin(model, kept)
    config = LoopConfig(epochs=20, learning_rate=0.01, weight_decay=0.0)
    fit(model, images, labels, config, batch_size=8, seed=0, strategies=strategies)
    for strategy in strategies:
        strategy.finish(model)
    return model.eval()


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum((a.detach() - b.detach()).square().sum() for a, b in pairs)) ** 0.5


@pytest.mark.parametrize("make", [L1SP, L2SP, lambda strength: EWC(strength, None)])
def test_the_stronger_the_pull_the_nearer_the_challenger_stays(make: Callable[[float], Pull]) -> None:
    champion, images = linear(), pictures(32)
    labels = (images.flatten(1).float().mean(1) > 127).long()
    free, loose, tight = (
        distance(trained([make(strength)] if strength else [], champion, labels, images), champion)
        for strength in (0.0, 0.3, 300.0)
    )
    assert tight < 0.3 * free
    assert tight < loose < 1.01 * free


def test_fisher_of_a_linear_model_has_a_closed_form() -> None:
    # The gradient of -log p_y with respect to row c is (p_c - [y = c]) x, and of the bias (p_c - [y = c]).
    model, images, labels = linear(3), pictures(7), torch.arange(7) % 3
    x = images.flatten(1).double() / 255
    logits = x @ model.head.weight.detach().double().T + model.head.bias.detach().double()
    errors = (logits.softmax(1) - functional.one_hot(labels, 3)).square()
    fisher = empirical_fisher(model, images, labels)
    assert fisher.keys() == {"head.weight", "head.bias"}
    torch.testing.assert_close(fisher["head.weight"].double(), errors.T @ x.square() / 7, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(fisher["head.bias"].double(), errors.mean(0), rtol=1e-4, atol=1e-8)


def test_fisher_is_a_mean_over_single_rows_not_the_square_of_a_batchs_gradient() -> None:
    model, images, labels = small(), pictures(5, 8), torch.tensor([0, 1, 2, 0, 1])
    fisher = empirical_fisher(model, images, labels)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(5):
        model.zero_grad()
        functional.cross_entropy(model(images[row : row + 1]), labels[row : row + 1]).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            expected[name] += parameter.grad.square() / 5
    model.zero_grad()
    functional.cross_entropy(model(images), labels).backward()
    for name, value in expected.items():
        torch.testing.assert_close(fisher[name], value, rtol=1e-4, atol=1e-9)
    assert model.head.bias.grad is not None
    assert float(model.head.bias.grad.square().sum()) < 0.5 * float(fisher["head.bias"].sum())


def test_fisher_leaves_the_model_as_it_was() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    empirical_fisher(model, pixels(pictures(3, 8)), torch.tensor([0, 1, 2]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fisher_information_of_earlier_windows_fades() -> None:
    old, new = {"w": torch.tensor([4.0, 2.0])}, {"w": torch.tensor([1.0, 0.5])}
    assert accumulate_fisher(old, new, 0.5)["w"].tolist() == [3.0, 1.5]
    assert accumulate_fisher(old, new, 0.0)["w"].tolist() == [1.0, 0.5]
    assert accumulate_fisher(None, new, 0.5) is new
    assert old["w"].tolist() == [4.0, 2.0]


def test_fisher_information_of_a_head_that_has_grown_keeps_its_rows() -> None:
    old = {"head.weight": torch.ones(2, 3), "head.bias": torch.ones(2)}
    new = {"head.weight": torch.zeros(3, 3), "head.bias": torch.zeros(3), "body.w": torch.ones(1)}
    total = accumulate_fisher(old, new, 0.5)
    assert total["head.weight"].tolist() == [[0.5] * 3, [0.5] * 3, [0.0] * 3]
    assert total["head.bias"].tolist() == [0.5, 0.5, 0.0]
    assert total["body.w"].tolist() == [1.0]


def test_fisher_information_of_another_architecture_does_not_count() -> None:
    total = accumulate_fisher({"w": torch.ones(2, 5)}, {"w": torch.ones(2, 3)}, 1.0)
    assert torch.equal(total["w"], torch.ones(2, 3))


def test_ewc_computes_the_information_of_what_the_champion_learnt_from() -> None:
    champion, images, labels = linear(), pictures(6), torch.arange(6) % 2
    computed = EWC(1.0, None).prepare(situation(champion, images, labels, memory=4))
    fisher = empirical_fisher(champion, images[:4], labels[:4])
    for name, value in fisher.items():
        assert torch.equal(computed[PREFIX + name], value)
    known = {name: torch.ones_like(value) for name, value in fisher.items()}
    given = EWC(1.0, known).prepare(situation(champion, images, labels))
    assert torch.equal(given[PREFIX + "head.bias"], torch.ones(2))


def test_ewc_without_any_memory_pulls_nothing_and_does_not_fail() -> None:
    champion = linear()
    ewc, model = EWC(1.0, None), linear()
    ewc.begin(model, ewc.prepare(situation(champion, pictures(4), torch.arange(4) % 2, memory=0)))
    moved(model)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    ewc.add_gradient()
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True) if p.grad is not None)


def test_ewc_holds_what_matters_and_lets_go_of_what_does_not() -> None:
    # Old images use the first pixel only; new ones all four, with labels that every pixel could explain.
    champion = linear()
    old = torch.zeros(20, 1, 2, 2, dtype=torch.uint8)
    old[:, 0, 0, 0] = torch.arange(20) % 2 * 255
    fisher = empirical_fisher(champion, old, torch.arange(20) % 2)
    ewc = EWC(1e4, fisher)
    images = torch.randint(0, 2, (40, 1, 1, 1), generator=seeded(0)).mul(255).to(torch.uint8).expand(-1, -1, 2, 2)
    challenger = trained([ewc], champion, (images[:, 0, 0, 0] == 0).long(), images.contiguous())
    change = (challenger.head.weight.detach() - champion.head.weight.detach()).abs().mean(0)
    assert float(change[1:].min()) > 10 * float(change[0])


# Distillation.


def batch(outputs: Tensor, labels: Tensor, index: Tensor | None = None, mixing: Mixing | None = None) -> Batch:
    index = torch.arange(len(labels)) if index is None else index
    return Batch(index=index, labels=labels, mixing=mixing, outputs=(outputs, outputs * 3))


def distillation(
    champion: Classifier, images: Tensor, labels: Tensor, model: Classifier, **options: float
) -> Distillation:
    strategy = Distillation(**{"weight": 1.0, "temperature": 2.0, **options})
    strategy.begin(model, strategy.prepare(situation(champion, images, labels)))
    return strategy


def answered(champion: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The champion's logits, and its answers."""
    with torch.no_grad():
        logits = champion(images)
    return logits, logits.argmax(1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_is_the_divergence_from_the_champions_softened_answers(temperature: float) -> None:
    champion, images = linear(3), pictures(6)
    logits, labels = answered(champion, images)
    strategy = distillation(champion, images, labels, linear(3), weight=0.7, temperature=temperature)
    outputs = torch.randn(6, 3, generator=seeded(1))
    p = (logits.double() / temperature).softmax(1)
    q = (outputs.double() / temperature).softmax(1)
    expected = 0.7 * temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(strategy.loss(batch(outputs, labels)).double(), expected, rtol=1e-5, atol=1e-7)


def test_distillation_asks_for_the_rows_of_the_batch() -> None:
    champion, images = linear(3), pictures(6)
    logits, labels = answered(champion, images)
    strategy = distillation(champion, images, labels, linear(3))
    index = torch.tensor([4, 1, 1])
    assert float(strategy.loss(batch(logits[index], labels[index], index))) == pytest.approx(0, abs=1e-6)
    assert float(strategy.loss(batch(logits[index], labels[index], index.flip(0)))) > 1e-4


def test_distillation_is_nothing_at_the_champion_and_pulls_toward_it() -> None:
    champion, images = linear(3), pictures(6)
    logits, labels = answered(champion, images)
    strategy = distillation(champion, images, labels, linear(3))
    assert float(strategy.loss(batch(logits, labels))) == pytest.approx(0, abs=1e-6)
    outputs = (logits + torch.randn(6, 3, generator=seeded(1))).requires_grad_()
    before = strategy.loss(batch(outputs, labels))
    before.backward()
    assert outputs.grad is not None
    after = strategy.loss(batch(outputs.detach() - 0.5 * outputs.grad, labels))
    assert float(after) < float(before.detach())


def test_distillation_leaves_rows_alone_that_the_champion_answers_wrongly() -> None:
    champion, images = linear(3), pictures(6)
    _, right = answered(champion, images)
    labels = right.clone()
    labels[:3] = (labels[:3] + 1) % 3
    outputs = torch.randn(6, 3, generator=seeded(1))
    strategy = distillation(champion, images, labels, linear(3))
    all_right = distillation(champion, images, right, linear(3))
    counted = torch.arange(3, 6)
    alone = all_right.loss(batch(outputs[counted], right[counted], counted))
    torch.testing.assert_close(strategy.loss(batch(outputs, labels)), alone * 3 / 6)


def test_distillation_pushes_new_classes_down_on_old_images() -> None:
    champion, images = linear(2), pictures(4)
    logits, labels = answered(champion, images)
    strategy = distillation(champion, images, labels, linear(3))
    low, high = (torch.cat([logits, torch.full((4, 1), new)], 1) for new in (-20.0, 3.0))
    assert float(strategy.loss(batch(low, labels))) == pytest.approx(0, abs=1e-3)
    assert float(strategy.loss(batch(high, labels))) > 0.1


def test_distillation_of_pieces_adds_up() -> None:
    champion, images = linear(3), pictures(6)
    _, labels = answered(champion, images)
    labels[0] = (labels[0] + 1) % 3
    strategy = distillation(champion, images, labels, linear(3))
    outputs, rows = torch.randn(6, 3, generator=seeded(1)), torch.arange(6)
    parts = sum(
        strategy.loss(batch(outputs[part], labels[part], part)) * len(part) / 6 for part in (rows[:2], rows[2:])
    )
    torch.testing.assert_close(strategy.loss(batch(outputs, labels)), parts)


def test_answers_of_mixed_rows_are_mixed() -> None:
    champion, images = linear(3), pictures(2)
    logits, labels = answered(champion, images)
    strategy = distillation(champion, images, labels, linear(3), temperature=1.0)
    p, mixing = logits.softmax(1), Mixing(share=0.75)
    wanted = torch.stack([0.75 * p[0] + 0.25 * p[1], 0.75 * p[1] + 0.25 * p[0]])
    assert float(strategy.loss(batch(wanted.log(), labels, mixing=mixing))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [8, 16])
def test_the_champion_is_asked_about_every_row_once_at_its_own_size(size: int) -> None:
    champion, images = small(), pictures(7, size)
    resized = images if size == 8 else functional.interpolate(images.float(), size=8, mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = champion(resized)
    logits = champion_logits(situation(champion, images, torch.zeros(7, dtype=torch.int64)))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not logits.requires_grad
    assert not logits.is_inference()


def test_no_rows_have_no_answers() -> None:
    assert champion_logits(situation(small(), pictures(0, 8), torch.empty(0, dtype=torch.int64))).shape == (0, 3)


# Adaptation.


@pytest.mark.parametrize(("share", "expected"), [(0.0, [4.0, 8.0]), (0.5, [2.5, 5.0]), (0.75, [1.75, 3.5])])
def test_interpolation_by_hand(share: float, expected: list[float]) -> None:
    champion, challenger = linear(), linear()
    for model, first, second in ((champion, 1.0, 2.0), (challenger, 4.0, 8.0)):
        nn.init.constant_(model.head.weight, first)
        nn.init.constant_(model.head.bias, second)
    mix = Interpolation(share)
    mix.begin(challenger, {**mix.prepare(situation(champion, pictures(2), torch.tensor([0, 1]))), "anchor.x": ONE})
    mix.finish(challenger)
    assert challenger.head.weight.unique().tolist() == [expected[0]]
    assert challenger.head.bias.unique().tolist() == [expected[1]]
    assert champion.head.weight.unique().tolist() == [1.0]


ONE = torch.ones(1)


def test_interpolation_mixes_statistics_and_leaves_counts_and_new_rows() -> None:
    champion = small()
    challenger = grow_head(champion, "abcd", seeded(0))
    mix = Interpolation(0.5)
    mix.begin(challenger, mix.prepare(situation(champion, pictures(2, 8), torch.tensor([0, 1]))))
    new_row = challenger.head.weight.detach()[3].clone()
    norm = next(m for m in challenger.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    before = norm.running_mean.clone()
    norm.running_mean += 1
    norm.num_batches_tracked += 7
    mix.finish(challenger)
    torch.testing.assert_close(norm.running_mean, before + 0.5)
    assert int(norm.num_batches_tracked) == 7
    assert torch.equal(challenger.head.weight.detach()[3], new_row)


@pytest.mark.parametrize("kept", [False, True])
def test_statistics_of_batch_norm_are_kept_when_they_are_to_be(kept: bool) -> None:
    champion, images = small(), pictures(16, 8)
    challenger = trained([KeepBatchNorm()] if kept else [], champion, torch.arange(16) % 3, images)
    same = [torch.equal(a, b) for a, b in zip(champion.buffers(), challenger.buffers(), strict=True)]
    weights = [torch.equal(a, b) for a, b in zip(champion.parameters(), challenger.parameters(), strict=True)]
    assert all(same) is kept
    assert not any(weights[-2:])


def test_strategies_by_themselves_do_nothing() -> None:
    model: Any = linear()
    nothing = Strategy()
    assert nothing.prepare(situation(model, pictures(2), torch.tensor([0, 1]))) == {}
    nothing.begin(model, {})
    nothing.set_mode(model)
    nothing.add_gradient()
    assert nothing.loss(batch(torch.zeros(2, 2), torch.tensor([0, 1]))) is None
    nothing.finish(model)
    assert torch.equal(model.head.weight, linear().head.weight)
