"""The page of an evaluation: who is right where, what got worse, and what it costs. One file that fetches nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from components.core.contracts import Evaluation, HoldoutScores, Interval, ModelCost, PairedOutcome, SliceScores
from components.core.statistics import wilson_interval
from components.evaluate.answers import Answers
from components.evaluate.diagram import reliability_diagram
from components.evaluate.flips import FlipKind, negative_flip_rate, negative_flips, relative_negative_flips
from components.evaluate.measurement import confidence_bins
from components.evaluate.scores import balanced_accuracy, known_rows, macro_f1, precisions, recalls
from components.evaluate.transfer import backward_transfer, forgetting, pair_windows

CONFIDENCE = 0.95  # of the intervals
MOST_CLASSES, MOST_SLICES, MOST_FLIPS = 100, 12, 12


@dataclass(frozen=True, kw_only=True)
class Share:
    """`right` of `rows`, in [0, 1], with its interval; None without a row."""

    right: int
    rows: int

    @property
    def value(self) -> float | None:
        return self.right / self.rows if self.rows else None

    @property
    def interval(self) -> Interval:
        return wilson_interval(self.right, self.rows, CONFIDENCE)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A line of a table: two models on the same rows, or one where there is no other."""

    name: str
    rows: int
    before: Share | None
    now: Share

    @property
    def change(self) -> float | None:
        """What was gained, in [-1, 1]."""
        if self.before is None or self.before.value is None or self.now.value is None:
            return None
        return self.now.value - self.before.value


@dataclass(frozen=True, kw_only=True)
class ClassLine:
    """A class on the new holdout, and what changed on the old one; precision of the challenger is over all rows."""

    name: str
    new: Comparison | None
    old: Comparison | None
    precision: float | None

    @property
    def change(self) -> float:
        """The worse of both changes, for the order of lines."""
        changes = [line.change for line in (self.old, self.new) if line is not None and line.change is not None]
        return min(changes, default=0.0)


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """What is drawn of one holdout. `scores_of` are means over classes: name, champion's, challenger's."""

    name: str
    paired: PairedOutcome
    flip_rate: float | None
    relative_flips: float | None
    flips: list[FlipKind]
    diagram: Markup | None
    errors: tuple[float | None, float | None]
    scores_of: list[tuple[str, float | None, float]]


@dataclass(frozen=True, kw_only=True)
class WindowLine:
    """An old window: champion and challenger on it, and what the anchor had where it knows it."""

    window: str
    comparison: Comparison
    anchor: float | None


def draw_page(evaluation: Evaluation, answers: Answers, anchor_windows: Sequence[str] = ()) -> str:
    """Draw an evaluation as HTML.

    Args:
        evaluation: What was measured.
        answers: It was measured from.
        anchor_windows: Windows that the anchor was trained on.
    """
    environment = Environment(
        loader=PackageLoader("components.evaluate", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sides = [("old", evaluation.old), ("new", evaluation.new)]
    lines = sorted(_class_lines(evaluation), key=lambda line: line.change)
    windows = _window_lines(evaluation, answers, anchor_windows)
    by_window = [evaluation.old.by_window if evaluation.old else {}, _anchored(answers, anchor_windows)]
    return environment.get_template("page.html.j2").render(
        evaluation=evaluation,
        headline=headline(evaluation),
        accuracies=list(_accuracy_lines(evaluation)),
        holdouts=[_holdout(name, scores, answers) for name, scores in sides if scores is not None and scores.rows],
        classes=lines[:MOST_CLASSES],
        more_classes=len(lines[MOST_CLASSES:]),
        slices=_worst_slices(evaluation)[:MOST_SLICES],
        windows=windows,
        transfer=backward_transfer(by_window[0]),
        forgotten=forgetting(*by_window),
        costs=_cost_lines(evaluation.champion_cost, evaluation.challenger_cost),
        devices=sorted({c.device for c in (evaluation.champion_cost, evaluation.challenger_cost) if c}),
    )


def headline(evaluation: Evaluation) -> str:
    """What a person who reads one sentence should know."""
    new = evaluation.new
    if not new.rows:
        return "No held-out row of this window has a label that the challenger knows: nothing of it could be measured."
    if evaluation.champion is None:
        return f"The first challenger is right on {_percent(new.correct, new.rows)} of {new.rows} held-out images."
    told = [_told("new", new.paired)] if new.paired.rows else []
    if evaluation.old is not None and evaluation.old.paired.rows:
        told.append(_told("old", evaluation.old.paired))
    both = f"The challenger is right {' and '.join(told)}." if told else ""
    if not new.new_classes:
        return both or "No row is of a class that champion and challenger know."
    rows, correct = (sum(getattr(c, what) for c in new.new_classes.values()) for what in ("rows", "correct"))
    return f"{both} It recognises {correct} of {rows} rows of new classes ({len(new.new_classes)}).".strip()


def _told(name: str, paired: PairedOutcome) -> str:
    now = _percent(paired.both_right + paired.only_challenger_right, paired.rows)
    was = _percent(paired.both_right + paired.only_champion_right, paired.rows)
    turned = f"{paired.only_challenger_right} answers mended, {paired.only_champion_right} broken"
    return f"on {now} of the {name} holdout (champion {was}: {turned})"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _compare(name: str, paired: PairedOutcome) -> Comparison:
    return Comparison(
        name=name,
        rows=paired.rows,
        before=Share(right=paired.both_right + paired.only_champion_right, rows=paired.rows),
        now=Share(right=paired.both_right + paired.only_challenger_right, rows=paired.rows),
    )


def _alone(name: str, correct: int, rows: int) -> Comparison:
    return Comparison(name=name, rows=rows, before=None, now=Share(right=correct, rows=rows))


def _accuracy_lines(evaluation: Evaluation) -> Iterator[Comparison]:
    for name, scores in (("old holdout", evaluation.old), ("new holdout", evaluation.new)):
        if scores is None:
            continue
        if evaluation.champion is None:
            yield _alone(name, scores.correct, scores.rows)
            continue
        yield _compare(name, scores.paired)
        if scores.rows > scores.paired.rows:
            yield _alone(f"{name}, with new classes", scores.correct, scores.rows)
    if evaluation.anchor is not None:
        yield _compare("the anchor's windows, with it as champion", evaluation.anchor.paired)


def _class_lines(evaluation: Evaluation) -> Iterator[ClassLine]:
    new, old = evaluation.new, evaluation.old
    here = dict(zip(new.classes, zip(recalls(new.confusion), precisions(new.confusion), strict=True), strict=True))
    for place, name in enumerate(new.classes):
        yield ClassLine(
            name=name,
            new=_class_comparison(new, name, place),
            old=_class_comparison(old, name, place) if old else None,
            precision=here[name][1],
        )


def _class_comparison(scores: HoldoutScores, name: str, place: int) -> Comparison | None:
    if name in scores.by_class:
        return _compare(name, scores.by_class[name])
    given = scores.confusion[place]
    return _alone(name, given.get(place, 0), sum(given.values())) if given else None


def _worst_slices(evaluation: Evaluation) -> list[tuple[str, SliceScores, Comparison]]:
    """Slices by what was lost on them; while there is no champion, by what the challenger has right. Classes and old
    windows have tables of their own."""
    found = []
    for holdout, scores in (("old", evaluation.old), ("new", evaluation.new)):
        for one in scores.slices if scores else ():
            if one.by in ("class", "window"):
                continue
            if evaluation.champion is None:
                found.append((holdout, one, _alone(one.value, one.correct, one.rows)))
            elif one.paired.rows:
                found.append((holdout, one, _compare(one.value, one.paired)))
    return sorted(found, key=lambda line: (line[2].change or 0.0, line[2].now.value or 0.0))


def _holdout(name: str, scores: HoldoutScores, answers: Answers) -> Holdout:
    rows = answers.of(name)
    now, was = confidence_bins(rows)
    drawn = {model: bins for model, bins in (("champion", was), ("challenger", now)) if bins}
    before, after = scores.champion_confusion, known_rows(scores)
    means = [("balanced accuracy", balanced_accuracy), ("macro-F1", macro_f1)]
    return Holdout(
        name=name,
        paired=scores.paired,
        flip_rate=negative_flip_rate(scores.paired),
        relative_flips=relative_negative_flips(scores.paired),
        flips=negative_flips(rows)[:MOST_FLIPS],
        diagram=reliability_diagram(drawn) if drawn else None,
        errors=(scores.champion_calibration_error, scores.calibration_error),
        scores_of=[
            (what, mean(before) if before is not None else None, value)
            for what, mean in means
            if (value := mean(after)) is not None
        ],
    )


def _anchored(answers: Answers, windows: Sequence[str]) -> dict[str, PairedOutcome]:
    """Anchor and challenger on each old window that the anchor was trained on."""
    old = answers.of("old")
    if old.anchor is None:
        return {}
    return {name: paired for name, paired in pair_windows(old, old.anchor).items() if name in windows}


def _window_lines(evaluation: Evaluation, answers: Answers, anchor_windows: Sequence[str]) -> list[WindowLine]:
    if evaluation.old is None:
        return []
    anchored = _anchored(answers, anchor_windows)
    return [
        WindowLine(
            window=window,
            comparison=_compare(window, paired),
            anchor=anchored[window].champion_accuracy if window in anchored else None,
        )
        for window, paired in evaluation.old.by_window.items()
    ]


def _cost_lines(champion: ModelCost | None, challenger: ModelCost | None) -> list[tuple[str, str, str]]:
    """What is measured, of the champion, of the challenger."""
    if challenger is None:
        return []

    def line(name: str, figure: Callable[[ModelCost], float | None], style: str) -> tuple[str, str, str]:
        values = [figure(cost) if cost else None for cost in (champion, challenger)]
        before, now = ("–" if value is None else format(value, style) for value in values)
        return name, before, now

    def seconds(quantile: str) -> tuple[str, str, str]:
        name = "median" if quantile == "0.5" else f"{100 * float(quantile):.0f} % within"

        def milliseconds(cost: ModelCost) -> float | None:
            return 1000 * cost.latency[quantile] if quantile in cost.latency else None

        return line(f"one image alone, ms: {name}", milliseconds, ".2f")

    return [
        line("weights, MB", lambda cost: cost.bytes / 1e6, ".2f"),
        line("operations for an image, millions", lambda cost: cost.flops / 1e6 if cost.flops else None, ",.1f"),
        *(seconds(quantile) for quantile in challenger.latency),
    ]
