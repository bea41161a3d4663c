"""What the tests of promotions share: a version, and a run as far as its gate, with all that a promotion reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from components.core.config import load_config
from components.core.contracts import (
    CheckResult,
    Evaluation,
    HoldoutScores,
    Lineage,
    PairedOutcome,
    RunParameters,
    SliceScores,
    StepDocument,
    Verdict,
    WindowDocument,
)
from components.core.plans import Decision
from components.core.recipes import Recipe
from components.core.registry import Registry
from components.core.runs import Run, StepRecord
from components.core.storage import open_store, to_json

CHECK = CheckResult(
    name="not worse on old", passed=True, conclusive=True, value=0.0, bound=-0.01, threshold=-0.02, sentence="As good."
)
SPEC = {
    "architecture": "small-cnn",
    "classes": ["cat", "dog"],
    "image_size": 8,
    "channels": 1,
    "mean": [0.5],
    "std": [0.25],
}


def write_config(folder: Path, name: str = "retrain.yaml", **sections: Any) -> Path:
    """A configuration of the model `m`, whose promotions export no graph."""
    path = folder / name
    given = {"store": {"uri": "store"}, "model": "m", "dataset": "d", "promotion": {"exports": []}, **sections}
    path.write_text(yaml.safe_dump(given))
    return path


def begin(config_path: Path, run_id: str) -> tuple[Run, Registry]:
    """A run that has begun."""
    config = load_config(config_path)
    run = Run(open_store(config.store), run_id)
    asked = RunParameters(run_id=run_id, model=config.model, dataset="d", source="may", strategy="auto")
    run.begin(config, asked)
    return run, Registry(run.store, config.model)


def file(run: Run, name: str, document: StepDocument) -> None:
    """A record of a step, as its pod would leave it."""
    run.write(StepRecord(step=name, started=datetime.now(UTC), seconds=1.0, document=document))


def save(registry: Registry, weights: bytes, parent: str | None = None) -> str:
    """A version that no network could be made of."""
    files = {"weights": weights, "model.json": json.dumps(SPEC).encode()}
    return registry.save_version({**files, "lineage.json": lineage(parent)})


def save_network(registry: Registry, seed: int, parent: str | None = None) -> str:
    """A version that loads."""
    import torch

    from components.core.models import ModelSpec, build_classifier, save_classifier

    files = save_classifier(build_classifier(ModelSpec(**SPEC), torch.Generator().manual_seed(seed)))
    return registry.save_version({**files, "lineage.json": lineage(parent)})


def lineage(parent: str | None) -> bytes:
    """Of a retrain on no windows."""
    recipe = Recipe(epochs=1, learning_rate=0.1)
    document = Lineage(
        parent=parent, windows=(), strategy="retrain", hyperparameters=recipe, seed=0, package="retrain-pipeline"
    )
    return to_json(document)


def evaluation(version: str, champion: str | None) -> Evaluation:
    """Forty held-out rows, 36 right; the champion, where there is one, had 34 of them."""
    paired = PairedOutcome(both_right=33, only_champion_right=1, only_challenger_right=3, both_wrong=3)
    scores = HoldoutScores(
        rows=40,
        correct=36,
        paired=paired if champion else PairedOutcome(),
        new_classes={},
        classes=("cat", "dog"),
        confusion=({0: 18, 1: 2}, {0: 2, 1: 18}),
        slices=(SliceScores(by="brightness", value="dark", rows=20, correct=15, paired=PairedOutcome()),),
        calibration_error=0.031,
    )
    return Evaluation(champion=champion, challenger=version, old=scores if champion else None, new=scores)


def window(identity: str) -> WindowDocument:
    """A window of no images."""
    return WindowDocument(
        id=identity,
        dataset="d",
        source="may",
        created=datetime(2026, 5, 1, tzinfo=UTC),
        rows=0,
        usable=0,
        train_rows=0,
        holdout_rows=0,
        image_bytes=0,
        class_counts={},
        status_counts={},
        manifest="manifest.parquet",
        files={},
    )


def judged(run: Run, version: str, champion: str | None, word: str = "promote", rung: int = 1) -> None:
    """File all that comes before a promotion: window, plan, evaluation, verdict."""
    file(run, "ingest", window("w"))
    file(run, "decide", Decision(action="train", rule="r", reasons=("because",), champion=champion))
    file(run, f"evaluate-{rung}", evaluation(version, champion))
    file(run, f"gate-{rung}", Verdict(verdict=word, challenger=version, champion=champion, checks=(CHECK,)))
