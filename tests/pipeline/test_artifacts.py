"""What the Kubeflow UI shows of a run: names of tasks, parameters and outputs, and artifacts that it can draw.

The artifacts are those of two real runs of the compiled pipeline under the local runner: one that promotes, and one
without labels, which ends in the record.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.conftest import write_config, write_digits

MOST_MARKDOWN = 400_000  # characters that the UI draws
FETCHES = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "link": "href",
    "source": "src",
    "use": "href",
    "object": "data",
}
# One name for one thing: boxes of the graph are called by them, whichever task they belong to.
ARTIFACTS = {
    "ingest": {"window_summary": "Markdown"},
    "validate": {"expectations": "Markdown", "data_docs": "HTML"},
    "detect-drift": {"drift_metrics": "Metrics", "drift_summary": "Markdown", "drift_page": "HTML"},
    "decide": {"plan": "Markdown", "plan_metrics": "Metrics"},
    "train": {"training_metrics": "Metrics", "training_summary": "Markdown"},
    "evaluate": {
        "evaluation_metrics": "Metrics",
        "confusion_matrix": "ClassificationMetrics",
        "evaluation_summary": "Markdown",
        "evaluation_page": "HTML",
    },
    "gate": {"gate_checks": "Markdown", "gate_metrics": "Metrics"},
    "promote": {"outcome": "Markdown"},
    "record": {"outcome": "Markdown"},
    "report": {"run_page": "HTML"},
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipelines.compiling import compile_pipeline

    return compile_pipeline(tmp_path_factory.mktemp("compiled") / "retraining.yaml")


@pytest.fixture(scope="module")
def spec(compiled: Path) -> dict[str, Any]:
    document: dict[str, Any] = next(yaml.safe_load_all(compiled.read_text()))
    return document


def tasks(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every task that runs in a pod: what it is called in the UI, and its component."""
    for dag in (spec["root"], *spec["components"].values()):
        for task in dag.get("dag", {}).get("tasks", {}).values():
            component = task["componentRef"]["name"].removeprefix("comp-")
            if "executorLabel" in spec["components"][f"comp-{component}"]:
                yield task["taskInfo"]["name"], re.sub(r"-\d+$", "", component)


def outputs(spec: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Artifacts of each component, with the name of their type."""
    found: dict[str, dict[str, str]] = {}
    for name, component in spec["components"].items():
        artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
        step = re.sub(r"-\d+$", "", name.removeprefix("comp-"))
        if "executorLabel" in component:
            found[step] = {n: a["artifactType"]["schemaTitle"].removeprefix("system.") for n, a in artifacts.items()}
    return found


def test_every_task_has_a_name_for_people_of_its_own(spec: dict[str, Any]):
    names = [name for name, _ in tasks(spec)]
    assert all(re.fullmatch(r"[A-Z][a-z ]+( \(attempt [23]\))?", name) for name in names), names
    assert {"Ingest", "Detect drift", "Train", "Train (attempt 2)", "Gate (attempt 3)", "Report"} <= set(names)
    twice = {name for name in names if names.count(name) > 1}
    assert twice == {"Record why not"}, "once where nothing was trained, once where the first attempt ended"


def test_artifacts_are_called_what_they_are(spec: dict[str, Any]):
    assert outputs(spec) == ARTIFACTS


def test_every_doorway_explains_itself_to_an_operator():
    """The docstrings are what the UI and the API show of a component."""
    from importlib import import_module

    for step in ARTIFACTS:
        module = {"record": "promote", "detect-drift": "detect_drift"}.get(step, step)
        doorway = getattr(import_module(f"components.{module}.component"), step.replace("-", "_"))
        text = doorway.python_func.__doc__
        assert len(text.split("Args:")[0]) > 60
        assert "Returns:" in text
        for name in doorway.component_spec.inputs or {}:
            assert f"{name}: " in text, (step, name)
        for name in ARTIFACTS[step]:
            assert f"{name}: " in text, (step, name)


class Fetched(HTMLParser):
    """Addresses that a page would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        wanted = {FETCHES.get(tag), f"xlink:{FETCHES.get(tag)}", "srcset"}
        self.addresses += [value or "" for name, value in attributes if name in wanted]


def outside(page: str) -> list[str]:
    """What a page fetches that is not in it: images, scripts and styles by address, and what styles import."""
    styles = re.findall(r"url\(\s*['\"]?([^)'\"]+)|@import\s+['\"]([^'\"]+)", page)
    addresses = [*Fetched(page).addresses, *("".join(found) for found in styles)]
    return [address for address in addresses if not address.startswith(("data:", "#"))]


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://x/y.js"></script>',
        '<link rel="stylesheet" href="http://x/y.css">',
        '<img src="//x/y.png">',
        "<style>@import 'https://x'; </style>",
        "<p style=\"background: url('https://x')\">",
        '<svg><use xlink:href="https://x#y"/></svg>',
    ],
)
def test_what_a_page_fetches_is_found(page: str):
    assert outside(page)
    assert not outside('<img src="data:image/png;base64,x"><a href="#here">https://x</a><svg><use href="#y"/></svg>')


@pytest.fixture(scope="module")
def root(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two runs have left their artifacts."""
    from kfp import components, local

    house = tmp_path_factory.mktemp("house")
    config = write_config(house)
    write_digits(house / "first", (0, 1, 2), 0, 200)
    write_digits(house / "later", (0, 1, 2), 200, 60)
    paths = [path.relative_to(house) for path in sorted((house / "later").rglob("*.png"))]
    (house / "later.csv").write_text("path,label\n" + "".join(f"{path},\n" for path in paths))
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()) as said:
        warnings.simplefilter("ignore")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(house / "root"))
        pipeline = components.load_component_from_file(str(compiled))
        for source in ("first", "later.csv"):
            pipeline(source=str(house / source), config=str(config), strategy="auto")
    assert "Could not resolve" not in said.getvalue()
    return house / "root"


def left(root: Path, step: str, name: str) -> list[Path]:
    """Files of that name that a step has left: root/<run>/<task>/<name>; kfp numbers tasks that share a component."""
    return [path for path in sorted(root.rglob(name)) if re.sub(r"-\d+$", "", path.parent.name) == step]


def drawings(*kinds: str) -> list[tuple[str, str]]:
    return [(step, name) for step, artifacts in ARTIFACTS.items() for name, kind in artifacts.items() if kind in kinds]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "name"), drawings("Markdown"))
def test_summary_of_a_real_run_can_be_drawn(root: Path, step: str, name: str):
    files = left(root, step, name)
    assert files, f"{step} left no {name}"
    for text in (file.read_text() for file in files):
        assert 20 < len(text.strip()) < MOST_MARKDOWN


@pytest.mark.slow
@pytest.mark.parametrize(("step", "name"), drawings("HTML"))
def test_page_of_a_real_run_needs_nothing_else(root: Path, step: str, name: str):
    files = left(root, step, name)
    assert files, f"{step} left no {name}"
    for text in (file.read_text() for file in files):
        assert len(text) > 500
        assert "<html" in text
        assert outside(text) == []


@pytest.mark.slow
@pytest.mark.parametrize(("step", "name"), drawings("Metrics", "ClassificationMetrics"))
def test_metrics_of_a_real_run_are_numbers_to_compare_by(root: Path, step: str, name: str):
    records = [json.loads(path.read_text()) for path in left(root, step, "executor_output.json")]
    assert records, f"{step} left no record"
    for record in records:
        (artifact,) = record["artifacts"][name]["artifacts"]
        assert artifact["metadata"]
        if name != "confusion_matrix":
            assert all(isinstance(value, int | float) for value in artifact["metadata"].values())


@pytest.mark.slow
def test_metrics_of_gate_and_plan_tell_how_sure_they_are(root: Path):
    def told(step: str, name: str) -> dict[str, float]:
        record = json.loads(left(root, step, "executor_output.json")[0].read_text())
        metadata: dict[str, float] = record["artifacts"][name]["artifacts"][0]["metadata"]
        return metadata

    gate = told("gate", "gate_metrics")
    assert gate["passed"] == gate["accurate_enough_passed"] == 1
    assert gate["accurate_enough_threshold"] <= gate["accurate_enough_bound"] < gate["accurate_enough_value"] <= 1
    assert 0 < gate["level"] < 0.05
    assert gate["new_rows"] > 20
    assert told("decide", "plan_metrics") == {"attempts_planned": 1, "labels_wanted": 0}
