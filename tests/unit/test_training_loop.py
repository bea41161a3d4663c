"""The training loop: its rates by hand, that it learns, that it goes on from any step with the same bits, and that what
is not finite, or does not fit into memory, costs nothing that was learnt."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import cos, pi
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from components.core.recipes import Augmentation, LoopConfig
from components.train.checkpoint import Progress, Snapshot
from components.train.compute import Compute
from components.train.interruption import Preempted
from components.train.loop import Watch, accuracy, fit, rate
from components.train.state import MOMENTUM
from components.train.strategy import Batch, Strategy

pytestmark = pytest.mark.usefixtures("one_thread")
LOOP = LoopConfig(epochs=10, learning_rate=0.05)


def loop(**changes: Any) -> LoopConfig:
    return LoopConfig(**{"epochs": 3, "learning_rate": 0.01, **changes})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two clouds of points, two deviations from the origin each."""
    labels = torch.arange(rows) % 2
    points = torch.randn(rows, 2, generator=seeded(seed)) + 4.0 * labels[:, None] - 2.0
    return points, labels


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def network() -> nn.Module:
    return built(lambda: nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)))


def without_batch_norm() -> nn.Module:
    return built(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)))


class ToUnit(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 255 - 0.5


def convolutions() -> nn.Module:
    """Everything that may differ after a resumption: layouts of memory, statistics, dropout."""
    return built(
        lambda: nn.Sequential(
            ToUnit(),
            nn.Conv2d(3, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(6, 4, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
    )


def pictures(rows: int = 34, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise, brighter in one channel for each class."""
    labels = torch.arange(rows) % 3
    noise = torch.randint(0, 150, (rows, 3, 8, 8), generator=seeded(seed), dtype=torch.uint8)
    return noise + (80 * functional.one_hot(labels, 3))[:, :, None, None].to(torch.uint8), labels


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def assert_close(one: nn.Module, other: nn.Module, **tolerances: float) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerances)


class Memory:
    """Keeps snapshots as the bytes that a store would hold; due every so many steps."""

    def __init__(self, every: int | None = None) -> None:
        self.every, self.asked = every, 0
        self.kept: list[tuple[bytes, Progress]] = []

    def latest(self) -> Snapshot | None:
        return self.at(-1) if self.kept else None

    def at(self, number: int) -> Snapshot:
        data, progress = self.kept[number]
        return Snapshot(tensors=load(data), progress=Progress.model_validate_json(progress.model_dump_json()))

    def due(self) -> bool:
        self.asked += 1
        return self.every is not None and self.asked % self.every == 0

    def save(self, snapshot: Snapshot, *, wait: bool = False) -> None:
        tensors = {name: value.detach().clone().contiguous() for name, value in snapshot.tensors.items()}
        self.kept.append((save(tensors), snapshot.progress))

    def beat(self, step: int) -> None:
        pass


def stop_after(steps: int) -> Watch:
    """A watch that asks to stop when so many steps are taken."""
    answers = iter([False] * (steps - 1) + [True])
    return Watch(stop_asked=lambda: next(answers, True))


@contextmanager
def watched(module: nn.Module) -> Iterator[list[int]]:
    """Collect the sizes of the batches that a module sees."""
    sizes: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()


# What is learnt.


def test_loss_falls_and_the_classes_are_told_apart() -> None:
    model, (points, labels) = network(), blobs(200)
    losses = fit(model, points, labels, LOOP, batch_size=32, seed=0).losses
    assert len(losses) == 10
    assert losses[-1] < losses[0] / 2
    assert accuracy(model, points, labels, Compute()) > 0.95


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"schedule": "constant"},
        {"schedule": "exponential"},
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"ema_decay": 0.9},
        {"label_smoothing": 0.1},
        {"clip_norm": 0.5},
        {"accumulate": 2},
        {"augmentation": Augmentation(shift=0.2, zoom=0.3, brightness=0.2, contrast=0.2)},
        *({"balance": balance} for balance in ("sampler", "loss", "logits")),
    ],
    ids=str,
)
def test_every_option_still_learns(options: dict[str, Any]) -> None:
    images, labels = pictures(60)
    model = convolutions()
    fit(model, images, labels, loop(**{"epochs": 20, "learning_rate": 0.03, **options}), batch_size=10, seed=0)
    assert accuracy(model, *pictures(60, seed=1), Compute()) > 0.8


def test_first_loss_of_a_network_that_says_nothing_is_log_two() -> None:
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    done = fit(model, *blobs(64), loop(epochs=1, learning_rate=1e-9), batch_size=16, seed=0)
    assert done.losses == (pytest.approx(0.693147, abs=1e-5),)
    assert done == Progress(step=4, losses=done.losses)


def test_the_epochs_loss_weighs_every_row_alike() -> None:
    # 7 rows in 1, 4 or 3 steps: with a rate of nearly zero the mean over rows is the same.
    losses: list[float] = []
    for batch_size in (8, 2, 1):
        model = built(lambda: nn.Linear(2, 2))
        losses += fit(model, *blobs(7), loop(epochs=1, learning_rate=1e-9), batch_size=batch_size, seed=0).losses
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_one_seed_gives_one_result() -> None:
    images, labels = pictures()
    first, second, other = convolutions(), convolutions(), convolutions()
    done = [fit(m, images, labels, loop(), batch_size=8, seed=s) for m, s in ((first, 3), (second, 3), (other, 4))]
    assert done[0] == done[1]
    assert done[0] != done[2]
    assert_same_bits(first, second)


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
    losses = [fit(m, rows, labels, LOOP, batch_size=16, seed=3) for m, rows in ((plain, points), (lazily, lazy))]
    assert losses[0] == losses[1]
    assert_same_bits(plain, lazily)
    asked = torch.cat(lazy.asked)
    assert asked.bincount().tolist() == [LOOP.epochs] * 50
    assert max(len(index) for index in lazy.asked) <= 16


@pytest.mark.parametrize("rows", [2, 3, 7, 8, 9, 10, 15, 16, 17, 25])
@pytest.mark.parametrize(("batch_size", "pieces"), [(2, 1), (8, 1), (64, 1), (8, 3), (8, 64)])
def test_no_row_reaches_batch_norm_alone_and_none_is_left_out(rows: int, batch_size: int, pieces: int) -> None:
    model = network()
    with watched(model) as sizes:
        fit(model, *blobs(rows), loop(epochs=2), batch_size=batch_size, pieces=pieces, seed=0)
    assert min(sizes) >= 2
    assert sum(sizes) == 2 * rows


@pytest.mark.parametrize("rows", [9, 15, 17, 23, 63])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_at_most_one_row_more_than_the_batch_size_goes_through_at_once(rows: int, accumulate: int) -> None:
    model = network()
    with watched(model) as sizes:
        fit(model, *blobs(rows), loop(epochs=1, accumulate=accumulate), batch_size=8, seed=0)
    assert max(sizes) <= 9


def test_frozen_weights_stay() -> None:
    model = network()
    first = model.get_submodule("0")
    first.requires_grad_(False)
    before = weights(first)
    fit(model, *blobs(40), loop(ema_decay=0.5, weight_decay=0.5), batch_size=8, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_module_that_takes_no_part_stays_as_it_is() -> None:
    champion, challenger = network(), network()
    before = weights(champion)
    fit(challenger, *blobs(40), LOOP, batch_size=8, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in champion.state_dict().items())
    assert not torch.equal(challenger.get_parameter("0.weight"), before["0.weight"])


def test_torchs_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    fit(convolutions(), *pictures(), loop(mixup=0.2, augmentation=Augmentation(shift=0.1)), batch_size=8, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(Preempted):
        fit(convolutions(), *pictures(), loop(), batch_size=8, seed=0, watch=stop_after(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_was_drawn_before_changes_nothing() -> None:
    one, other = convolutions(), convolutions()
    for model, seed in ((one, 1), (other, 2)):
        torch.manual_seed(seed)
        fit(model, *pictures(), loop(), batch_size=8, seed=0)
    assert_same_bits(one, other)


def test_progress_counts_every_row_of_every_epoch() -> None:
    rows: list[int] = []
    epochs: list[tuple[int, int]] = []
    watch = Watch(on_rows=rows.append, on_epoch=lambda p: epochs.append((p.step, len(p.losses))))
    fit(network(), *blobs(21), LOOP, batch_size=8, seed=0, watch=watch)
    assert sum(rows) == 210
    assert epochs == [(3 * (n + 1), n + 1) for n in range(10)]


# Single steps.


def plain(**changes: Any) -> LoopConfig:
    """Steps whose size is the rate: no warm-up, no decay."""
    return loop(**{"schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, **changes})


def linear(value: float = 0.0) -> nn.Linear:
    model = nn.Linear(1, 2, bias=False)
    nn.init.constant_(model.weight, value)
    return model


ONES, ZEROS = torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)


def test_steps_of_sgd_with_nesterov_momentum_by_hand() -> None:
    # All rows are 1 with label 0: the gradient of the two weights is (p - 1, 1 - p), p the probability of class 0.
    w, velocity = torch.zeros(2), torch.zeros(2)
    for _ in range(3):
        gradient = w.softmax(0) - torch.tensor([1.0, 0.0])
        velocity = MOMENTUM * velocity + gradient
        w = w - 0.1 * (gradient + MOMENTUM * velocity)
    model = linear()
    fit(model, ONES, ZEROS, plain(optimizer="sgd", learning_rate=0.1), batch_size=2, seed=0, classes=2)
    torch.testing.assert_close(model.weight.flatten(), w)


def test_the_first_step_of_adamw_by_hand() -> None:
    # The first step is the rate, whatever the gradient; decay before that takes rate x decay of the weight.
    model = linear(1.0)
    config = plain(epochs=1, learning_rate=0.1, weight_decay=0.5)
    fit(model, ONES, ZEROS, config, batch_size=2, seed=0, classes=2)
    assert model.weight.flatten().tolist() == pytest.approx([0.95 + 0.1, 0.95 - 0.1], abs=1e-5)


def test_the_average_of_the_weights_by_hand() -> None:
    seen: list[Tensor] = []

    class Remember(Strategy):
        def add_gradient(self) -> None:
            seen.append(model.weight.detach().clone())

    model = linear(1.0)
    config = plain(epochs=4, optimizer="sgd", learning_rate=0.1, ema_decay=0.75)
    fit(model, ONES, ZEROS, config, batch_size=2, seed=0, classes=2, strategies=[Remember()])
    last = linear(1.0)
    fit(last, ONES, ZEROS, config.model_copy(update={"ema_decay": 0.0}), batch_size=2, seed=0, classes=2)
    after = [*seen[1:], last.weight.detach()]
    average = seen[0]
    for step, now in enumerate(after):
        decay = min(0.75, (1 + step) / (10 + step))  # faster at first: 0.1, 0.18, 0.25, ...
        average = decay * average + (1 - decay) * now
    torch.testing.assert_close(model.weight.detach(), average)


@pytest.mark.parametrize(("clip", "length"), [(0.1, 0.1), (100.0, 0.5 * 2**0.5)])
def test_a_long_gradient_is_cut_and_a_short_one_is_not(clip: float, length: float) -> None:
    # The gradient is (-1/2, 1/2) at zero; the first step of SGD with Nesterov's momentum is 1.9 times it.
    model = linear()
    config = plain(epochs=1, optimizer="sgd", learning_rate=1.0, clip_norm=clip)
    fit(model, ONES, ZEROS, config, batch_size=2, seed=0, classes=2)
    assert float(model.weight.detach().norm()) == pytest.approx(1.9 * length, rel=1e-4)


def test_what_strategies_add_is_cut_too() -> None:
    class Push(Strategy):
        def add_gradient(self) -> None:
            assert model.weight.grad is not None
            model.weight.grad += 1000.0

    model = linear()
    config = plain(epochs=1, optimizer="sgd", learning_rate=1.0, clip_norm=0.1)
    fit(model, ONES, ZEROS, config, batch_size=2, seed=0, classes=2, strategies=[Push()])
    assert float(model.weight.detach().norm()) == pytest.approx(0.19, rel=1e-4)


@pytest.mark.parametrize("rows", [40, 41, 47])
@pytest.mark.parametrize("balance", ["none", "loss", "logits", "sampler"])
def test_accumulated_batches_are_one_larger_batch(rows: int, balance: str) -> None:
    whole, parts = without_batch_norm(), without_batch_norm()
    options = {"balance": balance, "clip_norm": 1.0}
    one = fit(whole, *blobs(rows), loop(**options), batch_size=16, seed=0)
    two = fit(parts, *blobs(rows), loop(**options, accumulate=4), batch_size=4, seed=0)
    assert one.losses == pytest.approx(two.losses, rel=1e-5)
    assert_close(whole, parts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pieces", [2, 3, 8])
def test_pieces_of_a_batch_are_the_batch(pieces: int) -> None:
    whole, parts = without_batch_norm(), without_batch_norm()
    config = loop(accumulate=2, augmentation=Augmentation(brightness=0.5))
    fit(whole, *blobs(41), config, batch_size=16, seed=0)
    with watched(parts) as sizes:
        fit(parts, *blobs(41), config, batch_size=16, seed=0, pieces=pieces)
    assert max(sizes) <= -(-17 // pieces) + 1
    assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_a_loss_that_a_strategy_adds_counts_in_pieces_as_in_whole() -> None:
    class Small(Strategy):
        def loss(self, batch: Batch) -> Tensor:
            assert len(batch.index) == len(batch.labels) == len(batch.outputs[0])
            return batch.outputs[0].square().mean()

    alone, whole, parts = without_batch_norm(), without_batch_norm(), without_batch_norm()
    fit(alone, *blobs(41), loop(), batch_size=16, seed=0)
    fit(whole, *blobs(41), loop(), batch_size=16, seed=0, strategies=[Small()])
    fit(parts, *blobs(41), loop(), batch_size=16, seed=0, strategies=[Small()], pieces=4)
    assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone.get_parameter("0.weight"), whole.get_parameter("0.weight"), atol=1e-3)


def test_strategies_see_the_rows_that_the_index_names() -> None:
    points, labels = blobs(30)
    seen: list[int] = []

    class Look(Strategy):
        def loss(self, batch: Batch) -> None:
            assert torch.equal(batch.labels, labels[batch.index])
            assert torch.equal(batch.outputs[0].detach(), points[batch.index])
            seen.extend(batch.index.tolist())

    class Same(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            return rows + 0 * super().forward(rows)

    fit(Same(2, 2), points, labels, loop(epochs=1), batch_size=8, seed=0, strategies=[Look()], pieces=2)
    assert sorted(seen) == list(range(30))


def test_modes_that_a_strategy_sets_hold_in_every_epoch_also_after_validation() -> None:
    class Still(Strategy):
        def set_mode(self, model: nn.Module) -> None:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()

    model = network()
    before = weights(model.get_submodule("1"))
    fit(model, *blobs(30), loop(), batch_size=8, seed=0, strategies=[Still()], validation=blobs(9))
    for name, value in model.get_submodule("1").named_buffers():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("augmented", [False, True])
def test_images_grow_by_the_epoch(augmented: bool) -> None:
    model, sides = convolutions(), []
    model.get_submodule("0").register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    config = loop(augmentation=Augmentation(shift=0.1, erase=0.2) if augmented else Augmentation())
    fit(model, *pictures(20), config, batch_size=10, seed=0, size_at=lambda epoch: 6 + epoch)
    assert sides == [6, 6, 7, 7, 8, 8]


# Going on.

EVERYTHING: dict[str, Any] = {
    "clip_norm": 0.5,
    "accumulate": 2,
    "mixup": 0.2,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "ema_decay": 0.8,
    "balance": "sampler",
    "augmentation": Augmentation(shift=0.2, flip=True, zoom=0.4, brightness=0.3, contrast=0.3, erase=0.2),
}
CONFIGS = {
    "adamw": loop(),
    "sgd": loop(optimizer="sgd"),
    "constant": loop(schedule="constant"),
    "everything-adamw": loop(**EVERYTHING),
    "everything-sgd": loop(**EVERYTHING, optimizer="sgd", schedule="exponential"),
}


def train(model: nn.Module, config: LoopConfig, **more: Any) -> Progress:
    """Five steps an epoch where batches are not accumulated, else three."""
    return fit(model, *pictures(), config, batch_size=7, seed=5, **more)


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_that_is_stopped_at_every_step_ends_with_the_same_bits(name: str, validated: bool) -> None:
    more = {"validation": pictures(12, seed=9)} if validated else {}
    whole = convolutions()
    expected = train(whole, CONFIGS[name], **more)
    memory, stops = Memory(), 0
    while True:
        resumed = built(convolutions, seed=stops)  # another process: nothing but the snapshot comes with it
        try:
            done = train(resumed, CONFIGS[name], checkpoints=memory, watch=stop_after(1), **more)
        except Preempted:
            stops += 1
        else:
            break
    assert stops == expected.step - 1
    assert done == expected
    assert_same_bits(whole, resumed)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_snapshot_leads_to_the_same_end(name: str) -> None:
    whole = convolutions()
    memory = Memory(every=1)
    expected = train(whole, CONFIGS[name], checkpoints=memory)
    assert [progress.step for _, progress in memory.kept] == list(range(1, expected.step))
    for number in (0, len(memory.kept) // 2, -1):
        older = Memory()
        older.kept = [memory.kept[number]]
        resumed = built(convolutions, seed=1)
        assert train(resumed, CONFIGS[name], checkpoints=older) == expected
        assert_same_bits(whole, resumed)


def test_keeping_snapshots_changes_nothing() -> None:
    without, with_snapshots = convolutions(), convolutions()
    train(without, CONFIGS["everything-adamw"])
    train(with_snapshots, CONFIGS["everything-adamw"], checkpoints=Memory(every=2))
    assert_same_bits(without, with_snapshots)


def test_a_resumed_training_counts_only_the_rows_that_it_takes() -> None:
    memory = Memory()
    rows: list[int] = []
    with pytest.raises(Preempted):
        train(convolutions(), loop(), checkpoints=memory, watch=stop_after(6))
    train(convolutions(), loop(), checkpoints=memory, watch=Watch(on_rows=rows.append))
    assert len(rows) == 15 - 6


def test_a_stop_is_obeyed_at_every_step_but_the_last_which_ends_the_training_anyway() -> None:
    for steps in range(1, 15):
        memory = Memory()
        with pytest.raises(Preempted) as stopped:
            train(convolutions(), loop(), checkpoints=memory, watch=stop_after(steps))
        assert (stopped.value.step, memory.kept[-1][1].step, stopped.value.code) == (steps, steps, 143)
    assert train(convolutions(), loop(), watch=stop_after(15)).step == 15


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_pieces_may_change_on_the_way(name: str) -> None:
    whole, resumed, memory = without_batch_norm(), without_batch_norm(), Memory()
    run = partial(fit, inputs=blobs(40)[0], labels=blobs(40)[1], config=CONFIGS[name], batch_size=8, seed=0)
    run(whole)
    with pytest.raises(Preempted):
        run(resumed, checkpoints=memory, watch=stop_after(7))
    run(resumed, checkpoints=memory, pieces=4)
    assert_close(whole, resumed, rtol=1e-4, atol=1e-5)


# What goes wrong.


class Trap(nn.Module):
    """Runs out of memory in a forward pass, once, behind layers that have seen the batch already."""

    def __init__(self, network: nn.Module, at: int) -> None:
        super().__init__()
        self.network, self.at, self.calls = network, at, 0

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.network(rows)
        self.calls += 1
        if self.calls == self.at:
            raise torch.OutOfMemoryError("a batch too large")
        return outputs


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("at", [1, 4, 12])
def test_running_out_of_memory_keeps_what_was_before_that_step(name: str, at: int) -> None:
    config = CONFIGS[name]
    whole = Trap(convolutions(), at=0)
    train(whole, config)
    memory = Memory()
    trapped = Trap(convolutions(), at)
    with pytest.raises(torch.OutOfMemoryError):
        train(trapped, config, checkpoints=memory)
    ((_, progress),) = memory.kept
    assert progress.step == (at - 1) // config.accumulate
    resumed = Trap(built(convolutions, seed=1), at=0)
    train(resumed, config, checkpoints=memory)
    assert_same_bits(whole, resumed)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training_and_is_not_kept(broken: float) -> None:
    points, labels = blobs(20)
    points[3, 0] = broken
    memory = Memory(every=1)
    with pytest.raises(FloatingPointError, match="epoch 1: lower the learning rate"):
        fit(network(), points, labels, LOOP, batch_size=8, seed=0, checkpoints=memory)
    for number in range(len(memory.kept)):
        for name, value in memory.at(number).tensors.items():
            assert bool(value.isfinite().all()), name


def test_weights_that_are_not_finite_behind_a_loss_that_is_are_not_kept_either() -> None:
    class Infinite(Strategy):
        """A gradient that overflows in the fourth step."""

        calls = 0

        def add_gradient(self) -> None:
            self.calls += 1
            if self.calls == 4:
                assert model.weight.grad is not None
                model.weight.grad[0, 0] = float("inf")

    model, memory = linear(), Memory(every=1)
    with pytest.raises(FloatingPointError, match=r"weight is not finite.*epoch 4"):
        fit(model, ONES, ZEROS, plain(epochs=9), batch_size=2, seed=0, strategies=[Infinite()], checkpoints=memory)
    assert [progress.step for _, progress in memory.kept] == [1, 2, 3]


def test_weights_that_are_not_finite_after_the_last_step_are_no_result() -> None:
    class Infinite(Strategy):
        def add_gradient(self) -> None:
            assert model.weight.grad is not None
            model.weight.grad.fill_(float("nan"))

    model = linear()
    with pytest.raises(FloatingPointError, match="weight"):
        fit(model, ONES, ZEROS, plain(epochs=1), batch_size=2, seed=0, classes=2, strategies=[Infinite()])


def test_an_error_in_the_network_comes_out_as_it_is() -> None:
    class Broken(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(Broken(2, 2), Lazy(blobs(20)[0]), blobs(20)[1], loop(), batch_size=8, seed=0)


# The best epoch.


class Judged(nn.Module):
    """One weight a class, and validation answers that a test dictates: row 0 is right in the epochs that are named."""

    def __init__(self, right: Sequence[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.answers = iter(right)

    def forward(self, rows: Tensor) -> Tensor:
        if self.training:
            return rows * 0 + self.weight
        right = torch.arange(len(rows)) < round(next(self.answers) * len(rows))
        return torch.stack([right.float(), 1 - right.float()], 1)


TEN = (torch.zeros(10, 2), torch.zeros(10, dtype=torch.int64))


def judged(scores: Sequence[float], **options: Any) -> tuple[Progress, list[float], float]:
    """Train; returns progress, the weight after each epoch, and in the end."""
    model, after = Judged(scores), []
    patience = {"validation_fraction": 0.1, **options} if "patience" in options else options
    config = plain(epochs=len(scores), learning_rate=0.1, **patience)
    watch = Watch(on_epoch=lambda _: after.append(float(model.weight.detach()[0])))
    done = fit(model, *TEN, config, batch_size=10, seed=0, classes=2, validation=TEN, watch=watch)
    return done, after, float(model.weight.detach()[0])


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.1, 0.5, 0.3], 1), ([0.5, 0.1, 0.1], 0), ([0.1, 0.2, 0.3], 2), ([0.4, 0.4, 0.4], 0)],
)
def test_the_best_epochs_weights_are_the_result_and_the_first_of_equals(scores: list[float], best: int) -> None:
    done, after, result = judged(scores)
    assert done.accuracies == pytest.approx(scores)
    assert done.best == best
    assert result == after[best]
    assert len(set(after)) == len(after)


@pytest.mark.parametrize(
    ("scores", "patience", "epochs"),
    [
        ([0.5, 0.4, 0.4, 0.9], 2, 3),
        ([0.5, 0.4, 0.6, 0.4, 0.4, 0.9], 2, 5),
        ([0.5, 0.4, 0.9], 3, 3),
        ([0.5, 0.5, 0.9], 1, 2),
        ([0.1, 0.2, 0.3], 1, 3),
    ],
)
def test_patience_ends_after_so_many_epochs_that_are_no_better(scores: list[float], patience: int, epochs: int) -> None:
    done, after, result = judged(scores, patience=patience)
    assert len(done.losses) == len(done.accuracies) == len(after) == epochs
    assert done.best is not None
    assert result == after[done.best]


def test_a_training_that_has_lost_patience_takes_no_step_when_it_goes_on() -> None:
    config = plain(epochs=6, validation_fraction=0.1, patience=2)
    run = partial(fit, inputs=TEN[0], labels=TEN[1], config=config, batch_size=10, seed=0, classes=2, validation=TEN)
    whole, memory = Judged([0.5, 0.4, 0.4]), Memory(every=1)
    expected = run(whole, checkpoints=memory)
    resumed = Judged([])
    assert memory.kept[-1][1].step == 3
    assert run(resumed, checkpoints=memory) == expected
    assert torch.equal(resumed.weight, whole.weight)


def test_without_a_row_to_validate_by_the_last_epoch_is_the_result() -> None:
    # A small share of a small window may be no row at all; then no epoch is better than another.
    with_none, without = network(), network()
    config = loop(validation_fraction=0.1, patience=1)
    done = fit(with_none, *blobs(20), config, batch_size=8, seed=0, validation=blobs(0))
    fit(without, *blobs(20), loop(), batch_size=8, seed=0)
    assert (len(done.losses), done.accuracies, done.best) == (3, (), None)
    assert_same_bits(with_none, without)


def test_the_average_is_what_is_validated_and_kept() -> None:
    images, labels = pictures()
    held = pictures(30, seed=3)
    model = convolutions()
    config = loop(epochs=4, learning_rate=0.05, ema_decay=0.9)
    done = fit(model, images, labels, config, batch_size=7, seed=0, validation=held)
    assert done.best is not None
    assert accuracy(model, *held, Compute()) == pytest.approx(done.accuracies[done.best])


def test_validation_changes_nothing_but_which_epoch_is_the_result() -> None:
    with_it, without = convolutions(), convolutions()
    seen: list[dict[str, Tensor]] = []
    watch = Watch(on_epoch=lambda _: seen.append(weights(with_it)))
    train(with_it, loop(ema_decay=0.0), validation=pictures(12, seed=9), watch=watch)
    train(without, loop(ema_decay=0.0))
    assert all(torch.equal(value, seen[-1][name]) for name, value in without.state_dict().items())


@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_accuracy_by_hand(batch_rows: int) -> None:
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [0.0, 5.0], [2.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 1, 1])
    assert accuracy(nn.Identity(), points, labels, Compute(), batch_rows) == pytest.approx(3 / 5)


# Rates.


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
def test_warmup_and_cosine_by_hand(step: int, steps: int, factor: float) -> None:
    assert rate(step, steps, loop()) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [0.5, 1, 1, 1, 1, 1, 1]), ("exponential", [0.5, 1, 1, 0.01**0.25, 0.1, 0.01**0.75, 0.01])],
)
def test_other_schedules_by_hand(schedule: str, factors: list[float]) -> None:
    config = loop(schedule=schedule, warmup=1 / 3)
    assert [rate(step, 6, config) for step in range(7)] == pytest.approx(factors)


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 400])
@pytest.mark.parametrize("schedule", ["cosine", "exponential", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
def test_rate_rises_to_the_peak_then_falls_and_stays_within_its_bounds(
    steps: int, schedule: str, warmup: float
) -> None:
    factors = [rate(step, steps, loop(schedule=schedule, warmup=warmup)) for step in range(steps + 1)]
    peak = factors.index(max(factors))
    assert max(factors) == 1.0
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert all(0 <= factor <= 1 for factor in factors)
