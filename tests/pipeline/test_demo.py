"""The demo, the main job of the README, run whole: six windows, six outcomes, each from data and configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from components.core.config import load_config
from components.core.registry import Registry
from components.core.storage import open_store
from tests.pipeline.conftest import executed, retrain

pytestmark = pytest.mark.slow
BEFORE = ("ingest", "validate", "detect-drift", "decide")
ATTEMPT = ("train", "evaluate", "gate")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], str]:
    """The demo's folder, its JSON objects, and what it said on the way."""
    folder = tmp_path_factory.mktemp("demo") / "retrain-demo"
    done = retrain("demo", "--folder", folder, "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize(
    ("number", "action", "rule", "strategy", "verdict", "outcome", "steps"),
    [
        (1, "train", "no-champion", "retrain", "promote", "promoted", (*BEFORE, *ATTEMPT, "promote", "report")),
        (2, "skip", "nothing-to-gain", None, None, "skipped", (*BEFORE, "record", "report")),
        (3, "train", "measurable-drop", "fine-tune", "promote", "promoted", (*BEFORE, *ATTEMPT, "promote", "report")),
        (4, "train", "new-classes", "fine-tune", "promote", "promoted", (*BEFORE, *ATTEMPT, "promote", "report")),
        (5, "quarantine", "invalid-window", None, None, "quarantined", (*BEFORE, "record", "report")),
        (
            6,
            "train",
            "measurable-drop",
            "retrain",
            "promote",
            "promoted",
            (*BEFORE, *ATTEMPT, *ATTEMPT, "promote", "report"),
        ),
    ],
)
def test_each_window_ends_as_its_data_ask(
    demo: tuple[Path, list[dict[str, Any]], str],
    number: int,
    action: str,
    rule: str,
    strategy: str | None,
    verdict: str | None,
    outcome: str,
    steps: tuple[str, ...],
):
    window = demo[1][number - 1]
    told = tuple(window[key] for key in ("action", "rule", "strategy", "verdict", "outcome"))
    assert told == (action, rule, strategy, verdict, outcome), window["reason"]
    progress = re.split(r"^Window \d of 6.*$", demo[2], flags=re.MULTILINE)[number]
    assert executed(progress) == list(steps), "which steps ran"
    assert {"window", "champion_before", "champion_after", "accuracy"} <= set(window)


def test_champion_changes_with_promotions_only(demo: tuple[Path, list[dict[str, Any]], str]):
    champion = None
    for window in demo[1]:
        assert window["champion_before"] == champion
        assert (window["champion_after"] != champion) == (window["outcome"] == "promoted")
        champion = window["champion_after"]


def test_ledger_holds_the_four_promotions_and_champion_verifies(demo: tuple[Path, list[dict[str, Any]], str]):
    config = load_config(demo[0] / "retrain.yaml")
    registry = Registry(open_store(config.store), config.model)
    promoted = [w["champion_after"] for w in demo[1] if w["outcome"] == "promoted"]
    assert [(r.kind, r.version) for r in registry.ledger()] == [("promotion", version) for version in promoted]
    registry.verify_version(promoted[-1])


def test_new_digits_grow_the_head_and_keep_the_old_order(demo: tuple[Path, list[dict[str, Any]], str]):
    config = load_config(demo[0] / "retrain.yaml")
    registry = Registry(open_store(config.store), config.model)
    classes = [json.loads(registry.read_file(demo[1][n]["champion_after"], "model.json"))["classes"] for n in (2, 3)]
    assert classes == [list("01234567"), list("0123456789")]


def test_broken_delivery_is_in_quarantine_with_both_reasons(demo: tuple[Path, list[dict[str, Any]], str]):
    folder, windows, _ = demo
    filed = json.loads((folder / "store" / "quarantine" / "scans" / f"{windows[4]['window']}.json").read_text())
    assert "unreadable" in filed["reasons"][0]
    assert "look renamed" in filed["reasons"][0]


def test_report_has_pictures_of_what_changed_and_fetches_nothing(demo: tuple[Path, list[dict[str, Any]], str]):
    page = (demo[0] / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 100
    assert page.count("What changed") == 6
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_progress_is_told_all_along(demo: tuple[Path, list[dict[str, Any]], str]):
    assert [f"Window {n} of 6" in demo[2] for n in range(1, 7)] == [True] * 6
    assert demo[2].count(" ingest ...") == 6


def test_demo_refuses_a_folder_that_is_not_its_own(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    done = retrain("demo", "--folder", tmp_path)
    assert done.returncode == 2
    assert "--folder OTHER" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"
