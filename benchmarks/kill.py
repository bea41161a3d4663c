"""Kill `retrain run` at random moments (SIGKILL, its steps too): is the store valid, and does running again finish?

Every trial begins with a champion and a delivery that ends in a promotion. After the kill, each window, version and
ledger record that exists must verify; after running again, exactly one promotion must have been added.

    .venv/bin/python benchmarks/kill.py [--quick] [--check]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import yaml
from sklearn.datasets import load_digits

from components.core.config import Config, load_config
from components.core.registry import Registry
from components.core.storage import ObjectStore, open_store
from components.core.windows import Window
from pipelines.demo import write_folder

RETRAIN = Path(sys.executable).parent / "retrain"
CONFIG = {
    "store": {"uri": "store"},
    "ingest": {"holdout_fraction": 0.3},
    "training": {
        "architecture": "small-cnn",
        "image_size": 16,
        "channels": 1,
        "strategies": {"retrain": {"epochs": 15, "learning_rate": 0.004}},
    },
    "gate": {"min_accuracy": 0.6, "old_margin": 0.15, "new_margin": 0.15},
    "promotion": {"exports": []},
}


def prepare(house: Path) -> None:
    """Write two deliveries (digits 0 to 2; then 3 among them) and make the first champion."""
    data = load_digits()
    for name, digits, start, count in (("first", (0, 1, 2), 0, 250), ("second", (0, 1, 2, 3), 400, 250)):
        pick = np.flatnonzero(np.isin(data.target, digits))[start : start + count]
        write_folder(house / name, ((data.images[pick] * 255 / 16).astype(np.uint8), data.target[pick]))
    (house / "retrain.yaml").write_text(yaml.safe_dump(CONFIG))
    subprocess.run(command(house, "first"), check=True, capture_output=True)


def command(house: Path, delivery: str) -> list[str]:
    return [str(RETRAIN), "run", str(house / delivery), "--config", str(house / "retrain.yaml")]


def check_store(config: Config, store: ObjectStore) -> tuple[int, str | None]:
    """Verify all that counts as written. Returns the number of promotions and the champion."""
    windows = [o.key.split("/")[3] for o in store.list_objects("datasets/") if o.key.endswith("/window.json")]
    for identity in windows:
        window = Window.open(store, config.dataset, identity)
        assert sum(1 for _ in window.images(window.rows())) == window.document.usable
    registry = Registry(store, config.model)
    champion = registry.champion()
    if champion:
        registry.verify_version(champion.version)
    return sum(r.kind == "promotion" for r in registry.ledger()), champion.version if champion else None


def trial(prepared: Path, moment: float) -> tuple[bool, str]:
    """Kill after `moment` seconds, check, run again, check. Returns whether all held, and what was seen."""
    with tempfile.TemporaryDirectory(prefix="retrain-kill-") as folder:
        house = Path(shutil.copytree(prepared, Path(folder, "house")))
        config = load_config(house / "retrain.yaml")
        store = open_store(config.store)
        process = subprocess.Popen(
            command(house, "second"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moment)
        ended = process.poll() is not None
        with suppress(ProcessLookupError):  # the last slice may find it ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        promotions, _ = check_store(config, store)
        latest = max(store.list_objects("runs/"), key=lambda o: o.modified).key.rpartition("/")[2]
        again = subprocess.run(command(house, "second"), capture_output=True, text=True, check=False)
        after, _ = check_store(config, store)
        held = again.returncode == 0 and after == 2
        where = "after its end" if ended else f"last record {latest}"
        return held, f"killed at {moment:5.1f} s ({where}), {promotions} promotions then, {after} after running again"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="4 kills instead of 20")
    arguments.add_argument("--check", action="store_true", help="exit 1 unless every trial held")
    options = arguments.parse_args()
    rng = random.Random(0)
    trials = 4 if options.quick else 20
    with tempfile.TemporaryDirectory(prefix="retrain-kill-") as folder:
        prepared = Path(folder, "prepared")
        prepared.mkdir()
        prepare(prepared)
        began = time.monotonic()
        whole = Path(shutil.copytree(prepared, Path(folder, "whole")))
        subprocess.run(command(whole, "second"), check=True, capture_output=True)
        length = time.monotonic() - began
        held = 0
        for number in range(trials):
            moment = length * (number + rng.random()) / trials  # one in each slice of the run
            good, seen = trial(prepared, moment)
            held += good
            print(f"{number + 1:3d}/{trials} {'held' if good else 'FAILED'}: {seen}", flush=True)
    print(f"{held} of {trials} kills left a valid store and were finished by running again")
    return int(options.check and held < trials)


if __name__ == "__main__":
    sys.exit(main())
