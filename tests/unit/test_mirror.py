"""The mirror in MLflow's registry, against a stand-in that knows the few calls and refuses what the real one does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from components.core.config import Config, EventsConfig, StoreConfig
from components.core.contracts import LedgerKind, LedgerRecord
from components.core.events import announce
from components.promote import step
from components.report.step import tell
from tests.unit.decision import no_rematch
from tests.unit.promotion import begin, judged, save, write_config
from tests.unit.test_events import record


class Registry:
    """MLflow's model registry as its REST API shows it: one dictionary a model."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.authorization: set[str | None] = set()
        self.broken = 0

    def answer(self, what: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append(what)
        if self.broken:
            self.broken -= 1
            return 500, {"error_code": "INTERNAL_ERROR"}
        model = self.models.get(fields["name"])
        if what == "registered-models/create":
            if model is not None:
                return 400, {"error_code": "RESOURCE_ALREADY_EXISTS"}
            self.models[fields["name"]] = {"versions": [], "aliases": {}}
            return 200, {"registered_model": {"name": fields["name"]}}
        if model is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
        if what == "registered-models/get":
            # Like the real one, which leaves out what is empty.
            aliases = [{"alias": alias, "version": number} for alias, number in model["aliases"].items()]
            return 200, {"registered_model": {"name": fields["name"], **({"aliases": aliases} if aliases else {})}}
        if what == "model-versions/create":
            model["versions"].append(fields)
            return 200, {"model_version": {"version": str(len(model["versions"]))}}
        if what == "registered-models/alias" and 0 < int(fields["version"]) <= len(model["versions"]):
            model["aliases"][fields["alias"]] = fields["version"]
            return 200, {}
        return 400, {"error_code": "INVALID_PARAMETER_VALUE"}


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Registry, str]]:
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self) -> None:
            self.reply({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})

        def reply(self, fields: dict[str, Any]) -> None:
            registry.authorization.add(self.headers.get("Authorization"))
            status, document = registry.answer(urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/"), fields)
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield registry, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def config(address: str) -> Config:
    return Config(
        model="m", store=StoreConfig(uri="s3://bucket/p"), events=EventsConfig(mlflow=address, timeout_seconds=5.0)
    )


def champion(version: str, kind: LedgerKind = "promotion") -> LedgerRecord:
    return record(kind).model_copy(update={"version": version})


def test_promotion_is_a_version_and_the_champion(mlflow: tuple[Registry, str]) -> None:
    registry, address = mlflow
    assert announce(config(address), champion("a" * 32))
    (version,) = registry.models["m"]["versions"]
    assert version["source"] == f"s3://bucket/p/models/m/evidence/{'e' * 32}"
    assert version["description"] == "As good."
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert tags == {
        "retrain.version": "a" * 32,
        "retrain.evidence": "e" * 32,
        "retrain.run": "one",
        "retrain.window": "w",
    }
    assert registry.models["m"]["aliases"] == {f"retrain-{'a' * 32}": "1", "champion": "1"}
    assert registry.authorization == {None}


def test_rollback_moves_the_alias_back_and_makes_no_version(mlflow: tuple[Registry, str]) -> None:
    registry, address = mlflow
    for version in ("a", "b"):
        assert announce(config(address), champion(version * 32))
    assert registry.models["m"]["aliases"]["champion"] == "2"
    assert announce(config(address), champion("a" * 32, "rollback"))
    assert registry.models["m"]["aliases"]["champion"] == "1"
    assert len(registry.models["m"]["versions"]) == 2


def test_told_again_it_only_looks(mlflow: tuple[Registry, str]) -> None:
    registry, address = mlflow
    assert announce(config(address), champion("a" * 32))
    registry.asked.clear()
    assert announce(config(address), champion("a" * 32))
    assert registry.asked == ["registered-models/get"]


@pytest.mark.parametrize("kind", ["rejection", "hold", "approval", "release"])
def test_what_makes_no_champion_is_not_mirrored(mlflow: tuple[Registry, str], kind: LedgerKind) -> None:
    registry, address = mlflow
    assert not announce(config(address), champion("a" * 32, kind))
    assert registry.asked == []


@pytest.mark.parametrize(
    ("secrets", "sent"),
    [
        ({"TOKEN": "t0ken\n"}, "Bearer t0ken"),
        ({"USERNAME": "ada", "PASSWORD": "pass"}, "Basic YWRhOnBhc3M="),
    ],
)
def test_credentials_are_sent(
    mlflow: tuple[Registry, str], monkeypatch: pytest.MonkeyPatch, secrets: dict[str, str], sent: str
) -> None:
    registry, address = mlflow
    for name, value in secrets.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    assert announce(config(address), champion("a" * 32))
    assert registry.authorization == {sent}


def test_server_that_fails_now_and_then_is_asked_again(mlflow: tuple[Registry, str]) -> None:
    registry, address = mlflow
    registry.broken = 2
    assert announce(config(address), champion("a" * 32))
    assert registry.models["m"]["aliases"]["champion"] == "1"


def test_server_that_fails_is_logged_and_nothing_else(
    mlflow: tuple[Registry, str], caplog: pytest.LogCaptureFixture
) -> None:
    registry, address = mlflow
    registry.broken = 100
    assert not announce(config(address), champion("a" * 32))
    assert "ledger record 7: 500 INTERNAL_ERROR to registered-models/get" in caplog.text


@pytest.mark.parametrize("broken", ["webhook", "mlflow"])
def test_one_receiver_that_is_dead_does_not_keep_the_other_from_being_told(
    mlflow: tuple[Registry, str], broken: str
) -> None:
    registry, address = mlflow
    events = EventsConfig(
        mlflow="http://127.0.0.1:9" if broken == "mlflow" else address,
        webhook="http://127.0.0.1:9/" if broken == "webhook" else f"{address}/api/2.0/mlflow/registered-models/create",
        timeout_seconds=3.0,
    )
    both = Config(model="m", store=StoreConfig(uri="s3://bucket/p"), events=events)
    registry.models["m"] = {"versions": [], "aliases": {}}
    assert not announce(both, champion("a" * 32))
    assert bool(registry.models["m"]["versions"]) is (broken == "webhook")


def test_run_that_promoted_is_mirrored_by_its_report(mlflow: tuple[Registry, str], tmp_path: Path) -> None:
    registry, address = mlflow
    path = write_config(tmp_path, events={"mlflow": address})
    run, ledger = begin(path, "one")
    version = save(ledger, b"1")
    judged(run, version, None)
    step.promote(str(path), "one", "w", version, 1, no_rematch)
    assert tell(run).outcome == "promoted"
    assert set(registry.models["m"]["aliases"]) == {"champion", f"retrain-{version}"}
