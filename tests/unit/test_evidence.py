"""What a plan is concluded from: read from the store, and said where it is not there."""

from __future__ import annotations

from datetime import UTC, datetime
from math import sqrt
from pathlib import Path

import pytest
import yaml

from components.core.config import load_config
from components.core.contracts import (
    AnchorScores,
    DriftReport,
    Evaluation,
    HoldoutScores,
    Interval,
    Lineage,
    PairedOutcome,
    RunParameters,
    StepDocument,
    TrainingSummary,
    ValidationReport,
)
from components.core.errors import IntegrityError
from components.core.plans import Decision, Evidence, Forecast, PastTraining, Rung
from components.core.recipes import RECIPES, StrategyName
from components.core.registry import EXEMPLARS, FISHER, Registry
from components.core.runs import Run, StepRecord
from components.core.storage import open_store, to_json
from components.core.windows import to_parquet
from components.decide.evidence import gather_evidence
from components.decide.policy import decide
from components.decide.utility import policy_of
from components.evaluate.anchor import find_anchor
from components.ingest.step import ingest
from components.promote.rollback import roll_back
from tests.unit.test_datasets import deliver


class House:
    """A store with windows, versions and runs, none of which was trained."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.config_path = place / "retrain.yaml"
        settings: dict[str, object] = {
            "store": {"uri": "store", "cache": "cache"},
            "ingest": {"workers": 1},
            "model": "m",
        }
        self.config_path.write_text(yaml.safe_dump(settings))
        self.config = load_config(self.config_path)
        self.store = open_store(self.config.store)
        self.registry = Registry(self.store, "m")

    def window(self, name: str, delivery: dict[str, range]) -> str:
        return ingest(self.store, self.config, str(deliver(self.place / name, delivery))).id

    def promote(
        self,
        windows: tuple[str, ...],
        strategy: StrategyName,
        parent: str | None,
        run_id: str | None = None,
        files: dict[str, bytes] | None = None,
    ) -> str:
        lineage = Lineage(
            parent=parent,
            windows=windows,
            strategy=strategy,
            hyperparameters=RECIPES[strategy],
            seed=0,
            package="retrain",
        )
        model = b'{"classes": ["cat", "dog"], "image_size": 224}'
        version = self.registry.save_version({"lineage.json": to_json(lineage), "model.json": model, **(files or {})})
        self.registry.append(
            "promotion",
            version,
            expected_champion=parent,
            window=windows[-1],
            run_id=run_id,
            actor="test",
            reason="test",
        )
        return version

    def run(self, run_id: str, *documents: tuple[str, StepDocument], strategy: str = "auto") -> Run:
        run = Run(self.store, run_id)
        run.begin(
            self.config,
            RunParameters(run_id=run_id, model="m", dataset=self.config.dataset, source="s", strategy=strategy),
        )
        for step, document in documents:
            run.write(StepRecord(step=step, started=datetime.now(UTC), seconds=10.0, document=document))
        return run

    def evidence(self, window: str, drift: DriftReport, strategy: str = "auto") -> Evidence:
        run = self.run(
            "now", ("validate", ValidationReport(expectations=())), ("detect_drift", drift), strategy=strategy
        )
        return gather_evidence(run, window)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def past_plan(strategy: StrategyName, evidence: Evidence | None = None) -> Decision:
    rung = Rung(
        strategy=strategy,
        hyperparameters=RECIPES[strategy],
        training_rows=10,
        forecast=Forecast(strategy=strategy),
    )
    return Decision(action="train", rule="forced-strategy", reasons=("Asked for.",), rungs=(rung,), evidence=evidence)


def trained(strategy: StrategyName, version: str = "v", **changes: object) -> TrainingSummary:
    summary = TrainingSummary(
        version=version,
        strategy=strategy,
        rows=1000,
        replayed_rows=0,
        classes=("cat", "dog"),
        losses=(1.0,),
        seconds=6.0,
        images_per_second=1.0,
        device="2 x H100, bfloat16",
        processor="H100",
        gpus=2,
    )
    return summary.model_copy(update=changes)


def judged(challenger: str, old_before: int, old_after: int) -> Evaluation:
    """Both on 100 rows; on the new holdout the challenger has 90 right and the champion 80."""

    def scores(before: int, after: int) -> HoldoutScores:
        paired = PairedOutcome(
            both_right=min(before, after),
            only_champion_right=max(0, before - after),
            only_challenger_right=max(0, after - before),
            both_wrong=100 - max(before, after),
        )
        return HoldoutScores(
            rows=100, correct=after, paired=paired, new_classes={}, classes=("cat",), confusion=({0: 100},)
        )

    return Evaluation(champion="x", challenger=challenger, old=scores(old_before, old_after), new=scores(80, 90))


def test_the_first_window_has_no_history_and_that_is_said(house: House) -> None:
    window = house.window("first", {"cat": range(20), "dog": range(100, 120)})
    found = house.evidence(window, DriftReport(champion=None, rows=8))
    assert (found.champion, found.old_rows, found.old_windows, found.forgotten) == (None, 0, (), None)
    assert found.window_classes == {"cat": 20, "dog": 20}
    assert found.new_rows + found.held_out == 40
    assert found.missing == ("No training is on record: what this one will take is not known.",)
    assert decide(found, policy_of(house.config)).rule == "no-champion"


def test_what_the_steps_before_found_is_taken_over(house: House) -> None:
    old = house.window("old", {"cat": range(20), "dog": range(100, 115)})
    new = house.window("new", {"cat": range(20, 40), "owl": range(200, 210)})
    champion = house.promote((old,), "retrain", None)
    interval = Interval(lower=0.1, upper=0.3)
    drift = DriftReport(
        champion=champion,
        rows=6,
        drifted=True,
        change="blur",
        reference_accuracy=0.9,
        window_accuracy=0.7,
        accuracy_drop=0.2,
        accuracy_drop_interval=interval,
    )
    found = house.evidence(new, drift, strategy="ewc")
    assert (found.champion, found.champion_classes, found.champion_image_size) == (champion, ("cat", "dog"), 224)
    assert (found.old_windows, found.old_classes) == ((old,), {"cat": 20, "dog": 15})
    assert (found.drifted, found.change, found.drop, found.drop_interval) == (True, "blur", 0.2, interval)
    assert (found.forced, found.already_trained, found.released) == ("ewc", False, None)


def test_the_current_window_is_no_old_one(house: House) -> None:
    window = house.window("old", {"cat": range(20), "dog": range(100, 115)})
    champion = house.promote((window,), "retrain", None)
    found = house.evidence(window, DriftReport(champion=champion, rows=6))
    assert (found.already_trained, found.old_windows, found.old_rows) == (True, (), 0)


def test_labels_that_are_to_come_are_counted(house: House) -> None:
    old = house.window("old", {"cat": range(20), "dog": range(100, 115)})
    new = house.window("new", {"cat": range(20, 40)})
    champion = house.promote((old,), "retrain", None)
    found = house.evidence(new, DriftReport(champion=champion, rows=50, unlabelled=30, undecided="too few"))
    assert (found.labelled, found.unlabelled, found.least_labelled, found.undecided) == (20, 30, 50, "too few")
    assert found.least_held_out == 9, "0.05 ** (1 / 9) is above gate.min_accuracy, 0.7; with 8 rows it is below"
    assert (found.lacks_labels, found.label_list) == (True, "runs/now/to_label.csv")
    assert found.labels_missing == 30


def test_a_window_with_labels_enough_names_no_list(house: House) -> None:
    window = house.window("first", {"cat": range(20), "dog": range(100, 140)})
    found = house.evidence(window, DriftReport(champion=None, rows=90, unlabelled=30))
    assert (found.lacks_labels, found.label_list) == (False, None)


def test_exemplars_are_counted(house: House) -> None:
    import pyarrow as pa

    window = house.window("old", {"cat": range(20), "dog": range(100, 115)})
    files = {EXEMPLARS: to_parquet(pa.table({"label": ["cat"] * 7})), FISHER: b""}
    champion = house.promote((window,), "retrain", None, files=files)
    found = house.evidence(window, DriftReport(champion=champion, rows=6))
    assert (found.exemplars, found.has_fisher) == (7, True)


def test_without_labels_exemplars_or_history_it_is_said_and_a_plan_follows(house: House) -> None:
    old = house.window("old", {"cat": range(20), "dog": range(100, 115)})
    new = house.window("new", {"cat": range(20, 40)})
    champion = house.promote((old,), "fine-tune", None)
    found = house.evidence(new, DriftReport(champion=champion, rows=6))
    assert found.missing == (
        "No training is on record: what this one will take is not known.",
        "No image of a class that the champion knows has a label yet: its loss of accuracy is not measured.",
        "Nor is it estimated: too few images, or no changes were rehearsed when the champion was made.",
        "The champion's version keeps no exemplars: all old training rows are drawn from.",
        "No full retrain is found among the last 100 versions: when there was one is not known.",
    )
    plan = decide(found, policy_of(house.config))
    assert (plan.action, plan.rule) == ("skip", "nothing-to-gain")


def test_what_was_forgotten_is_told_by_the_comparison_with_the_last_full_retrain(house: House) -> None:
    windows = [house.window(str(n), {"cat": range(10 * n, 10 * n + 10)}) for n in range(3)]
    first = house.promote((windows[0],), "retrain", None, "run-0")
    second = house.promote(tuple(windows[:2]), "fine-tune", first, "run-1")
    third = house.promote(tuple(windows), "rehearsal", second, "run-2")
    paired = PairedOutcome(both_right=80, only_champion_right=7, only_challenger_right=3, both_wrong=10)
    compared = judged(third, 88, 89).model_copy(update={"anchor": AnchorScores(version=first, paired=paired)})
    house.run("run-2", ("evaluate-1", judged("not this one", 90, 10)), ("evaluate-2", compared))
    found = house.evidence(house.window("new", {"cat": range(50, 60)}), DriftReport(champion=third, rows=2))
    assert (found.windows_since, found.forgotten) == (2, pytest.approx(0.04))
    assert found.forgotten_interval is not None
    assert found.forgotten_interval.upper == pytest.approx(0.04 + 1.96 * sqrt((10 - 4**2 / 100) / 100**2), abs=1e-4)
    assert found.retrained == datetime.now(UTC).date()


def test_a_model_just_trained_from_scratch_forgot_nothing(house: House) -> None:
    first = house.promote((house.window("a", {"cat": range(10)}),), "retrain", None)
    found = house.evidence(house.window("b", {"cat": range(20, 30)}), DriftReport(champion=first, rows=2))
    assert (found.windows_since, found.forgotten) == (0, 0.0)


def test_a_promotion_that_nobody_measured_leaves_it_unknown(house: House) -> None:
    old, new = house.window("a", {"cat": range(10)}), house.window("b", {"cat": range(10, 20)})
    first = house.promote((old,), "retrain", None)
    second = house.promote((old, new), "fine-tune", first)
    found = house.evidence(house.window("c", {"cat": range(20, 30)}), DriftReport(champion=second, rows=2))
    assert (found.windows_since, found.forgotten) == (1, None)
    assert found.missing[-1].startswith("The champion was not compared with the last version trained from scratch")


def test_past_runs_tell_what_trainings_take_and_bring(house: House) -> None:
    old = house.window("a", {"cat": range(20), "dog": range(100, 120)})
    champion = house.promote((old,), "retrain", None)
    earlier = house.evidence(house.window("b", {"cat": range(20, 40)}), DriftReport(champion=champion, rows=2))
    house.run(
        "a-past-run",
        ("decide", past_plan("fine-tune", earlier)),
        ("train-1", trained("fine-tune")),
        ("evaluate-1", judged("v", 90, 88)),
    )
    run = house.run(
        "later",
        ("validate", ValidationReport(expectations=())),
        ("detect_drift", DriftReport(champion=champion, rows=2)),
    )
    found = gather_evidence(run, house.window("c", {"cat": range(40, 60)}))
    assert found.trainings == (
        PastTraining(
            strategy="fine-tune",
            device="2 x H100, bfloat16",
            architecture="resnet18",
            work=30_000 * 224**2 / 1e6,
            seconds=6.0,
            other_seconds=4.0,
        ),
    )
    assert (found.device, found.processor, found.gpus) == ("2 x H100, bfloat16", "H100", 2)
    assert [(gain.strategy, gain.old, gain.new) for gain in found.gains] == [
        ("fine-tune", pytest.approx(-0.02), pytest.approx(0.1))
    ]


def trained_run(house: House, run_id: str, seconds: float, model: str = "m", attempts: int = 1) -> None:
    config = house.config.model_copy(update={"model": model})
    run = Run(house.store, run_id)
    run.begin(config, RunParameters(run_id=run_id, model=model, dataset="images", source="s", strategy="auto"))
    for step, document in (
        ("decide", past_plan("fine-tune")),
        ("train-1", trained("fine-tune", seconds=seconds, attempts=attempts)),
    ):
        run.write(StepRecord(step=step, started=datetime.now(UTC), seconds=seconds, document=document))


def test_runs_that_trained_nothing_do_not_push_out_those_that_did(house: House) -> None:
    house.config_path.write_text(house.config_path.read_text() + "decision: {history_runs: 2}\n")
    house.config = load_config(house.config_path)
    for number in range(3):
        trained_run(house, f"a{number}", float(number + 1))
        trained_run(house, f"other-{number}", 99.0, model="another")
    for number in range(5):
        house.run(f"skipped-{number}", ("decide", Decision(action="skip", rule="nothing-to-gain", reasons=("No.",))))
    found = house.evidence(house.window("a", {"cat": range(20)}), DriftReport(champion=None, rows=2))
    assert [past.seconds for past in found.trainings] == [2.0, 3.0], "the last two, the latest last"


def test_a_challenger_that_several_runs_came_to_counts_once(house: House) -> None:
    old = house.window("a", {"cat": range(20), "dog": range(100, 120)})
    champion = house.promote((old,), "retrain", None)
    earlier = house.evidence(house.window("b", {"cat": range(20, 40)}), DriftReport(champion=champion, rows=2))
    for number, version in enumerate(("v", "v", "w")):
        documents = ("decide", past_plan("retrain", earlier)), ("train-1", trained("retrain", version))
        house.run(f"a{number}", *documents, ("evaluate-1", judged(version, 90, 88)))
    documents = ("validate", ValidationReport(expectations=())), ("detect_drift", DriftReport(champion=None, rows=2))
    found = gather_evidence(house.run("later", *documents), old)
    assert (len(found.trainings), len(found.gains)) == (3, 2)


@pytest.mark.parametrize(("strategy", "in_vain"), [("retrain", True), ("fine-tune", False)])
def test_a_full_retrain_that_did_not_replace_the_champion_is_remembered(
    house: House, strategy: StrategyName, in_vain: bool
) -> None:
    champion = house.promote((house.window("a", {"cat": range(20)}),), "retrain", None)
    plan = past_plan(strategy).model_copy(update={"champion": champion})
    house.run("before", ("decide", plan), ("train-1", trained(strategy)))
    found = house.evidence(house.window("b", {"cat": range(20, 40)}), DriftReport(champion=champion, rows=2))
    assert found.retrained_in_vain is in_vain


def test_the_time_of_a_training_that_was_cut_off_tells_nothing(house: House) -> None:
    trained_run(house, "a", 5.0, attempts=2)
    found = house.evidence(house.window("a", {"cat": range(20)}), DriftReport(champion=None, rows=2))
    assert (found.trainings, found.device) == ((), "2 x H100, bfloat16")


def test_an_ancestor_that_is_gone_leaves_the_past_unknown(house: House) -> None:
    old, new = house.window("a", {"cat": range(10)}), house.window("b", {"cat": range(10, 20)})
    first = house.promote((old,), "retrain", None)
    second = house.promote((old, new), "fine-tune", first)
    house.store.delete(f"models/m/versions/{first}/manifest.json")
    found = house.evidence(house.window("c", {"cat": range(20, 30)}), DriftReport(champion=second, rows=2))
    assert (found.retrained, found.windows_since, found.forgotten) == (None, None, None)
    assert found.missing[-1].startswith("No full retrain is found")


def test_drift_that_cannot_be_told_is_said(house: House) -> None:
    old = house.window("a", {"cat": range(20)})
    champion = house.promote((old,), "retrain", None)
    drift = DriftReport(champion=champion, rows=2, undecided="3 independent images are too few")
    found = house.evidence(house.window("b", {"cat": range(20, 40)}), drift)
    assert "Whether the images changed cannot be told: 3 independent images are too few." in found.missing


def test_a_run_that_cannot_be_read_is_left_out_and_named(house: House) -> None:
    trained_run(house, "broken", 1.0)
    house.store.put("runs/broken/decide.json", b"{")
    found = house.evidence(house.window("a", {"cat": range(20)}), DriftReport(champion=None, rows=2))
    assert found.missing[-1].startswith("Run broken cannot be read: ")


def test_a_broken_ledger_stops_the_plan(house: House) -> None:
    window = house.window("a", {"cat": range(20)})
    champion = house.promote((window,), "retrain", None)
    house.store.put("models/m/ledger/0000000001.json", b"{}")
    with pytest.raises(IntegrityError, match="the ledger of m is broken"):
        house.evidence(window, DriftReport(champion=champion, rows=2))


def test_the_same_evidence_is_gathered_twice_and_makes_the_same_plan(house: House) -> None:
    old, new = house.window("a", {"cat": range(20)}), house.window("b", {"cat": range(20, 40)})
    champion = house.promote((old,), "retrain", None)
    found = house.evidence(new, DriftReport(champion=champion, rows=2))
    again = gather_evidence(Run(house.store, "now"), new)
    assert to_json(again) == to_json(found)
    assert decide(again, policy_of(house.config)).digest == decide(found, policy_of(house.config)).digest


# --- after a rollback


def rolled_back(house: House) -> tuple[str, str, str, str]:
    """Two windows and two versions, each the champion once; the first is again."""
    first, second = (house.window(name, {"cat": range(a, b), "dog": range(a, b)}) for name, a, b in WINDOWS)
    old = house.promote((first,), "retrain", None)
    new = house.promote((first, second), "retrain", old, run_id="judged")
    roll_back(house.registry, old, champion=new, actor="ada", reason="misses the night shift")
    return first, second, old, new


WINDOWS = (("one", 0, 30), ("two", 30, 60))


def test_window_that_was_rolled_back_from_is_not_learnt_again_unless_asked_for(house: House) -> None:
    _, second, old, new = rolled_back(house)
    drift = DriftReport(champion=old, rows=60)
    evidence = house.evidence(second, drift)
    said = f"Version {new[:12]}, trained on it, was rolled back from by ada: misses the night shift"
    assert (evidence.rolled_back, evidence.already_trained) == (said, False)
    evidence = evidence.model_copy(update={"new_rows": 100, "held_out": 25})
    plan = decide(evidence, policy_of(house.config))
    assert (plan.action, plan.rule) == ("skip", "rolled-back")
    assert plan.reasons[0] == f"{said}. To learn it again, ask for a strategy: --strategy NAME."
    forced = decide(evidence.model_copy(update={"forced": "fine-tune"}), policy_of(house.config))
    assert (forced.action, forced.rule) == ("train", "forced-strategy")


def test_other_windows_and_versions_that_stand_again_know_nothing_of_a_rollback(house: House) -> None:
    first, second, old, new = rolled_back(house)
    drift = DriftReport(champion=old, rows=60)
    assert house.evidence(first, drift).rolled_back is None
    roll_back(house.registry, new, champion=old, actor="ada", reason="it was the camera")
    run = house.run("later", ("validate", ValidationReport(expectations=())), ("detect_drift", drift))
    assert gather_evidence(run, second).rolled_back is None


def test_the_past_of_a_champion_that_was_rolled_back_to_is_its_own(house: House) -> None:
    """Not that of the version that stood in between: another full retrain, of another day."""
    _, second, old, _ = rolled_back(house)
    evidence = house.evidence(second, DriftReport(champion=old, rows=60))
    assert (evidence.windows_since, evidence.forgotten) == (0, 0.0)
    assert evidence.retrained == house.registry.ledger()[0].created.date()
    assert find_anchor(house.registry, old) is None


def test_full_retrain_that_was_rolled_back_from_was_in_vain(house: House) -> None:
    _, second, old, new = rolled_back(house)
    plan = past_plan("retrain").model_copy(update={"champion": old})
    house.run("judged", ("decide", plan), ("train-1", trained("retrain", new)))
    assert house.evidence(second, DriftReport(champion=old, rows=60)).retrained_in_vain
