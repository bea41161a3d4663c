"""The Great Expectations suite on a window's manifest: built from the configuration, run on rows, never on pixels.

It judges images. Whether enough of them have a label to learn from is no fault of theirs, and for `decide`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from components.core.config import ExpectationName, ValidationConfig
from components.core.contracts import CheckedExpectation, ValidationReport, list_names
from components.validate.columns import DERIVED, History, derive_columns

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 3  # images or classes that a sentence names


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One expectation: what it is called, what follows when it fails, and GX's name and arguments for it.

    `asked` and `found` complete the sentence "expected ..., found ...". `found` is given what GX says, and the rows at
    fault: none where the rule holds, all where it is one on the whole table.
    """

    name: ExpectationName
    severity: Literal["reject", "warn"]
    expectation: str
    arguments: dict[str, Any]
    asked: str
    found: Callable[[dict[str, Any], pd.DataFrame], str]


def build_rules(config: ValidationConfig, columns: list[str], history: History, labelled: int) -> list[Rule]:
    """The rules that a configuration asks for.

    Args:
        config: Thresholds.
        columns: The columns that a manifest must have.
        history: What the champion has seen: without it there are no rules on that.
        labelled: Usable rows with a label: fewer than `min_images` tell nothing of the classes, and there are no rules
            on these.
    """
    not_in, between = "ExpectColumnValuesToNotBeInSet", "ExpectColumnValuesToBeBetween"
    rules = [
        Rule(
            name="schema",
            severity="reject",
            expectation="ExpectTableColumnsToMatchSet",
            arguments={"column_set": [*columns, *DERIVED], "exact_match": True},
            asked="the manifest's columns",
            found=lambda result, _: _columns(result, columns),
        ),
        Rule(
            name="labels",
            severity="warn",
            expectation="ExpectColumnValuesToNotBeNull",
            arguments={"column": "label", "mostly": _rest(config.max_unlabelled_fraction)},
            asked=_at_most(config.max_unlabelled_fraction, "images without a label"),
            found=_rows,
        ),
        Rule(
            name="enough images",
            severity="reject",
            expectation="ExpectColumnSumToBeBetween",
            arguments={"column": "usable", "min_value": config.min_images},
            asked=f"at least {config.min_images} usable images",
            found=lambda result, _: f"{result['observed_value']:.0f}",
        ),
        Rule(
            name="readable",
            severity="reject",
            expectation=not_in,
            arguments=_status("unreadable", config.max_unreadable_fraction),
            asked=_at_most(config.max_unreadable_fraction, "unreadable images"),
            found=_rows,
        ),
        Rule(
            name="no duplicate flood",
            severity="reject",
            expectation=not_in,
            arguments=_status("duplicate", config.max_duplicate_fraction),
            asked=_at_most(config.max_duplicate_fraction, "exact duplicates"),
            found=_rows,
        ),
        Rule(
            name="one label an image",
            severity="reject",
            expectation=not_in,
            arguments=_status("conflicting", config.max_conflicting_fraction),
            asked=_at_most(config.max_conflicting_fraction, "images under two labels"),
            found=_rows,
        ),
        Rule(
            name="large enough",
            severity="reject",
            expectation=between,
            arguments={
                "column": "short_side",
                "min_value": config.min_side_pixels,
                "mostly": _rest(config.max_undersized_fraction),
            },
            asked=_at_most(
                config.max_undersized_fraction, f"images with a side shorter than {config.min_side_pixels} pixels"
            ),
            found=_rows,
        ),
        Rule(
            name="not oversized",
            severity="warn",
            expectation=between,
            arguments={"column": "long_side", "max_value": config.max_side_pixels},
            asked=f"no images with a side longer than {config.max_side_pixels} pixels",
            found=_rows,
        ),
        Rule(
            name="allowed modes",
            severity="reject",
            expectation="ExpectColumnValuesToBeInSet",
            arguments={
                "column": "mode",
                "value_set": list(config.allowed_modes),
                "mostly": _rest(config.max_disallowed_mode_fraction),
            },
            asked=_at_most(
                config.max_disallowed_mode_fraction, f"images in another mode than {', '.join(config.allowed_modes)}"
            ),
            found=_rows_by("mode"),
        ),
        Rule(
            name="both sides of the split",
            severity="reject",
            expectation="ExpectColumnDistinctValuesToContainSet",
            arguments={"column": "side", "value_set": ["train", "holdout"]},
            asked="images to train on and images held out, labelled or not",
            found=lambda _, rows: " and ".join(sorted(rows["side"].dropna().unique())) or "neither",
        ),
        Rule(
            name="few near duplicates",
            severity="warn",
            expectation=not_in,
            arguments={
                "column": "near_duplicate",
                "value_set": [1],
                "mostly": _rest(config.max_near_duplicate_fraction),
            },
            asked=_at_most(config.max_near_duplicate_fraction, "images that nearly equal another one"),
            found=_rows,
        ),
        Rule(
            name="no leakage",
            severity="warn",
            expectation="ExpectColumnValuesToBeNull",
            arguments={"column": "leak"},
            asked="no images whose like stands on the other side of the split (the same image or group, seen before on "
            "the other side, is left out of training anyway)",
            found=_rows_by("leak"),
        ),
    ]
    if history.rows is not None:
        repeats = Rule(
            name="few repeats",
            severity="warn",
            expectation=not_in,
            arguments={"column": "repeated", "value_set": [1], "mostly": _rest(config.max_repeated_fraction)},
            asked=_at_most(config.max_repeated_fraction, "images that the champion's windows hold already"),
            found=_rows,
        )
        rules.append(repeats)
    if labelled >= config.min_images:
        rules += _class_rules(config, history.classes)
    return [replace(rule, severity=config.severities.get(rule.name, rule.severity)) for rule in rules]


def _class_rules(config: ValidationConfig, known: tuple[str, ...] | None) -> list[Rule]:
    """All are information: the head can grow, and a class may rest for a while."""
    rules = [
        Rule(
            name="enough of each class",
            severity="warn",
            expectation="ExpectColumnValuesToBeBetween",
            arguments={"column": "images_of_class", "min_value": config.min_images_per_class},
            asked=f"at least {config.min_images_per_class} images of each class",
            found=_small_classes,
        ),
        Rule(
            name="balanced",
            severity="warn",
            expectation="ExpectColumnMaxToBeBetween",
            arguments={"column": "times_smallest", "max_value": config.max_imbalance},
            asked=f"at most {config.max_imbalance:g} images of the largest class for one of the smallest",
            found=lambda result, _: f"{result['observed_value']:.4g}",
        ),
    ]
    if known is None:
        return rules
    return [
        *rules,
        Rule(
            name="known classes",
            severity="warn",
            expectation="ExpectColumnValuesToBeInSet",
            arguments={"column": "class", "value_set": list(known)},
            asked=f"images of the champion's {len(known)} classes only",
            found=_rows_by("class"),
        ),
        Rule(
            name="no class missing",
            severity="warn",
            expectation="ExpectColumnDistinctValuesToContainSet",
            arguments={"column": "class", "value_set": list(known)},
            asked=f"usable images of each of the champion's {len(known)} classes",
            found=lambda _, rows: _missing_classes(set(known) - set(rows["class"])),
        ),
    ]


def validate_manifest(
    manifest: pd.DataFrame, config: ValidationConfig, columns: list[str], history: History
) -> tuple[ValidationReport, str]:
    """Run the suite.

    A manifest that lacks a column is another version's: only its schema is checked then.

    Args:
        manifest: One row an image, as `windows.SCHEMA` has them.
        config: Thresholds.
        columns: The columns that a manifest must have.
        history: What the champion has seen.

    Returns:
        Every expectation with what was found, and the same as a page of HTML that needs nothing else.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the package is imported
    import great_expectations as gx

    from components.validate.docs import render_page

    complete = set(columns) <= set(manifest.columns)
    frame = derive_columns(manifest, history) if complete else manifest.assign(**dict.fromkeys(DERIVED))
    rules = build_rules(config, columns, history, labelled=int(frame["class"].notna().sum()))
    rules = rules if complete else rules[:1]
    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("store").add_dataframe_asset("manifest")
    batch = asset.add_batch_definition_whole_dataframe("window").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite(
        "window",
        expectations=[
            getattr(gx.expectations, rule.expectation)(**rule.arguments, meta={"rule": rule.name}) for rule in rules
        ],
    )
    # COMPLETE would list every row at fault, a million of them in a flood.
    outcome: Any = batch.validate(suite, result_format="BASIC")
    found = {result.expectation_config.meta["rule"]: result for result in outcome.results}
    report = ValidationReport(expectations=tuple(_checked(rule, found[rule.name], frame) for rule in rules))
    return report, render_page(outcome, report)


def _checked(rule: Rule, result: Any, frame: pd.DataFrame) -> CheckedExpectation:
    info = result.exception_info or {}  # of the expectation, or one for each of its metrics
    if any(isinstance(part, dict) and part.get("raised_exception") for part in (info, *info.values())):
        raise RuntimeError(f"great_expectations could not check {rule.name!r}: {result.exception_info}")
    found = rule.found(result.result, _at_fault(rule, frame, result.success))
    return CheckedExpectation(
        name=rule.name,
        severity=rule.severity,
        passed=bool(result.success),
        sentence=f"{rule.name}: expected {rule.asked}, found {found}.",
    )


def _at_fault(rule: Rule, frame: pd.DataFrame, success: bool) -> pd.DataFrame:
    """The rows that a failed rule is about: GX names no more than twenty of them, and not by their source."""
    if not rule.expectation.startswith("ExpectColumnValues"):
        return frame
    if success:
        return frame.iloc[:0]
    column, arguments = frame[rule.arguments["column"]], rule.arguments
    match rule.expectation:
        case "ExpectColumnValuesToNotBeNull":
            outside = column.isna()
        case "ExpectColumnValuesToBeNull":
            outside = column.notna()
        case "ExpectColumnValuesToNotBeInSet":
            outside = column.isin(arguments["value_set"])
        case "ExpectColumnValuesToBeInSet":
            outside = column.notna() & ~column.isin(arguments["value_set"])
        case _:
            lowest, highest = arguments.get("min_value", -math.inf), arguments.get("max_value", math.inf)
            outside = (column < lowest) | (column > highest)
    rows: pd.DataFrame = frame.loc[outside]
    return rows


def _rest(fraction: float) -> float:
    """1 - fraction without the rounding error that would refuse a share that meets it exactly."""
    return round(1.0 - fraction, 9)


def _status(status: str, fraction: float) -> dict[str, Any]:
    return {"column": "status", "value_set": [status], "mostly": _rest(fraction)}


def _at_most(fraction: float, things: str) -> str:
    return f"at most {100 * fraction:g} % {things}" if fraction else f"no {things}"


def _rows(result: dict[str, Any], at_fault: pd.DataFrame) -> str:
    """How many rows, and the first of them with the reason why they were set aside."""
    examples = [
        f"{source!r} ({reason})" if isinstance(reason, str) else f"{source!r}"
        for source, reason in at_fault[["source", "reason"]].head(EXAMPLES).itertuples(index=False)
    ]
    return _how_many(result) + (f", such as {', '.join(examples)}" if examples else "")


def _rows_by(column: str) -> Callable[[dict[str, Any], pd.DataFrame], str]:
    """The same, counted by the values of a column, the most frequent first."""

    def found(result: dict[str, Any], at_fault: pd.DataFrame) -> str:
        if at_fault.empty:
            return _how_many(result)
        counts = list_names([f"{value!r} ({n})" for value, n in at_fault[column].value_counts().items()], EXAMPLES)
        sources = ", ".join(f"{source!r}" for source in at_fault["source"].head(EXAMPLES))
        return f"{_how_many(result)}, {counts}, such as {sources}"

    return found


def _how_many(result: dict[str, Any]) -> str:
    count, percent = result.get("unexpected_count", 0), result.get("unexpected_percent") or 0.0
    if not count:
        return "none"
    return f"{count} {'row' if count == 1 else 'rows'} ({percent:.{1 if percent >= 0.05 else 4}f} %)"


def _small_classes(result: dict[str, Any], at_fault: pd.DataFrame) -> str:
    if at_fault.empty:
        return "no smaller one"
    counts = at_fault.groupby("label")["usable"].sum().sort_values()
    names = list_names([f"{label!r} ({n})" for label, n in counts.items()], EXAMPLES)
    return f"{len(counts)} smaller {'one' if len(counts) == 1 else 'ones'}, {names}"


def _missing_classes(missing: set[str]) -> str:
    return f"none of {list_names([repr(name) for name in sorted(missing)], EXAMPLES)}" if missing else "all of them"


def _columns(result: dict[str, Any], columns: list[str]) -> str:
    observed = [name for name in result["observed_value"] if name not in DERIVED]
    missing, surplus = set(columns) - set(observed), set(observed) - set(columns)
    notes = [f"{verb} {', '.join(sorted(names))}" for verb, names in (("without", missing), ("with", surplus)) if names]
    return ", ".join([f"{len(observed)} columns", *notes])
