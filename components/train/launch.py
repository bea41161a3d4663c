"""Where a training runs: in this process, in one process a GPU of this pod, or in the pods of a TrainJob.

All three run the same function and leave their result in the checkpoints; a launcher only starts it, passes SIGTERM on
and tells how it ended.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from components.core.config import TrainingConfig
from components.core.errors import ConfigurationError, RunFailed
from components.train.checkpoint import Attempt, Checkpoints
from components.train.interruption import Interruption, Preempted

logger = logging.getLogger(__name__)
SHARED_MEMORY, LEAST_SHARED_BYTES = "/dev/shm", 2**30  # NCCL's buffers between the GPUs of one pod
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Call:
    """Arguments of the worker: where the configuration is, the run, the window, and which rung of the plan."""

    config_path: str
    run_id: str
    window: str
    rung: int

    @property
    def arguments(self) -> list[str]:
        """The same as words of a command line."""
        return [self.config_path, self.run_id, self.window, str(self.rung)]


def launch(
    call: Call,
    config: TrainingConfig,
    checkpoints: Checkpoints,
    here: Callable[[Interruption], None],
    gpus: int,
) -> None:
    """Train until the result is among the checkpoints.

    A batch that does not fit into memory is cut into twice as many pieces, and the training goes on from where it was.

    Args:
        call: What to train.
        config: Where.
        checkpoints: Of this training.
        here: Trains in this process.
        gpus: How many this pod has.

    Raises:
        Preempted: Told to stop; a checkpoint is kept.
        RunFailed: A process of several ended in an error.
        ConfigurationError: Not even two rows fit into memory.
    """
    with Interruption() as interruption:
        while True:
            known = len(checkpoints.attempts())
            try:
                _launch_once(call, config, here, min(gpus, config.batch_size // 2), interruption)
            except Exception as error:
                if not ran_out_of_memory(checkpoints.attempts()[known:]):
                    raise
                _check_pieces(checkpoints, config, error)
                continue
            if interruption.asked:  # in the last step: the result is kept, and there is no time to make a version of it
                raise Preempted
            return


def _launch_once(
    call: Call, config: TrainingConfig, here: Callable[[Interruption], None], gpus: int, interruption: Interruption
) -> None:
    if config.launcher == "trainjob":
        from components.train.trainjob import train_on_nodes

        train_on_nodes(call.arguments, config, stop_asked=lambda: interruption.asked)
    elif gpus > 1:
        run_processes(call, gpus, interruption)
    else:
        here(interruption)


def ran_out_of_memory(attempts: Sequence[Attempt]) -> bool:
    """Whether one of these attempts ended for want of memory, in this process or in another."""
    return any(attempt.ended == "out of memory" for attempt in attempts)


def pieces_needed(checkpoints: Checkpoints) -> int:
    """Into how many pieces a batch has to be cut: twice as many for each attempt that ran out of memory."""
    return int(2 ** sum(attempt.ended == "out of memory" for attempt in checkpoints.attempts()))


def _check_pieces(checkpoints: Checkpoints, config: TrainingConfig, error: Exception) -> None:
    pieces = pieces_needed(checkpoints)
    if pieces > config.batch_size // 2:
        raise ConfigurationError(
            f"not even {2 * config.batch_size // pieces} images fit into memory at once: {error}",
            expected="a GPU with more memory, or smaller images",
            next_command="lower training.image_size, or choose another gpu_type",
        ) from error
    logger.warning("train: out of memory; going on with batches of %d in %d pieces", config.batch_size, pieces)


def run_processes(call: Call, processes: int, interruption: Interruption) -> None:
    """Start one worker a GPU under torchrun, and wait for all of them.

    Raises:
        Preempted: Told to stop, and they have kept a checkpoint.
        RunFailed: One of them ended in an error; torchrun has ended the others.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
        *("-m", "components.train.worker", *call.arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    if shutil.disk_usage(SHARED_MEMORY).total < LEAST_SHARED_BYTES:
        logger.warning("train: %s is small, GPUs exchange gradients through sockets: mount more memory", SHARED_MEMORY)
        environment["NCCL_SHM_DISABLE"] = "1"
    child = subprocess.Popen(command, env=environment)
    passed_on = False
    while child.poll() is None:
        if interruption.asked and not passed_on:
            child.send_signal(signal.SIGTERM)
            passed_on = True
        try:
            child.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    if interruption.asked:
        raise Preempted
    if child.returncode != 0:
        raise RunFailed(
            f"one of {processes} training processes ended with {child.returncode}",
            expected="all of them to end with 0",
            next_command="read the lines of this step's log above; run again to go on from the last checkpoint",
        )
