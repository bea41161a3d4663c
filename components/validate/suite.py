"""The Great Expectations suite on a window's manifest: built from the configuration, run on rows, never on pixels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from components.core.config import ValidationConfig
from components.core.contracts import CheckedExpectation, ValidationReport

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One expectation: what it is called, what follows when it fails, and GX's name and arguments for it."""

    name: str
    severity: Literal["reject", "warn"]
    expectation: str
    arguments: dict[str, Any]
    asked: str


def build_rules(config: ValidationConfig, columns: list[str]) -> list[Rule]:
    """The rules that a configuration asks for."""

    def at_most(fraction: float, status: str) -> dict[str, Any]:
        return {"column": "status", "value_set": [status], "mostly": _rest(fraction)}

    not_in, between = "ExpectColumnValuesToNotBeInSet", "ExpectColumnValuesToBeBetween"
    short = {
        "column": "short_side",
        "min_value": config.min_side_pixels,
        "mostly": _rest(config.max_undersized_fraction),
    }
    return [
        Rule(
            name="schema",
            severity="reject",
            expectation="ExpectTableColumnsToMatchSet",
            arguments={"column_set": columns, "exact_match": True},
            asked="the manifest's columns",
        ),
        Rule(
            name="labels",
            severity="reject",
            expectation="ExpectColumnValuesToNotBeNull",
            arguments={"column": "label"},
            asked="a label on every image",
        ),
        Rule(
            name="enough images",
            severity="reject",
            expectation="ExpectColumnSumToBeBetween",
            arguments={"column": "usable", "min_value": config.min_images},
            asked=f"at least {config.min_images} usable images",
        ),
        Rule(
            name="readable",
            severity="reject",
            expectation=not_in,
            arguments=at_most(config.max_unreadable_fraction, "unreadable"),
            asked=f"at most {config.max_unreadable_fraction:.1%} unreadable images",
        ),
        Rule(
            name="no duplicate flood",
            severity="reject",
            expectation=not_in,
            arguments=at_most(config.max_duplicate_fraction, "duplicate"),
            asked=f"at most {config.max_duplicate_fraction:.1%} exact duplicates",
        ),
        Rule(
            name="one label an image",
            severity="reject",
            expectation=not_in,
            arguments=at_most(config.max_conflicting_fraction, "conflicting"),
            asked=f"at most {config.max_conflicting_fraction:.1%} images under two labels",
        ),
        Rule(
            name="large enough",
            severity="reject",
            expectation=between,
            arguments=short,
            asked=f"short sides of at least {config.min_side_pixels} pixels",
        ),
        Rule(
            name="both sides of the split",
            severity="reject",
            expectation="ExpectColumnDistinctValuesToContainSet",
            arguments={"column": "split", "value_set": ["train", "holdout"]},
            asked="rows to train on and rows held out",
        ),
        Rule(
            name="enough of each class",
            severity="warn",
            expectation=between,
            arguments={"column": "images_of_class", "min_value": config.min_images_per_class},
            asked=f"at least {config.min_images_per_class} images of each class",
        ),
    ]


def _rest(fraction: float) -> float:
    """1 - fraction without the rounding error that would refuse a share that meets it exactly."""
    return round(1.0 - fraction, 9)


def derive_columns(manifest: pd.DataFrame) -> pd.DataFrame:
    """Add what the rules look at: `usable` (0 or 1), `short_side` (pixels), `images_of_class` (of usable rows)."""
    usable = (manifest["status"] == "ok").astype(int)
    return manifest.assign(
        usable=usable,
        short_side=manifest[["width", "height"]].min(axis=1),
        images_of_class=usable.groupby(manifest["label"]).transform("sum"),
    )


def validate_manifest(manifest: pd.DataFrame, config: ValidationConfig, columns: list[str]) -> ValidationReport:
    """Run the suite.

    Args:
        manifest: One row an image, as `windows.SCHEMA` has them.
        config: Thresholds.
        columns: The columns that a manifest must have.

    Returns:
        Every expectation with what was found.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the package is imported
    import great_expectations as gx

    rules = build_rules(config, [*columns, "usable", "short_side", "images_of_class"])
    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("store").add_dataframe_asset("manifest")
    batch = asset.add_batch_definition_whole_dataframe("window").get_batch({"dataframe": derive_columns(manifest)})
    suite = gx.ExpectationSuite(
        "window",
        expectations=[
            getattr(gx.expectations, rule.expectation)(**rule.arguments, meta={"rule": rule.name}) for rule in rules
        ],
    )
    results: Any = batch.validate(suite).results
    found = {result.expectation_config.meta["rule"]: result for result in results}
    return ValidationReport(expectations=tuple(_checked(rule, found[rule.name]) for rule in rules))


def _checked(rule: Rule, result: Any) -> CheckedExpectation:
    if (result.exception_info or {}).get("exception_message"):
        raise RuntimeError(f"great_expectations could not check {rule.name!r}: {result.exception_info}")
    return CheckedExpectation(
        name=rule.name,
        severity=rule.severity,
        passed=bool(result.success),
        sentence=f"{rule.name}: expected {rule.asked}, found {_found(result.result, result.success)}.",
    )


def _found(result: dict[str, Any], success: bool) -> str:
    if "unexpected_percent" in result:
        return f"{result['unexpected_count']} rows outside ({result['unexpected_percent'] or 0:.1f} %)"
    observed = result.get("observed_value")
    if isinstance(observed, list):
        return f"{len(observed)} columns"
    return ("all of them" if success else "not all of them") if observed is None else f"{observed:.0f}"
