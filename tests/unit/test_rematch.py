"""A rematch with real models and windows: the doorway of promote evaluates and gates against the champion that won."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from components.core.contracts import Evaluation, Outcome, TrainingSummary, Verdict
from components.core.models import Classifier, grow_head
from components.core.rematches import Rematch, judgement_name, last_judgement, list_attempts, list_verdicts
from components.core.runs import Run, StepRecord
from components.core.windows import from_parquet
from components.evaluate import step as evaluate
from components.gate import step as gate
from components.promote.component import promote
from components.report.summary import read_steps, summarise
from tests.unit.test_evaluation_step import House, built, weakened  # noqa: F401
from tests.unit.test_reference import champion, seeded

pytestmark = pytest.mark.usefixtures("one_thread")


class Race(House):
    """A run whose challenger passed against the plan's champion, and another that promotes meanwhile."""

    def __init__(self, place: Path, ids: dict[str, str]) -> None:
        super().__init__(place, ids)
        self.path.write_text(self.path.read_text() + "gate: {old_margin: 0.2, new_margin: 0.2, min_accuracy: 0.5}\n")
        keys: dict[str, Any] = {"window": "w", "actor": "tests", "reason": "because"}
        self.promote = lambda version, before: self.registry.append(
            "promotion", version, expected_champion=before, run_id=None, **keys
        )
        self.promote(self.champion, None)
        self.mine = self.save(champion(), self.champion, ("first", "second", "new"))
        self.run = self.begin()
        trained = {"strategy": "s", "rows": 1, "replayed_rows": 0, "classes": (), "losses": (1.0,), "seconds": 1.0}
        summary = TrainingSummary(version=self.mine, images_per_second=1.0, device="cpu", **trained)
        write(self.run, "train-1", summary)
        document = self.window("new").document
        write(self.run, "ingest", document)
        evaluate.run(str(self.path), "one", self.ids["new"], self.mine, 1)
        assert gate.run(str(self.path), "one", 1).word == "promote"

    def end(self, summary: Path) -> Outcome:
        """Run the body of the doorway, as a pod does."""
        word = promote.python_func(
            config=str(self.path),
            run_id="one",
            window=self.ids["new"],
            challenger=self.mine,
            rung=1,
            verdict="promote",
            outcome=SimpleNamespace(path=summary),
        )
        outcome = self.run.need("outcome", Outcome)
        assert (word, summary.read_text()) == (outcome.word, outcome.sentence)
        return outcome


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def race(built: tuple[Path, dict[str, str]], tmp_path: Path) -> Race:  # noqa: F811
    shutil.copytree(built[0], tmp_path / "house")
    return Race(tmp_path / "house", built[1])


def owl_expert() -> Classifier:
    """Knows owls too, which are noise where cats and dogs are not, and says nothing else."""
    model = grow_head(champion(), ("owl",), seeded(3)).eval()
    with torch.no_grad():
        model.head.bias[2] = 100.0
    return model


def test_challenger_passes_against_the_champion_that_was_faster(race: Race, tmp_path: Path):
    faster = race.save(weakened(champion(), 0.1), race.champion, ("first", "second"))
    race.promote(faster, race.champion)
    outcome = race.end(tmp_path / "summary")
    assert (outcome.outcome, outcome.champion_before, outcome.champion_after) == ("promoted", faster, race.mine)
    assert [record.version for record in race.registry.ledger()] == [race.champion, faster, race.mine]
    evaluation, verdict = last_judgement(race.run, 1)
    assert evaluation is not None
    assert verdict is not None
    assert (evaluation.champion, verdict.champion) == (faster, faster)
    assert evaluation.answers == race.run.key("answers-1-rematch-1.parquet")
    assert verdict.level == pytest.approx(0.0045), "as a run of its own after the first"
    told = summarise(race.run, ended=True)
    assert (told.verdict, told.champion_before, told.accuracy) == ("promote", faster, evaluation.accuracies)
    assert [name for name in read_steps(race.run) if "-1" in name] == [
        "train-1",
        "evaluate-1",
        "gate-1",
        "evaluate-1-rematch-1",
        "gate-1-rematch-1",
    ]


def test_rows_of_classes_that_only_the_new_champion_knows_count_against_the_challenger(race: Race, tmp_path: Path):
    """Its windows hold owls; the challenger was planned before they came."""
    faster = race.save(owl_expert(), race.champion, ("first", "second", "mixed"))
    race.promote(faster, race.champion)
    outcome = race.end(tmp_path / "summary")
    evaluation, verdict = last_judgement(race.run, 1)
    assert evaluation is not None
    assert verdict is not None
    assert evaluation.old is not None
    rows = from_parquet(race.store.get(str(evaluation.answers)))
    owls = sum(label == "owl" for label in rows["label"].to_pylist())
    assert owls > 5
    assert rows["window"].to_pylist().count(race.ids["mixed"]) > owls
    paired = evaluation.old.by_class["owl"]
    assert (paired.rows, paired.only_champion_right, paired.only_challenger_right) == (owls, owls, 0)
    assert (
        evaluation.old.paired.rows == evaluation.old.rows == sum(side == "old" for side in rows["holdout"].to_pylist())
    )
    assert evaluation.old.classes == ("cat", "dog", "owl")
    assert verdict.verdict == "reject"
    assert (outcome.outcome, outcome.champion_after) == ("rejected", faster)
    assert "Passed against" in outcome.reason
    assert "Class 'owl' of old holdout lost more" in outcome.reason
    assert [record.kind for record in race.registry.ledger()] == ["promotion", "promotion", "rejection"]


def test_window_of_the_run_is_not_among_the_old_ones_of_the_new_champion(race: Race):
    faster = race.save(champion(), race.champion, ("first", "second", "new"))
    evaluation, _ = evaluate.run(
        str(race.path), "one", race.ids["new"], race.mine, 1, Rematch(number=1, champion=faster)
    )
    first = race.run.need("evaluate-1", Evaluation)
    assert evaluation.old is not None
    assert first.old is not None
    assert (evaluation.old.rows, evaluation.new.rows) == (first.old.rows, first.new.rows)


def verdict(word: Any) -> Verdict:
    return Verdict(verdict=word, challenger="c", champion="a", checks=())


def write(run: Run, name: str, document: Any) -> None:
    run.write(StepRecord(step=name, started=now(), seconds=0.0, document=document))


def test_last_verdict_of_an_attempt_counts(race: Race):
    run = race.begin("two")
    assert (list_verdicts(run, 1), last_judgement(run, 1), list_attempts(run)) == ([], (None, None), [])
    write(run, "gate-1", verdict("escalate"))
    write(run, "gate-2", verdict("promote"))
    write(run, f"gate-{judgement_name(2, 1)}", verdict("promote"))
    write(run, f"gate-{judgement_name(2, 2)}", verdict("hold"))
    assert [v.verdict for v in list_verdicts(run, 2)] == ["promote", "promote", "hold"]
    assert [len(verdicts) for verdicts in list_attempts(run)] == [1, 3]
    _, last = last_judgement(run, 2)
    assert last == verdict("hold")
