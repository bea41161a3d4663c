"""The documents that flow between the steps. Each crosses a process boundary as JSON in the store.

A document carries its verdict as one plain word (`word`, what the graph branches on) and as a sentence (`sentence`,
what people read in the Kubeflow UI, the report and the terminal). Not covered: bulk data (windows, weights), which
`windows`, `models` and `registry` keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from components.core.markdown import plain
from components.core.recipes import Recipe, StrategyName

EffectUnit = Literal["kernel distance", "standard deviations", "share of images", "share among the furthest 5 %"]
VerdictWord = Literal["promote", "escalate", "reject", "hold"]


def list_names(names: Sequence[str], most: int = 10) -> str:
    """Names in a sentence: the first of them and how many more, for a window can bring thousands of classes."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


class Document(BaseModel):
    """Base of all documents: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StepDocument(Document, ABC):
    """What a step hands on: one word for the graph, one sentence for people."""

    @property
    @abstractmethod
    def word(self) -> str:
        """The step's output in the graph: plain ASCII."""

    @property
    @abstractmethod
    def sentence(self) -> str:
        """The same for a reader, with its figures."""


class Interval(Document):
    """A two-sided confidence interval, in the unit of what it bounds."""

    lower: float
    upper: float


class WindowDocument(StepDocument):
    """`window.json`: what a window holds. Written last: a window without it does not exist.

    `id` is the digest of what the images are (bytes, label, group, side of the split, usable or not), so the same
    images in any order are the same window. `files` are the SHA-256 of shards and manifest, `manifest` the name of
    the latter.
    """

    id: str
    dataset: str
    source: str
    created: datetime
    rows: int
    usable: int
    unlabelled: int = 0
    train_rows: int
    holdout_rows: int
    image_bytes: int
    class_counts: dict[str, int]
    status_counts: dict[str, int]
    manifest: str
    files: dict[str, str]

    @property
    def word(self) -> str:
        return self.id

    @property
    def sentence(self) -> str:
        aside = {**self.status_counts, "unlabelled": self.unlabelled}
        rest = "".join(f", {n} {status}" for status, n in aside.items() if status != "ok" and n)
        return (
            f"Window {self.id[:12]}: {self.usable} usable images of {len(self.class_counts)} classes "
            f"({self.train_rows} to train on, {self.holdout_rows} held out){rest}."
        )


class CheckedExpectation(Document):
    """One expectation on the manifest: what was asked, what was found, what follows when it fails."""

    name: str
    severity: Literal["reject", "warn"]
    passed: bool
    sentence: str


class ValidationReport(StepDocument):
    """What Great Expectations found in the manifest."""

    expectations: tuple[CheckedExpectation, ...]

    @property
    def failures(self) -> tuple[CheckedExpectation, ...]:
        return tuple(e for e in self.expectations if e.severity == "reject" and not e.passed)

    @property
    def warnings(self) -> tuple[CheckedExpectation, ...]:
        return tuple(e for e in self.expectations if e.severity == "warn" and not e.passed)

    @property
    def markdown(self) -> str:
        """The expectations as a table. Names of files and classes in it cannot become markup."""
        rows = [f"| {'✓' if e.passed else e.severity} | {plain(e.sentence)} |" for e in self.expectations]
        return "\n".join(["| | expectation |", "|---|---|", *rows])

    @property
    def word(self) -> str:
        return "invalid" if self.failures else "valid"

    @property
    def sentence(self) -> str:
        passed = sum(e.passed for e in self.expectations)
        notes = " ".join(e.sentence for e in (*self.failures, *self.warnings))
        return f"{passed} of {len(self.expectations)} expectations hold. {notes}".strip()


class DriftView(Document):
    """One two-sample test: `p_value` in (0, 1], smaller is more evidence; `effect` grows with the change, from 0;
    `smallest_effect` is from where on it would have counted as drift in a window of this size, if the view `decides`:
    the others only show what moved."""

    name: str
    p_value: float
    effect: float
    unit: EffectUnit = "kernel distance"
    smallest_effect: float | None = None
    decides: bool = True

    def amount(self, effect: float) -> str:
        """An effect of this view with its unit."""
        if self.unit == "share of images":
            return f"{effect:.0%} of the images"
        if self.unit == "share among the furthest 5 %":
            return f"{effect:.1%} more of the images among the furthest 5 %"
        return f"{effect:.2f} {self.unit}" if self.unit == "standard deviations" else f"a {self.unit} of {effect:.2f}"


class Fault(Document):
    """A sign that the data are broken rather than the world changed. `effect` in [0, 1], larger is worse. `examples`
    are the SHA-256 of images that show it, the clearest first."""

    name: str
    effect: float
    sentence: str
    examples: tuple[str, ...] = ()


class MovedClass(Document):
    """A class of the champion's answers that moved: `novel` is the share of its images that are further out than 95 %
    of the reference, less that of the reference's own images of this class; in (0, 1], surely above chance."""

    name: str
    images: int
    novel: float


class PreviousChampion(Document):
    """How the champion before the present one does on the same labelled images of a window, of classes that both know.

    `correct` are its right answers on `rows`, `champion_correct` the present one's; `p_value` in (0, 1] is how probable
    such a lead is if both are equally good."""

    version: str
    rows: int
    correct: int
    champion_correct: int
    p_value: float

    @property
    def is_better(self) -> bool:
        """Whether it surely is: by a one-sided test at 2.5 %, one side of the 95 % interval of the champion's drop."""
        return self.p_value <= 0.025

    @property
    def sentence(self) -> str:
        """The comparison, and the way back."""
        return (
            f"The champion is worse here than the one before: it has {self.champion_correct} of {self.rows} images "
            f"right, and {self.version[:12]} has {self.correct} (p = {self.p_value:.2g}). To go back: "
            f"retrain rollback --to {self.version[:12]} --reason TEXT."
        )


class DriftReport(StepDocument):
    """How the window differs from what the champion knows.

    Fields are None, or empty, where there is no champion, or no row to measure on.

    Attributes:
        p_value: Combined over all views; `drifted` where it is at most `level`.
        level: False-alarm rate of this window's test, from the budget of alarms a year.
        alarm: Whether enough of the last windows drifted, this one included: `recent_changes` did, and it takes
            `alarm_windows`.
        undecided: Why drift could not have been found, where it could not.
        accuracy_drop: The champion's accuracy on its reference sample minus that on the window's rows of known classes,
            in [-1, 1], positive is worse, with its 95 % interval.
        previous: How the champion before does here, where the champion has lost much.
        estimated_drop: The same as it is estimated without labels, over all rows, with its 90 % interval.
        change: The kind of change that the images look most like; None where they changed too little to tell.
        moved_classes: Of the champion's answers, those that moved most first.
        moved_images: SHA-256 of the images furthest from the reference, the furthest first.
        unlabelled: Rows without a label, of `rows`.
        furthest_unlabelled: SHA-256 of those, the furthest from the reference first; in the record not more than
            `decision.max_to_label`.
    """

    champion: str | None
    rows: int
    unlabelled: int = 0
    views: tuple[DriftView, ...] = ()
    p_value: float | None = None
    level: float | None = None
    drifted: bool = False
    alarm: bool = False
    recent_changes: int = 0
    alarm_windows: int = 1
    undecided: str | None = None
    new_classes: dict[str, int] = {}
    reference_accuracy: float | None = None
    window_accuracy: float | None = None
    accuracy_drop: float | None = None
    accuracy_drop_interval: Interval | None = None
    previous: PreviousChampion | None = None
    estimated_drop: float | None = None
    estimated_drop_interval: Interval | None = None
    change: str | None = None
    moved_classes: tuple[MovedClass, ...] = ()
    moved_images: tuple[str, ...] = ()
    furthest_unlabelled: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def figures(self) -> dict[str, float]:
        """The numbers that were measured, by name."""
        measured = {
            "rows": self.rows,
            "unlabelled_rows": self.unlabelled,
            "p_value": self.p_value,
            "level": self.level,
            "alarm": None if self.p_value is None else float(self.alarm),
            "accuracy_drop": self.accuracy_drop,
            "estimated_drop": self.estimated_drop,
            "window_accuracy": self.window_accuracy,
            **{f"effect_{view.name.replace(' ', '_')}": view.effect for view in self.views},
        }
        return {name: value for name, value in measured.items() if value is not None}

    @property
    def word(self) -> str:
        if self.faults:
            return "broken"
        if self.champion is None:
            return "no-champion"
        if self.new_classes:
            return "new-classes"
        if self.undecided:
            return "undecided"
        return "drifted" if self.drifted else "stable"

    @property
    def sentence(self) -> str:
        parts = [f.sentence for f in self.faults]
        if self.champion is None:
            return " ".join([*parts, "There is no champion to compare with."])
        if self.new_classes:
            names = list_names([f"{name} ({count} images)" for name, count in self.new_classes.items()])
            parts.append(f"New classes: {names}.")
        if self.undecided:
            parts.append(f"Whether the images changed cannot be told: {self.undecided}.")
        elif self.p_value is not None:
            parts.append(self._difference)
        if self.estimated_drop is not None and self.estimated_drop_interval is not None and self.accuracy_drop is None:
            bounds = self.estimated_drop_interval
            parts.append(
                f"Estimated without labels: the champion loses {100 * self.estimated_drop:.1f} points of accuracy "
                f"({100 * bounds.lower:.1f} to {100 * bounds.upper:.1f})."
            )
        if self.accuracy_drop is not None:
            scores = f"{self.window_accuracy:.1%} here and {self.reference_accuracy:.1%} on its reference"
            parts.append(f"The champion scores {scores}.")
        if self.regression is not None:
            parts.append(self.regression)
        return " ".join(parts)

    @property
    def regression(self) -> str | None:
        """That the champion is worse here than the one before it, and the way back; None where it is not."""
        return self.previous.sentence if self.previous is not None and self.previous.is_better else None

    @property
    def _difference(self) -> str:
        """Whether the images differ, in what, and what a smaller change would have had to be."""
        deciding = [view for view in self.views if view.decides]
        found = f"(p = {self.p_value:.2g}" + ("" if self.level is None else f", level {self.level:.2g}") + ")"
        if self.drifted:
            most = min(deciding, key=lambda view: view.p_value, default=None)
            where = f", most clearly in {most.name}: by {most.amount(most.effect)}" if most else ""
            kind = f" It looks like a change of kind '{self.change}'." if self.change else ""
            return f"The images differ from the reference {found}{where}.{kind}{self._agreement}"
        least = [f"{v.amount(v.smallest_effect)} ({v.name})" for v in deciding if v.smallest_effect is not None]
        noticed = f" It would have taken {', or '.join(least)}." if least else ""
        return f"The images look like the reference {found}.{noticed}"

    @property
    def _agreement(self) -> str:
        """Whether enough windows drifted, where one is not enough."""
        if self.alarm_windows == 1:
            return ""
        word = "Alarm" if self.alarm else "No alarm"
        return f" {word}: {self.recent_changes} of the last windows drifted, {self.alarm_windows} are needed."


class Lineage(Document):
    """`lineage.json` of a version: where it comes from. `windows` are all it was trained on, oldest first; `anchor` is
    the last of its ancestors that was trained from scratch, None where it was so itself."""

    parent: str | None
    anchor: str | None = None
    windows: tuple[str, ...]
    strategy: StrategyName
    hyperparameters: Recipe
    seed: int
    package: str


class TrainingSummary(StepDocument):
    """What a rung's training did, over all its attempts.

    `losses`: mean training loss of each epoch, nats; `accuracies`: those on rows set aside, where some were.
    `images_per_second` counts every pass. `device` tells people where it ran; `processor` is the model of the GPU, or
    'CPU', and `gpus` how many. `attempts` is one more than the times it was cut off, and `lost_seconds` what
    had to be done again after that.
    """

    version: str
    strategy: StrategyName
    rows: int
    replayed_rows: int
    classes: tuple[str, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...] = ()
    seconds: float
    images_per_second: float
    device: str
    processor: str = ""
    gpus: int = 0
    attempts: int = 1
    lost_seconds: float = 0.0

    @property
    def word(self) -> str:
        return self.version

    @property
    def sentence(self) -> str:
        replay = f", {self.replayed_rows} of them replayed" if self.replayed_rows else ""
        cut = f" in {self.attempts} attempts, {self.lost_seconds:.0f} s lost" if self.attempts > 1 else ""
        return (
            f"{self.strategy} on {self.rows} images{replay}: loss {self.losses[0]:.3f} to {self.losses[-1]:.3f} in "
            f"{self.seconds:.0f} s on {self.device}{cut}. Challenger {self.version[:12]}."
        )


class PairedOutcome(Document):
    """Champion and challenger on the same rows of classes that the champion knows: the four cells of the paired table.

    A class that only the champion knows is one that the challenger gets wrong: it was trained before that came in.
    `design_effect`: how many rows tell as much as one independent row would of the difference, at least 1: above it
    where rows come in groups (`manifest.parquet`'s `group`)."""

    both_right: int = 0
    only_champion_right: int = 0
    only_challenger_right: int = 0
    both_wrong: int = 0
    design_effect: float = 1.0

    @property
    def rows(self) -> int:
        return self.both_right + self.only_champion_right + self.only_challenger_right + self.both_wrong

    @property
    def changes(self) -> tuple[float, float, float]:
        """Rows, and of them gained and lost, as many as independent rows would have to be to tell as much."""
        counts = self.rows, self.only_challenger_right, self.only_champion_right
        rows, gained, lost = (count / self.design_effect for count in counts)
        return rows, gained, lost

    @property
    def champion_accuracy(self) -> float | None:
        return (self.both_right + self.only_champion_right) / self.rows if self.rows else None

    @property
    def challenger_accuracy(self) -> float | None:
        return (self.both_right + self.only_challenger_right) / self.rows if self.rows else None


class ClassRecall(Document):
    """How many held-out rows a class has, and how many of them the challenger recognises. `design_effect` as in
    `PairedOutcome`, of the share recognised."""

    rows: int
    correct: int
    design_effect: float = 1.0


class SliceScores(Document):
    """A part of a holdout: rows whose `by` (class, window, a manifest column or a band of it) is `value`. `rows` and
    `correct` are the challenger's over all of them, `paired` covers classes that the champion knows."""

    by: str
    value: str
    rows: int
    correct: int
    paired: PairedOutcome


class HoldoutScores(Document):
    """One holdout. `rows` and `correct` are the challenger's over all rows; `paired` covers the classes the champion
    knows; classes it does not know are measured apart, class by class (also those without a row), never averaged in.
    `confusion`: for each true class, in the order of `classes`, how often which of them was the challenger's answer;
    `champion_confusion` is the champion's, over the rows of classes that it knows. `design_effect` as in
    `PairedOutcome`, of the challenger's accuracy.

    `by_class`: the paired outcome of the rows of each class that the champion knows; `by_window` the same of each
    window, oldest first. `calibration_error`: the challenger's expected calibration error on rows of classes that the
    champion knows (all rows while there is no champion), in [0, 1]; `champion_calibration_error` the champion's on the
    same. None, and empty, where it was not measured."""

    rows: int
    correct: int
    paired: PairedOutcome
    new_classes: dict[str, ClassRecall]
    classes: tuple[str, ...]
    confusion: tuple[dict[int, int], ...]
    champion_confusion: tuple[dict[int, int], ...] | None = None
    design_effect: float = 1.0
    by_class: dict[str, PairedOutcome] = {}
    by_window: dict[str, PairedOutcome] = {}
    slices: tuple[SliceScores, ...] = ()
    calibration_error: float | None = None
    champion_calibration_error: float | None = None

    @property
    def accuracy(self) -> float | None:
        """The challenger's accuracy over all rows, in [0, 1]; None on an empty holdout."""
        return self.correct / self.rows if self.rows else None


class Accuracies(Document):
    """Accuracies in [0, 1] of both models on the same held-out rows, of classes that the champion knows. While there is
    no champion, the challenger's are over all rows. None where nothing was evaluated."""

    champion_old: float | None = None
    challenger_old: float | None = None
    champion_new: float | None = None
    challenger_new: float | None = None


class AnchorScores(Document):
    """The challenger against the anchor (`version`, in the champion's place of `paired`): the last version that was
    trained from scratch. On the holdout of the anchor's windows, of classes that the anchor knows."""

    version: str
    paired: PairedOutcome


class ModelCost(Document):
    """What a model costs in use: size of its weights in bytes; floating-point operations for one image (a
    multiplication and an addition are two; None where they cannot be counted); seconds that one image takes alone on
    `device`, turn by turn with the other model, and their quantiles (`0.5`, `0.95`, `0.99`)."""

    bytes: int
    flops: int | None
    latency: dict[str, float]
    turns: tuple[float, ...] = ()
    device: str


class Evaluation(StepDocument):
    """Champion and challenger on the old and on the new holdout. `old` is None where the champion has no other window
    than the current one, or there is no champion. `anchor` is None where the champion is the anchor itself, or there is
    none. `answers` is the key of the Parquet file with what each model said of each row. `sample`: the smallest digests
    among the new holdout's rows, at most 64: evaluations that share many rows share some of these."""

    champion: str | None
    challenger: str
    old: HoldoutScores | None
    new: HoldoutScores
    anchor: AnchorScores | None = None
    champion_cost: ModelCost | None = None
    challenger_cost: ModelCost | None = None
    answers: str | None = None
    sample: tuple[str, ...] = ()

    @property
    def accuracies(self) -> Accuracies:
        """Both models on the same rows; the challenger's on all rows while there is no champion."""
        new = self.new.paired.challenger_accuracy if self.champion else self.new.accuracy
        return Accuracies(
            champion_old=self.old.paired.champion_accuracy if self.old else None,
            challenger_old=self.old.paired.challenger_accuracy if self.old else None,
            champion_new=self.new.paired.champion_accuracy,
            challenger_new=new,
        )

    @property
    def old_gain(self) -> float | None:
        """What the challenger is better by on the old holdout, in [-1, 1]; None where there is none."""
        scores = self.accuracies
        if scores.challenger_old is None or scores.champion_old is None:
            return None
        return scores.challenger_old - scores.champion_old

    @property
    def new_gain(self) -> float | None:
        """The same on the new holdout, over all its rows: of a class that it does not know, the champion knows none."""
        if self.champion is None or not self.new.rows:
            return None
        paired = self.new.paired
        return (self.new.correct - paired.both_right - paired.only_champion_right) / self.new.rows

    @property
    def mean_gain(self) -> float | None:
        """The mean of both; of the new holdout alone where there is no old one."""
        gains = [gain for gain in (self.old_gain, self.new_gain) if gain is not None]
        return sum(gains) / len(gains) if gains else None

    @property
    def figures(self) -> dict[str, float]:
        """The accuracies that were measured, by name, and the challenger's over all rows of the new holdout."""
        measured = {**self.accuracies.model_dump(), "challenger_new_all_classes": self.new.accuracy}
        return {name: value for name, value in measured.items() if value is not None}

    @property
    def word(self) -> str:
        return "evaluated"

    @property
    def sentence(self) -> str:
        def side(name: str, scores: HoldoutScores | None) -> str:
            if scores is None or scores.accuracy is None:
                return f"{name} holdout: no rows."
            before = scores.paired.champion_accuracy
            known = scores.paired.challenger_accuracy
            versus = (
                ""
                if before is None or known is None
                else f", {before:.1%} to {known:.1%} on classes the champion knows"
            )
            return f"{name} holdout: {scores.accuracy:.1%} of {scores.rows} rows{versus}."

        return f"{side('Old', self.old)} {side('New', self.new)}"


class CheckResult(Document):
    """One check of the gate: `passed` when `bound` reaches `threshold` (in accuracy, larger is better).

    `conclusive` is False where more rows could still turn the answer: neither bound settles it. `rows_to_decide` is how
    many more held-out rows would, with 80 % chance, if the rates stayed what they are; None where none would, or
    nothing is open. `within_reach` is False where no model could pass on these rows, however good. For checks of other
    things (seconds, bytes, calibration) value, bound and threshold are in these, negated where smaller is better.
    """

    name: str
    passed: bool
    conclusive: bool
    value: float
    bound: float
    threshold: float
    sentence: str
    rows_to_decide: int | None = None
    within_reach: bool = True


class Verdict(StepDocument):
    """What the gate says of one attempt. `level` is the chance, at most, that this attempt passes a model that is at a
    margin, and `terms` tells where it comes from; None and empty in verdicts of earlier releases. `images_to_decide`:
    how many more labelled images a hold waits for, those that will not be held out among them."""

    verdict: VerdictWord
    challenger: str
    champion: str | None
    checks: tuple[CheckResult, ...]
    level: float | None = None
    terms: str = ""
    images_to_decide: int | None = None

    @property
    def markdown(self) -> str:
        """The checks as a table. Names of classes in it cannot become markup."""
        rows = [f"| {'✓' if c.passed else '✗' if c.conclusive else '?'} | {plain(c.sentence)} |" for c in self.checks]
        told = [text for text in (self.terms, self.wanted) if text]
        return "\n".join(
            [f"**{self.verdict}**", "", "| | check |", "|---|---|", *rows, *(["", " ".join(told)] if told else [])]
        )

    @property
    def word(self) -> str:
        return self.verdict

    @property
    def wanted(self) -> str:
        """What a hold waits for, the number with two digits: the rates that it rests on are no better known."""
        if self.images_to_decide is None:
            return ""
        images = int(float(f"{self.images_to_decide:.2g}"))
        return f"About {images:,} more labelled images would decide."

    @property
    def findings(self) -> str:
        """What every check said, at which level, and what is waited for."""
        parts = (*(check.sentence for check in self.checks), self.terms, self.wanted)
        return " ".join(part for part in parts if part)

    @property
    def sentence(self) -> str:
        return f"{self.verdict}: {self.findings}"


LedgerKind = Literal["promotion", "rejection", "hold", "rollback", "approval", "release", "removal"]


class LedgerRecord(Document):
    """One entry of a model's ledger. `version` is what it is about; None for the release of a window. `evidence` names
    the evidence bundle that a promotion rests on. A `removal` says that the files of a former champion are deleted.
    `previous` is the SHA-256 of the record before it (None for the first)."""

    number: int
    kind: LedgerKind
    version: str | None
    evidence: str | None = None
    champion_before: str | None
    window: str | None
    run_id: str | None
    actor: str
    reason: str
    nonce: str
    previous: str | None
    created: datetime

    @property
    def makes_champion(self) -> bool:
        return self.kind in ("promotion", "rollback")


class Champion(Document):
    """The present champion, and the ledger record that made it."""

    version: str
    number: int
    run_id: str | None
    created: datetime


class EvidenceBundle(StepDocument):
    """What a promotion rests on, filed: `digest` names the folder of the store with the files, about a `version`."""

    version: str
    digest: str
    files: int
    signed: bool

    @property
    def word(self) -> str:
        return self.digest

    @property
    def sentence(self) -> str:
        signed = "signed" if self.signed else "not signed"
        return f"Evidence {self.digest[:12]} of version {self.version[:12]}: {self.files} files, {signed}."


class Outcome(StepDocument):
    """How a run ended: `promoted`, `waiting`, `skipped`, `quarantined`, `rejected` or `held`, and the champion
    afterwards. What waits becomes `promoted` once a person approves it. `evidence` is the digest of the bundle of what
    is promoted, or waits.
    """

    outcome: Literal["promoted", "waiting", "skipped", "quarantined", "rejected", "held"]
    champion_before: str | None
    champion_after: str | None
    ledger_number: int | None
    evidence: str | None = None
    reason: str

    @property
    def word(self) -> str:
        return self.outcome

    @property
    def sentence(self) -> str:
        return f"{self.outcome}: {self.reason}"


class Failure(StepDocument):
    """Why a step crashed, for whoever reads the run record."""

    step: str
    error: str
    message: str
    exit_code: int

    @property
    def word(self) -> str:
        return "failed"

    @property
    def sentence(self) -> str:
        return f"{self.step} failed ({self.error}): {self.message}"


class RunArguments(Document):
    """What a run is started with, besides the configuration: parameters of the compiled pipeline by their names."""

    source: str
    strategy: str = "auto"
    gpu_type: str = ""
    gpu_count: str = "1"


class RunParameters(Document):
    """What was asked of a run; `planning` where it ends with the plan."""

    run_id: str
    model: str
    dataset: str
    source: str
    strategy: str
    planning: bool = False


def describe_deliveries(deliveries: Sequence[str]) -> str:
    """Deliveries in a few words: the first one whole."""
    if not deliveries:
        return "nothing new"
    rest = len(deliveries) - 1
    return deliveries[0] + (f" and {rest} more" if rest else "")


class RunReport(StepDocument):
    """A run told in one row: what the table, the metrics and `--json` show. None where a step did not run.

    `accuracy` is what evaluation measured in the last attempt; `reference_accuracy` and `window_accuracy` are the
    champion's on its reference sample and on the whole window, as drift detection measured them, and `estimated_drop`
    the accuracy lost as it is estimated without labels. `labels_wanted` is how many images should be labelled before
    anything can be learnt from the window: `to_label` is the key of the list of them. `regression` says that the
    champion, which this run left in force, is worse on the window than the one before it, and how to go back.
    """

    run_id: str
    model: str
    source: str
    started: datetime
    seconds: float
    window: str | None = None
    drift: str | None = None
    action: str | None = None
    rule: str | None = None
    strategy: str | None = None
    reason: str
    verdict: str | None = None
    outcome: str
    champion_before: str | None
    champion_after: str | None
    accuracy: Accuracies = Accuracies()
    reference_accuracy: float | None = None
    window_accuracy: float | None = None
    drift_p_value: float | None = None
    drift_alarm: bool | None = None
    estimated_drop: float | None = None
    labels_wanted: int = 0
    to_label: str | None = None
    regression: str | None = None
    attempts: int = 0
    step_seconds: dict[str, float] = {}

    @property
    def source_name(self) -> str:
        """Last part of the source: what people call the delivery."""
        return self.source.rstrip("/").rpartition("/")[2]

    @property
    def word(self) -> str:
        return self.outcome

    @property
    def sentence(self) -> str:
        return f"{self.outcome}: {self.reason}" + (f" {self.regression}" if self.regression else "")
