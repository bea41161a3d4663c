"""The Great Expectations suite: each expectation holds on good rows and fails for its own reason on bad ones."""

import warnings

import pytest

from components.core.config import ValidationConfig
from components.core.contracts import CheckedExpectation, ValidationReport
from components.core.windows import SCHEMA
from components.validate.suite import build_rules, validate_manifest

pd = pytest.importorskip("pandas")

CONFIG = ValidationConfig()
ROWS = 100


@pytest.fixture(scope="module", autouse=True)
def _great_expectations() -> None:
    """Import it once, by the product's own door: its modules import `sre_constants`, which is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        validate_manifest(manifest(), CONFIG, SCHEMA.names)


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
            "split": ["holdout" if n % 5 == 0 else "train" for n in range(rows)],
            "width": 32.0,
            "height": 24.0,
            "channels": 3.0,
            "format": "PNG",
            "bytes": 900,
            "mean": 0.5,
            "std": 0.2,
            "sharpness": 0.1,
            "source": [f"{n}.png" for n in range(rows)],
            "shard": "images-00000.tar",
            "offset": 512.0,
        }
    )
    return good.assign(**columns)


def first(count: int, value: object, otherwise: object, rows: int = ROWS) -> list[object]:
    return [value if n < count else otherwise for n in range(rows)]


def check(frame: "pd.DataFrame", config: ValidationConfig = CONFIG) -> ValidationReport:
    return validate_manifest(frame, config, SCHEMA.names)


def broken(frame: "pd.DataFrame", config: ValidationConfig = CONFIG) -> dict[str, str]:
    """The expectations that do not hold, with what they say."""
    return {e.name: e.sentence for e in check(frame, config).expectations if not e.passed}


def test_a_good_manifest_is_valid() -> None:
    report = check(manifest())
    assert report.word == "valid"
    assert broken(manifest()) == {}
    assert "9 of 9 expectations hold." in report.sentence


def test_every_rule_is_checked_once_and_in_order() -> None:
    names = [rule.name for rule in build_rules(CONFIG, SCHEMA.names)]
    assert len(set(names)) == len(names)
    assert [e.name for e in check(manifest()).expectations] == names


@pytest.mark.parametrize(
    ("frame", "name", "found"),
    [
        pytest.param(manifest().drop(columns="sharpness"), "schema", "19 columns", id="a column is missing"),
        pytest.param(manifest(extra=1), "schema", "21 columns", id="a column too many"),
        pytest.param(manifest(label=first(1, None, "cat")), "labels", "1 rows outside", id="a label is missing"),
        pytest.param(manifest(rows=49), "enough images", "found 49", id="too few images"),
        pytest.param(
            manifest(status=first(3, "unreadable", "ok")), "readable", "3 rows outside (3.0 %)", id="unreadable"
        ),
        pytest.param(
            manifest(rows=200, status=first(101, "duplicate", "ok", 200)),
            "no duplicate flood",
            "101 rows outside (50.5 %)",
            id="duplicates",
        ),
        pytest.param(
            manifest(status=first(2, "conflicting", "ok")), "one label an image", "2 rows outside", id="conflicting"
        ),
        pytest.param(manifest(width=first(3, 7.0, 32.0)), "large enough", "3 rows outside", id="narrow"),
        pytest.param(manifest(height=first(3, 7.0, 32.0)), "large enough", "3 rows outside", id="low"),
        pytest.param(manifest(split="train"), "both sides of the split", "not all of them", id="nothing held out"),
        pytest.param(manifest(split="holdout"), "both sides of the split", "not all of them", id="nothing to train on"),
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
    assert "4 rows outside" in report.sentence


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
    assert "100 rows outside (100.0 %)" in report.sentence


def test_an_empty_manifest_is_invalid() -> None:
    report = check(manifest().iloc[:0])
    assert report.word == "invalid"
    assert "enough images" in {e.name for e in report.failures}


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
    strict = ValidationConfig(min_images=101, min_side_pixels=33, min_images_per_class=51)
    assert set(broken(manifest(), strict)) == {"enough images", "large enough", "enough of each class"}


def test_the_table_marks_what_holds_and_what_follows_when_it_does_not() -> None:
    def expectation(severity: str, passed: bool) -> CheckedExpectation:
        return CheckedExpectation(name="n", severity=severity, passed=passed, sentence="S.")  # type: ignore[arg-type]

    report = ValidationReport(
        expectations=(expectation("reject", True), expectation("reject", False), expectation("warn", False))
    )
    assert report.markdown.splitlines()[2:] == ["| ✓ | S. |", "| reject | S. |", "| warn | S. |"]
    assert (len(report.failures), len(report.warnings), report.word) == (1, 1, "invalid")
