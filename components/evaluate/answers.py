"""What each model says of each held-out row, and the table of it that is kept. Not covered: what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from components.core.datasets import Pixels, label_indices
from components.core.errors import BrokenModel
from components.core.models import Classifier, best_device
from components.core.units import independent_units


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one version says of n rows: `answers`, int64 (n,), indices into its own `classes`; `confidence`, float32
    (n,), its probability of the answer, in [0, 1]."""

    version: str
    classes: tuple[str, ...]
    answers: Tensor
    confidence: Tensor

    def among(self, classes: Sequence[str]) -> Tensor:
        """The answers as indices into other classes, int64 (n,); -1 where an answer is not one of them."""
        place = {name: n for n, name in enumerate(classes)}
        return torch.tensor([place.get(name, -1) for name in self.classes], dtype=torch.int64)[self.answers]

    def subset(self, keep: Tensor) -> Said:
        """The rows of a mask, bool (n,)."""
        return Said(
            version=self.version,
            classes=self.classes,
            answers=self.answers[keep],
            confidence=self.confidence[keep],
        )


@torch.inference_mode()
def ask(model: Classifier, images: Pixels, batch_size: int, *, version: str, digests: Sequence[str]) -> Said:
    """Ask a model about every image, in evaluation mode, on the best device.

    Args:
        model: Moved to the device.
        images: n of its size.
        batch_size: Images that go through it at once.
        version: Its name.
        digests: SHA-256 of each image, for messages.

    Raises:
        BrokenModel: An answer is not finite, or there are not as many as the model has classes.
    """
    device = best_device()
    model = model.to(device).eval()
    answers, confidence = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    before = 0
    for batch in images.batches(batch_size):
        probabilities = _probabilities(model(batch.to(device)), model, version, digests[before:])
        top = probabilities.max(1)
        answers.append(top.indices.cpu())
        confidence.append(top.values.cpu())
        before += len(batch)
    return Said(
        version=version,
        classes=model.spec.classes,
        answers=torch.cat(answers),
        confidence=torch.cat(confidence),
    )


def _probabilities(logits: Tensor, model: Classifier, version: str, digests: Sequence[str]) -> Tensor:
    """Softmax in float32, shape (b, classes), after a look at whether it is one."""
    expected = "a finite number for each of its classes"
    next_command = f"retrain verify {version}; if its files are sound, train anew with --strategy retrain"
    if logits.shape[1] != len(model.spec.classes):
        raise BrokenModel(
            f"version {version} with {logits.shape[1]} answers and {len(model.spec.classes)} classes",
            expected=expected,
            next_command=next_command,
        )
    finite = logits.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise BrokenModel(
            f"version {version} with answers that are not finite for image {digests[row]}",
            expected=expected,
            next_command=next_command,
        )
    return logits.float().softmax(1)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """n held-out rows and what up to three models say of them.

    `rows` of `read_holdout`; `classes` of champion and challenger, the champion's first: a row of a class that only one
    of them knows is wrong for the other. The champion is None while there is none, the anchor where it is the champion.
    """

    rows: pa.Table
    classes: tuple[str, ...]
    challenger: Said
    champion: Said | None = None
    anchor: Said | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def labels(self) -> Tensor:
        """True classes, int64 (n,), in [0, classes)."""
        return label_indices(self.rows, self.classes)

    @cached_property
    def groups(self) -> Tensor:
        """The unit of each row, int64 (n,), from 0: images of a group and near duplicates depend on each other."""
        units = np.unique(independent_units(self.rows), return_inverse=True)[1]
        return torch.from_numpy(units.astype(np.int64))

    def right(self, said: Said) -> Tensor:
        """Where a model is right, bool (n,)."""
        return said.among(self.classes) == self.labels

    def known_to(self, said: Said) -> Tensor:
        """Rows of classes that a model has, bool (n,)."""
        has = torch.tensor([name in said.classes for name in self.classes], dtype=torch.bool)
        return has[self.labels]

    def column(self, name: str) -> list[object]:
        """A column of the rows."""
        values: list[object] = self.rows[name].to_pylist()
        return values

    def where(self, keep: Tensor) -> Answers:
        """The rows of a mask, bool (n,)."""
        return Answers(
            rows=self.rows.filter(pa.array(keep.numpy())),
            classes=self.classes,
            challenger=self.challenger.subset(keep),
            champion=self.champion.subset(keep) if self.champion else None,
            anchor=self.anchor.subset(keep) if self.anchor else None,
        )

    def of(self, holdout: str) -> Answers:
        """The rows of one holdout, `old` or `new`."""
        return self.where(torch.tensor([side == holdout for side in self.column("holdout")], dtype=torch.bool))

    def table(self) -> pa.Table:
        """All of it as one table: the rows, then answer (a class) and confidence of each model, null where there is
        none. Its metadata says which versions answered."""
        table, models = self.rows, {"challenger": self.challenger, "champion": self.champion, "anchor": self.anchor}
        for name, said in models.items():
            answers = [said.classes[n] for n in said.answers.tolist()] if said else [None] * len(self)
            confidence = said.confidence.numpy() if said else [None] * len(self)
            table = table.append_column(name, pa.array(answers, pa.string()))
            table = table.append_column(f"{name}_confidence", pa.array(confidence, pa.float32()))
        return table.replace_schema_metadata({name: said.version for name, said in models.items() if said})
