"""Plans: what to do with a window, why, what it is expected to bring and to cost, and what this was concluded from.

A plan is content-addressed: the same evidence under the same policy is the same plan, to the bit. Not covered: how it
is concluded (`decide`).
"""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field

from components.core.contracts import Document, Interval, StepDocument
from components.core.errors import ConfigurationError, IntegrityError
from components.core.markdown import plain
from components.core.recipes import Recipe, StrategyName
from components.core.storage import ObjectStore, get_json, sha256_hex, to_json

Action = Literal["train", "skip", "quarantine"]
SKIP = "skip"  # as a strategy: to keep the champion


class PastTraining(Document):
    """A training of the past: what it had to do (`work`, see `decide.costs`), how many seconds that took, and how many
    the rest of its step did (images decoded, the reference measured, files written)."""

    strategy: StrategyName
    device: str
    architecture: str
    work: float
    seconds: float
    other_seconds: float = 0.0


class PastGain(Document):
    """What a strategy brought in the past: where it was used (see `decide.situation`), and the change of accuracy on
    the old and on the new holdout, in [-1, 1]; `old` is None where there was no old holdout."""

    strategy: StrategyName
    situation: dict[str, float]
    old: float | None
    new: float


class Evidence(Document):
    """All that the policy looks at. None and empty: not known; `missing` says why.

    Attributes:
        window: Id of the window.
        window_created: Day on which it was ingested.
        champion: Version; `champion_classes` and `champion_image_size` are its.
        old_windows: The champion's but the current one, oldest first; `old_rows` are their training rows, and
            `old_classes` their usable images by class.
        new_rows: Labelled training rows of the window; `held_out` its others; `window_classes` its labelled images by
            class.
        unlabelled: Its new images without a label; `label_list` is where those to label are listed, if any are wanted.
        least_labelled: Labelled images that a window needs before anything is learnt from it; `least_held_out` those of
            them that are held out: with fewer no model, however good, passes the gate.
        already_trained: Whether the champion has seen this window.
        released: Who let this window out of quarantine and why, if anybody did.
        rolled_back: Who rolled back from a version that was trained on this window and why, if anybody did.
        invalid: Sentences of the expectations that do not hold and reject.
        faults: Sentences of what triage found.
        drifted: Whether the images differ from the reference; `change` is the kind that this looks like, `effects` are
            by how much, view by view (see `DriftView`), `moved_classes` those of the champion's answers that moved.
        undecided: Why that cannot be told, where it cannot.
        alarm: Whether enough of the last windows do, this one included.
        drop: Accuracy that the champion lost here against its reference, in [-1, 1], with its 95 % interval.
        estimated_drop: The same as estimated without labels, with its 90 % interval.
        reference_accuracy: The champion's accuracy on its reference sample, and `window_accuracy` on the window's
            images of classes that it knows.
        drift_sentence: The same in words.
        image_size: Side of the images that the configuration asks for, in pixels.
        retrained: Day of the last full retrain; `windows_since` it is how many windows were learnt without one.
        forgotten: Accuracy that the champion lost since then, on the holdout of the windows before, with its 95 %
            interval; negative where it grew.
        retrained_in_vain: Whether a full retrain of this champion was tried and not promoted.
        exemplars: Rows that the champion's version remembers to be replayed; None: all old ones.
        has_fisher: Whether it has its Fisher information (else that is computed again).
        forced: Strategy that a person asked for.
        device: What trains and how, as far as the last training tells; `processor` is the model of the GPU, or 'CPU',
            and `gpus` how many.
        trainings: Trainings of the past, the latest last.
        gains: What strategies brought in the past, the latest last.
        missing: Why something is not known, one sentence each.
    """

    window: str
    window_created: date
    champion: str | None
    champion_classes: tuple[str, ...] = ()
    champion_image_size: int | None = None
    old_windows: tuple[str, ...] = ()
    old_rows: int = 0
    old_classes: dict[str, int] = Field(default_factory=dict)
    new_rows: int
    held_out: int
    window_classes: dict[str, int]
    unlabelled: int = 0
    label_list: str | None = None
    least_labelled: int = 0
    least_held_out: int = 0
    already_trained: bool = False
    released: str | None = None
    rolled_back: str | None = None
    invalid: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    drifted: bool = False
    change: str | None = None
    effects: dict[str, float] = Field(default_factory=dict)
    moved_classes: tuple[str, ...] = ()
    undecided: str | None = None
    alarm: bool = False
    drop: float | None = None
    drop_interval: Interval | None = None
    reference_accuracy: float | None = None
    window_accuracy: float | None = None
    estimated_drop: float | None = None
    estimated_drop_interval: Interval | None = None
    drift_sentence: str = ""
    image_size: int
    retrained: date | None = None
    windows_since: int | None = None
    forgotten: float | None = None
    forgotten_interval: Interval | None = None
    retrained_in_vain: bool = False
    exemplars: int | None = None
    has_fisher: bool = False
    forced: StrategyName | None = None
    device: str | None = None
    processor: str | None = None
    gpus: int = 0
    trainings: tuple[PastTraining, ...] = ()
    gains: tuple[PastGain, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def volume(self) -> float:
        """New training rows for each old one."""
        return self.new_rows / max(1, self.old_rows)

    @property
    def labelled(self) -> int:
        """Labelled images of the window, on both sides of the split."""
        return self.new_rows + self.held_out

    @property
    def lacks_labels(self) -> bool:
        """Whether too few images have a label to learn from and to judge by, and others could get one. Where a person
        has let the window pass, a single one on each side is enough."""
        few = self.labelled < self.least_labelled and self.released is None
        return self.unlabelled > 0 and (few or not self.new_rows or not self.held_out)

    @property
    def labels_missing(self) -> int:
        """How many more labels it takes, as far as there are images that lack one."""
        held_out, train = max(0, self.least_held_out - self.held_out), max(0, 1 - self.new_rows)
        return min(self.unlabelled, max(self.least_labelled - self.labelled, held_out + train))


class Forecast(Document):
    """What a strategy is expected to do here; None where nothing tells.

    `gain` is the change of the mean of both holdouts' accuracies, in [-1, 1], with its 80 % interval; `gpu_seconds` are
    0 where a CPU trains; `money` is in the currency of `decision.prices`.
    """

    strategy: StrategyName
    gain: float | None = None
    gain_interval: Interval | None = None
    seconds: float | None = None
    gpu_seconds: float | None = None
    money: float | None = None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Gain in points with its interval, seconds, GPU-seconds and money, for a table."""
        bounds = self.gain_interval
        gain = "?" if self.gain is None else f"{100 * self.gain:+.1f}"
        within = f" ({100 * bounds.lower:+.1f} to {100 * bounds.upper:+.1f})" if bounds else ""
        costs = (self.seconds, 0), (self.gpu_seconds, 0), (self.money, 2)
        seconds, gpu, money = ("?" if value is None else f"{value:.{digits}f}" for value, digits in costs)
        return gain + within, seconds, gpu, money

    def brief(self, currency: str) -> str:
        """In a few words."""
        parts = []
        if self.gain is not None and self.gain_interval is not None:
            bounds = self.gain_interval
            parts.append(
                f"{100 * self.gain:+.1f} points expected ({100 * bounds.lower:+.1f} to {100 * bounds.upper:+.1f})"
            )
        if self.seconds is not None:
            parts.append(f"about {self.seconds:.0f} s")
        if self.gpu_seconds:
            parts.append(f"{self.gpu_seconds:.0f} GPU-seconds")
        if self.money is not None:
            parts.append(f"{self.money:.2f} {currency}")
        return f"{self.strategy}: {', '.join(parts) or 'nothing tells what it brings or costs'}"


class Rung(Document):
    """One training attempt of a plan: the strategy, its hyperparameters, and what it will bring and cost."""

    strategy: StrategyName
    hyperparameters: Recipe
    training_rows: int
    forecast: Forecast


class Decision(StepDocument):
    """A plan: what to do, why, and the ladder of attempts in the order they are tried.

    Attributes:
        rule: Name of the policy's rule that fired.
        reasons: Its sentences, the decisive one first.
        rungs: The ladder; each is tried where the gate turns the one before down.
        classes: Those that the challenger will know: the champion's in their order, then the new ones.
        champion: The version that the plan is about; `old_windows` are its but the current one: what is replayed, and
            what the old holdout is.
        alternatives: What the strategies in question are expected to bring and to cost, and skipping.
        labels_wanted: How many images of the window should be labelled, so that it can be learnt from.
        confidence: Chance that what was chosen is worth more than what comes next of what was weighed, in [0, 1]; None
            where nothing was.
        turning_points: What would have to be different for another plan, one sentence each.
        policy: Digest of the policy; `training` that of how it trains, which must be the same to carry out the plan.
        evidence: What all of this was concluded from; None in a plan of an earlier release.
    """

    action: Action
    rule: str
    reasons: tuple[str, ...]
    rungs: tuple[Rung, ...] = ()
    classes: tuple[str, ...] = ()
    champion: str | None = None
    old_windows: tuple[str, ...] = ()
    alternatives: tuple[Forecast, ...] = ()
    labels_wanted: int = 0
    confidence: float | None = None
    turning_points: tuple[str, ...] = ()
    policy: str = ""
    training: str = ""
    evidence: Evidence | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the plan: its name in the store."""
        return sha256_hex(to_json(self))

    @property
    def figures(self) -> dict[str, float]:
        """What the plan expects, by name: of its first attempt the change of accuracy in [-1, 1] with its 80 %
        interval, seconds and money; how sure it is, in [0, 1]; how many labels it wants."""
        first = self.rungs[0].forecast if self.rungs else None
        bounds = first.gain_interval if first else None
        found = {
            "attempts_planned": len(self.rungs),
            "expected_gain": first.gain if first else None,
            "expected_gain_lower": bounds.lower if bounds else None,
            "expected_gain_upper": bounds.upper if bounds else None,
            "expected_seconds": first.seconds if first else None,
            "expected_gpu_seconds": first.gpu_seconds if first else None,
            "expected_money": first.money if first else None,
            "confidence": self.confidence,
            "labels_wanted": self.labels_wanted,
        }
        return {name: float(value) for name, value in found.items() if value is not None}

    @property
    def word(self) -> str:
        return self.action

    @property
    def markdown(self) -> str:
        """The whole plan, for the Kubeflow UI."""
        lines = [f"**{plain(self.sentence)}**", "", f"Rule: {self.rule}. Plan {self.digest[:12]}."]
        if self.confidence is not None:
            lines.append(f"Confidence that nothing else would have been better: {self.confidence:.0%}.")
        if self.alternatives:
            lines += [
                "",
                "| strategy | expected gain, points | seconds | GPU-seconds | money |",
                "|---|---|---|---|---|",
            ]
            lines += [f"| {' | '.join((forecast.strategy, *forecast.cells))} |" for forecast in self.alternatives]
        missing = self.evidence.missing if self.evidence else ()
        return "\n".join([*lines, "", *(f"- {plain(point)}" for point in (*self.turning_points, *missing))])

    @property
    def sentence(self) -> str:
        plan = " then ".join(rung.strategy for rung in self.rungs)
        return f"{self.action}{f' ({plan})' if plan else ''}: {' '.join(self.reasons)}"


def save_plan(store: ObjectStore, model: str, plan: Decision) -> str:
    """File a plan under its digest, which is returned. What is there and is not that plan is replaced."""
    key, data = _key(model, plan.digest), to_json(plan)
    if not store.put_new(key, data) and store.get(key) != data:
        store.put(key, data)
    return plan.digest


def find_plan(store: ObjectStore, model: str, name: str) -> Decision:
    """Read a plan by its digest, or the start of one.

    Raises:
        ConfigurationError: There is not exactly one such plan.
        IntegrityError: It is not what was written.
    """
    prefix = _key(model, "").removesuffix(".json")
    names = [listed.key.removeprefix(prefix).removesuffix(".json") for listed in store.list_objects(prefix)]
    matches = [digest for digest in names if name and digest.startswith(name)]
    if len(matches) != 1:
        raise ConfigurationError(
            f"{len(matches)} plans that start with {name!r}",
            expected="the digest of one plan, or its first letters",
            next_command="retrain plan FOLDER makes one and prints its digest",
        )
    key = _key(model, matches[0])
    plan = get_json(store, key, Decision)
    if plan is None or sha256_hex(store.get(key)) != matches[0]:
        raise IntegrityError(
            f"plan {matches[0]} is not what was written",
            expected="a plan whose digest is its name",
            next_command="retrain plan FOLDER makes it anew",
        )
    return plan


def _key(model: str, digest: str) -> str:
    return f"plans/{model}/{digest}.json"
