"""The loss: torch's own where nothing is special, what is done about rare classes by hand, and that it helps them."""

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from components.core.recipes import LoopConfig
from components.train.augmentation import Mixing
from components.train.loop import fit
from components.train.objective import AUXILIARY, BETA, Objective, effective_weights, sampling_weights

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = torch.tensor([0] * 6 + [1] * 3 + [2])
BALANCES = ["none", "sampler", "loss", "logits"]


def objective(labels: Tensor = LABELS, classes: int = 3, **config: Any) -> Objective:
    return Objective(labels, classes, LoopConfig(epochs=1, learning_rate=0.1, **config))


def logits(n: int = 10, classes: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_without_weights_it_is_torchs_cross_entropy(smoothing: float, balance: str) -> None:
    loss = objective(balance=balance, label_smoothing=smoothing)([logits()], LABELS, None)
    torch.testing.assert_close(loss, functional.cross_entropy(logits(), LABELS, label_smoothing=smoothing))


def test_smoothing_by_hand() -> None:
    # Two classes, log-probabilities log(3/4) and log(1/4), targets 0.9 and 0.1.
    outputs = torch.tensor([[log(3.0), 0.0]])
    loss = objective(torch.tensor([0, 1]), 2, label_smoothing=0.2)([outputs], torch.tensor([0]), None)
    assert float(loss) == pytest.approx(-(0.9 * log(3 / 4) + 0.1 * log(1 / 4)))


def test_logit_adjustment_by_hand() -> None:
    # Nine rows to one: equal logits mean log 9 nats in favour of the common class.
    labels = torch.tensor([0] * 9 + [1])
    adjusted = objective(labels, 2, balance="logits")
    zeros = torch.zeros(1, 2)
    assert float(adjusted([zeros], torch.tensor([0]), None)) == pytest.approx(-log(0.9))
    assert float(adjusted([zeros], torch.tensor([1]), None)) == pytest.approx(-log(0.1))


def test_logit_adjustment_of_classes_that_are_equal_is_no_adjustment() -> None:
    labels = torch.arange(9) % 3
    adjusted = objective(labels, balance="logits")([logits(9)], labels, None)
    torch.testing.assert_close(adjusted, functional.cross_entropy(logits(9), labels))


def test_effective_weights_by_hand() -> None:
    counts = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    weights = effective_weights(counts)
    assert weights[2] == 0
    # 1 / E_1 = 1, and 1 / E_2 = (1 - b) / (1 - b^2) = 1 / (1 + b)
    assert float(weights[1] / weights[0]) == pytest.approx(1 / (1 + BETA))
    assert float((weights * counts).sum()) == pytest.approx(3)


def test_effective_weights_of_plenty_are_equal_and_of_few_are_inverse_to_their_number() -> None:
    plenty, few = (effective_weights(torch.tensor(n, dtype=torch.float64)) for n in ([1e6, 1e5], [1.0, 10.0]))
    assert float(plenty[1] / plenty[0]) == pytest.approx(1, abs=1e-3)
    assert float(few[0] / few[1]) == pytest.approx(10, rel=0.01)


def test_weighted_loss_is_a_weighted_sum_over_the_number_of_rows() -> None:
    weights = effective_weights(torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)).float()
    each = functional.cross_entropy(logits(), LABELS, reduction="none")
    loss = objective(balance="loss")([logits()], LABELS, None)
    torch.testing.assert_close(loss, (weights[LABELS] * each).mean())


@pytest.mark.parametrize("balance", ["loss", "logits"])
def test_a_class_without_rows_makes_nothing_infinite(balance: str) -> None:
    loss = objective(torch.tensor([0, 0, 2]), 4, balance=balance)([logits(3, 4)], torch.tensor([0, 0, 2]), None)
    assert bool(loss.isfinite())


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("cuts", [[10], [5, 5], [3, 4, 3], [1, 9]])
def test_pieces_add_up_to_the_whole(balance: str, cuts: list[int]) -> None:
    loss = objective(balance=balance, label_smoothing=0.1)
    outputs = [logits(), logits(seed=1)]
    whole = loss(outputs, LABELS, None)
    start, total = 0, torch.zeros(())
    for rows in cuts:
        part = slice(start, start + rows)
        total += loss([o[part] for o in outputs], LABELS[part], None) * rows / 10
        start += rows
    torch.testing.assert_close(total, whole)


def test_auxiliary_heads_count_for_their_share() -> None:
    main, first, second = (objective()([logits(seed=seed)], LABELS, None) for seed in range(3))
    loss = objective()([logits(seed=seed) for seed in range(3)], LABELS, None)
    torch.testing.assert_close(loss, main + AUXILIARY * (first + second))


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("box", [None, (0, 1, 0, 3)])
def test_loss_of_mixed_rows_is_the_mixture_of_the_losses(balance: str, box: tuple[int, int, int, int] | None) -> None:
    # Cross-entropy is linear in the target.
    loss = objective(balance=balance, label_smoothing=0.1)
    mixed = loss([logits()], LABELS, Mixing(share=0.7, box=box))
    own, other = loss([logits()], LABELS, None), loss([logits()], LABELS.flip(0), None)
    torch.testing.assert_close(mixed, 0.7 * own + 0.3 * other)


def test_half_precision_logits_are_judged_in_full() -> None:
    outputs = (logits() * 50).to(torch.bfloat16)
    loss = objective()([outputs], LABELS, None)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, functional.cross_entropy(outputs.float(), LABELS))


def test_sampling_weights_draw_every_class_equally_often() -> None:
    weights = sampling_weights(torch.tensor([0, 0, 0, 2]))
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])


def test_labels_beyond_the_classes_are_an_error() -> None:
    with pytest.raises((IndexError, RuntimeError), match=r"(?i)target|class"):
        objective()([logits(1)], torch.tensor([3]), None)


def recall_of_the_rare(balance: str) -> tuple[float, float]:
    """Recall of a class of one in twenty, and of the common one, where the two overlap."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(2_000) % 20 == 0).long()
    points = torch.randn(2_000, 2, generator=generator) + 1.5 * labels[:, None]
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    loop = LoopConfig(epochs=15, learning_rate=0.05, balance=balance)
    fit(model, points, labels, loop, batch_size=100, seed=0)
    answers = model(points).argmax(1)
    return tuple(float((answers[labels == c] == c).float().mean()) for c in (1, 0))  # type: ignore[return-value]


def test_every_balance_finds_more_of_a_rare_class() -> None:
    plain, common = recall_of_the_rare("none")
    assert plain < 0.5
    assert common > 0.95
    for balance in ("sampler", "loss", "logits"):
        rare, common = recall_of_the_rare(balance)
        assert rare > plain + 0.2, balance
        assert common > 0.6, balance
