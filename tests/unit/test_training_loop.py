"""The training loop: its schedule by hand, and that it learns, repeats itself and notices when it diverges."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import cos, pi

import pytest
import torch
from torch import Tensor, nn

from components.core.config import LoopConfig
from components.train.loop import fit, warmup_cosine

pytestmark = pytest.mark.usefixtures("one_thread")
LOOP = LoopConfig(epochs=10, learning_rate=0.05)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two clouds of points, two deviations from the origin each."""
    labels = torch.arange(rows) % 2
    points = torch.randn(rows, 2, generator=seeded(seed)) + 4.0 * labels[:, None] - 2.0
    return points, labels


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


@contextmanager
def watched(module: nn.Module) -> Iterator[list[int]]:
    """Collect the sizes of the batches that a module sees."""
    sizes: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()


def test_loss_falls_and_the_classes_are_told_apart() -> None:
    model, (points, labels) = network(), blobs(200)
    losses = fit(model, points, labels, LOOP, batch_size=32, generator=seeded(0))
    assert len(losses) == 10
    assert losses[-1] < losses[0] / 2
    assert float((model.eval()(points).argmax(1) == labels).float().mean()) > 0.95


def test_first_loss_of_a_network_that_says_nothing_is_log_two() -> None:
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    loop = LoopConfig(epochs=1, learning_rate=1e-9)
    points, labels = blobs(64)
    assert fit(model, points, labels, loop, batch_size=16, generator=seeded(0)) == [pytest.approx(0.693147, abs=1e-5)]


def test_the_epochs_loss_weighs_every_row_alike() -> None:
    # 3 rows in 1 batch or in batches of 1 and 2: with a rate of nearly zero the mean over rows is the same.
    losses = []
    for batch_size in (3, 2, 1):
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, 0.3)
        nn.init.constant_(model.bias, 0.1)
        with torch.no_grad():
            model.weight[0] = -0.2
        points, labels = blobs(7)
        loop = LoopConfig(epochs=1, learning_rate=1e-9)
        losses += fit(model, points, labels, loop, batch_size=batch_size, generator=seeded(0))
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_one_seed_gives_one_result() -> None:
    first, second, other = network(), network(), network()
    points, labels = blobs(100)
    same = [fit(m, points, labels, LOOP, batch_size=16, generator=seeded(3)) for m in (first, second)]
    different = fit(other, points, labels, LOOP, batch_size=16, generator=seeded(4))
    assert same[0] == same[1]
    assert same[0] != different
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Lazy:
    """Rows that are read when they are asked for, and what was asked for."""

    device = torch.device("cpu")

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.asked = rows, [torch.empty(0, dtype=torch.int64)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        self.asked.append(index)
        return self.rows[index]


def test_rows_that_are_gathered_when_they_are_asked_for_train_as_a_tensor_does() -> None:
    points, labels = blobs(50)
    plain, lazily, lazy = network(), network(), Lazy(points)
    losses = [
        fit(model, rows, labels, LOOP, batch_size=16, generator=seeded(3))
        for model, rows in ((plain, points), (lazily, lazy))
    ]
    assert losses[0] == losses[1]
    for a, b in zip(plain.state_dict().values(), lazily.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    asked = torch.cat(lazy.asked)
    assert asked.bincount().tolist() == [LOOP.epochs] * 50
    assert max(len(index) for index in lazy.asked) <= 16


def test_torchs_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    fit(network(), *blobs(20), LOOP, batch_size=8, generator=seeded(0))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training(broken: float) -> None:
    points, labels = blobs(20)
    points[3, 0] = broken
    with pytest.raises(FloatingPointError, match="epoch 1: lower the learning rate"):
        fit(network(), points, labels, LOOP, batch_size=8, generator=seeded(0))


@pytest.mark.parametrize("rows", [2, 3, 7, 8, 9, 10, 15, 16, 17, 25])
@pytest.mark.parametrize("batch_size", [2, 8, 64])
def test_no_row_reaches_batch_norm_alone_and_none_is_left_out(rows: int, batch_size: int) -> None:
    model = network()
    with watched(model) as sizes:
        fit(model, *blobs(rows), LoopConfig(epochs=2, learning_rate=0.01), batch_size=batch_size, generator=seeded(0))
    assert min(sizes) >= 2
    assert sum(sizes) == 2 * rows


@pytest.mark.parametrize("rows", [9, 15, 17, 23, 63])
def test_a_step_takes_at_most_one_row_more_than_the_batch_size(rows: int) -> None:
    # "A last batch of one row joins the one before": memory is planned for `batch_size` rows, not for twice as many.
    model = network()
    with watched(model) as sizes:
        fit(model, *blobs(rows), LoopConfig(epochs=1, learning_rate=0.01), batch_size=8, generator=seeded(0))
    assert max(sizes) <= 9


def test_frozen_weights_stay() -> None:
    model = network()
    first = model.get_submodule("0")
    for parameter in first.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    fit(model, *blobs(40), LOOP, batch_size=8, generator=seeded(0))
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())


def test_progress_counts_every_row_of_every_epoch() -> None:
    told: list[int] = []
    fit(network(), *blobs(21), LOOP, batch_size=8, generator=seeded(0), on_epoch=told.append)
    assert told == [21] * 10


@pytest.mark.parametrize(
    ("step", "steps", "factor"),
    [
        # 100 steps: 5 of warm-up, then half a cosine over 95.
        (0, 100, 0.2),
        (3, 100, 0.8),
        (4, 100, 1.0),
        (5, 100, 1.0),
        (52, 100, 0.5 * (1 + cos(pi * 47 / 95))),
        (99, 100, 0.5 * (1 + cos(pi * 94 / 95))),
        (100, 100, 0.0),
        # 10 steps: 5 % is half a step, one is taken.
        (0, 10, 1.0),
        (1, 10, 1.0),
        (10, 10, 0.0),
        (0, 1, 1.0),
        (1, 1, 1.0),
    ],
)
def test_warmup_cosine_by_hand(step: int, steps: int, factor: float) -> None:
    assert warmup_cosine(step, steps) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 400])
def test_rate_rises_to_the_peak_then_falls_and_stays_within_its_bounds(steps: int) -> None:
    factors = [warmup_cosine(step, steps) for step in range(steps + 1)]
    peak = factors.index(max(factors))
    assert max(factors) == 1.0
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert all(0 <= factor <= 1 for factor in factors)
