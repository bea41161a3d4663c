"""Kill a training at random steps, by SIGTERM and by SIGKILL: does it end with the same bits, and how much is lost?

Every trial begins with the same planned run (a champion, a window that brings a new digit), starts the training step in
a process of its own, kills it at a random moment of its steps, and starts it again until it ends. The weights must be
those of the training that nobody disturbed, bit for bit. After a SIGTERM nothing may be lost and the exit code must be
143; after a SIGKILL at most one checkpoint interval. Every fifth trial damages the newest checkpoint before going on.

    .venv/bin/python benchmarks/preempt.py [--quick] [--check]
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from sklearn.datasets import load_digits

from components.core.config import load_config
from components.core.contracts import TrainingSummary
from components.core.registry import Registry
from components.core.runs import Run
from components.core.storage import open_store
from components.decide import step as decide
from components.detect_drift import step as detect_drift
from components.ingest import step as ingest
from components.train.checkpoint import Attempt
from components.validate import step as validate
from pipelines.demo import write_folder

INTERVAL_SECONDS = 1.0
SLACK_SECONDS = 1.0  # a busy machine: one step, and writing the checkpoint that was due
EPOCHS = 60
CONFIG = {
    "store": {"uri": "store", "cache": "cache"},
    "training": {
        "architecture": "small-cnn",
        "image_size": 16,
        "channels": 1,
        "cpu_threads": 1,
        "checkpoint_seconds": INTERVAL_SECONDS,
        "strategies": {
            "retrain": {"epochs": 5, "learning_rate": 0.004},
            # Everything that has a state: moments, average, distillation, Fisher information, augmentation, validation.
            "fine-tune": {
                "epochs": EPOCHS,
                "lwf": 1.0,
                "ewc": 10.0,
                "ema_decay": 0.99,
                "mixup": 0.2,
                "augmentation": {"shift": 0.1},
                "validation_fraction": 0.1,
            },
        },
    },
}
TRAIN = "import sys; from components.core import logs; logs.configure(); from components.train import step; "
TRAIN += "step.run(sys.argv[1], sys.argv[2], sys.argv[3], 1)"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A folder in which everything but the training is done, and what the training is called with."""

    house: Path
    run_id: str
    window: str

    def copy(self, folder: Path) -> Planned:
        return Planned(house=Path(shutil.copytree(self.house, folder)), run_id=self.run_id, window=self.window)

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", TRAIN, str(self.house / "retrain.yaml"), self.run_id, self.window]
        with (self.house / "log").open("ab") as log:
            return subprocess.Popen(command, stderr=log)

    @property
    def manifest(self) -> Path | None:
        """What names the training's checkpoints, once there are some; there is one training."""
        return next(self.house.glob("store/checkpoints/classifier/*/manifest.json"), None)

    def attempts(self) -> list[Attempt]:
        files = sorted(self.house.glob("store/checkpoints/classifier/*/attempts/*.json"))
        return [Attempt.model_validate_json(file.read_bytes()) for file in files]

    def result(self) -> tuple[str, float]:
        """SHA-256 of the challenger's weights, and the seconds of its steps."""
        store = open_store(load_config(self.house / "retrain.yaml").store)
        summary = Run(store, self.run_id).need("train-1", TrainingSummary)
        return Registry(store, "classifier").manifest(summary.version).files["model.safetensors"], summary.seconds


def prepare(house: Path) -> Planned:
    """Make the first champion, then go as far as the plan with a second window."""
    house.mkdir()
    config = house / "retrain.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    data = load_digits()
    window = ""
    for number, digits in enumerate(((0, 1, 2), (0, 1, 2, 3))):
        pick = np.flatnonzero(np.isin(data.target, digits))[400 * number : 400 * number + 400]
        folder = house / f"delivery-{number}"
        write_folder(folder, ((data.images[pick] * 255 / 16).astype(np.uint8), data.target[pick]))
        run = f"run-{number}"
        window = ingest.run(str(config), run, str(folder), "auto").id
        validate.run(str(config), run, window)
        detect_drift.run(str(config), run, window)
        decision = decide.run(str(config), run, window)
        assert decision.action == "train", decision.sentence
        if number == 0:
            from components.train import step as train

            version = train.run(str(config), run, window, 1).version
            registry = Registry(open_store(load_config(config).store), "classifier")
            registry.append(
                "promotion",
                version,
                expected_champion=None,
                window=window,
                run_id=run,
                actor="benchmark",
                reason="the first",
            )
    return Planned(house=house, run_id="run-1", window=window)


def wait_for_steps(planned: Planned, process: subprocess.Popen[bytes], known: int) -> None:
    """Return when the process has begun to take steps."""
    while len(planned.attempts()) <= known and process.poll() is None:
        time.sleep(0.02)


def damage_newest(planned: Planned) -> None:
    """Flip a bit in the newest checkpoint of the steps."""
    found = planned.house.glob("store/checkpoints/classifier/*/step-*.safetensors")
    files = sorted(found, key=lambda path: path.stat().st_mtime)
    if files:
        data = bytearray(files[-1].read_bytes())
        data[len(data) // 2] ^= 1
        files[-1].write_bytes(data)


def trial(planned: Planned, kill: signal.Signals, moment: float, expected: str, *, damaged: bool) -> tuple[bool, str]:
    """Kill after `moment` seconds of steps, and go on until the end. Returns whether all held, and what was seen."""
    process = planned.start()
    wait_for_steps(planned, process, 0)
    time.sleep(moment)
    process.send_signal(kill)
    killed_at = time.time()
    code = process.wait()
    before = planned.attempts()[-1:]
    manifest = planned.manifest
    kept = manifest.stat().st_mtime if manifest else killed_at - moment
    lost = max(0.0, killed_at - max(kept, killed_at - moment)) if kill == signal.SIGKILL else 0.0
    if damaged:
        damage_newest(planned)
    again = planned.start()
    wait_for_steps(planned, again, len(before))
    resumed = planned.attempts()[-1].began_at_step if planned.attempts() else 0
    finished = again.wait() == 0
    same = finished and planned.result()[0] == expected
    if before[0].ended == "finished":  # a faster machine than before: there was nothing left to lose
        little, lost = True, 0.0
    elif kill == signal.SIGTERM:
        asked = code == 143 and before[0].ended == "preempted"
        little = asked and (damaged or resumed == before[0].step)
    else:
        little = lost <= INTERVAL_SECONDS + SLACK_SECONDS
    seen = (
        f"{kill.name} after {moment:5.2f} s of steps{', newest checkpoint damaged' if damaged else ''}: went on from "
        f"step {resumed}, {lost:.1f} s lost, {'the same' if same else 'OTHER'} bits{'' if little else ', TOO MUCH'}"
    )
    return same and little, seen


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="4 kills instead of 20")
    arguments.add_argument("--check", action="store_true", help="exit 1 unless every trial held")
    options = arguments.parse_args()
    rng, trials = random.Random(0), 4 if options.quick else 20
    with tempfile.TemporaryDirectory(prefix="retrain-preempt-") as folder:
        prepared = prepare(Path(folder, "prepared"))
        whole = prepared.copy(Path(folder, "whole"))
        process = whole.start()
        assert process.wait() == 0, (whole.house / "log").read_text()
        expected, length = whole.result()
        held = 0
        for number in range(trials):
            kill = (signal.SIGTERM, signal.SIGKILL)[number % 2]
            moment = 0.95 * length * (number + rng.random()) / trials
            house = Path(folder, f"trial-{number}")
            good, seen = trial(prepared.copy(house), kill, moment, expected, damaged=number % 5 == 4)
            shutil.rmtree(house)
            held += good
            print(f"{number + 1:3d}/{trials} {'held' if good else 'FAILED'}: {seen}", flush=True)
    print(f"{held} of {trials} killed trainings ended with the bits of the undisturbed one, at most one interval lost")
    return int(options.check and held < trials)


if __name__ == "__main__":
    sys.exit(main())
