"""The report: a run told in one row, and the page, which must show hostile names as text."""

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from components.core.config import Config, IngestConfig, StoreConfig, load_config
from components.core.contracts import (
    Accuracies,
    CheckedExpectation,
    CheckResult,
    DriftReport,
    DriftView,
    Evaluation,
    Failure,
    HoldoutScores,
    Lineage,
    Outcome,
    PairedOutcome,
    RunParameters,
    RunReport,
    StepDocument,
    TrainingSummary,
    ValidationReport,
    Verdict,
    WindowDocument,
)
from components.core.errors import IntegrityError
from components.core.plans import Decision, Forecast, Rung
from components.core.recipes import Recipe
from components.core.registry import Registry
from components.core.runs import Run, StepRecord
from components.core.storage import DirectoryStore
from components.core.thumbnails import thumbnail
from components.core.windows import Window
from components.ingest.step import ingest
from components.report import step
from components.report.page import render_page
from components.report.summary import read_steps, summarise

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTILE = "<script>alert('x')</script> & \"co\""
LOOP = Recipe(epochs=2, learning_rate=0.1)
CONFIG = Config(store=StoreConfig(uri="unused"), ingest=IngestConfig(workers=1))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def begin(store: DirectoryStore, run_id: str = "run-1", source: str = "delivery", config: Config = CONFIG) -> Run:
    run = Run(store, run_id)
    run.begin(
        config, RunParameters(run_id=run_id, model="classifier", dataset="images", source=source, strategy="auto")
    )
    return run


def file(run: Run, step: str, document: StepDocument, after: float = 0.0, seconds: float = 1.0) -> None:
    run.write(StepRecord(step=step, started=START + timedelta(seconds=after), seconds=seconds, document=document))


def scores(correct: int) -> HoldoutScores:
    """Of 150 rows, 100 are of classes both know: the champion has 70 of these right, the challenger `correct`."""
    gained = correct - 60
    return HoldoutScores(
        rows=150,
        correct=correct,
        paired=PairedOutcome(
            both_right=60, only_champion_right=10, only_challenger_right=gained, both_wrong=30 - gained
        ),
        new_classes={},
        classes=("cat",),
        confusion=({0: 100},),
    )


def decision(action: str = "train", reason: str = "The champion lost 5 % accuracy.") -> Decision:
    rung = Rung(strategy="fine-tune", hyperparameters=LOOP, training_rows=10, forecast=Forecast(strategy="fine-tune"))
    return Decision(
        action=action,  # type: ignore[arg-type]
        rule="measurable-drop",
        reasons=(reason, "More."),
        rungs=(rung,) if action == "train" else (),
        champion="v1",
    )


def attempt(run: Run, number: int, strategy: str, verdict: str, after: float) -> None:
    trained = TrainingSummary(
        version=f"c{number}",
        strategy=strategy,  # type: ignore[arg-type]
        rows=10,
        replayed_rows=3,
        classes=("cat",),
        losses=(1.0, 0.5),
        seconds=4.0,
        images_per_second=5.0,
        device="cpu",
    )
    check = CheckResult(
        name="n", passed=False, conclusive=True, value=0.1, bound=0.0, threshold=0.2, sentence=f"Class '{HOSTILE}'."
    )
    file(run, f"train-{number}", trained, after, 4.0)
    file(
        run,
        f"evaluate-{number}",
        Evaluation(champion="v1", challenger=f"c{number}", old=scores(80), new=scores(70 + number)),
        after + 4,
    )
    file(
        run,
        f"gate-{number}",
        Verdict(verdict=verdict, challenger=f"c{number}", champion="v1", checks=(check,)),  # type: ignore[arg-type]
        after + 5,
    )


def outcome(word: str, after: str | None) -> Outcome:
    return Outcome(
        outcome=word,  # type: ignore[arg-type]
        champion_before="v1",
        champion_after=after,
        ledger_number=1,
        reason="Said by the gate.",
    )


def drift(accuracy: float | None = 0.9) -> DriftReport:
    return DriftReport(
        champion="v1",
        rows=10,
        views=(DriftView(name="embeddings", p_value=0.25, effect=0.125),),
        p_value=0.25,
        reference_accuracy=accuracy,
        window_accuracy=None if accuracy is None else accuracy - 0.25,
        accuracy_drop=None if accuracy is None else 0.25,
    )


# --- summary


def test_a_promotion_is_told_from_its_last_attempt(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "detect_drift", drift(0.75), 1, 2.0)
    file(run, "decide", decision(), 3)
    attempt(run, 1, "fine-tune", "escalate", 10)
    attempt(run, 2, "retrain", "promote", 20)
    file(run, "outcome", outcome("promoted", "c2"), 30, 0.5)
    report = summarise(run, ended=True)
    assert (report.outcome, report.verdict, report.attempts, report.strategy) == ("promoted", "promote", 2, "retrain")
    assert (report.champion_before, report.champion_after) == ("v1", "c2")
    assert (report.action, report.rule, report.drift) == ("train", "measurable-drop", "stable")
    assert report.reason == "The champion lost 5 % accuracy."
    # First step begins at second 1, the last ends at 30.5.
    assert report.started == START + timedelta(seconds=1)
    assert report.seconds == pytest.approx(29.5)
    assert report.step_seconds["train-2"] == 4.0
    assert report.accuracy == Accuracies(champion_old=0.7, challenger_old=0.8, champion_new=0.7, challenger_new=0.72)
    assert (report.reference_accuracy, report.window_accuracy) == (0.75, 0.5)


def test_a_skip_shows_what_drift_detection_measured(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "detect_drift", drift(0.75))
    file(run, "decide", decision("skip", "Nothing to gain."))
    file(run, "outcome", outcome("skipped", "v1"))
    report = summarise(run, ended=True)
    assert (report.outcome, report.action, report.strategy, report.attempts) == ("skipped", "skip", None, 0)
    assert report.accuracy == Accuracies()
    assert (report.reference_accuracy, report.window_accuracy) == (0.75, 0.5)
    assert report.sentence == "skipped: Nothing to gain."


def test_a_run_that_waits_says_so_and_its_champion_is_unchanged(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "decide", decision())
    attempt(run, 1, "fine-tune", "promote", 10)
    waits = "Challenger c1 waits for approval (retrain approve run-1 --reason TEXT). As good."
    file(run, "outcome", outcome("waiting", "v1").model_copy(update={"reason": waits}), 20)
    report = summarise(run, ended=True)
    assert (report.outcome, report.verdict) == ("waiting", "promote")
    assert report.champion_before == report.champion_after == "v1"
    assert report.reason == f"The champion lost 5 % accuracy. But: {waits}"


def test_a_run_without_measured_accuracy_has_none(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "detect_drift", drift(None))
    report = summarise(run, ended=True)
    assert (report.accuracy, report.reference_accuracy, report.window_accuracy) == (Accuracies(), None, None)


def test_accuracies_of_a_first_model_are_its_own_over_all_rows() -> None:
    first = Evaluation(
        champion=None, challenger="c1", old=None, new=scores(75).model_copy(update={"paired": PairedOutcome()})
    )
    assert first.accuracies == Accuracies(challenger_new=0.5)
    assert first.figures == {"challenger_new": 0.5, "challenger_new_all_classes": 0.5}


def test_both_models_are_compared_on_the_same_rows() -> None:
    evaluation = Evaluation(champion="v1", challenger="c1", old=None, new=scores(75))
    assert evaluation.accuracies == Accuracies(champion_new=0.7, challenger_new=0.75)
    assert evaluation.figures == {"champion_new": 0.7, "challenger_new": 0.75, "challenger_new_all_classes": 0.5}


def failure(step: str, message: str = "found a hole; expected none; next: fill it") -> Failure:
    return Failure(step=step, error="DataError", message=message, exit_code=2)


def test_a_crash_is_told_with_its_step_and_message(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "decide", decision())
    file(run, "failure-train-1", failure("train-1"))
    report = summarise(run, ended=True)
    assert report.outcome == "failed"
    assert "train-1" in report.reason
    assert "found a hole" in report.reason
    assert (report.champion_before, report.champion_after) == (None, None)
    assert [f.step for f in run.failures()] == ["train-1"]


def test_a_failed_run_keeps_the_champion_of_the_ledger(store: DirectoryStore) -> None:
    run = begin(store)
    registry = Registry(store, "classifier")
    registry.append(
        "promotion", "v7", expected_champion=None, window=None, run_id="earlier", actor="test", reason="first"
    )
    report = summarise(run, ended=True)
    assert (report.champion_before, report.champion_after) == ("v7", "v7")


def test_a_run_that_left_nothing_is_failed_and_says_that_nobody_knows_why(store: DirectoryStore) -> None:
    report = summarise(begin(store), ended=True)
    assert (report.outcome, report.seconds, report.step_seconds) == ("failed", 0.0, {})
    assert "No step filed an outcome" in report.reason
    assert "pod was lost" in report.reason


def test_a_run_that_has_not_ended_is_unfinished(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "detect_drift", drift())
    file(run, "decide", decision())
    report = summarise(run, ended=False)
    assert (report.outcome, report.action, report.verdict) == ("unfinished", "train", None)
    assert summarise(run, ended=True).outcome == "failed"


@pytest.mark.parametrize("ended", [True, False])
def test_a_failure_or_an_outcome_counts_whether_the_run_has_ended_or_not(store: DirectoryStore, ended: bool) -> None:
    run = begin(store)
    file(run, "failure-train-1", failure("train-1"))
    assert summarise(run, ended=ended).outcome == "failed"
    attempt(run, 1, "fine-tune", "promote", 0)
    file(run, "outcome", outcome("promoted", "c1"))
    assert summarise(run, ended=ended).outcome == "promoted"


def test_the_first_of_several_failures_is_the_reason(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "failure-decide", failure("decide", "came of it"), 5)
    file(run, "failure-train-1", failure("train-1", "began it"), 1)
    assert "began it" in summarise(run, ended=True).reason


def test_a_mended_failure_is_no_reason(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "failure-decide", failure("decide", "mended"), 1)
    file(run, "failure-train-1", failure("train-1", "still there"), 5)
    file(run, "decide", decision(), 3)
    assert "still there" in summarise(run, ended=True).reason
    assert "mended" not in summarise(run, ended=True).reason


def test_steps_come_in_the_order_of_the_graph(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "outcome", outcome("promoted", "c1"))
    attempt(run, 1, "fine-tune", "promote", 0)
    file(run, "decide", decision())
    assert list(read_steps(run)) == ["decide", "train-1", "evaluate-1", "gate-1", "outcome"]


# --- page


class Elements(HTMLParser):
    """Collects the tags and the text of a page, and tells whether every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "path", "use", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_without_runs_says_so() -> None:
    page = render_page([])
    assert "No runs yet." in Elements(page).text
    assert "<title>retrain: 0 runs</title>" in page


def test_a_page_shows_every_step_and_every_run(store: DirectoryStore) -> None:
    runs = []
    for number in (1, 2):
        run = begin(store, f"run-{number}", f"delivery-{number}")
        file(run, "detect_drift", drift())
        file(run, "decide", decision())
        attempt(run, 1, "fine-tune", "promote", 10)
        file(run, "outcome", outcome("promoted", "c1"))
        runs.append(run)
    elements = Elements(render_page(runs))
    for text in ("delivery-1", "delivery-2", "embeddings", "0.250", "0.125", "Gate, attempt 1: promote", "70.0 %"):
        assert text in elements.text
    assert elements.text.index("delivery-1") < elements.text.index("delivery-2")
    assert elements.open == []


def test_a_page_is_the_same_twice(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "detect_drift", drift())
    file(run, "outcome", outcome("skipped", "v1"))
    assert render_page([run]) == render_page([run])


def test_a_page_fetches_nothing(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "outcome", outcome("skipped", "v1"))
    elements = Elements(render_page([run]))
    assert "link" not in elements.tags
    assert "script" not in elements.tags
    links = [value or "" for name, value in elements.attributes if name in ("src", "href", "xlink:href")]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


def test_a_crash_is_on_the_page(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "failure-ingest", failure("ingest", f"found {HOSTILE}"))
    elements = Elements(render_page([run]))
    assert HOSTILE in elements.text
    assert "script" not in elements.tags


def hostile_run(store: DirectoryStore, folder: Path) -> Run:
    """A run whose classes, files, source, sentences and reasons all try to be markup."""
    label = HOSTILE.replace("/", "∕")
    (folder / label).mkdir(parents=True)
    for number in range(4):
        Image.new("L", (8, 8), 60 * number).save(folder / label / f"<img src=x onerror=alert({number})>.png")
    (folder / label / "<b>empty.png").write_bytes(b"")
    run = begin(store, source=f"{folder}<script>")
    document = ingest(store, CONFIG, str(folder))
    assert isinstance(document, WindowDocument)
    file(run, "ingest", document)
    expectation = CheckedExpectation(name=HOSTILE, severity="reject", passed=False, sentence=f"Is {HOSTILE}.")
    file(run, "validate", ValidationReport(expectations=(expectation,)))
    file(run, "detect_drift", drift().model_copy(update={"new_classes": {HOSTILE: 4}}))
    file(run, "decide", decision("train", f"The champion does not know '{HOSTILE}'."))
    attempt(run, 1, "fine-tune", "reject", 10)
    file(run, "outcome", outcome("rejected", "v1").model_copy(update={"champion_before": None}))
    return run


def test_hostile_names_are_text(store: DirectoryStore, tmp_path: Path) -> None:
    page = render_page([hostile_run(store, tmp_path / "delivery")])
    elements = Elements(page)
    assert "script" not in elements.tags
    assert "b" not in elements.tags
    assert not any(name.startswith("on") for name, _ in elements.attributes)
    assert len(re.findall(r"<script", page, re.IGNORECASE)) == 0
    assert elements.text.count(HOSTILE) >= 4
    assert "<b>empty.png" in elements.text
    assert elements.open == []


def test_pictures_of_the_new_window_and_of_the_champions_are_side_by_side(
    store: DirectoryStore, tmp_path: Path
) -> None:
    for number, shade in enumerate((0, 60, 120, 180)):
        for side, offset in (("old", 0), ("new", 30)):
            path = tmp_path / side / "cat" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), shade + offset).save(path)
    past, now = (ingest(store, CONFIG, str(tmp_path / side)) for side in ("old", "new"))
    lineage = Lineage(parent=None, windows=(past.id,), strategy="retrain", hyperparameters=LOOP, seed=0, package="0")
    champion = Registry(store, "classifier").save_version({"lineage.json": lineage.model_dump_json().encode()})
    run = begin(store)
    file(run, "ingest", now)
    file(run, "outcome", outcome("skipped", champion).model_copy(update={"champion_before": champion}))
    page = render_page([run])
    sources = re.findall(r'<img src="(data:image/png;base64,[^"]+)"', page)
    assert len(sources) == len(set(sources)) == 8
    known, arrived = (
        {thumbnail((tmp_path / side / "cat" / f"{n}.png").read_bytes()) for n in range(4)} for side in ("old", "new")
    )
    assert set(sources[:4]) == known
    assert set(sources[4:]) == arrived


def test_images_that_were_set_aside_are_told_with_the_reason(store: DirectoryStore, tmp_path: Path) -> None:
    folder = tmp_path / "delivery" / "cat"
    folder.mkdir(parents=True)
    for name, shade in (("first", 10), ("second", 10), ("third", 200)):
        Image.new("L", (8, 8), shade).save(folder / f"{name}.png")
    (folder / "empty.png").write_bytes(b"")
    run = begin(store)
    document = ingest(store, CONFIG, str(folder.parent))
    file(run, "ingest", document)
    rows = Window.open(store, "images", document.id).manifest(("source", "status", "reason")).to_pylist()
    told = {row["source"]: row["reason"] for row in rows if row["status"] == "unreadable"}
    assert list(told) == ["cat/empty.png"]
    assert told["cat/empty.png"]
    text = " ".join(Elements(render_page([run])).text.split())
    assert f"cat/empty.png ({told['cat/empty.png']})" in text
    assert "cat/second.png" in text
    assert "cat/second.png (" not in text, "a duplicate needs no reason"


@pytest.mark.parametrize("labelled", [0, 2])
def test_images_that_nobody_has_labelled_yet_are_in_no_picture(
    store: DirectoryStore, tmp_path: Path, labelled: int
) -> None:
    for number in range(4):
        Image.new("L", (8, 8), 60 * number).save(tmp_path / f"{number}.png")
    lines = ["path,label", *(f"{n}.png,{'cat' if n < labelled else ''}" for n in range(4))]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    document = ingest(store, CONFIG, str(tmp_path / "labels.csv"))
    assert document.unlabelled == 4 - labelled
    run = begin(store)
    file(run, "ingest", document)
    page = render_page([run])
    assert len(re.findall(r'<img src="(data:image/png;base64,[^"]+)"', page)) == labelled
    assert "No pictures:" not in Elements(page).text
    assert "None" not in Elements(page).text


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_thumbnails_are_small_png_of_any_mode(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "large.tiff"
    Image.new(mode, (400, 200)).save(path)
    uri = thumbnail(path.read_bytes())
    assert uri.startswith("data:image/png;base64,")
    assert len(uri) < 40_000


def test_a_skip_shows_in_brackets_what_drift_detection_measured(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "detect_drift", drift(0.75))
    file(run, "outcome", outcome("skipped", "v1").model_copy(update={"champion_before": None}))
    text = Elements(render_page([run])).text
    assert "(75.0 %)" in text
    assert "(50.0 %)" in text
    assert "→" not in text.partition("Accuracies of")[0]


def test_a_promotion_shows_both_models_on_the_same_rows(store: DirectoryStore) -> None:
    run = begin(store)
    file(run, "detect_drift", drift(0.75))
    attempt(run, 2, "retrain", "promote", 10)
    file(run, "outcome", outcome("promoted", "c2").model_copy(update={"champion_before": None}))
    text = Elements(render_page([run])).text
    assert "70.0 % → 80.0 %" in text
    assert "70.0 % → 72.0 %" in text
    assert "(75.0 %)" not in text


# --- the step


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    path = tmp_path / "retrain.yaml"
    path.write_text("store: {uri: store}\n")
    return str(path)


def begin_step(store: DirectoryStore, config_path: str) -> Run:
    return begin(store, config=load_config(config_path))


def without_champion(word: str, after: str | None) -> Outcome:
    return outcome(word, after).model_copy(update={"champion_before": None})


def test_the_step_files_report_page_and_metrics(store: DirectoryStore, config_path: str) -> None:
    run = begin_step(store, config_path)
    file(run, "decide", decision("skip", "Nothing to gain."))
    file(run, "outcome", without_champion("skipped", None))
    report, page = step.run(config_path, "run-1", "SUCCEEDED")
    assert report.outcome == "skipped"
    assert run.need("report", RunReport) == report
    assert run.store.get(run.key("report.html")).decode() == page
    assert "Nothing to gain." in Elements(page).text
    assert "retrain_run_success 1.0" in run.store.get(run.key("metrics.prom")).decode()


def test_a_run_that_is_retried_is_told_anew(store: DirectoryStore, config_path: str) -> None:
    run = begin_step(store, config_path)
    file(run, "decide", decision())
    file(run, "failure-train-1", failure("train-1"))
    first, first_page = step.run(config_path, "run-1", "FAILED")
    assert (first.outcome, run.need("report", RunReport)) == ("failed", first)
    assert "found a hole" in first.reason
    assert "found a hole" in Elements(first_page).text
    assert "retrain_run_success 0.0" in run.store.get(run.key("metrics.prom")).decode()

    attempt(run, 1, "fine-tune", "promote", 10)
    file(run, "outcome", without_champion("promoted", "c1"), 20)
    second, second_page = step.run(config_path, "run-1", "SUCCEEDED")
    assert (second.outcome, second.champion_after, second.attempts) == ("promoted", "c1", 1)
    assert run.need("report", RunReport) == second
    assert "retrain_run_success 1.0" in run.store.get(run.key("metrics.prom")).decode()
    assert run.store.get(run.key("report.html")).decode() == second_page
    assert {tag(first_page), tag(second_page)} == {"failed", "promoted"}
    assert "found a hole" not in Elements(second_page).text


def tag(page: str) -> str:
    """The outcome that a page of one run shows beside its source."""
    (shown,) = set(re.findall(r'<span class="tag [^"]*">([^<]*)</span>', page))
    return str(shown)


def test_a_run_whose_pod_was_lost_is_failed_in_the_report_and_on_its_page(
    store: DirectoryStore, config_path: str
) -> None:
    begin_step(store, config_path)
    report, page = step.run(config_path, "run-1", "RUNNING")
    assert report.outcome == "failed"
    assert tag(page) == "failed"


def test_a_damaged_window_costs_the_page_its_pictures_only(
    store: DirectoryStore, config_path: str, tmp_path: Path
) -> None:
    (tmp_path / "delivery" / "cat").mkdir(parents=True)
    for number in range(4):
        Image.new("L", (8, 8), 60 * number).save(tmp_path / "delivery" / "cat" / f"{number}.png")
    run = begin_step(store, config_path)
    document = ingest(store, CONFIG, str(tmp_path / "delivery"))
    store.delete(f"datasets/images/windows/{document.id}/{document.manifest}")
    file(run, "ingest", document)
    file(run, "decide", decision("skip", "Nothing to gain."))
    file(run, "outcome", without_champion("skipped", None), 5)
    report, page = step.run(config_path, "run-1", "SUCCEEDED")
    assert (report.outcome, run.need("report", RunReport)) == ("skipped", report)
    text = Elements(page).text
    assert f"{document.manifest} is missing" in text.partition("No pictures:")[2]
    assert "Nothing to gain." in text


def test_a_page_that_cannot_be_drawn_does_not_fail_the_step(
    store: DirectoryStore, config_path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(runs: object) -> str:
        raise IntegrityError(f"found {HOSTILE}", expected="a page", next_command="wait")

    monkeypatch.setattr("components.report.page.render_page", refuse)
    run = begin_step(store, config_path)
    file(run, "decide", decision("skip", f"Because of {HOSTILE}."))
    file(run, "outcome", without_champion("skipped", None), 5)
    report, page = step.run(config_path, "run-1", "SUCCEEDED")
    assert (report.outcome, run.need("report", RunReport)) == ("skipped", report)
    assert run.store.get(run.key("report.html")).decode() == page
    elements = Elements(page)
    assert f"found {HOSTILE}" in elements.text.partition("The page cannot be drawn:")[2]
    assert f"skipped: Because of {HOSTILE}." in elements.text
    assert "script" not in elements.tags
    assert "the page cannot be drawn" in caplog.text
    assert "retrain_run_success 1.0" in run.store.get(run.key("metrics.prom")).decode()
