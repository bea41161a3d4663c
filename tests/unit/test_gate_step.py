"""The gate's step: which other runs looked at the same rows, and what that does to the verdict."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.config import load_config
from components.core.contracts import (
    AnchorScores,
    Evaluation,
    HoldoutScores,
    PairedOutcome,
    RunParameters,
    StepDocument,
    VerdictWord,
    WindowDocument,
)
from components.core.plans import Decision, Forecast, Rung
from components.core.recipes import RECIPES
from components.core.rematches import Rematch
from components.core.runs import Run, StepRecord
from components.core.storage import open_store
from components.gate import step
from components.gate.looks import count_looks, forget_failure, note_look

SAME = PairedOutcome(both_right=400)


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "retrain.yaml"
    path.write_text(yaml.safe_dump({"store": {"uri": "store"}, "model": "m", "dataset": "d"}))
    return path


def file(run: Run, name: str, document: StepDocument) -> None:
    run.write(StepRecord(step=name, started=datetime.now(UTC), seconds=0.0, document=document))


def window(name: str) -> WindowDocument:
    counts = {"rows": 10, "usable": 10, "train_rows": 5, "holdout_rows": 5, "image_bytes": 1}
    return WindowDocument(
        id=name,
        dataset="d",
        source="s",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        class_counts={},
        status_counts={},
        manifest="manifest.parquet",
        files={},
        **counts,
    )


def begin(
    config_path: Path,
    run_id: str,
    *,
    window_id: str = "w",
    anchor: str | None = None,
    model: str = "m",
    rows: tuple[str, ...] = (),
) -> Run:
    """A run of two rungs that has been evaluated."""
    config = load_config(config_path)
    run = Run(open_store(config.store), run_id)
    run.begin(
        config.model_copy(update={"model": model}),
        RunParameters(run_id=run_id, model=model, dataset="d", source="s", strategy="auto"),
    )
    rungs = [
        Rung(strategy=name, hyperparameters=RECIPES[name], training_rows=1, forecast=Forecast(strategy=name))
        for name in ("fine-tune", "retrain")
    ]
    scores = HoldoutScores(rows=400, correct=400, paired=SAME, new_classes={}, classes=(), confusion=())
    file(run, "ingest", window(window_id))
    file(run, "decide", Decision(action="train", rule="r", reasons=("Because.",), rungs=tuple(rungs)))
    for rung in (1, 2):
        judged = Evaluation(
            champion="a",
            challenger="b",
            old=scores,
            new=scores,
            anchor=AnchorScores(version=anchor, paired=SAME) if anchor else None,
            sample=rows or (window_id,),
        )
        file(run, f"evaluate-{rung}", judged)
    return run


def end(run: Run, *words: VerdictWord) -> None:
    """Judged once for each word."""
    for rung, word in enumerate(words, start=1):
        note_look(run, run.need(f"evaluate-{rung}", Evaluation))
        if rung == 1 and word == "promote":
            forget_failure(run)


def test_first_run_on_a_window_shares_alpha_among_its_rungs(config_path: Path):
    begin(config_path, "one")
    first = step.run(str(config_path), "one", 1)
    assert first.level == pytest.approx(0.0225)
    assert first.word == "promote"
    assert step.run(str(config_path), "one", 2).level == pytest.approx(0.0225)


@pytest.mark.parametrize(
    "words", [("hold",), ("reject",), ("escalate",), ("escalate", "hold"), ("escalate", "promote")]
)
def test_a_run_that_did_not_pass_at_once_on_the_same_window_counts(config_path: Path, words: tuple[VerdictWord, ...]):
    end(begin(config_path, "one"), *words)
    begin(config_path, "two")
    verdict = step.run(str(config_path), "two", 2)
    assert verdict.level == pytest.approx(0.00225)
    assert "after 1 earlier run on this window" in verdict.sentence
    assert verdict.word == "hold"  # 400 rows on which both agree are enough once, not twice


def test_a_run_that_was_killed_after_it_had_passed_costs_the_next_one_nothing(config_path: Path):
    end(begin(config_path, "killed"), "promote")
    begin(config_path, "again")
    verdict = step.run(str(config_path), "again", 1)
    assert (verdict.level, verdict.word) == (pytest.approx(0.0225), "promote")


def test_runs_that_looked_at_other_rows_do_not_count(config_path: Path):
    end(begin(config_path, "elsewhere", window_id="other"), "hold")
    end(begin(config_path, "another", model="n"), "hold")
    begin(config_path, "unjudged")
    begin(config_path, "now")
    assert step.run(str(config_path), "now", 1).level == pytest.approx(0.0225)


def test_runs_against_the_same_anchor_count_whatever_came_of_them(config_path: Path):
    end(begin(config_path, "promoted", window_id="v", anchor="root"), "promote")
    end(begin(config_path, "held", window_id="u", anchor="root"), "hold")
    end(begin(config_path, "older", window_id="t", anchor="an older one"), "hold")
    end(begin(config_path, "none", window_id="s"), "hold")
    run = begin(config_path, "now", anchor="root")
    looks = count_looks(run, run.need("evaluate-1", Evaluation), 2)
    assert (looks.rungs, looks.same_window, looks.same_anchor) == (2, 0, 2)
    assert "after 2 earlier runs against it" in step.run(str(config_path), "now", 1).sentence


def test_a_run_that_cannot_be_read_stops_no_verdict(config_path: Path, caplog: pytest.LogCaptureFixture):
    broken = begin(config_path, "broken")
    end(broken, "hold")
    broken.store.put("looks/m/failed/broken", b"{")
    begin(config_path, "now")
    assert step.run(str(config_path), "now", 1).level == pytest.approx(0.0225)
    assert "looks/m/failed/broken" in caplog.text


def test_repeating_the_step_gives_the_verdict_on_record(config_path: Path):
    begin(config_path, "one")
    first = step.run(str(config_path), "one", 1)
    end(begin(config_path, "two"), "hold")
    assert step.run(str(config_path), "one", 1) == first


def test_windows_that_share_rows_are_looked_at_together(config_path: Path):
    end(begin(config_path, "small", window_id="a", rows=tuple("abcd")), "hold")
    end(begin(config_path, "grown", window_id="ab", rows=tuple("abcdefgh")), "hold")
    end(begin(config_path, "other", window_id="c", rows=tuple("mnopqrst")), "hold")
    begin(config_path, "now", window_id="abc", rows=tuple("abcdefghijkl"))
    assert "after 2 earlier runs on this window" in step.run(str(config_path), "now", 1).sentence


def test_a_picture_that_comes_with_every_delivery_makes_no_two_of_them_the_same(config_path: Path):
    end(begin(config_path, "one", window_id="a", rows=tuple("abcdefgh")), "hold")
    begin(config_path, "two", window_id="b", rows=tuple("abcmnopq"))
    assert step.run(str(config_path), "two", 1).level == pytest.approx(0.0225)


def test_of_two_runs_at_the_same_time_one_sees_the_other(config_path: Path, monkeypatch: pytest.MonkeyPatch):
    begin(config_path, "one")
    begin(config_path, "two")
    judge, levels = step.judge, []

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        if not levels:
            levels.append(None)
            levels.append(step.run(str(config_path), "two", 1).level)
        return judge(*arguments, **options)

    monkeypatch.setattr(step, "judge", meanwhile)
    first = step.run(str(config_path), "one", 1).level
    assert sorted([first, levels[-1]]) == pytest.approx([0.00225, 0.0225])


def test_a_repeated_verdict_is_one_look(config_path: Path):
    run = begin(config_path, "one", anchor="root")
    for _ in range(2):
        end(run, "hold")
    looks = count_looks(run, run.need("evaluate-1", Evaluation), 1)
    assert (looks.same_window, looks.same_anchor) == (0, 0)
    looks = count_looks(begin(config_path, "two", anchor="root"), run.need("evaluate-1", Evaluation), 1)
    assert (looks.same_window, looks.same_anchor) == (1, 1)


def test_rematch_is_judged_as_a_run_of_its_own_that_comes_after(config_path: Path):
    run = begin(config_path, "one", anchor="root")
    assert step.run(str(config_path), "one", 2).level == pytest.approx(0.0225)
    file(run, "evaluate-2-rematch-1", run.need("evaluate-2", Evaluation))
    rematch = step.run(str(config_path), "one", 2, Rematch(number=1, champion="a"))
    assert rematch.level == pytest.approx(0.0045)  # one attempt, nine tenths of the tenth that the first left
    assert rematch.word == "hold"  # the last rung or not, there is none to climb to
    looks = count_looks(run, run.need("evaluate-2", Evaluation), 1, 2)
    assert (looks.rungs, looks.same_window, looks.same_anchor) == (1, 2, 2)


def test_rematches_of_another_run_count_as_looks(config_path: Path):
    other = begin(config_path, "other", anchor="root")
    judged = other.need("evaluate-1", Evaluation)
    for rematch in (0, 1, 2):
        note_look(other, judged, rematch)
    looks = count_looks(begin(config_path, "now", anchor="root"), judged, 2)
    assert (looks.same_window, looks.same_anchor) == (3, 3)
