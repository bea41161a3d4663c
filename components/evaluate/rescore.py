"""Score versions again on the rows that a promotion was judged on: what a rollback looks at before it happens.

The rows and what was answered then are on record; the images are read from their windows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from components.core.config import Config
from components.core.contracts import Evaluation, LedgerRecord
from components.core.datasets import ImageSet, PixelCache, load_images
from components.core.errors import BrokenModel, ConfigurationError, IntegrityError
from components.core.models import Classifier, ModelSpec
from components.core.registry import Registry
from components.core.runs import Run
from components.core.storage import KeyMissing
from components.core.windows import Window, from_parquet
from components.evaluate.answers import ask
from components.evaluate.loading import load_version

logger = logging.getLogger(__name__)

# Rounding differs between processors and between releases of torch. It turns answers whose two best classes are as good
# as equal. A judgement, not a measurement: half a row in a hundred, where another network, or other pixels, turn more.
TURNED_BY_ROUNDING = 0.005


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """Two versions on the same rows.

    Attributes:
        rows: How many.
        recorded: Of them, those that the target had right when it was promoted; `target` and `champion` have right now.
            None: the champion does not load, or answers nothing.
        turned: Those that the target answers otherwise than then.
    """

    rows: int
    recorded: int
    target: int
    champion: int | None
    turned: int

    @property
    def agrees(self) -> bool:
        """Whether the target is what was promoted, as far as its answers tell; one row may turn in any case."""
        return self.turned <= max(1.0, TURNED_BY_ROUNDING * self.rows)


def rescore(registry: Registry, promotion: LedgerRecord | None, champion: str, config: Config) -> Rescored:
    """Ask a promoted version and the present champion about the rows that the promotion was judged on.

    A class that a version does not know, it has wrong.

    Args:
        registry: Of the model.
        promotion: The ledger record of the target.
        champion: The present champion.
        config: Says where decoded images are kept, and how many are asked about at once.

    Raises:
        ConfigurationError: No run judged the promotion, or a window is gone.
        IntegrityError: The answers, images or a version's files are not what was written.
        BrokenModel: The target does not load, or its answers are none.
    """
    table = _answers(registry, promotion)
    labels, target = table["label"].to_pylist(), promotion.version if promotion else None
    assert target is not None, "there are answers only of a version"
    panel = _Rows(registry, table, config)
    now = panel.ask(target, load_version(registry, target))
    try:
        other = panel.ask(champion, load_version(registry, champion))
    except (BrokenModel, IntegrityError) as error:  # a reason to leave it, not to stay
        logger.warning("the champion cannot be asked: %s", error.found)
        other = None
    then = table["challenger"].to_pylist()
    return Rescored(
        rows=len(labels),
        recorded=_equal(then, labels),
        target=_equal(now, labels),
        champion=None if other is None else _equal(other, labels),
        turned=len(labels) - _equal(now, then),
    )


def _answers(registry: Registry, promotion: LedgerRecord | None) -> pa.Table:
    """The rows and answers that a promotion rests on."""
    key = None
    if promotion is not None and promotion.run_id is not None:
        run = Run(registry.store, promotion.run_id)
        for step in run.steps("evaluate-"):
            evaluation = run.need(step, Evaluation)
            if (evaluation.challenger, evaluation.champion) == (promotion.version, promotion.champion_before):
                key = evaluation.answers
    try:
        if key is not None:
            return from_parquet(registry.store.get(key))
    except (KeyMissing, pa.ArrowInvalid, OSError) as error:  # a page's checksum that does not match is an OSError
        raise IntegrityError(
            f"{registry.store.uri}/{key} is missing or damaged",
            expected="what each model said when the version was promoted",
            next_command="restore it from a backup of the store",
        ) from error
    raise ConfigurationError(
        "no answers on record for the version's promotion",
        expected="a version that a run evaluated and promoted",
        next_command="retrain status --json shows the ledger",
    )


class _Rows:
    """Rows of the holdouts of windows, as pixels of the size that each version wants."""

    def __init__(self, registry: Registry, table: pa.Table, config: Config) -> None:
        self._table, self._batch_size, self._cache = table, config.evaluation.batch_size, PixelCache(config.store)
        self._windows = [
            Window.open(registry.store, config.dataset, window) for window in dict.fromkeys(table["window"].to_pylist())
        ]
        self._images: dict[tuple[int, int], ImageSet] = {}

    def ask(self, version: str, model: Classifier) -> list[str]:
        """The class that a version answers for each row."""
        size = (model.spec.image_size, model.spec.channels)
        if size not in self._images:
            self._images[size] = ImageSet.concat([self._open(window, model.spec) for window in self._windows])
        images = self._images[size]
        digests = images.rows["sha256"].to_pylist()
        said = ask(model, images.images, self._batch_size, version=version, digests=digests)
        return [said.classes[n] for n in said.answers.tolist()]

    def _open(self, window: Window, spec: ModelSpec) -> ImageSet:
        """The images of one window, in the order of the rows, which is the window's."""
        wanted = self._table["sha256"].filter(pc.equal(self._table["window"], window.document.id)).to_pylist()
        found = load_images([window], "holdout", spec, (), self._cache, only=wanted)
        if found.rows["sha256"].to_pylist() != wanted:
            raise IntegrityError(
                f"the held-out images of window {window.document.id} are not those that were asked about",
                expected="the window as it was when the version was promoted",
                next_command="restore the window from a backup",
            )
        return found


def _equal(one: list[str], other: list[str]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))
