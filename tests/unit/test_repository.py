"""Rules of the house: who imports whom, what a light process may not import, what must not be in the tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = {path.name for path in (ROOT / "components").iterdir() if (path / "step.py").exists()}
MODULES = sorted((ROOT / "components").rglob("*.py")) + sorted((ROOT / "pipelines").rglob("*.py"))


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Full names of the modules a file imports; with `top_level` only those at module scope, `TYPE_CHECKING` aside."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_there_are_nine_steps():
    assert {"ingest", "validate", "detect_drift", "decide", "train", "evaluate", "gate", "promote", "report"} == STEPS


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_rules(path: Path):
    package, *rest = path.relative_to(ROOT).parts
    names = imports(path)
    heads = {name.split(".")[0] for name in names}
    if package == "components":
        assert "pipelines" not in heads, "components never import pipelines"
        if path.name != "component.py":
            other_steps = STEPS - {rest[0]}
            assert not [n for n in names if any(n.startswith(f"components.{step}") for step in other_steps)]
            assert "kfp" not in heads, "kfp only in component.py and pipelines"
    if "boto3" in heads:
        assert path == ROOT / "components/core/storage.py"
    if "great_expectations" in heads:
        assert rest[0] == "validate"
        assert "great_expectations" not in {n.split(".")[0] for n in imports(path, top_level=True)}


@pytest.mark.parametrize("path", sorted((ROOT / "components").glob("*/component.py")), ids=lambda p: p.parent.name)
def test_doorway_module_scope_is_standard_library_and_kfp(path: Path):
    heads = {name.split(".")[0] for name in imports(path, top_level=True)}
    assert heads <= set(sys.stdlib_module_names) | {"kfp", "components"}
    assert "__future__" not in heads, "kfp cannot read lazy annotations"
    ours = {name for name in imports(path, top_level=True) if name.startswith("components")}
    assert ours <= {"components.core.component", "components.core.component.component"}


def test_only_the_doorway_of_promote_calls_several_steps():
    """A doorway may compose steps where a pod for each would cost more than it brings; their logic knows of none other.

    What loses the race to the ledger is evaluated and gated again in the pod that lost it.
    """
    called = {
        path.parent.name: {name.split(".")[1] for name in imports(path) if name.startswith("components.")} & STEPS
        for path in (ROOT / "components").glob("*/component.py")
    }
    assert called.pop("promote") == {"promote", "evaluate", "gate"}
    assert all(steps <= {name} for name, steps in called.items())


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("pipelines.cli", {"torch", "torchvision", "kfp", "great_expectations", "pandas", "boto3", "matplotlib"}),
        ("pipelines.planning", {"torch", "kfp", "great_expectations", "pandas"}),
        ("pipelines.audit", {"torch", "kfp", "great_expectations", "pandas", "model_signing"}),
        ("pipelines.kserve", {"torch", "kfp", "great_expectations", "pandas", "model_signing"}),
        ("pipelines.status", {"torch", "kfp", "great_expectations", "pandas"}),
        ("components.ingest.step", {"torch", "kfp", "great_expectations", "pandas"}),
        ("pipelines.trigger.commands", {"torch", "kfp", "great_expectations", "pandas", "waitress", "kubernetes"}),
        ("components.decide.step", {"torch", "kfp", "great_expectations", "pandas"}),
        ("components.gate.step", {"torch", "kfp", "great_expectations", "pandas", "pyarrow"}),
        (
            "components.promote.step",
            {"torch", "kfp", "great_expectations", "pandas", "pyarrow", "onnx", "model_signing"},
        ),
        ("components.report.step", {"torch", "kfp", "great_expectations", "pandas"}),
        ("components.train.step", {"torchvision", "kfp", "great_expectations", "pandas"}),
    ],
)
def test_light_process_does_not_import_heavy_packages(module: str, forbidden: set[str]):
    code = f"import sys, {module}; print(*sorted({forbidden!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_lock_has_hashes_and_no_address():
    lock = (ROOT / "requirements.lock").read_text()
    assert lock.count("--hash=sha256:") > 500
    assert "://" not in lock
    assert "--index" not in lock
    assert "--find-links" not in lock
