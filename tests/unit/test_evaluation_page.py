"""The page of an evaluation: what it says, that it is whole, fetches nothing and shows hostile names as text."""

import re
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from components.core.config import EvaluationConfig
from components.core.contracts import Evaluation, ModelCost
from components.evaluate.answers import Answers
from components.evaluate.calibration import Bin
from components.evaluate.diagram import reliability_diagram
from components.evaluate.figures import list_figures
from components.evaluate.measurement import measure_anchor, measure_holdout
from components.evaluate.page import MOST_CLASSES, draw_page, headline
from tests.unit.test_drift_page import sound
from tests.unit.test_evaluation_answers import answers_of
from tests.unit.test_report import Elements

HOSTILE = "<script>alert(1)</script>"
COST = ModelCost(bytes=2_500_000, flops=3_400_000, latency={"0.5": 0.001, "0.95": 0.0025, "0.99": 0.004}, device="CPU")


def evaluation_of(answers: Answers, windows: tuple[str, ...] = ("first",), cost: ModelCost | None = COST) -> Evaluation:
    old = answers.of("old")
    config = EvaluationConfig(min_slice_rows=1, slices=("mode",) if "mode" in answers.rows.column_names else ())
    return Evaluation(
        champion=answers.champion.version if answers.champion else None,
        challenger="v3",
        old=measure_holdout(old, config) if len(old) else None,
        new=measure_holdout(answers.of("new"), config),
        anchor=measure_anchor(answers, windows),
        champion_cost=cost if answers.champion else None,
        challenger_cost=cost,
    )


def judged(classes: str = "abc") -> Answers:
    """Two old windows and a new one. Old: of 6 rows the champion has 5, the challenger 4. New: 3 rows of classes that
    both know, champion 1, challenger 2, and 2 of a new class, of which the challenger has 1."""
    return answers_of(
        *("ababab" + "abacc", "abaabb" + "abbca", "ababaa" + "bbbab", "aaaaaa" + "aaaaa"),
        classes=classes,
        known="ab",
        anchored="ab",
        holdouts=["old"] * 6 + ["new"] * 5,
        windows=["first"] * 4 + ["second"] * 2 + ["third"] * 5,
        mode=["L", "RGB"] * 5 + ["L"],
    )


def drawn(answers: Answers, **options: object) -> str:
    return sound(draw_page(evaluation_of(answers, **options), answers, ("first",)))  # type: ignore[arg-type]


def cells(page: str, start: str) -> list[str]:
    """Texts of the table row that starts with a text."""
    for row in re.findall(r"<tr><td.*?</tr>", page, re.DOTALL):
        texts = [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        if texts[0] == start:
            return texts
    raise AssertionError(f"no row starts with {start}")


def test_the_headline_says_who_is_right_and_what_turned() -> None:
    assert headline(evaluation_of(judged())) == (
        "The challenger is right on 66.7 % of the new holdout (champion 33.3 %: 1 answers mended, 0 broken) and on "
        "66.7 % of the old holdout (champion 83.3 %: 1 answers mended, 2 broken). "
        "It recognises 1 of 2 rows of new classes (1)."
    )


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (answers_of("ab", "aa"), "The first challenger is right on 50.0 % of 2 held-out images."),
        (answers_of("", "", ""), "No held-out row of this window"),
        (answers_of("cc", "ca", "ab", known="ab"), "It recognises 1 of 2 rows of new classes (1)."),
    ],
)
def test_headlines_of_what_is_missing(answers: Answers, told: str) -> None:
    assert headline(evaluation_of(answers)).startswith(told)
    assert headline(evaluation_of(answers)) in Elements(drawn(answers)).text


def test_the_page_tells_all() -> None:
    page = drawn(judged())
    assert cells(page, "old holdout") == ["old holdout", "6", "83.3 % 43.6 to 97.0", "66.7 % 30.0 to 90.3", "-16.7"]
    assert cells(page, "new holdout")[1:] == ["3", "33.3 % 6.1 to 79.2", "66.7 % 20.8 to 93.9", "+33.3"]
    assert cells(page, "new holdout, with new classes")[1:] == ["5", "–", "60.0 % 23.1 to 88.2", "–"]
    anchored = cells(page, "the anchor&#39;s windows, with it as champion")
    assert (anchored[1], anchored[2][:6], anchored[3][:6]) == ("4", "50.0 %", "75.0 %")
    # New: 2 rows of a, champion 0, challenger 1; old: 3 rows of a, champion 3, challenger 2.
    assert cells(page, "a") == ["a", "2", "0.0 %", "50.0 %", "+50.0", "50.0 %", "3", "100.0 %", "66.7 %", "-33.3"]
    assert cells(page, "c new")[:4] == ["c new", "2", "–", "50.0 %"]
    assert cells(page, "first")[1:3] == ["4", "50.0 %"]
    assert cells(page, "second")[1:3] == ["2", "–"]
    assert cells(page, "weights, MB") == ["weights, MB", "2.50", "2.50"]
    assert cells(page, "operations for an image, millions")[1:] == ["3.4", "3.4"]
    assert cells(page, "one image alone, ms: 95 % within")[1:] == ["2.50", "2.50"]
    assert page.count("<svg") == 2
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        *("Accuracy", "Recall, class by class", "Slices, the least gain first", "Answers that flip"),
        *("Calibration", "Old windows", "Cost of an answer"),
    ]


def test_broken_answers_are_listed() -> None:
    page = drawn(judged())
    lists = re.findall(r"<tr><td>(old|new) holdout</td><td>(\w)</td><td>(\w)</td><td class=\"n\">(\d+)</td></tr>", page)
    assert lists == [("old", "a", "b", "1"), ("old", "b", "a", "1")]


@pytest.mark.parametrize(
    "answers",
    [
        answers_of("aabb", "abab"),
        answers_of("", ""),
        answers_of("", "", ""),
        answers_of("aaaa", "aaaa", "aaaa"),
        answers_of("cc", "cc", "ab", known="ab"),
        answers_of("ab", "ab", "ab", holdouts=["old", "old"]),
        answers_of("ab", "ab", "ab", "ab", holdouts=["old", "new"], mean=[None, float("nan")]),
    ],
    ids=["no champion", "no rows", "no rows, champion", "one class", "new classes", "no new rows", "anchor"],
)
@pytest.mark.parametrize("cost", [COST, None, COST.model_copy(update={"flops": None, "latency": {}})])
def test_little_is_a_page_too(answers: Answers, cost: ModelCost | None) -> None:
    drawn(answers, cost=cost)


def test_names_cannot_become_markup() -> None:
    answers = judged()
    names = {"a": HOSTILE, "b": '"&<b>', "c": HOSTILE + "c"}

    def renamed(column: str) -> list[str]:
        return [names.get(str(value), str(value)) for value in answers.column(column)]

    rows = answers.rows
    for column in ("label", "mode"):
        values = renamed(column) if column == "label" else [HOSTILE, "<b>"] * 5 + [HOSTILE]
        rows = rows.set_column(rows.column_names.index(column), column, pa.array(values))
    models = {}
    for name in ("challenger", "champion", "anchor"):
        one = getattr(answers, name)
        models[name] = type(one)(**{**vars(one), "classes": tuple(names[c] for c in one.classes)})
    hostile = Answers(rows=rows, classes=tuple(names.values()), **models)
    page = drawn(hostile)
    assert HOSTILE not in page
    assert "<b>" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_the_worst_class_comes_first_and_many_are_cut_off() -> None:
    classes = "".join(chr(0x4E00 + n) for n in range(MOST_CLASSES + 20))
    labels = classes * 2
    broken = labels[:-1] + labels[0]
    page = drawn(answers_of(labels, broken, labels, classes=classes, known=classes, mode=["L"] * len(labels)))
    listed = re.findall(r"<tr><td>(\S)</td><td class=\"n rule\">", page)
    assert listed[0] == classes[-1]
    assert len(listed) == MOST_CLASSES
    assert "20 more classes" in Elements(page).text


def test_the_same_evaluation_gives_the_same_bytes() -> None:
    assert drawn(judged()) == drawn(judged())


def test_the_diagram_has_a_dot_for_each_bin() -> None:
    half = Bin(lower=0.4, upper=0.6, rows=3, confidence=0.5, accuracy=0.25)
    sure = Bin(lower=0.9, upper=1.0, rows=1, confidence=1.0, accuracy=1.0)
    chart = ElementTree.fromstring(reliability_diagram({"champion": [half], "challenger": [half, sure]}))  # noqa: S314
    dots = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in chart.iter("circle")]
    box = next(chart.iter("rect"))
    left, top, side = (float(box.get(name, "")) for name in ("x", "y", "width"))
    middle, corner = (left + side / 2, top + 0.75 * side), (left + side, top)
    assert [place for dot in dots for place in dot] == pytest.approx([*middle, *middle, *corner], abs=0.06)
    assert len(list(chart.iter("polyline"))) == 2


# --- figures


def test_figures_of_everything() -> None:
    figures = list_figures(evaluation_of(judged()))
    expected = {
        "champion_old": 5 / 6,
        "challenger_old": 4 / 6,
        "champion_new": 1 / 3,
        "challenger_new": 2 / 3,
        "challenger_new_all_classes": 3 / 5,
        "challenger_balanced_accuracy_new": (1 / 2 + 1) / 2,
        "champion_balanced_accuracy_new": (0 + 1) / 2,
        "negative_flips_old": 2 / 6,
        "positive_flips_old": 1 / 6,
        "negative_flips_new": 0,
        "backward_transfer": (-1 / 4 + 0) / 2,
        "anchor_accuracy": 2 / 4,
        "challenger_accuracy_on_anchor": 3 / 4,
        "challenger_bytes": 2_500_000,
        "champion_flops": 3_400_000,
        "challenger_seconds_p95": 0.0025,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert {"challenger_macro_f1_old", "champion_calibration_error_new", "champion_seconds_p50"} <= set(figures)


def test_figures_of_little_are_those_that_were_measured() -> None:
    assert list_figures(evaluation_of(answers_of("", ""), cost=None)) == {}
    first = list_figures(evaluation_of(answers_of("ab", "aa"), cost=None))
    assert first["challenger_new"] == first["challenger_balanced_accuracy_new"] == 0.5
    assert not [name for name in first if name.startswith("champion") or "flips" in name]
