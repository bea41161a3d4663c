"""The training loop: epochs, steps, rates. One for all strategies and machines.

Whatever is random is drawn from the number of the step (`randomness`), and rates are a function of it, so a snapshot
holds tensors and a number, and a training that goes on from one ends with the same bits. Not covered: what changes from
step to step (`state`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.core.errors import ConfigurationError
from components.core.recipes import LoopConfig
from components.train import distributed
from components.train.augmentation import NOISE, Mixing, augment
from components.train.batches import Gathered, Rows, Schedule, prefetch
from components.train.checkpoint import Keeper, NoCheckpoints, Progress
from components.train.compute import Compute
from components.train.interruption import Preempted
from components.train.objective import Objective, sampling_weights
from components.train.randomness import Purpose, generator, seed_torch, torch_seed
from components.train.state import State
from components.train.strategy import Batch, Strategy

LEAST_RATE = 0.01  # of the peak, where the exponential schedule ends


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the loop tells others, and what it asks them, in every step."""

    on_rows: Callable[[int], object] = lambda rows: None
    on_epoch: Callable[[Progress], object] = lambda progress: None
    stop_asked: Callable[[], bool] = lambda: False


def fit(
    network: nn.Module,
    inputs: Rows,
    labels: Tensor,
    config: LoopConfig,
    *,
    batch_size: int,
    seed: int,
    classes: int | None = None,
    compute: Compute = Compute(),  # noqa: B008  # frozen
    strategies: Sequence[Strategy] = (),
    validation: tuple[Rows, Tensor] | None = None,
    checkpoints: Keeper = NoCheckpoints(),  # noqa: B008  # holds nothing
    pieces: int = 1,
    size_at: Callable[[int], int] | None = None,
    watch: Watch = Watch(),  # frozen
) -> Progress:
    """Minimise cross-entropy, and what the strategies add to it, in place.

    Args:
        network: A classifier, or any network from rows to logits (n, classes); weights with `requires_grad` move.
        inputs: n >= 2 rows, on any device.
        labels: Class indices, int64, shape (n,).
        config: How the steps are taken.
        batch_size: Rows that go through the network at once, on all processes together.
        seed: Of everything that is drawn.
        classes: How many there are; by default, as many as labels name.
        compute: Device and precision.
        strategies: Each does its part.
        validation: Rows and labels to choose the best epoch by. Without any row the last epoch is the result.
        checkpoints: Where to go on from, and where to keep snapshots.
        pieces: Into how many parts a batch is cut because it does not fit into memory. The step stays the same but for
            batch norm, which sees a piece at a time, and mixing, which pairs the rows of a piece.
        size_at: Side of the images in an epoch, in pixels, where it grows.
        watch: Who is told.

    Returns:
        Steps taken, the mean loss of each epoch (nats), validation accuracies.

    Raises:
        FloatingPointError: The loss, or a weight, is not finite any more; nothing is kept of it.
        Preempted: `watch.stop_asked` said so, and a snapshot is kept.
        torch.OutOfMemoryError: With a snapshot of the step before it kept.
    """
    labels = labels.to(compute.device)
    view = compute.place(network)
    weights = sampling_weights(labels) if config.balance == "sampler" else None
    schedule = Schedule(
        rows=len(inputs), step_rows=batch_size * config.accumulate, epochs=config.epochs, seed=seed, weights=weights
    )
    stepper = Stepper(
        view=view,
        labels=labels,
        objective=Objective(labels, classes or int(labels.max()) + 1, config),
        config=config,
        compute=compute,
        strategies=strategies,
        pieces=config.accumulate * pieces,
        seed=seed,
    )

    def judge() -> float:
        assert validation
        return accuracy(network, *validation, compute, max(1, batch_size // pieces))

    if distributed.world_size() > schedule.least_rows:
        raise ConfigurationError(
            f"steps of {schedule.least_rows} images for {distributed.world_size()} processes",
            expected="an image for each of them at least",
            next_command="lower gpu_count, or raise training.batch_size",
        )
    state = State.begin(network, config, compute, checkpoints.latest())
    with _seeds_restored(), closing(prefetch(inputs, schedule.from_step(state.step), compute.device)) as rows:
        _set_mode(view, strategies)
        for gathered in rows:
            if state.finished(config):
                break
            state.begin_step()
            try:
                size = size_at(gathered.step // schedule.steps_an_epoch) if size_at else None
                loss = stepper.take(gathered, state, rate(gathered.step, schedule.steps, config), size)
            except torch.OutOfMemoryError:
                state.undo_step()
                checkpoints.save(state.snapshot(), wait=True)
                raise
            state.count(loss, len(gathered.index))
            watch.on_rows(len(gathered.index))
            checkpoints.beat(state.step)
            if schedule.ends_epoch(gathered.step):
                state.end_epoch(schedule.rows, judge if validation and len(validation[0]) else None)
                watch.on_epoch(state.progress)
                _set_mode(view, strategies)
            if gathered.step + 1 < schedule.steps:
                _keep_if_due(state, checkpoints, watch.stop_asked)
    state.take_best()
    return state.progress


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """What every step needs and none changes."""

    view: nn.Module
    labels: Tensor
    objective: Objective
    config: LoopConfig
    compute: Compute
    strategies: Sequence[Strategy]
    pieces: int
    seed: int

    def take(self, gathered: Gathered, state: State, factor: float, size: int | None) -> Tensor:
        """Take one step of the weights, at `factor` of the peak rate. Returns its mean loss, on the device."""
        for group in state.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        loss = self._gradients(gathered, size)
        for strategy in self.strategies:
            strategy.add_gradient()
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(state.moving, self.config.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.average(self.config.ema_decay)
        return loss

    def _gradients(self, gathered: Gathered, size: int | None) -> Tensor:
        """Accumulate the gradients of a step, piece by piece; each process takes its share of every piece."""
        step, rows = gathered.step, len(gathered.index)
        seed_torch(torch_seed(self.seed, Purpose.DROPOUT, step) + distributed.rank())  # each drops out its own
        rng = generator(self.seed, Purpose.AUGMENTATION, step) if self._random else None
        noise = torch.from_numpy(rng.random((rows, NOISE), dtype="float32")) if rng is not None else None
        total = torch.zeros((), device=self.compute.device)
        pieces = torch.arange(rows).tensor_split(min(self.pieces, max(1, rows // max(2, distributed.world_size()))))
        for number, whole in enumerate(pieces, start=1):
            part = distributed.share_of(whole)
            mine = slice(int(part[0]), int(part[-1]) + 1)
            images = self._images(gathered.rows[mine], noise[mine] if noise is not None else None, size)
            mixing = None
            if rng is not None:
                height, width = images.shape[-2:]
                mixing = Mixing.draw(self.config.mixup, self.config.cutmix, height, width, rng)
            with _last_synchronises(self.view, last=number == len(pieces)):
                loss = self._loss(images, gathered.index[mine].to(self.compute.device, non_blocking=True), mixing)
                # A sum over processes is wanted, and DDP averages: each counts for its share of the step's rows.
                (loss * (len(part) * distributed.world_size() / rows)).backward()
            total += loss.detach() * (len(part) / rows)
        return distributed.sum_of_all(total)

    def _images(self, rows: Tensor, noise: Tensor | None, size: int | None) -> Tensor:
        if rows.dim() != 4:
            return rows
        rows = rows.contiguous(memory_format=torch.channels_last)
        if noise is not None:
            rows = augment(rows, self.config.augmentation, noise.to(rows.device, non_blocking=True))
        if size is not None and size != rows.shape[-1]:
            rows = nn.functional.interpolate(rows.float(), size=(size, size), mode="bilinear", antialias=True)
        return rows

    @property
    def _random(self) -> bool:
        """Whether images are changed or mixed at all."""
        return self.config.augmentation.active or bool(self.config.mixup or self.config.cutmix)

    def _loss(self, images: Tensor, index: Tensor, mixing: Mixing | None) -> Tensor:
        labels = self.labels[index]
        with self.compute.autocast():
            outputs = self.view(mixing.images(images) if mixing else images)
        loss = self.objective(outputs, labels, mixing)
        batch = Batch(index=index, labels=labels, mixing=mixing, outputs=outputs)
        for strategy in self.strategies:
            if (term := strategy.loss(batch)) is not None:
                loss = loss + term
        return loss


def rate(step: int, steps: int, config: LoopConfig) -> float:
    """Factor on the peak rate at a step, in [0, 1]: a linear warm-up, then the configured fall.

    Source:
        Cosine: Loshchilov & Hutter, "SGDR", ICLR 2017; warm-up: Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return LEAST_RATE**done if config.schedule == "exponential" else 1.0


@torch.no_grad()
def accuracy(network: nn.Module, rows: Rows, labels: Tensor, compute: Compute, batch_rows: int = 512) -> float:
    """Share of rows that a network answers rightly, in [0, 1], in evaluation mode."""
    network.eval()
    right = torch.zeros((), dtype=torch.int64, device=compute.device)
    for index in torch.arange(len(rows)).split(batch_rows):
        with compute.autocast():
            answers = network(rows[index.to(rows.device)].to(compute.device)).argmax(1)
        right += (answers == labels[index.to(labels.device)].to(compute.device)).sum()
    return int(right) / max(1, len(rows))


def _keep_if_due(state: State, checkpoints: Keeper, stop_asked: Callable[[], bool]) -> None:
    """Keep a snapshot when it is time, or when any process was told to stop; then all stop at this step."""
    stop, due = distributed.any_of_all(stop_asked(), checkpoints.due())
    if not (stop or due):
        return
    checkpoints.save(state.snapshot(), wait=stop)
    if stop:
        raise Preempted(state.step)


def _set_mode(network: nn.Module, strategies: Sequence[Strategy]) -> None:
    network.train()
    for strategy in strategies:
        strategy.set_mode(network)


@contextmanager
def _last_synchronises(view: nn.Module, *, last: bool) -> Iterator[None]:
    """Several pieces of a step: gradients travel between processes once, with the last."""
    if isinstance(view, nn.parallel.DistributedDataParallel) and not last:
        with view.no_sync():
            yield
    else:
        yield


@contextmanager
def _seeds_restored() -> Iterator[None]:
    """Leave torch's global generators as they were: dropout draws from them."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
