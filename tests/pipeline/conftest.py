"""What the pipeline tests share: folders of real digits, small configurations, and the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from pipelines.demo import write_folder

RETRAIN = Path(sys.executable).parent / "retrain"
# Small enough that a run takes seconds, most of it imports.
SMALL: dict[str, Any] = {
    "store": {"uri": "store"},
    "ingest": {"holdout_fraction": 0.3},
    "training": {
        "architecture": "small-cnn",
        "image_size": 16,
        "channels": 1,
        "strategies": {"retrain": {"epochs": 12, "learning_rate": 0.004}},
    },
    "gate": {"min_accuracy": 0.7, "old_margin": 0.15, "new_margin": 0.3},  # holdouts of some twenty rows
    "validation": {"min_images": 20},
    "promotion": {"exports": []},  # a quarter of a minute each
}


def retrain(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would, in a process of its own."""
    return subprocess.run(
        [RETRAIN, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env={**os.environ}
    )


def executed(progress: str) -> list[str]:
    """The tasks that a run started, in order, read from what it printed on the way."""
    return re.findall(r"^ *[\d.]+ s  ([a-z-]+) \.\.\.$", progress, re.MULTILINE)


def write_digits(folder: Path, digits: tuple[int, ...], start: int, count: int) -> Path:
    """Write `count` scans of some digits, from the `start`-th such scan on."""
    data = load_digits()
    pick = np.flatnonzero(np.isin(data.target, digits))[start : start + count]
    assert len(pick) == count
    write_folder(folder, ((data.images[pick] * 255 / 16).astype(np.uint8), data.target[pick]))
    return folder


def write_config(folder: Path, changes: Mapping[str, Any] | None = None, name: str = "retrain.yaml") -> Path:
    """Write SMALL with some sections changed key by key."""
    config = {section: dict(values) for section, values in SMALL.items()}
    for section, values in (changes or {}).items():
        config[section] = {**config.get(section, {}), **values}
    path = folder / name
    path.write_text(yaml.safe_dump(config))
    return path


def snapshot(store: Path) -> dict[str, bytes]:
    """Every file of a directory store, to compare before and after."""
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, and a store in which a first champion was promoted on the digits 0, 1 and 2."""
    folder = tmp_path_factory.mktemp("promoted")
    config = write_config(folder)
    write_digits(folder / "first", (0, 1, 2), 0, 200)
    done = retrain("run", folder / "first", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    return folder
