"""Lint of compiled KFP IR: constructs that the local runner and the 2.17 backend treat differently, or wrongly.

Each rule was met on a real backend or in its source; the message says what happens there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHANNEL = re.compile(r"\{\{\$\.inputs\.parameters\['(.+?)'\]\}\}")
PLACEHOLDER = re.compile(r"\{\{\$\.(pipeline_job|pipeline_task|pipeline_root|workspace)[a-z_]*\}\}")


def lint(path: Path, image: str) -> list[str]:
    """Problems of a compiled pipeline, one sentence each; empty when it is clean."""
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    return list(_problems(documents, image))


def _problems(documents: list[dict[str, Any]], image: str) -> Iterator[str]:
    spec = documents[0]
    dags = {"root": spec["root"], **{n: c for n, c in spec["components"].items() if "dag" in c}}
    for name, dag in dags.items():
        for task_name, task in dag["dag"]["tasks"].items():
            where = f"{name}/{task_name}"
            yield from _control_flow(where, name, task)
            yield from _inputs(where, dag, task)
            component = spec["components"][task["componentRef"]["name"]]
            executor = spec["deploymentSpec"]["executors"].get(component.get("executorLabel"), {})
            if "container" in executor:
                yield from _container(where, dag, task, executor["container"], image)
        for output, selector in dag["dag"].get("outputs", {}).get("artifacts", {}).items():
            if len(selector.get("artifactSelectors", [])) > 1:
                yield f"{name}: OneOf over artifact {output}: the local runner expects one"
    if "activeDeadlineSeconds" in str(documents[1:]) and "pipelineConfig" in str(documents[1:]):
        yield "a deadline of the whole run kills the exit task with it: set timeouts on tasks"


def _control_flow(where: str, dag_name: str, task: dict[str, Any]) -> Iterator[str]:
    policy = task.get("triggerPolicy") or {}
    if policy.get("condition") and "condition-branches" not in dag_name:
        yield f"{where}: a lone dsl.If leaves its parent running on the backend: add dsl.Else"
    has_status = any("taskFinalStatus" in p for p in task.get("inputs", {}).get("parameters", {}).values())
    if policy.get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED" and not has_status:
        yield f"{where}: ignore_upstream_failure() becomes an Argo exit hook of its dependency"
    if (task.get("cachingOptions") or {}).get("enableCache"):
        yield f"{where}: caching on: a branch of cached tasks never completes, and stale data may train"
    if "artifactIterator" in task:
        yield f"{where}: ParallelFor over artifacts is not implemented on the backend"


def _inputs(where: str, dag: dict[str, Any], task: dict[str, Any]) -> Iterator[str]:
    known = dag.get("inputDefinitions", {}).get("parameters", {})
    for name, parameter in task.get("inputs", {}).get("parameters", {}).items():
        upstream = parameter.get("componentInputParameter")
        if upstream and upstream not in known:
            yield f"{where}.{name}: {upstream} is not handed down: give it to the task as an argument too"
        value = (parameter.get("runtimeValue") or {}).get("constant")
        if isinstance(value, str) and PLACEHOLDER.search(value) and not PLACEHOLDER.fullmatch(value):
            yield f"{where}.{name}: the backend replaces a placeholder only when it is the whole string"


def _container(
    where: str, dag: dict[str, Any], task: dict[str, Any], container: dict[str, Any], image: str
) -> Iterator[str]:
    resources = container.get("resources") or {}
    accelerator = resources.get("accelerator") or {}
    for what, value in {**accelerator, **{k: v for k, v in resources.items() if k != "accelerator"}}.items():
        if match := CHANNEL.search(str(value)):
            source = task["inputs"]["parameters"][match[1]].get("componentInputParameter")
            kind = dag.get("inputDefinitions", {}).get("parameters", {}).get(source, {}).get("parameterType")
            if source and kind != "STRING":
                yield f"{where}: {what} comes from a {kind} parameter: the driver reads only strings"
    if "pip install" in " ".join(container["command"]):
        yield f"{where}: installs packages at run time"
    if container["image"] != image:
        yield f"{where}: image {container['image']} is not {image}"
