"""Launching a training: what follows from running out of memory, from errors and from being cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from components.core.config import TrainingConfig
from components.core.errors import ConfigurationError, RunFailed
from components.core.storage import DirectoryStore
from components.train.checkpoint import Checkpoints, Ending, Progress, Snapshot
from components.train.interruption import Interruption, Preempted
from components.train.launch import Call, launch, pieces_needed, run_processes
from components.train.rung import check_budget

CALL = Call(config_path="retrain.yaml", run_id="run-1", window="w", rung=1)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(DirectoryStore(tmp_path), "digits", "training", 60.0)


def ending(checkpoints: Checkpoints, ended: Ending) -> None:
    checkpoints.begin_attempt()
    checkpoints.end_attempt(ended)


def out_of_memory(checkpoints: Checkpoints, times: int) -> Callable[[Interruption], None]:
    """A training that does not fit until a batch is in 2**times pieces."""

    def here(_interruption: Interruption) -> None:
        if pieces_needed(checkpoints) < 2**times:
            ending(checkpoints, "out of memory")
            raise torch.OutOfMemoryError("no room")
        ending(checkpoints, "finished")

    return here


def test_a_batch_that_does_not_fit_is_cut_until_it_does(checkpoints: Checkpoints) -> None:
    launch(CALL, TrainingConfig(batch_size=64), checkpoints, out_of_memory(checkpoints, 3), gpus=0)
    assert [a.ended for a in checkpoints.attempts()] == [*["out of memory"] * 3, "finished"]
    assert pieces_needed(checkpoints) == 8


def test_two_rows_that_do_not_fit_are_an_error_that_says_so(checkpoints: Checkpoints) -> None:
    with pytest.raises(ConfigurationError, match="images fit into memory"):
        launch(CALL, TrainingConfig(batch_size=8), checkpoints, out_of_memory(checkpoints, 10), gpus=0)


def test_another_error_is_not_tried_again(checkpoints: Checkpoints) -> None:
    calls = []

    def here(_interruption: Interruption) -> None:
        calls.append(1)
        ending(checkpoints, "error")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        launch(CALL, TrainingConfig(), checkpoints, here, gpus=0)
    assert calls == [1]


def test_an_error_after_running_out_of_memory_is_not_taken_for_it(checkpoints: Checkpoints) -> None:
    ending(checkpoints, "out of memory")

    def here(_interruption: Interruption) -> None:
        raise ValueError("no attempt was filed")

    with pytest.raises(ValueError, match="no attempt was filed"):
        launch(CALL, TrainingConfig(), checkpoints, here, gpus=0)


def test_a_process_that_does_not_write_still_tells_that_it_ran_out_of_memory(tmp_path: Path) -> None:
    writer, other = (
        Checkpoints(DirectoryStore(tmp_path), "digits", "training", 60.0, writer=first) for first in (True, False)
    )
    other.begin_attempt()
    other.end_attempt("error")
    assert writer.attempts() == []
    other.begin_attempt()
    other.end_attempt("out of memory")
    assert pieces_needed(writer) == 2


def test_told_to_stop_in_the_last_step_no_version_is_made(checkpoints: Checkpoints) -> None:
    def here(interruption: Interruption) -> None:
        ending(checkpoints, "finished")
        interruption.asked = True

    with pytest.raises(Preempted) as stopped:
        launch(CALL, TrainingConfig(), checkpoints, here, gpus=0)
    assert stopped.value.code == 143


def job(checkpoints: Checkpoints, **config: Any) -> Any:
    return SimpleNamespace(checkpoints=checkpoints, config=SimpleNamespace(training=TrainingConfig(**config)))


def keep_a_step(checkpoints: Checkpoints) -> None:
    snapshot = Snapshot(tensors={"weight": torch.ones(1)}, progress=Progress(step=5))
    checkpoints.save(snapshot, wait=True)


def test_errors_within_the_budget_go_on_and_beyond_it_start_afresh(checkpoints: Checkpoints) -> None:
    keep_a_step(checkpoints)
    for attempt in range(3):
        ending(checkpoints, "error")
        check_budget(checkpoints.attempts(), job(checkpoints, max_errors=2))
        assert (checkpoints.latest() is not None) == (attempt < 2)


def test_preemptions_do_not_count_as_errors_and_have_a_budget_of_their_own(checkpoints: Checkpoints) -> None:
    keep_a_step(checkpoints)
    for _ in range(3):
        ending(checkpoints, "preempted")
    checkpoints.begin_attempt()  # and one that was lost
    check_budget(checkpoints.attempts(), job(checkpoints, max_errors=0, max_preemptions=4))
    assert checkpoints.latest() is not None
    with pytest.raises(RunFailed, match="cut off 4 times"):
        check_budget(checkpoints.attempts(), job(checkpoints, max_preemptions=3))


def test_a_process_that_fails_is_told_and_one_that_was_stopped_is_no_failure(tmp_path: Path) -> None:
    """torchrun starts the worker, which finds no configuration: two processes, both end."""
    missing = Call(config_path=str(tmp_path / "none.yaml"), run_id="run-1", window="w", rung=1)
    with Interruption() as interruption:
        with pytest.raises(RunFailed, match="one of 2 training processes"):
            run_processes(missing, 2, interruption)
        interruption.asked = True
        with pytest.raises(Preempted):
            run_processes(missing, 2, interruption)
