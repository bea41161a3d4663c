"""The Data Docs page: offline, harmless, and nothing else left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.validate.columns import History
from components.validate.suite import validate_manifest
from tests.unit.test_validation_suite import COLUMNS, CONFIG, manifest

pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")  # great_expectations imports them

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script>$x"


@pytest.fixture(scope="module")
def page() -> str:
    labels = [HOSTILE if n < 4 else "cat" for n in range(100)]
    reasons = [HOSTILE if n < 3 else None for n in range(100)]
    status = ["unreadable" if n < 3 else "ok" for n in range(100)]
    frame = manifest(label=labels, reason=reasons, status=status, source=HOSTILE, mode=HOSTILE)
    return validate_manifest(frame, CONFIG, COLUMNS, History(classes=("cat", HOSTILE)))[1]


def test_page_fetches_nothing(page: str):
    assert re.findall(r"<(?:script|link|img|iframe|object|embed)\b", page) == []
    assert re.findall(r"(?:src|href|url)\s*[=(]", page) == []
    assert "://" not in page
    assert "default-src 'none'" in page


def test_names_cannot_become_markup(page: str):
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_page_tells_our_sentences_and_great_expectations_findings(page: str):
    assert "expected at most 2 % unreadable images, found 3 rows (3.0 %)" in page
    assert "As Great Expectations sees it" in page
    assert "values must not belong to this set" in page
    assert "unexpected values found" in page


@pytest.mark.parametrize("rows", [0, 1])
def test_page_of_next_to_nothing_can_be_drawn(rows: int):
    report, html = validate_manifest(manifest(rows), CONFIG, COLUMNS, History())
    assert report.word in html


def test_page_of_another_versions_manifest_can_be_drawn():
    report, html = validate_manifest(manifest().drop(columns="mode"), CONFIG, COLUMNS, History())
    assert [e.name for e in report.expectations] == ["schema"]
    assert "without mode" in html


def test_nothing_is_left_behind(tmp_path: Path):
    """No project folder, no settings file, no temporary file: a pod's root is read-only and its home is nobody's."""
    folders = {name: tmp_path / name for name in ("work", "home", "temp")}
    for folder in folders.values():
        folder.mkdir()
    code = (
        "import os; from tests.unit.test_validation_suite import check, manifest\n"
        "print(check(manifest()).word, os.environ['GX_ANALYTICS_ENABLED'])"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("GX_", "XDG_"))},
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["temp"]),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folders["work"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["valid", "false"]
    assert [path.relative_to(tmp_path) for folder in folders.values() for path in folder.rglob("*")] == []
