"""The model card: what the version is, how good it was where, what it is not for. Hugging Face's front matter on top.

Every number is of the run's evaluation. Source: Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from components.core.config import Config
from components.core.contracts import Evaluation, HoldoutScores, SliceScores, Verdict
from components.promote.provenance import Provenance

WORST_SLICES = 8


def write_card(
    config: Config, spec: Mapping[str, Any], evaluation: Evaluation, verdict: Verdict, provenance: Provenance
) -> str:
    """Write the card as Markdown. The same values give the same text.

    Args:
        config: Of the run: licence, intended use, which graphs there are, whether it is signed.
        spec: The version's `model.json`.
        evaluation: What was measured; `verdict` what the gate made of it.
        provenance: Where the version comes from.
    """
    environment = Environment(  # noqa: S701  # Markdown: values are escaped by `cell`
        loader=PackageLoader("components.promote", ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": _cell, "percent": _percent}
    return environment.get_template("card.md.j2").render(
        front=_front_matter(config, spec, evaluation, provenance),
        config=config,
        spec=spec,
        evaluation=evaluation,
        holdouts=_holdouts(evaluation),
        recalls=_recalls(evaluation.new),
        slices=_worst_slices(evaluation),
        verdict=verdict,
        made=provenance,
    )


def _front_matter(config: Config, spec: Mapping[str, Any], evaluation: Evaluation, made: Provenance) -> str:
    """YAML as huggingface.co reads it: `model-index` carries the results."""
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {
                "type": config.dataset,
                "name": f"{config.dataset}, {name} holdout",
                "split": f"{name}-holdout",
            },
            "metrics": [{"type": "accuracy", "value": round(scores.accuracy, 4)}],
        }
        for name, scores in _holdouts(evaluation)
        if scores.accuracy is not None
    ]
    front = {
        **({"license": config.promotion.license} if config.promotion.license else {}),
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", spec["architecture"], "retrain"],
        "model-index": [{"name": f"{config.model} {made.version[:12]}", "results": results}],
    }
    text: str = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return text.strip()


def _holdouts(evaluation: Evaluation) -> list[tuple[str, HoldoutScores]]:
    sides = (("new", evaluation.new), ("old", evaluation.old))
    return [(name, scores) for name, scores in sides if scores is not None]


def _recalls(scores: HoldoutScores) -> list[tuple[str, int, float | None, float | None]]:
    """Each class with its rows, recall and precision; from the confusion matrix, true classes down."""
    given: Counter[int] = Counter()
    for row in scores.confusion:
        given.update(row)
    return [
        (
            name,
            rows := sum(row.values()),
            row.get(n, 0) / rows if rows else None,
            row.get(n, 0) / given[n] if given[n] else None,
        )
        for n, (name, row) in enumerate(zip(scores.classes, scores.confusion, strict=True))
    ]


def _worst_slices(evaluation: Evaluation) -> list[tuple[str, SliceScores]]:
    """Parts of the holdouts, those with the lowest accuracy first; classes have a table of their own."""
    found = [(name, part) for name, scores in _holdouts(evaluation) for part in scores.slices if part.by != "class"]
    return sorted(found, key=lambda named: named[1].correct / named[1].rows)[:WORST_SLICES]


def _cell(text: object) -> str:
    """Text for a table: names of classes cannot become markup."""
    return escape(str(text), quote=False).replace("|", "&#124;").replace("\n", " ")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
