"""The HTML page: one run, or all runs of a model. Offline, one file, nothing fetched."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from components.core.config import Config
from components.core.contracts import DriftReport, Fault, RunReport, StepDocument, ValidationReport, Verdict
from components.core.errors import RetrainError
from components.core.registry import Registry
from components.core.runs import Run
from components.core.storage import KeyMissing
from components.core.thumbnails import picture_images
from components.core.windows import Window
from components.report.pictures import ClassPictures, accuracy_chart, compare_classes
from components.report.summary import read_steps, summarise

MOST_TO_LABEL = 40  # pictures of the images to label: those that tell most; the list has all


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """What the page shows of one run."""

    report: RunReport
    sentences: list[tuple[str, float, str]]
    validation: ValidationReport | None
    drift: DriftReport | None
    verdicts: list[Verdict]
    set_aside: dict[str, list[str]]
    faults: list[tuple[Fault, list[str]]]
    to_label: list[str]
    pictures: list[ClassPictures]
    unavailable: str | None


def render_page(runs: Sequence[Run]) -> str:
    """Render runs, oldest first, into one HTML page."""
    sections = [_section(run) for run in runs]
    environment = Environment(
        loader=PackageLoader("components.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    reports = [section.report for section in sections]
    chart = Markup(accuracy_chart(reports))  # noqa: S704  # our own SVG: labels in it are digests and closed words
    return environment.get_template("page.html.j2").render(sections=sections, chart=chart)


def _section(run: Run) -> RunSection:
    steps = read_steps(run)
    report = run.read("report", RunReport) or summarise(run, ended=False)
    documents: dict[str, StepDocument] = {step: record.document for step, record in steps.items()}
    validation, drift = documents.get("validate"), documents.get("detect_drift")
    set_aside: dict[str, list[str]] = {}
    faults = [(fault, list[str]()) for fault in drift.faults] if isinstance(drift, DriftReport) else []
    to_label: list[str] = []
    pictures: list[ClassPictures] = []
    unavailable = None
    try:
        if report.window:
            config = run.config
            window = Window.open(run.store, config.dataset, report.window)
            rows = window.manifest(("status", "reason", "source")).to_pylist()
            for row in (row for row in rows if row["status"] != "ok"):
                why = f" ({row['reason']})" if row["reason"] else ""
                set_aside.setdefault(row["status"], []).append(f"{row['source']}{why}")
            faults = [(fault, picture_images(window, fault.examples)) for fault, _ in faults]
            to_label = picture_images(window, _images_to_label(run, report)[:MOST_TO_LABEL])
            pictures = compare_classes(_known_windows(run, config, report), window, config.report.example_images)
    except RetrainError as error:  # a window that was removed or damaged since: the rest of the page still tells
        unavailable = str(error)
    return RunSection(
        report=report,
        sentences=[(step, record.seconds, record.document.sentence) for step, record in steps.items()],
        validation=validation if isinstance(validation, ValidationReport) else None,
        drift=drift if isinstance(drift, DriftReport) else None,
        verdicts=[document for document in documents.values() if isinstance(document, Verdict)],
        set_aside=set_aside,
        faults=faults,
        to_label=to_label,
        pictures=pictures,
        unavailable=unavailable,
    )


def _images_to_label(run: Run, report: RunReport) -> list[str]:
    """SHA-256 of the images that a run wants labels for, in the order of its list."""
    if report.to_label is None:
        return []
    try:
        text = run.store.get(report.to_label).decode()
    except KeyMissing:  # of a plan whose run record somebody has deleted
        return []
    return [row["sha256"] for row in csv.DictReader(io.StringIO(text))]


def _known_windows(run: Run, config: Config, report: RunReport) -> list[Window]:
    if report.champion_before is None:
        return []
    registry = Registry(run.store, config.model)
    lineage = registry.lineage(report.champion_before)
    return [Window.open(run.store, config.dataset, window) for window in lineage.windows]
