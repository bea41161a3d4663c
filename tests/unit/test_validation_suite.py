"""The Great Expectations suite: each expectation holds on good rows and fails for its own reason on bad ones."""

import hashlib
import warnings
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from components.core.config import ExpectationName, ValidationConfig
from components.core.contracts import CheckedExpectation, ValidationReport
from components.validate import suite
from components.validate.columns import DERIVED, History
from components.validate.suite import build_rules, validate_manifest

pd = pytest.importorskip("pandas")

CONFIG = ValidationConfig()
ROWS = 100


@pytest.fixture(scope="module", autouse=True)
def _great_expectations() -> None:
    """Import it once, by the product's own door: its modules import `sre_constants`, which is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        check(manifest())


def hash_of(number: int) -> bytes:
    """A perceptual hash that is far from that of any other number."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).digest()


def manifest(rows: int = ROWS, **columns: object) -> "pd.DataFrame":
    """A manifest in which everything is right, with some columns replaced."""
    digests = [f"{n:064x}" for n in range(rows)]
    good = pd.DataFrame(
        {
            "key": digests,
            "sha256": digests,
            "label": ["cat" if n % 2 else "dog" for n in range(rows)],
            "group": None,
            "status": "ok",
            "reason": None,
            "split": ["holdout" if n % 5 == 0 else "train" for n in range(rows)],
            "width": 32.0,
            "height": 24.0,
            "channels": 3.0,
            "mode": "RGB",
            "format": "PNG",
            "bytes": 900,
            "mean": 0.5,
            "std": 0.2,
            "sharpness": 0.1,
            "perceptual_hash": [hash_of(n) for n in range(rows)],
            "source": [f"{n}.png" for n in range(rows)],
            "shard": "images-00000.tar",
            "offset": 512.0,
        }
    )
    return good.assign(**columns)


def first(count: int, value: object, otherwise: object, rows: int = ROWS) -> list[object]:
    return [value if n < count else otherwise for n in range(rows)]


COLUMNS = list(manifest().columns)
NOBODY = History()


def check(frame: "pd.DataFrame", config: ValidationConfig = CONFIG, history: History = NOBODY) -> ValidationReport:
    return validate_manifest(frame, config, COLUMNS, history)[0]


def broken(frame: "pd.DataFrame", config: ValidationConfig = CONFIG, history: History = NOBODY) -> dict[str, str]:
    """The expectations that do not hold, with what they say."""
    return {e.name: e.sentence for e in check(frame, config, history).expectations if not e.passed}


def test_a_good_manifest_is_valid() -> None:
    report = check(manifest())
    assert report.word == "valid"
    assert broken(manifest()) == {}
    assert "14 of 14 expectations hold." in report.sentence


def test_every_rule_is_checked_once_and_in_order() -> None:
    champion = History(classes=("cat", "dog"), rows=manifest().iloc[:0])
    for history, count in ((NOBODY, 14), (champion, 17)):
        names = [rule.name for rule in build_rules(CONFIG, COLUMNS, history, ROWS)]
        assert len(set(names)) == len(names) == count
        assert [e.name for e in check(manifest(), history=history).expectations] == names


@pytest.mark.parametrize(
    ("frame", "name", "found"),
    [
        pytest.param(
            manifest().drop(columns="sharpness"), "schema", "19 columns, without sharpness", id="a column is missing"
        ),
        pytest.param(manifest().drop(columns="mode"), "schema", "without mode", id="a column of a rule is missing"),
        pytest.param(manifest(extra=1), "schema", "21 columns, with extra", id="a column too many"),
        pytest.param(manifest(rows=49), "enough images", "found 49", id="too few images"),
        pytest.param(manifest(status=first(3, "unreadable", "ok")), "readable", "3 rows (3.0 %)", id="unreadable"),
        pytest.param(
            manifest(rows=200, status=first(101, "duplicate", "ok", 200)),
            "no duplicate flood",
            "101 rows (50.5 %)",
            id="duplicates",
        ),
        pytest.param(manifest(status=first(2, "conflicting", "ok")), "one label an image", "2 rows", id="conflicting"),
        pytest.param(manifest(width=first(3, 7.0, 32.0)), "large enough", "3 rows", id="narrow"),
        pytest.param(manifest(height=first(3, 7.0, 32.0)), "large enough", "3 rows", id="low"),
        pytest.param(manifest(mode=first(3, "F", "RGB")), "allowed modes", "3 rows (3.0 %), 'F' (3)", id="odd modes"),
        pytest.param(manifest(split="train"), "both sides of the split", "found train.", id="nothing held out"),
        pytest.param(manifest(split="holdout"), "both sides of the split", "found holdout.", id="nothing to train on"),
    ],
)
def test_a_broken_manifest_is_invalid_for_its_own_reason_only(frame: "pd.DataFrame", name: str, found: str) -> None:
    failures = broken(frame)
    assert list(failures) == [name]
    assert found in failures[name]
    assert check(frame).word == "invalid"


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(manifest(rows=50), id="fifty images"),
        pytest.param(manifest(status=first(2, "unreadable", "ok")), id="two per cent unreadable"),
        pytest.param(manifest(status=first(50, "duplicate", "ok")), id="half are duplicates"),
        pytest.param(manifest(status=first(1, "conflicting", "ok")), id="one per cent conflicting"),
        pytest.param(manifest(width=8.0, height=8.0), id="eight pixels"),
        pytest.param(manifest(width=first(2, 7.0, 32.0)), id="two per cent undersized"),
        pytest.param(manifest(label=first(5, "owl", "cat")), id="five of a class"),
        pytest.param(manifest(rows=505, label=first(5, "owl", "cat", 505)), id="a hundred to one"),
        pytest.param(manifest(mode=first(2, "F", "RGB")), id="two per cent of another mode"),
        pytest.param(manifest(width=10_000.0), id="the longest side"),
    ],
)
def test_thresholds_may_be_met_exactly(frame: "pd.DataFrame") -> None:
    assert broken(frame) == {}


@pytest.mark.parametrize("percent", [1, 2, 3, 7, 10, 29, 30, 43, 57, 58, 70, 90])
def test_a_fraction_may_be_met_exactly_whatever_it_is(percent: int) -> None:
    config = ValidationConfig(max_unreadable_fraction=percent / 100, min_images=1)
    assert "readable" not in broken(manifest(status=first(percent, "unreadable", "ok")), config)
    assert "readable" in broken(manifest(status=first(percent + 1, "unreadable", "ok")), config)


def test_a_small_class_is_a_warning_and_stays_valid() -> None:
    report = check(manifest(label=first(4, "owl", "cat")))
    assert report.word == "valid"
    assert [e.name for e in report.warnings] == ["enough of each class"]
    assert "found 1 smaller one, 'owl' (4)" in report.sentence


def test_only_usable_images_count() -> None:
    # 52 of 100 are duplicates: 48 usable images are too few, and the flood is one as well.
    assert set(broken(manifest(status=first(52, "duplicate", "ok")))) == {"enough images", "no duplicate flood"}


def test_unreadable_images_have_no_size_and_are_not_called_small() -> None:
    frame = manifest(status=first(2, "unreadable", "ok"), width=first(2, None, 32.0), height=first(2, None, 24.0))
    assert broken(frame) == {}


def test_a_window_in_which_nothing_can_be_read_is_invalid() -> None:
    nothing: dict[str, object] = dict.fromkeys(
        ("width", "height", "channels", "format", "mean", "std", "sharpness", "shard", "offset"), None
    )
    report = check(manifest(status="unreadable", split="none", **nothing))
    assert report.word == "invalid"
    assert {e.name for e in report.failures} == {"enough images", "readable", "both sides of the split"}
    assert "100 rows (100.0 %)" in report.sentence


def test_an_empty_manifest_is_invalid() -> None:
    report = check(manifest().iloc[:0])
    assert report.word == "invalid"
    assert "enough images" in {e.name for e in report.failures}


@pytest.mark.parametrize(
    ("frame", "name", "found"),
    [
        pytest.param(manifest(label=first(1, None, "cat")), "labels", "1 row (1.0 %), such as '0.png'", id="no label"),
        pytest.param(manifest(width=first(1, 10_001.0, 32.0)), "not oversized", "1 row (1.0 %)", id="wide"),
        pytest.param(manifest(height=first(1, 10_001.0, 24.0)), "not oversized", "1 row (1.0 %)", id="high"),
        pytest.param(manifest(rows=506, label=first(5, "owl", "cat", 506)), "balanced", "found 100.2.", id="imbalance"),
    ],
)
def test_what_is_odd_but_no_fault_is_a_warning(frame: "pd.DataFrame", name: str, found: str) -> None:
    report = check(frame)
    assert report.word == "valid"
    assert list(broken(frame)) == [name]
    assert found in report.sentence


@pytest.mark.parametrize("labelled", [0, 1, 49, 50, 99])
def test_late_labels_are_a_warning_however_many_there_are(labelled: int) -> None:
    frame = manifest(label=first(labelled, "cat", None))
    report = check(frame)
    assert (report.word, [e.name for e in report.warnings]) == ("valid", ["labels"])
    assert f"found {ROWS - labelled} rows" in broken(frame)["labels"] or labelled == 99
    behind = ValidationConfig(max_unlabelled_fraction=0.5)
    assert broken(manifest(label=first(50, None, "cat")), behind) == {}
    assert "labels" in broken(manifest(label=first(51, None, "cat")), behind)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        pytest.param({"rows": 49}, "enough images", id="too few"),
        pytest.param({"status": first(51, "duplicate", "ok")}, "enough images", id="too few that count"),
        pytest.param({"status": first(3, "unreadable", "ok")}, "readable", id="unreadable"),
        pytest.param({"width": first(3, 7.0, 32.0)}, "large enough", id="narrow"),
        pytest.param({"mode": first(3, "F", "RGB")}, "allowed modes", id="odd modes"),
        pytest.param({"split": "train"}, "both sides of the split", id="nothing held out"),
    ],
)
def test_images_without_a_label_are_judged_as_images(columns: dict[str, Any], name: str) -> None:
    report = check(manifest(**columns, label=None))
    assert name in {e.name for e in report.failures}


def test_classes_are_judged_only_where_labels_are_enough_to() -> None:
    champion = History(classes=("cat", "dog"), rows=manifest().iloc[:0])
    strict = ValidationConfig.model_validate({"severities": {"no class missing": "reject", "known classes": "reject"}})
    assert check(manifest(label=first(49, "owl", None)), strict, champion).word == "valid"
    failures = check(manifest(label=first(50, "owl", None)), strict, champion).failures
    assert [e.name for e in failures] == ["known classes", "no class missing"]


def test_unlabelled_images_are_of_no_class() -> None:
    few = ValidationConfig(min_images_per_class=51)
    frame = manifest(label=first(50, "cat", None))
    assert set(broken(frame, few)) == {"labels", "enough of each class"}
    assert "'cat' (50)" in broken(frame, few)["enough of each class"]


def test_a_sentence_names_three_images_with_the_reason() -> None:
    reasons = first(4, "image file is truncated (3 bytes not processed)", None)
    sentence = broken(manifest(status=first(4, "unreadable", "ok"), reason=reasons))["readable"]
    reason = "(image file is truncated (3 bytes not processed))"
    assert sentence.endswith(f"found 4 rows (4.0 %), such as '0.png' {reason}, '1.png' {reason}, '2.png' {reason}.")


def test_thresholds_come_from_the_configuration() -> None:
    lax = ValidationConfig(
        max_unreadable_fraction=1.0,
        max_duplicate_fraction=1.0,
        max_conflicting_fraction=1.0,
        max_undersized_fraction=1.0,
        min_images=1,
    )
    statuses = [("ok", "unreadable", "duplicate", "conflicting")[n % 4] for n in range(ROWS)]
    bad = manifest(status=statuses, width=1.0, label="cat")
    assert broken(bad, lax) == {}
    strict = ValidationConfig(min_images=101, min_side_pixels=33)
    assert set(broken(manifest(), strict)) == {"enough images", "large enough"}
    assert set(broken(manifest(), ValidationConfig(min_images_per_class=51))) == {"enough of each class"}


def test_the_table_marks_what_holds_and_what_follows_when_it_does_not() -> None:
    def expectation(severity: str, passed: bool) -> CheckedExpectation:
        return CheckedExpectation(name="n", severity=severity, passed=passed, sentence="S.")  # type: ignore[arg-type]

    report = ValidationReport(
        expectations=(expectation("reject", True), expectation("reject", False), expectation("warn", False))
    )
    assert report.markdown.splitlines()[2:] == ["| ✓ | S. |", "| reject | S. |", "| warn | S. |"]
    assert (len(report.failures), len(report.warnings), report.word) == (1, 1, "invalid")


def test_names_cannot_break_the_table() -> None:
    hostile = CheckedExpectation(name="n", severity="warn", passed=False, sentence="found 'a|b' <img src=x>.")
    table = ValidationReport(expectations=(hostile,)).markdown
    assert table.splitlines()[2] == "| warn | found 'a&#124;b' &#60;img src=x&#62;. |"


def test_the_severity_of_every_expectation_can_be_set() -> None:
    champion = History(classes=("cat", "dog"), rows=manifest().iloc[:0])
    names = get_args(ExpectationName)
    assert {rule.name for rule in build_rules(CONFIG, COLUMNS, champion, ROWS)} == set(names)
    for severity in ("reject", "warn"):
        config = ValidationConfig.model_validate({"severities": dict.fromkeys(names, severity)})
        assert {rule.severity for rule in build_rules(config, COLUMNS, champion, ROWS)} == {severity}
    with pytest.raises(ValidationError, match="no leakage"):
        ValidationConfig.model_validate({"severities": {"no leaks": "warn"}})


def test_what_great_expectations_cannot_compute_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_status(frame: "pd.DataFrame", history: History) -> "pd.DataFrame":
        return frame.assign(**dict.fromkeys(DERIVED)).drop(columns="status")

    monkeypatch.setattr(suite, "derive_columns", without_status)
    with pytest.raises(RuntimeError, match="could not check"):
        check(manifest())
