"""One rung of a run's plan as a training: its data, its checkpoints, its result. Every process of a training opens one.

Not covered: training it (`rung`), where it runs (`launch`), and the version that is made of the result (`step`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version as package_version

import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load as load_tensors

from components.core.config import Config
from components.core.contracts import Document
from components.core.datasets import ROW_COLUMNS, ImageSet, PixelCache, label_indices, load_images
from components.core.exemplars import load_exemplars
from components.core.models import Classifier, ModelSpec, build_classifier, load_classifier, load_pretrained
from components.core.plans import Decision, Rung
from components.core.recipes import Recipe
from components.core.registry import FISHER, Registry
from components.core.runs import Run
from components.core.windows import Split, Window
from components.train import distributed
from components.train.checkpoint import Checkpoints
from components.train.memory import candidates, remembered
from components.train.randomness import Purpose, torch_generator
from components.train.replay import choose_replay
from components.train.strategy import Tensors


class Outcome(Document):
    """What came out of a training, beside the weights: see `TrainingSummary`."""

    spec: ModelSpec
    recipe: Recipe
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    rows: int
    replayed_rows: int
    epochs: int
    device: str
    processor: str
    gpus: int


@dataclass(frozen=True)
class Job:
    """A training of a run: rung `rung` (from 1) of its plan, on a window."""

    record: Run
    window: str
    rung: int

    @cached_property
    def config(self) -> Config:
        return self.record.config

    @cached_property
    def decision(self) -> Decision:
        return self.record.need("decide", Decision)

    @property
    def plan(self) -> Rung:
        return self.decision.rungs[self.rung - 1]

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.record.store, self.config.model)

    @cached_property
    def cache(self) -> PixelCache:
        return PixelCache(self.config.store)

    @cached_property
    def old_windows(self) -> list[Window]:
        return [Window.open(self.record.store, self.config.dataset, w) for w in self.decision.old_windows]

    @cached_property
    def new_window(self) -> Window:
        return Window.open(self.record.store, self.config.dataset, self.window)

    @cached_property
    def champion(self) -> Classifier | None:
        return load_classifier(self.registry, self.decision.champion) if self.decision.champion else None

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Named by all that the result depends on, so that the same training is found again, from any run."""
        training = self.config.training
        what = {
            "window": self.window,
            "decision": self.decision.model_dump(mode="json", include={"champion", "old_windows", "classes"}),
            "recipe": self.plan.hyperparameters.model_dump(mode="json"),
            "training": training.what_it_makes,
            "package": package_version("retrain-pipeline"),
        }
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
        return Checkpoints(
            self.record.store,
            self.config.model,
            digest,
            training.checkpoint_seconds,
            writer=distributed.is_first(),
        )

    def images(
        self,
        windows: Sequence[Window],
        split: Split,
        spec: ModelSpec,
        earlier: Sequence[Window] = (),
        columns: Sequence[str] = ROW_COLUMNS,
    ) -> ImageSet:
        """Labelled rows of windows, as the challenger sees them. See `load_images`."""
        return load_images(windows, split, spec, spec.classes, self.cache, earlier, columns).labelled()

    def new_rows(self, spec: ModelSpec) -> ImageSet:
        """Training rows of the window that no earlier window holds."""
        return self.images([self.new_window], "train", spec, earlier=self.old_windows)

    def old_rows(self, spec: ModelSpec, recipe: Recipe) -> ImageSet:
        """Rows of the champion's windows that train again: none, those replayed, or all."""
        if recipe.rows == "new" or not self.old_windows:
            return self.new_rows(spec).subset(torch.empty(0, dtype=torch.int64))
        if recipe.rows == "all":
            return self.images(self.old_windows, "train", spec)
        count = round(recipe.replay_fraction * sum(window.document.train_rows for window in self.old_windows))
        return self._draw(self.remembered(self.old_windows), count, spec)

    def memory(self, spec: ModelSpec, rows: int) -> ImageSet:
        """Some rows that stand for what the champion learnt, balanced over classes; the window's own may be among them,
        where the champion has seen it already."""
        version = self.decision.champion
        assert version is not None
        windows = self.registry.lineage(version).windows
        return self._draw(
            self.remembered([Window.open(self.record.store, self.config.dataset, w) for w in windows]), rows, spec
        )

    def remembered(self, windows: Sequence[Window]) -> pa.Table:
        """What the champion remembers of some of its windows: see `memory.remembered`."""
        if self.decision.champion is None:
            return candidates([], [], 0)
        return remembered(self.registry, self.decision.champion, windows, self.config.training.seed)

    def _draw(self, rows: pa.Table, count: int, spec: ModelSpec) -> ImageSet:
        """Open some of the remembered rows, balanced over classes; only these are decoded."""
        known = self.champion.spec.classes if self.champion else spec.classes
        rows = rows.filter(pc.is_in(rows["label"], pa.array(known, pa.string())))
        labels = label_indices(rows, spec.classes)
        generator = torch_generator(self.config.training.seed, Purpose.ROWS)
        drawn = rows.take(pa.array(choose_replay(labels, count, generator).numpy()))
        return self.open(drawn, spec)

    def open(self, rows: pa.Table, spec: ModelSpec) -> ImageSet:
        """Remembered rows as pixels."""
        identities = dict.fromkeys(rows["window"].to_pylist())
        windows = [Window.open(self.record.store, self.config.dataset, identity) for identity in identities]
        return load_exemplars(rows, windows, spec, spec.classes, self.cache)

    def fisher(self) -> Tensors | None:
        """The champion's accumulated Fisher information, where its version has it."""
        version = self.decision.champion
        if version is None or FISHER not in self.registry.manifest(version).files:
            return None
        return dict(load_tensors(self.registry.read_file(version, FISHER)))

    def fresh(self, spec: ModelSpec) -> Classifier:
        """A classifier with the weights that a training from scratch begins with."""
        training = self.config.training
        model = build_classifier(spec, torch_generator(training.seed, Purpose.WEIGHTS))
        if training.pretrained is not None and self.plan.hyperparameters.start == "fresh":
            load_pretrained(model, training.pretrained, self.record.store)
        return model
