"""What a version remembers of its windows, and what the next one will: its exemplars."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import torch

from components.core.config import TrainingConfig
from components.core.exemplars import rank_exemplars, read_exemplars
from components.core.registry import EXEMPLARS, Registry
from components.core.windows import Known, Window
from components.train.replay import choose_herding, choose_reservoir, draw_priorities

CANDIDATE = ("window", "sha256", "label", "priority")


def remembered(registry: Registry, version: str, windows: Sequence[Window], seed: int) -> pa.Table:
    """What a version remembers of some of its windows, columns as in `CANDIDATE`.

    All of their labelled training rows, where the version is from before exemplars were kept.

    Raises:
        IntegrityError: See `Registry.read_file`.
    """
    if EXEMPLARS not in registry.manifest(version).files:
        return candidates(windows, (), seed)
    exemplars = read_exemplars(registry, version)
    wanted = pa.array([window.document.id for window in windows], pa.string())
    return exemplars.filter(pc.is_in(exemplars["window"], wanted)).select(list(CANDIDATE))


def candidates(windows: Sequence[Window], earlier: Sequence[Window], seed: int) -> pa.Table:
    """The labelled training rows of windows that no earlier one holds, columns as in `CANDIDATE`."""
    known = Known(earlier)
    tables = []
    for window in windows:
        rows = known.new_rows(window, "train", ("sha256", "label"))
        known.add(window)
        rows = rows.filter(pc.is_valid(rows["label"]))
        digests = rows["sha256"].to_pylist()
        tables.append(
            pa.table(
                {
                    "window": pa.array([window.document.id] * len(digests), pa.string()),
                    "sha256": rows["sha256"],
                    "label": rows["label"],
                    "priority": draw_priorities(digests, seed).numpy(),
                }
            )
        )
    empty = pa.table({name: pa.array([], pa.float64() if name == "priority" else pa.string()) for name in CANDIDATE})
    return pa.concat_tables([empty, *tables])


def choose_exemplars(rows: pa.Table, config: TrainingConfig, features: torch.Tensor | None) -> pa.Table:
    """Choose what is remembered, columns as in `exemplars.SCHEMA`, in the order of choice.

    Args:
        rows: What was remembered so far, and what is new; columns as in `CANDIDATE`.
        config: `exemplars` (how many) and `exemplar_choice`.
        features: float (n, d), of the same rows, for herding.
    """
    classes = {label: number for number, label in enumerate(sorted(set(rows["label"].to_pylist())))}
    labels = torch.tensor([classes[label] for label in rows["label"].to_pylist()], dtype=torch.int64)
    if config.exemplar_choice == "herding":
        assert features is not None
        chosen = choose_herding(labels, config.exemplars, features)
    else:
        chosen = choose_reservoir(labels, config.exemplars, torch.tensor(rows["priority"].to_numpy()))
    return rank_exemplars(rows.take(pa.array(chosen.numpy())))
