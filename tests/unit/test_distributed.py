"""Two real processes on loopback: they train as one does, stop together, and may become one on the way.

Both start once for all tests here and wait for work; whatever they hold is kept by them, tensors travel as bytes.
"""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from components.core.recipes import Augmentation, LoopConfig
from components.core.storage import DirectoryStore
from components.train import distributed
from components.train.checkpoint import Checkpoints, Progress
from components.train.compute import CPU
from components.train.distributed import CpuSyncBatchNorm
from components.train.interruption import Preempted
from components.train.loop import Watch, fit
from components.train.strategy import Strategy

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
SECONDS = 120.0  # importing torch takes two on an idle machine; a hang is a failure, not an endless test


def serve(rank: int, port: int, work: Connection) -> None:
    """Be one of two processes: do what is sent, send back what it gives."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
    }
    torch.set_num_threads(1)
    with distributed.process_group(CPU):
        while (task := work.recv()) is not None:
            function, arguments = task
            try:
                work.send(function(**arguments))
            except Exception as error:  # noqa: BLE001  # raised in the test
                work.send(error)


class Pair:
    """Two processes of one group, that wait for work."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """Let both do the same at once. Returns what each gave, by rank; an error is raised."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers = []
        until = time.monotonic() + SECONDS
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(until - time.monotonic()):
                self.end()
                pytest.fail(f"process {rank} does not answer")
            answers.append(pipe.recv())
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    started = Pair()
    yield started
    started.end()


# What they agree on.


def agree() -> dict[str, Any]:
    rank = distributed.rank()
    value = torch.tensor(rank + 1.0)
    total = distributed.sum_of_all(value)
    return {
        "rank": rank,
        "of": distributed.world_size(),
        "first": distributed.is_first(),
        "any": distributed.any_of_all(rank == 0, rank == 1, False),
        "sum": float(total),
        "untouched": float(value),
        "share": distributed.share_of(torch.arange(5)).tolist(),
    }


def test_two_know_who_they_are_and_agree(pair: Pair) -> None:
    common = {"of": 2, "any": [True, True, False], "sum": 3.0}
    first, second = pair.run(agree)
    assert first == {**common, "rank": 0, "first": True, "untouched": 1.0, "share": [0, 1, 2]}
    assert second == {**common, "rank": 1, "first": False, "untouched": 2.0, "share": [3, 4]}


def test_one_alone_agrees_with_itself() -> None:
    alone = agree()
    assert alone == {
        "rank": 0,
        "of": 1,
        "first": True,
        "any": [True, False, False],
        "sum": 1.0,
        "untouched": 1.0,
        "share": [0, 1, 2, 3, 4],
    }


def look_after(file: Path) -> bool:
    with distributed.first_alone(distributed.is_first()):
        found = file.exists()
        if not found:
            time.sleep(0.2)
            file.write_text("done")
    return found


def test_the_second_begins_when_the_first_is_done(pair: Pair, tmp_path: Path) -> None:
    assert pair.run(look_after, file=tmp_path / "file") == [False, True]


def train_alone() -> float:
    """Train a little before the others do, as for a new head, or in the trials of a search."""
    model = network()
    with distributed.first_alone(distributed.is_first()):
        assert distributed.world_size() == 1
        fit(model, *pictures(8), loop(), batch_size=4, seed=0)
    assert distributed.world_size() == 2
    return sum(float(parameter.detach().sum()) for parameter in model.parameters())


def test_each_may_train_while_the_others_wait(pair: Pair) -> None:
    assert pair.run(train_alone) == [train_alone_here()] * 2


def train_alone_here() -> float:
    model = network()
    fit(model, *pictures(8), loop(), batch_size=4, seed=0)
    return sum(float(parameter.detach().sum()) for parameter in model.parameters())


# Batch norm.


def layer_of(kind: type[nn.modules.batchnorm._BatchNorm], channels: int, options: dict[str, Any]) -> nn.Module:
    layer: Any = kind(channels, **options)
    if layer.affine:
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, channels))
            layer.bias.copy_(torch.linspace(-1, 1, channels))
    return layer  # type: ignore[no-any-return]


def passed(layer: nn.Module, rows: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and statistics of two passes, the second in evaluation mode."""
    rows = rows.clone().requires_grad_()
    outputs = layer(rows)
    (outputs * wanted).sum().backward()
    assert rows.grad is not None
    found = {"outputs": outputs.detach(), "rows": rows.grad}
    found |= {f"gradient of {n}": p.grad for n, p in layer.named_parameters() if p.grad is not None}
    found |= dict(layer.named_buffers())
    if layer.state_dict().keys() & {"running_mean"}:
        found["evaluated"] = layer.eval()(rows).detach()
    return {name: value.contiguous() for name, value in found.items()}


def pass_through(rows: bytes, options: dict[str, Any]) -> bytes:
    tensors = load(rows)
    mine = distributed.share_of(torch.arange(len(tensors["rows"])))
    layer = layer_of(CpuSyncBatchNorm, tensors["rows"].shape[1], options)
    return save(passed(layer, tensors["rows"][mine], tensors["wanted"][mine]))


@pytest.mark.parametrize("shape", [(7, 4), (5, 3, 2, 3), (2, 3), (3, 2, 5)])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": 0.5}], ids=str)
def test_batch_norm_over_both_is_batch_norm_of_the_joined_rows(
    pair: Pair, shape: tuple[int, ...], mean: float, options: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Values that float32 holds exactly, so that what differs is the arithmetic.
    rows = (torch.randint(-100, 100, shape, generator=generator) / 64).float() + mean
    wanted = torch.randn(shape, generator=generator)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    exact = layer_of(kind, shape[1], options).double()
    expected = passed(exact, rows.double(), wanted.double())
    answers = [
        load(data) for data in pair.run(pass_through, rows=save({"rows": rows, "wanted": wanted}), options=options)
    ]
    for name, value in expected.items():
        if name.startswith("gradient"):
            found = answers[0][name] + answers[1][name]  # each knows its rows; DDP adds them up
        elif name in ("outputs", "rows", "evaluated"):
            found = torch.cat([answer[name] for answer in answers])
        else:
            assert torch.equal(answers[0][name], answers[1][name]), name
            found = answers[0][name]
        torch.testing.assert_close(
            found.double(), value.double(), rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


# Training.


class ToUnit(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 255 - 0.5


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            ToUnit(),
            nn.Conv2d(3, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )


def pictures(rows: int) -> tuple[Tensor, Tensor]:
    """Noise, brighter in one channel for each class."""
    labels, generator = torch.arange(rows) % 3, torch.Generator().manual_seed(0)
    noise = torch.randint(0, 150, (rows, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return noise + (80 * nn.functional.one_hot(labels, 3))[:, :, None, None].to(torch.uint8), labels


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a process is left with: its weights, how far it is, and where it was stopped."""

    weights: bytes
    progress: Progress | None
    stopped: int | None


class Pull(Strategy):
    """A pull on the weights, as it is added after gradients have travelled."""

    def begin_with(self, model: nn.Module) -> "Pull":
        self.parameters = list(model.parameters())
        return self

    def add_gradient(self) -> None:
        for parameter in self.parameters:
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach(), alpha=0.01)


def train(
    config: LoopConfig,
    rows: int = 41,
    batch_size: int = 8,
    folder: Path | None = None,
    stop_at: int | None = None,
    asked: int = 0,
    validated: bool = False,
) -> Result:
    """Train, in a directory of checkpoints if one is named; process `asked` alone is told to stop."""
    steps = iter(range(1, 10**6))
    stop = Watch(stop_asked=lambda: next(steps) == stop_at and distributed.rank() == asked)
    model = network()
    more: dict[str, Any] = {}
    if folder is not None:
        more["checkpoints"] = Checkpoints(DirectoryStore(folder), "digits", "abc", 1e9, writer=distributed.is_first())
    if validated:
        more["validation"] = pictures(20)
    progress, stopped = None, None
    try:
        progress = fit(
            model,
            *pictures(rows),
            config,
            batch_size=batch_size,
            seed=3,
            watch=stop,
            strategies=[Pull().begin_with(model)],
            **more,
        )
    except Preempted as told:
        stopped = told.step
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    return Result(weights=save(weights), progress=progress, stopped=stopped)


def loop(**changes: Any) -> LoopConfig:
    return LoopConfig(**{"epochs": 3, "learning_rate": 0.03, "optimizer": "sgd", **changes})


def assert_close(one: Result, other: Result) -> None:
    found, expected = load(one.weights), load(other.weights)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    if one.progress and other.progress:
        assert one.progress.step == other.progress.step
        assert one.progress.losses == pytest.approx(other.progress.losses, rel=1e-3)


CONFIGS = {
    "sgd": loop(),
    "adamw": loop(optimizer="adamw", learning_rate=0.003),
    "accumulate-ema-clip": loop(accumulate=2, ema_decay=0.8, clip_norm=0.5),
    "augmented": loop(augmentation=Augmentation(shift=0.2, flip=True, zoom=0.4, brightness=0.3, erase=0.2)),
    "balanced": loop(balance="sampler", label_smoothing=0.1),
    "weighted": loop(balance="loss", schedule="exponential"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_two_train_as_one_does(pair: Pair, name: str) -> None:
    first, second = pair.run(train, config=CONFIGS[name])
    assert first == second, "every process holds the same weights, bit for bit"
    assert_close(first, train(CONFIGS[name]))


@pytest.mark.parametrize("rows", [2, 3, 5, 9])
def test_few_and_odd_rows_are_shared_too(pair: Pair, rows: int) -> None:
    config = loop(accumulate=2)
    first, second = pair.run(train, config=config, rows=rows, batch_size=4)
    assert first == second
    if rows > 3:  # with fewer, a mean over two or three rows is no measure for either
        assert_close(first, train(config, rows=rows, batch_size=4))


def test_all_choose_the_same_best_epoch(pair: Pair) -> None:
    config = loop(epochs=5, validation_fraction=0.1, patience=1)
    first, second = pair.run(train, config=config, validated=True)
    assert first == second
    assert first.progress is not None
    assert first.progress.best is not None


@pytest.mark.parametrize("asked", [0, 1])
def test_both_stop_at_the_same_step_when_one_is_asked(pair: Pair, asked: int, tmp_path: Path) -> None:
    answers = pair.run(train, config=loop(), folder=tmp_path / "store", stop_at=7, asked=asked)
    assert [answer.stopped for answer in answers] == [7, 7]
    kept = Checkpoints(DirectoryStore(tmp_path / "store"), "digits", "abc", 1.0).latest()
    assert kept is not None
    assert kept.progress.step == 7


@pytest.mark.parametrize("name", ["sgd", "adamw", "accumulate-ema-clip", "augmented"])
@pytest.mark.parametrize("starts", ["two", "one"])
def test_a_training_may_go_on_with_another_number_of_processes(
    pair: Pair, name: str, starts: str, tmp_path: Path
) -> None:
    config, folder = CONFIGS[name], tmp_path / "store"
    if starts == "two":
        assert [answer.stopped for answer in pair.run(train, config=config, folder=folder, stop_at=4)] == [4, 4]
        finished = train(config, folder=folder)
    else:
        assert train(config, folder=folder, stop_at=4).stopped == 4
        finished, other = pair.run(train, config=config, folder=folder)
        assert finished == other
    assert_close(finished, train(config))


def test_two_that_go_on_as_two_end_with_the_same_bits(pair: Pair, tmp_path: Path) -> None:
    config, folder = CONFIGS["accumulate-ema-clip"], tmp_path / "store"
    whole = pair.run(train, config=config)
    pair.run(train, config=config, folder=folder, stop_at=5)
    assert pair.run(train, config=config, folder=folder) == whole


def drop_out() -> list[int]:
    """Which features this process dropped in each step, as one number."""
    seen: list[int] = []

    class Look(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            seen.append(int((rows.detach() == 0).flatten().long() @ (2 ** torch.arange(rows.numel()))))
            return rows

    model = nn.Sequential(nn.Dropout(0.5), Look(), nn.Linear(3, 2))
    rows, labels = torch.ones(16, 3), torch.arange(16) % 2
    fit(model, rows, labels, loop(epochs=20), batch_size=16, seed=0)
    return seen


def test_each_process_drops_out_other_features(pair: Pair) -> None:
    first, second = pair.run(drop_out)
    assert len(first) == len(second) == 20
    assert sum(a == b for a, b in zip(first, second, strict=True)) <= 1


def diverge() -> str:
    rows, labels = pictures(40)
    rows = rows.float()
    rows[int(rows.shape[0]) - 1] = float("nan")
    try:
        fit(network(), rows, labels, loop(), batch_size=8, seed=0)
    except FloatingPointError as error:
        return str(error)
    return "nothing"


def test_all_notice_a_loss_that_one_sees(pair: Pair) -> None:
    first, second = pair.run(diverge)
    assert first == second
    assert "not finite" in first


def test_the_pair_is_still_in_step(pair: Pair) -> None:
    assert [answer["sum"] for answer in pair.run(agree)] == [3.0, 3.0]
