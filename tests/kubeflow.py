"""A stand-in for the Kubeflow Pipelines API (v2beta1) on loopback, which checks every request and every reply.

The contract is derived, when it is first needed, from the installed `kfp_server_api`, which is generated from the API's
own description: routes, query parameters and their types, bodies, replies, enumerations. What does not fit is answered
as the API would (404, 400), and kept in `violations`, which tests want empty at their end (`serve` sees to that).

    with serve() as kubeflow:
        client = KubeflowClient(config_with(host=kubeflow.url))
        kubeflow.inject(Fault(method="POST", path="/runs", lost=True))   # the run is made, the answer gets lost
        run_id = client.start("name", arguments)
        kubeflow.runs[run_id]["state"] = "SUCCEEDED"

What this does not prove: what the real server does with a request that fits. That names are unique, how filters,
sorting and pages are evaluated, that a finished run cannot be terminated, who may do what, when a recurring run fires,
what becomes of its run under way when it is deleted, and that an uploaded pipeline can be executed: all this is written
down here as it was read in the server's source at 2.17.0 and, some of it, seen on a cluster (`UNIQUE`, `FILTERS`, the
methods of `Kubeflow`). Only a cluster shows it. Nor is there a workflow engine: runs change when a test says so.
"""

from __future__ import annotations

import base64
import inspect
import json
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

import kfp_server_api
import yaml
from kfp_server_api import models

Json = dict[str, Any]
BASE = "/apis/v2beta1"
# int64 of the protocol: typed as text, since JSON's numbers are too small; the server takes a number as well.
INT64 = {"max_concurrency", "interval_second", "pipeline_context_id", "pipeline_run_context_id", "execution_id"}
PARAMETER = re.compile(r":type (\w+): ([\w\[\](), ]+?)(?:, optional)?\s*$", re.MULTILINE)
OF_THE_CLIENT = {"async_req", "_return_http_data_only", "_preload_content", "_request_timeout"}
INVALID, NOT_FOUND, EXISTS, FORBIDDEN, UNAVAILABLE, UNAUTHENTICATED = 3, 5, 6, 7, 14, 16
STATUS = {INVALID: 400, NOT_FOUND: 404, EXISTS: 409, FORBIDDEN: 403, UNAVAILABLE: 503, UNAUTHENTICATED: 401}
LARGEST_PAGE, USUAL_PAGE = 200, 20


@dataclass(frozen=True, kw_only=True)
class Route:
    """One operation of the contract. `query` has the types of the query parameters; `body` and `reply` name models."""

    method: str
    path: str
    query: dict[str, str]
    body: str | None
    reply: str
    uploads: bool

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\\{[^}]+\\\}", r"([^/:]+)", re.escape(self.path)))


class _Recorder(kfp_server_api.ApiClient):  # type: ignore[misc]
    """Keeps what the generated client would have sent."""

    def call_api(self, resource_path: str, method: str, *arguments: Any, **keywords: Any) -> None:
        names = ("path_params", "query_params", "header_params")
        self.seen = {**dict(zip(names, arguments, strict=False)), **keywords, "path": resource_path, "method": method}


@cache
def contract() -> tuple[Route, ...]:
    """All operations of the installed client, those with the fewest parameters in their path first."""
    routes = []
    services = [c for name, c in vars(kfp_server_api).items() if inspect.isclass(c) and name.endswith("ServiceApi")]
    for service in services:
        recorder = _Recorder(kfp_server_api.Configuration())
        for name, operation in inspect.getmembers(service, inspect.isfunction):
            if not name.endswith("_with_http_info"):
                continue
            types = {n: t for n, t in PARAMETER.findall(operation.__doc__ or "") if n not in OF_THE_CLIENT}
            arguments = {n: getattr(models, t)() if hasattr(models, t) else "x" for n, t in types.items()}
            operation(service(recorder), **arguments)
            seen = recorder.seen
            body, uploads = seen.get("body"), bool(seen.get("files"))
            query = {key: types.get(key, "str") for key, _ in seen.get("query_params") or ()}
            routes.append(
                Route(
                    method=seen["method"],
                    path=seen["path"],
                    query=query,
                    body=type(body).__name__ if hasattr(body, "openapi_types") else None,
                    reply=seen["response_type"],
                    uploads=uploads,
                )
            )
    return tuple(sorted(routes, key=lambda route: route.path.count("{")))


def misfit(value: Any, kind: str, where: str = "$") -> str | None:
    """The first thing in a JSON value that does not fit a type of the generated client; None where all does."""
    if value is None:
        return None
    if kind.startswith("list["):
        if not isinstance(value, list):
            return f"{where}: {value!r} is no list"
        return _first(misfit(item, kind[5:-1], f"{where}[{index}]") for index, item in enumerate(value))
    if kind.startswith("dict("):
        if not isinstance(value, dict):
            return f"{where}: {value!r} is no object"
        inner = kind[5:-1].split(", ", 1)[1]
        return _first(misfit(item, inner, f"{where}.{key}") for key, item in value.items())
    model = getattr(models, kind, None)
    if model is None:
        return _misfit_of_plain(value, kind, where)
    if not model.openapi_types:
        words = {word for name, word in vars(model).items() if name.isupper()}
        return None if value in words else f"{where}: {value!r} is none of {sorted(words)}"
    if not isinstance(value, dict):
        return f"{where}: {value!r} is no {kind}"
    kinds = {name: model.openapi_types[attribute] for attribute, name in model.attribute_map.items()}
    if unknown := sorted(set(value) - set(kinds)):
        return f"{where}.{unknown[0]}: {kind} has no such field"
    return _first(misfit(item, kinds[key], f"{where}.{key}") for key, item in value.items())


def _misfit_of_plain(value: Any, kind: str, where: str) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "str": isinstance(value, str) or (number and where.rpartition(".")[2] in INT64),
        "bool": isinstance(value, bool),
        "int": (number and value == int(value)) or (isinstance(value, str) and value.lstrip("-").isdigit()),
        "float": number,
        "datetime": isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", value) is not None,
        "object": True,
    }
    return None if fits[kind] else f"{where}: {value!r} is no {kind}"


def _first(problems: Iterator[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)


@dataclass(kw_only=True)
class Fault:
    """What happens to requests of a method to paths that end so, `times` times.

    `status`: answered so, and nothing is done. `lost`: it is done, and the connection closed without an answer. `cut`:
    closed before anything is done. `delay_seconds`: the answer is that late, if nothing else. `body`: what is answered
    instead, as something in front of the API would.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    lost: bool = False
    cut: bool = False
    delay_seconds: float = 0.0
    body: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    body: Json | None
    authorization: str | None


class Refusal(Exception):
    """What the API refuses, with gRPC's code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass
class Kubeflow:
    """The state of the stand-in. Rows are JSON objects as the API shows them, by their ids; tests may change them."""

    url: str = ""
    multi_user: bool = False
    namespaces: tuple[str, ...] = ()
    token: str | None = None
    experiments: dict[str, Json] = field(default_factory=dict)
    pipelines: dict[str, Json] = field(default_factory=dict)
    versions: dict[str, Json] = field(default_factory=dict)
    runs: dict[str, Json] = field(default_factory=dict)
    recurring_runs: dict[str, Json] = field(default_factory=dict)
    uploaded: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _clock: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    # Keys that the server can filter and sort by (`backend/src/apiserver/model` at 2.17.0).
    FILTERS: ClassVar[dict[str, set[str]]] = {
        "experiments": {"experiment_id", "display_name", "name", "created_at", "namespace", "storage_state"},
        "pipelines": {"pipeline_id", "display_name", "name", "created_at", "namespace"},
        "versions": {"pipeline_version_id", "display_name", "name", "created_at"},
        "runs": {"run_id", "display_name", "name", "created_at", "state", "storage_state", "recurring_run_id"},
        "recurring_runs": {"recurring_run_id", "display_name", "name", "created_at", "description"},
    }
    # Fields that no two rows share.
    UNIQUE: ClassVar[dict[str, tuple[str, ...]]] = {
        "experiments": ("namespace", "display_name"),
        "pipelines": ("namespace", "name"),
        "versions": ("pipeline_id", "name"),
        "runs": (),
        "recurring_runs": (),
    }

    def inject(self, fault: Fault) -> None:
        """Let requests fail, the first injected fault first."""
        with self.lock:
            self.faults.append(fault)

    def finish(self, run_id: str, state: str = "SUCCEEDED") -> None:
        """End a run."""
        with self.lock:
            self.runs[run_id] |= {"state": state, "finished_at": self._now()}

    def fire(self, recurring_run_id: str) -> str:
        """Let a recurring run start a run. Returns the run's id."""
        with self.lock:
            row = self.recurring_runs[recurring_run_id]
            assert row["status"] == "ENABLED"
            copied = {key: row[key] for key in ("experiment_id", "runtime_config", "pipeline_version_reference")}
            run = {**copied, "display_name": f"{row['display_name']} 1", "recurring_run_id": recurring_run_id}
            return str(self._insert("runs", "run_id", {**run, "state": "RUNNING"})["run_id"])

    def calls(self, method: str, ending: str = "") -> list[Request]:
        """The requests of a method to paths that end so."""
        return [r for r in self.requests if r.method == method and r.path.endswith(ending)]

    def _now(self) -> str:
        """The server's clock: seconds only, and always later."""
        self._clock += timedelta(seconds=1)
        return self._clock.isoformat().replace("+00:00", "Z")

    def _insert(self, table: str, key: str, row: Json) -> Json:
        rows: dict[str, Json] = getattr(self, table)
        unique = self.UNIQUE[table]
        if unique and any(all(other.get(f) == row.get(f) for f in unique) for other in rows.values()):
            raise Refusal(EXISTS, f"Already exist error: {table} {row.get('display_name')}")
        made = {key: str(uuid.uuid4()), "created_at": self._now(), **{k: v for k, v in row.items() if v is not None}}
        rows[made[key]] = made
        return made

    def _get(self, table: str, identity: str) -> Json:
        rows: dict[str, Json] = getattr(self, table)
        if identity not in rows:
            raise Refusal(NOT_FOUND, f"{table} {identity} not found")
        return rows[identity]

    def _check_namespace(self, namespace: str | None, what: str) -> str | None:
        """The namespace as the server takes it: ignored where there is one user."""
        if not self.multi_user:
            return None
        if not namespace:
            raise Refusal(INVALID, f"{what} cannot have an empty namespace in multi-user mode")
        if namespace not in self.namespaces:
            raise Refusal(FORBIDDEN, f"User is not authorized to access namespace {namespace}")
        return namespace

    def _list(self, table: str, name: str, query: dict[str, str], rows: list[Json]) -> Json:
        known = self.FILTERS[table]
        asked = json.loads(query.get("filter") or "{}")
        if problem := misfit(asked, "V2beta1Filter"):
            raise Refusal(INVALID, f"failed to parse valid filter: {problem}")
        key, _, order = (query.get("sort_by") or "created_at").partition(" ")
        if key not in known or order not in ("", "asc", "desc"):
            raise Refusal(INVALID, f"Cannot sort on {query.get('sort_by')}")
        rows = [row for row in rows if all(_matches(row, p, known) for p in asked.get("predicates", ()))]
        rows.sort(key=lambda row: str(row.get(key)), reverse=order == "desc")
        criteria = [query.get("filter"), query.get("sort_by")]
        start = 0
        if token := query.get("page_token"):
            start, *of = json.loads(base64.b64decode(token))
            if of != criteria:
                raise Refusal(INVALID, "page token does not match the supplied sort by and/or filtering criteria")
        size = min(int(query.get("page_size") or USUAL_PAGE), LARGEST_PAGE)
        page = rows[start : start + size]
        more = start + size < len(rows)
        next_token = base64.b64encode(json.dumps([start + size, *criteria]).encode()).decode() if more else None
        reply = {name: page or None, "total_size": len(rows) or None, "next_page_token": next_token}
        return {k: v for k, v in reply.items() if v is not None}  # as protocol buffers are written: nothing empty

    def answer(self, route: Route, parts: list[str], query: dict[str, str], body: Json) -> Json:
        """Do what a request asks for.

        Raises:
            Refusal: The API would not.
        """
        name = f"{route.method} {route.path.removeprefix(BASE)}"
        handler = HANDLERS.get(name)
        if handler is None:
            raise Refusal(UNAVAILABLE, f"the stand-in does not know {name}")
        with self.lock:
            return handler(self, parts, query, body)

    def list_experiments(self, _: list[str], query: dict[str, str], __: Json) -> Json:
        namespace = self._check_namespace(query.get("namespace"), "A list of experiments")
        rows = [row for row in self.experiments.values() if row.get("namespace") == namespace]
        return self._list("experiments", "experiments", query, rows)

    def create_experiment(self, _: list[str], __: dict[str, str], body: Json) -> Json:
        if not body.get("display_name"):
            raise Refusal(INVALID, "Experiment name is empty")
        namespace = self._check_namespace(body.get("namespace"), "An experiment")
        return self._insert("experiments", "experiment_id", {**body, "namespace": namespace})

    def get_pipeline_by_name(self, parts: list[str], query: dict[str, str], _: Json) -> Json:
        namespace = self._check_namespace(query.get("namespace"), "A pipeline")
        for row in self.pipelines.values():
            if (row["name"], row.get("namespace")) == (parts[0], namespace):
                return row
        raise Refusal(NOT_FOUND, f"pipeline {parts[0]} not found")

    def create_pipeline(self, _: list[str], __: dict[str, str], body: Json) -> Json:
        if not body.get("name"):
            raise Refusal(INVALID, "name is required")
        namespace = self._check_namespace(body.get("namespace"), "A pipeline")
        return self._insert("pipelines", "pipeline_id", {**body, "namespace": namespace})

    def list_versions(self, parts: list[str], query: dict[str, str], _: Json) -> Json:
        self._get("pipelines", parts[0])
        rows = [row for row in self.versions.values() if row["pipeline_id"] == parts[0]]
        return self._list("versions", "pipeline_versions", query, rows)

    def upload_version(self, _: list[str], query: dict[str, str], body: Json) -> Json:
        pipeline = self._get("pipelines", query.get("pipelineid", ""))
        name = query.get("name") or "unnamed"
        row = {"pipeline_id": pipeline["pipeline_id"], "name": name, "display_name": query.get("display_name") or name}
        made = self._insert("versions", "pipeline_version_id", row)
        self.uploaded[made["pipeline_version_id"]] = body["uploadfile"]
        return made

    def list_runs(self, _: list[str], query: dict[str, str], __: Json) -> Json:
        return self._list("runs", "runs", query, self._in_experiment(self.runs, query))

    def create_run(self, _: list[str], __: dict[str, str], body: Json) -> Json:
        self._check_startable(body, "A run")
        return self._insert("runs", "run_id", {**body, "state": "PENDING", "storage_state": "AVAILABLE"})

    def get_run(self, parts: list[str], _: dict[str, str], __: Json) -> Json:
        return self._get("runs", parts[0])

    def terminate_run(self, parts: list[str], _: dict[str, str], __: Json) -> Json:
        run = self._get("runs", parts[0])
        if run["state"] not in ("PENDING", "RUNNING", "PAUSED"):
            raise Refusal(INVALID, f"Failed to terminate run {parts[0]}: it is in state {run['state']}")
        run["state"] = "CANCELING"
        return {}

    def list_recurring_runs(self, _: list[str], query: dict[str, str], __: Json) -> Json:
        return self._list("recurring_runs", "recurringRuns", query, self._in_experiment(self.recurring_runs, query))

    def create_recurring_run(self, _: list[str], __: dict[str, str], body: Json) -> Json:
        self._check_startable(body, "A recurring run")
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise Refusal(INVALID, "Max concurrency of a recurring run must be at least 1 and at most 10")
        cron = body.get("trigger", {}).get("cron_schedule", {}).get("cron")
        if cron is not None and (len(cron.split()) != 6 or re.search(r"[^\w */,?#-]", cron)):
            raise Refusal(INVALID, "Schedule cron is not a supported format")
        modes = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}
        if body.get("mode") not in modes:
            raise Refusal(INVALID, "Recurring run's mode is not specified")
        filled = {"service_account": "pipeline-runner", **body}  # what is not said, the server fills in
        return self._insert("recurring_runs", "recurring_run_id", {**filled, "status": modes[body["mode"]]})

    def enable_recurring_run(self, parts: list[str], _: dict[str, str], __: Json) -> Json:
        self._get("recurring_runs", parts[0]).update(status="ENABLED", mode="ENABLE")
        return {}

    def disable_recurring_run(self, parts: list[str], _: dict[str, str], __: Json) -> Json:
        self._get("recurring_runs", parts[0]).update(status="DISABLED", mode="DISABLE")
        return {}

    def delete_recurring_run(self, parts: list[str], query: dict[str, str], _: Json) -> Json:
        self._get("recurring_runs", parts[0])
        policy = query.get("propagation_policy")
        if policy not in (None, "DELETE_PROPAGATION_POLICY_UNSPECIFIED", "FOREGROUND", "BACKGROUND", "ORPHAN"):
            raise Refusal(INVALID, f"unknown propagation policy {policy}")
        del self.recurring_runs[parts[0]]
        for run in self.runs.values():
            if policy != "ORPHAN" and run.get("recurring_run_id") == parts[0] and run["state"] == "RUNNING":
                run["state"] = "FAILED"  # Kubernetes deletes the workflow with its owner
        return {}

    def _in_experiment(self, rows: dict[str, Json], query: dict[str, str]) -> list[Json]:
        experiment_id = query.get("experiment_id")
        if experiment_id:
            experiment = self._get("experiments", experiment_id)
            self._check_namespace(query.get("namespace") or experiment.get("namespace"), "A list")
            return [row for row in rows.values() if row["experiment_id"] == experiment_id]
        self._check_namespace(query.get("namespace"), "A list")
        return list(rows.values())

    def _check_startable(self, body: Json, what: str) -> None:
        if not body.get("display_name"):
            raise Refusal(INVALID, f"{what} has no name")
        if not body.get("experiment_id"):
            raise Refusal(INVALID, f"{what} without an experiment: the default one is not what tests want")
        experiment = self._get("experiments", body["experiment_id"])
        self._check_namespace(experiment.get("namespace"), what)
        reference = body.get("pipeline_version_reference") or {}
        version = self._get("versions", reference.get("pipeline_version_id", ""))
        if version["pipeline_id"] != reference.get("pipeline_id"):
            raise Refusal(INVALID, f"the version {version['name']} is of another pipeline")
        root = next(yaml.safe_load_all(self.uploaded[version["pipeline_version_id"]]))["root"]
        inputs = root.get("inputDefinitions", {}).get("parameters", {})
        given = (body.get("runtime_config") or {}).get("parameters", {})
        if unknown := sorted(set(given) - set(inputs)):
            raise Refusal(INVALID, f"parameter {unknown[0]} is none of the pipeline's")
        needed = {key for key, definition in inputs.items() if "defaultValue" not in definition}
        if missing := sorted(needed - set(given)):
            raise Refusal(INVALID, f"parameter {missing[0]} is missing")
        for key, value in given.items():
            if inputs[key]["parameterType"] == "STRING" and not isinstance(value, str):
                raise Refusal(INVALID, f"parameter {key}: {value!r} is no string")


HANDLERS: dict[str, Callable[[Kubeflow, list[str], dict[str, str], Json], Json]] = {
    "GET /experiments": Kubeflow.list_experiments,
    "POST /experiments": Kubeflow.create_experiment,
    "GET /pipelines/names/{name}": Kubeflow.get_pipeline_by_name,
    "POST /pipelines": Kubeflow.create_pipeline,
    "GET /pipelines/{pipeline_id}/versions": Kubeflow.list_versions,
    "POST /pipelines/upload_version": Kubeflow.upload_version,
    "GET /runs": Kubeflow.list_runs,
    "POST /runs": Kubeflow.create_run,
    "GET /runs/{run_id}": Kubeflow.get_run,
    "POST /runs/{run_id}:terminate": Kubeflow.terminate_run,
    "GET /recurringruns": Kubeflow.list_recurring_runs,
    "POST /recurringruns": Kubeflow.create_recurring_run,
    "POST /recurringruns/{recurring_run_id}:enable": Kubeflow.enable_recurring_run,
    "POST /recurringruns/{recurring_run_id}:disable": Kubeflow.disable_recurring_run,
    "DELETE /recurringruns/{recurring_run_id}": Kubeflow.delete_recurring_run,
}


def _matches(row: Json, predicate: Json, known: set[str]) -> bool:
    key, operation = predicate.get("key"), predicate.get("operation")
    if key not in known:
        raise Refusal(INVALID, f"no support for filtering on unrecognized field {key!r}")
    value = row.get(key, row.get("display_name") if key == "name" else None)
    if operation == "EQUALS":
        return bool(value == predicate.get("string_value"))
    if operation == "IS_SUBSTRING":
        return predicate.get("string_value", "") in (value or "")
    raise Refusal(INVALID, f"the stand-in does not evaluate {operation}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets: each answer would wait 40 ms
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _handle(self) -> None:
        kubeflow, at = self.server.kubeflow, urlsplit(self.path)
        pairs = parse_qsl(at.query, keep_blank_values=True)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.headers.get("Content-Type", "")
        try:
            body = _parse_upload(raw, kind) if kind.startswith("multipart/") else json.loads(raw or b"null")
        except ValueError:
            body = None
        with kubeflow.lock:
            request = Request(
                method=self.command,
                path=at.path,
                query=dict(pairs),
                body=body,
                authorization=self.headers["Authorization"],
            )
            kubeflow.requests.append(request)
            fault = self._take_fault(at.path)
        if fault and fault.cut:
            self._hang_up()
            return
        status, reply = (
            (fault.status, {"code": UNAVAILABLE, "message": "injected"})
            if fault and fault.status
            else (self._answer(request, len(pairs) != len(dict(pairs))))
        )
        if fault and fault.delay_seconds:
            time.sleep(fault.delay_seconds)
        if fault and fault.lost:
            self._hang_up()
            return
        self._send(status, fault.body if fault and fault.body is not None else json.dumps(reply))

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _handle

    def _take_fault(self, path: str) -> Fault | None:
        for fault in self.server.kubeflow.faults:
            if fault.times > 0 and fault.method == self.command and path.endswith(fault.path):
                fault.times -= 1
                return fault
        return None

    def _answer(self, request: Request, twice: bool) -> tuple[int, Json]:
        kubeflow = self.server.kubeflow
        if kubeflow.token is not None and request.authorization != f"Bearer {kubeflow.token}":
            return 401, {"code": UNAUTHENTICATED, "message": "Request header error: there is no valid token"}
        matching = (
            (route, route.pattern.fullmatch(request.path)) for route in contract() if route.method == request.method
        )
        route, match = next(((route, match) for route, match in matching if match), (None, None))
        if route is None or match is None:
            return self._violation(404, NOT_FOUND, f"{request.method} {request.path}: no such route")
        problem = "a query parameter twice" if twice else _request_misfit(route, request)
        if problem:
            return self._violation(400, INVALID, f"{route.method} {route.path}: {problem}")
        try:
            reply = kubeflow.answer(
                route, [unquote(part) for part in match.groups()], request.query, request.body or {}
            )
        except Refusal as refusal:
            return STATUS[refusal.code], {"code": refusal.code, "message": refusal.message, "error": refusal.message}
        if problem := misfit(reply, route.reply):
            return self._violation(500, INVALID, f"THE STAND-IN'S OWN REPLY to {route.method} {route.path}: {problem}")
        return 200, reply

    def _violation(self, status: int, code: int, problem: str) -> tuple[int, Json]:
        self.server.kubeflow.violations.append(problem)
        return status, {"code": code, "message": problem}

    def _send(self, status: int, text: str) -> None:
        data = text.encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if 300 <= status < 400:
                self.send_header("Location", f"{self.server.kubeflow.url}/login")
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # whoever asked has stopped waiting

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _request_misfit(route: Route, request: Request) -> str | None:
    if unknown := sorted(set(request.query) - set(route.query)):
        return f"no query parameter {unknown[0]}"
    if problem := _first(misfit(value, route.query[key], f"?{key}") for key, value in request.query.items()):
        return problem
    if route.uploads:
        return None if request.body and request.body.get("uploadfile") else "no file is uploaded"
    if route.body is None:
        return None if request.body is None else "a body where none is taken"
    return misfit(request.body, route.body) if isinstance(request.body, dict) else "no JSON object as its body"


def _parse_upload(raw: bytes, kind: str) -> Json:
    """The parts of a form by their names."""
    boundary = kind.partition("boundary=")[2].strip('"').encode()
    parts = {}
    for part in raw.split(b"--" + boundary)[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        if name := re.search(rb'[; ]name="([^"]+)"', head):
            parts[name[1].decode()] = data.removesuffix(b"\r\n").decode()
    return parts


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    kubeflow: Kubeflow

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


@contextmanager
def serve(
    *,
    multi_user: bool = False,
    namespaces: tuple[str, ...] = (),
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    allow_violations: bool = False,
) -> Iterator[Kubeflow]:
    """Serve the API on a free port of loopback.

    Args:
        multi_user: Whether each user has a namespace, as with Kubeflow's profiles.
        namespaces: Those that the caller may use then.
        token: The bearer token that is asked for, None for none; may be changed meanwhile (`kubeflow.token`).
        tls: Certificate and key; None: no TLS.
        allow_violations: For tests of the stand-in itself: do not fail at the end.
    """
    server = _Server(("127.0.0.1", 0), _Handler)
    if tls:
        # The handshake is each connection's own affair: one that fails must not hold up the others.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    kubeflow = Kubeflow(
        url=f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}",
        multi_user=multi_user,
        namespaces=namespaces,
        token=token,
    )
    server.kubeflow = kubeflow
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield kubeflow
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert allow_violations or not kubeflow.violations, kubeflow.violations
