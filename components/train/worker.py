"""One process of several that train together: `torchrun -m components.train.worker CONFIG RUN WINDOW RUNG`.

torchrun says who the others are. The result is left among the checkpoints. Exit codes: 0 done, 143 told to stop (and a
checkpoint kept), 1 an error.
"""

from __future__ import annotations

import logging
import os
import sys

import torch

from components.core import logs
from components.core.runs import open_run
from components.train.compute import choose_compute
from components.train.distributed import process_group
from components.train.interruption import Interruption
from components.train.rung import train_rung


def main(arguments: list[str]) -> None:
    """Train this process's part."""
    config_path, run_id, window, rung = arguments
    # One voice is enough; the others are heard when something is wrong.
    logs.configure(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    record = open_run(config_path, run_id)
    compute = choose_compute(record.config.training)
    if compute.device.type == "cuda":
        torch.cuda.set_device(compute.device)
    with Interruption() as interruption, process_group(compute.device):
        train_rung(record, window, int(rung), interruption)


if __name__ == "__main__":
    main(sys.argv[1:])
