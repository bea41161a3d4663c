"""What the documents promise: every field of the configuration, every verb, every file they name."""

from __future__ import annotations

import re
from pathlib import Path

from components.core.config import describe_config
from pipelines.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_documented_configuration_is_the_one_in_force():
    documented = (ROOT / "docs" / "configuration.yaml").read_text()
    assert documented.strip() == describe_config().strip(), "retrain config > docs/configuration.yaml"


def test_readme_documents_every_verb_and_no_other():
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    verbs |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"^\| `retrain (\w+)", README, re.MULTILINE)) == verbs


def test_readme_links_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_readme_commands_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE)) <= targets
